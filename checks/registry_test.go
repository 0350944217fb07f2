package checks

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	hosts "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"

	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

const (
	certsD   = "/etc/containerd/certs.d/"
	readsIt  = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"/etc/containerd/certs.d\"\n"
	tomlPath = "/etc/containerd/config.toml"
)

// hostsOf is a host of a release that has these files below certs.d, all in folders of
// registries.
func hostsOf(t *testing.T, release string, f files, change ...func(*Outside)) *Node {
	t.Helper()
	all := daemonFiles(files{tomlPath: readsIt})
	for p, content := range f {
		if !strings.HasPrefix(p, "/") {
			p = certsD + p
		}
		all[p] = content
	}
	return fake(t, all, append([]func(*Outside){runs(&containerd{}, release)}, change...)...)
}

// oneHosts is hostsOf with one file, example.com's.
func oneHosts(t *testing.T, release, hosts string, change ...func(*Outside)) *Node {
	t.Helper()
	return hostsOf(t, release, files{"example.com/hosts.toml": hosts}, change...)
}

func TestNoHosts(t *testing.T) {
	for _, n := range []*Node{fake(t, nil), fake(t, daemonFiles(nil), runs(&containerd{}, "2.4.2")), hostsOf(t, "2.4.2", nil)} {
		for _, id := range []string{"registry/hosts-toml", "registry/ignored", "registry/urls", "registry/ca", "registry/client-cert", "registry/permissions"} {
			expect(t, n, id, want{verdict: Pass, observed: "no hosts.toml"})
		}
		expect(t, n, "registry/credentials", want{verdict: Pass})
	}
	broken := fake(t, daemonFiles(nil), runs(&containerd{}, "what"))
	for _, c := range registryChecks() {
		if slices.Contains(c.Needs, NeedProfile) && c.ID != "registry/deny" {
			continue
		}
		broken.Spec = &profiles.Spec{}
		expect(t, broken, c.ID, want{verdict: Unknown, observed: "no version"})
	}
}

