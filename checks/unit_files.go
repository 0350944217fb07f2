package checks

import (
	"errors"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeprep/nodeprep/systemd"
)

// Fragments are a unit's file and its drop-ins in the order in which systemd loads them:
// of a running systemd those that it names, as they are on the disk now, else those that
// its load path has. Where one cannot be read the error names it, and the others are there.
func (n *Node) Fragments(unit string) ([]systemd.Fragment, error) {
	paths, err := n.fragmentPaths(unit)
	if err != nil {
		return nil, err
	}
	var out []systemd.Fragment
	var faults []error
	for _, p := range paths {
		content, err := n.Host.Root.ReadFile(p)
		switch {
		case err == nil:
			out = append(out, systemd.Fragment{Path: p, Content: content})
		case !absent(err):
			faults = append(faults, fmt.Errorf("read unit file %s: %w", p, reason(err)))
		}
	}
	return out, errors.Join(faults...)
}

// reason is an error without the path on this machine that it names first.
func reason(err error) error {
	if e := errors.Unwrap(err); e != nil {
		return e
	}
	return err
}

func (n *Node) fragmentPaths(unit string) ([]string, error) {
	if n.Live && n.Facts.SystemdInit && n.Units != nil {
		if p, err := n.Unit(unit); err == nil && p.FragmentPath != "" {
			return append([]string{p.FragmentPath}, p.DropInPaths...), nil
		}
	}
	return n.searchFragments(unit)
}

// searchFragments looks through the load path: all drop-ins sorted by their names, wherever
// they are; of several with one name the one of highest precedence, those for the unit
// before those for all of its type (systemd.unit(5)).
func (n *Node) searchFragments(unit string) ([]string, error) {
	var out []string
	names := []string{unit}
	if files := n.unitFiles(unit); len(files) > 0 && !n.masks(files[0]) {
		out = files[:1]
		// A link to a unit of another name makes this one an alias of that.
		if real, err := n.Host.Root.Resolve(files[0]); err == nil && filepath.Base(real) != unit && filepath.Ext(real) == path.Ext(unit) {
			names = append(names, filepath.Base(real))
		}
	}
	dropIns, err := n.dropIns(append(names, strings.TrimPrefix(path.Ext(unit), ".")))
	return append(out, dropIns...), err
}

func (n *Node) dropIns(names []string) ([]string, error) {
	found := map[string]string{}
	for _, name := range names {
		for _, dir := range systemd.LoadPath() {
			dir = path.Join(dir, name+".d")
			entries, err := n.Host.Root.ReadDir(dir)
			if err != nil && !absent(err) {
				return nil, fmt.Errorf("list drop-ins in %s: %w", dir, reason(err))
			}
			for _, e := range entries {
				if _, taken := found[e.Name()]; strings.HasSuffix(e.Name(), ".conf") && !taken {
					found[e.Name()] = path.Join(dir, e.Name())
				}
			}
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(found)) {
		if !n.masks(found[name]) {
			out = append(out, found[name])
		}
	}
	return out, nil
}

// unitFiles are the files of a unit's name in systemd's load path, the one that counts
// first. A folder that is reached by two names, as /lib and /usr/lib, is looked at once.
func (n *Node) unitFiles(unit string) []string {
	var out []string
	seen := map[string]bool{}
	for _, dir := range systemd.LoadPath() {
		p := path.Join(dir, unit)
		real, err := n.Host.Root.Locate(p)
		if err != nil || seen[real] {
			continue
		}
		if fi, err := n.Host.Root.Lstat(p); err == nil && !fi.IsDir() {
			seen[real] = true
			out = append(out, p)
		}
	}
	return out
}

// masks holds for an empty file and a link to /dev/null: systemd reads nothing of that
// name then (systemd.unit(5)).
func (n *Node) masks(p string) bool {
	real, err := n.Host.Root.Resolve(p)
	if err != nil {
		return false
	}
	if real == filepath.Join(n.Host.Root.Dir(), "dev/null") {
		return true
	}
	fi, err := n.Host.Root.Stat(p)
	return err == nil && fi.Mode().IsRegular() && fi.Size() == 0
}

// wantedBy are the units that links pull a unit in from: all of them, and those that an
// administrator's systemctl enable made, in /etc or, until the next boot, in /run.
func (n *Node) wantedBy(unit string) (all []string, state string) {
	state = "disabled"
	for _, dir := range systemd.LoadPath() {
		entries, err := n.Host.Root.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			by, isWants := strings.CutSuffix(e.Name(), ".wants")
			by, isRequires := strings.CutSuffix(by, ".requires")
			by, upholds := strings.CutSuffix(by, ".upholds")
			if !isWants && !isRequires && !upholds {
				continue
			}
			if _, err := n.Host.Root.Lstat(path.Join(dir, e.Name(), unit)); err != nil || slices.Contains(all, by) {
				continue
			}
			all = append(all, by)
			switch {
			case dir == "/etc/systemd/system":
				state = "enabled"
			case strings.HasPrefix(dir, "/run/") && state == "disabled":
				state = "enabled-runtime"
			case state == "disabled":
				state = "static"
			}
		}
	}
	return all, state
}

