package release

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/google/go-cmp/cmp"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// memory is a Sink that keeps what it gets.
type memory struct {
	files map[string]*bytes.Buffer // by path
	whole []string
	modes map[string]fs.FileMode
	fail  error // of Write
}

type memoryFile struct {
	*bytes.Buffer
	m    *memory
	path string
}

func (f memoryFile) Write(b []byte) (int, error) {
	if f.m.fail != nil {
		return 0, f.m.fail
	}
	return f.Buffer.Write(b)
}

func (f memoryFile) Close() error {
	f.m.whole = append(f.m.whole, f.path)
	return nil
}

func (m *memory) Create(d desired.Member, mode fs.FileMode) (io.WriteCloser, error) {
	if m.files == nil {
		m.files, m.modes = map[string]*bytes.Buffer{}, map[string]fs.FileMode{}
	}
	m.files[d.Path], m.modes[d.Path] = &bytes.Buffer{}, mode
	return memoryFile{m.files[d.Path], m, d.Path}, nil
}

// member is an entry of a tar made in a test.
type member struct {
	tar.Header
	content string
}

func file(name, content string) member {
	return member{tar.Header{Name: name, Typeflag: tar.TypeReg, Mode: 0o644, Size: int64(len(content))}, content}
}

func special(name string, kind byte, to string) member {
	return member{tar.Header{Name: name, Typeflag: kind, Linkname: to, Mode: 0o777}, ""}
}

func mode(m member, bits int64) member { m.Mode = bits; return m }

