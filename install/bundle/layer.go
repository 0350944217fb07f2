package bundle

import (
	"archive/tar"
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"

	"github.com/klauspost/compress/zstd"
)

// maxFile is the most that a header of a ustar archive can say of a file's size, eleven
// octal digits (pax(1), "ustar Interchange Format").
const maxFile = 1<<33 - 1

// File is a file that goes into a layer.
type File struct {
	Path string      // below the layer's root, without a leading slash
	Mode fs.FileMode // 0644 or 0755
	Size int64       // bytes
	Open func() (io.ReadCloser, error)
}

// header is the only kind of header in a bundle: it says nothing of when, where and by
// whom the file was made.
func header(name string, mode fs.FileMode, size int64) (*tar.Header, error) {
	if size > maxFile {
		return nil, fmt.Errorf("pack %s: it has %d bytes, and a file in a bundle can have %d", name, size, int64(maxFile))
	}
	return &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: int64(mode.Perm()), Size: size, Format: tar.FormatUSTAR}, nil
}

// compressor is zstd as it is in every bundle. One goroutine, so that the bytes do not depend on
// how many there are; the window is what all unpackers take (RFC 8878, 3.1.1.1.2). Of a node's
// releases the best level would save another twelfth, for four times the time and memory.
func compressor(w io.Writer, level zstd.EncoderLevel) (*zstd.Encoder, error) {
	return zstd.NewWriter(w, zstd.WithEncoderLevel(level), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(8<<20), zstd.WithLowerEncoderMem(true))
}

// writeLayer writes files as a tar packed by zstd, sorted by path, and says what is in it.
// Small layers take a lower level, which costs less to begin with. told, which may be nil, is told of bytes as they are read.
func writeLayer(ctx context.Context, w io.Writer, files []File, told func(n int)) ([]Member, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	var size int64
	for _, f := range files {
		size += f.Size
	}
	level := zstd.SpeedBetterCompression
	if size < 1<<20 {
		level = zstd.SpeedDefault
	}
	z, err := compressor(w, level)
	if err != nil {
		return nil, err
	}
	defer z.Close() // after a failure it has nothing more to write
	archive := tar.NewWriter(z)
	members := make([]Member, 0, len(files))
	for i, f := range files {
		if !fs.ValidPath(f.Path) || f.Path == "." || i > 0 && files[i-1].Path == f.Path {
			return nil, fmt.Errorf("pack %q: not a path of its own below the layer's root", f.Path)
		}
		m, err := writeMember(ctx, archive, f, told)
		if err != nil {
			return nil, err
		}
		members = append(members, m)
	}
	return members, cmp.Or(archive.Close(), z.Close())
}

func writeMember(ctx context.Context, archive *tar.Writer, f File, told func(n int)) (Member, error) {
	h, err := header(f.Path, f.Mode, f.Size)
	if err != nil {
		return Member{}, err
	}
	if err := archive.WriteHeader(h); err != nil {
		return Member{}, fmt.Errorf("pack %s: %w", f.Path, err)
	}
	r, err := f.Open()
	if err != nil {
		return Member{}, err
	}
	defer r.Close()
	digest := sha256.New()
	n, err := copyAll(ctx, io.MultiWriter(archive, digest), r, told)
	if errors.Is(err, tar.ErrWriteTooLong) || err == nil && n != f.Size {
		return Member{}, fmt.Errorf("pack %s: it changed while it was read", f.Path)
	}
	if err != nil {
		return Member{}, err
	}
	return Member{Path: f.Path, Mode: uint32(f.Mode.Perm()), Size: n, SHA256: hex.EncodeToString(digest.Sum(nil))}, nil
}

// packing is how an image archive is packed, by its first bytes (RFC 1952, RFC 8878).
func packing(r *bufio.Reader) (string, error) {
	head, err := r.Peek(4)
	if err != nil && err != io.EOF {
		return "", err
	}
	switch s := string(head); {
	case len(s) > 1 && s[:2] == "\x1f\x8b":
		return "gzip", nil
	case s == "\x28\xb5\x2f\xfd":
		return "zstd", nil
	}
	return "", nil
}

// writeImage writes an image archive: a plain tar packed by zstd, a packed one as it is.
// It fills in what the config says of the archive but for its layer, and returns the
// layer's media type.
func writeImage(ctx context.Context, w io.Writer, r io.Reader, image *Image, told func(n int)) (mediaType string, err error) {
	in := bufio.NewReaderSize(r, 64<<10)
	kind, err := packing(in)
	if err != nil {
		return "", fmt.Errorf("pack %s: %w", image.File, err)
	}
	digest := sha256.New()
	mediaType = layerType
	switch kind {
	case "gzip":
		mediaType = layerTypeGzip
		image.Size, err = copyAll(ctx, io.MultiWriter(w, digest), in, told)
	case "zstd":
		image.Size, err = copyAll(ctx, io.MultiWriter(w, digest), in, told)
	default:
		image.Packed = true
		var z *zstd.Encoder
		if z, err = compressor(w, zstd.SpeedDefault); err != nil {
			return "", err
		}
		defer z.Close()
		if image.Size, err = copyAll(ctx, io.MultiWriter(z, digest), in, told); err == nil {
			err = z.Close()
		}
	}
	image.SHA256 = hex.EncodeToString(digest.Sum(nil))
	return mediaType, err
}

// copyAll copies until the end or until the context's.
func copyAll(ctx context.Context, w io.Writer, r io.Reader, told func(n int)) (int64, error) {
	buf := make([]byte, 256<<10)
	var total int64
	for {
		if ctx.Err() != nil {
			return total, context.Cause(ctx)
		}
		n, err := r.Read(buf)
		if n > 0 {
			if _, err := w.Write(buf[:n]); err != nil {
				return total, err
			}
			total += int64(n)
			if told != nil {
				told(n)
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}
