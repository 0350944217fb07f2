package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/systemd"
)

const recoverLink = unitDir + "/multi-user.target.wants/" + systemd.RecoverUnitName

// program is the file that n.install made.
func (n *node) source() string { return n.file(systemd.Program).Source }

// TestSelfIsFirst: whoever finds an interrupted run is there before there can be one.
func TestSelfIsFirst(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.live()
	n.install("nodeprep")
	var made []string // in the order in which they come into place
	n.opt.writer = &writer{chown: n.h.UID == 0, before: func(_ int64, op, path string) error {
		p := strings.TrimPrefix(path, n.dir)
		switch {
		case op == "create" && !strings.Contains(p, "/.nodeprep.nodeprep-") && !strings.Contains(p, "recover") && !strings.HasPrefix(p, StateDir) && !strings.HasPrefix(p, "/.var."):
			made = append(made, "staging")
		case op == "rename" && !strings.HasPrefix(p, StateDir):
			made = append(made, p)
		}
		return nil
	}}
	n.apply()
	made = slices.Compact(made)
	want := []string{"/var", systemd.Program, systemd.RecoverUnitPath, recoverLink, "staging"}
	slices.Sort(made[1:3])
	slices.Sort(want[1:3])
	if len(made) < 6 || !slices.Equal(made[:5], want) {
		t.Errorf("in this order %v, want %v first", made, want)
	}
	if target, err := n.h.Root.Readlink(recoverLink); err != nil || target != systemd.RecoverUnitPath {
		t.Errorf("the unit is enabled by a link to %q (%v)", target, err)
	}
	if fi, err := n.h.Root.Lstat(systemd.Program); err != nil || fi.Mode() != 0o755 || n.read(systemd.Program) != "nodeprep" {
		t.Errorf("the program is %v, %v", fi, err)
	}
	rec := n.receipt()
	for _, p := range []string{systemd.Program, systemd.RecoverUnitPath, recoverLink} {
		if own := rec.Find(p); own == nil || !own.First {
			t.Errorf("the receipt has %+v for %s", own, p)
		}
	}
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is to do: %v", actions(plan))
	}
	n.clean()
	n.noDebris()
	// Nothing starts it: an apply of its own must not wait for it.
	if slices.ContainsFunc(n.services.did, func(s string) bool { return strings.Contains(s, systemd.RecoverUnitName) }) {
		t.Errorf("systemd was told %v", n.services.did)
	}
}

// TestSelfStaysReadOnce: what tells whether the program is the same is its size and time.
func TestSelfStaysReadOnce(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.install("nodeprep")
	n.apply()
	own := n.receipt().Find(systemd.Program)
	fi, err := os.Stat(n.source())
	if err != nil || own.Source == nil || *own.Source != *sourceOf(fi) {
		t.Fatalf("the receipt has the source %+v (%v)", own.Source, err)
	}
	atime := func(p string) time.Time {
		var st unix.Stat_t
		if err := unix.Stat(p, &st); err != nil {
			t.Fatal(err)
		}
		return time.Unix(st.Atim.Unix())
	}
	past := time.Now().Add(-time.Hour)
	for _, p := range []string{n.source(), filepath.Join(n.dir, systemd.Program)} {
		if err := os.Chtimes(p, past, time.Time{}); err != nil {
			t.Fatal(err)
		}
		before := atime(p)
		if plan := n.diff(); !plan.Empty() {
			t.Errorf("there is to do: %v", actions(plan))
		}
		if !atime(p).Equal(before) {
			t.Errorf("%s was read", p)
		}
	}
	// The same program from elsewhere, or built anew, is read once and is the same.
	other := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(other, []byte("nodeprep"), 0o755); err != nil {
		t.Fatal(err)
	}
	n.file(systemd.Program).Source = other
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("from elsewhere there is to do: %v", actions(plan))
	}
	// So is the installed one itself.
	n.file(systemd.Program).Source = filepath.Join(n.dir, systemd.Program)
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("run from its place there is to do: %v", actions(plan))
	}
}

