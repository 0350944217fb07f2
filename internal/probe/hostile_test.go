package probe

import (
	"cmp"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/internal/host"
)

// everywhere resolves all names to this machine.
func everywhere(context.Context, string) ([]netip.Addr, error) {
	return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
}

// A registry that sends on to ever new hosts, each of which asks for credentials, does not
// keep the probe for ever; nor does one that sends on and on.
func TestEndlessRedirects(t *testing.T) {
	for name, c := range map[string]struct {
		asks bool
		want string
		most int64
	}{
		"asking for credentials": {true, "-auth: 401: not authorized | 5 requests, each sent on", 20},
		"only sending on":        {false, "-manifest: more than 10 redirects", 20},
	} {
		t.Run(name, func(t *testing.T) {
			var n atomic.Int64
			var port string
			s := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				i := n.Add(1)
				if i > 200 {
					panic(http.ErrAbortHandler)
				}
				if c.asks && strings.HasPrefix(r.Host, "h") {
					w.Header().Set("WWW-Authenticate", `Basic realm="x"`)
					w.WriteHeader(http.StatusUnauthorized)
					return
				}
				http.Redirect(w, r, fmt.Sprintf("http://h%d.example%s/x", i, port), http.StatusFound)
			}), nil)
			port = s.URL[strings.LastIndexByte(s.URL, ':'):]
			a := &Asker{Lookup: everywhere, Credentials: credentials(Credential{User: "robot", Secret: password, From: "config.toml:7"})}
			expect(t, ask(t, a, app(), hostOf(s.URL, "/v2")), c.want)
			if n.Load() > c.most {
				t.Errorf("%d requests", n.Load())
			}
		})
	}
}

// forever is a body without an end.
func forever(w http.ResponseWriter) {
	block := []byte(strings.Repeat("x", 64<<10))
	_, _ = io.WriteString(w, `{"token": "`)
	for range 2000 {
		if _, err := w.Write(block); err != nil {
			return
		}
	}
	_, _ = io.WriteString(w, `"}`)
}

