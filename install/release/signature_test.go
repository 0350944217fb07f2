package release

import (
	"bytes"
	"crypto"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
	"github.com/google/go-cmp/cmp"
)

// born is when the keys of these tests are made.
var born = time.Date(2020, 1, 2, 3, 4, 5, 0, time.UTC)

func pgp(at time.Time) *packet.Config {
	return &packet.Config{Time: func() time.Time { return at }, Algorithm: packet.PubKeyAlgoEdDSA, DefaultHash: crypto.SHA512}
}

// signer makes a key that lives for ever.
func signer(t *testing.T, name string) *openpgp.Entity {
	t.Helper()
	e, err := openpgp.NewEntity(name, "", strings.ToLower(name)+"@example.com", pgp(born))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// expire lets a key live for some seconds.
func expire(t *testing.T, e *openpgp.Entity, seconds uint32) {
	t.Helper()
	for name, id := range e.Identities {
		id.SelfSignature.KeyLifetimeSecs = &seconds
		if err := id.SelfSignature.SignUserId(name, e.PrimaryKey, e.PrivateKey, pgp(born)); err != nil {
			t.Fatal(err)
		}
	}
}

// keyring reads the public keys as a keyring file has them.
func keyring(t *testing.T, keys ...*openpgp.Entity) *Keyring {
	t.Helper()
	var b bytes.Buffer
	b.WriteString("Keys of people.\n\n")
	for _, e := range keys {
		b.WriteString("Somebody\n")
		w, err := armor.Encode(&b, openpgp.PublicKeyType, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(e.Serialize(w), w.Close()); err != nil {
			t.Fatal(err)
		}
		b.WriteString("\n\n")
	}
	k, err := ReadKeyring(&b)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func detached(t *testing.T, e *openpgp.Entity, at time.Time, content string) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := openpgp.ArmoredDetachSign(&b, e, strings.NewReader(content), pgp(at)); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func clearSigned(t *testing.T, e *openpgp.Entity, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := clearsign.Encode(&b, e.PrivateKey, pgp(born.Add(time.Hour)))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestEmbeddedKeyring(t *testing.T) {
	k, err := RuncKeyring()
	if err != nil {
		t.Fatal(err)
	}
	// Those of runc's maintainers; each stands also in words above its block.
	want := []string{"C9C370B246B09F6DBCFC744C34401015D1D2D386", "C2428CD75720FACDCF76B6EA17DE5ECB75A1100E", "C020EA876CE4E06C7AB95AEF49524C6F9F638F1A"}
	if d := cmp.Diff(want, k.Fingerprints()); d != "" {
		t.Error(d)
	}
	words := strings.ReplaceAll(runcKeys, " ", "")
	for i, f := range want {
		if strings.Count(words, f) != 1 {
			t.Errorf("%s is not said above its block", f)
		}
		if e := k.keys[i]; e.PrivateKey != nil || e.PrimaryIdentity() == nil {
			t.Errorf("%s: not a public key with a name", f)
		}
	}
}

func TestKeyringsThatAreNone(t *testing.T) {
	private := &bytes.Buffer{}
	w, err := armor.Encode(private, openpgp.PrivateKeyType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(signer(t, "Jo").SerializePrivate(w, pgp(born)), w.Close()); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"a private key": private.String(),
		"a key cut short": "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmDMEXQxvLxYJKwYBBAHaRw8BAQdArRQoZs9YzYtQIiPA1qdvUT8Q0wbPZyRV65Tz\n" +
			"-----END PGP PUBLIC KEY BLOCK-----\n",
	} {
		if _, err := ReadKeyring(strings.NewReader(text)); err == nil {
			t.Errorf("%s was read", name)
		}
	}
}

func TestDetachedSignatures(t *testing.T) {
	const content = "a program\n"
	day := 24 * time.Hour
	jo, gone, stranger, revoked, lost := signer(t, "Jo"), signer(t, "Gone"), signer(t, "Stranger"), signer(t, "Revoked"), signer(t, "Lost")
	good := detached(t, jo, born.Add(day), content)
	inTime, late := detached(t, gone, born.Add(time.Hour), content), detached(t, gone, born.Add(2*day), content)
	early, afterwards := detached(t, revoked, born.Add(day), content), detached(t, revoked, born.Add(31*day), content)
	stolen := detached(t, lost, born.Add(day), content)
	expire(t, gone, uint32(day/time.Second))
	if err := revoked.RevokeKey(packet.KeyRetired, "", pgp(born.Add(30*day))); err != nil {
		t.Fatal(err)
	}
	if err := lost.RevokeKey(packet.KeyCompromised, "", pgp(born.Add(30*day))); err != nil {
		t.Fatal(err)
	}
	k := keyring(t, jo, gone, revoked, lost)
	for _, c := range []struct {
		name      string
		signature []byte
		content   string
		signer    string // of a good one
		want      string // of a bad one
		unknown   bool
	}{
		{name: "good", signature: good, content: content, signer: "Jo <jo@example.com>"},
		{name: "before the key expired", signature: inTime, content: content, signer: "Gone <gone@example.com>"},
		{name: "after the key expired", signature: late, content: content, want: "key expired"},
		{name: "before the key was retired", signature: early, content: content, signer: "Revoked <revoked@example.com>"},
		{name: "after the key was retired", signature: afterwards, content: content, want: "revoked"},
		{name: "by a key that others have", signature: stolen, content: content, want: "revoked"},
		{name: "of another file", signature: good, content: content + "\x00", want: "invalid signature"},
		{name: "of nothing", signature: good, content: "", want: "invalid signature"},
		{name: "by a stranger", signature: detached(t, stranger, born, content), content: content, unknown: true},
		{name: "by a stranger and Jo", signature: both(t, detached(t, stranger, born, content), good), content: content, signer: "Jo <jo@example.com>"},
		{name: "cut short", signature: good[:len(good)/2], content: content, want: "bad signature"},
		{name: "no signature", signature: []byte("404 not found\n"), content: content, want: "it is no armored OpenPGP signature"},
		{name: "a key", signature: []byte(runcKeys[strings.Index(runcKeys, "-----"):]), content: content, want: "it is a pgp public key block"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := k.Detached("usb/runc.amd64.asc", c.signature, "usb/runc.amd64", strings.NewReader(c.content))
			_, unknown := errors.AsType[*UnknownKeyError](err)
			_, bad := errors.AsType[*SignatureError](err)
			switch {
			case c.signer != "":
				if err != nil || s.Signer != c.signer || len(s.Fingerprint) != 40 || s.File != "usb/runc.amd64.asc" {
					t.Errorf("%+v, %v", s, err)
				}
			case unknown != c.unknown || bad == c.unknown || s != nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), "usb/runc.amd64.asc"):
				t.Errorf("%+v, %v", s, err)
			}
		})
	}
	if _, err := k.Detached("s", good, "f", iotest.ErrReader(errors.New("the stick was pulled"))); err == nil || !strings.Contains(err.Error(), "the stick was pulled") {
		t.Errorf("a file that cannot be read: %v", err)
	} else if _, bad := errors.AsType[*SignatureError](err); bad {
		t.Errorf("it is not the signature's fault: %v", err)
	}
}

// both puts two armored signatures into one.
func both(t *testing.T, list ...[]byte) []byte {
	t.Helper()
	var raw, b bytes.Buffer
	for _, s := range list {
		block, err := armor.Decode(bytes.NewReader(s))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := raw.ReadFrom(block.Body); err != nil {
			t.Fatal(err)
		}
	}
	w, err := armor.Encode(&b, openpgp.SignatureType, nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(raw.Bytes()); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestWeakHashesDoNotCount(t *testing.T) {
	jo := signer(t, "Jo")
	for hash, counts := range map[crypto.Hash]bool{crypto.SHA224: false, crypto.SHA256: true} {
		sig := &packet.Signature{Version: 4, SigType: packet.SigTypeBinary, PubKeyAlgo: jo.PrimaryKey.PubKeyAlgo, Hash: hash, CreationTime: born, IssuerKeyId: &jo.PrimaryKey.KeyId}
		h, err := sig.PrepareSign(pgp(born))
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(h, "x")
		if err := sig.Sign(h, jo.PrivateKey, pgp(born)); err != nil {
			t.Fatal(err)
		}
		var b bytes.Buffer
		w, err := armor.Encode(&b, openpgp.SignatureType, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(sig.Serialize(w), w.Close()); err != nil {
			t.Fatal(err)
		}
		if s, err := keyring(t, jo).Detached("s", b.Bytes(), "f", strings.NewReader("x")); (err == nil) != counts {
			t.Errorf("%s: %+v, %v", hash, s, err)
		}
	}
}

func TestClearSignedTexts(t *testing.T) {
	jo := signer(t, "Jo")
	k := keyring(t, jo)
	text := digestA + "  runc.amd64\n- dashed\n"
	signed := clearSigned(t, jo, text)
	got, s, err := k.ClearSigned("runc.sha256sum", signed)
	if err != nil || string(got) != text || s.Signer != "Jo <jo@example.com>" {
		t.Errorf("%q %+v %v", got, s, err)
	}
	// What stands around it was not signed.
	framed := append([]byte(digestB+"  runc.amd64\n\n"), signed...)
	framed = append(framed, "\n"+digestB+"  runc.amd64\n"...)
	if got, _, err = k.ClearSigned("runc.sha256sum", framed); err != nil || string(got) != text {
		t.Errorf("framed: %q %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"another digest": bytes.Replace(signed, []byte(digestA), []byte(digestB), 1),
		"a line more":    bytes.Replace(signed, []byte(digestA), []byte(digestB+"  runc.arm64\n"+digestA), 1),
		"cut short":      signed[:len(signed)-80],
		"no end":         bytes.Replace(signed, []byte("-----END PGP SIGNATURE-----"), nil, 1),
	} {
		got, s, err := k.ClearSigned("runc.sha256sum", bad)
		if _, ok := errors.AsType[*SignatureError](err); !ok || got != nil || s != nil {
			t.Errorf("%s: %q %+v %v", name, got, s, err)
		}
	}
	got, s, err = keyring(t, signer(t, "Another")).ClearSigned("runc.sha256sum", signed)
	if _, ok := errors.AsType[*UnknownKeyError](err); !ok || string(got) != text || s != nil {
		t.Errorf("a stranger's: %q %+v %v", got, s, err)
	}
}
