package checks

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/configtoml"
)

// storageChecks are about the filesystems that programs, images and state lie on.
func storageChecks() []Check {
	return []Check{
		{
			ID: "host/read-only", Stage: Preflight, Severity: Required,
			Why:    "A folder on a read-only filesystem takes no files: nothing can be installed or changed on this host.",
			Source: "mount(8), ro; open(2), EROFS",
			Needs:  []string{NeedLive, NeedProfile},
			Remedy: "mount the filesystem writable",
			Run:    readOnly,
		},
		{
			ID: "host/space", Stage: Preflight, Severity: Required,
			Why:    "Without space no image is unpacked, and below 15 % the kubelet removes images and then evicts pods.",
			Source: "kubernetes.io, Node-pressure Eviction: imagefs.available<15%; docs.k0sproject.io, System requirements: 1.8 GiB",
			Needs:  []string{NeedLive},
			Remedy: "free space on the filesystem of containerd's root, or give it one of its own",
			Run:    single(space),
		},
		{
			ID: "host/inodes", Stage: Preflight, Severity: Required,
			Why:    "An image is tens of thousands of files: without inodes the disk is full while df shows space.",
			Source: "kubernetes.io, Node-pressure Eviction: imagefs.inodesFree<5%; df(1), -i",
			// Filesystems that make inodes as they go have few when they have little space.
			Needs:  []string{NeedLive, "host/space"},
			Remedy: "remove small files, or use a filesystem with more inodes (mkfs.ext4 -i, XFS)",
			Run:    single(inodes),
		},
		{
			ID: "host/state-directory", Stage: Preflight, Severity: Required,
			Why:    "Sockets, mounts and process numbers of running containers are kept in the state folder: they must not outlive a reboot, and where nothing can be written no container starts.",
			Source: "containerd docs/ops.md, Base Configuration: state",
			Needs:  []string{NeedLive},
			Remedy: "have containerd.state below /run, on a tmpfs",
			Run:    single(stateDirectory),
		},
		{
			ID: "host/mount-options", Stage: Preflight, Severity: Required,
			Why:    "Programs on a filesystem mounted noexec do not start; neither do those of containers whose root is a bind mount from it.",
			Source: "mount(8), noexec; execve(2), EACCES",
			Needs:  []string{NeedLive},
			Remedy: "mount the filesystem without noexec",
			Run:    mountOptions,
		},
		{
			ID: "host/backing-filesystem", Stage: Preflight, Severity: Required,
			Why:    "overlayfs refuses network filesystems, another overlayfs, FAT and XFS made without file types as its upper layer; containerd's database needs a local one in any case.",
			Source: "kernel Documentation/filesystems/overlayfs.rst, Upper and Lower; containerd plugins/snapshots/overlay: does not support d_type",
			Needs:  []string{NeedLive},
			Remedy: "have containerd.root on a local ext4, XFS (ftype=1) or btrfs",
			Run:    single(backingFilesystem),
		},
		{
			ID: "host/snapshotter", Stage: Preflight, Severity: Required,
			Why:    "A snapshotter whose conditions are not met is left out, and CRI with it: the kubelet sees an unknown service.",
			Source: "containerd docs/snapshotters; plugins/snapshots",
			Needs:  []string{NeedLive},
			Remedy: "prepare what the snapshotter needs, or choose overlayfs",
			Run:    single(snapshotterFits),
		},
	}
}

// fstabPlace is the line of /etc/fstab that mounts something there, "" is none.
func (n *Node) fstabPlace(mountPoint string) string {
	lines, err := n.lines("/etc/fstab")
	if err != nil {
		return ""
	}
	for _, l := range lines {
		if f := strings.Fields(l.text); len(f) >= 2 && path.Clean(unescape(f[1])) == mountPoint {
			return l.place
		}
	}
	return ""
}

// mountPlace is what sets a mount's options.
func (n *Node) mountPlace(m Mount) string {
	if p := n.fstabPlace(m.Path); p != "" {
		return p
	}
	return m.Path
}

