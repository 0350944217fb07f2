package install

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// kubernetes is the namespace that CRI keeps its containers in.
const kubernetes = "k8s.io"

// discipline refuses what running containers do not survive, unless it is allowed. The
// daemon is asked only by a plan that has something of the kind.
func (d *differ) discipline(ctx context.Context) error {
	if !d.plan.live || d.opt.Daemon == nil {
		return nil
	}
	after, err := d.plan.outlook(d.root)
	if err != nil {
		return err
	}
	unit := cmp.Or(d.state.Daemon.Unit, defaultUnit)
	restarts := slices.ContainsFunc(d.plan.Items, func(it Item) bool {
		return it.Action == Restart && it.Kind == KindUnit && it.Path == unit
	})
	old, now, err := d.facts(after)
	if err != nil {
		return err
	}
	changes := d.moves(old, now)
	var older *Item
	for i := range d.plan.Items {
		it := &d.plan.Items[i]
		if it.Kind == KindArtifact && it.Path == "containerd" && it.Changes() && goesBack(it.OldVersion, it.NewVersion) {
			older = it
		}
	}
	if !restarts && len(changes) == 0 && older == nil {
		return nil
	}
	l, err := look(ctx, d.root, d.opt.Daemon, d.state.Daemon, d.lastAddress(old))
	if err != nil {
		return err
	}
	if restarts {
		if err := d.restart(after, unit, l); err != nil {
			return err
		}
	}
	for _, c := range changes {
		tasks := slices.DeleteFunc(slices.Clone(l.tasks), func(t daemon.Task) bool { return c.pods && t.Namespace != kubernetes })
		if len(tasks) > 0 {
			d.refuseOrWarn(d.opt.WithRunningPods, Item{
				Kind: KindUnit, Path: unit, Origin: c.origin, Drain: l.drainable(tasks),
				Reason: fmt.Sprintf("%s would change from %s to %s under %s: %s", c.what, c.old, c.now, l.describe(tasks), c.then),
				Hint:   "drain the node and stop its pods first, or keep the old value; --with-running-pods goes on all the same",
			})
		}
	}
	if older != nil {
		d.goBack(older, l)
	}
	return nil
}

// refuseOrWarn adds a refusal for the sake of what runs here, or what it says as a warning
// where it was allowed.
func (d *differ) refuseOrWarn(allowed bool, it Item) {
	if allowed {
		d.plan.Warnings.Warnf(it.Origin, "", "%s: %s", it.Path, it.Reason)
		return
	}
	it.Action = Refuse
	d.add(it)
}

// restart looks at the KillMode and Delegate that the stop will follow: systemd has read
// the new unit by then, so that what they are now does not count.
func (d *differ) restart(after outlook, unit string, l looked) error {
	if len(l.tasks) == 0 {
		return nil
	}
	fragments, err := after.fragments(unit)
	if err != nil {
		return err
	}
	file := path.Join(unitDir, unit)
	if len(fragments) > 0 && path.Base(fragments[0].Path) == unit {
		file = fragments[0].Path
	}
	if mode, from := systemd.KillMode(fragments); systemd.KillsContainers(mode) {
		it := Item{Kind: KindUnit, Path: unit, Drain: l.drainable(l.tasks), Reason: fmt.Sprintf("a restart would kill %s: %s", l.describe(l.tasks), blame("KillMode", mode, from.Path, file))}
		it.Hint = fmt.Sprintf("remove KillMode from %s or set it to process there; --force-restart kills them", cmp.Or(from.Path, file))
		if from.Path == "" {
			it.Hint = fmt.Sprintf("set KillMode=process in %s; --force-restart kills them", file)
		}
		if f := d.stateFile(cmp.Or(from.Path, file)); f != nil {
			it.Origin = f.Origin
			it.Hint = "set systemd.killMode: process in the profile; --force-restart kills them"
		}
		d.refuseOrWarn(d.opt.ForceRestart, it)
	}
	if on, from := systemd.Delegate(fragments); !on {
		origin, hint := diag.Origin{File: cmp.Or(from.Path, file)}, "set Delegate=yes there"
		if f := d.stateFile(cmp.Or(from.Path, file)); f != nil {
			origin, hint = f.Origin, "set systemd.delegate: true in the profile"
		}
		// The containers live (systemd.resource-control(5) has no kill in it), but no
		// longer in cgroups that are theirs alone.
		d.plan.Warnings.Warnf(origin, hint, "%s: %s, so that systemd may change the limits of %s and move their processes", unit, blame("Delegate", "no", from.Path, file), l.describe(l.tasks))
	}
	return nil
}

