package daemon

import (
	"net"
	"os"
	"path/filepath"
	"testing"
)

func TestPeerIsWhoListens(t *testing.T) {
	address := filepath.Join(t.TempDir(), "c.sock")
	if _, err := Peer(t.Context(), address); err == nil {
		t.Error("nobody listens, and there is no error")
	}
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if pid, err := Peer(t.Context(), address); err != nil || pid != os.Getpid() {
		t.Errorf("Peer = %d, %v; want this process, %d", pid, err, os.Getpid())
	}
}
