package supply

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Store is a folder of things that are dear to make. An entry is a folder that is
// there whole or not at all, and never changes once it is there.
type Store struct {
	dir string
	log func(format string, args ...any)
}

// unusedFor is how long an entry that nobody opened is kept once a newer one of its
// kind is made.
const unusedFor = 3 * 24 * time.Hour

// Open returns the store in $NODEPREP_TEST_CACHE, or else in nodeprep-test under the
// user's cache folder, and creates it. Slow steps are told to log.
func Open(log func(format string, args ...any)) (*Store, error) {
	dir := os.Getenv("NODEPREP_TEST_CACHE")
	if dir == "" {
		// Not os.UserCacheDir, which fails without HOME, as in a bare CI job.
		home := os.Getenv("HOME")
		if home == "" {
			home = "/root"
		}
		dir = filepath.Join(home, ".cache", "nodeprep-test")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("create test cache: %w", err)
	}
	return &Store{dir: dir, log: log}, nil
}

// Dir is the store's folder.
func (s *Store) Dir() string { return s.dir }

// Failed returns a new folder for what is left of a failed machine. It is kept for days.
func (s *Store) Failed(name string) (string, error) {
	parent := filepath.Join(s.dir, "failed")
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	if err := s.prune(parent, ""); err != nil {
		return "", err
	}
	name = strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' {
			return '-'
		}
		return r
	}, name)
	dir, err := os.MkdirTemp(parent, name+"-")
	if err != nil {
		return "", err
	}
	return dir, os.Chmod(dir, 0o755)
}

// Scratch makes a folder with a short path for this process's temporary files; done removes
// it. Those of processes that were killed before they could are removed first.
func (s *Store) Scratch() (dir string, done func() error, err error) {
	const pattern = "nodeprep-vm-"
	old, err := filepath.Glob(filepath.Join(os.TempDir(), pattern+"*"))
	if err != nil {
		return "", nil, err
	}
	for _, dir := range old {
		// Its owner holds the lock as long as it lives.
		f, err := os.Open(filepath.Join(dir, "lock"))
		if err != nil {
			continue
		}
		if syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) == nil {
			if err := os.RemoveAll(dir); err != nil {
				s.log("remove what an earlier run left: %v", err)
			}
		}
		f.Close()
	}
	if dir, err = os.MkdirTemp("", pattern); err != nil {
		return "", nil, err
	}
	unlock, err := s.lock(context.Background(), filepath.Join(dir, "lock"))
	if err != nil {
		return "", nil, errors.Join(err, os.RemoveAll(dir))
	}
	return dir, func() error {
		unlock()
		return os.RemoveAll(dir)
	}, nil
}

// Entry returns the folder kind/key, and has build fill it first when it is not there.
// build gets a folder beside it, which is renamed when build is done: an interrupted run
// leaves nothing that a later one would take for finished. Processes that want the same
// entry wait for the one that makes it.
func (s *Store) Entry(ctx context.Context, kind, key string, build func(ctx context.Context, dir string) error) (string, error) {
	dir := filepath.Join(s.dir, kind, key)
	if found, err := s.use(dir); found || err != nil {
		return dir, err
	}
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return "", err
	}
	unlock, err := s.lock(ctx, filepath.Join(parent, "."+key+".lock"))
	if err != nil {
		return "", err
	}
	defer unlock()
	if found, err := s.use(dir); found || err != nil {
		return dir, err
	}
	// Whoever held the lock before and left a half-made folder is gone.
	tmp := filepath.Join(parent, "."+key+".part")
	if err := os.RemoveAll(tmp); err != nil {
		return "", err
	}
	if err := os.Mkdir(tmp, 0o755); err != nil {
		return "", err
	}
	start := time.Now()
	s.log("making %s/%s", kind, key)
	if err := build(ctx, tmp); err != nil {
		return "", errors.Join(fmt.Errorf("make %s/%s: %w", kind, key, err), os.RemoveAll(tmp))
	}
	if err := os.Rename(tmp, dir); err != nil {
		return "", err
	}
	s.log("made %s/%s in %.1f s", kind, key, time.Since(start).Seconds())
	return dir, nil
}

// Keyed is Entry for things that are made anew when what they are made of changes: name
// says what it is, inputs are hashed. Once a new one is made, older ones of that name that
// nobody used for days are removed.
func (s *Store) Keyed(ctx context.Context, kind, name string, inputs any, build func(ctx context.Context, dir string) error) (string, error) {
	text, err := json.Marshal(inputs)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(text)
	made := false
	dir, err := s.Entry(ctx, kind, name+"-"+hex.EncodeToString(sum[:6]), func(ctx context.Context, dir string) error {
		made = true
		return build(ctx, dir)
	})
	if err == nil && made {
		err = s.prune(filepath.Join(s.dir, kind), name+"-")
	}
	return dir, err
}

// use says whether the entry is there, and notes that it is in use.
func (s *Store) use(dir string) (bool, error) {
	now := time.Now()
	err := os.Chtimes(dir, now, now)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// prune removes entries of the name, or all for none, that were not used of late.
func (s *Store) prune(parent, name string) error {
	siblings, err := filepath.Glob(filepath.Join(parent, name+"*"))
	if err != nil {
		return err
	}
	for _, dir := range siblings {
		info, err := os.Stat(dir)
		if err != nil || time.Since(info.ModTime()) < unusedFor {
			continue
		}
		s.log("removing %s, unused since %s", dir, info.ModTime().Format(time.DateOnly))
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	return nil
}

// lock takes an exclusive lock that ends with the process. The file stays: removing it
// would let two processes hold locks on two files of one name.
func (s *Store) lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC, 0o644)
	if err != nil {
		return nil, err
	}
	locked := make(chan error, 1)
	go func() { locked <- syscall.Flock(int(f.Fd()), syscall.LOCK_EX) }()
	select {
	case err := <-locked:
		if err != nil {
			return nil, errors.Join(&os.PathError{Op: "lock", Path: path, Err: err}, f.Close())
		}
		return func() { f.Close() }, nil
	case <-ctx.Done():
		// The waiting goroutine owns the file now; its lock, once had, goes with it.
		go func() { <-locked; f.Close() }()
		return nil, context.Cause(ctx)
	}
}
