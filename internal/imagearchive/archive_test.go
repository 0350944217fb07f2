package imagearchive

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// entry is a file of an archive; a link if it has a target.
type entry struct {
	name, target string
	kind         byte
	content      []byte
}

func file(name string, content any) entry {
	b, ok := content.([]byte)
	if !ok {
		var err error
		if b, err = json.Marshal(content); err != nil {
			panic(err)
		}
	}
	return entry{name: name, kind: tar.TypeReg, content: b}
}

func link(kind byte, name, target string) entry { return entry{name: name, target: target, kind: kind} }

func pack(entries ...entry) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, e := range entries {
		if err := w.WriteHeader(&tar.Header{Name: e.name, Linkname: e.target, Typeflag: e.kind, Mode: 0o644, Size: int64(len(e.content))}); err != nil {
			panic(err)
		}
		if _, err := w.Write(e.content); err != nil {
			panic(err)
		}
	}
	if err := w.Close(); err != nil {
		panic(err)
	}
	return b.Bytes()
}

func gzipped(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(b)
	if err := errors.Join(err, w.Close()); err != nil {
		panic(err)
	}
	return out.Bytes()
}

func zstded(b []byte) []byte {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		panic(err)
	}
	return w.EncodeAll(b, nil)
}

// layerOf is a layer with one file of noise, which does not pack well.
func layerOf(text string, size int) []byte {
	b := make([]byte, size)
	seed := [32]byte{}
	copy(seed[:], text)
	_, _ = rand.NewChaCha8(seed).Read(b)
	return pack(file("hello", b))
}

func platform(s string) ocispec.Platform {
	parts := append(strings.Split(s, "/"), "", "")
	return ocispec.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}
}

func configOf(p string, layers ...[]byte) ocispec.Image {
	c := ocispec.Image{Platform: platform(p), Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}}, RootFS: ocispec.RootFS{Type: "layers"}}
	for _, l := range layers {
		c.RootFS.DiffIDs = append(c.RootFS.DiffIDs, digest.FromBytes(l))
	}
	return c
}

// layout makes an OCI layout. Blobs whose name contains one of absent are left out.
type layout struct {
	blobs []entry
	top   []ocispec.Descriptor
}

func (l *layout) blob(mediaType string, content any) ocispec.Descriptor {
	e := file("", content)
	d := digest.FromBytes(e.content)
	e.name = "blobs/sha256/" + d.Encoded()
	if !slices.ContainsFunc(l.blobs, func(o entry) bool { return o.name == e.name }) {
		l.blobs = append(l.blobs, e)
	}
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(e.content))}
}

func (l *layout) without(d digest.Digest) {
	l.blobs = slices.DeleteFunc(l.blobs, func(e entry) bool { return strings.HasSuffix(e.name, d.Encoded()) })
}

var versioned = specs.Versioned{SchemaVersion: 2}

func (l *layout) manifest(p string, layers ...[]byte) (ocispec.Descriptor, ocispec.Manifest) {
	m := ocispec.Manifest{Versioned: versioned, MediaType: ocispec.MediaTypeImageManifest, Config: l.blob(ocispec.MediaTypeImageConfig, configOf(p, layers...))}
	for _, b := range layers {
		m.Layers = append(m.Layers, l.blob(ocispec.MediaTypeImageLayer, b))
	}
	return l.blob(ocispec.MediaTypeImageManifest, m), m
}

// multi is an index with an image and its attestation for each platform.
func (l *layout) multi(text string, all ...string) (ocispec.Descriptor, map[string]ocispec.Manifest) {
	manifests := map[string]ocispec.Manifest{}
	index := ocispec.Index{Versioned: versioned, MediaType: ocispec.MediaTypeImageIndex}
	for _, p := range all {
		d, m := l.manifest(p, layerOf("common", 900), layerOf(text+p, 3000))
		manifests[p] = m
		at := platform(p)
		d.Platform = &at
		statement := l.blob("application/vnd.in-toto+json", map[string]string{"_type": "statement", "of": p})
		attestation := l.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{
			Versioned: versioned, Config: l.blob(ocispec.MediaTypeImageConfig, configOf("unknown/unknown")), Layers: []ocispec.Descriptor{statement},
		})
		attestation.Platform = &ocispec.Platform{OS: "unknown", Architecture: "unknown"}
		attestation.Annotations = map[string]string{"vnd.docker.reference.type": "attestation-manifest", "vnd.docker.reference.digest": d.Digest.String()}
		index.Manifests = append(index.Manifests, d, attestation)
	}
	return l.blob(ocispec.MediaTypeImageIndex, index), manifests
}

