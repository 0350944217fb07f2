package registry_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

// oracle is containerd's own parser.
func oracle(t *testing.T) func([]byte, string) ([]registry.Parsed, error) {
	dir := t.TempDir()
	return func(text []byte, name string) ([]registry.Parsed, error) {
		opt := config.HostOptions{}
		if text != nil {
			// Anew: a file that is cut and written again goes to the disk at once.
			file := filepath.Join(dir, "hosts.toml")
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, err
			}
			if err := os.WriteFile(file, text, 0o600); err != nil {
				return nil, err
			}
			opt.HostDir = func(string) (string, error) { return dir, nil }
		}
		var said hook
		logger := logrus.New()
		logger.SetOutput(io.Discard)
		logger.AddHook(&said)
		hosts, err := config.ConfigureHosts(log.WithLogger(context.Background(), logrus.NewEntry(logger)), opt)(name)
		if said.err != nil {
			return nil, said.err
		}
		if err != nil {
			return nil, &registry.CertError{Err: err}
		}
		var out []registry.Parsed
		for _, h := range hosts {
			_, direct := h.Client.Transport.(*http.Transport)
			out = append(out, registry.Parsed{Scheme: h.Scheme, Host: h.Host, Path: h.Path, Header: h.Header, Fallback: !direct,
				Pull: h.Capabilities.Has(docker.HostCapabilityPull), Resolve: h.Capabilities.Has(docker.HostCapabilityResolve), Push: h.Capabilities.Has(docker.HostCapabilityPush)})
		}
		return out, nil
	}
}

type hook struct{ err error }

func (h *hook) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }
func (h *hook) Fire(e *logrus.Entry) error {
	h.err, _ = e.Data[logrus.ErrorKey].(error)
	if h.err == nil {
		h.err = errors.New(e.Message)
	}
	return nil
}

// tree is a node's files by path.
type tree map[string]string

func (f tree) query(t *testing.T, release string) registry.Query {
	q := registry.Query{
		ConfigPath: registry.Root, Parse: oracle(t),
		Exists: func(p string) (bool, error) {
			for name := range f {
				if name == p || strings.HasPrefix(name, p+"/") {
					return true, nil
				}
			}
			return false, nil
		},
		Read: func(p string) ([]byte, error) {
			if c, ok := f[p]; ok {
				return []byte(c), nil
			}
			return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
		},
		List: func(dir string) ([]string, error) {
			var out []string
			for name := range f {
				if path.Dir(name) == dir && path.Base(name) != "" && !strings.HasSuffix(name, "/") {
					out = append(out, path.Base(name))
				}
			}
			return slices.Sorted(slices.Values(out)), nil
		},
	}
	if release != "" {
		q.Release = releases.MustVersion(release)
	}
	return q
}

// short is whom an explanation asks: URLs of APIs, "-" before those that are skipped.
func short(x *registry.Explanation) []string {
	var out []string
	for _, h := range x.Hosts {
		s := h.URL
		if strings.HasPrefix(h.PlainHTTP, "HTTPS first") {
			s += " or http"
		}
		if h.Skipped != "" {
			s = "-" + s
		}
		out = append(out, s)
	}
	return out
}

// hostsToml is a hosts.toml of example.com, and whom releases then ask.
type hostsToml struct {
	name, releases, text string
	want                 []string
	note                 string
}

