package configtoml

import (
	"cmp"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/releases"
)

// checkTop looks at what is outside of plugins in one file: keys that are unknown are
// taken away, what has another type than the daemon can read is a fault.
func (l *loader) checkTop(top *node) {
	l.check(top, l.known, nil, func(path []string) bool { return path[0] != "plugins" || len(path) == 1 })
}

// check takes unknown keys out of a table and finds values of other types.
func (l *loader) check(n *node, k *known, path []string, in func(path []string) bool) {
	for _, key := range n.keys() {
		at := append(slices.Clip(path), key)
		e := n.table[key]
		if !in(at) {
			continue
		}
		next := k.below[key]
		if next == nil {
			if name := l.otherwiseSpelt(key, k); name != "" && n.table[name] == nil {
				next = k.below[name]
				if !l.isOptions(path) { // which Runtimes shows as they are written
					delete(n.table, key)
					n.table[name] = e
					at = append(slices.Clip(path), name)
				}
			}
		}
		if next == nil {
			next = k.wild
		}
		switch {
		case next == nil && len(at) == 2 && at[0] == "plugins":
			l.unknownPlugin(n, key)
		case next == nil:
			l.unknown(e, k, at)
			delete(n.table, key)
		default:
			if want, ok := next.fits(e); !ok {
				l.fault(e.at, "correct the value: containerd does not start", "%s must be %s", display(at), want)
				delete(n.table, key)
				continue
			}
			if e.isTable() && next.kind != "any" && !(l.isOptions(at) && !l.runcOptions(n, at)) {
				l.check(e, next, at, in)
			}
		}
	}
}

func (l *loader) otherwiseSpelt(key string, k *known) string {
	for name := range k.below {
		if name != key && l.spelt(key, name) {
			return name
		}
	}
	return ""
}

// isOptions says whether a path is the options of a runtime.
func (l *loader) isOptions(path []string) bool {
	return len(path) == 6 && path[2] == "containerd" && path[3] == "runtimes" && path[5] == "options"
}

// runcOptions says whether the options in a runtime's table are those of runc's shim;
// those of others are theirs to know.
func (l *loader) runcOptions(runtime *node, path []string) bool {
	kind, ok := l.child(runtime, "runtime_type").text()
	return kind == runcV2 || !ok && path[4] == "runc" && !l.old()
}

// unknown says what there is to say of a key that the release does not read.
func (l *loader) unknown(n *node, k *known, path []string) {
	// What a table of an older schema has for several plugins is told one by one.
	if n.isTable() && len(n.table) > 0 && len(path) == 3 && path[1] == criV2 && path[2] == "containerd" && !l.old() {
		for _, key := range n.keys() {
			l.unknown(n.table[key], nil, append(slices.Clip(path), key))
		}
		return
	}
	l.ignoreKey(n, l.unknownHint(n, k, path))
}

func (l *loader) ignoreKey(n *node, hint string) {
	if len(n.path) == 0 {
		return
	}
	l.Ignored = append(l.Ignored, Key{Path: n.path, Place: n.at, Hint: hint, Empty: n.empty()})
}

// empty says whether nothing but unset values is in a node.
func (n *node) empty() bool {
	if n.kind == tableKind {
		for _, e := range n.table {
			if !e.empty() {
				return false
			}
		}
		return true
	}
	return n.zero()
}

