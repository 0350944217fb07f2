package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// manual is what the tutorials say, plus the verification most of them leave out:
// no fsync, no receipt, no check.
const manual = `set -eu
cd "$ARTIFACTS"
sha256sum --quiet -c "$SUMS"
mkdir -p "$ROOT/usr/local/bin" "$ROOT/usr/local/sbin" "$ROOT/opt/cni/bin" "$ROOT/etc/containerd" "$ROOT/etc/systemd/system" "$ROOT/etc/modules-load.d" "$ROOT/etc/sysctl.d"
tar xzf "$CONTAINERD" -C "$ROOT/usr/local"
tar xzf "$CNI" -C "$ROOT/opt/cni/bin"
install -m 755 "$RUNC" "$ROOT/usr/local/sbin/runc"
cp "$FILES/config.toml" "$ROOT/etc/containerd/config.toml"
cp "$FILES/containerd.service" "$ROOT/etc/systemd/system/containerd.service"
printf 'overlay\nbr_netfilter\n' > "$ROOT/etc/modules-load.d/containerd.conf"
printf 'net.ipv4.ip_forward = 1\n' > "$ROOT/etc/sysctl.d/99-kubernetes.conf"
`

// sample is one run of a process.
type sample struct {
	wall  time.Duration
	cpu   time.Duration // in user and system mode, getrusage(2)
	rss   int64         // kilobytes, the same
	notes int           // lines on standard error
	// journal is what nodeprep itself says of an apply: how much of it went into the
	// journal.
	journal time.Duration
}

func timed(cmd *exec.Cmd) (sample, error) {
	var out, notes bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &notes
	start := time.Now()
	err := cmd.Run()
	s := sample{wall: time.Since(start)}
	if cmd.ProcessState != nil {
		if ru, ok := cmd.ProcessState.SysUsage().(*syscall.Rusage); ok {
			s.rss = ru.Maxrss
		}
		s.cpu = cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()
	}
	s.notes = bytes.Count(notes.Bytes(), []byte("\n"))
	if err != nil {
		return s, fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, notes.String())
	}
	var said struct {
		Journal time.Duration `json:"journal"`
	}
	if json.Unmarshal(out.Bytes(), &said) == nil {
		s.journal = said.Journal
	}
	return s, nil
}

type series []sample

func (s series) wall(q float64) time.Duration {
	w := make([]time.Duration, len(s))
	for i := range s {
		w[i] = s[i].wall
	}
	slices.Sort(w)
	return w[int(q*float64(len(w)-1))]
}

// journal is the share of the journal in each run.
func (s series) journal(q float64) (share float64, journal, wall time.Duration) {
	byShare := slices.Clone(s)
	slices.SortFunc(byShare, func(a, b sample) int {
		return cmp.Compare(a.journal.Seconds()/a.wall.Seconds(), b.journal.Seconds()/b.wall.Seconds())
	})
	x := byShare[int(q*float64(len(byShare)-1))]
	return x.journal.Seconds() / x.wall.Seconds(), x.journal, x.wall
}

// cores is how many were kept busy, the median run's.
func (s series) cores() float64 {
	c := make([]float64, len(s))
	for i := range s {
		c[i] = s[i].cpu.Seconds() / s[i].wall.Seconds()
	}
	slices.Sort(c)
	return c[int(0.5*float64(len(c)-1))]
}

func (s series) rss() int64 {
	var m int64
	for _, x := range s {
		m = max(m, x.rss)
	}
	return m
}

