package probe

import (
	"context"
	"encoding/json"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Docker's own media types (distribution, docs/spec/manifest-v2-2).
const (
	dockerManifest = "application/vnd.docker.distribution.manifest.v2+json"
	dockerList     = "application/vnd.docker.distribution.manifest.list.v2+json"
)

// manifestTypes are those that containerd accepts, in the order in which it says so
// (NewResolver in core/remotes/docker/resolver.go).
func manifestTypes() []string {
	return []string{dockerManifest, dockerList, ocispec.MediaTypeImageManifest, ocispec.MediaTypeImageIndex}
}

// found is a manifest that a host knows.
type found struct {
	digest, mediaType string
	size              int64 // bytes
}

func mediaType(r reply) string {
	t, _, _ := strings.Cut(r.header.Get("Content-Type"), ";")
	return strings.TrimSpace(t)
}

// document is what of a manifest or index counts here.
type document struct {
	Manifests []ocispec.Descriptor `json:"manifests"`
	Config    ocispec.Descriptor   `json:"config"`
	Layers    []ocispec.Descriptor `json:"layers"`
}

// mayHaveBlob says whether containerd asks it for a blob where nobody has the manifest.
func (s *session) mayHaveBlob() bool { return !s.dead && s.host.Skipped == "" && s.host.Blob != "" }

// maySupply says whether something of a pull is still to be asked of it.
func (s *session) maySupply() bool {
	if s.image.Verb != Pull || s.dead || s.image.manifest == nil || s.host.Skipped != "" && !s.host.Supplies {
		return false
	}
	return !s.askedContent || !s.askedLayer && s.image.layer != nil
}

// supply asks for what a pull needs beside the digest: the manifest by it, in an index the
// one for this machine's architecture, and a layer. Mirrors lack these in practice.
func (s *session) supply(ctx context.Context) {
	ctx = docker.WithScope(ctx, "repository:"+s.image.Repository+":pull")
	if s.maySupply() && !s.askedContent && s.connect(ctx) {
		s.askedContent = true
		s.content(ctx, *s.image.manifest)
	}
	if s.maySupply() && s.connect(ctx) {
		s.askedLayer = true
		s.layer(ctx, *s.image.layer)
	}
}

func (s *session) content(ctx context.Context, m found) {
	d, took, ok := s.fetch(ctx, m.digest, m.mediaType)
	if !ok {
		return
	}
	detail := m.digest
	if m.mediaType == dockerList || m.mediaType == ocispec.MediaTypeImageIndex {
		child, ok := s.choose(d.Manifests)
		if !ok {
			s.out.unfit = "no image for linux/" + s.image.Arch + " in the index"
			s.failed(StepContent, took, &fault{verdict: s.out.unfit, detail: "it has " + s.has(d.Manifests)})
			return
		}
		var more time.Duration
		if d, more, ok = s.fetch(ctx, child.Digest.String(), child.MediaType); !ok {
			return
		}
		took += more
		detail += ", and in it " + child.Digest.String() + " for " + s.platform(child)
	}
	i := slices.IndexFunc(d.Layers, func(l ocispec.Descriptor) bool { return len(l.URLs) == 0 })
	layer := d.Config
	if i >= 0 {
		layer = d.Layers[i]
	}
	if layer.Digest.Validate() != nil {
		s.out.unfit = "the manifest names neither a layer nor a config"
		s.failed(StepContent, took, &fault{verdict: s.out.unfit, detail: detail})
		return
	}
	s.out.content, s.image.layer = true, &layer
	s.add(step(StepContent, true, took, "found", detail, ""))
}

func (s *session) layer(ctx context.Context, layer ocispec.Descriptor) {
	target := s.at(s.host.Layer, layer.Digest.String())
	header := s.header()
	header.Set("Accept", accept(layer.MediaType))
	r, took, err := s.authorized(ctx, StepLayer, http.MethodHead, target, header, 0)
	if err != nil {
		return
	}
	if r.status > 299 && r.status != http.StatusNotFound {
		// containerd sends GET, and stores that sign their URLs by method may take that alone.
		// What would come is not read.
		if r, took, err = s.authorized(ctx, StepLayer, http.MethodGet, target, header, 0); err != nil {
			return
		}
	}
	if r.status > 299 {
		s.failed(StepLayer, took, s.refused(r, "layer "+layer.Digest.String()))
		return
	}
	s.out.layer = true
	s.add(step(StepLayer, true, took, "there", fmt.Sprintf("%s%s, %d bytes", s.viaText(r), layer.Digest, layer.Size), ""))
}

// accept is a header's value for a media type out of a manifest, which may be any text.
func accept(mediaType string) string {
	if t, _, err := mime.ParseMediaType(mediaType); err == nil {
		return t + ", */*"
	}
	return "*/*"
}

// fetch gets a manifest by its digest, and holds it against that.
func (s *session) fetch(ctx context.Context, dgst, mediaType string) (document, time.Duration, bool) {
	var d document
	want := digest.Digest(dgst)
	if want.Validate() != nil {
		s.out.unfit = "the index names a digest that is none"
		s.failed(StepContent, 0, &fault{verdict: s.out.unfit, detail: s.their(token(dgst))})
		return d, 0, false
	}
	header := s.header()
	header.Set("Accept", accept(mediaType))
	r, took, err := s.authorized(ctx, StepContent, http.MethodGet, s.at(s.host.Content, dgst), header, docker.MaxManifestSize+1)
	if err != nil {
		return d, took, false
	}
	fail := func(f *fault) (document, time.Duration, bool) {
		s.failed(StepContent, took, f)
		return d, took, false
	}
	switch {
	case r.status > 299:
		return fail(s.refused(r, "manifest of "+dgst))
	case int64(len(r.body)) > docker.MaxManifestSize:
		return fail(tooLarge())
	case want.Algorithm().FromBytes(r.body) != want:
		return fail(&fault{verdict: "what comes is not what the digest says", detail: dgst, remedy: s.noRegistry()})
	case json.Unmarshal(r.body, &d) != nil:
		return fail(&fault{verdict: "the manifest is no JSON", detail: dgst})
	}
	return d, took, true
}

// choose takes an index's image for the node, as containerd's platforms.Only orders them.
func (s *session) choose(list []ocispec.Descriptor) (ocispec.Descriptor, bool) {
	list = slices.DeleteFunc(slices.Clone(list), func(d ocispec.Descriptor) bool {
		return d.Platform != nil && d.Platform.OS == "unknown" // attestations
	})
	if s.image.Arch == "" || len(list) == 0 {
		if len(list) == 0 {
			return ocispec.Descriptor{}, false
		}
		return list[0], true
	}
	only := platforms.Only(platforms.Normalize(ocispec.Platform{OS: "linux", Architecture: s.image.Arch}))
	best := -1
	for i, d := range list {
		if d.Platform == nil || !only.Match(*d.Platform) {
			continue
		}
		if best < 0 || only.Less(*d.Platform, *list[best].Platform) {
			best = i
		}
	}
	if best < 0 {
		return ocispec.Descriptor{}, false
	}
	return list[best], true
}

func (s *session) platform(d ocispec.Descriptor) string {
	if d.Platform == nil {
		return "a platform that it does not name"
	}
	return s.their(token(d.Platform.OS + "/" + d.Platform.Architecture))
}

func (s *session) has(list []ocispec.Descriptor) string {
	var out []string
	for _, d := range list {
		if p := s.platform(d); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	if len(out) > 12 {
		out = append(out[:12], "more")
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}
