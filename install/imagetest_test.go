package install

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	godigest "github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// archiveOf is what an image archive of a test shall have.
type archiveOf struct {
	names     []string // full ones; none is an archive without names
	platforms []string // architectures; none is amd64
	content   string   // tells archives apart
	size      int      // bytes of the layer beyond that
	lacks     string   // an architecture whose layer is missing
	and       []archiveOf
}

// tar is the archive: an OCI layout, as skopeo and ctr make them.
func (a archiveOf) tar(t testing.TB) []byte {
	t.Helper()
	blobs := map[string][]byte{}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for _, img := range append([]archiveOf{a}, a.and...) {
		index.Manifests = append(index.Manifests, img.into(t, blobs)...)
	}
	blobs["index.json"] = encode(t, index)
	blobs[ocispec.ImageLayoutFile] = encode(t, ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	return tarOf(t, blobs)
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// into adds an image's blobs, and returns what the archive's index says of it.
func (a archiveOf) into(t testing.TB, blobs map[string][]byte) []ocispec.Descriptor {
	t.Helper()
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		d := godigest.FromBytes(b)
		blobs["blobs/sha256/"+d.Encoded()] = b
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	if len(a.platforms) == 0 {
		a.platforms = []string{"amd64"}
	}
	var manifests []ocispec.Descriptor
	for _, arch := range a.platforms {
		platform := ocispec.Platform{OS: "linux", Architecture: arch}
		layer := put(ocispec.MediaTypeImageLayer, tarOf(t, map[string][]byte{"file": []byte(a.content + arch + strings.Repeat("x", a.size))}))
		if arch == a.lacks {
			delete(blobs, "blobs/sha256/"+layer.Digest.Encoded())
		}
		config := put(ocispec.MediaTypeImageConfig, encode(t, ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []godigest.Digest{layer.Digest}}}))
		m := put(ocispec.MediaTypeImageManifest, encode(t, ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer},
		}))
		m.Platform = &platform
		manifests = append(manifests, m)
	}
	top := manifests[0]
	if len(manifests) > 1 {
		top = put(ocispec.MediaTypeImageIndex, encode(t, ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}))
	}
	if len(a.names) == 0 {
		return []ocispec.Descriptor{top}
	}
	var out []ocispec.Descriptor
	for _, name := range a.names {
		m := top
		m.Annotations = map[string]string{"io.containerd.image.name": name}
		out = append(out, m)
	}
	return out
}

func tarOf(t testing.TB, files map[string][]byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := tar.NewWriter(&out)
	for _, name := range sortedKeys(files) {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(files[name])), Format: tar.FormatUSTAR}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(files[name]); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// file writes the archive into a folder.
func (a archiveOf) file(t testing.TB, dir, name string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.WriteFile(p, a.tar(t), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

// pause is a small one.
func pause(names ...string) archiveOf {
	if len(names) == 0 {
		names = []string{"registry.k8s.io/pause:3.10"}
	}
	return archiveOf{names: slices.Clone(names), content: strings.Join(names, " ")}
}
