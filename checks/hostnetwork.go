package checks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/profiles"
)

// networkChecks are about names, proxies, ports and packet filters.
func networkChecks() []Check {
	return []Check{
		{
			ID: "host/hostname", Stage: Preflight, Severity: Recommended,
			Why:    "The kubelet registers the node by this name: one that is no DNS name is refused, and one shared by two nodes is one node.",
			Source: "RFC 1123 section 2.1; kubeadm preflight Hostname",
			Remedy: "set a DNS name in lower case, and put it into /etc/hosts",
			Run:    hostname,
		},
		{
			ID: "host/localhost", Stage: Preflight, Severity: Recommended,
			Why:    "Health checks and local registries ask for localhost: where DNS is asked for it, it may be anybody.",
			Source: "RFC 6761 section 6.3; k0s sysinfo, Name resolution: localhost",
			Remedy: "put 127.0.0.1 localhost into /etc/hosts",
			Run:    single(localhost),
		},
		{
			ID: "host/dns", Stage: Preflight, Severity: Recommended,
			Why:    "Without a nameserver no registry is found, and a pod that is given the node's own stub for one asks itself.",
			Source: "resolv.conf(5); CoreDNS plugin loop; KubeletConfiguration: resolvConf",
			Needs:  []string{NeedLive},
			Remedy: "name servers in /etc/resolv.conf, and point the kubelet's resolvConf at /run/systemd/resolve/resolv.conf",
			Run:    single(dns),
		},
		{
			ID: "host/dns-answers", Stage: Preflight, Severity: Recommended,
			Why:    "A registry whose name does not resolve ends each pull in \"no such host\".",
			Source: "resolv.conf(5)",
			Needs:  []string{NeedLive, NeedNetwork, "host/dns"},
			Remedy: "correct the nameservers, or the registries' names",
			Run:    dnsAnswers,
		},
		{
			ID: "host/proxy", Stage: Preflight, Severity: Recommended,
			Why:    "A daemon does not see the proxy of a shell, and a proxy that is asked for a registry of the own network does not reach it.",
			Source: "systemd.exec(5), Environment=; golang.org/x/net/http/httpproxy",
			Needs:  []string{NeedLive},
			Remedy: "set systemd.proxy in the profile, with the own network in noProxy",
			Run:    proxies,
		},
		{
			ID: "host/ports", Stage: Preflight, Severity: Recommended,
			Why:    "containerd does not start where another process has the TCP port of its metrics, API or streaming server.",
			Source: "bind(2), EADDRINUSE; containerd docs/man/containerd-config.toml.5.md",
			Needs:  []string{NeedLive},
			Remedy: "choose another port, or stop what has it",
			Run:    ports,
		},
		{
			ID: "host/iptables", Stage: Preflight, Severity: Recommended,
			Why:    "Rules in both of the kernel's packet filters hide each other, and iptables 1.8.0 to 1.8.3 on nftables corrupts kube-proxy's.",
			Source: "kubernetes issue 71305; k3s check-config, iptables",
			Needs:  []string{NeedLive},
			Remedy: "have one mode of iptables, 1.8.4 or newer",
			Run:    single(iptables),
		},
		{
			ID: "host/firewall", Stage: Preflight, Severity: Recommended,
			Why:    "A firewall that does not know pods drops their traffic, and that to the kubelet's port.",
			Source: "kubeadm preflight Firewalld; docs.k3s.io, Requirements: Inbound Rules",
			Needs:  []string{NeedLive, NeedSystemd},
			Remedy: "let the firewall pass what the cluster's network needs, or turn it off",
			Run:    firewall,
		},
		{
			ID: "host/cni-network", Stage: Preflight, Severity: Recommended,
			Why:    "Where pods' addresses are those of another network that the host has a route to, that network is cut off.",
			Source: "CNI plugin bridge; ip-route(8)",
			Needs:  []string{NeedLive, NeedProfile},
			Remedy: "choose other subnets in cni.network",
			Run:    cniNetwork,
		},
	}
}

