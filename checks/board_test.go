package checks

import (
	"debug/elf"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
)

const (
	piModel   = "Raspberry Pi 5 Model B Rev 1.0\x00"
	model     = "/proc/device-tree/model"
	piCmdline = "/boot/firmware/cmdline.txt"
	all       = "/sys/fs/cgroup/cgroup.controllers"
)

func TestFirmwareModel(t *testing.T) {
	expectAll(t, "board/firmware-model", map[string]hostCase{
		"a board":       {files: files{model: piModel}, want: want{verdict: Pass, observed: "Raspberry Pi 5 Model B Rev 1.0"}},
		"by sysfs":      {files: files{"/sys/firmware/devicetree/base/model": "Radxa ROCK 5B\x00"}, want: want{verdict: Pass, observed: "Radxa ROCK 5B"}},
		"another thing": {want: want{verdict: Skip, observed: "no board"}},
	})
}

func TestMemoryCgroup(t *testing.T) {
	off := "cpuset cpu io pids\n"
	pi := func(more files) files {
		f := files{
			model: piModel, all: off, piCmdline: "console=tty1 root=PARTUUID=4d8097e2-02 rootwait\n",
			"/proc/cmdline": "coherent_pool=1M cgroup_disable=memory numa_policy=interleave console=tty1 root=PARTUUID=4d8097e2-02 rootwait\n",
		}
		for p, s := range more {
			f[p] = s
		}
		return f
	}
	expectAll(t, "board/memory-cgroup", map[string]hostCase{
		"on": {want: want{verdict: Pass, observed: "on", place: all}},
		// Kernels without the parts of v1 do not list it there.
		"on, whatever /proc/cgroups says": {files: files{"/proc/cgroups": "#subsys_name\thierarchy\tnum_cgroups\tenabled\n"}, want: want{verdict: Pass}},
		"Raspberry Pi": {files: pi(nil), want: want{
			verdict: Fail, observed: "off: the kernel was booted with cgroup_disable=memory", wanted: "the memory controller", place: piCmdline + ":1",
			remedy: "sed -i '1s/$/ cgroup_enable=memory cgroup_memory=1/' " + piCmdline + "\nreboot",
		}},
		"Raspberry Pi, not rebooted": {files: pi(files{piCmdline: "root=/dev/sda2 cgroup_enable=memory cgroup_memory=1\n"}), want: want{verdict: Fail, place: piCmdline + ":1", remedy: "reboot"}},
		"grub": {
			files: files{all: off, "/proc/cmdline": "ro cgroup_disable=memory\n", "/etc/default/grub": "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet cgroup_disable=memory\"\n"},
			want:  want{verdict: Fail, place: "/etc/default/grub:1", remedy: "sed -i '1s/cgroup_disable=memory//' /etc/default/grub\nupdate-grub\nreboot"},
		},
		"off by default":     {files: files{all: off, "/boot/extlinux/extlinux.conf": "append ro\n"}, want: want{verdict: Fail, observed: "off in this kernel unless", place: "/boot/extlinux/extlinux.conf:1", remedy: "& cgroup_enable=memory cgroup_memory=1/"}},
		"not built in":       {files: files{all: off, "/boot/config-" + testKernel: config("MEMCG")}, want: want{verdict: Fail, observed: "without CONFIG_MEMCG", place: "/boot/config-" + testKernel, remedy: "# install a kernel that has CONFIG_MEMCG"}},
		"held by v1":         {files: files{all: off, noProc: rootMount + v2Mount + "50 25 0:50 / /mnt/my\\040mem rw - cgroup none rw,memory\n"}, want: want{verdict: Fail, observed: "held by a cgroup v1 mount", place: "/mnt/my mem", remedy: "umount '/mnt/my mem'"}},
		"v1":                 {files: files{noProc: v1Mounts()}, want: want{verdict: Pass, place: "/proc/cgroups"}},
		"v1, off":            {files: files{noProc: v1Mounts(), "/proc/cgroups": procCgroups(map[string]bool{"memory": true})}, want: want{verdict: Fail, observed: "off in this kernel"}},
		"not to be seen":     {files: files{noProc: gone}, want: want{verdict: Unknown}},
		"not to be read":     {files: files{all: gone}, want: want{verdict: Unknown}},
		"v1, not readable":   {files: files{noProc: v1Mounts(), "/proc/cgroups": gone}, want: want{verdict: Unknown}},
		"cause not readable": {files: files{all: off, "/proc/cmdline": gone}, want: want{verdict: Unknown}},

		"an image without a loader": {with: []func(*Outside){image}, want: want{verdict: Skip, observed: "no boot loader's files"}},
		"an image that is right":    {files: files{"/etc/default/grub": "GRUB_CMDLINE_LINUX=\"quiet\"\n"}, with: []func(*Outside){image}, want: want{verdict: Pass, observed: "nothing in the image turns it off", place: "/etc/default/grub"}},
		"an image that is wrong":    {files: files{"/etc/default/grub": "GRUB_CMDLINE_LINUX=\"cgroup_disable=memory\"\n"}, with: []func(*Outside){image}, want: want{verdict: Fail, place: "/etc/default/grub:1", remedy: "sed -i '1s/cgroup_disable=memory//' "}},
		"an image for a Raspberry Pi": {
			files: files{piCmdline: "root=/dev/sda2\n", "/boot/firmware/config.txt": "", "/boot/firmware/bcm2711-rpi-4-b.dtb": "\xd0\x0dbootargs\x00coherent_pool=1M cgroup_disable=memory\x00"}, with: []func(*Outside){image},
			want: want{verdict: Fail, observed: "/boot/firmware/bcm2711-rpi-4-b.dtb has cgroup_disable=memory", place: piCmdline + ":1", remedy: "/ cgroup_enable=memory cgroup_memory=1/' "},
		},
		"such an image, on": {
			files: files{piCmdline: "root=/dev/sda2 cgroup_enable=memory\n", "/boot/firmware/config.txt": "", "/boot/firmware/a.dtb": "cgroup_disable=memory\x00"}, with: []func(*Outside){image},
			want: want{verdict: Pass},
		},
		"such an image, on by itself": {files: files{piCmdline: "root=/dev/sda2\n", "/boot/firmware/config.txt": "", "/boot/firmware/a.dtb": "bootargs"}, with: []func(*Outside){image}, want: want{verdict: Pass}},
		"a tree that is a folder":     {files: files{piCmdline: "root=/dev/sda2\n", "/boot/firmware/config.txt": "", "/boot/firmware/a.dtb/": ""}, with: []func(*Outside){image}, want: want{verdict: Unknown}},
	})
	n := linux(t, pi(files{"/proc/cmdline": "cgroup_enable=memory cgroup_disable=memory\n"}))
	if got := results(t, n, "board/memory-cgroup"); !strings.Contains(got[0].Note, "the later word counts") || !strings.Contains(got[0].Note, "Raspberry Pi 5") {
		t.Errorf("in the wrong order: %+v", got)
	}
}

