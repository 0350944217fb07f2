// Command demo shows nodeprep at work: it boots a fresh machine, provisions it, and shows
// each step as somebody at its terminal would see it. It installs and builds what it
// needs first, and needs root for that.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context) error {
	began := time.Now()
	l, err := vm.Open(ctx, vm.Options{Guest: "bookworm", Releases: releases(), Log: func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}})
	if err != nil {
		return err
	}
	return errors.Join(demo(ctx, l), l.Close())
}

// releases are the files that somebody would have carried to the server.
func releases() []supply.Release {
	return []supply.Release{
		{Component: "containerd", Version: "2.1.9", Arch: "amd64"},
		{Component: "runc", Version: "1.1.5", Arch: "amd64"},
		{Component: "cni", Version: "1.9.1", Arch: "amd64"},
	}
}

// profile, but for three digests, is what somebody would have written. It has digests of its own, since the release files are repacked from Debian's
// packages: upstream's would be known to nodeprep.
const profile = `apiVersion: nodeprep/v1alpha1
kind: NodeProfile
extends: kubernetes

containerd:
  version: 2.1.9
  variant: dynamic
  sha256: {amd64: %s}
  sandboxImage: registry.k8s.io/pause:3.10
runc:
  version: 1.1.5
  sha256: {amd64: %s}
cni:
  version: 1.9.1
  sha256: {amd64: %s}
  network: {name: pods, subnet: 10.88.0.0/24}
crictl: {version: none}

registries:
  docker.io:
    mirrors: [{url: "https://mirror.example.com"}]

images:
  - {file: /media/stick/images/pause.tar, pin: true}
  - {file: /media/stick/images/busybox.tar}

sources:
  - dir: /media/releases/containerd-2.1.9-amd64
  - dir: /media/releases/runc-1.1.5-amd64
  - dir: /media/releases/cni-1.9.1-amd64
`

// demo starts a machine without a network, and has it provision itself.
func demo(ctx context.Context, l *vm.Lab) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	m, err := l.Start(ctx, "demo")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Close()) }()

	var sums []any
	for _, r := range releases() {
		sum, err := m.Sum(r)
		if err != nil {
			return err
		}
		sums = append(sums, sum)
	}
	if err := m.WriteFile(ctx, "/etc/nodeprep/profile.yaml", fmt.Sprintf(profile, sums...)); err != nil {
		return err
	}
	info, err := os.Stdout.Stat()
	if err != nil {
		return err
	}
	plain := info.Mode()&os.ModeCharDevice == 0
	for _, step := range []struct {
		says, command string
		code          int
	}{
		{"A fresh Debian server, no network, a stick with three release files and two images:", "ls /media/releases/* /media/stick/images; ip -brief address", 0},
		{"What the node shall be:", "cat /etc/nodeprep/profile.yaml", 0},
		{"What would change:", "nodeprep plan --offline", 3},
		{"Make it so:", "nodeprep apply --offline", 0},
		{"containerd runs, and what keeps containers alive is in force:", "systemctl show containerd -p ActiveState,Delegate,KillMode,OOMScoreAdjust; ctr plugins ls | grep -e cri -e overlayfs", 0},
		{"A pod, as a kubelet would start it:", "inguest cri /run/containerd/containerd.sock run demo " + supply.BusyboxImage + " sleep 1000", 0},
		{"Once more: nothing to do, nothing touched:", "nodeprep apply --offline", 0},
		{"Has anything drifted?", "nodeprep status", 0},
	} {
		fmt.Printf("\n\n### %s\n\nroot@node:~# %s\n", step.says, step.command)
		code, err := m.Show(ctx, os.Stdout, step.command, plain)
		if err == nil && code != step.code {
			err = fmt.Errorf("%s: exit %d, want %d", step.command, code, step.code)
		}
		if err != nil {
			return errors.Join(err, m.Keep(ctx))
		}
	}
	fmt.Println()
	return m.PowerOff(ctx)
}
