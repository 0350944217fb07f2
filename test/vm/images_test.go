package vm_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// Images that a node cannot use, and disks that do not hold them, are refused or found out
// halfway; either way nothing of the run is left.
func TestImagesRefused(t *testing.T) {
	m := start(t, inAll)
	n := nodeOf("2.1.9")
	m.carry(n)
	const images = vm.StickDir + "/images/"
	bundled := "nodeprep apply --bundle " + stick + "/node.bundle"
	with := func(file string) string {
		m.give(n, "images: [{file: "+images+"pause.tar, pin: true}, {file: "+file+"}]\n")
		return n.command("apply")
	}
	before := m.tree("")
	for _, story := range []struct {
		name          string
		before, after string // scripts
		command       func() string
		says          []string
	}{
		{"an archive that is none", "", "", func() string { return with("/etc/services") }, []string{"/etc/services"}},
		{"for another platform", "", "", func() string { return with(images + "foreign.tar") }, []string{"foreign.tar", supply.ForeignImage, "linux/amd64", "s390x"}},
		{"parts are missing", "", "", func() string { return with(images + "holes.tar") }, []string{"holes.tar", supply.HolesImage, "sha256:"}},
		{"cut short", "mkdir -p /root/node && head -c 700000 " + images + "busybox.tar >/root/node/short.tar", "", func() string { return with("/root/node/short.tar") }, []string{"short.tar"}},
		{"no space to stage", "mount -t tmpfs -o size=50m tmpfs /usr/local", "umount /usr/local", func() string { return bundled }, []string{"/usr/local", "space"}},
		{"no space for images, seen before", "mkdir -p /var/lib/containerd && mount -t tmpfs -o size=2m tmpfs /var/lib/containerd",
			"umount /var/lib/containerd && rmdir /var/lib/containerd", func() string { return bundled }, []string{"/var/lib/containerd", "space"}},
		{"no space for images, seen in time", "mkdir -p /var/lib/containerd && mount -t tmpfs -o size=4m tmpfs /var/lib/containerd",
			"umount /var/lib/containerd && rmdir /var/lib/containerd", func() string { return bundled + " --skip host/space" }, []string{"/var/lib/containerd", "space"}},
		{"no space for images, met halfway", `mkdir -p /var/lib/containerd && mount -t tmpfs -o size=12m tmpfs /var/lib/containerd
mkdir -p /var/lib/containerd/io.containerd.content.v1.content/ingest
inguest fill /var/lib/containerd/io.containerd.content.v1.content/ingest >/run/fill 2>&1 & until grep -q ready /run/fill; do sleep 0.1; done`,
			"umount /var/lib/containerd && rmdir /var/lib/containerd", func() string { return bundled + " --skip host/space" }, []string{"no space left on device", "images/pause.tar"}},
	} {
		t.Run(story.name, func(t *testing.T) {
			m := &machine{Machine: m.Machine, ctx: m.ctx, t: t}
			defer m.must("rm -rf /root/node")
			if story.before != "" {
				m.must(story.before)
			}
			r := m.run(story.command())
			said := r.Stdout + r.Stderr
			t.Logf("exit %d\n%s", r.Code, said)
			if r.Code != 1 && r.Code != 2 {
				t.Errorf("exit %d, want 1 or 2", r.Code)
			}
			m.says(said, story.says...)
			absent(m)
			if story.after != "" {
				m.must(story.after)
			}
			if diff := cmp.Diff(before, m.tree("")); diff != "" {
				t.Errorf("the host is not as it was (-before +after):\n%s", diff)
			}
		})
	}
}

