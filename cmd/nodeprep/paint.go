package main

import (
	"io"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/diag"
)

// Rules of the output: lower case, no full stops, one finding a line, hints in
// brackets at its end. Colour only says again what the words say. Results go to
// standard output, everything else to standard error.

// painter colours words where the reader is a terminal that wants it.
type painter struct{ on bool }

// paint decides for a stream: --color, then NO_COLOR (no-color.org), then whether it
// is a terminal.
func (a *app) paint(w io.Writer) painter {
	switch a.color {
	case "always":
		return painter{true}
	case "never":
		return painter{}
	}
	if v, ok := a.env("NO_COLOR"); ok && v != "" {
		return painter{}
	}
	if v, _ := a.env("TERM"); v == "dumb" {
		return painter{}
	}
	return painter{isTerminal(w)}
}

func isTerminal(w any) bool {
	if r, ok := w.(*results); ok {
		w = r.Writer
	}
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), ioctlGetTermios)
	return err == nil
}

func (p painter) wrap(code, s string) string {
	if !p.on {
		return s
	}
	return "\x1b[" + code + "m" + s + "\x1b[0m"
}

func (p painter) red(s string) string    { return p.wrap("31", s) }
func (p painter) green(s string) string  { return p.wrap("32", s) }
func (p painter) yellow(s string) string { return p.wrap("33", s) }
func (p painter) bold(s string) string   { return p.wrap("1", s) }
func (p painter) dim(s string) string    { return p.wrap("2", s) }

// diagnostic is one finding as a line.
func (p painter) diagnostic(d diag.Diagnostic) string {
	if d.Severity == diag.Warning {
		return p.yellow(d.String())
	}
	return d.String()
}
