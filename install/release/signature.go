package release

import (
	"bufio"
	"bytes"
	"crypto"
	_ "embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/ProtonMail/go-crypto/openpgp"
	"github.com/ProtonMail/go-crypto/openpgp/armor"
	"github.com/ProtonMail/go-crypto/openpgp/clearsign"
	pgperrors "github.com/ProtonMail/go-crypto/openpgp/errors"
	"github.com/ProtonMail/go-crypto/openpgp/packet"
)

// Signature is whose signature of a release file was verified.
type Signature struct {
	File        string `json:"file" yaml:"file"`               // the detached signature, runc.amd64.asc, or the signed checksum file
	Signer      string `json:"signer" yaml:"signer"`           // the key's user ID
	Fingerprint string `json:"fingerprint" yaml:"fingerprint"` // of the primary key, upper-case hex
}

// runcKeys are those of runc's releases; the file says where they are from.
//
//go:embed keyring/runc.asc
var runcKeys string

// Keyring is a set of OpenPGP keys whose signatures count.
type Keyring struct{ keys openpgp.EntityList }

// RuncKeyring is the keyring of runc's releases.
func RuncKeyring() (*Keyring, error) { return ReadKeyring(strings.NewReader(runcKeys)) }

// ReadKeyring reads armored public keys (RFC 9580, section 6.2), block after block; text
// between them is passed over.
func ReadKeyring(r io.Reader) (*Keyring, error) {
	k := &Keyring{}
	// armor.Decode goes on with a bufio.Reader where it left it.
	in := bufio.NewReader(r)
	for {
		block, err := armor.Decode(in)
		if errors.Is(err, io.EOF) {
			return k, nil
		}
		if err != nil {
			return nil, fmt.Errorf("read keyring: %w", err)
		}
		if block.Type != openpgp.PublicKeyType {
			return nil, fmt.Errorf("read keyring: found a %s, want public keys alone", strings.ToLower(block.Type))
		}
		keys, err := openpgp.ReadKeyRing(block.Body)
		if err != nil {
			return nil, fmt.Errorf("read keyring: %w", err)
		}
		k.keys = append(k.keys, keys...)
	}
}

// Fingerprints are those of the primary keys, upper-case hex, in the keyring's order.
func (k *Keyring) Fingerprints() []string {
	var out []string
	for _, e := range k.keys {
		out = append(out, fingerprintOf(e))
	}
	return out
}

func fingerprintOf(e *openpgp.Entity) string {
	return strings.ToUpper(hex.EncodeToString(e.PrimaryKey.Fingerprint))
}

// SignatureError is a signature that is not good.
type SignatureError struct {
	File   string // the signature, or the signed text
	Signed string // what it should be of; "" where the text is in File itself
	Err    error
}

// Error names both files.
func (e *SignatureError) Error() string {
	what := e.File
	if e.Signed != "" {
		what = e.Signed + " by " + e.File
	}
	return fmt.Sprintf("verify %s: bad signature: %v; do not use the file", what, e.Err)
}

// Unwrap is what is wrong with it.
func (e *SignatureError) Unwrap() error { return e.Err }

// UnknownKeyError is a signature by a key that is not in the keyring: it says nothing.
type UnknownKeyError struct {
	File string
	Keys []string // IDs of the keys, hex
}

// Error names the keys.
func (e *UnknownKeyError) Error() string {
	return fmt.Sprintf("verify %s: signed by a key that is not known here (%s)", e.File, strings.Join(e.Keys, ", "))
}

// strongHashes are those whose signatures count: nobody can make two files for one.
func strongHashes() []crypto.Hash {
	return []crypto.Hash{crypto.SHA256, crypto.SHA384, crypto.SHA512, crypto.SHA3_256, crypto.SHA3_512}
}

// maxSignature bounds what is read as a signature: real ones have a few hundred bytes.
const maxSignature = 64 << 10

