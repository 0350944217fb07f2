package main

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// Every nodeprep command in the documentation's shell blocks is run here, in a folder
// that has what the text assumes: node.yaml and ./artifacts, and what bundlePrologue
// makes. What works on / there works on a root of its own here; the machine tests run it
// on a real one.
func TestDocumentedCommands(t *testing.T) {
	docs, err := filepath.Glob("../../docs/*.md")
	if err != nil {
		t.Fatal(err)
	}
	total := 0
	dir := t.TempDir()
	var files []string
	for _, doc := range append(docs, "../../README.md", "../../CONTRIBUTING.md", "../../examples/README.md", "../../examples/golden/README.md", "../../examples/ansible/README.md", "../../examples/cloud-init/README.md") {
		commands := shellCommands(t, doc)
		total += len(commands)
		if len(commands) == 0 {
			continue
		}
		var script strings.Builder
		script.WriteString("mkdir root mnt mnt/image used\n")
		// used is a root that was upgraded twice.
		for _, variation := range []string{"older", "whole", "older", "whole"} {
			fmt.Fprintf(&script, "artifacts artifacts amd64,arm64 %s\ncode 0 nodeprep apply -f node.yaml --root used --arch amd64 --artifacts artifacts --offline\n", variation)
		}
		script.WriteString("cp node.yaml other.yaml\n")
		bundles := slices.ContainsFunc(commands, func(c string) bool { return strings.Contains(c, "bundle") || strings.Contains(c, "nodeprep lock") })
		if bundles {
			script.WriteString(bundlePrologue)
		} else if slices.ContainsFunc(commands, func(c string) bool { return strings.Contains(c, "--probe") }) {
			script.WriteString(probePrologue)
		}
		for _, c := range commands {
			script.WriteString(c)
		}
		if bundles {
			ca, err := os.ReadFile("../../examples/certs/example-ca.pem")
			if err != nil {
				t.Fatal(err)
			}
			script.WriteString(bundleFiles)
			script.Write(ca)
		}
		// Several are a README.
		name := filepath.Join(dir, strings.NewReplacer("../", "", "/", "-", ".md", ".txtar").Replace(doc))
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

// bundlePrologue makes what pages about bundles assume: bundle.tar for two architectures,
// also on a stick in /mnt/usb, a profile that extends it, an image's archive, and
// registry.example.com:5000.
const bundlePrologue = `mkdir locked mnt/usb
cp node.yaml locked/node.yaml
nodeprep lock -f locked/node.yaml --arch amd64,arm64 --artifacts artifacts --offline
nodeprep bundle create bundle.tar -f locked/node.yaml --arch amd64,arm64 --artifacts artifacts --offline
cp bundle.tar mnt/usb/bundle.tar
cp bundle.tar registry.tar
digest registry.tar
archive images/pause.tar registry.k8s.io/pause:3.10.2 amd64 arm64
serve pause=images/pause.tar node=registry.tar
`

// probePrologue makes registry.example.com with the image of pages about explain --probe.
const probePrologue = `archive images/pause.tar registry.k8s.io/pause:3.10.2 amd64 arm64
serve pause=images/pause.tar
`

// bundleFiles are files of the same pages, in txtar's form.
const bundleFiles = `-- local.yaml --
extends: bundle
registries: {docker.io: {mirrors: [{url: "https://mirror.example.com"}]}}
-- ca.pem --
`

// shellCommands are the nodeprep lines of a document's ```sh blocks, and those that copy
// and unpack a bundle, as script lines.
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
		if !inside || line == "" {
			continue
		}
		place := fmt.Sprintf("%s:%d", filepath.Base(doc), n+1)
		switch args := strings.Fields(line); {
		case path.Base(args[0]) == "nodeprep" && len(args) > 1:
			out = append(out, scriptLine(place, line))
		case strings.Contains(line, "bundle") && slices.Contains([]string{"cp", "mkdir", "tar"}, args[0]):
			out = append(out, fmt.Sprintf("# %s\nexec %s\n", place, strings.Join(here(args), " ")))
		}
	}
	return out
}

// here are the words of a command with this script's own places for those of a machine.
func here(args []string) []string {
	args = slices.Clone(args)
	for i, a := range args {
		switch {
		case strings.HasPrefix(a, "/mnt/"):
			args[i] = a[1:]
		case a == "/usr/local/bin/nodeprep":
			args[i] = "$NODEPREP_TEST_SELF"
		default:
			a = strings.NewReplacer("registry.example.com:5000/", "$REGISTRY/", "registry.example.com/", "$REGISTRY/", "@sha256:...", "@$DIGEST").Replace(a)
			if i > 0 && args[i-1] == "--image" && !strings.Contains(a, "=") {
				a += "=$REGISTRY/" + path.Base(a)
			}
			args[i] = a
		}
	}
	return args
}

// scriptLine makes a documented command a line of a script.
func scriptLine(place, line string) string {
	line, redirected, _ := strings.Cut(line, " > ")
	line, stdin, _ := strings.Cut(line, " < ")
	args := here(strings.Fields(line)[1:])
	codes, before := "0", ""
	// local says that release files come from the folder; a bundle has its own.
	local := false
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
		if !slices.Contains(args, "--root") {
			args = append(args, "--root", "root", "--arch", "amd64")
			if verb == "status" {
				args = args[:len(args)-2]
			}
		}
		local = verb != "status"
		// plan and status answer with 3 when something differs, which is no failure.
		codes = "0,3"
	case "explain":
		// What is asked for real is asked of a registry here.
		if slices.Contains(args, "--probe") && !slices.Contains(args, "-f") {
			args = append(args, "--root", "root")
		}
	case "lock":
		local = true
	case "bundle":
		if args[1] == "create" {
			// Each stands for itself: a file of the same name was another's.
			local, before = true, "rm "+args[2]+"\n"
		}
	}
	if local && !slices.Contains(args, "--bundle") {
		args = append(args, "--artifacts", "artifacts")
		if !slices.Contains(args, "--image") {
			args = append(args, "--offline")
		}
	}
	if stdin != "" {
		before += "stdin " + stdin + "\n"
	}
	s := fmt.Sprintf("# %s\n%scode %s nodeprep %s\n", place, before, codes, strings.Join(args, " "))
	if redirected != "" {
		s += fmt.Sprintf("cp stdout made-%s\n", filepath.Base(redirected))
	}
	return s
}

// What the page quotes is what the program says.
func TestQuotedMessagesAreSaid(t *testing.T) {
	page, err := os.ReadFile("../../docs/airgap.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(page), "## When it does not work")
	var said strings.Builder
	for _, dir := range []string{"../../cmd", "../../install", "../../internal", "../../profiles"} {
		err := filepath.WalkDir(dir, func(name string, _ fs.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(name, ".go") || strings.HasSuffix(name, "_test.go") {
				return err
			}
			data, err := os.ReadFile(name)
			said.Write(data)
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	quoted := 0
	for line := range strings.Lines(table) {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "| "), " |")
		for i, part := range strings.Split(first, "`") {
			if i%2 == 0 {
				continue
			}
			quoted++
			if !strings.Contains(said.String(), part) {
				t.Errorf("airgap.md quotes %q, which nothing says", part)
			}
		}
	}
	if quoted < 10 {
		t.Errorf("only %d quotes found: the search is broken", quoted)
	}
}
