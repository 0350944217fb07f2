package checks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"syscall"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// daemonAnswers is the check that all who ask the daemon need.
const daemonAnswers = "daemon/answers"

// daemonChecks are what the running daemon says of itself.
func daemonChecks() []Check {
	return []Check{
		{
			ID: daemonAnswers, Stage: Audit, Severity: Required,
			Why:    "A kubelet whose runtime does not answer at the socket makes the node NotReady, whatever systemd says of the unit.",
			Source: "containerd docs/ops.md, gRPC address; kubeadm preflight CRI",
			Needs:  []string{NeedProcess, "process/socket-owner"},
			Remedy: "systemctl restart containerd.service, once its KillMode is process\njournalctl -u containerd -b -n 50",
			Run:    single(answers),
		},
		{
			ID: "daemon/version", Stage: Audit, Severity: Required,
			Why:    "A daemon that runs another release than the one that was planned reads its config by other rules.",
			Source: "containerd RELEASES.md, API stability",
			Needs:  []string{daemonAnswers, "process/exe"},
			Remedy: "systemctl restart containerd.service, once its KillMode is process",
			Run:    runningVersion,
		},
		{
			ID: "daemon/snapshotter", Stage: Audit, Severity: Required,
			Why:    "When the snapshotter of the config is not there, the whole CRI plugin fails and the daemon keeps running without it.",
			Source: "containerd plugins/cri/images/plugin.go, \"failed to find snapshotter\"",
			// A host that lacks what the snapshotter needs, and a config that is not in force yet,
			// are what others are about.
			Needs:  []string{daemonAnswers, "process/config", "host/snapshotter", "kernel/overlay", "host/backing-filesystem"},
			Remedy: "# name a snapshotter that \"ctr plugins ls\" shows as ok, or give the host what its message asks for\nsystemctl restart containerd.service, once its KillMode is process",
			Run:    single(snapshotter),
		},
		{
			ID: "daemon/cri", Stage: Audit, Severity: Required,
			Why:    "Without its CRI plugin the daemon runs, and a kubelet sees only \"unknown service runtime.v1.RuntimeService\".",
			Source: "containerd docs/cri/installation.md; containerd issue 5304",
			Needs: []string{
				daemonAnswers, "process/config", "config/cri-enabled", "config/mirrors", "config/cni-bin-dirs", "config/default-runtime", "daemon/snapshotter",
			},
			Remedy: "# correct what the plugin's message names\nsystemctl restart containerd.service, once its KillMode is process",
			Run:    single(cri),
		},
		{
			ID: "daemon/plugins", Stage: Audit, Severity: Recommended,
			Why:    "A plugin that failed to start is missing without a word until somebody needs it.",
			Source: "containerd docs/PLUGINS.md, ctr plugins ls",
			Needs:  []string{daemonAnswers},
			Remedy: "ctr plugins ls -d",
			Run:    failedPlugins,
		},
		{
			ID: "daemon/deprecations", Stage: Audit, Severity: Recommended,
			Why:    "What the daemon warns of works until the release that drops it, and then the upgrade breaks the node.",
			Source: "containerd RELEASES.md, Deprecated features; ctr deprecations list",
			Needs:  []string{daemonAnswers},
			Remedy: "ctr deprecations list",
			Run:    deprecations,
		},
		{
			ID: "daemon/support", Stage: Audit, Severity: Recommended,
			Why:    "A release past its end of life gets no security fixes, and one that is not on Kubernetes's matrix is tested by nobody.",
			Source: "containerd RELEASES.md, Current State of Releases and Kubernetes Support",
			Remedy: "# name a supported release in the profile, and apply it",
			Run:    supported,
		},
		{
			ID: "daemon/socket", Stage: Audit, Severity: Recommended,
			Why:    "Whoever may write to the daemon's socket starts containers as root, and so is root on the node.",
			Source: "unix(7), Pathname socket ownership and permissions; containerd docs/ops.md",
			Needs:  []string{NeedProcess},
			Remedy: "chown root:root /run/containerd/containerd.sock\nchmod 0660 /run/containerd/containerd.sock",
			Run:    sockets,
		},
		{
			ID: "daemon/tasks", Stage: Audit, Severity: Recommended,
			Why:    "A task that ended and was never deleted, or whose shim does not answer, keeps its shim, its mounts and its pod's name.",
			Source: "containerd docs/runtime-v2.md; containerd issue 4857",
			Needs:  []string{daemonAnswers},
			Remedy: "ctr -n NAMESPACE tasks rm -f ID",
			Run:    leftTasks,
		},
	}
}

