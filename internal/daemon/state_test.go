package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageList is an image store that can be listed.
type imageList struct {
	images.Store
	all []images.Image
}

func (l imageList) List(_ context.Context, filters ...string) ([]images.Image, error) {
	if len(filters) == 0 {
		return l.all, nil
	}
	var out []images.Image
	for _, img := range l.all {
		if slices.Contains(filters, `name=="`+img.Name+`"`) {
			out = append(out, img)
		}
	}
	return out, nil
}

// labelsInMemory keeps labels of content.
type labelsInMemory map[digest.Digest]map[string]string

func (l labelsInMemory) Get(d digest.Digest) (map[string]string, error) { return l[d], nil }
func (l labelsInMemory) Set(d digest.Digest, labels map[string]string) error {
	l[d] = labels
	return nil
}
func (l labelsInMemory) Update(d digest.Digest, labels map[string]string) (map[string]string, error) {
	l[d] = labels
	return labels, nil
}

// unpacked is a snapshotter that has these snapshots.
type unpacked struct {
	snapshots.Snapshotter
	keys []string
}

func (u unpacked) Stat(_ context.Context, key string) (snapshots.Info, error) {
	if slices.Contains(u.keys, key) {
		return snapshots.Info{Name: key}, nil
	}
	return snapshots.Info{}, errdefs.ErrNotFound
}

// containerList is a store of containers that can be listed.
type containerList struct {
	containers.Store
	all []containers.Container
}

func (l containerList) List(context.Context, ...string) ([]containers.Container, error) {
	return l.all, nil
}

