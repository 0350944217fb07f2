package registry

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/distribution/reference"
	"github.com/pelletier/go-toml/v2"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// Verbs are what containerd does with a registry.
const (
	VerbPull    = "pull"    // find the digest, then manifests and blobs
	VerbResolve = "resolve" // find the digest
	VerbPush    = "push"
)

// Query is what Explain works from: a node's files and settings, whatever they come from.
type Query struct {
	Image string // as somebody would write it
	Verb  string
	// Release is the containerd that reads the files; the zero Version stands for the
	// newest rules.
	Release releases.Version
	// ConfigPath is registry.config_path as it is in force, "" for none; Unset says that no
	// file sets it and it is the release's default.
	ConfigPath string
	Unset      bool
	// Legacy are the endpoints that registry.mirrors has for registries ("*": all others),
	// which count where there is no ConfigPath.
	Legacy map[string][]string
	// LegacyTLS is registry.configs.HOST.tls by host, which 1.x takes for such endpoints.
	LegacyTLS map[string]LegacyTLS
	// Credentials say by host where config.toml has its credentials.
	Credentials map[string]string
	// Headers are those of registry.headers, which go to every registry.
	Headers []string
	// Local are the settings because of which containerd 2.1 and newer do not use the
	// transfer service.
	Local []string
	// NotUnpacked are the snapshotters for which the transfer service unpacks nothing, by the
	// runtime whose they are; "" is that of CRI itself.
	NotUnpacked map[string]string
	// Down is why containerd does not start with these files, and NoCRI why CRI does not, or
	// is off; "" where they do.
	Down, NoCRI string

	// Exists says whether a path is there. Read's error is fs.ErrNotExist for what is not.
	Exists func(path string) (bool, error)
	Read   func(path string) ([]byte, error)
	List   func(dir string) ([]string, error)
	// Parse has containerd's own parser read a hosts.toml; nil stands for no folder at all.
	Parse func(text []byte, registry string) ([]Parsed, error)
}

// Parsed is a host as containerd's own parser gives it.
type Parsed struct {
	Scheme, Host, Path  string
	Pull, Resolve, Push bool
	Header              map[string][]string
	// Fallback says that HTTPS is tried first, then HTTP.
	Fallback bool
}

// A CertError is the parser's that it could not load certificates: it has read the file.
type CertError struct{ Err error }

func (e *CertError) Error() string { return e.Err.Error() }
func (e *CertError) Unwrap() error { return e.Err }

// Explanation is what containerd does with an image's name.
type Explanation struct {
	Image      string `json:"image"`
	Reference  string `json:"reference"` // normalised
	Registry   string `json:"registry"`
	Repository string `json:"repository"`
	Tag        string `json:"tag,omitempty"`
	Digest     string `json:"digest,omitempty"`
	Verb       string `json:"verb"`
	Containerd string `json:"containerd,omitempty"` // release, "" where it is not known
	// Outcome is what will happen, in one line; Fails says that it can only fail.
	Outcome    string          `json:"outcome"`
	Fails      bool            `json:"fails"`
	ConfigPath string          `json:"configPath,omitempty"`
	Folders    []LookedAt      `json:"folders"`
	File       string          `json:"file,omitempty"` // the hosts.toml that counts
	Hosts      []ExplainedHost `json:"hosts"`          // in the order in which they are asked
	// End is who is asked last: upstream, server (a host that the file names instead),
	// or nobody.
	End     string `json:"end"`
	Service string `json:"service,omitempty"` // transfer or local
	// Local are the settings because of which it is local.
	Local []string `json:"localBecause,omitempty"`
	Ctr   Ctr      `json:"ctr"`
	Notes []string `json:"notes,omitempty"`
}

// LookedAt is a folder that containerd looks for.
type LookedAt struct {
	Path   string `json:"path"`
	Found  bool   `json:"found"`
	Chosen bool   `json:"chosen"`
}

