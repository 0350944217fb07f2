package vm

import (
	"context"
	"errors"
	"path/filepath"

	"github.com/nodeprep/nodeprep/test/vm/qemu"
)

// CutPower pulls the machine's plug and boots it again with what is on its own disk: all
// that was flushed, and of the rest whatever had arrived.
func (m *Machine) CutPower(ctx context.Context) error {
	m.qemu.Kill()
	q, err := qemu.Start(ctx, m.lab.config(m.lab.accel, m.dir))
	if err != nil {
		return errors.Join(err, keepFile(m.lab.store, m.name, filepath.Join(m.dir, "serial.log")))
	}
	m.qemu = q
	return m.ready(ctx)
}
