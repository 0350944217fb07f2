package registry

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/profiles"
)

func TestSuppliers(t *testing.T) {
	mirror := func(url string, capabilities ...string) profiles.Endpoint {
		return profiles.Endpoint{URL: url, Capabilities: capabilities}
	}
	const image = "registry.k8s.io/pause:3.10"
	digest := "registry.k8s.io/pause@sha256:" + "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	for name, c := range map[string]struct {
		image string
		regs  []profiles.Registry
		want  Supply
	}{
		"no registry":      {image, nil, Supply{Can: []string{"registry.k8s.io"}}},
		"another registry": {image, []profiles.Registry{{Host: "docker.io", Deny: true}}, Supply{Can: []string{"registry.k8s.io"}}},
		"Docker Hub":       {"pause:1", []profiles.Registry{{Host: "docker.io", Deny: true}}, Supply{Field: "registries.docker.io", Cannot: []string{"registries.docker.io.upstream"}}},
		"denied, with a mirror": {image, []profiles.Registry{{Host: "registry.k8s.io", Deny: true, Mirrors: []profiles.Endpoint{mirror("https://m")}}},
			Supply{Field: "registries.registry.k8s.io", Can: []string{"https://m"}, Cannot: []string{"registries.registry.k8s.io.upstream"}}},
		"denied, with mirrors for less": {image, []profiles.Registry{{Host: "*", Deny: true, Mirrors: []profiles.Endpoint{mirror("https://m", "resolve"), mirror("https://n", "pull")}}},
			Supply{Field: "registries.*", Cannot: []string{"registries.*.mirrors[0].capabilities", "registries.*.mirrors[1].capabilities", "registries.*.upstream"}}},
		"a mirror that may pull, by digest": {digest, []profiles.Registry{{Host: "*", Deny: true, Mirrors: []profiles.Endpoint{mirror("https://m", "resolve"), mirror("https://n", "pull")}}},
			Supply{Field: "registries.*", Can: []string{"https://n"}, Cannot: []string{"registries.*.mirrors[0].capabilities", "registries.*.upstream"}}},
		"its own entry goes before that of all": {image, []profiles.Registry{{Host: "registry.k8s.io"}, {Host: "*", Deny: true}},
			Supply{Field: "registries.registry.k8s.io", Can: []string{"registry.k8s.io"}}},
		"a server for less": {image, []profiles.Registry{{Host: "registry.k8s.io", Server: &profiles.Endpoint{Capabilities: []string{"resolve"}}}},
			Supply{Field: "registries.registry.k8s.io", Cannot: []string{"registries.registry.k8s.io.capabilities"}}},
		"a server of its own": {image, []profiles.Registry{{Host: "registry.k8s.io", Server: &profiles.Endpoint{URL: "https://s", Capabilities: []string{"pull", "resolve"}}}},
			Supply{Field: "registries.registry.k8s.io", Can: []string{"https://s"}}},
		"capabilities without a server": {image, []profiles.Registry{{Host: "*", Server: &profiles.Endpoint{Capabilities: []string{"resolve"}}}},
			Supply{Field: "registries.*", Can: []string{"registry.k8s.io"}}},
	} {
		got, ok := Suppliers(c.regs, c.image)
		if diff := cmp.Diff(c.want, got); diff != "" || !ok {
			t.Errorf("%s: %v (-want +got):\n%s", name, ok, diff)
		}
	}
	if _, ok := Suppliers(nil, "No Good"); ok {
		t.Error("an impossible name has suppliers")
	}
}
