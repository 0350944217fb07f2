package checks

import (
	"bytes"
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
)

// boardChecks are about boards such as the Raspberry Pi. Those that also make sense
// elsewhere are asked everywhere; the others are skipped where there is no board.
func boardChecks() []Check {
	return []Check{
		{
			ID: "board/firmware-model", Stage: Preflight, Severity: Recommended,
			Why:    "Which board it is decides where its boot loader has the kernel's command line, and what a remedy must change.",
			Source: "devicetree specification, root node, property model",
			Needs:  []string{NeedLive},
			Remedy: "none: it names the board",
			Run:    firmwareModel,
		},
		{
			ID: "board/memory-cgroup", Stage: Preflight, Severity: Required,
			Why:    "Without the memory controller no pod has a memory limit, and the kubelet does not start: boards turn it off by default to save memory.",
			Source: "raspberrypi/linux issues 1950 and 6980; kernel admin-guide/kernel-parameters, cgroup_disable",
			Remedy: "on a Raspberry Pi add cgroup_enable=memory cgroup_memory=1 to the one line of cmdline.txt, elsewhere take cgroup_disable=memory away, and reboot",
			Run:    single(memoryCgroup),
		},
		{
			ID: "board/page-size", Stage: Preflight, Severity: Recommended,
			Why:    "Programs that were built for 4 KiB pages, such as those with jemalloc, end at once on a kernel with 16 or 64 KiB ones.",
			Source: "getauxval(3), AT_PAGESZ; jemalloc issues 467 and 2639 (unsupported system page size)",
			Needs:  []string{NeedLive},
			Remedy: "boot a kernel with 4 KiB pages: kernel=kernel8.img in config.txt of a Raspberry Pi 5",
			Run:    single(pageSize),
		},
		{
			ID: "board/userland", Stage: Preflight, Severity: Required,
			Why:    "A 32-bit userland on a 64-bit kernel has no loader for 64-bit programs: they end in \"no such file or directory\".",
			Source: "execve(2), ENOENT; elf(5), PT_INTERP",
			Needs:  []string{NeedLive},
			Remedy: "install a 64-bit system, or take containerd's static variant",
			Run:    single(userland),
		},
		{
			ID: "board/storage", Stage: Preflight, Severity: Recommended,
			Why:    "Image layers and container logs write much and at random places, for which SD cards and USB sticks are slow and wear out, and what is in memory is gone after a boot.",
			Source: "k3s documentation, requirements, disks (SD cards and eMMC are too slow)",
			Needs:  []string{NeedLive, "host/backing-filesystem"},
			Remedy: "put containerd's root on an SSD, with containerd.root or a mount",
			Run:    single(storage),
		},
		{
			ID: "board/under-voltage", Stage: Audit, Severity: Recommended,
			Why:    "A board with too weak a supply is slowed down without a word, and corrupts what it writes when the voltage drops further.",
			Source: "Raspberry Pi documentation, vcgencmd get_throttled",
			Needs:  []string{NeedLive},
			Remedy: "use the supply that the board's vendor names, and take off what it feeds by USB",
			Run:    underVoltage,
		},
	}
}

// board is the name that a board's firmware gives it, "" for machines without a device tree.
func (n *Node) board() string {
	for _, p := range []string{"/proc/device-tree/model", "/sys/firmware/devicetree/base/model"} {
		if b, err := n.Host.Root.ReadFile(p); err == nil {
			return strings.TrimSpace(string(bytes.TrimRight(b, "\x00")))
		}
	}
	return ""
}

func firmwareModel(_ context.Context, n *Node) []Result {
	model := n.board()
	if model == "" {
		return skip("no board: no device tree names a model")
	}
	return []Result{{Verdict: Pass, Observed: model, Place: "/proc/device-tree/model"}}
}

// memoryWords turn the controller on: the first is of the kernels of the Raspberry Pi, the
// second of older ones.
func memoryWords() []string { return []string{"cgroup_enable=memory", "cgroup_memory=1"} }

// memoryEdit is the change of the command line that turns the memory controller on.
func (n *Node) memoryEdit(enable bool) cmdlineEdit {
	var add []string
	if enable {
		add = memoryWords()
	}
	return n.editCmdline(func(w string) string {
		if w == "cgroup_memory=0" {
			return ""
		}
		return withoutItem(w, "cgroup_disable", "memory")
	}, add...)
}