// TestSelfUpdate of nodeprep alone: one item, no restart, no generation, either way.
func TestSelfUpdate(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.live()
	n.install("nodeprep one")
	n.apply()
	n.change(func() { n.file(config).Content = []byte("version = 3\n") })
	n.apply()
	for _, version := range []string{"nodeprep two", "nodeprep one"} {
		n.services.did = nil
		n.change(func() { n.install(version) })
		plan := n.diff()
		if got, want := actions(plan), []string{"update file " + systemd.Program}; !slices.Equal(got, want) {
			t.Errorf("plan %v, want %v", got, want)
		}
		id := n.receipt().ID
		res := n.apply()
		if res.Generation != 2 || len(res.Changed) != 1 || len(n.services.did) > 0 {
			t.Errorf("generation %d, changed %d, systemd was told %v", res.Generation, len(res.Changed), n.services.did)
		}
		if got := n.read(systemd.Program); got != version {
			t.Errorf("the program is %q", got)
		}
		if n.receipt().ID == id {
			t.Error("the receipt is that of before")
		}
		if plan := n.diff(); !plan.Empty() {
			t.Errorf("afterwards there is to do: %v", actions(plan))
		}
		n.clean()
		n.noDebris()
		if entries, err := n.h.Root.ReadDir(StateDir + "/generations"); err != nil || len(entries) != 2 {
			t.Errorf("generations %v, %v", entries, err)
		}
		if j, err := Pending(n.h.Root); err != nil || j != nil {
			t.Errorf("a journal is left: %v, %v", j, err)
		}
	}
	// The unit changes: systemd reads it anew, containerd runs on.
	n.services.did = nil
	n.change(func() {
		f := n.file(systemd.RecoverUnitPath)
		f.Content = append([]byte("# x\n"), f.Content...)
	})
	n.apply()
	if want := []string{"reload"}; !slices.Equal(n.services.did, want) {
		t.Errorf("systemd was told %v, want %v", n.services.did, want)
	}
}

// TestSelfOutsideOfRollback: it stays what it is when the rest goes back.
func TestSelfOutsideOfRollback(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	n.install("nodeprep one")
	n.apply()
	n.change(func() {
		n.install("nodeprep two")
		f := n.file(systemd.RecoverUnitPath)
		f.Content = append([]byte("# two\n"), f.Content...)
		n.file(config).Content = []byte("version = 3\n")
	})
	n.apply()
	own := n.exactly(StateDir, "/etc/containerd")
	plan := n.planRollback(0)
	if got := actions(plan); !slices.Equal(got, []string{"update file " + config}) {
		t.Errorf("plan %v", got)
	}
	n.rollback(0)
	if now := n.exactly(StateDir, "/etc/containerd"); !slices.Equal(own, now) {
		t.Errorf("from %v to %v", own, now)
	}
	n.clean()
	if own := n.receipt().Find(systemd.Program); own == nil || own.Source == nil || !own.First {
		t.Errorf("the receipt has %+v", own)
	}
	// A failed run leaves the old one, with its inode.
	n.change(func() {
		n.install("nodeprep three")
		n.file(config).Content = []byte("version = 4\n")
	})
	n.opt.writer = failing(func(op, path string) error {
		if op == "rename" && strings.HasSuffix(path, "config.toml") {
			return unix.EIO
		}
		return nil
	})
	before := n.tree(true)
	if _, err := n.tryApply(t.Context()); err == nil {
		t.Fatal("it did not fail")
	}
	n.same(before, true, "failed")
}

// TestSelfLeftOut: a state without nodeprep's own files leaves those that are there.
func TestSelfLeftOut(t *testing.T) {
	n := nodeAt(t, fastDir(t))
	without := n.state
	n.change(func() { n.install("nodeprep") })
	n.apply()
	n.state = without
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("there is to do: %v", actions(plan))
	}
	n.change(func() { n.file(config).Content = []byte("version = 3\n") })
	n.apply()
	for _, p := range []string{systemd.Program, systemd.RecoverUnitPath, recoverLink} {
		if _, err := n.h.Root.Lstat(p); err != nil || n.receipt().Find(p) == nil {
			t.Errorf("%s: %v, owned: %+v", p, err, n.receipt().Find(p))
		}
	}
	before := n.dir
	n.uninstall(UninstallOptions{})
	if entries, err := os.ReadDir(before); err != nil || len(entries) > 0 {
		t.Errorf("left are %v, %v", entries, err)
	}
}

