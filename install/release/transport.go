package release

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// statusError is an answer other than success.
type statusError struct{ code int }

func (e *statusError) Error() string {
	return fmt.Sprintf("the server answered %d %s", e.code, http.StatusText(e.code))
}

// sizeError is a file over the limit.
type sizeError struct{ limit int64 }

func (e *sizeError) Error() string {
	return fmt.Sprintf("the file is larger than the limit of %d bytes", e.limit)
}

// redirectError is a redirect that is not followed.
type redirectError struct{ to, why string }

func (e *redirectError) Error() string { return fmt.Sprintf("redirect to %s refused: %s", e.to, e.why) }

// errRangeIgnored is a server that promised ranges and then sent the whole file, which
// the caller would append to what it has.
var errRangeIgnored = errors.New("the server sent the whole file instead of the rest")

// guard holds every exchange to limits that go-getter does not have: a size cap that
// progress reports do not switch off, and refusal of a whole file where a part was asked
// for.
type guard struct {
	base http.RoundTripper
	max  int64
}

// RoundTrip is http.RoundTripper's; a status of 400 or more is a *statusError.
func (g *guard) RoundTrip(req *http.Request) (*http.Response, error) {
	var offset int64
	if r, ok := strings.CutPrefix(req.Header.Get("Range"), "bytes="); ok {
		n, err := strconv.ParseInt(strings.TrimSuffix(r, "-"), 10, 64)
		if err != nil {
			return nil, fmt.Errorf("read range %q: %w", r, err)
		}
		offset = n
	}
	resp, err := g.base.RoundTrip(req)
	if err != nil {
		return nil, err
	}
	body := &guardedBody{ReadCloser: resp.Body, left: g.max - offset, max: g.max}
	switch {
	case resp.StatusCode >= 400:
		err = &statusError{resp.StatusCode}
	case resp.StatusCode == http.StatusOK && offset > 0:
		err = errRangeIgnored
	case resp.StatusCode == http.StatusPartialContent && !strings.HasPrefix(resp.Header.Get("Content-Range"), fmt.Sprintf("bytes %d-", offset)):
		err = errRangeIgnored
	case resp.ContentLength > body.left:
		err = &sizeError{g.max}
	}
	if err != nil {
		body.Close()
		return nil, err
	}
	resp.Body = body
	return resp, nil
}

type guardedBody struct {
	io.ReadCloser
	left, max int64
}

func (b *guardedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	b.left -= int64(n)
	if b.left < 0 {
		return 0, &sizeError{b.max}
	}
	return n, err
}

// sameOrSafer follows redirects, up to ten, unless they leave https.
func sameOrSafer(req *http.Request, via []*http.Request) error {
	last := via[len(via)-1].URL
	switch {
	case req.URL.Scheme != "https" && (last.Scheme == "https" || req.URL.Scheme != "http"):
		return &redirectError{mask(req.URL), "it leaves " + last.Scheme + " for " + req.URL.Scheme}
	case len(via) >= 10:
		return &redirectError{mask(req.URL), "ten redirects are enough"}
	}
	return nil
}
