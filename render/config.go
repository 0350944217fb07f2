package render

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

// Plugins whose sections we write. cri is all of CRI in schema 2; from schema 3 on it
// is the service that serves what criImages and criRuntime do.
const (
	cri        = "io.containerd.grpc.v1.cri"
	criImages  = "io.containerd.cri.v1.images"
	criRuntime = "io.containerd.cri.v1.runtime"
	grpcServer = "io.containerd.server.v1.grpc"
	ttrpc      = "io.containerd.server.v1.ttrpc"
	transfer   = "io.containerd.transfer.v1.local"
)

const (
	confD      = "/etc/containerd/conf.d/*.toml"
	cniConfDir = "/etc/cni/net.d"
	cniBinDir  = "/opt/cni/bin"
)

// table is a TOML table; go-toml writes its keys sorted, values before tables.
type table = map[string]any

// configFile is config.toml: what the profile says by name, then its settings on top.
func configFile(spec *profiles.Spec, r registry.Reader) (desired.File, diag.List) {
	f := desired.File{
		Path: ConfigPath, Mode: 0o644, Format: desired.FormatTOML, Effect: desired.EffectRestart,
		Origin: spec.Origin("containerd"),
	}
	var faults diag.List
	tree := configTree(spec)
	if configs := credentials(spec, r, &faults); len(configs) > 0 {
		section(tree, "plugins", imageSection(spec), "registry")["configs"] = configs
		f.Mode, f.Secret = 0o600, true
	}
	if freeSecret(spec) {
		f.Mode, f.Secret = 0o600, true
	}
	m := merger{spec: spec, faults: &faults}
	m.merge(tree, spec.Containerd.Settings, nil)
	unpackers(spec, tree)
	if !faults.HasErrors() {
		m.check(tree)
	}
	content, err := encodeConfig(spec.Containerd.Version, tree)
	if err != nil {
		faults.Errorf(f.Origin, "", "render %s: %v", f.Path, err)
	}
	if !faults.HasErrors() {
		f.Content = content
	}
	return f, faults
}

// freeSecret says whether a secret is among what others define and goes into config.toml.
func freeSecret(spec *profiles.Spec) bool {
	c := spec.Containerd
	return profiles.HasSecret(c.Settings) ||
		slices.ContainsFunc(c.Runtimes, func(r profiles.Runtime) bool { return profiles.HasSecret(r.Options) }) ||
		slices.ContainsFunc(c.ProxyPlugins, func(p profiles.ProxyPlugin) bool { return profiles.HasSecret(p.Exports) })
}

// configTree is what the named fields of a profile come to.
func configTree(spec *profiles.Spec) table {
	c := spec.Containerd
	tree := table{
		"root":      c.Root,
		"state":     c.State,
		"oom_score": int64(c.OOMScore),
		// A daemon whose CRI does not load fails, with its reason, and is tried again.
		"required_plugins": []any{cri},
	}
	if c.Version.AtLeast(2, 0, 0) {
		tree["imports"] = []any{confD}
	}
	if releases.ConfigSchema(c.Version) >= 4 {
		// Top-level [grpc] and [ttrpc] are read and not applied in schema 4, and the
		// ttrpc address is no longer derived from the other.
		section(tree, "plugins", grpcServer)["address"] = c.Address
		section(tree, "plugins", ttrpc)["address"] = c.Address + ".ttrpc"
	} else {
		section(tree, "grpc")["address"] = c.Address
	}

	// In schema 2 CRI is one plugin.
	images := section(tree, "plugins", imageSection(spec))
	runtime := images
	if releases.ConfigSchema(c.Version) == 2 {
		images["sandbox_image"] = c.SandboxImage
		section(images, "containerd")["snapshotter"] = c.Snapshotter
	} else {
		runtime = section(tree, "plugins", criRuntime)
		section(images, "pinned_images")["sandbox"] = c.SandboxImage
		images["snapshotter"] = c.Snapshotter
	}
	// One folder, and written though 2.2 has a default: that default is a list, which
	// the transfer service that pulls since 2.1 takes for one folder that is not there.
	section(images, "registry")["config_path"] = registry.Root

	cni := section(runtime, "cni")
	cni["conf_dir"] = cniConfDir
	if releases.BinDirsSupported(c.Version) {
		cni["bin_dirs"] = []any{cniBinDir}
	} else {
		cni["bin_dir"] = cniBinDir
	}
	section(runtime, "containerd")["default_runtime_name"] = c.DefaultRuntime
	for _, rt := range c.Runtimes {
		section(runtime, "containerd", "runtimes")[rt.Name] = runtimeTable(rt, c.SystemdCgroup)
	}
	if p := proxyPlugins(spec); len(p) > 0 {
		tree["proxy_plugins"] = p
	}
	return tree
}

