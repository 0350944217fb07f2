package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/elf"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// source is the bundle that a verb works with, and its part for one architecture.
type source struct {
	bundle *bundle.Bundle
	node   *bundle.Node
	// spool is where images of a registry are kept while they are needed, each read over
	// the network once; "" where the bundle is on this machine.
	spool string
	// spooled are files without a name by their digests, held until the bundle is closed.
	spooled map[string]*os.File
}

// invalidBundleError is a bundle that cannot be used at all: exit code 2.
type invalidBundleError struct{ err error }

func (e *invalidBundleError) Error() string { return e.err.Error() }
func (e *invalidBundleError) Unwrap() error { return e.err }

// bundleFlags are those of verbs that take a bundle.
func (a *app) bundleFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&a.bundle, "bundle", "", "take everything from this bundle alone: a `FILE`, a folder, - for standard input, or oci://HOST/REPO@sha256:DIGEST")
	f.StringVar(&a.registryCA, "registry-ca", "", "with --bundle oci://: certificates that the registry's is held against, a PEM `FILE`")
}

// useBundle opens --bundle for an architecture; without one it does nothing. closeBundle
// is called at the end of the run.
func (a *app) useBundle(ctx context.Context, arch string) error {
	if err := a.openBundle(ctx); err != nil || a.source.bundle == nil {
		return err
	}
	return a.source.use(ctx, arch)
}

// openBundle opens --bundle, for no architecture yet.
func (a *app) openBundle(ctx context.Context) error {
	if err := a.registryCAFor(a.bundle); err != nil {
		return err
	}
	if a.bundle == "" {
		return nil
	}
	if a.bundle == "-" && a.profile == "-" {
		return usagef("--bundle - and -f -: standard input can be only one of them")
	}
	if len(a.artifacts) > 0 {
		return usagef("--bundle takes everything from the bundle: leave --artifacts out")
	}
	registry, err := a.registryOptions()
	if err != nil {
		return err
	}
	if strings.HasPrefix(a.bundle, bundle.RegistryScheme) {
		ref, err := bundle.ParseRegistryRef(a.bundle)
		if err != nil {
			return usagef("--bundle: %w", err)
		}
		if ref.Tag != "" {
			a.note("--bundle: the tag %s is not looked at, the digest says what is taken", ref.Tag)
		}
		a.source.spool = a.tempDir()
	}
	b, err := bundle.Open(ctx, a.bundle, bundle.OpenOptions{Registry: registry, Stdin: a.in, TempDir: a.tempDir(), File: a.bundleFile})
	if err != nil {
		return broken(err)
	}
	a.source.bundle = b
	return nil
}

// use makes an architecture's part of the open bundle the one that is worked with.
func (s *source) use(ctx context.Context, arch string) (err error) {
	if s.node, err = s.bundle.For(ctx, arch); err != nil {
		return broken(err)
	}
	// Its profile and lock are in one layer with its files. Damage of that is the bundle's,
	// not that of the profile which is looked for there.
	if _, err := s.node.File(ctx, bundle.ProfileName); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return broken(err)
	}
	return nil
}

// portableArches are what a profile is looked at for where no host is known: --arch, else all
// that the bundle is for, else this machine's.
func (a *app) portableArches() []string {
	if b := a.source.bundle; a.arch == "" && b != nil && len(b.Arches()) > 0 {
		return b.Arches()
	}
	return []string{a.portableFacts().Arch}
}

// registryCAFor refuses a --registry-ca that would not be looked at.
func (a *app) registryCAFor(ref string) error {
	if a.registryCA != "" && !strings.HasPrefix(ref, bundle.RegistryScheme) {
		return usagef("--registry-ca: it is for a bundle in a registry, %sHOST/REPO@sha256:DIGEST", bundle.RegistryScheme)
	}
	return nil
}

// broken marks what is wrong with a bundle itself, or with its name; a registry that does
// not answer is neither.
func broken(err error) error {
	var (
		other   *bundle.NotBundleError
		newer   *bundle.VersionError
		damaged *bundle.DamagedError
		arch    *bundle.ArchError
		digest  *release.DigestError
		file    *fs.PathError
	)
	for _, target := range []any{&other, &newer, &damaged, &arch, &digest, &file} {
		if errors.As(err, target) {
			return &invalidBundleError{err}
		}
	}
	return err
}

