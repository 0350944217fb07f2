package checks

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// resourceChecks are about memory, swap and processors.
func resourceChecks() []Check {
	return []Check{
		{
			ID: "host/swap", Stage: Preflight, Severity: Recommended,
			Why:    "A kubelet with its defaults does not start while swap is on; containerd does not mind.",
			Source: "kubernetes.io, Swap memory management; kubeadm preflight Swap",
			Needs:  []string{NeedLive},
			Remedy: "swapoff -a, and take swap out of /etc/fstab",
			Run:    single(swap),
		},
		{
			ID: "host/kubelet-swap", Stage: Audit, Severity: Required,
			Why:    "This kubelet's failSwapOn is true, the default: with swap on it ends at its next start, and the node with it.",
			Source: "kubernetes.io, KubeletConfiguration: failSwapOn",
			Needs:  []string{NeedLive, NeedKubelet},
			Remedy: "swapoff -a, and take swap out of /etc/fstab; or set failSwapOn: false",
			Run:    single(kubeletSwap),
		},
		{
			ID: "host/memory", Stage: Preflight, Severity: Recommended,
			Why:    "A control plane with less than 1700 MB, or a node with less than 500 MiB, ends in the OOM killer's hands.",
			Source: "kubeadm preflight Mem; docs.k0sproject.io, System requirements",
			Needs:  []string{NeedLive},
			Remedy: "give the machine more memory",
			Run:    single(memory),
		},
		{
			ID: "host/cpus", Stage: Preflight, Severity: Recommended,
			Why:    "kubeadm refuses to make a control plane of a machine with one processor.",
			Source: "kubeadm preflight NumCPU",
			Needs:  []string{NeedLive},
			Remedy: "give the machine a second processor",
			Run:    single(cpus),
		},
	}
}

// swapDevice is a line of /proc/swaps (swapon(8)).
type swapDevice struct {
	path string
	size uint64 // bytes
}

func (n *Node) swaps() ([]swapDevice, error) {
	b, err := n.Host.Root.ReadFile("/proc/swaps")
	if absent(err) {
		return nil, nil // a kernel without swap
	}
	if err != nil {
		return nil, err
	}
	var out []swapDevice
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 3 || f[0] == "Filename" {
			continue
		}
		kib, _ := strconv.ParseUint(f[2], 10, 64) // of no consequence
		out = append(out, swapDevice{unescape(f[0]), kib << 10})
	}
	return out, nil
}

// swapOn describes swap that is on: the devices, what turns them on and how to end that.
func (n *Node) swapOn(on []swapDevice) Result {
	var names []string
	var total uint64
	for _, d := range on {
		names = append(names, d.path)
		total += d.size
	}
	r := Result{Observed: bytesText(total) + " of swap on " + strings.Join(names, ", "), Wanted: "no swap", Place: names[0], Remedy: "swapoff -a"}
	lines, err := n.lines("/etc/fstab")
	if err == nil {
		first := true
		for _, l := range lines {
			if f := strings.Fields(l.text); len(f) >= 3 && f[2] == "swap" {
				file, line, _ := strings.Cut(l.place, ":")
				r.Remedy += "\nsed -i '" + line + "s/^/# /' " + file
				if first {
					r.Place, first = l.place, false
				}
			}
		}
	}
	for _, line := range n.swapMakers(on) {
		r.Remedy += "\n" + line
	}
	return r
}

// swapMakers are the lines that keep what fstab does not have from turning swap on again:
// services that make it, units, and generators (systemd.swap(5), zram-generator(8),
// systemd-gpt-auto-generator(8)).
func (n *Node) swapMakers(on []swapDevice) []string {
	var lines []string
	for _, unit := range []string{"dphys-swapfile.service", "zramswap.service", "zram-config.service", "armbian-zram-config.service", "zram-swap.service", "zram.service"} {
		if n.unitFile(unit) != "" {
			lines = append(lines, n.disable(unit))
		}
	}
	known := func(what string) bool {
		return slices.ContainsFunc(on, func(d swapDevice) bool { return d.path == what || n.same(d.path, what) })
	}
	masked := map[string]bool{}
	mask := func(unit string) {
		if !masked[unit] {
			masked[unit] = true
			lines = append(lines, "systemctl mask "+quote(unit))
		}
	}
	for _, d := range on {
		if strings.HasPrefix(d.path, "/dev/zram") {
			mask(strings.ReplaceAll(strings.TrimPrefix(d.path, "/"), "/", "-") + ".swap")
		}
	}
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/generator", "/run/systemd/generator.late", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system"} {
		entries, err := n.Host.Root.ReadDir(dir)
		if err != nil {
			continue // such as those that are not there
		}
		for _, e := range entries {
			if path.Ext(e.Name()) != ".swap" {
				continue
			}
			p := path.Join(dir, e.Name())
			unit, err := n.lines(p)
			what, byFstab := "", false
			for _, l := range unit {
				if v, ok := strings.CutPrefix(l.text, "What="); ok {
					what = v
				}
				byFstab = byFstab || l.text == "SourcePath=/etc/fstab"
			}
			switch {
			case err != nil || byFstab || !known(what):
			case dir == "/etc/systemd/system":
				lines = append(lines, n.putAside(p)+n.reload())
			default:
				mask(e.Name())
			}
		}
	}
	return lines
}

