package vm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/test/vm/qemu"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// Machine is a running guest with the lab's media mounted, and no network card.
type Machine struct {
	qemu *qemu.Machine
	lab  *Lab
	name string
	dir  string
	// plugged are media of this machine alone: serials, and images of disks.
	plugged map[string]string
	// inside are media that it boots with.
	inside map[string]string
}

// Start resumes the saved guest with a disk of its own. Close must be called.
func (l *Lab) Start(ctx context.Context, name string) (*Machine, error) {
	dir, err := os.MkdirTemp(l.tmp, "m-")
	if err != nil {
		return nil, err
	}
	cfg := l.config(l.accel, dir)
	cfg.State = filepath.Join(l.snapshot, "state")
	if err := qemu.Overlay(ctx, cfg.Disk, filepath.Join(l.snapshot, "disk.qcow2"), "qcow2"); err != nil {
		return nil, err
	}
	q, err := qemu.Start(ctx, cfg)
	if err != nil {
		return nil, errors.Join(err, keepFile(l.store, name, filepath.Join(dir, "serial.log")))
	}
	m := &Machine{qemu: q, lab: l, name: name, dir: dir}
	if err := m.ready(ctx); err != nil {
		return nil, errors.Join(err, m.Keep(ctx), m.Close())
	}
	return m, nil
}

// config is the machine's own.
func (m *Machine) config() qemu.Config {
	cfg := m.lab.config(m.lab.accel, m.dir)
	cfg.Media = m.inside
	return cfg
}

// ready attaches the media and sets the clock, which stood still since the guest was saved.
func (m *Machine) ready(ctx context.Context) error {
	if r, err := m.Sh(ctx, fmt.Sprintf("date -u -s @%d", time.Now().Unix())); err != nil || r.Code != 0 {
		return errors.Join(fmt.Errorf("set the clock: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr), err)
	}
	media := map[string]string{"releases": m.lab.releases, "stick": m.lab.stick}
	maps.Copy(media, m.plugged)
	return m.mount(ctx, media)
}

// Plug gives the machine one more disk, with files of this machine by their names there. It is mounted read-only at /media/NAME,
// and stays over power cuts.
func (m *Machine) Plug(ctx context.Context, name string, content map[string]string) error {
	image := filepath.Join(m.dir, name+".raw")
	if err := supply.WriteMedia(ctx, image, content); err != nil {
		return err
	}
	if m.plugged == nil {
		m.plugged = make(map[string]string)
	}
	m.plugged[name] = image
	return m.mount(ctx, map[string]string{name: image})
}

// mount attaches disks and mounts them below /media.
func (m *Machine) mount(ctx context.Context, media map[string]string) error {
	for serial, image := range media {
		if err := m.qemu.AttachDisk(ctx, image, serial); err != nil {
			return err
		}
	}
	script := fmt.Sprintf(`for s in %s; do
	d=/dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_$s
	udevadm wait --settle --timeout=180 $d
	mkdir -p /media/$s
	mount -o ro $d /media/$s
done`, strings.Join(slices.Sorted(maps.Keys(media)), " "))
	r, err := m.Sh(ctx, script)
	if err != nil {
		return fmt.Errorf("mount the media: %w", err)
	}
	if r.Code != 0 {
		return fmt.Errorf("mount the media: exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	return nil
}

// Sum is the digest, in hex, of a release's file on the machine's media.
func (m *Machine) Sum(r supply.Release) (string, error) { return r.Sum(m.lab.dirs[r.Name()]) }

// Sh runs a script in the machine's shell, which ends at the first command that fails.
// The stick's programs are in the path.
func (m *Machine) Sh(ctx context.Context, script string) (qemu.Result, error) {
	return m.qemu.Exec(ctx, "", "/bin/bash", "-euo", "pipefail", "-c", "PATH="+StickDir+":$PATH\n"+script)
}

// WriteFile writes a file in the machine, with its folders.
func (m *Machine) WriteFile(ctx context.Context, path, text string) error {
	if _, err := m.qemu.Exec(ctx, "", "/bin/mkdir", "-p", filepath.Dir(path)); err != nil {
		return err
	}
	return m.qemu.WriteFile(ctx, path, []byte(text))
}

// endMark is what no program prints: the end of what a terminal shows.
const endMark = "\x1e"

// Show runs a script on the machine's terminal, with the stick's programs in the path, and copies to w what a person there would
// see, as it comes. It returns the script's exit code. Without plain, the script finds that it
// runs on a terminal, with colours and cursor movements.
func (m *Machine) Show(ctx context.Context, w io.Writer, script string, plain bool) (code int, err error) {
	conn, err := m.qemu.Terminal(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	shown := make(chan error, 1)
	go func() { shown <- copyUntil(w, conn, endMark[0]) }()
	if plain {
		script = "set -o pipefail\n{\n" + script + "\n} 2>&1 | cat"
	}
	r, err := m.qemu.Exec(ctx, script, "/bin/bash", "-c",
		`cat > /run/show && setsid --ctty --wait bash -c 'stty rows 40 cols 132; TERM=xterm PATH=/media/stick:$PATH bash /run/show; code=$?; printf '"'\\036'"'; exit $code' <>/dev/hvc0 >&0 2>&1`)
	if err != nil {
		return 0, err
	}
	return r.Code, <-shown
}

func copyUntil(w io.Writer, r io.Reader, end byte) error {
	buf := make([]byte, 4096)
	for {
		n, err := r.Read(buf)
		text, _, found := strings.Cut(string(buf[:n]), string(end))
		if _, err := io.WriteString(w, text); err != nil {
			return err
		}
		if found {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// PowerOff shuts the machine down in order.
func (m *Machine) PowerOff(ctx context.Context) error { return m.qemu.PowerOff(ctx) }

// Close ends the machine and removes its disk.
func (m *Machine) Close() error {
	m.qemu.Kill()
	return os.RemoveAll(m.dir)
}

// Keep saves what tells why a machine failed: its journal, its serial console's log and
// its disk. What it returns is an error that says where.
func (m *Machine) Keep(ctx context.Context) error {
	dir, err := m.lab.store.Failed(m.name)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 30*time.Second)
	defer cancel()
	r, jerr := m.Sh(ctx, "sync; journalctl -b --no-pager -o short-precise")
	if jerr == nil {
		jerr = os.WriteFile(filepath.Join(dir, "journal.log"), []byte(r.Stdout), 0o644)
	}
	m.qemu.Kill()
	serr := os.Rename(filepath.Join(m.dir, "serial.log"), filepath.Join(dir, "serial.log"))
	if errors.Is(serr, os.ErrNotExist) {
		serr = nil
	}
	// The disk refers to the snapshot by its absolute path, so it can be moved.
	derr := rename(filepath.Join(m.dir, "disk.qcow2"), filepath.Join(dir, "disk.qcow2"))
	return errors.Join(fmt.Errorf("kept in %s (look with: go run ./test/vm/cmd/machine console %[1]s %s)", dir, m.lab.guest.Name), jerr, serr, derr)
}

// rename moves a file, also to another file system.
func rename(from, to string) error {
	if os.Rename(from, to) == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}
