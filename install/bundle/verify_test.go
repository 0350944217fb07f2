package bundle

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"github.com/nodeprep/nodeprep/internal/elf/elftest"
)

// tinyContents are a bundle's with as few bytes as one with everything can have.
func tinyContents(t *testing.T) Contents {
	t.Helper()
	return Contents{Nodeprep: "1.2.3", Platforms: []Platform{{
		Arch:       "amd64",
		Components: []Part{inMemoryPart("containerd", "2.1.9", inMemory("usr/local/bin/containerd", "containerd"))},
		Node:       []File{inMemory(ProfileName, "kind: NodeProfile\n")},
		Images:     []*ImageArchive{inMemoryImage("images/pause.tar", plainTar(t, "pause", 100), "registry.k8s.io/pause:3.10")},
	}}}
}

// inMemoryBundle is a bundle in memory.
func inMemoryBundle(t *testing.T, name string, data []byte) (*Bundle, error) {
	t.Helper()
	files, err := openTar(name, strings.NewReader(string(data)), int64(len(data)))
	if err != nil {
		return nil, err
	}
	return &Bundle{name: name, file: files, store: &layoutStore{bundle: name, files: files}}, nil
}

// regions say what a fault at each place of a bundle must be called.
type region struct {
	end  int64
	name []string // one of them
}

func regionsOf(t *testing.T, data []byte) []region {
	t.Helper()
	b, err := inMemoryBundle(t, "x", data)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	n, err := b.For(t.Context(), "amd64")
	if err != nil {
		t.Fatal(err)
	}
	called := map[string]string{
		"oci-layout": "oci-layout", "index.json": "index.json", SumsName: SumsName,
		blobPath(b.root): partIndex, blobPath(n.manifest): "manifest linux/amd64", blobPath(n.config): "config linux/amd64",
		blobPath(n.layers[n.Config.Node.Layer]):          "node linux/amd64",
		blobPath(n.layers[n.Config.Components[0].Layer]): "containerd 2.1.9 linux/amd64",
		blobPath(n.layers[n.Config.Images[0].Layer]):     "images/pause.tar linux/amd64",
	}
	var out []region
	for _, e := range b.file.entries {
		if called[e.name] == "" {
			t.Fatalf("what is %s?", e.name)
		}
		names := []string{called[e.name]}
		if e.name == SumsName {
			names = []string{SumsName, "oci-layout", "index.json"} // who knows which is wrong
		}
		out = append(out,
			region{e.data, []string{"the archive's header of "}},
			region{e.data + e.size, names},
			region{e.end(), []string{"the archive"}})
	}
	return append(out, region{int64(len(data)), []string{"the archive's end"}})
}

// A flipped byte anywhere is found and named by what it is part of.
func TestVerifyFindsEveryFlippedByte(t *testing.T) {
	file, _ := writeBundle(t, tinyContents(t))
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	regions := regionsOf(t, good)
	var g errgroup.Group
	g.SetLimit(4)
	var mu sync.Mutex
	missed := 0
	step := 1
	if testing.Short() || underRace {
		step = 7 // a prime: all kinds of places in all blocks
	}
	for i := 0; i < len(good); i += step {
		g.Go(func() error {
			data := slices.Clone(good)
			// Another bit at each place, and now and then all of them.
			flip := byte(1) << (i % 8)
			if i%13 == 0 {
				flip = 0xff
			}
			data[i] ^= flip
			found, err := verifyInMemory(t, data)
			where := regions[slices.IndexFunc(regions, func(r region) bool { return int64(i) < r.end })]
			named := err == nil && slices.ContainsFunc(found.Faults, func(f Fault) bool {
				return slices.ContainsFunc(where.name, func(name string) bool { return strings.HasPrefix(f.Part, name) })
			})
			if !named {
				mu.Lock()
				defer mu.Unlock()
				if missed++; missed < 20 {
					t.Errorf("byte %d, of %s, flipped by %#02x: %v, found %v", i, where.name, flip, err, found)
				}
			}
			return nil
		})
	}
	_ = g.Wait() // the faults are the test's
	if missed > 0 {
		t.Errorf("%d of %d not found or not named", missed, len(good))
	}
}

func verifyInMemory(t *testing.T, data []byte) (*Report, error) {
	b, err := inMemoryBundle(t, "node.bundle", data)
	if err != nil {
		return nil, err
	}
	return b.verify(t.Context(), nil)
}

