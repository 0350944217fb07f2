package checks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

const (
	hostsCheck  = "registry/hosts-toml"
	caCheck     = "registry/ca"
	clientCheck = "registry/client-cert"
	mirrorCheck = "registry/mirror-reachable"
)

// registryChecks are about hosts.toml files and the registries that they name.
func registryChecks() []Check {
	return []Check{
		{
			ID: hostsCheck, Stage: Audit, Severity: Required,
			Why:    "containerd logs a line when it cannot decode a hosts.toml and goes on without it: all its mirrors are gone.",
			Source: "containerd core/remotes/docker/config/hosts.go, loadHostDir; k3s issue 9693",
			Needs:  []string{"config/registry-path"},
			Remedy: "# correct the line that is named; containerd reads the file anew at each pull",
			Run:    hostsFiles,
		},
		{
			ID: "registry/ignored", Stage: Audit, Severity: Recommended,
			Why:    "What nobody reads looks like it is in force: the pull goes another way and nothing says so.",
			Source: "containerd docs/hosts.md; core/remotes/docker/config/config_unix.go, hostPaths",
			Needs:  []string{"config/registry-path"},
			Remedy: "# move it to where containerd looks, or remove it",
			Run:    ignoredFiles,
		},
		{
			ID: "registry/urls", Stage: Audit, Severity: Recommended,
			Why:    "A URL that is slightly off is read without complaint, and the API is asked for where it is not.",
			Source: "containerd core/remotes/docker/config/hosts.go, parseHostConfig; docs/hosts.md",
			Needs:  []string{hostsCheck},
			Remedy: "# correct the URL",
			Run:    registryURLs,
		},
		{
			ID: "registry/deny", Stage: Audit, Severity: Required,
			Why:    "A hosts.toml without a server of its own falls back to the registry itself, which the profile denies; a folder that the profile does not know goes before its \"*\".",
			Source: "containerd docs/hosts.md, server",
			Needs:  []string{NeedProfile, hostsCheck},
			Remedy: "nodeprep apply --adopt",
			Run:    denied,
		},
		{
			ID: "registry/foreign", Stage: Audit, Severity: Recommended,
			Why:    "A folder that the profile does not know goes before its \"*\": images of that registry go another way than the profile says.",
			Source: "containerd core/remotes/docker/config/config_unix.go, hostPaths",
			Needs:  []string{NeedProfile, hostsCheck},
			Remedy: "# name the registry in the profile, or remove its folder",
			Run:    foreignFolders,
		},
		{
			ID: caCheck, Stage: Audit, Severity: Required,
			Why:    "A CA file that is missing or expired makes every pull from its registry fail, not only those from its mirror.",
			Source: "containerd core/remotes/docker/config/hosts.go, updateTLSConfigFromHost",
			Needs:  []string{hostsCheck},
			Remedy: "# put the registry's CA certificate there, in PEM",
			Run:    registryCA,
		},
		{
			ID: clientCheck, Stage: Audit, Severity: Required,
			Why:    "A client certificate that is missing, expired or without its key makes every pull from its registry fail.",
			Source: "containerd core/remotes/docker/config/hosts.go, updateTLSConfigFromHost; docs/hosts.md, client",
			Needs:  []string{hostsCheck},
			Remedy: "# put the certificate and its key there, in PEM",
			Run:    clientCerts,
		},
		{
			ID: "registry/permissions", Stage: Audit, Severity: Recommended,
			Why:    "Keys and authorization headers that everybody may read are everybody's, and who may write a hosts.toml chooses whose images run.",
			Source: "containerd docs/hosts.md, header; inode(7)",
			Needs:  []string{hostsCheck},
			Remedy: "chmod 0600 /etc/containerd/certs.d/HOST/hosts.toml",
			Run:    registryPermissions,
		},
		{
			ID: "registry/credentials", Stage: Audit, Severity: Recommended,
			Why:    "Credentials count for the host that is contacted, which is a mirror's or registry-1.docker.io, not for the name in the image.",
			Source: "containerd docs/cri/registry.md; containerd issue 10996",
			Needs:  []string{hostsCheck},
			Remedy: "# name the host that is contacted in registry.configs",
			Run:    credentialHosts,
		},
		{
			ID: mirrorCheck, Stage: Audit, Severity: Required,
			Why:    "A mirror that does not answer costs every pull its timeout, and without upstream behind it no image comes at all.",
			Source: "OCI distribution specification, Determining Support; containerd docs/hosts.md",
			Needs:  []string{NeedLive, NeedNetwork, hostsCheck, caCheck, clientCheck},
			Remedy: "# start the mirror, or correct its URL in hosts.toml",
			Run:    mirrorsReachable,
		},
		{
			ID: "registry/mirror-certificate", Stage: Audit, Severity: Recommended,
			Why:    "The day a mirror's certificate ends, no image comes through it; with skip_verify, anybody can be the mirror.",
			Source: "RFC 5280, section 6.1; containerd docs/hosts.md, skip_verify",
			Needs:  []string{mirrorCheck},
			Remedy: "# renew the mirror's certificate",
			Run:    mirrorCertificates,
		},
		{
			ID: "registry/auth", Stage: Audit, Severity: Recommended,
			Why:    "A mirror that asks for credentials gets none from a pod's pull secret, and pulls end in 401.",
			Source: "OCI distribution specification; containerd issue 10996; RFC 9110, WWW-Authenticate",
			Needs:  []string{mirrorCheck},
			Remedy: "# give the mirror credentials: mirrors[].auth of the profile, without one registry.configs of config.toml, or an Authorization header in hosts.toml",
			Run:    mirrorAuth,
		},
		{
			ID: "registry/upstream", Stage: Audit, Severity: Recommended,
			Why:    "What a mirror lacks is asked of the registry itself; where that cannot be reached, each such pull waits for its timeout.",
			Source: "containerd docs/hosts.md, server",
			Needs:  []string{NeedLive, NeedNetwork, hostsCheck, caCheck, clientCheck},
			Remedy: "# set upstream: deny for the registry in the profile, or let the node reach it",
			Run:    upstreamReachable,
		},
		{
			ID: "registry/denied", Stage: Audit, Severity: Recommended,
			Why:    "Where a denied registry can be reached all the same, tools that do not read hosts.toml, such as ctr, pull from it.",
			Source: "containerd docs/hosts.md, CLI; containerd issue 6438",
			Needs:  []string{NeedLive, NeedProfile, NeedNetwork},
			Remedy: "# block the registry in the network",
			Run:    deniedReachable,
		},
	}
}

