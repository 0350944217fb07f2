package main

import (
	"context"
	"io"
	"io/fs"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/install/bundle"
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
