package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

const (
	// healthTimeout is how long a daemon may take until it answers.
	healthTimeout = 90 * time.Second
	moduleTimeout = 30 * time.Second
	importTimeout = 30 * time.Minute
	undoTimeout   = 10 * time.Minute
)

// running holds for a unit whose processes a restart would replace.
func running(p systemd.Properties) bool {
	return p.ActiveState == "active" || p.ActiveState == "reloading"
}

// setting is a kernel setting as it was.
type setting struct{ key, file, value string }

// activate makes the running system use what was committed, in the order in which
// one thing needs another: units, modules, settings (which modules bring), daemons.
func (r *run) activate(ctx context.Context) error {
	if !r.plan.live {
		return ctx.Err()
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
			r.reloaded = true
			err = r.opt.Services.Reload(ctx)
		case Start:
			r.started = append(r.started, it.Path)
			err = r.opt.Services.Start(ctx, it.Path)
			r.res.Started = r.started
		case Restart:
			r.tried = append(r.tried, it.Path)
			err = r.opt.Services.Restart(ctx, it.Path)
			r.res.Restarted = r.tried
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *run) load(ctx context.Context, module string) error {
	ctx, cancel := context.WithTimeout(ctx, moduleTimeout)
	defer cancel()
	if _, err := r.h.Run(ctx, host.Cmd{Path: "modprobe", Args: []string{"--", module}}); err != nil {
		return fmt.Errorf("load module %s: %w", module, err)
	}
	return nil
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
	r.settings = append(r.settings, setting{key, file, strings.TrimSpace(string(now))})
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
	return r.importImages(ctx)
}

func (r *run) health(ctx context.Context) error {
	want := r.plan.state.Daemon
	if !r.plan.live || len(r.tried)+len(r.started) == 0 {
		return ctx.Err()
	}
	ctx, cancel := context.WithTimeoutCause(ctx, healthTimeout, fmt.Errorf("no answer within %s", healthTimeout))
	defer cancel()
	if r.opt.Daemon != nil && want.Address != "" {
		if err := r.opt.Daemon.Healthy(ctx, want); err != nil {
			return err
		}
	}
	if r.opt.Services == nil || want.Unit == "" {
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
	if p.MainPID == 0 {
		return nil
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

// importImages imports what the plan says. Under a root that is not running images
// wait for its first boot. What was imported is not taken out by an undo.
func (r *run) importImages(ctx context.Context) error {
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if it.image == nil {
			continue
		}
		var was *Imported
		if r.plan.receipt != nil {
			for j := range r.plan.receipt.Images {
				if r.plan.receipt.Images[j].File == it.Path {
					was = &r.plan.receipt.Images[j]
				}
			}
		}
		if it.Action != Import {
			if was != nil {
				r.images = append(r.images, *was)
			}
			continue
		}
		im, err := r.importImage(ctx, it.image)
		if err != nil {
			return fmt.Errorf("import %s: %w (from %s)", it.Path, err, it.Origin)
		}
		r.images = append(r.images, im)
	}
	return nil
}

func (r *run) importImage(ctx context.Context, img *desired.Image) (Imported, error) {
	f, err := os.Open(img.File)
	if err != nil {
		return Imported{}, err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return Imported{}, err
	}
	im := Imported{File: img.File, Size: fi.Size(), MTime: fi.ModTime().UnixNano(), Pin: img.Pin, Pending: true}
	if !r.plan.live || r.opt.Daemon == nil {
		im.SHA256, err = digestFile(img.File, "", false)
		return im, err
	}
	ctx, cancel := context.WithTimeout(ctx, importTimeout)
	defer cancel()
	counted := &reading{f: f, r: r, name: filepath.Base(img.File), total: fi.Size()}
	if im.Names, err = r.opt.Daemon.Import(ctx, r.plan.state.Daemon, *img, counted); err != nil {
		return Imported{}, err
	}
	im.Pending = false
	im.SHA256, err = digestFile(img.File, "", false)
	return im, err
}

// reading tells the observer how much of a file has been read.
type reading struct {
	f     *os.File
	r     *run
	name  string
	done  int64
	total int64
}

// Read reads the file.
func (c *reading) Read(p []byte) (int, error) {
	n, err := c.f.Read(p)
	c.done += int64(n)
	c.r.progress(c.name, c.done, c.total)
	return n, err
}

// undo puts everything back that the run changed, and proves that what ran before
// runs again. It returns the failure as *RevertedError or *StrandedError.
func (r *run) undo(ctx context.Context, phase Phase, cause error) error {
	// The run may have failed because its context ended; putting things back has
	// time of its own.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	err := r.phase(PhaseUndo, func() error { return r.revert(ctx) })
	if err == nil {
		return &RevertedError{Phase: phase, Err: cause}
	}
	e := &StrandedError{Phase: phase, Err: cause, Undo: err}
	for _, c := range r.rec.Changes[:r.committed] {
		if c.Kept == nil {
			continue
		}
		where := c.Kept.Path
		if c.Kept.Kind == KindLink {
			where = "a link to " + c.Kept.Target
		} else if fi, err := lstat(r.abs(where)); err != nil || fi == nil {
			continue // it is back
		}
		e.Places = append(e.Places, fmt.Sprintf("%s: what was there before is %s", c.Path, where))
	}
	return e
}

func (r *run) revert(ctx context.Context) error {
	var faults []error
	note := func(err error) {
		if err != nil {
			faults = append(faults, err)
		}
	}
	// A daemon that was down before stops while its unit is still known.
	for _, u := range r.started {
		if p, err := r.opt.Services.Properties(ctx, u); err != nil {
			note(err)
		} else if p.ActiveState != "inactive" && p.ActiveState != "failed" {
			note(r.opt.Services.Stop(ctx, u))
		}
	}
	note(r.revertFiles(ctx))
	for i := len(r.settings) - 1; i >= 0; i-- {
		s := r.settings[i]
		if err := r.w.setValue(s.file, s.value); err != nil {
			note(fmt.Errorf("set %s back to %q: %w", s.key, s.value, err))
		}
	}
	if r.reloaded {
		note(r.opt.Services.Reload(ctx))
	}
	for _, u := range r.tried {
		note(r.opt.Services.Restart(ctx, u))
	}
	if len(r.tried) > 0 && r.opt.Daemon != nil && len(faults) == 0 {
		ctx, cancel := context.WithTimeoutCause(ctx, healthTimeout, fmt.Errorf("no answer within %s", healthTimeout))
		defer cancel()
		// Without a receipt the daemon was somebody else's: it shall answer, no more.
		was := desired.Daemon{Address: r.plan.state.Daemon.Address}
		if r.plan.receipt != nil {
			was = r.plan.receipt.Daemon
		}
		if was.Address != "" {
			if err := r.opt.Daemon.Healthy(ctx, was); err != nil {
				note(fmt.Errorf("the daemon of before does not come back: %w", err))
			}
		}
	}
	return errors.Join(faults...)
}

// revertFiles undoes the commit, last change first.
func (r *run) revertFiles(ctx context.Context) error {
	var faults []error
	note := func(what string, err error) {
		if err != nil {
			faults = append(faults, fmt.Errorf("put back %s: %w", what, err))
		}
	}
	for i := len(r.removedDirs) - 1; i >= 0; i-- {
		d := r.removedDirs[i]
		own := &Owned{}
		own.stat(d.fi)
		err := r.w.mkdir(d.path, own.Mode)
		if err == nil && r.w.chown {
			err = r.w.lchown(d.path, own.UID, own.GID)
		}
		note(r.shown(d.path), err)
		r.dirty[filepath.Dir(d.path)] = true
	}
	for i := r.committed - 1; i >= 0; i-- {
		c := &r.rec.Changes[i]
		note(c.Path, r.revertChange(ctx, c))
	}
	if len(faults) > 0 {
		// What is kept stays: it is all that is left of the old state.
		return errors.Join(append(faults, r.syncDirs())...)
	}
	for i := range r.rec.Changes {
		if k := r.rec.Changes[i].Kept; k != nil && k.Path != "" {
			note(k.Path, r.w.remove(r.abs(k.Path)))
		}
	}
	note("staged files", r.unstage())
	if state, err := r.root.Resolve(StateDir); err != nil {
		note(StateDir, err)
	} else {
		note("generations", r.w.removeTree(r.generationDir(state, r.rec.From)))
	}
	for i := len(r.made) - 1; i >= 0; i-- {
		note(r.shown(r.made[i]), r.w.rmdir(r.made[i]))
		delete(r.dirty, r.made[i])
		r.dirty[filepath.Dir(r.made[i])] = true
	}
	for dir := range r.dirty {
		if fi, err := lstat(dir); err == nil && fi == nil {
			delete(r.dirty, dir)
		}
	}
	note("directories durably", r.syncDirs())
	return errors.Join(faults...)
}

func (r *run) revertChange(ctx context.Context, c *Change) error {
	real := r.abs(c.Real)
	r.dirty[filepath.Dir(real)] = true
	if c.Kept == nil {
		if c.Staged == "" {
			return nil
		}
		// The rename may not have happened; then there is nothing of ours here.
		return r.w.remove(real)
	}
	s, err := r.newStaged(Owned{Path: c.Path, Kind: c.Kept.Kind}, real)
	if err != nil {
		return err
	}
	if err := r.copyKept(ctx, c.Kept, s.temp); err != nil {
		return err
	}
	// Where the change was not made, both names are one file and rename(2) does
	// nothing; unstage removes the name that is left.
	return r.w.rename(s.temp, real)
}
