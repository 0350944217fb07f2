package oracle

import (
	"bytes"
	"encoding/json"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
)

const configCases = "../../internal/configtoml/testdata/cases"

// configMeaning is meant.json of a case: what nodeprep takes a config to come to with
// one release.
type configMeaning struct {
	Refused bool
	Ignored []string
	Effect  configEffect
}

type configEffect struct {
	Root, State, Address, TTRPC, TCP, Metrics, Debug string
	OOMScore, MaxConfNum                             int
	SandboxImage, Snapshotter, ConfigPath            string
	DefaultRuntime, ConfDir                          string
	BinDirs                                          []string
	Runtimes                                         map[string]configRuntime
	Disabled, Required                               []string
	Proxies                                          map[string]string
}

type configRuntime struct {
	Type, BinaryName, Snapshotter string
	SystemdCgroup                 bool
}

// readConfigCases returns, by the folder of each case, what it is meant to come to by
// release.
func readConfigCases(t *testing.T) map[string]map[string]configMeaning {
	t.Helper()
	files, err := filepath.Glob(configCases + "/*/meant.json")
	if err != nil || len(files) < 20 {
		t.Fatalf("cases under %s: %d %v", configCases, len(files), err)
	}
	out := map[string]map[string]configMeaning{}
	for _, f := range files {
		raw, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]configMeaning
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		out[filepath.Dir(f)] = m
	}
	return out
}

// ofLine is the meaning for the release of a line.
func ofLine(t *testing.T, m map[string]configMeaning, line string) configMeaning {
	t.Helper()
	for release, meaning := range m {
		if strings.HasPrefix(release, line+".") {
			return meaning
		}
	}
	t.Fatalf("no meaning for %s", line)
	return configMeaning{}
}

// look goes down a decoded tree.
func look[T any](tree any, path ...string) T {
	for _, k := range path {
		m, _ := tree.(map[string]any)
		tree = m[k]
	}
	v, _ := tree.(T)
	return v
}

func texts(list []any) []string {
	var out []string
	for _, e := range list {
		out = append(out, e.(string))
	}
	return out
}

// fold finds an option of runc's shim as go-toml v2 decodes it: in any case, the last
// of the sorted names wins.
func fold(options map[string]any, name string) any {
	var found any
	for _, k := range slices.Sorted(maps.Keys(options)) {
		if strings.EqualFold(k, name) {
			found = options[k]
		}
	}
	return found
}

// dumped is what "config dump" of 2.x says, in nodeprep's words.
func dumped(tree map[string]any, line string) configEffect {
	const images, runtime, server = "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.server.v1."
	text := func(path ...string) string { return look[string](tree, path...) }
	e := configEffect{
		Root: text("root"), State: text("state"),
		OOMScore:     int(look[int64](tree, "oom_score")),
		MaxConfNum:   int(look[int64](tree, "plugins", runtime, "cni", "max_conf_num")),
		SandboxImage: text("plugins", images, "pinned_images", "sandbox"),
		Snapshotter:  text("plugins", images, "snapshotter"), ConfigPath: text("plugins", images, "registry", "config_path"),
		DefaultRuntime: text("plugins", runtime, "containerd", "default_runtime_name"), ConfDir: text("plugins", runtime, "cni", "conf_dir"),
		BinDirs:  texts(look[[]any](tree, "plugins", runtime, "cni", "bin_dirs")),
		Runtimes: map[string]configRuntime{}, Proxies: map[string]string{},
		Disabled: texts(look[[]any](tree, "disabled_plugins")), Required: texts(look[[]any](tree, "required_plugins")),
	}
	if dir := text("plugins", runtime, "cni", "bin_dir"); dir != "" {
		e.BinDirs = []string{dir} // instead of the default, once the plugin has validated it
	}
	if line == "2.4" {
		address := func(name string) string { return text("plugins", server+name, "address") }
		e.Address, e.TTRPC, e.TCP, e.Metrics, e.Debug = address("grpc"), address("ttrpc"), address("grpc-tcp"), address("metrics"), address("debug")
	} else {
		e.Address, e.TTRPC, e.TCP = text("grpc", "address"), text("ttrpc", "address"), text("grpc", "tcp_address")
		e.Metrics, e.Debug = text("metrics", "address"), text("debug", "address")
		if e.TTRPC == "" {
			e.TTRPC = e.Address + ".ttrpc" // as the daemon's main does
		}
	}
	for name, r := range look[map[string]any](tree, "plugins", runtime, "containerd", "runtimes") {
		options := look[map[string]any](r, "options")
		rt := configRuntime{Type: look[string](r, "runtime_type"), Snapshotter: look[string](r, "snapshotter")}
		rt.BinaryName, _ = fold(options, "BinaryName").(string)
		rt.SystemdCgroup, _ = fold(options, "SystemdCgroup").(bool)
		e.Runtimes[name] = rt
	}
	for name, p := range look[map[string]any](tree, "proxy_plugins") {
		e.Proxies[name] = look[string](p, "type") + " " + look[string](p, "address")
	}
	return e
}

