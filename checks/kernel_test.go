package checks

import (
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/profiles"
)

func forVersion(version string) func(*Outside) {
	return withSpec(profiles.Spec{Kubernetes: version})
}

func release(s string) files { return files{"/proc/sys/kernel/osrelease": s + "\n"} }

const (
	kubeletConfig = "/var/lib/kubelet/config.yaml"
	noProc        = "/proc/self/mountinfo"
)

func TestKernelVersion(t *testing.T) {
	expectAll(t, "kernel/version", map[string]hostCase{
		"new":               {want: want{verdict: Pass, observed: testKernel}},
		"newer":             {files: release("10.0.0-rc1+"), want: want{verdict: Pass}},
		"two digits":        {files: release("5.15.0-1-generic"), want: want{verdict: Pass}},
		"no patch level":    {files: release("6.9-arch"), want: want{verdict: Pass}},
		"without a freezer": {files: release("5.1.21"), want: want{verdict: Warn, observed: "5.1.21", wanted: "5.2 or newer"}},
		"RHEL 8":            {files: release("4.18.0-553.el8_10.x86_64"), want: want{verdict: Warn, wanted: "5.2 or newer"}},
		"just enough":       {files: release("4.15.0"), want: want{verdict: Warn}},
		"too old":           {files: release("4.14.98-v7+"), want: want{verdict: Fail, wanted: "4.15 or newer", remedy: "# install a newer kernel"}},
		"far too old":       {files: release("3.10.0-1160.el7.x86_64"), want: want{verdict: Fail}},
		"old, with v1":      {files: files{"/proc/sys/kernel/osrelease": "4.14.355-amzn2.x86_64\n", noProc: v1Mounts()}, want: want{verdict: Warn, observed: "4.14.355", wanted: "5.2 or newer"}},
		"older than v1":     {files: files{"/proc/sys/kernel/osrelease": "3.8.0\n", noProc: v1Mounts()}, want: want{verdict: Fail}},
		"no cgroups seen":   {files: files{noProc: gone}, want: want{verdict: Unknown}},
		"an old image":      {files: files{"/lib/modules/4.14.1/modules.builtin": ""}, with: []func(*Outside){image, func(o *Outside) { o.Facts.Systemd = 219 }}, want: want{verdict: Warn, observed: "4.14.1"}},
		"no version":        {files: release("custom"), want: want{verdict: Unknown, observed: `"custom" is no kernel release`}},
		"an image":          {with: []func(*Outside){image}, want: want{verdict: Pass, observed: testKernel}},
		"an image's oldest": {files: files{"/lib/modules/4.9.0/modules.builtin": ""}, with: []func(*Outside){image}, want: want{verdict: Fail, observed: "4.9.0"}},
		"no image's kernel": {files: files{lib + "/modules.builtin": gone}, with: []func(*Outside){image}, want: want{verdict: Skip}},
		"not to be listed":  {files: files{lib + "/modules.builtin": gone, lib + "/": gone, lib + "/modules.dep": gone, lib + "/modules.alias": gone, "/usr/lib/modules/": ""}, with: []func(*Outside){image}, want: want{verdict: Skip}},
	})
}

func TestNamespaces(t *testing.T) {
	most := "/proc/sys/user/max_net_namespaces"
	expectAll(t, "kernel/namespaces", map[string]hostCase{
		"all":            {want: want{verdict: Pass, observed: "mnt, pid, net, ipc, uts, cgroup"}},
		"without one":    {files: files{"/proc/self/ns/ipc": gone}, want: want{verdict: Fail, object: "ipc", observed: "not in this kernel", place: "/proc/self/ns", remedy: "# install a kernel"}},
		"v1 needs less":  {files: files{"/proc/self/ns/cgroup": gone, noProc: v1Mounts()}, want: want{verdict: Pass, observed: "mnt, pid, net, ipc, uts"}},
		"none allowed":   {files: files{most: "0\n"}, want: want{verdict: Fail, object: "user.max_net_namespaces", observed: "0", place: most, remedy: "sysctl -w user.max_net_namespaces=15500"}},
		"by a file":      {files: files{most: "0\n", "/etc/sysctl.d/a.conf": "user.max_net_namespaces=0\n"}, want: want{verdict: Fail, place: "/etc/sysctl.d/a.conf:1", remedy: ">> /etc/sysctl.d/a.zz.conf"}},
		"no limits":      {files: files{most: gone}, want: want{verdict: Pass}},
		"a broken limit": {files: files{most: "many\n"}, want: want{verdict: Unknown, observed: "no number"}},
	})
	expect(t, fake(t, files{}), "kernel/namespaces", want{verdict: Unknown})
}

