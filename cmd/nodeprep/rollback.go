package main

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/internal/diag"
)

// rollbackOptions are rollback's flags.
type rollbackOptions struct {
	to     string // "" is the one before
	list   bool
	change changeFlags
}

// changeFlags are those of every verb that may replace files and restart containerd.
type changeFlags struct {
	adopt           bool
	forceRestart    bool
	withRunningPods bool
}

// generationsResult is the machine form of rollback --list.
type generationsResult struct {
	Root        string               `json:"root"`
	Generations []install.Generation `json:"generations"`
}

// changeResult is the machine form of rollback and uninstall.
type changeResult struct {
	Root       string              `json:"root"`
	Recovered  *install.Recovered  `json:"recovered,omitempty"`
	Changed    []planItem          `json:"changed"`
	Left       []planItem          `json:"left,omitempty"`
	Restarted  []string            `json:"restarted,omitempty"`
	Started    []string            `json:"started,omitempty"`
	Generation int                 `json:"generation"`
	Phases     []install.PhaseTime `json:"phases,omitempty"`
	Warnings   diag.List           `json:"warnings,omitempty"`
}

func (a *app) rollbackCommand() *cobra.Command {
	var o rollbackOptions
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Go back to the state before the last apply, or to an earlier one",
		Long: `rollback brings back the files, unit and binaries of the generation before the current one, or of the one named
with --to, as one transaction: it restarts only what that asks for, proves that the daemon of then works, and puts
everything back when it does not. The state it leaves becomes a generation of its own, so that it can be undone, too.
nodeprep itself, imported images and containerd's data stay as they are.`,
		Example: `  sudo nodeprep rollback --list
  sudo nodeprep rollback
  sudo nodeprep rollback --to 2
  nodeprep rollback --root /mnt/image`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.rollback(cmd.Context(), o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.to, "to", "", "the `GENERATION` to go back to, instead of the one before")
	f.BoolVar(&o.list, "list", false, "list the generations and change nothing")
	o.change.register(cmd)
	return cmd
}

func (c *changeFlags) register(cmd *cobra.Command) {
	f := cmd.Flags()
	f.BoolVar(&c.adopt, "adopt", false, "take over files that are not nodeprep's or were edited since; what they are now is kept")
	f.BoolVar(&c.forceRestart, "force-restart", false, "restart containerd even where that kills containers")
	f.BoolVar(&c.withRunningPods, "with-running-pods", false, "allow what running pods do not survive, such as another cgroup driver")
}

// options are the flags as install wants them.
func (c *changeFlags) options(s install.Services, d install.Daemon) install.DiffOptions {
	return install.DiffOptions{Adopt: c.adopt, ForceRestart: c.forceRestart, WithRunningPods: c.withRunningPods, Services: s, Daemon: d}
}

func (a *app) rollback(ctx context.Context, o rollbackOptions) error {
	to, err := strconv.Atoi(cmp.Or(o.to, "0"))
	if err != nil || o.to != "" && to < 1 {
		return usagef("--to %s: want the number of a generation; nodeprep rollback --list shows them", o.to)
	}
	if o.list && (o.to != "" || o.change != changeFlags{}) {
		return usagef("rollback --list changes nothing and takes no --to, --adopt, --force-restart or --with-running-pods")
	}
	t, err := a.openFor("rollback")
	if err != nil {
		return err
	}
	defer t.close()
	if o.list {
		return a.listGenerations(t)
	}
	if err := a.privileged(ctx); err != nil {
		return err
	}
	result := changeResult{Root: t.root.Dir(), Changed: []planItem{}}
	a.result = &result
	if result.Recovered, err = a.recoverFirst(ctx, t, o.change.withRunningPods); err != nil {
		return err
	}
	receipt, err := readReceipt(t.root)
	if err != nil {
		return err
	}
	if receipt == nil {
		return fmt.Errorf("roll back: %s has no receipt of nodeprep, so there is no generation to go back to", t.root.Dir())
	}
	result.Generation = receipt.Generation
	if to == receipt.Generation {
		if !a.structured {
			fmt.Fprintf(a.out, "nothing to do: generation %d is the current one\n", to)
		}
		return nil
	}
	if err := t.connect(ctx); err != nil {
		return err
	}
	diffing := o.change.options(t.services(), t.daemon())
	plan, err := install.DiffRollback(ctx, t.host, receipt, to, diffing)
	if err != nil {
		return err
	}
	done, err := a.carryOut(ctx, t, plan, diffing)
	result.fill(plan, done)
	if err != nil || a.structured {
		return err
	}
	a.printChanges(&result)
	if len(done.Changed) == 0 {
		fmt.Fprintf(a.out, "nothing to do: %s is as it was then\n", t.root.Dir())
		return nil
	}
	what := fmt.Sprintf("generation %d of %s", done.Generation, t.root.Dir())
	if to > 0 {
		what += fmt.Sprintf(", with what generation %d had", to)
	}
	a.printDone(done, what)
	return nil
}

