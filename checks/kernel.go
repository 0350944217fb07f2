package checks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
)

// kernelChecks are about the kernel, its modules and settings.
func kernelChecks() []Check {
	return []Check{
		{
			ID: "kernel/version", Stage: Preflight, Severity: Required,
			Why:    "runc needs Linux 4.15 for cgroup v2 and recommends 5.2, which has a freezer: without it containers cannot be paused.",
			Source: "opencontainers/runc docs/cgroup-v2.md; moby contrib/check-config.sh (3.10)",
			Remedy: "install a newer kernel of the distribution and reboot",
			Run:    kernelVersion,
		},
		{
			ID: "kernel/config", Stage: Preflight, Severity: Required,
			Why:    "A kernel that was built without what containers and their networks are made of fails only when the first pod starts.",
			Source: "kubernetes/system-validators, k0s sysinfo and k3s check-config: the options that they require",
			Remedy: "install a kernel, or its modules, with the options that are named",
			Run:    kernelConfig,
		},
		{
			ID: "kernel/config-optional", Stage: Preflight, Severity: Recommended,
			Why:    "Some networks, limits and snapshotters need options of the kernel that others do without.",
			Source: "kubernetes/system-validators and k3s check-config: their optional options",
			Remedy: "install a kernel, or its modules, with the options that are named",
			Run:    kernelConfigOptional,
		},
		{
			ID: "kernel/namespaces", Stage: Preflight, Severity: Required,
			Why:    "Each container has namespaces of its own; where the kernel has none, or allows none, runc cannot start it.",
			Source: "namespaces(7), /proc/sys/user",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w user.max_net_namespaces=15000, or the kind that is 0",
			Run:    namespaces,
		},
		{
			ID: "kernel/overlay", Stage: Preflight, Severity: Required,
			Why:    "Without the module overlay the overlayfs snapshotter does not load, and CRI with it.",
			Source: "kernel filesystems/overlayfs; modprobe(8)",
			Remedy: "install all modules of the kernel",
			Run:    overlay,
		},
		{
			ID: "kernel/cgroup-mode", Stage: Preflight, Severity: Recommended,
			Why:    "containerd has deprecated cgroup v1, and limits of swap and of memory's quality of service need v2.",
			Source: "containerd RELEASES.md (2.2, deprecated features); cgroups(7)",
			Needs:  []string{NeedLive},
			Remedy: "take systemd.unified_cgroup_hierarchy=0 from the kernel command line, or add it with 1, and reboot",
			Run:    single(cgroupMode),
		},
		{
			ID: "kernel/cgroup-v1", Stage: Preflight, Severity: Required,
			Why:    "Since Kubernetes 1.35 a kubelet does not start on cgroup v1 unless failCgroupV1 is false.",
			Source: "kubernetes pull request 134298; KubeletConfiguration, failCgroupV1",
			Needs:  []string{NeedLive},
			Remedy: "boot with cgroup v2: systemd.unified_cgroup_hierarchy=1 on the kernel command line",
			Run:    single(cgroupV1),
		},
		{
			ID: "kernel/cgroup-controllers", Stage: Preflight, Severity: Required,
			Why:    "A limit of a pod whose controller is missing makes runc refuse it, and the kubelet does not start without them.",
			Source: "cgroups(7); kubernetes/system-validators, cgroups; opencontainers/runc docs/cgroup-v2.md",
			Needs:  []string{NeedLive, "board/memory-cgroup"},
			Remedy: "take cgroup_disable= from the kernel command line, or unmount the cgroup v1 hierarchy that holds them",
			Run:    cgroupControllers,
		},
		{
			ID: "kernel/cgroup-subtree", Stage: Audit, Severity: Recommended,
			Why:    "A controller that the root does not pass down limits nothing in the cgroups of pods, whatever their specification says.",
			Source: "kernel admin-guide/cgroup-v2, Enabling and Disabling",
			Needs:  []string{NeedLive, "kernel/cgroup-controllers"},
			Remedy: "echo +cpu +cpuset +memory +pids > /sys/fs/cgroup/cgroup.subtree_control",
			Run:    cgroupSubtree,
		},
		{
			ID: "kernel/seccomp", Stage: Preflight, Severity: Required,
			Why:    "The default profile of containerd's CRI is seccomp's: without filters in the kernel, pods that ask for it do not start.",
			Source: "seccomp(2); proc_pid_status(5), Seccomp",
			Needs:  []string{NeedLive},
			Remedy: "install a kernel with CONFIG_SECCOMP_FILTER",
			Run:    single(seccomp),
		},
		{
			ID: "kernel/modules", Stage: Audit, Severity: Required,
			Why:    "What a module brings is missing until it is loaded, and nothing loads those for containers on demand.",
			Source: "kernel admin-guide/sysfs-rules; modprobe(8)",
			Needs:  []string{NeedLive, "kernel/overlay"},
			Remedy: "modprobe MODULE",
			Run:    modules,
		},
		{
			ID: "kernel/modules-persisted", Stage: Audit, Severity: Recommended,
			Why:    "A module that was loaded by hand is gone after the next boot.",
			Source: "modules-load.d(5)",
			Remedy: "echo MODULE > /etc/modules-load.d/MODULE.conf",
			Run:    modulesPersisted,
		},
		{
			ID: "kernel/modules-blacklisted", Stage: Audit, Severity: Recommended,
			Why:    "Hardening guides turn off modules that containers need; at boot systemd leaves out those on a blacklist, without a word.",
			Source: "modprobe.d(5), blacklist and install; CIS Debian Linux 12 Benchmark 1.1.1 (overlay)",
			Remedy: "take the line out of the file in /etc/modprobe.d",
			Run:    modulesBlacklisted,
		},
		{
			ID: "kernel/br-netfilter", Stage: Audit, Severity: Required,
			Why:    "The settings net.bridge.bridge-nf-call-* exist only once br_netfilter is loaded; without it traffic of a bridge goes past iptables, and services do not answer from the same node.",
			Source: "kernel networking/ip-sysctl, /proc/sys/net/bridge",
			Needs:  []string{NeedLive, "kernel/modules"},
			Remedy: "modprobe br_netfilter",
			Run:    brNetfilter,
		},
		{
			ID: "kernel/sysctl", Stage: Audit, Severity: Required,
			Why:    "Only the value in force counts: with net.ipv4.ip_forward off, no packet of a pod leaves its node, and kubeadm refuses it.",
			Source: "kernel networking/ip-sysctl; kubeadm preflight, FileContent--proc-sys-net-ipv4-ip_forward",
			Needs:  []string{NeedLive, "kernel/br-netfilter"},
			Remedy: "sysctl -w KEY=VALUE",
			Run:    sysctls,
		},
		{
			ID: "kernel/sysctl-persisted", Stage: Audit, Severity: Required,
			Why:    "Of several files that set a key the last by name wins, so that a node which works today does not after a boot.",
			Source: "sysctl.d(5), Configuration Directories and Precedence",
			Remedy: "set it in a file of /etc/sysctl.d that is sorted after the one named",
			Run:    sysctlsPersisted,
		},
		{
			ID: "kernel/sysctl-ordering", Stage: Audit, Severity: Recommended,
			Why:    "sysctl.d is read early: settings of a module that is loaded later, such as those of br_netfilter, are lost at boot.",
			Source: "sysctl.d(5), on settings that are there only when a module is loaded",
			Remedy: "echo br_netfilter > /etc/modules-load.d/br_netfilter.conf",
			Run:    sysctlOrdering,
		},
		{
			ID: "kernel/rp-filter", Stage: Audit, Severity: Recommended,
			Why:    "The strict reverse path filter drops packets that Cilium redirects, and Calico's agent refuses the loose one.",
			Source: "Cilium documentation, troubleshooting (rp_filter); Calico Felix configuration, ignoreLooseRPF; kernel networking/ip-sysctl, rp_filter",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w net.ipv4.conf.all.rp_filter=0 with Cilium, =1 with Calico",
			Run:    single(rpFilter),
		},
		{
			ID: "kernel/inotify", Stage: Audit, Severity: Recommended,
			Why:    "The kubelet, log agents and pods of one user share 128 inotify instances by default; what comes later ends in \"too many open files\".",
			Source: "inotify(7), /proc/sys/fs/inotify; kind known issues, pod errors due to too many open files",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w fs.inotify.max_user_instances=512 fs.inotify.max_user_watches=524288",
			Run:    inotify,
		},
		{
			ID: "kernel/keys", Stage: Audit, Severity: Recommended,
			Why:    "runc gives each container a session keyring of root's quota; when that is used up, no container starts (\"disk quota exceeded\").",
			Source: "keyrings(7), /proc/sys/kernel/keys; k3s check-config, root_maxkeys",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w kernel.keys.root_maxkeys=1000000 kernel.keys.root_maxbytes=25000000",
			Run:    func(_ context.Context, n *Node) []Result { return keys(n) },
		},
		{
			ID: "kernel/file-max", Stage: Audit, Severity: Recommended,
			Why:    "All processes of the host share fs.file-max, and none can have more files open than fs.nr_open, which also caps LimitNOFILE.",
			Source: "proc_sys_fs(5), file-max and nr_open; setrlimit(2)",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w fs.nr_open=1048576",
			Run:    func(_ context.Context, n *Node) []Result { return fileMax(n) },
		},
		{
			ID: "kernel/pid-max", Stage: Audit, Severity: Recommended,
			Why:    "Threads of all containers are counted together; when numbers run out, fork fails for every process of the node.",
			Source: "proc_sys_kernel(5), pid_max and threads-max; Kubernetes documentation, Process ID Limits And Reservations",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w kernel.pid_max=4194304",
			Run:    func(_ context.Context, n *Node) []Result { return pidMax(n) },
		},
		{
			ID: "kernel/conntrack", Stage: Audit, Severity: Recommended,
			Why:    "When the table of connections is full, new ones are dropped, with \"nf_conntrack: table full\" in the kernel's log.",
			Source: "kernel networking/nf_conntrack-sysctl",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w net.netfilter.nf_conntrack_max=524288",
			Run:    single(conntrack),
		},
		{
			ID: "kernel/user-namespaces", Stage: Audit, Severity: Recommended,
			Why:    "Pods with hostUsers: false and rootless containers need user namespaces, which some distributions and hardening guides turn off.",
			Source: "user_namespaces(7); Kubernetes documentation, User Namespaces",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w user.max_user_namespaces=15000",
			Run:    single(userNamespaces),
		},
		{
			ID: "kernel/kubelet-protect", Stage: Audit, Severity: Recommended,
			Why:    "With protectKernelDefaults a kubelet does not set what it needs but ends where the kernel has other values.",
			Source: "KubeletConfiguration, protectKernelDefaults; kubernetes pkg/kubelet/cm, setupKernelTunables",
			Needs:  []string{NeedLive, NeedKubelet},
			Remedy: "sysctl -w vm.overcommit_memory=1 vm.panic_on_oom=0 kernel.panic=10 kernel.panic_on_oops=1",
			Run:    kubeletProtect,
		},
		{
			ID: "kernel/overcommit", Stage: Preflight, Severity: Recommended,
			Why:    "With vm.overcommit_memory=2 programs that reserve much and use little, as those of Go do, are refused memory while there is plenty.",
			Source: "kernel mm/overcommit-accounting",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w vm.overcommit_memory=1",
			Run:    single(overcommit),
		},
	}
}

