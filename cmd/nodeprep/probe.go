package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/probe"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
	"github.com/nodeprep/nodeprep/systemd"
)

// probed is what explain --probe found.
type probed struct {
	// Verdict says whether the image can be pulled (resolved, pushed), and OK is the same for
	// machines.
	Verdict string `json:"verdict"`
	OK      bool   `json:"ok"`
	// From says whose names, clock and certificate authorities counted.
	From  string         `json:"from"`
	Hosts []probe.Answer `json:"hosts"` // as those of the explanation
}

// way is what a probe needs beside the explanation.
type way struct {
	config  *configtoml.Config
	read    func(path string) ([]byte, error)
	release releases.Version
	// spec is the profile's, nil where a host's own files were read.
	spec *profiles.Spec
	// unread are the texts that stand for secrets that could not be read.
	unread []string
	env    map[string]string // the daemon's, as far as a proxy goes
	arch   string
	// here says that the files are those of the machine that asks.
	here bool
}

// probe asks every host that containerd would ask. Of one that is interrupted, there are the
// answers until then beside the error.
func (a *app) probe(ctx context.Context, x *registry.Explanation, w *way) (*probed, error) {
	out := &probed{From: "this machine", Hosts: []probe.Answer{}}
	if !w.here {
		out.From += ", whose resolver, clock and certificate authorities count here, and not the node's"
	}
	show := !a.structured
	p := a.paint(a.out)
	if show {
		fmt.Fprintf(a.out, "\n%s\n", p.bold("asked from "+out.From))
	}
	credentials := map[string]probe.Credential{}
	if w.config != nil {
		for _, c := range w.config.Credentials() {
			if slices.Contains(w.unread, c.User) || slices.Contains(w.unread, c.Secret) {
				continue
			}
			credentials[c.Host] = probe.Credential{User: c.User, Secret: c.Secret, From: fmt.Sprintf("%s (%s)", c.Field, c.Place)}
		}
	}
	asker := probe.Asker{
		Network: a.network(), Proxy: w.proxy(),
		Credentials: func(host string) probe.Credential { return credentials[host] },
		Agent:       "containerd/" + cmp.Or(x.Containerd, "2") + " (nodeprep)",
	}
	img := probe.Image{Verb: x.Verb, Repository: x.Repository, Digest: x.Digest, Arch: w.arch}
	hosts := make([]probe.Host, len(x.Hosts))
	for i := range x.Hosts {
		hosts[i] = a.probedHost(x, i, w)
	}
	begin := func(i int, again bool) {
		if !show {
			return
		}
		what := ""
		if again {
			what = p.dim("  once more, for what another host names")
		}
		fmt.Fprintf(a.out, "\n%d  %s%s\n", i+1, p.bold(x.Hosts[i].URL), what)
		if why := hosts[i].Skipped; why != "" && !again {
			fmt.Fprintf(a.out, "   %-10s%s\n", "not asked", p.yellow(why))
			if hosts[i].Supplies {
				fmt.Fprintf(a.out, "   %-10s%s\n", "", "but for manifests and layers, once their digest is known")
			}
		}
	}
	out.Hosts = asker.Ask(ctx, img, hosts, begin, func(s probe.Step) {
		if show {
			a.printStep(p, s)
		}
	})
	if out.Verdict, out.OK = probe.Judge(img, out.Hosts); x.Fails {
		out.Verdict, out.OK = "the image cannot be "+map[string]string{registry.VerbPull: "pulled", registry.VerbResolve: "resolved", registry.VerbPush: "pushed"}[x.Verb]+": "+x.Outcome, false
	}
	if ctx.Err() != nil {
		// What was answered until then is the result all the same.
		out.Verdict, out.OK = "interrupted", false
		return out, fmt.Errorf("explain %s: %w", x.Image, context.Cause(ctx))
	}
	if show {
		verdict := p.green(out.Verdict)
		if !out.OK {
			verdict = p.red(out.Verdict)
		}
		fmt.Fprintf(a.out, "\n%s\n", verdict)
	}
	return out, nil
}

