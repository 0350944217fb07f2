package systemd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
	"github.com/google/go-cmp/cmp"
)

// fakeBus is a systemd with one unit. Start, stop and restart hand their result
// channel to onJob.
type fakeBus struct {
	mu       sync.Mutex
	calls    []string
	props    map[string]any
	propsErr error
	onJob    func(f *fakeBus, name string, ch chan<- string) error
	enable   func(files []string) (bool, []sd.EnableUnitFileChange, error)
	disable  []sd.DisableUnitFileChange
	lost     chan struct{}
}

func (f *fakeBus) note(format string, args ...any) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
}

func (f *fakeBus) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

func (f *fakeBus) ReloadContext(context.Context) error {
	f.note("reload")
	return nil
}

func (f *fakeBus) EnableUnitFilesContext(_ context.Context, files []string, runtime, force bool) (bool, []sd.EnableUnitFileChange, error) {
	f.note("enable %v runtime=%v force=%v", files, runtime, force)
	return f.enable(files)
}

func (f *fakeBus) DisableUnitFilesContext(_ context.Context, files []string, _ bool) ([]sd.DisableUnitFileChange, error) {
	f.note("disable %v", files)
	return f.disable, nil
}

func (f *fakeBus) job(verb, name, mode string, ch chan<- string) (int, error) {
	f.note("%s %s %s", verb, name, mode)
	if ch != nil && cap(ch) == 0 {
		return 0, errors.New("a result channel without room blocks go-systemd once nobody waits")
	}
	return 7, f.onJob(f, name, ch)
}

func (f *fakeBus) StartUnitContext(_ context.Context, name, mode string, ch chan<- string) (int, error) {
	return f.job("start", name, mode, ch)
}

func (f *fakeBus) StopUnitContext(_ context.Context, name, mode string, ch chan<- string) (int, error) {
	return f.job("stop", name, mode, ch)
}

func (f *fakeBus) RestartUnitContext(_ context.Context, name, mode string, ch chan<- string) (int, error) {
	return f.job("restart", name, mode, ch)
}

func (f *fakeBus) ResetFailedUnitContext(_ context.Context, name string) error {
	f.note("reset-failed %s", name)
	return dbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit"}
}

func (f *fakeBus) GetAllPropertiesContext(ctx context.Context, _ string) (map[string]any, error) {
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if !f.Connected() {
		return nil, io.EOF
	}
	return f.props, f.propsErr
}

func (f *fakeBus) Connected() bool {
	select {
	case <-f.lost:
		return false
	default:
		return true
	}
}

func (f *fakeBus) Close() {}

func result(r string) func(*fakeBus, string, chan<- string) error {
	return func(_ *fakeBus, _ string, ch chan<- string) error {
		ch <- r
		return nil
	}
}

func never(*fakeBus, string, chan<- string) error { return nil }

// newTestManager connects to the given systemds one after the other.
func newTestManager(run Runner, buses ...*fakeBus) *Manager {
	return &Manager{run: run, dial: func(context.Context) (*link, error) {
		if len(buses) == 0 {
			return nil, errors.New("nobody answers")
		}
		f := buses[0]
		buses = buses[1:]
		f.lost = make(chan struct{})
		return &link{bus: f, lost: f.lost}, nil
	}}
}

// journal answers every query with the same lines and keeps the commands.
type journal struct {
	commands []string
	answer   func(cmd string) string
}

func (j *journal) run(ctx context.Context, name string, args ...string) ([]byte, error) {
	cmd := strings.Join(append([]string{name}, args...), " ")
	j.commands = append(j.commands, cmd)
	if strings.Contains(cmd, "--sync") {
		return nil, errors.New("exit status 1")
	}
	return []byte(j.answer(cmd)), ctx.Err()
}

func lines(s string) func(string) string { return func(string) string { return s } }