// hostName is the name in force or, in an image, the one to be.
func (n *Node) hostName() (name, place string, err error) {
	if place = "/etc/hostname"; n.Live {
		place = "/proc/sys/kernel/hostname"
	}
	name, err = n.text(place)
	return name, place, err
}

func hostname(_ context.Context, n *Node) []Result {
	name, place, err := n.hostName()
	if absent(err) && !n.Live {
		return pass("not set in the image")
	}
	if err != nil {
		return unknown(err)
	}
	label := regexp.MustCompile(`^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?(\.[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?)*$`)
	first, _, _ := strings.Cut(name, ".")
	if name == "" || first == "localhost" || !label.MatchString(name) {
		better := strings.Trim(regexp.MustCompile(`[^-a-z0-9.]+`).ReplaceAllString(strings.ToLower(name), "-"), "-.")
		if first == "localhost" || !label.MatchString(better) || strings.HasPrefix(better, "localhost") {
			better = "node-1"
			if id, err := n.text("/etc/machine-id"); err == nil && len(id) >= 8 {
				better = "node-" + id[:8]
			}
		}
		r := Result{
			Verdict: Warn, Object: "name", Observed: strconv.Quote(name), Wanted: "a DNS name in lower case, not localhost", Place: place,
			Remedy: "# a kubelet that is part of a cluster already joins it anew by this name\necho " + better + " > " + n.word("/etc/hostname"),
		}
		if n.Live {
			r.Remedy += "\necho " + better + " > /proc/sys/kernel/hostname\ngrep -qw " + better + " /etc/hosts || echo 127.0.1.1 " + better + " >> /etc/hosts"
		}
		return []Result{r}
	}
	switch known, err := n.knowsLocally(name); {
	case err != nil:
		return unknown(err)
	case !known:
		return []Result{{
			Verdict: Warn, Object: "resolution", Observed: name + " is not in /etc/hosts: only DNS may know it", Wanted: "the name in /etc/hosts", Place: "/etc/hosts",
			Remedy: "echo 127.0.1.1 " + name + " >> " + n.word("/etc/hosts"),
		}}
	}
	return pass("%s", name)
}

// knowsLocally says whether a name resolves without asking DNS: by /etc/hosts, or by a
// module of systemd's that knows the host's own names (nss-myhostname(8), nss-resolve(8)).
func (n *Node) knowsLocally(name string) (bool, error) {
	sources, err := n.hostsSources()
	if err != nil {
		return false, err
	}
	if slices.Contains(sources, "myhostname") || slices.Contains(sources, "resolve") && n.exists("/run/systemd/resolve/io.systemd.Resolve") {
		return true, nil
	}
	if !slices.Contains(sources, "files") {
		return false, nil
	}
	hosts, err := n.lines("/etc/hosts")
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(hosts, func(l numbered) bool { return slices.Contains(strings.Fields(l.text)[1:], name) }), nil
}

// hostsSources are the modules that nsswitch.conf(5) has for hosts; without the file glibc
// takes dns and files, and musl knows nothing else.
func (n *Node) hostsSources() ([]string, error) {
	lines, err := n.lines("/etc/nsswitch.conf")
	if err != nil {
		return nil, err
	}
	for _, l := range lines {
		if rest, ok := strings.CutPrefix(l.text, "hosts:"); ok {
			return strings.Fields(rest), nil
		}
	}
	return []string{"dns", "files"}, nil
}

