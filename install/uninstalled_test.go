package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/systemd"
)

const selfLink = unitDir + "/multi-user.target.wants/" + systemd.RecoverUnitName

// there reports whether something is at a path.
func (n *node) there(p string) bool {
	_, err := os.Lstat(filepath.Join(n.dir, p))
	return err == nil
}

// host makes directories that every host has, so that nodeprep makes and removes none.
func (n *node) host() {
	for _, p := range []string{selfLink, systemd.Program, StateDir, "/run/containerd", "/opt/containerd"} {
		n.write(filepath.Dir(p)+"/.others", "")
	}
}

// lastSight calls seen when systemd reads its units.
type lastSight struct {
	*services
	seen func()
}

func (s lastSight) Reload(ctx context.Context) error {
	s.seen()
	return s.services.Reload(ctx)
}

// TestUninstallLeavesSomebodyToGoOn: until the last few calls there is a journal only
// together with the program and the link that start recovery at boot.
func TestUninstallLeavesSomebodyToGoOn(t *testing.T) {
	const most = 10 // two more files, their three directories, and the directory of state
	for _, taken := range []bool{false, true} {
		t.Run(fmt.Sprint("program taken over: ", taken), func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.host()
			n.install("nodeprep")
			if taken {
				n.write(systemd.Program, "another nodeprep")
				n.opt.Adopt = true
			}
			before := n.exactly("/proc")
			n.apply()
			n.change(func() { n.file(config).Content = []byte("version = 3\n") })
			n.apply()
			n.write("/var/lib/containerd/a/b", "x")
			n.write("/run/containerd/a", "x")
			n.mkdir("/opt/containerd/bin")
			journals := 0 // when systemd reads its units, as the last of all
			n.opt.Services = lastSight{n.services, func() {
				if n.there(JournalPath) {
					journals++
				} else if n.there(StateDir) || n.there(systemd.RecoverUnitPath) {
					t.Error("systemd reads its units before everything is gone")
				}
			}}
			var after []string
			n.opt.writer = &writer{chown: n.h.UID == 0, before: func(_ int64, op, path string) error {
				what := op + " " + strings.TrimPrefix(path, n.dir)
				if len(after) == 0 && what != "remove "+selfLink {
					if !n.there(selfLink) || !n.there(systemd.RecoverUnitPath) || !n.there(systemd.Program) {
						t.Errorf("before %s nobody is there to go on", what)
					}
					return nil
				}
				if after = append(after, what); !n.there(systemd.Program) && n.there(StateDir+"/receipt.json") {
					t.Errorf("at %s the program is gone and more than the journal is left", what)
				}
				return nil
			}}
			n.uninstall(UninstallOptions{Purge: true})
			if got := len(after) - 1; !taken && (got < 1 || got > most) {
				t.Errorf("%d calls after the link went:\n%s", got, strings.Join(after, "\n"))
			}
			if journals != 1 {
				t.Errorf("systemd reads its units %d times with a journal there, want once, when containerd's unit goes", journals)
			}
			if i := slices.IndexFunc(after, func(s string) bool {
				return strings.HasPrefix(s, "rename ") && strings.Contains(s, ".nodeprep.nodeprep-")
			}); !taken && i > 6 {
				t.Errorf("the journal goes late:\n%s", strings.Join(after, "\n"))
			}
			if got := n.exactly("/proc"); !slices.Equal(got, before) && !taken {
				t.Errorf("was\n%s\nis\n%s", strings.Join(before, "\n"), strings.Join(got, "\n"))
			}
			if taken && n.read(systemd.Program) != "another nodeprep" {
				t.Error("the program of before is not back")
			}
		})
	}
}

