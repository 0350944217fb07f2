package install

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
	"github.com/nodeprep/nodeprep/systemd"
)

// Phase is a part of Apply, in this order.
type Phase string

const (
	PhaseLock      Phase = "lock"
	PhasePreflight Phase = "preflight"
	PhaseStage     Phase = "stage"
	PhaseValidate  Phase = "validate"
	PhaseCommit    Phase = "commit"
	PhaseActivate  Phase = "activate"
	PhaseVerify    Phase = "verify"
	PhaseSettle    Phase = "settle"
	// PhaseUndo comes only after a failure from commit on, PhaseRecover only after a
	// run that was interrupted.
	PhaseUndo    Phase = "undo"
	PhaseRecover Phase = "recover"
)

// Observer is told how far Apply is. PhaseStart and PhaseEnd come in order; Progress
// comes from several goroutines at once, with done and total in bytes and total 0
// where it is not known.
type Observer interface {
	PhaseStart(Phase)
	PhaseEnd(p Phase, took time.Duration, err error)
	Progress(name string, done, total int64)
}

// Services is the running systemd; *systemd.Manager is one.
type Services interface {
	Properties(ctx context.Context, unit string) (systemd.Properties, error)
	Reload(ctx context.Context) error
	Start(ctx context.Context, unit string) error
	Restart(ctx context.Context, unit string) error
	Stop(ctx context.Context, unit string) error
	// StartNoWait asks for a start and does not wait for it.
	StartNoWait(ctx context.Context, unit string) error
	// ResetFailed forgets that a unit failed, also one that is not known any more.
	ResetFailed(ctx context.Context, unit string) error
}

// Daemon is the running containerd; Containerd is one.
type Daemon interface {
	// Healthy waits until the daemon at want.Address serves, and fails unless its
	// version is want.Version and its CRI plugin and want.Snapshotter are ok; an empty
	// field is not asked for.
	Healthy(ctx context.Context, want desired.Daemon) error
	// Process is the one that listens at d.Address, 0 where that cannot be told.
	Process(ctx context.Context, d desired.Daemon) (pid int, err error)
	// Import takes an image archive into the k8s.io namespace and returns its images,
	// those too that were there before. Beside an error it returns those that it took all
	// the same. in is verified: instead of its end there may be an error. archive is what was
	// found in it; nil where nobody has looked.
	Import(ctx context.Context, d desired.Daemon, image desired.Image, in io.Reader, archive *imagearchive.Archive) ([]daemon.Image, error)
	// Images lists those of the k8s.io namespace. A daemon that does not answer is an error.
	Images(ctx context.Context, d desired.Daemon) ([]daemon.Image, error)
	// Pin keeps images from the kubelet's garbage collection, Unpin leaves them to it.
	// Names that are not there are no fault.
	Pin(ctx context.Context, d desired.Daemon, names []string) error
	Unpin(ctx context.Context, d desired.Daemon, names []string) error
	// Tasks lists what runs, in all namespaces. A daemon that does not answer is an error.
	Tasks(ctx context.Context, d desired.Daemon) ([]daemon.Task, error)
	// Containers lists the containers of all namespaces, those that do not run too.
	Containers(ctx context.Context, d desired.Daemon) ([]daemon.Container, error)
	// Watch follows the shims of tasks from now on, whatever becomes of the daemon.
	Watch(tasks []daemon.Task) (ShimWatch, error)
	// StopTasks ends all tasks and removes them.
	StopTasks(ctx context.Context, d desired.Daemon) error
}

// ShimWatch follows shims; *daemon.Watch is one.
type ShimWatch interface {
	// Ended lists the tasks whose shim ended within a span of time.
	Ended(from, to time.Time) []daemon.Task
	Close()
}

// Artifacts supplies release files; Releases does.
type Artifacts interface {
	// Obtain finds a release file, fetching it where it must. It unpacks nothing.
	Obtain(ctx context.Context, a desired.Artifact, progress func(done, total int64)) (*Archive, error)
}

// Archive is a release file at hand.
type Archive struct {
	File       string // its name
	SHA256     string // the digest that Unpack will hold it to
	SHA256From string
	Packed     int64 // bytes
	Unpacked   int64 // bytes that its members take, at most
	// Unpack verifies the file and gives its members to the sink; what the sink got
	// counts only when the error is nil. A member's Close says that it is whole.
	Unpack func(ctx context.Context, create func(desired.Member, fs.FileMode) (io.WriteCloser, error)) error
	// Check holds an unpacked program against the host; warnings do not stop anything.
	Check func(f io.ReaderAt, name string) (warning string, err error)
}

