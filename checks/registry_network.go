package checks

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/net/http/httpproxy"
)

// How long one endpoint may take, and how many are asked.
const (
	connectTime  = 3 * time.Second
	endpointTime = 5 * time.Second
	mostAsked    = 16
)

// probe is what an endpoint answered.
type probe struct {
	err        error // nobody answered, or not as wanted
	unverified error // what skip_verify lets pass
	chain      []*x509.Certificate
	status     int
	location   string // of a redirect
	challenge  []string
	proxy      string // the host of the proxy that was gone through
	plain      bool   // over HTTP
}

// probe connects as containerd would to an endpoint: with its CA, its client
// certificates and the daemon's proxy. It sends none of its headers, and no credentials.
func (n *Node) probe(e endpoint) probe {
	key := strings.Join([]string{"probe", e.url(), e.place(), strconv.FormatBool(e.skipVerify)}, " ")
	p, err := remember(n, key, func(ctx context.Context) (probe, error) {
		ctx, cancel := context.WithTimeout(ctx, endpointTime)
		defer cancel()
		p := n.ask(ctx, e)
		return p, p.err
	})
	p.err = err
	return p
}

func (n *Node) ask(ctx context.Context, e endpoint) probe {
	_, port, _ := strings.Cut(e.host, ":")
	if e.scheme == "http" && e.tls && port != "80" {
		// As containerd's HTTPFallback does.
		secure := e
		secure.scheme = "https"
		if p := n.askOnce(ctx, secure); p.err == nil || ctx.Err() != nil {
			return p
		}
	}
	return n.askOnce(ctx, e)
}

func (n *Node) askOnce(ctx context.Context, e endpoint) probe {
	config, err := n.tlsConfig(e)
	if err != nil {
		return probe{err: err}
	}
	// A connection that is given up goes on in the background.
	var mu sync.Mutex
	var seen probe
	note := func(f func(p *probe)) {
		mu.Lock()
		defer mu.Unlock()
		f(&seen)
	}
	done := func(f func(p *probe)) probe {
		note(f)
		mu.Lock()
		defer mu.Unlock()
		return seen
	}
	name := (&url.URL{Host: e.host}).Hostname()
	config.VerifyConnection = func(s tls.ConnectionState) error {
		opts := x509.VerifyOptions{Roots: config.RootCAs, DNSName: name, CurrentTime: n.Host.Now(), Intermediates: x509.NewCertPool()}
		for _, c := range s.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		_, err := s.PeerCertificates[0].Verify(opts)
		note(func(p *probe) {
			p.chain = s.PeerCertificates
			if e.skipVerify {
				p.unverified, err = err, nil
			}
		})
		return err
	}
	proxy, _ := n.daemonProxy() // checks that rest on it have asked
	transport := &http.Transport{
		TLSClientConfig: config, DisableKeepAlives: true, TLSHandshakeTimeout: connectTime, MaxResponseHeaderBytes: 1 << 16,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			ctx, cancel := context.WithTimeout(ctx, connectTime)
			defer cancel()
			return n.Dial(ctx, network, address)
		},
		Proxy: func(r *http.Request) (*url.URL, error) {
			u, err := proxy(r.URL)
			if u == nil || err != nil {
				return nil, err
			}
			// A proxy's password goes to nobody for the sake of a look.
			u = &url.URL{Scheme: u.Scheme, Host: u.Host}
			note(func(p *probe) { p.proxy = u.Host })
			return u, nil
		},
	}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, e.url()+"/", nil)
	if err != nil {
		return probe{err: err}
	}
	r.Header.Set("User-Agent", "nodeprep")
	answer, err := client.Do(r)
	if err != nil {
		// Its text repeats the URL.
		if u, ok := errors.AsType[*url.Error](err); ok {
			err = u.Err
		}
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer in %v: %w", endpointTime, err)
		}
		return done(func(p *probe) { p.err = err })
	}
	answer.Body.Close()
	return done(func(p *probe) {
		p.status, p.challenge, p.plain = answer.StatusCode, answer.Header.Values("WWW-Authenticate"), e.scheme == "http"
		if u, err := answer.Location(); err == nil {
			p.location = u.Host
		}
	})
}

