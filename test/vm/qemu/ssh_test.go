package qemu

import (
	"net/netip"
	"slices"
	"testing"
)

// What QEMU 7.2 says of a machine with one forwarded port and a connection on it.
const usernet = "Hub -1 (net):\r\n" +
	"  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n" +
	"  TCP[ESTABLISHED]   25       127.0.0.1 39137       10.0.2.15    22     0     0\r\n" +
	"  TCP[HOST_FORWARD]  16       127.0.0.1 39137       10.0.2.15    22     0     0\r\n"

func TestSSHAddress(t *testing.T) {
	got, err := forwarded(usernet)
	if want := netip.MustParseAddrPort("127.0.0.1:39137"); err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	for _, said := range []string{"", "Hub -1 (net):\r\n  TCP[ESTABLISHED]   25       127.0.0.1 39137       10.0.2.15    22     0     0\r\n"} {
		if got, err := forwarded(said); err == nil {
			t.Errorf("%q: got %v, want an error", said, got)
		}
	}
}

// No machine starts with a network.
func TestNoNetwork(t *testing.T) {
	_, args, err := Args(Config{Arch: "amd64", Accel: "tcg"})
	if err != nil {
		t.Fatal(err)
	}
	if i := slices.Index(args, "-nic"); i < 0 || args[i+1] != "none" {
		t.Errorf("QEMU's arguments are %q, want -nic none", args)
	}
}
