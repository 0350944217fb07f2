package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"runtime"
	"time"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// target is the root that a verb works on.
type target struct {
	root *host.Root
	host *host.Host
	// manager is nil where there is no running systemd to ask.
	manager *systemd.Manager
}

func (t *target) close() {
	if t.manager != nil {
		t.manager.Close()
	}
}

// services is the Manager as install wants it: a nil *Manager is no Services.
func (t *target) services() install.Services {
	if t.manager == nil {
		return nil
	}
	return t.manager
}

// daemon is the running containerd, nil under a root that is not running.
func (t *target) daemon() install.Daemon {
	if !t.root.Live() {
		return nil
	}
	return install.Containerd{}
}

// openFor opens the root of a verb that takes no profile.
func (a *app) openFor(verb string) (*target, error) {
	if a.profile != "" {
		return nil, usagef("%s: goes by what was applied to the host and takes no profile", verb)
	}
	return a.open()
}

// open opens the root that a verb works on.
func (a *app) open() (*target, error) {
	root, err := a.openRoot()
	if err != nil {
		return nil, err
	}
	if root.Live() && runtime.GOOS != "linux" {
		return nil, usagef("this is %s: name a Linux host's root with --root DIR", runtime.GOOS)
	}
	return &target{root: root, host: host.New(root)}, nil
}

// connect asks for the running systemd, where there is one.
func (t *target) connect(ctx context.Context) error {
	if t.manager != nil || !t.root.Live() || !host.GatherFacts(t.root, "").SystemdInit {
		return nil
	}
	m, err := systemd.Connect(ctx, runner(t.host))
	if err != nil {
		return err
	}
	t.manager = m
	return nil
}

// pending reads a root's journal, which only root may; nil when there is none.
func pending(root *host.Root) (*install.Journal, error) {
	j, err := install.Pending(root)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("read %s: permission denied (run it with sudo)", install.JournalPath)
	}
	if err != nil {
		return nil, fmt.Errorf("%w; nodeprep changes nothing on %s while that file is there", err, root.Dir())
	}
	return j, nil
}

// interrupted says in words which run has not ended, and what to do about it.
func interrupted(root *host.Root, j *install.Journal) string {
	s := fmt.Sprintf("%s that began at %s has not ended: ", article(j.Verb), j.Time.Local().Format(time.DateTime))
	if at := install.Working(root); at != nil {
		s += fmt.Sprintf("process %d", at.PID)
		if at.Command != "" {
			s += " (" + at.Command + ")"
		}
		return s + " is working on it"
	}
	command := "nodeprep recover"
	if !root.Live() {
		command += " --root " + root.Dir()
	}
	return s + command + " finishes or reverts it"
}

func article(v install.Verb) string {
	switch v {
	case install.VerbApply, install.VerbUninstall:
		return "an " + string(v)
	}
	return "a " + string(v)
}

// recoverFirst ends a run that was interrupted, before anything is planned on top of
// half of it. Without one it looks at one file and does nothing.
func (a *app) recoverFirst(ctx context.Context, t *target, withRunningPods bool) (*install.Recovered, error) {
	j, err := pending(t.root)
	if err != nil || j == nil {
		return nil, err
	}
	progress := a.progress()
	defer progress.finish()
	// Whoever works on it now has not been interrupted; Recover says who that is.
	if !a.structured && install.Working(t.root) == nil {
		progress.say("%s that nodeprep %s began at %s was interrupted: recovering first",
			article(j.Verb), j.Nodeprep, j.Time.Local().Format(time.DateTime))
	}
	if err := t.connect(ctx); err != nil {
		return nil, err
	}
	opt := t.recovery(progress)
	opt.WithRunningPods = withRunningPods
	done, err := install.Recover(ctx, t.host, opt)
	if err != nil {
		return done, err
	}
	a.changed = done.Outcome != install.NothingPending
	if !a.structured {
		for _, line := range recoveredLines(t.root, done) {
			progress.say("%s", line)
		}
	}
	for _, d := range done.Warnings {
		progress.say("%s", progress.paint.diagnostic(d))
	}
	return done, nil
}

// recovery is what recovering needs of the target.
func (t *target) recovery(o install.Observer) install.RecoverOptions {
	return install.RecoverOptions{Services: t.services(), Daemon: t.daemon(), Observer: o, Version: versionString()}
}

// recoveredLines say what became of an interrupted run.
func recoveredLines(root *host.Root, r *install.Recovered) []string {
	run := fmt.Sprintf("the %s of %s", r.Verb, r.Time.Local().Format(time.DateTime))
	var lines []string
	switch r.Outcome {
	case install.WasReverted:
		lines = append(lines, fmt.Sprintf("reverted %s: %s is as it was before it", run, root.Dir()))
	case install.WasFinished:
		lines = append(lines, fmt.Sprintf("finished %s: it had done its work", run))
	}
	for _, u := range r.Restarted {
		lines = append(lines, fmt.Sprintf("restarted %s, which the %s had replaced", u, r.Verb))
	}
	return lines
}
