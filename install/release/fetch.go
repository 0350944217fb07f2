package release

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/go-getter/v2"

	"github.com/nodeprep/nodeprep/internal/host"
)

const (
	defaultMaxBytes     = 512 << 20
	defaultStallTimeout = 30 * time.Second
	defaultAttempts     = 5
	defaultFirstWait    = 500 * time.Millisecond
	longestWait         = 8 * time.Second
	// partial begins the names of unfinished files in the cache.
	partial = ".fetch-"
)

// Fetch has a located file at hand: a local one is returned as it is, others come
// over the network into the cache, from the first address that has them. What is
// interrupted is resumed, up to five times in a row without any progress. A file
// appears under its name in the cache only after its digest was found right; after a
// wrong one it is fetched once more from its beginning. progress, which may be nil, is
// told of bytes that are here and bytes in all, 0 where the server does not say.
//
// Errors: *OfflineError, *NoDigestError, *DigestError, *SizeError, *NotFoundError.
func (s *Store) Fetch(ctx context.Context, l Located, progress func(done, total int64)) (Located, error) {
	if l.Path != "" {
		return l, nil
	}
	if len(l.remotes) == 0 {
		return l, &NotFoundError{Title: l.Artifact.Title(), File: l.File, Places: l.looked}
	}
	if s.Offline {
		return l, &OfflineError{Title: l.Artifact.Title(), File: l.File, URL: l.URL, Places: l.looked}
	}
	if l.SHA256 == "" {
		return l, noDigest(l)
	}
	if err := s.makeCache(); err != nil {
		return l, err
	}
	tmp, err := os.CreateTemp(s.CacheDir, partial) // 0600
	if err != nil {
		return l, err
	}
	tmp.Close()
	defer os.Remove(tmp.Name()) // gone already after a success
	ctx = host.For(ctx, l.Artifact.Title())
	f := s.fetcher(progress)
	defer f.client.CloseIdleConnections()
	looked := slices.Clone(l.looked)
	var errs []error
	for _, r := range l.remotes {
		err := f.verified(ctx, r.url, tmp.Name(), l)
		if err == nil {
			final := s.cached(l)
			if err := os.Rename(tmp.Name(), final); err != nil {
				return l, err
			}
			fi, err := os.Stat(final)
			if err != nil {
				return l, err
			}
			l.Path, l.URL, l.Place, l.Size, l.bundle = final, mask(r.url), r.kind, fi.Size(), isBundle(l.File)
			return l, l.sized(fi.Size())
		}
		if ctx.Err() != nil {
			return l, context.Cause(ctx)
		}
		if _, wrong := errors.AsType[*DigestError](err); wrong {
			return l, err
		}
		if _, local := errors.AsType[*fs.PathError](err); local {
			return l, fmt.Errorf("fetch %s: %w", mask(r.url), err)
		}
		looked = append(looked, Place{r.where(), err.Error()})
		errs = append(errs, err)
	}
	return l, &NotFoundError{Title: l.Artifact.Title(), File: l.File, Places: looked, errs: errs}
}

// makeCache makes the cache's folder, or refuses one that others can write to, and
// clears away what killed runs left there.
func (s *Store) makeCache() error {
	if s.CacheDir == "" {
		return errors.New("fetch: no cache folder is set")
	}
	if err := os.MkdirAll(s.CacheDir, 0o700); err != nil {
		return err
	}
	fi, err := os.Stat(s.CacheDir)
	if err != nil {
		return err
	}
	if fi.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("use cache %s: others may write to it (mode %#o); chmod 0700 %s", s.CacheDir, fi.Mode().Perm(), s.CacheDir)
	}
	entries, err := os.ReadDir(s.CacheDir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), partial) {
			continue
		}
		if fi, err := e.Info(); err == nil && time.Since(fi.ModTime()) > 24*time.Hour {
			if err := os.Remove(filepath.Join(s.CacheDir, e.Name())); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
	}
	return nil
}

// fetcher fetches one file.
type fetcher struct {
	client   *http.Client
	attempts int
	wait     time.Duration
	stall    time.Duration
	progress func(done, total int64)
}

func (s *Store) fetcher(progress func(done, total int64)) *fetcher {
	stall := cmp.Or(s.StallTimeout, defaultStallTimeout)
	base := s.transport
	if base == nil {
		base = s.Network.Transport()
	}
	return &fetcher{
		client: &http.Client{
			Transport:     &guard{base: host.Patience(base, stall), max: cmp.Or(s.MaxBytes, defaultMaxBytes)},
			CheckRedirect: sameOrSafer,
		},
		attempts: cmp.Or(s.attempts, defaultAttempts),
		wait:     cmp.Or(s.firstWait, defaultFirstWait),
		stall:    stall,
		progress: progress,
	}
}