// No answer is read without end, and none keeps its text.
func TestLongAnswers(t *testing.T) {
	long := strings.Repeat("9", 200_000)
	var sent atomic.Int64
	counted := func(w http.ResponseWriter) {
		forever(writerFunc{w, func(n int) { sent.Add(int64(n)) }})
	}
	for _, c := range []struct {
		name  string
		guard func(http.ResponseWriter, *http.Request) bool
		want  string
	}{
		{"a token", func(w http.ResponseWriter, r *http.Request) bool {
			if r.URL.Path == "/token" {
				counted(w)
				return true
			}
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}, ": the answer has no end, or is far too long"},
		{"a manifest", func(w http.ResponseWriter, r *http.Request) bool {
			if strings.Contains(r.URL.Path, "/manifests/sha256") {
				counted(w)
				return true
			}
			return false
		}, "-content: the manifest is too large for containerd"},
		{"a manifest without a length", func(w http.ResponseWriter, r *http.Request) bool {
			if r.Method == http.MethodGet && strings.HasSuffix(r.URL.Path, "/manifests/1") {
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				counted(w)
				return true
			}
			if strings.HasSuffix(r.URL.Path, "/manifests/1") {
				w.Header().Set("Transfer-Encoding", "chunked")
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				return true
			}
			return false
		}, "-manifest: the manifest is too large for containerd"},
		{"Retry-After", below(answer(429, "Retry-After", long)), "-manifest: 429: too many requests | Retry-After: (a text of 200000 bytes)"},
		{"a scope", below(answer(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/`+long+`",scope="`+strings.Repeat("s", 3000)+`"`)), "-auth"},
		{"a digest", below(answer(200, "Docker-Content-Digest", long, "Content-Length", "3", "Content-Type", ocispec.MediaTypeImageManifest)), "-manifest: the digest that it names is none"},
		{"headers", answer(200, "X-A", strings.Repeat("a", 1<<20), "X-B", strings.Repeat("b", 1<<20)), "-api: the request failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			sent.Store(0)
			d := newDepot("/v2")
			d.guard = c.guard
			got := ask(t, &Asker{}, app(), hostOf(serve(t, d, nil).URL, "/v2"))
			expect(t, got, c.want)
			for _, s := range got.Steps {
				if n := len(s.Verdict) + len(s.Detail); n > 2000 {
					t.Errorf("step %s says %d bytes", s.Name, n)
				}
			}
			// What the sockets on the way hold is of no interest.
			if n := sent.Load(); n > 64<<20 {
				t.Errorf("%d bytes were read", n)
			}
		})
	}
}

type writerFunc struct {
	http.ResponseWriter
	wrote func(int)
}

func (w writerFunc) Write(p []byte) (int, error) {
	n, err := w.ResponseWriter.Write(p)
	w.wrote(n)
	return n, err
}

// Whatever a server repeats of what it got, and in which form: nobody sees it.
func TestServersThatRepeatSecrets(t *testing.T) {
	long := strings.Repeat("pad-", 40)
	secrets := map[string]struct {
		cred   Credential
		header http.Header
		tokens http.Header
		is     string
	}{
		"password":          {cred: Credential{User: "robot", Secret: password, From: "c"}, is: password},
		"identity token":    {cred: Credential{Secret: hidden, From: "c"}, is: hidden},
		"header":            {header: http.Header{"X-Site": {hidden}}, is: hidden},
		"token header":      {tokens: http.Header{"X-Site": {hidden}}, is: hidden},
		"Authorization":     {header: http.Header{"Authorization": {"Basic cm9ib3Q6aHVudGVyMi1zZWNyZXQ="}}, is: password},
		"token":             {is: token1},
		"upper-case scheme": {header: http.Header{"Authorization": {"BASIC cm9ib3Q6aHVudGVyMi1zZWNyZXQ="}}, is: password},
	}
	percent := func(s string) string {
		var b strings.Builder
		for i := range len(s) {
			fmt.Fprintf(&b, "%%%02x", s[i])
		}
		return b.String()
	}
	for what, secret := range secrets {
		echoes := map[string]string{"upper case": strings.ToUpper(secret.is), "percent": percent(secret.is), "behind much": long[:110] + secret.is}
		for i, f := range forms(secret.is) {
			echoes["form "+strconv.Itoa(i)] = f
		}
		for form, echo := range echoes {
			for place, guard := range map[string]func(w http.ResponseWriter, r *http.Request) bool{
				"scope":        below(answer(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/t",service="x",scope="`+echo+`"`)),
				"service":      below(answer(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/t",service="`+echo+`"`)),
				"realm":        below(answer(401, "WWW-Authenticate", `Bearer realm="http://127.0.0.1:1/`+echo+`"`)),
				"scheme":       answer(401, "WWW-Authenticate", echo+` realm="x"`),
				"Content-Type": below(answer(200, "Docker-Content-Digest", digest.FromString("x").String(), "Content-Length", "3", "Content-Type", "text/"+echo)),
				"root's type":  answer(200, "Docker-Distribution-Api-Version", "", "Content-Type", "text/"+echo),
				"Retry-After":  below(answer(429, "Retry-After", echo)),
				"Location":     answer(302, "Location", "http://127.0.0.1:1/"+echo),
				"digest":       below(answer(200, "Docker-Content-Digest", "sha256:"+echo, "Content-Length", "3", "Content-Type", ocispec.MediaTypeImageManifest)),
				"length":       below(answer(200, "Content-Length", "3", "Content-Type", echo)),
			} {
				d := newDepot("/v2")
				d.guard = guard
				if secret.is == token1 {
					d.guard = withToken(guard)
				}
				s := httptest.NewServer(d)
				h := hostOf(s.URL, "/v2")
				h.Header, h.TokenHeader = secret.header, secret.tokens
				got := ask(t, &Asker{Credentials: credentials(secret.cred)}, app(), h)
				s.Close()
				text := steps(got)
				if strings.Contains(strings.ToLower(text), strings.ToLower(echo)) || strings.Contains(strings.ToLower(text), strings.ToLower(secret.is)) {
					t.Errorf("%s, %s, in %s: %q in\n%s", what, form, place, echo, text)
				}
			}
		}
	}
}

// withToken gives a token out first, and is the server meant once it has come back.
func withToken(then func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool {
		switch {
		case r.URL.Path == "/token":
			_, _ = fmt.Fprintf(w, `{"token": %q}`, token1)
		case r.Header.Get("Authorization") == "":
			w.Header().Set("WWW-Authenticate", `Bearer realm="http://`+r.Host+`/token",service="x"`)
			w.WriteHeader(http.StatusUnauthorized)
		default:
			return then(w, r)
		}
		return true
	}
}

// A proxy that says who has come to it: in what a status line may hold, and in its redirects.
func TestProxyPasswordsAreHidden(t *testing.T) {
	for _, user := range []*url.Userinfo{url.UserPassword("robot", password), url.User(hidden)} {
		proxy := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			who, _ := base64.StdEncoding.DecodeString(strings.TrimPrefix(r.Header.Get("Proxy-Authorization"), "Basic "))
			w.Header().Set("Location", "http://127.0.0.1:1/"+strings.ReplaceAll(string(who), ":", "/"))
			w.WriteHeader(http.StatusFound)
		}), nil)
		via, err := url.Parse(proxy.URL)
		if err != nil {
			t.Fatal(err)
		}
		via.User = user
		got := ask(t, &Asker{Proxy: func(*url.URL) (*url.URL, error) { return via, nil }}, app(), hostOf("http://far.example", "/v2"))
		text := steps(got)
		secret := cmp.Or(func() string { p, _ := user.Password(); return p }(), user.Username())
		if strings.Contains(text, secret) || !strings.Contains(text, "******") {
			t.Errorf("%s", text)
		}
	}
}

// What nodeprep says by itself stays readable, whatever a header's value is.
func TestOwnWordsAreNotMasked(t *testing.T) {
	s := serve(t, newDepot("/v2"), nil)
	h := hostOf(s.URL, "/v2")
	h.Header = http.Header{"X-N": {"127.0.0.1"}, "X-M": {"registry"}}
	expect(t, ask(t, &Asker{}, app(), h), "+tcp: connected | 127.0.0.1:", "+api: a registry |", "!***")
}

// Plain HTTP is gone to where containerd goes to it, and nowhere else: a header goes with it.
func TestFallsBackAsContainerdDoes(t *testing.T) {
	dead, err := url.Parse("http://" + unlisted(t))
	if err != nil {
		t.Fatal(err)
	}
	live, err := url.Parse(serve(t, newDepot("/v2"), nil).URL)
	if err != nil {
		t.Fatal(err)
	}
	a := &Asker{Proxy: func(u *url.URL) (*url.URL, error) {
		if u.Scheme == "https" {
			return dead, nil
		}
		return live, nil
	}}
	h := hostOf("https://far.example", "/v2")
	h.Fallback = true
	got := ask(t, a, app(), h)
	expect(t, got, "-tcp: the proxy 127.0.0.1: connection refused |", "plain HTTP is tried then", "+layer: there")

	slow := &net.OpError{Op: "dial", Err: timeout{}}
	for _, c := range []struct {
		name string
		step string
		host string
		err  error
		want bool
	}{
		{"refused", StepTCP, "m.example", syscall.ECONNREFUSED, true},
		{"refused at a port", StepTCP, "m.example:443", syscall.ECONNREFUSED, false},
		{"refused over IPv6", StepTCP, "[fd00::1]", syscall.ECONNREFUSED, true},
		{"silent", StepTCP, "m.example", slow, true},
		{"silent at a port", StepTCP, "m.example:443", slow, false},
		{"no route", StepTCP, "m.example", syscall.EHOSTUNREACH, false},
		{"forbidden", StepTCP, "m.example", syscall.EPERM, false},
		{"no name", StepDNS, "m.example", &net.DNSError{IsNotFound: true}, false},
		{"silent in the handshake", StepTLS, "m.example:443", slow, true},
		{"no certificate", StepTLS, "m.example", errors.New("x509: unknown authority"), false},
		{"plain HTTP", StepTLS, "m.example:443", http.ErrSchemeMismatch, true},
		{"no answer", StepAPI, "m.example", errors.New("EOF"), false},
	} {
		s := &session{Asker: &Asker{}, host: Host{Host: c.host, Fallback: true}, scheme: "https"}
		tr := s.start(t.Context(), true)
		tr.enter(c.step, time.Minute, "")
		if got := s.falls(c.err, tr); got != c.want {
			t.Errorf("%s: %t", c.name, got)
		}
		tr.end()
	}
}

type timeout struct{}

func (timeout) Error() string   { return "i/o timeout" }
func (timeout) Timeout() bool   { return true }
func (timeout) Temporary() bool { return true }

// An index's attestations are no images, and layers that lie elsewhere are not this host's.
func TestWhatIsChosen(t *testing.T) {
	d := newDepot("/v2", "amd64")
	var index ocispec.Index
	if err := json.Unmarshal(d.tag, &index); err != nil {
		t.Fatal(err)
	}
	other := []byte(`{"config": {}}`)
	attestation := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromBytes(other), Size: 1, Platform: &ocispec.Platform{OS: "unknown", Architecture: "unknown"}}
	index.Manifests = append([]ocispec.Descriptor{attestation}, index.Manifests...)
	d.tag, _ = json.Marshal(index)
	dgst := digest.FromBytes(d.tag).String()
	d.objects[dgst], d.types[dgst] = d.tag, ocispec.MediaTypeImageIndex
	img := app()
	img.Arch = ""
	h := hostOf(serve(t, d, nil).URL, "/v2")
	expect(t, ask(t, &Asker{}, img, h), "+content: found", "for linux/amd64", "+layer: there")
	img.Arch = "s390x"
	expect(t, ask(t, &Asker{}, img, h), "no image for linux/s390x", "it has ", "linux/amd64")

	foreign := newDepot("/v2")
	manifest, err := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Layers: []ocispec.Descriptor{
		{MediaType: "application/x", Digest: digest.FromString("far"), URLs: []string{"https://far.example/layer"}},
		{MediaType: "application/x", Digest: foreign.layer, Size: 5},
	}})
	if err != nil {
		t.Fatal(err)
	}
	foreign.tag = manifest
	dgst = digest.FromBytes(manifest).String()
	foreign.objects[dgst], foreign.types[dgst] = manifest, ocispec.MediaTypeImageManifest
	expect(t, ask(t, &Asker{}, app(), hostOf(serve(t, foreign, nil).URL, "/v2")), "+layer: there | "+foreign.layer.String())

	// A digest that is none is not sent anywhere.
	odd := newDepot("/v2")
	odd.tag = []byte(`{"manifests": [{"mediaType": "` + ocispec.MediaTypeImageManifest + `", "digest": "sha256:../../evil", "platform": {"os": "linux", "architecture": "amd64"}}]}`)
	dgst = digest.FromBytes(odd.tag).String()
	odd.objects[dgst], odd.types[dgst] = odd.tag, ocispec.MediaTypeImageIndex
	expect(t, ask(t, &Asker{}, app(), hostOf(serve(t, odd, nil).URL, "/v2")), "-content: the index names a digest that is none")
	for _, r := range odd.requests() {
		if strings.Contains(r, "evil") {
			t.Errorf("asked for %s", r)
		}
	}
}

