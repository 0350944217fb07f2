package qemu

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Config is a machine to be started.
type Config struct {
	// Root is a folder below which a QEMU lies that is to be run; empty for the installed one.
	Root      string
	Arch      string // amd64 or arm64
	Accel     string // tcg or kvm
	CPUs      int
	MemoryMiB int
	// Kernel and Initrd are booted directly, with the root file system on Disk.
	Kernel, Initrd string
	// Cmdline is the kernel's command line; empty for what the function Cmdline returns.
	Cmdline string
	// Disk is a qcow2 file, which the machine writes to.
	Disk string
	// Record is a file in which every write to Disk and every flush of it is recorded, in
	// order, as the kernel's dm-log-writes does; it must be there and empty. The disk then
	// has neither discards nor zeroing: those of concurrent requests end up in disorder in
	// the log of QEMU 7.2, whose driver it is. So a saved state of an unrecorded machine
	// does not fit.
	Record string
	// Media are raw disk images that are there from the start, read-only, by their serials:
	// the machine finds them under /dev/disk/by-id/virtio-SERIAL.
	Media map[string]string
	// State is a file that Save wrote, of a machine with the same hardware and the same
	// disk content; empty to boot.
	State string
	// Dir holds sockets (keep its path short: a socket's has at most 107 bytes) and the
	// serial console's log, serial.log.
	Dir string
}

// Machine is a running QEMU. Its methods are for one goroutine at a time.
type Machine struct {
	cfg    Config
	cmd    *exec.Cmd
	stderr bytes.Buffer
	exited chan struct{} // closed when QEMU is gone
	qmp    *qmp
	agent  agent
	disks  int
	kill   sync.Once
}

// program and hardware are what differs between archs.
func hardware(cfg Config) (program string, args []string, console string, err error) {
	accel := cfg.Accel
	if accel == "tcg" {
		accel = "tcg,thread=multi,tb-size=256"
	}
	switch cfg.Arch {
	case "amd64":
		// Emulated, the string instructions that are fast on real processors copy byte by
		// byte: with them the guest's kernel would copy at a seventh of the speed.
		cpu := "max,-erms,-fsrm"
		if cfg.Accel == "kvm" {
			cpu = "host"
		}
		return "qemu-system-x86_64", []string{"-machine", "q35", "-accel", accel, "-cpu", cpu}, "ttyS0", nil
	case "arm64":
		cpu := "cortex-a72"
		if cfg.Accel == "kvm" {
			cpu = "host"
		}
		return "qemu-system-aarch64", []string{"-machine", "virt,gic-version=3", "-accel", accel, "-cpu", cpu}, "ttyAMA0", nil
	default:
		return "", nil, "", fmt.Errorf("start qemu: no machine known for arch %q", cfg.Arch)
	}
}

