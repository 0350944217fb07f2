package checks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/systemd"
)

// processChecks are about the daemon, shims and containers as the kernel has them.
func processChecks() []Check {
	const restart = "systemctl restart containerd.service, once its KillMode is process"
	return []Check{
		{
			ID: "process/oom-score-adj", Stage: Audit, Severity: Required,
			Why:    "The kernel goes by the process, not by the unit: a daemon that has lost its protection is killed in place of the pod that used the memory up.",
			Source: "proc_pid_oom_score_adj(5); containerd's cmd/containerd/server/server_linux.go, oom_score",
			Needs:  []string{NeedProcess, "unit/oom-score-adjust", "config/oom-score"},
			Remedy: "write the value that the unit has to /proc/PID/oom_score_adj",
			Run:    ofDaemon(daemonOOMScore),
		},
		{
			ID: "process/shim-oom-score", Stage: Audit, Severity: Recommended,
			Why:    "A shim keeps the protection that the daemon had when it started it; one that is killed takes its containers with it.",
			Source: "containerd's pkg/shim/util_unix.go, AdjustOOMScore: the daemon's value and 1",
			Needs:  []string{NeedProcess, "process/oom-score-adj"},
			Remedy: "write the daemon's value and 1 to /proc/PID/oom_score_adj of the shim",
			Run:    ofDaemon(shimOOMScores),
		},
		{
			ID: "process/pod-oom-score", Stage: Audit, Severity: Required,
			Why:    "A container that has inherited the daemon's protection is never killed: it takes the node's memory and everything else dies.",
			Source: "kubernetes pkg/kubelet/qos/policy.go: -997 at most; runc, process.oomScoreAdj is inherited where it is not set",
			Needs:  []string{NeedProcess, daemonAnswers},
			Remedy: "write what the container shall have, 0 by default, to /proc/PID/oom_score_adj of its first process, and start it anew with a value of its own",
			Run:    podOOMScores,
		},
		{
			ID: "process/limits", Stage: Audit, Severity: Recommended,
			Why:    "Limits count from the start of the daemon on: those of a unit that was changed since, or by hand, are not what it and its containers have.",
			Source: "getrlimit(2), prlimit(1); proc_pid_limits(5)",
			Needs:  []string{NeedProcess, "unit/loaded"},
			Remedy: restart,
			Run:    ofDaemon(daemonLimits),
		},
		{
			ID: "process/cgroup", Stage: Audit, Severity: Required,
			Why:    "systemd counts and stops by cgroup: a daemon outside of its unit's is not stopped with it, and containers within it are counted, limited and killed with the daemon.",
			Source: "cgroups(7); systemd's CGROUP_DELEGATION document; containerd issue 4857",
			Needs:  []string{NeedProcess, daemonAnswers},
			Remedy: "write the daemon's PID to cgroup.procs of its unit's cgroup; start pods anew that are in it",
			Run:    ofDaemon(cgroups),
		},
		{
			ID: "process/exe", Stage: Audit, Severity: Required,
			Why:    "A daemon whose program was replaced runs the old release, with all its faults, until somebody restarts it, perhaps by surprise.",
			Source: "proc_pid_exe(5)",
			Needs:  []string{NeedProcess, "binary/containerd", "unit/exec-start"},
			Remedy: restart,
			Run:    ofDaemon(daemonProgramRuns),
		},
		{
			ID: "process/config", Stage: Audit, Severity: Required,
			Why:    "The daemon reads its config once: what was changed since its start is neither in force nor tried, and comes into force at a bad moment.",
			Source: "amazon-eks-ami issue 2702; containerd docs/ops.md",
			Needs:  []string{NeedProcess, "config/parses"},
			Remedy: restart,
			Run:    ofDaemon(configInForce),
		},
		{
			ID: "process/shim-exe", Stage: Audit, Severity: Recommended,
			Why:    "Shims outlive upgrades: a fix in the shim reaches a pod only when it is started anew.",
			Source: "containerd core/runtime/v2/README.md; proc_pid_exe(5)",
			Needs:  []string{NeedProcess},
			Remedy: "start its pods anew when that suits, as by draining the node",
			Run:    ofDaemon(shimPrograms),
		},
		{
			ID: "process/socket-owner", Stage: Audit, Severity: Required,
			Why:    "A second containerd at the same socket takes the kubelet's calls and knows nothing of the first one's containers.",
			Source: "unix(7), SO_PEERCRED",
			Needs:  []string{NeedProcess},
			Remedy: "end the process that listens, and restart containerd.service",
			Run:    socketOwner,
		},
	}
}

