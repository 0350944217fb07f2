package vm_test

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/powercut"
)

var cutSeed = flag.Uint64("vm.seed", 0, "which of the unflushed writes are kept in power cuts; 0 to draw one")

// How many cuts are looked at: at flushes, between flushes, and in a machine that boots.
const (
	flushCuts  = 200
	leastCuts  = 40 // for each command
	randomCuts = 60
	mostBoots  = 10
)

// some is a fifth of the cuts, but for -vm=every.
func some(n int) int {
	if thisRun() == inEvery {
		return n
	}
	return n / 5
}

// change is a command that changes the node, and what becomes of it.
type change struct {
	name, command string
	containerd    string // version that the node has afterwards; none when empty
}

func changes() []change {
	first, second := nodeOf("1.6.20"), nodeOf("1.7.24")
	profile := func(n node) string {
		return strings.ReplaceAll(n.command("apply"), "/root/node/", "/root/"+n.containerd.Version+"/")
	}
	return []change{
		{"install", profile(first), first.containerd.Version},
		{"upgrade", profile(second), second.containerd.Version},
		{"rollback", "nodeprep rollback", first.containerd.Version},
		{"uninstall", "nodeprep uninstall --yes", ""},
	}
}

// window is what the recording has of a change.
type window struct {
	change
	old, new *tree
	// Positions in the log: before the command, when it had ended, and when all that was
	// left to write was written.
	from, ended, to int
}

// cut is a moment at which the power goes.
type cut struct {
	window int
	at     int    // position in the log
	upTo   int    // up to there some writes are kept that no flush had reached
	seed   uint64 // for which ones, with at

	// What is seen of it, once it is looked at.
	seen  bool
	phase string // of the journal that the node comes back with
	unit  bool   // whether it recovers by itself when it boots
	isNew bool   // what it becomes
}

func (c cut) String() string {
	s := fmt.Sprintf("entry %d, journal %q", c.at, c.phase)
	if c.seed != 0 {
		s += fmt.Sprintf(", some of the writes up to entry %d with seed %d", c.upTo, c.seed)
	}
	return s
}

// The power goes at any moment: all that the disk had not promised to keep is lost, or any
// part of it. What recovery makes of every such disk is the node as it was before the
// command or as it is after it, byte for byte.
func TestPowerCut(t *testing.T) {
	lab := wanted(t, inAll)
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
	t.Cleanup(cancel)
	dir, err := lab.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	seed := *cutSeed
	if seed == 0 {
		seed = rand.Uint64N(1e9) + 1
	}
	t.Logf("seed %d: the same cuts again with -vm.seed=%[1]d, as far as the machine writes the same", seed)

	record := filepath.Join(dir, "record.log")
	var windows []*window
	if !t.Run("record", func(t *testing.T) { windows = recordChanges(t, ctx, lab, record) }) {
		return
	}
	log := readLog(t, record)
	cuts := chooseCuts(log, windows, seed)

	l := &looker{lab: lab, dir: dir, log: log}
	began := time.Now()
	l.look(t, ctx, windows, cuts)
	t.Logf("%d cuts in %.0f s", len(cuts), time.Since(began).Seconds())
	report(t, log, windows, cuts)
	if t.Failed() {
		return
	}
	l.boot(t, ctx, windows, cuts)
}

