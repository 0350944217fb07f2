package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/install/release"
)

// Fault is something wrong in a bundle, and where.
type Fault struct {
	Part string // "containerd 2.1.9 linux/amd64", "index.json"
	Err  error
}

// Error is "PART: problem".
func (f Fault) Error() string { return printed(f.Part) + ": " + printedLines(f.Err) }

// MarshalJSON is {"part": ..., "problem": ...}.
func (f Fault) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"part": f.Part, "problem": f.Err.Error()})
}

// files are those of an OCI image layout, in an archive or a folder.
type files interface {
	// open opens a file and tells its size; the error is fs.ErrNotExist if it is not there.
	open(name string) (io.ReadCloser, int64, error)
	Close() error
}

// layoutStore is an OCI image layout (image-spec, image-layout.md).
type layoutStore struct {
	bundle string // its name
	files  files
	others bool // index.json lists more than the bundle
}

func blobPath(d ocispec.Descriptor) string {
	return "blobs/" + d.Digest.Algorithm().String() + "/" + d.Digest.Encoded()
}

// Blob opens a blob.
func (l *layoutStore) Blob(_ context.Context, d ocispec.Descriptor) (io.ReadCloser, error) {
	r, size, err := l.files.open(blobPath(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &contentError{fmt.Sprintf("%s is not there", d.Digest)}
	}
	if err != nil {
		return nil, err
	}
	if size != d.Size {
		r.Close()
		return nil, &contentError{fmt.Sprintf("%s has %d bytes, want %d", d.Digest, size, d.Size)}
	}
	return r, nil
}

func (l *layoutStore) Close() error { return l.files.Close() }

// whole reads one of the layout's own files.
func (l *layoutStore) whole(ctx context.Context, name string) ([]byte, error) {
	r, size, err := l.files.open(name)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size > maxDocument {
		return nil, fmt.Errorf("it has %d bytes, and the limit is %d", size, int64(maxDocument))
	}
	return io.ReadAll(&sized{ctx: ctx, r: r, name: name, left: size, size: size})
}

// check holds the files that no digest in the layout is of against nodeprep.sums, where
// that is, and looks into oci-layout. All faults are told.
func (l *layoutStore) check(ctx context.Context) []Fault {
	var out []Fault
	fault := func(part string, err error) { out = append(out, Fault{part, err}) }
	names := []string{ocispec.ImageLayoutFile, ocispec.ImageIndexFile}
	sums, err := l.whole(ctx, SumsName)
	lines := strings.SplitAfter(string(sums), "\n")
	switch {
	case errors.Is(err, fs.ErrNotExist):
		lines = nil // another tool wrote this layout
	case err != nil:
		fault(SumsName, err)
		lines = nil
	case !wellFormed(lines, names):
		fault(SumsName, errors.New("it is not what nodeprep writes"))
	}
	for i, name := range names {
		data, err := l.whole(ctx, name)
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				err = errors.New("it is not there")
			}
			fault(name, err)
			continue
		}
		if name == ocispec.ImageLayoutFile {
			var version ocispec.ImageLayout
			if err := decode(data, false, &version); err != nil {
				fault(name, err)
			} else if version.Version != ocispec.ImageLayoutVersion {
				fault(name, fmt.Errorf("it is a layout of version %q, want %s", version.Version, ocispec.ImageLayoutVersion))
			}
		}
		if i >= len(lines) {
			continue
		}
		want, rest, _ := strings.Cut(lines[i], " ")
		sum := sha256.Sum256(data)
		if got := hex.EncodeToString(sum[:]); got != want && rest == " "+name+"\n" {
			fault(name, &release.DigestError{File: name, Got: got, Want: want, From: SumsName})
		}
	}
	return out
}

// wellFormed says whether lines are those of sha256sum(1) for names.
func wellFormed(lines, names []string) bool {
	if len(lines) != len(names)+1 || lines[len(names)] != "" {
		return false
	}
	for i, name := range names {
		sum, ok := strings.CutSuffix(lines[i], "  "+name+"\n")
		if b, err := hex.DecodeString(sum); !ok || err != nil || len(b) != sha256.Size || strings.ToLower(sum) != sum {
			return false
		}
	}
	return true
}

// Index finds the bundle's image index in index.json. Tools that copy list other things
// there, too: oras each manifest, cosign its signatures.
func (l *layoutStore) Index(ctx context.Context) (ocispec.Descriptor, error) {
	var d ocispec.Descriptor
	data, err := l.whole(ctx, ocispec.ImageIndexFile)
	if errors.Is(err, fs.ErrNotExist) {
		return d, &NotBundleError{Name: l.bundle, Problem: "it has no index.json: it is no OCI image layout"}
	}
	var list ocispec.Index
	if err == nil {
		err = decode(data, false, &list)
	}
	if err != nil {
		if unread(err) {
			return d, err
		}
		return d, &DamagedError{Bundle: l.bundle, Part: ocispec.ImageIndexFile, Err: err}
	}
	all := list.Manifests
	l.others = len(all) > 1
	some := slices.DeleteFunc(slices.Clone(all), func(d ocispec.Descriptor) bool { return d.MediaType != ocispec.MediaTypeImageIndex })
	if len(some) == 0 {
		some = all
	}
	if len(some) > 1 {
		named := slices.DeleteFunc(slices.Clone(some), func(d ocispec.Descriptor) bool { return d.Annotations[ocispec.AnnotationRefName] != refName })
		if len(named) > 0 {
			some = named
		}
	}
	if len(some) != 1 {
		return d, &NotBundleError{Name: l.bundle, Problem: fmt.Sprintf("its index.json lists %d things, want one image index", len(some))}
	}
	return some[0], nil
}

// dirStore is a layout in a folder. Nothing out of it is read, whatever links say.
type dirStore struct{ root *os.Root }

func (d dirStore) open(name string) (io.ReadCloser, int64, error) {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

func (d dirStore) Close() error { return d.root.Close() }

// noTar says what a file is that begins so, "" for a tar.
func noTar(head []byte) string {
	switch {
	case len(head) == 0:
		return "it is empty"
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		return "it is packed by gzip; unpack it with gunzip first"
	case bytes.HasPrefix(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return "it is packed by zstd; unpack it with unzstd first"
	case bytes.HasPrefix(head, []byte{0xfd, '7', 'z', 'X', 'Z', 0}):
		return "it is packed by xz; unpack it with unxz first"
	case len(head) < 512:
		return fmt.Sprintf("it is no tar archive: it has %d bytes", len(head))
	case !bytes.Equal(head[257:262], []byte("ustar")) && !headerSum(head):
		return fmt.Sprintf("it is no tar archive: it begins with %q", head[:16])
	}
	return ""
}
