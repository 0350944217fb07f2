package release

import (
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// GLibC is a version of the GNU C library; the zero value means that none is needed.
type GLibC struct{ Major, Minor int }

// String is "2.34", "none" for the zero GLibC.
func (g GLibC) String() string {
	if g == (GLibC{}) {
		return "none"
	}
	return fmt.Sprintf("%d.%d", g.Major, g.Minor)
}

func (g GLibC) newer(than GLibC) bool {
	return g.Major > than.Major || g.Major == than.Major && g.Minor > than.Minor
}

// ELFInfo is what a program needs of a host.
type ELFInfo struct {
	Arch    string   // Go's name
	Machine string   // ELF's name, such as EM_X86_64
	Interp  string   // the dynamic loader's path; "" for a static program
	Needed  []string // sonames, in the file's order
	GLibC   GLibC    // the newest version that any of its symbols asks for
}

// machine is how an architecture looks in an ELF header (elf(5)).
type machine struct {
	arch    string
	machine elf.Machine
	class   elf.Class
	data    elf.Data
}

func machines() []machine {
	return []machine{
		{"386", elf.EM_386, elf.ELFCLASS32, elf.ELFDATA2LSB},
		{"amd64", elf.EM_X86_64, elf.ELFCLASS64, elf.ELFDATA2LSB},
		{"arm", elf.EM_ARM, elf.ELFCLASS32, elf.ELFDATA2LSB},
		{"arm64", elf.EM_AARCH64, elf.ELFCLASS64, elf.ELFDATA2LSB},
		{"loong64", elf.EM_LOONGARCH, elf.ELFCLASS64, elf.ELFDATA2LSB},
		{"mips64le", elf.EM_MIPS, elf.ELFCLASS64, elf.ELFDATA2LSB},
		{"ppc64", elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2MSB},
		{"ppc64le", elf.EM_PPC64, elf.ELFCLASS64, elf.ELFDATA2LSB},
		{"riscv64", elf.EM_RISCV, elf.ELFCLASS64, elf.ELFDATA2LSB},
		{"s390x", elf.EM_S390, elf.ELFCLASS64, elf.ELFDATA2MSB},
	}
}

// MachineError is a program of another architecture.
type MachineError struct {
	Found   string // Go's name where there is one, else ELF's
	Machine string // ELF's name
	Want    string // Go's name
}

// Error names both architectures.
func (e *MachineError) Error() string {
	return fmt.Sprintf("it is a program for %s (%s), want %s", e.Found, e.Machine, e.Want)
}

// CheckELF reads a program's headers; it must be verified already, since debug/elf is
// not made for hostile files. A program that is not for arch (Go's name) gives a
// *MachineError beside the ELFInfo; other errors say why it is no program at all.
func CheckELF(r io.ReaderAt, arch string) (ELFInfo, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		if fe, ok := errors.AsType[*elf.FormatError](err); ok {
			return ELFInfo{}, fmt.Errorf("it is not a Linux program: %w", fe)
		}
		return ELFInfo{}, fmt.Errorf("it is not a Linux program: its headers cannot be read: %w", err)
	}
	info := ELFInfo{Machine: f.Machine.String()}
	for _, m := range machines() {
		if m.machine == f.Machine && m.class == f.Class && m.data == f.Data {
			info.Arch = m.arch
		}
	}
	if info.Arch != arch {
		found := info.Arch
		if found == "" {
			found = "another machine"
		}
		return info, &MachineError{Found: found, Machine: info.Machine, Want: arch}
	}
	if f.Type != elf.ET_EXEC && f.Type != elf.ET_DYN {
		return info, fmt.Errorf("it is not a program but of ELF type %s", f.Type)
	}
	for _, p := range f.Progs {
		if p.Type != elf.PT_INTERP {
			continue
		}
		b := make([]byte, min(p.Filesz, 4096)) // PATH_MAX
		if _, err := p.ReadAt(b, 0); err != nil && err != io.EOF {
			return info, fmt.Errorf("read the name of its loader: %w", err)
		}
		info.Interp, _, _ = strings.Cut(string(b), "\x00")
	}
	if info.Needed, err = f.ImportedLibraries(); err != nil {
		return info, fmt.Errorf("read its libraries: %w", err)
	}
	if f.SectionByType(elf.SHT_GNU_VERNEED) == nil {
		return info, nil // static, or for a C library without versions, such as musl
	}
	needs, err := f.DynamicVersionNeeds()
	if err != nil {
		return info, fmt.Errorf("read its library versions: %w", err)
	}
	for _, n := range needs {
		for _, d := range n.Needs {
			if v, ok := glibcSymbol(d.Dep); ok && v.newer(info.GLibC) {
				info.GLibC = v
			}
		}
	}
	return info, nil
}

// glibcSymbol reads a version such as GLIBC_2.34 or GLIBC_2.2.5 (glibc's
// Versions.def); GLIBC_ABI_DT_RELR came with 2.36.
func glibcSymbol(s string) (GLibC, bool) {
	s, ok := strings.CutPrefix(s, "GLIBC_")
	if !ok {
		return GLibC{}, false
	}
	if s == "ABI_DT_RELR" {
		return GLibC{2, 36}, true
	}
	major, rest, _ := strings.Cut(s, ".")
	minor, _, _ := strings.Cut(rest, ".")
	a, errA := strconv.Atoi(major)
	b, errB := strconv.Atoi(minor)
	return GLibC{a, b}, errA == nil && errB == nil
}

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
// Errors: *MachineError, *LibCError, and those of reading the program.
func CheckProgram(r io.ReaderAt, component, arch string, libc host.LibC, strict bool, has func(path string) bool) (warning string, err error) {
	info, err := CheckELF(r, arch)
	if err != nil {
		return "", err
	}
	if info.Interp == "" && info.GLibC == (GLibC{}) {
		return "", nil // static
	}
	needs := "glibc " + info.GLibC.String()
	if strings.Contains(info.Interp, "ld-musl") {
		needs = "musl"
	} else if info.GLibC == (GLibC{}) {
		needs = "glibc"
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
	case libc.Kind == "glibc" && info.GLibC.newer(GLibC{libc.Major, libc.Minor}):
		return "", mismatch
	}
	if has != nil && info.Interp != "" && !has(info.Interp) {
		return "", fmt.Errorf("its loader %s is not on the host; %s", info.Interp, remedy)
	}
	if missing := missingLibraries(info, has); len(missing) > 0 {
		return "", fmt.Errorf("it needs %s, which the host has in no library folder; install the package that has it, or %s", strings.Join(missing, ", "), remedy)
	}
	return "", nil
}

func missingLibraries(info ELFInfo, has func(string) bool) []string {
	if has == nil {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(info.Needed), func(lib string) bool {
		return slices.ContainsFunc(libraryFolders(info.Arch), func(dir string) bool { return has(dir + "/" + lib) })
	})
}

// libraryFolders are ld.so(8)'s defaults and Debian's multiarch folders.
func libraryFolders(arch string) []string {
	out := []string{"/lib64", "/usr/lib64", "/lib", "/usr/lib", "/usr/local/lib", "/usr/local/lib64"}
	triplet := map[string]string{
		"386": "i386-linux-gnu", "amd64": "x86_64-linux-gnu", "arm": "arm-linux-gnueabihf", "arm64": "aarch64-linux-gnu",
		"ppc64le": "powerpc64le-linux-gnu", "riscv64": "riscv64-linux-gnu", "s390x": "s390x-linux-gnu",
	}[arch]
	if triplet != "" {
		out = append(out, "/lib/"+triplet, "/usr/lib/"+triplet)
	}
	return out
}