// ofDaemon is a check of the daemon that containerd.service runs: of another's process
// nobody here knows what it should be.
func ofDaemon(look func(context.Context, *Node, *Process, *service) []Result) func(context.Context, *Node) []Result {
	return func(ctx context.Context, n *Node) []Result {
		p, err := n.Process()
		if errors.Is(err, errNoProcess) {
			return skip("%v", err)
		}
		if err != nil {
			return unknown(err)
		}
		if !p.Unit {
			return skip("process %d is not of containerd.service", p.PID)
		}
		s, err := n.service()
		if err != nil {
			return unknown(err)
		}
		return look(ctx, n, p, s)
	}
}

// ofProcess is the path of a process's file in proc(5).
func ofProcess(pid int, name string) string { return path.Join("/proc", strconv.Itoa(pid), name) }

// oomScore is a process's own adjustment. gone is true for a process that has ended.
func (n *Node) oomScore(pid int) (score int, gone bool, err error) {
	s, err := n.text(ofProcess(pid, "oom_score_adj"))
	if absent(err) {
		return 0, true, nil
	}
	if err == nil {
		score, err = strconv.Atoi(s)
	}
	return score, false, err
}

func daemonOOMScore(_ context.Context, n *Node, p *Process, s *service) []Result {
	place := ofProcess(p.PID, "oom_score_adj")
	score, gone, err := n.oomScore(p.PID)
	if gone {
		return unknown(fmt.Errorf("process %d has just ended", p.PID))
	}
	if err != nil {
		return unknown(err)
	}
	if _, err := n.Config(); err != nil {
		return unknown(err)
	}
	wanted, by := n.effectiveOOMScore(s)
	if by == "" {
		by = s.where("Service", "OOMScoreAdjust")
	}
	r := Result{Verdict: Pass, Observed: strconv.Itoa(score), Place: place}
	if score != wanted {
		r.Verdict, r.Wanted = Fail, strconv.Itoa(wanted)
		r.Note = "what " + by + " says"
		r.Remedy = fmt.Sprintf("echo %d > %s", wanted, place)
	}
	return []Result{r}
}

// shims are those that answer to the daemon, by process, with the task that each was
// started for: a pod's sandbox under CRI.
func (n *Node) shims() (map[int]daemon.Task, error) {
	return remember(n, "shims", func(context.Context) (map[int]daemon.Task, error) {
		all, err := daemon.Shims(filepath.Join(n.Host.Root.Dir(), "proc"), n.Address())
		out := map[int]daemon.Task{}
		for _, t := range all {
			out[t.Shim] = t
		}
		return out, err
	})
}

func pids(shims map[int]daemon.Task) []int {
	var out []int
	for pid := range shims {
		out = append(out, pid)
	}
	slices.Sort(out)
	return out
}

func shimOOMScores(_ context.Context, n *Node, p *Process, _ *service) []Result {
	shims, err := n.shims()
	if err != nil {
		return unknown(err)
	}
	own, gone, err := n.oomScore(p.PID)
	if gone || err != nil {
		return unknown(errors.Join(err, errors.New("the daemon's own value cannot be read")))
	}
	most := min(own+1, 1000)
	var faults []Result
	for _, pid := range pids(shims) {
		score, gone, err := n.oomScore(pid)
		switch {
		case gone:
		case err != nil:
			return unknown(err)
		case score > most: // one that is protected better does no harm
			faults = append(faults, Result{
				Verdict: Warn, Object: fmt.Sprintf("shim %d of %s", pid, path.Join(shims[pid].Namespace, shims[pid].ID)),
				Observed: strconv.Itoa(score), Wanted: strconv.Itoa(most), Place: ofProcess(pid, "oom_score_adj"),
				Remedy: fmt.Sprintf("echo %d > %s", most, ofProcess(pid, "oom_score_adj")),
			})
		}
	}
	return orPass(faults, "%d shims, none above %d", len(shims), most)
}

