package profiles

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
)

// Masked stands in a flattened profile for a value that may be a secret.
const Masked = "(not kept)"

// Flat is the profile with all layers merged, in the shape in which a profile is
// written, as plain data for JSON: maps, lists, texts, booleans and numbers; FromFlat
// makes a profile of it again. What no layer gives is left out. It holds no secret:
// references stay, values that stand in the profile itself become Masked, and so does
// what only sounds like one in a place that other programs define.
func (p *Profile) Flat() map[string]any {
	f := flattener{known: shapes{}}
	m, _ := f.value(reflect.ValueOf(*p), "", nil).(map[string]any)
	m["apiVersion"], m["kind"] = APIVersion, Kind
	delete(m, "extends") // it is in here
	return m
}

type flattener struct {
	known shapes
	// carry, where it is set, takes secrets and files along instead of masking them.
	carry *carrier
}

// value is nil for what the profile does not give. free are the keys on the way from a
// map whose keys other programs define; none outside of these, where the types tell what
// is secret.
func (f flattener) value(v reflect.Value, at string, free []string) any {
	switch x := v.Interface().(type) {
	case Secret:
		if f.carry != nil {
			return f.carry.secret(x, at)
		}
		return flatSecret(x, at)
	case LocalFile:
		if f.carry != nil {
			return orNil(f.carry.file(x, at))
		}
		return orNil(x.Path)
	case NetworkSection:
		if x.None {
			return "none"
		}
	}
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return f.value(v.Elem(), at, free)
	case reflect.Struct:
		out := map[string]any{}
		for _, field := range f.known.fields(v.Type()) {
			if x := f.value(v.FieldByIndex(field.index), join(at, field.key), nil); x != nil {
				out[field.key] = x
			}
		}
		if len(out) == 0 && at != "" {
			return nil
		}
		return out
	case reflect.Map:
		if v.IsNil() {
			return nil
		}
		out := map[string]any{}
		// In order, for what is counted on the way.
		for _, key := range slices.SortedFunc(v.Seq(), func(a, b reflect.Value) int { return strings.Compare(a.String(), b.String()) }) {
			e, below := v.MapIndex(key), []string(nil)
			switch v.Type().Elem().Kind() {
			case reflect.String, reflect.Interface:
				below = append(slices.Clone(free), key.String())
			}
			// An entry may be empty and mean something: a registry, a runtime.
			out[key.String()] = orEmpty(f.value(e, join(at, key.String()), below), e)
		}
		return out
	case reflect.Slice:
		if v.IsNil() {
			return nil
		}
		out := []any{}
		for i := range v.Len() {
			out = append(out, orEmpty(f.value(v.Index(i), index(at, i), free), v.Index(i)))
		}
		masked := slices.Clone(out)
		if maskArguments(masked) {
			for i := range out {
				if s, ok := out[i].(string); ok {
					out[i] = f.plain(index(at, i), s, masked[i])
				}
			}
		}
		return out
	case reflect.Bool:
		return v.Bool()
	case reflect.String:
		if v.String() == "" {
			return nil
		}
		if mayBeSecret(free, v.String()) {
			return f.plain(at, v.String(), Masked)
		}
		return f.plain(at, v.String(), maskText(v.String()))
	}
	number := v.Interface()
	if v.Kind() == reflect.Float64 {
		number = fraction(v.Float())
	}
	if mayBeSecret(free, fmt.Sprint(number)) {
		return f.plain(at, number, Masked) // a password of digits
	}
	return number
}

// plain is a value as it may be seen, unless it is taken along as it is.
func (f flattener) plain(at string, v, masked any) any {
	if f.carry == nil {
		return masked
	}
	if v != masked {
		f.carry.spoken(at)
	}
	return v
}

// fraction is a number that stays one with a point: 5.0 is not 5 to containerd.
func fraction(x float64) json.Number {
	s := strconv.FormatFloat(x, 'g', -1, 64)
	if !strings.ContainsAny(s, ".e") {
		s += ".0"
	}
	return json.Number(s)
}

// mayBeSecret judges a text or number by the keys above it in a map that is free.
func mayBeSecret(free []string, value string) bool {
	if len(free) == 0 {
		return false
	}
	return SecretNamed(free[len(free)-1], value) || slices.ContainsFunc(free, holdsSecrets) && SecretNamed("auth", value)
}

// orEmpty is x, or for an entry that is there and says nothing, its type's empty value.
func orEmpty(x any, v reflect.Value) any {
	if x != nil {
		return x
	}
	switch v.Kind() {
	case reflect.String:
		return ""
	case reflect.Slice:
		return []any{}
	case reflect.Interface:
		if v.IsNil() {
			return nil
		}
		return orEmpty(nil, v.Elem())
	}
	return map[string]any{}
}

