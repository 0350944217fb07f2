package host

import "os"

// removedFile is a file that lost its name.
func removedFile(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".nodeprep-") // 0600, and never one that is there
	if err != nil {
		return nil, err
	}
	if err := os.Remove(f.Name()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}