// ExplainedHost is a host that is asked.
type ExplainedHost struct {
	URL  string `json:"url"`  // of its API
	Role string `json:"role"` // mirror, server or upstream
	Host string `json:"host"`
	From string `json:"from,omitempty"` // FILE:LINE
	// Skipped is why it is not asked for the name; "" where it is.
	Skipped      string    `json:"skipped,omitempty"`
	Capabilities []string  `json:"capabilities"`
	Requests     []Request `json:"requests"`
	// IfMissing are those that follow where no host has the manifest of a digest.
	IfMissing    []Request         `json:"ifMissing,omitempty"`
	CA           []string          `json:"ca,omitempty"`
	Client       [][2]string       `json:"client,omitempty"`
	SkipVerify   bool              `json:"skipVerify,omitempty"`
	OverridePath bool              `json:"overridePath,omitempty"`
	DialTimeout  string            `json:"dialTimeout,omitempty"`
	Headers      map[string]string `json:"headers,omitempty"` // values masked
	Credentials  string            `json:"credentials"`
	PlainHTTP    string            `json:"plainHTTP,omitempty"` // how HTTP comes into it
	// Parsed is the host as containerd has it, for who asks it: with the values of its
	// headers, which are not for anybody to see.
	Parsed Parsed `json:"-"`
}

// Request is one that is sent. A digest that nobody knows beforehand is DIGEST; LOCATION is
// where the answer to the POST before it says.
type Request struct {
	Method string `json:"method"`
	URL    string `json:"url"`
	// Kind is what is asked for, for who sends it: a URL does not tell, since a repository
	// may be called "manifests".
	Kind Kind `json:"-"`
}

// Kind is what a request is about.
type Kind int

// Kinds of requests.
const (
	Other    Kind = iota // an upload
	Manifest             // by its tag, or the digest of the name
	Content              // of a manifest, by its digest
	Blob                 // a layer, or what a digest stands for that is no manifest's
)

// Ctr is what ctr does, which does not read config.toml.
type Ctr struct {
	Without string `json:"without"` // whom it asks by itself; "" where containerd does not run
	Command string `json:"command"` // that goes the way of CRI, for a shell; "" where none does
	Lacks   string `json:"lacks,omitempty"`
}

// masked stands for a value that is not shown.
const masked = "******"

// A NameError is an image's name that is none.
type NameError struct {
	Image string
	Err   error
}

func (e *NameError) Error() string { return fmt.Sprintf("image %q: %v", e.Image, e.Err) }
func (e *NameError) Unwrap() error { return e.Err }

// Explain says what containerd does with an image's name. Its error is a *NameError, a file
// that could not be read, or a parser that does not say what it should.
func Explain(q Query) (*Explanation, error) {
	named, err := reference.ParseDockerRef(q.Image)
	if err != nil {
		return nil, &NameError{q.Image, err}
	}
	x := &Explanation{
		Image: q.Image, Reference: named.String(), Registry: reference.Domain(named), Repository: reference.Path(named),
		Verb: cmp.Or(q.Verb, VerbPull), ConfigPath: q.ConfigPath, Folders: []LookedAt{}, Hosts: []ExplainedHost{},
	}
	if t, ok := named.(reference.Tagged); ok {
		x.Tag = t.Tag()
	}
	if d, ok := named.(reference.Digested); ok {
		x.Digest = d.Digest().String()
	}
	if q.Release != (releases.Version{}) {
		x.Containerd = q.Release.String()
	} else {
		q.Release = newestRules()
	}
	if tagged, err := reference.ParseNormalizedNamed(q.Image); err == nil && x.Digest != "" {
		if t, ok := tagged.(reference.Tagged); ok {
			x.note("the tag %s counts for nothing beside a digest", t.Tag())
		}
	}
	e := &explainer{Query: q, x: x}
	if e.Down != "" {
		e.broken = "containerd does not start: " + e.Down
		e.finish()
		return x, nil
	}
	e.withoutCRI(e.NoCRI)
	e.service()
	if err := e.read(); err != nil {
		return nil, err
	}
	e.requests()
	e.finish()
	return x, nil
}

// newestRules is the release whose rules are taken where none is known: that of the parser
// that is linked (a test holds it against go.mod).
func newestRules() releases.Version { return releases.Version{Major: 2, Minor: 4, Patch: 2} }

func (x *Explanation) note(format string, args ...any) {
	x.Notes = append(x.Notes, fmt.Sprintf(format, args...))
}

type explainer struct {
	Query
	x    *Explanation
	caps []Parsed // as x.Hosts
	// broken is why nobody is asked at all.
	broken string
	// off says that it is CRI that does not start, and mirrored that registry.mirrors or
	// registry.configs make for the way.
	off, mirrored bool
}

