package qemu

import (
	"os/exec"
	"syscall"
)

// dieWithParent has the kernel kill the machine when this process is gone, however it
// went: a test that runs into go test's time limit ends without a chance to clean up.
// (prctl(2) PR_SET_PDEATHSIG goes by the parent's thread; Go keeps its threads.)
func dieWithParent(cmd *exec.Cmd) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
}
