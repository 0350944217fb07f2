package registry_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/render/registry"
)

// What is explained is what containerd's own resolver then asks, request by request: a
// mirror that has nothing, one that may only pull, one that only takes pushes, and the
// server, which has the image.
func TestExplainedRequestsAreThoseThatAreSent(t *testing.T) {
	manifest, blob := []byte(`{"schemaVersion": 2}`), []byte("layer")
	content := map[string][]byte{digest.FromBytes(manifest).String(): manifest, digest.FromBytes(blob).String(): blob, "1": manifest}
	var mu sync.Mutex
	log := map[string][]string{}
	serve := func(has bool) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			log[r.Host] = append(log[r.Host], r.Method+" http://"+r.Host+r.RequestURI)
			mu.Unlock()
			b, ok := content[r.URL.Path[strings.LastIndexByte(r.URL.Path, '/')+1:]]
			if !has || !ok {
				http.NotFound(w, r)
				return
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(b).String())
			w.Header().Set("Content-Length", fmt.Sprint(len(b)))
			if r.Method == http.MethodGet {
				_, _ = w.Write(b)
			}
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	text := fmt.Sprintf("server = %q\n[host.%q]\n[host.%q]\noverride_path = true\ncapabilities = [\"pull\"]\n[host.%q]\ncapabilities = [\"push\"]\n",
		serve(true), serve(false)+"/team", serve(false)+"/v2/proj", serve(false))
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "quay.example"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "quay.example/hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"quay.example/a/b:1", "quay.example/a/b@" + digest.FromBytes(manifest).String()} {
		clear(log)
		resolver := docker.NewResolver(docker.ResolverOptions{
			Hosts: config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(root)}),
		})
		name, desc, err := resolver.Resolve(t.Context(), ref)
		if err != nil {
			t.Fatal(err)
		}
		fetcher, err := resolver.Fetcher(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		layer := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageLayer, Digest: digest.FromBytes(blob), Size: int64(len(blob))}
		for _, d := range []ocispec.Descriptor{desc, layer} {
			r, err := fetcher.Fetch(t.Context(), d)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.Copy(io.Discard, r); err != nil {
				t.Fatal(err)
			}
			r.Close()
		}

		q := tree{registry.Root + "/quay.example/hosts.toml": text}.query(t, "2.4.2")
		q.Image = ref
		x, err := registry.Explain(q)
		if err != nil {
			t.Fatal(err)
		}
		want := map[string][]string{}
		for _, h := range x.Hosts {
			for _, r := range h.Requests {
				d := desc.Digest
				if strings.Contains(r.URL, "/blobs/") {
					d = layer.Digest
				}
				want[h.Host] = append(want[h.Host], r.Method+" "+strings.Replace(r.URL, "DIGEST", d.String(), 1))
			}
		}
		if diff := cmp.Diff(want, log); diff != "" {
			t.Errorf("%s: requests (-explained +sent):\n%s", ref, diff)
		}
	}
}
