package profiles

import (
	"fmt"
	"maps"
	"path"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"unicode"

	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/spelling"
)

// field is a struct field of the profile as its tags describe it.
type field struct {
	key              string
	typ              reflect.Type
	index            []int
	doc, def         string
	format, keys     string
	enum             []string
	examples         []string
	acceptInt        bool
	emptyOK          bool
	required         bool
	minimum, maximum *int
}

// fieldsOf lists the fields of a struct, those of inlined structs in their place.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		key, options, _ := strings.Cut(sf.Tag.Get("yaml"), ",")
		switch {
		case options == "inline":
			for _, f := range fieldsOf(sf.Type) {
				f.index = append([]int{i}, f.index...)
				out = append(out, f)
			}
			continue
		case key == "" || key == "-":
			continue
		}
		f := field{
			key: key, typ: sf.Type, index: []int{i},
			doc: sf.Tag.Get("doc"), def: sf.Tag.Get("default"),
			format: sf.Tag.Get("format"), keys: sf.Tag.Get("keys"),
			acceptInt: sf.Tag.Get("accept") == "int",
			emptyOK:   sf.Tag.Get("empty") == "ok",
			required:  sf.Tag.Get("required") == "true",
			minimum:   tagNumber(sf.Tag, "min"), maximum: tagNumber(sf.Tag, "max"),
		}
		if s := sf.Tag.Get("enum"); s != "" {
			f.enum = strings.Split(s, ",")
		}
		if s := sf.Tag.Get("examples"); s != "" {
			f.examples = strings.Split(s, "|")
		}
		out = append(out, f)
	}
	return out
}

// what completes "want ..." for a field, "" where any text goes.
func (f field) what() string { return formatOf(f.format).what }

// shapes remembers the fields of structs: reading tags is most of what decoding costs.
type shapes map[reflect.Type][]field

func (s shapes) fields(t reflect.Type) []field {
	f, ok := s[t]
	if !ok {
		f = fieldsOf(t)
		s[t] = f
	}
	return f
}

func tagNumber(tag reflect.StructTag, name string) *int {
	n, err := strconv.Atoi(tag.Get(name))
	if err != nil {
		return nil
	}
	return &n
}

// custom is a type with a form of its own.
type custom interface {
	// decode reads a node that is not null into the receiver.
	decode(d *decoder, n *node, at string, f field)
	// schema is the form as JSON Schema.
	schema(g *generator, f field) object
}

// decoder turns nodes into values and reports what does not fit.
type decoder struct {
	list  *diag.List
	known shapes
	// origins gets the place of every field; nil where nobody asks.
	origins map[string]diag.Origin
	// partial is set for one layer of several: what is missing may be elsewhere.
	partial bool
	// patterns are those of formats, compiled.
	patterns map[string]*regexp.Regexp
	// guesses counts the unknown keys for which a better one was looked for.
	guesses int
}

// maxGuesses bounds the search for what unknown keys mean: a file with more of them
// is not a profile.
const maxGuesses = 100

// examine says what is wrong with a text by its format, "" if nothing is.
func (d *decoder) examine(name, s string) (problem, hint string) {
	f := formatOf(name)
	if f.check != nil {
		if problem, hint = f.check(s); problem != "" {
			return problem, hint
		}
	}
	if f.pattern == "" {
		return "", ""
	}
	re := d.patterns[f.pattern]
	if re == nil {
		if d.patterns == nil {
			d.patterns = map[string]*regexp.Regexp{}
		}
		re = regexp.MustCompile(f.pattern)
		d.patterns[f.pattern] = re
	}
	if !re.MatchString(s) {
		return fmt.Sprintf("%s is not %s", quote(redact(s)), f.what), ""
	}
	return "", ""
}

func (d *decoder) fault(n *node, at, hint, format string, args ...any) {
	d.list.Errorf(n.at(at), hint, format, args...)
}

