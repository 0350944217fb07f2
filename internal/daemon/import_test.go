package daemon

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	introspectionapi "github.com/containerd/containerd/api/services/introspection/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/introspection"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/internal/imagearchive"
)

// halfDaemon is containerd's own store of content with a list of images and leases, and a
// snapshotter that unpacks nothing.
type halfDaemon struct {
	*Client
	sent   *sentBlobs
	snap   *names
	leases *leaseList
	full   bool // the snapshotter's disk
}

func startHalf(t *testing.T) *halfDaemon {
	t.Helper()
	store, err := local.NewLabeledStore(t.TempDir(), labelsInMemory{})
	if err != nil {
		t.Fatal(err)
	}
	h := &halfDaemon{snap: &names{committed: map[string]bool{}}, leases: &leaseList{}, sent: &sentBlobs{Store: store}}
	c, err := client.New("", client.WithServices(
		client.WithContentStore(h.sent), client.WithImageStore(imageMap{}), client.WithLeasesService(h.leases),
		client.WithSnapshotters(map[string]snapshots.Snapshotter{"native": h.snap}), client.WithDiffService(applier{h}), client.WithIntrospectionService(exports{})))
	if err != nil {
		t.Fatal(err)
	}
	h.Client = &Client{c: c}
	t.Cleanup(func() {
		if h.leases.n != 0 {
			t.Errorf("%d leases are left", h.leases.n)
		}
	})
	return h
}

// imageMap keeps images as containerd's metadata store does.
type imageMap map[string]images.Image

func (m imageMap) Get(_ context.Context, name string) (images.Image, error) {
	img, ok := m[name]
	if !ok {
		return images.Image{}, errdefs.ErrNotFound
	}
	img.Labels = maps.Clone(img.Labels)
	return img, nil
}
func (m imageMap) List(context.Context, ...string) ([]images.Image, error) {
	return slices.Collect(maps.Values(m)), nil
}
func (m imageMap) Create(_ context.Context, img images.Image) (images.Image, error) {
	if _, ok := m[img.Name]; ok {
		return images.Image{}, errdefs.ErrAlreadyExists
	}
	m[img.Name] = img
	return img, nil
}
func (m imageMap) Update(ctx context.Context, img images.Image, fields ...string) (images.Image, error) {
	out, err := m.Get(ctx, img.Name)
	if err != nil {
		return out, err
	}
	if out.Labels == nil {
		out.Labels = map[string]string{}
	}
	for _, f := range fields {
		label, isLabel := strings.CutPrefix(f, "labels.")
		switch {
		case f == "target":
			out.Target = img.Target
		case isLabel && img.Labels[label] == "":
			delete(out.Labels, label)
		case isLabel:
			out.Labels[label] = img.Labels[label]
		default:
			return out, errdefs.ErrInvalidArgument
		}
	}
	m[img.Name] = out
	return out, nil
}
func (m imageMap) Delete(_ context.Context, name string, _ ...images.DeleteOpt) error {
	delete(m, name)
	return nil
}

type leaseList struct {
	leases.Manager
	n int
}

func (l *leaseList) Create(context.Context, ...leases.Opt) (leases.Lease, error) {
	l.n++
	return leases.Lease{ID: "lease"}, nil
}
func (l *leaseList) Delete(context.Context, leases.Lease, ...leases.DeleteOpt) error {
	l.n--
	return nil
}

// sentBlobs counts the bytes that are written.
type sentBlobs struct {
	content.Store
	n int
}

func (s *sentBlobs) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return countedWriter{w, s}, nil
}

type countedWriter struct {
	content.Writer
	s *sentBlobs
}

func (w countedWriter) Write(p []byte) (int, error) {
	w.s.n += len(p)
	return w.Writer.Write(p)
}

// names is a snapshotter that has nothing but names.
type names struct {
	snapshots.Snapshotter
	mu        sync.Mutex
	committed map[string]bool
}

func (s *names) Stat(_ context.Context, key string) (snapshots.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.committed[key] {
		return snapshots.Info{}, errdefs.ErrNotFound
	}
	return snapshots.Info{Name: key}, nil
}
func (s *names) Prepare(context.Context, string, string, ...snapshots.Opt) ([]mount.Mount, error) {
	return nil, nil
}
func (s *names) Remove(context.Context, string) error { return nil }
func (s *names) Commit(_ context.Context, name, _ string, _ ...snapshots.Opt) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.committed[name] = true
	return nil
}

// applier hashes a layer, which is plain.
type applier struct{ h *halfDaemon }

