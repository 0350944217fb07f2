package vm_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/powercut"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// A disk as a cloud hands it out, with cloud-init and a kubelet that says what it finds when it
// starts, and without any trace of nodeprep. The kubelet knows of nothing that it should wait for.
const cloudImage = `
mount -o loop,nobarrier "$DISK" "$ROOT"
cat >"$ROOT/etc/systemd/system/kubelet.service" <<'EOF'
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/sh -c '[ -S /run/containerd/containerd.sock ] && echo it is there || echo nobody is there'
StandardOutput=append:/root/kubelet.log
[Install]
WantedBy=multi-user.target
EOF
ln -sf ../kubelet.service "$ROOT/etc/systemd/system/multi-user.target.wants/kubelet.service"
rm "$ROOT/etc/cloud/cloud-init.disabled"
# No other source is asked, the small guest has no locales, keys for sshd take long to make,
# and a power cut leaves cloud-init believing that it has made its user.
printf 'datasource_list: [NoCloud]\nlocale: C.UTF-8\nssh_deletekeys: false\nusers: []\n' >"$ROOT/etc/cloud/cloud.cfg.d/99-test.cfg"
if [ -n "$SERVE" ]; then
	mkdir "$ROOT/srv/boot"
	cp "$SERVE"/* "$ROOT/srv/boot"
	mv "$ROOT/srv/boot/web.service" "$ROOT/etc/systemd/system"
	ln -s ../web.service "$ROOT/etc/systemd/system/multi-user.target.wants/web.service"
fi
if [ -n "$STRIKE" ]; then
	mkdir -p "$ROOT/srv/strike" "$ROOT/etc/systemd/system/nodeprep-cloud-init.service.d"
	cp "$INGUEST" "$ROOT/srv/strike/inguest"
	cat >"$ROOT/etc/systemd/system/nodeprep-cloud-init.service.d/strike.conf" <<'EOF'
[Service]
ExecStartPre=/bin/sh /srv/strike/once.sh
EOF
	cat >"$ROOT/srv/strike/once.sh" <<EOF
[ -e /srv/strike/done ] && exit
: >/srv/strike/done
sync /srv/strike/done
exec systemd-run --quiet --no-block --unit=strike -p StandardOutput=file:/run/struck /srv/strike/inguest strike -signal STOP -stage $STRIKE -unit nodeprep-cloud-init.service
EOF
fi
umount "$ROOT"
`

// image is what a machine's disk has beside.
type image struct {
	disk   string // raw; empty for the guest's own
	serve  string // a folder of what the machine serves to itself over HTTP
	strike string // a stage of nodeprep's journal, at which it is stopped, once
}

const (
	cloudLabel = "NODEPREP"
	resultFile = "/var/lib/nodeprep/result.json"
)

// cloud is a lab for machines that cloud-init makes.
type cloud struct {
	*vm.Lab
	dir    string
	n      node
	binary string // its sha256
	media  string // a disk with nodeprep and the bundle
	bundle made
}

func cloudOf(t *testing.T, s set) *cloud {
	t.Helper()
	lab := wanted(t, s)
	c := &cloud{Lab: lab, n: nodeOf("2.1.9")}
	c.bundle = bundleOf(t, c.n)
	var err error
	if c.dir, err = c.Scratch(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(c.dir); err != nil {
			t.Error(err)
		}
	})
	c.binary = sumOf(t, c.Nodeprep())
	c.media = filepath.Join(c.dir, "media.raw")
	content := map[string]string{"nodeprep": c.Nodeprep(), "nodeprep.bundle": c.bundle.file}
	if err := supply.WriteDisk(t.Context(), c.media, cloudLabel, content); err != nil {
		t.Fatal(err)
	}
	return c
}

func sumOf(t *testing.T, file string) string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// userData is what nodeprep prints.
func (c *cloud) userData(t *testing.T, args ...string) string {
	t.Helper()
	return hostRun(t, nil, 0, c.Nodeprep(), append([]string{"cloud-init"}, args...)...)
}

// fromDisk are the options for a disk that has all.
func (c *cloud) fromDisk(more ...string) []string {
	return append([]string{"--bundle-device", cloudLabel, "--binary-sha256", c.binary}, more...)
}

