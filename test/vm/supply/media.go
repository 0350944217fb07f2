package supply

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
)

// ReleaseMedia returns a disk image of what Releases returned.
func (s *Store) ReleaseMedia(ctx context.Context, dirs map[string]string) (string, error) {
	sums := make(map[string]string)
	for name, dir := range dirs {
		sum, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
		if err != nil {
			return "", err
		}
		sums[name] = string(sum)
	}
	dir, err := s.Keyed(ctx, "media", "releases", sums, func(ctx context.Context, dir string) error {
		return WriteMedia(ctx, filepath.Join(dir, "disk.raw"), dirs)
	})
	return filepath.Join(dir, "disk.raw"), err
}

// WriteMedia writes an ext4 image of folders and files: names in the image, to paths here.
func WriteMedia(ctx context.Context, image string, content map[string]string) error {
	return WriteDisk(ctx, image, "", content)
}

// WriteDisk is WriteMedia, with a label.
func WriteDisk(ctx context.Context, image, label string, content map[string]string) (err error) {
	tmp, err := os.MkdirTemp(filepath.Dir(image), ".media-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return err
	}
	var size int64
	for name, path := range content {
		n, err := copyTree(filepath.Join(tmp, name), path)
		if err != nil {
			return err
		}
		size += n
	}
	// A tenth and 8 MiB for the file system itself.
	_, err = run(ctx, nil, "mkfs.ext4", "-q", "-L", label, "-m", "0", "-O", "^has_journal", "-d", tmp, image, fmt.Sprintf("%dK", (size+size/10)>>10+8<<10))
	return err
}

// copyTree copies regular files, by hard link where it can, and returns their size.
func copyTree(to, from string) (size int64, err error) {
	err = filepath.WalkDir(from, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		dst := filepath.Join(to, rel)
		if d.IsDir() {
			return os.MkdirAll(dst, 0o755)
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("copy %s: not a regular file", path)
		}
		size += info.Size()
		if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
			return err
		}
		if os.Link(path, dst) == nil {
			return nil
		}
		return copyFile(dst, path, info.Mode().Perm())
	})
	return size, err
}

func copyFile(to, from string, mode fs.FileMode) (err error) {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
