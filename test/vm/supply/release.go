package supply

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
)

// Release is one release of a component, for one arch.
type Release struct {
	Component string // containerd, runc or cni
	Version   string // as upstream counts, e.g. 1.6.20
	Arch      string // Go's name
	// Static asks for containerd's static variant, built from its Go module; the others
	// are Debian's builds.
	Static bool
}

// Name is the release's folder in the store and on guests' media. Every version has its
// own, since all of runc's have one file name.
func (r Release) Name() string { return r.Component + "-" + r.Version + "-" + r.Arch }

// File is the release's file name, upstream's.
func (r Release) File() string {
	switch {
	case r.Component == "runc":
		return "runc." + r.Arch
	case r.Component == "cni":
		return "cni-plugins-linux-" + r.Arch + "-v" + r.Version + ".tgz"
	case r.Static:
		return "containerd-static-" + r.Version + "-linux-" + r.Arch + ".tar.gz"
	default:
		return "containerd-" + r.Version + "-linux-" + r.Arch + ".tar.gz"
	}
}

// source says where a component's binaries are in its Debian package, and which folder
// upstream's archive has them in; upstream's runc is a bare file.
type source struct{ pkg, from, to string }

func sourceOf(component string) (source, error) {
	switch component {
	case "containerd":
		return source{pkg: "containerd", from: "./usr/bin/", to: "bin/"}, nil
	case "cni":
		return source{pkg: "containernetworking-plugins", from: "./usr/lib/cni/", to: "./"}, nil
	case "runc":
		return source{pkg: "runc", from: "./usr/sbin/runc"}, nil
	default:
		return source{}, fmt.Errorf("get %s: not a component that releases are made of here", component)
	}
}

// Releases returns the folder of each release, by Name, making those that are not there.
// A folder holds the release's file and a SHA256SUMS.
func (s *Store) Releases(ctx context.Context, want []Release) (map[string]string, error) {
	// What is compiled here keeps all processors busy, what is fetched none.
	var compiled, fetched []Release
	for _, r := range want {
		if r.Static {
			compiled = append(compiled, r)
		} else {
			fetched = append(fetched, r)
		}
	}
	dirs := make([]map[string]string, 2)
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() (err error) {
		dirs[0], err = s.entries(ctx, compiled, s.build)
		return err
	})
	work.Go(func() (err error) {
		// One set of package lists serves all releases of an arch, and is fetched only when
		// something is missing.
		open := make(map[string]*debian)
		var closers []func()
		defer func() {
			for _, done := range closers {
				done()
			}
		}()
		dirs[1], err = s.entries(ctx, fetched, func(ctx context.Context, r Release, dir string) error {
			d := open[r.Arch]
			if d == nil {
				var done func()
				var err error
				if d, done, err = s.debian(ctx, r.Arch); err != nil {
					return err
				}
				open[r.Arch], closers = d, append(closers, done)
			}
			return d.repack(ctx, r, dir)
		})
		return err
	})
	if err := work.Wait(); err != nil {
		return nil, err
	}
	maps.Copy(dirs[0], dirs[1])
	return dirs[0], nil
}

// entries are the releases' folders, by Name; those that are not there are made.
func (s *Store) entries(ctx context.Context, want []Release, build func(ctx context.Context, r Release, dir string) error) (map[string]string, error) {
	dirs := make(map[string]string)
	for _, r := range want {
		dir, err := s.Entry(ctx, "releases.v2", r.Name(), func(ctx context.Context, dir string) error { return build(ctx, r, dir) })
		if err != nil {
			return nil, err
		}
		dirs[r.Name()] = dir
	}
	return dirs, nil
}

// repack makes the release's file in dir of the Debian package's binaries.
func (d *debian) repack(ctx context.Context, r Release, dir string) (err error) {
	src, err := sourceOf(r.Component)
	if err != nil {
		return err
	}
	tmp, err := os.MkdirTemp(dir, ".deb-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	deb, err := d.fetch(ctx, src.pkg, r.Version, tmp)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := cmd.Start(); err != nil {
		return err
	}
	found, err := writeRelease(filepath.Join(dir, r.File()), src, tar.NewReader(pipe))
	if err == nil {
		_, err = io.Copy(io.Discard, pipe) // the rest: dpkg-deb fails on a closed pipe
	}
	if err := errors.Join(err, cmd.Wait()); err != nil {
		return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err)
	}
	if found == 0 {
		return fmt.Errorf("unpack %s: nothing in %s", filepath.Base(deb), src.from)
	}
	return writeSums(dir)
}

// writeRelease writes the package's binaries in upstream's layout: the same package
// always gives the same bytes. It returns how many there were.
func writeRelease(path string, src source, in *tar.Reader) (found int, err error) {
	out, err := os.Create(path)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()

	var archive *archiveWriter
	if src.to != "" {
		if archive, err = newArchive(out, src.to); err != nil {
			return 0, err
		}
	}
	for {
		h, err := in.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return found, err
		}
		name, ok := strings.CutPrefix(h.Name, src.from)
		if !ok || h.Typeflag != tar.TypeReg || strings.Contains(name, "/") {
			continue
		}
		found++
		if archive == nil {
			if _, err := io.Copy(out, in); err != nil {
				return found, err
			}
			if err := out.Chmod(0o755); err != nil {
				return found, err
			}
			continue
		}
		if err := archive.add(name, h.Size, in); err != nil {
			return found, err
		}
	}
	if archive != nil {
		return found, archive.close()
	}
	return found, nil
}

// archiveWriter writes a release tarball: one folder, programs in it.
type archiveWriter struct {
	gz     *gzip.Writer
	tar    *tar.Writer
	prefix string
	begun  bool
}

func newArchive(w io.Writer, prefix string) (*archiveWriter, error) {
	// As a gzip file it is as good as any, and emulated machines spare the inflating.
	gz, err := gzip.NewWriterLevel(w, gzip.NoCompression)
	return &archiveWriter{gz: gz, tar: tar.NewWriter(gz), prefix: prefix}, err
}

func (a *archiveWriter) add(name string, size int64, r io.Reader) error {
	if !a.begun {
		a.begun = true
		if err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: a.prefix, Mode: 0o755, ModTime: time.Unix(0, 0)}); err != nil {
			return err
		}
	}
	if err := a.tar.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: a.prefix + name, Mode: 0o755, Size: size, ModTime: time.Unix(0, 0)}); err != nil {
		return err
	}
	_, err := io.Copy(a.tar, r)
	return err
}

func (a *archiveWriter) close() error { return errors.Join(a.tar.Close(), a.gz.Close()) }

// writeSums writes dir's SHA256SUMS, in sha256sum's format.
func writeSums(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, e := range entries { // sorted by name
		if !e.Type().IsRegular() {
			continue
		}
		sum, err := sha256File(filepath.Join(dir, e.Name()))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%s  %s\n", sum, e.Name())
	}
	return os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(sums.String()), 0o644)
}

// Sum reads the digest, in hex, of a release's file from the SHA256SUMS in its folder.
func (r Release) Sum(dir string) (string, error) {
	data, err := os.ReadFile(filepath.Join(dir, "SHA256SUMS"))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(data)) {
		if f := strings.Fields(line); len(f) == 2 && f[1] == r.File() {
			return f[0], nil
		}
	}
	return "", fmt.Errorf("read %s/SHA256SUMS: no line for %s", dir, r.File())
}

func sha256File(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
