package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
)

// applyResult is the machine form of an apply.
type applyResult struct {
	Root       string                  `json:"root"`
	Profiles   []string                `json:"profiles"`
	Recovered  *install.Recovered      `json:"recovered,omitempty"`
	Changed    []planItem              `json:"changed"`
	Artifacts  []install.Installed     `json:"artifacts,omitempty"`
	Images     []install.ImportedImage `json:"images,omitempty"`
	Restarted  []string                `json:"restarted,omitempty"`
	Started    []string                `json:"started,omitempty"`
	Generation int                     `json:"generation"`
	Phases     []install.PhaseTime     `json:"phases,omitempty"`
	// Journal is how much of the phases went into keeping the journal.
	Journal   time.Duration `json:"journal,omitempty"` // nanoseconds
	Preflight checks.Report `json:"preflight,omitempty"`
	Audit     checks.Report `json:"audit,omitempty"`
	Warnings  diag.List     `json:"warnings,omitempty"`
}

func (a *app) applyCommand() *cobra.Command {
	var (
		o    planFlags
		skip []string
	)
	cmd := &cobra.Command{
		Use:   "apply",
		Short: "Make the host what the profile says",
		Long: `apply stages and verifies everything beside its place, then commits by renames, restarts only what the
changes ask for, and proves that the daemon works. When something fails, the host is put back as it was.
With an empty plan it does nothing at all.

The preflight checks run before anything is changed, and one that fails stops the run; --skip makes it a warning. The audit checks
run when all is done: one that fails ends the run with exit code 3, and the host stays changed. nodeprep check runs both at any time.`,
		Example: `  sudo nodeprep apply -f node.yaml
  sudo nodeprep apply -f node.yaml --artifacts ./artifacts --offline
  nodeprep apply -f node.yaml --root /mnt/image --artifacts ./artifacts`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.apply(cmd.Context(), o, skip) },
	}
	o.register(a, cmd)
	cmd.Flags().StringArrayVar(&skip, "skip", nil, "make a check's failure a warning, by its `ID` or a pattern with * (repeatable)")
	complete(cmd, "skip", checkIDs)
	return cmd
}

func (a *app) apply(ctx context.Context, o planFlags, skip []string) error {
	if err := knownIDs("skip", skip); err != nil {
		return err
	}
	t, err := a.open()
	if err != nil {
		return err
	}
	defer t.close()
	if err := a.privileged(ctx); err != nil {
		return err
	}
	result := &applyResult{Root: t.root.Dir(), Profiles: []string{}, Changed: []planItem{}}
	a.result = result
	if result.Recovered, err = a.recoverFirst(ctx, t, o.withRunningPods); err != nil {
		return err
	}
	p, err := a.prepare(ctx, t, o.withoutRecovery)
	if err != nil {
		return err
	}
	result.Profiles = p.spec.Profiles
	diffing := a.diffing(o, p)
	plan, err := install.Diff(ctx, p.host, &p.state, p.receipt, diffing)
	if err != nil {
		return err
	}
	a.warn(plan.Warnings)
	result.Warnings = plan.Warnings
	if plan.Empty() {
		if p.receipt != nil {
			result.Generation = p.receipt.Generation
		}
		if !a.structured {
			a.printPlan(a.out, p, plan)
		}
		return nil
	}
	store, err := a.store(p)
	if err != nil {
		return err
	}
	progress := a.progress()
	skip = slices.Concat(skip, p.spec.SkipChecks)
	opt := install.ApplyOptions{
		DiffOptions: diffing,
		Version:     versionString(),
		Profiles:    p.spec.Profiles,
		Profile:     p.flat,
		Artifacts:   store,
		Observer:    progress,
		Preflight: func(ctx context.Context) (err error) {
			b := basis{facts: p.facts, spec: p.spec, receipt: p.receipt, applying: true}
			result.Preflight, err = a.runChecks(ctx, p.target, b, checks.Selection{Stages: []checks.Stage{checks.Preflight}, Skip: skip})
			if err != nil {
				return err
			}
			for _, line := range preflightNotes(result.Preflight) {
				progress.say("%s", progress.paint.yellow(line))
			}
			if failed := result.Preflight.Failed(); len(failed) > 0 {
				return &checks.FailedError{Stage: checks.Preflight, Report: failed}
			}
			return nil
		},
	}
	if a.unattended != nil {
		opt.AtBoot, opt.UserData = true, *a.unattended
		if a.source.bundle != nil {
			opt.UserData.BundleIndex = a.source.bundle.Digest().Encoded()
		}
	}
	done, err := install.Apply(ctx, p.host, plan, opt)
	progress.finish()
	if done != nil {
		for _, it := range done.Changed {
			result.Changed = append(result.Changed, planItem{Item: it, Diff: itemDiff(it)})
		}
		result.Artifacts, result.Images, result.Restarted, result.Started = done.Artifacts, done.Images, done.Restarted, done.Started
		result.Generation, result.Phases, result.Journal = done.Generation, done.Phases, done.Journal
		result.Warnings = append(result.Warnings, done.Warnings...)
	}
	if err != nil {
		return err
	}
	a.changed = true
	a.warn(done.Warnings)
	if !a.structured {
		a.printApplied(p, done)
	}
	return a.audit(ctx, p, result, skip)
}

