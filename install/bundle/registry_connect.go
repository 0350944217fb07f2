package bundle

import (
	"cmp"
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
	"regexp"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"

	dockerauth "github.com/containerd/containerd/v2/core/remotes/docker/auth"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/content"
	"oras.land/oras-go/v2/errdef"
	"oras.land/oras-go/v2/registry"
	"oras.land/oras-go/v2/registry/remote"
	"oras.land/oras-go/v2/registry/remote/errcode"
	"oras.land/oras-go/v2/registry/remote/retry"

	"github.com/nodeprep/nodeprep/internal/host"
)

const (
	registryStall    = 30 * time.Second
	registryWait     = 500 * time.Millisecond
	registryLongest  = 8 * time.Second // between two attempts
	registryAttempts = 5               // without any progress
	maxToken         = 1 << 20
)

// repository is a repository of a registry, and how it is reached.
type repository struct {
	repo   *remote.Repository
	what   string // for messages
	host   string // HOST[:PORT] as in addresses
	client *http.Client
	login  login
	wait   time.Duration
}

// connect prepares for a repository; only of a registry on this machine it is asked at
// once, which of http and https it speaks. alone means that nothing but that host is
// reached. what is what is to be read, for messages.
func (o RegistryOptions) connect(ctx context.Context, ref registry.Reference, what string, alone bool) (*repository, error) {
	fail := func(err error) (*repository, error) { return nil, fmt.Errorf("read %s: %w", what, err) }
	hostname, address, err := dialled(ref.Host(), "https")
	if err != nil {
		return fail(err)
	}
	network := o.Network
	if alone {
		network = network.Only("--bundle", address)
	}
	transport := network.Transport()
	if alone {
		transport.Proxy = nil
	}
	if o.CA != nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		if !pool.AppendCertsFromPEM(o.CA) {
			return fail(errors.New("--registry-ca has no certificate in PEM form"))
		}
		transport.TLSClientConfig.RootCAs = pool
	}
	r := &repository{what: what, host: ref.Host(), wait: cmp.Or(o.wait, registryWait)}
	if r.login, err = readLogin(o.DockerConfig, ref.Registry, ref.Repository); err != nil {
		return fail(err)
	}
	patient := host.Patience(transport, cmp.Or(o.stall, registryStall))
	repo := &remote.Repository{Reference: ref}
	if loopback(hostname) {
		repo.PlainHTTP = plain(r.purpose(ctx), patient, ref.Host())
	}
	r.client = &http.Client{
		Transport: &retry.Transport{
			Base: &authorizer{
				base: patient, host: ref.Host(), login: r.login, alone: alone, agent: cmp.Or(o.UserAgent, "nodeprep"),
				scope: "repository:" + ref.Repository + ":pull",
			},
			Policy: func() retry.Policy {
				return &retry.GenericPolicy{
					Retryable: func(resp *http.Response, err error) (bool, error) { return passing(resp, err), nil },
					Backoff:   retry.ExponentialBackoff(r.wait, 2, 0.1),
					MaxWait:   registryLongest, MaxRetry: registryAttempts - 1,
				}
			},
		},
		CheckRedirect: func(req *http.Request, via []*http.Request) error { return r.redirect(req, via, alone) },
	}
	repo.Client = r.client
	r.repo = repo
	return r, nil
}

// plain asks a registry on this machine whether it speaks http without TLS, as most there
// do. What else is wrong shows with the first true request.
func plain(ctx context.Context, base http.RoundTripper, at string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://"+at+"/v2/", nil)
	if err != nil {
		return false
	}
	resp, err := base.RoundTrip(req)
	if err == nil {
		resp.Body.Close()
		return false
	}
	_, garbled := errors.AsType[tls.RecordHeaderError](err)
	return garbled || errors.Is(err, http.ErrSchemeMismatch)
}

// Close ends the connections.
func (r *repository) Close() error {
	r.client.CloseIdleConnections()
	return nil
}

// purpose says who dials.
func (r *repository) purpose(ctx context.Context) context.Context { return host.For(ctx, r.what) }

// elsewhereError is a host that may not be reached.
type elsewhereError struct{ host, alone string }

func (e *elsewhereError) Error() string {
	return fmt.Sprintf("%s sends on to %s, and nothing but %s itself may be reached for a bundle", e.alone, e.host, e.alone)
}

// redirectError is a redirect that is not followed.
type redirectError struct{ to, why string }

