package release

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/internal/spelling"
)

// maxLock bounds what is read as a lock: real ones have a few kilobytes.
const maxLock = 1 << 20

var (
	archName    = regexp.MustCompile(`^[a-z0-9]+$`)
	fingerprint = regexp.MustCompile(`^[0-9A-F]{40}([0-9A-F]{24})?$`)
	// yamlFault is yaml's own error text.
	yamlFault = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)
)

// LoadLock is ReadLock of a file, which must be a regular one.
//
// Errors: those of opening and reading it, *fs.PathError.
func LoadLock(name string) (*Lock, diag.List, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxLock+1)) // what is too large is a fault with its place
	if err != nil {
		return nil, nil, err
	}
	lock, list := ReadLock(name, data)
	return lock, list, nil
}

// ReadLock reads a lock strictly: all faults at once, with their places. The Lock is nil
// where there are faults.
func ReadLock(name string, data []byte) (*Lock, diag.List) {
	r := lockReader{lock: &Lock{File: name}, first: map[lockKey]diag.Origin{}}
	if root := r.parse(data); root != nil {
		r.document(root)
	}
	r.list.Sort()
	if r.list.HasErrors() {
		return nil, r.list
	}
	return r.lock, r.list
}

type lockReader struct {
	lock  *Lock
	list  diag.List
	first map[lockKey]diag.Origin
}

func (r *lockReader) at(n *yaml.Node, path string) diag.Origin {
	return diag.Origin{Path: path, File: r.lock.File, Line: n.Line, Column: n.Column}
}

func (r *lockReader) fault(n *yaml.Node, path, hint, format string, args ...any) {
	r.list.Errorf(r.at(n, path), hint, format, args...)
}

// parse returns the document's content, nil where there is none to be read.
func (r *lockReader) parse(data []byte) *yaml.Node {
	top := diag.Origin{File: r.lock.File, Line: 1, Column: 1}
	if len(data) > maxLock {
		r.list.Errorf(top, "", "the lock has more than the %d bytes that are read", maxLock)
		return nil
	}
	for i, line := range bytes.Split(data, []byte("\n")) {
		if bytes.HasPrefix(line, []byte("<<<<<<< ")) {
			top.Line = i + 1
			r.list.Errorf(top, "take either side, then let nodeprep lock write it anew", "a merge was left unfinished here")
			return nil
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var doc, next yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		r.list.Errorf(top, "remove it, or let nodeprep lock write it", "the lock is empty")
		return nil
	case err != nil:
		r.syntax(err)
		return nil
	}
	switch err := dec.Decode(&next); {
	case errors.Is(err, io.EOF):
	case err != nil:
		r.syntax(err)
		return nil
	default:
		r.fault(&next, "", "", "a second YAML document begins here; a lock is a single one")
	}
	if len(doc.Content) != 1 {
		return nil
	}
	return doc.Content[0]
}

func (r *lockReader) syntax(err error) {
	at, message := diag.Origin{File: r.lock.File, Line: 1, Column: 1}, err.Error()
	if m := yamlFault.FindStringSubmatch(message); m != nil {
		if line, err := strconv.Atoi(m[1]); err == nil {
			at.Line = line
		}
		message = m[2]
	}
	r.list.Errorf(at, "", "not YAML: %s", message)
}

// describe is what a node is, for "found ...".
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a map"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias, which is not read in a lock"
	}
	if n.ShortTag() == "!!null" {
		return "nothing"
	}
	return strconv.Quote(n.Value)
}

// keys gives a map's values by key; unknown and repeated keys and missing ones are faults.
func (r *lockReader) keys(n *yaml.Node, path string, required, optional []string) map[string]*yaml.Node {
	if n.Kind != yaml.MappingNode {
		r.fault(n, path, "", "found %s, want a map with %s", describe(n), strings.Join(required, ", "))
		return nil
	}
	known := slices.Concat(required, optional)
	out := map[string]*yaml.Node{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		switch {
		case k.Kind != yaml.ScalarNode || !slices.Contains(known, k.Value):
			hint := "known here: " + strings.Join(known, ", ")
			if s := spelling.Nearest(k.Value, known); s != "" {
				hint = "did you mean " + s + "?"
			}
			r.fault(k, joinPath(path, k.Value), hint, "unknown key %s", describe(k))
		case out[k.Value] != nil:
			r.fault(k, joinPath(path, k.Value), "", "the key %s is here twice, first in line %d", k.Value, out[k.Value].Line)
		default:
			out[k.Value] = v
		}
	}
	for _, k := range required {
		if out[k] == nil {
			r.fault(n, path, "", "%s is missing", k)
		}
	}
	return out
}

