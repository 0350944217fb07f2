package registry

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/profiles"
)

// soon is how long before the end of a certificate somebody should hear of it.
const soon = 30 * 24 * time.Hour

// cert is a file beside hosts.toml, which names it without a folder: containerd joins
// relative paths to the folder of the hosts.toml that it reads.
type cert struct {
	name    string
	file    profiles.LocalFile
	content []byte
	secret  bool // holds a private key
	broken  bool
	unread  bool // a placeholder stands for it
	judged  bool // as a CA
}

// ca adds a bundle of CA certificates and returns its name. One that containerd
// cannot load makes every pull from the registry fail, so it is tried here.
func (b *builder) ca(f profiles.LocalFile) string {
	c := b.cert(f)
	if !c.broken && !c.unread && !c.judged {
		c.judged = true
		b.judgeCA(f, c)
	}
	return c.name
}

// judgeCA finds what is wrong with a bundle of CA certificates, which everybody may read
// where it is written to.
func (b *builder) judgeCA(f profiles.LocalFile, c *cert) {
	blocks := pemBlocks(c.content)
	if slices.ContainsFunc(blocks, isKey) {
		b.faults.Errorf(f.Origin, "give the certificates in a file of their own", "there is a private key in %s, and everybody may read a CA", f.Given)
		return
	}
	var certs []*x509.Certificate
	for i, block := range blocks {
		if block.Type != "CERTIFICATE" {
			continue
		}
		// With headers in the block, and where it cannot be parsed, Go's pool of roots leaves
		// it out and says nothing (x509.CertPool.AppendCertsFromPEM).
		parsed, err := x509.ParseCertificate(block.Bytes)
		switch {
		case err != nil:
			b.faults.Warnf(f.Origin, "", "PEM block %d of %s counts for nothing: %s", i+1, f.Given, strings.TrimPrefix(err.Error(), "x509: "))
		case len(block.Headers) > 0:
			b.faults.Warnf(f.Origin, "take the headers away", "PEM block %d of %s counts for nothing, since it has headers", i+1, f.Given)
		default:
			certs = append(certs, parsed)
		}
	}
	if len(certs) == 0 {
		b.faults.Errorf(f.Origin, cmp.Or(fromDER(f, c.content), "want one or more PEM blocks of type CERTIFICATE"), "no certificate in %s%s", f.Given, foundInstead(blocks, c.content))
		return
	}
	for _, x := range certs {
		if !signs(x) {
			b.faults.Warnf(f.Origin, "give the certificate of the CA that signed it",
				"%s in %s is no CA: it counts for a server that has this very certificate, and no other", subject(x), f.Given)
		}
	}
	b.judgeTime(f, certs)
}

// judgeTime finds certificates whose time is not now. One that has ended among others may
// be the old one of two, and harms nothing.
func (b *builder) judgeTime(f profiles.LocalFile, certs []*x509.Certificate) {
	clock, ok := b.read.(Clock)
	if !ok {
		return
	}
	now := clock.Now()
	ended := func(x *x509.Certificate) bool { return now.After(x.NotAfter) }
	all := !slices.ContainsFunc(certs, func(x *x509.Certificate) bool { return !ended(x) })
	for _, x := range certs {
		switch {
		case ended(x) && all:
			b.faults.Errorf(f.Origin, "renew it", "%s in %s expired on %s", subject(x), f.Given, day(x.NotAfter))
		case ended(x):
			b.faults.Warnf(f.Origin, "take it away", "%s in %s expired on %s", subject(x), f.Given, day(x.NotAfter))
		case now.Before(x.NotBefore):
			b.faults.Warnf(f.Origin, "look at the clock of this machine", "%s in %s is not valid before %s", subject(x), f.Given, day(x.NotBefore))
		case x.NotAfter.Sub(now) < soon:
			b.faults.Warnf(f.Origin, "renew it", "%s in %s expires on %s", subject(x), f.Given, day(x.NotAfter))
		}
	}
}

func day(t time.Time) string { return t.UTC().Format(time.DateOnly) }

func subject(x *x509.Certificate) string {
	return "the certificate of " + cmp.Or(x.Subject.CommonName, x.Subject.String(), "nobody")
}

// signs says whether a certificate may sign others, as x509.Certificate.CheckSignatureFrom
// judges it.
func signs(x *x509.Certificate) bool {
	if x.Version == 3 && !x.BasicConstraintsValid || x.BasicConstraintsValid && !x.IsCA {
		return false
	}
	return x.KeyUsage == 0 || x.KeyUsage&x509.KeyUsageCertSign != 0
}

func pemBlocks(content []byte) []*pem.Block {
	var out []*pem.Block
	for {
		block, rest := pem.Decode(content)
		if block == nil {
			return out
		}
		out, content = append(out, block), rest
	}
}

func isKey(b *pem.Block) bool { return strings.HasSuffix(b.Type, "PRIVATE KEY") }

// encrypted says whether a key wants a password: PKCS #8 (RFC 5958), or OpenSSL's older
// way of headers (RFC 1421, DEK-Info).
func encrypted(b *pem.Block) bool {
	return b.Type == "ENCRYPTED PRIVATE KEY" || b.Headers["DEK-Info"] != ""
}

