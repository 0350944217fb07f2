package oracle

import (
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strings"

	"github.com/google/go-cmp/cmp"
)

// expectation is a value and the keys that lead to it in a daemon's config.
type expectation struct {
	path  []string
	value any
}

func (e expectation) String() string { return strings.Join(e.path, " → ") }

const (
	cri        = "io.containerd.grpc.v1.cri"
	criImages  = "io.containerd.cri.v1.images"
	criRuntime = "io.containerd.cri.v1.runtime"
)

// wants is what a golden's profile asks of a daemon, at the keys where a daemon of
// the given line keeps it (2.0 to 2.2 have [grpc], 2.0 has bin_dir).
func wants(m meant, line string) []expectation {
	c := m.Containerd
	var out []expectation
	add := func(value any, path ...string) { out = append(out, expectation{path, value}) }
	images := func(path ...string) []string { return append([]string{"plugins", criImages}, path...) }
	runtimes := func(path ...string) []string { return append([]string{"plugins", criRuntime}, path...) }

	add(c.Root, "root")
	add(c.State, "state")
	add(c.OOMScore, "oom_score")
	if line >= "2.3" {
		add(c.Address, "plugins", "io.containerd.server.v1.grpc", "address")
		add(c.Address+".ttrpc", "plugins", "io.containerd.server.v1.ttrpc", "address")
	} else {
		add(c.Address, "grpc", "address")
	}
	add(c.SandboxImage, images("pinned_images", "sandbox")...)
	add(c.Snapshotter, images("snapshotter")...)
	add("/etc/containerd/certs.d", images("registry", "config_path")...)
	if line >= "2.1" {
		add([]any{"/opt/cni/bin"}, runtimes("cni", "bin_dirs")...)
	} else {
		add("/opt/cni/bin", runtimes("cni", "bin_dir")...)
	}
	add("/etc/cni/net.d", runtimes("cni", "conf_dir")...)
	add(c.DefaultRuntime, runtimes("containerd", "default_runtime_name")...)
	for _, rt := range c.Runtimes {
		at := func(path ...string) []string {
			return runtimes(append([]string{"containerd", "runtimes", rt.Name}, path...)...)
		}
		add(rt.Type, at("runtime_type")...)
		for k, v := range options(rt, c.SystemdCgroup) {
			add(v, at("options", k)...)
		}
	}
	for _, p := range c.ProxyPlugins {
		add(p.Type, "proxy_plugins", p.Name, "type")
		add(p.Address, "proxy_plugins", p.Name, "address")
		add(p.Platform, "proxy_plugins", p.Name, "platform")
		for k, v := range p.Exports {
			add(v, "proxy_plugins", p.Name, "exports", k)
		}
	}
	for host, auth := range credentials(m) {
		for k, v := range auth {
			add(v, images("registry", "configs", host, "auth", k)...)
		}
	}
	return out
}

// options are a runtime's, as the profile means them.
func options(rt runtime, systemdCgroup bool) map[string]any {
	out := map[string]any{}
	if rt.Type == "io.containerd.runc.v2" {
		out["SystemdCgroup"] = systemdCgroup
		if rt.Path != "" {
			out["BinaryName"] = rt.Path
		}
	}
	maps.Copy(out, rt.Options)
	return out
}

// credentials are what is known by the host that is asked.
func credentials(m meant) map[string]map[string]any {
	out := map[string]map[string]any{}
	add := func(host string, a *auth) {
		if a == nil {
			return
		}
		values := map[string]any{}
		for k, s := range map[string]secret{"username": a.Username, "password": a.Password, "identitytoken": a.IdentityToken} {
			if v := s.text(); v != "" {
				values[k] = v
			}
		}
		out[host] = values
	}
	for _, r := range m.Registries {
		add(serverHost(r), r.Auth)
		for _, e := range r.Mirrors {
			if u, err := url.Parse(e.URL); err == nil {
				add(u.Host, e.Auth)
			}
		}
	}
	return out
}

// settings are the leaves of the profile's own settings; lists count as leaves.
func settings(tree map[string]any, path ...string) []expectation {
	var out []expectation
	for _, k := range slices.Sorted(maps.Keys(tree)) {
		here := append(slices.Clone(path), k)
		switch v := tree[k].(type) {
		case map[string]any:
			out = append(out, settings(v, here...)...)
		case nil:
		default:
			out = append(out, expectation{here, v})
		}
	}
	return out
}

// missing compares a decoded config with what is wanted; later expectations beat
// earlier ones at the same keys. Top-level lists are unions with the daemon's own.
func missing(tree map[string]any, want []expectation) []string {
	last := map[string]expectation{}
	for _, e := range want {
		last[strings.Join(e.path, "\x1f")] = e
	}
	var out []string
	for _, k := range slices.Sorted(maps.Keys(last)) {
		e := last[k]
		var got any = tree
		for _, p := range e.path {
			t, _ := got.(map[string]any)
			got = t[p]
		}
		got, value := numbers(got), numbers(e.value)
		if list, ok := value.([]any); ok && len(e.path) == 1 {
			have, _ := got.([]any)
			for _, v := range list {
				if !slices.ContainsFunc(have, func(h any) bool { return cmp.Equal(h, v) }) {
					out = append(out, fmt.Sprintf("%s lacks %v: %v", e, v, have))
				}
			}
			continue
		}
		if diff := cmp.Diff(value, got); diff != "" {
			out = append(out, fmt.Sprintf("%s: want %#v, the daemon has %#v", e, value, got))
		}
	}
	return out
}

// numbers makes integers and floats comparable: JSON has but one kind.
func numbers(v any) any {
	switch v := v.(type) {
	case int:
		return float64(v)
	case int64:
		return float64(v)
	case []any:
		out := make([]any, len(v))
		for i := range v {
			out[i] = numbers(v[i])
		}
		return out
	case map[string]any:
		out := map[string]any{}
		for k, e := range v {
			out[k] = numbers(e)
		}
		return out
	}
	return v
}
