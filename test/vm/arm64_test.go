package vm_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// boardOf is the node for arm64.
func boardOf(version string) node {
	n := nodeOf(version)
	n.containerd.Arch = "arm64"
	return n
}

// boards opens the lab of the guest for arm64, until the test ends.
func boards(t *testing.T, nodes ...node) *vm.Lab {
	t.Helper()
	var releases []supply.Release
	for _, n := range nodes {
		for _, r := range n.releases() {
			if !slices.Contains(releases, r) {
				releases = append(releases, r)
			}
		}
	}
	began := time.Now()
	lab, err := vm.Open(t.Context(), vm.Options{
		Guest: "arm64", Releases: releases, Plain: true,
		Log: func(format string, args ...any) {
			fmt.Fprintf(os.Stderr, "%7.1fs  arm64: %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
		},
	})
	if err != nil {
		t.Fatalf("prepare machines for arm64: %v", err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	return lab
}

// board is a machine of such a lab.
func board(t *testing.T, lab *vm.Lab) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	t.Cleanup(cancel)
	m, err := lab.Start(ctx, t.Name())
	return held(t, ctx, m, err)
}

// forBoth is a bundle for amd64 and arm64, made here by the nodeprep under test: the one
// program reads the other's releases, images and nodeprep, and runs none of them.
func forBoth(t *testing.T, native, foreign *vm.Lab, n node) string {
	t.Helper()
	dir, err := native.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	amd64 := n
	amd64.containerd.Arch = "amd64"
	labs := map[string]*vm.Lab{"amd64": native, "arm64": foreign}
	var more string
	for _, r := range amd64.releases() {
		more += fmt.Sprintf("%s: {sha256: {amd64: %q}}\n", r.Component, hostSum(t, native, r))
	}
	more += "images:\n"
	for _, arch := range []string{"amd64", "arm64"} {
		more += fmt.Sprintf("  - {file: %s/pause.tar, pin: true}\n  - {file: %[1]s/busybox.tar, pin: false}\n", labs[arch].Images())
	}
	for name, text := range n.profile(t, func(r supply.Release) string { return hostSum(t, foreign, r) }, more) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	bundle := filepath.Join(dir, "both.bundle")
	common := append([]string{"--offline", "--arch", "amd64,arm64", "-f", filepath.Join(dir, "profile.yaml"), "--artifacts", release(t, native, foreign)},
		append(hostArtifacts(native, amd64), hostArtifacts(foreign, n)...)...)
	for _, args := range [][]string{{"lock"}, {"bundle", "create", bundle}} {
		hostRun(t, nil, 0, native.Nodeprep(), append(args, common...)...)
	}
	return bundle
}

// release is a folder with nodeprep for arm64 as it is released, and its checksum file.
func release(t *testing.T, native, foreign *vm.Lab) string {
	t.Helper()
	dir, err := native.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	var is struct{ Version string }
	out, err := exec.CommandContext(t.Context(), native.Nodeprep(), "version", "-o", "json").Output()
	if err == nil {
		err = json.Unmarshal(out, &is)
	}
	if err != nil {
		t.Fatal(err)
	}
	name := "nodeprep-" + strings.Trim(strings.TrimPrefix(is.Version, "v"), "()") + "-linux-arm64"
	if err := os.Link(foreign.Nodeprep(), filepath.Join(dir, name)); err != nil {
		t.Fatal(err)
	}
	sums := fmt.Sprintf("%s  %s\n", sumOf(t, foreign.Nodeprep()), name)
	if err := os.WriteFile(filepath.Join(dir, "SHA256SUMS"), []byte(sums), 0o644); err != nil {
		t.Fatal(err)
	}
	return dir
}

// boardWorks holds a node to what a kubelet needs of it, and to what nodeprep check says of it.
func boardWorks(m *machine, n node) {
	m.t.Helper()
	checkUnit(m)
	checkImages(m, n)
	checkPod(m, n)
	report := m.check("", checkOptions)
	bad := report.with("fail")
	for _, f := range report.with("unknown") {
		// Programs that are hashed where all is emulated may take longer than a check has.
		if !strings.Contains(f.Observed, "deadline exceeded") {
			bad = append(bad, f)
		}
	}
	if len(bad) > 0 {
		m.t.Errorf("nodeprep check:\n%s", lines(bad))
	}
	passed := len(report.with("pass"))
	m.t.Logf("nodeprep check: %d passed", passed)
	if passed < 120 {
		m.t.Errorf("nodeprep check: of some 160 only %d passed:\n%s", passed, lines(report.Findings))
	}
}

// boardFromReleases makes a node of local release files, and takes it back.
func boardFromReleases(m *machine, n node) {
	m.t.Helper()
	before := m.tree("-skip /var/lib/cni")
	m.give(n, "")
	m.says(m.exits(3, n.command("plan")), "/etc/containerd/config.toml", "/usr/local/sbin/runc")
	m.exits(0, n.command("apply"))
	m.exits(0, n.command("plan"))
	boardWorks(m, n)
	m.exits(0, "nodeprep uninstall --purge --yes")
	absent(m)
	if diff := cmp.Diff(before, m.tree("-skip /var/lib/cni")); diff != "" {
		m.t.Errorf("the host is not as it was before the first apply (-before +after):\n%s", diff)
	}
}

// A board becomes a node as a server does: from local release files, and from a bundle for both
// architectures that was made on another one.
func TestArm64(t *testing.T) {
	native := wanted(t, inMain)
	n, older := boardOf("2.1.9"), boardOf("1.7.24")
	all := []node{n}
	if thisRun() == inEvery {
		all = append(all, older)
	}
	lab := boards(t, all...)
	bundle := forBoth(t, native, lab, n)

	t.Run("fresh node", func(t *testing.T) {
		m := board(t, lab)
		if got := m.must("uname -m; ls /sys/class/net"); got != "aarch64\nlo" {
			t.Fatalf("the machine is %q", got)
		}
		if thisRun() >= inAll {
			boardFromReleases(m, n)
		}

		m.plug("bundle", map[string]string{"both.bundle": bundle, "nodeprep": lab.Nodeprep()})
		// There is nothing else to take anything from.
		m.must("umount /media/releases && mount -t tmpfs tmpfs /media/stick/images")
		m.exits(0, stick+"/nodeprep apply --bundle "+stick+"/both.bundle")
		m.exits(0, "nodeprep plan --bundle "+stick+"/both.bundle")
		boardWorks(m, n)
		checkPlugins(m, n)
		checkConfig(m, n)
		checkPinned(m, n)

		pod := n.runPod(m, "stays")
		m.must("systemctl restart containerd")
		alive(m, pod)
	})
	if thisRun() == inMain {
		t.Log("only with -vm=all: release files, the host as it was before, a disk that this machine made; with -vm=every: containerd 1.7, and the same bundle on a server")
		return
	}

	t.Run("containerd "+older.containerd.Version, func(t *testing.T) {
		inEvery.orSkip(t)
		m := board(t, lab)
		m.give(older, "")
		m.exits(0, older.command("apply"))
		boardWorks(m, older)
	})
	t.Run("a disk made elsewhere", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
		t.Cleanup(cancel)
		disk := goldenImage(t, native, lab.BaseDisk(), "arm64", bundle)
		qm, err := lab.Boot(ctx, t.Name(), disk)
		m := held(t, ctx, qm, err)
		m.booted("running")
		firstBooted(m, n)
		if err := m.Reboot(ctx, m.cmdline()); err != nil {
			t.Fatal(err)
		}
		m.booted("running")
		passedOver(m, n)
	})
	t.Run("the same bundle on a server", func(t *testing.T) {
		m := start(t, inEvery)
		m.plug("bundle", map[string]string{"both.bundle": bundle, "nodeprep": native.Nodeprep()})
		m.exits(0, stick+"/nodeprep apply --bundle "+stick+"/both.bundle")
		boardWorks(m, nodeOf("2.1.9"))
	})
}
