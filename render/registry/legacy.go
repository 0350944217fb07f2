package registry

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
)

// LegacyTLS is registry.configs.HOST.tls of config.toml: paths on the node, "" for none.
type LegacyTLS struct {
	CA, Cert, Key string
	SkipVerify    bool
	Place         string // FILE:LINE
}

// apply gives a host of registry.mirrors its settings. Only 1.x has them.
func (l LegacyTLS) apply(t *table) {
	t.tls, t.skip = true, l.SkipVerify
	if l.CA != "" {
		t.ca = []string{l.CA}
	}
	if l.Cert != "" || l.Key != "" {
		t.client = [][2]string{{l.Cert, l.Key}}
	}
}

// broken is why containerd cannot make its hosts at all with these settings, "" where it can
// (getTLSConfig of CRI's image_pull.go, 1.x). A CA file without a certificate in it is taken
// without a word.
func (e *explainer) legacyBroken(l LegacyTLS) string {
	switch {
	case l.Cert != "" && l.Key == "":
		return fmt.Sprintf("%s names the certificate %s and no key_file", l.Place, l.Cert)
	case l.Key != "" && l.Cert == "":
		return fmt.Sprintf("%s names the key %s and no cert_file", l.Place, l.Key)
	case l.Cert != "":
		if why := e.pair(l.Cert, l.Key); why != "" {
			return why
		}
	}
	if l.CA == "" {
		return ""
	}
	switch _, err := e.Read(l.CA); {
	case errors.Is(err, fs.ErrPermission):
		e.x.note("%s is only for root to read: whether it can be loaded is not known", l.CA)
	case err != nil:
		return fmt.Sprintf("the CA file %s cannot be read: %s", l.CA, missing(err))
	}
	return ""
}

// legacyNotes says where registry.configs.HOST.tls counts for nothing, or worse.
func (e *explainer) legacyNotes() {
	if len(e.LegacyTLS) == 0 {
		return
	}
	var at []string
	for _, host := range slices.Sorted(maps.Keys(e.LegacyTLS)) {
		at = append(at, fmt.Sprintf("registry.configs.%q.tls (%s)", withoutUser(host), e.LegacyTLS[host].Place))
	}
	what := strings.Join(at, " and ")
	switch {
	case e.Release.AtLeast(2, 0, 0):
		e.x.note("%s: containerd 2 does not know it: its CA and skip_verify belong into hosts.toml", what)
	case e.ConfigPath != "":
		e.withoutCRI("containerd 1.x refuses to start CRI with tls in registry.configs beside config_path: " + what)
	}
}
