package release

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// programMode is the mode of every member, whatever the archive says.
const programMode fs.FileMode = 0o755

// Sink takes the members of an artifact. A writer is closed when its member is whole;
// after a failure the last one is left open and it is the sink's to throw away all it
// got, which counts only when Unpack returns nil.
type Sink interface {
	Create(m desired.Member, mode fs.FileMode) (io.WriteCloser, error)
}

// SinkFunc is a Sink that is a function.
type SinkFunc func(m desired.Member, mode fs.FileMode) (io.WriteCloser, error)

// Create calls f.
func (f SinkFunc) Create(m desired.Member, mode fs.FileMode) (io.WriteCloser, error) {
	return f(m, mode)
}

// Summed is a Sink's writer that hashes what it is given, so that Unpack need not do
// it as well. SHA256 is called after Close and returns lower-case hex.
type Summed interface{ SHA256() string }

// Unpacked is what was taken out of an artifact.
type Unpacked struct {
	SHA256  string // of the artifact, as verified
	Members []UnpackedMember
}

// UnpackedMember is one member, with its size in bytes.
type UnpackedMember struct {
	desired.Member
	Size   int64
	SHA256 string
}

// limits end the unpacking of what is no release file but a trap. The largest real
// one, nerdctl-full, unpacks to less than 1 GiB with some 150 entries, and programs
// compress to a third or a quarter.
type limits struct {
	unpacked int64 // bytes in all
	entries  int
	// ratio of unpacked to packed bytes, looked at from ratioFrom unpacked bytes on.
	ratio, ratioFrom int64
	zstdWindow       uint64
}

func defaultLimits() limits {
	return limits{unpacked: 2 << 30, entries: 10_000, ratio: 100, ratioFrom: 64 << 20, zstdWindow: 8 << 20}
}

// UnpackFile is Unpack of a file that is at hand.
func UnpackFile(ctx context.Context, l Located, sink Sink) (Unpacked, error) {
	f, err := os.Open(l.Path)
	if err != nil {
		return Unpacked{}, fmt.Errorf("unpack %s: %w", l.File, err)
	}
	defer f.Close()
	return Unpack(ctx, f, l, sink)
}

// Unpack reads a release file once, verifies it against l.SHA256 and gives the members
// of l.Artifact to the sink as they come. Reading and hashing, decompression, and
// hashing and writing of members run at the same time; about 1.5 MiB are held.
//
// The format is found by content: gzip (RFC 1952) or zstd (RFC 8878) with a tar
// within, a plain tar (pax(1), ustar, GNU), or the program itself. Members not asked
// for are passed over, but nothing in an archive may point out of it, and links,
// devices and fifos have no business in one. Members are created with mode 0755.
//
// Errors: *DigestError, which comes before any other fault of the content;
// *ArchiveError; the context's cause; those of the sink and of reading r, wrapped.
func Unpack(ctx context.Context, r io.Reader, l Located, sink Sink) (Unpacked, error) {
	return unpack(ctx, r, l, sink, defaultLimits())
}

// outside marks errors that say nothing about the archive: the sink's, the reader's.
type outside struct{ error }

func (o outside) Unwrap() error { return o.error }

// readErrors marks what goes wrong in reading the file itself.
type readErrors struct{ io.Reader }

func (r readErrors) Read(p []byte) (int, error) {
	n, err := r.Reader.Read(p)
	if err != nil && err != io.EOF {
		err = outside{fmt.Errorf("read: %w", err)}
	}
	return n, err
}

func unpack(ctx context.Context, r io.Reader, l Located, sink Sink, lim limits) (Unpacked, error) {
	ctx, cancel := context.WithCancel(ctx)
	digest := sha256.New()
	packed := newStream(ctx, readErrors{r}, packedBuffers, packedSize, digest)
	defer packed.wait()
	defer cancel()

	u := &unpacker{l: l, sink: sink, lim: lim, folders: folders(l.Artifact.Component), taken: map[string]string{}}
	err := u.content(ctx, packed)
	if _, not := errors.AsType[outside](err); not || ctx.Err() != nil {
		if ctx.Err() != nil {
			return Unpacked{}, context.Cause(ctx)
		}
		return Unpacked{}, fmt.Errorf("unpack %s: %w", l.File, err)
	}
	// The rest counts for the digest, and a wrong digest explains all other faults.
	if _, rest := io.Copy(io.Discard, struct{ io.Reader }{packed}); rest != nil {
		if ctx.Err() != nil {
			return Unpacked{}, context.Cause(ctx)
		}
		return Unpacked{}, fmt.Errorf("unpack %s: %w", l.File, rest)
	}
	if got := hex.EncodeToString(digest.Sum(nil)); got != l.SHA256 {
		name := l.Path
		if name == "" {
			name = l.File
		}
		return Unpacked{}, &DigestError{File: name, Got: got, Want: l.SHA256, From: l.SHA256From, Err: err}
	}
	if err != nil {
		return Unpacked{}, err
	}
	return Unpacked{SHA256: l.SHA256, Members: u.out}, nil
}

