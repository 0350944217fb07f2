package supply

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestModulesForComeAfterWhatTheyNeed(t *testing.T) {
	dir := t.TempDir()
	const deps = `kernel/drivers/virtio/virtio.ko:
kernel/drivers/virtio/virtio_ring.ko: kernel/drivers/virtio/virtio.ko
kernel/drivers/virtio/virtio_pci.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/block/virtio_blk.ko: kernel/drivers/virtio/virtio_ring.ko kernel/drivers/virtio/virtio.ko
kernel/drivers/block/loop.ko:
`
	if err := os.WriteFile(filepath.Join(dir, "modules.dep"), []byte(deps), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := modulesFor(dir, "virtio_pci", "built_in", "virtio_blk")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"kernel/drivers/virtio/virtio.ko", "kernel/drivers/virtio/virtio_ring.ko",
		"kernel/drivers/virtio/virtio_pci.ko", "kernel/drivers/block/virtio_blk.ko",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestWriteCPIO(t *testing.T) {
	var b bytes.Buffer
	if err := writeCPIO(&b, []string{"bin"}, []entry{{name: "bin/x", mode: 0o755, data: []byte("hello")}}); err != nil {
		t.Fatal(err)
	}
	// A header is 110 characters; names, which end in a zero, and data fill up to four bytes.
	header := func(ino, mode, size, name string) string {
		const z = "00000000"
		return "070701" + ino + mode + z + z + "00000001" + z + size + z + z + z + z + name + z
	}
	want := header("00000001", "000041ed", "00000000", "00000004") + "bin\x00" + "\x00\x00" +
		header("00000002", "000081ed", "00000005", "00000006") + "bin/x\x00" + "hello\x00\x00\x00" +
		header("00000003", "00000000", "00000000", "0000000b") + "TRAILER!!!\x00" + "\x00\x00\x00"
	if diff := cmp.Diff(want, b.String()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

// A package that has a real /lib goes through the link that is there.
func TestUnpackIntoGoesThroughLinks(t *testing.T) {
	if _, err := exec.LookPath("dpkg-deb"); err != nil {
		t.Skip("needs dpkg-deb: install dpkg")
	}
	dir := t.TempDir()
	pkg, root := filepath.Join(dir, "pkg"), filepath.Join(dir, "root")
	write := func(path, text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(pkg, "DEBIAN/control"), "Package: x\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.com>\nDescription: x\n")
	write(filepath.Join(pkg, "lib/x/file"), "x")
	write(filepath.Join(pkg, "usr/share/doc/x/copyright"), "x")
	deb := filepath.Join(dir, "x.deb")
	if out, err := exec.CommandContext(t.Context(), "dpkg-deb", "--root-owner-group", "-b", pkg, deb).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	write(filepath.Join(root, "usr/lib/other"), "")
	if err := os.Symlink("usr/lib", filepath.Join(root, "lib")); err != nil {
		t.Fatal(err)
	}
	if err := unpackInto(t.Context(), deb, root); err != nil {
		t.Fatal(err)
	}
	if to, err := os.Readlink(filepath.Join(root, "lib")); err != nil || to != "usr/lib" {
		t.Errorf("lib is %q, %v, want the link that it was", to, err)
	}
	for name, want := range map[string]bool{"usr/lib/x/file": true, "usr/lib/other": true, "usr/share/doc": false} {
		if _, err := os.Stat(filepath.Join(root, name)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}
}

func TestAccounts(t *testing.T) {
	root := t.TempDir()
	for name, text := range map[string]string{
		"passwd.master": "root:*:0:0:root:/root:/bin/bash\nnobody:*:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"group.master":  "root:*:0:\nshadow:*:42:\n",
	} {
		path := filepath.Join(root, "usr/share/base-passwd", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir(filepath.Join(root, "etc"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := accounts(root); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"passwd":  "root:x:0:0:root:/root:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n",
		"shadow":  "root:*:19000:0:99999:7:::\nnobody:*:19000:0:99999:7:::\n",
		"group":   "root:x:0:\nshadow:x:42:\n",
		"gshadow": "root:*::\nshadow:*::\n",
	} {
		got, err := os.ReadFile(filepath.Join(root, "etc", name))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, string(got)); diff != "" {
			t.Errorf("etc/%s (-want +got):\n%s", name, diff)
		}
	}
}