// overlay is a file with a profile that goes over the bundle's.
func (c *cloud) overlay(t *testing.T, text string) string {
	t.Helper()
	file := filepath.Join(c.dir, "overlay.yaml")
	if err := os.WriteFile(file, []byte("apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nextends: bundle\n"+text), 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// seed is a seed's image.
func (c *cloud) seed(t *testing.T, instance, user string) string {
	t.Helper()
	image := filepath.Join(c.dir, instance+".iso")
	if err := vm.WriteSeed(t.Context(), image, instance, []byte(user)); err != nil {
		t.Fatal(err)
	}
	return image
}

// disk makes a machine's disk.
func (c *cloud) disk(t *testing.T, ctx context.Context, i image) string {
	t.Helper()
	disk, root := filepath.Join(c.dir, "disk.raw"), filepath.Join(c.dir, "root")
	from := i.disk
	if from == "" {
		from = c.BaseDisk()
	}
	if err := copySparse(ctx, from, disk); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	env := []string{"DISK=" + disk, "ROOT=" + root, "SERVE=" + i.serve, "STRIKE=" + i.strike, "INGUEST=" + c.Inguest()}
	hostRun(t, env, 0, "unshare", "--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", cloudImage)
	return disk
}

// boot boots a machine for its first time, with its seed.
func (c *cloud) boot(t *testing.T, user string, i image) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	t.Cleanup(cancel)
	qm, err := c.BootWith(ctx, t.Name(), c.disk(t, ctx, i), map[string]string{"seed": c.seed(t, "one", user), "media": c.media})
	return held(t, ctx, qm, err)
}

// again boots it with another seed.
func (c *cloud) again(m *machine, instance, user string) {
	m.t.Helper()
	m.Insert("seed", c.seed(m.t, instance, user))
	m.reboot()
}

func (m *machine) reboot() {
	m.t.Helper()
	if err := m.Reboot(m.ctx, m.cmdline()); err != nil {
		m.t.Fatal(err)
	}
}

// cloudResult is what is read of result.json.
type cloudResult struct {
	Verb, Began, Ended, Outcome, Error string
	Seconds                            float64
	ExitCode                           int
	Digests                            struct{ Profile, Bundle, BundleIndex, Nodeprep string }
	Versions                           map[string]string
	Audit                              struct{ Pass, Fail int }
	Receipt, Boot                      string
	Otherwise                          bool
	Earlier                            *cloudResult // of the other verb
}

// cloudStatus waits until cloud-init has ended, and says how.
func (m *machine) cloudStatus(want string) string {
	m.t.Helper()
	said := m.run("cloud-init status --wait --long || true").Stdout
	if !regexp.MustCompile(`(?m)^status: ` + want + `$`).MatchString(said) {
		m.t.Fatalf("cloud-init status, want %s:\n%s\n%s", want, said, m.run("journalctl -b --no-pager -u 'nodeprep*' -u 'cloud*' -u kubelet").Stdout)
	}
	return said
}

// ready wants a node that was made ahead of the kubelet, by the last boot or one before.
func (c *cloud) ready(m *machine, outcome string) cloudResult {
	m.t.Helper()
	m.cloudStatus("done")
	const unit = "nodeprep-cloud-init.service"
	ended := m.shows(unit, "ActiveState", "Result", "ActiveEnterTimestampMonotonic", "ExecMainStatus")
	kubelet := m.shows("kubelet.service", "ActiveState", "ExecMainStartTimestampMonotonic")
	if ended["ActiveState"] != "active" || kubelet["ActiveState"] != "active" || !sooner(ended["ActiveEnterTimestampMonotonic"], kubelet["ExecMainStartTimestampMonotonic"]) {
		m.t.Errorf("the kubelet started before the node was ready: %v, %v", ended, kubelet)
	}
	m.must("systemctl is-system-running --wait")
	checkUnit(m)
	m.must(c.n.cri("status"))
	settled(m)
	m.exits(0, "nodeprep status")
	r := asJSON[cloudResult](m, "cat "+resultFile)
	if r.Verb != "cloud-init" || r.Outcome != outcome || r.ExitCode != 0 || r.Error != "" || r.Seconds <= 0 || r.Receipt == "" || r.Versions["containerd"] != c.n.containerd.Version ||
		r.Digests.Nodeprep != c.binary || len(r.Digests.Profile) != 64 || len(r.Digests.BundleIndex) != 64 || r.Audit.Pass == 0 || r.Audit.Fail > 0 {
		m.t.Errorf("%s: %+v", resultFile, r)
	}
	// In a boot that finds the node as it is, containerd is not waited for.
	if boot := m.must("cat /proc/sys/kernel/random/boot_id"); r.Boot == boot {
		if log := m.must("tail -n 1 /root/kubelet.log"); log != "it is there" {
			m.t.Errorf("what the kubelet found: %s", log)
		}
	}
	return r
}

// sooner compares times of systemd's, microseconds since the boot.
func sooner(a, b string) bool {
	var x, y int64
	_, err := fmt.Sscan(a+" "+b, &x, &y)
	return err == nil && x > 0 && x <= y
}

// A fresh machine and a seed with what "nodeprep cloud-init" printed: it boots, without a
// network, to a node that the kubelet finds ready. It does so once for a profile.
//
// With -vm=main it is TestCloudInitPowerCut that does so, whose second boot makes the node.
func TestCloudInit(t *testing.T) {
	c := cloudOf(t, inAll)
	user := c.userData(t, c.fromDisk()...)
	m := c.boot(t, user, image{})
	first := c.ready(m, "done")
	checkImages(m, c.n)
	c.valid(m, user)
	m.must("test $(stat -c %a " + resultFile + ") = 600; test -z \"$(ls -d /run/nodeprep* 2>/dev/null)\"; ! grep ' /run/nodeprep' /proc/mounts")
	m.says(m.exits(0, "nodeprep status"), "at boot", "cloud-init", "done")
	m.says(m.must("journalctl -b --no-pager -o cat -u nodeprep-cloud-init.service"), "containerd 2.1.9", "cloud-init: done in")
	t.Logf("the first boot took nodeprep %.1f s; %s", first.Seconds, m.must("systemd-analyze time | head -1"))
	checkPod(m, c.n)

	// Another nodeprep has come since, and the disk is gone: the next boot does nothing, asks for
	// nothing, and the kubelet still waits for that.
	m.must(`cp /media/stick/nodeprep /root/newer; printf newer >>/root/newer
mount -o ro /dev/disk/by-label/` + cloudLabel + ` /mnt; /root/newer apply --bundle /mnt/nodeprep.bundle; umount /mnt`)
	const program = "sha256sum </usr/local/bin/nodeprep"
	newer := m.must(program)
	if strings.HasPrefix(newer, c.binary) {
		t.Error("another nodeprep does not put itself in place")
	}
	m.Remove("media")
	m.reboot()
	again := c.ready(m, "done")
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the second boot ran again (-first +second):\n%s", diff)
	}
	said := m.must("journalctl -b --no-pager -o cat -u nodeprep-cloud-init.service")
	m.says(said, "nothing to do")
	for _, word := range []string{"cannot get", "gave up", "no disk has"} {
		if strings.Contains(said, word) {
			t.Errorf("the second boot asked for what it did not need:\n%s", said)
		}
	}
	if now := m.must(program); now != newer {
		t.Errorf("the boot put another nodeprep in place: %s, was %s", now, newer)
	}
	m.Insert("media", c.media)

	// Another profile, for another instance, of which cloud-init cannot write all: nothing of it
	// counts, and nobody notes that it was written.
	two := c.userData(t, c.fromDisk("-f", c.overlay(t, "registries: {two.example.com: {mirrors: [{url: \"https://mirror.example.com\"}]}}\n"))...)
	m.must(": >/etc/nodeprep/fetch-nodeprep.sh; chattr +i /etc/nodeprep/fetch-nodeprep.sh")
	c.again(m, "two", two)
	// Nor at the boot after that, for which systemd reads what is there by halves.
	const mended = "chattr -i /etc/nodeprep/fetch-nodeprep.sh"
	boots := []string{mended}
	if thisRun() == inEvery {
		boots = []string{"true", mended}
	}
	for _, next := range boots {
		m.cloudStatus("error")
		m.must("test ! -e /var/lib/cloud/instance/sem/nodeprep -a ! -e /etc/containerd/certs.d/two.example.com; test -e /var/lib/cloud/instance/sem/config_write_files")
		if got := m.shows("nodeprep-cloud-init.service", "ConditionResult", "ActiveState"); got["ConditionResult"] != "no" || got["ActiveState"] != "inactive" {
			t.Errorf("the unit ran without the note: %v", got)
		}
		checkUnit(m)
		if r := asJSON[cloudResult](m, "cat "+resultFile); r.Digests.Profile != first.Digests.Profile {
			t.Errorf("user-data that was not written was run: %+v", r)
		}
		m.must(next)
		m.reboot()
	}

	// With the next boot it is written, and applied; the unit of the old one does not come first.
	second := c.ready(m, "done")
	if second.Digests.Profile == first.Digests.Profile || second.Boot == first.Boot {
		t.Errorf("%+v, before %+v", second, first)
	}
	m.must("test -e /etc/containerd/certs.d/two.example.com/hosts.toml")
	m.says(m.must("cat /etc/nodeprep/overlay.yaml"), "extends: bundle")
	if thisRun() < inEvery {
		t.Log("only with -vm=every: the instance of before, and what is taken back")
		return
	}

	// The instance of before comes back, and has its own again.
	c.again(m, "one", user)
	third := c.ready(m, "done")
	if third.Digests.Profile != first.Digests.Profile || third.Boot == second.Boot {
		t.Errorf("%+v, before %+v", third, second)
	}
	m.must("test ! -e /etc/containerd/certs.d/two.example.com/hosts.toml")

	// What is taken back stays so, once its unit is disabled.
	m.must("systemctl disable nodeprep-cloud-init.service")
	m.exits(0, "nodeprep uninstall --yes")
	m.must("test ! -e /var/lib/nodeprep")
	m.reboot()
	m.cloudStatus("done")
	m.must("test ! -e /var/lib/nodeprep -a ! -e /usr/local/bin/containerd")
}

