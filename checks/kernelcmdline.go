package checks

import (
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// bootLine is a line of a file from which a boot loader takes words of the kernel's
// command line.
type bootLine struct {
	file  string // links followed
	line  int
	words []string
}

func (l bootLine) place() string { return l.file + ":" + strconv.Itoa(l.line) }

// bootLoader is where this host has the kernel's command line.
type bootLoader struct {
	lines []bootLine
	// add is the shell line that adds words, and the place that it changes.
	add   func(words string) string
	place string
	// apply is the shell line that makes the boot loader see it; nil where it reads that
	// file itself.
	apply func(added, removed []string) string
}

// always is an apply that does not depend on what was changed.
func always(line string) func(added, removed []string) string {
	return func(_, _ []string) string { return line }
}

// bootLoader looks for the files of the boot loaders of boards and machines; nil where
// none of them is here.
func (n *Node) bootLoader() *bootLoader {
	on := func(p string) string { return quote(n.onHost(p)) }
	// The Raspberry Pi's firmware reads one line; /boot/cmdline.txt may be a text that
	// says where the file has gone.
	for _, p := range []string{"/boot/firmware/current/cmdline.txt", "/boot/firmware/cmdline.txt", "/boot/cmdline.txt"} {
		lines := n.bootLines(p, `^(.*\b(?:root|console)=.*)$`)
		if len(lines) > 0 {
			l := lines[0]
			return &bootLoader{lines: lines[:1], place: l.place(), add: func(words string) string {
				return "sed -i '" + strconv.Itoa(l.line) + "s/$/ " + words + "/' " + on(l.file)
			}}
		}
	}
	// Armbian and its like: u-boot's script reads an environment.
	for _, p := range []string{"/boot/armbianEnv.txt", "/boot/orangepiEnv.txt"} {
		if !n.exists(p) {
			continue
		}
		lines := n.bootLines(p, `^extraargs=(.*)$`)
		b := &bootLoader{lines: lines, place: p, add: func(words string) string { return "echo 'extraargs=" + words + "' >> " + on(p) }}
		if len(lines) > 0 {
			b.place = lines[0].place()
			b.add = func(words string) string { return "sed -i 's/^extraargs=.*/& " + words + "/' " + on(p) }
		}
		return b
	}
	// Debian's u-boot-menu writes extlinux.conf anew with each kernel.
	const uboot = "/etc/default/u-boot"
	if n.tool("u-boot-update") != "" && n.exists("/boot/extlinux/extlinux.conf") {
		return &bootLoader{
			lines: n.bootLines(uboot, `^\s*U_BOOT_PARAMETERS=(.*)$`), place: uboot, apply: always("u-boot-update"),
			add: func(words string) string {
				return `echo 'U_BOOT_PARAMETERS="${U_BOOT_PARAMETERS-ro quiet} ` + words + `"' >> ` + on(uboot)
			},
		}
	}
	const extlinux = "/boot/extlinux/extlinux.conf"
	if lines := n.bootLines(extlinux, `(?i)^\s*append\s+(.*)$`); len(lines) > 0 {
		return &bootLoader{lines: lines, place: lines[0].place(), add: func(words string) string {
			return "sed -i -E 's/^[[:space:]]*(append|APPEND)[[:space:]].*/& " + words + "/' " + on(extlinux)
		}}
	}
	const grub = "/etc/default/grub"
	if n.exists(grub) {
		lines := n.bootLines(grub, `^\s*GRUB_CMDLINE_LINUX\w*=(.*)$`)
		if entries, err := n.Host.Root.ReadDir("/etc/default/grub.d"); err == nil {
			for _, e := range entries {
				if strings.HasSuffix(e.Name(), ".cfg") {
					lines = append(lines, n.bootLines(path.Join("/etc/default/grub.d", e.Name()), `^\s*GRUB_CMDLINE_LINUX\w*=(.*)$`)...)
				}
			}
		}
		b := &bootLoader{lines: lines, place: grub, apply: always("update-grub"), add: func(words string) string {
			return `echo 'GRUB_CMDLINE_LINUX="$GRUB_CMDLINE_LINUX ` + words + `"' >> ` + on(grub)
		}}
		if n.exists("/boot/grub2/grub.cfg") {
			b.apply = always("grub2-mkconfig -o /boot/grub2/grub.cfg")
			if n.tool("grubby") != "" {
				// Entries of the Boot Loader Specification have words of their own.
				b.apply = func(added, removed []string) string {
					line := "grubby --update-kernel=ALL"
					if len(removed) > 0 {
						line += " --remove-args=" + quote(strings.Join(removed, " "))
					}
					if len(added) > 0 {
						line += " --args=" + quote(strings.Join(added, " "))
					}
					return line
				}
			}
		}
		return b
	}
	const kernel = "/etc/kernel/cmdline"
	if lines := n.bootLines(kernel, `^(.*\S.*)$`); len(lines) > 0 {
		return &bootLoader{
			lines: lines, place: lines[0].place(), apply: always(`kernel-install add "$(uname -r)" "/boot/vmlinuz-$(uname -r)"`),
			add: func(words string) string { return "sed -i '1s/$/ " + words + "/' " + on(kernel) },
		}
	}
	return nil
}

// bootLines are the lines of a file that match, with the words of its group.
func (n *Node) bootLines(p, match string) []bootLine {
	text, err := n.Host.Root.ReadFile(p)
	if err != nil {
		return nil
	}
	real, err := n.real(p)
	if err != nil {
		return nil
	}
	re := regexp.MustCompile(match)
	var out []bootLine
	i := 0
	for line := range strings.Lines(string(text)) {
		i++
		m := re.FindStringSubmatch(strings.TrimRight(line, "\r\n"))
		if m == nil {
			continue
		}
		out = append(out, bootLine{real, i, strings.Fields(strings.Trim(m[1], `"'`))})
	}
	return out
}

// cmdlineEdit is how the kernel's command line is changed on this host.
type cmdlineEdit struct{ place, remedy string }

// editCmdline changes the words that rewrite gives back changed ("" takes a word away), and
// adds words that are not there yet. Where the files are right already, only a reboot is
// missing.
func (n *Node) editCmdline(rewrite func(word string) string, add ...string) cmdlineEdit {
	b := n.bootLoader()
	if b == nil {
		return cmdlineEdit{"/proc/cmdline", "# change the kernel command line where the boot loader has it, and reboot"}
	}
	var lines, added, removed []string
	place := ""
	has := map[string]bool{}
	for _, l := range b.lines {
		for _, w := range l.words {
			has[w] = true
			to := rewrite(w)
			if to == w {
				continue
			}
			if place == "" {
				place = l.place()
			}
			removed = append(removed, w)
			if to != "" {
				added = append(added, to)
			}
			if quote(w+to) != w+to || strings.ContainsAny(w+to, "/@%+") {
				lines = append(lines, "# take "+w+" out of "+l.place())
				continue
			}
			lines = append(lines, "sed -i '"+strconv.Itoa(l.line)+"s/"+strings.ReplaceAll(w, ".", `\.`)+"/"+to+"/' "+quote(n.onHost(l.file)))
		}
	}
	add = slices.DeleteFunc(slices.Clone(add), func(w string) bool { return has[w] })
	if len(add) > 0 {
		lines = append(lines, b.add(strings.Join(add, " ")))
		if place == "" {
			place = b.place
		}
	}
	if len(lines) > 0 && b.apply != nil {
		apply := b.apply(append(added, add...), removed)
		if !n.Live {
			apply = "chroot " + quote(n.Host.Root.Dir()) + " sh -c " + quote(apply)
		}
		lines = append(lines, apply)
	}
	if n.Live {
		lines = append(lines, "reboot")
	}
	if place == "" {
		place = b.place
	}
	return cmdlineEdit{place, strings.Join(lines, "\n")}
}

// withoutItem is a word such as cgroup_disable=cpuset,memory without one item of its list,
// "" where none is left, and other words as they are.
func withoutItem(word, option, item string) string {
	list, ok := strings.CutPrefix(word, option+"=")
	if !ok {
		return word
	}
	items := strings.Split(list, ",")
	left := slices.DeleteFunc(slices.Clone(items), func(s string) bool { return moduleName(s) == moduleName(item) })
	switch {
	case len(left) == len(items):
		return word
	case len(left) == 0:
		return ""
	}
	return option + "=" + strings.Join(left, ",")
}

// disabledController is a word such as cgroup_disable=memory that the running kernel was booted with
// and that turns a controller off; "" is none. A later cgroup_enable=, which the Raspberry
// Pi's kernels know, turns it on again.
func disabledController(words []string, controller string) string {
	found := ""
	for _, w := range words {
		if withoutItem(w, "cgroup_disable", controller) != w {
			found = w
		}
		if withoutItem(w, "cgroup_enable", controller) != w {
			found = ""
		}
	}
	return found
}
