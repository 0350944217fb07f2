package render

import (
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

// allReleases has one version of each release line.
var allReleases = []string{"1.6.39", "1.7.34", "2.0.11", "2.1.9", "2.2.7", "2.3.4", "2.4.2"}

func newSpec(version string) *profiles.Spec {
	return &profiles.Spec{
		Arch: "amd64",
		Containerd: profiles.Containerd{
			Component: profiles.Component{Version: releases.MustVersion(version)},
			Root:      "/var/lib/containerd", State: "/run/containerd", Address: "/run/containerd/containerd.sock",
			Snapshotter: "overlayfs", SandboxImage: "registry.k8s.io/pause:3.10", SystemdCgroup: true, DefaultRuntime: "runc",
			Runtimes: []profiles.Runtime{{Name: "runc", Type: "io.containerd.runc.v2", Path: "/usr/local/sbin/runc"}},
		},
		Crictl: profiles.Component{Version: releases.MustVersion("1.36.0")},
	}
}

// config renders config.toml and decodes it again.
func config(t *testing.T, spec *profiles.Spec) (map[string]any, desired.File, diag.List) {
	t.Helper()
	files, faults := Files(spec, nil)
	i := slices.IndexFunc(files, func(f desired.File) bool { return f.Path == ConfigPath })
	if i < 0 {
		if !faults.HasErrors() {
			t.Fatal("no config.toml and no fault")
		}
		return nil, desired.File{}, faults
	}
	var tree map[string]any
	if err := toml.Unmarshal(files[i].Content, &tree); err != nil {
		t.Fatalf("decode: %v\n%s", err, files[i].Content)
	}
	return tree, files[i], faults
}

// at looks a value up, nil when it is not there.
func at(tree map[string]any, names ...string) any {
	var v any = tree
	for _, n := range names {
		t, _ := v.(map[string]any)
		v = t[n]
	}
	return v
}

func TestConfigBySchema(t *testing.T) {
	runc := map[string]any{
		"runtime_type": "io.containerd.runc.v2",
		"options":      map[string]any{"SystemdCgroup": true, "BinaryName": "/usr/local/sbin/runc"},
	}
	containerd := map[string]any{"default_runtime_name": "runc", "runtimes": map[string]any{"runc": runc}}
	v2 := map[string]any{
		"version": int64(2), "root": "/var/lib/containerd", "state": "/run/containerd", "oom_score": int64(0),
		"required_plugins": []any{cri},
		"grpc":             map[string]any{"address": "/run/containerd/containerd.sock"},
		"plugins": map[string]any{cri: map[string]any{
			"sandbox_image": "registry.k8s.io/pause:3.10",
			"containerd":    map[string]any{"snapshotter": "overlayfs", "default_runtime_name": "runc", "runtimes": map[string]any{"runc": runc}},
			"cni":           map[string]any{"conf_dir": "/etc/cni/net.d", "bin_dir": "/opt/cni/bin"},
			"registry":      map[string]any{"config_path": "/etc/containerd/certs.d"},
		}},
	}
	images := map[string]any{
		"snapshotter":   "overlayfs",
		"pinned_images": map[string]any{"sandbox": "registry.k8s.io/pause:3.10"},
		"registry":      map[string]any{"config_path": "/etc/containerd/certs.d"},
	}
	v3 := func(cni map[string]any) map[string]any {
		return map[string]any{
			"version": int64(3), "root": "/var/lib/containerd", "state": "/run/containerd", "oom_score": int64(0),
			"required_plugins": []any{cri}, "imports": []any{"/etc/containerd/conf.d/*.toml"},
			"grpc":    map[string]any{"address": "/run/containerd/containerd.sock"},
			"plugins": map[string]any{criImages: images, criRuntime: map[string]any{"containerd": containerd, "cni": cni}},
		}
	}
	binDirs := map[string]any{"conf_dir": "/etc/cni/net.d", "bin_dirs": []any{"/opt/cni/bin"}}
	v4 := v3(binDirs)
	v4["version"] = int64(4)
	delete(v4, "grpc")
	v4["plugins"] = map[string]any{
		criImages: images, criRuntime: map[string]any{"containerd": containerd, "cni": binDirs},
		grpcServer: map[string]any{"address": "/run/containerd/containerd.sock"},
		ttrpc:      map[string]any{"address": "/run/containerd/containerd.sock.ttrpc"},
	}
	want := map[string]map[string]any{
		"1.6.39": v2, "1.7.34": v2,
		"2.0.11": v3(map[string]any{"conf_dir": "/etc/cni/net.d", "bin_dir": "/opt/cni/bin"}),
		"2.1.9":  v3(binDirs), "2.2.7": v3(binDirs), "2.3.4": v4, "2.4.2": v4,
	}
	for _, version := range allReleases {
		t.Run(version, func(t *testing.T) {
			got, f, faults := config(t, newSpec(version))
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			if diff := cmp.Diff(want[version], got); diff != "" {
				t.Errorf("config.toml (-want +got):\n%s", diff)
			}
			if !strings.HasPrefix(string(f.Content), desired.Header+"version = ") {
				t.Errorf("does not begin with the header and the version:\n%s", f.Content)
			}
			if f.Mode != 0o644 || f.Secret || f.Effect != desired.EffectRestart || f.Format != desired.FormatTOML {
				t.Errorf("mode %v secret %v effect %q format %q", f.Mode, f.Secret, f.Effect, f.Format)
			}
		})
	}
}

func TestRenderingIsStable(t *testing.T) {
	spec := newSpec("2.4.2")
	spec.Containerd.Settings = map[string]any{"debug": map[string]any{"level": "debug", "format": "json"}, "timeouts": map[string]any{"b": "1s", "a": "2s", "c": "3s"}}
	first, _ := Files(spec, nil)
	for range 20 {
		again, _ := Files(spec, nil)
		if diff := cmp.Diff(first, again); diff != "" {
			t.Fatalf("differs from run to run:\n%s", diff)
		}
	}
}

func TestRuntimes(t *testing.T) {
	spec := newSpec("1.7.34")
	spec.Containerd.SystemdCgroup = false
	spec.Containerd.DefaultRuntime = "crun"
	spec.Containerd.Runtimes = []profiles.Runtime{
		{Name: "crun", Type: "io.containerd.runc.v2", Path: "/usr/bin/crun", Options: map[string]any{"SystemdCgroup": true, "IoUid": int64(5)}},
		{Name: "kata", Type: "io.containerd.kata.v2", Options: map[string]any{"ConfigPath": "/etc/kata.toml"}},
		{Name: "runc"},
	}
	tree, _, faults := config(t, spec)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	want := map[string]any{
		"crun": map[string]any{"runtime_type": "io.containerd.runc.v2", "options": map[string]any{"BinaryName": "/usr/bin/crun", "SystemdCgroup": true, "IoUid": int64(5)}},
		"kata": map[string]any{"runtime_type": "io.containerd.kata.v2", "options": map[string]any{"ConfigPath": "/etc/kata.toml"}},
		"runc": map[string]any{"runtime_type": "io.containerd.runc.v2", "options": map[string]any{"SystemdCgroup": false}},
	}
	if diff := cmp.Diff(any(want), at(tree, "plugins", cri, "containerd", "runtimes")); diff != "" {
		t.Errorf("runtimes (-want +got):\n%s", diff)
	}
}

func TestProxyPlugins(t *testing.T) {
	plugin := profiles.ProxyPlugin{Name: "stargz", Type: "snapshot", Address: "/run/stargz.sock", Platform: "linux/amd64", Exports: map[string]string{"root": "/var/lib/stargz", "enable_remote_snapshot_annotations": "true"}}
	want := map[string]any{"type": "snapshot", "address": "/run/stargz.sock", "platform": "linux/amd64", "exports": map[string]any{"root": "/var/lib/stargz", "enable_remote_snapshot_annotations": "true"}}
	for _, version := range allReleases {
		spec := newSpec(version)
		spec.Containerd.ProxyPlugins = []profiles.ProxyPlugin{plugin}
		tree, _, _ := config(t, spec)
		if diff := cmp.Diff(any(want), at(tree, "proxy_plugins", "stargz")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", version, diff)
		}
	}
}

// TestUnpackers: since 2.1 a pull with a snapshotter that the transfer service does not
// know fails, and it knows overlayfs alone.
func TestUnpackers(t *testing.T) {
	native := map[string]any{"platform": "linux/amd64", "snapshotter": "native"}
	erofs := map[string]any{"platform": "linux/amd64", "snapshotter": "erofs", "differ": "erofs"}
	overlay := map[string]any{"platform": "linux/amd64", "snapshotter": "overlayfs"}
	mayBe := map[string]any{"platform": "linux/amd64", "snapshotter": "overlayfs", "optional": true}
	of := func(snapshotter string) func(*profiles.Spec) {
		return func(s *profiles.Spec) { s.Containerd.Snapshotter = snapshotter }
	}
	settings := func(snapshotter string, plugins map[string]any) func(*profiles.Spec) {
		return func(s *profiles.Spec) {
			s.Containerd.Snapshotter = snapshotter
			s.Containerd.Settings = map[string]any{"plugins": plugins}
		}
	}
	own := map[string]any{criRuntime: map[string]any{"containerd": map[string]any{"runtimes": map[string]any{"runc": map[string]any{"snapshotter": "native"}}}}}
	given := []any{map[string]any{"platform": "linux/amd64", "snapshotter": "mine"}}
	for name, c := range map[string]struct {
		versions []string
		change   func(*profiles.Spec)
		want     any
	}{
		"overlayfs needs no word":                  {[]string{"2.0.11", "2.1.9", "2.2.7", "2.3.4", "2.4.2"}, of("overlayfs"), nil},
		"older ones pull by themselves":            {[]string{"1.6.39", "1.7.34", "2.0.11"}, of("native"), nil},
		"another one":                              {[]string{"2.1.9", "2.2.7"}, of("native"), []any{native}},
		"another one, and ctr's where it is there": {[]string{"2.3.4", "2.4.2"}, of("native"), []any{native, mayBe}},
		"erofs has a differ of its own":            {[]string{"2.1.9"}, of("erofs"), []any{erofs}},
		"a runtime's own":                          {[]string{"2.1.9", "2.4.2"}, settings("overlayfs", own), []any{overlay, native}},
		"chosen by settings":                       {[]string{"2.1.9"}, settings("overlayfs", map[string]any{criImages: map[string]any{"snapshotter": "native"}}), []any{native}},
		"said by settings":                         {[]string{"2.1.9", "2.4.2"}, settings("native", map[string]any{transfer: map[string]any{"unpack_config": given}}), given},
	} {
		for _, v := range c.versions {
			t.Run(name+"/"+v, func(t *testing.T) {
				spec := newSpec(v)
				c.change(spec)
				tree, _, faults := config(t, spec)
				if faults.HasErrors() {
					t.Fatal(faults)
				}
				if diff := cmp.Diff(c.want, at(tree, "plugins", transfer, "unpack_config")); diff != "" {
					t.Errorf("unpack_config (-want +got):\n%s", diff)
				}
				if at(tree, "plugins", transfer) != nil && c.want == nil {
					t.Error("an empty section is left")
				}
			})
		}
	}
}

func plainAuth(user, password string) *profiles.Auth {
	return &profiles.Auth{Username: profiles.Secret{Value: user, Plain: true}, Password: profiles.Secret{Value: password}}
}

func TestCredentials(t *testing.T) {
	for _, version := range allReleases {
		spec := newSpec(version)
		spec.Registries = []profiles.Registry{
			{Host: "docker.io", Auth: &profiles.Auth{IdentityToken: profiles.Secret{Env: "TOKEN"}}, Mirrors: []profiles.Endpoint{
				{URL: "https://Mirror.example.com:443/v2/hub", Auth: plainAuth("m", "hunter3")},
				{URL: "https://open.example.com"},
			}},
			{Host: "harbor.example.net:5000", Auth: plainAuth("robot$node", "hunter2")},
			{Host: "quay.io"},
			{Host: "*", Deny: true, Mirrors: []profiles.Endpoint{{URL: "https://harbor.example.net:5000/v2/all", Auth: plainAuth("robot$node", "hunter2")}}},
		}
		// 1.x reads no such key.
		six := spec.Containerd.Version.AtLeast(2, 0, 0)
		if six {
			spec.Registries[0].Mirrors = append(spec.Registries[0].Mirrors, profiles.Endpoint{URL: "http://[fd00::1]:5000", Auth: plainAuth("six", "hunter4")})
		}
		tree, f, faults := config(t, spec)
		if len(faults) != 1 || faults.HasErrors() {
			t.Fatal(faults)
		}
		plugin := criImages
		if releases.ConfigSchema(spec.Containerd.Version) == 2 {
			plugin = cri
		}
		login := func(user, password string) map[string]any {
			return map[string]any{"auth": map[string]any{"username": user, "password": password}}
		}
		// By the host as it is contacted, letter by letter.
		want := map[string]any{
			"config_path": "/etc/containerd/certs.d",
			"configs": map[string]any{
				"registry-1.docker.io":    map[string]any{"auth": map[string]any{"identitytoken": "(placeholder made by nodeprep: environment variable TOKEN)"}},
				"harbor.example.net:5000": login("robot$node", "hunter2"),
				"Mirror.example.com:443":  login("m", "hunter3"),
			},
		}
		if six {
			want["configs"].(map[string]any)["[fd00::1]:5000"] = login("six", "hunter4")
		}
		if diff := cmp.Diff(any(want), at(tree, "plugins", plugin, "registry")); diff != "" {
			t.Errorf("%s: registry (-want +got):\n%s", version, diff)
		}
		if f.Mode != 0o600 || !f.Secret || f.Effect != desired.EffectRestart {
			t.Errorf("%s: mode %v secret %v effect %v", version, f.Mode, f.Secret, f.Effect)
		}
	}
}

// What credentials in config.toml cost is said once, at the first of them.
func TestCostOfCredentials(t *testing.T) {
	registryOf := func(a *profiles.Auth) []profiles.Registry {
		return []profiles.Registry{{Host: "a", Auth: a}, {Host: "b", Auth: a}}
	}
	mirrorOf := func(a *profiles.Auth) []profiles.Registry {
		return []profiles.Registry{{Host: "a", Mirrors: []profiles.Endpoint{{URL: "https://m"}, {URL: "https://n", Auth: a}}}}
	}
	for _, tt := range []struct {
		version  string
		regs     []profiles.Registry
		path     string
		want     string
		severity diag.Severity
		faults   int
	}{
		{"1.6.39", registryOf(plainAuth("u", "p")), "registries.a.auth", "credentials go into config.toml: a change of them restarts containerd; they are deprecated, and 2.7 has no place for them", diag.Warning, 1},
		{"2.0.11", registryOf(plainAuth("u", "p")), "registries.a.auth", "credentials go into config.toml: a change of them restarts containerd", diag.Warning, 1},
		{"2.1.0", registryOf(plainAuth("u", "p")), "registries.a.auth", "containerd 2.1.0 then pulls by itself, not through its transfer service; a change of them restarts containerd", diag.Warning, 1},
		{"2.4.2", mirrorOf(plainAuth("u", "p")), "registries.a.mirrors[1].auth", "containerd 2.4.2 then pulls by itself", diag.Warning, 1},
		{"2.6.9", registryOf(plainAuth("u", "p")), "registries.a.auth", "containerd 2.6.9 then pulls by itself", diag.Warning, 1},
		{"2.7.0", registryOf(plainAuth("u", "p")), "registries.a.auth", "containerd 2.7.0 takes no credentials in config.toml: 2.7 removed them", diag.Error, 2},
		{"2.7.0-rc.0", mirrorOf(plainAuth("u", "p")), "registries.a.mirrors[1].auth", "containerd 2.7.0-rc.0 takes no credentials in config.toml", diag.Error, 1},
	} {
		spec := newSpec(tt.version)
		spec.Registries = tt.regs
		_, faults := Files(spec, nil)
		if len(faults) != tt.faults || faults[0].Path != tt.path || !strings.Contains(faults[0].Message, tt.want) || faults[0].Severity != tt.severity {
			t.Errorf("%s: %v", tt.version, faults)
			continue
		}
		hint := "kubelet.credentialProviders"
		if strings.Contains(tt.path, "mirrors") {
			hint = "an Authorization header"
		}
		if !strings.Contains(faults[0].Hint, hint) {
			t.Errorf("%s: remedy %q, want %q", tt.version, faults[0].Hint, hint)
		}
	}
	spec := newSpec("1.7.34")
	spec.Registries = []profiles.Registry{{Host: "a", Mirrors: []profiles.Endpoint{{URL: "https://[::1]:5", Auth: plainAuth("u", "p")}}}}
	if _, faults := Files(spec, nil); len(faults) != 1 || faults[0].Path != "registries.a.mirrors[0].auth" || !strings.Contains(faults[0].Message, "containerd 1.7.34 cannot read credentials for [::1]:5") {
		t.Error(faults)
	}
	spec = newSpec("2.4.2")
	spec.Registries = []profiles.Registry{{Host: "a", Mirrors: []profiles.Endpoint{{URL: "https://m", Header: []profiles.Header{{Name: "Authorization", Values: []profiles.Secret{{Env: "A"}}}}}}}}
	if _, faults := Files(spec, nil); len(faults) > 0 {
		t.Errorf("a header costs nothing: %v", faults)
	}
}

// values is a Reader of secrets by the names of variables.
type values map[string]string

func (values) File(f profiles.LocalFile) ([]byte, error) {
	return nil, &fs.PathError{Op: "open", Path: f.Path, Err: fs.ErrNotExist}
}

func (v values) Secret(s profiles.Secret) (string, error) {
	if s.Env == "" {
		return s.Value, nil
	}
	text, ok := v[s.Env]
	if !ok {
		return "", fmt.Errorf("environment variable %s is not set", s.Env)
	}
	return text, nil
}

func TestCredentialFaults(t *testing.T) {
	env := func(name string) profiles.Secret { return profiles.Secret{Env: name, Origin: diag.Origin{Path: name}} }
	ok := plainAuth("u", "p")
	mirror := func(u string, a *profiles.Auth) []profiles.Endpoint { return []profiles.Endpoint{{URL: u, Auth: a}} }
	const cost = "credentials go into config.toml"
	for _, tt := range []struct {
		name string
		regs []profiles.Registry
		read registry.Reader
		want []string // path: message, in parts
	}{
		{"any registry", []profiles.Registry{{Host: "*", Auth: ok}}, nil, []string{`registries.*.auth: containerd knows credentials by host, and "*" is none`}},
		{"denied upstream", []profiles.Registry{{Host: "a", Deny: true, Auth: ok, Mirrors: []profiles.Endpoint{{URL: "https://b"}}}}, nil, []string{"registries.a.auth: nothing asks a with upstream: deny", "registries.a.auth: " + cost}},
		{"denied upstream that is another's mirror", []profiles.Registry{{Host: "a", Deny: true, Auth: ok, Mirrors: []profiles.Endpoint{{URL: "https://b"}}}, {Host: "c", Mirrors: []profiles.Endpoint{{URL: "https://a"}}}}, nil, []string{"registries.a.auth: " + cost}},
		{"the same for one host", []profiles.Registry{{Host: "docker.io", Auth: ok}, {Host: "registry-1.docker.io", Auth: ok}, {Host: "a", Mirrors: mirror("https://registry-1.docker.io", ok)}}, nil, []string{"registries.docker.io.auth: " + cost}},
		{"others for one host", []profiles.Registry{{Host: "a", Auth: ok}, {Host: "b", Mirrors: mirror("https://a/v2/b", plainAuth("u", "hunter2"))}}, nil, []string{
			"registries.b.mirrors[0].auth: containerd has one set of credentials for a host, and those for a are others than the ones of registries.a.auth", "registries.a.auth: " + cost}},
		{"a password and a token", []profiles.Registry{{Host: "a", Auth: ok}, {Host: "b", Mirrors: mirror("https://a", &profiles.Auth{IdentityToken: profiles.Secret{Value: "hunter2"}})}}, nil, []string{"others than the ones of registries.a.auth", cost}},
		{"the same by two references", []profiles.Registry{{Host: "a", Auth: &profiles.Auth{IdentityToken: env("A")}}, {Host: "b", Mirrors: mirror("https://a", &profiles.Auth{IdentityToken: env("B")})}}, values{"A": "hunter2", "B": "hunter2"}, []string{cost}},
		{"others by two references", []profiles.Registry{{Host: "a", Auth: &profiles.Auth{IdentityToken: env("A")}}, {Host: "b", Mirrors: mirror("https://a", &profiles.Auth{IdentityToken: env("B")})}}, values{"A": "hunter2", "B": "hunter3"}, []string{"others than the ones of registries.a.auth", cost}},
		{"references that were not read", []profiles.Registry{{Host: "a", Auth: &profiles.Auth{IdentityToken: env("A")}}, {Host: "b", Mirrors: mirror("https://a", &profiles.Auth{IdentityToken: env("B")})}}, nil, []string{cost}},
		{"other user names beside what was not read", []profiles.Registry{{Host: "a", Auth: &profiles.Auth{Username: profiles.Secret{Value: "u"}, Password: env("A")}}, {Host: "b", Mirrors: mirror("https://a", &profiles.Auth{Username: profiles.Secret{Value: "v"}, Password: env("B")})}}, nil, []string{"others than the ones of registries.a.auth", cost}},
		{"hosts that differ in their port", []profiles.Registry{{Host: "a", Auth: ok}, {Host: "b", Mirrors: mirror("https://a:8443", plainAuth("v", "q"))}}, nil, []string{cost}},
		{"missing", []profiles.Registry{{Host: "a", Auth: &profiles.Auth{IdentityToken: env("A")}}}, values{}, []string{"A: read identityToken: environment variable A is not set"}},
		{"all that is missing", []profiles.Registry{{Host: "a", Auth: &profiles.Auth{Username: env("A"), Password: env("B")}}}, values{}, []string{"A: read username: ", "B: read password: "}},
		{"empty", []profiles.Registry{{Host: "a", Auth: &profiles.Auth{Username: profiles.Secret{Value: "u"}, Password: env("A")}}}, values{"A": ""}, []string{"A: the password is empty"}},
		{"two line breaks", []profiles.Registry{{Host: "a", Auth: &profiles.Auth{Username: profiles.Secret{Value: "u"}, Password: env("A")}}}, values{"A": "hunter2\n"}, []string{"A: the password ends with a line break", cost}},
		{"not UTF-8", []profiles.Registry{{Host: "a", Auth: plainAuth("u", "hunter2\xff")}}, nil, []string{"registries.a.auth.password: the password is not valid UTF-8"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := newSpec("2.4.2")
			spec.Registries = tt.regs
			_, faults := Files(spec, tt.read)
			if len(faults) != len(tt.want) {
				t.Fatalf("faults %v, want %q", faults, tt.want)
			}
			for i, want := range tt.want {
				if got := faults[i].Path + ": " + faults[i].Message; !strings.Contains(got, want) {
					t.Errorf("fault %s, want %q", got, want)
				}
				if strings.Contains(faults[i].String(), "hunter") {
					t.Errorf("secret shown: %s", faults[i])
				}
			}
		})
	}
}

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		name     string
		version  string
		settings map[string]any
		path     []string
		want     any
	}{
		{"a new key", "2.4.2", map[string]any{"debug": map[string]any{"level": "debug"}}, []string{"debug", "level"}, "debug"},
		{"deep in a table that is rendered", "2.4.2", map[string]any{"plugins": map[string]any{criRuntime: map[string]any{"containerd": map[string]any{"runtimes": map[string]any{"runc": map[string]any{"options": map[string]any{"IoUid": 7}}}}}}},
			[]string{"plugins", criRuntime, "containerd", "runtimes", "runc"}, map[string]any{"runtime_type": "io.containerd.runc.v2", "options": map[string]any{"BinaryName": "/usr/local/sbin/runc", "SystemdCgroup": true, "IoUid": int64(7)}}},
		{"a rendered value", "1.7.34", map[string]any{"plugins": map[string]any{cri: map[string]any{"cni": map[string]any{"bin_dir": "/usr/lib/cni"}}}}, []string{"plugins", cri, "cni"}, map[string]any{"bin_dir": "/usr/lib/cni", "conf_dir": "/etc/cni/net.d"}},
		{"lists replace", "2.4.2", map[string]any{"imports": []any{"/etc/other.toml"}}, []string{"imports"}, []any{"/etc/other.toml"}},
		{"null takes away", "2.4.2", map[string]any{"required_plugins": nil}, []string{"required_plugins"}, nil},
		{"imports on 1.x when asked for", "1.7.34", map[string]any{"imports": []any{"/etc/other.toml"}}, []string{"imports"}, []any{"/etc/other.toml"}},
		{"lists of tables", "2.4.2", map[string]any{"x": []any{map[string]any{"a": 1.5}, map[string]any{"b": true}}}, []string{"x"}, []any{map[string]any{"a": 1.5}, map[string]any{"b": true}}},
		{"CRI disabled is not required", "2.4.2", map[string]any{"disabled_plugins": []any{cri}}, []string{"required_plugins"}, nil},
		{"the version nodeprep chooses itself", "2.4.2", map[string]any{"version": 4}, []string{"version"}, int64(4)},
		{"keys with dots, quotes and spaces", "2.4.2", map[string]any{"timeouts": map[string]any{`a.b "c' d`: "1s"}}, []string{"timeouts"}, map[string]any{`a.b "c' d`: "1s"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := newSpec(tt.version)
			spec.Containerd.Settings = tt.settings
			tree, f, faults := config(t, spec)
			if len(faults) > 0 {
				t.Fatal(faults)
			}
			if diff := cmp.Diff(tt.want, at(tree, tt.path...)); diff != "" {
				t.Errorf("%s (-want +got):\n%s\n%s", tt.path, diff, f.Content)
			}
		})
	}
}