func TestCgroupModeCheck(t *testing.T) {
	grub := "/etc/default/grub"
	off := "systemd.unified_cgroup_hierarchy=0"
	expectAll(t, "kernel/cgroup-mode", map[string]hostCase{
		"v2":     {want: want{verdict: Pass, observed: "v2"}},
		"v1":     {files: files{noProc: v1Mounts(), grub: "GRUB_CMDLINE_LINUX=\"\"\n"}, want: want{verdict: Fail, observed: "v1", wanted: "v2", place: grub, remedy: `echo 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX systemd.unified_cgroup_hierarchy=1"' >> /etc/default/grub` + "\nupdate-grub\nreboot"}},
		"hybrid": {files: files{noProc: v1Mounts() + "33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"}, want: want{verdict: Fail, observed: "hybrid", place: "/proc/cmdline"}},
		"turned off": {
			files: files{noProc: v1Mounts(), "/proc/cmdline": "ro " + off + "\n", grub: "# grub\nGRUB_CMDLINE_LINUX=\"quiet " + off + "\"\n"},
			want:  want{verdict: Fail, place: grub + ":2", remedy: `sed -i '2s/systemd\.unified_cgroup_hierarchy=0//' /etc/default/grub` + "\nupdate-grub\nreboot"},
		},
		"other words are left": {
			files: files{noProc: v1Mounts(), "/proc/cmdline": "panic=0\n", grub: "GRUB_CMDLINE_LINUX=\"panic=0\"\n"},
			want:  want{verdict: Fail, remedy: `$GRUB_CMDLINE_LINUX systemd.unified_cgroup_hierarchy=1"' >> ` + grub},
		},
		"not to be seen": {files: files{noProc: gone}, want: want{verdict: Unknown}},
	})
}

func TestCgroupV1(t *testing.T) {
	v1 := func(more files) files {
		f := files{noProc: v1Mounts()}
		for p, s := range more {
			f[p] = s
		}
		return f
	}
	refuses := want{verdict: Fail, observed: "cgroup v1", wanted: "v2", remedy: "reboot"}
	refuses.remedy = "# change the kernel command line"
	expectAll(t, "kernel/cgroup-v1", map[string]hostCase{
		"v2":                    {with: []func(*Outside){forVersion("1.36")}, want: want{verdict: Pass, observed: "cgroup v2"}},
		"an older Kubernetes":   {files: v1(nil), with: []func(*Outside){forVersion("1.34")}, want: want{verdict: Pass, observed: "which this kubelet takes"}},
		"a newer Kubernetes":    {files: v1(nil), with: []func(*Outside){forVersion("1.35")}, want: refuses},
		"the next major":        {files: v1(nil), with: []func(*Outside){forVersion("2.0")}, want: refuses},
		"it is said to take":    {files: v1(files{kubeletConfig: "kind: KubeletConfiguration\nfailCgroupV1: false\n"}), with: []func(*Outside){forVersion("1.36")}, want: want{verdict: Pass, place: kubeletConfig + ":2"}},
		"it is said to refuse":  {files: v1(files{kubeletConfig: "kind: KubeletConfiguration\nfailCgroupV1: true\n"}), want: refuses},
		"the profile's version": {files: v1(files{kubeletConfig: "kind: KubeletConfiguration\n"}), with: []func(*Outside){forVersion("1.36")}, want: refuses},
		"no kubelet":            {files: v1(nil), want: want{verdict: Skip}},
		"no version":            {files: v1(files{kubeletConfig: "kind: KubeletConfiguration\n"}), want: want{verdict: Unknown, observed: "version is not known"}},
		"a strange version":     {files: v1(nil), with: []func(*Outside){forVersion("latest")}, want: want{verdict: Unknown, observed: "cannot be read"}},
		"a broken kubelet":      {files: v1(files{kubeletConfig: "kind: [\n"}), want: want{verdict: Unknown}},
		"not to be seen":        {files: files{noProc: gone}, want: want{verdict: Unknown}},
	})
}

