package release

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/releases"
)

// A pipe among release files is told of, not waited for.
func TestPipesAreNotWaitedFor(t *testing.T) {
	keys, err := RuncKeyring()
	if err != nil {
		t.Fatal(err)
	}
	version, err := releases.ParseVersion("1.1.99")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"runc.amd64.asc", "SHA256SUMS"} {
		dir := t.TempDir()
		write(t, filepath.Join(dir, "runc.amd64"), []byte("x"))
		if err := unix.Mkfifo(filepath.Join(dir, name), 0o644); err != nil {
			t.Fatal(err)
		}
		s := &Store{Dirs: []string{dir}, Offline: true}
		_, _, err := s.Lock(t.Context(), []LockRequest{{Request: Request{Component: releases.Runc, Version: version, Arch: "amd64"}}}, LockOptions{Keyring: keys})
		if err == nil || !strings.Contains(err.Error(), name+": not a regular file") {
			t.Errorf("%s: %v", name, err)
		}
	}
	dir := t.TempDir()
	write(t, filepath.Join(dir, "SHA256SUMS"), nil)
	if err := unix.Mkfifo(filepath.Join(dir, "SHA256SUMS.sha256"), 0o644); err != nil {
		t.Fatal(err)
	}
	if _, _, err := checksumBeside(dir, "SHA256SUMS"); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("beside a file at hand: %v", err)
	}
}
