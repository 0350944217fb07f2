package elf

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
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

// Newer reports whether g is a later version than another.
func (g GLibC) Newer(than GLibC) bool {
	return g.Major > than.Major || g.Major == than.Major && g.Minor > than.Minor
}

// Info is what a program needs of a host.
type Info struct {
	Arch    string   // Go's name
	Machine string   // ELF's name, such as EM_X86_64
	Interp  string   // the dynamic loader's path; "" for a static program
	Needed  []string // sonames, in the file's order
	GLibC   GLibC    // the newest version that any of its symbols asks for
}

// LibC is the C library that the program needs: "glibc 2.34", "glibc" where no version is
// asked for, "musl", "" for a static program.
func (info Info) LibC() string {
	switch {
	case strings.Contains(info.Interp, "ld-musl"):
		return "musl"
	case info.GLibC != GLibC{}:
		return "glibc " + info.GLibC.String()
	case info.Interp != "":
		return "glibc"
	}
	return ""
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

// HeadSize is how much of a file Arch looks at, in bytes (elf(5), e_machine).
const HeadSize = 20

// Arch tells the architecture of a program by its first bytes: Go's name, or ELF's where
// there is none. What is no ELF file is "".
func Arch(head []byte) string {
	if len(head) < HeadSize || !bytes.HasPrefix(head, []byte(elf.ELFMAG)) {
		return ""
	}
	data := elf.Data(head[elf.EI_DATA])
	number := binary.LittleEndian.Uint16(head[18:])
	if data == elf.ELFDATA2MSB {
		number = binary.BigEndian.Uint16(head[18:])
	}
	for _, m := range machines() {
		if m.machine == elf.Machine(number) && m.class == elf.Class(head[elf.EI_CLASS]) && m.data == data {
			return m.arch
		}
	}
	return elf.Machine(number).String()
}

// Read reads a program's headers; it must be verified already, since debug/elf is
// not made for hostile files. A program that is not for arch (Go's name) gives a
// *MachineError beside the Info; other errors say why it is no program at all.
func Read(r io.ReaderAt, arch string) (Info, error) {
	f, err := elf.NewFile(r)
	if err != nil {
		if fe, ok := errors.AsType[*elf.FormatError](err); ok {
			return Info{}, fmt.Errorf("it is not a Linux program: %w", fe)
		}
		return Info{}, fmt.Errorf("it is not a Linux program: its headers cannot be read: %w", err)
	}
	info := Info{Machine: f.Machine.String()}
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
			if v, ok := glibcSymbol(d.Dep); ok && v.Newer(info.GLibC) {
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

// Missing are the libraries that a program needs and that no library folder has; has
// reports whether there is a file at a path.
func (info Info) Missing(has func(path string) bool) []string {
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
