package bundle

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// workPrefix begins the names of folders in which bundles are made.
const workPrefix = ".nodeprep-bundle-"

// workFolder makes a private folder beside a bundle that is to be made. It is locked until
// remove removes it, or the process ends (flock(2)): by that clearAbandoned knows whether
// somebody still works in it.
func workFolder(dir string) (name string, remove func() error, err error) {
	for {
		name, err := os.MkdirTemp(dir, workPrefix) // 0700
		if err != nil {
			return "", nil, err
		}
		lock, err := lockFolder(name)
		// Another run may find it between the two calls, and take it for abandoned.
		if errors.Is(err, unix.EWOULDBLOCK) || errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if _, gone := os.Lstat(name); lock != nil && errors.Is(gone, fs.ErrNotExist) {
			lock.Close()
			continue
		}
		return name, func() error {
			err := os.RemoveAll(name)
			if lock != nil {
				lock.Close()
			}
			return err
		}, nil
	}
}

// lockFolder locks a folder without waiting. Not every filesystem can.
func lockFolder(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_DIRECTORY, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// clearAbandoned removes what killed runs of this user left in a folder: work folders that
// nobody has locked or, where nothing can be locked, that are older than a day. What cannot be
// removed is in nobody's way.
func clearAbandoned(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), workPrefix) || !e.IsDir() {
			continue
		}
		name := filepath.Join(dir, e.Name())
		fi, err := e.Info()
		if err != nil {
			continue
		}
		if st, ok := fi.Sys().(*syscall.Stat_t); !ok || int(st.Uid) != os.Geteuid() {
			continue
		}
		lock, err := lockFolder(name)
		switch {
		case err == nil:
			_ = os.RemoveAll(name)
			lock.Close()
		case !errors.Is(err, unix.EWOULDBLOCK) && time.Since(fi.ModTime()) > 24*time.Hour:
			_ = os.RemoveAll(name)
		}
	}
}
