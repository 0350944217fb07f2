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