// TestUninstallThatCannotFinish says so, and nodeprep and its journal stay until somebody
// can.
func TestUninstallThatCannotFinish(t *testing.T) {
	fault := errors.New("operation not permitted")
	tests := map[string]struct {
		op, path string
		goes     bool // nodeprep itself, before it fails
	}{
		"containerd's data": {"remove", "/var/lib/containerd/io/x", false},
		"a generation":      {"remove", StateDir + "/generations/1/receipt.json", false},
		"a directory":       {"rmdir", StateDir + "/generations", false},
		"the link":          {"remove", selfLink, false},
		"the program":       {"remove", systemd.Program, false},
		"durability":        {"fsync", "/usr/local/bin", true},
	}
	for _, name := range sortedKeys(tests) {
		t.Run(name, func(t *testing.T) {
			test := tests[name]
			n := newNode(t)
			n.live()
			n.host()
			before := n.exactly("/proc")
			n.install("nodeprep")
			n.apply()
			n.change(func() { n.file(config).Content = []byte("version = 3\n") })
			n.apply()
			n.write("/var/lib/containerd/io/x", "x")
			n.write("/var/lib/containerd/y", "y")
			n.opt.writer = failing(func(op, path string) error {
				if op == test.op && path == filepath.Join(n.dir, test.path) && !(op == "fsync" && n.there(systemd.Program)) {
					return fault
				}
				return nil
			})
			told := func(res bool, err error) {
				t.Helper()
				var e *StrandedError
				if !errors.As(err, &e) || !errors.Is(err, fault) || e.Journal != JournalPath || !res {
					t.Fatalf("%v, with a result: %v", err, res)
				}
				for _, want := range []string{"uninstalled, but for", test.path, "nodeprep recover"} {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q does not say %q", err, want)
					}
				}
				if strings.Contains(err.Error(), "brought back") {
					t.Errorf("%q speaks of an undo", err)
				}
				if j, err := Pending(n.h.Root); err != nil || j == nil || j.Stage != settled {
					t.Errorf("journal %+v, %v", j, err)
				}
				if got := n.there(systemd.Program); got == test.goes {
					t.Errorf("the program is there: %v", got)
				}
				if n.there("/var/lib/containerd/y") || n.there("/usr/local/bin/containerd") {
					t.Error("what could be removed was not")
				}
			}
			res, err := n.tryUninstall(UninstallOptions{Purge: true})
			told(res != nil && len(res.Changed) > 0, err)
			found, err := Recover(t.Context(), n.h, n.recovery())
			told(found != nil && found.Outcome == WasFinished, err)
			n.opt.writer = nil
			if found, err = Recover(t.Context(), n.h, n.recovery()); err != nil || found.Outcome != WasFinished {
				t.Fatalf("recover, when it can = %+v, %v", found, err)
			}
			if got := n.exactly("/proc"); !slices.Equal(got, before) {
				t.Errorf("was\n%s\nis\n%s", strings.Join(before, "\n"), strings.Join(got, "\n"))
			}
		})
	}
}

// kubelet starts a task for each that is stopped, some times.
type kubelet struct {
	*fakeDaemon
	n *node
	// again is how often it does, late that it does so after the last look.
	again int
	late  bool
	made  int
}

func (k *kubelet) StopTasks(ctx context.Context, d desired.Daemon) error {
	err := k.fakeDaemon.StopTasks(ctx, d)
	if k.made < k.again {
		k.made++
		if k.late {
			k.n.shim(99, "late")
		} else {
			k.tasks = []daemon.Task{{Namespace: kubernetes, ID: fmt.Sprint("again", k.made), PID: 99, Status: "running"}}
		}
	}
	return err
}

