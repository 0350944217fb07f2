package release

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/host"
)

// program describes an ELF file made in a test, 64 bits, with only what CheckELF reads.
type program struct {
	machine elf.Machine
	order   binary.ByteOrder
	kind    elf.Type
	interp  string
	needed  []string
	symbols []string // versions asked of libc.so.6
}

func (p program) bytes(t *testing.T) []byte {
	t.Helper()
	if p.order == nil {
		p.order = binary.LittleEndian
	}
	if p.kind == elf.ET_NONE {
		p.kind = elf.ET_DYN
	}
	const headers = 64 + 56
	body := bytes.NewBuffer(make([]byte, headers))
	pack := func(v ...any) []byte {
		var b bytes.Buffer
		for _, x := range v {
			if err := binary.Write(&b, p.order, x); err != nil {
				t.Fatal(err)
			}
		}
		return b.Bytes()
	}
	var sections []elf.Section64
	add := func(kind elf.SectionType, link uint32, b []byte) elf.Section64 {
		s := elf.Section64{Type: uint32(kind), Off: uint64(body.Len()), Size: uint64(len(b)), Link: link, Addralign: 1}
		body.Write(b)
		sections = append(sections, s)
		return s
	}
	strs := "\x00"
	str := func(s string) uint32 {
		at := uint32(len(strs))
		strs += s + "\x00"
		return at
	}
	prog := elf.Prog64{}
	if p.interp != "" {
		prog = elf.Prog64{Type: uint32(elf.PT_INTERP), Off: headers, Filesz: uint64(len(p.interp) + 1)}
		body.WriteString(p.interp + "\x00")
	}
	if p.interp != "" || p.needed != nil {
		var dynamic, needs []byte
		for _, n := range p.needed {
			dynamic = append(dynamic, pack(elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: uint64(str(n))})...)
		}
		dynamic = append(dynamic, pack(elf.Dyn64{})...)
		if len(p.symbols) > 0 {
			needs = pack(uint16(1), uint16(len(p.symbols)), str("libc.so.6"), uint32(16), uint32(0))
			for i, s := range p.symbols {
				next := uint32(16)
				if i == len(p.symbols)-1 {
					next = 0
				}
				needs = append(needs, pack(uint32(0), uint16(0), uint16(i+2), str(s), next)...)
			}
		}
		add(elf.SHT_NULL, 0, nil)
		add(elf.SHT_STRTAB, 0, []byte(strs))
		add(elf.SHT_DYNAMIC, 1, dynamic)
		add(elf.SHT_DYNSYM, 1, make([]byte, 48))
		if needs != nil {
			add(elf.SHT_GNU_VERSYM, 3, make([]byte, 4))
			add(elf.SHT_GNU_VERNEED, 1, needs)
		}
	}
	h := elf.Header64{
		Type: uint16(p.kind), Machine: uint16(p.machine), Version: uint32(elf.EV_CURRENT), Phoff: 64, Ehsize: 64,
		Phentsize: 56, Phnum: 1, Shentsize: 64, Shnum: uint16(len(sections)),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	if p.order == binary.BigEndian {
		h.Ident[elf.EI_DATA] = byte(elf.ELFDATA2MSB)
	}
	if len(sections) > 0 {
		h.Shoff, h.Shstrndx = uint64(body.Len()), 1
		for _, s := range sections {
			body.Write(pack(s))
		}
	}
	out := body.Bytes()
	copy(out, pack(h, prog))
	return out
}

func dynamic(symbols ...string) program {
	return program{
		machine: elf.EM_X86_64, interp: "/lib64/ld-linux-x86-64.so.2",
		needed: []string{"libseccomp.so.2", "libc.so.6"}, symbols: symbols,
	}
}

