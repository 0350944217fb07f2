package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/probe"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
	"github.com/nodeprep/nodeprep/systemd"
)

// What explain --probe must never say.
const (
	probePassword = "hunter2-secret"
	probeHeader   = "site-secret-4711"
)

// heard is a registry that writes down what it is asked.
type heard struct {
	mu       sync.Mutex
	requests []string
	headers  []http.Header
}

func (h *heard) note(r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, r.Method+" "+r.RequestURI)
	h.headers = append(h.headers, r.Header.Clone())
}

// probeRegistry has team/app:1 and wants robot's password; without an archive it has nothing.
func probeRegistry(t *testing.T, archive string, guarded bool) (*httptest.Server, *heard) {
	t.Helper()
	h := &heard{}
	repositories := archives(map[string]string{"team/app": archive})
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.note(r)
		if user, password, _ := r.BasicAuth(); guarded && (user != "robot" || password != probePassword) {
			w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		repositories.ServeHTTP(w, r)
	}))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	return s, h
}

// explainCommandLine runs nodeprep, and looks for secrets in all that it says.
func explainCommandLine(t *testing.T, ctx context.Context, env map[string]string, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = run(ctx, append([]string{"explain"}, args...), stdio{in: strings.NewReader(""), out: &out, err: &errs}, func(name string) (string, bool) {
		v, ok := env[name]
		return v, ok
	})
	for _, secret := range []string{probePassword, probeHeader, base64.StdEncoding.EncodeToString([]byte("robot:" + probePassword))} {
		if strings.Contains(out.String()+errs.String(), secret) {
			t.Errorf("%q is in what is said:\n%s%s", secret, out.String(), errs.String())
		}
	}
	return code, out.String(), errs.String()
}

func writeProbeFile(t *testing.T, dir, name, text string) string {
	t.Helper()
	p := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(p, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return p
}

func wantProbe(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("no %q in\n%s", w, text)
		}
	}
}

func serverCA(s *httptest.Server) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}))
}