// Detached verifies an armored detached signature (RFC 9580, section 10.4) of what signed
// reads. A key that has expired since is good for what it signed before, as gpg has it.
//
// Errors: *SignatureError, *UnknownKeyError, those of reading.
func (k *Keyring) Detached(name string, signature []byte, signedName string, signed io.Reader) (*Signature, error) {
	bad := func(err error) error { return &SignatureError{File: name, Signed: signedName, Err: err} }
	block, err := armor.Decode(bytes.NewReader(signature))
	if err != nil {
		return nil, bad(errors.New("it is no armored OpenPGP signature"))
	}
	if block.Type != openpgp.SignatureType {
		return nil, bad(fmt.Errorf("it is a %s", strings.ToLower(block.Type)))
	}
	return k.verify(name, block.Body, signed, bad)
}

// ClearSigned verifies a text with its signature (RFC 9580, section 7) and returns the
// text, without anything that stands around it. The text is returned also with an
// *UnknownKeyError.
//
// Errors: *SignatureError, *UnknownKeyError.
func (k *Keyring) ClearSigned(name string, data []byte) (text []byte, s *Signature, err error) {
	bad := func(err error) error { return &SignatureError{File: name, Err: err} }
	block, _ := clearsign.Decode(data)
	if block == nil {
		return nil, nil, bad(errors.New("the signed text is damaged"))
	}
	s, err = k.verify(name, block.ArmoredSignature.Body, bytes.NewReader(block.Bytes), bad)
	if _, unknown := errors.AsType[*UnknownKeyError](err); err != nil && !unknown {
		return nil, nil, err
	}
	return block.Plaintext, s, err
}

// isClearSigned says whether a text claims to be signed.
func isClearSigned(data []byte) bool {
	return bytes.Contains(data, []byte("-----BEGIN PGP SIGNED MESSAGE-----"))
}

func (k *Keyring) verify(name string, body, signed io.Reader, bad func(error) error) (*Signature, error) {
	raw, err := io.ReadAll(io.LimitReader(body, maxSignature))
	if err != nil {
		return nil, bad(err)
	}
	made, issuers, err := k.made(raw)
	if err != nil {
		return nil, bad(err)
	}
	if made.IsZero() {
		return nil, &UnknownKeyError{File: name, Keys: issuers}
	}
	reading := &readErrors{signed}
	config := &packet.Config{Time: func() time.Time { return made }}
	_, signer, err := openpgp.VerifyDetachedSignatureAndHash(k.keys, reading, bytes.NewReader(raw), strongHashes(), config)
	if own, ok := errors.AsType[outside](err); ok {
		return nil, fmt.Errorf("verify %s: %w", name, own.error)
	}
	if err != nil {
		return nil, bad(err)
	}
	s := &Signature{File: name, Fingerprint: fingerprintOf(signer), Signer: fingerprintOf(signer)}
	if id := signer.PrimaryIdentity(); id != nil {
		s.Signer = id.Name
	}
	return s, nil
}

// made is when the first signature by a known key was made, the zero time where there is
// none; issuers are the keys that are not known.
func (k *Keyring) made(raw []byte) (at time.Time, issuers []string, err error) {
	packets := packet.NewReader(bytes.NewReader(raw))
	for {
		p, err := packets.Next()
		if errors.Is(err, io.EOF) {
			if len(issuers) == 0 {
				return at, nil, errors.New("there is none")
			}
			return at, issuers, nil
		}
		if err != nil {
			return at, nil, err
		}
		sig, ok := p.(*packet.Signature)
		if !ok || sig.IssuerKeyId == nil {
			return at, nil, pgperrors.StructuralError("it does not say whose it is")
		}
		if len(k.keys.KeysByIdUsage(*sig.IssuerKeyId, packet.KeyFlagSign)) > 0 {
			return sig.CreationTime, nil, nil
		}
		issuers = append(issuers, fmt.Sprintf("%016X", *sig.IssuerKeyId))
	}
}
