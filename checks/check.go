package checks

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// Stage is when a check makes sense.
type Stage string

const (
	Preflight Stage = "preflight" // of a host, before anything is changed
	Audit     Stage = "audit"     // of a provisioned node
)

// Severity says what it means that a check does not hold.
type Severity string

const (
	Required    Severity = "required"    // the node does not work, or will not one day: the check fails
	Recommended Severity = "recommended" // the node works; somebody should know: the check warns
)

// Verdict is what a check came to.
type Verdict string

const (
	Pass    Verdict = "pass"
	Warn    Verdict = "warn"
	Fail    Verdict = "fail" // of required checks only
	Skip    Verdict = "skip" // not asked here: something it needs is not there
	Unknown Verdict = "unknown"
)

// Facts that a check may need, beside other checks. A check that needs one that is not
// there is skipped and says why.
const (
	NeedLive    = "live"    // the running system, not an image
	NeedProfile = "profile" // a profile, or a receipt that has one
	NeedReceipt = "receipt" // nodeprep provisioned this host
	NeedSystemd = "systemd" // systemd answers on D-Bus
	NeedProcess = "process" // a containerd runs
	NeedKubelet = "kubelet" // the host has a kubelet's configuration
	NeedNetwork = "network" // the network may be used
)

// Check is one entry of the catalogue.
type Check struct {
	ID       string // family/name: stable, documented
	Stage    Stage
	Severity Severity
	// Why is one sentence: what goes wrong on a node for which the check does not hold.
	Why string
	// Source backs it: a man page, kernel document, upstream file or issue.
	Source string
	// Needs are facts (NeedLive and its like) and IDs of other checks, which must have
	// passed, or warned.
	Needs []string
	// Time is how long it may take where that is more than others have, as to read
	// whole programs from a slow card.
	Time time.Duration
	// Remedy says in general what is to be done; results have the lines for their host.
	Remedy string
	// Run looks. One result when all is well, and one for each thing that is not.
	// It must end soon after its context does; what has not by then is unknown.
	Run func(ctx context.Context, n *Node) []Result
}

// Result is what a check found of one thing. Observed is filled on every verdict.
type Result struct {
	Verdict Verdict `json:"verdict"`
	// Object is what was looked at, where a check looks at several: a module, a file.
	Object   string `json:"object,omitempty"`
	Observed string `json:"observed"`
	Wanted   string `json:"wanted,omitempty"`
	// Place is the file (with its line, FILE:LINE, where it has one) or object that sets
	// the observed value.
	Place string `json:"place,omitempty"`
	// Remedy are lines for a root shell.
	Remedy string `json:"remedy,omitempty"`
	// Note is what else there is to know, such as what this value leads to.
	Note string `json:"note,omitempty"`
}

// Finding is a result and whose it is.
type Finding struct {
	ID       string   `json:"id"`
	Stage    Stage    `json:"stage"`
	Severity Severity `json:"severity"`
	// Demoted is set on a failure that was made a warning because somebody asked for it.
	Demoted bool `json:"demoted,omitempty"`
	Result
}

// Report is the findings of a run, in the catalogue's order.
type Report []Finding

// Failed are the findings that failed: of required checks, and not demoted.
func (r Report) Failed() Report {
	var out Report
	for _, f := range r {
		if f.Verdict == Fail {
			out = append(out, f)
		}
	}
	return out
}

// FailedError is that required checks failed.
type FailedError struct {
	Stage  Stage
	Report Report // what failed
}

// Error is a line for each, with its remedy.
func (e *FailedError) Error() string {
	lines := make([]string, 0, len(e.Report))
	for _, f := range e.Report {
		line := fmt.Sprintf("%s %s: %s", e.Stage, f.ID, f.String())
		if f.Remedy != "" {
			line += " (" + strings.ReplaceAll(f.Remedy, "\n", "; ") + ")"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// String is what was found, and wanted, and where, in one line.
func (r Result) String() string {
	s := r.Observed
	if r.Object != "" {
		s = r.Object + ": " + s
	}
	if r.Wanted != "" && r.Verdict != Pass {
		s += ", want " + r.Wanted
	}
	if r.Place != "" && r.Verdict != Pass && !strings.Contains(s, r.Place) {
		s += " [" + r.Place + "]"
	}
	return s
}

// pass, skip and unknown are the results that need few words.
func pass(format string, args ...any) []Result {
	return []Result{{Verdict: Pass, Observed: fmt.Sprintf(format, args...)}}
}

func skip(format string, args ...any) []Result {
	return []Result{{Verdict: Skip, Observed: fmt.Sprintf(format, args...)}}
}

// unknown is for what could not be found out, with the reason.
func unknown(err error) []Result {
	return []Result{{Verdict: Unknown, Observed: err.Error()}}
}

// single is a check that has one result.
func single(look func(context.Context, *Node) Result) func(context.Context, *Node) []Result {
	return func(ctx context.Context, n *Node) []Result { return []Result{look(ctx, n)} }
}

// orPass is the faults that were found or, where there are none, that all is well.
func orPass(faults []Result, format string, args ...any) []Result {
	if len(faults) > 0 {
		return faults
	}
	return pass(format, args...)
}