func serviceProps(active, sub string, more map[string]any) map[string]any {
	m := map[string]any{
		"LoadState": "loaded", "ActiveState": active, "SubState": sub, "Type": "notify", "Result": "success",
		"InvocationID": []byte("0123456789abcdef"),
	}
	for k, v := range more {
		m[k] = v
	}
	return m
}

const invocation = "30313233343536373839616263646566"

func TestJobsThatEndWell(t *testing.T) {
	for name, c := range map[string]struct {
		call   func(*Manager, context.Context, string) error
		result string
		props  map[string]any
		want   []string
	}{
		"start":                    {(*Manager).Start, "done", serviceProps("active", "running", nil), []string{"reset-failed u.service", "start u.service replace"}},
		"restart":                  {(*Manager).Restart, "done", serviceProps("active", "running", nil), []string{"reset-failed u.service", "restart u.service replace"}},
		"stop":                     {(*Manager).Stop, "done", serviceProps("inactive", "dead", nil), []string{"stop u.service replace"}},
		"start of what runs":       {(*Manager).Start, "skipped", serviceProps("active", "running", nil), nil},
		"stop of what has failed":  {(*Manager).Stop, "done", serviceProps("failed", "failed", nil), nil},
		"one-shot work that ended": {(*Manager).Start, "done", serviceProps("inactive", "dead", map[string]any{"Type": "oneshot"}), nil},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeBus{props: c.props, onJob: result(c.result)}
			if err := c.call(newTestManager(nil, f), t.Context(), "u.service"); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, f.called()); c.want != nil && diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestJobsThatFail(t *testing.T) {
	exited := func(active, sub, result string, code, status int32, restarts uint32) map[string]any {
		return serviceProps(active, sub, map[string]any{"Result": result, "ExecMainCode": code, "ExecMainStatus": status, "NRestarts": restarts})
	}
	for name, c := range map[string]struct {
		result string
		props  map[string]any
		want   string
	}{
		"exits, and will be restarted": {"failed", exited("activating", "auto-restart", "exit-code", 1, 1, 0),
			"restart u.service: job failed: result exit-code, exit status 1, state activating/auto-restart; its last journal lines:\n  one\n  two"},
		"binary missing": {"failed", exited("activating", "auto-restart", "exit-code", 1, 203, 2),
			"restart u.service: job failed: result exit-code, exit status 203 (its binary cannot be executed), state activating/auto-restart, restarted 2 times; its last journal lines:\n  one\n  two"},
		"killed": {"failed", exited("failed", "failed", "signal", 2, 9, 0),
			"restart u.service: job failed: result signal, killed by signal 9, state failed/failed; its last journal lines:\n  one\n  two"},
		"never notifies, systemd gives up": {"timeout", exited("failed", "failed", "timeout", 2, 15, 0),
			"restart u.service: job timeout: result timeout, killed by signal 15, state failed/failed; its last journal lines:\n  one\n  two"},
		"tells its own error": {"failed", serviceProps("failed", "failed", map[string]any{"Result": "exit-code", "StatusErrno": int32(98), "StatusText": "address in use"}),
			"restart u.service: job failed: result exit-code, errno 98, address in use, state failed/failed; its last journal lines:\n  one\n  two"},
		"another job took its place": {"canceled", serviceProps("inactive", "dead", nil),
			"restart u.service: job canceled: state inactive/dead; its last journal lines:\n  one\n  two"},
		"needs what failed": {"dependency", serviceProps("inactive", "dead", nil),
			"restart u.service: a unit that it requires failed: state inactive/dead; its last journal lines:\n  one\n  two"},
		"skipped and down": {"skipped", serviceProps("inactive", "dead", nil),
			"restart u.service: job skipped: state inactive/dead; its last journal lines:\n  one\n  two"},
		"done, then gone": {"done", exited("activating", "auto-restart", "exit-code", 1, 2, 1),
			"restart u.service: it did not stay up: result exit-code, exit status 2, state activating/auto-restart, restarted 1 times; its last journal lines:\n  one\n  two"},
	} {
		t.Run(name, func(t *testing.T) {
			j := &journal{answer: lines("one\n\ntwo\n")}
			f := &fakeBus{props: c.props, onJob: result(c.result)}
			err := newTestManager(j.run, f).Restart(t.Context(), "u.service")
			job, ok := errors.AsType[*JobError](err)
			if !ok {
				t.Fatalf("error %v (%T), want a *JobError", err, err)
			}
			if job.Unit != "u.service" || job.Job != "restart" || job.Result != c.result {
				t.Errorf("job error is of %s %s %s", job.Job, job.Unit, job.Result)
			}
			if diff := cmp.Diff(c.want, err.Error()); diff != "" {
				t.Errorf("message (-want +got):\n%s", diff)
			}
		})
	}
}

func TestJournalOfTheFailedInvocation(t *testing.T) {
	const (
		byInvocation = "journalctl _SYSTEMD_INVOCATION_ID=" + invocation + " + _PID=1 INVOCATION_ID=" + invocation + " -n 20 -o cat -q --no-pager"
		byUnit       = "journalctl -u u.service -n 20 -o cat -q --no-pager"
	)
	fail := func(j *journal, props map[string]any) *JobError {
		t.Helper()
		err := newTestManager(j.run, &fakeBus{props: props, onJob: result("failed")}).Start(t.Context(), "u.service")
		job, ok := errors.AsType[*JobError](err)
		if !ok {
			t.Fatalf("error %v, want a *JobError", err)
		}
		return job
	}

	j := &journal{answer: lines("\x1b[31mred\x1b[0m\x07\n")}
	job := fail(j, serviceProps("failed", "failed", nil))
	if diff := cmp.Diff([]string{"journalctl --sync", byInvocation}, j.commands); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"[31mred[0m"}, job.Journal); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}

	j = &journal{answer: func(cmd string) string {
		if strings.Contains(cmd, "-u ") {
			return "of the unit\n"
		}
		return ""
	}}
	job = fail(j, serviceProps("failed", "failed", nil))
	if diff := cmp.Diff([]string{"journalctl --sync", byInvocation, byUnit}, j.commands); diff != "" {
		t.Errorf("commands (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"of the unit"}, job.Journal); diff != "" {
		t.Errorf("journal (-want +got):\n%s", diff)
	}

	j = &journal{answer: lines("")}
	fail(j, serviceProps("failed", "failed", map[string]any{"InvocationID": []byte{}}))
	if diff := cmp.Diff([]string{"journalctl --sync", byUnit}, j.commands); diff != "" {
		t.Errorf("commands for a unit that never ran (-want +got):\n%s", diff)
	}
}

