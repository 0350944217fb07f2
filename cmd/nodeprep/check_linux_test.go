package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A person's terminal gets colour, unless they ask for none (no-color.org).
func TestCheckColoursATerminal(t *testing.T) {
	for _, c := range []struct {
		name   string
		env    map[string]string
		args   []string
		colour bool
	}{
		{"terminal", nil, nil, true},
		{"NO_COLOR", map[string]string{"NO_COLOR": "1"}, nil, false},
		{"empty NO_COLOR", map[string]string{"NO_COLOR": ""}, nil, true},
		{"dumb terminal", map[string]string{"TERM": "dumb"}, nil, false},
		{"never", nil, []string{"--color", "never"}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			person, program := terminal(t)
			seen := make(chan string, 1)
			go func() {
				// Reading ends with EIO when the last program closes its side (pty(7)).
				text, _ := io.ReadAll(person)
				seen <- string(text)
			}()
			env := func(name string) (string, bool) { v, ok := c.env[name]; return v, ok }
			args := append([]string{"check", "--root", t.TempDir(), "--offline", "--only", "host/privilege"}, c.args...)
			if code := run(context.Background(), args, stdio{in: os.Stdin, out: program, err: io.Discard}, env); code != exitDone {
				t.Errorf("exit code %d", code)
			}
			program.Close()
			text := <-seen
			if !strings.Contains(text, "host/privilege") || strings.Contains(text, "\x1b[") != c.colour {
				t.Errorf("want colour: %v\n%q", c.colour, text)
			}
		})
	}
}

// The receipt is root's alone. Others audit the host without it, and are told.
func TestCheckWithoutRoot(t *testing.T) {
	root, apply := freshApply(t)
	if out, err := apply.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if err := os.MkdirAll(filepath.Join(root, "etc/nodeprep"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "etc/nodeprep/profile.yaml"), []byte("extends: minimal\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if os.Geteuid() != 0 {
		for _, p := range []string{"etc/nodeprep/profile.yaml", "var/lib/nodeprep"} {
			p = filepath.Join(root, p)
			if err := os.Chmod(p, 0); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = os.Chmod(p, 0o700) })
		}
	}
	var out, said bytes.Buffer
	code := 0
	asNobody(t, root, func() {
		args := []string{"check", "--root", root, "--offline", "--only", "host/privilege"}
		code = run(context.Background(), args, stdio{in: os.Stdin, out: &out, err: &said}, func(string) (string, bool) { return "", false })
	})
	if code != exitDone || !strings.Contains(out.String(), "no profile") {
		t.Errorf("exit code %d\n%s", code, out.String())
	}
	want := "the receipt /var/lib/nodeprep/receipt.json: permission denied; checked without it\n" +
		"the profile /etc/nodeprep/profile.yaml: permission denied; checked without it\n"
	if said.String() != want {
		t.Errorf("%q, want %q", said.String(), want)
	}
}

// asNobody does something whose own thread may see no more of dir's files than a user who
// is not root (setfsuid(2)). Goroutines that it starts are root's.
func asNobody(t *testing.T, dir string, do func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		do()
		return
	}
	for p := dir; p != os.TempDir() && p != "/"; p = filepath.Dir(p) {
		if err := os.Chmod(p, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its goroutine
		if err := unix.Setfsuid(65534); err != nil {
			t.Error(err)
			return
		}
		do()
	}()
	<-done
}
