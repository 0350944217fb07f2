package bundle

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/host"
)

// openPath opens a file or folder; a pipe under a file's name is not waited for.
func openPath(name string) (*os.File, error) {
	return os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// spool makes a file of standard input; one that is a file already is taken as it is.
func spool(ctx context.Context, opt OpenOptions) (*os.File, error) {
	if opt.Stdin == nil {
		return nil, errors.New("open standard input: there is none")
	}
	if f, ok := opt.Stdin.(*os.File); ok {
		if fi, err := f.Stat(); err == nil && fi.Mode().IsRegular() {
			if at, err := f.Seek(0, io.SeekCurrent); err == nil && at == 0 {
				return duplicate(f)
			}
		}
	}
	dir := opt.TempDir
	if dir == "" {
		dir = "/var/tmp"
	}
	f, err := host.UnnamedFile(dir)
	if err != nil {
		return nil, fmt.Errorf("copy standard input to %s: %w; $TMPDIR names another folder", dir, err)
	}
	done := make(chan error, 1)
	go func() { done <- copyBundle(f, opt.Stdin, dir) }()
	select {
	case err = <-done:
	case <-ctx.Done():
		// The goroutine may wait for a sender for ever; its next write fails.
		err = context.Cause(ctx)
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// copyBundle copies what begins like a bundle.
func copyBundle(f *os.File, in io.Reader, dir string) error {
	head := make([]byte, 512)
	n, err := io.ReadFull(in, head)
	if err != nil && err != io.EOF && !errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("read standard input: %w", err)
	}
	if problem := noTar(head[:n]); problem != "" {
		return &NotBundleError{Name: "standard input", Problem: problem}
	}
	if _, err := io.Copy(f, io.MultiReader(bytes.NewReader(head[:n]), in)); err != nil {
		return fmt.Errorf("copy standard input to %s: %w; $TMPDIR names another folder", dir, err)
	}
	return nil
}

// duplicate is a file of our own for the same open file.
func duplicate(f *os.File) (*os.File, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open standard input: %w", err)
	}
	return os.NewFile(uintptr(fd), f.Name()), nil
}