func (d *decoder) note(at string, o diag.Origin) {
	if d.origins != nil {
		d.origins[at] = o
	}
}

// entry notes the place of a map's entry: of its value if that is a scalar, of its
// key if the value begins on a later line.
func (d *decoder) entry(p pair, at string) {
	if p.value.isMap() || p.value.isList() {
		d.note(at, p.value.layer.at(p.at, at))
		return
	}
	d.note(at, p.value.at(at))
}

func (d *decoder) profile(n *node, p *Profile) {
	if !n.isMap() {
		d.fault(n, "", "see nodeprep init for a starter", "found %s, want a profile: a map with keys such as containerd", describe(n))
		return
	}
	d.object(n, "", reflect.ValueOf(p).Elem())
}

// value decodes n, which is not null, into v.
func (d *decoder) value(n *node, at string, f field, v reflect.Value) {
	if c, ok := v.Addr().Interface().(custom); ok {
		c.decode(d, n, at, f)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		if !n.isMap() {
			d.fault(n, at, "", "found %s, want a map", d.describe(n, at))
			return
		}
		d.object(n, at, v)
	case reflect.Map:
		d.mapping(n, at, f, v)
	case reflect.Slice:
		d.slice(n, at, f, v)
	case reflect.Pointer:
		e := reflect.New(v.Type().Elem())
		before := len(*d.list)
		d.value(n, at, f, e.Elem())
		if len(*d.list) == before {
			v.Set(e)
		}
	case reflect.String:
		if s, ok := d.text(n, at, f); ok {
			v.SetString(s)
		}
	case reflect.Int:
		d.number(n, at, f, v)
	case reflect.Bool:
		if n.y.Kind == yaml.ScalarNode && n.y.ShortTag() == "!!bool" {
			v.SetBool(strings.EqualFold(n.y.Value, "true"))
			return
		}
		d.fault(n, at, "write true or false, without quotes", "found %s, want a boolean", d.describe(n, at))
	default:
		panic("profiles: cannot decode into a " + v.Type().String())
	}
}

// describe says what a value is; of one that may be a secret only its kind.
func (d *decoder) describe(n *node, at string) string {
	if !sensitive(at) || n.isMap() || n.isList() {
		return describe(n)
	}
	switch n.y.ShortTag() {
	case "!!null":
		return "nothing"
	case "!!bool":
		return "a boolean"
	case "!!int", "!!float":
		return "a number"
	case "!!timestamp":
		return "a date"
	}
	return "a text"
}

// sensitive says whether the value of a field may be a secret, or be meant as one.
func sensitive(at string) bool {
	return secretValue(at) || soundsLike(at) || soundsSecret(at) ||
		strings.HasSuffix(at, ".auth") || strings.Contains(at, ".auth.") || strings.Contains(at, ".header") || at == "systemd.proxy"
}

// secretValue says whether a field is a secret or a reference to one, in which no
// other keys are than file, env and credential.
func secretValue(at string) bool {
	return strings.HasPrefix(at, "registries.") && (strings.HasSuffix(at, ".auth.username") || strings.HasSuffix(at, ".auth.password") ||
		strings.HasSuffix(at, ".auth.identityToken") || strings.Contains(at, ".header.")) || at == "systemd.proxy.http" || at == "systemd.proxy.https"
}

// object decodes a map with known keys.
func (d *decoder) object(n *node, at string, v reflect.Value) {
	fields := d.known.fields(v.Type())
	for _, p := range n.pairs {
		i := slices.IndexFunc(fields, func(f field) bool { return f.key == p.key })
		if i < 0 {
			d.unknown(p, at, fields)
			continue
		}
		if p.value.isNull() {
			continue // the same as leaving the key out
		}
		f := fields[i]
		d.entry(p, join(at, p.key))
		d.value(p.value, join(at, p.key), f, v.FieldByIndex(f.index))
	}
	if d.partial && !strings.HasSuffix(at, "]") {
		return
	}
	for _, f := range fields {
		if m := n.get(f.key); f.required && (m == nil || m.isNull()) {
			hint := ""
			if len(f.examples) > 0 {
				hint = "such as " + f.key + ": " + f.examples[0]
			}
			d.fault(n, join(at, f.key), hint, "%q is missing", f.key)
		}
	}
}

