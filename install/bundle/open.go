package bundle

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// OpenOptions say how a bundle is reached.
type OpenOptions struct {
	// Registry is for bundles in registries.
	Registry RegistryOptions
	// Stdin is what "-" reads.
	Stdin io.Reader
	// TempDir is where it is spooled to, into a file without a name; "" is /var/tmp.
	TempDir string
	// File is the bundle itself, where it is open already: the reference is then no more
	// than its name. Open owns it.
	File *os.File
}

// Standard is the reference of a bundle on standard input.
const Standard = "-"

// maxPlatforms is the most architectures that a bundle can be for: containerd is published
// for fewer.
const maxPlatforms = 16

// Bundle is a bundle that is open. Its methods may be called from several goroutines.
type Bundle struct {
	name  string
	store blobs
	root  ocispec.Descriptor
	index ocispec.Index
	// file is the store of a bundle in a file, nil of others.
	file *tarStore
}

// Open opens a bundle: a file, a folder with the OCI layout that tar makes of one, "-" for
// standard input, or oci://HOST/REPO@sha256:DIGEST. Only the index is read.
//
// Errors: *NotBundleError, *VersionError, *DamagedError, the context's cause, and those of
// reading the file or reaching the registry.
func Open(ctx context.Context, ref string, opt OpenOptions) (*Bundle, error) {
	b, err := attach(ctx, ref, opt)
	if err != nil {
		return nil, err
	}
	if err := b.load(ctx); err != nil {
		_ = b.Close() // only read from
		return nil, err
	}
	return b, nil
}

// attach finds the place where a bundle's blobs lie.
func attach(ctx context.Context, ref string, opt OpenOptions) (*Bundle, error) {
	b := &Bundle{name: ref}
	var err error
	switch {
	case opt.File != nil:
		err = b.attachFile(opt.File)
	case strings.HasPrefix(ref, RegistryScheme):
		b.store, err = openRegistry(ctx, ref, opt.Registry)
	case ref == Standard:
		b.name = "standard input"
		var f *os.File
		if f, err = spool(ctx, opt); err == nil {
			err = b.attachFile(f)
		}
	default:
		var f *os.File
		if f, err = openPath(ref); err != nil {
			return nil, err
		}
		var fi fs.FileInfo
		switch fi, err = f.Stat(); {
		case err != nil:
			f.Close()
		case fi.IsDir():
			f.Close()
			err = b.attachDir(ref)
		case fi.Mode().IsRegular():
			err = b.attachFile(f)
		default:
			f.Close()
			err = fmt.Errorf("open %s: neither a file nor a folder; a stream is read from standard input, -", ref)
		}
	}
	if err != nil {
		return nil, err
	}
	return b, nil
}

// attachFile makes an open file the bundle's store and owns it.
func (b *Bundle) attachFile(f *os.File) error {
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return err
	}
	t, err := openTar(b.name, f, fi.Size())
	if err != nil {
		f.Close()
		return err
	}
	t.closer = f
	b.file, b.store = t, &layoutStore{bundle: b.name, files: t}
	return nil
}

func (b *Bundle) attachDir(dir string) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	b.store = &layoutStore{bundle: b.name, files: dirStore{root}}
	return nil
}

// load reads the index, after everything that would make it doubtful.
func (b *Bundle) load(ctx context.Context) error {
	if b.file != nil && len(b.file.faults) > 0 {
		return b.damaged(b.file.faults[0].Part, b.file.faults[0].Err)
	}
	if l, ok := b.store.(*layoutStore); ok {
		if faults := l.check(ctx); len(faults) > 0 {
			return b.damaged(faults[0].Part, faults[0].Err)
		}
	}
	return b.loadIndex(ctx)
}

