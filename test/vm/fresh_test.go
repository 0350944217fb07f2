package vm_test

import (
	"fmt"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// A fresh server, a profile and three release files become a node that Kubernetes can
// use, without a network; and it stays one on all days that follow.
func TestFreshNode(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	for _, n := range nodes() {
		t.Run("containerd "+n.containerd.Version, func(t *testing.T) {
			// The others are in other scenarios: 1.6 and 1.7, whose containers survive their
			// upgrade, and 2.1, which all that a node can be is asked of in TestBundle.
			s := map[string]set{"2.4.2": inMain, "1.6.20": inEvery, "1.7.24": inEvery, "2.1.9": inEvery}[n.containerd.Version]
			m := start(t, s)
			m.give(n, "")
			m.must("test -z \"$(ls /sys/class/net | grep -v ^lo$)\"") // no network but the loopback

			plan := m.exits(3, n.command("plan"))
			m.says(plan, "/etc/containerd/config.toml", "/usr/local/bin/containerd", "/usr/local/sbin/runc")
			m.must("test ! -e /etc/containerd && test ! -e /usr/local/bin/containerd")

			m.exits(0, n.command("apply"))
			m.exits(0, n.command("plan"))
			m.exits(0, "nodeprep status")

			checkUnit(m)
			checkPlugins(m, n)
			checkImages(m, n)
			checkPod(m, n)
			checkConfig(m, n)
			m.exits(0, "nodeprep status --deep")

			if !t.Run("the second day", func(t *testing.T) { secondDay(&machine{m.Machine, m.ctx, t}, n) }) {
				t.Fatal("what comes after this is not tried on what it left behind")
			}
			t.Run("an audit after an apply", func(t *testing.T) {
				inAll.orSkip(t)
				auditAfterApply(&machine{m.Machine, m.ctx, t}, n)
			})
		})
	}
}

// checkUnit holds what systemd and the kernel have in force against what keeps containers
// alive across restarts of the daemon.
func checkUnit(m *machine) {
	m.t.Helper()
	got := m.shows("containerd", "ActiveState", "UnitFileState", "Delegate", "KillMode", "OOMScoreAdjust", "Type", "MainPID")
	pid := got["MainPID"]
	delete(got, "MainPID")
	want := map[string]string{
		"ActiveState": "active", "UnitFileState": "enabled", "Type": "notify",
		"Delegate": "yes", "KillMode": "process", "OOMScoreAdjust": "-999",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		m.t.Errorf("containerd.service (-want +got):\n%s", diff)
	}
	if score := m.must("cat /proc/" + pid + "/oom_score_adj"); score != "-999" {
		m.t.Errorf("the daemon's oom_score_adj is %s, want -999", score)
	}
	for module, key := range map[string]string{"overlay": "", "br_netfilter": "/proc/sys/net/bridge/bridge-nf-call-iptables"} {
		m.must("test -d /sys/module/" + module)
		if key != "" {
			if v := m.must("cat " + key); v != "1" {
				m.t.Errorf("%s is %s, want 1", key, v)
			}
		}
	}
}

// checkPlugins asks the daemon which of its plugins work.
func checkPlugins(m *machine, n node) {
	m.t.Helper()
	list := m.must(n.ctr("plugins ls"))
	state := make(map[string]string)
	for line := range strings.Lines(list) {
		if f := strings.Fields(line); len(f) >= 3 {
			state[f[0]+"."+f[1]] = f[len(f)-1]
		}
	}
	wanted := []string{"io.containerd.grpc.v1.cri", "io.containerd.snapshotter.v1.overlayfs"}
	if strings.HasPrefix(n.containerd.Version, "2.") {
		wanted = append(wanted, "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime")
	}
	if n.containerd.Version == "2.4.2" {
		wanted = append(wanted, "io.containerd.snapshotter.v1.native", "io.containerd.server.v1.metrics")
	}
	for _, plugin := range wanted {
		if state[plugin] != "ok" {
			m.t.Errorf("plugin %s is %q, want ok", plugin, state[plugin])
		}
	}
	if m.t.Failed() {
		m.t.Log(list)
	}
}

// checkImages wants the profile's images where a kubelet sees them.
func checkImages(m *machine, n node) {
	m.t.Helper()
	type image struct {
		Names  []string
		Pinned bool
	}
	pinned := make(map[string]bool)
	for _, i := range asJSON[[]image](m, n.cri("images")) {
		for _, name := range i.Names {
			pinned[name] = i.Pinned
		}
	}
	for _, name := range []string{supply.BusyboxImage, supply.PauseImage} {
		if _, ok := pinned[name]; !ok {
			m.t.Errorf("image %s is not there; there are %v", name, pinned)
		}
	}
	// CRI tells of pinning since containerd 1.7; the label is there before.
	labels := m.must(n.ctr("images ls name==" + supply.PauseImage))
	m.says(labels, "io.cri-containerd.pinned=pinned")
}

// checkPod runs a pod as a kubelet would, and looks at the processes that come of it.
func checkPod(m *machine, n node) {
	m.t.Helper()
	c := n.runPod(m, "one")
	// The systemd cgroup driver: a scope of systemd's, named by containerd, under the
	// slice that was asked for. With cgroupfs there would be no such unit.
	for id, pid := range map[string]int{c.ID: c.PID, c.Pod: c.PodPID} {
		scope := "cri-containerd-" + id + ".scope"
		cgroup := m.must(fmt.Sprintf("cat /proc/%d/cgroup", pid))
		if !strings.HasSuffix(cgroup, "/nodeprep-test.slice/"+scope) {
			m.t.Errorf("process %d is in cgroup %s, want it in %s", pid, cgroup, scope)
		}
		if got := m.shows(scope, "ActiveState")["ActiveState"]; got != "active" {
			m.t.Errorf("systemd has %s as %s, want active", scope, got)
		}
	}
	if c.SandboxImage != supply.PauseImage {
		m.t.Errorf("the pod's sandbox is of image %s, want %s", c.SandboxImage, supply.PauseImage)
	}
	m.must(fmt.Sprintf("test $(readlink /proc/%d/exe) = /pause", c.PodPID))
	// The profile's runc: the shim writes down what it was told.
	m.says(m.must("cat /run/containerd/io.containerd.runtime.v2.task/k8s.io/"+c.ID+"/options.json"), `"/usr/local/sbin/runc"`, `"systemd_cgroup":true`)
	if n.containerd.Version == "2.1.9" && !strings.HasPrefix(c.IP, "10.88.0.") {
		m.t.Errorf("the pod's address is %q, want one of the profile's network", c.IP)
	}
	m.must(n.cri("rm one"))
	m.must(fmt.Sprintf("test ! -d /proc/%d", c.PID))
}

// checkConfig shows that what the profile says arrived in the daemon: in the config it
// says it reads, and in what it does.
func checkConfig(m *machine, n node) {
	m.t.Helper()
	snapshotter := "overlayfs"
	if n.containerd.Version == "2.4.2" {
		snapshotter = "native"
	}
	dump := m.must("containerd config dump")
	for key, value := range map[string]string{
		"sandbox(_image)?": supply.PauseImage,
		"snapshotter":      snapshotter,
		"SystemdCgroup":    "true",
		"BinaryName":       "/usr/local/sbin/runc",
		"config_path":      "/etc/containerd/certs.d",
	} {
		if !regexp.MustCompile(`(?m)^\s*` + key + ` = ["']?` + regexp.QuoteMeta(value) + `["']?$`).MatchString(dump) {
			m.t.Errorf("containerd config dump has no %s = %s:\n%s", key, value, dump)
		}
	}
	for _, address := range []string{n.address, "127.0.0.1:1338"} {
		if !regexp.MustCompile(`(?m)^\s*address = ["']` + regexp.QuoteMeta(address) + `["']$`).MatchString(dump) {
			m.t.Errorf("containerd config dump has no address = %s:\n%s", address, dump)
		}
	}

	type status struct {
		Version    string
		Conditions map[string]bool
	}
	s := asJSON[status](m, n.cri("status")) // answers at the profile's address
	if !s.Conditions["RuntimeReady"] || !strings.Contains(s.Version, n.containerd.Version) {
		m.t.Errorf("CRI says %+v, want version %s and RuntimeReady", s, n.containerd.Version)
	}
	m.says(m.must("curl -sS http://127.0.0.1:1338/v1/metrics"), "go_goroutines")
	m.must("test -S " + n.address)
	if n.address != "/run/containerd/containerd.sock" {
		m.must("test ! -e /run/containerd/containerd.sock")
		m.must("test -S " + n.address + ".ttrpc")
	}
	// A container's snapshot is where the snapshotter of the profile keeps them.
	m.must(n.ctr("snapshots --snapshotter " + snapshotter + " ls | grep sha256:"))
}
