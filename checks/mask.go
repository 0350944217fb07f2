package checks

import (
	"regexp"
	"strings"
)

const masked = "(masked)"

// masker takes secrets out of what checks say. What they quote comes from files of others:
// a password in a URL, a token on a command line or in a drop-in is not theirs to show.
type masker struct {
	url, bare, option, flag, credential *regexp.Regexp
}

func newMasker() masker {
	return masker{
		// Whatever stands between the scheme and the last @ of a word (RFC 3986, userinfo).
		url: regexp.MustCompile("://[^\\s\"'`<>]*@"),
		// The same without a scheme: user:password@host.
		bare: regexp.MustCompile("(^|[\\s\"'`=,(\\[])([^\\s\"'`@:/=,(\\[]+:[^\\s\"'`@]+)@([^\\s\"'`@]+)"),
		// --token=x, API_TOKEN=x, password = x.
		option: regexp.MustCompile(`(?i)((?:^|[\s"'=])-{0,2}[a-z0-9_.-]*(?:password|passwd|passphrase|token|secret|apikey|api-key|api_key)[a-z0-9_-]*(?:=|\s+=\s*))("[^"]*"|'[^']*'|[^\s"']+)`),
		// --registry-password x.
		flag: regexp.MustCompile(`(?i)((?:^|[\s"'=])--?[a-z0-9_.-]*(?:password|passwd|passphrase|token|secret|apikey|api-key|api_key)\s+)([^\s"'-][^\s"']*|"[^"]*"|'[^']*')`),
		// systemd.exec(5), SetCredential=ID:VALUE
		credential: regexp.MustCompile(`(SetCredential(?:Encrypted)?\s*=\s*[^:\s]*:)\S.*`),
	}
}

func (m masker) text(s string) string {
	if !strings.ContainsAny(s, "@=") && !strings.Contains(s, "-") {
		return s // nothing of it can be in there
	}
	s = m.url.ReplaceAllString(s, "://"+masked+"@")
	s = m.bare.ReplaceAllStringFunc(s, func(found string) string {
		part := m.bare.FindStringSubmatch(found)
		// An image with its tag and digest looks alike: busybox:1@sha256:...
		if strings.HasPrefix(part[3], "sha256:") || strings.HasPrefix(part[3], "sha512:") {
			return found
		}
		return part[1] + masked + "@" + part[3]
	})
	s = m.option.ReplaceAllString(s, "${1}"+masked)
	s = m.flag.ReplaceAllString(s, "${1}"+masked)
	return m.credential.ReplaceAllString(s, "${1}"+masked)
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
