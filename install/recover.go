package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
)

// Outcome is what became of an interrupted run.
type Outcome string

const (
	NothingPending Outcome = "nothing"  // there was none
	WasReverted    Outcome = "reverted" // the host is as before the run
	WasFinished    Outcome = "finished" // the run had done its work; the rest is done now
)

// RecoverOptions are what recovering needs of a running host; all of it is nil under a
// root that is not running.
type RecoverOptions struct {
	Services Services
	Daemon   Daemon
	Observer Observer
	// Version is nodeprep's own.
	Version string
	// WithRunningPods goes on where reverting would take a daemon from under containers.
	WithRunningPods bool
	// Boot says that the machine is starting and waits for this: nothing that the run
	// started runs any more, and no start must be waited for.
	Boot bool

	live   bool
	writer *writer
}

// Recovered is what Recover found and did.
type Recovered struct {
	Outcome Outcome `json:"outcome"`
	// Verb, Time and Nodeprep are the interrupted run's.
	Verb     Verb      `json:"verb,omitempty"`
	Time     time.Time `json:"time,omitzero"`
	Nodeprep string    `json:"nodeprep,omitempty"`
	// Generation is the host's now.
	Generation int `json:"generation"`
	// Restarted are units that were started anew because the run had replaced what they run.
	Restarted []string  `json:"restarted,omitempty"`
	Warnings  diag.List `json:"warnings,omitempty"`
}

