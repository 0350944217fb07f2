package supply

import (
	"context"
	"os"
	"path/filepath"
)

// Package is a Debian package of an upstream version.
type Package struct{ Name, Version string }

// Packages returns a folder with the packages' files, each as NAME.deb.
func (s *Store) Packages(ctx context.Context, arch string, want []Package) (string, error) {
	return s.Keyed(ctx, "packages", arch, want, func(ctx context.Context, dir string) error {
		d, done, err := s.debian(ctx, arch)
		if err != nil {
			return err
		}
		defer done()
		for _, p := range want {
			file, err := d.fetch(ctx, p.Name, p.Version, dir)
			if err != nil {
				return err
			}
			if err := os.Rename(file, filepath.Join(dir, p.Name+".deb")); err != nil {
				return err
			}
		}
		return nil
	})
}
