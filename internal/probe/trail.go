package probe

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"slices"
	"sync"
	"time"
)

// trail is the way of one request: which step it has come to and since when. A connection
// that is given up goes on in another goroutine for a while, whence the lock.
type trail struct {
	parent context.Context // of whom the asking is for
	ctx    context.Context
	cancel context.CancelCauseFunc
	loud   bool
	add    func(Step)
	begun  time.Time
	keep   int64 // bytes of a body that are wanted

	mu      sync.Mutex
	timer   *time.Timer
	step    string
	since   time.Time
	limit   time.Duration
	subject string // whom the step is about, "" where it is the host itself
	verdict string
	detail  string
	lasted  time.Duration // once it is over
	over    bool
	conns   []net.Conn
	connect int  // the proxy's answer to CONNECT
	through bool // the proxy was asked for a way: what comes is the host's
}

type trailKey struct{}

func trailOf(ctx context.Context) *trail {
	t, _ := ctx.Value(trailKey{}).(*trail)
	return t
}

// start begins a request. A loud one has the steps up to the connection as its own.
func (s *session) start(ctx context.Context, loud bool) *trail {
	t := &trail{parent: ctx, loud: loud, add: s.add, begun: time.Now(), since: time.Now(), step: StepAPI, limit: s.limit()}
	ctx, t.cancel = context.WithCancelCause(ctx)
	t.timer = time.AfterFunc(t.limit, func() { t.cancel(errTime) })
	if loud {
		t.step = ""
	}
	ctx = context.WithValue(ctx, trailKey{}, t)
	t.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		TLSHandshakeStart: func() {
			s.mu.Lock()
			s.peer = peer{}
			s.mu.Unlock()
			if s.ofProxy(t) {
				t.enter(StepProxy, s.limit(), "")
			} else {
				t.enter(StepTLS, s.limit(), "")
			}
		},
		TLSHandshakeDone: func(_ tls.ConnectionState, err error) {
			switch {
			case err != nil:
			case s.ofProxy(t):
				t.note("TLS is spoken with it", "")
			default:
				t.note(s.trusted(s.peerOf()))
			}
		},
		GotConn: func(httptrace.GotConnInfo) { t.enter(StepAPI, s.limit(), "") },
	})
	return t
}

// ofProxy says whether a handshake is that with an https proxy.
func (s *session) ofProxy(t *trail) bool {
	via := s.through()
	t.mu.Lock()
	defer t.mu.Unlock()
	return via != nil && via.Scheme == "https" && !t.through
}

func (t *trail) tunnel() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.through = true
}

// enter ends a step that went well and begins the next.
func (t *trail) enter(name string, limit time.Duration, subject string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	if t.loud && t.step != "" && t.step != name {
		t.add(step(t.step, true, time.Since(t.since), t.verdict, t.detail, ""))
	}
	t.step, t.limit, t.since, t.verdict, t.detail = name, limit, time.Now(), "", ""
	if subject != "" {
		t.subject = subject
	}
	if t.loud {
		// The steps of a connection have their time each, a request otherwise one for all.
		t.timer.Reset(limit)
	}
}

// note says what was seen in the step at hand.
func (t *trail) note(verdict, detail string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.verdict, t.detail = verdict, detail
}

// opened keeps a connection, to close it should the request fail.
func (t *trail) opened(c net.Conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		_ = c.Close()
		return
	}
	t.conns = append(t.conns, c)
}

// end ends the request; what comes later is not heard.
func (t *trail) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return
	}
	t.over = true
	t.timer.Stop()
	t.lasted = time.Since(t.begun)
	if t.loud {
		t.lasted = time.Since(t.since)
	}
	t.cancel(nil)
}

// broken is end, and its connections are of no use.
func (t *trail) broken() {
	t.end()
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, c := range t.conns {
		_ = c.Close()
	}
	t.conns = nil
}

func (t *trail) at() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.step == "" {
		return StepDNS
	}
	return t.step
}

// took is how long the step at hand took, or a quiet request in all.
func (t *trail) took() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.over {
		return time.Since(t.begun)
	}
	return t.lasted
}

// reply is an answer.
type reply struct {
	status   int
	header   http.Header
	length   int64
	body     []byte
	url      *url.URL // that answered
	via      []string // other hosts that it was sent on to
	response *http.Response
}

// exchange sends a request and reads the answer, of its body up to keep bytes. With follow it
// goes where redirects send it, as containerd does.
func (s *session) exchange(t *trail, method, target string, header http.Header, keep int64, follow bool) (reply, error) {
	r, err := s.send(t, method, target, header, keep, follow)
	if err != nil {
		t.broken()
		return r, err
	}
	t.end()
	return r, nil
}

func (s *session) send(t *trail, method, target string, header http.Header, keep int64, follow bool) (reply, error) {
	req, err := http.NewRequestWithContext(t.ctx, method, target, nil)
	if err != nil {
		return reply{}, &fault{verdict: "no URL that can be asked"}
	}
	t.keep = keep
	req.Header = header.Clone()
	if follow {
		if err := s.authorize(t.ctx, req); err != nil {
			return reply{}, err
		}
	}
	var via []string
	client := *s.client
	client.CheckRedirect = func(req *http.Request, before []*http.Request) error {
		if !follow {
			return http.ErrUseLastResponse
		}
		if len(before) >= 10 {
			return &fault{verdict: "more than 10 redirects"}
		}
		if !slices.Contains(via, req.URL.Host) {
			via = append(via, req.URL.Host)
		}
		return s.authorize(t.ctx, req)
	}
	resp, err := client.Do(req)
	if err != nil {
		return reply{}, err
	}
	defer resp.Body.Close()
	r := reply{status: resp.StatusCode, header: resp.Header, length: resp.ContentLength, url: resp.Request.URL, via: via, response: resp}
	if keep > 0 {
		if r.body, err = readUpTo(resp.Body, keep); err != nil {
			return r, fmt.Errorf("read the answer: %w", err)
		}
	}
	return r, nil
}

func (s *session) authorize(ctx context.Context, req *http.Request) error {
	if err := s.auth.Authorize(ctx, req); err != nil {
		return err
	}
	s.veil.hide(req.Header.Get("Authorization"))
	return nil
}
