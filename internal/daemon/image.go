package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/internal/imagearchive"
)

// pinnedLabel keeps an image from the kubelet's garbage collection: CRI reports it as
// pinned (containerd internal/cri/labels; from 1.6.22, 1.7.3 and 2.0 on).
const pinnedLabel, pinnedValue = "io.cri-containerd.pinned", "pinned"

// kubeletNamespace is where CRI keeps its images and containers.
const kubeletNamespace = "k8s.io"

// ImportOptions say where an import goes.
type ImportOptions struct {
	Namespace   string // "" is k8s.io, the kubelet's
	Pin         bool
	Snapshotter string // images are unpacked into it; must be CRI's; "" is the daemon's default
	Platform    string // e.g. linux/arm64; "" is this program's own
	// Archive, if set, is what was found in the archive. One whose images are all there is
	// then not read again, and layers for other platforms are not sent.
	Archive *imagearchive.Archive
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
// only what the platform needs is kept of an image for several, and what the daemon has
// already is not sent. An image appears in the daemon only once it is complete. The result
// lists the images in the archive's order, those too that were there before; it stands
// beside an error, too, since one image that fails does not keep others out.
//
// The error wraps ErrNoImage when the archive holds none for the platform or none with
// a name, and syscall.ENOSPC when the daemon's disk is full.
func (d *Client) Import(ctx context.Context, r io.Reader, opts ImportOptions) ([]Image, error) {
	if opts.Namespace == "" {
		opts.Namespace = kubeletNamespace
	}
	spec := platforms.DefaultSpec()
	if opts.Platform != "" {
		var err error
		if spec, err = platforms.Parse(opts.Platform); err != nil {
			return nil, fmt.Errorf("import image: %w", err)
		}
	}
	opts.Platform = platforms.Format(spec)
	ctx = namespaces.WithNamespace(ctx, opts.Namespace)
	if out, ok := d.present(ctx, spec, opts); ok {
		return out, nil
	}
	out, err := d.importAll(ctx, r, spec, opts)
	if err != nil {
		return out, d.outOfSpace(ctx, opts.Snapshotter, err)
	}
	return out, nil
}

// present are the archive's images, if it is known which they are and the daemon has them
// all. A doubt is no error: the archive tells.
func (d *Client) present(ctx context.Context, platform ocispec.Platform, opts ImportOptions) ([]Image, bool) {
	if opts.Archive == nil {
		return nil, false
	}
	var out []Image
	for _, img := range opts.Archive.Images {
		if _, fits := img.For(opts.Platform); !fits {
			continue
		}
		for _, name := range img.Names {
			there, err := d.has(ctx, name, img.Digest, opts.Snapshotter, platform)
			if err != nil || there == nil {
				return nil, false
			}
			recorded, err := d.record(ctx, *there, opts.Pin)
			if err != nil {
				return nil, false
			}
			out = append(out, recorded)
		}
	}
	return out, len(out) > 0
}

// Has reports whether the kubelet's namespace has an image under a full name with the
// digest of its index or manifest ("sha256:..."), whole for the platform ("" is this
// program's own) and unpacked by the snapshotter ("" is the daemon's default).
func (d *Client) Has(ctx context.Context, name, digest, snapshotter, platform string) (bool, error) {
	spec := platforms.DefaultSpec()
	var err error
	if platform != "" {
		spec, err = platforms.Parse(platform)
	}
	var there *images.Image
	if err == nil {
		there, err = d.has(namespaces.WithNamespace(ctx, kubeletNamespace), name, digest, snapshotter, spec)
	}
	if err != nil {
		return false, fmt.Errorf("look at image %s: %w", name, plain(err))
	}
	return there != nil, nil
}

func (d *Client) has(ctx context.Context, name, digest, snapshotter string, platform ocispec.Platform) (*images.Image, error) {
	img, err := d.c.ImageService().Get(ctx, name)
	if errdefs.IsNotFound(err) || err == nil && img.Target.Digest.String() != digest {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	matcher := platforms.Only(platform)
	available, _, _, missing, err := images.Check(ctx, d.c.ContentStore(), img.Target, matcher)
	if err != nil || !available || len(missing) > 0 {
		return nil, err
	}
	unpacked, err := client.NewImageWithPlatform(d.c, img, matcher).IsUnpacked(ctx, snapshotter)
	if err != nil || !unpacked {
		return nil, err
	}
	return &img, nil
}

func (d *Client) importAll(ctx context.Context, r io.Reader, platform ocispec.Platform, opts ImportOptions) ([]Image, error) {
	// The lease keeps the blobs until the images refer to them. It is released also when
	// ctx has ended, else they would stay for a day.
	ctx, release, err := d.c.WithLease(ctx)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", plain(err))
	}
	defer func() { _ = release(context.WithoutCancel(ctx)) }()

	index, err := d.upload(ctx, r, opts)
	if err != nil {
		return nil, fmt.Errorf("import image: %w", plain(err))
	}
	found, err := named(index)
	var faults []error
	if err != nil {
		faults = append(faults, fmt.Errorf("import image: %w", err))
	}
	matcher := platforms.Only(platform)
	var out []Image
	var others []string
	for _, img := range found {
		recorded, err := d.importOne(ctx, img, matcher, opts)
		switch {
		case errors.Is(err, errOtherPlatform):
			others = append(others, img.Name)
		case err != nil:
			faults = append(faults, fmt.Errorf("import image %s: %w", img.Name, plain(err)))
		default:
			out = append(out, recorded)
		}
		if ctx.Err() != nil {
			break
		}
	}
	if len(out) == 0 && len(faults) == 0 {
		faults = append(faults, fmt.Errorf("import image: %w for %s (it has %s for other platforms)", ErrNoImage, opts.Platform, strings.Join(others, ", ")))
	}
	return out, errors.Join(faults...)
}

// upload brings the archive's blobs to the daemon and returns the archive's own index.
func (d *Client) upload(ctx context.Context, r io.Reader, opts ImportOptions) (ocispec.Index, error) {
	var index ocispec.Index
	z, err := imagearchive.Decompress(r)
	if err != nil {
		return index, err
	}
	defer z.Close()
	store := d.c.ContentStore()
	lease, _ := leases.FromContext(ctx)
	blobs := uploads{Store: store, prefix: lease + "-"}
	if opts.Archive != nil {
		blobs.foreign = opts.Archive.Foreign(opts.Platform)
	}
	root, err := archive.ImportIndex(ctx, blobs, z)
	if err != nil {
		return index, err
	}
	// tar's end comes before the stream's, where the checksum stands.
	if _, err := io.Copy(io.Discard, z); err != nil {
		return index, err
	}
	raw, err := content.ReadBlob(ctx, store, root)
	if err != nil {
		return index, err
	}
	if err := json.Unmarshal(raw, &index); err != nil {
		return index, fmt.Errorf("read index of the archive: %w", err)
	}
	return index, nil
}

// importOne makes one image of the archive known, once all of it is there.
func (d *Client) importOne(ctx context.Context, img images.Image, matcher platforms.MatchComparer, opts ImportOptions) (Image, error) {
	if err := d.keep(ctx, img, matcher); err != nil {
		return Image{}, err
	}
	if err := client.NewImageWithPlatform(d.c, img, matcher).Unpack(ctx, opts.Snapshotter); err != nil {
		if _, _, _, missing, cerr := images.Check(ctx, d.c.ContentStore(), img.Target, matcher); cerr == nil && len(missing) > 0 {
			return Image{}, fmt.Errorf("the archive lacks a part of the image: %s: %w", missing[0].Digest, errdefs.ErrNotFound)
		}
		return Image{}, fmt.Errorf("unpack: %w", err)
	}
	out, err := d.record(ctx, img, opts.Pin)
	if err != nil {
		return Image{}, fmt.Errorf("record: %w", err)
	}
	return out, nil
}

// outOfSpace names the disk, where an error says that it is full. The error comes from the
// daemon, which hands on no more than the kernel's words (errno(3)).
func (d *Client) outOfSpace(ctx context.Context, snapshotter string, err error) error {
	if !strings.Contains(err.Error(), syscall.ENOSPC.Error()) {
		return err
	}
	where := "containerd's folder"
	if all, asked := d.Plugins(ctx); asked == nil {
		var roots []string
		for _, p := range all {
			if root := p.Root; root != "" && (p.Type == "io.containerd.content.v1" || p.Type == "io.containerd.snapshotter.v1" && p.ID == snapshotter) {
				roots = append(roots, root)
			}
		}
		slices.Sort(roots)
		if len(roots) > 0 {
			where = strings.Join(roots, " or ")
		}
	}
	return fmt.Errorf("the disk of %s is full (%w): %w", where, syscall.ENOSPC, err)
}

// uploads is a content store that takes what an archive is uploaded from, in a way of its
// own. ImportIndex names uploads after the archive's files, such as config.json, and an
// upload goes on where an earlier one of that name was broken off: another archive's, maybe.
// And it does not say which digest a file shall have, though a layout's files are named
// after it, so that everything would be sent again that is there already.
type uploads struct {
	content.Store
	prefix  string
	foreign map[digest.Digest]bool // nobody needs these
}

// Writer is the store's, under a name with the prefix, or one that drops what is not needed.
func (s uploads) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	var o content.WriterOpts
	for _, opt := range opts {
		if err := opt(&o); err != nil {
			return nil, err
		}
	}
	named := digest.Digest("")
	if hex, ok := strings.CutPrefix(o.Ref, "tar-blobs/sha256/"); ok && o.Desc.Digest == "" {
		if d := digest.NewDigestFromEncoded(digest.SHA256, hex); d.Validate() == nil {
			named = d
		}
	}
	if named != "" && s.foreign[named] {
		return &dropped{ref: o.Ref, digest: named}, nil
	}
	w, err := s.Store.Writer(ctx, append(slices.Clone(opts), func(o *content.WriterOpts) error {
		o.Ref = s.prefix + o.Ref
		if named != "" {
			o.Desc.Digest = named
		}
		return nil
	})...)
	if named != "" && errdefs.IsAlreadyExists(err) {
		// The lease has it now. It has to be read all the same: ImportIndex hashes it.
		return &dropped{ref: o.Ref, digest: named}, nil
	}
	return w, err
}

