package release

import (
	"context"
	"io"
)

// Buffers are few and reused: three artifacts side by side take about 4 MiB.
const (
	packedBuffers   = 3
	packedSize      = 128 << 10
	unpackedBuffers = 4
	unpackedSize    = 256 << 10
)

// stream is an io.Reader whose source is read by a goroutine of its own, ahead by a
// bounded number of buffers. The goroutine ends when its source does or its context.
type stream struct {
	free, full chan []byte
	ended      chan struct{}
	err        error // why full was closed
	held, left []byte
	count      int64 // bytes given to the reader of the stream
}

// newStream starts reading r; each piece is shown to tap, if that is not nil, before
// it is passed on.
func newStream(ctx context.Context, r io.Reader, buffers, size int, tap io.Writer) *stream {
	s := &stream{free: make(chan []byte, buffers), full: make(chan []byte, buffers), ended: make(chan struct{})}
	for range buffers {
		s.free <- make([]byte, size)
	}
	go func() {
		defer close(s.ended)
		defer close(s.full)
		s.err = s.fill(ctx, r, tap)
	}()
	return s
}

func (s *stream) fill(ctx context.Context, r io.Reader, tap io.Writer) error {
	for {
		var b []byte
		select {
		case b = <-s.free:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		b = b[:cap(b)]
		n, err := 0, error(nil)
		// Full buffers: a gzip reader gives small pieces, and each hand-over costs.
		for n < len(b) && err == nil {
			var m int
			m, err = r.Read(b[n:])
			n += m
		}
		if n > 0 {
			if tap != nil {
				if _, err := tap.Write(b[:n]); err != nil {
					return err
				}
			}
			s.full <- b[:n] // as many places as buffers: never blocks
		}
		if err != nil {
			return err
		}
	}
}

// Read waits for the goroutine's next piece.
func (s *stream) Read(p []byte) (int, error) {
	if len(s.left) == 0 {
		if s.held != nil {
			s.free <- s.held
			s.held = nil
		}
		b, ok := <-s.full
		if !ok {
			return 0, s.err
		}
		s.held, s.left = b, b
	}
	n := copy(p, s.left)
	s.left = s.left[n:]
	s.count += int64(n)
	return n, nil
}

// wait returns when the goroutine has ended; its context must have, or its source.
func (s *stream) wait() { <-s.ended }