// Recover ends a run that was interrupted: it is finished if its receipt was written,
// else everything is put back. Recovering may be interrupted itself, and done again.
// It fails with *LockedError while the run is going on, and with *StrandedError when
// the host cannot be brought back; the journal stays then.
func Recover(ctx context.Context, h *host.Host, opt RecoverOptions) (*Recovered, error) {
	lock := Lock
	if opt.Boot {
		lock = func(root *host.Root) (func(), error) {
			ctx, cancel := context.WithTimeout(ctx, lockTimeout)
			defer cancel()
			return lockAtBoot(ctx, root)
		}
	}
	unlock, err := lock(h.Root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	return recoverLocked(ctx, h, opt)
}

func recoverLocked(ctx context.Context, h *host.Host, opt RecoverOptions) (*Recovered, error) {
	plan := &Plan{state: &desired.State{}, live: h.Root.Live() || opt.live}
	r := newRun(h, plan, ApplyOptions{
		DiffOptions: DiffOptions{Services: opt.Services, Daemon: opt.Daemon}, Observer: opt.Observer, Version: opt.Version, writer: opt.writer,
	})
	j, err := Pending(h.Root)
	if err != nil {
		return nil, err
	}
	receipt, err := ReadReceipt(h.Root)
	if err != nil {
		return nil, err
	}
	plan.receipt = receipt
	out := &Recovered{Outcome: NothingPending, Generation: receipt.generation()}
	if j == nil {
		return out, r.sweep()
	}
	if err := j.within(h.Root); err != nil {
		return nil, fmt.Errorf("read %s: %w", JournalPath, err)
	}
	if err := j.mounted(h.Root); err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	if _, err := h.Root.Lstat("/run/systemd/system"); err == nil && plan.live && opt.Services == nil { // sd_booted(3)
		return nil, errors.New("recover: systemd runs here and there is no connection to it, so that what the run did to services cannot be taken back")
	}
	r.j, r.id, r.began = *j, j.ID, true
	was := r.laterTouched(opt.Boot)
	if j.Stage != settled && receipt.id() != j.ID {
		why, err := r.taken(ctx, was)
		if err != nil {
			return nil, fmt.Errorf("recover: %w", err)
		}
		if why != "" && !opt.WithRunningPods {
			return nil, fmt.Errorf("recover: the %s of %s is not reverted: %s; drain the node and remove its pods first, or allow it: nodeprep recover --with-running-pods",
				j.Verb, j.Time.UTC().Format("2006-01-02 15:04 MST"), why)
		}
		if why != "" {
			r.left = append(r.left, why)
		}
	}
	// The run that is undone here goes on under its own staging names.
	if err := r.sweep(); err != nil {
		return nil, fmt.Errorf("recover: %w", err)
	}
	out.Verb, out.Time, out.Nodeprep = j.Verb, j.Time, j.Nodeprep
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	switch {
	case j.Stage == settled:
		out.Outcome = WasFinished
		if err = r.phase(PhaseRecover, func() error { return r.finishUninstall(ctx) }); err != nil {
			err = r.unfinished(PhaseRecover, err)
		}
		out.Generation = 0
	case receipt.id() == j.ID:
		out.Outcome = WasFinished
		plan.state.Generations = receipt.Generations
		if err = r.phase(PhaseRecover, r.finishRun); err != nil {
			err = fmt.Errorf("recover: %w", err)
		}
	default:
		out.Outcome = WasReverted
		if err := r.phase(PhaseRecover, func() error { return r.revert(ctx, was) }); err != nil {
			return out, r.stranded(PhaseRecover, fmt.Errorf("nodeprep %s was interrupted at stage %q", j.Verb, j.Stage), err)
		}
		out.Restarted = slices.DeleteFunc(was.tried, func(u string) bool { return slices.Contains(r.j.Stays, u) })
	}
	for _, l := range r.left {
		out.Warnings.Warnf(diag.Origin{}, "", "%s", l)
	}
	return out, err
}

// touched is what a run did to the running system.
type touched struct {
	// tried are units that ran and were restarted, started those that were down, stopped
	// those that the run stopped for good; each of them also when it was only tried, and
	// none of which systemd was never told.
	tried, started, stopped []string
	reloaded                bool
	// settings were written.
	settings []Setting
	// rebooted: systemd and the kernel read what the run had made, at boot; ran are units
	// that ran before it, and that systemd may not have found when it looked what to start.
	rebooted bool
	ran      []string
	// back: an earlier revert had put files and units back, and began to start them.
	back bool
}

// laterTouched is what an interrupted run may have touched, as its journal tells.
func (r *run) laterTouched(boot bool) touched {
	j := &r.j
	if !r.plan.live || r.opt.Services == nil {
		return touched{}
	}
	if boot || j.Boot != bootID(r.root) {
		return touched{rebooted: true, reloaded: len(j.Self) > 0 || j.Reload, ran: slices.Concat(j.Stop, j.Restart, j.Dependents)}
	}
	if j.Stage != activating && j.Stage != reverted {
		return touched{}
	}
	return touched{
		tried: j.issued(Restart, j.Restart), started: j.issued(Start, j.Start), stopped: j.issued(Stop, j.Stop),
		reloaded: j.Reload, settings: j.Settings, back: j.Back,
	}
}

// before is the daemon that a revert brings back, as far as that is known.
func (r *run) before() desired.Daemon {
	if r.plan.receipt != nil {
		return r.plan.receipt.Daemon
	}
	return r.j.Daemon
}

// taken says how a revert would take a daemon that works from under containers: its
// run was interrupted long ago, perhaps, and others have used it since.
func (r *run) taken(ctx context.Context, was touched) (string, error) {
	unit := cmp.Or(r.j.Daemon.Unit, defaultUnit)
	started := slices.Contains(was.started, unit)
	if r.opt.Daemon == nil || was.back || !started && !slices.Contains(was.tried, unit) {
		return "", nil
	}
	p, err := r.opt.Services.Properties(ctx, unit)
	if err != nil || !running(p) {
		return "", err
	}
	old := r.before()
	l, err := look(ctx, r.root, r.opt.Daemon, r.j.Daemon, old.Address)
	if err != nil {
		return "", err
	}
	if started && !slices.Contains(was.stopped, unit) && len(l.tasks) > 0 {
		return fmt.Sprintf("%s was down before, runs now and would be stopped, and %s run under it", unit, l.describe(l.tasks)), nil
	}
	return downgrade(r.j.Daemon.Version, old.Version, r.j.Time, l.containers), nil
}

// revert puts everything back that the journal tells of, and proves that what ran
// before runs again. It may have been begun before, and it may be that only a part of
// what the journal tells of was done. Only what services do wrong lets the journal end:
// with it goes all that is known of what is not back.
func (r *run) revert(ctx context.Context, was touched) error {
	var faults, files []error
	note := func(list *[]error, err error) {
		if err != nil {
			*list = append(*list, err)
		}
	}
	if r.j.Ended {
		r.left = append(r.left, "tasks that were stopped stay stopped")
	}
	for _, u := range r.j.Stays {
		r.left = append(r.left, goesOn(u)+": a stop would have killed containers")
	}
	if r.j.Stage == reverted {
		return r.cleanUp()
	}
	if r.guard != nil {
		r.guard.close()
	}
	r.guard = newGuard(r.h, r.opt.DiffOptions, r.before(), r.j.Daemon.Address)
	defer r.guard.close()
	// A daemon that was down before stops while its unit is still known; and one that is
	// to come back as it was stops while systemd still has the unit that the run's own
	// restart was looked at for: the old one may kill containers with it.
	for _, u := range slices.Concat(was.started, was.tried) {
		if !was.back {
			note(&faults, r.halt(ctx, u))
		}
	}
	// However long systemd took: files are put back in any case.
	note(&files, r.revertRepairs())
	note(&files, r.revertFiles(context.WithoutCancel(ctx)))
	for _, s := range slices.Backward(was.settings) {
		note(&faults, r.setBack(s))
	}
	if was.reloaded {
		note(&faults, r.opt.Services.Reload(ctx))
	}
	if was.rebooted {
		r.reapply(ctx)
		note(&faults, r.startAtBoot(ctx, was.ran))
	}
	for _, u := range was.started {
		if slices.Contains(r.j.Failed, u) || slices.Contains(r.j.Stays, u) {
			continue
		}
		if err := r.opt.Services.ResetFailed(ctx, u); err != nil {
			r.left = append(r.left, fmt.Sprintf("%s may be shown as failed: %v", u, err))
		}
	}
	comeBack := slices.Concat(was.tried, was.stopped)
	if len(comeBack) > 0 && len(faults)+len(files) == 0 {
		r.j.Back = true
		note(&files, r.writeJournal())
	}
	comeBack = slices.DeleteFunc(comeBack, func(u string) bool { return slices.Contains(r.j.Stays, u) })
	for _, u := range comeBack {
		note(&faults, r.opt.Services.Start(ctx, u))
	}
	if len(comeBack) > 0 && r.j.Was != nil && r.opt.Daemon != nil && len(faults)+len(files) == 0 {
		note(&faults, r.healthyAgain(ctx))
	}
	if len(comeBack) > 0 {
		note(&faults, r.startDependents(ctx))
	}
	r.pinsBack(ctx)
	if len(files) == 0 {
		note(&files, r.cleanUp())
	}
	return errors.Join(append(faults, files...)...)
}

func goesOn(unit string) string {
	return unit + " goes on with what the run had put into place, until its next restart"
}

// halt stops a unit that the run started, unless that would kill containers: then it goes
// on, and its files are put back all the same.
func (r *run) halt(ctx context.Context, unit string) error {
	p, err := r.opt.Services.Properties(ctx, unit)
	if err != nil || p.ActiveState == "inactive" || p.ActiveState == "failed" {
		return err
	}
	why, err := r.guard.kills(ctx, unit)
	if err != nil {
		return fmt.Errorf("see whether containers survive a stop of %s: %w", unit, err)
	}
	if why != "" {
		r.j.Stays = append(r.j.Stays, unit)
		r.left = append(r.left, goesOn(unit)+": a stop would have killed "+why)
		return nil
	}
	return r.opt.Services.Stop(ctx, unit)
}

// startAtBoot has units started that ran before. systemd may have looked what to start when
// their files were away. It does that when this process has ended, and not before.
func (r *run) startAtBoot(ctx context.Context, units []string) error {
	var faults []error
	for _, u := range units {
		p, err := r.opt.Services.Properties(ctx, u)
		switch {
		case err != nil:
			faults = append(faults, err)
		case !running(p):
			faults = append(faults, r.opt.Services.StartNoWait(ctx, u))
		case !slices.Contains(r.j.Dependents, u):
			r.left = append(r.left, goesOn(u)+": it ran when the recovery began")
		}
	}
	return errors.Join(faults...)
}

func (r *run) healthyAgain(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, healthTimeout, fmt.Errorf("no answer within %s", healthTimeout))
	defer cancel()
	was := *r.j.Was
	if slices.ContainsFunc(r.j.Changes, func(c Change) bool { return c.Adopted && c.Path == was.Binary }) {
		was.Version = "" // what ran was not yet what lay there, replaced by hand
	}
	if err := r.opt.Daemon.Healthy(ctx, was); err != nil {
		return fmt.Errorf("the daemon of before does not come back: %w", err)
	}
	notes, err := r.guard.survived(ctx, r.h.Now())
	r.left = append(r.left, notes...)
	return err
}

