package checks

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
)

// made is a check that comes to that verdict.
func made(id string, v Verdict, needs ...string) Check {
	return Check{
		ID: id, Stage: Audit, Severity: Required, Needs: needs,
		Run: func(context.Context, *Node) []Result { return []Result{{Verdict: v, Observed: "seen by " + id}} },
	}
}

func recommended(c Check) Check {
	c.Severity = Recommended
	return c
}

// verdicts is "ID verdict observed" of each finding.
func verdicts(r Report) []string {
	var out []string
	for _, f := range r {
		out = append(out, fmt.Sprintf("%s %s: %s", f.ID, f.Verdict, f.Observed))
	}
	return out
}

// What a check needs decides whether it is asked, and it says so.
func TestNeeds(t *testing.T) {
	n := fake(t, nil)
	for _, tt := range []struct {
		name   string
		checks []Check
		want   []string
	}{
		{"a need that holds", []Check{made("a/a", Pass), made("a/b", Pass, "a/a")}, []string{"a/a pass: seen by a/a", "a/b pass: seen by a/b"}},
		{"a need that warns", []Check{made("a/a", Warn), made("a/b", Pass, "a/a")}, []string{"a/a warn: seen by a/a", "a/b pass: seen by a/b"}},
		{"a need that fails", []Check{made("a/a", Fail), made("a/b", Pass, "a/a")}, []string{"a/a fail: seen by a/a", "a/b skip: needs a/a, which failed"}},
		{"a need that is unknown", []Check{made("a/a", Unknown), made("a/b", Fail, "a/a")}, []string{"a/a unknown: seen by a/a", "a/b skip: needs a/a, which is unknown"}},
		{"a need that is only recommended", []Check{recommended(made("a/a", Fail)), made("a/b", Pass, "a/a")}, []string{"a/a warn: seen by a/a", "a/b pass: seen by a/b"}},
		{
			"a need of a need", []Check{made("a/c", Fail, "a/b"), made("a/b", Fail, "a/a"), made("a/a", Fail)},
			[]string{"a/c skip: needs a/b, which was skipped", "a/b skip: needs a/a, which failed", "a/a fail: seen by a/a"},
		},
		{"a fact that is not there", []Check{made("a/a", Fail, NeedProfile)}, []string{"a/a skip: no profile to compare with"}},
		{"a fact that nobody knows", []Check{made("a/a", Fail, "weather")}, []string{"a/a unknown: the check itself broke: it needs weather, which nobody knows"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, verdicts(run(t.Context(), n, Selection{}, tt.checks))); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// Facts of a host: each is asked for once, and what is not there is named.
func TestFacts(t *testing.T) {
	asked := 0
	down := func(o *Outside) {
		o.Facts.SystemdInit = true
		o.Units = func(context.Context) (Units, error) { asked++; return nil, errors.New("connect to systemd: refused") }
	}
	dead := func(o *Outside) { o.Live = false }
	for _, tt := range []struct {
		need   string
		change []func(*Outside)
		want   string
	}{
		{NeedLive, nil, "pass: seen"},
		{NeedLive, []func(*Outside){dead}, "skip: not asked of an image"},
		{NeedSystemd, nil, "skip: systemd does not run here"},
		{NeedSystemd, []func(*Outside){down}, "unknown: connect to systemd: refused"},
		{NeedSystemd, []func(*Outside){withUnits(units{})}, "pass: seen"},
		{NeedReceipt, nil, "skip: not provisioned by nodeprep"},
		{NeedNetwork, nil, "skip: the network is not to be used"},
		{NeedNetwork, []func(*Outside){online}, "pass: seen"},
		{NeedProcess, nil, "skip: no containerd runs here"},
		{NeedKubelet, nil, "skip: no kubelet is configured here"},
	} {
		got := verdicts(run(t.Context(), fake(t, nil, tt.change...), Selection{}, []Check{made("a/a", Pass, tt.need), made("a/b", Pass, tt.need)}))
		for _, g := range got {
			if _, g, _ = strings.Cut(g, " "); !strings.HasPrefix(g, tt.want) {
				t.Errorf("%s: %q, want %q", tt.need, g, tt.want)
			}
		}
	}
	if asked != 1 {
		t.Errorf("systemd was asked %d times, want once", asked)
	}
}

// Skip demotes and says so; recommended checks never fail; what is only needed is run and
// not reported.
func TestSelection(t *testing.T) {
	n := fake(t, nil)
	mild := made("mild/a", Fail)
	mild.Severity = Recommended
	early := made("early/a", Fail)
	early.Stage = Preflight
	all := []Check{early, made("a/a", Fail), made("a/b", Pass, "a/a"), mild}
	for _, tt := range []struct {
		name string
		s    Selection
		want []string
	}{
		{"all", Selection{}, []string{"early/a fail", "a/a fail", "a/b skip", "mild/a warn"}},
		{"a stage", Selection{Stages: []Stage{Preflight}}, []string{"early/a fail"}},
		{"one that needs another", Selection{Only: []string{"a/b"}}, []string{"a/b skip"}},
		{"a family", Selection{Only: []string{"a/*"}}, []string{"a/a fail", "a/b skip"}},
		{"all but by pattern", Selection{Only: []string{"*"}, Skip: []string{"*/a"}}, []string{"early/a warn demoted", "a/a warn demoted", "a/b skip", "mild/a warn"}},
		{"by the end of its name", Selection{Only: []string{"*d/a"}}, []string{"mild/a warn"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, f := range run(t.Context(), n, tt.s, all) {
				s := f.ID + " " + string(f.Verdict)
				if f.Demoted {
					s += " demoted"
				}
				got = append(got, s)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestUnknownIDs(t *testing.T) {
	if err := (Selection{Only: []string{"host/*", Privilege}, Skip: []string{"*"}}).Validate(); err != nil {
		t.Error(err)
	}
	err := Selection{Only: []string{"hosts/*"}, Skip: []string{"unit/kilmode"}}.Validate()
	if _, ok := errors.AsType[*UnknownIDError](err); !ok || !strings.Contains(err.Error(), "hosts/*") || !strings.Contains(err.Error(), "unit/kilmode") {
		t.Errorf("all unknown IDs at once: %v", err)
	}
}

// A check that hangs, breaks or says nothing is unknown, and the others go on.
func TestChecksThatBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{facts: map[string]any{}, ctx: t.Context()}
		var let atomic.Bool
		stuck := make(chan struct{})
		hangs, panics, mute, patient := made("a/hangs", Pass), made("a/panics", Pass), made("a/mute", Pass), made("a/patient", Pass)
		hangs.Run = func(context.Context, *Node) []Result { <-stuck; let.Store(true); return pass("late") }
		panics.Run = func(context.Context, *Node) []Result { panic("oh") }
		mute.Run = func(context.Context, *Node) []Result { return nil }
		patient.Run = func(ctx context.Context, _ *Node) []Result {
			<-ctx.Done()
			return unknown(errors.New("waited for a server"))
		}
		began := time.Now()
		got := verdicts(run(t.Context(), n, Selection{}, []Check{hangs, panics, mute, patient, made("a/b", Pass)}))
		for i, want := range []string{"unknown: no answer in", "unknown: the check itself broke: oh", "unknown: the check itself broke: it says nothing", "unknown: ", "pass: "} {
			if !strings.Contains(got[i], want) {
				t.Errorf("%q, want %q", got[i], want)
			}
		}
		if d := time.Since(began); d > localTime {
			t.Errorf("the run took %v, want at most %v", d, localTime)
		}
		close(stuck)
		synctest.Wait()
	})
}

// What reads whole programs has longer, on a slow card.
func TestChecksThatTakeTheirTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Node{facts: map[string]any{}, ctx: t.Context()}
		slow, tooSlow := made("a/slow", Pass), made("a/too-slow", Pass)
		for c, d := range map[*Check]time.Duration{&slow: 50 * time.Second, &tooSlow: 70 * time.Second} {
			c.Time = programTime
			c.Run = func(ctx context.Context, _ *Node) []Result {
				select {
				case <-time.After(d):
					return pass("read")
				case <-ctx.Done():
					return unknown(context.Cause(ctx))
				}
			}
		}
		got := verdicts(run(t.Context(), n, Selection{}, []Check{slow, tooSlow}))
		if !strings.Contains(got[0], " pass: ") || !strings.Contains(got[1], " unknown: ") {
			t.Errorf("%q, want one that passes and one that does not answer in time", got)
		}
	})
}

// What hangs while a fact is asked for, and what breaks there, is as bounded as a check.
func TestFactsThatBreak(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		stuck := make(chan struct{})
		hang := func(o *Outside) {
			o.Live, o.Facts.SystemdInit = true, true
			o.Units = func(context.Context) (Units, error) { <-stuck; return nil, errors.New("late") }
		}
		n := &Node{facts: map[string]any{}, ctx: t.Context()}
		hang(&n.Outside)
		got := verdicts(run(t.Context(), n, Selection{}, []Check{made("a/a", Pass, NeedSystemd), made("a/b", Pass, "a/a")}))
		if !strings.Contains(got[0], "unknown: no answer in") || !strings.Contains(got[1], "skip: needs a/a") {
			t.Errorf("%q", got)
		}
		close(stuck)
		synctest.Wait()
	})
	n := fake(t, nil)
	for range 2 {
		_, err := remember(n, "weather", func(context.Context) (int, error) { panic("oh") })
		if err == nil || !strings.Contains(err.Error(), "weather broke: oh") {
			t.Errorf("a fact that broke is %v", err)
		}
	}
}

