package oracle

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The oracle itself is tested with files that are wrong in ways which containerd
// accepts: each must be found.

func kubernetes(t *testing.T, version string) golden {
	t.Helper()
	return readGolden(t, filepath.Join(goldens, "kubernetes/amd64", version))
}

// spoil writes a golden's config.toml with a part of it replaced.
func spoil(t *testing.T, g golden, replace ...string) string {
	t.Helper()
	raw, err := os.ReadFile(g.config())
	if err != nil {
		t.Fatal(err)
	}
	text := string(raw)
	for i := 0; i < len(replace); i += 2 {
		if !strings.Contains(text, replace[i]) {
			t.Fatalf("%s has no %q to spoil", g.config(), replace[i])
		}
		text = strings.ReplaceAll(text, replace[i], replace[i+1])
	}
	file := filepath.Join(t.TempDir(), "config.toml")
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func found(t *testing.T, problems []string, want string) {
	t.Helper()
	if !strings.Contains(strings.Join(problems, "\n"), want) {
		t.Errorf("not found: %s; only %q", want, problems)
	}
}

func TestTrapsOfConfig(t *testing.T) {
	d := daemons()[0]
	d.build(t.Context(), t)
	for _, tt := range []struct {
		name, version string
		replace       []string
		want          string
	}{
		{
			"schema 4 with a top-level grpc table", "2.4.2",
			[]string{"[plugins.'io.containerd.server.v1.grpc']\n    address = '/run/containerd/containerd.sock'\n", "", "[plugins]\n", "[grpc]\n  address = '/run/other.sock'\n\n[plugins]\n"},
			"address: want \"/run/other.sock\", the daemon has \"/run/containerd/containerd.sock\"",
		},
		{
			"CRI of schema 2 in schema 4", "2.4.2",
			[]string{criRuntime, cri},
			"SystemdCgroup: want true, the daemon has false",
		},
		{
			"sandbox image of schema 2 in schema 4", "2.4.2",
			[]string{"[plugins.'io.containerd.cri.v1.images'.pinned_images]\n      sandbox =", "[plugins.'io.containerd.cri.v1.images'.x]\n      sandbox_image ="},
			"the daemon complains",
		},
		{
			"a folder list as config_path", "2.4.2",
			[]string{"config_path = '/etc/containerd/certs.d'", "config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'"},
			"config_path: want",
		},
		{
			"snapshotter without a runtimes table in schema 2", "1.7.34",
			[]string{"snapshotter = 'overlayfs'", "snapshotter = 'zfs'", "runtimes", "runtime"},
			"snapshotter: want \"zfs\", the daemon has \"overlayfs\"",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := kubernetes(t, tt.version)
			// What the profile would have meant with the file as it is spoilt.
			switch tt.name {
			case "snapshotter without a runtimes table in schema 2":
				g.meant.Containerd.Snapshotter = "zfs"
			case "schema 4 with a top-level grpc table":
				g.meant.Containerd.Address = "/run/other.sock"
			}
			found(t, d.check(t.Context(), t, spoil(t, g, tt.replace...), g.meant, tt.version == "2.4.2"), tt.want)
		})
	}
}

func TestTrapsOfV1(t *testing.T) {
	p := buildProbe(t.Context(), t, "go.mod")
	g := kubernetes(t, "1.7.34")
	for _, tt := range []struct {
		name    string
		replace []string
		want    string
	}{
		{"no runtime_type", []string{"runtime_type = 'io.containerd.runc.v2'\n", ""}, "runtime_type"},
		{"sections of schema 3", []string{cri + "'.", criRuntime + "'."}, "SystemdCgroup"},
		{"schema 3", []string{"version = 2", "version = 3"}, "containerd's loader"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			found(t, p.check(t.Context(), t, spoil(t, g, tt.replace...), g.certsD(), g.meant), tt.want)
		})
	}
}

func TestTrapsOfHosts(t *testing.T) {
	no := false
	r := registry{Host: "docker.io", Server: &endpoint{URL: "https://s.example.com"}, Mirrors: []endpoint{{URL: "https://a.example.com"}, {URL: "https://b.example.com", SkipVerify: &no}}}
	good := "server = 'https://s.example.com'\n\n[host.'https://a.example.com']\n\n[host.'https://b.example.com']\nskip_verify = false\n"
	var m meant
	m.Containerd.Version.Major, m.Containerd.Version.Minor = 2, 4
	check := func(t *testing.T, text string) []string {
		dir := t.TempDir()
		if err := os.MkdirAll(filepath.Join(dir, "docker.io"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "docker.io", "hosts.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := parseHosts(t, dir, "docker.io")
		if err != nil {
			return []string{err.Error()}
		}
		return checkHosts(got, r, m, pull|resolve|push|referrers)
	}
	if problems := check(t, good); len(problems) > 0 {
		t.Fatalf("the good file is found wrong: %q", problems)
	}
	for name, replace := range map[string][2]string{
		"slash at the end":         {"a.example.com", "a.example.com/"},
		"other order":              {"[host.'https://a.example.com']\n\n[host.'https://b.example.com']\nskip_verify = false\n", "[host.'https://b.example.com']\nskip_verify = false\n\n[host.'https://a.example.com']\n"},
		"inline tables":            {"[host.'https://a.example.com']\n\n[host.'https://b.example.com']\nskip_verify = false\n", "[host]\n'https://a.example.com' = {}\n'https://b.example.com' = {skip_verify = false}\n"},
		"a capability of no kind":  {"skip_verify = false", "capabilities = ['pull', 'list']"},
		"a duration that is none":  {"skip_verify = false", "skip_verify = false\ndial_timeout = '5'"},
		"an empty key of a client": {"skip_verify = false", "client = [['c.pem', '']]"},
		"server after a host":      {"server = 'https://s.example.com'\n\n[host.'https://a.example.com']\n", "[host.'https://a.example.com']\nserver = 'https://s.example.com'\n"},
		"a host twice":             {"b.example.com", "a.example.com"},
	} {
		t.Run(name, func(t *testing.T) {
			text := strings.ReplaceAll(good, replace[0], replace[1])
			if text == good {
				t.Fatal("nothing replaced")
			}
			if problems := check(t, text); len(problems) == 0 {
				t.Errorf("not found:\n%s", text)
			}
		})
	}
}