func TestCgroupControllers(t *testing.T) {
	all := "/sys/fs/cgroup/cgroup.controllers"
	expectAll(t, "kernel/cgroup-controllers", map[string]hostCase{
		"v2":          {want: want{verdict: Pass, observed: "cpu, cpuset, pids, memory", place: all}},
		"without one": {files: files{all: "cpu memory pids\n"}, want: want{verdict: Fail, object: "cpuset", observed: "not there", place: all, remedy: "# install a kernel that has the cgroup controller cpuset"}},
		"turned off": {
			files: files{all: "cpu memory pids\n", "/proc/cmdline": "cgroup_disable=cpuset,io ro\n", "/etc/default/grub": "GRUB_CMDLINE_LINUX='cgroup_disable=cpuset,io'\n"},
			want:  want{verdict: Fail, object: "cpuset", observed: "booted with cgroup_disable=cpuset,io", place: "/etc/default/grub:1", remedy: "sed -i '1s/cgroup_disable=cpuset,io/cgroup_disable=io/' /etc/default/grub\n"},
		},
		"held by v1": {
			files: files{all: "cpu memory pids\n", noProc: rootMount + v2Mount + "50 25 0:50 / /mnt/cpuset rw - cgroup none rw,cpuset\n"},
			want:  want{verdict: Fail, object: "cpuset", place: "/mnt/cpuset", remedy: "umount /mnt/cpuset"},
		},
		"v1":               {files: files{noProc: v1Mounts()}, want: want{verdict: Pass, observed: "cpu, cpuset, pids, cpuacct, devices, freezer, memory", place: "/proc/cgroups"}},
		"v1 without one":   {files: files{noProc: v1Mounts(), "/proc/cgroups": procCgroups(map[string]bool{"pids": true})}, want: want{verdict: Fail, object: "pids", place: "/proc/cgroups"}},
		"v1 not mounted":   {files: files{noProc: strings.Replace(v1Mounts(), "cgroup rw,freezer", "cgroup rw,none", 1)}, want: want{verdict: Fail, object: "freezer", observed: "not mounted", remedy: "mount -t cgroup -o freezer cgroup /sys/fs/cgroup/freezer"}},
		"nothing mounted":  {files: files{noProc: rootMount}, want: want{verdict: Fail, observed: "no cgroups are mounted", remedy: "mount -t cgroup2 none /sys/fs/cgroup"}},
		"not to be seen":   {files: files{noProc: gone}, want: want{verdict: Unknown}},
		"not to be read":   {files: files{all: gone}, want: want{verdict: Unknown}},
		"v1, not readable": {files: files{noProc: v1Mounts(), "/proc/cgroups": gone}, want: want{verdict: Unknown}},
	})
	got := results(t, linux(t, files{all: "cpuset cpu memory pids\n"}), "kernel/cgroup-controllers")
	if got[0].Verdict != Pass || !strings.Contains(got[0].Note, "without io") {
		t.Errorf("io is optional: %+v", got)
	}
}

