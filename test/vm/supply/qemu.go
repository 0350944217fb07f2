package supply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sync/errgroup"
)

// fastQEMU is the first major version that machines are emulated with where it can be had:
// 10 starts processes in half of the time that 7.2 takes, and has the instructions for SHA-256.
const fastQEMU = 9

// QEMU returns the folder below which a QEMU for guests of the arch lies, with its own usr/bin, that is
// newer than this machine's; "" where this machine's is as good. It is not installed: this machine
// keeps its own, whose libraries both use.
func (s *Store) QEMU(ctx context.Context, arch string) (string, error) {
	program, pkg := "qemu-system-x86_64", "qemu-system-x86"
	if arch == "arm64" {
		program, pkg = "qemu-system-aarch64", "qemu-system-arm"
	}
	own, err := qemuMajor(ctx, program)
	if err != nil || own >= fastQEMU {
		return "", err
	}
	dir, err := s.Entry(ctx, "qemu.v1", arch, func(ctx context.Context, dir string) error {
		d, done, err := s.debian(ctx, runtime.GOARCH)
		if err != nil {
			return err
		}
		defer done()
		debs, err := os.MkdirTemp(dir, ".deb-")
		if err != nil {
			return err
		}
		in := func(c *exec.Cmd) { c.Dir = debs }
		args := []string{"-q", "download"}
		for _, p := range []string{pkg, "qemu-system-data", "seabios"} {
			args = append(args, p+"/"+backports)
		}
		if _, err := run(ctx, in, "apt-get", d.options(args...)...); err != nil {
			return err
		}
		files, err := filepath.Glob(filepath.Join(debs, "*.deb"))
		if err != nil {
			return err
		}
		work, unpacking := errgroup.WithContext(ctx)
		for _, f := range files {
			work.Go(func() error {
				_, err := run(unpacking, nil, "dpkg-deb", "-x", f, dir)
				return err
			})
		}
		if err := work.Wait(); err != nil {
			return err
		}
		// That it runs, with the libraries there are.
		_, err = qemuMajor(ctx, filepath.Join(dir, "usr/bin", program))
		return errors.Join(err, os.RemoveAll(debs))
	})
	if err != nil && ctx.Err() == nil {
		s.log("machines run with this machine's own QEMU %d, which is slower: %v", own, err)
		return "", nil
	}
	return dir, err
}

// qemuMajor asks a QEMU for its major version.
func qemuMajor(ctx context.Context, program string) (int, error) {
	out, err := run(ctx, nil, program, "-version")
	if err != nil {
		return 0, err
	}
	version, _ := strings.CutPrefix(out, "QEMU emulator version ")
	major, _, _ := strings.Cut(version, ".")
	n, err := strconv.Atoi(major)
	if err != nil {
		return 0, fmt.Errorf("ask %s for its version: it says %q", program, out)
	}
	return n, nil
}