func (l *layout) named(d ocispec.Descriptor, name string) {
	if name != "" {
		d.Annotations = map[string]string{ocispec.AnnotationRefName: name}
	}
	l.top = append(l.top, d)
}

func (l *layout) entries() []entry {
	return append(slices.Clone(l.blobs), file("index.json", ocispec.Index{Versioned: versioned, Manifests: l.top}), file("oci-layout", ocispec.ImageLayout{Version: "1.0.0"}))
}

func single(name, p string) *layout {
	l := &layout{}
	d, _ := l.manifest(p, layerOf("one", 3000))
	l.named(d, name)
	return l
}

// dockerSave is an archive of docker's own kind, with folders of layers.
func dockerSave(p string, tags ...string) []entry {
	one, two := layerOf("one", 3000), layerOf("two", 5000)
	return []entry{
		file("1/VERSION", []byte("1.0")), file("1/json", map[string]string{"id": "1"}), file("1/layer.tar", one),
		file("2/VERSION", []byte("1.0")), file("2/json", map[string]string{"id": "2"}), file("2/layer.tar", two),
		file("c.json", configOf(p, one, two)),
		file("manifest.json", []dockerImage{{"c.json", tags, []string{"1/layer.tar", "2/layer.tar"}}}),
		file("repositories", map[string]any{}),
	}
}

var ignored = cmp.Options{cmpopts.IgnoreUnexported(Image{}), cmpopts.IgnoreFields(Image{}, "Digest", "Stored", "Unpacked"), cmpopts.EquateEmpty()}