func localhost(_ context.Context, n *Node) Result {
	const name = "localhost"
	hosts, err := n.lines("/etc/hosts")
	if err != nil {
		return unknown(err)[0]
	}
	good := numbered{}
	for _, l := range hosts {
		f := strings.Fields(l.text)
		if !slices.Contains(f[1:], name) {
			continue
		}
		addr, err := netip.ParseAddr(f[0])
		if err != nil || !addr.IsLoopback() {
			file, line, _ := strings.Cut(l.place, ":")
			file = n.word(file)
			return Result{
				Verdict: Warn, Observed: name + " is " + f[0], Wanted: "127.0.0.1", Place: l.place,
				Remedy: "sed -i '" + line + "s/^/# /' " + file + "\ngrep -q '^127.0.0.1.*localhost' " + file + " || echo 127.0.0.1 localhost >> " + file,
			}
		}
		good = l
	}
	switch known, err := n.knowsLocally(name); {
	case err != nil:
		return unknown(err)[0]
	case good.text != "" && !known:
		return Result{
			Verdict: Warn, Observed: "hosts: does not look into files", Wanted: "hosts: files dns", Place: "/etc/nsswitch.conf",
			Remedy: "sed -i 's/^hosts:.*/hosts: files dns/' " + n.word("/etc/nsswitch.conf"),
		}
	case !known:
		return Result{
			Verdict: Warn, Observed: "/etc/hosts does not have it", Wanted: "127.0.0.1 localhost", Place: "/etc/hosts",
			Remedy: "echo 127.0.0.1 localhost >> " + n.word("/etc/hosts"),
		}
	case good.text == "":
		return Result{Verdict: Pass, Observed: "known by a module of systemd's", Place: "/etc/nsswitch.conf"}
	}
	return Result{Verdict: Pass, Observed: strings.Fields(good.text)[0], Place: good.place}
}

const resolvConf = "/etc/resolv.conf"

// nameservers are those of a file such as resolv.conf(5).
func (n *Node) nameservers(file string) ([]string, error) {
	lines, err := n.lines(file)
	var out []string
	for _, l := range lines {
		if f := strings.Fields(l.text); len(f) >= 2 && f[0] == "nameserver" {
			out = append(out, f[1])
		}
	}
	return out, err
}

func dns(_ context.Context, n *Node) Result {
	servers, err := n.nameservers(resolvConf)
	if err != nil {
		return unknown(err)[0]
	}
	if len(servers) == 0 {
		r := Result{Verdict: Warn, Observed: "no nameserver", Wanted: "a nameserver", Place: resolvConf, Remedy: "# echo nameserver ADDRESS >> " + resolvConf}
		const resolved = "/run/systemd/resolve/stub-resolv.conf"
		if n.exists(resolved) {
			r.Remedy = "ln -sf ../run/systemd/resolve/stub-resolv.conf " + resolvConf
		}
		return r
	}
	r := Result{Verdict: Pass, Observed: strings.Join(servers, ", "), Place: resolvConf}
	k, err := n.Kubelet()
	if err != nil || k == nil {
		return r // pods are given their nameservers by a kubelet
	}
	file, place := resolvConf, k.Path
	if line := k.Lines["resolvConf"]; line > 0 {
		place = k.Place("resolvConf")
		if f := n.kubeletLine(k, line); f != "" {
			file = f
		}
	}
	given, err := n.nameservers(file)
	if err != nil {
		return unknown(err)[0]
	}
	for _, s := range given {
		if addr, err := netip.ParseAddr(s); err == nil && addr.IsLoopback() {
			r = Result{
				Verdict: Warn, Observed: "the kubelet gives pods " + s + " of " + file + ", which is each pod itself", Wanted: "a nameserver that pods reach", Place: place,
				Remedy: "# write into " + file + " a nameserver that pods reach",
			}
			const real = "/run/systemd/resolve/resolv.conf"
			if n.exists(real) && k.Path != "" && path.Ext(k.Path) != ".json" {
				r.Remedy = "sed -i '/^resolvConf:/d' " + k.Path + "\necho 'resolvConf: " + real + "' >> " + k.Path + "\nsystemctl restart kubelet"
			}
		}
	}
	return r
}