// foundInstead names what a file has in place of certificates.
func foundInstead(blocks []*pem.Block, content []byte) string {
	var types []string
	for _, b := range blocks {
		if !slices.Contains(types, b.Type) {
			types = append(types, b.Type)
		}
	}
	switch {
	case len(types) > 0:
		return ", but " + strings.Join(types, ", ")
	case len(content) == 0:
		return ": it is empty"
	}
	return ""
}

// word makes a path one word of a shell's, which is no option either.
func word(p string) string {
	if strings.HasPrefix(p, "-") {
		p = "./" + p
	}
	return diag.ShellWord(p)
}

// fromDER is the command that makes PEM of a file in DER, "" for another.
func fromDER(f profiles.LocalFile, content []byte) string {
	to := strings.TrimSuffix(f.Given, path.Ext(f.Given)) + ".pem"
	if to == f.Given {
		to += ".pem"
	}
	if certs, err := x509.ParseCertificates(content); err == nil && len(certs) > 0 {
		return "it is in DER: openssl x509 -inform der -in " + word(f.Given) + " -out " + word(to)
	}
	_, errPKCS8 := x509.ParsePKCS8PrivateKey(content)
	_, errPKCS1 := x509.ParsePKCS1PrivateKey(content)
	_, errEC := x509.ParseECPrivateKey(content)
	if errPKCS8 == nil || errPKCS1 == nil || errEC == nil {
		return "it is in DER: openssl pkey -inform der -in " + word(f.Given) + " -out " + word(to)
	}
	return ""
}

// client adds a client certificate and its key, and returns their names; they are
// the same when one file holds both.
func (b *builder) client(given profiles.ClientCert) []string {
	key := given.Key
	if key.Path == "" {
		key = given.Cert
	}
	c, k := b.cert(given.Cert), b.cert(key)
	// The file of the certificate may hold a key of its own.
	c.secret, k.secret = c.secret || slices.ContainsFunc(pemBlocks(c.content), isKey), true
	if !c.broken && !k.broken && !c.unread && !k.unread {
		b.judgePair(given.Cert, key, c, k)
	}
	return []string{c.name, k.name}
}

// judgePair finds what is wrong with a client certificate and its key, as containerd loads
// them.
func (b *builder) judgePair(certFile, keyFile profiles.LocalFile, c, k *cert) {
	if slices.ContainsFunc(pemBlocks(k.content), func(b *pem.Block) bool { return isKey(b) && encrypted(b) }) {
		b.faults.Errorf(keyFile.Origin, "openssl pkey -in "+word(keyFile.Given)+" -out "+word(strings.TrimSuffix(keyFile.Given, path.Ext(keyFile.Given))+"-plain.pem"),
			"the private key in %s is encrypted, and containerd has no password for it", keyFile.Given)
		return
	}
	pair, err := tls.X509KeyPair(c.content, k.content)
	if err != nil {
		hint, at := "want PEM files that belong together", keyFile.Origin
		for _, f := range []struct {
			profiles.LocalFile
			content []byte
		}{{certFile, c.content}, {keyFile, k.content}} {
			if der := fromDER(f.LocalFile, f.content); der != "" {
				hint, at = der, f.Origin
				break
			}
		}
		b.faults.Errorf(at, hint, "client certificate %s with key %s: %s", certFile.Given, keyFile.Given, strings.TrimPrefix(err.Error(), "tls: "))
		return
	}
	if pair.Leaf != nil {
		b.judgeTime(certFile, []*x509.Certificate{pair.Leaf})
	}
}

// cert reads a file once, however often it is named.
func (b *builder) cert(f profiles.LocalFile) *cert {
	for _, c := range b.certs {
		if c.file.Path == f.Path {
			return c
		}
	}
	c := &cert{file: f, name: b.certName(f)}
	content, err := b.read.File(f)
	if err != nil {
		c.broken = true
		b.faults.Errorf(f.Origin, "", "%v", err)
	}
	placeholder, _ := Placeholders{}.File(f)
	c.content, c.unread = content, bytes.Equal(content, placeholder)
	b.certs = append(b.certs, c)
	return c
}

// certName is the file's own name with the extension .pem: *.crt, *.cert and *.key are
// what containerd takes for certificates when it cannot read hosts.toml.
func (b *builder) certName(f profiles.LocalFile) string {
	base := path.Base(f.Path)
	base = strings.TrimSuffix(base, path.Ext(base))
	base = strings.Map(func(r rune) rune {
		if strings.ContainsRune("-_.", r) || '0' <= r && r <= '9' || 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' {
			return r
		}
		return '_'
	}, base)
	base = cmp.Or(strings.TrimLeft(base, "."), "cert")
	for i := 1; ; i++ {
		name := base + ".pem"
		if i > 1 {
			name = base + "-" + strconv.Itoa(i) + ".pem"
		}
		if !slices.ContainsFunc(b.certs, func(c *cert) bool { return c.name == name }) {
			return name
		}
	}
}
