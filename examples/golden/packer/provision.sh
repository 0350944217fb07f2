#!/bin/sh
# Packer's shell provisioner runs this, as root, on the machine that becomes the image.
#
# The machine's root is provisioned through a second mount of it, as a root that does not
# run: nothing is started here, so the image gets no data of a containerd that ran on the
# builder (its identity and its leases are in there), and its machines finish themselves at
# their first boot. A mount that is not recursive shows the root's own file system: where
# /usr, /var or /opt are others, they have to be mounted below it, too.
set -eu

: "${NODEPREP:=/tmp/nodeprep}" "${BUNDLE:=/tmp/node.bundle}"
root=$(mktemp -d)
mount --bind / "$root"
trap 'umount "$root" && rmdir "$root"' EXIT

chmod 0755 "$NODEPREP"
"$NODEPREP" apply --root "$root" --bundle "$BUNDLE"
"$NODEPREP" status --root "$root"

rm -f "$NODEPREP" "$BUNDLE"
if command -v cloud-init >/dev/null; then
	cloud-init clean --logs
fi
: >/etc/machine-id
rm -f /var/lib/dbus/machine-id /var/lib/systemd/random-seed /etc/ssh/ssh_host_*
# The key that Packer logged in with.
if [ -n "${SUDO_USER:-}" ]; then
	rm -f "$(getent passwd "$SUDO_USER" | cut -d: -f6)/.ssh/authorized_keys"
fi