// kubeletLine is the value of a key in a line of the kubelet's configuration.
func (n *Node) kubeletLine(k *Kubelet, line int) string {
	b, err := n.Host.Root.ReadFile(k.Path)
	if all := strings.Split(string(b), "\n"); err == nil && line <= len(all) {
		_, value, _ := strings.Cut(all[line-1], ":")
		return strings.Trim(strings.TrimSpace(value), `"',`)
	}
	return ""
}

// registryHosts are the names that pulls ask for, without ports: those of the profile's
// mirrors, else of the registry that has Kubernetes' images.
func (n *Node) registryHosts() []string {
	var out []string
	add := func(raw string) {
		if u, err := url.Parse(raw); err == nil && u.Hostname() != "" {
			out = append(out, u.Hostname())
		}
	}
	if n.Spec != nil {
		for _, r := range n.Spec.Registries {
			if r.Server != nil {
				add(r.Server.URL)
			}
			for _, m := range r.Mirrors {
				add(m.URL)
			}
			if !r.Deny && (r.Server == nil || r.Server.URL == "") && r.Host != "*" {
				add("https://" + r.Host)
			}
		}
	}
	if len(out) == 0 {
		out = []string{"registry.k8s.io"}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// dnsTime is what a resolver takes for two servers that do not answer (resolv.conf(5),
// timeout).
const dnsTime = 10 * time.Second

func dnsAnswers(ctx context.Context, n *Node) []Result {
	if proxy := n.containerdProxy(); proxy.set() {
		return skip("a proxy resolves names for containerd")
	}
	servers, err := n.nameservers(resolvConf)
	if err != nil {
		return unknown(err)
	}
	if len(servers) == 0 {
		return skip("no nameserver to ask")
	}
	resolver := &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		// The resolver's own list is that of this program's root.
		var errs []error
		for _, s := range servers {
			conn, err := n.Dial(ctx, network, net.JoinHostPort(s, "53"))
			if err == nil {
				return conn, nil
			}
			errs = append(errs, err)
		}
		return nil, errors.Join(errs...)
	}}
	hosts := slices.DeleteFunc(n.registryHosts(), func(host string) bool {
		_, err := netip.ParseAddr(host)
		return err == nil || host == "localhost"
	})
	addrs, errs := make([][]string, len(hosts)), make([]error, len(hosts))
	ctx, cancel := context.WithTimeout(ctx, dnsTime)
	defer cancel()
	var wg sync.WaitGroup
	for i, host := range hosts {
		wg.Go(func() { addrs[i], errs[i] = resolver.LookupHost(ctx, host) })
	}
	wg.Wait()
	var faults []Result
	var found []string
	for i, host := range hosts {
		if errs[i] == nil {
			found = append(found, host+" is "+addrs[i][0])
			continue
		}
		r := Result{
			Verdict: Warn, Object: host, Observed: "no answer from " + strings.Join(servers, ", "), Wanted: "an address", Place: resolvConf,
			Remedy: "# correct the nameservers in " + resolvConf + ", or name " + host + " in /etc/hosts",
		}
		if dnsErr, ok := errors.AsType[*net.DNSError](errs[i]); ok && dnsErr.IsNotFound {
			r.Observed = strings.Join(servers, ", ") + " knows no such host"
		}
		faults = append(faults, r)
	}
	if len(faults) == 0 && len(found) == 0 {
		return pass("no registry has a name that DNS would be asked for")
	}
	return orPass(faults, "%s", strings.Join(found, ", "))
}

// proxy is an environment's proxies.
type proxy struct {
	http, https, no string
	from            string
}

func (p proxy) set() bool { return p.http != "" || p.https != "" }

// environment reads the proxy variables of an environment, in either case, as net/http does.
func (p *proxy) environment(get func(string) string) {
	either := func(name string) string {
		if v := get(name); v != "" {
			return v
		}
		return get(strings.ToLower(name))
	}
	p.http, p.https, p.no = either("HTTP_PROXY"), either("HTTPS_PROXY"), either("NO_PROXY")
}

