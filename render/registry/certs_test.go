package registry

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io/fs"
	"math/big"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/profiles"
)

// made are certificates and keys for tests, that sign themselves.
type made struct {
	t *testing.T
}

var noon = time.Date(2026, 6, 15, 12, 0, 0, 0, time.UTC)

const year = 365 * 24 * time.Hour

// cert is a certificate and its key, both in DER. It signs itself.
func (m made) cert(name string, from, to time.Time, change func(*x509.Certificate)) (der []byte, key *ecdsa.PrivateKey) {
	m.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: from, NotAfter: to,
		BasicConstraintsValid: true, IsCA: true, KeyUsage: x509.KeyUsageCertSign,
	}
	if change != nil {
		change(template)
	}
	der, err = x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		m.t.Fatal(err)
	}
	return der, key
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

func pkcs8(t *testing.T, key any) []byte {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// folder is a Reader of files by their names, at noon.
type folder map[string][]byte

func (f folder) File(l profiles.LocalFile) ([]byte, error) {
	b, ok := f[path.Base(l.Path)]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: l.Path, Err: fs.ErrNotExist}
	}
	return b, nil
}
func (folder) Secret(s profiles.Secret) (string, error) { return s.Value, nil }
func (folder) Now() time.Time                           { return noon }

// What is wrong with the files of a CA and of clients, found before they are anywhere.
func TestCertificates(t *testing.T) {
	m := made{t: t}
	good, goodKey := m.cert("good", noon.Add(-year), noon.Add(year), nil)
	_, otherKey := m.cert("other", noon.Add(-year), noon.Add(year), nil)
	old, oldKey := m.cert("old", noon.Add(-2*year), noon.Add(-year), nil)
	ending, endingKey := m.cert("ending", noon.Add(-year), noon.Add(29*24*time.Hour), nil)
	lasting, _ := m.cert("lasting", noon.Add(-year), noon.Add(31*24*time.Hour), nil)
	coming, comingKey := m.cert("coming", noon.Add(24*time.Hour), noon.Add(year), nil)
	leaf, leafKey := m.cert("leaf", noon.Add(-year), noon.Add(year), func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage = false, x509.KeyUsageDigitalSignature
	})
	unsigning, _ := m.cert("unsigning", noon.Add(-year), noon.Add(year), func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature })
	plain, _ := m.cert("plain", noon.Add(-year), noon.Add(year), func(c *x509.Certificate) { c.BasicConstraintsValid, c.IsCA, c.KeyUsage = false, false, 0 })
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	ec, err := x509.MarshalECPrivateKey(goodKey)
	if err != nil {
		t.Fatal(err)
	}

	crt := func(der ...[]byte) []byte {
		var out [][]byte
		for _, d := range der {
			out = append(out, block("CERTIFICATE", d))
		}
		return bytes.Join(out, []byte("# a comment\n"))
	}
	key := func(k any) []byte { return block("PRIVATE KEY", pkcs8(t, k)) }
	oldStyle := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Headers: map[string]string{"Proc-Type": "4,ENCRYPTED", "DEK-Info": "AES-256-CBC,00"}, Bytes: []byte("x")})
	withHeaders := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Headers: map[string]string{"A": "b"}, Bytes: good})
	both := append(crt(good), key(goodKey)...)

	for _, c := range []struct {
		name     string
		ca       []byte // of ca.crt; nil for a client instead
		cert     []byte // of c.crt
		key      []byte // of c.key; nil for one file with both
		problem  string // an error's message and hint; "" for none
		warnings []string
	}{
		{name: "CA", ca: crt(good)},
		{name: "CA with the comments of a bundle", ca: append([]byte("# Some CA\n"), crt(good)...)},
		{name: "CA of several", ca: crt(good, lasting)},
		{name: "CA without constraints", ca: crt(plain), warnings: []string{"the certificate of plain in ca.crt is no CA"}},
		{name: "CA file with a private key", ca: both, problem: "there is a private key in ca.crt, and everybody may read a CA (give the certificates in a file of their own)"},
		{name: "CA file that is a key", ca: key(goodKey), problem: "there is a private key in ca.crt"},
		{name: "CA file with an encrypted key", ca: append(crt(good), block("ENCRYPTED PRIVATE KEY", []byte("x"))...), problem: "there is a private key in ca.crt"},
		{name: "CA file with a key of EC", ca: append(crt(good), block("EC PRIVATE KEY", ec)...), problem: "there is a private key in ca.crt"},
		{name: "CA in DER", ca: good, problem: "no certificate in ca.crt (it is in DER: openssl x509 -inform der -in ca.crt -out ca.pem)"},
		{name: "CA of no certificate", ca: []byte("junk"), problem: "no certificate in ca.crt (want one or more PEM blocks of type CERTIFICATE)"},
		{name: "CA that is empty", ca: []byte{}, problem: "no certificate in ca.crt: it is empty"},
		{name: "CA that is a request", ca: block("CERTIFICATE REQUEST", []byte("x")), problem: "no certificate in ca.crt, but CERTIFICATE REQUEST"},
		{name: "CA in PKCS 7", ca: block("PKCS7", []byte("x")), problem: "no certificate in ca.crt, but PKCS7"},
		{name: "CA cut short", ca: crt(good)[:200], problem: "no certificate in ca.crt"},
		{name: "CA with a block that is broken", ca: append(crt(good), block("CERTIFICATE", []byte("x"))...), warnings: []string{"PEM block 2 of ca.crt counts for nothing: malformed certificate"}},
		{name: "CA with headers in a block", ca: append(crt(good), withHeaders...), warnings: []string{"PEM block 2 of ca.crt counts for nothing, since it has headers"}},
		{name: "CA with headers alone", ca: withHeaders, problem: "no certificate in ca.crt", warnings: []string{"since it has headers"}},
		{name: "CA that is none", ca: crt(leaf), warnings: []string{"the certificate of leaf in ca.crt is no CA: it counts for a server that has this very certificate, and no other"}},
		{name: "CA that may not sign", ca: crt(unsigning), warnings: []string{"the certificate of unsigning in ca.crt is no CA"}},
		{name: "CA that has ended", ca: crt(old), problem: "the certificate of old in ca.crt expired on 2025-06-15 (renew it)"},
		{name: "CA that has ended beside another", ca: crt(old, good), warnings: []string{"the certificate of old in ca.crt expired on 2025-06-15"}},
		{name: "CA that ends soon", ca: crt(ending), warnings: []string{"the certificate of ending in ca.crt expires on 2026-07-14"}},
		{name: "CA that ends later", ca: crt(lasting)},
		{name: "CA of tomorrow", ca: crt(coming), warnings: []string{"the certificate of coming in ca.crt is not valid before 2026-06-16"}},

		{name: "client", cert: crt(leaf), key: key(leafKey)},
		{name: "client with its chain", cert: crt(leaf, good), key: key(leafKey)},
		{name: "client and key in one", cert: append(crt(leaf), key(leafKey)...)},
		{name: "client's key before it", cert: append(key(leafKey), crt(leaf)...)},
		{name: "client's key of EC", cert: crt(good), key: block("EC PRIVATE KEY", ec)},
		{name: "client with another's key", cert: crt(good), key: key(otherKey), problem: "client certificate c.crt with key c.key: private key does not match public key"},
		{name: "client with a key of another kind", cert: crt(good), key: key(rsaKey), problem: "client certificate c.crt with key c.key: private key type does not match public key type"},
		{name: "client and key the wrong way round", cert: key(goodKey), key: crt(good), problem: "PEM inputs may have been switched"},
		{name: "client with its certificate as key", cert: crt(good), key: crt(good), problem: "found a certificate rather than a key"},
		{name: "client without its key", cert: crt(good), problem: "client certificate c.crt with key c.crt: "},
		{name: "client in DER", cert: good, key: key(goodKey), problem: "(it is in DER: openssl x509 -inform der -in c.crt -out c.pem)"},
		{name: "client's key in DER", cert: crt(good), key: pkcs8(t, goodKey), problem: "(it is in DER: openssl pkey -inform der -in c.key -out c.pem)"},
		{name: "client's key encrypted", cert: crt(good), key: block("ENCRYPTED PRIVATE KEY", []byte("x")), problem: "the private key in c.key is encrypted, and containerd has no password for it (openssl pkey -in c.key -out c-plain.pem)"},
		{name: "client's key encrypted as OpenSSL did", cert: crt(good), key: oldStyle, problem: "the private key in c.key is encrypted"},
		{name: "client that has ended", cert: crt(old), key: key(oldKey), problem: "the certificate of old in c.crt expired on 2025-06-15 (renew it)"},
		{name: "client that ends soon", cert: crt(ending), key: key(endingKey), warnings: []string{"the certificate of ending in c.crt expires on 2026-07-14"}},
		{name: "client of tomorrow", cert: crt(coming), key: key(comingKey), warnings: []string{"the certificate of coming in c.crt is not valid before 2026-06-16"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			mirror := profiles.Endpoint{URL: "https://m"}
			files := folder{}
			if c.ca != nil {
				files["ca.crt"], mirror.CA = c.ca, []profiles.LocalFile{local("ca.crt")}
			} else {
				pair := profiles.ClientCert{Cert: local("c.crt")}
				files["c.crt"] = c.cert
				if c.key != nil {
					files["c.key"], pair.Key = c.key, local("c.key")
				}
				mirror.Client = []profiles.ClientCert{pair}
			}
			rendered, faults := Files(spec("2.4.2", profiles.Registry{Host: "quay.io", Mirrors: []profiles.Endpoint{mirror}}), files)
			problems := faults.Errors()
			switch {
			case c.problem == "" && len(problems) > 0, c.problem != "" && len(problems) != 1:
				t.Errorf("found %v, want %q", problems, c.problem)
			case c.problem != "" && !strings.Contains(problems[0].String(), c.problem):
				t.Errorf("found %s, want %q", problems[0], c.problem)
			}
			warnings := faults.Warnings()
			if len(warnings) != len(c.warnings) {
				t.Fatalf("warnings %v, want %q", warnings, c.warnings)
			}
			for i, want := range c.warnings {
				if !strings.Contains(warnings[i].Message, want) {
					t.Errorf("warning %s, want %q", warnings[i], want)
				}
			}
			// Whoever may not read it cannot: a key is its owner's alone, wherever it stands.
			for _, f := range rendered {
				key := bytes.Contains(f.Content, []byte("PRIVATE KEY"))
				if key && (f.Mode != 0o600 || !f.Secret) && !faults.HasErrors() {
					t.Errorf("%s has a key, mode %v, secret %v", f.Path, f.Mode, f.Secret)
				}
			}
		})
	}
}

