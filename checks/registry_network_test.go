package checks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/profiles"
)

// registryServer is a registry on loopback.
type registryServer struct {
	*httptest.Server
	host string
	ca   string // its certificate, in PEM
}

// serveRegistry starts one that answers so; over TLS with a certificate that is valid so long,
// and over plain HTTP where that is 0.
func serveRegistry(t *testing.T, valid time.Duration, answer http.HandlerFunc, change ...func(*tls.Config)) *registryServer {
	t.Helper()
	s := &registryServer{Server: httptest.NewUnstartedServer(answer)}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if valid == 0 {
		s.Start()
	} else {
		cert, key := newKeys(t, time.Now().Add(-aDay), time.Now().Add(valid), "127.0.0.1")
		pair, err := tls.X509KeyPair([]byte(cert), []byte(key))
		if err != nil {
			t.Fatal(err)
		}
		s.ca, s.TLS = cert, &tls.Config{Certificates: []tls.Certificate{pair}}
		for _, c := range change {
			c(s.TLS)
		}
		s.StartTLS()
	}
	t.Cleanup(s.Close)
	s.host = s.Listener.Addr().String()
	return s
}

// statusOf answers with it, and with these headers, as names and values by turns. It
// minds where it is asked and what comes along.
func statusOf(t *testing.T, code int, headers ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for name := range r.Header {
			if authenticates(name) || name == "X-Mine" {
				t.Errorf("header %s is sent", name)
			}
		}
		if !strings.HasPrefix(r.URL.Path, "/v2/") && !strings.HasPrefix(r.URL.Path, "/token") {
			t.Errorf("asked for %s", r.URL.Path)
		}
		for i := 0; i < len(headers); i += 2 {
			w.Header().Add(headers[i], headers[i+1])
		}
		w.WriteHeader(code)
	}
}

// mirrorHost is example.com's hosts.toml with one mirror, the CA as ca.pem and more keys.
func mirrorHost(t *testing.T, s *registryServer, keys string, change ...func(*Outside)) *Node {
	t.Helper()
	return hostsOf(t, "2.4.2", files{
		"example.com/hosts.toml": "server = \"https://nobody.invalid\"\n[host.\"" + s.URL + "\"]\n" + keys, "example.com/ca.pem": s.ca,
	}, append([]func(*Outside){noUpstream}, change...)...)
}

// noUpstream makes names that nobody may look up fail at once.
func noUpstream(o *Outside) {
	o.Dial = dialLocal
}

const withCA = "ca = \"ca.pem\"\n"

// closedPort is a URL at which nobody listens.
func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.Close()
	return "https://" + l.Addr().String()
}