func TestExplainProbesAProfile(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("TMPDIR", dir)
	archive, err := imageArchive("quay.example/team/app:1", []string{"amd64", "arm64"})
	if err != nil {
		t.Fatal(err)
	}
	server, log := probeRegistry(t, writeProbeFile(t, dir, "app.tar", string(archive)), true)
	lacks, lackLog := probeRegistry(t, filepath.Join(dir, "none.tar"), false)
	writeProbeFile(t, dir, "ca.pem", serverCA(server))
	host := server.Listener.Addr().String()
	mirrors := fmt.Sprintf(`apiVersion: nodeprep/v1alpha1
kind: NodeProfile
containerd: {version: 2.3.4}
registries:
  quay.example:
    upstream: deny
    mirrors:
      - {url: "https://%s", ca: ca.pem}
      - {url: "https://%s", CA, header: {X-Site: {env: SITE}}, auth: {username: robot, password: {env: PASSWORD}}}
`, lacks.Listener.Addr(), host)
	profile := writeProbeFile(t, dir, "node.yaml", strings.Replace(mirrors, "CA,", "ca: ca.pem,", 1))
	env := map[string]string{"PASSWORD": probePassword, "SITE": probeHeader, "HTTPS_PROXY": "http://127.0.0.1:9", "NO_COLOR": "1"}
	code, out, errs := explainCommandLine(t, t.Context(), env, "quay.example/team/app:1", "-f", profile, "--probe")
	if code != 0 || strings.Contains(errs, "asked without") {
		t.Errorf("code %d, %s", code, errs)
	}
	wantProbe(t, out, "pulled from https://"+lacks.Listener.Addr().String(), "asked from this machine, whose resolver, clock and certificate authorities count here, and not the node's",
		"404: this host lacks the image", "trusted (TLS 1.3, O=Acme Co, by O=Acme Co", "a registry that asks for credentials (Basic)",
		"offered: the credentials of robot, from registry.configs.\""+host+"\".auth (/etc/containerd/config.toml:", "the image can be pulled from https://"+host+": sha256:")
	// The requests are those that explain promised, with the headers, and as the release.
	promised := strings.Contains(out, "HEAD https://"+host+"/v2/team/app/manifests/1?ns=quay.example")
	if !promised || !slices.Contains(log.requests, "HEAD /v2/team/app/manifests/1?ns=quay.example") || !slices.Contains(lackLog.requests, "HEAD /v2/team/app/manifests/1?ns=quay.example") {
		t.Errorf("asked for %q and %q", log.requests, lackLog.requests)
	}
	if h := log.headers[0]; h.Get("X-Site") != probeHeader || h.Get("User-Agent") != "containerd/2.3.4 (nodeprep)" {
		t.Errorf("headers %v", h)
	}
	if h := lackLog.headers[0]; h.Get("X-Site") != "" || h.Get("Authorization") != "" {
		t.Errorf("another host got %v", h)
	}

	// A secret that is not here is said, and nothing else is sent in its place.
	log.headers = nil
	code, out, errs = explainCommandLine(t, t.Context(), map[string]string{}, "quay.example/team/app:1", "-f", profile, "--probe")
	if code != 1 {
		t.Errorf("code %d", code)
	}
	wantProbe(t, errs, "environment variable PASSWORD is not set; asked without it", "environment variable SITE is not set; asked without it")
	wantProbe(t, out, "401: credentials wanted, and none are configured", "remedy: give the right ones in registries.quay.example.mirrors[1].auth of the profile", "the image cannot be pulled: ")
	for _, h := range log.headers {
		if h.Get("Authorization") != "" || h.Get("X-Site") != "" {
			t.Errorf("sent %v", h)
		}
	}

	// An authority that nobody knows: which field would mend it.
	profile = writeProbeFile(t, dir, "node.yaml", strings.Replace(mirrors, "CA,", "", 1))
	code, out, _ = explainCommandLine(t, t.Context(), env, "quay.example/team/app:1", "-f", profile, "--probe")
	if code != 1 {
		t.Errorf("code %d", code)
	}
	wantProbe(t, out, "certificate signed by unknown authority: by itself, O=Acme Co", "remedy: put that authority's PEM file into registries.quay.example.mirrors[1].ca of the profile")

	// One document, with the same.
	code, out, _ = explainCommandLine(t, t.Context(), env, "quay.example/team/app:1", "-f", profile, "--probe", "-o", "json")
	var doc struct {
		Outcome string
		Hosts   []struct{ URL string }
		Probe   probed
		Error   any
	}
	if err := json.Unmarshal([]byte(out), &doc); err != nil || code != 1 || doc.Error != nil {
		t.Fatalf("code %d, %v, %v:\n%s", code, err, doc.Error, out)
	}
	if len(doc.Hosts) != 2 || len(doc.Probe.Hosts) != 2 || doc.Probe.OK || doc.Probe.Hosts[1].URL != doc.Hosts[1].URL {
		t.Errorf("%+v", doc)
	}
	steps := doc.Probe.Hosts[1].Steps
	if last := steps[len(steps)-1]; last.Name != probe.StepTLS || last.OK || last.Remedy == "" {
		t.Errorf("the last step is %+v", last)
	}
}