// revertFiles undoes the changes, last one first, those of nodeprep's own files at the
// end: whoever is interrupted here is still there at the next boot.
func (r *run) revertFiles(ctx context.Context) error {
	var faults []error
	note := func(what string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("put back %s: %w", what, err))
		}
	}
	r.dirtyAll()
	if r.j.Stage != intended {
		for _, d := range slices.Backward(r.j.Drop) {
			note(d.Path, r.revertDrop(&d))
		}
		for i := len(r.j.Changes) - 1; i >= 0; i-- {
			c := &r.j.Changes[i]
			if err := r.revertChange(ctx, c, fmt.Sprint("back", i)); err != nil {
				note(c.Path, err)
				r.stuck = append(r.stuck, *c)
			}
		}
		r.removeMade(r.j.Dirs, note)
		note("directories durably", r.syncDirs())
	}
	for i := len(r.j.Self) - 1; i >= 0; i-- {
		c := &r.j.Self[i]
		if lacks, err := r.lacksKept(c); err == nil && lacks {
			continue // these are kept after the journal is written, and changed after that
		}
		if err := r.revertChange(ctx, c, fmt.Sprint("selfback", i)); err != nil {
			note(c.Path, err)
			r.stuck = append(r.stuck, *c)
		}
	}
	// What is staged tells which changes were made; it may be in directories that go.
	if len(r.stuck) == 0 {
		note("staged files", r.unstage())
		r.removeMade(r.j.SelfDirs, note)
	}
	note("directories durably", r.syncDirs())
	return errors.Join(faults...)
}

