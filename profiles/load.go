package profiles

import (
	"path"
	"reflect"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/spelling"
)

// Loader loads profiles from wherever Read finds them.
type Loader struct {
	// Dir is the absolute folder in which the user stands: names that are relative,
	// and the relative files of a profile read as "-", are relative to it. When it
	// is empty, such files keep a relative Path.
	Dir string
	// Read returns the bytes of a profile file, by its absolute path where Dir is
	// given, or of "-". It is not called for built-ins; nil means that there are no files.
	Read func(name string) ([]byte, error)
	// Bundle is the bundle whose profile is named "bundle", as messages call it; "" where
	// none is given. Read gets BundleProfile for it.
	Bundle string
}

// BundleProfile is the place of a bundle's own profile. Its relative files are below
// BundleRoot.
const (
	bundleDir     = "bundle:"
	BundleRoot    = bundleDir + "/"
	BundleProfile = BundleRoot + "profile.yaml"
)

// BundleName is what a profile or command line calls the bundle's profile.
const BundleName = "bundle"

// Load is Loader.Load without a folder: read gets names as they are written,
// relative ones joined to the folder of the profile that extends them.
func Load(name string, read func(name string) ([]byte, error)) (*Profile, diag.List) {
	return Loader{Read: read}.Load(name)
}

// Load loads the profile with a name: a file, "-", or a built-in's bare name, and
// every profile it extends, and merges them.
//
// The findings are all faults of all layers, sorted by place. The Profile is never
// nil; when there are errors it holds what could be read, so that Resolve can be
// asked for further faults, and must not be used for anything else.
func (l Loader) Load(name string) (*Profile, diag.List) {
	var list diag.List
	layers := l.chain(name, &list)

	p := &Profile{origins: map[string]diag.Origin{}, faulty: map[string]bool{}, faultyWithin: map[string]bool{}}
	known := shapes{}
	var merged *node
	for _, layer := range slices.Backward(layers) {
		if layer.root != nil {
			m := merger{list: &list, known: known}
			merged = m.merge(reflect.TypeFor[Profile](), merged, layer.root, "")
		}
	}
	for _, layer := range layers {
		p.layers = append(p.layers, layer.name)
		// Each layer by itself as well: the fault in a value that a layer above
		// replaces is a fault all the same. What is missing may be elsewhere.
		if len(layers) > 1 && layer.root != nil {
			d := decoder{list: &list, known: known, partial: true}
			d.profile(layer.root, new(Profile))
		}
	}
	if merged != nil {
		d := decoder{list: &list, known: known, origins: p.origins}
		d.profile(merged, p)
	}
	for _, f := range list {
		if f.Severity == diag.Error {
			p.faulty[f.Path] = true
			for at := f.Path; at != "" && !p.faultyWithin[at]; at = parent(at) {
				p.faultyWithin[at] = true
			}
		}
	}
	list.Sort()
	return p, list
}

// chain reads a profile and what it extends, outermost first.
func (l Loader) chain(name string, list *diag.List) []*layer {
	var layers []*layer
	var ids, names []string          // what has been read, to see a cycle
	asked := diag.Origin{File: name} // who asks for the next layer
	file, display, written := name, name, name
	switch {
	case name == BundleName && l.Bundle != "":
		file, display = l.bundled()
	case !isBuiltIn(name) && name != "-" && l.Dir != "" && !path.IsAbs(name):
		file = path.Join(l.Dir, name)
	}
	for {
		next, id, ok := l.read(file, display, written, asked, list)
		if i := slices.Index(ids, id); i >= 0 {
			list.Errorf(asked, "", "profiles extend each other in a circle: %s", strings.Join(append(names[i:], display), " -> "))
			return layers
		}
		if len(layers) == maxLayers {
			list.Errorf(asked, "", "more than %d profiles extend one another", maxLayers)
			return layers
		}
		if !ok {
			return layers
		}
		layers, ids, names = append(layers, next), append(ids, id), append(names, display)

		target, at := next.extends()
		switch {
		case target == "":
			return layers
		case isBuiltIn(target):
			file, display = target, target
		case target == BundleName && l.Bundle != "":
			file, display = l.bundled()
		case target == BundleName:
			list.Errorf(at, "give it with --bundle, or extend a built-in or a file", "a bundle's profile can only be extended where a bundle is given")
			return layers
		case target == "-" || strings.Contains(target, "://"):
			list.Errorf(at, "extend a built-in or a file", "cannot extend %s: a profile is read from files alone", quote(target))
			return layers
		case path.IsAbs(target) && next.dir == bundleDir:
			list.Errorf(at, "let that file extend the bundle's profile", "a bundle's profile cannot extend %s, a file of this machine", quote(target))
			return layers
		case path.IsAbs(target):
			file, display = path.Clean(target), target
		default:
			file = next.resolve(target)
			display = file
			if name != "-" && !path.IsAbs(names[len(names)-1]) {
				display = path.Join(path.Dir(names[len(names)-1]), target)
			}
		}
		asked, written = at, target
	}
}

