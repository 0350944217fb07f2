package probe

import (
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"sync"
	"unicode"
	"unicode/utf8"
)

// What of a text is shown at most, in letters: of one that a server sent, and of all of a step.
const (
	mostOfTheirs = 160
	mostOfStep   = 1200
)

// veil keeps secrets out of what servers are quoted with. Texts of this program's own do not
// go through it: a header may well have a host's name for its value.
type veil struct {
	mu      sync.Mutex
	secrets []string // in lower case
}

// hide adds secrets, with the forms in which they travel.
func (v *veil) hide(values ...string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, value := range values {
		parts := append([]string{value}, strings.Fields(value)...)
		for _, p := range slices.Clone(parts) {
			// Basic's, of a header that is configured.
			if text, err := base64.StdEncoding.DecodeString(p); err == nil && utf8.Valid(text) {
				parts = append(parts, string(text))
				if _, password, ok := strings.Cut(string(text), ":"); ok {
					parts = append(parts, password)
				}
			}
		}
		for _, p := range parts {
			b := []byte(p)
			forms := []string{p, url.QueryEscape(p), url.PathEscape(p), hex.EncodeToString(b), base64.RawStdEncoding.EncodeToString(b), base64.RawURLEncoding.EncodeToString(b)}
			for _, f := range forms {
				// Shorter ones are no secrets, and words that are in everything.
				if f = lower(f); len(f) >= 4 && f != "basic" && f != "bearer" && !slices.Contains(v.secrets, f) {
					v.secrets = append(v.secrets, f)
				}
			}
		}
	}
}

// over is a server's text as it may be shown: without secrets, in one line, and short.
func (v *veil) over(text string) string {
	if len(text) > 4096 {
		return fmt.Sprintf("(a text of %d bytes)", len(text))
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, unescape := range []func(string) (string, error){url.PathUnescape, url.QueryUnescape} {
		if plain, err := unescape(text); err == nil && plain != text && v.holds(plain) {
			return masked
		}
	}
	hidden := make([]bool, len(text))
	v.mark(hidden, text)
	v.markEncoded(hidden, text)
	var out strings.Builder
	for i := range len(text) {
		switch {
		case !hidden[i]:
			out.WriteByte(text[i])
		case i == 0 || !hidden[i-1]:
			out.WriteString(masked)
		}
	}
	return shortened(printable(out.String()), mostOfTheirs)
}

const masked = "******"

func (v *veil) holds(text string) bool {
	text = lower(text)
	return slices.ContainsFunc(v.secrets, func(s string) bool { return strings.Contains(text, s) })
}

// mark finds secrets as they are.
func (v *veil) mark(hidden []bool, text string) {
	text = lower(text)
	for _, secret := range v.secrets {
		for from := 0; ; {
			i := strings.Index(text[from:], secret)
			if i < 0 {
				break
			}
			for j := range len(secret) {
				hidden[from+i+j] = true
			}
			from += i + 1
		}
	}
}

// markEncoded finds words that have a secret in base64, with whatever before and behind it.
func (v *veil) markEncoded(hidden []bool, text string) {
	for _, c := range []struct {
		more     string // beside letters and digits
		encoding *base64.Encoding
	}{{"+/", base64.RawStdEncoding}, {"-_", base64.RawURLEncoding}, {"", base64.RawStdEncoding}} {
		inside := func(b byte) bool {
			return '0' <= b && b <= '9' || 'a' <= b && b <= 'z' || 'A' <= b && b <= 'Z' || strings.IndexByte(c.more, b) >= 0
		}
		for from := 0; from < len(text); from++ {
			to := from
			for to < len(text) && inside(text[to]) {
				to++
			}
			for cut := range min(4, to-from) {
				word := text[from+cut : to]
				if len(word)%4 == 1 {
					word = word[:len(word)-1]
				}
				if plain, err := c.encoding.DecodeString(word); err == nil && v.holds(string(plain)) {
					for i := from; i < to; i++ {
						hidden[i] = true
					}
				}
			}
			from = to
		}
	}
}

// lower keeps a text's length, which strings.ToLower need not.
func lower(text string) string {
	b := []byte(text)
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			b[i] = c + 'a' - 'A'
		}
	}
	return string(b)
}

// printable takes out what a terminal would obey.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, text)
}

func shortened(text string, most int) string {
	if r := []rune(text); len(r) > most {
		return string(r[:most]) + "..."
	}
	return text
}

// token is a word of a protocol: what is none is not repeated.
func token(text string) string {
	return strings.Map(func(r rune) rune {
		if r < 0x80 && (unicode.IsLetter(r) || unicode.IsDigit(r) || strings.ContainsRune(":/,._*+@~% -", r)) {
			return r
		}
		return '?'
	}, text)
}