// dirtyAll has every directory made durable that a revert changes: one that was killed may
// have changed it, and nothing there tells.
func (r *run) dirtyAll() {
	var dirs []string
	for _, c := range slices.Concat(r.j.Self, r.j.Changes) {
		dirs = append(dirs, path.Dir(c.Real))
	}
	for _, p := range slices.Concat(r.j.Dirs, r.j.SelfDirs) {
		dirs = append(dirs, path.Dir(p))
	}
	for _, d := range r.j.Drop {
		dirs = append(dirs, d.Path, path.Dir(d.Path))
	}
	for _, p := range slices.Concat(dirs, r.j.Scratch) {
		r.dirty[r.abs(p)] = true
	}
}

// lacksKept reports whether nothing was put aside yet where a change would find it.
func (r *run) lacksKept(c *Change) (bool, error) {
	if c.Kept == nil || c.Kept.Kind == KindLink {
		return false, nil
	}
	at, err := keptAt(r.root, c.Kept)
	if err != nil {
		return false, err
	}
	fi, err := lstat(at)
	return fi == nil, err
}

// revertDrop makes a directory anew that was removed, or ends that where it was begun:
// between being there and being as it was there is a moment.
func (r *run) revertDrop(d *Dropped) error {
	real := r.abs(d.Path)
	fi, err := lstat(real)
	if err != nil {
		return err
	}
	if fi == nil {
		if err := r.mkdir(real, d.Mode); err != nil {
			return err
		}
	} else if !fi.IsDir() {
		return nil // somebody else's
	}
	return r.dress(real, d)
}

