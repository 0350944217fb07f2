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

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
)

func (n *node) receipt() *Receipt {
	n.t.Helper()
	rec, err := ReadReceipt(n.h.Root)
	if err != nil {
		n.t.Fatal(err)
	}
	return rec
}

func (n *node) planRollback(to int) *Plan {
	n.t.Helper()
	plan, err := DiffRollback(n.t.Context(), n.h, n.receipt(), to, n.opt.DiffOptions)
	if err != nil {
		n.t.Fatal(err)
	}
	return plan
}

func (n *node) tryRollback(to int) (*Result, error) {
	n.t.Helper()
	return Apply(n.t.Context(), n.h, n.planRollback(to), n.opt)
}

func (n *node) rollback(to int) *Result {
	n.t.Helper()
	res, err := n.tryRollback(to)
	if err != nil {
		n.t.Fatalf("roll back to %d: %v", to, err)
	}
	return res
}

// clean demands that nothing drifted, as status sees it, also when everything is read.
func (n *node) clean() {
	n.t.Helper()
	for _, deep := range []bool{false, true} {
		if d, err := Drift(n.t.Context(), n.h.Root, n.receipt(), deep); err != nil || len(d) > 0 {
			n.t.Errorf("drift (deep=%v): %v, %v", deep, d, err)
		}
	}
}

// config is the file of which most tests have several versions.
const config = "/etc/containerd/config.toml"

// change is a copy of the state with one thing changed, so that each generation's state
// stays what it was.
func (n *node) change(f func()) {
	s := *n.state
	s.Files = slices.Clone(n.state.Files)
	s.Artifacts = slices.Clone(n.state.Artifacts)
	s.Links = slices.Clone(n.state.Links)
	s.Dirs = slices.Clone(n.state.Dirs)
	n.state = &s
	f()
}

func (n *node) drop(p string) {
	n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return f.Path == p })
}

// generations applies four states of a node one after the other, in which files come,
// change twice, go and come again, directories and links too. It returns each state
// and what the root was then.
func (n *node) generations() (states []*desired.State, trees [][]string) {
	n.t.Helper()
	const extra, gone, mode = "/etc/extra/deep/extra.conf", "/etc/containerd/certs.d/docker.io/hosts.toml", "/etc/mode.conf"
	add := func(p, content string) {
		n.state.Files = append(n.state.Files, desired.File{Path: p, Mode: 0o644, Content: []byte(content), Format: desired.FormatRaw})
	}
	steps := []func(){
		func() {
			add(mode, "mode")
			n.state.Links = append(n.state.Links, desired.Link{Path: "/etc/link", Target: "one"})
			n.file("/etc/containerd/certs.d/docker.io/secret.toml").Content = []byte("hunter1\n")
		},
		func() { // a file and its directories come, others go with theirs
			n.file(config).Content = []byte("version = 2\n# two\n")
			add(extra, "extra two")
			n.state.Links[0].Target = "two"
			n.drop(gone)
			n.drop("/etc/containerd/certs.d/docker.io/secret.toml")
			n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0"
		},
		func() {
			n.file(config).Content = []byte("version = 3\n")
			n.file(extra).Content = []byte("extra three")
			n.file(mode).Mode = 0o600
			add(gone, "server = \"https://three\"\n")
			n.state.Links = nil
			n.state.Artifacts[1].Version = "1.1.0"
		},
		func() {
			n.drop(extra)
			n.file(config).Content = []byte("version = 3\n# four\n")
			n.state.Links = []desired.Link{{Path: "/etc/link", Target: "four"}}
			n.state.Artifacts = n.state.Artifacts[:1] // no runc
		},
	}
	for i, step := range steps {
		n.change(step)
		n.opt.Profiles = []string{fmt.Sprintf("node%d.yaml", i+1)}
		if res := n.apply(); res.Generation != i+1 {
			n.t.Fatalf("generation %d, want %d", res.Generation, i+1)
		}
		states, trees = append(states, n.state), append(trees, n.tree(false, StateDir))
	}
	return states, trees
}