// folder is one in a config_path.
type folder struct {
	path string
	name string
	// registry is whose images it is for, "*" for those of all others.
	registry string
	// unread says why nobody reads it, instead what to do about it.
	unread, instead string
	// narrow is for whose images alone it is read, "" where that is plain.
	narrow  string
	remedy  string
	entries []fs.DirEntry
	err     error
	file    *hostsFile // nil without a hosts.toml
	// docker is what it says as a folder of certificates, where there is no hosts.toml.
	docker *endpoint
}

// certs is what is below the config_path.
type certs struct {
	release releases.Version
	config  *configtoml.Config
	given   string // config_path as it is written, "" for none
	place   configtoml.Place
	roots   []string // folders that the daemon looks in
	folders []folder
	loose   []string // files in a root itself
	err     error    // of a root that cannot be listed
}

// files are all that are read, sorted by path.
func (c *certs) files() []*hostsFile {
	var out []*hostsFile
	for _, f := range c.folders {
		if f.file != nil && f.unread == "" {
			out = append(out, f.file)
		}
	}
	return out
}

// endpoints are all that files and folders name, and those that nobody could read.
func (c *certs) endpoints() []endpoint {
	var out []endpoint
	for _, f := range c.folders {
		switch {
		case f.unread != "":
		case f.file != nil:
			out = append(out, f.file.endpoints...)
		case f.docker != nil:
			out = append(out, *f.docker)
		}
	}
	return out
}

// hosts are whom a pull from a registry asks, in order.
func (c *certs) hosts(host string) []endpoint {
	for _, want := range []string{host, "*"} {
		for _, f := range c.folders {
			if f.unread != "" || f.registry != want {
				continue
			}
			switch {
			case f.file != nil && !f.file.broken && f.file.err == nil:
				out := slices.Clone(f.file.endpoints)
				if last := &out[len(out)-1]; last.name == "" {
					last.registry = host
					last.locate()
				}
				return out
			case f.docker != nil:
				e := *f.docker
				e.registry = host
				e.locate()
				return []endpoint{e}
			}
			// A folder of which nothing counts keeps containerd from looking at _default all
			// the same.
			e := endpoint{registry: host, server: true}
			e.locate()
			return []endpoint{e}
		}
	}
	e := endpoint{registry: host, server: true}
	e.locate()
	return []endpoint{e}
}

