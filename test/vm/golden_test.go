package vm_test

import (
	"context"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

const firstBootUnit = "nodeprep-firstboot.service"

// recipes is where the golden images' are.
const recipes = "../../examples/golden"

// goldenDisk is a disk that the chroot recipe made, of a folder with the guest's system.
// That has, beside it, a kubelet that says what it finds when it starts.
func goldenDisk(t *testing.T, _ context.Context, lab *vm.Lab, n node) string {
	t.Helper()
	return goldenImage(t, lab, lab.BaseDisk(), "amd64", bundleOf(t, n).file)
}

// goldenImage is such a disk for an arch, of a guest's raw disk and a bundle.
func goldenImage(t *testing.T, lab *vm.Lab, base, arch, bundle string) string {
	t.Helper()
	dir, err := lab.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	// The recipe makes the folder by debootstrap, as the guest's disk was made.
	const prepare = `
mkdir "$DIR/mnt" "$ROOT"
mount -o loop,ro,noload "$DISK" "$DIR/mnt"
cp -a "$DIR/mnt/." "$ROOT"
umount "$DIR/mnt"
cat >"$ROOT/etc/systemd/system/kubelet.service" <<'EOF'
[Unit]
After=containerd.service
[Service]
Type=oneshot
ExecStart=/usr/local/bin/ctr -n k8s.io images ls
StandardOutput=file:/root/kubelet.log
[Install]
WantedBy=multi-user.target
EOF
ln -s ../kubelet.service "$ROOT/etc/systemd/system/multi-user.target.wants/kubelet.service"
`
	recipe, err := filepath.Abs(filepath.Join(recipes, "chroot.sh"))
	if err != nil {
		t.Fatal(err)
	}
	root, image := filepath.Join(dir, "root"), filepath.Join(dir, "golden.raw")
	env := []string{"DIR=" + dir, "DISK=" + base, "ROOT=" + root, "IMAGE=" + image, "SIZE=8G", "NODEPREP=" + lab.Nodeprep(), "BUNDLE=" + bundle, "ARCH=" + arch}
	hostRun(t, env, 0, "unshare", "--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", prepare)
	hostRun(t, env, 0, "sh", recipe)
	waiting, err := filepath.Glob(filepath.Join(root, "var/lib/nodeprep/images", "*.tar"))
	if err != nil || len(waiting) != 2 {
		t.Errorf("%d images wait for the first boot, want 2 (%v)", len(waiting), err)
	}
	for p, want := range map[string]int64{"etc/machine-id": 0, "var/lib/nodeprep/firstboot": -1} {
		if fi, err := os.Stat(filepath.Join(root, p)); err != nil || want >= 0 && fi.Size() != want {
			t.Errorf("%s in the image: %v, %v", p, fi, err)
		}
	}
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	return image
}

// bootResult is what a test reads of result.json.
type bootResult struct {
	Verb, Outcome, Error, Nodeprep, Receipt, Boot string
	ExitCode                                      int
	Seconds                                       float64
	Digests                                       struct{ Profile, Nodeprep string }
	Versions                                      map[string]string
	Audit                                         *struct {
		Pass, Fail int
		Failing    []string
	}
}

func (m *machine) result() bootResult {
	m.t.Helper()
	return asJSON[bootResult](m, "cat /var/lib/nodeprep/result.json")
}

// booted waits until systemd has started all that it starts at boot, and wants its verdict.
func (m *machine) booted(want string) {
	m.t.Helper()
	if state := strings.TrimSpace(m.run("systemctl is-system-running --wait").Stdout); state != want {
		m.t.Fatalf("the machine is %s, want %s: %s", state, want, m.run("systemctl --failed --no-pager; journalctl -b --no-pager -p warning; journalctl -b --no-pager -u "+firstBootUnit).Stdout)
	}
}

// firstBooted wants a node whose first boot did all that it was to do.
func firstBooted(m *machine, n node) {
	m.t.Helper()
	want := map[string]string{"Result": "success", "ExecMainStatus": "0", "ConditionResult": "yes"}
	if diff := cmp.Diff(want, m.shows(firstBootUnit, slices.Collect(maps.Keys(want))...)); diff != "" {
		m.t.Errorf("%s (-want +got):\n%s", firstBootUnit, diff)
	}
	said := m.must("journalctl -b -u " + firstBootUnit + " --no-pager -o cat")
	m.t.Logf("first boot said:\n%s", said)
	m.says(said, supply.PauseImage+": imported, pinned", "audit: ")
	m.must("test ! -e /var/lib/nodeprep/images && test ! -e /var/lib/nodeprep/firstboot")
	r := m.result()
	if r.Verb != "firstboot" || r.Outcome != "done" || r.ExitCode != 0 || r.Error != "" || r.Audit == nil || r.Audit.Pass < 20 || r.Audit.Fail != 0 ||
		r.Versions["containerd"] != n.containerd.Version || r.Seconds <= 0 || r.Receipt == "" || r.Boot != m.must("cat /proc/sys/kernel/random/boot_id") {
		m.t.Errorf("result.json has %+v, audit %+v", r, r.Audit)
	}
	for what, sum := range map[string]string{"profile": r.Digests.Profile, "nodeprep": r.Digests.Nodeprep} {
		if !regexp.MustCompile(`^[0-9a-f]{64}$`).MatchString(sum) {
			m.t.Errorf("result.json has sha256 %q of the %s", sum, what)
		}
	}
	m.must("echo " + r.Digests.Nodeprep + " /usr/local/bin/nodeprep | sha256sum -c --quiet")
	if mode := m.must("stat -c %a /var/lib/nodeprep/result.json"); mode != "600" {
		m.t.Errorf("result.json has mode %s", mode)
	}
	checkUnit(m)
	checkImages(m, n)
	checkPinned(m, n)
	checkPod(m, n)
	m.exits(0, "nodeprep status --deep")
	for _, f := range m.check("", "--offline").with("fail") {
		m.t.Errorf("nodeprep check: %v", f)
	}
	settled(m)
}

// passedOver wants a boot at which there was nothing to do.
func passedOver(m *machine, n node) {
	m.t.Helper()
	if got := m.shows(firstBootUnit, "ConditionResult")["ConditionResult"]; got != "no" {
		m.t.Errorf("%s at the second boot: ConditionResult=%s, want no", firstBootUnit, got)
	}
	checkUnit(m)
	checkImages(m, n)
	m.exits(0, "nodeprep status")
}

// A golden image is made by its recipe where no containerd runs; its machine finishes
// itself at its first boot, before a kubelet starts.
func TestGoldenImage(t *testing.T) {
	lab := wanted(t, inMain)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	t.Cleanup(cancel)
	n := nodeOf("2.1.9")
	disk := goldenDisk(t, ctx, lab, n)

	qm, err := lab.Boot(ctx, t.Name(), disk)
	m := held(t, ctx, qm, err)
	m.booted("running")
	firstBooted(m, n)
	// What the kubelet found.
	m.says(m.must("cat /root/kubelet.log"), supply.PauseImage, supply.BusyboxImage, "io.cri-containerd.pinned=pinned")
	id, receipt := m.must("cat /etc/machine-id"), m.result().Receipt
	if len(id) != 32 {
		t.Errorf("machine-id is %q", id)
	}
	if thisRun() == inMain {
		return
	}

	if err := m.Reboot(ctx, m.cmdline()); err != nil {
		t.Fatal(err)
	}
	m.booted("running")
	passedOver(m, n)

	t.Run("another machine, and one try fails", func(t *testing.T) {
		other := filepath.Join(filepath.Dir(disk), "other.raw")
		if err := copySparse(ctx, disk, other); err != nil {
			t.Fatal(err)
		}
		// An archive that the disk does not hold as it was written.
		const spoil = `
mkdir "$MNT" && mount -o loop,nobarrier "$DISK" "$MNT"
pause=$(grep -l "$NAME" "$MNT"/var/lib/nodeprep/images/*.tar | head -n1)
cp -a "$pause" "$MNT/root/archive" && basename "$pause"
printf X | dd of="$pause" bs=1 seek=700 conv=notrunc status=none
umount "$MNT"`
		env := []string{"DISK=" + other, "MNT=" + filepath.Join(filepath.Dir(disk), "mnt-other"), "NAME=" + supply.PauseImage}
		archive := strings.TrimSpace(hostRun(t, env, 0, "unshare", "--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", spoil))
		qm, err := lab.Boot(ctx, t.Name(), other)
		m := held(t, ctx, qm, err)
		m.booted("degraded")
		m.must("systemctl is-failed " + firstBootUnit)
		r := m.result()
		if r.Outcome != "failed" || r.ExitCode != 1 || !strings.Contains(r.Error, "images/pause.tar") || r.Audit == nil {
			t.Errorf("result.json has %+v", r)
		}
		m.says(m.must("journalctl -b -u "+firstBootUnit+" --no-pager -o cat"), supply.BusyboxImage+": imported", "images/pause.tar")
		m.must("test -e /var/lib/nodeprep/firstboot && test -e /var/lib/nodeprep/images/" + archive)
		m.must("test -s /root/kubelet.log") // the node goes on
		checkUnit(m)
		m.must("cp -a /root/archive /var/lib/nodeprep/images/" + archive)
		if err := m.Reboot(ctx, m.cmdline()); err != nil {
			t.Fatal(err)
		}
		m.booted("running")
		firstBooted(m, n)
		if other := m.must("cat /etc/machine-id"); other == id || m.result().Receipt == receipt {
			t.Errorf("two machines of one image: machine-id %s and %s, receipt %s and %s", id, other, receipt, m.result().Receipt)
		}
	})
}

// The builder of an image is provisioned as Packer does it: through a second mount of its
// root, with nothing of the node running there.
func TestGoldenBuilder(t *testing.T) {
	m := start(t, inAll)
	n := nodeOf("2.1.9")
	m.carry(n)
	script, err := os.ReadFile(filepath.Join(recipes, "packer", "provision.sh"))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.WriteFile(m.ctx, "/root/provision.sh", string(script)); err != nil {
		t.Fatal(err)
	}
	m.must("cp " + stick + "/nodeprep " + stick + "/node.bundle /tmp")
	m.exits(0, "sh /root/provision.sh")
	m.must("test ! -e /tmp/nodeprep && test ! -e /tmp/node.bundle && test ! -s /etc/machine-id")
	m.must("test ! -e /var/lib/containerd && test ! -e /run/containerd && test -e /var/lib/nodeprep/firstboot")
	m.must("! findmnt -rno TARGET | grep /tmp/tmp")
	// Nor is there what would be the same on two machines, and shutting down does not bring it back.
	m.must("for f in /var/lib/dbus/machine-id /var/lib/systemd/random-seed /var/lib/systemd/credential.secret; do test ! -e $f; done; ! systemctl is-active systemd-random-seed.service")
	if err := m.Reboot(m.ctx, m.cmdline()); err != nil {
		t.Fatal(err)
	}
	m.booted("running")
	firstBooted(m, n)
}
