package bundle

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/install/release"
)

// maxDocument is the most that index, manifests and configs may have, in bytes: what
// registries take of a manifest, too (distribution-spec, "Pushing Manifests").
const maxDocument = 4 << 20

// maxValues is the most that one of them may hold: a value of two bytes can take two hundred
// when it is read. Real ones have some hundred.
const maxValues = 50_000

// partIndex is what messages call the image index.
const partIndex = "image index"

// readError is a fault of reading, not of what was read.
type readError struct{ err error }

func (e *readError) Error() string { return e.err.Error() }
func (e *readError) Unwrap() error { return e.err }

// contentError is a part that is not as it should be.
type contentError struct{ problem string }

func (e *contentError) Error() string { return e.problem }

// acceptable says what is wrong with a descriptor.
func acceptable(d ocispec.Descriptor) error {
	if err := d.Digest.Validate(); err != nil || d.Digest.Algorithm() != digest.SHA256 {
		return fmt.Errorf("%q is no sha256 digest", d.Digest)
	}
	if d.Size < 0 {
		return fmt.Errorf("%s has a size of %d bytes", d.Digest, d.Size)
	}
	return nil
}

// blob opens a blob whose size is verified while it is read; its digest is the reader's
// business. told, which may be nil, is told of bytes as they are read.
func (b *Bundle) blob(ctx context.Context, d ocispec.Descriptor, told func(n int)) (io.ReadCloser, error) {
	if err := acceptable(d); err != nil {
		return nil, err
	}
	r, err := b.store.Blob(ctx, d)
	if err != nil {
		if _, known := errors.AsType[*contentError](err); !known {
			err = &readError{err}
		}
		return nil, err
	}
	return &sized{ctx: ctx, r: r, name: string(d.Digest), left: d.Size, size: d.Size, told: told}, nil
}

// sized reads exactly as much as a blob has, as long as its context lives.
type sized struct {
	ctx        context.Context
	r          io.ReadCloser
	name       string
	left, size int64
	told       func(n int) // may be nil
}

func (s *sized) Read(p []byte) (int, error) {
	if s.ctx.Err() != nil {
		return 0, context.Cause(s.ctx)
	}
	n, err := s.r.Read(p)
	if s.told != nil {
		s.told(n)
	}
	if s.left -= int64(n); s.left < 0 {
		return 0, &contentError{fmt.Sprintf("%s has more than its %d bytes", s.name, s.size)}
	}
	switch {
	case err == nil:
	case err == io.EOF && s.left > 0:
		err = &contentError{fmt.Sprintf("%s ends after %d of its %d bytes", s.name, s.size-s.left, s.size)}
	case err != io.EOF && s.ctx.Err() != nil:
		err = context.Cause(s.ctx)
	case err != io.EOF:
		err = &readError{fmt.Errorf("read %s: %w", s.name, err)}
	}
	return n, err
}

func (s *sized) Close() error { return s.r.Close() }

// small reads a document whole and verifies it.
func (b *Bundle) small(ctx context.Context, part string, d ocispec.Descriptor) ([]byte, error) {
	data, err := b.document(ctx, d)
	if err != nil {
		return nil, b.damaged(part, err)
	}
	return data, nil
}

func (b *Bundle) document(ctx context.Context, d ocispec.Descriptor) ([]byte, error) {
	if d.Size > maxDocument {
		return nil, fmt.Errorf("%s has %d bytes, and the limit is %d", d.Digest, d.Size, int64(maxDocument))
	}
	r, err := b.blob(ctx, d, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		return nil, err
	}
	if sum := sha256.Sum256(data); hex.EncodeToString(sum[:]) != d.Digest.Encoded() {
		return nil, &release.DigestError{File: "its JSON", Got: hex.EncodeToString(sum[:]), Want: d.Digest.Encoded(), From: "what refers to it"}
	}
	return data, nil
}

// decode reads one JSON value; strictly, a field that v does not have is a fault.
func decode(data []byte, strict bool, v any) error {
	// No fewer than there are, and those in texts do not matter.
	if n := bytes.Count(data, []byte{','}); n > maxValues {
		return fmt.Errorf("it has some %d values, and the limit is %d", n, maxValues)
	}
	d := json.NewDecoder(bytes.NewReader(data))
	if strict {
		d.DisallowUnknownFields()
	}
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("it is no valid JSON for what it should be: %w", err)
	}
	if _, err := d.Token(); err != io.EOF {
		return errors.New("there is something after the end of its JSON")
	}
	return nil
}

// onlyText says which text in a JSON document a terminal would not just show. What a config
// says of a bundle is printed.
func onlyText(data []byte) error {
	d := json.NewDecoder(bytes.NewReader(data))
	for {
		token, err := d.Token()
		if err != nil {
			return nil // decode tells of it
		}
		if text, is := token.(string); is && !isPlain(text) {
			return fmt.Errorf("it has a text with characters that cannot be printed: %q", shortened(text))
		}
	}
}

func isPlain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

// shortened is a text of bearable length.
func shortened(s string) string {
	const most = 300
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "..."
	}
	return s
}

// printed is a message with what cannot be printed escaped: a bundle may name its parts as
// it likes.
func printed(s string) string {
	if isPlain(s) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(strings.Trim(strconv.QuoteRune(r), "'"))
		}
	}
	return b.String()
}

// printedLines is printed for a message of several lines.
func printedLines(err error) string {
	lines := strings.Split(err.Error(), "\n")
	for i, l := range lines {
		lines[i] = printed(l)
	}
	return strings.Join(lines, "\n")
}

// digested verifies what is read from it: instead of its end it gives a
// *release.DigestError where that is due.
type digested struct {
	io.Reader
	sum  hash.Hash
	name string
	want string // hex
	from string
}

func newDigested(r io.Reader, name, want, from string) *digested {
	return &digested{Reader: r, sum: sha256.New(), name: name, want: want, from: from}
}

func (d *digested) Read(p []byte) (int, error) {
	n, err := d.Reader.Read(p)
	d.sum.Write(p[:n])
	if err == io.EOF {
		if got := hex.EncodeToString(d.sum.Sum(nil)); got != d.want {
			return n, &release.DigestError{File: d.name, Got: got, Want: d.want, From: d.from}
		}
	}
	return n, err
}

// mediaType is a media type for people.
func mediaType(s string) string {
	if s == "" {
		return "something of no type"
	}
	return s
}