// The catalogue is what scripts, documents and the profile's checks.skip rely on.
func TestCatalogue(t *testing.T) {
	all := Catalogue()
	byID := map[string]Check{}
	form := regexp.MustCompile(`^[a-z]+/[a-z0-9]+(-[a-z0-9]+)*$`)
	facts := []string{NeedLive, NeedProfile, NeedReceipt, NeedSystemd, NeedProcess, NeedKubelet, NeedNetwork}
	for _, c := range all {
		if _, twice := byID[c.ID]; twice {
			t.Errorf("%s is there twice", c.ID)
		}
		byID[c.ID] = c
		if !form.MatchString(c.ID) {
			t.Errorf("%s is no ID", c.ID)
		}
		if c.Stage != Preflight && c.Stage != Audit || c.Severity != Required && c.Severity != Recommended || c.Run == nil {
			t.Errorf("%s is incomplete", c.ID)
		}
		if c.Source == "" || c.Remedy == "" || !strings.HasSuffix(c.Why, ".") || strings.Contains(strings.TrimSuffix(c.Why, "."), ". ") {
			t.Errorf("%s: want a source, a remedy and one sentence why: %q, %q, %q", c.ID, c.Source, c.Remedy, c.Why)
		}
	}
	for _, c := range all {
		for _, need := range c.Needs {
			if _, isCheck := byID[need]; !isCheck && !slices.Contains(facts, need) {
				t.Errorf("%s needs %s, which is neither a fact nor a check", c.ID, need)
			}
			// A preflight stands by itself: apply runs it before there is anything to audit.
			if byID[need].Stage == Audit && c.Stage == Preflight {
				t.Errorf("%s is of the preflight and needs %s of the audit", c.ID, need)
			}
		}
	}
	var path []string
	var visit func(id string)
	visit = func(id string) {
		if slices.Contains(path, id) {
			t.Fatalf("needs go in a circle: %s", strings.Join(append(path, id), ", "))
		}
		path = append(path, id)
		for _, need := range byID[id].Needs {
			visit(need)
		}
		path = path[:len(path)-1]
	}
	for id := range byID {
		visit(id)
	}
	if len(all) < 70 {
		t.Errorf("%d checks, want at least 70", len(all))
	}
}
