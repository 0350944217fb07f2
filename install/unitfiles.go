package install

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// later is what a plan leaves at a path: nothing, a link, or a file's content.
type later struct {
	gone    bool
	target  string
	content []byte
}

// outlook reads a root as it will be: what is there, with what a plan changes over it
// by real path. A nil map is the root as it is.
type outlook struct {
	root *host.Root
	over map[string]later
}

// outlook is the root as the plan will leave it.
func (p *Plan) outlook(root *host.Root) (outlook, error) {
	o := outlook{root: root, over: map[string]later{}}
	for i := range p.Items {
		it := &p.Items[i]
		kept := it.kept
		if it.Action == Remove && it.own != nil && kept == nil {
			kept = it.own.Before
		}
		switch {
		case it.real == "" || it.Action == Refuse:
		case it.file != nil && it.file.Source == "":
			o.over[it.real] = later{content: it.file.Content}
		case it.symlink != nil:
			o.over[it.real] = later{target: it.symlink.Target}
		case kept != nil && kept.Kind == KindLink:
			o.over[it.real] = later{target: kept.Target}
		case kept != nil && kept.Kind == KindFile && strings.HasPrefix(it.Path, "/etc/"):
			at, err := keptAt(root, kept)
			if err != nil {
				return o, err
			}
			content, err := readRegular(at)
			if err != nil {
				return o, fmt.Errorf("read what %s becomes again: %w", it.Path, err)
			}
			o.over[it.real] = later{content: content}
		case it.Action == Remove:
			o.over[it.real] = later{gone: true}
		}
	}
	return o, nil
}

// read returns the file at p, links followed. Where a link leads to no file the content
// is nil and found true: it stands in its place all the same.
func (o outlook) read(p string) (content []byte, found bool, err error) {
	for range 40 { // as many links as the kernel follows (path_resolution(7))
		real, err := o.root.Locate(p)
		if err != nil {
			return nil, false, err
		}
		target := ""
		if l, ok := o.over[real]; ok {
			if l.gone {
				return nil, found, nil
			}
			if l.target == "" {
				return l.content, true, nil
			}
			target = l.target
		} else {
			fi, err := lstat(real)
			switch {
			case err != nil:
				return nil, false, err
			case fi == nil:
				return nil, found, nil
			case fi.Mode().IsRegular():
				content, err := readRegular(real)
				return content, true, err
			case fi.Mode().Type() != fs.ModeSymlink:
				// A device is what masks; of anything else systemd makes nothing either.
				return nil, found || !fi.IsDir(), nil
			}
			if target, err = os.Readlink(real); err != nil {
				return nil, false, err
			}
		}
		found = true
		if !path.IsAbs(target) {
			target = path.Join(path.Dir(p), target)
		}
		p = target
	}
	return nil, true, nil
}

// names lists a directory.
func (o outlook) names(dir string) ([]string, error) {
	real, err := o.root.Resolve(dir)
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(real)
	if err != nil && !isAbsent(err) {
		return nil, err
	}
	set := map[string]bool{}
	for _, e := range entries {
		set[e.Name()] = true
	}
	for at, l := range o.over {
		if filepath.Dir(at) == real {
			set[filepath.Base(at)] = !l.gone
		}
	}
	maps.DeleteFunc(set, func(_ string, there bool) bool { return !there })
	return slices.Sorted(maps.Keys(set)), nil
}

// fragments are a unit's file and its drop-ins in the order in which systemd loads
// them: all drop-ins sorted by their names, wherever they are; of several with one name
// the one of highest precedence, those for the unit before those for all of its type.
func (o outlook) fragments(unit string) ([]systemd.Fragment, error) {
	var out []systemd.Fragment
	aliases := []string{unit}
	for _, dir := range systemd.LoadPath() {
		file := path.Join(dir, unit)
		content, found, err := o.read(file)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", file, err)
		}
		if found {
			out = append(out, systemd.Fragment{Path: file, Content: content})
			if real, err := o.root.Resolve(file); err == nil && path.Ext(real) == path.Ext(unit) && filepath.Base(real) != unit {
				aliases = append(aliases, filepath.Base(real))
			}
			break
		}
	}
	dropIns := map[string]string{}
	for _, name := range append(aliases, strings.TrimPrefix(path.Ext(unit), ".")) {
		for _, dir := range systemd.LoadPath() {
			dir = path.Join(dir, name+".d")
			names, err := o.names(dir)
			if err != nil {
				return nil, fmt.Errorf("list drop-ins of %s: %w", unit, err)
			}
			for _, n := range names {
				if _, taken := dropIns[n]; strings.HasSuffix(n, ".conf") && !taken {
					dropIns[n] = path.Join(dir, n)
				}
			}
		}
	}
	for _, n := range slices.Sorted(maps.Keys(dropIns)) {
		content, found, err := o.read(dropIns[n])
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", dropIns[n], err)
		}
		if found && len(content) > 0 { // else it masks others of its name
			out = append(out, systemd.Fragment{Path: dropIns[n], Content: content})
		}
	}
	return out, nil
}

// Shadowing lists what others have put over the units of a receipt: drop-ins that set
// to another value what ours set, and files that systemd reads in place of ours.
func Shadowing(root *host.Root, receipt *Receipt) ([]Drifted, error) {
	if receipt == nil {
		return nil, nil
	}
	units := map[string]bool{}
	for i := range receipt.Owned {
		own := &receipt.Owned[i]
		if own.Kind != KindFile {
			continue
		}
		switch dir := path.Dir(own.Path); {
		case dir == unitDir:
			units[path.Base(own.Path)] = true
		case path.Dir(dir) == unitDir && strings.HasSuffix(dir, ".d"):
			units[strings.TrimSuffix(path.Base(dir), ".d")] = true
		}
	}
	var out []Drifted
	var faults []error
	for _, unit := range slices.Sorted(maps.Keys(units)) {
		all, err := outlook{root: root}.fragments(unit)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		out = append(out, replaced(root, receipt, unit, all)...)
		out = append(out, shadowed(receipt, all)...)
	}
	return out, errors.Join(faults...)
}

