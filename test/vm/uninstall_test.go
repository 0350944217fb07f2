package vm_test

import (
	"fmt"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// After an uninstall the host is what it was before the first apply.
func TestUninstall(t *testing.T) {
	m := start(t, inAll)
	// What CNI plugins note about pods that nobody took down is theirs, like containerd's data.
	before := m.tree("-skip /var/lib/cni")
	first, second := nodeOf("1.7.24"), nodeOf("2.1.9")
	m.give(first, mirror)
	m.exits(0, first.command("apply"))
	m.give(second, "")
	m.exits(0, second.command("apply"))
	m.exits(0, "nodeprep rollback")
	serves(m, "1.7.24")
	m.give(second, "")
	m.exits(0, second.command("apply"))
	pod := second.runPod(m, "one")

	m.unchanged(func() {
		m.says(m.exits(1, "nodeprep uninstall"), "default/one", "--force")
		m.says(m.exits(2, "nodeprep uninstall --purge"), "--yes")
		m.says(m.exits(1, "nodeprep uninstall --purge --yes"), "default/one", "--force")
	})
	alive(m, pod)
	said := m.exits(0, "nodeprep uninstall --force")
	m.says(said, "/var/lib/containerd")
	gone := func() {
		t.Helper()
		absent(m)
		m.must(fmt.Sprintf("test ! -d /proc/%d", pod.PID))
		if diff := cmp.Diff(before, m.tree("-skip /var/lib/cni")); diff != "" {
			t.Errorf("the host is not as it was before the first apply (-before +after):\n%s", diff)
		}
	}
	gone()
	m.must("test -d /var/lib/containerd/io.containerd.content.v1.content")
	m.exits(0, "nodeprep uninstall") // nothing to do

	// The data was kept: the images are there without being imported again.
	m.give(second, "images: null\n")
	m.exits(0, second.command("apply"))
	checkImages(m, second)
	pod = second.runPod(m, "two")
	const mounted = "/var/lib/containerd/theirs"
	m.must("mkdir " + mounted + " && mount -t tmpfs tmpfs " + mounted + " && echo precious >" + mounted + "/file")
	m.says(m.exits(0, "nodeprep uninstall --force --purge --yes"), mounted)
	gone()
	if left := m.must("find /var/lib/containerd"); left != "/var/lib/containerd\n"+mounted+"\n"+mounted+"/file" {
		t.Errorf("left of containerd's data:\n%s", left)
	}
	// Of the pods that were stopped only their mounts are left, until the next boot.
	if left := m.must("find /run/containerd ! -type d; find /run/containerd -type d -empty | while read -r dir; do mountpoint -q $dir || echo $dir; done"); left != "" {
		t.Errorf("left of containerd's state, and nothing is mounted there:\n%s", left)
	}
	m.must("test ! -e /opt/containerd")
	m.must("grep -q precious " + mounted + "/file")
}