// runningTasks are the daemon's tasks that have a process.
func (n *Node) runningTasks() ([]daemon.Task, error) {
	return remember(n, "running tasks", func(ctx context.Context) ([]daemon.Task, error) {
		c, err := n.Client()
		if err != nil {
			return nil, err
		}
		all, err := c.Tasks(ctx)
		return slices.DeleteFunc(all, func(t daemon.Task) bool { return t.PID <= 0 || t.Status == "stopped" }), err
	})
}

// criNamespace is containerd's for what a kubelet runs (internal/cri/constants).
const criNamespace = "k8s.io"

// inheritable are the values that a container gets which is given none: the daemon's, and
// that of the shims that it starts, one above.
func (n *Node) inheritable() []int {
	p, err := n.Process()
	if err != nil {
		return nil
	}
	score, gone, err := n.oomScore(p.PID)
	if err != nil || gone {
		return nil
	}
	return []int{score, min(score+1, 1000)}
}

// sandbox holds for the task that its shim was started for, a pod's sandbox, which CRI
// gives -998 (containerd, internal/cri/server/podsandbox, defaultSandboxOOMAdj), and for
// one that shares its process, or the shim's: containers in a virtual machine.
func (n *Node) sandbox(t daemon.Task, all []daemon.Task, shims map[int]daemon.Task) bool {
	if t.Namespace != criNamespace || t.Shim == 0 {
		return false
	}
	return t.PID == t.Shim || slices.ContainsFunc(all, func(o daemon.Task) bool {
		return o.Namespace == criNamespace && o.PID == t.PID && shims[t.Shim].ID == o.ID
	})
}

// protectsItself holds for programs that write their own value, as they may where they are
// privileged: OpenSSH and udev's daemon, multipathd, and those of Kubernetes (its
// cmd/kube-proxy and cmd/kubelet, oomScoreAdj: -999 by default).
func protectsItself(comm string) bool {
	return slices.Contains([]string{"kube-proxy", "kubelet", "sshd", "systemd-udevd", "multipathd"}, comm)
}

// hypervisor holds for what runs a pod's virtual machine; comm is cut after 15 bytes.
func hypervisor(comm string) bool {
	return slices.ContainsFunc([]string{"qemu", "firecracker", "cloud-hyperviso", "kata", "dragonball", "stratovirt"}, func(p string) bool { return strings.HasPrefix(comm, p) })
}

func podOOMScores(_ context.Context, n *Node) []Result {
	tasks, err := n.runningTasks()
	if err != nil {
		return unknown(err)
	}
	shims, err := n.shims()
	if err != nil {
		return unknown(err)
	}
	inherited := n.inheritable()
	var faults []Result
	for _, t := range tasks {
		score, gone, err := n.oomScore(t.PID)
		if err != nil {
			return unknown(err)
		}
		if gone || score > protectedOOMScore {
			continue
		}
		comm, err := n.text(ofProcess(t.PID, "comm"))
		if n.sandbox(t, tasks, shims) || err == nil && (protectsItself(comm) || t.Shim != 0 && hypervisor(comm)) {
			continue
		}
		r := Result{
			Verdict: Fail, Object: path.Join(t.Namespace, t.ID), Observed: strconv.Itoa(score), Wanted: "above " + strconv.Itoa(protectedOOMScore),
			Place: ofProcess(t.PID, "oom_score_adj"), Remedy: fmt.Sprintf("echo 0 > %s", ofProcess(t.PID, "oom_score_adj")),
			Note: "its first process is " + comm,
		}
		shim, errShim := 0, errors.New("no shim")
		if t.Shim != 0 {
			shim, _, errShim = n.oomScore(t.Shim)
		}
		switch {
		case !slices.Contains(inherited, score) && (errShim != nil || score != shim):
			// Neither the daemon nor a shim has it: somebody gave it to the process.
			r.Verdict = Warn
			r.Note += ", and was given this"
			r.Remedy = "# if it is not meant to be the last that is killed:\n" + r.Remedy
		case t.Namespace != criNamespace:
			// ctr and others give no value unless they are told to, so that the daemon's counts.
			r.Verdict = Warn
			r.Note += "; whoever started it gave it no value of its own"
		}
		faults = append(faults, r)
	}
	return orPass(faults, "%d containers, none has the daemon's protection", len(tasks))
}

