package checks

import (
	"debug/elf"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/nodeprep/nodeprep/internal/host"
)

// board is a board of testdata/boards, for a profile that is for arm64; testdata says what it
// was made of.
func board(t *testing.T, name string, change files, more ...func(*Outside)) *Node {
	t.Helper()
	archive, err := txtar.ParseFile(filepath.Join("testdata", "boards", name+".txtar"))
	if err != nil {
		t.Fatal(err)
	}
	f, facts := files{}, map[string]string{}
	for _, file := range archive.Files {
		content := string(file.Data)
		switch {
		case file.Name == "facts":
			for line := range strings.Lines(content) {
				key, value, _ := strings.Cut(line, "\t")
				facts[strings.TrimSpace(key)] = strings.TrimSpace(value)
			}
			continue
		case strings.HasPrefix(content, "-> "):
			content = strings.TrimSpace(content)
		case content == "@elf32-arm\n":
			content = elfHead(elf.ELFCLASS32, elf.EM_ARM)
		case content == "@elf64-arm64\n":
			content = elfHead(elf.ELFCLASS64, elf.EM_AARCH64)
		case path.Base(file.Name) == "model": // a string of a device tree ends with a NUL
			content = strings.TrimSpace(content) + "\x00"
		}
		f["/"+file.Name] = content
	}
	for p, content := range change {
		f[p] = content
		if content == gone {
			delete(f, p)
		}
	}
	page, err := strconv.Atoi(facts["pagesize"])
	if err != nil {
		t.Fatal(err)
	}
	now, err := time.Parse(time.RFC3339, facts["now"])
	if err != nil {
		t.Fatal(err)
	}
	spec := dynamicFor("arm64")
	spec.Kubernetes = "1.34"
	return fake(t, f, append([]func(*Outside){withSpec(spec), func(o *Outside) {
		o.Facts = host.Facts{Arch: "arm64", ArchKnown: true, SystemdInit: true}
		o.Host.PageSize, o.Host.Now = page, func() time.Time { return now }
		o.Host.Uname = func() (host.Uname, error) {
			return host.Uname{Release: facts["release"], Machine: facts["machine"]}, nil
		}
	}}, more...)...)
}

func TestBoards(t *testing.T) {
	const (
		pi5 = "raspberry-pi-5"
		pi3 = "raspberry-pi-3-armhf"
		pi4 = "raspberry-pi-4-ready"
	)
	for _, c := range []struct {
		board, check string
		want         want
	}{
		{pi5, "board/firmware-model", want{verdict: Pass, observed: "Raspberry Pi 5 Model B Rev 1.0"}},
		{pi5, "board/memory-cgroup", want{
			verdict: Fail, observed: "off: the kernel was booted with cgroup_disable=memory", wanted: "the memory controller", place: "/boot/firmware/cmdline.txt:1",
			remedy: "sed -i '1s/$/ cgroup_enable=memory cgroup_memory=1/' /boot/firmware/cmdline.txt\nreboot",
		}},
		{pi5, "board/page-size", want{
			verdict: Fail, observed: "16384 bytes", wanted: "4096 bytes", place: "/boot/firmware/config.txt",
			remedy: "printf '\\n[all]\\nkernel=kernel8.img\\n' >> /boot/firmware/config.txt\nreboot",
		}},
		{pi5, "board/userland", want{verdict: Pass, observed: "kernel aarch64, 64-bit programs"}},
		{pi5, "board/storage", want{verdict: Fail, observed: "/var/lib/containerd is on mmcblk0, an SD card", wanted: "an SSD", place: "/", remedy: "# mount another disk at /var/lib/containerd"}},
		{pi5, "board/under-voltage", want{verdict: Skip, observed: "no board"}},
		{pi5, "kernel/overlay", want{verdict: Pass, observed: "loadable in 6.12.25+rpt-rpi-2712"}},
		{pi5, "host/swap", want{verdict: Warn, observed: "2 GiB of swap on /dev/zram0", wanted: "no swap", remedy: "swapoff -a"}},
		{pi5, "host/clock", want{verdict: Fail, observed: "1970-01-01 00:00:31 UTC", place: "the system clock", remedy: "timedatectl set-ntp true"}},
		{pi5, "host/backing-filesystem", want{verdict: Pass, observed: "ext4"}},

		{pi3, "board/memory-cgroup", want{
			verdict: Fail, observed: "off: the kernel was booted with cgroup_disable=memory", place: "/boot/cmdline.txt:1",
			remedy: "sed -i '1s/$/ cgroup_enable=memory cgroup_memory=1/' /boot/cmdline.txt\nreboot",
		}},
		{pi3, "board/page-size", want{verdict: Pass, observed: "4096 bytes"}},
		{pi3, "board/userland", want{
			verdict: Fail, observed: "kernel aarch64, 32-bit programs", wanted: "64-bit programs, or /lib/ld-linux-aarch64.so.1", place: "/sbin/init",
			remedy: "dpkg --add-architecture arm64 && apt-get update && apt-get install -y libc6:arm64",
		}},
		{pi3, "board/storage", want{verdict: Fail, observed: "mmcblk0, an SD card"}},
		{pi3, "board/under-voltage", want{verdict: Fail, observed: "under-voltage now, throttled now, under-voltage since the boot, throttled since the boot"}},
		{pi3, "kernel/overlay", want{verdict: Fail, object: "overlay", observed: "neither part of kernel 6.1.21-v8+", place: "/lib/modules/6.1.21-v8+", remedy: "apt-get install"}},
		{pi3, "host/swap", want{verdict: Warn, observed: "swap on /var/swap", remedy: "dphys-swapfile"}},
		{pi3, "host/clock", want{verdict: Fail, observed: "1970-01-01 00:01:05 UTC", remedy: "# set the time by hand"}},

		{pi4, "board/memory-cgroup", want{verdict: Pass, observed: "on"}},
		{pi4, "board/page-size", want{verdict: Pass}},
		{pi4, "board/userland", want{verdict: Pass}},
		{pi4, "board/storage", want{verdict: Pass, observed: "/var/lib/containerd is on /dev/sda2 (ext4)"}},
		{pi4, "board/under-voltage", want{verdict: Pass}},
		{pi4, "kernel/overlay", want{verdict: Pass, observed: "loaded"}},
		{pi4, "kernel/cgroup-controllers", want{verdict: Pass}},
		{pi4, "kernel/cgroup-mode", want{verdict: Pass}},
		{pi4, "host/swap", want{verdict: Pass, observed: "no swap"}},
		{pi4, "host/clock", want{verdict: Pass}},
		{pi4, "host/backing-filesystem", want{verdict: Pass, observed: "ext4"}},
	} {
		t.Run(c.board+"/"+c.check, func(t *testing.T) { expect(t, board(t, c.board, nil), c.check, c.want) })
	}
}

