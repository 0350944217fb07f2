package systemd

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

func specOf(version string, hostSystemd int) *profiles.Spec {
	spec := &profiles.Spec{}
	spec.Containerd.Version = releases.MustVersion(version)
	spec.Systemd = profiles.Systemd{OOMScoreAdjust: -999, Delegate: true, KillMode: "process", HostVersion: hostSystemd}
	return spec
}

func mustFiles(t *testing.T, spec *profiles.Spec, secret func(profiles.Secret) (string, error)) map[string]desired.File {
	t.Helper()
	files, faults := Files(spec, secret)
	if len(faults) != 0 {
		t.Fatalf("faults: %v", faults)
	}
	byPath := map[string]desired.File{}
	for _, f := range files {
		byPath[f.Path] = f
	}
	return byPath
}

// options reads a unit file back with go-systemd's own parser.
func options(t *testing.T, f desired.File) map[string][]string {
	t.Helper()
	opts, err := unit.DeserializeOptions(strings.NewReader(string(f.Content)))
	if err != nil {
		t.Fatalf("%s: %v\n%s", f.Path, err, f.Content)
	}
	m := map[string][]string{}
	for _, o := range opts {
		m[o.Section+"."+o.Name] = append(m[o.Section+"."+o.Name], o.Value)
	}
	return m
}

func TestUnitOfCurrentRelease(t *testing.T) {
	const want = `# Made by nodeprep. Change the node profile, not this file; "nodeprep apply" writes it anew.
[Unit]
Description=containerd container runtime
Documentation=https://containerd.io
After=network.target dbus.service

[Service]
ExecStartPre=-/sbin/modprobe overlay
ExecStart=/usr/local/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
RestartSec=5
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`
	files := mustFiles(t, specOf("2.3.4", 252), nil)
	if len(files) != 1 {
		t.Errorf("a profile without environment and proxy makes %d files, want 1", len(files))
	}
	f := files[UnitPath]
	if diff := cmp.Diff(want, string(f.Content)); diff != "" {
		t.Errorf("unit (-want +got):\n%s", diff)
	}
	if f.Mode != 0o644 || f.Effect != desired.EffectUnit || f.Unit != UnitName || f.Secret {
		t.Errorf("file %+v", f)
	}
}

func TestUnitByRelease(t *testing.T) {
	for _, c := range []struct {
		version string
		systemd int
		after   string
		limit   []string
	}{
		{"1.6.20", 252, "network.target local-fs.target", []string{"infinity"}},
		{"1.6.37", 252, "network.target local-fs.target dbus.service", []string{"infinity"}},
		{"1.7.23", 252, "network.target local-fs.target", []string{"infinity"}},
		{"1.7.24", 252, "network.target local-fs.target dbus.service", []string{"infinity"}},
		{"2.0.11", 252, "network.target local-fs.target dbus.service", nil},
		{"2.1.9", 252, "network.target dbus.service", nil},
		{"2.4.2", 239, "network.target dbus.service", []string{"1024:524288"}},
		{"2.4.2", 0, "network.target dbus.service", nil},
	} {
		got := options(t, mustFiles(t, specOf(c.version, c.systemd), nil)[UnitPath])
		if diff := cmp.Diff([]string{c.after}, got["Unit.After"]); diff != "" {
			t.Errorf("%s: After (-want +got):\n%s", c.version, diff)
		}
		if diff := cmp.Diff(c.limit, got["Service.LimitNOFILE"]); diff != "" {
			t.Errorf("%s: LimitNOFILE (-want +got):\n%s", c.version, diff)
		}
	}
}

