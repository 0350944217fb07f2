// Command hosts prints as JSON what one release of containerd makes of hosts.toml files:
// its own parser, with whatever else it needs of that release's own code.
//
//	hosts NAME=CERTS_D...
//
// Each NAME is a registry, and CERTS_D where its folder may be. The go.mod file that it is
// built with chooses the release; 2.x needs the build tag v2, for its packages have other
// paths.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"

	"github.com/sirupsen/logrus"
)

// host is what a pull would use of a registry host.
type host struct {
	Scheme, Host, Path string
	Capabilities       int
	Header             http.Header
	// Fallback says that HTTPS is tried first, then HTTP; what of TLS follows is then not
	// to be had from outside.
	Fallback   bool
	SkipVerify bool
	CAs        bool // beside the system's
	Clients    int
}

// reading is what comes of one hosts.toml.
type reading struct {
	Hosts []host
	// Logged is what is said of a file that counts for nothing; Failed is for certificates
	// that cannot be loaded.
	Logged, Failed string
}

// logged keeps the first error that containerd logs: that is all it does with a hosts.toml
// that it cannot read.
type logged struct{ text string }

func (l *logged) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

func (l *logged) Fire(e *logrus.Entry) error {
	if l.text == "" {
		l.text = fmt.Sprint(e.Message, ": ", e.Data[logrus.ErrorKey])
	}
	return nil
}

func main() {
	logrus.SetOutput(io.Discard)
	out := make([]reading, 0, len(os.Args))
	for _, arg := range os.Args[1:] {
		i := strings.LastIndex(arg, "=")
		out = append(out, read(arg[:i], arg[i+1:]))
	}
	if err := json.NewEncoder(os.Stdout).Encode(out); err != nil {
		fmt.Fprintln(os.Stderr, "hosts:", err)
		os.Exit(1)
	}
}

func read(name, certsD string) (r reading) {
	// 1.x panics at what is below host and no table, where there is another.
	defer func() {
		if p := recover(); p != nil {
			r = reading{Logged: fmt.Sprint("panic: ", p)}
		}
	}()
	said := &logged{}
	logrus.StandardLogger().ReplaceHooks(logrus.LevelHooks{})
	logrus.AddHook(said)
	found, err := configureHosts(context.Background(), certsD)(name)
	r.Logged = said.text
	if err != nil {
		r.Failed = err.Error()
	}
	for _, f := range found {
		h := host{Scheme: f.Scheme, Host: f.Host, Path: f.Path, Capabilities: int(f.Capabilities), Header: f.Header}
		if t, ok := f.Client.Transport.(*http.Transport); !ok {
			h.Fallback = true
		} else if t.TLSClientConfig != nil {
			h.SkipVerify = t.TLSClientConfig.InsecureSkipVerify
			h.Clients = len(t.TLSClientConfig.Certificates)
			h.CAs = t.TLSClientConfig.RootCAs != nil
		}
		r.Hosts = append(r.Hosts, h)
	}
	return r
}
