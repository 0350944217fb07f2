package profiles

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// bookworm is a current host: Debian 12.
func bookworm() Facts {
	return Facts{Arch: "amd64", LibC: "glibc", LibCVersion: releases.MustVersion("2.36.0"), Systemd: 252, SystemdInit: true}
}

// resolve loads and resolves a profile that must be without faults.
func resolve(t *testing.T, text string, facts Facts) (*Spec, []string) {
	t.Helper()
	p, list := Load("p.yaml", files{"p.yaml": text}.read)
	s, more := Resolve(p, facts)
	list = append(list, more...)
	if list.HasErrors() {
		t.Fatalf("faults:\n%s", strings.Join(lines(list), "\n"))
	}
	return s, lines(list)
}

// The empty profile is a working node.
func TestEmptyProfile(t *testing.T) {
	s, notes := resolve(t, "", bookworm())
	want := &Spec{
		Arch: "amd64",
		Containerd: Containerd{
			Component: Component{Version: releases.DefaultVersion(releases.Containerd)},
			Root:      "/var/lib/containerd", State: "/run/containerd", Address: "/run/containerd/containerd.sock",
			Snapshotter: "overlayfs", SandboxImage: "registry.k8s.io/pause:3.10.2", SystemdCgroup: true,
			DefaultRuntime: "runc",
			Runtimes:       []Runtime{{Name: "runc", Type: "io.containerd.runc.v2", Path: "/usr/local/sbin/runc"}},
			Settings:       map[string]any{},
		},
		Runc:        Component{Version: releases.DefaultVersion(releases.Runc)},
		CNI:         CNI{Component: Component{Version: releases.DefaultVersion(releases.CNI)}},
		Crictl:      Component{Version: releases.DefaultVersion(releases.Crictl)},
		Systemd:     Systemd{OOMScoreAdjust: -999, Delegate: true, KillMode: "process", HostVersion: 252, Environment: map[string]string{}},
		Modules:     []string{"overlay"},
		Sysctl:      map[string]string{},
		Generations: 3,
		Profiles:    []string{"p.yaml"},
	}
	ignore := cmpopts.IgnoreUnexported(Spec{})
	if diff := cmp.Diff(want, s, ignore); diff != "" {
		t.Errorf("spec (-want +got):\n%s", diff)
	}
	if len(notes) > 0 {
		t.Errorf("findings %q", notes)
	}

	// The built-in default says the same.
	d, _ := resolve(t, "extends: default\n", bookworm())
	if diff := cmp.Diff(want, d, ignore, cmpopts.IgnoreFields(Spec{}, "Profiles")); diff != "" {
		t.Errorf("default (-want +got):\n%s", diff)
	}
}

// The defaults that the documentation tags name are the ones that Resolve takes.
func TestDocumentedDefaults(t *testing.T) {
	s, _ := resolve(t, "registries: {a: {}}\ncni: {network: {subnet: 10.0.0.0/8}}\nimages: [{file: a}]\nkubelet: {credentialProviders: [{name: a, matchImages: [a]}]}\n", bookworm())
	got := map[string]any{
		"containerd.version": s.Containerd.Version.String(), "containerd.root": s.Containerd.Root, "containerd.state": s.Containerd.State,
		"containerd.address": s.Containerd.Address, "containerd.snapshotter": s.Containerd.Snapshotter,
		"containerd.oomScore": s.Containerd.OOMScore, "containerd.defaultRuntime": s.Containerd.DefaultRuntime,
		"cni.version": s.CNI.Version.String(), "cni.network.name": s.CNI.Network.Name, "cni.network.bridge": s.CNI.Network.Bridge,
		"cni.network.ipMasq": s.CNI.Network.IPMasq, "cni.network.portMapping": s.CNI.Network.PortMapping,
		"systemd.oomScoreAdjust": s.Systemd.OOMScoreAdjust, "systemd.delegate": s.Systemd.Delegate, "systemd.killMode": s.Systemd.KillMode,
		"host.modules": s.Modules, "images.pin": s.Images[0].Pin, "generations": s.Generations,
		"kubelet.credentialProviders.defaultCacheDuration": s.CredentialProviders[0].DefaultCacheDuration,
		"kubelet.credentialProviders.apiVersion":           s.CredentialProviders[0].APIVersion,
		"containerd.runtimes.type":                         s.Containerd.Runtimes[0].Type,
		// These are about what happens, which no value of a Spec shows.
		"containerd.variant": "auto", "containerd.cgroupDriver": "auto", "cni.network": "none", "registries.upstream": "allow",
		"registries.skipVerify": false, "registries.overridePath": false, "registries.mirrors.skipVerify": false, "registries.mirrors.overridePath": false,
	}
	var walk func(typ reflect.Type, at string)
	walk = func(typ reflect.Type, at string) {
		switch typ.Kind() {
		case reflect.Slice, reflect.Map:
			walk(typ.Elem(), at)
		case reflect.Struct:
			for _, f := range fieldsOf(typ) {
				if want := f.defaultValue(); want != nil {
					if diff := cmp.Diff(want, got[join(at, f.key)]); diff != "" {
						t.Errorf("%s (-documented +taken):\n%s", join(at, f.key), diff)
					}
				}
				walk(f.typ, join(at, f.key))
			}
		}
	}
	walk(reflect.TypeFor[Profile](), "")
}

func TestVariant(t *testing.T) {
	facts := func(libc, version string) Facts {
		f := Facts{Arch: "amd64", LibC: libc, Systemd: 252, SystemdInit: true}
		if version != "" {
			f.LibCVersion = releases.MustVersion(version)
		}
		return f
	}
	for _, test := range []struct {
		name, profile string
		facts         Facts
		static        bool
		note          string // part of the one finding; "" for none
	}{
		{"new glibc", "", facts("glibc", "2.36.0"), false, ""},
		{"just new enough", "", facts("glibc", "2.35.0"), false, ""},
		{"old glibc", "", facts("glibc", "2.31.0"), true, ""},
		{"old glibc, older release", "containerd: {version: 1.7.34}", facts("glibc", "2.31.0"), false, ""},
		{"old glibc and no static build", "containerd: {version: 1.6.39}", facts("glibc", "2.17.0"), false, "upstream publishes no static build"},
		{"musl", "", facts("musl", "1.2.5"), true, ""},
		{"no libc", "", Facts{Arch: "amd64"}, false, "p.yaml: warning: containerd.variant: the host's C library is not known; taking the dynamic build, which needs glibc 2.35"},
		{"glibc of unknown version", "", facts("glibc", ""), false, "the version of the host's glibc is not known"},
		{"no host", "", Facts{}, false, ""},
		{"no host but an arch", "", Facts{Arch: "arm64", SystemdInit: true}, false, ""},
		{"dynamic on musl", "containerd: {variant: dynamic}", facts("musl", ""), false, "needs glibc 2.35, and the host has musl (set containerd.variant to static)"},
		{"dynamic on old glibc", "containerd: {variant: dynamic}", facts("glibc", "2.31.0"), false, "needs glibc 2.35, and the host has glibc 2.31"},
		{"static", "containerd: {variant: static}", facts("glibc", "2.36.0"), true, ""},
		{"static of a release without", "containerd: {variant: static, version: 1.6.39}", facts("glibc", "2.36.0"), true, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, notes := resolve(t, test.profile, test.facts)
			if s.Containerd.Static != test.static {
				t.Errorf("static %v, want %v", s.Containerd.Static, test.static)
			}
			var about []string
			for _, n := range notes {
				if strings.Contains(n, "containerd.variant") {
					about = append(about, n)
				}
			}
			if test.note == "" && len(about) > 0 || test.note != "" && (len(about) != 1 || !strings.Contains(about[0], test.note)) {
				t.Errorf("findings %q, want one with %q", about, test.note)
			}
		})
	}
}

