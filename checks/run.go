package checks

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// Selection says which checks of the catalogue are run.
type Selection struct {
	Stages []Stage // none: all
	// Only are IDs, or patterns of them (path.Match, where * also goes over the slash); none: all.
	Only []string
	// Skip demotes: a check whose ID matches still runs, and its failures become warnings.
	Skip []string
}

// UnknownIDError is a pattern that no check's ID matches.
type UnknownIDError struct{ Pattern string }

func (e *UnknownIDError) Error() string {
	return fmt.Sprintf("no check is called %s; nodeprep check --list lists them", e.Pattern)
}

// Validate returns an *UnknownIDError for each pattern that no check's ID matches: one that
// is misspelt would do nothing without a word.
func (s Selection) Validate() error {
	var errs []error
	for _, p := range slices.Concat(s.Only, s.Skip) {
		if !slices.ContainsFunc(Catalogue(), func(c Check) bool { return match(p, c.ID) }) {
			errs = append(errs, &UnknownIDError{p})
		}
	}
	return errors.Join(errs...)
}

// Has says whether a check is among those that are asked for.
func (s Selection) Has(c Check) bool {
	return (len(s.Stages) == 0 || slices.Contains(s.Stages, c.Stage)) && (len(s.Only) == 0 || matches(s.Only, c.ID))
}

// match is path.Match, where * also goes over the slash.
func match(pattern, id string) bool {
	flat := strings.NewReplacer("/", "\x00")
	ok, err := path.Match(flat.Replace(pattern), flat.Replace(id))
	return err == nil && ok
}

func matches(patterns []string, id string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return match(p, id) })
}

// How long a check may take. Those without the network look at files and local sockets,
// but a loaded board takes its time.
const (
	localTime   = 10 * time.Second
	networkTime = 20 * time.Second
	// Some 150 MB of programs, from a card that gives 3 MB a second.
	programTime = time.Minute
)

// Run runs the selected checks of a node, side by side, each after those that it needs.
// What they need is run, too, and not reported.
func Run(ctx context.Context, n *Node, s Selection) Report {
	return run(ctx, n, s, Catalogue())
}

// running is a check while the others run.
type running struct {
	check   Check
	done    chan struct{} // closed when results are there
	results []Result
	holds   bool // no result failed or is unknown, and it was not skipped
}

func run(ctx context.Context, n *Node, s Selection, catalogue []Check) Report {
	secrets := newMasker()
	all := map[string]*running{}
	for _, c := range catalogue {
		all[c.ID] = &running{check: c, done: make(chan struct{})}
	}
	// started is a set: a check that is needed by many runs once.
	started := map[string]bool{}
	var start func(r *running)
	start = func(r *running) {
		if started[r.check.ID] {
			return
		}
		started[r.check.ID] = true
		for _, need := range r.check.Needs {
			if o, isCheck := all[need]; isCheck {
				start(o)
			}
		}
		go func() {
			defer close(r.done)
			r.results = slices.Clone(r.look(ctx, n, all)) // what checks share stays as it is
			for i, x := range r.results {
				if x = secrets.result(x); x.Verdict == Fail && r.check.Severity == Recommended {
					x.Verdict = Warn
				}
				r.results[i] = x
			}
			r.holds = !slices.ContainsFunc(r.results, func(x Result) bool {
				return x.Verdict == Fail || x.Verdict == Unknown || x.Verdict == Skip
			})
		}()
	}
	var report Report
	for _, c := range catalogue {
		if s.Has(c) {
			start(all[c.ID])
		}
	}
	for _, c := range catalogue {
		if !s.Has(c) {
			continue
		}
		r := all[c.ID]
		<-r.done
		for _, x := range r.results {
			f := Finding{ID: c.ID, Stage: c.Stage, Severity: c.Severity, Result: x}
			if f.Verdict == Fail && matches(s.Skip, c.ID) {
				f.Verdict, f.Demoted = Warn, true
			}
			report = append(report, f)
		}
	}
	return report
}

// look waits for what the check needs, and runs it.
func (r *running) look(ctx context.Context, n *Node, all map[string]*running) []Result {
	limit := max(r.check.Time, localTime)
	for _, need := range r.check.Needs {
		if need == NeedNetwork {
			limit = max(limit, networkTime)
		}
		if o, isCheck := all[need]; isCheck {
			<-o.done
			if !o.holds {
				return skip("needs %s, which %s", need, o.became())
			}
		} else if atHand(need) {
			if missing := n.lacks(ctx, need); missing != nil {
				return []Result{*missing}
			}
		}
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out := make(chan []Result, 1)
	go func() {
		defer func() {
			if p := recover(); p != nil {
				out <- unknown(fmt.Errorf("the check itself broke: %v", p))
			}
		}()
		out <- r.ask(ctx, n, all)
	}()
	select {
	case results := <-out:
		return results
	case <-ctx.Done():
		// A file on a server that is gone cannot be waited for: its reader is left behind.
		select {
		case results := <-out:
			return results
		default:
		}
		return unknown(fmt.Errorf("no answer in %v: %w", limit, context.Cause(ctx)))
	}
}

// atHand are the facts that are known without asking anybody.
func atHand(fact string) bool {
	return slices.Contains([]string{NeedLive, NeedProfile, NeedReceipt, NeedNetwork}, fact)
}

// ask looks for the facts that the check needs, and runs it.
func (r *running) ask(ctx context.Context, n *Node, all map[string]*running) []Result {
	for _, need := range r.check.Needs {
		if _, isCheck := all[need]; isCheck || atHand(need) {
			continue
		}
		if missing := n.lacks(ctx, need); missing != nil {
			return []Result{*missing}
		}
	}
	results := r.check.Run(ctx, n)
	if len(results) == 0 {
		return unknown(errors.New("the check itself broke: it says nothing"))
	}
	return results
}

// became is the worst that was found, as a word.
func (r *running) became() string {
	for _, v := range []struct {
		Verdict
		word string
	}{{Fail, "failed"}, {Unknown, "is unknown"}, {Skip, "was skipped"}} {
		if slices.ContainsFunc(r.results, func(x Result) bool { return x.Verdict == v.Verdict }) {
			return v.word
		}
	}
	return "passed"
}
