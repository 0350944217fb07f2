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
trap 'exit 1' HUP INT TERM

# What must not be the same on two machines. An empty machine-id is made anew at boot
# (machine-id(5)), and a seed that is not loaded is not saved again at shutdown.
systemctl stop systemd-random-seed.service
: >"$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id"
rm -f "$root/var/lib/systemd/random-seed"
rm -f "$root/var/lib/systemd/credential.secret"
rm -f "$root"/etc/ssh/ssh_host_*

chmod 0755 "$NODEPREP"
"$NODEPREP" apply --root "$root" --bundle "$BUNDLE"
# What a boot of this root came to, if it had one, is no other machine's.
rm -f "$root/var/lib/nodeprep/result.json"
"$NODEPREP" status --root "$root"

rm -f "$NODEPREP" "$BUNDLE"
if command -v cloud-init >/dev/null; then
	cloud-init clean --logs
fi
# The key that Packer logged in with.
if [ -n "${SUDO_USER:-}" ]; then
	rm -f "$root$(getent passwd "$SUDO_USER" | cut -d: -f6)/.ssh/authorized_keys"
fi
