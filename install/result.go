package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"time"

	"github.com/nodeprep/nodeprep/internal/host"
)

const (
	// ResultPath is what the last run that a machine started by itself came to, mode 0600.
	ResultPath = StateDir + "/result.json"
	// resultFormat grows when an older nodeprep could misread the file.
	resultFormat = 1
)

// BootVerb is a run that a machine starts by itself, with nobody there to read what it says.
type BootVerb string

const (
	VerbCloudInit BootVerb = "cloud-init"
	VerbFirstBoot BootVerb = "firstboot"
)

// BootOutcome is how such a run ended.
type BootOutcome string

const (
	// BootDone changed the host, BootUnchanged found nothing to do.
	BootDone      BootOutcome = "done"
	BootUnchanged BootOutcome = "unchanged"
	// BootFailed left the host as it was, or, with exit code 4, could not.
	BootFailed BootOutcome = "failed"
)

// BootResult is what a run that a machine started by itself came to, for whoever asks later.
// It holds no secrets.
type BootResult struct {
	Format int `json:"format"`
	// Verb says which run, Nodeprep the version of the nodeprep that made it.
	Verb     BootVerb `json:"verb"`
	Nodeprep string   `json:"nodeprep"`
	// Began and Ended are in UTC, Seconds is what lies between them by a clock that nobody
	// sets meanwhile.
	Began   time.Time `json:"began"`
	Ended   time.Time `json:"ended"`
	Seconds float64   `json:"seconds"`
	// Boot is the kernel's boot_id (random(4)) of the boot that it was in.
	Boot    string      `json:"boot,omitempty"`
	Outcome BootOutcome `json:"outcome"`
	// ExitCode is that of the command line, Error its message; "" when there is none.
	ExitCode int    `json:"exitCode"`
	Error    string `json:"error,omitempty"`
	// Digests are those of what was used, Versions those of the components by their names.
	Digests  BootDigests       `json:"digests,omitzero"`
	Versions map[string]string `json:"versions,omitempty"`
	// Audit is nil where none was made.
	Audit *AuditCount `json:"audit,omitempty"`
	// Receipt is the ID of the host's receipt after the run, Generation its number.
	Receipt    string `json:"receipt,omitempty"`
	Generation int    `json:"generation,omitempty"`
	// Applied is that receipt's time. It tells an apply by somebody else from a first boot,
	// which gives the receipt another ID when it notes what it has done.
	Applied time.Time `json:"applied,omitzero"`
	// Otherwise says that somebody had applied something else by then, for which user-data is
	// left alone until this result goes.
	Otherwise bool `json:"otherwise,omitempty"`
	// Made counts the directories that were made to hold this file, StateDir the innermost.
	// WriteResult keeps it.
	Made int `json:"made,omitempty"`
	// Earlier is the last result of the other verb, which has none itself; nil where there is
	// none. WriteResult keeps it.
	Earlier *BootResult `json:"earlier,omitempty"`
}

// BootDigests are sha256, lower-case hex; "" of what was not used.
type BootDigests struct {
	// Profile is, of user-data, what sha256sum(1) prints of what it prints of the profile
	// and what that names; of a first boot, the receipt's flattened profile as compact JSON.
	Profile string `json:"profile,omitempty"`
	// Bundle is the bundle's file, where its digest was given. BundleIndex is its image index,
	// by which registries know it.
	Bundle      string `json:"bundle,omitempty"`
	BundleIndex string `json:"bundleIndex,omitempty"`
	Nodeprep    string `json:"nodeprep,omitempty"`
}

// AuditCount counts what the audit found, by verdict. Failing has the IDs of the required
// checks that failed, each once.
type AuditCount struct {
	Pass    int      `json:"pass"`
	Warn    int      `json:"warn"`
	Fail    int      `json:"fail"`
	Unknown int      `json:"unknown"`
	Skipped int      `json:"skipped,omitempty"`
	Failing []string `json:"failing,omitempty"`
}

// Done says that nothing is left to do: a run that failed, or whose audit did, is made again
// at the next boot. A nil result is not done.
func (r *BootResult) Done() bool { return r != nil && r.Outcome != BootFailed && r.ExitCode == 0 }

// Of is the last result of a verb, nil where there is none.
func (r *BootResult) Of(verb BootVerb) *BootResult {
	if r != nil && r.Verb != verb {
		r = r.Earlier
	}
	if r == nil || r.Verb != verb {
		return nil
	}
	return r
}

// Saw says whether a receipt is of the apply that was the last one when this result was
// written, or there was none then either.
func (r *BootResult) Saw(rec *Receipt) bool {
	if rec == nil {
		return r.Generation == 0 && r.Applied.IsZero()
	}
	return r.Generation == rec.Generation && r.Applied.Equal(rec.Time)
}

// ReadResult returns the root's result, nil when there is none. One of a newer nodeprep is
// refused with the version that wrote it.
func ReadResult(root *host.Root) (*BootResult, error) {
	data, err := readOwn(root, ResultPath)
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read result: %w", err)
	}
	r := new(BootResult)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read result %s: %w", ResultPath, err)
	}
	if r.Format > resultFormat {
		return nil, fmt.Errorf("read result %s: it has format %d, written by nodeprep %s, and this one knows up to %d; use nodeprep %s or newer",
			ResultPath, r.Format, r.Nodeprep, resultFormat, r.Nodeprep)
	}
	if r.Earlier != nil {
		r.Earlier.Earlier = nil
		if r.Earlier.Verb == r.Verb {
			r.Earlier = nil
		}
	}
	return r, nil
}

