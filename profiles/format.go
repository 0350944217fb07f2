package profiles

import (
	"fmt"
	"net/netip"
	"net/url"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/internal/spelling"
)

// format is the rule for a kind of text.
type format struct {
	// what completes "want ...".
	what string
	// pattern is what every such text matches, anchored; "" for any. It is also the
	// JSON Schema's pattern, in the syntax that Go and ECMA 262 share.
	pattern string
	// check finds what a pattern cannot say; nil where there is nothing.
	check func(s string) (problem, hint string)
}

// formatOf is the format that a struct tag names.
func formatOf(name string) format {
	switch name {
	case "":
		return format{}
	case "line":
		return format{what: "one line of text"}
	case "extends":
		return format{what: "a built-in profile or a file"}
	case "version":
		return format{"a version such as 2.3.4", versionPattern, checkVersion}
	case "versionOrNone":
		return format{"a version such as 1.36.0, or none", "^(none|" + strings.Trim(versionPattern, "^$") + ")$", checkVersion}
	case "kubernetes":
		return format{`a Kubernetes version such as "1.36"`, `^v?1\.(0|[1-9][0-9]*)(\.(0|[1-9][0-9]*))?$`, nil}
	case "sha256":
		return format{"64 hexadecimal digits", `^[0-9a-fA-F]{64}$`, checkDigest}
	case "arch":
		return format{choices(arches()), "^(" + strings.Join(arches(), "|") + ")$", checkArch}
	case "path":
		return format{"an absolute path", `^/`, checkPath}
	case "name":
		return format{"a name of letters, digits, and . _ - between them", `^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$`, nil}
	case "image":
		return format{"an image such as registry.k8s.io/pause:3.10.2", `^[A-Za-z0-9][A-Za-z0-9._-]*(:[0-9]+)?(/[a-z0-9][a-z0-9._-]*)+(:[A-Za-z0-9_][A-Za-z0-9._-]*)?(@sha256:[0-9a-f]{64})?$`, nil}
	case "runtimeType":
		return format{"a shim such as io.containerd.runc.v2", `^(/.+|[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*\.v[0-9]+)$`, nil}
	case "platform":
		return format{"OS/ARCH, such as linux/amd64", `^[a-z0-9]+/[a-z0-9]+(/v[0-9]+)?$`, nil}
	case "registry":
		return format{`a registry's host, such as docker.io or registry.example.com:5000, or "*"`,
			`^(\*|(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?)(:[0-9]{1,5})?)$`, checkRegistry}
	case "url":
		return format{"a URL such as https://mirror.example.com", `^https?://[^/]`, checkURL}
	case "proxy":
		return format{"a proxy such as http://proxy.example.com:3128", `^(https?|socks5)://[^/]`, checkProxy}
	case "source":
		return format{"a URL such as https://mirror.example.com/{component}/{version}/{file}", `^https?://[^/]`, checkSource}
	case "noProxy":
		return format{"a host, domain or network", `^[^\s,]+$`, nil}
	case "duration":
		return format{"a duration such as 5s or 1m30s", `^([0-9]+(\.[0-9]+)?(ns|us|ms|s|m|h))+$`, checkDuration}
	case "cidr":
		return format{"a network such as 10.88.0.0/16", `^[0-9A-Fa-f:.]+/[0-9]+$`, checkCIDR}
	case "interface":
		return format{"an interface name of at most 15 letters, digits, and . _ -", `^[A-Za-z0-9_][A-Za-z0-9._-]{0,14}$`, nil}
	case "limit":
		return format{"infinity, a number, or SOFT:HARD", `^(infinity|(0|[1-9][0-9]*)(:(infinity|0|[1-9][0-9]*))?)$`, checkLimit}
	case "unit":
		return format{"a unit such as network-online.target",
			`^[A-Za-z0-9:_.\\@-]+\.(service|socket|device|mount|automount|swap|target|path|timer|slice|scope)$`, nil}
	case "module":
		return format{"a module's name, such as br_netfilter", `^[A-Za-z0-9_-]+$`, nil}
	case "sysctl":
		return format{"a kernel parameter such as net.ipv4.ip_forward", `^[A-Za-z0-9_][A-Za-z0-9_@:-]*([./][A-Za-z0-9_@:-]+)*$`, checkSysctl}
	case "sysctlValue":
		return format{"a value", "", checkSysctlValue}
	case "env":
		return format{"a variable's name, such as HTTP_PROXY", `^[A-Za-z_][A-Za-z0-9_]*$`, nil}
	case "header":
		return format{"an HTTP header's name", "^[A-Za-z0-9!#$%&'*+.^_`|~-]+$", nil}
	case "credential":
		return format{"a credential's name", `^[A-Za-z0-9_.:@-]+$`, nil}
	case "check":
		return format{"a check's ID, such as host/swap", `^[a-z0-9*][a-z0-9*/._-]*$`, nil}
	}
	panic("profiles: a struct tag names the unknown format " + name)
}

