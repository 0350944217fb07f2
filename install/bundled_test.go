package install

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
)

// source is where a node of the crash matrix has its releases and images from.
type source string

const (
	theFake source = ""
	aBundle source = "a bundle"
	// aBundleOfARoot provisions a root that does not run.
	aBundleOfARoot source = "a bundle of a root"
)

const bundleName = "node.bundle"

// writeBundle makes a bundle of all that the matrix installs.
func writeBundle(t *testing.T, dir string) {
	t.Helper()
	n := matrixNode(t, t.TempDir(), dir, "prepare")
	p := bundle.Platform{Arch: "amd64"}
	for _, key := range sortedKeys(n.releases) {
		name, version, _ := strings.Cut(key, " ")
		i := slices.IndexFunc(n.state.Artifacts, func(a desired.Artifact) bool { return a.Component == name })
		if i < 0 {
			continue
		}
		var files []bundle.File
		for _, m := range n.state.Artifacts[i].Members {
			if content, ok := n.releases[key][m.Name]; ok {
				files = append(files, inMemory(strings.TrimPrefix(m.Path, "/"), 0o755, []byte(content)))
			}
		}
		p.Components = append(p.Components, bundle.Part{
			Component: bundle.Component{Name: name, Version: version, File: n.state.Artifacts[i].Files[0], SHA256: digest("", false, []byte(key)), SHA256From: "catalogue"},
			Files:     func(context.Context, string) ([]bundle.File, error) { return files, nil },
		})
	}
	p.Node = []bundle.File{inMemory(bundle.ProfileName, 0o644, []byte("kind: NodeProfile\n"))}
	for _, a := range []struct {
		file string
		of   archiveOf
	}{{"images/pause.tar", pause()}, {"images/web.tar", pause(webName)}} {
		content := a.of.tar(t)
		p.Images = append(p.Images, &bundle.ImageArchive{File: a.file, Names: a.of.names, Size: int64(len(content)), Open: func() (io.ReadCloser, error) {
			return io.NopCloser(bytes.NewReader(content)), nil
		}})
	}
	if _, err := bundle.Write(t.Context(), filepath.Join(dir, bundleName), bundle.Contents{Nodeprep: "0.1.0", Platforms: []bundle.Platform{p}}, bundle.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
}

func inMemory(p string, mode fs.FileMode, content []byte) bundle.File {
	return bundle.File{Path: p, Mode: mode, Size: int64(len(content)), Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }}
}

