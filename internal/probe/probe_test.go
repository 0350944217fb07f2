package probe

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/internal/host"
)

// What must never be seen.
const (
	password = "hunter2-secret"
	token1   = "eyJ-token-secret"
	hidden   = "header-secret-4711"
)

// authority makes certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newAuthority(t *testing.T, name string) authority {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if c, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return authority{c, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})}
}

// issue makes a certificate for a server or a client, as PEM and as a pair.
func (a authority) issue(t *testing.T, from, until time.Time, names ...string) (tls.Certificate, []byte, []byte) {
	t.Helper()
	key := newKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf"}, NotBefore: from, NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, n := range names {
		if ip := net.ParseIP(n); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, n)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	kder, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	cp, kp := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: kder})
	pair, err := tls.X509KeyPair(cp, kp)
	if err != nil {
		t.Fatal(err)
	}
	return pair, cp, kp
}

// depot is a registry with one image, library/app, below a path.
type depot struct {
	below   string // "/v2"
	objects map[string][]byte
	types   map[string]string
	tag     []byte
	layer   digest.Digest

	// guard answers a request itself and says so; nil lets all through.
	guard func(http.ResponseWriter, *http.Request) bool

	mu  sync.Mutex
	log []string
}

func newDepot(below string, arches ...string) *depot {
	d := &depot{below: below, objects: map[string][]byte{}, types: map[string]string{}}
	put := func(mediaType string, b []byte) ocispec.Descriptor {
		dgst := digest.FromBytes(b)
		d.objects[dgst.String()], d.types[dgst.String()] = b, mediaType
		return ocispec.Descriptor{MediaType: mediaType, Digest: dgst, Size: int64(len(b))}
	}
	layer := put(ocispec.MediaTypeImageLayer, []byte("layer"))
	d.layer = layer.Digest
	config := put(ocispec.MediaTypeImageConfig, []byte("{}"))
	manifest, _ := json.Marshal(ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}})
	m := put(ocispec.MediaTypeImageManifest, manifest)
	d.tag = manifest
	if len(arches) > 0 {
		var index ocispec.Index
		for _, a := range arches {
			m.Platform = &ocispec.Platform{OS: "linux", Architecture: a}
			index.Manifests = append(index.Manifests, m)
		}
		d.tag, _ = json.Marshal(index)
		put(ocispec.MediaTypeImageIndex, d.tag)
	}
	return d
}

func (d *depot) requests() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return append([]string(nil), d.log...)
}

func (d *depot) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	d.mu.Lock()
	d.log = append(d.log, r.Method+" "+r.RequestURI)
	d.mu.Unlock()
	w.Header().Set("Docker-Distribution-Api-Version", "registry/2.0")
	if d.guard != nil && d.guard(w, r) {
		return
	}
	rest, ok := strings.CutPrefix(r.URL.Path, d.below)
	if ok && rest == "/" {
		_, _ = io.WriteString(w, "{}")
		return
	}
	name := r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]
	b, there := d.objects[name]
	if name == "1" {
		b, there = d.tag, true
		name = digest.FromBytes(b).String()
	}
	if !ok || !there || !strings.HasPrefix(rest, "/library/app/") {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", d.types[name])
	w.Header().Set("Docker-Content-Digest", name)
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if r.Method == http.MethodGet {
		_, _ = w.Write(b)
	}
}

func withPair(pair tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{pair}}
}

// serve starts a server with a certificate, or plain.
func serve(t *testing.T, h http.Handler, config *tls.Config) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if config != nil {
		s.TLS = config
		s.StartTLS()
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	return s
}

// hostOf is a host at a server, for library/app:1 of another registry.
func hostOf(u, root string) Host {
	at, err := url.Parse(u)
	if err != nil {
		panic(err)
	}
	base := u + root + "/library/app"
	return Host{
		Scheme: at.Scheme, Host: at.Host, Path: root,
		Manifest: base + "/manifests/1?ns=quay.example", Content: base + "/manifests/DIGEST?ns=quay.example", Layer: base + "/blobs/DIGEST?ns=quay.example",
		Hints: Hints{CA: "hint-ca", Client: "hint-client", Auth: "hint-auth", Path: "hint-path", Scheme: "hint-scheme", Token: "hint-token"},
	}
}

func app() Image { return Image{Verb: Pull, Repository: "library/app", Arch: "amd64"} }

// ask asks one host.
func ask(t *testing.T, a *Asker, img Image, h Host) Answer {
	t.Helper()
	return askAll(t, a, img, h)[0]
}

// askAll asks, and holds all that was said against what must not be seen.
func askAll(t *testing.T, a *Asker, img Image, hosts ...Host) []Answer {
	t.Helper()
	if a.Network == nil {
		a.Network = host.OpenNetwork()
	}
	a.Agent = "containerd/2.4.2 (nodeprep)"
	var heard []Step
	out := a.Ask(t.Context(), img, hosts, nil, func(s Step) { heard = append(heard, s) })
	b, err := json.Marshal(map[string]any{"answers": out, "heard": heard, "verdict": fmt.Sprint(Judge(img, out))})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, o := range out {
		n += len(o.Steps)
	}
	if len(heard) != n {
		t.Errorf("%d steps were said, and %d are in the answers", len(heard), n)
	}
	for _, secret := range []string{password, token1, hidden} {
		for _, form := range forms(secret) {
			if strings.Contains(strings.ToLower(string(b)), strings.ToLower(form)) {
				t.Errorf("%q is in what is said: %s", form, b)
			}
		}
	}
	return out
}

// forms are those in which a secret may come back.
func forms(secret string) []string {
	out := []string{secret, url.QueryEscape(secret), url.PathEscape(secret), hex.EncodeToString([]byte(secret))}
	for _, text := range []string{secret, "robot:" + secret} {
		for _, e := range []*base64.Encoding{base64.StdEncoding, base64.RawStdEncoding, base64.URLEncoding, base64.RawURLEncoding} {
			out = append(out, e.EncodeToString([]byte(text)))
		}
	}
	return out
}