// hostsTomls are the rows of what parsers were seen to do, and others.
func hostsTomls() []hostsToml {
	const (
		up  = "https://example.com/v2"
		all = "1.6.20 1.6.38 1.7.10 1.7.24 1.7.34 1.7.35 2.0.0 2.0.11 2.1.9 2.2.7 2.3.4 2.4.2"
		v1  = "1.6.20 1.6.38 1.7.24 1.7.34"
		v2  = "2.0.11 2.1.9 2.2.7 2.3.4 2.4.2"
	)
	return []hostsToml{
		{"no scheme", all, `[host."a:5000"]`, []string{"https://a:5000/v2", up}, ""},
		{"begins with http", all, `[host."httpbin.local:5000"]`, []string{"-httpbin.local:///v2", up}, ""},
		{"plain", all, `[host."https://a"]`, []string{"https://a/v2", up}, ""},
		{"slash", all, `[host."https://a/"]`, []string{"https://a//v2", up}, ""},
		{"path", all, `[host."https://a/x/y"]`, []string{"https://a/x/y/v2", up}, ""},
		{"path with v2", all, `[host."https://a/v2/proj"]`, []string{"https://a/v2/proj/v2", up}, ""},
		{"path ends in v2", all, `[host."https://a/x/v2"]`, []string{"https://a/x/v2", up}, ""},
		{"path ends in v2/", all, `[host."https://a/x/v2/"]`, []string{"https://a/x/v2", up}, ""},
		{"override", all, "[host.\"https://a/v2/proj\"]\noverride_path = true", []string{"https://a/v2/proj", up}, ""},
		{"override of nothing", all, "[host.\"https://a\"]\noverride_path = true", []string{"https://a", up}, ""},
		{"server overridden", all, "server = \"https://h/v2/cache\"\noverride_path = true\n[host]", []string{"https://h/v2/cache"}, ""},
		{"unknown capability", all, "[host.\"https://a\"]\ncapabilities = [\"list\"]", []string{up}, "unknown capability list"},
		{"referrers, old", "1.6.20 1.7.35 2.0.11 2.1.9", "[host.\"https://a\"]\ncapabilities = [\"pull\", \"referrers\"]", []string{up}, "capability referrers"},
		{"referrers, new", "2.2.7 2.3.4 2.4.2", "[host.\"https://a\"]\ncapabilities = [\"pull\", \"resolve\", \"referrers\"]", []string{"https://a/v2", up}, ""},
		{"referrers of the server", "2.1.9", "server = \"https://a\"\ncapabilities = [\"referrers\"]\n[host]", []string{up}, "capability referrers"},
		{"inline, 1.x", v1, "[host]\n\"https://a\" = {capabilities = [\"pull\", \"resolve\"]}", []string{"https://a/v2", up}, ""},
		{"inline, 2.x", v2, "[host]\n\"https://a\" = {capabilities = [\"pull\", \"resolve\"]}", []string{up}, "host https://a in"},
		{"dotted, 1.x", v1, "host.\"https://a\".skip_verify = true", []string{"https://a/v2", up}, ""},
		{"dotted, 2.x", v2, "host.\"https://a\".skip_verify = true", []string{up}, "never asked"},
		{"client pair of one", all, "[host.\"https://a\"]\nclient = [[\"c.pem\"]]", []string{up}, "invalid pair"},
		{"ca of a number", all, "[host.\"https://a\"]\nca = 5", []string{up}, "is broken"},
		{"header of a number", all, "[host.\"https://a\"]\n[host.\"https://a\".header]\nx = 4711", []string{up}, "a value of the wrong type"},
		{"header", all, "[host.\"https://a\"]\n[host.\"https://a\".header]\nx = [\"4711\"]", []string{"https://a/v2", up}, ""},
		{"timeout of a number", "2.0.11 2.1.9 2.4.2", "[host.\"https://a\"]\ndial_timeout = \"5\"", []string{up}, "is broken"},
		{"timeout of a number, old", "1.6.20 1.7.35 2.0.0", "[host.\"https://a\"]\ndial_timeout = \"5\"", []string{"https://a/v2", up}, ""},
		{"timeout", all, "[host.\"https://a\"]\ndial_timeout = \"5s\"", []string{"https://a/v2", up}, ""},
		{"server", all, "server = \"https://m\"\n[host]", []string{"https://m/v2"}, ""},
		{"bare, old", "1.6.20 1.7.24", "server = \"https://m\"", []string{up}, "no [host] table"},
		{"bare, new", "1.7.32 1.7.35 " + v2, "server = \"https://m\"", []string{"https://m/v2"}, ""},
		{"server behind a host", all, "[host.\"https://a\"]\nserver = \"https://m\"", []string{"https://a/v2", up}, ""},
		{"order", all, "[host.\"https://z\"]\n[host.\"https://a\"]\n[host.\"https://m\"]", []string{"https://z/v2", "https://a/v2", "https://m/v2", up}, ""},
		{"another's table between, 1.x", v1, "[host.\"https://a\"]\n[host.\"https://b\"]\n[host.\"https://a\".header]\nx = \"y\"", []string{"https://a/v2", "https://b/v2", up}, ""},
		{"another's table between, 2.x", v2, "[host.\"https://a\"]\n[host.\"https://b\"]\n[host.\"https://a\".header]\nx = \"y\"", []string{"https://a/v2", "https://b/v2", "https://a/v2", up}, ""},
		{"twice", all, "[host.\"https://a\"]\n[host.\"https://a\"]", []string{up}, "is broken"},
		{"IPv6, 1.x", v1, "[host.\"https://[fd00::1]:5000\"]", []string{up}, "with a ] in it"},
		{"IPv6, 2.x", v2, "[host.\"https://[fd00::1]:5000\"]", []string{"https://[fd00::1]:5000/v2", up}, ""},
		{"http", all, "[host.\"http://a:5000\"]", []string{"http://a:5000/v2", up}, ""},
		{"http with TLS", "1.6.25 1.7.8 " + v2, "[host.\"http://a:5000\"]\nskip_verify = true", []string{"https://a:5000/v2 or http", up}, ""},
		{"http with TLS, old", "1.6.20 1.7.0", "[host.\"http://a:5000\"]\nskip_verify = true", []string{"http://a:5000/v2", up}, ""},
		{"http with TLS, no port", "1.7.24 " + v2, "[host.\"http://a\"]\nskip_verify = true", []string{"https://a/v2 or http", up}, ""},
		{"http with TLS, no port, old", "1.6.38 1.7.20", "[host.\"http://a\"]\nskip_verify = true", []string{"http://a/v2", up}, ""},
		{"http with TLS at 80", all, "[host.\"http://a:80\"]\nskip_verify = true", []string{"http://a:80/v2", up}, ""},
		{"http with a timeout, 2.0", "2.0.11", "[host.\"http://a:5000\"]\ndial_timeout = \"5s\"", []string{"https://a:5000/v2 or http", up}, ""},
		{"http with a timeout", "2.0.0 2.1.9 2.4.2", "[host.\"http://a:5000\"]\ndial_timeout = \"5s\"", []string{"http://a:5000/v2", up}, ""},
		{"pull only", all, "[host.\"https://a\"]\ncapabilities = [\"pull\"]", []string{"-https://a/v2", up}, ""},
		{"push only", all, "[host.\"https://a\"]\ncapabilities = [\"PUSH\"]", []string{"-https://a/v2", up}, ""},
		{"no TOML", all, "[host", []string{up}, "is broken"},
		{"empty", all, "", []string{up}, "no hosts.toml that counts"},
		{"unknown keys", all, "[host.\"https://a\"]\ninsecure = true\nusername = \"x\"", []string{"https://a/v2", up}, ""},
		{"server is docker.io", all, "server = \"https://docker.io\"\n[host]", []string{"https://docker.io/v2"}, ""},
	}
}

// What releases make of one file.
func TestHostsTomlByRelease(t *testing.T) {
	for _, c := range hostsTomls() {
		t.Run(c.name, func(t *testing.T) {
			for release := range strings.FieldsSeq(c.releases) {
				q := tree{registry.Root + "/example.com/hosts.toml": c.text}.query(t, release)
				q.Image = "example.com/a:1"
				x, err := registry.Explain(q)
				if err != nil {
					t.Errorf("%s: %v", release, err)
					continue
				}
				if diff := cmp.Diff(c.want, short(x)); diff != "" {
					t.Errorf("%s: hosts (-want +got):\n%s%v", release, diff, x.Notes)
				}
				if c.note != "" && !slices.ContainsFunc(x.Notes, func(n string) bool { return strings.Contains(n, c.note) }) {
					t.Errorf("%s: notes %q, want one with %q", release, x.Notes, c.note)
				}
				if b, _ := json.Marshal(x); strings.Contains(string(b), "4711") {
					t.Errorf("%s: a header's value is shown: %s", release, b)
				}
			}
		})
	}
}

// profileHosts is a registry of a profile, and whom releases then ask for an image.
type profileHosts struct {
	releases string
	reg      profiles.Registry
	image    string
	want     string // hosts with spaces between
	end      string
}

