package bundle

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
)

// taken collects what a component gives.
func taken(got map[string]string) release.Sink {
	return release.SinkFunc(func(m desired.Member, mode fs.FileMode) (io.WriteCloser, error) {
		return &kept{into: got, name: m.Path + " " + mode.String()}, nil
	})
}

type kept struct {
	bytes.Buffer
	into map[string]string
	name string
}

func (k *kept) Close() error {
	k.into[k.name] = strings.TrimSpace(k.String())
	return nil
}

// rewritten is a bundle's archive as other tools write it: folders, another order and
// mode, times and owners, no nodeprep.sums.
func rewritten(t *testing.T, data []byte) []byte {
	t.Helper()
	names, content := entries(t, bytes.NewReader(data))
	slices.Reverse(names)
	items := []item{{Header: tar.Header{Typeflag: tar.TypeDir, Name: "./blobs/", Mode: 0o775}}, {Header: tar.Header{Typeflag: tar.TypeDir, Name: "./blobs/sha256/", Mode: 0o775}}}
	for _, name := range names {
		if name != SumsName {
			items = append(items, item{tar.Header{Typeflag: tar.TypeReg, Name: "./" + name, Mode: 0o600, Uid: 1000, Uname: "somebody", ModTime: time.Unix(1e9, 0),
				Format: tar.FormatPAX, PAXRecords: map[string]string{"SOMEBODY.comment": "x"}}, string(content[name])})
		}
	}
	return tarOf(t, items)
}

// A bundle is the same whichever way it comes, and only what the node needs is in it.
func TestOpenWays(t *testing.T) {
	file, made := writeBundle(t, smallContents(t, "amd64", "arm64"))
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	whole, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer whole.Close()
	sender, receiver, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer sender.Close()
	go func() {
		_, _ = receiver.Write(data)
		receiver.Close()
	}()
	for _, way := range []struct {
		name, ref string
		stdin     io.Reader
	}{
		{"a file", file, nil},
		{"a folder", unpackedTo(t, data), nil},
		{"standard input, a pipe", "-", sender},
		{"standard input, a file", "-", whole},
		{"standard input, a reader", "-", bytes.NewReader(data)},
		{"another tool's archive", saved(t, rewritten(t, data)), nil},
	} {
		t.Run(way.name, func(t *testing.T) {
			temp := t.TempDir()
			b, err := Open(t.Context(), way.ref, OpenOptions{Stdin: way.stdin, TempDir: temp})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if left, err := os.ReadDir(temp); err != nil || len(left) > 0 {
				t.Errorf("%v has a name in the temporary folder, %v", left, err)
			}
			if b.Digest() != made.Digest {
				t.Errorf("digest %s, want %s", b.Digest(), made.Digest)
			}
			if diff := cmp.Diff([]string{"amd64", "arm64"}, b.Arches()); diff != "" {
				t.Error(diff)
			}
			n, err := b.For(t.Context(), "arm64")
			if err != nil {
				t.Fatal(err)
			}
			checkNode(t, n)
		})
	}
}

