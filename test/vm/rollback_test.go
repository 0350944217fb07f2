package vm_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// bad is a config that containerd takes when it is asked to read it, and with which it
// does not start.
type bad struct {
	name    string
	dropIn  string // a file of the operator's, which the new config imports
	profile string
	flags   string
	words   []string // the daemon's own
}

// extra is where the drop-ins are. The config that runs does not import them.
const extra = "/etc/containerd-site"

func badConfigs() []bad {
	const imports = "containerd: {settings: {imports: [\"" + extra + "/*.toml\"]}}\n"
	return []bad{
		{
			name: "mirrors beside config_path", profile: imports,
			dropIn: `version = 3
[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']
  endpoint = ['https://mirror.example.com']
`,
			words: []string{"`mirrors` cannot be set when `config_path` is provided"},
		}, {
			name: "an unknown default runtime", profile: imports,
			dropIn: `version = 3
[plugins.'io.containerd.cri.v1.runtime'.containerd]
  default_runtime_name = 'nosuch'
`,
			words: []string{"default_runtime_name", "nosuch"},
		}, {
			// Containers of the old snapshotter run, and the host has no ZFS, so that it takes some words.
			name: "a snapshotter that is skipped", profile: "containerd: {snapshotter: zfs}\n", flags: " --with-running-pods --skip host/snapshotter",
			// Plugins are loaded in an order of chance, and the last lines of the journal have what the
			// daemon ended with.
			words: []string{"snapshotter \"zfs\""},
		},
	}
}

// with puts a bad config in the profile's way.
func (b bad) with(m *machine, n node) {
	m.t.Helper()
	m.must("rm -rf " + extra)
	if b.dropIn != "" {
		if err := m.WriteFile(m.ctx, extra+"/site.toml", b.dropIn); err != nil {
			m.t.Fatal(err)
		}
	}
	m.give(n, b.profile)
}

// A config that the daemon accepts to read and refuses to run with costs a restart, and
// nothing else: the node is what it was, and its containers run.
func TestRefusedAtStart(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	n := nodeOf("2.1.9")
	t.Run("on a node that works", func(t *testing.T) {
		m := start(t, inAll)
		m.give(n, "")
		m.exits(0, n.command("apply"))
		pod := n.runPod(m, "one")
		for _, b := range badConfigs() {
			t.Log(b.name)
			b.with(m, n)
			m.unchanged(func() {
				m.says(m.exits(1, n.command("apply")+b.flags), append(b.words, "everything was put back")...)
			})
			serves(m, "2.1.9")
			alive(m, pod)
			checkUnit(m)
			m.exits(0, "nodeprep status")
			settled(m)
		}
		// Not one of them is in the way of what comes next.
		m.must("rm -rf " + extra)
		m.give(n, mirror)
		m.exits(0, n.command("apply"))
	})
	t.Run("on a fresh one", func(t *testing.T) {
		m := start(t, inEvery)
		for _, b := range badConfigs() {
			t.Log(b.name)
			b.with(m, n)
			m.unchanged(func() {
				m.says(m.exits(1, n.command("apply")+b.flags), b.words...)
			})
			absent(m)
		}
		m.give(n, "")
		m.exits(0, n.command("apply"))
		serves(m, "2.1.9")
	})
}

// settled fails the test if a run left something unfinished, or systemd with a failed unit.
func settled(m *machine) {
	m.t.Helper()
	if left := m.must("find / -xdev '(' -name '.nodeprep*' -o -name '.*.nodeprep-*' -o -path /var/lib/nodeprep/journal.json ')'"); left != "" {
		m.t.Errorf("left behind:\n%s", left)
	}
	if failed := m.must("systemctl --failed --no-legend --plain --no-pager"); failed != "" {
		m.t.Errorf("failed units:\n%s", failed)
	}
}

// absent fails the test unless systemd knows nothing of us, and nothing of ours runs.
func absent(m *machine) {
	m.t.Helper()
	settled(m)
	want := map[string]string{"LoadState": "not-found", "ActiveState": "inactive", "MainPID": "0"}
	for _, unit := range []string{"containerd.service", "nodeprep-recover.service"} {
		if diff := cmp.Diff(want, m.shows(unit, "LoadState", "ActiveState", "MainPID")); diff != "" {
			m.t.Errorf("%s (-want +got):\n%s", unit, diff)
		}
	}
	for _, path := range []string{"/usr/local/bin/nodeprep", "/var/lib/nodeprep", "/usr/local/bin/containerd", "/etc/containerd"} {
		if m.run("test ! -e "+path+" -a ! -L "+path).Code != 0 {
			m.t.Errorf("%s is still there", path)
		}
	}
	if procs := strings.TrimSpace(m.run("ps -eo pid,args | grep -E '[/]containerd( |$|-shim)' || true").Stdout); procs != "" {
		m.t.Errorf("still running:\n%s", procs)
	}
}