func TestInspect(t *testing.T) {
	multi := &layout{}
	d, _ := multi.multi("x", "linux/amd64", "linux/arm64/v8", "linux/arm/v7")
	multi.named(d, "example.com/app:1")

	partial := &layout{}
	d, parts := partial.multi("x", "linux/amd64", "linux/arm64")
	partial.named(d, "app:1")
	partial.without(parts["linux/arm64"].Layers[1].Digest)

	headless := &layout{}
	d, _ = headless.multi("x", "linux/amd64", "linux/arm64")
	headless.named(d, "app:1")
	var gone ocispec.Index
	for _, e := range headless.blobs {
		if strings.HasSuffix(e.name, d.Digest.Encoded()) {
			if err := json.Unmarshal(e.content, &gone); err != nil {
				t.Fatal(err)
			}
		}
	}
	headless.without(gone.Manifests[0].Digest)

	configless := &layout{}
	d, m := configless.manifest("linux/amd64", layerOf("x", 99))
	configless.named(d, "app:1")
	configless.without(m.Config.Digest)

	two := &layout{}
	d, _ = two.manifest("linux/amd64", layerOf("x", 99))
	two.named(d, "app:1")
	two.named(d, "app:2")
	two.named(d, "latest")
	d, _ = two.manifest("linux/amd64", layerOf("y", 99))
	two.named(d, "")

	// docker save of today: both kinds in one, as docker's containerd image store has it.
	both := single("example.com/app:1", "linux/amd64")
	both.blobs = append(both.blobs, file("manifest.json", []dockerImage{{"blobs/sha256/x", []string{"example.com/app:1"}, nil}}))

	nested := &layout{}
	inner, _ := nested.multi("x", "linux/amd64")
	nested.named(nested.blob(ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: versioned, Manifests: []ocispec.Descriptor{inner}}), "app:1")

	one := layerOf("one", 3000)
	linked := []entry{
		file("1/layer.tar", one), link(tar.TypeSymlink, "2/layer.tar", "../1/layer.tar"),
		file("c.json", configOf("linux/amd64", one, one)),
		file("manifest.json", []dockerImage{{"c.json", []string{"app:1"}, []string{"1/layer.tar", "2/layer.tar"}}}),
	}
	hardlinked := slices.Clone(linked)
	hardlinked[1] = link(tar.TypeLink, "2/layer.tar", "1/layer.tar")

	for name, c := range map[string]struct {
		in   []entry
		want []Image
		amd  string // what is wrong for linux/amd64
		arm  string // and for linux/arm64
	}{
		"docker save": {dockerSave("linux/amd64", "app:1", "example.com/app:2"),
			[]Image{{Names: []string{"docker.io/library/app:1", "example.com/app:2"}, Platforms: []string{"linux/amd64"}}}, "",
			"no image for linux/arm64 in the archive (docker.io/library/app:1, example.com/app:2 is for linux/amd64)"},
		"docker save without a name": {dockerSave("linux/amd64"), []Image{{Platforms: []string{"linux/amd64"}}},
			"no image for linux/amd64 in the archive (an image has no name: save it under its name", "an image has no name"},
		"docker save with a linked layer":      {linked, []Image{{Names: []string{"docker.io/library/app:1"}, Platforms: []string{"linux/amd64"}}}, "", "is for linux/amd64"},
		"docker save with a hard-linked layer": {hardlinked, []Image{{Names: []string{"docker.io/library/app:1"}, Missing: map[string][]string{"linux/amd64": {"layer 2/layer.tar (a hard link, which containerd does not follow)"}}}}, "docker.io/library/app:1 lacks parts for linux/amd64: layer 2/layer.tar (a hard link", "lacks parts"},
		"docker save without a layer": {[]entry{file("c.json", configOf("linux/amd64", one)), file("manifest.json", []dockerImage{{"c.json", []string{"app:1"}, []string{"l"}}})},
			[]Image{{Names: []string{"docker.io/library/app:1"}, Missing: map[string][]string{"linux/amd64": {"layer l"}}}}, "lacks parts for linux/amd64: layer l", "lacks parts for linux/arm64: layer l"},
		"oci": {single("example.com/app:1", "linux/amd64").entries(), []Image{{Names: []string{"example.com/app:1"}, Platforms: []string{"linux/amd64"}}}, "", "example.com/app:1 is for linux/amd64"},
		"oci with a tag alone": {single("3.10", "linux/amd64").entries(), []Image{{Tags: []string{"3.10"}, Platforms: []string{"linux/amd64"}}},
			`an image is called ["3.10"], which is no full name: save it under its name, such as registry.example.com/app:1`, `["3.10"]`},
		"oci without a name": {single("", "linux/amd64").entries(), []Image{{Platforms: []string{"linux/amd64"}}}, "an image has no name", "an image has no name"},
		"both kinds":         {both.entries(), []Image{{Names: []string{"example.com/app:1"}, Platforms: []string{"linux/amd64"}}}, "", "is for"},
		"multi-platform":     {multi.entries(), []Image{{Names: []string{"example.com/app:1"}, Platforms: []string{"linux/amd64", "linux/arm64", "linux/arm/v7"}}}, "", ""},
		"nested":             {nested.entries(), []Image{{Names: []string{"docker.io/library/app:1"}, Platforms: []string{"linux/amd64"}}}, "", "is for linux/amd64"},
		"a layer missing": {partial.entries(), []Image{{Names: []string{"docker.io/library/app:1"}, Platforms: []string{"linux/amd64"},
			Missing: map[string][]string{"linux/arm64": {"layer " + parts["linux/arm64"].Layers[1].Digest.String()}}}}, "", "docker.io/library/app:1 lacks parts for linux/arm64: layer sha256:"},
		"a manifest missing": {headless.entries(), []Image{{Names: []string{"docker.io/library/app:1"}, Platforms: []string{"linux/arm64"},
			Missing: map[string][]string{"linux/amd64": {"manifest " + gone.Manifests[0].Digest.String()}}}}, "lacks parts for linux/amd64: manifest sha256:", ""},
		"a config missing": {configless.entries(), []Image{{Names: []string{"docker.io/library/app:1"},
			Missing: map[string][]string{Unknown: {"config " + m.Config.Digest.String()}}}}, "lacks parts for linux/amd64: config", "lacks parts for linux/arm64: config"},
		"several": {two.entries(), []Image{
			{Names: []string{"docker.io/library/app:1", "docker.io/library/app:2"}, Tags: []string{"latest"}, Platforms: []string{"linux/amd64"}},
			{Platforms: []string{"linux/amd64"}}}, "", "no image for linux/arm64"},
	} {
		t.Run(name, func(t *testing.T) {
			plain := pack(c.in...)
			for packing, b := range map[string][]byte{"plain": plain, "gzip": gzipped(plain), "zstd": zstded(plain)} {
				a, err := Inspect(t.Context(), bytes.NewReader(b))
				if err != nil {
					t.Fatalf("%s: %v", packing, err)
				}
				if diff := cmp.Diff(c.want, a.Images, ignored); diff != "" {
					t.Errorf("%s (-want +got):\n%s", packing, diff)
				}
				for node, want := range map[string]string{"linux/amd64": c.amd, "linux/arm64": c.arm} {
					switch err := a.Usable(node); {
					case (err == nil) != (want == ""), err != nil && !strings.Contains(err.Error(), want):
						t.Errorf("%s: usable for %s: %v, want %q", packing, node, err, want)
					}
				}
				names, err := Names(t.Context(), bytes.NewReader(b))
				want := a.Names()
				slices.Sort(want)
				if diff := cmp.Diff(want, names, cmpopts.EquateEmpty()); diff != "" || err != nil {
					t.Errorf("%s: names alone: %v (-want +got):\n%s", packing, err, diff)
				}
			}
		})
	}
}

