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

// isAlias reports whether the receipt has a module as an alias of others that are loaded.
func (d *differ) isAlias(name string, builtin map[string]bool) bool {
	if d.receipt == nil {
		return false
	}
	others, ok := d.receipt.Modules[name]
	return ok && !slices.ContainsFunc(others, func(m string) bool { return !d.moduleLoaded(m, builtin) })
}

// modules are the aliases for the receipt: those loaded now, and those of before.
func (r *run) modules() map[string][]string {
	out := map[string][]string{}
	for _, m := range r.plan.state.Modules {
		if others, ok := r.aliases[m]; ok {
			out[m] = others
			continue
		}
		if it := r.plan.find(KindModule, m); r.plan.receipt == nil || it != nil && it.Action == Load {
			continue
		}
		if others, ok := r.plan.receipt.Modules[m]; ok {
			out[m] = others
		}
	}
	return out
}
