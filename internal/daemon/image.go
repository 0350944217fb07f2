package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// pinnedLabel keeps an image from the kubelet's garbage collection: CRI reports it as
// pinned (containerd internal/cri/labels; from 1.6.22, 1.7.3 and 2.0 on).
const pinnedLabel, pinnedValue = "io.cri-containerd.pinned", "pinned"

// ImportOptions say where an import goes.
type ImportOptions struct {
	Namespace   string // "" is k8s.io, the kubelet's
	Pin         bool
	Snapshotter string // images are unpacked into it; must be CRI's; "" is the daemon's default
	Platform    string // e.g. linux/arm64; "" is this program's own
}

// Image is an image of the daemon.
type Image struct {
	Name   string // e.g. docker.io/library/busybox:1
	Digest string // of its index or manifest, sha256:...
	Pinned bool
	// Changed says, after an import, that the daemon did not have it just so before.
	Changed bool
}

// ErrNoImage says that an archive has no image to import.
var ErrNoImage = errors.New("no image in the archive")

// Import reads a "docker save" or OCI layout archive, as a plain tar or packed by gzip or
// zstd, and makes its images known under their full names, unpacked and ready to run;
// only what the platform needs is kept of an image for several. An image appears in
// the daemon only once it is complete. The result lists the images in the archive's
// order, those too that were there before.
//
// The error wraps ErrNoImage when the archive holds none for the platform or none with
// a name.
func (d *Client) Import(ctx context.Context, r io.Reader, opts ImportOptions) ([]Image, error) {
	if opts.Namespace == "" {
		opts.Namespace = "k8s.io"
	}
	spec := platforms.DefaultSpec()
	if opts.Platform != "" {
		var err error
		if spec, err = platforms.Parse(opts.Platform); err != nil {
			return nil, fmt.Errorf("import image: %w", err)
		}
	}
	out, err := d.importAll(namespaces.WithNamespace(ctx, opts.Namespace), r, spec, opts)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", plain(err))
	}
	return out, nil
}

func (d *Client) importAll(ctx context.Context, r io.Reader, platform ocispec.Platform, opts ImportOptions) ([]Image, error) {
	r, closeReader, err := decompress(r)
	if err != nil {
		return nil, err
	}
	defer closeReader()

	// The lease keeps the blobs until the images refer to them. It is released also when
	// ctx has ended, else they would stay for a day.
	ctx, release, err := d.c.WithLease(ctx)
	if err != nil {
		return nil, err
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }()

	store := d.c.ContentStore()
	lease, _ := leases.FromContext(ctx)
	root, err := archive.ImportIndex(ctx, ownRefs{store, lease + "-"}, r)
	if err != nil {
		return nil, err
	}
	// tar's end comes before the stream's, where the checksum stands.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return nil, err
	}
	raw, err := content.ReadBlob(ctx, store, root)
	if err != nil {
		return nil, err
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return nil, fmt.Errorf("read index of the archive: %w", err)
	}
	found, err := named(index)
	if err != nil {
		return nil, err
	}

	matcher := platforms.Only(platform)
	var out []Image
	var others []string
	for _, img := range found {
		switch err := d.keep(ctx, img, matcher); {
		case errors.Is(err, errOtherPlatform):
			others = append(others, img.Name)
			continue
		case err != nil:
			return nil, fmt.Errorf("%s: %w", img.Name, err)
		}
		if err := client.NewImageWithPlatform(d.c, img, matcher).Unpack(ctx, opts.Snapshotter); err != nil {
			return nil, fmt.Errorf("unpack %s: %w", img.Name, err)
		}
		recorded, err := d.record(ctx, img, opts.Pin)
		if err != nil {
			return nil, fmt.Errorf("record %s: %w", img.Name, err)
		}
		out = append(out, recorded)
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w for %s (it has %s for other platforms)", ErrNoImage, platforms.Format(platform), strings.Join(others, ", "))
	}
	return out, nil
}

// ownRefs is a content store whose uploads have names of their own. ImportIndex names
// them after the archive's files, such as config.json, and an upload goes on where an
// earlier one of that name was broken off: another archive's, maybe.
type ownRefs struct {
	content.Store
	prefix string
}

// Writer is the store's, under the name with the prefix.
func (s ownRefs) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	return s.Store.Writer(ctx, append(slices.Clone(opts), func(o *content.WriterOpts) error {
		o.Ref = s.prefix + o.Ref
		return nil
	})...)
}

