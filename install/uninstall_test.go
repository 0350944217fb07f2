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
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/systemd"
)

// exactly lists everything under the root, inodes and times too; but a link that was given
// back has an inode of its own, and so has runc, which some tests give back before.
func (n *node) exactly(but ...string) []string {
	n.t.Helper()
	all := n.tree(true, but...)
	for i, line := range all {
		if line[0] == 'L' || strings.Contains(line, "/sbin/runc ") {
			all[i] = line[:strings.LastIndexByte(line, ' ')]
		}
	}
	return all
}

// asBefore fails the test when the root differs from what exactly said.
func (n *node) asBefore(before []string, what string) {
	n.t.Helper()
	if diff := cmp.Diff(before, n.exactly()); diff != "" {
		n.t.Errorf("%s: the root changed (-before +after):\n%s", what, diff)
	}
}

func (n *node) planUninstall(un UninstallOptions) *Plan {
	n.t.Helper()
	plan, err := DiffUninstall(n.t.Context(), n.h, n.receipt(), n.opt.DiffOptions, un)
	if err != nil {
		n.t.Fatal(err)
	}
	return plan
}

func (n *node) tryUninstall(un UninstallOptions) (*Result, error) {
	n.t.Helper()
	return Apply(n.t.Context(), n.h, n.planUninstall(un), n.opt)
}

// uninstall leads to a root without a receipt.
func (n *node) uninstall(un UninstallOptions) *Result {
	n.t.Helper()
	res, err := n.tryUninstall(un)
	if err != nil {
		n.t.Fatalf("uninstall: %v", err)
	}
	if res.Generation != 0 || len(res.Changed) == 0 {
		n.t.Errorf("uninstall: %+v", res)
	}
	return res
}

// install makes nodeprep's own files part of the state, with that content as the program.
func (n *node) install(program string) {
	n.t.Helper()
	file := filepath.Join(n.t.TempDir(), "nodeprep")
	if err := os.WriteFile(file, []byte(program), 0o700); err != nil {
		n.t.Fatal(err)
	}
	n.drop(systemd.Program)
	n.drop(systemd.RecoverUnitPath)
	n.state.Units = slices.DeleteFunc(slices.Clone(n.state.Units), func(u desired.Unit) bool { return u.Name == systemd.RecoverUnitName })
	n.state.Files = append(n.state.Files, systemd.RecoverUnit(diag.Origin{}),
		desired.File{Path: systemd.Program, Source: file, Mode: 0o755, First: true, Format: desired.FormatRaw})
	n.state.Units = append(n.state.Units, desired.Unit{Name: systemd.RecoverUnitName, Enabled: true})
}

// foreign puts things on the root that were there before nodeprep, with owners, modes
// and times of their own.
func (n *node) foreign() {
	n.t.Helper()
	n.write("/etc/fstab", "x")
	n.write("/usr/bin/other", "x")
	n.write("/etc/containerd/conf.d/10-theirs.toml", "x")
	n.write(config, "version = 1\n")
	n.write("/usr/local/sbin/runc", "their runc")
	n.symlink("/opt/hosts.toml", "/etc/containerd/certs.d/docker.io/hosts.toml")
	when := time.Date(2019, 8, 7, 6, 5, 4, 321, time.UTC)
	for p, mode := range map[string]os.FileMode{config: 0o640, "/usr/local/sbin/runc": 0o755 | fs.ModeSetuid} {
		real := filepath.Join(n.dir, p)
		if n.h.UID == 0 {
			if err := os.Chown(real, 123, 456); err != nil {
				n.t.Fatal(err)
			}
		}
		if err := errors.Join(os.Chmod(real, mode), os.Chtimes(real, when, when)); err != nil {
			n.t.Fatal(err)
		}
	}
}

