package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
	"github.com/nodeprep/nodeprep/systemd"
)

// outside counts what a run asks of others, and fails one call of it: that of a number,
// and from then on those whose names start with broken.
type outside struct {
	mu     sync.Mutex
	calls  []string
	failAt int
	fault  error
	broken string
	second error
	// quiet asks nothing more of it: what others want to know is not counted.
	quiet bool
}

func (o *outside) call(name string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.quiet {
		return nil
	}
	o.calls = append(o.calls, name)
	switch {
	case len(o.calls) == o.failAt:
		return o.fault
	case o.failAt > 0 && len(o.calls) > o.failAt && o.broken != "" && strings.HasPrefix(name, o.broken):
		return o.second
	}
	return nil
}

// machine is a systemd with containerd.service, and the containerd that it runs, as far
// as they matter: which unit systemd has read, and which program runs by which config.
type machine struct {
	n *node
	*outside
	loaded string // the unit as it was read last
	active string
	// program, config and unit are those of the process; "" without one.
	program, config, unit string
	tasks                 []daemon.Task
	containers            []daemon.Container
	lost                  []daemon.Task
	killMode              string
	wrong                 []string // orders that make no sense
	pinned                bool     // of its image
}

// file is a file's content on the disk, "" for none.
func (m *machine) file(p string) string {
	b, err := m.n.h.Root.ReadFile(p)
	if err != nil {
		return ""
	}
	return string(b)
}

const daemonUnit = unitDir + "/containerd.service"

// Properties is what systemd knows of the unit.
func (m *machine) Properties(_ context.Context, u string) (systemd.Properties, error) {
	p := systemd.Properties{LoadState: "loaded", ActiveState: m.active, KillMode: m.killMode, FragmentPath: daemonUnit}
	if m.program != "" {
		p.MainPID = 7
	}
	return p, m.call("properties")
}

// Reload reads the unit again.
func (m *machine) Reload(context.Context) error {
	if err := m.call("reload"); err != nil {
		return err
	}
	m.loaded = m.file(daemonUnit)
	return nil
}

func (m *machine) run(what string) error {
	m.program, m.config, m.unit, m.active = "", "", "", "failed"
	if err := m.call(what); err != nil {
		return err
	}
	if m.loaded != m.file(daemonUnit) {
		m.wrong = append(m.wrong, what+" of a unit that systemd has not read again")
	}
	if m.loaded == "" {
		m.wrong = append(m.wrong, what+" of a unit that systemd does not know")
	}
	m.program, m.config, m.unit, m.active = m.file("/usr/local/bin/containerd"), m.file(config), m.loaded, "active"
	return nil
}

// Start starts what is on the disk.
func (m *machine) Start(_ context.Context, u string) error { return m.run("start") }

// Restart stops by the unit that was read last.
func (m *machine) Restart(_ context.Context, u string) error { return m.run("restart") }

// Stop obeys the unit that was read last: for a process that came with another one nobody
// has looked whether that kills containers.
func (m *machine) Stop(_ context.Context, u string) error {
	if m.unit != "" && m.loaded != m.unit {
		m.wrong = append(m.wrong, "a stop by another unit than the process came with")
	}
	if err := m.call("stop"); err != nil {
		return err
	}
	m.program, m.config, m.unit = "", "", ""
	if m.active != "failed" {
		m.active = "inactive"
	}
	return nil
}

// ResetFailed forgets a failure.
func (m *machine) ResetFailed(context.Context, string) error {
	if err := m.call("reset-failed"); err != nil {
		return err
	}
	if m.active == "failed" {
		m.active = "inactive"
	}
	return nil
}

// Healthy is the daemon that runs, if it is the wanted one.
func (m *machine) Healthy(_ context.Context, want desired.Daemon) error {
	if err := m.call("health"); err != nil {
		return err
	}
	version := map[string]string{"daemon one": "1.0.0", "daemon two": "2.0.0"}[m.program]
	if version == "" || want.Version != "" && want.Version != version {
		return fmt.Errorf("containerd is %q, want %s", version, want.Version)
	}
	return nil
}

// Process is who listens.
func (m *machine) Process(context.Context, desired.Daemon) (int, error) { return 7, m.call("peer") }

