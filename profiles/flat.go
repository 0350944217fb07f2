package profiles

import (
	"net/url"
	"reflect"
	"strings"
)

// Masked stands in a flattened profile for a value that may be a secret.
const Masked = "(not kept)"

// Flat is the profile with all layers merged, in the shape in which a profile is
// written, as plain data for JSON or YAML: maps, lists, texts, booleans and numbers.
// What no layer gives is left out. It holds no secret: references stay, values that
// stand in the profile itself become Masked, and so does what only sounds like one in a
// place that other programs define.
func (p *Profile) Flat() map[string]any {
	f := flattener{known: shapes{}}
	m, _ := f.value(reflect.ValueOf(*p), "").(map[string]any)
	m["apiVersion"], m["kind"] = APIVersion, Kind
	delete(m, "extends") // it is in here
	return m
}

type flattener struct{ known shapes }

// value is nil for what the profile does not give.
func (f flattener) value(v reflect.Value, at string) any {
	switch x := v.Interface().(type) {
	case Secret:
		return flatSecret(x, at)
	case LocalFile:
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
		return f.value(v.Elem(), at)
	case reflect.Struct:
		out := map[string]any{}
		for _, field := range f.known.fields(v.Type()) {
			if x := f.value(v.FieldByIndex(field.index), join(at, field.key)); x != nil {
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
		for key, e := range v.Seq2() {
			// An entry may be empty and mean something: a registry, a runtime.
			out[key.String()] = orEmpty(f.value(e, join(at, key.String())), e)
		}
		return out
	case reflect.Slice:
		if v.IsNil() {
			return nil
		}
		out := []any{}
		for i := range v.Len() {
			out = append(out, orEmpty(f.value(v.Index(i), index(at, i)), v.Index(i)))
		}
		if strings.HasSuffix(at, ".args") {
			maskArguments(out)
		}
		return out
	case reflect.Bool:
		return v.Bool()
	case reflect.String:
		if v.String() == "" {
			return nil
		}
		if mayBeSecret(at) {
			return Masked
		}
		return plainText(v.String())
	}
	if mayBeSecret(at) {
		return Masked // a password of digits
	}
	return v.Interface()
}

// mayBeSecret judges by the names in a field's path, but for one that is no secret.
func mayBeSecret(at string) bool {
	at = strings.TrimPrefix(at, "kubelet.credentialProviders")
	return sensitive(at) || strings.Contains(strings.ToLower(at), ".auth")
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
		return nil
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

// maskArguments masks the values of a program's arguments that sound secret:
// --token=VALUE, and --token VALUE.
func maskArguments(args []any) {
	next := false
	for i, a := range args {
		s, _ := a.(string)
		name, _, valued := strings.Cut(s, "=")
		switch {
		case valued && soundsSecret(name):
			args[i] = name + "=" + Masked
		case next && !strings.HasPrefix(s, "-"):
			args[i] = Masked
		}
		next = !valued && strings.HasPrefix(s, "-") && soundsSecret(s)
	}
}
