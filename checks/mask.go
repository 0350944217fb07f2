package checks

import (
	"regexp"
	"strings"

	"github.com/nodeprep/nodeprep/profiles"
)

const masked = "(masked)"

// masker takes secrets out of what checks say. What they quote comes from files of others:
// a password in a URL, a token on a command line or in a drop-in is not theirs to show.
type masker struct{ url, credential *regexp.Regexp }

func newMasker() masker {
	return masker{
		// Whatever stands between the scheme and the last @ of a word (RFC 3986, userinfo).
		url: regexp.MustCompile("://[^\\s\"'`<>]*@"),
		// systemd.exec(5), SetCredential=ID:VALUE
		credential: regexp.MustCompile(`(SetCredential(?:Encrypted)?\s*=\s*[^:\s]*:)\S.*`),
	}
}

func (m masker) text(s string) string {
	if !strings.ContainsAny(s, "@=:-") {
		return s // nothing of it can be in there
	}
	s = m.url.ReplaceAllString(s, "://"+masked+"@")
	s = m.credential.ReplaceAllString(s, "${1}"+masked)
	return profiles.MaskSecrets(s, masked)
}

// result masks a result. Lines for a shell that lack a part of what they are about would
// do something else: they go.
func (m masker) result(r Result) Result {
	for _, s := range []*string{&r.Object, &r.Observed, &r.Wanted, &r.Place, &r.Note} {
		*s = m.text(*s)
	}
	if clean := m.text(r.Remedy); clean != r.Remedy {
		r.Remedy = "# a secret is in the line to be changed: edit it by hand"
		if r.Place != "" {
			r.Remedy += ", " + r.Place
		}
	}
	return r
}
