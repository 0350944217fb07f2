package registry

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeprep/nodeprep/profiles"
)

// cert is a file beside hosts.toml, which names it without a folder: containerd joins
// relative paths to the folder of the hosts.toml that it reads.
type cert struct {
	name    string
	file    profiles.LocalFile
	content []byte
	secret  bool // holds a private key
	broken  bool
}

// ca adds a bundle of CA certificates and returns its name. One that containerd
// cannot load makes every pull from the registry fail, so it is tried here.
func (b *builder) ca(f profiles.LocalFile) string {
	c := b.cert(f)
	if !c.broken && !b.placeholders && !x509.NewCertPool().AppendCertsFromPEM(c.content) {
		b.faults.Errorf(f.Origin, "want one or more PEM blocks of type CERTIFICATE", "no certificate in %s", f.Given)
	}
	return c.name
}

// client adds a client certificate and its key, and returns their names; they are
// the same when one file holds both.
func (b *builder) client(given profiles.ClientCert) []string {
	key := given.Key
	if key.Path == "" {
		key = given.Cert
	}
	c, k := b.cert(given.Cert), b.cert(key)
	k.secret = true
	if !c.broken && !k.broken && !b.placeholders {
		if _, err := tls.X509KeyPair(c.content, k.content); err != nil {
			b.faults.Errorf(key.Origin, "want PEM files that belong together", "client certificate %s with key %s: %s", given.Cert.Given, key.Given, strings.TrimPrefix(err.Error(), "tls: "))
		}
	}
	return []string{c.name, k.name}
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
	c.content = content
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
