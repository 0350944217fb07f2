package vm_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm"
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
ln -s ../kubelet.service "$ROOT/etc/systemd/system/multi-user.target.wants/kubelet.service"
# No other source is asked, and the small guest has no locales.
printf 'datasource_list: [NoCloud]\nlocale: C.UTF-8\n' >"$ROOT/etc/cloud/cloud.cfg.d/99-test.cfg"
if [ -n "$SERVE" ]; then
	mkdir "$ROOT/srv/boot"
	cp "$SERVE"/* "$ROOT/srv/boot"
	mv "$ROOT/srv/boot/web.service" "$ROOT/etc/systemd/system"
	ln -s ../web.service "$ROOT/etc/systemd/system/multi-user.target.wants/web.service"
fi
umount "$ROOT"
`

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
	c := &cloud{n: nodeOf("2.1.9")}
	c.bundle = bundleOf(t, c.n)
	var err error
	if c.Lab, err = lab.Unbooted(t.Context(), "cloudinit"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	if c.dir, err = c.Scratch(); err != nil {
		t.Fatal(err)
	}
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

// boot boots a machine for its first time, with its seed. serve is a folder of what it
// serves to itself over HTTP.
func (c *cloud) boot(t *testing.T, user, serve string) *machine {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 25*time.Minute)
	t.Cleanup(cancel)
	disk, root := filepath.Join(c.dir, "disk.raw"), filepath.Join(c.dir, "root")
	if err := copySparse(ctx, c.BaseDisk(), disk); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	hostRun(t, []string{"DISK=" + disk, "ROOT=" + root, "SERVE=" + serve}, 0, "unshare", "--mount", "--propagation", "private", "bash", "-euo", "pipefail", "-c", cloudImage)
	qm, err := c.BootWith(ctx, t.Name(), disk, map[string]string{"seed": c.seed(t, "one", user), "media": c.media})
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
	Digests                            struct{ Profile, Bundle, Nodeprep string }
	Versions                           map[string]string
	Audit                              struct{ Pass, Fail int }
	Receipt, Boot                      string
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
		r.Digests.Nodeprep != c.binary || len(r.Digests.Profile) != 64 || r.Audit.Pass == 0 || r.Audit.Fail > 0 {
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
func TestCloudInit(t *testing.T) {
	c := cloudOf(t, inMain)
	user := c.userData(t, c.fromDisk()...)
	m := c.boot(t, user, "")
	first := c.ready(m, "done")
	checkImages(m, c.n)
	if err := m.WriteFile(m.ctx, "/run/user-data", user); err != nil {
		t.Fatal(err)
	}
	m.says(m.must("cloud-init schema --config-file /run/user-data"), "Valid")
	m.must("test $(stat -c %a " + resultFile + ") = 600; test -z \"$(ls -d /run/nodeprep* 2>/dev/null)\"; ! grep ' /run/nodeprep' /proc/mounts")
	m.says(m.exits(0, "nodeprep status"), "at boot", "cloud-init", "done")
	m.says(m.must("journalctl -b --no-pager -o cat -u nodeprep-cloud-init.service"), "containerd 2.1.9", "cloud-init: done in")
	t.Logf("the first boot took nodeprep %.1f s; %s", first.Seconds, m.must("systemd-analyze time | head -1"))
	if *scenarios == "main" {
		return
	}
	checkPod(m, c.n)

	// The next boot does nothing, and the kubelet still waits for that.
	m.reboot()
	again := c.ready(m, "done")
	if diff := cmp.Diff(first, again); diff != "" {
		t.Errorf("the second boot ran again (-first +second):\n%s", diff)
	}
	m.says(m.must("journalctl -b --no-pager -o cat -u nodeprep-cloud-init.service"), "nothing to do")

	// Another profile, for another instance, is applied; the unit of the old one does not come first.
	c.again(m, "two", c.userData(t, c.fromDisk("-f", c.overlay(t, "registries: {two.example.com: {mirrors: [{url: \"https://mirror.example.com\"}]}}\n"))...))
	second := c.ready(m, "done")
	if second.Digests.Profile == first.Digests.Profile || second.Boot == first.Boot {
		t.Errorf("%+v, before %+v", second, first)
	}
	m.must("test -e /etc/containerd/certs.d/two.example.com/hosts.toml")
	m.says(m.must("cat /etc/nodeprep/overlay.yaml"), "extends: bundle")

	// What is taken back stays so, once its unit is disabled.
	m.must("systemctl disable nodeprep-cloud-init.service")
	m.exits(0, "nodeprep uninstall --yes")
	m.must("test ! -e /var/lib/nodeprep")
	m.reboot()
	m.cloudStatus("done")
	m.must("test ! -e /var/lib/nodeprep -a ! -e /usr/local/bin/containerd")

	// The power went when cloud-init had written files which the disk had not: the note that
	// they are written is there, and they are empty. The next boot writes them again.
	m.must(`rm /var/lib/cloud/instance/sem/nodeprep
for f in /etc/nodeprep/overlay.yaml /etc/nodeprep/fetch-nodeprep.sh /etc/systemd/system/nodeprep-cloud-init.service; do : >$f; done
test -e /var/lib/cloud/instance/sem/config_write_files; sync`)
	m.reboot()
	c.ready(m, "done")
}

// A profile that does not fit: cloud-init's status tells it, at every boot until it is
// mended, and the host is as it was.
func TestCloudInitBroken(t *testing.T) {
	c := cloudOf(t, inAll)
	wrong := c.overlay(t, "runc: {version: 1.1.5, sha256: {amd64: "+strings.Repeat("0123456789abcdef", 4)+"}}\n")
	m := c.boot(t, c.userData(t, c.fromDisk("-f", wrong)...), "")
	for _, boot := range []string{"first", "second"} {
		if boot == "second" {
			m.reboot()
		}
		said := m.cloudStatus("error")
		m.says(said, "scripts-per-boot")
		r := asJSON[cloudResult](m, "cat "+resultFile)
		if r.Outcome != "failed" || r.ExitCode != 2 || !strings.Contains(r.Error, "0123456789abcdef") || !strings.Contains(r.Error, "runc 1.1.5") || r.Receipt != "" {
			t.Errorf("%s boot: %+v", boot, r)
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
			t.Errorf("%s boot: on the host (-want +got):\n%s", boot, diff)
		}
	}
	c.again(m, "mended", c.userData(t, c.fromDisk()...))
	c.ready(m, "done")
}

// The power goes in the middle of the first boot. The second one makes a good node of what
// is left, once, and the third does nothing.
func TestCloudInitPowerCut(t *testing.T) {
	for _, at := range []struct{ name, until string }{
		{"staging", "test -e /var/lib/nodeprep/journal.json"},
		{"activating", "grep -q '\"stage\": \"activate\"' /var/lib/nodeprep/journal.json 2>/dev/null"},
	} {
		t.Run(at.name, func(t *testing.T) {
			c := cloudOf(t, inAll)
			m := c.boot(t, c.userData(t, c.fromDisk()...), "")
			m.must("for i in $(seq 6000); do " + at.until + " && exit; sleep 0.02; done; exit 1")
			if err := m.CutPower(m.ctx); err != nil {
				t.Fatal(err)
			}
			first := c.ready(m, "done")
			checkImages(m, c.n)
			checkPod(m, c.n)
			t.Logf("after the cut: %s", m.must("journalctl -b --no-pager -o cat -u nodeprep-recover.service -u nodeprep-cloud-init.service"))
			m.says(m.must("nodeprep status"), "generation 1,")
			m.reboot()
			if diff := cmp.Diff(first, c.ready(m, "done")); diff != "" {
				t.Errorf("the third boot ran again (-second +third):\n%s", diff)
			}
		})
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
	m := c.boot(t, from("stalls", "node.bundle", "--wait", "15s"), serve)
	failed(m, "cannot get "+web+"stalls: gave up after 15s")
	m.must("test ! -e /usr/local/bin/nodeprep")

	c.again(m, "two", from("bad", "node.bundle"))
	failed(m, "refused "+web+"bad", "want "+c.binary, "nothing was executed")
	m.must("test ! -e /usr/local/bin/nodeprep -a ! -e " + resultFile)

	c.again(m, "three", from("nodeprep", "stalls", "--wait", "40s"))
	failed(m, "gave up after 40s")
	if r := asJSON[cloudResult](m, "cat "+resultFile); r.Outcome != "failed" || r.ExitCode != 1 || !strings.Contains(r.Error, "get the bundle: fetch "+web+"stalls") {
		t.Errorf("%+v", r)
	}

	c.again(m, "four", from("nodeprep", "bad"))
	failed(m, "sha256 mismatch", "want "+sum)
	if r := asJSON[cloudResult](m, "cat "+resultFile); r.Outcome != "failed" || !strings.Contains(r.Error, "want "+sum) {
		t.Errorf("%+v", r)
	}

	c.again(m, "five", from("nodeprep", "node.bundle"))
	if r := c.ready(m, "done"); r.Digests.Bundle != sum {
		t.Errorf("%+v", r)
	}
	checkImages(m, c.n)
}