func TestMirrorReachable(t *testing.T) {
	const id = "registry/mirror-reachable"
	// The other host of the file is dead; that is a failure where the first one is, too.
	lines := func(w want) []want {
		other := Warn
		if w.verdict == Fail {
			other = Fail
		}
		return []want{w, {verdict: other, object: "https://nobody.invalid"}}
	}
	for name, c := range map[string]struct {
		server *registryServer
		keys   string
		want   want
	}{
		"answers":           {serveRegistry(t, 90*aDay, statusOf(t, 200)), withCA, want{verdict: Pass, observed: "answers 200 OK", place: "hosts.toml:2"}},
		"wants credentials": {serveRegistry(t, 90*aDay, statusOf(t, 401)), withCA, want{verdict: Pass, observed: "401"}},
		"redirects":         {serveRegistry(t, 90*aDay, statusOf(t, 307, "Location", "https://other.example.com/v2/")), withCA, want{verdict: Pass, observed: "307 Temporary Redirect, from other.example.com"}},
		"plain":             {serveRegistry(t, 0, statusOf(t, 200)), "", want{verdict: Pass}},
		"plain with TLS":    {serveRegistry(t, 0, statusOf(t, 200)), "skip_verify = true\n", want{verdict: Pass}},
		"secrets":           {serveRegistry(t, 90*aDay, statusOf(t, 200)), withCA + "[host.\"X\".header]\n", want{verdict: Pass}},
		"unknown CA":        {serveRegistry(t, 90*aDay, statusOf(t, 200)), "", want{verdict: Fail, observed: "x509: certificate signed by unknown authority", wanted: "200 or 401", place: "hosts.toml:2", remedy: "curl -sv"}},
		"not verified":      {serveRegistry(t, 90*aDay, statusOf(t, 200)), "skip_verify = true\n", want{verdict: Pass}},
		"expired":           {serveRegistry(t, -time.Hour, statusOf(t, 200)), withCA, want{verdict: Fail, observed: "expired"}},
		"broken":            {serveRegistry(t, 90*aDay, statusOf(t, 503)), withCA, want{verdict: Warn, observed: "answers 503"}},
		"no registry":       {serveRegistry(t, 90*aDay, statusOf(t, 404)), withCA, want{verdict: Pass, observed: "answers 404"}},
		"proxy says":        {serveRegistry(t, 90*aDay, statusOf(t, 407)), withCA, want{verdict: Unknown, observed: "proxy wants credentials"}},
	} {
		t.Run(name, func(t *testing.T) {
			keys := strings.ReplaceAll(c.keys, "[host.\"X\".header]\n", "[host.\""+c.server.URL+"\".header]\nAuthorization = \"Basic 4711\"\nX-Mine = \"4711\"\n")
			expect(t, mirrorHost(t, c.server, keys), id, lines(c.want)...)
		})
	}

	s := serveRegistry(t, 90*aDay, statusOf(t, 404))
	n := hostsOf(t, "2.4.2", files{"example.com/hosts.toml": "[host.\"" + s.URL + "/v2/project\"]\noverride_path = true\nca = \"ca.pem\"\n", "example.com/ca.pem": s.ca}, noUpstream)
	expect(t, n, id, want{verdict: Pass, object: "/v2/project", observed: "404"})

	// One mirror that is down is no failure while another host of its file answers.
	url := closedPort(t)
	up := serveRegistry(t, 0, statusOf(t, 200))
	expect(t, oneHosts(t, "2.4.2", "[host.\""+url+"\"]\n[host.\""+up.URL+"\"]\n", noUpstream), id,
		want{verdict: Warn, object: url, observed: "connection refused"}, want{verdict: Pass, object: up.URL})
	expect(t, oneHosts(t, "2.4.2", "server = \""+up.URL+"\"\n[host.\""+url+"\"]\n", noUpstream), id,
		want{verdict: Warn, object: url}, want{verdict: Pass, object: up.URL})
	expect(t, hostsOf(t, "2.4.2", files{"_default/hosts.toml": "[host.\"" + url + "\"]\n"}, noUpstream), id, want{verdict: Warn, object: url})
	// It is one where a second file has nobody else.
	expect(t, hostsOf(t, "2.4.2", files{"a.example/hosts.toml": "[host.\"" + url + "\"]\n[host.\"" + up.URL + "\"]\n", "b.example/hosts.toml": "server = \"" + url + "\"\n[host.\"" + url + "\"]\n"}, noUpstream), id,
		want{verdict: Fail, object: url}, want{verdict: Pass, object: up.URL})
	n = oneHosts(t, "2.4.2", "[host.\""+url+"\"]\n", noUpstream)
	expect(t, n, id, want{verdict: Fail, object: url, observed: "connection refused", place: certsD + "example.com/hosts.toml:1"})
	expect(t, oneHosts(t, "2.4.2", "server = \"https://example.com\"\n", noUpstream), id, want{verdict: Pass, observed: "no mirrors"})

	var many strings.Builder
	for i := range mostAsked + 1 {
		fmt.Fprintf(&many, "[host.\"%s/%d\"]\n", url, i)
	}
	got := results(t, oneHosts(t, "2.4.2", many.String(), noUpstream), id)
	if len(got) != mostAsked+1 || got[mostAsked].Verdict != Unknown || got[mostAsked].Observed != "1 more are not asked: 16 are the most" {
		t.Errorf("of %d mirrors: %+v", mostAsked+1, got)
	}
}

func TestMirrorWithClientCertificate(t *testing.T) {
	cert, key := newKeys(t, time.Now().Add(-aDay), time.Now().Add(90*aDay))
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM([]byte(cert))
	s := serveRegistry(t, 90*aDay, statusOf(t, 200), func(c *tls.Config) { c.ClientAuth, c.ClientCAs = tls.RequireAndVerifyClientCert, pool })
	hosts := "[host.\"" + s.URL + "\"]\nca = \"ca.pem\"\n"
	n := hostsOf(t, "2.4.2", files{"example.com/hosts.toml": hosts + "client = \"c.pem\"\n", "example.com/ca.pem": s.ca, "example.com/c.pem": cert + key}, noUpstream)
	expect(t, n, "registry/mirror-reachable", want{verdict: Pass})
	n = hostsOf(t, "2.4.2", files{"example.com/hosts.toml": hosts, "example.com/ca.pem": s.ca}, noUpstream)
	expect(t, n, "registry/mirror-reachable", want{verdict: Fail, observed: "certificate required"})
}

