package release

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/internal/host"
)

// A download goes on where the connection broke, waits for a server that is not ready, and
// takes nothing that has another digest.
func TestDownload(t *testing.T) {
	content := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
	other := bytes.Repeat([]byte("fedcba9876543210"), 64<<10)
	hash := sha256.Sum256(content)
	sum := hex.EncodeToString(hash[:])
	// half sends half of a file, and then nothing.
	half := func(w http.ResponseWriter, r *http.Request, data []byte) bool {
		w.Header().Set("Content-Length", fmt.Sprint(len(data)))
		_, _ = w.Write(data[:len(data)/2])
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		return true
	}
	for name, tt := range map[string]struct {
		answer func(n int, w http.ResponseWriter, r *http.Request) bool
		gets   int32
		fails  func(error) bool
		ends   time.Duration // when the context does
		// continued wants a request for the rest.
		continued bool
	}{
		"at once": {gets: 1},
		"broken": {continued: true, answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			return n == 1 && half(w, r, content)
		}},
		"not ready": {gets: 3, answer: func(n int, w http.ResponseWriter, _ *http.Request) bool {
			if n < 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return n < 3
		}},
		"replaced between two parts": {continued: true, answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			return n == 1 && half(w, r, other)
		}},
		"no ranges": {continued: true, answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			if n == 1 {
				return half(w, r, content)
			}
			_, _ = w.Write(content)
			return true
		}},
		"shorter than it was": {continued: true, answer: func(n int, w http.ResponseWriter, r *http.Request) bool {
			switch {
			case n == 1:
				return half(w, r, append(bytes.Clone(content), content...))
			case r.Header.Get("Range") != "":
				w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
				return true
			}
			return false
		}},
		"another file": {gets: 1, answer: func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			_, _ = w.Write(other)
			return true
		}, fails: func(err error) bool {
			d, ok := errors.AsType[*DigestError](err)
			return ok && d.Want == sum && !strings.Contains(err.Error(), "secret")
		}},
		"not there": {gets: 1, answer: func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusNotFound)
			return true
		}, fails: func(err error) bool {
			return strings.Contains(err.Error(), "404") && !strings.Contains(err.Error(), "secret")
		}},
		"too large": {gets: 1, answer: func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("Content-Length", fmt.Sprint(1<<40))
			return true
		}, fails: func(err error) bool { return strings.Contains(err.Error(), "larger than the limit") }},
		"it stalls until time is up": {ends: 300 * time.Millisecond, answer: func(_ int, w http.ResponseWriter, r *http.Request) bool {
			_, _ = w.Write(content[:1000])
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}, fails: func(err error) bool { return strings.Contains(err.Error(), "gave up") }},
		"never ready": {ends: 300 * time.Millisecond, answer: func(_ int, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(http.StatusBadGateway)
			return true
		}, fails: func(err error) bool {
			return strings.Contains(err.Error(), "gave up") && strings.Contains(err.Error(), "502")
		}},
	} {
		t.Run(name, func(t *testing.T) {
			o := serve(t, content, tt.answer)
			f, err := os.Create(filepath.Join(t.TempDir(), "bundle"))
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			ctx := t.Context()
			if tt.ends > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeoutCause(ctx, tt.ends, errors.New("gave up"))
				defer cancel()
			}
			stall := time.Minute
			if tt.continued {
				stall = 250 * time.Millisecond
			}
			s := &Store{firstWait: time.Millisecond, StallTimeout: stall, MaxBytes: 8 << 20}
			last := int64(0)
			err = s.Download(ctx, o.URL+"/bundle?sig=secret", sum, f, func(done, _ int64) { last = done })
			if tt.fails != nil {
				if err == nil || !tt.fails(err) {
					t.Fatalf("%v", err)
				}
			} else if err != nil {
				t.Fatal(err)
			}
			if got := o.gets.Load(); tt.gets > 0 && got != tt.gets {
				t.Errorf("%d requests, want %d", got, tt.gets)
			}
			o.mu.Lock()
			if asked := strings.Join(o.ranges, ""); tt.continued && !strings.Contains(asked, "bytes=") {
				t.Error("nothing was gone on with")
			}
			o.mu.Unlock()
			if tt.fails != nil {
				return
			}
			if _, err := f.Seek(0, io.SeekStart); err != nil {
				t.Fatal(err)
			}
			if got, err := io.ReadAll(f); err != nil || !bytes.Equal(got, content) || last != int64(len(content)) {
				t.Errorf("%d bytes, told of %d, %v", len(got), last, err)
			}
		})
	}
}

func TestDownloadForbidden(t *testing.T) {
	o := serve(t, []byte("x"), nil)
	_, offline := errors.AsType[*OfflineError]((&Store{Offline: true}).Download(t.Context(), o.URL, "", nil, nil))
	_, forbidden := errors.AsType[*host.ForbiddenError]((&Store{Network: host.NoNetwork("--offline")}).Download(t.Context(), o.URL, "", nil, nil))
	if !offline || !forbidden || o.gets.Load() > 0 {
		t.Errorf("offline %v, forbidden %v, %d requests", offline, forbidden, o.gets.Load())
	}
}
