package profiles

import (
	"bytes"
	"fmt"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/internal/diag"
)

// PortableOptions say what goes along with a profile that is carried to other machines.
type PortableOptions struct {
	// WithSecrets takes along secrets that stand in the profile, private keys, and files
	// of secrets that are named relative to a profile.
	WithSecrets bool
	// Read reads a file that the profile names, which is no image.
	Read func(LocalFile) ([]byte, error)
	// Pulled are images that are added to the profile's, by their references.
	Pulled []string
	// ByItself says that nothing but the profile and its small files is carried: sources
	// stay, and they and image archives are on the other machine already, where an absolute
	// path says; a relative one is a fault.
	ByItself bool
	// Bundled makes an overlay for a bundle's profile, without sources and images, which are
	// the bundle's.
	Bundled bool
}

// Portable is a profile with the files that it names, fit to be carried away.
type Portable struct {
	// Files are in the profile's order, each once.
	Files []PortableFile
	// Secret says that something in the profile or its files is.
	Secret bool

	flat map[string]any
}

// PortableFile is a file that a portable profile names.
type PortableFile struct {
	Name  string    // in the portable profile: files/ca.pem, images/pause.tar
	From  LocalFile // on this machine; the zero LocalFile of an image that is pulled
	Data  []byte    // content; nil of an image
	Image bool
	// Pulled is the reference of an image that is pulled.
	Pulled string
}

// Portable is the profile with all layers merged, whose files have names relative to it,
// and, unless the options say otherwise, without extends and sources, which are of the
// machine that it leaves. References to
// secrets stay, if they mean the same elsewhere. What is secret and would go along is a
// fault, unless it is asked for, and so is a file that cannot be read; all at once, sorted.
func (p *Profile) Portable(opt PortableOptions) (*Portable, diag.List) {
	c := &carrier{opt: opt, origins: Spec{origins: p.origins}, portable: &Portable{}, names: map[string]PortableFile{}}
	f := flattener{known: shapes{}, carry: c}
	bare := *p
	bare.Extends = ""
	if !opt.ByItself {
		bare.Sources = nil
	}
	if opt.Bundled {
		bare.Extends, bare.Images = BundleName, nil
	}
	if opt.Bundled {
		for field, n := range map[string]int{"images": len(p.Images), "sources": len(p.Sources)} {
			if n > 0 {
				c.list.Warnf(c.origins.Origin(field), "put it into the profile that the bundle is made of", "with a bundle this counts for nothing: %s are the bundle's", field)
			}
		}
	}
	flat, _ := f.value(reflect.ValueOf(bare), "", nil).(map[string]any)
	flat["apiVersion"], flat["kind"] = APIVersion, Kind
	for _, ref := range opt.Pulled {
		name := c.name(PortableFile{Image: true, Pulled: ref}, "images", ref+".tar")
		images, _ := flat["images"].([]any)
		flat["images"] = append(images, map[string]any{"file": name})
	}
	c.portable.flat = flat
	c.list.Sort()
	return c.portable, c.list
}

// YAML is the profile as a document that Loader reads, without the images whose names
// leaveOut says; nil leaves out none. Equal profiles give equal bytes.
func (p *Portable) YAML(leaveOut func(name string) bool) ([]byte, error) {
	flat := maps.Clone(p.flat)
	if images, ok := flat["images"].([]any); ok && leaveOut != nil {
		kept := slices.DeleteFunc(slices.Clone(images), func(x any) bool {
			image, _ := x.(map[string]any)
			name, _ := image["file"].(string)
			return leaveOut(name)
		})
		flat["images"] = kept
		if len(kept) == 0 {
			delete(flat, "images")
		}
	}
	node, err := yamlNode(flat)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	enc := yaml.NewEncoder(&b)
	enc.SetIndent(2)
	if err := enc.Encode(node); err != nil {
		return nil, fmt.Errorf("write the profile: %w", err)
	}
	if err := enc.Close(); err != nil {
		return nil, fmt.Errorf("write the profile: %w", err)
	}
	return b.Bytes(), nil
}

// carrier decides what of a profile goes along.
type carrier struct {
	opt      PortableOptions
	origins  Spec // for the places of fields
	list     diag.List
	portable *Portable
	names    map[string]PortableFile // by those that are taken
}

// refuse reports a secret that may not go along.
func (c *carrier) refuse(o diag.Origin, hint, what string) {
	c.portable.Secret = true
	if c.opt.WithSecrets {
		return
	}
	if hint != "" {
		hint += ", or "
	}
	c.list.Errorf(o, hint+"take it along with --with-secrets", "%s, and what is carried around gets lost", what)
}

// spoken is told of a value, where no reference can stand, that is a secret or sounds so.
func (c *carrier) spoken(at string) {
	o := c.origins.Origin(at)
	if slices.ContainsFunc(c.list, func(d diag.Diagnostic) bool { return d.Origin == o }) {
		return // by itself and by the argument before it
	}
	c.refuse(o, "keep it out of the profile", "this is a secret, or sounds like one")
}

