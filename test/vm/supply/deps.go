package supply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// tool is a program that the machine tests run, and the Debian package that has it.
type tool struct{ program, pkg string }

func tools() []tool {
	return []tool{
		{"qemu-system-x86_64", "qemu-system-x86"},
		{"qemu-system-aarch64", "qemu-system-arm"},
		{"qemu-img", "qemu-utils"},
		{"debootstrap", "debootstrap"},
		{"depmod", "kmod"},              // indexes the modules of a guest that is not debootstrapped
		{"systemd-sysusers", "systemd"}, // and makes its users
		{"mkfs.ext4", "e2fsprogs"},
		{"dpkg-deb", "dpkg"},
		{"wget", "wget"},                        // debootstrap's downloader
		{"systemd-nspawn", "systemd-container"}, // boots a host for the benchmark of check
		{"strace", "strace"},                    // install's proof that nothing but its writer changes a host
		{"skopeo", "skopeo"},                    // carries bundles to registries and back
		{"ansible-playbook", "ansible-core"},    // the fleet's controller
		{"ssh-keygen", "openssh-client"},        // and its way to the hosts
		{"genisoimage", "genisoimage"},          // seeds for cloud-init
		{"jq", "jq"},                            // what a documented Terraform data source runs
	}
}

// keyring is what Debian signs its suites with; also those newer than the machine's own.
const keyring = "/usr/share/keyrings/debian-archive-keyring.gpg"

// Deps installs, with apt-get, the tools that are missing. It needs root then, and
// touches nothing when all are there.
func (s *Store) Deps(ctx context.Context) error {
	var missing []string
	for _, t := range tools() {
		if _, err := exec.LookPath(t.program); err != nil {
			missing = append(missing, t.pkg)
		}
	}
	if _, err := os.Stat(keyring); err != nil {
		missing = append(missing, "debian-archive-keyring")
	}
	if len(missing) == 0 {
		return nil
	}
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("install %s: no apt-get here: the machine tests need a Debian machine", strings.Join(missing, " "))
	}
	if os.Geteuid() != 0 {
		return fmt.Errorf("install %s: not root: run it as root, or install them yourself", strings.Join(missing, " "))
	}
	s.log("installing %s", strings.Join(missing, " "))
	unattended := func(c *exec.Cmd) { c.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive") }
	if _, err := run(ctx, unattended, "apt-get", "-q", "update"); err != nil {
		return err
	}
	install := append([]string{"-q", "-y", "--no-install-recommends", "install"}, missing...)
	if _, err := run(ctx, unattended, "apt-get", install...); err != nil {
		return err
	}
	var errs []error
	for _, t := range tools() {
		if _, err := exec.LookPath(t.program); err != nil {
			errs = append(errs, fmt.Errorf("package %s was installed and has no %s", t.pkg, t.program))
		}
	}
	return errors.Join(errs...)
}
