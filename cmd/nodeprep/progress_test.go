package main

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/install"
)

func toWriter(w io.Writer) *progress {
	return (&app{stdio: stdio{err: w}, env: func(string) (string, bool) { return "", false }, color: "auto"}).progress()
}

func TestProgressInAPipeIsPlainLines(t *testing.T) {
	var out bytes.Buffer
	p := toWriter(&out)
	p.PhaseStart(install.PhaseLock)
	p.PhaseStart(install.PhaseStage)
	p.Progress("containerd.tar.gz", 1<<20, 2<<20)
	p.said["containerd.tar.gz"] = time.Now().Add(-interval)
	p.Progress("containerd.tar.gz", 3<<19, 2<<20)
	p.PhaseEnd(install.PhaseStage, 1500*time.Millisecond, errors.New("x"))
	p.finish()
	want := "stage...\ncontainerd.tar.gz: 1.5 of 2.0 MiB\nstage failed after 1.5s\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
	if strings.ContainsRune(out.String(), '\x1b') {
		t.Error("a pipe gets no control sequences")
	}
}

// A stopped terminal or a pipe that nobody reads must not hold the transaction.
func TestProgressNeverWaitsForItsReader(t *testing.T) {
	r, w := io.Pipe()
	p := toWriter(w)
	for range 2000 {
		p.PhaseStart(install.PhaseActivate) // would block for ever if it wrote itself
	}
	r.Close()
	p.finish()
}
