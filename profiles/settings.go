package profiles

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// settingsAt is the field of the free part of containerd's configuration.
const settingsAt = "containerd.settings"

// Names of the plugins that are CRI: criPlugin is all of it in schema 2, and serves
// what the others do from schema 3 on.
const (
	criPlugin  = "io.containerd.grpc.v1.cri"
	criImages  = "io.containerd.cri.v1.images"
	criRuntime = "io.containerd.cri.v1.runtime"
)

// settings checks the free part of containerd's configuration against the release.
func (r *resolver) settings() {
	settings := r.spec.Containerd.Settings
	for _, key := range sortedKeys(settings) {
		if !releases.KnownSection(r.spec.Containerd.Version, key) {
			r.warn(join(settingsAt, key), "", "containerd %s does not know %s at the top of its configuration, and ignores it", r.spec.Containerd.Version, quote(key))
		}
	}
	r.list = append(r.list, r.settingsKeys(releases.NewSettingTypes(), settings, nil, settingsAt)...)
	r.dedicatedSettings()
	r.plugins()
	r.imports()
	r.settingsRuntimes()
}

// settingsKeys finds every key that the release does not have, and every value of a
// type that it refuses. A table without a place is reported by its keys where each of
// them has gone somewhere else. No message has a value: it may be a secret.
func (r *resolver) settingsKeys(types releases.SettingTypes, m map[string]any, above []string, at string) diag.List {
	var out diag.List
	v := r.spec.Containerd.Version
	for _, key := range sortedKeys(m) {
		here, place := append(slices.Clone(above), key), join(at, key)
		var within diag.List
		if sub, ok := m[key].(map[string]any); ok {
			within = r.settingsKeys(types, sub, here, place)
		}
		if releases.UnreadableKey(v, key) {
			out.Errorf(r.at(place), "", "containerd %s cannot read a key with these characters in it", v)
		}
		hint, fault := releases.SettingsFault(v, here)
		general := slices.ContainsFunc(within, func(d diag.Diagnostic) bool { return d.Hint == hint })
		switch {
		case fault && (len(within) == 0 || general):
			out.Errorf(r.at(place), hint, "containerd %s cannot have this key", v)
			continue
		case !fault:
			if problem, hint := typeFault(types.Of(here), m[key]); problem != "" {
				out.Errorf(r.at(place), hint, "%s", problem)
			}
		}
		out = append(out, within...)
	}
	return out
}

// typeFault says what is wrong with the type of a setting, "" if nothing is.
func typeFault(want releases.ValueType, v any) (problem, hint string) {
	found := typeName(v)
	switch want {
	case releases.AnyValue:
		return "", ""
	case releases.DurationValue:
		s, ok := v.(string)
		if _, err := time.ParseDuration(s); ok && err == nil {
			return "", ""
		}
		if ok {
			found = "another text"
		}
		return fmt.Sprintf("found %s, want a duration", found), "such as 5s"
	case releases.TextsValue:
		list, ok := v.([]any)
		if ok && !slices.ContainsFunc(list, func(e any) bool { _, text := e.(string); return !text }) {
			return "", ""
		}
		if ok {
			found = "a list of other things"
		}
		return fmt.Sprintf("found %s, want a list of texts", found), ""
	}
	if found == string(want) {
		return "", ""
	}
	problem = fmt.Sprintf("found %s, want %s", found, want)
	switch {
	case want == releases.MapValue:
		problem += ": containerd has a table there"
	case want == releases.TextValue && (found == string(releases.NumberValue) || found == string(releases.BooleanValue)):
		hint = "quote it"
	case want == releases.BooleanValue && found == string(releases.TextValue):
		hint = "write true or false, without quotes"
	case want == releases.NumberValue && found == string(releases.TextValue):
		hint = "write it without quotes"
	}
	return problem, hint
}

func typeName(v any) string {
	switch v.(type) {
	case map[string]any:
		return string(releases.MapValue)
	case []any:
		return "a list"
	case string:
		return string(releases.TextValue)
	case bool:
		return string(releases.BooleanValue)
	case int, int64:
		return string(releases.NumberValue)
	}
	return "a fraction"
}

