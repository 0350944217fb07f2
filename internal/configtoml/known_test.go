package configtoml

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodeprep/nodeprep/internal/releases"
)

var update = flag.Bool("update", false, "write known.txt anew from testdata/defaults")

// printed are the outputs of "containerd config default" by release line.
func printed(t *testing.T) (lines []string, trees map[string]map[string]any) {
	t.Helper()
	files, err := filepath.Glob("testdata/defaults/*.toml")
	if err != nil || len(files) < 7 {
		t.Fatalf("defaults: %v %v", files, err)
	}
	trees = map[string]map[string]any{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var tree map[string]any
		if err := toml.Unmarshal(b, &tree); err != nil {
			t.Fatal(err)
		}
		line := releases.MustVersion(strings.TrimSuffix(filepath.Base(f), ".toml")).Line()
		lines = append(lines, line)
		trees[line] = tree
	}
	return lines, trees
}

// flatten lists the keys of a tree with their types.
func flatten(path []string, v any, add func(path, kind string)) {
	name := strings.Join(path, "/")
	if len(path) > 1 && slices.Contains([]string{"runtimes", "timeouts", "stream_processors"}, path[len(path)-2]) {
		path = append(slices.Clone(path[:len(path)-1]), "*")
		name = strings.Join(path, "/")
	}
	switch v := v.(type) {
	case map[string]any:
		if len(path) > 0 {
			add(name, "table")
		}
		for k, e := range v {
			flatten(append(slices.Clone(path), k), e, add)
		}
	case []any:
		if len(v) > 0 {
			if _, ok := v[0].(string); !ok {
				add(name, "any")
				return
			}
		}
		add(name, "texts")
	case string:
		kind := "text"
		for _, duration := range []string{"timeouts/*", "_delay", "restart/interval", "nri/plugin_registration_timeout", "nri/plugin_request_timeout", "per_verifier_timeout"} {
			if strings.HasSuffix(name, duration) {
				kind = "duration"
			}
		}
		add(name, kind)
	case int64:
		add(name, "number")
	case float64:
		add(name, "float")
	case bool:
		add(name, "boolean")
	default:
		add(name, fmt.Sprintf("%T", v))
	}
}

// TestKnownKeysAreTheOnesContainerdPrints compares known.txt with what each release
// line's containerd prints as its defaults.
func TestKnownKeysAreTheOnesContainerdPrints(t *testing.T) {
	lines, trees := printed(t)
	type key struct{ path, kind string }
	in := map[key][]bool{}
	for i, line := range lines {
		flatten(nil, trees[line], func(path, kind string) {
			k := key{path, kind}
			if in[k] == nil {
				in[k] = make([]bool, len(lines)+1)
			}
			in[k][i] = true
		})
	}
	var out []string
	for k, has := range in {
		for i := 0; i < len(lines); i++ {
			if !has[i] {
				continue
			}
			from := i
			for has[i] && i < len(lines) {
				i++
			}
			to := lines[i-1]
			if i == len(lines) {
				to = ""
			}
			out = append(out, fmt.Sprintf("%s-%s %s %s\n", lines[from], to, k.kind, k.path))
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		return strings.Compare(strings.SplitN(a, " ", 3)[2]+a, strings.SplitN(b, " ", 3)[2]+b)
	})
	want := strings.Join(out, "")
	if *update {
		if err := os.WriteFile("known.txt", []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != knownKeys {
		t.Error("known.txt is not what testdata/defaults say: go test ./internal/configtoml -run KnownKeys -update")
	}
}
