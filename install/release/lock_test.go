package release

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
)

const (
	digestA = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
	digestB = "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"
	// digits has the look of a number, which YAML would make of it.
	digits = "1234567890123456789012345678901234567890123456789012345678901e10"
)

func someLock() *Lock {
	return &Lock{File: "nodeprep.lock", Entries: []Locked{
		{Component: "runc", Version: "1.4.3", Arch: "arm64", File: "runc.arm64", URL: "https://github.com/opencontainers/runc/releases/download/v1.4.3/runc.arm64",
			Size: 12, SHA256: digits, From: "measured artifacts/runc.arm64",
			Signature: &Signature{File: "runc.arm64.asc", Signer: "Jo <jo@example.com>", Fingerprint: strings.Repeat("AB", 20)}},
		{Component: "containerd", Version: "1.10.2", Arch: "amd64", Static: true, File: "containerd-static-1.10.2-linux-amd64.tar.gz", Size: 3, SHA256: digestB, From: "catalogue"},
		{Component: "containerd", Version: "1.10.2", Arch: "amd64", File: "containerd-1.10.2-linux-amd64.tar.gz", Size: 3, SHA256: digestA, From: "catalogue"},
		{Component: "containerd", Version: "1.9.9", Arch: "arm64", File: "containerd-1.9.9-linux-arm64.tar.gz", Size: 3, SHA256: digestA, From: "profile"},
	}}
}

func TestLockIsWrittenSortedAndReadBack(t *testing.T) {
	l := someLock()
	text := l.Marshal()
	back, list := ReadLock("nodeprep.lock", text)
	if len(list) > 0 {
		t.Fatalf("%v\n%s", list, text)
	}
	l.Sort()
	if d := cmp.Diff(l.Entries, back.Entries, cmpopts.IgnoreFields(Locked{}, "Origin")); d != "" {
		t.Errorf("read back (-want +got):\n%s", d)
	}
	if d := cmp.Diff(string(text), string(back.Marshal())); d != "" {
		t.Errorf("written again (-first +second):\n%s", d)
	}
	var order []string
	for _, e := range back.Entries {
		order = append(order, e.Title())
	}
	want := []string{"containerd 1.9.9 for linux/arm64", "containerd 1.10.2 for linux/amd64", "static containerd 1.10.2 for linux/amd64", "runc 1.4.3 for linux/arm64"}
	if d := cmp.Diff(want, order); d != "" {
		t.Error(d)
	}
	reversed := someLock()
	slices.Reverse(reversed.Entries)
	if d := cmp.Diff(string(text), string(reversed.Marshal())); d != "" {
		t.Errorf("the order of entries changes the text:\n%s", d)
	}
	// The place of an entry is the line of its digest, which is where people look.
	line := strings.Split(string(text), "\n")[back.Entries[0].Origin.Line-1]
	if !strings.Contains(line, "sha256: "+digestA) {
		t.Errorf("the entry's line is %q", line)
	}
	if !strings.HasPrefix(string(text), "# ") || strings.Contains(string(text), "\t") {
		t.Errorf("text:\n%s", text)
	}
}