// steps is an answer in lines: + or -, the step, verdict, detail and remedy.
func steps(a Answer) string {
	var b strings.Builder
	for _, s := range a.Steps {
		sign := "-"
		if s.OK {
			sign = "+"
		}
		fmt.Fprintf(&b, "%s%s: %s | %s | %s\n", sign, s.Name, s.Verdict, s.Detail, s.Remedy)
	}
	return b.String()
}

// expect looks for texts in an answer; one that begins with ! must not be there.
func expect(t *testing.T, a Answer, want ...string) {
	t.Helper()
	got := steps(a)
	for _, w := range want {
		if absent, ok := strings.CutPrefix(w, "!"); ok {
			if strings.Contains(got, absent) {
				t.Errorf("%q is in\n%s", absent, got)
			}
		} else if !strings.Contains(got, w) {
			t.Errorf("no %q in\n%s", w, got)
		}
	}
}

func credentials(c Credential) func(string) Credential { return func(string) Credential { return c } }

// Everything is there: each step says what was seen, and the requests are those that
// containerd sends, but for the API's root, which it does not ask for.
func TestImageIsThere(t *testing.T) {
	ca := newAuthority(t, "Test Authority")
	pair, _, _ := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "mirror.example")
	d := newDepot("/v2/proj", "arm64", "amd64")
	s := serve(t, d, &tls.Config{Certificates: []tls.Certificate{pair}})
	port := s.URL[strings.LastIndexByte(s.URL, ':'):]
	h := hostOf("https://mirror.example"+port, "/v2/proj")
	h.CA = []File{{Name: "/etc/containerd/certs.d/quay.example/ca.pem", Data: ca.pem}}
	h.Header = http.Header{"X-Site": {hidden}}
	a := &Asker{Lookup: func(_ context.Context, name string) ([]netip.Addr, error) {
		if name != "mirror.example" {
			t.Errorf("%s was looked up", name)
		}
		return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
	}}
	got := ask(t, a, app(), h)
	dgst := digest.FromBytes(d.tag).String()
	expect(t, got, "+dns: found | mirror.example is 127.0.0.1", "+tcp: connected | 127.0.0.1"+port, "+tls: trusted | TLS 1.3, CN=leaf, by CN=Test Authority, until ",
		"+api: a registry | GET /v2/proj/: 200", "+manifest: found | "+dgst+", application/vnd.oci.image.index.v1+json, ", "+content: found | "+dgst+", and in it sha256:", "for linux/amd64",
		"+layer: there | "+d.layer.String()+", 5 bytes", "!\n-", "!auth")
	if !got.OK || got.Digest != dgst || got.Size != int64(len(d.tag)) {
		t.Errorf("got %+v", got)
	}
	want := []string{
		"GET /v2/proj/", "HEAD /v2/proj/library/app/manifests/1?ns=quay.example", "GET /v2/proj/library/app/manifests/" + dgst + "?ns=quay.example",
		"GET /v2/proj/library/app/manifests/", "HEAD /v2/proj/library/app/blobs/" + d.layer.String() + "?ns=quay.example",
	}
	for i, r := range d.requests() {
		if i >= len(want) || !strings.HasPrefix(r, want[i]) {
			t.Errorf("request %d is %s", i, r)
		}
	}
	verdict, had := Judge(app(), []Answer{got})
	if want := "the image can be pulled from https://mirror.example" + port + ": " + dgst; !had || !strings.HasPrefix(verdict, want) {
		t.Errorf("%t: %s", had, verdict)
	}
	// A resolve ends with the digest.
	img := app()
	img.Verb = Resolve
	if got := ask(t, a, img, h); !got.OK || len(got.Steps) != 5 {
		t.Errorf("resolve:\n%s", steps(got))
	}
}