// withoutCRI notes why CRI does not start, if there is a reason. A push is not CRI's.
func (e *explainer) withoutCRI(why string) {
	switch {
	case why == "":
	case e.x.Verb == VerbPush:
		e.x.note("%s; a push needs no CRI", why)
	case e.broken == "":
		e.broken, e.off = why, true
	}
}

// service says which way containerd 2.1 and newer pull. The transfer service takes
// config_path for one folder, whatever colons are in it.
func (e *explainer) service() {
	if e.x.Verb == VerbPush {
		e.x.note("CRI pushes nothing: this is what a client does that reads the same folder, as ctr with --hosts-dir")
		return
	}
	if !releases.TransferPull(e.Release) {
		return
	}
	e.x.Service = "transfer"
	if len(e.Local) > 0 {
		e.x.Service, e.x.Local = "local", e.Local
	}
}

// roots are the folders that are looked through.
func (e *explainer) roots() []string {
	if e.ConfigPath == "" {
		return nil
	}
	list := slices.DeleteFunc(strings.Split(e.ConfigPath, ":"), func(p string) bool { return p == "" })
	if e.x.Service == "transfer" && len(list) > 1 {
		what := "config_path names"
		if e.Unset {
			what = "config_path is not set, and its default names"
		}
		e.x.note("%s %d folders, which the transfer service of containerd %s takes for the name of one: no hosts.toml is read; set config_path to one folder", what, len(list), e.Release.Line())
		return []string{e.ConfigPath}
	}
	return list
}

// candidates are where containerd looks for a registry's folder below a root (hostPaths in
// its core/remotes/docker/config/config_unix.go).
func candidates(root, host string, v releases.Version) []string {
	out := []string{path.Join(root, FolderName(host))}
	if own := path.Join(root, host); own != out[0] {
		out = append(out, own)
	}
	if releases.DefaultDirSupported(v) {
		out = append(out, path.Join(root, "_default"))
	}
	return out
}

// read finds the hosts.
func (e *explainer) read() error {
	e.legacyNotes()
	roots := e.roots()
	if len(roots) == 0 && e.x.Service != "transfer" {
		return e.legacy()
	}
	dir := ""
	for _, root := range roots {
		for _, p := range candidates(root, e.x.Registry, e.Release) {
			found := false
			if dir == "" {
				var err error
				if found, err = e.Exists(p); errors.Is(err, fs.ErrPermission) {
					return fmt.Errorf("look at %s: %w", p, err)
				} else if err != nil {
					return e.unreadable(p, err)
				}
			} else if found, _ = e.Exists(p); !found {
				continue
			}
			e.x.Folders = append(e.x.Folders, LookedAt{Path: p, Found: found, Chosen: found && dir == ""})
			if found && dir == "" {
				dir = p
			}
		}
	}
	if dir == "" {
		return e.alone()
	}
	file := path.Join(dir, "hosts.toml")
	content, err := e.Read(file)
	switch {
	case errors.Is(err, fs.ErrNotExist) || err == nil && len(content) == 0:
		return e.dockerFolder(dir)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("read %s: %w", file, err)
	case err != nil:
		return e.unreadable(file, err)
	}
	f := ReadHostsFile(file, content, e.Release)
	hosts, err := []Parsed(nil), f.Err
	if err == nil {
		hosts, err = e.Parse(f.Text, e.x.Registry)
		if c := (*CertError)(nil); errors.As(err, &c) {
			hosts, err = e.Parse(f.Bare, e.x.Registry)
		}
	}
	if err != nil {
		e.x.note("%s is broken (%s): containerd goes on as if it were not there, without any of its mirrors", file, briefly(err, e.Release.AtLeast(2, 0, 0)))
		return e.dockerFolder(dir)
	}
	for _, name := range f.silent {
		e.x.note("host %s in %s is never asked: containerd 2 reads only hosts that have a table of their own", withoutUser(name), file)
	}
	if len(f.anyhow) > 0 {
		hosts := make([]string, len(f.anyhow))
		for i, name := range f.anyhow {
			hosts[i] = withoutUser(name)
		}
		e.x.note("%s are inline tables in %s, which containerd %s asks in any order: give each a table of its own", strings.Join(hosts, " and "), file, e.Release)
	}
	e.x.File = file
	return e.take(hosts, f.tables, file)
}

// alone is the registry itself, as containerd takes it without any file.
func (e *explainer) alone() error {
	hosts, err := e.Parse(nil, e.x.Registry)
	if err != nil {
		return fmt.Errorf("containerd's parser: %w", err)
	}
	return e.take(hosts, nil, "")
}

