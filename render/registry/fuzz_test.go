package registry_test

import (
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

// FuzzHosts renders two mirrors with any path and header, and has containerd's own
// parser say what a pull would ask: both mirrors in their order, then the server.
func FuzzHosts(f *testing.F) {
	for _, s := range []string{"", "/", "/a/", "/v2/x", "/x'y", `/"`, "/a b/é", "//", "/]", "/#x", "/%2e%2e/x", "?q"} {
		f.Add(s, "X-Any", "value")
	}
	for _, s := range []string{`"`, `'`, "'\"\\", "\t", "é\u2028", "\x7f", "a\nb", "\xff", "", "# x", "{{.}}"} {
		f.Add("", "Authorization", s)
	}
	f.Add("/x", "X'Y`Z", "v")
	f.Fuzz(func(t *testing.T, path, name, value string) {
		if path != "" && path[0] != '/' {
			return // would belong to the host
		}
		spec := &profiles.Spec{
			Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("2.4.2")}},
			Registries: []profiles.Registry{{Host: "quay.io", Mirrors: []profiles.Endpoint{
				{URL: "https://z.example.com" + path, Header: []profiles.Header{{Name: name, Values: []profiles.Secret{{Value: value, Plain: true}}}}},
				{URL: "https://[fd00::1]:5000" + path},
			}}},
		}
		files, faults := registry.Files(spec, nil)
		if faults.HasErrors() {
			return // what a profile may not have
		}
		root := t.TempDir()
		dir := filepath.Join(root, "quay.io")
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), files[0].Content, 0o600); err != nil {
			t.Fatal(err)
		}
		hosts, err := config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(root)})("quay.io")
		if err != nil {
			t.Fatalf("%v\n%s", err, files[0].Content)
		}
		var got []string
		for _, h := range hosts {
			got = append(got, h.Scheme+"://"+h.Host)
		}
		want := []string{"https://z.example.com", "https://[fd00::1]:5000", "https://quay.io"}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("hosts (-want +got):\n%s\n%s", diff, files[0].Content)
		}
		if diff := cmp.Diff(http.Header{name: {value}}, hosts[0].Header); diff != "" {
			t.Errorf("header (-want +got):\n%s\n%s", diff, files[0].Content)
		}
		for _, h := range hosts {
			if strings.Contains(h.Path, "//") || strings.HasSuffix(h.Path, "/") {
				t.Errorf("API path %q\n%s", h.Path, files[0].Content)
			}
		}
		u, err := url.Parse("https://z.example.com" + path)
		if err != nil {
			t.Fatalf("accepted a bad URL: %v", err)
		}
		if wantV2 := !slices.Contains(strings.Split(u.Path, "/"), "v2"); wantV2 && !strings.HasSuffix(hosts[0].Path, "/v2") {
			t.Errorf("API path %q of %s lacks /v2", hosts[0].Path, u)
		}
	})
}
