package supply

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestUpstreamOf(t *testing.T) {
	for version, want := range map[string]string{
		"1.6.20~ds1-1+deb12u3":    "1.6.20",
		"1.1.5+ds1-1+deb12u1":     "1.1.5",
		"1:1.35.0-4+deb12u1+b1":   "1.35.0",
		"2.1.9-1":                 "2.1.9",
		"1.1.1+ds1-3+b17":         "1.1.1",
		"2.2.0~rc1+ds1-1~bpo13+1": "2.2.0",
		"20240101":                "20240101",
	} {
		if got := upstreamOf(version); got != want {
			t.Errorf("upstreamOf(%s) = %s, want %s", version, got, want)
		}
	}
}

const madison = `      cni | 1.9.1+ds1-1 | http://deb.example.org/debian sid/main amd64 Packages
      cni | 1.1.1+ds1-3+b17 | http://deb.example.org/debian trixie/main amd64 Packages
      cni | 1.1.1+ds1-3+b5 | http://deb.example.org/debian bookworm/main amd64 Packages
`

func TestPickPrefersTheOldestLibc(t *testing.T) {
	if got, _ := pick(madison, "1.1.1"); got != "1.1.1+ds1-3+b5" {
		t.Errorf("picked %s, want bookworm's", got)
	}
}

func TestPickSaysWhatThereIs(t *testing.T) {
	got, have := pick(madison, "1.2.0")
	want := "bookworm 1.1.1+ds1-3+b5, trixie 1.1.1+ds1-3+b17, sid 1.9.1+ds1-1"
	if got != "" || have != want {
		t.Errorf("picked %q of %q, want none of %q", got, have, want)
	}
	if _, have := pick("", "1.2.0"); have != "none" {
		t.Errorf("of nothing there is %q, want none", have)
	}
}

// packageOf is a Debian package's file tree.
func packageOf(t *testing.T, entries []entry) *tar.Reader {
	t.Helper()
	var buf bytes.Buffer
	if err := writeTar(&buf, entries); err != nil {
		t.Fatal(err)
	}
	return tar.NewReader(&buf)
}

