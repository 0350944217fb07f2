package checks

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
)

func target(t *testing.T, uid int, live bool, facts host.Facts, arch string) Target {
	t.Helper()
	dir := "/"
	if !live {
		dir = t.TempDir()
	}
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := host.New(root)
	h.UID = uid
	return Target{Host: h, Facts: facts, Spec: &profiles.Spec{Arch: arch}}
}

func TestPreflightVerdicts(t *testing.T) {
	good := host.Facts{Arch: "amd64", ArchKnown: true, LibC: host.LibC{Kind: "glibc", Major: 2, Minor: 36}, SystemdInit: true}
	bare := host.Facts{Arch: "amd64"}
	for _, c := range []struct {
		name     string
		target   Target
		id       string
		verdict  Verdict
		observed string
	}{
		{"root", target(t, 0, true, good, "amd64"), "host/privilege", Pass, "uid 0"},
		{"not root", target(t, 1000, true, good, "amd64"), "host/privilege", Fail, "uid 1000"},
		{"not root, image", target(t, 1000, false, good, "amd64"), "host/privilege", Warn, "uid 1000"},
		{"systemd", target(t, 0, true, good, "amd64"), "host/init", Pass, "systemd"},
		{"no systemd", target(t, 0, true, bare, "amd64"), "host/init", Fail, "PID 1 is"},
		{"image without init", target(t, 0, false, bare, "amd64"), "host/init", Warn, "no systemd"},
		{"arch", target(t, 0, false, good, "amd64"), "host/arch", Pass, "amd64"},
		{"foreign arch", target(t, 0, false, good, "arm64"), "host/arch", Fail, "amd64"},
		{"empty image", target(t, 0, false, bare, "arm64"), "host/arch", Unknown, "no C library"},
		{"libc", target(t, 0, false, good, "amd64"), "host/libc", Pass, "glibc 2.36"},
		{"no libc", target(t, 0, false, bare, "amd64"), "host/libc", Unknown, "no C library"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for _, f := range Run(t.Context(), Preflight, c.target, nil) {
				if f.ID == c.id {
					if f.Verdict != c.verdict || !strings.Contains(f.Observed, c.observed) {
						t.Errorf("%s: %s, %q; want %s, %q", f.ID, f.Verdict, f.Observed, c.verdict, c.observed)
					}
					return
				}
			}
			t.Fatalf("no check %s", c.id)
		})
	}
}

func TestForeignRuntimesAreNamed(t *testing.T) {
	for _, c := range []struct {
		file    string
		verdict Verdict
	}{
		{"/usr/lib/systemd/system/containerd.service", Fail},
		{"/usr/bin/dockerd", Warn},
		{"/etc/systemd/system/containerd.service", Pass}, // ours, or refused by the plan
	} {
		tg := target(t, 0, false, host.Facts{}, "amd64")
		p := filepath.Join(tg.Host.Root.Dir(), c.file)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		got := foreignRuntime(t.Context(), tg)
		if got.Verdict != c.verdict || c.verdict != Pass && !strings.Contains(got.Observed, c.file) {
			t.Errorf("%s: %+v, want %s", c.file, got, c.verdict)
		}
	}
}

func TestSkipDemotesAndSaysSo(t *testing.T) {
	tg := target(t, 1000, true, host.Facts{}, "amd64")
	all := Run(t.Context(), Preflight, tg, nil).Failed()
	if len(all) != 2 {
		t.Fatalf("want privilege and init to fail, got %+v", all)
	}
	err := error(&FailedError{all})
	if _, ok := errors.AsType[*FailedError](err); !ok || strings.Count(err.Error(), "\n") != 1 || !strings.Contains(err.Error(), "sudo") {
		t.Errorf("all failures at once, with remedies: %v", err)
	}
	if left := Run(t.Context(), Preflight, tg, []string{"host/*"}).Failed(); len(left) != 0 {
		t.Errorf("demoted checks still fail: %+v", left)
	}
}

func TestCatalogueIsComplete(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range Catalogue() {
		if seen[c.ID] || c.Why == "" || c.Source == "" || c.Run == nil || c.Stage == "" || c.Severity == "" || !strings.Contains(c.ID, "/") {
			t.Errorf("check %+v is incomplete or its ID is taken", c.ID)
		}
		seen[c.ID] = true
	}
}
