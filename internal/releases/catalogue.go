package releases

import (
	_ "embed"
	"slices"
	"strings"
)

// catalogue is one line a release file, "COMPONENT VERSION ARCH SHA256", newest
// version first within a component. The digests are those of kubespray's published
// checksum table (Apache-2.0), August 2026. Lines rather than YAML: looking one up
// costs microseconds at every start, parsing all of it would cost milliseconds.
//
//go:embed catalogue.txt
var catalogue string

// catalogueName is a component's name in the catalogue.
func catalogueName(component string, static bool) string {
	if component == Containerd && static {
		return "containerd-static"
	}
	return component
}

// SHA256 returns the published sha256 of a release file, lower-case hex.
func SHA256(component string, static bool, v Version, arch string) (string, bool) {
	key := "\n" + catalogueName(component, static) + " " + v.String() + " " + arch + " "
	text := "\n" + catalogue
	i := strings.Index(text, key)
	if i < 0 {
		return "", false
	}
	digest, _, _ := strings.Cut(text[i+len(key):], "\n")
	return digest, true
}

// Known lists the versions in the catalogue, newest first.
func Known(component string, static bool) []Version {
	var out []Version
	prefix := catalogueName(component, static) + " "
	for line := range strings.Lines(catalogue) {
		rest, ok := strings.CutPrefix(line, prefix)
		if !ok {
			continue
		}
		s, _, _ := strings.Cut(rest, " ")
		if v, err := ParseVersion(s); err == nil && !slices.Contains(out, v) {
			out = append(out, v)
		}
	}
	slices.SortFunc(out, func(a, b Version) int { return b.Compare(a) })
	return out
}
