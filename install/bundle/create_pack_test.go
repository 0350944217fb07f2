package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content/oci"
)

// inMemory is a file of a layer with a text.
func inMemory(path, text string) File {
	mode := os.FileMode(0o644)
	if strings.Contains(path, "bin/") {
		mode = 0o755
	}
	return File{Path: path, Mode: mode, Size: int64(len(text)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(text)), nil
	}}
}

// inMemoryPart is a component with these files.
func inMemoryPart(name, version string, files ...File) Part {
	c := Component{Name: name, Version: version}
	if name != Program {
		c.File, c.SHA256From = name+"-"+version+".tgz", "catalogue"
		c.SHA256 = fmt.Sprintf("%x", sha256.Sum256([]byte(c.File)))
	}
	return Part{Component: c, Files: func(context.Context, string) ([]File, error) { return files, nil }}
}

// inMemoryImage is an image archive of any bytes.
func inMemoryImage(file string, data []byte, names ...string) *ImageArchive {
	return &ImageArchive{File: file, Names: names, Size: int64(len(data)), Open: func() (io.ReadCloser, error) {
		return io.NopCloser(bytes.NewReader(data)), nil
	}}
}

// plainTar is a tar with one file of some size that packs well.
func plainTar(t *testing.T, name string, size int) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	data := bytes.Repeat([]byte(name+"\n"), size/len(name)+1)[:size]
	if err := errors.Join(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size)}), write(w, data), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func write(w io.Writer, data []byte) error {
	_, err := w.Write(data)
	return err
}

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if err := errors.Join(write(w, data), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// smallContents are a bundle's for some architectures: two components, nodeprep, a profile
// with a lock and a certificate, an image that all share and one that each has alone.
func smallContents(t *testing.T, arches ...string) Contents {
	t.Helper()
	c := Contents{Nodeprep: "1.2.3"}
	shared := inMemoryImage("images/shared.tar", plainTar(t, "shared", 300_000), "docker.io/library/shared:1")
	for _, arch := range arches {
		c.Platforms = append(c.Platforms, Platform{
			Arch: arch,
			Components: []Part{
				inMemoryPart("containerd", "2.3.4",
					inMemory("usr/local/bin/ctr", "ctr for "+arch), inMemory("usr/local/bin/containerd", "containerd for "+arch+strings.Repeat(" ", 200_000))),
				inMemoryPart("runc", "1.4.3", inMemory("usr/local/sbin/runc", "runc for "+arch)),
				inMemoryPart(Program, "1.2.3", inMemory("usr/local/bin/nodeprep", "nodeprep for "+arch)),
			},
			Node: []File{
				inMemory(ProfileName, "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\n"),
				inMemory(LockName, "apiVersion: nodeprep/v1alpha1\nkind: Lock\nartifacts: []\n# "+arch+"\n"),
				inMemory("files/ca.pem", "a certificate"),
			},
			Images: []*ImageArchive{shared, inMemoryImage("images/"+arch+".tar.gz", gzipped(t, plainTar(t, arch, 5000)), "example.com/"+arch+":1")},
		})
	}
	return c
}

// writeBundle writes a bundle into a folder of its own.
func writeBundle(t *testing.T, c Contents) (file string, made *Made) {
	t.Helper()
	file = filepath.Join(t.TempDir(), "node.bundle")
	made, err := Write(t.Context(), file, c, WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	onlyFile(t, file)
	return file, made
}

// onlyFile says that nothing else is beside a file; nothing at all if it is not there.
func onlyFile(t *testing.T, file string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != filepath.Base(file) {
			t.Errorf("%s was left", e.Name())
		}
	}
}

// entries are a tar's names and content, in order.
func entries(t *testing.T, r io.Reader) (names []string, content map[string][]byte) {
	t.Helper()
	content = map[string][]byte{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			return names, content
		}
		if err != nil {
			t.Fatal(err)
		}
		if h.Typeflag != tar.TypeReg || h.Format != tar.FormatUSTAR || h.ModTime.Unix() != 0 || h.Uid+h.Gid != 0 || h.Uname+h.Gname != "" || h.Mode != 0o644 && h.Mode != 0o755 {
			t.Errorf("header %+v", h)
		}
		data, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
		content[h.Name] = data
	}
}

func unzstded(t *testing.T, data []byte) []byte {
	t.Helper()
	dec, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		t.Fatal(err)
	}
	defer dec.Close()
	out, err := io.ReadAll(dec)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// The file is an OCI layout that a library of others reads, in an order that can be read
