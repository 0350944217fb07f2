package registry_test

import (
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/distribution/reference"
	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"github.com/sirupsen/logrus"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render"
	"github.com/nodeprep/nodeprep/render/registry"
)

// pairs is a Reader whose certificates are all one, and whose secrets are what they say.
type pairs struct{ pem []byte }

func (r pairs) File(f profiles.LocalFile) ([]byte, error) {
	if strings.Contains(f.Path, "missing") {
		return nil, &fs.PathError{Op: "open", Path: f.Path, Err: fs.ErrNotExist}
	}
	if strings.HasSuffix(f.Path, ".crt") {
		cert, _, _ := strings.Cut(string(r.pem), "-----BEGIN PRIVATE KEY-----")
		return []byte(cert), nil
	}
	return r.pem, nil
}

func (pairs) Secret(s profiles.Secret) (string, error) { return s.Value, nil }

// trap is something that containerd does not forgive, and that no profile leads to.
type trap struct {
	name     string
	releases string
	regs     []profiles.Registry
	image    string
	want     string // hosts with spaces between
	// has and lacks are of the first registry's hosts.toml.
	has, lacks []string
	// fault is what is said instead of rendering.
	fault string
}

// Every release line has a release here, and those where rules change have two.
const everyRelease = "1.6.17 1.6.20 1.6.39 1.7.0 1.7.24 1.7.31 1.7.32 1.7.34 2.0.0 2.0.6 2.0.7 2.0.11 2.1.0 2.1.9 2.2.0 2.2.7 2.3.4 2.4.2"

