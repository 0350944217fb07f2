package configtoml

import (
	"maps"
	"slices"
	"strconv"
)

// node is a value of a config with where it is from. Exactly one of table, list and
// leaf counts.
type node struct {
	at    Place
	path  []string // as written in its file; nil for what containerd derives
	table map[string]*node
	list  []*node
	leaf  any
	kind  kind
	from  *node  // what a migration made this from, nil for most
	was   string // of a plugin's name that a migration changed: the one in the file
}

type kind int

const (
	leafKind kind = iota
	tableKind
	listKind
)

func newTable(at Place) *node {
	return &node{at: at, kind: tableKind, table: map[string]*node{}}
}

// build makes the nodes of a file's value.
func (f *File) build(path []string, v any) *node {
	n := &node{at: f.Place(path...), path: slices.Clip(path)}
	switch v := v.(type) {
	case map[string]any:
		n.kind, n.table = tableKind, make(map[string]*node, len(v))
		for k, e := range v {
			n.table[k] = f.build(append(n.path, k), e)
		}
	case []any:
		n.kind = listKind
		for i, e := range v {
			n.list = append(n.list, f.build(append(n.path, strconv.Itoa(i)), e))
		}
	default:
		n.leaf = v
	}
	return n
}

// plain is the value as go-toml decodes it.
func (n *node) plain() any {
	switch n.kind {
	case tableKind:
		out := make(map[string]any, len(n.table))
		for k, e := range n.table {
			out[k] = e.plain()
		}
		return out
	case listKind:
		out := make([]any, 0, len(n.list))
		for _, e := range n.list {
			out = append(out, e.plain())
		}
		return out
	}
	return n.leaf
}

// get goes down tables; nil where there is none. A nil node has nothing below it.
func (n *node) get(path ...string) *node {
	for _, k := range path {
		if n == nil || n.kind != tableKind {
			return nil
		}
		n = n.table[k]
	}
	return n
}

// section returns the table at a key, made if it is not there; nil if something else is.
func (n *node) section(key string, at Place) *node {
	if n == nil || n.kind != tableKind {
		return nil
	}
	t := n.table[key]
	if t == nil {
		t = newTable(at)
		n.table[key] = t
	}
	if t.kind != tableKind {
		return nil
	}
	return t
}

func (n *node) isTable() bool { return n != nil && n.kind == tableKind }

// keys are the names in a table, sorted; none for anything else.
func (n *node) keys() []string {
	if n == nil {
		return nil
	}
	return slices.Sorted(maps.Keys(n.table))
}

// zero says whether a value is one that Go would take for unset.
func (n *node) zero() bool {
	switch n.kind {
	case tableKind:
		return len(n.table) == 0
	case listKind:
		return len(n.list) == 0
	}
	switch v := n.leaf.(type) {
	case string:
		return v == ""
	case int64:
		return v == 0
	case float64:
		return v == 0
	case bool:
		return !v
	}
	return false
}

// text, number and boolean are a node's value with whether it has that type.
func (n *node) text() (string, bool) {
	if n == nil {
		return "", false
	}
	s, ok := n.leaf.(string)
	return s, ok
}

func (n *node) number() (int, bool) {
	if n == nil {
		return 0, false
	}
	i, ok := n.leaf.(int64)
	return int(i), ok
}

func (n *node) boolean() bool {
	if n == nil {
		return false
	}
	b, _ := n.leaf.(bool)
	return b
}

// texts are the texts of a list.
func (n *node) texts() []string {
	if n == nil {
		return nil
	}
	var out []string
	for _, e := range n.list {
		if s, ok := e.text(); ok {
			out = append(out, s)
		}
	}
	return out
}

// clone copies the tables of a node, so that a merge into it changes no file's own.
func (n *node) clone() *node {
	c := *n
	if n.kind == tableKind {
		c.table = make(map[string]*node, len(n.table))
		for k, e := range n.table {
			c.table[k] = e.clone()
		}
	}
	return &c
}
