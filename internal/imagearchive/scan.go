package imagearchive

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"path"
	"slices"
	"strings"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxDocument is the largest JSON that is looked at; registries take manifests up to
	// 4 MiB (OCI distribution-spec 1.1, Pushing Manifests).
	maxDocument = 4 << 20
	// maxKept bounds what is kept of all documents.
	maxKept = 8 << 20
	// maxValues bounds what one of them holds: a value of two bytes can take a hundred when
	// it is read. Real ones have some hundred.
	maxValues = 50_000
	// maxWalked bounds the parts that all images together name, each as often as it is named.
	// A node's whole store has some thousand.
	maxWalked = 1 << 15
	// maxFiles bounds the names that are kept. An image has a few dozen layers.
	maxFiles = 1 << 16
	// maxDamaged bounds the damaged files that are named.
	maxDamaged = 20
)

const (
	dockerManifest = "manifest.json" // docker save's list of images
	blobFolder     = ocispec.ImageBlobsDir + "/sha256/"
)

// scan is what one pass over an archive leaves behind.
type scan struct {
	files     map[string]digest.Digest // by name; containerd's importer cleans names
	sizes     map[digest.Digest]sizes
	symlinks  map[string]string // name as it stands to target, as the importer has them
	hardlinks map[string]bool
	documents map[digest.Digest]*document // nil of one that is too large
	layout    *ocispec.ImageLayout
	docker    []dockerImage
	hasDocker bool

	kept    int  // bytes of documents
	walked  int  // parts that images name
	beyond  bool // not everything was kept
	damaged []string

	entries  int
	rootfs   int    // entries that a root file system has
	inFolder string // the folder in which a layout is that should be at the top

	sum    hash.Hash
	buffer []byte
	doc    bytes.Buffer
}

// sizes are those of a blob: as it is, and a guess of what it is unpacked.
type sizes struct {
	stored, unpacked int64
	packed           bool
}

// dockerImage is an entry of docker save's manifest.json.
type dockerImage struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// document is what is kept of an index, a manifest or an image's config.
type document struct {
	MediaType    string       `json:"mediaType,omitempty"`
	ArtifactType string       `json:"artifactType,omitempty"`
	Manifests    []descriptor `json:"manifests,omitempty"`
	Config       *descriptor  `json:"-"`
	Layers       []descriptor `json:"layers,omitempty"`

	OS           string `json:"os,omitempty"`
	OSVersion    string `json:"os.version,omitempty"`
	Architecture string `json:"architecture,omitempty"`
	Variant      string `json:"variant,omitempty"`
	RootFS       *struct {
		DiffIDs []digest.Digest `json:"diff_ids"`
	} `json:"rootfs,omitempty"`
}

