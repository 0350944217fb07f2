package checks

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// look is a host and what one check has to say of it.
type look struct {
	name   string
	files  files
	change []func(*Outside)
	want   []want
}

func looks(t *testing.T, id string, all ...look) {
	t.Helper()
	for _, l := range all {
		t.Run(id+"/"+l.name, func(t *testing.T) { expect(t, fake(t, l.files, l.change...), id, l.want...) })
	}
}

// one is the want of a single result.
func one(v Verdict, observed string) []want { return []want{{verdict: v, observed: observed}} }

func offline(o *Outside)  { o.Live = false }
func applying(o *Outside) { o.Applying = true }
func booted(o *Outside)   { o.Facts.SystemdInit = true }

func uid(id int) func(*Outside) { return func(o *Outside) { o.Host.UID = id } }

func withFacts(f host.Facts) func(*Outside) { return func(o *Outside) { o.Facts = f } }

func given(all ...func(*Outside)) []func(*Outside) { return all }

// kubernetes is a profile for a node of that version.
func kubernetes(version string) func(*Outside) { return withSpec(profiles.Spec{Kubernetes: version}) }

// dynamic is a profile that installs upstream's dynamic containerd 2.1.9.
func dynamic() profiles.Spec {
	s := profiles.Spec{Arch: "amd64"}
	s.Containerd.Version = releases.MustVersion("2.1.9")
	s.Containerd.Root, s.Containerd.State, s.Containerd.Snapshotter = "/var/lib/containerd", "/run/containerd", "overlayfs"
	return s
}

// socket makes a socket that nobody listens at.
func socket(p string) func(*Outside) {
	return func(o *Outside) {
		files{"/proc/net/unix": "Num RefCount Protocol Flags Type St Inode Path\n" +
			"0000000000000000: 00000002 00000000 00010000 0001 01 16171 " + p + "\n"}.overwrite(o.Host.Root.Dir())
		leftSocket(p)(o)
	}
}

// leftSocket is one whose listener has gone.
func leftSocket(p string) func(*Outside) {
	return func(o *Outside) {
		real, err := o.Host.Root.Resolve(p)
		if err == nil {
			err = unix.Mknod(real, unix.S_IFSOCK|0o600, 0)
		}
		if err != nil {
			panic(err)
		}
	}
}

func TestHostSystem(t *testing.T) {
	good := withFacts(host.Facts{Arch: "amd64", ArchKnown: true, LibC: host.LibC{Kind: "glibc", Major: 2, Minor: 36, Path: "/lib/libc.so.6"}, SystemdInit: true})
	bare := withFacts(host.Facts{Arch: "amd64"})
	amd64, arm64 := withSpec(profiles.Spec{Arch: "amd64"}), withSpec(profiles.Spec{Arch: "arm64"})
	looks(t, Privilege,
		look{"root", nil, nil, one(Pass, "uid 0")},
		look{"another user who looks", nil, given(uid(1000)), one(Unknown, "only root may see")},
		look{"another user who changes", nil, given(uid(1000), applying), []want{{verdict: Fail, observed: "uid 1000", wanted: "root", remedy: "sudo"}}},
		look{"another user and an image", nil, given(uid(1000), applying, offline), one(Warn, "uid 1000")},
	)
	looks(t, "host/init",
		look{"systemd", nil, given(good), one(Pass, "systemd")},
		look{"another", files{"/proc/1/comm": "runit\n"}, given(bare), []want{{verdict: Fail, observed: "PID 1 is runit", wanted: "systemd", remedy: "--root"}}},
		look{"an image without", nil, given(bare, offline), one(Warn, "no systemd")},
	)
	looks(t, "host/arch",
		look{"the same", nil, given(good, amd64, offline), one(Pass, "amd64")},
		look{"another", nil, given(good, arm64, offline), []want{{verdict: Fail, observed: "amd64", wanted: "arm64", remedy: "--arch"}}},
		look{"an empty image", nil, given(bare, arm64, offline), one(Unknown, "no C library")},
		look{"a program of another", nil, given(withFacts(host.Facts{Arch: "pdp11", ArchKnown: true}), withSpec(profiles.Spec{Arch: "pdp11"})), []want{{verdict: Fail, observed: runtime.GOARCH, wanted: "pdp11"}}},
	)
	looks(t, "host/libc",
		look{"there", nil, given(good), one(Pass, "glibc 2.36")},
		look{"not there", nil, given(bare, offline), one(Unknown, "no C library")},
	)
}