// replaced finds files of ours that are there and not read.
func replaced(root *host.Root, receipt *Receipt, unit string, all []systemd.Fragment) []Drifted {
	var out []Drifted
	for i := range receipt.Owned {
		own := &receipt.Owned[i]
		dir := path.Dir(own.Path)
		if own.Kind != KindFile || own.Path != path.Join(unitDir, unit) && dir != path.Join(unitDir, unit+".d") {
			continue
		}
		fi, err := root.Lstat(own.Path)
		if err != nil || !fi.Mode().IsRegular() || fi.Size() == 0 ||
			slices.ContainsFunc(all, func(f systemd.Fragment) bool { return f.Path == own.Path }) {
			continue // Drift tells of what is missing
		}
		what := "is not read by systemd: a file of its name has precedence"
		for _, f := range all {
			if path.Base(f.Path) == path.Base(own.Path) {
				what = "is not read by systemd: " + f.Path + " has precedence"
			}
		}
		out = append(out, Drifted{Path: own.Path, What: what, Origin: own.Origin})
	}
	return out
}

// shadowed finds settings of ours that do not stand.
func shadowed(receipt *Receipt, all []systemd.Fragment) []Drifted {
	var out []Drifted
	ours := slices.DeleteFunc(slices.Clone(all), func(f systemd.Fragment) bool {
		own := receipt.Find(f.Path)
		return own == nil || own.Kind != KindFile
	})
	type key struct{ section, name string }
	seen := map[key]bool{}
	for _, f := range ours {
		for _, a := range f.Assignments() {
			k := key{a.Section, a.Key}
			if seen[k] || forPeople(a) {
				continue
			}
			seen[k] = true
			if a.Key == "Environment" {
				out = append(out, shadowedVariables(receipt, ours, all)...)
				continue
			}
			want, mine := inForce(ours, a.Section, a.Key)
			now, from := inForce(all, a.Section, a.Key)
			if now == want || from == mine {
				continue
			}
			if now == "" {
				now = "nothing"
			}
			out = append(out, Drifted{
				Path:   from,
				What:   fmt.Sprintf("sets %s=%s over %s of %s", a.Key, now, want, mine),
				Origin: receipt.Find(mine).Origin,
			})
		}
	}
	return out
}

// forPeople holds for what changes nothing, and for dependencies, which drop-ins can
// only add to (systemd.unit(5)).
func forPeople(a systemd.Assignment) bool {
	return a.Section == "Install" || a.Section == "Unit" && !strings.HasPrefix(a.Key, "Condition") && !strings.HasPrefix(a.Key, "Assert")
}

// inForce is what a setting comes to, for comparing and for people, and the path of
// the fragment that decides it.
func inForce(fragments []systemd.Fragment, section, name string) (value, from string) {
	switch {
	case section == "Service" && name == "KillMode":
		mode, f := systemd.KillMode(fragments)
		return mode, f.Path
	case section == "Service" && name == "Delegate":
		on, f := systemd.Delegate(fragments)
		if on {
			return "yes", f.Path
		}
		return "no", f.Path
	case strings.HasPrefix(name, "Exec"), strings.HasPrefix(name, "Condition"), strings.HasPrefix(name, "Assert"), name == "EnvironmentFile":
		// A list: what others add takes nothing away; an empty assignment does.
		var list []string
		for _, f := range fragments {
			for _, a := range f.Assignments() {
				switch {
				case a.Section != section || a.Key != name:
				case a.Value == "":
					list, from = nil, f.Path
				case from == "" || from == f.Path || name == "ExecStart":
					list, from = append(list, a.Value), f.Path
				}
			}
		}
		return strings.Join(list, "; "), from
	}
	value, f, _ := systemd.Effective(fragments, section, name)
	return value, f.Path
}

// shadowedVariables finds variables of ours that others set again or take away. Their
// values may be secrets and are not told.
func shadowedVariables(receipt *Receipt, ours, all []systemd.Fragment) []Drifted {
	var out []Drifted
	want, now := variables(ours), variables(all)
	resetBy := ""
	for _, f := range all {
		for _, a := range f.Assignments() {
			if a.Section == "Service" && a.Key == "Environment" && a.Value == "" {
				resetBy = f.Path
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(want)) {
		mine := want[name]
		is, set := now[name]
		d := Drifted{Origin: receipt.Find(mine.from).Origin}
		switch {
		case !set && resetBy != "":
			d.Path, d.What = resetBy, fmt.Sprintf("takes the variable %s of %s away with an empty Environment=", name, mine.from)
		case set && is != mine && is.value != mine.value:
			d.Path, d.What = is.from, fmt.Sprintf("sets the variable %s over that of %s", name, mine.from)
		default:
			continue
		}
		out = append(out, d)
	}
	return out
}

type variable struct{ value, from string }

// variables are those of Environment= (systemd.exec(5)), by name.
func variables(fragments []systemd.Fragment) map[string]variable {
	out := map[string]variable{}
	for _, f := range fragments {
		for _, a := range f.Assignments() {
			if a.Section != "Service" || a.Key != "Environment" {
				continue
			}
			if a.Value == "" {
				clear(out)
			}
			for _, w := range systemd.Words(a.Value) {
				if name, value, ok := strings.Cut(w, "="); ok {
					out[name] = variable{value, f.Path}
				}
			}
		}
	}
	return out
}