// TestRollbackToEach goes back to every generation that is kept, and forward again.
func TestRollbackToEach(t *testing.T) {
	for _, live := range []bool{false, true} {
		for _, path := range [][]int{{3}, {2}, {1}, {0}, {3, 2, 1}, {2, 4}, {1, 4}, {1, 3, 1}, {0, 0}, {1, 2, 4, 3}} {
			t.Run(fmt.Sprint(live, path), func(t *testing.T) {
				n := nodeAt(t, fastDir(t))
				n.state.Generations = 9
				if live {
					n.live()
					n.write("/proc/7/x", "")
				}
				states, trees := n.generations()
				is := 4 // which of the states the host has
				at := map[int]int{1: 1, 2: 2, 3: 3, 4: 4}
				for i, to := range path {
					want := to
					if to == 0 {
						want = at[4+i-1]
					} else {
						want = at[to]
					}
					old := n.receipt()
					was := old.Find(config).Inode
					res := n.rollback(to)
					at[4+i+1] = want
					if res.Generation != 4+i+1 {
						t.Errorf("generation %d, want %d", res.Generation, 4+i+1)
					}
					if diff := cmp.Diff(trees[want-1], n.tree(false, StateDir)); diff != "" {
						t.Fatalf("%d: back to %d, which is state %d (-want +got):\n%s", i, to, want, diff)
					}
					n.clean()
					n.noDebris()
					rec := n.receipt()
					if is != want && rec.Find(config).Inode == was {
						t.Errorf("%d: the receipt has the old inode", i)
					}
					if !slices.Equal(rec.Profiles, []string{fmt.Sprintf("node%d.yaml", want)}) || rec.Daemon != states[want-1].Daemon {
						t.Errorf("%d: receipt of %v, %+v", i, rec.Profiles, rec.Daemon)
					}
					n.state = states[want-1]
					if plan := n.diff(); !plan.Empty() {
						t.Errorf("%d: with the profile of then there is to do: %v", i, actions(plan))
					}
					for j, s := range states {
						n.state = s
						if plan := n.diff(); plan.Refusal() != nil || (j+1 != want) == plan.Empty() {
							t.Errorf("%d: with the profile of state %d: %v, %v", i, j+1, actions(plan), plan.Refusal())
						}
					}
					is = want
				}
				// From anywhere the newest profile leads on.
				n.state = states[3]
				n.apply()
				if diff := cmp.Diff(trees[3], n.tree(false, StateDir)); diff != "" {
					t.Errorf("applied again (-want +got):\n%s", diff)
				}
				n.clean()
			})
		}
	}
}

// TestRollbackReceipt: what the receipt says of every path is what the generation's said.
func TestRollbackReceipt(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.generations()
	_, then, err := kept(n.h.Root, 2)
	if err != nil {
		t.Fatal(err)
	}
	n.opt.Version = "0.2.0"
	n.rollback(2)
	now := n.receipt()
	plain := func(r *Receipt) []Owned {
		out := slices.Clone(r.Owned)
		for i := range out {
			out[i].MTime, out[i].Inode = 0, 0
		}
		return out
	}
	if diff := cmp.Diff(plain(then), plain(now)); diff != "" {
		t.Errorf("owned (-then +now):\n%s", diff)
	}
	if now.Nodeprep != "0.2.0" || now.ID == then.ID || now.Salt != then.Salt || now.Generation != 5 {
		t.Errorf("the receipt is of nodeprep %s, run %s, generation %d", now.Nodeprep, now.ID, now.Generation)
	}
	if a := now.installed("containerd"); a.Version != "2.0.0" || !slices.Contains(a.Files, "/usr/local/bin/containerd") {
		t.Errorf("artifact %+v", a)
	}
}

