package imagearchive

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

var (
	gzipMagic = []byte{0x1f, 0x8b}             // RFC 1952, 2.3.1
	zstdMagic = []byte{0x28, 0xb5, 0x2f, 0xfd} // RFC 8878, 3.1.1
)

func isPacked(head []byte) bool {
	return bytes.HasPrefix(head, gzipMagic) || bytes.HasPrefix(head, zstdMagic)
}

// maxWindow is the window of zstd --long, the largest that its own tool reads unasked.
const maxWindow = 128 << 20

// Decompress unpacks a stream that starts with the magic number of gzip (RFC 1952) or
// zstd (RFC 8878) and hands on any other as it is. Close frees what unpacking needs and
// leaves r alone.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	b := bufio.NewReaderSize(r, 64<<10)
	head, err := b.Peek(4)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	switch {
	case len(head) == 0:
		return nil, fmt.Errorf("%w: it is empty", ErrNoArchive)
	case bytes.HasPrefix(head, gzipMagic):
		z, err := gzip.NewReader(b)
		if err != nil {
			return nil, err
		}
		return z, nil
	case bytes.Equal(head, zstdMagic):
		z, err := zstd.NewReader(b, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(maxWindow))
		if err != nil {
			return nil, err
		}
		return z.IOReadCloser(), nil
	}
	return io.NopCloser(b), nil
}

// source tells a stream's own faults from those of what is in it, and ends with its context.
type source struct {
	ctx context.Context
	r   io.Reader
	n   int64
	err error
}

func (s *source) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		s.err = context.Cause(s.ctx)
		return 0, s.err
	}
	n, err := s.r.Read(p)
	s.n += int64(n)
	if err != nil && !errors.Is(err, io.EOF) {
		s.err = err
	}
	return n, err
}

// counter counts what is read through it, and keeps the beginning.
type counter struct {
	r    io.Reader
	n    int64
	head []byte
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if have := len(c.head); have < 512 {
		c.head = append(c.head, p[:min(n, 512-have)]...)
	}
	c.n += int64(n)
	return n, err
}
