package render

import (
	"maps"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

// merger puts a profile's containerd.settings over what we render: tables key by key
// at any depth, lists and values as a whole, null takes a key away. A value of another
// type than ours is a fault: containerd would refuse the file, or drop the section.
type merger struct {
	spec   *profiles.Spec
	faults *diag.List
}

func (m merger) origin(at []string) diag.Origin {
	return m.spec.Origin("containerd.settings." + strings.Join(at, "."))
}

func (m merger) merge(dst table, src map[string]any, at []string) {
	for _, k := range slices.Sorted(maps.Keys(src)) {
		here := append(slices.Clone(at), k)
		if len(here) == 1 && k == "version" {
			if schema := releases.ConfigSchema(m.spec.Containerd.Version); kind(src[k]) != "integer" || number(src[k]) != int64(schema) {
				m.faults.Errorf(m.origin(here), "leave it out", "containerd %s has config version %d, chosen by containerd.version", m.spec.Containerd.Version, schema)
			}
			continue
		}
		if src[k] == nil {
			delete(dst, k)
			continue
		}
		value, ok := m.value(src[k], here)
		if !ok {
			continue
		}
		have, both := dst[k]
		if both && kind(have) != kind(value) {
			m.faults.Errorf(m.origin(here), "", "want %s here, as nodeprep renders it, not %s", article(kind(have)), article(kind(value)))
			continue
		}
		if sub, ok := have.(table); ok {
			m.merge(sub, src[k].(map[string]any), here)
			continue
		}
		dst[k] = value
	}
}

// value is a copy of a setting in the types that go-toml writes one way only.
func (m merger) value(v any, at []string) (any, bool) {
	switch v := v.(type) {
	case string, bool, int64, float64:
		return v, true
	case int:
		return int64(v), true
	case map[string]any:
		out := table{}
		m.merge(out, v, at)
		return out, true
	case []any:
		out := make([]any, 0, len(v))
		for _, e := range v {
			if e == nil {
				m.faults.Errorf(m.origin(at), "", "TOML has no null, which is in this list")
				return nil, false
			}
			c, ok := m.value(e, at)
			if !ok {
				return nil, false
			}
			out = append(out, c)
		}
		return out, true
	}
	m.faults.Errorf(m.origin(at), "want a string, number, boolean, list or table", "a %T cannot be written as TOML", v)
	return nil, false
}

// kind is TOML's name of a value's type.
func kind(v any) string {
	switch v.(type) {
	case map[string]any:
		return "table"
	case []any:
		return "list"
	case string:
		return "string"
	case bool:
		return "boolean"
	case int, int64:
		return "integer"
	case float64:
		return "float"
	}
	return "unknown"
}

func article(kind string) string {
	if kind == "integer" {
		return "an " + kind
	}
	return "a " + kind
}

func number(v any) int64 {
	if n, ok := v.(int); ok {
		return int64(n)
	}
	n, _ := v.(int64)
	return n
}

// check finds what each key allows and all of them together do not: what makes the
// daemon or its CRI plugin fail at start.
func (m merger) check(tree table) {
	// profiles.Resolve finds these, too, together with all else; a Spec may come from elsewhere.
	for _, list := range []string{"disabled_plugins", "required_plugins"} {
		for _, p := range names(tree[list]) {
			if !strings.Contains(p, ".") {
				m.faults.Errorf(m.origin([]string{list}), "write the full URI, such as "+cri, "containerd refuses the plugin name %q", p)
			}
		}
	}
	if disabled := names(tree["disabled_plugins"]); len(disabled) > 0 {
		// Who disables CRI wants a daemon without it.
		_, own := m.spec.Containerd.Settings["required_plugins"]
		if !own && slices.ContainsFunc(disabled, func(p string) bool { return p == cri || p == criImages || p == criRuntime }) {
			delete(tree, "required_plugins")
		}
	}
	section := []string{"plugins", criRuntime, "containerd"}
	if releases.ConfigSchema(m.spec.Containerd.Version) == 2 {
		section[1] = cri
	}
	containerd := lookup(tree, section...)
	runtimes, _ := containerd["runtimes"].(table)
	for _, name := range slices.Sorted(maps.Keys(runtimes)) {
		rt, _ := runtimes[name].(table)
		if t, _ := rt["runtime_type"].(string); t == "" {
			m.faults.Errorf(m.origin(append(section, "runtimes", name, "runtime_type")), "such as io.containerd.runc.v2",
				"runtime %s has no runtime_type, so no pod of it starts", name)
		}
	}
	if name, _ := containerd["default_runtime_name"].(string); runtimes[name] == nil {
		at := m.spec.Origin("containerd.defaultRuntime")
		if lookup(m.spec.Containerd.Settings, section...)["default_runtime_name"] != nil {
			at = m.origin(append(section, "default_runtime_name"))
		}
		m.faults.Errorf(at, "name one of "+strings.Join(slices.Sorted(maps.Keys(runtimes)), ", "), "there is no runtime %q", name)
	}
}

func names(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, e := range list {
		if s, ok := e.(string); ok {
			out = append(out, s)
		}
	}
	return out
}

func lookup(t map[string]any, names ...string) map[string]any {
	for _, n := range names {
		t, _ = t[n].(map[string]any)
	}
	return t
}
