package registry

import (
	"cmp"
	"errors"
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

// Root is the one directory that config.toml's config_path names.
const Root = "/etc/containerd/certs.d"

// dockerHub is where images of docker.io really are.
const dockerHub = "registry-1.docker.io"

// Files renders one folder a registry: hosts.toml and the certificates it names.
// Every registry of the profile has a folder, even with nothing to say but its server,
// because containerd takes the first folder that exists: without one of its own it would
// fall under "*". A nil Reader gives placeholders. Faults have the place of the field.
func Files(spec *profiles.Spec, r Reader) ([]desired.File, diag.List) {
	var (
		files  []desired.File
		faults diag.List
		owner  = map[string]string{} // directory to registry
	)
	for _, reg := range spec.Registries {
		b := &builder{spec: spec, reg: reg, read: OrPlaceholders(r), path: "registries." + reg.Host, faults: &faults}
		dir, ok := b.dir()
		if !ok {
			continue
		}
		if other, taken := owner[dir]; taken {
			faults.Errorf(spec.Origin(b.path), "", "same folder %s as registry %q", path.Join(Root, dir), other)
			continue
		}
		owner[dir] = reg.Host
		files = append(files, b.files(path.Join(Root, dir))...)
	}
	return files, faults
}

// CredentialHost is the host under which containerd looks for a registry's
// credentials: the one that it contacts, without a scheme. "" for "*", which is no
// single host.
func CredentialHost(reg profiles.Registry) string {
	if reg.Host == "*" {
		return ""
	}
	if reg.Server != nil {
		if u, err := url.Parse(reg.Server.URL); err == nil && u.Host != "" {
			return u.Host
		}
	}
	if reg.Host == "docker.io" {
		return dockerHub
	}
	return reg.Host
}

// Contacts reports whether a pull from the registry may ask a host (as in
// CredentialHost): its own server unless denied, or one of the mirrors.
func Contacts(reg profiles.Registry, host string) bool {
	if !reg.Deny && CredentialHost(reg) == host {
		return true
	}
	return slices.ContainsFunc(reg.Mirrors, func(m profiles.Endpoint) bool {
		u, err := url.Parse(m.URL)
		return err == nil && u.Host == host
	})
}

// builder makes the files of one registry.
type builder struct {
	spec   *profiles.Spec
	reg    profiles.Registry
	read   Reader
	path   string // of the registry in the profile
	faults *diag.List
	certs  []*cert
	secret bool // hosts.toml itself holds a secret
}

// dir is the folder's name, the first that containerd looks for (hostPaths in
// config_unix.go): HOST_PORT_ goes before HOST:PORT, so that a leftover of the other
// form cannot hide ours.
func (b *builder) dir() (string, bool) {
	host, at := b.reg.Host, b.spec.Origin(b.path)
	switch {
	case host == "*":
		if v := b.spec.Containerd.Version; !releases.DefaultDirSupported(v) {
			b.faults.Errorf(at, "name each registry, or use containerd 1.6.17 or newer",
				`containerd %s knows no default registry ("*")`, v)
			return "", false
		}
		return "_default", true
	case host == "", host == ".", host == "..", host == "_default",
		strings.ContainsFunc(host, func(r rune) bool { return r == '/' || r == '\\' || unicode.IsSpace(r) || !unicode.IsPrint(r) }):
		b.faults.Errorf(at, `write it as images do: "registry.example.com" or "registry.example.com:5000"`,
			"registry %q is not a host", host)
		return "", false
	}
	return FolderName(host), true
}

// FolderName is the name of a registry's folder that containerd looks for first (hostDirectory
// in its core/remotes/docker/config/hosts.go): HOST_PORT_ for HOST:PORT. Its last colon is
// taken for a port's, in an IPv6 address too: [fd00::1] has [fd00:_1]_.
func FolderName(registry string) string {
	if i := strings.LastIndexByte(registry, ':'); i > 0 {
		return registry[:i] + "_" + registry[i+1:] + "_"
	}
	return registry
}

func (b *builder) files(dir string) []desired.File {
	f := hostsFile{bareHost: releases.BareHostTableNeeded(b.spec.Containerd.Version)}
	seen := map[string]bool{}
	for i, m := range b.reg.Mirrors {
		field := b.path + ".mirrors[" + strconv.Itoa(i) + "]"
		e, ok := b.endpoint(m, field, field+".url")
		if !ok {
			continue
		}
		// For a table that is there twice, containerd would ignore the whole file, and so all
		// mirrors. A path tells capitals from small letters, and a host does not.
		if seen[e.id] {
			b.faults.Errorf(b.spec.Origin(field+".url"), "name it once", "mirror %s is there twice", e.url)
			continue
		}
		seen[e.id] = true
		f.hosts = append(f.hosts, e)
	}
	switch n := len(f.hosts); {
	case b.reg.Deny && n == 0:
		if len(b.reg.Mirrors) == 0 {
			b.faults.Errorf(b.spec.Origin(b.path+".upstream"), "add a mirror", "upstream: deny without a mirror leaves nothing to pull from")
		}
		return nil
	case b.reg.Deny:
		// The last entry is always the server; naming a mirror there leaves no way out.
		f.server, f.hosts = f.hosts[n-1], f.hosts[:n-1]
	default:
		f.server = b.server()
	}
	if !b.spec.Containerd.Version.AtLeast(2, 0, 0) {
		f.dotted = slices.ContainsFunc(f.hosts, func(e endpoint) bool { return strings.Contains(e.url, "]") })
	}
	content, err := f.encode()
	if err != nil {
		b.faults.Errorf(b.spec.Origin(b.path), "", "hosts.toml: %v", err)
		return nil
	}
	files := []desired.File{{
		Path: path.Join(dir, "hosts.toml"), Content: content, Mode: 0o644,
		Format: desired.FormatHosts, Effect: desired.EffectNone, Origin: b.spec.Origin(b.path),
	}}
	if b.secret {
		files[0].Mode, files[0].Secret = 0o600, true
	}
	for _, c := range b.certs {
		file := desired.File{
			Path: path.Join(dir, c.name), Content: c.content, Mode: 0o644,
			Format: desired.FormatRaw, Effect: desired.EffectNone, Origin: c.file.Origin,
		}
		if c.secret {
			file.Mode, file.Secret = 0o600, true
		}
		files = append(files, file)
	}
	return files
}

// server is the registry's own entry. Its URL is always written, but for "*" and
// localhost: there the absent key has a meaning that no URL has (the registry asked
// for; plain HTTP where TLS fails, which who gives TLS settings does not mean).
func (b *builder) server() endpoint {
	given := profiles.Endpoint{}
	if b.reg.Server != nil {
		given = *b.reg.Server
	}
	field := b.path
	if given.URL != "" {
		e, _ := b.endpoint(given, field, field+".server")
		return e
	}
	switch {
	case b.reg.Host == "docker.io":
		given.URL = "https://" + dockerHub
	case b.reg.Host != "*" && (!Localhost(b.reg.Host) || tlsGiven(given)):
		given.URL = "https://" + b.reg.Host
	default:
		if len(given.Capabilities) > 0 {
			b.faults.Warnf(b.spec.Origin(field+".capabilities"), "name the registry and its server",
				"containerd ignores the capabilities of a registry without a server URL")
			given.Capabilities = nil
		}
		given.OverridePath = false
		return b.settings(given, field)
	}
	e, _ := b.endpoint(given, field, field)
	return e
}

// Localhost says whether containerd takes a registry for one of this host, for which it tries
// plain HTTP, too: docker.IsLocalhost of its core/remotes/docker/resolver.go.
func Localhost(host string) bool {
	name := host
	// net.SplitHostPort: where that fails, brackets stay.
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		h := host[:i]
		if inner, ok := strings.CutPrefix(h, "["); ok && strings.HasSuffix(inner, "]") {
			name = strings.TrimSuffix(inner, "]")
		} else if !strings.ContainsAny(h, ":[]") {
			name = h
		}
	}
	addr, err := netip.ParseAddr(name)
	return name == "localhost" || err == nil && addr.Zone() == "" && addr.Unmap().IsLoopback()
}

