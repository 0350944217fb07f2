package daemon

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func gzipped(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write(b); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func zstded(t *testing.T, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func TestNames(t *testing.T) {
	const imageName, refName = "io.containerd.image.name", "org.opencontainers.image.ref.name"
	index := func(annotations ...map[string]string) ocispec.Index {
		var i ocispec.Index
		for _, a := range annotations {
			i.Manifests = append(i.Manifests, ocispec.Descriptor{Annotations: a})
		}
		return i
	}
	for name, c := range map[string]struct {
		in   ocispec.Index
		want []string
	}{
		"docker's short name": {index(map[string]string{imageName: "busybox:1"}), []string{"docker.io/library/busybox:1"}},
		"full name wins":      {index(map[string]string{imageName: "registry.k8s.io/pause:3.10", refName: "3.10"}), []string{"registry.k8s.io/pause:3.10"}},
		"name in ref.name":    {index(map[string]string{refName: "busybox:1"}), []string{"docker.io/library/busybox:1"}},
		"no tag":              {index(map[string]string{refName: "example.com/app"}), []string{"example.com/app:latest"}},
		"port":                {index(map[string]string{refName: "localhost:5000/app"}), []string{"localhost:5000/app:latest"}},
		"two names":           {index(map[string]string{imageName: "a:1"}, map[string]string{imageName: "a:2"}), []string{"docker.io/library/a:1", "docker.io/library/a:2"}},
		"one without":         {index(map[string]string{refName: "latest"}, map[string]string{imageName: "a:2"}), []string{"docker.io/library/a:2"}},
	} {
		t.Run(name, func(t *testing.T) {
			list, err := named(c.in)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, img := range list {
				got = append(got, img.Name)
				if img.Target.Annotations != nil {
					t.Errorf("%s keeps the archive's annotations", img.Name)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("names (-want +got):\n%s", diff)
			}
		})
	}

	if _, err := named(index()); !errors.Is(err, ErrNoImage) {
		t.Errorf("empty index: %v", err)
	}
	_, err := named(index(map[string]string{refName: "3.10"}))
	if !errors.Is(err, ErrNoImage) || !strings.Contains(err.Error(), `"3.10"`) {
		t.Errorf("a tag alone: %v, want it named", err)
	}
	if _, err := named(index(map[string]string{imageName: "no good"})); err == nil {
		t.Error("an impossible name is no error")
	}
}
