package install

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/host"
)

// lockTimeout is how long recovery at boot waits for the lock.
const lockTimeout = time.Minute

// LockedError says that another nodeprep works on the same root.
type LockedError struct {
	Root string
	// PID and Command are the holder's; 0 and "" where the kernel does not tell, as
	// from another PID namespace.
	PID     int
	Command string
}

// Error names the holder and the remedy.
func (e *LockedError) Error() string {
	who := "another process"
	if e.PID > 0 {
		who = fmt.Sprintf("process %d", e.PID)
		if e.Command != "" {
			who += " (" + e.Command + ")"
		}
	}
	return fmt.Sprintf("lock %s: %s is working on it; run nodeprep again when it has ended", e.Root, who)
}

// Lock takes the root for this process until unlock is called or the process ends:
// an exclusive flock(2) on the root's own directory, for which nothing is written.
// It does not wait; a root that is taken gives *LockedError.
func Lock(root *host.Root) (unlock func(), err error) {
	dir, err := os.Open(root.Dir())
	if err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	pid, command := 0, ""
	if errors.Is(err, unix.EWOULDBLOCK) {
		if pid, command = holder(dir); pid == 0 {
			// Whoever had it may have ended between these two.
			err = unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		}
	}
	if err == nil {
		return unlocker(dir), nil
	}
	defer dir.Close()
	if !errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("lock %s: %w", root.Dir(), err)
	}
	return nil, &LockedError{Root: root.Dir(), PID: pid, Command: command}
}

// lockAtBoot is Lock for a unit that nobody runs again: it waits for whoever is at work, or,
// as any user may take such a lock, in the way.
func lockAtBoot(ctx context.Context, root *host.Root) (unlock func(), err error) {
	unlock, err = Lock(root)
	taken, isTaken := errors.AsType[*LockedError](err)
	if !isTaken {
		return unlock, err
	}
	dir, err := os.Open(root.Dir())
	if err != nil {
		return nil, fmt.Errorf("lock root: %w", err)
	}
	// flock(2) waits for ever. When time is up before it, closing takes back what it gets.
	got, late := make(chan error), make(chan struct{})
	go func() {
		err := unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		for errors.Is(err, unix.EINTR) {
			err = unix.Flock(int(dir.Fd()), unix.LOCK_EX)
		}
		select {
		case got <- err:
		case <-late:
			dir.Close()
		}
	}()
	select {
	case err = <-got:
	case <-ctx.Done():
		close(late)
		return nil, taken
	}
	if err != nil {
		dir.Close()
		return nil, fmt.Errorf("lock %s: %w", root.Dir(), err)
	}
	return unlocker(dir), nil
}

// unlocker gives a lock back. Closing would not do while a program that is being started
// has a copy.
func unlocker(dir *os.File) func() {
	return func() {
		_ = unix.Flock(int(dir.Fd()), unix.LOCK_UN)
		dir.Close()
	}
}

// Working tells who works on a root now, nil where nobody does or the kernel does not
// tell. It takes no lock, and so gets in nobody's way.
func Working(root *host.Root) *LockedError {
	dir, err := os.Open(root.Dir())
	if err != nil {
		return nil
	}
	defer dir.Close()
	if pid, command := holder(dir); pid > 0 {
		return &LockedError{Root: root.Dir(), PID: pid, Command: command}
	}
	return nil
}

// holder finds who has an flock on f in /proc/locks (proc(5)), whose lines are
// "N: FLOCK ADVISORY WRITE PID MAJOR:MINOR:INODE START END". The device there is the
// superblock's, which on btrfs is not what stat(2) says, so the inode decides alone
// where no line has both.
func holder(f *os.File) (pid int, command string) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, ""
	}
	locks, err := os.Open("/proc/locks")
	if err != nil {
		return 0, ""
	}
	defer locks.Close()
	inode := fmt.Sprintf(":%d", st.Ino)
	exact := fmt.Sprintf("%02x:%02x%s", unix.Major(uint64(st.Dev)), unix.Minor(uint64(st.Dev)), inode)
	for lines := bufio.NewScanner(locks); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 6 || fields[1] != "FLOCK" || !strings.HasSuffix(fields[5], inode) {
			continue
		}
		n, err := strconv.Atoi(fields[4])
		if err != nil || n <= 0 {
			continue
		}
		if pid == 0 || fields[5] == exact {
			pid = n
		}
	}
	if pid == 0 {
		return 0, ""
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return pid, ""
	}
	return pid, strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
}
