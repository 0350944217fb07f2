package install

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// changing are the system calls that change a filesystem, by the writer's operation that
// makes them. One that begins with "?" need not exist on every architecture.
func changing() map[string][]string {
	return map[string][]string{
		"create":   {"?open", "openat", "?openat2", "?creat"},
		"set":      {"openat", "write"},
		"write":    {"write", "?pwrite64", "?writev", "?pwritev", "?pwritev2"},
		"mkdir":    {"?mkdir", "mkdirat"},
		"chmod":    {"?chmod", "fchmod", "fchmodat", "?fchmodat2"},
		"chown":    {"?chown", "?lchown", "fchown", "fchownat"},
		"rename":   {"?rename", "renameat", "?renameat2"},
		"link":     {"?link", "linkat"},
		"symlink":  {"?symlink", "symlinkat"},
		"remove":   {"?unlink", "unlinkat"},
		"rmdir":    {"?rmdir", "unlinkat"},
		"setxattr": {"fsetxattr"},
		"utime":    {"?utime", "?utimes", "?futimesat", "utimensat"},
		"never": {"truncate", "ftruncate", "fallocate", "?mknod", "mknodat", "setxattr", "lsetxattr", "removexattr", "lremovexattr",
			"fremovexattr", "copy_file_range", "sendfile", "splice", "ioctl", "mount", "umount2", "io_uring_setup"},
	}
}

// TestOnlyTheWriterWrites traces whole runs, with all their threads: nothing under the
// root is changed but by a call of the writer, and by the one that says so. One change is
// made by nobody here, and is told apart by its place: downloads into the cache, which
// go-getter writes (install/release has tests of that).
func TestOnlyTheWriterWrites(t *testing.T) {
	strace, err := exec.LookPath("strace")
	if err != nil {
		t.Skip("no strace here (Debian package strace): that nothing but the writer changes a host is not tested")
	}
	m := newMatrix(t)
	upgrade := m.verbs["upgrade"]
	b := newMatrixFrom(t, aBundleOfARoot)
	runs := []struct {
		name, verb, template string
		stray                bool
		source               source
	}{
		{"install", "install", m.verbs["install"].template, false, theFake},
		{"install from a bundle", "install", b.verbs["install"].template, false, aBundleOfARoot},
		{"upgrade", "upgrade", upgrade.template, false, theFake},
		{"rollback", "rollback", m.verbs["rollback"].template, false, theFake},
		{"uninstall", "uninstall", m.verbs["uninstall"].template, false, theFake},
		{"recover by reverting", "recover", m.interrupt(t, upgrade, upgrade.template, nil, "upgrade", len(upgrade.calls)/2, "reverting").root, false, theFake},
		{"recover by finishing", "recover", m.interrupt(t, upgrade, upgrade.template, nil, "upgrade", len(upgrade.calls)-5, "finishing").root, false, theFake},
		{"a change behind the writer's back", "upgrade", upgrade.template, true, theFake},
	}
	for _, tt := range runs {
		t.Run(tt.name, func(t *testing.T) {
			root, programs := filepath.Join(m.dir, "traced"), m.programs
			if tt.source != theFake {
				programs = b.programs
			}
			copyTree(t, tt.template, root)
			out := filepath.Join(m.dir, "trace")
			var names []string
			for _, calls := range changing() {
				names = append(names, calls...)
			}
			slices.Sort(names)
			c := childCommand(t, childJob{Root: root, Programs: programs, Source: tt.source, Verb: tt.verb, Log: true, Stray: tt.stray},
				strace, "-f", "-y", "-s", "4096", "-o", out, "-e", "signal=none", "-e", "trace="+strings.Join(slices.Compact(names), ","))
			if text, err := c.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", c, err, text)
			}
			trace, err := os.ReadFile(out)
			if err != nil {
				t.Fatal(err)
			}
			calls, changes, faults := audit(trace, root)
			if tt.stray {
				want := "outside of any call: openat " + root + "/stray:"
				if !slices.ContainsFunc(faults, func(f string) bool { return strings.HasPrefix(f, want) }) ||
					slices.ContainsFunc(faults, func(f string) bool { return !strings.Contains(f, root+"/stray:") }) {
					t.Errorf("the proof sees %q, want %q and no other path", faults, want)
				}
			} else if len(faults) > 0 {
				t.Errorf("%d of %d changes are not the writer's:\n%s", len(faults), changes, strings.Join(faults, "\n"))
			}
			if calls < 5 || changes < 5 {
				t.Errorf("only %d calls and %d changes were seen", calls, changes)
			}
			t.Logf("%d calls of the writer, %d system calls that change something under the root", calls, changes)
			if err := os.RemoveAll(root); err != nil {
				t.Fatal(err)
			}
		})
	}
}