// dedicatedSettings finds settings that say something else than a field.
func (r *resolver) dedicatedSettings() {
	for _, d := range r.dedicated(releases.ConfigSchema(r.spec.Containerd.Version)) {
		v, place, found := lookup(r.spec.Containerd.Settings, d.path, settingsAt)
		if !found || place != join(settingsAt, strings.Join(d.path, ".")) || typeName(v) != typeName(d.value) || fmt.Sprint(v) == fmt.Sprint(d.value) {
			continue // another type was reported as such
		}
		field, given := d.field, d.value
		if d.field == "containerd.cgroupDriver" {
			given, v = driver(given), driver(v)
		}
		if !d.relied {
			r.warn(place, "set "+field+" instead", "this contradicts %s, which is %v, and wins", field, given)
			continue
		}
		// What listens, is checked or is told to others follows the field.
		hint := fmt.Sprintf("set %s: %v instead", field, v)
		if d.derived {
			hint = "set " + field + " instead"
		}
		r.fault(place, hint, "this contradicts %s, by which nodeprep makes it %v", field, given)
	}
}

// driver is SystemdCgroup as containerd.cgroupDriver has it.
func driver(systemd any) string {
	if systemd == true {
		return "systemd"
	}
	return "cgroupfs"
}

// plugins checks the lists of plugins, which hold full URIs
// (containerd's ValidateVersion and ValidateV2).
func (r *resolver) plugins() {
	settings := r.spec.Containerd.Settings
	required := texts(settings["required_plugins"])
	for _, list := range []string{"disabled_plugins", "required_plugins"} {
		for i, p := range texts(settings[list]) {
			at := index(join(settingsAt, list), i)
			switch {
			case !strings.Contains(p, "."):
				hint := "write the full URI, such as " + criPlugin
				if p != "cri" {
					hint = "write the full URI, such as io.containerd.snapshotter.v1.zfs"
				}
				r.fault(at, hint, "containerd refuses the plugin name %s", quote(p))
			case list == "disabled_plugins" && slices.Contains(required, p):
				r.fault(at, "remove it from one of the two", "the plugin %s is required and disabled, so containerd does not start", p)
			case list == "disabled_plugins" && slices.Contains([]string{criPlugin, criImages, criRuntime}, p):
				r.warn(at, "", "this disables CRI, so the node serves no kubelet")
			}
		}
	}
}

// imports finds files that containerd refuses to start without: a pattern may match
// nothing (containerd's resolveImports takes a "*" for one).
func (r *resolver) imports() {
	for i, file := range texts(r.spec.Containerd.Settings["imports"]) {
		if !strings.Contains(file, "*") {
			r.fault(index(join(settingsAt, "imports"), i), "write a pattern, such as "+quote(file+"*"),
				"containerd does not start where this file is missing, and nodeprep does not write it")
		}
	}
}

// settingsRuntimes finds a runtime that is declared by settings alone, without a type.
func (r *resolver) settingsRuntimes() {
	path := []string{"plugins", criRuntime, "containerd", "runtimes"}
	if releases.ConfigSchema(r.spec.Containerd.Version) == 2 {
		path[1] = criPlugin
	}
	v, place, _ := lookup(r.spec.Containerd.Settings, path, settingsAt)
	runtimes, _ := v.(map[string]any)
	if place != join(settingsAt, strings.Join(path, ".")) {
		return
	}
	for _, name := range sortedKeys(runtimes) {
		rt, ok := runtimes[name].(map[string]any)
		typ, given := rt["runtime_type"]
		if !ok || given && typ != "" || !given && slices.ContainsFunc(r.spec.Containerd.Runtimes, func(o Runtime) bool { return o.Name == name }) {
			continue
		}
		r.fault(join(place, name)+".runtime_type", "such as "+runcType, "runtime %s has no runtime_type, so no pod of it starts", quote(name))
	}
}