// secret flattens a secret. A user name, a header that carries no credentials and a proxy
// without any may be seen by all.
func (c *carrier) secret(s Secret, at string) any {
	const reference = "give it as {file: /ABSOLUTE/PATH}, {env: NAME} or {credential: NAME}"
	switch {
	case s.File != "" && s.FileGiven != "" && !path.IsAbs(s.FileGiven):
		c.refuse(s.Origin, reference, "this file holds a secret")
		if !c.opt.WithSecrets {
			return nil
		}
		return map[string]any{"file": c.file(LocalFile{Path: s.File, Given: s.FileGiven, Origin: s.Origin}, at)}
	case s.Value == "":
		return flatSecret(s, at)
	case flatSecret(s, at) == Masked && !strings.HasSuffix(at, ".auth.username") && !plainHeader(at, s.Value):
		c.refuse(s.Origin, reference, "a secret stands in the profile")
	}
	return s.Value
}

// plainHeader says whether at is the value of a header that carries no credentials, as
// Resolve judges it.
func plainHeader(at, value string) bool {
	_, name, found := strings.Cut(at, ".header.")
	if i := strings.LastIndex(name, "["); i > 0 && strings.HasSuffix(name, "]") {
		name = name[:i]
	}
	return found && !secretHeader(name, value)
}

// file is the name by which a file goes along, and notes that it does.
func (c *carrier) file(f LocalFile, at string) string {
	switch {
	case f.Path == "":
		return ""
	case c.opt.ByItself && (strings.HasPrefix(at, "images[") || strings.HasPrefix(at, "sources[")):
		if !path.IsAbs(f.Given) {
			c.list.Errorf(f.Origin, "put it into a bundle, or give the absolute path that it has on the node", "this is not carried along: %s", quote(f.Given))
		}
		return f.Given
	case strings.HasPrefix(at, "images["):
		return c.name(PortableFile{From: f, Image: true}, "images", path.Base(f.Path))
	}
	data, err := c.opt.Read(f)
	if err != nil {
		c.list.Errorf(f.Origin, "", "cannot read the file: %v", err)
		return f.Given
	}
	// What a field is for is not what its file holds.
	if privateKey.Match(data) || strings.HasSuffix(at, ".key") {
		c.refuse(f.Origin, "", "this file holds a private key")
	}
	return c.name(PortableFile{From: f, Data: data}, "files", path.Base(f.Path))
}

// unfit is what is not in the names of files that any archive can hold.
var unfit = regexp.MustCompile(`[^A-Za-z0-9._+-]+`)

// name gives a file a name in a folder, made unique by a number where another file has it.
func (c *carrier) name(f PortableFile, folder, base string) string {
	const most = 64
	base = unfit.ReplaceAllString(base, "_")
	if strings.HasPrefix(base, ".") || strings.HasPrefix(base, "-") {
		base = "_" + base
	}
	base = base[max(0, len(base)-most):]
	ext := path.Ext(base)
	for n := 1; ; n++ {
		f.Name = folder + "/" + base
		if n > 1 {
			f.Name = fmt.Sprintf("%s/%s-%d%s", folder, strings.TrimSuffix(base, ext), n, ext)
		}
		other, taken := c.names[f.Name]
		if !taken {
			break
		}
		if same := f.Image && f.From.Path == other.From.Path && f.Pulled == other.Pulled || !f.Image && bytes.Equal(f.Data, other.Data); same {
			return f.Name
		}
	}
	c.names[f.Name] = f
	c.portable.Files = append(c.portable.Files, f)
	return f.Name
}

// bareText is text that all readers of YAML take for such without quotes.
var bareText = regexp.MustCompile(`^[A-Za-z/_][A-Za-z0-9._/@+-]*(:[A-Za-z0-9._/@+-]+)*$`)

// yamlNode is a flattened value as YAML. Text is quoted wherever a reader could take it for
// something else; numbers stay what they are.
func yamlNode(x any) (*yaml.Node, error) {
	switch x := x.(type) {
	case map[string]any:
		n := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
		for _, key := range sortedKeys(x) {
			value, err := yamlNode(x[key])
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, textNode(key), value)
		}
		return n, nil
	case []any:
		n := &yaml.Node{Kind: yaml.SequenceNode, Tag: "!!seq"}
		for _, item := range x {
			value, err := yamlNode(item)
			if err != nil {
				return nil, err
			}
			n.Content = append(n.Content, value)
		}
		return n, nil
	case string:
		return textNode(x), nil
	case fmt.Stringer: // a number with a point
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!float", Value: x.String()}, nil
	case bool:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!bool", Value: fmt.Sprint(x)}, nil
	case int, int64:
		return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!!int", Value: fmt.Sprint(x)}, nil
	}
	return nil, fmt.Errorf("write the profile: a value of type %T", x)
}

func textNode(s string) *yaml.Node {
	n := &yaml.Node{Kind: yaml.ScalarNode, Value: s}
	if !bareText.MatchString(s) || yaml11.MatchString(s) || n.ShortTag() != "!!str" {
		n.Style = yaml.DoubleQuotedStyle
	}
	n.Tag = "!!str"
	return n
}