func swap(_ context.Context, n *Node) Result {
	on, err := n.swaps()
	if err != nil {
		return unknown(err)[0]
	}
	if len(on) == 0 {
		return Result{Verdict: Pass, Observed: "no swap"}
	}
	r := n.swapOn(on)
	k, _ := n.Kubelet() // one that cannot be read is one with swap not known to be allowed
	switch {
	case !n.forKubernetes():
		r.Verdict, r.Observed, r.Wanted, r.Remedy = Pass, r.Observed+", and no kubelet that minds", "", ""
	case k != nil && k.FailSwapOn != nil && !*k.FailSwapOn:
		r.Verdict, r.Observed, r.Wanted, r.Remedy = Pass, r.Observed+", which the kubelet allows", "", ""
		r.Place = k.Place("failSwapOn")
	default:
		r.Verdict = Warn
	}
	return r
}

func kubeletSwap(_ context.Context, n *Node) Result {
	k, err := n.Kubelet()
	if err != nil {
		return unknown(err)[0]
	}
	if k.FailSwapOn != nil && !*k.FailSwapOn {
		return Result{Verdict: Pass, Observed: "failSwapOn is false", Place: k.Place("failSwapOn")}
	}
	on, err := n.swaps()
	switch {
	case err != nil:
		return unknown(err)[0]
	case len(on) == 0:
		return Result{Verdict: Pass, Observed: "no swap, and failSwapOn is true"}
	}
	r := n.swapOn(on)
	r.Verdict, r.Observed, r.Wanted = Fail, r.Observed+", and failSwapOn is true", "no swap, or failSwapOn: false"
	return r
}

// What kubeadm and k0s ask of a machine.
const (
	nodeMemory         = 500 << 20
	controlPlaneMemory = 1700 << 20
)

func memory(_ context.Context, n *Node) Result {
	text, err := n.text("/proc/meminfo")
	if err != nil {
		return unknown(err)[0]
	}
	var total uint64
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(rest), " kB"), 10, 64)
			if err != nil {
				return unknown(fmt.Errorf("/proc/meminfo: MemTotal is %q", strings.TrimSpace(rest)))[0]
			}
			total = kib << 10
		}
	}
	r := Result{Verdict: Pass, Observed: bytesText(total)}
	switch {
	case total == 0:
		r.Verdict, r.Observed = Unknown, "/proc/meminfo has no MemTotal"
	case total < nodeMemory:
		r.Verdict, r.Wanted, r.Note = Warn, "at least "+bytesText(nodeMemory), "containerd and a kubelet alone take most of it"
	case total < controlPlaneMemory && n.forKubernetes():
		r.Verdict, r.Wanted, r.Note = Warn, "1.7 GiB for a control plane", "enough for a worker"
	}
	return r
}

func cpus(_ context.Context, n *Node) Result {
	const place = "/sys/devices/system/cpu/online"
	text, err := n.text(place)
	if err != nil {
		return unknown(err)[0]
	}
	count, err := countCPUs(text)
	if err != nil {
		return unknown(fmt.Errorf("%s: %w", place, err))[0]
	}
	r := Result{Verdict: Pass, Observed: strconv.Itoa(count)}
	if count < 2 && n.forKubernetes() {
		r.Verdict, r.Wanted, r.Note = Warn, "2 for a control plane", "enough for a worker"
	}
	return r
}

// countCPUs counts a list such as 0-3,5 (cpuset(7), List Format).
func countCPUs(list string) (int, error) {
	count := 0
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.Atoi(from)
		b, err2 := strconv.Atoi(to)
		if err1 != nil || err2 != nil || b < a {
			return 0, fmt.Errorf("%q is no list of processors", list)
		}
		count += b - a + 1
	}
	return count, nil
}
