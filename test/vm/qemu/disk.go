package qemu

import (
	"context"
	"fmt"
	"os/exec"
	"strings"
)

// Overlay makes a qcow2 file at path that holds what differs from backing, whose format
// is raw or qcow2. backing is stored as it is given: a relative one is looked for from
// path's folder.
func Overlay(ctx context.Context, path, backing, format string) error {
	cmd := exec.CommandContext(ctx, "qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", format, path)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("create disk %s: %w: %s", path, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// Version is that of the QEMU below root, or of the installed one for none, for the arch's program: a saved state is for one version.
func Version(ctx context.Context, root, arch string) (string, error) {
	program, _, err := command(Config{Root: root, Arch: arch, Accel: "tcg"})
	if err != nil {
		return "", err
	}
	out, err := exec.CommandContext(ctx, program, "-version").Output()
	if err != nil {
		return "", fmt.Errorf("ask qemu's version: %w", err)
	}
	line, _, _ := strings.Cut(string(out), "\n")
	return line, nil
}