// certs reads what is below the config_path.
func (n *Node) certs() (*certs, error) {
	return remember(n, "certs", func(context.Context) (*certs, error) {
		c := &certs{}
		var err error
		if c.config, err = n.Config(); err != nil {
			return nil, err
		}
		if c.release, _, err = n.Release(); err != nil {
			return nil, err
		}
		c.given, c.place = c.config.ConfigPath()
		for _, p := range strings.Split(c.given, ":") {
			if p != "" && !slices.Contains(c.roots, path.Clean(p)) {
				c.roots = append(c.roots, path.Clean(p))
			}
		}
		for _, root := range c.roots {
			entries, err := n.Host.Root.ReadDir(root)
			switch {
			case absent(err):
				continue
			case err != nil:
				c.err = err
				continue
			}
			for _, e := range entries {
				p := path.Join(root, e.Name())
				fi, err := n.Host.Root.Stat(p)
				if err == nil && !fi.IsDir() {
					c.loose = append(c.loose, p)
					continue
				}
				c.folders = append(c.folders, n.folder(p, c))
			}
		}
		return c, nil
	})
}

// hostPort is HOST_PORT_, containerd's own name of a folder for HOST:PORT (hostDirectory
// in config_unix.go), with or without its end.
var hostPort = regexp.MustCompile(`^(.+)_([0-9]+)(_?)$`)

// folder reads one folder of a root. Those before it are in c.
func (n *Node) folder(p string, c *certs) folder {
	f := folder{path: p, name: path.Base(p)}
	f.registry = f.name
	root := path.Dir(p)
	rename := func(to string) {
		f.instead = path.Join(root, to)
		f.remedy = fmt.Sprintf("mv -T %s %s", n.word(p), n.word(f.instead))
	}
	m := hostPort.FindStringSubmatch(f.name)
	hub, isHub := profiles.Hub(f.name)
	switch {
	case f.name == "_default":
		f.registry = "*"
		if c.release != (releases.Version{}) && !releases.DefaultDirSupported(c.release) {
			f.unread, f.instead = fmt.Sprintf("containerd %s does not look at _default", c.release), "a folder for each registry"
		}
	case m != nil && m[3] == "_":
		f.registry = m[1] + ":" + m[2]
	case strings.HasPrefix(f.name, "[") && strings.HasSuffix(f.name, "]_") && strings.Contains(f.name, ":_"):
		// An address of IPv6 without a port, whose last colon is taken for one's.
		i := strings.LastIndex(strings.TrimSuffix(f.name, "_"), "_")
		f.registry = f.name[:i] + ":" + strings.TrimSuffix(f.name[i+1:], "_")
	case m != nil:
		f.unread = "it is no name of a registry: images of " + m[1] + ":" + m[2] + " have another folder"
		rename(f.name + "_")
	case hub.Unread:
		f.unread = "images of Docker Hub are docker.io's"
		rename("docker.io")
	case isHub && f.name != "docker.io":
		f.narrow = f.name + "/IMAGE"
	case strings.ContainsAny(f.name, "*?"):
		f.unread = "containerd knows no patterns"
		rename("_default")
	case !strings.ContainsAny(f.name, ".:") && f.name != "localhost" && strings.ToLower(f.name) == f.name:
		f.unread = fmt.Sprintf("%s/IMAGE is docker.io/%[1]s/IMAGE, as it has neither a dot nor a port", f.name)
		f.instead = "the registry's full name"
	}
	for _, other := range c.folders {
		if f.unread == "" && other.unread == "" && (other.registry == f.registry || other.registry == "*" && path.Dir(other.path) != root) {
			f.unread, f.instead = other.path+" comes first", "one folder"
			f.remedy = ""
		}
	}
	if first := path.Join(root, registry.FolderName(f.registry)); f.unread == "" && first != p && f.registry != "*" && n.exists(first) {
		f.unread, f.instead = first+" comes first", "one folder"
	}
	if f.entries, f.err = n.Host.Root.ReadDir(p); f.err != nil {
		return f
	}
	file := path.Join(p, hostsName)
	content, err := n.Host.Root.ReadFile(file)
	switch {
	case err == nil && len(content) > 0:
		f.file = readHosts(file, f.registry, content, c.release, n.word(file))
	case err != nil && !absent(err):
		f.file = &hostsFile{path: file, registry: f.registry, err: err, broken: true}
	default:
		f.docker = n.dockerFolder(f)
	}
	return f
}

