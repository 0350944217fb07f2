package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/systemd"
)

// ResetFailed notes that it was asked.
func (s *services) ResetFailed(_ context.Context, u string) error { return s.act("reset-failed " + u) }

// failing is a writer that fails what when says so.
func failing(when func(op, path string) error) *writer {
	return &writer{chown: os.Geteuid() == 0, before: func(_ int64, op, path string) error { return when(op, path) }}
}

func (n *node) bind(p string) {
	n.t.Helper()
	if os.Geteuid() != 0 {
		n.t.Skip("mounting needs root: targets that are mount points are not tested")
	}
	real := filepath.Join(n.dir, p)
	if err := unix.Mount(real, real, "", unix.MS_BIND, ""); err != nil {
		if errors.Is(err, unix.EPERM) {
			n.t.Skip("this root may not mount: targets that are mount points are not tested")
		}
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := unix.Unmount(real, unix.MNT_DETACH); err != nil {
			n.t.Error(err)
		}
	})
}

// reverted demands an error of which the host knows nothing any more.
func (n *node) reverted(before []string, want string, but ...string) *RevertedError {
	n.t.Helper()
	_, err := n.tryApply(n.t.Context())
	var e *RevertedError
	if !errors.As(err, &e) || !strings.Contains(err.Error(), want) {
		n.t.Fatalf("apply = %v, want everything put back and %q", err, want)
	}
	if now := n.tree(true, but...); !slices.Equal(before, now) {
		n.t.Errorf("the root changed from\n%s\nto\n%s", strings.Join(before, "\n"), strings.Join(now, "\n"))
	}
	return e
}

// A root may be an image from anywhere: what it says of places and where its links lead
// must not touch the machine that works on it.
func TestHostileRootTouchesNothingOutside(t *testing.T) {
	const loot = "/srv/loot"
	// The entry of a file that is to be given back from somewhere.
	give := func(n *node, from string) {
		n.write(loot, "x")
		n.edit(ReceiptPath, func(m map[string]any) {
			fi, err := n.h.Root.Lstat(loot)
			if err != nil {
				n.t.Fatal(err)
			}
			own := Owned{Path: loot, Kind: KindFile, SHA256: digest("", false, []byte("x")), Before: &Kept{Kind: KindFile, Path: from}}
			own.stat(fi)
			m["owned"] = append(m["owned"].([]any), own)
		})
	}
	tests := []struct {
		name string
		// attack gets a directory outside of the root, and a way there from the root.
		attack func(n *node, outside, up string)
		want   string // of the error or a warning; "" when all goes well
	}{
		{"the generation is a link", func(n *node, outside, _ string) {
			n.remove(ReceiptPath)
			n.opt.Adopt = true
			if err := os.RemoveAll(filepath.Join(n.dir, StateDir, "generations/0")); err != nil {
				n.t.Fatal(err)
			}
			n.symlink(outside, StateDir+"/generations/0")
		}, ""},
		{"all generations are a link", func(n *node, outside, _ string) {
			if err := os.RemoveAll(filepath.Join(n.dir, StateDir, "generations")); err != nil {
				n.t.Fatal(err)
			}
			n.symlink(outside, StateDir+"/generations")
		}, ""},
		{"given back from outside", func(n *node, _, up string) { give(n, up+"/1/victim") }, "not a clean absolute path"},
		{"given back from another file", func(n *node, _, _ string) {
			n.write("/etc/other", "x")
			give(n, "/etc/other")
		}, "/etc/other is not where nodeprep keeps"},
		{"given back through a link", func(n *node, outside, _ string) {
			n.symlink(outside+"/1", StateDir+"/original")
			give(n, StateDir+"/original/victim")
		}, "no such file"},
		{"pruned outside", func(n *node, _, up string) {
			n.edit(StateDir+"/generations/1/record.json", func(m map[string]any) {
				m["changes"].([]any)[0].(map[string]any)["kept"] = Kept{Kind: KindFile, Path: up + "/1/victim"}
			})
		}, ""},
		{"pruned at another place", func(n *node, _, _ string) {
			n.write("/etc/other", "x")
			n.edit(StateDir+"/generations/1/record.json", func(m map[string]any) {
				m["changes"].([]any)[0].(map[string]any)["kept"] = Kept{Kind: KindFile, Path: "/etc/other"}
			})
		}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.state.Generations = 1
			n.apply()
			n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
			n.apply()
			outside := t.TempDir()
			victim := filepath.Join(outside, "1", "victim")
			if err := os.Mkdir(filepath.Dir(victim), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
				t.Fatal(err)
			}
			tt.attack(n, outside, strings.Repeat("/..", strings.Count(n.dir, "/"))+outside)
			n.file("/etc/containerd/config.toml").Content = []byte("version = 4\n")
			said := ""
			rec, err := ReadReceipt(n.h.Root)
			if err == nil {
				var plan *Plan
				if plan, err = Diff(t.Context(), n.h, n.state, rec, n.opt.DiffOptions); err == nil {
					var res *Result
					if res, err = Apply(t.Context(), n.h, plan, n.opt); err == nil {
						said = fmt.Sprint(res.Warnings)
					}
				}
			}
			if err != nil {
				said = err.Error()
			}
			if tt.want == "" && err != nil || !strings.Contains(said, tt.want) {
				t.Errorf("apply said %q, want %q", said, tt.want)
			}
			var st unix.Stat_t
			if err := unix.Stat(victim, &st); err != nil || st.Nlink != 1 {
				t.Errorf("a file outside of the root has %d names (%v), want 1", st.Nlink, err)
			}
			if entries, err := os.ReadDir(outside); err != nil || len(entries) != 1 {
				t.Errorf("outside of the root there is %v now (%v)", entries, err)
			}
			if _, err := n.h.Root.Lstat("/etc/other"); strings.Contains(tt.want+tt.name, "other") && err != nil {
				t.Errorf("a file that nodeprep did not put aside is gone: %v", err)
			}
			if got, err := n.h.Root.ReadFile(loot); err == nil && string(got) != "x" {
				t.Errorf("%s has %q", loot, got)
			}
		})
	}
}