// Args is QEMU's command line but for where its serial console goes: a saved state fits
// no machine with another one.
func Args(cfg Config) (program string, args []string, err error) {
	program, args, console, err := hardware(cfg)
	if err != nil {
		return "", nil, err
	}
	in := func(name string) string { return filepath.Join(cfg.Dir, name) }
	// The test throws the disk away: no flush need reach this machine's own.
	root := "driver=qcow2,node-name=root,discard=unmap,cache.no-flush=on,file.driver=file,file.cache.no-flush=on,file.filename=" + escape(cfg.Disk)
	device := "virtio-blk-pci,drive=root"
	if cfg.Record != "" {
		// A node that ignores flushes would not have them recorded: only those below do.
		root = "driver=blklogwrites,node-name=root" +
			",file.driver=qcow2,file.cache.no-flush=on,file.file.driver=file,file.file.cache.no-flush=on,file.file.filename=" + escape(cfg.Disk) +
			",log.driver=file,log.cache.no-flush=on,log.filename=" + escape(cfg.Record)
		device += ",discard=off,write-zeroes=off"
	}
	args = append(args,
		"-smp", strconv.Itoa(cfg.CPUs), "-m", strconv.Itoa(cfg.MemoryMiB),
		"-nodefaults", "-no-user-config", "-display", "none", "-nic", "none",
		"-kernel", cfg.Kernel, "-initrd", cfg.Initrd,
		"-append", cmp.Or(cfg.Cmdline, cmdline(cfg.Arch, console)),
		"-blockdev", root,
		"-device", device,
		"-device", "virtio-scsi-pci,id=scsi",
		"-device", "pcie-root-port,id="+slot+",chassis=1",
		"-device", "virtio-rng-pci",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=agent,server=on,wait=off,path="+escape(in("agent")),
		"-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0",
		"-chardev", "socket,id=terminal,server=on,wait=off,path="+escape(in("terminal")),
		"-device", "virtconsole,chardev=terminal",
		"-qmp", "unix:"+escape(in("qmp"))+",server=on,wait=off",
	)
	for i, serial := range slices.Sorted(maps.Keys(cfg.Media)) {
		node := "medium" + strconv.Itoa(i)
		args = append(args,
			"-blockdev", "driver=raw,read-only=on,node-name="+node+",file.driver=file,file.locking=off,file.filename="+escape(cfg.Media[serial]),
			"-device", "virtio-blk-pci,drive="+node+",serial="+serial)
	}
	return program, args, nil
}

// command is the command line of the QEMU that is to be run.
func command(cfg Config) (program string, args []string, err error) {
	program, args, err = Args(cfg)
	if err == nil && cfg.Root != "" {
		// What it does not have, as a network card's program, is looked for where the installed one has it.
		program = filepath.Join(cfg.Root, "usr/bin", program)
		args = append(args, "-L", filepath.Join(cfg.Root, "usr/share/qemu"), "-L", filepath.Join(cfg.Root, "usr/share/seabios"))
	}
	return program, args, err
}

// slot is where a card is plugged into a running machine.
const slot = "outlet"

// cmdline boots a machine from its disk, quietly. The timer's self-test fails, and the
// kernel gives up, where an emulated PC gets no processor for a moment; the emulated
// timer is not broken.
func cmdline(arch, console string) string {
	timer := ""
	if arch == "amd64" {
		timer = " no_timer_check"
	}
	return "root=/dev/vda rw console=" + console + " quiet" + timer + " systemd.show_status=false"
}

// Cmdline is the kernel's command line of the machine.
func Cmdline(cfg Config) (string, error) {
	_, _, console, err := hardware(cfg)
	return cmp.Or(cfg.Cmdline, cmdline(cfg.Arch, console)), err
}

// escape doubles commas, as QEMU's option syntax wants them in values.
func escape(path string) string { return strings.ReplaceAll(path, ",", ",,") }

// Start starts the machine and returns when its agent answers: a booted one has then
// started most of its services, a resumed one goes on where it was saved.
func Start(ctx context.Context, cfg Config) (*Machine, error) {
	program, args, err := command(cfg)
	if err != nil {
		return nil, err
	}
	args = append(args, "-chardev", "file,id=serial,append=on,path="+escape(filepath.Join(cfg.Dir, "serial.log")), "-serial", "chardev:serial")
	if cfg.State != "" {
		args = append(args, "-incoming", "defer")
	}
	m := &Machine{cfg: cfg, exited: make(chan struct{})}
	m.cmd = exec.Command(program, args...)
	m.cmd.Stdout, m.cmd.Stderr = &m.stderr, &m.stderr
	dieWithParent(m.cmd)
	if err := m.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start qemu: %w", err)
	}
	go func() {
		// How it ended shows in what it said, and in who asked it to.
		_ = m.cmd.Wait()
		close(m.exited)
	}()
	if err := m.begin(ctx); err != nil {
		m.Kill()
		return nil, fmt.Errorf("start machine: %w", m.explain(err))
	}
	return m, nil
}

