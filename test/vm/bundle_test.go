package vm_test

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// made is a bundle that this machine made for a node, of a profile in a folder of its own.
type made struct {
	dir  string // with profile.yaml, nodeprep.lock and ca.pem
	file string
	took time.Duration
}

// bundles are made once for all tests, by containerd's version.
var bundles struct {
	sync.Mutex
	made map[string]func() (made, error)
}

// bundleOf is the bundle of a node, made here by the nodeprep under test.
func bundleOf(t *testing.T, n node) made {
	t.Helper()
	lab, err := labs()
	if err != nil {
		t.Fatal(err)
	}
	version := n.containerd.Version
	bundles.Lock()
	if bundles.made == nil {
		bundles.made = make(map[string]func() (made, error))
	}
	if bundles.made[version] == nil {
		bundles.made[version] = sync.OnceValues(func() (made, error) { return makeBundle(t, lab, n) })
	}
	get := bundles.made[version]
	bundles.Unlock()
	b, err := get()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// joined is the node of a bundle whose sandbox image follows its Kubernetes version.
func joined() joint { return jointOf("2.1.9", "1.33", supply.PauseImage) }

// registryWithCA is a part of a profile, for a registry whose authority nobody knows.
const registryWithCA = "registries:\n  registry.example.com: {ca: ca.pem}\n"

// twoImages is a part of a profile: what a pod needs, of which the kubelet may remove one.
func twoImages(dir string) string {
	return fmt.Sprintf("images: [{file: %s/pause.tar, pin: true}, {file: %[1]s/busybox.tar, pin: false}]\n", dir)
}

// bundled is what the profile of the node's bundle has beside the node's own, with images
// from a folder.
func (n node) bundled(images string) string {
	more := registryWithCA + twoImages(images)
	if j := joined(); n == j.node {
		more += j.profile()
	}
	return more
}

// makeBundle locks the node's profile and makes a bundle of it, without a network.
func makeBundle(t *testing.T, lab *vm.Lab, n node) (made, error) {
	dir, err := lab.Scratch()
	if err != nil {
		return made{}, err
	}
	files := n.profile(t, func(r supply.Release) string { return hostSum(t, lab, r) }, n.bundled(lab.Images()))
	files["ca.pem"] = certificate(t, "authority", time.Now().AddDate(10, 0, 0)).cert
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return made{}, err
		}
	}
	b := made{dir: dir, file: filepath.Join(dir, "node.bundle")}
	began := time.Now()
	profile := append([]string{"--offline", "--arch", "amd64", "-f", filepath.Join(dir, "profile.yaml")}, hostArtifacts(lab, n)...)
	for _, args := range [][]string{{"lock"}, {"bundle", "create", b.file}} {
		if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), lab.Nodeprep(), append(args, profile...)...).CombinedOutput(); err != nil {
			return made{}, fmt.Errorf("nodeprep %s: %w\n%s", strings.Join(args, " "), err, out)
		}
	}
	b.took = time.Since(began)
	return b, nil
}

// hostArtifacts are the node's releases as options, on this machine.
func hostArtifacts(lab *vm.Lab, n node) (args []string) {
	for _, r := range n.releases() {
		args = append(args, "--artifacts", lab.ReleaseDir(r))
	}
	return args
}

func hostSum(t *testing.T, lab *vm.Lab, r supply.Release) string {
	t.Helper()
	sum, err := r.Sum(lab.ReleaseDir(r))
	if err != nil {
		t.Fatal(err)
	}
	return sum
}

// plug gives the machine a disk, /media/NAME, with files of this one.
func (m *machine) plug(name string, content map[string]string) {
	m.t.Helper()
	if err := m.Plug(m.ctx, name, content); err != nil {
		m.t.Fatal(err)
	}
}

// stick is where a machine has its bundle, and nodeprep beside it.
const stick = "/media/bundle"