func (a applier) Apply(ctx context.Context, desc ocispec.Descriptor, _ []mount.Mount, _ ...diff.ApplyOpt) (ocispec.Descriptor, error) {
	if a.h.full {
		return ocispec.Descriptor{}, errors.New("rpc error: code = Unknown desc = failed to extract layer: write /var/lib/containerd/native/1/hello: no space left on device: unknown")
	}
	b, err := content.ReadBlob(ctx, a.h.sent, desc)
	return ocispec.Descriptor{Digest: digest.FromBytes(b)}, err
}

func (applier) Compare(context.Context, []mount.Mount, []mount.Mount, ...diff.Opt) (ocispec.Descriptor, error) {
	return ocispec.Descriptor{}, errors.ErrUnsupported
}

type exports struct{ introspection.Service }

func (exports) Plugins(context.Context, ...string) (*introspectionapi.PluginsResponse, error) {
	return &introspectionapi.PluginsResponse{Plugins: []*introspectionapi.Plugin{
		{Type: "io.containerd.content.v1", ID: "content", Exports: map[string]string{"root": "/data/content"}},
		{Type: "io.containerd.snapshotter.v1", ID: "native", Exports: map[string]string{"root": "/data/native"}},
		{Type: "io.containerd.snapshotter.v1", ID: "zfs", Exports: map[string]string{"root": "/data/zfs"}},
	}}, nil
}

// has says whether the daemon's namespace has a blob.
func (h *halfDaemon) blob(t *testing.T, b []byte) bool {
	t.Helper()
	_, err := h.c.ContentStore().Info(namespaces.WithNamespace(t.Context(), "k8s.io"), digest.FromBytes(b))
	if err != nil && !errdefs.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

func inspected(t *testing.T, b []byte) *imagearchive.Archive {
	t.Helper()
	a, err := imagearchive.Inspect(t.Context(), bytes.NewReader(b))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// severalImages is a layout of images by name. A layer of those in broken is left out.
func severalImages(t *testing.T, names, broken []string) []byte {
	t.Helper()
	files := []any{"oci-layout", ocispec.ImageLayout{Version: "1.0.0"}}
	index := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}}
	for _, name := range names {
		one := unpackTar(t, ociArchive(t, name, name, "", linux("amd64")))
		layer := digest.FromBytes(layerOf(t, name+"amd64")).Encoded()
		for path, b := range one {
			switch {
			case path == "index.json":
				var i ocispec.Index
				decode(t, b, &i)
				index.Manifests = append(index.Manifests, i.Manifests...)
			case path == "oci-layout", slices.Contains(broken, name) && strings.HasSuffix(path, layer):
			default:
				files = append(files, path, b)
			}
		}
	}
	return archiveOf(t, append(files, "index.json", index)...)
}

func TestImport(t *testing.T) {
	h := startHalf(t)
	opts := ImportOptions{Snapshotter: "native", Platform: "linux/amd64"}
	b := dockerArchive(t, "app:1", "one", linux("amd64"))
	got, err := h.Import(t.Context(), bytes.NewReader(gzipped(t, b)), opts)
	if err != nil || len(got) != 1 || got[0].Name != "docker.io/library/app:1" || !got[0].Changed {
		t.Fatalf("got %+v, %v", got, err)
	}
	got, err = h.Import(t.Context(), bytes.NewReader(b), opts)
	if err != nil || len(got) != 1 || got[0].Changed {
		t.Errorf("once more: %+v, %v", got, err)
	}
	if !h.blob(t, layerOf(t, "one")) {
		t.Error("the layer is not there")
	}
}

// What fails of an archive is named, and the rest is there.
func TestOneImageFails(t *testing.T) {
	h := startHalf(t)
	b := severalImages(t, []string{"a:1", "b:1", "c:1", "Bad Name/x", "d:1"}, []string{"b:1", "c:1"})
	got, err := h.Import(t.Context(), bytes.NewReader(b), ImportOptions{Snapshotter: "native", Platform: "linux/amd64", Pin: true})
	var names []string
	for _, img := range got {
		names = append(names, img.Name)
	}
	want := []string{"docker.io/library/a:1", "docker.io/library/d:1"}
	if diff := cmp.Diff(want, names); diff != "" {
		t.Errorf("images (-want +got):\n%s", diff)
	}
	for _, says := range []string{"import image docker.io/library/b:1: the archive lacks a part", "import image docker.io/library/c:1: the archive lacks a part", `image name "Bad Name/x"`} {
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("error %v, want %q", err, says)
		}
	}
	there, err := h.Present(t.Context(), "", []string{"docker.io/library/a:1", "docker.io/library/b:1", "docker.io/library/d:1"})
	if err != nil || len(there) != 2 || there[want[0]] != got[0].Digest || there[want[1]] != got[1].Digest {
		t.Errorf("there are %v, %v", there, err)
	}
}

