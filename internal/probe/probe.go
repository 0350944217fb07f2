package probe

import (
	"context"
	"crypto/x509"
	"encoding/base64"
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
	"unicode"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/opencontainers/go-digest"

	"github.com/nodeprep/nodeprep/internal/host"
)

// What is done with an image.
const (
	Pull    = "pull"
	Resolve = "resolve"
	Push    = "push"
)

// StepTime is what one step takes at most.
const StepTime = 10 * time.Second

// Steps, in the order in which they come. Not every host has each.
const (
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
	Name string `json:"name"`
	OK   bool   `json:"ok"`
	Took int64  `json:"took"` // milliseconds
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
	// digest, and those with Placeholder in place of a digest.
	Manifest, Content, Layer string
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

	name     string
	found    bool // it says which digest the name has
	final    bool // containerd asks nobody after it
	content  bool // the manifest can be had
	layer    bool // so can its first layer
	supplies bool // skipped, but for what is named by digest
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

// Ask asks one host. said hears of each step as soon as it is done. A context that ends makes
// for a step that says so.
func (a *Asker) Ask(ctx context.Context, img Image, h Host, said func(Step)) Answer {
	out := Answer{URL: h.Scheme + "://" + h.Host + h.Path, Skipped: h.Skipped, Steps: []Step{}, name: h.Scheme + "://" + h.Host, supplies: h.Supplies}
	if h.Skipped != "" {
		out.Verdict = "not asked: " + h.Skipped
		return out
	}
	s := &session{Asker: a, host: h, image: img, out: &out, said: said, offered: map[string]bool{}}
	for _, values := range []http.Header{h.Header, h.TokenHeader} {
		for _, list := range values {
			s.hide(list...)
		}
	}
	defer s.close()
	s.run(host.For(ctx, "the image "+img.Repository))
	if n := len(out.Steps); n > 0 && out.Verdict == "" {
		out.Verdict = out.Steps[n-1].Verdict
	}
	return out
}

// session is the asking of one host. Its requests go one after the other.
type session struct {
	*Asker
	host   Host
	image  Image
	out    *Answer
	said   func(Step)
	client *http.Client
	auth   docker.Authorizer
	scheme string // spoken; https becomes http where containerd falls back
	// offered are the hosts that have been given what there is to give.
	offered map[string]bool

	mu      sync.Mutex
	secrets []string
	used    Credential
	peer    peer
	target  string // the name of whom the last request was for
	via     *url.URL
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

// hide keeps texts, and the forms in which they travel, out of all that is said.
func (s *session) hide(values ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range values {
		forms := append([]string{v}, strings.Fields(v)...)
		for _, f := range slices.Clone(forms) {
			forms = append(forms, url.QueryEscape(f), url.PathEscape(f), base64.StdEncoding.EncodeToString([]byte(f)))
		}
		for _, f := range forms {
			// Shorter ones are no secrets, and words that are in everything.
			if len(f) >= 4 && !strings.EqualFold(f, "basic") && !strings.EqualFold(f, "bearer") && !slices.Contains(s.secrets, f) {
				s.secrets = append(s.secrets, f)
			}
		}
	}
	// The longest first: one may be part of another.
	slices.SortFunc(s.secrets, func(a, b string) int { return len(b) - len(a) })
}

// clean is a text that may be shown on a terminal: servers and certificates are not trusted
// with one.
func (s *session) clean(text string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.secrets {
		text = strings.ReplaceAll(text, secret, "******")
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

func (s *session) add(step Step) {
	step.Verdict, step.Detail, step.Remedy = s.clean(step.Verdict), s.clean(step.Detail), s.clean(step.Remedy)
	s.out.Steps = append(s.out.Steps, step)
	if s.said != nil {
		s.said(step)
	}
}

func step(name string, ok bool, took time.Duration, verdict, detail, remedy string) Step {
	return Step{Name: name, OK: ok, Took: took.Milliseconds(), Verdict: verdict, Detail: detail, Remedy: remedy}
}

// failed adds a step that ended it.
func (s *session) failed(name string, took time.Duration, f *fault) {
	s.add(step(name, false, took, f.verdict, f.detail, f.remedy))
	s.out.Verdict = s.out.Steps[len(s.out.Steps)-1].Verdict
}

// fault is why a step went wrong.
type fault struct{ verdict, detail, remedy string }

func (f *fault) Error() string { return f.verdict }

// run asks for everything, in order.
func (s *session) run(ctx context.Context) {
	s.scheme = s.host.Scheme
	if err := s.prepare(); err != nil {
		s.failed(StepTLS, 0, err)
		return
	}
	api, ok := s.root(ctx)
	if !ok {
		return
	}
	m, ok := s.manifest(ctx, api)
	if !ok {
		return
	}
	if s.image.Verb == Pull {
		s.supply(ctx, m)
		return
	}
	s.out.OK = true
}

// root asks for the API's root. What it answers over HTTP decides nothing: containerd does
// not ask for it.
func (s *session) root(ctx context.Context) (reply, bool) {
	r, t, err := s.open(ctx)
	if err != nil && s.falls(err, t) {
		s.add(step(t.at(), false, t.took(), s.blame(t, err).verdict, "plain HTTP is tried then, since an http URL has TLS settings", ""))
		s.scheme = "http"
		s.out.name = "http://" + s.host.Host
		r, t, err = s.open(ctx)
	}
	if err != nil {
		s.failed(t.at(), t.took(), s.blame(t, err))
		return r, false
	}
	verdict, detail, remedy, ok := s.judgeRoot(ctx, r)
	s.add(step(StepAPI, ok, t.took(), verdict, detail, remedy))
	return r, true
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

func (s *session) url(p string) string { return s.scheme + "://" + s.host.Host + p }

// at is one of the host's URLs, with a digest, by what is spoken.
func (s *session) at(given, dgst string) string {
	if i := strings.LastIndex(given, "/"+Placeholder); i >= 0 {
		given = given[:i+1] + dgst + given[i+1+len(Placeholder):]
	}
	if rest, ok := strings.CutPrefix(given, s.host.Scheme+"://"); ok {
		given = s.scheme + "://" + rest
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
		challenges := challenged(r.header)
		if len(challenges) == 0 {
			return "401: without a challenge", detail, s.noRegistry(), false
		}
		return "a registry that asks for credentials", strings.Join(challenges, ", "), "", true
	case c < 300 && isRegistry(r):
		return "a registry", fmt.Sprintf("%s: %d", detail, c), "", true
	case c < 300:
		return "an answer that is no registry's", fmt.Sprintf("%s: %d, %s, no Docker-Distribution-Api-Version", detail, c, kind(r)), s.noRegistry(), false
	case c < 400:
		return fmt.Sprintf("%d: a redirect", c), detail + elsewhere(r), s.noRegistry(), false
	case c == http.StatusNotFound:
		return "404: no registry's API at this path", detail, s.host.Hints.Path, false
	case c == http.StatusBadRequest && s.scheme == "http" && s.speaksTLS(ctx):
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

func kind(r reply) string {
	t, _, _ := mime.ParseMediaType(r.header.Get("Content-Type"))
	if t == "" {
		return "no Content-Type"
	}
	return "Content-Type " + t
}

// elsewhere is where a redirect goes: its query may be a secret.
func elsewhere(r reply) string {
	u, err := r.url.Parse(r.header.Get("Location"))
	if err != nil || u.Host == "" {
		return " sends on, and says not where to"
	}
	return fmt.Sprintf(" sends on to %s://%s%s", u.Scheme, u.Host, u.Path)
}

// manifest asks for the manifest, as Resolve of containerd's core/remotes/docker does.
func (s *session) manifest(ctx context.Context, api reply) (found, bool) {
	scope := "repository:" + s.image.Repository + ":pull"
	if s.image.Verb == Push {
		scope += ",push"
	}
	ctx = docker.WithScope(ctx, scope)
	header := s.header()
	header.Add("Accept", strings.Join(append(manifestTypes(), "*/*"), ", "))
	target := s.at(s.host.Manifest, "")
	r, took, err := s.authorized(ctx, StepManifest, http.MethodHead, target, header, 0)
	if err == nil && r.status == http.StatusMethodNotAllowed {
		r, took, err = s.authorized(ctx, StepManifest, http.MethodGet, target, header, docker.MaxManifestSize+1)
	}
	if err != nil {
		return found{}, false
	}
	if r.status > 299 {
		if s.image.Verb == Push && r.status == http.StatusNotFound {
			s.add(step(StepManifest, true, took, "404: not there yet", "a push makes it", ""))
			return found{}, true
		}
		s.out.final = r.status < 400
		f := s.refused(r, "manifest")
		if r.status == http.StatusNotFound && api.status == http.StatusNotFound {
			f.remedy = s.host.Hints.Path
		}
		s.failed(StepManifest, took, f)
		return found{}, false
	}
	m := found{digest: r.header.Get("Docker-Content-Digest"), mediaType: mediaType(r), size: r.length}
	if s.image.Digest != "" {
		m.digest = s.image.Digest
	}
	if m.digest == "" || m.size < 0 {
		// So does containerd.
		var more time.Duration
		if r, more, err = s.authorized(ctx, StepManifest, http.MethodGet, target, header, docker.MaxManifestSize+1); err != nil {
			return m, false
		}
		took += more
		if r.status > 299 {
			s.out.final = true
			s.failed(StepManifest, took, s.refused(r, "manifest"))
			return m, false
		}
		m.size, m.mediaType = int64(len(r.body)), mediaType(r)
		if m.digest == "" {
			m.digest = digest.FromBytes(r.body).String()
		}
	}
	detail := s.viaText(r) + fmt.Sprintf("%s, %s, %d bytes", m.digest, m.mediaType, m.size)
	switch _, err := digest.Parse(m.digest); {
	case m.size > docker.MaxManifestSize:
		s.failed(StepManifest, took, &fault{verdict: "the manifest is too large for containerd", detail: fmt.Sprintf("%d bytes and more", docker.MaxManifestSize)})
		return m, false
	case err != nil:
		s.out.final = true
		s.failed(StepManifest, took, &fault{verdict: "the digest that it names is none", detail: m.digest, remedy: s.noRegistry()})
		return m, false
	case !slices.Contains(manifestTypes(), m.mediaType):
		// The first answer counts for containerd, whatever it is.
		s.out.final = true
		s.failed(StepManifest, took, &fault{verdict: "an answer that is no manifest", detail: s.viaText(r) + kind(r), remedy: s.noRegistry()})
		return m, false
	}
	s.add(step(StepManifest, true, took, "found", detail, ""))
	s.out.found, s.out.Digest, s.out.MediaType, s.out.Size = true, m.digest, m.mediaType, m.size
	return m, true
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
			f.detail = strings.TrimPrefix(f.detail+", Retry-After: "+after, ", ")
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
	return "by way of " + strings.Join(r.via, ", ") + ", "
}

// authorized asks, and where the answer is 401, offers what there is: by containerd's own
// authorizer. A failure has been added to the steps.
func (s *session) authorized(ctx context.Context, name, method, target string, header http.Header, keep int64) (reply, time.Duration, error) {
	for {
		t := s.start(ctx, false)
		r, err := s.exchange(t, method, target, header, keep, true)
		if err != nil {
			s.failed(name, t.took(), s.blame(t, err))
			return r, 0, err
		}
		if r.status != http.StatusUnauthorized {
			return r, t.took(), nil
		}
		if s.offered[r.url.Host] {
			f := s.unauthorized(r)
			s.failed(StepAuth, t.took(), f)
			return r, 0, f
		}
		s.offered[r.url.Host] = true
		if err := s.offerTo(ctx, r); err != nil {
			return r, 0, err
		}
	}
}

// offerTo answers a challenge.
func (s *session) offerTo(ctx context.Context, r reply) error {
	challenges := strings.Join(challenged(r.header), ", ")
	t := s.start(ctx, false)
	defer t.end()
	err := s.auth.AddResponses(t.ctx, []*http.Response{r.response})
	if err == nil {
		// A token is fetched now, not with the next request: its time is this step's.
		trial := &http.Request{URL: r.url, Header: http.Header{}}
		err = s.auth.Authorize(t.ctx, trial)
		s.hide(trial.Header.Get("Authorization"))
	}
	if err != nil {
		f := s.unoffered(t, r, err)
		f.detail = strings.TrimPrefix(f.detail+"; "+challenges, "; ")
		s.failed(StepAuth, t.took(), f)
		return f
	}
	s.add(step(StepAuth, true, t.took(), "offered: "+s.offer(), challenges, ""))
	return nil
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

// Judge says what all answers come to, in containerd's order: whether the image would be had,
// and from whom, or why not.
func Judge(img Image, answers []Answer) (verdict string, had bool) {
	if img.Verb == Push {
		for _, a := range answers {
			if a.Skipped == "" {
				if a.OK {
					return "the image would be taken by " + a.name, true
				}
				return fmt.Sprintf("the image would not be taken: %s: %s", a.name, a.Verdict), false
			}
		}
		return "the image would not be taken: nobody is asked", false
	}
	i := slices.IndexFunc(answers, func(a Answer) bool { return a.found || a.final })
	if i < 0 || !answers[i].found {
		return "the image would not be had: " + reasons(answers, i), false
	}
	a := answers[i]
	what := fmt.Sprintf("%s, %s, %d bytes", a.Digest, a.MediaType, a.Size)
	if img.Verb == Resolve {
		return fmt.Sprintf("the image would be resolved by %s: %s", a.name, what), true
	}
	// Manifests and layers come from the first host that has them, whoever it is.
	first := func(has func(Answer) bool) (string, bool) {
		j := slices.IndexFunc(answers, func(o Answer) bool { return o.Digest == a.Digest && has(o) })
		if j < 0 {
			return "", false
		}
		return answers[j].name, true
	}
	content, ok := first(func(o Answer) bool { return o.content })
	layer, lok := first(func(o Answer) bool { return o.layer })
	if !ok || !lok {
		lacks := "its first layer"
		if !ok {
			lacks = "the manifest of that digest"
		}
		verdict = fmt.Sprintf("the image would not be had: %s names %s, and nobody gives %s: %s", a.name, a.Digest, lacks, reasons(answers, -1))
		for _, o := range answers {
			if o.supplies && o.Skipped != "" {
				verdict += "; " + o.name + " may have it, and was not asked"
			}
		}
		return verdict, false
	}
	verdict = "the image would be had from " + a.name + ": " + what
	switch {
	case content != a.name && layer != a.name && content != layer:
		verdict += "; its manifest from " + content + ", layers from " + layer
	case content != a.name && layer != a.name:
		verdict += "; manifest and layers from " + content
	case content != a.name:
		verdict += "; its manifest from " + content
	case layer != a.name:
		verdict += "; layers from " + layer
	}
	return verdict, true
}

// reasons are why hosts gave nothing; only up to one that ends it, unless that is -1.
func reasons(answers []Answer, last int) string {
	var out []string
	for i, a := range answers {
		if a.Skipped == "" && !a.OK {
			out = append(out, a.name+": "+a.Verdict)
		}
		if i == last {
			break
		}
	}
	if len(out) == 0 {
		return "nobody is asked"
	}
	return strings.Join(out, "; ")
}

// errTime ends a step that takes too long.
var errTime = errors.New("the step takes too long")
