package main

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/install"
)

// A run that was broken off says nothing of the host: least of all that it is right.
func TestCheckBrokenOff(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var out, said bytes.Buffer
	code := run(ctx, []string{"check", "--root", t.TempDir()}, stdio{in: os.Stdin, out: &out, err: &said}, func(string) (string, bool) { return "", false })
	if code != exitFailed || out.Len() > 0 || !strings.Contains(said.String(), "canceled") {
		t.Errorf("exit code %d\n%s\n%s", code, out.String(), said.String())
	}
}

// Where nobody listens there is nothing to wait for, and the reason is the system's.
func TestConnectionsDoNotWait(t *testing.T) {
	dir := t.TempDir()
	deaf := filepath.Join(dir, "deaf.sock")
	l, err := net.Listen("unix", deaf)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	for address, want := range map[string]string{deaf: "connection refused", filepath.Join(dir, "none.sock"): "no such file"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		var open connections
		client, err := open.containerd(ctx, address)
		if client != nil || err == nil || !strings.Contains(err.Error(), want) || ctx.Err() != nil {
			t.Errorf("%v, %v, want %q", client, err, want)
		}
		open.close()
		cancel()
	}
}

// A check that was given up on may still connect: its connection ends with the others.
func TestConnectionsEnd(t *testing.T) {
	var open connections
	ended := 0
	open.keep(func() { ended++ })
	if open.close(); ended != 1 {
		t.Errorf("%d were closed, want 1", ended)
	}
	if open.keep(func() { ended++ }); ended != 2 {
		t.Errorf("a late one stays open")
	}
	if open.close(); ended != 2 {
		t.Errorf("closed twice")
	}
}

// What a remedy applies is what was asked for, or what was applied, in words that -f takes.
func TestLastApplyNamesTheProfile(t *testing.T) {
	for _, c := range []struct {
		asked   string
		applied []string
		want    string
	}{
		{"", []string{"/root/node.yaml", "builtin:kubernetes"}, "/root/node.yaml"},
		{"", []string{"builtin:minimal"}, "minimal"},
		{"", []string{"-", "builtin:default"}, ""},
		{"", nil, ""},
		{"other.yaml", []string{"/root/node.yaml"}, "other.yaml"},
	} {
		if got := lastApply(nil, &install.Receipt{Profiles: c.applied}, c.asked).Profile; got != c.want {
			t.Errorf("asked %q, applied %q: %q, want %q", c.asked, c.applied, got, c.want)
		}
	}
	if lastApply(nil, nil, "node.yaml") != nil {
		t.Error("a receipt of nothing")
	}
}

// Every exit code has one kind of end.
func TestAuditFailureIsCode3(t *testing.T) {
	if got := exitCode(&auditError{2}); got != exitDiffers {
		t.Errorf("exit code %d, want %d", got, exitDiffers)
	}
	if got := exitCode(&checks.FailedError{Stage: checks.Preflight}); got != exitFailed {
		t.Errorf("exit code %d of a failed preflight, want %d", got, exitFailed)
	}
	if got := exitCode(errors.Join(knownIDs("skip", []string{"nothing"}), fs.ErrNotExist)); got != exitUsage {
		t.Errorf("exit code %d of an unknown ID, want %d", got, exitUsage)
	}
}