func (d *differ) stateFile(p string) *desired.File {
	if i := slices.IndexFunc(d.state.Files, func(f desired.File) bool { return f.Path == p }); i >= 0 {
		return &d.state.Files[i]
	}
	return nil
}

// blame says which file makes a setting what it is.
func blame(key, value, from, file string) string {
	if from == "" {
		return fmt.Sprintf("%s=%s is systemd's default, and %s sets no other", key, value, file)
	}
	return fmt.Sprintf("%s=%s comes from %s", key, value, from)
}

// goBack refuses an older minor under containers that the newer one made.
func (d *differ) goBack(it *Item, l looked) {
	since := d.receipt.installed("containerd").since(d.receipt)
	reason := downgrade(it.OldVersion, it.NewVersion, since, l.containers)
	drain := l.err == nil && !slices.ContainsFunc(l.containers, func(c daemon.Container) bool {
		return c.Namespace != kubernetes && !c.Created.Before(since)
	})
	switch {
	case l.err == nil:
	case len(l.tasks) > 0:
		reason = fmt.Sprintf("containerd does not answer (%v), and %s run: whether %s made any of them cannot be told, and %s may not manage those",
			l.err, l.describe(l.tasks), it.OldVersion, it.NewVersion)
	default:
		d.plan.Warnings.Warnf(it.Origin, "", "containerd does not answer (%v): whether %s made containers that %s cannot manage cannot be told", l.err, it.OldVersion, it.NewVersion)
	}
	if reason != "" {
		d.refuseOrWarn(d.opt.WithRunningPods, Item{
			Kind: KindArtifact, Path: it.Path, Origin: it.Origin, Drain: drain, Reason: reason,
			Hint: "drain the node and remove its pods first; --with-running-pods goes on all the same",
		})
	}
}

// since is when the minor of an installed release came; a receipt of an older nodeprep
// knows only when it was written.
func (i *Installed) since(r *Receipt) time.Time {
	switch {
	case i != nil && !i.Time.IsZero():
		return i.Time
	case r != nil:
		return r.Time
	}
	return time.Time{}
}

// downgrade says why one must not go from one version to another, "" when one may: to an
// older minor, after containers were made since the newer one came. containerd supports
// no downgrade: what the newer one writes into its database and the shims' directories
// the older one may not understand (containerd's RELEASES.md, "Upgrade Path").
func downgrade(from, to string, since time.Time, containers []daemon.Container) (refusal string) {
	if !goesBack(from, to) {
		return ""
	}
	young := slices.DeleteFunc(slices.Clone(containers), func(c daemon.Container) bool { return c.Created.Before(since) })
	if len(young) == 0 {
		return ""
	}
	return fmt.Sprintf("goes back from %s to %s, and %s made %s since it came on %s: %s may not find or manage what %s wrote about them",
		from, to, from, describe(young), since.UTC().Format("2006-01-02 15:04 MST"), to, from)
}

// goesBack holds for a lower major or minor.
func goesBack(from, to string) bool {
	a, okA := minor(from)
	b, okB := minor(to)
	return okA && okB && slices.Compare(b[:], a[:]) < 0
}

// sameMinor holds for two versions of one release line: 1.7.2 and 1.7.24.
func sameMinor(a, b string) bool {
	x, okX := minor(a)
	y, okY := minor(b)
	return okX && okY && x == y
}

// minor is the major and minor of a version; distributions add to the rest, as in
// 1.6.20~ds1.
func minor(version string) (v [2]int, ok bool) {
	parts := strings.SplitN(strings.TrimPrefix(version, "v"), ".", 3)
	if len(parts) < 2 {
		return v, false
	}
	for i := range v {
		n, err := strconv.Atoi(parts[i])
		if err != nil {
			return v, false
		}
		v[i] = n
	}
	return v, true
}

