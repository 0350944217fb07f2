package vm

import (
	"context"
	"errors"
	"os"
	"path/filepath"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// BootWith is Boot, with read-only disks that the machine finds when its kernel starts, by
// their serials. They stay over power cuts and reboots, and may be replaced in between.
func (l *Lab) BootWith(ctx context.Context, name, disk string, media map[string]string) (*Machine, error) {
	return l.boot(ctx, name, disk, "", media)
}

// RecordWith is BootWith, with every write to the machine's disk recorded in a new file from
// the first one on, as Record does.
func (l *Lab) RecordWith(ctx context.Context, name, disk, file string, media map[string]string) (*Machine, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return nil, err
	}
	if err := f.Close(); err != nil {
		return nil, err
	}
	return l.boot(ctx, name, disk, file, media)
}

// Insert replaces a disk that the machine boots with, from its next start on.
func (m *Machine) Insert(serial, image string) { m.inside[serial] = image }

// Remove takes one of these disks away, from the machine's next start on.
func (m *Machine) Remove(serial string) { delete(m.inside, serial) }

// WriteSeed writes a seed for cloud-init's NoCloud: an ISO 9660 image with the label CIDATA.
func WriteSeed(ctx context.Context, image, instance string, user []byte) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(image), ".seed-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	for name, data := range map[string][]byte{"user-data": user, "meta-data": []byte("instance-id: " + instance + "\n")} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	return supply.WriteISO(ctx, image, "CIDATA", dir)
}
