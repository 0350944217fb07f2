package probe

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// peer is who answered over TLS.
type peer struct {
	chain   []*x509.Certificate
	version string
	doubt   error  // what skip_verify lets pass
	wants   bool   // a client certificate
	shown   string // the client certificate that went out, "" for none
}

func (s *session) peerOf() peer {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.peer
}

// prepare makes the client and containerd's authorizer, with the settings of
// core/remotes/docker/config/hosts.go: HTTP/1.1, and one client for the registry and for its
// token server.
func (s *session) prepare() *fault {
	config := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: s.host.SkipVerify, Time: s.now}
	config.RootCAs = s.Roots
	if len(s.host.CA) > 0 {
		if config.RootCAs != nil {
			config.RootCAs = config.RootCAs.Clone()
		} else if pool, err := x509.SystemCertPool(); err == nil {
			config.RootCAs = pool
		} else {
			config.RootCAs = x509.NewCertPool()
		}
		for _, f := range s.host.CA {
			if f.Unread != "" {
				return &fault{verdict: "the CA file cannot be read: " + f.Unread, detail: f.Name, remedy: s.host.Hints.CA}
			}
			if !config.RootCAs.AppendCertsFromPEM(f.Data) {
				return &fault{verdict: "the CA file has no certificate", detail: f.Name, remedy: s.host.Hints.CA}
			}
		}
	}
	for _, pair := range s.host.Client {
		for _, f := range pair {
			if f.Unread != "" {
				return &fault{verdict: "the client certificate cannot be read: " + f.Unread, detail: f.Name, remedy: s.host.Hints.Client}
			}
		}
		cert, err := tls.X509KeyPair(pair[0].Data, pair[1].Data)
		if err != nil {
			return &fault{verdict: "the client certificate cannot be loaded", detail: pair[0].Name + ", " + pair[1].Name, remedy: s.host.Hints.Client}
		}
		config.Certificates = append(config.Certificates, cert)
	}
	config.GetClientCertificate = func(r *tls.CertificateRequestInfo) (*tls.Certificate, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.peer.wants = true
		for i := range config.Certificates {
			if r.SupportsCertificate(&config.Certificates[i]) == nil {
				s.peer.shown = s.host.Client[i][0].Name
				return &config.Certificates[i], nil
			}
		}
		return &tls.Certificate{}, nil
	}
	config.VerifyConnection = func(state tls.ConnectionState) error {
		s.met(config.RootCAs, state)
		return nil
	}
	transport := s.Network.Transport()
	transport.ForceAttemptHTTP2 = false
	transport.TLSClientConfig = config
	transport.TLSHandshakeTimeout = s.limit()
	transport.MaxResponseHeaderBytes = 1 << 20
	transport.DialContext = s.dial
	transport.Proxy = s.proxy
	transport.GetProxyConnectHeader = func(ctx context.Context, _ *url.URL, _ string) (http.Header, error) {
		if t := trailOf(ctx); t != nil {
			t.tunnel()
			t.enter(StepProxy, s.limit(), "")
			t.note("a way through", "")
		}
		return http.Header{}, nil
	}
	transport.OnProxyConnectResponse = func(ctx context.Context, _ *url.URL, _ *http.Request, r *http.Response) error {
		if t := trailOf(ctx); t != nil && r.StatusCode != http.StatusOK {
			t.mu.Lock()
			t.connect = r.StatusCode
			t.mu.Unlock()
		}
		return nil
	}
	s.client = &http.Client{Transport: capped{transport}}
	s.auth = docker.NewDockerAuthorizer(docker.WithAuthClient(s.client), docker.WithAuthHeader(s.tokenHeader()), docker.WithAuthCreds(func(host string) (string, string, error) {
		c := s.credential(host)
		s.mu.Lock()
		s.used = c
		s.mu.Unlock()
		return c.User, c.Secret, nil
	}))
	return nil
}

