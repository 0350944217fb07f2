package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/systemd"
)

// StartNoWait notes that it was asked.
func (s *services) StartNoWait(_ context.Context, u string) error {
	return s.act("start without waiting " + u)
}

// StartNoWait is a start later on.
func (m *machine) StartNoWait(context.Context, string) error { return m.call("start without waiting") }

// killing is a systemd that stops units by the KillMode of the unit that it has read, with
// what runs in them, and in which nodeprep dies at an order: before it, or right after it.
type killing struct {
	*machine
	before, after string
	orders        []string
	killed        bool
}

func (k *killing) mode() string {
	mode, _ := systemd.KillMode([]systemd.Fragment{{Path: daemonUnit, Content: []byte(k.loaded)}})
	return mode
}

func (k *killing) order(what string, give func() error) error {
	if what == k.before {
		k.before = ""
		panic(errDead)
	}
	k.orders = append(k.orders, what)
	if (what == "stop" || what == "restart") && k.active == "active" && systemd.KillsContainers(k.mode()) {
		k.killed = k.killed || len(k.tasks) > 0
	}
	err := give()
	if what == k.after {
		k.after = ""
		panic(errDead)
	}
	return err
}

// Properties has the KillMode that is in force.
func (k *killing) Properties(ctx context.Context, u string) (systemd.Properties, error) {
	p, err := k.machine.Properties(ctx, u)
	p.KillMode = k.mode()
	return p, err
}

// Reload may be the last thing.
func (k *killing) Reload(ctx context.Context) error {
	return k.order("reload", func() error { return k.machine.Reload(ctx) })
}

// Start may be the last thing.
func (k *killing) Start(ctx context.Context, u string) error {
	return k.order("start", func() error {
		if k.active == "active" {
			return nil
		}
		return k.machine.Start(ctx, u)
	})
}

// Restart kills by the KillMode in force.
func (k *killing) Restart(ctx context.Context, u string) error {
	return k.order("restart", func() error { return k.machine.Restart(ctx, u) })
}

// Stop kills by the KillMode in force.
func (k *killing) Stop(ctx context.Context, u string) error {
	return k.order("stop", func() error { return k.machine.Stop(ctx, u) })
}

// upgrading is a node on which containers run, before an upgrade; killModeOfBefore is that
// of the unit which the upgrade replaces by one with KillMode=process.
func upgrading(t *testing.T, killModeOfBefore string) (*killing, func() error) {
	t.Helper()
	m, upgrade := newMachine(t, "upgrade")
	k := &killing{machine: m}
	m.n.opt.Services, m.n.opt.Daemon = k, k
	if killModeOfBefore == "process" {
		return k, upgrade
	}
	n := m.n
	tasks, unit, config, artifacts := m.tasks, n.file(daemonUnit).Content, n.file(config).Content, slices.Clone(n.state.Artifacts)
	m.tasks = nil
	n.change(func() {
		n.file(daemonUnit).Content = []byte(strings.Replace(unitText, "\n[Install]", "KillMode="+killModeOfBefore+"\n\n[Install]", 1))
		n.file("/etc/containerd/config.toml").Content = []byte("version = 2\n")
		n.state.Artifacts[0].Version, n.state.Daemon.Version = "1.0.0", "1.0.0"
		n.state.Artifacts[1].Version = "1.0.0"
	})
	if err := upgrade(); err != nil {
		t.Fatal(err)
	}
	m.tasks = tasks
	n.change(func() {
		n.file(daemonUnit).Content, n.file("/etc/containerd/config.toml").Content, n.state.Artifacts = unit, config, artifacts
		n.state.Daemon.Version = "2.0.0"
	})
	k.orders, k.killed = nil, false
	return k, upgrade
}

func (k *killing) recover(t *testing.T, with func(*RecoverOptions)) (*Recovered, error) {
	t.Helper()
	opt := k.n.recovery()
	opt.writer = nil
	if with != nil {
		with(&opt)
	}
	return Recover(t.Context(), k.n.h, opt)
}