func (e *redirectError) Error() string { return fmt.Sprintf("redirect to %s refused: %s", e.to, e.why) }

// redirect follows redirects, up to ten, unless they leave the host that is to be reached
// alone, or https for anything but this machine.
func (r *repository) redirect(req *http.Request, via []*http.Request, alone bool) error {
	last := via[len(via)-1].URL
	switch {
	case alone && (req.URL.Host != r.host || req.URL.Scheme != last.Scheme):
		return &elsewhereError{req.URL.Host, r.host}
	case req.URL.Scheme != "https" && (last.Scheme == "https" || req.URL.Scheme != "http" || !loopback(req.URL.Hostname())):
		return &redirectError{req.URL.Host, "it leaves " + last.Scheme + " for " + req.URL.Scheme}
	case len(via) >= 10:
		return &redirectError{req.URL.Host, "ten redirects are enough"}
	}
	return nil
}

// authorizer shows a login to one host, when that asks for it. It does what auth.Client of
// oras does, but that it looks up no names on its own, and nothing of a login follows a
// redirect.
type authorizer struct {
	base  http.RoundTripper
	host  string
	login login
	alone bool
	agent string
	scope string

	mu    sync.Mutex
	shown string // the Authorization that was asked for last
}

// authError is a login that led nowhere.
type authError struct{ err error }

func (e *authError) Error() string { return e.err.Error() }
func (e *authError) Unwrap() error { return e.err }

// RoundTrip is http.RoundTripper's, for requests without a body.
func (a *authorizer) RoundTrip(req *http.Request) (*http.Response, error) {
	req = req.Clone(req.Context())
	req.Header.Set("User-Agent", a.agent)
	if req.URL.Host != a.host {
		return a.base.RoundTrip(req)
	}
	a.mu.Lock()
	shown := a.shown
	a.mu.Unlock()
	if shown != "" {
		req.Header.Set("Authorization", shown)
	}
	resp, err := a.base.RoundTrip(req)
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	next, err := a.answer(req, resp.Header)
	if err != nil {
		resp.Body.Close()
		return nil, err
	}
	if next == "" || next == shown {
		return resp, nil
	}
	resp.Body.Close()
	a.mu.Lock()
	a.shown = next
	a.mu.Unlock()
	req = req.Clone(req.Context())
	req.Header.Set("Authorization", next)
	return a.base.RoundTrip(req)
}

// answer is the Authorization for a challenge, "" where there is none to give.
func (a *authorizer) answer(req *http.Request, header http.Header) (string, error) {
	for _, c := range dockerauth.ParseAuthHeader(header) {
		switch c.Scheme {
		case dockerauth.BearerAuth:
			if a.login.token != "" {
				return "Bearer " + a.login.token, nil
			}
			token, err := a.bearer(req, c.Parameters)
			if err != nil {
				return "", err
			}
			return "Bearer " + token, nil
		case dockerauth.BasicAuth:
			if a.login.secret != "" {
				r := &http.Request{Header: http.Header{}}
				r.SetBasicAuth(a.login.user, a.login.secret)
				return r.Header.Get("Authorization"), nil
			}
		}
	}
	return "", nil
}