// carryOut applies a plan of rollback or uninstall.
func (a *app) carryOut(ctx context.Context, t *target, plan *install.Plan, diffing install.DiffOptions) (*install.Result, error) {
	a.warn(plan.Warnings)
	progress := a.progress()
	done, err := install.Apply(ctx, t.host, plan, install.ApplyOptions{DiffOptions: diffing, Version: versionString(), Observer: progress})
	progress.finish()
	if done != nil {
		a.changed = a.changed || len(done.Changed) > 0
		a.warn(done.Warnings)
	}
	return done, err
}

// fill takes over what was done; done is nil when that was nothing.
func (r *changeResult) fill(plan *install.Plan, done *install.Result) {
	r.Warnings = plan.Warnings
	for _, it := range plan.Items {
		if it.Action == install.Leave {
			r.Left = append(r.Left, planItem{Item: it})
		}
	}
	if done == nil {
		return
	}
	for _, it := range done.Changed {
		r.Changed = append(r.Changed, planItem{Item: it, Diff: itemDiff(it)})
	}
	r.Restarted, r.Started, r.Generation, r.Phases = done.Restarted, done.Started, done.Generation, done.Phases
	r.Warnings = slices.Concat(r.Warnings, done.Warnings)
}

// printChanges lists what was done and what stays.
func (a *app) printChanges(r *changeResult) {
	c := a.paint(a.out)
	for _, it := range slices.Concat(r.Changed, r.Left) {
		printItem(a.out, c, it.Item)
	}
}

// printDone ends the text of a verb that changed the host.
func (a *app) printDone(done *install.Result, where string) {
	var total time.Duration
	for _, ph := range done.Phases {
		total += ph.Took
		fmt.Fprintf(a.out, "%-10s %8s\n", ph.Phase, ph.Took.Round(time.Millisecond))
	}
	fmt.Fprintf(a.out, "%s in %s: %s\n", a.paint(a.out).green("done"), total.Round(time.Millisecond), where)
}

func (a *app) listGenerations(t *target) error {
	receipt, err := readReceipt(t.root)
	if err != nil {
		return err
	}
	list, err := install.Generations(t.root, receipt)
	if err != nil {
		return err
	}
	a.result = generationsResult{Root: t.root.Dir(), Generations: append([]install.Generation{}, list...)}
	if a.structured {
		return nil
	}
	if len(list) == 0 {
		fmt.Fprintf(a.out, "no generations: %s has no receipt of nodeprep\n", t.root.Dir())
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "generation\tapplied\treleases\tprofile")
	for _, g := range list {
		mark := ""
		if g.Current {
			mark = " current"
		}
		fmt.Fprintf(w, "%d%s\t%s\t%s\t%s\n", g.Number, mark, g.Time.Local().Format(time.DateTime), versions(g.Artifacts), strings.Join(g.Profiles, ", "))
	}
	return w.Flush()
}

// versions are the releases of a generation, in a line.
func versions(list []install.Installed) string {
	var out []string
	for _, x := range list {
		out = append(out, x.Component+" "+x.Version)
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}
