package oracle

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	"github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

// host is what a pull would use of a registry host.
type host struct {
	Scheme, Host, Path string
	Capabilities       int
	Header             http.Header
	SkipVerify         bool
	CAs, Clients       int // CAs is 1 when there are any beside the system's
	TLSFallback        bool
}

// capabilities as containerd's docker.HostCapabilities has them.
const (
	pull, resolve, push, referrers = 1, 2, 4, 8
)

// unlisted stands for a registry without an entry of its own.
const unlisted = "unlisted.example.org:8443"

// asked is the registry one would ask for to reach an entry: for "*" some other.
func asked(r registry) string {
	if r.Host == "*" {
		return unlisted
	}
	return r.Host
}

// serverHost is the host that a registry's own server has.
func serverHost(r registry) string {
	if r.Server != nil && r.Server.URL != "" {
		if u, err := url.Parse(r.Server.URL); err == nil {
			return u.Host
		}
	}
	if r.Host == "docker.io" {
		return "registry-1.docker.io"
	}
	return asked(r)
}

// wantHosts is whom a pull from the registry should ask, in order.
func wantHosts(r registry, m meant, all int) []host {
	var out []host
	for _, e := range r.Mirrors {
		out = append(out, wantHost(e, m, all))
	}
	if r.Deny {
		return out
	}
	server := endpoint{}
	if r.Server != nil {
		server = *r.Server
	}
	if server.URL != "" {
		return append(out, wantHost(server, m, all))
	}
	local := strings.HasPrefix(r.Host, "localhost") || strings.HasPrefix(r.Host, "127.") || strings.HasPrefix(r.Host, "[::1]")
	server.URL = "https://" + serverHost(r)
	_, port, _ := net.SplitHostPort(r.Host)
	if local && port != "" && port != "443" {
		server.URL = "http://" + serverHost(r)
	}
	h := wantHost(server, m, all)
	if local && port != "80" {
		h.SkipVerify = true
		if h.Scheme == "http" {
			h.Scheme, h.TLSFallback = "https", true
		}
	}
	return append(out, h)
}

func wantHost(e endpoint, m meant, all int) host {
	u, err := url.Parse(e.URL)
	if err != nil {
		panic(err) // the profile was accepted with it
	}
	h := host{Scheme: u.Scheme, Host: u.Host, Capabilities: all, Header: http.Header{}}
	p := strings.TrimSuffix(path.Clean("/"+u.Path), "/")
	if !e.OverridePath && !slices.Contains(strings.Split(p, "/"), "v2") {
		p += "/v2"
	}
	h.Path = p
	if len(e.Capabilities) > 0 {
		h.Capabilities = 0
		for _, c := range e.Capabilities {
			bit := map[string]int{"pull": pull, "resolve": resolve, "push": push, "referrers": referrers}[strings.ToLower(c)]
			if v := m.Containerd.Version; bit == referrers && (v.Major < 2 || v.Minor < 2) {
				continue // unknown to the release
			}
			h.Capabilities |= bit
		}
	}
	for _, f := range e.Header {
		for _, s := range f.Values {
			h.Header[f.Name] = append(h.Header[f.Name], s.text())
		}
	}
	h.SkipVerify = e.SkipVerify != nil && *e.SkipVerify
	h.CAs = min(1, len(e.CA))
	h.Clients = len(e.Client)
	if h.Scheme == "http" && u.Port() != "80" && (len(e.CA) > 0 || len(e.Client) > 0 || e.SkipVerify != nil) {
		h.Scheme, h.TLSFallback = "https", true
	}
	if h.TLSFallback {
		h.SkipVerify, h.CAs, h.Clients = false, 0, 0 // hidden behind the fallback
	}
	return h
}

// parseHosts is containerd 2.4's reading of certs.d.
func parseHosts(t *testing.T, certsD, name string) ([]host, error) {
	t.Helper()
	found, err := config.ConfigureHosts(t.Context(), config.HostOptions{HostDir: config.HostDirFromRoot(certsD)})(name)
	if err != nil {
		return nil, err
	}
	var out []host
	for _, f := range found {
		h := host{Scheme: f.Scheme, Host: f.Host, Path: f.Path, Capabilities: int(f.Capabilities), Header: f.Header}
		if tr, ok := f.Client.Transport.(*http.Transport); ok {
			h.SkipVerify = tr.TLSClientConfig.InsecureSkipVerify
			h.Clients = len(tr.TLSClientConfig.Certificates)
			if tr.TLSClientConfig.RootCAs != nil {
				h.CAs = 1
			}
		} else {
			h.TLSFallback = true
		}
		out = append(out, h)
	}
	return out, nil
}

// checkHosts compares what a parser makes of one registry with what was meant.
func checkHosts(got []host, r registry, m meant, all int) []string {
	want := wantHosts(r, m, all)
	for i := range want {
		if want[i].TLSFallback {
			want[i].SkipVerify = false
		}
	}
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		return []string{fmt.Sprintf("hosts of %s (-want +got):\n%s", asked(r), diff)}
	}
	return nil
}

// TestHosts lets containerd 2.4's parser, which all of 2.x has but for capabilities,
// find and read every registry of every golden for 2.x.
func TestHosts(t *testing.T) {
	if pull != docker.HostCapabilityPull || resolve != docker.HostCapabilityResolve || push != docker.HostCapabilityPush || referrers != docker.HostCapabilityReferrers {
		t.Fatal("containerd has renumbered its capabilities")
	}
	checked := 0
	for _, g := range readGoldens(t) {
		if g.meant.Containerd.Version.Major < 2 {
			continue
		}
		for _, r := range g.meant.Registries {
			checked++
			t.Run(g.name+"/"+r.Host, func(t *testing.T) {
				got, err := parseHosts(t, g.certsD(), asked(r))
				if err != nil {
					t.Fatal(err)
				}
				for _, p := range checkHosts(got, r, g.meant, pull|resolve|push|referrers) {
					t.Error(p)
				}
			})
		}
	}
	if checked == 0 {
		t.Error("no golden has registries")
	}
}
