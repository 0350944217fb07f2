package bundle

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"

	"github.com/klauspost/compress/zstd"

	"github.com/nodeprep/nodeprep/install/release"
)

// OpenImage opens an image archive of the config's, as it was before it was put into the
// bundle. It is verified while it is read: instead of the end, Read gives a *DamagedError,
// which wraps a *release.DigestError where that is due. More than Image.Size is never given.
func (n *Node) OpenImage(ctx context.Context, img Image) (io.ReadCloser, error) {
	return n.openImage(ctx, img, nil)
}

func (n *Node) openImage(ctx context.Context, img Image, told func(n int)) (io.ReadCloser, error) {
	d, ok := n.layers[img.Layer]
	if !ok {
		return nil, n.bundle.damaged(n.part(img.File), fmt.Errorf("its layer %s is not in the manifest", img.Layer))
	}
	r, err := n.bundle.blob(ctx, d, told)
	if err != nil {
		return nil, n.bundle.damaged(n.part(img.File), err)
	}
	packed := newDigested(r, "layer "+d.Digest.String(), d.Digest.Encoded(), fromManifest)
	i := &imageReader{node: n, img: img, blob: r, packed: packed, in: packed, sum: sha256.New(), left: img.Size}
	if img.Packed {
		i.zstd, err = zstd.NewReader(bufio.NewReaderSize(packed, 128<<10),
			zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			r.Close()
			return nil, n.bundle.damaged(n.part(img.File), err)
		}
		i.in = i.zstd
	}
	return i, nil
}

// imageReader reads an image archive out of its layer.
type imageReader struct {
	node   *Node
	img    Image
	blob   io.Closer
	packed *digested
	zstd   *zstd.Decoder
	in     io.Reader // packed or zstd
	sum    hash.Hash // of what is given out
	left   int64
	err    error
}

func (i *imageReader) Read(p []byte) (int, error) {
	if i.err != nil {
		return 0, i.err
	}
	n, err := i.in.Read(p)
	i.sum.Write(p[:n])
	i.left -= int64(n)
	switch {
	case i.left < 0:
		n, err = 0, &contentError{fmt.Sprintf("it unpacks to more than its %d bytes", i.img.Size)}
	case err == io.EOF && i.left > 0:
		err = &contentError{fmt.Sprintf("it unpacks to %d bytes, want %d", i.img.Size-i.left, i.img.Size)}
	case err == io.EOF:
		if got := hex.EncodeToString(i.sum.Sum(nil)); got != i.img.SHA256 {
			err = &release.DigestError{File: i.img.File, Got: got, Want: i.img.SHA256, From: fromConfig}
		}
	}
	if err != nil && err != io.EOF {
		err = i.explain(err)
	}
	i.err = err
	return n, err
}

// explain looks for the reason of a fault: a wrong digest of the layer explains all others.
func (i *imageReader) explain(err error) error {
	b, part := i.node.bundle, i.node.part(i.img.File)
	if unread(err) {
		return fmt.Errorf("read %s: %s: %w", b.name, part, err)
	}
	if _, is := errors.AsType[*release.DigestError](err); !is && i.img.Packed {
		if _, rest := io.Copy(io.Discard, i.packed); rest != nil {
			err = rest
		}
	}
	return b.damaged(part, err)
}

// Close ends the reading. What was read before the end is not verified.
func (i *imageReader) Close() error {
	if i.zstd != nil {
		i.zstd.Close()
	}
	return i.blob.Close()
}

// VerifyImage reads an image archive to its end. progress, which may be nil, is told how
// many of how many bytes were read, unpacked.
func (n *Node) VerifyImage(ctx context.Context, img Image, progress func(done, total int64)) error {
	r, err := n.OpenImage(ctx, img)
	if err != nil {
		return err
	}
	defer r.Close()
	var done int64
	_, err = copyAll(ctx, io.Discard, r, func(n int) {
		if done += int64(n); progress != nil {
			progress(done, img.Size)
		}
	})
	return err
}
