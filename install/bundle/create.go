package bundle

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/elf"
	"github.com/nodeprep/nodeprep/profiles"
)

// programPath is where nodeprep itself lies on a node, below /.
const programPath = "usr/local/bin/nodeprep"

// Target is one architecture that a bundle is made for.
type Target struct {
	Arch string // Go's name
	// Artifacts are the releases that the profile wants, at hand.
	Artifacts []release.Located
	// Program is nodeprep for the architecture, at hand: a release file with a digest, or
	// just the path of a program.
	Program release.Located
	// Lock has all Artifacts. It is the profile's, or LockIsOurs: made for the bundle.
	Lock       *release.Lock
	LockIsOurs bool
	// Sandbox is the image of pods.
	Sandbox string
}

// PulledImage is an image that comes from a registry.
type PulledImage struct {
	Name string // its full name on the nodes
	From string // what it is pulled from
}

// CreateOptions say what goes into a bundle.
type CreateOptions struct {
	WriteOptions
	Nodeprep string // the version of this nodeprep
	Profile  *profiles.Profile
	Targets  []Target
	// Read reads a file that the profile names, which is no image.
	Read func(profiles.LocalFile) ([]byte, error)
	// Images are added to those of the profile, pinned. Pull writes the archive of one for
	// an architecture.
	Images []PulledImage
	Pull   func(ctx context.Context, image PulledImage, arch string, w io.Writer, progress func(done, total int64)) error
	// WithSecrets takes along what is secret.
	WithSecrets bool
}

// Create makes a bundle of a profile and what it needs, for one or several architectures.
// The same inputs give the same bytes, wherever they lie. The list has what is wrong with
// the profile, its files and images, all of it, and warnings; where there are faults nothing
// is made, and the error is nil.
//
// Errors: *ExistsError, *InputError, *release.DigestError and *release.ArchiveError of release files that
// are not what they should be, those of reading and writing, the context's cause.
func Create(ctx context.Context, file string, opt CreateOptions) (*Made, diag.List, error) {
	if err := MayWrite(file, opt.Force); err != nil {
		return nil, nil, err
	}
	var refs []string
	pulled := map[string]PulledImage{}
	for _, image := range opt.Images {
		refs, pulled[image.Name] = append(refs, image.Name), image
	}
	portable, list := opt.Profile.Portable(profiles.PortableOptions{WithSecrets: opt.WithSecrets, Read: opt.Read, Pulled: refs})
	if err := NotInput(file, opt.inputs(portable)...); err != nil {
		return nil, nil, err
	}
	arches := make([]string, len(opt.Targets))
	for i, t := range opt.Targets {
		arches[i] = t.Arch
	}
	looked, faults, err := inspect(ctx, portable, arches)
	if err != nil {
		return nil, list, err
	}
	list = append(list, faults...)
	if list.HasErrors() {
		list.Sort()
		return nil, list, nil
	}
	list = append(list, opt.sandboxes(looked, refs)...)
	list.Sort()
	c := Contents{Nodeprep: opt.Nodeprep, Secret: portable.Secret}
	shared := map[string]*ImageArchive{}
	for _, t := range opt.Targets {
		p := Platform{Arch: t.Arch}
		for _, l := range t.Artifacts {
			p.Components = append(p.Components, releasePart(l, t))
		}
		p.Components = append(p.Components, programPart(t.Program, opt.Nodeprep, t.Arch))
		in := map[string]bool{}
		for _, f := range portable.Files {
			if !f.Image {
				p.Node = append(p.Node, memoryFile(f.Name, f.Data))
				continue
			}
			archive := shared[f.Name]
			if f.Pulled != "" {
				archive = opt.pull(ctx, f.Name, pulled[f.Pulled], t.Arch)
			} else if !looked[f.Name].fits(t.Arch) {
				continue
			} else if archive == nil {
				archive = looked[f.Name].archive(f)
				shared[f.Name] = archive
			}
			p.Images, in[f.Name] = append(p.Images, archive), true
		}
		text, err := portable.YAML(func(name string) bool { return !in[name] })
		if err != nil {
			return nil, list, err
		}
		lock, err := t.lock()
		if err != nil {
			return nil, list, err
		}
		p.Node = append(p.Node, memoryFile(ProfileName, text), memoryFile(LockName, lock.Marshal()))
		c.Platforms = append(c.Platforms, p)
	}
	made, err := Write(ctx, file, c, opt.WriteOptions)
	return made, list, err
}

// inputs are the files on this machine that the bundle is made of, but for the profile's own.
func (o CreateOptions) inputs(portable *profiles.Portable) []string {
	var out []string
	for _, f := range portable.Files {
		out = append(out, f.From.Path)
	}
	for _, t := range o.Targets {
		for _, l := range append(t.Artifacts[:len(t.Artifacts):len(t.Artifacts)], t.Program) {
			out = append(out, l.Path)
		}
	}
	return out
}

