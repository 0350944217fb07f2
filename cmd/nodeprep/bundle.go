package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
)

// fetching at the same time: a few servers, whose lines are what limits it.
const fetching = 4

// bundleResult is the machine form of a bundle that was made.
type bundleResult struct {
	File string `json:"file"`
	*bundle.Made
	Profiles []string  `json:"profiles"`
	Warnings diag.List `json:"warnings,omitempty"`
}

func (a *app) bundleCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bundle",
		Short: "Make, check and look into bundles for rooms without a network",
		Long: `A bundle is one file with everything that a node needs: release files, images, the profile with its lock and its files, and
nodeprep itself, for one or several architectures. It is an OCI image layout, which other tools copy, carry and sign.
nodeprep apply --bundle makes a node of it.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return nil
			}
			msg := fmt.Sprintf("unknown verb %q", args[0])
			if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
				msg += fmt.Sprintf(" (did you mean %s?)", strings.Join(s, " or "))
			}
			return usagef("%s; nodeprep bundle --help lists the verbs", msg)
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.SuggestionsMinimumDistance = 2
	cmd.AddCommand(a.bundleCreateCommand())
	cmd.AddCommand(a.bundleShowCommands()...)
	return cmd
}

// createFlags are those of bundle create.
type createFlags struct {
	arches      []string
	images      []string
	withSecrets bool
	force       bool
}

func (a *app) bundleCreateCommand() *cobra.Command {
	var o createFlags
	cmd := &cobra.Command{
		Use:   "create FILE",
		Short: "Make a bundle of a profile and everything it needs",
		Long: `bundle create takes every release file that the profile wants, verified, its images and the files it names, and packs them
into one file, with the profile flattened and the lock. The profile's lock says which files; without one they are found out as
nodeprep lock does it. The same inputs give the same bytes.

nodeprep itself is the running program; for another architecture it is nodeprep-VERSION-linux-ARCH, with its checksum file, in a
folder of --artifacts.