// unreadable is what containerd looks for and finds to be something else, for which it makes
// no hosts at all (loadHostDir and HostDirFromRoot in its core/remotes/docker/config).
func (e *explainer) unreadable(p string, err error) error {
	e.broken = cmp.Or(e.broken, fmt.Sprintf("%s cannot be read: %s", p, missing(err)))
	return e.alone()
}

// briefly is what the parser says of a file. Where it is about a value that may be a
// secret, or speaks of how the parser is made, it is left out. lines says that the lines it
// counts are those of the file.
func briefly(err error, lines bool) string {
	text := strings.TrimPrefix(err.Error(), "toml: ")
	switch {
	case strings.Contains(text, "unable to parse server"):
		text = "a server that is no URL"
	case strings.Contains(text, "header"), strings.Contains(text, "cast"), strings.Contains(text, "cannot decode"), strings.Contains(text, "cannot store"),
		strings.Contains(text, "invalid type"), strings.Contains(text, "incompatible types"):
		text = "a value of the wrong type"
	}
	if d := (*toml.DecodeError)(nil); lines && errors.As(err, &d) {
		if line, _ := d.Position(); line > 0 {
			text += " in line " + strconv.Itoa(line)
		}
	}
	return withoutUser(text)
}

// withoutUser is a URL, or a text with one, that may be shown. What stands before the last @
// is taken for a user and a password, whether it parses or not.
func withoutUser(name string) string {
	at := strings.LastIndexByte(name, '@')
	if at < 0 {
		return name
	}
	start := 0
	if i := strings.Index(name[:at], "://"); i >= 0 {
		start = i + len("://")
	}
	return name[:start] + masked + name[at:]
}

// dockerFolder is a folder as Docker has them: *.crt, and *.cert with its *.key.
func (e *explainer) dockerFolder(dir string) error {
	names, err := e.List(dir)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("list %s: %w", dir, err)
	case err != nil:
		return e.unreadable(dir, err)
	}
	t := table{}
	for _, name := range names {
		p := path.Join(dir, name)
		switch {
		case strings.HasSuffix(name, ".crt"):
			t.ca, t.tls = append(t.ca, p), true
		case strings.HasSuffix(name, ".cert"):
			pair := [2]string{p, p}
			if key := strings.TrimSuffix(name, ".cert") + ".key"; slices.Contains(names, key) {
				pair[1] = path.Join(dir, key)
			}
			t.client, t.tls = append(t.client, pair), true
		}
	}
	hosts, err := e.Parse(nil, e.x.Registry)
	if err != nil {
		return fmt.Errorf("containerd's parser: %w", err)
	}
	if !t.tls {
		e.x.note("%s has no hosts.toml that counts: the registry itself is asked, and _default is not looked at", dir)
	}
	return e.take(hosts, []table{t}, dir)
}

// legacy is registry.mirrors of config.toml (registryEndpoints in CRI's image_pull.go).
func (e *explainer) legacy() error {
	given, ok := e.Legacy[e.x.Registry]
	from := "registry.mirrors"
	if !ok {
		given = e.Legacy["*"]
	}
	if len(e.Legacy) == 0 {
		from = ""
		e.x.note("there is no config_path: hosts.toml files are not read, wherever they lie")
	} else {
		e.x.note("registry.mirrors is deprecated; config_path and hosts.toml replace it")
	}
	self := false
	var tables []table
	var hosts []Parsed
	add := func(name string) {
		if !strings.Contains(name, "://") {
			scheme := "https://"
			if Localhost(strings.SplitN(name, "/", 2)[0]) {
				scheme = "http://"
			}
			name = scheme + name
		}
		u, err := url.Parse(name)
		if err != nil {
			e.broken = cmp.Or(e.broken, fmt.Sprintf("the endpoint %q of registry.mirrors is no URL", withoutUser(name)))
			return
		}
		self = self || u.Host == e.x.Registry
		hosts = append(hosts, Parsed{Scheme: u.Scheme, Host: u.Host, Path: cmp.Or(u.Path, "/v2"), Pull: true, Resolve: true})
		t := table{name: name, skip: u.Scheme == "http" && Localhost(e.x.Registry)}
		if l, ok := e.LegacyTLS[u.Host]; ok && !e.Release.AtLeast(2, 0, 0) {
			l.apply(&t)
			e.mirrored = true
			e.broken = cmp.Or(e.broken, e.legacyBroken(l))
		}
		tables = append(tables, t)
	}
	e.mirrored = len(given) > 0
	for _, g := range given {
		add(g)
	}
	if !self {
		host := e.x.Registry
		if host == "docker.io" {
			host = dockerHub
		}
		add(host)
		tables[len(tables)-1].name = ""
	}
	return e.take(hosts, tables, from)
}