// The node's platform is chosen as containerd's client does it.
func TestPlatform(t *testing.T) {
	for _, c := range []struct {
		has  []string
		node string
		want string
	}{
		{[]string{"linux/386", "linux/amd64"}, "linux/amd64", "linux/amd64"},
		{[]string{"linux/386"}, "linux/amd64", "linux/386"},
		{[]string{"linux/arm/v6", "linux/arm/v7"}, "arm64", "linux/arm/v7"},
		{[]string{"linux/arm64", "linux/arm/v7"}, "arm64", "linux/arm64"},
		{[]string{"linux/arm64"}, "amd64", ""},
		{[]string{Unknown}, "amd64", Unknown},
		{[]string{Unknown, "linux/amd64"}, "amd64", "linux/amd64"},
		{nil, "amd64", ""},
	} {
		got, ok := Image{Platforms: c.has}.For(c.node)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s of %q: %q, %v; want %q", c.node, c.has, got, ok, c.want)
		}
	}
}

// A node's own layers are never among the foreign ones, also where platforms share one.
func TestForeign(t *testing.T) {
	l := &layout{}
	d, parts := l.multi("x", "linux/amd64", "linux/arm64")
	l.named(d, "app:1")
	a, err := Inspect(t.Context(), bytes.NewReader(pack(l.entries()...)))
	if err != nil {
		t.Fatal(err)
	}
	foreign := a.Foreign("linux/amd64")
	for p, m := range parts {
		for i, layer := range m.Layers {
			if want := p == "linux/arm64" && i == 1; foreign[layer.Digest] != want {
				t.Errorf("layer %d of %s: foreign %v", i, p, !want)
			}
		}
		if foreign[m.Config.Digest] {
			t.Errorf("the config of %s is foreign", p)
		}
	}
	// The arm64 layer and two attestations.
	if len(foreign) != 3 {
		t.Errorf("%d foreign layers, want 3", len(foreign))
	}
	save, err := Inspect(t.Context(), bytes.NewReader(pack(dockerSave("linux/arm64", "app:1")...)))
	if err != nil || len(save.Foreign("linux/amd64")) != 0 {
		t.Errorf("docker save: %v, %v", save, err)
	}
}