// unlisted is a port where nobody listens.
func unlisted(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestNamesAndConnections(t *testing.T) {
	t.Run("name not found", func(t *testing.T) {
		a := &Asker{Lookup: func(_ context.Context, name string) ([]netip.Addr, error) {
			return nil, &net.DNSError{Err: "no such host", Name: name, Server: "127.0.0.53:53", IsNotFound: true}
		}}
		expect(t, ask(t, a, app(), hostOf("https://no.example", "/v2")), "-dns: name not found | no.example, says the resolver 127.0.0.53:53 | is no.example spelt right")
	})
	t.Run("the resolver fails", func(t *testing.T) {
		a := &Asker{Lookup: func(_ context.Context, name string) ([]netip.Addr, error) {
			return nil, &net.DNSError{Err: "server misbehaving", Name: name, Server: "10.0.0.1:53", IsTemporary: true}
		}}
		expect(t, ask(t, a, app(), hostOf("https://no.example", "/v2")), "-dns: the resolver fails: server misbehaving | says the resolver 10.0.0.1:53")
	})
	t.Run("the resolver is silent", func(t *testing.T) {
		a := &Asker{stepTime: 50 * time.Millisecond, Lookup: func(ctx context.Context, _ string) ([]netip.Addr, error) {
			<-ctx.Done()
			return nil, ctx.Err()
		}}
		expect(t, ask(t, a, app(), hostOf("https://no.example", "/v2")), "-dns: timed out after 50ms")
	})
	t.Run("refused", func(t *testing.T) {
		expect(t, ask(t, &Asker{}, app(), hostOf("https://"+unlisted(t), "/v2")), "-tcp: connection refused | 127.0.0.1: connection refused | nothing listens there", "!dns")
	})
	t.Run("the second address", func(t *testing.T) {
		d := newDepot("/v2")
		s := serve(t, d, nil)
		port := s.URL[strings.LastIndexByte(s.URL, ':'):]
		a := &Asker{Lookup: func(context.Context, string) ([]netip.Addr, error) {
			return []netip.Addr{netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.0.0.1")}, nil
		}}
		got := ask(t, a, app(), hostOf("http://two.example"+port, "/v2"))
		expect(t, got, "+dns: found | two.example is 127.0.0.2, 127.0.0.1", "+tcp: connected | 127.0.0.1"+port+"; before that 127.0.0.2: connection refused")
		if !got.OK {
			t.Error(steps(got))
		}
	})
	t.Run("no answer", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		expect(t, ask(t, &Asker{stepTime: 50 * time.Millisecond}, app(), hostOf("http://"+l.Addr().String(), "/v2")), "-api: connected, and no answer: timed out after 50ms")
		expect(t, ask(t, &Asker{stepTime: 50 * time.Millisecond}, app(), hostOf("https://"+l.Addr().String(), "/v2")), "-tls: timed out after 50ms")
	})
	t.Run("forbidden", func(t *testing.T) {
		expect(t, ask(t, &Asker{Network: host.NoNetwork("--offline")}, app(), hostOf("https://no.example", "/v2")), "connect to no.example:0 for the image library/app: the network may not be used (--offline)")
	})
}

// What the kernel says of a network is in its words.
func TestConnectionsInWords(t *testing.T) {
	for errno, want := range map[error]string{
		syscall.EHOSTUNREACH: "no route", syscall.ENETUNREACH: "no route", syscall.ECONNREFUSED: "connection refused", syscall.EPERM: "not permitted",
	} {
		if got := unconnected(&net.OpError{Op: "dial", Err: errno}).verdict; got != want {
			t.Errorf("%v: %q", errno, got)
		}
	}
}

func TestCertificates(t *testing.T) {
	ca, other := newAuthority(t, "Right Authority"), newAuthority(t, "Other Authority")
	hour := time.Hour
	good, _, _ := ca.issue(t, time.Now().Add(-hour), time.Now().Add(hour), "127.0.0.1")
	old, _, _ := ca.issue(t, time.Now().Add(-2*hour), time.Now().Add(-hour), "127.0.0.1")
	young, _, _ := ca.issue(t, time.Now().Add(hour), time.Now().Add(2*hour), "127.0.0.1")
	elsewhere, _, _ := ca.issue(t, time.Now().Add(-hour), time.Now().Add(hour), "other.example", "10.1.2.3")
	_, clientCert, clientKey := ca.issue(t, time.Now().Add(-hour), time.Now().Add(hour))
	_, strangerCert, strangerKey := other.issue(t, time.Now().Add(-hour), time.Now().Add(hour))
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	at := func(pair tls.Certificate) *tls.Config { return &tls.Config{Certificates: []tls.Certificate{pair}} }
	wanting := &tls.Config{Certificates: []tls.Certificate{good}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	wanting12 := wanting.Clone()
	wanting12.MaxVersion = tls.VersionTLS12
	selfSigned := serve(t, newDepot("/v2"), nil)
	selfSigned.Close()
	for _, c := range []struct {
		name   string
		server *tls.Config
		host   func(*Host)
		want   []string
	}{
		{"of a known authority", at(good), nil, []string{"+tls: trusted", "+layer: there"}},
		{"of an unknown authority", at(good), func(h *Host) { h.CA = nil }, []string{"-tls: certificate signed by unknown authority: CN=Right Authority | CN=leaf, by CN=Right Authority, until ", "| hint-ca", "!api"}},
		{"of another authority", at(good), func(h *Host) { h.CA = []File{{Name: "/etc/x/other.pem", Data: other.pem}} }, []string{"-tls: certificate signed by unknown authority: CN=Right Authority", "not of /etc/x/other.pem | hint-ca"}},
		{"by itself", &tls.Config{}, func(h *Host) { h.CA = nil }, []string{"-tls: certificate signed by unknown authority: by itself, O=Acme Co"}},
		{"for another name", at(elsewhere), nil, []string{"-tls: certificate for another name: it has other.example, 10.1.2.3 |", "give the server a certificate for 127.0.0.1"}},
		{"expired", at(old), nil, []string{"-tls: certificate expired: on 20", "unless this machine's clock is wrong: it says 20"}},
		{"not yet valid", at(young), nil, []string{"-tls: certificate not yet valid: from 20", "clock"}},
		{"not verified", at(elsewhere), func(h *Host) { h.SkipVerify = true }, []string{"+tls: not verified, since skip_verify is set | TLS 1.3", "it would not hold: certificate for another name", "+layer: there"}},
		{"not verified, and good", at(good), func(h *Host) { h.SkipVerify = true }, []string{"+tls: not verified, since skip_verify is set", "; it would hold |"}},
		{"wants a client certificate", wanting, nil, []string{"-api: client certificate wanted | none is configured", "| hint-client"}},
		{"wants a client certificate, TLS 1.2", wanting12, nil, []string{": client certificate wanted | none is configured", "| hint-client"}},
		{"gets a client certificate", wanting, func(h *Host) {
			h.Client = [][2]File{{{Name: "c.pem", Data: clientCert}, {Name: "c.key", Data: clientKey}}}
		}, []string{"+tls: trusted", "; shown: c.pem", "+layer: there"}},
		{"refuses a client certificate", wanting12, func(h *Host) {
			h.Client = [][2]File{{{Name: "s.pem", Data: strangerCert}, {Name: "s.key", Data: strangerKey}}}
		}, []string{"certificate"}},
		{"a CA that is none", at(good), func(h *Host) { h.CA = []File{{Name: "ca.pem", Data: []byte("x")}} }, []string{"-files: the CA file has no certificate | ca.pem | hint-ca"}},
		{"a key that does not fit", at(good), func(h *Host) {
			h.Client = [][2]File{{{Name: "c.pem", Data: clientCert}, {Name: "s.key", Data: strangerKey}}}
		}, []string{"-files: the client certificate cannot be loaded | c.pem, s.key"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := serve(t, newDepot("/v2"), c.server)
			h := hostOf(s.URL, "/v2")
			h.CA = []File{{Name: "ca.pem", Data: ca.pem}}
			if c.host != nil {
				c.host(&h)
			}
			got := ask(t, &Asker{}, app(), h)
			expect(t, got, c.want...)
		})
	}
}

func TestSchemes(t *testing.T) {
	ca := newAuthority(t, "A")
	pair, _, _ := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "127.0.0.1")
	plain := serve(t, newDepot("/v2"), nil)
	secure := serve(t, newDepot("/v2"), &tls.Config{Certificates: []tls.Certificate{pair}})
	as := func(scheme string, s *httptest.Server) Host {
		return hostOf(scheme+"://"+s.Listener.Addr().String(), "/v2")
	}
	expect(t, ask(t, &Asker{}, app(), as("https", plain)), "-tls: the server speaks plain HTTP, and the URL says https |  | hint-scheme", "!api")
	expect(t, ask(t, &Asker{}, app(), as("http", secure)), "-api: 400: the server speaks HTTPS, and the URL says http | GET /v2/ | hint-scheme")

	// An http URL with TLS settings: HTTPS first, and HTTP where that is not spoken.
	h := as("https", plain)
	h.Fallback = true
	got := ask(t, &Asker{}, app(), h)
	expect(t, got, "-tls: the server speaks plain HTTP, and the URL says https | plain HTTP is tried then", "+api: a registry", "+layer: there")
	if verdict, _ := Judge(app(), []Answer{got}); !got.OK || !strings.HasPrefix(verdict, "the image can be pulled from http://127.0.0.1:") {
		t.Errorf("%s\n%s", verdict, steps(got))
	}
	h = as("https", secure)
	h.Fallback = true
	expect(t, ask(t, &Asker{}, app(), h), "-tls: certificate signed by unknown authority", "!plain HTTP", "!api")
	// With a port, another scheme would not help where nobody listens.
	h = hostOf("https://"+unlisted(t), "/v2")
	h.Fallback = true
	expect(t, ask(t, &Asker{}, app(), h), "-tcp: connection refused", "!plain HTTP")
	// A server that speaks neither.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = c.Write([]byte("220 mail.example ESMTP\r\n"))
			_ = c.Close()
		}
	}()
	expect(t, ask(t, &Asker{}, app(), hostOf("https://"+l.Addr().String(), "/v2")), "-tls: the server does not speak TLS")
	expect(t, ask(t, &Asker{}, app(), hostOf("http://"+l.Addr().String(), "/v2")), "-api: the request failed")
}

