package configtoml

import (
	"maps"
	"slices"
	"strings"
)

// today is where the release has a setting that a file has where another schema had it;
// nil where that is not known.
func (l *loader) today(path []string) []string {
	if path[0] != "plugins" {
		return nil
	}
	if l.old() {
		return l.before(path)
	}
	// The migration knows: it moves a file that has nothing else in it.
	to := l.forward(path)
	if to == nil || slices.Equal(to, path) || l.known.get(to...) == nil {
		return nil
	}
	return to
}

// forward is where the migrations of 2.x put a setting of schema 1 or 2.
func (l *loader) forward(path []string) []string {
	top := newTable(Place{})
	end := top
	for i, key := range path {
		next := &node{path: path[:i+1], kind: tableKind, table: map[string]*node{}}
		if i == len(path)-1 && i > 1 {
			next = &node{path: path, leaf: "x"}
		}
		end.table[key] = next
		end = next
	}
	// Without runtimes the snapshotter's settings would be dropped.
	if t := top.get("plugins", criV2, "containerd"); t.isTable() && t.table["runtimes"] == nil {
		t.table["runtimes"] = newTable(Place{})
	}
	m := &loader{Config: &Config{rules: l.rules}}
	m.renameV1(top)
	m.migratePlugins(top)
	return find(top, nil, path)
}

// find is where in a tree the node with a path in its file is.
func find(n *node, at, path []string) []string {
	for n.from != nil {
		n = n.from
	}
	if len(at) > 0 && slices.Equal(n.path, path) {
		return at
	}
	for _, key := range n.keys() {
		if to := find(n.table[key], append(slices.Clip(at), key), path); to != nil {
			return to
		}
	}
	return nil
}

// before is where 1.x has a setting of schema 3 or 4: the key that 2.x migrates there.
func (l *loader) before(path []string) []string {
	newest := &loader{Config: &Config{rules: newest()}}
	var search func(k *known, at []string) []string
	search = func(k *known, at []string) []string {
		for _, key := range slices.Sorted(maps.Keys(k.below)) {
			here := append(slices.Clip(at), key)
			if len(here) > 2 && slices.Equal(newest.forward(here), path) {
				return here
			}
			if to := search(k.below[key], here); to != nil {
				return to
			}
		}
		return nil
	}
	switch {
	case len(path) == 2 && (path[1] == criImages || path[1] == criRuntime):
		return []string{"plugins", criV2}
	case len(path) == 2:
		for name := range l.known.below["plugins"].below {
			if slices.Equal(newest.forward([]string{"plugins", name}), path) {
				return []string{"plugins", name}
			}
		}
		return nil
	}
	return search(l.known.below["plugins"], []string{"plugins"})
}

// namesake is the only other place among CRI's sections with a setting of that name.
func (l *loader) namesake(path []string) []string {
	if len(path) < 3 || path[0] != "plugins" || !slices.Contains([]string{criV2, criImages, criRuntime}, path[1]) {
		return nil
	}
	name := path[len(path)-1]
	var found [][]string
	var search func(k *known, at []string)
	search = func(k *known, at []string) {
		for _, key := range slices.Sorted(maps.Keys(k.below)) {
			here := append(slices.Clip(at), key)
			if key == name {
				found = append(found, here)
			}
			search(k.below[key], here)
		}
	}
	for _, plugin := range []string{criV2, criImages, criRuntime} {
		if k := l.known.get("plugins", plugin); k != nil {
			search(k, []string{"plugins", plugin})
		}
	}
	if len(found) != 1 {
		return nil
	}
	return found[0]
}

// cameWith is the first later release line that reads a key, "" for none.
func (l *loader) cameWith(path []string) string {
	first := ""
	for _, list := range []string{knownKeys, knownMore} {
		for line := range strings.Lines(list) {
			lines, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			_, name, _ := strings.Cut(rest, " ")
			from, _, _ := strings.Cut(lines, "-")
			if lines != "#" && lineNumber(from) > lineOf(l.rules) && matches(name, path) &&
				(first == "" || lineNumber(from) < lineNumber(first)) {
				first = from
			}
		}
	}
	return first
}

// matches compares the name of a known key with a path.
func matches(name string, path []string) bool {
	i := 0
	for part := range strings.SplitSeq(name, "/") {
		if i >= len(path) || part != "*" && part != path[i] {
			return false
		}
		i++
	}
	return i == len(path)
}