func TestLibCVersion(t *testing.T) {
	glibc := func(minor int) func(*Outside) {
		return withFacts(host.Facts{LibC: host.LibC{Kind: "glibc", Major: 2, Minor: minor, Path: "/lib/libc.so.6"}})
	}
	unknown := withFacts(host.Facts{LibC: host.LibC{Kind: "glibc", Path: "/lib/ld.so"}})
	musl := withFacts(host.Facts{LibC: host.LibC{Kind: "musl", Path: "/lib/ld-musl-x86_64.so.1"}})
	static, own := dynamic(), dynamic()
	static.Containerd.Static = true
	own.Containerd.SHA256 = "1234"
	looks(t, "host/libc-version",
		look{"new enough", nil, given(glibc(35), withSpec(dynamic())), one(Pass, "glibc 2.35")},
		look{"too old", nil, given(glibc(31), withSpec(dynamic())), []want{{
			verdict: Fail, observed: "glibc 2.31", wanted: "glibc 2.35 or newer", place: "/lib/libc.so.6", remedy: "static",
		}}},
		look{"another library", nil, given(musl, withSpec(dynamic())), []want{{verdict: Fail, observed: "musl", wanted: "glibc 2.35"}}},
		look{"a build of one's own", nil, given(glibc(31), withSpec(own)), one(Warn, "glibc 2.31")},
		look{"a version that cannot be told", nil, given(unknown, withSpec(dynamic())), one(Unknown, "cannot be told")},
		look{"a static build", nil, given(musl, withSpec(static)), one(Pass, "static")},
		look{"no containerd", nil, given(musl, withSpec(profiles.Spec{})), one(Skip, "no containerd")},
	)
}

func TestForeignRuntimesAreNamed(t *testing.T) {
	const vendor = "/usr/lib/systemd/system/containerd.service"
	spec := withSpec(dynamic())
	looks(t, "host/foreign-runtime",
		look{"none", nil, given(spec), one(Pass, "none")},
		look{"nodeprep's own unit, or one that the plan refuses", files{systemd.UnitPath: ""}, given(spec), one(Pass, "none")},
		look{"nodeprep's own program", files{systemd.Binary: ""}, given(spec), one(Pass, "none")},
		look{"a unit by hand", files{vendor: ""}, given(spec), []want{{
			verdict: Fail, observed: vendor, wanted: "no other containerd.service", place: vendor, remedy: "mv " + vendor + " " + vendor + ".off\nsystemctl daemon-reload",
		}}},
		look{
			"a package's unit", files{vendor: "", "/var/lib/dpkg/info/containerd.io.list": "/.\n/lib/systemd/system/containerd.service\n"}, given(spec),
			[]want{{verdict: Fail, observed: "the package containerd.io", place: vendor, remedy: "apt-get remove containerd.io"}},
		},
		look{"Docker", files{"/usr/bin/dockerd": ""}, given(spec), []want{{verdict: Warn, observed: "/usr/bin/dockerd", place: "/usr/bin/dockerd"}}},
	)
}

func TestClock(t *testing.T) {
	at := func(when time.Time) func(*Outside) {
		return func(o *Outside) { o.Host.Now = func() time.Time { return when } }
	}
	good := newestRelease().AddDate(0, 3, 0)
	const rtc = "/sys/class/rtc/rtc0/since_epoch"
	looks(t, "host/clock",
		look{"right", nil, given(at(good)), one(Pass, "2026-11-12")},
		look{"a board without a battery", nil, given(at(time.Unix(60, 0))), []want{{
			verdict: Fail, observed: "1970-01-01", wanted: "after 2026-08-12", place: "the system clock", remedy: "timedatectl",
		}}},
		look{"a day before is a time zone", nil, given(at(newestRelease().Add(-20 * time.Hour))), one(Pass, "2026-08-11")},
		look{"before the last apply", nil, given(at(good), func(o *Outside) { o.Receipt = &Receipt{Time: good.AddDate(0, 1, 0)} }), []want{{
			verdict: Warn, wanted: "the last apply",
		}}},
		look{"the far future", nil, given(at(good.AddDate(30, 0, 0))), []want{{verdict: Fail, observed: "2056", wanted: "before 2036"}}},
		look{"a battery-backed clock that is right", files{rtc: "1795000000\n"}, given(at(time.Unix(60, 0))), []want{{verdict: Fail, remedy: `date -u -s "@$(cat ` + rtc + `)"`}}},
		look{"one that is wrong, too", files{rtc: "100\n"}, given(at(time.Unix(60, 0))), []want{{verdict: Fail, remedy: "timedatectl"}}},
	)
}