func answer(status int, headers ...string) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, _ *http.Request) bool {
		for i := 0; i+1 < len(headers); i += 2 {
			w.Header().Set(headers[i], headers[i+1])
		}
		w.WriteHeader(status)
		return true
	}
}

// below answers only what is below the API's root.
func below(f func(http.ResponseWriter, *http.Request) bool) func(http.ResponseWriter, *http.Request) bool {
	return func(w http.ResponseWriter, r *http.Request) bool { return r.URL.Path != "/v2/" && f(w, r) }
}

func TestAnswers(t *testing.T) {
	html := func(w http.ResponseWriter, r *http.Request) bool {
		w.Header().Del("Docker-Distribution-Api-Version")
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		_, _ = io.WriteString(w, "<html>log in</html>")
		return true
	}
	redirect := func(to string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			http.Redirect(w, r, to+"?sig="+hidden, http.StatusFound)
			return true
		}
	}
	dead := unlisted(t)
	for _, c := range []struct {
		name  string
		guard func(http.ResponseWriter, *http.Request) bool
		want  []string
		end   string // of the whole
	}{
		{"404", below(answer(404)), []string{"+api: a registry", "-manifest: 404: this host lacks the image | https://next.example is asked next |"}, "404: this host lacks the image"},
		{"no API here", answer(404), []string{"-api: 404: no registry's API at this path | GET /v2/ | hint-path", "-manifest: 404: this host lacks the image | https://next.example is asked next | hint-path"}, "404"},
		{"403", below(answer(403)), []string{"-manifest: 403: forbidden, with no credentials |  | ask who runs 127.0.0.1:"}, "403"},
		{"429", below(answer(429, "Retry-After", "60")), []string{"-manifest: 429: too many requests | Retry-After: 60 | wait"}, "429"},
		{"500", below(answer(500)), []string{"-manifest: 500: the server fails (internal server error) |  | look into the log"}, "500"},
		{"503 of all", answer(503), []string{"-api: 503: the server fails (service unavailable)", "-manifest: 503"}, "503"},
		{"418", below(answer(418)), []string{"-manifest: 418: i'm a teapot"}, "418"},
		{"no registry", html, []string{"-api: an answer that is no registry's | GET /v2/: 200, Content-Type text/html, no Docker-Distribution-Api-Version | look who answers", "-manifest: an answer that is no manifest | Content-Type text/html"}, "no manifest"},
		{"a redirect of all", redirect("http://" + dead + "/login"), []string{"-api: 302: a redirect | GET /v2/ sends on to http://" + dead + "/login |", "-manifest: 127.0.0.1: connection refused"}, "connection refused"},
		{"304", below(answer(304)), []string{"-manifest: 304: a redirect that cannot be followed"}, "304"},
		{"401 without a challenge", answer(401), []string{"-api: 401: without a challenge", "-auth: 401: nothing that containerd could answer is asked for"}, "401"},
		{"Negotiate", answer(401, "WWW-Authenticate", "Negotiate"), []string{"+api: a registry that asks for credentials | Negotiate", "-auth: 401: nothing that containerd could answer is asked for | Negotiate"}, "401"},
		{"a digest that is none", below(answer(200, "Docker-Content-Digest", "sha256:12", "Content-Length", "3", "Content-Type", ocispec.MediaTypeImageManifest)), []string{"-manifest: the digest that it names is none | sha256:12"}, "digest"},
		{"too large", below(answer(200, "Docker-Content-Digest", digest.FromString("x").String(), "Content-Length", "5000000", "Content-Type", ocispec.MediaTypeImageManifest)), []string{"-manifest: the manifest is too large for containerd"}, "too large"},
		{"terminal escapes", below(answer(200, "Docker-Content-Digest", "\u009b31mred", "Content-Length", "3", "Content-Type", ocispec.MediaTypeImageManifest)), []string{"!\u009b", "?31mred"}, "digest"},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDepot("/v2")
			d.guard = c.guard
			h := hostOf(serve(t, d, nil).URL, "/v2")
			h.Header, h.Next = http.Header{"X-Site": {hidden}}, "https://next.example"
			got := ask(t, &Asker{}, app(), h)
			expect(t, got, c.want...)
			if got.OK || !strings.Contains(got.Verdict, c.end) {
				t.Errorf("verdict %q", got.Verdict)
			}
			if verdict, had := Judge(app(), []Answer{got}); had || !strings.HasPrefix(verdict, "the image cannot be pulled: http://127.0.0.1:") {
				t.Errorf("judged %t: %s", had, verdict)
			}
		})
	}
}

