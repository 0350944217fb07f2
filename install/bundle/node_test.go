package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
)

func TestForRefuses(t *testing.T) {
	zero := strings.Repeat("0", 64)
	damaged := func(err error) bool { _, is := errors.AsType[*DamagedError](err); return is }
	newer := func(err error) bool { _, is := errors.AsType[*VersionError](err); return is }
	notBundle := func(err error) bool { _, is := errors.AsType[*NotBundleError](err); return is }
	noArch := func(err error) bool { _, is := errors.AsType[*ArchError](err); return is }
	component := func(f func(*Component)) func(*Config) { return func(c *Config) { f(&c.Components[0]) } }
	image := func(f func(*Image)) func(*Config) { return func(c *Config) { f(&c.Images[0]) } }
	for _, c := range []struct {
		name string
		f    forgery
		is   func(error) bool
		want string
	}{
		{"another architecture", forgery{index: func(i *ocispec.Index) { i.Manifests[0].Platform.Architecture = "arm64" }}, noArch,
			"it has nothing for linux/amd64, only for linux/arm64; make one with nodeprep bundle create --arch amd64"},
		{"a newer format", forgery{config: func(c *Config) { c.FormatVersion, c.Nodeprep = 2, "9.9.0" }}, newer,
			"it was made by nodeprep 9.9.0 in format 2, and this nodeprep reads formats up to 1"},
		{"a newer format with unknown fields", forgery{raw: func(b []byte) []byte {
			return bytes.Replace(b, []byte(`{"formatVersion":1,`), []byte(`{"formatVersion":3,"wonders":true,`), 1)
		}}, newer, "format 3"},
		{"a newer type", forgery{manifest: func(m *ocispec.Manifest) { m.ArtifactType = "application/vnd.nodeprep.bundle.v2" }}, newer, "application/vnd.nodeprep.bundle.v2"},
		{"a newer config", forgery{manifest: func(m *ocispec.Manifest) { m.Config.MediaType = "application/vnd.nodeprep.bundle.config.v2+json" }}, newer, "config.v2+json"},
		{"an unknown artifact", forgery{manifest: func(m *ocispec.Manifest) { m.ArtifactType = "application/vnd.example.chart" }}, notBundle, "it holds application/vnd.example.chart"},
		{"a container image", forgery{manifest: func(m *ocispec.Manifest) { m.ArtifactType, m.Config.MediaType = "", ocispec.MediaTypeImageConfig }}, notBundle, "it is a container image"},
		{"an image for another machine", forgery{index: func(i *ocispec.Index) { i.Manifests[0].Platform.Architecture = "arm64" },
			manifest: func(m *ocispec.Manifest) { m.ArtifactType, m.Config.MediaType = "", ocispec.MediaTypeImageConfig }}, notBundle, "it is a container image"},
		{"an index in the index", forgery{index: func(i *ocispec.Index) { i.Manifests[0].MediaType = ocispec.MediaTypeImageIndex }}, notBundle, "its index lists " + ocispec.MediaTypeImageIndex},
		{"platform and config disagree", forgery{config: func(c *Config) { c.Architecture = "arm64" }}, damaged,
			"config linux/amd64: it is for linux/arm64, and its manifest is for linux/amd64"},
		{"unknown fields", forgery{raw: func(b []byte) []byte { return bytes.Replace(b, []byte(`{`), []byte(`{"wonders":1,`), 1) }}, damaged, `unknown field "wonders"`},
		{"two values", forgery{raw: func(b []byte) []byte { return append(b, "{}"...) }}, damaged, "after the end of its JSON"},
		{"no JSON", forgery{raw: func([]byte) []byte { return []byte("hello") }}, damaged, "config linux/amd64: it is no valid JSON"},
		{"no format", forgery{config: func(c *Config) { c.FormatVersion = 0 }}, damaged, "its formatVersion is 0"},
		{"a manifest that is not there", forgery{index: func(i *ocispec.Index) { i.Manifests[0].Digest = digest.FromString("nothing") }}, damaged, "manifest linux/amd64: sha256:"},
		{"a manifest with another size", forgery{index: func(i *ocispec.Index) { i.Manifests[0].Size++ }}, damaged, "bytes, want"},
		{"a config of 1 GiB", forgery{manifest: func(m *ocispec.Manifest) { m.Config.Size = 1 << 30 }}, damaged, "the limit is 4194304"},
		{"a config under another digest", forgery{manifest: func(m *ocispec.Manifest) { m.Config.Digest, m.Config.Size = m.Layers[0].Digest, m.Layers[0].Size }}, damaged, "config linux/amd64: it is no valid JSON"},
		{"a layer that the manifest lacks", forgery{manifest: func(m *ocispec.Manifest) { m.Layers = m.Layers[:2] }}, damaged, "the layer of images/pause.tar, sha256:"},
		{"a layer that the config lacks", forgery{config: func(c *Config) { c.Images = nil }}, damaged, "it does not say what layer sha256:"},
		{"a layer of a negative size", forgery{manifest: func(m *ocispec.Manifest) { m.Layers[1].Size = -5 }}, damaged, "has a size of -5 bytes"},
		{"a component twice", forgery{config: func(c *Config) { c.Components = append(c.Components, c.Components[0]) }}, damaged, "containerd 2.1.9 is there twice"},
		{"a component without upstream's digest", forgery{config: component(func(c *Component) { c.SHA256 = "" })}, damaged, "containerd 2.1.9 has no sha256 of its release file"},
		{"a path out of the layer", forgery{config: component(func(c *Component) { c.Members[0].Path = "../../etc/passwd" })}, damaged, `whose name leads out of it: "../../etc/passwd"`},
		{"an absolute path", forgery{config: component(func(c *Component) { c.Members[0].Path = "/etc/passwd" })}, damaged, "leads out of it"},
		{"a path twice", forgery{config: component(func(c *Component) { c.Members[1].Path = c.Members[0].Path })}, damaged, "has usr/local/bin/containerd twice"},
		{"a setuid mode", forgery{config: component(func(c *Component) { c.Members[0].Mode = 0o4755 })}, damaged, "with mode 04755"},
		{"a program that all may write", forgery{config: component(func(c *Component) { c.Members[0].Mode = 0o777 })}, damaged, "has usr/local/bin/containerd with mode 0777, want 0755"},
		{"a program that nobody may run", forgery{config: component(func(c *Component) { c.Members[0].Mode = 0 })}, damaged, "with mode 0, want 0755"},
		{"a file of the node that may be run", forgery{config: func(c *Config) { c.Node.Members[0].Mode = 0o755 }}, damaged, "the node has profile.yaml with mode 0755, want 0644"},
		{"a config of too many values", forgery{raw: func(b []byte) []byte {
			return bytes.Replace(b, []byte(`"components":[`), []byte(`"components":[`+strings.Repeat(`{},`, 60_000)), 1)
		}}, damaged, "values, and the limit is 50000"},
		{"an index of many manifests", forgery{index: func(i *ocispec.Index) { i.Manifests = slices.Repeat(i.Manifests, 17) }}, damaged, "image index: it lists 17 manifests, and the limit is 16"},
		{"a version that steers a terminal", forgery{config: component(func(c *Component) { c.Version = "2.1.9\x1b[2K\rgood" })}, damaged, `cannot be printed: "2.1.9\x1b[2K\rgood"`},
		{"a name that turns a line around", forgery{config: image(func(i *Image) { i.Names[0] = "\u202eapp:1" })}, damaged, `cannot be printed: "\u202eapp:1"`},
		{"a platform that steers a terminal", forgery{index: func(i *ocispec.Index) { i.Manifests[0].Platform.Architecture = "\x1b[2K" }}, damaged, `cannot be printed: "linux/\x1b[2K"`},
		{"a type that steers a terminal", forgery{manifest: func(m *ocispec.Manifest) { m.ArtifactType = "\x1b[2Kgood" }}, notBundle, `it holds \x1b[2Kgood`},
		{"a negative size", forgery{config: component(func(c *Component) { c.Members[0].Size = -1 })}, damaged, "without a size and a sha256"},
		{"a node layer that is too large", forgery{config: func(c *Config) { c.Node.Members[0].Size = 17 << 20 }}, damaged, "and the limit is 16777216"},
		{"node sizes that overflow", forgery{config: func(c *Config) {
			c.Node.Members[0].Size = 1<<63 - 1
			c.Node.Members = append(c.Node.Members, Member{Path: "x", Mode: 0o644, Size: 1<<63 - 1, SHA256: zero})
		}}, damaged, "and the limit is 16777216"},
		{"an image without a digest", forgery{config: image(func(i *Image) { i.SHA256 = "" })}, damaged, "without a name in the bundle, a size and a sha256"},
		{"an image that leads out", forgery{config: image(func(i *Image) { i.File = "../x" })}, damaged, "without a name in the bundle"},
		{"an image as it is, with another digest", forgery{config: image(func(i *Image) { i.Packed = false })}, damaged, "images/pause.tar has sha256"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := saved(t, c.f.bytes(t))
			b, err := Open(t.Context(), file, OpenOptions{})
			if err == nil {
				t.Cleanup(func() { _ = b.Close() })
				_, err = b.For(t.Context(), "amd64")
			}
			if err == nil {
				t.Fatal("it was taken")
			}
			if !c.is(err) || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), file) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
			if strings.Contains(err.Error(), "\x1b") {
				t.Errorf("%q steers a terminal", err)
			}
		})
	}
}