func (s *session) tokenHeader() http.Header {
	h := s.host.TokenHeader.Clone()
	if h == nil {
		h = http.Header{}
	}
	if h.Get("User-Agent") == "" && s.Agent != "" {
		h.Set("User-Agent", s.Agent)
	}
	return h
}

func (s *session) close() {
	if s.client != nil {
		s.client.CloseIdleConnections()
	}
}

// met remembers whom TLS was spoken with.
func (s *session) met(roots *x509.CertPool, state tls.ConnectionState) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.peer.chain, s.peer.version, s.peer.doubt = state.PeerCertificates, tls.VersionName(state.Version), nil
	if s.host.SkipVerify {
		opts := x509.VerifyOptions{Roots: roots, DNSName: cmp.Or(state.ServerName, s.target), CurrentTime: s.now(), Intermediates: x509.NewCertPool()}
		for _, c := range state.PeerCertificates[1:] {
			opts.Intermediates.AddCert(c)
		}
		_, s.peer.doubt = state.PeerCertificates[0].Verify(opts)
	}
}

// proxy is that of a request's URL.
func (s *session) proxy(r *http.Request) (*url.URL, error) {
	var via *url.URL
	if s.Proxy != nil {
		var err error
		if via, err = s.Proxy(r.URL); err != nil {
			// Its text may hold the URL.
			return nil, &fault{verdict: "the proxy's URL is none"}
		}
	}
	if via != nil {
		secret, ok := via.User.Password()
		if !ok {
			s.veil.hide(via.User.Username()) // a token, for some
		} else {
			s.veil.hide(secret, via.User.Username()+":"+secret)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.target, s.via = r.URL.Hostname(), via
	return via, nil
}

// through is the proxy that is gone through, nil for none.
func (s *session) through() *url.URL {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.via
}

// dial looks up a name and connects to the first address that answers. It ends with the
// request that wants it.
func (s *session) dial(ctx context.Context, network, address string) (net.Conn, error) {
	t := trailOf(ctx)
	if t == nil {
		return nil, errors.New("a request without a trail")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(t.ctx, cancel)()
	name, port, err := net.SplitHostPort(address)
	if err != nil {
		return nil, err
	}
	via := s.through()
	whose := ""
	if via != nil {
		whose = "the proxy " + name
	} else if !strings.EqualFold(address, s.own()) {
		whose = s.their(name)
	}
	addrs := []netip.Addr{}
	if ip, err := netip.ParseAddr(name); err == nil {
		addrs = append(addrs, ip)
	} else {
		t.enter(StepDNS, s.limit(), whose)
		if addrs, err = s.lookup(ctx, name); err != nil {
			return nil, err
		}
		var list []string
		for i, ip := range addrs {
			addrs[i] = ip.Unmap()
			list = append(list, addrs[i].String())
		}
		detail := name + " is " + strings.Join(list, ", ")
		if via != nil {
			detail = "the proxy " + detail
		}
		t.note("found", detail)
	}
	t.enter(StepTCP, s.dialLimit(), whose)
	var failed []string
	var first error
	deadline := time.Now().Add(s.dialLimit())
	for i, ip := range addrs {
		// As net.Dialer does, so that one that is silent leaves time for the next.
		one, stop := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(len(addrs)-i))
		conn, err := s.Network.DialContext(one, network, net.JoinHostPort(ip.String(), port))
		ended, timed := errors.AsType[net.Error](err)
		late := ctx.Err() == nil && (one.Err() != nil || timed && ended.Timeout())
		stop()
		if err == nil {
			detail := conn.RemoteAddr().String()
			if via != nil {
				detail = fmt.Sprintf("through proxy %s://%s, at %s", via.Scheme, via.Host, detail)
			}
			if len(failed) > 0 {
				detail += "; before that " + strings.Join(failed, ", ")
			}
			t.note("connected", detail)
			t.opened(conn)
			return conn, nil
		}
		if late {
			err = errTime
		}
		first = cmp.Or(first, err) // which is what net.Dialer returns
		failed = append(failed, ip.String()+": "+plain(err))
	}
	if len(addrs) == 0 {
		return nil, &net.DNSError{Err: "no addresses", Name: name, IsNotFound: true}
	}
	t.note("", strings.Join(failed, ", "))
	return nil, first
}

// own is the host's address as it is dialled without a proxy.
func (s *session) own() string {
	scheme := s.spoken()
	u := url.URL{Scheme: scheme, Host: s.host.Host}
	port := u.Port()
	if port == "" {
		port = map[string]string{"http": "80", "https": "443"}[scheme]
	}
	return net.JoinHostPort(u.Hostname(), port)
}

// lookup asks the resolvers of this machine, in Go, so that it goes through the Network.
func (s *session) lookup(ctx context.Context, name string) ([]netip.Addr, error) {
	if s.Lookup != nil {
		return s.Lookup(ctx, name)
	}
	if s.Network.Forbidden() {
		// It says so itself, and who wanted it.
		_, err := s.Network.DialContext(ctx, "tcp", name+":0")
		return nil, err
	}
	r := &net.Resolver{PreferGo: true, Dial: s.Network.DialContext}
	return r.LookupNetIP(ctx, "ip", name)
}

// falls says whether containerd goes on with plain HTTP (httpFallback.RoundTrip in its
// core/remotes/docker/resolver.go).
func (s *session) falls(err error, t *trail) bool {
	if !s.host.Fallback || s.spoken() != "https" || t.parent.Err() != nil {
		return false
	}
	if errors.Is(err, http.ErrSchemeMismatch) {
		return true
	}
	switch t.at() {
	case StepTLS:
		return s.late(t, err)
	case StepTCP:
		// With a port, nothing else is there to be tried. No other error counts (isPortError).
		return (&url.URL{Host: s.host.Host}).Port() == "" && (errors.Is(err, syscall.ECONNREFUSED) || s.late(t, err))
	}
	return false
}

// late says whether a step took too long.
func (s *session) late(t *trail, err error) bool {
	if errors.Is(context.Cause(t.ctx), errTime) || errors.Is(err, errTime) {
		return true
	}
	timeout, ok := errors.AsType[net.Error](err)
	return ok && timeout.Timeout() && !errors.Is(err, context.Canceled)
}

// speaksTLS says whether the host answers a TLS handshake, whatever its certificate.
func (s *session) speaksTLS(ctx context.Context) bool {
	if s.through() != nil {
		return false // the proxy's connection says nothing
	}
	t := s.start(ctx, false)
	defer t.broken()
	conn, err := s.dial(t.ctx, "tcp", s.own())
	if err != nil {
		return false
	}
	return tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(t.ctx) == nil // nothing is sent
}

// mostOfBody is what is read of an answer, in bytes, unless it is a manifest.
const mostOfBody = 1 << 20

// capped ends an answer that goes on and on, also one that containerd's own code reads.
type capped struct{ next *http.Transport }

// RoundTrip is that of http.RoundTripper.
func (c capped) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := c.next.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	most := int64(mostOfBody)
	if t := trailOf(r.Context()); t != nil {
		most = max(most, t.keep)
	}
	resp.Body = &cappedBody{resp.Body, most}
	return resp, nil
}

// CloseIdleConnections is for http.Client.
func (c capped) CloseIdleConnections() { c.next.CloseIdleConnections() }

type cappedBody struct {
	io.ReadCloser
	left int64 // bytes
}

// Read ends with a *fault where there is more.
func (b *cappedBody) Read(p []byte) (int, error) {
	if b.left <= 0 {
		if n, err := b.ReadCloser.Read(make([]byte, 1)); n == 0 {
			return 0, err
		}
		return 0, &fault{verdict: "the answer has no end, or is far too long"}
	}
	n, err := b.ReadCloser.Read(p[:min(int64(len(p)), b.left)])
	b.left -= int64(n)
	return n, err
}

func readUpTo(r io.Reader, most int64) ([]byte, error) { return io.ReadAll(io.LimitReader(r, most)) }
