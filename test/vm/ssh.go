package vm

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// Beside is a lab for another guest with the same media. Its machines, and it, must be
// closed before l is.
func (l *Lab) Beside(ctx context.Context, guest string) (_ *Lab, err error) {
	other := *l
	if other.guest, err = supply.GuestNamed(guest); err != nil {
		return nil, err
	}
	if other.guest.Arch != l.guest.Arch {
		return nil, fmt.Errorf("guest %s is %s: its media are not those of %s", guest, other.guest.Arch, l.guest.Arch)
	}
	if other.tmp, other.remove, err = l.store.Scratch(); err != nil {
		return nil, err
	}
	if other.base, err = l.store.Base(ctx, other.guest); err == nil {
		other.snapshot, err = other.save(ctx)
	}
	if err != nil {
		return nil, errors.Join(err, other.Close())
	}
	return &other, nil
}

// SSH is how a machine is reached by ssh, from this one alone.
type SSH struct {
	Address netip.AddrPort
	HostKey string // as known_hosts has it: type and key
}

// OpenSSH brings up the network card of a machine whose guest has one, and lets the user
// in who has the private key of a public one, and who may become root by sudo.
func (m *Machine) OpenSSH(ctx context.Context, user, public string) (SSH, error) {
	address, err := m.qemu.SSHAddress(ctx)
	if err != nil {
		return SSH{}, err
	}
	// The saved machine's card is down. QEMU's network is 10.0.2.0/24, and its own end .2.
	r, err := m.Sh(ctx, fmt.Sprintf(`set -e
card=$(ls /sys/class/net | grep -v ^lo$)
ip addr add 10.0.2.15/24 dev $card
ip link set $card up
useradd --create-home --shell /bin/bash %[1]s
echo '%[1]s ALL=(ALL) NOPASSWD: ALL' >/etc/sudoers.d/%[1]s
install -d -m 700 -o %[1]s -g %[1]s ~%[1]s/.ssh
echo '%[2]s' >~%[1]s/.ssh/authorized_keys
systemctl is-active --quiet ssh
cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub`, user, strings.TrimSpace(public)))
	if err == nil && r.Code != 0 {
		err = fmt.Errorf("exit %d\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	if err != nil {
		return SSH{}, fmt.Errorf("open the machine for ssh: %w", err)
	}
	return SSH{Address: address, HostKey: strings.TrimSpace(r.Stdout)}, nil
}
