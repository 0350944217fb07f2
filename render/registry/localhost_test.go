package registry_test

import (
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"

	"github.com/nodeprep/nodeprep/render/registry"
)

// What is a registry of this host is containerd's to say.
func TestLocalhost(t *testing.T) {
	for _, host := range []string{
		"localhost", "localhost:5000", "localhost:", "127.0.0.1", "127.1.2.3:80", "127.0.0.1.nip.io", "127.example.com:5000", "::1", "[::1]", "[::1]:5000",
		"[0:0:0:0:0:0:0:1]:5000", "[::ffff:127.0.0.1]:1", "[fd00::1]:5000", "[localhost]:1", "[::1%lo]:1", "quay.io", "localhost.example:1", "", ":5000", "127.256.0.1",
	} {
		if got, want := registry.Localhost(host), docker.IsLocalhost(host); got != want {
			t.Errorf("%q: %t, and containerd says %t", host, got, want)
		}
	}
}
