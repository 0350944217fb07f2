package checks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"path"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// Units is what checks ask of systemd; *systemd.Manager is one.
type Units interface {
	Properties(ctx context.Context, unit string) (systemd.Properties, error)
}

// Containerd is what checks ask of the daemon; *daemon.Client is one.
type Containerd interface {
	Version(ctx context.Context) (string, error)
	Plugins(ctx context.Context) ([]daemon.Plugin, error)
	Tasks(ctx context.Context) ([]daemon.Task, error)
	Images(ctx context.Context, namespace string) ([]daemon.Image, error)
	ImageStates(ctx context.Context, namespace, platform, snapshotter string, names ...string) ([]daemon.ImageState, error)
	Namespaces(ctx context.Context) ([]string, error)
	Deprecations(ctx context.Context) ([]daemon.Deprecation, error)
}

// Drift is a file of nodeprep's that is not as its last apply left it.
type Drift struct{ Path, What string }

// Receipt is what checks want to know of the last apply.
type Receipt struct {
	// Versions are those of the components that were installed, without a leading v.
	Versions map[string]string
	// Programs are the paths of the programs that were installed.
	Programs []string
	// Time is when that was.
	Time time.Time
	// Profile is the path of the profile that was applied, "" where it was no file.
	Profile string
	// Drift compares what was installed with what is there, reading only files whose
	// size, time or inode is another.
	Drift func(ctx context.Context) ([]Drift, error)
}

// Outside is what a Node is asked about. Fields that are nil are not there.
type Outside struct {
	Host  *host.Host
	Facts host.Facts
	// Live says that the root is the running system's.
	Live bool
	// Applying says that a run which changes the host follows.
	Applying bool
	// Spec is what the node shall be. Without one the checks hold the host against what
	// upstream documents.
	Spec    *profiles.Spec
	Receipt *Receipt
	// Units connects to systemd, Daemon to the containerd that listens at a socket.
	Units  func(ctx context.Context) (Units, error)
	Daemon func(ctx context.Context, address string) (Containerd, error)
	// Listener is the process that listens at a socket's path, as daemon.Peer tells.
	Listener func(ctx context.Context, address string) (pid int, err error)
	// Dial opens network connections; nil forbids them.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Env reads this process's environment.
	Env func(name string) (string, bool)
}

// Node is a host while it is checked. What several checks want to know is asked once.
type Node struct {
	Outside
	ctx   context.Context // of facts, which outlive the check that asks first
	mu    sync.Mutex
	facts map[string]any // of *remembered
}

// NewNode is a Node of that host as it is from now on: what was asked once is not asked
// again. ctx ends what it asks.
func NewNode(ctx context.Context, o Outside) *Node {
	return &Node{Outside: o, ctx: ctx, facts: map[string]any{}}
}

// factTime bounds the gathering of one fact; it is less than what a check has.
const factTime = 8 * time.Second

type remembered[T any] struct {
	once sync.Once
	v    T
	err  error
}

// remember asks for a fact that several checks need, once for each key.
func remember[T any](n *Node, key string, ask func(ctx context.Context) (T, error)) (T, error) {
	n.mu.Lock()
	r, ok := n.facts[key].(*remembered[T])
	if !ok {
		r = &remembered[T]{}
		n.facts[key] = r
	}
	n.mu.Unlock()
	r.once.Do(func() {
		// Who asks next gets what the first one got: also that asking broke.
		defer func() {
			if p := recover(); p != nil {
				r.err = fmt.Errorf("asking for %s broke: %v", key, p)
			}
		}()
		ctx, cancel := context.WithTimeout(n.ctx, factTime)
		defer cancel()
		r.v, r.err = ask(ctx)
	})
	return r.v, r.err
}

