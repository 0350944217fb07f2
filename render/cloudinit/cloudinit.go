package cloudinit

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

const (
	// Limit is the most that user-data may be, in bytes: EC2 takes 16 KiB, and what fits
	// there fits elsewhere.
	Limit = 16 << 10

	// Dir holds the profile and what it names on a node.
	Dir = "/etc/nodeprep"
	// ProfilePath is a profile that stands by itself: where nodeprep looks for one.
	ProfilePath = Dir + "/profile.yaml"
	// OverlayPath is one that extends a bundle's: nodeprep would not find that without the
	// bundle, and so must not find this one by itself.
	OverlayPath = Dir + "/overlay.yaml"
	// LockPath is where nodeprep looks for the lock of ProfilePath.
	LockPath = Dir + "/nodeprep.lock"
	// FetchPath is the script that gets nodeprep.
	FetchPath = Dir + "/fetch-nodeprep.sh"

	// UnitName is the unit that runs nodeprep, StartName the one that starts it at the
	// first boot, when systemd has not heard of the other.
	UnitName  = "nodeprep-cloud-init.service"
	UnitPath  = "/etc/systemd/system/" + UnitName
	StartName = "nodeprep-cloud-init-start.service"

	// ReportPath is run by cloud-init at the end of every boot, for its status.
	ReportPath = "/var/lib/cloud/scripts/per-boot/nodeprep"

	// BundleFile and ProgramFile are the names of the bundle and of nodeprep on a disk.
	BundleFile  = "nodeprep.bundle"
	ProgramFile = "nodeprep"
	// ByLabel is where udev has disks by their labels.
	ByLabel = "/dev/disk/by-label/"
)

// Wait is how long what comes from elsewhere is waited for, where nothing else is said: the
// program and the bundle, each.
const Wait = 15 * time.Minute

// File is a file on the node.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// Input is what user-data is made of.
type Input struct {
	// Files are the profile, which comes first, and what it names.
	Files []File
	// ProgramURL and ProgramSHA256 are where nodeprep comes from; without a URL from the
	// disk Device, without a digest it is on the image.
	ProgramURL, ProgramSHA256 string
	// BundleURL and BundleSHA256 are where the bundle comes from; or Device is the label of
	// a disk that has it, with or without a digest.
	BundleURL, BundleSHA256 string
	Device                  string
	// Wait is how long each of these is waited for; 0 is Wait.
	Wait time.Duration
	// Version of nodeprep, for the comment at the top.
	Version string
}

// SizeError is user-data that is too large.
type SizeError struct {
	Size, Limit int // bytes
	// Largest are the files in it, the largest first, and Bytes what each takes there.
	Largest []string
	Bytes   []int
}

// Error names the size and what takes most of it.
func (e *SizeError) Error() string {
	msg := fmt.Sprintf("user-data of %d bytes, packed already: cloud platforms take %d", e.Size, e.Limit)
	for i, p := range e.Largest {
		if i == 3 {
			break
		}
		sep := ", "
		if i == 0 {
			sep = "; of these "
		}
		msg += fmt.Sprintf("%s%d are %s", sep, e.Bytes[i], p)
	}
	return msg
}

// Digest is that of a node's input: sha256 in hex of what sha256sum(1) prints of the files
// in this order. So with a shell on the node: sha256sum FILE... | sha256sum.
func Digest(files []File) string {
	h := sha256.New()
	for _, f := range files {
		fmt.Fprintf(h, "%x  %s\n", sha256.Sum256(f.Data), f.Path)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// UserData is a document for cloud-init. Files stand in it as they are, so that people can
// read them; where it would be larger than Limit then, all that get smaller by it are packed.
// Equal inputs give equal bytes. It is *SizeError where that does not do.
func UserData(in Input) ([]byte, error) {
	in.Wait = cmp.Or(in.Wait, Wait)
	files := slices.Clone(in.Files)
	files = append(files, File{UnitPath, in.unit(), 0o644}, File{ReportPath, in.report(), 0o755})
	if in.ProgramSHA256 != "" {
		// Its address may be signed.
		files = append(files, File{FetchPath, in.fetch(), 0o600})
	}
	doc, _, err := in.document(files, false)
	if err != nil || len(doc) <= Limit {
		return doc, err
	}
	doc, sizes, err := in.document(files, true)
	if err != nil || len(doc) <= Limit {
		return doc, err
	}
	e := &SizeError{Size: len(doc), Limit: Limit}
	order := make([]int, len(files))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return sizes[b] - sizes[a] })
	for _, i := range order {
		e.Largest, e.Bytes = append(e.Largest, files[i].Path), append(e.Bytes, sizes[i])
	}
	return nil, e
}

