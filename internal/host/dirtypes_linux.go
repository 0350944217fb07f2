package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// DirTypes says whether the filesystem of a folder tells the types of entries when a
// folder is read (d_type, readdir(3)). found is false where the folder has no entry that
// could tell: . and .. do not count, as XFS knows theirs in any case.
func (r *Root) DirTypes(p string) (typed, found bool, err error) {
	real, err := r.Resolve(p)
	if err != nil {
		return false, false, err
	}
	f, err := os.Open(real)
	if err != nil {
		return false, false, err
	}
	defer f.Close()
	// os.ReadDir asks for each entry whose type the kernel leaves out, and does not say so.
	buf := make([]byte, 8<<10)
	n, err := unix.Getdents(int(f.Fd()), buf)
	if err != nil {
		return false, false, fmt.Errorf("read folder %s: %w", p, err)
	}
	// struct linux_dirent64: inode and offset of 8 bytes each, record length of 2, type
	// of 1, then the name (getdents(2)).
	for rest := buf[:n]; len(rest) > 19; {
		length := int(binary.NativeEndian.Uint16(rest[16:]))
		if length < 20 || length > len(rest) {
			return false, false, errors.New("read folder " + p + ": the kernel's answer makes no sense")
		}
		if name := unix.ByteSliceToString(rest[19:length]); name != "." && name != ".." {
			return rest[18] != unix.DT_UNKNOWN, true, nil
		}
		rest = rest[length:]
	}
	return false, false, nil
}