// lacks is nil where the fact is there, else the result of a check that needs it.
func (n *Node) lacks(ctx context.Context, fact string) *Result {
	skipped := func(why string) *Result { return &Result{Verdict: Skip, Observed: why} }
	var err error
	switch fact {
	case NeedLive:
		if !n.Live {
			return skipped("not asked of an image that does not run")
		}
	case NeedProfile:
		if n.Spec == nil {
			return skipped("no profile to compare with")
		}
	case NeedReceipt:
		if n.Receipt == nil {
			return skipped("not provisioned by nodeprep")
		}
	case NeedNetwork:
		if n.Dial == nil {
			return skipped("the network is not to be used")
		}
	case NeedSystemd:
		if !n.Live || !n.Facts.SystemdInit {
			return skipped("systemd does not run here")
		}
		_, err = n.manager()
	case NeedProcess:
		if _, err = n.Process(); errors.Is(err, errNoProcess) {
			return skipped(err.Error())
		}
	case NeedKubelet:
		var k *Kubelet
		if k, err = n.Kubelet(); err == nil && k == nil {
			return skipped("no kubelet is configured here")
		}
	default:
		err = fmt.Errorf("the check itself broke: it needs %s, which nobody knows", fact)
	}
	if err != nil {
		return &Result{Verdict: Unknown, Observed: err.Error()}
	}
	return nil
}

// exists reports whether there is something at p, links followed. What cannot be looked
// at for want of permission counts as there.
func (n *Node) exists(p string) bool {
	_, err := n.Host.Root.Stat(p)
	return !absent(err)
}

// absent also holds where a path goes through a file.
func absent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// text reads a small file whole, without the space around its content.
func (n *Node) text(p string) (string, error) {
	b, err := n.Host.Root.ReadFile(p)
	return strings.TrimSpace(string(b)), err
}

// run runs a program of the live host and returns what it printed.
func (n *Node) run(ctx context.Context, program string, args ...string) (string, error) {
	out, err := n.Host.Run(ctx, host.Cmd{Path: program, Args: args})
	return string(out.Stdout), err
}

func (n *Node) manager() (Units, error) {
	return remember(n, "systemd", func(ctx context.Context) (Units, error) {
		if n.Units == nil {
			return nil, errors.New("systemd is not to be asked here")
		}
		return n.Units(ctx)
	})
}

// Unit is what systemd has in force of a unit. One that does not exist is no error.
func (n *Node) Unit(name string) (systemd.Properties, error) {
	return remember(n, "unit "+name, func(ctx context.Context) (systemd.Properties, error) {
		m, err := n.manager()
		if err != nil {
			return systemd.Properties{}, err
		}
		return m.Properties(ctx, name)
	})
}

// Process is a running daemon.
type Process struct {
	PID int
	// Exe is the program that it runs, " (deleted)" cut off, which Deleted has.
	Exe     string
	Deleted bool
	Args    []string
	// Unit is true when it is the main process of containerd.service.
	Unit bool
}

// errNoProcess is that no containerd runs, as far as anybody can see.
var errNoProcess = errors.New("no containerd runs here")

// Process is the daemon of this host: containerd.service's main process, else the one that
// listens at containerd's usual socket. errNoProcess says that there is none.
func (n *Node) Process() (*Process, error) {
	return remember(n, "process", func(ctx context.Context) (*Process, error) {
		if !n.Live {
			return nil, errNoProcess
		}
		p := &Process{}
		if n.Facts.SystemdInit && n.Units != nil {
			unit, err := n.Unit(systemd.UnitName)
			if err != nil {
				return nil, err
			}
			p.PID, p.Unit = unit.MainPID, unit.MainPID != 0
		}
		if p.PID == 0 && n.Listener != nil {
			// An error is that nobody listens, or that others may not ask.
			pid, err := n.Listener(ctx, defaultAddress)
			if errors.Is(err, fs.ErrPermission) {
				return nil, err
			}
			p.PID = pid
		}
		if p.PID == 0 {
			return nil, errNoProcess
		}
		dir := "/proc/" + strconv.Itoa(p.PID)
		cmdline, err := n.Host.Root.ReadFile(dir + "/cmdline")
		if absent(err) {
			return nil, errNoProcess
		}
		if err != nil {
			return nil, err
		}
		p.Args = strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")
		exe, err := n.Host.Root.Readlink(dir + "/exe")
		switch {
		case err == nil:
			p.Exe, p.Deleted = strings.CutSuffix(exe, " (deleted)")
		case len(p.Args) > 0 && path.IsAbs(p.Args[0]):
			p.Exe = p.Args[0] // who is not root may not see more
		}
		return p, nil
	})
}