// verified fetches into tmp and checks the digest, twice if need be: a server that
// changes its file between two parts leaves a mixture.
func (f *fetcher) verified(ctx context.Context, u *url.URL, tmp string, l Located) error {
	var got string
	for range 2 {
		if err := os.Truncate(tmp, 0); err != nil {
			return err
		}
		if err := f.whole(ctx, u, tmp); err != nil {
			return err
		}
		var err error
		if got, _, err = hashFile(ctx, tmp); err != nil {
			return err
		}
		if got == l.SHA256 {
			return nil
		}
	}
	return &DigestError{File: mask(u), Got: got, Want: l.SHA256, From: l.SHA256From}
}

// whole fetches until the file is complete.
func (f *fetcher) whole(ctx context.Context, u *url.URL, tmp string) error {
	tried, before := 0, int64(0)
	err := f.again(ctx, func() (bool, error) {
		tried++
		err := f.part(ctx, u, tmp)
		if err == nil || !transient(err) {
			return false, err
		}
		if errors.Is(err, errRangeIgnored) {
			if err := os.Truncate(tmp, 0); err != nil {
				return false, err
			}
		}
		fi, statErr := os.Stat(tmp)
		if statErr != nil {
			return false, statErr
		}
		more := fi.Size() > before
		before = fi.Size()
		return more, err
	})
	if err != nil && ctx.Err() == nil && transient(err) {
		return fmt.Errorf("%w (tried %d times)", err, tried)
	}
	return err
}

// again tries until it goes well, or will not: as many times as there are attempts without any
// progress, which try tells, and ten times as many at the most.
func (f *fetcher) again(ctx context.Context, try func() (progress bool, err error)) error {
	wait := f.wait
	for failed, total := 1, 1; ; failed, total = failed+1, total+1 {
		progress, err := try()
		switch {
		case err == nil:
			return nil
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case !transient(err):
			return err
		}
		if progress {
			failed, wait = 1, f.wait
		}
		if failed >= f.attempts || total >= 10*f.attempts {
			return err
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return context.Cause(ctx)
		}
		wait = min(2*wait, longestWait)
	}
}

// part makes one attempt, continuing what tmp has.
func (f *fetcher) part(ctx context.Context, u *url.URL, tmp string) error {
	fi, err := os.Stat(tmp)
	if err != nil {
		return err
	}
	c := &getter.Client{
		Getters: []getter.Getter{&getter.HttpGetter{
			Client:                f.client,
			XTerraformGetDisabled: true,
			// go-getter asks with HEAD whether a file can be continued; there is
			// nothing to continue in an empty one.
			DoNotCheckHeadFirst: fi.Size() == 0,
			HeadFirstTimeout:    f.stall,
		}},
		// Not nil, which would mean all of them.
		Decompressors:   map[string]getter.Decompressor{},
		DisableSymlinks: true,
	}
	req := &getter.Request{Src: u.String(), Dst: tmp, GetMode: getter.ModeFile, Umask: 0o077}
	if f.progress != nil {
		req.ProgressListener = tracker(f.progress)
	}
	_, err = c.Get(ctx, req)
	if ue, ok := errors.AsType[*url.Error](err); ok {
		// It repeats the address, with secrets of its query.
		err = ue.Err
	}
	return err
}

// transient tells errors that another attempt may not meet.
func transient(err error) bool {
	if s, ok := errors.AsType[*statusError](err); ok {
		return s.code >= 500 || s.code == http.StatusRequestTimeout || s.code == http.StatusTooManyRequests
	}
	if _, ok := errors.AsType[*sizeError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*redirectError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return false
	}
	if _, ok := errors.AsType[*host.ForbiddenError](err); ok {
		return false
	}
	_, local := errors.AsType[*fs.PathError](err)
	return !local
}

// tracker is go-getter's progress listener.
type tracker func(done, total int64)

// TrackProgress wraps a download; current is what an earlier attempt brought.
func (t tracker) TrackProgress(_ string, current, total int64, stream io.ReadCloser) io.ReadCloser {
	if total < current {
		total = 0 // go-getter adds the length that the server did not say, -1
	}
	t(current, total)
	return &tracked{stream, t, current, total}
}

type tracked struct {
	io.ReadCloser
	report      tracker
	done, total int64
}

func (t *tracked) Read(p []byte) (int, error) {
	n, err := t.ReadCloser.Read(p)
	if n > 0 {
		t.done += int64(n)
		t.report(t.done, t.total)
	}
	return n, err
}