func TestExplainProbesAHost(t *testing.T) {
	dir := t.TempDir()
	archive, err := imageArchive("quay.example/team/app:1", []string{"amd64"})
	if err != nil {
		t.Fatal(err)
	}
	server, log := probeRegistry(t, writeProbeFile(t, dir, "app.tar", string(archive)), true)
	host := server.Listener.Addr().String()
	root := filepath.Join(dir, "root")
	config := writeProbeFile(t, root, "etc/containerd/config.toml", fmt.Sprintf(`version = 3
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/etc/containerd/certs.d"
[plugins."io.containerd.cri.v1.images".registry.headers]
X-Site = [%q]
[plugins."io.containerd.cri.v1.images".registry.configs.%q.auth]
auth = %q
`, probeHeader, host, base64.StdEncoding.EncodeToString([]byte("robot:"+probePassword))))
	hosts := "server = \"https://" + host + "\"\nca = \"ca.pem\"\n"
	writeProbeFile(t, root, "etc/containerd/certs.d/quay.example/hosts.toml", hosts)
	writeProbeFile(t, root, "etc/containerd/certs.d/quay.example/ca.pem", serverCA(server))
	arguments := []string{"quay.example/team/app:1", "--root", root, "--containerd", "2.4.2", "--probe"}
	code, out, errs := explainCommandLine(t, t.Context(), nil, arguments...)
	if code != 0 {
		t.Errorf("code %d, %s", code, errs)
	}
	wantProbe(t, out, "offered: the credentials of robot, from registry.configs.\""+host+"\".auth (/etc/containerd/config.toml:", "the image can be pulled from https://"+host)
	if h := log.headers[0]; h.Get("X-Site") != probeHeader {
		t.Errorf("headers %v", h)
	}

	// Files that name no authority.
	writeProbeFile(t, root, "etc/containerd/certs.d/quay.example/hosts.toml", "server = \"https://"+host+"\"\n")
	code, out, _ = explainCommandLine(t, t.Context(), nil, arguments...)
	if code != 1 {
		t.Errorf("code %d", code)
	}
	wantProbe(t, out, "remedy: put that authority's PEM file beside it as /etc/containerd/certs.d/quay.example/NAME.pem, and name it in ca of /etc/containerd/certs.d/quay.example/hosts.toml:1")

	// A certificate that is not there: nobody is asked, now as then.
	log.requests = nil
	writeProbeFile(t, root, "etc/containerd/certs.d/quay.example/hosts.toml", "server = \"https://"+host+"\"\nca = \"gone.pem\"\n")
	code, out, _ = explainCommandLine(t, t.Context(), nil, arguments...)
	wantProbe(t, out, "the image cannot be pulled: fails, and nobody is asked: the CA file /etc/containerd/certs.d/quay.example/gone.pem cannot be read")
	if code != 1 || len(log.requests) > 0 {
		t.Errorf("code %d, and asked for %q", code, log.requests)
	}

	// No files at all: what to write.
	if err := os.RemoveAll(filepath.Join(root, "etc/containerd/certs.d")); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(config); err != nil {
		t.Fatal(err)
	}
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	code, out, _ = explainCommandLine(t, t.Context(), nil, closed.Addr().String()+"/team/app:1", "--root", root, "--containerd", "2.4.2", "--probe", "--verb", "resolve")
	wantProbe(t, out, "connection refused", "the image cannot be resolved: https://"+closed.Addr().String()+": connection refused")
	if code != 1 {
		t.Errorf("code %d", code)
	}
}

// A proxy is the daemon's, and not that of who runs nodeprep.
func TestExplainProbesThroughTheProfilesProxy(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("HTTPS_PROXY", "http://127.0.0.1:9")
	var mu sync.Mutex
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, r.Method+" "+r.Host)
		w.WriteHeader(http.StatusForbidden)
	}))
	defer proxy.Close()
	profile := writeProbeFile(t, dir, "node.yaml", "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nsystemd: {proxy: {https: {env: WAY}, noProxy: [near.example]}}\n")
	env := map[string]string{"WAY": "http://robot:" + probePassword + "@" + proxy.Listener.Addr().String()}
	code, out, _ := explainCommandLine(t, t.Context(), env, "quay.invalid/team/app:1", "-f", profile, "--probe")
	wantProbe(t, out, "through proxy "+proxy.URL, "403: the proxy lets nobody through to quay.invalid")
	mu.Lock()
	defer mu.Unlock()
	if code != 1 || !slices.Equal(asked, []string{"CONNECT quay.invalid:443"}) {
		t.Errorf("code %d, the proxy was asked %q", code, asked)
	}
}

func TestExplainProbeIsInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}))
	defer s.Close()
	root := t.TempDir()
	code, out, errs := explainCommandLine(t, ctx, nil, s.Listener.Addr().String()+"/team/app:1", "--root", root, "--containerd", "2.4.2", "--probe")
	wantProbe(t, out, "interrupted")
	if code != 1 || !strings.Contains(errs, "context canceled") {
		t.Errorf("code %d: %s", code, errs)
	}
}

// unitOf is a systemd that has one unit.
type unitOf systemd.Properties

func (u unitOf) Properties(context.Context, string) (systemd.Properties, error) {
	return systemd.Properties(u), nil
}

