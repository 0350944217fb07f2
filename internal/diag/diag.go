package diag

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode"
)

// Origin is the place in a profile that a value or a generated file comes from.
// The zero Origin means "no place": a default or something outside any profile.
type Origin struct {
	// Path is the field, as in containerd.runtimes.crun.path or images[0].file.
	Path string `json:"path,omitempty" yaml:"path,omitempty"`
	// File is the profile's name as the user gave it; "builtin:NAME" for a built-in.
	File string `json:"file,omitempty" yaml:"file,omitempty"`
	// Line and Column count from 1; 0 means unknown.
	Line   int `json:"line,omitempty" yaml:"line,omitempty"`
	Column int `json:"column,omitempty" yaml:"column,omitempty"`
}

// Place is "FILE:LINE:COL", shorter where a part is unknown, "" for the zero Origin.
func (o Origin) Place() string {
	s := o.File
	if o.Line > 0 {
		s += ":" + strconv.Itoa(o.Line)
		if o.Column > 0 {
			s += ":" + strconv.Itoa(o.Column)
		}
	}
	return s
}

// String is "path (FILE:LINE)", for the end of a message: "from ...".
func (o Origin) String() string {
	place := o.File
	if o.Line > 0 {
		place += ":" + strconv.Itoa(o.Line)
	}
	place, path := printable(place), printablePath(o.Path)
	switch {
	case path == "":
		return place
	case place == "":
		return path
	}
	return path + " (" + place + ")"
}

// Severity orders findings; only an Error stops anything.
type Severity int

const (
	Error Severity = iota
	Warning
)

// String is "error" or "warning".
func (s Severity) String() string {
	if s == Warning {
		return "warning"
	}
	return "error"
}

// MarshalText makes the JSON form "error" or "warning".
func (s Severity) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads what MarshalText writes.
func (s *Severity) UnmarshalText(b []byte) error {
	switch string(b) {
	case "error":
		*s = Error
	case "warning":
		*s = Warning
	default:
		return fmt.Errorf("severity %q: want error or warning", b)
	}
	return nil
}

// Diagnostic is one finding.
type Diagnostic struct {
	Severity Severity `json:"severity" yaml:"severity"`
	Origin   `yaml:",inline"`
	// Message says what was found and what was wanted, in lower case without a full stop.
	Message string `json:"message" yaml:"message"`
	// Hint is what to do, if that is known.
	Hint string `json:"hint,omitempty" yaml:"hint,omitempty"`
}

// String is the line users see: "FILE:LINE:COL: path: problem (hint)"; a warning
// has "warning: " before its path.
func (d Diagnostic) String() string {
	var b strings.Builder
	if p := d.Place(); p != "" {
		b.WriteString(printable(p) + ": ")
	}
	if d.Severity == Warning {
		b.WriteString("warning: ")
	}
	if d.Path != "" {
		b.WriteString(printablePath(d.Path) + ": ")
	}
	b.WriteString(d.Message)
	if d.Hint != "" {
		b.WriteString(" (" + d.Hint + ")")
	}
	return b.String()
}

// List is a set of findings; its zero value is ready to use.
type List []Diagnostic

// Errorf adds an error at a place; hint may be empty.
func (l *List) Errorf(o Origin, hint, format string, args ...any) {
	l.add(Error, o, hint, fmt.Sprintf(format, args...))
}

// Warnf adds a warning at a place; hint may be empty.
func (l *List) Warnf(o Origin, hint, format string, args ...any) {
	l.add(Warning, o, hint, fmt.Sprintf(format, args...))
}

func (l *List) add(s Severity, o Origin, hint, message string) {
	o.Path = printablePath(o.Path)
	*l = append(*l, Diagnostic{Severity: s, Origin: o, Message: printable(message), Hint: printable(hint)})
}

// printable writes what would move a terminal's cursor, change its colours or hide
// text as Go escapes, so that a finding is one line of what it says. Keys, file names
// and texts of others come from profiles that may not be to be trusted.
func printable(s string) string {
	if !strings.ContainsFunc(s, unprintable) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unprintable(r) {
			quoted := strconv.QuoteRune(r)
			b.WriteString(quoted[1 : len(quoted)-1])
			continue
		}
		b.WriteRune(r)
	}
	return b.String()
}

// printablePath quotes the parts of a field path that hold such characters.
func printablePath(path string) string {
	if !strings.ContainsFunc(path, unprintable) {
		return path
	}
	parts := strings.Split(path, ".")
	for i, p := range parts {
		if strings.ContainsFunc(p, unprintable) {
			parts[i] = strconv.Quote(p)
		}
	}
	return strings.Join(parts, ".")
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// Errors returns the errors alone.
func (l List) Errors() List { return l.only(Error) }

// Warnings returns the warnings alone.
func (l List) Warnings() List { return l.only(Warning) }

func (l List) only(s Severity) List {
	var out List
	for _, d := range l {
		if d.Severity == s {
			out = append(out, d)
		}
	}
	return out
}

// HasErrors reports whether anything in l is an error.
func (l List) HasErrors() bool {
	return slices.ContainsFunc(l, func(d Diagnostic) bool { return d.Severity == Error })
}

// Sort orders findings by file, line, column, then path and message, and drops
// exact repetitions. Files keep the order in which they first appear.
func (l *List) Sort() {
	rank := map[string]int{}
	for _, d := range *l {
		if _, ok := rank[d.File]; !ok {
			rank[d.File] = len(rank)
		}
	}
	slices.SortStableFunc(*l, func(a, b Diagnostic) int {
		for _, c := range []int{
			rank[a.File] - rank[b.File], a.Line - b.Line, a.Column - b.Column,
			strings.Compare(a.Path, b.Path), strings.Compare(a.Message, b.Message),
		} {
			if c != 0 {
				return c
			}
		}
		return 0
	})
	*l = slices.Compact(*l)
}

// Err is l as an error when it holds at least one error, else nil.
func (l List) Err() error {
	if !l.HasErrors() {
		return nil
	}
	return &ListError{List: l}
}

// ListError carries findings through a function that returns an error.
type ListError struct{ List List }

// Error is one line a finding.
func (e *ListError) Error() string {
	lines := make([]string, 0, len(e.List))
	for _, d := range e.List {
		lines = append(lines, d.String())
	}
	return strings.Join(lines, "\n")
}