func TestMirrorThroughProxy(t *testing.T) {
	asked := make(chan string, 1)
	proxy := serveRegistry(t, 0, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Proxy-Authorization") != "" {
			t.Error("the proxy's password is sent")
		}
		asked <- r.URL.String()
	})
	environ := "HTTP_PROXY=http://user:4711@" + proxy.host + "\x00NO_PROXY=10.0.0.1\x00"
	n := hostsOf(t, "2.4.2", files{"example.com/hosts.toml": "[host.\"http://mirror.invalid\"]\n", "/proc/7/environ": environ}, noUpstream)
	expect(t, n, "registry/mirror-reachable", want{verdict: Pass, observed: "200"})
	if got := <-asked; got != "http://mirror.invalid/v2/" {
		t.Errorf("the proxy was asked for %s", got)
	}
	if r := results(t, n, "registry/mirror-reachable")[0]; r.Note != "through the daemon's proxy "+proxy.host {
		t.Errorf("note %q", r.Note)
	}
}

func TestMirrorCertificate(t *testing.T) {
	const id = "registry/mirror-certificate"
	alone := func(s *registryServer, keys string) *Node {
		return hostsOf(t, "2.4.2", files{"example.com/hosts.toml": "[host.\"" + s.URL + "\"]\n" + keys, "example.com/ca.pem": s.ca}, noUpstream)
	}
	expect(t, alone(serveRegistry(t, 90*aDay, statusOf(t, 200)), withCA), id, want{verdict: Pass, observed: "1 mirrors"})
	expect(t, alone(serveRegistry(t, 9*aDay, statusOf(t, 200)), withCA), id, want{verdict: Warn, observed: "test expires", wanted: "30 days", place: "hosts.toml:1"})
	expect(t, alone(serveRegistry(t, 90*aDay, statusOf(t, 200)), "skip_verify = true\n"), id, want{verdict: Warn, observed: "skip_verify hides: x509", wanted: "verified"})
	expect(t, alone(serveRegistry(t, 90*aDay, statusOf(t, 200)), withCA+"skip_verify = true\n"), id, want{verdict: Pass})
	expect(t, alone(serveRegistry(t, 0, statusOf(t, 200)), ""), id, want{verdict: Pass})
}

func TestMirrorAuth(t *testing.T) {
	const id = "registry/auth"
	with := func(s *registryServer, more files) *Node {
		f := files{"example.com/hosts.toml": "[host.\"" + s.URL + "\"]\nca = \"ca.pem\"\n", "example.com/ca.pem": s.ca}
		for p, c := range more {
			f[p] = c
		}
		return hostsOf(t, "2.4.2", f, noUpstream)
	}
	basic := serveRegistry(t, 90*aDay, statusOf(t, 401, "WWW-Authenticate", `Basic realm="r"`))
	header := files{"example.com/hosts.toml": "[host.\"" + basic.URL + "\"]\nca = \"ca.pem\"\n[host.\"" + basic.URL + "\".header]\nauthorization = \"Basic 4711\"\n"}
	configured := func(host string) files {
		return files{tomlPath: readsIt + "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"" + host + "\".auth]\nusername = \"u\"\n"}
	}
	expect(t, with(serveRegistry(t, 90*aDay, statusOf(t, 200)), nil), id, want{verdict: Pass})
	expect(t, with(basic, nil), id, want{verdict: Warn, observed: "none is configured for " + basic.host, wanted: "registry.configs", place: "hosts.toml:1"})
	expect(t, with(basic, header), id, want{verdict: Pass})
	expect(t, with(basic, configured(basic.host)), id, want{verdict: Pass})
	expect(t, with(serveRegistry(t, 90*aDay, statusOf(t, 401)), nil), id, want{verdict: Warn, observed: "without saying how"})
	expect(t, with(serveRegistry(t, 90*aDay, statusOf(t, 401, "WWW-Authenticate", `Bearer service="x"`)), nil), id, want{verdict: Warn, observed: "token server"})
	token := serveRegistry(t, 0, statusOf(t, 400))
	expect(t, with(serveRegistry(t, 90*aDay, statusOf(t, 401, "WWW-Authenticate", `Bearer realm="`+token.URL+`/token",service="x"`)), nil), id, want{verdict: Pass})
	url := closedPort(t)
	expect(t, with(serveRegistry(t, 90*aDay, statusOf(t, 401, "WWW-Authenticate", `Bearer realm="`+url+`/token",service="x"`)), nil), id,
		want{verdict: Warn, observed: "its token server " + url + ": ", wanted: "an answer"})
	plain := serveRegistry(t, 0, statusOf(t, 401, "WWW-Authenticate", `Basic realm="r"`))
	f := configured(plain.host)
	f["example.com/hosts.toml"] = "[host.\"" + plain.URL + "\"]\n"
	expect(t, with(plain, f), id, want{verdict: Warn, observed: "plain HTTP"})
}