// recordChanges runs all commands in one machine, whose disk is recorded.
func recordChanges(t *testing.T, ctx context.Context, lab *vm.Lab, record string) []*window {
	t.Helper()
	qm, err := lab.Record(ctx, t.Name(), record)
	m := held(t, ctx, qm, err)
	for _, version := range []string{"1.6.20", "1.7.24"} {
		m.give(nodeOf(version), "")
		m.must("mv /root/node /root/" + version)
	}
	m.must("systemctl is-system-running --wait")
	position := func() int {
		f, err := os.Open(record)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		n, err := powercut.Position(f)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	var all []*window
	m.must("sync")
	before := owned(m)
	for _, c := range changes() {
		w := &window{change: c, old: before, from: position()}
		m.exits(0, c.command)
		w.ended = position()
		m.must("sync")
		w.to = position()
		w.new = owned(m)
		if w.new.text == w.old.text {
			t.Fatalf("%s changed nothing", c.name)
		}
		all, before = append(all, w), w.new
	}
	return all
}

func readLog(t *testing.T, path string) *powercut.Log {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	log, err := powercut.Read(f, info.Size())
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// chooseCuts spreads cuts over the windows: all flushes of a window, or as many as its
// share is, evenly; and random ones, in order of their positions.
func chooseCuts(log *powercut.Log, windows []*window, seed uint64) []*cut {
	total := 0
	for _, w := range windows {
		total += len(log.Boundaries(w.from, w.to))
	}
	var all []*cut
	random := rand.New(rand.NewPCG(seed, 0))
	for i, w := range windows {
		at := log.Boundaries(w.from, w.to)
		n := min(len(at), max(some(leastCuts), some(flushCuts)*len(at)/total))
		for k := range n {
			all = append(all, &cut{window: i, at: at[k*(len(at)-1)/(n-1)]})
		}
		for range some(randomCuts) / len(windows) {
			// Anywhere in the log: the more is in flight, the more often.
			k, found := slices.BinarySearch(at, w.from+random.IntN(w.to-w.from))
			if !found {
				k--
			}
			all = append(all, &cut{window: i, at: at[k], upTo: at[k+1], seed: random.Uint64() | 1})
		}
	}
	slices.SortStableFunc(all, func(a, b *cut) int { return a.at - b.at })
	return all
}

// looker makes cuts' disks and looks at them.
type looker struct {
	lab *vm.Lab
	dir string
	log *powercut.Log
	bad int // cuts that gave neither node
}

// image is a disk that follows the log, from the one that the recording began with.
func (l *looker) image(ctx context.Context, name string) (*powercut.Image, *os.File, error) {
	path := filepath.Join(l.dir, name)
	if err := copySparse(ctx, l.lab.BaseDisk(), path); err != nil {
		return nil, nil, err
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return nil, nil, err
	}
	return powercut.NewImage(l.log, f), f, nil
}

// take brings the image to the cut and makes a copy of it, at path, with what else the
// disk has by then.
func (l *looker) take(ctx context.Context, m *powercut.Image, f *os.File, c *cut, path string) error {
	if err := m.Advance(c.at); err != nil {
		return err
	}
	if err := copySparse(ctx, f.Name(), path); err != nil {
		return err
	}
	disk, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var keep func() bool
	if c.seed != 0 {
		keep = powercut.Some(rand.New(rand.NewPCG(c.seed, uint64(c.at))))
	}
	return errors.Join(l.log.Rest(disk, c.at, c.upTo, keep), disk.Close())
}

func copySparse(ctx context.Context, from, to string) error {
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	out, err := exec.CommandContext(ctx, "cp", "--reflink=auto", "--sparse=always", from, to).CombinedOutput()
	if err != nil {
		return fmt.Errorf("copy disk: %w: %s", err, out)
	}
	return os.Chmod(to, 0o600)
}

// look mounts every cut, recovers it there, and holds it against both states.
func (l *looker) look(t *testing.T, ctx context.Context, windows []*window, cuts []*cut) {
	t.Helper()
	m, f, err := l.image(ctx, "now.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	path := filepath.Join(l.dir, "cut.raw")
	for _, c := range cuts {
		if err := l.take(ctx, m, f, c, path); err != nil {
			t.Fatal(err)
		}
		w := windows[c.window]
		if err := l.lookAt(ctx, w, c, path); err != nil {
			t.Errorf("%s, cut at %v: %v", w.name, c, err)
			// A fault is seldom alone; one disk of it is enough to look at.
			if l.bad++; l.bad == 1 {
				if err := l.take(ctx, m, f, c, path); err != nil {
					t.Fatal(err)
				}
				t.Log(l.keep(ctx, t.Name(), path))
			}
			if l.bad == 10 {
				t.Error("ten cuts gave neither node: no more are looked at")
				return
			}
		}
	}
}

func (l *looker) keep(ctx context.Context, name, path string) error {
	dir, err := l.lab.Failed(name)
	if err != nil {
		return err
	}
	return errors.Join(copySparse(ctx, path, filepath.Join(dir, "cut.raw")), fmt.Errorf("kept in %s", dir))
}

// lookScript runs in a mount namespace of its own, so that nothing stays mounted whatever
// becomes of it. The file system replays its journal when it is mounted. Barriers would
// only have this machine's disk written to.
const lookScript = `
mount -o loop,nobarrier "$IMAGE" "$ROOT"
state="$ROOT/var/lib/nodeprep"
if [ -e "$state/journal.json" ]; then cp "$state/journal.json" "$OUT/journal.json"; fi
if [ -L "$ROOT/etc/systemd/system/multi-user.target.wants/nodeprep-recover.service" ]; then touch "$OUT/unit"; fi
roots= ; for r in $ROOTS; do roots="$roots $ROOT$r"; done
skips= ; for s in $SKIPS; do skips="$skips -skip $ROOT$s"; done
for n in first second; do
	code=0
	"$NODEPREP" recover --root "$ROOT" >"$OUT/$n" 2>&1 || code=$?
	echo "exit $code" >>"$OUT/$n"
	"$INGUEST" tree -times $skips $roots >"$OUT/$n.times"
done
"$INGUEST" tree $skips $roots >"$OUT/tree"
find "$ROOT" -xdev '(' -name '.nodeprep*' -o -path "$state/journal.json" ')' >"$OUT/left"
umount "$ROOT"
`

// lookAt says how a cut's disk, once recovered, is neither the old node nor the new one.
func (l *looker) lookAt(ctx context.Context, w *window, c *cut, image string) (err error) {
	root, out := filepath.Join(l.dir, "root"), filepath.Join(l.dir, "out")
	if err := os.RemoveAll(out); err != nil {
		return err
	}
	for _, dir := range []string{root, out} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", lookScript)
	cmd.Env = append(os.Environ(), "IMAGE="+image, "ROOT="+root, "OUT="+out, "NODEPREP="+l.lab.Nodeprep(), "INGUEST="+l.lab.Inguest(),
		"ROOTS="+strings.Join(ownedRoots(), " "), "SKIPS="+strings.Join(ownedSkips(), " "))
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("mount the disk: %w: %s", err, text)
	}
	read := func(name string) string {
		var text []byte
		if err == nil {
			if text, err = os.ReadFile(filepath.Join(out, name)); errors.Is(err, fs.ErrNotExist) {
				err = nil
			}
		}
		return string(text)
	}
	journal, first, second, left := read("journal.json"), read("first"), read("second"), read("left")
	got := treeOf(strings.ReplaceAll(read("tree"), root, ""))
	same := read("first.times") == read("second.times")
	if err != nil {
		return err
	}
	c.seen, c.phase = true, phaseOf(journal)
	_, uerr := os.Stat(filepath.Join(out, "unit"))
	c.unit = uerr == nil
	c.isNew = got.text == w.new.text

	var faults []string
	if !c.isNew && got.text != w.old.text {
		faults = append(faults, got.neither(w))
	}
	if c.isNew && c.at == w.from && c.seed == 0 {
		faults = append(faults, "the new node before the command began")
	}
	if !c.isNew && c.at >= w.ended && got.text == w.old.text {
		faults = append(faults, "the old node after the command had ended")
	}
	if left != "" {
		faults = append(faults, "left behind:\n"+strings.ReplaceAll(left, root, ""))
	}
	if !strings.HasSuffix(first, "exit 0\n") {
		faults = append(faults, "recover failed")
	}
	if !strings.HasSuffix(second, "exit 0\n") || !same {
		faults = append(faults, "a second recover was not without a thing to do:\n"+second)
	}
	if faults != nil {
		return errors.New(strings.Join(faults, "\n") + "\nrecover said:\n" + first)
	}
	return nil
}

// phaseOf is how far a run had come that left this journal.
func phaseOf(journal string) string {
	if journal == "" {
		return ""
	}
	var j struct{ Stage string }
	if err := json.Unmarshal([]byte(journal), &j); err != nil {
		return "torn"
	}
	return j.Stage
}

// report prints what was seen.
func report(t *testing.T, log *powercut.Log, windows []*window, cuts []*cut) {
	t.Helper()
	for i, w := range windows {
		var olds, news, random int
		phases := make(map[string]int)
		for _, c := range cuts {
			if c.window != i || !c.seen {
				continue
			}
			if c.isNew {
				news++
			} else {
				olds++
			}
			if c.seed != 0 {
				random++
			}
			phases[c.phase]++
		}
		t.Logf("%s: entries %d to %d, %d flushes; %d cuts, %d of them between flushes: %d old, %d new; journals found: %v",
			w.name, w.from, w.to, log.Flushes(w.from, w.to), olds+news, random, olds, news, phases)
	}
}

// boot boots cuts of every command and of every phase that was met.
func (l *looker) boot(t *testing.T, ctx context.Context, windows []*window, cuts []*cut) {
	t.Helper()
	chosen := chooseBoots(windows, cuts)
	m, f, err := l.image(ctx, "boot.raw")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, c := range chosen {
		w := windows[c.window]
		path := filepath.Join(l.dir, "booted.raw")
		if err := l.take(ctx, m, f, c, path); err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		t.Run(w.name+" "+c.phase, func(t *testing.T) { l.bootOne(t, ctx, w, c, path) })
		t.Logf("booted %s, cut at %v: %.0f s", w.name, c, time.Since(began).Seconds())
	}
}

// chooseBoots takes one cut of every phase of every command, as far as there is time.
func chooseBoots(windows []*window, cuts []*cut) []*cut {
	byPhase := make([]map[string][]*cut, len(windows))
	for i := range windows {
		byPhase[i] = make(map[string][]*cut)
	}
	for _, c := range cuts {
		byPhase[c.window][c.phase] = append(byPhase[c.window][c.phase], c)
	}
	var chosen []*cut
	for len(chosen) < some(mostBoots) {
		before := len(chosen)
		for _, phases := range byPhase {
			// The rarest first: most of the time is spent in one phase.
			best := ""
			for phase, list := range phases {
				if n := len(phases[best]); phase != "" && (n == 0 || best == "" || len(list) < n) {
					best = phase
				}
			}
			if list := phases[best]; len(list) > 0 {
				chosen = append(chosen, list[len(list)/2])
				delete(phases, best)
			}
		}
		if len(chosen) == before {
			break
		}
	}
	chosen = chosen[:min(len(chosen), some(mostBoots))]
	slices.SortFunc(chosen, func(a, b *cut) int { return a.at - b.at })
	return chosen
}

// bootOne boots a cut's disk: the node mends itself and runs.
func (l *looker) bootOne(t *testing.T, ctx context.Context, w *window, c *cut, disk string) {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	qm, err := l.lab.Boot(ctx, t.Name(), disk)
	m := held(t, ctx, qm, err)
	if state := m.run("systemctl is-system-running --wait").Stdout; strings.TrimSpace(state) != "running" {
		t.Errorf("the machine is %s\n%s", state, m.run("systemctl --failed --no-pager; journalctl -b --no-pager -p warning").Stdout)
	}
	if c.unit {
		m.must("test ! -e /var/lib/nodeprep/journal.json")
	} else {
		// The unit is not there yet, or, late in an uninstall, no more.
		m.exits(0, "nodeprep recover")
	}
	got := owned(m)
	version := w.containerd
	switch got.text {
	case w.new.text:
	case w.old.text:
		version = before(w)
	default:
		t.Error(got.neither(w))
	}
	if left := m.must("find / -xdev '(' -name '.nodeprep*' -o -path /var/lib/nodeprep/journal.json ')'"); left != "" {
		t.Errorf("left behind: %s", left)
	}
	if version == "" {
		m.must("test ! -e /usr/local/bin/containerd && test ! -e /etc/containerd && ! systemctl cat containerd")
		return
	}
	n := nodeOf(version)
	if got := m.shows("containerd", "ActiveState")["ActiveState"]; got != "active" {
		t.Errorf("containerd is %s, want active", got)
	}
	m.says(m.must(n.ctr("version")), version)
	m.exits(0, "nodeprep status --deep")
}

// before is the version that a window's old node has.
func before(w *window) string {
	last := ""
	for _, c := range changes() {
		if c.name == w.name {
			break
		}
		last = c.containerd
	}
	return last
}

// ownedRoots is where nodeprep writes, and what is beside that.
func ownedRoots() []string { return []string{"/etc", "/opt", "/usr/local", "/var/lib"} }

// ownedSkips is what systemd and the daemon write there while they run.
func ownedSkips() []string {
	return []string{"/var/lib/systemd", "/var/lib/containerd", "/opt/containerd"}
}

// tree is what is on a node: paths, types, modes, owners, content. Times are left out:
// what was there before may be given back as a copy.
type tree struct{ text string }

var mtime = regexp.MustCompile(`(?m) mtime \S+$`)

func treeOf(list string) *tree { return &tree{mtime.ReplaceAllString(list, "")} }

// without lists what the tree has and another has not, one a line.
func (t *tree) without(other *tree, sign string) (lines []string) {
	has := make(map[string]bool)
	for line := range strings.Lines(other.text) {
		has[line] = true
	}
	for line := range strings.Lines(t.text) {
		if !has[line] {
			lines = append(lines, sign+line)
		}
	}
	return lines
}

// neither says how a tree differs from the nearer one of both that it might be.
func (t *tree) neither(w *window) string {
	nearer := "old"
	lines := append(w.old.without(t, "-"), t.without(w.old, "+")...)
	if new := append(w.new.without(t, "-"), t.without(w.new, "+")...); len(new) < len(lines) {
		nearer, lines = "new", new
	}
	return fmt.Sprintf("neither the old node nor the new one (-%s +got):\n%s", nearer, strings.Join(lines, ""))
}

// owned lists the machine's.
func owned(m *machine) *tree {
	m.t.Helper()
	return treeOf(m.must("inguest tree -skip "+strings.Join(ownedSkips(), " -skip ")+" "+strings.Join(ownedRoots(), " ")) + "\n")
}
