package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal makes a pseudo-terminal (pty(7)): what a person has, and what a program sees.
func terminal(t *testing.T) (person, program *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatalf("this test needs a pseudo-terminal: %v", err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile("/dev/pts/"+strconv.Itoa(n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return person, program
}

// Only the whole word removes containerd's data; anything else changes nothing.
func TestPurgeAsks(t *testing.T) {
	for _, c := range []struct {
		name, answer string
		code         int
	}{
		{"yes", "yes\n", exitDone},
		{"no", "no\n", exitFailed},
		{"y", "y\n", exitFailed},
		{"return", "\n", exitFailed},
		{"end of input", "\x04", exitFailed},
		{"interrupt", "\x03", exitFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			root, apply := freshApply(t)
			if out, err := apply.CombinedOutput(); err != nil {
				t.Fatalf("%v\n%s", err, out)
			}
			data := filepath.Join(root, "var/lib/containerd")
			for _, dir := range []string{filepath.Join(data, "io.containerd.content.v1.content"), filepath.Join(root, "run/containerd")} {
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			before, err := listTree(root, true)
			if err != nil {
				t.Fatal(err)
			}
			person, program := terminal(t)
			cmd := exec.CommandContext(t.Context(), apply.Path, "uninstall", "--root", root, "--purge")
			cmd.Args[0] = "nodeprep"
			var out bytes.Buffer
			cmd.Stdin, cmd.Stdout, cmd.Stderr = program, &out, program
			cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			program.Close()
			asked := readUntil(t, person, "to go on: ")
			for _, want := range []string{"/var/lib/containerd and /run/containerd", "cannot be undone", "/usr/local/bin/containerd"} {
				if !strings.Contains(asked, want) {
					t.Errorf("the question lacks %q:\n%s", want, asked)
				}
			}
			if _, err := person.WriteString(c.answer); err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(person)
			if err != nil && !errors.Is(err, syscall.EIO) { // EIO: nobody has the other side open
				t.Fatal(err)
			}
			_ = cmd.Wait()
			if got := cmd.ProcessState.ExitCode(); got != c.code {
				t.Errorf("exit code %d, want %d\n%s\n%s", got, c.code, rest, out.String())
			}
			after, err := listTree(root, true)
			if err != nil {
				t.Fatal(err)
			}
			switch {
			case c.code == exitDone:
				if _, err := os.Lstat(filepath.Join(root, "var")); !os.IsNotExist(err) {
					t.Errorf("the data is still there: %v", err)
				}
			case after != before:
				t.Errorf("something was changed without a yes:\n%s", rest)
			case !strings.Contains(string(rest), "nothing was changed"):
				t.Errorf("it does not say that nothing was changed:\n%s", rest)
			}
		})
	}
}

// readUntil reads what a program writes until it has written text.
func readUntil(t *testing.T, r io.Reader, text string) string {
	t.Helper()
	var got []byte
	buf := make([]byte, 4096)
	for !bytes.Contains(got, []byte(text)) {
		n, err := r.Read(buf)
		if err != nil {
			t.Fatalf("read: %v; so far:\n%s", err, got)
		}
		got = append(got, buf[:n]...)
	}
	return string(got)
}

// What is installed on a node is the program that runs, whatever became of its file.
func TestInstallsItself(t *testing.T) {
	root, c := freshApply(t)
	c.Env = append(os.Environ(), "NODEPREP_TEST_SELF=")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	want, err := os.ReadFile(c.Path)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join(root, "usr/local/bin/nodeprep"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%d bytes were installed, %d run", len(got), len(want))
	}
}