// WriteResult replaces the host's result, durably, mode 0600. It makes StateDir where that is
// not there, which the next apply then takes for its own. Format, Earlier and Made are
// filled in, and Boot, Receipt, Generation and Applied where they are zero; Ended and
// Seconds are the caller's. It
// waits a minute for whoever works on the root: at boot nobody runs it again.
func WriteResult(ctx context.Context, h *host.Host, res *BootResult) error {
	return writeResult(ctx, h, res, nil)
}

func writeResult(ctx context.Context, h *host.Host, res *BootResult, w *writer) error {
	unlock, err := lockForBoot(ctx, h.Root)
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	defer unlock()
	r := newRun(h, &Plan{}, ApplyOptions{writer: w})
	if r.id, err = randomHex(8); err != nil {
		return err
	}
	rec, err := ReadReceipt(r.root)
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if rec != nil && res.Receipt == "" {
		res.Receipt, res.Generation, res.Applied = rec.ID, rec.Generation, rec.Time
	}
	if res.Boot == "" && r.root.Live() {
		res.Boot = bootID(r.root)
	}
	res.Format, res.Made, res.Earlier = resultFormat, 0, nil
	if was := r.lastResult(); was != nil {
		res.Made, res.Earlier = was.Made, was.Earlier
		if was.Verb != res.Verb {
			was.Earlier, was.Made, res.Earlier = nil, 0, was
		}
	}
	if err := r.sweep(); err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	fi, err := lstat(state)
	if err != nil {
		return fmt.Errorf("write result: %w", err)
	}
	if fi != nil {
		err = r.replaceOwn(filepath.Base(ResultPath), res)
	} else {
		err = r.makeState(filepath.Base(ResultPath), func(made []string) any {
			res.Made = len(made)
			return res
		})
	}
	if err != nil {
		return fmt.Errorf("write %s: %w", ResultPath, err)
	}
	return nil
}

// lastResult is the root's result, nil where there is none that can be read: nobody is told
// of an old one what he did not ask.
func (r *run) lastResult() *BootResult {
	res, err := ReadResult(r.root)
	if err != nil {
		return nil
	}
	return res
}

// madeForResult are the directories that hold nothing but what is nodeprep's own, since a
// result was all there was to keep in them, outermost first.
func (r *run) madeForResult(state string) []string {
	res := r.lastResult()
	if res == nil || r.plan.receipt != nil {
		return nil
	}
	var made []string
	for dir := state; len(made) < res.Made && dir != r.root.Dir() && dir != "/"; dir = filepath.Dir(dir) {
		made = slices.Insert(made, 0, r.shown(dir))
	}
	return made
}

// keepResult keeps the result, where there is one, when all else in StateDir goes with a run
// that was put back: it is how the boot before that is told of. It returns its place, "" for
// none. The directories that the run made are its from then on.
func (r *run) keepResult(state string) (string, error) {
	res := r.lastResult()
	if res == nil {
		return "", nil
	}
	name := filepath.Base(ResultPath)
	if res.Made < len(r.j.Made) {
		res.Made = len(r.j.Made)
		if err := r.replaceOwn(name, res); err != nil {
			return "", err
		}
	}
	return filepath.Join(state, name), nil
}

// makeState makes StateDir, with a file in it, where it is not there: by one rename, so that
// a kill leaves either nothing or all of it. content is told of the directories that are
// made, as shown on the node, outermost first.
func (r *run) makeState(name string, content func(made []string) any) error {
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	var lacking []string // outermost first
	for dir := state; ; dir = filepath.Dir(dir) {
		fi, err := lstat(dir)
		if err != nil {
			return err
		}
		if fi != nil {
			break
		}
		lacking = slices.Insert(lacking, 0, dir)
	}
	var made []string
	for _, dir := range lacking {
		made = append(made, r.shown(dir))
	}
	top := lacking[0]
	temp := r.ownTemp(top)
	at := temp
	for i, dir := range lacking {
		if i > 0 {
			at = filepath.Join(at, filepath.Base(dir))
		}
		mode := fs.FileMode(0o755)
		if dir == state {
			mode = 0o700
		}
		if err := r.w.mkdir(at, mode); err != nil {
			return errors.Join(err, r.w.removeTree(temp))
		}
	}
	err = r.writeJSON(filepath.Join(at, name), content(made))
	for dir := at; err == nil; dir = filepath.Dir(dir) {
		err = r.w.sync(dir)
		if dir == temp {
			break
		}
	}
	if err == nil {
		err = r.w.rename(temp, top)
	}
	if err != nil {
		return errors.Join(err, r.w.removeTree(temp))
	}
	r.began = true
	delete(r.dirty, at)
	return r.w.sync(filepath.Dir(top))
}

// isOwnTemp reports whether a name in StateDir is one under which its files are written.
func isOwnTemp(name string) bool {
	return slices.ContainsFunc([]string{JournalPath, ReceiptPath, ResultPath}, func(p string) bool { return isStagingName(name, filepath.Base(p)) })
}
