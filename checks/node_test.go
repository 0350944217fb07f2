package checks

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// files are a fake host's, by absolute path. A content that starts with "-> " makes a
// symbolic link; a path that ends with / makes a directory.
type files map[string]string

// write makes the files below dir.
func (f files) write(t *testing.T, dir string) {
	t.Helper()
	for p, content := range f {
		real := filepath.Join(dir, p)
		var err error
		switch target, isLink := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(p, "/"):
			err = os.MkdirAll(real, 0o755)
		case isLink:
			err = errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.Symlink(target, real))
		default:
			err = errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, []byte(content), 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// overwrite makes plain files below dir, for those that change a fake.
func (f files) overwrite(dir string) {
	for p, content := range f {
		real := filepath.Join(dir, p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, []byte(content), 0o755)); err != nil {
			panic(err)
		}
	}
}

// fake is a live host that has these files and nothing else: no systemd, no daemon, no
// network, no programs that could be run. change gives it more.
func fake(t *testing.T, f files, change ...func(*Outside)) *Node {
	t.Helper()
	dir := t.TempDir()
	f.write(t, dir)
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := host.New(root)
	h.UID = 0
	h.Run = func(_ context.Context, cmd host.Cmd) (host.Output, error) {
		return host.Output{}, &host.ExitError{Cmd: cmd, Code: 127, Stderr: "no such program in this fake"}
	}
	o := Outside{Host: h, Live: true, Env: func(string) (string, bool) { return "", false }}
	for _, c := range change {
		c(&o)
	}
	return NewNode(t.Context(), o)
}

// prints answers commands, as typed, with what they print.
func prints(answers map[string]string) func(*Outside) {
	return func(o *Outside) {
		o.Host.Run = func(_ context.Context, cmd host.Cmd) (host.Output, error) {
			out, ok := answers[cmd.String()]
			if !ok {
				return host.Output{}, &host.ExitError{Cmd: cmd, Code: 127, Stderr: "no such program in this fake"}
			}
			return host.Output{Stdout: []byte(out)}, nil
		}
	}
}

// withSpec is a node with a profile.
func withSpec(s profiles.Spec) func(*Outside) {
	return func(o *Outside) { o.Spec = &s }
}

// units is a systemd that has these.
type units map[string]systemd.Properties

func (u units) Properties(_ context.Context, name string) (systemd.Properties, error) {
	return u[name], nil
}

// withUnits gives the host a systemd.
func withUnits(u units) func(*Outside) {
	return func(o *Outside) {
		o.Facts.SystemdInit = true
		o.Units = func(context.Context) (Units, error) { return u, nil }
	}
}

// containerd is a daemon that answers so.
type containerd struct {
	version string
	plugins []daemon.Plugin
	tasks   []daemon.Task
	images  map[string][]daemon.Image // by namespace
	// states are by namespace, too; without them all images are complete.
	states       map[string][]daemon.ImageState
	deprecations []daemon.Deprecation
	err          error // of every call
}

func (c *containerd) Version(context.Context) (string, error)          { return c.version, c.err }
func (c *containerd) Plugins(context.Context) ([]daemon.Plugin, error) { return c.plugins, c.err }
func (c *containerd) Tasks(context.Context) ([]daemon.Task, error)     { return c.tasks, c.err }
func (c *containerd) Images(_ context.Context, ns string) ([]daemon.Image, error) {
	return c.images[ns], c.err
}
func (c *containerd) Namespaces(context.Context) ([]string, error) {
	return slices.Sorted(maps.Keys(c.images)), c.err
}
func (c *containerd) Deprecations(context.Context) ([]daemon.Deprecation, error) {
	return c.deprecations, c.err
}
func (c *containerd) ImageStates(_ context.Context, ns, _, _ string, names ...string) ([]daemon.ImageState, error) {
	all := c.states[ns]
	if all == nil {
		for _, i := range c.images[ns] {
			all = append(all, daemon.ImageState{Image: i, Complete: true})
		}
	}
	if len(names) == 0 {
		return all, c.err
	}
	var out []daemon.ImageState
	for _, s := range all {
		if slices.Contains(names, s.Name) {
			out = append(out, s)
		}
	}
	return out, c.err
}

// withDaemon gives the host a daemon at any socket, or none where c is nil.
func withDaemon(c *containerd) func(*Outside) {
	return func(o *Outside) {
		o.Daemon = func(context.Context, string) (Containerd, error) {
			if c == nil {
				return nil, errors.New("nobody listens")
			}
			return c, nil
		}
	}
}

