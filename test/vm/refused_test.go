package vm_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// What cannot work on a real host is refused in words that say what was found, and the
// host stays as it was: so all of them are tried on one.
func TestRefused(t *testing.T) {
	whole := start(t, inMain)
	n := nodeOf("2.1.9")
	before := whole.tree("")
	for _, story := range []struct {
		name string
		set
		run func(m *machine)
	}{
		{"a runc that needs a newer libc", inMain, func(m *machine) {
			n := n
			n.runc = "1.1.15"
			m.give(n, "runc: {version: 1.1.15, sha256: {amd64: "+m.sum(supply.Release{Component: "runc", Version: "1.1.15", Arch: "amd64"})+"}}\n")
			said := m.exits(1, n.command("apply"))
			m.says(said, "runc", "2.38", "2.36")
		}},
		{"usr is read-only", inAll, func(m *machine) {
			m.give(n, "")
			m.must("mount --bind /usr /usr && mount -o remount,bind,ro /usr")
			said := m.exits(1, n.command("apply"))
			m.says(said, "/usr", "read-only")
			m.must("umount --lazy /usr") // it is where every running program is from
		}},
		{"no space, seen before", inMain, func(m *machine) {
			m.give(n, "")
			m.must("mount -t tmpfs -o size=50m tmpfs /usr/local")
			said := m.exits(1, n.command("apply"))
			m.says(said, "/usr/local", "space")
			if left := m.must("find /usr/local -mindepth 1"); left != "" {
				m.t.Errorf("left on the small file system:\n%s", left)
			}
			m.must("umount /usr/local")
		}},
		{"no space, met halfway", inAll, func(m *machine) {
			m.give(n, "")
			m.must("mount -t tmpfs -o size=300m tmpfs /usr/local && mkdir /usr/local/bin /usr/local/sbin")
			m.must("inguest fill /usr/local/bin > /run/fill 2>&1 & until grep -q ready /run/fill; do sleep 0.1; done")
			said := m.exits(1, n.command("apply"))
			m.says(said, "/usr/local/", "no space", "full")
			if left := m.must("cd /usr/local && find . -mindepth 1 | sort"); left != "./bin\n./hog\n./sbin" {
				m.t.Errorf("left on the full file system:\n%s", left)
			}
			m.must("umount /usr/local")
		}},
		{"the daemon does not start", inMain, func(m *machine) {
			// containerd takes the address when it reads its config, and finds when it
			// starts that no interface has it.
			m.give(n, "containerd: {settings: {metrics: {address: \"192.0.2.1:1338\"}}}\n")
			said := m.exits(1, n.command("apply"))
			m.says(said, "containerd.service", "cannot assign requested address")
			want := map[string]string{"LoadState": "not-found", "ActiveState": "inactive", "MainPID": "0"}
			if diff := cmp.Diff(want, m.shows("containerd", "LoadState", "ActiveState", "MainPID")); diff != "" {
				m.t.Errorf("containerd.service (-want +got):\n%s", diff)
			}
		}},
		{"another nodeprep runs", inAll, func(m *machine) {
			m.give(n, "")
			m.must("flock / -c 'echo held > /run/held; exec sleep 1000' > /dev/null 2>&1 & until test -e /run/held; do sleep 0.1; done")
			said := m.exits(1, n.command("apply"))
			m.says(said, m.must("pgrep -f 'flock /' | head -n 1"))
			m.must("pkill -x sleep && until flock -n / true; do sleep 0.1; done")
		}},
		{"not root", inAll, func(m *machine) {
			m.give(n, "")
			m.must("chmod 711 /root")
			said := m.exits(1, "setpriv --reuid=65534 --regid=65534 --clear-groups "+n.command("apply"))
			m.must("chmod 700 /root")
			m.says(said, "root")
		}},
		{"no systemd as PID 1", inAll, func(m *machine) {
			m.give(n, "")
			// As in a container: processes and /run of its own.
			said := m.exits(1, "unshare --pid --fork --mount --mount-proc bash -c 'mount -t tmpfs tmpfs /run; "+n.command("apply")+"'")
			m.says(said, "systemd")
		}},
		{"a config that is not ours", inAll, func(m *machine) {
			m.give(n, "")
			m.must("mkdir /etc/containerd && echo 'version = 3' > /etc/containerd/config.toml")
			said := m.exits(1, n.command("apply"))
			m.says(said, "/etc/containerd/config.toml", "--adopt")
			m.must("rm -r /etc/containerd")
		}},
	} {
		good := t.Run(story.name, func(t *testing.T) {
			story.set.orSkip(t)
			m := &machine{Machine: whole.Machine, ctx: whole.ctx, t: t}
			m.must("rm -rf /root/node")
			story.run(m)
			if diff := cmp.Diff(before, m.tree("")); diff != "" {
				t.Errorf("the host is not as it was (-before +after):\n%s", diff)
			}
		})
		if !good {
			t.Fatal("what comes after this is not tried on what it left behind")
		}
	}
}

// A daemon that worked goes on working when its new config does not.
func TestFailedChange(t *testing.T) {
	m := start(t, inAll)
	n := nodeOf("2.1.9")
	m.give(n, "")
	m.exits(0, n.command("apply"))
	pod := n.runPod(m, "one")
	m.give(n, "containerd: {settings: {metrics: {address: \"192.0.2.1:1338\"}}}\n")
	m.unchanged(func() {
		m.says(m.exits(1, n.command("apply")), "cannot assign requested address")
	})
	checkUnit(m)
	if diff := cmp.Diff([]container{pod}, asJSON[[]container](m, n.cri("ps"))); diff != "" {
		m.t.Errorf("the running container (-before +after):\n%s", diff)
	}
	m.exits(0, "nodeprep status")
}

// People put things elsewhere and link to them: the links are followed, never replaced.
func TestLinkedFolders(t *testing.T) {
	m := start(t, inEvery)
	n := nodeOf("2.1.9")
	m.give(n, "")
	m.must("mkdir -p /srv/cni /srv/local-bin /srv/containerd && ln -s /srv/cni /opt/cni && rmdir /usr/local/bin && ln -s ../../srv/local-bin /usr/local/bin && ln -s /srv/containerd /var/lib/containerd")
	m.exits(0, n.command("apply"))
	for link, target := range map[string]string{"/opt/cni": "/srv/cni", "/usr/local/bin": "../../srv/local-bin", "/var/lib/containerd": "/srv/containerd"} {
		if got := m.must("readlink " + link); got != target {
			t.Errorf("%s points to %q, want %s", link, got, target)
		}
	}
	m.must("test -x /srv/cni/bin/bridge && test -x /srv/local-bin/containerd")
	checkUnit(m)
	checkPod(m, n)
	m.exits(0, n.command("apply"))
}