type unpacker struct {
	l       Located
	sink    Sink
	lim     limits
	folders []string
	taken   map[string]string // base name to the archive's own name
	strays  []string          // members' names in other folders
	out     []UnpackedMember
	buf     []byte
}

func (u *unpacker) fault(member, problem string, err error) error {
	return &ArchiveError{File: u.l.File, Member: member, Problem: problem, Err: err}
}

// content finds the format and takes the members out of it.
func (u *unpacker) content(ctx context.Context, packed *stream) error {
	in := bufio.NewReaderSize(packed, 64<<10)
	head, err := in.Peek(512)
	if err != nil && err != io.EOF {
		return err
	}
	switch kind := sniff(head); kind {
	case "gzip", "zstd":
		return u.compressed(ctx, packed, in, kind)
	case "tar":
		return u.tar(in)
	case "elf":
		return u.bare(in)
	}
	if len(head) == 0 {
		return u.fault("", "the file is empty", nil)
	}
	if len(u.l.Artifact.Members) == 1 && len(head) > 0 {
		// A program under another format than ELF is found out by elf.Read.
		return u.bare(in)
	}
	return u.fault("", fmt.Sprintf("neither gzip, zstd, tar nor a program: it begins with %q", head[:min(len(head), 16)]), nil)
}

// sniff tells formats by their magic numbers: RFC 1952, RFC 8878, pax(1) and elf(5).
// A tar without ustar's mark, as of Unix V7, is known by its header's checksum.
func sniff(head []byte) string {
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return "gzip"
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "zstd"
	case bytes.HasPrefix(head, []byte("\x7fELF")):
		return "elf"
	case len(head) < 512:
		return ""
	case bytes.Equal(head[257:262], []byte("ustar")):
		return "tar"
	}
	var sum, wrote int
	for i, c := range head {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int(c)
	}
	if n, err := fmt.Sscanf(string(bytes.Trim(head[148:156], " \x00")), "%o", &wrote); n == 1 && err == nil && sum == wrote {
		return "tar"
	}
	return ""
}

// compressed unpacks the tar within a gzip or zstd file, or a compressed program.
func (u *unpacker) compressed(ctx context.Context, packed *stream, in *bufio.Reader, kind string) error {
	ctx, cancel := context.WithCancel(ctx)
	var src io.Reader
	if kind == "gzip" {
		src = &gunzip{in: in}
	} else {
		dec, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(u.lim.zstdWindow))
		if err != nil {
			cancel()
			return u.fault("", "zstd", err)
		}
		defer dec.Close()
		src = &unzstd{dec}
	}
	unpacked := newStream(ctx, &bounded{r: src, packed: packed, lim: u.lim}, unpackedBuffers, unpackedSize, nil)
	// The goroutine reads packed; it must be gone before anyone else does. cancel goes first.
	defer unpacked.wait()
	defer cancel()
	inner := bufio.NewReaderSize(unpacked, 512)
	head, err := inner.Peek(512)
	if err != nil && err != io.EOF {
		return u.explain("", err)
	}
	switch sniff(head) {
	case "tar":
		return u.tar(inner)
	case "elf":
		if len(u.l.Artifact.Members) == 1 {
			return u.bare(inner)
		}
	}
	return u.fault("", "there is no tar in this "+kind+" file", nil)
}

// Faults of compressed data, each with its own words.
var (
	errTrailing  = errors.New("there is garbage after the end of the compressed data")
	errTruncated = errors.New("the compressed data is truncated")
	errBroken    = errors.New("the compressed data is damaged")
)

// gunzip reads concatenated gzip members, as RFC 1952 allows, up to the file's end.
type gunzip struct {
	in *bufio.Reader
	z  *gzip.Reader
}