// dockerFolder is a folder with certificates as Docker has them: *.crt, and *.cert with
// its *.key (loadCertFiles in hosts.go).
func (n *Node) dockerFolder(f folder) *endpoint {
	e := endpoint{file: f.path, server: true, registry: f.registry, keys: map[string]keyAt{}}
	for _, entry := range f.entries {
		p := path.Join(f.path, entry.Name())
		switch {
		case entry.IsDir():
		case strings.HasSuffix(p, ".crt"):
			e.ca = append(e.ca, certFile{path: p})
		case strings.HasSuffix(p, ".cert"):
			pair := clientPair{cert: p, key: p, given: entry.Name()}
			if key := strings.TrimSuffix(p, ".cert") + ".key"; n.exists(key) {
				pair.key = key
			}
			e.client = append(e.client, pair)
		}
	}
	if len(e.ca)+len(e.client) == 0 {
		return nil
	}
	e.tls = true
	e.locate()
	return &e
}

// word is a path of this host as a word for a shell, below its root where that is another.
func (n *Node) word(p string) string { return quote(n.onHost(p)) }

// rendered are the paths of the profile's files below certs.d. Its error says that the profile
// has faults, and what it renders is not known.
func (n *Node) rendered() ([]string, error) {
	return remember(n, "rendered registries", func(context.Context) ([]string, error) {
		if n.Spec == nil {
			return nil, nil
		}
		files, faults := registry.Files(n.Spec, nil)
		if faults.HasErrors() {
			return nil, fmt.Errorf("the profile's registries: %w", faults.Err())
		}
		var paths []string
		for _, f := range files {
			paths = append(paths, f.Path)
		}
		return paths, nil
	})
}

// ours says whether the profile renders a file.
func (n *Node) ours(p string) bool {
	paths, err := n.rendered()
	return err == nil && slices.Contains(paths, p)
}

// restore is the remedy for a file that is not as it should be: the profile's, where it
// has it.
func (n *Node) restore(file, otherwise string) string {
	if n.ours(file) {
		return n.reapply(true)
	}
	return otherwise
}

const noHosts = "no hosts.toml"

// eachFile runs a check of all that was read.
func eachFile(n *Node, look func(c *certs) []Result, format string, args func(c *certs) []any) []Result {
	c, err := n.certs()
	if err != nil {
		return unknown(err)
	}
	if c.err != nil {
		return unknown(c.err)
	}
	if len(c.endpoints()) == 0 && len(c.files()) == 0 {
		return pass(noHosts)
	}
	return orPass(look(c), format, args(c)...)
}

func countFiles(c *certs) []any { return []any{len(c.files())} }

func hostsFiles(ctx context.Context, n *Node) []Result {
	return eachFile(n, func(c *certs) []Result {
		var out []Result
		for _, f := range c.files() {
			out = append(out, n.judge(ctx, c, f)...)
		}
		for _, f := range c.folders {
			if f.unread == "" && f.err != nil {
				out = append(out, Result{Verdict: Unknown, Object: f.path, Observed: f.err.Error()})
			}
		}
		return out
	}, "%d files, read by containerd's own parser", countFiles)
}

