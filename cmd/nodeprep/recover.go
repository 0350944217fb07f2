package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install"
)

// recoverResult is the machine form of recover.
type recoverResult struct {
	Root string `json:"root"`
	*install.Recovered
}

// recoverOptions are the flags of recover.
type recoverOptions struct{ withRunningPods, boot bool }

func (a *app) recoverCommand() *cobra.Command {
	var o recoverOptions
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Finish or revert a run that was interrupted",
		Long: `recover ends what a power cut, a crash or kill -9 left of an apply, rollback or uninstall. A run that had not
written its receipt is put back, file by file, and the old daemon is started and proved healthy; one that had is
tidied up. It needs no profile, no network and, under --root, no systemd. It may be interrupted itself, and run
again. Every verb that changes a host does this first, and nodeprep-recover.service does it at boot.
Where pods have come to depend meanwhile on the containerd that it would stop or take back by a minor release, it
changes nothing and says so, unless --with-running-pods is given.
With nothing to recover it says so and exits with 0.`,
		Example: `  sudo nodeprep recover
  nodeprep recover --root /mnt/image`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.recover(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.BoolVar(&o.withRunningPods, "with-running-pods", false, "revert also what running pods have come to depend on")
	f.BoolVar(&o.boot, "boot", false, "the machine is starting and waits for this")
	f.Lookup("boot").Hidden = true // nodeprep-recover.service's
	return cmd
}

func (a *app) recover(ctx context.Context, o recoverOptions) error {
	t, err := a.openFor("recover")
	if err != nil {
		return err
	}
	defer t.close()
	if err := a.privileged(ctx); err != nil {
		return err
	}
	result := recoverResult{Root: t.root.Dir()}
	a.result = &result
	if _, err := pending(t.root); err != nil {
		return err
	}
	// Also where no journal is seen: there may be one by the time the root is locked.
	if err := t.connect(ctx); err != nil {
		return err
	}
	progress := a.progress()
	if at := install.Working(t.root); at != nil && o.boot {
		progress.say("%v", at)
	}
	opt := t.recovery(progress)
	opt.WithRunningPods, opt.Boot = o.withRunningPods, o.boot
	result.Recovered, err = install.Recover(ctx, t.host, opt)
	progress.finish()
	if result.Recovered != nil {
		a.warn(result.Warnings)
	}
	if err != nil {
		return err
	}
	a.changed = result.Outcome != install.NothingPending
	if a.structured {
		return nil
	}
	if result.Outcome == install.NothingPending {
		fmt.Fprintf(a.out, "nothing to recover: no run on %s was interrupted\n", t.root.Dir())
		return nil
	}
	for _, line := range recoveredLines(t.root, result.Recovered) {
		fmt.Fprintln(a.out, line)
	}
	return nil
}