func (a *app) closeBundle() {
	if a.source.bundle != nil {
		_ = a.source.bundle.Close() // only read from
	}
	for _, f := range a.source.spooled {
		_ = f.Close() // it has no name, and nobody wants it any more
	}
}

// tempDir is where unnamed files of some size go: not /tmp, which may be memory.
func (a *app) tempDir() string {
	if dir, ok := a.env("TMPDIR"); ok && dir != "" {
		return dir
	}
	return "/var/tmp"
}

// fromBundle reads a file that is in the bundle, by a path below profiles.BundleRoot.
func (s *source) fromBundle(ctx context.Context, name string) ([]byte, error) {
	inside, ok := strings.CutPrefix(name, profiles.BundleRoot)
	if !ok || s.node == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	b, err := s.node.File(ctx, inside)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s has no file %s", s.bundle.Name(), inside)
	}
	return b, err
}

// inputs read what profiles refer to, in the bundle too.
func (a *app) inputs(ctx context.Context) *inputs {
	in := &inputs{env: a.env}
	if a.source.bundle != nil {
		in.bundled = func(name string) ([]byte, error) { return a.source.fromBundle(ctx, name) }
	}
	return in
}

// diffing is how a plan is made, with the bundle's images.
func (a *app) diffing(o planFlags, p *prepared) install.DiffOptions {
	opt := o.options(p.services(), p.daemon())
	if a.source.node != nil {
		opt.Images = &a.source
	}
	return opt
}

// bundled holds what is wanted against what the bundle has, and gives archives that are in it
// their digests.
func (s *source) bundled(st *desired.State) diag.List {
	list := s.bundledArtifacts(st)
	for i := range st.Images {
		img := &st.Images[i]
		inside, ok := strings.CutPrefix(img.File, profiles.BundleRoot)
		if !ok {
			continue
		}
		img.File = inside
		found, ok := s.image(inside)
		if !ok {
			list.Errorf(img.Origin, "make the bundle anew", "%s has no %s for %s", s.bundle.Name(), inside, st.Arch)
			continue
		}
		img.SHA256, img.Size = found.SHA256, found.Size
	}
	return list
}

// bundledArtifacts are the releases that the bundle lacks, or has of another release file.
func (s *source) bundledArtifacts(st *desired.State) diag.List {
	var list diag.List
	if s.node == nil {
		return nil
	}
	const hint = "want what the bundle has, or make the bundle anew"
	for _, a := range st.Artifacts {
		c, same := s.node.Release(a)
		switch {
		case c == nil:
			list.Errorf(a.Origin, hint, "%s has no %s for linux/%s", s.bundle.Name(), a.Title(), st.Arch)
		case !same:
			list.Errorf(a.Origin, hint, "%s must have sha256 %s (from %s), and %s was made of %s with sha256 %s",
				a.Title(), a.SHA256, a.SHA256From, s.bundle.Name(), c.File, c.SHA256)
		}
	}
	return list
}

func (s *source) image(file string) (bundle.Image, bool) {
	if s.node == nil {
		return bundle.Image{}, false
	}
	for _, img := range s.node.Config.Images {
		if img.File == file {
			return img, true
		}
	}
	return bundle.Image{}, false
}

// Open is install.ImageSource's: an archive of the bundle, verified while it is read.
func (s *source) Open(ctx context.Context, img desired.Image) (io.ReadCloser, error) {
	found, ok := s.image(img.File)
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: img.File, Err: fs.ErrNotExist}
	}
	if s.spool == "" {
		return s.node.OpenImage(ctx, found)
	}
	if f := s.spooled[found.SHA256]; f != nil {
		return io.NopCloser(io.NewSectionReader(f, 0, found.Size)), nil
	}
	r, err := s.node.OpenImage(ctx, found)
	if err != nil {
		return nil, err
	}
	f, err := host.UnnamedFile(s.spool)
	if err != nil {
		r.Close()
		return nil, fmt.Errorf("keep %s: %w", found.File, err)
	}
	return &spooling{ReadCloser: r, source: s, img: found, file: f}, nil
}