// judge is what is wrong with a file: what nodeprep finds, with its line, else what
// containerd's own parser says.
func (n *Node) judge(ctx context.Context, c *certs, f *hostsFile) []Result {
	r := Result{Verdict: Fail, Object: f.path, Place: f.path}
	switch {
	case errors.Is(f.err, fs.ErrPermission):
		r.Verdict, r.Observed = Unknown, f.err.Error()
		return []Result{r}
	case f.err != nil:
		r.Observed, r.Wanted = f.err.Error(), "a file"
		return []Result{r}
	}
	var out []Result
	for _, fault := range f.faults {
		x := r
		x.Observed, x.Wanted, x.Place, x.Remedy = fault.observed, fault.wanted, at(f.path, fault.line), fault.remedy
		if x.Remedy == "" {
			x.Remedy = n.restore(f.path, fmt.Sprintf("# correct line %d of %s", fault.line, f.path))
		}
		out = append(out, x)
	}
	if len(out) > 0 {
		return out
	}
	err := n.containerdReads(ctx, path.Dir(f.path))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errLinked), errors.Is(err, fs.ErrPermission):
		r.Verdict, r.Observed = Unknown, err.Error()
		return []Result{r}
	case strings.Contains(err.Error(), "duration") && c.release != (releases.Version{}) && !releases.DialTimeoutSupported(c.release):
		return nil // an older one does not look at it
	}
	r.Observed, r.Wanted = "containerd's parser: "+err.Error()+": the whole file is ignored", "what docs/hosts.md has"
	// Some of its messages repeat the value, which in a header is a secret.
	if text := err.Error(); strings.Contains(text, "header") || strings.Contains(text, "cast") {
		r.Observed = "containerd's parser refuses a value: the whole file is ignored"
	}
	if e, ok := errors.AsType[*toml.DecodeError](err); ok {
		line, _ := e.Position()
		r.Place = at(f.path, line)
	}
	r.Remedy = n.restore(f.path, "# correct "+r.Place)
	return []Result{r}
}

const usualCerts = "/etc/containerd/certs.d"

func ignoredFiles(_ context.Context, n *Node) []Result {
	c, err := n.certs()
	if err != nil {
		return unknown(err)
	}
	if c.err != nil {
		return unknown(c.err)
	}
	var out []Result
	add := func(p, observed, wanted, remedy string) {
		out = append(out, Result{Verdict: Warn, Object: p, Observed: observed, Wanted: wanted, Place: p, Remedy: remedy})
	}
	for _, p := range c.loose {
		if looksMeant(p) {
			add(p, "containerd reads only folders of registries here", "in a folder such as "+path.Join(path.Dir(p), "docker.io"), "")
		}
	}
	catchAll := slices.ContainsFunc(c.folders, func(f folder) bool { return f.registry == "*" && f.unread == "" })
	for _, f := range c.folders {
		if f.unread != "" {
			add(f.path, f.unread, f.instead, f.remedy)
			continue
		}
		if f.narrow != "" {
			add(f.path, "it is for images that are named "+f.narrow+" alone: those of Docker Hub are docker.io's", path.Join(path.Dir(f.path), "docker.io"), "")
		}
		for _, e := range f.entries {
			p := path.Join(f.path, e.Name())
			switch {
			case e.Name() == hostsName:
			case e.IsDir() && n.exists(path.Join(p, hostsName)):
				add(path.Join(p, hostsName), "containerd does not look below a registry's folder: hosts go for all of a registry, not for a part", path.Join(f.path, hostsName), "")
			case !e.IsDir() && f.reads(p):
			case !e.IsDir() && looksMeant(p):
				observed, remedy := "not named in "+hostsName, ""
				switch {
				case strings.HasSuffix(p, ".toml") && f.file == nil:
					observed, remedy = "containerd reads only "+hostsName, fmt.Sprintf("mv -T %s %s", n.word(p), n.word(path.Join(f.path, hostsName)))
				case strings.HasSuffix(p, ".toml"):
					observed = "containerd reads only " + hostsName
				case f.file == nil:
					observed = "without a hosts.toml, containerd takes *.crt, and *.cert with its *.key"
				}
				add(p, observed, "", remedy)
			}
		}
		if f.file == nil && f.docker == nil && catchAll && f.registry != "*" {
			add(f.path, "it has no "+hostsName+", and keeps containerd from looking at _default", "a "+hostsName+", or no folder", "rmdir "+n.word(f.path))
		}
		if f.file == nil {
			continue
		}
		for _, i := range f.file.ignored {
			out = append(out, Result{Verdict: i.verdict, Object: f.file.path, Observed: i.observed, Wanted: i.wanted, Place: at(f.file.path, i.line), Remedy: i.remedy})
		}
		for _, e := range f.file.endpoints {
			if _, port, _ := strings.Cut(e.host, ":"); e.scheme == "http" && e.tls && port != "80" && e.name != "" {
				out = append(out, Result{
					Verdict: Warn, Object: f.file.path, Observed: "TLS settings for " + e.name + ": HTTPS is tried first, and HTTP where it fails", Wanted: "https, or no TLS settings", Place: e.place(),
				})
			}
		}
	}
	if len(c.files()) == 0 {
		return orPass(out, noHosts)
	}
	return orPass(out, "%d files, nothing beside them", len(c.files()))
}