// The daemon's proxy is that of its process, else what its unit would give it.
func TestTheProxyIsTheDaemons(t *testing.T) {
	dir := t.TempDir()
	writeProbeFile(t, dir, "proc/4711/cmdline", "/usr/local/bin/containerd\x00")
	writeProbeFile(t, dir, "proc/4711/environ", "PATH=/bin\x00https_proxy=http://running.example:3128\x00NO_PROXY=.example.net\x00")
	writeProbeFile(t, dir, "etc/containerd/proxy.env", "# a proxy\nHTTPS_PROXY=\"http://file.example:3128\"\n")
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		unit systemd.Properties
		live bool
		want string
	}{
		{"running", systemd.Properties{MainPID: 4711, Environment: []string{"HTTPS_PROXY=http://unit.example:3128"}}, true, "running.example:3128"},
		{"stopped", systemd.Properties{Environment: []string{"HTTPS_PROXY=http://unit.example:3128"}}, true, "unit.example:3128"},
		{"stopped, with a file", systemd.Properties{Environment: []string{"HTTPS_PROXY=http://unit.example:3128"}, EnvironmentFile: []string{"/etc/containerd/proxy.env"}}, true, "file.example:3128"},
		{"an image", systemd.Properties{MainPID: 4711}, false, ""},
	} {
		n := checks.NewNode(t.Context(), checks.Outside{
			Host: host.New(root), Live: c.live, Facts: host.Facts{SystemdInit: true},
			Units: func(context.Context) (checks.Units, error) { return unitOf(c.unit), nil },
		})
		a := &app{stdio: stdio{err: io.Discard}, out: &results{Writer: io.Discard}, env: func(string) (string, bool) { return "", false }}
		w := way{env: a.daemonEnvironment(n)}
		got := ""
		if u, err := w.proxy()(&url.URL{Scheme: "https", Host: "quay.example"}); err != nil {
			t.Error(err)
		} else if u != nil {
			got = u.Host
		}
		if got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
		if u, _ := w.proxy()(&url.URL{Scheme: "https", Host: "quay.example.net"}); c.name == "running" && u != nil {
			t.Errorf("NO_PROXY counts for nothing: %v", u)
		}
	}
}

// Token servers hear a mirror's headers since 2.1, and no release's rules are another's.
func TestHeadersForTokenServersByRelease(t *testing.T) {
	x := &registry.Explanation{Registry: "quay.example", Verb: registry.VerbPull, Hosts: []registry.ExplainedHost{{
		Host: "m.example", Parsed: registry.Parsed{Scheme: "https", Host: "m.example", Path: "/v2", Header: map[string][]string{"x-site": {"one"}, "X-Unread": {"(stands for a secret)"}}},
	}}}
	a := &app{}
	for release, want := range map[string]string{"1.7.24": "", "2.0.11": "", "2.1.9": "one", "2.4.2": "one"} {
		v, err := releases.ParseVersion(release)
		if err != nil {
			t.Fatal(err)
		}
		h := a.probedHost(x, 0, &way{release: v, unread: []string{"(stands for a secret)"}})
		if h.Header.Get("X-Site") != "one" || h.TokenHeader.Get("X-Site") != want || h.Header.Get("X-Unread") != "" {
			t.Errorf("%s: %v, %v", release, h.Header, h.TokenHeader)
		}
	}
}

// A hint names the field of the profile that is about the host.
func TestHintsNameTheField(t *testing.T) {
	spec := &profiles.Spec{Registries: []profiles.Registry{
		{Host: "quay.example", Mirrors: []profiles.Endpoint{{URL: "https://m.example"}}},
		{Host: "*", Mirrors: []profiles.Endpoint{{URL: "https://all.example"}}},
	}}
	for _, c := range []struct {
		registry string
		host     int
		want     string
	}{
		{"quay.example", 0, "registries.quay.example.mirrors[0].ca "},
		{"quay.example", 1, "registries.quay.example.ca "},
		{"other.example", 0, `registries."*".mirrors[0].ca `},
		{"other.example", 1, "registries.other.example.ca "},
	} {
		x := &registry.Explanation{Registry: c.registry, Hosts: make([]registry.ExplainedHost, 2)}
		if got := (&way{spec: spec}).hints(x, c.host).CA; !strings.Contains(got, c.want) {
			t.Errorf("%s, host %d: %s", c.registry, c.host, got)
		}
	}
	x := &registry.Explanation{Registry: "[fd00::1]:5000", ConfigPath: "/etc/containerd/certs.d", Folders: []registry.LookedAt{{Path: "/etc/containerd/certs.d/[fd00::1]_5000_"}, {Path: "/etc/containerd/certs.d/[fd00::1]:5000"}}, Hosts: []registry.ExplainedHost{{Host: "[fd00::1]:5000"}}}
	if got, want := (&way{}).hints(x, 0).CA, "/etc/containerd/certs.d/[fd00::1]_5000_/NAME.pem"; !strings.Contains(got, want) {
		t.Errorf("%s, want %s", got, want)
	}
}