// tlsConfig is containerd's for an endpoint, but that it leaves the verification to
// others. The certificates were found good before.
func (n *Node) tlsConfig(e endpoint) (*tls.Config, error) {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true} // VerifyConnection verifies
	pool, err := x509.SystemCertPool()
	if err != nil {
		pool = x509.NewCertPool()
	}
	config.RootCAs = pool
	for _, ca := range e.ca {
		b, err := n.Host.Root.ReadFile(ca.path)
		if err != nil {
			return nil, err
		}
		pool.AppendCertsFromPEM(b)
	}
	for _, pair := range e.client {
		cert, err := n.Host.Root.ReadFile(pair.cert)
		if err != nil {
			return nil, err
		}
		key, err := n.Host.Root.ReadFile(pair.key)
		if err != nil {
			return nil, err
		}
		c, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, err
		}
		config.Certificates = append(config.Certificates, c)
	}
	return config, nil
}

// daemonProxy is the proxy that the daemon's environment names for a URL: none without a
// daemon. The error is that its environment may not be seen.
func (n *Node) daemonProxy() (func(*url.URL) (*url.URL, error), error) {
	return remember(n, "proxy", func(context.Context) (func(*url.URL) (*url.URL, error), error) {
		none := func(*url.URL) (*url.URL, error) { return nil, nil }
		p, err := n.Process()
		if err != nil {
			return none, nil
		}
		b, err := n.Host.Root.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/environ")
		if absent(err) {
			return none, nil
		}
		if err != nil {
			return none, fmt.Errorf("see the daemon's proxy: %w", reason(err))
		}
		env := map[string]string{}
		for entry := range strings.SplitSeq(string(b), "\x00") {
			if name, value, ok := strings.Cut(entry, "="); ok {
				env[name] = value
			}
		}
		either := func(name string) string { return cmp.Or(env[name], env[strings.ToLower(name)]) }
		c := httpproxy.Config{HTTPProxy: either("HTTP_PROXY"), HTTPSProxy: either("HTTPS_PROXY"), NoProxy: either("NO_PROXY")}
		return c.ProxyFunc(), nil
	})
}

// asked is an endpoint and what it answered.
type asked struct {
	endpoint
	probe
}

// askAll asks endpoints side by side, each once. more is how many were too many.
func (n *Node) askAll(all []endpoint) (out []asked, more int) {
	for _, e := range all {
		if e.host == "" || slices.ContainsFunc(out, func(o asked) bool { return o.url() == e.url() }) {
			continue
		}
		if len(out) == mostAsked {
			more++
			continue
		}
		out = append(out, asked{endpoint: e})
	}
	var wg sync.WaitGroup
	for i := range out {
		wg.Go(func() { out[i].probe = n.probe(out[i].endpoint) })
	}
	wg.Wait()
	return out, more
}

// own says whether an endpoint is its registry itself, and not a mirror of it.
func (e endpoint) own() bool {
	if !e.server {
		return false
	}
	self := endpoint{registry: e.registry}
	self.locate()
	return e.name == "" || e.host == self.host || e.host == e.registry
}

