package bundle

import (
	"archive/tar"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/registry"
)

// Media types of docker's images (distribution, spec/manifest-v2-2.md and
// manifest-v2-1.md), and containerd's annotation with an image's full name
// (core/images, annotations.go).
const (
	dockerManifest     = "application/vnd.docker.distribution.manifest.v2+json"
	dockerManifestList = "application/vnd.docker.distribution.manifest.list.v2+json"
	dockerConfig       = "application/vnd.docker.container.image.v1+json"
	dockerSchema1      = "application/vnd.docker.distribution.manifest.v1+"

	annotationImageName = "io.containerd.image.name"
)

const (
	maxManifest     = 4 << 20 // distribution-spec 1.1, "Pushing Manifests": what registries take
	maxIndexesDeep  = 3
	unknownPlatform = "unknown" // of what is not to be run, as attestations
)

// ParseImageSource reads NAME[=FROM]: an image's name on the nodes, and what it is pulled
// from, else the same. Both come back full, as docker.io/library/busybox:latest is for
// busybox.
func ParseImageSource(s string) (name, from string, err error) {
	name, from, ok := strings.Cut(s, "=")
	if !ok {
		from = name
	}
	for _, ref := range []*string{&name, &from} {
		named, err := parseImage(*ref)
		if err != nil {
			return "", "", err
		}
		*ref = named.String()
	}
	return name, from, nil
}

// parseImage reads an image's name as containerd does.
func parseImage(s string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(s)
	if err == nil {
		return named, nil
	}
	why := "it is not the name of an image"
	if strings.Contains(s, "://") {
		why = "the name of an image has no scheme"
	}
	return nil, fmt.Errorf("read image name %q: %s; want [HOST[:PORT]/]REPOSITORY[:TAG][@DIGEST]", s, why)
}

// FetchImage writes an image from a registry as an archive of an OCI image layout, with
// what one platform needs of it, under names, or its own where there are none. The same image gives the same bytes. Nothing
// is written before the image and its platform are found; what came after that is worth
// nothing unless the error is nil, for each part is verified at its end. progress, which may
// be nil, is told of bytes. The digest is that of the image's manifest.
//
// from and names are completed as containerd does. A name with a digest must be that of
// the image's index or manifest. Errors name the image and say in plain words what is wrong.
func FetchImage(ctx context.Context, from string, names []string, platform ocispec.Platform, opt RegistryOptions, w io.Writer, progress func(done, total int64)) (digest.Digest, error) {
	source, err := parseImage(from)
	if err != nil {
		return "", err
	}
	what := "image " + source.String()
	ref := registry.Reference{Registry: reference.Domain(source), Repository: reference.Path(source)}
	r, err := opt.connect(ctx, ref, what, false)
	if err != nil {
		return "", err
	}
	defer r.Close()
	version := "latest"
	if tagged, ok := source.(reference.Tagged); ok {
		version = tagged.Tag()
	}
	if pinned, ok := source.(reference.Digested); ok {
		version = pinned.Digest().String()
	}
	top, raw, err := r.resolve(ctx, version)
	if err != nil {
		return "", err
	}
	leaves, err := r.leaves(ctx, top, raw, maxIndexesDeep)
	if err != nil {
		return "", err
	}
	chosen, err := choose(leaves, platform)
	if err != nil {
		return "", r.explain(ctx, "", err)
	}
	if err := r.complete(ctx, &chosen); err != nil {
		return "", err
	}
	if len(names) == 0 {
		names = []string{from}
	}
	index, err := named(chosen, top.Digest, names)
	if err != nil {
		return "", r.explain(ctx, "", err)
	}
	return chosen.desc.Digest, r.archive(ctx, w, index, chosen, progress)
}

// leaf is an image for one platform.
type leaf struct {
	desc     ocispec.Descriptor // with its platform
	raw      []byte             // nil until it is read
	manifest ocispec.Manifest
}

// resolve reads what a tag or digest names.
func (r *repository) resolve(ctx context.Context, version string) (ocispec.Descriptor, []byte, error) {
	desc, body, err := r.repo.Manifests().FetchReference(r.purpose(ctx), version)
	if err != nil {
		return desc, nil, r.explain(ctx, "", err)
	}
	defer body.Close()
	raw, err := r.whole(desc, body)
	if err != nil {
		return desc, nil, r.explain(ctx, "", err)
	}
	return desc, raw, nil
}

