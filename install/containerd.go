package install

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
)

const (
	// askTimeout is how long a daemon may take to say what runs under it.
	askTimeout = 5 * time.Second
	// stopGrace is how long a container has between SIGTERM and SIGKILL.
	stopGrace = 10 * time.Second
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
func (c Containerd) Import(ctx context.Context, d desired.Daemon, image desired.Image, in io.Reader, archive *imagearchive.Archive) ([]daemon.Image, error) {
	client, err := c.connect(ctx, d.Address)
	if err != nil {
		return nil, err
	}
	defer client.Close()
	return client.Import(ctx, in, daemon.ImportOptions{Pin: image.Pin, Snapshotter: d.Snapshotter, Archive: archive})
}

// Images lists those that CRI sees, within seconds in any case.
func (c Containerd) Images(ctx context.Context, d desired.Daemon) ([]daemon.Image, error) {
	return ask(ctx, c, d, func(client *daemon.Client, ctx context.Context) ([]daemon.Image, error) {
		return client.Images(ctx, "")
	})
}

// Tasks lists the tasks of all namespaces, within seconds in any case.
func (c Containerd) Tasks(ctx context.Context, d desired.Daemon) ([]daemon.Task, error) {
	return ask(ctx, c, d, (*daemon.Client).Tasks)
}

// Containers lists the containers of all namespaces, within seconds in any case.
func (c Containerd) Containers(ctx context.Context, d desired.Daemon) ([]daemon.Container, error) {
	return ask(ctx, c, d, (*daemon.Client).Containers)
}

// Watch follows shims through the kernel.
func (Containerd) Watch(tasks []daemon.Task) (ShimWatch, error) { return daemon.WatchShims(tasks) }

// StopTasks gives the tasks ten seconds to end by themselves, as docker stop does.
func (c Containerd) StopTasks(ctx context.Context, d desired.Daemon) error {
	client, err := c.connect(ctx, d.Address)
	if err != nil {
		return err
	}
	defer client.Close()
	return client.StopTasks(ctx, stopGrace)
}

// ask puts one question to a daemon. A plan is not held up by one that is down: without
// a socket nobody is waited for.
func ask[T any](ctx context.Context, c Containerd, d desired.Daemon, question func(*daemon.Client, context.Context) (T, error)) (T, error) {
	var none T
	if _, err := os.Stat(d.Address); err != nil {
		return none, fmt.Errorf("connect to containerd: %w", err)
	}
	wait := cmp.Or(c.wait, askTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("no answer within %s", wait))
	defer cancel()
	client, err := daemon.Connect(ctx, d.Address)
	if err == nil {
		defer client.Close()
		var answer T
		if answer, err = question(client, ctx); err == nil {
			return answer, nil
		}
	}
	if ctx.Err() != nil {
		err = fmt.Errorf("ask containerd at %s: %w", d.Address, context.Cause(ctx))
	}
	return none, err
}

func (c Containerd) connect(ctx context.Context, address string) (*daemon.Client, error) {
	wait := cmp.Or(c.wait, healthTimeout)
	ctx, cancel := context.WithTimeoutCause(ctx, wait, fmt.Errorf("no answer within %s", wait))
	defer cancel()
	return daemon.Connect(ctx, address)
}

// Pin sets the label by which CRI tells the kubelet not to remove an image (containerd
// docs/cri/config.md, from 1.6.22, 1.7.3 and 2.0 on).
func (c Containerd) Pin(ctx context.Context, d desired.Daemon, names []string) error {
	return c.pin(ctx, d, names, (*daemon.Client).Pin)
}

// Unpin takes that label away.
func (c Containerd) Unpin(ctx context.Context, d desired.Daemon, names []string) error {
	return c.pin(ctx, d, names, (*daemon.Client).Unpin)
}

func (c Containerd) pin(ctx context.Context, d desired.Daemon, names []string, do func(*daemon.Client, context.Context, string, []string) error) error {
	_, err := ask(ctx, c, d, func(client *daemon.Client, ctx context.Context) (struct{}, error) {
		return struct{}{}, do(client, ctx, "", names)
	})
	return err
}
