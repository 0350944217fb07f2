package registry_test

import (
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

var update = flag.Bool("update", false, "write testdata/predictions.json anew")

// Every release whose parser test/oracle asks.
const asked = "1.6.8 1.6.20 1.6.38 1.7.6 1.7.7 1.7.20 1.7.31 1.7.35 2.0.5 2.0.11 2.1.9 2.2.7 2.3.4"

// prediction is what nodeprep says that releases make of a certs.d for one registry. The
// oracle has its own type for it: it holds what is written here against those releases.
type prediction struct {
	Registry string            `json:"registry"`
	Tree     map[string]string `json:"tree"` // hosts.toml by folder
	Want     []outcome         `json:"want"`
}

// outcome is the same for these releases.
type outcome struct {
	Releases string `json:"releases"`         // with spaces between
	Broken   bool   `json:"broken,omitempty"` // the file counts for nothing
	AnyOrder bool   `json:"anyOrder,omitempty"`
	// Certificates are the files that are read beside it, by path below certs.d.
	Certificates []string `json:"certificates,omitempty"`
	Hosts        []string `json:"hosts"`
}

// predicted is one host in a line, as the oracle writes one, too.
func predicted(h registry.ExplainedHost, header map[string][]string) string {
	out := h.URL
	fallback := strings.HasPrefix(h.PlainHTTP, "HTTPS first")
	if fallback {
		out += " or http"
	}
	out += " " + strings.Join(h.Capabilities, ",")
	for _, name := range slices.Sorted(maps.Keys(header)) {
		out += fmt.Sprintf(" %q=%q", name, header[name])
	}
	if fallback {
		return out // what there is of TLS is not to be seen from outside
	}
	if h.SkipVerify {
		out += " skip_verify"
	}
	if len(h.CA) > 0 {
		out += " ca"
	}
	if len(h.Client) > 0 {
		out += fmt.Sprint(" clients:", len(h.Client))
	}
	return out
}

func predict(t *testing.T, name string, dirs map[string]string) prediction {
	t.Helper()
	p := prediction{Registry: name, Tree: dirs}
	files := tree{}
	for dir, text := range dirs {
		files[registry.Root+"/"+dir+"/hosts.toml"] = text
	}
	for release := range strings.FieldsSeq(asked) {
		q := files.query(t, release)
		q.Image = name + "/a"
		parse := q.Parse
		var last []registry.Parsed
		q.Parse = func(text []byte, name string) ([]registry.Parsed, error) {
			hosts, err := parse(text, name)
			if err == nil {
				last = hosts
			}
			return hosts, err
		}
		broken, anyOrder := false, false
		x, err := registry.Explain(q)
		if err != nil {
			t.Fatalf("%s: %v\n%v", release, err, dirs)
		}
		p.Registry = x.Registry
		if x.File != "" {
			// What ctr would do is parsed last, so that headers are asked for again.
			f := registry.ReadHostsFile(x.File, []byte(files[x.File]), releases.MustVersion(release))
			if last, err = parse(f.Bare, name); err != nil {
				t.Fatalf("%s: %v\n%s", release, err, f.Bare)
			}
		}
		for _, n := range x.Notes {
			broken = broken || strings.Contains(n, "is broken")
			anyOrder = anyOrder || strings.Contains(n, "in any order")
		}
		o := outcome{Releases: release, Broken: broken, AnyOrder: anyOrder}
		for i, h := range x.Hosts {
			o.Hosts = append(o.Hosts, predicted(h, last[i].Header))
			certificates := slices.Clone(h.CA)
			for _, pair := range h.Client {
				certificates = append(certificates, pair[:]...)
			}
			for _, f := range certificates {
				below := strings.TrimPrefix(f, registry.Root+"/")
				if !slices.Contains(o.Certificates, below) {
					o.Certificates = append(o.Certificates, below)
				}
			}
		}
		slices.Sort(o.Certificates)
		same := slices.IndexFunc(p.Want, func(w outcome) bool {
			return w.Broken == o.Broken && w.AnyOrder == o.AnyOrder && slices.Equal(w.Hosts, o.Hosts) && slices.Equal(w.Certificates, o.Certificates)
		})
		if same < 0 {
			p.Want = append(p.Want, o)
		} else {
			p.Want[same].Releases += " " + release
		}
	}
	return p
}

// odd are files as people write them by mistake, or by other rules than nodeprep's.
func odd() []string {
	host := func(keys string) string { return "[host.\"https://a\"]\n" + keys + "\n" }
	root := func(keys string) string { return keys + "\n[host]\n" }
	out := []string{
		"[[host.\"https://a\"]]", "[[host]]\nx = 1", "host = \"https://a\"", "host = []", "host = {}", "host = {\"https://a\" = {}}",
		"host = {\"https://b\" = {skip_verify = true}, \"https://a\" = {override_path = true}}",
		"[host]\n\"https://z\" = {}\n\"https://a\" = {}\n[host.\"https://m\"]", "[host]\nx = \"y\"", "[host]\nx = {}", "[host.a.host.b]",
		"[host]\n'https://z'.ca = 'ca.pem'\n'https://a'.skip_verify = true\n'https://[fd00::1]'.header.x = 'y'",
		"host.\"https://z\".override_path = false\nhost.\"https://a\".override_path = false\nserver = \"https://m\"",
		"[host.\"https://a\".header]\nx = \"y\"\n[host.\"https://b\"]\n[host.\"https://a\"]",
		"[host.\"https://a\".unknown]\nx = 1", "[host . \"https://a\"]", "[host.'https://a']", "[host.https]", "[host.\"https://\\u0061\"]",
		"[hosts.\"https://a\"]", "[Host.\"https://a\"]", "Server = \"https://m\"\n[host]", "SERVER = \"https://m\"\n[host]",
		"# only a comment", "\n", "\r\n[host.\"https://a\"]\r\ncapabilities = [\"pull\"]\r\n", "\ufeff[host.\"https://a\"]",
		"server = 5\n[host]", "server = \"https://m\"\nserver = \"https://n\"\n[host]", "server = \"://\"\n[host]", "server = \"https://a b\"\n[host]", "server = \"\"\n[host]",
		"[host.\"https://u:p@a\"]", "[host.\"https://a?x=y\"]", "[host.\"https://a/../b\"]", "[host.\"https://a//b/\"]", "[host.\"https://a/%2e\"]", "[host.\"HTTPS://a\"]",
		"[host.\"ftp://a\"]", "[host.\"/a\"]", "[host.\"a\"]", "[host.\"http\"]",
		host("[host.\"https://a\".header]\nX-A = \"1\"\nx-a = \"2\""), host("[host.\"https://a\".header]\nx = [\"a\", 5]"), host("[host.\"https://a\".header]\nx = []"),
		host("[host.\"https://a\".header]\nx = 2020-01-01"), host("header = \"x\""), host("header = [\"x\"]"), host("header = {x = \"y\"}"), host("header.x = \"y\""),
	}
	for _, keys := range []string{
		`capabilities = "pull"`, `capabilities = []`, `capabilities = [""]`, `capabilities = ["pull", 5]`, `capabilities = [["pull"]]`, `CAPABILITIES = ["pull"]`, `Capabilities = ["pull"]`, `capabilities = ["push", "pull", "push"]`,
		`ca = "ca.pem"`, `ca = ["ca.pem", "sub/other.pem"]`, `ca = ["ca.pem", 5]`, `ca = true`, `ca = {x = "y"}`, `CA = "ca.pem"`, `Ca = "ca.pem"`, `ca = [["ca.pem"]]`,
		`client = "both.pem"`, `client = ["both.pem"]`, `client = ["c.pem", "k.pem"]`, `client = [["c.pem", "k.pem"]]`, `client = [["c.pem", "k.pem"], ["d.pem", "d.pem"]]`, `client = [["c.pem", "k.pem"], "both.pem"]`,
		`client = [["c.pem", "k.pem", "x.pem"]]`, `client = []`, `client = [[]]`, `client = 5`, `client = [5]`, `client = [["c.pem", 5]]`, `client = {cert = "c.pem", key = "k.pem"}`,
		`skip_verify = false`, `skip_verify = true`, `skip_verify = "true"`, `skip_verify = 1`, `Skip_Verify = true`, `SKIP_VERIFY = true`, `skipverify = true`,
		`override_path = "true"`, `override_path = 1`, `Override_Path = true`, `OVERRIDE_PATH = true`,
		`dial_timeout = 5`, `dial_timeout = ""`, `dial_timeout = "-1s"`, `dial_timeout = "1h30m"`, `DIAL_TIMEOUT = "5s"`, `dial_timeout = ["5s"]`, `dial_timeout = {x = "5s"}`,
		`# nothing`, `a.b.c = 1`, `x = nan`, `x = 0x1F`, `x = 1_000`, `x = 1979-05-27T07:32:00Z`, `x = 07:32:00`, "x = \"\"\"\ny\"\"\"", `x = [1, "a"]`, `x = {y = {z = 1}}`,
		`'x' = 1`, `"x y" = 1`, `x = {}`, `x = [{y = 1}, {}]`, `é = 1`, `x = "\u00e9"`, `x = {y = 1,}`, "x = [\n1,\n# c\n2,\n]", "x = {y = 1\n}", "x = {y = \"{,}\"} # {,}", "x = {y = [\n1,\n]}", "x = {y = '''a\n,}'''}",
	} {
		out = append(out, host(keys), root(keys), "server = \"https://m\"\n"+root(keys))
	}
	return out
}

// Predictions are what test/oracle asks the parsers of real releases about: all files of
// the tables here, all that profiles render to, and all goldens, each for every release.
func TestPredictions(t *testing.T) {
	var all []prediction
	seen := map[string]bool{}
	add := func(name string, dirs map[string]string) {
		key := fmt.Sprint(name, dirs)
		if !seen[key] {
			seen[key] = true
			all = append(all, predict(t, name, dirs))
		}
	}
	for _, c := range hostsTomls() {
		add("example.com", map[string]string{"example.com": c.text})
	}
	for _, text := range odd() {
		// A key of the root without a server is of most effect where there is another rule
		// for the registry's own host.
		name := "example.com"
		if !strings.Contains(text, "[host.") && !strings.HasPrefix(text, "server") {
			name = "localhost:5000"
		}
		add(name, map[string]string{name: text})
	}
	domain := func(image string) string {
		first, _, ok := strings.Cut(image, "/")
		if !ok || !strings.ContainsAny(first, ".:") && first != "localhost" {
			return "docker.io"
		}
		return first
	}
	for _, c := range profilesHosts() {
		for release := range strings.FieldsSeq(asked) {
			spec := &profiles.Spec{
				Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion(release)}},
				Registries: []profiles.Registry{c.reg},
			}
			files, faults := registry.Files(spec, nil)
			if faults.HasErrors() {
				continue
			}
			add(domain(c.image), map[string]string{path.Base(path.Dir(files[0].Path)): string(files[0].Content)})
		}
	}
	goldens, err := filepath.Glob("../testdata/golden/*/*/*/etc/containerd/certs.d/*/hosts.toml")
	if err != nil || len(goldens) == 0 {
		t.Fatalf("no golden: %v", err)
	}
	for _, g := range goldens {
		text, err := os.ReadFile(g)
		if err != nil {
			t.Fatal(err)
		}
		dir := filepath.Base(filepath.Dir(g))
		name := dir
		if dir == "_default" {
			name = "quay.io"
		} else if i := strings.LastIndex(strings.TrimSuffix(dir, "_"), "_"); strings.HasSuffix(dir, "_") && i > 0 {
			name = dir[:i] + ":" + strings.TrimSuffix(dir[i+1:], "_")
		}
		add(name, map[string]string{dir: string(text)})
	}
	// Which folder counts.
	for _, name := range []string{"quay.io", "r:5000", "localhost:5000", "[::1]:5000", "[fd00::1]"} {
		names := []string{name, "_default"}
		if i := strings.LastIndexByte(name, ':'); i > 0 {
			names = append([]string{name[:i] + "_" + name[i+1:] + "_"}, names...)
		}
		for i := range names {
			dirs := map[string]string{}
			for j, dir := range names[i:] {
				dirs[dir] = fmt.Sprintf("server = \"https://folder%d\"\n[host]\n", i+j)
			}
			add(name, dirs)
		}
	}
	got, err := json.MarshalIndent(all, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	const file = "testdata/predictions.json"
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(strings.Split(string(want), "\n"), strings.Split(string(got), "\n")); diff != "" {
		t.Errorf("what nodeprep says has changed; after go test -run TestPredictions -update, ask the releases themselves with go test ./... in test/oracle (-want +got):\n%s", diff)
	}
}