func verified(t *testing.T, ref string) *Report {
	t.Helper()
	report, err := Verify(t.Context(), ref, OpenOptions{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

func faultsOf(r *Report) []string {
	out := []string{}
	for _, f := range r.Faults {
		out = append(out, f.Error())
	}
	return out
}

// A good bundle is good whichever way it comes, and every layer of every architecture was
// looked at.
func TestVerifyGood(t *testing.T) {
	file, made := writeBundle(t, smallContents(t, "amd64", "arm64"))
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{file, unpackedTo(t, data), saved(t, rewritten(t, data)), saved(t, forgery{}.bytes(t))} {
		var mu sync.Mutex
		done := map[string]int64{}
		report, err := Verify(t.Context(), ref, OpenOptions{}, func(what string, n, _ int64) {
			mu.Lock()
			defer mu.Unlock()
			done[what] = n
		})
		if err != nil {
			t.Fatal(err)
		}
		if faults := faultsOf(report); len(faults) > 0 {
			t.Errorf("%s: %q", ref, faults)
		}
		var parts []string
		for _, p := range report.Parts {
			parts = append(parts, p.Part)
			if !p.Good {
				t.Errorf("%s is not good", p.Part)
			}
			if p.Part != "images/shared.tar linux/arm64" && done[p.Part] != p.Size {
				t.Errorf("%s: %d of %d bytes were read", p.Part, done[p.Part], p.Size)
			}
		}
		if len(parts) == 3 {
			continue
		}
		if report.Digest != made.Digest {
			t.Errorf("digest %s, want %s", report.Digest, made.Digest)
		}
		want := []string{
			"node linux/amd64", "containerd 2.3.4 linux/amd64", "runc 1.4.3 linux/amd64", "nodeprep 1.2.3 linux/amd64", "images/shared.tar linux/amd64", "images/amd64.tar.gz linux/amd64",
			"node linux/arm64", "containerd 2.3.4 linux/arm64", "runc 1.4.3 linux/arm64", "nodeprep 1.2.3 linux/arm64", "images/shared.tar linux/arm64", "images/arm64.tar.gz linux/arm64",
		}
		if diff := cmp.Diff(want, parts); diff != "" {
			t.Error(diff)
		}
	}
}

// All faults are told, not the first alone.
func TestVerifyTellsAllFaults(t *testing.T) {
	arm := elftest.Program{Machine: elf.EM_AARCH64}.Bytes()
	for _, c := range []struct {
		name string
		f    forgery
		want []string // parts of the faults, one each
	}{
		{"two layers", forgery{files: func(items []item) []item { return flipped(2)(flipped(1)(items)) }},
			[]string{"containerd 2.1.9 linux/amd64: verify layer sha256:", "images/pause.tar linux/amd64: verify layer sha256:"}},
		{"a program for another machine", forgery{component: []item{executable("usr/local/bin/ctr", string(arm))}},
			[]string{"containerd 2.1.9 linux/amd64: usr/local/bin/ctr is a program for arm64, want amd64"}},
		{"a blob and a file too many", forgery{files: func(items []item) []item {
			return append(items, executable("blobs/sha256/"+hexOf([]byte("x")), "x"), executable("README", "x"))
		}}, []string{"the archive's header of blobs/sha256/", "the archive's header of README", "a blob that nothing refers to", "README: a file that nothing refers to"}},
		{"a blob that is not what its name says", forgery{files: with(executable("blobs/sha256/"+hexOf(nil), "x"))},
			[]string{"the archive's header of", "sha256 mismatch", "a blob that nothing refers to"}},
		{"a layer that is not there", forgery{files: func(items []item) []item { return append(items[:4], items[5:]...) }},
			[]string{"containerd 2.1.9 linux/amd64: sha256:"}},
		{"a config that disagrees", forgery{config: func(c *Config) { c.Architecture = "arm64"; c.Components[0].SHA256 = "" }},
			[]string{"config linux/amd64: it is for linux/arm64", "config linux/amd64: containerd 2.1.9 has no sha256 of its release file"}},
		{"a symbolic link", forgery{files: with(item{Header: tar.Header{Typeflag: tar.TypeSymlink, Name: "x", Linkname: "/etc/passwd"}})},
			[]string{"the archive's header of x: it is neither a file nor a folder"}},
		{"the same manifest twice", forgery{index: func(i *ocispec.Index) { i.Manifests = append(i.Manifests, i.Manifests[0]) }},
			[]string{`image index: it has two manifests for "linux/amd64"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := faultsOf(verified(t, saved(t, c.f.bytes(t))))
			if len(got) != len(c.want) {
				t.Errorf("%q\nwant %q", got, c.want)
				return
			}
			for _, want := range c.want {
				if !slices.ContainsFunc(got, func(s string) bool { return strings.Contains(s, want) }) {
					t.Errorf("%q\nwant %s", got, want)
				}
			}
		})
	}
}

// Cut anywhere, a bundle is not taken for whole, and never by a panic.
func TestVerifyFindsEveryCut(t *testing.T) {
	good := forgery{}.bytes(t)
	for n := 1; n < len(good); n += 97 {
		report, err := verifyInMemory(t, good[:n])
		if err != nil {
			if _, is := errors.AsType[*NotBundleError](err); !is || n > 4096 {
				t.Fatalf("%d bytes: %v", n, err)
			}
			continue
		}
		if faults := faultsOf(report); !slices.ContainsFunc(faults, func(s string) bool { return strings.HasPrefix(s, "the archive: it is cut short") }) {
			t.Fatalf("%d bytes: %q", n, faults)
		}
	}
}

// What is no bundle, or a newer one, is not called damaged.
func TestVerifyRefuses(t *testing.T) {
	_, err := Verify(t.Context(), saved(t, plainTar(t, "x", 10)), OpenOptions{}, nil)
	if _, is := errors.AsType[*NotBundleError](err); !is {
		t.Errorf("a tar: %v", err)
	}
	_, err = Verify(t.Context(), saved(t, forgery{config: func(c *Config) { c.FormatVersion = 7 }}.bytes(t)), OpenOptions{}, nil)
	if _, is := errors.AsType[*VersionError](err); !is {
		t.Errorf("a newer bundle: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Verify(ctx, saved(t, forgery{}.bytes(t)), OpenOptions{}, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("after the context's end: %v", err)
	}
}

func TestInspect(t *testing.T) {
	file, made := writeBundle(t, smallContents(t, "amd64", "arm64"))
	got, err := Inspect(t.Context(), file, OpenOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if got.Digest != made.Digest || len(got.Components) != 6 || got.Nodeprep != "1.2.3" {
		t.Errorf("got %+v", got)
	}
	c := got.Components[4]
	if c.Component != "runc" || c.Arch != "arm64" || c.Unpacked != int64(len("runc for arm64")) || c.Packed != made.Layers[c.Layer] || c.SHA256 == "" {
		t.Errorf("got %+v", c)
	}
	var files, images []string
	for _, f := range got.Files {
		files = append(files, f.Path+" "+strings.Join(f.Arches, ","))
	}
	for _, i := range got.Images {
		images = append(images, i.File+" "+strings.Join(i.Platforms, ",")+" "+strings.Join(i.Names, ","))
	}
	if diff := cmp.Diff([]string{"files/ca.pem amd64,arm64", LockName + " amd64", "profile.yaml amd64,arm64", LockName + " arm64"}, files); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{
		"images/shared.tar linux/amd64,linux/arm64 docker.io/library/shared:1",
		"images/amd64.tar.gz linux/amd64 example.com/amd64:1", "images/arm64.tar.gz linux/arm64 example.com/arm64:1",
	}, images); diff != "" {
		t.Error(diff)
	}
}

// A bundle whose lock and releases disagree is not as it was made.
func TestVerifyHoldsReleasesAgainstTheLock(t *testing.T) {
	text := func(sum string) string {
		return "apiVersion: nodeprep/v1alpha1\nkind: Lock\nartifacts:\n  - component: runc\n    version: 1.4.3\n    arch: amd64\n    file: runc.amd64\n    sha256: " + sum + "\n"
	}
	right := fmt.Sprintf("%x", sha256.Sum256([]byte("runc-1.4.3.tgz")))
	for sum, good := range map[string]bool{right: true, strings.Repeat("0a", 32): false} {
		c := smallContents(t, "amd64")
		c.Platforms[0].Node[1] = inMemory(LockName, text(sum))
		file, _ := writeBundle(t, c)
		report, err := Verify(t.Context(), file, OpenOptions{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		want := "node linux/amd64: runc 1.4.3 was made of runc-1.4.3.tgz with sha256 " + right + ", and nodeprep.lock:8:13 has " + sum
		switch {
		case good && len(report.Faults) > 0:
			t.Errorf("%v", report.Faults)
		case !good && (len(report.Faults) != 1 || report.Faults[0].Error() != want):
			t.Errorf("%v\nwant %s", report.Faults, want)
		}
	}
}