// TestUninstallLeavesNothing: what was done in between does not matter.
func TestUninstallLeavesNothing(t *testing.T) {
	histories := map[string]func(n *node){
		"apply":  func(n *node) { n.apply() },
		"thrice": func(n *node) { n.generations() },
		"rolled back": func(n *node) {
			n.generations()
			n.rollback(2)
		},
		"back and forth": func(n *node) {
			n.generations()
			n.rollback(3)
			n.rollback(0)
		},
		"removed by hand": func(n *node) {
			n.apply()
			n.remove(config)
			n.remove("/usr/local/bin/ctr")
			n.remove("/etc/systemd/system/multi-user.target.wants/containerd.service")
		},
		"a newer nodeprep": func(n *node) {
			n.apply()
			n.change(func() { n.install("another nodeprep") })
			n.apply()
		},
		"failed, then applied": func(n *node) {
			n.opt.writer = failing(func(op, path string) error {
				if op == "rename" && strings.HasSuffix(path, "receipt.json") {
					return unix.EIO
				}
				return nil
			})
			if _, err := n.tryApply(t.Context()); err == nil {
				t.Fatal("it did not fail")
			}
			n.opt.writer = nil
			n.apply()
		},
		"a cache": func(n *node) {
			n.apply()
			n.write(CacheDir+"/abc-containerd.tar.gz", "x")
			n.write(StateDir+"/result.json", "{}")
		},
	}
	for _, name := range sortedKeys(histories) {
		for _, on := range []string{"empty", "foreign", "live"} {
			t.Run(name+" "+on, func(t *testing.T) {
				n := nodeAt(t, fastDir(t))
				n.install("nodeprep")
				if on != "empty" {
					n.foreign()
					n.opt.Adopt = true
				}
				if on == "live" {
					n.live()
				}
				before := n.exactly()
				histories[name](n)
				n.opt.Adopt = false
				plan := n.planUninstall(UninstallOptions{})
				if err := plan.Refusal(); err != nil {
					t.Fatal(err)
				}
				res := n.uninstall(UninstallOptions{})
				if len(res.Warnings) > 0 {
					t.Errorf("warnings %v", res.Warnings)
				}
				n.asBefore(before, name)
				if plan := n.planUninstall(UninstallOptions{}); !plan.Empty() {
					t.Errorf("a second uninstall would %v", actions(plan))
				}
				if _, err := n.tryUninstall(UninstallOptions{}); err != nil {
					t.Errorf("a second uninstall: %v", err)
				}
				n.asBefore(before, "second uninstall")
			})
		}
	}
}

// TestFailedFirstRunLeavesNothing, of nodeprep's own files neither.
func TestFailedFirstRunLeavesNothing(t *testing.T) {
	tests := map[string]func(n *node){
		"no such release": func(n *node) { n.state.Artifacts[1].Version = "9.0.0" },
		"bad archive":     func(n *node) { n.releases["runc 1.0.0"] = map[string]string{"runc": "half", "BAD": "sha256 mismatch"} },
		"no space":        func(n *node) { n.opt.Artifacts = huge{n.releases} },
		"foreign file":    func(n *node) { n.write(config, "x") },
		"no source":       func(n *node) { n.file(systemd.Program).Source = "/no/such/nodeprep" },
		"health":          func(n *node) { n.daemon.sick["1.0.0"] = errors.New("ill") },
		"start":           func(n *node) { n.services.fail["start containerd.service"] = errors.New("203") },
		"reload":          func(n *node) { n.services.fail["reload"] = errors.New("no bus") },
		"preflight":       func(n *node) { n.opt.Preflight = func(context.Context) error { return errors.New("clock") } },
		"own program": func(n *node) {
			n.opt.writer = failing(func(op, path string) error {
				if op == "rename" && path == filepath.Join(n.dir, systemd.Program) {
					return unix.EIO
				}
				return nil
			})
		},
		"own unit": func(n *node) {
			n.opt.writer = failing(func(op, path string) error {
				if op == "rename" && path == filepath.Join(n.dir, systemd.RecoverUnitPath) {
					return unix.EIO
				}
				return nil
			})
		},
	}
	for _, name := range sortedKeys(tests) {
		for _, existing := range []bool{false, true} {
			t.Run(fmt.Sprint(name, existing), func(t *testing.T) {
				n := nodeAt(t, fastDir(t))
				n.live()
				n.install("nodeprep")
				if existing {
					n.write("/var/lib/other/x", "x")
					n.write("/etc/systemd/system/x.service", "x")
				}
				tests[name](n)
				before := n.tree(true)
				rec := n.receipt()
				plan, err := Diff(t.Context(), n.h, n.state, rec, n.opt.DiffOptions)
				if err == nil {
					_, err = Apply(t.Context(), n.h, plan, n.opt)
				}
				if err == nil {
					t.Fatal("it did not fail")
				}
				n.same(before, true, name)
			})
		}
	}
}

