package install

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
)

// program is the smallest static program by its headers (elf(5)): ELF64,
// little-endian, ET_EXEC, without sections; what follows tells it from others.
func program(machine uint16, tail string) []byte {
	h := make([]byte, 64)
	copy(h, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(h[16:], 2)
	binary.LittleEndian.PutUint16(h[18:], machine)
	binary.LittleEndian.PutUint32(h[20:], 1)
	binary.LittleEndian.PutUint16(h[52:], 64)
	binary.LittleEndian.PutUint16(h[54:], 56)
	binary.LittleEndian.PutUint16(h[58:], 64)
	return append(h, tail...)
}

const (
	x86   = 62
	arm64 = 183
)

// shelf has real release files: a tarball of containerd and a bare runc.
func (n *node) shelf(machine uint16) string {
	n.t.Helper()
	dir := n.t.TempDir()
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	w := tar.NewWriter(z)
	for _, name := range []string{"bin/ctr", "bin/containerd", "bin/containerd-stress"} {
		content := program(machine, name)
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(content))}); err != nil {
			n.t.Fatal(err)
		}
		if _, err := w.Write(content); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := errors.Join(w.Close(), z.Close()); err != nil {
		n.t.Fatal(err)
	}
	for i, content := range [][]byte{packed.Bytes(), program(machine, "runc")} {
		a := &n.state.Artifacts[i]
		sum := sha256.Sum256(content)
		a.SHA256, a.SHA256From = hex.EncodeToString(sum[:]), "catalogue"
		if err := os.WriteFile(filepath.Join(dir, a.Files[0]), content, 0o600); err != nil {
			n.t.Fatal(err)
		}
	}
	n.opt.Artifacts = Releases{Store: &release.Store{Dirs: []string{dir}, Offline: true}, Root: n.h.Root}
	return dir
}

func TestRealReleaseFiles(t *testing.T) {
	n := newNode(t)
	n.shelf(x86)
	res := n.apply()
	if got := n.read("/usr/local/bin/ctr"); got != string(program(x86, "bin/ctr")) {
		t.Errorf("ctr = %q", got)
	}
	if in := res.Artifacts[0]; in.SHA256 != n.state.Artifacts[0].SHA256 || in.SHA256From != "catalogue" || in.Wanted != "" || len(in.Files) != 2 {
		t.Errorf("installed %+v", in)
	}
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is more to do: %v", actions(plan))
	}
	// Nobody knows a digest any more: what is there is still what is wanted.
	n.state.Artifacts[0].SHA256 = ""
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("without a wanted digest: %v", actions(plan))
	}
	n.state.Artifacts[0].SHA256 = strings.Repeat("0", 64)
	if got := actions(n.diff()); len(got) != 1 || got[0] != "update artifact containerd" {
		t.Errorf("with another wanted digest: %v", got)
	}
}

// TestBadReleaseFiles: each has its own message, and leaves nothing.
func TestBadReleaseFiles(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(n *node)
		want    []string
	}{
		{"digest", func(n *node) {
			n.shelf(x86)
			n.state.Artifacts[0].SHA256 = strings.Repeat("a", 64)
		}, []string{"sha256 mismatch", strings.Repeat("a", 64), "from catalogue"}},
		{"truncated", func(n *node) {
			p := filepath.Join(n.shelf(x86), "containerd-1.0.0.tar.gz")
			b, err := os.ReadFile(p)
			if err != nil {
				n.t.Fatal(err)
			}
			b = b[:len(b)-20]
			sum := sha256.Sum256(b)
			n.state.Artifacts[0].SHA256 = hex.EncodeToString(sum[:])
			if err := os.WriteFile(p, b, 0o600); err != nil {
				n.t.Fatal(err)
			}
		}, []string{"containerd-1.0.0.tar.gz", "truncated"}},
		{"arch", func(n *node) { n.shelf(arm64) },
			[]string{"containerd of containerd-1.0.0.tar.gz", "it is a program for arm64 (EM_AARCH64), want amd64", "runc of runc.amd64", "containerd.version (node.yaml:3)"}},
		{"missing member", func(n *node) {
			n.shelf(x86)
			n.state.Artifacts[0].Members = append(n.state.Artifacts[0].Members, desired.Member{Name: "lacking", Path: "/usr/local/bin/lacking"})
		}, []string{"containerd-1.0.0.tar.gz", "lacking"}},
		{"absent", func(n *node) {
			dir := n.shelf(x86)
			if err := os.Remove(filepath.Join(dir, "runc.amd64")); err != nil {
				n.t.Fatal(err)
			}
		}, []string{"runc.amd64", "--artifacts"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			tt.prepare(n)
			before := n.tree(true)
			_, err := n.tryApply(t.Context())
			if err == nil {
				t.Fatal("apply went well")
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
			n.same(before, true, "bad release file")
		})
	}
}

func TestNewerLibC(t *testing.T) {
	n := newNode(t)
	n.releases["runc 1.0.0"]["runc"] = "x"
	needs := errors.New("it needs glibc 2.38, the host has glibc 2.36")
	n.opt.Artifacts = checked{n.releases, needs, ""}
	before := n.tree(true)
	if _, err := n.tryApply(t.Context()); !errors.Is(err, needs) || strings.Count(err.Error(), "containerd-1.0.0.tar.gz") != 1 {
		t.Errorf("apply = %v, want one line a release", err)
	}
	n.same(before, true, "libc")
	n.opt.Artifacts = checked{n.releases, nil, "there is no C library to compare with"}
	res := n.apply()
	if len(res.Warnings) != 2 || !strings.Contains(res.Warnings[0].String(), "no C library") {
		t.Errorf("warnings %v, want one a release", res.Warnings)
	}
}

// checked has an opinion on every program.
type checked struct {
	releases
	err     error
	warning string
}

// Obtain adds the opinion.
func (c checked) Obtain(ctx context.Context, a desired.Artifact, p func(int64, int64)) (*Archive, error) {
	out, err := c.releases.Obtain(ctx, a, p)
	if err == nil {
		out.Check = func(io.ReaderAt, string) (string, error) { return c.warning, c.err }
	}
	return out, err
}