func TestHostsFile(t *testing.T) {
	const id, file = "registry/hosts-toml", certsD + "example.com/hosts.toml"
	const mirror = "server = \"https://example.com\"\n\n[host.\"https://m.example.com\"]\n"
	for name, c := range map[string]struct {
		release, hosts string
		want           []want
	}{
		"sound":       {"2.4.2", mirror + "capabilities = [\"pull\", \"Resolve\"]\n[host.\"https://m.example.com\".header]\nx = [\"a\"]\n", []want{{verdict: Pass, observed: "1 files"}}},
		"not TOML":    {"2.4.2", "server = \n", []want{{verdict: Fail, object: file, observed: "not valid TOML", place: file + ":1", remedy: "# correct line 1"}}},
		"named twice": {"2.4.2", mirror + mirror[strings.Index(mirror, "[host"):], []want{{verdict: Fail, observed: "not valid TOML", place: file + ":4"}}},
		"capability": {"2.4.2", mirror + "capabilities = [\"pull\", \"list\"]\n", []want{{
			verdict: Fail, observed: `unknown capability "list"`, wanted: "referrers", place: file + ":4", remedy: "sed -i '4{",
		}}},
		"capability, on its line":   {"2.4.2", mirror + "capabilities = [\n\"pull\",\n\"list\",\n]\n", []want{{verdict: Fail, place: file + ":6"}}},
		"capabilities as a text":    {"2.4.2", mirror + "capabilities = \"pull\"\n", []want{{verdict: Fail, observed: "no list of texts", place: file + ":4"}}},
		"referrers":                 {"2.2.0", mirror + "capabilities = [\"pull\", \"referrers\"]\n", []want{{verdict: Pass}}},
		"referrers too early":       {"2.1.9", mirror + "capabilities = [\"pull\", \"referrers\"]\n", []want{{verdict: Fail, observed: "2.1.9 does not know the capability referrers", place: file + ":4"}}},
		"no host table":             {"2.4.2", "server = \"https://m.example.com\"\n", []want{{verdict: Pass}}},
		"no host table in 1.7.24":   {"1.7.24", "server = \"https://m.example.com\"\n", []want{{verdict: Fail, observed: "1.7.24 takes the whole file for broken", remedy: `printf '\n[host]\n' >> ` + file}}},
		"empty host table":          {"1.7.24", "server = \"https://m.example.com\"\n[host]\n", []want{{verdict: Pass}}},
		"inline host in 1.7":        {"1.7.24", "[host]\n\"https://m.example.com\" = {capabilities = [\"pull\"]}\n", []want{{verdict: Pass}}},
		"TOML 1.1 in 2.1":           {"2.1.9", "[host.a]\nx = {y = 1,}\n", []want{{verdict: Fail, object: file, observed: "containerd 2.1.9 finds a comma at the end of an inline table"}}},
		"TOML 1.1 in 2.4":           {"2.4.2", "[host.a]\nx = {y = 1,}\n", []want{{verdict: Pass}}},
		"host is no table in 1.7":   {"1.7.34", "host = []\n", []want{{verdict: Fail, observed: "containerd 1.7.34 finds host is no table"}}},
		"inline host in 2":          {"2.0.0", "[host]\n\"https://m.example.com\" = {capabilities = [\"pull\"]}\n", []want{{verdict: Fail, observed: "is never asked", place: file + ":2"}}},
		"dotted host in 2":          {"2.4.2", "host.\"https://m.example.com\".skip_verify = true\n", []want{{verdict: Fail, observed: "is never asked", place: file + ":1"}}},
		"bracket in 1.7":            {"1.7.24", "[host.\"https://[::1]:5000\"]\n", []want{{verdict: Fail, observed: "takes no ]", place: file + ":1"}}},
		"bracket in 2":              {"2.4.2", "[host.\"https://[::1]:5000\"]\n", []want{{verdict: Pass}}},
		"asked twice":               {"2.4.2", "[host.a]\n[host.b]\n[host.a.header]\nx = \"y\"\n", []want{{verdict: Fail, observed: "host a is asked twice", place: file + ":3"}}},
		"not twice in 1.7":          {"1.7.24", "[host.a]\n[host.b]\n[host.a.header]\nx = \"y\"\n", []want{{verdict: Pass}}},
		"server too late":           {"2.4.2", "[host.\"https://m.example.com\"]\nserver = \"https://s.example.com\"\n", []want{{verdict: Fail, observed: "belongs to it", place: file + ":2", remedy: `sed -i -e '2d' -e '1i server = "https://s.example.com"' ` + file}}},
		"nested host":               {"2.4.2", "[host.a]\n[host.a.host.b]\n", []want{{verdict: Fail, observed: "a host within host a is never asked", place: file + ":2"}}},
		"ca":                        {"2.4.2", "[host.a]\nca = 1\n", []want{{verdict: Fail, observed: "ca is neither", place: file + ":2"}}},
		"client":                    {"2.4.2", "[host.a]\nclient = [[\"x.pem\"]]\n", []want{{verdict: Fail, observed: "no pair of paths", place: file + ":2"}}},
		"client is a number":        {"2.4.2", "[host.a]\nclient = 1\n", []want{{verdict: Fail, observed: "neither a path nor a list", place: file + ":2"}}},
		"header":                    {"2.4.2", "[host.a]\n[host.a.header]\nAuthorization = 4711\n", []want{{verdict: Fail, observed: "header Authorization is neither", place: file + ":3"}}},
		"header is a list":          {"2.4.2", "[host.a]\nheader = [4711]\n", []want{{verdict: Fail, observed: "header is no table", place: file + ":2"}}},
		"timeout without a unit":    {"2.4.2", "[host.a]\ndial_timeout = \"5\"\n", []want{{verdict: Fail, observed: "is no duration", place: file + ":2"}}},
		"timeout as a number":       {"2.4.2", "[host.a]\ndial_timeout = 5\n", []want{{verdict: Fail, observed: "is no duration", place: file + ":2"}}},
		"timeout nobody looks at":   {"1.7.35", "[host.a]\ndial_timeout = \"5\"\n", []want{{verdict: Pass}}},
		"only containerd knows why": {"2.4.2", "override_path = \"yes\"\n", []want{{verdict: Fail, observed: "containerd's parser: toml: ", place: file + ":1"}}},
	} {
		t.Run(name, func(t *testing.T) {
			n := oneHosts(t, c.release, c.hosts)
			expect(t, n, id, c.want...)
			for _, r := range results(t, n, id) {
				if strings.Contains(r.Observed+r.Remedy+r.Wanted, "4711") {
					t.Errorf("a header's value is shown: %+v", r)
				}
			}
		})
	}
	expect(t, hostsOf(t, "2.4.2", files{"example.com/hosts.toml/": ""}), id, want{verdict: Fail, object: file, observed: "is a directory"})

	// The profile's own file is what apply writes.
	ours := withSpec(profiles.Spec{Profiles: []string{"/root/node.yaml"}, Registries: []profiles.Registry{{Host: "example.com"}}})
	expect(t, oneHosts(t, "2.4.2", "server = \n", ours), id, want{verdict: Fail, remedy: "nodeprep apply --adopt"})

	// Where a link in an image leads out of it, containerd's parser would follow.
	n := hostsOf(t, "2.4.2", files{"example.com/hosts.toml": "-> /etc/x.toml", "/etc/x.toml": mirror})
	expect(t, n, id, want{verdict: Unknown, observed: "symbolic link"})
	n = hostsOf(t, "2.4.2", files{"example.com/hosts.toml": "-> /etc/x/hosts.toml", "/etc/x/hosts.toml": mirror})
	expect(t, n, id, want{verdict: Pass})
}