// Console boots the machine with its serial console on this process's terminal, and
// returns when it has ended.
func Console(ctx context.Context, cfg Config) error {
	program, args, err := command(cfg)
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, program, append(args, "-serial", "mon:stdio")...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd.Run()
}

// explain adds QEMU's own last words when it is gone.
func (m *Machine) explain(err error) error {
	select {
	case <-m.exited:
		return fmt.Errorf("%w (qemu ended: %s)", err, strings.TrimSpace(m.stderr.String()))
	default:
		return err
	}
}

func (m *Machine) begin(ctx context.Context) error {
	conn, err := m.dial(ctx, "qmp")
	if err != nil {
		return err
	}
	if m.qmp, err = newQMP(ctx, conn); err != nil {
		return err
	}
	if m.cfg.State != "" {
		if err := m.resume(ctx); err != nil {
			return err
		}
	}
	m.agent.dial = func(ctx context.Context) (net.Conn, error) { return m.dial(ctx, "agent") }
	return m.agent.waitReady(ctx)
}

// resume loads the saved state and lets the machine run.
func (m *Machine) resume(ctx context.Context) error {
	if err := m.migrate(ctx, "migrate-incoming", "exec:exec cat "+quote(m.cfg.State)); err != nil {
		return fmt.Errorf("load state: %w", err)
	}
	return m.qmp.do(ctx, "cont", nil, nil)
}

// Save stops the machine, writes its memory and devices to a file, and ends it. The disk
// then holds what belongs to that state.
func (m *Machine) Save(ctx context.Context, path string) error {
	if err := m.qmp.do(ctx, "stop", nil, nil); err != nil {
		return err
	}
	// Unbounded: the default of 128 MiB a second is for networks.
	if err := m.qmp.do(ctx, "migrate-set-parameters", map[string]any{"max-bandwidth": 1 << 40}, nil); err != nil {
		return err
	}
	if err := m.migrate(ctx, "migrate", "exec:exec cat > "+quote(path)); err != nil {
		return fmt.Errorf("save state: %w", m.explain(err))
	}
	if err := m.qmp.do(ctx, "quit", nil, nil); err != nil {
		return err
	}
	return m.wait(ctx)
}