// as a stream, and its configs describe the layers truly.
func TestWriteLayout(t *testing.T) {
	file, made := writeBundle(t, smallContents(t, "arm64", "amd64"))
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if made.Size != int64(len(raw)) {
		t.Errorf("size %d, want %d", made.Size, len(raw))
	}
	names, content := entries(t, bytes.NewReader(raw))
	if diff := cmp.Diff([]string{"oci-layout", "index.json", "nodeprep.sums", "blobs/sha256/" + made.Digest.Encoded()}, names[:4]); diff != "" {
		t.Error(diff)
	}
	if len(names) != len(content) {
		t.Errorf("%d entries with %d names", len(names), len(content))
	}
	for name, data := range content {
		if hex, ok := strings.CutPrefix(name, "blobs/sha256/"); ok && fmt.Sprintf("%x", sha256.Sum256(data)) != hex {
			t.Errorf("%s has another digest", name)
		}
	}
	for _, name := range []string{"oci-layout", "index.json"} {
		if line := fmt.Sprintf("%x  %s\n", sha256.Sum256(content[name]), name); !strings.Contains(string(content[SumsName]), line) {
			t.Errorf("%s lacks %s", content[SumsName], line)
		}
	}

	ctx := t.Context()
	store, err := oci.NewFromTar(ctx, file)
	if err != nil {
		t.Fatal(err)
	}
	root, err := store.Resolve(ctx, "bundle")
	if err != nil || root.Digest != made.Digest || root.MediaType != ocispec.MediaTypeImageIndex || root.ArtifactType != "" {
		t.Fatalf("root %+v, %v", root, err)
	}
	blob := func(d digest.Digest) []byte { return content["blobs/sha256/"+d.Encoded()] }
	read := func(d digest.Digest, v any) {
		t.Helper()
		if err := json.Unmarshal(blob(d), v); err != nil {
			t.Fatal(err)
		}
	}
	var list ocispec.Index
	read(root.Digest, &list)
	// What comes after the index, kind by kind.
	var manifests, configs, nodes, components, images []string
	shared := map[digest.Digest]int{}
	for i, arch := range []string{"amd64", "arm64"} {
		d := list.Manifests[i]
		if p := d.Platform; p == nil || p.OS != "linux" || p.Architecture != arch || d.ArtifactType != "" {
			t.Fatalf("manifest %d: %+v", i, d)
		}
		var m ocispec.Manifest
		read(d.Digest, &m)
		if m.ArtifactType != ArtifactType || m.Config.MediaType != ConfigType || m.Annotations != nil {
			t.Errorf("manifest %+v", m)
		}
		var c Config
		read(m.Config.Digest, &c)
		if diff := cmp.Diff(made.Platforms[i], c); diff != "" {
			t.Error(diff)
		}
		var titles []string
		for _, l := range m.Layers {
			titles = append(titles, l.Annotations[ocispec.AnnotationTitle])
			if made.Layers[l.Digest] != l.Size || l.Size != int64(len(blob(l.Digest))) {
				t.Errorf("size of layer %s", l.Annotations)
			}
		}
		if diff := cmp.Diff([]string{"node", "containerd 2.3.4", "runc 1.4.3", "nodeprep 1.2.3", "images/shared.tar", "images/" + arch + ".tar.gz"}, titles); diff != "" {
			t.Error(diff)
		}
		layers := map[digest.Digest][]Member{c.Node.Layer: c.Node.Members}
		nodes = append(nodes, c.Node.Layer.Encoded())
		for _, part := range c.Components {
			layers[part.Layer] = part.Members
			components = append(components, part.Layer.Encoded())
		}
		for layer, members := range layers {
			inside, files := entries(t, bytes.NewReader(unzstded(t, blob(layer))))
			for k, m := range members {
				if inside[k] != m.Path || int64(len(files[m.Path])) != m.Size || fmt.Sprintf("%x", sha256.Sum256(files[m.Path])) != m.SHA256 {
					t.Errorf("member %+v is %s", m, inside[k])
				}
				if want := uint32(0o755); strings.HasPrefix(m.Path, "usr/") && m.Mode != want {
					t.Errorf("%s has mode %o", m.Path, m.Mode)
				}
			}
			if len(inside) != len(members) {
				t.Errorf("%d members in a layer of %d", len(members), len(inside))
			}
		}
		for k, img := range c.Images {
			data := blob(img.Layer)
			if img.Packed {
				data = unzstded(t, data)
			}
			if img.Packed != (k == 0) || img.Size != int64(len(data)) || img.SHA256 != fmt.Sprintf("%x", sha256.Sum256(data)) || len(img.Names) != 1 {
				t.Errorf("image %+v", img)
			}
			if shared[img.Layer]++; shared[img.Layer] == 1 {
				images = append(images, img.Layer.Encoded())
			}
		}
		manifests, configs = append(manifests, d.Digest.Encoded()), append(configs, m.Config.Digest.Encoded())
	}
	var want []string
	for _, group := range [][]string{manifests, configs, nodes, components, images} {
		want = append(want, group...)
	}
	for i, name := range names[4:] {
		if name != "blobs/sha256/"+want[i] {
			t.Errorf("blob %d is %s, want %s", i, name, want[i])
		}
	}
	if len(images) != 3 {
		t.Errorf("%d image layers, want the shared one and two others", len(images))
	}
}

