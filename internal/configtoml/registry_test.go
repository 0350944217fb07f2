package configtoml_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
)

func TestLocalPull(t *testing.T) {
	const images = "version = 3\n[plugins.\"io.containerd.cri.v1.images\"]\n"
	for name, c := range map[string]struct {
		release, toml string
		want          []string
	}{
		"nothing":         {"2.4.2", images, nil},
		"no file":         {"2.4.2", "", nil},
		"as it is":        {"2.4.2", images + "max_concurrent_downloads = 3\ndisable_snapshot_annotations = true\ndiscard_unpacked_layers = false\n", nil},
		"asked for":       {"2.4.2", images + "use_local_image_pull = true\n", []string{"use_local_image_pull"}},
		"annotations":     {"2.1.9", images + "disable_snapshot_annotations = false\n", []string{"disable_snapshot_annotations = false"}},
		"layers and sync": {"2.2.7", images + "discard_unpacked_layers = true\nimage_pull_with_sync_fs = true\n", []string{"discard_unpacked_layers", "image_pull_with_sync_fs"}},
		"parallel":        {"2.3.4", images + "max_concurrent_downloads = 8\n", []string{"max_concurrent_downloads"}},
		"credentials":     {"2.4.2", images + "[plugins.\"io.containerd.cri.v1.images\".registry.configs.\"m\".auth]\nusername = \"u\"\n", []string{"registry.configs"}},
		"auths":           {"2.4.2", images + "[plugins.\"io.containerd.cri.v1.images\".registry.auths.\"https://m\"]\nusername = \"u\"\n", []string{"registry.auths"}},
		"an older file":   {"2.4.2", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"m\".auth]\nusername = \"u\"\n", []string{"registry.configs"}},
		"older releases":  {"2.0.11", images + "discard_unpacked_layers = true\n", nil},
		"1.7":             {"1.7.35", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ndiscard_unpacked_layers = true\n", nil},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, load(t, c.release, c.toml).LocalPull()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestEndpoints(t *testing.T) {
	c := load(t, "1.6.20", "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://a\", \"b\"]\n")
	if diff := cmp.Diff([]string{"https://a", "b"}, c.Endpoints("docker.io")); diff != "" {
		t.Error(diff)
	}
	if got := c.Endpoints("*"); got != nil {
		t.Errorf("%q", got)
	}
}

func load(t *testing.T, release, text string) *configtoml.Config {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "config.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	c, err := configtoml.Load(root, "/config.toml", releases.MustVersion(release))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestCredentials(t *testing.T) {
	const registry = "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n"
	const under = "[plugins.\"io.containerd.grpc.v1.cri\".registry."
	c := load(t, "1.7.34", registry+
		under+"configs.\"a:5000\".auth]\nusername = \"u\"\npassword = \"p\"\n"+
		under+"configs.\"b\".auth]\nidentitytoken = \"t\"\n"+
		under+"configs.\"c\".auth]\nauth = \"cm9ib3Q6cDpx\"\n"+
		under+"configs.\"d\".tls]\ninsecure_skip_verify = true\n"+
		under+"configs.\"e\".auth]\nauth = \"%\"\n"+
		under+"auths.\"https://b/v1/\"]\nusername = \"v\"\npassword = \"q\"\n"+
		under+"auths.\"f\"]\nusername = \"w\"\n"+
		under+"headers]\nX-One = [\"1\", \"2\"]\n")
	got := c.Credentials()
	for i := range got {
		if got[i].Place.Line == 0 {
			t.Errorf("%s has no place", got[i].Host)
		}
		got[i].Place = configtoml.Place{}
	}
	want := []configtoml.Credential{
		{Host: "a:5000", User: "u", Secret: "p", Field: `registry.configs."a:5000".auth`},
		{Host: "b", User: "v", Secret: "q", Field: `registry.auths."https://b/v1/"`},
		{Host: "c", User: "robot", Secret: "p:q", Field: `registry.configs."c".auth`},
		{Host: "e", Field: `registry.configs."e".auth`},
		{Host: "f", User: "w", Field: `registry.auths."f"`},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if diff := cmp.Diff(map[string][]string{"X-One": {"1", "2"}}, c.RegistryHeaders()); diff != "" {
		t.Errorf("headers: -want +got:\n%s", diff)
	}
	if got := load(t, "2.4.2", "").Credentials(); len(got) != 0 {
		t.Errorf("of no file: %v", got)
	}
}
