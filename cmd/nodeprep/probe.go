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
	// Verdict says whether the image would be had, and Had is the same for machines.
	Verdict string `json:"verdict"`
	Had     bool   `json:"had"`
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

// probe asks every host that containerd would ask.
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
	for i, h := range x.Hosts {
		ph, err := a.probedHost(x, i, w)
		if err != nil {
			return nil, err
		}
		if x.Fails && ph.Skipped == "" {
			ph.Skipped = "nobody is asked"
		}
		if show {
			fmt.Fprintf(a.out, "\n%d  %s\n", i+1, p.bold(h.URL))
			if ph.Skipped != "" {
				fmt.Fprintf(a.out, "   %-10s%s\n", "not asked", p.yellow(ph.Skipped))
			}
		}
		out.Hosts = append(out.Hosts, asker.Ask(ctx, img, ph, func(s probe.Step) {
			if show {
				a.printStep(p, s)
			}
		}))
		if ctx.Err() != nil {
			return nil, fmt.Errorf("explain %s: %w", x.Image, context.Cause(ctx))
		}
	}
	if out.Verdict, out.Had = probe.Judge(img, out.Hosts); x.Fails {
		out.Verdict, out.Had = "the image would not be had: "+x.Outcome, false
	}
	if show {
		verdict := p.green(out.Verdict)
		if !out.Had {
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
	fmt.Fprintf(a.out, "   %-10s%6s  %s\n", s.Name, fmt.Sprintf("%d ms", s.Took), verdict)
	if s.Remedy != "" {
		fmt.Fprintf(a.out, "   %-10s%6s  %s\n", "", "", "remedy: "+s.Remedy)
	}
}

// probedHost is a host of an explanation with what it takes to ask it.
func (a *app) probedHost(x *registry.Explanation, i int, w *way) (probe.Host, error) {
	h := x.Hosts[i]
	c := h.Parsed
	out := probe.Host{
		Scheme: c.Scheme, Host: c.Host, Path: c.Path, Fallback: c.Fallback, SkipVerify: h.SkipVerify, Skipped: h.Skipped,
		Header: http.Header{}, TokenHeader: http.Header{}, Hints: w.hints(x, i),
	}
	for _, next := range x.Hosts[i+1:] {
		if next.Skipped == "" && out.Next == "" && x.Verb != registry.VerbPush {
			out.Next = next.Parsed.Scheme + "://" + next.Host
		}
	}
	out.DialTimeout, _ = time.ParseDuration(h.DialTimeout)
	for _, r := range h.Requests {
		switch {
		case r.Method == http.MethodHead && strings.Contains(r.URL, "/manifests/"):
			out.Manifest = r.URL
		case r.Method == http.MethodGet && strings.Contains(r.URL, "/manifests/"):
			out.Content = r.URL
			if x.Digest != "" {
				out.Content = strings.Replace(r.URL, "/manifests/"+x.Digest, "/manifests/"+probe.Placeholder, 1)
			}
		case r.Method == http.MethodGet && strings.Contains(r.URL, "/blobs/"):
			out.Layer = r.URL
		}
	}
	out.Supplies = out.Skipped != "" && out.Layer != ""
	// Before 2.1 token servers heard no headers.
	tokens := w.release == (releases.Version{}) || w.release.AtLeast(2, 1, 0)
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
	add(cmp.Or(h.From, x.File), c.Header, tokens)
	if w.config != nil && x.Verb != registry.VerbPush {
		add("registry.headers", w.config.RegistryHeaders(), tokens && x.Service != "transfer")
	}
	if h.Skipped != "" || x.Fails {
		return out, nil
	}
	file := func(name string) (probe.File, bool, error) {
		b, err := w.read(name)
		if errors.Is(err, fs.ErrPermission) {
			a.note("%s is only for root to read; asked without it", name)
			return probe.File{}, false, nil
		}
		return probe.File{Name: name, Data: b}, err == nil, err
	}
	for _, name := range h.CA {
		f, ok, err := file(name)
		if err != nil {
			return out, fmt.Errorf("read %s: %w", name, err)
		}
		if ok {
			out.CA = append(out.CA, f)
		}
	}
	for _, pair := range h.Client {
		cert, ok, err := file(pair[0])
		key, kok, kerr := cert, ok, err
		if pair[1] != pair[0] {
			key, kok, kerr = file(pair[1])
		}
		if err := cmp.Or(err, kerr); err != nil {
			return out, fmt.Errorf("read the client certificate of %s: %w", h.URL, err)
		}
		if ok && kok {
			out.Client = append(out.Client, [2]probe.File{cert, key})
		}
	}
	return out, nil
}

// hints are what would mend a host: fields of the profile, or places in a host's files.
func (w *way) hints(x *registry.Explanation, i int) probe.Hints {
	h := x.Hosts[i]
	hints := probe.Hints{Token: "look into the log of the token server"}
	if w.spec != nil {
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
		return hints
	}
	dir, _, _ := strings.Cut(cmp.Or(x.ConfigPath, registry.Root), ":")
	dir = path.Join(dir, folder(x.Registry))
	for _, f := range x.Folders {
		if f.Chosen {
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
	hints.Auth = fmt.Sprintf("give the right ones in registry.configs.%q.auth of config.toml, or as a pod's pull secret", h.Host)
	hints.Path = "the registry's API is at another path: write all of it, with override_path = true, in " + place
	hints.Scheme = "write the other scheme, http:// or https://, in " + place
	return hints
}

// folder is the name below certs.d that goes before all others for a registry.
func folder(registry string) string {
	if i := strings.LastIndexByte(registry, ':'); i > strings.LastIndexByte(registry, ']') {
		return registry[:i] + "_" + registry[i+1:] + "_"
	}
	return registry
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
			maps.Copy(env, parse(environmentFile(string(b))))
		case errors.Is(err, fs.ErrPermission):
			a.note("%s is only for root to read; if it names a proxy, that is not gone through here", name)
		}
	}
	return env
}

// environmentFile are the assignments of an EnvironmentFile (systemd.exec(5)), each on a line
// of its own.
func environmentFile(text string) []string {
	var out []string
	for line := range strings.Lines(text) {
		name, value, ok := strings.Cut(strings.TrimSpace(line), "=")
		if !ok || strings.HasPrefix(name, "#") || strings.HasPrefix(name, ";") {
			continue
		}
		if n := len(value); n >= 2 && value[0] == value[n-1] && (value[0] == '"' || value[0] == '\'') {
			value = value[1 : n-1]
		}
		out = append(out, name+"="+value)
	}
	return out
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