func TestChoices(t *testing.T) {
	digest := strings.Repeat("Ab", 32)
	for _, test := range []struct {
		name, profile string
		facts         Facts
		got           func(s *Spec) any
		want          any
	}{
		{"systemd cgroups", "", bookworm(), func(s *Spec) any { return s.Containerd.SystemdCgroup }, true},
		{"cgroups without systemd", "", Facts{Arch: "amd64", LibC: "musl"}, func(s *Spec) any { return s.Containerd.SystemdCgroup }, false},
		{"cgroupfs by choice", "containerd: {cgroupDriver: cgroupfs}", bookworm(), func(s *Spec) any { return s.Containerd.SystemdCgroup }, false},
		{"pause of the profile", "containerd: {sandboxImage: r.example.com/pause:1}\nkubernetes: {version: \"1.30\"}", bookworm(), func(s *Spec) any { return s.Containerd.SandboxImage }, "r.example.com/pause:1"},
		{"pause of Kubernetes", "kubernetes: {version: \"1.31\"}", bookworm(), func(s *Spec) any { return s.Containerd.SandboxImage }, "registry.k8s.io/pause:3.10"},
		{"pause of the release", "containerd: {version: 1.7.34}", bookworm(), func(s *Spec) any { return s.Containerd.SandboxImage }, "registry.k8s.io/pause:3.8"},
		{"pause of an unknown Kubernetes", "kubernetes: {version: \"1.99\"}", bookworm(), func(s *Spec) any { return s.Containerd.SandboxImage }, "registry.k8s.io/pause:3.10.2"},
		{"Kubernetes by its minor", "kubernetes: {version: v1.36.2}", bookworm(), func(s *Spec) any { return s.Kubernetes }, "1.36"},
		{"crictl of Kubernetes's minor", "kubernetes: {version: \"1.35\"}", bookworm(), func(s *Spec) any { return s.Crictl.Version.Line() }, "1.35"},
		{"crictl by choice", "kubernetes: {version: \"1.35\"}\ncrictl: {version: 1.36.0}", bookworm(), func(s *Spec) any { return s.Crictl.Version.Line() }, "1.36"},
		{"without crictl and CNI", "extends: minimal", bookworm(), func(s *Spec) any { return []bool{s.Crictl.Installed(), s.CNI.Installed(), s.Runc.Installed()} }, []bool{false, false, true}},
		{"digest of the arch", "runc: {sha256: {amd64: " + digest + "}}", bookworm(), func(s *Spec) any { return s.Runc.SHA256 }, strings.ToLower(digest)},
		{"digest of another arch", "runc: {sha256: {arm64: " + digest + "}}", bookworm(), func(s *Spec) any { return s.Runc.SHA256 }, ""},
		{"no modules", "host: {modules: []}", bookworm(), func(s *Spec) any { return len(s.Modules) }, 0},
		{"runtimes", "containerd: {defaultRuntime: crun, runtimes: {kata: {type: io.containerd.kata.v2}, crun: {path: /usr/bin/crun, options: {Root: /run/crun, IoUid: 5}}, nested: {}}}", bookworm(),
			func(s *Spec) any { return s.Containerd.Runtimes }, []Runtime{
				{Name: "crun", Type: "io.containerd.runc.v2", Path: "/usr/bin/crun", Options: map[string]any{"Root": "/run/crun", "IoUid": int64(5)}},
				{Name: "kata", Type: "io.containerd.kata.v2"},
				{Name: "nested", Type: "io.containerd.runc.v2", Path: "/usr/local/sbin/runc"},
				{Name: "runc", Type: "io.containerd.runc.v2", Path: "/usr/local/sbin/runc"},
			}},
		{"settings", "containerd: {settings: {a: {b: 1, c: 1.5, d: true, e: x, f: [1, {g: \"2\"}], h: -9223372036854775808}}}", bookworm(), func(s *Spec) any { return s.Containerd.Settings },
			map[string]any{"a": map[string]any{"b": int64(1), "c": 1.5, "d": true, "e": "x", "f": []any{int64(1), map[string]any{"g": "2"}}, "h": int64(-9223372036854775808)}}},
		{"network", "cni: {network: {subnet: [10.88.0.0/16, \"fd00::/64\"], ipMasq: false, mtu: 1400}}", bookworm(), func(s *Spec) any { return s.CNI.Network },
			&Network{Name: "nodeprep", Bridge: "cni0", Subnets: []string{"10.88.0.0/16", "fd00::/64"}, MTU: 1400, PortMapping: true}},
		{"registries in order", "registries: {\"*\": {}, b: {}, a: {}, z: {}}", bookworm(), func(s *Spec) any {
			var out []string
			for _, r := range s.Registries {
				out = append(out, r.Host)
			}
			return out
		}, []string{"a", "b", "z", "*"}},
		{"dial timeout", "registries: {a: {mirrors: [{url: \"https://m\", dialTimeout: 1m30s}]}}", bookworm(), func(s *Spec) any { return s.Registries[0].Mirrors[0].DialTimeout }, 90 * time.Second},
		{"no server", "registries: {a: {mirrors: [{url: \"https://m\"}]}}", bookworm(), func(s *Spec) any { return s.Registries[0].Server == nil }, true},
		{"a server's settings", "registries: {a: {skipVerify: false}}", bookworm(), func(s *Spec) any {
			return s.Registries[0].Server.SkipVerify != nil && !*s.Registries[0].Server.SkipVerify
		}, true},
		{"a plain header", "registries: {a: {header: {X-Site: [a, b]}}}", bookworm(), func(s *Spec) any {
			h := s.Registries[0].Server.Header[0]
			return []any{h.Name, h.Values[0].Value, h.Values[0].Plain, h.Values[1].Value}
		}, []any{"X-Site", "a", true, "b"}},
		{"a proxy", "systemd: {proxy: {http: \"http://p:3128\", https: {credential: proxy}}}", bookworm(), func(s *Spec) any {
			return []any{s.Systemd.HTTPProxy.Value, s.Systemd.HTTPProxy.Plain, s.Systemd.HTTPSProxy.Credential, s.Systemd.HTTPSProxy.Plain}
		}, []any{"http://p:3128", true, "proxy", false}},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, _ := resolve(t, test.profile, test.facts)
			if diff := cmp.Diff(test.want, test.got(s)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

// TestResolveFindings shows what only the whole profile, or a release, tells.
func TestResolveFindings(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	for _, test := range []struct {
		name, profile string
		want          []string
	}{
		{"containerd 1.5", "containerd: {version: 1.5.18}", []string{
			"p.yaml:1:23: containerd.version: containerd 1.5.18 is not supported: 1.5 and older speak only CRI v1alpha2, which no kubelet since Kubernetes 1.26 does, and get no security fixes"}},
		{"off the matrix", "kubernetes: {version: \"1.36\"}\ncontainerd: {version: 1.7.34}", []string{
			"p.yaml:2:23: warning: containerd.version: containerd 1.7.34 is not on Kubernetes 1.36's support matrix (2.2.0+, 2.3.0+)"}},
		{"unknown Kubernetes", "kubernetes: {version: \"1.99\"}", []string{
			"p.yaml:1:23: warning: kubernetes.version: Kubernetes 1.99 is not in the support matrix nodeprep knows (1.24 to 1.37)"}},
		{"digest of a variant to be chosen", "containerd: {sha256: {amd64: " + digest + "}}", []string{
			"p.yaml:1:14: containerd.sha256: digests are of one variant of containerd, and the variant is auto (set containerd.variant to dynamic or static, whichever file the digests are of)"}},
		{"digest of nothing", "cni: {version: none, sha256: {amd64: " + digest + "}}", []string{
			"p.yaml:1:22: warning: cni.sha256: this has no effect, since cni.version is none (remove it)"}},
		{"default runtime", "containerd: {defaultRuntime: crnu, runtimes: {crun: {path: /usr/bin/crun}}}", []string{
			`p.yaml:1:30: containerd.defaultRuntime: there is no runtime "crnu"; the node has crun, runc (did you mean crun?)`}},
		{"removed shim", "containerd: {runtimes: {old: {type: io.containerd.runc.v1}}}", []string{
			"p.yaml:1:37: containerd.runtimes.old.type: containerd 2.3.4 no longer has the shim io.containerd.runc.v1 (use io.containerd.runc.v2)"}},
		{"snapshotter", "containerd: {snapshotter: overlay}", []string{
			`p.yaml:1:27: containerd.snapshotter: containerd 2.3.4 has no snapshotter "overlay", and no proxy plugin has that name (did you mean overlayfs?)`}},
		{"snapshotter of a later release", "containerd: {version: 1.7.34, snapshotter: erofs}", []string{
			`p.yaml:1:44: containerd.snapshotter: containerd 1.7.34 has no snapshotter "erofs", and no proxy plugin has that name (declare it under containerd.proxyPlugins)`}},
		{"snapshotter of a proxy plugin", "containerd: {snapshotter: stargz, proxyPlugins: {stargz: {type: snapshot, address: /run/s.sock}}}", nil},
		{"snapshotter of settings", "containerd: {snapshotter: stargz, settings: {proxy_plugins: {stargz: {type: snapshot, address: /run/s.sock}}}}", nil},
		{"proxy plugin that is no snapshotter", "containerd: {snapshotter: x, proxyPlugins: {x: {type: content, address: /run/s.sock}}}", []string{
			"p.yaml:1:27: containerd.snapshotter: the proxy plugin x is of type content, not a snapshotter"}},
		{"root and state", "containerd: {root: /x, state: /x}", []string{"p.yaml:1:31: containerd.state: root and state are both /x; containerd wants two folders"}},
		{"long socket", "containerd: {address: /" + strings.Repeat("a", 101) + "}", []string{
			"p.yaml:1:23: containerd.address: the socket's path has 102 bytes, more than the 101 that a socket's name may have (choose a shorter path)"}},
		{"dial timeout", "containerd: {version: 2.0.6}\nregistries: {a: {dialTimeout: 5s}}", []string{
			"p.yaml:2:31: registries.a.dialTimeout: containerd 2.0.6 does not read a dial timeout; it came with 2.0.7 and 2.1.0 (leave it out)"}},
		{"referrers", "containerd: {version: 2.1.9}\nregistries: {a: {mirrors: [{url: \"https://m\", capabilities: [pull, referrers]}]}}", []string{
			"p.yaml:2:68: registries.a.mirrors[0].capabilities[1]: containerd 2.1.9 ignores the whole file for the capability referrers; it came with 2.2.0 (leave it out)"}},
		{"every registry", "containerd: {version: 1.6.16}\nregistries: {\"*\": {}}", []string{
			"p.yaml:2:14: registries.*: containerd 1.6.16 does not read the folder for every registry; it came with 1.6.17 (name the registries one by one, or take 1.6.17 or newer)"}},
		{"pins", "containerd: {version: 1.6.21}\nimages: [{file: a.tar, pin: true}, {file: b.tar}]", []string{
			"p.yaml:2:29: warning: images[0].pin: containerd 1.6.21 ignores pins, so that the kubelet may remove images when its disk fills; they came with 1.6.22 and 1.7.3 (write pin: false, or take containerd 1.6.22, 1.7.3 or newer)"}},
		{"pins by default", "containerd: {version: 1.7.2}\nimages: [{file: a.tar, pin: false}, {file: b.tar}, {file: c.tar}]", []string{
			"p.yaml:2:37: warning: images[1]: containerd 1.7.2 ignores pins, so that the kubelet may remove images when its disk fills; they came with 1.6.22 and 1.7.3 (write pin: false, or take containerd 1.6.22, 1.7.3 or newer)"}},
		{"no pins", "containerd: {version: 1.6.21}\nimages: [{file: a.tar, pin: false}]", nil},
		{"pins that work", "containerd: {version: 1.6.22}\nimages: [{file: a.tar}]", nil},
		{"denied without a mirror", "registries: {a: {upstream: deny}}", []string{
			"p.yaml:1:28: registries.a.upstream: upstream is denied and there is no mirror, so nothing could be pulled (add a mirror, or allow the upstream)"}},
		{"denied and described", "registries: {a: {upstream: deny, ca: x, mirrors: [{url: \"https://m\"}]}}", []string{
			"p.yaml:1:28: registries.a.upstream: upstream is denied, and the entry says how to speak to it: ca (remove them, or allow the upstream)"}},
		{"a mirror twice", "registries: {a: {mirrors: [{url: \"https://m\"}, {url: \"https://m\"}]}}", []string{
			"p.yaml:1:54: registries.a.mirrors[1].url: the mirror https://m is listed twice; containerd would ignore the whole file (remove one of them)"}},
		{"Docker Hub by its other names", "registries: {registry-1.docker.io: {}, docker.io: {server: \"https://docker.io\"}}", []string{
			"p.yaml:1:14: warning: registries.registry-1.docker.io: images of Docker Hub are looked up under docker.io; this entry is for images that are named registry-1.docker.io/... alone (write docker.io)",
			"p.yaml:1:60: warning: registries.docker.io.server: https://docker.io does not serve images (write https://registry-1.docker.io, or leave it out)"}},
		{"paths of mirrors", "registries:\n  a:\n    mirrors:\n    - {url: \"https://m/v2/p\"}\n    - {url: \"https://n\", overridePath: true}\n    - {url: \"https://o/v2/p\", overridePath: true}\n    - {url: \"http://q\", skipVerify: true}\n  b: {overridePath: true}\n", []string{
			"p.yaml:5:40: registries.a.mirrors[1].overridePath: overridePath on a URL without a path: containerd would leave the API's /v2 out (remove it, or write https://n/v2)",
			"p.yaml:8:21: registries.b.overridePath: overridePath without a server has no path to override with (give the registry's URL with its path as server)"}},
		{"credentials", "registries:\n  a: {auth: {username: u, password: p}}\n  b: {auth: {identityToken: t}}\n  c: {header: {Authorization: Basic x, X-Token: {env: T}}}\n", []string{
			"p.yaml:2:37: warning: registries.a.auth.password: the password stands in the profile for all to read (give it as {file: PATH}, {env: NAME} or {credential: NAME})",
			"p.yaml:3:29: warning: registries.b.auth.identityToken: the token stands in the profile for all to read (give it as {file: PATH}, {env: NAME} or {credential: NAME})",
			"p.yaml:4:31: warning: registries.c.header.Authorization: the value of this header stands in the profile for all to read (give it as {file: PATH}, {env: NAME} or {credential: NAME})"}},
		{"half credentials", "registries:\n  a: {auth: {username: u}}\n  b: {auth: {password: {env: P}}}\n  c: {auth: {}}\n  d: {auth: {username: u, password: {env: P}, identityToken: {env: T}}}\n  \"*\": {auth: {identityToken: {env: T}}}\n", []string{
			"p.yaml:2:7: registries.a.auth: found a user name or a password, want both",
			"p.yaml:3:7: registries.b.auth: found a user name or a password, want both",
			"p.yaml:4:7: registries.c.auth: the credentials are empty (give username and password, or identityToken)",
			"p.yaml:5:7: registries.d.auth: found both an identity token and a user name or password (give one of the two)",
			`p.yaml:6:9: registries.*.auth: containerd knows credentials by host, and "*" is none (give them at the registry or mirror they are for)`}},
		{"half credentials of mirrors", "registries:\n  \"*\":\n    mirrors:\n    - {url: \"https://m\", auth: {username: u}}\n    - {url: \"https://n\", auth: {}}\n    - {url: \"https://o\", auth: {username: u, password: p}}\n    - {url: \"https://p\", auth: {identityToken: {env: T}}}\n", []string{
			"p.yaml:4:26: registries.*.mirrors[0].auth: found a user name or a password, want both",
			"p.yaml:5:26: registries.*.mirrors[1].auth: the credentials are empty (give username and password, or identityToken)",
			"p.yaml:6:56: warning: registries.*.mirrors[2].auth.password: the password stands in the profile for all to read (give it as {file: PATH}, {env: NAME} or {credential: NAME})"}},
		{"one mirror in two spellings", "registries:\n  a:\n    mirrors:\n    - {url: \"https://m/v2\"}\n    - {url: \"https://M:443\"}\n    - {url: \"http://m\"}\n    - {url: \"http://m:80/v2\"}\n    - {url: \"https://m:8443\"}\n    - {url: \"https://m/v2/Proj\"}\n    - {url: \"https://m/v2/proj\"}\n    - {url: \"https://[FD00::1]:443\"}\n    - {url: \"https://[fd00::1]\"}\n", []string{
			"p.yaml:5:13: registries.a.mirrors[1].url: the mirror https://M:443 is listed twice: https://m/v2 is the same, and would be asked again (remove one of them)",
			"p.yaml:7:13: registries.a.mirrors[3].url: the mirror http://m:80/v2 is listed twice: http://m is the same, and would be asked again (remove one of them)",
			"p.yaml:12:13: registries.a.mirrors[8].url: the mirror https://[fd00::1] is listed twice: https://[FD00::1]:443 is the same, and would be asked again (remove one of them)"}},
		{"paths without the API's root", "registries:\n  a:\n    server: https://a/x\n    mirrors:\n    - {url: \"https://art/api/docker/x\"}\n    - {url: \"https://art/api/docker/x\", overridePath: true}\n    - {url: \"https://art/y\", overridePath: false}\n    - {url: \"https://art/z/v2\"}\n    - {url: \"https://art/v2/p\", overridePath: false}\n    - {url: \"https://art/z2/v2\", overridePath: false}\n", []string{
			"p.yaml:3:13: warning: registries.a.server: the API is asked for at /x/v2: containerd puts /v2 behind a path (write overridePath: false if that is where it is, or true if the path is the whole root)",
			"p.yaml:5:13: warning: registries.a.mirrors[0].url: the API is asked for at /api/docker/x/v2: containerd puts /v2 behind a path (write overridePath: false if that is where it is, or true if the path is the whole root)",
			"p.yaml:9:47: registries.a.mirrors[4].overridePath: the path has /v2 in it, and without overridePath containerd would ask at /v2/p/v2 (leave it out)"}},
		{"Docker Hub's sites", "registries:\n  docker.io: {server: \"http://docker.io:80\", mirrors: [{url: \"https://index.docker.io\"}, {url: \"https://registry-1.docker.io\"}]}\n  index.docker.io: {}\n  quay.io: {mirrors: [{url: \"https://hub.docker.com\"}]}\n", []string{
			"p.yaml:2:23: warning: registries.docker.io.server: http://docker.io:80 does not serve images (write https://registry-1.docker.io, or leave it out)",
			"p.yaml:2:62: warning: registries.docker.io.mirrors[0].url: https://index.docker.io does not serve images (write https://registry-1.docker.io)",
			"p.yaml:3:3: warning: registries.index.docker.io: images of Docker Hub are looked up under docker.io, so this entry is never read (write docker.io)",
			"p.yaml:4:29: warning: registries.quay.io.mirrors[0].url: https://hub.docker.com does not serve images (write https://registry-1.docker.io)"}},
		{"a server for every registry", "registries: {\"*\": {server: \"https://m\"}}", []string{
			"p.yaml:1:28: warning: registries.*.server: with this every registry without an entry of its own is asked for at https://m, and never itself (write it as the last mirror, with upstream: deny, if that is meant)"}},
		{"denied, and a server for every registry", "registries: {\"*\": {upstream: deny, server: \"https://m\", mirrors: [{url: \"https://n\"}]}}", []string{
			"p.yaml:1:30: registries.*.upstream: upstream is denied, and the entry says how to speak to it: server (remove them, or allow the upstream)",
			"p.yaml:1:44: warning: registries.*.server: with this every registry without an entry of its own is asked for at https://m, and never itself (write it as the last mirror, with upstream: deny, if that is meant)"}},
		{"secrets in variables", "systemd:\n  environment:\n    OTLP: https://u:hunter2@collector:4317\n    ARGS: --endpoint x --token hunter2\n    ENDPOINT: https://collector:4317\n    IMAGE: busybox:1@sha256:00\n    GOGC: 50\n    KEY: \"-----BEGIN PRIVATE KEY-----\"\n    TOKEN_FILE: /run/token\n", []string{
			"p.yaml:3:11: warning: systemd.environment.OTLP: a secret seems to be in this value, and systemctl show prints the environment to every user (keep secrets out of the environment)",
			"p.yaml:4:11: warning: systemd.environment.ARGS: a secret seems to be in this value, and systemctl show prints the environment to every user (keep secrets out of the environment)",
			"p.yaml:8:10: warning: systemd.environment.KEY: a secret seems to be in this value, and systemctl show prints the environment to every user (keep secrets out of the environment)"}},
		{"empty header", "registries: {a: {header: {X: []}}}", []string{"p.yaml:1:27: registries.a.header.X: the header has no value"}},
		{"proxies", "systemd:\n  proxy: {http: \"http://u:p@h:1\"}\n  environment: {https_proxy: \"http://h:1\", API_TOKEN: x}\n", []string{
			"p.yaml:2:17: warning: systemd.proxy.http: the proxy's credentials stand in the profile for all to read (give the URL as {file: PATH}, {env: NAME} or {credential: NAME})",
			"p.yaml:3:30: warning: systemd.environment.https_proxy: a proxy in environment is shown to every user by systemctl show, credentials included (write it as systemd.proxy.https)",
			"p.yaml:3:55: warning: systemd.environment.API_TOKEN: this sounds like a secret, and systemctl show prints the environment to every user (keep secrets out of the environment)"}},
		{"no proxy", "systemd: {proxy: {noProxy: [a]}}", []string{"p.yaml:1:19: warning: systemd.proxy.noProxy: this has no effect without a proxy (give systemd.proxy.http or https)"}},
		{"a unit that harms", "systemd: {delegate: false, killMode: mixed}", []string{
			"p.yaml:1:21: warning: systemd.delegate: without delegation systemd may move containers out of their cgroups (leave it out)",
			"p.yaml:1:38: warning: systemd.killMode: with mixed, restarting containerd kills the containers (leave it out)"}},
		{"kernel", "host: {modules: [overlay], sysctl: {net.bridge.bridge-nf-call-iptables: \"1\", net.ipv4.ip_forward: \"1\", net/ipv4/ip_forward: \"0\"}}", []string{
			"p.yaml:1:73: warning: host.sysctl.net.bridge.bridge-nf-call-iptables: this key does not exist before the module br_netfilter is loaded (add br_netfilter to host.modules)",
			"p.yaml:1:125: host.sysctl.net/ipv4/ip_forward: net.ipv4.ip_forward and net/ipv4/ip_forward are the same kernel parameter (remove one of them)"}},
		{"sources", "sources: [{dir: a, url: \"https://m/{file}\"}, {}]", []string{
			"p.yaml:1:11: sources[0]: a source is a dir or a url, and this has both (write two sources)",
			"p.yaml:1:46: sources[1]: a source is a dir or a url, and this has neither (write {dir: PATH} or {url: URL})"}},
		{"networks", "cni: {version: none, network: {subnet: [10.0.0.0/8, 172.16.0.0/12]}}", []string{
			"p.yaml:1:22: cni.network: a bridge network needs the CNI plugins, and cni.version is none (leave cni.version out, or set cni.network to none)",
			"p.yaml:1:32: cni.network.subnet: both subnets are of the same address family, want one of IPv4 and one of IPv6"}},
		{"credential providers", "kubelet: {credentialProviders: [{name: a, matchImages: [x]}, {name: a, matchImages: []}]}", []string{
			"p.yaml:1:69: kubelet.credentialProviders[1].name: a second provider has the name a",
			"p.yaml:1:72: kubelet.credentialProviders[1].matchImages: the list is empty, so the provider would never be asked"}},
		{"patterns with a scheme", "kubelet: {credentialProviders: [{name: a, matchImages: [x, \"https://y\"]}]}", []string{
			"p.yaml:1:60: kubelet.credentialProviders[0].matchImages[1]: a pattern with a scheme matches no image (leave the scheme out)"}},
		{"tokens for a provider", "kubernetes: {version: \"1.34\"}\nkubelet: {credentialProviders: [{name: a, matchImages: [x], tokenAttributes: {serviceAccountTokenAudience: r, cacheType: ServiceAccount, requireServiceAccount: false, optionalServiceAccountAnnotationKeys: [a/b]}}]}", nil},
		{"tokens of Kubernetes 1.32", "kubernetes: {version: \"1.32\"}\nkubelet: {credentialProviders: [{name: a, matchImages: [x], tokenAttributes: {serviceAccountTokenAudience: r, requireServiceAccount: true}}]}", []string{
			"p.yaml:2:61: kubelet.credentialProviders[0].tokenAttributes: the kubelet of Kubernetes 1.32 does not know this; it came with 1.33 (leave it out)"}},
		{"tokens of Kubernetes 1.33", "kubernetes: {version: \"1.33\"}\nkubelet: {credentialProviders: [{name: a, matchImages: [x], tokenAttributes: {serviceAccountTokenAudience: r, requireServiceAccount: true}}, {name: b, matchImages: [x], tokenAttributes: {serviceAccountTokenAudience: r, requireServiceAccount: true, cacheType: Token}}]}", []string{
			"p.yaml:2:260: kubelet.credentialProviders[1].tokenAttributes.cacheType: the kubelet of Kubernetes 1.33 does not know this; it came with 1.34 (leave it out)"}},
		{"tokens that the kubelet refuses", "kubelet:\n  credentialProviders:\n  - name: a\n    matchImages: [x]\n    apiVersion: credentialprovider.kubelet.k8s.io/v1beta1\n    tokenAttributes:\n      requireServiceAccount: false\n      serviceAccountTokenAudience: r\n      requiredServiceAccountAnnotationKeys: [a]\n  - {name: b, matchImages: [x], tokenAttributes: {requireServiceAccount: true}}\n", []string{
			`p.yaml:6:5: kubelet.credentialProviders[0].tokenAttributes: "cacheType" is missing, without which the kubelet of Kubernetes 1.34 and newer does not start (such as cacheType: ServiceAccount)`,
			"p.yaml:6:5: kubelet.credentialProviders[0].tokenAttributes: the kubelet gives tokens to providers of credentialprovider.kubelet.k8s.io/v1 alone, not of credentialprovider.kubelet.k8s.io/v1beta1 (leave apiVersion out)",
			"p.yaml:9:7: kubelet.credentialProviders[0].tokenAttributes.requiredServiceAccountAnnotationKeys: annotations cannot be required where a service account is not (write them as optionalServiceAccountAnnotationKeys)",
			`p.yaml:10:50: kubelet.credentialProviders[1].tokenAttributes.serviceAccountTokenAudience: "serviceAccountTokenAudience" is missing`}},

		// Settings against the release.
		{"settings of schema 2 on 2.x", "containerd:\n  settings:\n    plugins:\n      io.containerd.grpc.v1.cri:\n        sandbox_image: a/b:1\n        enable_cdi: true\n", []string{
			`p.yaml:5:24: containerd.settings.plugins.io.containerd.grpc.v1.cri.sandbox_image: containerd 2.3.4 cannot have this key (set containerd.sandboxImage)`,
			`p.yaml:6:21: containerd.settings.plugins.io.containerd.grpc.v1.cri.enable_cdi: containerd 2.3.4 cannot have this key (use plugins."io.containerd.cri.v1.runtime".enable_cdi)`}},
		{"settings of schema 3 on 1.7", "containerd:\n  version: 1.7.34\n  settings: {plugins: {io.containerd.cri.v1.images: {a: 1, b: 2}}}\n", []string{
			`p.yaml:3:24: containerd.settings.plugins.io.containerd.cri.v1.images: containerd 1.7.34 cannot have this key (containerd 1.x has one CRI section: use plugins."io.containerd.grpc.v1.cri")`}},
		{"top-level servers on 2.3", "containerd: {settings: {metrics: {address: \"127.0.0.1:1\"}, grpc: {address: /x, tcp_address: z}, debug: {level: info}}}", []string{
			`p.yaml:1:44: containerd.settings.metrics.address: containerd 2.3.4 cannot have this key (use plugins."io.containerd.server.v1.metrics".address)`,
			`p.yaml:1:76: containerd.settings.grpc.address: containerd 2.3.4 cannot have this key (set containerd.address)`,
			`p.yaml:1:93: containerd.settings.grpc.tcp_address: containerd 2.3.4 cannot have this key (use plugins."io.containerd.server.v1.grpc-tcp".address)`}},
		{"a version", "containerd: {settings: {version: 2}}", []string{
			"p.yaml:1:34: containerd.settings.version: containerd 2.3.4 cannot have this key (nodeprep chooses it by containerd.version)"}},
		{"no table", "containerd: {settings: {plugins: x}}", []string{
			"p.yaml:1:34: containerd.settings.plugins: found a text, want a map: containerd has a table there"}},
		{"settings against fields", "containerd:\n  root: /data\n  settings:\n    root: /other\n    state: /run/containerd\n    plugins:\n      io.containerd.cri.v1.images: {snapshotter: native}\n      io.containerd.cri.v1.runtime: {containerd: {runtimes: {runc: {options: {SystemdCgroup: false}}}}}\n      io.containerd.server.v1.grpc: {address: /run/x.sock}\n", []string{
			"p.yaml:4:11: containerd.settings.root: this contradicts containerd.root, by which nodeprep makes it /data (set containerd.root: /other instead)",
			"p.yaml:7:50: containerd.settings.plugins.io.containerd.cri.v1.images.snapshotter: this contradicts containerd.snapshotter, by which nodeprep makes it overlayfs (set containerd.snapshotter: native instead)",
			"p.yaml:8:94: containerd.settings.plugins.io.containerd.cri.v1.runtime.containerd.runtimes.runc.options.SystemdCgroup: this contradicts containerd.cgroupDriver, by which nodeprep makes it systemd (set containerd.cgroupDriver: cgroupfs instead)",
			"p.yaml:9:47: containerd.settings.plugins.io.containerd.server.v1.grpc.address: this contradicts containerd.address, by which nodeprep makes it /run/containerd/containerd.sock (set containerd.address: /run/x.sock instead)"}},
		{"settings against fields, 1.x", "containerd:\n  version: 1.7.34\n  oomScore: -5\n  settings:\n    oom_score: -999\n    grpc: {address: /run/x.sock}\n    plugins:\n      io.containerd.grpc.v1.cri: {sandbox_image: a/b:1, containerd: {snapshotter: native, default_runtime_name: crun, runtimes: {runc: {options: {BinaryName: /x}}}}}\n", []string{
			"p.yaml:5:16: containerd.settings.oom_score: this contradicts containerd.oomScore, by which nodeprep makes it -5 (set containerd.oomScore: -999 instead)",
			"p.yaml:6:21: containerd.settings.grpc.address: this contradicts containerd.address, by which nodeprep makes it /run/containerd/containerd.sock (set containerd.address: /run/x.sock instead)",
			"p.yaml:8:50: containerd.settings.plugins.io.containerd.grpc.v1.cri.sandbox_image: this contradicts containerd.sandboxImage, by which nodeprep makes it registry.k8s.io/pause:3.8 (set containerd.sandboxImage: a/b:1 instead)",
			"p.yaml:8:83: containerd.settings.plugins.io.containerd.grpc.v1.cri.containerd.snapshotter: this contradicts containerd.snapshotter, by which nodeprep makes it overlayfs (set containerd.snapshotter: native instead)",
			"p.yaml:8:113: containerd.settings.plugins.io.containerd.grpc.v1.cri.containerd.default_runtime_name: this contradicts containerd.defaultRuntime, by which nodeprep makes it runc (set containerd.defaultRuntime: crun instead)",
			"p.yaml:8:159: warning: containerd.settings.plugins.io.containerd.grpc.v1.cri.containerd.runtimes.runc.options.BinaryName: this contradicts containerd.runtimes.runc.path, which is /usr/local/sbin/runc, and wins (set containerd.runtimes.runc.path instead)"}},
		{"settings that say the same", "containerd: {root: /data, cgroupDriver: systemd, settings: {root: /data, oom_score: 0, plugins: {io.containerd.cri.v1.runtime: {containerd: {runtimes: {runc: {options: {SystemdCgroup: true}}}}}, io.containerd.server.v1.ttrpc: {address: /run/containerd/containerd.sock.ttrpc}}}}", nil},
		{"ttrpc address", "containerd: {settings: {plugins: {io.containerd.server.v1.ttrpc: {address: /x}}}}", []string{
			"p.yaml:1:76: containerd.settings.plugins.io.containerd.server.v1.ttrpc.address: this contradicts containerd.address, by which nodeprep makes it /run/containerd/containerd.sock.ttrpc (set containerd.address instead)"}},
		{"types of settings", "containerd:\n  version: 2.2.7\n  settings:\n    timeouts: {a: 5, b: soon, c: 5s}\n    debug: {level: 5}\n    cgroup: x\n    proxy_plugins: {x: 5}\n    grpc: {uid: \"0\", tcp_address: true}\n    ttrpc: [a]\n    metrics: {grpc_histogram: \"yes\"}\n    stream_processors: {s: {accepts: x}}\n    imports: [/etc/a.toml, \"/etc/b/*.toml\"]\n    oom_score: 1.5\n    frobnicate: 1\n    plugins: {io.containerd.snapshotter.v1.overlayfs: {sync_remove: \"yes\"}}\n", []string{
			"p.yaml:4:19: containerd.settings.timeouts.a: found a whole number, want a duration (such as 5s)",
			"p.yaml:4:25: containerd.settings.timeouts.b: found another text, want a duration (such as 5s)",
			"p.yaml:5:20: containerd.settings.debug.level: found a whole number, want a text (quote it)",
			"p.yaml:6:13: containerd.settings.cgroup: found a text, want a map: containerd has a table there",
			"p.yaml:7:24: containerd.settings.proxy_plugins.x: found a whole number, want a map: containerd has a table there",
			"p.yaml:8:17: containerd.settings.grpc.uid: found a text, want a whole number (write it without quotes)",
			"p.yaml:8:35: containerd.settings.grpc.tcp_address: found a boolean, want a text (quote it)",
			"p.yaml:9:5: containerd.settings.ttrpc: found a list, want a map: containerd has a table there",
			"p.yaml:10:31: containerd.settings.metrics.grpc_histogram: found a text, want a boolean (write true or false, without quotes)",
			"p.yaml:11:38: containerd.settings.stream_processors.s.accepts: found a text, want a list of texts",
			`p.yaml:12:15: containerd.settings.imports[0]: containerd does not start where this file is missing, and nodeprep does not write it (write a pattern, such as "/etc/a.toml*")`,
			"p.yaml:13:16: containerd.settings.oom_score: found a fraction, want a whole number",
			`p.yaml:14:17: warning: containerd.settings.frobnicate: containerd 2.2.7 does not know "frobnicate" at the top of its configuration, and ignores it`,
			"p.yaml:15:69: containerd.settings.plugins.io.containerd.snapshotter.v1.overlayfs.sync_remove: found a text, want a boolean (write true or false, without quotes)"}},
		{"a value for a section", "containerd: {settings: {debug: 5}}", []string{
			"p.yaml:1:32: containerd.settings.debug: found a whole number, want a map: containerd has a table there"}},
		{"lists of plugins", "containerd: {settings: {required_plugins: [cri, io.containerd.a.v1.b], disabled_plugins: [zfs, io.containerd.a.v1.b, io.containerd.grpc.v1.cri]}}", []string{
			`p.yaml:1:44: containerd.settings.required_plugins[0]: containerd refuses the plugin name "cri" (write the full URI, such as io.containerd.grpc.v1.cri)`,
			`p.yaml:1:91: containerd.settings.disabled_plugins[0]: containerd refuses the plugin name "zfs" (write the full URI, such as io.containerd.snapshotter.v1.zfs)`,
			"p.yaml:1:96: containerd.settings.disabled_plugins[1]: the plugin io.containerd.a.v1.b is required and disabled, so containerd does not start (remove it from one of the two)",
			"p.yaml:1:118: warning: containerd.settings.disabled_plugins[2]: this disables CRI, so the node serves no kubelet"}},
		{"a runtime of settings alone", "containerd: {settings: {plugins: {io.containerd.cri.v1.runtime: {containerd: {runtimes: {kata: {snapshotter: x}, k2: {runtime_type: io.containerd.kata.v2}, runc: {snapshotter: x}}}}}}}", []string{
			`p.yaml:1:90: containerd.settings.plugins.io.containerd.cri.v1.runtime.containerd.runtimes.kata.runtime_type: runtime "kata" has no runtime_type, so no pod of it starts (such as io.containerd.runc.v2)`}},
		{"faults of all kinds at once", "containerd: {version: 2.1.9, settings: {disabled_plugins: [cri], root: 5, plugin_dir: x}}\nhots: {}\n", []string{
			`p.yaml:1:60: containerd.settings.disabled_plugins[0]: containerd refuses the plugin name "cri" (write the full URI, such as io.containerd.grpc.v1.cri)`,
			"p.yaml:1:72: containerd.settings.root: found a whole number, want a text (quote it)",
			"p.yaml:1:87: containerd.settings.plugin_dir: containerd 2.1.9 cannot have this key (removed in containerd 2.1: use proxyPlugins)",
			`p.yaml:2:1: hots: unknown key "hots" (did you mean host?)`}},
		{"a key 1.x cannot read", "containerd: {version: 1.7.34, settings: {timeouts: {\"a]b\": 1s}}}", []string{
			"p.yaml:1:60: containerd.settings.timeouts.a]b: containerd 1.7.34 cannot read a key with these characters in it"}},
		{"denied and only pulled", "registries: {a: {upstream: deny, mirrors: [{url: \"https://m\", capabilities: [pull]}]}}", []string{
			"p.yaml:1:28: warning: registries.a.upstream: upstream is denied and no mirror resolves tags, so images can be pulled by digest alone (give a mirror the capability resolve)"}},
		{"a path for a registry", "registries: {../../etc: {}}", []string{
			`p.yaml:1:14: registries.../../etc: "../../etc" has a path, want a registry's host alone`}},
		{"options against fields", "containerd: {cgroupDriver: systemd, runtimes: {crun: {path: /a, options: {BinaryName: /b, SystemdCgroup: false}}}}", []string{
			"p.yaml:1:87: warning: containerd.runtimes.crun.options.BinaryName: this contradicts containerd.runtimes.crun.path: /a, and wins (give one of the two)",
			"p.yaml:1:106: warning: containerd.runtimes.crun.options.SystemdCgroup: this contradicts containerd.cgroupDriver: systemd, and wins (all runtimes of a node must have the kubelet's driver)"}},
		{"a bad version hides what follows from it", "containerd: {version: 1.x, settings: {grpc: {address: /x}}, snapshotter: overlay}", []string{
			`p.yaml:1:23: containerd.version: version "1.x": want MAJOR.MINOR.PATCH, such as 2.3.4`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, list := Load("p.yaml", files{"p.yaml": test.profile}.read)
			s, more := Resolve(p, Facts{Arch: "amd64", SystemdInit: true})
			list = append(list, more...)
			list.Sort()
			want := test.want
			if want == nil {
				want = []string{}
			}
			if diff := cmp.Diff(want, lines(withoutShort(list))); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
			if more.HasErrors() != (s == nil) {
				t.Errorf("spec %v with errors %v", s, more.Errors())
			}
		})
	}
}

// Upstream publishes nothing for some architectures: that is said, not refused.
func TestAbsentCheck(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	_, notes := resolve(t, "crictl: {version: 1.36.0, sha256: {arm: "+digest+"}}\n", Facts{Arch: "arm", SystemdInit: true})
	// containerd has no digest, and so no release at all: that is one fault, elsewhere.
	want := []string{
		"p.yaml:1:19: warning: crictl.version: upstream publishes no crictl 1.36.0 for arm (build it and offer it in a folder of sources)",
	}
	if diff := cmp.Diff(want, notes, cmpopts.SortSlices(strings.Compare)); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
	if _, notes := resolve(t, "extends: minimal", Facts{Arch: "riscv64", SystemdInit: true}); len(notes) > 0 {
		t.Errorf("findings %q", notes)
	}
}

// Every field that a profile gives has its place in the Spec.
func TestOrigins(t *testing.T) {
	s, _ := resolve(t, `containerd:
  version: 2.3.4
  runtimes:
    crun:
      path: /usr/bin/crun
  settings:
    plugins:
      io.containerd.cri.v1.runtime:
        max_container_log_line_size: 1
        list: [{a: b}]
registries:
  docker.io:
    mirrors:
      - url: https://m
        ca: [a.pem, b.pem]
        client: {cert: c.pem}
        header: {X: [y, {env: Z}]}
    auth: {username: u, password: {env: P}}
host: {sysctl: {a.b: "1"}}
`, Facts{})
	for path, want := range map[string]string{
		"containerd":                    "p.yaml:1:1",
		"containerd.version":            "p.yaml:2:12",
		"containerd.runtimes.crun":      "p.yaml:4:5",
		"containerd.runtimes.crun.path": "p.yaml:5:13",
		"containerd.runtimes.crun.type": "p.yaml:4:5", // a default stands where its parent does
		"containerd.root":               "p.yaml:1:1",
		"containerd.settings.plugins.io.containerd.cri.v1.runtime":                             "p.yaml:8:7",
		"containerd.settings.plugins.io.containerd.cri.v1.runtime.max_container_log_line_size": "p.yaml:9:38",
		"containerd.settings.plugins.io.containerd.cri.v1.runtime.list[0].a":                   "p.yaml:10:20",
		"registries.docker.io":                        "p.yaml:12:3",
		"registries.docker.io.mirrors[0]":             "p.yaml:14:9",
		"registries.docker.io.mirrors[0].url":         "p.yaml:14:14",
		"registries.docker.io.mirrors[0].ca[1]":       "p.yaml:15:21",
		"registries.docker.io.mirrors[0].client.cert": "p.yaml:16:24",
		"registries.docker.io.mirrors[0].header.X[1]": "p.yaml:17:25",
		"registries.docker.io.auth.password":          "p.yaml:18:25",
		"host.sysctl.a.b":                             "p.yaml:19:22",
		"systemd.killMode":                            "",
	} {
		if got := s.Origin(path).Place(); got != want {
			t.Errorf("%s is at %q, want %q", path, got, want)
		}
	}
	m := s.Registries[0].Mirrors[0]
	for _, o := range []string{m.CA[1].Origin.Place(), m.Client[0].Cert.Origin.Place(), m.Header[0].Values[1].Origin.Place(), s.Registries[0].Auth.Password.Origin.Place()} {
		if !strings.HasPrefix(o, "p.yaml:1") {
			t.Errorf("a file or secret has the origin %q", o)
		}
	}
}

// Equal profiles and Facts give equal Specs: maps must not show their order.
func TestResolveIsDeterministic(t *testing.T) {
	for _, name := range []string{"kubernetes", filepath.Join("..", "examples", "harbor.yaml"), filepath.Join("..", "examples", "crun-runtime.yaml")} {
		first, _ := loadExample(t, name)
		a, _ := Resolve(first, bookworm())
		for range 20 {
			again, _ := loadExample(t, name)
			b, _ := Resolve(again, bookworm())
			if diff := cmp.Diff(a, b, cmp.AllowUnexported(Spec{})); diff != "" {
				t.Fatalf("%s:\n%s", name, diff)
			}
		}
	}
}

// withoutShort are findings but for those about a registry's name without a dot, which the
// tables are full of.
func withoutShort(list diag.List) diag.List {
	return slices.DeleteFunc(list, func(d diag.Diagnostic) bool { return strings.Contains(d.Message, "has neither a dot nor a port") })
}

// TestShortNames: containerd takes what has neither a dot nor a port for a part of a name on
// Docker Hub.
func TestShortNames(t *testing.T) {
	p, list := Load("p.yaml", files{"p.yaml": "registries: {harbor: {}, \"harbor:443\": {}, harbor.site: {}, localhost: {}, \"[::1]\": {}, \"*\": {}}"}.read)
	_, more := Resolve(p, Facts{Arch: "amd64", SystemdInit: true})
	want := []string{"p.yaml:1:14: warning: registries.harbor: harbor has neither a dot nor a port: images named harbor/... are Docker Hub's, so this entry is never read (write its full name, such as harbor.example.com)"}
	if diff := cmp.Diff(want, lines(append(list, more...))); diff != "" {
		t.Errorf("findings (-want +got):\n%s", diff)
	}
}
