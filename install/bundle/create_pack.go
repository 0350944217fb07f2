package bundle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// platformOS is that of every node.
const platformOS = "linux"

// Contents are what a bundle is made of.
type Contents struct {
	Nodeprep string // the version of the nodeprep that makes it
	// Platforms are in any order; their architectures differ.
	Platforms []Platform
	// Secret says that there are secrets in it: then nobody else may read the file.
	Secret bool
}

// Platform is what a bundle has for one architecture.
type Platform struct {
	Arch string // Go's name
	// Components are the releases, nodeprep itself last.
	Components []Part
	// Node are the profile, its lock and the files that it names.
	Node []File
	// Images are in the profile's order. An archive that several architectures share is
	// the same pointer in each.
	Images []*ImageArchive
}

// Part is a component that is yet to be packed.
type Part struct {
	// Component has everything but Layer and Members.
	Component
	// Files are those of its layer. dir is an empty private folder that lives until the
	// layer is written.
	Files func(ctx context.Context, dir string) ([]File, error)
}

// ImageArchive is an image archive that is yet to be packed.
type ImageArchive struct {
	File  string   // its name in the bundle's profile: images/pause.tar
	Names []string // full names of the images in it
	Size  int64    // bytes, for the progress
	// Quiet archives tell of their progress themselves.
	Quiet bool
	Open  func() (io.ReadCloser, error)
}

// WriteOptions say how a bundle is written.
type WriteOptions struct {
	// Force replaces a file that exists.
	Force bool
	// Progress, which may be nil, is told how much of something was read or written, of
	// how much, in bytes. It is called from several goroutines.
	Progress func(name string, done, total int64)
}

// Made is a bundle that was written.
type Made struct {
	Digest digest.Digest `json:"digest"` // of its index, by which a registry knows it
	Size   int64         `json:"size"`   // of the file, in bytes
	// Platforms are sorted by architecture.
	Platforms []Config `json:"platforms"`
	// Layers are the sizes of layers as they are in the bundle, in bytes.
	Layers map[digest.Digest]int64 `json:"layers"`
}

// ExistsError is a file that is in the way of a bundle.
type ExistsError struct{ File string }

// Error says how to replace it.
func (e *ExistsError) Error() string {
	return fmt.Sprintf("write %s: there is such a file already; --force replaces it", e.File)
}

// InputError is a bundle's file that the bundle is to be made of.
type InputError struct {
	File  string // where the bundle should go
	Input string // the same file
}

// Error asks for another place.
func (e *InputError) Error() string {
	if e.Input == e.File {
		return fmt.Sprintf("write %s: the bundle is made of this file; name another", e.File)
	}
	return fmt.Sprintf("write %s: it is the file %s, which the bundle is made of; name another", e.File, e.Input)
}

// NotInput says whether a bundle may replace a file that is there: not one of those that it is
// made of, whatever their names. Errors: *InputError.
func NotInput(file string, inputs ...string) error {
	there, err := os.Stat(file)
	if err != nil {
		return nil // nothing is replaced, or MayWrite tells why not
	}
	for _, input := range inputs {
		if fi, err := os.Stat(input); err == nil && os.SameFile(there, fi) {
			return &InputError{File: file, Input: input}
		}
	}
	return nil
}

// Write packs a bundle and writes it to a file, which appears when it is whole and on the
// disk. Beside it, while that takes, is a private folder of the same size; after a failure
// nothing is left, and what a killed run left is removed. The same contents give the same bytes. All layers are packed side by
// side, and all that could not be are told.
//
// Errors: *ExistsError, the context's cause, those of the parts.
func Write(ctx context.Context, file string, c Contents, opt WriteOptions) (_ *Made, err error) {
	if err := MayWrite(file, opt.Force); err != nil {
		return nil, err
	}
	clearAbandoned(filepath.Dir(file))
	temp, remove, err := workFolder(filepath.Dir(file))
	if err != nil {
		return nil, err
	}
	defer func() { err = cmp.Or(err, remove()) }()
	for _, dir := range []string{"layout", "members"} {
		if err := os.Mkdir(filepath.Join(temp, dir), 0o700); err != nil {
			return nil, err
		}
	}
	l, err := newLayout(filepath.Join(temp, "layout"))
	if err != nil {
		return nil, err
	}
	p := &packer{layout: l, members: filepath.Join(temp, "members"), told: opt.Progress}
	made, root, order, err := p.pack(ctx, c)
	if err != nil {
		return nil, err
	}
	mode := fs.FileMode(0o666) // and what the umask takes away
	if c.Secret {
		mode = 0o600
	}
	whole := filepath.Join(temp, "bundle.tar")
	if made.Size, err = l.save(ctx, whole, mode, root, order, meter(opt.Progress, filepath.Base(file), blobsSize(append(order, root)))); err != nil {
		return nil, err
	}
	if err := MayWrite(file, opt.Force); err != nil {
		return nil, err
	}
	if err := os.Rename(whole, file); err != nil {
		return nil, err
	}
	return made, syncDir(filepath.Dir(file))
}