// A digest that no host knows as a manifest is asked for as a blob, of each, as containerd does.
func TestBlobsWhereNobodyHasTheManifest(t *testing.T) {
	d := newDepot("/v2")
	dgst := digest.FromBytes(d.tag).String()
	img := app()
	img.Digest = dgst
	d.guard = func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodHead && strings.Contains(r.URL.Path, "/manifests/") {
			http.NotFound(w, r)
			return true
		}
		return false
	}
	at := func(d *depot) Host {
		h := hostOf(serve(t, d, nil).URL, "/v2")
		h.Manifest = strings.Replace(h.Manifest, "/manifests/1", "/manifests/"+dgst, 1)
		h.Blob = strings.Replace(h.Layer, "DIGEST", dgst, 1)
		return h
	}
	got := askAll(t, &Asker{}, img, at(newDepotLacking()), at(d))
	expect(t, got[0], "-manifest: 404: this host lacks the image", "-manifest: 404: this host lacks the image")
	expect(t, got[1], "-manifest: 404: this host lacks the image", "+manifest: found", "+layer: there")
	if verdict, ok := Judge(img, got); !ok {
		t.Error(verdict)
	}
	// Not where one has it, and not where one answers otherwise.
	failing := newDepotLacking()
	failing.guard = answer(500)
	got = askAll(t, &Asker{}, img, at(failing), at(d))
	expect(t, got[1], "!+manifest")
}