// document is the user-data, and the size of each file in it.
func (in Input) document(files []File, packed bool) (doc []byte, sizes []int, err error) {
	var list []*yaml.Node
	for _, f := range files {
		n, size, err := entry(f, packed)
		if err != nil {
			return nil, nil, err
		}
		list, sizes = append(list, n), append(sizes, size)
	}
	boot := sequence(sequence(text("sh"), text("-c"), literal(in.start(files))))
	var b bytes.Buffer
	fmt.Fprintf(&b, "#cloud-config\n# made by nodeprep %s; sha256 of the profile and what it names: %s\n", in.Version, Digest(in.Files))
	if err := encode(&b, mapping("merge_how", beside(), "bootcmd", boot, "write_files", sequence(list...))); err != nil {
		return nil, nil, err
	}
	return b.Bytes(), sizes, nil
}

// beside is how cloud-init merges this with the parts before it: lists are joined. By itself it
// would replace theirs, without a word.
func beside() *yaml.Node {
	how := func(name string, settings ...string) *yaml.Node {
		list := sequence()
		list.Style = yaml.FlowStyle
		for _, s := range settings {
			list.Content = append(list.Content, text(s))
		}
		n := mapping("name", text(name), "settings", list)
		n.Style = yaml.FlowStyle
		return n
	}
	return sequence(how("list", "append"), how("dict", "no_replace", "recurse_list"))
}

// entry is a file as cloud-init's write_files has it.
func entry(f File, packed bool) (*yaml.Node, int, error) {
	mode := text(fmt.Sprintf("%04o", f.Mode.Perm()))
	mode.Style = yaml.SingleQuotedStyle // a number would be read as one of another base
	pairs := []any{"path", text(f.Path), "permissions", mode}
	plain := mapping(append(slices.Clone(pairs), "content", literal(string(f.Data)))...)
	if !readable(f.Data) {
		coded := text(base64.StdEncoding.EncodeToString(f.Data))
		plain = mapping(append(slices.Clone(pairs), "encoding", text("b64"), "content", coded)...)
	}
	size, err := length(plain)
	if err != nil || !packed {
		return plain, size, err
	}
	var b bytes.Buffer
	z, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, 0, err
	}
	if _, err := z.Write(f.Data); err != nil {
		return nil, 0, err
	}
	if err := z.Close(); err != nil {
		return nil, 0, err
	}
	small := mapping(append(pairs, "encoding", text("gz+b64"), "content", text(base64.StdEncoding.EncodeToString(b.Bytes())))...)
	packedSize, err := length(small)
	if err != nil || packedSize >= size {
		return plain, size, err
	}
	return small, packedSize, nil
}

// readable says whether every reader of YAML gives back these bytes from a text.
func readable(data []byte) bool {
	if !utf8.Valid(data) || len(data) > 0 && strings.ContainsRune(" \t\n", rune(data[0])) {
		return false
	}
	for _, r := range string(data) {
		// Other line ends, and what is not printable, are read in more ways than one.
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f || r == 0x85 || r == 0xfeff || r == 0x2028 || r == 0x2029 || r > 0xffff {
			return false
		}
	}
	return true
}

// length is what a value takes in the list of files.
func length(n *yaml.Node) (int, error) {
	var b bytes.Buffer
	err := encode(&b, mapping("write_files", sequence(n)))
	return b.Len() - len("write_files:\n"), err
}

func encode(b *bytes.Buffer, n *yaml.Node) error {
	enc := yaml.NewEncoder(b)
	enc.SetIndent(2)
	if err := enc.Encode(n); err != nil {
		return fmt.Errorf("write user-data: %w", err)
	}
	if err := enc.Close(); err != nil {
		return fmt.Errorf("write user-data: %w", err)
	}
	return nil
}

func mapping(pairs ...any) *yaml.Node {
	n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	for i := 0; i < len(pairs); i += 2 {
		n.Content = append(n.Content, text(pairs[i].(string)), pairs[i+1].(*yaml.Node))
	}
	return n
}

func sequence(items ...*yaml.Node) *yaml.Node {
	return &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq", Content: items}
}

func text(s string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!str", Value: s} }

// literal is a text of several lines, each as it is. The encoder quotes it where that cannot
// be.
func literal(s string) *yaml.Node {
	n := text(s)
	if strings.Contains(s, "\n") {
		n.Style = yaml.LiteralStyle
	}
	return n
}