// edit changes a JSON file of the root.
func (n *node) edit(p string, change func(map[string]any)) {
	n.t.Helper()
	var m map[string]any
	if err := json.Unmarshal([]byte(n.read(p)), &m); err != nil {
		n.t.Fatal(err)
	}
	change(m)
	data, err := json.Marshal(m)
	if err != nil {
		n.t.Fatal(err)
	}
	n.write(p, string(data))
}

// TestRefusedRename: what was not changed need not be put back, and the rest is.
func TestRefusedRename(t *testing.T) {
	for _, op := range []string{"rename", "remove"} {
		t.Run(op, func(t *testing.T) {
			n := newNode(t)
			n.apply()
			n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
			n.state.Artifacts[0].Version = "2.0.0" // lacks the old shim
			n.state.Artifacts[1].Version = "1.1.0"
			before := n.tree(true)
			target := map[string]string{"rename": "/usr/local/sbin/runc", "remove": "/usr/local/bin/containerd-shim-runc-v1"}[op]
			n.opt.writer = failing(func(what, path string) error {
				if what == op && path == filepath.Join(n.dir, target) {
					return unix.EPERM // now and whenever it is tried again
				}
				return nil
			})
			n.reverted(before, "replace "+target)
		})
	}
}

// TestFixedTargets: what no rename can replace is found before anything is written.
func TestFixedTargets(t *testing.T) {
	const config = "/etc/containerd/config.toml"
	tests := []struct {
		name string
		fix  func(n *node, real string)
		want string
	}{
		{"a mount point", func(n *node, _ string) { n.bind(config) }, "write " + config + ": something is mounted on it"},
		{"immutable", func(n *node, real string) {
			const immutable = 0x10 // FS_IMMUTABLE_FL of linux/fs.h
			f, err := os.Open(real)
			if err != nil {
				n.t.Fatal(err)
			}
			n.t.Cleanup(func() { f.Close() })
			if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable); err != nil {
				n.t.Skipf("files cannot be made immutable here, so these are not tested: %v", err)
			}
			n.t.Cleanup(func() {
				if err := unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0); err != nil {
					n.t.Error(err)
				}
			})
		}, "write " + config + ": it is immutable (chattr -i " + config},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.apply()
			tt.fix(n, filepath.Join(n.dir, config))
			n.file(config).Content = []byte("version = 3\n")
			n.state.Artifacts[1].Version = "1.1.0"
			before := n.tree(true)
			n.opt.writer = &writer{chown: true}
			_, err := n.tryApply(t.Context())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("apply = %v, want %q", err, tt.want)
			}
			if calls := n.opt.writer.calls.Load(); calls > 0 {
				t.Errorf("%d changes were made before it was found", calls)
			}
			n.same(before, true, tt.name)
		})
	}
}