// looksMeant says whether somebody may think that containerd reads a file.
func looksMeant(p string) bool {
	return slices.Contains([]string{".toml", ".crt", ".cert", ".key", ".pem"}, path.Ext(p))
}

// reads says whether containerd reads a file of the folder because of another.
func (f folder) reads(p string) bool {
	var all []endpoint
	if f.file != nil {
		if f.file.broken {
			return true // nobody knows
		}
		all = f.file.endpoints
	} else if f.docker != nil {
		all = []endpoint{*f.docker}
	}
	for _, e := range all {
		if slices.ContainsFunc(e.ca, func(c certFile) bool { return c.path == p }) ||
			slices.ContainsFunc(e.client, func(c clientPair) bool { return c.cert == p || c.key == p }) {
			return true
		}
	}
	return false
}

func registryURLs(_ context.Context, n *Node) []Result {
	return eachFile(n, func(c *certs) []Result {
		var out []Result
		for _, f := range c.files() {
			for _, e := range f.endpoints {
				if e.name != "" {
					out = append(out, n.urlFaults(f, e)...)
				}
				if !e.server && len(e.caps) > 0 {
					missing := slices.DeleteFunc([]string{"pull", "resolve"}, func(c string) bool { return slices.Contains(e.caps, c) })
					if len(missing) == 1 && missing[0] == "resolve" {
						out = append(out, Result{
							Verdict: Warn, Object: e.name, Observed: "without the capability resolve it is asked for digests only, never for a tag", Wanted: `capabilities = ["pull", "resolve"]`,
							Place: at(f.path, e.keys["capabilities"].line),
						})
					}
				}
			}
		}
		return out
	}, "all URLs of %d files are sound", countFiles)
}

func (n *Node) urlFaults(f *hostsFile, e endpoint) []Result {
	var out []Result
	add := func(observed, want string) {
		r := Result{Verdict: Warn, Object: e.name, Observed: observed, Place: e.place()}
		if want != "" {
			r.Wanted = want
			r.Remedy = fmt.Sprintf("sed -i 's|\"%s\"|\"%s\"|' %s", strings.ReplaceAll(sedPattern(e.name), `\/`, "/"), want, n.word(f.path))
		}
		out = append(out, r)
	}
	override := func(observed string) {
		r := Result{Verdict: Warn, Object: e.name, Observed: observed, Wanted: "override_path = true", Place: e.place()}
		if e.line > 0 {
			r.Remedy = fmt.Sprintf("sed -i '%da override_path = true' %s", e.line, n.word(f.path))
		}
		out = append(out, r)
	}
	if !strings.Contains(e.name, "://") {
		if strings.HasPrefix(e.name, "http") {
			add("no scheme, and as it begins with http containerd adds none: it asks nobody", "https://"+e.name)
		} else {
			add("no scheme: containerd takes it for https", "https://"+e.name)
		}
		return out
	}
	u, err := url.Parse(e.name)
	switch {
	case err != nil:
		add("no URL", "")
		return out
	case u.Host == "" || u.Scheme != "http" && u.Scheme != "https":
		add("no URL of a registry", "https://HOST")
		return out
	case u.User != nil:
		// The password is not to be shown, not even as the object.
		out = append(out, Result{Verdict: Warn, Object: u.Host, Observed: "credentials in the URL, which containerd ignores", Wanted: "a URL without them", Place: e.place()})
		return out
	case u.RawQuery != "" || u.Fragment != "":
		add("a query, which containerd ignores", "")
	}
	trimmed := strings.TrimRight(u.Path, "/")
	switch {
	case trimmed != u.Path:
		add("asked at "+e.path, strings.TrimRight(e.name, "/"))
	case e.override && u.Path == "":
		out = append(out, Result{
			Verdict: Warn, Object: e.name, Observed: "override_path without a path: the API is asked for at /, without v2", Wanted: "a path, or no override_path",
			Place:  at(f.path, e.keys["override_path"].line),
			Remedy: fmt.Sprintf("sed -i '%dd' %s", e.keys["override_path"].line, n.word(f.path)),
		})
	case !e.override && slices.Contains(strings.Split(u.Path, "/"), "v2") && !strings.HasSuffix(u.Path, "/v2"):
		override("asked at " + e.path + ", with a second /v2")
	}
	if hub, ok := profiles.Hub(strings.ToLower(u.Host)); e.server && ok && !hub.Serves {
		add(u.Host+" is no registry: the API of Docker Hub is at registry-1.docker.io", "https://registry-1.docker.io")
	}
	return out
}