// isOld fails the test unless the root is as before but for nodeprep's own directory.
func (k *killing) isOld(t *testing.T, before []string) {
	t.Helper()
	if diff := cmp.Diff(before, k.n.exactly("/proc", StateDir)); diff != "" {
		t.Errorf("the root is not the old one (-before +after):\n%s", diff)
	}
	if j, err := Pending(k.n.h.Root); j != nil || err != nil {
		t.Errorf("a journal is left: %+v, %v", j, err)
	}
}

// TestNothingIsStoppedThatWasNotRestarted: a run that repairs a KillMode dies before systemd
// has read the new unit; a stop by the old one would kill what runs.
func TestNothingIsStoppedThatWasNotRestarted(t *testing.T) {
	for _, point := range []string{"reload", "restart"} {
		t.Run("killed before the "+point, func(t *testing.T) {
			k, upgrade := upgrading(t, "control-group")
			before := k.n.exactly("/proc", StateDir)
			k.before = point
			dies(t, upgrade)
			// A restart about to be given cannot be told from one that was: the daemon is stopped
			// by the unit of the run, which lets containers live.
			got, err := k.recover(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			if k.killed || point == "reload" && (slices.Contains(k.orders, "stop") || len(got.Restarted)+len(got.Warnings) > 0) {
				t.Errorf("containers killed: %v; orders %q, %+v", k.killed, k.orders, got)
			}
			if k.active != "active" || k.program != "daemon one" {
				t.Errorf("%q is %s", k.program, k.active)
			}
			k.isOld(t, before)
		})
	}
}

// TestRecoveryLeavesADaemonWhoseStopKills: somebody has put in a KillMode since the restart.
func TestRecoveryLeavesADaemonWhoseStopKills(t *testing.T) {
	for _, dead := range []string{"", "reload"} {
		t.Run("killed again at "+dead, func(t *testing.T) {
			k, upgrade := upgrading(t, "process")
			before := k.n.exactly("/proc", StateDir)
			k.after = "restart"
			dies(t, upgrade)
			k.loaded = strings.Replace(k.loaded, "KillMode=process", "KillMode=mixed", 1)
			k.orders = nil
			if dead != "" {
				k.before = dead
				dies(t, func() error { _, err := k.recover(t, nil); return err })
			}
			got, err := k.recover(t, nil)
			if err != nil {
				t.Fatal(err)
			}
			if k.killed || slices.Contains(k.orders, "stop") || k.program != "daemon two" || len(got.Restarted) > 0 {
				t.Errorf("killed %v, orders %q, %q runs, restarted %q", k.killed, k.orders, k.program, got.Restarted)
			}
			said := fmt.Sprint(got.Warnings)
			if !strings.Contains(said, "containerd.service goes on with what the run had put into place, until its next restart: a stop would have killed 1 container (pod default/web): KillMode=mixed") {
				t.Errorf("warnings: %s", said)
			}
			k.isOld(t, before)
		})
	}
}

// TestUndoLeavesADaemonWhoseStopKills, which an undo in the run itself does too.
func TestUndoLeavesADaemonWhoseStopKills(t *testing.T) {
	k, upgrade := upgrading(t, "process")
	before := k.n.exactly("/proc", StateDir)
	k.n.opt.writer = failing(func(op, path string) error {
		if op == "create" && strings.Contains(path, ".receipt.json.") {
			k.loaded = strings.Replace(k.loaded, "KillMode=process", "KillMode=control-group", 1)
			return syscall.EIO
		}
		return nil
	})
	err := upgrade()
	var reverted *RevertedError
	if !errors.As(err, &reverted) || !strings.Contains(err.Error(), "containerd.service goes on with what the run had put into place") {
		t.Errorf("apply = %v", err)
	}
	if k.killed || slices.Contains(k.orders, "stop") {
		t.Errorf("containers killed: %v; orders %q", k.killed, k.orders)
	}
	k.isOld(t, before)
}

// TestUndoTellsOfLostContainers: those that do not survive its own restart.
func TestUndoTellsOfLostContainers(t *testing.T) {
	for _, verb := range []string{"apply", "recover"} {
		t.Run(verb, func(t *testing.T) {
			k, upgrade := upgrading(t, "process")
			before := k.n.exactly("/proc", StateDir)
			dead := false
			k.n.opt.Services = &losing{k}
			k.n.opt.writer = failing(func(op, path string) error {
				if dead = dead || op == "create" && strings.Contains(path, ".receipt.json."); dead && verb == "recover" {
					panic(errDead)
				} else if dead && strings.Contains(path, ".receipt.json.") && op == "create" {
					return syscall.EIO
				}
				return nil
			})
			var err error
			if verb == "apply" {
				err = upgrade()
			} else {
				dies(t, upgrade)
				_, err = k.recover(t, nil)
			}
			var stranded *StrandedError
			if !errors.As(err, &stranded) || !strings.Contains(err.Error(), "1 of 1 tasks did not survive the restart of containerd.service: default/web/nginx") {
				t.Errorf("%s = %v, want it to tell of the container", verb, err)
			}
			k.isOld(t, before)
		})
	}
}

// losing is a systemd whose stops end a shim, whatever the KillMode.
type losing struct{ *killing }

// Stop ends a shim.
func (l *losing) Stop(ctx context.Context, u string) error {
	l.lost, l.tasks = l.tasks, nil
	return l.killing.Stop(ctx, u)
}

// TestRecoverUnderPods: hours after the run was interrupted, pods have come to depend on what
// it started.
func TestRecoverUnderPods(t *testing.T) {
	pod := func(m *machine, created time.Time) {
		m.tasks = []daemon.Task{{Namespace: kubernetes, ID: "b", PID: 19, Status: "running"}}
		m.containers = []daemon.Container{{Namespace: kubernetes, ID: "b", Name: "default/later/nginx", Created: created}}
	}
	tests := map[string]struct {
		verb string
		pods func(m *machine)
		want string // of the refusal; "" when there is none
	}{
		"install, with pods":      {"install", func(m *machine) { pod(m, m.n.h.Now()) }, "containerd.service was down before, runs now and would be stopped, and 1 container (pod default/later) run under it"},
		"install, without":        {"install", func(m *machine) {}, ""},
		"upgrade, with new pods":  {"upgrade", func(m *machine) { pod(m, m.n.h.Now().Add(time.Hour)) }, "goes back from 2.0.0 to 1.0.0, and 2.0.0 made 1 container (pod default/later)"},
		"upgrade, with older":     {"upgrade", func(m *machine) {}, ""},
		"upgrade, new one is ill": {"upgrade", func(m *machine) { pod(m, m.n.h.Now().Add(time.Hour)); m.active = "failed" }, ""},
	}
	for _, name := range sortedKeys(tests) {
		t.Run(name, func(t *testing.T) {
			tt := tests[name]
			m, do := newMachine(t, tt.verb)
			before := m.n.exactly("/proc", StateDir)
			d := &dying{machine: m, after: map[string]string{"install": "start", "upgrade": "restart"}[tt.verb]}
			m.n.opt.Services = d
			dies(t, do)
			m.n.opt.Services = m
			tt.pods(m)
			k := &killing{machine: m}
			if tt.want != "" {
				left, program := m.n.exactly("/proc"), m.program
				m.outside = &outside{}
				_, err := k.recover(t, nil)
				var stranded *StrandedError
				if err == nil || errors.As(err, &stranded) || !strings.Contains(err.Error(), tt.want) || !strings.Contains(err.Error(), "--with-running-pods") {
					t.Fatalf("recover = %v, want it refused: %s", err, tt.want)
				}
				if err := do(); err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("the next apply = %v, want it refused", err)
				}
				if slices.ContainsFunc(m.calls, func(c string) bool { return c == "stop" || c == "start" || c == "restart" || c == "reload" }) || m.program != program {
					t.Errorf("systemd was told %q, and %q runs", m.calls, m.program)
				}
				if diff := cmp.Diff(left, m.n.exactly("/proc")); diff != "" {
					t.Errorf("something was changed (-before +after):\n%s", diff)
				}
			}
			got, err := k.recover(t, func(o *RecoverOptions) { o.WithRunningPods = tt.want != "" })
			if err != nil || len(m.wrong) > 0 {
				t.Fatal(err, m.wrong)
			}
			if said := fmt.Sprint(got.Warnings); !strings.Contains(said, tt.want) {
				t.Errorf("warnings %q, want %q", said, tt.want)
			}
			k.isOld(t, before)
		})
	}
}