// TestSameHosts holds nodeprep's own reading of files against containerd's.
func TestSameHosts(t *testing.T) {
	for name, content := range map[string]string{
		"order":        "server = \"https://s/\"\n[host.\"https://b\"]\n[host.\"http://a:5000/x/y\"]\ncapabilities = [\"pull\"]\n[host.\"http://a:5000/x/y\".header]\na = \"b\"\n",
		"paths":        "[host.\"https://a/v2\"]\n[host.\"https://b/v2/p\"]\n[host.\"https://c/v2/p\"]\noverride_path = true\n[host.\"https://d\"]\noverride_path = true\n[host.\"https://e//f/\"]\n",
		"no scheme":    "[host.\"a:5000\"]\n[host.\"httpbin.local:5000\"]\n",
		"no server":    "[host.a]\nskip_verify = true\n",
		"root":         "server = \"https://h/v2/cache\"\noverride_path = true\ncapabilities = [\"resolve\", \"push\"]\n",
		"twice":        "[host.a]\n[host.b]\n[host.a.header]\nx = \"y\"\n",
		"inline":       "[host]\na = {}\n[host.b]\n",
		"upper case":   "[host.a]\nSkip_Verify = true\nCAPABILITIES = [\"pull\"]\n",
		"server alone": "server = \"http://localhost:5000\"\n",
	} {
		for _, registry := range []string{"example.com", "docker.io", "localhost:5000", "localhost", "example.com:5000"} {
			t.Run(name+"/"+registry, func(t *testing.T) {
				dir := t.TempDir()
				if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
				quiet := logrus.New()
				quiet.SetOutput(io.Discard)
				ctx := log.WithLogger(t.Context(), logrus.NewEntry(quiet))
				theirs, err := hosts.ConfigureHosts(ctx, hosts.HostOptions{HostDir: func(string) (string, error) { return dir, nil }})(registry)
				if err != nil {
					t.Fatal(err)
				}
				type host struct{ Scheme, Host, Path string }
				var want, got []host
				for _, h := range theirs {
					want = append(want, host{h.Scheme, h.Host, h.Path})
				}
				for _, e := range readHosts("/x/hosts.toml", registry, []byte(content), releases.MustVersion("2.4.2"), "").endpoints {
					_, port, _ := strings.Cut(e.host, ":")
					// With TLS settings and an unusual port, containerd begins with HTTPS.
					if e.scheme == "http" && e.tls && port != "80" {
						e.scheme = "https"
					}
					got = append(got, host{e.scheme, e.host, e.path})
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("hosts (-containerd +nodeprep):\n%s", diff)
				}
			})
		}
	}
}