// ApplyOptions are what carrying out a plan needs.
type ApplyOptions struct {
	DiffOptions
	// Version is nodeprep's own, for the receipt; so are Profiles, the names of the
	// profile's layers, and Profile, the profile flattened and without secrets.
	Version  string
	Profiles []string
	Profile  json.RawMessage
	// AtBoot says that a machine does this by itself: whoever works on the root is waited for,
	// a minute. UserData goes into the receipt.
	AtBoot   bool
	UserData BootDigests
	// Artifacts may be nil when the plan unpacks none.
	Artifacts Artifacts
	// Preflight is asked before anything is written; nil asks nothing.
	Preflight func(context.Context) error
	// Observer may be nil.
	Observer Observer

	// writer is the tests' own.
	writer *writer
}

// Result is what Apply did.
type Result struct {
	// Changed are the items of the plan that were carried out; empty when there was
	// nothing to do.
	Changed   []Item      `json:"changed"`
	Artifacts []Installed `json:"artifacts,omitempty"`
	// Images are those of the archives that were imported, or wait.
	Images     []ImportedImage `json:"images,omitempty"`
	Restarted  []string        `json:"restarted,omitempty"`
	Started    []string        `json:"started,omitempty"`
	Generation int             `json:"generation"`
	Phases     []PhaseTime     `json:"phases"`
	// Journal is how much of that went into keeping the journal, nanoseconds in JSON.
	Journal time.Duration `json:"journal"`
	// Warnings are those that the plan given to Apply does not have.
	Warnings diag.List `json:"warnings,omitempty"`
}

// PhaseTime is how long a phase took.
type PhaseTime struct {
	Phase Phase         `json:"phase"`
	Took  time.Duration `json:"took"` // nanoseconds in JSON
}

// RevertedError is a failure after which everything was put back.
type RevertedError struct {
	Phase Phase
	Err   error
	// Warnings say what is not quite as it was, such as a directory in which somebody
	// else has put something meanwhile.
	Warnings []string
}

// Error says what failed and that the host is as it was, or but for what.
func (e *RevertedError) Error() string {
	msg := fmt.Sprintf("%s: %v; everything was put back, the host is as it was before", e.Phase, e.Err)
	if len(e.Warnings) > 0 {
		msg += " but for this:\n  " + strings.Join(e.Warnings, "\n  ")
	}
	return msg
}

// Unwrap is the failure.
func (e *RevertedError) Unwrap() error { return e.Err }

// StrandedError is a failure after which the host could not be brought back; or, of an
// uninstall past its point of no return, one after which it is neither as before nor done.
type StrandedError struct {
	Phase Phase
	Err   error // what failed first
	Undo  error // what failed when putting things back; nil when that was not to be done
	// Places say what is where.
	Places []string
	// Journal is the journal's path where it is still needed; "" where every file is back.
	Journal string
	// Root is the root that it is under; "" for the running system.
	Root string
}

// remedy is what to do about it.
func (e *StrandedError) remedy(does string) string {
	command := "nodeprep recover"
	if e.Root != "" {
		command += " --root " + e.Root
	}
	return fmt.Sprintf("\nwhen the cause is gone, %q %s; nodeprep changes nothing else here before that (%s)", command, does, e.Journal)
}

// Error has both faults, and what is where, one line each.
func (e *StrandedError) Error() string {
	if e.Undo == nil {
		msg := fmt.Sprintf("%s: uninstalled, but for what could not be removed: %v", e.Phase, e.Err)
		if e.Journal != "" {
			return msg + e.remedy("removes the rest")
		}
		return msg + "\nnodeprep itself is gone: remove by hand what is left of that"
	}
	msg := fmt.Sprintf("%s: %v\nthe host could not be brought back: %v", e.Phase, e.Err, e.Undo)
	for _, p := range e.Places {
		msg += "\n  " + p
	}
	if e.Journal != "" {
		msg += e.remedy("brings them back")
	}
	return msg
}

// Unwrap is the faults.
func (e *StrandedError) Unwrap() []error {
	if e.Undo == nil {
		return []error{e.Err}
	}
	return []error{e.Err, e.Undo}
}

// run is one Apply.
type run struct {
	h    *host.Host
	root *host.Root
	plan *Plan
	opt  ApplyOptions
	w    *writer
	id   string
	res  *Result

	staging staging
	// j is the journal as it is on the disk, or about to be; began says that there is one.
	j     Journal
	began bool
	// dirty are directories whose entries changed since they were last made durable.
	dirty map[string]bool
	// touched is what was done to the running system, stuck are changes that could not
	// be undone.
	touched touched
	stuck   []Change
	// left says what an undo leaves that harms nobody.
	left   []string
	guard  *guard
	images []Imported
	// told counts the plan's warnings that whoever called Apply has.
	told int
	// aliases are the names that modules loaded by another name have.
	aliases map[string][]string
}

