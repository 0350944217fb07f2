package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// checkResult is the machine form of check.
type checkResult struct {
	Root string `json:"root"`
	// Profile is what the host was held against, "" where it was held against what
	// upstream documents.
	Profile  string         `json:"profile"`
	Stages   []checks.Stage `json:"stages"`
	Findings checks.Report  `json:"findings"`
	Summary  verdicts       `json:"summary"`
	Duration time.Duration  `json:"duration"` // nanoseconds
}

// verdicts counts findings.
type verdicts struct {
	Pass    int `json:"pass"`
	Warn    int `json:"warn"`
	Fail    int `json:"fail"`
	Skip    int `json:"skip"`
	Unknown int `json:"unknown"`
}

func count(r checks.Report) verdicts {
	var v verdicts
	for _, f := range r {
		switch f.Verdict {
		case checks.Pass:
			v.Pass++
		case checks.Warn:
			v.Warn++
		case checks.Fail:
			v.Fail++
		case checks.Skip:
			v.Skip++
		case checks.Unknown:
			v.Unknown++
		}
	}
	return v
}

// listResult is the machine form of check --list.
type listResult struct {
	Checks []listedCheck `json:"checks"`
}

type listedCheck struct {
	ID       string          `json:"id"`
	Stage    checks.Stage    `json:"stage"`
	Severity checks.Severity `json:"severity"`
	Why      string          `json:"why"`
	Source   string          `json:"source"`
	Needs    []string        `json:"needs"`
	Remedy   string          `json:"remedy"`
}

// checkFlags are those of check.
type checkFlags struct {
	stage      string
	skip, only []string
	list       bool
}

func (a *app) checkCommand() *cobra.Command {
	var o checkFlags
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Look at what is true of the host, and name what sets it",
		Long: `check reads what is in force (systemd's properties, /proc and /sys, the daemon itself), not what files promise, and changes
nothing. What it finds is held against the profile, on a provisioned node without one against the profile of the last apply, and
elsewhere against what upstream documents: it audits any containerd host.

pass: it holds. warn: the node works, and somebody should know. fail: a required check does not hold. skip: what the check needs
is not here. unknown: it could not be found out, as without root. Exit code 3 says that a required check failed; warnings
and what is unknown never change the code. docs/checks.md has every check; --list prints them.`,
		Example: `  sudo nodeprep check
  sudo nodeprep check -f node.yaml --stage preflight
  sudo nodeprep check --only 'unit/*' --only 'process/*'
  sudo nodeprep check --skip 'registry/*' --offline -o junit > report.xml
  nodeprep check --root /mnt/image
  nodeprep check --list --stage audit`,
		Args:        noArgs,
		Annotations: map[string]string{alsoFormats: "junit"},
		RunE:        func(cmd *cobra.Command, _ []string) error { return a.check(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.stage, "stage", "", "only the checks of a `STAGE`: preflight (before an install) or audit (of a provisioned node)")
	f.StringArrayVar(&o.skip, "skip", nil, "make a check's failure a warning, by its `ID` or a pattern with * (repeatable)")
	f.StringArrayVar(&o.only, "only", nil, "run no other checks than this `ID` or pattern with *, and what they need (repeatable)")
	f.BoolVar(&o.list, "list", false, "print the checks instead of running them")
	complete(cmd, "stage", cobra.FixedCompletions([]cobra.Completion{string(checks.Preflight), string(checks.Audit)}, cobra.ShellCompDirectiveNoFileComp))
	complete(cmd, "skip", checkIDs)
	complete(cmd, "only", checkIDs)
	return cmd
}

// complete tells a shell what values a flag has.
func complete(cmd *cobra.Command, flag string, values cobra.CompletionFunc) {
	if err := cmd.RegisterFlagCompletionFunc(flag, values); err != nil {
		panic(err) // there is no such flag
	}
}

// checkIDs completes the ID of a check, and patterns for families.
func checkIDs(_ *cobra.Command, _ []string, begun string) ([]cobra.Completion, cobra.ShellCompDirective) {
	var out []cobra.Completion
	last := ""
	for _, c := range checks.Catalogue() {
		if family := family(c.ID); family != last {
			last = family
			if pattern := family + "/*"; strings.HasPrefix(pattern, begun) {
				out = append(out, cobra.CompletionWithDesc(pattern, "all of them"))
			}
		}
		if strings.HasPrefix(c.ID, begun) {
			out = append(out, cobra.CompletionWithDesc(c.ID, c.Why))
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}

// family is an ID's part before the slash.
func family(id string) string {
	before, _, _ := strings.Cut(id, "/")
	return before
}

// selection is what the flags select; a fault of theirs is wrong usage.
func (o checkFlags) selection() (checks.Selection, error) {
	s := checks.Selection{Stages: []checks.Stage{checks.Preflight, checks.Audit}, Skip: o.skip, Only: o.only}
	if o.stage != "" {
		if err := oneOf("stage", o.stage, string(checks.Preflight), string(checks.Audit)); err != nil {
			return s, err
		}
		s.Stages = []checks.Stage{checks.Stage(o.stage)}
	}
	if err := errors.Join(knownIDs("only", o.only), knownIDs("skip", o.skip)); err != nil {
		return s, err
	}
	// A run of no checks would be a success that says nothing.
	if !slices.ContainsFunc(checks.Catalogue(), s.Has) {
		return s, usagef("--only %s: none of these is of the stage %s", strings.Join(o.only, ", "), o.stage)
	}
	return s, nil
}

// knownIDs refuses IDs of a flag that no check has.
func knownIDs(flag string, ids []string) error {
	if err := (checks.Selection{Skip: ids}).Validate(); err != nil {
		return usagef("--%s: %w", flag, err)
	}
	return nil
}

// skipNotes warns of IDs in a profile that no check has: the profile may be for another
// version, and what they were to demote is then not demoted.
func skipNotes(spec *profiles.Spec) diag.List {
	var list diag.List
	for i, id := range spec.SkipChecks {
		if err := (checks.Selection{Skip: []string{id}}).Validate(); err != nil {
			list.Warnf(spec.Origin(fmt.Sprintf("checks.skip[%d]", i)), "", "%v", err)
		}
	}
	return list
}

func (a *app) check(ctx context.Context, o checkFlags) error {
	selection, err := o.selection()
	if err != nil {
		return err
	}
	if o.list {
		return a.listChecks(selection)
	}
	t, err := a.open()
	if err != nil {
		return err
	}
	defer t.close()
	b, err := a.basis(ctx, t)
	if err != nil {
		return err
	}
	if b.spec != nil {
		selection.Skip = slices.Concat(selection.Skip, b.spec.SkipChecks)
	}
	begun := time.Now()
	report, err := a.runChecks(ctx, t, b, selection)
	if err != nil {
		return err
	}
	r := checkResult{
		Root: t.root.Dir(), Profile: b.name, Stages: selection.Stages,
		Findings: report, Summary: count(report), Duration: time.Since(begun),
	}
	a.result = r
	switch {
	case a.output == "junit":
		err = printJUnit(a.out, r)
	case !a.structured:
		a.printCheck(r)
	}
	if r.Summary.Unknown > 0 && t.host.UID != 0 && t.root.Live() {
		a.note("%s unknown to uid %d; sudo nodeprep check sees more", isAre(r.Summary.Unknown, "finding"), t.host.UID)
	}
	if err == nil && r.Summary.Fail > 0 {
		err = &codeError{exitDiffers}
	}
	return err
}

// listChecks prints the checks that are selected.
func (a *app) listChecks(s checks.Selection) error {
	if a.output == "junit" {
		return usagef("--list: want -o text, json or yaml, since nothing is run")
	}
	r := listResult{Checks: []listedCheck{}}
	for _, c := range checks.Catalogue() {
		if !s.Has(c) {
			continue
		}
		r.Checks = append(r.Checks, listedCheck{
			ID: c.ID, Stage: c.Stage, Severity: c.Severity, Why: c.Why, Source: c.Source,
			Needs: append([]string{}, c.Needs...), Remedy: c.Remedy,
		})
	}
	a.result = r
	if !a.structured {
		a.printList(r)
	}
	return nil
}

// note says on standard error what the result does not show.
func (a *app) note(format string, args ...any) {
	fmt.Fprintln(a.stdio.err, a.paint(a.stdio.err).yellow(fmt.Sprintf(format, args...)))
}

// basis is what a host is held against.
type basis struct {
	facts   host.Facts
	spec    *profiles.Spec // nil: what upstream documents
	name    string         // of the profile, "" without one
	receipt *install.Receipt
	// applying says that a run which changes the host follows.
	applying bool
}

// basis finds what a host is held against: the profile of -f; the one on the node; the one
// that the node was provisioned from; none. What only root may read and nobody asked for
// by name is said and done without.
func (a *app) basis(ctx context.Context, t *target) (basis, error) {
	var (
		b   basis
		err error
	)
	without := func(what string, err error) {
		if errors.Is(err, fs.ErrPermission) {
			err = errors.New("permission denied")
		}
		a.note("%s: %v; checked without it", what, err)
	}
	if b.receipt, err = install.ReadReceipt(t.root); err != nil {
		without("the receipt "+install.ReceiptPath, err)
	}
	var wanted profiles.Facts
	wanted, b.facts = a.facts(t.root)
	if !b.facts.ArchKnown && b.receipt != nil {
		// What the last apply was told that the image is for.
		a.arch = b.receipt.Arch
		wanted, b.facts = a.facts(t.root)
	}
	name := a.profile
	if name == "" {
		switch _, err := t.root.Stat(profileOnNode); {
		case err == nil:
			if name, err = t.root.Resolve(profileOnNode); err == nil {
				_, err = a.read(ctx, name)
			}
			if errors.Is(err, fs.ErrPermission) {
				without("the profile "+profileOnNode, err)
				name = ""
			} else if err != nil {
				return b, err
			}
		case !errors.Is(err, fs.ErrNotExist):
			without("the profile "+profileOnNode, err)
		}
	}
	if name != "" {
		profile, err := a.load(ctx, name)
		if err != nil {
			return b, err
		}
		b.name = strings.Join(profile.Layers(), ", ")
		b.spec, err = a.resolve(profile, wanted, time.Now())
		return b, err
	}
	if b.receipt != nil && len(b.receipt.Profile) > 0 {
		if b.spec, err = applied(b.receipt, wanted); err != nil {
			without("the profile of the last apply", err)
		} else {
			b.name = strings.Join(b.receipt.Profiles, ", ") + " (of the last apply)"
		}
	}
	return b, nil
}

// applied is the Spec that a receipt's node was provisioned from, for these facts. What
// was to be said of its profile was said then.
func applied(r *install.Receipt, facts profiles.Facts) (*profiles.Spec, error) {
	p, err := profiles.FromFlat(r.Profile, r.Profiles)
	if err != nil {
		return nil, err
	}
	spec, list := profiles.Resolve(p, facts)
	if list.HasErrors() {
		return nil, &invalidError{list}
	}
	return spec, nil
}

// runChecks looks at a host as it is now.
func (a *app) runChecks(ctx context.Context, t *target, b basis, s checks.Selection) (checks.Report, error) {
	var open connections
	defer open.close()
	report := checks.Run(ctx, checks.NewNode(ctx, a.outside(t, b, &open)), s)
	if ctx.Err() != nil {
		return nil, fmt.Errorf("check %s: %w", t.root.Dir(), context.Cause(ctx))
	}
	return report, nil
}

// outside is everything that checks ask; what they connect to ends with open.
func (a *app) outside(t *target, b basis, open *connections) checks.Outside {
	o := checks.Outside{
		Host: t.host, Facts: b.facts, Live: t.root.Live(), Applying: b.applying,
		Spec: b.spec, Receipt: lastApply(t.root, b.receipt, a.profile), Env: a.env,
	}
	// Where nothing is to be reached, checks that would reach for it are left out.
	if network := a.network(); !network.Forbidden() {
		o.Dial = network.DialContext
	}
	if o.Live {
		o.Units = func(ctx context.Context) (checks.Units, error) { return open.systemd(ctx, t) }
		o.Daemon, o.Listener = open.containerd, daemon.Peer
	}
	return o
}

// lastApply is what checks want to know of a receipt. The profile that a remedy names is
// the one that was asked for, else the one that was applied.
func lastApply(root *host.Root, r *install.Receipt, profile string) *checks.Receipt {
	if r == nil {
		return nil
	}
	if profile == "" && len(r.Profiles) > 0 {
		profile = strings.TrimPrefix(r.Profiles[0], "builtin:")
	}
	if profile == "-" {
		profile = "" // standard input is no more
	}
	out := &checks.Receipt{Versions: map[string]string{}, Time: r.Time, Profile: profile}
	for _, x := range r.Artifacts {
		out.Versions[x.Component] = strings.TrimPrefix(x.Version, "v")
	}
	for _, o := range r.Owned {
		if o.Component != "" && o.Kind == install.KindFile {
			out.Programs = append(out.Programs, o.Path)
		}
	}
	out.Drift = func(ctx context.Context) ([]checks.Drift, error) {
		drift, err := install.Drift(ctx, root, r, false)
		var list []checks.Drift
		for _, d := range drift {
			list = append(list, checks.Drift{Path: d.Path, What: inWords(d).What})
		}
		return list, err
	}
	return out
}

// connections are those that checks have opened. A check that did not end in time may
// still open one when all others are closed.
type connections struct {
	mu     sync.Mutex
	closed bool
	opened []func()
}

func (c *connections) keep(end func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		end()
		return
	}
	c.opened = append(c.opened, end)
}

func (c *connections) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	for _, end := range c.opened {
		end()
	}
	c.opened = nil
}

// systemd is the connection that the target has already, or one of its own.
func (c *connections) systemd(ctx context.Context, t *target) (checks.Units, error) {
	if t.manager != nil {
		return t.manager, nil
	}
	m, err := systemd.Connect(ctx, nil)
	if err != nil {
		return nil, err
	}
	c.keep(m.Close)
	return m, nil
}

func (c *connections) containerd(ctx context.Context, address string) (checks.Containerd, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	// Connect waits for a daemon that starts. Where nobody listens, or this user may not
	// ask, there is nothing to wait for.
	conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	_ = conn.Close()
	client, err := daemon.Connect(ctx, address)
	if err != nil && ctx.Err() != nil {
		// What the library says of a connection that hangs helps nobody.
		return nil, fmt.Errorf("connect to containerd: somebody listens, and does not answer within %v: %w", answerTime, ctx.Err())
	}
	if err != nil {
		return nil, err
	}
	c.keep(func() { _ = client.Close() })
	return client, nil
}
