package configtoml

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"syscall"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// newest is the release whose rules are taken where the release is not known.
func newest() releases.Version { return releases.Version{Major: 2, Minor: 4, Patch: 2} }

// loader reads one config.
type loader struct {
	*Config
	root    *host.Root
	known   *known
	retired releases.RetiredSettings
	version int        // of what is merged so far
	lost    []Replaced // sections replaced so far
}

// Load reads the config at p below root as a daemon of that release does, with all it
// imports. The error is only for what could not be read, such as for want of permission;
// what is wrong with a file is among the faults, and a root file that is not there is
// no error.
func Load(root *host.Root, p string, release releases.Version) (*Config, error) {
	l := &loader{
		Config: &Config{Path: p, Release: release, rules: release, top: newTable(Place{}), moved: map[string]*node{}},
		root:   root,
	}
	if release == (releases.Version{}) {
		l.rules = newest()
	}
	l.known, l.retired = knownTo(l.rules), releases.NewRetiredSettings()
	l.version = releases.ConfigSchema(l.rules)
	if l.old() {
		l.version = 0
	}
	if err := l.load(); err != nil {
		return nil, err
	}
	l.finish()
	return l.Config, nil
}

// load follows imports breadth first, each file once.
func (l *loader) load() error {
	type wanted struct {
		path string
		by   Place
	}
	pending, loaded := []wanted{{path: l.Path}}, map[string]bool{}
	rootVersion := 0
	for len(pending) > 0 {
		w := pending[0]
		pending = pending[1:]
		if loaded[w.path] {
			continue
		}
		loaded[w.path] = true
		content, err := l.root.ReadFile(w.path)
		switch {
		case errors.Is(err, fs.ErrNotExist) && w.path == l.Path:
			return nil
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.EISDIR), errors.Is(err, syscall.ENOTDIR):
			problem := "imports " + w.path + ", which is not there"
			if errors.Is(err, syscall.EISDIR) {
				problem = "imports " + w.path + ", which is a folder"
			}
			if w.by == (Place{}) {
				w.by, problem = Place{File: w.path}, "is a folder, not a file"
			}
			l.fault(w.by, "take the import away, or make the file: containerd does not start without it", "%s", problem)
			continue
		case err != nil:
			return fmt.Errorf("read %s: %w", w.path, err)
		}
		if w.path == l.Path {
			l.Exists = true
		}
		f, faults := decode(w.path, content)
		l.Files = append(l.Files, f)
		l.Faults = append(l.Faults, faults...)
		if f.Tree == nil {
			continue
		}
		top := f.build(nil, f.Tree)
		if f.Version < 0 {
			l.fault(f.Place("version"), "write a version that there is", "version %d is below 0: containerd does not start", f.Version)
			f.Version = 0
		}
		l.checkTop(top)
		if rootVersion == 0 {
			rootVersion = f.Version
		}
		if l.refusesHigher() && f.Version > rootVersion {
			l.fault(f.Place("version"), "give all files the same version",
				"this drop-in has version %d, higher than the %d of %s: containerd %s does not start", f.Version, rootVersion, l.Path, l.rules)
		}
		l.add(f, top)

		imports, err := l.resolve(f, top)
		if err != nil {
			return err
		}
		for _, i := range imports {
			l.imports = append(l.imports, i)
			for _, p := range i.Files {
				pending = append(pending, wanted{p, i.Place})
			}
		}
	}
	return nil
}

// refusesHigher: 2.3.0 to 2.3.4 stop at a drop-in of a version above the root file's
// (cmd/containerd/server/config of v2.3.4; taken out again after it).
func (l *loader) refusesHigher() bool {
	return l.rules.Line() == "2.3" && l.rules.Patch <= 4
}

func (c *Config) fault(at Place, hint, problem string, args ...any) {
	c.Faults = append(c.Faults, Fault{at, fmt.Sprintf(problem, args...), hint})
}