// unpackers tells the transfer service, through which CRI pulls since 2.1, for which
// snapshotters it may unpack: it knows overlayfs by itself and nothing else, and for another one every pull
// fails with "no unpack platforms defined" (configureUnpackPlatforms in plugins/transfer of
// containerd 2.1.9 to 2.4.2).
//
// The list replaces that default. overlayfs, which ctr takes by itself, stays in it where an
// entry may be optional: elsewhere a host whose disk overlayfs refuses would lose the service.
func unpackers(spec *profiles.Spec, tree table) {
	v := spec.Containerd.Version
	if !releases.TransferPull(v) {
		return
	}
	used, _ := section(tree, "plugins", criImages)["snapshotter"].(string)
	all := []string{cmp.Or(used, releases.DefaultSnapshotter)}
	runtimes := section(tree, "plugins", criRuntime, "containerd", "runtimes")
	for _, name := range slices.Sorted(maps.Keys(runtimes)) {
		rt, _ := runtimes[name].(table)
		if own, _ := rt["snapshotter"].(string); own != "" && !slices.Contains(all, own) {
			all = append(all, own)
		}
	}
	service := section(tree, "plugins", transfer)
	if _, given := service["unpack_config"]; given || len(all) == 1 && all[0] == releases.DefaultSnapshotter {
		if len(service) == 0 {
			delete(section(tree, "plugins"), transfer)
		}
		return
	}
	var list []any
	for _, u := range releases.Unpackers(v, all) {
		t := table{"platform": "linux/" + spec.Arch, "snapshotter": u.Snapshotter}
		if u.Differ != "" {
			t["differ"] = u.Differ
		}
		if u.Optional {
			t["optional"] = true
		}
		list = append(list, t)
	}
	service["unpack_config"] = list
}

// imageSection is the plugin whose registry and image keys count.
func imageSection(spec *profiles.Spec) string {
	if releases.ConfigSchema(spec.Containerd.Version) == 2 {
		return cri
	}
	return criImages
}

// runtimeTable always has a runtime_type: in 1.x a table for a runtime replaces the
// built-in one, and without a type no pod of it starts.
func runtimeTable(rt profiles.Runtime, systemdCgroup bool) table {
	const runcV2 = "io.containerd.runc.v2"
	t := table{"runtime_type": cmp.Or(rt.Type, runcV2)}
	options := table{}
	// SystemdCgroup and BinaryName are options of runc's shim (api/types/runc/options);
	// other shims have options of their own.
	if t["runtime_type"] == runcV2 {
		options["SystemdCgroup"] = systemdCgroup
		if rt.Path != "" {
			options["BinaryName"] = rt.Path
		}
	}
	maps.Copy(options, rt.Options)
	if len(options) > 0 {
		t["options"] = options
	}
	return t
}

func proxyPlugins(spec *profiles.Spec) table {
	out := table{}
	for _, p := range spec.Containerd.ProxyPlugins {
		t := table{"type": p.Type, "address": p.Address}
		// Early patches of 1.6 and 1.7 ignore these two, and say nothing of it.
		if p.Platform != "" {
			t["platform"] = p.Platform
		}
		if len(p.Exports) > 0 {
			exports := table{}
			for k, v := range p.Exports {
				exports[k] = v
			}
			t["exports"] = exports
		}
		out[p.Name] = t
	}
	return out
}

