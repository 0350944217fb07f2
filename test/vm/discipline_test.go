package vm_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// What the daemon need not restart for, it is not restarted for; and where a restart
// would cost containers, it is refused with what makes it so.
func TestRestartDiscipline(t *testing.T) {
	m := start(t, inEvery)
	n := nodeOf("2.1.9")
	m.give(n, "")
	m.exits(0, n.command("apply"))
	pod := n.runPod(m, "one")
	daemon := func() map[string]string { return m.shows("containerd", "MainPID", "InvocationID", "NRestarts") }
	first := daemon()

	// Another runc, other CNI plugins, another mirror and one more image.
	const releases = "/root/node/releases"
	m.must("mkdir " + releases + " && cp " + vm.ReleasesDir + "/runc-1.1.5-amd64/runc.amd64 " + releases + " && printf 'another build' >>" + releases + "/runc.amd64")
	// The same images in other bytes: an archive that was imported is known by its digest.
	m.must("gzip -c " + vm.StickDir + "/images/busybox.tar >/root/node/more.tar")
	other := n
	other.cni = "1.1.1"
	more := mirror + fmt.Sprintf(`runc: {version: 1.1.5, sha256: {amd64: %s}}
cni: {version: 1.1.1, sha256: {amd64: %s}}
images: [{file: /media/stick/images/pause.tar, pin: true}, {file: /media/stick/images/busybox.tar}, {file: /root/node/more.tar}]
`, m.must("sha256sum <"+releases+"/runc.amd64 | cut -d ' ' -f 1"), m.sum(supply.Release{Component: "cni", Version: "1.1.1", Arch: "amd64"}))
	m.give(n, more)
	changed := other.command("apply") + " --artifacts " + releases
	// The changed file has the name of the one on the media; only its folder may be given.
	changed = replaceOnce(m, changed, " --artifacts "+vm.ReleasesDir+"/runc-1.1.5-amd64", "")
	m.says(m.exits(0, changed), "runc 1.1.5", "cni 1.9.1 -> 1.1.1", "hosts.toml", "more.tar")
	m.must("grep -q 'another build' /usr/local/sbin/runc")
	if diff := cmp.Diff(first, daemon()); diff != "" {
		t.Errorf("runc, CNI plugins, a mirror and an image restarted the daemon (-before +after):\n%s", diff)
	}
	alive(m, pod)
	second := n.runPod(m, "two") // with the other runc
	m.must(n.cri("rm two"))
	m.must(fmt.Sprintf("test ! -d /proc/%d", second.PID))

	// Another cgroup driver, under a pod.
	apply := func(more string) string {
		m.give(n, more)
		return n.command("apply")
	}
	const cgroupfs = "containerd: {cgroupDriver: cgroupfs}\n"
	command := apply(cgroupfs)
	m.unchanged(func() {
		for _, said := range []string{m.exits(1, command), m.run(n.command("plan")).Stdout} {
			m.says(said, "cgroup driver", "systemd", "cgroupfs", "default/one", "--with-running-pods")
		}
	})
	if diff := cmp.Diff(first, daemon()); diff != "" {
		t.Errorf("a refused cgroup driver touched the daemon (-before +after):\n%s", diff)
	}
	m.says(m.exits(0, command+" --with-running-pods"), "cgroup driver")
	alive(m, pod)
	m.exits(0, apply("")+" --with-running-pods")
	alive(m, pod)

	// A drop-in with which a restart kills what runs.
	const dropIn = "/etc/systemd/system/containerd.service.d/zz-bad.conf"
	if err := m.WriteFile(m.ctx, dropIn, "[Service]\nKillMode=control-group\n"); err != nil {
		t.Fatal(err)
	}
	before := daemon()
	command = apply("containerd: {sandboxImage: " + supply.OlderPause + "}\n")
	m.unchanged(func() {
		for _, said := range []string{m.exits(1, command), m.run(n.command("plan")).Stdout} {
			m.says(said, dropIn, "KillMode=control-group", "default/one", "--force-restart")
		}
		m.says(m.exits(1, command+" --with-running-pods"), dropIn)
	})
	if diff := cmp.Diff(before, daemon()); diff != "" {
		t.Errorf("a refused restart touched the daemon (-before +after):\n%s", diff)
	}
	alive(m, pod)
	// It is in the way of nothing that needs no restart, and the audit names it.
	m.says(m.exits(3, apply(mirror)), "fail  unit/daemon-reload", dropIn)
	if diff := cmp.Diff(before, daemon()); diff != "" {
		t.Errorf("a mirror touched the daemon (-before +after):\n%s", diff)
	}
	alive(m, pod)
	m.must("systemctl daemon-reload")
	m.says(m.exits(1, "nodeprep rollback --to 3"), dropIn)
	// That it kills is why it is refused; done by force, the audit names it still.
	command = apply("containerd: {sandboxImage: " + supply.OlderPause + "}\n")
	m.says(m.exits(3, command+" --force-restart"), "default/one", "fail  unit/kill-mode", dropIn)
	m.must(fmt.Sprintf("test ! -d /proc/%d", pod.PID))
	serves(m, "2.1.9")
}