func TestIgnored(t *testing.T) {
	const id = "registry/ignored"
	const sound = "[host.\"https://m.example.com\"]\n"
	for name, c := range map[string]struct {
		release string
		files   files
		want    []want
	}{
		"nothing":              {"2.4.2", files{"example.com/hosts.toml": sound, "docker.io/ca.crt": "", "_default/hosts.toml": sound}, []want{{verdict: Pass, observed: "2 files"}}},
		"other name":           {"2.4.2", files{"example.com/host.toml": sound}, []want{{verdict: Warn, object: certsD + "example.com/host.toml", observed: "only hosts.toml", remedy: "mv -T " + certsD + "example.com/host.toml " + certsD + "example.com/hosts.toml"}}},
		"in the root":          {"2.4.2", files{"hosts.toml": sound}, []want{{verdict: Warn, object: certsD + "hosts.toml", observed: "only folders"}}},
		"a readme":             {"2.4.2", files{"README": "", "example.com/README": "", "example.com/hosts.toml": sound}, []want{{verdict: Pass}}},
		"certificate beside":   {"2.4.2", files{"example.com/hosts.toml": sound, "example.com/ca.crt": ""}, []want{{verdict: Warn, object: certsD + "example.com/ca.crt", observed: "not named in hosts.toml"}}},
		"named":                {"2.4.2", files{"example.com/hosts.toml": sound + "ca = \"ca.crt\"\nclient = [[\"a.cert\", \"a.key\"]]\n", "example.com/ca.crt": "", "example.com/a.cert": "", "example.com/a.key": ""}, []want{{verdict: Pass}}},
		"Docker's":             {"2.4.2", files{"example.com/ca.crt": "", "example.com/a.cert": "", "example.com/a.key": ""}, []want{{verdict: Pass, observed: "no hosts.toml"}}},
		"Docker's, other name": {"2.4.2", files{"example.com/ca.pem": ""}, []want{{verdict: Warn, object: certsD + "example.com/ca.pem", observed: "*.crt"}}},
		"port without its end": {"2.4.2", files{"example.com_5000/hosts.toml": sound}, []want{{verdict: Warn, object: certsD + "example.com_5000", observed: "example.com:5000", remedy: "mv -T " + certsD + "example.com_5000 " + certsD + "example.com_5000_"}}},
		"port":                 {"2.4.2", files{"example.com_5000_/hosts.toml": sound, "example.org:5000/hosts.toml": sound}, []want{{verdict: Pass}}},
		"both forms":           {"2.4.2", files{"example.com_5000_/hosts.toml": sound, "example.com:5000/hosts.toml": sound}, []want{{verdict: Warn, object: certsD + "example.com:5000", observed: "example.com_5000_ comes first"}}},
		"Docker Hub":           {"2.4.2", files{"index.docker.io/hosts.toml": sound}, []want{{verdict: Warn, observed: "docker.io's", remedy: certsD + "docker.io"}}},
		"the Hub's host":       {"2.4.2", files{"registry-1.docker.io/hosts.toml": sound}, []want{{verdict: Warn, observed: "for images that are named registry-1.docker.io/IMAGE alone"}}},
		"IPv6, both forms":     {"2.4.2", files{"[fd00:_1]_/hosts.toml": sound, "[fd00::1]/hosts.toml": sound}, []want{{verdict: Warn, object: certsD + "[fd00::1]", observed: "[fd00:_1]_ comes first"}}},
		"no domain":            {"2.4.2", files{"mirror/hosts.toml": sound, "localhost/hosts.toml": sound}, []want{{verdict: Warn, object: certsD + "mirror", observed: "docker.io/mirror/IMAGE"}}},
		"pattern":              {"2.4.2", files{"*.example.com/hosts.toml": sound}, []want{{verdict: Warn, observed: "no patterns"}}},
		"default too early":    {"1.6.16", files{"_default/hosts.toml": sound}, []want{{verdict: Warn, observed: "1.6.16 does not look at _default"}}},
		"below":                {"2.4.2", files{"example.com/hosts.toml": sound, "example.com/project/hosts.toml": sound}, []want{{verdict: Warn, object: certsD + "example.com/project/hosts.toml", observed: "does not look below"}}},
		"empty hides":          {"2.4.2", files{"example.com/": "", "_default/hosts.toml": sound}, []want{{verdict: Warn, object: certsD + "example.com", observed: "keeps containerd from looking at _default", remedy: "rmdir"}}},
		"empty":                {"2.4.2", files{"example.com/": ""}, []want{{verdict: Pass}}},
		"key": {"2.4.2", files{"example.com/hosts.toml": sound + "insecure_skip_verify = true\n"}, []want{{
			verdict: Warn, object: "hosts.toml", observed: "insecure_skip_verify counts for nothing", wanted: "skip_verify", place: "hosts.toml:2",
			remedy: "sed -i '2s/insecure_skip_verify/skip_verify/'",
		}}},
		"misspelt":        {"2.4.2", files{"example.com/hosts.toml": "sever = \"x\"\n[host.a]\ncapabilites = []\n"}, []want{{verdict: Warn, wanted: "server", place: ":1"}, {verdict: Warn, wanted: "capabilities", place: ":3"}}},
		"password":        {"2.4.2", files{"example.com/hosts.toml": sound + "password = \"4711\"\n"}, []want{{verdict: Warn, observed: "no credentials in a hosts.toml", place: ":2"}}},
		"not below host":  {"2.4.2", files{"example.com/hosts.toml": "[\"https://m.example.com\"]\n"}, []want{{verdict: Warn, observed: "not below host", remedy: "sed -i '1s/"}}},
		"timeout too new": {"1.7.35", files{"example.com/hosts.toml": sound + "dial_timeout = \"5s\"\n"}, []want{{verdict: Warn, observed: "1.7.35 does not know it", place: ":2"}}},
		"TLS for http":    {"2.4.2", files{"example.com/hosts.toml": "[host.\"http://m.example.com:5000\"]\nskip_verify = true\n"}, []want{{verdict: Warn, observed: "HTTPS is tried first", place: ":1"}}},
		"TLS for port 80": {"2.4.2", files{"example.com/hosts.toml": "[host.\"http://m.example.com:80\"]\nskip_verify = true\n"}, []want{{verdict: Pass}}},
	} {
		t.Run(name, func(t *testing.T) { expect(t, hostsOf(t, c.release, c.files), id, c.want...) })
	}
}

