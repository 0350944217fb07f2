package bundle

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// item is a member of a tar, as hostile as one likes.
type item struct {
	tar.Header
	data string
}

func executable(name, data string) item {
	return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755}, data}
}

// forgery is a bundle for one architecture that is made by hand, with digests and sizes
// that are right unless somebody changes them.
type forgery struct {
	component []item // the layer of containerd
	image     []byte // the archive of images/pause.tar
	// Hooks, called before the part is written.
	config   func(*Config)
	raw      func([]byte) []byte // the config's JSON
	manifest func(*ocispec.Manifest)
	index    func(*ocispec.Index)
	list     func(*ocispec.Index) // index.json
	layer    func(data []byte) []byte
	files    func([]item) []item // those of the bundle's archive
}

func tarOf(t *testing.T, items []item) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, i := range items {
		h := i.Header
		h.Size = max(h.Size, int64(len(i.data)))
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
		if h.Typeflag == tar.TypeReg {
			if err := write(w, []byte(i.data)); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func zstded(t *testing.T, data []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, zstd.WithWindowSize(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(data, nil)
}

func hexOf(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

// bytes makes the bundle's file.
func (f forgery) bytes(t *testing.T) []byte {
	t.Helper()
	if f.component == nil {
		f.component = []item{executable("usr/local/bin/containerd", "containerd"), executable("usr/local/bin/ctr", "ctr")}
	}
	if f.image == nil {
		f.image = plainTar(t, "pause", 1000)
	}
	var blobs []item
	add := func(mediaType string, data []byte) ocispec.Descriptor {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		blobs = append(blobs, item{tar.Header{Typeflag: tar.TypeReg, Name: blobPath(d), Mode: 0o644}, string(data)})
		return d
	}
	document := func(mediaType string, v any, raw func([]byte) []byte) ocispec.Descriptor {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if raw != nil {
			data = raw(data)
		}
		return add(mediaType, data)
	}
	members := func(items []item) []Member {
		var out []Member
		for _, i := range items {
			if i.Typeflag == tar.TypeReg {
				out = append(out, Member{Path: i.Name, Mode: uint32(i.Mode), Size: int64(len(i.data)), SHA256: hexOf([]byte(i.data))})
			}
		}
		return out
	}
	packed := zstded(t, tarOf(t, f.component))
	if f.layer != nil {
		packed = f.layer(packed)
	}
	node := []item{{tar.Header{Typeflag: tar.TypeReg, Name: ProfileName, Mode: 0o644}, "kind: NodeProfile\n"}}
	layers := []ocispec.Descriptor{add(layerType, zstded(t, tarOf(t, node))), add(layerType, packed), add(layerType, zstded(t, f.image))}
	c := Config{
		FormatVersion: FormatVersion, Nodeprep: "1.2.3", OS: "linux", Architecture: "amd64",
		Components: []Component{{
			Name: "containerd", Version: "2.1.9", File: "containerd-2.1.9-linux-amd64.tar.gz", SHA256: hexOf([]byte("upstream")), SHA256From: "catalogue",
			Layer: layers[1].Digest, Members: members(f.component),
		}},
		Node:   Files{layers[0].Digest, members(node)},
		Images: []Image{{File: "images/pause.tar", Names: []string{"registry.k8s.io/pause:3.10"}, Layer: layers[2].Digest, SHA256: hexOf(f.image), Size: int64(len(f.image)), Packed: true}},
	}
	if f.config != nil {
		f.config(&c)
	}
	m := ocispec.Manifest{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest, ArtifactType: ArtifactType,
		Config: document(ConfigType, c, f.raw), Layers: layers}
	if f.manifest != nil {
		f.manifest(&m)
	}
	d := document(ocispec.MediaTypeImageManifest, m, nil)
	d.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
	all := index(d)
	if f.index != nil {
		f.index(&all)
	}
	list := index(document(ocispec.MediaTypeImageIndex, all, nil))
	list.Manifests[0].Annotations = map[string]string{ocispec.AnnotationRefName: refName}
	if f.list != nil {
		f.list(&list)
	}
	raw, err := json.Marshal(list)
	if err != nil {
		t.Fatal(err)
	}
	version := `{"imageLayoutVersion":"1.0.0"}`
	plain := func(name, data string) item {
		return item{tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644}, data}
	}
	out := append([]item{plain("oci-layout", version), plain("index.json", string(raw)),
		plain(SumsName, fmt.Sprintf("%s  oci-layout\n%s  index.json\n", hexOf([]byte(version)), hexOf(raw)))}, blobs...)
	if f.files != nil {
		out = f.files(out)
	}
	return tarOf(t, out)
}

// saved is a file with this content.
func saved(t *testing.T, data []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "node.bundle")
	if err := os.WriteFile(file, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// opened is a bundle that is closed when the test ends.
func opened(t *testing.T, ref string) *Bundle {
	t.Helper()
	b, err := Open(t.Context(), ref, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close() })
	return b
}

func nodeOf(t *testing.T, b *Bundle, arch string) *Node {
	t.Helper()
	n, err := b.For(t.Context(), arch)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// unpackedTo is a folder with what an archive holds.
func unpackedTo(t *testing.T, data []byte) string {
	t.Helper()
	dir := t.TempDir()
	names, content := entries(t, bytes.NewReader(data))
	for _, name := range slices.Sorted(slices.Values(names)) {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, content[name], 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}