// TestUninstallLeavesEdited: what somebody changed stays, and what was there before
// comes beside it.
func TestUninstallLeavesEdited(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.install("nodeprep")
	n.foreign()
	n.opt.Adopt = true
	before := n.exactly()
	n.apply()
	const secret = "/etc/containerd/certs.d/docker.io/secret.toml"
	n.write(config, "edited")
	n.write(secret, "edited too")
	plan := n.planUninstall(UninstallOptions{})
	if it := plan.find(KindFile, config+savedEnding); it == nil || it.Action != Create {
		t.Errorf("plan %v", actions(plan))
	}
	var warned []string
	for _, w := range plan.Warnings {
		warned = append(warned, w.File)
	}
	if slices.Sort(warned); !slices.Equal(warned, []string{secret, config}) {
		t.Errorf("warned of %v", warned)
	}
	n.uninstall(UninstallOptions{})
	if got := n.read(config); got != "edited" {
		t.Errorf("config %q", got)
	}
	if got := n.read(config + savedEnding); got != "version = 1\n" {
		t.Errorf("what was there: %q", got)
	}
	n.remove(secret)
	n.remove(config)
	real := filepath.Join(n.dir, config)
	if err := os.Rename(real+savedEnding, real); err != nil {
		t.Fatal(err)
	}
	n.asBefore(before, "but for these")

	t.Run("no room for it", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.foreign()
		n.opt.Adopt = true
		n.apply()
		n.write(config, "edited")
		n.write(config+savedEnding, "in the way")
		before := n.tree(true)
		_, err := n.tryUninstall(UninstallOptions{})
		if err == nil || !strings.Contains(err.Error(), config+savedEnding+": stands in the way") {
			t.Errorf("uninstall = %v", err)
		}
		n.same(before, true, "refused")
	})
}

// TestUninstallLeavesForeign: directories of ours in which somebody else has something.
func TestUninstallLeavesForeign(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.live()
	n.install("nodeprep")
	before := n.tree(false)
	n.apply()
	theirs := []string{"/etc/containerd/conf.d/99-other.toml", "/usr/local/bin/tool", StateDir + "/notes.txt"}
	for _, p := range theirs {
		n.write(p, "theirs")
	}
	n.write("/var/lib/containerd/io.containerd/meta.db", "data")
	res := n.uninstall(UninstallOptions{})
	text := fmt.Sprint(res.Warnings)
	for _, p := range theirs {
		if got := n.read(p); got != "theirs" {
			t.Errorf("%s = %q", p, got)
		}
		if dir := filepath.Dir(p); !strings.Contains(text, dir) {
			t.Errorf("nobody is told that %s stays: %s", dir, text)
		}
	}
	if got := n.read("/var/lib/containerd/io.containerd/meta.db"); got != "data" {
		t.Errorf("containerd's data is %q", got)
	}
	if entries, err := n.h.Root.ReadDir(StateDir); err != nil || len(entries) != 1 {
		t.Errorf("%s holds %v, %v", StateDir, entries, err)
	}
	for _, p := range append(theirs, "/var/lib/containerd/io.containerd/meta.db") {
		n.remove(p)
		for dir := filepath.Dir(p); dir != "/"; dir = filepath.Dir(dir) {
			if os.Remove(filepath.Join(n.dir, dir)) != nil {
				break
			}
		}
	}
	if diff := cmp.Diff(before, n.tree(false)); diff != "" {
		t.Errorf("but for that (-before +after):\n%s", diff)
	}
}