func TestRollbackPlan(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.generations()
	plan := n.planRollback(1)
	want := []string{
		"update artifact containerd",
		"create artifact runc",
		"create dir /usr/local/sbin",
		"create file /etc/containerd/certs.d/docker.io/secret.toml",
		"update file /etc/containerd/certs.d/docker.io/hosts.toml",
		"update file " + config,
		"update link /etc/link",
		"update file /etc/mode.conf",
		"update file /usr/local/bin/containerd",
		"create file /usr/local/bin/containerd-shim-runc-v1",
		"create file /usr/local/sbin/runc",
	}
	got := actions(plan)
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	it := plan.find(KindFile, config)
	if string(it.Old) != "version = 3\n# four\n" || string(it.New) != "version = 2\n" || !slices.Equal(it.Details, []string{"version"}) || it.Origin.Line != 2 {
		t.Errorf("config: %q to %q, %v, from %v", it.Old, it.New, it.Details, it.Origin)
	}
	if it := plan.find(KindFile, "/etc/containerd/certs.d/docker.io/secret.toml"); !it.Secret || it.New != nil {
		t.Errorf("a secret shows: %+v", it)
	}
	if it := plan.find(KindArtifact, "containerd"); it.OldVersion != "2.0.0" || it.NewVersion != "1.0.0" {
		t.Errorf("containerd: %+v", it)
	}
	// Planning writes nothing.
	before := n.tree(true)
	n.planRollback(2)
	n.same(before, true, "planning")
}

func TestNoSuchGeneration(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	try := func(to int) error {
		_, err := DiffRollback(t.Context(), n.h, n.receipt(), to, n.opt.DiffOptions)
		var e *NoGenerationError
		if !errors.As(err, &e) {
			t.Errorf("back to %d: %v, want *NoGenerationError", to, err)
		}
		return err
	}
	try(0)
	n.state.Generations = 2
	n.apply()
	if err := try(0); err == nil || !strings.Contains(err.Error(), "no earlier generation") {
		t.Errorf("back to nothing: %v", err)
	}
	for i := range 4 {
		n.change(func() { n.file(config).Content = fmt.Appendf(nil, "version = %d\n", i) })
		n.apply()
	}
	for to, want := range map[int]string{1: "it is not kept; kept are 3, 4", 5: "that is what the host is; kept are 3, 4", 6: "not kept", -1: "not kept", 2: "not kept"} {
		if err := try(to); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("back to %d: %v, want %q", to, err, want)
		}
	}
	all, err := Generations(n.h.Root, n.receipt())
	if err != nil || len(all) != 3 || all[0].Number != 3 || all[2].Number != 5 || !all[2].Current || all[0].Artifacts[0].Version != "1.0.0" {
		t.Errorf("generations %+v, %v", all, err)
	}
	entries, err := n.h.Root.ReadDir(StateDir + "/generations")
	if err != nil || len(entries) != 2 {
		t.Errorf("%d are kept, want 2 (%v)", len(entries), err)
	}
	for _, p := range []string{"", "/generations", "/generations/3", "/generations/4"} {
		if fi, err := n.h.Root.Lstat(StateDir + p); err != nil || fi.Mode() != 0o700|fs.ModeDir {
			t.Errorf("%s%s: %v, %v", StateDir, p, fi.Mode(), err)
		}
	}
	// Rollbacks count too.
	n.rollback(3)
	n.rollback(0)
	if err := try(4); err == nil || !strings.Contains(err.Error(), "kept are 5, 6") {
		t.Errorf("back to 4: %v", err)
	}
	if got := n.read(config); got != "version = 3\n" {
		t.Errorf("back and forth the config became %q", got)
	}
	// With none kept there is none.
	n.change(func() { n.state.Generations = 0; n.file(config).Content = []byte("version = 9\n") })
	n.apply()
	try(0)
	if _, err := n.h.Root.Lstat(StateDir + "/generations"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s/generations is left (%v)", StateDir, err)
	}
}

