package configtoml

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
)

const rootFile = "/etc/containerd/config.toml"

// tree writes files below a new root.
func tree(t testing.TB, files map[string]string) *host.Root {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

func load(t testing.TB, release string, files map[string]string) *Config {
	t.Helper()
	var v releases.Version
	if release != "" {
		v = releases.MustVersion(release)
	}
	c, err := Load(tree(t, files), rootFile, v)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func one(content string) map[string]string { return map[string]string{rootFile: content} }

const everyKindOfKey = `version = 3
root = "/data" # a comment
imports = [
  "conf.d/*.toml",
  "/etc/other.toml",
]

[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
  runtime_type = "io.containerd.runc.v2"

  [plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
    SystemdCgroup = true
[plugins."io.containerd.cri.v1.images"]
pinned_images.sandbox = "a"
registry = { config_path = "/x", headers = { "X-A" = ["1"] } }
[plugins]
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
differ = "a"
[[plugins."io.containerd.transfer.v1.local".unpack_config]]
differ = """
b
"""
platform = "c"
[plugins."io.containerd.cri.v1.runtime"."cni"]
"conf_dir" = "/c"
`

func TestPlacesOfEveryKindOfKey(t *testing.T) {
	const transfer, images, runtime = "io.containerd.transfer.v1.local", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"
	want := map[string]int{
		"version": 1, "root": 2, "imports": 3, "imports|0": 4, "imports|1": 5,
		"plugins|" + runtime:                                                     8,
		"plugins|" + runtime + "|containerd":                                     8,
		"plugins|" + runtime + "|containerd|runtimes|runc":                       8,
		"plugins|" + runtime + "|containerd|runtimes|runc|runtime_type":          9,
		"plugins|" + runtime + "|containerd|runtimes|runc|options":               11,
		"plugins|" + runtime + "|containerd|runtimes|runc|options|SystemdCgroup": 12,
		"plugins|" + images:                                                      13,
		"plugins|" + images + "|pinned_images":                                   14,
		"plugins|" + images + "|pinned_images|sandbox":                           14,
		"plugins|" + images + "|registry":                                        15,
		"plugins|" + images + "|registry|config_path":                            15,
		"plugins|" + images + "|registry|headers|X-A|0":                          15,
		"plugins":                                           16,
		"plugins|" + transfer + "|unpack_config":            17,
		"plugins|" + transfer + "|unpack_config|0":          17,
		"plugins|" + transfer + "|unpack_config|0|differ":   18,
		"plugins|" + transfer + "|unpack_config|1":          19,
		"plugins|" + transfer + "|unpack_config|1|differ":   20,
		"plugins|" + transfer + "|unpack_config|1|platform": 23,
		"plugins|" + runtime + "|cni":                       24,
		"plugins|" + runtime + "|cni|conf_dir":              25,
		"plugins|nothing":                                   0,
	}
	for style, content := range map[string]string{"unix": everyKindOfKey, "windows": strings.ReplaceAll(everyKindOfKey, "\n", "\r\n")} {
		t.Run(style, func(t *testing.T) {
			f, faults := decode("/c", []byte(content))
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			for path, line := range want {
				p := Place{}
				if line > 0 {
					p = Place{"/c", line}
				}
				if got := f.Place(strings.Split(path, "|")...); got != p {
					t.Errorf("%s at %s, want %s", path, got, p)
				}
			}
		})
	}
}

func TestPlaceAsText(t *testing.T) {
	for want, p := range map[string]Place{"": {}, "/a": {File: "/a"}, "/a:7": {"/a", 7}} {
		if got := p.String(); got != want {
			t.Errorf("%#v is %q, want %q", p, got, want)
		}
	}
}

// TestFaults has what stops a daemon, with its place.
func TestFaults(t *testing.T) {
	dropIn := func(root, drop string) map[string]string {
		return map[string]string{rootFile: root, "/etc/containerd/conf.d/a.toml": drop}
	}
	const imports = "version = 2\nimports = [\"conf.d/*.toml\"]\n"
	tests := []struct {
		name, release string
		files         map[string]string
		want          []string // PLACE PROBLEM, "..." at the end for the rest
	}{
		{"bad TOML", "2.4.2", one("version = 4\n\nroot = oops\n"), []string{rootFile + ":3 not valid TOML at line 3, column 8: ..."}},
		{"a key twice", "2.4.2", one("root = \"a\"\nroot = \"b\"\n"), []string{rootFile + ":2 not valid TOML at line 2, ..."}},
		{"bad TOML in a drop-in", "1.7.34", dropIn(imports, "[a\n"), []string{"/etc/containerd/conf.d/a.toml:1 not valid TOML at line 1, ..."}},
		{"a newer version", "2.2.7", one("version = 4\n"), []string{rootFile + ":1 version 4 is more than the 3 that containerd 2.2 reads: it does not start"}},
		{"a version nobody has", "2.4.2", one("version = 5\n"), []string{rootFile + ":1 version 5 is more than the 4 that containerd 2.4 reads: it does not start"}},
		{"a version below all", "2.4.2", one("version = -9000000000000000000\n"), []string{rootFile + ":1 version -9000000000000000000 is below 0: containerd does not start"}},
		{"version 3 on 1.7", "1.7.34", one("version = 3\n"), []string{rootFile + ":1 version 3 is more than the 2 that containerd 1.7 reads: it does not start"}},
		{"version 3 on a 1.7 that does not look", "1.7.16", one("version = 3\n"), nil},
		{"a missing import", "2.4.2", one("imports = [\n\"gone.toml\"]\n"), []string{rootFile + ":2 imports /etc/containerd/gone.toml, which is not there"}},
		{"a pattern that nothing fits", "2.4.2", one("imports = [\"gone/*.toml\"]\n"), nil},
		{"a folder as config", "2.4.2", map[string]string{rootFile + "/x": ""}, []string{rootFile + " is a folder, not a file"}},
		{"a drop-in of a higher version on 2.3.4", "2.3.4", dropIn(imports, "version = 3\n"),
			[]string{"/etc/containerd/conf.d/a.toml:1 this drop-in has version 3, higher than the 2 of " + rootFile + ": containerd 2.3.4 does not start"}},
		{"the same on 2.3.5", "2.3.5", dropIn(imports, "version = 3\n"), nil},
		{"the same on 2.2", "2.2.7", dropIn(imports, "version = 3\n"), nil},
		{"a drop-in beside a root without version on 2.3.4", "2.3.4", dropIn(imports[12:], "version = 3\n"), nil},
		{"a short name to disable", "2.4.2", one("version = 2\ndisabled_plugins = [\n \"cri\"]\n"), []string{rootFile + `:3 disabled_plugins: "cri" is no plugin's full name: containerd does not start`}},
		{"a short name to disable on 1.7", "1.7.34", one("version = 2\nrequired_plugins = [\"cri\"]\n"), []string{rootFile + `:2 required_plugins: "cri" is no plugin's full name: containerd does not start`}},
		{"a short plugin name on 1.7", "1.7.34", one("version = 2\n[plugins.cri]\n"), []string{rootFile + ":2 plugins.cri is no plugin's full name: containerd does not start"}},
		{"Docker's file", "2.4.2", one("disabled_plugins = [\"cri\"]\n"), nil},
		{"a text for a number", "1.7.34", one("oom_score = \"-999\"\n"), []string{rootFile + ":1 oom_score must be a whole number"}},
		{"a text for a list", "2.2.7", one("version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = '/opt'\n"), []string{rootFile + `:3 plugins."io.containerd.cri.v1.runtime".cni.bin_dirs must be a list of texts`}},
		{"a text for a table", "2.2.7", one("plugins = \"x\"\n"), []string{rootFile + ":1 plugins must be a table"}},
		{"a number for a duration", "2.2.7", one("[timeouts]\n'io.containerd.timeout.shim.load' = '5'\n"), []string{rootFile + `:2 timeouts."io.containerd.timeout.shim.load" must be a duration in quotes, such as "10s"`}},
		{"a wrong type that a later file replaces", "2.2.7", dropIn("version = 3\nimports = ['conf.d/*']\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 1\n", "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'native'\n"), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := load(t, tt.release, tt.files)
			var got []string
			for i, f := range c.Faults {
				s := f.Place.String() + " " + f.Problem
				if i < len(tt.want) {
					if start, more := strings.CutSuffix(tt.want[i], "..."); more && strings.HasPrefix(s, start) {
						s = tt.want[i]
					}
				}
				got = append(got, s)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

// TestIgnored has what a release does not read, and what to write instead.
func TestIgnored(t *testing.T) {
	const cri = "[plugins.'io.containerd.grpc.v1.cri'"
	tests := []struct {
		name, release, content string
		want                   []string
	}{
		{"CRI of schema 2 in a file of 3", "2.2.7", "version = 3\n" + cri + "]\nsandbox_image = 'x'\n", []string{`:3 use plugins."io.containerd.cri.v1.images".pinned_images.sandbox`}},
		{"the same on 2.3", "2.3.4", "version = 3\n" + cri + "]\nsandbox_image = 'x'\n", nil},
		{"the same in a file of 4", "2.3.4", "version = 4\n" + cri + "]\nsandbox_image = 'x'\n", []string{`:3 use plugins."io.containerd.cri.v1.images".pinned_images.sandbox`}},
		{"CRI of schema 3 on 1.6", "1.6.20", "version = 2\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = 'x'\n", []string{`:2 use plugins."io.containerd.grpc.v1.cri"`}},
		{"what listens in a file of 4", "2.4.2", "version = 4\n[grpc]\nuid = 0\naddress = '/x'\ntcp_tls_ca = 'y'\n", []string{
			`:3 use plugins."io.containerd.server.v1.grpc".uid`, `:4 use plugins."io.containerd.server.v1.grpc".address`, `:5 use plugins."io.containerd.server.v1.grpc-tcp".tls_ca`}},
		{"what listens in a file of 3", "2.4.2", "version = 3\n[grpc]\nuid = 0\naddress = '/x'\n[metrics]\ngrpc_histogram = true\n", nil},
		{"a server plugin on 2.2", "2.2.7", "version = 3\n[plugins.'io.containerd.server.v1.grpc']\naddress = '/x'\n", []string{":2 unknown to containerd 2.2: it came with 2.3"}},
		{"snapshotter without runtimes", "2.0.3", "version = 2\n" + cri + ".containerd]\nsnapshotter = 'zfs'\n",
			[]string{`:3 the migration drops it from a file without a runtimes table: write it under [plugins."io.containerd.cri.v1.images"] in a file of version 3`}},
		{"snapshotter with runtimes", "2.0.3", "version = 2\n" + cri + ".containerd]\nsnapshotter = 'zfs'\n" + cri + ".containerd.runtimes.runc]\n", nil},
		{"TLS of a registry", "2.1.9", "version = 2\n" + cri + ".registry.configs.'h'.tls]\nca_file = 'x'\n", []string{":2 removed in containerd 2.0: use hosts.toml files in config_path"}},
		{"TLS of a registry on 1.7", "1.7.34", "version = 2\n" + cri + ".registry.configs.'h'.tls]\nca_file = 'x'\n", nil},
		{"systemd_cgroup on 2.x", "2.2.7", "version = 2\n" + cri + "]\nsystemd_cgroup = true\n", []string{":3 removed in containerd 2.0: use SystemdCgroup among the options of the runtime"}},
		{"plugin_dir", "2.1.9", "plugin_dir = '/x'\n", []string{":1 removed in containerd 2.1: use proxy_plugins"}},
		{"enable_cdi on 2.4", "2.4.2", "version = 4\n[plugins.'io.containerd.cri.v1.runtime']\nenable_cdi = true\n", []string{":3 removed in containerd 2.4: CDI is always on"}},
		{"a misspelt key", "2.2.7", "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshoter = 'x'\nsandbox-image = 'y'\n", []string{
			":3 unknown to containerd 2.2: did you mean snapshotter?", `:4 not read here: use plugins."io.containerd.cri.v1.images".pinned_images.sandbox`}},
		{"a misspelt key on 1.x", "1.7.34", "version = 2\n" + cri + "]\nsandbox-image = 'y'\n", []string{":3 unknown to containerd 1.7: did you mean sandbox_image?"}},
		{"a misspelt option", "1.7.34", "version = 2\n" + cri + ".containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\noptions = { systemd_cgroup = true }\n", []string{":4 unknown to containerd 1.7: did you mean SystemdCgroup?"}},
		{"an option of a runtime that is not runc", "1.7.34", "version = 2\n" + cri + ".containerd.runtimes.x]\nruntime_type = 'io.containerd.x.v2'\noptions = { systemd_cgroup = true }\n", nil},
		{"a misspelt table", "2.4.2", "version = 4\n[proxy-plugins.x]\ntype = 's'\n", []string{":2 unknown to containerd 2.4: did you mean proxy_plugins?"}},
		{"a key in another plugin", "2.2.7", "version = 3\n[plugins.'io.containerd.cri.v1.runtime']\nsnapshotter = 'zfs'\n", []string{`:3 not read here: use plugins."io.containerd.cri.v1.images".snapshotter`}},
		{"names that are free", "2.2.7", "version = 3\n[timeouts]\n'a.b' = '1s'\n[proxy_plugins.x]\ntype = 's'\n[plugins.'org.me'.a.b]\nc = 1\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'x']\nendpoint = ['http://x']\n", nil},
		{"full names in a file of schema 1 on 1.x", "1.7.34", cri + "]\nsandbox_image = 'x'\n", []string{":1 a file without version = 2 has short names for plugins: add version = 2"}},
		{"a section of a removed plugin", "2.2.7", "version = 2\n[plugins.'io.containerd.runtime.v1.linux']\nshim = 'x'\n", []string{":2 removed in containerd 2.0: use io.containerd.runc.v2 as runtime_type"}},
		{"a shim manager that the migration replaces", "2.4.2", "version = 3\n[plugins.'io.containerd.runtime.v2.task']\nplatforms = ['linux/amd64']\n[plugins.'io.containerd.shim.v1.manager']\nenv = ['A=b']\n",
			[]string{":4 the migration to schema 4 makes this section anew from io.containerd.runtime.v2.task: write version = 4"}},
		{"an empty root", "2.2.7", "root = ''\n", []string{":1 an empty value leaves the default"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := load(t, tt.release, one(tt.content))
			if len(c.Faults) > 0 {
				t.Errorf("faults: %v", c.Faults)
			}
			var got []string
			for _, k := range c.Ignored {
				got = append(got, strings.TrimPrefix(k.Place.String(), rootFile)+" "+k.Hint)
				if _, at, ok := c.Get(k.Path...); ok {
					t.Errorf("%s is ignored, and in effect from %s", display(k.Path), at)
				}
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("ignored (-want +got):\n%s", diff)
			}
		})
	}
}

func TestWhatContainerdPrintsAsItsDefaultsIsKnownToIt(t *testing.T) {
	files, err := filepath.Glob("testdata/defaults/*.toml")
	if err != nil || len(files) < 7 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		release := strings.TrimSuffix(filepath.Base(f), ".toml")
		c := load(t, release, one(string(b)))
		if len(c.Faults)+len(c.Ignored)+len(c.Deprecated) > 0 {
			t.Errorf("%s: faults %v, ignored %v, deprecated %v", release, c.Faults, c.Ignored, c.Deprecated)
		}
	}
	// A file of 1.7's defaults on 2.4 has keys that are gone, and all of them are empty.
	b, err := os.ReadFile("testdata/defaults/1.7.34.toml")
	if err != nil {
		t.Fatal(err)
	}
	for _, k := range load(t, "2.4.2", one(string(b))).Ignored {
		if last := k.Path[len(k.Path)-1]; !k.Empty && last != "io.containerd.runtime.v1.linux" && last != "enable_cdi" {
			t.Errorf("%s is taken for a setting", display(k.Path))
		}
	}
}

func TestDeprecated(t *testing.T) {
	const content = `version = 2
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://m"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."h".auth]
username = "u"
password = "very secret"
[plugins."io.containerd.grpc.v1.cri".registry.auths]
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.old]
runtime_type = "io.containerd.runtime.v1.linux"
runtime_engine = "/usr/bin/runc"
`
	list := func(c *Config) (out []string) {
		for _, k := range c.Deprecated {
			out = append(out, fmt.Sprintf("%d %s %s %s", k.Place.Line, k.Path[len(k.Path)-1], k.Removed, k.Hint))
		}
		return out
	}
	want := []string{
		"2 mirrors 2.7 use hosts.toml files in config_path",
		"4 configs 2.7 use hosts.toml files in config_path, and imagePullSecrets for credentials",
		"9 runtime_type 2.0 use io.containerd.runc.v2",
		"10 runtime_engine 2.0 use BinaryName among the options of the runtime",
	}
	old := load(t, "1.7.34", one(content))
	if diff := cmp.Diff(want, list(old)); diff != "" {
		t.Errorf("1.7 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(want[:2], list(load(t, "2.2.7", one(content)))); diff != "" {
		t.Errorf("2.2 (-want +got):\n%s", diff)
	}
	r := Registry{
		Place:   Place{rootFile, 2},
		Mirrors: []NamedPlace{{"docker.io", Place{rootFile, 2}}},
		Configs: []RegistryConfig{{Host: "h", HasAuth: true, Place: Place{rootFile, 4}}},
	}
	if diff := cmp.Diff(r, old.Registry()); diff != "" {
		t.Errorf("registry (-want +got):\n%s", diff)
	}
}

func TestDisabledCRI(t *testing.T) {
	tests := []struct {
		release, content string
		want             []Disabled
	}{
		{"2.4.2", "# Docker\ndisabled_plugins = [\"cri\"]\n", []Disabled{{"cri", Place{rootFile, 2}}}},
		{"1.7.34", "disabled_plugins = [\"cri\"]\n", []Disabled{{"cri", Place{rootFile, 1}}}},
		{"1.7.34", "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n", nil}, // no plugin has this short name
		{"2.2.7", "disabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n", []Disabled{{criV2, Place{rootFile, 1}}}},
		{"1.6.38", "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n", []Disabled{{criV2, Place{rootFile, 2}}}},
		{"1.6.38", "version = 2\ndisabled_plugins = [\"io.containerd.cri.v1.runtime\"]\n", nil},
		{"2.0.0", "version = 3\ndisabled_plugins = [\n\"io.containerd.snapshotter.v1.zfs\",\n\"io.containerd.cri.v1.runtime\", \"io.containerd.cri.v1.images\"]\n",
			[]Disabled{{criRuntime, Place{rootFile, 4}}, {criImages, Place{rootFile, 4}}}},
		{"", "version = 4\nrequired_plugins = [\"io.containerd.grpc.v1.cri\"]\n", nil},
	}
	for _, tt := range tests {
		if diff := cmp.Diff(tt.want, load(t, tt.release, one(tt.content)).DisabledCRI()); diff != "" {
			t.Errorf("%s %q (-want +got):\n%s", tt.release, tt.content, diff)
		}
	}
	c := load(t, "2.2.7", map[string]string{rootFile: "version = 3\nimports = ['/x/*.toml']\n", "/x/d.toml": "version = 3\n\ndisabled_plugins = ['io.containerd.grpc.v1.cri']\n"})
	if diff := cmp.Diff([]Disabled{{criV2, Place{"/x/d.toml", 3}}}, c.DisabledCRI()); diff != "" {
		t.Errorf("in a drop-in (-want +got):\n%s", diff)
	}
}

// TestRuntimes has how a file's runtimes stand to the built-in one.
func TestRuntimes(t *testing.T) {
	partial := "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n"
	other := "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.crun]\nruntime_type = 'io.containerd.runc.v2'\nsnapshotter = 'zfs'\noptions.BinaryName = 'crun'\n"
	line := func(n int) Place { return Place{rootFile, n} }
	tests := []struct {
		name, release, content string
		want                   []Runtime
	}{
		{"nothing", "1.7.34", "", []Runtime{{Name: "runc", Type: runcV2, Options: map[string]any{}}}},
		{"partial on 1.7", "1.7.34", partial, []Runtime{{Name: "runc", SystemdCgroup: true, Options: map[string]any{"SystemdCgroup": true}, Place: line(2), SystemdCgroupPlace: line(3)}}},
		{"partial on 2.4", "2.4.2", partial, []Runtime{{Name: "runc", Type: runcV2, SystemdCgroup: true, Options: map[string]any{"SystemdCgroup": true}, Place: line(2), SystemdCgroupPlace: line(3)}}},
		{"another on 1.7", "1.7.34", other, []Runtime{{Name: "crun", Type: runcV2, BinaryName: "crun", Snapshotter: "zfs", Options: map[string]any{"BinaryName": "crun"}, Place: line(2), TypePlace: line(3), BinaryPlace: line(5), SnapshotterPlace: line(4)}}},
		{"another on 2.0", "2.0.0", other, []Runtime{
			{Name: "crun", Type: runcV2, BinaryName: "crun", Snapshotter: "zfs", Options: map[string]any{"BinaryName": "crun"}, Place: line(2), TypePlace: line(3), BinaryPlace: line(5), SnapshotterPlace: line(4)},
			{Name: "runc", Type: runcV2, Options: map[string]any{}}}},
		{"small letters on 2.2", "2.2.7", "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nsystemdcgroup = true\nBINARYNAME = 'x'\n",
			[]Runtime{{Name: "runc", Type: runcV2, SystemdCgroup: true, Options: map[string]any{"systemdcgroup": true, "BINARYNAME": "x"}, Place: line(2), SystemdCgroupPlace: line(3)}}},
		{"the old default_runtime", "1.6.38", "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.default_runtime]\nruntime_type = 'io.containerd.runc.v2'\n",
			[]Runtime{{Name: "default", Type: runcV2, Options: map[string]any{}, Place: line(2), TypePlace: line(3)}, {Name: "runc", Type: runcV2, Options: map[string]any{}}}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, load(t, tt.release, one(tt.content)).Runtimes()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestGetAndPlacesThroughMigrations(t *testing.T) {
	files := map[string]string{
		rootFile: `version = 2
imports = ["/etc/containerd/conf.d/*.toml"]
oom_score = -500
[grpc]
address = "/run/a.sock"
tcp_address = "0.0.0.0:1"
tcp_tls_cert = "c"
tcp_tls_key = "k"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "a"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
`,
		"/etc/containerd/conf.d/50-a.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'b'\n",
	}
	const v2 = "io.containerd.grpc.v1.cri"
	drop := Place{"/etc/containerd/conf.d/50-a.toml", 3}
	root := func(n int) Place { return Place{rootFile, n} }
	for _, release := range []string{"2.0.11", "2.1.9", "2.2.7", "2.3.4", "2.4.2", ""} {
		t.Run(release, func(t *testing.T) {
			c := load(t, release, files)
			if len(c.Faults)+len(c.Ignored) > 0 {
				t.Errorf("faults %v, ignored %v", c.Faults, c.Ignored)
			}
			for _, path := range [][]string{{"plugins", criImages, "pinned_images", "sandbox"}, {"plugins", v2, "sandbox_image"}} {
				if v, at, ok := c.Get(path...); v != "b" || at != drop || !ok {
					t.Errorf("Get(%s) = %v, %s, %v", display(path), v, at, ok)
				}
			}
			if v, at, _ := c.Get("plugins", v2, "cni", "bin_dir"); v != "/usr/lib/cni" || at != root(16) {
				t.Errorf("bin_dir %v at %s", v, at)
			}
			if v, _, ok := c.Get("plugins", v2, "containerd", "no_such"); ok {
				t.Errorf("no_such is %v", v)
			}
			want := []any{"/run/a.sock", root(5), "/run/a.sock.ttrpc", root(5), "0.0.0.0:1", root(6), "native", root(12), "b", drop, -500, root(3), []string{"/usr/lib/cni"}, root(16), false, true, false, 1, Place{}}
			address, a := c.Address()
			ttrpc, b := c.TTRPCAddress()
			tcp, d := c.TCPAddress()
			snapshotter, e := c.Snapshotter()
			image, f := c.SandboxImage()
			score, g := c.OOMScore()
			bin, _, h, _, both := c.CNI()
			tls, clients := c.TCPTLS()
			conf, i := c.MaxConfNum()
			got := []any{address, a, ttrpc, b, tcp, d, snapshotter, e, image, f, score, g, bin, h, both, tls, clients, conf, i}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	// 1.7 knows nothing of what the drop-in's section does not say again.
	c := load(t, "1.7.34", files)
	if s, at := c.Snapshotter(); s != "overlayfs" || at != (Place{}) {
		t.Errorf("1.7: snapshotter %s at %s", s, at)
	}
	want := []Import{{Pattern: "/etc/containerd/conf.d/*.toml", Place: root(2), Files: []string{drop.File},
		Replaced: []Replaced{{v2, root(9), Place{drop.File, 2}}}}}
	if diff := cmp.Diff(want, c.Imports()); diff != "" {
		t.Errorf("1.7: imports (-want +got):\n%s", diff)
	}
}

func TestImports(t *testing.T) {
	files := map[string]string{
		rootFile:                            "version = 3\nimports = ['conf.d/*.toml', '/opt/x.toml', 'none/*.toml']\nroot = '/0'\n",
		"/etc/containerd/conf.d/b.toml":     "version = 3\nroot = '/b'\n",
		"/etc/containerd/conf.d/a.toml":     "imports = ['../config.toml', 'sub/c.toml']\nroot = '/a'\n",
		"/etc/containerd/conf.d/a.txt":      "not TOML",
		"/etc/containerd/conf.d/sub/c.toml": "version = 2\nstate = '/c'\n",
		"/opt/x.toml":                       "version = 3\ndisabled_plugins = ['io.containerd.x.v1.y']\n",
	}
	c := load(t, "2.4.2", files)
	var read []string
	for _, f := range c.Files {
		read = append(read, f.Path)
	}
	want := []string{rootFile, "/etc/containerd/conf.d/a.toml", "/etc/containerd/conf.d/b.toml", "/opt/x.toml", "/etc/containerd/conf.d/sub/c.toml"}
	if diff := cmp.Diff(want, read); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
	if s, at := c.Root(); s != "/b" || at.String() != "/etc/containerd/conf.d/b.toml:2" {
		t.Errorf("root %s at %s", s, at)
	}
	if s, at := c.State(); s != "/c" || at.Line != 2 {
		t.Errorf("state %s at %s", s, at)
	}
	var versions []string
	for _, i := range c.Imports() {
		for _, v := range i.Versions {
			versions = append(versions, fmt.Sprintf("%s %s %d %d", i.Pattern, v.Place, v.Version, v.Root))
		}
	}
	want = []string{"conf.d/*.toml /etc/containerd/conf.d/a.toml 0 3", "sub/c.toml /etc/containerd/conf.d/sub/c.toml:1 2 3"}
	if diff := cmp.Diff(want, versions); diff != "" {
		t.Errorf("versions (-want +got):\n%s", diff)
	}
	// Old releases looked for relative patterns from /.
	c = load(t, "1.7.15", map[string]string{rootFile: "version = 2\nimports = ['conf.d/*.toml']\n", "/etc/containerd/conf.d/a.toml": "root = '/a'\n", "/conf.d/b.toml": "version = 2\nroot = '/b'\n"})
	if s, at := c.Root(); s != "/b" {
		t.Errorf("1.7.15: root %s at %s", s, at)
	}
}

func TestWhatCannotBeRead(t *testing.T) {
	c := load(t, "2.4.2", nil)
	if s, at := c.SandboxImage(); c.Exists || s != "registry.k8s.io/pause:3.10.2" || at != (Place{}) || c.Schema != 4 {
		t.Errorf("no file: exists %v, %s at %s, schema %d", c.Exists, s, at, c.Schema)
	}
	if os.Geteuid() == 0 {
		t.Log("as root nothing is unreadable; that half is not tested")
		return
	}
	root := tree(t, one("version = 4\n"))
	if err := os.Chmod(filepath.Join(root.Dir(), rootFile), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(root, rootFile, releases.Version{}); !errors.Is(err, fs.ErrPermission) {
		t.Errorf("error %v", err)
	}
}

func TestCNIDirectories(t *testing.T) {
	const cni = "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\n"
	tests := []struct {
		release, content string
		dirs             []string
		line             int
		both             bool
	}{
		{"2.0.11", cni + "bin_dir = '/a'\n", []string{"/a"}, 3, false},
		{"2.0.11", cni + "bin_dirs = ['/a']\n", []string{"/opt/cni/bin"}, 0, false},
		{"2.2.7", cni + "bin_dir = '/a'\n", []string{"/a"}, 3, false},
		{"2.2.7", cni + "bin_dirs = ['/opt/cni/bin']\nbin_dir = '/a'\n", []string{"/a"}, 4, true},
		{"2.2.7", cni + "bin_dirs = ['/b']\nbin_dir = '/a'\n", []string{"/b"}, 3, true},
		{"2.4.2", cni + "bin_dir = '/a'\n", []string{"/opt/cni/bin"}, 0, false},
	}
	for _, tt := range tests {
		dirs, _, at, _, both := load(t, tt.release, one(tt.content)).CNI()
		if diff := cmp.Diff(tt.dirs, dirs); diff != "" || at.Line != tt.line || both != tt.both {
			t.Errorf("%s %q: %v at %s, both %v", tt.release, tt.content, dirs, at, both)
		}
	}
}

func TestConfigPath(t *testing.T) {
	const implicit = "/etc/containerd/certs.d:/etc/docker/certs.d"
	const mirrors = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.x]\nendpoint = ['http://x']\n"
	for _, tt := range []struct{ release, content, want string }{
		{"1.7.34", "", ""}, {"2.1.9", "", ""}, {"2.2.7", "", implicit}, {"2.4.2", mirrors, ""},
		{"2.4.2", "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/a:/b'\n", "/a:/b"},
	} {
		if got, _ := load(t, tt.release, one(tt.content)).ConfigPath(); got != tt.want {
			t.Errorf("%s %q: %q, want %q", tt.release, tt.content, got, tt.want)
		}
	}
}

// FuzzLoad: whatever is in a file, reading it ends with an answer.
func FuzzLoad(f *testing.F) {
	for _, seed := range []string{everyKindOfKey, "plugins = 1", "grpc = []", "[plugins.cri]\ncontainerd = 1\ncni = 2", "[[plugins]]", "imports = [1, ['a'], {}]", "disabled_plugins = {a = 1}",
		"version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nregistry = 1\ncontainerd.runtimes = 3\ncontainerd.snapshotter = []"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, content string) {
		for _, release := range []string{"1.7.34", "2.2.7", "2.4.2"} {
			c := load(t, release, one(content))
			meaningOf(c, "/")
			c.Registry()
			c.Get("plugins")
		}
	})
}

func BenchmarkLoad(b *testing.B) {
	for _, release := range []string{"1.7.34", "2.2.7", "2.4.2"} {
		b.Run(release, func(b *testing.B) {
			content, err := os.ReadFile("testdata/defaults/1.7.34.toml")
			if err != nil {
				b.Fatal(err)
			}
			root := tree(b, one(string(content)))
			for b.Loop() {
				if _, err := Load(root, rootFile, releases.MustVersion(release)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