// What is known to make containerd ignore mirrors, or fail, cannot come out of a profile.
func TestTraps(t *testing.T) {
	yes := true
	m := func(urls ...string) []profiles.Endpoint {
		var out []profiles.Endpoint
		for _, u := range urls {
			out = append(out, profiles.Endpoint{URL: u})
		}
		return out
	}
	file := func(name string) profiles.LocalFile { return profiles.LocalFile{Path: "/x/" + name, Given: name} }
	with := func(e profiles.Endpoint) []profiles.Registry {
		e.URL = "https://m"
		return []profiles.Registry{{Host: "quay.io", Mirrors: []profiles.Endpoint{e}}}
	}
	header := func(name string, values ...string) profiles.Header {
		h := profiles.Header{Name: name}
		for _, v := range values {
			h.Values = append(h.Values, profiles.Secret{Value: v, Plain: true})
		}
		return h
	}
	const quay, up = "https://quay.io/v2", "https://m/v2 https://quay.io/v2"
	for _, c := range []trap{
		{name: "an unknown capability loses the file", releases: everyRelease, regs: with(profiles.Endpoint{Capabilities: []string{"list"}}), fault: `unknown capability "list"`},
		{name: "referrers before 2.2 loses the file", releases: "1.6.39 1.7.34 2.0.11 2.1.9", regs: with(profiles.Endpoint{Capabilities: []string{"pull", "resolve", "referrers"}}), fault: "does not know the capability referrers"},
		{name: "referrers from 2.2 on", releases: "2.2.0 2.3.4 2.4.2", regs: with(profiles.Endpoint{Capabilities: []string{"pull", "resolve", "referrers"}}), image: "quay.io/a", want: up},
		{name: "a dial timeout is ignored before 2.0.7", releases: "1.6.39 1.7.34 2.0.0 2.0.6", regs: with(profiles.Endpoint{DialTimeout: 5e9}), fault: "has no dial timeout"},
		{name: "a dial timeout is text with a unit", releases: "2.0.7 2.1.0 2.4.2", regs: with(profiles.Endpoint{DialTimeout: 5e9}), image: "quay.io/a", want: up, has: []string{"dial_timeout = '5s'"}},
		{name: "no host table is an error up to 1.7.31", releases: "1.6.17 1.6.39 1.7.0 1.7.31", regs: []profiles.Registry{{Host: "quay.io"}}, image: "quay.io/a", want: quay, has: []string{"\n[host]\n"}},
		{name: "no host table is none from 1.7.32 on", releases: "1.7.32 1.7.34 2.0.0 2.4.2", regs: []profiles.Registry{{Host: "quay.io"}}, image: "quay.io/a", want: quay, lacks: []string{"[host]"}},
		{name: "a server alone is one mirror and no upstream", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Deny: true, Mirrors: m("https://m")}}, image: "quay.io/a", want: "https://m/v2", has: []string{"server = 'https://m'"}, lacks: []string{"quay.io"}},
		{name: "hosts are tables with headers of their own in 2.x", releases: "2.0.0 2.1.9 2.4.2", regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://m", "http://[fd00::1]:5000")}}, image: "quay.io/a", want: "https://m/v2 http://[fd00::1]:5000/v2 " + quay, has: []string{"\n[host.'https://m']\n", "\n[host.'http://[fd00::1]:5000']\n"}},
		{name: "a host's header is right behind it", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: []profiles.Endpoint{
			{URL: "https://m", Header: []profiles.Header{header("X-A", "1")}}, {URL: "https://n", Header: []profiles.Header{header("X-B", "2", "3")}}}}},
			image: "quay.io/a", want: "https://m/v2 https://n/v2 " + quay, has: []string{"[host.'https://m']\n\n[host.'https://m'.header]\nX-A = '1'\n\n[host.'https://n']\n\n[host.'https://n'.header]\nX-B = ['2', '3']\n"}},
		{name: "headers are text", releases: everyRelease, regs: with(profiles.Endpoint{Header: []profiles.Header{header("X-Number", "4711"), header("X-Switch", "true")}}), image: "quay.io/a", want: up, has: []string{"X-Number = '4711'", "X-Switch = 'true'"}},
		{name: "a slash at the end makes //v2", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://m/")}}, image: "quay.io/a", want: up},
		{name: "a slash behind a path makes //v2", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://m/x/y/")}}, image: "quay.io/a", want: "https://m/x/y/v2 " + quay},
		{name: "a path without v2 gets it", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://m/x/y")}}, image: "quay.io/a", want: "https://m/x/y/v2 " + quay, lacks: []string{"override_path"}},
		{name: "v2 in a path is not put there again", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://m/v2/proj")}}, image: "quay.io/a", want: "https://m/v2/proj " + quay, has: []string{"override_path = true"}},
		{name: "a server with a path", releases: everyRelease, regs: []profiles.Registry{{Host: "r.example", Server: &profiles.Endpoint{URL: "https://h/v2/cache"}}}, image: "r.example/a", want: "https://h/v2/cache", has: []string{"server = 'https://h/v2/cache'\noverride_path = true"}},
		{name: "a name that begins with http has no scheme", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("httpbin.local:5000")}}, fault: "unsupported scheme"},
		{name: "no scheme", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("m.example.com")}}, fault: `unsupported scheme ""`},
		{name: "one host twice loses the file", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://m", "https://m/")}}, fault: "mirror https://m is there twice"},
		{name: "hosts that differ in their path alone are two", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://m/v2/A", "https://m/v2/a")}}, image: "quay.io/a", want: "https://m/v2/A https://m/v2/a " + quay},
		{name: "root keys are before the first host", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://m"), Server: &profiles.Endpoint{SkipVerify: &yes}}}, image: "quay.io/a", want: up, has: []string{"server = 'https://quay.io'\nskip_verify = true\n\n[host.'https://m']"}},
		{name: "a client of two files is a pair", releases: everyRelease, regs: with(profiles.Endpoint{Client: []profiles.ClientCert{{Cert: file("c.crt"), Key: file("k.pem")}}}), image: "quay.io/a", want: up, has: []string{"client = [['c.pem', 'k.pem']]"}},
		{name: "a client of one file is a pair of it", releases: everyRelease, regs: with(profiles.Endpoint{Client: []profiles.ClientCert{{Cert: file("both.pem")}}}), image: "quay.io/a", want: up, has: []string{"client = [['both.pem', 'both.pem']]"}},
		{name: "several clients are a list of pairs", releases: everyRelease, regs: with(profiles.Endpoint{Client: []profiles.ClientCert{{Cert: file("c.crt"), Key: file("k.pem")}, {Cert: file("both.pem")}}}), image: "quay.io/a", want: up, has: []string{"client = [['c.pem', 'k.pem'], ['both.pem', 'both.pem']]"}},
		{name: "a CA that is not there fails every pull", releases: everyRelease, regs: with(profiles.Endpoint{CA: []profiles.LocalFile{file("missing.crt")}}), fault: "file does not exist"},
		{name: "a CA is beside the file that names it", releases: everyRelease, regs: with(profiles.Endpoint{CA: []profiles.LocalFile{file("ca.crt")}}), image: "quay.io/a", want: up, has: []string{"ca = ['ca.pem']"}},
		{name: "a CA of the server is not the mirror's", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://m"), Server: &profiles.Endpoint{CA: []profiles.LocalFile{file("ca.crt")}}}}, image: "quay.io/a", want: up, has: []string{"ca = ['ca.pem']\n\n[host.'https://m']\n"}},
		{name: "_default came with 1.6.17", releases: "1.6.0 1.6.16", regs: []profiles.Registry{{Host: "*", Mirrors: m("https://m")}}, fault: "knows no default registry"},
		{name: "_default is for what has no folder", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io"}, {Host: "*", Mirrors: m("https://m")}}, image: "gcr.io/a", want: "https://m/v2 https://gcr.io/v2"},
		{name: "_default is not for what has a folder", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io"}, {Host: "*", Mirrors: m("https://m")}}, image: "quay.io/a", want: quay},
		{name: "a server for every registry", releases: everyRelease, regs: []profiles.Registry{{Host: "*", Server: &profiles.Endpoint{URL: "https://m"}}}, image: "quay.io/a", want: "https://m/v2"},
		{name: "images of Docker Hub are in docker.io", releases: everyRelease, regs: []profiles.Registry{{Host: "docker.io", Mirrors: m("https://m")}}, image: "nginx", want: "https://m/v2 https://registry-1.docker.io/v2", has: []string{"server = 'https://registry-1.docker.io'"}},
		{name: "images of Docker Hub by its other name", releases: everyRelease, regs: []profiles.Registry{{Host: "docker.io", Mirrors: m("https://m")}}, image: "index.docker.io/library/nginx", want: "https://m/v2 https://registry-1.docker.io/v2"},
		{name: "an address of IPv6", releases: everyRelease, regs: []profiles.Registry{{Host: "[fd00::1]", Mirrors: m("https://[fd00::2]")}}, image: "[fd00::1]/a", want: "https://[fd00::2]/v2 https://[fd00::1]/v2"},
		{name: "an address of IPv6 with a port", releases: everyRelease, regs: []profiles.Registry{{Host: "[fd00::1]:5000", Mirrors: m("http://[fd00::2]:5001", "https://m")}}, image: "[fd00::1]:5000/a", want: "http://[fd00::2]:5001/v2 https://m/v2 https://[fd00::1]:5000/v2"},
		{name: "a host with a port", releases: everyRelease, regs: []profiles.Registry{{Host: "r.example:5000"}}, image: "r.example:5000/a", want: "https://r.example:5000/v2"},
		{name: "plain HTTP has no TLS settings", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("http://m:5000")}}, image: "quay.io/a", want: "http://m:5000/v2 " + quay, lacks: []string{"skip_verify", "ca =", "client"}},
		{name: "mirrors that may not resolve are not asked for tags", releases: everyRelease, regs: with(profiles.Endpoint{Capabilities: []string{"pull"}}), image: "quay.io/a", want: "-https://m/v2 " + quay},
		{name: "mirrors that may not resolve are asked for digests", releases: everyRelease, regs: with(profiles.Endpoint{Capabilities: []string{"pull"}}), image: "quay.io/a@sha256:" + strings.Repeat("a", 64), want: up},
		{name: "capabilities in capitals", releases: everyRelease, regs: with(profiles.Endpoint{Capabilities: []string{"PULL", "Resolve"}}), image: "quay.io/a", want: up, has: []string{"capabilities = ['pull', 'resolve']"}},
		{name: "user and password in a URL are ignored", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://u:p@m")}}, fault: "containerd ignores credentials in a URL"},
		{name: "order is that of the profile", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://z", "https://a", "https://m")}}, image: "quay.io/a", want: "https://z/v2 https://a/v2 https://m/v2 " + quay},
		{name: "order is that of the profile with addresses", releases: everyRelease, regs: []profiles.Registry{{Host: "quay.io", Mirrors: m("https://z", "https://[fd00::1]", "https://a", "https://m")}}, image: "quay.io/a", want: "https://z/v2 https://[fd00::1]/v2 https://a/v2 https://m/v2 " + quay},
	} {
		t.Run(c.name, func(t *testing.T) { c.test(t) })
	}
}

func (c trap) test(t *testing.T) {
	pem, err := os.ReadFile("../testdata/pair.pem")
	if err != nil {
		t.Fatal(err)
	}
	for release := range strings.FieldsSeq(c.releases) {
		spec := &profiles.Spec{
			Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion(release)}},
			Registries: c.regs,
		}
		files, faults := registry.Files(spec, pairs{pem})
		if c.fault != "" {
			if len(faults.Errors()) != 1 || !strings.Contains(faults.Errors()[0].Message, c.fault) {
				t.Errorf("%s: faults %v, want %q", release, faults, c.fault)
			}
			continue
		}
		if faults.HasErrors() {
			t.Errorf("%s: %v", release, faults)
			continue
		}
		if faults := registry.ReadBack(spec, files, oracle(t)); len(faults) > 0 {
			t.Errorf("%s: %v", release, faults)
		}
		text := string(files[0].Content)
		for _, s := range c.has {
			if !strings.Contains(text, s) {
				t.Errorf("%s: no %q in\n%s", release, s, text)
			}
		}
		for _, s := range c.lacks {
			if strings.Contains(strings.TrimPrefix(text, desired.Header), s) {
				t.Errorf("%s: %q in\n%s", release, s, text)
			}
		}
		f := tree{}
		for _, file := range files {
			f[file.Path] = string(file.Content)
			// Beside it, and not of a name that counts where hosts.toml is not read.
			if slices.Contains([]string{".crt", ".cert", ".key"}, path.Ext(file.Path)) {
				t.Errorf("%s: %s", release, file.Path)
			}
		}
		if strings.HasSuffix(c.releases, release) && !strings.HasPrefix(release, "1.") {
			loads(t, files, c.image)
		}
		q := f.query(t, release)
		q.Image = c.image
		x, err := registry.Explain(q)
		if err != nil {
			t.Errorf("%s: %v", release, err)
			continue
		}
		if got := strings.Join(short(x), " "); got != c.want {
			t.Errorf("%s: asks %s\nwant %s\n%s", release, got, c.want, text)
		}
	}
}

// loads has containerd's own code find the folder and load all that is in it, certificates
// included.
func loads(t *testing.T, files []desired.File, image string) {
	t.Helper()
	root := t.TempDir()
	for _, f := range files {
		p := filepath.Join(root, strings.TrimPrefix(f.Path, registry.Root))
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, f.Content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		t.Fatal(err)
	}
	var said hook
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(&said)
	ctx := log.WithLogger(t.Context(), logrus.NewEntry(logger))
	hosts, err := config.ConfigureHosts(ctx, config.HostOptions{HostDir: config.HostDirFromRoot(root)})(reference.Domain(named))
	if err != nil || said.err != nil || len(hosts) == 0 {
		t.Errorf("containerd: %d hosts, %v, %v", len(hosts), err, said.err)
	}
}

// config_path is one folder and is always written: several are one name to containerd 2.1 and
// newer, and 2.2 has several by default.
func TestConfigPathIsOneFolder(t *testing.T) {
	for release := range strings.FieldsSeq(everyRelease) {
		spec := &profiles.Spec{
			Arch:       "amd64",
			Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion(release)}, DefaultRuntime: "runc", Runtimes: []profiles.Runtime{{Name: "runc", Type: "io.containerd.runc.v2"}}},
		}
		files, faults := render.Files(spec, nil)
		if faults.HasErrors() {
			t.Fatal(faults)
		}
		i := slices.IndexFunc(files, func(f desired.File) bool { return f.Path == render.ConfigPath })
		var got struct {
			Plugins map[string]struct {
				Registry map[string]any `toml:"registry"`
			} `toml:"plugins"`
		}
		if err := toml.Unmarshal(files[i].Content, &got); err != nil {
			t.Fatal(err)
		}
		plugin := "io.containerd.cri.v1.images"
		if strings.HasPrefix(release, "1.") {
			plugin = "io.containerd.grpc.v1.cri"
		}
		// Beside mirrors of its own, containerd refuses config_path.
		if diff := cmp.Diff(map[string]any{"config_path": registry.Root}, got.Plugins[plugin].Registry); diff != "" {
			t.Errorf("%s (-want +got):\n%s", release, diff)
		}
	}
}

// Names of folders are those that containerd looks for first, so that nobody's leftover of
// another form hides them.
func TestFolderNames(t *testing.T) {
	for host, want := range map[string]string{
		"docker.io": "docker.io", "r.example:5000": "r.example_5000_", "[fd00::1]:5000": "[fd00::1]_5000_", "[fd00::1]": "[fd00:_1]_", "*": "_default", "localhost:5000": "localhost_5000_",
	} {
		files, faults := registry.Files(&profiles.Spec{
			Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("2.4.2")}},
			Registries: []profiles.Registry{{Host: host, Mirrors: []profiles.Endpoint{{URL: "https://m"}}}},
		}, nil)
		if len(faults) > 0 || files[0].Path != registry.Root+"/"+want+"/hosts.toml" {
			t.Errorf("%s: %v, %v", host, fmt.Sprint(files), faults)
		}
	}
}
