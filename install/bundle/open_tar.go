package bundle

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

const blockSize = 512 // of a tar (pax(1))

// maxEntries ends the reading of what is no bundle but a trap; the largest have some
// hundred.
const maxEntries = 100_000

// tarEntry is a file in an archive.
type tarEntry struct {
	name string // clean
	// at is where its headers begin, data where its content does.
	at, data, size int64
	mode           int64
	folder         bool
	repaired       bool // its header is damaged and was read all the same
}

// end is where its last block ends; only of an entry within its archive.
func (e tarEntry) end() int64 { return e.data + (e.size+blockSize-1)/blockSize*blockSize }

// within says whether the entry's last block ends before a place in the archive. A size is
// whatever its header says, and may be too large to be added to anything.
func (e tarEntry) within(end int64) bool { return e.size <= end-e.data && e.end() <= end }

// tarStore is a layout in an uncompressed tar. Its files are read in place, several at
// once.
type tarStore struct {
	r       io.ReaderAt
	size    int64
	closer  io.Closer
	entries []tarEntry
	byName  map[string]int
	// last is where the archive's end mark begins.
	last   int64
	faults []Fault
}

// openTar reads the headers of an archive. What is wrong with them is kept as faults; an
// error is a *NotBundleError or one of reading.
func openTar(bundle string, r io.ReaderAt, size int64) (*tarStore, error) {
	t := &tarStore{r: r, size: size, byName: map[string]int{}}
	head := make([]byte, min(size, blockSize))
	if _, err := io.ReadFull(io.NewSectionReader(r, 0, size), head); err != nil {
		return nil, fmt.Errorf("read %s: %w", bundle, err)
	}
	if problem := noTar(head); problem != "" && (len(head) < blockSize || cString(head[:100]) != "oci-layout") {
		return nil, &NotBundleError{Name: bundle, Problem: problem}
	}
	if err := t.scan(); err != nil {
		return nil, fmt.Errorf("read %s: %w", bundle, err)
	}
	if _, ok := t.byName["index.json"]; !ok && len(t.faults) == 0 {
		return nil, &NotBundleError{Name: bundle, Problem: "it is a tar archive without index.json: no OCI image layout"}
	}
	return t, nil
}

func (t *tarStore) fault(part, format string, args ...any) {
	t.faults = append(t.faults, Fault{part, fmt.Errorf(format, args...)})
}

// scan reads header after header; content is passed over by seeking.
func (t *tarStore) scan() error {
	for at := int64(0); ; {
		if len(t.entries) >= maxEntries {
			t.fault("the archive", "it has more than %d members, the limit", maxEntries)
			return nil
		}
		e, err := t.next(at)
		if err == io.EOF {
			t.last = at
			return t.ended()
		}
		if err != nil {
			if t.faults == nil || !errors.Is(err, errStop) {
				return err
			}
			t.last = t.size
			return nil
		}
		if !e.within(t.size) {
			t.fault("the archive", "it is cut short: it ends within %s, after %d bytes", e.name, t.size)
			t.last = t.size
			return nil
		}
		t.add(e)
		at = e.end()
	}
}

// errStop ends a scan whose fault is told.
var errStop = errors.New("nothing more can be read")

// next reads the headers of one file at an offset; io.EOF is the archive's end.
func (t *tarStore) next(at int64) (tarEntry, error) {
	section := io.NewSectionReader(t.r, at, t.size-at)
	h, err := tar.NewReader(section).Next()
	if err != nil && h != nil && errors.Is(err, tar.ErrInsecurePath) {
		err = nil // refused below, in our own words
	}
	switch {
	case err == io.EOF:
		return tarEntry{}, io.EOF
	case errors.Is(err, io.ErrUnexpectedEOF):
		t.fault("the archive", "it is cut short: it ends within a header, after %d bytes", t.size)
		return tarEntry{}, errStop
	case errors.Is(err, tar.ErrHeader):
		return t.repair(at)
	case err != nil:
		return tarEntry{}, err
	}
	data, err := section.Seek(0, io.SeekCurrent)
	if err != nil {
		return tarEntry{}, err
	}
	e := tarEntry{name: path.Clean(h.Name), at: at, data: at + data, size: h.Size, mode: h.Mode, folder: h.Typeflag == tar.TypeDir}
	switch h.Typeflag {
	case tar.TypeDir, tar.TypeLink, tar.TypeSymlink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		e.size = 0 // they have no content, whatever is said (pax(1))
	}
	if problem := unfit(h); problem != "" {
		t.fault(partHeader(h.Name), "%s", problem)
		e.name = ""
	}
	return e, nil
}

// partHeader is what messages call a header.
func partHeader(name string) string { return "the archive's header of " + name }

// unfit says what is wrong with a member of the archive.
func unfit(h *tar.Header) string {
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return "it is a sparse file"
		}
	}
	switch {
	case h.Typeflag != tar.TypeReg && h.Typeflag != tar.TypeDir:
		return fmt.Sprintf("it is neither a file nor a folder, but of type %q", h.Typeflag)
	case !fs.ValidPath(path.Clean(h.Name)):
		return "its name leads out of the archive"
	}
	return ""
}