func texts(v any) []string {
	list, _ := v.([]any)
	out := make([]string, len(list))
	for i, e := range list {
		out[i], _ = e.(string)
	}
	return out
}

// dedicatedKey is a key of config.toml that a field of the profile writes.
type dedicatedKey struct {
	path  []string
	field string
	value any
	// relied says that more than config.toml follows the field, which must then be
	// what says it.
	relied bool
	// derived says that the value is made of the field's, and is not the field's own.
	derived bool
}

func (r *resolver) dedicated(schema int) []dedicatedKey {
	c := r.spec.Containerd
	images, runtime := []string{"plugins", criImages}, []string{"plugins", criRuntime}
	sandbox, snapshotter := []string{"pinned_images", "sandbox"}, []string{"snapshotter"}
	if schema == 2 {
		images, runtime = []string{"plugins", criPlugin}, []string{"plugins", criPlugin}
		sandbox, snapshotter = []string{"sandbox_image"}, []string{"containerd", "snapshotter"}
	}
	under := func(base []string, more ...string) []string { return append(slices.Clone(base), more...) }
	out := []dedicatedKey{
		{path: []string{"root"}, field: "containerd.root", value: c.Root, relied: true},
		{path: []string{"state"}, field: "containerd.state", value: c.State, relied: true},
		{path: []string{"oom_score"}, field: "containerd.oomScore", value: int64(c.OOMScore), relied: true},
		{path: under(images, sandbox...), field: "containerd.sandboxImage", value: c.SandboxImage, relied: true},
		{path: under(images, snapshotter...), field: "containerd.snapshotter", value: c.Snapshotter, relied: true},
		{path: under(runtime, "containerd", "default_runtime_name"), field: "containerd.defaultRuntime", value: c.DefaultRuntime, relied: true},
	}
	if schema == 4 {
		out = append(out,
			dedicatedKey{path: []string{"plugins", "io.containerd.server.v1.grpc", "address"}, field: "containerd.address", value: c.Address, relied: true},
			dedicatedKey{path: []string{"plugins", "io.containerd.server.v1.ttrpc", "address"}, field: "containerd.address", value: c.Address + ".ttrpc", relied: true, derived: true})
	} else {
		out = append(out, dedicatedKey{path: []string{"grpc", "address"}, field: "containerd.address", value: c.Address, relied: true})
	}
	for _, rt := range c.Runtimes {
		base, field := under(runtime, "containerd", "runtimes", rt.Name), "containerd.runtimes."+rt.Name
		out = append(out, dedicatedKey{path: under(base, "runtime_type"), field: field + ".type", value: rt.Type})
		if rt.Type != runcType {
			continue
		}
		if rt.Options["SystemdCgroup"] == nil {
			out = append(out, dedicatedKey{path: under(base, "options", "SystemdCgroup"), field: "containerd.cgroupDriver", value: c.SystemdCgroup, relied: rt.Name == "runc"})
		}
		if rt.Options["BinaryName"] == nil {
			out = append(out, dedicatedKey{path: under(base, "options", "BinaryName"), field: field + ".path", value: rt.Path})
		}
	}
	for _, p := range c.ProxyPlugins {
		base, field := []string{"proxy_plugins", p.Name}, "containerd.proxyPlugins."+p.Name
		out = append(out,
			dedicatedKey{path: under(base, "type"), field: field + ".type", value: p.Type},
			dedicatedKey{path: under(base, "address"), field: field + ".address", value: p.Address})
	}
	return out
}

// lookup follows keys through maps. It ends early, with the value and its place,
// where one that is no map is in the way.
func lookup(m map[string]any, keys []string, at string) (v any, place string, found bool) {
	for i, key := range keys {
		if v, found = m[key]; !found {
			return nil, "", false
		}
		at = join(at, key)
		sub, ok := v.(map[string]any)
		if i == len(keys)-1 || !ok {
			return v, at, true
		}
		m = sub
	}
	return nil, "", false
}
