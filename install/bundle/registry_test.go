package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"

	"github.com/nodeprep/nodeprep/internal/host"
)

// shelf is a registry with one repository, "x/y", and whatever faults a test wants.
type shelf struct {
	*httptest.Server
	// fault answers requests in the registry's place, where it returns true.
	fault func(w http.ResponseWriter, r *http.Request) bool

	mu        sync.Mutex
	blobs     map[string][]byte
	manifests map[string]ocispec.Descriptor // by tag and digest
	asked     []string
}

func newShelf(t *testing.T, secure bool) *shelf {
	s := &shelf{blobs: map[string][]byte{}, manifests: map[string]ocispec.Descriptor{}}
	s.Server = httptest.NewUnstartedServer(s)
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that distrust it are expected
	if secure {
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

func (s *shelf) host() string { return s.Listener.Addr().String() }

// ca is the certificate that signed the server's.
func (s *shelf) ca() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
}

func (s *shelf) put(mediaType string, b []byte) ocispec.Descriptor {
	s.mu.Lock()
	defer s.mu.Unlock()
	d := digest.FromBytes(b)
	s.blobs[d.String()] = b
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

func (s *shelf) putManifest(t *testing.T, mediaType string, v any, tags ...string) ocispec.Descriptor {
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	desc := s.put(mediaType, b)
	for _, name := range append(tags, desc.Digest.String()) {
		s.manifests[name] = desc
	}
	return desc
}

func (s *shelf) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.asked)
}

func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.asked = append(s.asked, r.Method+" "+r.URL.Path)
	s.mu.Unlock()
	if s.fault != nil && s.fault(w, r) {
		return
	}
	s.serve(w, r)
}

func (s *shelf) serve(w http.ResponseWriter, r *http.Request) {
	if name, ok := strings.CutPrefix(r.URL.Path, "/v2/x/y/manifests/"); ok {
		if desc, ok := s.manifests[name]; ok {
			w.Header().Set("Content-Type", desc.MediaType)
			w.Header().Set("Docker-Content-Digest", desc.Digest.String())
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(s.blobs[desc.Digest.String()]))
			return
		}
	}
	if name, ok := strings.CutPrefix(r.URL.Path, "/v2/x/y/blobs/"); ok {
		if b, ok := s.blobs[name]; ok {
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(b))
			return
		}
	}
	if r.URL.Path == "/v2/" {
		return
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusNotFound)
	_, _ = io.WriteString(w, `{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}`)
}

// noise is bytes that no two seeds have in common.
func noise(seed uint64, n int) []byte {
	b := make([]byte, n)
	r := rand.New(rand.NewPCG(seed, 0))
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

// quick is for tests: no proxy, no logins, and no patience.
func quick() RegistryOptions {
	return RegistryOptions{stall: 20 * time.Second, wait: time.Millisecond}
}

func TestParseRegistryRef(t *testing.T) {
	sum := "sha256:" + strings.Repeat("0a", 32)
	good := map[string]RegistryRef{
		"oci://registry.example.com/nodes/bundle@" + sum: {Host: "registry.example.com", Repository: "nodes/bundle", Digest: digest.Digest(sum)},
		"oci://Registry.Example.com:5000/b@" + sum:       {Host: "registry.example.com:5000", Repository: "b", Digest: digest.Digest(sum)},
		"oci://localhost:5000/b:v1.2@" + sum:             {Host: "localhost:5000", Repository: "b", Tag: "v1.2", Digest: digest.Digest(sum)},
		"oci://[::1]:5000/b@" + sum:                      {Host: "[::1]:5000", Repository: "b", Digest: digest.Digest(sum)},
	}
	for in, want := range good {
		got, err := ParseRegistryRef(in)
		if err != nil || got != want {
			t.Errorf("%s: got %+v, %v", in, got, err)
		}
	}
	bad := map[string]string{
		"oci://h/b:v1":                     "a tag can be moved to something else",
		"oci://h/b":                        "the digest is missing",
		"oci://h/b@sha256:12":              "the digest is not one",
		"oci://h/b@v1":                     "the digest is not one",
		"oci://h@" + sum:                   "the repository is not one",
		"oci:///b@" + sum:                  "the host is not one",
		"oci://user:S3CRET@h/b@" + sum:     "read oci://xxxxx@h/b@sha256:0a",
		"oci://user:S3C/RET@h/b@" + sum:    "no user and no password belong there",
		"oci://user:S3C@RET@h/b":           "read oci://xxxxx@h/b: no user",
		"oci://user:S3CRET@h":              "no user and no password belong there",
		"oci://h/B@" + sum:                 "the repository is not one",
		"oci://h/../../b@" + sum:           "the repository is not one",
		"oci://h/b:-@" + sum:               "the tag is not one",
		"oci://h/b?x=y@" + sum:             "the repository is not one",
		"https://registry.example.com/b@x": "does not begin with oci://",
	}
	for in, want := range bad {
		if _, err := ParseRegistryRef(in); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "S3C") {
			t.Errorf("%s: got %v, want %q", in, err, want)
		}
	}
}

