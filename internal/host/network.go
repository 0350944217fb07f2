package host

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Network is how nodeprep reaches other machines: everything that connects over a network
// dials through it, so that forbidding it forbids all of it. A nil Network allows
// everything. Its methods may be called from several goroutines.
type Network struct {
	why   string   // "--offline"; "" allows everything
	hosts []string // allowed all the same
}

// OpenNetwork allows everything.
func OpenNetwork() *Network { return &Network{} }

// NoNetwork allows nothing but hosts, each as it is dialled, "host:port". why is what
// forbids it, for messages: "--offline".
func NoNetwork(why string, hosts ...string) *Network { return &Network{why: why, hosts: hosts} }

// Only is NoNetwork, but that what n forbids stays forbidden.
func (n *Network) Only(why string, hosts ...string) *Network {
	if n.Forbidden() {
		why, hosts = n.why, slices.DeleteFunc(slices.Clone(hosts), func(h string) bool { return !slices.Contains(n.hosts, h) })
	}
	return NoNetwork(why, hosts...)
}

// Forbidden says that the network is not there for all.
func (n *Network) Forbidden() bool { return n != nil && n.why != "" }

// ForbiddenError is a use of the network that is forbidden.
type ForbiddenError struct {
	For     string   // who wanted it: "the manifest of registry.example.com/app:1"; may be ""
	Address string   // "host:port"
	Why     string   // what forbids it: "--offline"
	Allowed []string // what may be reached all the same, as "host:port"
}

// Error names who wanted what, and what forbids it.
func (e *ForbiddenError) Error() string {
	msg := "connect to " + e.Address
	if e.For != "" {
		msg += " for " + e.For
	}
	if len(e.Allowed) > 0 {
		return fmt.Sprintf("%s: nothing but %s may be reached (%s)", msg, strings.Join(e.Allowed, ", "), e.Why)
	}
	return fmt.Sprintf("%s: the network may not be used (%s)", msg, e.Why)
}

type purposeKey struct{}

// For says who dials with a context, for the message when that is forbidden.
func For(ctx context.Context, who string) context.Context {
	return context.WithValue(ctx, purposeKey{}, who)
}

// dialTime is what a connection takes at most, after which TCP itself has asked five times
// (tcp(7), tcp_syn_retries).
const dialTime = 30 * time.Second

// DialContext is net.Dialer's. What is forbidden is a *ForbiddenError, and no packet leaves:
// no name is looked up either.
func (n *Network) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if n.Forbidden() && !slices.Contains(n.hosts, address) {
		who, _ := ctx.Value(purposeKey{}).(string)
		return nil, &ForbiddenError{For: who, Address: address, Why: n.why, Allowed: n.hosts}
	}
	return (&net.Dialer{Timeout: dialTime}).DialContext(ctx, network, address)
}

// Transport is for HTTP through n, with TLS 1.2 or newer and no unpacking of what comes: a
// digest is that of the bytes on the way. A proxy that the environment names
// (http.ProxyFromEnvironment) is dialled instead of the server and has to be allowed.
func (n *Network) Transport() *http.Transport {
	return &http.Transport{
		DialContext:         n.DialContext,
		Proxy:               http.ProxyFromEnvironment,
		DisableCompression:  true,
		ForceAttemptHTTP2:   true, // which a DialContext of one's own switches off
		TLSHandshakeTimeout: dialTime,
		TLSClientConfig:     &tls.Config{MinVersion: tls.VersionTLS12},
	}
}
