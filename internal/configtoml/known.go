package configtoml

import (
	_ "embed"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/releases"
)

// knownKeys are the keys of config.toml by release line: "LINES TYPE PATH" on each line,
// LINES as FROM-TO, the second left out for "and newer".
//
//go:embed known.txt
var knownKeys string

//go:embed known_more.txt
var knownMore string

// known is a key that a release reads.
type known struct {
	kind  string
	below map[string]*known
	// any name may stand here, as for runtimes and registries.
	wild *known
}

// knownTo makes the tree of keys that a release reads.
func knownTo(v releases.Version) *known {
	top := &known{kind: "table"}
	for _, list := range []string{knownKeys, knownMore} {
		for line := range strings.Lines(list) {
			lines, rest, _ := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			kind, path, ok := strings.Cut(rest, " ")
			if !ok || lines == "#" || !inLines(lines, v) {
				continue
			}
			top.add(path, kind)
		}
	}
	return top
}

func (k *known) add(path, kind string) {
	for part := range strings.SplitSeq(path, "/") {
		if part == "*" {
			if k.wild == nil {
				k.wild = &known{kind: "table"}
			}
			k = k.wild
			continue
		}
		if k.below == nil {
			k.below = map[string]*known{}
		}
		next := k.below[part]
		if next == nil {
			next = &known{kind: "table"}
			k.below[part] = next
		}
		k = next
	}
	k.kind = kind
}

// get goes down to a key; nil where the release has none there.
func (k *known) get(path ...string) *known {
	for _, part := range path {
		if k == nil {
			return nil
		}
		if next := k.below[part]; next != nil {
			k = next
			continue
		}
		k = k.wild
	}
	return k
}

// inLines says whether a release is of the lines FROM-TO; what is older than the first
// line there is counts as that.
func inLines(lines string, v releases.Version) bool {
	from, to, _ := strings.Cut(lines, "-")
	return from == "1.6" && !v.AtLeast(1, 6, 0) || lineOf(v) >= lineNumber(from) && (to == "" || lineOf(v) <= lineNumber(to))
}

func lineOf(v releases.Version) int { return v.Major*1000 + v.Minor }

func lineNumber(s string) int {
	n, minor, dot := 0, 0, false
	for _, c := range s {
		switch {
		case c == '.':
			dot = true
		case dot:
			minor = minor*10 + int(c-'0')
		default:
			n = n*10 + int(c-'0')
		}
	}
	return n*1000 + minor
}

// fits says whether a value has the type of a key; otherwise what it must be.
func (k *known) fits(n *node) (want string, ok bool) {
	leaf := func(want string, is func(any) bool) (string, bool) { return want, n.kind == leafKind && is(n.leaf) }
	switch k.kind {
	case "text":
		return leaf("a text in quotes", func(v any) bool { _, ok := v.(string); return ok })
	case "duration":
		return leaf("a duration in quotes, such as \"10s\"", func(v any) bool {
			s, ok := v.(string)
			_, err := time.ParseDuration(s)
			return ok && err == nil
		})
	case "number":
		return leaf("a whole number", func(v any) bool { _, ok := v.(int64); return ok })
	case "float":
		return leaf("a number", func(v any) bool {
			_, whole := v.(int64)
			_, float := v.(float64)
			return whole || float
		})
	case "boolean":
		return leaf("true or false", func(v any) bool { _, ok := v.(bool); return ok })
	case "texts":
		return "a list of texts", n.kind == listKind && len(n.texts()) == len(n.list)
	case "table":
		return "a table", n.kind == tableKind
	}
	return "", true
}