// repair reads a damaged header as far as it goes, so that what follows is looked at, too.
func (t *tarStore) repair(at int64) (tarEntry, error) {
	raw := make([]byte, blockSize)
	if _, err := t.r.ReadAt(raw, at); err != nil {
		return tarEntry{}, err
	}
	if t.last = at; allZero(raw) {
		t.fault("the archive's end", "it is damaged at byte %d", at+blockSize)
		return tarEntry{}, errStop
	}
	name := cString(raw[:100])
	size, err := strconv.ParseInt(strings.Trim(string(raw[124:136]), " \x00"), 8, 64)
	e := tarEntry{name: path.Clean(name), at: at, data: at + blockSize, size: size, repaired: true}
	if err == nil && size >= 0 && e.within(t.size-2*blockSize) && fs.ValidPath(e.name) {
		following := make([]byte, blockSize)
		if _, err := t.r.ReadAt(following, e.end()); err != nil {
			return tarEntry{}, err
		}
		if headerSum(following) || allZero(following) {
			t.fault(partHeader(name), "its checksum is wrong")
			return e, nil
		}
	}
	if len(t.entries) > 0 && zeroButOne(raw) {
		t.fault("the archive's end", "it is damaged at byte %d", at)
		return tarEntry{}, errStop
	}
	t.fault(partHeader(strconv.Quote(name)), "it is damaged, and nothing after byte %d can be found", at)
	return tarEntry{}, errStop
}

// add keeps an entry.
func (t *tarStore) add(e tarEntry) {
	if !e.folder && e.name != "" {
		if _, twice := t.byName[e.name]; twice {
			t.fault(partHeader(e.name), "it is there twice")
		} else {
			t.byName[e.name] = len(t.entries)
		}
	}
	t.entries = append(t.entries, e)
}

// maxTail is the most that may follow an archive's last file: tar(1) pads to 20 blocks,
// some tapes' tools to 512 KiB.
const maxTail = 1 << 20

// ended looks at what follows the last file: two blocks of zeros, and what pads them.
func (t *tarStore) ended() error {
	rest := t.size - t.last
	switch {
	case rest < 2*blockSize:
		t.fault("the archive", "it is cut short: its end is missing after %d bytes", t.size)
		return nil
	case rest > maxTail:
		t.fault("the archive's end", "%d bytes follow it", rest-2*blockSize)
		return nil
	}
	tail := make([]byte, rest)
	if _, err := t.r.ReadAt(tail, t.last); err != nil {
		return err
	}
	if !allZero(tail) {
		t.fault("the archive's end", "there is something after it")
	}
	return nil
}

func (t *tarStore) open(name string) (io.ReadCloser, int64, error) {
	i, ok := t.byName[name]
	if !ok {
		return nil, 0, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	e := t.entries[i]
	return io.NopCloser(io.NewSectionReader(t.r, e.data, e.size)), e.size, nil
}

func (t *tarStore) Close() error {
	if t.closer == nil {
		return nil
	}
	return t.closer.Close()
}

// own says whether the archive is as nodeprep wrote it.
func (t *tarStore) own() bool {
	_, ok := t.byName[SumsName]
	return ok
}

// seams looks at all that is between the files' contents: fill must be zeros and headers,
// in an archive that nodeprep wrote, byte for byte its own.
func (t *tarStore) seams() ([]Fault, error) {
	var out []Fault
	for _, e := range t.entries {
		gap := make([]byte, e.end()-e.data-e.size)
		if _, err := t.r.ReadAt(gap, e.data+e.size); err != nil {
			return out, err
		}
		if !allZero(gap) {
			out = append(out, Fault{"the archive", fmt.Errorf("there is something in the gap after %s", e.name)})
		}
		if !t.own() || e.repaired || e.name == "" {
			continue
		}
		same, err := t.ownHeader(e)
		if err != nil {
			return out, err
		}
		if !same {
			out = append(out, Fault{partHeader(e.name), errors.New("it is not as nodeprep writes it")})
		}
	}
	return out, nil
}

func (t *tarStore) ownHeader(e tarEntry) (bool, error) {
	if e.folder || e.mode != 0o644 || e.data-e.at != blockSize {
		return false, nil
	}
	h, err := header(e.name, 0o644, e.size)
	if err != nil {
		return false, nil // too large for one of ours
	}
	var want bytes.Buffer
	if err := tar.NewWriter(&want).WriteHeader(h); err != nil {
		return false, nil // a name that is too long for one of ours
	}
	got := make([]byte, blockSize)
	if _, err := t.r.ReadAt(got, e.at); err != nil {
		return false, err
	}
	return bytes.Equal(got, want.Bytes()), nil
}

// headerSum says whether a block is a header by its checksum (pax(1)).
func headerSum(block []byte) bool {
	var sum int64
	for i, c := range block {
		if i >= 148 && i < 156 {
			c = ' '
		}
		sum += int64(c)
	}
	wrote, err := strconv.ParseInt(strings.Trim(string(block[148:156]), " \x00"), 8, 64)
	return err == nil && wrote == sum
}

func allZero(b []byte) bool { return len(bytes.TrimLeft(b, "\x00")) == 0 }

func zeroButOne(b []byte) bool { return bytes.Count(b, []byte{0}) == len(b)-1 }

func cString(b []byte) string {
	s, _, _ := bytes.Cut(b, []byte{0})
	return string(s)
}
