package install

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
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
	// PhaseUndo comes only after a failure from commit on.
	PhaseUndo Phase = "undo"
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
	// Import takes an image archive into the k8s.io namespace and returns the names
	// of its images.
	Import(ctx context.Context, d desired.Daemon, image desired.Image, archive io.Reader) ([]string, error)
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
	// Artifacts may be nil when the plan unpacks none.
	Artifacts Artifacts
	// Daemon is nil under a root that is not running.
	Daemon Daemon
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
	Changed    []Item      `json:"changed"`
	Artifacts  []Installed `json:"artifacts,omitempty"`
	Restarted  []string    `json:"restarted,omitempty"`
	Started    []string    `json:"started,omitempty"`
	Generation int         `json:"generation"`
	Phases     []PhaseTime `json:"phases"`
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

// StrandedError is a failure after which the host could not be brought back.
type StrandedError struct {
	Phase Phase
	Err   error // what failed first
	Undo  error // what failed when putting things back
	// Places say what is where.
	Places []string
	// Marker is a file, as on the node, that keeps later runs from changing the host
	// and from losing what Places tell of; "" where every file is back.
	Marker string
}

// Error has both faults, and what is where, one line each.
func (e *StrandedError) Error() string {
	msg := fmt.Sprintf("%s: %v\nthe host could not be brought back: %v", e.Phase, e.Err, e.Undo)
	for _, p := range e.Places {
		msg += "\n  " + p
	}
	if e.Marker != "" {
		msg += "\nput these back by hand, then remove " + e.Marker + "; nodeprep changes nothing here before that"
	}
	return msg
}

// Unwrap is both faults.
func (e *StrandedError) Unwrap() []error { return []error{e.Err, e.Undo} }

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
	rec     Record
	// made are directories made so far, real paths, outermost first; dirty are those
	// whose entries changed since they were last made durable.
	made  []string
	dirty map[string]bool
	// committed counts the changes of rec that were carried out; stuck are those that
	// could not be undone.
	committed int
	stuck     []Change
	// left says what an undo leaves that harms nobody.
	left []string
	// was is what the daemon was found to be before the commit; nil if it did not answer.
	was *desired.Daemon
	// removedDirs are how directories were that are gone.
	removedDirs []removedDir
	reloaded    bool
	tried       []string // units restarted, or tried
	started     []string // units started that were down, or tried
	settings    []setting
	images      []Imported
	// told counts the plan's warnings that whoever called Apply has.
	told int
	// aliases are the names that modules loaded by another name have.
	aliases map[string][]string
}

// Apply carries a plan out as one transaction. A plan that is empty does nothing at
// all; one that refuses something gives *NotOwnedError. When ctx ends before the
// commit, or anything fails there, nothing of ours is left; afterwards everything is
// put back and the error is *RevertedError, or *StrandedError if that failed too.
func Apply(ctx context.Context, h *host.Host, plan *Plan, opt ApplyOptions) (*Result, error) {
	r := &run{h: h, root: h.Root, plan: plan, opt: opt, w: opt.writer, res: &Result{Generation: plan.receipt.generation()}, dirty: map[string]bool{}}
	r.told = len(plan.Warnings)
	if plan.Empty() {
		return r.res, nil
	}
	if err := plan.Refusal(); err != nil {
		return nil, err
	}
	if r.w == nil {
		r.w = &writer{chown: h.UID == 0}
	}
	var err error
	if r.id, err = randomHex(8); err != nil {
		return nil, err
	}
	var unlock func()
	err = r.phase(PhaseLock, func() (err error) {
		if unlock, err = Lock(r.root); err != nil {
			return err
		}
		if err := r.refresh(ctx); err != nil {
			return err
		}
		return r.unresolved()
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
	err = r.phase(PhaseStage, func() error { return r.stage(ctx) })
	if err == nil {
		err = r.phase(PhaseValidate, func() error { return r.validate(ctx) })
	}
	if err == nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, r.unstage())
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
	r.prune()
	return r.res, nil
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

// refresh makes the plan anew when another nodeprep wrote a receipt since it was made.
func (r *run) refresh(ctx context.Context) error {
	now, err := ReadReceipt(r.root)
	if err != nil {
		return err
	}
	if now.id() == r.plan.receipt.id() {
		return nil
	}
	plan, err := Diff(ctx, r.h, r.plan.state, now, r.opt.DiffOptions)
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