func TestReleaseHasUpstreamsLayout(t *testing.T) {
	type member struct{ Name, Mode, Data string }
	for component, story := range map[string]struct {
		pkg  []entry
		want []member
	}{
		"containerd": {
			[]entry{
				{name: "./usr/bin/containerd", mode: 0o755, data: []byte("daemon")},
				{name: "./usr/bin/ctr", mode: 0o755, data: []byte("client")},
				{name: "./usr/lib/cni/cni-bridge-fp", mode: 0o755, data: []byte("for tests")},
				{name: "./usr/share/doc/containerd/copyright", mode: 0o644},
			},
			[]member{{"bin/", "drwxr-xr-x", ""}, {"bin/containerd", "-rwxr-xr-x", "daemon"}, {"bin/ctr", "-rwxr-xr-x", "client"}},
		},
		"cni": {
			[]entry{{name: "./usr/lib/cni/bridge", mode: 0o755, data: []byte("plugin")}},
			[]member{{"./", "drwxr-xr-x", ""}, {"./bridge", "-rwxr-xr-x", "plugin"}},
		},
	} {
		t.Run(component, func(t *testing.T) {
			src, err := sourceOf(component)
			if err != nil {
				t.Fatal(err)
			}
			var archives [][]byte
			for _, name := range []string{"one", "two"} {
				path := filepath.Join(t.TempDir(), name)
				if _, err := writeRelease(path, src, packageOf(t, story.pkg)); err != nil {
					t.Fatal(err)
				}
				data, err := os.ReadFile(path)
				if err != nil {
					t.Fatal(err)
				}
				archives = append(archives, data)
			}
			if !bytes.Equal(archives[0], archives[1]) {
				t.Error("the same package gave two different archives")
			}
			gz, err := gzip.NewReader(bytes.NewReader(archives[0]))
			if err != nil {
				t.Fatal(err)
			}
			var got []member
			for in := tar.NewReader(gz); ; {
				h, err := in.Next()
				if err == io.EOF {
					break
				}
				if err != nil {
					t.Fatal(err)
				}
				data, err := io.ReadAll(in)
				if err != nil {
					t.Fatal(err)
				}
				got = append(got, member{h.Name, h.FileInfo().Mode().String(), string(data)})
			}
			if diff := cmp.Diff(story.want, got); diff != "" {
				t.Errorf("members (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRuncIsABareProgram(t *testing.T) {
	src, err := sourceOf("runc")
	if err != nil {
		t.Fatal(err)
	}
	r := Release{Component: "runc", Version: "1.1.5", Arch: "amd64"}
	dir := t.TempDir()
	n, err := writeRelease(filepath.Join(dir, r.File()), src, packageOf(t, []entry{
		{name: "./usr/bin/runc", link: "../sbin/runc"},
		{name: "./usr/sbin/runc", mode: 0o755, data: []byte("runc")},
	}))
	if err != nil || n != 1 {
		t.Fatalf("found %d programs, %v", n, err)
	}
	data, err := os.ReadFile(filepath.Join(dir, "runc.amd64"))
	if err != nil || string(data) != "runc" {
		t.Errorf("runc.amd64 is %q, %v", data, err)
	}
	if err := writeSums(dir); err != nil {
		t.Fatal(err)
	}
	sum, err := r.Sum(dir)
	if want := strings.TrimPrefix(digest(data), "sha256:"); err != nil || sum != want {
		t.Errorf("its digest is %q, %v, want %s", sum, err, want)
	}
}

func TestOCIImageHoldsTogether(t *testing.T) {
	layer, err := layerOf([]entry{{name: "bin/sh", mode: 0o755, data: []byte("shell")}})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "image.tar")
	image := ociImage{names: []string{"example.com/a:1", "example.com/a:2"}, arch: "arm64", layer: layer, cmd: []string{"/bin/sh"}}
	if err := image.writeOCI(path); err != nil {
		t.Fatal(err)
	}
	files := readTar(t, path)
	type desc struct {
		Digest      string
		Size        int
		Annotations map[string]string
	}
	follow := func(d desc, into any) []byte {
		t.Helper()
		data, ok := files["blobs/sha256/"+strings.TrimPrefix(d.Digest, "sha256:")]
		if !ok || digest(data) != d.Digest || len(data) != d.Size {
			t.Fatalf("blob %+v: there %v, %d bytes, digest %s", d, ok, len(data), digest(data))
		}
		if into != nil {
			if err := json.Unmarshal(data, into); err != nil {
				t.Fatal(err)
			}
		}
		return data
	}
	var index struct{ Manifests []desc }
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, m := range index.Manifests {
		names = append(names, m.Annotations["io.containerd.image.name"])
	}
	if diff := cmp.Diff(image.names, names); diff != "" {
		t.Errorf("names (-want +got):\n%s", diff)
	}
	var manifest struct {
		Config desc
		Layers []desc
	}
	follow(index.Manifests[0], &manifest)
	var config struct {
		Architecture string
		RootFS       struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	follow(manifest.Config, &config)
	follow(manifest.Layers[0], nil)
	if config.Architecture != "arm64" || config.RootFS.DiffIDs[0] != manifest.Layers[0].Digest {
		t.Errorf("config %+v does not belong to layer %s", config, manifest.Layers[0].Digest)
	}
}

func readTar(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	files := make(map[string][]byte)
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(in); err != nil {
			t.Fatal(err)
		}
	}
}

func TestGuests(t *testing.T) {
	g, err := GuestNamed("bookworm")
	if err != nil {
		t.Fatal(err)
	}
	if g.Suite != "bookworm" || g.Arch != "amd64" || g.CPUs == 0 || g.MemoryMiB == 0 || g.DiskGiB == 0 {
		t.Errorf("guest %+v lacks something", g)
	}
	for _, pkg := range g.Packages {
		if pkg == "containerd" || pkg == "runc" {
			t.Errorf("the guest brings %s itself", pkg)
		}
	}
	if _, err := GuestNamed("none"); err == nil {
		t.Error("a guest that is not there was found")
	}
}