// valid holds user-data, and that of the other forms, to cloud-init's schema; and the
// machine's cloud-init to what nodeprep counts on.
func (c *cloud) valid(m *machine, user string) {
	t := m.t
	t.Helper()
	sum := sumOf(t, c.bundle.file)
	forms := map[string]string{
		"disk":   user,
		"url":    c.userData(t, "--binary-url", "https://boot.example.com/nodeprep?sig=a%2Fb$x", "--binary-sha256", c.binary, "--bundle-url", "https://boot.example.com/node.bundle?sig=a%2Fb$x", "--bundle-sha256", sum),
		"image":  c.userData(t, "-f", filepath.Join(c.bundle.dir, "profile.yaml")),
		"packed": c.userData(t, c.fromDisk("-f", c.largeOverlay(t))...),
	}
	if packed := strings.Contains(forms["packed"], "gz+b64"); !packed || strings.Contains(user, "b64") {
		t.Errorf("packed: %v", packed)
	}
	if thisRun() == inMain {
		t.Log("only with -vm=all: cloud-init's schema of the forms url and image")
		delete(forms, "url")
		delete(forms, "image")
	}
	for name, text := range forms {
		if err := m.WriteFile(m.ctx, "/run/forms/"+name, text); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(forms)) {
		if said := m.run("cloud-init schema --config-file /run/forms/" + name); said.Code != 0 || !strings.Contains(said.Stdout, "Valid") {
			t.Errorf("cloud-init does not take the form %q: exit %d\n%s%s", name, said.Code, said.Stdout, said.Stderr)
		}
	}
	m.must(`python3 -c '
import yaml
stage = [str(m).replace("-", "_") for m in yaml.safe_load(open("/etc/cloud/cloud.cfg"))["cloud_init_modules"]]
assert stage.index("bootcmd") < stage.index("write_files"), stage'`)
}