func TestSecondRoot(t *testing.T) {
	f := files{
		tomlPath:                 strings.Replace(readsIt, "certs.d\"", "certs.d:/etc/docker/certs.d\"", 1),
		"example.com/hosts.toml": "[host.\"https://m.example.com\"]\n",
		"/etc/docker/certs.d/example.com/hosts.toml": "x",
	}
	expect(t, hostsOf(t, "1.7.35", f), "registry/ignored", want{verdict: Warn, object: "/etc/docker/certs.d/example.com", observed: certsD + "example.com comes first"})
	expect(t, hostsOf(t, "1.7.35", f), "registry/hosts-toml", want{verdict: Pass, observed: "1 files"})
}

func TestURLs(t *testing.T) {
	const id, file = "registry/urls", certsD + "example.com/hosts.toml"
	for name, c := range map[string]struct {
		hosts string
		want  []want
	}{
		"sound":             {"server = \"https://example.com\"\n[host.\"https://a/v2\"]\n[host.\"https://b:5000/x\"]\ncapabilities = [\"pull\", \"resolve\"]\n", []want{{verdict: Pass}}},
		"slash":             {"[host.\"https://a/\"]\n", []want{{verdict: Warn, object: "https://a/", observed: "asked at //v2", wanted: "https://a", place: file + ":1", remedy: `sed -i 's|"https://a/"|"https://a"|' ` + file}}},
		"second v2":         {"[host.\"https://a/v2/p\"]\n", []want{{verdict: Warn, observed: "asked at /v2/p/v2", wanted: "override_path = true", remedy: "sed -i '1a override_path = true'"}}},
		"overridden":        {"[host.\"https://a/v2/p\"]\noverride_path = true\n", []want{{verdict: Pass}}},
		"override nothing":  {"[host.\"https://a\"]\noverride_path = true\n", []want{{verdict: Warn, observed: "without v2", place: file + ":2", remedy: "sed -i '2d'"}}},
		"no scheme":         {"[host.\"a:5000\"]\n", []want{{verdict: Warn, observed: "takes it for https", wanted: "https://a:5000"}}},
		"begins with http":  {"[host.\"httpbin.local:5000\"]\n", []want{{verdict: Warn, observed: "asks nobody", wanted: "https://httpbin.local:5000"}}},
		"no host":           {"[host.\"https://\"]\n", []want{{verdict: Warn, observed: "no URL of a registry"}}},
		"query":             {"[host.\"https://a?x=y\"]\n", []want{{verdict: Warn, observed: "a query"}}},
		"docker.io":         {"server = \"https://docker.io\"\n", []want{{verdict: Warn, wanted: "https://registry-1.docker.io", place: file + ":1"}}},
		"only pull":         {"[host.\"https://a\"]\ncapabilities = [\"pull\"]\n", []want{{verdict: Warn, observed: "never for a tag", place: file + ":2"}}},
		"server only pulls": {"server = \"https://a\"\ncapabilities = [\"pull\"]\n", []want{{verdict: Pass}}},
	} {
		t.Run(name, func(t *testing.T) { expect(t, oneHosts(t, "2.4.2", c.hosts), id, c.want...) })
	}
	n := oneHosts(t, "2.4.2", "[host.\"https://user:4711@a\"]\n")
	expect(t, n, id, want{verdict: Warn, object: "a", observed: "credentials in the URL"})
	if r := results(t, n, id)[0]; strings.Contains(r.String()+r.Remedy+r.Wanted, "4711") {
		t.Errorf("a password is shown: %+v", r)
	}
}