// kernelNumbers are major and minor of a release such as 6.1.0-28-cloud-amd64.
func kernelNumbers(release string) (major, minor int, err error) {
	text := func(s string) string { // the digits that it begins with
		return s[:len(s)-len(strings.TrimLeft(s, "0123456789"))]
	}
	first, rest, _ := strings.Cut(release, ".")
	major, err = strconv.Atoi(first)
	if err == nil {
		minor, err = strconv.Atoi(text(rest))
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%q is no kernel release", release)
	}
	return major, minor, nil
}

func kernelVersion(_ context.Context, n *Node) []Result {
	kernels, err := n.Kernels()
	if errors.Is(err, errNoKernel) {
		return skip("%v", err)
	}
	if err != nil {
		return unknown(err)
	}
	// An image boots with cgroup v2, unless its systemd is of the time before (systemd NEWS, 244).
	v2 := n.Facts.Systemd == 0 || n.Facts.Systemd >= 244
	if n.Live {
		mode, err := n.CgroupMode()
		if err != nil {
			return unknown(err)
		}
		v2 = mode == CgroupV2
	}
	var faults []Result
	for _, release := range kernels {
		major, minor, err := kernelNumbers(release)
		if err != nil {
			return unknown(err)
		}
		r := Result{Observed: release, Remedy: "# install a newer kernel of the distribution, and reboot"}
		switch {
		case major < 3 || major == 3 && minor < 10:
			r.Verdict, r.Wanted = Fail, "4.15 or newer, 5.2 recommended"
		case !v2 && (major < 4 || major == 4 && minor < 15):
			r.Verdict, r.Wanted, r.Note = Warn, "5.2 or newer", "enough for cgroup v1, which this host has"
		case major < 4 || major == 4 && minor < 15:
			r.Verdict, r.Wanted = Fail, "4.15 or newer, 5.2 recommended"
		case major == 4 || major == 5 && minor < 2:
			r.Verdict, r.Wanted = Warn, "5.2 or newer"
		default:
			continue
		}
		faults = append(faults, r)
	}
	return orPass(faults, "%s", strings.Join(kernels, ", "))
}

