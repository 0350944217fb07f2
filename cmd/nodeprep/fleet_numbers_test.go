package main

import (
	"fmt"
	"math"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// fleetMeasured is what docs/fleets.md says was measured: bytes, seconds, and seconds of a
// processor, for one node each.
type fleetMeasured struct {
	bundle, program        float64 // B, P
	rollout, idle          float64 // R, o: bytes received
	seconds                fleetRuns
	processor              fleetRuns
	nodes, servers         int
	processors             float64
	bandwidth              float64 // bytes a second
	rolloutOf, rehearsalOf []int   // nodes of each batch
}

type fleetRuns struct{ rehearsal, rollout, idle float64 }

var measuredCell = regexp.MustCompile(`([0-9.]+)( [MG]B)?$`)

// fleetNumbers reads the measured tables of a page.
func fleetNumbers(t *testing.T, page string) fleetMeasured {
	t.Helper()
	m := fleetMeasured{
		nodes: 1000, servers: 25, processors: 8,
		// 1514 of 1538: a card counts neither preamble, checksum nor the gap between frames
		// (IEEE 802.3, clauses 3 and 4).
		bandwidth: 1e9 / 8 * 1514 / 1538,
		rolloutOf: []int{1, 250, 250, 250, 249}, rehearsalOf: []int{1000},
	}
	cell := func(row string, n int) float64 {
		_, rest, ok := strings.Cut(page, "\n| "+row)
		line, _, _ := strings.Cut(rest, "\n")
		cells := strings.Split(line, "|")
		if !ok || n >= len(cells) {
			t.Fatalf("no cell %d in a row %q", n, row)
		}
		f := measuredCell.FindStringSubmatch(strings.TrimSpace(cells[n]))
		if f == nil {
			t.Fatalf("row %q: %q is no number", row, cells[n])
		}
		v, err := strconv.ParseFloat(f[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		return v * map[string]float64{"": 1, " MB": 1e6, " GB": 1e9}[f[2]]
	}
	m.bundle, m.program = cell("*B*, ", 1), cell("*P*, ", 1)
	m.seconds = fleetRuns{cell("*t*, ", 1), cell("*t*, ", 2), cell("*t*, ", 3)}
	m.processor = fleetRuns{cell("*c*, ", 1), cell("*c*, ", 2), cell("*c*, ", 3)}
	m.rollout, m.idle = cell("bytes that its ", 2), cell("bytes that its ", 3)
	return m
}

// overhead is w: what a byte over the network costs.
func (m fleetMeasured) overhead() float64 { return (m.rollout - m.idle) / (m.bundle + m.program) }

// carriage is how the bundle gets to nodes: bytes for one.
type carriage struct {
	name       string
	controller float64
	server     float64 // from one of servers
	servers    int
}

func (m fleetMeasured) ways() []carriage {
	w := m.overhead()
	return []carriage{
		{"`copy` over SSH", m.idle + w*(m.bundle+m.program), 0, 0},
		{"`https://`, one server", m.idle + w*m.program, w * m.bundle, 1},
		{fmt.Sprintf("`https://`, %d of them, %d nodes each", m.servers, m.nodes/m.servers), m.idle + w*m.program, w * m.bundle, m.servers},
		{"the same, and the image has `/opt/nodeprep/nodeprep`", m.idle, w * m.bundle, m.servers},
		{"nothing to do", m.idle, 0, 0},
	}
}

// busiest is what the busiest machine sends to n nodes.
func (w carriage) busiest(n int) float64 {
	if w.servers == 0 {
		return w.controller * float64(n)
	}
	return max(w.controller, w.server/float64(w.servers)) * float64(n)
}

func (m fleetMeasured) bytesTable() string {
	var b strings.Builder
	b.WriteString("| way of the bundle | to a node | from the controller | from each server | seconds on the wire at 1 Gbit/s |\n|---|---|---|---|---|\n")
	for _, w := range m.ways() {
		controller := w.controller * float64(m.nodes)
		wire, served := fmt.Sprintf("%.0f", controller/m.bandwidth), ""
		if w.servers > 0 {
			server := w.server * float64(m.nodes) / float64(w.servers)
			served = inBytes(server)
			wire += fmt.Sprintf(" from the controller, %.0f from each server", server/m.bandwidth)
		}
		fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", w.name, inBytes(w.controller+w.server), inBytes(controller), served, wire)
	}
	b.WriteString("| golden image | 0 | 0 | | |\n")
	return strings.ReplaceAll(b.String(), "|  |", "| |")
}

// duration is how long batches take: each as long as the slowest of Ansible's waves, the
// controller's processors and the wire.
func (m fleetMeasured) duration(batches []int, forks int, seconds, processor float64, w carriage) string {
	var total, waves, cpu, wire float64
	for _, n := range batches {
		a, b, c := seconds*math.Ceil(float64(n)/float64(forks)), processor*float64(n)/m.processors, w.busiest(n)/m.bandwidth
		total += max(a, b, c)
		waves, cpu, wire = waves+a, cpu+b, wire+c
	}
	switch {
	case wire > waves && wire > cpu:
		return inTime(total) + " *W*"
	case cpu > waves:
		return inTime(total) + " *c*"
	}
	return inTime(total)
}

func (m fleetMeasured) timesTable() string {
	var b strings.Builder
	b.WriteString("| forks | waves | `copy` | `https://`, 25 servers | nothing to do | a rehearsal | `copy`, nodes ten times as fast |\n|---|---|---|---|---|---|---|\n")
	ways := m.ways()
	for _, forks := range []int{5, 25, 50, 250} {
		name := map[int]string{5: "5, Ansible's default", 25: "25, as in the example"}[forks]
		if name == "" {
			name = strconv.Itoa(forks)
		}
		waves := 0
		for _, n := range m.rolloutOf {
			waves += (n + forks - 1) / forks
		}
		fmt.Fprintf(&b, "| %s | %d | %s | %s | %s | %s | %s |\n", name, waves,
			m.duration(m.rolloutOf, forks, m.seconds.rollout, m.processor.rollout, ways[0]),
			m.duration(m.rolloutOf, forks, m.seconds.rollout, m.processor.rollout, ways[2]),
			m.duration(m.rolloutOf, forks, m.seconds.idle, m.processor.idle, ways[4]),
			m.duration(m.rehearsalOf, forks, m.seconds.rehearsal, m.processor.rehearsal, ways[0]),
			m.duration(m.rolloutOf, forks, m.seconds.rollout/10, m.processor.rollout, ways[0]))
	}
	return b.String()
}

// inBytes is decimal, as links are sold.
func inBytes(v float64) string {
	if v >= 1e9 {
		return fmt.Sprintf("%.1f GB", v/1e9)
	}
	return fmt.Sprintf("%.1f MB", v/1e6)
}

func inTime(seconds float64) string {
	switch minutes := math.Round(seconds / 60); {
	case seconds < 119.5:
		return fmt.Sprintf("%.0f s", seconds)
	case minutes < 100:
		return fmt.Sprintf("%.0f min", minutes)
	default:
		return fmt.Sprintf("%d h %d min", int(minutes)/60, int(minutes)%60)
	}
}

// What docs/fleets.md says of a thousand nodes follows from what it says was measured.
func TestFleetNumbers(t *testing.T) {
	const name = "../../docs/fleets.md"
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	m := fleetNumbers(t, page)
	// The batches and the forks are those of the example.
	for file, want := range map[string]string{"site.yml": `(?m)^  serial: "\{\{ '100%' if ansible_check_mode else \[1, '25%'\] \}\}"$`, "ansible.cfg": `(?m)^forks = 25$`} {
		text, err := os.ReadFile("../../examples/ansible/" + file)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(want).Match(text) {
			t.Errorf("%s counts on %s to have %s:\n%s", name, file, want, text)
		}
	}
	if w := m.overhead(); w < 1 || w > 1.2 {
		t.Errorf("%.0f bytes were received of which %.0f were Ansible's own, and %.0f were carried: a byte costs %.2f", m.rollout, m.idle, m.bundle+m.program, w)
	}
	for _, table := range []string{m.bytesTable(), m.timesTable()} {
		head, _, _ := strings.Cut(table, "\n")
		before, rest, ok := strings.Cut(page, head+"\n")
		if !ok {
			t.Fatalf("%s has no table %s", name, head)
		}
		rows, after, _ := strings.Cut(rest, "\n\n")
		if diff := cmp.Diff(table, head+"\n"+rows+"\n"); diff != "" && !*update {
			t.Errorf("%s says other than what follows from its measured numbers (-follows +says); run `go test ./cmd/nodeprep -run TestFleetNumbers -update`:\n%s", name, diff)
		}
		page = before + table + "\n" + after
	}
	if *update {
		if err := os.WriteFile(name, []byte(page), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// The arithmetic itself, with numbers that can be followed by hand: a wire of 10 bytes a
// second, and batches of 1 and 4.
func TestFleetArithmetic(t *testing.T) {
	m := fleetMeasured{bundle: 60, program: 20, rollout: 90, idle: 10, nodes: 5, servers: 1, processors: 2, bandwidth: 10, rolloutOf: []int{1, 4}}
	if got := m.overhead(); got != 1 {
		t.Fatalf("a byte costs %v, want 1", got)
	}
	ways := m.ways()
	for _, c := range []struct {
		forks              int
		seconds, processor float64
		way                carriage
		want               string
	}{
		{4, 50, 1, ways[0], "100 s"},       // 50 + 50, the wire 9 + 36
		{4, 12, 1, ways[0], "48 s *W*"},    // 12 + 36
		{4, 1, 30, ways[4], "75 s *c*"},    // 15 + 60
		{4, 1, 1, ways[1], "30 s *W*"},     // the server: 6 + 24
		{1, 3600, 1, ways[4], "5 h 0 min"}, // one after another
		{2, 600, 1, ways[4], "30 min"},     // 10 + 20
	} {
		if got := m.duration(m.rolloutOf, c.forks, c.seconds, c.processor, c.way); got != c.want {
			t.Errorf("%d forks, %v s, %v s of a processor, %s: %s, want %s", c.forks, c.seconds, c.processor, c.way.name, got, c.want)
		}
	}
}
