package checks

import (
	"maps"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/profiles"
)

func native(o *Outside) {
	s := profiles.Spec{}
	s.Containerd.Snapshotter = "native"
	o.Spec = &s
}

// hostCase is a host, and what one check says of it.
type hostCase struct {
	files files
	with  []func(*Outside)
	want  want
}

func expectAll(t *testing.T, id string, cases map[string]hostCase) {
	t.Helper()
	for name, c := range cases {
		t.Run(name, func(t *testing.T) { expect(t, linux(t, c.files, c.with...), id, c.want) })
	}
}

func TestOverlay(t *testing.T) {
	noFile := files{"/sys/module/overlay/initstate": gone, lib + "/kernel/overlay.ko.xz": gone}
	expectAll(t, "kernel/overlay", map[string]hostCase{
		"loaded":              {want: want{verdict: Pass, observed: "loaded in " + testKernel}},
		"loadable":            {files: files{"/sys/module/overlay/initstate": gone}, want: want{verdict: Pass, observed: "loadable"}},
		"missing":             {files: noFile, want: want{verdict: Fail, object: "overlay", observed: "neither part of kernel", place: lib, remedy: "# install the package with all modules of kernel " + testKernel}},
		"another snapshotter": {files: noFile, with: []func(*Outside){native}, want: want{verdict: Pass, observed: "native"}},
		"an image":            {with: []func(*Outside){image}, want: want{verdict: Pass, observed: "loadable in " + testKernel}},
		"an image without one": {
			files: files{lib + "/modules.builtin": gone}, with: []func(*Outside){image}, want: want{verdict: Skip, observed: "no kernel in /lib/modules"},
		},
		"lists that cannot be read": {files: files{"/sys/module/overlay/initstate": gone, lib + "/modules.dep": gone, lib + "/modules.dep/": ""}, want: want{verdict: Unknown}},
	})
	// A kernel that was upgraded under the one that runs.
	n := linux(t, files{"/proc/sys/kernel/osrelease": "6.1.0-27\n", "/sys/module/overlay/initstate": gone})
	expect(t, n, "kernel/overlay", want{verdict: Fail, remedy: "# the modules of 6.1.0-27, which runs, were removed, such as by an upgrade to " + testKernel + "\nreboot"})
	// Where the package is known, the remedy installs it.
	for line, more := range map[string]files{
		"apt-get install -y --reinstall linux-image-" + testKernel: {"/usr/bin/apt-get": ""},
		"apt-get install -y linux-modules-extra-" + testKernel:     {"/usr/bin/apt-get": "", "/etc/os-release": "NAME=Ubuntu\nID=ubuntu\n"},
		"dnf install -y kernel-modules-" + testKernel:              {"/usr/bin/dnf": ""},
	} {
		maps.Copy(more, noFile)
		expect(t, linux(t, more), "kernel/overlay", want{verdict: Fail, remedy: line})
		n := linux(t, more, image)
		expect(t, n, "kernel/overlay", want{verdict: Fail, remedy: "chroot " + n.Host.Root.Dir() + " " + line})
	}
}