What is secret (in the profile, in files beside it, private keys) is refused with its lines: a bundle gets lost. With
--with-secrets it goes along, and the bundle is for its owner alone. References to absolute files, the environment and credentials
are read on the node.`,
		Example: `  nodeprep bundle create bundle.tar -f node.yaml
  nodeprep bundle create bundle.tar -f node.yaml --arch amd64,arm64 --artifacts ./artifacts
  nodeprep bundle create bundle.tar -f node.yaml --image registry.k8s.io/pause:3.10.2=registry.example.com/pause:3.10.2`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) != 1:
				return usagef("%s: name the one file to be made, got %d", cmd.CommandPath(), len(args))
			case args[0] == "":
				return usagef("%s: the file to be made has no name", cmd.CommandPath())
			case args[0] == "-":
				return usagef("%s: a bundle is made as a file, not sent to standard output: name one", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error { return a.createBundle(cmd.Context(), args[0], o) },
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.arches, "arch", nil, "the `ARCHES` of the nodes, by Go's names; by default those of the lock, else this machine's")
	f.StringArrayVar(&o.images, "image", nil, "take along the image `NAME[=FROM]` from its registry, or from another under this name (repeatable)")
	f.BoolVar(&o.withSecrets, "with-secrets", false, "take along secrets and private keys")
	f.BoolVar(&o.force, "force", false, "replace FILE")
	f.StringVar(&a.registryCA, "registry-ca", "", "for --image: certificates that the registry's is held against, a PEM `FILE`")
	a.lockFlag(cmd)
	return cmd
}

func (a *app) createBundle(ctx context.Context, file string, o createFlags) error {
	if err := bundle.MayWrite(file, o.force); err != nil {
		return mayNotWrite(err)
	}
	images, err := imageSources(o.images)
	if err != nil {
		return err
	}
	if a.registryCA != "" && len(images) == 0 {
		return usagef("--registry-ca: it is for the registries of --image, and there is none")
	}
	root, err := host.OpenRoot(a.root)
	if err != nil {
		return usagef("--root: %w", err)
	}
	name, err := a.chosen(root, noReceipt)
	if err != nil {
		return err
	}
	profile, err := a.load(ctx, name)
	if err != nil {
		return err
	}
	// Names of layers that are no files are not beside them either.
	if err := bundle.NotInput(file, append(profile.Layers(), a.lockName(name), a.registryCA)...); err != nil {
		return mayNotWrite(err)
	}
	lock, err := a.lockOf(name)
	if err != nil {
		return err
	}
	arches, err := wantedArches(o.arches, lock)
	if err != nil {
		return err
	}
	registry, err := a.registryOptions()
	if err != nil {
		return err
	}
	nodes, err := a.bundledNodes(ctx, profile, arches, lock)
	if err != nil {
		return err
	}
	if err := bundledSandbox(ctx, nodes, images); err != nil {
		return err
	}

	p := a.progress()
	ended := false
	end := func() {
		if !ended {
			p.finish()
		}
		ended = true
	}
	defer end()
	say := func(format string, args ...any) {
		if !a.structured {
			p.say(format, args...)
		}
	}
	targets, err := a.targets(ctx, nodes, lock, p)
	if err != nil {
		return err
	}
	p.endBars()
	say("packing for %s...", strings.Join(arches, ", "))
	made, list, err := bundle.Create(ctx, file, bundle.CreateOptions{
		WriteOptions: bundle.WriteOptions{Force: o.force, Progress: p.Progress},
		Nodeprep:     plainVersion(), Profile: profile, Targets: targets,
		Read:   a.inputs(ctx).File,
		Images: images,
		Pull: func(ctx context.Context, image bundle.PulledImage, arch string, w io.Writer, progress func(done, total int64)) error {
			_, err := bundle.FetchImage(ctx, image.From, []string{image.Name}, ocispec.Platform{OS: "linux", Architecture: arch}, registry, w, progress)
			return err
		},
		WithSecrets: o.withSecrets,
	})
	end()
	if list.HasErrors() {
		return &invalidError{list}
	}
	a.warn(list)
	if err != nil {
		return mayNotWrite(err)
	}
	a.changed = true
	result := bundleResult{File: file, Made: made, Profiles: profile.Layers(), Warnings: list}
	a.result = result
	if !a.structured {
		a.printMade(result)
	}
	return nil
}

// mayNotWrite marks a file in the way, and one that the bundle is made of, as wrong usage.
func mayNotWrite(err error) error {
	if exists, ok := errors.AsType[*bundle.ExistsError](err); ok {
		return &usageError{exists}
	}
	if input, ok := errors.AsType[*bundle.InputError](err); ok {
		return &usageError{input}
	}
	return err
}

// imageSources reads --image; all that are wrong are told at once.
func imageSources(given []string) ([]bundle.PulledImage, error) {
	var out []bundle.PulledImage
	var faults []error
	for _, s := range given {
		name, from, err := bundle.ParseImageSource(s)
		switch {
		case err != nil:
			faults = append(faults, fmt.Errorf("--image: %w", err))
		case slices.ContainsFunc(out, func(i bundle.PulledImage) bool { return i.Name == name }):
			faults = append(faults, fmt.Errorf("--image: %s is there twice", name))
		}
		out = append(out, bundle.PulledImage{Name: name, From: from})
	}
	if len(faults) > 0 {
		return nil, &usageError{errors.Join(faults...)}
	}
	return out, nil
}

// bundledNode is what nodes of one architecture are to be.
type bundledNode struct {
	spec  *profiles.Spec
	state desired.State
}

// bundledNodes resolves the profile for every architecture; all faults of all of them are an
// *invalidError. No host is known: where the profile leaves containerd's variant to the host
// it is the dynamic one.
func (a *app) bundledNodes(ctx context.Context, profile *profiles.Profile, arches []string, lock *release.Lock) ([]bundledNode, error) {
	var nodes []bundledNode
	var list diag.List
	in := a.inputs(ctx)
	in.masked = true // secrets are read on the node
	for _, arch := range arches {
		spec, more := profiles.Resolve(profile, profiles.Facts{Arch: arch, SystemdInit: true})
		list = append(list, more...)
		if more.HasErrors() {
			continue
		}
		list = append(list, supportNotes(spec, time.Now())...)
		st, more, _ := desiredState(spec, in, lock) // the faults are in the list
		list = append(list, more...)
		nodes = append(nodes, bundledNode{spec, st})
	}
	list.Sort()
	if list.HasErrors() {
		return nil, &invalidError{list}
	}
	a.warn(list)
	return nodes, nil
}

// targets have every release file of the nodes at hand, and nodeprep itself for each
// architecture. What is not to be had is told at once.
func (a *app) targets(ctx context.Context, nodes []bundledNode, lock *release.Lock, p *progress) ([]bundle.Target, error) {
	store, err := a.lockStore(nodes[0].state.Sources)
	if err != nil {
		return nil, err
	}
	ours := lock == nil
	if ours {
		if lock, err = a.lockForBundle(ctx, store, nodes); err != nil {
			return nil, err
		}
	}
	targets := make([]bundle.Target, len(nodes))
	faults := make([][]error, len(nodes))
	var g errgroup.Group
	g.SetLimit(fetching)
	for i, n := range nodes {
		t := &targets[i]
		*t = bundle.Target{Arch: n.spec.Arch, Lock: lock, LockIsOurs: ours, Sandbox: n.spec.Containerd.SandboxImage}
		artifacts, list := lock.Artifacts(requests(n.spec))
		if list.HasErrors() {
			return nil, &invalidError{list}
		}
		t.Artifacts = make([]release.Located, len(artifacts))
		faults[i] = make([]error, len(artifacts)+1)
		for k, art := range artifacts {
			g.Go(func() error {
				t.Artifacts[k], faults[i][k] = obtain(ctx, store, art, p)
				return nil
			})
		}
		g.Go(func() error {
			t.Program, faults[i][len(artifacts)] = a.programFor(ctx, store, t.Arch)
			return nil
		})
	}
	_ = g.Wait() // the faults are kept
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return targets, errors.Join(slices.Concat(faults...)...)
}

// obtain has a release file at hand.
func obtain(ctx context.Context, store *release.Store, art desired.Artifact, p *progress) (release.Located, error) {
	l, err := store.Locate(ctx, art)
	if err != nil {
		return l, err
	}
	return store.Fetch(ctx, l, func(done, total int64) {
		p.Progress("fetching "+art.Title()+" "+art.Arch, done, total)
	})
}

// lockForBundle is a lock of a profile that has none, as nodeprep lock makes it, for the
// nodes' own variants alone.
func (a *app) lockForBundle(ctx context.Context, store *release.Store, nodes []bundledNode) (*release.Lock, error) {
	var reqs []release.LockRequest
	for _, n := range nodes {
		for _, req := range requests(n.spec) {
			reqs = append(reqs, release.LockRequest{Request: req})
		}
	}
	keyring, err := release.RuncKeyring()
	if err != nil {
		return nil, err
	}
	lock, notes, err := store.Lock(ctx, reqs, release.LockOptions{Keyring: keyring})
	for _, n := range notes {
		a.note("%s", n)
	}
	if err != nil {
		return nil, err
	}
	lock.File = bundle.LockName
	return lock, nil
}

// programFor is nodeprep for the nodes of an architecture.
func (a *app) programFor(ctx context.Context, store *release.Store, arch string) (release.Located, error) {
	if running := a.runningOn(arch); running != "" {
		return release.Located{Path: running}, nil
	}
	return releasedProgram(ctx, store.Dirs, store.Sources, arch, "the bundle has nodeprep itself for linux/"+arch, "")
}

// printMade says what is in a bundle that was made.
func (a *app) printMade(r bundleResult) {
	p := a.paint(a.out)
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  arch\twhat\tfiles\tin the bundle\tfrom")
	for _, c := range r.Platforms {
		row := func(what string, files int, layer int64, from string) {
			fmt.Fprintf(w, "  %s\t%s\t%d\t%s\t%s\n", c.Architecture, what, files, bytesText(layer), from)
		}
		for _, part := range c.Components {
			from := part.File
			if part.SHA256From != "" {
				from += " (sha256: " + part.SHA256From + ")"
			}
			if part.Signature != nil {
				from += ", signed by " + part.Signature.Signer
			}
			row(part.Title(), len(part.Members), r.Layers[part.Layer], from)
		}
		row("node", len(c.Node.Members), r.Layers[c.Node.Layer], strings.Join(r.Profiles, ", "))
		for _, img := range c.Images {
			row(img.File, 1, r.Layers[img.Layer], strings.Join(img.Names, ", "))
		}
	}
	_ = w.Flush() // a result that could not be written is told at the end
	fmt.Fprintf(a.out, "wrote %s: %s\nits digest is %s\n", p.bold(filepath.Clean(r.File)), bytesText(r.Size), r.Digest)
}