// processLimit is a line of proc_pid_limits(5), with unlimited as systemd has it.
func processLimit(text, name string) (soft, hard systemd.Limit, ok bool) {
	for line := range strings.Lines(text) {
		rest, is := strings.CutPrefix(line, name)
		if f := strings.Fields(rest); is && len(f) >= 2 {
			soft, okSoft := limit(strings.Replace(f[0], "unlimited", "infinity", 1))
			hard, okHard := limit(strings.Replace(f[1], "unlimited", "infinity", 1))
			return soft, hard, okSoft && okHard
		}
	}
	return 0, 0, false
}

func daemonLimits(_ context.Context, n *Node, p *Process, s *service) []Result {
	place := ofProcess(p.PID, "limits")
	text, err := n.text(place)
	if err != nil {
		return unknown(err)
	}
	// No limit on files is as many as the kernel allows (proc_sys_fs(5)).
	open := systemd.Infinity
	if most, err := n.text("/proc/sys/fs/nr_open"); err == nil {
		if v, ok := limit(most); ok {
			open = v
		}
	}
	var faults []Result
	for _, l := range []struct {
		name, key  string
		soft, hard systemd.Limit
		most       systemd.Limit
	}{
		{"Max open files", "LimitNOFILE", s.LimitNOFILESoft, s.LimitNOFILE, open},
		{"Max processes", "LimitNPROC", 0, s.LimitNPROC, systemd.Infinity},
		{"Max core file size", "LimitCORE", 0, s.LimitCORE, systemd.Infinity},
	} {
		soft, hard, ok := processLimit(text, l.name)
		if !ok {
			return unknown(fmt.Errorf("%s has no line %q", place, l.name))
		}
		// The Go runtime raises the soft limit of files to the hard one by itself.
		if min(hard, l.most) == min(l.hard, l.most) && soft >= min(l.soft, l.most) {
			continue
		}
		faults = append(faults, Result{
			Verdict: Warn, Object: l.key, Observed: hard.String(), Wanted: l.hard.String(), Place: place,
			Note: "what " + s.where("Service", l.key) + " leads to; set with prlimit it would not reach shims, for which the daemon takes its first limits",
			// Its children get the limits that it was started with.
			Remedy: n.restart(s),
		})
		if hard == l.hard {
			last := &faults[len(faults)-1]
			last.Observed, last.Wanted = "soft "+soft.String(), "soft "+l.soft.String()
		}
	}
	return orPass(faults, "as the unit has them")
}

// cgroupOf is a process's cgroup: of the one hierarchy of v2, else systemd's own of v1
// (cgroups(7)).
func (n *Node) cgroupOf(pid int) (cgroup string, v2 bool, err error) {
	text, err := n.text(ofProcess(pid, "cgroup"))
	if err != nil {
		return "", false, err
	}
	unified := ""
	for line := range strings.Lines(text) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		switch {
		case len(f) != 3:
		case f[1] == "name=systemd":
			return f[2], false, nil
		case f[0] == "0":
			unified = f[2]
		}
	}
	if unified == "" {
		return "", false, fmt.Errorf("%s names no cgroup that systemd uses", ofProcess(pid, "cgroup"))
	}
	return unified, true, nil
}

func cgroups(_ context.Context, n *Node, p *Process, s *service) []Result {
	if s.ControlGroup == "" {
		return unknown(errors.New("systemd names no cgroup for containerd.service"))
	}
	var found []Result
	own, v2, err := n.cgroupOf(p.PID)
	switch {
	case err != nil:
		return unknown(err)
	case !within(own, s.ControlGroup): // DelegateSubgroup= puts it into one below
		r := Result{
			Verdict: Fail, Object: "daemon", Observed: own, Wanted: s.ControlGroup, Place: ofProcess(p.PID, "cgroup"),
			Remedy: n.restart(s),
		}
		if v2 {
			r.Remedy = fmt.Sprintf("echo %d > %s", p.PID, quote(path.Join("/sys/fs/cgroup", s.ControlGroup, "cgroup.procs")))
		}
		found = append(found, r)
	}
	if !n.runcBySystemd() {
		return orPass(found, "the daemon in %s", own)
	}
	tasks, err := n.runningTasks()
	if err != nil {
		return append(orPass(found, "the daemon in %s", own), Result{
			Verdict: Unknown, Object: "containers", Observed: err.Error(),
		})
	}
	for _, t := range tasks {
		cgroup, _, err := n.cgroupOf(t.PID)
		if err != nil || !within(cgroup, s.ControlGroup) {
			continue // gone meanwhile, or where it belongs
		}
		found = append(found, Result{
			Verdict: Fail, Object: path.Join(t.Namespace, t.ID), Observed: cgroup, Wanted: "a cgroup of its pod's slice", Place: ofProcess(t.PID, "cgroup"),
			Note:   "it was started without SystemdCgroup, which now holds: the kubelet's limits do not reach it",
			Remedy: fmt.Sprintf("# its pod is started anew by the kubelet:\n%s tasks kill -s SIGTERM %s", n.ctr(t.Namespace), quote(t.ID)),
		})
	}
	return orPass(found, "the daemon in %s, %d containers outside of it", own, len(tasks))
}

