package vm_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// A node that runs containers is applied to again: with nothing new, with a new mirror,
// with a new sandbox image. Nothing happens that need not, and no container dies.
func TestSecondDay(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	for _, version := range []string{"1.7.24", "2.1.9"} {
		t.Run("containerd "+version, func(t *testing.T) {
			s := inMain
			if version != "2.1.9" {
				s = inAll
			}
			m := start(t, s)
			n := nodeOf(version)
			m.give(n, "")
			m.exits(0, n.command("apply"))
			pod := n.runPod(m, "one")
			daemon := func() map[string]string { return m.shows("containerd", "MainPID", "InvocationID", "NRestarts") }
			first := daemon()

			// Nothing new: not a file is touched, not even nodeprep's own.
			before := m.tree("-times")
			m.exits(0, n.command("apply"))
			if diff := cmp.Diff(before, m.tree("-times")); diff != "" {
				t.Errorf("the second apply touched files (-before +after):\n%s", diff)
			}
			if diff := cmp.Diff(first, daemon()); diff != "" {
				t.Errorf("the second apply touched the daemon (-before +after):\n%s", diff)
			}

			// A mirror: containerd reads hosts.toml at every pull, so it need not restart.
			m.give(n, mirror)
			m.says(m.exits(3, n.command("plan")), "/etc/containerd/certs.d/docker.io/hosts.toml")
			m.exits(0, n.command("apply"))
			m.says(m.must("cat /etc/containerd/certs.d/docker.io/hosts.toml"), "https://mirror.example.com")
			if diff := cmp.Diff(first, daemon()); diff != "" {
				t.Errorf("a changed mirror restarted the daemon (-before +after):\n%s", diff)
			}

			// Another sandbox image: in config.toml, so the daemon restarts, once, and says why before.
			m.give(n, mirror+"containerd: {sandboxImage: "+supply.OlderPause+"}\n")
			m.says(m.exits(3, n.command("plan")), supply.OlderPause, "restart")
			m.exits(0, n.command("apply"))
			second := daemon()
			if second["InvocationID"] == first["InvocationID"] {
				t.Error("a changed sandbox image did not restart the daemon")
			}
			if got := m.starts(); got != "2" {
				t.Errorf("the daemon was started %s times, want 2: at first, and for the sandbox image", got)
			}
			if diff := cmp.Diff([]container{pod}, asJSON[[]container](m, n.cri("ps"))); diff != "" {
				t.Errorf("the running container (-before +after):\n%s", diff)
			}
			m.must(fmt.Sprintf("test -d /proc/%d", pod.PID))
			if got := n.runPod(m, "two").SandboxImage; got != supply.OlderPause {
				t.Errorf("a new pod's sandbox image is %s, want %s", got, supply.OlderPause)
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
		})
	}
}

const mirror = `registries:
  docker.io:
    mirrors: [{url: "https://mirror.example.com"}]
`