// TestUninstallPurge removes containerd's data, and nothing that links or mounts lead to.
func TestUninstallPurge(t *testing.T) {
	fill := func(n *node, root, state string) {
		n.write(root+"/io.containerd.content/blobs/x", "x")
		n.write(root+"/a/b/c", "x")
		n.symlink("/srv/precious", root+"/link")
		n.symlink("/srv/precious/file", root+"/a/link")
		n.write(state+"/io.containerd.runtime/x", "x")
		n.fifo(state + "/fifo")
		n.write("/srv/precious/file", "precious")
	}
	gone := func(n *node, p string) {
		n.t.Helper()
		if _, err := n.h.Root.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			n.t.Errorf("%s is there: %v", p, err)
		}
	}
	t.Run("default", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.apply()
		fill(n, "/var/lib/containerd", "/run/containerd")
		plan := n.planUninstall(UninstallOptions{Purge: true})
		if got := plan.Purges(); !slices.Equal(got, []string{"/var/lib/containerd", "/run/containerd"}) {
			t.Errorf("purges %v", got)
		}
		n.uninstall(UninstallOptions{Purge: true})
		gone(n, "/var/lib/containerd")
		gone(n, "/run/containerd")
		if got := n.read("/srv/precious/file"); got != "precious" {
			t.Errorf("beyond a link: %q", got)
		}
		gone(n, StateDir)
	})
	t.Run("places of its own, through a link", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.state.Daemon.ConfigPath = config
		n.file(config).Content = []byte("version = 2\nroot = '/data/root'\nstate = '/data/state'\n")
		n.apply()
		fill(n, "/mnt/disk/root", "/data/state")
		n.symlink("/mnt/disk/root", "/data/root")
		n.write("/data/other", "x")
		n.write("/var/lib/containerd/x", "x")
		n.uninstall(UninstallOptions{Purge: true})
		gone(n, "/mnt/disk/root")
		gone(n, "/data/state")
		for _, p := range []string{"/data/other", "/var/lib/containerd/x", "/srv/precious/file"} {
			n.read(p)
		}
	})
	t.Run("mounts", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.apply()
		fill(n, "/var/lib/containerd", "/run/containerd")
		n.mount("/var/lib/containerd/snapshots/fs", 1<<20, 0)
		n.write("/var/lib/containerd/snapshots/fs/x", "mounted")
		n.write("/srv/precious/bound", "bound")
		n.bind("/srv/precious/bound")
		bound := filepath.Join(n.dir, "/run/containerd/bound")
		if err := os.WriteFile(bound, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount(filepath.Join(n.dir, "/srv/precious"), n.mkdir("/run/containerd/dir"), "", unix.MS_BIND, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := unix.Unmount(filepath.Join(n.dir, "/run/containerd/dir"), unix.MNT_DETACH); err != nil {
				t.Error(err)
			}
		})
		res := n.uninstall(UninstallOptions{Purge: true})
		for _, p := range []string{"/var/lib/containerd/snapshots/fs/x", "/srv/precious/file", "/srv/precious/bound", "/run/containerd/dir/file"} {
			n.read(p)
		}
		gone(n, "/var/lib/containerd/a")
		gone(n, "/run/containerd/bound")
		text := fmt.Sprint(res.Warnings)
		for _, p := range []string{"/var/lib/containerd/snapshots/fs stays", "/run/containerd/dir stays"} {
			if !strings.Contains(text, p) {
				t.Errorf("nobody is told that %s: %s", p, text)
			}
		}
	})
	for place, want := range map[string]string{"/data": "at the top of the root", "/var/lib": StateDir + " is in it", "/usr/local": "/usr/local/bin is in it"} {
		t.Run("too much: "+place, func(t *testing.T) {
			n := nodeAt(t, fastDir(t))
			n.state.Daemon.ConfigPath = config
			n.file(config).Content = fmt.Appendf(nil, "version = 2\nroot = %q\n", place)
			n.apply()
			if _, err := DiffUninstall(t.Context(), n.h, n.receipt(), n.opt.DiffOptions, UninstallOptions{Purge: true}); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("uninstall = %v, want %q", err, want)
			}
			n.uninstall(UninstallOptions{})
		})
	}
}