func TestLocksThatAreNotRead(t *testing.T) {
	const head = "apiVersion: nodeprep/v1alpha1\nkind: Lock\n"
	entry := func(lines ...string) string {
		return head + "artifacts:\n  - " + strings.Join(lines, "\n    ") + "\n"
	}
	runc := []string{"component: runc", "version: 1.4.3", "arch: amd64", "file: runc.amd64", "sha256: " + digestA}
	with := func(i int, line string) string {
		lines := slices.Clone(runc)
		lines[i] = line
		return entry(lines...)
	}
	for _, c := range []struct {
		name, text string
		want       []string
	}{
		{"nothing", "", []string{"l:1:1: the lock is empty"}},
		{"a comment alone", "# x\n", []string{"l:1:1: the lock is empty"}},
		{"no YAML", "a: [\n", []string{"not YAML"}},
		{"a list", "- a\n", []string{"l:1:1: found a list, want a map with apiVersion, kind, artifacts"}},
		{"a merge left unfinished", head + "<<<<<<< HEAD\nartifacts: []\n=======\n", []string{"l:3:1: a merge was left unfinished here (take either side, then let nodeprep lock write it anew)"}},
		{"a newer nodeprep's", "apiVersion: nodeprep/v1\nkind: Lock\nfiles: []\n",
			[]string{"l:1:13: apiVersion: a lock of nodeprep/v1 was written by a newer nodeprep; this one reads nodeprep/v1alpha1 (use that nodeprep)"}},
		{"a profile", "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nrunc: {}\n", []string{`l:2:7: kind: found "NodeProfile", want Lock`}},
		{"something of others", "apiVersion: v1\nkind: List\nartifacts: []\n", []string{`l:1:13: apiVersion: found "v1", want nodeprep/v1alpha1`, `l:2:7: kind: found "List", want Lock`}},
		{"two documents", head + "artifacts: []\n---\nx: 1\n", []string{"a second YAML document begins here"}},
		{"what it should say is missing", "artifacts: []\n", []string{"l:1:1: apiVersion is missing", "l:1:1: kind is missing"}},
		{"unknown keys", head + "artifcats: []\n", []string{`l:3:1: artifcats: unknown key "artifcats" (did you mean artifacts?)`, "artifacts is missing"}},
		{"an unknown key of an entry", entry(append(slices.Clone(runc), "sha265: x")...), []string{`l:9:5: artifacts[0].sha265: unknown key "sha265" (did you mean sha256?)`}},
		{"a key twice", entry(append(slices.Clone(runc), "arch: arm64")...), []string{"l:9:5: artifacts[0].arch: the key arch is here twice, first in line 6"}},
		{"an entry without all", entry("component: runc"), []string{"l:4:5: artifacts[0]: arch is missing", "file is missing", "sha256 is missing", "version is missing"}},
		{"an unknown component", with(0, "component: runk"), []string{`l:4:16: artifacts[0].component: unknown component "runk" (did you mean runc?)`}},
		{"a version with v", with(1, "version: v1.4.3"), []string{`version "v1.4.3": want it without the v (write 1.4.3)`}},
		{"no version", with(1, "version: 1.4"), []string{`version "1.4": want MAJOR.MINOR.PATCH`}},
		{"no arch", with(2, "arch: linux/amd64"), []string{`"linux/amd64" is not an architecture's name, such as amd64`}},
		{"a path for a file", with(3, "file: ../../etc/runc.amd64"), []string{`"../../etc/runc.amd64" is not a file's name`}},
		{"a pattern for a file", with(3, `file: "runc.*"`), []string{`"runc.*" is not a file's name`}},
		{"a short digest", with(4, "sha256: abc"), []string{`l:8:13: artifacts[0].sha256: sha256 "abc" is not 64 hexadecimal digits in lower case`}},
		{"a digest in capitals", with(4, "sha256: "+strings.ToUpper(digestA)), []string{"not 64 hexadecimal digits in lower case"}},
		{"no digest", with(4, "sha256:"), []string{"artifacts[0].sha256: found nothing, want a text"}},
		{"sizes", entry(append(slices.Clone(runc), "size: -1")...), []string{`found "-1", want a number of bytes`}},
		{"an address of a file", entry(append(slices.Clone(runc), "url: file:///etc/passwd")...), []string{"want an address with http:// or https:// and a host"}},
		{"an address with a password", entry(append(slices.Clone(runc), "url: https://u:secret@h/f")...), []string{"want an address"}},
		{"a variant of runc", entry(append(slices.Clone(runc), "variant: static")...), []string{"artifacts[0].variant: only containerd has variants"}},
		{"containerd without a variant", with(0, "component: containerd"), []string{"artifacts[0]: variant is missing: want dynamic or static"}},
		{"a signature of nobody", entry(append(slices.Clone(runc), "signature: {file: f, signer: s, fingerprint: 12}")...), []string{`"12" is not a fingerprint`}},
		{"a signature cut short", entry(append(slices.Clone(runc), "signature: {file: f}")...), []string{"fingerprint is missing", "signer is missing"}},
		{"a file twice", entry(runc...) + "  - " + strings.Join(runc, "\n    ") + "\n", []string{"l:9:5: artifacts[1]: runc 1.4.3 for linux/amd64 is here twice, first in line 4 (keep one of them)"}},
		{"an alias", head + "artifacts: &a [*a]\n", []string{"found an alias, which is not read in a lock"}},
		{"too much of it", strings.Repeat("#", maxLock+1), []string{"the lock has more than the"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lock, list := ReadLock("l", []byte(c.text))
			if lock != nil || len(list) != len(c.want) {
				t.Fatalf("%d findings, want %d:\n%v", len(list), len(c.want), list)
			}
			var all strings.Builder
			for _, d := range list {
				all.WriteString(d.String() + "\n")
			}
			for _, w := range c.want {
				if !strings.Contains(all.String(), w) {
					t.Errorf("not said: %s\n%s", w, all.String())
				}
				if strings.Contains(all.String(), "secret") {
					t.Errorf("the password is shown: %s", all.String())
				}
			}
		})
	}
}