func profilesHosts() []profileHosts {
	yes, no := true, false
	m := func(urls ...string) []profiles.Endpoint {
		var out []profiles.Endpoint
		for _, u := range urls {
			out = append(out, profiles.Endpoint{URL: u})
		}
		return out
	}
	one := func(e profiles.Endpoint) []profiles.Endpoint { return []profiles.Endpoint{e} }
	header := []profiles.Header{{Name: "X-Any", Values: []profiles.Secret{{Value: "a", Plain: true}, {Value: "b", Plain: true}}}}
	local := profiles.LocalFile{Path: "/x/ca.pem", Given: "ca.pem"}
	client := []profiles.ClientCert{{Cert: profiles.LocalFile{Path: "/x/c.pem"}, Key: profiles.LocalFile{Path: "/x/k.pem"}}}
	const hub = "https://registry-1.docker.io/v2"
	return []profileHosts{
		{"1.6.20 1.7.35 2.1.9 2.4.2", profiles.Registry{Host: "docker.io", Mirrors: m("https://m")}, "nginx", "https://m/v2 " + hub, "upstream"},
		{"2.4.2", profiles.Registry{Host: "docker.io", Mirrors: m("https://m")}, "docker.io/library/nginx", "https://m/v2 " + hub, "upstream"},
		{"2.4.2", profiles.Registry{Host: "docker.io", Mirrors: m("https://m")}, "index.docker.io/library/nginx", "https://m/v2 " + hub, "upstream"},
		{"2.4.2", profiles.Registry{Host: "docker.io", Mirrors: m("https://m")}, "registry-1.docker.io/library/nginx", hub, "upstream"},
		{"1.6.20 1.7.35 2.1.9 2.4.2", profiles.Registry{Host: "docker.io"}, "nginx", hub, "upstream"},
		{"1.6.20 1.7.35 2.1.9 2.4.2", profiles.Registry{Host: "docker.io", Mirrors: m("https://m"), Deny: true}, "nginx", "https://m/v2", "server"},
		{"1.6.20 1.7.35 2.1.9 2.4.2", profiles.Registry{Host: "docker.io", Mirrors: m("https://m", "https://n"), Deny: true}, "nginx", "https://m/v2 https://n/v2", "server"},
		{"2.4.2", profiles.Registry{Host: "docker.io", Mirrors: m("https://m", hub[:len(hub)-3]), Deny: true}, "nginx", "https://m/v2 " + hub, "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://c", "https://a", "https://b")}, "quay.io/a/b", "https://c/v2 https://a/v2 https://b/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://m:8443/")}, "quay.io/a/b", "https://m:8443/v2 https://quay.io/v2", "upstream"},
		{"1.6.20 1.7.35 2.0.11 2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://harbor/v2/proj")}, "quay.io/a", "https://harbor/v2/proj https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://harbor/v2/proj/")}, "quay.io/a", "https://harbor/v2/proj https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://harbor/v2")}, "quay.io/a", "https://harbor/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://art/api/docker/x")}, "quay.io/a", "https://art/api/docker/x/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://art/api/docker/x/v2")}, "quay.io/a", "https://art/api/docker/x/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://nexus/repository/x", OverridePath: true})}, "quay.io/a", "https://nexus/repository/x https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://a", OverridePath: true})}, "quay.io/a", "https://a https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://a/v2ray")}, "quay.io/a", "https://a/v2ray/v2 https://quay.io/v2", "upstream"},
		{"1.6.20 1.7.35 2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("http://m:5000")}, "quay.io/a", "http://m:5000/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("http://m")}, "quay.io/a", "http://m/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "http://m:5000", SkipVerify: &yes})}, "quay.io/a", "https://m:5000/v2|http https://quay.io/v2", "upstream"},
		{"1.6.20", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "http://m:5000", SkipVerify: &yes})}, "quay.io/a", "http://m:5000/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "http://m:80", SkipVerify: &yes})}, "quay.io/a", "http://m:80/v2 https://quay.io/v2", "upstream"},
		{"2.0.11", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "http://m:5000", DialTimeout: time.Second})}, "quay.io/a", "https://m:5000/v2|http https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "http://m:5000", DialTimeout: time.Second})}, "quay.io/a", "http://m:5000/v2 https://quay.io/v2", "upstream"},
		{"2.0.7 2.1.0 2.1.9", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", DialTimeout: 5 * time.Second})}, "quay.io/a", "https://m/v2 https://quay.io/v2", "upstream"},
		{"1.6.20 1.7.35 2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", CA: []profiles.LocalFile{local}})}, "quay.io/a", "https://m/v2 https://quay.io/v2", ""},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", CA: []profiles.LocalFile{local, {Path: "/y/ca.pem"}}})}, "quay.io/a", "https://m/v2 https://quay.io/v2", ""},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", Client: client})}, "quay.io/a", "https://m/v2 https://quay.io/v2", ""},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "http://m:5000", CA: []profiles.LocalFile{local}})}, "quay.io/a", "https://m:5000/v2|http https://quay.io/v2", ""},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "http://m:5000", Client: client})}, "quay.io/a", "https://m:5000/v2|http https://quay.io/v2", ""},
		{"1.6.20 2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", SkipVerify: &yes})}, "quay.io/a", "https://m/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", SkipVerify: &no})}, "quay.io/a", "https://m/v2 https://quay.io/v2", "upstream"},
		{"1.6.20 1.7.35 2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", Header: header})}, "quay.io/a", "https://m/v2 https://quay.io/v2", "upstream"},
		{"1.6.20 2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", Capabilities: []string{"pull"}})}, "quay.io/a", "-https://m/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", Capabilities: []string{"Pull", "RESOLVE"}})}, "quay.io/a", "https://m/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", Capabilities: []string{"push"}})}, "quay.io/a", "-https://m/v2 https://quay.io/v2", "upstream"},
		{"2.2.0 2.2.7 2.4.2", profiles.Registry{Host: "quay.io", Mirrors: one(profiles.Endpoint{URL: "https://m", Capabilities: []string{"pull", "resolve", "referrers"}})}, "quay.io/a", "https://m/v2 https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Deny: true, Mirrors: one(profiles.Endpoint{URL: "https://m", Capabilities: []string{"pull"}})}, "quay.io/a", "-https://m/v2", "nobody"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Deny: true, Mirrors: one(profiles.Endpoint{URL: "https://m", Capabilities: []string{"pull"}})}, "quay.io/a@sha256:" + strings.Repeat("a", 64), "https://m/v2", "server"},
		{"1.6.20 1.7.35 2.4.2", profiles.Registry{Host: "r:5000"}, "r:5000/a", "https://r:5000/v2", "upstream"},
		{"1.6.20 1.7.35 2.4.2", profiles.Registry{Host: "r:5000", Server: &profiles.Endpoint{URL: "http://r:5000"}}, "r:5000/a", "http://r:5000/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "r:5000", Server: &profiles.Endpoint{URL: "http://other:5000"}}, "r:5000/a", "http://other:5000/v2", "server"},
		{"2.4.2", profiles.Registry{Host: "r.example", Server: &profiles.Endpoint{CA: []profiles.LocalFile{local}}}, "r.example/a", "https://r.example/v2", ""},
		{"2.4.2", profiles.Registry{Host: "r.example", Server: &profiles.Endpoint{URL: "https://r.example/v2/cache"}}, "r.example/a", "https://r.example/v2/cache", "upstream"},
		{"2.4.2", profiles.Registry{Host: "r.example", Server: &profiles.Endpoint{Capabilities: []string{"push"}}, Mirrors: m("https://m")}, "r.example/a", "https://m/v2 -https://r.example/v2", "upstream"},
		{"1.6.20 1.7.35 2.0.11 2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://[fd00::1]:5000")}, "quay.io/a", "https://[fd00::1]:5000/v2 https://quay.io/v2", "upstream"},
		{"1.6.20 1.7.35 2.0.11 2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://z", "https://[fd00::1]", "https://a")}, "quay.io/a", "https://z/v2 https://[fd00::1]/v2 https://a/v2 https://quay.io/v2", "upstream"},
		{"1.6.20 2.4.2", profiles.Registry{Host: "[fd00::1]:5000"}, "[fd00::1]:5000/a", "https://[fd00::1]:5000/v2", "upstream"},
		{"1.7.35 2.4.2", profiles.Registry{Host: "localhost:5000"}, "localhost:5000/a", "https://localhost:5000/v2|http", "upstream"},
		{"1.6.20 1.7.6", profiles.Registry{Host: "localhost:5000"}, "localhost:5000/a", "http://localhost:5000/v2", "upstream"},
		{"1.6.8", profiles.Registry{Host: "localhost:5000"}, "localhost:5000/a", "https://localhost:5000/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "localhost:80"}, "localhost:80/a", "http://localhost:80/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "localhost"}, "localhost/a", "https://localhost/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "127.0.0.1:443"}, "127.0.0.1:443/a", "https://127.0.0.1:443/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "localhost:5000", Mirrors: m("https://m")}, "localhost:5000/a", "https://m/v2 https://localhost:5000/v2|http", "upstream"},
		{"1.6.17 1.6.20 1.7.0 2.4.2", profiles.Registry{Host: "*", Mirrors: m("https://m:5000"), Deny: true}, "quay.io/a", "https://m:5000/v2", "server"},
		{"2.4.2", profiles.Registry{Host: "*", Mirrors: m("https://m:5000"), Deny: true}, "nginx", "https://m:5000/v2", "server"},
		{"2.4.2", profiles.Registry{Host: "*", Mirrors: m("https://m:5000"), Deny: true}, "registry.k8s.io/pause:3.10", "https://m:5000/v2", "server"},
		{"2.4.2", profiles.Registry{Host: "*", Mirrors: m("https://m:5000"), Deny: true}, "gcr.io/a", "https://m:5000/v2", "server"},
		{"2.4.2", profiles.Registry{Host: "*", Mirrors: m("https://m:5000"), Deny: true}, "ghcr.io/a", "https://m:5000/v2", "server"},
		{"1.6.20 2.4.2", profiles.Registry{Host: "*", Mirrors: m("https://m")}, "quay.io/a", "https://m/v2 https://quay.io/v2", "upstream"},
		{"1.6.20 2.4.2", profiles.Registry{Host: "*", Mirrors: m("https://m")}, "nginx", "https://m/v2 " + hub, "upstream"},
		{"2.4.2", profiles.Registry{Host: "*", Mirrors: m("https://m")}, "localhost:5000/a", "https://m/v2 https://localhost:5000/v2|http", "upstream"},
		{"2.4.2", profiles.Registry{Host: "*", Server: &profiles.Endpoint{SkipVerify: &yes}}, "quay.io/a", "https://quay.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://m")}, "gcr.io/a", "https://gcr.io/v2", "upstream"},
		{"2.4.2", profiles.Registry{Host: "quay.io", Mirrors: m("https://quay.io")}, "quay.io/a", "https://quay.io/v2 https://quay.io/v2", "upstream"},
	}
}