// A config that is wrong everywhere is told of in a bearable length.
func TestFaultsOfAConfigEnd(t *testing.T) {
	report, err := Verify(t.Context(), saved(t, forgery{config: func(c *Config) {
		c.Components[0].Members = make([]Member, 3000)
	}}.bytes(t)), OpenOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(report.Faults); n < 2 || n > maxFaults+2 {
		t.Errorf("%d faults", n)
	}
}

// What is in a layer is what the config says, or nothing of it counts.
func TestUnpackRefuses(t *testing.T) {
	good := []item{executable("usr/local/bin/containerd", "containerd"), executable("usr/local/bin/ctr", "ctr")}
	odd := func(flag byte, name, to string) item {
		return item{Header: tar.Header{Typeflag: flag, Name: name, Linkname: to, Mode: 0o755}}
	}
	plus := func(i item) []item { return append(good[:2:2], i) }
	member := func(f func(*Member)) func(*Config) { return func(c *Config) { f(&c.Components[0].Members[1]) } }
	forget := func(c *Config) { c.Components[0].Members = c.Components[0].Members[:2] }
	for _, c := range []struct {
		name string
		f    forgery
		want string
	}{
		{"a name out of it", forgery{component: plus(executable("../../etc/passwd", "x")), config: forget}, `member "../../etc/passwd": its name leads out of the archive`},
		{"an absolute name", forgery{component: plus(executable("/etc/passwd", "x")), config: forget}, `member "/etc/passwd": its name is absolute`},
		{"a name in the middle", forgery{component: plus(executable("usr/../../x", "x")), config: forget}, "leads out of the archive"},
		{"a file that nobody knows", forgery{component: plus(executable("usr/local/bin/other", "x")), config: forget}, `member "usr/local/bin/other": it is not in the bundle's config`},
		{"a file under a longer name", forgery{component: plus(executable("./usr/local/bin/ctr", "x")), config: forget}, "it is not in the bundle's config"},
		{"a symbolic link", forgery{component: plus(odd(tar.TypeSymlink, "usr/local/bin/x", "/etc/passwd"))}, "it is a symbolic link"},
		{"a symbolic link in a file's place", forgery{component: []item{good[0], odd(tar.TypeSymlink, "usr/local/bin/ctr", "containerd")}}, "it is a symbolic link"},
		{"a hard link", forgery{component: plus(odd(tar.TypeLink, "usr/local/bin/x", "usr/local/bin/ctr"))}, "it is a hard link"},
		{"a device", forgery{component: plus(odd(tar.TypeBlock, "usr/local/bin/x", ""))}, "it is a device node"},
		{"a fifo", forgery{component: plus(odd(tar.TypeFifo, "usr/local/bin/x", ""))}, "it is a fifo"},
		{"a folder", forgery{component: plus(odd(tar.TypeDir, "usr/local/", ""))}, "want a regular file"},
		{"a file twice", forgery{component: plus(good[1]), config: forget}, `member "usr/local/bin/ctr": it is there twice`},
		{"a file that is missing", forgery{config: func(c *Config) {
			c.Components[0].Members = append(c.Components[0].Members, Member{Path: "usr/local/bin/other", Mode: 0o755, SHA256: hexOf(nil)})
		}}, "it lacks usr/local/bin/other"},
		{"another mode", forgery{component: []item{good[0], {tar.Header{Typeflag: tar.TypeReg, Name: "usr/local/bin/ctr", Mode: 0o777}, "ctr"}},
			config: member(func(m *Member) { m.Mode = 0o755 })}, `member "usr/local/bin/ctr": its mode is 0777, want 0755`},
		{"a setuid program", forgery{component: []item{good[0], {tar.Header{Typeflag: tar.TypeReg, Name: "usr/local/bin/ctr", Mode: 0o4755}, "ctr"}},
			config: member(func(m *Member) { m.Mode = 0o755 })}, "its mode is 04755, want 0755"},
		{"another size", forgery{config: member(func(m *Member) { m.Size = 2 })}, `member "usr/local/bin/ctr": it has 3 bytes, want 2`},
		{"another digest", forgery{config: member(func(m *Member) { m.SHA256 = hexOf([]byte("other")) })}, "verify usr/local/bin/ctr in layer sha256:"},
		{"a changed layer", forgery{files: flipped(1)}, "sha256 mismatch"},
		{"a layer that is cut short", forgery{layer: func(b []byte) []byte { return b[:len(b)-7] }}, "truncated"},
		{"a layer that is no tar", forgery{layer: func([]byte) []byte { return zstdZeros(t, 5) }}, "there is no tar in this zstd file"},
		{"a layer that is nothing", forgery{layer: func([]byte) []byte { return nil }}, "the file is empty"},
		{"a layer with garbage after it", forgery{layer: func(b []byte) []byte { return append(b, "garbage"...) }}, "garbage after the end"},
		{"a layer of another size", forgery{manifest: func(m *ocispec.Manifest) { m.Layers[1].Size += 3 }}, "bytes, want"},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := nodeOf(t, opened(t, saved(t, c.f.bytes(t))), "amd64")
			_, err := n.Unpack(t.Context(), &n.Config.Components[0], nil, taken(map[string]string{}))
			if err == nil {
				t.Fatal("it was unpacked")
			}
			damaged, is := errors.AsType[*DamagedError](err)
			if !is || damaged.Part != "containerd 2.1.9 linux/amd64" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
			if !strings.Contains(err.Error(), Remedy) {
				t.Errorf("%v does not say what to do", err)
			}
		})
	}
}