// secretSet says whether there is a value, known or to be read later.
func secretSet(s profiles.Secret) bool {
	return s.Value != "" || s.File != "" || s.Env != "" || s.Credential != ""
}

// containerdProxy is what containerd has, or will have, for a proxy: the profile's, else that
// of its process. A URL that is only referred to is "set".
func (n *Node) containerdProxy() proxy {
	var p proxy
	if n.Spec != nil {
		s := n.Spec.Systemd
		p.environment(func(name string) string { return s.Environment[name] })
		for _, x := range []struct {
			secret profiles.Secret
			to     *string
		}{{s.HTTPProxy, &p.http}, {s.HTTPSProxy, &p.https}} {
			if secretSet(x.secret) {
				if *x.to = x.secret.Value; *x.to == "" {
					*x.to = "http://set.invalid"
				}
			}
		}
		if len(s.NoProxy) > 0 {
			p.no = strings.Join(s.NoProxy, ",")
		}
		p.from = n.Spec.Origin("systemd.proxy").Place()
		return p
	}
	process, err := n.Process()
	if err != nil {
		return p
	}
	p.from = "/proc/" + strconv.Itoa(process.PID) + "/environ"
	b, err := n.Host.Root.ReadFile(p.from)
	if err != nil {
		p.from = ""
		return p
	}
	env := map[string]string{}
	for v := range strings.SplitSeq(string(b), "\x00") {
		if name, value, ok := strings.Cut(v, "="); ok {
			env[name] = value
		}
	}
	p.environment(func(name string) string { return env[name] })
	return p
}

// otherProxy is the proxy of who runs this program, or of all logins.
func (n *Node) otherProxy() (proxy, error) {
	p := proxy{from: "this environment"}
	if n.Env != nil {
		p.environment(func(name string) string { v, _ := n.Env(name); return v })
	}
	if p.set() {
		return p, nil
	}
	lines, err := n.lines("/etc/environment")
	if err != nil {
		return p, err
	}
	env := map[string]string{}
	for _, l := range lines {
		name, value, ok := strings.Cut(strings.TrimPrefix(l.text, "export "), "=")
		if ok && strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			env[name] = strings.Trim(value, `"'`)
			p.from = l.place
		}
	}
	p.environment(func(name string) string { return env[name] })
	return p, nil
}

func proxies(_ context.Context, n *Node) []Result {
	if n.Spec == nil {
		if process, err := n.Process(); err == nil {
			if _, err := n.Host.Root.ReadFile("/proc/" + strconv.Itoa(process.PID) + "/environ"); errors.Is(err, fs.ErrPermission) {
				return unknown(err)
			}
		}
	}
	daemon := n.containerdProxy()
	if !daemon.set() {
		other, err := n.otherProxy()
		if err != nil {
			return unknown(err)
		}
		if !other.set() {
			return pass("no proxy is set")
		}
		return []Result{{
			Verdict: Warn, Observed: other.from + " has a proxy, and containerd none", Wanted: "the same way out for containerd", Place: other.from,
			Remedy: "# set systemd.proxy in the profile, if containerd needs the proxy, too",
		}}
	}
	config := httpproxy.Config{HTTPProxy: daemon.http, HTTPSProxy: daemon.https, NoProxy: daemon.no}
	through := config.ProxyFunc()
	var faults []Result
	fault := func(object, observed string) {
		faults = append(faults, Result{
			Verdict: Warn, Object: object, Observed: observed, Wanted: object + " in NO_PROXY", Place: daemon.from,
			Remedy: "# add " + object + " to systemd.proxy.noProxy in the profile",
		})
	}
	if n.Spec != nil {
		for _, r := range n.Spec.Registries {
			for _, m := range r.Mirrors {
				u, err := url.Parse(m.URL)
				if err != nil || !near(u.Hostname()) {
					continue
				}
				if via, err := through(u); err == nil && via != nil {
					fault(u.Hostname(), "this mirror of the own network is asked through the proxy")
				}
			}
		}
		if network := n.Spec.CNI.Network; network != nil {
			for _, s := range network.Subnets {
				prefix, err := netip.ParsePrefix(s)
				if err != nil {
					continue
				}
				host := prefix.Addr().Next().String()
				if prefix.Addr().Is6() {
					host = "[" + host + "]"
				}
				if via, err := through(&url.URL{Scheme: "https", Host: host}); err == nil && via != nil {
					fault(s, "registries in pods are asked through the proxy")
				}
			}
		}
	}
	return orPass(faults, "containerd has a proxy, and what is near goes past it")
}

