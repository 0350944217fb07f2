package profiles

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Schema is the profile format as JSON Schema (draft 2020-12), indented. It is made
// of the types that the decoder fills, and says as much of their rules as JSON Schema
// can. null is allowed wherever it would remove an inherited key.
func Schema() ([]byte, error) {
	g := &generator{defs: object{}}
	root := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"$id", "https://github.com/nodeprep/nodeprep/profile.schema.json"},
		{"title", Kind},
		{"description", "A node profile of nodeprep, " + APIVersion + ". Every field has a default; an empty profile is a working node."},
	}
	root = append(root, orNull(g.object(reflect.TypeFor[Profile]()))...)
	slices.SortFunc(g.defs, func(a, b member) int { return strings.Compare(a.name, b.name) })
	root = append(root, member{"$defs", g.defs})
	raw, err := root.MarshalJSON()
	if err != nil {
		return nil, fmt.Errorf("write the schema: %w", err)
	}
	var b bytes.Buffer
	if err := json.Indent(&b, raw, "", "  "); err != nil {
		return nil, fmt.Errorf("write the schema: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON writes the members in order.
func (o object) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		value, err := plainJSON(m.value)
		if err != nil {
			return nil, err
		}
		b.Write(name)
		b.WriteByte(':')
		b.Write(value)
	}
	b.WriteByte('}')
	return b.Bytes(), nil
}

// plainJSON is json.Marshal without escapes for HTML, which patterns would be full of.
func plainJSON(v any) ([]byte, error) {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	return bytes.TrimSpace(b.Bytes()), nil
}

// generator makes schemas of types; structs are defined once, under $defs.
type generator struct{ defs object }

// property is the schema of a field, with its documentation, null included.
func (g *generator) property(f field) object {
	s := orNull(g.value(f.typ, f))
	var about object
	if f.doc != "" {
		about = append(about, member{"description", f.doc})
	}
	if v := f.defaultValue(); v != nil {
		about = append(about, member{"default", v})
	}
	if len(f.examples) > 0 {
		about = append(about, member{"examples", f.examples})
	}
	return append(about, s...)
}

// defaultValue is the default tag as the JSON value it stands for.
func (f field) defaultValue() any {
	switch t := f.typ; {
	case f.def == "":
		return nil
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Bool:
		return f.def == "true"
	case t.Kind() == reflect.Pointer && t.Elem().Kind() == reflect.Int:
		n, err := strconv.Atoi(f.def)
		if err != nil {
			return nil
		}
		return n
	case t.Kind() == reflect.Slice:
		return strings.Split(strings.Trim(f.def, "[]"), ", ")
	}
	return f.def
}

// value is the schema of a type, with the rules of the field that holds it.
func (g *generator) value(t reflect.Type, f field) object {
	if c, ok := reflect.New(t).Interface().(custom); ok {
		return c.schema(g, f)
	}
	switch t.Kind() {
	case reflect.Pointer:
		return g.value(t.Elem(), f)
	case reflect.Struct:
		return g.ref(t)
	case reflect.Map:
		elem := f
		elem.keys = ""
		s := object{{"type", "object"}}
		if keys := formatOf(f.keys).pattern; keys != "" {
			s = append(s, member{"propertyNames", object{{"pattern", keys}}})
		}
		return append(s, member{"additionalProperties", orNull(g.value(t.Elem(), elem))})
	case reflect.Slice:
		return object{{"type", "array"}, {"items", g.value(t.Elem(), f)}}
	case reflect.Bool:
		return object{{"type", "boolean"}}
	case reflect.Int:
		s := object{{"type", "integer"}}
		if f.minimum != nil {
			s = append(s, member{"minimum", *f.minimum})
		}
		if f.maximum != nil {
			s = append(s, member{"maximum", *f.maximum})
		}
		return s
	}
	return text(f)
}

