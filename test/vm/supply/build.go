package supply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// containerdModule is what containerd's daemon is built from, where Debian has no package
// of its version. test/oracle pins it.
const containerdModule = "github.com/containerd/containerd/v2"

// ModuleRoot is the folder of this repository's own module.
func ModuleRoot(ctx context.Context) (string, error) {
	out, err := run(ctx, nil, "go", "env", "GOMOD")
	if err != nil {
		return "", err
	}
	mod := strings.TrimSpace(out)
	if mod == "" || mod == os.DevNull {
		return "", errors.New("find the repository: run it from inside nodeprep's module")
	}
	return filepath.Dir(mod), nil
}

// GoBuild builds a program of this repository, static and stripped, as its releases are.
func GoBuild(ctx context.Context, root, pkg, out, arch string) error {
	in := func(c *exec.Cmd) {
		c.Dir = root
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	}
	_, err := run(ctx, in, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	return err
}

// GoTestBinary builds a package's tests as a static program.
func GoTestBinary(ctx context.Context, root, pkg, out, arch string) error {
	in := func(c *exec.Cmd) {
		c.Dir = root
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	}
	_, err := run(ctx, in, "go", "test", "-c", "-trimpath", "-ldflags", "-s -w", "-o", out, pkg)
	return err
}

// build makes containerd's static variant from its Go module, as upstream's own build
// does, with the version stamped in: the daemon reports it to its clients.
func (s *Store) build(ctx context.Context, r Release, dir string) (err error) {
	if r.Component != "containerd" {
		return fmt.Errorf("build %s: only containerd is built here", r.Component)
	}
	root, err := ModuleRoot(ctx)
	if err != nil {
		return err
	}
	oracle := filepath.Join(root, "test", "oracle")
	in := func(c *exec.Cmd) {
		c.Dir = oracle
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+r.Arch)
	}
	pinned, err := run(ctx, in, "go", "list", "-m", "-f", "{{.Version}}", containerdModule)
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(pinned); got != "v"+r.Version {
		return fmt.Errorf("build containerd %s: test/oracle/go.mod pins %s", r.Version, got)
	}
	tmp, err := os.MkdirTemp(dir, ".build-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	stamp := func(name, value string) string { return " -X " + containerdModule + "/version." + name + "=" + value }
	if _, err := run(ctx, in, "go", "build", "-trimpath",
		// Upstream's osusergo and netgo say nothing without cgo, but net and all that is
		// above it would be compiled for them alone.
		"-tags", "urfave_cli_no_docs,static_build",
		"-ldflags", "-s -w"+stamp("Version", "v"+r.Version)+stamp("Package", containerdModule),
		"-o", tmp+string(filepath.Separator),
		containerdModule+"/cmd/containerd", containerdModule+"/cmd/containerd-shim-runc-v2", containerdModule+"/cmd/ctr",
	); err != nil {
		return err
	}
	out, err := os.Create(filepath.Join(dir, r.File()))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	archive, err := newArchive(out, "bin/")
	if err != nil {
		return err
	}
	for _, name := range []string{"containerd", "containerd-shim-runc-v2", "ctr"} {
		if err := addFile(archive, filepath.Join(tmp, name)); err != nil {
			return err
		}
	}
	if err := archive.close(); err != nil {
		return err
	}
	return writeSums(dir)
}

func addFile(a *archiveWriter, path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	return a.add(filepath.Base(path), info.Size(), f)
}
