package profiles

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/internal/diag"
)

const (
	// maxSize bounds a profile file, in bytes. Real ones are a few KiB.
	maxSize = 1 << 20
	// maxNodes bounds a profile once its aliases are expanded, so that ten lines of
	// aliases of aliases do not fill the memory.
	maxNodes = 100_000
	// maxDepth bounds nesting.
	maxDepth = 64
	// maxLayers bounds a chain of extends whose cycle hides behind symbolic links.
	maxLayers = 32
)

// layer is one profile of a chain.
type layer struct {
	name string // for people: as given, or relative to the profile that extends it
	dir  string // what its relative files are relative to
	root *node  // nil for an empty file
}

// node is a YAML value that knows its layer. Aliases and merge keys are expanded.
type node struct {
	y     *yaml.Node // kind, tag, text, line, column
	layer *layer
	pairs []pair  // of a map, as written
	items []*node // of a list
}

// pair is an entry of a map.
type pair struct {
	key   string
	at    *yaml.Node // the key
	value *node
}

func (n *node) isMap() bool  { return n.y.Kind == yaml.MappingNode }
func (n *node) isList() bool { return n.y.Kind == yaml.SequenceNode }
func (n *node) isNull() bool { return n.y.Kind == yaml.ScalarNode && n.y.ShortTag() == "!!null" }

// get returns the value of a key, nil if there is none.
func (n *node) get(key string) *node {
	for _, p := range n.pairs {
		if p.key == key {
			return p.value
		}
	}
	return nil
}

// at is the place of a YAML node under a field path.
func (l *layer) at(y *yaml.Node, path string) diag.Origin {
	return diag.Origin{Path: path, File: l.name, Line: y.Line, Column: y.Column}
}

func (n *node) at(path string) diag.Origin { return n.layer.at(n.y, path) }

// join appends a key to a field path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

func index(path string, i int) string { return path + "[" + strconv.Itoa(i) + "]" }

// parse reads one YAML document into l.root. It reports syntax errors, duplicate
// keys, aliases that lead nowhere or too far, custom tags and further documents.
func (l *layer) parse(data []byte, list *diag.List) {
	whole := diag.Origin{File: l.name, Line: 1, Column: 1}
	if len(data) > maxSize {
		list.Errorf(whole, "", "the profile has %d bytes, more than the %d that are read", len(data), maxSize)
		return
	}
	if bad := invalidUTF8(data); bad >= 0 {
		at := place(data, bad)
		at.File = l.name
		list.Errorf(at, "save the file as UTF-8", "byte 0x%02x is not UTF-8 text", data[bad])
		return
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return
	case err != nil:
		l.syntax(data, err, list)
		return
	}
	switch err := dec.Decode(&next); {
	case errors.Is(err, io.EOF):
	case err != nil:
		l.syntax(data, err, list)
		return
	default:
		list.Errorf(l.at(&next, ""), "keep one, and let it extend the other as a file",
			"a second YAML document begins here; a profile is a single one")
	}
	if doc.Kind != yaml.DocumentNode || len(doc.Content) != 1 {
		return
	}
	b := builder{layer: l, list: list, open: map[*yaml.Node]bool{}}
	l.root = b.build(doc.Content[0], "", 0)
	if l.root != nil && l.root.isNull() {
		l.root = nil
	}
}

// yamlLine finds the line in yaml's own error text.
var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