func TestUnitFollowsTheProfile(t *testing.T) {
	spec := specOf("2.3.4", 252)
	spec.Systemd = profiles.Systemd{
		OOMScoreAdjust: -500, Delegate: false, KillMode: "mixed", LimitNOFILE: "1048576",
		After:             []string{"network-online.target", "dbus.service", `dev-disk-by\x2dlabel-data.device`},
		RequiresMountsFor: []string{"/mnt/data", `/mnt/a "b" 5%\c`},
	}
	got := options(t, mustFiles(t, spec, nil)[UnitPath])
	for key, want := range map[string][]string{
		"Service.OOMScoreAdjust": {"-500"},
		"Service.Delegate":       {"no"},
		"Service.KillMode":       {"mixed"},
		"Service.LimitNOFILE":    {"1048576"},
		"Unit.After":             {`network.target dbus.service network-online.target dev-disk-by\x2dlabel-data.device`},
		"Unit.RequiresMountsFor": {"/mnt/data", `"/mnt/a \"b\" 5%%\\c"`},
	} {
		if diff := cmp.Diff(want, got[key]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
}

// awkward are values that a naive writer breaks; TestRealQuoting (with -systemd) asks
// systemd itself whether the quoting holds.
func awkward() map[string]string {
	return map[string]string{
		"PLAIN":     "value",
		"EMPTY":     "",
		"SPACES":    " two  spaces ",
		"QUOTES":    `a "b" 'c'`,
		"PERCENT":   "100%n %% %",
		"DOLLAR":    "$HOME ${HOME} $$",
		"BACKSLASH": `a\b\\c\n\`,
		"HASH":      "# ; no comment",
		"TAB":       "a\tb",
		"BACKTICK":  "`id`",
		"UNICODE":   "grüße, 世界",
		"EQUALS":    "a=b=c",
	}
}

func TestEnvironmentDropIn(t *testing.T) {
	spec := specOf("2.3.4", 252)
	spec.Systemd.Environment = map[string]string{
		"SPACES": " a b ", "QUOTES": `a "b" 'c'`, "PERCENT": "5%n", "DOLLAR": "$HOME", "BACKSLASH": `c:\x\`,
	}
	f := mustFiles(t, spec, nil)[EnvironmentPath]
	const want = desired.Header + `[Service]
Environment="BACKSLASH=c:\\x\\"
Environment="DOLLAR=$HOME"
Environment="PERCENT=5%%n"
Environment="QUOTES=a \"b\" 'c'"
Environment="SPACES= a b "
`
	if diff := cmp.Diff(want, string(f.Content)); diff != "" {
		t.Errorf("drop-in (-want +got):\n%s", diff)
	}
}

func TestProxyInTheOpen(t *testing.T) {
	spec := specOf("2.3.4", 252)
	spec.Systemd.HTTPProxy = profiles.Secret{Value: "10.0.0.1:3128", Plain: true}
	spec.Systemd.HTTPSProxy = profiles.Secret{Value: "http://proxy.example.com:3128/%7Ex", Plain: true}
	spec.Systemd.NoProxy = []string{"10.0.0.0/8", ".example.com", "localhost"}
	files := mustFiles(t, spec, nil)
	if _, ok := files[ProxySecretPath]; ok {
		t.Error("proxies without credentials need no environment file")
	}
	const want = desired.Header + `[Service]
Environment="HTTP_PROXY=10.0.0.1:3128"
Environment="HTTPS_PROXY=http://proxy.example.com:3128/%%7Ex"
Environment="NO_PROXY=10.0.0.0/8,.example.com,localhost"
`
	if diff := cmp.Diff(want, string(files[ProxyPath].Content)); diff != "" {
		t.Errorf("drop-in (-want +got):\n%s", diff)
	}
}

func TestProxyWithCredentialsIsHidden(t *testing.T) {
	const password = `p%40$s"w\d`
	reader := func(s profiles.Secret) (string, error) {
		if s.File != "/run/secrets/proxy" {
			return "", errors.New("unexpected secret")
		}
		return "http://user:p%40$s%22w%5Cd@proxy.example.com:3128\n", nil
	}
	for name, proxy := range map[string]profiles.Secret{
		"by reference":           {File: "/run/secrets/proxy"},
		"masked in the profile":  {Value: "http://user:p%40$s%22w%5Cd@proxy.example.com:3128"},
		"declared plain, is not": {Value: "http://user:p%40$s%22w%5Cd@proxy.example.com:3128", Plain: true},
	} {
		t.Run(name, func(t *testing.T) {
			spec := specOf("2.3.4", 252)
			spec.Systemd.HTTPSProxy = proxy
			spec.Systemd.NoProxy = []string{"localhost"}
			files := mustFiles(t, spec, reader)
			env := files[ProxySecretPath]
			if env.Mode != 0o600 || !env.Secret || env.Effect != desired.EffectRestart {
				t.Errorf("environment file: mode %v, secret %v, effect %q", env.Mode, env.Secret, env.Effect)
			}
			const want = desired.Header + `HTTPS_PROXY="http://user:p%40\$s%22w%5Cd@proxy.example.com:3128"` + "\n"
			if diff := cmp.Diff(want, string(env.Content)); diff != "" {
				t.Errorf("environment file (-want +got):\n%s", diff)
			}
			got := options(t, files[ProxyPath])
			if diff := cmp.Diff([]string{`"NO_PROXY=localhost"`}, got["Service.Environment"]); diff != "" {
				t.Errorf("Environment (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff([]string{ProxySecretPath}, got["Service.EnvironmentFile"]); diff != "" {
				t.Errorf("EnvironmentFile (-want +got):\n%s", diff)
			}
			for path, f := range files {
				if path != ProxySecretPath && strings.Contains(string(f.Content), "user:") {
					t.Errorf("%s holds the credentials", path)
				}
			}
		})
	}
	if !strings.Contains(quoteEnvFile(password), `\$s\"w\\d`) {
		t.Errorf("quoteEnvFile(%q) = %s", password, quoteEnvFile(password))
	}
}

func TestProxyWithoutReaderNamesItsSource(t *testing.T) {
	spec := specOf("2.3.4", 252)
	spec.Systemd.HTTPProxy = profiles.Secret{Env: "PROXY"}
	f := mustFiles(t, spec, nil)[ProxySecretPath]
	if want := desired.Header + `HTTP_PROXY="from environment variable PROXY"` + "\n"; string(f.Content) != want {
		t.Errorf("got %q, want %q", f.Content, want)
	}
}

func TestFaults(t *testing.T) {
	const leak = "hunter2"
	spec := specOf("2.3.4", 252)
	spec.Systemd.KillMode = "process\nExecStartPost=/bin/evil"
	spec.Systemd.LimitNOFILE = "1 2"
	spec.Systemd.After = []string{"network-online", "a b.service", strings.Repeat("x", 300) + ".service"}
	spec.Systemd.RequiresMountsFor = []string{"mnt", "/a\n[Service]"}
	spec.Systemd.Environment = map[string]string{
		"A-B": "x", "1A": "x", "LINE": "a\nb", "ESC": "a\x1bb", "BYTES": "\xff", "HTTP_PROXY": "http://a", "GOOD": "x",
	}
	spec.Systemd.HTTPProxy = profiles.Secret{Value: "http://b", Plain: true}
	spec.Systemd.HTTPSProxy = profiles.Secret{Value: "http://u:" + leak + "%zz@b\n"}
	spec.Systemd.NoProxy = []string{"a\nb"}
	files, faults := Files(spec, nil)

	got := map[string]bool{}
	for _, d := range faults {
		got[d.Path] = true
		if strings.Contains(d.String(), leak) {
			t.Errorf("fault shows a secret: %s", d)
		}
	}
	for _, path := range []string{
		"systemd.killMode", "systemd.limitNOFILE", "systemd.after[0]", "systemd.after[1]", "systemd.after[2]",
		"systemd.requiresMountsFor[0]", "systemd.requiresMountsFor[1]",
		"systemd.environment.A-B", "systemd.environment.1A", "systemd.environment.LINE", "systemd.environment.ESC", "systemd.environment.BYTES",
		"systemd.proxy.http", "systemd.proxy.https", "systemd.proxy.noProxy",
	} {
		if !got[path] {
			t.Errorf("no fault for %s", path)
		}
		delete(got, path)
	}
	for path := range got {
		t.Errorf("fault for %s, which is right", path)
	}
	for _, f := range files {
		if strings.Contains(string(f.Content), "evil") {
			t.Errorf("%s carries an injected line:\n%s", f.Path, f.Content)
		}
	}
}

func TestUnreadableSecretIsAFault(t *testing.T) {
	for name, c := range map[string]struct {
		value string
		err   error
		want  string
	}{
		"unreadable":  {err: errors.New("open /run/x: no such file"), want: "no such file"},
		"empty":       {value: "\n", want: "is empty"},
		"two lines":   {value: "http://u:p@a\nb", want: "line end"},
		"unparseable": {value: "http://u:%zz@a", want: "percent-encode"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := specOf("2.3.4", 252)
			spec.Systemd.HTTPProxy = profiles.Secret{File: "/run/x"}
			_, faults := Files(spec, func(profiles.Secret) (string, error) { return c.value, c.err })
			if len(faults) != 1 || !strings.Contains(faults[0].Message, c.want) || strings.Contains(faults[0].Message, "u:") {
				t.Errorf("faults %v, want one about %q", faults, c.want)
			}
		})
	}
}

// TestSystemdAccepts has systemd's own parser read what Files makes.
func TestSystemdAccepts(t *testing.T) {
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here (Debian package systemd): generated units are not checked by systemd's own parser")
	}
	for _, version := range []string{"1.6.20", "1.7.34", "2.0.11", "2.4.2"} {
		spec := specOf(version, 239)
		spec.Systemd.Environment = awkward()
		spec.Systemd.After = []string{"network-online.target"}
		spec.Systemd.RequiresMountsFor = []string{`/tmp/a "b" 5%\c`}
		spec.Systemd.HTTPProxy = profiles.Secret{Value: "http://u:p%40$x@proxy:3128"}
		spec.Systemd.HTTPSProxy = profiles.Secret{Value: "http://proxy:3128/%7E", Plain: true}
		files := mustFiles(t, spec, nil)

		// verify resolves what it is given below SYSTEMD_UNIT_PATH and wants ExecStart to exist.
		root := t.TempDir()
		dir := filepath.Join(root, "etc/systemd/system")
		for path, f := range files {
			content := strings.ReplaceAll(string(f.Content), "/usr/local/bin/containerd", "/bin/true")
			content = strings.ReplaceAll(content, "/sbin/modprobe", "/bin/true")
			content = strings.ReplaceAll(content, ProxySecretPath, filepath.Join(root, ProxySecretPath))
			dst := filepath.Join(root, path)
			if err := os.MkdirAll(filepath.Dir(dst), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(dst, []byte(content), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		cmd := exec.CommandContext(t.Context(), verify, "verify", "--man=no", "--generators=no", filepath.Join(dir, UnitName))
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		out, err := cmd.CombinedOutput()
		var complaints []string
		for line := range strings.Lines(string(out)) {
			// Other units of this machine are not ours to judge.
			if strings.Contains(line, "containerd.service") || strings.Contains(line, "nodeprep") {
				complaints = append(complaints, strings.TrimSpace(line))
			}
		}
		if err != nil || len(complaints) != 0 {
			t.Errorf("%s: systemd-analyze verify: %v\n%s", version, err, out)
		}
	}
}