// named gives the images of an archive their full names. One image may have several.
func named(index ocispec.Index) ([]images.Image, error) {
	var out []images.Image
	var tags []string
	for _, m := range index.Manifests {
		name := m.Annotations[images.AnnotationImageName]
		if name == "" {
			name = m.Annotations[ocispec.AnnotationRefName]
			// The annotation often holds a tag alone, which says nothing about the name.
			if !strings.ContainsAny(name, "/:@") {
				tags = append(tags, name)
				continue
			}
		}
		full, err := reference.ParseDockerRef(name)
		if err != nil {
			return nil, fmt.Errorf("image name %q: %w", name, err)
		}
		// The descriptor's annotations are about this archive, not about the image.
		m.Annotations = nil
		out = append(out, images.Image{Name: full.String(), Target: m})
	}
	switch {
	case len(out) > 0:
		return out, nil
	case len(tags) > 0:
		return nil, fmt.Errorf("%w with a full name (only %q; save it under its name, such as registry.example.com/app:1)", ErrNoImage, tags)
	}
	return nil, ErrNoImage
}

var errOtherPlatform = errors.New("not for this platform")

// keep labels an image's content so that it lives as long as the image, and makes sure
// that the archive had all of it that the platform needs.
func (d *Client) keep(ctx context.Context, img images.Image, matcher platforms.MatchComparer) error {
	store := d.c.ContentStore()
	fits, err := d.fits(ctx, img.Target, matcher)
	if err == nil && !fits {
		return errOtherPlatform
	}
	if err == nil {
		children := images.FilterPlatforms(images.ChildrenHandler(store), matcher)
		children = images.SetChildrenLabels(store, images.LimitManifests(children, matcher, 1))
		err = images.Walk(ctx, children, img.Target)
	}
	if errdefs.IsNotFound(err) {
		return fmt.Errorf("the archive lacks a part of the image: %w", err)
	}
	return err
}

// fits tells whether an image is for the platform: what its index lists, or what the
// config of its one manifest says. The config counts too where the descriptor is silent.
func (d *Client) fits(ctx context.Context, target ocispec.Descriptor, matcher platforms.MatchComparer) (bool, error) {
	store := d.c.ContentStore()
	switch {
	case target.Platform != nil:
		return matcher.Match(*target.Platform), nil
	case !images.IsIndexType(target.MediaType):
		have, err := images.Platforms(ctx, store, target)
		return slices.ContainsFunc(have, func(p ocispec.Platform) bool {
			return p.OS == "" && p.Architecture == "" || matcher.Match(p)
		}), err
	}
	children, err := images.Children(ctx, store, target)
	if err != nil {
		return false, err
	}
	for _, c := range children {
		// Another platform's part may be missing; one that does not say which it is for
		// may be too.
		if ok, err := d.fits(ctx, c, matcher); err != nil && !errdefs.IsNotFound(err) {
			return false, err
		} else if ok {
			return true, nil
		}
	}
	return false, nil
}

// record makes an image known, leaving labels that others gave it alone.
func (d *Client) record(ctx context.Context, img images.Image, pin bool) (Image, error) {
	service := d.c.ImageService()
	out := Image{Name: img.Name, Digest: img.Target.Digest.String(), Pinned: pin, Changed: true}
	if pin {
		img.Labels = map[string]string{pinnedLabel: pinnedValue}
	}
	old, err := service.Get(ctx, img.Name)
	switch {
	case errdefs.IsNotFound(err):
		_, err = service.Create(ctx, img)
		return out, err
	case err != nil:
		return Image{}, err
	}
	isPinned := old.Labels[pinnedLabel] == pinnedValue
	out.Pinned = pin || isPinned
	var fields []string
	if old.Target.Digest != img.Target.Digest {
		fields = append(fields, "target")
	}
	if pin && !isPinned {
		fields = append(fields, "labels."+pinnedLabel)
	}
	if len(fields) == 0 {
		out.Changed = false
		return out, nil
	}
	_, err = service.Update(ctx, img, fields...)
	return out, err
}

// Images lists the images of a namespace ("" is k8s.io), sorted by name.
func (d *Client) Images(ctx context.Context, namespace string) ([]Image, error) {
	if namespace == "" {
		namespace = "k8s.io"
	}
	list, err := d.c.ImageService().List(namespaces.WithNamespace(ctx, namespace))
	if err != nil {
		return nil, fmt.Errorf("list images in namespace %s: %w", namespace, plain(err))
	}
	out := make([]Image, 0, len(list))
	for _, img := range list {
		out = append(out, Image{Name: img.Name, Digest: img.Target.Digest.String(), Pinned: img.Labels[pinnedLabel] == pinnedValue})
	}
	slices.SortFunc(out, func(a, b Image) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// decompress unpacks a stream that starts with the magic number of gzip (RFC 1952) or
// zstd (RFC 8878) and hands on any other as it is.
func decompress(r io.Reader) (_ io.Reader, closeReader func(), _ error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	switch {
	case len(head) == 0:
		return nil, nil, errors.New("the archive is empty")
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, nil, err
		}
		return z, func() {}, nil
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		// 128 MiB is the window of zstd --long, the largest that its own tool reads unasked.
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(128<<20))
		if err != nil {
			return nil, nil, err
		}
		return z, z.Close, nil
	}
	return b, func() {}, nil
}