func (a *app) printStep(p painter, s probe.Step) {
	verdict := p.green(s.Verdict)
	if !s.OK {
		verdict = p.red(s.Verdict)
	}
	if s.Detail != "" {
		verdict += p.dim(" (" + s.Detail + ")")
	}
	fmt.Fprintf(a.out, "   %-10s%6s  %s\n", s.Name, fmt.Sprintf("%d ms", s.TookMs), verdict)
	if s.Remedy != "" {
		fmt.Fprintf(a.out, "   %-10s%6s  %s\n", "", "", "remedy: "+s.Remedy)
	}
}

// probedHost is a host of an explanation with what it takes to ask it.
func (a *app) probedHost(x *registry.Explanation, i int, w *way) probe.Host {
	h := x.Hosts[i]
	c := h.Parsed
	out := probe.Host{
		Scheme: c.Scheme, Host: c.Host, Path: c.Path, Fallback: c.Fallback, SkipVerify: h.SkipVerify, Skipped: h.Skipped, Hints: w.hints(x, i),
	}
	for _, next := range x.Hosts[i+1:] {
		if next.Skipped == "" && out.Next == "" && x.Verb != registry.VerbPush {
			out.Next = next.Parsed.Scheme + "://" + next.Host
		}
	}
	out.DialTimeout, _ = time.ParseDuration(h.DialTimeout)
	for _, r := range h.Requests {
		switch r.Kind {
		case registry.Manifest:
			out.Manifest = r.URL
		case registry.Content:
			out.Content = r.URL
			if i := strings.LastIndex(r.URL, "/"+x.Digest); i >= 0 && x.Digest != "" {
				out.Content = r.URL[:i+1] + probe.Placeholder + r.URL[i+1+len(x.Digest):]
			}
		case registry.Blob:
			out.Layer = r.URL
		}
	}
	for _, r := range h.IfMissing {
		out.Blob = r.URL
	}
	out.Supplies = out.Skipped != "" && out.Layer != "" && !x.Fails
	if x.Fails && out.Skipped == "" {
		out.Skipped = "nobody is asked"
	}
	w.headers(&out, x, i)
	if out.Skipped == "" || out.Supplies {
		a.files(&out, h, w)
	}
	return out
}

// headers are those of a host's table and of registry.headers.
func (w *way) headers(out *probe.Host, x *registry.Explanation, i int) {
	out.Header, out.TokenHeader = http.Header{}, http.Header{}
	add := func(from string, headers map[string][]string, tokens bool) {
		for _, name := range slices.Sorted(maps.Keys(headers)) {
			for _, v := range headers[name] {
				if slices.Contains(w.unread, v) {
					continue
				}
				out.Header.Add(name, v)
				if tokens {
					out.TokenHeader.Add(name, v)
				}
				if strings.EqualFold(name, "authorization") {
					out.Authorized = from
				}
			}
		}
	}
	// Before 2.1 token servers heard no headers.
	tokens := w.release == (releases.Version{}) || releases.TokenHeaders(w.release)
	add(cmp.Or(x.Hosts[i].From, x.File), x.Hosts[i].Parsed.Header, tokens)
	if w.config != nil && x.Verb != registry.VerbPush {
		add("registry.headers", w.config.RegistryHeaders(), tokens && x.Service != "transfer")
	}
}

// files are a host's CA and client certificates. One that only root may read is done
// without; another that cannot be read is the host's fault.
func (a *app) files(out *probe.Host, h registry.ExplainedHost, w *way) {
	read := func(name string) (probe.File, bool) {
		b, err := w.read(name)
		if errors.Is(err, fs.ErrPermission) {
			a.note("%s is only for root to read; asked without it", name)
			return probe.File{}, false
		}
		f := probe.File{Name: name, Data: b}
		if err != nil {
			f.Unread = err.Error()
			if p, ok := errors.AsType[*fs.PathError](err); ok {
				f.Unread = p.Err.Error() // its path may be one of nodeprep's own
			}
		}
		return f, true
	}
	for _, name := range h.CA {
		if f, ok := read(name); ok {
			out.CA = append(out.CA, f)
		}
	}
	for _, pair := range h.Client {
		cert, ok := read(pair[0])
		key, kok := cert, ok
		if pair[1] != pair[0] {
			key, kok = read(pair[1])
		}
		if ok && kok {
			out.Client = append(out.Client, [2]probe.File{cert, key})
		}
	}
}