func TestModules(t *testing.T) {
	both := spec([]string{"overlay", "br_netfilter"}, nil)
	expectAll(t, "kernel/modules", map[string]hostCase{
		"in effect":                          {want: want{verdict: Pass, observed: "overlay: in effect"}},
		"no containerd, no use":              {files: files{"/usr/bin/containerd": gone, "/sys/module/overlay/initstate": gone}, want: want{verdict: Pass, observed: "no module is wanted"}},
		"another snapshotter":                {files: files{"/sys/module/overlay/initstate": gone}, with: []func(*Outside){native}, want: want{verdict: Pass, observed: "no module is wanted"}},
		"part of the kernel":                 {files: files{lib + "/modules.builtin": "kernel/net/bridge/br_netfilter.ko\n"}, with: []func(*Outside){both}, want: want{verdict: Pass}},
		"not loaded, and the daemon stopped": {files: files{"/sys/module/overlay/initstate": gone}, want: want{verdict: Warn, object: "overlay", observed: "not loaded", remedy: "modprobe overlay"}},
		"turned off, and the daemon stopped": {files: files{"/sys/module/overlay/initstate": gone, "/etc/modprobe.d/cis.conf": "install overlay /bin/true\n"}, want: want{verdict: Fail, remedy: "modprobe --ignore-install overlay"}},
		"not loaded":                         {files: files{"/sys/module/overlay/initstate": gone, "/proc/7/cmdline": "/usr/bin/containerd\x00"}, with: []func(*Outside){withProcess}, want: want{verdict: Fail, object: "overlay", observed: "not loaded", place: "/sys/module/overlay", remedy: "modprobe overlay"}},
		"not loaded, and said to be": {
			files: files{"/etc/modules-load.d/nodeprep.conf": "# by nodeprep\nbr_netfilter\n"}, with: []func(*Outside){both},
			want: want{verdict: Fail, object: "br_netfilter", place: "/etc/modules-load.d/nodeprep.conf:2", remedy: "modprobe br_netfilter"},
		},
		"turned off": {
			files: files{"/etc/modprobe.d/cis.conf": "install br_netfilter /bin/true\n"}, with: []func(*Outside){both},
			want: want{verdict: Fail, object: "br_netfilter", remedy: "modprobe --ignore-install br_netfilter"},
		},
		"missing":                   {with: []func(*Outside){spec([]string{"zfs"}, nil)}, want: want{verdict: Fail, object: "zfs", observed: "not in kernel " + testKernel, place: lib, remedy: "modprobe zfs"}},
		"lists that cannot be read": {files: files{"/etc/modules-load.d/a.conf/": ""}, want: want{verdict: Unknown}},
	})
}

func TestModulesPersisted(t *testing.T) {
	unit := "[Service]\nExecStartPre=-/sbin/modprobe overlay\n"
	expectAll(t, "kernel/modules-persisted", map[string]hostCase{
		"nothing wanted":     {with: []func(*Outside){native}, want: want{verdict: Pass}},
		"by a file":          {files: files{"/etc/modules-load.d/a.conf": "overlay\n"}, want: want{verdict: Pass, observed: "/etc/modules-load.d/a.conf:1 loads overlay"}},
		"by Debian's list":   {files: files{"/etc/modules-load.d/modules.conf": "-> ../modules", "/etc/modules": "# list\noverlay\n"}, want: want{verdict: Pass, observed: "/etc/modules:2"}},
		"by the unit":        {files: files{"/usr/lib/systemd/system/containerd.service": unit}, want: want{verdict: Pass, observed: "containerd.service:2 loads overlay"}},
		"part of the kernel": {files: files{"/sys/module/overlay/initstate": gone, lib + "/modules.builtin": "kernel/fs/overlayfs/overlay.ko\n"}, want: want{verdict: Pass, observed: "part of the kernel"}},
		"nowhere":            {want: want{verdict: Fail, object: "overlay", observed: "nothing loads it", place: "/etc/modules-load.d", remedy: "echo overlay > /etc/modules-load.d/overlay.conf"}},
		"the file is masked": {
			files: files{"/usr/lib/modules-load.d/overlay.conf": "overlay\n", "/etc/modules-load.d/overlay.conf": "-> /dev/null"},
			want:  want{verdict: Fail, remedy: "> /etc/modules-load.d/node-overlay.conf"},
		},
		"an image":                  {with: []func(*Outside){image}, want: want{verdict: Fail, remedy: "/etc/modules-load.d/overlay.conf"}},
		"an image without a kernel": {files: files{lib + "/modules.builtin": gone, "/etc/modules-load.d/a.conf": "overlay\n"}, with: []func(*Outside){image}, want: want{verdict: Pass}},
		"lists that cannot be read": {files: files{"/etc/modules-load.d/a.conf/": ""}, want: want{verdict: Unknown}},
		"no list of modules":        {files: files{"/sys/module/overlay/initstate": gone, lib + "/modules.builtin": gone, lib + "/modules.builtin/": ""}, want: want{verdict: Unknown}},
	})
	n := linux(t, nil, image)
	if got := results(t, n, "kernel/modules-persisted"); !strings.Contains(got[0].Remedy, n.Host.Root.Dir()+"/etc/modules-load.d") {
		t.Errorf("a remedy for an image must write into it: %s", got[0].Remedy)
	}
}

