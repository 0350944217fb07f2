package systemd

import "strings"

// Fragment is a unit file or one of its drop-ins.
type Fragment struct {
	Path    string // as on the node
	Content []byte
}

// Assignment is one line of a fragment, or several that backslashes join.
type Assignment struct {
	Section, Key, Value string
	Line, Lines         int // the first of them, from 1, and how many
}

// Assignments reads a fragment as systemd does (systemd.syntax(7)): what is no
// assignment is skipped, not a fault, since systemd only warns of it.
func (f Fragment) Assignments() []Assignment {
	var out []Assignment
	section, line, continued := "", "", false
	number, first := 0, 0
	flush := func() {
		text := strings.TrimSpace(line)
		line, continued = "", false
		if strings.HasPrefix(text, "[") && strings.HasSuffix(text, "]") {
			section = text[1 : len(text)-1]
			return
		}
		if key, value, ok := strings.Cut(text, "="); ok {
			out = append(out, Assignment{section, strings.TrimSpace(key), strings.TrimSpace(value), first, number - first + 1})
		}
	}
	for raw := range strings.Lines(strings.TrimPrefix(string(f.Content), "\ufeff")) {
		number++
		raw = strings.TrimRight(raw, "\r\n")
		// A comment may stand between a line and its continuation.
		if t := strings.TrimSpace(raw); strings.HasPrefix(t, "#") || strings.HasPrefix(t, ";") || t == "" && !continued {
			continue
		}
		if !continued {
			first = number
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

// Deciding is the last assignment of a setting, which may be an empty one, and the
// fragment that has it; ok is false where none has.
func Deciding(fragments []Fragment, section, key string) (a Assignment, from Fragment, ok bool) {
	for _, f := range fragments {
		for _, x := range f.Assignments() {
			if x.Section == section && x.Key == key {
				a, from, ok = x, f, true
			}
		}
	}
	return a, from, ok
}

// LoadPath lists where a system's systemd looks for units and their drop-ins, highest
// precedence first (systemd.unit(5), "Unit File Load Path").
func LoadPath() []string {
	return []string{
		"/etc/systemd/system.control", "/run/systemd/system.control", "/run/systemd/transient", "/run/systemd/generator.early",
		"/etc/systemd/system", "/etc/systemd/system.attached",
		"/run/systemd/system", "/run/systemd/system.attached", "/run/systemd/generator",
		"/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system", "/run/systemd/generator.late",
	}
}

// Words splits a value at spaces outside of quotes, which are taken away (systemd.syntax(7),
// "Quoting"); escapes of other characters than quotes, spaces and backslashes stay as they
// are written.
func Words(s string) []string {
	var out []string
	var word strings.Builder
	quote, open, escaped := rune(0), false, false
	for _, c := range s {
		switch {
		case escaped:
			if !strings.ContainsRune(`"'\ `, c) {
				word.WriteByte('\\')
			}
			word.WriteRune(c)
			escaped = false
		case c == '\\':
			escaped, open = true, true
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, open = c, true
		case quote == 0 && (c == ' ' || c == '\t'):
			if open {
				out = append(out, word.String())
			}
			word.Reset()
			open = false
		default:
			word.WriteRune(c)
			open = true
		}
	}
	if open {
		out = append(out, word.String())
	}
	return out
}

// Commands are those that a list of ExecStart= or its like comes to: an empty one takes
// back what was there before. The prefixes of systemd.service(5) are cut off the program,
// @ with the name that it gives; a doubled percent sign is one, and other specifiers and
// variables are left as they are written.
func Commands(fragments []Fragment, key string) [][]string {
	var out [][]string
	for _, f := range fragments {
		for _, a := range f.Assignments() {
			if a.Section != "Service" || a.Key != key {
				continue
			}
			words := Words(a.Value)
			if len(words) == 0 {
				out = nil
				continue
			}
			program := strings.TrimLeft(words[0], "@-:+!|")
			named := strings.Contains(words[0][:len(words[0])-len(program)], "@")
			argv := []string{program}
			for i, w := range words[1:] {
				if i > 0 || !named {
					argv = append(argv, w)
				}
			}
			for i := range argv {
				argv[i] = strings.ReplaceAll(argv[i], "%%", "%")
			}
			out = append(out, argv)
		}
	}
	return out
}

// EnvironmentFile reads the NAME=VALUE of a file that EnvironmentFile= names
// (systemd.exec(5)): comments begin with # or ;, values may be quoted, and a backslash
// joins lines and takes the next character's meaning away.
func EnvironmentFile(content []byte) []string {
	var out []string
	text := strings.ReplaceAll(string(content), "\r\n", "\n")
	for text != "" {
		line, _, _ := strings.Cut(text, "\n")
		trimmed := strings.TrimLeft(line, " \t")
		name, _, ok := strings.Cut(trimmed, "=")
		if trimmed == "" || trimmed[0] == '#' || trimmed[0] == ';' || !ok {
			_, text, _ = strings.Cut(text, "\n")
			continue
		}
		var value string
		value, text = environmentValue(text[strings.IndexByte(text, '=')+1:])
		out = append(out, strings.TrimSpace(name)+"="+value)
	}
	return out
}

// environmentValue reads a value up to the end of its line and returns what follows.
func environmentValue(text string) (value, rest string) {
	text = strings.TrimLeft(text, " \t")
	var b strings.Builder
	quote, kept := byte(0), 0 // kept is what trailing space is not cut off from
	for i := 0; i < len(text); i++ {
		c := text[i]
		switch {
		case c == '\\' && quote != '\'' && i+1 < len(text):
			i++
			switch {
			case text[i] == '\n': // the value goes on
				continue
			case quote == '"' && !strings.ContainsRune("\"\\`$", rune(text[i])):
				b.WriteByte('\\')
			}
			b.WriteByte(text[i])
			kept = b.Len()
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == '"' || c == '\''):
			quote, kept = c, b.Len()
		case quote == 0 && c == '\n':
			return b.String()[:kept], text[i+1:]
		default:
			b.WriteByte(c)
			if quote != 0 || c != ' ' && c != '\t' {
				kept = b.Len()
			}
		}
	}
	return b.String()[:kept], ""
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
