package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func tree(t *testing.T, links map[string]string, files ...string) *Root {
	t.Helper()
	dir := t.TempDir()
	for _, f := range files {
		p := filepath.Join(dir, f)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(f), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for name, target := range links {
		p := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, p); err != nil {
			t.Fatal(err)
		}
	}
	r, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Real hosts have absolute links (/lib -> /usr/lib, /var/lib/containerd -> /mnt/...):
// under a root they lead into that root, as they would once it is booted.
func TestLinksResolveInsideTheRoot(t *testing.T) {
	r := tree(t, map[string]string{"lib": "/usr/lib", "etc/abs": "/etc/real", "up": "../../../../etc"}, "usr/lib/x", "etc/real")
	for p, want := range map[string]string{
		"/lib/x": "usr/lib/x", "/etc/abs": "etc/real", "/up/real": "etc/real", "/../../etc/real": "etc/real", "/lib/none/y": "usr/lib/none/y",
	} {
		got, err := r.Resolve(p)
		if err != nil || got != filepath.Join(r.Dir(), want) {
			t.Errorf("Resolve(%s) = %s, %v; want %s", p, got, err, want)
		}
	}
	got, err := r.Locate("/etc/abs")
	if err != nil || got != filepath.Join(r.Dir(), "etc/abs") {
		t.Errorf("Locate follows the last component: %s, %v", got, err)
	}
	if got, _ := r.Locate("/lib/x"); got != filepath.Join(r.Dir(), "usr/lib/x") {
		t.Errorf("Locate(/lib/x) = %s, want it in usr/lib", got)
	}
	if target, err := r.Readlink("/lib"); err != nil || target != "/usr/lib" {
		t.Errorf("Readlink = %s, %v", target, err)
	}
}

func TestOpenRootWantsADirectory(t *testing.T) {
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{f, f + "-none"} {
		if _, err := OpenRoot(dir); err == nil {
			t.Errorf("OpenRoot(%s) = nil error", dir)
		}
	}
}

func TestFactsOfThisMachineAndOfAnEmptyRoot(t *testing.T) {
	live, err := OpenRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	f := GatherFacts(live, "")
	if f.LibC.Kind == "" || !f.ArchKnown {
		t.Errorf("the machine that runs the tests has a C library: %+v", f)
	}
	if f.LibC.Kind == "glibc" && (f.LibC.Major != 2 || f.LibC.Minor < 17) {
		t.Errorf("glibc version %d.%d", f.LibC.Major, f.LibC.Minor)
	}
	f = GatherFacts(tree(t, nil, "etc/fstab"), "arm64")
	if f.LibC.Kind != "" || f.Arch != "arm64" || f.SystemdInit {
		t.Errorf("an empty root: %+v", f)
	}
}

func TestFactsOfARoot(t *testing.T) {
	r := tree(t, map[string]string{"sbin": "usr/sbin", "usr/sbin/init": "/lib/systemd/systemd", "lib": "usr/lib"},
		"usr/lib/systemd/systemd", "usr/lib/aarch64-linux-gnu/systemd/libsystemd-shared-252.so", "usr/lib/ld-musl-aarch64.so.1")
	f := GatherFacts(r, "")
	if f.Arch != "arm64" || f.LibC.Kind != "musl" || f.Systemd != 252 || !f.SystemdInit {
		t.Errorf("%+v", f)
	}
}

func TestRunSaysWhatFailed(t *testing.T) {
	h := New(tree(t, nil))
	_, err := h.Run(t.Context(), Cmd{"sh", []string{"-c", "echo first >&2; echo why >&2; exit 3"}})
	exit, ok := errors.AsType[*ExitError](err)
	if !ok || exit.Code != 3 || !strings.HasSuffix(err.Error(), "exit status 3: why") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := h.Run(ctx, Cmd{"sleep", []string{"60"}}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a command past its deadline: %v", err)
	}
}

func TestSpaceAtAMissingPath(t *testing.T) {
	r := tree(t, nil, "a/b")
	s, err := r.SpaceAt("/a/none/deeper")
	if err != nil || s.Available == 0 || s.ReadOnly {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestDirTypes(t *testing.T) {
	r := tree(t, nil, "a/b")
	if typed, found, err := r.DirTypes("/a"); err != nil || !found || !typed {
		t.Errorf("a folder with a file: %v, %v, %v; want the file's type", typed, found, err)
	}
	if err := os.Remove(filepath.Join(r.Dir(), "a/b")); err != nil {
		t.Fatal(err)
	}
	if _, found, err := r.DirTypes("/a"); err != nil || found {
		t.Errorf("an empty folder: found %v, %v; want that it cannot tell", found, err)
	}
	if _, _, err := r.DirTypes("/none"); err == nil {
		t.Error("a folder that is not there: want an error")
	}
}

// A pipe in place of a file must not keep anybody who looks at a host.
func TestReadFileDoesNotWait(t *testing.T) {
	dir := t.TempDir()
	root, err := OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := root.ReadFile("/pipe"); err == nil || !strings.Contains(err.Error(), "is a pipe") {
		t.Errorf("a pipe was read: %v", err)
	}
	live, err := OpenRoot("/")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := live.ReadFile("/dev/zero"); err == nil {
		t.Error("a device without an end was read")
	}
	if b, err := live.ReadFile("/dev/null"); err != nil || len(b) != 0 {
		t.Errorf("/dev/null: %q, %v", b, err)
	}
}