// unknown reports a key that this level does not have.
func (d *decoder) unknown(p pair, at string, fields []field) {
	keys := make([]string, 0, len(fields))
	for _, f := range fields {
		keys = append(keys, f.key)
	}
	hint := ""
	if d.guesses++; d.guesses <= maxGuesses {
		hint = meant(p.key, keys)
	}
	if sensitive(at) && spelling.Nearest(p.key, keys) == "" {
		// It may be the secret itself, which is not repeated.
		hint = "known here: " + strings.Join(keys, ", ")
		if secretValue(at) {
			hint = "write {file: PATH}, {env: NAME} or {credential: NAME}"
		}
		d.list.Errorf(p.value.layer.at(p.at, at), hint, "unknown key in this map")
		return
	}
	d.list.Errorf(p.value.layer.at(p.at, join(at, p.key)), hint, "unknown key %s", quote(p.key))
}

// meant guesses which of the keys of a level, or of another one, a user was after.
func meant(key string, keys []string) (hint string) {
	if k := spelling.Nearest(key, keys); k != "" {
		return "did you mean " + k + "?"
	}
	if places := placesOf(key); len(places) > 0 {
		return "it belongs at " + choices(places)
	}
	if slices.Sort(keys); len(keys) <= 12 {
		return "known here: " + strings.Join(keys, ", ")
	}
	return ""
}

// placesOf lists the fields with a key, as in registries.HOST.mirrors[].url: at most
// three, none if the key is so common that its place says nothing.
func placesOf(key string) []string {
	var out []string
	var walk func(t reflect.Type, at string, depth int)
	walk = func(t reflect.Type, at string, depth int) {
		switch t.Kind() {
		case reflect.Pointer:
			walk(t.Elem(), at, depth)
		case reflect.Slice:
			walk(t.Elem(), at+"[]", depth)
		case reflect.Map:
			walk(t.Elem(), join(at, "NAME"), depth)
		case reflect.Struct:
			for _, f := range fieldsOf(t) {
				if spelling.Same(f.key, key) {
					out = append(out, join(at, f.key))
				}
				walk(f.typ, join(at, f.key), depth+1)
			}
		}
	}
	walk(reflect.TypeFor[Profile](), "", 0)
	if len(out) > 3 {
		return nil
	}
	return out
}

// mapping decodes a map whose keys the user chooses.
func (d *decoder) mapping(n *node, at string, f field, v reflect.Value) {
	if !n.isMap() {
		d.fault(n, at, "", "found %s, want a map", d.describe(n, at))
		return
	}
	elem := f
	elem.keys = ""
	out := reflect.MakeMapWithSize(v.Type(), len(n.pairs))
	for _, p := range n.pairs {
		entry := join(at, p.key)
		if problem, hint := d.keyFault(f.keys, p.key); problem != "" && sensitive(at) {
			d.list.Errorf(p.value.layer.at(p.at, at), "", "a key is not %s", formatOf(f.keys).what)
			continue
		} else if problem != "" {
			d.list.Errorf(p.value.layer.at(p.at, entry), hint, "%s", problem)
		}
		if p.value.isNull() {
			d.nothing(p, entry, v.Type().Elem())
			continue
		}
		d.entry(p, entry)
		e := reflect.New(v.Type().Elem()).Elem()
		d.value(p.value, entry, elem, e)
		out.SetMapIndex(reflect.ValueOf(p.key), e)
	}
	v.Set(out)
}