func TestSettingsAreNotChanged(t *testing.T) {
	spec := newSpec("2.4.2")
	inner := map[string]any{"a": int64(1)}
	spec.Containerd.Settings = map[string]any{"plugins": map[string]any{"io.example.x": inner}}
	before := fmt.Sprint(spec.Containerd.Settings)
	Files(spec, nil)
	if after := fmt.Sprint(spec.Containerd.Settings); after != before {
		t.Errorf("settings became %s, were %s", after, before)
	}
}

func TestSettingsFaults(t *testing.T) {
	runtimes := func(t map[string]any) map[string]any {
		return map[string]any{"plugins": map[string]any{criRuntime: map[string]any{"containerd": t}}}
	}
	for _, tt := range []struct {
		name     string
		settings map[string]any
		path     string
		want     string
	}{
		{"a value for a table", map[string]any{"plugins": "none"}, "plugins", "want a table here, as nodeprep renders it, not a string"},
		{"a table for a value", map[string]any{"root": map[string]any{"x": "y"}}, "root", "want a string here, as nodeprep renders it, not a table"},
		{"a string for a number", map[string]any{"oom_score": "5"}, "oom_score", "want an integer here"},
		{"a string for a list", map[string]any{"imports": "/etc/x.toml"}, "imports", "want a list here"},
		{"another version", map[string]any{"version": 2}, "version", "containerd 2.4.2 has config version 4"},
		{"null in a list", map[string]any{"x": []any{nil}}, "x", "TOML has no null"},
		{"a type that TOML lacks", map[string]any{"x": map[string]any{"y": complex(1, 2)}}, "x.y", "complex128 cannot be written"},
		{"a short plugin name", map[string]any{"disabled_plugins": []any{"cri"}}, "disabled_plugins", `refuses the plugin name "cri"`},
		{"a runtime without a type", runtimes(map[string]any{"runtimes": map[string]any{"kata": map[string]any{"snapshotter": "x"}}}), "plugins." + criRuntime + ".containerd.runtimes.kata.runtime_type", "has no runtime_type"},
		{"an unknown default runtime", runtimes(map[string]any{"default_runtime_name": "kata"}), "plugins." + criRuntime + ".containerd.default_runtime_name", `there is no runtime "kata"`},
		{"not UTF-8", map[string]any{"x": map[string]any{"y": "\xff"}}, "", "x.y: not valid UTF-8"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			spec := newSpec("2.4.2")
			spec.Containerd.Settings = tt.settings
			_, _, faults := config(t, spec)
			if len(faults) != 1 || !strings.Contains(faults[0].Message, tt.want) {
				t.Fatalf("faults %v, want one: %s", faults, tt.want)
			}
			if want := "containerd.settings." + tt.path; tt.path != "" && faults[0].Path != want {
				t.Errorf("path %s, want %s", faults[0].Path, want)
			}
		})
	}
}