func tarOf(t testing.TB, members ...member) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, m := range members {
		if err := w.WriteHeader(&m.Header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func gz(t testing.TB, b []byte) []byte {
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

func zst(t testing.TB, b []byte, opts ...zstd.EOption) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil, opts...)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	return w.EncodeAll(b, nil)
}

// located is an archive of a component, with the digest that it has.
func located(t testing.TB, component, name string, b []byte) Located {
	t.Helper()
	a := desired.Artifact{Component: component, Version: "1.7.24", Arch: "amd64", Members: members(component)}
	bundle := strings.HasPrefix(name, "cri-") || strings.HasPrefix(name, "nerdctl-")
	return Located{Artifact: a, File: name, SHA256: sumOf(b), SHA256From: "catalogue", bundle: bundle}
}

const elfStart = "\x7fELF\x02\x01\x01 a program"

// good is what every containerd release has, in upstream's order.
func good() []member {
	return []member{
		special("bin/", tar.TypeDir, ""),
		file("bin/containerd-shim-runc-v2", "shim "+strings.Repeat("s", 700<<10)),
		file("bin/ctr", "ctr"),
		file("bin/containerd", "daemon"),
	}
}

func TestUnpackFormatsAndLayouts(t *testing.T) {
	bin := func(names ...string) (out []string) {
		for _, n := range names {
			out = append(out, "/usr/local/bin/"+n)
		}
		return out
	}
	required := bin("containerd", "containerd-shim-runc-v2", "ctr")
	cni := []member{
		special("./", tar.TypeDir, ""), file("./bridge", "b"), file("./host-local", "h"), file("./loopback", "l"),
		file("./portmap", "p"), file("./vrf", "v"), file("./LICENSE", "text"), file("./README.md", "text"),
	}
	cniPaths := []string{"/opt/cni/bin/bridge", "/opt/cni/bin/host-local", "/opt/cni/bin/loopback", "/opt/cni/bin/portmap", "/opt/cni/bin/vrf"}
	cri := []member{
		file("/cri-containerd.DEPRECATED.txt", "old"), file("/etc/crictl.yaml", "x"), file("/etc/systemd/system/containerd.service", "unit"),
		file("/usr/local/bin/containerd", "daemon"), file("/usr/local/bin/ctr", "ctr"), file("/usr/local/bin/containerd-shim", "s"),
		file("/usr/local/bin/containerd-shim-runc-v1", "s1"), file("/usr/local/bin/containerd-shim-runc-v2", "s2"),
		file("/usr/local/bin/crictl", "c"), file("/usr/local/sbin/runc", "r"), file("/opt/containerd/cluster/containerd", "not this"),
	}
	dotted := slices.Clone(cri)
	for i := range dotted {
		dotted[i].Name = "." + dotted[i].Name
	}
	full := []member{
		file("share/doc/nerdctl-full/README.md", "# nerdctl (full)\n- nerdctl: v2.0.0\n- containerd: v1.7.24\n- runc: v1.7.24\n- CNI plugins: v1.7.24\n"),
		file("bin/containerd", "daemon"), file("bin/ctr", "ctr"), file("bin/containerd-shim-runc-v2", "s"), file("bin/runc", "r"), file("bin/nerdctl", "n"),
		file("libexec/cni/bridge", "b"), file("libexec/cni/host-local", "h"), file("libexec/cni/loopback", "l"), file("libexec/cni/portmap", "p"), file("libexec/cni/vrf", "v"),
		file("lib/systemd/system/containerd.service", "unit"), special("lib/systemd/system/alias.service", tar.TypeSymlink, "containerd.service"),
	}
	tgz := gz(t, tarOf(t, good()...))
	two := tarOf(t, good()...)
	multi := append(gz(t, two[:1000]), gz(t, two[1000:])...)
	old := tarOf(t, good()...)
	for i := 0; i < len(old); i += 512 { // as of Unix V7: no mark
		if bytes.Equal(old[i+257:i+262], []byte("ustar")) {
			v7(old[i : i+512])
		}
	}
	for _, c := range []struct {
		name, component, file string
		archive               []byte
		want                  []string
	}{
		{"upstream", "containerd", "containerd-1.7.24-linux-amd64.tar.gz", tgz, required},
		{"under any name", "containerd", "x.zip", tgz, required},
		{"several gzip streams", "containerd", "x.tar.gz", multi, required},
		{"plain tar", "containerd", "x.tar", two, required},
		{"tar without a mark", "containerd", "x.tar", old, required},
		{"zstd", "containerd", "x.tar.zst", zst(t, two), required},
		{"CNI plugins", "cni", "cni-plugins-linux-amd64-v1.9.1.tgz", gz(t, tarOf(t, cni...)), cniPaths},
		{"crictl", "crictl", "crictl-v1.36.0-linux-amd64.tar.gz", gz(t, tarOf(t, file("crictl", "c"))), bin("crictl")},
		{"runc, a bare program", "runc", "runc.amd64", []byte(elfStart), []string{"/usr/local/sbin/runc"}},
		{"a compressed program", "runc", "runc.amd64.gz", gz(t, []byte(elfStart)), []string{"/usr/local/sbin/runc"}},
		{"cri-containerd", "containerd", "cri-containerd-1.7.24-linux-amd64.tar.gz", gz(t, tarOf(t, cri...)), append(bin("containerd-shim", "containerd-shim-runc-v1"), required...)},
		{"cri-containerd rooted at ./", "containerd", "cri-containerd-1.7.24-linux-amd64.tar.gz", gz(t, tarOf(t, dotted...)), append(bin("containerd-shim", "containerd-shim-runc-v1"), required...)},
		{"runc of cri-containerd", "runc", "cri-containerd-1.7.24-linux-amd64.tar.gz", gz(t, tarOf(t, cri...)), []string{"/usr/local/sbin/runc"}},
		{"nerdctl-full", "containerd", "nerdctl-full-2.0.0-linux-amd64.tar.gz", gz(t, tarOf(t, full...)), required},
		{"runc of nerdctl-full", "runc", "nerdctl-full-2.0.0-linux-amd64.tar.gz", gz(t, tarOf(t, full...)), []string{"/usr/local/sbin/runc"}},
		{"CNI plugins of nerdctl-full", "cni", "nerdctl-full-2.0.0-linux-amd64.tar.gz", gz(t, tarOf(t, full...)), cniPaths},
	} {
		t.Run(c.name, func(t *testing.T) {
			var sink memory
			got, err := Unpack(t.Context(), iotest.HalfReader(bytes.NewReader(c.archive)), located(t, c.component, c.file, c.archive), &sink)
			if err != nil {
				t.Fatal(err)
			}
			slices.Sort(sink.whole)
			slices.Sort(c.want)
			if d := cmp.Diff(c.want, sink.whole); d != "" {
				t.Errorf("members (-want +got)\n%s", d)
			}
			if got.SHA256 != sumOf(c.archive) || len(got.Members) != len(c.want) {
				t.Errorf("%+v", got)
			}
			for _, m := range got.Members {
				b := sink.files[m.Path].Bytes()
				if m.Size != int64(len(b)) || m.SHA256 != sumOf(b) || sink.modes[m.Path] != 0o755 {
					t.Errorf("%s: %d bytes, sha256 %s, mode %v; the sink has %d, %s", m.Name, m.Size, m.SHA256, sink.modes[m.Path], len(b), sumOf(b))
				}
			}
			if b, ok := sink.files["/usr/local/bin/containerd"]; ok && b.String() != "daemon" {
				t.Errorf("containerd is %q", b)
			}
		})
	}
}

// v7 makes a ustar header one of before: no mark, no prefix, another checksum.
func v7(header []byte) {
	clear(header[257:])
	sum := 0
	for i, c := range header {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func TestHostileArchives(t *testing.T) {
	plain := tarOf(t, good()...)
	tgz := gz(t, plain)
	with := func(m ...member) []byte { return gz(t, tarOf(t, append(good(), m...)...)) }
	without := func(name string) []member {
		return slices.DeleteFunc(good(), func(m member) bool { return m.Name == name })
	}
	negative := bytes.Clone(plain)
	// The size field of the second header, in base 256: -1.
	copy(negative[512+124:512+136], bytes.Repeat([]byte{0xff}, 12))
	fixSum(negative[512:1024])
	huge := bytes.Clone(plain)
	copy(huge[512+124:512+136], "\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff")
	fixSum(huge[512:1024])
	oldSparse := bytes.Clone(plain)
	oldSparse[512+156] = tar.TypeGNUSparse
	copy(oldSparse[512+257:], "ustar  \x00")
	fixSum(oldSparse[512:1024])
	many := make([]member, 0, 50)
	for i := range 50 {
		many = append(many, file(fmt.Sprintf("share/%d", i), ""))
	}
	z := zst(t, plain)
	small := limits{unpacked: 4 << 20, entries: 40, ratio: 100, ratioFrom: 1 << 20, zstdWindow: 8 << 20}

	for _, c := range []struct {
		name    string
		archive []byte
		file    string // "" for upstream's name
		want    string
	}{
		{"truncated gzip", tgz[:len(tgz)/2], "", "unpack NAME: the compressed data is truncated"},
		{"gzip without its trailer", tgz[:len(tgz)-4], "", "unpack NAME: the compressed data is truncated"},
		{"truncated zstd", z[:len(z)/2], "", "unpack NAME: the compressed data is truncated"},
		{"garbage after gzip", append(bytes.Clone(tgz), "evil"...), "", "unpack NAME: there is garbage after the end of the compressed data"},
		{"much garbage after gzip", append(bytes.Clone(tgz), bytes.Repeat([]byte("evil"), 1<<18)...), "", "unpack NAME: there is garbage after the end of the compressed data"},
		{"garbage after zstd", append(bytes.Clone(z), "evil stuff"...), "", "unpack NAME: there is garbage after the end of the compressed data"},
		{"garbage after tar", gz(t, append(bytes.Clone(plain), "evil"...)), "", "unpack NAME: there is garbage after the end of the tar"},
		{"flipped bits", flip(tgz), "", "unpack NAME: the compressed data is damaged"},
		{"truncated tar", gz(t, plain[:2000]), "", `unpack NAME: member "bin/containerd-shim-runc-v2": the archive ends in the middle`},
		{"dotdot", with(file("../../etc/passwd", "x")), "", `unpack NAME: member "../../etc/passwd": its name leads out of the archive`},
		{"dotdot within", with(file("bin/../../ctr", "x")), "", `member "bin/../../ctr": its name leads out of the archive`},
		{"dotdot in a PAX name", gz(t, append(paxHeader(t, "path=../x"), tarOf(t, append([]member{file("bin/x", "x")}, good()...)...)...)), "", `member "../x": its name leads out of the archive`},
		{"absolute", with(file("/etc/passwd", "x")), "", `member "/etc/passwd": its name is absolute`},
		{"dotdot where absolute is usual", with(file("/usr/../../x", "x")), "cri-containerd-1.7.24-linux-amd64.tar.gz", "its name leads out of the archive"},
		{"symlink out, absolute", with(special("bin/x", tar.TypeSymlink, "/etc/passwd")), "", `member "bin/x": it is a symbolic link out of the archive, to "/etc/passwd"`},
		{"symlink out, relative", with(special("bin/x", tar.TypeSymlink, "../../x")), "", `member "bin/x": it is a symbolic link out of the archive, to "../../x"`},
		{"symlinked folder", gz(t, tarOf(t, append([]member{special("bin", tar.TypeSymlink, "/tmp")}, good()...)...)), "", `member "bin": it is a symbolic link out of the archive`},
		{"a symlink for a program", gz(t, tarOf(t, append(without("bin/ctr"), special("bin/ctr", tar.TypeSymlink, "containerd"))...)), "", `member "bin/ctr": it is a symbolic link, want a regular file`},
		{"hard link", with(special("bin/x", tar.TypeLink, "bin/ctr")), "", `member "bin/x": it is a hard link, to "bin/ctr"`},
		{"device node", with(special("dev/sda", tar.TypeBlock, "")), "", `member "dev/sda": it is a device node`},
		{"character device", with(special("bin/x", tar.TypeChar, "")), "", `member "bin/x": it is a device node`},
		{"fifo", with(special("bin/x", tar.TypeFifo, "")), "", `member "bin/x": it is a fifo`},
		{"setuid", gz(t, tarOf(t, append(without("bin/ctr"), mode(file("bin/ctr", "c"), 0o4755))...)), "", `member "bin/ctr": it has the setuid bit (mode 04755)`},
		{"setgid", gz(t, tarOf(t, append(without("bin/ctr"), mode(file("bin/ctr", "c"), 0o2755))...)), "", `member "bin/ctr": it has the setgid bit (mode 02755)`},
		{"twice", with(file("bin/ctr", "other")), "", `member "bin/ctr": it is there twice, before as "bin/ctr"`},
		{"twice under two names", with(file("./usr/local/bin/ctr", "other")), "", `member "./usr/local/bin/ctr": it is there twice, before as "bin/ctr"`},
		{"missing", gz(t, tarOf(t, without("bin/containerd-shim-runc-v2")...)), "", "unpack NAME: it lacks containerd-shim-runc-v2"},
		{"elsewhere", gz(t, tarOf(t, append(without("bin/ctr"), file("containerd-1.7/bin/ctr", "c"))...)), "", "it lacks ctr where they are expected (., bin, usr/local/bin); it has containerd-1.7/bin/ctr"},
		{"nothing that is wanted", gz(t, tarOf(t, file("README", "x"))), "", "unpack NAME: it lacks containerd, containerd-shim-runc-v2, ctr"},
		{"negative size", gz(t, negative), "", "unpack NAME: a tar header is malformed"},
		{"huge size", gz(t, huge), "", "over the limit of 4 MiB"},
		{"old sparse", gz(t, oldSparse), "", "sparse files are not unpacked"},
		{"PAX sparse", gz(t, paxSparse(t)), "", `member "bin/ctr": sparse files are not unpacked`},
		{"a global PAX path", gz(t, tarOf(t, append([]member{{tar.Header{Typeflag: tar.TypeXGlobalHeader, PAXRecords: map[string]string{"path": "x"}}, ""}}, good()...)...)), "", `a global PAX header sets "path" for all members`},
		{"too many members", with(many...), "", "unpack NAME: it has more than 40 members, the limit"},
		{"a bomb by size", with(file("share/a", string(noise(3<<20))), file("share/b", string(noise(3<<20)))), "", "unpack NAME: it unpacks to more than 4 MiB, the limit"},
		{"a bomb by ratio", with(file("share/zero", strings.Repeat("\x00", 3<<20))), "", "unpack NAME: it unpacks to more than 100 times its size, the limit"},
		{"a zstd window that eats memory", wide(t, plain), "", "its zstd window is over 8 MiB"},
		{"a web page", []byte("<!DOCTYPE html><title>Log in</title>"), "", `unpack NAME: neither gzip, zstd, tar nor a program: it begins with "<!DOCTYPE html><"`},
		{"gzip of no tar", gz(t, []byte("hello")), "", "unpack NAME: there is no tar in this gzip file"},
		{"a program instead of an archive", []byte(elfStart), "", "unpack NAME: it is a single program, not an archive"},
		{"an empty file", nil, "", "unpack NAME: the file is empty"},
		{"another version in nerdctl-full", gz(t, tarOf(t, append(good(), file("share/doc/nerdctl-full/README.md", "- containerd: v2.1.4\n"))...)), "nerdctl-full-2.1.0-linux-amd64.tar.gz", "unpack NAME: it has containerd 2.1.4, wanted is 1.7.24"},
	} {
		t.Run(c.name, func(t *testing.T) {
			name := c.file
			if name == "" {
				name = "containerd-1.7.24-linux-amd64.tar.gz"
			}
			l := located(t, releases.Containerd, name, c.archive)
			_, err := unpack(t.Context(), bytes.NewReader(c.archive), l, &memory{}, small)
			want := strings.ReplaceAll(c.want, "NAME", name)
			if _, is := errors.AsType[*ArchiveError](err); !is || !strings.Contains(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if _, is := errors.AsType[*DigestError](err); is {
				t.Errorf("the digest is right: %v", err)
			}
			// With a wrong digest that is what is told first, whatever else is wrong.
			l.SHA256 = strings.Repeat("0", 64)
			_, err = unpack(t.Context(), bytes.NewReader(c.archive), l, &memory{}, small)
			wrong, is := errors.AsType[*DigestError](err)
			if !is || wrong.Got != sumOf(c.archive) || !strings.Contains(err.Error(), want) {
				t.Errorf("with a wrong digest: %v", err)
			}
		})
	}
	// None of the above is refused for want of being good.
	if _, err := unpack(t.Context(), bytes.NewReader(tgz), located(t, releases.Containerd, "x", tgz), &memory{}, small); err != nil {
		t.Error(err)
	}
}

// fixSum makes a changed header's checksum right again.
func fixSum(header []byte) {
	sum := 0
	for i, c := range header {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	copy(header[148:156], fmt.Sprintf("%06o\x00 ", sum))
}

func flip(b []byte) []byte {
	out := bytes.Clone(b)
	for i := len(out) / 2; i < len(out)/2+8; i++ {
		out[i] ^= 0x55
	}
	return out
}

// wide is a zstd file whose decoder needs a window of 16 MiB.
func wide(t *testing.T, b []byte) []byte {
	t.Helper()
	var out bytes.Buffer
	w, err := zstd.NewWriter(&out, zstd.WithWindowSize(16<<20))
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range [][]byte{b[:1000], b[1000:]} {
		if _, err := w.Write(piece); err != nil {
			t.Fatal(err)
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

// paxHeader is an extended header (pax(1)) with records that tar.Writer does not make.
func paxHeader(t *testing.T, records ...string) []byte {
	t.Helper()
	var all string
	for _, r := range records {
		n := len(r) + 3
		if len(fmt.Sprint(n)) > 1 {
			n = len(r) + 4
		}
		all += fmt.Sprintf("%d %s\n", n, r)
	}
	head := tarOf(t, file("PaxHeaders/x", all))[:1024]
	head[156] = tar.TypeXHeader
	fixSum(head[:512])
	return head
}

// paxSparse has a member of GNU's sparse format 1.0.
func paxSparse(t *testing.T) []byte {
	t.Helper()
	sparseMap := "1\n0\n1\n"
	return append(paxHeader(t, "GNU.sparse.major=1", "GNU.sparse.minor=0", "GNU.sparse.name=bin/ctr", "GNU.sparse.realsize=1048576"),
		tarOf(t, file("GNUSparseFile.0/ctr", sparseMap+strings.Repeat("\x00", 512-len(sparseMap))+"x"))...)
}

func TestUnpackChecksTheDigest(t *testing.T) {
	for _, c := range []struct {
		component, file string
		archive         []byte
	}{
		{"containerd", tarball, gz(t, tarOf(t, good()...))},
		{"runc", "runc.amd64", []byte(elfStart)},
	} {
		l := located(t, c.component, c.file, c.archive)
		l.SHA256, l.SHA256From = strings.Repeat("0", 64), "profile node.yaml:12"
		got, err := Unpack(t.Context(), bytes.NewReader(c.archive), l, &memory{})
		want := "verify " + c.file + ": sha256 mismatch: got " + sumOf(c.archive) + ", want " + strings.Repeat("0", 64) + " (from profile node.yaml:12)"
		if err == nil || err.Error() != want || got.Members != nil {
			t.Errorf("got  %v, %v\nwant %s", err, got, want)
		}
	}
}

func TestUnpackTellsWhoseFaultItIs(t *testing.T) {
	archive := gz(t, tarOf(t, good()...))
	l := located(t, "containerd", tarball, archive)
	full := errors.New("no space left on device")
	sink := &memory{fail: full}
	if _, err := Unpack(t.Context(), bytes.NewReader(archive), l, sink); !errors.Is(err, full) || len(sink.whole) > 0 {
		t.Errorf("the sink's: %v, closed %v", err, sink.whole)
	}
	refused := errors.New("refused")
	if _, err := Unpack(t.Context(), bytes.NewReader(archive), l, SinkFunc(func(desired.Member, fs.FileMode) (io.WriteCloser, error) { return nil, refused })); !errors.Is(err, refused) {
		t.Errorf("the sink's: %v", err)
	}
	broken := errors.New("input/output error")
	_, err := Unpack(t.Context(), io.MultiReader(bytes.NewReader(archive[:300]), iotest.ErrReader(broken)), l, &memory{})
	if _, blamed := errors.AsType[*ArchiveError](err); !errors.Is(err, broken) || blamed {
		t.Errorf("the disk's: %v", err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	stop := errors.New("interrupted")
	_, err = Unpack(ctx, bytes.NewReader(archive), l, SinkFunc(func(desired.Member, fs.FileMode) (io.WriteCloser, error) {
		cancel(stop)
		return memoryFile{&bytes.Buffer{}, &memory{}, ""}, nil
	}))
	if !errors.Is(err, stop) {
		t.Errorf("the context's: %v", err)
	}
}

// summed hashes by itself.
type summed struct{ memoryFile }

func (summed) SHA256() string { return "told by the sink" }

func TestSinkThatHashes(t *testing.T) {
	archive := []byte(elfStart)
	got, err := Unpack(t.Context(), bytes.NewReader(archive), located(t, "runc", "runc.amd64", archive),
		SinkFunc(func(desired.Member, fs.FileMode) (io.WriteCloser, error) {
			return summed{memoryFile{&bytes.Buffer{}, &memory{}, ""}}, nil
		}))
	if err != nil || got.Members[0].SHA256 != "told by the sink" {
		t.Errorf("%+v, %v", got, err)
	}
}

func TestSizes(t *testing.T) {
	plain := tarOf(t, good()...)
	var stored bytes.Buffer
	w, err := gzip.NewWriterLevel(&stored, gzip.NoCompression)
	if err == nil {
		_, err = w.Write(plain)
	}
	if err := errors.Join(err, w.Close()); err != nil || stored.Len() <= len(plain) {
		t.Fatalf("%d bytes are %d without compression: %v", len(plain), stored.Len(), err)
	}
	dir := t.TempDir()
	for _, c := range []struct {
		name    string
		content []byte
		want    int64
	}{
		{"x.tar.gz", gz(t, plain), int64(len(plain))},
		{"stored.tar.gz", stored.Bytes(), int64(len(plain))},
		{"x.tar.zst", zst(t, plain), int64(len(plain))},
		{"x.tar", plain, int64(len(plain))},
		{"runc.amd64", []byte(elfStart), int64(len(elfStart))},
		{"noise.tar.gz", append(gz(t, plain), 0, 0, 0, 0), int64(4 * (len(gz(t, plain)) + 4))},
		{"tiny", []byte{0x1f, 0x8b}, 8},
		{"empty", nil, 0},
	} {
		p := write(t, dir+"/"+c.name, c.content)
		packed, unpacked, err := Sizes(Located{Path: p, File: c.name})
		if err != nil || packed != int64(len(c.content)) || unpacked != c.want {
			t.Errorf("%s: %d, %d, %v; want %d, %d", c.name, packed, unpacked, err, len(c.content), c.want)
		}
	}
	if _, _, err := Sizes(Located{Path: dir + "/absent", File: "absent"}); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

func FuzzUnpack(f *testing.F) {
	small := tarOf(f, file("bin/containerd", "d"), file("bin/ctr", "c"), file("bin/containerd-shim-runc-v2", "s"), special("l", tar.TypeSymlink, "bin"))
	f.Add(small)
	f.Add(gz(f, small))
	f.Add(zst(f, small))
	f.Add([]byte(elfStart))
	lim := limits{unpacked: 1 << 20, entries: 100, ratio: 100, ratioFrom: 64 << 10, zstdWindow: 1 << 20}
	f.Fuzz(func(t *testing.T, archive []byte) {
		for _, component := range []string{"containerd", "runc"} {
			sink := &memory{}
			l := located(t, component, "x", archive)
			got, err := unpack(t.Context(), bytes.NewReader(archive), l, sink, lim)
			var total int
			for p, b := range sink.files {
				total += b.Len()
				if !slices.ContainsFunc(l.Artifact.Members, func(m desired.Member) bool { return m.Path == p }) {
					t.Errorf("wrote %s, which nobody asked for", p)
				}
			}
			if total > 1<<20+len(archive) {
				t.Errorf("%d bytes went through a limit of 1 MiB", total)
			}
			if err == nil {
				for _, m := range l.Artifact.Members {
					if !m.Optional && !slices.Contains(sink.whole, m.Path) {
						t.Errorf("all is well, but %s is missing", m.Name)
					}
				}
				if len(got.Members) != len(sink.whole) {
					t.Errorf("%d members told, %d written", len(got.Members), len(sink.whole))
				}
			}
			l.SHA256 = strings.Repeat("0", 64)
			if _, err := unpack(t.Context(), bytes.NewReader(archive), l, &memory{}, lim); err == nil {
				t.Error("a wrong digest went through")
			}
		}
	})
}
