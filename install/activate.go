package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

const (
	// healthTimeout is how long a daemon may take until it answers.
	healthTimeout = 90 * time.Second
	moduleTimeout = 30 * time.Second
	importTimeout = 30 * time.Minute
	undoTimeout   = 20 * time.Minute
	// observeTimeout is how long a daemon that runs may take to say how it is.
	observeTimeout = 15 * time.Second
	// stopRounds is how often tasks are stopped that others start again.
	stopRounds = 5
	// shimTimeout is how long shims may take to end after their tasks.
	shimTimeout  = 5 * time.Second
	shimInterval = 50 * time.Millisecond

	stopKubelet = "a kubelet may be starting them: stop it first (systemctl stop kubelet)"
)

// running holds for a unit whose processes a restart would replace.
func running(p systemd.Properties) bool {
	return p.ActiveState == "active" || p.ActiveState == "reloading"
}

// activate makes the running system use what was committed, in the order in which
// one thing needs another: units, modules, settings (which modules bring), daemons.
func (r *run) activate(ctx context.Context) error {
	if !r.plan.live {
		return ctx.Err()
	}
	if r.j.Stage != activating && slices.ContainsFunc(r.plan.Items, func(it Item) bool { return it.activates() }) {
		if err := r.enter(activating); err != nil {
			return err
		}
	}
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		var err error
		switch it.Action {
		case Load:
			err = r.load(ctx, it.Path)
		case Set:
			err = r.set(it.Path, it.NewVersion)
		case Reload:
			r.touched.reloaded = true
			err = r.opt.Services.Reload(ctx)
		case Start:
			if err = r.issue(Start, it.Path); err == nil {
				r.touched.started = append(r.touched.started, it.Path)
				err = r.opt.Services.Start(ctx, it.Path)
				r.res.Started = r.touched.started
			}
			if err == nil && slices.Contains(r.j.Stop, it.Path) {
				err = r.startDependents(ctx)
			}
		case Restart:
			if err = r.guarded(ctx, it.Path); err == nil {
				err = r.issue(Restart, it.Path)
			}
			if err == nil {
				r.touched.tried = append(r.touched.tried, it.Path)
				err = r.opt.Services.Restart(ctx, it.Path)
				r.res.Restarted = r.touched.tried
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// activates reports whether the item changes the running system.
func (i *Item) activates() bool {
	switch i.Action {
	case Load, Set, Reload, Start, Stop, Restart:
		return true
	}
	return false
}

// guarded looks, right before the daemon's unit is stopped, whether containers live on.
func (r *run) guarded(ctx context.Context, unit string) error {
	if unit != r.plan.state.Daemon.Unit {
		return nil
	}
	if r.guard != nil {
		r.guard.close()
	}
	// Before the restart it still answers where it did.
	var was []string
	if r.plan.receipt != nil {
		was = append(was, r.plan.receipt.Daemon.Address)
	}
	r.guard = newGuard(r.h, r.opt.DiffOptions, r.plan.state.Daemon, was...)
	return r.guard.check(ctx, unit)
}

// dependents are the active units that systemd stops along with others, in no order.
func dependents(ctx context.Context, services Services, units ...string) ([]string, error) {
	var out []string
	known := slices.Clone(units)
	for len(units) > 0 {
		p, err := services.Properties(ctx, units[0])
		if err != nil {
			return nil, err
		}
		units = units[1:]
		for _, u := range p.Dependents() {
			if slices.Contains(known, u) {
				continue
			}
			known, units = append(known, u), append(units, u)
			q, err := services.Properties(ctx, u)
			if err != nil {
				return nil, err
			}
			if running(q) {
				out = append(out, u)
			}
		}
	}
	return out, nil
}

// startDependents starts what systemd stopped along with a daemon that runs again.
func (r *run) startDependents(ctx context.Context) error {
	var faults []error
	for _, u := range r.j.Dependents {
		p, err := r.opt.Services.Properties(ctx, u)
		if err == nil && !running(p) {
			err = r.opt.Services.Start(ctx, u)
		}
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}

// stopUnits stops what an uninstall takes away, while it is still there.
func (r *run) stopUnits() error {
	for _, u := range r.j.Stop {
		ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
		defer cancel()
		if err := r.noTasks(ctx); err != nil {
			return err
		}
		if err := r.issue(Stop, u); err != nil {
			return err
		}
		r.touched.stopped = append(r.touched.stopped, u)
		if err := r.opt.Services.Stop(ctx, u); err != nil {
			return err
		}
		if err := r.noShims(ctx, u); err != nil {
			return err
		}
	}
	return nil
}

// noTasks sees to it that nothing runs under a daemon that goes.
func (r *run) noTasks(ctx context.Context) error {
	if r.plan.stopTasks {
		return r.endTasks(ctx)
	}
	if r.plan.force || r.opt.Daemon == nil {
		return nil
	}
	l, err := look(ctx, r.root, r.opt.Daemon, r.plan.state.Daemon)
	if err != nil {
		return err
	}
	if len(l.tasks) > 0 {
		return fmt.Errorf("stop %s: %s since the plan was made: %s; drain the node and uninstall again, or let --force stop them", r.plan.state.Daemon.Unit,
			plural(len(l.tasks), "a task was started", "tasks were started"), l.describe(l.tasks))
	}
	return nil
}

// endTasks stops tasks until there are none: a kubelet starts others in their place.
func (r *run) endTasks(ctx context.Context) error {
	r.j.Ended = true
	if err := r.writeJournal(); err != nil {
		r.j.Ended = false
		return r.explain(err)
	}
	var tasks []daemon.Task
	for range stopRounds {
		if err := r.opt.Daemon.StopTasks(ctx, r.plan.state.Daemon); err != nil {
			return fmt.Errorf("stop tasks: %w", err)
		}
		var err error
		if tasks, err = r.opt.Daemon.Tasks(ctx, r.plan.state.Daemon); err != nil {
			return fmt.Errorf("see whether tasks stopped: %w", err)
		}
		tasks = slices.DeleteFunc(tasks, func(t daemon.Task) bool { return t.Status == "stopped" })
		if len(tasks) == 0 {
			return nil
		}
	}
	names := taskNames(ctx, r.opt.Daemon, r.plan.state.Daemon, tasks)
	return fmt.Errorf("stop tasks: others were started in their place, %d times: %s; %s", stopRounds, strings.Join(names, ", "), stopKubelet)
}

// noShims looks for tasks that were started between the last look and the daemon's stop,
// and would run on with nobody to look after them. The shims of tasks that were stopped
// may take a moment to end.
func (r *run) noShims(ctx context.Context, unit string) error {
	if r.opt.Daemon == nil || r.plan.force && !r.plan.stopTasks {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, shimTimeout)
	defer cancel()
	tick := time.NewTicker(shimInterval)
	defer tick.Stop()
	for {
		left, err := daemon.Shims(filepath.Join(r.root.Dir(), "proc"), r.plan.state.Daemon.Address)
		if err != nil && !isAbsent(err) {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("%s is stopped, and there %s still %s; %s", unit, plural(len(left), "is", "are"), strings.Join(shims(left), ", "), stopKubelet+", or end by hand a shim that was left over")
		}
	}
}

func (r *run) load(ctx context.Context, module string) error {
	ctx, cancel := context.WithTimeout(ctx, moduleTimeout)
	defer cancel()
	modprobe, err := r.modprobe()
	if err != nil {
		return err
	}
	if _, err := r.h.Run(ctx, host.Cmd{Path: modprobe, Args: []string{"--", module}}); err != nil {
		return fmt.Errorf("load module %s: %w", module, err)
	}
	d := &differ{root: r.root, state: r.plan.state}
	builtin := d.builtinModules()
	if d.moduleLoaded(module, builtin) {
		return nil
	}
	// An alias: the kernel shows what it stands for. Where nobody tells what that is,
	// such as for an install command of modprobe.d(5), that it worked must do.
	if r.aliases == nil {
		r.aliases = map[string][]string{}
	}
	r.aliases[module] = nil
	out, err := r.h.Run(ctx, host.Cmd{Path: modprobe, Args: []string{"--resolve-alias", "--", module}})
	if err != nil {
		return ctx.Err()
	}
	for name := range strings.FieldsSeq(string(out.Stdout)) {
		if d.moduleLoaded(name, builtin) {
			r.aliases[module] = append(r.aliases[module], name)
		}
	}
	return nil
}

// modprobe is where the program is: PATH often lacks the directories for root's.
func (r *run) modprobe() (string, error) {
	for _, p := range []string{"/sbin/modprobe", "/usr/sbin/modprobe"} {
		if fi, err := r.root.Stat(p); err == nil && fi.Mode().IsRegular() {
			return p, nil
		}
	}
	p, err := exec.LookPath("modprobe")
	if err != nil {
		return "", fmt.Errorf("load modules: %w; install kmod, which has it", err)
	}
	return p, nil
}

func (r *run) set(key, value string) error {
	file, err := r.root.Resolve(sysctlPath(key))
	if err != nil {
		return err
	}
	now, err := os.ReadFile(file)
	if isAbsent(err) {
		return fmt.Errorf("set %s: this kernel has no such setting; a module that brings it may be missing from host.modules", key)
	}
	if err != nil {
		return fmt.Errorf("set %s: %w", key, err)
	}
	r.touched.settings = append(r.touched.settings, Setting{key, strings.TrimSpace(string(now))})
	if err := r.w.setValue(file, value); err != nil {
		return fmt.Errorf("set %s to %q: %w", key, value, err)
	}
	return nil
}

// verify asks the daemon, if it was started anew, whether it is what was planned, and
// gives it its images.
func (r *run) verify(ctx context.Context) error {
	if err := r.health(ctx); err != nil {
		return err
	}
	if r.guard != nil {
		notes, err := r.guard.survived(ctx, r.h.Now())
		if err != nil {
			return err
		}
		for _, n := range notes {
			r.res.Warnings.Warnf(diag.Origin{}, "", "%s", n)
		}
	}
	return r.importImages(ctx)
}

func (r *run) health(ctx context.Context) error {
	if r.plan.verb == VerbUninstall {
		return r.runsAgain(ctx)
	}
	want := r.plan.state.Daemon
	anew := len(r.touched.tried)+len(r.touched.started) > 0
	imports := slices.ContainsFunc(r.plan.Items, func(it Item) bool { return it.Action == Import || it.Action == Pin || it.Action == Unpin })
	if !r.plan.live || !anew && !imports {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, healthTimeout, fmt.Errorf("no answer within %s", healthTimeout))
	defer cancel()
	if r.opt.Daemon != nil && want.Address != "" {
		if err := r.opt.Daemon.Healthy(ctx, want); err != nil {
			return err
		}
	}
	if !anew || r.opt.Services == nil || want.Unit == "" {
		return nil
	}
	// What counts is the score that the process has, not what its unit says.
	p, err := r.opt.Services.Properties(ctx, want.Unit)
	if err != nil {
		return err
	}
	if !running(p) {
		return fmt.Errorf("verify %s: it is %s", want.Unit, p.ActiveState)
	}
	if p.MainPID <= 0 {
		return fmt.Errorf("verify %s: systemd knows no main process of it; its Type or a drop-in may hide it", want.Unit)
	}
	if err := r.sameProcess(ctx, p.MainPID); err != nil {
		return fmt.Errorf("verify %s: %w", want.Unit, err)
	}
	file := fmt.Sprintf("/proc/%d/oom_score_adj", p.MainPID)
	text, err := r.root.ReadFile(file)
	if err != nil {
		return fmt.Errorf("verify %s: %w", want.Unit, err)
	}
	score, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("verify %s: read %s: %w", want.Unit, file, err)
	}
	if score != want.OOMScore {
		return fmt.Errorf("verify %s: process %d has oom_score_adj %d, want %d; a drop-in or containerd's oom_score may set it", want.Unit, p.MainPID, score, want.OOMScore)
	}
	return nil
}

// runsAgain is all that is asked of a unit that was given back: what it runs is not ours.
func (r *run) runsAgain(ctx context.Context) error {
	for _, u := range r.touched.started {
		p, err := r.opt.Services.Properties(ctx, u)
		if err != nil {
			return err
		}
		if !running(p) {
			return fmt.Errorf("verify %s, which was there before nodeprep: it is %s", u, p.ActiveState)
		}
	}
	return ctx.Err()
}

// sameProcess holds the unit's main process against the program that it shall run and
// against who answers at the socket: another containerd may do either, and be healthy.
func (r *run) sameProcess(ctx context.Context, pid int) error {
	want := r.plan.state.Daemon
	if want.Binary != "" {
		link := fmt.Sprintf("/proc/%d/exe", pid)
		exe, err := r.root.Readlink(link)
		if err != nil {
			return err
		}
		binary, err := r.root.Resolve(want.Binary)
		if err != nil {
			return err
		}
		if exe != r.shown(binary) && !(r.root.Live() && sameFile(link, binary)) {
			return fmt.Errorf("process %d runs %s, want %s; a drop-in may set another ExecStart", pid, exe, want.Binary)
		}
	}
	if r.opt.Daemon == nil || want.Address == "" {
		return nil
	}
	peer, err := r.opt.Daemon.Process(ctx, want)
	if err != nil {
		return err
	}
	if peer != 0 && peer != pid {
		return fmt.Errorf("its process is %d, but process %d listens at %s; stop what else runs a containerd there", pid, peer, want.Address)
	}
	return nil
}

// sameFile follows links, those of proc(5) too, which lead to a file whatever its name.
func sameFile(a, b string) bool {
	x, errX := os.Stat(a)
	y, errY := os.Stat(b)
	return errX == nil && errY == nil && os.SameFile(x, y)
}

// observe finds out what the daemon is before the first change. An undo is held to
// that, not to the receipt: the daemon may have been replaced by hand, or have been ill.
func (r *run) observe(ctx context.Context) {
	restarts := slices.ContainsFunc(r.plan.Items, func(it Item) bool { return it.Action == Restart || it.Action == Stop })
	if !r.plan.live || r.opt.Daemon == nil || !restarts {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, observeTimeout)
	defer cancel()
	claims := []desired.Daemon{{Address: r.plan.state.Daemon.Address}}
	if r.plan.receipt != nil {
		full := r.plan.receipt.Daemon
		other := full
		other.Version = ""
		claims = []desired.Daemon{full, other, {Address: full.Address}}
	}
	for _, c := range claims {
		if c.Address != "" && r.opt.Daemon.Healthy(ctx, c) == nil {
			r.j.Was = &c
			return
		}
	}
}

// undo puts everything back that the run changed, and proves that what ran before
// runs again. It returns the failure as *RevertedError or *StrandedError.
func (r *run) undo(ctx context.Context, phase Phase, cause error) error {
	// The run may have failed because its context ended; putting things back has
	// time of its own.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	r.imported()
	err := r.phase(PhaseUndo, func() error { return r.revert(ctx, r.touched) })
	if err == nil {
		return &RevertedError{Phase: phase, Err: cause, Warnings: r.left}
	}
	return r.stranded(phase, cause, err)
}

// stranded says what is where after a revert that failed. The journal stays while
// something is not back, so that recovering can be tried again.
func (r *run) stranded(phase Phase, cause, undo error) error {
	e := &StrandedError{Phase: phase, Err: cause, Undo: undo}
	for _, c := range r.stuck {
		switch {
		case c.Kept == nil:
			e.Places = append(e.Places, c.Path+": nothing was there before")
		case c.Kept.Kind == KindLink:
			e.Places = append(e.Places, c.Path+": what was there before is a link to "+c.Kept.Target)
		default:
			e.Places = append(e.Places, c.Path+": what was there before is "+c.Kept.Path)
		}
	}
	if fi, err := r.root.Lstat(JournalPath); err == nil && fi != nil {
		e.Journal = JournalPath
	}
	if !r.plan.live {
		e.Root = r.root.Dir()
	}
	return e
}