// near says whether a host is of a network that a proxy mostly does not reach: a private
// address, or a name that public DNS does not have (RFC 1918, RFC 4193, RFC 6762, RFC 8375).
func near(host string) bool {
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.IsPrivate() || addr.IsLoopback() || addr.IsLinkLocalUnicast()
	}
	if !strings.Contains(host, ".") {
		return true
	}
	return slices.ContainsFunc([]string{".local", ".internal", ".lan", ".intranet", ".home.arpa", ".svc", ".localdomain", ".test"}, func(suffix string) bool {
		return strings.HasSuffix(host, suffix)
	})
}

// tcpEndpoint is a TCP address that containerd listens at.
type tcpEndpoint struct{ what, address, place string }

// tcpEndpoints are those of the profile's settings, before a run, or of the config.
func (n *Node) tcpEndpoints() []tcpEndpoint {
	var out []tcpEndpoint
	add := func(what, address, place string) {
		if _, port, err := net.SplitHostPort(address); err == nil && port != "" && port != "0" {
			out = append(out, tcpEndpoint{what, address, place})
		}
	}
	const server = "io.containerd.server.v1."
	if n.Spec != nil && n.Applying {
		settings := n.Spec.Containerd.Settings
		place := n.Spec.Origin("containerd.settings").Place()
		for _, x := range []struct {
			what string
			at   []string
		}{
			{"metrics", []string{"metrics", "address"}},
			{"metrics", []string{"plugins", server + "metrics", "address"}},
			{"API", []string{"grpc", "tcp_address"}},
			{"API", []string{"plugins", server + "grpc-tcp", "address"}},
			{"debug", []string{"debug", "address"}},
			{"debug", []string{"plugins", server + "debug", "address"}},
		} {
			if s, ok := setting(settings, x.at...).(string); ok {
				add(x.what, s, place)
			}
		}
		host, _ := setting(settings, "plugins", "io.containerd.grpc.v1.cri", "stream_server_address").(string)
		if port, ok := setting(settings, "plugins", "io.containerd.grpc.v1.cri", "stream_server_port").(string); ok {
			add("streaming", net.JoinHostPort(host, port), place)
		}
		return out
	}
	c, err := n.Config()
	if err != nil {
		return nil
	}
	for _, x := range []struct {
		what string
		get  func() (string, configtoml.Place)
	}{{"metrics", c.MetricsAddress}, {"API", c.TCPAddress}, {"debug", c.DebugAddress}} {
		address, at := x.get()
		add(x.what, address, at.String())
	}
	host, _, _ := c.Get("plugins", "io.containerd.grpc.v1.cri", "stream_server_address")
	if port, at, ok := c.Get("plugins", "io.containerd.grpc.v1.cri", "stream_server_port"); ok {
		h, _ := host.(string)
		if p, ok := port.(string); ok {
			add("streaming", net.JoinHostPort(h, p), at.String())
		}
	}
	return out
}

