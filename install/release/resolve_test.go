package release

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// elsewhere answers for every host, as upstream and mirrors would: files by "HOST/NAME".
type elsewhere struct {
	files map[string]string
	// hasty hosts tell no length.
	hasty bool

	mu    sync.Mutex
	asked []string
}

func (e *elsewhere) RoundTrip(r *http.Request) (*http.Response, error) {
	e.mu.Lock()
	e.asked = append(e.asked, r.Method+" "+r.URL.Host+"/"+path.Base(r.URL.Path))
	e.mu.Unlock()
	w := httptest.NewRecorder()
	text, ok := e.files[r.URL.Host+"/"+path.Base(r.URL.Path)]
	switch {
	case text == "page":
		w.Header().Set("Content-Type", "text/html; charset=utf-8")
		w.WriteHeader(http.StatusOK)
	case !ok:
		http.NotFound(w, r)
	case e.hasty && r.Method == http.MethodHead:
		w.WriteHeader(http.StatusOK)
	default:
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	}
	resp := w.Result()
	if resp.ContentLength < 0 && resp.Header.Get("Content-Length") != "" {
		_, _ = fmt.Sscan(resp.Header.Get("Content-Length"), &resp.ContentLength)
	}
	return resp, nil
}

func (e *elsewhere) requests() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.asked
}

const gh = "github.com/"

func request(component, version, arch string) LockRequest {
	return LockRequest{Request: Request{Component: component, Version: releases.MustVersion(version), Arch: arch}}
}

func own(req LockRequest, sum string) LockRequest { req.SHA256 = sum; return req }