// Import takes an image.
func (m *machine) Import(_ context.Context, _ desired.Daemon, img desired.Image, archive io.Reader, _ *imagearchive.Archive) ([]daemon.Image, error) {
	if err := m.call("import"); err != nil {
		return nil, err
	}
	_, err := io.Copy(io.Discard, archive)
	m.pinned = m.pinned || img.Pin
	return []daemon.Image{{Name: "docker.io/library/app:1", Pinned: m.pinned, Changed: true}}, err
}

// Images are those that it has.
func (m *machine) Images(context.Context, desired.Daemon) ([]daemon.Image, error) {
	return []daemon.Image{{Name: "docker.io/library/app:1", Pinned: m.pinned}}, m.call("images")
}

// Pin pins.
func (m *machine) Pin(_ context.Context, _ desired.Daemon, names []string) error {
	err := m.call("pin")
	if err == nil {
		m.pinned = true
	}
	return err
}

// Unpin does the opposite.
func (m *machine) Unpin(_ context.Context, _ desired.Daemon, names []string) error {
	err := m.call("unpin")
	if err == nil {
		m.pinned = false
	}
	return err
}

// Tasks are what runs.
func (m *machine) Tasks(context.Context, desired.Daemon) ([]daemon.Task, error) {
	return m.tasks, m.call("tasks")
}

// Containers are what is known.
func (m *machine) Containers(context.Context, desired.Daemon) ([]daemon.Container, error) {
	return m.containers, m.call("containers")
}

// Watch looks at shims.
func (m *machine) Watch([]daemon.Task) (ShimWatch, error) { return m, m.call("watch") }

// Ended are shims that ended.
func (m *machine) Ended(time.Time, time.Time) []daemon.Task { return m.lost }

// Close ends a watch.
func (m *machine) Close() {}

// StopTasks ends them all.
func (m *machine) StopTasks(context.Context, desired.Daemon) error {
	if err := m.call("stop tasks"); err != nil {
		return err
	}
	m.tasks = nil
	return os.RemoveAll(filepath.Join(m.n.dir, "/proc/77"))
}

// Obtain supplies releases, or none, or half of one.
func (m *machine) Obtain(ctx context.Context, a desired.Artifact, p func(int64, int64)) (*Archive, error) {
	if err := m.call("obtain"); err != nil {
		return nil, err
	}
	archive, err := m.n.releases.Obtain(ctx, a, p)
	if err != nil {
		return nil, err
	}
	unpack := archive.Unpack
	archive.Unpack = func(ctx context.Context, create func(desired.Member, fs.FileMode) (io.WriteCloser, error)) error {
		return errors.Join(unpack(ctx, create), m.call("unpack"))
	}
	archive.Check = func(io.ReaderAt, string) (string, error) { return "", m.call("check") }
	return archive, nil
}

func (m *machine) exec(_ context.Context, c host.Cmd) (host.Output, error) {
	name := filepath.Base(c.Path)
	if strings.HasPrefix(name, ".") {
		name = "staged " + strings.Split(name, ".")[1]
	}
	return host.Output{Stdout: []byte("I am 1.0.0, 1.1.0 and 2.0.0")}, m.call("run " + name + " " + c.Args[0])
}

// was is the machine and its root, for before and after.
func (m *machine) was() string {
	forward := m.file("/proc/sys/net/ipv4/ip_forward")
	return fmt.Sprintf("systemd has %q, %s; %q runs by %q of %q; ip_forward %s\n%s", m.loaded, m.active, m.program, m.config, m.unit, forward,
		strings.Join(m.n.exactly("/proc"), "\n"))
}