// online lets the host use the real network: tests have servers of their own on loopback.
func online(o *Outside) { o.Dial = new(net.Dialer).DialContext }

// results runs the check with that ID, without what it needs.
func results(t *testing.T, n *Node, id string) []Result {
	t.Helper()
	for _, c := range Catalogue() {
		if c.ID == id {
			got := c.Run(t.Context(), n)
			insideRoot(t, n, c, got)
			return got
		}
	}
	t.Fatalf("no check is called %s", id)
	return nil
}

// insideRoot fails a test where a remedy for an image would change the host on which it is
// pasted. Checks that are not asked of images are not looked at.
func insideRoot(t *testing.T, n *Node, c Check, got []Result) {
	t.Helper()
	if n.Live || !ofImages(c) {
		return
	}
	for _, r := range got {
		for line := range strings.Lines(r.Remedy) {
			if what := outside(strings.TrimSpace(line), n.Host.Root.Dir()); what != "" {
				t.Errorf("%s: the remedy for an image says %q, which acts on the host itself: %s", c.ID, strings.TrimSpace(line), what)
			}
		}
	}
}

// ofImages says whether a check is asked of images.
func ofImages(c Check) bool {
	return !slices.ContainsFunc(c.Needs, func(need string) bool {
		return slices.Contains([]string{NeedLive, NeedSystemd, NeedProcess, NeedNetwork, daemonAnswers}, need)
	})
}

// outside is what in a shell line acts on the host that runs it, and not on root.
func outside(line, root string) string {
	if strings.HasPrefix(line, "#") || strings.HasPrefix(line, "chroot "+quote(root)+" ") {
		return ""
	}
	for command := range strings.SplitSeq(strings.ReplaceAll(line, "&&", ";"), ";") {
		switch f := strings.Fields(command); {
		case len(f) == 0:
		case f[0] == "systemctl" && len(f) > 1 && f[1] == "--root="+quote(root):
		case slices.Contains([]string{
			"systemctl", "apt-get", "apt-mark", "dnf", "yum", "zypper", "rpm", "sysctl", "modprobe", "snap", "ctr", "reboot", "update-grub", "restorecon", "systemd-machine-id-setup", "swapoff", "umount", "mount",
		}, f[0]):
			return f[0]
		}
	}
	return regexp.MustCompile(`[ >](/etc|/usr|/var|/run|/opt|/boot|/lib|/proc|/sys|/snap)\b`).FindString(line)
}

