package checks

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	hosts "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"github.com/sirupsen/logrus"

	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/internal/spelling"
	hoststoml "github.com/nodeprep/nodeprep/render/registry"
)

// hostsName is the one name under which containerd reads a registry's hosts.
const hostsName = "hosts.toml"

// endpoint is a host that a pull asks, with what its file says of it.
type endpoint struct {
	file string // hosts.toml, or the folder of certificates without one; "" for a default
	line int    // of its table, or of the server key; 0 for none
	// name is the URL as it is written; "" for a registry's own host that no file names.
	name       string
	server     bool // asked last
	registry   string
	scheme     string
	host       string // HOST or HOST:PORT
	path       string // the API's root, e.g. /v2
	caps       []string
	ca         []certFile
	client     []clientPair
	skipVerify bool
	tls        bool // has TLS settings
	override   bool
	// headers are the names of those it gets; their values are secrets.
	headers []string
	keys    map[string]keyAt
}

// keyAt is where a key is, and its value, which for a header is a secret.
type keyAt struct {
	line  int
	value any
}

type certFile struct {
	path string // absolute, as on the node
	line int
}

type clientPair struct {
	cert, key string // the same when one file holds both
	line      int
	// given is the pair as it is written.
	given string
	flat  bool // from a list that is no list of pairs
}

// url is where its API is.
func (e endpoint) url() string { return e.scheme + "://" + e.host + e.path }

// place is FILE:LINE, or the file where it has no line.
func (e endpoint) place() string { return at(e.file, e.line) }

// at is FILE:LINE, or FILE where the line is not known.
func at(file string, line int) string {
	if line == 0 {
		return file
	}
	return file + ":" + strconv.Itoa(line)
}

// hostsFault is something in a hosts.toml.
type hostsFault struct {
	verdict  Verdict
	line     int
	observed string
	wanted   string
	remedy   string
}

// hostsFile is a hosts.toml.
type hostsFile struct {
	path      string
	registry  string // "*" for that of all others
	endpoints []endpoint
	// faults make a file, or hosts in it, count for nothing; ignored are keys that do.
	faults, ignored []hostsFault
	secret          bool // a header authenticates
	broken          bool // cannot be decoded
	err             error
}

// tomlKey is a key of a file, in its order.
type tomlKey struct {
	path   []string
	line   int
	header bool // a table's own line, else a key with its value
}

// tomlKeys lists the tables and keys of a TOML file, those of inline tables left out.
func tomlKeys(content []byte) []tomlKey {
	var out []tomlKey
	var p unstable.Parser
	p.Reset(content)
	var table []string
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable && e.Kind != unstable.KeyValue {
			continue
		}
		k := tomlKey{header: e.Kind != unstable.KeyValue}
		if !k.header {
			k.path = slices.Clone(table)
		}
		for it := e.Key(); it.Next(); {
			if k.line == 0 {
				k.line = 1 + bytes.Count(content[:it.Node().Raw.Offset], []byte("\n"))
			}
			k.path = append(k.path, string(it.Node().Data))
		}
		if k.header {
			table = k.path
		}
		out = append(out, k)
	}
	return out
}

// endpointKeys are the keys of an endpoint (containerd docs/hosts.md); root has two more.
func endpointKeys() []string {
	return []string{"capabilities", "ca", "client", "skip_verify", "header", "override_path", "dial_timeout"}
}

// meant is the key that somebody wrote another name of, "" where nobody can tell.
func meantKey(key string, known []string) string {
	switch strings.ToLower(strings.NewReplacer("_", "", "-", "", ".", "").Replace(key)) {
	case "insecure", "insecureskipverify", "tlsskipverify", "skiptlsverify":
		return "skip_verify"
	case "cacert", "cacerts", "cafile", "capath", "cas":
		return "ca"
	case "cert", "certs", "clientcert", "key", "clientkey", "clients":
		return "client"
	case "timeout":
		return "dial_timeout"
	}
	return spelling.Nearest(key, known)
}

// hostsReader reads one hosts.toml as a containerd of a release does.
type hostsReader struct {
	*hostsFile
	release releases.Version
	word    string // its path, for a shell
	keys    []tomlKey
	lines   []string
}