// TestSelfWasThere: somebody had put a nodeprep there by hand.
func TestSelfWasThere(t *testing.T) {
	put := func(n *node, content []byte) {
		n.write(systemd.Program, string(content))
		if err := os.Chmod(filepath.Join(n.dir, systemd.Program), 0o700); err != nil {
			n.t.Fatal(err)
		}
	}
	t.Run("the same", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.install("nodeprep")
		put(n, []byte("nodeprep"))
		before := n.tree(true)
		n.apply()
		if n.receipt().Find(systemd.Program) != nil {
			t.Error("it is owned")
		}
		if plan := n.diff(); !plan.Empty() {
			t.Errorf("there is to do: %v", actions(plan))
		}
		n.uninstall(UninstallOptions{})
		n.same(before, true, "uninstall")
	})
	// This test is a program of nodeprep's module, which is what tells one.
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Run("another version", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.install("nodeprep")
		put(n, self)
		before := n.tree(true)
		plan := n.diff()
		if err := plan.Refusal(); err != nil {
			t.Fatal(err)
		}
		if it := plan.find(KindFile, systemd.Program); it.Action != Update || !slices.Equal(it.Adopted, []string{systemd.Program}) {
			t.Errorf("plan has %+v", it)
		}
		n.apply()
		if got := n.read(systemd.Program); got != "nodeprep" {
			t.Errorf("the program is not ours, %d bytes", len(got))
		}
		n.clean()
		n.change(func() { n.install("nodeprep two") })
		n.apply()
		n.change(func() { n.file(config).Content = []byte("version = 3\n") })
		n.apply()
		n.rollback(0)
		n.uninstall(UninstallOptions{})
		n.same(before, true, "given back")
	})
	t.Run("another version, and the run fails", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.install("nodeprep")
		put(n, self)
		before := n.tree(true)
		n.releases["runc 1.0.0"] = map[string]string{"runc": "half", "BAD": "sha256 mismatch"}
		if _, err := n.tryApply(t.Context()); err == nil {
			t.Fatal("it did not fail")
		}
		n.same(before, true, "failed")
	})
	t.Run("something else", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.install("nodeprep")
		put(n, []byte("#!/bin/sh\n"))
		before := n.tree(true)
		_, err := n.tryApply(t.Context())
		var refused *NotOwnedError
		if !errors.As(err, &refused) || !strings.Contains(err.Error(), systemd.Program+": exists and is not nodeprep") {
			t.Errorf("apply = %v", err)
		}
		n.same(before, true, "refused")
		n.opt.Adopt = true
		n.apply()
		n.uninstall(UninstallOptions{})
		n.same(before, true, "given back")
	})
	t.Run("replaced since by hand", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.install("nodeprep")
		n.apply()
		put(n, self)
		plan := n.diff()
		if got := actions(plan); !slices.Equal(got, []string{"update file " + systemd.Program}) {
			t.Errorf("plan %v", got)
		}
		n.apply()
		if plan := n.diff(); !plan.Empty() {
			t.Errorf("afterwards there is to do: %v", actions(plan))
		}
		// Left for good where it is what runs the uninstall.
		put(n, self)
		res := n.uninstall(UninstallOptions{})
		if fi, err := n.h.Root.Lstat(systemd.Program); err != nil || fi.Size() != int64(len(self)) || len(res.Warnings) == 0 {
			t.Errorf("it is %v, %v; warnings %v", fi, err, res.Warnings)
		}
	})
	t.Run("gone since, and theirs comes back", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.install("nodeprep")
		put(n, []byte("#!/bin/sh\n"))
		before := n.tree(true)
		n.opt.Adopt = true
		n.apply()
		n.remove(systemd.Program)
		n.uninstall(UninstallOptions{})
		n.same(before, true, "given back")
	})
	t.Run("a directory", func(t *testing.T) {
		n := nodeAt(t, fastDir(t))
		n.install("nodeprep")
		n.mkdir(systemd.Program)
		_, err := n.tryApply(t.Context())
		if err == nil || !strings.Contains(err.Error(), "is a directory") {
			t.Errorf("apply = %v", err)
		}
		if _, err := n.h.Root.Lstat(StateDir); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is there: %v", StateDir, err)
		}
	})
}