// bundled puts a bundle's index with one blob on a shelf.
func bundled(t *testing.T, s *shelf) (address string, blob ocispec.Descriptor, content []byte) {
	content = noise(1, 300_000)
	blob = s.put(layerType, content)
	top := s.putManifest(t, ocispec.MediaTypeImageIndex, index(), "v1")
	return RegistryScheme + s.host() + "/x/y:v1@" + top.Digest.String(), blob, content
}

// readAll gets the index and the blob of a bundle.
func readAll(ctx context.Context, address string, blob ocispec.Descriptor, opt RegistryOptions) ([]byte, error) {
	b, err := openRegistry(ctx, address, opt)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	top, err := b.Index(ctx)
	if err != nil {
		return nil, err
	}
	if top.MediaType != ocispec.MediaTypeImageIndex || !strings.HasSuffix(address, top.Digest.String()) {
		return nil, fmt.Errorf("the index is %+v", top)
	}
	rc, err := b.Blob(ctx, blob)
	if err != nil {
		return nil, err
	}
	defer rc.Close()
	return io.ReadAll(rc)
}

func TestBundleFromARegistry(t *testing.T) {
	for _, secure := range []bool{false, true} {
		t.Run(fmt.Sprintf("tls %v", secure), func(t *testing.T) {
			s := newShelf(t, secure)
			address, blob, want := bundled(t, s)
			opt := quick()
			if secure {
				_, err := readAll(t.Context(), address, blob, opt)
				if err == nil || !strings.Contains(err.Error(), "--registry-ca FILE") || !strings.Contains(err.Error(), "nobody whom this machine trusts") {
					t.Errorf("without its authority: %v", err)
				}
				if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
					t.Errorf("without its authority: %v", err)
				}
				if got := s.requests(); len(got) != 0 {
					t.Errorf("before it was trusted, it was asked %q", got)
				}
				opt.CA = s.ca()
			}
			got, err := readAll(t.Context(), address, blob, opt)
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, %v", len(got), err)
			}
		})
	}
}

