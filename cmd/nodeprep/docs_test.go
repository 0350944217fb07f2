package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Every nodeprep command in the documentation's shell blocks is run here, in a folder
// that has what the text assumes: node.yaml and ./artifacts. What works on / there
// works on a root of its own here; the machine tests run it on a real one.
func TestDocumentedCommands(t *testing.T) {
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	dir := t.TempDir()
	var files []string
	for _, doc := range append(docs, "../../README.md", "../../CONTRIBUTING.md", "../../examples/README.md") {
		commands := shellCommands(t, doc)
		total += len(commands)
		if len(commands) == 0 {
			continue
		}
		var script strings.Builder
		script.WriteString("mkdir root mnt mnt/image used\n")
		// used is a root that was upgraded twice.
		for _, variation := range []string{"older", "whole", "older", "whole"} {
			fmt.Fprintf(&script, "artifacts artifacts amd64 %s\ncode 0 nodeprep apply -f node.yaml --root used --arch amd64 --artifacts artifacts --offline\n", variation)
		}
		script.WriteString("cp node.yaml other.yaml\n")
		for _, c := range commands {
			script.WriteString(c)
		}
		name := filepath.Join(dir, strings.TrimSuffix(filepath.Base(doc), ".md")+".txtar")
		if err := os.WriteFile(name, []byte(script.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		files = append(files, name)
	}
	if total < 15 {
		t.Errorf("only %d commands found in the documentation: the search is broken", total)
	}
	testscript.Run(t, testscript.Params{Files: files, Setup: smallSelf, Cmds: scriptCommands()})
}

// shellCommands are the nodeprep lines of a document's ```sh blocks, as script lines.
func shellCommands(t *testing.T, doc string) []string {
	data, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	inside := false
	for n, line := range strings.Split(string(data), "\n") {
		if strings.HasPrefix(line, "```") {
			inside = line == "```sh"
			continue
		}
		line, _, _ = strings.Cut(line, " #")
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "sudo "))
		if !inside || !strings.HasPrefix(line, "nodeprep ") {
			continue
		}
		out = append(out, scriptLine(fmt.Sprintf("%s:%d", filepath.Base(doc), n+1), line))
	}
	return out
}

// scriptLine makes a documented command a line of a script.
func scriptLine(place, line string) string {
	line, redirected, _ := strings.Cut(line, " > ")
	args := strings.Fields(line)[1:]
	codes := "0"
	switch verb := args[0]; verb {
	case "rollback", "uninstall", "recover":
		if i := slices.Index(args, "--root"); i >= 0 {
			args[i+1] = "used"
		} else {
			args = append(args, "--root", "used")
		}
	case "check":
		// What it says of this machine is not the documentation's concern.
		if i := slices.Index(args, "--root"); i >= 0 {
			args[i+1] = "used"
		} else {
			args = append(args, "--root", "used")
		}
		if !slices.Contains(args, "--offline") {
			args = append(args, "--offline")
		}
		codes = "0,3"
	case "plan", "apply", "status":
		rooted := false
		for i, a := range args {
			if a == "--root" {
				rooted = true
				args[i+1] = "mnt/image"
			}
		}
		if !rooted {
			args = append(args, "--root", "root", "--arch", "amd64")
			if verb == "status" {
				args = args[:len(args)-2]
			}
		}
		if verb != "status" {
			args = append(args, "--artifacts", "artifacts", "--offline")
		}
		// plan and status answer with 3 when something differs, which is no failure.
		codes = "0,3"
	}
	s := fmt.Sprintf("# %s\ncode %s nodeprep %s\n", place, codes, strings.Join(args, " "))
	if redirected != "" {
		s += fmt.Sprintf("cp stdout made-%s\n", filepath.Base(redirected))
	}
	return s
}