// newMachine is a node before a verb, and what carries that out.
func newMachine(t *testing.T, verb string) (*machine, func() error) {
	n := nodeAt(t, fastDir(t))
	m := &machine{n: n, outside: &outside{quiet: true}, active: "inactive", killMode: "process"}
	n.opt.Services, n.opt.Daemon, n.opt.Artifacts, n.opt.live = m, m, m, true
	n.h.Run = m.exec
	n.write("/proc/7/oom_score_adj", "-999\n")
	n.symlink("/usr/local/bin/containerd", "/proc/7/exe")
	n.write("/proc/sys/net/ipv4/ip_forward", "0\n")
	n.write("/sbin/modprobe", "")
	n.write("/etc/containerd/config.toml", "version = 1 # theirs\n")
	n.opt.Adopt = true
	n.install("nodeprep")
	lines := func(forward string) {
		n.drop("/etc/sysctl.d/90-nodeprep.conf")
		n.drop("/etc/modules-load.d/nodeprep.conf")
		n.state.Files = append(n.state.Files,
			desired.File{Path: "/etc/sysctl.d/90-nodeprep.conf", Content: []byte("net.ipv4.ip_forward = " + forward + "\n"), Mode: 0o644, Format: desired.FormatLines, Effect: desired.EffectSysctl},
			desired.File{Path: "/etc/modules-load.d/nodeprep.conf", Content: []byte("overlay" + forward + "\n"), Mode: 0o644, Format: desired.FormatLines, Effect: desired.EffectModules})
		n.state.Modules, n.state.Sysctl = []string{"overlay" + forward}, map[string]string{"net.ipv4.ip_forward": forward}
	}
	unit := func(extra string) {
		n.file(daemonUnit).Content = []byte(strings.Replace(unitText, "\n[Install]", "KillMode=process\n"+extra+"\n[Install]", 1))
	}
	archive := filepath.Join(fastDir(t), "pause.tar")
	n.state.Daemon.Binary, n.state.Daemon.ConfigPath = "/usr/local/bin/containerd", config
	n.change(func() { lines("1"); unit("") })
	act := func(plan func(context.Context, *Receipt) (*Plan, error)) func() error {
		return func() error {
			rec, err := ReadReceipt(n.h.Root)
			if err != nil {
				return err
			}
			p, err := plan(t.Context(), rec)
			if err != nil {
				return err
			}
			_, err = Apply(t.Context(), n.h, p, n.opt)
			return err
		}
	}
	apply := act(func(ctx context.Context, rec *Receipt) (*Plan, error) {
		return Diff(ctx, n.h, n.state, rec, n.opt.DiffOptions)
	})
	must := func(f func() error) {
		t.Helper()
		if err := f(); err != nil || len(m.wrong) > 0 {
			t.Fatal(err, m.wrong)
		}
	}
	if verb == "install" {
		return m, apply
	}
	must(apply)
	m.tasks = []daemon.Task{{Namespace: kubernetes, ID: "a", PID: 9, Status: "running"}}
	m.containers = []daemon.Container{{Namespace: kubernetes, ID: "a", Name: "default/web/nginx"}}
	n.shim(77, "a")
	n.change(func() {
		n.install("nodeprep two")
		lines("2")
		unit("TasksMax=infinity\n")
		n.file(config).Content = []byte("version = 3\n")
		n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0"
		n.state.Artifacts[1].Version = "1.1.0"
		n.state.Files = append(n.state.Files, desired.File{Path: "/etc/new/dir/file", Content: []byte("x"), Mode: 0o600})
		n.state.Images = []desired.Image{{File: archive}}
	})
	if err := os.WriteFile(archive, pause("docker.io/library/app:1").tar(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if verb == "upgrade" {
		return m, apply
	}
	must(apply)
	switch verb {
	case "rollback":
		return m, act(func(ctx context.Context, rec *Receipt) (*Plan, error) {
			return DiffRollback(ctx, n.h, rec, 0, n.opt.DiffOptions)
		})
	case "uninstall", "uninstall --force":
		un := UninstallOptions{Force: verb != "uninstall"}
		if !un.Force {
			m.tasks, m.containers = nil, nil
			if err := os.RemoveAll(filepath.Join(n.dir, "/proc/77")); err != nil {
				t.Fatal(err)
			}
		}
		return m, act(func(ctx context.Context, rec *Receipt) (*Plan, error) {
			return DiffUninstall(ctx, n.h, rec, n.opt.DiffOptions, un)
		})
	}
	t.Fatalf("no verb %s", verb)
	return nil, nil
}

// shim is a process that looks after a task.
func (n *node) shim(pid int, id string) {
	dir := fmt.Sprint("/proc/", pid)
	n.write(dir+"/cmdline", "/usr/local/bin/containerd-shim-runc-v2\x00-namespace\x00k8s.io\x00-id\x00"+id+"\x00-address\x00/run/containerd/containerd.sock\x00")
	n.write(dir+"/comm", "containerd-shim\n")
	n.write(dir+"/stat", fmt.Sprint(pid, " (containerd-shim) S 1 77 77 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 100 0 0\n"))
}

// harmless are calls whose failure stops nothing, and why.
var harmless = map[string]string{
	"run modprobe --resolve-alias": "it worked, which must do",
	"health":                       "before the commit: an undo then owes less",
	"tasks":                        "before the restart: shims show in proc(5) too",
	"containers":                   "before the restart: names are lacking then",
}

// TestEachCallFails: whatever is asked of others fails in turn, and the node is the old
// one, of which systemd knows and whose containerd runs.
func TestEachCallFails(t *testing.T) {
	fault := errors.New("injected fault")
	for _, verb := range []string{"install", "upgrade", "rollback", "uninstall", "uninstall --force"} {
		t.Run(verb, func(t *testing.T) {
			m, do := newMachine(t, verb)
			m.outside = &outside{}
			before := m.was()
			if err := do(); err != nil || len(m.wrong) > 0 {
				t.Fatalf("undisturbed: %v, %v", err, m.wrong)
			}
			if m.was() == before {
				t.Fatal("it does nothing")
			}
			calls := m.calls
			t.Logf("%d calls: %s", len(calls), strings.Join(calls, ", "))
			for at := 1; at <= len(calls); at++ {
				m, do := newMachine(t, verb)
				before := m.was()
				m.outside = &outside{failAt: at, fault: fault}
				err := do()
				name := m.calls[at-1]
				what := fmt.Sprintf("%s: call %d (%s)", verb, at, name)
				if len(m.wrong) > 0 {
					t.Errorf("%s: %v", what, m.wrong)
				}
				if err == nil {
					if harmless[name] == "" && !(m.n.receipt() == nil && name == "reload") {
						t.Errorf("%s fails and nobody is told", what)
					}
					continue
				}
				var stranded *StrandedError
				if errors.As(err, &stranded) || !strings.Contains(err.Error(), "injected fault") {
					t.Errorf("%s: %v", what, err)
				}
				var reverted *RevertedError
				activated := slices.ContainsFunc(m.calls[:at], func(c string) bool { return c == "reload" || c == "stop" || strings.HasPrefix(c, "run modprobe") })
				if activated && !errors.As(err, &reverted) {
					t.Errorf("%s: %v, want it reverted", what, err)
				}
				if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(m.was(), "\n")); diff != "" {
					t.Errorf("%s (-before +after), %v, asked %v:\n%s", what, err, m.calls, diff)
				}
				if t.Failed() {
					return
				}
				m.outside = &outside{quiet: true}
				if err := do(); err != nil || len(m.wrong) > 0 {
					t.Errorf("%s: and afterwards %v, %v", what, err, m.wrong)
				}
			}
		})
	}
}

// TestUndoFails too: both faults are told, and files are back as far as they can be.
func TestUndoFails(t *testing.T) {
	for _, verb := range []string{"upgrade", "rollback", "uninstall"} {
		for _, broken := range []string{"reload", "start", "stop", "health"} {
			t.Run(verb+" "+broken, func(t *testing.T) {
				m, do := newMachine(t, verb)
				m.outside = &outside{}
				if err := do(); err != nil {
					t.Fatal(err)
				}
				calls := m.calls
				last := slices.Index(calls, "restart")
				if verb == "uninstall" {
					last = slices.Index(calls, "stop")
				}
				if last < 0 {
					t.Fatalf("calls are %v", calls)
				}
				m, do = newMachine(t, verb)
				files := m.n.exactly("/proc", StateDir)
				m.outside = &outside{failAt: last + 1, fault: errors.New("first fault"), broken: broken, second: errors.New("second fault")}
				err := do()
				asked := slices.ContainsFunc(m.calls[last+1:], func(c string) bool { return strings.HasPrefix(c, broken) })
				if !asked {
					var reverted *RevertedError
					if !errors.As(err, &reverted) {
						t.Errorf("%v", err)
					}
				} else {
					var stranded *StrandedError
					if !errors.As(err, &stranded) || !strings.Contains(err.Error(), "first fault") || !strings.Contains(err.Error(), "second fault") {
						t.Errorf("%v, want both faults; asked %v", err, m.calls)
					} else if len(stranded.Places) > 0 || stranded.Journal != "" {
						t.Errorf("files are back, and it says %v, %s", stranded.Places, stranded.Journal)
					}
				}
				if diff := cmp.Diff(files, m.n.exactly("/proc", StateDir)); diff != "" {
					t.Errorf("the root changed (-before +after):\n%s", diff)
				}
				if j, err := Pending(m.n.h.Root); err != nil || j != nil {
					t.Errorf("a journal is left: %+v, %v", j, err)
				}
				// Once the fault is gone, all goes well.
				m.outside = &outside{quiet: true}
				m.wrong = nil
				if err := do(); err != nil {
					t.Errorf("afterwards: %v", err)
				}
			})
		}
	}
}

// TestWhatIsFoundAfterwards: the new daemon runs, and is not what it shall be.
func TestWhatIsFoundAfterwards(t *testing.T) {
	tests := map[string]struct {
		spoil func(m *machine)
		want  string
	}{
		"another version": {func(m *machine) { m.program = "daemon one" }, `want 2.0.0`},
		"no process":      {func(m *machine) { m.program, m.active = "", "failed" }, "containerd is"},
		"OOM score":       {func(m *machine) { m.n.write("/proc/7/oom_score_adj", "0\n") }, "oom_score_adj 0, want -999"},
		"another program": {func(m *machine) {
			m.n.remove("/proc/7/exe")
			m.n.symlink("/usr/bin/containerd", "/proc/7/exe")
		}, "runs /usr/bin/containerd"},
		"a container is lost": {func(m *machine) { m.lost, m.tasks = m.tasks, nil }, "1 of 1 tasks did not survive the restart of containerd.service: default/web/nginx"},
	}
	for _, verb := range []string{"upgrade", "rollback"} {
		for _, name := range sortedKeys(tests) {
			t.Run(verb+" "+name, func(t *testing.T) {
				tt := tests[name]
				m, do := newMachine(t, verb)
				if verb == "rollback" {
					tt.want = strings.Replace(tt.want, "want 2.0.0", "want 1.0.0", 1)
				}
				before := m.was()
				tasks := m.tasks
				m.n.opt.Services = spoiler{m, func() {
					tt.spoil(m)
					if name == "another version" && verb == "rollback" {
						m.program = "daemon two"
					}
				}}
				err := do()
				m.n.opt.Services = m
				var reverted *RevertedError
				if !errors.As(err, &reverted) || reverted.Phase != PhaseVerify || !strings.Contains(err.Error(), tt.want) {
					t.Fatalf("%v, want it reverted for %q", err, tt.want)
				}
				m.tasks = tasks
				if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(m.was(), "\n")); diff != "" {
					t.Errorf("(-before +after):\n%s", diff)
				}
				if len(m.wrong) > 0 {
					t.Error(m.wrong)
				}
			})
		}
	}
}