func TestAllMergeFaultsAtOnce(t *testing.T) {
	spec := newSpec("2.4.2")
	spec.Containerd.Settings = map[string]any{"root": 1, "state": 2, "imports": "x"}
	if _, _, faults := config(t, spec); len(faults) != 3 {
		t.Errorf("%d faults, want 3: %v", len(faults), faults)
	}
}

// hostile are strings that have broken other tools' templates.
var hostile = []string{
	`"`, `'`, `'''`, `"""`, `\`, `\n`, "a\nb", "a\r\nb", "\t", "\x00", "\x01\x1f\x7f", "\u0085\u2028\u2029\ufeff", "é😀", "# x", "a = b",
	"[x]", `{{.}}`, "$HOME `id` $(id)", "%s%d", " lead and trail ", "-", "~", "null", "true", "0x10", "1_000", "2024-01-01", ": ", "- a", "*a &b !c", "</script>&",
}

func TestHostileStringsSurvive(t *testing.T) {
	for _, s := range hostile {
		for _, version := range []string{"1.6.39", "2.0.11", "2.4.2"} {
			spec := newSpec(version)
			c := &spec.Containerd
			c.Root, c.State, c.Address, c.Snapshotter, c.SandboxImage, c.DefaultRuntime = "/r"+s, "/s"+s, "/a"+s, s, s, s
			c.Runtimes = []profiles.Runtime{{Name: s, Type: "io.containerd.runc.v2", Path: "/p" + s, Options: map[string]any{"Root": s}}}
			c.ProxyPlugins = []profiles.ProxyPlugin{{Name: s, Type: "snapshot", Address: s}}
			c.Settings = map[string]any{"x" + s: map[string]any{s: []any{s}}}
			spec.Registries = []profiles.Registry{{Host: "a", Auth: &profiles.Auth{Password: profiles.Secret{Value: s}}}}
			tree, f, faults := config(t, spec)
			if version == "1.6.39" && (strings.ContainsFunc(s, unicode.IsControl) || strings.Contains(s, "]")) {
				if problems := faults.Errors(); len(problems) != 1 || !strings.Contains(problems[0].Message, "containerd 1.x cannot read a key") {
					t.Errorf("%q: %v", s, faults)
				}
				continue
			}
			// Of credentials something is said.
			if len(faults.Warnings()) != 1 || faults.HasErrors() {
				t.Fatalf("%q: %v", s, faults)
			}
			images, runtime, sandbox := criImages, criRuntime, at(tree, "plugins", criImages, "pinned_images", "sandbox")
			if version == "1.6.39" {
				images, runtime, sandbox = cri, cri, at(tree, "plugins", cri, "sandbox_image")
			}
			got := []any{tree["root"], tree["state"], sandbox, at(tree, "plugins", runtime, "containerd", "default_runtime_name"),
				at(tree, "plugins", runtime, "containerd", "runtimes", s, "options", "BinaryName"), at(tree, "plugins", runtime, "containerd", "runtimes", s, "options", "Root"),
				at(tree, "proxy_plugins", s, "address"), at(tree, "x"+s, s), at(tree, "plugins", images, "registry", "configs", "a", "auth", "password")}
			want := []any{"/r" + s, "/s" + s, s, s, "/p" + s, s, s, []any{s}, s}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatalf("%s, %q (-want +got):\n%s\n%s", version, s, diff, f.Content)
			}
		}
	}
}

func FuzzConfigStrings(f *testing.F) {
	for _, s := range hostile {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, k, v string) {
		spec := newSpec("2.4.2")
		spec.Containerd.Settings = map[string]any{"x": map[string]any{k: v}}
		tree, _, faults := config(t, spec)
		if faults.HasErrors() {
			if utf8.ValidString(k) && utf8.ValidString(v) {
				t.Fatal(faults)
			}
			return
		}
		if got := at(tree, "x", k); got != v {
			t.Errorf("%q = %q became %q", k, v, got)
		}
	})
}

func TestModeOfFiles(t *testing.T) {
	files, _ := Files(newSpec("2.4.2"), nil)
	for _, f := range files {
		if f.Mode != fs.FileMode(0o644) {
			t.Errorf("%s: mode %v", f.Path, f.Mode)
		}
	}
}
