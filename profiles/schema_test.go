package profiles

import (
	"bytes"
	"encoding/json"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"gopkg.in/yaml.v3"
)

func profileType() reflect.Type { return reflect.TypeFor[Profile]() }

// compiled is the schema in an independent validator.
func compiled(t *testing.T) *jsonschema.Schema {
	t.Helper()
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("profile.schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("profile.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// asJSON converts a profile as editors and other tools do.
func asJSON(t *testing.T, text []byte) any {
	t.Helper()
	var v any
	if err := yaml.Unmarshal(text, &v); err != nil {
		t.Fatal(err)
	}
	raw, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

func TestSchemaAcceptsShippedProfiles(t *testing.T) {
	s := compiled(t)
	texts := map[string][]byte{"empty": nil}
	for _, name := range examples(t) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		texts[name] = data
	}
	for _, name := range BuiltIns() {
		texts[name], _ = builtIn(name)
	}
	texts["starter"] = starter
	texts["uncommented starter"] = []byte(strings.ReplaceAll("\n"+string(starter), "\n#", "\n"))
	texts["removals"] = []byte("host: null\ncontainerd: {root: null, cgroupDriver: null, oomScore: null, settings: {a: null}}\nregistries: {a: null}\nsystemd: {environment: {A: null, B: 1}, limitNOFILE: 5}\n")
	for name, text := range texts {
		if err := s.Validate(asJSON(t, text)); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// What the schema can say, it says: these are faults to it as they are to the decoder.
func TestSchemaRefusesFaults(t *testing.T) {
	s := compiled(t)
	for _, text := range []string{
		"- a", "a: b", "apiVersion: v1", "kind: Pod", "containerd: []", "containerd: {vresion: 2.3.4}", "containerd: {version: 2}", "containerd: {version: latest}",
		"containerd: {version: \"2.3\"}", "runc: {version: none}", "containerd: {variant: musl}", "containerd: {root: relative}", "containerd: {oomScore: 1001}",
		"containerd: {oomScore: \"1\"}", "containerd: {runtimes: {\"a b\": {}}}", "containerd: {runtimes: {a: {path: crun}}}", "containerd: {settings: [a]}",
		"containerd: {proxyPlugins: {a: {type: snapshotter}}}", "runc: {sha256: {amd64: abc}}", "runc: {sha256: {x86_64: " + strings.Repeat("ab", 32) + "}}",
		"kubernetes: {version: 1.36}", "kubernetes: {version: \"2\"}", "cni: {network: bridge}", "cni: {network: {subnet: [5]}}", "cni: {network: {bridge: a/b}}",
		"registries: {\"https://a\": {}}", "registries: {a: {upstream: maybe}}", "registries: {a: {mirrors: [{}]}}", "registries: {a: {mirrors: [{url: \"ftp://m\"}]}}",
		"registries: {a: {mirrors: [{url: \"https://m\", capabilities: [list]}]}}", "registries: {a: {mirrors: [{url: \"https://m\", header: {X: 5}}]}}",
		"registries: {a: {header: {\"X Y\": z}}}", "registries: {a: {dialTimeout: 5}}", "registries: {a: {dialTimeout: \"5\"}}", "registries: {a: {skipVerify: \"no\"}}",
		"registries: {a: {auth: {password: {env: A, file: b}}}}", "registries: {a: {auth: {password: {vault: A}}}}", "registries: {a: {auth: {password: 5}}}", "registries: {a: {auth: {password: {}}}}",
		"registries: {a: {client: c.pem}}", "systemd: {delegate: \"yes\"}", "systemd: {killMode: all}", "systemd: {limitNOFILE: 1M}", "systemd: {environment: {A-B: x}}",
		"systemd: {environment: {A: true}}", "systemd: {after: [network]}", "systemd: {requiresMountsFor: [a]}", "systemd: {proxy: {http: \"proxy:3128\"}}",
		"host: {modules: overlay}", "host: {modules: [\"a b\"]}", "host: {sysctl: {a.b: true}}", "host: {sysctl: {a.b: 1.5}}", "host: {sysctl: {\"a b\": \"1\"}}",
		"images: [{pin: true}]", "images: [{file: a, pin: 1}]", "images: {}", "sources: [{url: \"ftp://m/{file}\"}]", "kubelet: {credentialProviders: [{name: a}]}",
		"generations: 0", "generations: 1.5", "checks: {skip: [\"A B\"]}", "extends: 5", "extends: \"\"",
	} {
		if err := s.Validate(asJSON(t, []byte(text))); err == nil {
			t.Errorf("the schema accepts %s", text)
		}
		if list := findings(text); !list.HasErrors() {
			t.Errorf("the decoder accepts %s", text)
		}
	}
}

// The schema has exactly the keys that the decoder knows, each with a description.
func TestSchemaKeys(t *testing.T) {
	text, err := Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root map[string]any
	if err := json.Unmarshal(text, &root); err != nil {
		t.Fatal(err)
	}
	defs := root["$defs"].(map[string]any)
	var inSchema []string
	var walk func(s map[string]any, at string)
	walk = func(s map[string]any, at string) {
		if ref, ok := s["$ref"].(string); ok {
			walk(defs[strings.TrimPrefix(ref, "#/$defs/")].(map[string]any), at)
		}
		for _, alternative := range asList(s["anyOf"]) {
			walk(alternative.(map[string]any), at)
		}
		if items, ok := s["items"].(map[string]any); ok {
			walk(items, at+"[]")
		}
		switch more := s["additionalProperties"].(type) {
		case map[string]any:
			walk(more, join(at, "NAME"))
		case nil:
			if s["properties"] != nil {
				t.Errorf("%s: other keys are allowed", at)
			}
		}
		properties, _ := s["properties"].(map[string]any)
		for key, v := range properties {
			p := v.(map[string]any)
			if d, _ := p["description"].(string); !strings.HasSuffix(d, ".") {
				t.Errorf("%s: the description %q is no sentence", join(at, key), d)
			}
			inSchema = append(inSchema, join(at, key))
			walk(p, join(at, key))
		}
	}
	walk(root, "")

	var inTypes []string
	var types func(typ reflect.Type, at string)
	types = func(typ reflect.Type, at string) {
		switch typ {
		case reflect.TypeFor[Secret]():
			typ = reflect.TypeFor[secretSource]()
		case reflect.TypeFor[LocalFile](), reflect.TypeFor[Settings]():
			return
		}
		switch typ.Kind() {
		case reflect.Pointer:
			types(typ.Elem(), at)
		case reflect.Slice:
			types(typ.Elem(), at+"[]")
			switch typ {
			case reflect.TypeFor[HeaderValues](), reflect.TypeFor[ClientCerts]():
				types(typ.Elem(), at)
			}
		case reflect.Map:
			types(typ.Elem(), join(at, "NAME"))
		case reflect.Struct:
			for _, f := range fieldsOf(typ) {
				inTypes = append(inTypes, join(at, f.key))
				types(f.typ, join(at, f.key))
			}
		}
	}
	types(profileType(), "")

	slices.Sort(inSchema)
	slices.Sort(inTypes)
	inSchema, inTypes = slices.Compact(inSchema), slices.Compact(inTypes)
	if !slices.Equal(inSchema, inTypes) {
		for _, k := range inTypes {
			if !slices.Contains(inSchema, k) {
				t.Errorf("the schema lacks %s", k)
			}
		}
		for _, k := range inSchema {
			if !slices.Contains(inTypes, k) {
				t.Errorf("the decoder lacks %s", k)
			}
		}
	}
	if len(inTypes) < 100 {
		t.Errorf("only %d keys were compared", len(inTypes))
	}
}

func asList(v any) []any { l, _ := v.([]any); return l }

// Each key of each type is decoded: none is left out by a missing case.
func TestEveryFormatExists(t *testing.T) {
	var walk func(typ reflect.Type)
	walk = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			walk(typ.Elem())
		case reflect.Struct:
			for _, f := range fieldsOf(typ) {
				for _, name := range []string{f.format, f.keys} {
					if format := formatOf(name); name != "" && format.what == "" {
						t.Errorf("%s: the format %s does not say what it wants", f.key, name)
					}
				}
				for _, e := range f.examples {
					if problem, _ := new(decoder).examine(f.format, e); problem != "" {
						t.Errorf("%s: the example is a fault: %s", f.key, problem)
					}
				}
				walk(f.typ)
			}
		}
	}
	walk(profileType())
	walk(reflect.TypeFor[secretSource]())
}