// Registries that do not do HEAD, or do not name the digest, are asked as containerd does.
func TestClumsyRegistries(t *testing.T) {
	for name, guard := range map[string]func(*depot) func(http.ResponseWriter, *http.Request) bool{
		"no HEAD": func(*depot) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodHead {
					w.WriteHeader(http.StatusMethodNotAllowed)
				}
				return r.Method == http.MethodHead
			}
		},
		"no digest": func(d *depot) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, "/manifests/1") {
					return false
				}
				w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
				_, _ = w.Write(d.tag)
				return true
			}
		},
		"layers elsewhere, for GET alone": func(d *depot) func(http.ResponseWriter, *http.Request) bool {
			return func(w http.ResponseWriter, r *http.Request) bool {
				switch {
				case strings.Contains(r.URL.Path, "/blobs/"):
					http.Redirect(w, r, "/store?sig="+hidden, http.StatusTemporaryRedirect)
				case r.URL.Path == "/store" && r.Method == http.MethodGet:
					_, _ = io.WriteString(w, "layer")
				case r.URL.Path == "/store":
					w.WriteHeader(http.StatusForbidden)
				default:
					return false
				}
				return true
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDepot("/v2")
			d.guard = guard(d)
			h := hostOf(serve(t, d, nil).URL, "/v2")
			h.Header = http.Header{"X-Site": {hidden}}
			got := ask(t, &Asker{}, app(), h)
			if !got.OK || got.Digest != digest.FromBytes(d.tag).String() {
				t.Errorf("%+v\n%s", got, steps(got))
			}
		})
	}
}

// What a mirror lacks behind its manifest.
func TestHalfAMirror(t *testing.T) {
	gone := func(what string) func(http.ResponseWriter, *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, what) {
				return false
			}
			http.NotFound(w, r)
			return true
		}
	}
	for _, c := range []struct {
		name, lacks, want, alone, both string
	}{
		{"layers", "/blobs/", "-layer: 404: this host lacks the layer sha256:", "nobody gives its first layer", "; layers from "},
		{"manifests by digest", "/manifests/sha256", "-content: 404: this host lacks the manifest of sha256:", "nobody gives the manifest of that digest", "; its manifest from "},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDepot("/v2")
			d.guard = gone(c.lacks)
			half := hostOf(serve(t, d, nil).URL, "/v2")
			got := ask(t, &Asker{}, app(), half)
			expect(t, got, "+manifest: found", c.want)
			if verdict, ok := Judge(app(), []Answer{got}); ok || !strings.Contains(verdict, c.alone) {
				t.Errorf("alone: %t, %s", ok, verdict)
			}
			// Another has the same digest by another tag only, or may not say it, or says a
			// newer one: whoever it is, it is asked for the first one's.
			for name, other := range map[string]struct {
				host  func(*Host)
				guard func(http.ResponseWriter, *http.Request) bool
			}{
				"the same tag": {},
				"no such tag":  {guard: gone("/manifests/1")},
				"a newer tag":  {guard: newerTag},
				"skipped":      {host: func(h *Host) { h.Skipped, h.Supplies = "its capabilities lack resolve", true }},
			} {
				for _, before := range []bool{false, true} {
					if before && (name == "the same tag" || name == "a newer tag") {
						continue // then it is the other that names the digest
					}
					whole := newDepot("/v2")
					whole.guard = other.guard
					h := hostOf(serve(t, whole, nil).URL, "/v2")
					if other.host != nil {
						other.host(&h)
					}
					hosts := []Host{half, h}
					if before {
						hosts = []Host{h, half}
					}
					answers := askAll(t, &Asker{}, app(), hosts...)
					verdict, ok := Judge(app(), answers)
					layers, whose := c.both, h.Scheme+"://"+h.Host
					if before {
						layers = "; manifest and layers from "
					}
					if !ok || !strings.HasPrefix(verdict, "the image can be pulled from "+got.name) || !strings.HasSuffix(verdict, layers+whose) {
						t.Errorf("%s, before: %t: %t, %s\n%s%s", name, before, ok, verdict, steps(answers[0]), steps(answers[1]))
					}
				}
			}
		})
	}
	t.Run("wrong content", func(t *testing.T) {
		d := newDepot("/v2")
		for k := range d.objects {
			if d.types[k] == ocispec.MediaTypeImageManifest {
				d.objects[k] = []byte("{}")
			}
		}
		expect(t, ask(t, &Asker{}, app(), hostOf(serve(t, d, nil).URL, "/v2")), "-content: what comes is not what the digest says")
	})
	t.Run("another architecture", func(t *testing.T) {
		got := ask(t, &Asker{}, app(), hostOf(serve(t, newDepot("/v2", "arm64", "s390x"), nil).URL, "/v2"))
		expect(t, got, "-content: no image for linux/amd64 in the index | it has linux/arm64, linux/s390x")
	})
	t.Run("an arm board's variant", func(t *testing.T) {
		img := app()
		img.Arch = "arm"
		if got := ask(t, &Asker{}, img, hostOf(serve(t, newDepot("/v2", "amd64", "arm"), nil).URL, "/v2")); !got.OK {
			t.Error(steps(got))
		}
	})
}