// tlsGiven says whether an endpoint of this host is to have other TLS settings than those that
// containerd has for such, which verify nothing. They count only where a server is named.
func tlsGiven(e profiles.Endpoint) bool {
	return len(e.CA) > 0 || len(e.Client) > 0 || e.SkipVerify != nil && !*e.SkipVerify
}

// endpoint checks a URL and writes it as containerd needs it: with its scheme (it
// takes anything that begins with "http" for having one) and without a slash at the
// end (the API would be looked for at //v2). urlField is where the profile has it.
func (b *builder) endpoint(e profiles.Endpoint, field, urlField string) (endpoint, bool) {
	at := b.spec.Origin(urlField)
	u, err := url.Parse(e.URL)
	switch {
	case err != nil:
		// The error's own text repeats the URL, which may hold a password.
		var uerr *url.Error
		if errors.As(err, &uerr) {
			err = uerr.Err
		}
		b.faults.Errorf(at, "", "bad URL: %v", err)
		return endpoint{}, false
	case u.Scheme != "http" && u.Scheme != "https":
		b.faults.Errorf(at, "want http or https", "unsupported scheme %q", u.Scheme)
		return endpoint{}, false
	case u.Host == "":
		b.faults.Errorf(at, "", "URL without a host")
		return endpoint{}, false
	case u.User != nil:
		b.faults.Errorf(at, "use auth, or an Authorization header", "containerd ignores credentials in a URL")
		return endpoint{}, false
	case u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
		b.faults.Errorf(at, "leave it out", "containerd ignores the query of a URL")
		return endpoint{}, false
	case !utf8.ValidString(e.URL):
		b.faults.Errorf(at, "", "URL is not valid UTF-8")
		return endpoint{}, false
	}
	u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
	// Such a path is the API's root already: containerd would add a second /v2.
	if slices.Contains(strings.Split(u.Path, "/"), "v2") {
		e.OverridePath = true
	}
	out := b.settings(e, field)
	out.url = u.String()
	out.id = u.Scheme + "://" + strings.ToLower(u.Host) + u.EscapedPath()
	// In 2.0 a dial timeout counts as one of the TLS settings.
	if u.Scheme == "http" && (len(e.CA) > 0 || len(e.Client) > 0 || e.SkipVerify != nil ||
		e.DialTimeout != 0 && b.spec.Containerd.Version.Line() == "2.0") {
		b.faults.Warnf(at, "leave the TLS settings out, or use https",
			"containerd tries HTTPS first where an http URL has TLS settings (ca, client, skipVerify; in 2.0 also dialTimeout)")
	}
	return out, true
}