// audit looks at the host that was changed, by what is there now. The change stands,
// whatever it finds.
func (a *app) audit(ctx context.Context, p *prepared, result *applyResult, skip []string) error {
	// It may wait for mirrors: a sign of life, as of every phase that can take long.
	if !a.structured {
		fmt.Fprintln(a.stdio.err, "audit...")
	}
	_, facts := a.facts(p.root)
	b := basis{facts: facts, spec: p.spec}
	var err error
	if b.receipt, err = readReceipt(p.root); err == nil {
		result.Audit, err = a.runChecks(ctx, p.target, b, checks.Selection{Stages: []checks.Stage{checks.Audit}, Skip: skip})
	}
	if err != nil {
		a.note("done, but not audited: %v", err)
		return nil
	}
	if !a.structured {
		a.printAudit(p.root, result.Audit)
	}
	if failed := result.Audit.Failed(); len(failed) > 0 {
		return &auditError{len(failed)}
	}
	return nil
}

// privileged fails early where the run could not even read what it needs: the
// preflight check says the same, but comes after files that only root may read.
func (a *app) privileged(ctx context.Context) error {
	root, err := a.openRoot()
	if err != nil {
		return err
	}
	if h := host.New(root); root.Live() && h.UID != 0 {
		n := checks.NewNode(ctx, checks.Outside{Host: h, Live: true, Applying: true, Env: a.env})
		report := checks.Run(ctx, n, checks.Selection{Only: []string{checks.Privilege}})
		if failed := report.Failed(); len(failed) > 0 {
			return &checks.FailedError{Stage: checks.Preflight, Report: failed}
		}
	}
	return nil
}

// preflightNotes are what preflight has to say that does not stop the run.
func preflightNotes(report checks.Report) []string {
	var lines []string
	for _, f := range report {
		if f.Verdict != checks.Warn && f.Verdict != checks.Unknown {
			continue
		}
		lines = append(lines, fmt.Sprintf("preflight %s: %s: %s", f.ID, f.Verdict, oneLine(f.String())))
	}
	return lines
}

func (a *app) printApplied(p *prepared, done *install.Result) {
	c := a.paint(a.out)
	for _, it := range done.Changed {
		printItem(a.out, c, it)
	}
	for _, x := range done.Artifacts {
		fmt.Fprintf(a.out, "%s %s: %s, sha256 %s (%s)\n", x.Component, x.Version, x.File, x.SHA256, x.SHA256From)
	}
	for _, img := range done.Images {
		fmt.Fprintln(a.out, imageLine(img))
	}
	a.printDone(done, fmt.Sprintf("generation %d of %s", done.Generation, p.root.Dir()))
}

// imageLine says what became of an image.
func imageLine(img install.ImportedImage) string {
	line := "image " + img.Name + " from " + img.Archive + ": "
	switch {
	case img.Pending:
		line += "waits for the first boot"
	case img.Present:
		line += "was there already, " + img.Digest
	default:
		line += img.Digest
	}
	if img.Pinned {
		line += ", pinned"
	}
	return line
}

// store is where artifacts come from, for this command line and profile.
func (a *app) store(p *prepared) (install.Artifacts, error) {
	if a.source.node != nil {
		return install.Bundled{Node: a.source.node, Name: a.source.bundle.Name(), Root: p.root, LibC: p.facts.LibC}, nil
	}
	dirs, err := a.artifactFolders()
	if err != nil {
		return nil, err
	}
	cache := filepath.Join(install.StateDir, "cache")
	if !p.root.Live() {
		// An image is not the place for what was fetched to make it.
		// Without a home, as in a unit or a build, there is none, and only a download asks.
		cache = ""
		if user, err := os.UserCacheDir(); err == nil {
			cache = filepath.Join(user, "nodeprep")
		}
	}
	return install.Releases{
		Store: &release.Store{Dirs: dirs, CacheDir: cache, Sources: p.state.Sources, Offline: a.offline, Network: a.network()},
		Root:  p.root,
		LibC:  p.facts.LibC,
	}, nil
}

// artifactFolders are those of --artifacts.
func (a *app) artifactFolders() ([]string, error) {
	var dirs []string
	for _, d := range a.artifacts {
		abs, err := absolute(d)
		if err != nil {
			return nil, err
		}
		fi, err := os.Stat(abs)
		if err != nil {
			return nil, usagef("--artifacts: %w", err)
		}
		if !fi.IsDir() {
			return nil, usagef("--artifacts %s: not a directory", d)
		}
		dirs = append(dirs, abs)
	}
	return dirs, nil
}
