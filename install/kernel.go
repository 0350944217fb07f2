package install

import (
	"bufio"
	"cmp"
	"maps"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

func sortedKeys[K cmp.Ordered, V any](m map[K]V) []K { return slices.Sorted(maps.Keys(m)) }

// sysctlPath is the file of a kernel setting. As in sysctl.d(5), the first separator
// in a key decides: after a slash, dots belong to names; after a dot, slashes do.
func sysctlPath(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		key = strings.NewReplacer(".", "/", "/", ".").Replace(key)
	}
	return path.Join("/proc/sys", path.Clean("/"+key))
}

// moduleName is a module's name as the kernel has it: lsmod shows dashes as underscores.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

func (d *differ) moduleLoaded(name string, builtin map[string]bool) bool {
	name = moduleName(name)
	if builtin[name] {
		return true
	}
	_, err := d.root.Stat("/sys/module/" + name)
	return err == nil
}

// builtinModules reads modules.builtin of the running kernel (kbuild): paths of what
// would be a module and is part of the kernel instead.
func (d *differ) builtinModules() map[string]bool {
	names := map[string]bool{}
	if len(d.state.Modules) == 0 {
		return names
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return names
	}
	f, err := d.root.Open("/lib/modules/" + unix.ByteSliceToString(u.Release[:]) + "/modules.builtin")
	if err != nil {
		return names
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		name, _, _ := strings.Cut(path.Base(lines.Text()), ".ko")
		names[moduleName(name)] = true
	}
	return names
}
