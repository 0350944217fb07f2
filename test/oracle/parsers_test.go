package oracle

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// predictions is what nodeprep says that releases make of hosts.toml files; a test of
// render/registry writes it.
const predictions = "../../render/registry/testdata/predictions.json"

// prediction is for one registry and one certs.d.
type prediction struct {
	Registry string
	Tree     map[string]string // hosts.toml by folder
	Want     []struct {
		Releases     string // with spaces between
		Broken       bool   // the file counts for nothing
		AnyOrder     bool
		Certificates []string // read beside it, by path below certs.d
		Hosts        []string
	}
}

// parsed is what the program of hosts prints.
type parsed struct {
	Hosts []struct {
		host
		Fallback, CAs bool
	}
	Logged, Failed string
}

// lines has each host as a prediction has it.
func (p parsed) lines() []string {
	var out []string
	for _, h := range p.Hosts {
		s := h.Scheme + "://" + h.Host + h.Path
		if h.Fallback {
			s += " or http"
		}
		var caps []string
		for _, c := range []struct {
			bit  int
			name string
		}{{pull, "pull"}, {push, "push"}, {resolve, "resolve"}} {
			if h.Capabilities&c.bit != 0 {
				caps = append(caps, c.name)
			}
		}
		s += " " + strings.Join(caps, ",")
		for _, name := range slices.Sorted(maps.Keys(h.Header)) {
			s += fmt.Sprintf(" %q=%q", name, h.Header[name])
		}
		if !h.Fallback {
			if h.SkipVerify {
				s += " skip_verify"
			}
			if h.CAs {
				s += " ca"
			}
			if h.Clients > 0 {
				s += fmt.Sprint(" clients:", h.Clients)
			}
		}
		out = append(out, s)
	}
	return out
}

// parserModules are the go.mod files of hosts by the release that they choose.
func parserModules(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("hosts/*.mod")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`github.com/containerd/containerd(?:/v2)? v(\S+)`).FindSubmatch(text)
		if m == nil {
			t.Fatalf("%s chooses no containerd", f)
		}
		out[string(m[1])] = filepath.Base(f)
	}
	return out
}

// newest are the newest release of 1.x and that of 2.x.
func newest(releases []string) []string {
	of := map[string]string{}
	for _, r := range releases {
		major, _, _ := strings.Cut(r, ".")
		if have, ok := of[major]; !ok || slices.Compare(inNumbers(r), inNumbers(have)) > 0 {
			of[major] = r
		}
	}
	return slices.Sorted(maps.Values(of))
}

// inNumbers are a release's, of which none here is a pre-release.
func inNumbers(release string) []int {
	var all []int
	for part := range strings.SplitSeq(release, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			return nil
		}
		all = append(all, n)
	}
	return all
}

// TestParsers asks the parsers of releases what they make of every certs.d that nodeprep
// says something of: hosts, their order, schemes, paths, capabilities, headers,
// certificates, and which files count for nothing.
func TestParsers(t *testing.T) {
	raw, err := os.ReadFile(predictions)
	if err != nil {
		t.Fatal(err)
	}
	var all []prediction
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	pair, err := os.ReadFile("../../render/testdata/pair.pem")
	if err != nil {
		t.Fatal(err)
	}
	// Each certs.d is there twice: with its certificates, and without.
	whole, bare := make([]string, len(all)), make([]string, len(all))
	root := t.TempDir()
	predicted := map[string]bool{}
	for i, p := range all {
		for name, dirs := range map[string][]string{"whole": whole, "bare": bare} {
			dir := filepath.Join(root, fmt.Sprint(name, i))
			dirs[i] = p.Registry + "=" + dir
			for folder, text := range p.Tree {
				write(t, filepath.Join(dir, folder, "hosts.toml"), []byte(text))
			}
			for _, w := range p.Want {
				for _, c := range w.Certificates {
					if name == "whole" {
						write(t, filepath.Join(dir, c), pair)
					}
				}
			}
		}
		for _, w := range p.Want {
			for release := range strings.FieldsSeq(w.Releases) {
				predicted[release] = true
			}
		}
	}
	modules := parserModules(t)
	if diff := cmp.Diff(slices.Sorted(maps.Keys(predicted)), slices.Sorted(maps.Keys(modules))); diff != "" {
		t.Errorf("releases (-predicted +here):\n%s", diff)
	}
	releases := slices.Sorted(maps.Keys(modules))
	if testing.Short() {
		releases = newest(releases)
		t.Logf("-short: of %d releases the newest of 1.x and of 2.x alone: %s", len(modules), strings.Join(releases, ", "))
	}
	for _, release := range releases {
		t.Run(release, func(t *testing.T) {
			bin := buildParser(t.Context(), t, release, modules[release])
			got, gone := askParser(t.Context(), t, bin, whole), askParser(t.Context(), t, bin, bare)
			for i, p := range all {
				for _, w := range p.Want {
					if !slices.Contains(strings.Fields(w.Releases), release) {
						continue
					}
					of := fmt.Sprintf("%s, by\n%s\n", p.Registry, text(p))
					want, have := w.Hosts, got[i].lines()
					if w.AnyOrder {
						slices.Sort(want)
						slices.Sort(have)
					}
					if diff := cmp.Diff(want, have); diff != "" {
						t.Errorf("hosts of %s(-nodeprep +containerd):\n%s%s%s", of, diff, got[i].Logged, got[i].Failed)
					}
					if w.Broken != (got[i].Logged != "") {
						t.Errorf("%snodeprep says %t of the file counting for nothing, containerd: %q", of, w.Broken, got[i].Logged)
					}
					if want := len(w.Certificates) > 0; want != (gone[i].Failed != "") {
						t.Errorf("%swithout %q containerd fails: %q, want %t", of, w.Certificates, gone[i].Failed, want)
					}
				}
			}
		})
	}
}

// text is what a certs.d has.
func text(p prediction) string {
	var b strings.Builder
	for _, folder := range slices.Sorted(maps.Keys(p.Tree)) {
		fmt.Fprintf(&b, "== %s/hosts.toml\n%s\n", folder, p.Tree[folder])
	}
	return b.String()
}

func write(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

// buildParser builds the program of hosts with one release's packages.
func buildParser(ctx context.Context, t *testing.T, release, modfile string) string {
	t.Helper()
	bin := filepath.Join(t.TempDir(), "hosts")
	args := []string{"build", "-modfile=" + modfile, "-o", bin}
	if !strings.HasPrefix(release, "1.") {
		args = append(args, "-tags=v2")
	}
	cmd := exec.CommandContext(ctx, "go", append(args, ".")...)
	cmd.Dir = "hosts"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the parser of %s: %v\n%s", release, err, out)
	}
	return bin
}

func askParser(ctx context.Context, t *testing.T, bin string, folders []string) []parsed {
	t.Helper()
	cmd := exec.CommandContext(ctx, bin, folders...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	stdout, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v: %s", err, stderr.String())
	}
	var out []parsed
	if err := json.Unmarshal(stdout, &out); err != nil {
		t.Fatal(err)
	}
	if len(out) != len(folders) {
		t.Fatalf("%d answers to %d folders", len(out), len(folders))
	}
	return out
}