// remount is the line that changes a mount's option, and what keeps it so.
func (n *Node) remount(m Mount, option, instead string) string {
	line := "mount -o remount," + instead + " " + m.Path
	if p := n.fstabPlace(m.Path); p != "" {
		line += "\n# take " + option + " out of " + p + ", too"
	}
	return line
}

// writtenTo are the folders that the profile's files and programs go to.
func (n *Node) writtenTo() []string {
	dirs := []string{"/usr/local/bin", "/etc/containerd", "/etc/systemd/system", "/var/lib/nodeprep"}
	if n.Spec.Runc.Installed() {
		dirs = append(dirs, "/usr/local/sbin")
	}
	if n.Spec.CNI.Installed() {
		dirs = append(dirs, "/opt/cni/bin")
	}
	if n.Spec.CNI.Network != nil {
		dirs = append(dirs, "/etc/cni/net.d")
	}
	return dirs
}

func readOnly(_ context.Context, n *Node) []Result {
	var faults []Result
	var seen []string
	for _, dir := range n.writtenTo() {
		m, err := n.MountOf(dir)
		if err != nil {
			return unknown(err)
		}
		if slices.Contains(seen, m.Path) || !slices.Contains(m.Options, "ro") && !slices.Contains(m.SuperOptions, "ro") {
			continue
		}
		seen = append(seen, m.Path)
		r := Result{
			Verdict: Fail, Object: dir, Observed: fmt.Sprintf("%s (%s) is mounted read-only", m.Path, m.FSType), Wanted: "a writable filesystem",
			Place: n.mountPlace(m), Remedy: n.remount(m, "ro", "rw"),
		}
		if slices.Contains([]string{"squashfs", "erofs", "iso9660", "cramfs"}, m.FSType) {
			r.Remedy = "# " + m.FSType + " cannot be written: mount a writable filesystem at " + dir
		}
		faults = append(faults, r)
	}
	return orPass(faults, "%s are writable", strings.Join(n.writtenTo(), ", "))
}

// What is too little for images: of less than a GiB, nothing of a node's own unpacks.
const (
	leastSpace   = 1 << 30
	scarceSpace  = 15 // per cent
	leastInodes  = 1000
	scarceInodes = 5 // per cent
	leastState   = 1 << 20
	scarceState  = 16 << 20
)

func space(_ context.Context, n *Node) Result {
	dir, place := n.dataRoot()
	s, err := n.Host.SpaceAt(dir)
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{
		Verdict: Pass, Object: dir, Place: place,
		Observed: fmt.Sprintf("%s of %s free (%d %%)", bytesText(s.Available), bytesText(s.Total), percent(s.Available, s.Total)),
	}
	switch {
	case s.Available < leastSpace:
		r.Verdict, r.Wanted = Fail, "at least "+bytesText(leastSpace)
	case percent(s.Available, s.Total) < scarceSpace:
		r.Verdict, r.Wanted = Warn, fmt.Sprintf("at least %d %%", scarceSpace)
	default:
		return r
	}
	at := dir
	if m, err := n.MountOf(dir); err == nil {
		at, r.Place = m.Path, m.Path+" ("+m.Source+")"
	}
	r.Remedy = "# what is large on it, the largest last; remove what is not needed, or set containerd.root to another disk\n" +
		"du -xh --max-depth=2 " + at + " | sort -h | tail -n 20"
	return r
}