// spooling reads an archive out of a registry and keeps what passes: what is imported after
// the commit must not hang on a registry. Only at its end it is known to be good.
type spooling struct {
	io.ReadCloser
	source *source
	img    bundle.Image
	file   *os.File // nil once the source has it
}

func (s *spooling) Read(p []byte) (int, error) {
	n, err := s.ReadCloser.Read(p)
	if s.file == nil {
		return n, err
	}
	if _, werr := s.file.Write(p[:n]); werr != nil {
		return n, fmt.Errorf("keep %s: %w", s.img.File, werr)
	}
	if err == io.EOF {
		s.source.keep(s.img.SHA256, s.file)
		s.file = nil
	}
	return n, err
}

func (s *spooling) Close() error {
	if s.file != nil {
		_ = s.file.Close() // it has no name, and is not whole
	}
	return s.ReadCloser.Close()
}

// lock is the bundle's own, nil where it has none.
func (s *source) lock(ctx context.Context) (*release.Lock, diag.List, error) {
	b, err := s.node.File(ctx, bundle.LockName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	lock, list := release.ReadLock(s.bundle.Name()+":"+bundle.LockName, b)
	if lock != nil {
		lock.Bundled = true
	}
	return lock, list, nil
}

// program takes nodeprep for another architecture out of the bundle, into a file without a
// name, verified; the path is good until the program ends.
func (s *source) program(ctx context.Context, dir string) (name string, err error) {
	c := s.ownProgram()
	if c == nil {
		return "", fmt.Errorf("find nodeprep for linux/%s: %s has none; make the bundle anew with it, or leave it out with --without-recovery",
			s.node.Config.Architecture, s.bundle.Name())
	}
	f, err := host.UnnamedFile(dir)
	if err != nil {
		return "", fmt.Errorf("unpack nodeprep for linux/%s: %w", s.node.Config.Architecture, err)
	}
	members := []desired.Member{{Name: path.Base(systemd.Program), Path: systemd.Program}}
	sink := release.SinkFunc(func(desired.Member, fs.FileMode) (io.WriteCloser, error) { return kept{f}, nil })
	if _, err := s.node.Unpack(ctx, c, members, sink); err != nil {
		f.Close()
		return "", err
	}
	if _, err := elf.Read(f, s.node.Config.Architecture); err != nil {
		f.Close()
		return "", &invalidBundleError{fmt.Errorf("read %s: its nodeprep for linux/%s: %w; make the bundle anew", s.bundle.Name(), s.node.Config.Architecture, err)}
	}
	// A file that nobody holds is closed sooner or later, and its path leads nowhere then.
	s.keep(c.Members[0].SHA256, f)
	return fmt.Sprintf("/proc/self/fd/%d", f.Fd()), nil
}

// keep holds a file without a name until the bundle is closed.
func (s *source) keep(sum string, f *os.File) {
	if s.spooled == nil {
		s.spooled = map[string]*os.File{}
	}
	s.spooled[sum] = f
}

func (s *source) ownProgram() *bundle.Component {
	for i := range s.node.Config.Components {
		if c := &s.node.Config.Components[i]; c.Name == bundle.Program && len(c.Members) == 1 {
			return c
		}
	}
	return nil
}

// kept is a file that stays open when its content is whole.
type kept struct{ *os.File }

func (kept) Close() error { return nil }

// registryOptions are how a registry is reached, by this command line and environment.
func (a *app) registryOptions() (bundle.RegistryOptions, error) {
	o := bundle.RegistryOptions{Network: a.registryNetwork(), UserAgent: "nodeprep/" + plainVersion()}
	if a.registryCA != "" {
		pem, err := readLimited(a.registryCA)
		if err != nil {
			return o, usagef("--registry-ca: %w", err)
		}
		o.CA = pem
	}
	for _, at := range []struct{ env, file string }{{"REGISTRY_AUTH_FILE", ""}, {"DOCKER_CONFIG", "config.json"}, {"HOME", ".docker/config.json"}} {
		if dir, ok := a.env(at.env); ok && dir != "" {
			o.DockerConfig = filepath.Join(dir, at.file)
			break
		}
	}
	return o, nil
}
