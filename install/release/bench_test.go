package release

import (
	"bufio"
	"bytes"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/klauspost/compress/gzip"
	"golang.org/x/sync/errgroup"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// code is text that compresses about as well as programs do, to 40 %.
func code(n int) string {
	r := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = make([]byte, 2+r.IntN(14))
		for j := range words[i] {
			words[i][j] = byte(r.IntN(256))
		}
	}
	out := make([]byte, 0, n+32)
	for len(out) < n {
		// The square makes some of them far more frequent than others.
		f := r.Float64()
		out = append(out, words[int(f*f*float64(len(words)))]...)
		if r.IntN(3) == 0 {
			out = append(out, byte(r.IntN(256)))
		}
	}
	return string(out[:n])
}

// releasesForBench writes three artifacts of half the real ones' size.
func releasesForBench(b *testing.B) (list []Located, unpacked int64) {
	b.Helper()
	dir := b.TempDir()
	body := code(20 << 20)
	cni := []member{}
	for _, m := range members("cni") {
		cni = append(cni, file("./"+m.Name, body[:2<<20]))
	}
	for _, c := range []struct {
		component, name string
		content         []byte
	}{
		{"containerd", "containerd-1.7.24-linux-amd64.tar.gz", gz(b, tarOf(b,
			file("bin/containerd", body), file("bin/ctr", body[:10<<20]), file("bin/containerd-shim-runc-v2", body[:5<<20])))},
		{"cni", "cni-plugins-linux-amd64-v1.9.1.tgz", gz(b, tarOf(b, cni...))},
		{"runc", "runc.amd64", []byte("\x7fELF" + body[:6<<20])},
	} {
		l := located(b, c.component, c.name, c.content)
		l.Path = filepath.Join(dir, c.name)
		if err := os.WriteFile(l.Path, c.content, 0o600); err != nil {
			b.Fatal(err)
		}
		_, n, err := Sizes(l)
		if err != nil {
			b.Fatal(err)
		}
		unpacked += n
		list = append(list, l)
	}
	return list, unpacked
}

// files is a Sink that writes to a folder, without making anything durable.
func files(dir string) Sink {
	return SinkFunc(func(m desired.Member, mode fs.FileMode) (io.WriteCloser, error) {
		return os.OpenFile(filepath.Join(dir, m.Name), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, mode)
	})
}

// BenchmarkUnpack is verified unpacking into files, three artifacts side by side; MB/s
// are of unpacked bytes.
func BenchmarkUnpack(b *testing.B) {
	list, unpacked := releasesForBench(b)
	dir := b.TempDir()
	b.SetBytes(unpacked)
	b.ReportAllocs()
	for b.Loop() {
		g, ctx := errgroup.WithContext(b.Context())
		for _, l := range list {
			g.Go(func() error {
				_, err := UnpackFile(ctx, l, files(dir))
				return err
			})
		}
		if err := g.Wait(); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUnpackOne is the largest artifact alone, for comparison with gunzip.
func BenchmarkUnpackOne(b *testing.B) {
	list, _ := releasesForBench(b)
	_, unpacked, err := Sizes(list[0])
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(unpacked)
	b.ReportAllocs()
	nowhere := SinkFunc(func(desired.Member, fs.FileMode) (io.WriteCloser, error) { return discard{io.Discard}, nil })
	for b.Loop() {
		if _, err := UnpackFile(b.Context(), list[0], nowhere); err != nil {
			b.Fatal(err)
		}
	}
}

type discard struct{ io.Writer }

func (discard) Close() error { return nil }

// BenchmarkGunzip only decompresses the same file: no digest, no tar, no files.
func BenchmarkGunzip(b *testing.B) {
	list, _ := releasesForBench(b)
	packed, err := os.ReadFile(list[0].Path)
	if err != nil {
		b.Fatal(err)
	}
	_, unpacked, err := Sizes(list[0])
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(unpacked)
	for b.Loop() {
		z, err := gzip.NewReader(bufio.NewReaderSize(bytes.NewReader(packed), 64<<10))
		if err != nil {
			b.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, struct{ io.Reader }{z}); err != nil {
			b.Fatal(err)
		}
	}
}