func TestImageStates(t *testing.T) {
	store, err := local.NewLabeledStore(t.TempDir(), labelsInMemory{})
	if err != nil {
		t.Fatal(err)
	}
	blob := func(v any, mediaType string, keep bool) ocispec.Descriptor {
		t.Helper()
		b, ok := v.([]byte)
		if !ok {
			if b, err = json.Marshal(v); err != nil {
				t.Fatal(err)
			}
		}
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(b), Size: int64(len(b))}
		if keep {
			if err := content.WriteBlob(t.Context(), store, d.Digest.String(), bytes.NewReader(b), d); err != nil {
				t.Fatal(err)
			}
		}
		return d
	}
	// has says which parts of an image are there.
	type has struct{ manifest, config, layer bool }
	all, noLayer := has{true, true, true}, has{true, true, false}
	snapshotter := unpacked{}
	image := func(text string, p ocispec.Platform, h has) ocispec.Descriptor {
		layer := layerOf(t, text+p.Architecture)
		return blob(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: blob(configOf(p, layer), ocispec.MediaTypeImageConfig, h.config),
			Layers: []ocispec.Descriptor{blob(layer, ocispec.MediaTypeImageLayer, h.layer)},
		}, ocispec.MediaTypeImageManifest, h.manifest)
	}
	index := func(text string, parts map[string]has, attested bool) ocispec.Descriptor {
		i := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex}
		for _, arch := range []string{"arm64", "amd64", "s390x"} {
			if h, ok := parts[arch]; ok {
				m := image(text, linux(arch), h)
				p := linux(arch)
				m.Platform = &p
				i.Manifests = append(i.Manifests, m)
			}
		}
		if attested {
			m := image(text+"attestation", linux(""), has{})
			m.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
			i.Manifests = append(i.Manifests, m)
		}
		return blob(i, ocispec.MediaTypeImageIndex, true)
	}
	snapshotter.keys = append(snapshotter.keys, identity.ChainID(configOf(linux("amd64"), layerOf(t, "unpackedamd64")).RootFS.DiffIDs).String())
	silent := ocispec.Index{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{image("silent", linux("amd64"), all)}}

	list := imageList{}
	want := map[string]ImageState{}
	for name, c := range map[string]struct {
		target ocispec.Descriptor
		want   ImageState
	}{
		"index":         {index("index", map[string]has{"amd64": all, "arm64": {}}, true), ImageState{Complete: true, Platforms: []string{"linux/amd64"}}},
		"all":           {index("all", map[string]has{"amd64": all, "arm64": all}, false), ImageState{Complete: true, Platforms: []string{"linux/arm64", "linux/amd64"}}},
		"other only":    {index("other", map[string]has{"arm64": all, "s390x": {}}, true), ImageState{Platforms: []string{"linux/arm64"}}},
		"listed only":   {index("listed", map[string]has{"arm64": all, "amd64": {}}, false), ImageState{Platforms: []string{"linux/arm64"}, Missing: []string{"a manifest"}}},
		"no config":     {index("noconfig", map[string]has{"amd64": {manifest: true}}, false), ImageState{Platforms: []string{"linux/amd64"}, Missing: []string{"a config"}}},
		"no layer":      {image("nolayer", linux("amd64"), noLayer), ImageState{Platforms: []string{"linux/amd64"}, Missing: []string{"a layer"}}},
		"unpacked":      {image("unpacked", linux("amd64"), noLayer), ImageState{Complete: true, Platforms: []string{"linux/amd64"}}},
		"single":        {image("single", linux("amd64"), all), ImageState{Complete: true, Platforms: []string{"linux/amd64"}}},
		"single, other": {image("foreign", linux("arm64"), all), ImageState{Platforms: []string{"linux/arm64"}}},
		"says nothing":  {image("nothing", ocispec.Platform{}, all), ImageState{Complete: true}},
		"silent index":  {blob(silent, ocispec.MediaTypeImageIndex, true), ImageState{Complete: true, Platforms: []string{"linux/amd64"}}},
		"gone":          {image("gone", linux("amd64"), has{}), ImageState{Missing: []string{"itself"}}},
		"chart": {blob(ocispec.Manifest{
			Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
			Config: blob([]byte("{}"), "application/vnd.cncf.helm.config.v1+json", true),
		}, ocispec.MediaTypeImageManifest, true), ImageState{Artifact: true}},
	} {
		c.want.Name, c.want.Digest = name, c.target.Digest.String()
		want[name] = c.want
		list.all = append(list.all, images.Image{Name: name, Target: c.target})
	}
	// CRI names an image again.
	again := list.all[0]
	again.Name, again.Labels = "sha256:again", map[string]string{pinnedLabel: pinnedValue}
	twice := want[list.all[0].Name]
	twice.Name, twice.Pinned = again.Name, true
	want[again.Name] = twice
	list.all = append(list.all, again)

	// A container that was made of an image uses all names of it.
	users := containerList{all: []containers.Container{{ID: "1", Image: again.Name}, {ID: "2", Image: "long gone"}}}
	for _, name := range []string{again.Name, list.all[0].Name} {
		s := want[name]
		s.InUse = true
		want[name] = s
	}
	// What another runtime's snapshotter has is complete, too.
	elsewhere := image("elsewhere", linux("amd64"), noLayer)
	var m ocispec.Manifest
	b, err := content.ReadBlob(t.Context(), store, elsewhere)
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err == nil {
		_, err = store.Update(t.Context(), content.Info{Digest: m.Config.Digest, Labels: map[string]string{snapshotLabel + "native": "x"}}, "labels")
	}
	if err != nil {
		t.Fatal(err)
	}
	native := unpacked{keys: []string{identity.ChainID(configOf(linux("amd64"), layerOf(t, "elsewhereamd64")).RootFS.DiffIDs).String()}}
	list.all = append(list.all, images.Image{Name: "elsewhere", Target: elsewhere})
	want["elsewhere"] = ImageState{Image: Image{Name: "elsewhere", Digest: elsewhere.Digest.String()}, Complete: true, Platforms: []string{"linux/amd64"}}

	c, err := client.New("", client.WithServices(client.WithContentStore(store), client.WithImageStore(list), client.WithContainerStore(users),
		client.WithSnapshotters(map[string]snapshots.Snapshotter{"overlayfs": snapshotter, "native": native})))
	if err != nil {
		t.Fatal(err)
	}
	d := &Client{c: c}
	got, err := d.ImageStates(t.Context(), "", "linux/amd64", "overlayfs")
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) || !slices.IsSortedFunc(got, func(a, b ImageState) int { return strings.Compare(a.Name, b.Name) }) {
		t.Errorf("%d images, want %d sorted by name: %+v", len(got), len(want), got)
	}
	for _, s := range got {
		if w := want[s.Name]; len(s.Missing) == len(w.Missing) {
			s.Missing = w.Missing // which one it is, the table tells only in words
		}
		if diff := cmp.Diff(want[s.Name], s); diff != "" {
			t.Errorf("%s (-want +got):\n%s", s.Name, diff)
		}
	}

	one, err := d.ImageStates(t.Context(), "k8s.io", "linux/arm64", "", "single, other")
	if err != nil || len(one) != 1 || !one[0].Complete {
		t.Errorf("one image for its own platform: %+v, %v", one, err)
	}
	if none, err := d.ImageStates(t.Context(), "", "", "", "nonesuch"); err != nil || none != nil {
		t.Errorf("an image that is not there: %+v, %v", none, err)
	}
	if _, err := d.ImageStates(t.Context(), "", "a/b/c/d", ""); err == nil {
		t.Error("an impossible platform is no error")
	}
}

// A daemon with thousands of images is not read whole; who asks by name is answered.
func TestImageStatesAreBounded(t *testing.T) {
	dir := t.TempDir()
	store, err := local.NewStore(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "blobs"), 0o700); err != nil {
		t.Fatal(err)
	}
	list := imageList{}
	for i := range mostStates + 7 {
		name := fmt.Sprintf("%04d", i)
		list.all = append(list.all, images.Image{Name: name, Target: ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(name)}})
	}
	c, err := client.New("", client.WithServices(client.WithContentStore(store), client.WithImageStore(list), client.WithContainerStore(containerList{})))
	if err != nil {
		t.Fatal(err)
	}
	d := &Client{c: c}
	got, err := d.ImageStates(t.Context(), "", "linux/amd64", "")
	unlooked := 0
	for _, s := range got {
		if s.Unlooked {
			unlooked++
		}
	}
	if err != nil || len(got) != mostStates+7 || unlooked != 7 {
		t.Errorf("%d images, %d of them not looked at, %v", len(got), unlooked, err)
	}
	if got, err := d.ImageStates(t.Context(), "", "linux/amd64", "", list.all[mostStates+1].Name); err != nil || len(got) != 1 || got[0].Unlooked {
		t.Errorf("by name: %+v, %v", got, err)
	}
}
