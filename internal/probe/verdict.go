package probe

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	dockerauth "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	remoteerrors "github.com/containerd/containerd/v2/core/remotes/errors"
	"github.com/containerd/errdefs"

	"github.com/nodeprep/nodeprep/internal/host"
)

// blame says what an error means in the step at which a request has come to.
func (s *session) blame(t *trail, err error) *fault {
	t.mu.Lock()
	at, limit, subject, detail, connect := t.step, t.limit, t.subject, t.detail, t.connect
	t.mu.Unlock()
	if f, ok := errors.AsType[*fault](err); ok {
		return f
	}
	f := s.blamed(t, at, limit, connect, err)
	if f.detail == "" {
		f.detail = detail
	}
	// Behind a proxy it is the host again that answers.
	if near := at == StepDNS || at == StepTCP; subject != "" && (near || !strings.HasPrefix(subject, "the proxy ")) {
		f.verdict = subject + ": " + f.verdict
	}
	return f
}

func (s *session) blamed(t *trail, at string, limit time.Duration, connect int, err error) *fault {
	if forbidden, ok := errors.AsType[*host.ForbiddenError](err); ok {
		return &fault{verdict: forbidden.Error()}
	}
	switch {
	case t.parent.Err() != nil:
		return &fault{verdict: "interrupted"}
	case s.late(t, err):
		f := &fault{verdict: "timed out after " + limit.Round(time.Millisecond).String()}
		switch at {
		case StepTCP:
			f.remedy = "nobody answers: a firewall on the way drops it, or the address is wrong"
		case StepDNS:
			f.remedy = "the resolver does not answer: look at /etc/resolv.conf"
		case StepAPI:
			f.verdict = "connected, and no answer: " + f.verdict
		}
		return f
	}
	switch at {
	case StepDNS:
		return s.unnamed(err)
	case StepTCP:
		return unconnected(err)
	case StepProxy:
		switch {
		case connect == http.StatusProxyAuthRequired:
			return &fault{verdict: "407: the proxy wants credentials", remedy: "give them in the proxy's URL"}
		case connect >= 500:
			return &fault{verdict: fmt.Sprintf("%d: the proxy does not reach %s", connect, s.host.Host), remedy: "if it is of the own network, it belongs into NO_PROXY"}
		case connect != 0:
			return &fault{verdict: fmt.Sprintf("%d: the proxy lets nobody through to %s", connect, s.host.Host), remedy: "ask who runs the proxy, or name the host in NO_PROXY"}
		}
		if unverified, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			f := s.distrust(unverified.UnverifiedCertificates, err)
			return &fault{verdict: "the proxy's own " + f.verdict, detail: f.detail, remedy: "an https:// proxy needs a certificate of an authority of this machine, or of the host's ca"}
		}
		return &fault{verdict: "the proxy does not answer as one: " + s.their(plain(err))}
	case StepTLS:
		return s.untrusted(err)
	}
	if reset, ok := errors.AsType[*net.OpError](err); ok && reset.Op == "remote error" {
		return s.alert(err)
	}
	if p := s.peerOf(); p.wants && len(s.host.Client) == 0 && (errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE) || errors.Is(err, io.EOF)) {
		return &fault{verdict: "client certificate wanted", detail: "none is configured, and the server closes the connection", remedy: s.host.Hints.Client}
	}
	if s.spoken() == "http" && s.speaksTLS(t.parent) {
		return &fault{verdict: "the server speaks HTTPS, and the URL says http", remedy: s.host.Hints.Scheme}
	}
	return &fault{verdict: "the request failed: " + s.their(plain(err))}
}

// unnamed is a name that has no address.
func (s *session) unnamed(err error) *fault {
	e, ok := errors.AsType[*net.DNSError](err)
	if !ok {
		return &fault{verdict: "the name cannot be looked up: " + s.their(plain(err))}
	}
	asked := ""
	if e.Server != "" {
		asked = "says the resolver " + e.Server
	}
	if e.IsNotFound {
		return &fault{verdict: "name not found", detail: strings.TrimPrefix(fmt.Sprintf("%s, %s", s.their(e.Name), asked), ", "), remedy: "is " + s.their(e.Name) + " spelt right, and does the node's resolver know it? see /etc/resolv.conf and /etc/hosts"}
	}
	return &fault{verdict: "the resolver fails: " + e.Err, detail: asked, remedy: "look at /etc/resolv.conf"}
}

// unconnected is an address that does not answer.
func unconnected(err error) *fault {
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return &fault{verdict: "connection refused", remedy: "nothing listens there: is the port right, and does the registry run?"}
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH):
		return &fault{verdict: "no route", remedy: "no way leads to that network: look at ip route, or set a proxy"}
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		return &fault{verdict: "not permitted", remedy: "a firewall of this machine forbids it"}
	}
	return &fault{verdict: "no connection: " + plain(err)}
}