func checkNode(t *testing.T, n *Node) {
	t.Helper()
	if got, err := n.File(t.Context(), "files/ca.pem"); err != nil || string(got) != "a certificate" {
		t.Errorf("files/ca.pem is %q, %v", got, err)
	}
	if _, err := n.File(t.Context(), "files/other"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
	if _, ok := n.Component("containerd", "2.3.4", true); ok {
		t.Error("the static containerd was found")
	}
	c, ok := n.Component("containerd", "2.3.4", false)
	if !ok {
		t.Fatal("there is no containerd")
	}
	got := map[string]string{}
	out, err := n.Unpack(t.Context(), c, []desired.Member{
		{Name: "containerd", Path: "/usr/local/bin/containerd", Effect: desired.EffectRestart},
		{Name: "containerd-stress", Path: "/usr/local/bin/containerd-stress", Optional: true},
	}, taken(got))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]string{"/usr/local/bin/containerd -rwxr-xr-x": "containerd for arm64"}, got); diff != "" {
		t.Error(diff)
	}
	if len(out.Members) != 1 || out.Members[0].Effect != desired.EffectRestart || out.SHA256 != c.SHA256 {
		t.Errorf("unpacked %+v", out)
	}
	for i, want := range [][]byte{plainTar(t, "shared", 300_000), gzipped(t, plainTar(t, "arm64", 5000))} {
		img := n.Config.Images[i]
		r, err := n.OpenImage(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(data, want) {
			t.Errorf("%s has %d bytes, want %d: %v", img.File, len(data), len(want), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
		var last int64
		if err := n.VerifyImage(t.Context(), img, func(done, _ int64) { last = done }); err != nil || last != img.Size {
			t.Errorf("verify %s: %v after %d", img.File, err, last)
		}
	}
}

// counting says what is fetched.
type counting struct {
	blobs
	fetched []string
}

func (c *counting) Blob(ctx context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	c.fetched = append(c.fetched, blobPath(d))
	return c.blobs.Blob(ctx, d)
}

// Nothing of another architecture is read, so that damage there does not matter here.
func TestOnlyTheNodesOwnIsRead(t *testing.T) {
	file, _ := writeBundle(t, smallContents(t, "amd64", "arm64"))
	b := opened(t, file)
	count := &counting{blobs: b.store}
	b.store = count
	n := nodeOf(t, b, "arm64")
	if _, err := n.File(t.Context(), ProfileName); err != nil {
		t.Fatal(err)
	}
	if _, err := n.File(t.Context(), LockName); err != nil {
		t.Fatal(err)
	}
	c := &n.Config.Components[1]
	if _, err := n.Unpack(t.Context(), c, nil, taken(map[string]string{})); err != nil {
		t.Fatal(err)
	}
	want := []string{blobPath(n.manifest), blobPath(n.config), blobPath(n.layers[n.Config.Node.Layer]), blobPath(n.layers[c.Layer])}
	if diff := cmp.Diff(want, count.fetched); diff != "" {
		t.Error(diff)
	}
}

func TestOpenRefuses(t *testing.T) {
	good := forgery{}.bytes(t)
	image := plainTar(t, "manifest.json", 100)
	dir := t.TempDir()
	notBundle := func(err error) bool { _, is := errors.AsType[*NotBundleError](err); return is }
	damaged := func(err error) bool { _, is := errors.AsType[*DamagedError](err); return is }
	for _, c := range []struct {
		name string
		data []byte
		is   func(error) bool
		want string
	}{
		{"an empty file", nil, notBundle, "it is empty"},
		{"a text", []byte("hello"), notBundle, "it is no tar archive: it has 5 bytes"},
		{"a long text", bytes.Repeat([]byte("hello "), 500), notBundle, `it is no tar archive: it begins with "hello hello hell"`},
		{"zeros", make([]byte, 4096), notBundle, "it is no tar archive"},
		{"packed by gzip", gzipped(t, good), notBundle, "it is packed by gzip; unpack it with gunzip first"},
		{"packed by zstd", zstded(t, good), notBundle, "it is packed by zstd"},
		{"docker save's archive", image, notBundle, "it is a tar archive without index.json"},
		{"cut in a blob", good[:len(good)-2000], damaged, "the archive: it is cut short"},
		{"cut in the end", good[:len(good)-600], damaged, "the archive: it is cut short"},
		{"cut before the end", good[:len(good)-1024], damaged, "the archive: it is cut short"},
		{"garbage after the end", append(bytes.Clone(good), "garbage"...), damaged, "the archive's end: there is something after it"},
		{"two archives", append(bytes.Clone(good), good...), damaged, "the archive's end: there is something after it"},
		{"a symbolic link", forgery{files: with(item{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "blobs/x", Linkname: "/etc/passwd"}})}.bytes(t), damaged,
			"the archive's header of blobs/x: it is neither a file nor a folder"},
		{"a device", forgery{files: with(item{Header: tar.Header{Typeflag: tar.TypeChar, Name: "blobs/x"}})}.bytes(t), damaged, "neither a file nor a folder"},
		{"a name out of it", forgery{files: with(executable("../../etc/passwd", "x"))}.bytes(t), damaged, "its name leads out of the archive"},
		{"an absolute name", forgery{files: with(executable("/etc/passwd", "x"))}.bytes(t), damaged, "its name leads out of the archive"},
		{"a file twice", forgery{files: with(executable("index.json", "{}"))}.bytes(t), damaged, "the archive's header of index.json: it is there twice"},
		{"an empty list", forgery{list: func(l *ocispec.Index) { l.Manifests = nil }}.bytes(t), notBundle, "its index.json lists 0 things"},
		{"two indices", forgery{list: func(l *ocispec.Index) { l.Manifests = append(l.Manifests, l.Manifests[0]) }}.bytes(t), notBundle, "its index.json lists 2 things"},
		{"an empty index", forgery{index: func(i *ocispec.Index) { i.Manifests = nil }}.bytes(t), notBundle, "its index lists nothing"},
		{"an index that is larger than it says", forgery{list: func(l *ocispec.Index) { l.Manifests[0].Size-- }}.bytes(t), damaged, "image index: sha256:"},
		{"an index that is not there", forgery{list: func(l *ocispec.Index) { l.Manifests[0].Digest = digest.FromString("nothing") }}.bytes(t), damaged, "is not there"},
		{"a digest of another kind", forgery{list: func(l *ocispec.Index) { l.Manifests[0].Digest = "md5:abc" }}.bytes(t), damaged, `"md5:abc" is no sha256 digest`},
		{"a digest that leads out", forgery{list: func(l *ocispec.Index) { l.Manifests[0].Digest = "sha256:../../../../etc/passwd" }}.bytes(t), damaged, "is no sha256 digest"},
		{"an index of 1 GiB", forgery{list: func(l *ocispec.Index) { l.Manifests[0].Size = 1 << 30 }}.bytes(t), damaged, "the limit is 4194304"},
		{"a layout of the future", forgery{files: replaced("oci-layout", `{"imageLayoutVersion":"2.0.0"}`)}.bytes(t), damaged, `it is a layout of version "2.0.0", want 1.0.0`},
		{"a list that was changed", forgery{files: replaced("index.json", `{}`)}.bytes(t), damaged, "index.json: verify index.json: sha256 mismatch"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := filepath.Join(dir, "node.bundle")
			if err := os.WriteFile(file, c.data, 0o644); err != nil {
				t.Fatal(err)
			}
			b, err := Open(t.Context(), file, OpenOptions{})
			if err == nil {
				b.Close()
				t.Fatal("it was opened")
			}
			if !c.is(err) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v\nwant %s", err, c.want)
			}
			if !strings.Contains(err.Error(), file) {
				t.Errorf("%v does not name %s", err, file)
			}
		})
	}
	if _, err := Open(t.Context(), filepath.Join(dir, "none"), OpenOptions{}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a file that is not there: %v", err)
	}
}