// ctr is how the daemon's own client is called for a namespace.
func (n *Node) ctr(namespace string) string {
	s := "ctr"
	if a := n.Address(); a != defaultAddress {
		s += " -a " + quote(a)
	}
	return s + " -n " + namespace
}

// orDefault is a place of the config, or who decides where no file does.
func orDefault(p configtoml.Place) string {
	if p == (configtoml.Place{}) {
		return "containerd's default"
	}
	return p.String()
}

func answers(_ context.Context, n *Node) Result {
	address, place := n.Address(), configtoml.Place{}
	if c, err := n.Config(); err == nil {
		_, place = c.Address()
	}
	r := Result{Object: address, Place: orDefault(place)}
	_, err := n.Client()
	switch {
	case err == nil:
		r.Verdict, r.Observed = Pass, "answers"
	case errors.Is(err, fs.ErrPermission):
		r.Verdict, r.Observed = Unknown, "permission denied: only root may ask it"
	default:
		r.Verdict, r.Observed, r.Wanted = Fail, err.Error(), "an answer"
		r.Remedy = n.restartDaemon() + "\njournalctl -u containerd -b -n 50"
	}
	return r
}

// runningRelease is the running daemon's own version, as it says it and as a release.
func runningRelease(ctx context.Context, n *Node) (string, releases.Version, error) {
	c, err := n.Client()
	if err != nil {
		return "", releases.Version{}, err
	}
	text, err := remember(n, "daemon version", c.Version)
	if err != nil {
		return "", releases.Version{}, err
	}
	v, err := releases.ParseVersion(cutDistribution(strings.TrimPrefix(text, "v")))
	if err != nil {
		return "", releases.Version{}, fmt.Errorf("the daemon says it is %q: that is no version", text)
	}
	return text, v, nil
}

func runningVersion(ctx context.Context, n *Node) []Result {
	text, running, err := runningRelease(ctx, n)
	if err != nil {
		return unknown(err)
	}
	disk, from, err := n.Release()
	if err != nil {
		return unknown(err)
	}
	if disk == running || disk == (releases.Version{}) {
		return []Result{{Verdict: Pass, Observed: text, Note: "as " + from + " says"}}
	}
	r := Result{Verdict: Fail, Observed: text, Wanted: disk.String() + " (" + from + ")", Place: n.DaemonBinary(), Remedy: n.restartDaemon()}
	if !strings.HasSuffix(from, " --version") {
		r.Remedy = n.reapply(false) + "\n" + n.restartDaemon()
	}
	return []Result{r}
}

func (n *Node) plugins() ([]daemon.Plugin, error) {
	return remember(n, "plugins", func(ctx context.Context) ([]daemon.Plugin, error) {
		c, err := n.Client()
		if err != nil {
			return nil, err
		}
		return c.Plugins(ctx)
	})
}

// fault says what is wrong with a plugin; "" is nothing.
func pluginFault(p *daemon.Plugin) string {
	switch {
	case p == nil:
		return "not loaded"
	case p.State == daemon.StateSkip:
		return "skipped: " + strings.TrimSuffix(p.Err, ": skip plugin")
	case p.State != daemon.StateOK:
		return p.Err
	}
	return ""
}

func snapshotter(_ context.Context, n *Node) Result {
	c, err := n.Config()
	if err != nil {
		return unknown(err)[0]
	}
	plugins, err := n.plugins()
	if err != nil {
		return unknown(err)[0]
	}
	name, place := c.Snapshotter()
	need := daemon.SnapshotterNeed(name)
	r := Result{Object: name, Place: orDefault(place), Wanted: "ok"}
	if r.Observed = pluginFault(need.Of(plugins)); r.Observed == "" {
		r.Verdict, r.Observed = Pass, "ok"
		return r
	}
	r.Verdict = Fail
	var good []string
	for _, p := range plugins {
		if p.Type == need.Type && p.State == daemon.StateOK {
			good = append(good, p.ID)
		}
	}
	slices.Sort(good)
	r.Note = "ok here: " + strings.Join(good, ", ")
	for _, p := range c.ProxyPlugins() {
		if p.Name == name {
			r.Note = fmt.Sprintf("%s is a plugin of another process, which should listen at %s; %s", name, p.Address, r.Note)
		}
	}
	if usual := "overlayfs"; place.Line > 0 && slices.Contains(good, usual) {
		r.Remedy = n.fixConfig(place.File, "containerd.snapshotter", n.setValue(place, "snapshotter", tomlText(usual)))
	}
	return r
}