func TestSizes(t *testing.T) {
	layer := layerOf("x", 200_000)
	for name, packed := range map[string][]byte{"plain": layer, "gzip": gzipped(layer), "zstd": zstded(layer)} {
		l := &layout{}
		m := ocispec.Manifest{Versioned: versioned, Config: l.blob(ocispec.MediaTypeImageConfig, configOf("linux/amd64", layer)),
			Layers: []ocispec.Descriptor{l.blob(ocispec.MediaTypeImageLayer, packed)}}
		l.named(l.blob(ocispec.MediaTypeImageManifest, m), "app:1")
		a, err := Inspect(t.Context(), bytes.NewReader(pack(l.entries()...)))
		if err != nil {
			t.Fatal(err)
		}
		stored, unpacked := a.Images[0].Stored["linux/amd64"], a.Images[0].Unpacked["linux/amd64"]
		if want := int64(len(layer)); unpacked != want {
			t.Errorf("%s: unpacked %d, want %d", name, unpacked, want)
		}
		want := int64(0)
		for _, b := range l.blobs {
			want += int64(len(b.content))
		}
		if stored != want {
			t.Errorf("%s: stored %d, want %d", name, stored, want)
		}
	}
	// A packer that did not say how large it is.
	var b bytes.Buffer
	w, err := zstd.NewWriter(&b)
	if err != nil {
		t.Fatal(err)
	}
	for range 4 {
		if _, err := w.Write(layer); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got := guess(int64(b.Len()), b.Bytes()[:14], [8]byte{}); got.unpacked < int64(b.Len()) {
		t.Errorf("%d bytes of zstd are taken for %d", b.Len(), got.unpacked)
	}
}

func TestFaults(t *testing.T) {
	wrong := single("app:1", "linux/amd64")
	wrong.blobs[1].content = bytes.Clone(wrong.blobs[1].content)
	wrong.blobs[1].content[700] ^= 1

	flipped := dockerSave("linux/amd64", "app:1")
	flipped[2].content = bytes.Clone(flipped[2].content)
	flipped[2].content[700] ^= 1

	dangling := append(dockerSave("linux/amd64", "app:1"), link(tar.TypeSymlink, "3/layer.tar", "../4/layer.tar"))

	artifact := &layout{}
	artifact.named(artifact.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: versioned,
		Config: artifact.blob("application/vnd.cncf.helm.config.v1+json", map[string]string{"name": "x"})}), "example.com/chart:1")

	good := pack(single("app:1", "linux/amd64").entries()...)
	packed := gzipped(good)
	badSum := bytes.Clone(packed)
	badSum[len(badSum)-6] ^= 1
	badData := bytes.Clone(packed)
	badData[len(badData)/2] ^= 0xff
	badZstd := zstded(good)
	badZstd[len(badZstd)-1] ^= 0xff

	inFolder := single("app:1", "linux/amd64").entries()
	for i := range inFolder {
		inFolder[i].name = "app/" + inFolder[i].name
	}
	var wide []entry
	for i := range maxFiles + 1 {
		wide = append(wide, file(fmt.Sprint("f", i), []byte{}))
	}
	many := []dockerImage{{Config: "c.json", RepoTags: []string{"app:1"}, Layers: []string{"l"}}}
	entries := single("app:1", "linux/amd64").entries()

	for name, c := range map[string]struct {
		in   []byte
		is   error
		says string
	}{
		"empty":                {nil, ErrNoArchive, "it is empty"},
		"empty tar":            {pack(), ErrNoArchive, "a tar with nothing in it"},
		"zip":                  {append([]byte("PK\x03\x04"), make([]byte, 2000)...), ErrNoArchive, "a zip file"},
		"small zip":            {[]byte("PK\x03\x04 and little more"), ErrNoArchive, "a zip file"},
		"xz":                   {append([]byte("\xfd7zXZ\x00"), make([]byte, 2000)...), ErrNoArchive, "packed by xz"},
		"html":                 {[]byte("\n<!DOCTYPE HTML><html>" + strings.Repeat("please log in ", 100)), ErrNoArchive, "an HTML page"},
		"small html":           {[]byte("<html>404</html>"), ErrNoArchive, "an HTML page"},
		"json":                 {[]byte(`{"errors":[{"code":"UNAUTHORIZED"}]}`), ErrNoArchive, "a JSON document"},
		"git-lfs":              {[]byte("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n"), ErrNoArchive, "git lfs pull"},
		"packed twice":         {gzipped(packed), ErrNoArchive, "packed twice"},
		"noise":                {bytes.Repeat([]byte("noise"), 1000), ErrNoArchive, "not even a tar"},
		"root file system":     {pack(file("bin/sh", []byte{1}), file("etc/passwd", []byte{2})), ErrNoArchive, "docker save is wanted"},
		"some tar":             {pack(file("a", []byte{1})), ErrNoArchive, "neither manifest.json nor index.json"},
		"in a folder":          {pack(inFolder...), ErrNoArchive, "it is in the folder app (tar what is in there: tar -C app -cf FILE .)"},
		"no index.json":        {pack(slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return e.name == "index.json" })...), ErrNoArchive, "an image layout without its index.json"},
		"no oci-layout":        {pack(slices.DeleteFunc(slices.Clone(entries), func(e entry) bool { return e.name == "oci-layout" })...), ErrNoArchive, "an image layout without its file oci-layout"},
		"unknown layout":       {pack(file("oci-layout", ocispec.ImageLayout{Version: "2.0.0"}), file("index.json", ocispec.Index{})), ErrNoArchive, `version "2.0.0", not 1.0.0`},
		"empty index":          {pack(file("oci-layout", ocispec.ImageLayout{Version: "1.0.0"}), file("index.json", ocispec.Index{Manifests: []ocispec.Descriptor{}})), ErrNoArchive, "its index lists none"},
		"index is a list":      {pack(file("oci-layout", ocispec.ImageLayout{Version: "1.0.0"}), file("index.json", []int{})), ErrDamaged, "index.json is not what it should be"},
		"empty manifest.json":  {pack(file("manifest.json", []dockerImage{})), ErrNoArchive, "its manifest.json lists none"},
		"other manifest.json":  {pack(file("manifest.json", map[string]string{"name": "app"})), ErrDamaged, "manifest.json is not what an archive of images has there"},
		"broken manifest.json": {pack(file("manifest.json", []byte("[{"))), ErrDamaged, "manifest.json"},
		"artifact":             {pack(artifact.entries()...), ErrNoArchive, "an artifact of type application/vnd.cncf.helm.config.v1+json"},
		"impossible name":      {pack(dockerSave("linux/amd64", "No Good")...), ErrDamaged, `image name "No Good"`},
		"wrong digest":         {pack(wrong.entries()...), ErrDamaged, wrong.blobs[1].name + " has the digest sha256:"},
		"flipped layer":        {pack(flipped...), ErrDamaged, "1/layer.tar has the digest sha256:"},
		"dangling link":        {pack(dangling...), ErrDamaged, "3/layer.tar is a link to 4/layer.tar, which is not there"},
		"layers and config":    {pack(file("c.json", configOf("linux/amd64")), file("l", []byte("x")), file("manifest.json", many)), ErrDamaged, "c.json is of 0 layers, and its image has 1"},
		"gzip checksum":        {badSum, ErrDamaged, "its checksum does not fit"},
		"gzip data":            {badData, ErrDamaged, ""},
		"gzip header":          {[]byte("\x1f\x8b\xff\xff and so on and on"), ErrDamaged, ""},
		"zstd checksum":        {badZstd, ErrDamaged, "its checksum does not fit"},
		"too many files":       {pack(append(wide, file("c.json", configOf("linux/amd64")), file("manifest.json", many))...), ErrTooMuch, "65539 files"},
		"many files":           {pack(append(wide, file("etc/passwd", []byte{}))...), ErrNoArchive, "docker save is wanted"},
		"large manifest.json":  {pack(file("manifest.json", append([]byte("["), bytes.Repeat([]byte(" "), maxKept+1)...))), ErrTooMuch, "manifest.json is over 8 MiB"},
		"large index.json":     {pack(file("oci-layout", ocispec.ImageLayout{Version: "1.0.0"}), file("index.json", append([]byte("{"), bytes.Repeat([]byte(" "), maxDocument+1)...))), ErrTooMuch, "index.json"},
	} {
		t.Run(name, func(t *testing.T) {
			a, err := Inspect(t.Context(), bytes.NewReader(c.in))
			if !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %+v, %v; want %v, %q", a, err, c.is, c.says)
			}
		})
	}
}