// pulledIn are the units whose drop-ins name a unit among those that are started with them.
func (n *Node) pulledIn(unit string) []string {
	var out []string
	for _, dir := range systemd.LoadPath() {
		entries, err := n.Host.Root.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			by, isDropIns := strings.CutSuffix(e.Name(), ".d")
			if !isDropIns || path.Ext(by) == "" || by == unit || slices.Contains(out, by) {
				continue
			}
			files, err := n.Host.Root.ReadDir(path.Join(dir, e.Name()))
			if err != nil {
				continue
			}
			for _, f := range files {
				if strings.HasSuffix(f.Name(), ".conf") && n.names(path.Join(dir, e.Name(), f.Name()), unit) && !slices.Contains(out, by) {
					out = append(out, by)
				}
			}
		}
	}
	return out
}

// names holds for a unit's file that has another started.
func (n *Node) names(p, unit string) bool {
	content, err := n.Host.Root.ReadFile(p)
	if err != nil {
		return false
	}
	return slices.ContainsFunc(systemd.Fragment{Path: p, Content: content}.Assignments(), func(a systemd.Assignment) bool {
		return a.Section == "Unit" && slices.Contains([]string{"Wants", "Requires", "BindsTo", "Upholds"}, a.Key) && slices.Contains(strings.Fields(a.Value), unit)
	})
}

// fromFiles is what systemd would make of a unit's files, of the properties that do not
// depend on the running system.
func (n *Node) fromFiles(unit string, fragments []systemd.Fragment) (systemd.Properties, error) {
	p := systemd.Properties{LoadState: "not-found"}
	files := n.unitFiles(unit)
	if len(files) == 0 {
		return p, nil
	}
	p.LoadState, p.FragmentPath = "loaded", files[0]
	if n.masks(files[0]) {
		p.LoadState = "masked"
		return p, nil
	}
	if !n.exists(files[0]) {
		p.LoadState, p.LoadError = "error", "the link leads nowhere"
		return p, nil
	}
	for _, f := range fragments {
		if f.Path != p.FragmentPath {
			p.DropInPaths = append(p.DropInPaths, f.Path)
		}
	}
	p.WantedBy, p.UnitFileState = n.wantedBy(unit)
	p.UpheldBy = n.pulledIn(unit)
	p.KillMode, _ = systemd.KillMode(fragments)
	p.Delegate, _ = systemd.Delegate(fragments)
	// Defaults: systemd.service(5).
	p.Type, p.Restart = "simple", "no"
	for _, f := range fragments {
		for _, a := range f.Assignments() {
			if a.Section != "Service" {
				continue
			}
			switch a.Key {
			case "OOMScoreAdjust":
				if v, err := strconv.Atoi(a.Value); err == nil && v >= -1000 && v <= 1000 {
					p.OOMScoreAdjust = v
				} else if a.Value == "" {
					p.OOMScoreAdjust = 0
				}
			case "Type":
				if slices.Contains([]string{"simple", "exec", "forking", "oneshot", "dbus", "notify", "notify-reload", "idle"}, a.Value) {
					p.Type = a.Value
				}
			case "Restart":
				if slices.Contains([]string{"no", "on-success", "on-failure", "on-abnormal", "on-watchdog", "on-abort", "always"}, a.Value) {
					p.Restart = a.Value
				}
			case "Environment":
				if a.Value == "" {
					p.Environment = nil
				}
				p.Environment = append(p.Environment, systemd.Words(a.Value)...)
			case "EnvironmentFile":
				if a.Value == "" {
					p.EnvironmentFile = nil
				} else {
					p.EnvironmentFile = append(p.EnvironmentFile, strings.TrimPrefix(a.Value, "-"))
				}
			}
		}
	}
	p.ExecStart = systemd.Commands(fragments, "ExecStart")
	if len(p.ExecStart) == 0 || len(p.ExecStart) > 1 && p.Type != "oneshot" {
		p.LoadState, p.LoadError = "bad-setting", fmt.Sprintf("the unit has %d ExecStart= commands", len(p.ExecStart))
	}
	for i, argv := range p.ExecStart {
		p.ExecStart[i][0] = n.program(argv[0])
	}
	return p, nil
}

// program is where systemd finds a program that a unit names without a path
// (systemd.service(5), Command Lines).
func (n *Node) program(name string) string {
	if path.IsAbs(name) {
		return name
	}
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"} {
		p := path.Join(dir, name)
		if fi, err := n.Host.Root.Stat(p); err == nil && fi.Mode().IsRegular() {
			return p
		}
	}
	return name
}

var errNoUnit = errors.New("no containerd.service")

// ExecStart is what containerd.service runs, program and arguments, and the FILE:LINE that
// says so. It is of what systemd has in force where that can be asked. Variables are put
// in as far as they are known; others stay as they are written (Node.unexpanded).
func (n *Node) ExecStart() (argv []string, place string, err error) {
	s, err := n.service()
	if errors.Is(err, errNoSystemd) {
		// A container on a host's disk, or one of another init: the files are all there is.
		s = &service{}
		if s.fragments, err = n.Fragments(systemd.UnitName); err == nil {
			s.Properties, err = n.fromFiles(systemd.UnitName, s.fragments)
		}
	}
	if err != nil {
		return nil, systemd.UnitName, err
	}
	if len(s.Properties.ExecStart) == 0 {
		return nil, systemd.UnitName, errNoUnit
	}
	env, all := n.variables(s)
	return expand(s.Properties.ExecStart[0], env, all), s.where("Service", "ExecStart"), nil
}

// nothing says that a host neither has nor shall have a containerd of its own.
func (n *Node) nothing() bool {
	return n.unitSpec() == nil && n.Receipt == nil && n.DaemonBinary() == "" && len(n.unitFiles(systemd.UnitName)) == 0
}