// spoiler is a systemd whose restarts go wrong in silence.
type spoiler struct {
	*machine
	spoil func()
}

// Restart spoils something.
func (s spoiler) Restart(ctx context.Context, u string) error {
	err := s.machine.Restart(ctx, u)
	s.spoil()
	return err
}

// TestGuardStopsTheRestart: the KillMode in force is another than it was to be.
func TestGuardStopsTheRestart(t *testing.T) {
	for _, verb := range []string{"upgrade", "rollback"} {
		t.Run(verb, func(t *testing.T) {
			m, do := newMachine(t, verb)
			m.killMode = "control-group"
			m.outside = &outside{}
			before := m.was()
			err := do()
			var reverted *RevertedError
			if !errors.As(err, &reverted) || !strings.Contains(err.Error(), "it would kill 1 container (pod default/web): KillMode=control-group") {
				t.Errorf("%v", err)
			}
			if slices.Contains(m.calls, "restart") || slices.Contains(m.calls, "stop") {
				t.Errorf("asked %v", m.calls)
			}
			if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(m.was(), "\n")); diff != "" {
				t.Errorf("(-before +after):\n%s", diff)
			}
		})
	}
}

// TestEachWriteFails of a run on a live node: before the point of no return it is the old
// one, after it the new one as soon as somebody tidies up.
func TestEachWriteFails(t *testing.T) {
	step := int64(stride(t, 7))
	for _, verb := range []string{"install", "upgrade", "rollback", "uninstall"} {
		t.Run(verb, func(t *testing.T) {
			m, do := newMachine(t, verb)
			w := &writer{chown: m.n.h.UID == 0}
			m.n.opt.writer = w
			if err := do(); err != nil {
				t.Fatal(err)
			}
			after := m.n.tree(false, "/proc", StateDir)
			undone := 0
			for at := int64(1); at <= w.calls.Load(); at += step {
				m, do := newMachine(t, verb)
				before := m.was()
				op := ""
				m.n.opt.writer = &writer{chown: m.n.h.UID == 0, before: func(call int64, what, path string) error {
					if call != at {
						return nil
					}
					op = what + " " + strings.TrimPrefix(path, m.n.dir)
					return syscall.EIO
				}}
				err := do()
				what := fmt.Sprintf("write %d (%s)", at, op)
				if len(m.wrong) > 0 {
					t.Errorf("%s: %v", what, m.wrong)
				}
				var stranded *StrandedError
				if errors.As(err, &stranded) {
					if verb != "uninstall" || stranded.Undo != nil || !errors.Is(err, syscall.EIO) {
						t.Errorf("%s: %v", what, err)
					}
					err = nil // past the point of no return; the rest goes below
				}
				if err != nil {
					undone++
					if !errors.Is(err, syscall.EIO) {
						t.Errorf("%s: %v", what, err)
					}
					if diff := cmp.Diff(strings.Split(before, "\n"), strings.Split(m.was(), "\n")); diff != "" {
						t.Errorf("%s (-before +after), %v:\n%s", what, err, diff)
					}
					continue
				}
				opt := m.n.recovery()
				opt.writer = nil
				if _, err := Recover(t.Context(), m.n.h, opt); err != nil {
					t.Errorf("%s: and then recover: %v", what, err)
				}
				if diff := cmp.Diff(after, m.n.tree(false, "/proc", StateDir)); diff != "" {
					t.Errorf("%s (-want +got):\n%s", what, diff)
				}
				if _, err := m.n.h.Root.Lstat(StateDir); verb == "uninstall" && !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s: %s is left (%v)", what, StateDir, err)
				}
			}
			t.Logf("%d writes, %d failures undone", w.calls.Load(), undone)
		})
	}
}

