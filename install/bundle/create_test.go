package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/elf/elftest"
	"github.com/nodeprep/nodeprep/profiles"
)

// program is a small program of an architecture, which differs by its name.
func program(arch, name string) string {
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]
	return string(elftest.Program{Machine: machine}.Bytes()) + name
}

// ociArchive is an image archive of a small image for some architectures.
func ociArchive(t *testing.T, name string, arches ...string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	file := func(name string, data []byte) {
		if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}), write(w, data)); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(mediaType string, v any) ocispec.Descriptor {
		data, ok := v.([]byte)
		if !ok {
			var err error
			if data, err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		file("blobs/sha256/"+d.Digest.Encoded(), data)
		return d
	}
	versioned := specs.Versioned{SchemaVersion: 2}
	var manifests []ocispec.Descriptor
	for _, arch := range arches {
		layer := blob(ocispec.MediaTypeImageLayer, plainTar(t, "program", 100+len(arch)))
		platform := ocispec.Platform{Architecture: arch, OS: "linux"}
		config := blob(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}}})
		d := blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: versioned, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}})
		d.Platform = &platform
		manifests = append(manifests, d)
	}
	root := manifests[0]
	if len(manifests) > 1 {
		root = blob(ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: versioned, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests})
	}
	root.Annotations = map[string]string{"io.containerd.image.name": name}
	index, err := json.Marshal(ocispec.Index{Versioned: versioned, Manifests: []ocispec.Descriptor{root}})
	if err != nil {
		t.Fatal(err)
	}
	file(ocispec.ImageIndexFile, index)
	file(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`))
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// site is a folder with a profile and what it names, and a folder with release files.
type site struct {
	dir, artifacts string
	profile        string
	files          map[string][]byte // below dir
}

// newSite has a profile that extends another, a certificate, images for both architectures
// together and apart, and release files of both.
func newSite(t *testing.T) *site {
	t.Helper()
	s := &site{dir: t.TempDir(), artifacts: t.TempDir(), files: map[string][]byte{
		"base/base.yaml":   []byte("apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nextends: kubernetes\nregistries: {r.example.com: {ca: ca.pem}}\n"),
		"base/ca.pem":      []byte("a certificate"),
		"images/pause.tar": ociArchive(t, "registry.k8s.io/pause:3.10.2", "amd64", "arm64"),
		"images/amd64.tar": gzipped(t, ociArchive(t, "example.com/app:1", "amd64")),
		"images/arm64.tar": ociArchive(t, "example.com/app:1", "arm64"),
	}}
	s.profile = `apiVersion: nodeprep/v1alpha1
kind: NodeProfile
extends: base/base.yaml
kubernetes: {version: "1.36"}
containerd: {version: 2.3.4, variant: dynamic, sandboxImage: "registry.k8s.io/pause:3.10.2"}
runc: {version: 1.4.3}
cni: {version: none}
crictl: {version: none}
images: [{file: images/pause.tar}, {file: images/amd64.tar}, {file: images/arm64.tar, pin: false}]
sources: [{dir: ../elsewhere}]
`
	for _, arch := range []string{"amd64", "arm64"} {
		var b bytes.Buffer
		w := tar.NewWriter(&b)
		for _, name := range []string{"ctr", "containerd", "containerd-shim-runc-v2"} {
			data := program(arch, name) + strings.Repeat("x", 100_000)
			if err := errors.Join(w.WriteHeader(&tar.Header{Name: "bin/" + name, Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg}), write(w, []byte(data))); err != nil {
				t.Fatal(err)
			}
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		s.release(t, "containerd-2.3.4-linux-"+arch+".tar.gz", gzipped(t, b.Bytes()))
		s.release(t, "runc."+arch, []byte(program(arch, "runc")))
		s.release(t, "nodeprep-1.2.3-linux-"+arch, []byte(program(arch, "nodeprep")))
	}
	return s
}

func (s *site) release(t *testing.T, name string, data []byte) {
	t.Helper()
	sum := fmt.Appendf(nil, "%x  %s\n", sha256.Sum256(data), name)
	if err := errors.Join(os.WriteFile(filepath.Join(s.artifacts, name), data, 0o644), os.WriteFile(filepath.Join(s.artifacts, name+".sha256sum"), sum, 0o644)); err != nil {
		t.Fatal(err)
	}
}

// options are what the command line makes of a site.
func (s *site) options(t *testing.T, arches ...string) CreateOptions {
	t.Helper()
	s.files["node.yaml"] = []byte(s.profile)
	for name, data := range s.files {
		file := filepath.Join(s.dir, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	p, list := profiles.Loader{Dir: s.dir, Read: os.ReadFile}.Load("node.yaml")
	if list.HasErrors() {
		t.Fatal(list)
	}
	o := CreateOptions{Nodeprep: "1.2.3", Profile: p, Read: func(f profiles.LocalFile) ([]byte, error) { return os.ReadFile(f.Path) }}
	store := release.Store{Dirs: []string{s.artifacts}, Offline: true}
	find := func(a desired.Artifact) release.Located {
		// The catalogue knows upstream's own.
		a.SHA256, a.SHA256From = "", ""
		l, err := store.Locate(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	lock := &release.Lock{File: LockName}
	for _, arch := range arches {
		spec, list := profiles.Resolve(p, profiles.Facts{Arch: arch, SystemdInit: true})
		if list.HasErrors() {
			t.Fatal(list)
		}
		target := Target{Arch: arch, Sandbox: spec.Containerd.SandboxImage, Lock: lock, LockIsOurs: true}
		artifacts, list := release.Artifacts([]release.Request{
			{Component: "containerd", Version: spec.Containerd.Version, Arch: arch, Static: spec.Containerd.Static},
			{Component: "runc", Version: spec.Runc.Version, Arch: arch},
		})
		if list.HasErrors() {
			t.Fatal(list)
		}
		for _, a := range artifacts {
			l := find(a)
			target.Artifacts = append(target.Artifacts, l)
			lock.Entries = append(lock.Entries, release.Locked{
				Component: a.Component, Version: a.Version, Arch: a.Arch, File: l.File, URL: a.URL, Size: l.Size, SHA256: l.SHA256, From: "checksum file " + l.SHA256From,
			})
		}
		target.Program = find(desired.Artifact{Component: Program, Version: "1.2.3", Arch: arch, Files: []string{"nodeprep-1.2.3-linux-" + arch}})
		o.Targets = append(o.Targets, target)
	}
	return o
}

// create makes a bundle of a site that has no faults.
func (s *site) create(t *testing.T, arches ...string) (file string, made *Made) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "bundle.tar")
	made, list, err := Create(t.Context(), file, s.options(t, arches...))
	if err != nil || len(list) > 0 {
		t.Fatal(err, list)
	}
	onlyFile(t, file)
	return file, made
}

// What Create makes can be opened; each architecture has its releases, its images and a
// profile and lock that agree with them.
func TestCreate(t *testing.T) {
	file, made := newSite(t).create(t, "amd64", "arm64")
	ctx := t.Context()
	b, err := Open(ctx, file, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Digest() != made.Digest || !slices.Equal(b.Arches(), []string{"amd64", "arm64"}) {
		t.Errorf("%s for %v", b.Digest(), b.Arches())
	}
	for i, arch := range b.Arches() {
		node, err := b.For(ctx, arch)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(made.Platforms[i], node.Config); diff != "" {
			t.Error(diff)
		}
		var got []string
		for _, c := range node.Config.Components {
			got = append(got, fmt.Sprint(c.Name, " ", c.Version, " ", c.File, " ", c.SHA256From))
			for _, m := range c.Members {
				if m.Mode != 0o755 || !strings.HasPrefix(m.Path, "usr/local/") {
					t.Errorf("member %+v", m)
				}
			}
		}
		want := []string{
			"containerd 2.3.4 containerd-2.3.4-linux-" + arch + ".tar.gz checksum file containerd-2.3.4-linux-" + arch + ".tar.gz.sha256sum",
			"runc 1.4.3 runc." + arch + " checksum file runc." + arch + ".sha256sum", "nodeprep 1.2.3  ",
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
		var images []string
		for _, img := range node.Config.Images {
			images = append(images, fmt.Sprint(img.File, " ", img.Packed, " ", img.Names))
		}
		want = []string{"images/pause.tar true [registry.k8s.io/pause:3.10.2]", "images/" + arch + ".tar " + fmt.Sprint(arch == "arm64") + " [example.com/app:1]"}
		if diff := cmp.Diff(want, images); diff != "" {
			t.Error(diff)
		}
		if ca, err := node.File(ctx, "files/ca.pem"); err != nil || string(ca) != "a certificate" {
			t.Errorf("certificate %q, %v", ca, err)
		}

		p, list := profiles.Loader{Bundle: "bundle.tar", Read: func(name string) ([]byte, error) {
			return node.File(ctx, strings.TrimPrefix(name, profiles.BundleRoot))
		}}.Load(profiles.BundleName)
		if list.HasErrors() {
			t.Fatal(list)
		}
		var named []string
		for _, img := range p.Images {
			named = append(named, img.File.Path)
		}
		if diff := cmp.Diff([]string{"bundle:/images/pause.tar", "bundle:/images/" + arch + ".tar"}, named); diff != "" {
			t.Error(diff)
		}
		text, err := node.File(ctx, LockName)
		if err != nil {
			t.Fatal(err)
		}
		lock, list := release.ReadLock(LockName, text)
		if list.HasErrors() || len(lock.Entries) != 2 || !slices.Equal(lock.Arches(), []string{arch}) {
			t.Errorf("%v\n%s", list, text)
		}
		for _, c := range node.Config.Components[:2] {
			if e := lock.Find(c.Name, c.Version, arch, false); e == nil || e.SHA256 != c.SHA256 || e.Size == 0 || e.File != c.File || e.From != c.SHA256From {
				t.Errorf("lock has %+v for %+v", e, c)
			}
		}
	}
}

// Two machines, with other folders, other ways to name the profile and as many cores as they
// like, make the same file.
func TestCreateIsReproducible(t *testing.T) {
	read := func(file string) []byte {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	first, both := newSite(t).create(t, "amd64", "arm64")
	before := runtime.GOMAXPROCS(1)
	second, _ := newSite(t).create(t, "arm64", "amd64")
	runtime.GOMAXPROCS(before)
	if !bytes.Equal(read(first), read(second)) {
		t.Error("they differ")
	}
	_, one := newSite(t).create(t, "amd64")
	for digest, size := range one.Layers {
		if both.Layers[digest] != size {
			t.Errorf("layer %s of the bundle for amd64 is not in the one for both", digest)
		}
	}
	if diff := cmp.Diff(one.Platforms[0], both.Platforms[0]); diff != "" {
		t.Error(diff)
	}
}

// The lock that a bundle has is the profile's, of it what the bundle has, with the
// signatures that were verified for it.
func TestCreateWithLock(t *testing.T) {
	s := newSite(t)
	o := s.options(t, "amd64")
	lock := &release.Lock{File: "nodeprep.lock"}
	for _, l := range append(s.options(t, "arm64").Targets[0].Artifacts, o.Targets[0].Artifacts...) {
		a := l.Artifact
		e := release.Locked{Component: a.Component, Version: a.Version, Arch: a.Arch, File: l.File, URL: a.URL, Size: l.Size, SHA256: l.SHA256, From: "measured ./here/" + l.File}
		if a.Component == "runc" {
			e.Signature = &release.Signature{File: "runc.amd64.asc", Signer: "Somebody", Fingerprint: "ABCD"}
		}
		lock.Entries = append(lock.Entries, e)
	}
	o.Targets[0].Lock, o.Targets[0].LockIsOurs = lock, false
	file := filepath.Join(t.TempDir(), "bundle.tar")
	made, list, err := Create(t.Context(), file, o)
	if err != nil || list.HasErrors() {
		t.Fatal(err, list)
	}
	if c := made.Platforms[0].Components; c[0].Signature != nil || c[1].Signature == nil || c[1].Signature.Signer != "Somebody" {
		t.Errorf("signatures of %+v", c)
	}
	b, err := Open(t.Context(), file, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	node, err := b.For(t.Context(), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	got, err := node.File(t.Context(), LockName)
	if err != nil {
		t.Fatal(err)
	}
	want := &release.Lock{Entries: lock.Entries[2:]}
	if diff := cmp.Diff(string(want.Marshal()), string(got)); diff != "" {
		t.Error(diff)
	}
}

// Images from a registry are added to the profile's, for each architecture its own.
func TestCreatePulls(t *testing.T) {
	s := newSite(t)
	o := s.options(t, "amd64", "arm64")
	o.Images = []PulledImage{{Name: "registry.example.com/app:1", From: "localhost:5000/app:1"}}
	o.Pull = func(_ context.Context, image PulledImage, arch string, w io.Writer, progress func(done, total int64)) error {
		progress(1, 2)
		return write(w, ociArchive(t, image.Name, arch))
	}
	file := filepath.Join(t.TempDir(), "bundle.tar")
	made, list, err := Create(t.Context(), file, o)
	if err != nil || list.HasErrors() {
		t.Fatal(err, list)
	}
	var layers []digest.Digest
	for _, p := range made.Platforms {
		img := p.Images[len(p.Images)-1]
		if img.File != "images/registry.example.com_app_1.tar" || !slices.Equal(img.Names, []string{"registry.example.com/app:1"}) {
			t.Errorf("image %+v", img)
		}
		if want := fmt.Sprintf("%x", sha256.Sum256(ociArchive(t, img.Names[0], p.Architecture))); img.SHA256 != want {
			t.Errorf("%s has another image", p.Architecture)
		}
		layers = append(layers, img.Layer)
	}
	if layers[0] == layers[1] {
		t.Error("both architectures have the same image")
	}

	o.Force = true
	o.Pull = func(_ context.Context, image PulledImage, arch string, w io.Writer, _ func(done, total int64)) error {
		return errors.Join(write(w, []byte("begun")), errors.New("the registry does not answer for "+arch))
	}
	_, _, err = Create(t.Context(), file, o)
	for _, arch := range []string{"amd64", "arm64"} {
		if err == nil || !strings.Contains(err.Error(), "the registry does not answer for "+arch) {
			t.Errorf("got %v", err)
		}
	}
	onlyFile(t, file)
}

// What is wrong with profile and images is told at once, with its lines, and nothing is
// made of it.
func TestCreateFaults(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*site)
		arches []string
		want   []string
	}{
		"secrets": {func(s *site) {
			s.files["base/ca.pem"] = []byte("-----BEGIN PRIVATE KEY-----")
			s.profile += "systemd: {proxy: {http: \"http://u:hunter2@proxy:3128\"}}\n"
		}, []string{"amd64"}, []string{
			"base/base.yaml:4:34: registries.r.example.com.ca: this file holds a private key",
			"node.yaml:11:25: systemd.proxy.http: a secret stands in the profile",
		}},
		"no archive": {func(s *site) { s.files["images/pause.tar"] = bytes.Repeat([]byte("this is no archive"), 100) }, []string{"amd64"}, []string{
			"node.yaml:9:17: images[0].file: cannot use images/pause.tar: ", "not an archive of images",
		}},
		"cut short": {func(s *site) { s.files["images/pause.tar"] = s.files["images/pause.tar"][:5000] }, []string{"amd64"}, []string{
			"cannot use images/pause.tar: ", "cut short",
		}},
		"without a platform": {func(s *site) {
			s.profile = strings.Replace(s.profile, ", {file: images/arm64.tar, pin: false}", "", 1)
		}, []string{"amd64", "arm64"}, []string{
			"node.yaml:9:43: images[1].file: cannot use images/amd64.tar: no image for linux/arm64 in the archive (example.com/app:1 is for linux/amd64)",
			"make a bundle for each architecture",
		}},
		"absent": {func(s *site) { s.profile = strings.Replace(s.profile, "images/pause.tar", "images/none.tar", 1) }, []string{"amd64"}, []string{
			"cannot use images/none.tar: ", "no such file",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSite(t)
			c.change(s)
			file := filepath.Join(t.TempDir(), "bundle.tar")
			made, list, err := Create(t.Context(), file, s.options(t, c.arches...))
			if err != nil || made != nil || !list.HasErrors() {
				t.Errorf("made %v, %v", made, err)
			}
			var text strings.Builder
			for _, d := range list {
				fmt.Fprintln(&text, d)
			}
			for _, want := range c.want {
				if !strings.Contains(text.String(), want) {
					t.Errorf("want %s in\n%s", want, &text)
				}
			}
			if strings.Contains(text.String(), "hunter2") {
				t.Errorf("a secret is told: %s", &text)
			}
			onlyFile(t, filepath.Join(filepath.Dir(file), "nothing"))
		})
	}
}

// A bundle without the image of pods is made, but not without a word.
func TestCreateWarnsOfSandbox(t *testing.T) {
	s := newSite(t)
	s.profile = strings.Replace(s.profile, "{file: images/pause.tar}, ", "", 1)
	o := s.options(t, "amd64")
	_, list, err := Create(t.Context(), filepath.Join(t.TempDir(), "bundle.tar"), o)
	if err != nil || len(list) != 1 || !strings.Contains(list[0].String(), "no image of the bundle is registry.k8s.io/pause:3.10.2 for linux/amd64") {
		t.Errorf("%v, %v", list, err)
	}
	o.Images = []PulledImage{{Name: "registry.k8s.io/pause:3.10.2"}}
	o.Pull = func(_ context.Context, image PulledImage, arch string, w io.Writer, _ func(done, total int64)) error {
		return write(w, ociArchive(t, image.Name, arch))
	}
	if _, list, err = Create(t.Context(), filepath.Join(t.TempDir(), "bundle.tar"), o); err != nil || len(list) > 0 {
		t.Errorf("%v, %v", list, err)
	}
}

// A release file is held to its digest and architecture before the bundle exists, and all
// that are wrong are told.
func TestCreateVerifiesReleases(t *testing.T) {
	s := newSite(t)
	o := s.options(t, "amd64", "arm64")
	damage := func(name string, data []byte) {
		if err := os.WriteFile(filepath.Join(s.artifacts, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	damage("runc.amd64", []byte(program("amd64", "runC")))
	damage("nodeprep-1.2.3-linux-arm64", []byte(program("arm64", "nodeprap")))
	file := filepath.Join(t.TempDir(), "bundle.tar")
	_, _, err := Create(t.Context(), file, o)
	if d, ok := errors.AsType[*release.DigestError](err); !ok || !strings.HasSuffix(d.From, ".sha256sum") {
		t.Errorf("got %v", err)
	}
	for _, want := range []string{"runc.amd64", "nodeprep-1.2.3-linux-arm64"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s in it", err, want)
		}
	}
	onlyFile(t, filepath.Join(filepath.Dir(file), "nothing"))

	s = newSite(t)
	s.release(t, "runc.amd64", []byte(program("arm64", "runc")))
	_, _, err = Create(t.Context(), file, s.options(t, "amd64"))
	if err == nil || !strings.Contains(err.Error(), "pack runc.amd64: runc: ") {
		t.Errorf("a program for another architecture: %v", err)
	}
}
