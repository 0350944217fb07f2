package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/remotes/docker"
	hosts "github.com/containerd/containerd/v2/core/remotes/docker/config"
	"github.com/containerd/log"
	"github.com/sirupsen/logrus"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

// hostsParser asks containerd's own package what a hosts.toml means. It reads files, so that
// each is put into a folder that nobody else sees.
type hostsParser struct{ dir string }

func newHostsParser() (*hostsParser, error) {
	// In memory where there is such a place: the files may hold secrets.
	dir, err := os.MkdirTemp("/dev/shm", "nodeprep-hosts-")
	if err != nil {
		if dir, err = os.MkdirTemp("", "nodeprep-hosts-"); err != nil {
			return nil, fmt.Errorf("make a folder for containerd's parser (TMPDIR names where): %w", err)
		}
	}
	return &hostsParser{dir}, nil
}

func (p *hostsParser) close() { _ = os.RemoveAll(p.dir) }

// parse is what registry.Query wants. An error is the parser's own, for which containerd
// takes the file for broken, or a *registry.CertError.
func (p *hostsParser) parse(text []byte, name string) ([]registry.Parsed, error) {
	opt := hosts.HostOptions{}
	if text != nil {
		file := filepath.Join(p.dir, "hosts.toml")
		// Anew: file systems bring a file that is cut and written again to the disk at once.
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, fmt.Errorf("write for containerd's parser: %w", err)
		}
		if err := os.WriteFile(file, text, 0o600); err != nil {
			return nil, fmt.Errorf("write for containerd's parser: %w", err)
		}
		opt.HostDir = func(string) (string, error) { return p.dir, nil }
	}
	said := &loggedError{}
	logger := logrus.New()
	logger.SetOutput(io.Discard)
	logger.AddHook(said)
	found, err := hosts.ConfigureHosts(log.WithLogger(context.Background(), logrus.NewEntry(logger)), opt)(name)
	switch {
	case said.err != nil:
		return nil, said.err
	case err != nil:
		return nil, &registry.CertError{Err: err}
	}
	var out []registry.Parsed
	for _, h := range found {
		_, direct := h.Client.Transport.(*http.Transport)
		out = append(out, registry.Parsed{
			Scheme: h.Scheme, Host: h.Host, Path: h.Path, Header: h.Header, Fallback: !direct,
			Pull: h.Capabilities.Has(docker.HostCapabilityPull), Resolve: h.Capabilities.Has(docker.HostCapabilityResolve), Push: h.Capabilities.Has(docker.HostCapabilityPush),
		})
	}
	return out, nil
}

// loggedError keeps the first error that is logged: containerd goes on without a file that
// it cannot decode.
type loggedError struct{ err error }

// Levels are those of errors.
func (l *loggedError) Levels() []logrus.Level { return []logrus.Level{logrus.ErrorLevel} }

// Fire keeps the entry's error.
func (l *loggedError) Fire(e *logrus.Entry) error {
	if l.err == nil {
		l.err = errors.New(strings.TrimSpace(e.Message))
		if err, ok := e.Data[logrus.ErrorKey].(error); ok {
			l.err = err
		}
	}
	return nil
}

// readBack holds rendered hosts.toml files against what containerd makes of them.
func readBack(spec *profiles.Spec, files []desired.File) diag.List {
	if len(spec.Registries) == 0 {
		return nil
	}
	p, err := newHostsParser()
	if err != nil {
		return diag.List{{Message: err.Error()}}
	}
	defer p.close()
	return registry.ReadBack(spec, files, p.parse)
}
