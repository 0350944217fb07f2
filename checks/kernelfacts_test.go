package checks

import (
	"bytes"
	"compress/gzip"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
)

const (
	testKernel = "6.1.0-28-cloud-amd64"
	lib        = "/lib/modules/" + testKernel
	rootMount  = "25 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw\n"
	v2Mount    = "31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
	// gone takes a file of the fake host away.
	gone = "\x00"
)

// linux is a host such as Debian 12's image for clouds, for which every check of the kernel
// holds, changed so.
func linux(t *testing.T, change files, more ...func(*Outside)) *Node {
	t.Helper()
	var config, builtin strings.Builder
	f := files{
		"/proc/sys/kernel/osrelease":                 testKernel + "\n",
		"/proc/self/mountinfo":                       rootMount + v2Mount,
		"/proc/self/status":                          "Name:\tnodeprep\nSeccomp:\t0\nSeccomp_filters:\t0\n",
		"/proc/filesystems":                          "nodev\tproc\nnodev\tcgroup2\n\text4\n",
		"/proc/cmdline":                              "BOOT_IMAGE=/boot/vmlinuz root=/dev/vda1 ro quiet\n",
		"/proc/cgroups":                              procCgroups(nil),
		"/proc/loadavg":                              "0.00 0.00 0.00 1/120 4242\n",
		"/proc/sys/fs/file-nr":                       "1000\t0\t9223372036854775807\n",
		"/proc/sys/fs/file-max":                      "9223372036854775807\n",
		"/proc/sys/fs/nr_open":                       "1048576\n",
		"/proc/sys/fs/mqueue/":                       "",
		"/proc/sys/fs/inotify/max_user_instances":    "128\n",
		"/proc/sys/fs/inotify/max_user_watches":      "62000\n",
		"/proc/sys/kernel/keys/root_maxkeys":         "1000000\n",
		"/proc/sys/kernel/keys/root_maxbytes":        "25000000\n",
		"/proc/sys/kernel/pid_max":                   "4194304\n",
		"/proc/sys/kernel/threads-max":               "31000\n",
		"/proc/sys/kernel/seccomp/actions_avail":     "kill_process errno allow\n",
		"/proc/sys/vm/overcommit_memory":             "0\n",
		"/proc/sys/net/ipv4/ip_forward":              "1\n",
		"/proc/sys/net/ipv4/conf/all/rp_filter":      "0\n",
		"/proc/sys/net/ipv4/conf/default/rp_filter":  "2\n",
		"/proc/sys/net/netfilter/nf_conntrack_max":   "65536\n",
		"/proc/sys/net/netfilter/nf_conntrack_count": "12\n",
		"/sys/fs/cgroup/cgroup.controllers":          "cpuset cpu io memory hugetlb pids rdma misc\n",
		"/sys/fs/cgroup/cgroup.subtree_control":      "cpuset cpu io memory pids\n",
		"/sys/fs/cgroup/init.scope/cpu.weight":       "100\n",
		"/sys/module/overlay/initstate":              "live\n",
		lib + "/modules.alias":                       "alias fs-overlay overlay\nalias pci:v00001AF4d* virtio_pci\n",
		"/usr/bin/containerd":                        "",
	}
	for _, kind := range []string{"mnt", "pid", "net", "ipc", "uts", "user", "cgroup"} {
		f["/proc/self/ns/"+kind] = "-> " + kind + ":[4026531840]"
		f["/proc/sys/user/max_"+kind+"_namespaces"] = "15000\n"
	}
	for _, o := range kernelOptions() {
		if o.module == "" {
			config.WriteString("CONFIG_" + o.name + "=y\n")
			continue
		}
		// These have files; of the others one line will do.
		if slices.Contains([]string{"overlay", "br_netfilter", "veth"}, o.module) {
			config.WriteString("CONFIG_" + o.name + "=m\n")
			f[lib+"/kernel/"+o.module+".ko.xz"] = "\x7fELF"
			f[lib+"/modules.dep"] += "kernel/" + o.module + ".ko.xz: kernel/other.ko.xz\n"
			continue
		}
		config.WriteString("CONFIG_" + o.name + "=y\n")
		builtin.WriteString("kernel/" + o.module + ".ko\n")
	}
	f["/boot/config-"+testKernel] = config.String() + "# CONFIG_AUFS_FS is not set\n"
	f[lib+"/modules.builtin"] = builtin.String() + "kernel/fs/fuse.ko\n"
	maps.Copy(f, change)
	maps.DeleteFunc(f, func(_, content string) bool { return content == gone })
	return fake(t, f, append([]func(*Outside){func(o *Outside) { o.Facts.SystemdInit = true }}, more...)...)
}