// checkSysctl names what sysctl.d(5) would take for something else.
func checkSysctl(s string) (problem, hint string) {
	switch {
	case strings.HasPrefix(s, "-"):
		return fmt.Sprintf("the key %s begins with -, by which sysctl.d ignores failures", quote(s)), "leave the - out"
	case strings.ContainsAny(s, "*?["):
		return fmt.Sprintf("the key %s is a pattern, and what it sets cannot be checked", quote(s)), "write every key that is meant"
	}
	return "", ""
}

func checkSysctlValue(s string) (problem, hint string) {
	switch {
	case strings.TrimSpace(s) == "":
		return "the value is blank", "give it a value, or leave the key out"
	case strings.TrimSpace(s) != s:
		return fmt.Sprintf("the value %s has spaces around it", quote(s)), "write " + strconv.Quote(strings.TrimSpace(s))
	}
	return "", ""
}

const versionPattern = `^v?(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)(-[0-9A-Za-z.-]+)?$`

func checkVersion(s string) (problem, hint string) {
	if s == "none" {
		return "", "" // the pattern knows where that is allowed
	}
	if _, err := releases.ParseVersion(s); err != nil {
		if _, err := releases.ParseVersion(s + ".0"); err == nil {
			hint = "give the patch release, too"
		}
		return err.Error(), hint
	}
	return "", ""
}

func checkDigest(s string) (problem, hint string) {
	if rest, ok := strings.CutPrefix(s, "sha256:"); ok {
		return fmt.Sprintf("%s has a prefix", quote(s)), "write the digits alone: " + rest
	}
	return "", ""
}

func checkArch(s string) (problem, hint string) {
	if slices.Contains(arches(), s) {
		return "", ""
	}
	problem = fmt.Sprintf("unknown architecture %s, want %s", quote(s), choices(arches()))
	if a := foreignArch(s); a != "" {
		return problem, "did you mean " + a + "?"
	}
	if a := spelling.Nearest(s, arches()); a != "" {
		return problem, "did you mean " + a + "?"
	}
	return problem, ""
}

func checkPath(s string) (problem, hint string) {
	switch {
	case strings.HasPrefix(s, "~"):
		return fmt.Sprintf("path %s is not absolute", quote(s)), "a daemon has no home; write the path in full"
	case !path.IsAbs(s):
		if rest, ok := strings.CutPrefix(s, "unix://"); ok {
			return fmt.Sprintf("path %s is a URL", quote(s)), "write " + rest
		}
		return fmt.Sprintf("path %s is not absolute", quote(s)), ""
	case path.Clean(s) != s:
		return fmt.Sprintf("path %s is not in its shortest form", quote(s)), "write " + path.Clean(s)
	}
	return "", ""
}