func TestPageSize(t *testing.T) {
	for _, c := range []struct {
		size  int
		files files
		want  want
	}{
		{4096, nil, want{verdict: Pass, observed: "4096 bytes"}},
		{65536, nil, want{verdict: Fail, observed: "65536 bytes", wanted: "4096 bytes", remedy: "# boot a kernel"}},
		{16384, files{"/boot/firmware/config.txt": ""}, want{verdict: Fail, observed: "16384 bytes", place: "/boot/firmware/config.txt", remedy: "kernel=kernel8.img\\n' >> /boot/firmware/config.txt\nreboot"}},
	} {
		n := linux(t, c.files)
		n.Host.PageSize = c.size
		expect(t, n, "board/page-size", c.want)
	}
}

// elfHead is the head of an ELF file.
func elfHead(class elf.Class, machine elf.Machine) string {
	size := 64
	if class == elf.ELFCLASS32 {
		size = 52
	}
	b := make([]byte, size)
	copy(b, elf.ELFMAG)
	b[elf.EI_CLASS], b[elf.EI_DATA], b[elf.EI_VERSION] = byte(class), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	binary.LittleEndian.PutUint16(b[16:], uint16(elf.ET_EXEC))
	binary.LittleEndian.PutUint16(b[18:], uint16(machine))
	binary.LittleEndian.PutUint32(b[20:], uint32(elf.EV_CURRENT))
	return string(b)
}

func dynamicFor(arch string) profiles.Spec {
	s := dynamic()
	s.Arch = arch
	return s
}