func joinPath(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// text reads a scalar that is looked at as text, whatever YAML takes it for: a digest may
// have the look of a number.
func (r *lockReader) text(n *yaml.Node, path string) string {
	if n == nil {
		return ""
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() == "!!null" || n.Value == "" {
		r.fault(n, path, "", "found %s, want a text", describe(n))
		return ""
	}
	return n.Value
}

func (r *lockReader) document(root *yaml.Node) {
	// What it claims to be comes first: a newer lock's keys are no faults.
	if root.Kind == yaml.MappingNode && !r.understood(root) {
		return
	}
	top := r.keys(root, "", []string{"apiVersion", "kind", "artifacts"}, nil)
	list := top["artifacts"]
	if list == nil {
		return
	}
	if list.Kind != yaml.SequenceNode {
		r.fault(list, "artifacts", "", "found %s, want a list", describe(list))
		return
	}
	for i, n := range list.Content {
		r.entry(n, fmt.Sprintf("artifacts[%d]", i))
	}
}

// understood says whether apiVersion and kind are those of a lock that is read here.
func (r *lockReader) understood(root *yaml.Node) bool {
	ok := true
	for i := 0; i+1 < len(root.Content); i += 2 {
		k, v := root.Content[i], root.Content[i+1]
		switch {
		case k.Value == "apiVersion" && v.Value != lockAPIVersion:
			ok = false
			if strings.HasPrefix(v.Value, "nodeprep/") {
				r.fault(v, k.Value, "use that nodeprep", "a lock of %s was written by a newer nodeprep; this one reads %s", v.Value, lockAPIVersion)
			} else {
				r.fault(v, k.Value, "", "found %s, want %s", describe(v), lockAPIVersion)
			}
		case k.Value == "kind" && v.Value != lockKind:
			ok = false
			r.fault(v, k.Value, "", "found %s, want %s", describe(v), lockKind)
		}
	}
	return ok
}

func (r *lockReader) entry(n *yaml.Node, path string) {
	before := len(r.list)
	fields := r.keys(n, path, []string{"component", "version", "arch", "file", "sha256"}, []string{"variant", "url", "size", "from", "signature"})
	if fields == nil {
		return
	}
	field := func(key string) (string, string, *yaml.Node) {
		at := joinPath(path, key)
		return r.text(fields[key], at), at, fields[key]
	}
	var e Locked
	at, node := "", (*yaml.Node)(nil)

	if e.Component, at, node = field("component"); e.Component != "" && members(e.Component) == nil {
		known := []string{releases.Containerd, releases.Runc, releases.CNI, releases.Crictl}
		hint := "known are " + strings.Join(known, ", ")
		if s := spelling.Nearest(e.Component, known); s != "" {
			hint = "did you mean " + s + "?"
		}
		r.fault(node, at, hint, "unknown component %q", e.Component)
	}
	if e.Version, at, node = field("version"); e.Version != "" {
		if v, err := releases.ParseVersion(e.Version); err != nil {
			r.fault(node, at, "", "%v", err)
		} else if v.String() != e.Version {
			r.fault(node, at, "write "+v.String(), "version %q: want it without the v", e.Version)
		}
	}
	if e.Arch, at, node = field("arch"); e.Arch != "" && !archName.MatchString(e.Arch) {
		r.fault(node, at, "", "%q is not an architecture's name, such as amd64", e.Arch)
	}
	r.variant(&e, n, fields["variant"], path)
	if e.File, at, node = field("file"); e.File != "" {
		if problem := checkFileName(e.File); problem != "" {
			r.fault(node, at, "", "%s", problem)
		}
	}
	if e.SHA256, at, node = field("sha256"); e.SHA256 != "" {
		if !hexDigest.MatchString(e.SHA256) {
			r.fault(node, at, "", "sha256 %q is not 64 hexadecimal digits in lower case", e.SHA256)
		}
		e.Origin = r.at(node, at)
	}
	if e.URL, at, node = field("url"); e.URL != "" {
		// Not said what it is: url.Parse repeats the text, which may hold a password.
		if u, err := url.Parse(e.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
			r.fault(node, at, "", "want an address with http:// or https:// and a host")
		}
	}
	var size string
	if size, at, node = field("size"); size != "" {
		var err error
		if e.Size, err = strconv.ParseInt(size, 10, 64); err != nil || e.Size <= 0 {
			r.fault(node, at, "", "found %s, want a number of bytes", describe(node))
		}
	}
	e.From, _, _ = field("from")
	e.Signature = r.signature(fields["signature"], joinPath(path, "signature"))
	if len(r.list) > before {
		return
	}
	if first, twice := r.first[e.key()]; twice {
		r.fault(n, path, "keep one of them", "%s is here twice, first in line %d", e.Title(), first.Line)
		return
	}
	r.first[e.key()] = r.at(n, path)
	r.lock.Entries = append(r.lock.Entries, e)
}

func (r *lockReader) variant(e *Locked, entry, n *yaml.Node, path string) {
	switch at := joinPath(path, "variant"); {
	case n == nil && e.Component == releases.Containerd:
		r.fault(entry, path, "", "variant is missing: want %s or %s", variantDynamic, variantStatic)
	case n == nil:
	case e.Component != releases.Containerd:
		r.fault(n, at, "", "only containerd has variants")
	default:
		switch r.text(n, at) {
		case variantStatic:
			e.Static = true
		case variantDynamic, "": // "" was said
		default:
			r.fault(n, at, "", "found %s, want %s or %s", describe(n), variantDynamic, variantStatic)
		}
	}
}

func (r *lockReader) signature(n *yaml.Node, path string) *Signature {
	if n == nil {
		return nil
	}
	fields := r.keys(n, path, []string{"file", "signer", "fingerprint"}, nil)
	s := &Signature{}
	for key, to := range map[string]*string{"file": &s.File, "signer": &s.Signer, "fingerprint": &s.Fingerprint} {
		*to = r.text(fields[key], joinPath(path, key))
	}
	if s.Fingerprint != "" && !fingerprint.MatchString(s.Fingerprint) {
		r.fault(fields["fingerprint"], path+".fingerprint", "", "%q is not a fingerprint: 40 or 64 hexadecimal digits in upper case", s.Fingerprint)
	}
	return s
}