func memoryCgroup(_ context.Context, n *Node) Result {
	if !n.Live {
		return memoryCgroupOfImage(n)
	}
	const wanted = "the memory controller"
	mode, err := n.CgroupMode()
	if err != nil {
		return unknown(err)[0]
	}
	v1, v1Err := n.v1Controllers()
	if mode == CgroupV2 {
		has, err := n.controllers("")
		if err != nil {
			return unknown(err)[0]
		}
		if slices.Contains(has, "memory") {
			return Result{Verdict: Pass, Observed: "on", Place: cgroupRoot + "/cgroup.controllers"}
		}
		if place := n.v1Mount("memory"); place != "" {
			return Result{
				Verdict: Fail, Observed: "held by a cgroup v1 mount, so that v2 does not have it", Wanted: wanted, Place: place,
				Remedy: "umount " + quote(place),
			}
		}
	} else {
		if v1Err != nil {
			return unknown(v1Err)[0]
		}
		if v1["memory"] {
			return Result{Verdict: Pass, Observed: "on", Place: "/proc/cgroups"}
		}
	}
	r := Result{Verdict: Fail, Wanted: wanted}
	words, err := n.Cmdline()
	if err != nil {
		return unknown(err)[0]
	}
	word := disabledController(words, "memory")
	config, configErr := n.KernelConfig()
	switch {
	case word != "":
		r.Observed = "off: the kernel was booted with " + word
		if order := slices.Index(words, memoryWords()[0]); order >= 0 && order < slices.Index(words, word) {
			r.Note = memoryWords()[0] + " stands before it, and the later word counts"
		}
	case configErr == nil && config.Options["MEMCG"] != "y":
		r.Observed, r.Place = "the kernel was built without CONFIG_MEMCG", config.Path
		r.Remedy = "# install a kernel that has CONFIG_MEMCG, and reboot"
		return r
	default:
		r.Observed = "off in this kernel unless its command line says otherwise"
	}
	// Only the kernels of boards know words that turn it on; others have it on, unless a
	// word turns it off.
	edit := n.memoryEdit(n.isPi() || word == "")
	r.Place, r.Remedy = edit.place, edit.remedy
	if board := n.board(); board != "" {
		r.Note = strings.TrimPrefix(strings.Join([]string{r.Note, board}, "; "), "; ")
	}
	return r
}

// v1Mount is where a controller is mounted as cgroup v1.
func (n *Node) v1Mount(controller string) string {
	mounts, err := n.Mounts()
	if err != nil {
		return ""
	}
	for _, m := range mounts {
		if m.FSType == "cgroup" && slices.Contains(m.SuperOptions, controller) {
			return m.Path
		}
	}
	return ""
}

func (n *Node) isPi() bool {
	return strings.Contains(n.board(), "Raspberry Pi") || n.exists("/boot/firmware/config.txt") || n.exists("/boot/config.txt")
}

// memoryCgroupOfImage looks at what an image will be booted with: its loader's files and,
// on a Raspberry Pi, the device tree, whose words come first.
func memoryCgroupOfImage(n *Node) Result {
	b := n.bootLoader()
	if b == nil {
		return Result{Verdict: Skip, Observed: "the image has no boot loader's files with a kernel command line"}
	}
	var words []string
	for _, l := range b.lines {
		words = append(words, l.words...)
	}
	r := Result{Verdict: Fail, Wanted: "the memory controller"}
	if word := disabledController(words, "memory"); word != "" {
		edit := n.memoryEdit(false)
		r.Observed, r.Place, r.Remedy = "off: the image boots with "+word, edit.place, edit.remedy
		return r
	}
	if n.isPi() && !slices.Contains(words, memoryWords()[0]) {
		tree, err := n.deviceTreeWith("cgroup_disable=memory")
		if err != nil {
			return unknown(err)[0]
		}
		if tree != "" {
			edit := n.memoryEdit(true)
			r.Observed, r.Place, r.Remedy = "off: "+tree+" has cgroup_disable=memory", edit.place, edit.remedy
			return r
		}
	}
	return Result{Verdict: Pass, Observed: "nothing in the image turns it off", Place: b.place}
}

// deviceTreeWith is a device tree of the Raspberry Pi's firmware that has this text, "" is
// none.
func (n *Node) deviceTreeWith(text string) (string, error) {
	for _, dir := range []string{"/boot/firmware/current", "/boot/firmware", "/boot"} {
		entries, err := n.Host.Root.ReadDir(dir)
		if err != nil {
			if absent(err) {
				continue
			}
			return "", err
		}
		for _, e := range entries {
			if path.Ext(e.Name()) != ".dtb" {
				continue
			}
			b, err := n.Host.Root.ReadFile(path.Join(dir, e.Name()))
			if err != nil {
				return "", err
			}
			if bytes.Contains(b, []byte(text)) {
				return path.Join(dir, e.Name()), nil
			}
		}
	}
	return "", nil
}

