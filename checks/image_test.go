package checks

import (
	"archive/tar"
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/profiles"
)

// pauseImage is the default of 2.4.
const pauseImage = "registry.k8s.io/pause:3.10.2"

// storedImages are images of a namespace, complete unless change says otherwise.
func storedImages(names ...string) []daemon.Image {
	var out []daemon.Image
	for _, name := range names {
		out = append(out, daemon.Image{Name: name, Digest: "sha256:" + name})
	}
	return out
}

func onAMD64(o *Outside) { o.Facts.Arch, o.Facts.ArchKnown = "amd64", true }

// savedImages is what "docker save" makes of images.
func savedImages(t *testing.T, names ...string) string {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	content := `[{"RepoTags":["` + strings.Join(names, `","`) + `"]}]`
	if err := w.WriteHeader(&tar.Header{Name: "manifest.json", Mode: 0o644, Size: int64(len(content))}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write([]byte(content)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestSandboxImage(t *testing.T) {
	const id = "images/sandbox"
	in := func(k8s, def []daemon.Image) *containerd {
		return &containerd{images: map[string][]daemon.Image{"k8s.io": k8s, "default": def}}
	}
	expect(t, fake(t, daemonFiles(nil), runs(in(storedImages(pauseImage), nil), "2.4.2")), id, want{verdict: Pass, object: pauseImage})

	// The classic mistake.
	expect(t, fake(t, daemonFiles(nil), runs(in(nil, storedImages(pauseImage)), "2.4.2")), id, want{
		verdict: Fail, object: pauseImage, observed: "only in namespace default", place: "containerd's default",
		remedy: "ctr -n default images export --local - registry.k8s.io/pause:3.10.2 | ctr -n k8s.io images import -",
	})
	native := daemonFiles(files{"/etc/containerd/config.toml": `version = 3
[grpc]
address = "/run/x.sock"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "native"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "mirror.example.com/pause:3.9"
`})
	expect(t, fake(t, native, runs(in(nil, storedImages("mirror.example.com/pause:3.9")), "2.1.9")), id, want{
		verdict: Fail, observed: "only in namespace default", place: "/etc/containerd/config.toml:7",
		remedy: "ctr -a /run/x.sock -n default images export --local - mirror.example.com/pause:3.9 | ctr -a /run/x.sock -n k8s.io images import --local --snapshotter native -",
	})
	old := daemonFiles(files{tomlPath: "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = \"native\"\n"})
	expect(t, fake(t, old, runs(in(nil, storedImages("registry.k8s.io/pause:3.6")), "1.6.39")), id, want{verdict: Fail, remedy: "images export - registry.k8s.io/pause:3.6 | ctr -n k8s.io images import --snapshotter native -"})

	// Nowhere: pulled at the first pod.
	expect(t, fake(t, daemonFiles(nil), runs(in(nil, nil), "2.4.2")), id, want{verdict: Warn, observed: "the first pod pulls it from registry.k8s.io"})
	mirrored := daemonFiles(files{
		"/etc/containerd/config.toml":                        "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = \"/etc/containerd/certs.d\"\n",
		"/etc/containerd/certs.d/registry.k8s.io/hosts.toml": "[host.\"https://m.example.com\"]\n",
	})
	expect(t, fake(t, mirrored, runs(in(nil, nil), "2.4.2")), id, want{verdict: Warn, observed: "from m.example.com, then registry.k8s.io"})

	// Nowhere, though the profile imports it.
	imports := func(path string) func(*Outside) {
		return withSpec(profiles.Spec{Images: []profiles.Image{{File: profiles.LocalFile{Path: path}}}})
	}
	with := daemonFiles(files{"/root/pause.tar": savedImages(t, pauseImage), "/root/other.tar": savedImages(t, "busybox:1")})
	expect(t, fake(t, with, runs(in(nil, nil), "2.4.2"), imports("/root/pause.tar")), id,
		want{verdict: Fail, observed: "the profile imports it from /root/pause.tar", remedy: "ctr -n k8s.io images import /root/pause.tar"})
	expect(t, fake(t, with, runs(in(nil, nil), "2.4.2"), imports("/root/other.tar")), id, want{verdict: Warn})
	expect(t, fake(t, with, runs(in(nil, nil), "2.4.2"), imports("/root/gone.tar")), id, want{verdict: Warn})

	// There, but of no use.
	state := func(s daemon.ImageState) *containerd {
		s.Name = pauseImage
		return &containerd{states: map[string][]daemon.ImageState{"k8s.io": {s}}}
	}
	n := fake(t, daemonFiles(nil), runs(state(daemon.ImageState{Platforms: []string{"linux/arm64"}}), "2.4.2"), onAMD64)
	expect(t, n, id, want{verdict: Fail, observed: "only for linux/arm64", wanted: "linux/amd64", remedy: "ctr -n k8s.io images rm " + pauseImage})
	expect(t, n, "images/platform", want{verdict: Pass}) // one fault, one check
	expect(t, fake(t, daemonFiles(nil), runs(state(daemon.ImageState{Missing: []string{"sha256:1", "sha256:2"}}), "2.4.2")), id,
		want{verdict: Fail, observed: "2 parts of it are missing, such as sha256:1"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestSandboxPinned(t *testing.T) {
	const id = "images/sandbox-pinned"
	with := func(pinned bool) *containerd {
		return &containerd{images: map[string][]daemon.Image{"k8s.io": {{Name: pauseImage, Pinned: pinned}}}}
	}
	expect(t, fake(t, daemonFiles(nil), runs(with(true), "2.4.2")), id, want{verdict: Pass})
	expect(t, fake(t, daemonFiles(nil), runs(with(false), "2.4.2")), id,
		want{verdict: Warn, observed: "not pinned", remedy: "ctr -n k8s.io images label " + pauseImage + " io.cri-containerd.pinned=pinned"})
	expect(t, fake(t, daemonFiles(nil), runs(with(false), "1.6.21")), id, want{verdict: Skip, observed: "1.6.21"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, "2.4.2")), id, want{verdict: Skip, observed: "not there"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestImagePlatforms(t *testing.T) {
	const id = "images/platform"
	states := func(all ...daemon.ImageState) func(*Outside) {
		return runs(&containerd{states: map[string][]daemon.ImageState{"k8s.io": all}}, "2.4.2")
	}
	state := func(name, digest string, s daemon.ImageState) daemon.ImageState {
		s.Name, s.Digest = name, digest
		return s
	}
	good := state("docker.io/library/a:1", "sha256:a", daemon.ImageState{Complete: true})
	chart := state("docker.io/library/chart:1", "sha256:c", daemon.ImageState{Artifact: true})
	expect(t, fake(t, daemonFiles(nil), states(good, chart), onAMD64), id, want{verdict: Pass, observed: "2 images, all complete for linux/amd64"})
	wasm := state("docker.io/library/wasm:1", "sha256:w", daemon.ImageState{Platforms: []string{"wasi/wasm"}})
	expect(t, fake(t, daemonFiles(nil), states(wasm), onAMD64), id, want{verdict: Pass})
	// What a container uses is not to be removed.
	used := fake(t, daemonFiles(nil), states(state("docker.io/library/b:1", "sha256:b", daemon.ImageState{Missing: []string{"sha256:1"}, InUse: true})), onAMD64)
	expect(t, used, id, want{verdict: Warn, object: "docker.io/library/b:1", remedy: "# pull it anew: crictl pull docker.io/library/b:1"})
	if r := results(t, used, id)[0]; strings.Contains(r.Remedy, "rm") {
		t.Errorf("an image in use is to be removed: %s", r.Remedy)
	}
	many := fake(t, daemonFiles(nil), states(good, state("docker.io/library/z:1", "sha256:z", daemon.ImageState{Unlooked: true})), onAMD64)
	expect(t, many, id, want{verdict: Pass, observed: "1 images"})
	if r := results(t, many, id)[0]; r.Note != "1 more images were not looked at" {
		t.Errorf("note %q", r.Note)
	}
	arm := daemon.ImageState{Platforms: []string{"linux/arm64"}}
	expect(t, fake(t, daemonFiles(nil), states(good, state("docker.io/library/b:1", "sha256:b", arm), state("sha256:id", "sha256:b", arm)), onAMD64), id, want{
		verdict: Fail, object: "docker.io/library/b:1", observed: "only for linux/arm64", wanted: "linux/amd64",
		remedy: "ctr -n k8s.io images rm docker.io/library/b:1 sha256:id",
	})
	expect(t, fake(t, daemonFiles(nil), states(state("docker.io/library/b:1", "sha256:b", daemon.ImageState{}))), id, want{verdict: Fail, observed: "without content", wanted: "this host"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestImageNames(t *testing.T) {
	const id = "images/names"
	with := func(names ...string) func(*Outside) {
		return runs(&containerd{images: map[string][]daemon.Image{"k8s.io": storedImages(names...)}}, "2.4.2")
	}
	const digest = "sha256:2a58006365deebfd2d49fb1e410e1961b539702f4e403407a7b93469b2e4d5fc"
	expect(t, fake(t, daemonFiles(nil), with("docker.io/library/busybox:1", pauseImage, "registry.k8s.io/pause@"+digest, digest)), id, want{verdict: Pass})
	expect(t, fake(t, daemonFiles(nil), with("busybox:1")), id, want{verdict: Warn, object: "busybox:1", wanted: "docker.io/library/busybox:1",
		remedy: "ctr -n k8s.io images tag busybox:1 docker.io/library/busybox:1\nctr -n k8s.io images rm busybox:1"})
	n := fake(t, daemonFiles(nil), with("busybox:1", "docker.io/library/busybox:1"))
	if r := results(t, n, id); len(r) != 1 || r[0].Remedy != "ctr -n k8s.io images rm busybox:1" {
		t.Errorf("with both names: %+v", r)
	}
	expect(t, fake(t, daemonFiles(nil), with("docker.io/busybox:1", "NO NAME")), id,
		want{verdict: Warn, object: "docker.io/busybox:1", wanted: "docker.io/library/busybox:1"}, want{verdict: Warn, object: "NO NAME", remedy: "images rm 'NO NAME'"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestDefaultNamespace(t *testing.T) {
	const id = "images/default-namespace"
	in := func(k8s, def []daemon.Image) func(*Outside) {
		return runs(&containerd{images: map[string][]daemon.Image{"k8s.io": k8s, "default": def}}, "2.4.2")
	}
	profile := withSpec(profiles.Spec{})
	expect(t, fake(t, daemonFiles(nil), in(storedImages("a:1"), nil)), id, want{verdict: Pass, observed: "no images"})
	expect(t, fake(t, daemonFiles(nil), in(storedImages("a:1"), storedImages("a:1"))), id, want{verdict: Pass, observed: "none that the kubelet misses"})
	expect(t, fake(t, daemonFiles(nil), in(nil, storedImages("a:1"))), id, want{verdict: Skip, observed: "no kubelet"})
	expect(t, fake(t, daemonFiles(nil), in(nil, storedImages("a:1", "b:1")), profile), id, want{verdict: Warn, observed: "a:1, b:1", place: "namespace default",
		remedy: "ctr -n default images export --local - a:1 b:1 | ctr -n k8s.io images import -"})
	expect(t, fake(t, daemonFiles(nil), in(storedImages("x:1"), storedImages("a:1", "b:1", "c:1", "d:1", "e:1", "f:1"))), id, want{verdict: Warn, observed: "e:1 and 1 more"})
	// The sandbox image has a check of its own.
	expect(t, fake(t, daemonFiles(nil), in(nil, storedImages(pauseImage)), profile), id, want{verdict: Pass})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestForeignNamespaces(t *testing.T) {
	const id = "images/foreign-namespaces"
	with := func(names ...string) func(*Outside) {
		images := map[string][]daemon.Image{}
		for _, name := range names {
			images[name] = nil
		}
		return runs(&containerd{images: images}, "2.4.2")
	}
	expect(t, fake(t, daemonFiles(nil), with("k8s.io", "default")), id, want{verdict: Pass, observed: "default k8s.io"})
	expect(t, fake(t, daemonFiles(nil), with("k8s.io", "moby", "own")), id,
		want{verdict: Warn, object: "moby", observed: "Docker", remedy: "ctr -n moby containers ls"}, want{verdict: Warn, object: "own", observed: "whose"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}
