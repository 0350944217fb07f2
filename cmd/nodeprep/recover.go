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

func (a *app) recoverCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "recover",
		Short: "Finish or revert a run that was interrupted",
		Long: `recover ends what a power cut, a crash or kill -9 left of an apply, rollback or uninstall. A run that had not
written its receipt is put back, file by file, and the old daemon is started and proved healthy; one that had is
tidied up. It needs no profile, no network and, under --root, no systemd. It may be interrupted itself, and run
again. Every verb that changes a host does this first, and nodeprep-recover.service does it at boot.
With nothing to recover it says so and exits with 0.`,
		Example: `  sudo nodeprep recover
  nodeprep recover --root /mnt/image`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.recover(cmd.Context()) },
	}
}

func (a *app) recover(ctx context.Context) error {
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
	j, err := pending(t.root)
	if err != nil {
		return err
	}
	if j != nil {
		if err := t.connect(ctx); err != nil {
			return err
		}
	}
	progress := a.progress()
	result.Recovered, err = install.Recover(ctx, t.host, t.recovery(progress))
	progress.finish()
	if result.Recovered != nil {
		a.warn(result.Warnings)
	}
	if err != nil {
		return err
	}
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
