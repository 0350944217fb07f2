package daemon

import (
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// lookInterval is how often, in milliseconds, shims are looked at that nothing reports
// the end of.
const lookInterval = 20

// Watch follows shims and notes when each of them ended. It needs nothing of the
// daemon's, which may be down meanwhile.
type Watch struct {
	tasks map[int][]Task
	wake  int // eventfd: Close wants the goroutine to end
	done  chan struct{}
	// pidfds by shim; starts has the shims that the kernel gives none for.
	pidfds map[int]int
	starts map[int]string

	mu    sync.Mutex
	ended map[int]time.Time // when it was noticed
}

// WatchShims follows the shims of tasks until Close: with pidfd_open(2), and by looking
// at proc(5) on kernels before Linux 5.3. Tasks without a known shim are not followed. A
// shim that is gone already has ended now.
func WatchShims(tasks []Task) (*Watch, error) {
	return watchShims(tasks, func(pid int) (int, error) { return unix.PidfdOpen(pid, 0) })
}

func watchShims(tasks []Task, open func(pid int) (fd int, err error)) (*Watch, error) {
	w := &Watch{tasks: byShim(tasks), done: make(chan struct{}), pidfds: map[int]int{}, starts: map[int]string{}, ended: map[int]time.Time{}}
	var err error
	if w.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return nil, fmt.Errorf("watch shims: eventfd: %w", err)
	}
	for shim := range w.tasks {
		_, start := parentAndStart("/proc", shim)
		fd, err := open(shim)
		if err == nil {
			w.pidfds[shim] = fd
		}
		// Between the listing and now another process may have come to the number.
		if !isShim("/proc", shim) || start == "" {
			w.ended[shim] = time.Now()
		} else if err != nil {
			w.starts[shim] = start
		}
	}
	go w.follow()
	return w, nil
}

func (w *Watch) follow() {
	defer close(w.done)
	for w.collect() {
	}
}

// collect waits until a shim may have ended and notes those that did; it is false once
// Close was called.
func (w *Watch) collect() bool {
	wait := -1
	if len(w.starts) > 0 {
		wait = lookInterval
	}
	fds := []unix.PollFd{{Fd: int32(w.wake), Events: unix.POLLIN}}
	w.mu.Lock()
	shims := slices.DeleteFunc(slices.Collect(maps.Keys(w.pidfds)), func(s int) bool { _, gone := w.ended[s]; return gone })
	w.mu.Unlock()
	for _, s := range shims {
		fds = append(fds, unix.PollFd{Fd: int32(w.pidfds[s]), Events: unix.POLLIN})
	}
	if _, err := unix.Poll(fds, wait); err != nil && err != unix.EINTR {
		return false
	}
	now := time.Now()
	var gone []int
	for i, s := range shims {
		if fds[i+1].Revents != 0 {
			gone = append(gone, s)
		}
	}
	for s, start := range w.starts {
		if _, is := parentAndStart("/proc", s); is != start {
			gone = append(gone, s)
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range gone {
		if _, known := w.ended[s]; !known {
			w.ended[s] = now
		}
	}
	return fds[0].Revents == 0
}

// Ended lists the tasks whose shim ended from from to to, both included, sorted.
func (w *Watch) Ended(from, to time.Time) []Task {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []Task
	for shim, at := range w.ended {
		if !at.Before(from) && !at.After(to) {
			out = append(out, w.tasks[shim]...)
		}
	}
	sortTasks(out)
	return out
}

// Close ends the watch.
func (w *Watch) Close() {
	// The counter of an eventfd(2) takes eight bytes in the host's order; any but zero do.
	_, _ = unix.Write(w.wake, []byte{1, 1, 1, 1, 1, 1, 1, 0})
	<-w.done
	for _, fd := range w.pidfds {
		unix.Close(fd)
	}
	unix.Close(w.wake)
}