func TestWaitEndsWithTheDeadline(t *testing.T) {
	for name, deadline := range map[string]time.Duration{"the caller's": time.Minute, "our own": 0, "our own is sooner": time.Hour} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx := t.Context()
				if deadline > 0 {
					var cancel context.CancelFunc
					ctx, cancel = context.WithTimeout(ctx, deadline)
					defer cancel()
				}
				j := &journal{answer: lines("waiting for the network\n")}
				f := &fakeBus{props: serviceProps("activating", "start", nil), onJob: never}
				start := time.Now()
				err := newTestManager(j.run, f).Start(ctx, "u.service")
				job, ok := errors.AsType[*JobError](err)
				if !ok || !errors.Is(err, context.DeadlineExceeded) {
					t.Fatalf("error %v, want a *JobError for the deadline", err)
				}
				if job.State.SubState != "start" || len(job.Journal) != 1 {
					t.Errorf("the report lacks the unit's state or journal: %v", err)
				}
				want := deadline
				if want == 0 || want > jobTimeout {
					want = jobTimeout
				}
				if waited := time.Since(start); waited != want {
					t.Errorf("waited %s, want %s", waited, want)
				}
			})
		})
	}
}

func TestResetFailed(t *testing.T) {
	f := &fakeBus{} // it answers that there is no such unit
	if err := newTestManager(nil, f).ResetFailed(t.Context(), "u.service"); err != nil {
		t.Errorf("a unit that systemd does not have has nothing to forget: %v", err)
	}
	if diff := cmp.Diff([]string{"reset-failed u.service"}, f.called()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestStartNoWait(t *testing.T) {
	f := &fakeBus{onJob: func(_ *fakeBus, _ string, done chan<- string) error {
		if done != nil {
			t.Error("somebody waits for the job")
		}
		return nil
	}}
	if err := newTestManager(nil, f).StartNoWait(t.Context(), "u.service"); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff([]string{"start u.service replace"}, f.called()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
	f.onJob = func(*fakeBus, string, chan<- string) error {
		return dbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit", Body: []any{"Unit u.service not found."}}
	}
	if err := newTestManager(nil, f).StartNoWait(t.Context(), "u.service"); !errors.Is(err, ErrNoUnit) {
		t.Errorf("error %v, want ErrNoUnit", err)
	}
}

func TestConnectionLostWhileWaiting(t *testing.T) {
	first := &fakeBus{props: serviceProps("activating", "start", nil), onJob: func(f *fakeBus, _ string, _ chan<- string) error {
		close(f.lost)
		return nil
	}}
	second := &fakeBus{props: serviceProps("active", "running", nil), onJob: result("done")}
	m := newTestManager(nil, first, second)
	err := m.Start(t.Context(), "u.service")
	if !errors.Is(err, ErrConnectionLost) {
		t.Fatalf("error %v, want ErrConnectionLost", err)
	}
	if err := m.Start(t.Context(), "u.service"); err != nil {
		t.Errorf("a new connection is not made: %v", err)
	}
	if len(second.called()) == 0 {
		t.Error("the second start did not reach the new connection")
	}
}

func TestConnectionLostInACall(t *testing.T) {
	f := &fakeBus{props: serviceProps("active", "running", nil), onJob: func(f *fakeBus, _ string, _ chan<- string) error {
		close(f.lost)
		return io.EOF
	}}
	m := newTestManager(nil, f)
	if err := m.Start(t.Context(), "u.service"); !errors.Is(err, ErrConnectionLost) {
		t.Errorf("error %v, want ErrConnectionLost", err)
	}
	synctest.Test(t, func(t *testing.T) {
		err := m.Start(t.Context(), "u.service")
		if want := "connect to systemd: nobody answers"; err == nil || err.Error() != want {
			t.Errorf("error %v, want %q", err, want)
		}
	})
}

func TestReconnectsWhenSystemdIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := &fakeBus{props: serviceProps("active", "running", nil), lost: make(chan struct{})}
		gone := &fakeBus{lost: make(chan struct{})}
		close(gone.lost)
		back := time.Now().Add(3 * time.Second)
		m := &Manager{link: &link{bus: gone, lost: gone.lost}, dial: func(context.Context) (*link, error) {
			if time.Now().Before(back) {
				return nil, errors.New("connection refused")
			}
			return &link{bus: f, lost: f.lost}, nil
		}}
		if p, err := m.Properties(t.Context(), "u.service"); err != nil || p.ActiveState != "active" {
			t.Errorf("properties %+v, %v", p, err)
		}
	})
}