// nothing reports a null that removes nothing.
func (d *decoder) nothing(p pair, at string, elem reflect.Type) {
	if d.partial {
		return
	}
	hint := "give it a value, or remove the key"
	switch {
	case elem.Kind() == reflect.String && p.value.y.Value != "":
		hint = fmt.Sprintf("quote it, if it is to be text: %q", p.value.y.Value)
	case elem.Kind() == reflect.Struct:
		hint = "write {} for one with defaults alone, or remove the key"
	}
	d.list.Errorf(p.value.layer.at(p.at, at), hint, "this key has no value, and there is no inherited one that null could remove")
}

func (d *decoder) keyFault(format, key string) (problem, hint string) {
	if i := strings.IndexFunc(key, unicode.IsControl); i >= 0 {
		return fmt.Sprintf("the key %s holds a control character", quote(key)), ""
	}
	return d.examine(format, key)
}

func (d *decoder) slice(n *node, at string, f field, v reflect.Value) {
	if !n.isList() {
		hint := ""
		if !n.isMap() && v.Type().Elem().Kind() == reflect.String {
			hint = "write it in brackets: [...]"
			if !sensitive(at) {
				hint = "write [" + redact(n.y.Value) + "]"
			}
		}
		d.fault(n, at, hint, "found %s, want a list", d.describe(n, at))
		return
	}
	out := reflect.MakeSlice(v.Type(), 0, len(n.items))
	for i, item := range n.items {
		d.note(index(at, i), item.at(index(at, i)))
		e := reflect.New(v.Type().Elem()).Elem()
		if item.isNull() {
			d.fault(item, index(at, i), "remove it", "this item of the list is empty")
			continue
		}
		d.value(item, index(at, i), f, e)
		out = reflect.Append(out, e)
	}
	v.Set(out)
}

// text decodes a string by the field's rules.
func (d *decoder) text(n *node, at string, f field) (string, bool) {
	if f.format == "duration" && n.y.ShortTag() == "!!int" && decimal.MatchString(n.y.Value) {
		d.fault(n, at, "write "+n.y.Value+"s for seconds", "duration %s has no unit", n.y.Value)
		return "", false
	}
	s, ok := d.scalarText(n, at, f.acceptInt, sensitive(at))
	if !ok {
		return "", false
	}
	switch {
	case s == "" && f.emptyOK:
		return "", true
	case s == "":
		d.fault(n, at, "give it a value, or leave the key out", "the text is empty")
		return "", false
	case len(f.enum) > 0:
		if slices.Contains(f.enum, s) {
			return s, true
		}
		hint := ""
		if e := spelling.Nearest(s, f.enum); e != "" {
			hint = "did you mean " + e + "?"
		}
		d.fault(n, at, hint, "unknown value %s, want %s", quote(s), choices(f.enum))
		return "", false
	}
	if problem, hint := d.examine(f.format, s); problem != "" {
		if sensitive(at) && f.what() != "" {
			problem, hint = "this is not "+f.what(), ""
		}
		d.fault(n, at, hint, "%s", problem)
		return "", false
	}
	return s, true
}

var (
	decimal = regexp.MustCompile(`^-?(0|[1-9][0-9]*)$`)
	octal   = regexp.MustCompile(`^[-+]?0(o[0-7_]+|[0-9_]+)$`)
	// yaml11 is what YAML 1.1 takes for booleans, and for numbers to the base of 60.
	yaml11 = regexp.MustCompile(`^((?i:y|n|yes|no|on|off)|[-+]?[0-9][0-9_]*(:[0-5]?[0-9])+(\.[0-9_]*)?)$`)
)

