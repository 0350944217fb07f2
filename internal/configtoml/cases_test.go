package configtoml

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// meaning is what a case's config comes to with one release. test/oracle holds it
// against what containerd's own loaders and daemons of those releases say.
type meaning struct {
	Refused bool     `json:"refused,omitempty"` // the daemon does not start
	Faults  []string `json:"faults,omitempty"`
	Ignored []string `json:"ignored,omitempty"`
	Effect  *effect  `json:"effect,omitempty"`
}

type effect struct {
	Schema                                int
	Root, State, Address, TTRPC           string
	TCP, Metrics, Debug                   string
	OOMScore, MaxConfNum                  int
	SandboxImage, Snapshotter, ConfigPath string
	DefaultRuntime, ConfDir               string
	BinDirs                               []string
	Runtimes                              map[string]runtimeEffect
	Disabled, DisabledCRI, Required       []string
	Proxies                               map[string]string
}

type runtimeEffect struct {
	Type, BinaryName, Snapshotter string
	SystemdCgroup                 bool
}

func meaningOf(c *Config, dir string) meaning {
	m := meaning{Refused: len(c.Faults) > 0}
	place := func(p Place) string { return strings.TrimPrefix(p.String(), dir+"/") }
	for _, f := range c.Faults {
		m.Faults = append(m.Faults, place(f.Place)+" "+strings.ReplaceAll(f.Problem, dir+"/", "")+" | "+f.Hint)
	}
	for _, k := range c.Ignored {
		s := place(k.Place) + " " + display(k.Path) + " | " + strings.ReplaceAll(k.Hint, dir+"/", "")
		if k.Empty {
			s += " (empty)"
		}
		m.Ignored = append(m.Ignored, s)
	}
	if m.Refused {
		return m
	}
	e := effect{Schema: c.Schema, Runtimes: map[string]runtimeEffect{}, Proxies: map[string]string{}}
	e.Root, _ = c.Root()
	e.State, _ = c.State()
	e.Address, _ = c.Address()
	e.TTRPC, _ = c.TTRPCAddress()
	e.TCP, _ = c.TCPAddress()
	e.Metrics, _ = c.MetricsAddress()
	e.Debug, _ = c.DebugAddress()
	e.OOMScore, _ = c.OOMScore()
	e.MaxConfNum, _ = c.MaxConfNum()
	e.SandboxImage, _ = c.SandboxImage()
	e.Snapshotter, _ = c.Snapshotter()
	e.ConfigPath, _ = c.ConfigPath()
	e.DefaultRuntime, _ = c.DefaultRuntime()
	e.BinDirs, e.ConfDir, _, _, _ = c.CNI()
	for _, r := range c.Runtimes() {
		e.Runtimes[r.Name] = runtimeEffect{r.Type, r.BinaryName, r.Snapshotter, r.SystemdCgroup}
	}
	names := func(list []Disabled) (out []string) {
		for _, d := range list {
			out = append(out, d.Name)
		}
		return out
	}
	e.Disabled, e.DisabledCRI, e.Required = names(c.DisabledPlugins()), names(c.DisabledCRI()), names(c.RequiredPlugins())
	for _, p := range c.ProxyPlugins() {
		e.Proxies[p.Name] = p.Type + " " + p.Address
	}
	m.Effect = &e
	return m
}

// lines are the releases that the oracle has real loaders or daemons of.
func lines() []string { return []string{"1.6.38", "1.7.34", "2.0.11", "2.2.7", "2.4.2"} }

// TestCases compares what each case's config comes to with its meant.json.
func TestCases(t *testing.T) {
	dirs, err := filepath.Glob("testdata/cases/*")
	if err != nil || len(dirs) < 20 {
		t.Fatalf("cases: %d %v", len(dirs), err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			abs, err := filepath.Abs(dir)
			if err != nil {
				t.Fatal(err)
			}
			root, err := host.OpenRoot("/")
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]meaning{}
			for _, line := range lines() {
				c, err := Load(root, abs+"/config.toml", releases.MustVersion(line))
				if err != nil {
					t.Fatal(err)
				}
				got[line] = meaningOf(c, abs)
			}
			var b bytes.Buffer
			e := json.NewEncoder(&b)
			e.SetEscapeHTML(false)
			e.SetIndent("", " ")
			if err := e.Encode(got); err != nil {
				t.Fatal(err)
			}
			file := dir + "/meant.json"
			if *update {
				if err := os.WriteFile(file, b.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), b.String()); diff != "" {
				t.Errorf("meaning (-want +got):\n%s", diff)
			}
		})
	}
}