func inodes(_ context.Context, n *Node) Result {
	dir, place := n.dataRoot()
	s, err := n.Host.SpaceAt(dir)
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{Verdict: Pass, Object: dir, Place: place, Observed: fmt.Sprintf("%d of %d inodes free (%d %%)", s.Inodes, s.TotalInodes, percent(s.Inodes, s.TotalInodes))}
	switch {
	case s.NoInodes:
		r.Observed = "the filesystem has no fixed number of inodes"
		return r
	case s.Inodes < leastInodes:
		r.Verdict, r.Wanted = Fail, fmt.Sprintf("at least %d", leastInodes)
	case percent(s.Inodes, s.TotalInodes) < scarceInodes:
		r.Verdict, r.Wanted = Warn, fmt.Sprintf("at least %d %%", scarceInodes)
	default:
		return r
	}
	at := dir
	if m, err := n.MountOf(dir); err == nil {
		at, r.Place = m.Path, m.Path+" ("+m.Source+")"
	}
	r.Remedy = "# which folders have most files, the fullest last; remove what is not needed\n" +
		"du -x --inodes --max-depth=2 " + at + " | sort -n | tail -n 20"
	return r
}

func stateDirectory(_ context.Context, n *Node) Result {
	dir, place := n.stateDir()
	m, err := n.MountOf(dir)
	if err != nil {
		return unknown(err)[0]
	}
	s, err := n.Host.SpaceAt(dir)
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{
		Verdict: Pass, Object: dir, Observed: fmt.Sprintf("on %s at %s, %s free", m.FSType, m.Path, bytesText(s.Available)), Place: place,
		Wanted: "a writable tmpfs",
	}
	below := "# have containerd.state below /run in the profile, or state in containerd's config"
	switch {
	case slices.Contains(m.Options, "ro") || slices.Contains(m.SuperOptions, "ro"):
		r.Verdict, r.Observed, r.Place = Fail, fmt.Sprintf("%s (%s) is mounted read-only", m.Path, m.FSType), n.mountPlace(m)
		r.Remedy = n.remount(m, "ro", "rw")
	case remote(m.FSType):
		r.Verdict, r.Remedy = Fail, below
	case s.Available < leastState || !s.NoInodes && s.Inodes == 0:
		r.Verdict, r.Observed, r.Place = Fail, fmt.Sprintf("%s (%s) is full", m.Path, m.FSType), m.Path
		r.Wanted = "some MiB and inodes free"
		r.Remedy = "# what is large in it, the largest last; remove what is not needed\ndu -xah " + m.Path + " | sort -h | tail -n 20"
	case s.Available < scarceState:
		r.Verdict, r.Place, r.Wanted = Warn, m.Path, "at least "+bytesText(scarceState)+" free"
		r.Remedy = "du -xah " + m.Path + " | sort -h | tail -n 20"
	case m.FSType != "tmpfs" && m.FSType != "ramfs":
		r.Verdict, r.Remedy = Warn, below
		r.Note = "what is there after a reboot is of containers that are gone"
	default:
		r.Wanted = ""
	}
	return r
}

// programDirs are where programs of the node are, or will be.
func (n *Node) programDirs() []string {
	if n.Spec != nil && n.Applying {
		dirs := []string{"/usr/local/bin"}
		if n.Spec.Runc.Installed() {
			dirs = append(dirs, "/usr/local/sbin")
		}
		if n.Spec.CNI.Installed() {
			dirs = append(dirs, "/opt/cni/bin")
		}
		return dirs
	}
	var dirs []string
	for _, p := range []string{n.DaemonBinary(), n.tool("runc")} {
		if p != "" {
			dirs = append(dirs, path.Dir(p))
		}
	}
	if c, err := n.Config(); err == nil {
		bin, _, _, _, _ := c.CNI()
		dirs = append(dirs, slices.DeleteFunc(slices.Clone(bin), func(d string) bool { return !n.exists(d) })...)
	}
	if dirs == nil && n.Spec != nil {
		dirs = []string{"/usr/local/bin"}
	}
	slices.Sort(dirs)
	return slices.Compact(dirs)
}

