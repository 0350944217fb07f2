package release

import (
	"fmt"
	"io"
	"strings"

	"github.com/nodeprep/nodeprep/internal/elf"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// LibCError is a program that the host's C library cannot run.
type LibCError struct {
	Needs  string // "glibc 2.38"
	Has    host.LibC
	Remedy string
}

// Error names both versions and what to do.
func (e *LibCError) Error() string {
	msg := fmt.Sprintf("it needs %s, the host has %s", e.Needs, e.Has)
	if e.Has.Kind == "" {
		msg = fmt.Sprintf("it needs %s, the host has no C library", e.Needs)
	}
	if e.Remedy != "" {
		msg += "; " + e.Remedy
	}
	return msg
}

// CheckProgram holds an unpacked program of a component against a host. libc is the
// root's; where the root has none, or its version is not known, that is a warning only
// if strict is false. has reports whether a path, such as the loader's, is under the
// root; nil asks nothing.
//
// Errors: *elf.MachineError, *LibCError, and those of reading the program.
func CheckProgram(r io.ReaderAt, component, arch string, libc host.LibC, strict bool, has func(path string) bool) (warning string, err error) {
	info, err := elf.Read(r, arch)
	if err != nil {
		return "", err
	}
	needs := info.LibC()
	if needs == "" {
		return "", nil // static
	}
	remedy := "take upstream's own release of " + component + ", which is static"
	if component == releases.Containerd {
		remedy = "set containerd.variant: static in the profile"
	}
	mismatch := &LibCError{Needs: needs, Has: libc, Remedy: remedy}
	switch {
	case libc.Kind == "" && strict:
		return "", mismatch
	case libc.Kind == "":
		return fmt.Sprintf("it needs %s, and there is no C library to compare with", needs), nil
	case libc.Kind != strings.Fields(needs)[0]:
		return "", mismatch
	case libc.Kind == "glibc" && libc.Major == 0:
		return fmt.Sprintf("it needs %s, and the version of the host's is not known", needs), nil
	case libc.Kind == "glibc" && info.GLibC.Newer(elf.GLibC{Major: libc.Major, Minor: libc.Minor}):
		return "", mismatch
	}
	if has != nil && info.Interp != "" && !has(info.Interp) {
		return "", fmt.Errorf("its loader %s is not on the host; %s", info.Interp, remedy)
	}
	if has == nil {
		return "", nil
	}
	if missing := info.Missing(has); len(missing) > 0 {
		return "", fmt.Errorf("it needs %s, which the host has in no library folder; install the package that has it, or %s", strings.Join(missing, ", "), remedy)
	}
	return "", nil
}