func TestUnknownUnitIsToldApart(t *testing.T) {
	missing := map[string]any{
		"LoadState": "not-found", "ActiveState": "inactive", "SubState": "dead",
		"LoadError": []any{"org.freedesktop.systemd1.NoSuchUnit", "Unit u.service not found."},
	}
	f := &fakeBus{props: missing, onJob: func(*fakeBus, string, chan<- string) error {
		return dbus.Error{Name: "org.freedesktop.systemd1.NoSuchUnit", Body: []any{"Unit u.service not found."}}
	}}
	m := newTestManager(nil, f)
	p, err := m.Properties(t.Context(), "u.service")
	if err != nil || p.Exists() {
		t.Errorf("properties %+v, %v: an unknown unit does not exist and is no error", p, err)
	}
	if err := m.Start(t.Context(), "u.service"); !errors.Is(err, ErrNoUnit) || err.Error() != "start u.service: no such unit" {
		t.Errorf("start: %v", err)
	}
	if _, err := m.Enable(t.Context(), "u.service"); !errors.Is(err, ErrNoUnit) {
		t.Errorf("enable: %v", err)
	}

	f.props = serviceProps("inactive", "dead", nil)
	if p, err := m.Properties(t.Context(), "u.service"); err != nil || !p.Exists() || p.ActiveState != "inactive" {
		t.Errorf("properties %+v, %v: an inactive unit exists", p, err)
	}
}

