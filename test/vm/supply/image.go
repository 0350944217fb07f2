package supply

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// The test images' names, as containerd has them after import.
const (
	BusyboxImage = "docker.io/library/busybox:test"
	PauseImage   = "registry.k8s.io/pause:3.10"
	// OlderPause does the same and is another image, to change to.
	OlderPause = "registry.k8s.io/pause:3.9"
	// MultiImage is for amd64 and arm64. So is PartImage, in an archive without the parts for
	// arm64, and HolesImage, in one without any layer.
	MultiImage = "registry.example.com/team/multi:1"
	PartImage  = "registry.example.com/team/part:1"
	HolesImage = "registry.example.com/team/holes:1"
	// ForeignImage is for s390x alone.
	ForeignImage = "registry.example.com/team/foreign:1"
)

// Images returns a folder with two image archives: busybox.tar, an OCI layout with
// BusyboxImage, and pause.tar, as docker save writes it, with PauseImage and OlderPause.
// Both forms are what people carry into sites without a network. multi.tar and part.tar
// have MultiImage and PartImage, holes.tar and foreign.tar HolesImage and ForeignImage, which
// no node can use.
func (s *Store) Images(ctx context.Context, arch string) (string, error) {
	return s.Entry(ctx, "images.v4", arch, func(ctx context.Context, dir string) (err error) {
		tmp, err := os.MkdirTemp(dir, ".deb-")
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
		busybox, err := s.busybox(ctx, arch, tmp)
		if err != nil {
			return err
		}
		layer, err := layerOf([]entry{
			{name: "bin/busybox", mode: 0o755, data: busybox},
			{name: "bin/sh", link: "busybox"},
			{name: "bin/sleep", link: "busybox"},
			{name: "bin/cat", link: "busybox"},
			{name: "etc/passwd", mode: 0o644, data: []byte("root:x:0:0:root:/:/bin/sh\n")},
		})
		if err != nil {
			return err
		}
		image := ociImage{names: []string{BusyboxImage}, arch: arch, layer: layer, cmd: []string{"/bin/sh"}}
		if err := image.writeOCI(filepath.Join(dir, "busybox.tar")); err != nil {
			return err
		}

		root, err := ModuleRoot(ctx)
		if err != nil {
			return err
		}
		bin := filepath.Join(tmp, "pause")
		if err := GoBuild(ctx, root, "./test/vm/cmd/pause", bin, arch); err != nil {
			return err
		}
		pause, err := os.ReadFile(bin)
		if err != nil {
			return err
		}
		if layer, err = layerOf([]entry{{name: "pause", mode: 0o755, data: pause}}); err != nil {
			return err
		}
		image = ociImage{names: []string{PauseImage}, arch: arch, layer: layer, entrypoint: []string{"/pause"}}
		older := image
		older.names, older.cmd = []string{OlderPause}, []string{"older"}
		if err := writeDocker(filepath.Join(dir, "pause.tar"), image, older); err != nil {
			return err
		}
		return writePlatforms(dir)
	})
}

// writePlatforms writes the archives that are about platforms; their images do nothing.
func writePlatforms(dir string) error {
	for _, archive := range []struct {
		file, name string
		arches     []string
		has        func(arch string, layer bool) bool
	}{
		{"multi.tar", MultiImage, []string{"amd64", "arm64"}, func(string, bool) bool { return true }},
		{"part.tar", PartImage, []string{"amd64", "arm64"}, func(arch string, _ bool) bool { return arch == "amd64" }},
		{"holes.tar", HolesImage, []string{"amd64", "arm64"}, func(_ string, layer bool) bool { return !layer }},
		{"foreign.tar", ForeignImage, []string{"s390x"}, func(string, bool) bool { return true }},
	} {
		if err := writeIndex(filepath.Join(dir, archive.file), archive.name, archive.arches, archive.has); err != nil {
			return err
		}
	}
	return nil
}

// WriteImage writes an OCI archive of an image that does nothing and shares no part with an image
// of another name. For several arches it has an index.
func WriteImage(path, name string, arches ...string) error {
	if len(arches) > 1 {
		return writeIndex(path, name, arches, func(string, bool) bool { return true })
	}
	layer, err := layerFor(name, arches[0])
	if err != nil {
		return err
	}
	return ociImage{names: []string{name}, arch: arches[0], layer: layer, cmd: []string{"/none"}}.writeOCI(path)
}

// layerFor is a layer that no other name and arch have.
func layerFor(name, arch string) ([]byte, error) {
	return layerOf([]entry{{name: "etc/platform", mode: 0o644, data: []byte(name + " for " + arch + "\n")}})
}

// writeIndex writes an OCI archive of one image for several arches; has says which parts
// are in it: an arch's layer, or its other parts.
func writeIndex(path, name string, arches []string, has func(arch string, layer bool) bool) error {
	var manifests []any
	var blobs []entry
	for _, arch := range arches {
		layer, err := layerFor(name, arch)
		if err != nil {
			return err
		}
		d, parts, err := ociImage{arch: arch, layer: layer, cmd: []string{"/none"}}.blobs()
		if err != nil {
			return err
		}
		manifests = append(manifests, d)
		for _, p := range parts {
			if has(arch, p.name == blob(layer).name) {
				blobs = append(blobs, p)
			}
		}
	}
	const mediaType = "application/vnd.oci.image.index.v1+json"
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": mediaType, "manifests": manifests})
	if err != nil {
		return err
	}
	d := descriptor(mediaType, index)
	d["annotations"] = map[string]string{"io.containerd.image.name": name}
	return writeLayout(path, []any{d}, append(blobs, blob(index)))
}