// newerTag names another digest by the tag.
func newerTag(w http.ResponseWriter, r *http.Request) bool {
	if !strings.HasSuffix(r.URL.Path, "/manifests/1") {
		return false
	}
	b := []byte(`{"config": {}}`)
	w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
	w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	return true
}

// basic wants robot and the password.
func basic(w http.ResponseWriter, r *http.Request) bool {
	if user, secret, ok := r.BasicAuth(); ok && user == "robot" && secret == password {
		return false
	}
	w.Header().Set("WWW-Authenticate", `Basic realm="`+r.Header.Get("Authorization")+`"`)
	w.WriteHeader(http.StatusUnauthorized)
	return true
}

func TestBasicCredentials(t *testing.T) {
	robot := Credential{User: "robot", Secret: password, From: "config.toml:7"}
	wrong := Credential{User: "robot", Secret: password + "x", From: "config.toml:7"}
	for _, c := range []struct {
		name string
		cred Credential
		host func(*Host)
		want []string
		ok   bool
	}{
		{"right", robot, nil, []string{"+api: a registry that asks for credentials | Basic", "+auth: offered: the credentials of robot, from config.toml:7 | Basic", "+layer: there"}, true},
		{"wrong", wrong, nil, []string{"+auth: offered", "-auth: 401: refused: the credentials of robot, from config.toml:7 | Basic; some registries", "| hint-auth", "!manifest"}, false},
		{"none", Credential{}, nil, []string{"-auth: 401: credentials wanted, and none are configured | Basic | hint-auth"}, false},
		{"a header", Credential{}, func(h *Host) {
			h.Authorized = "hosts.toml"
			h.Header = http.Header{"Authorization": {"Basic " + base64.StdEncoding.EncodeToString([]byte("robot:"+password))}}
		}, []string{"+api: a registry | GET", "+layer: there", "!auth"}, true},
		{"a wrong header", Credential{}, func(h *Host) {
			h.Authorized = "hosts.toml"
			h.Header = http.Header{"Authorization": {"Basic " + hidden}}
		}, []string{"-auth: 401: refused: the header Authorization of hosts.toml"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newDepot("/v2")
			d.guard = basic
			h := hostOf(serve(t, d, nil).URL, "/v2")
			if c.host != nil {
				c.host(&h)
			}
			got := ask(t, &Asker{Credentials: credentials(c.cred)}, app(), h)
			expect(t, got, c.want...)
			if got.OK != c.ok {
				t.Errorf("ok is %t", got.OK)
			}
			n := 0
			for _, r := range d.requests() {
				if strings.Contains(r, "/manifests/1") {
					n++
				}
			}
			if n > 2 {
				t.Errorf("%d attempts: an account may be locked after some", n)
			}
		})
	}
}

// tokens is a token server that writes down what it gets.
type tokens struct {
	mu     sync.Mutex
	forms  []url.Values
	header []http.Header
	answer func(http.ResponseWriter, *http.Request, url.Values)
}

func (s *tokens) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	_ = r.ParseForm()
	s.mu.Lock()
	s.forms, s.header = append(s.forms, r.Form), append(s.header, r.Header.Clone())
	s.mu.Unlock()
	s.answer(w, r, r.Form)
}