// TestStrandedKeepsTheOldState until somebody has looked after it.
func TestStrandedKeepsTheOldState(t *testing.T) {
	n := newNode(t)
	n.apply()
	before := n.tree(true)
	n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
	n.state.Artifacts[1].Version = "1.1.0"
	broken := false
	n.opt.writer = failing(func(op, path string) error {
		broken = broken || op == "rename" && strings.HasSuffix(path, "receipt.json")
		if broken && op == "rename" && !strings.HasSuffix(path, "runc") {
			return unix.EIO
		}
		return nil
	})
	_, err := n.tryApply(t.Context())
	var s *StrandedError
	if !errors.As(err, &s) || len(s.Places) != 1 || s.Journal != JournalPath || !strings.Contains(err.Error(), `"nodeprep recover --root `+n.dir+`" brings them back`) {
		t.Fatalf("apply = %v, %+v", err, s)
	}
	kept := s.Places[0][strings.LastIndex(s.Places[0], " ")+1:]
	if got := n.read("/usr/local/sbin/runc"); got != "runc one" {
		t.Errorf("what could be put back was not: runc is %q", got)
	}

	// It is not lost to the next run, which tries again and says the same.
	n.opt.Adopt = true
	stranded := n.tree(true)
	_, err = n.tryApply(t.Context())
	if !errors.As(err, &s) || len(s.Places) != 1 || s.Journal != JournalPath {
		t.Fatalf("the next apply = %v, want the places and the remedy", err)
	}
	n.same(stranded, true, "the next apply")
	if got := n.read(kept); got != "version = 2\n" {
		t.Errorf("what was kept is %q", got)
	}

	// Once the cause is gone the host comes back.
	n.opt.writer, n.opt.Adopt = nil, false
	got, err := Recover(t.Context(), n.h, RecoverOptions{})
	if err != nil || got.Outcome != WasReverted || got.Verb != VerbApply {
		t.Fatalf("recover = %+v, %v", got, err)
	}
	n.same(before, true, "recover")
	n.apply()
	if got := n.read("/etc/containerd/config.toml"); got != "version = 3\n" {
		t.Errorf("afterwards the config is %q", got)
	}
}

// meddler puts a file into a directory that the run made.
type meddler struct {
	*services
	n *node
}

// Start starts a unit that writes.
func (m *meddler) Start(ctx context.Context, u string) error {
	m.n.write("/etc/containerd/conf.d/99-other.toml", "x")
	return m.services.Start(ctx, u)
}

func TestForeignFileInMadeDirectory(t *testing.T) {
	n := newNode(t)
	n.live()
	before := n.tree(true)
	n.daemon.sick["1.0.0"] = errors.New("does not answer")
	n.opt.Services = &meddler{n.services, n}
	_, err := n.tryApply(t.Context())
	var e *RevertedError
	if !errors.As(err, &e) || len(e.Warnings) != 1 || !strings.HasPrefix(e.Warnings[0], "/etc/containerd/conf.d stays") {
		t.Fatalf("apply = %v, want it put back with a warning of what stays", err)
	}
	after := slices.DeleteFunc(n.tree(true), func(l string) bool { return strings.Contains(l, " /etc") })
	if !slices.Equal(before, after) {
		t.Errorf("more is left than that: %v", n.tree(false))
	}
	if got := n.read("/etc/containerd/conf.d/99-other.toml"); got != "x" {
		t.Errorf("the foreign file is %q", got)
	}
}

// TestFullDiskWhileKeeping: half a copy is removed.
func TestFullDiskWhileKeeping(t *testing.T) {
	n := newNode(t)
	n.write("/etc/containerd/config.toml", "version = 2 # mine\n")
	n.opt.Adopt = true
	before := n.tree(true)
	n.opt.writer = failing(func(op, path string) error {
		switch {
		case op == "link":
			return unix.EXDEV
		case op == "write" && strings.Contains(path, "/original/"):
			return unix.ENOSPC
		}
		return nil
	})
	n.reverted(before, "became full while writing")
}

// hang is a systemd that says nothing any more once it has started something.
type hang struct {
	*services
	started bool
}

// Start is the last thing that works.
func (h *hang) Start(ctx context.Context, u string) error {
	h.started = true
	return h.services.Start(ctx, u)
}

// Properties waits for as long as one lets it.
func (h *hang) Properties(ctx context.Context, u string) (systemd.Properties, error) {
	if h.started {
		<-ctx.Done()
		return systemd.Properties{}, context.Cause(ctx)
	}
	return h.services.Properties(ctx, u)
}

// TestSystemdHangsInUndo: the files come back all the same, by copying too.
func TestSystemdHangsInUndo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode(t)
		n.live()
		n.apply()
		n.services.active = "inactive"
		n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
		n.opt.writer = failing(func(op, path string) error {
			if op == "link" && strings.Contains(path, "config.toml") {
				return unix.EXDEV
			}
			return nil
		})
		n.daemon.sick["1.0.0"] = errors.New("does not answer")
		n.opt.Services = &hang{services: n.services}
		_, err := n.tryApply(t.Context())
		var s *StrandedError
		if !errors.As(err, &s) || len(s.Places) > 0 || s.Journal != "" {
			t.Errorf("apply = %v, want nothing but systemd's fault", err)
		}
		if got := n.read("/etc/containerd/config.toml"); got != "version = 2\n" {
			t.Errorf("the config is %q", got)
		}
		n.noDebris()
	})
}

