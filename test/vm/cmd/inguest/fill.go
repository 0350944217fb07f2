package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fill waits until somebody creates a file in the folder, and then takes all the space
// that its file system has: so a disk that looked large enough turns out not to be. It
// says "ready" when it watches.
func fill(ctx context.Context, dir string) error {
	watch, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	if _, err := unix.InotifyAddWatch(watch, dir, unix.IN_CREATE); err != nil {
		return &os.PathError{Op: "watch", Path: dir, Err: err}
	}
	events := os.NewFile(uintptr(watch), "inotify")
	defer events.Close()
	stop := context.AfterFunc(ctx, func() { events.Close() })
	defer stop()
	fmt.Println("ready")
	if _, err := events.Read(make([]byte, 4096)); err != nil {
		return err
	}
	// Beside the folder, so that it is not taken for the other's.
	hog, err := os.Create(filepath.Join(filepath.Dir(dir), "hog"))
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = hog.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		return errors.Join(err, hog.Close())
	}
	return hog.Close()
}
