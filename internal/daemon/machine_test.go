package daemon

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var binary = flag.String("containerd", "", "also test against a containerd started from this `binary` (root; all its state in a temporary folder)")

const daemonConfig = `version = 2
root = %[1]q
state = %[2]q
disabled_plugins = ["io.containerd.nri.v1.nri"]
[grpc]
  address = %[3]q
[ttrpc]
  address = %[4]q
[plugins."io.containerd.internal.v1.opt"]
  path = %[5]q
[plugins."io.containerd.grpc.v1.cri"]
  stream_server_address = "127.0.0.1"
  stream_server_port = "0"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = %[6]q
    bin_dir = %[7]q
`

// realDaemon starts the daemon given by -containerd and connects to it. What is to be done
// to its folder first is done to it, and undone at the end.
func realDaemon(t *testing.T, first ...func(root string) (undo func() error)) *Client {
	t.Helper()
	if *binary == "" {
		t.Skip(`needs a containerd binary, and root: "go test ./internal/daemon -containerd PATH"`)
	}
	// Not t.TempDir: a socket's path has to be short.
	dir, err := os.MkdirTemp("", "ctd")
	if err != nil {
		t.Fatal(err)
	}
	in := func(name string) string { return filepath.Join(dir, name) }
	config := fmt.Sprintf(daemonConfig, in("root"), in("state"), in("c.sock"), in("t.sock"), in("opt"), in("net.d"), in("bin"))
	if err := os.WriteFile(in("config.toml"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	var undo []func() error
	for _, do := range first {
		if err := os.Mkdir(in("root"), 0o700); err != nil {
			t.Fatal(err)
		}
		undo = append(undo, do(in("root")))
	}
	var log bytes.Buffer
	cmd := exec.Command(*binary, "--config", in("config.toml"))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("the daemon's log:\n%s", &log)
		}
		for _, u := range undo {
			if err := u(); err != nil {
				t.Error(err)
			}
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Connect(ctx, in("c.sock"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// archiveOf writes a tar of files in the order of the pairs.
func archiveOf(t *testing.T, files ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		content, ok := files[i+1].([]byte)
		if !ok {
			var err error
			if content, err = json.Marshal(files[i+1]); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.WriteHeader(&tar.Header{Name: files[i].(string), Mode: 0o644, Size: int64(len(content))}); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// layerOf is an image layer with one file.
func layerOf(t *testing.T, text string) []byte { return archiveOf(t, "hello", []byte(text)) }

func configOf(platform ocispec.Platform, layer []byte) ocispec.Image {
	return ocispec.Image{
		Platform: platform,
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	}
}

func dockerArchive(t *testing.T, name, text string, platform ocispec.Platform) []byte {
	layer := layerOf(t, text)
	return archiveOf(t, "config.json", configOf(platform, layer), "layer.tar", layer,
		"manifest.json", []map[string]any{{"Config": "config.json", "RepoTags": []string{name}, "Layers": []string{"layer.tar"}}})
}

// ociArchive is an OCI layout of one image for several platforms; blobs of a platform
// in absent are left out.
func ociArchive(t *testing.T, name, text string, absent string, all ...ocispec.Platform) []byte {
	t.Helper()
	files := []any{"oci-layout", ocispec.ImageLayout{Version: "1.0.0"}}
	blob := func(v any, mediaType string, leaveOut bool) ocispec.Descriptor {
		b, ok := v.([]byte)
		if !ok {
			var err error
			if b, err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
		d := digest.FromBytes(b)
		if !leaveOut {
			files = append(files, "blobs/sha256/"+d.Encoded(), b)
		}
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
	}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
	for _, p := range all {
		out := p.Architecture == absent
		layer := layerOf(t, text+p.Architecture)
		m := blob(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2},
			MediaType: ocispec.MediaTypeImageManifest,
			Config:    blob(configOf(p, layer), ocispec.MediaTypeImageConfig, out),
			Layers:    []ocispec.Descriptor{blob(layer, ocispec.MediaTypeImageLayer, out)},
		}, ocispec.MediaTypeImageManifest, out)
		m.Platform = &p
		index.Manifests = append(index.Manifests, m)
	}
	top := blob(index, ocispec.MediaTypeImageIndex, false)
	if len(all) == 1 && absent == "" {
		// As tools write an image for one platform: no index, no platform.
		top = index.Manifests[0]
		top.Platform = nil
	}
	top.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	files = append(files, "index.json", ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, Manifests: []ocispec.Descriptor{top}})
	return archiveOf(t, files...)
}

func linux(arch string) ocispec.Platform { return ocispec.Platform{OS: "linux", Architecture: arch} }

func TestRealDaemon(t *testing.T) {
	d := realDaemon(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	version, err := d.Version(ctx)
	if err != nil || version == "" || strings.HasPrefix(version, "v") {
		t.Errorf("version %q, %v", version, err)
	}
	t.Log("containerd", version)

	t.Run("plugins and health", func(t *testing.T) {
		all, err := d.Plugins(ctx)
		if err != nil {
			t.Fatal(err)
		}
		states := map[State]int{}
		for _, p := range all {
			states[p.State]++
			if (p.State == StateOK) != (p.Err == "") {
				t.Errorf("%+v", p)
			}
		}
		if states[StateOK] < 20 {
			t.Errorf("states %v", states)
		}
		if err := d.Health(ctx, "native"); err != nil {
			t.Errorf("health: %v", err)
		}
		err = d.Health(ctx, "nonesuch")
		if err == nil || !strings.Contains(err.Error(), "snapshotter io.containerd.snapshotter.v1.nonesuch is not loaded") {
			t.Errorf("health with an unknown snapshotter: %v", err)
		}
	})

	t.Run("no tasks", func(t *testing.T) {
		if tasks, err := d.Tasks(ctx); err != nil || len(tasks) != 0 {
			t.Errorf("tasks %v, %v", tasks, err)
		}
	})

	amd64 := ImportOptions{Snapshotter: "native", Platform: "linux/amd64"}
	t.Run("docker archive", func(t *testing.T) {
		b := gzipped(t, dockerArchive(t, "app:1", "one", linux("amd64")))
		got, err := d.Import(ctx, bytes.NewReader(b), amd64)
		if err != nil || len(got) != 1 || got[0].Name != "docker.io/library/app:1" || !got[0].Changed || got[0].Pinned {
			t.Fatalf("got %+v, %v", got, err)
		}
		wantReady(ctx, t, d, got[0].Name)

		// CRI marks the images of its namespace; that and the pin live side by side.
		awaitLabel(ctx, t, d, got[0].Name, "io.cri-containerd.image")
		pin := amd64
		pin.Pin = true
		for i, changed := range []bool{true, false} {
			again, err := d.Import(ctx, bytes.NewReader(b), pin)
			want := []Image{{Name: got[0].Name, Digest: got[0].Digest, Pinned: true, Changed: changed}}
			if diff := cmp.Diff(want, again); err != nil || diff != "" {
				t.Errorf("pinned import no. %d: %v (-want +got):\n%s", i+1, err, diff)
			}
		}
		img, err := d.c.ImageService().Get(namespaces.WithNamespace(ctx, "k8s.io"), got[0].Name)
		if err != nil || img.Labels["io.cri-containerd.pinned"] != "pinned" || img.Labels["io.cri-containerd.image"] != "managed" {
			t.Errorf("labels %v, %v", img.Labels, err)
		}
		// An import that does not ask for a pin takes none away.
		if again, err := d.Import(ctx, bytes.NewReader(b), amd64); err != nil || again[0].Changed || !again[0].Pinned {
			t.Errorf("import without pin: %+v, %v", again, err)
		}
		// The same name with other content is another image.
		other, err := d.Import(ctx, bytes.NewReader(dockerArchive(t, "app:1", "two", linux("amd64"))), amd64)
		if err != nil || !other[0].Changed || other[0].Digest == got[0].Digest || !other[0].Pinned {
			t.Errorf("new content: %+v, %v", other, err)
		}
		list, err := d.Images(ctx, "")
		if err != nil || !slices.ContainsFunc(list, func(i Image) bool { return i.Name == other[0].Name && i.Digest == other[0].Digest && i.Pinned }) {
			t.Errorf("images %+v, %v", list, err)
		}
	})

	t.Run("oci archive for several platforms, without the other's blobs", func(t *testing.T) {
		b := zstded(t, ociArchive(t, "registry.example.com/multi:1", "x", "arm64", linux("amd64"), linux("arm64")))
		got, err := d.Import(ctx, bytes.NewReader(b), amd64)
		if err != nil || len(got) != 1 || got[0].Name != "registry.example.com/multi:1" {
			t.Fatalf("got %+v, %v", got, err)
		}
		wantReady(ctx, t, d, got[0].Name)
	})

	t.Run("oci archive for one platform", func(t *testing.T) {
		got, err := d.Import(ctx, bytes.NewReader(ociArchive(t, "single:1", "x", "", linux("amd64"))), amd64)
		if err != nil || len(got) != 1 || got[0].Name != "docker.io/library/single:1" {
			t.Fatalf("got %+v, %v", got, err)
		}
		wantReady(ctx, t, d, got[0].Name)
	})

	t.Run("several images, one without a layer", func(t *testing.T) {
		b := severalImages(t, []string{"first:1", "halved:1", "last:1"}, []string{"halved:1"})
		got, err := d.Import(ctx, bytes.NewReader(b), amd64)
		if err == nil || !strings.Contains(err.Error(), "import image docker.io/library/halved:1: the archive lacks a part") || strings.Contains(err.Error(), "\n") {
			t.Errorf("error %v", err)
		}
		if len(got) != 2 || got[0].Name != "docker.io/library/first:1" || got[1].Name != "docker.io/library/last:1" {
			t.Fatalf("got %+v", got)
		}
		for _, img := range got {
			wantReady(ctx, t, d, img.Name)
		}
		there, err := d.Present(ctx, "", []string{got[0].Name, "docker.io/library/halved:1"})
		if diff := cmp.Diff(map[string]string{got[0].Name: got[0].Digest}, there); diff != "" || err != nil {
			t.Errorf("%v, present (-want +got):\n%s", err, diff)
		}
	})

	t.Run("what was looked into", func(t *testing.T) {
		b := ociArchive(t, "known:1", "known", "", linux("arm64"), linux("amd64"))
		known := amd64
		known.Archive = inspected(t, b)
		got, err := d.Import(ctx, bytes.NewReader(b), known)
		if err != nil || len(got) != 1 || !got[0].Changed || got[0].Digest != known.Archive.Images[0].Digest {
			t.Fatalf("got %+v, %v", got, err)
		}
		wantReady(ctx, t, d, got[0].Name)
		if ok, err := d.Has(ctx, got[0].Name, got[0].Digest, "native", "linux/amd64"); !ok || err != nil {
			t.Errorf("has %v, %v", ok, err)
		}
		if ok, err := d.Has(ctx, got[0].Name, got[0].Digest, "native", "linux/arm64"); ok || err != nil {
			t.Errorf("for another platform: has %v, %v", ok, err)
		}
		if _, err := d.Import(ctx, iotestErr{errors.New("it was read")}, known); err != nil {
			t.Errorf("once more: %v", err)
		}
		if got, err := d.Import(ctx, bytes.NewReader(b), amd64); err != nil || got[0].Changed {
			t.Errorf("once more, read: %+v, %v", got, err)
		}
		wantReady(ctx, t, d, got[0].Name)
	})

	t.Run("pins", func(t *testing.T) {
		const name = "docker.io/library/single:1"
		if _, err := d.Import(ctx, bytes.NewReader(ociArchive(t, "single:1", "x", "", linux("amd64"))), amd64); err != nil {
			t.Fatal(err)
		}
		awaitLabel(ctx, t, d, name, "io.cri-containerd.image")
		for _, c := range []struct {
			set  func(context.Context, string, []string) error
			want string
		}{{d.Pin, "pinned"}, {d.Pin, "pinned"}, {d.Unpin, ""}, {d.Unpin, ""}} {
			if err := c.set(ctx, "", []string{"docker.io/library/nonesuch:1", name}); err != nil {
				t.Error(err)
			}
			img, err := d.c.ImageService().Get(namespaces.WithNamespace(ctx, "k8s.io"), name)
			if err != nil || img.Labels["io.cri-containerd.pinned"] != c.want || img.Labels["io.cri-containerd.image"] != "managed" {
				t.Errorf("labels %v, %v, want the pin %q", img.Labels, err, c.want)
			}
		}
	})

	t.Run("what is there of the images", func(t *testing.T) {
		all, err := d.ImageStates(ctx, "", "linux/amd64", "native")
		if err != nil || len(all) < 3 {
			t.Fatalf("got %+v, %v", all, err)
		}
		for _, s := range all {
			if !s.Complete || s.Artifact || !slices.Equal(s.Platforms, []string{"linux/amd64"}) || s.Missing != nil {
				t.Errorf("%+v, want it complete", s)
			}
		}
		const multi = "registry.example.com/multi:1"
		one, err := d.ImageStates(ctx, "k8s.io", "linux/arm64", "native", multi)
		if err != nil || len(one) != 1 || one[0].Name != multi || one[0].Complete || len(one[0].Missing) != 1 {
			t.Errorf("for another platform: %+v, %v", one, err)
		}
		if none, err := d.ImageStates(ctx, "default", "", ""); err != nil || len(none) != 0 {
			t.Errorf("in a namespace without images: %+v, %v", none, err)
		}
		if all, err := d.Namespaces(ctx); err != nil || !slices.Contains(all, "k8s.io") {
			t.Errorf("namespaces %v, %v", all, err)
		}
	})

	t.Run("deprecations", func(t *testing.T) {
		all, err := d.Deprecations(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, w := range all {
			t.Logf("%+v", w)
			if !strings.HasPrefix(w.ID, "io.containerd.deprecation/") || w.Message == "" || w.Last.IsZero() {
				t.Errorf("%+v", w)
			}
		}
	})

	t.Run("after an upload that broke off", func(t *testing.T) {
		big := func(text string) []byte {
			return dockerArchive(t, "big:1", strings.Repeat(text, 1<<20), linux("amd64"))
		}
		// The upload of layer.tar ends in its middle; the other's file has the same name.
		broken := big("no")
		if _, err := d.Import(ctx, bytes.NewReader(broken[:len(broken)/2]), amd64); err == nil {
			t.Error("half an archive is imported")
		}
		got, err := d.Import(ctx, bytes.NewReader(big("go")), amd64)
		if err != nil {
			t.Fatal(err)
		}
		wantReady(ctx, t, d, got[0].Name)
	})

	t.Run("what cannot be imported", func(t *testing.T) {
		whole := gzipped(t, dockerArchive(t, "bad:1", "bad", linux("amd64")))
		crc := slices.Clone(whole)
		crc[len(crc)-5]++
		for name, c := range map[string]struct {
			archive []byte
			want    string
			is      error
		}{
			"other platform, docker": {dockerArchive(t, "bad:1", "bad", linux("arm64")), "docker.io/library/bad:1 for other platforms", ErrNoImage},
			"other platform, oci":    {ociArchive(t, "bad:1", "bad", "", linux("arm64"), linux("s390x")), "for linux/amd64", ErrNoImage},
			"other platform, silent": {ociArchive(t, "bad:1", "bad", "", linux("arm64")), "docker.io/library/bad:1 for other platforms", ErrNoImage},
			"tag alone":              {ociArchive(t, "latest", "bad", "", linux("amd64")), `"latest"`, ErrNoImage},
			"parts missing":          {ociArchive(t, "bad:1", "missing", "amd64", linux("amd64"), linux("arm64")), "lacks a part", nil},
			"not an image":           {archiveOf(t, "hello", []byte("x")), "unrecognized image format", nil},
			"not a tar":              {[]byte(strings.Repeat("no", 1000)), "tar", nil},
			"truncated gzip":         {whole[:len(whole)/2], "unexpected EOF", nil},
			"damaged gzip":           {crc, "checksum", nil},
			"empty":                  {nil, "empty", nil},
		} {
			got, err := d.Import(ctx, bytes.NewReader(c.archive), amd64)
			if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
				t.Errorf("%s: got %+v, %v; want an error about %q", name, got, err, c.want)
			}
		}
		if _, err := d.Import(ctx, bytes.NewReader(whole), ImportOptions{Snapshotter: "nonesuch", Platform: "linux/amd64"}); err == nil {
			t.Error("import into an unknown snapshotter is no error")
		}
		if _, err := d.Import(ctx, bytes.NewReader(whole), ImportOptions{Platform: "a/b/c/d"}); err == nil {
			t.Error("import for an impossible platform is no error")
		}
		list, err := d.Images(ctx, "")
		if err != nil || slices.ContainsFunc(list, func(i Image) bool { return strings.Contains(i.Name, "bad") }) {
			t.Errorf("a failed import left an image: %+v, %v", list, err)
		}
		leases, err := d.c.LeasesService().List(namespaces.WithNamespace(ctx, "k8s.io"))
		if err != nil || len(leases) != 0 {
			t.Errorf("leases left: %v, %v", leases, err)
		}
	})
}

// wantReady shows that an image is whole after the daemon has collected its garbage.
func wantReady(ctx context.Context, t *testing.T, d *Client, name string) {
	t.Helper()
	elsewhere := namespaces.WithNamespace(ctx, "elsewhere") // out of CRI's sight
	ctx = namespaces.WithNamespace(ctx, "k8s.io")
	service := d.c.ImageService()
	img, err := service.Get(ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := service.Create(elsewhere, images.Image{Name: "rubbish:1", Target: img.Target}); err != nil {
		t.Fatal(err)
	}
	if err := service.Delete(elsewhere, "rubbish:1", images.SynchronousDelete()); err != nil {
		t.Fatal(err)
	}
	whole := client.NewImage(d.c, img)
	if ok, err := whole.IsUnpacked(ctx, "native"); err != nil || !ok {
		t.Errorf("%s: unpacked %v, %v", name, ok, err)
	}
	if _, err := whole.Size(ctx); err != nil {
		t.Errorf("%s: %v", name, err)
	}
}

// awaitLabel waits until CRI has marked an image; it tells nobody when it does.
func awaitLabel(ctx context.Context, t *testing.T, d *Client, name, label string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(namespaces.WithNamespace(ctx, "k8s.io"), 20*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		img, err := d.c.ImageService().Get(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		if img.Labels[label] != "" {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s has no label %s: %v", name, label, img.Labels)
		case <-tick.C:
		}
	}
}

// unpackTar is what archiveOf packed.
func unpackTar(t *testing.T, b []byte) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(b)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return out
		}
		if err != nil {
			t.Fatal(err)
		}
		if out[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
}

func decode(t *testing.T, b []byte, v any) {
	t.Helper()
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}