func TestDeny(t *testing.T) {
	const id = "registry/deny"
	profile := func(deny bool, host string) func(*Outside) {
		return withSpec(profiles.Spec{Profiles: []string{"/root/node.yaml"}, Registries: []profiles.Registry{
			{Host: host, Deny: deny, Mirrors: []profiles.Endpoint{{URL: "https://m.example.com"}}},
		}, Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("2.4.2")}}})
	}
	denies := "server = \"https://m.example.com\"\n"
	expect(t, oneHosts(t, "2.4.2", denies, profile(true, "example.com")), id, want{verdict: Pass, observed: "1 registries"})
	expect(t, oneHosts(t, "2.4.2", "", profile(false, "example.com")), id, want{verdict: Pass, observed: "denies no upstream"})
	expect(t, oneHosts(t, "2.4.2", "server = \"https://example.com\"\n[host.\"https://m.example.com\"]\n", profile(true, "example.com")), id, want{
		verdict: Fail, object: "example.com", observed: "falls back to https://example.com", wanted: "only https://m.example.com", place: certsD + "example.com/hosts.toml:1",
		remedy: "nodeprep apply --adopt",
	})
	expect(t, oneHosts(t, "2.4.2", "[host.\"https://m.example.com\"]\n", profile(true, "example.com")), id, want{verdict: Fail, observed: "falls back to https://example.com"})
	expect(t, hostsOf(t, "2.4.2", nil, profile(true, "docker.io")), id, want{verdict: Fail, observed: "no hosts.toml is for it: falls back to https://registry-1.docker.io"})
	all := files{"_default/hosts.toml": denies}
	expect(t, hostsOf(t, "2.4.2", all, profile(true, "*")), id, want{verdict: Pass})
	expect(t, hostsOf(t, "2.4.2", all, profile(true, "docker.io")), id, want{verdict: Pass})

	// Somebody else's folder goes before the profile's "*", and lets pulls out.
	for name, to := range map[string]string{
		"quay.io/hosts.toml":  "https://quay.io",
		"quay.io/ca.txt":      "https://quay.io",
		"r.example_5000_/x":   "https://r.example:5000",
		"docker.io/none/here": "https://registry-1.docker.io",
		// It is read for images that are named so.
		"registry-1.docker.io/hosts.toml": "https://registry-1.docker.io",
	} {
		dir, _, _ := strings.Cut(name, "/")
		object := strings.NewReplacer("_5000_", ":5000").Replace(dir)
		text := "[host.\"https://m.example.com\"]\n"
		expect(t, hostsOf(t, "2.4.2", files{"_default/hosts.toml": denies, name: text}, profile(true, "*")), id, want{
			verdict: Fail, object: object, observed: "not the profile's, and lets pulls go to " + to, wanted: "only https://m.example.com", place: certsD + dir, remedy: "remove " + certsD + dir,
		})
	}
	expect(t, hostsOf(t, "2.4.2", files{"_default/hosts.toml": denies, "quay.io/hosts.toml": denies}, profile(true, "*")), id, want{verdict: Pass})
	// With faults in it, nobody knows what is the profile's.
	faulty := withSpec(profiles.Spec{Profiles: []string{"/root/node.yaml"}, Registries: []profiles.Registry{
		{Host: "*", Deny: true, Mirrors: []profiles.Endpoint{{URL: "https://m.example.com"}}}, {Host: "a/b"},
	}, Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("2.4.2")}}})
	for _, check := range []string{id, "registry/foreign"} {
		expect(t, hostsOf(t, "2.4.2", all, faulty), check, want{verdict: Unknown, observed: `registry "a/b" is not a host`})
	}
	expect(t, hostsOf(t, "2.4.2", files{"_default/hosts.toml": denies, "quay.io/hosts.toml": denies + "[host.\"https://quay.io\"]\n"}, profile(true, "*")), id, want{verdict: Fail, observed: "lets pulls go to https://quay.io"})
}

// containerd 1.x takes inline tables in any order.
func TestInlineHosts(t *testing.T) {
	const id, two = "registry/ignored", "[host]\n\"https://a\" = {}\n\"https://b\" = {}\n"
	expect(t, oneHosts(t, "1.7.34", two), id, want{verdict: Warn, observed: "hosts https://a and https://b are inline tables, which containerd 1.7.34 asks in any order", place: ":2"})
	expect(t, oneHosts(t, "1.7.34", "[host]\n\"https://a\".skip_verify = false\n\"https://b\".skip_verify = false\n"), id, want{verdict: Pass})
}

// Folders of others are left alone, and those that go before the profile's "*" are shown.
func TestForeignFolders(t *testing.T) {
	const id = "registry/foreign"
	profile := func(deny bool, names ...string) func(*Outside) {
		var regs []profiles.Registry
		for _, name := range names {
			regs = append(regs, profiles.Registry{Host: name, Deny: deny, Mirrors: []profiles.Endpoint{{URL: "https://m.example.com"}}})
		}
		return withSpec(profiles.Spec{Profiles: []string{"/root/node.yaml"}, Registries: regs, Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("2.4.2")}}})
	}
	mirror := "server = \"https://m.example.com\"\n"
	f := files{"_default/hosts.toml": mirror, "docker.io/hosts.toml": mirror, "quay.io/hosts.toml": mirror, "team/hosts.toml": mirror}
	expect(t, hostsOf(t, "2.4.2", f, profile(false, "docker.io", "quay.io")), id, want{verdict: Pass, observed: "not the profile's, and left alone: _default"})
	expect(t, hostsOf(t, "2.4.2", f, profile(false, "docker.io", "quay.io", "*")), id, want{verdict: Pass, observed: "no folders but the profile's"})
	for _, deny := range []bool{false, true} {
		expect(t, hostsOf(t, "2.4.2", f, profile(deny, "docker.io", "*")), id, want{
			verdict: Warn, object: "quay.io", observed: "its images go to m.example.com, by a folder that is not the profile's", wanted: `the profile's "*"`, place: certsD + "quay.io", remedy: "# name quay.io in the profile, or remove " + certsD + "quay.io",
		})
	}
	f["quay.io/hosts.toml"] = "server = \"https://quay.io\"\n"
	expect(t, hostsOf(t, "2.4.2", f, profile(true, "docker.io", "*")), id, want{verdict: Pass})
}

