// Command probe prints as JSON what containerd 1.x makes of config files: its own
// loader, CRI settings and validation for config.toml, its own parser for hosts.toml.
//
//	probe CONFIG_TOML CERTS_D HOST...
//
// It is built once for each 1.x line, with the go.mod of that line.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"

	"github.com/containerd/containerd/pkg/cri/config"
	"github.com/containerd/containerd/plugin"
	docker "github.com/containerd/containerd/remotes/docker/config"
	server "github.com/containerd/containerd/services/server/config"
)

// host is what a pull would use of a registry host.
type host struct {
	Scheme, Host, Path string
	Capabilities       int
	Header             http.Header
	SkipVerify         bool
	CAs, Clients       int
	TLSFallback        bool
}

func main() {
	if err := run(os.Args[1], os.Args[2], os.Args[3:]); err != nil {
		fmt.Fprintln(os.Stderr, "probe:", err)
		os.Exit(1)
	}
}

func run(configToml, certsD string, names []string) error {
	var out struct {
		Server server.Config
		CRI    config.PluginConfig
		Hosts  map[string][]host
	}
	if err := server.LoadConfig(configToml, &out.Server); err != nil {
		return err
	}
	out.CRI = config.DefaultConfig()
	if _, err := out.Server.Decode(&plugin.Registration{Type: plugin.GRPCPlugin, ID: "cri", Config: &out.CRI}); err != nil {
		return err
	}
	out.Server.Plugins = nil // trees of the TOML library, decoded above
	if _, err := config.ValidatePluginConfig(context.Background(), &out.CRI); err != nil {
		return err
	}
	hosts := docker.ConfigureHosts(context.Background(), docker.HostOptions{HostDir: docker.HostDirFromRoot(certsD)})
	out.Hosts = map[string][]host{}
	for _, name := range names {
		found, err := hosts(name)
		if err != nil {
			return fmt.Errorf("hosts of %s: %w", name, err)
		}
		for _, f := range found {
			h := host{Scheme: f.Scheme, Host: f.Host, Path: f.Path, Capabilities: int(f.Capabilities), Header: f.Header}
			if t, ok := f.Client.Transport.(*http.Transport); ok {
				h.SkipVerify = t.TLSClientConfig.InsecureSkipVerify
				h.Clients = len(t.TLSClientConfig.Certificates)
				if t.TLSClientConfig.RootCAs != nil {
					h.CAs = 1
				}
			} else {
				h.TLSFallback = true
			}
			out.Hosts[name] = append(out.Hosts[name], h)
		}
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}