// dropped takes a blob that need not be stored.
type dropped struct {
	ref    string
	digest digest.Digest
	n      int64
}

func (w *dropped) Write(p []byte) (int, error) {
	w.n += int64(len(p))
	return len(p), nil
}
func (w *dropped) Close() error          { return nil }
func (w *dropped) Digest() digest.Digest { return w.digest }
func (w *dropped) Commit(context.Context, int64, digest.Digest, ...content.Opt) error {
	return nil
}
func (w *dropped) Status() (content.Status, error) {
	return content.Status{Ref: w.ref, Offset: w.n}, nil
}
func (w *dropped) Truncate(size int64) error {
	w.n = size
	return nil
}

// named gives the images of an archive their full names. One image may have several. The
// images stand beside an error about others.
func named(index ocispec.Index) ([]images.Image, error) {
	var out []images.Image
	var tags []string
	var faults []error
	for _, m := range index.Manifests {
		full, tag, err := imagearchive.NameOf(m.Annotations)
		switch {
		case err != nil:
			faults = append(faults, err)
		case full == "":
			tags = append(tags, tag)
		default:
			// The descriptor's annotations are about this archive, not about the image.
			m.Annotations = nil
			out = append(out, images.Image{Name: full, Target: m})
		}
	}
	switch {
	case len(out) > 0 || len(faults) > 0:
		return out, errors.Join(faults...)
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
		namespace = kubeletNamespace
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

// Pin keeps images from the kubelet's garbage collection, by their full names ("" as the
// namespace is k8s.io). Names that are not there are no fault. All faults come at once.
func (d *Client) Pin(ctx context.Context, namespace string, names []string) error {
	return d.setPin(ctx, namespace, names, "pin", pinnedValue)
}

// Unpin takes away what Pin gives. The images stay.
func (d *Client) Unpin(ctx context.Context, namespace string, names []string) error {
	// An empty value removes a label (containerd core/metadata/boltutil, WriteLabels).
	return d.setPin(ctx, namespace, names, "unpin", "")
}

func (d *Client) setPin(ctx context.Context, namespace string, names []string, verb, value string) error {
	if namespace == "" {
		namespace = kubeletNamespace
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	service := d.c.ImageService()
	var faults []error
	for _, name := range names {
		img, err := service.Get(ctx, name)
		if err == nil && img.Labels[pinnedLabel] != value {
			// Nothing but the label goes with the update: CRI may have pulled the image anew.
			_, err = service.Update(ctx, images.Image{Name: name, Labels: map[string]string{pinnedLabel: value}}, "labels."+pinnedLabel)
		}
		if err != nil && !errdefs.IsNotFound(err) {
			faults = append(faults, fmt.Errorf("%s image %s: %w", verb, name, plain(err)))
		}
	}
	return errors.Join(faults...)
}

// Present are the images of the names that are there, with the digests of their indexes or
// manifests ("" as the namespace is k8s.io).
func (d *Client) Present(ctx context.Context, namespace string, names []string) (map[string]string, error) {
	list, err := d.Images(ctx, namespace)
	if err != nil {
		return nil, err
	}
	out := map[string]string{}
	for _, img := range list {
		if slices.Contains(names, img.Name) {
			out[img.Name] = img.Digest
		}
	}
	return out, nil
}
