package checks

import (
	"context"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// baseChecks are about the base system: its clock, identity, tools and security modules.
func baseChecks() []Check {
	return []Check{
		{
			ID: "host/clock", Stage: Preflight, Severity: Required,
			Why:    "With a clock that is years off, as on a board without a battery, no certificate is valid: each pull ends in a TLS error.",
			Source: "RFC 5280 section 4.1.2.5; systemd-timesyncd.service(8), /var/lib/systemd/timesync/clock",
			Needs:  []string{NeedLive},
			Remedy: "set the time, and let a time service keep it",
			Run:    single(clock),
		},
		{
			ID: "host/time-sync", Stage: Preflight, Severity: Recommended,
			Why:    "Clocks drift by seconds a day: tokens and certificates are refused first, and leases of a cluster's database next.",
			Source: "systemd-timesyncd.service(8); etcd documentation, Hardware recommendations",
			Needs:  []string{NeedLive, NeedSystemd},
			Remedy: "enable systemd-timesyncd or chrony",
			Run:    single(timeSync),
		},
		{
			ID: "host/machine-id", Stage: Preflight, Severity: Recommended,
			Why:    "Network addons, DHCP and the kubelet tell nodes apart by it: an empty one changes with each boot.",
			Source: "machine-id(5)",
			Remedy: "systemd-machine-id-setup",
			Run:    single(machineID),
		},
		{
			ID: "host/dbus", Stage: Preflight, Severity: Required,
			Why:    "With the systemd cgroup driver, runc has systemd make each container's scope, over D-Bus; without an answer no container starts.",
			Source: "runc docs/systemd.md; go-systemd dbus.NewWithContext",
			Needs:  []string{NeedLive, "host/init"},
			Remedy: "install and start dbus",
			Run:    single(dbusSocket),
		},
		{
			ID: "host/systemd-version", Stage: Preflight, Severity: Recommended,
			Why:    "Before 244 systemd does not delegate the cpuset controller of cgroup v2; before 240 services have too few file descriptors.",
			Source: "runc docs/cgroup-v2.md; systemd NEWS, 240 and 244",
			Remedy: "use a distribution with systemd 244 or newer",
			Run:    single(systemdVersion),
		},
		{
			ID: "host/tools", Stage: Preflight, Severity: Recommended,
			Why:    "Programs that containerd, its unit or a kubelet run: without one, something fails later that does not name it.",
			Source: "kubeadm preflight FileExisting; k0s sysinfo, Executable in PATH",
			Remedy: "install the package that has the program",
			Run:    tools,
		},
		{
			ID: "host/apparmor-parser", Stage: Preflight, Severity: Required,
			Why:    "With AppArmor in the kernel and no apparmor_parser, containerd before 1.6.18 starts no container; newer ones start them without a profile.",
			Source: "containerd issues 8123 and 7547, PRs 8086 and 8087; pkg/apparmor",
			Needs:  []string{NeedLive},
			Remedy: "install apparmor, which has apparmor_parser",
			Run:    single(apparmorParser),
		},
		{
			ID: "host/selinux", Stage: Preflight, Severity: Recommended,
			Why:    "Enforcing without the policy of container-selinux, or with enable_selinux off, containers are refused or run unconfined.",
			Source: "containerd docs/cri/config.md, enable_selinux; container_selinux(8)",
			Needs:  []string{NeedLive},
			Remedy: "install container-selinux and set enable_selinux",
			Run:    selinux,
		},
		{
			ID: "host/virtualisation", Stage: Preflight, Severity: Recommended,
			Why:    "In a container a daemon may not lower its OOM score, load modules or mount an overlay on an overlay.",
			Source: "systemd-detect-virt(1); container-interface (systemd.io/CONTAINER_INTERFACE)",
			Needs:  []string{NeedLive},
			Remedy: "use a machine of its own, or a privileged container with nesting",
			Run:    single(virtualisation),
		},
	}
}

// newestRelease is the day of the newest release that this program knows of
// (internal/releases): it cannot run before that.
func newestRelease() time.Time { return time.Date(2026, 8, 12, 0, 0, 0, 0, time.UTC) }

// TooEarly says whether a time cannot be that of now: one from before this program was. A day
// is what time zones and small faults come to.
func TooEarly(now time.Time) bool { return !now.After(newestRelease().Add(-24 * time.Hour)) }

func clock(_ context.Context, n *Node) Result {
	now, known := n.Host.Now(), newestRelease()
	plausible := func(t time.Time) bool {
		return !TooEarly(t) && t.Before(known.AddDate(10, 0, 0)) // ten years is what a program lasts
	}
	r := Result{Verdict: Pass, Observed: now.UTC().Format(time.DateTime) + " UTC"}
	// What was written by a clock may be wrong itself.
	var last time.Time
	var by string
	if fi, err := n.Host.Root.Stat("/var/lib/systemd/timesync/clock"); err == nil {
		last, by = fi.ModTime(), "systemd-timesyncd's record"
	}
	if n.Receipt != nil && n.Receipt.Time.After(last) {
		last, by = n.Receipt.Time, "the last apply"
	}
	switch {
	case TooEarly(now):
		r.Verdict, r.Wanted = Fail, "after "+known.Format(time.DateOnly)+", when the newest release that this program knows came out"
	case !plausible(now):
		r.Verdict, r.Wanted = Fail, "before "+known.AddDate(10, 0, 0).Format(time.DateOnly)
	case plausible(last) && now.Before(last.Add(-24*time.Hour)):
		r.Verdict, r.Wanted = Warn, "after "+last.UTC().Format(time.DateTime)+", the time of "+by
	default:
		return r
	}
	r.Place = "the system clock"
	const rtc = "/sys/class/rtc/rtc0/since_epoch"
	r.Remedy = "# set the time by hand: date -u -s 'YEAR-MONTH-DAY HOUR:MINUTE'; then let a time service keep it\ntimedatectl set-ntp true"
	if s, err := n.text(rtc); err == nil {
		if epoch, err := strconv.ParseInt(s, 10, 64); err == nil && plausible(time.Unix(epoch, 0)) {
			r.Remedy = "# the battery-backed clock has a time that may be right\ndate -u -s \"@$(cat " + rtc + ")\""
		}
	}
	return r
}

func timeSync(_ context.Context, n *Node) Result {
	var installed []string
	for _, unit := range []string{
		"systemd-timesyncd.service", "chronyd.service", "chrony.service", "ntpsec.service", "ntpd.service", "ntp.service", "openntpd.service",
	} {
		if n.unitFile(unit) == "" {
			continue
		}
		installed = append(installed, unit)
		on, err := n.active(unit)
		if err != nil {
			return unknown(err)[0]
		}
		if !on {
			continue
		}
		r := Result{Verdict: Pass, Observed: unit + " runs", Place: unit}
		if unit == "systemd-timesyncd.service" && n.exists("/run/systemd/timesync/synchronized") {
			r.Observed += " and has set the clock"
		}
		return r
	}
	r := Result{Verdict: Warn, Observed: "no time service is installed", Wanted: "systemd-timesyncd, chrony or another", Remedy: n.installLine("chrony", "chrony")}
	if len(installed) > 0 {
		r.Observed, r.Place = installed[0]+" does not run", installed[0]
		r.Remedy = "systemctl enable --now " + installed[0]
	}
	return r
}

func machineID(_ context.Context, n *Node) Result {
	const place = "/etc/machine-id"
	r := Result{Verdict: Pass, Observed: "set", Place: place, Wanted: "32 hexadecimal digits", Remedy: "rm -f /etc/machine-id\nsystemd-machine-id-setup"}
	id, err := n.text(place)
	switch {
	case err != nil && !absent(err):
		return unknown(err)[0]
	case err != nil && n.Live:
		r.Verdict, r.Observed = Warn, "there is none"
	case !n.Live && (err != nil || id == "" || id == "uninitialized"):
		r.Observed = "not set, so that each machine of this image gets its own"
	case !n.Live:
		r.Verdict, r.Observed, r.Wanted = Warn, "set in the image, the same for all machines made of it", "uninitialized"
		r.Remedy = "echo uninitialized > " + n.word(place)
	case id == "" || id == "uninitialized":
		r.Verdict, r.Observed = Warn, strconv.Quote(id)
	case len(id) != 32 || strings.Trim(id, "0123456789abcdef") != "":
		r.Verdict, r.Observed = Warn, "no machine ID"
	}
	if r.Verdict == Pass {
		r.Wanted, r.Remedy = "", ""
	}
	return r
}

// systemdCgroup says whether a runtime has systemd make its cgroups.
func (n *Node) systemdCgroup() bool {
	if n.Spec != nil && n.Applying {
		return n.Spec.Containerd.SystemdCgroup
	}
	c, err := n.Config()
	if err != nil {
		return true
	}
	for _, r := range c.Runtimes() {
		if r.SystemdCgroup {
			return true
		}
	}
	return n.Spec != nil && !c.Exists && n.Spec.Containerd.SystemdCgroup
}

func dbusSocket(_ context.Context, n *Node) Result {
	if !n.systemdCgroup() {
		return Result{Verdict: Skip, Observed: "no runtime uses the systemd cgroup driver"}
	}
	const bus, private = "/run/dbus/system_bus_socket", "/run/systemd/private"
	open, err := n.listening()
	if err != nil {
		return unknown(err)[0]
	}
	isSocket := func(p string) bool {
		fi, err := n.Host.Root.Stat(p)
		return err == nil && fi.Mode().Type() == fs.ModeSocket && open[p]
	}
	r := Result{Verdict: Pass, Observed: bus + " is there"}
	if isSocket(bus) {
		return r
	}
	r.Verdict, r.Observed, r.Wanted, r.Place = Fail, "nobody listens at "+bus, "the system bus", bus
	r.Remedy = n.installLine("dbus", "dbus")
	if n.unitFile("dbus.socket") != "" {
		r.Remedy = "systemctl start dbus.socket"
	}
	if isSocket(private) {
		r.Verdict, r.Note = Warn, "runc falls back on "+private+", and crun does not"
	}
	return r
}

// listening are the paths of the sockets at which somebody listens (/proc/net/unix: flag
// __SO_ACCEPTCON). The socket file of a bus that was stopped stays behind.
func (n *Node) listening() (map[string]bool, error) {
	text, err := n.text("/proc/net/unix")
	if err != nil {
		return nil, err
	}
	open := map[string]bool{}
	for line := range strings.Lines(text) {
		// Num RefCount Protocol Flags Type St Inode Path
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		if flags, err := strconv.ParseUint(f[3], 16, 32); err == nil && flags&(1<<16) != 0 {
			open[strings.Replace(f[7], "/var/run/", "/run/", 1)] = true
		}
	}
	return open, nil
}

func systemdVersion(_ context.Context, n *Node) Result {
	v := n.Facts.Systemd
	r := Result{Verdict: Pass, Observed: "systemd " + strconv.Itoa(v), Wanted: "244 or newer"}
	switch {
	case v == 0:
		return unknown(fmt.Errorf("no libsystemd-shared tells systemd's version"))[0]
	case v < 240:
		r.Verdict, r.Note = Warn, "cpuset is not delegated on cgroup v2, and services have 4096 file descriptors unless LimitNOFILE says more"
	case v < 244:
		r.Verdict, r.Note = Warn, "cpuset is not delegated on cgroup v2"
	default:
		r.Wanted = ""
	}
	return r
}

// tool is a program that somebody runs, and the packages that have it.
type tool struct {
	name, debian, redhat string
	// by is what runs it.
	by string
}

func (n *Node) wantedTools() []tool {
	all := []tool{
		{"mount", "mount", "util-linux", "containerd's users"},
		{"umount", "mount", "util-linux", "containerd's users"},
		{"modprobe", "kmod", "kmod", "containerd.service, before the daemon"},
	}
	if !n.forKubernetes() {
		return all
	}
	all = append(all,
		tool{"ip", "iproute2", "iproute", "kubeadm and network addons"},
		tool{"iptables", "iptables", "iptables", "kubelet and kube-proxy"},
		tool{"nsenter", "util-linux", "util-linux", "kubelet"},
		tool{"ethtool", "ethtool", "ethtool", "network addons"},
		tool{"tc", "iproute2", "iproute-tc", "the CNI plugin bandwidth"},
		tool{"losetup", "mount", "util-linux", "kubeadm, and raw block volumes"},
		tool{"cp", "coreutils", "coreutils", "kubeadm"},
		tool{"touch", "coreutils", "coreutils", "kubeadm"},
	)
	version := ""
	if n.Spec != nil {
		version = n.Spec.Kubernetes
	}
	if k, err := n.Kubelet(); version == "" && err == nil && k != nil {
		version = k.Version
	}
	// kubeadm asked for these up to 1.31, and what used them is gone.
	if minor, ok := kubernetesMinor(version); ok && minor < 32 {
		all = append(all,
			tool{"conntrack", "conntrack", "conntrack-tools", "kube-proxy"},
			tool{"socat", "socat", "socat", "kubectl port-forward"},
			tool{"ebtables", "ebtables", "ebtables", "kubelet"},
		)
	}
	return all
}

// kubernetesMinor is the 31 of 1.31 and 1.31.4.
func kubernetesMinor(version string) (int, bool) {
	f := strings.Split(strings.TrimPrefix(version, "v"), ".")
	if len(f) < 2 || f[0] != "1" {
		return 0, false
	}
	minor, err := strconv.Atoi(f[1])
	return minor, err == nil
}

func tools(_ context.Context, n *Node) []Result {
	var faults []Result
	var found []string
	for _, t := range n.wantedTools() {
		if n.tool(t.name) != "" {
			found = append(found, t.name)
			continue
		}
		faults = append(faults, Result{
			Verdict: Warn, Object: t.name, Observed: "not on the PATH of services", Wanted: t.name + ", for " + t.by,
			Place: servicePath, Remedy: n.installLine(t.debian, t.redhat),
		})
	}
	return orPass(faults, "%s", strings.Join(found, ", "))
}

func apparmorParser(_ context.Context, n *Node) Result {
	const place, parser = "/sys/module/apparmor/parameters/enabled", "/sbin/apparmor_parser"
	enabled, err := n.text(place)
	switch {
	case err != nil && !absent(err):
		return unknown(err)[0]
	case err != nil || enabled != "Y":
		return Result{Verdict: Pass, Observed: "AppArmor is not enabled in the kernel"}
	case n.exists(parser):
		return Result{Verdict: Pass, Observed: parser + " is there", Place: parser}
	}
	r := Result{
		Verdict: Warn, Observed: "AppArmor is enabled, and there is no " + parser, Wanted: parser, Place: place,
		Remedy: n.installLine("apparmor", "apparmor-parser"),
		Note:   "containers run without an AppArmor profile, and pods that ask for one are refused",
	}
	v, _, err := n.Release()
	if n.Applying && n.Spec != nil && n.Spec.Containerd.Installed() {
		v, err = n.Spec.Containerd.Version, nil
	}
	if err == nil && v.Major != 0 && !v.AtLeast(1, 6, 18) {
		r.Verdict, r.Note = Fail, "containerd "+v.String()+" starts no container so"
	}
	return r
}

func selinux(_ context.Context, n *Node) []Result {
	const place = "/sys/fs/selinux/enforce"
	enforce, err := n.text(place)
	switch {
	case absent(err):
		return pass("SELinux is not in use")
	case err != nil:
		return unknown(err)
	case enforce != "1":
		return pass("SELinux is permissive")
	}
	var faults []Result
	if !n.containerPolicy() {
		faults = append(faults, Result{
			Verdict: Warn, Object: "policy", Observed: "SELinux is enforcing, and the module container is not in its policy", Wanted: "container-selinux",
			Place: place, Remedy: n.installLine("container-selinux", "container-selinux"),
		})
	}
	on := false
	if c, err := n.Config(); err == nil {
		for _, plugin := range []string{"io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"} {
			if v, _, ok := c.Get("plugins", plugin, "enable_selinux"); ok {
				on, _ = v.(bool)
			}
		}
	}
	if n.Spec != nil {
		for _, plugin := range []string{"io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri"} {
			if v, ok := setting(n.Spec.Containerd.Settings, "plugins", plugin, "enable_selinux").(bool); ok {
				on = v
			}
		}
	}
	if !on {
		faults = append(faults, Result{
			Verdict: Warn, Object: "enable_selinux", Observed: "false: containers run without labels of their own", Wanted: "true where SELinux is enforcing",
			Place: n.ConfigPath(), Remedy: "# set enable_selinux: true in containerd.settings, in the section of CRI's runtime",
		})
	}
	return orPass(faults, "SELinux is enforcing, with container-selinux and enable_selinux")
}

// containerPolicy says whether the policy has container-selinux's module. Who may not
// look into the store takes the package's own folder for it.
func (n *Node) containerPolicy() bool {
	for _, p := range []string{"/usr/share/selinux/packages/container.pp.bz2", "/usr/share/containers/selinux/contexts", "/usr/share/selinux/devel/include/services/container.if"} {
		if n.exists(p) {
			return true
		}
	}
	for _, store := range []string{"/var/lib/selinux", "/etc/selinux"} {
		for _, policy := range []string{"targeted", "default", "mls"} {
			priorities, err := n.Host.Root.ReadDir(path.Join(store, policy, "active/modules"))
			if err != nil {
				continue
			}
			if slices.ContainsFunc(priorities, func(e fs.DirEntry) bool {
				return n.exists(path.Join(store, policy, "active/modules", e.Name(), "container"))
			}) {
				return true
			}
		}
	}
	return false
}

func virtualisation(_ context.Context, n *Node) Result {
	r := Result{
		Verdict: Warn, Wanted: "a machine, real or virtual",
		Note: "without privileges neither OOM scores, modules nor sysctls can be set, and overlay needs a volume below containerd's root",
	}
	if kind, err := n.text("/run/systemd/container"); err == nil && kind != "" {
		r.Observed, r.Place = "a container ("+kind+")", "/run/systemd/container"
		return r
	}
	for _, p := range []string{"/.dockerenv", "/run/.containerenv"} {
		if n.exists(p) {
			r.Observed, r.Place = "a container", p
			return r
		}
	}
	if env, err := n.Host.Root.ReadFile("/proc/1/environ"); err == nil {
		for v := range strings.SplitSeq(string(env), "\x00") {
			if kind, ok := strings.CutPrefix(v, "container="); ok && kind != "" {
				r.Observed, r.Place = "a container ("+kind+")", "/proc/1/environ"
				return r
			}
		}
	}
	return Result{Verdict: Pass, Observed: "no container"}
}
