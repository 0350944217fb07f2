#!/bin/sh
# Makes a golden image: a Debian in a folder, a node in it, and a disk of that. Needs root,
# debootstrap and e2fsprogs (mkfs.ext4 -d); no loop device, no systemd, no containerd.
#
#   BUNDLE=node.bundle ./chroot.sh
#
# BUNDLE    what nodeprep bundle create made
# ROOT      the folder, ./root; one that has a system already is used as it is
# IMAGE     the disk image to write, ./golden.raw: one ext4, labelled root
# SIZE      its size, 8G (sparse)
# SUITE     the Debian to install, bookworm
# ARCH      what the image is for, as Go and Debian call it: amd64, arm64
# NODEPREP  the nodeprep of this machine
set -eu

: "${BUNDLE:?say BUNDLE=FILE}"
: "${ROOT:=$PWD/root}" "${IMAGE:=$PWD/golden.raw}" "${SIZE:=8G}" "${SUITE:=bookworm}" "${ARCH:=$(dpkg --print-architecture)}" "${NODEPREP:=nodeprep}"

if [ ! -e "$ROOT/etc/os-release" ]; then
	case $ARCH in
	amd64 | arm64) kernel=linux-image-cloud-$ARCH ;;
	*) kernel=linux-image-$ARCH ;;
	esac
	# For another architecture debootstrap needs qemu-user-static here; nodeprep does not.
	debootstrap --variant=minbase --arch="$ARCH" \
		--include="systemd,systemd-sysv,dbus,udev,kmod,iproute2,iptables,ca-certificates,$kernel" "$SUITE" "$ROOT"
	echo 'LABEL=root / ext4 defaults 0 1' >"$ROOT/etc/fstab"
fi

# What must not be the same on two machines. nodeprep leaves nothing of that kind, but the
# system's own packages do. An empty machine-id is made anew at boot (machine-id(5)).
: >"$ROOT/etc/machine-id"
rm -f "$ROOT/var/lib/dbus/machine-id"
rm -f "$ROOT/var/lib/systemd/random-seed"
rm -f "$ROOT/var/lib/systemd/credential.secret"
rm -f "$ROOT"/etc/ssh/ssh_host_*

# The node. Nothing in the folder is run for this, and nothing of this machine is changed.
"$NODEPREP" apply --root "$ROOT" --arch "$ARCH" --bundle "$BUNDLE"
# What a boot of this root came to, if it had one, is no other machine's.
rm -f "$ROOT/var/lib/nodeprep/result.json"
"$NODEPREP" status --root "$ROOT"

# An image is there when it is whole: one of before stays until then.
trap 'rm -f "$IMAGE.tmp"' EXIT
trap 'exit 1' HUP INT TERM
rm -f "$IMAGE.tmp"
mkfs.ext4 -q -L root -d "$ROOT" "$IMAGE.tmp" "$SIZE"
mv -f "$IMAGE.tmp" "$IMAGE"