// take joins what the parser says with what nodeprep read of the same tables.
func (e *explainer) take(hosts []Parsed, tables []table, from string) error {
	if tables == nil {
		tables = make([]table, len(hosts))
	}
	if len(hosts) != len(tables) {
		return fmt.Errorf("%s: containerd's parser finds %d hosts and nodeprep %d: please report this file", from, len(hosts), len(tables))
	}
	for i, h := range hosts {
		t := tables[i]
		last := i == len(hosts)-1
		if last && t.name != "" && hostOf(t.name) == "" && h.Host != "" {
			e.x.note("the server %q of %s:%d has no host: containerd asks the registry itself in its place, at /v2 and for everything", withoutUser(t.name), from, t.line)
			t.name, t.override = "", false
		}
		if t.name != "" && hostOf(t.name) != h.Host {
			return fmt.Errorf("%s: containerd's parser finds host %q where nodeprep reads %q: please report this file", from, withoutUser(h.Host), withoutUser(hostOf(t.name)))
		}
		h, plain := e.aged(h, t, last)
		x := ExplainedHost{
			URL: h.Scheme + "://" + h.Host + h.Path, Host: h.Host, Role: "mirror", CA: t.ca, Client: t.client, SkipVerify: t.skip,
			OverridePath: t.override, DialTimeout: timeoutOf(t.timeout), PlainHTTP: plain, Requests: []Request{}, Parsed: h,
		}
		if from != "" && t.line > 0 {
			x.From = from + ":" + strconv.Itoa(t.line)
		} else if t.name != "" || t.tls {
			x.From = from
		}
		if last {
			x.Role = "server"
			if e.isUpstream(h.Host) {
				x.Role = "upstream"
			}
		}
		if last && t.name == "" && Localhost(e.x.Registry) && e.ConfigPath != "" && e.Release.AtLeast(1, 6, 9) && (!fallsBack(e.Release) || !strings.HasSuffix(h.Host, ":80")) {
			x.SkipVerify = true
		}
		for name, has := range map[string]bool{"pull": h.Pull, "resolve": h.Resolve, "push": h.Push} {
			if has {
				x.Capabilities = append(x.Capabilities, name)
			}
		}
		slices.Sort(x.Capabilities)
		for name := range h.Header {
			if x.Headers == nil {
				x.Headers = map[string]string{}
			}
			x.Headers[name] = masked
		}
		for _, name := range e.Headers {
			if x.Headers == nil {
				x.Headers = map[string]string{}
			}
			if x.Headers[name] == "" {
				x.Headers[name] = masked + " (registry.headers)"
			}
		}
		x.Credentials = e.credentials(h.Host, h.Header)
		if h.Host == "" {
			x.Skipped = "its URL has no host"
			if !strings.Contains(t.name, "://") {
				x.Skipped += ", since containerd takes what begins with http for a whole URL: write https:// before it"
			}
		}
		e.x.Hosts = append(e.x.Hosts, x)
		e.caps = append(e.caps, h)
	}
	if len(e.broken) == 0 && strings.HasPrefix(from, "/") {
		e.broken = e.certificates()
	}
	return nil
}

// isUpstream says whether a host is the registry itself.
func (e *explainer) isUpstream(host string) bool {
	return host == e.x.Registry || e.x.Registry == "docker.io" && host == dockerHub
}