func (l *loader) unknownHint(n *node, k *known, path []string) string {
	if r, ok := l.retired.Of(path); ok && r.Removed != (releases.Version{}) && l.rules.AtLeast(r.Removed.Major, r.Removed.Minor, 0) {
		return "removed in containerd " + r.Removed.Line() + ": " + r.Instead
	}
	if to := l.today(path); to != nil {
		return "use " + display(to)
	}
	// A name of schema 2 in a section of today, or with hyphens.
	if len(path) > 2 && path[0] == "plugins" && (path[1] == criImages || path[1] == criRuntime || path[1] == criV2) {
		old := slices.Concat([]string{"plugins", criV2}, path[2:len(path)-1], []string{strings.ReplaceAll(path[len(path)-1], "-", "_")})
		if to := l.today(old); to != nil {
			return "not read here: use " + display(to)
		}
	}
	if line := l.cameWith(path); line != "" {
		return "unknown to containerd " + l.rules.Line() + ": it came with " + line
	}
	if k != nil {
		if name := nearest(path[len(path)-1], k); name != "" {
			return "unknown to containerd " + l.rules.Line() + ": did you mean " + name + "?"
		}
	}
	if to := l.namesake(path); to != nil {
		return "not read here: use " + display(to)
	}
	return "unknown to containerd " + l.rules.Line() + ": take it out"
}

// unknownPlugin handles a plugin's section that the release has no keys for. It may be
// one of another build, unless another release is known to have it.
func (l *loader) unknownPlugin(plugins *node, name string) {
	n := plugins.table[name]
	path := []string{"plugins", name}
	hint := ""
	switch r, retired := l.retired.Of(path); {
	case retired && l.rules.AtLeast(r.Removed.Major, r.Removed.Minor, 0):
		hint = "removed in containerd " + r.Removed.Line() + ": " + r.Instead
	case !strings.Contains(name, ".") && !l.old():
		hint = "plugins are named in full since version 2: use " + display([]string{"plugins", nameV1(name)})
	default:
		to := l.today(path)
		line := l.cameWith(path)
		switch {
		case to != nil:
			hint = "use " + display(to)
		case line != "":
			hint = "unknown to containerd " + l.rules.Line() + ": it came with " + line
		default:
			return
		}
	}
	l.ignoreKey(n, hint)
	delete(plugins.table, name)
}

// display prints a path as one would write it.
func display(path []string) string {
	out := make([]string, len(path))
	for i, p := range path {
		if p == "" || strings.ContainsFunc(p, func(r rune) bool {
			return r != '_' && r != '-' && (r < '0' || r > '9') && (r < 'a' || r > 'z') && (r < 'A' || r > 'Z')
		}) {
			p = `"` + p + `"`
		}
		out[i] = p
	}
	return strings.Join(out, ".")
}

// finish turns what was merged into what the daemon runs with.
func (l *loader) finish() {
	switch {
	case l.old():
		l.finishOld()
	default:
		schema := releases.ConfigSchema(l.rules)
		l.Schema = l.version
		if l.version < schema {
			l.migratePlugins(l.top)
		}
		if l.version > schema {
			l.fault(l.versionPlace(), "write version = "+string(rune('0'+schema)),
				"version %d is more than the %d that containerd %s reads: it does not start", l.version, schema, l.rules.Line())
			l.Schema = schema
		}
		for _, list := range []string{"disabled_plugins", "required_plugins"} {
			for _, e := range l.entryNodes(list) {
				if name, _ := e.text(); !strings.Contains(name, ".") {
					l.fault(e.at, "write "+nameV1(name), "%s: %q is no plugin's full name: containerd does not start", list, name)
				}
			}
		}
		if schema == 4 {
			l.deadServer()
		}
	}
	l.check(l.top, l.known, nil, func(path []string) bool { return path[0] == "plugins" })
	l.unsettable()
	l.deprecated(l.top, nil)
	l.index(l.top, nil)
	l.explainImports()
	l.sort()
}

func (c *Config) entryNodes(list string) []*node {
	if n := c.at(list); n != nil {
		return n.list
	}
	return nil
}

func (l *loader) versionPlace() Place {
	if n := l.top.get("version"); n != nil {
		return n.at
	}
	return Place{File: l.Path}
}

