package releases

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestParseVersion(t *testing.T) {
	for in, want := range map[string]string{
		"2.3.4": "2.3.4", "v1.7.24": "1.7.24", "2.4.0-beta.0": "2.4.0-beta.0", "0.0.1": "0.0.1",
	} {
		v, err := ParseVersion(in)
		if err != nil || v.String() != want {
			t.Errorf("ParseVersion(%q) = %v, %v; want %s", in, v, err, want)
		}
	}
	for _, in := range []string{"", "1", "1.10", "1.2.3.4", "1.02.3", "1.2.x", "1.2.3-", "1.2.3-a b", "-1.2.3", "1.2.+3", "latest", "1.2.3\n"} {
		if v, err := ParseVersion(in); err == nil {
			t.Errorf("ParseVersion(%q) = %v, want an error", in, v)
		}
	}
}

// 2.6.32 must not pass for 2.3 or newer by accident of text, nor 1.10 for older than 1.9.
func TestVersionsCompareAsNumbers(t *testing.T) {
	order := []string{"1.6.9", "1.6.10", "1.7.0-rc.1", "1.7.0", "1.10.0", "2.0.0-beta.2", "2.0.0-beta.10", "2.0.0-rc.0", "2.0.0", "2.6.32"}
	for i, a := range order {
		for j, b := range order {
			got := MustVersion(a).Compare(MustVersion(b))
			if want := sign(i - j); got != want {
				t.Errorf("Compare(%s, %s) = %d, want %d", a, b, got, want)
			}
		}
	}
	if !MustVersion("2.4.0-beta.0").AtLeast(2, 4, 0) {
		t.Error("a pre-release has its release's features")
	}
}

func sign(n int) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func TestCatalogue(t *testing.T) {
	got, ok := SHA256(Containerd, false, MustVersion("2.3.4"), "arm64")
	if want := "a985fbb7e18fc0362d31a055338f5d7b0e087a3e27f14c70d1c5965399a29f95"; !ok || got != want {
		t.Errorf("containerd 2.3.4 arm64: %s, want %s", got, want)
	}
	if got, ok := SHA256(Containerd, true, MustVersion("2.3.4"), "amd64"); !ok || !strings.HasPrefix(got, "1d0eccd5") {
		t.Errorf("the static variant has a digest of its own, got %s", got)
	}
	if _, ok := SHA256(Containerd, false, MustVersion("2.4.2"), "amd64"); ok {
		t.Error("2.4.2 is not in the catalogue")
	}
	if _, ok := SHA256(CNI, false, MustVersion("1.9.1"), "arm"); !ok {
		t.Error("CNI plugins exist for 32-bit ARM")
	}
	for line := range strings.Lines(catalogue) {
		f := strings.Fields(line)
		if len(f) != 4 || len(f[3]) != 64 || strings.Trim(f[3], "0123456789abcdef") != "" {
			t.Fatalf("catalogue: bad line %q", line)
		}
	}
	for _, c := range []string{Containerd, Runc, CNI, Crictl} {
		known := Known(c, false)
		if len(known) == 0 || !slices.Contains(known, DefaultVersion(c)) {
			t.Errorf("%s: the default %s has no known digest", c, DefaultVersion(c))
		}
		for _, arch := range []string{"amd64", "arm64"} {
			if _, ok := SHA256(c, false, DefaultVersion(c), arch); !ok {
				t.Errorf("%s %s: no digest for %s", c, DefaultVersion(c), arch)
			}
		}
	}
}

func TestFileNames(t *testing.T) {
	for _, c := range []struct {
		component string
		static    bool
		version   string
		arch      string
		url       string
	}{
		{Containerd, false, "2.3.4", "amd64", "https://github.com/containerd/containerd/releases/download/v2.3.4/containerd-2.3.4-linux-amd64.tar.gz"},
		{Containerd, true, "2.3.4", "arm64", "https://github.com/containerd/containerd/releases/download/v2.3.4/containerd-static-2.3.4-linux-arm64.tar.gz"},
		{Containerd, true, "1.6.39", "amd64", ""},
		{Containerd, false, "2.3.4", "arm", ""},
		{Runc, false, "1.4.3", "arm", "https://github.com/opencontainers/runc/releases/download/v1.4.3/runc.armhf"},
		{CNI, false, "1.9.1", "arm64", "https://github.com/containernetworking/plugins/releases/download/v1.9.1/cni-plugins-linux-arm64-v1.9.1.tgz"},
		{Crictl, false, "1.36.0", "amd64", "https://github.com/kubernetes-sigs/cri-tools/releases/download/v1.36.0/crictl-v1.36.0-linux-amd64.tar.gz"},
		{Crictl, false, "1.36.0", "arm", ""},
	} {
		if got := URL(c.component, c.static, MustVersion(c.version), c.arch); got != c.url {
			t.Errorf("URL(%s %s %s) = %q, want %q", c.component, c.version, c.arch, got, c.url)
		}
	}
	if got := ChecksumURL(Runc, false, MustVersion("1.4.3"), "amd64"); got != "https://github.com/opencontainers/runc/releases/download/v1.4.3/runc.sha256sum" {
		t.Errorf("runc's checksums are in one file, got %s", got)
	}
}