func (c *Config) ignore(n *node, hint string, args ...any) {
	if len(n.path) == 0 {
		return
	}
	c.Ignored = append(c.Ignored, Key{Path: n.path, Place: n.at, Hint: fmt.Sprintf(hint, args...)})
}

// add merges a file into the config, migrated first where the release does it by file.
func (l *loader) add(f *File, top *node) {
	switch {
	case l.old():
		l.version = cmp.Or(f.Version, l.version)
	case l.rules.AtLeast(2, 3, 0):
		l.migrate(top, f.Version, 4)
		l.version = max(f.Version, 4)
	case f.Version < 2:
		// 2.0 to 2.2 rename the plugins of such a file, and then take it for one of the
		// version of what came before it: without the plugins' own migrations.
		l.renameV1(top)
	default:
		l.version = f.Version
	}
	l.merge(top)
}

// Import is an entry of imports.
type Import struct {
	Pattern string // as it is written
	Place   Place
	Files   []string // what it stands for, in the order in which they are read
	// Versions are the files of Files whose version is another than the root file's.
	Versions []ImportVersion
	// Replaced are the plugin sections of other files that these replace whole (1.x).
	Replaced []Replaced
}

// ImportVersion is an imported file of another version than the root file.
type ImportVersion struct {
	Place   Place // of its version key, or the file where it has none
	Version int
	Root    int
}

// Replaced is a plugin section that a later file sets anew: nothing of the first is left.
type Replaced struct {
	Section   string
	Lost, New Place
}

// Imports are the entries of imports of all files, in the order in which they are
// followed.
func (c *Config) Imports() []Import { return c.imports }

// resolve says which files the imports of a file stand for.
func (l *loader) resolve(f *File, top *node) ([]Import, error) {
	var out []Import
	list := top.get("imports")
	if list == nil || list.kind != listKind {
		return nil, nil
	}
	for _, e := range list.list {
		pattern, ok := e.text()
		if !ok {
			continue
		}
		i := Import{Pattern: pattern, Place: e.at}
		p := path.Clean(pattern)
		if !path.IsAbs(p) {
			if strings.Contains(pattern, "*") && l.globsFromWorkingDirectory() {
				p = path.Join("/", p)
			} else {
				p = path.Join(path.Dir(f.Path), p)
			}
		}
		if strings.Contains(p, "*") {
			if _, err := path.Match(p, ""); err != nil {
				l.fault(e.at, "correct the pattern: containerd does not start", "imports %q: %v", pattern, err)
				continue
			}
			files, err := l.glob(p)
			if err != nil {
				return nil, fmt.Errorf("imports %q of %s: %w", pattern, f.Path, err)
			}
			i.Files = files
		} else {
			i.Files = []string{p}
		}
		out = append(out, i)
	}
	return out, nil
}

// globsFromWorkingDirectory: relative patterns were looked for from the daemon's working
// directory, which is / under systemd, before 1.6.32 and 1.7.16.
func (l *loader) globsFromWorkingDirectory() bool {
	return l.old() && !(l.rules.AtLeast(1, 7, 16) || l.rules.Line() == "1.6" && l.rules.Patch >= 32)
}

// glob is filepath.Glob below the root. The error is of a folder that is there and
// cannot be looked into.
func (l *loader) glob(pattern string) ([]string, error) {
	found := []string{"/"}
	for part := range strings.SplitSeq(strings.Trim(pattern, "/"), "/") {
		var next []string
		for _, dir := range found {
			if !strings.ContainsAny(part, `*?[\`) {
				p := path.Join(dir, part)
				if _, err := l.root.Stat(p); err == nil {
					next = append(next, p)
				} else if errors.Is(err, fs.ErrPermission) {
					return nil, err
				}
				continue
			}
			entries, err := l.root.ReadDir(dir)
			if errors.Is(err, fs.ErrPermission) {
				return nil, err
			}
			for _, e := range entries {
				if ok, _ := path.Match(part, e.Name()); ok {
					next = append(next, path.Join(dir, e.Name()))
				}
			}
		}
		found = next
	}
	return found, nil
}