func namespaces(_ context.Context, n *Node) []Result {
	if !n.exists("/proc/self") {
		return unknown(fmt.Errorf("/proc/self: %w", fs.ErrNotExist))
	}
	kinds := []string{"mnt", "pid", "net", "ipc", "uts"}
	if mode, err := n.CgroupMode(); err == nil && mode == CgroupV2 {
		kinds = append(kinds, "cgroup")
	}
	var faults []Result
	for _, kind := range kinds {
		if !n.hasNamespace(kind) {
			faults = append(faults, Result{
				Verdict: Fail, Object: kind, Observed: "not in this kernel", Wanted: "/proc/self/ns/" + kind, Place: "/proc/self/ns",
				Remedy: "# install a kernel with this kind of namespace, and reboot",
			})
			continue
		}
		if r := n.noNamespaces(kind); r != nil {
			faults = append(faults, *r)
		}
	}
	return orPass(faults, "%s", strings.Join(kinds, ", "))
}

// hasNamespace reports whether the kernel has namespaces of a kind. Their links lead to
// no path, so that they must not be followed.
func (n *Node) hasNamespace(kind string) bool {
	_, err := n.Host.Root.Lstat("/proc/self/ns/" + kind)
	return !absent(err)
}

// noNamespaces is what is wrong with the number of namespaces of a kind, nil is nothing.
func (n *Node) noNamespaces(kind string) *Result {
	key := "user.max_" + kind + "_namespaces"
	most, err := n.sysctlNumber(key)
	switch {
	case absent(err): // before Linux 4.9 there is no limit
		return nil
	case err != nil:
		return &unknown(err)[0]
	case most > 0:
		return nil
	}
	// The kernel's own choice is half of the threads that it allows.
	choice := int64(15000)
	if threads, err := n.sysctlNumber("kernel.threads-max"); err == nil && threads > 1 {
		choice = threads / 2
	}
	return &Result{
		Verdict: Fail, Object: key, Observed: "0", Wanted: "more than 0", Place: n.sysctlPlace(key, "0"),
		Remedy: n.setLines(key, strconv.FormatInt(choice, 10)),
	}
}