func TestByRelease(t *testing.T) {
	for _, c := range []struct {
		version       string
		schema        int
		nofile, after string
		pause         string
		glibc         string
		bare          bool
		defaultDir    bool
		dial          bool
		binDirs       bool
	}{
		{"1.6.16", 2, "infinity", "network.target local-fs.target", "3.6", "2.27.0", true, false, false, false},
		{"1.6.39", 2, "infinity", "network.target local-fs.target dbus.service", "3.6", "2.27.0", true, true, false, false},
		{"1.7.23", 2, "infinity", "network.target local-fs.target", "3.8", "2.31.0", true, true, false, false},
		{"1.7.34", 2, "infinity", "network.target local-fs.target dbus.service", "3.8", "2.31.0", false, true, false, false},
		{"2.0.6", 3, "", "network.target local-fs.target dbus.service", "3.10", "2.31.0", false, true, false, false},
		{"2.1.9", 3, "", "network.target dbus.service", "3.10", "2.35.0", false, true, true, true},
		{"2.2.7", 3, "", "network.target dbus.service", "3.10.1", "2.35.0", false, true, true, true},
		{"2.3.4", 4, "", "network.target dbus.service", "3.10.2", "2.35.0", false, true, true, true},
		{"2.4.2", 4, "", "network.target dbus.service", "3.10.2", "2.35.0", false, true, true, true},
	} {
		v := MustVersion(c.version)
		if got := ConfigSchema(v); got != c.schema {
			t.Errorf("%s: schema %d, want %d", v, got, c.schema)
		}
		if got := LimitNOFILE(v, 252); got != c.nofile {
			t.Errorf("%s: LimitNOFILE %q, want %q", v, got, c.nofile)
		}
		if got := strings.Join(UnitAfter(v), " "); got != c.after {
			t.Errorf("%s: After=%s, want %s", v, got, c.after)
		}
		if got := DefaultPauseImage(v); got != "registry.k8s.io/pause:"+c.pause {
			t.Errorf("%s: %s, want %s", v, got, c.pause)
		}
		if got := GLibC(v).String(); got != c.glibc {
			t.Errorf("%s: glibc %s, want %s", v, got, c.glibc)
		}
		if BareHostTableNeeded(v) != c.bare || DefaultDirSupported(v) != c.defaultDir || DialTimeoutSupported(v) != c.dial || BinDirsSupported(v) != c.binDirs {
			t.Errorf("%s: bare %v default %v dial %v binDirs %v", v, BareHostTableNeeded(v), DefaultDirSupported(v), DialTimeoutSupported(v), BinDirsSupported(v))
		}
	}
	if got := LimitNOFILE(MustVersion("2.1.9"), 239); got != "1024:524288" {
		t.Errorf("systemd before 240 needs a limit, got %q", got)
	}
}

func TestRefusedAndSupport(t *testing.T) {
	for v, want := range map[string]bool{"1.5.18": true, "1.4.13": true, "1.6.0": false, "1.8.0": true, "2.4.2": false, "2.9.0": false, "3.0.0": true} {
		if reason, refused := Refused(Containerd, MustVersion(v)); refused != want || refused != (reason != "") {
			t.Errorf("Refused(%s) = %q, %v", v, reason, refused)
		}
	}
	day := time.Date(2026, 11, 21, 0, 0, 0, 0, time.UTC)
	for v, want := range map[string]bool{"1.6.39": true, "1.7.34": true, "2.0.11": false, "2.2.7": true, "2.3.4": false, "2.9.0": false} {
		if _, ended := EndOfLife(MustVersion(v), day); ended != want {
			t.Errorf("EndOfLife(%s) = %v", v, ended)
		}
	}
	for _, c := range []struct {
		k8s, v string
		ok     bool
	}{
		{"1.36", "2.3.4", true}, {"1.36", "1.7.34", false}, {"1.36", "2.4.2", true}, {"1.34", "2.1.2", false},
		{"1.34", "2.1.3", true}, {"1.28", "1.7.24", true}, {"1.37", "2.2.7", false}, {"1.99", "2.3.4", true}, {"1.35", "2.0.11", false},
	} {
		if note, ok := SupportedBy(c.k8s, MustVersion(c.v)); ok != c.ok || !ok && note == "" {
			t.Errorf("SupportedBy(%s, %s) = %q, %v", c.k8s, c.v, note, ok)
		}
	}
}

