package vm_test

import (
	"fmt"
	"strings"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// secondDay applies to a node again, which runs containers: with nothing new, with a new
// mirror, with a new sandbox image. Nothing happens that need not, and no container dies.
func secondDay(m *machine, n node) {
	m.t.Helper()
	pod := n.runPod(m, "one")
	daemon := func() map[string]string { return m.shows("containerd", "MainPID", "InvocationID", "NRestarts") }
	first := daemon()

	// Nothing new: not a file is touched, not even nodeprep's own.
	before := m.tree("-times")
	m.exits(0, n.command("apply"))
	if diff := cmp.Diff(before, m.tree("-times")); diff != "" {
		m.t.Errorf("the second apply touched files (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(first, daemon()); diff != "" {
		m.t.Errorf("the second apply touched the daemon (-before +after):\n%s", diff)
	}

	// A mirror: containerd reads hosts.toml at every pull, so it need not restart.
	m.give(n, mirror)
	m.says(m.exits(3, n.command("plan")), "/etc/containerd/certs.d/docker.io/hosts.toml")
	m.exits(0, n.command("apply"))
	m.says(m.must("cat /etc/containerd/certs.d/docker.io/hosts.toml"), "https://mirror.example.com")
	if diff := cmp.Diff(first, daemon()); diff != "" {
		m.t.Errorf("a changed mirror restarted the daemon (-before +after):\n%s", diff)
	}

	// Another sandbox image: in config.toml, so the daemon restarts, once, and says why before.
	m.give(n, mirror+"containerd: {sandboxImage: "+supply.OlderPause+"}\n")
	m.says(m.exits(3, n.command("plan")), supply.OlderPause, "restart")
	m.exits(0, n.command("apply"))
	second := daemon()
	if second["InvocationID"] == first["InvocationID"] {
		m.t.Error("a changed sandbox image did not restart the daemon")
	}
	if got := m.starts(); got != "2" {
		m.t.Errorf("the daemon was started %s times, want 2: at first, and for the sandbox image", got)
	}
	if diff := cmp.Diff([]container{pod}, asJSON[[]container](m, n.cri("ps"))); diff != "" {
		m.t.Errorf("the running container (-before +after):\n%s", diff)
	}
	m.must(fmt.Sprintf("test -d /proc/%d", pod.PID))
	if got := n.runPod(m, "two").SandboxImage; got != supply.OlderPause {
		m.t.Errorf("a new pod's sandbox image is %s, want %s", got, supply.OlderPause)
	}

	// Somebody's own change is found, and not overwritten until that is asked for.
	m.exits(0, "nodeprep status")
	m.must("echo '# by hand' >> /etc/containerd/config.toml")
	m.says(m.exits(3, "nodeprep status"), "/etc/containerd/config.toml")
	m.says(m.exits(1, n.command("apply")), "/etc/containerd/config.toml", "--adopt")
	m.must("grep -q '^# by hand' /etc/containerd/config.toml")
	m.exits(0, n.command("apply --adopt"))
	m.must("! grep '^# by hand' /etc/containerd/config.toml")
	m.exits(0, "nodeprep status")
}

// auditAfterApply is an apply that does what it should, on a node that is not well for
// another reason: it says so and exits with 3.
func auditAfterApply(m *machine, n node) {
	m.t.Helper()
	// Something to do, for which the daemon need not restart: with that KillMode it would not.
	m.give(n, "containerd: {sandboxImage: "+supply.OlderPause+"}\n")
	const theirs = dropIns + "zz-theirs.conf"
	if err := m.WriteFile(m.ctx, theirs, "[Service]\nKillMode=mixed\n"); err != nil {
		m.t.Fatal(err)
	}
	m.must("systemctl daemon-reload")
	said := m.exits(3, n.command("apply"))
	m.says(said, "unit/kill-mode", theirs+":2", "mixed")
	if status := asJSON[struct{ Version string }](m, n.cri("status")); !strings.Contains(status.Version, n.containerd.Version) {
		m.t.Errorf("CRI says %+v, want version %s", status, n.containerd.Version)
	}
	m.says(m.exits(3, "nodeprep status"), "generation ", theirs)
	m.exits(0, n.command("plan"))
	m.exits(0, n.command("apply")) // an empty plan: no checks
	got := m.check("", "--offline")
	if diff := cmp.Diff([]string{"unit/kill-mode"}, ids(got.with("fail"))); diff != "" {
		m.t.Errorf("what fails (-want +got):\n%s%s", diff, lines(got.with("fail")))
	}
	// Whoever knows better says so by name.
	m.exits(0, "nodeprep check --offline --skip unit/kill-mode")
}

const mirror = `registries:
  docker.io:
    mirrors: [{url: "https://mirror.example.com"}]
`