// An archive that lost its end, wherever it was cut, is never taken for a whole one.
func TestCutAnywhere(t *testing.T) {
	indexFirst := single("app:1", "linux/amd64").entries()
	slices.Reverse(indexFirst)
	for name, in := range map[string][]entry{
		"docker": dockerSave("linux/amd64", "app:1"), "oci": single("app:1", "linux/amd64").entries(), "oci, index first": indexFirst,
	} {
		plain := pack(in...)
		for packing, b := range map[string][]byte{"plain": plain, "gzip": gzipped(plain), "zstd": zstded(plain)} {
			step := 512
			if packing != "plain" {
				step = 97
			}
			for n := 0; n < len(b); n++ {
				if n%step > 1 && n != len(b)-1 {
					continue
				}
				a, err := Inspect(t.Context(), bytes.NewReader(b[:n]))
				if err == nil {
					t.Fatalf("%s, %s: %d of %d bytes are fine: %+v", name, packing, n, len(b), a)
				}
				if n > 1024 && !errors.Is(err, ErrCut) {
					t.Errorf("%s, %s: %d of %d bytes: %v, want %v", name, packing, n, len(b), err, ErrCut)
				}
			}
		}
	}
}

// Many documents that are none of an image's take no memory from those that are.
func TestForeignDocuments(t *testing.T) {
	l := single("app:1", "linux/amd64")
	big := bytes.Repeat([]byte("x"), 1<<20)
	var in []entry
	for i := range 9 {
		in = append(in, file(fmt.Sprint("sbom", i, ".json"), map[string]string{"_type": "statement", "n": fmt.Sprint(i, string(big))}))
	}
	a, err := Inspect(t.Context(), bytes.NewReader(pack(append(in, l.entries()...)...)))
	if err != nil || a.Usable("amd64") != nil {
		t.Errorf("got %+v, %v", a, err)
	}
}

