package main

import (
	"bytes"
	"context"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/internal/desired"
)

// A nodeprep that could not run on the node is not installed.
func TestBundledProgramIsOfTheArchitecture(t *testing.T) {
	file := filepath.Join(t.TempDir(), "node.bundle")
	member := func(path string, mode fs.FileMode, text string) bundle.File {
		return bundle.File{Path: path, Mode: mode, Size: int64(len(text)), Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(text)), nil }}
	}
	platform := func(arch, path, is string) bundle.Platform {
		part := bundle.Part{Component: bundle.Component{Name: bundle.Program, Version: "9"}, Files: func(context.Context, string) ([]bundle.File, error) {
			return []bundle.File{member(path, 0o755, string(program(is, "nodeprep")))}, nil
		}}
		return bundle.Platform{Arch: arch, Components: []bundle.Part{part}, Node: []bundle.File{member(bundle.ProfileName, 0o644, "kind: NodeProfile\n")}}
	}
	contents := bundle.Contents{Nodeprep: "9", Platforms: []bundle.Platform{
		platform("amd64", "usr/local/bin/nodeprep", "amd64"), platform("arm64", "usr/local/bin/nodeprep", "amd64"), platform("riscv64", "usr/bin/other", "amd64"),
	}}
	if _, err := bundle.Write(t.Context(), file, contents, bundle.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	b, err := bundle.Open(t.Context(), file, bundle.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a := app{source: source{bundle: b}}
	defer a.closeBundle()
	for arch, want := range map[string]string{"amd64": "", "arm64": "its nodeprep for linux/arm64: ", "riscv64": "it lacks /usr/local/bin/nodeprep"} {
		if a.source.node, err = b.For(t.Context(), arch); err != nil {
			t.Fatal(err)
		}
		_, err := a.source.program(t.Context(), t.TempDir())
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want) || exitCode(err) != exitUsage) {
			t.Errorf("%s: %v, want %q", arch, err, want)
		}
	}
}

// An archive of a registry is read over the network once, by whoever reads it first: it is at
// hand when nothing can be reached any more, and only if it was whole.
func TestArchivesAreKept(t *testing.T) {
	dir, content := t.TempDir(), bytes.Repeat([]byte("archive "), 1<<14)
	archive := &bundle.ImageArchive{File: "images/app.tar", Names: []string{"example.com/app:1"}, Size: int64(len(content)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(content)), nil }}
	profile := bundle.File{Path: bundle.ProfileName, Mode: 0o644, Size: 1, Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("\n")), nil }}
	file := filepath.Join(dir, "node.bundle")
	contents := bundle.Contents{Nodeprep: "9", Platforms: []bundle.Platform{{Arch: "amd64", Node: []bundle.File{profile}, Images: []*bundle.ImageArchive{archive}}}}
	if _, err := bundle.Write(t.Context(), file, contents, bundle.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	b, err := bundle.Open(t.Context(), file, bundle.OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	a := app{source: source{bundle: b, spool: t.TempDir()}}
	defer a.closeBundle()
	if err := a.source.use(t.Context(), "amd64"); err != nil {
		t.Fatal(err)
	}
	img := desired.Image{File: archive.File}

	r, err := a.source.Open(t.Context(), img)
	if err != nil {
		t.Fatal(err)
	}
	if n, err := io.ReadFull(r, make([]byte, 100)); err != nil || n != 100 {
		t.Fatal(n, err)
	}
	if err := r.Close(); err != nil || len(a.source.spooled) != 0 {
		t.Errorf("a part of it is kept: %v, %v", a.source.spooled, err)
	}
	for _, reachable := range []bool{true, false} {
		if !reachable {
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
		r, err := a.source.Open(t.Context(), img)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if err != nil || !bytes.Equal(got, content) {
			t.Errorf("reachable %v: %d bytes, %v", reachable, len(got), err)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if left, err := os.ReadDir(a.source.spool); err != nil || len(left) != 0 {
		t.Errorf("files with names in the temporary folder: %v, %v", left, err)
	}
}