// hints are what would mend a host: fields of the profile, or places in a host's files.
func (w *way) hints(x *registry.Explanation, i int) probe.Hints {
	hints := probe.Hints{Token: "look into the log of the token server"}
	switch {
	case w.spec != nil:
		w.profileHints(&hints, x, i)
	case unreadHosts(x):
		w.unsetHints(&hints, x, i)
	default:
		fileHints(&hints, x, i)
	}
	return hints
}

// profileHints name fields of the profile.
func (w *way) profileHints(hints *probe.Hints, x *registry.Explanation, i int) {
	at := "registries." + x.Registry
	reg := slices.IndexFunc(w.spec.Registries, func(r profiles.Registry) bool { return r.Host == x.Registry })
	if reg < 0 {
		if reg = slices.IndexFunc(w.spec.Registries, func(r profiles.Registry) bool { return r.Host == "*" }); reg >= 0 {
			at = `registries."*"`
		}
	}
	root, server := at, at+".server"
	if reg >= 0 && i < len(w.spec.Registries[reg].Mirrors) {
		at += ".mirrors[" + strconv.Itoa(i) + "]"
		server = at + ".url"
	} else if root == `registries."*"` {
		// What is there counts for all registries.
		at, server = "registries."+x.Registry, "registries."+x.Registry+".server"
	}
	hints.CA = "put that authority's PEM file into " + at + ".ca of the profile"
	hints.Client = "name a certificate and its key in " + at + ".client of the profile"
	hints.Auth = "give the right ones in " + at + ".auth of the profile, or as a pod's pull secret"
	hints.Path = "the registry's API is at another path: write all of it in " + server + " of the profile, where a path with /v2 is taken as it is, or set overridePath"
	hints.Scheme = "write the other scheme, http:// or https://, in " + server + " of the profile"
}

// unreadHosts says whether hosts.toml files count for nothing, wherever they lie: without a
// config_path, and where the transfer service takes several folders for one.
func unreadHosts(x *registry.Explanation) bool {
	return x.ConfigPath == "" || x.Service == "transfer" && strings.Contains(x.ConfigPath, ":")
}

// unsetHints are for a host whose config.toml reads no hosts.toml.
func (w *way) unsetHints(hints *probe.Hints, x *registry.Explanation, i int) {
	first := "set config_path of containerd's registry settings to " + registry.Root + " first, since no hosts.toml is read without it"
	switch {
	case x.ConfigPath != "":
		first = "set config_path of containerd's registry settings to one folder first, as " + registry.Root + ": of several, no hosts.toml is read"
	case x.Hosts[i].From == "registry.mirrors":
		first = "set config_path of containerd's registry settings to " + registry.Root + " first, in place of registry.mirrors: no hosts.toml is read without it"
	}
	tls := ""
	if x.ConfigPath == "" && w.release != (releases.Version{}) && !w.release.AtLeast(2, 0, 0) {
		tls = fmt.Sprintf(", or use registry.configs.%q.tls of config.toml", x.Hosts[i].Host)
	}
	hints.CA = first + ", and put that authority's PEM file beside the registry's hosts.toml, named in ca" + tls
	hints.Client = first + ", and name a certificate and its key in client of the registry's hosts.toml" + tls
	hints.Auth = fileAuth(x.Hosts[i])
	hints.Path = "the registry's API is at another path: " + first + ", and write all of it, with override_path = true, in the registry's hosts.toml"
	hints.Scheme = first + ", and write the other scheme, http:// or https://, in the registry's hosts.toml"
	if x.Hosts[i].From == "registry.mirrors" {
		hints.Scheme = "write the other scheme, http:// or https://, in registry.mirrors of config.toml"
	}
}

func fileAuth(h registry.ExplainedHost) string {
	return fmt.Sprintf("give the right ones in registry.configs.%q.auth of config.toml, or as a pod's pull secret", h.Host)
}