// What a server may do wrong, and what is said of it.
func TestRegistryFaults(t *testing.T) {
	cut := func(w http.ResponseWriter) {
		conn, _, err := w.(http.Hijacker).Hijack()
		if err == nil {
			conn.Close()
		}
	}
	isBlob := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
	status := func(code int) func(*shelf, int, http.ResponseWriter, *http.Request) bool {
		return func(_ *shelf, _ int, w http.ResponseWriter, _ *http.Request) bool {
			w.WriteHeader(code)
			return true
		}
	}
	tests := []struct {
		name string
		// fault is told how many requests of this kind (blob or not) there were before.
		fault func(s *shelf, nth int, w http.ResponseWriter, r *http.Request) bool
		want  string // of the error; "" is success
	}{
		{"not there", status(http.StatusNotFound), "does not have it"},
		{"wants a login", status(http.StatusUnauthorized), "wants a login; name docker's config.json with one in REGISTRY_AUTH_FILE"},
		{"forbids", status(http.StatusForbidden), "wants a login"},
		{"broken for good", status(http.StatusInternalServerError), "answered 500"},
		{"asked too often", status(http.StatusTooManyRequests), "has been asked too often"},
		{"broken for a while", func(_ *shelf, nth int, w http.ResponseWriter, _ *http.Request) bool {
			if nth < 3 {
				w.WriteHeader(http.StatusServiceUnavailable)
			}
			return nth < 3
		}, ""},
		{"hangs up at first", func(_ *shelf, nth int, w http.ResponseWriter, _ *http.Request) bool {
			if nth < 2 {
				cut(w)
			}
			return nth < 2
		}, ""},
		{"hangs up always", func(_ *shelf, _ int, w http.ResponseWriter, _ *http.Request) bool {
			cut(w)
			return true
		}, "ended the connection before the end"},
		{"cuts each answer short", func(s *shelf, _ int, w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) {
				return false
			}
			s.serve(&shortWriter{ResponseWriter: w, left: 30_000}, r) // ten times
			panic(http.ErrAbortHandler)
		}, ""},
		{"cuts one answer short and knows no ranges", func(s *shelf, nth int, w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) {
				return false
			}
			r.Header.Del("Range")
			left := 1 << 30
			if nth == 0 {
				left = 70_000
			}
			s.serve(&shortWriter{ResponseWriter: &noRanges{w}, left: left}, r)
			if nth == 0 {
				panic(http.ErrAbortHandler)
			}
			return true
		}, ""},
		{"never gets past a point", func(s *shelf, _ int, w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) {
				return false
			}
			r.Header.Del("Range")
			s.serve(&shortWriter{ResponseWriter: &noRanges{w}, left: 70_000}, r)
			panic(http.ErrAbortHandler)
		}, "ended the connection before the end"},
		{"sends too much", func(_ *shelf, _ int, w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) {
				return false
			}
			w.(http.Flusher).Flush() // no Content-Length
			_, _ = w.Write(make([]byte, 400_000))
			return true
		}, "is not what its digest says"},
		{"redirects within itself", func(_ *shelf, _ int, w http.ResponseWriter, r *http.Request) bool {
			if isBlob(r) && r.URL.RawQuery == "" {
				http.Redirect(w, r, r.URL.Path+"?again", http.StatusTemporaryRedirect)
				return true
			}
			return false
		}, ""},
		{"redirects to a signed address with something else", func(_ *shelf, _ int, w http.ResponseWriter, r *http.Request) bool {
			switch {
			case !isBlob(r):
				return false
			case r.URL.RawQuery == "":
				http.Redirect(w, r, r.URL.Path+"?signature=hidden", http.StatusTemporaryRedirect)
			default:
				_, _ = w.Write(make([]byte, 5))
			}
			return true
		}, "mismatch Content-Length"},
		{"redirects for ever", func(_ *shelf, _ int, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}, "ten redirects are enough"},
		{"redirects elsewhere", func(_ *shelf, _ int, w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, "https://storage.invalid/blob?signature=hidden", http.StatusTemporaryRedirect)
			return true
		}, "sends on to storage.invalid, and nothing but "},
		{"sends to a token server elsewhere", func(_ *shelf, _ int, w http.ResponseWriter, _ *http.Request) bool {
			w.Header().Set("WWW-Authenticate", `Bearer realm="https://auth.invalid/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, "sends on to auth.invalid, and nothing but "},
		{"says terminals what to do", func(_ *shelf, _ int, w http.ResponseWriter, r *http.Request) bool {
			if !isBlob(r) {
				return false
			}
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusBadRequest)
			_, _ = io.WriteString(w, `{"errors":[{"code":"X","message":"\u001b[2Jhello"}]}`)
			return true
		}, "answered 400: x:  [2Jhello"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf(t, false)
			address, blob, want := bundled(t, s)
			var mu sync.Mutex
			count := map[bool]int{}
			s.fault = func(w http.ResponseWriter, r *http.Request) bool {
				mu.Lock()
				nth := count[isBlob(r)]
				count[isBlob(r)]++
				mu.Unlock()
				return tt.fault(s, nth, w, r)
			}
			got, err := readAll(t.Context(), address, blob, quick())
			if n := len(s.requests()); n > 60 {
				t.Errorf("it was asked %d times", n)
			}
			if tt.want == "" {
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "read oci://"+s.host()+"/x/y@sha256:") {
				t.Errorf("got %v\nwant %q", err, tt.want)
			}
			if err != nil && strings.Contains(err.Error(), "hidden") {
				t.Errorf("the error tells a secret: %v", err)
			}
		})
	}
}

// shortWriter sends no more than left bytes of a body.
type shortWriter struct {
	http.ResponseWriter
	left int
}

func (s *shortWriter) Write(p []byte) (int, error) {
	n, err := s.ResponseWriter.Write(p[:min(len(p), s.left)])
	s.left -= n
	if err == nil && n < len(p) {
		s.ResponseWriter.(http.Flusher).Flush()
		err = io.ErrShortWrite
	}
	return n, err
}

// noRanges is a server that cannot continue.
type noRanges struct{ http.ResponseWriter }

func (n *noRanges) WriteHeader(code int) {
	n.Header().Del("Accept-Ranges")
	n.ResponseWriter.WriteHeader(code)
}

func (n *noRanges) Flush() { n.ResponseWriter.(http.Flusher).Flush() }

// A server that goes silent is given up, a user who interrupts is obeyed at once.
func TestRegistryStalls(t *testing.T) {
	s := newShelf(t, false)
	address, blob, _ := bundled(t, s)
	silent := make(chan struct{}, 100)
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(blob.Size))
		_, _ = w.Write(make([]byte, 100))
		w.(http.Flusher).Flush()
		silent <- struct{}{}
		<-r.Context().Done()
		return true
	}
	opt := quick()
	opt.stall = 50 * time.Millisecond
	_, err := readAll(t.Context(), address, blob, opt)
	if _, ok := errors.AsType[*host.StallError](err); !ok || !strings.Contains(err.Error(), "nothing came for 50ms") {
		t.Errorf("got %v", err)
	}
	stop := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	for len(silent) > 0 {
		<-silent
	}
	go func() {
		<-silent
		cancel(stop)
	}()
	if _, err = readAll(ctx, address, blob, quick()); !errors.Is(err, stop) {
		t.Errorf("interrupted: %v", err)
	}
}

func TestRegistryIsNotThere(t *testing.T) {
	s := newShelf(t, false)
	address, blob, _ := bundled(t, s)
	s.Close()
	_, err := readAll(t.Context(), address, blob, quick())
	if err == nil || !strings.Contains(err.Error(), "nothing listens at "+s.host()) {
		t.Errorf("got %v", err)
	}
}

// Whatever might ask for it, for a bundle no connection goes to another host.
func TestRegistryOfABundleIsAlone(t *testing.T) {
	s, other := newShelf(t, false), newShelf(t, false)
	r, err := quick().connect(t.Context(), registry.Reference{Registry: s.host(), Repository: "x/y"}, "it", true)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	resp, err := r.client.Get(other.URL)
	if err == nil {
		resp.Body.Close()
	}
	if want := "connect to " + other.host() + ": nothing but " + s.host() + " may be reached (--bundle)"; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
}

// With --offline not even the bundle's own registry is reached.
func TestRegistryOffline(t *testing.T) {
	s := newShelf(t, false)
	address, blob, _ := bundled(t, s)
	opt := quick()
	opt.Network = host.NoNetwork("--offline")
	_, err := readAll(t.Context(), address, blob, opt)
	want := "connect to " + s.host() + " for oci://" + s.host() + "/x/y@"
	if _, ok := errors.AsType[*host.ForbiddenError](err); !ok || !strings.HasPrefix(err.Error(), want) || !strings.HasSuffix(err.Error(), "(--offline)") {
		t.Errorf("got %v", err)
	}
	_, err = FetchImage(t.Context(), s.host()+"/x/y:1", nil, amd64, opt, io.Discard, nil)
	if want := "connect to " + s.host() + " for image " + s.host() + "/x/y:1: "; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("got %v", err)
	}
	if got := s.requests(); len(got) != 0 {
		t.Errorf("it was asked %q", got)
	}
}

func TestReadLogin(t *testing.T) {
	basic := func(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }
	tests := []struct {
		name, file, registry string
		want                 login
		fault                string
	}{
		{"by auth", `{"auths":{"h:5000":{"auth":"` + basic("bob:pa:ss") + `"}}}`, "h:5000", login{user: "bob", secret: "pa:ss"}, ""},
		{"docker ends some with zeros", `{"auths":{"h":{"auth":"` + basic("bob:pw\x00\x00") + `"}}}`, "h", login{user: "bob", secret: "pw"}, ""},
		{"by user and password", `{"auths":{"h":{"username":"bob","password":"pw"}}}`, "h", login{user: "bob", secret: "pw"}, ""},
		{"by identity token", `{"auths":{"h":{"auth":"` + basic("bob:") + `","identitytoken":"t"}}}`, "h", login{user: "bob", identity: "t"}, ""},
		{"by registry token", `{"auths":{"h":{"registrytoken":"t"}}}`, "h", login{token: "t"}, ""},
		{"by address", `{"auths":{"https://h/v1/":{"auth":"` + basic("bob:pw") + `"}}}`, "h", login{user: "bob", secret: "pw"}, ""},
		{"docker's own", `{"auths":{"https://index.docker.io/v1/":{"auth":"` + basic("bob:pw") + `"}}}`, "docker.io", login{user: "bob", secret: "pw"}, ""},
		{"the closest", `{"auths":{"h":{"auth":"` + basic("far:pw") + `"},"h/x":{"auth":"` + basic("near:pw") + `"},"h/z":{"auth":"` + basic("no:pw") + `"}}}`, "h", login{user: "near", secret: "pw"}, ""},
		{"another port is another registry", `{"auths":{"h":{"auth":"` + basic("bob:pw") + `"}}}`, "h:5000", login{}, ""},
		{"a helper for this one", `{"auths":{"h":{}},"credHelpers":{"h":"pass"},"credsStore":"desktop"}`, "h", login{helper: "pass"}, ""},
		{"a helper for all", `{"auths":{"h":{}},"credsStore":"desktop"}`, "h", login{helper: "desktop"}, ""},
		{"a login beside a helper", `{"auths":{"h":{"auth":"` + basic("bob:pw") + `"}},"credsStore":"desktop"}`, "h", login{user: "bob", secret: "pw"}, ""},
		{"nothing", `{}`, "h", login{}, ""},
		{"not JSON", `{"auths":{"h":{"auth":"hidden`, "h", login{}, "is not docker's config.json"},
		{"not base64", `{"auths":{"h":{"auth":"hidden!"}}}`, "h", login{}, `the auth of "h" is not base64`},
		{"no password", `{"auths":{"h":{"auth":"` + basic("hidden") + `"}}}`, "h", login{}, `the auth of "h" is not of the form user:password`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "config.json")
			if err := os.WriteFile(file, []byte(tt.file), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := readLogin(file, tt.registry, "x/y")
			if tt.fault != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fault) || !strings.Contains(err.Error(), file) || strings.Contains(err.Error(), "hidden") {
					t.Errorf("got %v, want %q", err, tt.fault)
				}
				return
			}
			tt.want.file = file
			if diff := cmp.Diff(tt.want, got, cmp.AllowUnexported(login{})); diff != "" || err != nil {
				t.Errorf("%v\n%s", err, diff)
			}
		})
	}
}

// What a registry that wants a login gets to see, and what is said when that is not enough.
func TestRegistryLogins(t *testing.T) {
	const right = `{"auths":{"HOST":{"username":"bob","password":"pw"}}}`
	tests := []struct {
		name    string
		file    string // HOST is the registry; "" is no file
		bearer  bool
		want    string // of the error; "" lets in
		refused string // never in the error
	}{
		{name: "basic", file: right},
		{name: "bearer", file: right, bearer: true},
		{name: "identity token", file: `{"auths":{"HOST":{"identitytoken":"refresh"}}}`, bearer: true},
		{name: "registry token", file: `{"auths":{"HOST":{"registrytoken":"token"}}}`, bearer: true},
		{name: "wrong password", file: `{"auths":{"HOST":{"username":"bob","password":"hidden"}}}`, want: `does not let user "bob" (from FILE) read it`},
		{name: "wrong password for a token", file: `{"auths":{"HOST":{"username":"bob","password":"hidden"}}}`, bearer: true, want: `does not let user "bob" (from FILE) read it`},
		{name: "wrong registry token", file: `{"auths":{"HOST":{"registrytoken":"hidden"}}}`, bearer: true, want: "does not take the token from FILE"},
		{name: "no file", want: "wants a login, and there is no FILE to take one from"},
		{name: "none for it", file: `{}`, want: "wants a login, and FILE has none for it"},
		{name: "a helper", file: `{"credsStore":"secretservice"}`, want: "FILE names the program docker-credential-secretservice, which nodeprep does not run"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf(t, false)
			address, blob, want := bundled(t, s)
			s.fault = func(w http.ResponseWriter, r *http.Request) bool {
				user, password, basic := r.BasicAuth()
				good := basic && user == "bob" && password == "pw"
				if r.URL.Path == "/token" {
					good = good || r.FormValue("refresh_token") == "refresh" && r.Method == http.MethodPost
					if good = good && r.FormValue("scope") == "repository:x/y:pull" && r.FormValue("service") == "s"; good {
						_, _ = io.WriteString(w, `{"token":"token"}`)
					} else {
						w.WriteHeader(http.StatusUnauthorized)
					}
					return true
				}
				challenge := `Basic realm="x"`
				if tt.bearer {
					challenge = `Bearer realm="` + s.URL + `/token",service="s",scope="repository:x/y:pull"`
					good = r.Header.Get("Authorization") == "Bearer token"
				}
				if !good {
					w.Header().Set("WWW-Authenticate", challenge)
					w.WriteHeader(http.StatusUnauthorized)
				}
				return !good
			}
			opt := quick()
			opt.DockerConfig = filepath.Join(t.TempDir(), "config.json")
			if tt.file != "" {
				if err := os.WriteFile(opt.DockerConfig, []byte(strings.ReplaceAll(tt.file, "HOST", s.host())), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			got, err := readAll(t.Context(), address, blob, opt)
			if tt.want == "" {
				if err != nil || !bytes.Equal(got, want) {
					t.Errorf("got %d bytes, %v", len(got), err)
				}
				return
			}
			if want := strings.ReplaceAll(tt.want, "FILE", opt.DockerConfig); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hidden") {
				t.Errorf("got %v\nwant %s", err, want)
			}
		})
	}
}

var amd64 = ocispec.Platform{OS: "linux", Architecture: "amd64"}

// image puts an image for one platform on a shelf.
func image(t *testing.T, s *shelf, p ocispec.Platform, docker bool, tags ...string) ocispec.Descriptor {
	configType, layer, manifestType := ocispec.MediaTypeImageConfig, ocispec.MediaTypeImageLayerGzip, ocispec.MediaTypeImageManifest
	if docker {
		configType, layer, manifestType = dockerConfig, "application/vnd.docker.image.rootfs.diff.tar.gzip", dockerManifest
	}
	config, err := json.Marshal(ocispec.Image{Platform: p})
	if err != nil {
		t.Fatal(err)
	}
	shared := s.put(layer, noise(7, 50_000))
	desc := s.putManifest(t, manifestType, ocispec.Manifest{
		Versioned: index().Versioned, MediaType: manifestType, Config: s.put(configType, config),
		// The same layer twice, as empty ones are.
		Layers: []ocispec.Descriptor{shared, s.put(layer, noise(uint64(len(p.Architecture)+len(p.Variant)), 30_000)), shared},
	}, tags...)
	desc.Platform = &p
	return desc
}

// unpacked are the files of an archive.
func unpacked(t *testing.T, b []byte) (names []string, files map[string][]byte) {
	files = map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if err == io.EOF {
			return names, files
		}
		if err != nil {
			t.Fatal(err)
		}
		if !h.ModTime.Equal(time.Unix(0, 0)) || h.Uid != 0 || h.Gid != 0 || h.Uname+h.Gname != "" || h.Typeflag != tar.TypeReg {
			t.Errorf("%s tells of where it was made: %+v", h.Name, h)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		if d, ok := strings.CutPrefix(h.Name, "blobs/sha256/"); ok && digest.FromBytes(content).Encoded() != d {
			t.Errorf("%s is another blob", h.Name)
		}
		names = append(names, h.Name)
		files[h.Name] = content
	}
}

func TestFetchImage(t *testing.T) {
	arm := ocispec.Platform{OS: "linux", Architecture: "arm64", Variant: "v8"}
	tests := []struct {
		name     string
		put      func(t *testing.T, s *shelf) ocispec.Descriptor // the amd64 one
		platform ocispec.Platform
	}{
		{"alone", func(t *testing.T, s *shelf) ocispec.Descriptor { return image(t, s, amd64, false, "1") }, amd64},
		{"alone, docker's", func(t *testing.T, s *shelf) ocispec.Descriptor { return image(t, s, amd64, true, "1") }, amd64},
		{"of several", func(t *testing.T, s *shelf) ocispec.Descriptor {
			d := image(t, s, amd64, false)
			attestation := image(t, s, ocispec.Platform{OS: "unknown", Architecture: "unknown"}, false)
			s.putManifest(t, ocispec.MediaTypeImageIndex, index(image(t, s, arm, false), attestation, d), "1")
			return d
		}, amd64},
		{"of several, docker's", func(t *testing.T, s *shelf) ocispec.Descriptor {
			d := image(t, s, arm, true)
			s.putManifest(t, dockerManifestList, index(image(t, s, amd64, true), d), "1")
			return d
		}, ocispec.Platform{OS: "linux", Architecture: "arm64"}},
		{"an index that does not say the platforms", func(t *testing.T, s *shelf) ocispec.Descriptor {
			a, d := image(t, s, arm, false), image(t, s, amd64, false)
			a.Platform, d.Platform = nil, nil
			inner := s.putManifest(t, ocispec.MediaTypeImageIndex, index(a, d))
			s.putManifest(t, ocispec.MediaTypeImageIndex, index(inner), "1")
			return d
		}, amd64},
		{"the lowest variant", func(t *testing.T, s *shelf) ocispec.Descriptor {
			d := image(t, s, amd64, false)
			s.putManifest(t, ocispec.MediaTypeImageIndex, index(image(t, s, ocispec.Platform{OS: "linux", Architecture: "amd64", Variant: "v3"}, false), d), "1")
			return d
		}, amd64},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf(t, false)
			want := tt.put(t, s)
			var a, b bytes.Buffer
			var done, total int64
			names := []string{"busybox", s.host() + "/x/y:1"}
			got, err := FetchImage(t.Context(), s.host()+"/x/y:1", names, tt.platform, quick(), &a, func(d, t int64) { done, total = d, t })
			if err != nil || got != want.Digest {
				t.Fatalf("got %s, %v, want %s", got, err, want.Digest)
			}
			if _, err := FetchImage(t.Context(), s.host()+"/x/y:1", names, tt.platform, quick(), &b, nil); err != nil || !bytes.Equal(a.Bytes(), b.Bytes()) {
				t.Errorf("a second time it is another archive: %v", err)
			}
			if done == 0 || done != total {
				t.Errorf("progress ended at %d of %d", done, total)
			}
			order, files := unpacked(t, a.Bytes())
			if len(order) != 6 || order[0] != "oci-layout" || order[1] != "index.json" || !slices.IsSorted(order[2:]) {
				t.Errorf("the archive has %q", order)
			}
			var index ocispec.Index
			if err := json.Unmarshal(files["index.json"], &index); err != nil {
				t.Fatal(err)
			}
			var said []map[string]string
			for _, m := range index.Manifests {
				if m.Digest != want.Digest || m.MediaType != want.MediaType || m.Platform == nil || m.Platform.Architecture != tt.platform.Architecture {
					t.Errorf("the index has %+v", m)
				}
				said = append(said, m.Annotations)
			}
			if diff := cmp.Diff([]map[string]string{
				{"io.containerd.image.name": "docker.io/library/busybox:latest", "org.opencontainers.image.ref.name": "latest"},
				{"io.containerd.image.name": s.host() + "/x/y:1", "org.opencontainers.image.ref.name": "1"},
			}, said); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestFetchImageRefuses(t *testing.T) {
	other := "busybox@sha256:" + strings.Repeat("0", 64)
	tests := []struct {
		name string
		put  func(t *testing.T, s *shelf)
		from string // of the repository; ":1" otherwise
		as   string
		want string
	}{
		{name: "another platform", put: func(t *testing.T, s *shelf) {
			a, b := ocispec.Platform{OS: "linux", Architecture: "arm", Variant: "v7"}, ocispec.Platform{OS: "windows", Architecture: "amd64"}
			unknown := ocispec.Platform{OS: "unknown", Architecture: "unknown"}
			s.putManifest(t, ocispec.MediaTypeImageIndex, index(image(t, s, b, false), image(t, s, a, false), image(t, s, unknown, false)), "1")
		}, want: "it is not there for linux/amd64; it has linux/arm/v7, windows/amd64"},
		{name: "what some machines of another architecture run", put: func(t *testing.T, s *shelf) {
			image(t, s, ocispec.Platform{OS: "linux", Architecture: "386"}, false, "1")
		}, want: "it is not there for linux/amd64; it has linux/386"},
		{name: "another platform, alone", put: func(t *testing.T, s *shelf) {
			image(t, s, ocispec.Platform{OS: "linux", Architecture: "s390x"}, false, "1")
		}, want: "it is not there for linux/amd64; it has linux/s390x"},
		{name: "schema 1", put: func(t *testing.T, s *shelf) {
			s.putManifest(t, dockerSchema1+"prettyjws", map[string]int{"schemaVersion": 1}, "1")
		}, want: "it has docker's schema 1, which containerd no longer runs"},
		{name: "a chart", put: func(t *testing.T, s *shelf) {
			s.putManifest(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: s.put("application/vnd.cncf.helm.config.v1+json", []byte("{}"))}, "1")
		}, want: `it is no image: its config is "application/vnd.cncf.helm.config.v1+json"`},
		{name: "indexes without end", put: func(t *testing.T, s *shelf) {
			d := image(t, s, amd64, false)
			for range 5 {
				d = s.putManifest(t, ocispec.MediaTypeImageIndex, index(d), "1")
			}
		}, want: "it has indexes in indexes"},
		{name: "not there", put: func(t *testing.T, s *shelf) { image(t, s, amd64, false, "1") }, from: ":2", want: "does not have it"},
		{name: "a missing layer", put: func(t *testing.T, s *shelf) {
			image(t, s, amd64, false, "1")
			delete(s.blobs, digest.FromBytes(noise(7, 50_000)).String())
		}, want: digest.FromBytes(noise(7, 50_000)).String() + ": "},
		{name: "a wrong layer", put: func(t *testing.T, s *shelf) {
			image(t, s, amd64, false, "1")
			s.blobs[digest.FromBytes(noise(7, 50_000)).String()] = noise(8, 50_000)
		}, want: digest.FromBytes(noise(7, 50_000)).String() + ": what "},
		{name: "a wrong manifest", put: func(t *testing.T, s *shelf) {
			d := image(t, s, amd64, false, "1")
			b := bytes.Clone(s.blobs[d.Digest.String()])
			b[10]++
			s.blobs[d.Digest.String()] = b
		}, want: "sent is not what its digest says"},
		{name: "a name with another digest", put: func(t *testing.T, s *shelf) { image(t, s, amd64, false, "1") }, as: other, want: "cannot be named docker.io/library/" + other},
		{name: "no name", put: func(t *testing.T, s *shelf) { image(t, s, amd64, false, "1") }, as: "Not A Name", want: `read image name "Not A Name": it is not the name of an image`},
		{name: "a digest that is not a path", put: func(t *testing.T, s *shelf) {
			s.putManifest(t, ocispec.MediaTypeImageManifest, ocispec.Manifest{
				Config: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageConfig, Digest: "sha256:../../../../etc/passwd", Size: 1},
			}, "1")
		}, want: "the manifest has a digest or size that is none"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := newShelf(t, false)
			tt.put(t, s)
			if tt.from == "" {
				tt.from = ":1"
			}
			var names []string
			if tt.as != "" {
				names = []string{tt.as}
			}
			_, err := FetchImage(t.Context(), s.host()+"/x/y"+tt.from, names, amd64, quick(), io.Discard, nil)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !strings.HasPrefix(err.Error(), "read image "+s.host()+"/x/y"+tt.from+": ") {
				t.Errorf("got %v\nwant %q", err, tt.want)
			}
		})
	}
}