// bearer asks a token server: with an identity token by POST, else by GET (distribution's
// spec/auth/oauth.md and spec/auth/token.md).
func (a *authorizer) bearer(asked *http.Request, challenge map[string]string) (string, error) {
	u, err := url.Parse(challenge["realm"])
	switch {
	case err != nil || u.Host == "":
		return "", &authError{fmt.Errorf("%s names no server of tokens", a.host)}
	case a.alone && (u.Host != a.host || u.Scheme != asked.URL.Scheme):
		return "", &elsewhereError{u.Host, a.host}
	case u.Scheme != "https" && (u.Scheme != "http" || asked.URL.Scheme != "http" || !loopback(u.Hostname())):
		return "", &authError{fmt.Errorf("%s sends logins to %s://%s, and nothing but https is good for that", a.host, u.Scheme, u.Host)}
	}
	scopes := strings.Fields(cmp.Or(challenge["scope"], a.scope))
	values := url.Values{"service": {challenge["service"]}, "scope": scopes}
	method, body := http.MethodGet, ""
	if a.login.identity != "" {
		values.Set("scope", strings.Join(scopes, " "))
		values.Set("grant_type", "refresh_token")
		values.Set("refresh_token", a.login.identity)
		values.Set("client_id", "nodeprep")
		method, body = http.MethodPost, values.Encode()
	} else {
		query := u.Query()
		for k, v := range values {
			query[k] = v
		}
		u.RawQuery = query.Encode()
	}
	req, err := http.NewRequestWithContext(asked.Context(), method, u.String(), strings.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("User-Agent", a.agent)
	if a.login.identity != "" {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	} else if a.login.secret != "" {
		req.SetBasicAuth(a.login.user, a.login.secret)
	}
	// No redirects: a login goes where the registry said, and no further.
	resp, err := a.base.RoundTrip(req)
	if err != nil {
		return "", fmt.Errorf("ask %s for a token: %w", u.Host, err)
	}
	defer resp.Body.Close()
	switch {
	case resp.StatusCode == http.StatusUnauthorized || resp.StatusCode == http.StatusForbidden:
		return "", &authError{a.login.refused(u.Host)}
	case resp.StatusCode != http.StatusOK:
		return "", fmt.Errorf("ask %s for a token: %w", u.Host, &answerError{resp.StatusCode})
	}
	var tokens struct {
		Token       string `json:"token"`
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxToken)).Decode(&tokens); err != nil {
		return "", &authError{fmt.Errorf("ask %s for a token: the answer is not JSON", u.Host)}
	}
	token := cmp.Or(tokens.AccessToken, tokens.Token)
	if token == "" {
		return "", &authError{fmt.Errorf("ask %s for a token: the answer has none", u.Host)}
	}
	return token, nil
}

// answerError is an answer other than success.
type answerError struct{ code int }

func (e *answerError) Error() string {
	return fmt.Sprintf("the server answered %d %s", e.code, http.StatusText(e.code))
}

// passing tells failures that another attempt may not meet.
func passing(resp *http.Response, err error) bool {
	if err == nil {
		return passingStatus(resp.StatusCode)
	}
	if a, ok := errors.AsType[*answerError](err); ok {
		return passingStatus(a.code)
	}
	return !lasting(err)
}

func passingStatus(code int) bool {
	return code >= 500 || code == http.StatusRequestTimeout || code == http.StatusTooManyRequests
}

// lasting tells failures that every attempt would meet.
func lasting(err error) bool {
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return true
	}
	_, forbidden := errors.AsType[*host.ForbiddenError](err)
	_, elsewhere := errors.AsType[*elsewhereError](err)
	_, redirect := errors.AsType[*redirectError](err)
	_, login := errors.AsType[*authError](err)
	_, certificate := errors.AsType[*tls.CertificateVerificationError](err)
	_, garbled := errors.AsType[tls.RecordHeaderError](err)
	return forbidden || elsewhere || redirect || login || certificate || garbled ||
		errors.Is(err, http.ErrSchemeMismatch) || errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, context.Canceled)
}

// explain says in plain words why something could not be had. part is what of it, or "".
func (r *repository) explain(ctx context.Context, part string, err error) error {
	if ctx.Err() != nil {
		return fmt.Errorf("read %s: %w", r.what, context.Cause(ctx))
	}
	if forbidden, ok := errors.AsType[*host.ForbiddenError](err); ok {
		return forbidden // it says what for
	}
	if part != "" {
		part += ": "
	}
	return fmt.Errorf("read %s: %s%w", r.what, part, r.because(err))
}