func denied(_ context.Context, n *Node) []Result {
	c, err := n.certs()
	if err != nil {
		return unknown(err)
	}
	if c.err != nil {
		return unknown(c.err)
	}
	var out []Result
	count := 0
	for _, reg := range n.Spec.Registries {
		if !reg.Deny {
			continue
		}
		count++
		if reg.Host == "*" {
			folders, err := n.foreign(c)
			if err != nil {
				return unknown(err)
			}
			for _, f := range folders {
				if to := c.leaks(f, reg); to != "" {
					out = append(out, Result{
						Verdict: Fail, Object: f.registry, Observed: "its folder is not the profile's, and lets pulls go to " + to, Wanted: "only " + mirrorsOf(reg),
						Place: f.path, Remedy: fmt.Sprintf("# name %s in the profile, or remove %s", f.registry, f.path),
					})
				}
			}
		}
		host := reg.Host
		if host == "*" {
			host = "registry.invalid"
		}
		all := c.hosts(host)
		last := all[len(all)-1]
		if registry.Contacts(reg, last.host) {
			continue
		}
		r := Result{
			Verdict: Fail, Object: reg.Host, Observed: "falls back to " + last.scheme + "://" + last.host, Wanted: "only " + mirrorsOf(reg),
			Place: last.place(), Remedy: n.reapply(true),
		}
		if r.Place == "" {
			r.Place = usualCerts
			r.Observed = "no hosts.toml is for it: " + r.Observed
		}
		out = append(out, r)
	}
	if count == 0 {
		return pass("the profile denies no upstream")
	}
	return orPass(out, "%d registries, none falls back to upstream", count)
}

// foreign are the folders that containerd reads and the profile does not render: nodeprep
// leaves them alone.
func (n *Node) foreign(c *certs) ([]folder, error) {
	paths, err := n.rendered()
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(c.folders), func(f folder) bool {
		return f.unread != "" || slices.ContainsFunc(paths, func(p string) bool { return path.Dir(p) == f.path })
	}), nil
}

// leaks is a host that a folder lets pulls go to and the profile's entry for all does not, ""
// for none.
func (c *certs) leaks(f folder, all profiles.Registry) string {
	hosts := c.hosts(f.registry)
	if f.registry == "*" {
		hosts = c.hosts("registry.invalid")
	}
	for _, e := range slices.Backward(hosts) {
		if !registry.Contacts(all, e.host) {
			return e.scheme + "://" + e.host
		}
	}
	return ""
}

func foreignFolders(_ context.Context, n *Node) []Result {
	c, err := n.certs()
	if err != nil {
		return unknown(err)
	}
	if c.err != nil {
		return unknown(c.err)
	}
	folders, err := n.foreign(c)
	if err != nil {
		return unknown(err)
	}
	if len(folders) == 0 {
		return pass("no folders but the profile's")
	}
	var out []Result
	var names []string
	all := slices.IndexFunc(n.Spec.Registries, func(r profiles.Registry) bool { return r.Host == "*" })
	for _, f := range folders {
		names = append(names, f.name)
		if all < 0 || f.registry == "*" {
			continue
		}
		reg := n.Spec.Registries[all]
		if reg.Deny && c.leaks(f, reg) != "" {
			continue // registry/deny says so
		}
		out = append(out, Result{
			Verdict: Warn, Object: f.registry, Observed: "its images go to " + hostNames(c.hosts(f.registry)) + ", by a folder that is not the profile's", Wanted: `the profile's "*"`, Place: f.path,
			Remedy: fmt.Sprintf("# name %s in the profile, or remove %s", f.registry, f.path),
		})
	}
	return orPass(out, "not the profile's, and left alone: %s", strings.Join(names, ", "))
}

func mirrorsOf(reg profiles.Registry) string {
	var urls []string
	for _, m := range reg.Mirrors {
		urls = append(urls, m.URL)
	}
	return strings.Join(urls, ", ")
}

// Bits of a file's mode that let others than root in.
const (
	readByOthers  = 0o004
	writeByOthers = 0o022
)