// implicit is 2.2's config_path where none is set: the plugin takes it after decoding.
const implicit = "/etc/containerd/certs.d:/etc/docker/certs.d"

// TestConfigsAsDaemonsReadThem has real daemons read configs of all sorts, with their
// imports, and compares what nodeprep says of them.
func TestConfigsAsDaemonsReadThem(t *testing.T) {
	cases := readConfigCases(t)
	for _, d := range daemons() {
		if !asksDaemon(t, d.line) {
			continue
		}
		d.build(t.Context(), t)
		for dir, meanings := range cases {
			t.Run(d.line+"/"+filepath.Base(dir), func(t *testing.T) {
				t.Parallel()
				want := ofLine(t, meanings, d.line)
				cmd := exec.CommandContext(t.Context(), d.bin, "--config", filepath.Join(dir, "config.toml"), "config", "dump")
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				err := cmd.Run()
				if err == nil && strings.Contains(dir, "missing-import") {
					// "config dump" alone goes on at a file that is not there.
					return
				}
				if (err != nil) != want.Refused {
					t.Fatalf("refused %v, want %v: %s", err != nil, want.Refused, stderr.String())
				}
				if want.Refused {
					return
				}
				var tree map[string]any
				if err := toml.Unmarshal(stdout.Bytes(), &tree); err != nil {
					t.Fatal(err)
				}
				got := dumped(tree, d.line)
				if got.ConfigPath == "" && want.Effect.ConfigPath == implicit && d.line != "2.0" {
					got.ConfigPath = implicit
				}
				want.Effect.Disabled = fullNames(want.Effect.Disabled)
				if diff := cmp.Diff(want.Effect, got); diff != "" {
					t.Errorf("-nodeprep +containerd:\n%s", diff)
				}
				warned := unknownKeys(stderr.String())
				for _, key := range warned {
					parts := strings.Fields(key)
					if !slices.ContainsFunc(want.Ignored, func(i string) bool {
						path, _, _ := strings.Cut(i, " | ")
						return slices.ContainsFunc(parts, func(p string) bool { return strings.Contains(path+".", "."+p+".") || strings.HasSuffix(path, " "+p) })
					}) {
						t.Errorf("containerd ignores %q, nodeprep does not know of it: %q", key, want.Ignored)
					}
				}
				for _, i := range want.Ignored {
					path, hint, _ := strings.Cut(i, " | ")
					if !strings.HasPrefix(hint, "unknown to") || strings.Contains(path, ".options.") {
						continue // told by nobody but nodeprep
					}
					name := path[strings.LastIndexAny(path, ". ")+1:]
					if !slices.ContainsFunc(warned, func(key string) bool { return slices.Contains(strings.Fields(key), name) }) {
						t.Errorf("containerd says nothing of %s: %q", path, warned)
					}
				}
			})
		}
	}
}

// fullNames are plugins as 2.x names them in its dump: those of schema 1 by their URI.
func fullNames(names []string) []string {
	var out []string
	for _, n := range names {
		switch n {
		case "cri":
			n = "io.containerd.grpc.v1.cri"
		case "zfs":
			n = "io.containerd.snapshotter.v1.zfs"
		}
		out = append(out, n)
	}
	return out
}

// unknownKeys are the keys that a daemon warns of.
func unknownKeys(log string) []string {
	var out []string
	for line := range strings.Lines(log) {
		if !strings.Contains(line, "Ignoring unknown key in TOML") {
			continue
		}
		_, key, _ := strings.Cut(line, " key=")
		if quoted, ok := strings.CutPrefix(key, `"`); ok {
			key, _, _ = strings.Cut(quoted, `"`)
		} else {
			key, _, _ = strings.Cut(key, " ")
		}
		out = append(out, strings.TrimSpace(key))
	}
	return out
}