// runcBySystemd says that all handlers that runc serves have their cgroups made by systemd.
func (n *Node) runcBySystemd() bool {
	c, err := n.Config()
	if err != nil || !c.Exists {
		return false
	}
	all := c.Runtimes()
	for _, r := range all {
		if strings.HasPrefix(r.Type, "io.containerd.runc.") && !r.SystemdCgroup {
			return false
		}
	}
	return len(all) > 0
}

func daemonProgramRuns(_ context.Context, n *Node, p *Process, s *service) []Result {
	place := ofProcess(p.PID, "exe")
	if _, err := n.Host.Root.Readlink(place); err != nil {
		return unknown(fmt.Errorf("read what process %d runs: %w", p.PID, reason(err)))
	}
	r := Result{Verdict: Fail, Observed: p.Exe, Place: place, Remedy: n.restart(s)}
	if n.startsOthers(p.Exe) {
		return unknown(fmt.Errorf("the unit's process %d is %s, which keeps the daemon: what that runs cannot be told", p.PID, p.Exe))
	}
	argv, by, err := n.daemonArgv()
	switch {
	case p.Deleted && n.exists(p.Exe):
		r.Observed, r.Wanted = p.Exe+" was replaced since it started", "the program that is there now"
	case p.Deleted:
		r.Observed, r.Wanted = p.Exe+" was removed since it started", "a program that is there"
	case err != nil:
		return unknown(err)
	case !n.sameFile(p.Exe, argv[0]):
		r.Wanted, r.Note = argv[0], "what "+by+" says"
	default:
		r.Verdict, r.Remedy = Pass, ""
	}
	return []Result{r}
}

// clockTicks is how many of proc_pid_stat(5)'s ticks a second has: USER_HZ, 100 on every
// architecture of Linux that containerd is released for.
const clockTicks = 100

// started is when a process was started, as this machine's clock now has it: a board
// without a clock of its own may have got the time after that. Zero is unknown.
func (n *Node) started(pid int, s *service) time.Time {
	start := s.MainStart
	stat, err := n.text(ofProcess(pid, "stat"))
	if err != nil {
		return start
	}
	up, err := n.text("/proc/uptime")
	if err != nil {
		return start
	}
	// The name, field 2, may hold anything but ends with the last parenthesis.
	f, u := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]), strings.Fields(up)
	if len(f) < 20 || len(u) < 1 {
		return start
	}
	ticks, errTicks := strconv.ParseInt(f[19], 10, 64)
	uptime, errUptime := strconv.ParseFloat(u[0], 64)
	if errTicks != nil || errUptime != nil {
		return start
	}
	ago := time.Duration(uptime*float64(time.Second)) - time.Duration(ticks)*(time.Second/clockTicks)
	// The later of the two: a fault must be certain.
	if t := n.Host.Now().Add(-ago); t.After(start) {
		return t
	}
	return start
}

