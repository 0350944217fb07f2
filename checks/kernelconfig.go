package checks

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// kernelOption is an option of the kernel's config that a node needs, or may want.
type kernelOption struct {
	name string // without CONFIG_
	// module is what =m builds, "" for options that are never modules.
	module string
	// proof are files that are there only where the running kernel has the option, one
	// of which will do; a kernel's config file may be another kernel's, or incomplete.
	proof []string
	// elsewhere is the check that asks the running kernel for what the option brings.
	elsewhere string
	v1, v2    bool // only for that mode of cgroups
	optional  bool
}

// kernelOptions are those that kubeadm's system-validators, k0s sysinfo and k3s
// check-config require, as far as a container runtime and the networks of pods use them.
// Those that only one of them wants, or only one kind of network, are optional.
func kernelOptions() []kernelOption {
	const ns, controllers = "kernel/namespaces", "kernel/cgroup-controllers"
	weight := []string{"/sys/fs/cgroup/system.slice/cpu.weight", "/sys/fs/cgroup/init.scope/cpu.weight", "/sys/fs/cgroup/cpu/cpu.shares", "/sys/fs/cgroup/cpu,cpuacct/cpu.shares"}
	quota := []string{"/sys/fs/cgroup/system.slice/cpu.max", "/sys/fs/cgroup/init.scope/cpu.max", "/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us"}
	return []kernelOption{
		{name: "NAMESPACES", elsewhere: ns},
		{name: "NET_NS", elsewhere: ns},
		{name: "PID_NS", elsewhere: ns},
		{name: "IPC_NS", elsewhere: ns},
		{name: "UTS_NS", elsewhere: ns},
		{name: "CGROUPS", elsewhere: controllers},
		{name: "CGROUP_PIDS", elsewhere: controllers},
		{name: "CGROUP_SCHED", elsewhere: controllers},
		{name: "CPUSETS", elsewhere: controllers},
		{name: "MEMCG", elsewhere: "board/memory-cgroup"},
		{name: "CGROUP_CPUACCT", v1: true, elsewhere: controllers},
		{name: "CGROUP_DEVICE", v1: true, elsewhere: controllers},
		{name: "CGROUP_FREEZER", v1: true, elsewhere: controllers},
		{name: "CGROUP_BPF", v2: true},
		{name: "SECCOMP", elsewhere: "kernel/seccomp"},
		{name: "SECCOMP_FILTER", elsewhere: "kernel/seccomp"},
		{name: "FAIR_GROUP_SCHED", proof: weight},
		{name: "PROC_FS", proof: []string{"/proc/self/status"}},
		{name: "POSIX_MQUEUE", proof: []string{"/proc/sys/fs/mqueue"}},
		{name: "NET", proof: []string{"/proc/sys/net"}},
		{name: "INET", proof: []string{"/proc/sys/net/ipv4"}},
		{name: "VETH", module: "veth"},
		{name: "NETFILTER", proof: []string{"/proc/sys/net/netfilter"}},
		{name: "NETFILTER_XTABLES", module: "x_tables", proof: []string{"/proc/net/ip_tables_names"}},
		{name: "NF_CONNTRACK", module: "nf_conntrack"},
		{name: "NETFILTER_XT_MATCH_COMMENT", module: "xt_comment"},
		{name: "NETFILTER_XT_TARGET_REDIRECT", module: "xt_REDIRECT"},

		{name: "OVERLAY_FS", module: "overlay", elsewhere: "kernel/overlay", optional: true},
		{name: "EXT4_FS", module: "ext4", optional: true},
		{name: "KEYS", proof: []string{"/proc/sys/kernel/keys"}, optional: true},
		{name: "USER_NS", proof: []string{"/proc/self/uid_map"}, optional: true},
		{name: "CFS_BANDWIDTH", proof: quota, optional: true},
		{name: "BLK_CGROUP", optional: true},
		{name: "BLK_DEV_THROTTLING", optional: true},
		{name: "CGROUP_HUGETLB", optional: true},
		{name: "CGROUP_PERF", optional: true},
		{name: "BLK_DEV_DM", module: "dm_mod", optional: true},
		{name: "BRIDGE", module: "bridge", optional: true},
		{name: "BRIDGE_NETFILTER", module: "br_netfilter", optional: true},
		{name: "VXLAN", module: "vxlan", optional: true},
		{name: "IPV6", proof: []string{"/proc/sys/net/ipv6"}, optional: true},
		{name: "NETFILTER_ADVANCED", optional: true},
		{name: "NF_NAT", module: "nf_nat", optional: true},
		{name: "NF_TABLES", module: "nf_tables", optional: true},
		{name: "NETFILTER_XT_MATCH_ADDRTYPE", module: "xt_addrtype", optional: true},
		{name: "NETFILTER_XT_MATCH_CONNTRACK", module: "xt_conntrack", optional: true},
		{name: "NETFILTER_XT_MATCH_MULTIPORT", module: "xt_multiport", optional: true},
		{name: "NETFILTER_XT_MATCH_STATISTIC", module: "xt_statistic", optional: true},
		{name: "NETFILTER_XT_TARGET_MASQUERADE", module: "xt_MASQUERADE", optional: true},
		{name: "IP_VS", module: "ip_vs", optional: true},
		{name: "IP_SET", module: "ip_set", optional: true},
	}
}

