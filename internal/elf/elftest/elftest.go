// Package elftest makes ELF files for tests. It must not know what they are tested for.
package elftest

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
)

// Program describes a 64-bit ELF file with only what elf.Read looks at. Order is little
// endian and Type ET_DYN unless given.
type Program struct {
	Machine elf.Machine
	Order   binary.ByteOrder
	Type    elf.Type
	Interp  string
	Needed  []string
	Symbols []string // versions asked of libc.so.6
}

// Bytes is the file.
func (p Program) Bytes() []byte {
	if p.Order == nil {
		p.Order = binary.LittleEndian
	}
	if p.Type == elf.ET_NONE {
		p.Type = elf.ET_DYN
	}
	const headers = 64 + 56
	body := bytes.NewBuffer(make([]byte, headers))
	pack := func(v ...any) []byte {
		var b bytes.Buffer
		for _, x := range v {
			if err := binary.Write(&b, p.Order, x); err != nil {
				panic(err) // a type without a fixed size: a fault of this file
			}
		}
		return b.Bytes()
	}
	var sections []elf.Section64
	add := func(kind elf.SectionType, link uint32, b []byte) {
		s := elf.Section64{Type: uint32(kind), Off: uint64(body.Len()), Size: uint64(len(b)), Link: link, Addralign: 1}
		body.Write(b)
		sections = append(sections, s)
	}
	strs := "\x00"
	str := func(s string) uint32 {
		at := uint32(len(strs))
		strs += s + "\x00"
		return at
	}
	prog := elf.Prog64{}
	if p.Interp != "" {
		prog = elf.Prog64{Type: uint32(elf.PT_INTERP), Off: headers, Filesz: uint64(len(p.Interp) + 1)}
		body.WriteString(p.Interp + "\x00")
	}
	if p.Interp != "" || p.Needed != nil {
		var dynamic, needs []byte
		for _, n := range p.Needed {
			dynamic = append(dynamic, pack(elf.Dyn64{Tag: int64(elf.DT_NEEDED), Val: uint64(str(n))})...)
		}
		dynamic = append(dynamic, pack(elf.Dyn64{})...)
		if len(p.Symbols) > 0 {
			needs = pack(uint16(1), uint16(len(p.Symbols)), str("libc.so.6"), uint32(16), uint32(0))
			for i, s := range p.Symbols {
				next := uint32(16)
				if i == len(p.Symbols)-1 {
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
		Type: uint16(p.Type), Machine: uint16(p.Machine), Version: uint32(elf.EV_CURRENT), Phoff: 64, Ehsize: 64,
		Phentsize: 56, Phnum: 1, Shentsize: 64, Shnum: uint16(len(sections)),
	}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)
	if p.Order == binary.BigEndian {
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

// Dynamic is an amd64 program of a C library, as runc is in distributions, that asks for
// these versions of its symbols.
func Dynamic(symbols ...string) Program {
	return Program{
		Machine: elf.EM_X86_64, Interp: "/lib64/ld-linux-x86-64.so.2",
		Needed: []string{"libseccomp.so.2", "libc.so.6"}, Symbols: symbols,
	}
}
