package oracle

import (
	"bytes"
	"context"
	"encoding/json"
	"maps"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// probe is the program of releases/probe, built with one 1.x line's own packages.
type probe struct{ bin string }

func buildProbe(ctx context.Context, t *testing.T, modfile string) probe {
	t.Helper()
	p := probe{filepath.Join(t.TempDir(), "probe")}
	cmd := exec.CommandContext(ctx, "go", "build", "-modfile="+modfile, "-o", p.bin, "./probe")
	cmd.Dir = "releases"
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build probe with %s: %v\n%s", modfile, err, out)
	}
	return p
}

// probes are the go.mod files of the 1.x lines that are asked in this run.
func probes(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{"1.6": "1.6.mod", "1.7": "go.mod"}
	if testing.Short() {
		t.Log("-short: not asked: containerd 1.6")
		delete(all, "1.6")
	}
	return all
}

// reading is what a probe prints: containerd 1.x's structures under its own names.
type reading struct {
	Server struct {
		Version                  int
		Root, State              string
		OOMScore                 int
		GRPC                     struct{ Address string }
		RequiredPlugins, Imports []string
		ProxyPlugins             map[string]struct {
			Type, Address, Platform string
			Exports                 map[string]string
		}
	}
	CRI struct {
		SandboxImage string `json:"sandboxImage"`
		Containerd   struct {
			Snapshotter        string `json:"snapshotter"`
			DefaultRuntimeName string `json:"defaultRuntimeName"`
			Runtimes           map[string]struct {
				Type    string         `json:"runtimeType"`
				Options map[string]any `json:"options"`
			} `json:"runtimes"`
		} `json:"containerd"`
		CNI struct {
			BinDir  string `json:"binDir"`
			ConfDir string `json:"confDir"`
		} `json:"cni"`
		Registry struct {
			ConfigPath string `json:"configPath"`
			Configs    map[string]struct {
				Auth map[string]string `json:"auth"`
			} `json:"configs"`
		} `json:"registry"`
	}
	Hosts map[string][]host
}

// check lets containerd 1.x load, decode and validate a config.toml and read certs.d.
func (p probe) check(ctx context.Context, t *testing.T, config, certsD string, m meant) []string {
	t.Helper()
	args := []string{config, certsD}
	for _, r := range m.Registries {
		args = append(args, asked(r))
	}
	cmd := exec.CommandContext(ctx, p.bin, args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return []string{"containerd's loader: " + err.Error() + ": " + stderr.String()}
	}
	var got reading
	if err := json.Unmarshal(stdout.Bytes(), &got); err != nil {
		t.Fatal(err)
	}

	c := m.Containerd
	var problems []string
	same := func(what string, want, have any) {
		if diff := cmp.Diff(want, have); diff != "" {
			problems = append(problems, what+" (-want +got):\n"+diff)
		}
	}
	own := map[string]any{} // settings win; their values are compared by the daemon alone
	for _, e := range settings(c.Settings) {
		own[e.path[len(e.path)-1]] = e.value
	}
	unlessSet := func(key, what string, want, have any) {
		if _, ok := own[key]; !ok {
			same(what, want, have)
		}
	}
	same("version", 2, got.Server.Version)
	same("root", c.Root, got.Server.Root)
	same("state", c.State, got.Server.State)
	same("oom_score", c.OOMScore, got.Server.OOMScore)
	same("grpc.address", c.Address, got.Server.GRPC.Address)
	same("required_plugins", []string{cri}, got.Server.RequiredPlugins)
	if len(got.Server.Imports) > 1 {
		problems = append(problems, "imports something, which in 1.x replaces whole sections")
	}
	unlessSet("sandbox_image", "sandbox_image", c.SandboxImage, got.CRI.SandboxImage)
	same("snapshotter", c.Snapshotter, got.CRI.Containerd.Snapshotter)
	same("default_runtime_name", c.DefaultRuntime, got.CRI.Containerd.DefaultRuntimeName)
	unlessSet("bin_dir", "cni.bin_dir", "/opt/cni/bin", got.CRI.CNI.BinDir)
	unlessSet("conf_dir", "cni.conf_dir", "/etc/cni/net.d", got.CRI.CNI.ConfDir)
	same("registry.config_path", "/etc/containerd/certs.d", got.CRI.Registry.ConfigPath)
	for _, rt := range c.Runtimes {
		same("runtimes."+rt.Name+".runtime_type", rt.Type, got.CRI.Containerd.Runtimes[rt.Name].Type)
		for k, v := range options(rt, c.SystemdCgroup) {
			same("runtimes."+rt.Name+".options."+k, numbers(v), got.CRI.Containerd.Runtimes[rt.Name].Options[k])
		}
	}
	for _, proxy := range c.ProxyPlugins {
		have := got.Server.ProxyPlugins[proxy.Name]
		same("proxy_plugins."+proxy.Name, []string{proxy.Type, proxy.Address}, []string{have.Type, have.Address})
		same("proxy_plugins."+proxy.Name+" platform", proxy.Platform, have.Platform)
		same("proxy_plugins."+proxy.Name+" exports", proxy.Exports, have.Exports)
	}
	creds := credentials(m)
	same("credentials", slices.Sorted(maps.Keys(creds)), slices.Sorted(maps.Keys(got.CRI.Registry.Configs)))
	for host, auth := range creds {
		for k, v := range auth {
			same("credentials of "+host+": "+k, v, any(got.CRI.Registry.Configs[host].Auth[k]))
		}
	}
	for _, r := range m.Registries {
		problems = append(problems, checkHosts(got.Hosts[asked(r)], r, m, pull|resolve|push)...)
	}
	return problems
}

// TestV1 lets 1.6 and 1.7 read their goldens: 1.6.38 still takes a hosts.toml without
// a [host] table for broken.
func TestV1(t *testing.T) {
	all := readGoldens(t)
	for line, modfile := range probes(t) {
		t.Run(line, func(t *testing.T) {
			p := buildProbe(t.Context(), t, modfile)
			checked := 0
			for _, g := range all {
				if g.line() != line {
					continue
				}
				checked++
				t.Run(g.name, func(t *testing.T) {
					for _, problem := range p.check(t.Context(), t, g.config(), g.certsD(), g.meant) {
						t.Error(problem)
					}
				})
			}
			if checked == 0 {
				t.Error("no golden for this line")
			}
		})
	}
}
