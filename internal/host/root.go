package host

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
)

// Root is the root directory of a host: "/" or a mounted image. Every path given to
// it is absolute as on that host, and symbolic links in it are followed as a chroot
// would follow them: they never leave the root, and a symlinked directory such as
// /lib or /var/lib/containerd is gone through, never replaced.
type Root struct{ dir string }

// OpenRoot returns the Root at dir, which must be an existing directory.
func OpenRoot(dir string) (*Root, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", dir, err)
	}
	// The root itself may be reached through links; only paths below it are confined.
	if abs, err = filepath.EvalSymlinks(abs); err != nil {
		return nil, fmt.Errorf("root %s: %w", dir, err)
	}
	fi, err := os.Stat(abs)
	if err != nil {
		return nil, fmt.Errorf("root %s: %w", dir, err)
	}
	if !fi.IsDir() {
		return nil, fmt.Errorf("root %s: not a directory", dir)
	}
	return &Root{dir: abs}, nil
}

// Dir is the root's directory on the machine that runs nodeprep.
func (r *Root) Dir() string { return r.dir }

// Live reports whether the root is the running system's own.
func (r *Root) Live() bool { return r.dir == "/" }

// Resolve returns the real path of p with every symbolic link followed, the last
// component's too. Components that do not exist are kept as they are.
func (r *Root) Resolve(p string) (string, error) {
	return securejoin.SecureJoin(r.dir, p)
}

// Locate returns the real path of p with the links of its parent followed and the
// last component left alone: the path at which a rename replaces p itself.
func (r *Root) Locate(p string) (string, error) {
	p = filepath.Clean("/" + p)
	if p == "/" {
		return r.dir, nil
	}
	parent, err := securejoin.SecureJoin(r.dir, filepath.Dir(p))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(p)), nil
}

// Open opens the file at p for reading, links followed.
func (r *Root) Open(p string) (*os.File, error) {
	real, err := r.Resolve(p)
	if err != nil {
		return nil, err
	}
	return os.Open(real)
}

// ReadFile reads the file at p, links followed. What has no end, or no beginning until
// somebody writes, is not read: a named pipe, or a device other than /dev/null, which is
// what masked files lead to.
func (r *Root) ReadFile(p string) ([]byte, error) {
	real, err := r.Resolve(p)
	if err != nil {
		return nil, err
	}
	// Else opening a pipe would wait for a writer.
	f, err := os.OpenFile(real, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if kind := fi.Mode().Type(); kind&fs.ModeNamedPipe != 0 || kind&fs.ModeDevice != 0 && filepath.Base(real) != "null" {
		return nil, &fs.PathError{Op: "read", Path: real, Err: errors.New("is a pipe or a device, not a file")}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = &fs.PathError{Op: "read", Path: real, Err: errors.New("is larger than 16 MiB")}
	}
	return b, err
}

// maxFile bounds what is read whole: configuration, and what the kernel tells.
const maxFile = 16 << 20

// Stat follows links, the last component's too.
func (r *Root) Stat(p string) (fs.FileInfo, error) {
	real, err := r.Resolve(p)
	if err != nil {
		return nil, err
	}
	return os.Lstat(real)
}

// Lstat does not follow a link in the last component.
func (r *Root) Lstat(p string) (fs.FileInfo, error) {
	real, err := r.Locate(p)
	if err != nil {
		return nil, err
	}
	return os.Lstat(real)
}

// Readlink returns the target of the link at p, as it is written.
func (r *Root) Readlink(p string) (string, error) {
	real, err := r.Locate(p)
	if err != nil {
		return "", err
	}
	return os.Readlink(real)
}

// ReadDir lists the directory at p, sorted by name.
func (r *Root) ReadDir(p string) ([]fs.DirEntry, error) {
	real, err := r.Resolve(p)
	if err != nil {
		return nil, err
	}
	return os.ReadDir(real)
}

// label reads the extended attribute that holds a file's SELinux label (selinux(8),
// xattr(7)).
func (r *Root) label(p string) (string, error) {
	real, err := r.Resolve(p)
	if err != nil {
		return "", err
	}
	buf := make([]byte, 4096)
	size, err := unix.Getxattr(real, "security.selinux", buf)
	switch {
	case errors.Is(err, unix.ENODATA), errors.Is(err, unix.ENOTSUP):
		return "", nil
	case err != nil:
		return "", &fs.PathError{Op: "getxattr", Path: p, Err: err}
	}
	return strings.TrimRight(string(buf[:size]), "\x00"), nil
}