// looked is what runs under a daemon.
type looked struct {
	tasks      []daemon.Task // those that have not ended
	containers []daemon.Container
	// err is why the daemon did not answer; tasks are then what its shims' command lines
	// tell, which is a pod's sandbox for a whole pod.
	err error
}

// look asks the daemon what runs, at the first address where one answers: where it is to
// be, or where it was. A daemon that is down leaves shims, which proc(5) shows.
func look(ctx context.Context, root *host.Root, asked Daemon, want desired.Daemon, was ...string) (looked, error) {
	var l looked
	addresses := []string{want.Address}
	for _, a := range was {
		if a != "" && !slices.Contains(addresses, a) {
			addresses = append(addresses, a)
		}
	}
	for _, a := range addresses {
		if a == "" {
			continue
		}
		at := want
		at.Address = a
		var err error
		if l.tasks, err = asked.Tasks(ctx, at); err == nil {
			l.containers, err = asked.Containers(ctx, at)
		}
		if err == nil {
			l.err = nil
			l.tasks = slices.DeleteFunc(l.tasks, func(t daemon.Task) bool { return t.Status == "stopped" })
			return l, nil
		}
		if ctx.Err() != nil {
			return l, context.Cause(ctx)
		}
		l.err = cmp.Or(l.err, err)
	}
	l.tasks, l.containers = nil, nil
	for _, a := range addresses {
		if a == "" {
			continue
		}
		shims, err := daemon.Shims(filepath.Join(root.Dir(), "proc"), a)
		if err != nil && !isAbsent(err) {
			return l, err
		}
		for _, s := range shims {
			if !slices.ContainsFunc(l.tasks, func(t daemon.Task) bool { return t.Shim == s.Shim }) {
				l.tasks = append(l.tasks, s)
			}
		}
	}
	return l, nil
}

// drainable holds where nothing but pods is in the way, and a daemon answers that can
// remove them: no drain ends what others started.
func (l looked) drainable(tasks []daemon.Task) bool {
	return l.err == nil && !slices.ContainsFunc(tasks, func(t daemon.Task) bool { return t.Namespace != kubernetes })
}

// describe says how many containers tasks are, and whose.
func (l looked) describe(tasks []daemon.Task) string {
	if l.err != nil {
		return fmt.Sprintf("an unknown number of containers (%d shims run; containerd does not answer)", len(tasks))
	}
	return describe(l.of(tasks))
}

// of are the containers of tasks; for one that is not listed its ID must do.
func (l looked) of(tasks []daemon.Task) []daemon.Container {
	var out []daemon.Container
	for _, t := range tasks {
		c := daemon.Container{Namespace: t.Namespace, ID: t.ID, Name: t.ID}
		if i := slices.IndexFunc(l.containers, func(c daemon.Container) bool { return c.Namespace == t.Namespace && c.ID == t.ID }); i >= 0 {
			c = l.containers[i]
		}
		out = append(out, c)
	}
	return out
}

// describe is e.g. "3 containers (pods default/web, kube-system/proxy; build-1)". A
// pod's own container counts only where it is all there is of the pod.
func describe(containers []daemon.Container) string {
	const most = 5
	pods, inside := map[string]int{}, map[string]int{}
	var others []string
	n := 0
	for _, c := range containers {
		parts := strings.Split(c.Name, "/")
		switch {
		case c.Sandbox:
			pods[c.Name] += 0
		case len(parts) == 3:
			pods[parts[0]+"/"+parts[1]]++
			inside[parts[0]+"/"+parts[1]]++
			n++
		default:
			others = append(others, c.Name)
			n++
		}
	}
	for p := range pods {
		if inside[p] == 0 {
			n++
		}
	}
	list := func(names []string) string {
		if len(names) > most {
			names = append(slices.Clone(names[:most]), fmt.Sprintf("%d more", len(names)-most))
		}
		return strings.Join(names, ", ")
	}
	var whose []string
	if len(pods) > 0 {
		whose = append(whose, plural(len(pods), "pod", "pods")+" "+list(slices.Sorted(maps.Keys(pods))))
	}
	if len(others) > 0 {
		slices.Sort(others)
		whose = append(whose, list(others))
	}
	return fmt.Sprintf("%d %s (%s)", n, plural(n, "container", "containers"), strings.Join(whose, "; "))
}

