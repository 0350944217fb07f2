package install

import (
	"errors"
	"io/fs"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// A plan asks what runs, and must not hang on a daemon that is down or ill.
func TestQuestionsAreNotWaitedForLong(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "c.sock")
	// Without a socket not even the time allowed is used.
	if _, err := (Containerd{wait: time.Hour}).Tasks(t.Context(), desired.Daemon{Address: missing}); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), missing) {
		t.Errorf("tasks without a socket: %v", err)
	}
	mute := filepath.Join(t.TempDir(), "m.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if _, err := (Containerd{wait: 100 * time.Millisecond}).Containers(t.Context(), desired.Daemon{Address: mute}); err == nil || !strings.Contains(err.Error(), "ask containerd at "+mute+": no answer within 100ms") {
		t.Errorf("containers of a daemon that says nothing: %v", err)
	}
}
