package release

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/releases"
)

func sumOf(b []byte) string {
	s := sha256.Sum256(b)
	return hex.EncodeToString(s[:])
}

// artifact is a containerd release with the digest of content, or none.
func artifact(t *testing.T, content []byte) desired.Artifact {
	t.Helper()
	r := Request{Component: releases.Containerd, Version: releases.MustVersion("1.7.99"), Arch: "amd64"}
	if content != nil {
		r.SHA256 = sumOf(content)
	}
	list, faults := Artifacts([]Request{r})
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	return list[0]
}

func write(t *testing.T, file string, content []byte) string {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

const (
	tarball   = "containerd-1.7.99-linux-amd64.tar.gz"
	oldBundle = "cri-containerd-1.7.99-linux-amd64.tar.gz"
	full      = "nerdctl-full-2.3.0-linux-amd64.tar.gz"
)

func TestLocateOrder(t *testing.T) {
	content := []byte("release")
	a := artifact(t, content)
	base := t.TempDir()
	usb, cache, src := filepath.Join(base, "usb"), filepath.Join(base, "cache"), filepath.Join(base, "src")
	for _, d := range []string{usb, cache, src} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	s := &Store{
		Dirs: []string{filepath.Join(base, "absent"), usb}, CacheDir: cache,
		Sources: []desired.Source{{URL: "https://user:secret@mirror.example/{component}/{version}/{arch}//{file}?token=secret"}, {Dir: src}},
	}
	locate := func() Located {
		t.Helper()
		l, err := s.Locate(t.Context(), a)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l := locate()
	if want := "https://xxxxx@mirror.example/containerd/1.7.99/amd64/" + tarball + "?xxxxx"; l.Path != "" || l.URL != want || l.Place != "source" {
		t.Errorf("with nothing local: %q %q", l.URL, l.Place)
	}
	// From the last place to the first: each beats the ones before.
	for _, c := range []struct{ file, place string }{
		{filepath.Join(src, oldBundle), "source " + src},
		{filepath.Join(src, tarball), "source " + src},
		{s.cached(Located{SHA256: a.SHA256, File: tarball}), "cache"},
		{filepath.Join(usb, oldBundle), "--artifacts " + usb},
		{filepath.Join(usb, tarball), "--artifacts " + usb},
	} {
		write(t, c.file, content)
		l := locate()
		if l.Path != c.file || l.Place != c.place || l.Size != int64(len(content)) || l.URL != "" || l.SHA256 != a.SHA256 || l.SHA256From != "profile" {
			t.Errorf("want %s of %s, got %+v", c.file, c.place, l)
		}
	}
}

func TestLocateDoesNotTrustADamagedCache(t *testing.T) {
	a := artifact(t, []byte("release"))
	s := &Store{CacheDir: t.TempDir()}
	write(t, s.cached(Located{SHA256: a.SHA256, File: tarball}), []byte("rot"))
	l, err := s.Locate(t.Context(), a)
	if err != nil || l.Path != "" || len(l.looked) != 1 || !strings.Contains(l.looked[0].Why, "damaged") {
		t.Errorf("%+v, %v", l, err)
	}
}

func TestLocateDigests(t *testing.T) {
	content := []byte("release")
	unknown := artifact(t, nil)
	known := artifact(t, content)
	catalogued := known
	catalogued.SHA256From = fromCatalogue

	for _, c := range []struct {
		name  string
		a     desired.Artifact
		files map[string]string
		want  string // what SHA256From begins with
		fault string
	}{
		{name: "the artifact's beats the file beside", a: known,
			files: map[string]string{tarball: "release", tarball + ".sha256sum": strings.Repeat("0", 64)}, want: "profile"},
		{name: "a checksum file beside it", a: unknown,
			files: map[string]string{tarball: "release", "SHA256SUMS": sumOf(content) + "  " + tarball}, want: "DIR/SHA256SUMS"},
		{name: "nobody knows", a: unknown, files: map[string]string{tarball: "release"},
			fault: `no sha256 of it is known; set containerd.sha256.amd64 in the profile to what "sha256sum DIR/` + tarball + `" prints, or put upstream's checksum file beside it`},
		{name: "the catalogue does not know a bundle", a: catalogued,
			files: map[string]string{oldBundle: "bundle", oldBundle + ".sha256sum": sumOf([]byte("bundle"))}, want: "DIR/" + oldBundle + ".sha256sum"},
		{name: "a profile may", a: known, files: map[string]string{full: "release"}, want: "profile"},
		{name: "a bundle without a digest is passed over", a: catalogued, files: map[string]string{full: "x"}, want: "catalogue"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for n, text := range c.files {
				write(t, filepath.Join(dir, n), []byte(text))
			}
			l, err := (&Store{Dirs: []string{dir}}).Locate(t.Context(), c.a)
			if c.fault != "" {
				if _, ok := errors.AsType[*NoDigestError](err); !ok || !strings.Contains(err.Error(), strings.ReplaceAll(c.fault, "DIR", dir)) {
					t.Errorf("got %v", err)
				}
				return
			}
			if err != nil || l.SHA256From != strings.ReplaceAll(c.want, "DIR", dir) {
				t.Errorf("got %q, %v", l.SHA256From, err)
			}
		})
	}

	_, err := (&Store{}).Locate(t.Context(), unknown)
	if err == nil || !strings.Contains(err.Error(), `fetch https://github.com/containerd/containerd/releases/download/v1.7.99/`+tarball) || !strings.Contains(err.Error(), "set containerd.sha256.amd64 in the profile to the one that upstream published: https://github.com/containerd/containerd/releases/download/v1.7.99/"+tarball+".sha256sum") {
		t.Errorf("upstream without a digest: %v", err)
	}
}

func TestAbsentEverywhereListsEveryPlace(t *testing.T) {
	a := artifact(t, []byte("release"))
	a.URL = ""
	base := t.TempDir()
	usb, src := filepath.Join(base, "usb"), filepath.Join(base, "src")
	write(t, filepath.Join(usb, "containerd-1.7.98-linux-amd64.tar.gz"), nil)
	write(t, filepath.Join(usb, "nerdctl-full-2.3.0-linux-amd64.tar.gz"), nil)
	a.SHA256From = fromCatalogue
	write(t, filepath.Join(src, "nerdctl-full-2.3.0-linux-amd64.tar.gz"), nil)
	write(t, filepath.Join(src, "nerdctl-full-2.2.0-linux-amd64.tar.gz"), nil)
	s := &Store{Dirs: []string{usb, filepath.Join(base, "absent")}, CacheDir: filepath.Join(base, "cache"), Sources: []desired.Source{{Dir: src}}}
	_, err := s.Locate(t.Context(), a)
	if _, ok := errors.AsType[*NotFoundError](err); !ok {
		t.Fatal(err)
	}
	want := `find containerd-1.7.99-linux-amd64.tar.gz for containerd 1.7.99: not to be had from any of these places:
  --artifacts BASE/usb: no such file, and nerdctl-full-2.3.0-linux-amd64.tar.gz has no checksum file beside it (sha256sum nerdctl-full-2.3.0-linux-amd64.tar.gz > nerdctl-full-2.3.0-linux-amd64.tar.gz.sha256sum makes one)
  --artifacts BASE/absent: no such file or directory
  cache BASE/cache: no such file
  source BASE/src: no such file, and of nerdctl-full-2.2.0-linux-amd64.tar.gz, nerdctl-full-2.3.0-linux-amd64.tar.gz only one may be there`
	if got := strings.ReplaceAll(err.Error(), base, "BASE"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	s = &Store{Dirs: []string{usb}}
	if err := os.Remove(filepath.Join(usb, full)); err != nil {
		t.Fatal(err)
	}
	if _, err = s.Locate(t.Context(), a); err == nil || !strings.Contains(err.Error(), "no such file (it has containerd-1.7.98-linux-amd64.tar.gz)") {
		t.Error(err)
	}
}

func TestSourceURLThatIsNone(t *testing.T) {
	a := artifact(t, []byte("release"))
	for _, u := range []string{"ftp://x/{file}", "https:///{file}", "https://user:secret@h:%zz/"} {
		_, err := (&Store{Sources: []desired.Source{{URL: u}}}).Locate(t.Context(), a)
		if err == nil || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %v", u, err)
		}
	}
}