func cri(ctx context.Context, n *Node) Result {
	if c, err := n.Config(); err == nil && len(c.DisabledCRI()) > 0 {
		return skip("CRI is off (%s)", c.DisabledCRI()[0].Place)[0]
	}
	plugins, err := n.plugins()
	if err != nil {
		return unknown(err)[0]
	}
	_, running, err := runningRelease(ctx, n)
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{Verdict: Pass, Wanted: "ok", Place: n.ConfigPath()}
	var names, also []string
	for _, need := range daemon.CRINeeds(running.String(), plugins) {
		names = append(names, need.Name())
		fault := pluginFault(need.Of(plugins))
		switch {
		case fault == "":
		case r.Verdict == Pass:
			// The first is the cause of the others, which are built on it.
			r.Verdict, r.Object, r.Observed = Fail, need.Name(), fault
		default:
			also = append(also, need.Name())
		}
	}
	switch {
	case r.Verdict == Pass:
		r.Observed = strings.Join(names, ", ") + " ok"
	case len(also) > 0:
		r.Note = "with it " + strings.Join(also, ", ")
	}
	if r.Verdict == Fail {
		r.Remedy = "# correct what the message names, in " + n.ConfigPath() + " or on the host\n" + n.restartDaemon()
	}
	return r
}

func failedPlugins(ctx context.Context, n *Node) []Result {
	plugins, err := n.plugins()
	if err != nil {
		return unknown(err)
	}
	_, running, err := runningRelease(ctx, n)
	if err != nil {
		return unknown(err)
	}
	// Those of other checks.
	known := daemon.CRINeeds(running.String(), plugins)
	if c, err := n.Config(); err == nil {
		name, _ := c.Snapshotter()
		known = append(known, daemon.SnapshotterNeed(name))
	}
	var faults []Result
	skipped := 0
	for _, p := range plugins {
		need := daemon.PluginNeed{Type: p.Type, ID: p.ID}
		if slices.ContainsFunc(known, func(k daemon.PluginNeed) bool { return k.Name() == need.Name() }) {
			continue
		}
		switch {
		case p.State == daemon.StateError && (strings.Contains(p.Err, "unable to load CRI ") || strings.Contains(p.Err, "snapshotter") && strings.Contains(p.Err, "not found")):
			// It only follows from what daemon/cri and daemon/snapshotter are about.
		case p.State == daemon.StateSkip, strings.HasSuffix(p.Err, "devmapper not configured"): // 1.6 calls it an error
			skipped++
		case p.State == daemon.StateError:
			faults = append(faults, Result{
				Verdict: Warn, Object: need.Name(), Observed: p.Err, Wanted: "ok",
				Remedy: "# correct what the message names, or add it to disabled_plugins in " + n.ConfigPath() + "\n" + n.restartDaemon(),
			})
		}
	}
	return orPass(faults, "%d plugins, none in error, %d not needed here", len(plugins), skipped)
}

func deprecations(ctx context.Context, n *Node) []Result {
	text, running, err := runningRelease(ctx, n)
	if err != nil {
		return unknown(err)
	}
	if !running.AtLeast(1, 7, 12) && (running.Line() != "1.6" || running.Patch < 27) {
		return skip("containerd %s does not keep such warnings", text)
	}
	c, err := n.Client()
	if err != nil {
		return unknown(err)
	}
	all, err := c.Deprecations(ctx)
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	for _, d := range all {
		faults = append(faults, Result{
			Verdict: Warn, Object: strings.TrimPrefix(d.ID, "io.containerd.deprecation/"), Observed: d.Message, Wanted: "not used",
			Note: "last used " + d.Last.UTC().Format("2006-01-02 15:04:05 MST"),
		})
	}
	return orPass(faults, "no warnings")
}