// TestConfigsAsContainerd1ReadsThem does the same with the loaders of 1.6 and 1.7.
func TestConfigsAsContainerd1ReadsThem(t *testing.T) {
	cases := readConfigCases(t)
	certsD := t.TempDir()
	for line, modfile := range probes(t) {
		p := buildProbe(t.Context(), t, modfile)
		for dir, meanings := range cases {
			t.Run(line+"/"+filepath.Base(dir), func(t *testing.T) {
				t.Parallel()
				want := ofLine(t, meanings, line)
				cmd := exec.CommandContext(t.Context(), p.bin, filepath.Join(dir, "config.toml"), certsD)
				var stdout, stderr bytes.Buffer
				cmd.Stdout, cmd.Stderr = &stdout, &stderr
				err := cmd.Run()
				if err != nil && !want.Refused && strings.Contains(stderr.String(), "no corresponding runtime configured") {
					// The daemon starts, and CRI says this: the default runtime must be missing for us too.
					if _, ok := want.Effect.Runtimes[want.Effect.DefaultRuntime]; ok {
						t.Errorf("nodeprep has the default runtime, containerd does not: %s", stderr.String())
					}
					return
				}
				if (err != nil) != want.Refused {
					t.Fatalf("refused %v, want %v: %s", err != nil, want.Refused, stderr.String())
				}
				if want.Refused {
					return
				}
				if diff := cmp.Diff(want.Effect, probed(t, stdout.Bytes())); diff != "" {
					t.Errorf("-nodeprep +containerd:\n%s", diff)
				}
			})
		}
	}
}

// probed is what a probe prints, in nodeprep's words, over the defaults that the daemon
// has before it loads anything.
func probed(t *testing.T, raw []byte) configEffect {
	t.Helper()
	var r struct {
		Server struct {
			Root, State                      string
			OOMScore                         int
			GRPC                             struct{ Address, TCPAddress string }
			TTRPC, Metrics, Debug            struct{ Address string }
			DisabledPlugins, RequiredPlugins []string
			ProxyPlugins                     map[string]struct{ Type, Address string }
		}
		CRI struct {
			SandboxImage string
			Containerd   struct {
				Snapshotter, DefaultRuntimeName string
				Runtimes                        map[string]struct {
					RuntimeType, Snapshotter string
					Options                  map[string]any
				}
			}
			CNI struct {
				BinDir, ConfDir string
				MaxConfNum      int
			}
			Registry struct{ ConfigPath string }
		}
	}
	if err := json.Unmarshal(raw, &r); err != nil {
		t.Fatal(err)
	}
	or := func(s, fallback string) string {
		if s == "" {
			return fallback
		}
		return s
	}
	s, cri := r.Server, r.CRI
	e := configEffect{
		Root: or(s.Root, "/var/lib/containerd"), State: or(s.State, "/run/containerd"), Address: or(s.GRPC.Address, "/run/containerd/containerd.sock"),
		TCP: s.GRPC.TCPAddress, Metrics: s.Metrics.Address, Debug: s.Debug.Address, OOMScore: s.OOMScore,
		SandboxImage: cri.SandboxImage, Snapshotter: cri.Containerd.Snapshotter, ConfigPath: cri.Registry.ConfigPath,
		DefaultRuntime: cri.Containerd.DefaultRuntimeName, ConfDir: cri.CNI.ConfDir, MaxConfNum: cri.CNI.MaxConfNum,
		BinDirs: []string{cri.CNI.BinDir}, Disabled: s.DisabledPlugins, Required: s.RequiredPlugins,
		Runtimes: map[string]configRuntime{}, Proxies: map[string]string{},
	}
	e.TTRPC = or(s.TTRPC.Address, e.Address+".ttrpc")
	if len(e.Disabled) == 0 {
		e.Disabled = nil
	}
	if len(e.Required) == 0 {
		e.Required = nil
	}
	for name, p := range s.ProxyPlugins {
		e.Proxies[name] = p.Type + " " + p.Address
	}
	for name, rt := range cri.Containerd.Runtimes {
		c := configRuntime{Type: rt.RuntimeType, Snapshotter: rt.Snapshotter}
		c.BinaryName, _ = rt.Options["BinaryName"].(string)
		c.SystemdCgroup, _ = rt.Options["SystemdCgroup"].(bool)
		e.Runtimes[name] = c
	}
	return e
}
