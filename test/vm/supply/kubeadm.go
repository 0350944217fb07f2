package supply

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// kubeadmModule is what kubeadm is built from, which Debian has no package of. test/kubeadm pins it.
const kubeadmModule = "k8s.io/kubernetes"

// Kubeadm returns the program kubeadm, with the version of its module stamped in as its own
// releases have it, e.g. v1.36.3: without one it looks nothing up that depends on it.
// It takes some two and a half minutes of a processor to build, once.
func (s *Store) Kubeadm(ctx context.Context, arch string) (file, version string, err error) {
	root, err := ModuleRoot(ctx)
	if err != nil {
		return "", "", err
	}
	in := func(c *exec.Cmd) {
		c.Dir = filepath.Join(root, "test", "kubeadm")
		c.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
	}
	pinned, err := run(ctx, in, "go", "list", "-m", "-f", "{{.Version}}", kubeadmModule)
	if err != nil {
		return "", "", err
	}
	version = strings.TrimSpace(pinned)
	dir, err := s.Keyed(ctx, "kubeadm.v1", arch, version, func(ctx context.Context, dir string) error {
		_, err := run(ctx, in, "go", "build", "-trimpath",
			"-ldflags", "-s -w -X k8s.io/component-base/version.gitVersion="+version,
			"-o", filepath.Join(dir, "kubeadm"), kubeadmModule+"/cmd/kubeadm",
		)
		return err
	})
	return filepath.Join(dir, "kubeadm"), version, err
}