// toCgroupV2 is the change of the command line that makes systemd mount cgroup v2.
func (n *Node) toCgroupV2() cmdlineEdit {
	const unified = "systemd.unified_cgroup_hierarchy"
	off := func(w string) bool {
		option, value, _ := strings.Cut(w, "=")
		return option == unified && slices.Contains([]string{"0", "no", "false", "off"}, value) || option == "systemd.legacy_systemd_cgroup_controller"
	}
	words, err := n.Cmdline()
	if err == nil && slices.ContainsFunc(words, off) {
		return n.editCmdline(func(w string) string {
			if off(w) {
				return ""
			}
			return w
		})
	}
	return n.editCmdline(func(w string) string { return w }, unified+"=1")
}

func cgroupMode(_ context.Context, n *Node) Result {
	mode, err := n.CgroupMode()
	if err != nil {
		return unknown(err)[0]
	}
	if mode == CgroupV2 {
		return Result{Verdict: Pass, Observed: "v2", Place: cgroupRoot}
	}
	edit := n.toCgroupV2()
	return Result{Verdict: Fail, Observed: string(mode), Wanted: "v2", Place: edit.place, Remedy: edit.remedy}
}

func cgroupV1(_ context.Context, n *Node) Result {
	mode, err := n.CgroupMode()
	if err != nil {
		return unknown(err)[0]
	}
	if mode == CgroupV2 {
		return Result{Verdict: Pass, Observed: "cgroup v2"}
	}
	kubelet, err := n.Kubelet()
	if err != nil {
		return unknown(err)[0]
	}
	version, from := "", ""
	if n.Spec != nil && n.Spec.Kubernetes != "" {
		version, from = n.Spec.Kubernetes, "the profile"
	}
	refuses, said := false, false
	if kubelet != nil {
		if version == "" {
			version, from = kubelet.Version, "the kubelet"
		}
		if kubelet.FailCgroupV1 != nil {
			refuses, said, from = *kubelet.FailCgroupV1, true, kubelet.Place("failCgroupV1")
		}
	}
	switch {
	case said:
	case version == "" && kubelet == nil:
		return Result{Verdict: Skip, Observed: "no kubelet and no Kubernetes version is known here"}
	case version == "":
		return Result{Verdict: Unknown, Observed: "cgroup " + string(mode) + ", and the kubelet's version is not known"}
	default:
		major, minor, err := kernelNumbers(strings.TrimPrefix(version, "v"))
		if err != nil {
			return Result{Verdict: Unknown, Observed: "the Kubernetes version " + version + " cannot be read"}
		}
		refuses = major > 1 || major == 1 && minor >= 35
	}
	observed := "cgroup " + string(mode)
	if !refuses {
		return Result{Verdict: Pass, Observed: observed + ", which this kubelet takes", Place: from}
	}
	edit := n.toCgroupV2()
	return Result{
		Verdict: Fail, Observed: observed, Wanted: "v2", Place: edit.place, Remedy: edit.remedy,
		Note: strings.TrimSpace(from + " " + version + ": the kubelet will not start"),
	}
}

