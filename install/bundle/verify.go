package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/elf"
)

// Report is what Verify found.
type Report struct {
	Bundle string        `json:"bundle"`
	Digest digest.Digest `json:"digest,omitempty"` // of the image index
	// Parts are what was verified, in the bundle's order.
	Parts []Verified `json:"parts"`
	// Faults are all that were found; none means that the bundle is as it was made.
	Faults []Fault `json:"faults"`
}

// Verified is one part of a bundle.
type Verified struct {
	Part  string        `json:"part"` // "containerd 2.1.9 linux/amd64"
	Layer digest.Digest `json:"layer"`
	Size  int64         `json:"size"` // bytes in the bundle
	Good  bool          `json:"good"`
}

// sideBySide is how many layers are verified or packed at once, whatever the cores: each
// takes some 10 MiB, zstd's window above all.
const sideBySide = 2

// Verify reads all of a bundle, for all architectures, and holds every byte against what
// the bundle says of it: every digest and size, every layer's files, and in a bundle's file
// also what is between its parts, and that nothing is in it that nothing refers to. progress,
// which may be nil, is told how many of how many bytes of a part were read; it is called
// from several goroutines.
//
// What is found wrong is in the report. The error is why it could not be looked for:
// *NotBundleError, *VersionError, the context's cause, and those of opening the bundle.
func Verify(ctx context.Context, ref string, opt OpenOptions, progress func(what string, done, total int64)) (*Report, error) {
	b, err := attach(ctx, ref, opt)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	return b.verify(ctx, progress)
}

// verifier is one run of Verify.
type verifier struct {
	*Bundle
	told   func(what string, done, total int64)
	report Report
	mu     sync.Mutex // for the faults

	known map[string]bool // names of files that something refers to
	whole bool            // all that refers to layers could be read
	jobs  []verification
	// images are the jobs of archives that several nodes may share.
	images map[string]int
}

// verification is a layer that is to be verified.
type verification struct {
	part  string
	layer ocispec.Descriptor
	run   func(ctx context.Context, told func(n int)) error
	as    int // without run: the one that is the same
}

func (b *Bundle) verify(ctx context.Context, told func(what string, done, total int64)) (*Report, error) {
	v := &verifier{Bundle: b, told: told, known: map[string]bool{}, whole: true, images: map[string]int{}}
	v.report = Report{Bundle: b.name, Parts: []Verified{}, Faults: []Fault{}}
	if b.file != nil {
		v.report.Faults = append(v.report.Faults, b.file.faults...)
		faults, err := b.file.seams()
		v.report.Faults = append(v.report.Faults, faults...)
		if err != nil {
			v.fault("the archive", err)
		}
	}
	if l, ok := b.store.(*layoutStore); ok {
		v.report.Faults = append(v.report.Faults, l.check(ctx)...)
	}
	for _, name := range []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile, SumsName} {
		v.known[name] = true
	}
	if err := v.documents(ctx); err != nil {
		return nil, err
	}
	if err := v.layers(ctx); err != nil {
		return nil, err
	}
	v.leftovers(ctx)
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	v.report.Digest = b.root.Digest
	v.report.Faults = distinct(v.report.Faults)
	return &v.report, nil
}

// distinct leaves out what several ways of looking found alike.
func distinct(faults []Fault) []Fault {
	seen := map[string]bool{}
	return slices.DeleteFunc(faults, func(f Fault) bool {
		again := seen[f.Error()]
		seen[f.Error()] = true
		return again
	})
}

func (v *verifier) fault(part string, err error) {
	if damaged, is := errors.AsType[*DamagedError](err); is {
		part, err = damaged.Part, damaged.Err // the verdict says what helps
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.report.Faults = append(v.report.Faults, Fault{part, err})
}

// documents reads index, manifests and configs, and lists the layers. What is no bundle at
// all is an error, unless it was found damaged.
func (v *verifier) documents(ctx context.Context) error {
	broken := func(part string, err error) error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		_, not := errors.AsType[*NotBundleError](err)
		_, newer := errors.AsType[*VersionError](err)
		if (not || newer) && len(v.report.Faults) == 0 {
			return err
		}
		v.whole = false
		v.fault(part, err)
		return nil
	}
	_, local := v.store.(*layoutStore)
	if err := v.loadIndex(ctx); err != nil {
		if _, damaged := errors.AsType[*DamagedError](err); !local && !damaged {
			return err
		}
		return broken(partIndex, err)
	}
	v.refer(v.root)
	seen := map[string]bool{}
	for _, d := range v.index.Manifests {
		v.refer(d)
		n, faults, err := v.node(ctx, d)
		if err != nil {
			if err := broken("manifest "+d.Digest.String(), err); err != nil {
				return err
			}
			continue
		}
		v.report.Faults = append(v.report.Faults, faults...)
		v.refer(n.config)
		if seen[n.platform] {
			v.fault(partIndex, fmt.Errorf("it has two manifests for %q", n.platform))
		}
		seen[n.platform] = true
		for _, l := range n.layers {
			v.refer(l)
		}
		v.list(n)
	}
	return nil
}

// refer marks a blob as one that something refers to.
func (v *verifier) refer(d ocispec.Descriptor) {
	if acceptable(d) == nil {
		v.known[blobPath(d)] = true
	}
}

