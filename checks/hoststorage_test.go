package checks

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// mounted is a mountinfo with an ext4 at / and these mounts: PATH TYPE OPTIONS each.
func mounted(mounts ...string) string {
	var b strings.Builder
	for i, m := range append([]string{"/ ext4 rw"}, mounts...) {
		f := strings.Fields(m)
		super := "rw"
		if len(f) > 3 {
			super = f[3]
		}
		fmt.Fprintf(&b, "%d 1 8:%d / %s %s shared:1 - %s /dev/sda%d %s\n", 20+i, i, f[0], f[2], f[1], i, super)
	}
	return b.String()
}

const mountinfo = "/proc/self/mountinfo"

func withMounts(mounts ...string) files { return files{mountinfo: mounted(mounts...)} }

func withSpace(s host.Space) func(*Outside) {
	return func(o *Outside) { o.Host.SpaceAt = func(string) (host.Space, error) { return s, nil } }
}

func noSpace(o *Outside) {
	o.Host.SpaceAt = func(string) (host.Space, error) { return host.Space{}, errors.New("statfs: input/output error") }
}

// typed is a filesystem that tells the types of entries, or does not.
func typed(typed, found bool, err error) func(*Outside) {
	return func(o *Outside) { o.Host.DirTypes = func(string) (bool, bool, error) { return typed, found, err } }
}

// snapshots is a profile with that snapshotter.
func snapshots(name string, settings ...map[string]any) func(*Outside) {
	s := dynamic()
	s.Containerd.Snapshotter = name
	if len(settings) > 0 {
		s.Containerd.Settings = map[string]any{"plugins": map[string]any{"io.containerd.snapshotter.v1." + name: settings[0]}}
	}
	return withSpec(s)
}

func TestReadOnly(t *testing.T) {
	full := dynamic()
	full.Runc.Version, full.CNI.Version = full.Containerd.Version, full.Containerd.Version
	full.CNI.Network = &profiles.Network{}
	spec := withSpec(full)
	looks(t, "host/read-only",
		look{"writable", withMounts("/usr ext4 ro", "/usr/local ext4 rw"), given(spec), one(Pass, "/usr/local/bin")},
		look{"a mount", withMounts("/usr ext4 ro"), given(spec), []want{{
			verdict: Fail, object: "/usr/local/bin", observed: "/usr (ext4) is mounted read-only", wanted: "writable", place: "/usr", remedy: "mount -o remount,rw /usr",
		}}},
		look{"a filesystem, by fstab", files{mountinfo: mounted("/etc ext4 rw ro"), "/etc/fstab": "# a comment\n/dev/sda1 /etc ext4 ro 0 0\n"}, given(spec), []want{{
			verdict: Fail, place: "/etc/fstab:2", remedy: "# take ro out of /etc/fstab:2",
		}}},
		look{"one that cannot be written", withMounts("/opt squashfs ro"), given(spec), []want{{verdict: Fail, object: "/opt/cni/bin", remedy: "# squashfs cannot be written"}}},
		look{"what the profile does not install", withMounts("/opt ext4 ro"), given(withSpec(dynamic())), one(Pass, "/etc/containerd")},
		look{"unreadable", files{mountinfo + "/": ""}, given(spec), one(Unknown, "is a directory")},
	)
}

func TestSpace(t *testing.T) {
	const gib = 1 << 30
	f := withMounts("/var ext4 rw")
	looks(t, "host/space",
		look{"plenty", f, given(withSpace(host.Space{Available: 10 * gib, Total: 20 * gib})), []want{{verdict: Pass, object: "/var/lib/containerd", observed: "10 GiB of 20 GiB free (50 %)"}}},
		look{"scarce", f, given(withSpace(host.Space{Available: 2 * gib, Total: 20 * gib})), []want{{
			verdict: Warn, observed: "(10 %)", wanted: "15 %", place: "/var (/dev/sda1)", remedy: "du -xh --max-depth=2 /var",
		}}},
		look{"none", f, given(withSpace(host.Space{Available: gib / 2, Total: 20 * gib})), []want{{
			verdict: Fail, observed: "512 MiB of 20 GiB free", wanted: "at least 1 GiB", place: "/var (/dev/sda1)", remedy: "containerd.root",
		}}},
		look{"not to be told", f, given(noSpace), one(Unknown, "input/output")},
	)
	looks(t, "host/inodes",
		look{"plenty", f, given(withSpace(host.Space{Inodes: 50000, TotalInodes: 100000})), one(Pass, "50000 of 100000 inodes free (50 %)")},
		look{"scarce", f, given(withSpace(host.Space{Inodes: 2000, TotalInodes: 100000})), []want{{verdict: Warn, observed: "(2 %)", wanted: "5 %"}}},
		look{"none", f, given(withSpace(host.Space{Inodes: 3, TotalInodes: 100000})), []want{{
			verdict: Fail, observed: "3 of 100000", wanted: "at least 1000", place: "/var (/dev/sda1)", remedy: "du -x --inodes",
		}}},
		look{"btrfs", f, given(withSpace(host.Space{NoInodes: true})), one(Pass, "no fixed number")},
		look{"not to be told", f, given(noSpace), one(Unknown, "input/output")},
	)
}