func plural(n int, one, more string) string {
	if n == 1 {
		return one
	}
	return more
}

// taskNames lists tasks for people: by pod and container where the kubelet made them, a
// pod's own container only where it is all there is of the pod.
func taskNames(ctx context.Context, asked Daemon, at desired.Daemon, tasks []daemon.Task) []string {
	l := looked{tasks: tasks}
	// A list with IDs in place of names is still one.
	l.containers, _ = asked.Containers(ctx, at)
	all := l.of(tasks)
	var out []string
	for i, c := range all {
		if c.Sandbox && slices.ContainsFunc(all, func(o daemon.Container) bool { return strings.HasPrefix(o.Name, c.Name+"/") }) {
			continue
		}
		name := c.Name
		if name == c.ID {
			name = c.Namespace + "/" + c.ID
		}
		if s := tasks[i].Status; s != "" && s != "running" {
			name += " (" + s + ")"
		}
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// facts are what a daemon's config says that running containers hang on.
type facts struct {
	root, state, address, snapshotter string
	// cgroups is the cgroup driver of each runtime that is runc's: systemd or cgroupfs.
	cgroups map[string]string
}

// lastAddress is where the daemon that runs now is likely to listen.
func (d *differ) lastAddress(old *facts) string {
	switch {
	case d.receipt != nil && d.receipt.Daemon.Address != "":
		return d.receipt.Daemon.Address
	case old != nil:
		return old.address
	}
	return ""
}

// facts are what the config on the host comes to and what that of the plan does; both
// are nil where the config stays, or cannot be read as it is.
func (d *differ) facts(after outlook) (old, now *facts, err error) {
	want := d.state.Daemon
	if want.ConfigPath == "" {
		return nil, nil, nil
	}
	real, err := d.root.Locate(want.ConfigPath)
	if err != nil {
		return nil, nil, err
	}
	if _, planned := after.over[real]; !planned {
		return nil, nil, nil
	}
	version := ""
	if d.receipt != nil {
		version = d.receipt.Daemon.Version
	}
	content, _, err := outlook{root: d.root}.read(want.ConfigPath)
	if err != nil {
		return nil, nil, err
	}
	a, err := daemonFacts(content, version)
	if err != nil {
		// Nothing runs with a config that nobody can read; what runs has an earlier one.
		d.plan.Warnings.Warnf(diag.Origin{File: want.ConfigPath}, "", "cannot be read (%v), so that it cannot be told whether pods that run survive the change", err)
		return nil, nil, nil
	}
	if content, _, err = after.read(want.ConfigPath); err != nil {
		return nil, nil, err
	}
	b, err := daemonFacts(content, want.Version)
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", want.ConfigPath, err)
	}
	return &a, &b, nil
}

// move is a setting whose change running containers do not survive.
type move struct {
	what, old, now string
	then           string // what would happen
	pods           bool   // it concerns what CRI started alone
	origin         diag.Origin
}

// moves compares what the config says on the host with what it will say.
func (d *differ) moves(old, now *facts) []move {
	if old == nil || now == nil {
		return nil
	}
	var out []move
	var origin diag.Origin
	if f := d.stateFile(d.state.Daemon.ConfigPath); f != nil {
		origin = f.Origin
	}
	add := func(what, old, now, then string, pods bool) {
		if old != now {
			out = append(out, move{what, old, now, then, pods, origin})
		}
	}
	place := func(what, old, now, then string) {
		a, errA := d.root.Resolve(old)
		b, errB := d.root.Resolve(now)
		if errA != nil || errB != nil || a != b {
			add(what, path.Clean(old), path.Clean(now), then, false)
		}
	}
	place("root", old.root, now.root, "the daemon would know neither them nor any image, and what is in the old one would be left behind")
	place("state", old.state, now.state, "the daemon would not find their shims, and nobody could stop them any more")
	place("address", old.address, now.address, "their shims report to the old socket, so that their exits would be lost, and the kubelet asks there too")
	add("snapshotter", old.snapshotter, now.snapshotter, "no image is unpacked in the new one, so that a pod that starts again waits for a pull, and fails without a registry", true)
	for _, name := range slices.Sorted(maps.Keys(old.cgroups)) {
		if is, there := now.cgroups[name]; there {
			add("the cgroup driver of runtime "+name, old.cgroups[name], is, "they stay in cgroups of the old driver, which neither the kubelet nor the daemon would look after, and pods cannot be stopped or started cleanly", true)
		}
	}
	return out
}

// daemonFacts reads a config.toml as a containerd of that version does, "" for one that
// is not known; no content is the defaults. What its imports say is not looked at: that
// of conf.d goes for the old and the new file alike.
//
// The sources are containerd's docs/man/containerd-config.toml.5.md, the migrations from
// schema to schema in its plugins/cri/{images,runtime}/plugin.go and
// cmd/containerd/server/config, and the output of config default of each release.
func daemonFacts(content []byte, version string) (facts, error) {
	var c struct {
		Version int    `toml:"version"`
		Root    string `toml:"root"`
		State   string `toml:"state"`
		GRPC    struct {
			Address string `toml:"address"`
		} `toml:"grpc"`
		Plugins map[string]any `toml:"plugins"`
	}
	if err := toml.Unmarshal(content, &c); err != nil {
		return facts{}, err
	}
	release, known := minor(version)
	if !known {
		// The newest schema that a release knows tells which ones it may be.
		release = [2]int{1, 7}
		if c.Version >= 3 {
			release = [2]int{2, 3}
		}
	}
	two := release[0] >= 2
	plugin := func(name string) map[string]any { t, _ := c.Plugins[name].(map[string]any); return t }

	// The one CRI plugin of 1.x, and from 2.0 on those that it is migrated to.
	whole := plugin("io.containerd.grpc.v1.cri")
	if c.Version < 2 {
		// Schema 1 has short names; 2.x, which migrates, takes full ones too.
		if short := plugin("cri"); short != nil || !two {
			whole = short
		}
	}
	images, runtime := plugin("io.containerd.cri.v1.images"), plugin("io.containerd.cri.v1.runtime")
	if !two {
		images, runtime = nil, nil
	}
	if two && c.Version >= 3 && (c.Version >= 4 || release[0] == 2 && release[1] < 3) {
		whole = nil // not migrated any more: only schemas below the release's own are
	}

	out := facts{root: cmp.Or(c.Root, "/var/lib/containerd"), state: cmp.Or(c.State, "/run/containerd"), snapshotter: "overlayfs", cgroups: map[string]string{"runc": "cgroupfs"}}
	// In schema 4 the top-level table is read and not applied.
	server := text(plugin("io.containerd.server.v1.grpc"), "address")
	if c.Version < 4 {
		server = cmp.Or(c.GRPC.Address, server)
	}
	out.address = cmp.Or(server, "/run/containerd/containerd.sock")

	runtimes := table(whole, "containerd", "runtimes")
	if s := text(table(whole, "containerd"), "snapshotter"); s != "" && !(two && runtimes == nil) {
		// The migration to schema 3 stops short of it where no runtime is named.
		out.snapshotter = s
	}
	out.snapshotter = cmp.Or(text(images, "snapshotter"), out.snapshotter)
	for _, all := range []map[string]any{runtimes, table(runtime, "containerd", "runtimes")} {
		for name := range all {
			rt := table(all, name)
			if t := text(rt, "runtime_type"); t != "" && !strings.HasPrefix(t, "io.containerd.runc.") {
				delete(out.cgroups, name)
				continue
			}
			out.cgroups[name] = "cgroupfs"
			if on, _ := table(rt, "options")["SystemdCgroup"].(bool); on {
				out.cgroups[name] = "systemd"
			}
		}
	}
	return out, nil
}

// table is a table inside another, nil where there is none.
func table(t map[string]any, names ...string) map[string]any {
	for _, n := range names {
		t, _ = t[n].(map[string]any)
	}
	return t
}

func text(t map[string]any, name string) string {
	s, _ := t[name].(string)
	return s
}