// list lists the layers of one node.
func (v *verifier) list(n *Node) {
	add := func(what string, layer digest.Digest, run func(ctx context.Context, told func(n int)) error) {
		v.jobs = append(v.jobs, verification{part: n.part(what), layer: n.layers[layer], run: run})
	}
	add("node", n.Config.Node.Layer, func(ctx context.Context, told func(n int)) error {
		var lock bytes.Buffer
		sink := func(m desired.Member, mode fs.FileMode) (io.WriteCloser, error) {
			if m.Path == "/"+LockName {
				return unclosed{&lock}, nil
			}
			return discard(m, mode)
		}
		if _, err := n.unpack(ctx, "node", n.Config.Node, nil, release.SinkFunc(sink), told); err != nil || lock.Len() == 0 {
			return err
		}
		return n.locked(lock.Bytes())
	})
	for _, c := range n.Config.Components {
		add(c.Title(), c.Layer, func(ctx context.Context, told func(n int)) error {
			foreign := &foreigners{arch: n.Config.Architecture}
			if _, err := n.unpack(ctx, c.Title(), Files{c.Layer, c.Members}, nil, foreign, told); err != nil {
				return err
			}
			return foreign.err
		})
	}
	for _, img := range n.Config.Images {
		shared := fmt.Sprint(img.Layer, img.SHA256, img.Size, img.Packed)
		if i, again := v.images[shared]; again {
			v.jobs = append(v.jobs, verification{part: n.part(img.File), layer: n.layers[img.Layer], as: i})
			continue
		}
		v.images[shared] = len(v.jobs)
		add(img.File, img.Layer, func(ctx context.Context, told func(n int)) error {
			r, err := n.openImage(ctx, img, told)
			if err != nil {
				return err
			}
			defer r.Close()
			_, err = copyAll(ctx, io.Discard, r, nil)
			return err
		})
	}
}

// locked holds the components against the bundle's lock.
func (n *Node) locked(text []byte) error {
	lock, list := release.ReadLock(LockName, text)
	if list.HasErrors() {
		return fmt.Errorf("its lock: %s", list.Errors()[0])
	}
	var faults []error
	for _, c := range n.Config.Components {
		if e := lock.Find(c.Name, c.Version, n.Config.Architecture, c.Static); e != nil && e.SHA256 != c.SHA256 {
			faults = append(faults, fmt.Errorf("%s was made of %s with sha256 %s, and %s has %s", c.Title(), c.File, c.SHA256, e.Origin.Place(), e.SHA256))
		}
	}
	return errors.Join(faults...)
}

func discard(desired.Member, fs.FileMode) (io.WriteCloser, error) { return unclosed{io.Discard}, nil }

// foreigners is a sink that looks for programs of other architectures.
type foreigners struct {
	arch string
	err  error
}

func (f *foreigners) Create(m desired.Member, _ fs.FileMode) (io.WriteCloser, error) {
	return &head{name: m.Path, sink: f}, nil
}

// head keeps the first bytes of a file.
type head struct {
	name  string
	sink  *foreigners
	bytes []byte
}

func (h *head) Write(p []byte) (int, error) {
	h.bytes = append(h.bytes, p[:min(len(p), elf.HeadSize-len(h.bytes))]...)
	return len(p), nil
}

func (h *head) Close() error {
	if found := elf.Arch(h.bytes); found != "" && found != h.sink.arch {
		h.sink.err = errors.Join(h.sink.err, fmt.Errorf("%s is a program for %s, want %s", strings.TrimPrefix(h.name, "/"), found, h.sink.arch))
	}
	return nil
}

// layers verifies all layers; an image archive that several nodes have is read once.
func (v *verifier) layers(ctx context.Context) error {
	var g errgroup.Group
	g.SetLimit(sideBySide)
	v.report.Parts = make([]Verified, len(v.jobs))
	for i, j := range v.jobs {
		if j.run == nil {
			continue
		}
		g.Go(func() error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			var told func(n int)
			if v.told != nil {
				var done int64
				v.told(j.part, 0, j.layer.Size)
				told = func(n int) {
					done += int64(n)
					v.told(j.part, done, j.layer.Size)
				}
			}
			err := j.run(ctx, told)
			if err != nil && ctx.Err() != nil {
				return context.Cause(ctx)
			}
			if err != nil {
				v.fault(j.part, err)
			}
			v.report.Parts[i] = Verified{Part: j.part, Layer: j.layer.Digest, Size: j.layer.Size, Good: err == nil}
			return nil
		})
	}
	err := g.Wait()
	for i, j := range v.jobs {
		if j.run == nil {
			v.report.Parts[i] = Verified{Part: j.part, Layer: j.layer.Digest, Size: j.layer.Size, Good: v.report.Parts[j.as].Good}
		}
	}
	return err
}

// leftovers looks at the files of an archive that nothing refers to.
func (v *verifier) leftovers(ctx context.Context) {
	if v.file == nil {
		return
	}
	l, _ := v.store.(*layoutStore)
	others := l != nil && l.others
	for _, e := range v.file.entries {
		if e.folder || e.name == "" || v.known[e.name] || ctx.Err() != nil {
			continue
		}
		sum, blob := strings.CutPrefix(e.name, "blobs/sha256/")
		if blob {
			// Its name is all there is to hold it against.
			h := sha256.New()
			r := io.NewSectionReader(v.file.r, e.data, e.size)
			if _, err := copyAll(ctx, h, r, nil); err != nil {
				v.fault(e.name, err)
			} else if got := hex.EncodeToString(h.Sum(nil)); got != sum {
				v.fault(e.name, &release.DigestError{File: e.name, Got: got, Want: sum, From: "its name"})
			}
		}
		switch {
		case !v.whole || others: // who knows
		case blob:
			v.fault(e.name, errors.New("a blob that nothing refers to"))
		default:
			v.fault(e.name, errors.New("a file that nothing refers to"))
		}
	}
}