func checkRegistry(s string) (problem, hint string) {
	if u, err := url.Parse(s); err == nil && u.Host != "" {
		return fmt.Sprintf("%s is a URL, want a registry's host as image references have it", quote(redact(s))), "write " + u.Host
	}
	if host, _, ok := strings.Cut(s, "/"); ok && host != "" {
		if strings.Trim(host, ".") != "" {
			hint = "write " + host
		}
		return fmt.Sprintf("%s has a path, want a registry's host alone", quote(s)), hint
	}
	if s == "_default" {
		return fmt.Sprintf("%s is containerd's folder for every registry", quote(s)), `write "*"`
	}
	if i := strings.LastIndex(s, ":"); i >= 0 && !strings.HasSuffix(s, "]") {
		if n, err := strconv.Atoi(s[i+1:]); err == nil && (n < 1 || n > 65535) {
			return fmt.Sprintf("port %d of %s is not between 1 and 65535", n, quote(s)), ""
		}
	}
	if strings.HasPrefix(s, "[") {
		inner, _, _ := strings.Cut(strings.TrimPrefix(s, "["), "]")
		if a, err := netip.ParseAddr(inner); err != nil || !a.Is6() {
			return fmt.Sprintf("%s is not an IPv6 address", quote(inner)), ""
		}
	}
	return "", ""
}

// parseURL checks what all URLs of a profile have in common. No message of it shows
// a password.
func parseURL(s string, schemes ...string) (u *url.URL, problem, hint string) {
	if !strings.Contains(s, "://") {
		s = redact(s)
		return nil, fmt.Sprintf("%s has no scheme", quote(s)), "write " + schemes[0] + "://" + strings.TrimLeft(s, "/")
	}
	u, err := url.Parse(s)
	if err != nil {
		return nil, "this is not a URL that can be read", ""
	}
	switch {
	case !slices.Contains(schemes, strings.ToLower(u.Scheme)):
		return nil, fmt.Sprintf("unsupported scheme %q, want %s", u.Scheme, choices(schemes)), ""
	case u.Scheme+"://" != s[:min(len(s), len(u.Scheme)+3)]:
		return nil, "the scheme is not in lower case", ""
	case u.Hostname() == "":
		return nil, fmt.Sprintf("%s has no host", quote(redact(s))), ""
	case strings.ContainsAny(s, " \t"):
		return nil, fmt.Sprintf("%s holds a space", quote(redact(s))), ""
	}
	if p := u.Port(); p != "" {
		if n, err := strconv.Atoi(p); err != nil || n < 1 || n > 65535 {
			return nil, fmt.Sprintf("port %s is not between 1 and 65535", p), ""
		}
	} else if strings.HasSuffix(u.Host, ":") {
		return nil, "the port after the host is empty", ""
	}
	return u, "", ""
}

// redact hides the user information of a URL that may not even be one.
func redact(s string) string {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		scheme, rest = "", s
	} else {
		scheme += "://"
	}
	end := len(rest)
	// A password that holds a slash ends before the last "@" all the same.
	if i := strings.IndexAny(rest, "/?#"); i >= 0 && !found {
		end = i
	}
	if i := strings.LastIndex(rest[:end], "@"); i >= 0 {
		rest = "xxxxx" + rest[i:]
	}
	return scheme + rest
}

// checkURL is for what goes into hosts.toml. containerd cleans the path and appends "/v2" (core/remotes/docker/config/hosts.go),
// so that the path of a bare slash makes "//v2", and any other that is not clean is asked
// for as something else than what is written.
func checkURL(s string) (problem, hint string) {
	u, problem, hint := parseURL(s, "https", "http")
	switch {
	case problem != "":
		return problem, hint
	case u.User != nil:
		return fmt.Sprintf("%s holds credentials", quote(redact(s))), "give them as auth of that registry, or as a header by reference"
	case strings.Contains(s, "?") || strings.Contains(s, "#"):
		return fmt.Sprintf("%s has a query or fragment, which containerd drops", quote(s)), ""
	case strings.Trim(u.Path, "/") == "" && u.Path != "":
		return fmt.Sprintf("%s ends with a slash, which containerd makes //v2 of", quote(s)), "write " + strings.TrimRight(s, "/")
	case strings.Contains(u.EscapedPath(), "%"):
		return fmt.Sprintf("%s has characters in its path that are written with %%, which no registry's path has", quote(s)), ""
	case u.Path != "" && path.Clean(u.Path) != u.Path:
		clean := *u
		clean.Path = path.Clean(u.Path)
		return fmt.Sprintf("%s has a path that containerd asks for in another form", quote(s)), "write " + strings.TrimRight(clean.String(), "/")
	}
	return "", ""
}