func TestCgroupSubtree(t *testing.T) {
	pods := "/sys/fs/cgroup/kubepods.slice/cgroup.controllers"
	expectAll(t, "kernel/cgroup-subtree", map[string]hostCase{
		"no pods":        {want: want{verdict: Pass, observed: "no pods yet"}},
		"all":            {files: files{pods: "cpuset cpu io memory pids\n"}, want: want{verdict: Pass, observed: "the root passes down cpuset cpu"}},
		"some":           {files: files{pods: "memory pids\n"}, want: want{verdict: Fail, object: "kubepods.slice", observed: "without cpu, cpuset", place: "/sys/fs/cgroup/cgroup.subtree_control", remedy: "echo +cpu +cpuset > /sys/fs/cgroup/cgroup.subtree_control"}},
		"cgroupfs":       {files: files{"/sys/fs/cgroup/kubepods/cgroup.controllers": "cpu memory\n"}, want: want{verdict: Fail, object: "kubepods"}},
		"v1":             {files: files{noProc: v1Mounts()}, want: want{verdict: Skip}},
		"not to be seen": {files: files{noProc: gone}, want: want{verdict: Unknown}},
		"not to be read": {files: files{"/sys/fs/cgroup/cgroup.subtree_control": gone}, want: want{verdict: Unknown}},
		"pods unknown":   {files: files{pods + "/": ""}, want: want{verdict: Unknown}},
	})
}

func TestSeccomp(t *testing.T) {
	status, actions := "/proc/self/status", "/proc/sys/kernel/seccomp/actions_avail"
	expectAll(t, "kernel/seccomp", map[string]hostCase{
		"filters":         {want: want{verdict: Pass, observed: "filters with kill_process errno allow"}},
		"actions hidden":  {files: files{actions: gone}, want: want{verdict: Pass, observed: "filters"}},
		"without":         {files: files{status: "Name:\tx\n"}, want: want{verdict: Fail, observed: "not in this kernel", place: status, remedy: "# install a kernel"}},
		"without filters": {files: files{status: "Name:\tx\nSeccomp:\t0\n", actions: gone}, want: want{verdict: Fail, observed: "without filters"}},
		"not to be read":  {files: files{status: gone}, want: want{verdict: Unknown}},
		"nor the actions": {files: files{status: "Name:\tx\nSeccomp:\t0\n", actions: gone, actions + "/": ""}, want: want{verdict: Unknown}},
	})
}

func TestRPFilter(t *testing.T) {
	conf := "/proc/sys/net/ipv4/conf/"
	expectAll(t, "kernel/rp-filter", map[string]hostCase{
		"no such network":     {files: files{conf + "all/rp_filter": "1\n"}, want: want{verdict: Pass, observed: "all 1, default 2"}},
		"cilium, off":         {files: files{conf + "cilium_host/rp_filter": "0\n"}, want: want{verdict: Pass}},
		"cilium, strict":      {files: files{conf + "all/rp_filter": "1\n", conf + "lxc12ab/rp_filter": "0\n", "/etc/sysctl.d/a.conf": "net.ipv4.conf.all.rp_filter=1\n"}, want: want{verdict: Fail, object: "lxc12ab", observed: "strict", place: "/etc/sysctl.d/a.conf:1", remedy: "sysctl -w net.ipv4.conf.all.rp_filter=0"}},
		"cilium, a device":    {files: files{conf + "cilium_net/rp_filter": "1\n"}, want: want{verdict: Fail, remedy: "sysctl -w net/ipv4/conf/cilium_net/rp_filter=0"}},
		"calico, loose":       {files: files{conf + "all/rp_filter": "2\n", conf + "cali12ab/rp_filter": "0\n"}, want: want{verdict: Fail, object: "cali12ab", observed: "loose", wanted: "Calico", remedy: "=1"}},
		"calico, strict":      {files: files{conf + "all/rp_filter": "1\n", conf + "cali12ab/rp_filter": "1\n"}, want: want{verdict: Pass}},
		"not to be read":      {files: files{conf + "all/rp_filter": gone}, want: want{verdict: Unknown}},
		"a device without it": {files: files{conf + "lxc1/": ""}, want: want{verdict: Pass}},
	})
}

