package configtoml

import "slices"

// merge puts a file's settings over those before it, as the release does.
func (l *loader) merge(top *node) {
	for _, key := range top.keys() {
		n := top.table[key]
		into := l.top.table[key]
		switch key {
		case "version":
			l.top.table[key] = n
		case "imports", "disabled_plugins", "required_plugins":
			l.top.table[key] = l.unite(into, n)
		case "plugins":
			l.mergePlugins(n)
		case "proxy_plugins", "stream_processors", "timeouts":
			if !n.isTable() {
				continue
			}
			t := l.top.section(key, n.at)
			for _, name := range n.keys() {
				t.table[name] = n.table[name]
			}
		default:
			l.top.table[key] = l.override(into, n)
		}
	}
}

// override is for what is a structure to containerd: a value that Go takes for unset
// does not win over another.
func (l *loader) override(into, n *node) *node {
	switch {
	case into == nil:
		return n.clone()
	case into.isTable() && n.isTable():
		for _, key := range n.keys() {
			into.table[key] = l.override(into.table[key], n.table[key])
		}
		return into
	case n.zero() && !into.zero():
		l.ignore(n, "%s cannot be taken back by a later file: change it there", into.at)
		return into
	}
	return n
}

// unite adds the entries of a list; 2.x leaves out those that are there.
func (l *loader) unite(into, n *node) *node {
	if into == nil || into.kind != listKind || n.kind != listKind {
		return n
	}
	out := *into
	out.list = slices.Clone(into.list)
	for _, e := range n.list {
		same := func(have *node) bool { return have.leaf == e.leaf && have.kind == leafKind && e.kind == leafKind }
		if l.old() || !slices.ContainsFunc(out.list, same) {
			out.list = append(out.list, e)
		}
	}
	return &out
}

func (l *loader) mergePlugins(n *node) {
	if !n.isTable() {
		return
	}
	plugins := l.top.section("plugins", n.at)
	for _, name := range n.keys() {
		section := n.table[name]
		if before := plugins.table[name]; before != nil && l.old() {
			l.replaced(name, before, section)
		}
		if l.old() {
			plugins.table[name] = section
			continue
		}
		plugins.table[name] = deepen(plugins.table[name], section)
	}
}

// deepen merges tables key by key; anything else, a list too, takes the place of what
// was there.
func deepen(into, n *node) *node {
	if into == nil || !into.isTable() || !n.isTable() {
		return n.clone()
	}
	for _, key := range n.keys() {
		into.table[key] = deepen(into.table[key], n.table[key])
	}
	return into
}