// Of an image in which much is wrong, nothing that is said to be done touches this host.
func TestRemediesForImagesStayInThem(t *testing.T) {
	const dir, cni = "/etc/containerd/certs.d/", "/etc/cni/net.d/"
	image := files{
		"/usr/lib/systemd/system/containerd.service": "[Service]\nExecStart=/usr/local/bin/containerd\nKillMode=control-group\nType=simple\n", "/etc/systemd/system/containerd.service": "-> /dev/null",
		"/usr/local/bin/containerd": static(), "/usr/bin/containerd": static(), "/usr/local/sbin/runc": "x", "/usr/bin/runc": static(), "/usr/bin/apt-get": "", "/usr/bin/dpkg": "",
		"/usr/bin/dockerd": "", "/usr/bin/crio": "", "/usr/local/bin/k3s": "", "/snap/bin/docker": "", "/usr/bin/podman": "", "/usr/bin/crictl": "",
		"/var/lib/dpkg/status": "Package: containerd\nStatus: install ok installed\nVersion: 1.7.24\n\n", "/var/lib/dpkg/info/containerd.list": "/usr/bin/containerd\n",
		cni + "00-old.conflist": "{", cni + "87-podman.conflist": `{"name":"podman","plugins":[{"type":"bridge"}]}`,
		"/etc/machine-id": "0123456789abcdef0123456789abcdef\n", "/etc/hostname": "Bad_Name\n", "/etc/hosts": "10.0.0.1 localhost\n", "/etc/crictl.yaml": "runtime-endpoint: unix:///run/crio/crio.sock\nx: y\n",
		"/var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\ncgroupDriver: cgroupfs\ncontainerRuntimeEndpoint: unix:///run/x.sock\n", "/var/lib/kubelet/kubeadm-flags.env": "X=\"--pod-infra-container-image=a/pause:1\"\n",
		"/etc/sudoers": "Defaults secure_path=/bin\n", "/etc/environment": "PATH=/bin\n", "/etc/login.defs": "ENV_SUPATH PATH=/bin\n",
		"/etc/sysctl.d/99-cis.conf": "net.ipv4.ip_forward = 0\nnet.bridge.bridge-nf-call-iptables = 1\n", "/etc/modprobe.d/cis.conf": "install overlay /bin/true\n", "/etc/default/grub": "GRUB_CMDLINE_LINUX=\"cgroup_disable=memory\"\n",
		"/lib/modules/6.1.0/modules.dep": "", "/etc/fstab": "/dev/sda3 none swap sw 0 0\n",
		dir + "docker.io/hosts.toml": "[host.\"https://m.example\"]\ncapabilities = [\"pul\"]\nca = \"gone.pem\"\nclient = [\"a\", \"\"]\n", dir + "r.example:5000/hosts.toml": "insecure = true\n[\"https://x.example/\"]\n",
		dir + "r.example_5000/x.crt": "no", dir + "quay.io/mirror.toml": "", dir + "index.docker.io/hosts.toml": "server = \"x\"\n",
	}
	configs := map[string]string{
		"": "", "2 in 3": "version = 3\nimports = [\"/nowhere/*.toml\"]\noom_score = -500\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\nsnapshoter = \"x\"\n[metrics]\naddress = \"0.0.0.0:1\"\n",
		"disabled": "version = 2\nroot = \"/data\"\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n", "broken": "version = [\n",
		"old": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsystemd_cgroup = true\nsandbox_image = \"a/pause:1\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\nconfig_path = \"certs.d\"\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://m.example\"]\n",
	}
	spec := dynamic()
	spec.Arch, spec.Kubernetes, spec.Modules, spec.Sysctl = "amd64", "1.36", []string{"overlay", "br_netfilter"}, map[string]string{ipForward: "1"}
	for name, config := range configs {
		for _, profile := range []func(*Outside){func(*Outside) {}, withSpec(spec), func(o *Outside) { receipt(Drift{"/usr/local/sbin/runc", "changed"})(o); withSpec(spec)(o) }} {
			f := maps.Clone(image)
			if config != "" {
				f[defaultConfig] = config
			}
			n := fake(t, f, amd64, booted, asImage, profile)
			n.Outside.Facts.Systemd = 252
			seen := 0
			for _, c := range Catalogue() {
				if slices.ContainsFunc(c.Needs, func(need string) bool {
					return slices.Contains([]string{NeedProfile, NeedReceipt}, need) && n.lacks(t.Context(), need) != nil
				}) || !ofImages(c) {
					continue
				}
				for _, r := range results(t, n, c.ID) {
					if r.Remedy != "" {
						seen++
					}
				}
			}
			if seen < 20 {
				t.Errorf("%s: only %d remedies were looked at", name, seen)
			}
		}
	}
}

func TestOutside(t *testing.T) {
	for line, want := range map[string]string{
		"# mv /etc/a /etc/b": "", "chroot /img apt-get update": "", "apt-get update": "apt-get", "rm /img/etc/a": "", "rm /etc/a": " /etc", "echo a >/etc/b": ">/etc",
		"systemctl --root=/img disable a": "", "systemctl disable a": "systemctl", "true && modprobe a": "modprobe", "sed -i 's/usr/lib/' /img/a": "",
	} {
		if got := outside(line, "/img"); got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}

// want is what a result must be; texts are parts of what must be there, "" anything.
type want struct {
	verdict                                 Verdict
	object, observed, wanted, place, remedy string
}

// expect runs a check and holds its results against what is wanted of them.
func expect(t *testing.T, n *Node, id string, wants ...want) {
	t.Helper()
	got := results(t, n, id)
	if len(got) != len(wants) {
		t.Fatalf("%s: %d results, want %d: %+v", id, len(got), len(wants), got)
	}
	for i, w := range wants {
		g := got[i]
		if g.Observed == "" {
			t.Errorf("%s: nothing is observed: %+v", id, g)
		}
		for _, part := range []struct{ what, got, want string }{
			{"object", g.Object, w.object}, {"observed", g.Observed, w.observed}, {"wanted", g.Wanted, w.wanted},
			{"place", g.Place, w.place}, {"remedy", g.Remedy, w.remedy},
		} {
			// insideRoot sees to it that paths of an image begin with its root.
			if !strings.Contains(part.got, part.want) && (n.Live || !strings.Contains(strings.ReplaceAll(part.got, n.Host.Root.Dir(), ""), part.want)) {
				t.Errorf("%s: %s is %q, want %q in it: %+v", id, part.what, part.got, part.want, g)
			}
		}
		if g.Verdict != w.verdict {
			t.Errorf("%s: %s, want %s: %+v", id, g.Verdict, w.verdict, g)
		}
	}
}
