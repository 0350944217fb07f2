package imagearchive

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's media types (distribution, manifest-v2-2.md).
const (
	dockerListType     = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerManifestType = "application/vnd.docker.distribution.manifest.v2+json"
	dockerConfigType   = "application/vnd.docker.container.image.v1+json"
)

// maxDepth bounds indexes in indexes.
const maxDepth = 8

// ociImages are those of an image layout (OCI image-spec, image-layout.md).
func (s *scan) ociImages(ctx context.Context, index digest.Digest) ([]Image, error) {
	doc, err := s.document("index.json", index)
	if err != nil {
		return nil, err
	}
	var out []*Image
	at := map[digest.Digest]int{} // in out
	for _, m := range doc.Manifests {
		if attests(m) {
			continue
		}
		full, tag, err := NameOf(m.Annotations)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		i, again := at[m.Digest]
		if !again {
			i = len(out)
			img := newImage()
			img.Digest = m.Digest.String()
			w := walk{scan: s, ctx: ctx, img: img, seen: map[digest.Digest]bool{}}
			if err := w.descriptor(m, 0); err != nil {
				return nil, err
			}
			out, at[m.Digest] = append(out, img), i
		}
		if full != "" && !slices.Contains(out[i].Names, full) {
			out[i].Names = append(out[i].Names, full)
		}
		if tag != "" {
			out[i].Tags = append(out[i].Tags, tag)
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: its index lists none", ErrNoArchive)
	}
	artifacts := ""
	for _, img := range out {
		if img.artifact == "" {
			return values(out), nil
		}
		artifacts = img.artifact
	}
	return nil, fmt.Errorf("%w but %s", ErrNoArchive, artifacts)
}

func newImage() *Image {
	return &Image{Missing: map[string][]string{}, Stored: map[string]int64{}, Unpacked: map[string]int64{}, layers: map[string][]digest.Digest{}}
}

func values(list []*Image) []Image {
	out := make([]Image, 0, len(list))
	for _, img := range list {
		out = append(out, *img)
	}
	return out
}

// attests says whether a descriptor is about another one, and no image itself.
func attests(d descriptor) bool {
	p := d.Platform
	return d.Annotations[referenceType] != "" || p != nil && p.OS == "unknown" && p.Architecture == "unknown"
}

// document is the parsed blob that is called what in errors; nil if the archive lacks it.
func (s *scan) document(what string, d digest.Digest) (*document, error) {
	size, there := s.sizes[d]
	switch doc, known := s.documents[d]; {
	case doc != nil:
		return doc, nil
	case known:
		return nil, fmt.Errorf("%w: %s has over %d values", ErrTooMuch, what, maxValues)
	case !there && s.beyond:
		return nil, fmt.Errorf("%w: it has %d files", ErrTooMuch, s.entries)
	case !there:
		return nil, nil
	case s.beyond || size.stored > maxDocument:
		return nil, fmt.Errorf("%w: %s", ErrTooMuch, what)
	}
	return nil, fmt.Errorf("%w: %s is not what it should be", ErrDamaged, what)
}

// walk follows one image's parts.
type walk struct {
	*scan
	ctx  context.Context
	img  *Image
	seen map[digest.Digest]bool
}

// step counts parts, of which the same ones may be named again and again.
func (w walk) step(parts int) error {
	if w.walked += parts; w.walked > maxWalked {
		return fmt.Errorf("%w: its images name over %d parts", ErrTooMuch, maxWalked)
	}
	return context.Cause(w.ctx)
}

func (w walk) descriptor(d descriptor, depth int) error {
	if err := w.step(1); err != nil {
		return err
	}
	if w.seen[d.Digest] {
		return nil
	}
	w.seen[d.Digest] = true
	switch d.MediaType {
	case ocispec.MediaTypeImageIndex, dockerListType:
		return w.index(d, depth)
	case ocispec.MediaTypeImageManifest, dockerManifestType:
		return w.manifest(d)
	}
	// containerd goes by the type that the descriptor has, and by no other.
	if w.img.artifact == "" && len(w.img.known()) == 0 {
		w.img.artifact = fmt.Sprintf("something of media type %q", d.MediaType)
	}
	return nil
}

func (w walk) index(d descriptor, depth int) error {
	if depth == maxDepth {
		return fmt.Errorf("%w: over %d indexes, one in the other", ErrTooMuch, maxDepth)
	}
	what := "index " + d.Digest.String()
	doc, err := w.document(what, d.Digest)
	if err != nil {
		return err
	}
	if doc == nil {
		w.lacks(platformOf(d.Platform, nil), what)
		return nil
	}
	for _, m := range doc.Manifests {
		follow := w.descriptor
		if attests(m) {
			follow = w.attested
		}
		if err := follow(m, depth+1); err != nil {
			return err
		}
	}
	return nil
}

// attested keeps the layers of an attestation with those that no node needs.
func (w walk) attested(d descriptor, _ int) error {
	doc := w.documents[d.Digest]
	if doc == nil {
		return w.step(1)
	}
	for _, l := range doc.Layers {
		w.img.layers[""] = append(w.img.layers[""], l.Digest)
	}
	return w.step(1 + len(doc.Layers))
}

func (w walk) lacks(platform string, parts ...string) {
	if !slices.Contains(w.img.Platforms, platform) && len(w.img.Missing[platform]) == 0 {
		w.img.artifact = ""
		w.img.Missing[platform] = parts
	}
}

func (w walk) manifest(d descriptor) error {
	what := "manifest " + d.Digest.String()
	doc, err := w.document(what, d.Digest)
	if err != nil {
		return err
	}
	if doc == nil {
		w.lacks(platformOf(d.Platform, nil), what)
		return nil
	}
	if doc.Config == nil {
		return fmt.Errorf("%w: %s has no config", ErrDamaged, what)
	}
	if t := doc.Config.MediaType; t != ocispec.MediaTypeImageConfig && t != dockerConfigType {
		if w.img.artifact == "" && len(w.img.known()) == 0 {
			w.img.artifact = "an artifact of type " + orElse(doc.ArtifactType, t)
		}
		return nil
	}
	if err := w.step(len(doc.Layers)); err != nil {
		return err
	}
	config := w.documents[doc.Config.Digest]
	platform := platformOf(d.Platform, config)
	var missing []string
	stored, unpacked := w.sizes[d.Digest].stored, int64(0)
	if size, there := w.sizes[doc.Config.Digest]; there {
		stored += size.stored
	} else {
		missing = append(missing, "config "+doc.Config.Digest.String())
	}
	for _, l := range doc.Layers {
		w.img.layers[platform] = append(w.img.layers[platform], l.Digest)
		size, there := w.sizes[l.Digest]
		if !there {
			missing = append(missing, "layer "+l.Digest.String())
			continue
		}
		stored += size.stored
		unpacked += size.unpacked
	}
	if len(missing) > 0 {
		if w.beyond {
			return fmt.Errorf("%w: it has %d files", ErrTooMuch, w.entries)
		}
		w.lacks(platform, missing...)
		return nil
	}
	w.complete(platform, stored, unpacked)
	return nil
}

// complete adds a platform. Of two manifests for the same one containerd takes the first.
func (w walk) complete(platform string, stored, unpacked int64) {
	if slices.Contains(w.img.Platforms, platform) || len(w.img.Missing[platform]) > 0 {
		return
	}
	w.img.artifact = ""
	w.img.Platforms = append(w.img.Platforms, platform)
	w.img.Stored[platform], w.img.Unpacked[platform] = stored, unpacked
}

// platformOf is what a descriptor says, else what a config does.
func platformOf(p *ocispec.Platform, config *document) string {
	if p == nil && config != nil {
		p = &ocispec.Platform{OS: config.OS, OSVersion: config.OSVersion, Architecture: config.Architecture, Variant: config.Variant}
	}
	if p == nil || p.OS == "" || p.Architecture == "" {
		return Unknown
	}
	return platforms.FormatAll(platforms.Normalize(*p))
}

// dockerImages are those of docker save's own kind (moby, image/spec/v1.2.md).
func (s *scan) dockerImages() ([]Image, error) {
	for name, target := range s.symlinks {
		// The importer looks at each link, wanted or not, and follows it once.
		if _, there := s.files[target]; !there {
			if s.beyond {
				return nil, fmt.Errorf("%w: it has %d files", ErrTooMuch, s.entries)
			}
			s.damage("%s is a link to %s, which is not there", name, target)
		}
	}
	var out []*Image
	for _, d := range s.docker {
		img, err := s.dockerImage(d)
		if err != nil {
			return nil, err
		}
		out = append(out, img)
	}
	switch {
	case len(s.damaged) > 0:
		slices.Sort(s.damaged)
		return nil, fmt.Errorf("%w: %s", ErrDamaged, strings.Join(s.damaged, "; "))
	case len(out) == 0:
		return nil, fmt.Errorf("%w: its %s lists none", ErrNoArchive, dockerManifest)
	}
	return values(out), nil
}

func (s *scan) dockerImage(d dockerImage) (*Image, error) {
	img := newImage()
	for _, tag := range d.RepoTags {
		full, err := FullName(tag)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		img.Names = append(img.Names, full)
	}
	w := walk{scan: s, img: img}
	var config *document
	var missing []string
	var stored, unpacked int64
	if at, there := s.files[d.Config]; there {
		config = s.documents[at]
		stored += s.sizes[at].stored
	} else {
		missing = append(missing, s.absent("config", d.Config))
	}
	platform := platformOf(nil, config)
	var diffs []digest.Digest
	if config != nil && config.RootFS != nil {
		diffs = config.RootFS.DiffIDs
		if len(diffs) != len(d.Layers) {
			s.damage("%s is of %d layers, and its image has %d", d.Config, len(diffs), len(d.Layers))
			diffs = nil
		}
	}
	for i, name := range d.Layers {
		at, there := s.files[name]
		if target, link := s.symlinks[name]; !there && link {
			at, there = s.files[target]
		}
		if !there {
			missing = append(missing, s.absent("layer", name))
			continue
		}
		size := s.sizes[at]
		stored += size.stored
		unpacked += size.unpacked
		if diffs != nil && !size.packed && at != diffs[i] {
			s.damage("%s has the digest %s, not %s", name, at, diffs[i])
		}
	}
	if len(missing) > 0 {
		if s.beyond {
			return nil, fmt.Errorf("%w: it has %d files", ErrTooMuch, s.entries)
		}
		w.lacks(platform, missing...)
		return img, nil
	}
	w.complete(platform, stored, unpacked)
	return img, nil
}

// absent names a part that the importer will not find.
func (s *scan) absent(what, name string) string {
	if s.hardlinks[name] {
		return what + " " + name + " (a hard link, which containerd does not follow)"
	}
	return what + " " + name
}