func TestUserland(t *testing.T) {
	arm32, arm64 := elfHead(elf.ELFCLASS32, elf.EM_ARM), elfHead(elf.ELFCLASS64, elf.EM_AARCH64)
	static := profiles.Spec{}
	static.Containerd.Static = true
	for name, c := range map[string]struct {
		machine string
		hostCase
	}{
		"64-bit":                    {"aarch64", hostCase{files: files{"/sbin/init": "-> /lib/systemd/systemd", "/lib/systemd/systemd": arm64}, want: want{verdict: Pass, observed: "kernel aarch64, 64-bit programs"}}},
		"32-bit on 64-bit":          {"aarch64", hostCase{files: files{"/sbin/init": arm32}, with: []func(*Outside){withSpec(dynamicFor("arm64"))}, want: want{verdict: Fail, observed: "32-bit programs", wanted: "/lib/ld-linux-aarch64.so.1", place: "/sbin/init", remedy: "# install a 64-bit system"}}},
		"the same, on Debian":       {"x86_64", hostCase{files: files{"/sbin/init": elfHead(elf.ELFCLASS32, elf.EM_386), "/usr/bin/dpkg": "", "/usr/bin/containerd": elfHead(elf.ELFCLASS64, elf.EM_X86_64)}, want: want{verdict: Fail, remedy: "dpkg --add-architecture amd64 && apt-get update && apt-get install -y libc6:amd64"}}},
		"with a 64-bit loader":      {"aarch64", hostCase{files: files{"/sbin/init": arm32, "/lib/ld-linux-aarch64.so.1": ""}, want: want{verdict: Pass, observed: "a loader for 64-bit ones"}}},
		"32-bit, as containerd is":  {"aarch64", hostCase{files: files{"/sbin/init": arm32, "/usr/bin/containerd": arm32}, want: want{verdict: Pass, observed: "nothing of containerd's here is a 64-bit one"}}},
		"32-bit, and no containerd": {"aarch64", hostCase{files: files{"/sbin/init": arm32, "/usr/bin/containerd": gone}, want: want{verdict: Pass, observed: "32-bit programs"}}},
		"with a static containerd":  {"aarch64", hostCase{files: files{"/sbin/init": arm32}, with: []func(*Outside){withSpec(static)}, want: want{verdict: Pass, observed: "static"}}},
		"32-bit alone":              {"armv7l", hostCase{files: files{"/sbin/init": arm32}, want: want{verdict: Pass, observed: "armv7l"}}},
		"a container without init":  {"x86_64", hostCase{files: files{"/bin/sh": elfHead(elf.ELFCLASS64, elf.EM_X86_64)}, want: want{verdict: Pass, place: "/bin/sh"}}},
		"no program at all":         {"x86_64", hostCase{want: want{verdict: Unknown}}},
		"a program that is no ELF":  {"x86_64", hostCase{files: files{"/sbin/init": "#!/bin/sh\n"}, want: want{verdict: Unknown, observed: "read /sbin/init"}}},
		"a kernel that nobody asks": {"", hostCase{want: want{verdict: Unknown}}},
	} {
		t.Run(name, func(t *testing.T) {
			n := linux(t, c.files, c.with...)
			n.Host.Uname = func() (host.Uname, error) {
				if c.machine == "" {
					return host.Uname{}, errors.New("uname: not permitted")
				}
				return host.Uname{Release: testKernel, Machine: c.machine}, nil
			}
			expect(t, n, "board/userland", c.want)
		})
	}
}

