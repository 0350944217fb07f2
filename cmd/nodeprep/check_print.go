package main

import (
	"encoding/xml"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
	"unicode"
	"unicode/utf8"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/internal/host"
)

// Rules of a report, beside those of all output (paint.go): a finding is one line, its
// verdict first, then its check and what was found, in columns; an empty line parts the
// families. What was not looked at follows, a line for each reason. What does not hold
// comes last, failures at the very end, each with all that is known of it and with its
// remedy as lines to be pasted. The last line counts. Nothing is cut or wrapped: a
// terminal does that, and a pipe needs all of it. What a host says of itself is printed
// without control characters.

// labels is the width of the labels in what is told of one finding.
const labels = 10

func (a *app) printCheck(r checkResult) {
	c := a.paint(a.out)
	against := "held against what upstream documents: no profile"
	if r.Profile != "" {
		against = "held against " + r.Profile
	}
	fmt.Fprintf(a.out, "%s\n\n", c.dim(r.Root+", "+against))
	printLines(a.out, c, r.Findings)
	printSkipped(a.out, c, r.Findings)
	for _, v := range []checks.Verdict{checks.Unknown, checks.Warn, checks.Fail} {
		printBlocks(a.out, c, r.Findings, v)
	}
	fmt.Fprintln(a.out, counted(c, r.Findings))
}

// printAudit prints what the audit after an apply found: failures whole, the rest in
// numbers.
func (a *app) printAudit(root *host.Root, r checks.Report) {
	c := a.paint(a.out)
	if len(r.Failed()) > 0 {
		fmt.Fprintln(a.out)
		printBlocks(a.out, c, r, checks.Fail)
	}
	line := "audit: " + counted(c, r)
	if n := count(r); n.Warn+n.Unknown > 0 {
		command := "nodeprep check"
		if !root.Live() {
			command += " --root " + root.Dir()
		}
		line += "; " + command + " shows them"
	}
	fmt.Fprintln(a.out, line)
}

// printLines prints a line for each finding that was made, by family.
func printLines(w io.Writer, c painter, r checks.Report) {
	width := 0
	for _, f := range r {
		if f.Verdict != checks.Skip {
			width = max(width, len(f.ID))
		}
	}
	last := ""
	for _, f := range r {
		if f.Verdict == checks.Skip {
			continue
		}
		if last != "" && last != family(f.ID) {
			fmt.Fprintln(w)
		}
		last = family(f.ID)
		found := f.Observed
		if f.Object != "" {
			found = f.Object + ": " + found
		}
		fmt.Fprintf(w, "%s  %-*s  %s\n", c.verdict(f.Verdict, 7), width, f.ID, oneLine(found))
	}
	if last != "" {
		fmt.Fprintln(w)
	}
}

// printSkipped prints a line for each reason for which checks were skipped. A family of
// which nothing else is told is one name.
func printSkipped(w io.Writer, c painter, r checks.Report) {
	var reasons []string
	// By family: the reasons of its findings, "" for other verdicts, and its checks.
	why, ids := map[string]map[string]bool{}, map[string]map[string]bool{}
	for _, f := range r {
		reason := ""
		if f.Verdict == checks.Skip {
			reason = oneLine(f.Observed)
		}
		if reason != "" && !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
		if why[family(f.ID)] == nil {
			why[family(f.ID)], ids[family(f.ID)] = map[string]bool{}, map[string]bool{}
		}
		why[family(f.ID)][reason], ids[family(f.ID)][f.ID] = true, true
	}
	for _, reason := range reasons {
		var names []string
		for _, f := range r {
			if f.Verdict != checks.Skip || oneLine(f.Observed) != reason {
				continue
			}
			name := f.ID
			if len(why[family(f.ID)]) == 1 && len(ids[family(f.ID)]) > 1 {
				name = family(f.ID) + "/*"
			}
			if !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
		fmt.Fprintf(w, "%s  %s: %s\n", c.verdict(checks.Skip, 7), reason, c.dim(strings.Join(names, ", ")))
	}
	if len(reasons) > 0 {
		fmt.Fprintln(w)
	}
}

// printBlocks prints all that is known of the findings with a verdict. Of what is unknown
// the line says it all, unless something can be done about it.
func printBlocks(w io.Writer, c painter, r checks.Report, v checks.Verdict) {
	for _, f := range r {
		if f.Verdict != v || v == checks.Unknown && f.Remedy == "" {
			continue
		}
		title := c.bold(f.ID)
		if f.Object != "" {
			title += "  " + oneLine(f.Object)
		}
		fmt.Fprintf(w, "%s  %s\n", c.verdict(v, 0), title)
		why := whyOf(f.ID)
		note := f.Note
		if f.Demoted {
			note = strings.TrimPrefix(note+"\nwould fail, but somebody asked to skip it", "\n")
		}
		for _, row := range [][2]string{
			{"observed", f.Observed}, {"wanted", f.Wanted}, {"place", f.Place}, {"why", why}, {"note", note},
		} {
			if row[1] != "" {
				fmt.Fprintf(w, "  %-*s%s\n", labels, row[0], indented(row[1], strings.Repeat(" ", 2+labels)))
			}
		}
		if f.Remedy != "" {
			fmt.Fprintf(w, "  remedy\n    %s\n", indented(f.Remedy, "    "))
		}
		fmt.Fprintln(w)
	}
}

// whyOf is why a check matters, and what backs that.
func whyOf(id string) string {
	for _, c := range checks.Catalogue() {
		if c.ID == id {
			return c.Why + " [" + c.Source + "]"
		}
	}
	return ""
}

// counted is how many findings came to what; a check may have several.
func counted(c painter, r checks.Report) string {
	var ids []string
	for _, f := range r {
		if !slices.Contains(ids, f.ID) {
			ids = append(ids, f.ID)
		}
	}
	s := plural(len(ids), "check")
	if len(r) > len(ids) {
		s += ", " + plural(len(r), "finding")
	}
	n := count(r)
	var parts []string
	for _, p := range []struct {
		n int
		v checks.Verdict
	}{{n.Pass, checks.Pass}, {n.Warn, checks.Warn}, {n.Fail, checks.Fail}, {n.Skip, checks.Skip}, {n.Unknown, checks.Unknown}} {
		if p.n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", p.n, c.verdict(p.v, 0)))
		}
	}
	return s + ": " + strings.Join(parts, ", ")
}