func ports(_ context.Context, n *Node) []Result {
	endpoints := n.tcpEndpoints()
	if len(endpoints) == 0 {
		return pass("containerd is to listen at no TCP port")
	}
	all, err := n.listeners()
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	for _, e := range endpoints {
		host, port, _ := net.SplitHostPort(e.address)
		for _, l := range all {
			if strconv.Itoa(int(l.addr.Port())) != port || !overlap(host, l.addr.Addr()) {
				continue
			}
			pid, comm, err := n.owner(l.inode)
			switch {
			case err != nil:
				return unknown(fmt.Errorf("who listens at %s: %w", l.addr, err))
			case comm == "containerd":
				continue
			}
			r := Result{
				Verdict: Warn, Object: e.address, Observed: "taken by another process", Wanted: "free for containerd's " + e.what, Place: e.place,
				Remedy: "# choose another port in the profile, or stop what has it",
			}
			if pid != 0 {
				r.Observed = fmt.Sprintf("taken by %s (process %d)", comm, pid)
			}
			faults = append(faults, r)
			break
		}
	}
	return orPass(faults, "%d TCP ports are free, or containerd's", len(endpoints))
}

// overlap says whether binding to host conflicts with a listener at addr.
func overlap(host string, addr netip.Addr) bool {
	want, err := netip.ParseAddr(host)
	return err != nil || want.IsUnspecified() || addr.IsUnspecified() || want.Unmap() == addr
}

// owner is the process that has a socket open; 0 where no process of this PID namespace
// has it. The error says that others' processes may not be looked at.
func (n *Node) owner(inode string) (pid int, comm string, err error) {
	all, err := n.processes()
	if err != nil {
		return 0, "", err
	}
	var denied error
	for _, p := range all {
		dir := path.Join("/proc", strconv.Itoa(p.pid))
		fds, err := n.Host.Root.ReadDir(dir + "/fd")
		if errors.Is(err, fs.ErrPermission) {
			denied = err
		}
		for _, fd := range fds {
			if to, err := n.Host.Root.Readlink(dir + "/fd/" + fd.Name()); err == nil && to == "socket:["+inode+"]" {
				if p.comm == "" {
					p.comm, err = n.text(dir + "/comm")
				}
				return p.pid, p.comm, err
			}
		}
	}
	return 0, "", denied
}

func iptables(ctx context.Context, n *Node) Result {
	program := n.tool("iptables")
	if program == "" {
		return Result{Verdict: Pass, Observed: "no iptables here"}
	}
	out, err := n.run(ctx, program, "--version")
	if err != nil {
		return unknown(err)[0]
	}
	// iptables v1.8.9 (nf_tables)
	f := strings.Fields(out)
	if len(f) < 2 {
		return unknown(fmt.Errorf("%s --version says %q", program, strings.TrimSpace(out)))[0]
	}
	version := strings.TrimPrefix(f[1], "v")
	r := Result{Verdict: Pass, Observed: strings.TrimSpace(out), Place: program}
	nft := strings.Contains(out, "nf_tables")
	if nft && slices.Contains([]string{"1.8.0", "1.8.1", "1.8.2", "1.8.3"}, version) {
		r.Verdict, r.Wanted = Warn, "1.8.4 or newer, or the legacy mode"
		if n.tool("iptables-legacy") != "" && n.tool("update-alternatives") != "" {
			r.Remedy = "# rules that are there now stay in nftables until they are flushed or the host boots\nupdate-alternatives --set iptables " + n.tool("iptables-legacy")
		}
		return r
	}
	if !nft {
		return r
	}
	tables, err := n.text("/proc/net/ip_tables_names")
	switch {
	case err == nil && tables != "":
		r.Verdict, r.Observed = Warn, r.Observed+", and legacy tables are in use: "+strings.Join(strings.Fields(tables), ", ")
		r.Wanted, r.Place = "rules in one of the two", "/proc/net/ip_tables_names"
		r.Remedy = "# legacy rules still filter; see whose they are (iptables-legacy-save), and boot once nothing makes them any more"
	case err != nil && !absent(err):
		r.Verdict, r.Note = Unknown, "whether legacy tables are in use is not shown to this user"
	}
	return r
}

