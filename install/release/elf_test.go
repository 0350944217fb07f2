package release

import (
	"bytes"
	"debug/elf"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/elf/elftest"
	"github.com/nodeprep/nodeprep/internal/host"
)

func TestCheckProgram(t *testing.T) {
	glibc := func(minor int) host.LibC { return host.LibC{Kind: "glibc", Major: 2, Minor: minor} }
	musl := elftest.Program{Machine: elf.EM_X86_64, Interp: "/lib/ld-musl-x86_64.so.1"}
	bookworm := []string{"/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libc.so.6", "/usr/lib/x86_64-linux-gnu/libseccomp.so.2"}
	for _, c := range []struct {
		name      string
		p         elftest.Program
		component string
		libc      host.LibC
		strict    bool
		has       []string
		warn, err string
	}{
		{name: "static on anything", p: elftest.Program{Machine: elf.EM_X86_64}, strict: true},
		{name: "new enough", p: elftest.Dynamic("GLIBC_2.34"), libc: glibc(34), strict: true, has: bookworm},
		{name: "too old", p: elftest.Dynamic("GLIBC_2.38"), component: "containerd", libc: glibc(36), has: bookworm,
			err: "it needs glibc 2.38, the host has glibc 2.36; set containerd.variant: static in the profile"},
		{name: "too old for runc", p: elftest.Dynamic("GLIBC_2.38"), component: "runc", libc: glibc(36), has: bookworm,
			err: "it needs glibc 2.38, the host has glibc 2.36; take upstream's own release of runc, which is static"},
		{name: "musl host", p: elftest.Dynamic("GLIBC_2.34"), component: "containerd", libc: host.LibC{Kind: "musl"},
			err: "it needs glibc 2.34, the host has musl; set containerd.variant: static in the profile"},
		{name: "musl program", p: musl, component: "runc", libc: glibc(36), err: "it needs musl, the host has glibc 2.36; take"},
		{name: "musl on musl", p: musl, libc: host.LibC{Kind: "musl"}},
		{name: "an empty root", p: elftest.Dynamic("GLIBC_2.34"), warn: "it needs glibc 2.34, and there is no C library to compare with"},
		{name: "a live host without one", p: elftest.Dynamic("GLIBC_2.34"), component: "containerd", strict: true, err: "it needs glibc 2.34, the host has no C library; set"},
		{name: "a version that is not known", p: elftest.Dynamic("GLIBC_2.34"), libc: host.LibC{Kind: "glibc"}, warn: "the version of the host's is not known"},
		{name: "no such library", p: elftest.Dynamic("GLIBC_2.34"), component: "runc", libc: glibc(36), has: bookworm[:2],
			err: "it needs libseccomp.so.2, which the host has in no library folder; install the package that has it, or take"},
		{name: "no such loader", p: elftest.Dynamic("GLIBC_2.34"), component: "runc", libc: glibc(36), has: bookworm[1:], err: "its loader /lib64/ld-linux-x86-64.so.2 is not on the host"},
		{name: "another machine", p: elftest.Program{Machine: elf.EM_AARCH64}, libc: glibc(36), err: "it is a program for arm64"},
	} {
		var has func(string) bool
		if c.has != nil {
			has = func(p string) bool { return slices.Contains(c.has, p) }
		}
		warn, err := CheckProgram(bytes.NewReader(c.p.Bytes()), c.component, "amd64", c.libc, c.strict, has)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.err)
		}
		if (c.warn == "") != (warn == "") || !strings.Contains(warn, c.warn) {
			t.Errorf("%s: warning %q, want %q", c.name, warn, c.warn)
		}
	}
	_, err := CheckProgram(bytes.NewReader(elftest.Dynamic("GLIBC_2.38").Bytes()), "containerd", "amd64", glibc(36), true, nil)
	if _, ok := errors.AsType[*LibCError](err); !ok {
		t.Errorf("%T", err)
	}
}