// A blob that is there is not sent again, whoever brought it.
func TestNothingIsSentTwice(t *testing.T) {
	h := startHalf(t)
	opts := ImportOptions{Snapshotter: "native", Platform: "linux/amd64"}
	b := ociArchive(t, "app:1", strings.Repeat("x", 1<<20), "", linux("amd64"), linux("arm64"))
	if _, err := h.Import(t.Context(), bytes.NewReader(b), opts); err != nil {
		t.Fatal(err)
	}
	if h.sent.n < 2<<20 {
		t.Fatalf("%d bytes were sent", h.sent.n)
	}
	h.sent.n = 0
	again := ociArchive(t, "other:1", strings.Repeat("x", 1<<20), "", linux("amd64"))
	if got, err := h.Import(t.Context(), bytes.NewReader(again), opts); err != nil || !got[0].Changed {
		t.Fatalf("got %+v, %v", got, err)
	}
	if h.sent.n > 1<<16 {
		t.Errorf("%d bytes were sent again", h.sent.n)
	}
	for _, name := range []string{"app", "other"} {
		digest := inspected(t, map[string][]byte{"app": b, "other": again}[name]).Images[0].Digest
		if ok, err := h.Has(t.Context(), "docker.io/library/"+name+":1", digest, "native", "linux/amd64"); !ok || err != nil {
			t.Errorf("%s: has %v, %v", name, ok, err)
		}
	}
}

func TestPlatformAlone(t *testing.T) {
	b := ociArchive(t, "app:1", "x", "", linux("amd64"), linux("arm64"))
	for _, known := range []bool{true, false} {
		h := startHalf(t)
		opts := ImportOptions{Snapshotter: "native", Platform: "linux/amd64"}
		if known {
			opts.Archive = inspected(t, b)
		}
		var other []byte
		store := &watchedStore{Store: h.sent.Store, committed: map[digest.Digest]bool{}}
		h.sent.Store = store
		if _, err := h.Import(t.Context(), bytes.NewReader(b), opts); err != nil {
			t.Fatal(err)
		}
		other = layerOf(t, "xarm64")
		if got := store.committed[digest.FromBytes(other)]; got == known {
			t.Errorf("known %v: the other platform's layer was stored: %v", known, got)
		}
		if !h.blob(t, layerOf(t, "xamd64")) {
			t.Error("the platform's own layer is not there")
		}
	}
}

// watchedStore remembers what was committed to it.
type watchedStore struct {
	content.Store
	committed map[digest.Digest]bool
}

func (s *watchedStore) Writer(ctx context.Context, opts ...content.WriterOpt) (content.Writer, error) {
	w, err := s.Store.Writer(ctx, opts...)
	if err != nil {
		return nil, err
	}
	return watchedWriter{w, s}, nil
}

type watchedWriter struct {
	content.Writer
	s *watchedStore
}

func (w watchedWriter) Commit(ctx context.Context, size int64, expected digest.Digest, opts ...content.Opt) error {
	err := w.Writer.Commit(ctx, size, expected, opts...)
	w.s.committed[w.Digest()] = err == nil
	return err
}

