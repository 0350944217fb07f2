package main

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"runtime"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// writeImage writes an OCI archive with one image, whose one layer holds one file of size
// bytes that nothing makes smaller.
func writeImage(name string, size int64) error {
	sum := sha256.New()
	if err := writeLayer(sum, size); err != nil {
		return err
	}
	// A tar is its file, its header and two blocks of zeros (pax(1)).
	layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.NewDigest(digest.SHA256, sum), Size: size + 3*512}
	configBlob, config, err := document(ocispec.MediaTypeImageConfig, ocispec.Image{
		Platform: ocispec.Platform{Architecture: runtime.GOARCH, OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}},
	})
	if err != nil {
		return err
	}
	manifestBlob, manifest, err := document(ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: config, Layers: []ocispec.Descriptor{layer},
	})
	if err != nil {
		return err
	}
	manifest.Annotations = map[string]string{"io.containerd.image.name": "bench.example.com/large:1", ocispec.AnnotationRefName: "1"}
	index, _, err := document(ocispec.MediaTypeImageIndex, ocispec.Index{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{manifest},
	})
	if err != nil {
		return err
	}
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer f.Close()
	w := tar.NewWriter(f)
	for _, small := range []struct {
		name string
		data []byte
	}{
		{ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"` + ocispec.ImageLayoutVersion + `"}`)},
		{ocispec.ImageIndexFile, index}, {blobName(manifest), manifestBlob}, {blobName(config), configBlob},
	} {
		if err := w.WriteHeader(&tar.Header{Name: small.name, Mode: 0o644, Size: int64(len(small.data))}); err != nil {
			return err
		}
		if _, err := io.Copy(w, bytes.NewReader(small.data)); err != nil {
			return err
		}
	}
	if err := w.WriteHeader(&tar.Header{Name: blobName(layer), Mode: 0o644, Size: layer.Size}); err != nil {
		return err
	}
	if err := writeLayer(w, size); err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return f.Close()
}

func document(mediaType string, v any) ([]byte, ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	return b, ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}, err
}

func blobName(d ocispec.Descriptor) string {
	return fmt.Sprintf("blobs/%s/%s", d.Digest.Algorithm(), d.Digest.Encoded())
}

// writeLayer writes the same bytes each time.
func writeLayer(w io.Writer, size int64) error {
	layer := tar.NewWriter(w)
	if err := layer.WriteHeader(&tar.Header{Name: "large", Mode: 0o644, Size: size, Format: tar.FormatUSTAR}); err != nil {
		return err
	}
	if _, err := io.CopyN(layer, rand.NewChaCha8([32]byte{}), size); err != nil {
		return err
	}
	return layer.Close()
}
