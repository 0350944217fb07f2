package install

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// writer makes every change that nodeprep makes to a filesystem: nothing else in
// this program writes to a host. Its calls are counted, and before and after can
// look at or fail each one, so that a test can stop the program at every point.
// Paths are real ones, with links followed already. It is safe for concurrent use.
type writer struct {
	// chown says that what is made belongs to root; an unprivileged user's own
	// files, under a root of his, stay his.
	chown bool
	calls atomic.Int64
	// before, if set, is asked ahead of each change and prevents it by an error;
	// after is told once it is made. With either, changes are made one at a time.
	before func(n int64, op, path string) error
	after  func(n int64, op, path string)
	mu     sync.Mutex
}

func (w *writer) do(op, path string, change func() error) error {
	if w.before != nil || w.after != nil {
		w.mu.Lock()
		defer w.mu.Unlock()
	}
	n := w.calls.Add(1)
	if w.before != nil {
		if err := w.before(n, op, path); err != nil {
			return &fs.PathError{Op: op, Path: path, Err: err}
		}
	}
	if err := change(); err != nil {
		return err
	}
	if w.after != nil {
		w.after(n, op, path)
	}
	return nil
}

func (w *writer) mkdir(path string, mode fs.FileMode) error {
	err := w.do("mkdir", path, func() error { return os.Mkdir(path, mode.Perm()) })
	if err != nil {
		return err
	}
	// The umask may have taken bits away.
	if err := w.do("chmod", path, func() error { return os.Chmod(path, mode) }); err != nil {
		return err
	}
	return w.giveToRoot(path)
}

func (w *writer) giveToRoot(path string) error {
	if !w.chown {
		return nil
	}
	return w.lchown(path, 0, 0)
}

func (w *writer) lchown(path string, uid, gid uint32) error {
	return w.do("chown", path, func() error { return os.Lchown(path, int(uid), int(gid)) })
}

func (w *writer) chmod(path string, mode fs.FileMode) error {
	return w.do("chmod", path, func() error { return os.Chmod(path, mode) })
}

func (w *writer) rename(from, to string) error {
	return w.do("rename", to, func() error { return os.Rename(from, to) })
}

func (w *writer) link(from, to string) error {
	return w.do("link", to, func() error { return os.Link(from, to) })
}

func (w *writer) symlink(target, path string) error {
	if err := w.do("symlink", path, func() error { return os.Symlink(target, path) }); err != nil {
		return err
	}
	return w.giveToRoot(path)
}

// lutime sets the time of a link itself, nanoseconds since 1970.
func (w *writer) lutime(path string, mtime int64) error {
	return w.do("utime", path, func() error {
		t := unix.NsecToTimespec(mtime)
		return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{t, t}, unix.AT_SYMLINK_NOFOLLOW)
	})
}

// remove removes a file or a link, and is content when there is none.
func (w *writer) remove(path string) error {
	return w.do("remove", path, func() error {
		if err := unix.Unlink(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &fs.PathError{Op: "remove", Path: path, Err: err}
		}
		return nil
	})
}

// rmdir removes an empty directory; one that is gone already is no error.
func (w *writer) rmdir(path string) error {
	return w.do("rmdir", path, func() error {
		if err := unix.Rmdir(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return &fs.PathError{Op: "rmdir", Path: path, Err: err}
		}
		return nil
	})
}

// rmdirUnused removes a directory that nobody uses, and reports whether it is gone.
func (w *writer) rmdirUnused(path string) (gone bool, err error) {
	err = w.rmdir(path)
	if errors.Is(err, unix.ENOTEMPTY) || errors.Is(err, unix.EEXIST) || errors.Is(err, unix.EBUSY) {
		return false, nil
	}
	return err == nil, err
}

// removeTree removes a directory of ours with what is in it; links are not followed,
// and a link in its own place is all that goes.
func (w *writer) removeTree(dir string) error {
	fi, err := lstat(dir)
	if err != nil || fi == nil {
		return err
	}
	if !fi.IsDir() {
		return w.remove(dir)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		if e.IsDir() {
			err = w.removeTree(p)
		} else {
			err = w.remove(p)
		}
		if err != nil {
			return err
		}
	}
	return w.rmdir(dir)
}

// sync makes durable the entries of a directory, or a file.
func (w *writer) sync(path string) error {
	return w.do("fsync", path, func() error {
		d, err := os.Open(path)
		if err != nil {
			return err
		}
		defer d.Close()
		return d.Sync()
	})
}

// setValue writes a kernel setting, a file under /proc/sys.
func (w *writer) setValue(path, value string) error {
	return w.do("set", path, func() error {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err != nil {
			return err
		}
		_, err = f.WriteString(value + "\n")
		return errors.Join(err, f.Close())
	})
}

// newFile is a file that is being written under a name of no meaning. Nobody but
// its owner can read it before finish.
type newFile struct {
	ctx     context.Context
	w       *writer
	f       *os.File
	path    string
	hash    hash.Hash
	size    int64
	flushed int64
	// progress, if set, is told of each piece.
	progress func(n int)
	// attributes are extended ones that the file gets, where the filesystem has them.
	attributes []attribute
}

