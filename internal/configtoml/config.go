package configtoml

import (
	"strconv"

	"github.com/nodeprep/nodeprep/internal/releases"
)

// Place is where something is set: a file as on the node, and its line from 1 (0: the
// whole file). The zero Place is no file at all: a release's default.
type Place struct {
	File string
	Line int
}

// String is "/etc/containerd/config.toml:12", "" for the zero Place.
func (p Place) String() string {
	if p.Line == 0 {
		return p.File
	}
	return p.File + ":" + strconv.Itoa(p.Line)
}

// Fault is something that stops the daemon from reading its config: it does not start.
type Fault struct {
	Place   Place
	Problem string // what is wrong, in lower case
	Hint    string // what to do, "" where that is plain
}

// Key is a key or table of a file about which there is something to say.
type Key struct {
	Path    []string // as written in its file, from the top
	Place   Place
	Hint    string // why, and what to write instead
	Removed string // of a deprecated key: the release that drops it, "" where none is named
	// Empty: nothing is set by it in any release, as with 0, "" and empty lists, of which
	// files are full that containerd once printed as its defaults.
	Empty bool
}

// Config is what a config file and its imports say.
type Config struct {
	Path   string  // the root file, as on the node
	Exists bool    // false: there is no root file, and everything is the daemon's default
	Files  []*File // in the order in which they are merged, the root file first
	// Schema is the version by which the daemon takes the merged config: 1 or 2 with 1.x,
	// 2 or 3 with 2.0 to 2.2 (that of the file that comes last), 4 since 2.3.
	Schema  int
	Release releases.Version // of the daemon that reads it; zero: unknown, the newest rules
	Faults  []Fault
	// Ignored are keys and tables that the release does not read, or that lose against
	// another rule of it: unknown ones, those of another schema, those that a migration
	// drops.
	Ignored []Key
	// Deprecated are keys that are still read.
	Deprecated []Key

	rules releases.Version // Release, or the newest known where that is unknown
	top   *node            // the merged config, in the daemon's own schema

	moved   map[string]*node
	imports []Import
}

// at is the merged config's node at a path, in the daemon's own schema.
func (c *Config) at(path ...string) *node { return c.top.get(path...) }

// old says whether the daemon is of 1.x.
func (c *Config) old() bool { return !c.rules.AtLeast(2, 0, 0) }

// Get is the value that files set at a path and the place that wins. The path may be
// that of the daemon's own schema, or the one written in a file of an older one which the
// daemon migrates. ok is false where no file sets it, or where what sets it is ignored.
func (c *Config) Get(path ...string) (value any, at Place, ok bool) {
	n := c.at(path...)
	if n == nil {
		n = c.moved[join(path)]
	}
	if n == nil || len(path) == 0 {
		return nil, Place{}, false
	}
	return n.plain(), n.at, true
}