func TestTokens(t *testing.T) {
	give := func(w http.ResponseWriter, r *http.Request, form url.Values) {
		user, secret, ok := r.BasicAuth()
		if !ok {
			user, secret = form.Get("username"), form.Get("password")
		}
		if user != "" && (user != "robot" || secret != password) {
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, form.Encode())
			return
		}
		_, _ = fmt.Fprintf(w, `{"token": %q, "access_token": %q}`, token1, token1)
	}
	robot := Credential{User: "robot", Secret: password, From: "config.toml:7"}
	for _, c := range []struct {
		name   string
		cred   Credential
		answer func(http.ResponseWriter, *http.Request, url.Values)
		header http.Header
		realm  string
		verb   string
		want   []string
		check  func(*testing.T, *tokens)
		ok     bool
	}{
		{name: "anonymous", answer: give, ok: true, want: []string{"+api: a registry that asks for credentials | Bearer, token from http://127.0.0.1:", "/token, service depot", "+auth: offered: no credentials | Bearer", "scope repository:library/app:pull"},
			check: func(t *testing.T, s *tokens) {
				if f := s.forms[0]; f.Get("service") != "depot" || f.Get("scope") != "repository:library/app:pull" || f.Get("username") != "" || s.header[0].Get("Authorization") != "" {
					t.Errorf("the token server got %v, %v", f, s.header[0])
				}
			}},
		{name: "credentials", cred: robot, answer: give, ok: true, want: []string{"+auth: offered: the credentials of robot, from config.toml:7", "+layer: there"},
			check: func(t *testing.T, s *tokens) {
				if f := s.forms[0]; f.Get("grant_type") != "password" || f.Get("password") != password || f.Get("client_id") != "containerd-client" {
					t.Errorf("the token server got %v", f)
				}
			}},
		{name: "an identity token", cred: Credential{Secret: hidden, From: "config.toml:9"}, answer: give, ok: true, want: []string{"+auth: offered: an identity token, from config.toml:9"},
			check: func(t *testing.T, s *tokens) {
				if f := s.forms[0]; f.Get("grant_type") != "refresh_token" || f.Get("refresh_token") != hidden {
					t.Errorf("the token server got %v", f)
				}
			}},
		{name: "wrong credentials", cred: Credential{User: "robot", Secret: hidden, From: "config.toml:7"}, answer: give,
			want: []string{"-auth: 401: refused by the token server 127.0.0.1:", ": the credentials of robot, from config.toml:7 | Bearer", "| hint-auth"}},
		{name: "a header", answer: give, header: http.Header{"X-Site": {hidden}}, ok: true,
			check: func(t *testing.T, s *tokens) {
				if s.header[0].Get("X-Site") != hidden || s.header[0].Get("User-Agent") != "containerd/2.4.2 (nodeprep)" {
					t.Errorf("the token server got %v", s.header[0])
				}
			}},
		{name: "a push", answer: give, verb: Push, ok: true, want: []string{"+auth", "+manifest: found"},
			check: func(t *testing.T, s *tokens) {
				if got := strings.Join(s.forms[0]["scope"], " "); !strings.Contains(got, "repository:library/app:pull,push") {
					t.Errorf("scope %q", got)
				}
			}},
		{name: "tokens that are refused", answer: func(w http.ResponseWriter, _ *http.Request, _ url.Values) {
			_, _ = io.WriteString(w, `{"token": "other-token", "access_token": "other-token"}`)
		}, cred: robot,
			want: []string{"-auth: 401: refused: the credentials of robot, from config.toml:7"}},
		{name: "no token", answer: func(w http.ResponseWriter, _ *http.Request, _ url.Values) { _, _ = io.WriteString(w, `{}`) }, want: []string{"-auth: the token server 127.0.0.1:", " answers, and gives no token"}},
		{name: "no JSON", answer: func(w http.ResponseWriter, _ *http.Request, form url.Values) { _, _ = io.WriteString(w, form.Encode()) }, cred: robot,
			want: []string{"-auth: the token server 127.0.0.1:", " answers, and gives no token"}},
		{name: "500", answer: func(w http.ResponseWriter, _ *http.Request, form url.Values) {
			http.Error(w, form.Encode(), http.StatusInternalServerError)
		}, cred: robot, want: []string{"-auth: 500: from the token server 127.0.0.1:", "| hint-token"}},
		{name: "429", answer: func(w http.ResponseWriter, _ *http.Request, form url.Values) {
			http.Error(w, form.Encode(), http.StatusTooManyRequests)
		}, want: []string{"-auth: 429: too many requests to the token server"}},
		{name: "a dead token server", realm: "http://" + unlisted(t) + "/token", cred: robot, want: []string{"-auth: the token server 127.0.0.1:", " cannot be asked: 127.0.0.1: connection refused"}},
		{name: "a realm that is none", realm: "://" + hidden, header: http.Header{"X-Site": {hidden}}, cred: robot, want: []string{"-auth: 401: the realm of the challenge is no URL"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := &tokens{answer: c.answer}
			realm := c.realm
			if realm == "" {
				realm = serve(t, s, nil).URL + "/token"
			}
			d := newDepot("/v2")
			d.guard = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Header.Get("Authorization") == "Bearer "+token1 {
					return false
				}
				challenge := fmt.Sprintf(`Bearer realm=%q,service="depot"`, realm)
				if r.URL.Path != "/v2/" {
					challenge += `,scope="repository:library/app:pull"`
				}
				if got := r.Header.Get("Authorization"); got != "" {
					// Hostile: it says what it got.
					challenge = fmt.Sprintf(`Bearer realm=%q,service=%q,error="invalid_token %s"`, realm, got, got)
				}
				w.Header().Set("WWW-Authenticate", challenge)
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
			h := hostOf(serve(t, d, nil).URL, "/v2")
			h.TokenHeader = c.header
			img := app()
			if c.verb != "" {
				img.Verb = c.verb
			}
			got := ask(t, &Asker{Credentials: credentials(c.cred)}, img, h)
			expect(t, got, append(c.want, "!other-token")...)
			if got.OK != c.ok {
				t.Errorf("ok is %t:\n%s", got.OK, steps(got))
			}
			if c.check != nil {
				c.check(t, s)
			}
		})
	}
}

// A push looks whether it would be let in, and sends nothing.
func TestPush(t *testing.T) {
	img := app()
	img.Verb = Push
	d := newDepot("/v2")
	h := hostOf(serve(t, d, nil).URL, "/v2")
	h.Manifest = strings.Replace(h.Manifest, "/manifests/1", "/manifests/new", 1)
	got := ask(t, &Asker{}, img, h)
	expect(t, got, "+manifest: 404: not there yet")
	if verdict, had := Judge(img, []Answer{{Skipped: "its capabilities lack push"}, got}); !had || verdict != "the image can be pushed to "+got.name {
		t.Errorf("%t: %s", had, verdict)
	}
	for _, r := range d.requests() {
		if !strings.HasPrefix(r, "GET ") && !strings.HasPrefix(r, "HEAD ") {
			t.Errorf("sent %s", r)
		}
	}
	d.guard = basic
	if verdict, had := Judge(img, []Answer{ask(t, &Asker{}, img, h)}); had || !strings.Contains(verdict, "cannot be pushed: http://127.0.0.1:") {
		t.Errorf("%t: %s", had, verdict)
	}
}