func TestStateDirectory(t *testing.T) {
	roomy := withSpace(host.Space{Available: 100 << 20, Inodes: 1000})
	elsewhere := dynamic()
	elsewhere.Containerd.State = "/var/run-containerd"
	looks(t, "host/state-directory",
		look{"as Debian has it", withMounts("/run tmpfs rw,nosuid,nodev,noexec"), given(roomy), []want{{verdict: Pass, object: "/run/containerd", observed: "on tmpfs at /run"}}},
		look{"a disk", withMounts("/run tmpfs rw"), given(roomy, withSpec(elsewhere)), []want{{verdict: Warn, object: "/var/run-containerd", observed: "on ext4", wanted: "tmpfs", remedy: "below /run"}}},
		look{"another machine's", withMounts("/run nfs4 rw"), given(roomy), []want{{verdict: Fail, observed: "on nfs4", remedy: "below /run"}}},
		look{"read-only", withMounts("/run tmpfs ro"), given(roomy), []want{{verdict: Fail, observed: "/run (tmpfs) is mounted read-only", place: "/run", remedy: "mount -o remount,rw /run"}}},
		look{"full", withMounts("/run tmpfs rw"), given(withSpace(host.Space{Inodes: 1000})), []want{{verdict: Fail, observed: "/run (tmpfs) is full", place: "/run", remedy: "du -xah /run"}}},
		look{"without inodes", withMounts("/run tmpfs rw"), given(withSpace(host.Space{Available: 100 << 20})), one(Fail, "is full")},
		look{"nearly full", withMounts("/run tmpfs rw"), given(withSpace(host.Space{Available: 5 << 20, Inodes: 1000})), []want{{verdict: Warn, observed: "5 MiB free", wanted: "16 MiB"}}},
		look{"not to be told", withMounts("/run tmpfs rw"), given(noSpace), one(Unknown, "input/output")},
		look{"unreadable", files{mountinfo + "/": ""}, given(roomy), one(Unknown, "is a directory")},
	)
}

func TestMountOptions(t *testing.T) {
	looks(t, "host/mount-options",
		look{"none in the way", withMounts("/run tmpfs rw,noexec"), given(withSpec(dynamic()), applying), one(Pass, "no mount")},
		look{"programs", files{mountinfo: mounted("/usr/local ext4 rw,nosuid,noexec"), "/etc/fstab": "/dev/sda1 /usr/local ext4 noexec,nosuid 0 0\n"}, given(withSpec(dynamic()), applying), []want{{
			verdict: Fail, object: "/usr/local/bin", observed: "/usr/local is mounted noexec", place: "/etc/fstab:1",
			remedy: "mount -o remount,exec /usr/local\n# take noexec out of /etc/fstab:1",
		}}},
		look{"programs that are there", files{mountinfo: mounted("/opt ext4 rw,noexec"), "/opt/cni/bin/": "", "/usr/bin/containerd": ""}, given(prints(map[string]string{"/usr/bin/containerd --version": "containerd github.com/containerd/containerd 1.6.20 x"})), []want{{verdict: Fail, object: "/opt/cni/bin"}}},
		look{"images, as overlays", withMounts("/var ext4 rw,nosuid,nodev"), given(withSpec(dynamic()), applying), one(Pass, "no mount")},
		look{"images, noexec", withMounts("/var ext4 rw,nosuid,nodev,noexec"), given(withSpec(dynamic()), applying), []want{{
			verdict: Warn, object: "/var/lib/containerd", observed: "/var is mounted noexec", place: "/var", remedy: "mount -o remount,exec /var",
		}}},
		look{"images, bind-mounted", withMounts("/var ext4 rw,nosuid,nodev,noexec"), given(snapshots("native"), applying), []want{
			{verdict: Fail, observed: "noexec"}, {verdict: Warn, observed: "nosuid"}, {verdict: Warn, observed: "nodev"},
		}},
		look{"unreadable", files{mountinfo + "/": ""}, given(withSpec(dynamic()), applying), one(Unknown, "is a directory")},
		look{"unreadable, of images", files{mountinfo + "/": ""}, nil, one(Unknown, "is a directory")},
	)
}