// Where the digest and the size are from, with nothing at hand and with everything.
func TestLockFindsDigestAndSize(t *testing.T) {
	const content = "release"
	sum := sumOf([]byte(content))
	jo, stranger := signer(t, "Jo"), signer(t, "Stranger")
	runcSums := sum + "  runc.amd64\n" + digestB + "  runc.arm64\n"
	const newRunc, newContainerd, newCNI, newCrictl = "1.99.0", "2.99.0", "1.99.1", "1.99.2"
	const containerdFile = "containerd-2.99.0-linux-amd64.tar.gz"
	catalogued, _ := releases.SHA256("runc", false, releases.MustVersion("1.4.3"), "amd64")
	type files map[string]string
	for _, c := range []struct {
		name    string
		req     LockRequest
		local   files // in --artifacts
		far     files
		sources []string
		hasty   bool
		offline bool
		old     *Locked
		update  bool
		want    Locked
		signer  string
		note    string
		faults  []string
	}{
		{name: "the catalogue's, upstream's length", req: request("runc", "1.4.3", "amd64"), far: files{gh + "runc.amd64": content},
			want: Locked{File: "runc.amd64", SHA256: catalogued, From: "catalogue", Size: 7}},
		{name: "the profile's", req: own(request("runc", "1.4.3", "amd64"), sum), far: files{gh + "runc.amd64": content},
			want: Locked{File: "runc.amd64", SHA256: sum, From: "profile", Size: 7}},
		{name: "hash and name", req: request("containerd", newContainerd, "amd64"), far: files{gh + containerdFile: content, gh + containerdFile + ".sha256sum": sum + "  " + containerdFile + "\n"},
			want: Locked{File: containerdFile, SHA256: sum, From: "upstream https://github.com/containerd/containerd/releases/download/v2.99.0/" + containerdFile + ".sha256sum", Size: 7}},
		{name: "hash alone", req: request("crictl", newCrictl, "amd64"), far: files{gh + "crictl-v1.99.2-linux-amd64.tar.gz": content, gh + "crictl-v1.99.2-linux-amd64.tar.gz.sha256": sum + "\n"},
			want: Locked{File: "crictl-v1.99.2-linux-amd64.tar.gz", SHA256: sum, Size: 7}},
		{name: "as BSD writes it", req: request("cni", newCNI, "amd64"), far: files{gh + "cni-plugins-linux-amd64-v1.99.1.tgz": content, gh + "cni-plugins-linux-amd64-v1.99.1.tgz.sha256": "SHA256 (cni-plugins-linux-amd64-v1.99.1.tgz) = " + sum},
			want: Locked{File: "cni-plugins-linux-amd64-v1.99.1.tgz", SHA256: sum, Size: 7}},
		{name: "signed", req: request("runc", newRunc, "amd64"), far: files{gh + "runc.amd64": content, gh + "runc.sha256sum": string(clearSigned(t, jo, runcSums))},
			want: Locked{File: "runc.amd64", SHA256: sum, Size: 7}, signer: "Jo <jo@example.com> in runc.sha256sum"},
		{name: "signed by a stranger", req: request("runc", newRunc, "amd64"), far: files{gh + "runc.amd64": content, gh + "runc.sha256sum": string(clearSigned(t, stranger, runcSums))},
			want: Locked{File: "runc.amd64", SHA256: sum, Size: 7}, note: "signed by a key that is not known here ("},
		{name: "signed, and changed", req: request("runc", newRunc, "amd64"), far: files{gh + "runc.amd64": content, gh + "runc.sha256sum": strings.Replace(string(clearSigned(t, jo, runcSums)), digestB, digestA, 1)},
			faults: []string{"verify upstream https://github.com/opencontainers/runc/releases/download/v1.99.0/runc.sha256sum: bad signature: "}},
		{name: "a mirror before upstream, without its password", req: request("containerd", newContainerd, "amd64"), sources: []string{"https://u:hunter2@mirror.example/{version}/{file}?token=hunter2"},
			far:  files{"mirror.example/" + containerdFile: content, "mirror.example/" + containerdFile + ".sha256sum": sum, gh + containerdFile + ".sha256sum": digestB},
			want: Locked{File: containerdFile, SHA256: sum, From: "source https://xxxxx@mirror.example/2.99.0/" + containerdFile + ".sha256sum?xxxxx", Size: 7}},
		{name: "a mirror without checksum files", req: request("containerd", newContainerd, "amd64"), sources: []string{"https://mirror.example/{version}/{file}"},
			far:  files{"mirror.example/" + containerdFile: content, gh + containerdFile + ".sha256sum": sum},
			want: Locked{File: containerdFile, SHA256: sum, Size: 7}},
		{name: "a mirror that has one file by a name of its own", req: request("containerd", newContainerd, "amd64"), sources: []string{"https://mirror.example/{component}.tgz"},
			far:  files{"mirror.example/containerd.tgz": content, gh + containerdFile + ".sha256sum": sum},
			want: Locked{File: containerdFile, SHA256: sum, Size: 7}},
		{name: "no length before the file is sent", req: own(request("runc", "1.4.3", "amd64"), sum), far: files{gh + "runc.amd64": content}, hasty: true,
			want: Locked{File: "runc.amd64", SHA256: sum, From: "profile", Size: 7}},
		{name: "a page in place of the file", req: own(request("runc", "1.4.3", "amd64"), sum), sources: []string{"https://portal.example/{file}"}, far: files{"portal.example/runc.amd64": "page", gh + "runc.amd64": content},
			want: Locked{File: "runc.amd64", SHA256: sum, From: "profile", Size: 7}},
		{name: "upstream's file is another one", req: own(request("runc", "1.4.3", "amd64"), sum), far: files{gh + "runc.amd64": "tampered"}, hasty: true,
			faults: []string{"sha256 mismatch: got " + sumOf([]byte("tampered")) + ", want " + sum}},
		{name: "nobody has it", req: request("containerd", newContainerd, "amd64"), far: files{},
			faults: []string{"lock containerd 2.99.0 for linux/amd64: the sha256 of " + containerdFile + " could not be found out; put the file into a folder and give that with --artifacts, or set containerd.sha256.amd64 in the profile; looked at:",
				"\n  upstream https://github.com/containerd/containerd/releases/download/v2.99.0/" + containerdFile + ".sha256sum: the server answered 404 Not Found"}},
		{name: "a checksum file of other files", req: request("runc", newRunc, "amd64"), far: files{gh + "runc.sha256sum": digestB + "  runc.arm64\n"}, faults: []string{"it has no sha256 of runc.amd64"}},

		{name: "at hand, as the catalogue has it not", req: request("runc", "1.4.3", "amd64"), local: files{"runc.amd64": content}, offline: true,
			faults: []string{"verify DIR/runc.amd64: sha256 mismatch: got " + sum + ", want " + catalogued + " (from catalogue)"}},
		{name: "at hand, as the profile has it", req: own(request("runc", "1.4.3", "amd64"), sum), local: files{"runc.amd64": content},
			want: Locked{File: "runc.amd64", SHA256: sum, From: "profile", Size: 7}},
		{name: "at hand, and upstream's checksum", req: request("runc", newRunc, "amd64"), local: files{"runc.amd64": content, "runc.sha256sum": digestB + "  runc.amd64"}, far: files{gh + "runc.sha256sum": runcSums},
			want: Locked{File: "runc.amd64", SHA256: sum, From: "upstream https://github.com/opencontainers/runc/releases/download/v1.99.0/runc.sha256sum", Size: 7}},
		{name: "at hand, and upstream's checksum is another", req: request("runc", newRunc, "amd64"), local: files{"runc.amd64": "tampered"}, far: files{gh + "runc.sha256sum": runcSums},
			faults: []string{"verify DIR/runc.amd64: sha256 mismatch: got " + sumOf([]byte("tampered")) + ", want " + sum + " (from upstream https://github.com/"}},
		{name: "at hand, and upstream has nothing", req: request("runc", newRunc, "amd64"), local: files{"runc.amd64": content}, far: files{},
			want: Locked{File: "runc.amd64", SHA256: sum, From: "measured runc.amd64", Size: 7}, note: "upstream's checksum file is not to be had, the file at hand decides"},
		{name: "at hand, a checksum file beside", req: request("runc", newRunc, "amd64"), local: files{"runc.amd64": content, "runc.sha256sum": string(clearSigned(t, jo, runcSums))}, offline: true,
			want: Locked{File: "runc.amd64", SHA256: sum, From: "checksum file runc.sha256sum", Size: 7}, signer: "Jo <jo@example.com> in runc.sha256sum"},
		{name: "at hand, a checksum file with a bad signature beside", req: request("runc", newRunc, "amd64"), local: files{"runc.amd64": content, "runc.sha256sum": digestB + "  runc.arm64\n" + strings.Replace(string(clearSigned(t, jo, runcSums)), digestB, digestA, 1)}, offline: true,
			faults: []string{"verify DIR/runc.sha256sum: bad signature"}},
		{name: "at hand, another checksum beside", req: request("runc", newRunc, "amd64"), local: files{"runc.amd64": content, "runc.sha256sum": digestB + "  runc.amd64"}, offline: true,
			faults: []string{"verify DIR/runc.amd64: sha256 mismatch: got " + sum + ", want " + digestB + " (from checksum file runc.sha256sum)"}},
		{name: "measured", req: request("runc", newRunc, "amd64"), local: files{"runc.amd64": content}, offline: true,
			want: Locked{File: "runc.amd64", SHA256: sum, From: "measured runc.amd64", Size: 7}},
		{name: "one's own build for a machine that upstream has nothing for", req: request("containerd", newContainerd, "arm"), local: files{"containerd-2.99.0-linux-arm.tar.gz": content},
			want: Locked{File: "containerd-2.99.0-linux-arm.tar.gz", SHA256: sum, From: "measured containerd-2.99.0-linux-arm.tar.gz", Size: 7}},
		{name: "an older bundle with a checksum file", req: request("cni", newCNI, "amd64"), local: files{full: content, full + ".sha256sum": sum + "  " + full}, far: files{},
			want: Locked{File: full, SHA256: sum, From: "checksum file " + full + ".sha256sum", Size: 7}},
		{name: "an older bundle without", req: request("cni", newCNI, "amd64"), local: files{full: content}, offline: true,
			faults: []string{"--artifacts DIR: no such file, and " + full + " has no checksum file beside it"}},

		{name: "offline, with nothing", req: request("runc", "1.4.3", "amd64"), offline: true, local: files{"runc.arm64": ""},
			faults: []string{"lock runc 1.4.3 for linux/amd64: the size of runc.amd64 could not be found out; put the file into a folder and give that with --artifacts, or do it without --offline; looked at:",
				"\n  --artifacts DIR: no such file (it has runc.arm64)", "\n  upstream https://github.com/opencontainers/runc/releases/download/v1.4.3/runc.amd64: the network may not be used (--offline)"}},
		{name: "offline, but locked before", req: request("runc", "1.4.3", "amd64"), offline: true, old: &Locked{File: "runc.amd64", SHA256: catalogued, Size: 9, Signature: &Signature{File: "runc.amd64.asc", Signer: "Jo", Fingerprint: strings.Repeat("A1", 20)}},
			want: Locked{File: "runc.amd64", SHA256: catalogued, From: "catalogue", Size: 9}, signer: "Jo in runc.amd64.asc"},
		{name: "changed under its version", req: own(request("runc", "1.4.3", "amd64"), sum), local: files{"runc.amd64": content}, old: &Locked{File: "runc.amd64", SHA256: digestB, Size: 9},
			faults: []string{"lock runc 1.4.3 for linux/amd64: the file changed under its version: it was " + digestB + " (nodeprep.lock:12) and is " + sum + " (profile): it was repackaged, or somebody tampers with it; find out which, then --update takes the new one"}},
		{name: "changed, and that is wanted", req: own(request("runc", "1.4.3", "amd64"), sum), local: files{"runc.amd64": content}, update: true, old: &Locked{File: "runc.amd64", SHA256: digestB, Size: 9, Signature: &Signature{File: "x", Signer: "Jo"}},
			want: Locked{File: "runc.amd64", SHA256: sum, From: "profile", Size: 7}},
		{name: "another file than before", req: request("cni", newCNI, "amd64"), local: files{"cni-plugins-linux-amd64-v1.99.1.tgz": content}, offline: true, old: &Locked{File: full, SHA256: digestB, Size: 9},
			want: Locked{File: "cni-plugins-linux-amd64-v1.99.1.tgz", SHA256: sum, Size: 7}},

		{name: "a detached signature", req: request("runc", newRunc, "amd64"), local: files{"runc.amd64": content, "runc.amd64.asc": string(detached(t, jo, born, content))}, offline: true,
			want: Locked{File: "runc.amd64", SHA256: sum, Size: 7}, signer: "Jo <jo@example.com> in runc.amd64.asc"},
		{name: "a bad one", req: own(request("runc", "1.4.3", "amd64"), sum), local: files{"runc.amd64": content, "runc.amd64.asc": string(detached(t, jo, born, "other"))}, offline: true,
			faults: []string{"verify DIR/runc.amd64 by DIR/runc.amd64.asc: bad signature: ", "do not use the file"}},
		{name: "a stranger's", req: request("runc", newRunc, "amd64"), local: files{"runc.amd64": content, "runc.amd64.asc": string(detached(t, stranger, born, content))}, offline: true,
			want: Locked{File: "runc.amd64", SHA256: sum, Size: 7}, note: "runc 1.99.0 for linux/amd64: verify DIR/runc.amd64.asc: signed by a key that is not known here ("},
		{name: "one of a file that is elsewhere", req: request("runc", "1.4.3", "amd64"), local: files{"runc.amd64.asc": string(detached(t, jo, born, content))}, far: files{gh + "runc.amd64": content},
			want: Locked{File: "runc.amd64", SHA256: catalogued, Size: 7}, note: "DIR/runc.amd64.asc is not verified: runc.amd64 itself is not at hand"},
	} {
		t.Run(c.name, func(t *testing.T) {
			far := &elsewhere{files: c.far, hasty: c.hasty}
			s := &Store{Offline: c.offline, CacheDir: filepath.Join(t.TempDir(), "cache"), transport: far, attempts: 2, firstWait: time.Millisecond}
			dir := t.TempDir()
			if c.local != nil {
				s.Dirs = []string{dir}
			}
			for name, text := range c.local {
				write(t, filepath.Join(dir, name), []byte(text))
			}
			for _, u := range c.sources {
				s.Sources = append(s.Sources, desired.Source{URL: u})
			}
			opt := LockOptions{Keyring: keyring(t, jo), Update: c.update}
			if c.old != nil {
				e := *c.old
				e.Component, e.Version, e.Arch = c.req.Component, c.req.Version.String(), c.req.Arch
				e.Origin.File, e.Origin.Line = "nodeprep.lock", 12
				opt.Old = &Lock{Entries: []Locked{e}}
			}
			plain := strings.NewReplacer(dir, "DIR").Replace
			lock, notes, err := s.Lock(t.Context(), []LockRequest{c.req}, opt)
			if c.offline && len(far.requests()) > 0 {
				t.Errorf("offline, and %v was asked", far.requests())
			}
			if len(c.faults) > 0 {
				if err == nil || lock != nil {
					t.Fatalf("it was locked: %+v", lock)
				}
				for _, w := range c.faults {
					if !strings.Contains(plain(err.Error()), w) {
						t.Errorf("not said: %s\n%v", w, err)
					}
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			got := lock.Entries[0]
			said := ""
			if got.Signature != nil {
				said = got.Signature.Signer + " in " + got.Signature.File
			}
			if said != c.signer {
				t.Errorf("signed by %q, want %q", said, c.signer)
			}
			if all := plain(strings.Join(notes, "\n")); (c.note == "") != (all == "") || !strings.Contains(all, c.note) {
				t.Errorf("notes: %s\nwant %s", all, c.note)
			}
			want := c.want
			want.Component, want.Version, want.Arch = c.req.Component, c.req.Version.String(), c.req.Arch
			if got.File != full {
				want.URL = releases.URL(want.Component, false, c.req.Version, want.Arch)
			}
			if want.From == "" {
				want.From = plain(got.From)
			}
			got.From, got.Signature = plain(got.From), nil
			if d := cmp.Diff(want, got); d != "" {
				t.Errorf("(-want +got)\n%s", d)
			}
			if strings.Contains(string(lock.Marshal()), "hunter2") {
				t.Error("the lock shows a password")
			}
			if _, list := ReadLock("l", lock.Marshal()); len(list) > 0 {
				t.Errorf("what was written cannot be read: %v", list)
			}
		})
	}
}

func TestLockSaysEverythingThatIsMissing(t *testing.T) {
	s := &Store{Offline: true}
	static := request("containerd", "2.3.4", "amd64")
	static.Static, static.Optional = true, true
	lock, notes, err := s.Lock(t.Context(), []LockRequest{static, request("containerd", "2.3.4", "amd64"), request("runc", "1.99.0", "amd64"), request("cni", "1.9.1", "arm64")}, LockOptions{})
	if lock != nil || err == nil {
		t.Fatalf("%+v", lock)
	}
	for _, w := range []string{"containerd 2.3.4 for linux/amd64: the size of", "runc 1.99.0 for linux/amd64: the sha256 of", "cni 1.9.1 for linux/arm64: the size of"} {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("not said: %s\n%v", w, err)
		}
	}
	if d := cmp.Diff([]string{"static containerd 2.3.4 for linux/amd64 is left out: the size of containerd-static-2.3.4-linux-amd64.tar.gz could not be found out"}, notes); d != "" {
		t.Error(d)
	}
}

// What is left out must be what could not be found out, not what is wrong.
func TestAnOptionalFileThatIsWrongIsAFault(t *testing.T) {
	dir := t.TempDir()
	write(t, filepath.Join(dir, "containerd-static-2.3.4-linux-amd64.tar.gz"), []byte("tampered"))
	req := request("containerd", "2.3.4", "amd64")
	req.Static, req.Optional = true, true
	_, _, err := (&Store{Offline: true, Dirs: []string{dir}}).Lock(t.Context(), []LockRequest{req}, LockOptions{})
	if _, ok := errors.AsType[*DigestError](err); !ok {
		t.Error(err)
	}
}

func TestLockOverRealConnections(t *testing.T) {
	content := noise(10 << 10)
	o := serve(t, content, func(n int, w http.ResponseWriter, r *http.Request) bool {
		switch {
		case !strings.HasSuffix(r.URL.Path, ".sha256sum"):
			return false
		case n == 1: // a moment's weakness
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			fmt.Fprintf(w, "%s  containerd-2.99.0-linux-amd64.tar.gz\n", sumOf(content))
		}
		return true
	})
	s := &Store{Sources: []desired.Source{{URL: o.URL + "/{file}"}}, firstWait: time.Millisecond}
	lock, _, err := s.Lock(t.Context(), []LockRequest{request("containerd", "2.99.0", "amd64")}, LockOptions{})
	if err != nil || lock.Entries[0].Size != int64(len(content)) || lock.Entries[0].SHA256 != sumOf(content) {
		t.Fatalf("%+v, %v", lock, err)
	}
	if o.heads.Load() != 1 || o.gets.Load() != 2 {
		t.Errorf("%d heads and %d gets: a file whose length is told is not fetched", o.heads.Load(), o.gets.Load())
	}
	s.Network = host.NoNetwork("--offline")
	_, _, err = s.Lock(t.Context(), []LockRequest{request("containerd", "2.99.0", "amd64")}, LockOptions{})
	if err == nil || !strings.Contains(err.Error(), "for the sha256 of containerd 2.99.0 for linux/amd64: the network may not be used (--offline)") {
		t.Error(err)
	}
}

// A file that was locked is held to the lock before anything of it is unpacked.
func TestLockedFilesHaveTheirSize(t *testing.T) {
	content := []byte("release")
	dir := t.TempDir()
	a := artifact(t, content)
	a.Size, a.Locked, a.SHA256From = int64(len(content)), true, "nodeprep.lock:7"
	file := write(t, filepath.Join(dir, tarball), content[:3])
	_, err := (&Store{Dirs: []string{dir}}).Locate(t.Context(), a)
	if e, ok := errors.AsType[*SizeError](err); !ok || err.Error() != "verify "+file+": it has 3 bytes, want 7 (from nodeprep.lock:7): it is cut short, or another file" {
		t.Errorf("%v %v", e, err)
	}
	write(t, file, content)
	l, err := (&Store{Dirs: []string{dir}}).Locate(t.Context(), a)
	if err != nil || l.Size != a.Size || l.SHA256From != "nodeprep.lock:7" {
		t.Errorf("%+v %v", l, err)
	}
	// Of a download, too, whose digest is right: then it is the lock that is wrong.
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	o := serve(t, content, nil)
	a.URL, a.Size = o.URL+"/"+tarball, 9
	s := &Store{CacheDir: filepath.Join(t.TempDir(), "cache"), firstWait: time.Millisecond}
	if _, err := fetch(t, s, a, nil); err == nil || !strings.Contains(err.Error(), "it has 7 bytes, want 9 (from nodeprep.lock:7)") {
		t.Error(err)
	}
	// Nothing but the locked name is taken.
	a.Size, a.URL, a.Files = 0, "", a.Files[:1]
	write(t, filepath.Join(dir, oldBundle), content)
	if _, err := (&Store{Dirs: []string{dir}}).Locate(t.Context(), a); err == nil {
		t.Error("an older bundle was taken for a locked file")
	}
}
