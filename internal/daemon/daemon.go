package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"
)

// connectTimeout bounds a Connect whose context has no deadline. A daemon with many
// images and containers takes its time to load its plugins.
const connectTimeout = time.Minute

// Client is a connection to one containerd. It may be used by several goroutines.
type Client struct {
	c       *client.Client
	address string
}

// Connect connects to the daemon at a socket's path and waits until it serves, as long
// as the context allows (a minute without a deadline). The error names the socket and,
// where there is one, the last reason why nobody answered.
func Connect(ctx context.Context, address string) (*Client, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, connectTimeout)
		defer cancel()
	}
	// The client's own choice waits up to ten seconds between two attempts; a daemon that
	// has just started deserves to be found sooner.
	retry := backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, Jitter: 0.2, MaxDelay: time.Second}
	// gRPC does not tell why it could not connect when the time is up.
	var lastDial atomic.Pointer[error]
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
		lastDial.Store(&err)
		return conn, err
	}
	c, err := client.New(address, client.WithDialOpts([]grpc.DialOption{
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: retry, MinConnectTimeout: time.Second}),
		grpc.WithContextDialer(dial),
	}))
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	d := &Client{c: c, address: address}
	serving, err := c.IsServing(ctx)
	if err == nil && !serving {
		err = errors.New("it says that it is not serving")
	}
	if err != nil {
		c.Close()
		err = plain(err)
		if last := lastDial.Load(); last != nil && *last != nil {
			err = fmt.Errorf("%w (%w)", err, *last)
		}
		return nil, fmt.Errorf("connect to containerd at %s: %w", address, err)
	}
	// Something else may own the socket; only a containerd answers this.
	if _, err := d.Version(ctx); err != nil {
		c.Close()
		return nil, err
	}
	return d, nil
}

// Close ends the connection.
func (d *Client) Close() error { return d.c.Close() }

// Version is the daemon's own version, without a leading v; distributions add to it,
// as in 1.6.20~ds1.
func (d *Client) Version(ctx context.Context) (string, error) {
	v, err := d.c.Version(ctx)
	if err != nil {
		return "", fmt.Errorf("ask containerd at %s for its version: %w", d.address, plain(err))
	}
	return strings.TrimPrefix(v.Version, "v"), nil
}

// State is how a plugin came up.
type State string

const (
	StateOK    State = "ok"
	StateSkip  State = "skip" // it found that it is not needed or cannot work here
	StateError State = "error"
)

// Plugin is one plugin of the daemon. Plugins that its config disables are not there.
type Plugin struct {
	Type  string // e.g. io.containerd.grpc.v1
	ID    string // e.g. cri
	State State
	Err   string // the plugin's own words when State is not ok
	Root  string // the folder of a store of content or snapshots, if it tells
}

// Plugins lists the daemon's plugins in the order in which they were loaded.
func (d *Client) Plugins(ctx context.Context) ([]Plugin, error) {
	r, err := d.c.IntrospectionService().Plugins(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containerd's plugins: %w", plain(err))
	}
	var out []Plugin
	for _, p := range r.Plugins {
		plugin := Plugin{Type: p.Type, ID: p.ID, State: StateOK, Root: p.Exports["root"]}
		if p.InitErr != nil {
			plugin.State, plugin.Err = StateError, p.InitErr.Message
			// The error's code is Unknown for both kinds; containerd's own ctr looks at the
			// words too (github.com/containerd/plugin, ErrSkipPlugin).
			if strings.Contains(plugin.Err, "skip plugin") {
				plugin.State = StateSkip
			}
		}
		out = append(out, plugin)
	}
	return out, nil
}

// Health is nil when the daemon can serve a kubelet: its CRI plugins and the
// snapshotter that CRI uses are loaded and ok. The error has a line for each that is not.
func (d *Client) Health(ctx context.Context, snapshotter string) error {
	version, err := d.Version(ctx)
	if err != nil {
		return err
	}
	plugins, err := d.Plugins(ctx)
	if err != nil {
		return err
	}
	return health(version, plugins, snapshotter)
}

// PluginNeed is a plugin without which the daemon cannot serve a kubelet.
type PluginNeed struct {
	What string // e.g. "CRI image plugin"
	Type string
	ID   string
}

// CRINeeds are the plugins that CRI consists of in a daemon of that version: one up to
// 1.7, three from 2.0 on (containerd docs/containerd-2.0.md).
func CRINeeds(version string, plugins []Plugin) []PluginNeed {
	cri := PluginNeed{"CRI plugin", "io.containerd.grpc.v1", "cri"}
	split := slices.ContainsFunc(plugins, func(p Plugin) bool { return p.Type == "io.containerd.cri.v1" })
	if major, _, _ := strings.Cut(version, "."); split || atLeast(major, 2) {
		return []PluginNeed{
			{"CRI image plugin", "io.containerd.cri.v1", "images"},
			{"CRI runtime plugin", "io.containerd.cri.v1", "runtime"},
			cri,
		}
	}
	return []PluginNeed{cri}
}

// SnapshotterNeed is the plugin of a snapshotter. Proxy plugins register as snapshotters
// too, under their own names.
func SnapshotterNeed(name string) PluginNeed {
	return PluginNeed{"snapshotter", "io.containerd.snapshotter.v1", name}
}