// MayWrite says whether a bundle may be written in a place: nothing is there, or a file and
// force. Errors: *ExistsError and those of looking.
func MayWrite(file string, force bool) error {
	fi, err := os.Lstat(file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		_, err = os.Stat(filepath.Dir(file))
		return err
	case err != nil:
		return err
	case !fi.Mode().IsRegular():
		return fmt.Errorf("write %s: there is something that is no file", file)
	case !force:
		return &ExistsError{File: file}
	}
	return nil
}

// save writes the layout's archive durably.
func (l *layout) save(ctx context.Context, name string, mode fs.FileMode, root ocispec.Descriptor, order []ocispec.Descriptor, told func(int)) (int64, error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	if err := l.writeArchive(ctx, f, root, order, told); err != nil {
		return 0, err
	}
	if err := f.Sync(); err != nil {
		return 0, err
	}
	fi, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return fi.Size(), f.Close()
}

// syncDir makes the names in a folder durable, where its filesystem can.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}

// packer is the packing of one bundle.
type packer struct {
	layout  *layout
	members string // a folder for members
	told    func(name string, done, total int64)
}

// job is a layer that is to be packed.
type job struct {
	title string
	run   func(context.Context) error
}

// pack fills the layout. order are all blobs but the index, as they are to be archived.
func (p *packer) pack(ctx context.Context, c Contents) (made *Made, root ocispec.Descriptor, order []ocispec.Descriptor, err error) {
	platforms := slices.Clone(c.Platforms)
	slices.SortFunc(platforms, func(a, b Platform) int { return cmp.Compare(a.Arch, b.Arch) })
	configs := make([]Config, len(platforms))
	nodes := make([]ocispec.Descriptor, len(platforms))
	components := make([][]ocispec.Descriptor, len(platforms))
	var archives []*ImageArchive
	var jobs []job
	for i, platform := range platforms {
		if i > 0 && platforms[i-1].Arch == platform.Arch {
			return nil, root, nil, fmt.Errorf("pack: %s is there twice", platform.Arch)
		}
		config := &configs[i]
		*config = Config{FormatVersion: FormatVersion, Nodeprep: c.Nodeprep, OS: platformOS, Architecture: platform.Arch}
		config.Components = make([]Component, len(platform.Components))
		components[i] = make([]ocispec.Descriptor, len(platform.Components))
		for k, part := range platform.Components {
			jobs = append(jobs, job{part.Title() + " " + platform.Arch, func(ctx context.Context) (err error) {
				config.Components[k], components[i][k], err = p.component(ctx, part, platform.Arch)
				return err
			}})
		}
		jobs = append(jobs, job{"node " + platform.Arch, func(ctx context.Context) (err error) {
			config.Node, nodes[i], err = p.node(ctx, platform)
			return err
		}})
		for _, a := range platform.Images {
			if !slices.Contains(archives, a) {
				archives = append(archives, a)
			}
		}
	}
	images := make([]Image, len(archives))
	packed := make([]ocispec.Descriptor, len(archives))
	for i, a := range archives {
		jobs = append(jobs, job{a.File, func(ctx context.Context) (err error) {
			images[i], packed[i], err = p.image(ctx, a)
			return err
		}})
	}
	if err := runAll(ctx, jobs); err != nil {
		return nil, root, nil, err
	}
	made = &Made{Platforms: configs, Layers: map[digest.Digest]int64{}}
	var manifests, blobs []ocispec.Descriptor
	for i, platform := range platforms {
		layers := append([]ocispec.Descriptor{nodes[i]}, components[i]...)
		for _, a := range platform.Images {
			k := slices.Index(archives, a)
			configs[i].Images = append(configs[i].Images, images[k])
			layers = append(layers, packed[k])
		}
		config, err := p.layout.document(ctx, ConfigType, configs[i])
		if err != nil {
			return nil, root, nil, err
		}
		manifest, err := p.layout.manifest(ctx, platform.Arch, config, layers)
		if err != nil {
			return nil, root, nil, err
		}
		manifests, blobs = append(manifests, manifest), append(blobs, config)
		for _, l := range layers {
			made.Layers[l.Digest] = l.Size
		}
	}
	if root, err = p.layout.document(ctx, ocispec.MediaTypeImageIndex, index(manifests...)); err != nil {
		return nil, root, nil, err
	}
	made.Digest = root.Digest
	return made, root, slices.Concat(manifests, blobs, nodes, slices.Concat(components...), packed), nil
}