// finishOld is for 1.x, which migrates nothing: in schema 1 plugins have short names, in
// 2 full ones.
func (l *loader) finishOld() {
	l.Schema = max(1, l.version)
	if l.Schema > 2 {
		if l.refusesNewer() {
			l.fault(l.versionPlace(), "write version = 2, with the keys that go with it",
				"version %d is more than the 2 that containerd %s reads: it does not start", l.Schema, l.rules.Line())
		}
		l.Schema = 2
	}
	plugins := l.top.get("plugins")
	if l.Schema == 1 {
		for _, name := range plugins.keys() {
			if strings.Contains(name, ".") {
				l.ignore(plugins.table[name], "a file without version = 2 has short names for plugins: add version = 2")
				delete(plugins.table, name)
			}
		}
		for _, list := range []string{"disabled_plugins", "required_plugins"} {
			if n := l.top.get(list); n != nil {
				n.list = slices.DeleteFunc(slices.Clone(n.list), func(e *node) bool {
					name, _ := e.text()
					if strings.Contains(name, ".") {
						l.ignore(e, "a file without version = 2 has short names for plugins: add version = 2")
						return true
					}
					return false
				})
			}
		}
		l.renameV1(l.top)
		return
	}
	for _, name := range plugins.keys() {
		if !l.fullName(name) {
			l.fault(plugins.table[name].at, "write "+display([]string{"plugins", nameV1(name)}), "plugins.%s is no plugin's full name: containerd does not start", display([]string{name}))
			delete(plugins.table, name)
		}
	}
	for _, list := range []string{"disabled_plugins", "required_plugins"} {
		for _, e := range l.entryNodes(list) {
			if name, _ := e.text(); !l.fullName(name) {
				l.fault(e.at, "write "+nameV1(name), "%s: %q is no plugin's full name: containerd does not start", list, name)
			}
		}
	}
}

// fullName is 1.x's ValidateV2.
func (l *loader) fullName(name string) bool {
	return strings.Count(name, ".") >= 3 && (!l.rules.AtLeast(1, 7, 0) || strings.HasPrefix(name, "io.containerd."))
}

// refusesNewer: older patches of 1.6 and 1.7 read any version above 1 as 2.
func (l *loader) refusesNewer() bool {
	return l.rules.AtLeast(1, 7, 17) || l.rules.Line() == "1.6" && l.rules.Patch >= 32
}

// deadServer finds what schema 4 decodes and does not apply: what listens became plugins.
func (l *loader) deadServer() {
	for _, table := range []string{"grpc", "ttrpc", "debug", "metrics"} {
		t := l.top.get(table)
		for _, key := range t.keys() {
			if table == "debug" && !slices.Contains([]string{"address", "uid", "gid"}, key) {
				continue
			}
			to := serverKey(table, key)
			hint := "use " + display(to)
			if l.fileVersion(t.table[key].at.File) < 4 {
				hint = "the section " + display(to[:2]) + " is there too, and wins"
			}
			l.ignoreKey(t.table[key], hint)
			delete(t.table, key)
		}
		if t != nil && table != "debug" {
			delete(l.top.table, table)
		}
	}
}

func (l *loader) fileVersion(path string) int {
	for _, f := range l.Files {
		if f.Path == path {
			return f.Version
		}
	}
	return 0
}

// serverKey is where schema 4 has a setting of what listens.
func serverKey(table, key string) []string {
	if tcp, ok := strings.CutPrefix(key, "tcp_"); ok && table == "grpc" {
		return []string{"plugins", serverPrefix + "grpc-tcp", tcp}
	}
	if key == "grpc_histogram" {
		return []string{"plugins", "io.containerd.metrics.v1.grpc-prometheus", key}
	}
	return []string{"plugins", serverPrefix + table, key}
}

// unsettable finds empty values that cannot take a default back.
func (l *loader) unsettable() {
	for _, path := range [][]string{{"root"}, {"state"}, {"grpc", "address"}} {
		n := l.at(path...)
		if n == nil || !n.zero() {
			continue
		}
		l.ignoreKey(n, "an empty value leaves the default")
		if parent := l.at(path[:len(path)-1]...); parent.isTable() {
			delete(parent.table, path[len(path)-1])
		}
	}
}