func cgroupControllers(_ context.Context, n *Node) []Result {
	mode, err := n.CgroupMode()
	if err != nil {
		return unknown(err)
	}
	var has func(controller string) bool
	required, place := []string{"cpu", "cpuset", "pids"}, cgroupRoot+"/cgroup.controllers"
	switch mode {
	case CgroupNone:
		return []Result{{
			Verdict: Fail, Observed: "no cgroups are mounted", Wanted: "cgroup v2 at " + cgroupRoot, Place: "/proc/self/mountinfo",
			Remedy: "mount -t cgroup2 none " + cgroupRoot,
		}}
	case CgroupV2:
		all, err := n.controllers("")
		if err != nil {
			return unknown(err)
		}
		has = func(c string) bool { return slices.Contains(all, c) }
	default:
		enabled, err := n.v1Controllers()
		if err != nil {
			return unknown(err)
		}
		has = func(c string) bool { return enabled[c] }
		required, place = append(required, "cpuacct", "devices", "freezer"), "/proc/cgroups"
	}
	words, _ := n.Cmdline() // only to name the cause
	var faults []Result
	for _, c := range required {
		if has(c) {
			if mode != CgroupV2 && n.v1Mount(c) == "" {
				faults = append(faults, Result{
					Verdict: Fail, Object: c, Observed: "not mounted", Wanted: "a mount at " + path.Join(cgroupRoot, c), Place: "/proc/self/mountinfo",
					Remedy: fmt.Sprintf("mkdir -p %s/%s && mount -t cgroup -o %s cgroup %s/%s", cgroupRoot, c, c, cgroupRoot, c),
				})
			}
			continue
		}
		r := Result{Verdict: Fail, Object: c, Observed: "not there", Wanted: "the controller " + c, Place: place, Remedy: "# install a kernel that has the cgroup controller " + c + ", and reboot"}
		if word := disabledController(words, c); word != "" {
			edit := n.editCmdline(func(w string) string { return withoutItem(w, "cgroup_disable", c) })
			r.Observed, r.Place, r.Remedy = "off: the kernel was booted with "+word, edit.place, edit.remedy
		} else if at := n.v1Mount(c); at != "" && mode == CgroupV2 {
			r.Observed, r.Place, r.Remedy = "held by a cgroup v1 mount, so that v2 does not have it", at, "umount "+quote(at)
		}
		faults = append(faults, r)
	}
	if len(faults) > 0 {
		return faults
	}
	r := Result{Verdict: Pass, Observed: strings.Join(append(required, "memory"), ", "), Place: place}
	for _, c := range []string{"io", "blkio"} {
		if (c == "io") == (mode == CgroupV2) && !has(c) {
			r.Note = "without " + c + ", which is optional"
		}
	}
	return []Result{r}
}