func supported(ctx context.Context, n *Node) []Result {
	_, v, err := runningRelease(ctx, n)
	if err != nil {
		v, _, err = n.Release()
	}
	if err != nil {
		return unknown(err)
	}
	if v == (releases.Version{}) {
		return skip("no containerd here")
	}
	var faults []Result
	if note, ended := releases.EndOfLife(v, n.Host.Now()); ended {
		faults = append(faults, Result{
			Verdict: Warn, Object: "upstream", Observed: note, Wanted: "a release with support",
			Place: n.DaemonBinary(), Note: "a distribution may keep it up by itself",
		})
	}
	kubernetes := ""
	if n.Spec != nil {
		kubernetes = n.Spec.Kubernetes
	}
	if kubernetes == "" {
		if k, err := n.Kubelet(); err == nil && k != nil {
			if parts := strings.SplitN(strings.TrimPrefix(k.Version, "v"), ".", 3); len(parts) >= 2 {
				kubernetes = parts[0] + "." + parts[1]
			}
		}
	}
	if kubernetes == "" {
		return orPass(faults, "containerd %s is supported", v.Line())
	}
	note, ok := releases.SupportedBy(kubernetes, v)
	if !ok {
		faults = append(faults, Result{Verdict: Warn, Object: "Kubernetes " + kubernetes, Observed: note, Wanted: "a tested pair", Place: n.DaemonBinary()})
	}
	if note == "" {
		note = fmt.Sprintf("containerd %s is supported, and tested with Kubernetes %s", v.Line(), kubernetes)
	}
	return orPass(faults, "%s", note)
}

func sockets(_ context.Context, n *Node) []Result {
	c, err := n.Config()
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	var seen []string
	for _, of := range []func() (string, configtoml.Place){c.Address, c.TTRPCAddress} {
		address, place := of()
		if address == "" || slices.Contains(seen, address) {
			continue
		}
		fi, err := n.Host.Root.Stat(address)
		switch {
		case absent(err):
			continue // daemon/answers is about the first; the other comes with the first shim
		case err != nil:
			faults = append(faults, Result{Verdict: Unknown, Object: address, Observed: err.Error()})
			continue
		}
		seen = append(seen, address)
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			faults = append(faults, Result{Verdict: Unknown, Object: address, Observed: "its owner cannot be told here"})
			continue
		}
		if observed := socketFault(fi.Mode(), st.Uid, st.Gid); observed != "" {
			faults = append(faults, Result{
				Verdict: Warn, Object: address, Observed: observed, Wanted: "srw-rw---- of root:root", Place: orDefault(place),
				Remedy: fmt.Sprintf("chown root:root %[1]s\nchmod 0660 %[1]s", quote(address)),
				Note:   "uid and gid of its section in " + n.ConfigPath() + " set the owner again at the next start",
			})
		}
	}
	return orPass(faults, "only root may write to %s", strings.Join(seen, " and "))
}

// socketFault says who else than root may connect to a socket, which takes the right to
// write (unix(7)); "" is nobody.
func socketFault(mode fs.FileMode, uid, gid uint32) string {
	var who []string
	if mode&0o002 != 0 {
		who = append(who, "everybody")
	}
	if mode&0o020 != 0 && gid != 0 {
		who = append(who, fmt.Sprintf("group %d", gid))
	}
	if mode&0o200 != 0 && uid != 0 {
		who = append(who, fmt.Sprintf("user %d", uid))
	}
	if len(who) == 0 {
		return ""
	}
	return fmt.Sprintf("%s may write to it (%#o)", strings.Join(who, " and "), mode.Perm())
}

func leftTasks(ctx context.Context, n *Node) []Result {
	c, err := n.Client()
	if err != nil {
		return unknown(err)
	}
	all, err := c.Tasks(ctx)
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	for _, t := range all {
		r := Result{
			Verdict: Warn, Object: path.Join(t.Namespace, t.ID), Wanted: "running",
			Remedy: fmt.Sprintf("%s tasks rm -f %s", n.ctr(t.Namespace), quote(t.ID)),
		}
		switch t.Status {
		case "stopped":
			r.Observed = "ended, and never deleted"
		case "unknown":
			r.Observed = "its shim does not answer"
		default:
			continue
		}
		faults = append(faults, r)
	}
	return orPass(faults, "%d tasks, all well", len(all))
}