// TestPowerCutInUninstall: when systemd looks what to start, the unit and its link are away.
func TestPowerCutInUninstall(t *testing.T) {
	for name, tt := range map[string]struct {
		boot   string // the kernel's ID of the next boot
		active string
		opt    bool
		want   []string
	}{
		"another kernel":           {"two\n", "inactive", false, []string{"reload", "start without waiting"}},
		"the same kernel":          {"one\n", "inactive", true, []string{"reload", "start without waiting"}},
		"the same, the daemon ran": {"one\n", "active", true, []string{"reload"}},
	} {
		t.Run(name, func(t *testing.T) {
			m, uninstall := newMachine(t, "uninstall")
			before := m.n.exactly("/proc", StateDir)
			m.n.write("/proc/sys/kernel/random/boot_id", "one\n")
			m.n.opt.Services = &dying{machine: m, before: "reload"}
			dies(t, uninstall)
			if _, err := m.n.h.Root.Lstat(daemonUnit); !errors.Is(err, fs.ErrNotExist) {
				t.Fatalf("the unit is there still: %v", err)
			}
			m.n.write("/proc/sys/kernel/random/boot_id", tt.boot)
			m.n.opt.Services, m.active, m.program, m.outside = m, tt.active, "", &outside{}
			k := &killing{machine: m}
			got, err := k.recover(t, func(o *RecoverOptions) { o.Boot = tt.opt })
			if err != nil {
				t.Fatal(err)
			}
			orders := slices.DeleteFunc(slices.Clone(m.calls), func(c string) bool { return c == "properties" || strings.HasPrefix(c, "run modprobe") })
			if !slices.Equal(orders, tt.want) {
				t.Errorf("systemd was told %q, want %q: a start that is waited for never comes", orders, tt.want)
			}
			if said := fmt.Sprint(got.Warnings); strings.Contains(said, "goes on with what the run had put into place") != (tt.active == "active") {
				t.Errorf("warnings %q", said)
			}
			k.isOld(t, before)
		})
	}
}