// plain is the innermost text of an error, without URLs and addresses.
func plain(err error) string {
	if errors.Is(err, errTime) {
		return "timed out"
	}
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno.Error()
	}
	for {
		switch e := err.(type) {
		case *url.Error:
			err = e.Err
		case *net.OpError:
			err = e.Err
		default:
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
				return "the connection was closed without an answer"
			}
			return strings.TrimPrefix(err.Error(), "net/http: ")
		}
	}
}

// untrusted is a handshake that failed.
func (s *session) untrusted(err error) *fault {
	if errors.Is(err, http.ErrSchemeMismatch) {
		return &fault{verdict: "the server speaks plain HTTP, and the URL says https", remedy: s.host.Hints.Scheme}
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return &fault{verdict: "the server does not speak TLS", remedy: s.host.Hints.Scheme}
	}
	if remote, ok := errors.AsType[*net.OpError](err); ok && remote.Op == "remote error" {
		return s.alert(err)
	}
	var chain []*x509.Certificate
	if unverified, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		chain = unverified.UnverifiedCertificates
	}
	return s.distrust(chain, err)
}

// alert is what a server says over TLS: mostly of a client certificate.
func (s *session) alert(err error) *fault {
	said := s.their(strings.TrimPrefix(plain(err), "tls: "))
	switch p := s.peerOf(); {
	case p.wants && len(s.host.Client) == 0:
		return &fault{verdict: "client certificate wanted", detail: "none is configured; the server says: " + said, remedy: s.host.Hints.Client}
	case p.wants && p.shown == "":
		return &fault{verdict: "no client certificate fits", detail: "the server accepts none of the authority of " + s.host.Client[0][0].Name + ", and nothing was shown; the server says: " + said, remedy: s.host.Hints.Client}
	case p.wants:
		return &fault{verdict: "the client certificate is refused", detail: p.shown + "; the server says: " + said, remedy: s.host.Hints.Client}
	}
	return &fault{verdict: "the server ends the handshake: " + said}
}

// distrust is a certificate that cannot be verified.
func (s *session) distrust(chain []*x509.Certificate, err error) *fault {
	f := &fault{}
	if len(chain) > 0 {
		f.detail = s.described(chain[0])
	}
	invalid, isInvalid := errors.AsType[x509.CertificateInvalidError](err)
	name, isName := errors.AsType[x509.HostnameError](err)
	_, isUnknown := errors.AsType[x509.UnknownAuthorityError](err)
	switch {
	case isInvalid && invalid.Reason == x509.Expired:
		c, now := invalid.Cert, s.now()
		f.detail = s.described(c)
		if now.Before(c.NotBefore) {
			f.verdict = "certificate not yet valid: from " + c.NotBefore.UTC().Format(time.RFC3339)
		} else {
			f.verdict = "certificate expired: on " + c.NotAfter.UTC().Format(time.RFC3339)
		}
		f.remedy = fmt.Sprintf("renew it on %s, unless this machine's clock is wrong: it says %s", s.host.Host, now.UTC().Format(time.RFC3339))
	case isName:
		f.verdict = "certificate for another name"
		names := slices.Clone(name.Certificate.DNSNames)
		for _, ip := range name.Certificate.IPAddresses {
			names = append(names, ip.String())
		}
		if len(names) == 0 {
			names = []string{"no name at all"}
		}
		if len(names) > 8 {
			names = append(names[:8], fmt.Sprintf("and %d more", len(names)-8))
		}
		f.verdict += ": it has " + s.their(strings.Join(names, ", "))
		f.remedy = "use one of these names in the URL, or give the server a certificate for " + s.their(name.Host)
	case isUnknown:
		f.verdict = "certificate signed by unknown authority"
		if n := len(chain); n > 0 {
			top := chain[n-1]
			if n == 1 && top.Subject.String() == top.Issuer.String() {
				f.verdict = "certificate signed by unknown authority: by itself, " + s.named(top.Subject.String())
			} else {
				f.verdict += ": " + s.named(top.Issuer.String())
			}
		}
		f.remedy = s.host.Hints.CA
		if len(s.host.CA) > 0 {
			var names []string
			for _, ca := range s.host.CA {
				names = append(names, ca.Name)
			}
			f.detail = strings.TrimPrefix(f.detail+"; not of "+strings.Join(names, ", "), "; ")
		}
	default:
		f.verdict = "certificate not trusted: " + s.their(strings.TrimPrefix(plain(err), "x509: "))
	}
	return f
}

func (s *session) described(c *x509.Certificate) string {
	return fmt.Sprintf("%s, by %s, until %s", s.named(c.Subject.String()), s.named(c.Issuer.String()), c.NotAfter.UTC().Format(time.DateOnly))
}

func (s *session) named(name string) string {
	if name == "" {
		return "(no name)"
	}
	return s.their(name)
}

