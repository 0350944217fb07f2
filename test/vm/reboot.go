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
	q, err := qemu.Start(ctx, m.config())
	if err != nil {
		return errors.Join(err, keepFile(m.lab.store, m.name, filepath.Join(m.dir, "serial.log")))
	}
	m.qemu = q
	return m.ready(ctx)
}

// Cmdline is the kernel's command line with which machines boot.
func (m *Machine) Cmdline() (string, error) { return qemu.Cmdline(m.config()) }

// Reboot shuts the machine down in order and boots it with a kernel command line: the
// machine has no boot loader that would read one from its disk.
func (m *Machine) Reboot(ctx context.Context, cmdline string) error {
	if err := m.PowerOff(ctx); err != nil {
		return err
	}
	cfg := m.config()
	cfg.Cmdline = cmdline
	q, err := qemu.Start(ctx, cfg)
	if err != nil {
		return errors.Join(err, keepFile(m.lab.store, m.name, filepath.Join(m.dir, "serial.log")))
	}
	m.qemu = q
	return m.ready(ctx)
}