// TestBoardCmdlineRemedy pastes the remedy: cmdline.txt is read up to the end of its one
// line, so what is added must stand there, and once.
func TestBoardCmdlineRemedy(t *testing.T) {
	const firmware, old = "/boot/firmware/cmdline.txt", "/boot/cmdline.txt"
	words := " cgroup_enable=memory cgroup_memory=1"
	for _, c := range []struct {
		name, board, file string
		change            files
		with              []func(*Outside)
	}{
		{"Raspberry Pi 5", "raspberry-pi-5", firmware, nil, nil},
		{"without an end of line", "raspberry-pi-5", firmware, files{firmware: "console=tty1 root=PARTUUID=4d8097e2-02 rootwait"}, nil},
		{"turned off there, too", "raspberry-pi-5", firmware, files{firmware: "console=tty1 cgroup_disable=memory root=PARTUUID=4d8097e2-02\n"}, nil},
		{"Raspberry Pi 3, older layout", "raspberry-pi-3-armhf", old, nil, nil},
		{"image", "raspberry-pi-5", firmware, nil, []func(*Outside){image}},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := board(t, c.board, c.change, c.with...)
			real, err := n.Host.Root.Resolve(c.file)
			if err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(real)
			if err != nil {
				t.Fatal(err)
			}
			got := results(t, n, "board/memory-cgroup")
			if len(got) != 1 || got[0].Verdict != Fail {
				t.Fatalf("%+v", got)
			}
			remedy, reboots := strings.CutSuffix(got[0].Remedy, "\nreboot")
			if reboots != n.Live {
				t.Errorf("the remedy of a board that runs (%v) is %q", n.Live, got[0].Remedy)
			}
			if n.Live { // on the board the root is /
				remedy = strings.ReplaceAll(remedy, c.file, real)
			}
			if out, err := exec.CommandContext(t.Context(), "sh", "-ec", remedy).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", remedy, err, out)
			}
			after, err := os.ReadFile(real)
			if err != nil {
				t.Fatal(err)
			}
			want := strings.Replace(strings.TrimSuffix(string(before), "\n"), "cgroup_disable=memory", "", 1) + words
			if got := strings.TrimSuffix(string(after), "\n"); got != want {
				t.Errorf("the line is now\n%q, want\n%q", got, want)
			}
			// The board is right after its next boot: the firmware's words come first.
			again := results(t, n, "board/memory-cgroup")
			if n.Live && (again[0].Verdict != Fail || again[0].Remedy != "reboot") || !n.Live && again[0].Verdict != Pass {
				t.Errorf("after the remedy: %+v", again)
			}
		})
	}
}

