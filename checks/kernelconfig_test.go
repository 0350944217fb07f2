package checks

import (
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/profiles"
)

// config is a kernel config with all options but these.
func config(without ...string) string {
	var b strings.Builder
options:
	for _, o := range kernelOptions() {
		for _, name := range without {
			if o.name == name {
				continue options
			}
		}
		value := "y"
		if o.module != "" {
			value = "m"
		}
		b.WriteString("CONFIG_" + o.name + "=" + value + "\n")
	}
	return b.String()
}

func TestKernelConfigCheck(t *testing.T) {
	boot := "/boot/config-" + testKernel
	network := func(o *Outside) {
		o.Spec = &profiles.Spec{CNI: profiles.CNI{Network: &profiles.Network{}}}
	}
	noBridge := files{boot: config("BRIDGE"), lib + "/modules.builtin": strings.Repeat("x.ko\n", 1)}
	for _, o := range kernelOptions() {
		if o.module != "" && o.module != "bridge" {
			noBridge[lib+"/modules.builtin"] += o.module + ".ko\n"
		}
	}
	none := files{boot: gone, lib + "/modules.builtin": gone, lib + "/modules.dep": gone}
	expectAll(t, "kernel/config", map[string]hostCase{
		"all":                  {want: want{verdict: Pass, observed: "options are there", place: boot}},
		"an option is not set": {files: files{boot: config("CGROUP_BPF")}, want: want{verdict: Fail, observed: "CONFIG_CGROUP_BPF is not set", wanted: "CONFIG_CGROUP_BPF", place: boot, remedy: "# install a kernel that has CONFIG_CGROUP_BPF"}},
		// A config that lacks what the kernel has at work is wrong, not the kernel.
		"a module that is there anyway": {files: files{boot: config("VETH")}, want: want{verdict: Pass}},
		"a trace that is there anyway":  {files: files{boot: config("POSIX_MQUEUE", "FAIR_GROUP_SCHED")}, want: want{verdict: Pass}},
		"neither trace nor option":      {files: files{boot: config("POSIX_MQUEUE"), "/proc/sys/fs/mqueue/": gone}, want: want{verdict: Fail, observed: "CONFIG_POSIX_MQUEUE is not set"}},
		"a module that is not there": {
			files: files{lib + "/kernel/veth.ko.xz": gone},
			want:  want{verdict: Fail, observed: "CONFIG_VETH =m, and veth is not in " + lib, remedy: "# install the package with all modules"},
		},
		// Others ask the running kernel itself for those.
		"what others look at":       {files: files{boot: config("NET_NS", "MEMCG", "CPUSETS", "SECCOMP")}, want: want{verdict: Pass}},
		"of an image nobody else":   {files: files{boot: config("NET_NS", "MEMCG")}, with: []func(*Outside){image}, want: want{verdict: Fail, observed: "CONFIG_NET_NS is not set, CONFIG_MEMCG is not set"}},
		"cgroup v1 needs no BPF":    {files: files{boot: config("CGROUP_BPF"), "/proc/self/mountinfo": v1Mounts()}, want: want{verdict: Pass}},
		"no config, some unproven":  {files: files{boot: gone}, want: want{verdict: Unknown, observed: "options are seen at work, and nothing shows CONFIG_CGROUP_BPF"}},
		"no config and no modules":  {files: none, want: want{verdict: Unknown, observed: "nothing shows CONFIG_CGROUP_BPF, CONFIG_VETH"}},
		"no modules to be seen":     {files: release("6.2.0"), want: want{verdict: Unknown}},
		"a config, but no modules":  {files: files{"/proc/sys/kernel/osrelease": "6.2.0\n", "/boot/config-6.2.0": config()}, want: want{verdict: Unknown, observed: "nothing shows CONFIG_VETH"}},
		"an image without a kernel": {files: files{lib + "/modules.builtin": gone}, with: []func(*Outside){image}, want: want{verdict: Skip}},
		"no bridge, none wanted":    {files: noBridge, want: want{verdict: Pass}},
		"no bridge, one wanted":     {files: noBridge, with: []func(*Outside){network}, want: want{verdict: Fail, observed: "CONFIG_BRIDGE is not set"}},
		"no mounts to be seen":      {files: files{"/proc/self/mountinfo": gone}, want: want{verdict: Unknown}},
		"lists that cannot be read": {files: files{lib + "/modules.builtin": gone, lib + "/modules.builtin/": ""}, want: want{verdict: Unknown}},
	})
	expectAll(t, "kernel/config-optional", map[string]hostCase{
		"all":       {want: want{verdict: Pass, observed: "options are there"}},
		"one less":  {files: files{boot: config("CGROUP_HUGETLB")}, want: want{verdict: Fail, observed: "CONFIG_CGROUP_HUGETLB is not set"}},
		"no config": {files: none, want: want{verdict: Unknown, observed: "CONFIG_BLK_CGROUP"}},
	})
	// Each kernel of an image has a result of its own.
	n := linux(t, files{"/lib/modules/6.9.0/modules.builtin": "veth.ko\n", "/boot/config-6.9.0": config("UTS_NS")}, image)
	got := results(t, n, "kernel/config")
	if len(got) != 2 || got[0].Object != testKernel || got[0].Verdict != Pass || got[1].Object != "6.9.0" || got[1].Verdict != Fail || !strings.Contains(got[1].Observed, "CONFIG_UTS_NS") {
		t.Errorf("%+v", got)
	}
}
