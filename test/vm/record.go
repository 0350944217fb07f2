package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"runtime"

	"github.com/nodeprep/nodeprep/test/vm/qemu"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// Nodeprep is the program that machines find on their stick.
func (l *Lab) Nodeprep() string { return l.nodeprep }

// Inguest is the machines' inguest, which this machine can run as well.
func (l *Lab) Inguest() string { return l.inguest }

// ReleaseDir is the folder, here, of a release that is on the machines' media.
func (l *Lab) ReleaseDir(r supply.Release) string { return l.dirs[r.Name()] }

// Images is the folder, here, of the image archives that are on the stick.
func (l *Lab) Images() string { return l.images }

// Registry is Debian's docker-registry, for this machine.
func (l *Lab) Registry(ctx context.Context) (string, error) {
	return l.store.Registry(ctx, runtime.GOARCH)
}

// Scratch makes a folder for files that are gone when the lab is closed.
func (l *Lab) Scratch() (string, error) { return os.MkdirTemp(l.tmp, "s-") }

// Failed makes a folder for what is left of something that failed; it is kept for days.
func (l *Lab) Failed(name string) (string, error) { return l.store.Failed(name) }

// BaseDisk is the raw disk that Record begins with. It must not be written to.
func (l *Lab) BaseDisk() string { return l.base.Disk }

// Record boots the guest for its first time, with every write to its disk recorded in a
// new file from the first one on: that and BaseDisk make the disk of any later moment.
// The saved guest would be quicker, and its disk another device: see qemu.Config.
func (l *Lab) Record(ctx context.Context, name, file string) (*Machine, error) {
	return l.RecordWith(ctx, name, l.base.Disk, file, nil)
}

// Boot boots the guest with what is on a raw disk, which stays as it is: the machine
// writes to a disk of its own.
func (l *Lab) Boot(ctx context.Context, name, disk string) (*Machine, error) {
	return l.boot(ctx, name, disk, "", nil)
}

func (l *Lab) boot(ctx context.Context, name, disk, record string, inside map[string]string) (*Machine, error) {
	dir, err := os.MkdirTemp(l.tmp, "m-")
	if err != nil {
		return nil, err
	}
	m := &Machine{lab: l, name: name, dir: dir, inside: inside}
	cfg := m.config()
	cfg.Record = record
	if err := qemu.Overlay(ctx, cfg.Disk, disk, "raw"); err != nil {
		return nil, err
	}
	q, err := qemu.Start(ctx, cfg)
	if err != nil {
		return nil, errors.Join(err, keepFile(l.store, name, filepath.Join(dir, "serial.log")))
	}
	m.qemu = q
	if err := m.ready(ctx); err != nil {
		return nil, errors.Join(err, m.Keep(ctx), m.Close())
	}
	return m, nil
}