// carry plugs in a disk with the node's bundle and nodeprep, as somebody would who walks in
// with them.
func (m *machine) carry(n node) made {
	m.t.Helper()
	lab, err := labs()
	if err != nil {
		m.t.Fatal(err)
	}
	b := bundleOf(m.t, n)
	m.plug("bundle", map[string]string{"node.bundle": b.file, "nodeprep": lab.Nodeprep()})
	return b
}

// traced runs a command that notes, in file, what it and its children do with networks. Go's
// runtime sends its threads signals all the time, each of which stops a traced program.
func traced(file, command string) string {
	return "env GODEBUG=asyncpreemptoff=1 strace -f --seccomp-bpf -e trace=network -e signal=none -o " + file + " " + command
}

// inet is what a trace has of networks beyond the machine's own kernel and sockets.
var inet = regexp.MustCompile(`(?m)^.*\b(AF|PF)_(INET6?|PACKET)\b.*$`)

// A machine without any network becomes a node that Kubernetes can use, by a program, one
// file and one command.
func TestBundle(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	for _, n := range nodes() {
		t.Run("containerd "+n.containerd.Version, func(t *testing.T) {
			s := inEvery
			if n.containerd.Version == "2.1.9" {
				s = inMain
			}
			m := start(t, s)
			b := m.carry(n)
			t.Logf("lock and bundle took %.1f s", b.took.Seconds())
			if got := m.must("ls /sys/class/net"); got != "lo" {
				t.Fatalf("the machine has network devices: %s", got)
			}
			// There is nothing else to take anything from.
			m.must("umount /media/releases && mount -t tmpfs tmpfs /media/stick/images")
			m.must("cp " + stick + "/nodeprep /root/nodeprep")
			const ours = "-skip /var/lib/cni"
			before := m.tree(ours)

			const apply = "/root/nodeprep apply --bundle " + stick + "/node.bundle"
			said := m.exits(0, traced("/run/trace", apply))
			if trace := m.must("cat /run/trace"); inet.MatchString(trace) || !strings.Contains(trace, "AF_UNIX") {
				t.Errorf("want sockets of the machine itself, and no others:\n%s", trace)
			}
			if n.containerd.Version == "1.6.20" {
				m.says(said, "pin", "1.6.22")
			} else if strings.Contains(said, "1.6.22") {
				t.Errorf("a warning that pinning does not work, of a containerd where it does:\n%s", said)
			}

			checkUnit(m)
			checkPlugins(m, n)
			checkImages(m, n)
			checkPinned(m, n)
			checkPod(m, n)
			checkConfig(m, n)
			if j := joined(); n == j.node {
				// And checkPod has seen which image containerd 2 makes sandboxes of.
				checkJoint(m, j)
			}
			ca, err := os.ReadFile(filepath.Join(b.dir, "ca.pem"))
			if err != nil {
				t.Fatal(err)
			}
			if got := m.must("cat /etc/containerd/certs.d/registry.example.com/*.pem /etc/containerd/certs.d/registry.example.com/*.crt 2>/dev/null || true"); got != strings.TrimSpace(string(ca)) {
				t.Errorf("the registry's authority is %q, want the profile's", got)
			}
			m.exits(0, "nodeprep status --deep")

			// Nothing to do, from wherever the same things come.
			idle := func(what, command string) {
				t.Helper()
				daemon, files := m.shows("containerd", "MainPID", "InvocationID"), m.tree("-times")
				content := n.content(m)
				m.exits(0, command)
				if diff := cmp.Diff(files, m.tree("-times")); diff != "" {
					t.Errorf("%s touched files (-before +after):\n%s", what, diff)
				}
				if diff := cmp.Diff(daemon, m.shows("containerd", "MainPID", "InvocationID")); diff != "" {
					t.Errorf("%s touched the daemon (-before +after):\n%s", what, diff)
				}
				if diff := cmp.Diff(content, n.content(m)); diff != "" {
					t.Errorf("%s touched containerd's content (-before +after):\n%s", what, diff)
				}
			}
			idle("a second apply", apply)
			if thisRun() >= inAll {
				m.exits(0, "nodeprep plan --bundle - <"+stick+"/node.bundle")
				m.must("mkdir /run/layout && tar xf " + stick + "/node.bundle -C /run/layout")
				m.exits(0, "nodeprep plan --bundle /run/layout")
				m.must("umount /media/stick/images && mount -o ro /dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_releases /media/releases")
				m.give(n, n.bundled(vm.StickDir+"/images"))
				if err := m.WriteFile(m.ctx, "/root/node/ca.pem", string(ca)); err != nil {
					t.Fatal(err)
				}
				m.exits(0, n.command("plan"))
				idle("an apply from release files", traced("/run/trace", n.command("apply")))
				if trace := m.must("cat /run/trace"); inet.MatchString(trace) {
					t.Errorf("apply --offline used a network:\n%s", trace)
				}
			} else {
				t.Log("only with -vm=all: the bundle from standard input and as a folder, and the same node from release files")
			}
			// Such a trace shows what there is.
			none := "oci://127.0.0.1:9/site/node@sha256:" + strings.Repeat("0", 64)
			m.exits(1, traced("/run/trace", "nodeprep plan --bundle "+none))
			if trace := m.must("cat /run/trace"); !inet.MatchString(trace) {
				t.Errorf("no trace of a connection to %s:\n%s", none, trace)
			}

			m.exits(0, "nodeprep uninstall")
			absent(m)
			if diff := cmp.Diff(before, m.tree(ours)); diff != "" {
				t.Errorf("the host is not as it was before the bundle (-before +after):\n%s", diff)
			}
		})
	}
}

