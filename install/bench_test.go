package install

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
)

// tarballs makes three release files of real size, some 160 MB unpacked, of what real
// ones are made of: the machine code of Go programs. They are made once a run.
func tarballs(b *testing.B) (dir string, artifacts []desired.Artifact) {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	code, err := os.ReadFile(exe)
	if err != nil {
		b.Fatal(err)
	}
	dir = b.TempDir()
	var bin, cni []desired.Member
	for _, n := range []string{"containerd", "ctr", "containerd-shim-runc-v2"} {
		bin = append(bin, desired.Member{Name: n, Path: "/usr/local/bin/" + n})
	}
	for i := range 18 {
		n := fmt.Sprintf("plugin%d", i)
		cni = append(cni, desired.Member{Name: n, Path: "/opt/cni/bin/" + n})
	}
	all := []struct {
		component, file, folder string
		size                    int
		members                 []desired.Member
	}{
		{"containerd", "containerd-2.3.4-linux-amd64.tar.gz", "bin/", 25 << 20, bin},
		{"runc", "runc.amd64", "", 12 << 20, []desired.Member{{Name: "runc", Path: "/usr/local/sbin/runc"}}},
		{"cni", "cni-plugins-linux-amd64-v1.9.1.tgz", "./", 4 << 20, cni},
	}
	for k, a := range all {
		var packed bytes.Buffer
		content := func(i int) []byte {
			out := make([]byte, 0, a.size)
			for at := (k*7919 + i*1299709) % len(code); len(out) < a.size; at = 0 {
				out = append(out, code[at:min(len(code), at+a.size-len(out))]...)
			}
			return out
		}
		if a.folder == "" {
			packed.Write(content(0))
		} else {
			z := gzip.NewWriter(&packed)
			t := tar.NewWriter(z)
			for i, m := range a.members {
				if err := t.WriteHeader(&tar.Header{Name: a.folder + m.Name, Mode: 0o755, Size: int64(a.size)}); err != nil {
					b.Fatal(err)
				}
				if _, err := t.Write(content(i)); err != nil {
					b.Fatal(err)
				}
			}
			if err := t.Close(); err != nil {
				b.Fatal(err)
			}
			if err := z.Close(); err != nil {
				b.Fatal(err)
			}
		}
		if err := os.WriteFile(filepath.Join(dir, a.file), packed.Bytes(), 0o600); err != nil {
			b.Fatal(err)
		}
		sum := sha256.Sum256(packed.Bytes())
		artifacts = append(artifacts, desired.Artifact{Component: a.component, Version: "2.3.4", Arch: "amd64", Files: []string{a.file},
			SHA256: hex.EncodeToString(sum[:]), SHA256From: "catalogue", Members: a.members})
	}
	return dir, artifacts
}

// unchecked spares the made-up programs the look at their ELF headers.
type unchecked struct{ Releases }

// Obtain is that of Releases.
func (u unchecked) Obtain(ctx context.Context, a desired.Artifact, p func(int64, int64)) (*Archive, error) {
	out, err := u.Releases.Obtain(ctx, a, p)
	if err == nil {
		out.Check = nil
	}
	return out, err
}

// benchState is a node with three releases and a few small files.
func benchState(artifacts []desired.Artifact) *desired.State {
	s := &desired.State{Arch: "amd64", Artifacts: artifacts, Generations: 3}
	for i := range 12 {
		s.Files = append(s.Files, desired.File{Path: fmt.Sprintf("/etc/containerd/certs.d/host%d/hosts.toml", i), Mode: 0o644, Content: []byte("server = 'x'\n"), Format: desired.FormatHosts})
	}
	return s
}

func benchHost(b *testing.B, dir string) *host.Host {
	b.Helper()
	root, err := host.OpenRoot(dir)
	if err != nil {
		b.Fatal(err)
	}
	return host.New(root)
}

// BenchmarkApply installs three releases of real size into an empty root, durably.
func BenchmarkApply(b *testing.B) {
	dir, artifacts := tarballs(b)
	state := benchState(artifacts)
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		root, err := os.MkdirTemp(b.TempDir(), "root")
		if err != nil {
			b.Fatal(err)
		}
		h := benchHost(b, root)
		b.StartTimer()
		plan, err := Diff(b.Context(), h, state, nil, DiffOptions{})
		if err != nil {
			b.Fatal(err)
		}
		if _, err := Apply(b.Context(), h, plan, ApplyOptions{Artifacts: unchecked{Releases{Store: &release.Store{Dirs: []string{dir}}, Root: h.Root}}}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := os.RemoveAll(root); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

// BenchmarkApplyAgain is the same with nothing left to do.
func BenchmarkApplyAgain(b *testing.B) {
	dir, artifacts := tarballs(b)
	state := benchState(artifacts)
	h := benchHost(b, b.TempDir())
	plan, err := Diff(b.Context(), h, state, nil, DiffOptions{})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := Apply(b.Context(), h, plan, ApplyOptions{Artifacts: unchecked{Releases{Store: &release.Store{Dirs: []string{dir}}, Root: h.Root}}}); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		receipt, err := ReadReceipt(h.Root)
		if err != nil {
			b.Fatal(err)
		}
		plan, err := Diff(b.Context(), h, state, receipt, DiffOptions{})
		if err != nil || !plan.Empty() {
			b.Fatal(plan, err)
		}
	}
}