// TestSecondRecoveryMakesDurable what the first one did before it was killed.
func TestSecondRecoveryMakesDurable(t *testing.T) {
	n := newNode(t)
	n.apply()
	n.change(func() {
		n.file(config).Content = []byte("version = 3\n")
		n.state.Artifacts[1].Version = "1.1.0"
		n.state.Files = append(n.state.Files, desired.File{Path: "/etc/new/dir/file", Content: []byte("x"), Mode: 0o600})
		n.drop("/etc/containerd/certs.d/docker.io/hosts.toml")
		n.drop("/etc/containerd/certs.d/docker.io/secret.toml")
	})
	dead := false
	n.opt.writer = failing(func(op, path string) error {
		if dead = dead || op == "rename" && strings.HasSuffix(path, "/receipt.json"); dead {
			return errDead
		}
		return nil
	})
	if _, err := n.tryApply(t.Context()); !errors.Is(err, errDead) {
		t.Fatal(err)
	}
	var changed []string
	dead = false
	n.opt.writer = failing(func(op, path string) error {
		// Its first directory that becomes durable is its end.
		if fi, err := os.Lstat(path); dead || op == "fsync" && err == nil && fi.IsDir() && len(changed) > 0 && strings.HasPrefix(changed[len(changed)-1], "rmdir") {
			dead = true
			return errDead
		}
		if op == "rename" || op == "remove" || op == "mkdir" || op == "rmdir" {
			changed = append(changed, op+" "+path)
		}
		return nil
	})
	if _, err := Recover(t.Context(), n.h, n.recovery()); !errors.Is(err, errDead) {
		t.Fatal(err)
	}
	if len(changed) < 5 {
		t.Fatalf("the first recovery changed only %q", changed)
	}
	synced := map[string]bool{}
	n.opt.writer = failing(func(op, path string) error {
		if op == "fsync" {
			synced[path] = true
		}
		if op == "remove" && strings.HasSuffix(path, JournalPath) {
			for _, c := range changed {
				_, at, _ := strings.Cut(c, " ")
				dir := filepath.Dir(at)
				if _, err := os.Lstat(dir); err == nil && !synced[dir] {
					t.Errorf("the journal goes before it is durable that the first recovery did: %s", c)
				}
			}
		}
		return nil
	})
	if got, err := Recover(t.Context(), n.h, n.recovery()); err != nil || got.Outcome != WasReverted {
		t.Errorf("recover = %+v, %v", got, err)
	}
	if n.read(config) != "version = 2\n" {
		t.Errorf("config is %q", n.read(config))
	}
}