func firewall(_ context.Context, n *Node) []Result {
	var faults []Result
	for _, unit := range []string{"firewalld.service", "ufw.service"} {
		on, err := n.active(unit)
		if err != nil {
			return unknown(err)
		}
		name := strings.TrimSuffix(unit, ".service")
		if on && name == "ufw" {
			// Its unit is active whether it is switched on or not (ufw(8)).
			conf, err := n.lines("/etc/ufw/ufw.conf")
			if err != nil {
				return unknown(err)
			}
			on = slices.ContainsFunc(conf, func(l numbered) bool { return strings.EqualFold(l.text, "ENABLED=yes") })
		}
		if !on {
			continue
		}
		r := Result{
			Verdict: Warn, Object: name, Observed: "active", Wanted: "rules for pods' networks and port 10250, or no firewall of the host's own", Place: unit,
			Remedy: "# let pods' networks and the cluster's ports pass; without it the host is open to its networks:\nsystemctl disable --now " + unit,
		}
		if name == "ufw" {
			r.Place, r.Remedy = "/etc/ufw/ufw.conf", "# let pods' networks and the cluster's ports pass; without it the host is open to its networks:\nufw disable"
		}
		faults = append(faults, r)
	}
	return orPass(faults, "neither firewalld nor ufw is active")
}

// route is a line of the kernel's routing tables.
type route struct {
	to    netip.Prefix
	iface string
}

func (n *Node) routes() ([]route, error) {
	var out []route
	b, err := n.Host.Root.ReadFile("/proc/net/route")
	if err != nil && !absent(err) {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 8 {
			continue
		}
		to, ok1 := procIP(f[1])
		mask, ok2 := procIP(f[7])
		if ok1 && ok2 {
			ones, _ := net.IPMask(mask.AsSlice()).Size()
			out = append(out, route{netip.PrefixFrom(to, ones), f[0]})
		}
	}
	if b, err = n.Host.Root.ReadFile("/proc/net/ipv6_route"); err != nil && !absent(err) {
		return nil, err
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 10 {
			continue
		}
		// Written byte by byte: no byte order.
		to, err1 := netip.ParseAddr(colons(f[0]))
		bits, err2 := strconv.ParseInt(f[1], 16, 0)
		if err1 == nil && err2 == nil {
			out = append(out, route{netip.PrefixFrom(to, int(bits)), f[9]})
		}
	}
	return out, nil
}

// colons writes 32 hexadecimal digits as an IPv6 address.
func colons(s string) string {
	var parts []string
	for ; len(s) >= 4; s = s[4:] {
		parts = append(parts, s[:4])
	}
	return strings.Join(parts, ":")
}

func cniNetwork(_ context.Context, n *Node) []Result {
	network := n.Spec.CNI.Network
	if network == nil {
		return pass("the cluster's CNI brings its own network")
	}
	routes, err := n.routes()
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	for _, s := range network.Subnets {
		subnet, err := netip.ParsePrefix(s)
		if err != nil {
			continue // the profile's own fault, and said there
		}
		for _, r := range routes {
			// Those of link-local and multicast, of lo and the default route are of no network.
			if r.iface == network.Bridge || r.iface == "lo" || r.to.Bits() == 0 || !subnet.Overlaps(r.to) {
				continue
			}
			faults = append(faults, Result{
				Verdict: Warn, Object: s, Observed: "the host has a route to " + r.to.String() + " by " + r.iface, Wanted: "a subnet of its own",
				Place: n.Spec.Origin("cni.network").Place(), Remedy: "# choose another subnet in cni.network",
			})
		}
	}
	return orPass(faults, "%s", strings.Join(network.Subnets, ", "))
}
