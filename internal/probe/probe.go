package probe

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/internal/host"
)

// What is done with an image.
const (
	Pull    = "pull"
	Resolve = "resolve"
	Push    = "push"
)

// StepTime is what each part of a connection takes at most (name, address, proxy, handshake,
// first answer), and what any later request takes in all, redirects with it.
const StepTime = 10 * time.Second

// Steps, in the order in which they come. Not every host has each.
const (
	StepFiles    = "files"    // CA and client certificates; only where one cannot be loaded
	StepDNS      = "dns"      // the name's addresses
	StepTCP      = "tcp"      // a connection
	StepProxy    = "proxy"    // the way through a proxy
	StepTLS      = "tls"      // handshake and certificate
	StepAPI      = "api"      // GET of the API's root
	StepAuth     = "auth"     // what is offered for a challenge
	StepManifest = "manifest" // HEAD of the manifest
	StepContent  = "content"  // GET of the manifest by its digest
	StepLayer    = "layer"    // HEAD of the first layer
)

// Step is one step and how it went.
type Step struct {
	Name   string `json:"name"`
	OK     bool   `json:"ok"`
	TookMs int64  `json:"tookMs"`
	// Verdict says in a few words how it went, Detail what was seen.
	Verdict string `json:"verdict"`
	Detail  string `json:"detail,omitempty"`
	Remedy  string `json:"remedy,omitempty"`
}

// Image is what is wanted.
type Image struct {
	Verb       string // Pull, Resolve or Push
	Repository string // "library/nginx"
	Digest     string // where the image is named by it, else ""
	// Arch is the node's, in Go's spelling; "" takes the first image of an index.
	Arch string
}

// File is a file that belongs to a host's settings: what it is called, for messages, and what
// is in it.
type File struct {
	Name string
	Data []byte
	// Unread is why it could not be read, "" where it could.
	Unread string
}

// Credential is what is offered where a host asks.
type Credential struct {
	User, Secret string // without a user, the secret is an identity token
	From         string // where it is configured, for messages
}

// Hints are what would mend something of a host, each a sentence without its full stop.
type Hints struct {
	CA, Client, Auth, Path, Scheme, Token string
}

// Host is a host as containerd asks it.
type Host struct {
	Scheme, Host string
	Path         string // of the API's root: "/v2"
	// Manifest, Content and Layer are the URLs that are asked: the manifest by its tag or
	// digest, and those with Placeholder in place of a digest. Blob is asked where no host has
	// the manifest of a digest; "" for none.
	Manifest, Content, Layer, Blob string
	// Fallback says that plain HTTP is spoken where TLS fails (containerd's
	// docker.NewHTTPFallback).
	Fallback bool
	// Header goes with each request, TokenHeader to token servers.
	Header, TokenHeader http.Header
	CA                  []File
	Client              [][2]File // certificate and key
	SkipVerify          bool
	DialTimeout         time.Duration // 0: StepTime
	// Authorized says where a header Authorization is from, "" without one.
	Authorized string
	// Skipped is why it is not asked; "" where it is. Supplies says that containerd asks it
	// for manifests and layers all the same.
	Skipped  string
	Supplies bool
	// Next is who is asked after it, "" where it is the last.
	Next  string
	Hints Hints
}

// Placeholder stands for a digest in the URLs of a Host.
const Placeholder = "DIGEST"

// Answer is what became of one host.
type Answer struct {
	URL     string `json:"url"` // of the API
	Skipped string `json:"skipped,omitempty"`
	Steps   []Step `json:"steps"`
	// Verdict is that of the step that ended it, or of the last.
	Verdict string `json:"verdict"`
	// OK says that the host did what it is there for.
	OK        bool   `json:"ok"`
	Digest    string `json:"digest,omitempty"`
	MediaType string `json:"mediaType,omitempty"`
	Size      int64  `json:"size,omitempty"` // of the manifest, bytes

	name    string
	found   bool   // it says which digest the name has
	ends    bool   // containerd asks nobody after it
	refused bool   // it answers, and neither with the manifest nor with 404
	content bool   // the manifest can be had, of the digest that the first host names
	layer   bool   // so can its first layer
	unfit   string // why the image is not for this node
}