// flushEvery is how many bytes gather before the kernel is asked to write them back.
// Early write-back lets the disk work while the processor decompresses, so that the
// fsync at the end finds little left to do.
const flushEvery = 4 << 20

// create makes a file that must not exist yet, mode 0600. The digest gathers in h.
func (w *writer) create(ctx context.Context, path string, h hash.Hash) (*newFile, error) {
	n := &newFile{ctx: ctx, w: w, path: path, hash: h}
	err := w.do("create", path, func() (err error) {
		n.f, err = os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
		return err
	})
	if err != nil {
		return nil, err
	}
	return n, nil
}

// Write appends p; it fails when the context has ended.
func (n *newFile) Write(p []byte) (int, error) {
	if n.ctx.Err() != nil {
		return 0, context.Cause(n.ctx)
	}
	var written int
	err := n.w.do("write", n.path, func() (err error) {
		written, err = n.f.Write(p)
		return err
	})
	n.hash.Write(p[:written])
	n.size += int64(written)
	if n.progress != nil {
		n.progress(written)
	}
	if err == nil && n.size-n.flushed >= flushEvery {
		n.flush()
	}
	return written, err
}

// flush starts the write-back of what Write has left.
func (n *newFile) flush() {
	if n.size > n.flushed {
		startWriteBack(n.f, n.flushed, n.size-n.flushed)
		n.flushed = n.size
	}
}

func (n *newFile) sum() string { return hex.EncodeToString(n.hash.Sum(nil)) }

// owner is who shall own a file; nil leaves it to whoever runs nodeprep.
type owner struct{ uid, gid uint32 }

// attribute is an extended one (xattr(7)), such as an ACL or a capability.
type attribute struct {
	name  string
	value []byte
}

// attributes are those of a file that can be read.
func attributes(f *os.File) []attribute {
	list := make([]byte, 64<<10) // no list is longer (listxattr(2))
	n, err := unix.Flistxattr(int(f.Fd()), list)
	if err != nil {
		return nil
	}
	var out []attribute
	for name := range strings.SplitSeq(string(list[:n]), "\x00") {
		value := make([]byte, 64<<10)
		if n, err := unix.Fgetxattr(int(f.Fd()), name, value); name != "" && err == nil {
			out = append(out, attribute{name, value[:n]})
		}
	}
	return out
}

// finish gives the file its owner, mode and attributes, in this order, since chown(2)
// clears setuid and capabilities, and makes it durable. mtime, if not zero, is set too.
func (n *newFile) finish(mode fs.FileMode, own *owner, mtime time.Time) error {
	err := func() error {
		if own != nil {
			if err := n.w.do("chown", n.path, func() error { return n.f.Chown(int(own.uid), int(own.gid)) }); err != nil {
				return err
			}
		}
		if err := n.w.do("chmod", n.path, func() error { return n.f.Chmod(mode) }); err != nil {
			return err
		}
		for _, a := range n.attributes {
			err := n.w.do("setxattr", n.path, func() error { return unix.Fsetxattr(int(n.f.Fd()), a.name, a.value, 0) })
			// Not every filesystem has them, and not everybody may set all of them.
			if err != nil && !errors.Is(err, unix.ENOTSUP) && !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.EACCES) {
				return fmt.Errorf("set attribute %s of %s: %w", a.name, n.path, err)
			}
		}
		if !mtime.IsZero() {
			if err := n.w.do("utime", n.path, func() error { return os.Chtimes(n.path, mtime, mtime) }); err != nil {
				return err
			}
		}
		return n.w.do("fsync", n.path, n.f.Sync)
	}()
	return errors.Join(err, n.f.Close())
}

// abandon closes the file without finishing it; whoever made it removes it.
func (n *newFile) abandon() { n.f.Close() }

// isFull reports whether an error means that a filesystem has no room left.
func isFull(err error) bool {
	return errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT)
}

// SpaceError lists the filesystems that are too small for a plan.
type SpaceError struct{ Short []Shortage }

// Shortage is one filesystem without room; Needed is 0 when it was met halfway.
type Shortage struct {
	// Path is a directory on it, as on the node.
	Path              string
	Needed, Available uint64 // bytes
}

// Error names every filesystem that is short.
func (e *SpaceError) Error() string {
	msg := "no space"
	for i, s := range e.Short {
		sep := "; "
		if i == 0 {
			sep = ": "
		}
		if s.Needed == 0 {
			msg += fmt.Sprintf("%sthe filesystem of %s became full while writing", sep, s.Path)
			continue
		}
		msg += fmt.Sprintf("%sthe filesystem of %s needs %s and has %s", sep, s.Path, mib(s.Needed), mib(s.Available))
	}
	return msg + "; nothing was changed, free some space and run nodeprep again"
}

func mib(n uint64) string { return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20)) }