// Name is TYPE.ID, as "ctr plugins ls" and log lines have it.
func (w PluginNeed) Name() string { return w.Type + "." + w.ID }

// Of is that plugin among those of a daemon, nil when it is not loaded.
func (w PluginNeed) Of(plugins []Plugin) *Plugin {
	i := slices.IndexFunc(plugins, func(p Plugin) bool { return p.Type == w.Type && p.ID == w.ID })
	if i < 0 {
		return nil
	}
	return &plugins[i]
}

// health holds the plugins against what a daemon of that version needs for CRI. The
// snapshotter comes first, since CRI's own complaint is often about it.
func health(version string, plugins []Plugin, snapshotter string) error {
	var errs []error
	for _, w := range append([]PluginNeed{SnapshotterNeed(snapshotter)}, CRINeeds(version, plugins)...) {
		switch p := w.Of(plugins); {
		case p == nil:
			errs = append(errs, fmt.Errorf("containerd's %s %s is not loaded: disabled_plugins names it, or this build lacks it", w.What, w.Name()))
		case p.State == StateSkip:
			errs = append(errs, fmt.Errorf("containerd's %s %s was skipped: %s", w.What, w.Name(), p.Err))
		case p.State != StateOK:
			errs = append(errs, fmt.Errorf("containerd's %s %s failed: %s", w.What, w.Name(), p.Err))
		}
	}
	return errors.Join(errs...)
}

func atLeast(number string, n int) bool {
	i, err := strconv.Atoi(number)
	return err == nil && i >= n
}

// Task is a container's process under the daemon.
type Task struct {
	Namespace string
	ID        string // the container's
	PID       int    // 0 once it has ended
	Status    string // created, running, stopped, paused, pausing or unknown
	// Shim is the process that keeps it, which outlives a daemon; 0 where that cannot
	// be told.
	Shim int
}

// Container is what the daemon knows of a container, whether it runs or not.
type Container struct {
	Namespace string
	ID        string
	// Name is a pod's "namespace/name" or a container's "namespace/pod/container" where
	// the kubelet made it; else the ID.
	Name    string
	Created time.Time
	// Sandbox holds for a pod's own container.
	Sandbox bool
}

// Tasks lists the tasks of all namespaces, sorted by namespace and ID.
func (d *Client) Tasks(ctx context.Context) ([]Task, error) {
	all, err := d.c.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containerd's namespaces: %w", plain(err))
	}
	var out []Task
	for _, ns := range all {
		r, err := d.c.TaskService().List(namespaces.WithNamespace(ctx, ns), &tasks.ListTasksRequest{})
		if err != nil {
			return nil, fmt.Errorf("list tasks in namespace %s: %w", ns, plain(errgrpc.ToNative(err)))
		}
		for _, p := range r.Tasks {
			out = append(out, Task{Namespace: ns, ID: p.ID, PID: int(p.Pid), Status: strings.ToLower(p.Status.String()), Shim: shimOf("/proc", int(p.Pid))})
		}
	}
	sortTasks(out)
	return out, nil
}

func sortTasks(all []Task) {
	slices.SortFunc(all, func(a, b Task) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ID, b.ID))
	})
}

// Containers lists the containers of all namespaces, sorted by namespace and ID.
func (d *Client) Containers(ctx context.Context) ([]Container, error) {
	all, err := d.c.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containerd's namespaces: %w", plain(err))
	}
	var out []Container
	for _, ns := range all {
		list, err := d.c.ContainerService().List(namespaces.WithNamespace(ctx, ns))
		if err != nil {
			return nil, fmt.Errorf("list containers in namespace %s: %w", ns, plain(err))
		}
		for _, c := range list {
			out = append(out, Container{
				Namespace: ns, ID: c.ID, Name: podName(c.ID, c.Labels), Created: c.CreatedAt,
				Sandbox: c.Labels["io.cri-containerd.kind"] == "sandbox",
			})
		}
	}
	slices.SortFunc(out, func(a, b Container) int {
		return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.ID, b.ID))
	})
	return out, nil
}

// podName is made of the labels that the kubelet sets (k8s.io/kubelet/pkg/types,
// labels.go) and CRI copies to its containers.
func podName(id string, labels map[string]string) string {
	pod := labels["io.kubernetes.pod.name"]
	if pod == "" {
		return id
	}
	name := pod
	if ns := labels["io.kubernetes.pod.namespace"]; ns != "" {
		name = ns + "/" + pod
	}
	if c := labels["io.kubernetes.container.name"]; c != "" {
		name += "/" + c
	}
	return name
}

// plain drops what gRPC puts before and behind a message, and keeps what errors.Is finds.
func plain(err error) error {
	msg := err.Error()
	if i := strings.Index(msg, "rpc error: code = "); i >= 0 {
		if _, desc, ok := strings.Cut(msg[i:], " desc = "); ok {
			return &plainError{msg: msg[:i] + desc, err: err}
		}
	}
	return err
}

type plainError struct {
	msg string
	err error
}

func (e *plainError) Error() string { return e.msg }
func (e *plainError) Unwrap() error { return e.err }
