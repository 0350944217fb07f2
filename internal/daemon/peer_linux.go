package daemon

import (
	"context"
	"fmt"
	"net"

	"golang.org/x/sys/unix"
)

// Peer is the process that listens at a socket's path, as the kernel has it
// (unix(7), SO_PEERCRED: the credentials are those of the listen(2) call). It is 0 for
// one outside of this program's PID namespace.
func Peer(ctx context.Context, address string) (pid int, err error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
	if err != nil {
		return 0, fmt.Errorf("ask who listens: %w", err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		return 0, fmt.Errorf("ask who listens at %s: %w", address, err)
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err == nil {
		err = failed
	}
	if err != nil {
		return 0, fmt.Errorf("ask who listens at %s: %w", address, err)
	}
	return int(cred.Pid), nil
}