func newDepotLacking() *depot {
	d := newDepot("/v2")
	d.guard = below(answer(404))
	return d
}

// Without a length, the digest is the body's for containerd, whatever the header says.
func TestDigestOfAnAnswerWithoutLength(t *testing.T) {
	d := newDepot("/v2")
	d.guard = func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/manifests/1") {
			return false
		}
		w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
		w.Header().Set("Docker-Content-Digest", digest.FromString("a lie").String())
		if r.Method == http.MethodGet {
			_, _ = w.Write(d.tag)
		} else {
			w.Header().Set("Transfer-Encoding", "chunked")
		}
		return true
	}
	got := ask(t, &Asker{}, app(), hostOf(serve(t, d, nil).URL, "/v2"))
	if !got.OK || got.Digest != digest.FromBytes(d.tag).String() || got.Size != int64(len(d.tag)) {
		t.Errorf("%+v\n%s", got, steps(got))
	}
}

// The API's root decides nothing, also where it gives no answer at all.
func TestARootWithoutAnswer(t *testing.T) {
	d := newDepot("/v2")
	d.guard = func(_ http.ResponseWriter, r *http.Request) bool {
		if r.URL.Path == "/v2/" {
			panic(http.ErrAbortHandler)
		}
		return false
	}
	got := ask(t, &Asker{}, app(), hostOf(serve(t, d, nil).URL, "/v2"))
	expect(t, got, "-api: the request failed: the connection was closed", "+layer: there")
	if verdict, ok := Judge(app(), []Answer{got}); !ok {
		t.Error(verdict)
	}
}