func pageSize(_ context.Context, n *Node) Result {
	r := Result{Verdict: Pass, Observed: fmt.Sprintf("%d bytes", n.Host.PageSize)}
	if n.Host.PageSize == 4096 {
		return r
	}
	r.Verdict, r.Wanted, r.Place = Fail, "4096 bytes", "the running kernel"
	r.Remedy = "# boot a kernel that was built with 4 KiB pages"
	for _, p := range []string{"/boot/firmware/config.txt", "/boot/config.txt"} {
		if n.exists(p) {
			r.Place, r.Remedy = p, "printf '\\n[all]\\nkernel=kernel8.img\\n' >> "+quote(p)+"\nreboot"
			break
		}
	}
	return r
}

// userland compares the kernel's architecture with that of the program that runs first.
func userland(_ context.Context, n *Node) Result {
	u, err := n.Host.Uname()
	if err != nil {
		return unknown(err)[0]
	}
	wide := map[string]struct {
		machine elf.Machine
		loaders []string
	}{
		"aarch64": {elf.EM_AARCH64, []string{"/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-aarch64.so.1"}},
		"x86_64":  {elf.EM_X86_64, []string{"/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1"}},
	}
	kernel, is64 := wide[u.Machine]
	if !is64 {
		return Result{Verdict: Pass, Observed: "the kernel is " + u.Machine + ", as its programs are"}
	}
	program := "/sbin/init"
	if !n.exists(program) {
		program = "/bin/sh"
	}
	machine, class, err := n.elfOf(program)
	if err != nil {
		return unknown(err)[0]
	}
	bits := "64-bit"
	if class == elf.ELFCLASS32 {
		bits = "32-bit"
	}
	r := Result{Verdict: Pass, Observed: "kernel " + u.Machine + ", " + bits + " programs", Place: program}
	if machine == kernel.machine || class == elf.ELFCLASS64 {
		return r
	}
	if slices.ContainsFunc(kernel.loaders, n.exists) {
		r.Observed += ", and a loader for 64-bit ones"
		return r
	}
	if n.Spec != nil && n.Spec.Containerd.Static {
		r.Observed += "; the static containerd needs no loader"
		return r
	}
	if !n.wants64() {
		r.Observed += "; nothing of containerd's here is a 64-bit one"
		return r
	}
	r.Verdict, r.Wanted = Fail, "64-bit programs, or "+kernel.loaders[0]
	if pkg := map[string]string{"aarch64": "arm64", "x86_64": "amd64"}[u.Machine]; n.tool("dpkg") != "" {
		r.Remedy = "dpkg --add-architecture " + pkg + " && apt-get update && apt-get install -y libc6:" + pkg
	} else {
		r.Remedy = "# install a 64-bit system, or set containerd.variant: static"
	}
	return r
}

// wants64 says whether a program of containerd's is a 64-bit one, or will be.
func (n *Node) wants64() bool {
	if n.Spec != nil && n.Spec.Containerd.Installed() {
		return n.Spec.Arch != "arm" && n.Spec.Arch != "386"
	}
	return slices.ContainsFunc(n.programs(), func(p *program) bool {
		if !p.usable() || p.interpreter != "" {
			return false
		}
		_, class, err := n.elfOf(p.path)
		return err == nil && class == elf.ELFCLASS64
	})
}

func (n *Node) elfOf(p string) (elf.Machine, elf.Class, error) {
	f, err := n.Host.Root.Open(p)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	program, err := elf.NewFile(f)
	if err != nil {
		return 0, 0, fmt.Errorf("read %s: %w", p, err)
	}
	return program.Machine, program.Class, nil
}

func storage(_ context.Context, n *Node) Result {
	root, from := n.dataRoot()
	m, err := n.MountOf(root)
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{Verdict: Pass, Observed: root + " is on " + m.Source + " (" + m.FSType + ")", Place: m.Path}
	if slices.Contains([]string{"tmpfs", "ramfs", "overlay"}, m.FSType) {
		if m.FSType == "overlay" {
			// Of a container, or a system that keeps its card read-only.
			r.Observed += ": what is written there may be gone after a boot"
		} else {
			r.Observed += ": it is in memory, and empty after a boot"
		}
		r.Verdict, r.Wanted = Fail, "a disk"
	} else {
		disk, err := n.diskOf(m)
		switch {
		case errors.Is(err, errNoDisk):
			return r // NFS, ZFS and their like: others say what is wrong with them
		case err != nil:
			return unknown(err)[0]
		}
		kind := n.diskKind(disk)
		if kind == "" {
			return r
		}
		r.Verdict, r.Observed, r.Wanted = Fail, root+" is on "+disk+", "+kind, "an SSD"
	}
	if from != "" {
		r.Note = from + " has the path"
	}
	r.Remedy = "# mount another disk at " + root + ", or set containerd.root to a folder on one"
	return r
}