// A unit that kills containers is made one that does not without killing any, also where
// the run fails after that and the unit comes back as it was.
func TestRepairedKillMode(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	n := nodeOf("2.1.9")
	const failing = "containerd: {settings: {metrics: {address: \"192.0.2.1:1338\"}}}\n"
	killMode := func(m *machine) string { return m.shows("containerd", "KillMode")["KillMode"] }
	repair := func(m *machine, pod container, flags string) {
		m.t.Helper()
		m.give(n, failing)
		m.unchanged(func() {
			m.says(m.exits(1, n.command("apply")+flags), "cannot assign requested address", "everything was put back")
		})
		alive(m, pod)
		serves(m, "2.1.9")
		if got := killMode(m); got != "control-group" {
			m.t.Errorf("KillMode is %s after the failure, want control-group, as it was", got)
		}
		settled(m)

		m.give(n, "")
		m.exits(0, n.command("apply")+flags)
		alive(m, pod)
		checkUnit(m) // KillMode=process
		settled(m)
	}
	t.Run("of an older profile", func(t *testing.T) {
		m := start(t, inEvery)
		m.give(n, "systemd: {killMode: control-group}\n")
		m.exits(0, n.command("apply"))
		if got := killMode(m); got != "control-group" {
			t.Fatalf("KillMode is %s, want control-group", got)
		}
		pod := n.runPod(m, "one")
		// Killed, before systemd has read the better unit and after that.
		m.give(n, "")
		for _, after := range []time.Duration{0, 3 * time.Second} {
			if s := m.strike("KILL", "activate", after, n.command("apply")); s.Code != 128+9 {
				t.Fatalf("exit %d before it was killed:\n%s", s.Code, s.Output)
			}
			m.exits(0, "nodeprep recover")
			alive(m, pod)
			serves(m, "2.1.9")
			if got := killMode(m); got != "control-group" {
				t.Errorf("KillMode is %s after recovery, want control-group, as it was", got)
			}
			settled(m)
		}
		repair(m, pod, "")
		// Back to the unit that kills: the restart would be with that one.
		m.says(m.exits(1, "nodeprep rollback"), "KillMode=control-group", "default/one", "--force-restart")
		alive(m, pod)
	})
	t.Run("of a unit made by hand", func(t *testing.T) {
		m := start(t, inAll)
		m.must(`mkdir /root/hand && tar xzf ` + vm.ReleasesDir + "/" + n.containerd.Name() + `/*.tar.gz -C /usr/local
install -m 755 ` + vm.ReleasesDir + `/runc-1.1.5-amd64/runc.amd64 /usr/local/sbin/runc
mkdir /etc/containerd`)
		for path, text := range map[string]string{
			"/etc/containerd/config.toml": `version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = '` + supply.PauseImage + `'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
  options = {SystemdCgroup = true}
`,
			"/etc/systemd/system/containerd.service": `[Service]
Type=notify
Delegate=yes
ExecStart=/usr/local/bin/containerd
[Install]
WantedBy=multi-user.target
`,
		} {
			if err := m.WriteFile(m.ctx, path, text); err != nil {
				t.Fatal(err)
			}
		}
		m.must("systemctl daemon-reload && systemctl enable --now containerd")
		for _, image := range []string{"pause", "busybox"} {
			m.must(n.ctr("images import " + vm.StickDir + "/images/" + image + ".tar"))
		}
		byHand := m.tree("")
		pod := n.runPod(m, "one")
		m.give(n, "")
		m.says(m.exits(1, n.command("apply")), "--adopt", "/etc/systemd/system/containerd.service", "/etc/containerd/config.toml")
		repair(m, pod, " --adopt")

		// What was taken over is given back, and runs again.
		m.says(m.exits(1, "nodeprep uninstall"), "default/one", "--force")
		alive(m, pod)
		m.exits(0, "nodeprep uninstall --force")
		if diff := cmp.Diff(byHand, m.tree("-skip /var/lib/cni")); diff != "" {
			t.Errorf("the host is not as it was by hand (-before +after):\n%s", diff)
		}
		settled(m)
		serves(m, "2.1.9")
		if got := killMode(m); got != "control-group" {
			t.Errorf("KillMode is %s, want control-group, as by hand", got)
		}
	})
}

func replaceOnce(m *machine, s, old, new string) string {
	m.t.Helper()
	before, after, found := strings.Cut(s, old)
	if !found {
		m.t.Fatalf("no %q in %q", old, s)
	}
	return before + new + after
}
