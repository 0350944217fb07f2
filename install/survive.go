package install

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// guard keeps watch over containers while their daemon is away. Without a Daemon to ask
// it does nothing.
type guard struct {
	h   *host.Host
	opt DiffOptions
	d   desired.Daemon
	was []string

	unit   string
	before looked
	watch  ShimWatch
	from   time.Time
}

// newGuard returns a guard for a daemon as it will be; was are addresses at which it may
// answer until then.
func newGuard(h *host.Host, opt DiffOptions, d desired.Daemon, was ...string) *guard {
	return &guard{h: h, opt: opt, d: d, was: was}
}

// check is called after the last daemon-reload and right before the daemon's unit is
// stopped or restarted. It fails if that would kill containers which it must not kill,
// and else watches their shims from now on.
func (g *guard) check(ctx context.Context, unit string) error {
	why, err := g.kills(ctx, unit)
	if err == nil && why != "" {
		err = fmt.Errorf("restart %s: it would kill %s; set KillMode=process there, or allow it with --force-restart", g.unit, why)
	}
	return err
}

// kills is check for who goes on: it says what a stop would kill and why, "" for nothing.
func (g *guard) kills(ctx context.Context, unit string) (why string, err error) {
	if g.opt.Daemon == nil || unit != cmp.Or(g.d.Unit, defaultUnit) {
		return "", nil
	}
	g.close()
	g.unit = unit
	if g.before, err = look(ctx, g.h.Root, g.opt.Daemon, g.d, g.was...); err != nil {
		return "", err
	}
	if len(g.before.tasks) == 0 {
		return "", nil
	}
	if why, err = g.harm(ctx); err != nil || why != "" {
		return why, err
	}
	// The clock of the watch's own notes.
	g.from = time.Now()
	g.watch, err = g.opt.Daemon.Watch(g.before.tasks)
	return "", err
}

// harm reads what systemd goes by now: something may have changed since the plan.
func (g *guard) harm(ctx context.Context) (string, error) {
	if g.opt.Services == nil || g.opt.ForceRestart {
		return "", nil
	}
	p, err := g.opt.Services.Properties(ctx, g.unit)
	if err != nil {
		return "", err
	}
	// Only a unit with processes of its own has something to kill.
	if p.KillMode == "" || !systemd.KillsContainers(p.KillMode) || p.ActiveState == "inactive" || p.ActiveState == "failed" {
		return "", nil
	}
	var fragments []systemd.Fragment
	for _, file := range append([]string{p.FragmentPath}, p.DropInPaths...) {
		if file == "" {
			continue
		}
		content, err := g.h.Root.ReadFile(file)
		if err != nil && !isAbsent(err) {
			return "", fmt.Errorf("read %s: %w", file, err)
		}
		fragments = append(fragments, systemd.Fragment{Path: file, Content: content})
	}
	why := fmt.Sprintf("KillMode=%s is in force, and no file of the unit says so", p.KillMode)
	if mode, from := systemd.KillMode(fragments); mode == p.KillMode {
		why = blame("KillMode", mode, from.Path, cmp.Or(p.FragmentPath, g.unit))
	}
	return g.before.describe(g.before.tasks) + ": " + why, nil
}

// survived is called after the daemon serves again, with the time since when it does.
// Every task that ran at the check still runs, or has ended with somebody there to note
// its exit, which makes a note. The error names those whose shim vanished while there
// was no daemon; with ForceRestart that is a note too.
func (g *guard) survived(ctx context.Context, served time.Time) (notes []string, err error) {
	if g.watch == nil {
		return nil, nil
	}
	now, err := g.opt.Daemon.Tasks(ctx, g.d)
	if err != nil {
		return nil, fmt.Errorf("see whether containers survived the restart of %s: %w", g.unit, err)
	}
	containers, err := g.opt.Daemon.Containers(ctx, g.d)
	if err != nil {
		return nil, fmt.Errorf("see whether containers survived the restart of %s: %w", g.unit, err)
	}
	// From its start on the new daemon looks after shims, and ends those of containers
	// that ended meanwhile, before it serves.
	until := served
	if g.opt.Services != nil {
		p, err := g.opt.Services.Properties(ctx, g.unit)
		if err != nil {
			return nil, err
		}
		if p.MainStart.After(g.from) && p.MainStart.Before(until) {
			until = p.MainStart
		}
	}
	vanished := g.watch.Ended(g.from, until)
	var lost []daemon.Task
	for _, was := range g.before.tasks {
		same := func(t daemon.Task) bool { return t.Namespace == was.Namespace && t.ID == was.ID }
		i := slices.IndexFunc(now, same)
		// Without the daemon the PIDs were not known.
		if i >= 0 && now[i].Status != "stopped" && (now[i].PID == was.PID || was.PID == 0) {
			continue
		}
		// An order takes the container away too; a crash leaves it.
		known := slices.ContainsFunc(containers, func(c daemon.Container) bool { return c.Namespace == was.Namespace && c.ID == was.ID })
		name := g.before.of([]daemon.Task{was})[0].Name
		switch {
		case i >= 0 && now[i].Status == "stopped":
			notes = append(notes, fmt.Sprintf("container %s ended by itself while %s was restarted; its exit is recorded", name, g.unit))
		case known && slices.ContainsFunc(vanished, same):
			lost = append(lost, was)
		default:
			notes = append(notes, fmt.Sprintf("container %s ended while %s was restarted, by itself or on somebody's order", name, g.unit))
		}
	}
	if len(lost) == 0 {
		return notes, nil
	}
	var names []string
	for i, c := range g.before.of(lost) {
		names = append(names, fmt.Sprintf("%s (shim %d)", c.Name, lost[i].Shim))
	}
	what := fmt.Sprintf("%d of %d tasks did not survive the restart of %s: %s", len(lost), len(g.before.tasks), g.unit, strings.Join(names, ", "))
	if g.opt.ForceRestart {
		return append(notes, what+"; --force-restart allowed it"), nil
	}
	return notes, fmt.Errorf("%s; their shims ended with no containerd there to note an exit: look at KillMode of the unit and for what killed them in the kernel's log", what)
}

// close ends the watch.
func (g *guard) close() {
	if g.watch != nil {
		g.watch.Close()
		g.watch = nil
	}
}