// flipped changes a byte of the bundle's nth layer.
func flipped(nth int) func([]item) []item {
	return func(items []item) []item {
		i := &items[3+nth] // after oci-layout, index.json, nodeprep.sums
		data := []byte(i.data)
		data[len(data)/2] ^= 1
		i.data = string(data)
		return items
	}
}

func zstdZeros(t *testing.T, n int) []byte { return zstded(t, make([]byte, n)) }

func TestUnpackWantsMembers(t *testing.T) {
	n := nodeOf(t, opened(t, saved(t, forgery{}.bytes(t))), "amd64")
	_, err := n.Unpack(t.Context(), &n.Config.Components[0], []desired.Member{{Name: "shim", Path: "/usr/local/bin/shim"}}, taken(map[string]string{}))
	if err == nil || !strings.Contains(err.Error(), "containerd 2.1.9 linux/amd64: it lacks /usr/local/bin/shim") {
		t.Errorf("got %v", err)
	}
}

// The sink's own failures are not the bundle's.
func TestUnpackKeepsTheSinksError(t *testing.T) {
	n := nodeOf(t, opened(t, saved(t, forgery{}.bytes(t))), "amd64")
	full := errors.New("no space left on device")
	_, err := n.Unpack(t.Context(), &n.Config.Components[0], []desired.Member{{Name: "ctr", Path: "/usr/local/bin/ctr"}},
		release.SinkFunc(func(desired.Member, fs.FileMode) (io.WriteCloser, error) { return nil, full }))
	if _, damaged := errors.AsType[*DamagedError](err); damaged || !errors.Is(err, full) {
		t.Errorf("got %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := n.Unpack(ctx, &n.Config.Components[0], nil, taken(map[string]string{})); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context's end: %v", err)
	}
}

