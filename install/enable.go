package install

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// wantedLink is a link and, where it is how a unit is enabled, that unit.
type wantedLink struct {
	desired.Link
	unit string
	// first says that the unit is nodeprep's own.
	first bool
}

// links are the state's own and those that enable its units. A unit is enabled as
// systemctl(1) does it, by a link in TARGET.wants, on running hosts too: so that it is
// part of the transaction and of what is put back.
func (d *differ) links() ([]wantedLink, error) {
	var out []wantedLink
	for _, l := range d.state.Links {
		out = append(out, wantedLink{Link: l})
	}
	for _, u := range d.state.Units {
		if !u.Enabled {
			continue
		}
		file, content, err := d.unitFile(u.Name)
		if err != nil {
			return nil, err
		}
		if content == nil {
			return nil, fmt.Errorf("enable %s: there is no such unit (from %s)", u.Name, u.Origin)
		}
		options, err := unit.DeserializeOptions(strings.NewReader(string(content)))
		if err != nil {
			return nil, fmt.Errorf("enable %s: read %s: %w", u.Name, file, err)
		}
		for _, o := range options {
			kind, ok := map[string]string{"WantedBy": ".wants", "RequiredBy": ".requires"}[o.Name]
			if o.Section != "Install" || !ok {
				continue
			}
			for target := range strings.FieldsSeq(o.Value) {
				if strings.Contains(target, "/") {
					return nil, fmt.Errorf("enable %s: %s has %s=%s, not a unit's name", u.Name, file, o.Name, target)
				}
				first := slices.ContainsFunc(d.state.Files, func(f desired.File) bool { return f.First && f.Path == file })
				out = append(out, wantedLink{unit: u.Name, first: first, Link: desired.Link{
					Path: "/etc/systemd/system/" + target + kind + "/" + u.Name, Target: file, Origin: u.Origin,
				}})
			}
		}
	}
	return out, nil
}

// unitFile finds a unit in the state or, where that does not have it, in the
// directories of systemd.unit(5) for the host's own units, highest precedence first.
func (d *differ) unitFile(name string) (file string, content []byte, err error) {
	dirs := []string{"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
	for _, dir := range dirs {
		file := path.Join(dir, name)
		if i := slices.IndexFunc(d.state.Files, func(f desired.File) bool { return f.Path == file }); i >= 0 {
			return file, d.state.Files[i].Content, nil
		}
		content, err := d.root.ReadFile(file)
		if err == nil {
			return file, content, nil
		}
		if !isAbsent(err) {
			return "", nil, fmt.Errorf("read %s: %w", file, err)
		}
	}
	return "", nil, nil
}