// runAll runs jobs on all cores. One that fails does not end the others, so that all
// faults are told at once.
func runAll(ctx context.Context, jobs []job) error {
	faults := make([]error, len(jobs))
	var g errgroup.Group
	g.SetLimit(sideBySide)
	for i, j := range jobs {
		g.Go(func() error {
			if ctx.Err() != nil {
				return nil
			}
			faults[i] = j.run(ctx)
			return nil
		})
	}
	_ = g.Wait() // the faults are kept
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(faults...)
}

func (p *packer) component(ctx context.Context, part Part, arch string) (Component, ocispec.Descriptor, error) {
	c := part.Component
	dir, err := os.MkdirTemp(p.members, "")
	if err != nil {
		return c, ocispec.Descriptor{}, err
	}
	// What is left after a failure goes with the folder above.
	defer os.RemoveAll(dir)
	files, err := part.Files(ctx, dir)
	if err != nil {
		return c, ocispec.Descriptor{}, err
	}
	desc, members, err := p.layer(ctx, c.Title()+" "+arch, files)
	c.Layer, c.Members = desc.Digest, members
	return c, titled(desc, c.Title()), err
}

func (p *packer) node(ctx context.Context, platform Platform) (Files, ocispec.Descriptor, error) {
	desc, members, err := p.layer(ctx, "node "+platform.Arch, platform.Node)
	return Files{Layer: desc.Digest, Members: members}, titled(desc, "node"), err
}

// layer packs files; name is for the progress.
func (p *packer) layer(ctx context.Context, name string, files []File) (desc ocispec.Descriptor, members []Member, err error) {
	var total int64
	for _, f := range files {
		total += f.Size
	}
	told := meter(p.told, name, total)
	desc, err = p.layout.stream(func(w io.Writer) (mediaType string, err error) {
		members, err = writeLayer(ctx, w, files, told)
		return layerType, err
	})
	return desc, members, err
}

func (p *packer) image(ctx context.Context, a *ImageArchive) (Image, ocispec.Descriptor, error) {
	image := Image{File: a.File, Names: a.Names}
	r, err := a.Open()
	if err != nil {
		return image, ocispec.Descriptor{}, err
	}
	defer r.Close()
	told := p.told
	if a.Quiet {
		told = nil
	}
	desc, err := p.layout.stream(func(w io.Writer) (mediaType string, err error) {
		return writeImage(ctx, w, r, &image, meter(told, a.File, a.Size))
	})
	image.Layer = desc.Digest
	return image, titled(desc, a.File), err
}

// meter adds up what one thing's progress is; nil where nobody asks.
func meter(told func(name string, done, total int64), name string, total int64) func(n int) {
	if told == nil {
		return nil
	}
	told(name, 0, total)
	var done int64
	return func(n int) {
		done += int64(n)
		told(name, done, total)
	}
}

func blobsSize(blobs []ocispec.Descriptor) int64 {
	var total int64
	seen := map[digest.Digest]bool{}
	for _, b := range blobs {
		if !seen[b.Digest] {
			total += b.Size
		}
		seen[b.Digest] = true
	}
	return total
}