// aged is what an older release makes of a host, and how plain HTTP comes into it.
func (e *explainer) aged(h Parsed, t table, last bool) (Parsed, string) {
	v := e.Release
	own := last && t.name == "" && Localhost(e.x.Registry)
	_, port, _ := strings.Cut(h.Host[strings.LastIndexByte(h.Host, ']')+1:], ":")
	if own && !v.AtLeast(1, 6, 9) {
		h.Scheme, h.Fallback = "https", false
		return h, ""
	}
	// In 2.0 a dial timeout counts as one of the TLS settings.
	if h.Scheme == "http" && t.timeout != "" && v.Line() == "2.0" && port != "80" {
		h.Scheme, h.Fallback = "https", true
	}
	if own && !fallsBack(v) {
		h.Scheme, h.Fallback = "http", false
	}
	// 1.7.7 alone looks at no port.
	if v == (releases.Version{Major: 1, Minor: 7, Patch: 7}) && (own || t.tls && h.Scheme == "http") {
		h.Scheme, h.Fallback = "https", true
	} else if h.Fallback && (!fallsBack(v) || port == "" && !fallsBackWithoutPort(v)) {
		h.Scheme, h.Fallback = "http", false
	}
	switch {
	case h.Fallback:
		return h, "HTTPS first, then plain HTTP, since an http URL has TLS settings"
	case h.Scheme == "http":
		return h, "plain HTTP"
	}
	return h, ""
}

// fallsBack says whether a release tries HTTPS first where an http URL has TLS settings;
// older ones speak plain HTTP (ConfigureHosts of each release).
func fallsBack(v releases.Version) bool {
	return v.AtLeast(1, 7, 7) || v.Line() == "1.6" && v.Patch >= 25
}

// fallsBackWithoutPort says whether it does so for a URL without a port, too.
func fallsBackWithoutPort(v releases.Version) bool {
	return v.AtLeast(1, 7, 24) || v == releases.Version{Major: 1, Minor: 7, Patch: 7}
}

// credentials is where those for a host come from.
func (e *explainer) credentials(host string, header map[string][]string) string {
	for name := range header {
		if strings.EqualFold(name, "authorization") {
			return "header Authorization of " + path.Base(cmp.Or(e.x.File, "hosts.toml"))
		}
	}
	if e.x.Verb == VerbPush {
		return "those that the client is given"
	}
	if at, ok := e.Credentials[host]; ok {
		return "config.toml, " + at + "; a pod's pull secret goes before"
	}
	return "none: anonymous, or a pod's pull secret"
}

// certificates is why containerd cannot make its hosts at all: one file that it cannot load
// fails them all.
func (e *explainer) certificates() string {
	for _, h := range e.x.Hosts {
		for _, ca := range h.CA {
			b, err := e.Read(ca)
			switch {
			case errors.Is(err, fs.ErrPermission):
				e.x.note("%s is only for root to read: whether it can be loaded is not known", ca)
			case err != nil:
				return fmt.Sprintf("the CA file %s cannot be read: %s", ca, missing(err))
			case !x509.NewCertPool().AppendCertsFromPEM(b):
				return fmt.Sprintf("the CA file %s has no certificate in PEM", ca)
			}
		}
		for _, pair := range h.Client {
			if why := e.pair(pair[0], pair[1]); why != "" {
				return why
			}
		}
	}
	return ""
}

// pair is why a client certificate and its key cannot be loaded, "" where they can.
func (e *explainer) pair(certFile, keyFile string) string {
	cert, err := e.Read(certFile)
	key, kerr := cert, err
	if keyFile != certFile {
		key, kerr = e.Read(keyFile)
	}
	switch {
	case errors.Is(err, fs.ErrPermission) || errors.Is(kerr, fs.ErrPermission):
		e.x.note("%s is only for root to read: whether it can be loaded is not known", keyFile)
	case err != nil:
		return fmt.Sprintf("the client certificate %s cannot be read: %s", certFile, missing(err))
	case kerr != nil:
		return fmt.Sprintf("the key %s cannot be read: %s", keyFile, missing(kerr))
	default:
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			return fmt.Sprintf("the client certificate %s with the key %s: %s", certFile, keyFile, strings.TrimPrefix(err.Error(), "tls: "))
		}
	}
	return ""
}

func missing(err error) string {
	if errors.Is(err, fs.ErrNotExist) {
		return "it is not there"
	}
	if p := (*fs.PathError)(nil); errors.As(err, &p) {
		err = p.Err
	}
	return err.Error()
}