// mirrored is how many registries largeOverlay has.
const mirrored = 150

// largeOverlay is an overlay of which user-data is packed, with a certificate.
func (c *cloud) largeOverlay(t *testing.T) string {
	t.Helper()
	if err := os.WriteFile(filepath.Join(c.dir, "packed.pem"), []byte(certificate(t, "packed", time.Now().AddDate(10, 0, 0)).cert), 0o644); err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	b.WriteString("registries:\n  ca.example.com: {ca: packed.pem}\n")
	for i := range mirrored {
		fmt.Fprintf(&b, "  r%03d.example.com: {mirrors: [{url: \"https://mirror.example.com/a/long/path/that/many/registries/have/r%03d\"}]}\n", i, i)
	}
	return c.overlay(t, b.String())
}

// User-data that had to be packed, as one part of two: both take effect.
func TestCloudInitParts(t *testing.T) {
	c := cloudOf(t, inAll)
	ours := c.userData(t, c.fromDisk("-f", c.largeOverlay(t))...)
	if !strings.Contains(ours, "gz+b64") {
		t.Fatal("it is not packed")
	}
	const theirs = `#cloud-config
bootcmd:
  - [sh, -c, "echo theirs >>/root/bootcmd.log"]
write_files:
  - {path: /etc/theirs.conf, content: "theirs\n", permissions: "0640"}
runcmd:
  - [sh, -c, "systemctl is-active containerd.service nodeprep-cloud-init.service >/root/runcmd.log"]
`
	m := c.boot(t, multipart(theirs, ours), image{})
	c.ready(m, "done")
	m.must("cmp /root/bootcmd.log /etc/theirs.conf; test $(stat -c %a /etc/theirs.conf) = 640")
	if got := m.must("cat /root/runcmd.log"); got != "active\nactive" {
		t.Errorf("what the other part's runcmd found: %s", got)
	}
	if got := m.must("ls -d /etc/containerd/certs.d/r[0-9]*.example.com | wc -l"); got != fmt.Sprint(mirrored) {
		t.Errorf("%s registries, want %d", got, mirrored)
	}
	m.must("test -e /etc/containerd/certs.d/ca.example.com/hosts.toml")
	pem, err := os.ReadFile(filepath.Join(c.dir, "packed.pem"))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.must("cat $(find /etc/nodeprep /etc/containerd -name '*.pem' -o -name '*.crt' | xargs grep -l CERTIFICATE)"); !strings.Contains(got, strings.TrimSpace(string(pem))) {
		t.Errorf("the certificate is not there; there are:\n%s", got)
	}
	m.reboot()
	c.ready(m, "done")
	if got := m.must("cat /root/bootcmd.log"); got != "theirs\ntheirs" {
		t.Errorf("the other part's bootcmd wrote %q", got)
	}
}

// multipart is user-data of several parts.
func multipart(parts ...string) string {
	const boundary = "==part=="
	var b strings.Builder
	b.WriteString("Content-Type: multipart/mixed; boundary=\"" + boundary + "\"\nMIME-Version: 1.0\n\n")
	for i, text := range parts {
		fmt.Fprintf(&b, "--%s\nContent-Type: text/cloud-config; charset=\"utf-8\"\nMIME-Version: 1.0\nContent-Transfer-Encoding: 8bit\nContent-Disposition: attachment; filename=\"part%d\"\n\n%s\n", boundary, i, text)
	}
	b.WriteString("--" + boundary + "--\n")
	return b.String()
}

