package profiles

import (
	"strings"
)

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