// An archive whose images are all there is not read.
func TestPresentArchiveIsNotRead(t *testing.T) {
	h := startHalf(t)
	b := ociArchive(t, "app:1", "x", "", linux("amd64"), linux("arm64"))
	opts := ImportOptions{Snapshotter: "native", Platform: "linux/amd64", Archive: inspected(t, b)}
	if got, err := h.Import(t.Context(), bytes.NewReader(b), opts); err != nil || !got[0].Changed {
		t.Fatalf("got %+v, %v", got, err)
	}
	unread := errors.New("it was read")
	got, err := h.Import(t.Context(), iotestErr{unread}, opts)
	if err != nil || len(got) != 1 || got[0].Changed || got[0].Pinned {
		t.Errorf("the same: %+v, %v", got, err)
	}
	opts.Pin = true
	if got, err := h.Import(t.Context(), iotestErr{unread}, opts); err != nil || !got[0].Changed || !got[0].Pinned {
		t.Errorf("pinned: %+v, %v", got, err)
	}

	// What is not just so is read.
	for name, spoil := range map[string]func(){
		"not unpacked": func() { clear(h.snap.committed) },
		"other image": func() {
			if _, err := h.Import(t.Context(), bytes.NewReader(ociArchive(t, "app:1", "y", "", linux("amd64"))), ImportOptions{Snapshotter: "native", Platform: "linux/amd64"}); err != nil {
				t.Fatal(err)
			}
		},
	} {
		spoil()
		if _, err := h.Import(t.Context(), iotestErr{unread}, opts); !errors.Is(err, unread) {
			t.Errorf("%s: %v", name, err)
		}
		if got, err := h.Import(t.Context(), bytes.NewReader(b), opts); err != nil || len(got) != 1 || !got[0].Pinned {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	for _, c := range []struct{ name, digest, snapshotter, platform string }{
		{"docker.io/library/nonesuch:1", opts.Archive.Images[0].Digest, "native", "linux/amd64"},
		{"docker.io/library/app:1", digest.FromString("x").String(), "native", "linux/amd64"},
		{"docker.io/library/app:1", opts.Archive.Images[0].Digest, "native", "linux/arm64"},
	} {
		if ok, err := h.Has(t.Context(), c.name, c.digest, c.snapshotter, c.platform); ok || err != nil {
			t.Errorf("has %+v: %v, %v", c, ok, err)
		}
	}
	if _, err := h.Has(t.Context(), "docker.io/library/app:1", opts.Archive.Images[0].Digest, "native", "a/b/c/d"); err == nil {
		t.Error("an impossible platform is no error")
	}
}

type iotestErr struct{ err error }

func (r iotestErr) Read([]byte) (int, error) { return 0, r.err }

// A layout's file that is not what its name says gets nowhere.
func TestWrongBlob(t *testing.T) {
	h := startHalf(t)
	b := ociArchive(t, "app:1", "good", "", linux("amd64"))
	at := bytes.Index(b, []byte("good"))
	b[at] = 'f'
	got, err := h.Import(t.Context(), bytes.NewReader(b), ImportOptions{Snapshotter: "native", Platform: "linux/amd64"})
	if err == nil || len(got) != 0 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestPins(t *testing.T) {
	h := startHalf(t)
	opts := ImportOptions{Snapshotter: "native", Platform: "linux/amd64"}
	b := severalImages(t, []string{"a:1", "b:1"}, nil)
	if _, err := h.Import(t.Context(), bytes.NewReader(b), opts); err != nil {
		t.Fatal(err)
	}
	a, gone := "docker.io/library/a:1", "docker.io/library/gone:1"
	pinned := func() (out []string) {
		list, err := h.Images(t.Context(), "")
		if err != nil {
			t.Fatal(err)
		}
		for _, img := range list {
			if img.Pinned {
				out = append(out, img.Name)
			}
		}
		return out
	}
	for range 2 {
		if err := h.Pin(t.Context(), "", []string{gone, a}); err != nil {
			t.Error(err)
		}
		if got := pinned(); !slices.Equal(got, []string{a}) {
			t.Errorf("pinned %q", got)
		}
	}
	// Others' labels stay as they are.
	ctx := namespaces.WithNamespace(t.Context(), "k8s.io")
	img, err := h.c.ImageService().Get(ctx, a)
	if err != nil {
		t.Fatal(err)
	}
	img.Labels = map[string]string{"io.cri-containerd.image": "managed"}
	if _, err := h.c.ImageService().Update(ctx, img, "labels.io.cri-containerd.image"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := h.Unpin(t.Context(), "", []string{gone, a}); err != nil {
			t.Error(err)
		}
		if got := pinned(); got != nil {
			t.Errorf("pinned %q", got)
		}
	}
	img, err = h.c.ImageService().Get(ctx, a)
	if diff := cmp.Diff(map[string]string{"io.cri-containerd.image": "managed"}, img.Labels); diff != "" || err != nil {
		t.Errorf("%v, labels (-want +got):\n%s", err, diff)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if there, err := h.Present(ended, "", nil); len(there) != 0 {
		t.Errorf("nothing was asked for: %v, %v", there, err)
	}
}

// A disk that fills is named.
func TestDiskIsFull(t *testing.T) {
	h := startHalf(t)
	h.full = true
	opts := ImportOptions{Snapshotter: "native", Platform: "linux/amd64"}
	_, err := h.Import(t.Context(), bytes.NewReader(dockerArchive(t, "app:1", "one", linux("amd64"))), opts)
	if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "the disk of /data/content or /data/native is full") || !strings.Contains(err.Error(), "app:1") {
		t.Errorf("got %v", err)
	}
	if list, err := h.Images(t.Context(), ""); err != nil || len(list) != 0 {
		t.Errorf("images are left: %v, %v", list, err)
	}
	h.full = false
	if _, err := h.Import(t.Context(), bytes.NewReader(dockerArchive(t, "app:1", "one", linux("amd64"))), opts); err != nil {
		t.Errorf("with room again: %v", err)
	}
	// An archive that cannot be read to its end is no matter of disks.
	_, err = h.Import(t.Context(), io.MultiReader(strings.NewReader("x")), opts)
	if err == nil || errors.Is(err, syscall.ENOSPC) {
		t.Errorf("no archive: %v", err)
	}
}