func TestOpenImageRefuses(t *testing.T) {
	image := func(f func(*Image)) func(*Config) { return func(c *Config) { f(&c.Images[0]) } }
	for _, c := range []struct {
		name   string
		f      forgery
		want   string
		digest bool
	}{
		{"a changed layer", forgery{files: flipped(2)}, "verify layer sha256:", true},
		{"another digest", forgery{config: image(func(i *Image) { i.SHA256 = hexOf(nil) })}, "verify images/pause.tar: sha256 mismatch", true},
		{"more than it says", forgery{config: image(func(i *Image) { i.Size-- })}, "it unpacks to more than its", false},
		{"less than it says", forgery{config: image(func(i *Image) { i.Size++ })}, "it unpacks to", false},
		{"a layer of another size", forgery{manifest: func(m *ocispec.Manifest) { m.Layers[2].Size++ }}, "bytes, want", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			n := nodeOf(t, opened(t, saved(t, c.f.bytes(t))), "amd64")
			err := n.VerifyImage(t.Context(), n.Config.Images[0], nil)
			damaged, is := errors.AsType[*DamagedError](err)
			if !is || damaged.Part != "images/pause.tar linux/amd64" || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
			if _, is := errors.AsType[*release.DigestError](err); is != c.digest {
				t.Errorf("%v is a digest's error: %v", err, is)
			}
		})
	}
}

