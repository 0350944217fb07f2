package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install/bundle"
)

// bundleShowCommands are the verbs that look into a bundle.
func (a *app) bundleShowCommands() []*cobra.Command {
	inspect := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show what is in a bundle, without reading its layers",
		Long: `Shows what a bundle says of itself: releases with upstream's file and sha256, files and images.
FILE is also a folder with the bundle unpacked, - for standard input, or oci://HOST/REPO@sha256:DIGEST.
Whether it is true, bundle verify says.`,
		Example: `  nodeprep bundle inspect node.bundle
  nodeprep bundle inspect -o json oci://registry.example.com/nodes/bundle@sha256:...`,
		Args: oneBundle,
		RunE: func(cmd *cobra.Command, args []string) error { return a.inspectBundle(cmd.Context(), args[0]) },
	}
	verify := &cobra.Command{
		Use:   "verify FILE",
		Short: "Read all of a bundle and hold every byte against its digests",
		Long: `Reads a bundle to its end, for all architectures, and says of every part whether it is as it was
made. Any fault is exit code 2. FILE is also a folder with the bundle
unpacked, - for standard input, or oci://HOST/REPO@sha256:DIGEST.`,
		Example: `  nodeprep bundle verify /media/usb/node.bundle
  nodeprep bundle verify -o json - < node.bundle`,
		Args: oneBundle,
		RunE: func(cmd *cobra.Command, args []string) error { return a.verifyBundle(cmd.Context(), args[0]) },
	}
	for _, cmd := range []*cobra.Command{inspect, verify} {
		cmd.Flags().StringVar(&a.registryCA, "registry-ca", "", "certificates that a registry's is held against, a PEM `FILE`")
	}
	return []*cobra.Command{inspect, verify}
}

func oneBundle(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return usagef("%s takes one bundle, got %q", cmd.CommandPath(), args)
	}
	return nil
}

func (a *app) openOptions(ref string) (bundle.OpenOptions, error) {
	if err := a.registryCAFor(ref); err != nil {
		return bundle.OpenOptions{}, err
	}
	if strings.HasPrefix(ref, bundle.RegistryScheme) {
		if _, err := bundle.ParseRegistryRef(ref); err != nil {
			return bundle.OpenOptions{}, &usageError{err}
		}
	}
	registry, err := a.registryOptions()
	return bundle.OpenOptions{Registry: registry, Stdin: a.in, TempDir: a.tempDir()}, err
}

func (a *app) inspectBundle(ctx context.Context, ref string) error {
	opt, err := a.openOptions(ref)
	if err != nil {
		return err
	}
	found, err := bundle.Inspect(ctx, ref, opt)
	if err != nil {
		return broken(err)
	}
	a.result = found
	if a.structured {
		return nil
	}
	fmt.Fprintf(a.out, "%s: made by nodeprep %s, format %d, for linux/%s\nindex %s\n\n", found.Bundle, found.Nodeprep, found.Format,
		strings.Join(found.Arches, ", linux/"), found.Digest)
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "component\tversion\tarch\tpacked\tunpacked\tsigned by\tupstream file\tits sha256")
	for _, c := range found.Components {
		version, signer := c.Version, "-"
		if c.Static {
			version += " (static)"
		}
		if c.Signature != nil {
			signer = c.Signature.Signer
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n", c.Component, version, c.Arch, bytesText(c.Packed), bytesText(c.Unpacked),
			signer, orDash(c.File), orDash(c.SHA256))
	}
	fmt.Fprintln(w, "\nfile\tarch\tsize\tsha256")
	for _, f := range found.Files {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", f.Path, strings.Join(f.Arches, ","), bytesText(f.Size), f.SHA256)
	}
	if len(found.Images) > 0 {
		fmt.Fprintln(w, "\nimages\tplatforms\tpacked\tunpacked\tnames")
	}
	for _, i := range found.Images {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", i.File, strings.Join(i.Platforms, ","), bytesText(i.InBundle), bytesText(i.Size),
			orDash(strings.Join(i.Names, ",")))
	}
	return w.Flush()
}

// verified is the result of bundle verify.
type verified struct {
	Good bool `json:"good"`
	*bundle.Report
}

func (a *app) verifyBundle(ctx context.Context, ref string) error {
	opt, err := a.openOptions(ref)
	if err != nil {
		return err
	}
	p := a.progress()
	report, err := bundle.Verify(ctx, ref, opt, p.Progress)
	p.finish()
	if err != nil {
		return broken(err)
	}
	good := len(report.Faults) == 0
	a.result = verified{good, report}
	if !a.structured {
		if err := a.printVerified(report); err != nil {
			return err
		}
	}
	if !good {
		return &codeError{exitUsage}
	}
	return nil
}

// printVerified prints a line a part, then all faults, then the verdict.
func (a *app) printVerified(report *bundle.Report) error {
	p := a.paint(a.out)
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	for _, part := range report.Parts {
		verdict := p.green("good")
		if !part.Good {
			verdict = p.red("bad ")
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", verdict, part.Part, bytesText(part.Size), part.Layer)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, f := range report.Faults {
		fmt.Fprintf(a.out, "%s %s\n", p.red("fault:"), f.Error())
	}
	if n := len(report.Faults); n > 0 {
		fmt.Fprintf(a.out, "%s: %s, %s\n", report.Bundle, p.red(plural(n, "fault")), bundle.Remedy)
		return nil
	}
	fmt.Fprintf(a.out, "%s: %s, index %s\n", report.Bundle, p.green("good"), report.Digest)
	return nil
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// bytesText is a file's size for people.
func bytesText(n int64) string {
	switch {
	case n < 1<<10:
		return fmt.Sprintf("%d B", n)
	case n < 1<<20:
		return fmt.Sprintf("%.1f KiB", float64(n)/(1<<10))
	}
	return fmt.Sprintf("%.1f MiB", float64(n)/(1<<20))
}