func TestBackingFilesystem(t *testing.T) {
	on := func(fstype string) files { return withMounts("/var/lib/containerd " + fstype + " rw") }
	good := typed(true, true, nil)
	zfs := func(version string) files {
		f := on("zfs")
		f["/sys/module/zfs/version"] = version
		return f
	}
	looks(t, "host/backing-filesystem",
		look{"ext4", withMounts(), given(good), []want{{verdict: Pass, object: "/var/lib/containerd", observed: "ext4 at /"}}},
		look{"XFS", on("xfs"), given(good), one(Pass, "xfs")},
		look{"XFS without file types", on("xfs"), given(typed(false, true, nil)), []want{{
			verdict: Fail, observed: "xfs at /var/lib/containerd", wanted: "ftype=1", place: "/var/lib/containerd", remedy: "\numount /var/lib/containerd",
		}}},
		look{"without file types", withMounts("/var jfs rw"), given(typed(false, true, nil)), []want{{verdict: Fail, remedy: "# mount a local ext4"}}},
		look{"an empty one", on("xfs"), given(typed(false, false, nil)), one(Unknown, "no folder on it has an entry")},
		look{"one that may not be read", on("xfs"), given(typed(false, false, errors.New("permission denied"))), one(Unknown, "permission denied")},
		look{"a rare one", on("nilfs2"), given(good), one(Warn, "nilfs2")},
		look{"an overlay", withMounts("/var overlay rw"), given(good), []want{{verdict: Fail, observed: "overlay at /var", place: "/var"}}},
		look{"another machine's", on("nfs4"), given(good), one(Fail, "nfs4")},
		look{"another machine's, for native", on("nfs4"), given(good, snapshots("native")), one(Fail, "nfs4")},
		look{"FAT", on("vfat"), given(good), one(Fail, "vfat")},
		look{"stacked", on("ecryptfs"), given(good), one(Fail, "ecryptfs")},
		look{"read-only", on("squashfs"), given(good), one(Fail, "squashfs")},
		look{"memory", on("tmpfs"), given(good), []want{{verdict: Warn, observed: "tmpfs", wanted: "a disk"}}},
		look{"no overlays", on("vfat"), given(good, snapshots("native")), one(Pass, "vfat")},
		look{"ZFS", zfs("2.2.2-1\n"), nil, one(Pass, "OpenZFS 2.2.2-1")},
		look{"an older ZFS", zfs("2.1.11-1\n"), nil, []want{{verdict: Fail, observed: "OpenZFS 2.1.11", wanted: "2.2"}}},
		look{"a ZFS that does not say", on("zfs"), nil, one(Unknown, "which ZFS")},
		look{"a ZFS that speaks in riddles", zfs("new\n"), nil, one(Unknown, `"new"`)},
		look{"unreadable", files{mountinfo + "/": ""}, nil, one(Unknown, "is a directory")},
	)
}