// A header may say any size; nothing is read where the archive is not.
func TestSizesThatOverflow(t *testing.T) {
	good := forgery{}.bytes(t)
	for _, size := range []uint64{1<<63 - 1, 1<<63 - 512, 1<<63 - 2000, 1 << 62} {
		data := bytes.Clone(good)
		h := data[:512]
		copy(h[124:136], make([]byte, 4))
		h[124] = 0x80 // a binary number follows (GNU tar, "Basic Tar Format")
		binary.BigEndian.PutUint64(h[128:136], size)
		sum := 0
		copy(h[148:156], "        ")
		for _, c := range h {
			sum += int(c)
		}
		copy(h[148:156], fmt.Sprintf("%06o\x00 ", sum))
		file := saved(t, data)
		if _, err := Open(t.Context(), file, OpenOptions{}); err == nil || !strings.Contains(err.Error(), "the archive: it is cut short: it ends within oci-layout") {
			t.Errorf("size %d: %v", size, err)
		}
		if report, err := Verify(t.Context(), file, OpenOptions{}, nil); err != nil || len(report.Faults) == 0 {
			t.Errorf("size %d: %+v, %v", size, report, err)
		}
	}
}

// with adds a member to a bundle's archive.
func with(i item) func([]item) []item {
	return func(items []item) []item { return append(items, i) }
}

// replaced changes a file of the bundle's archive.
func replaced(name, data string) func([]item) []item {
	return func(items []item) []item {
		for i := range items {
			if items[i].Name == name {
				items[i].data = data
			}
		}
		return items
	}
}

// A folder's links lead nowhere out of it.
func TestFolderLinks(t *testing.T) {
	dir := unpackedTo(t, forgery{}.bytes(t))
	b := opened(t, dir)
	n := nodeOf(t, b, "amd64")
	layer := filepath.Join(dir, blobPath(n.layers[n.Config.Components[0].Layer]))
	outside := filepath.Join(t.TempDir(), "layer")
	if err := os.Rename(layer, outside); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, layer); err != nil {
		t.Fatal(err)
	}
	_, err := n.Unpack(t.Context(), &n.Config.Components[0], nil, taken(map[string]string{}))
	if err == nil || !strings.Contains(err.Error(), "escapes") {
		t.Errorf("a link out of the folder was followed: %v", err)
	}
}

// What is sent to standard input is waited for as long as the context lives.
func TestSpoolEndsWithTheContext(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	defer r.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	cancel(why)
	if _, err := Open(ctx, "-", OpenOptions{Stdin: r, TempDir: t.TempDir()}); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}
