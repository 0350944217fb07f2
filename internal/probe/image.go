package probe

import (
	"context"
	"encoding/json"
	"fmt"
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

// supply asks for what a pull needs beside the digest: the manifest by it, in an index the
// one for this machine's architecture, and a layer. Mirrors lack these in practice.
func (s *session) supply(ctx context.Context, m found) {
	ctx = docker.WithScope(ctx, "repository:"+s.image.Repository+":pull")
	d, took, ok := s.fetch(ctx, m.digest, m.mediaType)
	if !ok {
		return
	}
	detail := m.digest
	if m.mediaType == dockerList || m.mediaType == ocispec.MediaTypeImageIndex {
		child, ok := s.choose(d.Manifests)
		if !ok {
			s.out.final = true
			s.failed(StepContent, took, &fault{verdict: "no image for linux/" + s.image.Arch + " in the index", detail: "it has " + has(d.Manifests)})
			return
		}
		var more time.Duration
		if d, more, ok = s.fetch(ctx, child.Digest.String(), child.MediaType); !ok {
			return
		}
		took += more
		detail += ", and in it " + child.Digest.String() + " for " + platform(child)
	}
	s.out.content = true
	s.add(step(StepContent, true, took, "had", detail, ""))
	i := slices.IndexFunc(d.Layers, func(l ocispec.Descriptor) bool { return len(l.URLs) == 0 })
	layer := d.Config
	if i >= 0 {
		layer = d.Layers[i]
	}
	if layer.Digest.Validate() != nil {
		s.failed(StepLayer, 0, &fault{verdict: "the manifest names neither a layer nor a config"})
		return
	}
	target := s.at(s.host.Layer, layer.Digest.String())
	header := s.header()
	header.Set("Accept", layer.MediaType+", */*")
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
	s.out.layer, s.out.OK = true, true
	s.add(step(StepLayer, true, took, "there", fmt.Sprintf("%s%s, %d bytes", s.viaText(r), layer.Digest, layer.Size), ""))
}

// fetch gets a manifest by its digest, and holds it against that.
func (s *session) fetch(ctx context.Context, dgst, mediaType string) (document, time.Duration, bool) {
	var d document
	header := s.header()
	header.Set("Accept", mediaType+", */*")
	r, took, err := s.authorized(ctx, StepContent, http.MethodGet, s.at(s.host.Content, dgst), header, docker.MaxManifestSize+1)
	if err != nil {
		return d, took, false
	}
	fail := func(f *fault) (document, time.Duration, bool) {
		s.failed(StepContent, took, f)
		return d, took, false
	}
	want := digest.Digest(dgst)
	switch {
	case r.status > 299:
		return fail(s.refused(r, "manifest of "+dgst))
	case int64(len(r.body)) > docker.MaxManifestSize:
		return fail(&fault{verdict: "the manifest is too large for containerd", detail: fmt.Sprintf("%d bytes and more", docker.MaxManifestSize)})
	case want.Validate() != nil:
		return fail(&fault{verdict: "an index names a digest that is none"})
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

func platform(d ocispec.Descriptor) string {
	if d.Platform == nil {
		return "a platform that it does not name"
	}
	return d.Platform.OS + "/" + d.Platform.Architecture
}

func has(list []ocispec.Descriptor) string {
	var out []string
	for _, d := range list {
		if p := platform(d); !slices.Contains(out, p) {
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