func orNil(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func flatSecret(s Secret, at string) any {
	switch {
	case s.File != "":
		return map[string]any{"file": s.File}
	case s.Env != "":
		return map[string]any{"env": s.Env}
	case s.Credential != "":
		return map[string]any{"credential": s.Credential}
	case s.Value == "":
		return nil
	}
	if u, err := url.Parse(s.Value); strings.HasPrefix(at, "systemd.proxy.") && err == nil && u.User == nil && u.RawQuery == "" {
		return s.Value
	}
	return Masked
}

// plainText hides what stands before the host of addresses and in their queries,
// wherever they are in a text, such as an argument or a variable.
func plainText(s string) string {
	if !strings.Contains(s, "://") {
		return s
	}
	words := strings.Split(s, " ")
	for i, w := range words {
		address, _, query := strings.Cut(redact(w), "?")
		if query && strings.Contains(address, "://") {
			address += "?xxxxx"
		}
		words[i] = address
	}
	return strings.Join(words, " ")
}

// FromFlat is the profile that Flat flattened, from its JSON, for who wants to know what a
// node was meant to be: it has no place of any field, and no secret. Of what became Masked,
// a value with a field of its own is Masked still, and a value among others is not there.
// layers are the names of the layers it was merged from. The rules of the fields have been
// checked before and are not again. The error names the field that this version does not have.
func FromFlat(data []byte, layers []string) (*Profile, error) {
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.UseNumber()
	var flat map[string]any
	if err := dec.Decode(&flat); err != nil {
		return nil, fmt.Errorf("read the flattened profile: %w", err)
	}
	if flat["apiVersion"] != APIVersion || flat["kind"] != Kind {
		return nil, fmt.Errorf("read the flattened profile: it is %v %v, want %s %s", flat["apiVersion"], flat["kind"], APIVersion, Kind)
	}
	p := &Profile{layers: slices.Clone(layers)}
	u := unflattener{known: shapes{}}
	if err := u.set(reflect.ValueOf(p).Elem(), flat, ""); err != nil {
		return nil, fmt.Errorf("read the flattened profile: %w", err)
	}
	return p, nil
}

type unflattener struct{ known shapes }

// set sets v to what value made of it.
func (u unflattener) set(v reflect.Value, x any, at string) error {
	wrong := func() error { return fmt.Errorf("%s: found %s, want %s", at, jsonName(x), v.Type()) }
	switch out := v.Addr().Interface().(type) {
	case *Secret:
		if s, ok := x.(string); ok {
			*out = Secret{Value: s}
			return nil
		}
		var from secretSource
		if err := u.set(reflect.ValueOf(&from).Elem(), x, at); err != nil {
			return err
		}
		*out = Secret{File: from.File, Env: from.Env, Credential: from.Credential}
		return nil
	case *LocalFile:
		s, ok := x.(string)
		if !ok {
			return wrong()
		}
		*out = LocalFile{Path: s, Given: s}
		return nil
	case *NetworkSection:
		if out.None = x == "none"; out.None {
			return nil
		}
	case *Settings:
		m, ok := x.(map[string]any)
		if !ok {
			return wrong()
		}
		*out, _ = unflatFree(m).(map[string]any)
		return nil
	}
	switch v.Kind() {
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		return u.set(v.Elem(), x, at)
	case reflect.Struct:
		m, ok := x.(map[string]any)
		if !ok {
			return wrong()
		}
		fields := u.known.fields(v.Type())
		for _, key := range sortedKeys(m) {
			i := slices.IndexFunc(fields, func(f field) bool { return f.key == key })
			if i < 0 {
				return fmt.Errorf("%s: unknown here; a newer nodeprep wrote it", join(at, key))
			}
			if err := u.set(v.FieldByIndex(fields[i].index), m[key], join(at, key)); err != nil {
				return err
			}
		}
		return nil
	case reflect.Map:
		m, ok := x.(map[string]any)
		if !ok {
			return wrong()
		}
		out := reflect.MakeMapWithSize(v.Type(), len(m))
		for _, key := range sortedKeys(m) {
			if m[key] == Masked && v.Type().Elem().Kind() == reflect.String {
				continue
			}
			e := reflect.New(v.Type().Elem()).Elem()
			if err := u.set(e, m[key], join(at, key)); err != nil {
				return err
			}
			out.SetMapIndex(reflect.ValueOf(key), e)
		}
		v.Set(out)
		return nil
	case reflect.Slice:
		list, ok := x.([]any)
		if !ok {
			return wrong()
		}
		out := reflect.MakeSlice(v.Type(), len(list), len(list))
		for i, item := range list {
			if err := u.set(out.Index(i), item, index(at, i)); err != nil {
				return err
			}
		}
		v.Set(out)
		return nil
	}
	switch x := x.(type) {
	case bool:
		if v.Kind() == reflect.Bool {
			v.SetBool(x)
			return nil
		}
	case string:
		if v.Kind() == reflect.String {
			v.SetString(x)
			return nil
		}
	case json.Number:
		if i, err := x.Int64(); err == nil && v.Kind() == reflect.Int {
			v.SetInt(i)
			return nil
		}
	}
	return wrong()
}

// unflatFree is a value among settings, without what was masked in a map.
func unflatFree(x any) any {
	switch x := x.(type) {
	case map[string]any:
		out := make(map[string]any, len(x))
		for key, e := range x {
			if e != Masked {
				out[key] = unflatFree(e)
			}
		}
		return out
	case []any:
		out := make([]any, len(x))
		for i, e := range x {
			out[i] = unflatFree(e)
		}
		return out
	case json.Number:
		if i, err := x.Int64(); err == nil {
			return i
		}
		f, _ := x.Float64() // JSON's numbers are Go's
		return f
	}
	return x
}

// jsonName is the kind of a value, which itself may be long.
func jsonName(x any) string {
	switch x.(type) {
	case nil:
		return "nothing"
	case bool:
		return "a boolean"
	case string:
		return "a text"
	case json.Number:
		return "a number"
	case []any:
		return "a list"
	}
	return "a map"
}