func TestStorage(t *testing.T) {
	mounted := func(line string) string { return rootMount + "60 25 " + line + "\n" }
	data := " / /var/lib/containerd rw - "
	card := files{
		noProc: mounted("179:2" + data + "ext4 /dev/mmcblk0p2 rw"), "/sys/dev/block/179:2": "-> ../../devices/soc/mmc0/mmc0:aaaa/block/mmcblk0/mmcblk0p2",
		"/sys/class/block/mmcblk0": "-> ../../devices/soc/mmc0/mmc0:aaaa/block/mmcblk0", "/sys/devices/soc/mmc0/mmc0:aaaa/block/mmcblk0/device/type": "SD\n",
	}
	stick := func(removable string) files {
		return files{
			noProc: mounted("8:1" + data + "ext4 /dev/sda1 rw"), "/sys/dev/block/8:1": "-> ../../devices/pci0/usb2/2-1/host0/block/sda/sda1",
			"/sys/class/block/sda": "-> ../../devices/pci0/usb2/2-1/host0/block/sda", "/sys/devices/pci0/usb2/2-1/host0/block/sda/removable": removable + "\n",
		}
	}
	emmc := files{}
	for p, s := range card {
		emmc[p] = s
	}
	emmc["/sys/devices/soc/mmc0/mmc0:aaaa/block/mmcblk0/device/type"] = "MMC\n"
	crypt := files{
		noProc: mounted("254:0" + data + "ext4 /dev/mapper/data rw"), "/sys/dev/block/254:0": "-> ../../devices/virtual/block/dm-0", "/sys/class/block/dm-0/slaves/mmcblk0p2/": "",
		"/sys/class/block/mmcblk0p2": card["/sys/dev/block/179:2"], "/sys/class/block/mmcblk0/device/type": "SD\n",
	}
	btrfs := files{
		noProc: mounted("0:45" + data + "btrfs /dev/mmcblk0p2 rw"), "/sys/class/block/mmcblk0p2": card["/sys/dev/block/179:2"], "/sys/class/block/mmcblk0/device/type": "SD\n",
	}
	other := profiles.Spec{}
	other.Containerd.Root = "/srv/containerd"
	expectAll(t, "board/storage", map[string]hostCase{
		"a disk":         {want: want{verdict: Pass, observed: "/var/lib/containerd is on /dev/vda1 (ext4)"}},
		"an SD card":     {files: card, want: want{verdict: Fail, observed: "/var/lib/containerd is on mmcblk0, an SD card", wanted: "an SSD", place: "/var/lib/containerd", remedy: "# mount another disk"}},
		"eMMC":           {files: emmc, want: want{verdict: Pass}},
		"below dm-crypt": {files: crypt, want: want{verdict: Fail, observed: "mmcblk0, an SD card"}},
		"of btrfs":       {files: btrfs, want: want{verdict: Fail, observed: "mmcblk0, an SD card"}},
		"a USB stick":    {files: stick("1"), want: want{verdict: Fail, observed: "sda, a USB stick"}},
		"a USB disk":     {files: stick("0"), want: want{verdict: Pass}},
		"in memory":      {files: files{noProc: mounted("0:50" + data + "tmpfs tmpfs rw")}, want: want{verdict: Fail, observed: "it is in memory", wanted: "a disk"}},
		"overlay root":   {files: files{noProc: "25 1 0:50 / / rw - overlay overlayroot rw\n"}, want: want{verdict: Fail, observed: "may be gone after a boot"}},
		"NFS":            {files: files{noProc: mounted("0:51" + data + "nfs4 server:/x rw")}, want: want{verdict: Pass}},
		"another root":   {files: card, with: []func(*Outside){withSpec(other)}, want: want{verdict: Pass, observed: "/srv/containerd is on /dev/vda1"}},
		"not to be seen": {files: files{noProc: gone}, want: want{verdict: Unknown}},
		"no link":        {files: files{"/sys/dev/block/254:1": "no link"}, want: want{verdict: Unknown}},
	})
}

func TestUnderVoltage(t *testing.T) {
	throttled := "/sys/devices/platform/soc/soc:firmware/get_throttled"
	hwmon := "/sys/class/hwmon/hwmon1/"
	expectAll(t, "board/under-voltage", map[string]hostCase{
		"enough":         {files: files{throttled: "0\n"}, want: want{verdict: Pass, place: throttled}},
		"now and before": {files: files{throttled: "50005\n"}, want: want{verdict: Fail, observed: "under-voltage now, throttled now, under-voltage since the boot, throttled since the boot", wanted: "none", place: throttled}},
		"before":         {files: files{throttled: "0x10000\n"}, want: want{verdict: Fail, observed: "under-voltage since the boot"}},
		"heat":           {files: files{throttled: "80008\n"}, want: want{verdict: Fail, observed: "slowed by heat now"}},
		"no number":      {files: files{throttled: "what\n"}, want: want{verdict: Unknown, observed: "no hexadecimal number"}},
		"a folder":       {files: files{throttled + "/": ""}, want: want{verdict: Unknown}},
		"an alarm":       {files: files{"/sys/class/hwmon/hwmon0/name": "cpu_thermal\n", hwmon + "name": "rpi_volt\n", hwmon + "in0_lcrit_alarm": "1\n"}, want: want{verdict: Fail, observed: "under-voltage now", place: hwmon + "in0_lcrit_alarm"}},
		"no alarm":       {files: files{hwmon + "name": "rpi_volt\n", hwmon + "in0_lcrit_alarm": "0\n"}, want: want{verdict: Pass}},
		"alarm unknown":  {files: files{hwmon + "name": "rpi_volt\n"}, want: want{verdict: Unknown}},
		"no board":       {want: want{verdict: Skip, observed: "no board"}},
	})
}