// A changed byte anywhere in a layer is never taken for good: reading ends with the digest's
// error, not with the end of the archive.
func TestOpenImageFindsEveryFlippedByte(t *testing.T) {
	good := forgery{}.bytes(t)
	b, err := inMemoryBundle(t, "x", good)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	n := nodeOf(t, b, "amd64")
	for _, what := range []string{blobPath(n.layers[n.Config.Images[0].Layer]), blobPath(n.layers[n.Config.Components[0].Layer])} {
		e := b.file.entries[b.file.byName[what]]
		for i := e.data; i < e.data+e.size; i++ {
			data := bytes.Clone(good)
			data[i] ^= 1 << (i % 8)
			n.bundle.store.(*layoutStore).files.(*tarStore).r = bytes.NewReader(data)
			err := n.VerifyImage(t.Context(), n.Config.Images[0], nil)
			if what == blobPath(n.layers[n.Config.Components[0].Layer]) {
				_, err = n.Unpack(t.Context(), &n.Config.Components[0], nil, taken(map[string]string{}))
			}
			if _, is := errors.AsType[*release.DigestError](err); !is {
				t.Fatalf("byte %d of %s: %v", i-e.data, what, err)
			}
		}
	}
}

// What unpacks to far more than it should is not unpacked to its end.
func TestBombs(t *testing.T) {
	zeros := strings.Repeat("\x00", 100<<20)
	f := forgery{component: []item{executable("usr/local/bin/containerd", zeros)}, image: []byte(zeros)}
	f.config = func(c *Config) { c.Images[0].Size = 1000 }
	n := nodeOf(t, opened(t, saved(t, f.bytes(t))), "amd64")
	_, err := n.Unpack(t.Context(), &n.Config.Components[0], nil, release.SinkFunc(discard))
	if err == nil || !strings.Contains(err.Error(), "it unpacks to more than 100 times its size") {
		t.Errorf("the component: %v", err)
	}
	r, err := n.OpenImage(t.Context(), n.Config.Images[0])
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	given, err := io.Copy(io.Discard, r)
	if err == nil || given > 1000 || !strings.Contains(err.Error(), "it unpacks to more than its 1000 bytes") {
		t.Errorf("the image gave %d bytes: %v", given, err)
	}
}

// Several layers are read at once.
func TestSideBySide(t *testing.T) {
	file, _ := writeBundle(t, smallContents(t, "amd64", "arm64"))
	b := opened(t, file)
	var g sync.WaitGroup
	faults := make(chan error, 100)
	for range 3 {
		for _, arch := range b.Arches() {
			n, err := b.For(t.Context(), arch)
			if err != nil {
				t.Fatal(err)
			}
			for i := range n.Config.Components {
				g.Go(func() {
					_, err := n.Unpack(t.Context(), &n.Config.Components[i], nil, taken(map[string]string{}))
					faults <- err
				})
			}
			for _, img := range n.Config.Images {
				g.Go(func() { faults <- n.VerifyImage(t.Context(), img, nil) })
			}
			g.Go(func() {
				data, err := n.File(t.Context(), LockName)
				if err == nil && !strings.Contains(string(data), arch) {
					err = fmt.Errorf("the lock for %s is %q", arch, data)
				}
				faults <- err
			})
		}
	}
	g.Wait()
	close(faults)
	for err := range faults {
		if err != nil {
			t.Error(err)
		}
	}
}