func (n *node) mkdir(p string) string {
	n.t.Helper()
	real := filepath.Join(n.dir, p)
	if err := os.MkdirAll(real, 0o755); err != nil {
		n.t.Fatal(err)
	}
	return real
}

// TestUninstallStopsFirst: the unit stops before a file goes, systemd forgets it after.
func TestUninstallStopsFirst(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.live()
	n.install("nodeprep")
	before := n.tree(true)
	n.apply()
	n.services.did = nil
	n.opt.writer = &writer{chown: n.h.UID == 0, before: func(_ int64, op, path string) error {
		ours := !strings.Contains(path, ".nodeprep-") && !strings.HasPrefix(path, filepath.Join(n.dir, StateDir))
		if (op == "remove" || op == "rename") && ours && !slices.Contains(n.services.did, "stop containerd.service") {
			t.Errorf("%s %s before the unit is stopped", op, path)
		}
		return nil
	}}
	n.uninstall(UninstallOptions{})
	// Once for containerd's unit, once for nodeprep's own, which goes last.
	if want := []string{"stop containerd.service", "reload", "reload"}; !slices.Equal(n.services.did, want) {
		t.Errorf("systemd was told %v, want %v", n.services.did, want)
	}
	n.same(before, true, "uninstall")

	t.Run("stopped by hand", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.live()
		before := n.tree(true)
		n.apply()
		for _, state := range []string{"inactive", "failed"} {
			n.services.active, n.services.did = state, nil
			if got := actions(n.planUninstall(UninstallOptions{})); slices.Contains(got, "stop unit containerd.service") {
				t.Errorf("%s: %v", state, got)
			}
		}
		n.uninstall(UninstallOptions{})
		if want := []string{"reload"}; !slices.Equal(n.services.did, want) {
			t.Errorf("systemd was told %v, want %v", n.services.did, want)
		}
		n.same(before, true, "uninstall")
	})
	t.Run("another unit is given back", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.live()
		n.services.active = "active"
		n.write("/etc/systemd/system/containerd.service", "[Service]\nExecStart=/usr/bin/containerd\n")
		n.opt.Adopt = true
		before := n.tree(true)
		n.apply()
		n.opt.Adopt = false
		n.services.did = nil
		// What is given back is another version, and has no score of ours.
		n.daemon.sick["1.0.0"] = errors.New("it is 1.6.20")
		n.write("/proc/7/oom_score_adj", "0\n")
		res := n.uninstall(UninstallOptions{})
		if want := []string{"stop containerd.service", "reload", "start containerd.service"}; !slices.Equal(n.services.did, want) || len(res.Started) != 1 {
			t.Errorf("systemd was told %v, want %v; started %v", n.services.did, want, res.Started)
		}
		n.write("/proc/7/oom_score_adj", "-999\n")
		if diff := cmp.Diff(slices.DeleteFunc(before, inProc), slices.DeleteFunc(n.tree(true), inProc)); diff != "" {
			t.Errorf("uninstall (-before +after):\n%s", diff)
		}
	})
	t.Run("and did not run", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.live()
		n.write("/etc/systemd/system/containerd.service", "[Service]\nExecStart=/usr/bin/containerd\n")
		n.opt.Adopt = true
		n.apply()
		n.services.active, n.services.did = "inactive", nil
		n.uninstall(UninstallOptions{})
		if want := []string{"reload"}; !slices.Equal(n.services.did, want) {
			t.Errorf("systemd was told %v, want %v", n.services.did, want)
		}
	})
}

func inProc(line string) bool { return strings.Contains(line, " /proc") }

// down is a daemon that does not answer.
type down struct{ *fakeDaemon }

// Tasks is not told by one that is down.
func (down) Tasks(context.Context, desired.Daemon) ([]daemon.Task, error) {
	return nil, errors.New("connect to containerd: no such file")
}