// TestOnlyServicesLetTheJournalEnd: while a file, a mode or a directory is not back, it is
// known what it was.
func TestOnlyServicesLetTheJournalEnd(t *testing.T) {
	const runc = "/usr/local/sbin/runc"
	fault := errors.New("injected fault")
	for name, tt := range map[string]struct {
		change func(n *node)
		fails  func(op, path string) bool // in the revert
		back   func(n *node) string       // "" when it is
	}{
		"a repair": {
			func(n *node) { n.chmod(runc, 0o700) },
			func(op, path string) bool { return op == "chmod" && strings.HasSuffix(path, runc) },
			func(n *node) string {
				fi, err := n.h.Root.Lstat(runc)
				if err != nil || fi.Mode().Perm() != 0o700 {
					return runc
				}
				return ""
			},
		},
		"a directory that goes": {
			func(n *node) {
				n.drop("/etc/containerd/certs.d/docker.io/hosts.toml")
				n.drop("/etc/containerd/certs.d/docker.io/secret.toml")
			},
			func(op, path string) bool { return op == "chmod" && strings.HasSuffix(path, "/certs.d/docker.io") },
			nil,
		},
		"a directory that was made": {
			func(n *node) {
				n.state.Files = append(n.state.Files, desired.File{Path: "/etc/new/dir/file", Content: []byte("x"), Mode: 0o600})
			},
			func(op, path string) bool { return op == "rmdir" && strings.HasSuffix(path, "/etc/new/dir") },
			nil,
		},
		"a directory's entries": {
			func(n *node) { n.file(config).Content = []byte("version = 3\n") },
			func(op, path string) bool { return op == "fsync" && strings.HasSuffix(path, "/etc/containerd") },
			nil,
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.apply()
			n.change(func() { tt.change(n) })
			before := n.tree(false, StateDir)
			reverting := false
			n.opt.writer = failing(func(op, path string) error {
				if op == "create" && strings.Contains(path, ".receipt.json.") {
					reverting = true
					return fault
				}
				if reverting && tt.fails(op, path) {
					return fault
				}
				return nil
			})
			_, err := n.tryApply(t.Context())
			var stranded *StrandedError
			if !errors.As(err, &stranded) || stranded.Journal != JournalPath {
				t.Fatalf("apply = %v, want it stranded with a journal", err)
			}
			n.opt.writer = nil
			if _, err := Recover(t.Context(), n.h, n.recovery()); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, n.tree(false, StateDir)); diff != "" {
				t.Errorf("recover (-before +after):\n%s", diff)
			}
			if tt.back != nil && tt.back(n) != "" {
				t.Errorf("%s is not back", tt.back(n))
			}
		})
	}
}

// TestAbandonFails: what cannot be taken back before the commit leaves a journal, and whoever
// started the run gets to know.
func TestAbandonFails(t *testing.T) {
	n := newNode(t)
	n.install("nodeprep")
	n.apply()
	n.install("nodeprep two")
	n.change(func() { n.state.Artifacts[1].Version = "9.9.9" }) // nobody has it
	placed := false
	n.opt.writer = failing(func(op, path string) error {
		if op == "rename" && path == filepath.Join(n.dir, systemd.Program) {
			if placed {
				return syscall.EIO
			}
			placed = true
		}
		return nil
	})
	_, err := n.tryApply(t.Context())
	var s *StrandedError
	if !errors.As(err, &s) || s.Phase != PhaseStage || len(s.Places) != 1 || !strings.HasPrefix(s.Places[0], systemd.Program+": what was there before is "+StateDir) || s.Journal != JournalPath {
		t.Fatalf("apply = %v, want it stranded", err)
	}
	if want := `"nodeprep recover --root ` + n.dir + `" brings them back`; !strings.Contains(err.Error(), want) {
		t.Errorf("%v; want %s", err, want)
	}
	n.opt.writer = nil
	if _, err := Recover(t.Context(), n.h, n.recovery()); err != nil || n.read(systemd.Program) != "nodeprep" {
		t.Errorf("recover = %v, nodeprep is %q", err, n.read(systemd.Program))
	}
}

