package supply

import (
	"context"
	"errors"
	"os"
	"os/exec"
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

// Registry returns the program of Debian's docker-registry. The package is not installed:
// it would start a registry of its own.
func (s *Store) Registry(ctx context.Context, arch string) (string, error) {
	dir, err := s.Entry(ctx, "registry.v1", arch, func(ctx context.Context, dir string) (err error) {
		tmp, err := os.MkdirTemp(dir, ".deb-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
		if err := s.unpack(ctx, "docker-registry", arch, tmp); err != nil {
			return err
		}
		return os.Rename(filepath.Join(tmp, "usr/bin/docker-registry"), filepath.Join(dir, "docker-registry"))
	})
	return filepath.Join(dir, "docker-registry"), err
}

// unpack unpacks a package of the oldest suite into a folder.
func (s *Store) unpack(ctx context.Context, pkg, arch, dir string) error {
	d, done, err := s.debian(ctx, arch)
	if err != nil {
		return err
	}
	defer done()
	in := func(c *exec.Cmd) { c.Dir = dir }
	if _, err := run(ctx, in, "apt-get", d.options("-q", "download", pkg+"/"+suites()[0])...); err != nil {
		return err
	}
	debs, err := filepath.Glob(filepath.Join(dir, pkg+"_*.deb"))
	if err != nil || len(debs) != 1 {
		return errors.Join(errors.New("get "+pkg+": apt-get download left no file"), err)
	}
	_, err = run(ctx, nil, "dpkg-deb", "-x", debs[0], dir)
	return err
}
