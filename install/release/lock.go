package release

import (
	"bytes"
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// LockFile is the lock's name beside a profile.
const LockFile = "nodeprep.lock"

// What a lock says it is.
const (
	lockAPIVersion = "nodeprep/v1alpha1"
	lockKind       = "Lock"
)

// Names of containerd's variants in a lock.
const (
	variantDynamic = "dynamic"
	variantStatic  = "static"
)

// Lock is which release files a profile's nodes get, for good.
type Lock struct {
	// File is its name as the user gave it, for messages.
	File string
	// Command is what writes it anew, for messages: "nodeprep lock -f node.yaml".
	Command string
	// Bundled says that it lies in a bundle, which nobody can write it anew in.
	Bundled bool
	Entries []Locked
}

// Locked is one release file.
type Locked struct {
	Component string
	Version   string // without a leading v
	Arch      string // Go's name
	Static    bool   // containerd's static variant
	File      string
	URL       string // "" where upstream publishes none
	Size      int64  // bytes; 0 where a lock written by hand does not say
	SHA256    string // hex
	// From says who knew the digest when it was locked.
	From      string
	Signature *Signature
	Origin    diag.Origin // the line of its sha256 in the lock
}

// Title is how messages call it: "containerd 2.3.4 for linux/amd64".
func (e *Locked) Title() string {
	return desired.Artifact{Component: e.Component, Version: e.Version, Static: e.Static}.Title() + " for linux/" + e.Arch
}

// Variant is containerd's variant as a lock has it, "" for the other components.
func (e *Locked) Variant() string {
	switch {
	case e.Component != releases.Containerd:
		return ""
	case e.Static:
		return variantStatic
	}
	return variantDynamic
}

// key is what may be in a lock once.
type lockKey struct {
	component, version, arch string
	static                   bool
}

func (e *Locked) key() lockKey { return lockKey{e.Component, e.Version, e.Arch, e.Static} }

// Find is the entry for a component's release, nil where the lock has none.
func (l *Lock) Find(component, version, arch string, static bool) *Locked {
	if l == nil {
		return nil
	}
	want := lockKey{component, version, arch, static}
	for i := range l.Entries {
		if l.Entries[i].key() == want {
			return &l.Entries[i]
		}
	}
	return nil
}

// Arches are the architectures that the lock has files for, sorted.
func (l *Lock) Arches() []string {
	if l == nil {
		return nil
	}
	var out []string
	for _, e := range l.Entries {
		out = append(out, e.Arch)
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// Artifacts is the function of that name with the files and digests that the lock has. A
// nil Lock is no lock.
func (l *Lock) Artifacts(reqs []Request) ([]desired.Artifact, diag.List) {
	if l == nil {
		return Artifacts(reqs)
	}
	wanted, list := wanted(reqs)
	held, more := l.Hold(wanted)
	return held, append(list, more...)
}

// Hold gives the artifacts the files and digests that the lock has for them. An artifact
// that is not in the lock, and a digest of the profile's that is another, are faults.
func (l *Lock) Hold(artifacts []desired.Artifact) ([]desired.Artifact, diag.List) {
	var list diag.List
	var out []desired.Artifact
	for _, a := range artifacts {
		e := l.Find(a.Component, a.Version, a.Arch, a.Static)
		if e == nil {
			at := a.Origin
			if at.File == "" {
				at = diag.Origin{File: l.File}
			}
			list.Errorf(at, l.remedy(a.Arch, " adds it"), "%s does not have %s for linux/%s%s", l.File, a.Title(), a.Arch, l.others(a))
			continue
		}
		place := (diag.Origin{File: e.Origin.File, Line: e.Origin.Line}).Place()
		if strings.HasPrefix(a.SHA256From, fromProfile) && a.SHA256 != e.SHA256 {
			list.Errorf(a.Origin, l.remedy("", " --update, if the profile is right"),
				"sha256 %s of %s disagrees with %s, which has %s", a.SHA256, a.Title(), place, e.SHA256)
			continue
		}
		if !slices.ContainsFunc(a.Files, func(pattern string) bool { ok, err := path.Match(pattern, e.File); return err == nil && ok }) {
			list.Errorf(e.Origin, "want "+a.Files[0], "%s is no file with %s for linux/%s", e.File, a.Title(), a.Arch)
			continue
		}
		a.Files, a.URL = []string{e.File}, e.URL
		a.SHA256, a.SHA256From, a.Size, a.Locked = e.SHA256, cmp.Or(place, l.File), e.Size, true
		out = append(out, a)
	}
	return out, list
}

// others says what the lock has in place of an artifact.
func (l *Lock) others(a desired.Artifact) string {
	var has []string
	for _, e := range l.Entries {
		if e.Component == a.Component && e.Arch == a.Arch {
			has = append(has, strings.TrimSpace(e.Version+" "+e.Variant()))
		}
	}
	if len(has) == 0 {
		return ""
	}
	return ", but " + strings.Join(has, ", ")
}

// remedy is the command that writes the lock anew, for another architecture too, and what
// that does.
func (l *Lock) remedy(also, does string) string {
	if l.Bundled {
		return "want what the bundle has, or make the bundle anew"
	}
	arches := l.Arches()
	if also != "" {
		arches = append(arches, also)
	}
	slices.Sort(arches)
	return cmp.Or(l.Command, "nodeprep lock -f PROFILE") + " --arch " + strings.Join(slices.Compact(arches), ",") + does
}

// lockHeader is the comment at the top of a lock.
const lockHeader = `# Which release files the nodes of this profile get. Made by nodeprep: keep it beside the profile
# and under version control, and let "nodeprep lock" change it.
`

// lockDocument is a lock as YAML has it.
type lockDocument struct {
	APIVersion string      `yaml:"apiVersion"`
	Kind       string      `yaml:"kind"`
	Artifacts  []lockEntry `yaml:"artifacts"`
}

type lockEntry struct {
	Component string     `yaml:"component"`
	Version   string     `yaml:"version"`
	Arch      string     `yaml:"arch"`
	Variant   string     `yaml:"variant,omitempty"`
	File      string     `yaml:"file"`
	URL       string     `yaml:"url,omitempty"`
	Size      int64      `yaml:"size,omitempty"`
	SHA256    string     `yaml:"sha256"`
	From      string     `yaml:"from,omitempty"`
	Signature *Signature `yaml:"signature,omitempty"`
}

// Marshal is the lock as text, sorted by component, version, arch and variant.
func (l *Lock) Marshal() []byte {
	doc := lockDocument{APIVersion: lockAPIVersion, Kind: lockKind, Artifacts: []lockEntry{}}
	for _, e := range slices.SortedFunc(slices.Values(l.Entries), compareLocked) {
		doc.Artifacts = append(doc.Artifacts, lockEntry{
			Component: e.Component, Version: e.Version, Arch: e.Arch, Variant: e.Variant(), File: e.File, URL: e.URL,
			Size: e.Size, SHA256: e.SHA256, From: e.From, Signature: e.Signature,
		})
	}
	var b bytes.Buffer
	b.WriteString(lockHeader)
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	// A buffer takes everything, and so does YAML of texts and numbers.
	_ = enc.Encode(doc)
	_ = enc.Close()
	return b.Bytes()
}

func compareLocked(a, b Locked) int {
	return cmp.Or(cmp.Compare(a.Component, b.Component), compareVersions(a.Version, b.Version),
		cmp.Compare(a.Arch, b.Arch), cmp.Compare(a.Variant(), b.Variant()))
}

func compareVersions(a, b string) int {
	v, errV := releases.ParseVersion(a)
	w, errW := releases.ParseVersion(b)
	if errV != nil || errW != nil {
		return cmp.Compare(a, b)
	}
	return v.Compare(w)
}

// Sort puts the entries into the order of Marshal.
func (l *Lock) Sort() { slices.SortFunc(l.Entries, compareLocked) }

// Change is what became of one release file between two locks: Old or New is nil where it
// was added or removed.
type Change struct{ Old, New *Locked }

// Same says that the release is still the same file, by its digest, with the same address
// and size; who vouched for it may be another.
func (c Change) Same() bool {
	return c.Old != nil && c.New != nil && c.Old.SHA256 == c.New.SHA256 && c.Old.File == c.New.File &&
		c.Old.URL == c.New.URL && c.Old.Size == c.New.Size
}

// Changes compares two locks, either of which may be nil, in the order of Marshal.
func Changes(before, after *Lock) []Change {
	var out []Change
	order := func(c Change) Locked {
		if c.New != nil {
			return *c.New
		}
		return *c.Old
	}
	if after != nil {
		for i := range after.Entries {
			e := &after.Entries[i]
			out = append(out, Change{Old: before.Find(e.Component, e.Version, e.Arch, e.Static), New: e})
		}
	}
	if before != nil {
		for i := range before.Entries {
			e := &before.Entries[i]
			if after.Find(e.Component, e.Version, e.Arch, e.Static) == nil {
				out = append(out, Change{Old: e})
			}
		}
	}
	slices.SortStableFunc(out, func(a, b Change) int { return compareLocked(order(a), order(b)) })
	return out
}

// checkFileName says what is wrong with a release file's name, "" if nothing is.
func checkFileName(name string) string {
	switch {
	case name == "" || name != path.Base(name) || strings.HasPrefix(name, ".") || strings.ContainsAny(name, `\*?[]`):
		return fmt.Sprintf("%q is not a file's name", name)
	}
	return ""
}