// Through a proxy, its name is looked up and not the registry's.
func TestProxies(t *testing.T) {
	ca := newAuthority(t, "A")
	pair, _, _ := ca.issue(t, time.Now().Add(-time.Hour), time.Now().Add(time.Hour), "far.example")
	secure := serve(t, newDepot("/v2"), &tls.Config{Certificates: []tls.Certificate{pair}})
	plainDepot := newDepot("/v2")
	var mu sync.Mutex
	var seen []string
	status := http.StatusOK
	proxy := serve(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		seen = append(seen, r.Method+" "+r.Host+" "+r.Header.Get("Proxy-Authorization"))
		code := status
		mu.Unlock()
		if code != http.StatusOK {
			w.WriteHeader(code)
			return
		}
		if r.Method != http.MethodConnect {
			plainDepot.ServeHTTP(w, r)
			return
		}
		in, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", secure.Listener.Addr().String())
		if err != nil {
			_ = in.Close()
			return
		}
		_, _ = io.WriteString(in, "HTTP/1.1 200 OK\r\n\r\n")
		go func() { _, _ = io.Copy(out, in); _ = out.Close() }()
		_, _ = io.Copy(in, out)
		_ = in.Close()
	}), nil)
	via, err := url.Parse("http://robot:" + password + "@proxy.example" + proxy.URL[strings.LastIndexByte(proxy.URL, ':'):])
	if err != nil {
		t.Fatal(err)
	}
	a := &Asker{
		Proxy: func(*url.URL) (*url.URL, error) { return via, nil },
		Lookup: func(_ context.Context, name string) ([]netip.Addr, error) {
			if name != "proxy.example" {
				t.Errorf("%s was looked up here", name)
			}
			return []netip.Addr{netip.MustParseAddr("127.0.0.1")}, nil
		},
	}
	h := hostOf("https://far.example", "/v2")
	h.CA = []File{{Name: "ca.pem", Data: ca.pem}}
	got := ask(t, a, app(), h)
	expect(t, got, "+dns: found | the proxy proxy.example is 127.0.0.1", "+tcp: connected | through proxy http://proxy.example:", "+proxy: a way through", "+tls: trusted", "+layer: there", "!robot")
	got = ask(t, a, app(), hostOf("http://far.example", "/v2"))
	expect(t, got, "+tcp: connected | through proxy http://proxy.example:", "!tls", "!+proxy", "+layer: there")
	mu.Lock()
	want := "CONNECT far.example:443 Basic " + base64.StdEncoding.EncodeToString([]byte("robot:"+password))
	if len(seen) == 0 || seen[0] != want {
		t.Errorf("the proxy saw %q", seen)
	}
	mu.Unlock()
	for code, want := range map[int]string{407: "-proxy: 407: the proxy wants credentials", 403: "-proxy: 403: the proxy lets nobody through to far.example", 502: "-proxy: 502: the proxy does not reach far.example"} {
		mu.Lock()
		status = code
		mu.Unlock()
		expect(t, ask(t, a, app(), h), want)
	}
	a.Lookup = func(_ context.Context, name string) ([]netip.Addr, error) {
		return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
	}
	expect(t, ask(t, a, app(), h), "-dns: the proxy proxy.example: name not found")
}

// An end of the context ends it, wherever it is.
func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := serve(t, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}), nil)
	a := &Asker{Network: host.OpenNetwork()}
	got := a.Ask(ctx, app(), []Host{hostOf(s.URL, "/v2")}, nil, nil)[0]
	expect(t, got, "-api: interrupted")
	if verdict, had := Judge(app(), []Answer{got}); had {
		t.Error(verdict)
	}
	got = a.Ask(ctx, app(), []Host{hostOf("https://never.example", "/v2")}, nil, nil)[0]
	expect(t, got, ": interrupted")
}

func TestJudgeFollowsContainerdsOrder(t *testing.T) {
	lacks := Answer{name: "https://a", Verdict: "404: this host lacks the image"}
	dead := Answer{name: "https://b", Verdict: "connection refused"}
	odd := Answer{name: "https://c", Verdict: "an answer that is no manifest", ends: true}
	good := Answer{name: "https://d", OK: true, found: true, content: true, layer: true, Digest: "sha256:1", MediaType: "m", Size: 3}
	newer := Answer{name: "https://e", OK: true, found: true, content: true, layer: true, Digest: "sha256:2", MediaType: "m", Size: 3}
	half := Answer{name: "https://f", Verdict: "404: this host lacks the layer", found: true, content: true, Digest: "sha256:1", MediaType: "m", Size: 3}
	skipped := Answer{name: "https://g", Skipped: "its capabilities lack resolve"}
	layers := Answer{name: "https://h", Skipped: "its capabilities lack resolve", Steps: []Step{{}}, content: true, layer: true}
	unfit := Answer{name: "https://i", found: true, Digest: "sha256:1", unfit: "no image for linux/arm64 in the index"}
	for _, c := range []struct {
		name    string
		answers []Answer
		want    string
		had     bool
	}{
		{"the second serves", []Answer{dead, good, newer}, "the image can be pulled from https://d: sha256:1, m, 3 bytes", true},
		{"nobody", []Answer{lacks, dead}, "the image cannot be pulled: https://a: 404: this host lacks the image; https://b: connection refused", false},
		{"an answer that ends it", []Answer{lacks, odd, good}, "the image cannot be pulled: https://a: 404: this host lacks the image; https://c: an answer that is no manifest", false},
		{"another's layers", []Answer{half, good}, "the image can be pulled from https://f: sha256:1, m, 3 bytes; layers from https://d", true},
		{"layers of who may not resolve", []Answer{layers, half}, "the image can be pulled from https://f: sha256:1, m, 3 bytes; manifest and layers from https://h", true},
		{"nobody's layers", []Answer{skipped, half}, "the image cannot be pulled: https://f names sha256:1, and nobody gives its first layer: https://f: 404: this host lacks the layer", false},
		{"not for this node", []Answer{unfit, good}, "the image cannot be pulled: https://i names sha256:1: no image for linux/arm64 in the index", false},
		{"all skipped", []Answer{skipped}, "the image cannot be pulled: nobody is asked", false},
	} {
		if got, had := Judge(app(), c.answers); got != c.want || had != c.had {
			t.Errorf("%s: %t\n%s\nwant\n%s", c.name, had, got, c.want)
		}
	}
}

func TestSkippedHostsAreNotAsked(t *testing.T) {
	h := hostOf("https://never.example", "/v2")
	h.Skipped = "its capabilities lack pull"
	a := &Asker{Network: host.OpenNetwork(), Lookup: func(context.Context, string) ([]netip.Addr, error) { panic("asked") }}
	got := a.Ask(t.Context(), app(), []Host{h}, nil, nil)[0]
	if len(got.Steps) != 0 || got.Verdict != "not asked: its capabilities lack pull" || got.OK {
		t.Errorf("%+v", got)
	}
}