// A profile that does not fit: cloud-init's status tells it, and the host is as it was. So it
// is at every boot, until somebody applies another: that stands.
func TestCloudInitBroken(t *testing.T) {
	c := cloudOf(t, inMain)
	wrong := c.overlay(t, "runc: {version: 1.1.5, sha256: {amd64: "+strings.Repeat("0123456789abcdef", 4)+"}}\n")
	m := c.boot(t, c.userData(t, c.fromDisk("-f", wrong)...), image{})
	c.refused(m)
	if thisRun() == inMain {
		return
	}
	if thisRun() == inEvery {
		m.reboot()
		c.refused(m)
	}

	m.must("mount -o ro /dev/disk/by-label/" + cloudLabel + " /mnt; nodeprep apply --bundle /mnt/nodeprep.bundle; umount /mnt")
	const receipt = "sha256sum </var/lib/nodeprep/receipt.json"
	stands := m.must(receipt)
	m.reboot()
	m.cloudStatus("done")
	m.must("systemctl is-system-running --wait")
	if now := m.must(receipt); now != stands {
		t.Errorf("the boot applied the profile of user-data over what somebody had applied: %s", m.must("nodeprep status"))
	}
	m.says(m.must("journalctl -b --no-pager -o cat -u nodeprep-cloud-init.service"), "applied since")
	if r := asJSON[cloudResult](m, "cat "+resultFile); r.Outcome != "unchanged" || !r.Otherwise || r.ExitCode != 0 || r.Error != "" {
		t.Errorf("%s: %+v", resultFile, r)
	}
	checkUnit(m)
	settled(m)
	m.says(m.exits(0, "nodeprep status"), "something else was applied")
}

// refused wants a machine whose profile did not fit, after its boot.
func (c *cloud) refused(m *machine) {
	t := m.t
	t.Helper()
	said := m.cloudStatus("error")
	m.says(said, "scripts-per-boot")
	boot := m.must("cat /proc/sys/kernel/random/boot_id")
	r := asJSON[cloudResult](m, "cat "+resultFile)
	if r.Outcome != "failed" || r.ExitCode != 2 || !strings.Contains(r.Error, "0123456789abcdef") || !strings.Contains(r.Error, "runc 1.1.5") || r.Receipt != "" || r.Boot != boot {
		t.Errorf("in boot %s: %+v", boot, r)
	}
	m.says(m.must("journalctl -b --no-pager -o cat -u nodeprep-cloud-init.service"), "0123456789abcdef")
	m.says(m.must("cat /var/log/cloud-init-output.log"), "nodeprep-cloud-init.service failed", "0123456789abcdef")
	m.says(m.run("nodeprep status").Stdout, "not provisioned", "0123456789abcdef")
	// The kubelet started all the same, and found nobody.
	m.says(m.must("tail -n 1 /root/kubelet.log"), "nobody is there")
	// cloud-init's own, the program and the result, and nothing else.
	got := m.must(`ls -A /var/lib/nodeprep; for p in /usr/local/bin/containerd /etc/containerd /etc/systemd/system/containerd.service /opt/cni /etc/modules-load.d/nodeprep.conf; do test ! -e $p || echo $p; done
find /usr/local /etc -name '*nodeprep*' ! -path '/etc/nodeprep*' | sort`)
	want := "result.json\n/etc/systemd/system/multi-user.target.wants/nodeprep-cloud-init.service\n/etc/systemd/system/nodeprep-cloud-init.service\n/usr/local/bin/nodeprep"
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("on the host (-want +got):\n%s", diff)
	}
}

// The power goes in the middle of the first boot, at a moment that is certain: nodeprep has
// been stopped there. The second boot makes a good node of what is left, once.
func TestCloudInitPowerCut(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	for _, at := range []struct {
		set
		stage string
		// Who puts the interrupted run back: before the unit that does so at boot is there,
		// the next run itself.
		mends string
	}{
		{inMain, "activate", "nodeprep-recover.service"},
		{inAll, "stage", "nodeprep-cloud-init.service"},
	} {
		t.Run(at.stage, func(t *testing.T) {
			c := cloudOf(t, at.set)
			user := c.userData(t, c.fromDisk()...)
			m := c.boot(t, user, image{strike: at.stage})
			m.must("for i in $(seq 1200); do [ -s /run/struck ] && break; sleep 0.5; done")
			if s := asJSON[struck](m, "cat /run/struck"); s.Stage != at.stage {
				t.Errorf("it was stopped at stage %q, want %q", s.Stage, at.stage)
			}
			m.must("grep -q '^State:.T' /proc/$(systemctl show -p MainPID --value nodeprep-cloud-init.service)/status; test ! -e " + resultFile)
			if at.stage == "stage" {
				// The journal is seen when it has its name, and kept once its folder is flushed; before
				// that there is nothing to put back.
				m.must("sync")
			}
			if err := m.CutPower(m.ctx); err != nil {
				t.Fatal(err)
			}
			second := c.ready(m, "done")
			if boot := m.must("cat /proc/sys/kernel/random/boot_id"); second.Boot != boot {
				t.Errorf("the node was made in boot %s, want %s, after the power cut", second.Boot, boot)
			}
			m.says(m.must("journalctl -b --no-pager -o cat -u "+at.mends), "reverted")
			checkImages(m, c.n)
			m.says(m.must("nodeprep status"), "generation 1,", "at boot", "cloud-init", "done")
			if thisRun() == inMain {
				c.valid(m, user)
				return
			}
			checkPod(m, c.n)
			if thisRun() < inEvery {
				t.Log("only with -vm=every: the boot after that, which does nothing")
				return
			}
			m.reboot()
			if diff := cmp.Diff(second, c.ready(m, "done")); diff != "" {
				t.Errorf("the third boot ran again (-second +third):\n%s", diff)
			}
		})
	}
}

