package install

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"time"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
)

// Containerd is the Daemon that answers at a socket of this machine.
type Containerd struct {
	// wait overrides, in tests, how long the daemon may take until it answers.
	wait time.Duration
}

// Healthy connects anew: a client from before a restart says nothing about after.
func (Containerd) Healthy(ctx context.Context, want desired.Daemon) error {
	c, err := daemon.Connect(ctx, want.Address)
	if err != nil {
		return err
	}
	defer c.Close()
	if want.Version != "" {
		version, err := c.Version(ctx)
		if err != nil {
			return err
		}
		if !mentions(version, want.Version) {
			return fmt.Errorf("containerd at %s is %s, want %s; another program may own the socket", want.Address, version, want.Version)
		}
	}
	if want.Snapshotter == "" {
		return nil
	}
	return c.Health(ctx, want.Snapshotter)
}

// Process asks the kernel, so that it needs no answer of the daemon's.
func (Containerd) Process(ctx context.Context, d desired.Daemon) (int, error) {
	return daemon.Peer(ctx, d.Address)
}

// Import unpacks into the snapshotter that CRI uses. The time it has is for a large
// archive, not for a daemon that does not answer.
func (c Containerd) Import(ctx context.Context, d desired.Daemon, image desired.Image, archive io.Reader) ([]string, error) {
	client, err := c.connect(ctx, d.Address)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	images, err := client.Import(ctx, archive, daemon.ImportOptions{Pin: image.Pin, Snapshotter: d.Snapshotter})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range images {
		names = append(names, i.Name)
	}
	return names, nil
}

func (c Containerd) connect(ctx context.Context, address string) (*daemon.Client, error) {
	wait := cmp.Or(c.wait, healthTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("no answer within %s", wait))
	defer cancel()
	return daemon.Connect(ctx, address)
}