func TestTimeSync(t *testing.T) {
	timesyncd := files{"/usr/lib/systemd/system/systemd-timesyncd.service": ""}
	state := func(s string) func(*Outside) {
		return withUnits(units{"systemd-timesyncd.service": {LoadState: "loaded", ActiveState: s}})
	}
	looks(t, "host/time-sync",
		look{"none", files{"/usr/bin/apt-get": ""}, given(withUnits(nil)), []want{{verdict: Warn, observed: "no time service", remedy: "apt-get install -y chrony"}}},
		look{"one that is off", timesyncd, given(state("inactive")), []want{{
			verdict: Warn, observed: "systemd-timesyncd.service does not run", remedy: "systemctl enable --now systemd-timesyncd.service",
		}}},
		look{"one that runs", timesyncd, given(state("active")), one(Pass, "runs")},
		look{"systemd is silent", timesyncd, given(booted), one(Unknown, "systemd")},
	)
}

func TestMachineID(t *testing.T) {
	const p = "/etc/machine-id"
	looks(t, "host/machine-id",
		look{"set", files{p: "0123456789abcdef0123456789abcdef\n"}, nil, one(Pass, "set")},
		look{"none", nil, nil, []want{{verdict: Warn, observed: "none", place: p, remedy: "systemd-machine-id-setup"}}},
		look{"empty", files{p: "\n"}, nil, one(Warn, `""`)},
		look{"uninitialized", files{p: "uninitialized\n"}, nil, one(Warn, "uninitialized")},
		look{"something else", files{p: "node1\n"}, nil, one(Warn, "no machine ID")},
		look{"an image that has none", files{p: "uninitialized\n"}, given(offline), one(Pass, "each machine")},
		look{"an image that has one", files{p: "0123456789abcdef0123456789abcdef\n"}, given(offline), []want{{verdict: Warn, observed: "the same for all", remedy: "echo uninitialized > " + p}}},
		look{"unreadable", files{p + "/": ""}, nil, one(Unknown, "is a directory")},
	)
}

func TestDBus(t *testing.T) {
	spec := dynamic()
	spec.Containerd.SystemdCgroup = true
	const none = "Num RefCount Protocol Flags Type St Inode Path\n0000000000000000: 00000003 00000000 00000000 0001 03 16172 /run/dbus/system_bus_socket\n"
	f := files{"/run/dbus/": "", "/run/systemd/": "", "/proc/net/unix": none}
	looks(t, "host/dbus",
		look{"there", f, given(withSpec(spec), applying, socket("/run/dbus/system_bus_socket")), one(Pass, "is there")},
		look{"nobody to ask", f, given(withSpec(spec), applying), []want{{
			verdict: Fail, observed: "nobody listens", wanted: "the system bus", place: "/run/dbus/system_bus_socket", remedy: "dbus",
		}}},
		look{"stopped, and its socket left", f, given(withSpec(spec), applying, leftSocket("/run/dbus/system_bus_socket")), one(Fail, "nobody listens")},
		look{"systemd's own socket is left", f, given(withSpec(spec), applying, socket("/run/systemd/private")), one(Warn, "nobody listens")},
		look{"sockets cannot be seen", files{"/run/dbus/": ""}, given(withSpec(spec), applying), one(Unknown, "no such file")},
		look{
			"a unit that could be started", files{"/run/dbus/": "", "/usr/lib/systemd/system/dbus.socket": "", "/proc/net/unix": none}, given(withSpec(spec), applying),
			[]want{{verdict: Fail, remedy: "systemctl start dbus.socket"}},
		},
		look{"cgroupfs", f, given(withSpec(dynamic()), applying), one(Skip, "no runtime")},
	)
}

func TestSystemdVersion(t *testing.T) {
	is := func(v int) func(*Outside) { return withFacts(host.Facts{Systemd: v}) }
	looks(t, "host/systemd-version",
		look{"new", nil, given(is(252)), one(Pass, "systemd 252")},
		look{"without cpuset", nil, given(is(243)), []want{{verdict: Warn, observed: "243", wanted: "244"}}},
		look{"with few files", nil, given(is(239)), one(Warn, "239")},
		look{"not to be told", nil, nil, one(Unknown, "libsystemd-shared")},
	)
}