func TestChallenges(t *testing.T) {
	got := challenges([]string{`Bearer realm="https://a/t",service="x, y" , scope=z`, "Basic"})
	if b := got["bearer"]; b["realm"] != "https://a/t" || b["service"] != "x, y" || b["scope"] != "z" || got["basic"] == nil {
		t.Errorf("%v", got)
	}
	challenges([]string{"", "Bearer", "Bearer realm", `Bearer realm="`, "Bearer =,=,"}) // ends
}

func TestUpstream(t *testing.T) {
	const id = "registry/upstream"
	s := serveRegistry(t, 0, statusOf(t, 200))
	own := strings.Replace(s.host, ":", "_", 1) + "_/hosts.toml"
	expect(t, hostsOf(t, "2.4.2", files{own: "[host.\"https://m.invalid\"]\n"}, noUpstream), id, want{verdict: Pass, observed: "1 registries answer"})
	expect(t, hostsOf(t, "2.4.2", files{own: "server = \"https://m.invalid\"\n"}, noUpstream), id, want{verdict: Pass, observed: "no hosts.toml falls back"})
	expect(t, hostsOf(t, "2.4.2", files{"_default/hosts.toml": "[host.\"https://m.invalid\"]\n"}, noUpstream), id, want{verdict: Pass, observed: "no hosts.toml falls back"})
	expect(t, oneHosts(t, "2.4.2", "[host.\"https://m.invalid\"]\n", noUpstream), id,
		want{verdict: Warn, object: "https://example.com/v2", observed: "not of this test", remedy: "upstream: deny for example.com"})
	refused := serveRegistry(t, 0, statusOf(t, 407))
	own = strings.Replace(refused.host, ":", "_", 1) + "_/hosts.toml"
	expect(t, hostsOf(t, "2.4.2", files{own: "[host.\"https://m.invalid\"]\n"}, noUpstream), id, want{verdict: Unknown, observed: "credentials"})
}

func TestDenied(t *testing.T) {
	const id = "registry/denied"
	profile := func(hosts ...string) func(*Outside) {
		var all []profiles.Registry
		for _, h := range hosts {
			all = append(all, profiles.Registry{Host: h, Deny: h != "allowed.example.com"})
		}
		return withSpec(profiles.Spec{Registries: all})
	}
	s := serveRegistry(t, 0, statusOf(t, 401))
	expect(t, hostsOf(t, "2.4.2", nil, noUpstream, profile("allowed.example.com", "*")), id, want{verdict: Pass, observed: "denies no upstream"})
	expect(t, hostsOf(t, "2.4.2", nil, noUpstream, profile("example.com")), id, want{verdict: Pass, observed: "none can be reached"})
	expect(t, hostsOf(t, "2.4.2", nil, noUpstream, profile(s.host)), id, want{verdict: Warn, object: "http://" + s.host, observed: "answers 401", wanted: "out of reach"})
}

// dialLocal is the real network, but that names and other hosts are out of reach.
func dialLocal(ctx context.Context, network, address string) (net.Conn, error) {
	if host, _, _ := net.SplitHostPort(address); host != "127.0.0.1" {
		return nil, fmt.Errorf("dial %s: not of this test", address)
	}
	return new(net.Dialer).DialContext(ctx, network, address)
}