// Images come and go with the profile: what is there is not imported again, what somebody
// removed comes back, what the profile drops is left to the kubelet, and of archives for
// several platforms the node has its own.
func TestImages(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	for _, n := range nodes() {
		t.Run("containerd "+n.containerd.Version, func(t *testing.T) {
			s := inEvery
			if n.containerd.Version == "2.4.2" {
				s = inAll
			}
			m := start(t, s)
			dir := skopeoImages(t)
			m.plug("made", map[string]string{"docker.tar": filepath.Join(dir, "docker.tar"), "oci.tar": filepath.Join(dir, "oci.tar"),
				"docker.tar.gz": filepath.Join(dir, "docker.tar.gz"), "oci.tar.zst": filepath.Join(dir, "oci.tar.zst")})
			const pause = "{file: " + vm.StickDir + "/images/pause.tar, pin: true}"
			const multi = "{file: " + vm.StickDir + "/images/multi.tar, pin: true}"
			apply := func(images ...string) string {
				t.Helper()
				m.give(n, "images: ["+strings.Join(images, ", ")+"]\n")
				return m.exits(0, n.command("apply"))
			}
			label := func(image string) string {
				t.Helper()
				return m.must(n.ctr("images ls name==" + image))
			}
			const pinned = "io.cri-containerd.pinned=pinned"

			apply(pause, multi, "{file: "+vm.StickDir+"/images/part.tar}", "{file: /media/made/docker.tar, pin: false}", "{file: /media/made/oci.tar, pin: false}")
			m.says(label(supply.PartImage), supply.PartImage)
			for _, name := range []string{supply.PauseImage, supply.MultiImage} {
				m.says(label(name), name, pinned)
			}
			for _, name := range []string{dockerImage, ociImage} {
				m.says(label(name), name)
				if strings.Contains(label(name), pinned) {
					t.Errorf("%s is pinned", name)
				}
			}
			// The node's platform alone, and unpacked: a container of it needs nothing more.
			lab, err := labs()
			if err != nil {
				t.Fatal(err)
			}
			o := open(t, filepath.Join(lab.Images(), "multi.tar"))
			there := n.content(m)
			for _, d := range o.manifests(t, o.index.file()) {
				var parts struct {
					Config descriptor
					Layers []descriptor
				}
				o.decode(t, d.file(), &parts)
				for _, p := range append(parts.Layers, parts.Config) {
					if got, want := strings.Contains(there, p.Digest), d.Platform["architecture"] == "amd64"; got != want {
						t.Errorf("containerd has %s of %s for %s: %v, want %v", p.Digest, supply.MultiImage, d.Platform["architecture"], got, want)
					}
				}
			}
			for _, name := range []string{dockerImage, ociImage} {
				c := asJSON[container](m, n.cri("run one "+name+" sleep 100000"))
				m.must(fmt.Sprintf("test -d /proc/%d", c.PID))
				m.must(n.cri("rm one"))
			}

			// The same archives, packed: nothing of theirs is new.
			said := apply(pause, multi, "{file: /media/made/docker.tar.gz, pin: false}", "{file: /media/made/oci.tar.zst, pin: false}")
			m.says(said, "was there")
			if diff := cmp.Diff(there, n.content(m)); diff != "" {
				t.Errorf("the same images again: content (-before +after):\n%s", diff)
			}

			// Removed by hand: the next apply brings it back, with its pin.
			m.must(n.ctr("images rm --sync " + supply.MultiImage))
			m.exits(0, n.command("apply"))
			m.says(label(supply.MultiImage), supply.MultiImage, pinned)
			m.exits(0, n.command("plan"))

			// Dropped from the profile: the image stays, the pin goes.
			apply(pause)
			if got := label(supply.MultiImage); !strings.Contains(got, supply.MultiImage) || strings.Contains(got, pinned) {
				t.Errorf("an image that the profile dropped, want it there without the pin:\n%s", got)
			}
			m.says(label(ociImage), ociImage)
			m.says(label(supply.PauseImage), pinned)
			m.exits(0, "nodeprep status")
			// No longer to be pinned, and still there.
			apply(pause, multi)
			m.says(label(supply.MultiImage), pinned)
			apply(pause, strings.Replace(multi, "pin: true", "pin: false", 1))
			if got := label(supply.MultiImage); !strings.Contains(got, supply.MultiImage) || strings.Contains(got, pinned) {
				t.Errorf("an image that the profile no longer pins:\n%s", got)
			}
		})
	}
}

// content lists what containerd has, once it has thrown away what nothing refers to.
func (n node) content(m *machine) string {
	m.t.Helper()
	m.must("lease=$(" + n.ctr("leases create") + ") && " + n.ctr("leases delete --sync $lease"))
	return m.must(n.ctr("content ls -q | sort"))
}

// Names of busybox in archives that skopeo makes.
const (
	dockerImage = "docker.io/library/tool:docker"
	ociImage    = "registry.example.com/team/tool:oci"
)

// skopeoImages makes archives by skopeo, and packs them, in a folder.
func skopeoImages(t *testing.T) string {
	t.Helper()
	lab, err := labs()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := lab.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	busybox := "oci-archive:" + filepath.Join(lab.Images(), "busybox.tar")
	hostRun(t, nil, 0, "skopeo", "--insecure-policy", "copy", busybox, "docker-archive:"+filepath.Join(dir, "docker.tar")+":"+strings.TrimPrefix(dockerImage, "docker.io/library/"))
	hostRun(t, nil, 0, "skopeo", "--insecure-policy", "copy", busybox, "oci-archive:"+filepath.Join(dir, "oci.tar")+":"+ociImage)
	hostRun(t, nil, 0, "gzip", "-k", filepath.Join(dir, "docker.tar"))
	hostRun(t, nil, 0, "zstd", "-q", "-k", filepath.Join(dir, "oci.tar"))
	return dir
}

// hostRun runs a program on this machine that has to end with the code, and returns what it
// printed to its standard output.
func hostRun(t *testing.T, env []string, code int, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var out, all bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(&out, &all), &all
	err := cmd.Run()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != code {
		t.Fatalf("%s %s: exit %d, want %d\n%s", name, strings.Join(args, " "), got, code, all.String())
	}
	return out.String()
}

// cmdline is the machine's own.
func (m *machine) cmdline() string {
	m.t.Helper()
	words, err := m.Cmdline()
	if err != nil {
		m.t.Fatal(err)
	}
	return words
}
