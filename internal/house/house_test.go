package house

import (
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nodeprep/nodeprep"

// wall is what a package may import of ours, and why not more.
type wall struct {
	may []string // "x" allows x alone, "x/*" all below x
	why string
}

// walls is the layering of the design. Move one in a commit that says why.
func walls() map[string]wall {
	return map[string]wall{
		"cmd/nodeprep":    {[]string{"*"}, "the verbs wire everything together"},
		"profiles":        {[]string{"internal/diag", "internal/releases", "internal/spelling"}, "a profile is resolved from plain facts, on any machine, without a host"},
		"render":          {[]string{"profiles", "render/registry", "internal/desired", "internal/diag", "internal/releases"}, "rendering is pure: Spec to files"},
		"render/registry": {[]string{"profiles", "internal/desired", "internal/diag", "internal/releases"}, "rendering is pure: Spec to files"},
		"systemd":         {[]string{"profiles", "internal/desired", "internal/diag", "internal/releases"}, "unit text is pure, and the Manager knows units, not plans"},
		"install":         {[]string{"install/*", "systemd", "internal/*"}, "the transaction applies a desired state and must not know how it was made"},
		"install/release": {[]string{"internal/*"}, "artifacts are fetched and verified without knowing profiles"},
		"checks":          {[]string{"profiles", "render/registry", "systemd", "internal/*"}, "checks read; they never install"},

		"internal/diag":        {nil, "the lowest layer"},
		"internal/releases":    {[]string{"internal/diag"}, "facts, no decisions"},
		"internal/desired":     {[]string{"internal/diag"}, "plain data"},
		"internal/elf":         {nil, "headers of programs, no hosts"},
		"internal/elf/elftest": {nil, "programs for tests"},
		"internal/host":        {nil, "the one seam to the outside knows nothing of what it is used for"},
		"internal/configtoml":  {[]string{"internal/host", "internal/releases", "internal/spelling"}, "reads containerd's config; decides nothing"},
		"internal/daemon":      {nil, "containerd's API, no plans"},
		"internal/spelling":    {nil, "words, whosever they are"},
		"internal/house":       {nil, "rules"},
		"examples":             {[]string{"*"}, "examples are tests"},
	}
}

// repository calls f for each Go file of the main module.
func repository(t *testing.T, f func(pkg, file string)) {
	t.Helper()
	root := "../.."
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return fs.SkipDir
			}
			// A nested module is a house of its own.
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil && p != root {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(p, ".go") {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			f(path.Dir(filepath.ToSlash(rel)), p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func allowed(w wall, dep string) bool {
	return slices.ContainsFunc(w.may, func(m string) bool {
		base, below := strings.CutSuffix(m, "/*")
		return m == "*" || m == dep || below && strings.HasPrefix(dep, base+"/")
	})
}

func TestImportsFollowTheDesign(t *testing.T) {
	rules := walls()
	seen := 0
	repository(t, func(pkg, file string) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(pkg, "test/") {
			return
		}
		w, known := rules[pkg]
		if !known {
			t.Errorf("%s: package %s is not in the table of walls: add it, with the reason", file, pkg)
			return
		}
		src, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		for _, imp := range src.Imports {
			dep, ours := strings.CutPrefix(strings.Trim(imp.Path.Value, `"`), module+"/")
			if !ours {
				continue
			}
			seen++
			if dep != pkg && !allowed(w, dep) {
				t.Errorf("%s imports %s: %s may not (%s)", file, dep, pkg, w.why)
			}
		}
	})
	if seen < 20 {
		t.Errorf("only %d imports of our own were looked at: the walk is broken", seen)
	}
}

// pure packages decide; they ask nothing of the machine they run on.
func TestPurePackagesDoNoInputOrOutput(t *testing.T) {
	pure := []string{"render", "render/registry", "internal/diag", "internal/desired", "internal/releases", "internal/spelling"}
	banned := []string{"os", "os/exec", "net", "net/http", "io/ioutil", "path/filepath"}
	repository(t, func(pkg, file string) {
		if !slices.Contains(pure, pkg) || strings.HasSuffix(file, "_test.go") {
			return
		}
		src, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		for _, imp := range src.Imports {
			if dep := strings.Trim(imp.Path.Value, `"`); slices.Contains(banned, dep) {
				t.Errorf("%s imports %s: package %s is pure", file, dep, pkg)
			}
		}
	})
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	docs := map[string][]string{}
	repository(t, func(pkg, file string) {
		docs[pkg] = append(docs[pkg], "")
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		src, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Error(err)
			return
		}
		if src.Doc != nil {
			docs[pkg] = append(docs[pkg], file)
		}
	})
	for pkg, files := range docs {
		files = slices.DeleteFunc(files, func(f string) bool { return f == "" })
		if len(files) != 1 {
			t.Errorf("package %s has its comment in %d files %v, want exactly one", pkg, len(files), files)
		}
	}
}

// A replaced module builds here and nowhere else.
func TestNoModuleIsReplaced(t *testing.T) {
	b, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(strings.TrimSpace(line), "replace") {
			t.Errorf("go.mod: %s", line)
		}
	}
}