// trusted says who answered over TLS, for a handshake that went well.
func (s *session) trusted(p peer) (verdict, detail string) {
	detail = p.version + ", " + s.described(p.chain[0])
	switch {
	case p.doubt != nil:
		return "not verified, since skip_verify is set", detail + "; it would not hold: " + s.distrust(p.chain, p.doubt).verdict
	case s.host.SkipVerify:
		return "not verified, since skip_verify is set", detail + "; it would hold"
	case p.shown != "":
		detail += "; shown: " + p.shown
	case p.wants && len(s.host.Client) > 0:
		detail += "; a client certificate is asked for, and " + s.host.Client[0][0].Name + " is of no authority that the server accepts: nothing was shown"
	}
	return "trusted", detail
}

// challenged are an answer's challenges, for messages.
func (s *session) challenged(h http.Header) []string {
	var out []string
	for _, c := range dockerauth.ParseAuthHeader(h) {
		switch c.Scheme {
		case dockerauth.BearerAuth:
			text := "Bearer, token from " + s.shown(c.Parameters["realm"])
			for _, key := range []string{"service", "scope"} {
				if v := c.Parameters[key]; v != "" {
					text += ", " + key + " " + s.their(token(v))
				}
			}
			out = append(out, text)
		case dockerauth.BasicAuth:
			out = append(out, "Basic")
		case dockerauth.DigestAuth:
			out = append(out, "Digest")
		}
	}
	for _, v := range h.Values("WWW-Authenticate") {
		if scheme, _, _ := strings.Cut(v, " "); !slices.Contains([]string{"basic", "bearer", "digest"}, strings.ToLower(scheme)) {
			out = append(out, s.their(token(scheme)))
		}
	}
	if len(out) > 4 {
		out = append(out[:4], "and more")
	}
	return out
}

// shown is a URL without what may be secret in it.
func (s *session) shown(raw string) string {
	u, err := url.Parse(raw)
	if err != nil || u.Host == "" {
		return "a realm that is no URL"
	}
	return s.their(u.Scheme + "://" + u.Host + u.Path)
}

// unauthorized is a second 401: what was offered does not do.
func (s *session) unauthorized(r reply) *fault {
	f := &fault{verdict: "401: refused: " + s.offer(), detail: strings.Join(s.challenged(r.header), ", "), remedy: s.host.Hints.Auth}
	s.mu.Lock()
	none := s.used == Credential{}
	s.mu.Unlock()
	if none && s.host.Authorized == "" {
		f.verdict = "401: credentials wanted, and none are configured"
	}
	f.detail = strings.TrimPrefix(f.detail+"; some registries say so of a repository that is not there", "; ")
	return f
}

// unoffered is why nothing could be offered for a challenge.
func (s *session) unoffered(t *trail, r reply, err error) *fault {
	realm := "the token server"
	for _, c := range dockerauth.ParseAuthHeader(r.header) {
		if u, perr := url.Parse(c.Parameters["realm"]); perr == nil && u.Host != "" && c.Scheme == dockerauth.BearerAuth {
			realm = "the token server " + s.their(u.Host)
		}
	}
	status, isStatus := errors.AsType[remoteerrors.ErrUnexpectedStatus](err)
	requested, isURL := errors.AsType[*url.Error](err)
	_, isSyntax := errors.AsType[*json.SyntaxError](err)
	broken, isFault := errors.AsType[*fault](err)
	_, isType := errors.AsType[*json.UnmarshalTypeError](err)
	switch {
	case isStatus && (status.StatusCode == http.StatusUnauthorized || status.StatusCode == http.StatusForbidden):
		return &fault{verdict: fmt.Sprintf("%d: refused by %s: %s", status.StatusCode, realm, s.offer()), remedy: s.host.Hints.Auth}
	case isStatus && status.StatusCode == http.StatusTooManyRequests:
		return &fault{verdict: "429: too many requests to " + realm, remedy: "wait, or offer credentials: registries allow more to those they know"}
	case isStatus:
		return &fault{verdict: fmt.Sprintf("%d: from %s, with %s", status.StatusCode, realm, s.offer()), remedy: s.host.Hints.Token}
	case isURL && requested.Op == "parse":
		return &fault{verdict: "401: the realm of the challenge is no URL", remedy: s.host.Hints.Token}
	case isURL:
		f := s.blame(t, err)
		if !strings.HasPrefix(f.verdict, "interrupted") {
			f.verdict = realm + " cannot be asked: " + f.verdict
		}
		return f
	case isFault:
		return &fault{verdict: realm + ": " + broken.verdict}
	case errors.Is(err, dockerauth.ErrNoToken), isSyntax, isType, errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return &fault{verdict: realm + " answers, and gives no token"}
	case errdefs.IsNotImplemented(err):
		return &fault{verdict: "401: nothing that containerd could answer is asked for", detail: strings.Join(s.challenged(r.header), ", "), remedy: "containerd knows Basic and Bearer"}
	case errors.Is(err, docker.ErrInvalidAuthorization):
		f := s.unauthorized(r)
		f.detail = ""
		return f
	case errors.Is(context.Cause(t.ctx), errTime), t.parent.Err() != nil:
		return s.blame(t, err)
	}
	return &fault{verdict: "401: the challenge cannot be answered", detail: "a challenge that containerd does not understand"}
}
