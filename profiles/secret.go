package profiles

import (
	"path"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// HasSecret says whether values whose names other programs choose (settings, options,
// variables, arguments; any mix of maps, lists and plain values) hold one that is a
// secret or sounds like one, as Flat judges it: a file with them is for its owner alone.
func HasSecret(values any) bool {
	c := &carrier{opt: PortableOptions{WithSecrets: true}, portable: &Portable{}}
	flattener{known: shapes{}, carry: c}.value(reflect.ValueOf(values), "", nil)
	return c.portable.Secret
}

// SecretNamed says whether a value is a secret, by the name of its variable, option, key
// or header. It is none where the name says that it is about a secret (tokenFile,
// password_length), and neither are booleans, paths, references to variables, and numbers,
// unless the name is a password's.
func SecretNamed(name, value string) bool {
	if !soundsSecret(name) || harmless.MatchString(value) {
		return false
	}
	return !number.MatchString(value) || namesSecret(name, "")
}

// soundsSecret guesses from a variable's, option's, key's or header's name.
func soundsSecret(name string) bool {
	words := nameWords(name)
	if len(words) == 0 {
		return false
	}
	last := words[len(words)-1]
	about := slices.Contains(aboutSecrets(), last) ||
		slices.ContainsFunc([]string{"FILE", "FILES", "PATH", "PATHS", "DIR"}, func(s string) bool { return strings.HasSuffix(last, s) })
	return !about && (slices.Contains(secretLastWords(), last) || soundsLike(strings.Join(words, "")))
}

// namesSecret says whether a name ends with what it is, as password and apiKey do, and
// token_ttl and max_tokens do not. plural is an ending that may follow.
func namesSecret(name, plural string) bool {
	words := nameWords(name)
	if len(words) == 0 {
		return false
	}
	all := strings.TrimSuffix(strings.Join(words, ""), plural)
	last := strings.TrimSuffix(words[len(words)-1], plural)
	return slices.ContainsFunc(secretWords(), func(s string) bool { return strings.HasSuffix(all, s) }) ||
		last == "PASS" || last == "PWD"
}

// holdsSecrets says whether a map of this name is one of secrets, whatever their names are.
func holdsSecrets(name string) bool {
	words := nameWords(name)
	if len(words) == 0 {
		return false
	}
	last := words[len(words)-1]
	one := strings.TrimSuffix(last, "S")
	return one == "HEADER" || slices.Contains(secretLastWords(), last) || slices.Contains(secretLastWords(), one) || namesSecret(name, "S")
}

// soundsLike is the widest guess, also for places of fields.
func soundsLike(s string) bool {
	s = strings.ToUpper(strings.NewReplacer("_", "", "-", "").Replace(s))
	return slices.ContainsFunc(secretWords(), func(w string) bool { return strings.Contains(s, w) })
}

// secretWords make a name sound secret wherever they stand in it.
func secretWords() []string {
	return []string{
		"PASSWORD", "PASSWD", "PASSPHRASE", "SECRET", "TOKEN", "CREDENTIAL", "BEARER", "KEYDATA", "APIKEY", "ACCESSKEY",
		"PRIVATEKEY", "PRIVKEY", "SIGNINGKEY", "SHAREDKEY", "ENCRYPTIONKEY", "DECRYPTIONKEY",
	}
}

// secretLastWords do so as its last word: authMode and bypass are no secrets.
func secretLastWords() []string {
	return []string{"AUTH", "AUTHORIZATION", "COOKIE", "CRED", "CREDS", "PASS", "PWD", "PSK"}
}

// aboutSecrets are last words of names of what is about a secret and is none.
func aboutSecrets() []string {
	return []string{
		"ADDRESS", "ALGORITHM", "AUDIENCE", "AUDIENCES", "CONFIG", "COUNT", "DIRECTORY", "DURATION", "ENABLE", "ENABLED",
		"ENDPOINT", "ENV", "EXPIRY", "FILENAME", "FOLDER", "HELPER", "HELPERS", "HOST", "INTERVAL", "ISSUER", "LENGTH", "LIMIT",
		"MODE", "NAME", "NAMES", "NAMESPACE", "PLUGIN", "PORT", "PROVIDER", "PROVIDERS", "REQUIRED", "SCOPE", "SCOPES", "SERVER",
		"SERVICE", "SIZE", "SOCKET", "STORE", "TIMEOUT", "TTL", "TYPE", "URI", "URL", "VARIABLE", "VERSION",
	}
}

// nameWords are the words of a name in capitals, without numbers at its end:
// --token-file2, TOKEN_FILE and tokenFile are TOKEN, FILE.
func nameWords(name string) []string {
	var spaced strings.Builder
	before := ' '
	for _, r := range name {
		if !unicode.IsLetter(r) && !unicode.IsDigit(r) {
			r = ' '
		}
		if unicode.IsUpper(r) && unicode.IsLower(before) {
			spaced.WriteByte(' ')
		}
		spaced.WriteRune(r)
		before = r
	}
	return strings.Fields(strings.ToUpper(strings.TrimRight(spaced.String(), "0123456789 ")))
}

var (
	// harmless is what no secret looks like: nothing, switches, absolute paths (also as
	// URL, and after a name as in LoadCredential=) and references to variables. Paths
	// begin with a folder in lower case and have no other signs than names of files do,
	// which base64 after a slash would hardly.
	harmless = regexp.MustCompile(`^["']?(?:|(?i:true|false|yes|no|on|off|none|null)|(?:file://|[A-Za-z0-9._-]+:)?/[a-z0-9._-]{2,}(?:/[A-Za-z0-9._@:{}$-]*)+,?|\$\w+|\$\{\w+\}|\$\(\w+\))["']?$`)
	number   = regexp.MustCompile(`^["']?[-+]?[0-9.]+(?:ns|us|ms|s|m|h)?["']?$`)

	// privateKey is a line about a key in text (RFC 7468; RFC 9580, section 6.2; RFC 4716).
	privateKey = regexp.MustCompile(`-{4,5} ?(?:BEGIN|END) [A-Z0-9 ]*PRIVATE KEY`)
	keyText    = regexp.MustCompile(`-{4,5} ?BEGIN [A-Z0-9 ]*PRIVATE KEY[\s\S]*?(?:-{4,5} ?END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-{4,5}|$)`)
	// signedIn is user:password@host without a scheme.
	signedIn = regexp.MustCompile("(^|[\\s\"'`=,(\\[])([^\\s\"'`@:/=,(\\[]+:/?[^\\s\"'`@/][^\\s\"'`@]*)@([^\\s\"'`@]+)")
	// assigned is a name before its value: NAME=, NAME = , "NAME": ; flagged is one of an
	// option whose value is the next word; wordNext is that word.
	assigned = regexp.MustCompile(`([A-Za-z_][\w.-]*)(?:["'][ \t]*:[ \t]*|["']?[ \t]*=[ \t]*)`)
	flagged  = regexp.MustCompile(`(?:^|[\s"'=])(--?[A-Za-z][\w.-]*)["']?,?[ \t]+`)
	wordNext = regexp.MustCompile(`^(?:"(?:[^"\\]|\\.)*"?|'[^']*'?|[^\s"']+)`)
	// titled is a line of a document: NAME: VALUE.
	titled = regexp.MustCompile(`(?m)^[ \t-]*([A-Za-z_][\w.-]*):[ \t]+(\S+)`)
)

// MaskSecrets puts mask in the place of what is clearly secret in a text: private keys,
// user:password before a host, and values whose names sound secret: NAME=VALUE,
// "NAME": "VALUE", --NAME VALUE. Addresses with a scheme are left alone.
func MaskSecrets(s, mask string) string {
	s = keyText.ReplaceAllLiteralString(s, mask)
	s = signedIn.ReplaceAllStringFunc(s, func(found string) string {
		part := signedIn.FindStringSubmatch(found)
		// An image with its tag and digest looks alike: busybox:1@sha256:...
		if strings.HasPrefix(part[3], "sha256:") || strings.HasPrefix(part[3], "sha512:") {
			return found
		}
		return part[1] + mask + "@" + part[3]
	})
	s = maskAfter(s, mask, assigned, func(string) bool { return true })
	return maskAfter(s, mask, flagged, func(value string) bool { return !strings.HasPrefix(value, "-") })
}

// maskAfter masks the words that follow names, where they may be values.
func maskAfter(s, mask string, name *regexp.Regexp, may func(string) bool) string {
	var out strings.Builder
	for {
		at := name.FindStringSubmatchIndex(s)
		if at == nil {
			out.WriteString(s)
			return out.String()
		}
		value := wordNext.FindString(s[at[1]:])
		if s[at[1]:] != "" && value != "" && may(value) && !strings.HasPrefix(s[at[1]:], mask) && SecretNamed(s[at[2]:at[3]], value) {
			out.WriteString(s[:at[1]] + mask)
			s = s[at[1]+len(value):]
			continue
		}
		// What follows may be a name itself: Environment=TOKEN=x, and --a --token x.
		next := at[3]
		out.WriteString(s[:next])
		s = s[next:]
	}
}

// maskText is a text as it may be seen. Where a secret is among more than
// one word, nothing is left, for nobody knows where it ends.
func maskText(s string) string {
	if privateKey.MatchString(s) {
		return Masked
	}
	s = plainText(s)
	clean := MaskSecrets(s, Masked)
	words := strings.Fields(s)
	if len(words) < 2 {
		return clean
	}
	if clean != s || slices.ContainsFunc(titled.FindAllStringSubmatch(s, -1), func(m []string) bool { return SecretNamed(m[1], m[2]) }) {
		return Masked
	}
	list := make([]any, len(words))
	for i, w := range words {
		list[i] = w
	}
	if maskArguments(list) {
		return Masked
	}
	return s
}

// maskArguments masks the values of a program's arguments whose option is the argument
// before and sounds secret: --token VALUE; and -p VALUE of a program that signs in.
// It says whether it did.
func maskArguments(args []any) (masked bool) {
	signsIn := slices.ContainsFunc(args, func(a any) bool {
		s, _ := a.(string)
		return slices.Contains([]string{"login", "-u", "--user", "--username", "sshpass"}, path.Base(s)) ||
			strings.HasPrefix(s, "--user=") || strings.HasPrefix(s, "--username=")
	})
	option := ""
	for i, a := range args {
		s, _ := a.(string)
		if option != "" && !strings.HasPrefix(s, "-") && SecretNamed(option, s) {
			args[i], masked = Masked, true
		}
		option = ""
		if strings.HasPrefix(s, "-") && !strings.ContainsAny(s, "= \t\n") {
			option = s
			if s == "-p" && signsIn {
				option = "auth" // so that -p 22 stays, a port
			}
		}
	}
	return masked
}