// checkPinned wants the sandbox image kept from the kubelet, where containerd knows how to
// (https://github.com/containerd/containerd/releases/tag/v1.7.3), and the other one not.
func checkPinned(m *machine, n node) {
	m.t.Helper()
	if n.containerd.Version == "1.6.20" {
		return
	}
	for image, want := range map[string]bool{supply.PauseImage: true, supply.BusyboxImage: false} {
		got := asJSON[struct{ Pinned bool }](m, n.cri("image "+image))
		if got.Pinned != want {
			m.t.Errorf("CRI says of %s that pinned is %v, want %v", image, got.Pinned, want)
		}
	}
}

// part is one file of a bundle.
type part struct {
	name   string
	at     int64 // where its content begins in the bundle
	size   int64
	header int64 // where its header begins
	text   []byte
}

// opened is what is in a bundle.
type opened struct {
	parts    map[string]part
	index    descriptor // the bundle's own, which index.json names
	manifest descriptor
	config   descriptor
	layers   []descriptor
}

// descriptor is as much as is looked at of one,
// https://github.com/opencontainers/image-spec/blob/main/descriptor.md.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

func (d descriptor) file() string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }

// open reads a bundle for one architecture, or an OCI archive of one image.
func open(t *testing.T, file string) opened {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	o := opened{parts: make(map[string]part)}
	for archive := tar.NewReader(f); ; {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("read %s: %v", file, err)
		}
		if h.Typeflag == tar.TypeDir {
			continue
		}
		at, err := f.Seek(0, io.SeekCurrent)
		if err != nil {
			t.Fatal(err)
		}
		p := part{name: h.Name, at: at, size: h.Size, header: at - 512}
		if h.Size < 1<<20 {
			if p.text, err = io.ReadAll(archive); err != nil {
				t.Fatal(err)
			}
		}
		if _, twice := o.parts[h.Name]; twice {
			t.Errorf("%s has %s twice", file, h.Name)
		}
		o.parts[h.Name] = p
	}
	top := o.manifests(t, "index.json")
	if len(top) != 1 {
		t.Fatalf("index.json of %s has %d descriptors, want one", file, len(top))
	}
	o.index = top[0]
	all := o.manifests(t, o.index.file())
	if len(all) == 0 {
		t.Fatalf("the index of %s is empty", file)
	}
	o.manifest = all[0]
	var m struct {
		Config descriptor   `json:"config"`
		Layers []descriptor `json:"layers"`
	}
	o.decode(t, o.manifest.file(), &m)
	o.config, o.layers = m.Config, m.Layers
	return o
}

