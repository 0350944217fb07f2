package registry

import (
	"cmp"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/profiles"
)

// ReadBack has containerd's own parser read what Files rendered, and holds it against the
// profile: the hosts of a registry, in their order, with scheme, path, capabilities and
// headers, and the certificates. What differs is nodeprep's own mistake, and a fault, since
// containerd would go another way than the profile says without a word. parse is as in
// Query.
//
// What is wanted is told from the profile anew, not by the code that rendered it.
func ReadBack(spec *profiles.Spec, files []desired.File, parse func(text []byte, registry string) ([]Parsed, error)) diag.List {
	var faults diag.List
	folders := map[string]desired.File{}
	for _, f := range files {
		if f.Format == desired.FormatHosts {
			folders[f.Path] = f
		}
	}
	for _, reg := range spec.Registries {
		host := reg.Host
		if host == "*" {
			host = "registry.invalid" // any will do
		}
		var file desired.File
		for _, dir := range candidates(Root, host, spec.Containerd.Version) {
			if f, ok := folders[path.Join(dir, "hosts.toml")]; ok {
				file = f
				break
			}
		}
		if err := readBack(reg, host, file, spec, parse); err != nil {
			faults.Errorf(spec.Origin("registries."+reg.Host), "this is a mistake of nodeprep's: please report the profile", "%s is not what was planned: %v", cmp.Or(file.Path, "its hosts.toml"), err)
		}
	}
	return faults
}

func readBack(reg profiles.Registry, host string, file desired.File, spec *profiles.Spec, parse func([]byte, string) ([]Parsed, error)) error {
	if file.Path == "" {
		return fmt.Errorf("containerd %s finds no folder for it", spec.Containerd.Version)
	}
	f := ReadHostsFile(file.Path, file.Content, spec.Containerd.Version)
	if f.Err != nil {
		return fmt.Errorf("containerd %s finds %w", spec.Containerd.Version, f.Err)
	}
	if len(f.anyhow) > 0 {
		return fmt.Errorf("containerd %s asks %s in any order", spec.Containerd.Version, strings.Join(f.anyhow, " and "))
	}
	// Without the names of certificates, which are not where they will be.
	got, err := parse(f.Bare, host)
	if err != nil {
		return fmt.Errorf("containerd's parser: %w", err)
	}
	want := planned(reg, host)
	if len(got) != len(want) || len(f.tables) != len(want) {
		return fmt.Errorf("%d hosts, not %d", len(got), len(want))
	}
	for i, w := range want {
		if err := w.differs(got[i], f.tables[i]); err != nil {
			return fmt.Errorf("host %d: %w", i+1, err)
		}
	}
	return nil
}

// plannedHost is a host as the profile wants it.
type plannedHost struct {
	profiles.Endpoint
	url          string // of the API, "" where containerd chooses
	capabilities []string
}

func (w plannedHost) differs(got Parsed, t table) error {
	scheme := got.Scheme
	if got.Fallback {
		scheme = "http" // as it is written
	}
	if u := scheme + "://" + got.Host + got.Path; w.url != "" && u != w.url {
		return fmt.Errorf("%s, not %s", u, w.url)
	}
	for name, has := range map[string]bool{"pull": got.Pull, "resolve": got.Resolve, "push": got.Push} {
		if want := len(w.capabilities) == 0 || slices.Contains(w.capabilities, name); has != want {
			return fmt.Errorf("capability %s is %t, not %t", name, has, want)
		}
	}
	headers := map[string]int{}
	for _, h := range w.Header {
		headers[h.Name] = len(h.Values)
	}
	found := map[string]int{}
	for name, values := range got.Header {
		found[name] = len(values)
	}
	// Their values are secrets; that the right ones are there says enough.
	if !maps.Equal(headers, found) {
		return fmt.Errorf("headers %q, not %q", slices.Sorted(maps.Keys(found)), slices.Sorted(maps.Keys(headers)))
	}
	switch {
	case len(t.ca) != len(w.CA):
		return fmt.Errorf("%d CA files, not %d", len(t.ca), len(w.CA))
	case len(t.client) != len(w.Client):
		return fmt.Errorf("%d client certificates, not %d", len(t.client), len(w.Client))
	case t.skip != (w.SkipVerify != nil && *w.SkipVerify):
		return fmt.Errorf("skip_verify is %t", t.skip)
	}
	return nil
}

// planned is whom a registry's images are asked of, by its entry in the profile.
func planned(reg profiles.Registry, host string) []plannedHost {
	var out []plannedHost
	for _, m := range reg.Mirrors {
		out = append(out, plan(m))
	}
	if reg.Deny {
		return out // the last one is the server
	}
	server := profiles.Endpoint{}
	if reg.Server != nil {
		server = *reg.Server
	}
	if server.URL != "" {
		return append(out, plan(server))
	}
	switch {
	case reg.Host == "docker.io":
		server.URL = "https://" + dockerHub
	case reg.Host == "*" || Localhost(host) && len(server.CA)+len(server.Client) == 0 && (server.SkipVerify == nil || *server.SkipVerify):
		// containerd's own choice, which takes no capabilities and no path.
		return append(out, plannedHost{Endpoint: server})
	default:
		server.URL = "https://" + host
	}
	return append(out, plan(server))
}

func plan(e profiles.Endpoint) plannedHost {
	w := plannedHost{Endpoint: e}
	for _, c := range e.Capabilities {
		w.capabilities = append(w.capabilities, strings.ToLower(c))
	}
	u, err := url.Parse(e.URL)
	if err != nil {
		return w
	}
	p := strings.TrimRight(u.Path, "/")
	if !e.OverridePath && !slices.Contains(strings.Split(p, "/"), "v2") {
		p = path.Join("/", p, "v2")
	}
	w.url = u.Scheme + "://" + u.Host + p
	return w
}