// dress gives a directory the mode and, where that is possible, the owner that it had.
func (r *run) dress(real string, d *Dropped) error {
	uid, gid := d.UID, d.GID
	if !r.w.chown {
		fi, err := lstat(real)
		if err != nil || fi == nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		uid, gid = st.Uid, st.Gid
	}
	return r.setMode(real, d.Mode, uid, gid)
}

// removeMade removes directories that the run made, innermost first.
func (r *run) removeMade(dirs []string, note func(string, error)) {
	for _, p := range slices.Backward(dirs) {
		real := r.abs(p)
		fi, err := lstat(real)
		if err != nil || fi == nil {
			note(p, err)
			continue
		}
		gone, err := r.w.rmdirUnused(real)
		note(p, err)
		holds := slices.ContainsFunc(r.left, func(l string) bool { return strings.HasPrefix(l, p+"/") })
		if err == nil && !gone && !holds {
			r.left = append(r.left, p+" stays: something else was put there meanwhile")
		}
		delete(r.dirty, real)
		r.dirty[filepath.Dir(real)] = true
	}
}

// revertChange undoes one change if it was made. Whether it was shows on the disk: what
// is still under its staging name was not renamed.
func (r *run) revertChange(ctx context.Context, c *Change, name string) error {
	real := r.abs(c.Real)
	now, err := lstat(real)
	if err != nil {
		return err
	}
	if c.Staged != "" {
		if fi, err := lstat(r.abs(c.Staged)); err != nil || fi != nil {
			return err
		}
	}
	if c.Kept == nil {
		if c.Staged == "" || now == nil {
			return nil
		}
		r.dirty[filepath.Dir(real)] = true
		return r.w.remove(real)
	}
	if c.Staged == "" && now != nil {
		return nil
	}
	if same, err := r.isKept(c.Kept, real); err != nil || same {
		return err
	}
	return r.putBack(ctx, c.Kept, real, name)
}

// putBack makes what was kept replace what is at a place, by a rename from a staging name
// of this run; an earlier attempt may have left something under that.
func (r *run) putBack(ctx context.Context, k *Kept, real, name string) error {
	temp := filepath.Join(filepath.Dir(real), fmt.Sprintf(".%s.nodeprep-%s-%s", short(filepath.Base(real)), r.id, name))
	if err := r.w.remove(temp); err != nil {
		return err
	}
	r.dirty[filepath.Dir(real)] = true
	if err := r.copyKept(ctx, k, temp, false); err != nil {
		return errors.Join(err, r.w.remove(temp))
	}
	if err := r.w.rename(temp, real); err != nil {
		return errors.Join(err, r.w.remove(temp))
	}
	return nil
}

// isKept reports whether what was kept is at its place again.
func (r *run) isKept(k *Kept, real string) (bool, error) {
	fi, err := lstat(real)
	if err != nil || fi == nil {
		return false, err
	}
	if k.Kind == KindLink {
		if fi.Mode()&os.ModeSymlink == 0 {
			return false, nil
		}
		target, err := os.Readlink(real)
		return target == k.Target, err
	}
	at, err := keptAt(r.root, k)
	if err != nil {
		return false, err
	}
	kept, err := lstat(at)
	if err != nil {
		return false, err
	}
	return kept != nil && os.SameFile(kept, fi), nil
}