// newKeys makes a self-signed certificate for hosts, in PEM, that is valid so long.
func newKeys(t *testing.T, from, until time.Time, hosts ...string) (cert, key string) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: from, NotAfter: until, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			c.IPAddresses = append(c.IPAddresses, ip)
		} else {
			c.DNSNames = append(c.DNSNames, h)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}))
	}
	return block("CERTIFICATE", der), block("PRIVATE KEY", private)
}

const aDay = 24 * time.Hour

func TestCA(t *testing.T) {
	const id, ca = "registry/ca", certsD + "example.com/ca.pem"
	now := time.Now()
	good, _ := newKeys(t, now.Add(-aDay), now.Add(90*aDay))
	old, _ := newKeys(t, now.Add(-9*aDay), now.Add(-aDay))
	ending, _ := newKeys(t, now.Add(-aDay), now.Add(9*aDay))
	early, _ := newKeys(t, now.Add(aDay), now.Add(90*aDay))
	const hosts = "[host.\"https://m\"]\nca = \"ca.pem\"\n"
	with := func(content string, more files) *Node {
		f := files{"example.com/hosts.toml": hosts, "example.com/ca.pem": content}
		for p, c := range more {
			f[p] = c
		}
		return hostsOf(t, "2.4.2", f)
	}
	expect(t, with(good, nil), id, want{verdict: Pass, observed: "1 CA files"})
	expect(t, with(old, nil), id, want{verdict: Fail, object: ca, observed: "test expired " + date(now.Add(-aDay)), place: certsD + "example.com/hosts.toml:2", remedy: "CA certificate of m"})
	expect(t, with(early, nil), id, want{verdict: Fail, observed: "holds only from"})
	expect(t, with(ending, nil), id, want{verdict: Warn, observed: "expires " + date(now.Add(9*aDay))})
	expect(t, with(good+old, nil), id, want{verdict: Warn, observed: "expired"})
	expect(t, with("no PEM", nil), id, want{verdict: Fail, observed: "no PEM block"})
	expect(t, oneHosts(t, "2.4.2", hosts), id, want{verdict: Fail, object: ca, observed: "not there"})
	expect(t, hostsOf(t, "2.4.2", files{"example.com/hosts.toml": hosts, "example.com/ca.crt": good}), id,
		want{verdict: Fail, observed: "not there", remedy: "mv -T " + certsD + "example.com/ca.crt " + ca})
	expect(t, hostsOf(t, "2.4.2", files{"example.com/ca.crt": old}), id, want{verdict: Fail, object: certsD + "example.com/ca.crt", observed: "expired"})
	absolute := "ca = [\"/etc/ssl/x.pem\", \"/etc/ssl/y.pem\"]\n"
	expect(t, hostsOf(t, "2.4.2", files{"example.com/hosts.toml": absolute, "/etc/ssl/x.pem": good}), id, want{verdict: Fail, object: "/etc/ssl/y.pem"})
}

func TestClientCerts(t *testing.T) {
	const id, file = "registry/client-cert", certsD + "example.com/hosts.toml"
	now := time.Now()
	cert, key := newKeys(t, now.Add(-aDay), now.Add(90*aDay))
	old, oldKey := newKeys(t, now.Add(-9*aDay), now.Add(-aDay))
	ending, endingKey := newKeys(t, now.Add(-aDay), now.Add(9*aDay))
	with := func(client string, more files) *Node {
		f := files{"example.com/hosts.toml": "[host.\"https://m\"]\nclient = " + client + "\n"}
		for p, c := range more {
			f["example.com/"+p] = c
		}
		return hostsOf(t, "2.4.2", f)
	}
	const pair = `[["c.pem", "k.pem"]]`
	expect(t, with(pair, files{"c.pem": cert, "k.pem": key}), id, want{verdict: Pass, observed: "1 client certificates"})
	expect(t, with(`"c.pem"`, files{"c.pem": cert + key}), id, want{verdict: Pass})
	expect(t, with(`["c.pem"]`, files{"c.pem": cert + key}), id, want{verdict: Pass})
	expect(t, with(pair, files{"c.pem": cert}), id, want{verdict: Fail, object: "k.pem", observed: "not there", place: file + ":2"})
	expect(t, with(pair, files{"k.pem": key}), id, want{verdict: Fail, object: "c.pem", observed: "not there"})
	expect(t, with(pair, files{"c.pem": cert, "k.pem": oldKey}), id, want{verdict: Fail, observed: "does not match"})
	expect(t, with(`"c.pem"`, files{"c.pem": cert}), id, want{verdict: Fail, observed: "rather than a key"})
	expect(t, with(pair, files{"c.pem": old, "k.pem": oldKey}), id, want{verdict: Fail, observed: "expired"})
	expect(t, with(pair, files{"c.pem": ending, "k.pem": endingKey}), id, want{verdict: Warn, observed: "expires"})
	expect(t, with(`[["c.pem", ""]]`, files{"c.pem": cert + key}), id, want{verdict: Fail, observed: "the empty key is taken for the folder", remedy: `sed -i '2s|client.*|client = "` + certsD + `example.com/c.pem"|' ` + file})
	flat := want{verdict: Fail, observed: "a flat list", wanted: "pairs", remedy: "client = [[\"" + certsD + "example.com/c.pem\", \"" + certsD + "example.com/k.pem\"]]"}
	expect(t, with(`["c.pem", "k.pem"]`, files{"c.pem": cert, "k.pem": key}), id, flat, flat)
	expect(t, hostsOf(t, "2.4.2", files{"example.com/c.cert": cert, "example.com/c.key": key}), id, want{verdict: Pass})
	expect(t, hostsOf(t, "2.4.2", files{"example.com/c.cert": cert}), id, want{verdict: Fail, object: "c.cert"})
}