func configInForce(_ context.Context, n *Node, p *Process, s *service) []Result {
	c, err := n.Config()
	if err != nil {
		return unknown(err)
	}
	start := n.started(p.PID, s)
	if start.IsZero() {
		return unknown(errors.New("nothing tells when the daemon was started"))
	}
	var files []string
	for _, f := range c.Files {
		files = append(files, f.Path)
	}
	if c.Exists && len(files) == 0 {
		files = append(files, c.Path)
	}
	// The daemon's environment, such as its proxies, is read at its start, too.
	files = append(files, s.EnvironmentFile...)
	drifted, err := n.drifted()
	if err != nil {
		return unknown(err)
	}
	const layout = "2006-01-02 15:04:05"
	var faults []Result
	for _, f := range files {
		// apply restarts the daemon when what its config says changes, and not for a comment.
		if _, edited := drifted[f]; !edited && f == defaultConfig && n.Receipt != nil && n.Receipt.Versions[releases.Containerd] != "" {
			continue
		}
		fi, err := n.Host.Root.Stat(f)
		if absent(err) {
			continue // an EnvironmentFile may be missing; of a config file config/parses tells
		}
		if err != nil {
			return unknown(err)
		}
		if fi.ModTime().After(start) {
			faults = append(faults, Result{
				Verdict: Fail, Object: f, Observed: "changed " + fi.ModTime().UTC().Format(layout), Wanted: "before " + start.UTC().Format(layout) + " UTC, when the daemon was started",
				Place: f, Remedy: n.restart(s),
			})
		}
	}
	return orPass(faults, "%d files, none changed since the daemon was started", len(files))
}

func shimPrograms(_ context.Context, n *Node, _ *Process, _ *service) []Result {
	shims, err := n.shims()
	if err != nil {
		return unknown(err)
	}
	var old []string
	place := ""
	for _, pid := range pids(shims) {
		exe, err := n.Host.Root.Readlink(ofProcess(pid, "exe"))
		switch {
		case absent(err): // it has just ended
		case err != nil:
			return unknown(fmt.Errorf("read what shim %d runs: %w", pid, reason(err)))
		case strings.HasSuffix(exe, " (deleted)"):
			old = append(old, strconv.Itoa(pid))
			place = strings.TrimSuffix(exe, " (deleted)")
		}
	}
	if len(old) == 0 {
		return pass("%d shims, all run the program that is there", len(shims))
	}
	return []Result{{
		Verdict: Warn, Observed: fmt.Sprintf("%d of %d shims run a program that was replaced since: %s", len(old), len(shims), strings.Join(old, " ")),
		Wanted: "the program that is there now", Place: place, Note: "harmless until something in the shim matters: their pods keep them",
		Remedy: "# when it suits, so that its pods are started anew:\n# kubectl drain " + "$(hostname)" + " --ignore-daemonsets",
	}}
}

func socketOwner(ctx context.Context, n *Node) []Result {
	p, err := n.Process()
	if err != nil {
		return unknown(err)
	}
	if !p.Unit {
		return pass("process %d listens, and is what is looked at: containerd.service does not run", p.PID)
	}
	if n.Listener == nil {
		return unknown(errors.New("nothing tells who listens"))
	}
	address := n.Address()
	pid, err := n.Listener(ctx, address)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return unknown(err)
	case err != nil:
		return pass("nobody else listens at %s; whether the daemon does is for %s", address, daemonAnswers)
	case pid == 0:
		return unknown(fmt.Errorf("who listens at %s is outside of this PID namespace", address))
	case pid == p.PID:
		return []Result{{Verdict: Pass, Observed: fmt.Sprintf("process %d, the unit's", pid), Place: address}}
	}
	s, err := n.service()
	if err != nil {
		return unknown(err)
	}
	own, _, errOwn := n.cgroupOf(p.PID)
	other, _, errOther := n.cgroupOf(pid)
	if errOther == nil && (errOwn == nil && own == other || s.ControlGroup != "" && within(other, s.ControlGroup)) {
		return []Result{{Verdict: Pass, Observed: fmt.Sprintf("process %d, in the unit's cgroup", pid), Place: address}}
	}
	name, err := n.text(ofProcess(pid, "comm"))
	if err != nil {
		name = "?"
	}
	r := Result{
		Verdict: Fail, Observed: fmt.Sprintf("process %d (%s)", pid, name), Wanted: fmt.Sprintf("process %d of containerd.service", p.PID),
		Place: address, Remedy: fmt.Sprintf("kill %d\n%s", pid, n.restart(s)),
	}
	if unit := path.Base(other); errOther == nil && strings.HasSuffix(unit, ".service") {
		// A unit would start its main process again; of others, such as what somebody has
		// started who came in over SSH, it knows nothing.
		if p, err := n.Unit(unit); err == nil && p.MainPID == pid {
			r.Observed += " of " + unit
			r.Remedy = fmt.Sprintf("systemctl disable --now %s\n%s", quote(unit), n.restart(s))
		}
	}
	return []Result{r}
}