// Apply carries a plan out as one transaction. A plan that is empty does nothing at
// all; one that refuses something gives *NotOwnedError. When ctx ends before the
// commit, or anything fails there, nothing of ours is left; afterwards everything is
// put back and the error is *RevertedError, or *StrandedError if that failed too. An
// uninstall that cannot remove everything gives *StrandedError beside its result.
func Apply(ctx context.Context, h *host.Host, plan *Plan, opt ApplyOptions) (*Result, error) {
	r := newRun(h, plan, opt)
	if plan.Empty() {
		return r.res, nil
	}
	var err error
	if r.id, err = randomHex(8); err != nil {
		return nil, err
	}
	var unlock func()
	err = r.phase(PhaseLock, func() (err error) {
		if opt.AtBoot {
			unlock, err = lockForBoot(ctx, r.root)
		} else {
			unlock, err = Lock(r.root)
		}
		if err != nil {
			return err
		}
		return r.refresh(ctx)
	})
	if unlock != nil {
		defer unlock()
	}
	if err != nil {
		return nil, err
	}
	if r.plan.Empty() {
		return r.res, nil
	}
	if opt.Preflight != nil {
		if err := r.phase(PhasePreflight, func() error { return opt.Preflight(ctx) }); err != nil {
			return nil, err
		}
	}
	defer func() {
		if r.guard != nil {
			r.guard.close()
		}
	}()
	at := PhaseStage
	err = r.phase(at, func() error { return r.stage(ctx) })
	if err == nil {
		at = PhaseValidate
		err = r.phase(at, func() error { return r.validate(ctx) })
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		if undo := r.abandon(ctx); undo != nil {
			return nil, r.stranded(at, err, undo)
		}
		return nil, err
	}
	r.observe(ctx)
	for _, p := range []struct {
		phase Phase
		run   func() error
	}{
		{PhaseCommit, r.commit},
		{PhaseActivate, func() error { return r.activate(ctx) }},
		{PhaseVerify, func() error { return r.verify(ctx) }},
		{PhaseSettle, r.settle},
	} {
		if err := r.phase(p.phase, p.run); err != nil {
			return nil, r.undo(ctx, p.phase, err)
		}
	}
	// What fails now is not undone any more, and done by the next run.
	if err := r.finishAll(ctx); err != nil {
		if r.j.Verb == VerbUninstall {
			return r.res, r.unfinished(PhaseSettle, err)
		}
		r.res.Warnings.Warnf(diag.Origin{File: JournalPath}, "run nodeprep recover", "the run is done, but not tidied up: %v", err)
	}
	return r.res, nil
}

func newRun(h *host.Host, plan *Plan, opt ApplyOptions) *run {
	r := &run{h: h, root: h.Root, plan: plan, opt: opt, w: opt.writer, res: &Result{Generation: plan.receipt.generation()}, dirty: map[string]bool{}}
	r.told = len(plan.Warnings)
	if r.w == nil {
		r.w = &writer{chown: h.UID == 0}
	}
	return r
}

// finishAll does what is left once there is no way back.
func (r *run) finishAll(ctx context.Context) error {
	end := r.finishRun
	if r.j.Verb == VerbUninstall {
		end = func() error { return r.finishUninstall(context.WithoutCancel(ctx)) }
	}
	err := end()
	for _, l := range r.left {
		r.res.Warnings.Warnf(diag.Origin{}, "", "%s", l)
	}
	return err
}

func (r *run) phase(p Phase, f func() error) error {
	if r.opt.Observer != nil {
		r.opt.Observer.PhaseStart(p)
	}
	start := r.h.Now()
	err := f()
	took := r.h.Now().Sub(start)
	r.res.Phases = append(r.res.Phases, PhaseTime{p, took})
	if r.opt.Observer != nil {
		r.opt.Observer.PhaseEnd(p, took, err)
	}
	return err
}

func (r *run) progress(name string, done, total int64) {
	if r.opt.Observer != nil {
		r.opt.Observer.Progress(name, done, total)
	}
}

// refresh ends a run that was interrupted, and makes the plan anew when the host is not
// what it was made for any more: what stood in its way may have been half of another run.
func (r *run) refresh(ctx context.Context) error {
	recovered, err := recoverLocked(ctx, r.h, RecoverOptions{
		Services: r.opt.Services, Daemon: r.opt.Daemon, Observer: r.opt.Observer, Version: r.opt.Version,
		WithRunningPods: r.opt.WithRunningPods, live: r.opt.live, writer: r.opt.writer,
	})
	if err != nil {
		return err
	}
	now, err := ReadReceipt(r.root)
	if err != nil {
		return err
	}
	if now.id() == r.plan.receipt.id() && recovered.Outcome == NothingPending {
		return r.plan.Refusal()
	}
	plan, err := r.plan.again(ctx, now)
	if err != nil {
		return err
	}
	r.plan, r.res.Generation, r.told = plan, now.generation(), 0
	return plan.Refusal()
}

// abs is the place on this machine of a path as shown on the node. The path has no
// links left in its directories.
func (r *run) abs(p string) string { return filepath.Join(r.root.Dir(), p) }

func (r *run) shown(real string) string { return shown(r.root, real) }

func randomHex(n int) (string, error) {
	b := make([]byte, n)
	if _, err := rand.Read(b); err != nil {
		return "", fmt.Errorf("make a random name: %w", err)
	}
	return hex.EncodeToString(b), nil
}