// credentials is registry.configs: the one place where containerd takes credentials
// of its own (hosts.toml has none), allowed beside config_path in every release up to 2.6.
func credentials(spec *profiles.Spec, r registry.Reader, faults *diag.List) table {
	var (
		configs = table{}
		first   = map[string]credential{} // by host
	)
	all := givenCredentials(spec, faults)
	if len(all) == 0 {
		return configs
	}
	v := spec.Containerd.Version
	if !releases.CredentialsSupported(v) {
		for _, c := range all {
			faults.Errorf(spec.Origin(c.at), remedyFor(c.mirror), "containerd %s takes no credentials in config.toml: 2.7 removed them", v)
		}
		return configs
	}
	for _, c := range all {
		if releases.UnreadableKey(v, c.host) {
			faults.Errorf(spec.Origin(c.at), "name the host instead of its address, or give an Authorization header", "containerd %s cannot read credentials for %s in config.toml", v, c.host)
			continue
		}
		if !c.read(spec, r, faults) {
			continue
		}
		other, again := first[c.host]
		switch {
		case !again:
			first[c.host] = c
			configs[c.host] = table{"auth": c.keys}
		case !c.sameAs(other):
			faults.Errorf(spec.Origin(c.at), "give the same ones, or take one of the two away",
				"containerd has one set of credentials for a host, and those for %s are others than the ones of %s", c.host, spec.Origin(other.at))
		}
	}
	if len(configs) > 0 {
		warnOfCost(spec, all[0], faults)
	}
	return configs
}

// warnOfCost says once what credentials in config.toml cost.
func warnOfCost(spec *profiles.Spec, c credential, faults *diag.List) {
	v := spec.Containerd.Version
	pulls := ""
	if releases.TransferPull(v) {
		pulls = fmt.Sprintf("containerd %s then pulls by itself, not through its transfer service; ", v)
	}
	faults.Warnf(spec.Origin(c.at), remedyFor(c.mirror),
		"credentials go into config.toml: %sa change of them restarts containerd; they are deprecated, and 2.7 has no place for them", pulls)
}

// remedyFor says what lasts longer than config.toml.
func remedyFor(mirror bool) string {
	if mirror {
		return "an Authorization header of the mirror, by reference, has none of this"
	}
	return "kubelet.credentialProviders and pull secrets last longer"
}

// credential is one auth of a profile.
type credential struct {
	at, host string
	mirror   bool
	auth     *profiles.Auth
	keys     table
	// unread are the keys whose values a Reader without secrets stood in for.
	unread map[string]bool
}

// givenCredentials are those of registries and mirrors that some host is asked with.
func givenCredentials(spec *profiles.Spec, faults *diag.List) []credential {
	var out []credential
	for _, reg := range spec.Registries {
		at := "registries." + reg.Host
		if reg.Auth != nil {
			host := registry.CredentialHost(reg)
			switch {
			case host == "":
				faults.Errorf(spec.Origin(at+".auth"), "name the registry or the mirror", "containerd knows credentials by host, and %q is none", reg.Host)
			default:
				if !slices.ContainsFunc(spec.Registries, func(r profiles.Registry) bool { return registry.Contacts(r, host) }) {
					faults.Warnf(spec.Origin(at+".auth"), "give them as auth of the mirror",
						"nothing asks %s with upstream: deny, so its credentials are not used", host)
				}
				out = append(out, credential{at: at + ".auth", host: host, auth: reg.Auth})
			}
		}
		for i, m := range reg.Mirrors {
			if m.Auth == nil {
				continue
			}
			// A URL that is none is a fault of hosts.toml.
			if u, err := url.Parse(m.URL); err == nil && u.Host != "" {
				out = append(out, credential{at: at + ".mirrors[" + strconv.Itoa(i) + "].auth", host: u.Host, mirror: true, auth: m.Auth})
			}
		}
	}
	return out
}

