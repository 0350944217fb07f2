package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/internal/host"
)

// freshApply is nodeprep, as a process of its own, about to provision an empty root.
func freshApply(t *testing.T) (root string, c *exec.Cmd) {
	t.Helper()
	dir := t.TempDir()
	profile, artifacts, root := filepath.Join(dir, "node.yaml"), filepath.Join(dir, "art"), filepath.Join(dir, "root")
	if err := makeArtifacts(artifacts, profile, runtime.GOARCH, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	c = exec.CommandContext(t.Context(), exe, "apply", "-f", profile, "--root", root, "--arch", runtime.GOARCH, "--artifacts", artifacts, "--offline")
	c.Args[0] = "nodeprep" // this test binary runs as what it is called
	// The test binary itself would be a large thing to install.
	self := filepath.Join(dir, "self")
	if err := os.WriteFile(self, program(runtime.GOARCH, "nodeprep"), 0o755); err != nil {
		t.Fatal(err)
	}
	c.Env = append(os.Environ(), "NODEPREP_TEST_SELF="+self)
	return root, c
}

// A pager that was closed, or a connection that dropped, ends the output and not the
// transaction: with SIGPIPE's own effect the files would be there and no receipt.
func TestReaderThatGoesAwayStopsNothing(t *testing.T) {
	root, c := freshApply(t)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	defer w.Close()
	c.Stdout, c.Stderr = w, w
	if err := c.Run(); err != nil {
		t.Fatalf("apply with nobody to tell: %v", err)
	}
	h, err := host.OpenRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	receipt, err := install.ReadReceipt(h)
	if err != nil || receipt == nil {
		t.Fatalf("no receipt: %v", err)
	}
	if drift, err := install.Drift(t.Context(), h, receipt, true); err != nil || len(drift) > 0 {
		t.Errorf("%v, %v", drift, err)
	}
}

// Image builders and units have no home folder; nothing needs one unless something is
// to be downloaded.
func TestApplyWithoutHome(t *testing.T) {
	_, c := freshApply(t)
	c.Env = []string{"PATH=" + os.Getenv("PATH")}
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
}