func FuzzReadLock(f *testing.F) {
	f.Add(someLock().Marshal())
	f.Add([]byte("apiVersion: nodeprep/v1alpha1\nkind: Lock\nartifacts: [{sha256: {a: b}}]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		lock, list := ReadLock("l", data)
		if (lock == nil) != list.HasErrors() {
			t.Fatalf("a lock or faults, not both: %v", list)
		}
		if lock == nil {
			return
		}
		again, list := ReadLock("l", lock.Marshal())
		if len(list) > 0 {
			t.Fatalf("what was read cannot be written and read again: %v\n%s", list, lock.Marshal())
		}
		lock.Sort()
		if d := cmp.Diff(lock.Entries, again.Entries, cmpopts.IgnoreFields(Locked{}, "Origin"), cmpopts.EquateEmpty()); d != "" {
			t.Fatal(d)
		}
	})
}

func TestLockRulesWhichFilesAreUsed(t *testing.T) {
	own, sum := someLock(), releases.MustVersion("1.10.2")
	own.Entries = append(own.Entries,
		Locked{Component: "cni", Version: "1.9.1", Arch: "amd64", File: "cri-containerd-cni-1.10.2-linux-amd64.tar.gz", SHA256: digestB},
		// For a machine that upstream publishes nothing for.
		Locked{Component: "containerd", Version: "1.10.2", Arch: "arm", File: "containerd-1.10.2-linux-arm.tar.gz", SHA256: digestB},
		Locked{Component: "crictl", Version: "1.36.0", Arch: "amd64", File: "crictl-v1.35.0-linux-amd64.tar.gz", SHA256: digestB},
	)
	own, list := ReadLock("dir/nodeprep.lock", own.Marshal())
	if len(list) > 0 {
		t.Fatal(list)
	}
	own.Command = "nodeprep lock -f dir/node.yaml"
	at := diag.Origin{Path: "containerd.version", File: "dir/node.yaml", Line: 4, Column: 3}
	for _, c := range []struct {
		name  string
		req   Request
		check func(a desired.Artifact) bool
		want  string
	}{
		{name: "the file, digest and size of the lock", req: Request{Component: "containerd", Version: sum, Arch: "amd64"},
			check: func(a desired.Artifact) bool {
				return a.Locked && a.SHA256 == digestA && a.Size == 3 && a.SHA256From == "dir/nodeprep.lock:25" && len(a.Files) == 1 && a.Files[0] == "containerd-1.10.2-linux-amd64.tar.gz"
			}},
		{name: "the static one", req: Request{Component: "containerd", Version: sum, Arch: "amd64", Static: true},
			check: func(a desired.Artifact) bool { return a.SHA256 == digestB }},
		{name: "an older bundle where the lock names it", req: Request{Component: "cni", Version: releases.MustVersion("1.9.1"), Arch: "amd64"},
			check: func(a desired.Artifact) bool {
				return len(a.Files) == 1 && a.Files[0] == "cri-containerd-cni-1.10.2-linux-amd64.tar.gz"
			}},
		{name: "what upstream does not publish", req: Request{Component: "containerd", Version: sum, Arch: "arm"},
			check: func(a desired.Artifact) bool { return a.SHA256 == digestB && a.URL == "" }},
		{name: "a digest of the profile's that agrees", req: Request{Component: "containerd", Version: sum, Arch: "amd64", SHA256: strings.ToUpper(digestA)},
			check: func(a desired.Artifact) bool { return a.SHA256From == "dir/nodeprep.lock:25" }},
		{name: "one that does not", req: Request{Component: "containerd", Version: sum, Arch: "amd64", SHA256: digestB, Origin: at},
			want: "dir/node.yaml:4:3: containerd.version: sha256 " + digestB + " of containerd 1.10.2 disagrees with dir/nodeprep.lock:25, which has " + digestA +
				" (nodeprep lock -f dir/node.yaml --arch amd64,arm,arm64 --update, if the profile is right)"},
		{name: "what it does not have", req: Request{Component: "containerd", Version: releases.MustVersion("2.3.4"), Arch: "amd64", Origin: at},
			want: "dir/node.yaml:4:3: containerd.version: dir/nodeprep.lock does not have containerd 2.3.4 for linux/amd64, but 1.10.2 dynamic, 1.10.2 static (nodeprep lock -f dir/node.yaml --arch amd64,arm,arm64 adds it)"},
		{name: "an arch it does not have, of a default", req: Request{Component: "runc", Version: releases.MustVersion("1.4.3"), Arch: "s390x"},
			want: "dir/nodeprep.lock: dir/nodeprep.lock does not have runc 1.4.3 for linux/s390x (nodeprep lock -f dir/node.yaml --arch amd64,arm,arm64,s390x adds it)"},
		{name: "a file of something else", req: Request{Component: "crictl", Version: releases.MustVersion("1.36.0"), Arch: "amd64"},
			want: "crictl-v1.35.0-linux-amd64.tar.gz is no file with crictl 1.36.0 for linux/amd64 (want crictl-v1.36.0-linux-amd64.tar.gz)"},
	} {
		t.Run(c.name, func(t *testing.T) {
			reqs := []Request{c.req}
			if c.req.Component != releases.Containerd {
				reqs = append(reqs, Request{Component: "containerd", Version: sum, Arch: "amd64"})
			}
			got, list := own.Artifacts(reqs)
			if c.want != "" {
				if len(list) != 1 || !strings.Contains(list[0].String(), c.want) {
					t.Errorf("got  %v\nwant %s", list, c.want)
				}
				return
			}
			if len(list) > 0 || len(got) != len(reqs) || !c.check(got[0]) {
				t.Errorf("%v %+v", list, got)
			}
		})
	}
	// Without a lock it is as ever.
	var none *Lock
	if got, list := none.Artifacts([]Request{{Component: "containerd", Version: sum, Arch: "arm"}}); len(got) != 0 || len(list) != 1 {
		t.Errorf("%v %v", got, list)
	}
}

func TestChangesBetweenLocks(t *testing.T) {
	before, after := someLock(), someLock()
	after.Entries[0].SHA256 = digestB            // runc: another file
	after.Entries[1].From = "upstream https://x" // containerd static: others vouch for it
	after.Entries = append(after.Entries[:3:3], Locked{Component: "cni", Version: "1.9.1", Arch: "amd64", File: "f", SHA256: digestA})
	var got []string
	for _, c := range Changes(before, after) {
		switch {
		case c.Old == nil:
			got = append(got, "+ "+c.New.Title())
		case c.New == nil:
			got = append(got, "- "+c.Old.Title())
		case c.Same():
			got = append(got, "= "+c.New.Title())
		default:
			got = append(got, "~ "+c.New.Title())
		}
	}
	want := []string{"+ cni 1.9.1 for linux/amd64", "- containerd 1.9.9 for linux/arm64", "= containerd 1.10.2 for linux/amd64",
		"= static containerd 1.10.2 for linux/amd64", "~ runc 1.4.3 for linux/arm64"}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if c := Changes(nil, before); len(c) != 4 || c[0].Old != nil {
		t.Errorf("%+v", c)
	}
}
