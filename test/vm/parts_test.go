package vm_test

import (
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/test/vm"
)

// The Manager's own tests, with the systemd of a real machine: failing units, lost
// connections, quoting.
func TestManagerOnRealSystemd(t *testing.T) {
	m := start(t, inAll)
	m.passes("/media/stick/systemd.test -systemd -test.v -test.run Real", 6)
}

// The client's own tests, with each generation of the real daemon.
func TestClientOnRealDaemons(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	for _, n := range nodes() {
		t.Run("containerd "+n.containerd.Version, func(t *testing.T) {
			s := inEvery
			if v := n.containerd.Version; v == "1.6.20" || v == "2.4.2" {
				s = inAll
			}
			m := start(t, s)
			m.must("mkdir /root/release && tar xzf " + vm.ReleasesDir + "/" + n.containerd.Name() + "/*.tar.gz -C /root/release")
			m.must("install " + vm.ReleasesDir + "/runc-" + n.runc + "-amd64/runc.amd64 /root/release/runc")
			m.passes("/media/stick/daemon.test -containerd /root/release/bin/containerd -runc /root/release/runc -test.v -test.run Real", 2)
		})
	}
}

// passes runs a test program that must run at least some tests, and skip none.
func (m *machine) passes(command string, least int) {
	m.t.Helper()
	r := m.run("cd /tmp && " + command + " 2>&1")
	m.t.Log(r.Stdout)
	if r.Code != 0 {
		m.t.Errorf("%s: exit %d", command, r.Code)
	}
	if n := strings.Count("\n"+r.Stdout, "\n--- PASS"); n < least || strings.Contains(r.Stdout, "--- SKIP") {
		m.t.Errorf("%s: %d tests passed, want %d and none skipped", command, n, least)
	}
}