func TestSnapshotter(t *testing.T) {
	const zdir = "/var/lib/containerd/io.containerd.snapshotter.v1.zfs"
	zfs := files{mountinfo: mounted(zdir + " zfs rw"), zdir + "/": "", "/usr/sbin/zfs": ""}
	stargz := dynamic()
	stargz.Containerd.Snapshotter = "stargz"
	stargz.Containerd.ProxyPlugins = []profiles.ProxyPlugin{{Name: "stargz", Type: "snapshot", Address: "/run/stargz.sock"}}
	pool := map[string]any{"pool_name": "thin"}
	erofs := func(more files) files {
		f := withMounts()
		f["/proc/sys/kernel/osrelease"] = "6.1.0\n"
		for p, content := range more {
			f[p] = content
		}
		return f
	}
	looks(t, "host/snapshotter",
		look{"overlayfs", withMounts(), nil, []want{{verdict: Pass, object: "overlayfs"}}},
		look{"native", withMounts(), given(snapshots("native")), []want{{verdict: Warn, observed: "full copy", remedy: "overlayfs"}}},
		look{"btrfs", withMounts("/var btrfs rw"), given(snapshots("btrfs")), one(Pass, "on btrfs")},
		look{"btrfs elsewhere", withMounts(), given(snapshots("btrfs")), []want{{verdict: Fail, observed: "on ext4", wanted: "btrfs"}}},
		look{"btrfs with a path of its own", withMounts("/data btrfs rw"), given(snapshots("btrfs", map[string]any{"root_path": "/data/b"})), one(Pass, "/data/b is on btrfs")},
		look{"zfs", zfs, given(snapshots("zfs")), one(Pass, "dataset /dev/sda1")},
		look{"zfs without a dataset", withMounts(), given(snapshots("zfs")), []want{{verdict: Fail, observed: "on ext4 at /", wanted: "dataset", remedy: "zfs create -o mountpoint=" + zdir}}},
		look{"zfs without its folder", withMounts("/var/lib/containerd zfs rw"), given(snapshots("zfs")), one(Fail, "on zfs at /var/lib/containerd")},
		look{"zfs without its program", files{mountinfo: zfs[mountinfo], zdir + "/": ""}, given(snapshots("zfs")), []want{{verdict: Fail, observed: "no zfs on the PATH", remedy: "zfsutils-linux"}}},
		look{"devmapper", files{"/dev/mapper/thin": "", "/sbin/dmsetup": ""}, given(snapshots("devmapper", pool)), one(Pass, "thin")},
		look{"devmapper without a name", nil, given(snapshots("devmapper")), one(Fail, "no pool_name")},
		look{"devmapper without a pool", nil, given(snapshots("devmapper", pool)), one(Fail, "/dev/mapper/thin is not there")},
		look{"devmapper without its program", files{"/dev/mapper/thin": ""}, given(snapshots("devmapper", pool)), one(Fail, "no dmsetup")},
		look{"blockfile", files{"/scratch": ""}, given(snapshots("blockfile", map[string]any{"scratch_file": "/scratch"})), one(Pass, "/scratch")},
		look{"blockfile without", nil, given(snapshots("blockfile")), one(Fail, "no scratch file")},
		look{"erofs", erofs(files{"/proc/filesystems": "\terofs\n", "/usr/bin/mkfs.erofs": ""}), given(snapshots("erofs")), one(Pass, "mkfs.erofs")},
		look{"erofs without its program", erofs(files{"/proc/filesystems": "\terofs\n"}), given(snapshots("erofs")), one(Fail, "no mkfs.erofs")},
		look{"erofs, not loaded", erofs(files{
			"/lib/modules/6.1.0/modules.dep": "kernel/fs/erofs/erofs.ko:\n", "/lib/modules/6.1.0/kernel/fs/erofs/erofs.ko": "", "/lib/modules/6.1.0/modules.builtin": "",
		}), given(snapshots("erofs")), []want{{verdict: Fail, observed: "not loaded", remedy: "modprobe erofs"}}},
		look{"a kernel without erofs", erofs(nil), given(snapshots("erofs")), one(Fail, "this kernel has no erofs")},
		look{"a proxy of a config that cannot be read", files{systemd.Binary: ""}, given(withSpec(stargz), prints(map[string]string{systemd.Binary + " --version": "hello"})), one(Unknown, "no version")},
		look{"btrfs, unreadable", files{mountinfo + "/": ""}, given(snapshots("btrfs")), one(Unknown, "is a directory")},
		look{"zfs, unreadable", files{mountinfo + "/": ""}, given(snapshots("zfs")), one(Unknown, "is a directory")},
		look{"erofs, unreadable", erofs(files{"/lib/modules/6.1.0/modules.builtin/": ""}), given(snapshots("erofs")), one(Unknown, "is a directory")},
		look{"a proxy", files{"/run/stargz.sock": ""}, given(withSpec(stargz), applying), one(Pass, "/run/stargz.sock")},
		look{"a proxy that is not there", nil, given(withSpec(stargz), applying), []want{{verdict: Fail, observed: "nobody has made its socket", remedy: "/run/stargz.sock"}}},
		look{"a proxy that could be started", files{"/etc/systemd/system/stargz-snapshotter.service": ""}, given(withSpec(stargz), applying), []want{{verdict: Fail, remedy: "systemctl enable --now stargz-snapshotter.service"}}},
		look{"one that nobody knows", nil, given(snapshots("nydus"), applying), []want{{verdict: Fail, object: "nydus", wanted: "proxy plugin nydus"}}},
	)
}

// The config that the daemon reads says where images are, unless a run is to change that.
func TestWhatIsIntended(t *testing.T) {
	f := withMounts("/srv nfs4 rw")
	f["/etc/containerd/config.toml"] = "version = 2\nroot = \"/srv/containerd\"\n"
	looks(t, "host/backing-filesystem",
		look{"the config", f, given(typed(true, true, nil), withSpec(dynamic())), []want{{verdict: Fail, object: "/srv/containerd"}}},
		look{"the profile", f, given(typed(true, true, nil), withSpec(dynamic()), applying), []want{{verdict: Pass, object: "/var/lib/containerd"}}},
	)
}
