package checks

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"
)

// soon is how long before its end a certificate is worth a warning.
const soon = 30 * 24 * time.Hour

// certificates reads the certificates of a PEM file. There is an error when it has none.
func (n *Node) certificates(p string) ([]*x509.Certificate, error) {
	b, err := n.Host.Root.ReadFile(p)
	if err != nil {
		return nil, err
	}
	return parseCertificates(b)
}

var errNoCertificate = errors.New("no PEM block of type CERTIFICATE in it")

func parseCertificates(b []byte) ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	for {
		var block *pem.Block
		if block, b = pem.Decode(b); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	if len(out) == 0 {
		return nil, errNoCertificate
	}
	return out, nil
}

// name is what people call a certificate.
func certName(c *x509.Certificate) string {
	if c.Subject.CommonName != "" {
		return c.Subject.CommonName
	}
	if len(c.DNSNames) > 0 {
		return c.DNSNames[0]
	}
	return c.Subject.String()
}

// validity says what is wrong with the time of a certificate: it does not hold (Fail),
// not for long (Warn), or nothing ("").
func validity(c *x509.Certificate, now time.Time) (Verdict, string) {
	switch {
	case now.Before(c.NotBefore):
		return Fail, fmt.Sprintf("%s holds only from %s on, and the clock says %s", certName(c), date(c.NotBefore), date(now))
	case now.After(c.NotAfter):
		return Fail, fmt.Sprintf("%s expired %s", certName(c), date(c.NotAfter))
	case now.Add(soon).After(c.NotAfter):
		return Warn, fmt.Sprintf("%s expires %s", certName(c), date(c.NotAfter))
	}
	return Pass, ""
}

func date(t time.Time) string { return t.UTC().Format(time.DateOnly) }

// unreadable is what keeps a file from being read; there is nothing to say against one
// that only root may read.
func unreadable(r Result, err error) Result {
	switch {
	case errors.Is(err, fs.ErrPermission):
		r.Verdict, r.Observed = Unknown, "permission denied: only root may read it"
	case absent(err):
		r.Observed = "not there"
	default:
		r.Observed = strings.TrimPrefix(err.Error(), "read "+r.Object+": ")
	}
	return r
}

func registryCA(_ context.Context, n *Node) []Result {
	count := 0
	return eachFile(n, func(c *certs) []Result {
		var out []Result
		var seen []string
		for _, e := range c.endpoints() {
			for _, ca := range e.ca {
				if slices.Contains(seen, ca.path) {
					continue
				}
				seen = append(seen, ca.path)
				count++
				out = append(out, n.caFile(e, ca)...)
			}
		}
		return out
	}, "%d CA files, all there and valid", func(*certs) []any { return []any{count} })
}

func (n *Node) caFile(e endpoint, ca certFile) []Result {
	r := Result{
		Verdict: Fail, Object: ca.path, Wanted: "a valid CA certificate, in PEM", Place: at(e.file, ca.line),
		Remedy: n.restore(ca.path, fmt.Sprintf("# put the CA certificate of %s, in PEM, into %s", e.host, ca.path)),
	}
	all, err := n.certificates(ca.path)
	if err != nil {
		r = unreadable(r, err)
		if other := n.onlyOther(e.file, ca.path); absent(err) && other != "" {
			r.Remedy = fmt.Sprintf("mv -T %s %s", n.word(other), n.word(ca.path))
		}
		return []Result{r}
	}
	// A bundle may hold old ones beside the one that counts.
	var faults []Result
	good := 0
	for _, c := range all {
		x := r
		switch x.Verdict, x.Observed = validity(c, n.Host.Now()); x.Verdict {
		case Pass:
			good++
			continue
		case Warn:
			good++
		}
		faults = append(faults, x)
	}
	if good > 0 {
		for i := range faults {
			faults[i].Verdict = Warn
		}
	}
	return faults
}

// onlyOther is the one certificate beside a hosts.toml that it does not name, "" where
// there is none or more than one.
func (n *Node) onlyOther(file, missing string) string {
	entries, err := n.Host.Root.ReadDir(path.Dir(file))
	if err != nil || path.Base(file) != hostsName || path.Dir(missing) != path.Dir(file) {
		return ""
	}
	content, err := n.Host.Root.ReadFile(file)
	if err != nil {
		return ""
	}
	found := ""
	for _, e := range entries {
		p := path.Join(path.Dir(file), e.Name())
		if e.IsDir() || strings.Contains(string(content), `"`+e.Name()+`"`) {
			continue
		}
		if _, err := n.certificates(p); err != nil {
			continue
		}
		if found != "" {
			return ""
		}
		found = p
	}
	return found
}

func clientCerts(_ context.Context, n *Node) []Result {
	count := 0
	return eachFile(n, func(c *certs) []Result {
		var out []Result
		for _, e := range c.endpoints() {
			for _, pair := range e.client {
				count++
				if r := n.clientPair(e, pair); r != nil {
					out = append(out, *r)
				}
			}
		}
		return out
	}, "%d client certificates, all valid and with their keys", func(*certs) []any { return []any{count} })
}

// clientPair is what is wrong with a certificate and its key, nil is nothing.
func (n *Node) clientPair(e endpoint, pair clientPair) *Result {
	r := Result{
		Verdict: Fail, Object: pair.cert, Wanted: "a valid certificate and its key, in PEM", Place: at(e.file, pair.line),
		Remedy: n.restore(pair.cert, fmt.Sprintf("# put the certificate for %s and its key, in PEM, into %s and %s", e.host, pair.cert, pair.key)),
	}
	if pair.key == path.Dir(e.file) {
		r.Observed, r.Wanted = "client = ["+pair.given+"]: the empty key is taken for the folder, and cannot be read", `client = "`+path.Base(pair.cert)+`"`
		r.Remedy = fmt.Sprintf("sed -i '%ds|client.*|client = \"%s\"|' %s", pair.line, pair.cert, n.word(e.file))
		return &r
	}
	cert, err := n.Host.Root.ReadFile(pair.cert)
	if err != nil {
		r = unreadable(r, err)
		return &r
	}
	key := cert
	if pair.key != pair.cert {
		if key, err = n.Host.Root.ReadFile(pair.key); err != nil {
			r.Object = pair.key
			r = unreadable(r, err)
			return &r
		}
	}
	if _, err := tls.X509KeyPair(cert, key); err != nil {
		r.Observed = strings.TrimPrefix(err.Error(), "tls: ")
		switch {
		case pair.flat:
			r.Observed = "a flat list is one of files that hold certificate and key both: " + r.Observed
			r.Wanted = `pairs: client = [["CERT.pem", "KEY.pem"]]`
			if others := e.client; len(others) == 2 && others[0].line == others[1].line {
				r.Remedy = fmt.Sprintf("sed -i '%ds|client.*|client = [[\"%s\", \"%s\"]]|' %s", pair.line, others[0].cert, others[1].cert, n.word(e.file))
			}
		case pair.key != pair.cert:
			r.Observed = pair.key + ": " + r.Observed
		}
		return &r
	}
	all, err := parseCertificates(cert)
	if err != nil {
		r.Observed = err.Error()
		return &r
	}
	if r.Verdict, r.Observed = validity(all[0], n.Host.Now()); r.Verdict == Pass {
		return nil
	}
	return &r
}
