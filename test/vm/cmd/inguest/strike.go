package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	stateDir = "/var/lib/nodeprep"
	journal  = stateDir + "/journal.json"
)

// struck is what became of a command that was struck.
type struck struct {
	// Stage is the journal's when the signal was sent, "" when the command had ended
	// before it got there.
	Stage string
	// Code is the exit code, or 128 plus the number of the signal that ended it; -1 of a
	// command that was stopped, and still is.
	Code   int
	Output string
}

// strike runs a command and sends it a signal once its journal is at a stage, or beyond
// it. A command that is stopped is left so. What a unit runs is only sent the signal.
func strike(ctx context.Context, args []string) (*struck, error) {
	signals := map[string]syscall.Signal{"KILL": unix.SIGKILL, "TERM": unix.SIGTERM, "INT": unix.SIGINT, "STOP": unix.SIGSTOP}
	stages := []string{"stage", "commit", "activate", "reverted"}
	flags := flag.NewFlagSet("strike", flag.ContinueOnError)
	stage := flags.String("stage", "stage", "one of "+strings.Join(stages, ", "))
	after := flags.Duration("after", 0, "how long after that")
	name := flags.String("signal", "KILL", "the signal")
	unit := flags.String("unit", "", "the command is run by systemd, as this unit")
	if err := flags.Parse(args); err != nil {
		return nil, err
	}
	signal, known := signals[*name]
	wanted := slices.Index(stages, *stage)
	if (flags.NArg() == 0) == (*unit == "") || !known || wanted < 0 {
		return nil, errUsage
	}

	watch, err := watchJournal()
	if err != nil {
		return nil, err
	}
	defer watch.Close()
	seen := make(chan string, 1)
	go func() {
		// It ends when the watch is closed. What systemd runs may have begun already.
		wait := *unit == ""
		for buf := make([]byte, 16<<10); ; wait = true {
			if wait {
				if _, err := watch.Read(buf); err != nil {
					return
				}
			}
			watchState(watch)
			if now := stageNow(); slices.Index(stages, now) >= wanted {
				seen <- now
				return
			}
		}
	}()
	if *unit != "" {
		return strikeUnit(seen, *unit, *name, *after)
	}

	// Not a buffer: somebody holds a stopped command's output open for good.
	out, err := os.CreateTemp("", "strike-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	if signal == unix.SIGSTOP {
		ctx = context.WithoutCancel(ctx) // it outlives this program
	}
	cmd := exec.CommandContext(ctx, flags.Arg(0), flags.Args()[1:]...)
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	result := &struck{Code: -1}
	select {
	case result.Stage = <-seen:
		select {
		case <-time.After(*after):
		case err = <-ended:
			ended <- err
		}
		// What has ended meanwhile was too quick, and says so by its code.
		if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return nil, err
		}
		if now := stageNow(); now != "" {
			result.Stage = now
		}
	case err = <-ended:
		ended <- err
	}
	if signal != unix.SIGSTOP || result.Stage == "" {
		err = <-ended
		if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
			return nil, err
		}
		status := cmd.ProcessState.Sys().(syscall.WaitStatus)
		result.Code = status.ExitStatus()
		if status.Signaled() {
			result.Code = 128 + int(status.Signal())
		}
	}
	said, err := os.ReadFile(out.Name())
	result.Output = string(said)
	return result, err
}

// strikeUnit sends the signal to a unit's main process. It waits for the stage for as long as
// it is left running: the machine may be about to boot.
func strikeUnit(seen <-chan string, unit, signal string, after time.Duration) (*struck, error) {
	result := &struck{Stage: <-seen, Code: -1}
	time.Sleep(after)
	cmd := exec.Command("systemctl", "kill", "--kill-who=main", "--signal="+signal, unit)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("signal %s: %w: %s", unit, err, out)
	}
	if now := stageNow(); now != "" {
		result.Stage = now
	}
	return result, nil
}

// watchJournal returns what can be read from whenever something comes or goes where the
// journal is, or is to be.
func watchJournal() (*os.File, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the journal: %w", err)
	}
	if _, err := unix.InotifyAddWatch(fd, "/var/lib", unix.IN_CREATE|unix.IN_MOVED_TO); err != nil {
		return nil, &os.PathError{Op: "watch", Path: "/var/lib", Err: err}
	}
	f := os.NewFile(uintptr(fd), "inotify")
	watchState(f)
	return f, nil
}

// watchState watches the state directory as soon as there is one.
func watchState(watch *os.File) {
	raw, err := watch.SyscallConn()
	if err != nil {
		return
	}
	// It is not there before the first run, and may go again.
	_ = raw.Control(func(fd uintptr) {
		_, _ = unix.InotifyAddWatch(int(fd), stateDir, unix.IN_CREATE|unix.IN_MOVED_TO)
	})
}

// stageNow is the journal's stage, "" where there is none.
func stageNow() string {
	data, err := os.ReadFile(journal)
	if err != nil {
		return ""
	}
	var j struct{ Stage string }
	if json.Unmarshal(data, &j) != nil {
		return ""
	}
	return j.Stage
}