// scalarText returns a text as the user wrote it, and reports one that YAML makes
// something else of. A secret is not shown.
func (d *decoder) scalarText(n *node, at string, acceptInt, secret bool) (string, bool) {
	if n.isMap() || n.isList() {
		d.fault(n, at, "", "found %s, want text", d.describe(n, at))
		return "", false
	}
	s, tag := n.y.Value, n.y.ShortTag()
	plain := n.y.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
	switch {
	case tag == "!!int" && acceptInt && decimal.MatchString(s):
		return s, true
	case tag == "!!str" && acceptInt && plain && yaml11.MatchString(s):
		d.fault(n, at, "quote it: "+strconv.Quote(s), "%s means something else to other YAML readers (a boolean, or a number to the base of 60)", s)
		return "", false
	case tag != "!!str" && secret:
		d.fault(n, at, "quote it", "YAML does not read this value as text")
		return "", false
	case tag != "!!str":
		d.fault(n, at, "quote it: "+strconv.Quote(s), "YAML reads %s as %s, not as text", s, readAs(n))
		return "", false
	}
	if i := strings.IndexFunc(s, unicode.IsControl); i >= 0 {
		what := fmt.Sprintf("the control character U+%04X", []rune(s[i:])[0])
		if s[i] == '\n' {
			what = "a line break"
		}
		d.fault(n, at, "", "the text holds %s, want one line", what)
		return "", false
	}
	return s, true
}

// readAs says what YAML makes of a scalar that is not text.
func readAs(n *node) string {
	var v any
	if err := n.y.Decode(&v); err == nil {
		switch v := v.(type) {
		case bool:
			return "the boolean " + strconv.FormatBool(v)
		case int, int64, uint64:
			return fmt.Sprintf("the number %d", v)
		case float64:
			return "the number " + strconv.FormatFloat(v, 'g', -1, 64)
		}
	}
	switch n.y.ShortTag() {
	case "!!timestamp":
		return "a date"
	case "!!null":
		return "nothing"
	}
	return "something else"
}

func (d *decoder) number(n *node, at string, f field, v reflect.Value) {
	if n.isMap() || n.isList() || n.y.ShortTag() != "!!int" {
		hint := ""
		if !n.isMap() && !n.isList() && n.y.ShortTag() == "!!str" && decimal.MatchString(n.y.Value) {
			hint = "write it without quotes"
		}
		d.fault(n, at, hint, "found %s, want a whole number", d.describe(n, at))
		return
	}
	i, ok := d.integer(n, at)
	if !ok {
		return
	}
	if f.minimum != nil && i < int64(*f.minimum) || f.maximum != nil && i > int64(*f.maximum) {
		d.fault(n, at, "", "%d is out of range, want %d to %d", i, *f.minimum, *f.maximum)
		return
	}
	v.SetInt(i)
}

// integer reads a decimal number; octal-looking ones, and other notations in which a
// reader may see another number, are reported.
func (d *decoder) integer(n *node, at string) (int64, bool) {
	s := n.y.Value
	switch {
	case octal.MatchString(s):
		d.fault(n, at, "write the decimal number that is meant", "%s looks octal: YAML reads it as %s", s, strings.TrimPrefix(readAs(n), "the number "))
		return 0, false
	case !decimal.MatchString(s):
		d.fault(n, at, "write the decimal number that is meant", "%s is not written as a decimal number: YAML reads it as %s", s, strings.TrimPrefix(readAs(n), "the number "))
		return 0, false
	}
	i, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		d.fault(n, at, "", "the number %s does not fit into 64 bits", s)
		return 0, false
	}
	return i, true
}

// Strings is a text or a list of texts.
type Strings []string

func (s *Strings) decode(d *decoder, n *node, at string, f field) {
	if n.isList() {
		d.slice(n, at, f, reflect.ValueOf((*[]string)(s)).Elem())
		return
	}
	if t, ok := d.text(n, at, f); ok {
		*s = Strings{t}
	}
}

