package install

import "golang.org/x/sys/unix"

// fixed says why no rename can replace what is at a real path, and what to do about
// it; "" when nothing speaks against it. Filesystems and kernels that do not tell
// (statx(2), STATX_ATTR_IMMUTABLE and, since Linux 5.8, STATX_ATTR_MOUNT_ROOT) are left
// to the rename itself.
func fixed(real, shown string) string {
	var st unix.Statx_t
	if err := unix.Statx(unix.AT_FDCWD, real, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_TYPE, &st); err != nil || st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return ""
	}
	switch {
	case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
		return "something is mounted on it; unmount it (umount " + shown + ")"
	case st.Attributes&unix.STATX_ATTR_IMMUTABLE != 0:
		return "it is immutable (chattr -i " + shown + " lifts that)"
	case st.Attributes&unix.STATX_ATTR_APPEND != 0:
		return "it is append-only (chattr -a " + shown + " lifts that)"
	}
	return ""
}