// What a profile says, and whom containerd then asks. Each is read back by containerd's own
// parser.
func TestProfileToHosts(t *testing.T) {
	count := 0
	for _, c := range profilesHosts() {
		for release := range strings.FieldsSeq(c.releases) {
			count++
			t.Run(fmt.Sprintf("%d %s %s", count, release, c.image), func(t *testing.T) {
				spec := &profiles.Spec{
					Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion(release)}},
					Registries: []profiles.Registry{c.reg},
				}
				files, faults := registry.Files(spec, nil)
				if faults.HasErrors() {
					t.Fatal(faults)
				}
				if faults := registry.ReadBack(spec, files, oracle(t)); len(faults) > 0 {
					t.Fatal(faults)
				}
				f := tree{}
				for _, file := range files {
					f[file.Path] = string(file.Content)
				}
				q := f.query(t, release)
				q.Image = c.image
				x, err := registry.Explain(q)
				if err != nil {
					t.Fatal(err)
				}
				got := strings.ReplaceAll(strings.Join(short(x), " "), " or http", "|http")
				if got != c.want {
					t.Errorf("asks %s\nwant %s\n%s", got, c.want, files[0].Content)
				}
				if c.end != "" && x.End != c.end {
					t.Errorf("ends at %s, want %s: %s", x.End, c.end, x.Outcome)
				}
			})
		}
	}
	if count < 60 {
		t.Errorf("only %d cases", count)
	}
}

// A mistake of rendering is found before anything is written.
func TestReadBackFindsWhatWasNotPlanned(t *testing.T) {
	spec := &profiles.Spec{
		Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("2.4.2")}},
		Registries: []profiles.Registry{{Host: "quay.io", Mirrors: []profiles.Endpoint{
			{URL: "https://a", Capabilities: []string{"pull", "resolve"}, Header: []profiles.Header{{Name: "X-A", Values: []profiles.Secret{{Value: "v", Plain: true}}}}},
			{URL: "https://b/v2/proj", CA: []profiles.LocalFile{{Path: "/x/ca.pem"}}},
		}}},
	}
	files, _ := registry.Files(spec, nil)
	good := string(files[0].Content)
	for name, change := range map[string][2]string{
		"order": {`'https://a'`, `'https://z'`}, "override": {"override_path = true", ""}, "caps": {"resolve", "push"}, "header": {"X-A", "X-B"},
		"ca": {"ca = ", "x = "}, "server": {"https://quay.io", "https://example.com"}, "broken": {"[host", "[hos"}, "toml": {"server", "="}, "skip": {"override_path", "skip_verify = true\noverride_path"},
		"scheme": {"https://a", "http://a"}, "more": {"[host.'https://b", "[host.c]\n[host.'https://b"},
	} {
		t.Run(name, func(t *testing.T) {
			bad := strings.Replace(good, change[0], change[1], -1)
			if bad == good {
				t.Fatalf("nothing changed in\n%s", good)
			}
			wrong := slices.Clone(files)
			wrong[0].Content = []byte(bad)
			faults := registry.ReadBack(spec, wrong, oracle(t))
			if !faults.HasErrors() || !strings.Contains(faults[0].Message, "/etc/containerd/certs.d/quay.io/hosts.toml is not what was planned: ") {
				t.Errorf("faults %v of\n%s", faults, bad)
			}
		})
	}
	if faults := registry.ReadBack(spec, nil, oracle(t)); !faults.HasErrors() {
		t.Error("no folder is no fault")
	}
	if faults := registry.ReadBack(spec, files, oracle(t)); len(faults) > 0 {
		t.Error(faults)
	}
}