// document reads a manifest or config.
func (r *repository) document(ctx context.Context, desc ocispec.Descriptor) ([]byte, error) {
	body, err := r.download(ctx, desc)
	if err != nil {
		return nil, err
	}
	defer body.Close()
	raw, err := r.whole(desc, body)
	if err != nil {
		return nil, r.explain(ctx, body.part(), err)
	}
	return raw, nil
}

func (r *repository) whole(desc ocispec.Descriptor, body io.Reader) ([]byte, error) {
	if desc.Size > maxManifest {
		return nil, fmt.Errorf("it has %d bytes, more than a manifest or config can have", desc.Size)
	}
	return content.ReadAll(body, desc)
}

// leaves lists the images that an index, or a manifest, stands for.
func (r *repository) leaves(ctx context.Context, desc ocispec.Descriptor, raw []byte, deep int) ([]leaf, error) {
	fail := func(why string) ([]leaf, error) { return nil, r.explain(ctx, "", errors.New(why)) }
	switch {
	case isManifestType(desc.MediaType):
		l, err := r.leafOf(ctx, desc, raw)
		return []leaf{l}, err
	case strings.HasPrefix(desc.MediaType, dockerSchema1):
		return fail("it has docker's schema 1, which containerd no longer runs; push it anew with a current tool")
	case !isIndexType(desc.MediaType):
		return fail(fmt.Sprintf("it is no image but %q", desc.MediaType))
	case deep == 0:
		return fail("it has indexes in indexes in indexes")
	}
	var index ocispec.Index
	if err := json.Unmarshal(raw, &index); err != nil {
		return fail("its index is not JSON")
	}
	var all []leaf
	for _, m := range index.Manifests {
		switch {
		case isManifestType(m.MediaType) && m.Platform != nil:
			all = append(all, leaf{desc: m})
		case isManifestType(m.MediaType) || isIndexType(m.MediaType):
			raw, err := r.document(ctx, m)
			if err != nil {
				return nil, err
			}
			below, err := r.leaves(ctx, m, raw, deep-1)
			if err != nil {
				return nil, err
			}
			all = append(all, below...)
		}
	}
	return all, nil
}

func isManifestType(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageManifest || mediaType == dockerManifest
}

func isIndexType(mediaType string) bool {
	return mediaType == ocispec.MediaTypeImageIndex || mediaType == dockerManifestList
}

// leafOf is the image of a manifest that stands alone: its config knows its platform.
func (r *repository) leafOf(ctx context.Context, desc ocispec.Descriptor, raw []byte) (leaf, error) {
	l := leaf{desc: desc, raw: raw}
	if err := r.complete(ctx, &l); err != nil {
		return l, err
	}
	b, err := r.document(ctx, l.manifest.Config)
	if err != nil {
		return l, err
	}
	var p ocispec.Platform
	if err := json.Unmarshal(b, &p); err != nil || p.OS == "" || p.Architecture == "" {
		return l, r.explain(ctx, "", errors.New("its config does not say which platform it is for"))
	}
	l.desc.Platform = &p
	return l, nil
}

// complete reads a leaf's manifest.
func (r *repository) complete(ctx context.Context, l *leaf) error {
	if l.raw == nil {
		var err error
		if l.raw, err = r.document(ctx, l.desc); err != nil {
			return err
		}
	}
	if err := json.Unmarshal(l.raw, &l.manifest); err != nil {
		return r.explain(ctx, l.desc.Digest.String(), errors.New("the manifest is not JSON"))
	}
	if t := l.manifest.Config.MediaType; t != ocispec.MediaTypeImageConfig && t != dockerConfig {
		return r.explain(ctx, "", fmt.Errorf("it is no image: its config is %q", t))
	}
	for _, d := range append(l.manifest.Layers, l.manifest.Config) {
		if err := d.Digest.Validate(); err != nil || d.Size < 0 {
			return r.explain(ctx, l.desc.Digest.String(), errors.New("the manifest has a digest or size that is none"))
		}
	}
	return nil
}