func TestTools(t *testing.T) {
	base := files{"/bin/mount": "", "/bin/umount": "", "/sbin/modprobe": ""}
	node := files{"/usr/sbin/ip": "", "/usr/sbin/iptables": "", "/usr/bin/nsenter": "", "/usr/sbin/ethtool": "", "/usr/sbin/tc": "", "/sbin/losetup": "", "/bin/cp": "", "/usr/bin/touch": ""}
	both := files{}
	for p := range base {
		both[p] = ""
	}
	for p := range node {
		both[p] = ""
	}
	looks(t, "host/tools",
		look{"all", base, nil, one(Pass, "mount, umount, modprobe")},
		look{"no modprobe", files{"/bin/mount": "", "/bin/umount": "", "/usr/bin/dnf": ""}, nil, []want{{
			verdict: Warn, object: "modprobe", observed: "not on the PATH", wanted: "containerd.service", remedy: "dnf install -y kmod",
		}}},
		look{"all of a node", both, given(kubernetes("1.36")), one(Pass, "iptables")},
		look{"a node without most", base, given(kubernetes("1.36")), []want{
			{verdict: Warn, object: "ip"}, {verdict: Warn, object: "iptables"}, {verdict: Warn, object: "nsenter"},
			{verdict: Warn, object: "ethtool"}, {verdict: Warn, object: "tc"},
			{verdict: Warn, object: "losetup", remedy: "mount"}, {verdict: Warn, object: "cp"}, {verdict: Warn, object: "touch"},
		}},
		look{"what an older kubeadm asks for", both, given(kubernetes("1.31")), []want{
			{verdict: Warn, object: "conntrack"}, {verdict: Warn, object: "socat"}, {verdict: Warn, object: "ebtables"},
		}},
	)
}

func TestAppArmorParser(t *testing.T) {
	const enabled, parser = "/sys/module/apparmor/parameters/enabled", "/sbin/apparmor_parser"
	old := dynamic()
	old.Containerd.Version = releases.MustVersion("1.6.16")
	looks(t, "host/apparmor-parser",
		look{"no AppArmor", nil, nil, one(Pass, "not enabled")},
		look{"AppArmor off", files{enabled: "N\n"}, nil, one(Pass, "not enabled")},
		look{"with its parser", files{enabled: "Y\n", parser: ""}, nil, one(Pass, parser)},
		look{"without, and a containerd that looks", files{enabled: "Y\n"}, given(withSpec(dynamic())), []want{{verdict: Warn, observed: "no " + parser, place: enabled}}},
		look{"without, and a containerd that does not look", files{enabled: "Y\n", "/usr/bin/apt-get": ""}, given(withSpec(old)), []want{{
			verdict: Fail, observed: "no " + parser, wanted: parser, remedy: "apt-get install -y apparmor",
		}}},
		look{"without, and a containerd that will look", files{enabled: "Y\n", systemd.Binary: ""}, given(
			withSpec(dynamic()), applying, prints(map[string]string{systemd.Binary + " --version": "containerd github.com/containerd/containerd v1.6.16 x"}),
		), one(Warn, "no "+parser)},
		look{"unreadable", files{enabled + "/": ""}, nil, one(Unknown, "is a directory")},
	)
}

func TestSELinux(t *testing.T) {
	const enforce = "/sys/fs/selinux/enforce"
	policy := "/var/lib/selinux/targeted/active/modules/200/container/"
	on := dynamic()
	on.Containerd.Settings = map[string]any{"plugins": map[string]any{"io.containerd.cri.v1.runtime": map[string]any{"enable_selinux": true}}}
	looks(t, "host/selinux",
		look{"none", nil, nil, one(Pass, "not in use")},
		look{"permissive", files{enforce: "0"}, nil, one(Pass, "permissive")},
		look{"enforcing, with all", files{enforce: "1", policy: ""}, given(withSpec(on)), one(Pass, "container-selinux")},
		look{"enforcing, without", files{enforce: "1"}, given(withSpec(dynamic())), []want{
			{verdict: Warn, object: "policy", remedy: "container-selinux"}, {verdict: Warn, object: "enable_selinux", observed: "false", wanted: "true"},
		}},
		look{"unreadable", files{enforce + "/": ""}, nil, one(Unknown, "is a directory")},
	)
}

func TestVirtualisation(t *testing.T) {
	looks(t, "host/virtualisation",
		look{"a machine", files{"/proc/1/environ": "HOME=/\x00"}, nil, one(Pass, "no container")},
		look{"systemd says so", files{"/run/systemd/container": "lxc\n"}, nil, []want{{verdict: Warn, observed: "lxc", place: "/run/systemd/container"}}},
		look{"Docker", files{"/.dockerenv": ""}, nil, []want{{verdict: Warn, observed: "a container", place: "/.dockerenv"}}},
		look{"PID 1 says so", files{"/proc/1/environ": "HOME=/\x00container=podman\x00"}, nil, one(Warn, "podman")},
	)
}
