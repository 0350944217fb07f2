package main

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/profiles"
)

func TestSandboxImage(t *testing.T) {
	const denied = "registries:\n  registry.k8s.io:\n    upstream: deny\n    mirrors:\n    - {url: \"https://m\", capabilities: [resolve]}\n"
	const fault = "node.yaml:2:3: registries.registry.k8s.io: no pod could start: nobody can supply the sandbox image registry.k8s.io/pause:3.10.2, neither an archive of images nor a registry: see registries.registry.k8s.io.mirrors[0].capabilities (node.yaml:5), registries.registry.k8s.io.upstream (node.yaml:3)"
	dir := t.TempDir()
	archive := func(file, name string, packed bool) {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		content := `[{"Config":"c.json","RepoTags":["` + name + `"],"Layers":[]}]`
		if err := w.WriteHeader(&tar.Header{Name: "manifest.json", Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write([]byte(content)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if packed {
			var z bytes.Buffer
			g := gzip.NewWriter(&z)
			if _, err := g.Write(b.Bytes()); err != nil {
				t.Fatal(err)
			}
			if err := g.Close(); err != nil {
				t.Fatal(err)
			}
			b = z
		}
		if err := os.WriteFile(filepath.Join(dir, file), b.Bytes(), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	archive("pause.tar", "registry.k8s.io/pause:3.10.2", false)
	archive("pause.tgz", "registry.k8s.io/pause:3.10.2", true)
	archive("other.tar", "registry.k8s.io/pause:3.9", false)
	if err := os.WriteFile(filepath.Join(dir, "text.tar"), []byte("<html>"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "folder.tar"), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		profile string
		besides []string
		want    string
	}{
		"upstream":                     {"", nil, ""},
		"denied":                       {denied, nil, fault},
		"a mirror that may pull":       {strings.ReplaceAll(denied, "[resolve]", "[resolve, pull]"), nil, ""},
		"an archive":                   {denied + "images: [{file: other.tar}, {file: pause.tar}]\n", nil, ""},
		"a packed archive":             {denied + "images: [{file: pause.tgz}]\n", nil, ""},
		"another archive":              {denied + "images: [{file: other.tar}]\n", nil, fault},
		"an archive that is elsewhere": {denied + "images: [{file: /nonesuch/pause.tar}]\n", nil, ""},
		"no archive":                   {denied + "images: [{file: text.tar}, {file: folder.tar}]\n", nil, fault},
		"an image that comes along":    {denied, []string{"registry.k8s.io/pause:3.10.2"}, ""},
		"another that comes along":     {denied, []string{"registry.k8s.io/pause:3.9"}, fault},
		"an image of another registry": {denied + "containerd: {sandboxImage: \"r.example.com/pause:1\"}\n", nil, ""},
		"all denied":                   {"registries:\n  \"*\": {upstream: deny, mirrors: [{url: \"https://m\", capabilities: [pull]}]}\n", nil, "node.yaml:2:3: registries.*: no pod could start"},
	} {
		t.Run(name, func(t *testing.T) {
			l := profiles.Loader{Dir: dir, Read: func(string) ([]byte, error) {
				return []byte("apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\n" + c.profile), nil
			}}
			c.want = strings.NewReplacer("yaml:2:", "yaml:4:", "yaml:3)", "yaml:5)", "yaml:5)", "yaml:7)").Replace(c.want)
			p, list := l.Load("node.yaml")
			spec, more := profiles.Resolve(p, profiles.Facts{Arch: "amd64", SystemdInit: true})
			if list = append(list, more...); list.HasErrors() {
				t.Fatal(list)
			}
			got := sandboxFaults(t.Context(), spec, c.besides...)
			switch {
			case c.want == "" && len(got) > 0:
				t.Errorf("got %v", got)
			case c.want != "" && (len(got) != 1 || !strings.HasPrefix(got[0].String(), c.want)):
				t.Errorf("got %v\nwant %s", got, c.want)
			}
			var along []bundle.PulledImage
			for _, b := range c.besides {
				along = append(along, bundle.PulledImage{Name: b})
			}
			if err := bundledSandbox(t.Context(), []bundledNode{{spec: spec}, {spec: spec}}, along); (err != nil) != (c.want != "") {
				t.Errorf("of a bundle: %v", err)
			}
		})
	}
}
