package vm

import (
	"context"
	"fmt"
	"net/netip"
	"strings"
)

// SSH is how a machine is reached by ssh, from this one alone.
type SSH struct {
	Address netip.AddrPort
	HostKey string // as known_hosts has it: type and key
}

// OpenSSH gives the machine a network card, starts sshd, and lets the user in who has the
// private key of a public one, and who may become root by sudo.
func (m *Machine) OpenSSH(ctx context.Context, user, public string) (SSH, error) {
	address, err := m.qemu.AttachCard(ctx)
	if err != nil {
		return SSH{}, err
	}
	r, err := m.Sh(ctx, fmt.Sprintf(`for i in $(seq 600); do if ls -d /sys/class/net/e* >/dev/null 2>&1; then break; fi; sleep 0.1; done
udevadm settle
card=$(ls /sys/class/net | grep '^e')
ip addr add 10.0.2.15/24 dev $card
ip link set $card up
useradd --create-home --shell /bin/bash %[1]s
echo '%[1]s ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/%[1]s
install -d -m 700 -o %[1]s -g %[1]s ~%[1]s/.ssh
echo '%[2]s' >~%[1]s/.ssh/authorized_keys
systemctl start ssh
cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub`, user, strings.TrimSpace(public)))
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if err != nil {
		return SSH{}, fmt.Errorf("open the machine for ssh: %w", err)
	}
	return SSH{Address: address, HostKey: strings.TrimSpace(r.Stdout)}, nil
}