func TestRegistryPermissions(t *testing.T) {
	const id = "registry/permissions"
	cert, key := newKeys(t, time.Now().Add(-aDay), time.Now().Add(aDay))
	chmod := func(n *Node, p string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(filepath.Join(n.Host.Root.Dir(), p), mode); err != nil {
			t.Fatal(err)
		}
	}
	const plain, secret = "[host.a]\n[host.a.header]\nx = \"y\"\n", "[host.a]\n[host.a.header]\nAuthorization = \"Basic 4711\"\n"
	file := certsD + "example.com/hosts.toml"
	expect(t, oneHosts(t, "2.4.2", plain), id, want{verdict: Pass})
	n := oneHosts(t, "2.4.2", secret)
	expect(t, n, id, want{verdict: Warn, object: file, observed: "everybody may read an authorization header", wanted: "0600", remedy: "chmod 0600 " + file})
	chmod(n, certsD, 0o700)
	expect(t, n, id, want{verdict: Pass})
	n = oneHosts(t, "2.4.2", secret)
	chmod(n, file, 0o600)
	expect(t, n, id, want{verdict: Pass})
	chmod(n, file, 0o620)
	expect(t, n, id, want{verdict: Warn, observed: "others than root may write it", remedy: "chmod go-w " + file})
	n = oneHosts(t, "2.4.2", plain)
	chmod(n, certsD+"example.com", 0o777)
	expect(t, n, id, want{verdict: Warn, object: certsD + "example.com", observed: "may write"})
	n = hostsOf(t, "2.4.2", files{"example.com/hosts.toml": "[host.a]\nclient = [[\"c.pem\", \"k.pem\"]]\n", "example.com/c.pem": cert, "example.com/k.pem": key})
	expect(t, n, id, want{verdict: Warn, object: certsD + "example.com/k.pem", observed: "everybody may read a private key"})
	chmod(n, certsD+"example.com/k.pem", 0o600)
	expect(t, n, id, want{verdict: Pass})
}

func TestCredentials(t *testing.T) {
	const id = "registry/credentials"
	with := func(table string, f files) *Node {
		all := files{tomlPath: readsIt + "[plugins.\"io.containerd.grpc.v1.cri\".registry." + table + "]\nusername = \"u\"\npassword = \"4711\"\n"}
		for p, c := range f {
			all[p] = c
		}
		return hostsOf(t, "1.7.35", all)
	}
	mirror := files{"example.com/hosts.toml": "server = \"https://m.example.com\"\n[host]\n"}
	expect(t, hostsOf(t, "1.7.35", nil), id, want{verdict: Pass, observed: "no credentials"})
	expect(t, with(`configs."example.com".auth`, nil), id, want{verdict: Pass, observed: "1 hosts"})
	expect(t, with(`configs."m.example.com".auth`, mirror), id, want{verdict: Pass})
	expect(t, with(`configs."example.com".auth`, mirror), id, want{verdict: Warn, object: "example.com", observed: "pulls of its images go to m.example.com", wanted: "m.example.com", place: tomlPath + ":4",
		remedy: `/s/example\.com/m.example.com/' ` + tomlPath})
	expect(t, with(`configs."docker.io".auth`, nil), id, want{verdict: Warn, observed: "registry-1.docker.io", wanted: "registry-1.docker.io"})
	expect(t, with(`configs."https://example.com".auth`, nil), id, want{verdict: Warn, observed: "without a scheme", wanted: "example.com"})
	expect(t, with(`auths."https://docker.io"`, nil), id, want{verdict: Warn, object: "docker.io", wanted: "registry-1.docker.io"})
	expect(t, with(`configs."example.com".tls`, mirror), id, want{verdict: Pass})
}
