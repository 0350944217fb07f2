package elf_test

import (
	"bytes"
	dbg "debug/elf"
	"encoding/binary"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/elf"
	"github.com/nodeprep/nodeprep/internal/elf/elftest"
)

func TestRead(t *testing.T) {
	for _, c := range []struct {
		name string
		p    elftest.Program
		arch string
		want elf.Info
		err  string
	}{
		{"static", elftest.Program{Machine: dbg.EM_X86_64, Type: dbg.ET_EXEC}, "amd64", elf.Info{Arch: "amd64", Machine: "EM_X86_64"}, ""},
		{"dynamic", elftest.Dynamic("GLIBC_2.2.5", "GLIBC_2.38", "GLIBC_2.9", "GLIBC_PRIVATE"), "amd64",
			elf.Info{Arch: "amd64", Machine: "EM_X86_64", Interp: "/lib64/ld-linux-x86-64.so.2", Needed: []string{"libseccomp.so.2", "libc.so.6"}, GLibC: elf.GLibC{Major: 2, Minor: 38}}, ""},
		{"relative relocations", elftest.Dynamic("GLIBC_2.34", "GLIBC_ABI_DT_RELR"), "amd64",
			elf.Info{Arch: "amd64", Machine: "EM_X86_64", Interp: "/lib64/ld-linux-x86-64.so.2", Needed: []string{"libseccomp.so.2", "libc.so.6"}, GLibC: elf.GLibC{Major: 2, Minor: 36}}, ""},
		{"musl has no versions", elftest.Program{Machine: dbg.EM_AARCH64, Interp: "/lib/ld-musl-aarch64.so.1", Needed: []string{"libc.musl-aarch64.so.1"}}, "arm64",
			elf.Info{Arch: "arm64", Machine: "EM_AARCH64", Interp: "/lib/ld-musl-aarch64.so.1", Needed: []string{"libc.musl-aarch64.so.1"}}, ""},
		{"another machine", elftest.Program{Machine: dbg.EM_AARCH64}, "amd64", elf.Info{Arch: "arm64", Machine: "EM_AARCH64"}, "it is a program for arm64 (EM_AARCH64), want amd64"},
		{"the other byte order", elftest.Program{Machine: dbg.EM_PPC64, Order: binary.BigEndian}, "ppc64le", elf.Info{Arch: "ppc64", Machine: "EM_PPC64"}, "it is a program for ppc64 (EM_PPC64), want ppc64le"},
		{"big endian", elftest.Program{Machine: dbg.EM_S390, Order: binary.BigEndian}, "s390x", elf.Info{Arch: "s390x", Machine: "EM_S390"}, ""},
		{"an unknown machine", elftest.Program{Machine: dbg.EM_VAX}, "amd64", elf.Info{Machine: "EM_VAX"}, "it is a program for another machine (EM_VAX), want amd64"},
		{"an object file", elftest.Program{Machine: dbg.EM_X86_64, Type: dbg.ET_REL}, "amd64", elf.Info{Arch: "amd64", Machine: "EM_X86_64"}, "it is not a program but of ELF type ET_REL"},
	} {
		got, err := elf.Read(bytes.NewReader(c.p.Bytes()), c.arch)
		if c.err == "" && err != nil || c.err != "" && (err == nil || err.Error() != c.err) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.err)
		}
		if d := cmp.Diff(c.want, got); d != "" {
			t.Errorf("%s (-want +got)\n%s", c.name, d)
		}
	}
	for _, text := range []string{"", "#!/bin/sh\nexit 0\n", "\x7fELF\x02\x01\x01 and no more of it"} {
		if _, err := elf.Read(strings.NewReader(text), "amd64"); err == nil || !strings.Contains(err.Error(), "it is not a Linux program") {
			t.Errorf("%q: %v", text, err)
		}
	}
}