// TestUninstallUnderTasks is refused with a list of them, unless they may be stopped.
func TestUninstallUnderTasks(t *testing.T) {
	setup := func(t *testing.T) *node {
		n := nodeAt(t, fastDir(t))
		n.live()
		n.apply()
		n.services.did = nil
		n.daemon.tasks = []daemon.Task{
			{Namespace: kubernetes, ID: "a", PID: 9, Status: "running"},
			{Namespace: "default", ID: "build", PID: 10, Status: "paused"},
			{Namespace: "default", ID: "over", Status: "stopped"},
		}
		n.daemon.containers = []daemon.Container{{Namespace: kubernetes, ID: "a", Name: "default/web/nginx"}}
		return n
	}
	t.Run("refused", func(t *testing.T) {
		n := setup(t)
		before := n.tree(true)
		_, err := n.tryUninstall(UninstallOptions{})
		for _, want := range []string{"2 tasks run under it", "default/web/nginx", "default/build (paused)", "--force stops them"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("uninstall = %v, want %q", err, want)
			}
		}
		n.same(before, true, "refused")
		if len(n.services.did) > 0 || n.daemon.stopped {
			t.Errorf("systemd was told %v, tasks stopped: %v", n.services.did, n.daemon.stopped)
		}
	})
	t.Run("forced", func(t *testing.T) {
		n := setup(t)
		n.uninstall(UninstallOptions{Force: true})
		if !n.daemon.stopped {
			t.Error("tasks run on")
		}
	})
	t.Run("forced, and fails", func(t *testing.T) {
		n := setup(t)
		n.services.fail["stop containerd.service"] = errors.New("timeout")
		before := n.tree(true)
		_, err := n.tryUninstall(UninstallOptions{Force: true})
		if err == nil || !strings.Contains(err.Error(), "tasks that were stopped stay stopped") {
			t.Errorf("uninstall = %v", err)
		}
		n.same(before, true, "put back")
	})
	t.Run("started since the plan", func(t *testing.T) {
		n := setup(t)
		tasks := n.daemon.tasks
		n.daemon.tasks = nil
		plan := n.planUninstall(UninstallOptions{})
		n.daemon.tasks = tasks
		before := n.tree(true)
		_, err := Apply(t.Context(), n.h, plan, n.opt)
		if err == nil || !strings.Contains(err.Error(), "tasks were started since the plan was made: 2 containers") || !strings.Contains(err.Error(), "--force") {
			t.Errorf("uninstall = %v", err)
		}
		n.same(before, true, "put back")
		if slices.Contains(n.services.did, "stop containerd.service") {
			t.Errorf("systemd was told %v", n.services.did)
		}
	})
	// The unit was stopped by hand: containers live on under their shims.
	t.Run("without their daemon", func(t *testing.T) {
		n := setup(t)
		n.opt.Daemon = down{n.daemon}
		n.services.active = "inactive"
		n.shim(77, "pod1")
		before := n.tree(true)
		_, err := n.tryUninstall(UninstallOptions{})
		if err == nil || !strings.Contains(err.Error(), "k8s.io/pod1 (shim 77)") || !strings.Contains(err.Error(), "--force") {
			t.Fatalf("uninstall = %v, want the shim", err)
		}
		n.same(before, true, "refused")
		plan := n.planUninstall(UninstallOptions{Force: true})
		if len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0].String(), "pod1") {
			t.Errorf("warnings %v", plan.Warnings)
		}
		n.uninstall(UninstallOptions{Force: true})
	})
	t.Run("a daemon that is down and has none", func(t *testing.T) {
		n := setup(t)
		n.opt.Daemon = down{n.daemon}
		n.uninstall(UninstallOptions{})
	})
}