// bundled is the bundle's profile and how it is shown.
func (l Loader) bundled() (file, display string) {
	return BundleProfile, l.Bundle + ":" + path.Base(BundleProfile)
}

// read gets and parses one profile, which is written so where it is asked for. Its id is the same for the same file.
func (l Loader) read(file, display, written string, asked diag.Origin, list *diag.List) (next *layer, id string, ok bool) {
	if data, ok := builtIn(file); ok {
		next = &layer{name: "builtin:" + file}
		next.parse(data, list)
		return next, next.name, true
	}
	id = file
	if file != "-" {
		id = path.Clean(file)
	}
	if l.Read == nil {
		list.Errorf(asked, hintNames(written), "cannot read profile %s: only the built-ins can be read here", quote(display))
		return nil, id, false
	}
	data, err := l.Read(file)
	if err != nil {
		list.Errorf(asked, hintNames(written), "cannot read the profile: %v", err)
		return nil, id, false
	}
	next = &layer{name: display, dir: l.Dir}
	if file != "-" {
		next.dir = path.Dir(file)
	}
	next.parse(data, list)
	return next, id, true
}

// hintNames is the remedy for a name that is neither a file nor a built-in.
func hintNames(name string) string {
	if strings.ContainsAny(name, "/.") {
		return ""
	}
	if s := spelling.Nearest(name, BuiltIns()); s != "" {
		return "did you mean " + s + "? The built-ins are " + choices(BuiltIns())
	}
	return "the built-ins are " + choices(BuiltIns())
}

// extends is what a layer says it extends, "" when that is nothing or no text; the
// decoder reports the latter.
func (l *layer) extends() (string, diag.Origin) {
	if l.root == nil || !l.root.isMap() {
		return "", diag.Origin{}
	}
	n := l.root.get("extends")
	if n == nil || n.isMap() || n.isList() || n.y.ShortTag() != "!!str" {
		return "", diag.Origin{}
	}
	return n.y.Value, n.at("extends")
}

// merger lays layers over one another.
type merger struct {
	list  *diag.List
	known shapes
}

// merge lays one value over another: maps key by key, anything else replaces. null
// removes a key; one that there is nothing to remove of stays, for the decoder.
// Neither argument is changed. t is the type the value is decoded into.
func (m merger) merge(t reflect.Type, base, over *node, at string) *node {
	if base == nil || !base.isMap() || !over.isMap() || replacesWhole(t) {
		return over
	}
	inherited := base.pairs
	if m.dropsDigests(t, base, over) {
		inherited = slices.DeleteFunc(slices.Clone(inherited), func(p pair) bool { return p.key == "sha256" })
	}
	out := &node{y: over.y, layer: over.layer, pairs: slices.Clone(inherited)}
	position := make(map[string]int, len(out.pairs))
	for i, p := range out.pairs {
		position[p.key] = i
	}
	removed := map[int]bool{}
	for _, p := range over.pairs {
		i, ok := position[p.key]
		switch {
		case !ok:
			out.pairs = append(out.pairs, p)
		case p.value.isNull():
			if was := out.pairs[i].value; p.value.y.Value == "" && was.isMap() {
				m.list.Warnf(p.value.layer.at(p.at, join(at, p.key)), "write null to say so, or leave the key out",
					"this key has no value, which removes everything inherited under it")
			}
			removed[i] = true
		default:
			out.pairs[i] = pair{p.key, p.at, m.merge(m.childType(t, p.key), out.pairs[i].value, p.value, join(at, p.key))}
		}
	}
	if len(removed) > 0 {
		kept := out.pairs[:0:0]
		for i, p := range out.pairs {
			if !removed[i] {
				kept = append(kept, p)
			}
		}
		out.pairs = kept
	}
	return out
}

// dropsDigests says whether an overlay chooses another release file, so that the
// inherited sha256, which is of the old one, no longer means anything.
func (m merger) dropsDigests(t reflect.Type, base, over *node) bool {
	if t == nil || t.Kind() != reflect.Struct || m.childType(t, "sha256") == nil {
		return false
	}
	if over.get("version") != nil {
		return true
	}
	was, is := base.get("variant"), over.get("variant")
	return was != nil && is != nil && was.y.Value != is.y.Value
}

// childType is the type of the value under a key, nil where it is free or unknown.
func (m merger) childType(t reflect.Type, key string) reflect.Type {
	if t == nil {
		return nil
	}
	switch t.Kind() {
	case reflect.Pointer:
		return m.childType(t.Elem(), key)
	case reflect.Struct:
		for _, f := range m.known.fields(t) {
			if f.key == key {
				return f.typ
			}
		}
	case reflect.Map:
		return t.Elem()
	}
	return nil
}

// replacesWhole says whether values of a type are alternatives, of which a merge
// would make a mixture: {env: A} under {file: B}.
func replacesWhole(t reflect.Type) bool {
	return t == reflect.TypeFor[Secret]() || t == reflect.TypeFor[HeaderValues]()
}