func short(base string) string {
	if len(base) > 200 {
		return base[:200]
	}
	return base
}

func (r *run) setBack(s Setting) error {
	file, err := r.root.Resolve(sysctlPath(s.Key))
	if err != nil {
		return err
	}
	now, err := os.ReadFile(file)
	if isAbsent(err) || err == nil && strings.TrimSpace(string(now)) == s.Value {
		return nil
	}
	if err := r.w.setValue(file, s.Value); err != nil {
		return fmt.Errorf("set %s back to %q: %w", s.Key, s.Value, err)
	}
	return nil
}

// reapply loads modules and sets kernel settings as the files say that are back, and those
// of which none says anything as they were: at this boot the kernel was given those of the
// interrupted run. What fails is told, no more: the next boot does it again.
func (r *run) reapply(ctx context.Context) {
	for _, s := range slices.Backward(r.j.Settings) {
		if err := r.setBack(s); err != nil {
			r.left = append(r.left, err.Error())
		}
	}
	for i := range r.j.Changes {
		c := &r.j.Changes[i]
		if c.Kept == nil || !forKernel(c.Path) {
			continue
		}
		content, err := r.root.ReadFile(c.Path)
		if err != nil {
			r.left = append(r.left, err.Error())
			continue
		}
		modules, settings := kernelLines(c.Path, string(content))
		for _, m := range modules {
			if err := r.load(ctx, m); err != nil {
				r.left = append(r.left, err.Error())
			}
		}
		for _, key := range sortedKeys(settings) {
			if err := r.setBack(Setting{key, settings[key]}); err != nil {
				r.left = append(r.left, err.Error())
			}
		}
	}
}

const (
	modulesDir  = "/etc/modules-load.d"
	settingsDir = "/etc/sysctl.d"
)

// forKernel holds for the files of modules-load.d(5) and sysctl.d(5).
func forKernel(p string) bool { return path.Dir(p) == modulesDir || path.Dir(p) == settingsDir }

// kernelLines reads such a file; others have nothing in them for the kernel.
func kernelLines(p, content string) (modules []string, settings map[string]string) {
	settings = map[string]string{}
	if !forKernel(p) {
		return nil, settings
	}
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if path.Dir(p) == modulesDir {
			modules = append(modules, line)
		} else if key, value, ok := strings.Cut(line, "="); ok {
			settings[strings.TrimPrefix(strings.TrimSpace(key), "-")] = strings.TrimSpace(value)
		}
	}
	return modules, settings
}

// cleanUp removes what a reverted run kept aside and downloaded, and at last its journal.
// Before that goes of which its changes could be undone, the journal says that they are.
func (r *run) cleanUp() error {
	changes := r.j.Self
	if r.j.Stage != intended { // before, these were never made
		changes = slices.Concat(changes, r.j.Changes)
	}
	if r.j.Stage != reverted && slices.ContainsFunc(changes, func(c Change) bool { return c.Kept != nil && c.Kept.Path != "" }) {
		if err := r.enter(reverted); err != nil {
			return err
		}
	}
	if err := errors.Join(r.unstage(), r.dropKept(), r.pruneCache(r.plan.receipt)); err != nil {
		return err
	}
	if err := r.syncDirs(); err != nil {
		return err
	}
	return r.endJournal()
}

// dropKept removes what this run kept aside, on every filesystem.
func (r *run) dropKept() error {
	var faults []error
	for _, top := range r.j.Tops {
		for _, p := range []string{path.Dir(top), top, path.Join(top, "generations"), path.Join(top, "original")} {
			dir, err := r.root.Locate(p)
			faults = append(faults, err)
			r.dirty[dir] = err == nil // as dirtyAll
		}
		faults = append(faults, r.dropGeneration(top, r.j.From))
		if original, err := r.root.Locate(path.Join(top, "original")); err != nil {
			faults = append(faults, err)
		} else if entries, err := os.ReadDir(original); err == nil {
			for _, e := range entries {
				if strings.HasPrefix(e.Name(), r.id+"-") {
					faults = append(faults, r.w.remove(filepath.Join(original, e.Name())))
				}
			}
		}
		faults = append(faults, r.dropEmpty(top))
	}
	return errors.Join(faults...)
}