func checkProxy(s string) (problem, hint string) {
	u, problem, hint := parseURL(s, "http", "https", "socks5")
	switch {
	case problem != "":
		return problem, hint
	case u.Path != "" && u.Path != "/" || strings.Contains(s, "?") || strings.Contains(s, "#"):
		return fmt.Sprintf("%s has more than a host and a port", quote(redact(s))), ""
	}
	return "", ""
}

// placeholder finds a name in braces in a source's URL.
var placeholder = regexp.MustCompile(`\{[^{}/]*\}`)

func checkSource(s string) (problem, hint string) {
	known := []string{"{component}", "{version}", "{arch}", "{file}"}
	for _, p := range placeholder.FindAllString(s, -1) {
		if !slices.Contains(known, p) {
			if n := spelling.Nearest(p, known); n != "" {
				hint = "did you mean " + n + "?"
			}
			return fmt.Sprintf("unknown placeholder %s, want %s", p, choices(known)), hint
		}
	}
	plain := placeholder.ReplaceAllString(s, "x")
	if strings.ContainsAny(plain, "{}") {
		return fmt.Sprintf("%s has a brace that is not closed", quote(redact(s))), ""
	}
	u, problem, hint := parseURL(plain, "https", "http")
	switch {
	case problem != "":
		return problem, hint
	case u.User != nil:
		return fmt.Sprintf("%s holds credentials", quote(redact(s))), "let the mirror serve release files without; their sha256 is checked anyway"
	case !strings.Contains(s, "{file}") && !strings.Contains(s, "{component}"):
		return fmt.Sprintf("%s is the same for every file", quote(redact(s))), "end it with /{file}"
	}
	return "", ""
}

func checkDuration(s string) (problem, hint string) {
	d, err := time.ParseDuration(s)
	switch {
	case err != nil:
		if _, err := strconv.Atoi(s); err == nil {
			return fmt.Sprintf("duration %s has no unit", quote(s)), "write " + s + "s for seconds"
		}
		return fmt.Sprintf("%s is not a duration such as 5s or 1m30s", quote(s)), ""
	case d <= 0:
		return fmt.Sprintf("duration %s is not positive", quote(s)), ""
	}
	return "", ""
}

func checkCIDR(s string) (problem, hint string) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		if a, err := netip.ParseAddr(s); err == nil {
			return fmt.Sprintf("%s is an address, want a network", quote(s)), fmt.Sprintf("write %s/24, or whatever the length is", a)
		}
		return fmt.Sprintf("%s is not a network such as 10.88.0.0/16", quote(s)), ""
	case p.Masked() != p:
		return fmt.Sprintf("network %s has bits set beyond its length", s), "write " + p.Masked().String()
	case p.Addr().BitLen()-p.Bits() < 2:
		return fmt.Sprintf("network %s has no room for a bridge and a container", s), ""
	}
	return "", ""
}

func checkLimit(s string) (problem, hint string) {
	soft, hard, two := strings.Cut(s, ":")
	if !two || hard == "infinity" {
		return "", ""
	}
	h, errH := strconv.ParseUint(hard, 10, 64)
	l, errL := strconv.ParseUint(soft, 10, 64)
	if errH == nil && (soft == "infinity" || errL == nil && l > h) {
		return fmt.Sprintf("soft limit %s is above the hard limit %s", soft, hard), ""
	}
	return "", ""
}
