package systemd

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var onSystemd = flag.Bool("systemd", false, "also test against the systemd of this machine (root; units nodeprep-test-*.service in /run)")

// realSystemd connects to this machine's systemd and returns a function that installs
// a unit for the time of the test.
func realSystemd(t *testing.T) (*Manager, func(name string, files map[string]string)) {
	t.Helper()
	if !*onSystemd {
		t.Skip(`needs a machine whose PID 1 is systemd, and root: "go test ./systemd -systemd" there`)
	}
	m, err := Connect(t.Context(), func(ctx context.Context, name string, args ...string) ([]byte, error) {
		return exec.CommandContext(ctx, name, args...).Output()
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	return m, func(name string, files map[string]string) {
		t.Helper()
		var written []string
		t.Cleanup(func() {
			ctx := context.WithoutCancel(t.Context())
			_ = m.Stop(ctx, name)
			for _, f := range written {
				if err := os.Remove(f); err != nil {
					t.Error(err)
				}
			}
			if err := m.Reload(ctx); err != nil {
				t.Error(err)
			}
		})
		for rel, content := range files {
			path := filepath.Join("/run/systemd/system", rel)
			if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
			written = append(written, path)
		}
		if err := m.Reload(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

const notifies = "[Service]\nType=notify\nNotifyAccess=all\nExecStart=/bin/sh -c 'echo here I am; systemd-notify --ready; exec sleep infinity'\n"

func TestRealStartRestartStop(t *testing.T) {
	const name = "nodeprep-test-good.service"
	m, install := realSystemd(t)
	install(name, map[string]string{name: notifies + "Delegate=yes\nKillMode=process\nOOMScoreAdjust=-999\nLimitNOFILE=1024:524288\nTasksMax=infinity\n[Install]\nWantedBy=multi-user.target\n"})
	ctx := t.Context()
	state := func() Properties {
		t.Helper()
		p, err := m.Properties(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}

	if p := state(); !p.Exists() || p.ActiveState != "inactive" || p.UnitFileState != "disabled" {
		t.Errorf("before: %+v", p)
	}
	if err := m.Start(ctx, name); err != nil {
		t.Fatal(err)
	}
	first := state()
	if first.ActiveState != "active" || first.MainPID == 0 || first.InvocationID == "" {
		t.Errorf("started: %+v", first)
	}
	if !first.Delegate || first.KillMode != "process" || first.OOMScoreAdjust != -999 || first.Type != "notify" ||
		first.LimitNOFILE != 524288 || first.LimitNOFILESoft != 1024 || first.TasksMax != Infinity {
		t.Errorf("values in force: %+v", first)
	}
	if first.ControlGroup != "/system.slice/"+name || len(first.Confined) != 0 || len(first.ExecStart) != 1 || len(first.ExecStart[0]) != 3 || first.ExecStart[0][0] != "/bin/sh" {
		t.Errorf("where and how it runs: %q, %q, confined by %v", first.ControlGroup, first.ExecStart, first.Confined)
	}
	if err := m.Start(ctx, name); err != nil {
		t.Errorf("start of a running unit: %v", err)
	}
	if p := state(); p.MainPID != first.MainPID {
		t.Error("start of a running unit restarted it")
	}
	if err := m.Restart(ctx, name); err != nil {
		t.Error(err)
	}
	if p := state(); p.MainPID == first.MainPID {
		t.Error("restart did not")
	}
	for i, want := range []bool{true, false} {
		if changed, err := m.Enable(ctx, name); err != nil || changed != want {
			t.Errorf("enable no. %d: changed %v, %v", i+1, changed, err)
		}
	}
	if p := state(); p.UnitFileState != "enabled" {
		t.Errorf("after enable it is %s", p.UnitFileState)
	}
	for i, want := range []bool{true, false} {
		if changed, err := m.Disable(ctx, name); err != nil || changed != want {
			t.Errorf("disable no. %d: changed %v, %v", i+1, changed, err)
		}
	}
	if err := m.Stop(ctx, name); err != nil {
		t.Error(err)
	}
	if p := state(); p.ActiveState != "inactive" && p.ActiveState != "failed" {
		t.Errorf("after stop it is %s", p.ActiveState)
	}
}

// What confines a service is read as a running systemd tells it.
func TestRealConfinement(t *testing.T) {
	const name = "nodeprep-test-confined.service"
	m, install := realSystemd(t)
	install(name, map[string]string{name: "[Unit]\nRequiresMountsFor=/var/lib\n[Service]\nExecStart=/bin/true\nEnvironment=A=b\nPrivateMounts=yes\nNoNewPrivileges=yes\nProtectSystem=full\n" +
		"MountFlags=slave\nRestrictNamespaces=net\nCapabilityBoundingSet=~CAP_SYS_ADMIN\nSystemCallFilter=~@clock\nReadOnlyPaths=/opt\n"})
	p, err := m.Properties(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	want := []Setting{
		{"PrivateMounts", "yes"}, {"NoNewPrivileges", "yes"}, {"ProtectSystem", "full"}, {"MountFlags", "slave"}, {"RestrictNamespaces", "yes"},
		{"CapabilityBoundingSet", "without CAP_SYS_ADMIN"}, {"SystemCallFilter", "a filter"}, {"ReadOnlyPaths", "/opt"},
	}
	if !slices.Equal(p.Confined, want) {
		t.Errorf("confined by %v, want %v", p.Confined, want)
	}
	if !slices.Equal(p.RequiresMountsFor, []string{"/var/lib"}) || !slices.Equal(p.Environment, []string{"A=b"}) {
		t.Errorf("mounts %q, environment %q", p.RequiresMountsFor, p.Environment)
	}
}

func TestRealFailures(t *testing.T) {
	for name, c := range map[string]struct {
		service string
		want    []string
	}{
		"exits and is restarted for ever": {
			"Type=notify\nExecStart=/bin/sh -c 'echo last words; exit 3'\nRestart=always\nRestartSec=5\n",
			[]string{"job failed", "exit status 3", "auto-restart", "last words"},
		},
		"restarted at once": {
			"Type=notify\nExecStart=/bin/sh -c 'echo last words; exit 3'\nRestart=always\nRestartSec=0\n",
			[]string{"job failed", "last words"},
		},
		"binary missing": {
			"Type=notify\nExecStart=/nonexistent/containerd\nRestart=always\nRestartSec=5\n",
			[]string{"exit status 203 (its binary cannot be executed)", "No such file"},
		},
		"killed": {
			"Type=notify\nExecStart=/bin/sh -c 'kill -SEGV $$$$'\n",
			[]string{"killed by signal 11"},
		},
		"systemd's own time limit": {
			"Type=notify\nExecStart=/bin/sh -c 'echo waiting; exec sleep infinity'\nTimeoutStartSec=1\n",
			[]string{"result timeout", "waiting"},
		},
		"bad setting": {"Type=notify\nExecStart=/bin/sh \"no end\n", []string{"bad unit file setting"}},
	} {
		t.Run(name, func(t *testing.T) {
			const unit = "nodeprep-test-bad.service"
			m, install := realSystemd(t)
			install(unit, map[string]string{unit: "[Service]\n" + c.service})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			err := m.Start(ctx, unit)
			if err == nil {
				t.Fatal("no error")
			}
			if errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("hung: %v", err)
			}
			for _, want := range c.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
		})
	}
}

func TestRealUnitThatNeverNotifies(t *testing.T) {
	const name = "nodeprep-test-mute.service"
	m, install := realSystemd(t)
	install(name, map[string]string{name: "[Service]\nType=notify\nExecStart=/bin/sh -c 'echo still busy; exec sleep infinity'\n"})
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	err := m.Start(ctx, name)
	job, ok := errors.AsType[*JobError](err)
	if !ok || !errors.Is(err, context.DeadlineExceeded) || job.State.ActiveState != "activating" || !strings.Contains(err.Error(), "still busy") {
		t.Errorf("error %v", err)
	}
}

func TestRealConnectionLost(t *testing.T) {
	const name = "nodeprep-test-mute.service"
	m, install := realSystemd(t)
	install(name, map[string]string{name: "[Service]\nType=notify\nExecStart=/bin/sleep infinity\nExecStartPre=/bin/systemctl daemon-reexec\n"})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := m.Start(ctx, name); !errors.Is(err, ErrConnectionLost) {
		t.Errorf("error %v, want ErrConnectionLost", err)
	}
	if p, err := m.Properties(ctx, name); err != nil || !p.Exists() {
		t.Errorf("after reconnecting: %+v, %v", p, err)
	}
}

func TestRealUnknownUnit(t *testing.T) {
	m, _ := realSystemd(t)
	const name = "nodeprep-test-none.service"
	if p, err := m.Properties(t.Context(), name); err != nil || p.Exists() {
		t.Errorf("properties %+v, %v", p, err)
	}
	for verb, f := range map[string]func(context.Context, string) error{"start": m.Start, "stop": m.Stop, "restart": m.Restart} {
		if err := f(t.Context(), name); !errors.Is(err, ErrNoUnit) {
			t.Errorf("%s: %v, want ErrNoUnit", verb, err)
		}
	}
	if _, err := m.Enable(t.Context(), name); !errors.Is(err, ErrNoUnit) {
		t.Errorf("enable: %v, want ErrNoUnit", err)
	}
}

// TestRealQuoting shows that awkward values reach the daemon's environment as they are.
func TestRealQuoting(t *testing.T) {
	const name = "nodeprep-test-env.service"
	m, install := realSystemd(t)
	const proxy = "http://u:p%40$x`\\\"'@proxy.example.com:3128/%7E #;"
	spec := specOf("2.3.4", 252)
	spec.Systemd.Environment = awkward()
	w := writer{spec: spec}
	env, _ := w.environment()
	dir := t.TempDir()
	envFile := filepath.Join(dir, "proxy.env")
	if err := os.WriteFile(envFile, []byte("# comment\nHTTP_PROXY="+quoteEnvFile(proxy)+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := filepath.Join(dir, "env")
	mount := `/tmp/a "b" 5%\c`
	install(name, map[string]string{
		name:                                     "[Unit]\nRequiresMountsFor=" + quoteUnlessPlain(mount) + "\n[Service]\nType=oneshot\nExecStart=/bin/sh -c 'env -0 >" + out + "'\nEnvironmentFile=" + envFile + "\n",
		name + ".d/10-nodeprep-environment.conf": string(env.Content),
	})
	if err := m.Start(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	raw, err := os.ReadFile(out)
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]string{}
	for _, kv := range bytes.Split(raw, []byte{0}) {
		k, v, _ := strings.Cut(string(kv), "=")
		got[k] = v
	}
	want := awkward()
	want["HTTP_PROXY"] = proxy
	for k, v := range want {
		if got[k] != v {
			t.Errorf("%s arrived as %q, want %q", k, got[k], v)
		}
	}
	all, err := m.link.GetAllPropertiesContext(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	if got := get[[]string](all, "RequiresMountsFor"); !slices.Contains(got, mount) {
		t.Errorf("RequiresMountsFor is %q, want %q in it", got, mount)
	}
}

// What is read from files is what systemd says is in force.
func TestRealDisciplineIsAsPredicted(t *testing.T) {
	const name = "nodeprep-test-killmode.service"
	unit := func(drop string, values ...string) map[string]string {
		files := map[string]string{name: "[Service]\nExecStart=/bin/true\n" + values[0]}
		if drop != "" {
			files[name+".d/50-x.conf"] = drop
		}
		return files
	}
	for what, files := range map[string]map[string]string{
		"defaults":       unit("", ""),
		"good":           unit("", "KillMode=process\nDelegate=yes\n"),
		"shadowed":       unit("[Service]\nKillMode=mixed\nDelegate=no\n", "KillMode=process\nDelegate=yes\n"),
		"empty":          unit("[Service]\nKillMode=\nDelegate=\n", "KillMode=process\n"),
		"not understood": unit("[Service]\nKillMode=bogus\n", "KillMode=process\nDelegate=cpu pids\n"),
	} {
		t.Run(what, func(t *testing.T) {
			m, install := realSystemd(t)
			install(name, files)
			p, err := m.Properties(t.Context(), name)
			if err != nil {
				t.Fatal(err)
			}
			var fragments []Fragment
			for _, file := range append([]string{p.FragmentPath}, p.DropInPaths...) {
				content, err := os.ReadFile(file)
				if err != nil {
					t.Fatal(err)
				}
				fragments = append(fragments, Fragment{Path: file, Content: content})
			}
			mode, _ := KillMode(fragments)
			on, _ := Delegate(fragments)
			if mode != p.KillMode || on != p.Delegate {
				t.Errorf("read KillMode=%s Delegate=%v, in force are %s and %v", mode, on, p.KillMode, p.Delegate)
			}
		})
	}
}