// A certificate's file with a key in it, beside another's key, is nobody else's to read.
func TestKeyInTheFileOfACertificate(t *testing.T) {
	m := made{t: t}
	der, k := m.cert("x", noon.Add(-year), noon.Add(year), nil)
	key := block("PRIVATE KEY", pkcs8(t, k))
	files, faults := Files(spec("2.4.2", profiles.Registry{Host: "quay.io", Server: &profiles.Endpoint{
		Client: []profiles.ClientCert{{Cert: local("c.crt"), Key: local("c.key")}},
	}}), folder{"c.crt": append(block("CERTIFICATE", der), key...), "c.key": key})
	if len(faults) > 0 || len(files) != 3 {
		t.Fatal(files, faults)
	}
	for _, f := range files[1:] {
		if f.Mode != 0o600 || !f.Secret {
			t.Errorf("%s: mode %v, secret %v", f.Path, f.Mode, f.Secret)
		}
	}
}

// Without a clock nothing is said of when certificates are valid.
func TestNoClock(t *testing.T) {
	m := made{t: t}
	der, _ := m.cert("old", noon.Add(-2*year), noon.Add(-year), nil)
	files := folder{"ca.crt": block("CERTIFICATE", der)}
	_, faults := Files(spec("2.4.2", profiles.Registry{Host: "quay.io", Server: &profiles.Endpoint{CA: []profiles.LocalFile{local("ca.crt")}}}), struct{ Reader }{files})
	if len(faults) > 0 {
		t.Error(faults)
	}
}
