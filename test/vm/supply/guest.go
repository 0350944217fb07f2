package supply

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

//go:embed guests/*.yaml
var guestFiles embed.FS

// Guest says what a guest machine is: everything that makes one differ from another.
type Guest struct {
	Name      string   `yaml:"-"`
	Suite     string   `yaml:"suite"` // Debian's codename
	Arch      string   `yaml:"arch"`  // Go's and Debian's name, which agree where nodeprep runs
	MemoryMiB int      `yaml:"memoryMiB"`
	CPUs      int      `yaml:"cpus"`
	DiskGiB   int      `yaml:"diskGiB"` // of the root file system, sparse
	Packages  []string `yaml:"packages"`
}

// GuestNamed reads guests/NAME.yaml.
func GuestNamed(name string) (Guest, error) {
	g := Guest{Name: name}
	data, err := guestFiles.ReadFile("guests/" + name + ".yaml")
	if err != nil {
		return g, fmt.Errorf("find guest %s: %w", name, err)
	}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	dec.KnownFields(true)
	if err := dec.Decode(&g); err != nil {
		return g, fmt.Errorf("read guest %s: %w", name, err)
	}
	return g, nil
}

// Base is a guest that was never booted: files in the store, never written again.
type Base struct {
	Dir                  string
	Disk, Kernel, Initrd string
}

// guestRecipe changes when the same Guest gives another disk.
const guestRecipe = 4

// Base returns the guest's root disk, raw ext4, with its kernel and initrd beside it.
func (s *Store) Base(ctx context.Context, g Guest) (Base, error) {
	inputs := struct {
		Guest
		Recipe  int
		Foreign int `json:",omitempty"`
	}{Guest: g, Recipe: guestRecipe}
	if g.Arch != runtime.GOARCH {
		inputs.Foreign = foreignRecipe
	}
	dir, err := s.Keyed(ctx, "guests", g.Name, inputs, func(ctx context.Context, dir string) error {
		return s.makeGuest(ctx, g, dir)
	})
	return Base{
		Dir:    dir,
		Disk:   filepath.Join(dir, "disk.raw"),
		Kernel: filepath.Join(dir, "kernel"),
		Initrd: filepath.Join(dir, "initrd"),
	}, err
}

func (s *Store) makeGuest(ctx context.Context, g Guest, dir string) (err error) {
	if os.Geteuid() != 0 {
		return errors.New("not root, which debootstrap needs")
	}
	root := filepath.Join(dir, "root")
	defer func() { err = errors.Join(err, os.RemoveAll(root)) }()
	makeRoot := s.makeRoot
	if g.Arch != runtime.GOARCH {
		makeRoot = s.makeForeignRoot
	}
	if err := makeRoot(ctx, g, root); err != nil {
		return err
	}
	if err := s.makeInitrd(ctx, root); err != nil {
		return err
	}
	for from, to := range map[string]string{"vmlinuz-*": "kernel", "initrd.img-*": "initrd"} {
		found, err := filepath.Glob(filepath.Join(root, "boot", from))
		if err != nil {
			return err
		}
		if len(found) != 1 {
			return fmt.Errorf("find the guest's kernel: %d files are boot/%s", len(found), from)
		}
		if err := os.Rename(found[0], filepath.Join(dir, to)); err != nil {
			return err
		}
	}
	if err := settle(root, g); err != nil {
		return err
	}
	_, err = run(ctx, nil, "mkfs.ext4", "-q", "-L", "root", "-d", root, filepath.Join(dir, "disk.raw"), fmt.Sprintf("%dG", g.DiskGiB))
	return err
}

// makeRoot makes the root of a guest whose programs run here.
func (s *Store) makeRoot(ctx context.Context, g Guest, root string) error {
	mirror, err := s.mirror(ctx)
	if err != nil {
		return err
	}
	// No initrd of Debian's: it looks for all hardware there is, and takes a fifth of an emulated boot.
	in := func(c *exec.Cmd) { c.Env = append(os.Environ(), "INITRD=No") }
	_, err = run(ctx, in, "debootstrap", "--variant=minbase", "--keyring="+keyring,
		"--include="+strings.Join(g.Packages, ","), g.Suite, root, mirror)
	if err != nil {
		if log, rerr := os.ReadFile(filepath.Join(root, "debootstrap", "debootstrap.log")); rerr == nil {
			err = fmt.Errorf("%w\n%s", err, tail(string(log), 20))
		}
	}
	return err
}

// settle makes the root boot by itself and then do nothing of its own accord.
func settle(root string, g Guest) error {
	for _, dir := range []string{"var/cache/apt/archives", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"} {
		if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
			return err
		}
	}
	for name, text := range map[string]string{
		"etc/fstab":    "/dev/vda / ext4 defaults 0 1\n",
		"etc/hostname": g.Name + "\n",
		"etc/hosts":    "127.0.0.1 localhost " + g.Name + "\n",
		// debootstrap leaves the building machine's.
		"etc/resolv.conf": "",
	} {
		if err := os.WriteFile(filepath.Join(root, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	// A journal on the disk, so that it can be read from a failed machine's.
	if err := os.MkdirAll(filepath.Join(root, "var/log/journal"), 0o755); err != nil {
		return err
	}
	// root logs in on the console without a password: there is no way in but qemu's.
	shadow := filepath.Join(root, "etc/shadow")
	data, err := os.ReadFile(shadow)
	if err != nil {
		return err
	}
	lines := strings.Split(string(data), "\n")
	i := slices.IndexFunc(lines, func(l string) bool { return strings.HasPrefix(l, "root:") })
	if i < 0 {
		return errors.New("read etc/shadow: no root")
	}
	fields := strings.Split(lines[i], ":")
	fields[1] = ""
	lines[i] = strings.Join(fields, ":")
	if err := os.WriteFile(shadow, []byte(strings.Join(lines, "\n")), 0o640); err != nil {
		return err
	}
	// What would run by the clock would run when a snapshot is resumed a week later.
	units := filepath.Join(root, "etc/systemd/system")
	for _, unit := range []string{
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
		"fstrim.timer", "systemd-tmpfiles-clean.timer", "serial-getty@hvc0.service",
	} {
		if err := os.Symlink("/dev/null", filepath.Join(units, unit)); err != nil {
			return err
		}
	}
	// Each is run whenever systemd loads its units, for things that no guest has; together
	// they would take an emulated machine three seconds.
	generators := filepath.Join(root, "etc/systemd/system-generators")
	if err := os.MkdirAll(generators, 0o755); err != nil {
		return err
	}
	for _, name := range []string{
		"systemd-cryptsetup-generator", "systemd-debug-generator", "systemd-gpt-auto-generator", "systemd-hibernate-resume-generator",
		"systemd-integritysetup-generator", "systemd-rc-local-generator", "systemd-run-generator",
		"systemd-system-update-generator", "systemd-sysv-generator", "systemd-veritysetup-generator",
	} {
		if err := os.Symlink("/dev/null", filepath.Join(generators, name)); err != nil {
			return err
		}
	}
	return quiet(root)
}

// quiet has what a guest brings for some tests do nothing in the others.
func quiet(root string) error {
	if err := os.RemoveAll(filepath.Join(root, "etc/systemd/system/multi-user.target.wants/ssh.service")); err != nil {
		return err
	}
	cloud := filepath.Join(root, "etc/cloud")
	if _, err := os.Stat(cloud); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return os.WriteFile(filepath.Join(cloud, "cloud-init.disabled"), nil, 0o644)
}