func TestRefusedJobSaysWhy(t *testing.T) {
	f := &fakeBus{onJob: func(*fakeBus, string, chan<- string) error {
		return dbus.Error{Name: "org.freedesktop.systemd1.BadUnitSetting", Body: []any{"Unit u.service has a bad unit file setting."}}
	}}
	err := newTestManager(nil, f).Start(t.Context(), "u.service")
	if want := "start u.service: Unit u.service has a bad unit file setting."; err == nil || err.Error() != want {
		t.Errorf("error %v, want %q", err, want)
	}
}

func TestEnable(t *testing.T) {
	link := []sd.EnableUnitFileChange{{Type: "symlink", Filename: "/etc/systemd/system/multi-user.target.wants/u.service"}}
	for name, c := range map[string]struct {
		props   map[string]any
		enable  func([]string) (bool, []sd.EnableUnitFileChange, error)
		changed bool
		want    []string
		err     string
	}{
		"disabled": {
			props:   serviceProps("inactive", "dead", map[string]any{"UnitFileState": "disabled"}),
			enable:  func([]string) (bool, []sd.EnableUnitFileChange, error) { return true, link, nil },
			changed: true,
			want:    []string{"enable [u.service] runtime=false force=false", "reload"},
		},
		"enabled already": {
			props: serviceProps("active", "running", map[string]any{"UnitFileState": "enabled"}),
		},
		"enabled until the next boot": {
			props:   serviceProps("active", "running", map[string]any{"UnitFileState": "enabled-runtime"}),
			enable:  func([]string) (bool, []sd.EnableUnitFileChange, error) { return true, link, nil },
			changed: true,
			want:    []string{"enable [u.service] runtime=false force=false", "reload"},
		},
		"links were there": {
			props:  serviceProps("inactive", "dead", map[string]any{"UnitFileState": "disabled"}),
			enable: func([]string) (bool, []sd.EnableUnitFileChange, error) { return true, nil, nil },
			want:   []string{"enable [u.service] runtime=false force=false"},
		},
		"masked": {
			props: map[string]any{"LoadState": "masked", "UnitFileState": "masked"},
			err:   `enable u.service: it is masked ("systemctl unmask u.service" lifts that)`,
		},
		"no install section": {
			props:  serviceProps("inactive", "dead", map[string]any{"UnitFileState": "static"}),
			enable: func([]string) (bool, []sd.EnableUnitFileChange, error) { return false, nil, nil },
			want:   []string{"enable [u.service] runtime=false force=false"},
			err:    "enable u.service: the unit has no [Install] section",
		},
		"read-only /etc": {
			props: serviceProps("inactive", "dead", map[string]any{"UnitFileState": "disabled"}),
			enable: func([]string) (bool, []sd.EnableUnitFileChange, error) {
				return false, nil, dbus.Error{Name: "org.freedesktop.DBus.Error.FileSystem", Body: []any{"Read-only file system"}}
			},
			want: []string{"enable [u.service] runtime=false force=false"},
			err:  "enable u.service: Read-only file system",
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := &fakeBus{props: c.props, enable: c.enable}
			changed, err := newTestManager(nil, f).Enable(t.Context(), "u.service")
			if got := fmt.Sprint(err); got != c.err && (err != nil || c.err != "") {
				t.Errorf("error %v, want %q", err, c.err)
			}
			if changed != c.changed {
				t.Errorf("changed %v, want %v", changed, c.changed)
			}
			if diff := cmp.Diff(c.want, f.called()); diff != "" {
				t.Errorf("calls (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDisable(t *testing.T) {
	f := &fakeBus{}
	m := newTestManager(nil, f)
	if changed, err := m.Disable(t.Context(), "u.service"); changed || err != nil {
		t.Errorf("disable of a disabled unit: changed %v, %v", changed, err)
	}
	f.disable = []sd.DisableUnitFileChange{{Type: "unlink"}}
	if changed, err := m.Disable(t.Context(), "u.service"); !changed || err != nil {
		t.Errorf("disable: changed %v, %v", changed, err)
	}
	if diff := cmp.Diff([]string{"disable [u.service]", "disable [u.service]", "reload"}, f.called()); diff != "" {
		t.Errorf("calls (-want +got):\n%s", diff)
	}
}

func TestPropertiesAreDecoded(t *testing.T) {
	f := &fakeBus{props: map[string]any{
		"LoadState": "bad-setting", "LoadError": []any{"org.freedesktop.systemd1.BadUnitSetting", "bad unit file setting"},
		"ActiveState": "active", "SubState": "running", "UnitFileState": "enabled",
		"FragmentPath": UnitPath, "DropInPaths": []string{ProxyPath}, "NeedDaemonReload": true,
		"After": []string{"dbus.service"}, "InvocationID": []byte("0123456789abcdef"),
		"RequiredBy": []string{"kubelet.service", "b.service"}, "RequisiteOf": []string{"c.service"}, "BoundBy": []string{"kubelet.service"}, "ConsistsOf": []string{"a.service"},
		"Type": "notify", "Result": "success", "MainPID": uint32(42), "ExecMainCode": int32(1), "ExecMainStatus": int32(2),
		"StatusErrno": int32(3), "StatusText": "fine", "NRestarts": uint32(4), "ExecMainStartTimestamp": uint64(1_000_000_001),
		"Delegate": true, "KillMode": "process", "OOMScoreAdjust": int32(-999), "Restart": "always",
		"LimitNOFILE": uint64(524288), "LimitNOFILESoft": uint64(1024), "LimitNPROC": ^uint64(0), "LimitCORE": ^uint64(0), "TasksMax": ^uint64(0),
		"EnvironmentFiles": [][]any{{ProxySecretPath, false}},
		"WantedBy":         []string{"multi-user.target"}, "UpheldBy": []string{"d.target"}, "RequiresMountsFor": []string{"/data"}, "ControlGroup": "/system.slice/containerd.service",
		"Environment": []string{"A=b"}, "ExecStart": [][]any{{Binary, []string{"containerd", "-c", "x"}, false, uint64(0)}},
	}}
	got, err := newTestManager(nil, f).Properties(t.Context(), UnitName)
	if err != nil {
		t.Fatal(err)
	}
	want := Properties{
		LoadState: "bad-setting", LoadError: "bad unit file setting", ActiveState: "active", SubState: "running", UnitFileState: "enabled",
		FragmentPath: UnitPath, DropInPaths: []string{ProxyPath}, NeedDaemonReload: true, After: []string{"dbus.service"}, InvocationID: invocation,
		RequiredBy: []string{"kubelet.service", "b.service"}, RequisiteOf: []string{"c.service"}, BoundBy: []string{"kubelet.service"}, ConsistsOf: []string{"a.service"},
		Type: "notify", Result: "success", MainPID: 42, ExecMainCode: 1, ExecMainStatus: 2, StatusErrno: 3, StatusText: "fine", NRestarts: 4,
		MainStart: time.UnixMicro(1_000_000_001),
		Delegate:  true, KillMode: "process", OOMScoreAdjust: -999, Restart: "always",
		LimitNOFILE: 524288, LimitNOFILESoft: 1024, LimitNPROC: Infinity, LimitCORE: Infinity, TasksMax: Infinity,
		EnvironmentFile: []string{ProxySecretPath},
		WantedBy:        []string{"multi-user.target"}, UpheldBy: []string{"d.target"}, RequiresMountsFor: []string{"/data"}, ControlGroup: "/system.slice/containerd.service",
		Environment: []string{"A=b"}, ExecStart: [][]string{{Binary, "-c", "x"}},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("properties (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"a.service", "b.service", "c.service", "kubelet.service"}, got.Dependents()); diff != "" {
		t.Errorf("dependents (-want +got):\n%s", diff)
	}
	if got.TasksMax.String() != "infinity" || got.LimitNOFILE.String() != "524288" {
		t.Errorf("limits print as %s and %s", got.TasksMax, got.LimitNOFILE)
	}
}

// What systemd 252 says of a service that nothing confines, and of others.
func TestConfinementIsDecoded(t *testing.T) {
	open := map[string]any{
		"PrivateMounts": false, "PrivateTmp": false, "NoNewPrivileges": false, "ProtectSystem": "no", "ProtectHome": "no", "RootDirectory": "", "User": "",
		"MountFlags": uint64(0), "RestrictNamespaces": uint64(0x7e020000), "CapabilityBoundingSet": uint64(0x1ffffffffff),
		"SystemCallFilter": []any{false, []string{}}, "RestrictAddressFamilies": []any{false, []string{}}, "ReadOnlyPaths": []string{},
	}
	for name, c := range map[string]struct {
		props map[string]any
		want  []Setting
	}{
		"open":                     {nil, nil},
		"no mount is private":      {map[string]any{"MountFlags": uint64(1 << 20)}, nil},
		"root by name":             {map[string]any{"User": "root"}, nil},
		"all namespaces":           {map[string]any{"RestrictNamespaces": ^uint64(0)}, nil},
		"mounts":                   {map[string]any{"MountFlags": uint64(1 << 19), "PrivateMounts": true}, []Setting{{"PrivateMounts", "yes"}, {"MountFlags", "slave"}}},
		"private":                  {map[string]any{"MountFlags": uint64(1 << 18)}, []Setting{{"MountFlags", "private"}}},
		"the system":               {map[string]any{"ProtectSystem": "full", "ProtectHome": "read-only"}, []Setting{{"ProtectSystem", "full"}, {"ProtectHome", "read-only"}}},
		"no user namespaces":       {map[string]any{"RestrictNamespaces": uint64(0x6e020000)}, []Setting{{"RestrictNamespaces", "yes"}}},
		"no namespaces":            {map[string]any{"RestrictNamespaces": uint64(0)}, []Setting{{"RestrictNamespaces", "yes"}}},
		"no administrator":         {map[string]any{"CapabilityBoundingSet": uint64(1)}, []Setting{{"CapabilityBoundingSet", "without CAP_SYS_ADMIN"}}},
		"a list of what may be":    {map[string]any{"SystemCallFilter": []any{true, []string{}}}, []Setting{{"SystemCallFilter", "a filter"}}},
		"a list of what may not":   {map[string]any{"RestrictAddressFamilies": []any{false, []string{"AF_INET"}}}, []Setting{{"RestrictAddressFamilies", "a filter"}}},
		"paths":                    {map[string]any{"ReadOnlyPaths": []string{"/etc", "/usr"}}, []Setting{{"ReadOnlyPaths", "/etc /usr"}}},
		"somebody else":            {map[string]any{"User": "nobody", "NoNewPrivileges": true}, []Setting{{"NoNewPrivileges", "yes"}, {"User", "nobody"}}},
		"an old systemd's silence": {map[string]any{"RestrictNamespaces": nil, "CapabilityBoundingSet": nil}, nil},
	} {
		all := maps.Clone(open)
		maps.Copy(all, c.props)
		p, err := newTestManager(nil, &fakeBus{props: all}).Properties(t.Context(), UnitName)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(c.want, p.Confined); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}