// TestRecoverWithoutAFilesystem: what is out of sight is not taken for what was put back.
func TestRecoverWithoutAFilesystem(t *testing.T) {
	cut := func(n *node) {
		n.opt.writer = failing(func(op, path string) error {
			if op == "rename" && strings.HasSuffix(path, "/receipt.json") {
				panic(errDead)
			}
			return nil
		})
		dies(n.t, func() error { _, err := n.tryApply(n.t.Context()); return err })
		n.opt.writer = nil
	}
	refused := func(n *node, want string) {
		n.t.Helper()
		left := names(n)
		got, err := Recover(n.t.Context(), n.h, n.recovery())
		var stranded *StrandedError
		if err == nil || errors.As(err, &stranded) || !strings.Contains(err.Error(), want) {
			n.t.Fatalf("recover = %+v, %v; want it refused: %s", got, err, want)
		}
		if !slices.Equal(left, names(n)) {
			n.t.Error("something was changed")
		}
	}
	t.Run("a directory is missing", func(t *testing.T) {
		n := newNode(t)
		n.write("/usr/local/bin/x", "")
		n.write("/usr/local/sbin/x", "")
		before := n.tree(false)
		cut(n)
		usr := filepath.Join(n.dir, "usr")
		if err := errors.Join(os.Rename(usr, usr+"-elsewhere"), os.Mkdir(usr, 0o755)); err != nil {
			t.Fatal(err)
		}
		refused(n, "/usr/local/bin is not there: is its filesystem mounted?")
		if err := errors.Join(os.Remove(usr), os.Rename(usr+"-elsewhere", usr)); err != nil {
			t.Fatal(err)
		}
		if _, err := Recover(t.Context(), n.h, n.recovery()); err != nil {
			t.Fatal(err)
		}
		n.same(before, false, "recover")
	})
	t.Run("only its mount point is there", func(t *testing.T) {
		n := newNode(t)
		real := filepath.Join(n.dir, "usr")
		if err := os.Mkdir(real, 0o755); err != nil {
			t.Fatal(err)
		}
		n.bind("/usr")
		over := filepath.Join(n.dir, "usr")
		cut(n)
		if err := unix.Unmount(over, unix.MNT_DETACH); err != nil {
			t.Fatal(err)
		}
		refused(n, "/usr is not mounted, and was when the run began")
		if err := unix.Mount(real, real, "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		if _, err := Recover(t.Context(), n.h, n.recovery()); err != nil {
			t.Fatal(err)
		}
		if _, err := n.h.Root.Lstat("/usr/local"); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("/usr/local is left: %v", err)
		}
	})
}

// TestWhatStandsInTheWayOfKeptFiles is neither read for ever nor copied into the root.
func TestWhatStandsInTheWayOfKeptFiles(t *testing.T) {
	for name, tt := range map[string]struct {
		put  func(n *node, at string)
		want string
	}{
		"a fifo":   {func(n *node, at string) { n.fifo(at) }, "it is a named pipe"},
		"a link":   {func(n *node, at string) { n.symlink("/etc/shadow", at) }, "too many levels of symbolic links"},
		"a larger": {func(n *node, at string) { n.write(at, strings.Repeat("x", 1<<20)) }, "it has 1048576 bytes, and had 12"},
		"a device": {func(n *node, at string) {
			if err := unix.Mknod(filepath.Join(n.dir, at), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))); err != nil {
				n.t.Skipf("no device can be made here, so that one in a root is not tested: %v", err)
			}
		}, "it is a device"},
	} {
		t.Run(name, func(t *testing.T) {
			n := interrupted(t)
			at := ""
			n.edit(JournalPath, func(m map[string]any) {
				for _, c := range m["changes"].([]any) {
					if c := c.(map[string]any); c["path"] == config {
						k := c["kept"].(map[string]any)
						k["copied"], at = true, k["path"].(string)
					}
				}
			})
			n.remove(at)
			tt.put(n, at)
			_, err := Recover(t.Context(), n.h, n.recovery())
			var stranded *StrandedError
			if !errors.As(err, &stranded) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("recover = %v, want it stranded: %s", err, tt.want)
			}
			if n.read(config) != "version = 3\n" {
				t.Errorf("config is %q", n.read(config))
			}
		})
	}
}