// An image may come from a storage elsewhere; the login stays with the registry.
func TestFetchImageFollowsRedirectsWithoutTheLogin(t *testing.T) {
	s, storage := newShelf(t, false), newShelf(t, false)
	want := image(t, s, amd64, false, "1")
	storage.blobs = s.blobs
	var mu sync.Mutex
	var told []string
	storage.fault = func(_ http.ResponseWriter, r *http.Request) bool {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, r.Header.Get("Authorization"))
		return false
	}
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if _, password, ok := r.BasicAuth(); !ok || password != "pw" {
			w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		if strings.Contains(r.URL.Path, "/blobs/") {
			http.Redirect(w, r, storage.URL+r.URL.Path, http.StatusTemporaryRedirect)
			return true
		}
		return false
	}
	opt := quick()
	opt.DockerConfig = filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(opt.DockerConfig, fmt.Appendf(nil, `{"auths":{%q:{"username":"bob","password":"pw"}}}`, s.host()), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := FetchImage(t.Context(), s.host()+"/x/y@"+want.Digest.String(), nil, amd64, opt, io.Discard, nil); err != nil || got != want.Digest {
		t.Fatalf("got %s, %v", got, err)
	}
	if len(told) == 0 || strings.Join(told, "") != "" {
		t.Errorf("the storage was told %q", told)
	}
}