// old says whether the release is of 1.x.
func (r *hostsReader) old() bool {
	return r.release != (releases.Version{}) && !r.release.AtLeast(2, 0, 0)
}

// before says whether the release is known and does not do what ok says.
func (r *hostsReader) before(ok func(releases.Version) bool) bool {
	return r.release != (releases.Version{}) && !ok(r.release)
}

func (r *hostsReader) fault(line int, remedy, wanted, observed string, args ...any) {
	r.faults = append(r.faults, hostsFault{Fail, line, fmt.Sprintf(observed, args...), wanted, remedy})
}

func (r *hostsReader) ignore(line int, remedy, wanted, observed string, args ...any) {
	r.ignored = append(r.ignored, hostsFault{Warn, line, fmt.Sprintf(observed, args...), wanted, remedy})
}

// readHosts is a hosts.toml as a release reads it; word is its path for a shell. What the
// release cannot decode leaves nothing but faults.
func readHosts(p, registry string, content []byte, release releases.Version, word string) *hostsFile {
	r := &hostsReader{hostsFile: &hostsFile{path: p, registry: registry}, release: release, word: word, lines: strings.Split(string(content), "\n")}
	read := hoststoml.ReadHostsFile(p, content, release)
	if r.old() {
		content = bytes.TrimPrefix(content, []byte("\ufeff")) // which 2.x does not take
	}
	var tree map[string]any
	if err := toml.Unmarshal(content, &tree); err != nil {
		line := 0
		if e, ok := errors.AsType[*toml.DecodeError](err); ok {
			line, _ = e.Position()
		}
		r.broken = true
		r.fault(line, "", "TOML", "not valid TOML: %s", strings.TrimPrefix(err.Error(), "toml: "))
		return r.hostsFile
	}
	r.keys = tomlKeys(content)
	tables, _ := tree["host"].(map[string]any)
	server, _ := tree["server"].(string)
	if tree["host"] == nil && r.before(func(v releases.Version) bool { return !releases.BareHostTableNeeded(v) }) {
		r.fault(0, fmt.Sprintf(`printf '\n[host]\n' >> %s`, word), "a [host] table, if empty",
			"without a [host] table, containerd %s takes the whole file for broken", release)
	}
	for _, name := range r.order(read) {
		table, _ := tables[name].(map[string]any)
		r.endpoints = append(r.endpoints, r.endpoint(name, []string{"host", name}, table, false))
	}
	r.endpoints = append(r.endpoints, r.endpoint(server, nil, tree, true))
	r.unknown(tree, tables)
	if read.Err != nil && len(r.faults) == 0 {
		r.fault(0, "", "", "containerd %s finds %s: the whole file is ignored", release, read.Err)
	}
	return r.hostsFile
}

// line is where a key or table is first named, 0 where it is not by itself.
func (r *hostsReader) line(path ...string) int {
	for _, k := range r.keys {
		if len(k.path) >= len(path) && slices.Equal(k.path[:len(path)], path) {
			return k.line
		}
	}
	return 0
}

// order lists the hosts in the order in which they are asked, and finds what is odd about it:
// 1.x takes all, those that have no table of their own in any order; 2.x drops those, and takes
// a host anew where another's header stands between.
func (r *hostsReader) order(read hoststoml.HostsFile) []string {
	var seen []string
	last := ""
	for _, k := range r.keys {
		if k.header && len(k.path) >= 2 && k.path[0] == "host" && k.path[1] != last {
			last = k.path[1]
			if slices.Contains(seen, last) && !r.old() {
				r.fault(k.line, "", "its tables right after each other", "host %s is asked twice: another host's table stands between its own", last)
			}
			seen = append(seen, last)
		}
		if k.header && r.old() && strings.Contains(strings.Join(k.path, ""), "]") {
			r.fault(k.line, "", "hosts as dotted keys of [host]", "containerd %s takes no ] in the name of a table, and so ignores the whole file", r.release)
		}
	}
	for _, name := range read.Unasked() {
		r.fault(r.inline(name), "", fmt.Sprintf("a table [host.%q]", name), "host %s is never asked: containerd 2 reads only hosts that have a table of their own", name)
	}
	if anyhow := read.AnyOrder(); len(anyhow) > 0 {
		r.ignore(r.inline(anyhow[0]), "", "a table for each", "hosts %s are inline tables, which containerd %s asks in any order", strings.Join(anyhow, " and "), r.release)
	}
	return read.Hosts()
}

