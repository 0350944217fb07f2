package vm_test

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm"
)

// finding is what nodeprep check prints of one thing.
type finding struct {
	ID, Stage, Severity, Verdict string
	Object, Observed, Wanted     string
	Place, Remedy, Note          string
}

func (f finding) String() string {
	return fmt.Sprintf("%-7s %s %s: %s, want %q [%s]", f.Verdict, f.ID, f.Object, f.Observed, f.Wanted, f.Place)
}

// diagnosis is what nodeprep check prints.
type diagnosis struct{ Findings []finding }

// with are the findings that have the verdict.
func (r diagnosis) with(verdict string) []finding {
	var out []finding
	for _, f := range r.Findings {
		if f.Verdict == verdict {
			out = append(out, f)
		}
	}
	return out
}

// of are the findings of a check.
func (r diagnosis) of(id string) []finding {
	var out []finding
	for _, f := range r.Findings {
		if f.ID == id {
			out = append(out, f)
		}
	}
	return out
}

// verdicts has what can be compared between two runs: values such as process numbers and
// free space are others in each.
func (r diagnosis) verdicts() map[string]string {
	out := make(map[string]string)
	for _, f := range r.Findings {
		out[strings.TrimSpace(f.ID+" "+f.Object)] = f.Verdict
	}
	return out
}

// since are the findings that have the verdict and had another one, or none, in the
// report from before.
func (r diagnosis) since(before diagnosis, verdict string) []finding {
	had := before.verdicts()
	var out []finding
	for _, f := range r.with(verdict) {
		if had[strings.TrimSpace(f.ID+" "+f.Object)] != verdict {
			out = append(out, f)
		}
	}
	return out
}

