package vm_test

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// Containers live on when containerd is exchanged under them, up through all its
// generations and back down by rollback: the same processes, which never stood still for
// longer than a second.
func TestContainersSurvive(t *testing.T) {
	// Beside others: what they take from the count, they take from the one outside of containers, too.
	t.Parallel()
	for _, way := range []struct {
		set
		versions []string
	}{
		{inMain, []string{"1.7.24", "2.1.9"}},
		{inAll, []string{"1.6.20", "1.7.24", "2.1.9", "2.4.2"}},
	} {
		t.Run("containerd "+strings.Join(way.versions, " to ")+" and back", func(t *testing.T) {
			if way.set == inMain && thisRun() > inMain {
				t.Skip("a part of the longer way")
			}
			m := start(t, way.set)
			// A rollback is a generation, too, and the first is wanted at the end.
			const generations = "generations: 6\n"
			m.giveSame(nodeOf(way.versions[0]), generations)
			m.exits(0, nodeOf(way.versions[0]).command("apply"))
			counter := startCounting(m)
			step := func(version, command string) {
				t.Helper()
				before := m.shows("containerd", "MainPID")["MainPID"]
				m.exits(0, command)
				if after := m.shows("containerd", "MainPID")["MainPID"]; after == before {
					t.Errorf("%s: the daemon is still process %s", command, before)
				}
				serves(m, version)
				counter.alive(m)
			}
			for _, version := range way.versions[1:] {
				m.giveSame(nodeOf(version), generations)
				step(version, nodeOf(version).command("apply"))
			}
			m.says(m.exits(0, "nodeprep rollback --list"), append([]string{"current"}, way.versions...)...)
			// One back from a rollback would lead up again.
			for i, version := range slices.Backward(way.versions[:len(way.versions)-1]) {
				step(version, fmt.Sprintf("nodeprep rollback --to %d", i+1))
				m.exits(0, "nodeprep status")
			}
			counter.check(m)
		})
	}
}

// A pod that a newer minor made is not left to an older one, unless that is wanted.
func TestRollbackUnderNewerPods(t *testing.T) {
	m := start(t, inEvery)
	for _, version := range []string{"1.7.24", "2.1.9"} {
		m.giveSame(nodeOf(version), "")
		m.exits(0, nodeOf(version).command("apply"))
	}
	pod := nodeOf("2.1.9").runPod(m, "young")
	m.unchanged(func() {
		m.says(m.exits(1, "nodeprep rollback"), "2.1.9", "1.7.24", "default/young", "--with-running-pods")
		m.says(m.exits(1, "nodeprep rollback --force-restart"), "--with-running-pods")
	})
	serves(m, "2.1.9")
	alive(m, pod)
	// The same by a profile.
	m.giveSame(nodeOf("1.7.24"), "")
	m.says(m.exits(1, nodeOf("1.7.24").command("apply")), "2.1.9", "1.7.24", "default/young", "--with-running-pods")

	said := m.exits(0, "nodeprep rollback --with-running-pods")
	m.says(said, "2.1.9", "1.7.24", "default/young")
	serves(m, "1.7.24")
	t.Logf("under 1.7.24 the pod of 2.1.9 is: %s", m.run(fmt.Sprintf("test -d /proc/%d && echo alive || echo dead", pod.PID)).Stdout)
}

// giveSame gives a node with the address and the snapshotter that all generations have
// in common, so that only containerd itself changes.
func (m *machine) giveSame(n node, more string) {
	m.t.Helper()
	m.give(n, "containerd: {address: /run/containerd/containerd.sock, snapshotter: overlayfs}\n"+more)
}

// serves wants the daemon to be that version and its CRI plugin to be ready.
func serves(m *machine, version string) {
	m.t.Helper()
	n := nodeOf(version)
	n.address = nodeOf("2.1.9").address
	status := asJSON[struct {
		Version    string
		Conditions map[string]bool
	}](m, n.cri("status"))
	if !status.Conditions["RuntimeReady"] || !strings.Contains(status.Version, version) {
		m.t.Errorf("CRI says %+v, want version %s and RuntimeReady", status, version)
	}
	if got := m.shows("containerd", "ActiveState")["ActiveState"]; got != "active" {
		m.t.Errorf("containerd.service is %s, want active", got)
	}
}

// alive wants the containers to be what the daemon lists as running, as the processes
// that they were.
func alive(m *machine, pods ...container) {
	m.t.Helper()
	if diff := cmp.Diff(pods, asJSON[[]container](m, nodeOf("2.1.9").cri("ps"))); diff != "" {
		m.t.Errorf("the running containers (-before +after):\n%s", diff)
	}
	for _, pod := range pods {
		for what, pid := range map[string]int{"container": pod.PID, "pod": pod.PodPID} {
			if m.run(fmt.Sprintf("test -d /proc/%d", pid)).Code != 0 {
				m.t.Errorf("process %d of %s %s is gone", pid, what, pod.Name)
			}
		}
	}
}

