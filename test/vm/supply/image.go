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
	"os/exec"
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
)

// Images returns a folder with two image archives: busybox.tar, an OCI layout with
// BusyboxImage, and pause.tar, as docker save writes it, with PauseImage and OlderPause.
// Both forms are what people carry into sites without a network.
func (s *Store) Images(ctx context.Context, arch string) (string, error) {
	return s.Entry(ctx, "images.v3", arch, func(ctx context.Context, dir string) (err error) {
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
		return writeDocker(filepath.Join(dir, "pause.tar"), image, older)
	})
}

// busybox reads the one static program of Debian's busybox-static.
func (s *Store) busybox(ctx context.Context, arch, tmp string) ([]byte, error) {
	d, done, err := s.debian(ctx, arch)
	if err != nil {
		return nil, err
	}
	defer done()
	in := func(c *exec.Cmd) { c.Dir = tmp }
	if _, err := run(ctx, in, "apt-get", d.options("-q", "download", "busybox-static/"+suites()[0])...); err != nil {
		return nil, err
	}
	debs, err := filepath.Glob(filepath.Join(tmp, "busybox-static_*.deb"))
	if err != nil || len(debs) != 1 {
		return nil, errors.Join(errors.New("get busybox-static: apt-get download left no file"), err)
	}
	if _, err := run(ctx, nil, "dpkg-deb", "-x", debs[0], tmp); err != nil {
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

// writeOCI writes an OCI image layout as one tar; the image's name is where containerd
// looks for it, in the annotation io.containerd.image.name of index.json.
func (i ociImage) writeOCI(path string) error {
	config, err := i.config()
	if err != nil {
		return err
	}
	manifest, err := json.Marshal(map[string]any{
		"schemaVersion": 2,
		"mediaType":     "application/vnd.oci.image.manifest.v1+json",
		"config":        descriptor("application/vnd.oci.image.config.v1+json", config),
		"layers":        []any{descriptor("application/vnd.oci.image.layer.v1.tar", i.layer)},
	})
	if err != nil {
		return err
	}
	d := descriptor("application/vnd.oci.image.manifest.v1+json", manifest)
	d["platform"] = map[string]string{"os": "linux", "architecture": i.arch}
	var manifests []any
	for _, name := range i.names {
		named := maps.Clone(d)
		named["annotations"] = map[string]string{"io.containerd.image.name": name}
		manifests = append(manifests, named)
	}
	index, err := json.Marshal(map[string]any{"schemaVersion": 2, "manifests": manifests})
	if err != nil {
		return err
	}
	return writeArchive(path, []entry{
		{name: "oci-layout", mode: 0o644, data: []byte(`{"imageLayoutVersion":"1.0.0"}`)},
		{name: "index.json", mode: 0o644, data: index},
		blob(config), blob(i.layer), blob(manifest),
	})
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
