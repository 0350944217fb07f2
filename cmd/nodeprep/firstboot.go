package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install"
)

// firstBootResult is the machine form of firstboot.
type firstBootResult struct {
	Root string `json:"root"`
	*install.FirstBooted
}

// firstBootCommand is what nodeprep-firstboot.service runs, and nobody else has to.
func (a *app) firstBootCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "firstboot",
		Short: "Import the images that wait since this root was made",
		Long: `firstboot gives the running containerd the image archives that wait in ` + install.ImagesDir + ` since this root
was provisioned with --root. nodeprep-firstboot.service runs it at boot while any wait. What fails waits for the next boot; apply
imports what waits, too.`,
		Args:   noArgs,
		Hidden: true,
		RunE:   func(cmd *cobra.Command, _ []string) error { return a.firstBoot(cmd.Context()) },
	}
}

func (a *app) firstBoot(ctx context.Context) error {
	t, err := a.openFor("firstboot")
	if err != nil {
		return err
	}
	defer t.close()
	if !t.root.Live() {
		return usagef("firstboot: imports images into the containerd that runs here, and takes no --root")
	}
	if err := a.privileged(ctx); err != nil {
		return err
	}
	result := firstBootResult{Root: t.root.Dir()}
	a.result = &result
	progress := a.progress()
	result.FirstBooted, err = install.FirstBoot(ctx, t.host, install.FirstBootOptions{Daemon: t.daemon(), Observer: progress, Version: versionString()})
	progress.finish()
	done := result.FirstBooted
	if done == nil {
		return err
	}
	a.changed = len(done.Images) > 0
	if a.structured {
		return err
	}
	for _, img := range done.Images {
		what := "imported"
		if img.Present {
			what = "was there already"
		}
		pinned := ""
		if img.Pinned {
			pinned = ", pinned"
		}
		fmt.Fprintf(a.out, "%s: %s%s (%s)\n", img.Name, what, pinned, img.Archive)
	}
	for _, l := range done.Left {
		fmt.Fprintln(a.out, l)
	}
	if err == nil && len(done.Images) == 0 {
		fmt.Fprintln(a.out, "nothing to do: no image waits here")
	}
	return err
}