// counting is a container that notes the time about ten times a second, and a process
// outside of any container that does the same: the machine's own pauses stop both.
type counting struct {
	pod    container
	shim   string // process of the shim, with its start time
	beside string // file of the other one
}

// count is a shell loop that writes a running number and the machine's uptime.
const count = `n=0; while read -r up rest </proc/uptime; do n=$((n+1)); echo "$n $up"; sleep 0.1; done`

func startCounting(m *machine) counting {
	m.t.Helper()
	c := counting{beside: "/run/counted"}
	m.must("systemd-run --unit=counter --collect /bin/sh -c '" + strings.ReplaceAll(count, "$", "$$") + " >" + c.beside + "'")
	c.pod = asJSON[container](m, nodeOf("2.1.9").cri("run counter "+supply.BusyboxImage+" /bin/sh -c '"+count+" >/counted'"))
	c.shim = c.shimNow(m)
	return c
}

// shimNow is the parent of the container's process.
func (c counting) shimNow(m *machine) string {
	m.t.Helper()
	return m.must(fmt.Sprintf("ps -o pid=,lstart=,args= -p $(ps -o ppid= -p %d)", c.pod.PID))
}

func (c counting) alive(m *machine) {
	m.t.Helper()
	alive(m, c.pod)
	if shim := c.shimNow(m); shim != c.shim || !strings.Contains(shim, "containerd-shim") {
		m.t.Errorf("the container's shim is %q, was %q", shim, c.shim)
	}
}

// check looks at the whole count.
func (c counting) check(m *machine) {
	m.t.Helper()
	read := func(file string) (times []float64) {
		m.t.Helper()
		for i, line := range strings.Split(m.must("cat "+file), "\n") {
			n, up, _ := strings.Cut(line, " ")
			at, err := strconv.ParseFloat(up, 64)
			if err != nil || n != fmt.Sprint(i+1) {
				// The last line may be half written.
				if len(times) > 0 && i == len(times) && err != nil {
					break
				}
				m.t.Fatalf("%s: line %d is %q", file, i+1, line)
			}
			times = append(times, at)
		}
		return times
	}
	times, beside := read(fmt.Sprintf("/proc/%d/root/counted", c.pod.PID)), read(c.beside)
	if len(times) < 100 {
		m.t.Fatalf("the container counted to %d only", len(times))
	}
	gap, own, at := widest(times, beside)
	machine, _, _ := widest(beside, nil)
	m.t.Logf("the container counted to %d in %.0f s: largest gap %.2f s; beside it, outside of containers: %.2f s; at most %.2f s (%.0f s after its start) that the machine did not stand still for",
		len(times), times[len(times)-1]-times[0], gap, machine, own, at)
	if own > 1 {
		m.t.Errorf("the container stood still for %.2f s, want at most a second", own)
	}
}

// pause is from which gap on, in seconds, a process that does nothing but count did not
// get to run because its machine did not.
const pause = 0.5

// widest is the largest gap between two moments that follow each other, and the largest
// that is left of one when a pause of the other process at the same time is taken off
// it, with when that was after the first moment.
func widest(times, beside []float64) (gap, own, at float64) {
	for i := 1; i < len(times); i++ {
		a, b := times[i-1], times[i]
		gap = max(gap, b-a)
		missed := 0.0
		j, _ := slices.BinarySearch(beside, a)
		for j = max(j, 1); j < len(beside) && beside[j-1] < b; j++ {
			if beside[j]-beside[j-1] > pause {
				missed = max(missed, min(b, beside[j])-max(a, beside[j-1]))
			}
		}
		if b-a-missed > own {
			own, at = b-a-missed, a-times[0]
		}
	}
	return gap, own, at
}

func TestWidest(t *testing.T) {
	for name, c := range map[string]struct {
		times, beside []float64
		gap, own      float64
	}{
		"even":                      {[]float64{0, 0.1, 0.2, 0.3}, []float64{0, 0.1, 0.2, 0.3}, 0.1, 0.1},
		"the machine stood still":   {[]float64{0, 0.1, 5.1}, []float64{0, 0.1, 5.1}, 5, 0.1},
		"the container stood still": {[]float64{0, 0.1, 5.1}, []float64{0, 1, 1.25, 1.5, 1.75, 2, 6}, 5, 1.9},
		"both, one longer":          {[]float64{0, 5}, []float64{0, 1, 4, 5}, 5, 2},
		"another time":              {[]float64{0, 2, 2.25}, []float64{0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 4}, 2, 2},
		"nothing beside":            {[]float64{0, 2}, nil, 2, 2},
	} {
		t.Run(name, func(t *testing.T) {
			gap, own, _ := widest(c.times, c.beside)
			if math.Abs(gap-c.gap) > 1e-9 || math.Abs(own-c.own) > 1e-9 {
				t.Errorf("gap %v, own %v; want %v, %v", gap, own, c.gap, c.own)
			}
		})
	}
}