// openBundle opens it.
func openBundle(t *testing.T, file string) *bundle.Node {
	t.Helper()
	b, err := bundle.Open(t.Context(), file, bundle.OpenOptions{Registry: bundle.RegistryOptions{Network: host.NoNetwork("--bundle")}, TempDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	node, err := b.For(t.Context(), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	return node
}

// bundleImages are the ImageSource of a bundle.
type bundleImages struct{ node *bundle.Node }

func (b bundleImages) Open(ctx context.Context, img desired.Image) (io.ReadCloser, error) {
	for _, has := range b.node.Config.Images {
		if has.File == img.File {
			return b.node.OpenImage(ctx, has)
		}
	}
	return nil, fs.ErrNotExist
}

// from gives a node of the matrix another source.
func (n *node) from(s source, programs, verb string) {
	if s == theFake {
		return
	}
	node := openBundle(n.t, filepath.Join(programs, bundleName))
	n.opt.Artifacts, n.opt.Images = Bundled{Node: node, Name: bundleName, Root: n.h.Root}, bundleImages{node}
	if n.opt.Artifacts = (headless{n.opt.Artifacts}); s == aBundleOfARoot {
		n.image, n.opt.live = true, false
	}
	// A containerd outlives the process: it has what the receipt says.
	rec, err := ReadReceipt(n.h.Root)
	if err != nil {
		n.t.Fatal(err)
	}
	n.daemon.images = map[string]daemon.Image{}
	if rec != nil {
		for _, x := range rec.Images {
			for _, name := range x.Names {
				if !x.Pending {
					n.daemon.images[name] = daemon.Image{Name: name, Pinned: x.Pin}
				}
			}
		}
	}
	for _, img := range node.Config.Images {
		// The second archive comes when the first one goes.
		if later := verb == "upgrade" || verb == "uninstall"; strings.Contains(img.File, "web") == later {
			n.state.Images = append(n.state.Images, desired.Image{File: img.File, SHA256: img.SHA256, Size: img.Size, Pin: true})
		}
	}
}

// headless programs are a few words, of which no header says what they are.
type headless struct{ Artifacts }

func (h headless) Obtain(ctx context.Context, a desired.Artifact, p func(int64, int64)) (*Archive, error) {
	out, err := h.Artifacts.Obtain(ctx, a, p)
	if err == nil {
		out.Check = nil
	}
	return out, err
}

// watchedDaemon is a containerd each of whose changes is a point.
type watchedDaemon struct {
	*fakeDaemon
	p *points
}

// Import is a point.
func (d *watchedDaemon) Import(ctx context.Context, at desired.Daemon, img desired.Image, in io.Reader, a *imagearchive.Archive) ([]daemon.Image, error) {
	if err := d.p.begin("containerd", "import"); err != nil {
		return nil, err
	}
	out, err := d.fakeDaemon.Import(ctx, at, img, in, a)
	d.p.end("containerd", "import")
	return out, err
}

// Pin is a point.
func (d *watchedDaemon) Pin(ctx context.Context, at desired.Daemon, names []string) error {
	if err := d.p.begin("containerd", "pin"); err != nil {
		return err
	}
	err := d.fakeDaemon.Pin(ctx, at, names)
	d.p.end("containerd", "pin")
	return err
}

// Unpin is a point.
func (d *watchedDaemon) Unpin(ctx context.Context, at desired.Daemon, names []string) error {
	if err := d.p.begin("containerd", "unpin"); err != nil {
		return err
	}
	err := d.fakeDaemon.Unpin(ctx, at, names)
	d.p.end("containerd", "unpin")
	return err
}

func TestBundled(t *testing.T) {
	dir := t.TempDir()
	writeBundle(t, dir)
	node := openBundle(t, filepath.Join(dir, bundleName))
	b := Bundled{Node: node, Name: "/usb/" + bundleName}
	n := matrixNode(t, t.TempDir(), dir, "again")
	daemonOne := n.state.Artifacts[0]
	sum := digest("", false, []byte("containerd 1.0.0"))

	t.Run("found", func(t *testing.T) {
		for _, known := range []string{"", sum} {
			a := daemonOne
			a.SHA256, a.SHA256From = known, "nodeprep.lock:7"
			got, err := b.Obtain(t.Context(), a, nil)
			if err != nil {
				t.Fatal(err)
			}
			if got.File != "containerd-1.0.0.tar.gz" || got.SHA256 != sum || got.SHA256From != "bundle /usb/"+bundleName || got.Packed <= 0 {
				t.Errorf("%+v", got)
			}
			files := map[string]string{}
			size := int64(0)
			err = got.Unpack(t.Context(), func(m desired.Member, mode fs.FileMode) (io.WriteCloser, error) {
				if mode != 0o755 {
					t.Errorf("%s has mode %v", m.Path, mode)
				}
				return collected{&strings.Builder{}, func(s string) { files[m.Path], size = s, size+int64(len(s)) }}, nil
			})
			if err != nil {
				t.Fatal(err)
			}
			if files["/usr/local/bin/containerd"] != "daemon one" || len(files) != 3 || size != got.Unpacked {
				t.Errorf("unpacked %v, %d bytes; want %d", files, size, got.Unpacked)
			}
		}
	})
	t.Run("another digest", func(t *testing.T) {
		a := daemonOne
		a.SHA256, a.SHA256From = strings.Repeat("0", 64), "nodeprep.lock:7"
		_, err := b.Obtain(t.Context(), a, nil)
		wrong, ok := errors.AsType[*release.DigestError](err)
		if !ok || wrong.Got != sum || wrong.Want != a.SHA256 || wrong.From != "nodeprep.lock:7" || !strings.Contains(wrong.File, "/usb/"+bundleName) {
			t.Errorf("error %v", err)
		}
	})
	t.Run("not in it", func(t *testing.T) {
		for _, change := range []func(*desired.Artifact){
			func(a *desired.Artifact) { a.Version = "3.0.0" }, func(a *desired.Artifact) { a.Static = true }, func(a *desired.Artifact) { a.Component = "cni" },
		} {
			a := daemonOne
			a.Origin = diag.Origin{File: "node.yaml", Line: 3}
			change(&a)
			_, err := b.Obtain(t.Context(), a, nil)
			for _, want := range []string{a.Component + " " + a.Version, "not in /usb/" + bundleName, "containerd 1.0.0, containerd 2.0.0, crictl 1.0.0, runc 1.0.0, runc 1.1.0", "amd64", "node.yaml:3"} {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v, want %q in it", err, want)
				}
			}
		}
	})
	t.Run("the same as from upstream's archive", func(t *testing.T) {
		n := nodeAt(t, t.TempDir())
		n.opt.Artifacts = headless{b}
		n.apply()
		for i := range n.state.Artifacts {
			a := &n.state.Artifacts[i]
			a.SHA256 = digest("", false, []byte(a.Component+" "+a.Version))
		}
		n.wantActions("with upstream's digests")
		if got := n.receipt().Artifacts[0]; got.File != "containerd-1.0.0.tar.gz" || got.SHA256 != sum {
			t.Errorf("the receipt has %+v", got)
		}
	})
}

// collected is a file whose content is told at its end.
type collected struct {
	*strings.Builder
	end func(string)
}

func (c collected) Close() error {
	c.end(c.String())
	return nil
}

// TestBundleIsDamaged: a flipped byte in a layer or an image is found before anything is
// changed, and named.
func TestBundleIsDamaged(t *testing.T) {
	dir := t.TempDir()
	writeBundle(t, dir)
	whole := openBundle(t, filepath.Join(dir, bundleName))
	for _, live := range []bool{true, false} {
		for _, part := range []string{"containerd 1.0.0", "images/pause.tar"} {
			t.Run(fmt.Sprintf("%s, live %v", part, live), func(t *testing.T) {
				file := flipped(t, filepath.Join(dir, bundleName), whole, part)
				n := nodeAt(t, t.TempDir())
				if live {
					n.live()
				}
				node := openBundle(t, file)
				n.opt.Artifacts, n.opt.Images = headless{Bundled{Node: node, Name: file}}, bundleImages{node}
				img := node.Config.Images[0]
				n.state.Images = []desired.Image{{File: img.File, SHA256: img.SHA256, Size: img.Size, Pin: true}}
				before := n.tree(true)
				_, err := n.tryApply(t.Context())
				if err == nil || !strings.Contains(err.Error(), part) || !strings.Contains(err.Error(), "sha256") {
					t.Errorf("apply = %v, want %s named", err, part)
				}
				if _, reverted := errors.AsType[*RevertedError](err); reverted {
					t.Error("it was noticed after the commit")
				}
				n.same(before, true, "refusal")
			})
		}
	}
}

// flipped is a copy of a bundle with one byte changed in the middle of a layer.
func flipped(t *testing.T, file string, node *bundle.Node, part string) string {
	t.Helper()
	var layer string
	for _, c := range node.Config.Components {
		if c.Name+" "+c.Version == part {
			layer = c.Layer.Encoded()
		}
	}
	for _, img := range node.Config.Images {
		if img.File == part {
			layer = img.Layer.Encoded()
		}
	}
	content, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	at := int64(-1)
	r := bytes.NewReader(content)
	for archive := tar.NewReader(r); ; {
		h, err := archive.Next()
		if err != nil {
			t.Fatalf("no layer of %s: %v", part, err)
		}
		if path.Base(h.Name) == layer {
			at = int64(len(content)) - int64(r.Len()) + h.Size/2
			break
		}
	}
	content[at] ^= 1
	out := filepath.Join(t.TempDir(), "flipped.bundle")
	if err := os.WriteFile(out, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return out
}