// TestRollbackDrift: what somebody did since.
func TestRollbackDrift(t *testing.T) {
	const hosts = "/etc/containerd/certs.d/docker.io/hosts.toml"
	two := func(n *node) {
		n.apply()
		n.change(func() {
			n.file(config).Content = []byte("version = 3\n")
			n.state.Files = append(n.state.Files, desired.File{Path: "/etc/new/file", Mode: 0o644, Content: []byte("new")})
			n.drop(hosts)
			n.state.Artifacts[1].Version = "1.1.0"
		})
		n.apply()
	}
	tests := []struct {
		name    string
		drift   func(n *node)
		refused string // a part of the refusal, "" for none
		check   func(n *node)
	}{
		{"edited", func(n *node) { n.write(config, "version = 3\n# mine") }, config + ": was changed since nodeprep wrote it", func(n *node) {
			if b := n.receipt().Find(config).Before; b == nil || n.read(b.Path) != "version = 3\n# mine" {
				n.t.Errorf("what was edited is kept as %+v", b)
			}
		}},
		{"edited, same size", func(n *node) { n.write(config, "version = 4\n") }, config + ": was changed since nodeprep wrote it: has other content", nil},
		{"edited binary", func(n *node) { n.write("/usr/local/sbin/runc", "mine") }, "/usr/local/sbin/runc: was changed", nil},
		{"replaced by a link", func(n *node) { n.remove(config); n.symlink("/etc/passwd", config) }, config + ": was changed", nil},
		{"a foreign file where one comes back", func(n *node) { n.write(hosts, "foreign") }, hosts + ": exists and was not written by nodeprep", func(n *node) {
			if b := n.receipt().Find(hosts).Before; b == nil || n.read(b.Path) != "foreign" {
				n.t.Errorf("the foreign file is kept as %+v", b)
			}
		}},
		{"removed, changed since then", func(n *node) { n.remove(config) }, "", nil},
		{"removed, comes from then", func(n *node) { n.remove("/etc/new/file") }, "", nil},
		{"its directory removed", func(n *node) {
			if err := os.RemoveAll(filepath.Join(n.dir, "/etc/containerd/certs.d")); err != nil {
				n.t.Fatal(err)
			}
		}, "", func(n *node) {
			if n.receipt().Find("/etc/containerd/certs.d/docker.io") == nil {
				n.t.Error("a directory that was made again is not owned")
			}
		}},
		{"touched", func(n *node) {
			now := time.Now().Add(time.Hour)
			if err := os.Chtimes(filepath.Join(n.dir, config), now, now); err != nil {
				n.t.Fatal(err)
			}
		}, "", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := nodeAt(t, fastDir(t))
			two(n)
			tt.drift(n)
			before := n.tree(true)
			_, err := n.tryRollback(0)
			var refused *NotOwnedError
			if errors.As(err, &refused) != (tt.refused != "") || err != nil && !strings.Contains(err.Error(), tt.refused) {
				t.Fatalf("rollback = %v, want a refusal %q", err, tt.refused)
			}
			if err != nil {
				n.same(before, true, "refused")
				if !strings.Contains(err.Error(), "--adopt") {
					t.Errorf("no remedy: %v", err)
				}
				n.opt.Adopt = true
			}
			if err != nil {
				n.rollback(0)
			}
			if got := n.read(config); got != "version = 2\n" {
				t.Errorf("config %q", got)
			}
			if got := n.read(hosts); !strings.Contains(got, "https://a") {
				t.Errorf("hosts %q", got)
			}
			if _, err := n.h.Root.Lstat("/etc/new"); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("/etc/new is there: %v", err)
			}
			if tt.name != "its directory removed" { // with what nobody changed in it
				n.clean()
			}
			if tt.check != nil {
				tt.check(n)
			}
		})
	}
}

// TestRollbackLeavesEdited: what came since and was edited stays, with a word about it.
func TestRollbackLeavesEdited(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.apply()
	first := n.state
	n.change(func() {
		n.state.Files = append(n.state.Files, desired.File{Path: "/etc/new/file", Mode: 0o644, Content: []byte("new")}, desired.File{Path: "/etc/new/other", Mode: 0o644, Content: []byte("new")})
	})
	n.apply()
	n.write("/etc/new/file", "edited")
	plan := n.planRollback(0)
	if got, want := actions(plan), []string{"leave file /etc/new/file", "remove file /etc/new/other"}; !slices.Equal(got, want) {
		t.Errorf("plan %v, want %v", got, want)
	}
	if len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0].String(), "/etc/new/file") {
		t.Errorf("warnings %v", plan.Warnings)
	}
	n.rollback(0)
	if got := n.read("/etc/new/file"); got != "edited" {
		t.Errorf("it is %q", got)
	}
	n.clean()
	rec := n.receipt()
	if rec.Find("/etc/new/file") != nil || rec.Find("/etc/new") == nil {
		t.Error("the file must not be ours, its directory must be")
	}
	n.state = first
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is to do: %v", actions(plan))
	}
	// Forward again it is what it was there: ours, and edited.
	n.rollback(2)
	if d, err := Drift(t.Context(), n.h.Root, n.receipt(), false); err != nil || len(d) != 1 || d[0].Path != "/etc/new/file" {
		t.Errorf("forward again there is drift %v, %v", d, err)
	}
}