func cgroupSubtree(_ context.Context, n *Node) []Result {
	mode, err := n.CgroupMode()
	if err != nil {
		return unknown(err)
	}
	if mode != CgroupV2 {
		return skip("cgroup %s passes nothing down", mode)
	}
	on, err := n.text(cgroupRoot + "/cgroup.subtree_control")
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	pods := false
	for _, slice := range []string{"kubepods.slice", "kubepods"} {
		has, err := n.controllers(slice)
		if absent(err) {
			continue
		}
		if err != nil {
			return unknown(err)
		}
		pods = true
		var missing, plus []string
		for _, c := range []string{"cpu", "cpuset", "memory", "pids"} {
			if !slices.Contains(has, c) {
				missing, plus = append(missing, c), append(plus, "+"+c)
			}
		}
		if len(missing) > 0 {
			faults = append(faults, Result{
				Verdict: Fail, Object: slice, Observed: "without " + strings.Join(missing, ", "), Wanted: "cpu, cpuset, memory, pids", Place: cgroupRoot + "/cgroup.subtree_control",
				Remedy: "echo " + strings.Join(plus, " ") + " > " + cgroupRoot + "/cgroup.subtree_control",
			})
		}
	}
	if !pods {
		return pass("no pods yet; the root passes down %s", on)
	}
	return orPass(faults, "the root passes down %s", on)
}

func seccomp(_ context.Context, n *Node) Result {
	status, err := n.text("/proc/self/status")
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{Verdict: Fail, Wanted: "seccomp with filters", Place: "/proc/self/status", Remedy: "# install a kernel with CONFIG_SECCOMP_FILTER, and reboot"}
	if !strings.Contains(status, "\nSeccomp:") {
		r.Observed = "not in this kernel"
		return r
	}
	actions, err := n.Sysctl("kernel.seccomp.actions_avail")
	switch {
	case err == nil:
		return Result{Verdict: Pass, Observed: "filters with " + actions, Place: "/proc/sys/kernel/seccomp/actions_avail"}
	case strings.Contains(status, "\nSeccomp_filters:"):
		return Result{Verdict: Pass, Observed: "filters", Place: r.Place}
	case !absent(err):
		return unknown(err)[0]
	}
	r.Observed = "without filters"
	return r
}