func mountOptions(_ context.Context, n *Node) []Result {
	var faults []Result
	var seen []string
	for _, dir := range n.programDirs() {
		m, err := n.MountOf(dir)
		if err != nil {
			return unknown(err)
		}
		if slices.Contains(m.Options, "noexec") && !slices.Contains(seen, m.Path) {
			seen = append(seen, m.Path)
			faults = append(faults, Result{
				Verdict: Fail, Object: dir, Observed: m.Path + " is mounted noexec", Wanted: "a mount that lets programs start",
				Place: n.mountPlace(m), Remedy: n.remount(m, "noexec", "exec"),
			})
		}
	}
	dir, _ := n.dataRoot()
	m, err := n.MountOf(dir)
	if err != nil {
		return unknown(err)
	}
	// An overlay does not inherit options of what it is made of, and btrfs and zfs mount
	// on their own; bind mounts inherit: native's roots, and volumes that images declare.
	name, _ := n.snapshotter()
	for _, o := range []struct{ option, instead, note string }{
		{"noexec", "exec", "programs of containers do not start"},
		{"nosuid", "suid", "set-user-ID programs of containers have no effect"},
		{"nodev", "dev", "device files of images cannot be opened"},
	} {
		if !slices.Contains(m.Options, o.option) || slices.Contains(seen, m.Path) {
			continue
		}
		r := Result{
			Verdict: Warn, Object: dir, Observed: m.Path + " is mounted " + o.option, Wanted: "no " + o.option,
			Place: n.mountPlace(m), Remedy: n.remount(m, o.option, o.instead), Note: o.note,
		}
		switch {
		case name == "native" && o.option == "noexec":
			r.Verdict = Fail
		case name == "native":
		case o.option == "noexec":
			r.Note = "only volumes that images declare are affected: they are bind mounts from it"
		default:
			continue
		}
		faults = append(faults, r)
	}
	return orPass(faults, "no mount of programs and images has an option in their way")
}

