package supply

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
)

func openStore(t *testing.T) *Store {
	t.Helper()
	t.Setenv("NODEPREP_TEST_CACHE", t.TempDir())
	s, err := Open(t.Logf)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestEntryIsWholeOrAbsent(t *testing.T) {
	s := openStore(t)
	broken := errors.New("broken")
	_, err := s.Entry(t.Context(), "kind", "key", func(_ context.Context, dir string) error {
		if err := os.WriteFile(filepath.Join(dir, "half"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		return broken
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got error %v, want the build's own", err)
	}
	if _, err := os.Stat(filepath.Join(s.Dir(), "kind", "key")); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("a failed build left an entry (%v)", err)
	}

	// What a killed run leaves must not get into the next one's entry.
	part := filepath.Join(s.Dir(), "kind", ".key.part")
	if err := os.MkdirAll(filepath.Join(part, "stale"), 0o755); err != nil {
		t.Fatal(err)
	}
	dir, err := s.Entry(t.Context(), "kind", "key", func(_ context.Context, dir string) error {
		return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o644)
	})
	if err != nil {
		t.Fatal(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 1 || entries[0].Name() != "whole" {
		t.Errorf("the entry has %v, want whole alone", entries)
	}
}

func TestEntryIsMadeOnce(t *testing.T) {
	s := openStore(t)
	var made atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			if _, err := s.Entry(t.Context(), "kind", "key", func(context.Context, string) error {
				made.Add(1)
				return nil
			}); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if n := made.Load(); n != 1 {
		t.Errorf("made %d times, want once", n)
	}
}

func TestWaitingForAnEntryEndsWithTheContext(t *testing.T) {
	s := openStore(t)
	building, release := make(chan struct{}), make(chan struct{})
	first := make(chan error, 1)
	go func() {
		_, err := s.Entry(t.Context(), "kind", "key", func(context.Context, string) error {
			close(building)
			<-release
			return nil
		})
		first <- err
	}()
	<-building
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Entry(ctx, "kind", "key", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
	close(release)
	if err := <-first; err != nil {
		t.Error(err)
	}
}

func TestScratchOfTheDeadIsRemoved(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	s := openStore(t)
	living, done, err := s.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	dead := filepath.Join(os.TempDir(), "nodeprep-vm-dead")
	if err := os.Mkdir(dead, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dead, "lock"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, done2, err := s.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(dead); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("what a dead process left is there (%v)", err)
	}
	if _, err := os.Stat(living); err != nil {
		t.Errorf("a living process's folder: %v", err)
	}
	if err := errors.Join(done(), done2()); err != nil {
		t.Error(err)
	}
	if left, _ := os.ReadDir(os.TempDir()); len(left) != 0 {
		t.Errorf("left: %v", left)
	}
}
