package vm_test

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/qemu"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// Flags of the scenarios; see README.md.
var (
	scenarios = flag.String("vm", os.Getenv("NODEPREP_VM"), "run scenarios on real machines: main, all or every")
	nodeprep  = flag.String("vm.nodeprep", "", "use this `FILE` instead of building nodeprep")
	keep      = flag.Bool("vm.keep", false, "keep every machine's disk and logs, not only those of failed ones")
)

// How much is run: a scenario is in one of these, and a run has all up to its own.
type set int

const (
	inMain  set = iota // with every make test
	inAll              // with make test-machines
	inEvery            // with make test-machines-every: the same with other releases, and more of it
)

// sets are their names, as -vm takes them.
func sets() []string { return []string{"main", "all", "every"} }

// thisRun is the set of this run, and negative without one.
func thisRun() set { return set(slices.Index(sets(), *scenarios)) }

// orSkip ends a test that this run does not have.
func (s set) orSkip(t *testing.T) {
	t.Helper()
	if s > thisRun() {
		t.Skip("only with -vm=" + sets()[s])
	}
}

// labs opens the one lab that all scenarios share, at the first that wants it.
var labs = sync.OnceValues(func() (*vm.Lab, error) {
	began := time.Now()
	main := thisRun() == inMain
	releases := vm.Releases()
	if main {
		// No scenario of it has the oldest.
		releases = slices.DeleteFunc(releases, func(r supply.Release) bool { return r == nodes()[0].containerd })
	}
	return vm.Open(context.Background(), vm.Options{
		Guest: "bookworm", Nodeprep: *nodeprep, Releases: releases, Plain: main,
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
		},
	})
})

func TestMain(m *testing.M) {
	flag.Parse()
	code := m.Run()
	if *scenarios != "" {
		if lab, err := labs(); err == nil {
			if err := lab.Close(); err != nil {
				fmt.Fprintln(os.Stderr, err)
				code = max(code, 1)
			}
		}
	}
	os.Exit(code)
}

// machine is a vm.Machine in a test, which ends where something does not work that
// is not what the test is about.
type machine struct {
	*vm.Machine
	ctx context.Context
	t   *testing.T
}

// start begins a scenario: a freshly booted machine of its own, without nodeprep's traces
// and without a network card, for as long as the test runs. Two run at a time.
func start(t *testing.T, s set) *machine {
	t.Helper()
	lab := wanted(t, s)
	// A bound for a machine that hangs, not a measure of one that works.
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	t.Cleanup(cancel)
	m, err := lab.Start(ctx, t.Name())
	return held(t, ctx, m, err)
}

// wanted is the lab, for a scenario that is to be run; others are skipped.
func wanted(t *testing.T, s set) *vm.Lab {
	t.Helper()
	switch {
	case *scenarios == "":
		t.Skip("needs a real machine: run as root, go test ./test/vm -vm=main (or all, or every)")
	case thisRun() < 0:
		t.Fatalf("-vm=%s: want one of %s", *scenarios, strings.Join(sets(), ", "))
	}
	s.orSkip(t)
	t.Parallel()
	lab, err := labs()
	if err != nil {
		t.Fatalf("prepare machines: %v", err)
	}
	return lab
}