// TestRecoverTellsWhatStays: somebody put something into a directory of an interrupted run.
func TestRecoverTellsWhatStays(t *testing.T) {
	m, do := newMachine(t, "install")
	before := m.n.exactly("/proc", "/etc/containerd/certs.d")
	dead := false
	m.n.opt.writer = failing(func(op, path string) error {
		if dead = dead || op == "rename" && strings.HasSuffix(path, "/docker.io/secret.toml"); dead {
			return syscall.EIO
		}
		return nil
	})
	var stranded *StrandedError
	if err := do(); !errors.As(err, &stranded) || stranded.Journal != JournalPath {
		t.Fatalf("%v, want it stranded", err)
	}
	const theirs = "/etc/containerd/certs.d/docker.io/theirs"
	m.n.write(theirs, "x")
	opt := m.n.recovery()
	opt.writer = nil
	got, err := Recover(t.Context(), m.n.h, opt)
	if err != nil || got.Outcome != WasReverted || len(got.Warnings) != 1 || !strings.Contains(got.Warnings[0].String(), "/etc/containerd/certs.d/docker.io stays") {
		t.Errorf("recover = %+v, %v", got, err)
	}
	if now := m.n.exactly("/proc", "/etc/containerd/certs.d"); !slices.Equal(before, now) {
		t.Errorf("(-before +after):\n%s", cmp.Diff(before, now))
	}
	if m.n.read(theirs) != "x" {
		t.Error("theirs is gone")
	}
}
