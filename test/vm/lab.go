package vm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nodeprep/nodeprep/test/vm/qemu"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// Where a machine has the media that were handed to it, mounted read-only.
const (
	ReleasesDir = "/media/releases" // a folder a release, by supply.Release.Name
	StickDir    = "/media/stick"    // nodeprep, inguest, images/ and packages/
)

// Options of a Lab.
type Options struct {
	Guest    string // a name in supply/guests
	Nodeprep string // a built nodeprep; empty to build it
	// Releases are the releases on the machines' media; without any, the lab makes no
	// media at all and can only be a Console.
	Releases []supply.Release
	// Plain leaves off the stick what few scenarios want: Debian's own packages, and tests
	// that run inside.
	Plain bool
	Log   func(format string, args ...any)
}

// Lab has everything that machines are started from. It is safe for concurrent use.
type Lab struct {
	store    *supply.Store
	guest    supply.Guest
	base     supply.Base
	qemu     string // its folder; "" for the installed one
	accel    string
	snapshot string            // the saved machine's folder
	dirs     map[string]string // of the releases, here
	releases string            // disk image
	stick    string            // disk image
	nodeprep string            // the programs on it
	inguest  string
	images   string // folder, here
	tmp      string
	remove   func() error
	log      func(format string, args ...any)
}

// Open gets ready: the first time on a machine that means installing tools, making the
// guest and the releases, and booting the guest once. Close removes what is not cached.
func Open(ctx context.Context, o Options) (l *Lab, err error) {
	store, err := supply.Open(o.Log)
	if err != nil {
		return nil, err
	}
	l = &Lab{store: store, log: o.Log}
	if l.guest, err = supply.GuestNamed(o.Guest); err != nil {
		return nil, err
	}
	if err := store.Deps(ctx); err != nil {
		return nil, err
	}
	if l.tmp, l.remove, err = store.Scratch(); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.Close())
		}
	}()
	work, ctx := errgroup.WithContext(ctx)
	work.Go(func() error {
		var err error
		if l.base, err = store.Base(ctx, l.guest); err != nil {
			return err
		}
		if l.qemu, err = store.QEMU(ctx, l.guest.Arch); err != nil {
			return err
		}
		if err := l.chooseAccel(ctx); err != nil {
			return err
		}
		l.snapshot, err = l.save(ctx)
		return err
	})
	work.Go(func() error {
		if len(o.Releases) == 0 {
			return nil
		}
		// The stick first: a nodeprep that does not build is known at once.
		var err error
		if l.stick, err = l.makeStick(ctx, o); err != nil {
			return err
		}
		if l.dirs, err = store.Releases(ctx, o.Releases); err != nil {
			return err
		}
		l.releases, err = store.ReleaseMedia(ctx, l.dirs)
		return err
	})
	return l, work.Wait()
}

// Close removes the lab's temporary files. Its machines must have been closed before.
func (l *Lab) Close() error { return l.remove() }

// Console boots a kept machine's disk, on a disk of its own, with its serial console on
// this terminal, and returns when it is powered off.
func (l *Lab) Console(ctx context.Context, kept string) error {
	disk, err := filepath.Abs(filepath.Join(kept, "disk.qcow2"))
	if err != nil {
		return err
	}
	cfg := l.config(l.accel, l.tmp)
	if err := qemu.Overlay(ctx, cfg.Disk, disk, "qcow2"); err != nil {
		return err
	}
	return qemu.Console(ctx, cfg)
}

// makeStick makes the disk with what changes from run to run.
func (l *Lab) makeStick(ctx context.Context, o Options) (string, error) {
	root, err := supply.ModuleRoot(ctx)
	if err != nil {
		return "", err
	}
	nodeprep := o.Nodeprep
	if nodeprep == "" {
		nodeprep = filepath.Join(l.tmp, "nodeprep")
		if err := supply.GoBuild(ctx, root, "./cmd/nodeprep", nodeprep, l.guest.Arch); err != nil {
			return "", err
		}
	}
	inguest := filepath.Join(l.tmp, "inguest")
	if err := supply.GoBuild(ctx, root, "./test/vm/cmd/inguest", inguest, l.guest.Arch); err != nil {
		return "", err
	}
	l.nodeprep, l.inguest = nodeprep, inguest
	content := map[string]string{"nodeprep": nodeprep, "inguest": inguest}
	images, err := l.store.Images(ctx, l.guest.Arch)
	if err != nil {
		return "", err
	}
	l.images, content["images"] = images, images
	if !o.Plain {
		if err := l.addRare(ctx, root, content); err != nil {
			return "", err
		}
	}
	stick := filepath.Join(l.tmp, "stick.raw")
	return stick, supply.WriteMedia(ctx, stick, content)
}

// addRare makes what few scenarios want of the stick.
func (l *Lab) addRare(ctx context.Context, root string, content map[string]string) (err error) {
	// Tests that want a systemd or a containerd of their own run inside.
	for _, pkg := range []string{"systemd", "internal/daemon"} {
		name := filepath.Base(pkg) + ".test"
		content[name] = filepath.Join(l.tmp, name)
		if err := supply.GoTestBinary(ctx, root, "./"+pkg, content[name], l.guest.Arch); err != nil {
			return err
		}
	}
	if content["packages"], err = l.store.Packages(ctx, l.guest.Arch, packages()); err != nil {
		return err
	}
	// A program that is no program here.
	foreign := map[string]string{"amd64": "arm64", "arm64": "amd64"}[l.guest.Arch]
	content["pause.foreign"] = filepath.Join(l.tmp, "pause.foreign")
	if err := supply.GoBuild(ctx, root, "./test/vm/cmd/pause", content["pause.foreign"], foreign); err != nil {
		return err
	}
	return nil
}