// overNetwork asks the endpoints that are wanted.
func overNetwork(n *Node, wanted func(endpoint) bool, none string, judge func(asked) []Result, well string) []Result {
	// Another way out than the daemon's would tell nothing of its pulls.
	if _, err := n.daemonProxy(); err != nil {
		return unknown(err)
	}
	c, err := n.certs()
	if err != nil {
		return unknown(err)
	}
	var all []endpoint
	for _, e := range c.endpoints() {
		if wanted(e) {
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return pass("%s", none)
	}
	answers, more := n.askAll(all)
	var out []Result
	for _, a := range answers {
		for _, r := range judge(a) {
			if a.proxy != "" {
				r.Note = strings.TrimPrefix(r.Note+"; through the daemon's proxy "+a.proxy, "; ")
			}
			out = append(out, r)
		}
	}
	if more > 0 {
		out = append(out, Result{Verdict: Unknown, Observed: fmt.Sprintf("%d more are not asked: %d are the most", more, mostAsked)})
	}
	if len(out) == 0 {
		return pass("%d "+well, len(answers))
	}
	return out
}

func isMirror(e endpoint) bool { return !e.own() }

// unanswered is what is wrong with an answer, nil where the registry's API is there.
func unanswered(a asked) *Result {
	r := Result{
		Verdict: Fail, Object: a.url(), Wanted: "200 or 401 at " + a.path + "/", Place: a.place(),
		Remedy: fmt.Sprintf("# start what serves %s, or correct %s; then try\ncurl -sv %s/", a.host, a.place(), quote(a.url())),
	}
	switch s := a.status; {
	case errors.Is(a.err, fs.ErrPermission):
		r.Verdict, r.Observed = Unknown, "its certificates are only for root to read"
	case a.err != nil:
		r.Observed = a.err.Error()
	case s == http.StatusProxyAuthRequired:
		r.Verdict, r.Observed = Unknown, "the daemon's proxy wants credentials, which are not sent for this"
	case s >= http.StatusInternalServerError:
		r.Verdict, r.Observed = Warn, fmt.Sprintf("answers %d %s", s, http.StatusText(s))
	default:
		return nil // some answer what is below /v2/ alone
	}
	return &r
}

// otherHost is another host of the files that name an endpoint which answers, "" where a
// file has none. What nobody may ask may answer, and so may the registries that a file for
// all of them falls back to.
func (n *Node) otherHost(e endpoint) string {
	c, err := n.certs()
	if err != nil {
		return ""
	}
	n.askFallbacks(c)
	answers := ""
	for _, f := range c.files() {
		if !slices.ContainsFunc(f.endpoints, func(o endpoint) bool { return o.url() == e.url() }) {
			continue
		}
		i := slices.IndexFunc(f.endpoints, func(o endpoint) bool {
			if o.host == "" || o.url() == e.url() {
				return false
			}
			if o.name == "" && o.registry == "*" {
				return true
			}
			r := unanswered(asked{o, n.probe(o)})
			return r == nil || r.Verdict != Fail
		})
		if i < 0 {
			return ""
		}
		if answers = f.endpoints[i].host; answers == "*" {
			answers = "the registry itself"
		}
	}
	return answers
}

// askFallbacks asks, side by side, the hosts that files name last, so that nobody waits for
// one after the other.
func (n *Node) askFallbacks(c *certs) {
	_, _ = remember(n, "fallbacks", func(context.Context) ([]asked, error) {
		var last []endpoint
		for _, e := range c.endpoints() {
			if !isMirror(e) && e.registry != "*" {
				last = append(last, e)
			}
		}
		answers, _ := n.askAll(last)
		return answers, nil
	})
}

func mirrorsReachable(_ context.Context, n *Node) []Result {
	return overNetwork(n, isMirror, "no mirrors", func(a asked) []Result {
		if r := unanswered(a); r != nil {
			if r.Verdict == Fail {
				if other := n.otherHost(a.endpoint); other != "" {
					r.Verdict, r.Note = Warn, "pulls go on by "+other+", once this one's time is up"
				}
			}
			return []Result{*r}
		}
		observed := fmt.Sprintf("answers %d %s", a.status, http.StatusText(a.status))
		if a.location != "" {
			observed += ", from " + a.location
		}
		return []Result{{Verdict: Pass, Object: a.url(), Observed: observed, Place: a.place()}}
	}, "mirrors answer")
}

func mirrorCertificates(_ context.Context, n *Node) []Result {
	return overNetwork(n, isMirror, "no mirrors", func(a asked) []Result {
		var out []Result
		add := func(observed, wanted, remedy string) {
			out = append(out, Result{Verdict: Warn, Object: a.url(), Observed: observed, Wanted: wanted, Place: a.place(), Remedy: remedy})
		}
		for _, c := range a.chain {
			if _, observed := validity(c, n.Host.Now()); observed != "" {
				add(observed, "valid for 30 days and more", "# renew the certificate of "+a.host)
			}
		}
		if a.unverified != nil {
			add("skip_verify hides: "+a.unverified.Error(), "a certificate that can be verified", fmt.Sprintf("# name the CA of %s with ca in %s, and drop skip_verify", a.host, a.file))
		}
		return out
	}, "mirrors, no certificate that ends soon or that cannot be verified")
}

// challenges are the schemes and parameters of a WWW-Authenticate header (RFC 9110,
// section 11.6.1), as far as registries use them.
func challenges(values []string) map[string]map[string]string {
	out := map[string]map[string]string{}
	for _, v := range values {
		scheme, rest, _ := strings.Cut(strings.TrimSpace(v), " ")
		params := map[string]string{}
		for rest != "" {
			var name, value string
			name, rest, _ = strings.Cut(strings.TrimLeft(rest, ", "), "=")
			if strings.HasPrefix(rest, `"`) {
				value, rest, _ = strings.Cut(rest[1:], `"`)
			} else {
				value, rest, _ = strings.Cut(rest, ",")
			}
			params[strings.ToLower(strings.TrimSpace(name))] = value
		}
		out[strings.ToLower(scheme)] = params
	}
	return out
}

// credentials says whether any are configured for an endpoint, and by whom.
func (n *Node) credentials(e endpoint) string {
	if slices.ContainsFunc(e.headers, func(h string) bool { return strings.EqualFold(h, "authorization") }) {
		return "header of " + e.file
	}
	c, err := n.Config()
	if err != nil {
		return ""
	}
	r := c.Registry()
	for _, x := range r.Configs {
		if x.Host == e.host && x.HasAuth {
			return x.Place.String()
		}
	}
	for _, x := range r.Auths {
		if u, err := url.Parse(x.Name); err == nil && u.Host == e.host {
			return x.Place.String()
		}
	}
	return ""
}

func mirrorAuth(_ context.Context, n *Node) []Result {
	return overNetwork(n, isMirror, "no mirrors", func(a asked) []Result {
		if a.err != nil {
			return nil
		}
		r := Result{Verdict: Warn, Object: a.url(), Place: a.place()}
		have := n.credentials(a.endpoint)
		if have != "" && a.plain {
			r.Observed, r.Wanted, r.Note = "its credentials go over plain HTTP, for all to read", "https", "set by "+have
			return []Result{r}
		}
		if a.status != http.StatusUnauthorized {
			return nil
		}
		schemes := challenges(a.challenge)
		bearer, hasBearer := schemes["bearer"]
		_, hasBasic := schemes["basic"]
		switch {
		case !hasBearer && !hasBasic:
			r.Observed, r.Wanted = "answers 401 without saying how to authenticate", "a WWW-Authenticate header, Basic or Bearer"
			return []Result{r}
		case hasBearer:
			realm, err := url.Parse(bearer["realm"])
			if err != nil || realm.Host == "" {
				r.Observed, r.Wanted = fmt.Sprintf("its token server is %q", bearer["realm"]), "a URL"
				return []Result{r}
			}
			if realm.Host == a.host {
				return nil
			}
			token := a.endpoint
			token.scheme, token.host, token.path = realm.Scheme, realm.Host, strings.TrimRight(realm.Path, "/")
			if p := n.probe(token); p.err != nil {
				r.Observed, r.Wanted = "its token server "+realm.Scheme+"://"+realm.Host+": "+p.err.Error(), "an answer"
				return []Result{r}
			}
			return nil // without credentials it gives tokens for what is public
		case have == "":
			r.Observed, r.Wanted = "asks for a password, and none is configured for "+a.host, fmt.Sprintf("auth of the mirror in the profile, registry.configs.%q.auth, or an Authorization header", a.host)
			r.Note = "a pod's pull secret is sent to a mirror only where it names no registry"
			return []Result{r}
		}
		return nil
	}, "mirrors, each with what it asks for")
}

func upstreamReachable(_ context.Context, n *Node) []Result {
	return overNetwork(n, func(e endpoint) bool { return e.own() && e.registry != "*" }, "no hosts.toml falls back to its registry", func(a asked) []Result {
		r := unanswered(a)
		if r == nil {
			return nil
		}
		if r.Verdict == Fail {
			r.Verdict = Warn
		}
		r.Remedy = fmt.Sprintf("# set upstream: deny for %s in the profile, or let the node reach it", a.registry)
		return []Result{*r}
	}, "registries answer")
}

func deniedReachable(_ context.Context, n *Node) []Result {
	var all []endpoint
	for _, r := range n.Spec.Registries {
		if r.Deny && r.Host != "*" {
			e := endpoint{registry: r.Host, server: true}
			e.locate()
			all = append(all, e)
		}
	}
	if len(all) == 0 {
		return pass("the profile denies no upstream")
	}
	answers, _ := n.askAll(all)
	var out []Result
	for _, a := range answers {
		if a.err == nil {
			out = append(out, Result{
				Verdict: Warn, Object: a.url(), Observed: fmt.Sprintf("answers %d %s", a.status, http.StatusText(a.status)), Wanted: "out of reach",
				Note: "containerd does not ask it; ctr and others may",
			})
		}
	}
	return orPass(out, "%d registries, none can be reached", len(answers))
}