// TestRollbackOfAdopted: in the generation before it was adopted, a file is as it was;
// forward again it is taken over again.
func TestRollbackOfAdopted(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	const hosts = "/etc/containerd/certs.d/docker.io/hosts.toml"
	full := n.state
	n.change(func() { n.drop(hosts) })
	less := n.state
	n.apply()
	n.write(hosts, "mine")
	when := time.Date(2020, 2, 3, 4, 5, 6, 789, time.UTC)
	real := filepath.Join(n.dir, hosts)
	if err := errors.Join(os.Chmod(real, 0o640), os.Chown(real, 12, 34), os.Chtimes(real, when, when)); err != nil {
		t.Log(err)
	}
	n.symlink("/opt/x", "/etc/link")
	n.state = full
	n.change(func() { n.state.Links = []desired.Link{{Path: "/etc/link", Target: "ours"}} })
	full = n.state
	before := n.tree(false, StateDir)
	n.opt.Adopt = true
	n.apply()
	n.opt.Adopt = false
	after := n.tree(false, StateDir)
	for range 2 {
		plan := n.planRollback(0)
		if it := plan.find(KindFile, hosts); it == nil || !it.Secret || it.New != nil {
			t.Errorf("the content of a file that not everybody can read is in the plan: %+v", it)
		}
		n.rollback(0)
		if diff := cmp.Diff(before, n.tree(false, StateDir)); diff != "" {
			t.Fatalf("back (-before +after):\n%s", diff)
		}
		fi, err := n.h.Root.Lstat(hosts)
		if err != nil {
			t.Fatal(err)
		}
		st := fi.Sys().(*syscall.Stat_t)
		if n.h.UID == 0 && (st.Uid != 12 || st.Gid != 34) || !fi.ModTime().Equal(when) {
			t.Errorf("given back: %d:%d, %v", st.Uid, st.Gid, fi.ModTime())
		}
		n.clean()
		n.state = less
		if plan := n.diff(); !plan.Empty() {
			t.Errorf("with the profile of then: %v", actions(plan))
		}
		n.rollback(0)
		if diff := cmp.Diff(after, n.tree(false, StateDir)); diff != "" {
			t.Fatalf("forward (-before +after):\n%s", diff)
		}
		n.clean()
		n.state = full
		if plan := n.diff(); !plan.Empty() {
			t.Errorf("with the profile of then: %v", actions(plan))
		}
		if b := n.receipt().Find(hosts).Before; b == nil || n.read(b.Path) != "mine" {
			t.Errorf("what was there is kept as %+v", b)
		}
		if b := n.receipt().Find("/etc/link").Before; b == nil || b.Target != "/opt/x" {
			t.Errorf("the link that was there is kept as %+v", b)
		}
	}
	// Once it was given back and edited, it is nobody's but his.
	n.rollback(0)
	n.write(hosts, "edited")
	if _, err := n.tryRollback(0); err == nil || !strings.Contains(err.Error(), hosts+": exists and was not written by nodeprep") {
		t.Errorf("forward over an edited file: %v", err)
	}
}

// TestRollbackUnproven: of a file that somebody had edited when it was taken over, only
// the edit is kept. It comes back, and shows as what it is.
func TestRollbackUnproven(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.apply()
	n.write(config, "VERSION = 2\n") // as long as what was written
	n.opt.Adopt = true
	n.change(func() { n.file(config).Content = []byte("version = 3\n") })
	n.apply()
	n.opt.Adopt = false
	n.rollback(0)
	if got := n.read(config); got != "VERSION = 2\n" {
		t.Errorf("config %q", got)
	}
	d, err := Drift(t.Context(), n.h.Root, n.receipt(), false)
	if err != nil || len(d) != 1 || d[0].Path != config {
		t.Errorf("drift %v, %v; want the edited file", d, err)
	}
}