// TestForcedUninstallUnderAKubelet never removes containerd from under containers.
func TestForcedUninstallUnderAKubelet(t *testing.T) {
	tests := map[string]struct {
		kubelet kubelet
		want    []string // of the error; nil for success
	}{
		"gives up":    {kubelet{again: 2}, nil},
		"goes on":     {kubelet{again: 1000}, []string{"again5", "stop it first"}},
		"comes later": {kubelet{again: 1, late: true}, []string{"k8s.io/late (shim 99)", "stop it first"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNode(t)
				n.live()
				n.apply()
				before := n.exactly("/proc")
				n.services.active, n.services.did = "active", nil
				n.daemon.tasks = []daemon.Task{{Namespace: kubernetes, ID: "a", PID: 9, Status: "running"}}
				k := test.kubelet
				k.fakeDaemon, k.n = n.daemon, n
				n.opt.Daemon = &k
				_, err := n.tryUninstall(UninstallOptions{Force: true})
				if test.want == nil {
					if err != nil || n.there("/usr/local/bin/containerd") {
						t.Errorf("uninstall = %v", err)
					}
					return
				}
				var e *RevertedError
				if !errors.As(err, &e) {
					t.Fatalf("uninstall = %v", err)
				}
				for _, want := range test.want {
					if !strings.Contains(err.Error(), want) {
						t.Errorf("%q does not say %q", err, want)
					}
				}
				if got := n.exactly("/proc"); !slices.Equal(got, before) {
					t.Errorf("the root changed: %v", got)
				}
				if n.services.active != "active" {
					t.Errorf("containerd is %s: %v", n.services.active, n.services.did)
				}
			})
		})
	}
}

// TestShimsTakeAMoment to end after their tasks: that is no reason to give up.
func TestShimsTakeAMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.live()
		n.apply()
		n.services.active = "active"
		n.daemon.tasks = []daemon.Task{{Namespace: kubernetes, ID: "a", PID: 9, Status: "running"}}
		n.shim(77, "a")
		go func() {
			<-time.After(3 * shimInterval)
			if err := os.RemoveAll(filepath.Join(n.dir, "/proc/77")); err != nil {
				t.Error(err)
			}
		}()
		if _, err := n.tryUninstall(UninstallOptions{Force: true}); err != nil {
			t.Error(err)
		}
	})
}

// units is a systemd with more units than containerd's, and what requires what.
type units struct {
	*services
	requires map[string][]string // unit to those that it stops with
	up       map[string]bool
}

func (u *units) Properties(ctx context.Context, name string) (systemd.Properties, error) {
	p, err := u.services.Properties(ctx, name)
	p.ActiveState = "inactive"
	if u.up[name] {
		p.ActiveState = "active"
	}
	i := 0
	for _, other := range sortedKeys(u.requires) {
		if slices.Contains(u.requires[other], name) {
			// One kind after the other.
			lists := []*[]string{&p.RequiredBy, &p.BoundBy, &p.ConsistsOf, &p.RequisiteOf}
			*lists[i%len(lists)] = append(*lists[i%len(lists)], other)
			i++
		}
	}
	return p, err
}

func (u *units) Stop(ctx context.Context, name string) error {
	err := u.services.Stop(ctx, name)
	u.down(name)
	return err
}

func (u *units) down(name string) {
	u.up[name] = false
	for other, on := range u.requires {
		if slices.Contains(on, name) && u.up[other] {
			u.down(other)
		}
	}
}

func (u *units) Start(ctx context.Context, name string) error {
	err := u.services.Start(ctx, name)
	u.up[name] = err == nil
	return err
}

func newUnits(n *node) *units {
	u := &units{services: n.services, up: map[string]bool{}, requires: map[string][]string{
		"kubelet.service": {"containerd.service"}, "buildkit.service": {"containerd.service"}, "idle.service": {"containerd.service"},
		"node.target": {"containerd.service"}, "logs.service": {"kubelet.service"}, "other.service": {"ssh.service"},
	}}
	for name := range u.requires {
		u.up[name] = name != "idle.service"
	}
	u.up["containerd.service"] = true
	n.opt.Services = u
	return u
}

