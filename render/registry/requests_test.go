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

// A push of a layer and of a manifest, and a digest that nobody has: with containerd's own
// pusher and resolver.
func TestExplainedPushAndFallback(t *testing.T) {
	manifest, blob := []byte(`{"schemaVersion": 2}`), []byte("layer")
	var mu sync.Mutex
	var log []string
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		log = append(log, r.Method+" http://"+r.Host+r.RequestURI)
		switch _, _ = io.Copy(io.Discard, r.Body); r.Method {
		case http.MethodPost:
			w.Header().Set("Location", "/upload/1")
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			w.WriteHeader(http.StatusCreated)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	text := fmt.Sprintf("server = %q\n[host.%q]\n", s.URL, s.URL+"/inbox")
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, "quay.example"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "quay.example/hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	resolver := docker.NewResolver(docker.ResolverOptions{
		Hosts: config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(root)}),
	})
	explain := func(image, verb string) *registry.Explanation {
		q := tree{registry.Root + "/quay.example/hosts.toml": text}.query(t, "2.4.2")
		q.Image, q.Verb = image, verb
		x, err := registry.Explain(q)
		if err != nil {
			t.Fatal(err)
		}
		return x
	}

	pusher, err := resolver.Pusher(t.Context(), "quay.example/a/b:1")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		mediaType string
		content   []byte
	}{{ocispec.MediaTypeImageLayer, blob}, {ocispec.MediaTypeImageManifest, manifest}} {
		w, err := pusher.Push(t.Context(), ocispec.Descriptor{MediaType: c.mediaType, Digest: digest.FromBytes(c.content), Size: int64(len(c.content))})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(c.content); err != nil {
			t.Fatal(err)
		}
		if err := w.Commit(t.Context(), int64(len(c.content)), digest.FromBytes(c.content)); err != nil {
			t.Fatal(err)
		}
	}
	var want []string
	d := digest.FromBytes(blob).String()
	for _, r := range explain("quay.example/a/b:1", registry.VerbPush).Hosts[0].Requests {
		u := strings.ReplaceAll(strings.Replace(r.URL, "LOCATION", s.URL+"/upload/1", 1), "=DIGEST", "="+strings.Replace(d, ":", "%3A", 1))
		want = append(want, r.Method+" "+strings.Replace(u, "DIGEST", d, 1))
	}
	if diff := cmp.Diff(want, log); diff != "" {
		t.Errorf("push: requests (-explained +sent):\n%s", diff)
	}

	log = nil
	missing := "quay.example/a/b@" + digest.FromString("none").String()
	if _, _, err := resolver.Resolve(t.Context(), missing); err == nil {
		t.Fatal("resolved what nobody has")
	}
	want = nil
	x := explain(missing, registry.VerbResolve)
	for _, h := range x.Hosts {
		for _, r := range h.Requests {
			want = append(want, r.Method+" "+r.URL)
		}
	}
	for _, h := range x.Hosts {
		for _, r := range h.IfMissing {
			want = append(want, r.Method+" "+r.URL)
		}
	}
	if diff := cmp.Diff(want, log); diff != "" {
		t.Errorf("missing: requests (-explained +sent):\n%s", diff)
	}
}
