package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/render/cloudinit"
)

func (a *app) uninstallCommand() *cobra.Command {
	var (
		o   install.UninstallOptions
		yes bool
	)
	cmd := &cobra.Command{
		Use:   "uninstall",
		Short: "Give the host back as it was before nodeprep",
		Long: `uninstall removes what nodeprep wrote and nobody changed since, gives back what was there before, and removes
nodeprep itself, as one transaction. What was edited stays and is listed. containerd's data stays, too, unless --purge
is given: that cannot be undone, so it asks first, and never goes across a mount point. It refuses while containers
run and lists them; --force stops them.`,
		Example: `  sudo nodeprep uninstall
  sudo nodeprep uninstall --force --purge --yes
  nodeprep uninstall --root /mnt/image`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.uninstall(cmd.Context(), o, yes) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.Force, "force", false, "stop containers that run")
	f.BoolVar(&o.Purge, "purge", false, "remove containerd's data, too: images, containers, snapshots; this cannot be undone")
	f.BoolVar(&yes, "yes", false, "do not ask before --purge")
	return cmd
}

func (a *app) uninstall(ctx context.Context, o install.UninstallOptions, yes bool) error {
	t, err := a.openFor("uninstall")
	if err != nil {
		return err
	}
	defer t.close()
	if o.Purge && !yes && !(isTerminal(a.stdio.in) && isTerminal(a.stdio.err)) {
		return usagef("uninstall --purge removes containerd's data for good and asks first, but there is no terminal to ask at: add --yes")
	}
	if err := a.privileged(ctx); err != nil {
		return err
	}
	result := changeResult{Root: t.root.Dir(), Changed: []planItem{}}
	a.result = &result
	if result.Recovered, err = a.recoverFirst(ctx, t, false); err != nil {
		return err
	}
	receipt, err := readReceipt(t.root)
	if err != nil {
		return err
	}
	if receipt == nil {
		if !a.structured {
			fmt.Fprintf(a.out, "nothing to do: %s has no receipt of nodeprep\n", t.root.Dir())
		}
		return nil
	}
	if err := t.connect(ctx); err != nil {
		return err
	}
	diffing := install.DiffOptions{Services: t.services(), Daemon: t.daemon()}
	plan, err := install.DiffUninstall(ctx, t.host, receipt, diffing, o)
	if err != nil {
		return err
	}
	if err := plan.Refusal(); err != nil {
		return err
	}
	if fi, err := t.root.Lstat("/etc/systemd/system/multi-user.target.wants/" + cloudinit.UnitName); err == nil && fi != nil {
		a.note("%s is enabled and applies its profile again at the next boot: systemctl disable %[1]s", cloudinit.UnitName)
	}
	if !yes && len(plan.Purges()) > 0 {
		if err := a.confirmPurge(ctx, t, plan); err != nil {
			return err
		}
	}
	data := a.dataThatStays(ctx, t, receipt, o)
	done, err := a.carryOut(ctx, t, plan, diffing)
	result.fill(plan, done)
	if !a.structured && done != nil {
		a.printChanges(&result)
	}
	if err != nil || a.structured {
		return err
	}
	for _, p := range data {
		fmt.Fprintf(a.out, "%s leave %s: is containerd's data; --purge would remove it\n", sign(a.paint(a.out), install.Leave), p)
	}
	where := t.root.Dir() + " is as it was before nodeprep"
	if len(result.Left)+len(data)+len(done.Warnings) > 0 {
		where += ", but for what is listed"
	}
	a.printDone(done, where)
	return nil
}

// dataThatStays lists containerd's directories that an uninstall without --purge leaves.
// It is a note for people: what cannot be told is left out.
func (a *app) dataThatStays(ctx context.Context, t *target, receipt *install.Receipt, o install.UninstallOptions) []string {
	if o.Purge {
		return nil
	}
	plan, err := install.DiffUninstall(ctx, t.host, receipt, install.DiffOptions{}, install.UninstallOptions{Purge: true})
	if err != nil {
		return nil
	}
	return plan.Purges()
}

// confirmPurge shows what goes and asks. The answer must be the whole word.
func (a *app) confirmPurge(ctx context.Context, t *target, plan *install.Plan) error {
	w, c := a.stdio.err, a.paint(a.stdio.err)
	for _, it := range plan.Items {
		if it.Action != install.Keep {
			printItem(w, c, it)
		}
	}
	fmt.Fprintf(w, "\n%s: all images, containers and snapshots under %s of %s go for good.\nThis cannot be undone, also not by rollback. Type \"yes\" to go on: ",
		c.red("purge"), strings.Join(plan.Purges(), " and "), t.root.Dir())
	answer := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(a.in).ReadString('\n')
		answer <- line
	}()
	select {
	case line := <-answer:
		if !strings.HasSuffix(line, "\n") {
			fmt.Fprintln(w) // the input ended instead
		}
		if strings.TrimSpace(line) == "yes" {
			return nil
		}
		return errors.New("uninstall: not confirmed, nothing was changed")
	case <-ctx.Done():
		fmt.Fprintln(w)
		return fmt.Errorf("uninstall: %w, nothing was changed", context.Cause(ctx))
	}
}