// TestRollbackMissingThen: what had been lost when the next generation came.
func TestRollbackMissingThen(t *testing.T) {
	t.Run("same since", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.apply()
		n.remove(config)
		n.change(func() { n.state.Artifacts[1].Version = "1.1.0" })
		n.apply()
		n.rollback(0)
		if got := n.read(config); got != "version = 2\n" {
			t.Errorf("config %q", got)
		}
		n.clean()
	})
	t.Run("other since", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.apply()
		first := n.state
		n.remove(config)
		n.change(func() { n.file(config).Content = []byte("version = 3\n") })
		n.apply()
		plan := n.planRollback(0)
		if len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0].String(), "nothing of it is kept") {
			t.Errorf("warnings %v", plan.Warnings)
		}
		n.rollback(0)
		d, err := Drift(t.Context(), n.h.Root, n.receipt(), false)
		if err != nil || len(d) != 1 || d[0].What != "is missing" {
			t.Errorf("drift %v, %v", d, err)
		}
		n.state = first
		if got := actions(n.diff()); !slices.Equal(got, []string{"create file " + config}) {
			t.Errorf("with the profile of then: %v", got)
		}
	})
}

// TestRollbackTampered: what was kept is proven before anything is changed.
func TestRollbackTampered(t *testing.T) {
	for _, p := range []string{config, "/usr/local/bin/containerd", "/etc/containerd/certs.d/docker.io/secret.toml"} {
		for what, tamper := range map[string]func(string) error{
			"other content": func(p string) error { return os.WriteFile(p, []byte("evil"), 0o644) },
			"gone":          os.Remove,
			"truncated":     func(p string) error { return os.Truncate(p, 1) },
		} {
			t.Run(what+" "+filepath.Base(p), func(t *testing.T) {
				n := nodeAt(t, fastDir(t))
				n.apply()
				n.change(func() {
					n.file(config).Content = []byte("version = 3\n")
					n.file("/etc/containerd/certs.d/docker.io/secret.toml").Content = []byte("hunter3\n")
					n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0"
				})
				n.apply()
				rec, _, err := kept(n.h.Root, 1)
				if err != nil {
					t.Fatal(err)
				}
				for _, c := range rec.Changes {
					if c.Path == p {
						if err := tamper(filepath.Join(n.dir, c.Kept.Path)); err != nil {
							t.Fatal(err)
						}
					}
				}
				before := n.tree(true)
				plan, err := DiffRollback(t.Context(), n.h, n.receipt(), 0, n.opt.DiffOptions)
				if err == nil {
					_, err = Apply(t.Context(), n.h, plan, n.opt)
				}
				if err == nil || !strings.Contains(err.Error(), p) {
					t.Fatalf("rollback = %v, want a word about %s", err, p)
				}
				if strings.Contains(err.Error(), "hunter") {
					t.Errorf("a secret is told: %v", err)
				}
				n.same(before, true, "tampered")
			})
		}
	}
}