func (o opened) manifests(t *testing.T, name string) []descriptor {
	t.Helper()
	var index struct{ Manifests []descriptor }
	o.decode(t, name, &index)
	return index.Manifests
}

func (o opened) decode(t *testing.T, name string, v any) {
	t.Helper()
	if err := json.Unmarshal(o.parts[name].text, v); err != nil {
		t.Fatalf("read %s: %v", name, err)
	}
}

// layer is the one with a title that begins so.
func (o opened) layer(t *testing.T, title string) part {
	t.Helper()
	for _, l := range o.layers {
		if strings.HasPrefix(l.Annotations["org.opencontainers.image.title"], title) {
			return o.parts[l.file()]
		}
	}
	t.Fatalf("the bundle has no layer %s", title)
	return part{}
}

// with is what differs in the bundle's layout when its config and its manifest's platform are
// changed: new files, by name.
func (o opened) with(t *testing.T, change func(config, platform map[string]any)) map[string]string {
	t.Helper()
	files := make(map[string]string)
	add := func(v any) (digest string, size int) {
		text, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		d := fmt.Sprintf("%x", sha256.Sum256(text))
		files["blobs/sha256/"+d] = string(text)
		return "sha256:" + d, len(text)
	}
	var config, manifest, index, top map[string]any
	o.decode(t, o.config.file(), &config)
	o.decode(t, o.manifest.file(), &manifest)
	o.decode(t, o.index.file(), &index)
	o.decode(t, "index.json", &top)
	inManifests := func(index map[string]any) map[string]any { return index["manifests"].([]any)[0].(map[string]any) }
	change(config, inManifests(index)["platform"].(map[string]any))
	for _, step := range []struct{ what, in map[string]any }{
		{config, manifest["config"].(map[string]any)},
		{manifest, inManifests(index)},
		{index, inManifests(top)},
	} {
		step.in["digest"], step.in["size"] = add(step.what)
	}
	text, err := json.Marshal(top)
	if err != nil {
		t.Fatal(err)
	}
	files["index.json"] = string(text)
	return files
}