// TestUninstallSeparateFilesystems, after a rollback there too: a large binary is never
// copied, and nothing is left at the top of its filesystem.
func TestUninstallSeparateFilesystems(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	for _, p := range []string{"/usr", "/opt", "/var"} {
		n.mount(p, 64<<20, 0)
	}
	n.install("nodeprep")
	big := func(s string) string { return strings.Repeat(s, copyLimit/len(s)+1) }
	n.write("/opt/cni/bin/bridge", big("their bridge"))
	n.opt.Adopt = true
	for v, b := range map[string]string{"1.0.0": "bridge 1", "2.0.0": "bridge 2"} {
		n.releases["cni "+v] = map[string]string{"bridge": big(b), "small": b}
	}
	n.state.Artifacts = append(n.state.Artifacts, desired.Artifact{
		Component: "cni", Version: "1.0.0", Arch: "amd64", Files: []string{"cni.tgz"},
		Members: []desired.Member{{Name: "bridge", Path: "/opt/cni/bin/bridge"}, {Name: "small", Path: "/opt/cni/bin/small"}},
	})
	n.releases["containerd 1.0.0"]["containerd"] = big("daemon 1")
	n.releases["containerd 2.0.0"]["containerd"] = big("daemon 2")
	before := n.tree(true)
	inode := func(p string) uint64 {
		fi, err := n.h.Root.Lstat(p)
		if err != nil {
			t.Fatal(err)
		}
		return fi.Sys().(*syscall.Stat_t).Ino
	}
	theirs := inode("/opt/cni/bin/bridge")
	n.apply()
	first := n.tree(false, StateDir, "/usr/.nodeprep", "/opt/.nodeprep")
	large := map[string]uint64{"/opt/cni/bin/bridge": inode("/opt/cni/bin/bridge"), "/usr/local/bin/containerd": inode("/usr/local/bin/containerd")}
	n.change(func() {
		n.state.Artifacts[0].Version, n.state.Daemon.Version, n.state.Artifacts[2].Version = "2.0.0", "2.0.0", "2.0.0"
		n.file(config).Content = []byte("version = 3\n")
	})
	n.apply()
	second := n.tree(false, StateDir, "/usr/.nodeprep", "/opt/.nodeprep")
	n.opt.Adopt = false
	written := 0
	n.opt.writer = &writer{chown: true, before: func(_ int64, op, path string) error {
		if op == "create" && (strings.Contains(path, "bridge") || strings.Contains(path, "bin/.containerd.")) {
			written++
		}
		return nil
	}}
	for i := range 2 {
		n.rollback(0)
		if diff := cmp.Diff(first, n.tree(false, StateDir, "/usr/.nodeprep", "/opt/.nodeprep")); diff != "" {
			t.Errorf("back (-want +got):\n%s", diff)
		}
		for p, ino := range large {
			if inode(p) != ino {
				t.Errorf("%d: %s is not the same file", i, p)
			}
		}
		n.clean()
		n.rollback(0)
		if diff := cmp.Diff(second, n.tree(false, StateDir, "/usr/.nodeprep", "/opt/.nodeprep")); diff != "" {
			t.Errorf("forward (-want +got):\n%s", diff)
		}
		n.clean()
	}
	for _, p := range []string{"/usr/.nodeprep", "/opt/.nodeprep"} {
		if fi, err := n.h.Root.Lstat(p); err != nil || fi.Mode() != 0o700|fs.ModeDir {
			t.Errorf("%s: %v, %v", p, fi, err)
		}
	}
	n.uninstall(UninstallOptions{})
	if written > 0 {
		t.Errorf("large files were copied %d times", written)
	}
	if inode("/opt/cni/bin/bridge") != theirs {
		t.Error("what was given back is a copy")
	}
	n.same(before, true, "uninstall")
}

// TestMissingAdoptedIsGivenBack also where it is only no longer wanted: that ours was
// removed by hand is no reason to lose theirs.
func TestMissingAdoptedIsGivenBack(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.foreign()
	n.opt.Adopt = true
	n.apply()
	n.opt.Adopt = false
	n.remove(config)
	n.remove("/usr/local/sbin/runc")
	n.change(func() {
		n.drop(config)
		n.state.Artifacts = n.state.Artifacts[:1]
	})
	n.apply()
	if got := n.read(config) + n.read("/usr/local/sbin/runc"); got != "version = 1\ntheir runc" {
		t.Errorf("given back is %q", got)
	}
	if n.receipt().Find(config) != nil {
		t.Error("it is still ours")
	}
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is to do: %v", actions(plan))
	}
	n.clean()
}