// ids are the checks that the findings are of.
func ids(findings []finding) []string {
	var out []string
	for _, f := range findings {
		out = append(out, f.ID)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

func lines(findings []finding) string {
	var out strings.Builder
	for _, f := range findings {
		fmt.Fprintf(&out, "\t%v\n", f)
	}
	return out.String()
}

// check runs a script in the machine, in a shell of its own that ends at the first
// command that fails, and after it nodeprep check, with options, in the same trip.
func (m *machine) check(script, options string) diagnosis {
	m.t.Helper()
	const mark = "END-OF-THE-SCRIPT"
	if script != "" {
		script = "cat >/root/case <<'" + mark + "'\n" + script + "\n" + mark + "\n" +
			"HOME=/root sh -e /root/case >/root/case.log 2>&1 </dev/null || { echo \"the script failed:\"; cat /root/case /root/case.log; exit 99; } >&2\n"
	}
	for again := 2; ; again-- {
		out := m.checkOnce(script, options)
		late := slices.IndexFunc(out.Findings, func(f finding) bool {
			return (f.Verdict == "unknown" || f.Verdict == "fail") && slices.ContainsFunc([]string{"deadline exceeded", "i/o timeout", "no answer in"}, func(s string) bool { return strings.Contains(f.Observed, s) })
		})
		if late < 0 || again == 0 {
			return out
		}
		// An emulated machine that gets little of a processor answers late.
		m.t.Logf("once more, since something did not answer in time: %v", out.Findings[late])
		script = ""
	}
}

func (m *machine) checkOnce(script, options string) diagnosis {
	m.t.Helper()
	r := m.run(script + "nodeprep check -o json " + options)
	if r.Code != 0 && r.Code != 3 {
		m.t.Fatalf("exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	var out diagnosis
	if err := json.Unmarshal([]byte(r.Stdout), &out); err != nil {
		m.t.Fatalf("nodeprep check -o json %s: %v\n%s%s", options, err, r.Stdout, r.Stderr)
	}
	if failed := len(out.with("fail")); (r.Code == 3) != (failed > 0) {
		m.t.Errorf("nodeprep check: exit %d with %d that failed", r.Code, failed)
	}
	return out
}

// bootWords is where the firmware of a board has the kernel's command line. The machine's
// own boot loader is QEMU, which is told what stands there.
const bootWords = "/boot/firmware/cmdline.txt"

// boots writes the command line with more words at its end, if there are any, and boots
// with what stands there.
func (m *machine) boots(more string) {
	m.t.Helper()
	if more != "" {
		usual, err := m.Cmdline()
		if err != nil {
			m.t.Fatal(err)
		}
		if err := m.WriteFile(m.ctx, bootWords, usual+" "+more+"\n"); err != nil {
			m.t.Fatal(err)
		}
	}
	if err := m.Reboot(m.ctx, m.must("cat "+bootWords)); err != nil {
		m.t.Fatal(err)
	}
	m.must("systemctl is-system-running --wait || true; systemctl is-active containerd")
}

// catalogued is what nodeprep check --list prints of one check.
type catalogued struct {
	ID, Stage, Severity, Why, Source, Remedy string
	Needs                                    []string
}

// catalogue asks the nodeprep that is tried, or one built of this tree, for its checks.
func catalogue(t *testing.T) map[string]catalogued {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	// With the Makefile's flags, so that nothing is compiled once more.
	command := []string{"go", "run", "-trimpath", "-tags=grpcnotrace", "./../../cmd/nodeprep"}
	if *nodeprep != "" {
		command = []string{*nodeprep}
	}
	cmd := exec.CommandContext(ctx, command[0], append(command[1:], "check", "--list", "-o", "json")...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("nodeprep check --list: %v\n%s", err, said.String())
	}
	var list struct{ Checks []catalogued }
	if err := json.Unmarshal(out, &list); err != nil {
		t.Fatalf("nodeprep check --list -o json: %v\n%s", err, out)
	}
	all := make(map[string]catalogued)
	for _, c := range list.Checks {
		all[c.ID] = c
	}
	return all
}

// unasked are the skipped checks that are skipped for another reason than that what is
// broken is in their way: they need that check, or one between them; or what they would
// look at is not there, as the case says.
func unasked(all map[string]catalogued, skipped []finding, c broken) []finding {
	inTheWay := map[string]bool{c.check: true}
	for before := -1; before != len(skipped); {
		before = len(skipped)
		skipped = slices.DeleteFunc(skipped, func(f finding) bool {
			needs := slices.ContainsFunc(all[f.ID].Needs, func(need string) bool {
				return inTheWay[need] && strings.HasPrefix(f.Observed, "needs "+need+",")
			})
			gone := slices.ContainsFunc(c.skips, func(why string) bool { return strings.Contains(f.Observed, why) })
			inTheWay[f.ID] = inTheWay[f.ID] || needs || gone
			return needs || gone
		})
	}
	return skipped
}

// broken is one thing that is wrong with a node, and the check that must say so.
type broken struct {
	name string
	main bool // it is also tried with every make test, all of these on one machine
	// breaks is a script, and so are fix and after.
	breaks string
	// boots are words that the kernel is booted with, from the file bootWords, which the
	// remedy changes.
	boots string
	// check is the one that fails, or warns where it is a recommended one, or where warned
	// says so; nothing else may fail.
	check  string
	warned bool
	// place and observed are in what it says: the very file, with its line.
	place, observed string
	// warns are the recommended checks that see the same, for reasons of their own.
	warns []string
	// unknowns are the checks that may find nothing out.
	unknowns []string
	// skips are words of the reasons for which checks that do not need this one are
	// skipped all the same: what they would look at is not there.
	skips []string
	// fix makes it well where pasting the remedy cannot, and why says why not.
	fix, why string
	// after is for what is left to be put back when the check passes again.
	after string
}

// brokenNode is a kind of machine and what is broken there, one at a time.
type brokenNode struct {
	name    string
	profile string // added to the one of testdata
	// files are written before the apply: path to text.
	files func(t *testing.T) map[string]string
	// before and prepare are scripts before and after the apply. A node that has byHand
	// is made by that script, and nodeprep was never there.
	before, prepare, byHand string
	options                 string // of nodeprep check
	cases                   []broken
}

// checkOptions is how a node is checked unless a group says otherwise: no network, the
// profile of the last apply.
const checkOptions = "--offline"

// tried is one line of the list at the end.
type tried struct {
	name, check, place string
	took               time.Duration
	ok                 bool
}

// Each required check is broken for real, one at a time: it fails and nothing else does
// but what needs it; it names what is at fault; and what it says is to be done, done,
// makes it pass again.
func TestChecksBroken(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	if *scenarios == "" {
		t.Skip("needs a real machine: run as root, go test ./test/vm -vm=main (or -vm=all)")
	}
	all := catalogue(t)
	var mu sync.Mutex
	var list []tried
	t.Cleanup(func() {
		var out strings.Builder
		slices.SortStableFunc(list, func(a, b tried) int { return cmp.Compare(a.check, b.check) })
		for i, c := range list {
			state := "ok"
			if !c.ok {
				state = "FAILED"
			}
			fmt.Fprintf(&out, "%3d  %-6s %5.1f s  %-28s %-58s %s\n", i+1, state, c.took.Seconds(), c.check, c.name, c.place)
		}
		t.Logf("broken for real, found, and mended:\n%s", out.String())
	})
	groups := brokenNodes()
	if thisRun() == inMain {
		groups = []brokenNode{nodeOfMain(groups)}
	}
	for _, g := range groups {
		t.Run(g.name, func(t *testing.T) {
			lab := wanted(t, inMain)
			now := provisioned(t, lab, g)
			for i, c := range g.cases {
				good := t.Run(c.name, func(t *testing.T) {
					if i%6 != 0 && !c.main {
						inEvery.orSkip(t) // with it all, else every sixth
					}
					began := time.Now()
					place := ""
					defer func() {
						mu.Lock()
						defer mu.Unlock()
						list = append(list, tried{c.name, c.check, place, time.Since(began), !t.Failed()})
					}()
					place = now.tries(t, all, g, c)
				})
				// The next one is not to be judged on what this one left behind.
				if !good && !now.mends(t, g, c) {
					now.end(t, true)
					now = provisioned(t, lab, g)
				}
			}
			m := now.in(t)
			last := m.check("", g.flags())
			for _, verdict := range []string{"fail", "warn", "unknown", "skip"} {
				if left := last.since(now.healthy, verdict); len(left) > 0 {
					t.Errorf("after all, these are other than at first:\n%s", lines(left))
				}
			}
			now.end(t, *keep)
		})
	}
}

// ailing is a machine on which one thing after the other is broken.
type ailing struct {
	m       *vm.Machine
	ctx     context.Context
	cancel  context.CancelFunc
	healthy diagnosis
}

func (a *ailing) in(t *testing.T) *machine { return &machine{a.m, a.ctx, t} }

func (g brokenNode) flags() string { return cmp.Or(g.options, checkOptions) }

// provisioned is a machine that nodeprep has just made a node, on which all is well.
func provisioned(t *testing.T, lab *vm.Lab, g brokenNode) *ailing {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Minute)
	vmm, err := lab.Start(ctx, t.Name())
	if err != nil {
		cancel()
		t.Fatalf("start machine: %v", err)
	}
	a := &ailing{m: vmm, ctx: ctx, cancel: cancel}
	ok := false
	defer func() {
		if !ok {
			a.end(t, true)
		}
	}()
	m := a.in(t)
	if g.files != nil {
		for path, text := range g.files(t) {
			if err := m.WriteFile(ctx, path, text); err != nil {
				t.Fatal(err)
			}
		}
	}
	if g.before != "" {
		m.must(g.before)
	}
	if g.byHand != "" {
		m.must(g.byHand)
	} else {
		// As people keep it, so that "nodeprep apply" alone is what a remedy may say.
		n := nodeOf("2.1.9")
		m.give(n, g.profile+n.sources())
		m.must("ln -s /root/node /etc/nodeprep")
		m.exits(0, "nodeprep apply --offline")
	}
	a.healthy = m.check(g.prepare, g.flags())
	bad := a.healthy.with("fail")
	for _, f := range a.healthy.with("unknown") {
		if f.Severity == "required" {
			bad = append(bad, f)
		}
	}
	if len(bad) > 0 {
		t.Fatalf("a fresh node is not well:\n%s", lines(bad))
	}
	t.Logf("a fresh node: %d findings, %d of them warnings:\n%s", len(a.healthy.Findings), len(a.healthy.with("warn")), lines(a.healthy.with("warn")))
	ok = true
	return a
}

func (a *ailing) end(t *testing.T, failed bool) {
	t.Helper()
	if failed {
		t.Log(a.m.Keep(context.Background()))
	}
	if err := a.m.Close(); err != nil {
		t.Error(err)
	}
	a.cancel()
}

// mends does what the case has to do by itself, and reports whether the node is then as
// it was.
func (a *ailing) mends(t *testing.T, g brokenNode, c broken) bool {
	t.Helper()
	m := a.in(t)
	r := m.run("set +e\n(:\n" + c.fix + "\n)\n" + c.after + "\ntrue")
	left := m.check("", g.flags())
	if diff := gocmp.Diff(a.healthy.verdicts(), left.verdicts()); diff != "" {
		t.Logf("the node is not as it was (-before +after):\n%s%s", diff, r.Stderr)
		return false
	}
	return true
}

// tries breaks the thing, looks, mends it and looks again. It returns the place that the
// check named.
func (a *ailing) tries(t *testing.T, all map[string]catalogued, g brokenNode, c broken) (place string) {
	t.Helper()
	m := a.in(t)
	known, ok := all[c.check]
	if !ok {
		t.Fatalf("no check is called %s", c.check)
	}
	verdict := "fail"
	if known.Severity == "recommended" || c.warned {
		verdict = "warn"
	}
	if c.boots != "" {
		m.boots(c.boots)
	}
	sick := m.check(c.breaks, g.flags())
	own := sick.since(a.healthy, verdict)
	own = slices.DeleteFunc(own, func(f finding) bool { return f.ID != c.check })
	if len(own) == 0 {
		t.Fatalf("%s says nothing of it:\n%swhat fails, and warns where it did not:\n%s%s", c.check, lines(sick.of(c.check)),
			lines(sick.with("fail")), lines(sick.since(a.healthy, "warn")))
	}
	if failed := slices.DeleteFunc(sick.with("fail"), func(f finding) bool { return f.ID == c.check }); len(failed) > 0 {
		t.Errorf("besides %s these fail:\n%s", c.check, lines(failed))
	}
	for _, f := range sick.since(a.healthy, "unknown") {
		if !slices.Contains(c.unknowns, f.ID) {
			t.Errorf("with %s broken this cannot be found out: %v", c.check, f)
		}
	}
	for _, f := range sick.since(a.healthy, "warn") {
		if f.ID != c.check && !slices.Contains(c.warns, f.ID) {
			t.Errorf("besides %s there is a new warning: %v", c.check, f)
		}
	}
	for _, f := range unasked(all, sick.since(a.healthy, "skip"), c) {
		t.Errorf("with %s broken %s is skipped, which does not need it: %s", c.check, f.ID, f.Observed)
	}
	place = own[0].Place
	if !slices.ContainsFunc(own, func(f finding) bool {
		return strings.Contains(f.Place, c.place) && strings.Contains(f.Object+": "+f.Observed, c.observed)
	}) {
		t.Errorf("want the place %q and %q in what was observed:\n%s", c.place, c.observed, lines(own))
	}

	script := c.fix
	if c.fix == "" {
		var remedies []string
		for _, f := range own {
			if !slices.Contains(remedies, f.Remedy) {
				remedies = append(remedies, f.Remedy)
			}
		}
		script = strings.Join(remedies, "\n")
		if strings.TrimSpace(script) == "" {
			t.Errorf("%s has no remedy", c.check)
		}
	}
	if c.boots != "" {
		// What is in the file is what it boots with: there is nothing else to do.
		m.must(strings.TrimSuffix(strings.TrimSpace(script), "reboot"))
		m.boots("")
	}
	well := m.check(map[bool]string{true: "", false: script}[c.boots != ""], g.flags())
	t.Logf("%v\nmended by:\n%s", own[0], script)
	if failed := well.with("fail"); len(failed) > 0 {
		t.Errorf("mended by\n%s\nand these fail:\n%s", script, lines(failed))
	}
	if still := slices.DeleteFunc(well.since(a.healthy, verdict), func(f finding) bool { return f.ID != c.check }); len(still) > 0 {
		t.Errorf("mended by\n%s\nand it still says:\n%s", script, lines(still))
	}
	if c.after != "" {
		m.must(c.after)
		return place
	}
	for _, verdict := range []string{"warn", "unknown", "skip"} {
		if other := well.since(a.healthy, verdict); len(other) > 0 {
			t.Errorf("mended by\n%s\nand this is other than at first:\n%s", script, lines(other))
		}
	}
	return place
}

// A required check that nothing on a real machine was ever seen to fail may be one that
// cannot.
func TestEveryRequiredCheckIsBroken(t *testing.T) {
	all := catalogue(t)
	tried := make(map[string]bool)
	names := make(map[string]bool)
	for _, g := range brokenNodes() {
		for _, c := range g.cases {
			tried[c.check] = true
			if _, ok := all[c.check]; !ok {
				t.Errorf("%s, %s: no check is called %s", g.name, c.name, c.check)
			}
			if (c.fix == "") != (c.why == "") {
				t.Errorf("%s, %s: a fix of its own and the reason for it go together", g.name, c.name)
			}
			if names[c.name] {
				t.Errorf("%s, %s: two have that name", g.name, c.name)
			}
			names[c.name] = true
		}
	}
	if len(names) < 45 {
		t.Errorf("%d things are broken, want at least 45", len(names))
	}
	untried := notBroken()
	for id, c := range all {
		if c.Severity != "required" {
			continue
		}
		why, excused := untried[id]
		switch {
		case excused && tried[id]:
			t.Errorf("%s is broken on a real machine, and said not to be: %s", id, why)
		case excused:
			t.Logf("%s is not broken on a real machine: %s", id, why)
		case !tried[id]:
			t.Errorf("%s is required, and nothing breaks it on a real machine", id)
		}
	}
	for id := range untried {
		if all[id].Severity != "required" {
			t.Errorf("%s is said not to be broken, and no required check is called that", id)
		}
	}
}