// inline is the line of a host that has no table of its own.
func (r *hostsReader) inline(name string) int {
	if line := r.line("host", name); line > 0 {
		return line
	}
	for i, l := range r.lines {
		if strings.Contains(l, name) {
			return i + 1
		}
	}
	return r.line("host")
}

// endpoint reads a table as containerd's parseHostConfig does.
func (r *hostsReader) endpoint(name string, at []string, table map[string]any, server bool) endpoint {
	e := endpoint{file: r.path, name: name, server: server, registry: r.registry, line: r.line(append(slices.Clone(at), "server")...), keys: map[string]keyAt{}}
	if !server {
		e.line = r.inline(name)
	}
	values := map[string]any{}
	for key, v := range table {
		known := strings.ToLower(key)
		if slices.Contains(endpointKeys(), known) {
			values[known] = v
			line := r.line(append(slices.Clone(at), key)...)
			if line == 0 {
				line = e.line
			}
			e.keys[known] = keyAt{line, v}
		}
	}
	e.override, _ = values["override_path"].(bool)
	e.locate()
	if skip, ok := values["skip_verify"].(bool); ok {
		e.tls, e.skipVerify = true, skip
	}
	for key := range values {
		switch key {
		case "capabilities":
			r.capabilities(&e)
		case "ca":
			e.tls = true
			r.ca(&e)
		case "client":
			e.tls = true
			r.client(&e)
		case "header":
			r.header(&e)
		case "dial_timeout":
			k := e.keys[key]
			_, err := time.ParseDuration(fmt.Sprint(k.value))
			switch text, ok := k.value.(string); {
			case r.before(releases.DialTimeoutSupported):
				r.ignore(k.line, "", "", "dial_timeout counts for nothing: containerd %s does not know it", r.release)
			case !ok || text != "" && err != nil:
				r.fault(k.line, "", `a duration such as "5s"`, "dial_timeout is %v, which is no duration: the whole file is ignored", k.value)
			}
		}
	}
	return e
}

// locate tells scheme, host and path as parseHostConfig does, and what a registry's own
// host is where nobody names it.
func (e *endpoint) locate() {
	given := e.name
	if given == "" {
		e.scheme, e.host, e.path = "https", e.registry, "/v2"
		switch {
		case e.registry == "docker.io":
			e.host = "registry-1.docker.io"
		case hoststoml.Localhost(e.registry):
			_, port, _ := strings.Cut(e.registry, ":")
			if port != "" && port != "443" {
				e.scheme = "http"
			}
			if port != "80" {
				e.tls, e.skipVerify = true, true
			}
		}
		return
	}
	if !strings.HasPrefix(given, "http") {
		given = "https://" + given
	}
	u, err := url.Parse(given)
	if err != nil {
		return
	}
	e.scheme, e.host, e.path = u.Scheme, u.Host, u.Path
	switch {
	case len(u.Path) > 0:
		e.path = path.Clean(u.Path)
		if !strings.HasSuffix(e.path, "/v2") && !e.override {
			e.path += "/v2"
		}
	case !e.override:
		e.path = "/v2"
	}
}