// syntax reports yaml's error at yaml's own line, or at the tab that is the usual
// cause, or at the alias that has no anchor.
func (l *layer) syntax(data []byte, err error, list *diag.List) {
	at := diag.Origin{File: l.name, Line: 1}
	message, hint := err.Error(), ""
	if m := yamlLine.FindStringSubmatch(message); m != nil {
		if line, err := strconv.Atoi(m[1]); err == nil {
			at.Line = line
		}
		message = m[2]
		// yaml counts the lines of what its parser finds, unlike its scanner, from 0.
		if m[1] != "" && slices.Contains(parserErrors(), message) {
			at.Line = min(at.Line+1, 1+bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n")))
		}
	}
	if i := tabIndent(data); i >= 0 && strings.Contains(message, "cannot start any token") {
		at = place(data, i)
		hint = "YAML indents with spaces, not with tabs"
	}
	if name, ok := strings.CutPrefix(message, "unknown anchor '"); ok {
		name, _, _ = strings.Cut(name, "'")
		if i := bytes.Index(data, []byte("*"+name)); i >= 0 {
			at = place(data, i)
		}
		hint = "a value that begins with * must be quoted, unless it repeats a value marked &" + name
	}
	at.File, at.Column = l.name, max(at.Column, 1) // 1 where yaml does not say
	list.Errorf(at, hint, "not YAML: %s", message)
}

// parserErrors are the messages of yaml's parser, as against its scanner.
func parserErrors() []string {
	return []string{
		"did not find expected ',' or ']'", "did not find expected ',' or '}'", "did not find expected '-' indicator",
		"did not find expected <document start>", "did not find expected key", "did not find expected node content",
		"found undefined tag handle", "found incompatible YAML document", "found duplicate %YAML directive", "found duplicate %TAG directive",
	}
}

// place turns an offset into a line and column.
func place(data []byte, offset int) diag.Origin {
	before := data[:offset]
	start := bytes.LastIndexByte(before, '\n') + 1
	return diag.Origin{Line: 1 + bytes.Count(before, []byte("\n")), Column: 1 + utf8.RuneCount(before[start:])}
}

// tabIndent is the offset of the first tab in the indentation of a line, -1 if there
// is none.
func tabIndent(data []byte) int {
	offset := 0
	for line := range bytes.Lines(data) {
		indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
		if i := bytes.IndexByte(indent, '\t'); i >= 0 && len(bytes.TrimSpace(line)) > 0 {
			return offset + i
		}
		offset += len(line)
	}
	return -1
}

// invalidUTF8 is the offset of the first byte that is not UTF-8, -1 if all are.
func invalidUTF8(data []byte) int {
	for i := 0; i < len(data); {
		r, size := utf8.DecodeRune(data[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// builder makes nodes of yaml's.
type builder struct {
	layer *layer
	list  *diag.List
	count int
	full  bool                // maxNodes was reported
	open  map[*yaml.Node]bool // the nodes being built, to see an alias inside its own value
}

// build returns nil where a fault leaves no value.
func (b *builder) build(y *yaml.Node, path string, depth int) *node {
	b.count++
	switch {
	case b.full:
		return nil
	case b.count > maxNodes:
		b.full = true
		b.list.Errorf(b.layer.at(y, path), "write less by alias", "the profile has more than %d values once its aliases are expanded", maxNodes)
		return nil
	case depth > maxDepth:
		b.list.Errorf(b.layer.at(y, path), "", "values are nested more than %d deep", maxDepth)
		return nil
	case b.open[y]:
		b.list.Errorf(b.layer.at(y, path), "", "the value of anchor %q holds an alias of itself", y.Anchor)
		return nil
	}
	b.open[y] = true
	defer delete(b.open, y)

	if y.Kind == yaml.AliasNode {
		return b.build(y.Alias, path, depth+1)
	}
	if tag := y.ShortTag(); !strings.HasPrefix(tag, "!!") || tag == "!!binary" {
		b.list.Errorf(b.layer.at(y, path), "leave the tag out", "the tag %s is not known here", tag)
		return nil
	}
	n := &node{y: y, layer: b.layer}
	switch y.Kind {
	case yaml.SequenceNode:
		n.items = make([]*node, 0, len(y.Content))
		for i, c := range y.Content {
			if item := b.build(c, index(path, i), depth+1); item != nil {
				n.items = append(n.items, item)
			}
		}
	case yaml.MappingNode:
		b.buildMap(n, path, depth)
	}
	return n
}

func (b *builder) buildMap(n *node, path string, depth int) {
	seen := map[string]*yaml.Node{}
	var merges []*yaml.Node
	for i := 0; i+1 < len(n.y.Content); i += 2 {
		key, value := n.y.Content[i], n.y.Content[i+1]
		if key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		switch {
		case key.Kind != yaml.ScalarNode:
			b.list.Errorf(b.layer.at(n.y.Content[i], path), "", "a key must be text, not a list or a map")
			continue
		case key.ShortTag() == "!!merge":
			merges = append(merges, value)
			continue
		case key.Value == "" || key.ShortTag() == "!!null":
			b.list.Errorf(b.layer.at(n.y.Content[i], path), "", "a key is empty")
			continue
		}
		if first := seen[key.Value]; first != nil && secretValue(path) {
			b.list.Errorf(b.layer.at(n.y.Content[i], path), "remove one of them", "a key is there twice; it is first given in line %d", first.Line)
			continue
		} else if first != nil {
			b.list.Errorf(b.layer.at(n.y.Content[i], join(path, key.Value)), "remove one of them",
				"duplicate key %q; it is first given in line %d", key.Value, first.Line)
			b.build(value, join(path, key.Value), depth+1) // for its own faults
			continue
		}
		seen[key.Value] = key
		if v := b.build(value, join(path, key.Value), depth+1); v != nil {
			n.pairs = append(n.pairs, pair{key.Value, n.y.Content[i], v})
		}
	}
	for _, m := range merges {
		b.mergeKey(n, m, path, depth)
	}
}

// mergeKey adds what "<<" brings: a map, an alias of one or a list of them, whose
// keys count where the map has none of its own (yaml.org/type/merge.html).
func (b *builder) mergeKey(n *node, m *yaml.Node, path string, depth int) {
	from := b.build(m, join(path, "<<"), depth+1)
	if from == nil {
		return
	}
	maps := []*node{from}
	if from.isList() {
		maps = from.items
	}
	have := make(map[string]bool, len(n.pairs))
	for _, p := range n.pairs {
		have[p.key] = true
	}
	for _, f := range maps {
		if !f.isMap() {
			b.list.Errorf(b.layer.at(m, join(path, "<<")), "", "found %s, want a map or a list of maps to merge", describe(f))
			continue
		}
		for _, p := range f.pairs {
			if !have[p.key] {
				have[p.key] = true
				n.pairs = append(n.pairs, p)
			}
		}
	}
}

// describe says what a value is, for "found ..., want ...".
func describe(n *node) string {
	switch {
	case n.isMap():
		return "a map"
	case n.isList():
		return "a list"
	}
	text := quote(redact(maskText(n.y.Value)))
	switch n.y.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "the boolean " + n.y.Value
	case "!!int", "!!float":
		return "the number " + n.y.Value
	case "!!timestamp":
		return "the date " + n.y.Value
	}
	return "the text " + text
}

// quote is %q, cut short where a text is long.
func quote(s string) string {
	const most = 60
	if utf8.RuneCountInString(s) > most {
		return fmt.Sprintf("%q...", string([]rune(s)[:most]))
	}
	return strconv.Quote(s)
}