// The same contents give the same bytes, wherever, with however many cores and in whatever
// order they are given; a layer that two bundles share is the same in both.
func TestWriteIsReproducible(t *testing.T) {
	read := func(c Contents) ([]byte, *Made) {
		file, made := writeBundle(t, c)
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		return b, made
	}
	first, both := read(smallContents(t, "amd64", "arm64"))
	before := runtime.GOMAXPROCS(1)
	t.Cleanup(func() { runtime.GOMAXPROCS(before) })
	second, _ := read(smallContents(t, "arm64", "amd64"))
	if !bytes.Equal(first, second) {
		t.Error("two bundles of the same contents differ")
	}
	_, one := read(smallContents(t, "amd64"))
	if diff := cmp.Diff(one.Platforms[0], both.Platforms[0]); diff != "" {
		t.Errorf("the bundle for two architectures has something else for amd64: %s", diff)
	}
}

// What cannot be packed is told, all of it, and leaves nothing; nor does an end by the user.
func TestWriteFailures(t *testing.T) {
	fails := func(message string) Part {
		return Part{Component: Component{Name: "x", Version: "1"}, Files: func(_ context.Context, dir string) ([]File, error) {
			return nil, errors.Join(os.WriteFile(filepath.Join(dir, "debris"), []byte("x"), 0o600), errors.New(message))
		}}
	}
	shrunk := inMemory("usr/local/bin/x", "text")
	shrunk.Size++
	grown := inMemory("usr/local/bin/x", "text")
	grown.Size--
	for name, c := range map[string]struct {
		parts []Part
		want  []string
	}{
		"all faults": {[]Part{fails("first fault"), fails("second fault")}, []string{"first fault", "second fault"}},
		"shrunk":     {[]Part{inMemoryPart("x", "1", shrunk)}, []string{"it changed while it was read"}},
		"grown":      {[]Part{inMemoryPart("x", "1", grown)}, []string{"it changed while it was read"}},
		"escaping":   {[]Part{inMemoryPart("x", "1", inMemory("../bin/x", ""))}, []string{`"../bin/x"`}},
		"twice":      {[]Part{inMemoryPart("x", "1", inMemory("bin/x", ""), inMemory("bin/x", ""))}, []string{`"bin/x"`}},
		"huge": {[]Part{inMemoryPart("x", "1", File{Path: "x", Mode: 0o644, Size: 8 << 30})},
			[]string{"pack x: it has 8589934592 bytes, and a file in a bundle can have 8589934591"}},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "node.bundle")
			_, err := Write(t.Context(), file, Contents{Platforms: []Platform{{Arch: "amd64", Components: c.parts}}}, WriteOptions{})
			for _, want := range c.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("got %v, want %s", err, want)
				}
			}
			onlyFile(t, filepath.Join(filepath.Dir(file), "nothing"))
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "node.bundle")
		ctx, cancel := context.WithCancelCause(t.Context())
		stop := errors.New("the user left")
		_, err := Write(ctx, file, smallContents(t, "amd64"), WriteOptions{Progress: func(name string, done, total int64) {
			if name == filepath.Base(file) {
				cancel(stop)
			}
		}})
		if !errors.Is(err, stop) {
			t.Errorf("got %v", err)
		}
		onlyFile(t, filepath.Join(filepath.Dir(file), "nothing"))
	})
}

// A file in the way stays what it is unless its end is asked for; a bundle with secrets is
// for its owner alone.
func TestWriteReplaces(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.bundle")
	if err := os.WriteFile(file, []byte("precious"), 0o644); err != nil {
		t.Fatal(err)
	}
	c := smallContents(t, "amd64")
	_, err := Write(t.Context(), file, c, WriteOptions{})
	if _, ok := errors.AsType[*ExistsError](err); !ok || !strings.Contains(err.Error(), "--force") {
		t.Errorf("got %v", err)
	}
	if b, err := os.ReadFile(file); string(b) != "precious" {
		t.Errorf("the file is %q, %v", b, err)
	}
	c.Secret = true
	if _, err := Write(t.Context(), file, c, WriteOptions{Force: true}); err != nil {
		t.Fatal(err)
	}
	fi, err := os.Stat(file)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	onlyFile(t, file)
	if _, err := Write(t.Context(), filepath.Dir(file), c, WriteOptions{Force: true}); err == nil {
		t.Error("a folder was replaced")
	}
}