func TestSettingsFault(t *testing.T) {
	for _, c := range []struct{ version, path, hint string }{
		// A key of schema 2 names its place in schema 3 and 4.
		{"2.1.9", "plugins|io.containerd.grpc.v1.cri|sandbox_image", "set containerd.sandboxImage"},
		{"2.1.9", "plugins|io.containerd.grpc.v1.cri|containerd|snapshotter", "set containerd.snapshotter"},
		{"2.4.2", "plugins|io.containerd.grpc.v1.cri|enable_selinux", `use plugins."io.containerd.cri.v1.runtime".enable_selinux`},
		{"2.1.9", "plugins|io.containerd.grpc.v1.cri|cni|bin_dir", `use plugins."io.containerd.cri.v1.runtime".cni.bin_dirs`},
		{"2.1.9", "plugins|io.containerd.grpc.v1.cri|stream_server_port", ""},
		{"2.1.9", "plugins|io.containerd.monitor.v1.cgroups|no_prometheus", `use plugins."io.containerd.monitor.task.v1.cgroups"`},
		// And the other way round.
		{"1.7.34", "plugins|io.containerd.cri.v1.images|snapshotter", "containerd 1.x has one CRI section"},
		{"1.7.34", "plugins|io.containerd.server.v1.metrics|address", "server plugins come with containerd 2.3: use metrics"},
		{"1.7.34", "plugins|io.containerd.grpc.v1.cri|enable_selinux", ""},
		// What schema 4 parses and does not apply.
		{"2.4.2", "grpc|address", "set containerd.address"},
		{"2.4.2", "grpc|uid", `use plugins."io.containerd.server.v1.grpc".uid`},
		// A hint is no way to the next refusal.
		{"2.3.4", "plugins|io.containerd.grpc.v1.cri|registry|mirrors|docker.io", "profile's registries section"},
		{"2.3.4", "plugins|io.containerd.grpc.v1.cri|registry|configs|h|tls|ca_file", "ca and client in the profile's registries section"},
		{"2.3.4", "plugins|io.containerd.cri.v1.runtime|registry|mirrors|docker.io", "profile's registries section"},
		{"2.3.4", "plugins|cri|registry|mirrors|docker.io", "profile's registries section"},
		{"2.3.4", "plugins|cri|sandbox_image", "set containerd.sandboxImage"},
		{"2.3.4", "plugins|io.containerd.grpc.v1.cri|containerd|default_runtime_name", "set containerd.defaultRuntime"},
		{"2.4.2", "metrics|address", `use plugins."io.containerd.server.v1.metrics".address`},
		{"2.4.2", "debug|address", `use plugins."io.containerd.server.v1.debug".address`},
		{"2.4.2", "debug|level", ""},
		{"2.4.2", "plugins|io.containerd.server.v1.metrics|address", ""},
		{"2.2.7", "metrics|address", ""},
		// Removed, or in the way of what nodeprep writes.
		{"2.4.2", "plugins|io.containerd.cri.v1.runtime|enable_cdi", "removed in containerd 2.4"},
		{"2.2.7", "plugins|io.containerd.cri.v1.runtime|enable_cdi", ""},
		{"2.1.9", "plugin_dir", "removed in containerd 2.1"},
		{"1.7.34", "plugins|io.containerd.grpc.v1.cri|systemd_cgroup", "cgroupDriver"},
		{"1.7.34", "plugins|io.containerd.grpc.v1.cri|registry|mirrors|docker.io", "config_path"},
		{"2.3.4", "plugins|io.containerd.cri.v1.images|registry|configs|h|tls", "hosts.toml"},
		{"2.3.4", "plugins|io.containerd.cri.v1.images|registry|configs|h|auth", ""},
		{"2.3.4", "plugins|cri|x", `use plugins."io.containerd.cri.v1.runtime".x`},
		{"2.3.4", "version", "nodeprep chooses it"},
		{"2.0.11", "plugins|io.containerd.cri.v1.runtime|cni|bin_dirs", "bin_dir"},
		{"2.3.4", "plugins|io.containerd.cri.v1.runtime|containerd|runtimes|x|options|CriuPath", "removed in containerd 2.0"},
		{"2.3.4", "oom_score", ""},
		{"2.3.4", "timeouts|io.containerd.timeout.shim.load", ""},
	} {
		hint, fault := SettingsFault(MustVersion(c.version), strings.Split(c.path, "|"))
		if fault != (c.hint != "") || fault && !strings.Contains(hint, c.hint) {
			t.Errorf("%s %s: %q, %v; want %q", c.version, c.path, hint, fault, c.hint)
		}
	}
}

func TestSettingTypes(t *testing.T) {
	types := NewSettingTypes()
	for path, want := range map[string]ValueType{
		"root": TextValue, "oom_score": NumberValue, "imports": TextsValue, "timeouts|a.b": DurationValue, "proxy_plugins|x|exports|root": TextValue,
		"plugins": MapValue, "plugins|io.example.x": MapValue, "plugins|io.example.x|y": AnyValue, "frobnicate": AnyValue,
		"plugins|io.containerd.snapshotter.v1.overlayfs": MapValue, "plugins|io.containerd.snapshotter.v1.overlayfs|sync_remove": BooleanValue,
		"plugins|io.containerd.grpc.v1.cri|containerd|runtimes|any|options|SystemdCgroup": BooleanValue,
	} {
		if got := types.Of(strings.Split(path, "|")); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}
