package configtoml

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
)

// File is one file of a config as it was read.
type File struct {
	Path    string         // as on the node
	Version int            // its version key, 0 where it has none (containerd takes it as 1)
	Tree    map[string]any // decoded; nil where it could not be

	places map[string]mark // by joined path
}

// mark is where a key or table is. A table that only the headers of tables below it
// name is where the first of them is.
type mark struct {
	line     int
	outright bool
}

// Place is where a key or table is in this file, zero if it is not there. Elements of
// lists and of arrays of tables are named by their number, from 0.
func (f *File) Place(path ...string) Place {
	m, ok := f.places[join(path)]
	if !ok {
		return Place{}
	}
	return Place{f.Path, m.line}
}

// join makes a key for a map of a path; TOML keys have no NUL.
func join(path []string) string { return strings.Join(path, "\x00") }

// decode reads a file's content. What is wrong with it is the second result.
func decode(path string, content []byte) (*File, []Fault) {
	f := &File{Path: path}
	var tree map[string]any
	if err := toml.Unmarshal(content, &tree); err != nil {
		at, where := Place{File: path}, ""
		if e := (*toml.DecodeError)(nil); errors.As(err, &e) {
			row, column := e.Position()
			at.Line, where = row, fmt.Sprintf(" at line %d, column %d", row, column)
		}
		return f, []Fault{{at, "not valid TOML" + where + ": " + strings.TrimPrefix(err.Error(), "toml: "), "correct the line: containerd reads none of the file"}}
	}
	if tree == nil {
		tree = map[string]any{}
	}
	f.Tree = tree
	f.places = findPlaces(content)
	if v, ok := tree["version"].(int64); ok {
		f.Version = int(v)
	}
	return f, nil
}

// finder notes where the keys of a file are.
type finder struct {
	parser unstable.Parser
	lines  []int // offsets at which lines start
	places map[string]mark
	arrays map[string]int // tables seen in each array of tables
}

// findPlaces returns the lines of all keys and tables of valid TOML.
func findPlaces(content []byte) map[string]mark {
	f := finder{lines: []int{0}, places: map[string]mark{}, arrays: map[string]int{}}
	for i, b := range content {
		if b == '\n' {
			f.lines = append(f.lines, i+1)
		}
	}
	f.parser.Reset(content)
	var table []string
	for f.parser.NextExpression() {
		switch e := f.parser.Expression(); e.Kind {
		case unstable.Table:
			table = f.key(nil, e.Key())
		case unstable.ArrayTable:
			table = f.key(nil, e.Key())
			at := join(table)
			n := f.arrays[at]
			f.arrays[at]++
			table = append(table, strconv.Itoa(n))
			f.note(table, f.firstLine(e), true)
		case unstable.KeyValue:
			f.value(f.key(table, e.Key()), e.Value())
		}
	}
	return f.places
}

// key notes the parts of a key below a table and returns its whole path. In an array
// of tables a key goes on below the last one.
func (f *finder) key(table []string, parts unstable.Iterator) []string {
	path := slices.Clone(table)
	for parts.Next() {
		k := parts.Node()
		if n := f.arrays[join(path)]; n > 0 && len(path) > 0 {
			path = append(path, strconv.Itoa(n-1))
		}
		path = append(path, string(k.Data))
		f.note(path, f.line(k.Raw), parts.IsLast())
	}
	return path
}

func (f *finder) value(path []string, v *unstable.Node) {
	switch v.Kind {
	case unstable.InlineTable:
		for it := v.Children(); it.Next(); {
			f.value(f.key(path, it.Node().Key()), it.Node().Value())
		}
	case unstable.Array:
		n := 0
		for it := v.Children(); it.Next(); {
			e := it.Node()
			if e.Kind == unstable.Comment {
				continue
			}
			at := append(slices.Clone(path), strconv.Itoa(n))
			n++
			line := f.places[join(path)].line
			if e.Raw.Length > 0 {
				line = f.line(e.Raw)
			}
			f.note(at, line, true)
			f.value(at, e)
		}
	}
}

func (f *finder) note(path []string, line int, outright bool) {
	at := join(path)
	if m, seen := f.places[at]; !seen || outright && !m.outright {
		f.places[at] = mark{line, outright}
	}
}

func (f *finder) firstLine(e *unstable.Node) int {
	it := e.Key()
	it.Next()
	return f.line(it.Node().Raw)
}

func (f *finder) line(r unstable.Range) int {
	i, exact := slices.BinarySearch(f.lines, int(r.Offset))
	if exact {
		return i + 1
	}
	return i
}