// For an image the server of tokens may be another one, but a login never goes over the
// network in the clear.
func TestFetchImageAsksATokenServer(t *testing.T) {
	s, tokens := newShelf(t, false), newShelf(t, false)
	want := image(t, s, amd64, false, "1")
	tokens.fault = func(w http.ResponseWriter, _ *http.Request) bool {
		_, _ = io.WriteString(w, `{"access_token":"token"}`)
		return true
	}
	var realm string
	s.fault = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer token" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+realm+`",service="s"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	for at, fault := range map[string]string{
		tokens.URL + "/token":          "",
		"http://auth.invalid/token":    "sends logins to http://auth.invalid, and nothing but https is good for that",
		"file:///etc/passwd":           "names no server of tokens",
		"ftp://" + tokens.host() + "/": "nothing but https is good for that",
	} {
		realm = at
		got, err := FetchImage(t.Context(), s.host()+"/x/y:1", nil, amd64, quick(), io.Discard, nil)
		if fault == "" && (err != nil || got != want.Digest) || fault != "" && (err == nil || !strings.Contains(err.Error(), fault)) {
			t.Errorf("%s: got %s, %v, want %q", at, got, err, fault)
		}
	}
}

func TestParseImageSource(t *testing.T) {
	tests := map[string][2]string{
		"pause":                                 {"docker.io/library/pause:latest", "docker.io/library/pause:latest"},
		"registry.k8s.io/pause:3.10=mirror:5/p": {"registry.k8s.io/pause:3.10", "mirror:5/p:latest"},
	}
	for in, want := range tests {
		name, from, err := ParseImageSource(in)
		if err != nil || name != want[0] || from != want[1] {
			t.Errorf("%s: got %s, %s, %v", in, name, from, err)
		}
	}
	for in, want := range map[string]string{
		"":                 "is not the name of an image",
		"a=":               "is not the name of an image",
		"docker://busybox": "the name of an image has no scheme",
	} {
		if _, _, err := ParseImageSource(in); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, want %q", in, err, want)
		}
	}
}
