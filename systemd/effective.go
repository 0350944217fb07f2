package systemd

import "strings"

// Fragment is a unit file or one of its drop-ins.
type Fragment struct {
	Path    string // as on the node
	Content []byte
}

// Assignment is one line of a fragment.
type Assignment struct{ Section, Key, Value string }

// Assignments reads a fragment as systemd does (systemd.syntax(7)): what is no
// assignment is skipped, not a fault, since systemd only warns of it.
func (f Fragment) Assignments() []Assignment {
	var out []Assignment
	section, line, continued := "", "", false
	flush := func() {
		text := strings.TrimSpace(line)
		line, continued = "", false
		if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
			section = text[1 : len(text)-1]
			return
		}
		if key, value, ok := strings.Cut(text, "="); ok {
			out = append(out, Assignment{section, strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	for raw := range strings.Lines(strings.TrimPrefix(string(f.Content), "\ufeff")) {
		raw = strings.TrimRight(raw, "\r\n")
		// A comment may stand between a line and its continuation.
		if t := strings.TrimSpace(raw); strings.HasPrefix(t, "#") || strings.HasPrefix(t, ";") || t == "" && !continued {
			continue
		}
		// An even number of backslashes is as many escaped ones.
		if (len(raw)-len(strings.TrimRight(raw, `\`)))%2 == 1 {
			line += strings.TrimSuffix(raw, `\`) + " "
			continued = true
			continue
		}
		line += raw
		flush()
	}
	if continued {
		flush()
	}
	return out
}

// Effective is the value that is in force of a setting which the last assignment
// decides, given the unit file and its drop-ins in the order in which systemd loads
// them, and the fragment that has it. An empty assignment takes back what was set
// before: set is false then, and from tells who did it, as where nobody sets it.
func Effective(fragments []Fragment, section, key string) (value string, from Fragment, set bool) {
	for _, f := range fragments {
		for _, a := range f.Assignments() {
			if a.Section == section && a.Key == key {
				value, from, set = a.Value, f, a.Value != ""
			}
		}
	}
	return value, from, set
}

// KillMode is the KillMode that is in force and the fragment that decides it, which has
// no Path where none does. An empty value brings systemd's default back, control-group;
// one that systemd does not know, or that has quotes or escapes, is ignored
// (systemd.kill(5), and as seen with systemd 252).
func KillMode(fragments []Fragment) (mode string, from Fragment) {
	mode = "control-group"
	for _, f := range fragments {
		for _, a := range f.Assignments() {
			if a.Section != "Service" || a.Key != "KillMode" {
				continue
			}
			switch a.Value {
			case "control-group", "mixed", "process", "none":
				mode, from = a.Value, f
			case "":
				mode, from = "control-group", f
			}
		}
	}
	return mode, from
}

// KillsContainers reports whether stopping a unit with that KillMode kills more than
// its main process: shims, and the containers they keep (systemd.kill(5)).
func KillsContainers(killMode string) bool { return killMode != "process" && killMode != "none" }

// Delegate is whether delegation will be on and the fragment that decides it, which has
// no Path where none does: systemd's default is off. A list of controllers, an empty one
// too, turns it on (systemd.resource-control(5)).
func Delegate(fragments []Fragment) (on bool, from Fragment) {
	for _, f := range fragments {
		for _, a := range f.Assignments() {
			if a.Section != "Service" || a.Key != "Delegate" {
				continue
			}
			from = f
			switch strings.ToLower(a.Value) {
			case "0", "no", "n", "false", "f", "off":
				on = false
			default:
				on = true
			}
		}
	}
	return on, from
}