// procCgroups is /proc/cgroups with these controllers turned off.
func procCgroups(off map[string]bool) string {
	s := "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"
	for _, c := range []string{"cpuset", "cpu", "cpuacct", "blkio", "memory", "devices", "freezer", "pids", "hugetlb"} {
		enabled := "1"
		if off[c] {
			enabled = "0"
		}
		s += c + "\t1\t5\t" + enabled + "\n"
	}
	return s
}

// v1Mounts are cgroups of v1 with all of their controllers.
func v1Mounts() string {
	s := rootMount + "30 23 0:25 / /sys/fs/cgroup ro,nosuid shared:8 - tmpfs tmpfs ro,mode=755\n"
	for _, c := range []string{"cpuset", "cpu,cpuacct", "blkio", "memory", "devices", "freezer", "pids"} {
		s += "32 30 0:28 / /sys/fs/cgroup/" + c + " rw,nosuid shared:10 - cgroup cgroup rw," + c + "\n"
	}
	return s
}

// image makes the host a root directory that does not run.
func image(o *Outside) { o.Live = false }

func zipped(t *testing.T, s string) string {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := w.Write([]byte(s)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// On the fake Debian 12, no check of these families fails or warns.
func TestKernelOfAFreshDebian(t *testing.T) {
	n := linux(t, files{"/usr/lib/systemd/system/containerd.service": "[Service]\nExecStartPre=-/sbin/modprobe overlay\n"})
	n.Host.Uname = func() (host.Uname, error) { return host.Uname{Release: testKernel, Machine: "riscv64"}, nil }
	n.Host.PageSize = 4096
	for _, f := range Run(t.Context(), n, Selection{Only: []string{"kernel/*", "board/*"}}) {
		if f.Verdict != Pass && f.Verdict != Skip {
			t.Errorf("%s %s: %s", f.Verdict, f.ID, f.Result)
		}
	}
}

func TestMountOf(t *testing.T) {
	n := fake(t, files{
		"/proc/self/mountinfo": "22 27 0:21 / /proc rw - proc proc rw\n" + rootMount +
			"40 25 8:1 / /var/lib rw,noatime shared:3 master:1 - xfs /dev/sda1 rw,attr2\n" +
			"41 40 0:40 / /var/lib/my\\040disk rw - tmpfs tmpfs rw\n" +
			"42 25 8:2 /sub /var/lib rw - btrfs /dev/sdb1 rw\n" + "nonsense\n",
		"/data": "-> /var/lib",
	})
	for p, want := range map[string]string{
		"/etc/x": "/dev/vda1", "/var/library": "/dev/vda1", "/var/lib": "/dev/sdb1", "/data/containerd": "/dev/sdb1", "/var/lib/my disk/a": "tmpfs", "/proc/1": "proc",
	} {
		if m, err := n.MountOf(p); err != nil || m.Source != want {
			t.Errorf("MountOf(%s) = %+v, %v; want %s", p, m, err, want)
		}
	}
	mounts, err := n.Mounts()
	if err != nil || len(mounts) != 5 {
		t.Fatalf("%d mounts, %v; want 5", len(mounts), err)
	}
	m := mounts[2]
	if m.Propagation != "shared,slave" || m.Options[1] != "noatime" || m.SuperOptions[1] != "attr2" || m.Device != "8:1" || mounts[4].Root != "/sub" || mounts[0].Propagation != "private" {
		t.Errorf("%+v", mounts)
	}
	if _, err := fake(t, files{}, image).Mounts(); err == nil {
		t.Error("an image has no mounts, want an error")
	}
	if _, err := fake(t, files{"/proc/self/mountinfo": ""}).MountOf("/x"); err == nil {
		t.Error("no mounts at all: want an error")
	}
}

func TestModuleState(t *testing.T) {
	for name, c := range map[string]struct {
		change files
		module string
		image  bool
		want   ModuleState
	}{
		"loaded":                      {nil, "overlay", false, ModuleLoaded},
		"built in, with parameters":   {files{"/sys/module/overlay/initstate": gone, "/sys/module/overlay/parameters/": ""}, "overlay", false, ModuleBuiltin},
		"built in, by depmod":         {nil, "fuse", false, ModuleBuiltin},
		"built in, by what it does":   {files{"/proc/sys/net/bridge/": "", lib + "/modules.dep": gone}, "br_netfilter", false, ModuleBuiltin},
		"built in, by filesystems":    {files{"/sys/module/overlay/initstate": gone, lib + "/modules.dep": gone, "/proc/filesystems": "nodev\toverlay\n"}, "overlay", false, ModuleBuiltin},
		"built in, by the config":     {files{lib + "/modules.dep": gone, "/boot/config-" + testKernel: "CONFIG_VETH=y\n"}, "veth", false, ModuleBuiltin},
		"loadable":                    {nil, "br_netfilter", false, ModuleLoadable},
		"loadable, with dashes":       {nil, "br-netfilter", false, ModuleLoadable},
		"loadable, by an alias":       {files{"/sys/module/overlay/initstate": gone}, "fs-overlay", false, ModuleLoadable},
		"loaded, by an alias":         {nil, "fs-overlay", false, ModuleLoaded},
		"its file was removed":        {files{lib + "/kernel/veth.ko.xz": gone, "/boot/config-" + testKernel: "CONFIG_VETH=m\n"}, "veth", false, ModuleMissing},
		"nowhere":                     {nil, "zfs", false, ModuleMissing},
		"no modules at all":           {files{lib + "/modules.dep": gone, lib + "/modules.builtin": gone, lib + "/modules.alias": gone}, "veth", false, ModuleMissing},
		"not loaded in an image":      {nil, "overlay", true, ModuleLoadable},
		"in the worst of two kernels": {files{"/lib/modules/6.9.0/modules.builtin": ""}, "overlay", true, ModuleMissing},
		"a leftover of no kernel":     {files{"/lib/modules/6.9.0/updates/x.ko": ""}, "overlay", true, ModuleLoadable},
	} {
		n := linux(t, c.change)
		n.Live = !c.image
		if got, err := n.ModuleState(c.module); err != nil || got != c.want {
			t.Errorf("%s: %s is %s, %v; want %s", name, c.module, got, err, c.want)
		}
	}
	if _, err := fake(t, files{"/etc/": ""}, image).ModuleState("overlay"); !errors.Is(err, errNoKernel) {
		t.Errorf("an image without a kernel: %v", err)
	}
}

func TestKernelConfig(t *testing.T) {
	text := "#\n# Linux\n#\nCONFIG_A=y\nCONFIG_B=m\n# CONFIG_C is not set\nCONFIG_D=\"x y\"\nCONFIG_E=17\n"
	for name, c := range map[string]struct {
		files files
		from  string
	}{
		"of the running kernel, zipped": {files{"/proc/config.gz": zipped(t, text), "/boot/config-5.1": "CONFIG_A=n\n"}, "/proc/config.gz"},
		"in /boot":                      {files{"/boot/config-5.1": text}, "/boot/config-5.1"},
		"with the modules":              {files{"/usr/lib/modules/5.1/config": text}, "/usr/lib/modules/5.1/config"},
		"of its sources":                {files{"/lib/modules/5.1/build": "-> /usr/src/linux-headers-5.1", "/usr/src/linux-headers-5.1/.config": text}, "/lib/modules/5.1/build/.config"},
		"not the empty one":             {files{"/boot/config-5.1": "", "/usr/src/linux/.config": text}, "/usr/src/linux/.config"},
	} {
		c.files["/proc/sys/kernel/osrelease"] = "5.1\n"
		got, err := fake(t, c.files).KernelConfig()
		if err != nil || got.Path != c.from || got.Options["A"] != "y" || got.Options["B"] != "m" || got.Options["C"] != "" || got.Options["D"] != "x y" || got.Options["E"] != "17" {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	release := "/proc/sys/kernel/osrelease"
	if _, err := fake(t, files{release: "5.1\n"}).KernelConfig(); !errors.Is(err, errNoConfig) {
		t.Errorf("without a config: %v", err)
	}
	for _, broken := range []string{"\x1f\x8bnot gzip", "nothing of a kernel\n"} {
		if _, err := fake(t, files{release: "5.1\n", "/boot/config-5.1": broken}).KernelConfig(); err == nil || !strings.Contains(err.Error(), "/boot/config-5.1") {
			t.Errorf("a broken config: %v", err)
		}
	}
}

func TestCgroupMode(t *testing.T) {
	for want, mounts := range map[CgroupMode]string{
		CgroupV2:     rootMount + v2Mount,
		CgroupV1:     v1Mounts(),
		CgroupHybrid: v1Mounts() + "33 30 0:29 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n",
		CgroupNone:   rootMount + "33 30 0:29 / /mnt rw - cgroup2 cgroup2 rw\n",
	} {
		n := fake(t, files{"/proc/self/mountinfo": mounts})
		if got, err := n.CgroupMode(); err != nil || got != want {
			t.Errorf("%s, %v; want %s", got, err, want)
		}
	}
}

func TestSysctl(t *testing.T) {
	n := fake(t, files{
		"/proc/sys/net/ipv4/conf/eth0.200/forwarding": "1\n", "/proc/sys/net/ipv4/tcp_rmem": "4096\t131072\t6291456\n",
		"/proc/sys/fs/file-max": "18446744073709551615\n", "/proc/sys/kernel/domainname": "(none)\n",
	})
	for key, want := range map[string]string{
		"net.ipv4.conf.eth0/200.forwarding": "1", "net/ipv4/conf/eth0.200/forwarding": "1", "net.ipv4.tcp_rmem": "4096 131072 6291456",
	} {
		if got, err := n.Sysctl(key); err != nil || got != want {
			t.Errorf("%s = %q, %v; want %q", key, got, err, want)
		}
	}
	if _, err := n.Sysctl("net.none"); !absent(err) {
		t.Errorf("a key that is not there: %v", err)
	}
	if v, err := n.sysctlNumber("fs.file-max"); err != nil || v != 1<<63-1 {
		t.Errorf("a number of 64 bits: %d, %v", v, err)
	}
	if _, err := n.sysctlNumber("kernel.domainname"); err == nil {
		t.Error("a text is no number, want an error")
	}
	if _, err := fake(t, files{}, image).Sysctl("net.ipv4.ip_forward"); err == nil {
		t.Error("an image has nothing in force, want an error")
	}
}

func TestKernelRelease(t *testing.T) {
	n := fake(t, files{})
	n.Host.Uname = func() (host.Uname, error) { return host.Uname{Release: "6.9.1"}, nil }
	if got, err := n.KernelRelease(); err != nil || got != "6.9.1" {
		t.Errorf("without /proc/sys: %s, %v", got, err)
	}
	n = fake(t, files{})
	n.Host.Uname = func() (host.Uname, error) { return host.Uname{}, errors.New("no") }
	if _, err := n.KernelRelease(); err == nil {
		t.Error("nobody tells, want an error")
	}
}

// spec is a profile that wants these modules and settings.
func spec(modules []string, sysctl map[string]string) func(*Outside) {
	s := profiles.Spec{Modules: modules, Sysctl: sysctl}
	s.Containerd.Snapshotter = "overlayfs"
	return withSpec(s)
}