// migrate starts a migration and awaits the event that ends it.
func (m *Machine) migrate(ctx context.Context, command, uri string) error {
	events := map[string]any{"capabilities": []any{map[string]any{"capability": "events", "state": true}}}
	if err := m.qmp.do(ctx, "migrate-set-capabilities", events, nil); err != nil {
		return err
	}
	ended := m.qmp.await("MIGRATION", func(data map[string]any) bool {
		return data["status"] == "completed" || data["status"] == "failed" || data["status"] == "cancelled"
	})
	if err := m.qmp.do(ctx, command, map[string]any{"uri": uri}, nil); err != nil {
		return err
	}
	select {
	case data, ok := <-ended:
		if !ok {
			return errGone
		}
		if data["status"] != "completed" {
			return fmt.Errorf("migration %v", data["status"])
		}
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// quote is for /bin/sh.
func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

// AttachDisk gives the machine a raw disk image, read-only, which it finds under
// /dev/disk/by-id/scsi-0QEMU_QEMU_HARDDISK_SERIAL. The image may be shared.
func (m *Machine) AttachDisk(ctx context.Context, image, serial string) error {
	m.disks++
	node := "disk" + strconv.Itoa(m.disks)
	if err := m.qmp.do(ctx, "blockdev-add", map[string]any{
		"driver": "raw", "node-name": node, "read-only": true,
		"file": map[string]any{"driver": "file", "filename": image, "locking": "off"},
	}, nil); err != nil {
		return fmt.Errorf("attach %s: %w", image, err)
	}
	if err := m.qmp.do(ctx, "device_add", map[string]any{
		"driver": "scsi-hd", "id": "dev-" + node, "bus": "scsi.0", "drive": node, "serial": serial,
	}, nil); err != nil {
		return fmt.Errorf("attach %s: %w", image, err)
	}
	return nil
}

// AttachCard gives the machine a network card, on which it is to be 10.0.2.15/24: QEMU plays
// the network, 10.0.2.0/24, and its own end is .2. Nothing gets out through it, and of the
// machine its port 22 alone is reached, at an address of this one that AttachCard returns.
func (m *Machine) AttachCard(ctx context.Context) (netip.AddrPort, error) {
	if err := m.qmp.do(ctx, "netdev_add", map[string]any{
		"type": "user", "id": "net", "restrict": true, "ipv6": false,
		"hostfwd": []any{map[string]any{"str": "tcp:127.0.0.1:0-:22"}}, // whichever port is free
	}, nil); err != nil {
		return netip.AddrPort{}, fmt.Errorf("attach a network card: %w", err)
	}
	if err := m.qmp.do(ctx, "device_add", map[string]any{"driver": "virtio-net-pci", "id": "card", "bus": slot, "netdev": "net"}, nil); err != nil {
		return netip.AddrPort{}, fmt.Errorf("attach a network card: %w", err)
	}
	// QEMU tells the port in its monitor only.
	var said string
	if err := m.qmp.do(ctx, "human-monitor-command", map[string]any{"command-line": "info usernet"}, &said); err != nil {
		return netip.AddrPort{}, err
	}
	return forwarded(said)
}

// forwarded finds the one TCP port that is forwarded to a machine's 22.
func forwarded(said string) (netip.AddrPort, error) {
	for line := range strings.Lines(said) {
		f := strings.Fields(line)
		if len(f) < 6 || f[0] != "TCP[HOST_FORWARD]" || f[5] != "22" {
			continue
		}
		return netip.ParseAddrPort(f[2] + ":" + f[3])
	}
	return netip.AddrPort{}, fmt.Errorf("find the port that leads to the machine's 22: qemu says %q", said)
}

// Terminal is the machine's /dev/hvc0.
func (m *Machine) Terminal(ctx context.Context) (net.Conn, error) { return m.dial(ctx, "terminal") }

// PowerOff asks the machine to shut down, and waits until it has.
func (m *Machine) PowerOff(ctx context.Context) error {
	var err error
	if m.cfg.Arch == "arm64" {
		// Its power button is a GPIO key, which Debian's kernel for clouds has no driver for.
		err = m.agent.do(ctx, "guest-exec", map[string]any{"path": "/bin/systemctl", "arg": []string{"poweroff"}}, nil)
		if errors.Is(err, io.EOF) {
			err = nil // it went before it answered
		}
	} else {
		err = m.qmp.do(ctx, "system_powerdown", nil, nil)
	}
	if err != nil {
		return err
	}
	return m.wait(ctx)
}

func (m *Machine) wait(ctx context.Context) error {
	select {
	case <-m.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("wait for qemu to end: %w", context.Cause(ctx))
	}
}

// Kill ends QEMU at once, as if the plug were pulled, and waits until it is gone. What
// the machine had written to its disk is in the disk's file all the same.
func (m *Machine) Kill() {
	m.kill.Do(func() {
		if m.agent.conn != nil {
			m.agent.conn.Close()
		}
		// By its handle: the process is reaped by Start's goroutine alone, so the
		// number cannot be another's.
		_ = m.cmd.Process.Kill()
		<-m.exited
		if m.qmp != nil {
			m.qmp.conn.Close()
		}
	})
}

// dial connects to one of QEMU's sockets, which are there soon after it starts.
func (m *Machine) dial(ctx context.Context, name string) (net.Conn, error) {
	path := filepath.Join(m.cfg.Dir, name)
	for {
		conn, err := net.Dial("unix", path)
		if err == nil {
			return conn, nil
		}
		if errors.Is(err, os.ErrInvalid) {
			return nil, err
		}
		select {
		case <-m.exited:
			return nil, fmt.Errorf("connect to %s: qemu ended", name)
		case <-ctx.Done():
			return nil, errors.Join(err, context.Cause(ctx))
		case <-tick():
		}
	}
}