// read reads the values.
func (c *credential) read(spec *profiles.Spec, r registry.Reader, faults *diag.List) (ok bool) {
	c.keys, c.unread, ok = table{}, map[string]bool{}, true
	for _, f := range []struct {
		name, key string
		secret    profiles.Secret
	}{
		{"username", "username", c.auth.Username},
		{"password", "password", c.auth.Password},
		{"identityToken", "identitytoken", c.auth.IdentityToken},
	} {
		at := cmp.Or(f.secret.Origin, spec.Origin(c.at+"."+f.name))
		v, err := r.Secret(f.secret)
		switch {
		case err != nil:
			faults.Errorf(at, "", "read %s: %v", f.name, err)
			ok = false
		case v == "" && f.secret.Referenced():
			faults.Errorf(at, "fill it, or take the credentials away", "the %s is empty", f.name)
			ok = false
		case !utf8.ValidString(v):
			faults.Errorf(at, "", "the %s is not valid UTF-8, which TOML cannot hold", f.name)
			ok = false
		case v != "":
			if f.secret.Referenced() && strings.TrimRight(v, "\r\n") != v {
				faults.Warnf(at, "take the empty line away", "the %s ends with a line break: one at the end of a file is dropped, and there is another", f.name)
			}
			c.keys[f.key] = v
			c.unread[f.key] = registry.Unread(f.secret, v)
		}
	}
	return ok && len(c.keys) > 0
}

// sameAs says whether two are the same credentials, as far as they have been read.
func (c credential) sameAs(d credential) bool {
	for _, key := range []string{"username", "password", "identitytoken"} {
		if c.keys[key] != d.keys[key] && !(c.unread[key] && d.keys[key] != nil) && !(d.unread[key] && c.keys[key] != nil) {
			return false
		}
	}
	return true
}

// section returns a table inside a tree, making what is missing on the way.
func section(t table, names ...string) table {
	for _, n := range names {
		next, ok := t[n].(table)
		if !ok {
			next = table{}
			t[n] = next
		}
		t = next
	}
	return t
}

// encodeConfig writes the version first, for readers; TOML does not mind.
func encodeConfig(v releases.Version, tree table) ([]byte, error) {
	if where, ok := invalidUTF8(tree, nil); ok {
		return nil, fmt.Errorf("%s: not valid UTF-8, which TOML cannot hold", strings.Join(where, "."))
	}
	if key, ok := escapedKey(v, tree); ok {
		return nil, fmt.Errorf("containerd 1.x cannot read a key with these characters in it: %q", key)
	}
	b := bytes.NewBufferString(desired.Header)
	e := toml.NewEncoder(b)
	e.SetIndentTables(true)
	if err := e.Encode(struct {
		Version int `toml:"version"`
	}{releases.ConfigSchema(v)}); err != nil {
		return nil, err
	}
	if err := e.Encode(tree); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// invalidUTF8 finds a string that go-toml would silently change.
func invalidUTF8(v any, at []string) ([]string, bool) {
	switch v := v.(type) {
	case string:
		return at, !utf8.ValidString(v)
	case []any:
		for _, e := range v {
			if where, bad := invalidUTF8(e, at); bad {
				return where, true
			}
		}
	case table:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			where := append(slices.Clone(at), strings.ToValidUTF8(k, "?"))
			if !utf8.ValidString(k) {
				return where, true
			}
			if where, bad := invalidUTF8(v[k], where); bad {
				return where, true
			}
		}
	}
	return nil, false
}

// escapedKey finds a key that the release's TOML library does not read.
func escapedKey(v releases.Version, t table) (string, bool) {
	for _, k := range slices.Sorted(maps.Keys(t)) {
		if releases.UnreadableKey(v, k) {
			return k, true
		}
		if sub, ok := t[k].(table); ok {
			if key, bad := escapedKey(v, sub); bad {
				return key, true
			}
		}
	}
	return "", false
}