// Asker asks hosts.
type Asker struct {
	Network *host.Network
	// Lookup finds the addresses of a name; nil asks the resolvers of this machine.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
	// Proxy is the proxy for a URL, nil for none.
	Proxy func(*url.URL) (*url.URL, error)
	// Credentials are those for a host ("HOST[:PORT]"); nil has none.
	Credentials func(host string) Credential
	// Roots are the certificate authorities of the system; nil stands for this machine's.
	Roots *x509.CertPool
	// Now is the clock; nil is this machine's.
	Now func() time.Time
	// Agent is the User-Agent.
	Agent string

	stepTime time.Duration // 0: StepTime
}

// Ask asks all hosts of an image, in containerd's order. Which digest a name has, the first
// host says that answers; for manifests and layers of that digest then all are asked, and so
// are those that may not say it (Host.Supplies). begin hears whose turn it is, again where a
// host has had one before; said hears of each step as soon as it is done. A context that ends
// makes for a step that says so, and for answers of only the hosts that were asked until then.
func (a *Asker) Ask(ctx context.Context, img Image, hosts []Host, begin func(host int, again bool), said func(Step)) []Answer {
	ctx = host.For(ctx, "the image "+img.Repository)
	answers, sessions, shared := make([]Answer, len(hosts)), make([]*session, len(hosts)), &image{Image: img}
	hidden := &veil{}
	for i, h := range hosts {
		answers[i] = Answer{URL: h.Scheme + "://" + h.Host + h.Path, Skipped: h.Skipped, Steps: []Step{}, name: h.Scheme + "://" + h.Host}
		sessions[i] = &session{Asker: a, host: h, image: shared, out: &answers[i], said: said, scheme: h.Scheme, veil: hidden}
		for _, values := range []http.Header{h.Header, h.TokenHeader} {
			for _, list := range values {
				hidden.hide(list...)
			}
		}
		sessions[i].credential(h.Host)
		defer sessions[i].close()
	}
	turns := func(turn func(*session), wants func(*session) bool, again bool) (asked int, done bool) {
		for i, s := range sessions {
			if !wants(s) {
				continue
			}
			if asked++; begin != nil {
				begin(i, again)
			}
			turn(s)
			if ctx.Err() != nil {
				if !again {
					answers = answers[:i+1]
				}
				return asked, true
			}
		}
		return asked, false
	}
	_, done := turns(func(s *session) { s.first(ctx) }, func(*session) bool { return true }, false)
	if !done && img.Digest != "" && !slices.ContainsFunc(answers, func(a Answer) bool { return a.found || a.ends || a.refused }) {
		_, done = turns(func(s *session) { s.resolve(ctx, s.host.Blob); s.supply(ctx) }, (*session).mayHaveBlob, true)
	}
	// Who was asked before somebody named the digest, or a manifest its layer, is asked for
	// these now; each only once.
	for more := 1; !done && more > 0; {
		more, done = turns(func(s *session) { s.supply(ctx) }, (*session).maySupply, true)
	}
	for i := range answers {
		answers[i].conclude(img)
	}
	return answers
}

// conclude says what the steps come to.
func (a *Answer) conclude(img Image) {
	if a.Verdict == "" && len(a.Steps) > 0 {
		a.Verdict = a.Steps[len(a.Steps)-1].Verdict
	} else if a.Skipped != "" && len(a.Steps) == 0 {
		a.Verdict = "not asked: " + a.Skipped
	}
	if img.Verb == Pull {
		a.OK = (a.found || a.Skipped != "") && a.content && a.layer
	}
}

// image is what is wanted, and what is known of it so far.
type image struct {
	Image
	manifest *found              // that the first host names
	layer    *ocispec.Descriptor // of the manifest, once one was read
}

// session is the asking of one host. Its requests go one after the other.
type session struct {
	*Asker
	host   Host
	image  *image
	out    *Answer
	said   func(Step)
	client *http.Client
	auth   docker.Authorizer
	veil   *veil

	connected    bool // as far as it was tried
	dead         bool // nothing more is asked
	rootMissing  bool // the API's root was not there
	askedContent bool
	askedLayer   bool

	mu     sync.Mutex
	scheme string // spoken; https becomes http where containerd falls back
	used   Credential
	peer   peer
	target string // the name of whom the last request was for
	via    *url.URL
}

