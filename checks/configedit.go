package checks

import (
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// Several checks may find fault with one file, and somebody may paste all their remedies
// one after the other. So no edit counts lines, which the one before it may have moved:
// it names a table by its header's text and a key by its name, and adds nothing twice.

// fixConfig is the remedy for what a config file says: the edits and the restart that
// makes them count. A file that nodeprep makes is not edited: field names what to change
// in the profile; where it was edited already, another apply makes it anew.
func (n *Node) fixConfig(file, field string, edits ...string) string {
	if drift, err := n.drifted(); err == nil && drift[file] != "" {
		return n.reapply(true)
	}
	if n.makes(file) {
		return fmt.Sprintf("# %s is made from the profile: change %s there\n%s", file, field, n.reapply(false))
	}
	if restart := n.restartDaemon(); restart != "" {
		edits = append(edits, n.afterDump(restart))
	}
	return strings.Join(edits, "\n")
}

// makes says whether nodeprep makes a config file: config.toml comes with each apply of
// a profile that has containerd.
func (n *Node) makes(file string) bool {
	return file == defaultConfig && n.Receipt != nil && n.Receipt.Versions[releases.Containerd] != ""
}

// restartDaemon restarts the daemon and keeps its containers; "" in an image, where
// nothing runs.
func (n *Node) restartDaemon() string {
	if !n.Live {
		return ""
	}
	s, err := n.service()
	switch {
	case errors.Is(err, errNoSystemd):
		return "# restart containerd"
	case err != nil:
		return "systemctl show -P KillMode containerd.service | grep -qx process && systemctl restart containerd.service"
	case s.LoadState == "not-found":
		return "# restart the containerd that reads it: it is not containerd.service"
	}
	return n.restart(s)
}

// afterDump lets the daemon's program read the config before the daemon is restarted.
func (n *Node) afterDump(restart string) string {
	program, _ := n.daemonProgram()
	i := strings.LastIndex(restart, "\n") + 1 // comments come first
	if program == "" || strings.HasPrefix(restart[i:], "#") {
		return restart
	}
	return restart[:i] + quote(program) + " --config " + quote(n.ConfigPath()) + " config dump > /dev/null && " + restart[i:]
}

// configLines are a file's lines, none where it cannot be read.
func (n *Node) configLines(file string) []string {
	b, _ := n.Host.Root.ReadFile(file) // it was read a moment ago
	return strings.Split(string(b), "\n")
}

func (n *Node) configLine(at configtoml.Place) string {
	if lines := n.configLines(at.File); at.Line > 0 && at.Line <= len(lines) {
		return lines[at.Line-1]
	}
	return ""
}

// oneLine is a value that ends on its line, and what may follow it.
const oneLine = `(?:"[^"]*"|'[^']*'|\[[^\[\]]*\]|[^\s\[{"'#]+)\s*(?:#.*)?$`

// isSetting says whether a place is a line that gives a key a value and nothing else.
func (n *Node) isSetting(at configtoml.Place, key string) bool {
	ok, err := regexp.MatchString(`^\s*(?:[^\s=]+\.)?["']?`+regexp.QuoteMeta(key)+`["']?\s*=\s*`+oneLine, n.configLine(at))
	return ok && err == nil
}

// sedLine is the whole of a line as sed looks for it.
func sedLine(text string) string { return "/^" + sedPattern(text) + "$/" }

// sedHeader is how a table's header, or the like, begins.
const sedHeader = `/^[[:space:]]*\[/`

// table is what tells sed the lines of the table in which a place is; "" where the text
// of its header does not tell it from others.
func (n *Node) table(at configtoml.Place) string {
	lines := n.configLines(at.File)
	for l := at.Line - 2; l >= 0; l-- {
		if strings.HasPrefix(strings.TrimSpace(lines[l]), "[") {
			if !alone(lines, lines[l]) {
				return ""
			}
			return sedLine(lines[l]) + "," + sedHeader
		}
	}
	return "1," + sedHeader
}

func alone(lines []string, line string) bool {
	return len(slices.DeleteFunc(slices.Clone(lines), func(l string) bool { return l != line })) == 1
}

// setting is what tells sed the line of a setting within its table.
func (n *Node) setting(at configtoml.Place) string {
	name, _, _ := strings.Cut(n.configLine(at), "=")
	return `^[[:space:]]*` + sedPattern(strings.TrimSpace(name)) + `[[:space:]]*=`
}

// setValue gives the key at a place another value, as TOML has it.
func (n *Node) setValue(at configtoml.Place, key, value string) string {
	table := n.table(at)
	if table == "" || !n.isSetting(at, key) {
		return fmt.Sprintf("# at %s: %s = %s", at, key, value)
	}
	value = strings.NewReplacer(`\`, `\\`, "&", `\&`, "|", `\|`).Replace(value)
	return "sed -i " + quote(fmt.Sprintf(`%ss|\(%s\).*|\1 %s|`, table, n.setting(at), value)) + " " + quote(n.onHost(at.File))
}

// drop takes the keys and tables at places out of a file.
func (n *Node) drop(file string, places ...configtoml.Place) string {
	var by []string
	sed := "sed -i"
	for _, at := range places {
		edits := n.dropOne(at)
		if edits == nil {
			by = append(by, "# take out what stands at "+at.String())
		}
		for _, e := range edits {
			sed += " -e " + quote(e)
		}
	}
	if sed != "sed -i" {
		by = append(by, sed+" "+quote(n.onHost(file)))
	}
	return strings.Join(by, "\n")
}

// dropOne are the edits that take out what starts at a place: a setting on one line, or
// a table with the tables below it. Comments stay. nil is that it cannot be told.
func (n *Node) dropOne(at configtoml.Place) []string {
	lines, line := n.configLines(at.File), n.configLine(at)
	header, isTable := strings.CutPrefix(strings.TrimSpace(line), "[")
	if !isTable {
		ok, err := regexp.MatchString(`^\s*[^=#]+=\s*`+oneLine, line)
		if table := n.table(at); ok && err == nil && table != "" {
			return []string{table + "{/" + n.setting(at) + "/d;}"}
		}
		return nil
	}
	i := strings.LastIndex(header, "]")
	if i < 0 {
		return nil
	}
	header = header[:i]
	var edits []string
	for l := at.Line - 1; l < len(lines); l++ {
		text := strings.TrimSpace(lines[l])
		switch {
		case !strings.HasPrefix(text, "["):
			continue
		case !isHeader(text) || !alone(lines, lines[l]):
			return nil
		case l >= at.Line && !strings.HasPrefix(text, "["+header+"."):
			return edits
		}
		edits = append(edits, fmt.Sprintf(`%s,%s{%[1]sd;/^[[:space:]]*[[#]/!d;}`, sedLine(lines[l]), sedHeader))
	}
	return edits
}

// isHeader says whether a line that begins with a bracket is a table's header, and no
// list in a list.
func isHeader(text string) bool {
	ok, err := regexp.MatchString(`^\[[^\[\],=]+\]\s*(?:#.*)?$`, text)
	return ok && err == nil
}

// tomlText quotes a text.
func tomlText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// tomlHeader is a table's header.
func tomlHeader(table []string) string {
	parts := make([]string, len(table))
	for i, p := range table {
		if parts[i] = p; p == "" || strings.Trim(p, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-") != "" {
			parts[i] = tomlText(p)
		}
	}
	return "[" + strings.Join(parts, ".") + "]"
}

// CRI's sections of config.toml: the one of schema 2, and those since 3.
const (
	criSection        = "io.containerd.grpc.v1.cri"
	criImagesSection  = "io.containerd.cri.v1.images"
	criRuntimeSection = "io.containerd.cri.v1.runtime"
)

// criName is CRI's section of runtimes, or of images, in a file of a version.
func criName(version int, images bool) string {
	switch {
	case version < 2:
		return "cri"
	case version == 2:
		return criSection
	case images:
		return criImagesSection
	}
	return criRuntimeSection
}

// fileOf is a file of the config, nil where it has none of that path.
func fileOf(c *configtoml.Config, file string) *configtoml.File {
	for _, f := range c.Files {
		if f.Path == file {
			return f
		}
	}
	return nil
}

// deadNames says whether containerd reads sections of schema 2 nowhere in a file without
// a version, or with version 1: 2.0 to 2.2 give them the names of 2, and then take the
// file for one of schema 3 without a migration (cmd/containerd/server/config of 2.1).
func deadNames(c *configtoml.Config, version int) bool {
	return version < 2 && rules(c).AtLeast(2, 0, 0) && !rules(c).AtLeast(2, 3, 0)
}

// shortNames are the plugins that a file names as only version 1 does.
func shortNames(f *configtoml.File) []string {
	var out []string
	plugins, _ := f.Tree["plugins"].(map[string]any)
	for name := range plugins {
		out = append(out, name)
	}
	for _, list := range []string{"disabled_plugins", "required_plugins"} {
		entries, _ := f.Tree[list].([]any)
		for _, e := range entries {
			if s, ok := e.(string); ok {
				out = append(out, s)
			}
		}
	}
	return slices.DeleteFunc(out, func(name string) bool { return strings.Contains(name, ".") })
}

// setVersion gives a file a version.
func (n *Node) setVersion(f *configtoml.File, version int) string {
	if at := f.Place("version"); at.File != "" {
		return n.setValue(at, "version", fmt.Sprint(version))
	}
	file := quote(n.onHost(f.Path))
	return fmt.Sprintf("grep -q '^version *=' %s || sed -i '1i version = %d' %[1]s", file, version)
}

// newKey is a key, with its value as TOML has it, for a table below CRI's section of
// runtimes or of images.
type newKey struct {
	images     bool
	table      []string
	key, value string
}

// addKeys are the edits that give a file keys which it does not have. A file that is not
// there is made, one without a version gets that of the release, where its other
// settings allow that.
func (n *Node) addKeys(c *configtoml.Config, file string, keys ...newKey) string {
	f, version := fileOf(c, file), releases.ConfigSchema(rules(c))
	name := quote(n.onHost(file))
	var edits []string
	comment := func() string {
		var out []string
		for _, k := range keys {
			out = append(out, fmt.Sprintf("# in %s, in a file of version %d, below %s: %s = %s", file, version, tomlHeader(k.path(version)), k.key, k.value))
		}
		return strings.Join(out, "\n")
	}
	switch {
	case f == nil:
		edits = append(edits, fmt.Sprintf("mkdir -p %s\ntest -e %s || echo 'version = %d' > %[2]s", quote(n.onHost(path.Dir(file))), name, version))
	case deadNames(c, f.Version):
		if file != c.Path || len(c.Files) > 1 || len(shortNames(f)) > 0 {
			return comment()
		}
		edits = append(edits, n.setVersion(f, version))
	default:
		version = min(version, f.Version)
	}
	for _, k := range keys {
		e := n.addKey(f, file, k.path(version), k.key+" = "+k.value)
		if e == "" {
			return comment()
		}
		edits = append(edits, e)
	}
	return strings.Join(edits, "\n")
}

func (k newKey) path(version int) []string {
	return slices.Concat([]string{"plugins", criName(version, k.images)}, k.table)
}

// addKey adds a setting to a table, and the table at the end of a file that has none; ""
// where the table is written in a way that allows neither.
func (n *Node) addKey(f *configtoml.File, file string, table []string, setting string) string {
	lines, name, header := n.configLines(file), quote(n.onHost(file)), tomlHeader(table)
	if line := n.tableLine(file, table); line > 0 {
		if !alone(lines, lines[line-1]) {
			return ""
		}
		return "sed -i " + quote(sedLine(lines[line-1])+"a "+setting) + " " + name
	}
	for i := range table {
		// Inline tables and dotted keys cannot be added to by a header.
		if f != nil {
			if at := f.Place(table[:i+1]...); at.Line > 0 && !strings.HasPrefix(strings.TrimSpace(n.configLine(at)), "[") {
				return ""
			}
		}
	}
	// Another remedy may have made the table by then.
	return fmt.Sprintf("grep -qxF %s %s || printf '\\n%%s\\n' %[1]s >> %[2]s\nsed -i %[3]s %[2]s",
		quote(header), name, quote(sedLine(header)+"a "+setting))
}

// tableLine is the line of a table's header, 0 where the file has none.
func (n *Node) tableLine(file string, table []string) int {
	plain := strings.NewReplacer(`"`, "", "'", "", " ", "", "\t", "")
	for i, l := range n.configLines(file) {
		l, _, _ = strings.Cut(l, "#")
		if plain.Replace(l) == plain.Replace("["+strings.Join(table, ".")+"]") {
			return i + 1
		}
	}
	return 0
}

// setOption gives a runtime an option that is true or false.
func (n *Node) setOption(c *configtoml.Config, r configtoml.Runtime, at configtoml.Place, option, value string) (file, edit string) {
	if at.File != "" {
		return at.File, n.setValue(at, option, value)
	}
	file = r.Place.File
	if file == "" {
		file = c.Path
	}
	table := []string{"containerd", "runtimes", r.Name}
	keys := []newKey{{table: append(slices.Clip(table), "options"), key: option, value: value}}
	// A table of 1.x replaces the built-in runtime, type and all.
	if r.TypePlace == (configtoml.Place{}) && r.Type != "" && !rules(c).AtLeast(2, 0, 0) {
		keys = append([]newKey{{table: table, key: "runtime_type", value: tomlText(r.Type)}}, keys...)
	}
	return file, n.addKeys(c, file, keys...)
}
