package releases

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
)

// Version is a release version, MAJOR.MINOR.PATCH with an optional pre-release.
type Version struct {
	Major, Minor, Patch int
	Pre                 string // e.g. "beta.0"; such a version sorts before the release
}

// ParseVersion reads "1.7.24", "v1.7.24" or "2.4.0-beta.0" (semver.org, without
// build metadata); the error says what is wrong.
func ParseVersion(s string) (Version, error) {
	var v Version
	body, pre, hasPre := strings.Cut(strings.TrimPrefix(s, "v"), "-")
	parts := strings.Split(body, ".")
	if len(parts) != 3 {
		return v, fmt.Errorf("version %q: want MAJOR.MINOR.PATCH, such as 2.3.4", s)
	}
	for i, dst := range []*int{&v.Major, &v.Minor, &v.Patch} {
		n, err := strconv.Atoi(parts[i])
		if err != nil || n < 0 || strconv.Itoa(n) != parts[i] {
			return Version{}, fmt.Errorf("version %q: %q is not a number", s, parts[i])
		}
		*dst = n
	}
	if hasPre {
		if pre == "" || strings.Trim(pre, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-") != "" {
			return Version{}, fmt.Errorf("version %q: bad pre-release %q", s, pre)
		}
		v.Pre = pre
	}
	return v, nil
}

// MustVersion is ParseVersion for literals in code and tests; it panics on an error.
func MustVersion(s string) Version {
	v, err := ParseVersion(s)
	if err != nil {
		panic(err)
	}
	return v
}

// String is the version without a leading v; "none" for the zero Version.
func (v Version) String() string {
	if v == (Version{}) {
		return "none"
	}
	s := fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch)
	if v.Pre != "" {
		s += "-" + v.Pre
	}
	return s
}

// Compare orders versions as semver does.
func (v Version) Compare(w Version) int {
	if c := cmp.Or(cmp.Compare(v.Major, w.Major), cmp.Compare(v.Minor, w.Minor), cmp.Compare(v.Patch, w.Patch)); c != 0 {
		return c
	}
	switch {
	case v.Pre == w.Pre:
		return 0
	case v.Pre == "":
		return 1
	case w.Pre == "":
		return -1
	}
	a, b := strings.Split(v.Pre, "."), strings.Split(w.Pre, ".")
	for i := range min(len(a), len(b)) {
		x, errX := strconv.Atoi(a[i])
		y, errY := strconv.Atoi(b[i])
		var c int
		switch {
		case errX == nil && errY == nil:
			c = cmp.Compare(x, y)
		case errX == nil:
			c = -1
		case errY == nil:
			c = 1
		default:
			c = strings.Compare(a[i], b[i])
		}
		if c != 0 {
			return c
		}
	}
	return cmp.Compare(len(a), len(b))
}

// AtLeast reports whether v is MAJOR.MINOR.PATCH or newer; pre-releases of it count
// as it, since they carry its features.
func (v Version) AtLeast(major, minor, patch int) bool {
	w := v
	w.Pre = ""
	return w.Compare(Version{Major: major, Minor: minor, Patch: patch}) >= 0
}

// Line is "MAJOR.MINOR", the release line.
func (v Version) Line() string { return fmt.Sprintf("%d.%d", v.Major, v.Minor) }
