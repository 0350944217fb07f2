package host

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"
)

func TestNetworkForbids(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here := l.Addr().String()
	tests := []struct {
		name    string
		network *Network
		who     string
		address string
		want    string // of the error; "" connects
	}{
		{"nil allows everything", nil, "", here, ""},
		{"open allows everything", OpenNetwork(), "", here, ""},
		{"closed, with who and what", NoNetwork("--offline"), "runc 1.3.0", here, "connect to " + here + " for runc 1.3.0: the network may not be used (--offline)"},
		{"closed, nobody said who", NoNetwork("--offline"), "", "x.invalid:443", "connect to x.invalid:443: the network may not be used (--offline)"},
		{"one host is left", NoNetwork("--bundle", here), "", here, ""},
		{"another is not", NoNetwork("--bundle", here), "", "x.invalid:443", "connect to x.invalid:443: nothing but " + here + " may be reached (--bundle)"},
		{"another port is not", NoNetwork("--bundle", "127.0.0.1:1"), "", here, "nothing but 127.0.0.1:1 may be reached"},
		{"an open one is narrowed", OpenNetwork().Only("--bundle", here), "", here, ""},
		{"a nil one is narrowed", (*Network)(nil).Only("--bundle", here), "", "x.invalid:443", "nothing but " + here},
		{"what is forbidden stays so", NoNetwork("--offline").Only("--bundle", here), "", here, "the network may not be used (--offline)"},
		{"what was left stays", NoNetwork("--bundle", here, "x.invalid:1").Only("again", here), "", here, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			ctx := t.Context()
			if tt.who != "" {
				ctx = For(ctx, tt.who)
			}
			conn, err := tt.network.DialContext(ctx, "tcp", tt.address)
			if conn != nil {
				conn.Close()
			}
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if _, ok := errors.AsType[*ForbiddenError](err); !ok || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// A proxy is a machine like any other: it is what is dialled, and it is refused.
func TestNetworkForbidsProxies(t *testing.T) {
	asked := make(chan string, 1)
	proxy := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { asked <- r.URL.String() }))
	defer proxy.Close()
	u, err := url.Parse(proxy.URL)
	if err != nil {
		t.Fatal(err)
	}
	tr := NoNetwork("--offline").Transport()
	if tr.Proxy == nil {
		t.Error("a proxy of the environment is not used")
	}
	// net/http reads the environment once for all tests.
	tr.Proxy = http.ProxyURL(u)
	req, err := http.NewRequestWithContext(For(t.Context(), "runc 1.3.0"), http.MethodGet, "http://releases.invalid/runc", nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = tr.RoundTrip(req)
	want := "connect to " + proxy.Listener.Addr().String() + " for runc 1.3.0: the network may not be used (--offline)"
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got %v, want %s", err, want)
	}
	select {
	case u := <-asked:
		t.Errorf("the proxy was asked for %s", u)
	default:
	}
}

// A server that says nothing, before its answer or within it, does not hold up a run.
func TestPatienceEnds(t *testing.T) {
	tests := map[string]func(http.ResponseWriter){
		"before the answer": func(http.ResponseWriter) {},
		"within the answer": func(w http.ResponseWriter) {
			_, _ = io.WriteString(w, "half")
			w.(http.Flusher).Flush()
		},
	}
	for name, begin := range tests {
		t.Run(name, func(t *testing.T) {
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				begin(w)
				<-r.Context().Done()
			}))
			defer s.Close()
			tr := OpenNetwork().Transport()
			defer tr.CloseIdleConnections()
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL, nil)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := Patience(tr, 50*time.Millisecond).RoundTrip(req)
			if err == nil {
				_, err = io.ReadAll(resp.Body)
				resp.Body.Close()
			}
			if _, ok := errors.AsType[*StallError](err); !ok {
				t.Errorf("got %v, want a stall", err)
			}
		})
	}
}

// The user's own interruption is not a stall.
func TestPatienceKeepsTheCause(t *testing.T) {
	stop := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	s := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		cancel(stop)
		<-r.Context().Done()
	}))
	defer s.Close()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	_, err = Patience(OpenNetwork().Transport(), time.Hour).RoundTrip(req)
	if _, ok := errors.AsType[*StallError](err); ok || err == nil || !errors.Is(context.Cause(ctx), stop) {
		t.Errorf("got %v", err)
	}
}