// spoken is the scheme: a dial that was given up may still ask for it.
func (s *session) spoken() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.scheme
}

// credential is what is configured for a host.
func (s *session) credential(host string) Credential {
	var c Credential
	if s.Credentials != nil {
		c = s.Credentials(host)
	}
	s.veil.hide(c.Secret, c.User+":"+c.Secret)
	return c
}

func (s *session) now() time.Time {
	if s.Now != nil {
		return s.Now()
	}
	return time.Now()
}

func (s *session) limit() time.Duration {
	if s.stepTime != 0 {
		return s.stepTime
	}
	return StepTime
}

// dialLimit is what a connection may take.
func (s *session) dialLimit() time.Duration {
	if d := s.host.DialTimeout; d > 0 && d < s.limit() {
		return d
	}
	return s.limit()
}

// their is a server's text as it may be shown.
func (s *session) their(text string) string { return s.veil.over(text) }

func (s *session) add(step Step) {
	for _, text := range []*string{&step.Verdict, &step.Detail, &step.Remedy} {
		*text = shortened(printable(*text), mostOfStep)
	}
	s.out.Steps = append(s.out.Steps, step)
	if s.said != nil {
		s.said(step)
	}
}

func step(name string, ok bool, took time.Duration, verdict, detail, remedy string) Step {
	return Step{Name: name, OK: ok, TookMs: took.Milliseconds(), Verdict: verdict, Detail: detail, Remedy: remedy}
}

// failed adds a step that ended it. What ended it first is the host's verdict.
func (s *session) failed(name string, took time.Duration, f *fault) {
	s.add(step(name, false, took, f.verdict, f.detail, f.remedy))
	if s.out.Verdict == "" {
		s.out.Verdict = s.out.Steps[len(s.out.Steps)-1].Verdict
	}
}

// fault is why a step went wrong.
type fault struct{ verdict, detail, remedy string }

func (f *fault) Error() string { return f.verdict }

// first is a host's first turn.
func (s *session) first(ctx context.Context) {
	if s.host.Skipped == "" {
		s.resolve(ctx, s.host.Manifest)
	}
	if s.maySupply() {
		s.supply(ctx)
	}
}

// connect prepares a host, once, and says whether it can be asked.
func (s *session) connect(ctx context.Context) bool {
	if !s.connected {
		s.connected = true
		if err := s.prepare(); err != nil {
			s.failed(StepFiles, 0, err)
			s.dead = true
		} else {
			s.dead = !s.root(ctx)
		}
	}
	return !s.dead
}

// root asks for the API's root, which is where a connection is made. What is answered over
// HTTP, or not, decides nothing: containerd does not ask for it.
func (s *session) root(ctx context.Context) bool {
	r, t, err := s.open(ctx)
	if err != nil && s.falls(err, t) {
		s.add(step(t.at(), false, t.took(), s.blame(t, err).verdict, "plain HTTP is tried then, since an http URL has TLS settings", ""))
		s.mu.Lock()
		s.scheme = "http"
		s.mu.Unlock()
		s.out.name = "http://" + s.host.Host
		r, t, err = s.open(ctx)
	}
	if err != nil {
		f := s.blame(t, err)
		if t.at() == StepAPI && ctx.Err() == nil {
			s.add(step(StepAPI, false, t.took(), f.verdict, f.detail, f.remedy))
			return true
		}
		s.failed(t.at(), t.took(), f)
		return false
	}
	s.rootMissing = r.status == http.StatusNotFound
	verdict, detail, remedy, ok := s.judgeRoot(ctx, r)
	s.add(step(StepAPI, ok, t.took(), verdict, detail, remedy))
	return true
}

func (s *session) open(ctx context.Context) (reply, *trail, error) {
	t := s.start(ctx, true)
	r, err := s.exchange(t, http.MethodGet, s.url(joined(s.host.Path)), s.header(), 4<<10, false)
	return r, t, err
}

// joined is an API's root as containerd joins it.
func joined(p string) string {
	parts := strings.FieldsFunc(p, func(r rune) bool { return r == '/' })
	if len(parts) == 0 {
		return "/"
	}
	return "/" + strings.Join(parts, "/") + "/"
}