func (b *Bundle) loadIndex(ctx context.Context) error {
	var err error
	if b.root, err = b.store.Index(ctx); err != nil {
		return err
	}
	switch b.root.MediaType {
	case ocispec.MediaTypeImageIndex:
	case ocispec.MediaTypeImageManifest:
		return b.manifestAlone(ctx)
	default:
		return &NotBundleError{Name: b.name, Problem: fmt.Sprintf("it holds %s", mediaType(b.root.MediaType))}
	}
	data, err := b.small(ctx, partIndex, b.root)
	if err != nil {
		return err
	}
	if err := decode(data, false, &b.index); err != nil {
		return b.damaged(partIndex, err)
	}
	if len(b.index.Manifests) == 0 {
		return &NotBundleError{Name: b.name, Problem: "its index lists nothing"}
	}
	if n := len(b.index.Manifests); n > maxPlatforms {
		return b.damaged(partIndex, fmt.Errorf("it lists %d manifests, and the limit is %d", n, maxPlatforms))
	}
	for _, m := range b.index.Manifests {
		if p := m.Platform; p != nil && !isPlain(p.OS+p.Architecture) {
			return b.damaged(partIndex, fmt.Errorf("it has a platform that cannot be printed: %q", shortened(p.OS+"/"+p.Architecture)))
		}
	}
	return nil
}

// manifestAlone says why a manifest without an index is refused.
func (b *Bundle) manifestAlone(ctx context.Context) error {
	var m ocispec.Manifest
	data, err := b.small(ctx, "manifest", b.root)
	if err != nil {
		return err
	}
	if err := decode(data, false, &m); err != nil {
		return b.damaged("manifest", err)
	}
	if err := b.ours(m); err != nil {
		return err
	}
	return &NotBundleError{Name: b.name, Problem: "it was copied for one architecture only, which leaves its index behind; copy it with skopeo copy --all --preserve-digests"}
}

// Close ends all reading.
func (b *Bundle) Close() error { return b.store.Close() }

// Name is how messages call the bundle.
func (b *Bundle) Name() string { return b.name }

// Digest is that of the image index, by which registries know the bundle.
func (b *Bundle) Digest() digest.Digest { return b.root.Digest }

// Arches are the architectures that it is for, Go's names, in the index's order.
func (b *Bundle) Arches() []string {
	var out []string
	for _, m := range b.index.Manifests {
		if m.Platform != nil && m.Platform.OS == platformOS {
			out = append(out, m.Platform.Architecture)
		}
	}
	return out
}

// Remedy is what helps against damage.
const Remedy = "copy the bundle again, or make it anew with nodeprep bundle create"

// NotBundleError is something that is no bundle of nodeprep's.
type NotBundleError struct {
	Name    string
	Problem string
}

// Error says what it is instead.
func (e *NotBundleError) Error() string {
	return "open " + e.Name + ": not a bundle of nodeprep's: " + printed(e.Problem)
}

// VersionError is a bundle in a format that this nodeprep does not know.
type VersionError struct {
	Name     string
	Format   string // "format 2" or the artifact's type
	Nodeprep string // the version that made it; "" if that cannot be read
}

// Error says which nodeprep can read it.
func (e *VersionError) Error() string {
	by := "a newer nodeprep"
	if e.Nodeprep != "" {
		by = "nodeprep " + e.Nodeprep
	}
	return fmt.Sprintf("open %s: it was made by %s in %s, and this nodeprep reads formats up to %d; use the nodeprep that made it, or a newer one",
		e.Name, printed(by), printed(e.Format), FormatVersion)
}

// ArchError is a bundle that has nothing for an architecture.
type ArchError struct {
	Name string
	Arch string
	Has  []string
}

// Error lists what there is.
func (e *ArchError) Error() string {
	return fmt.Sprintf("open %s: it has nothing for linux/%s, only for linux/%s; make one with nodeprep bundle create --arch %s",
		e.Name, e.Arch, strings.Join(e.Has, ", linux/"), e.Arch)
}

// DamagedError is a bundle whose content is not what was put in.
type DamagedError struct {
	Bundle string
	Part   string // "containerd 2.1.9 linux/amd64"
	Err    error  // often a *release.DigestError
}

// Error names the part and says what to do.
func (e *DamagedError) Error() string {
	return fmt.Sprintf("read %s: %s; %s", e.Bundle, printed(e.Part)+": "+printedLines(e.Err), Remedy)
}

// Unwrap is what was found.
func (e *DamagedError) Unwrap() error { return e.Err }

// damaged says that a part is not what it was, unless it was never read.
func (b *Bundle) damaged(part string, err error) error {
	if unread(err) {
		return err
	}
	return &DamagedError{Bundle: b.name, Part: part, Err: err}
}

// unread are errors that say nothing about what a bundle holds.
func unread(err error) bool {
	if _, is := errors.AsType[*readError](err); is {
		return true
	}
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}
