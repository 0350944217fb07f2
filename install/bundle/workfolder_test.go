package bundle

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What a killed run left goes with the next one; what somebody works in, and what is another's
// by its name, stays.
func TestAbandonedFoldersAreRemoved(t *testing.T) {
	dir := t.TempDir()
	abandoned := filepath.Join(dir, workPrefix+"1")
	like := filepath.Join(dir, workPrefix+"file")
	other := filepath.Join(dir, ".nodeprep-other")
	if err := errors.Join(os.MkdirAll(filepath.Join(abandoned, "layout"), 0o700), os.WriteFile(filepath.Join(abandoned, "layout", "blob"), []byte("x"), 0o600),
		os.WriteFile(like, nil, 0o600), os.Mkdir(other, 0o700), os.Symlink(other, filepath.Join(dir, workPrefix+"link"))); err != nil {
		t.Fatal(err)
	}
	working, remove, err := workFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Write(t.Context(), filepath.Join(dir, "node.bundle"), smallContents(t, "amd64"), WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	for name, stays := range map[string]bool{abandoned: false, like: true, other: true, working: true} {
		if _, err := os.Lstat(name); (err == nil) != stays {
			t.Errorf("%s: %v, should stay: %v", name, err, stays)
		}
	}
	if err := remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(working); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the folder of a run that ended: %v", err)
	}
}

// A bundle never replaces what it is made of.
func TestInputsAreNotReplaced(t *testing.T) {
	s := newSite(t)
	o := s.options(t, "amd64")
	o.Force = true
	linked := filepath.Join(s.dir, "linked.tar")
	if err := os.Link(filepath.Join(s.dir, "images/pause.tar"), linked); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{filepath.Join(s.dir, "images/pause.tar"), linked, filepath.Join(s.dir, "base/ca.pem"), filepath.Join(s.artifacts, "runc.amd64"),
		filepath.Join(s.artifacts, "nodeprep-1.2.3-linux-amd64")} {
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = Create(t.Context(), file, o)
		if _, is := errors.AsType[*InputError](err); !is || !strings.Contains(err.Error(), file) {
			t.Errorf("%s: %v", file, err)
		}
		if after, err := os.ReadFile(file); err != nil || string(after) != string(before) {
			t.Errorf("%s was changed: %v", file, err)
		}
	}
}

// What could not be opened again is not made.
func TestUnreadableBundlesAreNotMade(t *testing.T) {
	c := smallContents(t, "amd64")
	c.Platforms[0].Node = append(c.Platforms[0].Node, inMemory("files/ca\x1b[2K.pem", "x"))
	file := filepath.Join(t.TempDir(), "node.bundle")
	if _, err := Write(t.Context(), file, c, WriteOptions{}); err == nil || !strings.Contains(err.Error(), `cannot be printed: "files/ca\x1b[2K.pem"`) {
		t.Errorf("got %v", err)
	}
	onlyFile(t, file)
}