func (s *session) url(p string) string { return s.spoken() + "://" + s.host.Host + p }

// at is one of the host's URLs, with a digest, by what is spoken.
func (s *session) at(given, dgst string) string {
	if i := strings.LastIndex(given, "/"+Placeholder); i >= 0 {
		given = given[:i+1] + dgst + given[i+1+len(Placeholder):]
	}
	if rest, ok := strings.CutPrefix(given, s.host.Scheme+"://"); ok {
		given = s.spoken() + "://" + rest
	}
	return given
}

func (s *session) header() http.Header {
	h := s.host.Header.Clone()
	if h == nil {
		h = http.Header{}
	}
	if h.Get("User-Agent") == "" && s.Agent != "" {
		h.Set("User-Agent", s.Agent)
	}
	return h
}

// judgeRoot says what the answer of an API's root means.
func (s *session) judgeRoot(ctx context.Context, r reply) (verdict, detail, remedy string, ok bool) {
	detail = fmt.Sprintf("GET %s", r.url.Path)
	switch c := r.status; {
	case c == http.StatusUnauthorized:
		challenges := s.challenged(r.header)
		if len(challenges) == 0 {
			return "401: without a challenge", detail, s.noRegistry(), false
		}
		return "a registry that asks for credentials", strings.Join(challenges, ", "), "", true
	case c < 300 && isRegistry(r):
		return "a registry", fmt.Sprintf("%s: %d", detail, c), "", true
	case c < 300:
		return "an answer that is no registry's", fmt.Sprintf("%s: %d, %s, no Docker-Distribution-Api-Version", detail, c, s.kind(r)), s.noRegistry(), false
	case c < 400:
		return fmt.Sprintf("%d: a redirect", c), detail + s.elsewhere(r), s.noRegistry(), false
	case c == http.StatusNotFound:
		return "404: no registry's API at this path", detail, s.host.Hints.Path, false
	case c == http.StatusBadRequest && s.spoken() == "http" && s.speaksTLS(ctx):
		return "400: the server speaks HTTPS, and the URL says http", detail, s.host.Hints.Scheme, false
	case c == http.StatusBadRequest && s.peerOf().wants && len(s.host.Client) == 0:
		return "400: client certificate wanted", detail + ", and none is configured", s.host.Hints.Client, false
	}
	f := s.refused(r, "")
	return f.verdict, detail, f.remedy, false
}

func (s *session) noRegistry() string {
	return "look who answers at " + s.host.Host + "; a portal or a proxy may stand before the registry"
}

// isRegistry says whether an answer looks like one of a registry
// (distribution-spec, "Determining support").
func isRegistry(r reply) bool {
	t, _, _ := mime.ParseMediaType(r.header.Get("Content-Type"))
	return r.header.Get("Docker-Distribution-Api-Version") != "" || t == "application/json" || len(r.body) == 0 && t != "text/html"
}

func (s *session) kind(r reply) string {
	t, _, _ := mime.ParseMediaType(r.header.Get("Content-Type"))
	if t == "" {
		return "no Content-Type"
	}
	return "Content-Type " + s.their(token(t))
}

// elsewhere is where a redirect goes: its query may be a secret.
func (s *session) elsewhere(r reply) string {
	u, err := r.url.Parse(r.header.Get("Location"))
	if err != nil || u.Host == "" {
		return " sends on, and says not where to"
	}
	return " sends on to " + s.their(u.Scheme+"://"+u.Host+u.Path)
}

