package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"maps"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
)

// SumsName is the file of a bundle's archive with the digests of the two files in it that no
// descriptor is of, as sha256sum(1) writes them. An archive that another tool wrote anew does
// not have it.
const SumsName = "nodeprep.sums"

// writeArchive writes the layout as a tar: what is needed to read the rest comes first, and
// every blob is there once. root is the bundle's index, order are the blobs after it. told,
// which may be nil, is told of bytes as they are written.
func (l *layout) writeArchive(ctx context.Context, w io.Writer, root ocispec.Descriptor, order []ocispec.Descriptor, told func(n int)) error {
	archive := tar.NewWriter(w)
	version, err := json.Marshal(ocispec.ImageLayout{Version: ocispec.ImageLayoutVersion})
	if err != nil {
		return err
	}
	entry := root
	entry.Annotations = maps.Clone(root.Annotations)
	if entry.Annotations == nil {
		entry.Annotations = map[string]string{}
	}
	entry.Annotations[ocispec.AnnotationRefName] = refName
	list, err := json.Marshal(index(entry))
	if err != nil {
		return err
	}
	sums := fmt.Sprintf("%x  %s\n%x  %s\n", sha256.Sum256(version), ocispec.ImageLayoutFile, sha256.Sum256(list), ocispec.ImageIndexFile)
	for _, f := range []struct {
		name string
		data []byte
	}{{ocispec.ImageLayoutFile, version}, {ocispec.ImageIndexFile, list}, {SumsName, []byte(sums)}} {
		h, err := header(f.name, 0o644, int64(len(f.data)))
		if err != nil {
			return err
		}
		if err := archive.WriteHeader(h); err != nil {
			return err
		}
		if _, err := io.Copy(archive, bytes.NewReader(f.data)); err != nil {
			return err
		}
	}
	written := map[digest.Digest]bool{}
	for _, desc := range append([]ocispec.Descriptor{root}, order...) {
		if written[desc.Digest] {
			continue
		}
		written[desc.Digest] = true
		if err := l.writeBlob(ctx, archive, desc, told); err != nil {
			return err
		}
	}
	return archive.Close()
}

func (l *layout) writeBlob(ctx context.Context, archive *tar.Writer, desc ocispec.Descriptor, told func(n int)) error {
	h, err := header("blobs/"+desc.Digest.Algorithm().String()+"/"+desc.Digest.Encoded(), 0o644, desc.Size)
	if err != nil {
		return err
	}
	if err := archive.WriteHeader(h); err != nil {
		return err
	}
	r, err := l.blobs.Fetch(ctx, desc)
	if err != nil {
		return err
	}
	defer r.Close()
	verified := content.NewVerifyReader(r, desc)
	if _, err := copyAll(ctx, archive, verified, told); err != nil {
		return err
	}
	return verified.Verify()
}