// optionState is what is known of an option of one kernel.
type optionState struct {
	kernelOption
	has   bool
	known bool   // false: no file and no trace tells
	why   string // where it is not there: "is not set", "is a module that is not there"
}

// option finds out whether a kernel has an option; c is nil where its config is not known.
// What the running kernel shows goes before what a file says.
func (n *Node) option(release string, o kernelOption, c *KernelConfig) (optionState, error) {
	s := optionState{kernelOption: o, has: true, known: true}
	if n.Live && slices.ContainsFunc(o.proof, n.exists) {
		return s, nil
	}
	if o.module != "" {
		// Also without a config: a module's file is as good as its option.
		state, err := n.moduleIn(release, o.module)
		if err != nil || state != ModuleMissing {
			return s, err
		}
	}
	s.has = false
	switch {
	case c == nil, c.Options[o.name] == "m" && o.module != "" && !n.hasModuleFiles(release):
		s.known = false
	case c.Options[o.name] == "y":
		s.has = true
	case c.Options[o.name] == "m" && o.module == "":
		s.has = true
	case c.Options[o.name] == "m":
		s.why = "=m, and " + o.module + " is not in /lib/modules/" + release
	default:
		s.why = "is not set"
	}
	return s, nil
}

// hasModuleFiles reports whether files can tell which modules a kernel has; a container sees
// none of them.
func (n *Node) hasModuleFiles(release string) bool {
	files, err := n.moduleFiles(release)
	return err == nil && files.dir != ""
}

func kernelConfig(_ context.Context, n *Node) []Result { return n.optionResults(false) }

func kernelConfigOptional(_ context.Context, n *Node) []Result { return n.optionResults(true) }

// optionResults is one result for each kernel.
func (n *Node) optionResults(optional bool) []Result {
	kernels, err := n.Kernels()
	if errors.Is(err, errNoKernel) {
		return skip("%v", err)
	}
	if err != nil {
		return unknown(err)
	}
	var results []Result
	for _, release := range kernels {
		r, err := n.optionResult(release, optional)
		if err != nil {
			return unknown(err)
		}
		if len(kernels) > 1 {
			r.Object = release
		}
		results = append(results, r)
	}
	return results
}

func (n *Node) optionResult(release string, optional bool) (Result, error) {
	var config *KernelConfig
	place := "the running kernel"
	c, configErr := n.kernelConfigOf(release)
	if configErr == nil {
		config, place = &c, c.Path
	}
	// An image will most likely boot with cgroup v2.
	mode := CgroupV2
	if n.Live {
		m, err := n.CgroupMode()
		if err != nil {
			return Result{}, err
		}
		mode = m
	}
	bridge := n.Spec != nil && n.Spec.CNI.Network != nil
	var have int
	var missing, wanted, unclear, modules []string
	for _, o := range kernelOptions() {
		if bridge && o.name == "BRIDGE" {
			o.optional = false
		}
		if o.optional != optional || o.v1 && mode == CgroupV2 || o.v2 && mode != CgroupV2 || n.Live && o.elsewhere != "" {
			continue
		}
		s, err := n.option(release, o, config)
		switch {
		case err != nil:
			return Result{}, err
		case s.has:
			have++
		case !s.known:
			unclear = append(unclear, "CONFIG_"+o.name)
		default:
			missing = append(missing, "CONFIG_"+o.name+" "+s.why)
			wanted = append(wanted, "CONFIG_"+o.name)
			if o.module != "" && config.Options[o.name] == "m" {
				modules = append(modules, o.module)
			}
		}
	}
	r := Result{Verdict: Pass, Observed: fmt.Sprintf("%d options are there", have), Place: place}
	switch {
	case len(missing) > 0:
		r.Verdict, r.Observed, r.Wanted = Fail, strings.Join(missing, ", "), strings.Join(wanted, ", ")
		r.Remedy = n.modulesRemedy(release)
		if len(modules) < len(missing) {
			r.Remedy = "# install a kernel that has " + r.Wanted + ", and reboot"
		}
	case len(unclear) > 0:
		r.Verdict, r.Place = Unknown, ""
		r.Observed = fmt.Sprintf("%d options are seen at work, and nothing shows %s", have, strings.Join(unclear, ", "))
		if configErr != nil {
			r.Note = configErr.Error()
		}
	}
	return r, nil
}

// modulesRemedy are the shell lines that bring back the modules of a kernel.
func (n *Node) modulesRemedy(release string) string {
	if files, err := n.moduleFiles(release); err == nil && files.dir == "" && n.Live {
		if others, err := n.Host.Root.ReadDir("/lib/modules"); err == nil && len(others) > 0 {
			return "# the modules of " + release + ", which runs, were removed, such as by an upgrade to " + others[len(others)-1].Name() + "\nreboot"
		}
	}
	line := ""
	switch os, err := n.text("/etc/os-release"); {
	case err == nil && strings.Contains("\n"+os+"\n", "\nID=ubuntu\n"):
		line = "apt-get install -y linux-modules-extra-" + release
	case n.tool("apt-get") != "":
		line = "apt-get install -y --reinstall linux-image-" + release
	case n.tool("dnf") != "":
		// Of Red Hat's, what is less used, such as xt_comment, is in the second one.
		line = "dnf install -y kernel-modules-" + release + " kernel-modules-extra-" + release
	default:
		return "# install the package with all modules of kernel " + release
	}
	if !n.Live {
		line = "chroot " + quote(n.Host.Root.Dir()) + " " + line
	}
	return line
}