// A bundle that is damaged, made for something else or tampered with is refused in words
// that name what is wrong, and the host stays as it was.
func TestBundleRefused(t *testing.T) {
	m := start(t, inMain)
	n := nodeOf("2.1.9")
	b := m.carry(n)
	o := open(t, b.file)
	info, err := os.Stat(b.file)
	if err != nil {
		t.Fatal(err)
	}
	const file = "/root/node/node.bundle"
	copied := "cp " + stick + "/node.bundle " + file
	// flipped has one bit of a byte in the middle of a part changed.
	flipped := func(p part) string {
		f, err := os.Open(b.file)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		at := p.at + p.size/2
		was := make([]byte, 1)
		if _, err := f.ReadAt(was, at); err != nil {
			t.Fatal(err)
		}
		return copied + fmt.Sprintf(` && printf '\x%02x' | dd of=%s bs=1 seek=%d conv=notrunc status=none`, was[0]^1, file, at)
	}
	// changed is the bundle as a folder, with some files other than they were.
	changed := func(files map[string]string) func() string {
		return func() string {
			for name, text := range files {
				if err := m.WriteFile(m.ctx, "/root/node/changed/"+name, text); err != nil {
					t.Fatal(err)
				}
			}
			return "mkdir -p " + file + " && tar xf " + stick + "/node.bundle -C " + file + " && rm -f " + file + "/nodeprep.sums && cp -r /root/node/changed/. " + file
		}
	}
	script := func(s string) func() string { return func() string { return s } }
	own := func(lock string) func() string {
		return func() string {
			for name, text := range map[string]string{
				"own.yaml":      "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nextends: bundle\n",
				"nodeprep.lock": lock,
			} {
				if err := m.WriteFile(m.ctx, "/root/node/"+name, text); err != nil {
					t.Fatal(err)
				}
			}
			return copied
		}
	}
	lock, err := os.ReadFile(filepath.Join(b.dir, "nodeprep.lock"))
	if err != nil {
		t.Fatal(err)
	}
	sum := m.sum(n.containerd)
	other := strings.Repeat("0123456789abcdef", 4)
	line := 1 + strings.Count(string(lock[:max(0, bytes.Index(lock, []byte(sum)))]), "\n")

	before := m.tree("")
	for _, story := range []struct {
		name    string
		set     set
		prepare func() string // the script that makes the bundle
		options string
		codes   []int
		says    []string
	}{
		{"no bundle at all", inAll, script("cp /etc/passwd " + file), "", []int{2}, nil},
		{"nothing there", inAll, script("true"), "", []int{1, 2}, []string{"no such file"}},
		{"cut short", inMain, script(fmt.Sprintf("head -c %d %s/node.bundle >%s", info.Size()/2, stick, file)), "", []int{1, 2}, nil},
		{"its last parts are missing", inAll, script(fmt.Sprintf("head -c %d %s/node.bundle >%s", info.Size()-20000, stick, file)), "", []int{1, 2}, nil},
		{"cut short, from standard input", inAll, script(fmt.Sprintf("head -c %d %s/node.bundle >%s", info.Size()/2, stick, file)), "-", []int{1, 2}, nil},
		{"index.json flipped", inAll, script(flipped(o.parts["index.json"])), "", []int{2}, []string{"index.json"}},
		{"the index flipped", inAll, script(flipped(o.parts[o.index.file()])), "", []int{2}, []string{"index"}},
		{"the manifest flipped", inAll, script(flipped(o.parts[o.manifest.file()])), "", []int{2}, []string{"manifest"}},
		{"the config flipped", inAll, script(flipped(o.parts[o.config.file()])), "", []int{2}, []string{"config"}},
		{"the profile's layer flipped", inAll, script(flipped(o.layer(t, "node"))), "", []int{1, 2}, nil},
		{"containerd flipped", inMain, script(flipped(o.layer(t, "containerd"))), "", []int{1, 2}, []string{"containerd 2.1.9"}},
		{"runc flipped", inAll, script(flipped(o.layer(t, "runc"))), "", []int{1, 2}, []string{"runc 1.1.5"}},
		{"an image flipped", inAll, script(flipped(o.layer(t, "images/pause"))), "", []int{1, 2}, []string{"images/pause.tar"}},
		{"for another architecture", inAll, changed(o.with(t, func(config, platform map[string]any) {
			config["architecture"], platform["architecture"] = "arm64", "arm64"
		})), "", []int{2}, []string{"arm64", "amd64"}},
		{"made by a newer nodeprep", inAll, changed(o.with(t, func(config, _ map[string]any) {
			config["formatVersion"] = config["formatVersion"].(float64) + 1
		})), "", []int{2}, []string{"newer"}},
		{"not what the lock says", inAll, own(strings.ReplaceAll(string(lock), sum, other)), "-f /root/node/own.yaml", []int{1, 2},
			[]string{"nodeprep.lock:" + strconv.Itoa(line), sum, other}},
	} {
		t.Run(story.name, func(t *testing.T) {
			story.set.orSkip(t)
			m := &machine{Machine: m.Machine, ctx: m.ctx, t: t}
			defer m.must("rm -rf /root/node")
			m.must("mkdir -p /root/node")
			m.must(story.prepare())
			command := "nodeprep apply --bundle " + file + " " + story.options
			if story.options == "-" {
				command = "nodeprep apply --bundle - <" + file
			}
			r := m.run(command)
			said := r.Stdout + r.Stderr
			t.Logf("exit %d\n%s", r.Code, said)
			if !slices.Contains(story.codes, r.Code) {
				t.Errorf("exit %d, want one of %v", r.Code, story.codes)
			}
			m.says(said, story.says...)
			if story.options != "-" && !strings.Contains(said, "node.bundle") {
				t.Errorf("nothing said of the bundle's name in:\n%s", said)
			}
			if diff := cmp.Diff(before, m.tree("")); diff != "" {
				t.Errorf("the host is not as it was (-before +after):\n%s", diff)
			}
			absent(m)
		})
	}
}
