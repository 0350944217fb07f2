package imagearchive

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Names are the full names that an archive's own lists have, without a look at anything
// else: it reads no further than needed, and jumps over what is between where the archive is
// plain and r can seek. Names that are none are left out. The error wraps ErrNoArchive
// where there is no list.
func Names(ctx context.Context, r io.Reader) ([]string, error) {
	z, err := plainOrUnpacked(ctx, r)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	var names []string
	listed, entries := false, 0
	// An archive may have both lists, the images of the one being those of the other.
	for tr := tar.NewReader(z.Reader); len(names) == 0; {
		hdr, err := tr.Next()
		if entries == 0 && (errors.Is(err, tar.ErrHeader) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)) {
			return nil, fmt.Errorf("%w: not even a tar", ErrNoArchive)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read the names in the archive: %w", err)
		}
		entries++
		if hdr.Typeflag != tar.TypeReg {
			continue
		}
		from := io.LimitReader(tr, maxKept)
		switch path.Clean(hdr.Name) {
		case ocispec.ImageIndexFile:
			var index document
			if err := decodeFew(from, &index); err != nil {
				return nil, fmt.Errorf("read %s in the archive: %w", ocispec.ImageIndexFile, err)
			}
			for _, m := range index.Manifests {
				if full, _, err := NameOf(m.Annotations); err == nil && full != "" {
					names = append(names, full)
				}
			}
		case dockerManifest:
			var list []dockerImage
			if err := decodeFew(from, &list); err != nil {
				return nil, fmt.Errorf("read %s in the archive: %w", dockerManifest, err)
			}
			for _, img := range list {
				for _, tag := range img.RepoTags {
					if full, err := FullName(tag); err == nil {
						names = append(names, full)
					}
				}
			}
		default:
			continue
		}
		listed = true
	}
	if !listed {
		return nil, fmt.Errorf("%w: it has neither %s nor %s", ErrNoArchive, dockerManifest, ocispec.ImageIndexFile)
	}
	slices.Sort(names)
	return slices.Compact(names), nil
}

// opened is a tar that may be able to seek.
type opened struct {
	io.Reader
	io.Closer
}

func plainOrUnpacked(ctx context.Context, r io.Reader) (opened, error) {
	seeker, ok := r.(io.ReadSeeker)
	if ok {
		start, err := seeker.Seek(0, io.SeekCurrent)
		if err == nil {
			var head [4]byte
			n, _ := io.ReadFull(seeker, head[:])
			if _, err := seeker.Seek(start, io.SeekStart); err != nil {
				return opened{}, err
			}
			if !isPacked(head[:n]) {
				return opened{seekingSource{&source{ctx: ctx, r: seeker}, seeker}, io.NopCloser(nil)}, nil
			}
		}
	}
	z, err := Decompress(&source{ctx: ctx, r: r})
	if err != nil {
		return opened{}, err
	}
	return opened{z, z}, nil
}

// seekingSource is a source that can seek.
type seekingSource struct {
	*source
	io.Seeker
}