// What cannot be kept cannot be judged, and what is not needed is no harm.
func TestTooManyDocuments(t *testing.T) {
	l := single("app:1", "linux/amd64")
	var large []ocispec.Descriptor
	for i := range 5 {
		var index ocispec.Index
		for j := range 2700 {
			index.Manifests = append(index.Manifests, ocispec.Descriptor{MediaType: strings.Repeat("x", 1000), Digest: digest.FromString(fmt.Sprint(i, j))})
		}
		large = append(large, l.blob(ocispec.MediaTypeImageIndex, index))
	}
	if a, err := Inspect(t.Context(), bytes.NewReader(pack(l.entries()...))); err != nil || a.Usable("amd64") != nil {
		t.Errorf("not needed: %v", err)
	}
	l.named(l.blob(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: large}), "large:1")
	if a, err := Inspect(t.Context(), bytes.NewReader(pack(l.entries()...))); !errors.Is(err, ErrTooMuch) {
		t.Errorf("got %v, %v, want %v", a, err, ErrTooMuch)
	}
}

// Parts that are named again and again take neither time nor memory without end.
func TestTooManyParts(t *testing.T) {
	numbered := func(n int) []ocispec.Descriptor {
		var out []ocispec.Descriptor
		for i := range n {
			p := ocispec.Platform{OS: "linux", Architecture: fmt.Sprint("a", i)}
			out = append(out, ocispec.Descriptor{MediaType: ocispec.MediaTypeImageManifest, Digest: digest.FromString(fmt.Sprint(i)), Platform: &p})
		}
		return out
	}
	indexes := single("app:1", "linux/amd64")
	large := indexes.blob(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: numbered(5000)})
	for i := range 10 {
		large.Annotations = map[string]string{"n": fmt.Sprint(i)}
		indexes.named(indexes.blob(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: []ocispec.Descriptor{large}}), fmt.Sprint("app:", i))
	}
	attestations := single("app:1", "linux/amd64")
	statement := attestations.blob(ocispec.MediaTypeImageManifest, ocispec.Manifest{Config: numbered(1)[0], Layers: numbered(5000)})
	statement.Annotations = map[string]string{referenceType: "attestation-manifest"}
	attestations.named(attestations.blob(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: slices.Repeat([]ocispec.Descriptor{statement}, 10)}), "app:2")
	values := single("app:1", "linux/amd64")
	values.named(values.blob(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: make([]ocispec.Descriptor, 20_000)}), "app:2")
	unneeded := single("app:1", "linux/amd64")
	unneeded.blob(ocispec.MediaTypeImageIndex, ocispec.Index{Manifests: make([]ocispec.Descriptor, 20_000)})
	for _, c := range []struct {
		name    string
		entries []entry
		want    error
	}{
		{"an index in many", indexes.entries(), ErrTooMuch},
		{"an attestation of many", attestations.entries(), ErrTooMuch},
		{"an index of too many values", values.entries(), ErrTooMuch},
		{"one that nobody needs", unneeded.entries(), nil},
		{"docker save's list of too many values", append(dockerSave("linux/amd64", "app:1"), file("manifest.json", make([]dockerImage, 60_000))), ErrTooMuch},
	} {
		if _, err := Inspect(t.Context(), bytes.NewReader(pack(c.entries...))); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", c.name, err, c.want)
		}
	}
}

