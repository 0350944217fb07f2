package oracle

import (
	"testing"

	"github.com/containerd/containerd/v2/cmd/containerd/server/config"
	"github.com/containerd/containerd/v2/version"
	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"
)

// TestLoader lets containerd 2.4's loader read the goldens of every line, with its
// migrations of the server's own settings, and compares what is left where a daemon
// takes it from.
func TestLoader(t *testing.T) {
	for _, g := range readGoldens(t) {
		t.Run(g.name, func(t *testing.T) {
			c := config.Config{Version: version.ConfigVersion}
			if err := config.LoadConfig(t.Context(), g.config(), &c); err != nil {
				t.Fatal(err)
			}
			meant := g.meant.Containerd
			server := func(name string) any {
				section, _ := c.Plugins["io.containerd.server.v1."+name].(map[string]any)
				return section["address"]
			}
			want := []any{meant.Root, meant.State, meant.OOMScore, []string{cri}, any(meant.Address), any(meant.Address + ".ttrpc")}
			got := []any{c.Root, c.State, c.OOMScore, c.RequiredPlugins, server("grpc"), server("ttrpc")}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("root, state, oom_score, required plugins, addresses (-want +got):\n%s", diff)
			}
			for _, p := range meant.ProxyPlugins {
				have := c.ProxyPlugins[p.Name]
				if diff := cmp.Diff(p, proxyPlugin{p.Name, have.Type, have.Address, have.Platform, have.Exports}); diff != "" {
					t.Errorf("proxy plugin %s (-want +got):\n%s", p.Name, diff)
				}
			}
		})
	}
}

// TestConflists lets the CNI library that containerd has read every bridge network.
func TestConflists(t *testing.T) {
	read := 0
	for _, g := range readGoldens(t) {
		for _, f := range g.meant.Files {
			if f.Path != "/etc/cni/net.d/10-containerd-net.conflist" {
				continue
			}
			read++
			list, err := libcni.ConfListFromFile(g.root + f.Path)
			if err != nil {
				t.Errorf("%s: %v", g.name, err)
				continue
			}
			if list.CNIVersion != "1.0.0" || list.Name == "" || len(list.Plugins) == 0 || list.Plugins[0].Network.Type != "bridge" {
				t.Errorf("%s: read as version %q, name %q, %d plugins", g.name, list.CNIVersion, list.Name, len(list.Plugins))
			}
		}
	}
	if read == 0 {
		t.Error("no golden has a network")
	}
}