// TestUndoOwesWhatWas: not what the receipt says once was.
func TestUndoOwesWhatWas(t *testing.T) {
	tests := []struct {
		name   string
		before func(n *node) // ahead of the run
		during func(n *node) // when the first file is replaced
		asked  string        // what the undo asked last
		fails  bool
	}{
		{"replaced by hand, and runs", func(n *node) { n.daemon.sick["1.0.0"] = errors.New("it is 1.5.0") }, nil, "", false},
		{"replaced by hand, not started anew", nil, func(n *node) { n.daemon.sick["1.0.0"] = errors.New("it is 1.5.0") }, "", false},
		{"ill before", func(n *node) {
			n.daemon.sick["1.0.0"], n.daemon.sick[""] = errors.New("no answer"), errors.New("no answer")
		}, nil, "2.0.0", false},
		{"ill since", nil, func(n *node) { n.daemon.sick[""] = errors.New("no answer") }, "", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.state.Daemon.Binary = "/usr/local/bin/containerd"
			n.apply()
			n.write("/usr/local/bin/containerd", "daemon 1.5")
			n.opt.Adopt = true
			n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0"
			n.daemon.sick["2.0.0"] = errors.New("the new one is ill")
			if tt.before != nil {
				tt.before(n)
			}
			n.opt.writer = failing(func(op, _ string) error {
				if op == "rename" && tt.during != nil {
					tt.during(n)
				}
				return nil
			})
			before := n.tree(true)
			_, err := n.tryApply(t.Context())
			var s *StrandedError
			if err == nil || errors.As(err, &s) != tt.fails {
				t.Errorf("apply = %v, stranded must be %v", err, tt.fails)
			}
			if got := n.daemon.asked[len(n.daemon.asked)-1]; got != tt.asked {
				t.Errorf("last asked for version %q, want %q: %q", got, tt.asked, n.daemon.asked)
			}
			n.same(before, true, tt.name)
		})
	}
}

// TestFailedUnitStaysFailed: what had failed before the run is not made to look well.
func TestFailedUnitStaysFailed(t *testing.T) {
	n := newNode(t)
	n.live()
	n.services.active = "failed"
	n.services.fail["start containerd.service"] = errors.New("exit status 203")
	n.reverted(n.tree(true), "exit status 203")
	if slices.Contains(n.services.did, "reset-failed containerd.service") {
		t.Errorf("systemd was told %v", n.services.did)
	}
}

// TestNoHardLinks is a filesystem that has none: everything is kept by copying.
func TestNoHardLinks(t *testing.T) {
	for _, errno := range []error{unix.EPERM, unix.EOPNOTSUPP} {
		t.Run(errno.Error(), func(t *testing.T) {
			n := newNode(t)
			n.opt.writer = failing(func(op, _ string) error {
				if op == "link" {
					return errno
				}
				return nil
			})
			n.apply()
			first := n.read(ReceiptPath)
			n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
			n.apply()
			if got := n.read(StateDir + "/generations/1/receipt.json"); got != first {
				t.Error("the generation has not the receipt of its time")
			}
		})
	}
}

// TestBindMountOfTheSameDevice: a hard link does not cross it, though the device is one.
func TestBindMountOfTheSameDevice(t *testing.T) {
	n := newNode(t)
	if err := os.Mkdir(filepath.Join(n.dir, "usr"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.bind("/usr")
	n.releases["containerd 1.0.0"]["containerd"] = strings.Repeat("daemon", copyLimit/6+1)
	n.apply()
	n.state.Artifacts[0].Version = "2.0.0"
	for i := range 20 { // what a stranded run left, and somebody has looked after
		n.write(fmt.Sprintf("/usr/.nodeprep/generations/1/%04d-containerd", i), "leftover")
	}
	n.apply()
	rec, err := readJournal(n.h.Root, StateDir+"/generations/1/record.json")
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(rec.Changes, func(c Change) bool { return c.Path == "/usr/local/bin/containerd" })
	if k := rec.Changes[i].Kept; k.Copied || !strings.HasPrefix(k.Path, "/usr/.nodeprep/generations/1/") {
		t.Errorf("it is kept as %+v, want a link in its own mount", k)
	}
	if _, err := n.h.Root.Lstat("/.nodeprep"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("/.nodeprep is there though nothing can be kept in it (%v)", err)
	}
}
