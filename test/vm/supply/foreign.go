package supply

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"
)

// foreignRecipe changes when the same Guest gives another root by makeForeignRoot.
const foreignRecipe = 2

// makeForeignRoot makes the root of a guest whose programs do not run here: the packages
// are unpacked, and what their maintainer scripts would have done is done from outside.
// No emulator of single programs is needed, which would take minutes.
func (s *Store) makeForeignRoot(ctx context.Context, g Guest, root string) (err error) {
	debs, err := os.MkdirTemp(filepath.Dir(root), ".debs-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(debs)) }()
	files, err := s.closure(ctx, g, debs)
	if err != nil {
		return err
	}
	// Merged /usr, as Debian's installers make it before the first package.
	for _, dir := range []string{"bin", "sbin", "lib"} {
		if err := os.MkdirAll(filepath.Join(root, "usr", dir), 0o755); err != nil {
			return err
		}
		if err := os.Symlink("usr/"+dir, filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	work, unpacking := errgroup.WithContext(ctx)
	work.SetLimit(2)
	for _, deb := range files {
		work.Go(func() error { return unpackInto(unpacking, deb, root) })
	}
	if err := work.Wait(); err != nil {
		return err
	}
	if err := configure(root); err != nil {
		return fmt.Errorf("configure the guest: %w", err)
	}
	// Users of packages' own, by the files that systemd reads at boot.
	_, err = run(ctx, nil, "systemd-sysusers", "--root="+root)
	return err
}

// closure downloads the guest's packages and all that they need, and returns their files.
func (s *Store) closure(ctx context.Context, g Guest, dir string) ([]string, error) {
	d, done, err := s.debian(ctx, g.Arch)
	if err != nil {
		return nil, err
	}
	defer done()
	if err := os.Mkdir(filepath.Join(dir, "partial"), 0o755); err != nil {
		return nil, err
	}
	args := []string{
		"-q", "-y", "--no-install-recommends", "-o", "Dir::Cache::archives=" + dir,
		"-o", "APT::Default-Release=" + g.Suite, "--download-only", "install",
		"~E",        // all that is essential
		"usrmerge-", // the root is merged; the package's script would do it
	}
	if _, err := run(ctx, nil, "apt-get", d.options(append(args, g.Packages...)...)...); err != nil {
		return nil, err
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.deb"))
	if err == nil && len(files) == 0 {
		err = errors.New("get the guest's packages: apt-get downloaded none")
	}
	return files, err
}

// unpackInto unpacks a package over a root: through links that are directories there, such
// as a merged /lib, never in their place.
func unpackInto(ctx context.Context, deb, root string) error {
	fail := func(err error) error { return fmt.Errorf("unpack %s: %w", filepath.Base(deb), err) }
	from := exec.CommandContext(ctx, "dpkg-deb", "--fsys-tarfile", deb)
	to := exec.CommandContext(ctx, "tar", "-C", root, "-xp", "--numeric-owner", "--keep-directory-symlink",
		"--exclude=./usr/share/doc", "--exclude=./usr/share/man", "--exclude=./usr/share/locale", "-f", "-")
	var packed, unpacked bytes.Buffer // each has a goroutine of its own that writes
	from.Stderr, to.Stderr = &packed, &unpacked
	pipe, err := from.StdoutPipe()
	if err != nil {
		return fail(err)
	}
	to.Stdin = pipe
	if err := from.Start(); err != nil {
		return fail(err)
	}
	err = to.Run()
	_, cerr := io.Copy(io.Discard, pipe) // dpkg-deb fails on a closed pipe
	if err := errors.Join(err, cerr, from.Wait()); err != nil {
		return fail(fmt.Errorf("%w\n%s%s", err, tail(packed.String(), 5), tail(unpacked.String(), 5)))
	}
	return nil
}

// configure does what the scripts of Debian's packages do when these are installed.
func configure(root string) error {
	in := func(name string) string { return filepath.Join(root, name) }
	for _, dir := range []string{"media", "mnt", "opt", "srv", "usr/local/bin", "usr/local/sbin", "usr/local/lib", "var/lib/misc"} {
		if err := os.MkdirAll(in(dir), 0o755); err != nil {
			return err
		}
	}
	for to, from := range map[string]string{"etc/profile": "profile", "root/.profile": "dot.profile", "root/.bashrc": "dot.bashrc"} {
		if err := copyFile(in(to), in("usr/share/base-files/"+from), 0o644); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/nsswitch.conf": "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nprotocols: files\nservices: files\n",
		// Who may log in on the console, where nothing but passwords counts.
		"etc/pam.d/common-account":                "account required pam_unix.so\n",
		"etc/pam.d/common-auth":                   "auth required pam_unix.so nullok\n",
		"etc/pam.d/common-password":               "password required pam_unix.so\n",
		"etc/pam.d/common-session":                "session required pam_unix.so\n",
		"etc/pam.d/common-session-noninteractive": "session required pam_unix.so\n",
		"etc/machine-id":                          "", // the first boot's
		"etc/environment":                         "",
		"etc/motd":                                "",
		"etc/shells":                              "/bin/sh\n/bin/bash\n",
		"var/lib/dpkg/status":                     "",
	} {
		if err := os.WriteFile(in(name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	links := map[string]string{
		"etc/mtab":               "../proc/self/mounts",
		"etc/alternatives/awk":   "/usr/bin/mawk",
		"usr/bin/awk":            "/etc/alternatives/awk",
		"etc/alternatives/which": "/usr/bin/which.debianutils",
		"usr/bin/which":          "/etc/alternatives/which",
		"var/run":                "/run",
		"var/lock":               "/run/lock",
		"etc/systemd/system/getty.target.wants/getty@tty1.service":       "/lib/systemd/system/getty@.service",
		"etc/systemd/system/multi-user.target.wants/remote-fs.target":    "/lib/systemd/system/remote-fs.target",
		"etc/systemd/system/sysinit.target.wants/systemd-pstore.service": "/lib/systemd/system/systemd-pstore.service",
	}
	for _, tool := range []string{"iptables", "ip6tables"} {
		for _, verb := range []string{"", "-save", "-restore"} {
			links["etc/alternatives/"+tool+verb] = "/usr/sbin/" + tool + "-nft" + verb
			links["usr/sbin/"+tool+verb] = "/etc/alternatives/" + tool + verb
		}
	}
	for name, to := range links {
		if err := os.MkdirAll(filepath.Dir(in(name)), 0o755); err != nil {
			return err
		}
		// base-files has empty folders where its script makes links.
		if err := os.Remove(in(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		if err := os.Symlink(to, in(name)); err != nil {
			return err
		}
	}
	return accounts(root)
}

// accounts writes the users and groups that every Debian has: base-passwd's masters, with shadow passwords.
func accounts(root string) error {
	in := func(name string) string { return filepath.Join(root, name) }
	for file, shadowed := range map[string]string{"passwd": "shadow", "group": "gshadow"} {
		text, err := os.ReadFile(in("usr/share/base-passwd/" + file + ".master"))
		if err != nil {
			return err
		}
		var open, secret strings.Builder
		for line := range strings.Lines(string(text)) {
			f := strings.Split(line, ":")
			if len(f) < 4 {
				return fmt.Errorf("read base-passwd's %s.master: %q", file, line)
			}
			f[1] = "x"
			open.WriteString(strings.Join(f, ":"))
			if file == "passwd" {
				secret.WriteString(f[0] + ":*:19000:0:99999:7:::\n")
			} else {
				secret.WriteString(f[0] + ":*::\n")
			}
		}
		if err := os.WriteFile(in("etc/"+file), []byte(open.String()), 0o644); err != nil {
			return err
		}
		if err := os.WriteFile(in("etc/"+shadowed), []byte(secret.String()), 0o640); err != nil {
			return err
		}
	}
	return nil
}

// initScript is the initrd's only program: it loads what the disk needs and goes on from there.
const initScript = `#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do
	/bin/busybox insmod /modules/$module
done
until [ -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /root
/bin/busybox umount /dev
exec /bin/busybox switch_root /root /sbin/init
`

// makeInitrd indexes the modules of the root's kernel, and makes boot/initrd.img-VERSION: an
// initrd for QEMU's disk, on which the root file system is the whole of /dev/vda.
func (s *Store) makeInitrd(ctx context.Context, root string) error {
	versions, err := filepath.Glob(filepath.Join(root, "usr/lib/modules/*"))
	if err != nil {
		return err
	}
	if len(versions) != 1 {
		return fmt.Errorf("find the guest's kernel: it has modules of %d", len(versions))
	}
	version := filepath.Base(versions[0])
	if _, err := run(ctx, nil, "depmod", "-b", root, version); err != nil {
		return err
	}
	modules, err := modulesFor(versions[0], "virtio_pci", "virtio_blk")
	if err != nil {
		return err
	}
	busybox, err := os.ReadFile(filepath.Join(root, "bin/busybox"))
	if err != nil {
		return err
	}
	files := []entry{
		{name: "bin/busybox", mode: 0o755, data: busybox},
		{name: "init", mode: 0o755, data: []byte(initScript)},
	}
	var order strings.Builder
	for _, m := range modules {
		data, err := os.ReadFile(filepath.Join(versions[0], m))
		if err != nil {
			return err
		}
		files = append(files, entry{name: "modules/" + filepath.Base(m), mode: 0o644, data: data})
		order.WriteString(filepath.Base(m) + "\n")
	}
	files = append(files, entry{name: "modules/order", mode: 0o644, data: []byte(order.String())})
	f, err := os.Create(filepath.Join(root, "boot", "initrd.img-"+version))
	if err != nil {
		return err
	}
	return errors.Join(writeCPIO(f, []string{"bin", "dev", "modules", "root"}, files), f.Close())
}

// modulesFor are the files of modules and of those that they need, in the order in which they can be
// loaded, by the modules.dep of the folder. Modules that it does not have are built into the kernel.
func modulesFor(dir string, names ...string) ([]string, error) {
	text, err := os.ReadFile(filepath.Join(dir, "modules.dep"))
	if err != nil {
		return nil, err
	}
	var order []string
	for _, name := range names {
		for line := range strings.Lines(string(text)) {
			file, needs, _ := strings.Cut(strings.TrimSpace(line), ":")
			if filepath.Base(file) != name+".ko" {
				continue
			}
			// modules.dep(5): what is loaded last comes first.
			all := strings.Fields(needs)
			slices.Reverse(all)
			for _, m := range append(all, file) {
				if !slices.Contains(order, m) {
					order = append(order, m)
				}
			}
		}
	}
	return order, nil
}

// writeCPIO writes an initramfs, uncompressed: see the kernel's
// Documentation/driver-api/early-userspace/buffer-format.rst.
func writeCPIO(w io.Writer, dirs []string, files []entry) error {
	out := bufio.NewWriter(w)
	ino := 0
	add := func(name string, mode int64, data []byte) {
		ino++
		header := fmt.Sprintf("070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x", ino, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		pad := func(n int) { out.Write(make([]byte, (4-n%4)%4)) }
		out.WriteString(header + name + "\x00")
		pad(len(header) + len(name) + 1)
		out.Write(data)
		pad(len(data))
	}
	const dir, regular = 0o040000, 0o100000
	for _, d := range dirs {
		add(d, dir|0o755, nil)
	}
	for _, f := range files {
		add(f.name, regular|f.mode, f.data)
	}
	add("TRAILER!!!", 0, nil)
	return out.Flush() // the first fault of all writes
}