// Numbers that are too small, and what makes them larger.
func TestMinima(t *testing.T) {
	for id, c := range map[string]struct {
		file, small, key, least string
		with                    []func(*Outside)
	}{
		"kernel/inotify":  {"/proc/sys/fs/inotify/max_user_instances", "127", "fs.inotify.max_user_instances", "128", nil},
		"kernel/keys":     {"/proc/sys/kernel/keys/root_maxkeys", "10000", "kernel.keys.root_maxkeys", "10001", nil},
		"kernel/file-max": {"/proc/sys/fs/nr_open", "1024", "fs.nr_open", "65536", nil},
		"kernel/pid-max":  {"/proc/sys/kernel/pid_max", "4096", "kernel.pid_max", "32768", nil},
	} {
		expect(t, linux(t, nil), id, want{verdict: Pass, observed: c.key})
		n := linux(t, files{c.file: c.small + "\n"}, c.with...)
		expect(t, n, id, want{verdict: Fail, object: c.key, observed: c.small, wanted: c.least + " or more", place: c.file, remedy: "sysctl -w " + c.key + "=" + c.least + "\necho '" + c.key + " = " + c.least + "' >> /etc/sysctl.d/95-node.conf"})
		expect(t, linux(t, files{c.file: "many\n"}), id, want{verdict: Unknown, observed: "no number"})
	}
	node := []func(*Outside){forVersion("1.36")}
	expect(t, linux(t, nil, node...), "kernel/inotify",
		want{verdict: Fail, object: "fs.inotify.max_user_instances", wanted: "512 or more"}, want{verdict: Fail, object: "fs.inotify.max_user_watches", wanted: "65536 or more"})
	expect(t, linux(t, files{"/proc/sys/fs/inotify/max_user_instances": gone, "/proc/sys/fs/inotify/max_user_watches": gone}), "kernel/inotify", want{verdict: Unknown})
	expect(t, linux(t, files{"/proc/sys/kernel/keys/root_maxkeys": gone, "/proc/sys/kernel/keys/root_maxbytes": gone}), "kernel/keys", want{verdict: Pass, observed: "keeps no keys"})
	limit := withSpec(profiles.Spec{Systemd: profiles.Systemd{LimitNOFILE: "2097152"}})
	expect(t, linux(t, nil, limit), "kernel/file-max", want{verdict: Fail, object: "fs.nr_open", wanted: "2097152 or more"})
	expect(t, linux(t, nil, withSpec(profiles.Spec{Systemd: profiles.Systemd{LimitNOFILE: "infinity"}})), "kernel/file-max", want{verdict: Pass})
}

// What is nearly used up.
func TestNearTheLimit(t *testing.T) {
	expect(t, linux(t, files{"/proc/sys/fs/file-nr": "90000\t0\t100000\n", "/proc/sys/fs/file-max": "100000\n"}), "kernel/file-max",
		want{verdict: Fail, object: "fs.file-max", observed: "90000 of 100000", remedy: "sysctl -w fs.file-max=200000"})
	expect(t, linux(t, files{"/proc/loadavg": "0.0 0.0 0.0 1/30000 9\n"}), "kernel/pid-max",
		want{verdict: Fail, object: "kernel.threads-max", observed: "30000 of 31000", remedy: "sysctl -w kernel.threads-max=62000"})
	count, most := "/proc/sys/net/netfilter/nf_conntrack_count", "/proc/sys/net/netfilter/nf_conntrack_max"
	expectAll(t, "kernel/conntrack", map[string]hostCase{
		"few":            {want: want{verdict: Pass, observed: "12 of 65536"}},
		"many":           {files: files{count: "60000\n"}, want: want{verdict: Fail, observed: "60000 of 65536", place: most, remedy: "sysctl -w net.netfilter.nf_conntrack_max=131072"}},
		"not loaded":     {files: files{most: gone, count: gone}, want: want{verdict: Pass, observed: "not loaded"}},
		"not to be read": {files: files{count: gone}, want: want{verdict: Unknown}},
		"a folder":       {files: files{most: gone, most + "/": ""}, want: want{verdict: Unknown}},
	})
}

