package main

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/profiles"
)

// validation is the result of validate.
type validation struct {
	Valid       bool      `json:"valid"`
	Files       []string  `json:"files"`
	Diagnostics diag.List `json:"diagnostics"`
}

func (a *app) validateCommand() *cobra.Command {
	var strict bool
	cmd := &cobra.Command{
		Use:   "validate FILE...",
		Short: "Report every fault of profiles, without touching a host",
		Example: `  nodeprep validate node.yaml
  nodeprep validate --strict -o json node.yaml other.yaml`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if a.profile != "" {
				args = append([]string{a.profile}, args...)
			}
			if len(args) == 0 {
				return usagef("validate: name at least one profile")
			}
			return a.validate(cmd.Context(), args, strict)
		},
	}
	a.bundleFlags(cmd)
	a.lockFlag(cmd)
	cmd.Flags().BoolVar(&strict, "strict", false, "make warnings faults")
	return cmd
}

func (a *app) validate(ctx context.Context, names []string, strict bool) error {
	nodes, err := a.bundleNodes(ctx)
	if err != nil {
		return err
	}
	v := validation{Valid: true, Files: names, Diagnostics: diag.List{}}
	p := a.paint(a.out)
	for _, name := range names {
		var list diag.List
		for _, node := range nodes {
			list = append(list, a.findings(ctx, name, node)...)
		}
		if strict {
			for i := range list {
				list[i].Severity = diag.Error
			}
		}
		list.Sort()
		v.Diagnostics = append(v.Diagnostics, list...)
		v.Valid = v.Valid && !list.HasErrors()
		if a.structured {
			continue
		}
		for _, d := range list {
			fmt.Fprintln(a.out, p.diagnostic(d))
		}
		if !list.HasErrors() {
			fmt.Fprintf(a.out, "%s: %s\n", name, p.green("valid"))
		}
	}
	a.result = v
	if !v.Valid {
		return &codeError{exitUsage}
	}
	return nil
}

// bundleNodes are the bundle's parts for all its architectures; without a bundle there is one
// nil.
func (a *app) bundleNodes(ctx context.Context) ([]*bundle.Node, error) {
	if err := a.openBundle(ctx); err != nil {
		return nil, err
	}
	if a.source.bundle == nil {
		return []*bundle.Node{nil}, nil
	}
	var nodes []*bundle.Node
	for _, arch := range a.portableArches() {
		if err := a.source.use(ctx, arch); err != nil {
			return nil, err
		}
		nodes = append(nodes, a.source.node)
	}
	return nodes, nil
}

// findings are all of a profile's faults and warnings, down to those that only
// rendering finds. node is the part of the bundle that it is held against, nil for none.
func (a *app) findings(ctx context.Context, name string, node *bundle.Node) diag.List {
	a.source.node = node // which what is below reads
	l, err := a.loader(ctx)
	if err != nil {
		return diag.List{{Message: err.Error()}}
	}
	profile, list := l.Load(name)
	// What the values mean together is looked at even when some are broken: all faults
	// at once.
	lock, err := a.ruling(ctx, name)
	list = append(list, lockFaults(err)...)
	facts := a.portableFacts()
	if node != nil {
		facts.Arch = node.Config.Architecture
	}
	// With a lock it is about the nodes that this is for.
	arches := lock.Arches()
	if len(arches) == 0 || node != nil && slices.Contains(arches, facts.Arch) {
		arches = []string{facts.Arch}
	}
	for _, facts.Arch = range arches {
		spec, more := profiles.Resolve(profile, facts)
		if list = append(list, more...); list.HasErrors() {
			continue
		}
		list = append(append(list, supportNotes(spec, time.Now())...), skipNotes(spec)...)
		in := a.inputs(ctx)
		in.masked, in.portable = true, true
		_, more, _ = desiredState(spec, in, lock)
		list = append(append(list, more...), sandboxFaults(ctx, spec)...)
	}
	return list
}