// errNoDisk is a filesystem that no block device holds.
var errNoDisk = errors.New("it is on no block device")

// diskOf is the name of the disk, such as mmcblk0, that a filesystem is on, below
// partitions and what device-mapper makes of them.
func (n *Node) diskOf(m Mount) (string, error) {
	link := "/sys/dev/block/" + m.Device
	if strings.HasPrefix(m.Device, "0:") { // btrfs has numbers of its own
		if !strings.HasPrefix(m.Source, "/dev/") {
			return "", errNoDisk
		}
		link = "/sys/class/block/" + path.Base(m.Source)
	}
	// Layers over layers end somewhere; links in /sys do not go in circles.
	for range 8 {
		target, err := n.Host.Root.Readlink(link)
		if absent(err) {
			return "", errNoDisk
		}
		if err != nil {
			return "", err
		}
		_, below, ok := strings.Cut(target, "/block/")
		if !ok {
			return "", errNoDisk
		}
		disk, _, _ := strings.Cut(below, "/")
		slaves, err := n.Host.Root.ReadDir("/sys/class/block/" + disk + "/slaves")
		if err != nil || len(slaves) == 0 {
			return disk, nil
		}
		link = "/sys/class/block/" + slaves[0].Name()
	}
	return "", errNoDisk
}

// diskKind is what is wrong with a disk for a node, "" is nothing.
func (n *Node) diskKind(disk string) string {
	dir := "/sys/class/block/" + disk
	if strings.HasPrefix(disk, "mmcblk") {
		if kind, err := n.text(dir + "/device/type"); err == nil && kind != "SD" {
			return "" // eMMC
		}
		return "an SD card"
	}
	removable, err := n.text(dir + "/removable")
	target, linkErr := n.Host.Root.Readlink(dir)
	if err == nil && removable == "1" && linkErr == nil && strings.Contains(target, "/usb") {
		return "a USB stick"
	}
	return ""
}

func underVoltage(_ context.Context, n *Node) []Result {
	const throttled = "/sys/devices/platform/soc/soc:firmware/get_throttled"
	s, err := n.text(throttled)
	if err == nil {
		bits, err := strconv.ParseUint(strings.TrimPrefix(s, "0x"), 16, 32)
		if err != nil {
			return unknown(fmt.Errorf("read %s: %q is no hexadecimal number", throttled, s))
		}
		return []Result{supply(uint32(bits), throttled)}
	}
	if !absent(err) {
		return unknown(err)
	}
	entries, err := n.Host.Root.ReadDir("/sys/class/hwmon")
	if err != nil && !absent(err) {
		return unknown(err)
	}
	for _, e := range entries {
		dir := path.Join("/sys/class/hwmon", e.Name())
		if name, err := n.text(dir + "/name"); err != nil || name != "rpi_volt" {
			continue
		}
		alarm, err := n.text(dir + "/in0_lcrit_alarm")
		if err != nil {
			return unknown(err)
		}
		bits := uint32(0)
		if alarm == "1" {
			bits = 1
		}
		return []Result{supply(bits, dir+"/in0_lcrit_alarm")}
	}
	return skip("no board whose firmware tells of its supply")
}

// supply reads the bits of get_throttled: 0 to 3 are of now, 16 to 19 of since the boot.
func supply(bits uint32, place string) Result {
	var found []string
	for _, b := range []struct {
		bit  uint
		what string
	}{
		{0, "under-voltage now"}, {2, "throttled now"}, {3, "slowed by heat now"},
		{16, "under-voltage since the boot"}, {18, "throttled since the boot"}, {19, "slowed by heat since the boot"},
	} {
		if bits&(1<<b.bit) != 0 {
			found = append(found, b.what)
		}
	}
	if len(found) == 0 {
		return Result{Verdict: Pass, Observed: "the supply is and was enough", Place: place}
	}
	return Result{
		Verdict: Fail, Observed: strings.Join(found, ", "), Wanted: "none of it", Place: place,
		Remedy: "# use a stronger supply and a short cable, cool the board, and reboot",
	}
}