func TestModulesBlacklisted(t *testing.T) {
	cis := "/etc/modprobe.d/cis.conf"
	expectAll(t, "kernel/modules-blacklisted", map[string]hostCase{
		"nothing":                     {files: files{cis: "# blacklist overlay\nblacklist pcspkr\ninstall usb-storage /bin/false\noptions overlay metacopy=on\n"}, want: want{verdict: Pass, observed: "nothing keeps overlay out"}},
		"no module wanted":            {with: []func(*Outside){native}, want: want{verdict: Pass}},
		"a blacklist":                 {files: files{cis: "#\nblacklist overlay\n"}, want: want{verdict: Fail, object: "overlay", observed: "blacklist overlay", place: cis + ":2", remedy: "sed -i '2s/^/#/' " + cis}},
		"an install line":             {files: files{cis: "install overlay /bin/false\n"}, want: want{verdict: Fail, observed: "modprobe does nothing", place: cis + ":1"}},
		"an install line that works":  {files: files{cis: "install overlay /sbin/modprobe --ignore-install overlay\n"}, want: want{verdict: Pass}},
		"masked":                      {files: files{"/usr/lib/modprobe.d/a.conf": "blacklist overlay\n", "/etc/modprobe.d/a.conf": "-> /dev/null"}, want: want{verdict: Pass}},
		"part of the kernel":          {files: files{cis: "blacklist overlay\n", "/sys/module/overlay/initstate": gone, lib + "/modules.builtin": "overlay.ko\n"}, want: want{verdict: Pass}},
		"a word of the kernel's":      {files: files{"/proc/cmdline": "module_blacklist=nouveau,overlay ro\n"}, want: want{verdict: Fail, observed: "module_blacklist=nouveau,overlay", place: "/proc/cmdline", remedy: "# change the kernel command line"}},
		"the same, of grub":           {files: files{"/proc/cmdline": "modprobe.blacklist=overlay\n", "/etc/default/grub": "GRUB_CMDLINE_LINUX=\"modprobe.blacklist=overlay\"\n"}, want: want{verdict: Fail, place: "/etc/default/grub:1", remedy: "s/modprobe\\.blacklist=overlay//' /etc/default/grub\nupdate-grub\nreboot"}},
		"files that cannot be read":   {files: files{cis + "/": ""}, want: want{verdict: Unknown}},
		"a command line not readable": {files: files{"/proc/cmdline": gone, "/proc/cmdline/": ""}, want: want{verdict: Unknown}},
	})
}

func TestBrNetfilter(t *testing.T) {
	bridge := spec(nil, map[string]string{"net.bridge.bridge-nf-call-iptables": "1"})
	expectAll(t, "kernel/br-netfilter", map[string]hostCase{
		"not wanted": {want: want{verdict: Pass, observed: "no setting of br_netfilter is wanted"}},
		"there":      {files: files{"/proc/sys/net/bridge/": ""}, with: []func(*Outside){bridge}, want: want{verdict: Pass}},
		"not loaded": {with: []func(*Outside){bridge}, want: want{
			verdict: Fail, object: "br_netfilter", observed: "not loaded", wanted: "net.bridge.bridge-nf-call-iptables = 1", place: "/proc/sys/net/bridge",
			remedy: "modprobe br_netfilter && echo br_netfilter > /etc/modules-load.d/br_netfilter.conf\nsysctl -w net.bridge.bridge-nf-call-iptables=1",
		}},
		"missing":                   {files: files{lib + "/kernel/br_netfilter.ko.xz": gone}, with: []func(*Outside){bridge}, want: want{verdict: Fail, observed: "not in kernel " + testKernel, remedy: "# install"}},
		"a broken kubelet":          {files: files{"/var/lib/kubelet/config.yaml": "kind: [\n"}, want: want{verdict: Unknown}},
		"lists that cannot be read": {files: files{lib + "/modules.dep": gone, lib + "/modules.dep/": ""}, with: []func(*Outside){bridge}, want: want{verdict: Unknown}},
	})
}