// resolve asks for the manifest, as Resolve of containerd's core/remotes/docker does.
func (s *session) resolve(ctx context.Context, target string) {
	if !s.connect(ctx) {
		return
	}
	scope := "repository:" + s.image.Repository + ":pull"
	if s.image.Verb == Push {
		scope += ",push"
	}
	ctx = docker.WithScope(ctx, scope)
	header := s.header()
	header.Add("Accept", strings.Join(append(manifestTypes(), "*/*"), ", "))
	target = s.at(target, s.image.Digest)
	r, took, err := s.authorized(ctx, StepManifest, http.MethodHead, target, header, 0)
	if err == nil && r.status == http.StatusMethodNotAllowed {
		r, took, err = s.authorized(ctx, StepManifest, http.MethodGet, target, header, 0)
	}
	if err != nil {
		return
	}
	if r.status > 299 {
		s.unresolved(r, took)
		return
	}
	m := found{digest: r.header.Get("Docker-Content-Digest"), mediaType: mediaType(r), size: r.length}
	if s.image.Digest != "" {
		m.digest = s.image.Digest
	}
	if m.digest == "" || m.size < 0 {
		// So does containerd, for which the body counts then, and not the header.
		var more time.Duration
		if r, more, err = s.authorized(ctx, StepManifest, http.MethodGet, target, header, docker.MaxManifestSize+1); err != nil {
			s.out.ends = true
			return
		}
		took += more
		if r.status > 299 {
			s.out.ends = true
			s.failed(StepManifest, took, s.refused(r, "manifest"))
			return
		}
		m.size, m.mediaType = int64(len(r.body)), mediaType(r)
		if s.image.Digest == "" {
			m.digest = digest.FromBytes(r.body).String()
		}
	}
	s.resolved(r, m, took)
}

// resolved judges what a host says of the manifest.
func (s *session) resolved(r reply, m found, took time.Duration) {
	switch {
	case m.size > docker.MaxManifestSize:
		s.out.refused = true
		s.failed(StepManifest, took, tooLarge())
		return
	case digest.Digest(m.digest).Validate() != nil, s.their(m.digest) != m.digest:
		s.out.ends = true
		s.failed(StepManifest, took, &fault{verdict: "the digest that it names is none", detail: s.their(token(m.digest)), remedy: s.noRegistry()})
		return
	case !slices.Contains(manifestTypes(), m.mediaType):
		// The first answer counts for containerd, whatever it is.
		s.out.ends = true
		s.failed(StepManifest, took, &fault{verdict: "an answer that is no manifest", detail: s.viaText(r) + s.kind(r), remedy: s.noRegistry()})
		return
	}
	s.add(step(StepManifest, true, took, "found", s.viaText(r)+fmt.Sprintf("%s, %s, %d bytes", m.digest, m.mediaType, m.size), ""))
	s.out.found, s.out.Digest, s.out.MediaType, s.out.Size = true, m.digest, m.mediaType, m.size
	s.out.OK = s.image.Verb != Pull
	if s.image.manifest == nil {
		s.image.manifest = &m
	}
}

// unresolved is an answer above 299 to who asks for a manifest.
func (s *session) unresolved(r reply, took time.Duration) {
	if s.image.Verb == Push && r.status == http.StatusNotFound {
		s.add(step(StepManifest, true, took, "404: not there yet", "a push makes it", ""))
		s.out.OK = true
		return
	}
	s.out.ends, s.out.refused = r.status < 400, r.status != http.StatusNotFound
	f := s.refused(r, "manifest")
	if r.status == http.StatusNotFound && s.rootMissing {
		f.remedy = s.host.Hints.Path
	}
	s.failed(StepManifest, took, f)
}

func tooLarge() *fault {
	return &fault{verdict: "the manifest is too large for containerd", detail: fmt.Sprintf("more than %d bytes", docker.MaxManifestSize)}
}