type descriptor struct {
	MediaType   string            `json:"mediaType,omitempty"`
	Digest      digest.Digest     `json:"digest"`
	Size        int64             `json:"size"`
	Platform    *ocispec.Platform `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// referenceType marks the manifests that say something of another one (BuildKit,
// docs/attestations/attestation-storage.md).
const referenceType = "vnd.docker.reference.type"

func newScan() *scan {
	return &scan{
		files: map[string]digest.Digest{}, sizes: map[digest.Digest]sizes{},
		symlinks: map[string]string{}, hardlinks: map[string]bool{},
		documents: map[digest.Digest]*document{},
		sum:       sha256.New(), buffer: make([]byte, 128<<10),
	}
}

// read goes through the whole stream.
func (s *scan) read(ctx context.Context, r io.Reader) error {
	src := &source{ctx: ctx, r: r}
	z, err := Decompress(src)
	if err != nil {
		return s.streamFault(src, nil, err)
	}
	defer z.Close()
	c := &counter{r: z}
	if err := s.entriesOf(c); err != nil {
		return s.streamFault(src, c, err)
	}
	// tar's end comes before the stream's, where the checksum stands.
	if _, err := io.Copy(io.Discard, c); err != nil {
		return s.streamFault(src, c, err)
	}
	if len(s.damaged) > 0 {
		return fmt.Errorf("%w: %s", ErrDamaged, strings.Join(s.damaged, "; "))
	}
	return nil
}

func (s *scan) entriesOf(c *counter) error {
	tr := tar.NewReader(c)
	end := int64(0) // of the last entry, with its padding
	for {
		hdr, err := tr.Next()
		if errors.Is(err, io.EOF) {
			// Two blocks of zeros end an archive (POSIX.1-2024, pax, ustar Interchange
			// Format). Without them it was cut between two files, which is nothing that
			// the reader minds.
			if c.n < end+1024 {
				return io.ErrUnexpectedEOF
			}
			return nil
		}
		if err != nil {
			return err
		}
		s.entries++
		if err := s.entry(tr, hdr); err != nil {
			return err
		}
		if _, err := io.Copy(io.Discard, tr); err != nil {
			return err
		}
		end = (c.n + 511) &^ 511
	}
}

func (s *scan) entry(tr *tar.Reader, hdr *tar.Header) error {
	name := path.Clean(hdr.Name)
	s.hint(name)
	switch hdr.Typeflag {
	case tar.TypeSymlink:
		if s.room() {
			s.symlinks[hdr.Name] = path.Join(path.Dir(hdr.Name), hdr.Linkname)
		}
		return nil
	case tar.TypeLink:
		if s.room() {
			s.hardlinks[name] = true
		}
		return nil
	case tar.TypeReg:
	default:
		return nil
	}
	switch name {
	case ocispec.ImageLayoutFile:
		s.layout = &ocispec.ImageLayout{}
		return s.decode(name, tr, s.layout)
	case dockerManifest:
		s.hasDocker, s.docker = true, nil
		return s.decode(name, tr, &s.docker)
	}
	return s.file(name, hdr.Size, tr)
}

// decode reads JSON as the importer does, which takes no notice of what follows it.
func (s *scan) decode(name string, r io.Reader, into any) error {
	limit := &io.LimitedReader{R: r, N: maxKept}
	err := decodeFew(limit, into)
	switch {
	case err == nil, errors.Is(err, ErrTooMuch):
		return err
	case limit.N == 0:
		return fmt.Errorf("%w: %s is over %d MiB", ErrTooMuch, name, maxKept>>20)
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	if !errors.As(err, &syntax) && !errors.As(err, &kind) && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return err
	}
	if _, err := io.Copy(io.Discard, r); err != nil {
		return err
	}
	s.damage("%s is not what an archive of images has there: %v", name, err)
	return nil
}

// decodeFew decodes JSON of no more than maxValues.
func decodeFew(r io.Reader, into any) error {
	return json.NewDecoder(&fewValues{r: r, left: maxValues}).Decode(into)
}

// fewValues ends JSON that has too many values: no fewer than commas, and those in texts
// do not matter.
type fewValues struct {
	r    io.Reader
	left int
}

func (f *fewValues) Read(p []byte) (int, error) {
	n, err := f.r.Read(p)
	if f.left -= bytes.Count(p[:n], []byte{','}); f.left < 0 {
		return 0, fmt.Errorf("%w: a list has over %d values", ErrTooMuch, maxValues)
	}
	return n, err
}

func (s *scan) damage(format string, args ...any) {
	switch {
	case len(s.damaged) < maxDamaged:
		s.damaged = append(s.damaged, fmt.Sprintf(format, args...))
	case len(s.damaged) == maxDamaged:
		s.damaged = append(s.damaged, "and more")
	}
}

// room says whether another name may be kept.
func (s *scan) room() bool {
	if len(s.files)+len(s.symlinks)+len(s.hardlinks) < maxFiles {
		return true
	}
	s.beyond = true
	return false
}

// file hashes a file and looks at what it seems to be.
func (s *scan) file(name string, size int64, r io.Reader) error {
	s.sum.Reset()
	s.doc.Reset()
	var (
		read int64
		tail [8]byte
		head []byte
		json bool
	)
	for read < size {
		b := s.buffer[:min(int64(len(s.buffer)), size-read)]
		n, err := io.ReadFull(r, b)
		b = b[:n]
		s.sum.Write(b)
		if read == 0 {
			head = slices.Clone(b[:min(n, zstd.HeaderMaxSize)])
			trimmed := bytes.TrimLeft(head, " \t\r\n")
			json = len(trimmed) > 0 && trimmed[0] == '{' && size <= maxDocument
		}
		if json {
			s.doc.Write(b)
		}
		copy(tail[:], tail[min(n, len(tail)):])
		copy(tail[max(0, len(tail)-n):], b[max(0, n-len(tail)):])
		read += int64(n)
		if err != nil {
			return err
		}
	}
	d := digest.NewDigest(digest.SHA256, s.sum)
	if hex, ok := strings.CutPrefix(name, blobFolder); ok && hex != d.Encoded() {
		s.damage("%s has the digest %s", name, d)
	}
	if !s.room() {
		return nil
	}
	s.files[name] = d
	s.sizes[d] = guess(size, head, tail)
	if json {
		s.keep(d)
	}
	return nil
}

// keep remembers a document.
func (s *scan) keep(d digest.Digest) {
	if _, again := s.documents[d]; again {
		return
	}
	if bytes.Count(s.doc.Bytes(), []byte{','}) > maxValues {
		s.documents[d] = nil // it may be no part of any image
		return
	}
	var doc document
	if json.Unmarshal(s.doc.Bytes(), &doc) != nil {
		return
	}
	// In an image's own config the key has another meaning, and need not be kept.
	var manifest struct {
		Config descriptor `json:"config"`
	}
	if doc.RootFS == nil && json.Unmarshal(s.doc.Bytes(), &manifest) == nil && manifest.Config.Digest != "" {
		doc.Config = &manifest.Config
		doc.Config.Annotations = nil
	}
	if doc.Manifests == nil && doc.Config == nil && doc.RootFS == nil {
		return
	}
	for i := range doc.Manifests {
		a := doc.Manifests[i].Annotations
		for key := range a {
			if key != imageNameAnnotation && key != ocispec.AnnotationRefName && key != referenceType {
				delete(a, key)
			}
		}
	}
	for i := range doc.Layers {
		doc.Layers[i].Annotations, doc.Layers[i].Platform = nil, nil
	}
	b, err := json.Marshal(doc)
	if err != nil || s.kept+len(b) > maxKept {
		s.beyond = true
		return
	}
	s.kept += len(b)
	s.documents[d] = &doc
}

// guess estimates what a blob takes unpacked, from what its packer left in it: gzip the size
// modulo 4 GiB at the end (RFC 1952, 2.3.1), zstd maybe the size at the beginning. Either
// may be that of a part alone, where there are several; then a usual ratio has to do.
func guess(size int64, head []byte, tail [8]byte) sizes {
	const ratio = 3
	out := sizes{stored: size, unpacked: size}
	switch {
	case bytes.HasPrefix(head, gzipMagic):
		out.packed = true
		n := int64(binary.LittleEndian.Uint32(tail[4:]))
		for size > 1<<32 && n < size {
			n += 1 << 32
		}
		out.unpacked = n
	case bytes.HasPrefix(head, zstdMagic):
		out.packed = true
		var h zstd.Header
		out.unpacked = 0
		if h.Decode(head) == nil && h.HasFCS && h.FrameContentSize < 1<<62 {
			out.unpacked = int64(h.FrameContentSize)
		}
	}
	// An empty tar is 32 bytes packed, but for few others does packing add anything.
	if out.packed && out.unpacked < size-512 {
		out.unpacked = ratio * size
	}
	return out
}

// streamFault puts an error of reading into words.
func (s *scan) streamFault(src *source, c *counter, err error) error {
	short := errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	switch {
	case src.err != nil:
		return fmt.Errorf("read the archive: %w", src.err)
	case errors.Is(err, ErrNoArchive), errors.Is(err, ErrTooMuch):
		return err
	case c != nil && s.entries == 0 && (short || errors.Is(err, tar.ErrHeader)):
		if what := whatItIs(c.head); what != "" {
			return fmt.Errorf("%w but %s", ErrNoArchive, what)
		}
		if !short {
			return fmt.Errorf("%w: not even a tar", ErrNoArchive)
		}
	}
	switch {
	case short:
		return fmt.Errorf("%w: it ends after %d bytes", ErrCut, src.n)
	case errors.Is(err, gzip.ErrChecksum), errors.Is(err, zstd.ErrCRCMismatch):
		return fmt.Errorf("%w: its checksum does not fit", ErrDamaged)
	}
	return fmt.Errorf("%w near byte %d: %w", ErrDamaged, src.n, err)
}

// whatItIs names, by how it begins, a file that is taken for an archive by mistake.
func whatItIs(head []byte) string {
	// Text may begin with white space and be of any case.
	text := strings.ToLower(strings.TrimSpace(string(head)))
	for _, known := range []struct{ prefix, what string }{
		{"PK\x03\x04", "a zip file"},
		{"\xfd7zXZ\x00", "packed by xz (unpack it: only gzip and zstd are known)"},
		{"BZh", "packed by bzip2 (unpack it: only gzip and zstd are known)"},
		{"\x04\x22\x4d\x18", "packed by lz4 (unpack it: only gzip and zstd are known)"},
		{"\x1f\x8b", "packed twice"},
		{"\x28\xb5\x2f\xfd", "packed twice"},
		{"\x7fELF", "a program"},
		{"hsqs", "a squashfs image"},
		{"version https://git-lfs", "a pointer of Git LFS (fetch the file itself: git lfs pull)"},
		{"<!doctype html", "an HTML page (a login or an error, in place of the file?)"},
		{"<html", "an HTML page (a login or an error, in place of the file?)"},
		{"<?xml", "an XML document (an error, in place of the file?)"},
		{"{", "a JSON document (an error, in place of the file?)"},
	} {
		if bytes.HasPrefix(head, []byte(known.prefix)) || strings.HasPrefix(text, known.prefix) {
			return known.what
		}
	}
	return ""
}

// hint takes note of what an archive might be that is none of images.
func (s *scan) hint(name string) {
	switch top, below, _ := strings.Cut(name, "/"); {
	case slices.Contains([]string{"bin", "etc", "usr", "var", "lib", "sbin"}, top):
		s.rootfs++
	case below == ocispec.ImageLayoutFile, below == ocispec.ImageIndexFile, below == dockerManifest:
		s.inFolder = top
	}
}

// images says what the parts are together. The context is that of looking at all of them.
func (s *scan) images(ctx context.Context) ([]Image, error) {
	index, hasIndex := s.files[ocispec.ImageIndexFile]
	switch {
	case s.layout != nil && s.layout.Version != ocispec.ImageLayoutVersion:
		return nil, fmt.Errorf("%w that containerd knows: its image layout has version %q, not %s", ErrNoArchive, s.layout.Version, ocispec.ImageLayoutVersion)
	case s.layout != nil && hasIndex:
		return s.ociImages(ctx, index)
	case s.beyond && (s.layout != nil || s.hasDocker):
		return nil, fmt.Errorf("%w: it has %d files", ErrTooMuch, s.entries)
	case s.layout != nil:
		return nil, fmt.Errorf("%w but an image layout without its %s", ErrNoArchive, ocispec.ImageIndexFile)
	case s.hasDocker:
		return s.dockerImages()
	case hasIndex:
		return nil, fmt.Errorf("%w but an image layout without its file %s", ErrNoArchive, ocispec.ImageLayoutFile)
	case s.entries == 0:
		return nil, fmt.Errorf("%w but a tar with nothing in it", ErrNoArchive)
	case s.inFolder != "" && s.rootfs == 0:
		return nil, fmt.Errorf("%w at its top: it is in the folder %s (tar what is in there: tar -C %s -cf FILE .)", ErrNoArchive, s.inFolder, s.inFolder)
	case s.rootfs > 0:
		return nil, fmt.Errorf("%w but a tar of a root file system (docker export makes such; docker save is wanted)", ErrNoArchive)
	}
	return nil, fmt.Errorf("%w: a tar with neither %s nor %s", ErrNoArchive, dockerManifest, ocispec.ImageIndexFile)
}