// choose takes the image for a platform: exactly that, or a variant that it can run. What
// another architecture might run, as 32 bits on arm64, is not for all machines.
func choose(leaves []leaf, want ocispec.Platform) (leaf, error) {
	matcher := platforms.OnlyStrict(want)
	var found *leaf
	var has []string
	for i := range leaves {
		p := *leaves[i].desc.Platform
		if p.OS == unknownPlatform || p.Architecture == unknownPlatform {
			continue
		}
		has = append(has, platforms.Format(p))
		if matcher.Match(p) && (found == nil || matcher.Less(p, *found.desc.Platform)) {
			found = &leaves[i]
		}
	}
	if found != nil {
		return *found, nil
	}
	slices.Sort(has)
	return leaf{}, fmt.Errorf("it is not there for %s; it has %s", platforms.Format(want), cmp.Or(strings.Join(slices.Compact(has), ", "), "no platform"))
}

// named is the layout's index: the image once for each of its names.
func named(l leaf, top digest.Digest, names []string) (ocispec.Index, error) {
	p := platforms.Normalize(*l.desc.Platform)
	index := index()
	for _, name := range names {
		ref, err := parseImage(name)
		if err != nil {
			return index, err
		}
		annotations := map[string]string{annotationImageName: ref.String()}
		if tagged, ok := ref.(reference.Tagged); ok {
			annotations[ocispec.AnnotationRefName] = tagged.Tag()
		}
		if pinned, ok := ref.(reference.Digested); ok && pinned.Digest() != top && pinned.Digest() != l.desc.Digest {
			return index, fmt.Errorf("it is %s and cannot be named %s", top, ref)
		}
		index.Manifests = append(index.Manifests, ocispec.Descriptor{
			MediaType: l.desc.MediaType, Digest: l.desc.Digest, Size: l.desc.Size,
			Platform: &ocispec.Platform{OS: p.OS, Architecture: p.Architecture, Variant: p.Variant}, Annotations: annotations,
		})
	}
	return index, nil
}

// archive writes the layout: what it is, its index, then the blobs by digest.
func (r *repository) archive(ctx context.Context, w io.Writer, index ocispec.Index, l leaf, progress func(done, total int64)) error {
	t := tar.NewWriter(w)
	for _, doc := range []struct {
		name string
		v    any
	}{{ocispec.ImageLayoutFile, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion}}, {ocispec.ImageIndexFile, index}} {
		b, err := json.Marshal(doc.v)
		if err != nil {
			return err
		}
		if err := writeEntry(t, doc.name, int64(len(b))); err != nil {
			return err
		}
		if _, err := t.Write(b); err != nil {
			return err
		}
	}
	parts := append([]ocispec.Descriptor{l.desc, l.manifest.Config}, l.manifest.Layers...)
	slices.SortFunc(parts, func(a, b ocispec.Descriptor) int {
		return cmp.Or(cmp.Compare(a.Digest, b.Digest), cmp.Compare(a.Size, b.Size))
	})
	// Two sizes for one digest stay two parts, of which one fails.
	parts = slices.CompactFunc(parts, func(a, b ocispec.Descriptor) bool { return a.Digest == b.Digest && a.Size == b.Size })
	told := &told{report: progress}
	for _, p := range parts {
		told.total += p.Size
	}
	buf := make([]byte, 128<<10)
	for _, p := range parts {
		if err := r.blob(ctx, t, p, buf, told); err != nil {
			return err
		}
	}
	return t.Close()
}

// blob copies a part, verified at its end.
func (r *repository) blob(ctx context.Context, t *tar.Writer, desc ocispec.Descriptor, buf []byte, told *told) error {
	if err := writeEntry(t, "blobs/"+desc.Digest.Algorithm().String()+"/"+desc.Digest.Encoded(), desc.Size); err != nil {
		return err
	}
	body, err := r.download(ctx, desc)
	if err != nil {
		return err
	}
	defer body.Close()
	verified := content.NewVerifyReader(body, desc)
	if _, err := io.CopyBuffer(io.MultiWriter(t, told), verified, buf); err != nil {
		return err
	}
	if err := verified.Verify(); err != nil {
		return r.explain(ctx, body.part(), err)
	}
	return nil
}

// writeEntry writes the header of a file that says nothing of when and by whom it was made.
func writeEntry(t *tar.Writer, name string, size int64) error {
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size})
}

// told reports what was written.
type told struct {
	report      func(done, total int64)
	done, total int64
}

func (t *told) Write(p []byte) (int, error) {
	t.done += int64(len(p))
	if t.report != nil {
		t.report(t.done, t.total)
	}
	return len(p), nil
}