// dropEmpty removes the directories of kept things that hold nothing.
func (r *run) dropEmpty(top string) error {
	names := []string{path.Join(top, "generations"), path.Join(top, "original")}
	if top != StateDir {
		names = append(names, top)
	}
	var faults []error
	for _, p := range names {
		dir, err := r.root.Locate(p)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		if fi, err := lstat(dir); err != nil || fi == nil || !fi.IsDir() {
			continue
		}
		gone, err := r.w.rmdirUnused(dir)
		faults = append(faults, err)
		if gone {
			delete(r.dirty, dir)
			r.dirty[filepath.Dir(dir)] = true
		}
	}
	return errors.Join(faults...)
}

// abandon ends a run before its commit, after an error.
func (r *run) abandon(ctx context.Context) error {
	for _, s := range r.staging.items {
		if s.file != nil {
			s.file.abandon()
		}
	}
	if !r.began {
		return nil
	}
	return r.revert(context.WithoutCancel(ctx), touched{})
}

// finishRun ends a run whose receipt is written. It may have been begun before.
func (r *run) finishRun() error {
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	// The receipt before the journal's end: a power cut must not leave neither.
	if err := r.w.sync(state); err != nil {
		return err
	}
	if r.j.To == r.j.From { // there is nothing to go back to
		for _, top := range r.j.Tops {
			if err := r.dropGeneration(top, r.j.From); err != nil {
				return err
			}
		}
	}
	if err := r.dropWaited(); err != nil {
		return fmt.Errorf("remove imported archives: %w", err)
	}
	if err := r.pruneAll(); err != nil {
		return fmt.Errorf("remove old generations: %w", err)
	}
	if err := r.dropSelf(); err != nil {
		return err
	}
	for _, top := range r.j.Tops {
		if err := r.dropEmpty(top); err != nil {
			return err
		}
	}
	journal := filepath.Join(state, "journal.json")
	dir, err := r.root.Locate(generation(StateDir, r.j.From, ""))
	if err != nil {
		return err
	}
	fi, err := lstat(dir)
	if err != nil {
		return err
	}
	if fi == nil { // see above, or pruned at once
		err = r.w.remove(journal)
	} else {
		err = r.w.rename(journal, filepath.Join(dir, "record.json"))
		r.dirty[dir] = true
	}
	r.dirty[state] = true
	return errors.Join(err, r.syncDirs())
}

// dropSelf removes what nodeprep's own files replaced: they do not go back with a
// rollback. Only what was taken over is given back some day.
func (r *run) dropSelf() error {
	for i := range r.j.Self {
		k := r.j.Self[i].Kept
		if k == nil || k.Path == "" || r.j.Self[i].Adopted {
			continue
		}
		at, err := keptAt(r.root, k)
		if err != nil {
			return err
		}
		if err := r.w.remove(at); err != nil {
			return err
		}
	}
	for _, top := range r.j.Tops {
		if top == StateDir {
			continue // its directory gets the record
		}
		dir, err := r.root.Locate(generation(top, r.j.From, ""))
		if err != nil {
			return err
		}
		if fi, err := lstat(dir); err != nil || fi == nil || !fi.IsDir() {
			continue
		}
		if _, err := r.w.rmdirUnused(dir); err != nil {
			return err
		}
	}
	return nil
}

// dropGeneration removes what is kept of a generation in one place.
func (r *run) dropGeneration(top string, n int) error {
	dir, err := r.root.Locate(generation(top, n, ""))
	if err != nil {
		return err
	}
	return r.w.removeTree(dir)
}
