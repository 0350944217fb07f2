package profiles

import (
	"strings"
)

// nearest is the candidate a misspelt word most likely means, "" if none is close:
// at most a third of its letters differ. Case, "_" and "-" do not count, so that
// sandbox_image finds sandboxImage.
func nearest(word string, candidates []string) string {
	const longest = 64
	if len(word) > longest {
		return ""
	}
	best, distance := "", 1+max(1, len(word)/3)
	for _, c := range candidates {
		if d := editDistance(fold(word), fold(c)); d < distance {
			best, distance = c, d
		}
	}
	return best
}

func fold(s string) string {
	return strings.NewReplacer("_", "", "-", "").Replace(strings.ToLower(s))
}

// editDistance counts the letters to add, drop, change or swap with their neighbour
// (optimal string alignment).
func editDistance(a, b string) int {
	s, t := []rune(a), []rune(b)
	var before []int // the row before the last
	row := make([]int, len(t)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(s); i++ {
		next := make([]int, len(t)+1)
		next[0] = i
		for j := 1; j <= len(t); j++ {
			cost := 1
			if s[i-1] == t[j-1] {
				cost = 0
			}
			next[j] = min(next[j-1]+1, row[j]+1, row[j-1]+cost)
			if i > 1 && j > 1 && s[i-1] == t[j-2] && s[i-2] == t[j-1] {
				next[j] = min(next[j], before[j-2]+1)
			}
		}
		before, row = row, next
	}
	return row[len(t)]
}

// choices is "a, b or c".
func choices(words []string) string {
	if len(words) < 2 {
		return strings.Join(words, "")
	}
	return strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
}

// foreignArch is Go's name of an architecture that another tool calls name.
func foreignArch(name string) string {
	switch strings.ToLower(name) {
	case "x86_64", "x64", "x86-64":
		return "amd64"
	case "aarch64", "arm64v8", "armv8":
		return "arm64"
	case "armhf", "armv7", "armv7l", "arm-v7":
		return "arm"
	case "i386", "i686", "x86":
		return "386"
	case "ppc64el":
		return "ppc64le"
	}
	return ""
}

// arches are Go's names of the architectures that any component is published for.
func arches() []string {
	return []string{"386", "amd64", "arm", "arm64", "mips64le", "ppc64le", "riscv64", "s390x"}
}
