package install

import (
	"context"
	"fmt"
	"io"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
)

// Containerd is the Daemon that answers at a socket of this machine.
type Containerd struct{}

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

// Import unpacks into the snapshotter that CRI uses.
func (Containerd) Import(ctx context.Context, d desired.Daemon, image desired.Image, archive io.Reader) ([]string, error) {
	c, err := daemon.Connect(ctx, d.Address)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	images, err := c.Import(ctx, archive, daemon.ImportOptions{Pin: image.Pin, Snapshotter: d.Snapshotter})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, i := range images {
		names = append(names, i.Name)
	}
	return names, nil
}