func (r *repository) because(err error) error {
	if u, ok := errors.AsType[*url.Error](err); ok {
		err = u.Err // it repeats the address, with secrets of its query
	}
	if resp, ok := errors.AsType[*errcode.ErrorResponse](err); ok {
		switch resp.StatusCode {
		case http.StatusUnauthorized, http.StatusForbidden:
			return r.login.refused(r.host)
		case http.StatusTooManyRequests:
			return fmt.Errorf("%s has been asked too often; try later, or with a login", r.host)
		}
		said := printable(resp.Errors.Error())
		if len(resp.Errors) == 0 {
			said = http.StatusText(resp.StatusCode)
		}
		return fmt.Errorf("%s answered %d: %s", r.host, resp.StatusCode, said)
	}
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); ok {
		return fmt.Errorf("nobody whom this machine trusts has signed the certificate of %s; give its authority's with --registry-ca FILE: %w", r.host, err)
	}
	if dns, ok := errors.AsType[*net.DNSError](err); ok && dns.IsNotFound {
		return fmt.Errorf("there is no host of the name %s", dns.Name)
	}
	switch {
	case errors.Is(err, errdef.ErrNotFound):
		return fmt.Errorf("%s does not have it", r.host)
	case errors.Is(err, content.ErrMismatchedDigest), errors.Is(err, content.ErrTrailingData), errors.Is(err, content.ErrInvalidDescriptorSize):
		return fmt.Errorf("what %s sent is not what its digest says", r.host)
	case errors.Is(err, http.ErrSchemeMismatch):
		return fmt.Errorf("%s speaks http without TLS, which is good for registries on this machine only", r.host)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nothing listens at %s", r.host)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s ended the connection before the end: %w", r.host, err)
	}
	if _, ok := errors.AsType[*host.StallError](err); ok {
		return fmt.Errorf("from %s %w", r.host, err)
	}
	if text := err.Error(); secretQuery().MatchString(text) {
		return errors.New(printable(secretQuery().ReplaceAllString(text, "?xxxxx")))
	}
	return err
}

// secretQuery is the part of an address where a storage's signature stands.
func secretQuery() *regexp.Regexp { return regexp.MustCompile(`\?[^\s"]+`) }

// printable is what a server said, in a line of bearable length without control characters.
func printable(s string) string {
	return shortened(strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, s))
}

// download is a blob while it comes. What is interrupted is continued where it stopped,
// until there is no progress five times in a row.
type download struct {
	ctx    context.Context
	r      *repository
	desc   ocispec.Descriptor
	body   io.ReadCloser
	at     int64 // read of it
	skip   int64 // of what body gives
	failed int   // attempts since the last progress
	total  int   // attempts
}

// download begins with a blob or manifest.
func (r *repository) download(ctx context.Context, desc ocispec.Descriptor) (*download, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, r.explain(ctx, "", fmt.Errorf("%q is not a digest", desc.Digest))
	}
	d := &download{ctx: r.purpose(ctx), r: r, desc: desc}
	if err := d.open(); err != nil {
		return nil, r.explain(ctx, d.part(), err)
	}
	return d, nil
}

// part is the blob's name in messages.
func (d *download) part() string { return d.desc.Digest.String() }

func (d *download) open() error {
	body, err := d.r.repo.Fetch(d.ctx, d.desc)
	if err != nil {
		return err
	}
	d.body, d.skip = body, d.at
	if s, ok := body.(io.Seeker); ok && d.at > 0 {
		d.skip = 0
		_, err = s.Seek(d.at, io.SeekStart)
	}
	return err
}

// Read is io.Reader's. A blob that is shorter or longer than its descriptor says is an error.
func (d *download) Read(p []byte) (int, error) {
	for {
		if d.body == nil {
			// Requests have their own attempts.
			if err := d.open(); err != nil {
				return 0, d.r.explain(d.ctx, d.part(), err)
			}
		}
		n, err := d.next(p)
		d.at += int64(n)
		switch {
		case d.at > d.desc.Size:
			return 0, d.r.explain(d.ctx, d.part(), content.ErrTrailingData)
		case n > 0:
			d.failed = 0
			return n, nil
		case err == nil:
			continue
		case err == io.EOF && d.at == d.desc.Size:
			return 0, io.EOF
		case err == io.EOF:
			err = io.ErrUnexpectedEOF
		}
		d.body.Close()
		d.body = nil
		if err := d.again(err); err != nil {
			return 0, d.r.explain(d.ctx, d.part(), err)
		}
	}
}

// next reads on behind what was read before the last interruption.
func (d *download) next(p []byte) (int, error) {
	if d.skip > 0 {
		n, err := io.CopyN(io.Discard, d.body, d.skip)
		d.skip -= n
		return 0, err
	}
	return d.body.Read(p)
}

// again waits for the next attempt, or returns the error where none is left.
func (d *download) again(err error) error {
	d.failed++
	d.total++
	if d.ctx.Err() != nil || lasting(err) || d.failed >= registryAttempts || d.total >= 10*registryAttempts {
		return err
	}
	t := time.NewTimer(min(d.r.wait<<(d.failed-1), registryLongest))
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-d.ctx.Done():
		return context.Cause(d.ctx)
	}
}

// Close ends the exchange.
func (d *download) Close() error {
	if d.body == nil {
		return nil
	}
	return d.body.Close()
}