// The folders are those that containerd's own code looks at.
func TestFoldersAsContainerdLooksForThem(t *testing.T) {
	for _, image := range []string{"nginx", "quay.io/a", "r:5000/a", "localhost:5000/a", "[::1]:5000/a", "[fd00::1]/a"} {
		q := tree{}.query(t, "2.4.2")
		q.Image = image
		x, err := registry.Explain(q)
		if err != nil {
			t.Fatal(err)
		}
		for i := range x.Folders {
			root := t.TempDir()
			f := tree{}
			for _, p := range x.Folders[i:] {
				name := strings.TrimPrefix(p.Path, registry.Root+"/")
				if err := os.Mkdir(filepath.Join(root, name), 0o700); err != nil {
					t.Fatal(err)
				}
				f[p.Path+"/"] = ""
			}
			dir, err := config.HostDirFromRoot(root)(x.Registry)
			if err != nil {
				t.Fatal(err)
			}
			q := f.query(t, "2.4.2")
			q.Image = image
			y, err := registry.Explain(q)
			if err != nil {
				t.Fatal(err)
			}
			chosen := ""
			for _, p := range y.Folders {
				if p.Chosen {
					chosen = path.Base(p.Path)
				}
			}
			if chosen != filepath.Base(dir) {
				t.Errorf("%s: folder %s, containerd takes %s", image, chosen, filepath.Base(dir))
			}
		}
		if !strings.HasSuffix(x.Folders[len(x.Folders)-1].Path, "/_default") {
			t.Errorf("%s: folders %v", image, x.Folders)
		}
	}
	q := tree{registry.Root + "/_default/hosts.toml": "server = \"https://m\"\n[host]"}.query(t, "1.6.16")
	q.Image = "quay.io/a"
	if x, err := registry.Explain(q); err != nil || short(x)[0] != "https://quay.io/v2" || len(x.Folders) != 1 {
		t.Errorf("1.6.16 looks at _default: %+v, %v", x, err)
	}
}

func TestReferences(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	for image, want := range map[string]string{
		"nginx": "docker.io/library/nginx:latest", "docker.io/nginx:1": "docker.io/library/nginx:1", "index.docker.io/a/b": "docker.io/a/b:latest",
		"registry.example.com/a/b/c:1": "registry.example.com/a/b/c:1", "localhost/a": "localhost/a:latest", "host:5000/a": "host:5000/a:latest",
		"harbor/a": "docker.io/harbor/a:latest", "nginx:1@" + digest: "docker.io/library/nginx@" + digest, "a/b@" + digest: "docker.io/a/b@" + digest,
	} {
		q := tree{}.query(t, "")
		q.Image = image
		x, err := registry.Explain(q)
		if err != nil || x.Reference != want {
			t.Errorf("%s: %+v, %v; want %s", image, x, err, want)
		}
	}
	for _, image := range []string{"", "a/UPPER", "a b", "https://quay.io/a", "x@sha256:12", "a:b:c"} {
		q := tree{}.query(t, "")
		q.Image = image
		if x, err := registry.Explain(q); err == nil {
			t.Errorf("%q is taken: %+v", image, x)
		}
	}
}

// requests of all hosts, in order.
func requests(x *registry.Explanation) []string {
	var out []string
	for _, h := range x.Hosts {
		for _, r := range h.Requests {
			out = append(out, r.Method+" "+r.URL)
		}
	}
	return out
}

func TestRequests(t *testing.T) {
	digest := "sha256:" + strings.Repeat("a", 64)
	f := tree{registry.Root + "/docker.io/hosts.toml": "server = \"https://registry-1.docker.io\"\n[host.\"https://m:5000/v2/p\"]\noverride_path = true\ncapabilities = [\"pull\", \"resolve\"]\n" +
		"[host.\"https://layers\"]\ncapabilities = [\"pull\"]\n[host.\"https://inbox\"]\ncapabilities = [\"push\"]\n"}
	for _, c := range []struct {
		verb, release, image string
		want                 []string
	}{
		{"resolve", "2.4.2", "nginx:1", []string{
			"HEAD https://m:5000/v2/p/library/nginx/manifests/1?ns=docker.io", "HEAD https://registry-1.docker.io/v2/library/nginx/manifests/1",
		}},
		{"pull", "2.4.2", "nginx:1", []string{
			"HEAD https://m:5000/v2/p/library/nginx/manifests/1?ns=docker.io",
			"GET https://m:5000/v2/p/library/nginx/manifests/DIGEST?ns=docker.io", "GET https://m:5000/v2/p/library/nginx/blobs/DIGEST?ns=docker.io",
			"GET https://layers/v2/library/nginx/manifests/DIGEST?ns=docker.io", "GET https://layers/v2/library/nginx/blobs/DIGEST?ns=docker.io",
			"GET https://inbox/v2/library/nginx/manifests/DIGEST?ns=docker.io", "GET https://inbox/v2/library/nginx/blobs/DIGEST?ns=docker.io",
			"HEAD https://registry-1.docker.io/v2/library/nginx/manifests/1",
			"GET https://registry-1.docker.io/v2/library/nginx/manifests/DIGEST", "GET https://registry-1.docker.io/v2/library/nginx/blobs/DIGEST",
		}},
		{"resolve", "2.4.2", "nginx@" + digest, []string{
			"HEAD https://m:5000/v2/p/library/nginx/manifests/" + digest + "?ns=docker.io", "HEAD https://layers/v2/library/nginx/manifests/" + digest + "?ns=docker.io",
			"HEAD https://registry-1.docker.io/v2/library/nginx/manifests/" + digest,
		}},
		{"push", "2.4.2", "nginx:1", []string{
			"HEAD https://inbox/v2/library/nginx/blobs/DIGEST?ns=docker.io", "POST https://inbox/v2/library/nginx/blobs/uploads/?ns=docker.io", "PUT LOCATION?digest=DIGEST&ns=docker.io",
			"HEAD https://inbox/v2/library/nginx/manifests/1?ns=docker.io", "PUT https://inbox/v2/library/nginx/manifests/1?ns=docker.io",
		}},
		{"push", "2.2.7", "nginx:1", []string{
			"HEAD https://inbox/v2/library/nginx/blobs/DIGEST", "POST https://inbox/v2/library/nginx/blobs/uploads/", "PUT LOCATION?digest=DIGEST",
			"HEAD https://inbox/v2/library/nginx/manifests/1", "PUT https://inbox/v2/library/nginx/manifests/1",
		}},
	} {
		q := f.query(t, c.release)
		q.Image, q.Verb = c.image, c.verb
		x, err := registry.Explain(q)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, requests(x)); diff != "" {
			t.Errorf("%s %s, %s (-want +got):\n%s", c.verb, c.image, c.release, diff)
		}
	}
}

