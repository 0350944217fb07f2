package checks

import (
	"cmp"
	"fmt"
	"path"
	"regexp"
	"strings"

	"github.com/nodeprep/nodeprep/internal/configtoml"
)

// fixConfig is the remedy for what a config file says: the edits and the restart that
// makes them count or, where the file is nodeprep's and was edited, another apply.
func (n *Node) fixConfig(file string, edits ...string) string {
	if drift, err := n.drifted(); err == nil && drift[file] != "" {
		return n.reapply(true)
	}
	if n.Live {
		edits = append(edits, restart)
	}
	return strings.Join(edits, "\n")
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

// isSetting says whether a place is a line that gives a key a value and nothing else.
func (n *Node) isSetting(at configtoml.Place, key string) bool {
	value := `(?:"[^"]*"|'[^']*'|\[[^\[\]]*\]|[^\s\[{"'#]+)`
	ok, err := regexp.MatchString(`^\s*(?:[^\s=]+\.)?["']?`+regexp.QuoteMeta(key)+`["']?\s*=\s*`+value+`\s*(?:#.*)?$`, n.configLine(at))
	return ok && err == nil
}

// setValue gives the key at a place another value, as TOML has it.
func (n *Node) setValue(at configtoml.Place, key, value string) string {
	if !n.isSetting(at, key) {
		return fmt.Sprintf("# at %s: %s = %s", at, key, value)
	}
	return fmt.Sprintf("sed -i '%ds|=.*|= %s|' %s", at.Line, value, quote(n.onHost(at.File)))
}

// drop takes the keys and tables at places out of a file, all by their line numbers of now.
func (n *Node) drop(file string, places []configtoml.Place) string {
	var ranges, by []string
	for _, at := range places {
		last := n.lastLine(at)
		switch {
		case last == 0:
			by = append(by, "# take out what stands at "+at.String())
		case last == at.Line:
			ranges = append(ranges, fmt.Sprintf("%dd", at.Line))
		default:
			ranges = append(ranges, fmt.Sprintf("%d,%dd", at.Line, last))
		}
	}
	if len(ranges) > 0 {
		by = append(by, fmt.Sprintf("sed -i '%s' %s", strings.Join(ranges, ";"), quote(n.onHost(file))))
	}
	return strings.Join(by, "\n")
}

// lastLine is where what starts at a place ends: a table with the tables below it, or a
// setting on one line; 0 where that cannot be told.
func (n *Node) lastLine(at configtoml.Place) int {
	lines := n.configLines(at.File)
	header, isTable := strings.CutPrefix(strings.TrimSpace(n.configLine(at)), "[")
	if !isTable {
		if ok, err := regexp.MatchString(`^\s*[^=#]+=\s*(?:"[^"]*"|'[^']*'|\[[^\[\]]*\]|[^\s\[{"'#]+)\s*(?:#.*)?$`, n.configLine(at)); ok && err == nil {
			return at.Line
		}
		return 0
	}
	i := strings.LastIndex(header, "]")
	if i < 0 {
		return 0
	}
	header = header[:i]
	last := at.Line
	for l := at.Line; l < len(lines); l++ {
		text := strings.TrimSpace(lines[l])
		if strings.HasPrefix(text, "[") && !strings.HasPrefix(text, "["+header+".") {
			break
		}
		if text != "" && !strings.HasPrefix(text, "#") {
			last = l + 1
		}
	}
	return last
}

// tomlText quotes a text.
func tomlText(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(s) + `"`
}

// runtimeSection is CRI's section of runtimes in a file of a version.
func runtimeSection(version int) string {
	switch {
	case version < 2:
		return "cri"
	case version == 2:
		return criSection
	}
	return criRuntimeSection
}

// CRI's sections of config.toml: the one of schema 2, and those since 3.
const (
	criSection        = "io.containerd.grpc.v1.cri"
	criImagesSection  = "io.containerd.cri.v1.images"
	criRuntimeSection = "io.containerd.cri.v1.runtime"
)

// setOption gives a runtime an option that is true or false.
func (n *Node) setOption(c *configtoml.Config, r configtoml.Runtime, at configtoml.Place, option, value string) (file, edit string) {
	if at.File != "" {
		return at.File, n.setValue(at, option, value)
	}
	file = cmp.Or(r.Place.File, c.Path)
	if !c.Exists {
		return file, fmt.Sprintf("mkdir -p %s\ncontainerd config default > %[2]s\nsed -i 's/%[3]s = .*/%[3]s = %[4]s/' %[2]s",
			quote(n.onHost(path.Dir(file))), quote(n.onHost(file)), option, value)
	}
	version := 0
	for _, f := range c.Files {
		if f.Path == file {
			version = f.Version
		}
	}
	table := []string{"plugins", tomlText(runtimeSection(version)), "containerd", "runtimes", r.Name}
	if line := n.tableLine(file, append(table, "options")); line > 0 {
		return file, fmt.Sprintf("sed -i '%da %s = %s' %s", line, option, value, quote(n.onHost(file)))
	}
	var text strings.Builder
	// A table of 1.x replaces the built-in runtime, type and all.
	if r.TypePlace == (configtoml.Place{}) && n.tableLine(file, table) == 0 {
		fmt.Fprintf(&text, "[%s]\n  runtime_type = %q\n", strings.Join(table, "."), cmp.Or(r.Type, runcShim))
	}
	fmt.Fprintf(&text, "[%s.options]\n  %s = %s\n", strings.Join(table, "."), option, value)
	return file, n.appendTo(file, text.String())
}

// tableLine is the line of a table's header, 0 where the file has none.
func (n *Node) tableLine(file string, table []string) int {
	want := strings.NewReplacer(`"`, "", "'", "", " ", "").Replace(strings.Join(table, "."))
	for i, l := range n.configLines(file) {
		l, _, _ = strings.Cut(l, "#")
		l = strings.NewReplacer(`"`, "", "'", "", " ", "", "\t", "").Replace(strings.TrimSpace(l))
		if l == "["+want+"]" {
			return i + 1
		}
	}
	return 0
}

// appendTo adds lines at the end of a file.
func (n *Node) appendTo(file, text string) string {
	return "cat >> " + quote(n.onHost(file)) + " <<'EOF'\n\n" + text + "EOF"
}
