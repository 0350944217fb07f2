package checks

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
)

// Stage is when a check makes sense.
type Stage string

const (
	Preflight Stage = "preflight" // before anything is changed
	Audit     Stage = "audit"     // on a provisioned node
)

// Severity says whether a failed check stops a run.
type Severity string

const (
	Required    Severity = "required"
	Recommended Severity = "recommended"
)

// Verdict is what a check came to.
type Verdict string

const (
	Pass    Verdict = "pass"
	Warn    Verdict = "warn"
	Fail    Verdict = "fail"
	Skip    Verdict = "skip"
	Unknown Verdict = "unknown" // could not find out: never a silent pass
)

// Target is what is checked.
type Target struct {
	Host  *host.Host
	Facts host.Facts
	Spec  *profiles.Spec
}

// Check is one entry of the catalogue.
type Check struct {
	ID       string // slash-separated, stable
	Stage    Stage
	Severity Severity
	// Why is one sentence: what goes wrong on a node that fails the check.
	Why string
	// Source backs it: a man page, kernel document or issue.
	Source string
	Run    func(ctx context.Context, t Target) Result
}

// Result is what one check found. Observed is filled on every verdict.
type Result struct {
	Verdict  Verdict `json:"verdict"`
	Observed string  `json:"observed"`
	Wanted   string  `json:"wanted,omitempty"`
	// Place is the file, line or object that sets the observed value.
	Place string `json:"place,omitempty"`
	// Remedy can be pasted.
	Remedy string `json:"remedy,omitempty"`
}

// Finding is a check with its result.
type Finding struct {
	ID       string   `json:"id"`
	Stage    Stage    `json:"stage"`
	Severity Severity `json:"severity"`
	Result
}

// Report is the findings of a run, in the catalogue's order.
type Report []Finding

// Failed are the required checks that failed.
func (r Report) Failed() Report {
	var out Report
	for _, f := range r {
		if f.Severity == Required && f.Verdict == Fail {
			out = append(out, f)
		}
	}
	return out
}

// FailedError stops an apply: every required preflight check that failed.
type FailedError struct{ Report Report }

// Error is one line a failed check.
func (e *FailedError) Error() string {
	lines := make([]string, 0, len(e.Report))
	for _, f := range e.Report {
		line := fmt.Sprintf("preflight %s: %s", f.ID, f.Observed)
		if f.Wanted != "" {
			line += ", want " + f.Wanted
		}
		if f.Remedy != "" {
			line += " (" + f.Remedy + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// timeout bounds one check: none of them waits for anything but files and local sockets.
const timeout = 5 * time.Second

// Run runs the checks of a stage concurrently. A check whose ID matches one of skip
// (path.Match patterns) still runs, but a failure of it is demoted to a warning.
func Run(ctx context.Context, stage Stage, t Target, skip []string) Report {
	selected := slices.DeleteFunc(Catalogue(), func(c Check) bool { return c.Stage != stage })
	report := make(Report, len(selected))
	var wg sync.WaitGroup
	for i, c := range selected {
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, timeout)
			defer cancel()
			f := Finding{ID: c.ID, Stage: c.Stage, Severity: c.Severity, Result: c.Run(ctx, t)}
			if f.Verdict == Fail && matches(skip, c.ID) {
				f.Verdict = Warn
			}
			report[i] = f
		})
	}
	wg.Wait()
	return report
}

func matches(patterns []string, id string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		ok, err := path.Match(p, id)
		return err == nil && ok
	})
}