func (g *gunzip) Read(p []byte) (int, error) {
	for {
		if g.z == nil {
			z, err := gzip.NewReader(g.in)
			if err != nil {
				return 0, gzipFault(err)
			}
			g.z = z
			g.z.Multistream(false)
		}
		n, err := g.z.Read(p)
		if err == nil || n > 0 {
			return n, nil // an error comes again
		}
		if err != io.EOF {
			return 0, gzipFault(err)
		}
		next, err := g.in.Peek(2)
		if len(next) == 0 && err == io.EOF {
			return 0, io.EOF
		}
		if err != nil && err != io.EOF {
			return 0, err
		}
		if !bytes.Equal(next, []byte{0x1f, 0x8b}) {
			return 0, errTrailing
		}
		if err := g.z.Reset(g.in); err != nil {
			return 0, gzipFault(err)
		}
		g.z.Multistream(false)
	}
}

func gzipFault(err error) error {
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errTruncated
	case isOutside(err):
		return err
	}
	return fmt.Errorf("%w: %w", errBroken, err)
}

type unzstd struct{ dec *zstd.Decoder }

func (d *unzstd) Read(p []byte) (int, error) {
	n, err := d.dec.Read(p)
	switch {
	case err == nil || err == io.EOF || isOutside(err):
	case errors.Is(err, io.ErrUnexpectedEOF):
		err = errTruncated
	case errors.Is(err, zstd.ErrMagicMismatch):
		err = errTrailing
	case errors.Is(err, zstd.ErrWindowSizeExceeded):
		err = errors.New("its zstd window is over 8 MiB: compress it with a level up to 19 and without --long")
	default:
		err = fmt.Errorf("%w: %w", errBroken, err)
	}
	return n, err
}

func isOutside(err error) bool {
	_, is := errors.AsType[outside](err)
	return is || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// bounded ends what unpacks to far more than it should.
type bounded struct {
	r      io.Reader
	packed *stream
	lim    limits
	n      int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.r.Read(p)
	b.n += int64(n)
	if b.n > b.lim.unpacked {
		return 0, fmt.Errorf("it unpacks to more than %d MiB, the limit", b.lim.unpacked>>20)
	}
	if b.n > b.lim.ratioFrom && b.n/b.lim.ratio > b.packed.count {
		return 0, fmt.Errorf("it unpacks to more than %d times its size, the limit", b.lim.ratio)
	}
	return n, err
}

// explain words an error of reading the archive's content.
func (u *unpacker) explain(member string, err error) error {
	if isOutside(err) {
		return err
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		return u.fault(member, "the archive ends in the middle", nil)
	}
	if errors.Is(err, tar.ErrHeader) {
		return u.fault("", "a tar header is malformed"+after(member), nil)
	}
	return u.fault("", err.Error()+after(member), nil)
}

func after(member string) string {
	if member == "" {
		return ""
	}
	return fmt.Sprintf(" (met at or after member %q)", member)
}

// bare takes a file that is the program itself.
func (u *unpacker) bare(r io.Reader) error {
	if len(u.l.Artifact.Members) != 1 {
		return u.fault("", "it is a single program, not an archive", nil)
	}
	m := u.l.Artifact.Members[0]
	return u.write(m, programMode, m.Name, r)
}

// write gives one member to the sink.
func (u *unpacker) write(m desired.Member, mode fs.FileMode, name string, r io.Reader) error {
	w, err := u.sink.Create(m, mode)
	if err != nil {
		return outside{err}
	}
	var h hash.Hash
	summed, _ := w.(Summed)
	if summed == nil {
		h = sha256.New()
	}
	if u.buf == nil {
		u.buf = make([]byte, unpackedSize)
	}
	var size int64
	for {
		n, err := r.Read(u.buf)
		if n > 0 {
			if h != nil {
				h.Write(u.buf[:n])
			}
			if _, err := w.Write(u.buf[:n]); err != nil {
				return outside{err}
			}
			size += int64(n)
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return u.explain(name, err)
		}
	}
	if err := w.Close(); err != nil {
		return outside{err}
	}
	out := UnpackedMember{Member: m, Size: size}
	if summed != nil {
		out.SHA256 = summed.SHA256()
	} else {
		out.SHA256 = hex.EncodeToString(h.Sum(nil))
	}
	u.out = append(u.out, out)
	return nil
}