// TestReceiptSaysAll that is to be known of every path.
func TestReceiptSaysAll(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.install("nodeprep")
	n.foreign()
	n.state.Dirs = []desired.Dir{{Path: "/opt/made/dir", Mode: 0o750, Origin: diag.Origin{Path: "cni.dir"}}}
	n.opt.Adopt = true
	n.apply()
	n.change(func() { n.file(config).Content = []byte("version = 3\n") })
	n.apply()
	n.rollback(0)
	before := 0
	for _, own := range n.receipt().Owned {
		fi, err := n.h.Root.Lstat(own.Path)
		if err != nil {
			t.Error(err)
			continue
		}
		st := fi.Sys().(*syscall.Stat_t)
		if own.UID != st.Uid || own.GID != st.Gid || own.Kind != KindLink && own.Mode != permissions(fi.Mode()) {
			t.Errorf("%s: %04o of %d:%d, the receipt has %04o of %d:%d", own.Path, fi.Mode().Perm(), st.Uid, st.Gid, own.Mode, own.UID, own.GID)
		}
		switch own.Kind {
		case KindFile:
			sum, err := digestFile(filepath.Join(n.dir, own.Path), n.receipt().Salt, own.Salted)
			if err != nil || sum != own.SHA256 || own.Size != fi.Size() || own.Inode != st.Ino || own.MTime != fi.ModTime().UnixNano() {
				t.Errorf("%s: sha256 %s, %d bytes, inode %d; the receipt has %+v (%v)", own.Path, sum, fi.Size(), st.Ino, own, err)
			}
		case KindLink:
			if own.Target == "" {
				t.Errorf("%s leads nowhere", own.Path)
			}
		}
		if own.Before != nil {
			before++
		}
	}
	if before != 3 {
		t.Errorf("of %d paths it is known what was there, want 3", before)
	}
	if o := n.receipt().Find("/usr/local/bin/ctr").Origin; o.Path != "containerd.version" {
		t.Errorf("a program of a release comes from %v", o)
	}
	if own := n.receipt().Find("/opt/made/dir"); own.Origin.Path != "cni.dir" || own.Mode != 0o750 {
		t.Errorf("a directory that is wanted: %+v", own)
	}
	if o := n.receipt().Find(config).Origin; o.Path != "containerd" || o.Line != 2 {
		t.Errorf("the config comes from %v", o)
	}
}

// TestDriftOpensNothing as long as sizes, times and inodes are as they were.
func TestDriftOpensNothing(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.install("nodeprep")
	n.apply()
	past := time.Now().Add(-time.Hour)
	opened := func(deep bool) (out []string) {
		for _, own := range n.receipt().Owned {
			if own.Kind == KindFile { // a time before that of the content: any reading shows (mount(8), relatime)
				if err := os.Chtimes(filepath.Join(n.dir, own.Path), past, time.Time{}); err != nil {
					t.Fatal(err)
				}
			}
		}
		if d, err := Drift(t.Context(), n.h.Root, n.receipt(), deep); err != nil || len(d) > 0 {
			t.Errorf("drift %v, %v", d, err)
		}
		for _, own := range n.receipt().Owned {
			if own.Kind != KindFile {
				continue
			}
			fi, err := n.h.Root.Lstat(own.Path)
			if err != nil {
				t.Fatal(err)
			}
			if a := fi.Sys().(*syscall.Stat_t).Atim; time.Unix(a.Sec, a.Nsec).After(past.Add(time.Minute)) {
				out = append(out, own.Path)
			}
		}
		return out
	}
	if got := opened(false); len(got) > 0 {
		t.Errorf("these were read: %v", got)
	}
	if got := opened(true); len(got) == 0 {
		t.Log("this filesystem keeps no times of reading, so that it is not proven that nothing is read")
	}
}