// deprecated finds settings that a later release does not read. What sets nothing is in
// every file that was printed by containerd, and harmless.
func (l *loader) deprecated(n *node, path []string) {
	for _, key := range n.keys() {
		e, at := n.table[key], append(slices.Clip(path), key)
		r, ok := l.retired.Of(at)
		if ok && r.Since != (releases.Version{}) && l.rules.Compare(r.Since) >= 0 && l.inUse(e, at) {
			removed := ""
			if r.Removed != (releases.Version{}) {
				removed = r.Removed.Line()
			}
			l.Deprecated = append(l.Deprecated, Key{Path: written(e, at), Place: e.at, Hint: r.Instead, Removed: removed})
		}
		if key == "runtime_type" && l.old() {
			if kind, _ := e.text(); kind == "io.containerd.runtime.v1.linux" || kind == "io.containerd.runc.v1" {
				l.Deprecated = append(l.Deprecated, Key{Path: e.path, Place: e.at, Hint: "use " + runcV2, Removed: "2.0"})
			}
		}
		if e.isTable() {
			l.deprecated(e, at)
		}
	}
}

// inUse says whether a deprecated setting does something.
func (l *loader) inUse(n *node, path []string) bool {
	switch path[len(path)-1] {
	case "enable_cdi": // true is what it will always be
		return n.leaf == false
	case "io.containerd.runtime.v1.linux", "io.containerd.snapshotter.v1.aufs": // settings of what nothing may use
		return false
	case "default_runtime", "untrusted_workload_runtime":
		kind, _ := l.child(n, "runtime_type").text()
		return kind != ""
	}
	return !n.empty() || n.isTable() && len(n.table) > 0 && path[len(path)-1] != "options"
}

// index notes where settings were in their files, if a migration moved them.
func (l *loader) index(n *node, path []string) {
	for n.from != nil {
		n = n.from
	}
	if len(n.path) > 0 && !slices.Equal(n.path, path) {
		l.moved[join(n.path)] = n
	}
	for _, key := range n.keys() {
		l.index(n.table[key], append(slices.Clip(path), key))
	}
}

// explainImports notes what a mixture of files comes to.
func (l *loader) explainImports() {
	if len(l.Files) == 0 {
		return
	}
	root := l.Files[0]
	for i := range l.imports {
		for _, path := range l.imports[i].Files {
			for _, f := range l.Files[1:] {
				if f.Path != path || f.Tree == nil {
					continue
				}
				if max(1, f.Version) != max(1, root.Version) {
					at := f.Place("version")
					if at == (Place{}) {
						at = Place{File: f.Path}
					}
					l.imports[i].Versions = append(l.imports[i].Versions, ImportVersion{at, f.Version, root.Version})
				}
			}
		}
		for _, r := range l.lost {
			if slices.Contains(l.imports[i].Files, r.New.File) {
				l.imports[i].Replaced = append(l.imports[i].Replaced, r)
			}
		}
	}
}

// replaced notes that a file of 1.x sets a plugin's section anew.
func (l *loader) replaced(name string, before, section *node) {
	l.lost = append(l.lost, Replaced{name, before.at, section.at})
}

// sort orders findings by file as they are merged, and line.
func (l *loader) sort() {
	rank := func(file string) int {
		return slices.IndexFunc(l.Files, func(f *File) bool { return f.Path == file })
	}
	places := func(a, b Place) int {
		return cmp.Or(cmp.Compare(rank(a.File), rank(b.File)), cmp.Compare(a.Line, b.Line))
	}
	slices.SortStableFunc(l.Faults, func(a, b Fault) int { return places(a.Place, b.Place) })
	for _, keys := range [][]Key{l.Ignored, l.Deprecated} {
		slices.SortStableFunc(keys, func(a, b Key) int { return places(a.Place, b.Place) })
	}
}

// written is a node's path in its file, where it has one.
func written(n *node, path []string) []string {
	if len(n.path) > 0 {
		return n.path
	}
	return path
}