const (
	defaultAddress = "/run/containerd/containerd.sock"
	defaultConfig  = "/etc/containerd/config.toml"
)

// ConfigPath is the config file that the daemon reads: what it was started with, else
// what its unit would start it with, else containerd's own default.
func (n *Node) ConfigPath() string {
	if p, err := n.configPath(); err == nil {
		return p
	}
	return defaultConfig
}

// Config is the daemon's config as it is on the disk now.
func (n *Node) Config() (*configtoml.Config, error) {
	return remember(n, "config", func(context.Context) (*configtoml.Config, error) {
		v, _, err := n.Release()
		if err != nil {
			return nil, err
		}
		config, err := n.configPath()
		if err != nil {
			return nil, err
		}
		return configtoml.Load(n.Host.Root, config, v)
	})
}

// Address is the socket at which the daemon answers: the config's.
func (n *Node) Address() string {
	if c, err := n.Config(); err == nil {
		if address, _ := c.Address(); address != "" {
			return address
		}
	}
	return defaultAddress
}

// Client is a connection to the daemon.
func (n *Node) Client() (Containerd, error) {
	return remember(n, "daemon", func(ctx context.Context) (Containerd, error) {
		if n.Daemon == nil {
			return nil, errors.New("the daemon is not to be asked here")
		}
		return n.Daemon(ctx, n.Address())
	})
}

// Release is the version of the containerd that reads the config, and who says so: the
// program itself, else the receipt, else the profile. It is the zero Version,
// without an error, where there is no containerd.
func (n *Node) Release() (v releases.Version, from string, err error) {
	type release struct {
		v    releases.Version
		from string
	}
	r, err := remember(n, "release", func(ctx context.Context) (release, error) {
		found := func(text, from string) (release, bool) {
			v, err := releases.ParseVersion(strings.TrimPrefix(cutDistribution(text), "v"))
			return release{v, from}, err == nil
		}
		// The program tells by itself, also to those who may not ask the daemon; asking
		// the daemon first would need the config, which needs the version.
		if bin := n.DaemonBinary(); bin != "" && n.Live {
			out, err := n.run(ctx, bin, "--version")
			if err == nil {
				// containerd github.com/containerd/containerd/v2 v2.1.9 1234abcd
				if f := strings.Fields(out); len(f) >= 3 {
					if r, ok := found(f[2], bin+" --version"); ok {
						return r, nil
					}
				}
				return release{}, fmt.Errorf("%s --version says %q: that is no version", bin, strings.TrimSpace(out))
			}
			if n.Receipt == nil && n.Spec == nil {
				return release{}, err
			}
		}
		if n.Receipt != nil {
			if r, ok := found(n.Receipt.Versions[releases.Containerd], "receipt"); ok {
				return r, nil
			}
		}
		if n.Spec != nil && n.Spec.Containerd.Installed() {
			return release{n.Spec.Containerd.Version, "profile"}, nil
		}
		return release{}, nil
	})
	return r.v, r.from, err
}

// cutDistribution cuts what distributions add to a version: 1.6.20~ds1, 1.7.24-0ubuntu1,
// 2.1.9+ds1; a pre-release such as 2.4.0-beta.0 keeps its name.
func cutDistribution(s string) string {
	s, _, _ = strings.Cut(s, "~")
	s, _, _ = strings.Cut(s, "+")
	if core, rest, ok := strings.Cut(s, "-"); ok {
		for _, pre := range []string{"alpha", "beta", "rc"} {
			if strings.HasPrefix(rest, pre) {
				return s
			}
		}
		return core
	}
	return s
}

// DaemonBinary is the program that is, or would be, the daemon: the running one's, the
// unit's, nodeprep's place or one that packages use. "" is none. It is never one that
// only starts the daemon, such as env or a shell.
func (n *Node) DaemonBinary() string {
	if p, err := n.Process(); err == nil && p.Exe != "" && !p.Deleted && !n.startsOthers(p.Exe) {
		return p.Exe
	}
	if argv, _, err := n.daemonArgv(); err == nil && len(argv) > 0 {
		return argv[0]
	}
	for _, p := range []string{systemd.Binary, "/usr/bin/containerd"} {
		if n.exists(p) {
			return p
		}
	}
	return ""
}