func rpFilter(_ context.Context, n *Node) Result {
	value := func(dev string) int64 {
		v, err := n.sysctlNumber("net/ipv4/conf/" + dev + "/rp_filter")
		if err != nil {
			return 0
		}
		return v
	}
	all, err := n.sysctlNumber("net.ipv4.conf.all.rp_filter")
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{Verdict: Pass, Observed: fmt.Sprintf("all %d, default %d", all, value("default")), Place: "/proc/sys/net/ipv4/conf"}
	devices, err := n.Host.Root.ReadDir("/proc/sys/net/ipv4/conf")
	if err != nil {
		return unknown(err)[0]
	}
	for _, d := range devices {
		dev := d.Name()
		// The larger of both numbers counts; 1 is strict, 2 is loose.
		inForce := max(all, value(dev))
		key := "net.ipv4.conf.all.rp_filter"
		if all != inForce {
			key = "net/ipv4/conf/" + dev + "/rp_filter"
		}
		switch cilium := strings.HasPrefix(dev, "cilium_") || strings.HasPrefix(dev, "lxc"); {
		case cilium && inForce == 1:
			return Result{
				Verdict: Fail, Object: dev, Observed: "strict", Wanted: "off, for Cilium", Place: n.sysctlPlace(key, "1"), Remedy: n.setLines(key, "0"),
			}
		case strings.HasPrefix(dev, "cali") && all == 2:
			return Result{
				Verdict: Fail, Object: dev, Observed: "loose", Wanted: "strict or off, for Calico", Place: n.sysctlPlace(key, "2"), Remedy: n.setLines(key, "1"),
			}
		}
	}
	return r
}

func inotify(_ context.Context, n *Node) []Result {
	instances, watches := int64(128), int64(8192)
	if n.forKubernetes() {
		instances, watches = 512, 65536
	}
	return minima(n, minimum{"fs.inotify.max_user_instances", instances}, minimum{"fs.inotify.max_user_watches", watches})
}

func keys(n *Node) []Result {
	if !n.exists("/proc/sys/kernel/keys") {
		return pass("this kernel keeps no keys")
	}
	// k3s asks for more than 10000 keys; the kernel's own choice is a million of 25 MB.
	return minima(n, minimum{"kernel.keys.root_maxkeys", 10001}, minimum{"kernel.keys.root_maxbytes", 250025})
}

func fileMax(n *Node) []Result {
	// 1048576 is what containerd's own unit had, and what Docker's images count on.
	least := int64(65536)
	if n.Spec != nil {
		if limit, err := strconv.ParseInt(n.Spec.Systemd.LimitNOFILE, 10, 64); err == nil {
			least = max(least, limit)
		}
	}
	results := minima(n, minimum{"fs.nr_open", least}, minimum{"fs.file-max", 65536})
	// Files open, 0, most (proc_sys_fs(5), file-nr).
	if f := strings.Fields(n.ifThere("/proc/sys/fs/file-nr")); len(f) == 3 && results[0].Verdict == Pass {
		results[0].Note = f[0] + " files are open"
		if almostFull(f[0], f[2]) {
			return []Result{{
				Verdict: Fail, Object: "fs.file-max", Observed: f[0] + " of " + f[2] + " files are open", Wanted: "less than 80 %",
				Place: n.sysctlPlace("fs.file-max", f[2]), Remedy: n.setLines("fs.file-max", doubled(f[2])),
			}}
		}
	}
	return results
}

// ifThere is a file's text, "" where it cannot be read: for what is only worth a note.
func (n *Node) ifThere(p string) string {
	s, err := n.text(p)
	if err != nil {
		return ""
	}
	return s
}

// almostFull reports whether more than four fifths are used.
func almostFull(used, most string) bool {
	u, err := strconv.ParseFloat(used, 64)
	m, err2 := strconv.ParseFloat(most, 64)
	return err == nil && err2 == nil && m > 0 && u > m*0.8
}

// doubled is twice a number, or the text itself where that would be too large.
func doubled(s string) string {
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil || v > 1<<61 {
		return s
	}
	return strconv.FormatInt(2*v, 10)
}

func pidMax(n *Node) []Result {
	results := minima(n, minimum{"kernel.pid_max", 32768}, minimum{"kernel.threads-max", 2048})
	// The fourth field is running/all tasks (proc_loadavg(5)).
	if f := strings.Fields(n.ifThere("/proc/loadavg")); len(f) == 5 && results[0].Verdict == Pass {
		_, tasks, _ := strings.Cut(f[3], "/")
		results[0].Note = tasks + " threads run"
		for _, key := range []string{"kernel.pid_max", "kernel.threads-max"} {
			if most, err := n.Sysctl(key); err == nil && almostFull(tasks, most) {
				return []Result{{
					Verdict: Fail, Object: key, Observed: tasks + " of " + most + " threads run", Wanted: "less than 80 %",
					Place: n.sysctlPlace(key, most), Remedy: n.setLines(key, doubled(most)),
				}}
			}
		}
	}
	return results
}