var (
	traced = regexp.MustCompile(`^\d+ +(\w+)\((.*)$`)
	marked = regexp.MustCompile(`^2<[^>]*>, "(BEGIN|END) \d+ (\S+) (.*?)\\n"`)
	// named are the paths of a system call: what a descriptor stands for, and strings,
	// each perhaps relative to the descriptor before it.
	named = regexp.MustCompile(`(?:(?:AT_FDCWD|\d+)<([^>]*)>)?(?:, )?(?:"((?:[^"\\]|\\.)*)")?`)
)

// audit goes through a trace in the order in which system calls began. The writer makes
// its calls one at a time here and says when each begins and ends.
func audit(trace []byte, root string) (calls, changes int, faults []string) {
	by := changing()
	op, path := "", "" // of the call that is going on
	lines := bufio.NewScanner(bytes.NewReader(trace))
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		m := traced.FindStringSubmatch(lines.Text())
		if m == nil {
			continue // an exit, or the end of a system call that was seen already
		}
		name, args := m[1], m[2]
		if mark := marked.FindStringSubmatch(args); name == "write" && mark != nil {
			op, path = "", ""
			if mark[1] == "BEGIN" {
				op, path = mark[2], mark[3]
				calls++
			}
			continue
		}
		if !mayChange(name, args) {
			continue
		}
		touched := slices.DeleteFunc(under(name, args, root), func(p string) bool {
			return op == "" && (p == root+CacheDir || strings.HasPrefix(p, root+CacheDir+"/"))
		})
		if len(touched) == 0 {
			continue
		}
		changes++
		what := fmt.Sprintf("%s %s: %s", name, strings.Join(touched, " "), lines.Text())
		may := slices.ContainsFunc(by[op], func(c string) bool { return strings.TrimPrefix(c, "?") == name })
		switch {
		case op == "":
			faults = append(faults, "outside of any call: "+what)
		case !may || !slices.Contains(touched, path):
			faults = append(faults, fmt.Sprintf("during %s %s: %s", op, path, what))
		}
	}
	return calls, changes, faults
}

// mayChange holds for what may change something: opening a file to read it does not, nor
// does asking a device.
func mayChange(name, args string) bool {
	switch name {
	case "open", "openat", "openat2":
		return strings.Contains(args, "O_CREAT") || strings.Contains(args, "O_TRUNC") || strings.Contains(args, "O_WRONLY") || strings.Contains(args, "O_RDWR") || strings.Contains(args, "O_TMPFILE")
	case "ioctl":
		return strings.Contains(args, "SET") || strings.Contains(args, "CLONE")
	}
	return true
}

// under lists the paths below root that a system call names.
func under(name, args, root string) []string {
	if name == "write" || strings.HasPrefix(name, "pwrite") || name == "writev" {
		args, _, _ = strings.Cut(args, ", ") // what is written is no path
	}
	var out []string
	for _, m := range named.FindAllStringSubmatch(args, -1) {
		p := m[1]
		if m[2] != "" {
			p = m[2]
			if !filepath.IsAbs(p) {
				p = filepath.Join(m[1], p)
			}
		}
		if (p == root || strings.HasPrefix(p, root+"/")) && !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}