func plural(n int, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// isAre is plural with its verb.
func isAre(n int, what string) string {
	if n == 1 {
		return plural(n, what) + " is"
	}
	return plural(n, what) + " are"
}

// verdict is a verdict's word, filled up to a width.
func (p painter) verdict(v checks.Verdict, width int) string {
	word := fmt.Sprintf("%-*s", width, v)
	switch v {
	case checks.Pass:
		return p.green(word)
	case checks.Warn, checks.Unknown:
		return p.yellow(word)
	case checks.Fail:
		return p.red(word)
	}
	return p.dim(word)
}

// oneLine is a text without line breaks and control characters.
func oneLine(s string) string {
	return strings.ReplaceAll(printable(strings.TrimSpace(s)), "\n", "; ")
}

// indented is a text whose lines after the first begin with an indent.
func indented(s, indent string) string {
	return strings.ReplaceAll(printable(strings.TrimRight(s, "\n")), "\n", "\n"+indent)
}

// printable leaves out what would steer a terminal: a host's files and daemons may say
// anything.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && (unicode.IsControl(r) || r == utf8.RuneError) {
			return '?'
		}
		return r
	}, s)
}

func (a *app) printList(r listResult) {
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, c := range r.Checks {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", c.ID, c.Stage, c.Severity, c.Why)
	}
	_ = w.Flush() // a result that could not be written is told at the end
}

// The JUnit form is that which Jenkins, GitLab and GitHub's actions read: a suite for
// each family, a case for each finding.
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Name     string       `xml:"name,attr"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Errors   int          `xml:"errors,attr"`
	Skipped  int          `xml:"skipped,attr"`
	Time     string       `xml:"time,attr"` // seconds
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Failure *junitMessage `xml:"failure"`
	Error   *junitMessage `xml:"error"`
	Skipped *junitMessage `xml:"skipped"`
	Output  string        `xml:"system-out,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

func printJUnit(w io.Writer, r checkResult) error {
	all := junitSuites{Name: "nodeprep check " + r.Root, Time: fmt.Sprintf("%.3f", r.Duration.Seconds()), Suites: []junitSuite{}}
	for _, f := range r.Findings {
		if n := len(all.Suites); n == 0 || all.Suites[n-1].Name != family(f.ID) {
			all.Suites = append(all.Suites, junitSuite{Name: family(f.ID)})
		}
		suite := &all.Suites[len(all.Suites)-1]
		suite.Cases = append(suite.Cases, junitOf(f))
		suite.Tests, all.Tests = suite.Tests+1, all.Tests+1
		switch f.Verdict {
		case checks.Fail:
			suite.Failures, all.Failures = suite.Failures+1, all.Failures+1
		case checks.Unknown:
			suite.Errors, all.Errors = suite.Errors+1, all.Errors+1
		case checks.Skip:
			suite.Skipped, all.Skipped = suite.Skipped+1, all.Skipped+1
		}
	}
	b, err := xml.MarshalIndent(all, "", "  ")
	if err != nil {
		return fmt.Errorf("print the report: %w", err)
	}
	_, _ = fmt.Fprintf(w, "%s%s\n", xml.Header, b) // a failure is told at the end
	return nil
}

func junitOf(f checks.Finding) junitCase {
	c := junitCase{Class: family(f.ID), Name: f.ID}
	if f.Object != "" {
		c.Name += " " + f.Object
	}
	why := whyOf(f.ID)
	var text []string
	for _, s := range []string{why, f.Note, f.Remedy} {
		if s != "" {
			text = append(text, s)
		}
	}
	said := &junitMessage{Message: f.String(), Text: strings.Join(text, "\n")}
	switch f.Verdict {
	case checks.Fail:
		c.Failure = said
	case checks.Unknown:
		c.Error = said
	case checks.Skip:
		c.Skipped = &junitMessage{Message: f.Observed}
	case checks.Warn:
		c.Output = strings.Join(append([]string{"warn: " + f.String()}, text...), "\n")
	}
	return c
}