func conntrack(_ context.Context, n *Node) Result {
	const key = "net.netfilter.nf_conntrack_max"
	most, err := n.Sysctl(key)
	if absent(err) {
		return Result{Verdict: Pass, Observed: "nf_conntrack is not loaded"}
	}
	if err != nil {
		return unknown(err)[0]
	}
	count, err := n.Sysctl("net.netfilter.nf_conntrack_count")
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{Verdict: Pass, Observed: count + " of " + most + " connections"}
	if almostFull(count, most) {
		r.Verdict, r.Wanted, r.Place, r.Remedy = Fail, "less than 80 %", n.sysctlPlace(key, most), n.setLines(key, doubled(most))
	}
	return r
}

func userNamespaces(_ context.Context, n *Node) Result {
	if !n.hasNamespace("user") {
		return Result{
			Verdict: Fail, Observed: "not in this kernel", Wanted: "/proc/self/ns/user", Place: "/proc/self/ns",
			Remedy: "# install a kernel with CONFIG_USER_NS, and reboot",
		}
	}
	if r := n.noNamespaces("user"); r != nil {
		return *r
	}
	r := Result{Verdict: Pass, Observed: "allowed"}
	if v, err := n.Sysctl("kernel.unprivileged_userns_clone"); err == nil && v == "0" {
		r.Note = "kernel.unprivileged_userns_clone is 0: not for rootless containers"
	}
	if v, err := n.Sysctl("kernel.apparmor_restrict_unprivileged_userns"); err == nil && v == "1" {
		r.Note = "AppArmor restricts those of users: rootless containers need a profile"
	}
	release, err := n.KernelRelease()
	if err == nil {
		if major, minor, err := kernelNumbers(release); err == nil && (major < 6 || major == 6 && minor < 3) {
			r.Note = strings.TrimPrefix(r.Note+"; ", "; ") + "pods with hostUsers: false need Linux 6.3, for tmpfs with mapped ids"
		}
	}
	return r
}

func kubeletProtect(_ context.Context, n *Node) []Result {
	kubelet, err := n.Kubelet()
	if err != nil {
		return unknown(err)
	}
	if kubelet == nil || kubelet.ProtectKernelDefaults == nil || !*kubelet.ProtectKernelDefaults {
		return pass("the kubelet sets what it needs itself")
	}
	var faults []Result
	for _, w := range []wantedSysctl{
		{key: "vm.overcommit_memory", value: "1"}, {key: "vm.panic_on_oom", value: "0"}, {key: "kernel.panic", value: "10"},
		{key: "kernel.panic_on_oops", value: "1"}, {key: "kernel.keys.root_maxkeys", value: "1000000"}, {key: "kernel.keys.root_maxbytes", value: "25000000"},
	} {
		value, err := n.Sysctl(w.key)
		switch {
		case absent(err), err == nil && sameValue(value, w.value):
			continue
		case err != nil:
			return unknown(err)
		}
		faults = append(faults, Result{
			Verdict: Fail, Object: w.key, Observed: value, Wanted: w.value, Place: n.sysctlPlace(w.key, value), Remedy: n.setLines(w.key, w.value),
			Note: kubelet.Place("protectKernelDefaults") + " has protectKernelDefaults",
		})
	}
	return orPass(faults, "as the kubelet wants them")
}

func overcommit(_ context.Context, n *Node) Result {
	const key = "vm.overcommit_memory"
	v, err := n.Sysctl(key)
	if err != nil {
		return unknown(err)[0]
	}
	if v != "2" {
		return Result{Verdict: Pass, Observed: v}
	}
	return Result{Verdict: Fail, Observed: "2: the kernel promises no more than it has", Wanted: "0 or 1", Place: n.sysctlPlace(key, v), Remedy: n.setLines(key, "1")}
}