// held is a machine that was just started, until the test ends.
func held(t *testing.T, ctx context.Context, m *vm.Machine, err error) *machine {
	t.Helper()
	if err != nil {
		t.Fatalf("start machine: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() || *keep {
			t.Log(m.Keep(context.Background()))
		}
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return &machine{Machine: m, ctx: ctx, t: t}
}

// run runs a script in the machine's shell.
func (m *machine) run(script string) qemu.Result {
	m.t.Helper()
	r, err := m.Sh(m.ctx, script)
	if err != nil {
		m.t.Fatalf("%s: %v", script, err)
	}
	return r
}

// must runs a script that has to succeed and returns what it printed.
func (m *machine) must(script string) string {
	m.t.Helper()
	r := m.run(script)
	if r.Code != 0 {
		m.t.Fatalf("%s: exit %d\n%s%s", script, r.Code, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(r.Stdout)
}

// exits runs a command that has to end with the code, and returns all that it printed.
func (m *machine) exits(code int, command string) string {
	m.t.Helper()
	began := time.Now()
	r := m.run(command)
	all := r.Stdout + r.Stderr
	m.t.Logf("%s: exit %d after %.1f s", command, r.Code, time.Since(began).Seconds())
	if r.Code != code {
		m.t.Fatalf("%s: exit %d, want %d\n%s", command, r.Code, code, all)
	}
	return all
}

// says fails the test where text lacks one of the words.
func (m *machine) says(text string, words ...string) {
	m.t.Helper()
	for _, w := range words {
		if !strings.Contains(text, w) {
			m.t.Errorf("nothing said of %q in:\n%s", w, text)
		}
	}
}

// shows reads a unit's effective properties, as systemd itself has them.
func (m *machine) shows(unit string, properties ...string) map[string]string {
	m.t.Helper()
	out := m.must("systemctl show " + unit + " -p " + strings.Join(properties, ","))
	all := make(map[string]string)
	for line := range strings.Lines(out) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		all[name] = value
	}
	return all
}

// tree lists all files of the machine but those that systemd and the daemon write while
// they run, and the test's own.
func (m *machine) tree(options string) string {
	m.t.Helper()
	return m.must("inguest tree " + options + " -skip /root/node -skip /media -skip /var/log -skip /var/lib/systemd -skip /tmp -skip /var/tmp" +
		" -skip /var/lib/containerd -skip /opt/containerd /")
}

// unchanged fails the test unless do leaves the machine's files as they were.
func (m *machine) unchanged(do func()) {
	m.t.Helper()
	before := m.tree("")
	do()
	if diff := cmp.Diff(before, m.tree("")); diff != "" {
		m.t.Errorf("the host is not as it was (-before +after):\n%s", diff)
	}
}

// asJSON decodes what a command prints.
func asJSON[T any](m *machine, command string) T {
	m.t.Helper()
	var v T
	out := m.must(command)
	if err := json.Unmarshal([]byte(out), &v); err != nil {
		m.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return v
}

// node is a release of containerd with what is installed beside it.
type node struct {
	containerd supply.Release
	runc, cni  string // versions
	address    string // the socket
}

func nodes() []node {
	containerd := func(version string, static bool) supply.Release {
		return supply.Release{Component: "containerd", Version: version, Arch: "amd64", Static: static}
	}
	const socket = "/run/containerd/containerd.sock"
	return []node{
		{containerd("1.6.20", false), "1.1.5", "1.1.1", socket},
		{containerd("1.7.24", false), "1.1.5", "1.1.1", socket},
		{containerd("2.1.9", false), "1.1.5", "1.9.1", socket},
		{containerd("2.4.2", true), "1.1.5", "1.1.1", "/run/node/containerd.sock"},
	}
}

func nodeOf(version string) node {
	for _, n := range nodes() {
		if n.containerd.Version == version {
			return n
		}
	}
	panic("no node has containerd " + version)
}

// folders are where the node's releases are.
func (n node) folders() []string {
	var all []string
	for _, r := range n.releases() {
		all = append(all, vm.ReleasesDir+"/"+r.Name())
	}
	return all
}

// artifacts are the folders as options for nodeprep.
func (n node) artifacts() string { return " --artifacts " + strings.Join(n.folders(), " --artifacts ") }

// sources are the folders as a part of a profile.
func (n node) sources() string {
	return "sources: [{dir: " + strings.Join(n.folders(), "}, {dir: ") + "}]\n"
}

// command is nodeprep with a verb, for the profile that give wrote.
func (n node) command(verb string) string {
	return "nodeprep " + verb + " --offline -f /root/node/profile.yaml" + n.artifacts()
}

// releases are the files that the node is made of.
func (n node) releases() []supply.Release {
	return []supply.Release{
		n.containerd,
		{Component: "runc", Version: n.runc, Arch: n.containerd.Arch},
		{Component: "cni", Version: n.cni, Arch: n.containerd.Arch},
	}
}

// give writes the node's profile in the machine.
func (m *machine) give(n node, more string) {
	m.t.Helper()
	for name, text := range n.profile(m.t, m.sum, more) {
		if err := m.WriteFile(m.ctx, "/root/node/"+name, text); err != nil {
			m.t.Fatal(err)
		}
	}
}

// profile is the node's, by names of files: testdata's for its containerd, the digests of
// its releases, which no catalogue has, and what the test adds, in profile.yaml.
func (n node) profile(t *testing.T, sum func(supply.Release) string, more string) map[string]string {
	t.Helper()
	const head = "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nextends: "
	own := "containerd-" + n.containerd.Version + ".yaml"
	files := map[string]string{
		"digests.yaml": head + own + "\n",
		"profile.yaml": head + "digests.yaml\n" + more,
	}
	for _, name := range []string{"node.yaml", own} {
		text, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		files[name] = string(text)
	}
	for _, r := range n.releases() {
		files["digests.yaml"] += fmt.Sprintf("%s: {sha256: {%s: %q}}\n", r.Component, r.Arch, sum(r))
	}
	return files
}

// sum is a release's digest.
func (m *machine) sum(r supply.Release) string {
	m.t.Helper()
	sum, err := m.Sum(r)
	if err != nil {
		m.t.Fatal(err)
	}
	return sum
}

// cri asks the node's CRI plugin, as a kubelet would.
func (n node) cri(request string) string { return "inguest cri " + n.address + " " + request }

// ctr is containerd's own client, for the namespace that Kubernetes uses.
func (n node) ctr(request string) string { return "ctr -a " + n.address + " -n k8s.io " + request }

// container is what inguest tells of one.
type container struct {
	Name, ID     string
	PID          int
	Pod          string
	PodPID       int
	SandboxImage string
	IP           string
}

// run starts a pod with one container that does nothing for long.
func (n node) runPod(m *machine, name string) container {
	m.t.Helper()
	return asJSON[container](m, n.cri("run "+name+" "+supply.BusyboxImage+" sleep 100000"))
}

// starts counts how often systemd has started the daemon since the machine booted.
func (m *machine) starts() string {
	m.t.Helper()
	return m.must("journalctl -b -o cat _PID=1 UNIT=containerd.service | grep -c ^Started || true")
}