// requests lists what each host is asked, as resolver.go, fetcher.go and pusher.go of
// containerd's core/remotes/docker do.
func (e *explainer) requests() {
	const unknown = "DIGEST"
	pushed := false
	for i := range e.x.Hosts {
		h, c := &e.x.Hosts[i], e.caps[i]
		list := &h.Requests
		ask := func(kind Kind, method string, ns bool, parts ...string) {
			// The path is joined, which takes double slashes out.
			p := path.Join(append([]string{"/", c.Path, e.x.Repository}, parts...)...)
			if strings.HasSuffix(parts[len(parts)-1], "/") {
				p += "/"
			}
			u := strings.TrimSuffix(h.URL, c.Path) + p
			if ns && !e.isUpstream(c.Host) {
				u += "?ns=" + url.QueryEscape(e.x.Registry)
			}
			*list = append(*list, Request{method, u, kind})
		}
		if h.Skipped != "" || e.broken != "" {
			continue
		}
		object := cmp.Or(e.x.Digest, e.x.Tag)
		if e.x.Verb == VerbPush {
			switch {
			case !c.Push:
				h.Skipped = "its capabilities lack push"
			case pushed:
				h.Skipped = "a push goes to the first host that may push, and to no other"
			default:
				pushed = true
				// Since 2.3 mirrors hear the namespace in a push, too.
				ns := e.Release.AtLeast(2, 3, 0)
				ask(Other, "HEAD", ns, "blobs", unknown)
				ask(Other, "POST", ns, "blobs", "uploads/")
				upload := "LOCATION?digest=" + unknown
				if ns && !e.isUpstream(c.Host) {
					upload += "&ns=" + url.QueryEscape(e.x.Registry)
				}
				*list = append(*list, Request{"PUT", upload, Other})
				ask(Manifest, "HEAD", ns, "manifests", object)
				ask(Other, "PUT", ns, "manifests", object)
			}
			continue
		}
		if !c.Pull {
			h.Skipped = "its capabilities lack pull"
		}
		if e.x.Digest == "" && !c.Resolve {
			h.Skipped = "its capabilities lack resolve, which a tag needs"
			if !c.Pull {
				h.Skipped = "its capabilities lack pull and resolve"
			}
		}
		if h.Skipped == "" {
			ask(Manifest, "HEAD", true, "manifests", object)
			if e.x.Digest != "" {
				list = &h.IfMissing
				ask(Blob, "HEAD", true, "blobs", object)
				list = &h.Requests
			}
		}
		if e.x.Verb == VerbPull {
			digest := cmp.Or(e.x.Digest, unknown)
			ask(Content, "GET", true, "manifests", digest)
			ask(Blob, "GET", true, "blobs", unknown)
		}
	}
}

// finish says what it comes to.
func (e *explainer) finish() {
	x := e.x
	var asked []string
	last := ""
	resolves, upstream := false, false
	for i, h := range x.Hosts {
		if h.Skipped == "" && e.broken == "" {
			resolves = true
			asked = append(asked, e.caps[i].Scheme+"://"+h.Host)
			last = h.Role
			upstream = upstream || e.isUpstream(h.Host)
		}
	}
	// Layers are asked of those, too, that may not say which digest a tag has.
	var also []string
	if x.Verb == VerbPull && resolves {
		for i, h := range x.Hosts {
			if h.Skipped != "" && len(h.Requests) > 0 {
				also = append(also, e.caps[i].Scheme+"://"+h.Host)
				upstream = upstream || e.isUpstream(h.Host)
			}
		}
	}
	if !resolves {
		for i := range x.Hosts {
			x.Hosts[i].Requests, x.Hosts[i].IfMissing = []Request{}, nil
		}
	}
	done := map[string]string{VerbPull: "pulled", VerbResolve: "resolved", VerbPush: "pushed"}[x.Verb]
	x.End = "nobody"
	switch {
	case e.broken != "":
		x.Fails, x.Outcome = true, fmt.Sprintf("fails, and nobody is asked: %s", e.broken)
	case !resolves:
		x.Fails, x.Outcome = true, fmt.Sprintf("fails, and nobody is asked: no host may do that (%s)", skips(x.Hosts))
	case x.Verb == VerbPull && e.NotUnpacked[""] != "":
		x.End, x.Fails = asking(last, upstream), true
		x.Outcome = fmt.Sprintf("fails: %s may be asked for the name, and then the transfer service has nothing that unpacks for %s", strings.Join(asked, ", then "), e.NotUnpacked[""])
		for i := range x.Hosts {
			x.Hosts[i].Requests = slices.DeleteFunc(x.Hosts[i].Requests, func(r Request) bool { return r.Method == "GET" })
		}
	default:
		x.End = asking(last, upstream)
		x.Outcome = fmt.Sprintf("%s from %s", done, strings.Join(asked, ", then "))
		if x.Verb == VerbPush {
			x.Outcome = "pushed to " + asked[0]
		}
		if len(also) > 0 {
			x.Outcome += "; layers also from " + strings.Join(also, " and ")
		}
		if !upstream && x.Verb != VerbPush {
			x.Outcome += fmt.Sprintf("; never from %s itself", x.Registry)
		}
	}
	e.unpacked()
	e.ctr()
}

