package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// checkLimit is what a whole nodeprep check may take on an idle host.
const checkLimit = 150 * time.Millisecond

// node is a provisioned Debian that runs beside this machine's own processes: a systemd
// and a containerd of its own on this machine's kernel, in systemd-nspawn.
type node struct {
	nspawn *exec.Cmd
	ended  chan error
	init   int // process of its systemd
}

// benchCheck times nodeprep check on a host with a real systemd and a real containerd,
// which it provisions and boots for that. It needs root.
func benchCheck(ctx context.Context, nodeprep, dir string, rounds int) (err error) {
	if os.Geteuid() != 0 {
		fmt.Println("nodeprep check: not measured: not root, which booting a host for it needs")
		return nil
	}
	store, err := supply.Open(func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) })
	if err != nil {
		return err
	}
	if err := store.Deps(ctx); err != nil {
		return err
	}
	work, err := os.MkdirTemp(dir, "nodeprep-bench-check-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	root := filepath.Join(work, "root")
	if err := makeNode(ctx, store, nodeprep, work, root); err != nil {
		return err
	}
	n, err := bootNode(ctx, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.end()) }()
	if err := n.settle(ctx); err != nil {
		return err
	}
	var audit, bare series
	for range rounds {
		for _, side := range []struct {
			into *series
			args []string
		}{
			{&audit, []string{"check", "--offline"}},
			// The part that is the program's own: it starts and ends.
			{&bare, []string{"version"}},
		} {
			syscall.Sync()
			cmd := n.command(ctx, append([]string{"/usr/local/bin/nodeprep"}, side.args...)...)
			s, err := timed(cmd)
			// What this kernel, and a host without a network, lack is found: exit 3.
			if exit, ok := errors.AsType[*exec.ExitError](err); err != nil && (!ok || exit.ExitCode() != 3) {
				return err
			}
			*side.into = append(*side.into, s)
		}
	}
	out, err := n.command(ctx, "/usr/local/bin/nodeprep", "check", "--list", "-o", "json").Output()
	if err != nil {
		return err
	}
	var list struct{ Checks []struct{} }
	if err := json.Unmarshal(out, &list); err != nil {
		return err
	}
	fmt.Printf("%-28s %10s %10s %10s %10.1f\n", "nodeprep check --offline", ms(audit.wall(0)), ms(audit.wall(0.5)), ms(audit.wall(1)), float64(audit.rss())/1024)
	fmt.Printf("check --offline, a catalogue of %d, %d rounds on a booted host: %s / %s = %.2f; wanted at most 1 (nodeprep version there: %s)\n",
		len(list.Checks), rounds, ms(audit.wall(0.5)), ms(checkLimit), audit.wall(0.5).Seconds()/checkLimit.Seconds(), ms(bare.wall(0.5)))
	return nil
}

// makeNode puts Debian into root, as the machine tests' guest has it, and has nodeprep
// make it a node.
func makeNode(ctx context.Context, store *supply.Store, nodeprep, work, root string) error {
	guest, err := supply.GuestNamed("bookworm")
	if err != nil {
		return err
	}
	base, err := store.Base(ctx, guest)
	if err != nil {
		return err
	}
	arch := runtime.GOARCH
	wanted := []supply.Release{
		{Component: "containerd", Version: "2.1.9", Arch: arch},
		{Component: "runc", Version: "1.1.5", Arch: arch},
		{Component: "cni", Version: "1.9.1", Arch: arch},
	}
	dirs, err := store.Releases(ctx, wanted)
	if err != nil {
		return err
	}
	images, err := store.Images(ctx, arch)
	if err != nil {
		return err
	}
	// mount(8) finds a loop device; the disk itself is not written to.
	disk := filepath.Join(work, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		return err
	}
	if err := output(exec.CommandContext(ctx, "mount", "-o", "loop,ro,noload", base.Disk, disk)); err != nil {
		return err
	}
	err = output(exec.CommandContext(ctx, "cp", "-a", disk, root))
	if err := errors.Join(err, output(exec.Command("umount", disk))); err != nil {
		return err
	}
	if err := copyFile(filepath.Join(root, "pause.tar"), filepath.Join(images, "pause.tar")); err != nil {
		return err
	}
	profile := "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nextends: kubernetes\ncrictl: {version: none}\n"
	args := []string{"apply", "--root", root, "--offline", "-f", filepath.Join(work, "profile.yaml")}
	for _, r := range wanted {
		sum, err := r.Sum(dirs[r.Name()])
		if err != nil {
			return err
		}
		more := ""
		if r.Component == "containerd" {
			more = "variant: dynamic, sandboxImage: " + supply.PauseImage + ", "
		}
		profile += fmt.Sprintf("%s: {version: %s, %ssha256: {%s: %q}}\n", r.Component, r.Version, more, arch, sum)
		args = append(args, "--artifacts", dirs[r.Name()])
	}
	if err := os.WriteFile(filepath.Join(work, "profile.yaml"), []byte(profile), 0o644); err != nil {
		return err
	}
	return output(exec.CommandContext(ctx, nodeprep, args...))
}

// output runs a command; what it said is part of the error.
func output(cmd *exec.Cmd) error {
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
	}
	return nil
}

// bootNode starts the host. It has no network but a loopback of its own.
func bootNode(ctx context.Context, root string) (*node, error) {
	n := &node{ended: make(chan error, 1)}
	n.nspawn = exec.Command("systemd-nspawn", "--quiet", "--boot", "--directory="+root, "--register=no", "--keep-unit", "--private-network", "--console=pipe")
	// Ended with this process, however that ends; its own then end with it.
	n.nspawn.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := n.nspawn.Start(); err != nil {
		return nil, err
	}
	go func() { n.ended <- n.nspawn.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for again := time.NewTicker(50 * time.Millisecond); ; {
		if pid := initOf(n.nspawn.Process.Pid); pid != 0 {
			n.init = pid
			return n, nil
		}
		select {
		case err := <-n.ended:
			return nil, fmt.Errorf("boot a host in systemd-nspawn: it ended: %w", err)
		case <-ctx.Done():
			return nil, errors.Join(errors.New("boot a host in systemd-nspawn: no systemd in it"), n.end())
		case <-again.C:
		}
	}
}

// initOf is the systemd among a process's children, 0 while there is none.
func initOf(nspawn int) int {
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", nspawn))
	if err != nil {
		return 0
	}
	for _, child := range strings.Fields(string(children)) {
		if name, err := os.ReadFile("/proc/" + child + "/comm"); err == nil && string(name) == "systemd\n" {
			if pid, err := strconv.Atoi(child); err == nil {
				return pid
			}
		}
	}
	return 0
}

// command runs in the host, in all of its namespaces.
func (n *node) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--target", strconv.Itoa(n.init), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--",
	}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"}
	return cmd
}

// settle waits until the host has booted and its containerd is up, and gives it the
// sandbox image.
func (n *node) settle(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	// systemd listens soon after it starts; some units cannot work in a container, so
	// that it may be degraded in the end.
	return output(n.command(ctx, "sh", "-c", `until test -S /run/systemd/private; do sleep 0.1; done
systemctl is-system-running --wait >/dev/null
systemctl is-active containerd && ctr -n k8s.io images import /pause.tar`))
}

// end stops the host, with all that runs in it.
func (n *node) end() error {
	if err := n.nspawn.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	select {
	case <-n.ended:
	case <-time.After(20 * time.Second):
		if err := n.nspawn.Process.Kill(); err != nil {
			return err
		}
		<-n.ended
	}
	return nil
}