// A token of too small a scope is changed for one of the scope that is asked for then.
func TestScopesThatGrow(t *testing.T) {
	var scopes []string
	tokens := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		scopes = append(scopes, strings.Join(r.URL.Query()["scope"], " "))
		_, _ = fmt.Fprintf(w, `{"token": "%s-%d"}`, token1, len(scopes))
	}), nil)
	d := newDepot("/v2")
	d.guard = func(w http.ResponseWriter, r *http.Request) bool {
		want, scope, why := "Bearer "+token1+"-1", "repository:library/app:pull", ""
		if strings.Contains(r.URL.Path, "/blobs/") {
			want, scope, why = "Bearer "+token1+"-2", "blobs", `,error="insufficient_scope"`
		}
		if r.URL.Path == "/v2/" || r.Header.Get("Authorization") == want {
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="x",scope=%q%s`, tokens.URL, scope, why))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	}
	if got := ask(t, &Asker{}, app(), hostOf(serve(t, d, nil).URL, "/v2")); !got.OK {
		t.Errorf("%q\n%s", scopes, steps(got))
	}
}

// Time: a dial timeout counts, and is said; of several addresses, a silent one leaves time
// for the next.
func TestDialTimeouts(t *testing.T) {
	s := &session{Asker: &Asker{}, host: Host{DialTimeout: time.Second}}
	if got := s.dialLimit(); got != time.Second {
		t.Errorf("a dial takes %v", got)
	}
	s.host.DialTimeout = time.Hour
	if got := s.dialLimit(); got != StepTime {
		t.Errorf("a dial takes %v", got)
	}
	// A backlog that is full keeps a connection waiting.
	full := fullBacklog(t)
	h := hostOf("http://"+full, "/v2")
	h.DialTimeout = 50 * time.Millisecond
	expect(t, ask(t, &Asker{}, app(), h), "-tcp: timed out after 50ms")

	port := full[strings.LastIndexByte(full, ':'):]
	l, err := net.Listen("tcp", "127.0.0.2"+port)
	if err != nil {
		t.Fatal(err)
	}
	second := &httptest.Server{Listener: l, Config: &http.Server{Handler: newDepot("/v2")}}
	second.Start()
	defer second.Close()
	a := &Asker{Lookup: func(context.Context, string) ([]netip.Addr, error) {
		return []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}, nil
	}}
	h = hostOf("http://two.example"+port, "/v2")
	h.DialTimeout = 400 * time.Millisecond
	expect(t, ask(t, a, app(), h), "+tcp: connected | 127.0.0.2"+port+"; before that 127.0.0.1: timed out", "+layer")
}

// fullBacklog is an address where the kernel takes no more connections (listen(2)).
func fullBacklog(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = syscall.Close(fd) })
	if err := errors.Join(syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), syscall.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	address := fmt.Sprintf("127.0.0.1:%d", name.(*syscall.SockaddrInet4).Port)
	for range 8 {
		c, err := net.DialTimeout("tcp", address, 100*time.Millisecond)
		if err != nil {
			return address
		}
		t.Cleanup(func() { _ = c.Close() })
	}
	t.Fatal("the backlog does not fill")
	return ""
}

// HTTP/1.1 is spoken, as containerd does, and nothing stays open.
func TestConnectionsAreHTTP1AndClosed(t *testing.T) {
	ca := newAuthority(t, "A")
	pair, _, _ := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "127.0.0.1")
	d := newDepot("/v2")
	d.guard = func(w http.ResponseWriter, r *http.Request) bool {
		if r.ProtoMajor != 1 {
			t.Errorf("%s", r.Proto)
		}
		return false
	}
	idle := make(chan struct{}, 100)
	s := httptest.NewUnstartedServer(d)
	s.EnableHTTP2 = true
	s.TLS = withPair(pair)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateClosed {
			idle <- struct{}{}
		}
	}
	s.StartTLS()
	defer s.Close()
	h := hostOf(s.URL, "/v2")
	h.CA = []File{{Name: "ca.pem", Data: ca.pem}}
	if got := ask(t, &Asker{}, app(), h); !got.OK {
		t.Error(steps(got))
	}
	select {
	case <-idle:
	case <-t.Context().Done():
	case <-time.After(20 * time.Second):
		t.Error("a connection stays open")
	}
}

// An https proxy that nobody trusts is not the registry's fault, and neither is its refusal.
func TestTLSProxies(t *testing.T) {
	ca := newAuthority(t, "Proxy Authority")
	pair, _, _ := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "127.0.0.1")
	proxy := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusProxyAuthRequired) }), withPair(pair))
	via, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	a := &Asker{Proxy: func(*url.URL) (*url.URL, error) { return via, nil }}
	h := hostOf("https://far.example", "/v2")
	expect(t, ask(t, a, app(), h), "-proxy: the proxy's own certificate signed by unknown authority: CN=Proxy Authority", "!tls:")
	h.CA = []File{{Name: "ca.pem", Data: ca.pem}}
	expect(t, ask(t, a, app(), h), "-proxy: 407: the proxy wants credentials", "!tls:")
	h = hostOf("http://far.example", "/v2")
	h.CA = []File{{Name: "ca.pem", Data: ca.pem}}
	expect(t, ask(t, a, app(), h), "+proxy: TLS is spoken with it", "-manifest: 407: the proxy wants credentials")
}

// What was asked before an interrupt stays.
func TestInterruptKeepsAnswers(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	first := hostOf(serve(t, newDepot("/v2"), nil).URL, "/v2")
	second := hostOf(serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}), nil).URL, "/v2")
	got := (&Asker{Network: host.OpenNetwork()}).Ask(ctx, app(), []Host{first, second, first}, nil, nil)
	if len(got) != 2 || !got[0].OK || got[1].OK {
		t.Errorf("%+v", got)
	}
}

// The limits are containerd's.
func TestManifestsAtTheLimit(t *testing.T) {
	d := newDepot("/v2")
	big := []byte(`{"config": {"digest": "` + d.layer.String() + `"}}`)
	big = append(big, strings.Repeat(" ", int(docker.MaxManifestSize)-len(big))...)
	d.tag = big
	dgst := digest.FromBytes(big).String()
	d.objects[dgst], d.types[dgst] = big, ocispec.MediaTypeImageManifest
	expect(t, ask(t, &Asker{}, app(), hostOf(serve(t, d, nil).URL, "/v2")), "+content: found", "+layer: there")
}
