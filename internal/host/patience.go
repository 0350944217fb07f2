package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"
)

// StallError is a server that went silent.
type StallError struct{ After time.Duration }

// Error says how long nothing came.
func (e *StallError) Error() string { return fmt.Sprintf("nothing came for %s", e.After) }

// Timeout is net.Error's.
func (e *StallError) Timeout() bool { return true }

// Patience ends exchanges with a *StallError when nothing comes for as long as after, from
// the dialling to the last byte; net/http limits no more than the answer's beginning, and
// the whole, which may take its time.
func Patience(base http.RoundTripper, after time.Duration) http.RoundTripper {
	return &patience{base, after}
}

type patience struct {
	base  http.RoundTripper
	after time.Duration
}

// RoundTrip is http.RoundTripper's.
func (p *patience) RoundTrip(req *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(req.Context())
	timer := time.AfterFunc(p.after, func() { cancel(&StallError{p.after}) })
	resp, err := p.base.RoundTrip(req.WithContext(ctx))
	timer.Stop()
	if err != nil {
		err = stalled(ctx, err)
		cancel(nil)
		return nil, err
	}
	resp.Body = &patientBody{ReadCloser: resp.Body, ctx: ctx, cancel: cancel, timer: timer, after: p.after}
	return resp, nil
}

// stalled is the stall that an error is in truth.
func stalled(ctx context.Context, err error) error {
	if s, ok := errors.AsType[*StallError](context.Cause(ctx)); ok {
		return s
	}
	return err
}

type patientBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	after  time.Duration
}

func (b *patientBody) Read(p []byte) (int, error) {
	b.timer.Reset(b.after)
	n, err := b.ReadCloser.Read(p)
	b.timer.Stop()
	if err != nil && err != io.EOF {
		err = stalled(b.ctx, err)
	}
	return n, err
}

// Close ends the exchange.
func (b *patientBody) Close() error {
	b.timer.Stop()
	b.cancel(nil)
	return b.ReadCloser.Close()
}