// textList is a value that is a text or a list of texts.
func textList(v any) ([]string, bool) {
	switch v := v.(type) {
	case string:
		return []string{v}, true
	case []any:
		out := make([]string, 0, len(v))
		for _, e := range v {
			s, ok := e.(string)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	}
	return nil, false
}

func (r *hostsReader) capabilities(e *endpoint) {
	k := e.keys["capabilities"]
	list, ok := textList(k.value)
	if _, isList := k.value.([]any); !ok || !isList {
		r.fault(k.line, "", `a list such as ["pull", "resolve"]`, "capabilities is no list of texts: the whole file is ignored")
		return
	}
	for _, c := range list {
		name := strings.ToLower(c)
		line := r.lineOf(k.line, `"`+c+`"`, "'"+c+"'")
		// Either kind of quotes, in a script that is in quotes itself.
		item := `["'\'']` + sedPattern(c) + `["'\'']`
		drop := fmt.Sprintf(`sed -i '%[1]d{s/%[2]s[[:space:]]*,[[:space:]]*//;s/[[:space:]]*,[[:space:]]*%[2]s//;s/%[2]s//}' %[3]s`, line, item, r.word)
		switch {
		case name == "referrers" && r.before(releases.ReferrersSupported):
			r.fault(line, drop, "pull, resolve or push",
				"containerd %s does not know the capability referrers, and so ignores the whole file", r.release)
		case !slices.Contains([]string{"pull", "resolve", "push", "referrers"}, name):
			r.fault(line, drop, "pull, resolve, push or referrers", "unknown capability %q: the whole file is ignored", c)
		default:
			e.caps = append(e.caps, name)
		}
	}
}

// lineOf is the first line from one on that has one of the texts; a list may go over several.
func (r *hostsReader) lineOf(from int, texts ...string) int {
	for i := max(from, 1); i <= len(r.lines); i++ {
		if slices.ContainsFunc(texts, func(text string) bool { return strings.Contains(r.lines[i-1], text) }) {
			return i
		}
	}
	return from
}

// beside is a path as containerd resolves it: from the folder of the hosts.toml.
func (r *hostsReader) beside(p string) string {
	if path.IsAbs(p) {
		return p
	}
	return path.Join(path.Dir(r.path), p)
}

func (r *hostsReader) ca(e *endpoint) {
	k := e.keys["ca"]
	list, ok := textList(k.value)
	if !ok {
		r.fault(k.line, "", `a path, or a list of paths`, "ca is neither a path nor a list of paths: the whole file is ignored")
		return
	}
	for _, p := range list {
		e.ca = append(e.ca, certFile{r.beside(p), r.lineOf(k.line, p)})
	}
}

func (r *hostsReader) client(e *endpoint) {
	k := e.keys["client"]
	const wanted = `"BOTH.pem", or pairs [["CERT.pem", "KEY.pem"]]`
	single := func(p string, flat bool) {
		e.client = append(e.client, clientPair{cert: r.beside(p), key: r.beside(p), line: r.lineOf(k.line, p), given: strconv.Quote(p), flat: flat})
	}
	list, isList := k.value.([]any)
	if p, ok := k.value.(string); ok {
		single(p, false)
		return
	}
	if !isList {
		r.fault(k.line, "", wanted, "client is neither a path nor a list: the whole file is ignored")
		return
	}
	for _, entry := range list {
		if p, ok := entry.(string); ok {
			single(p, len(list) > 1)
			continue
		}
		pair, ok := textList(entry)
		if !ok || len(pair) != 2 {
			r.fault(k.line, "", wanted, "client has an entry that is no pair of paths: the whole file is ignored")
			continue
		}
		e.client = append(e.client, clientPair{
			cert: r.beside(pair[0]), key: r.beside(pair[1]), line: r.lineOf(k.line, pair[0]), given: fmt.Sprintf("[%q, %q]", pair[0], pair[1]),
		})
	}
}

func (r *hostsReader) header(e *endpoint) {
	k := e.keys["header"]
	table, ok := k.value.(map[string]any)
	if !ok {
		r.fault(k.line, "", "a table of headers", "header is no table: the whole file is ignored")
		return
	}
	for name, v := range table {
		// The value is a secret, also where it is wrong.
		if _, ok := textList(v); !ok {
			line := r.lineOf(k.line, name)
			r.fault(line, "", "a text, or a list of texts", "header %s is neither a text nor a list of texts: the whole file is ignored", name)
		}
		e.headers = append(e.headers, name)
		if authenticates(name) {
			r.secret = true
		}
	}
	slices.Sort(e.headers)
}

// authenticates says whether a header's value is what a thief would want.
func authenticates(header string) bool {
	return slices.Contains([]string{"authorization", "proxy-authorization", "cookie", "x-api-key", "x-auth-token", "private-token", "x-jfrog-art-api"}, strings.ToLower(header))
}

// unknown finds the keys that nobody reads.
func (r *hostsReader) unknown(tree, hosts map[string]any) {
	root := append(endpointKeys(), "server", "host")
	look := func(at []string, table map[string]any, known []string) {
		for key, v := range table {
			line := r.line(append(slices.Clone(at), key)...)
			if line == 0 && len(at) > 1 {
				line = r.inline(at[1])
			}
			name := strings.ToLower(key)
			switch _, nested := v.(map[string]any); {
			case slices.Contains(known, name):
			case name == "server" && len(at) > 0:
				value, _ := v.(string)
				remedy := ""
				if value != "" && line > 0 {
					remedy = fmt.Sprintf("sed -i -e '%dd' -e '1i server = %s' %s", line, strings.ReplaceAll(strconv.Quote(value), "'", ""), r.word)
				}
				r.fault(line, remedy, "server before the first [host] table", "server stands behind [host.%q] and belongs to it, where it counts for nothing", at[1])
			case name == "host" && len(at) > 0:
				r.fault(line, "", "each host in a table of its own", "a host within host %s is never asked", at[1])
			case nested && strings.HasPrefix(key, "http") && len(at) == 0:
				r.ignore(line, fmt.Sprintf("sed -i '%ds/^\\([[:space:]]*\\)\\[/\\1[host./' %s", line, r.word), fmt.Sprintf("[host.%q]", key), "table %q is not below host: it counts for nothing", key)
			case slices.Contains([]string{"username", "password", "auth", "identitytoken"}, name):
				r.ignore(line, "", "credentials in the pull secret, or in registry.configs of the daemon's config", "%s counts for nothing: there are no credentials in a hosts.toml", key)
			default:
				wanted, remedy := "", ""
				if m := meantKey(key, known); m != "" {
					wanted = m
					if line > 0 && !nested {
						remedy = fmt.Sprintf("sed -i '%ds/%s/%s/' %s", line, sedPattern(key), m, r.word)
					}
				}
				r.ignore(line, remedy, wanted, "%s counts for nothing: containerd knows no such key", key)
			}
		}
	}
	look(nil, tree, root)
	for name, t := range hosts {
		if table, ok := t.(map[string]any); ok {
			look([]string{"host", name}, table, endpointKeys())
		} else {
			r.fault(r.line("host", name), "", fmt.Sprintf("a table [host.%q]", name), "host.%s is no table: the whole file is ignored", name)
		}
	}
	byLine := func(a, b hostsFault) int {
		return cmp.Or(a.line-b.line, strings.Compare(a.observed, b.observed))
	}
	slices.SortFunc(r.faults, byLine)
	slices.SortFunc(r.ignored, byLine)
}

// sedPattern is a text for the left side of sed's s command between slashes.
func sedPattern(s string) string {
	return strings.NewReplacer(`\`, `\\`, `/`, `\/`, `.`, `\.`, `*`, `\*`, `[`, `\[`, `]`, `\]`, `^`, `\^`, `$`, `\$`, `&`, `\&`, `'`, `.`).Replace(s)
}

// errLinked is a file that containerd's parser would look for elsewhere.
var errLinked = errors.New("hosts.toml is a symbolic link to another name: containerd's own parser cannot be asked within this root")

// containerdReads lets containerd's own code read the hosts.toml of a folder and returns
// what it logs: it goes on without a file that it cannot decode. What it says of
// certificates is other checks'.
func (n *Node) containerdReads(ctx context.Context, dir string) error {
	file, err := n.Host.Root.Resolve(path.Join(dir, hostsName))
	if err != nil {
		return err
	}
	if filepath.Base(file) != hostsName {
		return errLinked
	}
	said := &errorHook{}
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(said)
	ctx = log.WithLogger(ctx, logrus.NewEntry(logger))
	read := hosts.ConfigureHosts(ctx, hosts.HostOptions{HostDir: func(string) (string, error) { return filepath.Dir(file), nil }})
	if _, err := read("registry.invalid"); err != nil && !strings.Contains(err.Error(), "cert") && !strings.Contains(err.Error(), "CERT") && !strings.Contains(err.Error(), "X509") {
		return err
	}
	return said.err
}

// errorHook keeps the first error that is logged.
type errorHook struct{ err error }

// Levels are those of errors.
func (h *errorHook) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

// Fire keeps the entry's error.
func (h *errorHook) Fire(e *logrus.Entry) error {
	if h.err == nil {
		h.err = errors.New(e.Message)
		if err, ok := e.Data[logrus.ErrorKey].(error); ok {
			h.err = err
		}
	}
	return nil
}
