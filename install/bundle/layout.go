package bundle

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/oci"
	"oras.land/oras-go/v2/errdef"
)

// Media types of layers, all of them those of images.
const (
	layerType     = ocispec.MediaTypeImageLayerZstd
	layerTypeGzip = ocispec.MediaTypeImageLayerGzip
)

// refName is the name of the bundle's index in the layout.
const refName = "bundle"

// layout is an OCI image layout in a folder, while it is made. Its methods may be called
// from several goroutines.
type layout struct {
	root  string
	blobs *oci.Storage
}

// newLayout makes a layout in an empty folder.
func newLayout(root string) (*layout, error) {
	for _, dir := range []string{"ingest", "blobs/sha256"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o700); err != nil {
			return nil, err
		}
	}
	blobs, err := oci.NewStorage(root)
	if err != nil {
		return nil, err
	}
	return &layout{root, blobs}, nil
}

// stream adds what write writes, whose digest is known at the end alone. write returns the
// blob's media type.
func (l *layout) stream(write func(io.Writer) (mediaType string, err error)) (ocispec.Descriptor, error) {
	f, err := os.CreateTemp(filepath.Join(l.root, "ingest"), "layer-")
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	defer f.Close()
	sum := sha256.New()
	mediaType, err := write(io.MultiWriter(f, sum))
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	fi, err := f.Stat()
	if err != nil {
		return ocispec.Descriptor{}, err
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.NewDigest(digest.SHA256, sum), Size: fi.Size()}
	if err := f.Close(); err != nil {
		return ocispec.Descriptor{}, err
	}
	// The place where the storage looks for it (image-spec, image-layout.md, "Blobs").
	return desc, os.Rename(f.Name(), filepath.Join(l.root, "blobs", desc.Digest.Algorithm().String(), desc.Digest.Encoded()))
}

// document adds a JSON document, compact and in the order of its fields, so that tools
// which read and write it keep its digest.
func (l *layout) document(ctx context.Context, mediaType string, v any) (ocispec.Descriptor, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write %s: %w", mediaType, err)
	}
	if err := readable(b); err != nil {
		return ocispec.Descriptor{}, fmt.Errorf("write %s: %w", mediaType, err)
	}
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
	if err := l.blobs.Push(ctx, desc, bytes.NewReader(b)); err != nil && !errors.Is(err, errdef.ErrAlreadyExists) {
		return ocispec.Descriptor{}, err
	}
	return desc, nil
}

// readable says why nobody could read a document again.
func readable(b []byte) error {
	if len(b) > maxDocument {
		return fmt.Errorf("it has %d bytes, and the limit is %d", len(b), int64(maxDocument))
	}
	var any json.RawMessage
	return cmp.Or(decode(b, false, &any), onlyText(b))
}

// manifest adds the manifest for one architecture. Its artifactType does not stand in the
// descriptor: there it does not survive being copied by older tools.
func (l *layout) manifest(ctx context.Context, arch string, config ocispec.Descriptor, layers []ocispec.Descriptor) (ocispec.Descriptor, error) {
	desc, err := l.document(ctx, ocispec.MediaTypeImageManifest, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		ArtifactType: ArtifactType, Config: config, Layers: layers,
	})
	desc.Platform = &ocispec.Platform{Architecture: arch, OS: platformOS}
	return desc, err
}

// index is an image index over descriptors.
func index(manifests ...ocispec.Descriptor) ocispec.Index {
	return ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}
}

// titled is a descriptor that says what it is of.
func titled(desc ocispec.Descriptor, title string) ocispec.Descriptor {
	desc.Annotations = map[string]string{ocispec.AnnotationTitle: title}
	return desc
}