// TestBoardPageSizeRemedy pastes the remedy: the firmware takes the last word of a section
// that is for this board, and what stands there already stays as it is.
func TestBoardPageSizeRemedy(t *testing.T) {
	const config = "/boot/firmware/config.txt"
	for name, change := range map[string]files{
		"Raspberry Pi 5":                nil,
		"without an end of line":        {config: "dtparam=audio=on"},
		"another kernel for all boards": {config: "[all]\nkernel=kernel_2712.img\n"},
		"the last section is another's": {config: "[cm4]\notg_mode=1\n"},
		"empty":                         {config: ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := board(t, "raspberry-pi-5", change)
			real, err := n.Host.Root.Resolve(config)
			if err != nil {
				t.Fatal(err)
			}
			before, err := os.ReadFile(real)
			if err != nil {
				t.Fatal(err)
			}
			got := results(t, n, "board/page-size")
			if len(got) != 1 || got[0].Verdict != Fail {
				t.Fatalf("%+v", got)
			}
			remedy, reboots := strings.CutSuffix(got[0].Remedy, "\nreboot")
			if !reboots {
				t.Errorf("no reboot: %q", got[0].Remedy)
			}
			remedy = strings.ReplaceAll(remedy, config, real) // on the board the root is /
			if out, err := exec.CommandContext(t.Context(), "sh", "-ec", remedy).CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", remedy, err, out)
			}
			after, err := os.ReadFile(real)
			if err != nil {
				t.Fatal(err)
			}
			added, kept := strings.CutPrefix(string(after), string(before))
			if !kept || !strings.HasPrefix(added, "\n") {
				t.Errorf("what stood there is not as it was:\n%s\nbefore:\n%s", after, before)
			}
			if kernel := firmwareKernel(string(after), "pi5"); kernel != "kernel8.img" {
				t.Errorf("the firmware takes %q of\n%s", kernel, after)
			}
		})
	}
}

// firmwareKernel is what config.txt has the firmware boot: conditional filters of models hold
// up to the next one, and of several the last word counts (Raspberry Pi documentation,
// config.txt, conditional filters).
func firmwareKernel(config, model string) string {
	kernel, ours := "", true
	for line := range strings.Lines(config) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") && strings.HasSuffix(line, "]") {
			ours = line == "[all]" || line == "["+model+"]"
		} else if value, is := strings.CutPrefix(line, "kernel="); is && ours {
			kernel = value
		}
	}
	return kernel
}

// Every board says where it comes from, and has what the README's table says of it.
func TestBoardsAreDescribed(t *testing.T) {
	readme, err := os.ReadFile("testdata/boards/README.md")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(readme), "None was captured from a board.") {
		t.Error("the README does not say that these were made by hand")
	}
	boards, err := filepath.Glob("testdata/boards/*.txtar")
	if err != nil || len(boards) < 3 {
		t.Fatalf("%v, %v", boards, err)
	}
	rows := map[string][]string{}
	for line := range strings.Lines(string(readme)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if len(cells) == 6 && strings.HasSuffix(cells[0], ".txtar") {
			rows[cells[0]] = cells[1:]
		}
	}
	for _, b := range boards {
		name := filepath.Base(b)
		n := board(t, strings.TrimSuffix(name, ".txtar"), nil)
		// As the checks read it from the board, and not as the file spells it.
		observed := func(id string) string {
			all := results(t, n, id)
			if len(all) != 1 {
				t.Fatalf("%s, %s: %+v", name, id, all)
			}
			return all[0].Observed
		}
		memory, _, _ := strings.Cut(observed("board/memory-cgroup"), ":")
		_, programs, _ := strings.Cut(observed("board/userland"), ", ")
		got := []string{observed("board/firmware-model"), memory, strings.TrimSuffix(observed("board/page-size"), " bytes"), programs, observed("board/storage")}
		if diff := cmp.Diff(rows[name], got); diff != "" {
			t.Errorf("%s (-README +board):\n%s", name, diff)
		}
		delete(rows, name)
	}
	for name := range rows {
		t.Errorf("the README tells of %s, which is not there", name)
	}
}