// refused is what an answer above 299 means.
func (s *session) refused(r reply, what string) *fault {
	c := r.status
	f := &fault{verdict: fmt.Sprintf("%d: %s", c, strings.ToLower(http.StatusText(c))), detail: s.viaText(r)}
	f.detail = strings.TrimSuffix(f.detail, ", ")
	switch {
	case c < 400:
		f.verdict = fmt.Sprintf("%d: a redirect that cannot be followed", c)
	case c == http.StatusUnauthorized:
		f.verdict, f.remedy = "401: not authorized", s.host.Hints.Auth
	case c == http.StatusForbidden:
		f.verdict, f.remedy = "403: forbidden, with "+s.offer(), "ask who runs "+s.host.Host+" to let it pull "+s.image.Repository+", or offer other credentials"
		if s.image.Verb == Push {
			f.remedy = "ask who runs " + s.host.Host + " to let it push " + s.image.Repository
		}
	case c == http.StatusNotFound && what == "manifest":
		f.verdict = "404: this host lacks the image"
		next := "nobody is asked after it"
		if s.host.Next != "" {
			next = s.host.Next + " is asked next"
		}
		f.detail = strings.TrimPrefix(f.detail+", "+next, ", ")
	case c == http.StatusNotFound:
		f.verdict = "404: this host lacks the " + what
	case c == http.StatusProxyAuthRequired:
		f.verdict, f.remedy = "407: the proxy wants credentials", "give them in the proxy's URL"
	case c == http.StatusTooManyRequests:
		f.verdict, f.remedy = "429: too many requests", "wait, or offer credentials: registries allow more to those they know"
		if after := r.header.Get("Retry-After"); after != "" {
			f.detail = strings.TrimPrefix(f.detail+", Retry-After: "+s.their(token(after)), ", ")
		}
	case c >= 500:
		f.verdict = fmt.Sprintf("%d: the server fails (%s)", c, strings.ToLower(http.StatusText(c)))
		f.remedy = "look into the log of what serves " + s.host.Host
	}
	return f
}

// viaText names other hosts that a request was sent on to.
func (s *session) viaText(r reply) string {
	if len(r.via) == 0 {
		return ""
	}
	var via []string
	for _, host := range r.via {
		via = append(via, s.their(host))
	}
	return "by way of " + strings.Join(via, ", ") + ", "
}

// attempts is how often a request is sent (maxAttempts of containerd's
// core/remotes/docker/resolver.go).
const attempts = 5

// authorized asks, and where the answer is 401, offers what there is, once to each host that
// answers so: by containerd's own authorizer. A failure has been added to the steps.
func (s *session) authorized(ctx context.Context, name, method, target string, header http.Header, keep int64) (reply, time.Duration, error) {
	var responses []*http.Response
	offered := map[string]bool{}
	fail := func(name string, took time.Duration, f *fault) (reply, time.Duration, error) {
		s.dead = true
		s.failed(name, took, f)
		return reply{}, 0, f
	}
	for range attempts {
		t := s.start(ctx, false)
		r, err := s.exchange(t, method, target, header, keep, true)
		if err != nil {
			return fail(name, t.took(), s.blame(t, err))
		}
		if r.status != http.StatusUnauthorized {
			return r, t.took(), nil
		}
		if offered[r.url.Host] {
			return fail(StepAuth, t.took(), s.unauthorized(r))
		}
		offered[r.url.Host] = true
		responses = append(responses, r.response)
		if took, f := s.offerTo(ctx, r, responses); f != nil {
			return fail(StepAuth, took, f)
		}
	}
	return fail(StepAuth, 0, &fault{verdict: "401: not authorized", detail: fmt.Sprintf("%d requests, each sent on to another host that asks for credentials", attempts), remedy: s.noRegistry()})
}

// offerTo answers a challenge, the last of responses.
func (s *session) offerTo(ctx context.Context, r reply, responses []*http.Response) (time.Duration, *fault) {
	t := s.start(ctx, false)
	defer t.end()
	err := s.auth.AddResponses(t.ctx, responses)
	if err == nil {
		// A token is fetched now, not with the next request: its time is this step's.
		trial := &http.Request{URL: r.url, Header: http.Header{}}
		err = s.authorize(t.ctx, trial)
	}
	challenges := strings.Join(s.challenged(r.header), ", ")
	if err != nil {
		f := s.unoffered(t, r, err)
		f.detail = strings.TrimPrefix(f.detail+"; "+challenges, "; ")
		return t.took(), f
	}
	s.add(step(StepAuth, true, t.took(), "offered: "+s.offer(), challenges, ""))
	return 0, nil
}

// offer is what was offered, for messages.
func (s *session) offer() string {
	s.mu.Lock()
	c := s.used
	s.mu.Unlock()
	switch {
	case c.User != "":
		return fmt.Sprintf("the credentials of %s, from %s", c.User, c.From)
	case c.Secret != "":
		return "an identity token, from " + c.From
	case s.host.Authorized != "":
		return "the header Authorization of " + s.host.Authorized
	}
	return "no credentials"
}

// errTime ends a step that takes too long.
var errTime = errors.New("the step takes too long")