func TestCheckELF(t *testing.T) {
	for _, c := range []struct {
		name string
		p    program
		arch string
		want ELFInfo
		err  string
	}{
		{"static", program{machine: elf.EM_X86_64, kind: elf.ET_EXEC}, "amd64", ELFInfo{Arch: "amd64", Machine: "EM_X86_64"}, ""},
		{"dynamic", dynamic("GLIBC_2.2.5", "GLIBC_2.38", "GLIBC_2.9", "GLIBC_PRIVATE"), "amd64",
			ELFInfo{Arch: "amd64", Machine: "EM_X86_64", Interp: "/lib64/ld-linux-x86-64.so.2", Needed: []string{"libseccomp.so.2", "libc.so.6"}, GLibC: GLibC{2, 38}}, ""},
		{"relative relocations", dynamic("GLIBC_2.34", "GLIBC_ABI_DT_RELR"), "amd64",
			ELFInfo{Arch: "amd64", Machine: "EM_X86_64", Interp: "/lib64/ld-linux-x86-64.so.2", Needed: []string{"libseccomp.so.2", "libc.so.6"}, GLibC: GLibC{2, 36}}, ""},
		{"musl has no versions", program{machine: elf.EM_AARCH64, interp: "/lib/ld-musl-aarch64.so.1", needed: []string{"libc.musl-aarch64.so.1"}}, "arm64",
			ELFInfo{Arch: "arm64", Machine: "EM_AARCH64", Interp: "/lib/ld-musl-aarch64.so.1", Needed: []string{"libc.musl-aarch64.so.1"}}, ""},
		{"another machine", program{machine: elf.EM_AARCH64}, "amd64", ELFInfo{Arch: "arm64", Machine: "EM_AARCH64"}, "it is a program for arm64 (EM_AARCH64), want amd64"},
		{"the other byte order", program{machine: elf.EM_PPC64, order: binary.BigEndian}, "ppc64le", ELFInfo{Arch: "ppc64", Machine: "EM_PPC64"}, "it is a program for ppc64 (EM_PPC64), want ppc64le"},
		{"big endian", program{machine: elf.EM_S390, order: binary.BigEndian}, "s390x", ELFInfo{Arch: "s390x", Machine: "EM_S390"}, ""},
		{"an unknown machine", program{machine: elf.EM_VAX}, "amd64", ELFInfo{Machine: "EM_VAX"}, "it is a program for another machine (EM_VAX), want amd64"},
		{"an object file", program{machine: elf.EM_X86_64, kind: elf.ET_REL}, "amd64", ELFInfo{Arch: "amd64", Machine: "EM_X86_64"}, "it is not a program but of ELF type ET_REL"},
	} {
		got, err := CheckELF(bytes.NewReader(c.p.bytes(t)), c.arch)
		if c.err == "" && err != nil || c.err != "" && (err == nil || err.Error() != c.err) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", c.name, d)
		}
	}
	for _, text := range []string{"", "#!/bin/sh\nexit 0\n", "\x7fELF\x02\x01\x01 and no more of it"} {
		if _, err := CheckELF(strings.NewReader(text), "amd64"); err == nil || !strings.Contains(err.Error(), "it is not a Linux program") {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestCheckProgram(t *testing.T) {
	glibc := func(minor int) host.LibC { return host.LibC{Kind: "glibc", Major: 2, Minor: minor} }
	musl := program{machine: elf.EM_X86_64, interp: "/lib/ld-musl-x86_64.so.1"}
	bookworm := []string{"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libseccomp.so.2"}
	for _, c := range []struct {
		name      string
		p         program
		component string
		libc      host.LibC
		strict    bool
		has       []string
		warn, err string
	}{
		{name: "static on anything", p: program{machine: elf.EM_X86_64}, strict: true},
		{name: "new enough", p: dynamic("GLIBC_2.34"), libc: glibc(34), strict: true, has: bookworm},
		{name: "too old", p: dynamic("GLIBC_2.38"), component: "containerd", libc: glibc(36), has: bookworm,
			err: "it needs glibc 2.38, the host has glibc 2.36; set containerd.variant: static in the profile"},
		{name: "too old for runc", p: dynamic("GLIBC_2.38"), component: "runc", libc: glibc(36), has: bookworm,
			err: "it needs glibc 2.38, the host has glibc 2.36; take upstream's own release of runc, which is static"},
		{name: "musl host", p: dynamic("GLIBC_2.34"), component: "containerd", libc: host.LibC{Kind: "musl"},
			err: "it needs glibc 2.34, the host has musl; set containerd.variant: static in the profile"},
		{name: "musl program", p: musl, component: "runc", libc: glibc(36), err: "it needs musl, the host has glibc 2.36; take"},
		{name: "musl on musl", p: musl, libc: host.LibC{Kind: "musl"}},
		{name: "an empty root", p: dynamic("GLIBC_2.34"), warn: "it needs glibc 2.34, and there is no C library to compare with"},
		{name: "a live host without one", p: dynamic("GLIBC_2.34"), component: "containerd", strict: true, err: "it needs glibc 2.34, the host has no C library; set"},
		{name: "a version that is not known", p: dynamic("GLIBC_2.34"), libc: host.LibC{Kind: "glibc"}, warn: "the version of the host's is not known"},
		{name: "no such library", p: dynamic("GLIBC_2.34"), component: "runc", libc: glibc(36), has: bookworm[:2],
			err: "it needs libseccomp.so.2, which the host has in no library folder; install the package that has it, or take"},
		{name: "no such loader", p: dynamic("GLIBC_2.34"), component: "runc", libc: glibc(36), has: bookworm[1:], err: "its loader /lib64/ld-linux-x86-64.so.2 is not on the host"},
		{name: "another machine", p: program{machine: elf.EM_AARCH64}, libc: glibc(36), err: "it is a program for arm64"},
	} {
		var has func(string) bool
		if c.has != nil {
			has = func(p string) bool { return slices.Contains(c.has, p) }
		}
		warn, err := CheckProgram(bytes.NewReader(c.p.bytes(t)), c.component, "amd64", c.libc, c.strict, has)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.err)
		}
		if (c.warn == "") != (warn == "") || !strings.Contains(warn, c.warn) {
			t.Errorf("%s: warning %q, want %q", c.name, warn, c.warn)
		}
	}
	_, err := CheckProgram(bytes.NewReader(dynamic("GLIBC_2.38").bytes(t)), "containerd", "amd64", glibc(36), true, nil)
	if _, ok := errors.AsType[*LibCError](err); !ok {
		t.Errorf("%T", err)
	}
}