func registryPermissions(_ context.Context, n *Node) []Result {
	return eachFile(n, func(c *certs) []Result {
		var out []Result
		var seen []string
		look := func(p, what string, secret bool) {
			if slices.Contains(seen, p) {
				return
			}
			seen = append(seen, p)
			fi, err := n.Host.Root.Stat(p)
			if err != nil {
				return // whoever reads it says so
			}
			mode := fi.Mode().Perm()
			r := Result{Verdict: Warn, Object: p, Place: p}
			switch {
			case secret && mode&readByOthers != 0 && n.reachable(p):
				r.Observed, r.Wanted, r.Remedy = fmt.Sprintf("everybody may read %s (%#o)", what, mode), "0600", "chmod 0600 "+n.word(p)
			case mode&writeByOthers != 0 && n.reachable(p):
				r.Observed, r.Wanted, r.Remedy = fmt.Sprintf("others than root may write it (%#o)", mode), "writable for root alone", "chmod go-w "+n.word(p)
			default:
				return
			}
			out = append(out, r)
		}
		for _, f := range c.folders {
			if f.unread == "" {
				look(f.path, "", false)
			}
		}
		for _, f := range c.files() {
			look(f.path, "an authorization header", f.secret)
		}
		for _, e := range c.endpoints() {
			for _, pair := range e.client {
				if strings.HasSuffix(pair.key, "/") || pair.key == path.Dir(e.file) {
					continue
				}
				look(pair.key, "a private key", true)
			}
		}
		return out
	}, "secrets of %d files are root's alone", countFiles)
}

// reachable says whether others may go through all folders above a path.
func (n *Node) reachable(p string) bool {
	for dir := path.Dir(p); dir != "/" && dir != "."; dir = path.Dir(dir) {
		if fi, err := n.Host.Root.Stat(dir); err == nil && fi.Mode().Perm()&0o001 == 0 {
			return false
		}
	}
	return true
}

func credentialHosts(_ context.Context, n *Node) []Result {
	c, err := n.certs()
	if err != nil {
		return unknown(err)
	}
	var out []Result
	r := c.config.Registry()
	type entry struct {
		name  string
		place configtoml.Place
	}
	var all []entry
	for _, e := range r.Configs {
		if e.HasAuth {
			all = append(all, entry{e.Host, e.Place})
		}
	}
	for _, a := range r.Auths {
		host := a.Name
		if u, err := url.Parse(host); err == nil && u.Host != "" {
			host = u.Host
		}
		all = append(all, entry{host, a.Place})
	}
	for _, e := range all {
		x := Result{Verdict: Warn, Object: e.name, Place: e.place.String()}
		correct := func(to string) {
			x.Wanted = to
			if e.place.Line > 0 {
				x.Remedy = n.fixConfig(e.place.File, "registries",
					fmt.Sprintf("sed -i '%ss/%s/%s/' %s", sedLine(n.configLine(e.place)), sedPattern(e.name), strings.ReplaceAll(to, "/", `\/`), n.word(e.place.File)))
			}
		}
		contacted := c.hosts(e.name)
		hub, isHub := profiles.Hub(e.name)
		switch {
		case strings.Contains(e.name, "://") || strings.Contains(e.name, "/"):
			x.Observed = "credentials are for a host, without a scheme or path"
			host := e.name
			if u, err := url.Parse(e.name); err == nil && u.Host != "" {
				host = u.Host
			}
			host, _, _ = strings.Cut(host, "/")
			correct(host)
		case isHub && !hub.Serves && !contacts(c.endpoints(), e.name):
			x.Observed = "nobody asks it: Docker Hub is at registry-1.docker.io"
			correct("registry-1.docker.io")
		case !contacts(contacted, e.name) && !contacts(c.endpoints(), e.name):
			x.Observed = "nobody asks it: pulls of its images go to " + hostNames(contacted)
			correct(contacted[0].host)
			x.Place = e.place.String()
			x.Note = "as " + contacted[0].place() + " says"
		default:
			continue
		}
		out = append(out, x)
	}
	if len(all) == 0 {
		return pass("no credentials in the daemon's config")
	}
	return orPass(out, "credentials for %d hosts, all of which are asked", len(all))
}

func contacts(all []endpoint, host string) bool {
	return slices.ContainsFunc(all, func(e endpoint) bool { return e.host == host })
}

func hostNames(all []endpoint) string {
	var out []string
	for _, e := range all {
		out = append(out, e.host)
	}
	return strings.Join(out, ", ")
}