func main() {
	nodeprep := flag.String("nodeprep", "bin/nodeprep", "the program")
	artifacts := flag.String("artifacts", "", "folder with one containerd, runc and CNI plugins release")
	older := flag.String("older", "", "with -artifacts: the same with other versions, to be rolled back from")
	rounds := flag.Int("rounds", 7, "runs of each side")
	dir := flag.String("dir", "", "where to work (default: a temporary folder)")
	only := flag.String("only", "", "apply, bundle or check: that part alone")
	flag.Parse()
	wanted := func(part string) bool { return *only == "" || *only == part }
	if err := run(context.Background(), *nodeprep, *artifacts, *older, *dir, *rounds, wanted); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// run benches the releases in a folder, by default those that the machine tests use,
// made of Debian's packages.
func run(ctx context.Context, nodeprep, artifacts, older, dir string, rounds int, wanted func(part string) bool) (err error) {
	if nodeprep, err = filepath.Abs(nodeprep); err != nil {
		return err
	}
	if artifacts == "" && (wanted("apply") || wanted("bundle")) {
		together, err := os.MkdirTemp(dir, "nodeprep-bench-artifacts-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(together)
		if artifacts, older, err = releases(ctx, together); err != nil {
			return err
		}
	}
	if wanted("apply") {
		if err := bench(nodeprep, artifacts, older, dir, rounds); err != nil {
			return err
		}
	}
	if wanted("bundle") {
		if err := benchBundle(ctx, nodeprep, artifacts, dir, rounds); err != nil {
			return err
		}
	}
	if wanted("check") {
		return benchCheck(ctx, nodeprep, dir, rounds)
	}
	return nil
}

// releases are two sets of releases made of Debian's packages, each in a folder below dir.
func releases(ctx context.Context, dir string) (newer, older string, err error) {
	store, err := supply.Open(func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
	if err != nil {
		return "", "", err
	}
	if err := store.Deps(ctx); err != nil {
		return "", "", err
	}
	newer, older = filepath.Join(dir, "new"), filepath.Join(dir, "old")
	for folder, wanted := range map[string][]supply.Release{
		newer: {
			{Component: "containerd", Version: "2.1.9", Arch: runtime.GOARCH},
			{Component: "runc", Version: runcVersion, Arch: runtime.GOARCH},
			{Component: "cni", Version: "1.9.1", Arch: runtime.GOARCH},
		},
		older: {
			{Component: "containerd", Version: "1.7.24", Arch: runtime.GOARCH},
			{Component: "runc", Version: olderRunc, Arch: runtime.GOARCH},
			{Component: "cni", Version: "1.1.1", Arch: runtime.GOARCH},
		},
	} {
		dirs, err := store.Releases(ctx, wanted)
		if err != nil {
			return "", "", err
		}
		if err := os.Mkdir(folder, 0o700); err != nil {
			return "", "", err
		}
		for _, r := range wanted {
			// Not read whole: a child's peak memory starts with what its parent had.
			if err := copyFile(filepath.Join(folder, r.File()), filepath.Join(dirs[r.Name()], r.File())); err != nil {
				return "", "", err
			}
		}
	}
	return newer, older, nil
}

func copyFile(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		out.Close()
		return err
	}
	return out.Close()
}

// runcVersion is the runc that is measured: its file name does not tell.
const runcVersion = "1.3.6"

// olderRunc is that of the older set.
const olderRunc = "1.1.15"

// hand is the side that is done by hand, and the profile that says the same.
type hand struct {
	set                  set
	profile, sums, files string
}

// byHandOf prepares it in a folder.
func byHandOf(nodeprep string, s set, work string) (hand, error) {
	h := hand{set: s, profile: filepath.Join(work, "node.yaml"), sums: filepath.Join(work, "SUMS"), files: filepath.Join(work, "files")}
	if err := os.WriteFile(h.profile, []byte(s.profile(runcVersion)), 0o644); err != nil {
		return h, err
	}
	if err := os.WriteFile(h.sums, []byte(s.sums()), 0o644); err != nil {
		return h, err
	}
	return h, renderFiles(nodeprep, h.profile, h.files)
}

// into does it, in an empty root.
func (h hand) into(root string) *exec.Cmd {
	cmd := exec.Command("sh", "-c", manual)
	cmd.Env = append(os.Environ(), "ARTIFACTS="+h.set.dir, "SUMS="+h.sums, "ROOT="+root, "FILES="+h.files,
		"CONTAINERD="+h.set.containerd, "CNI="+h.set.cni, "RUNC="+h.set.runc)
	return cmd
}

func bench(nodeprep, artifacts, older, dir string, rounds int) error {
	set, err := findSet(artifacts)
	if err != nil {
		return err
	}
	old := set
	if older != "" {
		if old, err = findSet(older); err != nil {
			return err
		}
	}
	work, err := os.MkdirTemp(dir, "nodeprep-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	side, err := byHandOf(nodeprep, set, work)
	if err != nil {
		return err
	}
	profile := side.profile
	olderProfile := filepath.Join(work, "older.yaml")
	if err := os.WriteFile(olderProfile, []byte(old.profile(olderRunc)), 0o644); err != nil {
		return err
	}
	var byHand, apply, again, status, change, back, validate, render series
	for i := range rounds {
		root := filepath.Join(work, fmt.Sprint("root", i))
		hroot := filepath.Join(work, fmt.Sprint("hand", i))
		for _, d := range []string{root, hroot} {
			if err := os.Mkdir(d, 0o755); err != nil {
				return err
			}
		}
		applyArgs := []string{"apply", "-f", profile, "--root", root, "--artifacts", set.dir, "--offline", "-o", "json"}
		changeArgs := []string{"apply", "-f", olderProfile, "--root", root, "--artifacts", old.dir, "--offline", "-o", "json"}
		type step struct {
			into *series
			cmd  *exec.Cmd
		}
		steps := []step{
			{&byHand, side.into(hroot)},
			{&apply, exec.Command(nodeprep, applyArgs...)},
			{&again, exec.Command(nodeprep, applyArgs...)},
			{&status, exec.Command(nodeprep, "status", "--root", root)},
			{&validate, exec.Command(nodeprep, "validate", profile)},
			{&render, exec.Command(nodeprep, "render", "-f", profile)},
		}
		if older != "" {
			steps = append(steps, step{&change, exec.Command(nodeprep, changeArgs...)}, step{&back, exec.Command(nodeprep, "rollback", "--root", root)})
		}
		for _, step := range steps {
			// What the run before left unwritten must not be paid for by this one.
			syscall.Sync()
			s, err := timed(step.cmd)
			if err != nil {
				return err
			}
			*step.into = append(*step.into, s)
		}
		if err := os.RemoveAll(root); err != nil {
			return err
		}
		if err := os.RemoveAll(hroot); err != nil {
			return err
		}
	}
	size, err := os.Stat(nodeprep)
	if err != nil {
		return err
	}
	fmt.Println(machine(rounds, set))
	fmt.Printf("%-28s %10s %10s %10s %10s\n", "", "min", "median", "max", "peak MiB")
	for _, row := range []struct {
		name string
		s    series
	}{
		{"by hand, not durable", byHand}, {"nodeprep apply, durable", apply}, {"nodeprep apply again", again}, {"nodeprep status", status},
		{"nodeprep apply, an upgrade", change}, {"nodeprep rollback of it", back}, {"nodeprep validate", validate}, {"nodeprep render", render},
	} {
		if len(row.s) == 0 {
			continue
		}
		fmt.Printf("%-28s %10s %10s %10s %10.1f\n", row.name, ms(row.s.wall(0)), ms(row.s.wall(0.5)), ms(row.s.wall(1)), float64(row.s.rss())/1024)
	}
	ratio := func(q float64) float64 { return apply.wall(q).Seconds() / byHand.wall(q).Seconds() }
	fmt.Printf("apply / by hand: %.2f (medians %s / %s), %.2f (minima); wanted at most 0.55\n", ratio(0.5), ms(apply.wall(0.5)), ms(byHand.wall(0.5)), ratio(0))
	fmt.Printf("peak memory of apply: %.1f MiB; wanted at most 48\n", float64(apply.rss())/1024)
	share, journal, wall := apply.journal(0.5)
	fmt.Printf("journal / apply: %.3f (median; %s of %s); wanted at most 0.05\n", share, ms(journal), ms(wall))
	fmt.Printf("status: %s; wanted at most 30 ms\n", ms(status.wall(0.5)))
	if len(back) > 0 {
		fmt.Printf("rollback of three components: %s; wanted at most 500 ms and the daemon's start\n", ms(back.wall(0.5)))
	}
	fmt.Printf("second apply: %s; wanted at most 30 ms\n", ms(again.wall(0.5)))
	fmt.Printf("validate: %s, render: %s; wanted at most 15 ms\n", ms(validate.wall(0.5)), ms(render.wall(0.5)))
	fmt.Printf("binary: %.1f MB; wanted at most 25\n", float64(size.Size())/1e6)
	return nil
}

// machine is what the numbers below it hold for.
func machine(rounds int, s set) string {
	load := "?"
	if b, err := os.ReadFile("/proc/loadavg"); err == nil {
		load, _, _ = strings.Cut(string(b), " ")
	}
	return fmt.Sprintf("machine: %d cores, %s/%s, load %s (this included); %d rounds; artifacts %s", runtime.NumCPU(), runtime.GOOS, runtime.GOARCH, load, rounds, s)
}

func ms(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }

// set is one release of each component in a folder.
type set struct {
	dir, containerd, cni, runc string
	version                    map[string]string
	digest                     map[string]string
}

func (s set) String() string {
	return fmt.Sprintf("containerd %s, runc, CNI plugins %s", s.version["containerd"], s.version["cni"])
}

func findSet(dir string) (set, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return set{}, err
	}
	s := set{dir: abs, version: map[string]string{}, digest: map[string]string{}}
	for _, f := range []struct {
		component, before, after string
		into                     *string
	}{
		{"containerd", "containerd-", "-linux-" + runtime.GOARCH + ".tar.gz", &s.containerd},
		{"cni", "cni-plugins-linux-" + runtime.GOARCH + "-v", ".tgz", &s.cni},
		{"runc", "runc.", runtime.GOARCH, &s.runc},
	} {
		found, err := filepath.Glob(filepath.Join(abs, f.before+"*"+f.after))
		if err != nil {
			return s, err
		}
		if f.component == "runc" {
			found = []string{filepath.Join(abs, f.before+f.after)}
		}
		if len(found) != 1 {
			return s, fmt.Errorf("artifacts %s: want one %s*%s, found %d", dir, f.before, f.after, len(found))
		}
		*f.into = filepath.Base(found[0])
		s.version[f.component] = strings.TrimSuffix(strings.TrimPrefix(*f.into, f.before), f.after)
		file, err := os.Open(found[0])
		if err != nil {
			return s, err
		}
		h := sha256.New()
		_, err = io.Copy(h, file)
		file.Close()
		if err != nil {
			return s, err
		}
		s.digest[f.component] = fmt.Sprintf("%x", h.Sum(nil))
	}
	return s, nil
}

func (s set) sums() string {
	return fmt.Sprintf("%s  %s\n%s  %s\n%s  %s\n", s.digest["containerd"], s.containerd, s.digest["cni"], s.cni, s.digest["runc"], s.runc)
}

// profile names what the folder holds, with its digests: repackaged files are not
// those of the catalogue. runc's file name has no version; the digest decides.
func (s set) profile(runc string) string {
	arch := runtime.GOARCH
	return fmt.Sprintf(`apiVersion: nodeprep/v1alpha1
kind: NodeProfile
extends: kubernetes
containerd: {version: %s, variant: dynamic, sha256: {%s: %s}}
runc: {version: %s, sha256: {%s: %s}}
cni: {version: %s, sha256: {%s: %s}}
crictl: {version: none}
`, s.version["containerd"], arch, s.digest["containerd"], runc, arch, s.digest["runc"], s.version["cni"], arch, s.digest["cni"])
}

// renderFiles lets nodeprep write the two larger files that the hand side only copies.
func renderFiles(nodeprep, profile, dir string) error {
	out := dir + ".rendered"
	if _, err := timed(exec.Command(nodeprep, "render", "-f", profile, "-d", out)); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	for _, f := range []string{"etc/containerd/config.toml", "etc/systemd/system/containerd.service"} {
		if err := os.Rename(filepath.Join(out, f), filepath.Join(dir, filepath.Base(f))); err != nil {
			return err
		}
	}
	return nil
}