// TestDependentsComeBack: whoever systemd stops along with containerd runs again when it
// does.
func TestDependentsComeBack(t *testing.T) {
	check := func(t *testing.T, u *units) {
		t.Helper()
		for name, up := range u.up {
			if up != (name != "idle.service") {
				t.Errorf("%s is up: %v; asked %v", name, up, u.did)
			}
		}
	}
	upgraded := func(t *testing.T) (*node, *units) {
		n := newNode(t)
		n.live()
		n.apply()
		u := newUnits(n)
		n.change(func() { n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0" })
		u.did = nil
		return n, u
	}
	t.Run("undo of a restart", func(t *testing.T) {
		n, u := upgraded(t)
		n.daemon.sick["2.0.0"] = errors.New("ill")
		var e *RevertedError
		if _, err := n.tryApply(t.Context()); !errors.As(err, &e) {
			t.Fatal(err)
		}
		check(t, u)
		if !slices.Contains(u.did, "stop containerd.service") || slices.Contains(u.did, "start other.service") {
			t.Errorf("asked %v", u.did)
		}
	})
	t.Run("restart", func(t *testing.T) {
		n, u := upgraded(t)
		n.apply()
		check(t, u)
		if slices.Contains(u.did, "start kubelet.service") {
			t.Errorf("asked %v", u.did)
		}
	})
	t.Run("recover", func(t *testing.T) {
		n, u := upgraded(t)
		dead := false
		n.opt.writer = failing(func(op, path string) error {
			if dead = dead || op == "rename" && strings.HasSuffix(path, "/receipt.json"); dead {
				return errDead
			}
			return nil
		})
		if _, err := n.tryApply(t.Context()); err == nil {
			t.Fatal("it did not die")
		}
		// They went down with it, whatever had become of them.
		u.down("containerd.service")
		u.up["containerd.service"] = true
		n.opt.writer = nil
		if r, err := Recover(t.Context(), n.h, n.recovery()); err != nil || r.Outcome != WasReverted {
			t.Fatal(r, err)
		}
		check(t, u)
	})
	t.Run("undo of an uninstall", func(t *testing.T) {
		n, u := upgraded(t)
		plan := n.planUninstall(UninstallOptions{})
		it := plan.find(KindUnit, "containerd.service")
		want := []string{"buildkit.service", "kubelet.service", "logs.service", "node.target"}
		var got []string
		for _, d := range it.Details {
			if name, ok := strings.CutSuffix(d, " requires it, and stops too"); ok {
				got = append(got, name)
			}
		}
		if slices.Sort(got); it.Action != Stop || !slices.Equal(got, want) {
			t.Errorf("plan: %s %v", it.Action, it.Details)
		}
		n.opt.writer = failing(func(op, path string) error {
			if op == "remove" && strings.HasSuffix(path, "/bin/containerd") {
				return unix.EIO
			}
			return nil
		})
		var e *RevertedError
		if _, err := n.tryUninstall(UninstallOptions{}); !errors.As(err, &e) {
			t.Fatal(err)
		}
		check(t, u)
	})
	t.Run("uninstall that gives a unit back", func(t *testing.T) {
		n := newNode(t)
		n.live()
		n.write(daemonUnit, "[Service]\nExecStart=/usr/bin/containerd\n")
		n.opt.Adopt = true
		n.apply()
		u := newUnits(n)
		n.uninstall(UninstallOptions{})
		check(t, u)
	})
}

// TestPurgeAcrossDevices: what is mounted while a purge runs stays.
func TestPurgeAcrossDevices(t *testing.T) {
	const data = "/var/lib/containerd"
	tests := map[string]struct {
		when, at string // what is being removed then, and where it is mounted
		bind     bool   // it is the same device
	}{
		"another device, ahead":      {"/a/x", "/b", false},
		"another device, in the way": {"/b/c/a", "/b/c/d", false},
		"the same device, ahead":     {"/a/x", "/b", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			n := nodeAt(t, fastDir(t))
			n.apply()
			n.write(data+"/a/x", "x")
			n.write(data+"/b/c/a", "x")
			n.write(data+"/b/c/d/x", "x")
			n.opt.writer = failing(func(op, path string) error {
				switch {
				case op != "remove" || path != filepath.Join(n.dir, data+test.when):
				case test.bind:
					n.write(data+test.at+"/precious", "precious")
					n.bind(data + test.at)
				default:
					n.mount(data+test.at, 1<<20, 0)
					n.write(data+test.at+"/precious", "precious")
				}
				return nil
			})
			res := n.uninstall(UninstallOptions{Purge: true})
			if n.read(data+test.at+"/precious") != "precious" {
				t.Error("it is gone")
			}
			if text := fmt.Sprint(res.Warnings); !strings.Contains(text, data+test.at+" stays: ") {
				t.Errorf("nobody is told: %s", text)
			}
		})
	}
}

// TestUninstallSaysWhatIs: no directory that is not there, and no guess at who filled one.
func TestUninstallSaysWhatIs(t *testing.T) {
	n := newNode(t)
	n.apply()
	n.write("/var/lib/containerd/x", "x")
	plan := n.planUninstall(UninstallOptions{Purge: true})
	if got := plan.Purges(); !slices.Equal(got, []string{"/var/lib/containerd"}) {
		t.Errorf("purges %v", got)
	}
	if it := plan.find(KindDir, "/run/containerd"); it != nil {
		t.Errorf("plans %+v", it)
	}
	res := n.uninstall(UninstallOptions{})
	if text := fmt.Sprint(res.Warnings); !strings.Contains(text, "/var/lib stays: it is not empty") {
		t.Errorf("warnings %s", text)
	}
	if _, err := os.Lstat(filepath.Join(n.dir, StateDir)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s: %v", StateDir, err)
	}
}

// TestUnknownStage is nobody's journal to guess at.
func TestUnknownStage(t *testing.T) {
	n := interrupted(t)
	n.edit(JournalPath, func(m map[string]any) { m["stage"] = "almost" })
	before := n.tree(true)
	if _, err := Recover(t.Context(), n.h, n.recovery()); err == nil || !strings.Contains(err.Error(), `"almost" is no stage of a run`) {
		t.Errorf("recover = %v", err)
	}
	n.same(before, true, "refused")
}

// TestLockAtBoot: recovery at boot outlives who has the lock for a while, and names who
// does not let go.
func TestLockAtBoot(t *testing.T) {
	n := newNode(t)
	unlock, err := Lock(n.h.Root)
	if err != nil {
		t.Fatal(err)
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	var taken *LockedError
	if _, err := lockAtBoot(over, n.h.Root); !errors.As(err, &taken) || taken.PID != os.Getpid() {
		t.Errorf("lock = %v", err)
	}
	done := make(chan error)
	go func() {
		opt := n.recovery()
		opt.Boot = true
		_, err := Recover(t.Context(), n.h, opt)
		done <- err
	}()
	unlock()
	if err := <-done; err != nil {
		t.Errorf("recover = %v", err)
	}
	// So does an apply that a machine starts by itself, and no other.
	if unlock, err = Lock(n.h.Root); err != nil {
		t.Fatal(err)
	}
	if _, err := n.tryApply(t.Context()); !errors.As(err, &taken) {
		t.Errorf("apply = %v", err)
	}
	n.opt.AtBoot = true
	plan := n.diff()
	go func() {
		_, err := Apply(t.Context(), n.h, plan, n.opt)
		done <- err
	}()
	waits := regexp.MustCompile(`(?m)^\d+: -> FLOCK +ADVISORY +WRITE ` + strconv.Itoa(os.Getpid()) + ` `)
	for ask := time.NewTicker(time.Millisecond); ; <-ask.C {
		locks, rerr := os.ReadFile("/proc/locks")
		if rerr != nil {
			t.Fatal(rerr)
		}
		if waits.Match(locks) {
			break
		}
		select {
		case err := <-done:
			t.Fatalf("apply = %v, and waited for nobody", err)
		default:
		}
	}
	unlock()
	if err := <-done; err != nil {
		t.Errorf("apply = %v", err)
	}
	// Nobody keeps it, neither who waited nor who had given up waiting.
	if unlock, err = lockAtBoot(t.Context(), n.h.Root); err != nil {
		t.Fatal(err)
	}
	unlock()
}