// config is the lab's machine with its files in dir.
func (l *Lab) config(accel, dir string) qemu.Config {
	return qemu.Config{
		Root: l.qemu,
		Arch: l.guest.Arch, Accel: accel, CPUs: l.guest.CPUs, MemoryMiB: l.guest.MemoryMiB,
		Kernel: l.base.Kernel, Initrd: l.base.Initrd,
		Disk: filepath.Join(dir, "disk.qcow2"), Dir: dir,
	}
}

// probeTime is what a machine under KVM has to boot. It takes a few seconds where KVM
// works; where it is nested in something that does not quite, machines hang.
const probeTime = 20 * time.Second

// chooseAccel takes KVM if a guest boots under it here, and else emulation. The answer is
// kept until this machine reboots.
func (l *Lab) chooseAccel(ctx context.Context) error {
	version, err := qemu.Version(ctx, l.qemu, l.guest.Arch)
	if err != nil {
		return err
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return err
	}
	inputs := []string{strings.TrimSpace(string(boot)), version, l.guest.Arch, filepath.Base(l.base.Dir)}
	dir, err := l.store.Keyed(ctx, "accel", l.guest.Arch, inputs, func(ctx context.Context, dir string) error {
		accel, why := l.probe(ctx)
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		return os.WriteFile(filepath.Join(dir, "accel"), []byte(accel+"\n"+why+"\n"), 0o644)
	})
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "accel"))
	if err != nil {
		return err
	}
	accel, why, _ := strings.Cut(strings.TrimSpace(string(text)), "\n")
	l.accel = accel
	l.log("machines run under %s: %s", accel, why)
	return nil
}

func (l *Lab) probe(ctx context.Context) (accel, why string) {
	if l.guest.Arch != runtime.GOARCH {
		return "tcg", "the guest's arch is not this machine's"
	}
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return "tcg", "no KVM here: " + err.Error()
	}
	kvm.Close()
	ctx, cancel := context.WithTimeout(ctx, probeTime)
	defer cancel()
	err = func() error {
		dir, err := os.MkdirTemp(l.tmp, "probe-")
		if err != nil {
			return err
		}
		cfg := l.config("kvm", dir)
		if err := qemu.Overlay(ctx, cfg.Disk, l.base.Disk, "raw"); err != nil {
			return err
		}
		m, err := qemu.Start(ctx, cfg)
		if err != nil {
			return err
		}
		m.Kill()
		return os.RemoveAll(dir)
	}()
	if err != nil {
		text, _, _ := strings.Cut(err.Error(), "\n")
		return "tcg", fmt.Sprintf("there is a /dev/kvm, but the guest did not boot under it within %v: %s", probeTime, text)
	}
	return "kvm", "the guest booted under it"
}

// saveRecipe changes when the same guest is saved in another state.
const saveRecipe = 2

// save boots the guest once, waits until it has settled, and saves it as it is then.
func (l *Lab) save(ctx context.Context) (string, error) {
	version, err := qemu.Version(ctx, l.qemu, l.guest.Arch)
	if err != nil {
		return "", err
	}
	_, args, err := qemu.Args(l.config(l.accel, "DIR"))
	if err != nil {
		return "", err
	}
	inputs := map[string]any{"qemu": version, "args": args, "base": filepath.Base(l.base.Dir), "cpu": "", "recipe": saveRecipe}
	if l.accel == "kvm" {
		if inputs["cpu"], err = cpuModel(); err != nil {
			return "", err
		}
	}
	return l.store.Keyed(ctx, "snapshots", l.guest.Name, inputs, func(ctx context.Context, dir string) (err error) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
		defer cancel()
		// The disk and the state stay; sockets have short paths in the lab's own folder.
		tmp, err := os.MkdirTemp(l.tmp, "boot-")
		if err != nil {
			return err
		}
		cfg := l.config(l.accel, tmp)
		cfg.Disk = filepath.Join(dir, "disk.qcow2")
		// Relative, so that the cache may be moved; as deep here as where it will be.
		base := filepath.Join("..", "..", "guests", filepath.Base(l.base.Dir), filepath.Base(l.base.Disk))
		if err := qemu.Overlay(ctx, cfg.Disk, base, "raw"); err != nil {
			return err
		}
		q, err := qemu.Start(ctx, cfg)
		if err != nil {
			return errors.Join(err, keepFile(l.store, "boot", filepath.Join(tmp, "serial.log")))
		}
		defer q.Kill()
		m := &Machine{qemu: q, lab: l, name: "boot", dir: tmp}
		// sd_mod is what every machine will need first, for its media.
		r, err := m.Sh(ctx, "udevadm settle; modprobe sd_mod; systemctl is-system-running --wait || systemctl --failed --no-pager; sync")
		if err == nil && !strings.HasPrefix(r.Stdout, "running\n") {
			err = fmt.Errorf("boot the guest: it did not get to run well: %s", r.Stdout)
		}
		if err == nil {
			err = q.Save(ctx, filepath.Join(dir, "state"))
		}
		if err != nil {
			return errors.Join(err, keepFile(l.store, "boot", filepath.Join(tmp, "serial.log")))
		}
		return os.RemoveAll(tmp)
	})
}

// cpuModel names the processor: a state saved on one is not for another.
func cpuModel() (string, error) {
	text, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	return string(regexp.MustCompile(`(?m)^(model name|flags)\s*:.*`).Find(text)), nil
}

// keepFile saves a file of a machine that failed, and says where as an error.
func keepFile(store *supply.Store, name, file string) error {
	dir, err := store.Failed(name)
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	to := filepath.Join(dir, filepath.Base(file))
	if err := os.WriteFile(to, data, 0o644); err != nil {
		return err
	}
	return fmt.Errorf("kept: %s", to)
}