func memoryFile(name string, data []byte) File {
	return File{Path: name, Mode: 0o644, Size: int64(len(data)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}
}

// lock is what the lock has of the target's releases.
func (t Target) lock() (*release.Lock, error) {
	out := &release.Lock{File: LockName}
	for _, l := range t.Artifacts {
		e := t.locked(l)
		if e == nil || e.SHA256 != l.SHA256 {
			return nil, fmt.Errorf("pack %s: the lock does not have it", l.File)
		}
		out.Entries = append(out.Entries, *e)
	}
	return out, nil
}

// locked is the lock's entry for a release.
func (t Target) locked(l release.Located) *release.Locked {
	a := l.Artifact
	e := t.Lock.Find(a.Component, a.Version, a.Arch, a.Static)
	if e == nil || !t.LockIsOurs {
		return e
	}
	own := *e
	own.From = vouched(e.From)
	return &own
}

// vouched is who knew a digest, without the folders of this machine, which must not count.
func vouched(from string) string {
	if strings.Contains(from, "://") {
		return from
	}
	what, file := "", from
	for _, kind := range []string{"profile ", "measured ", "checksum file "} {
		if rest, ok := strings.CutPrefix(from, kind); ok {
			what, file = kind, rest
		}
	}
	return what + filepath.Base(file)
}

// releasePart is a component whose layer comes out of a release file, verified on the way.
func releasePart(l release.Located, t Target) Part {
	a := l.Artifact
	c := Component{Name: a.Component, Version: a.Version, Static: a.Static, File: l.File, SHA256: l.SHA256}
	if e := t.locked(l); e != nil {
		// Not the lock's line, which says nothing in the bundle.
		c.SHA256From, c.Signature = cmp.Or(e.From, LockName), e.Signature
	}
	return Part{c, func(ctx context.Context, dir string) ([]File, error) { return unpackInto(ctx, dir, l, t.Arch) }}
}

// unpackInto unpacks a release file into a private folder. The files count only when all of
// it was verified; then they must be programs of the architecture.
func unpackInto(ctx context.Context, dir string, l release.Located, arch string) ([]File, error) {
	var files []File
	unpacked, err := release.UnpackFile(ctx, l, release.SinkFunc(func(m desired.Member, mode fs.FileMode) (io.WriteCloser, error) {
		name := filepath.Join(dir, fmt.Sprint(len(files)))
		files = append(files, File{Path: strings.TrimPrefix(path.Clean(m.Path), "/"), Mode: mode, Open: func() (io.ReadCloser, error) { return os.Open(name) }})
		return os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	}))
	if err != nil {
		return nil, err
	}
	var faults []error
	for i, m := range unpacked.Members {
		files[i].Size = m.Size
		faults = append(faults, machine(filepath.Join(dir, fmt.Sprint(i)), l.File+": "+m.Name, arch))
	}
	return files, errors.Join(faults...)
}

// machine says whether a program is one of an architecture.
func machine(file, name, arch string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := elf.Read(f, arch); err != nil {
		return fmt.Errorf("pack %s: %w", name, err)
	}
	return nil
}

// programPart is nodeprep itself.
func programPart(l release.Located, version, arch string) Part {
	return Part{Component{Name: Program, Version: version}, func(ctx context.Context, dir string) ([]File, error) {
		if l.SHA256 != "" {
			l.Artifact.Members = []desired.Member{{Name: path.Base(programPath), Path: "/" + programPath}}
			return unpackInto(ctx, dir, l, arch)
		}
		fi, err := os.Stat(l.Path)
		if err != nil {
			return nil, err
		}
		open := func() (io.ReadCloser, error) { return os.Open(l.Path) }
		return []File{{Path: programPath, Mode: 0o755, Size: fi.Size(), Open: open}}, machine(l.Path, Program, arch)
	}}
}

// pull is an image archive that comes from a registry while it is packed.
func (o CreateOptions) pull(ctx context.Context, file string, image PulledImage, arch string) *ImageArchive {
	title := image.Name + " " + arch
	return &ImageArchive{File: file, Names: []string{image.Name}, Quiet: true, Open: func() (io.ReadCloser, error) {
		ctx, cancel := context.WithCancel(ctx)
		r, w := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			// Its error, or the end.
			w.CloseWithError(o.Pull(ctx, image, arch, w, func(done, total int64) {
				if o.Progress != nil {
					o.Progress(title, done, total)
				}
			}))
		}()
		return &piped{r, func() {
			cancel()
			r.Close()
			<-done
		}}, nil
	}}
}

// piped ends what writes into a pipe when its reader is done with it.
type piped struct {
	io.Reader
	end func()
}

func (p *piped) Close() error {
	p.end()
	return nil
}

// sandboxes warns of images of pods that the bundle does not have.
func (o CreateOptions) sandboxes(looked map[string]*lookedAt, pulled []string) diag.List {
	var list diag.List
	for _, t := range o.Targets {
		want := fullName(t.Sandbox)
		if t.Sandbox == "" || slices.ContainsFunc(pulled, func(name string) bool { return fullName(name) == want }) {
			continue
		}
		found := false
		for _, l := range looked {
			found = found || slices.Contains(l.names(t.Arch), want)
		}
		if !found {
			at := diag.Origin{Path: "images"}
			if layers := o.Profile.Layers(); len(layers) > 0 {
				at.File = layers[0]
			}
			list.Warnf(at, "add an archive with it to images, or take it along with --image "+t.Sandbox,
				"no image of the bundle is %s for linux/%s, without which no pod starts; the node has to have it or pull it", t.Sandbox, t.Arch)
		}
	}
	return list
}