// TestWhatRollbackRestarts: what the daemon reads at its start, and nothing else.
func TestWhatRollbackRestarts(t *testing.T) {
	const hosts, unit = "/etc/containerd/certs.d/docker.io/hosts.toml", "/etc/systemd/system/containerd.service"
	tests := []struct {
		name   string
		change func(n *node)
		want   []string
	}{
		{"a comment", func(n *node) { n.file(config).Content = []byte("# hello\nversion = 2\n") }, nil},
		{"a value", func(n *node) { n.file(config).Content = []byte("version = 3\n") }, []string{"restart containerd.service"}},
		{"hosts.toml", func(n *node) { n.file(hosts).Content = []byte("server = 'https://b'\n") }, nil},
		{"CNI", func(n *node) {
			n.state.Files = append(n.state.Files, desired.File{Path: "/etc/cni/net.d/10.conflist", Mode: 0o644, Content: []byte("{}"), Format: desired.FormatJSON})
		}, nil},
		{"runc", func(n *node) { n.state.Artifacts[1].Version = "1.1.0" }, nil},
		{"the unit", func(n *node) {
			n.file(unit).Content = []byte(strings.Replace(unitText, "[Install]", "TasksMax=9\n[Install]", 1))
		}, []string{"reload", "restart containerd.service"}},
		{"the unit's comment", func(n *node) { n.file(unit).Content = []byte("# x\n" + unitText) }, []string{"reload"}},
		{"a drop-in that came", func(n *node) {
			n.state.Files = append(n.state.Files, desired.File{Path: unit + ".d/10.conf", Mode: 0o644, Content: []byte("[Service]\nTasksMax=1\n"), Format: desired.FormatUnit, Effect: desired.EffectUnit})
		}, []string{"reload", "restart containerd.service"}},
		{"containerd", func(n *node) { n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0" }, []string{"restart containerd.service"}},
		{"a release with the same daemon", func(n *node) {
			n.releases["containerd 1.0.1"] = map[string]string{"containerd": "daemon one", "ctr": "newer ctr"}
			n.state.Artifacts[0].Version, n.state.Daemon.Version = "1.0.1", "1.0.1"
		}, nil},
		{"a mode", func(n *node) { n.file(config).Mode = 0o640 }, nil},
		{"not enabled", func(n *node) { n.state.Units = []desired.Unit{{Name: "containerd.service", Active: true}} }, []string{"reload"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := nodeAt(t, fastDir(t))
			n.live()
			n.apply()
			first := n.tree(false, StateDir)
			n.change(func() { tt.change(n) })
			n.apply()
			for _, what := range []string{"back", "forward"} {
				n.services.did, n.services.asked = nil, 0
				n.rollback(0)
				if diff := cmp.Diff(tt.want, n.services.did); diff != "" {
					t.Errorf("%s: systemd was told (-want +got):\n%s", what, diff)
				}
				if what == "back" {
					if diff := cmp.Diff(first, n.tree(false, StateDir)); diff != "" {
						t.Errorf("back (-want +got):\n%s", diff)
					}
				}
				n.clean()
			}
		})
	}
}

// TestRollbackStartsTheDaemon that is down: the generation had one that ran.
func TestRollbackStartsTheDaemon(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.live()
	n.apply()
	n.change(func() { n.file(config).Content = []byte("version = 3\n") })
	n.apply()
	n.services.active, n.services.did, n.daemon.asked = "failed", nil, nil
	res := n.rollback(0)
	if want := []string{"start containerd.service"}; !slices.Equal(n.services.did, want) || !slices.Equal(res.Started, []string{"containerd.service"}) {
		t.Errorf("systemd was told %v, want %v; started %v", n.services.did, want, res.Started)
	}
	if len(n.daemon.asked) == 0 {
		t.Error("the daemon was not asked how it is")
	}
}

// TestRollbackKernel: modules and settings of the files that come back are set again,
// those that did not change are left.
func TestRollbackKernel(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.live()
	n.write("/proc/sys/net/ipv4/ip_forward", "0\n")
	n.write("/proc/sys/vm/swappiness", "60\n")
	var loaded []string
	n.h.Run = func(_ context.Context, c host.Cmd) (host.Output, error) {
		if c.Path == "/sbin/modprobe" {
			loaded = append(loaded, c.Args[1])
		}
		return host.Output{Stdout: []byte("1.0.0 1.1.0")}, nil
	}
	set := func(modules, forward string) {
		n.state.Files = append(n.state.Files[:4:4],
			desired.File{Path: "/etc/modules-load.d/nodeprep.conf", Mode: 0o644, Format: desired.FormatLines, Effect: desired.EffectModules, Content: []byte("# made\n" + modules + "\n")},
			desired.File{Path: "/etc/sysctl.d/90-nodeprep.conf", Mode: 0o644, Format: desired.FormatLines, Effect: desired.EffectSysctl, Content: []byte("net.ipv4.ip_forward = " + forward + "\n")})
		n.state.Modules, n.state.Sysctl = []string{modules}, map[string]string{"net.ipv4.ip_forward": forward}
	}
	n.change(func() { set("overlay", "1") })
	n.apply()
	n.change(func() { set("br_netfilter", "2") })
	n.apply()
	loaded = nil
	n.rollback(0)
	if got := n.read("/proc/sys/net/ipv4/ip_forward"); got != "1\n" {
		t.Errorf("ip_forward is %q", got)
	}
	if !slices.Contains(loaded, "overlay") || slices.Contains(loaded, "br_netfilter") {
		t.Errorf("loaded %v", loaded)
	}
	n.change(func() { set("overlay", "1") })
	if plan := n.diff(); plan.find(KindSysctl, "net.ipv4.ip_forward").Action != Keep {
		t.Errorf("afterwards there is to do: %v", actions(plan))
	}
}

// TestRollbackUnderRunningPods is held to the same as an apply.
func TestRollbackUnderRunningPods(t *testing.T) {
	setup := func(t *testing.T) *node {
		n := nodeAt(t, fastDir(t))
		n.live()
		n.apply()
		n.change(func() { n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0" })
		n.apply()
		n.daemon.tasks = []daemon.Task{{Namespace: kubernetes, ID: "a", PID: 9, Status: "running"}}
		n.daemon.containers = []daemon.Container{{Namespace: kubernetes, ID: "a", Name: "default/web/nginx", Created: time.Now().Add(time.Hour)}}
		n.services.did = nil
		return n
	}
	t.Run("refused", func(t *testing.T) {
		n := setup(t)
		n.write("/etc/systemd/system/containerd.service.d/10-mine.conf", "[Service]\nKillMode=mixed\n")
		before := n.tree(true)
		_, err := n.tryRollback(0)
		for _, want := range []string{"goes back from 2.0.0 to 1.0.0", "--with-running-pods", "KillMode=mixed comes from /etc/systemd/system/containerd.service.d/10-mine.conf", "--force-restart", "default/web"} {
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("rollback = %v, want %q", err, want)
			}
		}
		n.same(before, true, "refused")
		if len(n.services.did) > 0 {
			t.Errorf("systemd was told %v", n.services.did)
		}
	})
	t.Run("allowed", func(t *testing.T) {
		n := setup(t)
		n.opt.WithRunningPods, n.opt.ForceRestart = true, true
		n.rollback(0)
		if want := []string{"restart containerd.service"}; !slices.Equal(n.services.did, want) {
			t.Errorf("systemd was told %v, want %v", n.services.did, want)
		}
	})
	t.Run("hosts.toml alone asks nobody", func(t *testing.T) {
		n := setup(t)
		n.change(func() { n.drop("/etc/containerd/certs.d/docker.io/hosts.toml") })
		n.apply()
		n.rollback(0)
	})
}

// TestRepairMakesNoGeneration: there is nothing in it that one could go back to, and a
// rollback does not break anew what was repaired.
func TestRepairMakesNoGeneration(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.apply()
	n.change(func() { n.file(config).Content = []byte("version = 3\n") })
	n.apply()
	ctr := filepath.Join(n.dir, "/usr/local/bin/ctr")
	if err := os.Chmod(ctr, 0o600); err != nil {
		t.Fatal(err)
	}
	if res := n.apply(); res.Generation != 2 {
		t.Errorf("generation %d after a repair, want 2", res.Generation)
	}
	n.noDebris()
	n.rollback(0)
	if got := n.read(config); got != "version = 2\n" {
		t.Errorf("config %q", got)
	}
	if fi, err := os.Lstat(ctr); err != nil || fi.Mode().Perm() != 0o755 {
		t.Errorf("ctr has mode %v (%v)", fi.Mode(), err)
	}
	n.clean()
}

// TestRollbackKeepsImages: what was imported stays imported, and is known to be.
func TestRollbackKeepsImages(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.live()
	n.apply()
	archive := filepath.Join(t.TempDir(), "pause.tar")
	if err := os.WriteFile(archive, pause().tar(t), 0o600); err != nil {
		t.Fatal(err)
	}
	n.change(func() {
		n.state.Images = []desired.Image{{File: archive}}
		n.file(config).Content = []byte("version = 3\n")
	})
	n.apply()
	n.rollback(0)
	if len(n.receipt().Images) != 1 {
		t.Error("the receipt has forgotten the image")
	}
	n.apply()
	if len(n.daemon.imported) != 1 {
		t.Errorf("imported %v, want once", n.daemon.imported)
	}
}

// TestRollbackAfterAnother: a plan that another run made stale.
func TestRollbackAfterAnother(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.apply()
	n.change(func() { n.file(config).Content = []byte("version = 3\n") })
	n.apply()
	stale := n.planRollback(0)
	n.change(func() { n.file(config).Content = []byte("version = 4\n") })
	n.apply()
	if _, err := Apply(t.Context(), n.h, stale, n.opt); err != nil {
		t.Fatal(err)
	}
	if got := n.read(config); got != "version = 2\n" {
		t.Errorf("config %q, want that of generation 1, which was asked for", got)
	}
	n.clean()
}