// asking is who is asked last.
func asking(last string, upstream bool) string {
	if upstream {
		return "upstream"
	}
	return last
}

// unpacked says for which snapshotters every pull fails.
func (e *explainer) unpacked() {
	if e.x.Verb != VerbPull {
		return
	}
	const mend = "unpack_config of plugins.'io.containerd.transfer.v1.local' has to name it"
	for _, runtime := range slices.Sorted(maps.Keys(e.NotUnpacked)) {
		if snapshotter := e.NotUnpacked[runtime]; runtime == "" {
			e.x.note("the snapshotter is %s: %s, or every pull fails with \"no unpack platforms defined\"", snapshotter, mend)
		} else {
			e.x.note("the runtime %s has the snapshotter %s: %s, or every pull for its pods fails", runtime, snapshotter, mend)
		}
	}
}

func skips(hosts []ExplainedHost) string {
	var out []string
	for _, h := range hosts {
		out = append(out, cmp.Or(h.Host, h.URL)+": "+h.Skipped)
	}
	return strings.Join(out, "; ")
}

// ctr says what ctr does, which reads neither config.toml nor hosts.toml by itself, and which
// line of it goes the way of CRI.
func (e *explainer) ctr() {
	x := e.x
	if e.Down != "" {
		x.Ctr.Lacks = "without containerd, ctr does nothing either"
		return
	}
	host := x.Registry
	if host == "docker.io" {
		host = dockerHub
	}
	scheme := "https"
	if hosts, err := e.Parse(nil, x.Registry); err == nil && len(hosts) > 0 {
		scheme = hosts[len(hosts)-1].Scheme
	}
	x.Ctr.Without = scheme + "://" + host
	switch {
	case e.off:
		x.Ctr.Lacks = "it needs no CRI, which is what fails here: no line of it says what a pod gets"
		return
	case e.mirrored:
		x.Ctr.Lacks = "no line of it goes this way, since registry.mirrors and registry.configs are for CRI alone: crictl pull goes it"
		return
	}
	verb := "pull"
	if x.Verb == VerbPush {
		verb = "push"
	}
	words := []string{"ctr", "-n", "k8s.io", "images", verb}
	root := ""
	for _, f := range x.Folders {
		if f.Chosen {
			root = path.Dir(f.Path)
		}
	}
	// A list that is taken for one folder is none that is there.
	if list := strings.Split(e.ConfigPath, ":"); root == "" && (len(list) == 1 || x.Service != "transfer") {
		root = list[0]
	}
	if root != "" {
		words = append(words, "--hosts-dir", root)
	} else if len(x.Hosts) == 1 && x.Hosts[0].PlainHTTP == "plain HTTP" && scheme == "https" {
		words = append(words, "--plain-http")
	}
	user, lacks := e.ctrUser()
	if user {
		words = append(words, "--user", "USER")
	}
	if len(e.Headers) > 0 && x.Verb != VerbPush {
		lacks = append(lacks, "it does not send what registry.headers has")
	}
	words = append(words, x.Reference)
	for i, w := range words {
		words[i] = diag.ShellWord(w)
	}
	x.Ctr.Command, x.Ctr.Lacks = strings.Join(words, " "), strings.Join(lacks, "; ")
}

// ctrUser says whether ctr may be given a user: it offers the password to every host that
// asks for one, so that there must be no other. lacks is what it does not do.
func (e *explainer) ctrUser() (user bool, lacks []string) {
	var known, others []string
	for _, h := range e.x.Hosts {
		list := &others
		if _, ok := e.Credentials[h.Host]; ok {
			list = &known
		}
		if len(h.Requests) > 0 && !slices.Contains(*list, h.Host) {
			*list = append(*list, h.Host)
		}
	}
	if len(known) == 0 {
		return false, nil
	}
	if len(known) == 1 && len(others) == 0 {
		return true, []string{"it reads no credentials from config.toml, and asks for the password of USER"}
	}
	return false, []string{fmt.Sprintf("it reads no credentials from config.toml, and goes without those for %s: --user would offer them to all of %s",
		strings.Join(known, " and "), strings.Join(slices.Concat(known, others), ", "))}
}
