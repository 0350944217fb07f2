package host

import (
	"os"

	"golang.org/x/sys/unix"
)

// UnnamedFile makes a file in a folder that has no name there: nobody else can open it, and
// it is gone when it is closed, or the program ends (open(2), O_TMPFILE).
func UnnamedFile(dir string) (*os.File, error) {
	if f, err := os.OpenFile(dir, os.O_RDWR|unix.O_TMPFILE, 0o600); err == nil {
		return f, nil
	}
	return removedFile(dir) // overlayfs and NFS may lack it
}
