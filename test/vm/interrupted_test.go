package vm_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// struck is what inguest tells of a command that it sent a signal.
type struck struct {
	Stage  string
	Code   int
	Output string
}

// strike sends a command a signal some time after its journal has got to a stage.
func (m *machine) strike(signal, stage string, after time.Duration, command string) struck {
	m.t.Helper()
	s := asJSON[struck](m, fmt.Sprintf("inguest strike -signal %s -stage %s -after %v %s", signal, stage, after, command))
	m.t.Logf("SIG%s %v after the stage %q, at %q: exit %d", signal, after, stage, s.Stage, s.Code)
	return s
}

// moment is when a run is interrupted.
type moment struct {
	stage string
	after time.Duration
}

func moments(t *testing.T) []moment {
	if thisRun() < inEvery {
		t.Log("only with -vm=every: three more moments")
		return []moment{{"stage", 2 * time.Second}, {"commit", 0}, {"activate", time.Second}}
	}
	return []moment{
		{"stage", 0}, {"stage", 2 * time.Second}, {"commit", 0},
		{"activate", 0}, {"activate", time.Second}, {"activate", 4 * time.Second},
	}
}

// supplied is a way in which a node's releases come to it: applies by name, each making the
// machine ready for one that it returns.
func supplied() map[string]func(m *machine, n node) (apply string) {
	return map[string]func(*machine, node) string{
		"folder of releases": func(m *machine, n node) string {
			m.give(n, "")
			return n.command("apply")
		},
		"bundle": func(m *machine, n node) string {
			name := "bundle-" + n.containerd.Version
			m.plug(name, map[string]string{"node.bundle": bundleOf(m.t, n).file})
			return "nodeprep apply --bundle /media/" + name + "/node.bundle"
		},
	}
}

// bundled is in which set a source is: the other one is the same with more to verify.
func bundled(name string) set {
	if name == "bundle" {
		return inAll
	}
	return inEvery
}

// An upgrade that is killed is finished or reverted as a whole, by recover or by
// whatever changes the node next, and containers live through all of it.
func TestKilled(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	for name, supply := range supplied() {
		t.Run("from a "+name, func(t *testing.T) { killed(t, bundled(name), supply) })
	}
}

func killed(t *testing.T, s set, supply func(*machine, node) (apply string)) {
	m := start(t, s)
	first, second := nodeOf("1.7.24"), nodeOf("2.1.9")
	m.exits(0, supply(m, first))
	pod := first.runPod(m, "one")
	old := m.tree("")
	apply := supply(m, second)
	for _, at := range moments(t) {
		s := m.strike("KILL", at.stage, at.after, apply)
		if s.Code != 128+9 {
			t.Fatalf("exit %d before it was killed:\n%s", s.Code, s.Output)
		}
		m.says(m.exits(3, "nodeprep status"), "nodeprep recover")
		m.says(m.exits(0, "nodeprep recover"), "reverted")
		if diff := cmp.Diff(old, m.tree("")); diff != "" {
			t.Errorf("killed at %v: the host is not as it was before (-before +after):\n%s", at, diff)
		}
		serves(m, "1.7.24")
		alive(m, pod)
		checkUnit(m)
		settled(m)
		m.exits(0, "nodeprep status")
	}
	if s := m.strike("KILL", "activate", 2*time.Second, apply); s.Code != 128+9 {
		t.Fatalf("exit %d before it was killed:\n%s", s.Code, s.Output)
	}
	m.says(m.exits(0, apply), "interrupted", "reverted")
	serves(m, "2.1.9")
	alive(m, pod)
	settled(m)
	m.exits(0, "nodeprep status --deep")
}

// The plug is pulled while an upgrade is on its way: at the next boot the node mends
// itself before containerd starts.
func TestPowerOff(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	for name, supply := range supplied() {
		t.Run("from a "+name, func(t *testing.T) { poweredOff(t, bundled(name), supply) })
	}
}