func (f *LocalFile) decode(d *decoder, n *node, at string, _ field) {
	s, ok := d.scalarText(n, at, false, false)
	switch {
	case !ok:
		return
	case s == "":
		d.fault(n, at, "", "the path of the file is empty")
		return
	case strings.Contains(s, "://"):
		d.fault(n, at, "name a file on this machine, relative to the profile", "%s is a URL, want a file", quote(s))
		return
	case strings.HasPrefix(s, "~"):
		d.fault(n, at, "write the path in full, or relative to the profile", "path %s is not expanded by anyone", quote(s))
		return
	case n.layer.dir == bundleDir && path.IsAbs(s):
		d.fault(n, at, "name it in a profile that extends the bundle's", "a bundle's profile has the bundle's files alone, and %s is one of this machine", quote(s))
		return
	}
	*f = LocalFile{Path: n.layer.resolve(s), Given: s, Origin: n.at(at)}
}

// resolve makes a path of a profile relative to that profile.
func (l *layer) resolve(s string) string {
	switch {
	case path.IsAbs(s):
		return path.Clean(s)
	case l.dir == bundleDir:
		// Nothing is above a bundle's root.
		return bundleDir + path.Join("/", s)
	}
	return path.Join(l.dir, s)
}

// Files is a file or a list of files.
type Files []LocalFile

func (s *Files) decode(d *decoder, n *node, at string, f field) {
	if n.isList() {
		d.slice(n, at, f, reflect.ValueOf((*[]LocalFile)(s)).Elem())
		return
	}
	var one LocalFile
	one.decode(d, n, at, f)
	if one.Path != "" {
		*s = Files{one}
	}
}

// ClientCerts is a client certificate or a list of them.
type ClientCerts []ClientCertSection

func (s *ClientCerts) decode(d *decoder, n *node, at string, f field) {
	switch {
	case n.isList():
		d.slice(n, at, f, reflect.ValueOf((*[]ClientCertSection)(s)).Elem())
	case n.isMap():
		*s = make(ClientCerts, 1)
		d.object(n, at, reflect.ValueOf(&(*s)[0]).Elem())
	default:
		d.fault(n, at, "write {cert: FILE, key: FILE}", "found %s, want a map", d.describe(n, at))
	}
}

// secretSource is how a secret is given by reference.
type secretSource struct {
	File       string `yaml:"file" doc:"A file on the machine that runs nodeprep, relative to this profile; its last line break is dropped."`
	Env        string `yaml:"env" format:"env" doc:"An environment variable of nodeprep."`
	Credential string `yaml:"credential" format:"credential" doc:"A systemd credential of nodeprep's own service."`
}

func (s *Secret) decode(d *decoder, n *node, at string, f field) {
	switch {
	case n.isList():
		d.fault(n, at, "", "found a list, want text or a reference: {file: PATH}, {env: NAME} or {credential: NAME}")
		return
	case !n.isMap():
		text, ok := d.scalarText(n, at, false, true)
		switch {
		case !ok || text == "" && f.emptyOK:
			return
		case text == "":
			d.fault(n, at, "give it a value, or leave the key out", "the text is empty")
			return
		}
		if problem, hint := d.examine(f.format, text); problem != "" {
			d.fault(n, at, hint, "%s", problem)
			return
		}
		*s = Secret{Value: text, Origin: n.at(at)}
		return
	}
	before := len(*d.list)
	var from secretSource
	d.object(n, at, reflect.ValueOf(&from).Elem())
	given := 0
	for _, v := range []string{from.File, from.Env, from.Credential} {
		if v != "" {
			given++
		}
	}
	switch {
	case len(*d.list) > before:
	case given != 1:
		d.fault(n, at, "write {file: PATH}, {env: NAME} or {credential: NAME}", "found %d references to a secret, want one", given)
	default:
		*s = Secret{Env: from.Env, Credential: from.Credential, Origin: n.at(at)}
		if from.File != "" {
			s.File, s.FileGiven = n.layer.resolve(from.File), from.File
		}
	}
}

// Given says whether the profile has the secret at all.
func (s Secret) Given() bool { return s.Value != "" || s.Referenced() }

// HeaderValues are the values of a header: a text, a secret or a list of them.
type HeaderValues []Secret

