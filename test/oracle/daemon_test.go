package oracle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

var daemonLines = flag.String("daemons", "", "release lines whose daemon is built and asked, 2.4,2.2,2.0 by default and 2.4 with -short (each takes a minute or two to build for the first time)")

// asksDaemon is whether a line's daemon is asked in this run.
func asksDaemon(t *testing.T, line string) bool {
	t.Helper()
	lines := *daemonLines
	switch {
	case lines == "" && testing.Short():
		lines = "2.4"
	case lines == "":
		lines = "2.4,2.2,2.0"
	}
	if strings.Contains(","+lines+",", ","+line+",") {
		return true
	}
	t.Logf("not asked (flags -daemons and -short): containerd %s", line)
	return false
}

// daemon is a real containerd of one release line.
type daemon struct {
	line string
	// modfile names the go.mod file that has the release, "" for this module's own.
	modfile string
	// goldens are the lines whose files this daemon reads as its own.
	goldens string
	schema  string
	bin     string
}

func daemons() []daemon {
	return []daemon{
		{line: "2.4", goldens: "2.3 2.4", schema: "4"},
		{line: "2.2", modfile: "2.2.mod", goldens: "2.1 2.2", schema: "3"},
		{line: "2.0", modfile: "2.0.mod", goldens: "2.0", schema: "3"},
	}
}

// build makes the daemon as an ordinary Go dependency; go keeps the program in its
// build cache and says where.
func (d *daemon) build(ctx context.Context, t *testing.T) {
	t.Helper()
	cmd := exec.CommandContext(ctx, "go", "tool", "-n", "containerd")
	if d.modfile != "" {
		cmd = exec.CommandContext(ctx, "go", "tool", "-modfile="+d.modfile, "-n", "containerd")
		cmd.Dir = "releases"
	}
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("build containerd %s: %v\n%s", d.line, err, stderr.Bytes())
	}
	d.bin = strings.TrimSpace(string(out))
}

// check lets the daemon read a config.toml and compares what it would run with. own
// says that the file is of this daemon's schema: then it must not complain either,
// and the profile's settings must have arrived.
func (d daemon) check(ctx context.Context, t *testing.T, config string, m meant, own bool) []string {
	t.Helper()
	cmd := exec.CommandContext(ctx, d.bin, "--config", config, "config", "dump")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return []string{"containerd config dump: " + err.Error() + ": " + stderr.String()}
	}
	var problems []string
	if own && stderr.Len() > 0 {
		problems = append(problems, "the daemon complains: "+stderr.String())
	}
	var tree map[string]any
	if err := toml.Unmarshal(stdout.Bytes(), &tree); err != nil {
		return append(problems, "decode the dump: "+err.Error())
	}
	want := append(wants(m, d.line), expectation{[]string{"required_plugins"}, []any{cri}})
	if own {
		want = append(want, settings(m.Containerd.Settings)...)
	}
	return append(problems, missing(tree, want)...)
}

// TestDaemons asks real daemons: each reads the goldens of its own lines without a
// word and has every value at its own key; the newest also reads those of all older
// lines, as after an upgrade of the binary alone.
func TestDaemons(t *testing.T) {
	all := readGoldens(t)
	for _, d := range daemons() {
		if !asksDaemon(t, d.line) {
			continue
		}
		t.Run(d.line, func(t *testing.T) {
			d.build(t.Context(), t)
			seen := map[[32]byte]bool{}
			checked := 0
			for _, g := range all {
				own := strings.Contains(d.goldens, g.line())
				if !own && d.line != "2.4" {
					continue
				}
				key := fingerprint(t, g)
				if seen[key] {
					continue // the other architecture's file, byte for byte
				}
				seen[key] = true
				checked++
				t.Run(g.name, func(t *testing.T) {
					t.Parallel()
					for _, p := range d.check(t.Context(), t, g.config(), g.meant, own) {
						t.Error(p)
					}
				})
			}
			if checked == 0 {
				t.Error("no golden for this daemon")
			}
		})
	}
}

func fingerprint(t *testing.T, g golden) [32]byte {
	t.Helper()
	config, err := os.ReadFile(g.config())
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(append(config, g.meant.Version...))
}