// What makes a pull fail as a whole, where credentials are from, and what ctr would do.
func TestAround(t *testing.T) {
	pair, err := os.ReadFile("../testdata/pair.pem")
	if err != nil {
		t.Fatal(err)
	}
	const dir = registry.Root + "/quay.io/"
	explain := func(f tree, change func(*registry.Query)) *registry.Explanation {
		t.Helper()
		q := f.query(t, "2.4.2")
		q.Image = "quay.io/a:1"
		if change != nil {
			change(&q)
		}
		x, err := registry.Explain(q)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	with := func(keys string, more tree) tree {
		f := tree{dir + "hosts.toml": "[host.\"https://m\"]\n" + keys + "\n[host.\"https://n\"]\n"}
		maps.Copy(f, more)
		return f
	}
	for _, c := range []struct {
		keys string
		more tree
		want string
	}{
		{`ca = "ca.pem"`, nil, "fails, and nobody is asked: the CA file " + dir + "ca.pem cannot be read: it is not there"},
		{`ca = ["/etc/x.pem"]`, nil, "the CA file /etc/x.pem cannot be read"},
		{`ca = "ca.pem"`, tree{dir + "ca.pem": "junk"}, "has no certificate in PEM"},
		{`client = "c.pem"`, nil, "the client certificate " + dir + "c.pem cannot be read"},
		{`client = [["c.pem", "k.pem"]]`, tree{dir + "c.pem": string(pair)}, "the key " + dir + "k.pem cannot be read"},
		{`client = [["c.pem", ""]]`, tree{dir + "c.pem": string(pair)}, "the key " + strings.TrimSuffix(dir, "/") + " cannot be read"},
		{`client = ["c.cert", "c.key"]`, tree{dir + "c.cert": "x", dir + "c.key": "y"}, "failed to find any PEM data"},
	} {
		x := explain(with(c.keys, c.more), nil)
		if !x.Fails || !strings.Contains(x.Outcome, c.want) || len(requests(x)) > 0 || x.End != "nobody" {
			t.Errorf("%s: %s, want %s", c.keys, x.Outcome, c.want)
		}
	}
	x := explain(with("ca = \"ca.pem\"\nclient = \"ca.pem\"", tree{dir + "ca.pem": string(pair)}), nil)
	if h := x.Hosts[0]; x.Fails || h.CA[0] != dir+"ca.pem" || h.Client[0] != [2]string{dir + "ca.pem", dir + "ca.pem"} || h.From != dir+"hosts.toml:1" {
		t.Errorf("%+v", h)
	}
	// Docker's own layout.
	x = explain(tree{dir + "a.crt": string(pair), dir + "c.cert": string(pair), dir + "c.key": string(pair)}, nil)
	if h := x.Hosts[0]; x.Fails || h.URL != "https://quay.io/v2" || len(h.CA) != 1 || h.Client[0][1] != dir+"c.key" {
		t.Errorf("%+v", x)
	}

	creds := func(q *registry.Query) {
		q.Credentials = map[string]string{"m": `registry.configs."m".auth (/etc/containerd/config.toml:9)`}
		q.Local = []string{"registry.configs"}
		q.Headers = []string{"X-All"}
	}
	x = explain(with("[host.\"https://m\".header]\nX-A = \"4711\"", nil), creds)
	if h := x.Hosts[0]; !strings.Contains(h.Credentials, "config.toml:9") || h.Headers["X-A"] != "******" || h.Headers["X-All"] == "" || x.Service != "local" || !strings.HasPrefix(x.Hosts[1].Credentials, "none") {
		t.Errorf("%+v", x)
	}
	if x.Ctr.Command != "ctr -n k8s.io images pull --hosts-dir /etc/containerd/certs.d quay.io/a:1" || x.Ctr.Without != "https://quay.io" {
		t.Errorf("ctr: %+v", x.Ctr)
	}
	x = explain(with("[host.\"https://m\".header]\nauthorization = \"Basic 4711\"", nil), creds)
	if h := x.Hosts[0]; h.Credentials != "header Authorization of hosts.toml" {
		t.Errorf("%+v", h)
	}

	// Several folders: one name for the transfer service, a list for the others.
	two := func(q *registry.Query) { q.ConfigPath = "/a:" + registry.Root }
	x = explain(with("", nil), two)
	if got := short(x); x.Service != "transfer" || len(got) != 1 || !strings.Contains(strings.Join(x.Notes, " "), "no hosts.toml is read") {
		t.Errorf("%v %+v", got, x)
	}
	for _, release := range []string{"1.6.20", "1.7.35", "2.0.11"} {
		x = explain(with("", nil), func(q *registry.Query) { two(q); q.Release = releases.MustVersion(release) })
		if got := short(x); len(got) != 3 || x.Service != "" || x.Ctr.Command != "ctr -n k8s.io images pull --hosts-dir /etc/containerd/certs.d quay.io/a:1" {
			t.Errorf("%s: %v %+v", release, got, x)
		}
	}
	x = explain(with("", nil), func(q *registry.Query) { two(q); q.Local = []string{"use_local_image_pull"} })
	if got := short(x); len(got) != 3 {
		t.Errorf("%v", got)
	}
	x = explain(tree{"/a/_default/hosts.toml": "", dir + "hosts.toml": "[host.\"https://m\"]"}, func(q *registry.Query) { two(q); q.Release = releases.MustVersion("1.7.35") })
	if got := short(x); len(got) != 1 || !strings.Contains(strings.Join(x.Notes, " "), "/a/_default has no hosts.toml that counts") {
		t.Errorf("_default of the first folder: %v %v", got, x.Notes)
	}

	// Mirrors of config.toml.
	legacy := func(q *registry.Query) {
		q.ConfigPath, q.Release = "", releases.MustVersion("1.6.20")
		q.Legacy = map[string][]string{"quay.io": {"http://m:5000", "n/x"}, "*": {"https://all"}}
	}
	x = explain(with("", nil), legacy)
	if diff := cmp.Diff([]string{"http://m:5000/v2", "https://n/x", "https://quay.io/v2"}, short(x)); diff != "" {
		t.Error(diff)
	}
	x = explain(with("", nil), func(q *registry.Query) { legacy(q); q.Image = "nginx" })
	if diff := cmp.Diff([]string{"https://all/v2", "https://registry-1.docker.io/v2"}, short(x)); diff != "" {
		t.Error(diff)
	}
	// Their TLS, which is for 1.x without config_path alone.
	ca := tree{"/x/ca.pem": "junk", "/x/c.pem": string(pair)}
	secure := func(change func(*registry.LegacyTLS)) func(*registry.Query) {
		return func(q *registry.Query) {
			legacy(q)
			l := registry.LegacyTLS{CA: "/x/ca.pem", Cert: "/x/c.pem", Key: "/x/c.pem", SkipVerify: true, Place: "/etc/containerd/config.toml:7"}
			if change != nil {
				change(&l)
			}
			q.LegacyTLS = map[string]registry.LegacyTLS{"m:5000": l}
		}
	}
	x = explain(with("", ca), secure(nil))
	if h := x.Hosts[0]; x.Fails || h.CA[0] != "/x/ca.pem" || h.Client[0] != [2]string{"/x/c.pem", "/x/c.pem"} || !h.SkipVerify || x.Hosts[1].SkipVerify || h.PlainHTTP != "plain HTTP" {
		t.Errorf("%+v", x)
	}
	for want, change := range map[string]func(*registry.LegacyTLS){
		"the CA file /x/none.pem cannot be read": func(l *registry.LegacyTLS) { l.CA = "/x/none.pem" },
		"and no key_file":                        func(l *registry.LegacyTLS) { l.Key = "" },
		"and no cert_file":                       func(l *registry.LegacyTLS) { l.Cert = "" },
		"the client certificate /x/ca.pem":       func(l *registry.LegacyTLS) { l.Cert = "/x/ca.pem" },
	} {
		if x = explain(with("", ca), secure(change)); !x.Fails || !strings.Contains(x.Outcome, want) {
			t.Errorf("%s: %s", want, x.Outcome)
		}
	}
	x = explain(with("", ca), func(q *registry.Query) { secure(nil)(q); q.ConfigPath, q.Legacy = registry.Root, nil })
	if !x.Fails || !strings.Contains(x.Outcome, "refuses to start CRI") {
		t.Errorf("tls beside config_path: %s", x.Outcome)
	}
	x = explain(with("", ca), func(q *registry.Query) {
		secure(nil)(q)
		q.ConfigPath, q.Release = registry.Root, releases.MustVersion("2.1.9")
	})
	if h := x.Hosts[0]; x.Fails || h.SkipVerify || !strings.Contains(strings.Join(x.Notes, " "), `registry.configs."m:5000".tls (/etc/containerd/config.toml:7): containerd 2 does not know it`) {
		t.Errorf("tls on 2.x: %+v", x)
	}
	x = explain(with("", nil), func(q *registry.Query) { q.ConfigPath, q.Release = "", releases.MustVersion("1.7.35") })
	if len(x.Hosts) != 1 || !strings.Contains(strings.Join(x.Notes, " "), "there is no config_path") {
		t.Errorf("%+v", x)
	}
}

// What a pull cannot get around, and what a file says that containerd takes otherwise.
func TestForeignFiles(t *testing.T) {
	const dir = registry.Root + "/quay.io/"
	explain := func(f tree, release string, change func(*registry.Query)) *registry.Explanation {
		t.Helper()
		q := f.query(t, release)
		q.Image = "quay.io/a:1"
		if change != nil {
			change(&q)
		}
		x, err := registry.Explain(q)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}
	hosts := func(text string) tree { return tree{dir + "hosts.toml": text} }
	fails := func(x *registry.Explanation, want string) {
		t.Helper()
		if !x.Fails || x.End != "nobody" || !strings.Contains(x.Outcome, want) || len(requests(x)) > 0 {
			t.Errorf("%s, want %s: %v", x.Outcome, want, requests(x))
		}
	}
	noted := func(x *registry.Explanation, want string) {
		t.Helper()
		if !strings.Contains(strings.Join(x.Notes, "\n"), want) {
			t.Errorf("notes %q, want %s", x.Notes, want)
		}
	}

	// Without containerd nothing goes, without CRI a push does.
	down := func(q *registry.Query) { q.Down, q.NoCRI = "config.toml:1: broken", "CRI is disabled" }
	x := explain(nil, "2.4.2", down)
	fails(x, "containerd does not start: config.toml:1: broken")
	if x.Ctr.Command != "" || x.Ctr.Without != "" || x.Hosts == nil || x.Folders == nil {
		t.Errorf("%+v", x)
	}
	off := func(q *registry.Query) { q.NoCRI = "CRI is disabled" }
	x = explain(hosts(`[host."https://m"]`), "2.4.2", off)
	fails(x, "nobody is asked: CRI is disabled")
	if x.Ctr.Command != "" || x.Ctr.Without != "https://quay.io" || len(x.Hosts) != 2 {
		t.Errorf("%+v", x)
	}
	x = explain(nil, "2.4.2", func(q *registry.Query) { off(q); q.Verb = registry.VerbPush })
	noted(x, "CRI is disabled; a push needs no CRI")
	if x.Fails || !strings.HasPrefix(x.Ctr.Command, "ctr -n k8s.io images push ") {
		t.Errorf("%+v", x)
	}

	// What cannot be read for another reason than that it is not there, or not for us.
	bad := errors.New("is a directory")
	for name, change := range map[string]func(*registry.Query, error){
		"folder": func(q *registry.Query, err error) { q.Exists = func(string) (bool, error) { return false, err } },
		"file":   func(q *registry.Query, err error) { q.Read = func(string) ([]byte, error) { return nil, err } },
		"list": func(q *registry.Query, err error) {
			q.Read = func(string) ([]byte, error) { return nil, fs.ErrNotExist }
			q.List = func(string) ([]string, error) { return nil, err }
		},
	} {
		x = explain(hosts("[host]"), "2.4.2", func(q *registry.Query) { change(q, &fs.PathError{Op: "read", Path: "x", Err: bad}) })
		fails(x, " cannot be read: is a directory")
		q := hosts("[host]").query(t, "2.4.2")
		q.Image = "quay.io/a"
		change(&q, fs.ErrPermission)
		if _, err := registry.Explain(q); !errors.Is(err, fs.ErrPermission) {
			t.Errorf("%s without permission: %v", name, err)
		}
	}

	// A last host without a name is the registry itself, whatever stands beside it.
	for _, server := range []string{"httpbin.local:5000", "https:///v2", "https://"} {
		for _, release := range []string{"1.6.20", "1.7.35", "2.0.11", "2.4.2"} {
			x = explain(hosts(fmt.Sprintf("server = %q\ncapabilities = [\"push\"]\n[host]\n", server)), release, nil)
			noted(x, fmt.Sprintf("the server %q of %shosts.toml:1 has no host", server, dir))
			if h := x.Hosts[0]; x.Fails || h.URL != "https://quay.io/v2" || h.Role != "upstream" || len(h.Capabilities) != 3 || x.End != "upstream" {
				t.Errorf("%s: %+v", release, x)
			}
		}
	}
	x = explain(tree{registry.Root + "/localhost_5000_/hosts.toml": "server = \"https:///v2\"\n[host]\n"}, "2.4.2", func(q *registry.Query) { q.Image = "localhost:5000/a" })
	if h := x.Hosts[0]; h.URL != "https://localhost:5000/v2" || !strings.HasPrefix(h.PlainHTTP, "HTTPS first") || !h.SkipVerify {
		t.Errorf("%+v", h)
	}

	// What the parser says, without its code.
	for text, want := range map[string]string{
		"[host.\"https://m\"]\noverride_path = 3\n":         "(a value of the wrong type in line 2)",
		"[host.\"https://m\"]\n\ncapabilities = \"pull\"\n": "(a value of the wrong type in line 3)",
		"[host.\"https://m\"]\nca = 3\n":                    "(a value of the wrong type)",
		"[host.\"https://m\".header]\nX = 3\n":              "(a value of the wrong type)",
		"[host]\n\n[host.\"https://m\"\n":                   " in line 3)",
	} {
		x = explain(hosts(text), "2.4.2", nil)
		noted(x, want)
		if all := strings.Join(x.Notes, " "); strings.Contains(all, "struct") || strings.Contains(all, "Go ") {
			t.Errorf("%s", all)
		}
		// An older release reads a text of ours, whose lines are others.
		if x = explain(hosts(text), "1.7.35", nil); len(x.Notes) == 0 || strings.Contains(strings.Join(x.Notes, " "), " in line ") {
			t.Errorf("1.7.35: %q", x.Notes)
		}
	}

	// Users and passwords of URLs, whether they parse or not.
	const user = "u:pa/SECRETss@m1"
	for _, c := range []struct{ release, text string }{
		{"2.4.2", "[host.\"https://" + user + "\"]"}, {"2.4.2", "[host]\n\"https://" + user + "\" = {}"}, {"2.4.2", "server = \"" + user + "\"\n[host]"},
		{"1.7.35", "[host]\n\"https://" + user + "\" = 3"}, {"1.7.35", "[host]\n\"https://" + user + "\" = {}\n\"" + user + "\" = {}"},
		{"2.4.2", "[host.\"https://" + user + "\"]\n[host.\"https://" + user + "\"]"}, {"1.7.35", "[host.\"https://" + user + "\"]\ncapabilities = [\"x\"]"},
		{"2.4.2", "server = \"https://u:SECRET@/v2\"\n[host]"},
	} {
		x = explain(hosts(c.text), c.release, nil)
		if b, err := json.Marshal(x); err != nil || strings.Contains(string(b), "SECRET") {
			t.Errorf("%s: %v\n%s", c.text, err, b)
		}
	}
	x = explain(nil, "1.7.35", func(q *registry.Query) {
		q.ConfigPath, q.Legacy = "", map[string][]string{"quay.io": {"https://" + user, "https://u:SECRET@m2"}}
		q.LegacyTLS = map[string]registry.LegacyTLS{user: {Place: "config.toml:1"}}
	})
	fails(x, `the endpoint "https://******@m1" of registry.mirrors is no URL`)
	if b, err := json.Marshal(x); err != nil || strings.Contains(string(b), "SECRET") {
		t.Errorf("%v %s", err, b)
	}
	x = explain(nil, "2.4.2", func(q *registry.Query) { q.LegacyTLS = map[string]registry.LegacyTLS{user: {Place: "config.toml:1"}} })
	noted(x, `registry.configs."******@m1".tls`)
}

// The line of ctr goes the way of CRI, or there is none; passwords go to nobody else.
func TestCtr(t *testing.T) {
	const dir = registry.Root + "/quay.io/"
	mirror := tree{dir + "hosts.toml": "server = \"https://quay.io\"\n[host.\"https://m\"]\n"}
	only := tree{dir + "hosts.toml": "server = \"https://m\"\n[host]\n"}
	auth := func(hosts ...string) func(*registry.Query) {
		return func(q *registry.Query) {
			q.Credentials, q.Local = map[string]string{}, []string{"registry.configs"}
			for _, h := range hosts {
				q.Credentials[h] = "registry.configs"
			}
		}
	}
	legacy := func(mirrors map[string][]string) func(*registry.Query) {
		return func(q *registry.Query) { q.ConfigPath, q.Local, q.Legacy = "", []string{"registry.mirrors"}, mirrors }
	}
	const line, all = "ctr -n k8s.io images pull ", "--hosts-dir /etc/containerd/certs.d "
	for _, c := range []struct {
		name, release, image string
		files                tree
		change               func(*registry.Query)
		want, lacks          string
	}{
		{"mirror", "2.4.2", "quay.io/a:1", mirror, nil, line + all + "quay.io/a:1", ""},
		{"mirror's user", "2.4.2", "quay.io/a:1", mirror, auth("m"), line + all + "quay.io/a:1", "goes without those for m: --user would offer them to all of m, quay.io"},
		{"registry's user", "2.4.2", "quay.io/a:1", mirror, auth("quay.io"), line + all + "quay.io/a:1", "goes without those for quay.io: "},
		{"both users", "2.4.2", "quay.io/a:1", mirror, auth("m", "quay.io"), line + all + "quay.io/a:1", "goes without those for m and quay.io"},
		{"only one", "2.4.2", "quay.io/a:1", only, auth("m"), line + all + "--user USER quay.io/a:1", "asks for the password of USER"},
		{"another's user", "2.4.2", "quay.io/a:1", only, auth("n"), line + all + "quay.io/a:1", ""},
		{"push", "2.4.2", "quay.io/a:1", mirror, func(q *registry.Query) { auth("m")(q); q.Verb = registry.VerbPush }, "ctr -n k8s.io images push " + all + "--user USER quay.io/a:1", "asks for the password of USER"},
		{"two folders", "2.4.2", "quay.io/a:1", mirror, func(q *registry.Query) { q.ConfigPath += ":/etc/docker/certs.d" }, line + "quay.io/a:1", ""},
		{"two folders, local", "2.4.2", "quay.io/a:1", mirror, func(q *registry.Query) { q.ConfigPath = "/x:" + registry.Root; q.Local = []string{"x"} }, line + all + "quay.io/a:1", ""},
		{"legacy", "2.4.2", "nginx", nil, legacy(map[string][]string{"docker.io": {"https://m1"}}), "", "crictl pull goes it"},
		{"legacy's user", "1.7.35", "nginx", nil, func(q *registry.Query) { auth("m1")(q); legacy(map[string][]string{"*": {"https://m1"}})(q) }, "", "crictl pull goes it"},
		{"legacy of others", "2.4.2", "quay.io/a:1", nil, legacy(map[string][]string{"docker.io": {"https://m1"}}), line + "quay.io/a:1", ""},
		{"legacy TLS", "1.7.35", "quay.io/a:1", nil, func(q *registry.Query) {
			legacy(nil)(q)
			q.LegacyTLS = map[string]registry.LegacyTLS{"quay.io": {SkipVerify: true}}
		}, "", "crictl pull goes it"},
		{"legacy localhost", "2.0.11", "localhost:5000/a:1", nil, legacy(nil), line + "--plain-http localhost:5000/a:1", ""},
		{"headers", "2.4.2", "quay.io/a:1", mirror, func(q *registry.Query) { q.Headers = []string{"X-All"} }, line + all + "quay.io/a:1", "does not send what registry.headers has"},
		{"IPv6", "2.4.2", "[::1]:5000/x:1", nil, nil, line + all + "'[::1]:5000/x:1'", ""},
		{"quoted", "2.4.2", "quay.io/a:1", nil, func(q *registry.Query) { q.ConfigPath = "/it's $HOME" }, line + `--hosts-dir '/it'\''s $HOME' quay.io/a:1`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			q := c.files.query(t, c.release)
			q.Image = c.image
			if c.change != nil {
				c.change(&q)
			}
			x, err := registry.Explain(q)
			if err != nil {
				t.Fatal(err)
			}
			if x.Ctr.Command != c.want || !strings.Contains(x.Ctr.Lacks, c.lacks) || (c.lacks == "") != (x.Ctr.Lacks == "") {
				t.Errorf("%+v\nwant %s, lacks %s", x.Ctr, c.want, c.lacks)
			}
		})
	}
}
