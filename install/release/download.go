package release

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"os"
	"time"

	"github.com/nodeprep/nodeprep/internal/host"
)

// Download fetches one file whose digest is known into an empty one: what it holds counts
// only when the error is nil. It waits for a server that does not answer yet, goes on where
// the connection broke, and takes a file with another digest once more from its beginning;
// when ctx ends all this ends. Dirs, CacheDir and Sources are not looked at.
//
// Errors: *OfflineError, *DigestError, those of the file and of a server that refuses, and
// the context's cause with what was wrong last.
func (s *Store) Download(ctx context.Context, rawURL, sum string, to *os.File, progress func(done, total int64)) error {
	u, err := url.Parse(rawURL)
	if err != nil {
		return errors.New("fetch: the address is none") // it may have a secret in it
	}
	if s.Offline {
		return &OfflineError{Title: "the bundle", File: mask(u), URL: mask(u)}
	}
	f := s.fetcher(progress)
	defer f.client.CloseIdleConnections()
	d := &download{fetcher: f, url: u, to: to, hash: sha256.New()}
	for attempt := 1; ; attempt++ {
		if err := d.whole(host.For(ctx, mask(u))); err != nil {
			return fmt.Errorf("fetch %s: %w", mask(u), err)
		}
		got := hex.EncodeToString(d.hash.Sum(nil))
		if got == sum {
			return nil
		}
		// A server that changed its file between two parts leaves a mixture.
		if attempt == 2 || !d.continued {
			return &DigestError{File: mask(u), Got: got, Want: sum, From: "the command line"}
		}
		if err := d.restart(); err != nil {
			return err
		}
	}
}

// download is one file on its way.
type download struct {
	*fetcher
	url  *url.URL
	to   *os.File
	hash hash.Hash
	done int64
	// continued says that it came in more than one part.
	continued bool
}

func (d *download) restart() error {
	d.hash.Reset()
	d.done = 0
	if _, err := d.to.Seek(0, io.SeekStart); err != nil {
		return err
	}
	return d.to.Truncate(0)
}

// whole fetches until the file is complete.
func (d *download) whole(ctx context.Context) error {
	for wait := d.wait; ; {
		before := d.done
		err := d.part(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%w; the last answer: %w", context.Cause(ctx), err)
		}
		status, answered := errors.AsType[*statusError](err)
		beyond := answered && status.code == http.StatusRequestedRangeNotSatisfiable && d.done > 0
		if !transient(err) && !beyond {
			return err
		}
		if beyond || errors.Is(err, errRangeIgnored) {
			if err := d.restart(); err != nil {
				return err
			}
		}
		if d.done > before {
			wait = d.wait
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("%w; the last answer: %w", context.Cause(ctx), err)
		}
		wait = min(2*wait, longestWait)
	}
}

// part makes one attempt, and goes on after what is there.
func (d *download) part(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.url.String(), nil)
	if err != nil {
		return err
	}
	if d.done > 0 {
		d.continued = true
		req.Header.Set("Range", fmt.Sprintf("bytes=%d-", d.done))
	}
	resp, err := d.client.Do(req)
	if err != nil {
		if ue, ok := errors.AsType[*url.Error](err); ok {
			err = ue.Err // it repeats the address, with secrets of its query
		}
		return err
	}
	defer resp.Body.Close()
	total := int64(0)
	if resp.ContentLength >= 0 {
		total = d.done + resp.ContentLength
	}
	buf := make([]byte, 256<<10)
	for {
		n, err := resp.Body.Read(buf)
		if n > 0 {
			if _, err := d.to.Write(buf[:n]); err != nil {
				return err
			}
			d.hash.Write(buf[:n])
			if d.done += int64(n); d.progress != nil {
				d.progress(d.done, total)
			}
		}
		switch {
		case err == io.EOF && total > 0 && d.done < total:
			return io.ErrUnexpectedEOF
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
}
