package release

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// origin is a server of one file that misbehaves as told. It counts what it was asked.
type origin struct {
	*httptest.Server
	content     []byte
	gets, heads atomic.Int32
	// answer, if set, may answer the nth GET itself.
	answer func(n int, w http.ResponseWriter, r *http.Request) bool

	mu     sync.Mutex
	ranges []string
}

func (o *origin) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method == http.MethodHead {
		o.heads.Add(1)
	} else {
		n := int(o.gets.Add(1))
		o.mu.Lock()
		o.ranges = append(o.ranges, r.Header.Get("Range"))
		o.mu.Unlock()
		if o.answer != nil && o.answer(n, w, r) {
			return
		}
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(o.content))
}

func serve(t *testing.T, content []byte, answer func(n int, w http.ResponseWriter, r *http.Request) bool) *origin {
	t.Helper()
	o := &origin{content: content, answer: answer}
	o.Server = httptest.NewServer(o)
	t.Cleanup(o.Close)
	return o
}

// cut sends the first half of a promised whole and hangs up.
func cut(content []byte) func(int, http.ResponseWriter, *http.Request) bool {
	return func(n int, w http.ResponseWriter, r *http.Request) bool {
		if n > 1 {
			return false
		}
		w.Header().Set("Accept-Ranges", "bytes")
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		_, _ = w.Write(content[:len(content)/2])
		panic(http.ErrAbortHandler)
	}
}

func noise(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{1})
	_, _ = r.Read(b)
	return b
}

// store fetches content's artifact from the given addresses, without upstream.
func store(t *testing.T, content []byte, urls ...string) (*Store, desired.Artifact) {
	t.Helper()
	s := &Store{CacheDir: filepath.Join(t.TempDir(), "cache"), firstWait: time.Millisecond}
	for _, u := range urls {
		s.Sources = append(s.Sources, desired.Source{URL: u})
	}
	a := artifact(t, content)
	a.URL = ""
	return s, a
}

func fetch(t *testing.T, s *Store, a desired.Artifact, progress func(done, total int64)) (Located, error) {
	t.Helper()
	l, err := s.Locate(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	return s.Fetch(t.Context(), l, progress)
}

// arrived fails unless the cache has exactly the one file, whole and private.
func arrived(t *testing.T, s *Store, l Located, content []byte) {
	t.Helper()
	got, err := os.ReadFile(l.Path)
	if err != nil || !bytes.Equal(got, content) || l.Size != int64(len(content)) {
		t.Fatalf("%s: %d bytes (said %d), %v; want %d", l.Path, len(got), l.Size, err, len(content))
	}
	if names := entries(t, s.CacheDir); len(names) != 1 || names[0] != sumOf(content)+"-"+tarball {
		t.Errorf("cache has %q", names)
	}
	for p, want := range map[string]fs.FileMode{s.CacheDir: 0o700, l.Path: 0o600} {
		if fi, err := os.Stat(p); err != nil || fi.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", p, fi.Mode(), err)
		}
	}
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

func TestFetchIntoTheCache(t *testing.T) {
	content := noise(300 << 10)
	o := serve(t, content, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path != "/r/containerd/1.7.99/amd64/"+tarball {
			http.NotFound(w, r)
			return true
		}
		if u, p, _ := r.BasicAuth(); u != "ci" || p != "hunter2" {
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		// A label that makes other clients unpack it on the way.
		w.Header().Set("Content-Encoding", "gzip")
		w.Header().Set("Content-Length", strconv.Itoa(len(content)))
		w.Header().Set("X-Terraform-Get", "http://127.0.0.1:1/elsewhere")
		return false
	})
	s, a := store(t, content, strings.Replace(o.URL, "http://", "http://ci:hunter2@", 1)+"/r/{component}/{version}/{arch}/{file}")
	var last, total int64
	l, err := fetch(t, s, a, func(d, n int64) {
		if d < last {
			t.Errorf("progress went back from %d to %d", last, d)
		}
		last, total = d, n
	})
	if err != nil {
		t.Fatal(err)
	}
	arrived(t, s, l, content)
	if last != int64(len(content)) || total != int64(len(content)) {
		t.Errorf("progress ended at %d of %d", last, total)
	}
	if strings.Contains(fmt.Sprint(l.URL, l.Place), "hunter2") {
		t.Errorf("password shown: %s", l.URL)
	}
	// The next run has it at hand and asks nobody.
	before := o.gets.Load()
	if l, err = fetch(t, s, a, nil); err != nil || l.Place != "cache" || o.gets.Load() != before {
		t.Errorf("%+v, %v, %d requests", l, err, o.gets.Load()-before)
	}
}

func TestFetchSurvives(t *testing.T) {
	content := noise(256 << 10)
	for _, c := range []struct {
		name   string
		answer func(o *origin) func(int, http.ResponseWriter, *http.Request) bool
		stall  time.Duration
		gets   int32
		ranges []string // nil: not looked at
	}{
		{name: "a connection that breaks off: the rest is asked for", gets: 2, ranges: []string{"", fmt.Sprintf("bytes=%d-", len(content)/2)},
			answer: func(*origin) func(int, http.ResponseWriter, *http.Request) bool { return cut(content) }},
		{name: "an error 500", gets: 2,
			answer: func(*origin) func(int, http.ResponseWriter, *http.Request) bool {
				return func(n int, w http.ResponseWriter, r *http.Request) bool {
					if n == 1 {
						w.WriteHeader(http.StatusInternalServerError)
					}
					return n == 1
				}
			}},
		{name: "a range that is ignored: the whole is not appended", gets: 3,
			answer: func(*origin) func(int, http.ResponseWriter, *http.Request) bool {
				first := cut(content)
				return func(n int, w http.ResponseWriter, r *http.Request) bool {
					r.Header.Del("Range")
					return first(n, w, r)
				}
			}},
		{name: "a server that goes silent", gets: 2, stall: 50 * time.Millisecond,
			answer: func(*origin) func(int, http.ResponseWriter, *http.Request) bool {
				return func(n int, w http.ResponseWriter, r *http.Request) bool {
					if n > 1 {
						return false
					}
					w.Header().Set("Content-Length", strconv.Itoa(len(content)))
					_, _ = w.Write(content[:1000])
					_ = http.NewResponseController(w).Flush()
					<-r.Context().Done() // the client gave up
					return true
				}
			}},
		{name: "wrong content at first", gets: 2, ranges: []string{"", ""},
			answer: func(*origin) func(int, http.ResponseWriter, *http.Request) bool {
				return func(n int, w http.ResponseWriter, r *http.Request) bool {
					if n == 1 {
						_, _ = w.Write([]byte("<html>please log in</html>"))
					}
					return n == 1
				}
			}},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := serve(t, content, nil)
			o.answer = c.answer(o)
			s, a := store(t, content, o.URL+"/{file}")
			s.StallTimeout = c.stall
			l, err := fetch(t, s, a, func(int64, int64) {})
			if err != nil {
				t.Fatal(err)
			}
			arrived(t, s, l, content)
			if got := o.gets.Load(); got != c.gets {
				t.Errorf("%d requests, want %d", got, c.gets)
			}
			if c.ranges != nil && strings.Join(o.ranges, ",") != strings.Join(c.ranges, ",") {
				t.Errorf("ranges %q, want %q", o.ranges, c.ranges)
			}
		})
	}
}