// The context ends the look at what was read, too.
func TestContextEndsTheLook(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	l := single("app:1", "linux/amd64")
	in := io.MultiReader(bytes.NewReader(pack(l.entries()...)), atEnd(func() { cancel(why) }))
	if _, err := Inspect(ctx, in); !errors.Is(err, why) {
		t.Errorf("got %v, want %v", err, why)
	}
}

// atEnd is called when a stream ends.
type atEnd func()

func (f atEnd) Read([]byte) (int, error) {
	f()
	return 0, io.EOF
}

type failing struct{ r io.Reader }

var errDisk = errors.New("input/output error")

func (f failing) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if errors.Is(err, io.EOF) {
		err = errDisk
	}
	return n, err
}

// A source that fails is not a damaged archive, packed or not.
func TestSourceFails(t *testing.T) {
	plain := pack(dockerSave("linux/amd64", "app:1")...)
	for name, b := range map[string][]byte{"plain": plain, "gzip": gzipped(plain), "zstd": zstded(plain)} {
		_, err := Inspect(t.Context(), failing{bytes.NewReader(b[:len(b)/2])})
		if !errors.Is(err, errDisk) || errors.Is(err, ErrDamaged) || errors.Is(err, ErrCut) {
			t.Errorf("%s: %v", name, err)
		}
	}
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := Inspect(ctx, bytes.NewReader(plain)); !errors.Is(err, cause) {
		t.Errorf("cancelled: %v", err)
	}
}

// Only the lists are read of a plain archive that can be sought in.
func TestNamesAreCheap(t *testing.T) {
	l := single("example.com/app:1", "linux/amd64")
	l.blobs = append(l.blobs, file("blobs/sha256/large", make([]byte, 8<<20)))
	name := filepath.Join(t.TempDir(), "a.tar")
	if err := os.WriteFile(name, pack(l.entries()...), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	r := &countingFile{File: f}
	names, err := Names(t.Context(), r)
	if err != nil || !slices.Equal(names, []string{"example.com/app:1"}) {
		t.Fatalf("got %q, %v", names, err)
	}
	if r.n > 1<<16 {
		t.Errorf("%d bytes were read", r.n)
	}
	for _, text := range []string{"no archive", strings.Repeat("no archive", 1000), ""} {
		if _, err := Names(t.Context(), strings.NewReader(text)); !errors.Is(err, ErrNoArchive) {
			t.Errorf("a text of %d bytes: %v", len(text), err)
		}
	}
	if _, err := Names(t.Context(), bytes.NewReader(pack(file("a", []byte("b"))))); !errors.Is(err, ErrNoArchive) {
		t.Errorf("some tar: %v", err)
	}
}

type countingFile struct {
	*os.File
	n int
}

func (c *countingFile) Read(p []byte) (int, error) {
	n, err := c.File.Read(p)
	c.n += n
	return n, err
}

func TestDecompress(t *testing.T) {
	plain := []byte(strings.Repeat("manifest.json ", 1000))
	for name, in := range map[string][]byte{"tar": plain, "gzip": gzipped(plain), "zstd": zstded(plain), "short": []byte("ab")} {
		t.Run(name, func(t *testing.T) {
			r, err := Decompress(bytes.NewReader(in))
			if err != nil {
				t.Fatal(err)
			}
			defer r.Close()
			got, err := io.ReadAll(r)
			want := plain
			if name == "short" {
				want = in
			}
			if err != nil || !bytes.Equal(got, want) {
				t.Errorf("got %d bytes, %v; want %d", len(got), err, len(want))
			}
		})
	}
	if _, err := Decompress(strings.NewReader("")); err == nil {
		t.Error("an empty archive is no error")
	}
}

func FuzzInspect(f *testing.F) {
	f.Add(pack(dockerSave("linux/amd64", "app:1")...))
	f.Add(pack(single("app:1", "linux/amd64").entries()...))
	multi := &layout{}
	d, _ := multi.multi("x", "linux/amd64", "linux/arm64")
	multi.named(d, "app:1")
	f.Add(pack(multi.entries()...))
	f.Add(gzipped(pack(file("manifest.json", []dockerImage{}))))
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := Inspect(t.Context(), bytes.NewReader(b))
		if err != nil {
			return
		}
		if len(a.Images) == 0 {
			t.Error("neither an image nor an error")
		}
		_ = a.Usable("linux/amd64")
		_ = a.Foreign("linux/amd64")
	})
}