func (s *HeaderValues) decode(d *decoder, n *node, at string, f field) {
	if n.isList() {
		d.slice(n, at, f, reflect.ValueOf((*[]Secret)(s)).Elem())
		return
	}
	var one Secret
	one.decode(d, n, at, f)
	if one.Given() {
		*s = HeaderValues{one}
	}
}

func (s *NetworkSection) decode(d *decoder, n *node, at string, _ field) {
	switch {
	case n.isMap():
		d.object(n, at, reflect.ValueOf(s).Elem())
	case n.isList():
		d.fault(n, at, "", "found a list, want none or a network: {name, subnet}")
	case n.y.Value == "none" && n.y.ShortTag() == "!!str":
		s.None = true
	default:
		d.fault(n, at, "", "found %s, want none or a network: {name, subnet}", d.describe(n, at))
	}
}

// Settings are values of a shape that another program defines: texts, booleans,
// int64, float64, []any and map[string]any.
type Settings map[string]any

func (s *Settings) decode(d *decoder, n *node, at string, _ field) {
	if !n.isMap() {
		d.fault(n, at, "", "found %s, want a map", d.describe(n, at))
		return
	}
	*s, _ = d.free(n, at).(map[string]any)
}

// free converts a value of any shape; nil where a fault leaves none.
func (d *decoder) free(n *node, at string) any {
	switch {
	case n.isMap():
		out := make(map[string]any, len(n.pairs))
		for _, p := range n.pairs {
			entry := join(at, p.key)
			if problem, hint := d.keyFault("", p.key); problem != "" {
				d.list.Errorf(p.value.layer.at(p.at, entry), hint, "%s", problem)
			}
			if p.value.isNull() {
				d.nothing(p, entry, reflect.TypeFor[any]())
				continue
			}
			d.entry(p, entry)
			if v := d.free(p.value, entry); v != nil {
				out[p.key] = v
			}
		}
		return out
	case n.isList():
		out := make([]any, 0, len(n.items))
		for i, item := range n.items {
			d.note(index(at, i), item.at(index(at, i)))
			if item.isNull() {
				d.fault(item, index(at, i), "remove it", "this item of the list is empty")
			} else if v := d.free(item, index(at, i)); v != nil {
				out = append(out, v)
			}
		}
		return out
	}
	return d.freeScalar(n, at)
}

func (d *decoder) freeScalar(n *node, at string) any {
	if sensitive(at) {
		// What would be said of the value shows it.
		var faults diag.List
		quiet := decoder{list: &faults}
		v := quiet.freeValue(n, at)
		if faults.HasErrors() {
			d.fault(n, at, "quote it", "YAML does not read this value as text")
		}
		return v
	}
	return d.freeValue(n, at)
}

func (d *decoder) freeValue(n *node, at string) any {
	s := n.y.Value
	switch n.y.ShortTag() {
	case "!!bool":
		return strings.EqualFold(s, "true")
	case "!!int":
		if i, ok := d.integer(n, at); ok {
			return i
		}
		return nil
	case "!!float":
		if octal.MatchString(s) {
			d.integer(n, at)
			return nil
		}
		var v float64
		if err := n.y.Decode(&v); err != nil || v-v != 0 { // v-v is NaN for the infinities
			d.fault(n, at, "", "%s is not a number that can be written", s)
			return nil
		}
		return v
	case "!!str":
		plain := n.y.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle) == 0
		if plain && yaml11.MatchString(s) {
			d.fault(n, at, "write true or false for a boolean, or quote it: "+strconv.Quote(s),
				"%s means something else to other YAML readers (a boolean, or a number to the base of 60)", s)
			return nil
		}
		return s
	}
	d.fault(n, at, "quote it: "+strconv.Quote(s), "YAML reads %s as %s, not as text", s, readAs(n))
	return nil
}

// sortedKeys are a map's keys in order.
func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }
