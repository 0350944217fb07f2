package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
)

// planResult is the machine form of a plan.
type planResult struct {
	Root     string     `json:"root"`
	Profiles []string   `json:"profiles"`
	Arch     string     `json:"arch"`
	Empty    bool       `json:"empty"`
	Items    []planItem `json:"items"`
	Warnings diag.List  `json:"warnings,omitempty"`
}

type planItem struct {
	install.Item
	Diff string `json:"diff,omitempty"`
}

// prepared is a profile brought together with a host.
type prepared struct {
	*target
	facts   host.Facts
	spec    *profiles.Spec
	flat    json.RawMessage // the profile flattened, without secrets
	state   desired.State
	receipt *install.Receipt
}

// prepare loads the profile, gathers the host's facts and computes the desired state.
// It changes nothing.
func (a *app) prepare(ctx context.Context, t *target, withoutRecovery bool) (*prepared, error) {
	root := t.root
	receipt, err := readReceipt(root)
	if err != nil {
		return nil, err
	}
	wanted, facts := a.facts(root)
	if err := a.useBundle(ctx, wanted.Arch); err != nil {
		return nil, err
	}
	name, err := a.chosen(root, func() (string, bool, error) {
		if receipt == nil {
			return "", false, nil
		}
		return strings.Join(receipt.Profiles, ", "), true, nil
	})
	if err != nil {
		return nil, err
	}
	profile, err := a.load(ctx, name)
	if err != nil {
		return nil, err
	}
	spec, err := a.resolve(profile, wanted, time.Now())
	if err != nil {
		return nil, err
	}
	lock, err := a.ruling(ctx, name)
	if err != nil {
		return nil, err
	}
	st, notes, err := desiredState(spec, a.inputs(ctx), lock)
	if err != nil {
		return nil, err
	}
	a.warn(notes)
	if list := sandboxFaults(ctx, spec); list.HasErrors() {
		return nil, &invalidError{list}
	}
	if list := a.source.bundled(&st); list.HasErrors() {
		return nil, &invalidError{list}
	}
	if !withoutRecovery {
		program, err := a.program(ctx, &st, receipt)
		if err != nil {
			return nil, err
		}
		addRecovery(&st, program)
	}
	flat, err := json.Marshal(profile.Flat())
	if err != nil {
		return nil, fmt.Errorf("flatten the profile: %w", err)
	}
	p := &prepared{target: t, facts: facts, spec: spec, flat: flat, state: st, receipt: receipt}
	return p, t.connect(ctx)
}

// runner runs the commands that systemd's error reports need.
func runner(h *host.Host) func(ctx context.Context, name string, args ...string) ([]byte, error) {
	return func(ctx context.Context, name string, args ...string) ([]byte, error) {
		out, err := h.Run(ctx, host.Cmd{Path: name, Args: args})
		return out.Stdout, err
	}
}

// readReceipt reads a root's receipt, which only root may.
func readReceipt(root *host.Root) (*install.Receipt, error) {
	receipt, err := install.ReadReceipt(root)
	if errors.Is(err, fs.ErrPermission) {
		return nil, fmt.Errorf("read %s: permission denied (run it with sudo)", install.ReceiptPath)
	}
	return receipt, err
}

func (a *app) planCommand() *cobra.Command {
	var o planFlags
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show what apply would change, file by file, and why",
		Long: `plan compares the host with the profile and changes nothing. It exits with 0 when there is nothing to do
and with 3 when something differs. Secrets are masked.

In -o json an item that apply would refuse has "action": "refuse". With "adoptable": true --adopt takes the file over; with "drain": true pods
alone are in the way, those of a DaemonSet and static ones too: when the node is drained and these are removed, apply goes on.
What else made a container in their namespace, k8s.io (ctr, nerdctl), counts as a pod, and neither a drain nor crictl removes it.`,
		Example: `  nodeprep plan -f node.yaml
  nodeprep plan -f node.yaml --root /mnt/image --arch arm64 --artifacts ./artifacts -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.plan(cmd.Context(), o) },
	}
	o.register(a, cmd)
	return cmd
}

// planFlags are those of plan and apply.
type planFlags struct {
	changeFlags
	withoutRecovery bool
}

func (o *planFlags) register(a *app, cmd *cobra.Command) {
	o.changeFlags.register(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.withoutRecovery, "without-recovery", false, "leave nodeprep itself and nodeprep-recover.service out, for a root of another architecture")
	a.bundleFlags(cmd)
	a.lockFlag(cmd)
	f.StringVar(&a.arch, "arch", "", "with --root: the image's architecture, by Go's name")
}

func (a *app) plan(ctx context.Context, o planFlags) error {
	t, err := a.open()
	if err != nil {
		return err
	}
	defer t.close()
	j, err := pending(t.root)
	if err != nil {
		return err
	}
	if j != nil {
		return fmt.Errorf("plan: %s", interrupted(t.root, j))
	}
	p, err := a.prepare(ctx, t, o.withoutRecovery)
	if err != nil {
		return err
	}
	plan, err := install.Diff(ctx, p.host, &p.state, p.receipt, a.diffing(o, p))
	if err != nil {
		return err
	}
	a.result = makePlanResult(p, plan)
	if !a.structured {
		a.printPlan(a.out, p, plan)
	}
	if !plan.Empty() {
		return &codeError{exitDiffers}
	}
	return nil
}

func makePlanResult(p *prepared, plan *install.Plan) planResult {
	r := planResult{Root: p.root.Dir(), Profiles: p.spec.Profiles, Arch: p.spec.Arch, Empty: plan.Empty(), Items: []planItem{}, Warnings: plan.Warnings}
	for _, it := range plan.Items {
		if it.Action == install.Keep {
			continue
		}
		r.Items = append(r.Items, planItem{Item: it, Diff: itemDiff(it)})
	}
	return r
}

// itemDiff is the unified diff of a text file, "" for what has none to show.
func itemDiff(it install.Item) string {
	if it.Kind != install.KindFile || it.Secret || it.Old == nil && it.New == nil {
		return ""
	}
	from, to := it.Path, it.Path
	switch it.Action {
	case install.Create:
		from = "/dev/null"
	case install.Remove:
		to = "/dev/null"
	case install.Update:
	default:
		return ""
	}
	d := string(diff.Diff(from, it.Old, to, it.New))
	// The first line repeats the two names as a command.
	if first, rest, ok := strings.Cut(d, "\n"); ok && strings.HasPrefix(first, "diff ") {
		d = rest
	}
	return d
}

// sign is the mark of an action at the start of a line.
func sign(p painter, action install.Action) string {
	switch action {
	case install.Create:
		return p.green("+")
	case install.Update:
		return p.yellow("~")
	case install.Remove:
		return p.red("-")
	case install.Refuse:
		return p.red("!")
	case install.Leave:
		return p.yellow("?")
	}
	return p.bold("*")
}

func (a *app) printPlan(w io.Writer, p *prepared, plan *install.Plan) {
	c := a.paint(w)
	for _, d := range plan.Warnings {
		fmt.Fprintln(w, c.diagnostic(d))
	}
	if plan.Empty() {
		fmt.Fprintf(w, "nothing to do: the host is as %s wants it\n", strings.Join(p.spec.Profiles, ", "))
		printLeft(w, c, plan)
		return
	}
	for _, it := range plan.Items {
		if it.Action == install.Keep {
			continue
		}
		printItem(w, c, it)
		for _, line := range artifactLines(p, it) {
			fmt.Fprintf(w, "    %s\n", line)
		}
		for line := range strings.Lines(itemDiff(it)) {
			line = strings.TrimSuffix(line, "\n")
			switch {
			case strings.HasPrefix(line, "+"):
				line = c.green(line)
			case strings.HasPrefix(line, "-"):
				line = c.red(line)
			case strings.HasPrefix(line, "@@"):
				line = c.dim(line)
			}
			fmt.Fprintf(w, "    %s\n", line)
		}
		if it.Secret && it.Action != install.Refuse {
			fmt.Fprintf(w, "    %s\n", c.dim("(secret content, not shown)"))
		}
	}
	fmt.Fprintln(w, summary(plan))
}

// printLeft lists what is not wanted any more and not ours to remove.
func printLeft(w io.Writer, c painter, plan *install.Plan) {
	for _, it := range plan.Items {
		if it.Action == install.Leave {
			printItem(w, c, it)
		}
	}
}

// artifactLines say what a release file brings, and who vouches for it.
func artifactLines(p *prepared, it install.Item) []string {
	if it.Kind != install.KindArtifact {
		return nil
	}
	for _, art := range p.state.Artifacts {
		if art.Component != it.Path {
			continue
		}
		line := art.Files[0]
		if art.SHA256 != "" {
			line += ", sha256 " + art.SHA256 + " (" + art.SHA256From + ")"
		} else {
			line += fmt.Sprintf(", sha256 not known: %s.sha256.%s in the profile, or a checksum file beside it in an --artifacts folder, must tell it; nodeprep lock records it", art.Component, art.Arch)
		}
		var required, optional []string
		for _, m := range art.Members {
			if m.Optional {
				optional = append(optional, m.Path)
			} else {
				required = append(required, m.Path)
			}
		}
		lines := []string{line, "installs " + strings.Join(required, ", ")}
		if len(optional) > 0 {
			lines = append(lines, "and, where the release has them, "+strings.Join(optional, ", "))
		}
		return lines
	}
	return nil
}

func printItem(w io.Writer, c painter, it install.Item) {
	name := it.Path
	switch {
	case it.Kind == install.KindArtifact && it.OldVersion != "" && it.OldVersion != it.NewVersion:
		name += " " + it.OldVersion + " -> " + it.NewVersion
	case it.Kind == install.KindArtifact && it.NewVersion != "":
		name += " " + it.NewVersion
	case it.Kind == install.KindSysctl && it.NewVersion != "":
		name += " = " + it.NewVersion
	case it.Kind == install.KindLink && it.NewVersion != "":
		name += " -> " + it.NewVersion
	}
	switch it.Action {
	case install.Create, install.Update, install.Remove:
	default:
		name = string(it.Action) + " " + name
	}
	line := sign(c, it.Action) + " " + c.bold(name)
	if it.Reason != "" {
		line += ": " + it.Reason
	}
	if o := it.Origin.String(); o != "" {
		line += c.dim(" [" + o + "]")
	}
	fmt.Fprintln(w, line)
	if it.Action == install.Refuse && it.Hint != "" {
		fmt.Fprintf(w, "    %s\n", it.Hint)
	}
	for _, d := range it.Details {
		fmt.Fprintf(w, "    %s\n", d)
	}
	for _, d := range it.Adopted {
		fmt.Fprintf(w, "    takes over %s, what is there now is kept\n", d)
	}
}

// summary is the plan in one line.
func summary(plan *install.Plan) string {
	var created, changed, removed, refused int
	var starts, restarts []string
	for _, it := range plan.Items {
		switch it.Action {
		case install.Create:
			created++
		case install.Update:
			changed++
		case install.Remove:
			removed++
		case install.Refuse:
			refused++
		case install.Start:
			starts = append(starts, it.Path)
		case install.Restart:
			restarts = append(restarts, it.Path)
		}
	}
	s := fmt.Sprintf("plan: %d to create, %d to change, %d to remove", created, changed, removed)
	switch {
	case refused > 0:
		s += fmt.Sprintf("; %d refused, so apply would stop", refused)
	case len(restarts) > 0:
		s += "; restarts " + strings.Join(restarts, ", ")
	case len(starts) > 0:
		s += "; starts " + strings.Join(starts, ", ")
	default:
		s += "; restarts nothing"
	}
	return s
}

// exitCode maps what a run ended with to the code that scripts rely on.
func exitCode(err error) int {
	if err == nil {
		return exitDone
	}
	if e, ok := errors.AsType[*codeError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[*auditError](err); ok {
		return exitDiffers
	}
	if _, ok := errors.AsType[*usageError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*invalidError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*invalidBundleError](err); ok {
		return exitUsage
	}
	if _, ok := errors.AsType[*install.StrandedError](err); ok {
		return exitStranded
	}
	if _, ok := errors.AsType[*install.RevertedError](err); ok {
		return exitFailed
	}
	// Damage that showed only when a layer was read.
	if _, ok := errors.AsType[*bundle.DamagedError](err); ok {
		return exitUsage
	}
	return exitFailed
}
