//go:build !linux

package host

import "os"

// UnnamedFile makes a file in a folder that loses its name at once.
func UnnamedFile(dir string) (*os.File, error) { return removedFile(dir) }