// remote are filesystems whose files are another machine's.
func remote(fstype string) bool {
	return slices.Contains([]string{"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "afs", "glusterfs", "fuse.sshfs", "fuse.glusterfs", "fuse.s3fs", "fuse.rclone"}, fstype)
}

// overlaid are the snapshotters whose containers' roots are overlays.
func overlaid(snapshotter string) bool {
	return !slices.Contains([]string{"native", "btrfs", "zfs", "devmapper", "blockfile"}, snapshotter)
}

func backingFilesystem(_ context.Context, n *Node) Result {
	dir, place := n.dataRoot()
	name, _ := n.snapshotter()
	m, err := n.MountOf(dir)
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{
		Verdict: Pass, Object: dir, Observed: m.FSType + " at " + m.Path, Wanted: "a local ext4, XFS (ftype=1) or btrfs",
		Place: place,
	}
	fail := func(note string) Result {
		r.Verdict, r.Note, r.Place = Fail, note, n.mountPlace(m)
		r.Remedy = "# mount a local ext4 or XFS at " + dir + ", or set containerd.root to a folder on one"
		if m.Path == dir {
			r.Remedy += "; or go back to what lies below this mount:\numount " + dir
		}
		return r
	}
	if remote(m.FSType) {
		return fail("locks and memory maps of containerd's database are not safe on another machine's files")
	}
	if !overlaid(name) {
		r.Wanted, r.Note = "", "the snapshotter "+name+" makes no overlays"
		return r
	}
	switch m.FSType {
	case "overlay", "aufs":
		return fail("overlayfs does not take another overlay for its upper layer: this is a container, or a live system")
	case "vfat", "msdos", "exfat", "ntfs", "ntfs3", "fuseblk", "hfsplus", "udf":
		return fail("it has neither owners nor the extended attributes that overlayfs needs")
	case "ecryptfs", "fuse.gocryptfs", "fuse.encfs":
		return fail("overlayfs does not take a stacked filesystem for its upper layer")
	case "squashfs", "erofs", "iso9660", "cramfs":
		return fail("it cannot be written")
	case "tmpfs", "ramfs", "rootfs":
		r.Verdict, r.Wanted = Warn, "a disk"
		r.Note = "images take up memory, and are gone after a reboot"
		return r
	case "zfs":
		return overlayOnZFS(n, &r, fail)
	}
	typed, err := n.typesEntries(dir, m.Path)
	switch {
	case err != nil:
		return unknown(fmt.Errorf("whether %s at %s tells the types of entries: %w", m.FSType, m.Path, err))[0]
	case !typed && m.FSType == "xfs":
		return fail("it was made without file types (ftype=0): only mkfs.xfs -n ftype=1 changes that, which takes all of its data")
	case !typed:
		return fail("it does not tell the types of entries (d_type)")
	}
	if !slices.Contains([]string{"ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs", "bcachefs"}, m.FSType) {
		r.Verdict, r.Note = Warn, "overlayfs on it is little tried"
		return r
	}
	r.Wanted = ""
	return r
}

// overlayOnZFS: ZFS has what overlayfs needs since OpenZFS 2.2 (its release notes).
func overlayOnZFS(n *Node, r *Result, fail func(string) Result) Result {
	version, err := n.text("/sys/module/zfs/version")
	if err != nil {
		return unknown(fmt.Errorf("which ZFS this is: %w", err))[0]
	}
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err != nil {
		return unknown(fmt.Errorf("which ZFS this is: /sys/module/zfs/version has %q", version))[0]
	}
	r.Observed += ", OpenZFS " + version
	if major < 2 || major == 2 && minor < 2 {
		r.Wanted = "OpenZFS 2.2 or newer, the snapshotter zfs, or another filesystem"
		return fail("before OpenZFS 2.2 overlayfs does not take it")
	}
	r.Wanted = ""
	return *r
}

// errNoEntry is that there is nothing whose type could be told.
var errNoEntry = errors.New("no folder on it has an entry to look at")

// typesEntries says whether the filesystem of dir, mounted at top, tells entries' types.
func (n *Node) typesEntries(dir, top string) (bool, error) {
	var denied error
	for p := dir; ; p = path.Dir(p) {
		typed, found, err := n.Host.DirTypes(p)
		switch {
		case err == nil && found:
			return typed, nil
		case err != nil && !absent(err):
			denied = err
		}
		if p == top || p == "/" {
			break
		}
	}
	if denied != nil {
		return false, denied
	}
	return false, errNoEntry
}

func snapshotterFits(_ context.Context, n *Node) Result {
	name, place := n.snapshotter()
	root, _ := n.dataRoot()
	own := func(plugin string) (id, dir string) {
		id = "io.containerd.snapshotter.v1." + plugin
		if dir = n.pluginKey(id, "root_path"); dir == "" {
			dir = path.Join(root, id)
		}
		return id, dir
	}
	r := Result{Verdict: Pass, Object: name, Place: place}
	fail := func(observed, wanted, remedy string) Result {
		r.Verdict, r.Observed, r.Wanted, r.Remedy = Fail, observed, wanted, remedy
		return r
	}
	id, dir := own(name)
	switch name {
	case "overlayfs":
		r.Observed = "its conditions are kernel/overlay and host/backing-filesystem"
	case "native":
		r.Verdict, r.Observed, r.Wanted = Warn, "each layer is a full copy", "overlayfs"
		r.Note = "it works everywhere, and takes many times the space and time"
		r.Remedy = "# set containerd.snapshotter: overlayfs; images are pulled again, and the data of this one stays until it is removed"
	case "btrfs":
		m, err := n.MountOf(dir)
		if err != nil {
			return unknown(err)[0]
		}
		r.Observed = dir + " is on " + m.FSType
		if m.FSType != "btrfs" {
			return fail(r.Observed, "btrfs", "# mount a btrfs at "+dir+", or set containerd.snapshotter: overlayfs")
		}
	case "zfs":
		return n.zfsFits(r, dir)
	case "devmapper":
		pool := n.pluginKey(id, "pool_name")
		switch {
		case pool == "":
			return fail("no pool_name is set", "pool_name of a thin pool", "# set plugins."+id+".pool_name in containerd.settings")
		case !n.exists("/dev/mapper/" + pool):
			return fail("/dev/mapper/"+pool+" is not there", "the thin pool "+pool, "# make the thin pool "+pool+" with lvcreate --type thin-pool or dmsetup")
		case n.tool("dmsetup") == "":
			return fail("no dmsetup on the PATH", "dmsetup", n.installLine("dmsetup", "device-mapper"))
		}
		r.Observed = "the pool " + pool + " and dmsetup are there"
	case "blockfile":
		file := n.pluginKey(id, "scratch_file")
		if file == "" || !n.exists(file) {
			return fail("no scratch file "+file, "scratch_file, an empty filesystem", "# set plugins."+id+".scratch_file in containerd.settings to a file with an empty ext4")
		}
		r.Observed = "the scratch file " + file + " is there"
	case "erofs":
		state, err := n.ModuleState("erofs")
		switch {
		case err != nil:
			return unknown(err)[0]
		case !state.InEffect() && state == ModuleLoadable:
			return fail("the module erofs is not loaded", "the module erofs", "echo erofs > /etc/modules-load.d/erofs.conf\nmodprobe erofs")
		case !state.InEffect():
			return fail("this kernel has no erofs", "a kernel with EROFS_FS", "# boot a kernel with CONFIG_EROFS_FS, or set containerd.snapshotter: overlayfs")
		case n.tool("mkfs.erofs") == "":
			return fail("no mkfs.erofs on the PATH", "mkfs.erofs of erofs-utils", n.installLine("erofs-utils", "erofs-utils"))
		}
		r.Observed = "the module erofs and mkfs.erofs are there"
	default:
		return n.proxyFits(r, name)
	}
	return r
}

func (n *Node) zfsFits(r Result, dir string) Result {
	r.Wanted = "a ZFS dataset mounted there"
	m, err := n.MountOf(dir)
	switch {
	case err != nil:
		return unknown(err)[0]
	case m.FSType != "zfs" || m.Path != dir && !n.exists(dir):
		r.Verdict, r.Observed = Fail, dir+" is on "+m.FSType+" at "+m.Path
		r.Remedy = "# make a dataset of one of your pools there (zpool list), and set systemd.requiresMountsFor:\n# zfs create -o mountpoint=" + dir + " POOL/containerd"
	case n.tool("zfs") == "":
		r.Verdict, r.Observed, r.Wanted = Fail, "no zfs on the PATH", "zfs, which the snapshotter runs"
		r.Remedy = n.installLine("zfsutils-linux", "zfs")
	default:
		r.Verdict, r.Observed, r.Wanted = Pass, dir+" is on the dataset "+m.Source, ""
	}
	return r
}

// proxyFits is for a snapshotter that is a process of its own, such as stargz.
func (n *Node) proxyFits(r Result, name string) Result {
	address := ""
	if n.Spec != nil && n.Applying {
		for _, p := range n.Spec.Containerd.ProxyPlugins {
			if p.Name == name && p.Type == "snapshot" {
				address = p.Address
			}
		}
	} else if c, err := n.Config(); err == nil {
		i := slices.IndexFunc(c.ProxyPlugins(), func(p configtoml.ProxyPlugin) bool { return p.Name == name && p.Type == "snapshot" })
		if i >= 0 {
			address = c.ProxyPlugins()[i].Address
		}
	} else {
		return unknown(err)[0]
	}
	switch {
	case address == "":
		r.Verdict, r.Observed = Fail, "containerd has no snapshotter of that name, and no proxy plugin is called so"
		r.Wanted = "a proxy plugin " + name + " of type snapshot"
		r.Remedy = "# add containerd.proxyPlugins." + name + " with its address, or set containerd.snapshotter: overlayfs"
	case !n.exists(address):
		r.Verdict, r.Observed, r.Wanted = Fail, "nobody has made its socket "+address, "its service running, before containerd"
		r.Remedy = "# install and start what listens at " + address
		if unit := name + "-snapshotter.service"; n.unitFile(unit) != "" {
			r.Remedy = "systemctl enable --now " + unit
		}
	default:
		r.Observed = "its socket " + address + " is there"
	}
	return r
}