// text is the schema of a string with a field's rules.
func text(f field) object {
	if len(f.enum) > 0 {
		return object{{"enum", f.enum}}
	}
	s := object{{"type", "string"}}
	if f.acceptInt {
		s = object{{"type", []string{"string", "integer"}}}
	}
	pattern := formatOf(f.format).pattern
	switch {
	case f.emptyOK && pattern != "":
		return append(s, member{"pattern", "^$|" + pattern})
	case pattern != "":
		return append(s, member{"pattern", pattern})
	case !f.emptyOK:
		return append(s, member{"minLength", 1})
	}
	return s
}

// ref defines a struct and refers to it.
func (g *generator) ref(t reflect.Type) object {
	name := strings.TrimSuffix(t.Name(), "Section")
	if strings.ToUpper(name) == name {
		name = strings.ToLower(name)
	}
	name = strings.ToLower(name[:1]) + name[1:]
	if !slices.ContainsFunc(g.defs, func(m member) bool { return m.name == name }) {
		i := len(g.defs)
		g.defs = append(g.defs, member{name, nil}) // first, so that a type may hold itself
		g.defs[i].value = g.object(t)
	}
	return object{{"$ref", "#/$defs/" + name}}
}

// object is the schema of a struct.
func (g *generator) object(t reflect.Type) object {
	var properties object
	var required []string
	for _, f := range fieldsOf(t) {
		properties = append(properties, member{f.key, g.property(f)})
		if f.required && inList(t) {
			required = append(required, f.key)
		}
	}
	s := object{{"type", "object"}, {"additionalProperties", false}, {"properties", properties}}
	if required != nil {
		s = append(s, member{"required", required})
	}
	if t == reflect.TypeFor[secretSource]() {
		s = append(s, member{"minProperties", 1}, member{"maxProperties", 1})
	}
	return s
}

// inList says whether a struct is only ever an item of a list. Lists replace, so
// that nothing can be inherited in them and what is required must be there.
func inList(t reflect.Type) bool {
	return t == reflect.TypeFor[MirrorSection]() || t == reflect.TypeFor[ImageSection]() || t == reflect.TypeFor[CredentialProviderSection]()
}

// orNull allows null beside what a schema allows.
func orNull(s object) object {
	for i, m := range s {
		switch v := m.value.(type) {
		case string:
			if m.name == "type" {
				s[i].value = []string{v, "null"}
				return s
			}
		case []string:
			switch m.name {
			case "type":
				s[i].value = append(slices.Clone(v), "null")
				return s
			case "enum":
				values := make([]any, 0, len(v)+1)
				for _, e := range v {
					values = append(values, e)
				}
				s[i].value = append(values, nil)
				return s
			}
		case []object:
			if m.name == "anyOf" {
				s[i].value = append(slices.Clone(v), object{{"type", "null"}})
				return s
			}
		}
	}
	return object{{"anyOf", []object{s, {{"type", "null"}}}}}
}

// oneOrMany is the schema of a value or a list of such values.
func oneOrMany(one object) object {
	return object{{"anyOf", []object{one, {{"type", "array"}, {"items", one}}}}}
}

func (*Strings) schema(_ *generator, f field) object { return oneOrMany(text(f)) }

func (*LocalFile) schema(*generator, field) object {
	return object{{"type", "string"}, {"minLength", 1}}
}

func (*Files) schema(g *generator, f field) object { return oneOrMany(new(LocalFile).schema(g, f)) }

func (*ClientCerts) schema(g *generator, _ field) object {
	return oneOrMany(g.ref(reflect.TypeFor[ClientCertSection]()))
}

func (*Secret) schema(g *generator, f field) object {
	return object{{"anyOf", []object{text(f), g.ref(reflect.TypeFor[secretSource]())}}}
}

func (*HeaderValues) schema(g *generator, f field) object {
	return oneOrMany(new(Secret).schema(g, f))
}

func (*NetworkSection) schema(g *generator, _ field) object {
	return object{{"anyOf", []object{{{"enum", []string{"none"}}}, g.object(reflect.TypeFor[NetworkSection]())}}}
}

func (*Settings) schema(*generator, field) object { return object{{"type", "object"}} }