func TestFetchTriesTheNextPlace(t *testing.T) {
	content := noise(1000)
	gone := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(gone.Close)
	o := serve(t, content, nil)
	s, a := store(t, content, gone.URL+"/{file}", o.URL+"/{file}")
	l, err := fetch(t, s, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	arrived(t, s, l, content)
	if l.URL != o.URL+"/"+tarball {
		t.Error(l.URL)
	}
}

func TestFetchRefuses(t *testing.T) {
	content := noise(64 << 10)
	always := func(status int, body []byte) func(int, http.ResponseWriter, *http.Request) bool {
		return func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(status)
			_, _ = w.Write(body)
			return true
		}
	}
	for _, c := range []struct {
		name   string
		answer func(int, http.ResponseWriter, *http.Request) bool
		set    func(*Store)
		want   string
		gets   int32
	}{
		{name: "404 everywhere", answer: always(404, nil), gets: 1, want: "find " + tarball + " for containerd 1.7.99: not to be had from any of these places:\n  cache CACHE: no such file\n  source URL/" + tarball + "?xxxxx: the server answered 404 Not Found"},
		{name: "403", answer: always(403, nil), gets: 1, want: "the server answered 403 Forbidden"},
		{name: "500 for ever", answer: always(500, nil), gets: 5, want: "the server answered 500 Internal Server Error (tried 5 times)"},
		{name: "silence for ever", gets: 5, set: func(s *Store) { s.StallTimeout = 20 * time.Millisecond }, want: "nothing came for 20ms (tried 5 times)",
			answer: func(_ int, w http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }},
		{name: "too big by its header", gets: 1, set: func(s *Store) { s.MaxBytes = 32 << 10 }, want: "the file is larger than the limit of 32768 bytes"},
		{name: "too big without one", gets: 1, set: func(s *Store) { s.MaxBytes = 32 << 10 }, want: "the file is larger than the limit of 32768 bytes",
			answer: func(_ int, w http.ResponseWriter, _ *http.Request) bool {
				_ = http.NewResponseController(w).Flush() // chunked from here on
				_, _ = w.Write(content)
				return true
			}},
		{name: "wrong content for ever", answer: always(200, []byte("evil")), gets: 2,
			want: "verify URL/" + tarball + "?xxxxx: sha256 mismatch: got " + sumOf([]byte("evil")) + ", want " + sumOf(content) + " (from profile)"},
		{name: "a redirect to another kind of address", gets: 1, want: "redirect to ftp://xxxxx@evil.example/x refused: it leaves http for ftp",
			answer: func(_ int, w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "ftp://u:secret@evil.example/x", http.StatusFound)
				return true
			}},
		{name: "a redirect in a circle", gets: 10, want: "ten redirects are enough",
			answer: func(_ int, w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, r.URL.String(), http.StatusFound)
				return true
			}},
		{name: "offline", set: func(s *Store) { s.Offline = true }, want: "fetch URL/" + tarball + "?xxxxx for containerd 1.7.99: the network may not be used (--offline)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := serve(t, content, c.answer)
			s, a := store(t, content, o.URL+"/{file}?token=secret")
			if c.set != nil {
				c.set(s)
			}
			_, err := fetch(t, s, a, func(int64, int64) {}) // with a listener go-getter caps nothing
			want := strings.NewReplacer("URL", o.URL, "CACHE", s.CacheDir).Replace(c.want)
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if err != nil && strings.Contains(err.Error(), "secret") {
				t.Errorf("a secret is shown: %v", err)
			}
			if got := o.gets.Load(); got != c.gets {
				t.Errorf("%d requests, want %d", got, c.gets)
			}
			if names := entries(t, s.CacheDir); len(names) > 0 {
				t.Errorf("left behind: %q", names)
			}
		})
	}
}

func TestFetchOverTLS(t *testing.T) {
	content := noise(1000)
	plain := serve(t, content, nil)
	var to string
	o := &origin{content: content, answer: func(_ int, w http.ResponseWriter, r *http.Request) bool {
		if to == "" {
			return false
		}
		http.Redirect(w, r, to, http.StatusFound)
		return true
	}}
	o.Server = httptest.NewUnstartedServer(o)
	o.Config.ErrorLog = log.New(io.Discard, "", 0) // a client that distrusts it is expected
	o.StartTLS()
	t.Cleanup(o.Close)

	s, a := store(t, content, o.URL+"/{file}")
	if _, err := fetch(t, s, a, nil); err == nil || !strings.Contains(err.Error(), "certificate signed by unknown authority") || o.gets.Load() != 0 {
		t.Errorf("an unknown certificate: %v, %d requests", err, o.gets.Load())
	}
	s.transport = o.Client().Transport
	to = plain.URL + "/x"
	if _, err := fetch(t, s, a, nil); err == nil || !strings.Contains(err.Error(), "redirect to "+to+" refused: it leaves https for http") || plain.gets.Load() != 0 {
		t.Errorf("a downgrade: %v, %d requests", err, plain.gets.Load())
	}
	to = ""
	// From http to https is no loss.
	up := serve(t, nil, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		http.Redirect(w, r, o.URL+"/x", http.StatusFound)
		return true
	})
	s.Sources[0].URL = up.URL + "/{file}"
	l, err := fetch(t, s, a, nil)
	if err != nil {
		t.Fatal(err)
	}
	arrived(t, s, l, content)
}

func TestFetchEndsWithItsContext(t *testing.T) {
	content := noise(1000)
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("interrupted")
	o := serve(t, content, func(_ int, w http.ResponseWriter, r *http.Request) bool {
		cancel(stop)
		<-r.Context().Done()
		return true
	})
	s, a := store(t, content, o.URL+"/{file}")
	l, err := s.Locate(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Fetch(ctx, l, nil); !errors.Is(err, stop) {
		t.Error(err)
	}
	if names := entries(t, s.CacheDir); len(names) > 0 {
		t.Errorf("left behind: %q", names)
	}
}

func TestCacheThatOthersCanWrite(t *testing.T) {
	content := noise(1000)
	o := serve(t, content, nil)
	s, a := store(t, content, o.URL+"/{file}")
	if err := os.Mkdir(s.CacheDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(s.CacheDir, 0o777); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(t, s, a, nil); err == nil || !strings.Contains(err.Error(), "others may write to it (mode 0777)") {
		t.Error(err)
	}
}

func TestCacheIsClearedOfOldPieces(t *testing.T) {
	content := noise(1000)
	o := serve(t, content, nil)
	s, a := store(t, content, o.URL+"/{file}")
	old := write(t, filepath.Join(s.CacheDir, partial+"old"), nil)
	fresh := write(t, filepath.Join(s.CacheDir, partial+"fresh"), nil) // another run's
	long := time.Now().Add(-48 * time.Hour)
	if err := os.Chtimes(old, long, long); err != nil {
		t.Fatal(err)
	}
	if _, err := fetch(t, s, a, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(old); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the old piece is still there: %v", err)
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Error(err)
	}
}