// fileHints name places in a host's hosts.toml, or in one that is to be written in the first
// folder that is looked for.
func fileHints(hints *probe.Hints, x *registry.Explanation, i int) {
	h := x.Hosts[i]
	dir := registry.Root
	for n, f := range x.Folders {
		if f.Chosen || n == 0 {
			dir = f.Path
		}
	}
	file := cmp.Or(x.File, path.Join(dir, "hosts.toml"))
	place, beside := cmp.Or(h.From, file), path.Join(path.Dir(file), "NAME.pem")
	if x.File == "" {
		place = file + ", a new file with server = " + strconv.Quote("https://"+h.Host) + " at its top"
	}
	hints.CA = fmt.Sprintf("put that authority's PEM file beside it as %s, and name it in ca of %s", beside, place)
	hints.Client = "name a certificate and its key in client of " + place
	hints.Auth = fileAuth(h)
	hints.Path = "the registry's API is at another path: write all of it, with override_path = true, in " + place
	hints.Scheme = "write the other scheme, http:// or https://, in " + place
}

// proxy is the daemon's.
func (w *way) proxy() func(*url.URL) (*url.URL, error) {
	either := func(name string) string { return cmp.Or(w.env[name], w.env[strings.ToLower(name)]) }
	c := httpproxy.Config{HTTPProxy: either("HTTP_PROXY"), HTTPSProxy: either("HTTPS_PROXY"), NoProxy: either("NO_PROXY")}
	return c.ProxyFunc()
}

// profileEnvironment is the daemon's environment by the profile.
func profileEnvironment(spec *profiles.Spec, in *lenient) map[string]string {
	env := maps.Clone(spec.Systemd.Environment)
	if env == nil {
		env = map[string]string{}
	}
	for name, secret := range map[string]profiles.Secret{"HTTP_PROXY": spec.Systemd.HTTPProxy, "HTTPS_PROXY": spec.Systemd.HTTPSProxy} {
		if v, _ := in.Secret(secret); v != "" && !slices.Contains(in.unread, v) {
			env[name] = v
		}
	}
	if len(spec.Systemd.NoProxy) > 0 {
		env["NO_PROXY"] = strings.Join(spec.Systemd.NoProxy, ",")
	}
	return env
}

// daemonEnvironment is that of the daemon that runs, else what its unit would give it; none
// where neither can be seen.
func (a *app) daemonEnvironment(n *checks.Node) map[string]string {
	if !n.Live {
		return nil
	}
	parse := func(entries []string) map[string]string {
		env := map[string]string{}
		for _, e := range entries {
			if name, value, ok := strings.Cut(e, "="); ok {
				env[name] = value
			}
		}
		return env
	}
	if p, err := n.Process(); err == nil {
		b, err := n.Host.Root.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/environ")
		if err == nil {
			return parse(strings.Split(string(b), "\x00"))
		}
		if errors.Is(err, fs.ErrPermission) {
			a.note("the environment of containerd is only for root to read: a proxy is taken from its unit")
		}
	}
	if n.Units == nil || !n.Facts.SystemdInit {
		return nil
	}
	unit, err := n.Unit(systemd.UnitName)
	if err != nil {
		return nil
	}
	env := parse(unit.Environment)
	for _, name := range unit.EnvironmentFile {
		b, err := n.Host.Root.ReadFile(name)
		switch {
		case err == nil:
			maps.Copy(env, parse(systemd.EnvironmentFile(b)))
		case errors.Is(err, fs.ErrPermission):
			a.note("%s is only for root to read; if it names a proxy, that is not gone through here", name)
		}
	}
	return env
}

// lenient reads what a profile refers to, and does without a secret that cannot be read here.
type lenient struct {
	inputs
	note   func(format string, args ...any)
	unread []string
}

// Secret is a value, or what stands for one that could not be read.
func (l *lenient) Secret(s profiles.Secret) (string, error) {
	v, err := l.inputs.Secret(s)
	if err == nil {
		return v, nil
	}
	if v, err2 := (registry.Placeholders{}).Secret(s); err2 == nil {
		if !slices.Contains(l.unread, v) {
			l.unread = append(l.unread, v)
			l.note("%v; asked without it", err)
		}
		return v, nil
	}
	return "", err
}