// busybox reads the one static program of Debian's busybox-static.
func (s *Store) busybox(ctx context.Context, arch, tmp string) ([]byte, error) {
	if err := s.unpack(ctx, "busybox-static", arch, tmp); err != nil {
		return nil, err
	}
	for _, name := range []string{"bin/busybox", "usr/bin/busybox"} { // before and after merged /usr
		data, err := os.ReadFile(filepath.Join(tmp, name))
		if !errors.Is(err, os.ErrNotExist) {
			return data, err
		}
	}
	return nil, errors.New("unpack busybox-static: no busybox in it")
}

type entry struct {
	name string
	mode int64
	data []byte
	link string // a symlink to it, when not empty
}

// layerOf is an image layer: an uncompressed tar.
func layerOf(entries []entry) ([]byte, error) {
	var buf bytes.Buffer
	if err := writeTar(&buf, entries); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

func writeTar(w io.Writer, entries []entry) error {
	t := tar.NewWriter(w)
	made := map[string]bool{".": true}
	for _, e := range entries {
		if err := writeParents(t, made, filepath.Dir(e.name)); err != nil {
			return err
		}
		h := &tar.Header{Typeflag: tar.TypeReg, Name: e.name, Mode: e.mode, Size: int64(len(e.data)), ModTime: time.Unix(0, 0)}
		if e.link != "" {
			h = &tar.Header{Typeflag: tar.TypeSymlink, Name: e.name, Linkname: e.link, Mode: 0o777, ModTime: time.Unix(0, 0)}
		}
		if err := t.WriteHeader(h); err != nil {
			return err
		}
		if _, err := t.Write(e.data); err != nil {
			return err
		}
	}
	return t.Close()
}

func writeParents(t *tar.Writer, made map[string]bool, dir string) error {
	if made[dir] {
		return nil
	}
	made[dir] = true
	if err := writeParents(t, made, filepath.Dir(dir)); err != nil {
		return err
	}
	return t.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: dir + "/", Mode: 0o755, ModTime: time.Unix(0, 0)})
}

// ociImage is an image of one layer.
type ociImage struct {
	names           []string
	arch            string
	layer           []byte
	entrypoint, cmd []string
}

// config is the image's config, https://github.com/opencontainers/image-spec config.md;
// docker's archives have the same.
func (i ociImage) config() ([]byte, error) {
	config := map[string]any{"Env": []string{"PATH=/bin"}}
	if i.entrypoint != nil {
		config["Entrypoint"] = i.entrypoint
	}
	if i.cmd != nil {
		config["Cmd"] = i.cmd
	}
	return json.Marshal(map[string]any{
		"architecture": i.arch,
		"os":           "linux",
		"config":       config,
		"rootfs":       map[string]any{"type": "layers", "diff_ids": []string{digest(i.layer)}},
	})
}

// blobs are the image's parts as an OCI layout has them, and the descriptor of its manifest.
func (i ociImage) blobs() (manifest map[string]any, parts []entry, err error) {
	config, err := i.config()
	if err != nil {
		return nil, nil, err
	}
	text, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        descriptor("application/vnd.oci.image.config.v1+json", config),
		"layers":        []any{descriptor("application/vnd.oci.image.layer.v1.tar", i.layer)},
	})
	if err != nil {
		return nil, nil, err
	}
	d := descriptor("application/vnd.oci.image.manifest.v1+json", text)
	d["platform"] = map[string]string{"os": "linux", "architecture": i.arch}
	return d, []entry{blob(config), blob(i.layer), blob(text)}, nil
}

// writeOCI writes an OCI image layout as one tar; the image's name is where containerd
// looks for it, in the annotation io.containerd.image.name of index.json.
func (i ociImage) writeOCI(path string) error {
	d, parts, err := i.blobs()
	if err != nil {
		return err
	}
	var manifests []any
	for _, name := range i.names {
		named := maps.Clone(d)
		named["annotations"] = map[string]string{"io.containerd.image.name": name}
		manifests = append(manifests, named)
	}
	return writeLayout(path, manifests, parts)
}

func writeLayout(path string, manifests []any, blobs []entry) error {
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": manifests})
	if err != nil {
		return err
	}
	return writeArchive(path, append([]entry{
		{name: "oci-layout", mode: 0o644, data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{name: "index.json", mode: 0o644, data: index},
	}, blobs...))
}

// writeDocker writes the older form of docker save: manifest.json, configs and layers.
func writeDocker(path string, images ...ociImage) error {
	var files []entry
	var manifest []any
	for n, i := range images {
		config, err := i.config()
		if err != nil {
			return err
		}
		name := strings.TrimPrefix(digest(config), "sha256:") + ".json"
		layer := fmt.Sprintf("layer%d/layer.tar", n)
		files = append(files, entry{name: name, mode: 0o644, data: config}, entry{name: layer, mode: 0o644, data: i.layer})
		manifest = append(manifest, map[string]any{"Config": name, "RepoTags": i.names, "Layers": []string{layer}})
	}
	text, err := json.Marshal(manifest)
	if err != nil {
		return err
	}
	return writeArchive(path, append(files, entry{name: "manifest.json", mode: 0o644, data: text}))
}

func writeArchive(path string, entries []entry) error {
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(writeTar(f, entries), f.Close())
}

func descriptor(mediaType string, data []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digest(data), "size": len(data)}
}

func blob(data []byte) entry {
	return entry{name: "blobs/sha256/" + strings.TrimPrefix(digest(data), "sha256:"), mode: 0o644, data: data}
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}