// How many disks of a recorded first boot are looked at: of all of it, of the time in which
// files are written at flushes, and there between flushes.
const (
	bootCuts  = 16
	writeCuts = 24
	tornCuts  = 16
)

// written is what a disk has of user-data.
type written struct {
	at        int
	instance  bool            // cloud-init has begun with it
	semaphore bool            // and noted that it writes files
	note      bool            // files are there, nodeprep noted
	enabled   bool            // systemd will start the unit
	right     map[string]bool // files that are as they should be
}

func (w written) whole(files map[string]string) bool {
	return w.enabled && len(w.right) == len(files)
}

// The power goes while cloud-init writes files: what was not flushed is lost, or any part of
// it. No disk has the note that files are there without all of them, and the next boot makes
// a node of it.
func TestCloudInitCuts(t *testing.T) {
	c := cloudOf(t, inAll)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Minute)
	t.Cleanup(cancel)
	user := c.userData(t, c.fromDisk()...)
	files := filesOf(t, user)
	disk := c.disk(t, ctx, image{})
	media := map[string]string{"seed": c.seed(t, "one", user), "media": c.media}
	record, end := filepath.Join(c.dir, "record.log"), 0
	if !t.Run("record", func(t *testing.T) {
		qm, err := c.RecordWith(ctx, t.Name(), disk, record, media)
		m := held(t, ctx, qm, err)
		m.must("for i in $(seq 1200); do [ -e /var/lib/cloud/instance/sem/nodeprep ] && break; sleep 0.5; done; test -e /var/lib/cloud/instance/sem/nodeprep; sync")
		f, err := os.Open(record)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if end, err = powercut.Position(f); err != nil {
			t.Fatal(err)
		}
	}) {
		return
	}
	log := readLog(t, record)
	seed := *cutSeed
	if seed == 0 {
		seed = rand.Uint64N(1e9) + 1
	}
	t.Logf("seed %d: the same cuts again with -vm.seed=%[1]d, as far as the machine writes the same", seed)
	random := rand.New(rand.NewPCG(seed, 0))

	// Where files are written: behind the last of some disks that cloud-init has not begun with,
	// up to the first that has the note.
	from, to := 0, end
	for _, w := range c.look(t, ctx, log, disk, files, spread(log, 0, end, bootCuts)) {
		if !w.instance {
			from = w.at
		} else if w.note {
			to = w.at
			break
		}
	}
	cuts := spread(log, from, to, writeCuts)
	// Never over a flush: a disk keeps what came before one.
	flushes := log.Boundaries(from, to)
	for range tornCuts {
		i := random.IntN(len(flushes) - 1)
		cuts = append(cuts, &cut{at: flushes[i], upTo: flushes[i+1], seed: random.Uint64() | 1})
	}
	slices.SortStableFunc(cuts, func(a, b *cut) int { return a.at - b.at })
	seen := c.look(t, ctx, log, disk, files, cuts)

	// What is booted: cloud-init's own note and least of what it tells of, and the first with
	// nodeprep's.
	torn, noted := -1, -1
	kinds := map[string]int{}
	for i, w := range seen {
		kinds[fmt.Sprintf("begun %v, writing %v, files %d of %d, enabled %v, noted %v", w.instance, w.semaphore, len(w.right), len(files), w.enabled, w.note)]++
		if w.note && !w.whole(files) {
			t.Errorf("cut at %v: the note is there, and of %d files these are right: %v (enabled: %v)", cuts[i], len(files), slices.Sorted(maps.Keys(w.right)), w.enabled)
		}
		if w.semaphore && !w.note && (torn < 0 || len(w.right) < len(seen[torn].right)) {
			torn = i
		}
		if w.note && noted < 0 {
			noted = i
		}
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		t.Logf("%d disks: %s", kinds[kind], kind)
	}
	if torn < 0 || noted < 0 {
		t.Errorf("no disk was seen that cloud-init was writing to (%d), or none with nodeprep's note (%d)", torn, noted)
	}
	for name, i := range map[string]int{"torn": torn, "noted": noted} {
		if i < 0 || t.Failed() {
			continue
		}
		t.Run(name, func(t *testing.T) {
			if name == "noted" {
				inEvery.orSkip(t) // as after any other cut: TestCloudInitPowerCut
			}
			path := filepath.Join(c.dir, name+".raw")
			c.cuts(t, ctx, log, disk, cuts[i:i+1], path, func(*cut) {})
			qm, err := c.BootWith(ctx, t.Name(), path, media)
			m := held(t, ctx, qm, err)
			r := c.ready(m, "done")
			if boot := m.must("cat /proc/sys/kernel/random/boot_id"); r.Boot != boot {
				t.Errorf("the node was made in boot %s, want %s", r.Boot, boot)
			}
			checkImages(m, c.n)
		})
	}
}