func TestUserNamespaces(t *testing.T) {
	most := "/proc/sys/user/max_user_namespaces"
	expectAll(t, "kernel/user-namespaces", map[string]hostCase{
		"allowed":       {want: want{verdict: Pass, observed: "allowed"}},
		"none":          {files: files{"/proc/self/ns/user": gone}, want: want{verdict: Fail, observed: "not in this kernel"}},
		"none allowed":  {files: files{most: "0\n"}, want: want{verdict: Fail, object: "user.max_user_namespaces", remedy: "sysctl -w user.max_user_namespaces=15500"}},
		"a broken file": {files: files{most: "\n"}, want: want{verdict: Unknown}},
	})
	n := linux(t, files{"/proc/sys/kernel/unprivileged_userns_clone": "0\n"})
	if got := results(t, n, "kernel/user-namespaces"); !strings.Contains(got[0].Note, "not for rootless") || !strings.Contains(got[0].Note, "Linux 6.3") {
		t.Errorf("%+v", got)
	}
	n = linux(t, files{"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n", "/proc/sys/kernel/osrelease": "6.8.0\n"})
	if got := results(t, n, "kernel/user-namespaces"); !strings.Contains(got[0].Note, "AppArmor") || strings.Contains(got[0].Note, "6.3") {
		t.Errorf("%+v", got)
	}
}

func TestKubeletProtect(t *testing.T) {
	protect := func(more files) files {
		f := files{
			kubeletConfig: "kind: KubeletConfiguration\nprotectKernelDefaults: true\n", "/proc/sys/vm/overcommit_memory": "1\n", "/proc/sys/vm/panic_on_oom": "0\n",
			"/proc/sys/kernel/panic": "10\n", "/proc/sys/kernel/panic_on_oops": "1\n",
		}
		for p, s := range more {
			f[p] = s
		}
		return f
	}
	expectAll(t, "kernel/kubelet-protect", map[string]hostCase{
		"it sets them":     {files: files{kubeletConfig: "kind: KubeletConfiguration\n"}, want: want{verdict: Pass, observed: "sets what it needs itself"}},
		"as it wants them": {files: protect(nil), want: want{verdict: Pass, observed: "as the kubelet wants"}},
		"another value":    {files: protect(files{"/proc/sys/kernel/panic": "0\n"}), want: want{verdict: Fail, object: "kernel.panic", observed: "0", wanted: "10", remedy: "sysctl -w kernel.panic=10\n"}},
		"not to be read":   {files: protect(files{"/proc/sys/kernel/panic": gone, "/proc/sys/kernel/panic/": ""}), want: want{verdict: Unknown}},
		"a broken kubelet": {files: files{kubeletConfig: "kind: [\n"}, want: want{verdict: Unknown}},
	})
}

func TestOvercommit(t *testing.T) {
	p := "/proc/sys/vm/overcommit_memory"
	expectAll(t, "kernel/overcommit", map[string]hostCase{
		"the kernel's guess": {want: want{verdict: Pass, observed: "0"}},
		"always":             {files: files{p: "1\n"}, want: want{verdict: Pass, observed: "1"}},
		"never":              {files: files{p: "2\n", "/etc/sysctl.d/db.conf": "vm.overcommit_memory = 2\n"}, want: want{verdict: Fail, observed: "2", wanted: "0 or 1", place: "/etc/sysctl.d/db.conf:1", remedy: "sysctl -w vm.overcommit_memory=1"}},
		"not to be read":     {files: files{p: gone}, want: want{verdict: Unknown}},
	})
}