// TestRecoverTellsOfStoppedTasks: uninstall --force has stopped them, and is put back.
func TestRecoverTellsOfStoppedTasks(t *testing.T) {
	m, uninstall := newMachine(t, "uninstall --force")
	before := m.n.exactly("/proc", StateDir)
	m.n.opt.writer = failing(func(op, path string) error {
		if op == "remove" && strings.HasSuffix(path, daemonUnit) {
			panic(errDead)
		}
		return nil
	})
	if err := os.RemoveAll(filepath.Join(m.n.dir, "/proc/77")); err != nil {
		t.Fatal(err)
	}
	dies(t, uninstall)
	k := &killing{machine: m}
	got, err := k.recover(t, nil)
	if err != nil || !strings.Contains(fmt.Sprint(got.Warnings), "tasks that were stopped stay stopped") {
		t.Errorf("recover = %+v, %v; want to be told of the tasks", got, err)
	}
	if m.program != "daemon two" {
		t.Errorf("%q runs", m.program)
	}
	k.isOld(t, before)
}

// TestSettingsAfterAPowerCut: at boot the kernel was given those of a run that is put back.
func TestSettingsAfterAPowerCut(t *testing.T) {
	const forward = "/proc/sys/net/ipv4/ip_forward"
	m, install := newMachine(t, "install")
	m.n.write("/proc/sys/kernel/random/boot_id", "one\n")
	m.n.opt.Services = &dying{machine: m, after: "start"}
	dies(t, install)
	m.n.write("/proc/sys/kernel/random/boot_id", "two\n")
	m.n.opt.Services, m.active, m.program = m, "inactive", ""
	if m.n.read(forward) != "1\n" { // systemd-sysctl
		t.Fatalf("ip_forward is %q", m.n.read(forward))
	}
	if _, err := (&killing{machine: m}).recover(t, nil); err != nil {
		t.Fatal(err)
	}
	if m.n.read(forward) != "0\n" {
		t.Errorf("ip_forward is %q, want what it was", m.n.read(forward))
	}
}

// TestRecoverAsksForSystemd: files alone are half of a run that had to do with services.
func TestRecoverAsksForSystemd(t *testing.T) {
	m, upgrade := newMachine(t, "upgrade")
	m.n.opt.Services = &dying{machine: m, after: "restart"}
	dies(t, upgrade)
	m.n.write("/run/systemd/system/x", "")
	left := m.n.exactly("/proc")
	m.n.opt.Services = nil
	if _, err := (&killing{machine: m}).recover(t, nil); err == nil || !strings.Contains(err.Error(), "systemd runs here and there is no connection to it") {
		t.Errorf("recover = %v", err)
	}
	if diff := cmp.Diff(left, m.n.exactly("/proc")); diff != "" {
		t.Errorf("something was changed:\n%s", diff)
	}
}

// TestCopiesKeepAttributes: a capability that somebody gave a program of his survives an
// adoption and its end on another filesystem.
func TestCopiesKeepAttributes(t *testing.T) {
	n := newNode(t)
	n.write(config, "version = 1 # mine\n")
	real := filepath.Join(n.dir, config)
	if err := unix.Lsetxattr(real, "user.note", []byte("mine"), 0); err != nil {
		t.Skipf("this filesystem has no extended attributes, so that copies of them are not tested: %v", err)
	}
	n.opt.Adopt = true
	n.opt.writer = failing(func(op, path string) error {
		switch {
		case op == "link":
			return unix.EXDEV
		case op == "create" && strings.Contains(path, ".receipt.json."):
			return syscall.EIO
		}
		return nil
	})
	_, err := n.tryApply(t.Context())
	var reverted *RevertedError
	if !errors.As(err, &reverted) {
		t.Fatalf("apply = %v", err)
	}
	value := make([]byte, 16)
	size, err := unix.Lgetxattr(real, "user.note", value)
	if err != nil || string(value[:size]) != "mine" {
		t.Errorf("the attribute is %q, %v", value[:max(size, 0)], err)
	}
}