// settings are an endpoint's keys, in the order of containerd's docs/hosts.md.
func (b *builder) settings(e profiles.Endpoint, field string) endpoint {
	var out endpoint
	add := func(key string, value any) { out.keys = append(out.keys, line{key, value}) }
	if caps := b.capabilities(e.Capabilities, field); len(caps) > 0 {
		add("capabilities", caps)
	}
	if len(e.CA) > 0 {
		var names []string
		for _, f := range e.CA {
			names = append(names, b.ca(f))
		}
		add("ca", names)
	}
	if len(e.Client) > 0 {
		// Always pairs: a plain list would be files that hold both, and a pair with
		// an empty key reads the directory as its key.
		var pairs [][]string
		for _, c := range e.Client {
			pairs = append(pairs, b.client(c))
		}
		add("client", pairs)
	}
	if e.SkipVerify != nil {
		add("skip_verify", *e.SkipVerify)
	}
	if e.OverridePath {
		add("override_path", true)
	}
	v := b.spec.Containerd.Version
	if e.DialTimeout != 0 {
		if releases.DialTimeoutSupported(v) {
			add("dial_timeout", e.DialTimeout.String())
		} else {
			b.faults.Errorf(b.spec.Origin(field+".dialTimeout"), "leave it out, or take containerd 2.0.7 or 2.1",
				"containerd %s has no dial timeout", v)
		}
	}
	out.header = b.header(e.Header, field)
	return out
}

func (b *builder) capabilities(given []string, field string) []string {
	var out []string
	for i, c := range given {
		at := b.spec.Origin(field + ".capabilities[" + strconv.Itoa(i) + "]")
		switch c = strings.ToLower(c); {
		case c == "referrers" && !releases.ReferrersSupported(b.spec.Containerd.Version):
			// The older parser refuses the whole file, and mirrors vanish.
			b.faults.Errorf(at, "leave it out, or take containerd 2.2", "containerd %s does not know the capability referrers", b.spec.Containerd.Version)
		case slices.Contains([]string{"pull", "resolve", "push", "referrers"}, c):
			out = append(out, c)
		default:
			b.faults.Errorf(at, "want pull, resolve, push or referrers", "unknown capability %q", c)
		}
	}
	return out
}

// header resolves values; a value that is not the profile's own plain text, or that
// authenticates, makes the file a secret.
func (b *builder) header(given []profiles.Header, field string) []line {
	var out []line
	for _, h := range given {
		at := b.spec.Origin(field + ".header." + h.Name)
		if h.Name == "" || strings.ContainsFunc(h.Name, func(r rune) bool { return !isTokenRune(r) }) {
			b.faults.Errorf(at, "", "%q is not the name of an HTTP header", h.Name)
			continue
		}
		var values []string
		for _, s := range h.Values {
			v, err := b.read.Secret(s)
			if err != nil {
				b.faults.Errorf(cmp.Or(s.Origin, at), "", "read header %s: %v", h.Name, err)
				continue
			}
			if v == "" && s.Referenced() {
				b.faults.Errorf(cmp.Or(s.Origin, at), "fill it, or take the header away", "the value of header %s is empty", h.Name)
				continue
			}
			if strings.ContainsFunc(v, func(r rune) bool { return r != '\t' && unicode.IsControl(r) }) || !utf8.ValidString(v) {
				b.faults.Errorf(cmp.Or(s.Origin, at), "an HTTP header is one line of text", "the value of header %s has control characters in it", h.Name)
				continue
			}
			values = append(values, v)
			if !s.Plain || slices.Contains([]string{"authorization", "proxy-authorization", "cookie"}, strings.ToLower(h.Name)) {
				b.secret = true
			}
		}
		switch len(values) {
		case 0:
		case 1:
			out = append(out, line{h.Name, values[0]})
		default:
			out = append(out, line{h.Name, values})
		}
	}
	return out
}

// isTokenRune is RFC 9110's tchar, of which field names are made.
func isTokenRune(r rune) bool {
	return r < utf8.RuneSelf && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune("!#$%&'*+-.^_`|~", r))
}