func poweredOff(t *testing.T, s set, supply func(*machine, node) (apply string)) {
	m := start(t, s)
	first, second := nodeOf("1.7.24"), nodeOf("2.1.9")
	m.exits(0, supply(m, first))
	first.runPod(m, "one")
	apply := supply(m, second)
	m.must("sync")
	old := m.tree("")
	for _, at := range []moment{{"commit", 0}, {"activate", 3 * time.Second}} {
		s := m.strike("STOP", at.stage, at.after, apply)
		if s.Code != -1 {
			t.Fatalf("exit %d before the power went:\n%s", s.Code, s.Output)
		}
		if err := m.CutPower(m.ctx); err != nil {
			t.Fatal(err)
		}
		if state := strings.TrimSpace(m.run("systemctl is-system-running --wait").Stdout); state != "running" {
			t.Errorf("the machine is %s: %s", state, m.run("systemctl --failed --no-pager; journalctl -b --no-pager -p warning").Stdout)
		}
		recovered := m.shows("nodeprep-recover.service", "Result", "ExecMainStatus", "ConditionResult", "ActiveState", "ExecMainExitTimestampMonotonic")
		began := m.shows("containerd.service", "ExecMainStartTimestampMonotonic", "NRestarts", "ActiveState")
		if a, b := number(m, recovered["ExecMainExitTimestampMonotonic"]), number(m, began["ExecMainStartTimestampMonotonic"]); a == 0 || b < a {
			t.Errorf("recovery ended at %d µs, containerd was started at %d µs, want it to be after that", a, b)
		}
		delete(recovered, "ExecMainExitTimestampMonotonic")
		want := map[string]string{"Result": "success", "ExecMainStatus": "0", "ConditionResult": "yes", "ActiveState": "inactive"}
		if diff := cmp.Diff(want, recovered); diff != "" {
			t.Errorf("nodeprep-recover.service (-want +got):\n%s\n%s", diff, m.must("journalctl -b -u nodeprep-recover --no-pager"))
		}
		if began["NRestarts"] != "0" {
			t.Errorf("containerd was restarted %s times after the boot", began["NRestarts"])
		}
		m.says(m.must("journalctl -b -u nodeprep-recover --no-pager"), "reverted")
		serves(m, "1.7.24")
		checkUnit(m)
		settled(m)
		m.exits(0, "nodeprep status")
		if diff := cmp.Diff(old, m.tree("")); diff != "" {
			t.Errorf("power cut at %v: the host is not as it was before (-before +after):\n%s", at, diff)
		}
		first.runPod(m, "after-"+at.stage)
	}
	m.exits(0, apply)
	serves(m, "2.1.9")
}

func number(m *machine, s string) int64 {
	m.t.Helper()
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		m.t.Error(err)
	}
	return n
}

// Ctrl-C and SIGTERM: before the commit nothing is left, later the run is finished or
// reverted before nodeprep ends.
func TestCancelled(t *testing.T) {
	m := start(t, inAll)
	first, second := nodeOf("1.7.24"), nodeOf("2.1.9")
	m.give(first, "")
	m.unchanged(func() {
		if s := m.strike("INT", "stage", 0, first.command("apply")); s.Code != 1 || s.Stage != "stage" {
			t.Errorf("a cancelled install: exit %d at stage %q, want 1 at stage:\n%s", s.Code, s.Stage, s.Output)
		}
	})
	absent(m)
	m.unchanged(func() {
		if s := m.strike("TERM", "activate", time.Second, first.command("apply")); s.Code != 1 {
			t.Errorf("an install that got SIGTERM: exit %d, want 1:\n%s", s.Code, s.Output)
		}
	})
	absent(m)
	m.exits(0, first.command("apply"))
	pod := first.runPod(m, "one")
	old := m.tree("")
	m.give(second, "")
	for _, c := range []struct {
		set
		signal string
		moment
	}{
		{inEvery, "TERM", moment{"stage", time.Second}},
		{inAll, "INT", moment{"commit", 0}},
		{inEvery, "TERM", moment{"activate", 0}},
		{inAll, "INT", moment{"activate", 3 * time.Second}},
	} {
		if c.set > thisRun() {
			t.Logf("only with -vm=%s: SIG%s at %v", sets()[c.set], c.signal, c.moment)
			continue
		}
		s := m.strike(c.signal, c.stage, c.after, second.command("apply"))
		settled(m)
		alive(m, pod)
		m.exits(0, "nodeprep status")
		switch {
		case s.Code == 1:
			if diff := cmp.Diff(old, m.tree("")); diff != "" {
				t.Errorf("exit 1 after %v, and the host is not as it was before (-before +after):\n%s", c, diff)
			}
			serves(m, "1.7.24")
		case s.Code == 0 && s.Stage != "stage":
			serves(m, "2.1.9")
			m.exits(0, second.command("plan"))
			m.exits(0, "nodeprep rollback")
			old = m.tree("") // with a receipt and generations of its own
		default:
			t.Errorf("SIG%s %v: exit %d:\n%s", c.signal, c.moment, s.Code, s.Output)
		}
	}
}

// Of two at once one does it, and the other says who is doing it.
func TestTwoAtOnce(t *testing.T) {
	m := start(t, inEvery)
	n := nodeOf("2.1.9")
	m.give(n, "")
	m.must(n.command("apply") + ` >/run/first 2>&1 & echo $! >/run/first.pid; until ! flock --nonblock / true; do sleep 0.05; done`)
	pid := m.must("cat /run/first.pid")
	for _, command := range []string{n.command("apply"), "nodeprep recover"} {
		m.says(m.exits(1, command), "process "+pid, "nodeprep apply")
	}
	m.must("tail --pid=" + pid + " -f /dev/null; grep -q 'generation 1' /run/first")
	serves(m, "2.1.9")
	m.exits(0, n.command("plan"))
	settled(m)
}