// filesOf are the digests of what user-data has written, by the files' names.
func filesOf(t *testing.T, user string) map[string]string {
	t.Helper()
	var doc struct {
		WriteFiles []struct{ Path, Content, Encoding string } `yaml:"write_files"`
	}
	if err := yaml.Unmarshal([]byte(user), &doc); err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for _, f := range doc.WriteFiles {
		if f.Encoding != "" {
			t.Fatalf("%s is packed", f.Path)
		}
		files[f.Path] = fmt.Sprintf("%x", sha256.Sum256([]byte(f.Content)))
	}
	if len(files) < 4 {
		t.Fatalf("user-data has the files %v", files)
	}
	return files
}

// spread are cuts at so many of the flushes between two positions.
func spread(log *powercut.Log, from, to, n int) (cuts []*cut) {
	at := log.Boundaries(from, to)
	n = min(n, len(at))
	for k := range n {
		cuts = append(cuts, &cut{at: at[k*(len(at)-1)/max(n-1, 1)]})
	}
	return cuts
}

// cuts makes the disk of each cut at path, in their order, and has it looked at.
func (c *cloud) cuts(t *testing.T, ctx context.Context, log *powercut.Log, disk string, cuts []*cut, path string, look func(*cut)) {
	t.Helper()
	now := filepath.Join(c.dir, "now.raw")
	if err := copySparse(ctx, disk, now); err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(now, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, m := &looker{lab: c.Lab, dir: c.dir, log: log}, powercut.NewImage(log, f)
	for _, cut := range cuts {
		if err := l.take(ctx, m, f, cut, path); err != nil {
			t.Fatal(err)
		}
		look(cut)
	}
}

// lookWritten prints what a disk has of user-data. The file system replays its journal.
const lookWritten = `
mkdir -p "$ROOT"
mount -o loop,nobarrier "$IMAGE" "$ROOT"
i="$ROOT/var/lib/cloud/instances/one"
if [ -d "$i" ]; then echo instance; fi
if [ -e "$i/sem/config_write_files" ]; then echo semaphore; fi
if [ -e "$i/sem/nodeprep" ]; then echo note; fi
if [ -L "$ROOT/etc/systemd/system/multi-user.target.wants/nodeprep-cloud-init.service" ]; then echo enabled; fi
for f in $FILES; do
	if [ -e "$ROOT$f" ]; then echo "$(sha256sum <"$ROOT$f" | cut -c1-64) $f"; fi
done
umount "$ROOT"
`

// look says what the disk of each cut has of user-data.
func (c *cloud) look(t *testing.T, ctx context.Context, log *powercut.Log, disk string, files map[string]string, cuts []*cut) (all []written) {
	t.Helper()
	path := filepath.Join(c.dir, "cut.raw")
	env := []string{"IMAGE=" + path, "ROOT=" + filepath.Join(c.dir, "look"), "FILES=" + strings.Join(slices.Sorted(maps.Keys(files)), " ")}
	c.cuts(t, ctx, log, disk, cuts, path, func(cut *cut) {
		said := hostRun(t, env, 0, "unshare", "--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", lookWritten)
		w := written{at: cut.at, right: map[string]bool{}}
		for line := range strings.Lines(said) {
			word, name, _ := strings.Cut(strings.TrimSpace(line), " ")
			switch word {
			case "instance":
				w.instance = true
			case "semaphore":
				w.semaphore = true
			case "note":
				w.note = true
			case "enabled":
				w.enabled = true
			default:
				if word == files[name] {
					w.right[name] = true
				}
			}
		}
		all = append(all, w)
	})
	return all
}

// A golden image brings the node, and user-data what this machine has beside: the image's
// first boot is finished before, and both are told of.
func TestCloudInitGolden(t *testing.T) {
	c := cloudOf(t, inAll)
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	golden := goldenDisk(t, ctx, c.Lab, c.n)
	own := c.overlay(t, "registries: {own.example.com: {mirrors: [{url: \"https://mirror.example.com\"}]}}\n")
	m := c.boot(t, c.userData(t, "--bundle-device", cloudLabel, "-f", own), image{disk: golden})
	r := c.ready(m, "done")
	if e := r.Earlier; e == nil || e.Verb != "firstboot" || e.Outcome != "done" || e.ExitCode != 0 || e.Boot != r.Boot || e.Earlier != nil {
		t.Errorf("%s: %+v, earlier %+v", resultFile, r, r.Earlier)
	}
	m.must("test ! -e /var/lib/nodeprep/firstboot -a ! -e /var/lib/nodeprep/images; test -e /etc/containerd/certs.d/own.example.com/hosts.toml")
	checkImages(m, c.n)
	checkPinned(m, c.n)
	checkPod(m, c.n)
	first, second := m.shows(firstBootUnit, "Result", "ConditionResult", "ExecMainExitTimestampMonotonic"), m.shows("nodeprep-cloud-init.service", "ExecMainStartTimestampMonotonic")
	if first["Result"] != "success" || first["ConditionResult"] != "yes" || !sooner(first["ExecMainExitTimestampMonotonic"], second["ExecMainStartTimestampMonotonic"]) {
		t.Errorf("the image's first boot was to be finished before: %v, %v", first, second)
	}
	m.says(m.must("nodeprep status"), "cloud-init")

	if thisRun() < inEvery {
		t.Log("only with -vm=every: the next boot, which does neither again")
		return
	}
	m.reboot()
	if diff := cmp.Diff(r, c.ready(m, "done")); diff != "" {
		t.Errorf("the second boot ran again (-first +second):\n%s", diff)
	}
	if got := m.shows(firstBootUnit, "ConditionResult")["ConditionResult"]; got != "no" {
		t.Errorf("%s at the second boot: ConditionResult=%s, want no", firstBootUnit, got)
	}
}

// The program and the bundle come over HTTP, by their digests: a server that says nothing, and
// files that are others, end in an error of cloud-init's within the time given.
func TestCloudInitURL(t *testing.T) {
	c := cloudOf(t, inAll)
	serve := filepath.Join(c.dir, "serve")
	if err := os.Mkdir(serve, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, from := range map[string]string{"nodeprep": c.Nodeprep(), "node.bundle": c.bundle.file} {
		if err := os.Symlink(from, filepath.Join(serve, name)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range map[string]string{
		"bad": "#!/bin/sh\ntouch /root/executed\n",
		// It starts after whoever wants something of it.
		"web.service": `[Unit]
After=network.target
[Service]
ExecStartPre=/bin/sleep 3
ExecStart=/usr/bin/python3 /srv/boot/web.py
[Install]
WantedBy=multi-user.target
`,
		"web.py": `import http.server, time
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        with open("/root/requests", "a") as f:
            f.write(self.path + "\n")
        if self.path == "/stalls":
            self.send_response(200)
            self.send_header("Content-Length", "1000000")
            self.end_headers()
            self.wfile.write(b"x" * 1000)
            time.sleep(100000)
        super().do_GET()
http.server.ThreadingHTTPServer(("127.0.0.1", 8000), lambda *a: Handler(*a, directory="/srv/boot")).serve_forever()
`,
	} {
		if err := os.WriteFile(filepath.Join(serve, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	const web = "http://127.0.0.1:8000/"
	sum := sumOf(t, c.bundle.file)
	from := func(program, bundle string, more ...string) string {
		return c.userData(t, append([]string{"--binary-url", web + program, "--binary-sha256", c.binary, "--bundle-url", web + bundle, "--bundle-sha256", sum}, more...)...)
	}
	failed := func(m *machine, words ...string) {
		t.Helper()
		m.cloudStatus("error")
		m.says(m.must("journalctl -b --no-pager -o cat -u nodeprep-cloud-init.service"), words...)
		m.must("test ! -e /usr/local/bin/containerd -a ! -e /root/executed")
	}
	// What no program was there to write down, the script does.
	unfetched := func(m *machine) {
		t.Helper()
		m.must("test ! -e /usr/local/bin/nodeprep; test $(stat -c %a " + resultFile + ") = 600")
		if r := asJSON[cloudResult](m, "cat "+resultFile); r.Verb != "cloud-init" || r.Outcome != "failed" || r.ExitCode == 0 || r.Error == "" || len(r.Digests.Profile) != 64 {
			t.Errorf("%s: %+v", resultFile, r)
		}
	}
	if thisRun() < inEvery {
		t.Log("only with -vm=every: a program and a bundle that are others")
	}
	m := c.boot(t, from("stalls", "node.bundle", "--wait", "15s"), image{serve: serve})
	failed(m, "cannot get "+web+"stalls: gave up after 15s")
	unfetched(m)

	if thisRun() == inEvery {
		c.again(m, "two", from("bad", "node.bundle"))
		failed(m, "refused "+web+"bad", "want "+c.binary, "nothing was executed")
		unfetched(m)
	}

	// What a shell and systemd make something else of, in an address that is signed.
	const signed = "?sig=a%2Fb$x&e=%25d$$"
	c.again(m, "three", from("nodeprep"+signed, "stalls", "--wait", "40s"))
	failed(m, "gave up after 40s")
	if r := asJSON[cloudResult](m, "cat "+resultFile); r.Outcome != "failed" || r.ExitCode != 1 || !strings.Contains(r.Error, "get the bundle: fetch "+web+"stalls") {
		t.Errorf("%+v", r)
	}

	if thisRun() == inEvery {
		c.again(m, "four", from("nodeprep", "bad"))
		failed(m, "sha256 mismatch", "want "+sum)
		if r := asJSON[cloudResult](m, "cat "+resultFile); r.Outcome != "failed" || !strings.Contains(r.Error, "want "+sum) {
			t.Errorf("%+v", r)
		}
	}

	// The program is there since the third.
	c.again(m, "five", from("bad", "node.bundle"+signed))
	if r := c.ready(m, "done"); r.Digests.Bundle != sum {
		t.Errorf("%+v", r)
	}
	m.says(m.must("cat /root/requests"), "/nodeprep"+signed, "/node.bundle"+signed)
	checkImages(m, c.n)
}
