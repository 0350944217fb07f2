package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/systemd"
)

const (
	// firstBootTime is how long a first boot may take. systemd would end it at 30 minutes,
	// and nobody would write down what became of it.
	firstBootTime = 28 * time.Minute
	// resultTime is for writing that down, whatever there was no time for.
	resultTime = time.Minute
)

// firstBootResult is the machine form of firstboot.
type firstBootResult struct {
	Root string `json:"root"`
	*install.FirstBooted
	Audit checks.Report `json:"audit,omitempty"`
}

// firstBootCommand is what nodeprep-firstboot.service runs, and nobody else has to.
func (a *app) firstBootCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "firstboot",
		Short: "Finish a root that was provisioned while it did not run",
		Long: `firstboot does, where a root runs that was provisioned with --root, what needs a running system: it loads the profile's modules and
sets its kernel settings where systemd has not, gives containerd the image archives that wait in ` + install.ImagesDir + `,
runs the audit checks that need no network, and writes ` + install.ResultPath + `. ` + systemd.FirstBootUnitName + ` runs it at boot while
` + install.FirstBootPath + ` is there, which goes when all of it succeeds: what fails is tried again at the next boot.`,
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
		return usagef("firstboot: finishes the host that runs here, and takes no --root")
	}
	if err := a.privileged(ctx); err != nil {
		return err
	}
	// The kubelet waits for this, and a network may never come: the audit does without what
	// asks registries.
	a.offline = true
	began := time.Now()
	result := firstBootResult{Root: t.root.Dir(), FirstBooted: new(install.FirstBooted)}
	a.result = &result
	ended, cancel := context.WithTimeoutCause(ctx, firstBootTime, fmt.Errorf("it took longer than %s", firstBootTime))
	defer cancel()
	progress := a.progress()
	opt := install.FirstBootOptions{Daemon: t.daemon(), Observer: progress, Version: versionString()}
	done, err := install.FirstBoot(ended, t.host, opt)
	progress.finish()
	if done != nil {
		result.FirstBooted = done
	}
	a.changed = len(result.Images)+len(result.Modules)+len(result.Settings) > 0
	if !a.structured {
		a.printFirstBoot(result)
	}
	if err == nil && !result.Waited {
		return nil
	}
	a.awaitTime(ended, t.host, timeAwaited)
	audit := &applyResult{}
	bad := a.auditApplied(ended, t, audit)
	result.Audit = audit.Audit
	if failed, is := errors.AsType[*auditError](bad); is && err != nil {
		// Exit code 3 is for a node of which all else is done.
		err = fmt.Errorf("%w\nthe audit failed, too: %s of required checks", err, plural(failed.failed, "finding"))
	} else {
		err = errors.Join(err, bad)
	}
	// That it is written down comes before that it is done: a power cut between the two does
	// all of it again.
	late, cancel := context.WithTimeout(context.WithoutCancel(ctx), resultTime)
	defer cancel()
	if werr := install.WriteResult(late, t.host, firstBootOutcome(t, began, result, err)); werr != nil {
		err = errors.Join(err, werr)
	}
	if err == nil {
		err = install.EndFirstBoot(late, t.host, opt)
	}
	return err
}

func (a *app) printFirstBoot(r firstBootResult) {
	for _, m := range r.Modules {
		fmt.Fprintf(a.out, "module %s: loaded, which systemd had not\n", m)
	}
	for _, s := range r.Settings {
		fmt.Fprintf(a.out, "%s: set, which systemd had not\n", s)
	}
	for _, img := range r.Images {
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
	for _, l := range r.Left {
		fmt.Fprintln(a.out, l)
	}
	if !r.Waited {
		fmt.Fprintln(a.out, "nothing to do: nothing waits for a first boot here")
	}
}

// auditApplied holds the node against what was applied to it when it did not run.
func (a *app) auditApplied(ctx context.Context, t *target, result *applyResult) error {
	receipt, err := readReceipt(t.root)
	if err != nil || receipt == nil || ctx.Err() != nil {
		return errors.Join(err, context.Cause(ctx))
	}
	wanted, facts := a.facts(t.root)
	p := &prepared{target: t, facts: facts}
	if len(receipt.Profile) > 0 {
		if p.spec, err = applied(receipt, wanted); err != nil {
			return fmt.Errorf("audit: read the profile of the last apply: %w", err)
		}
	}
	var skip []string
	if p.spec != nil {
		skip = p.spec.SkipChecks
	}
	if err := a.audit(ctx, p, result, skip); err != nil || len(result.Audit) > 0 {
		return err
	}
	return errors.New("the node was not audited")
}

// firstBootOutcome is what is written down of a first boot.
func firstBootOutcome(t *target, began time.Time, r firstBootResult, err error) *install.BootResult {
	out := &install.BootResult{
		Verb: install.VerbFirstBoot, Nodeprep: versionString(), Began: began.UTC(), Ended: time.Now().UTC(), Seconds: time.Since(began).Seconds(),
		Outcome: install.BootDone,
	}
	receipt, rerr := readReceipt(t.root)
	if rerr != nil {
		receipt = nil
	}
	bootOutcome(out, receipt, r.Audit, err)
	if receipt == nil {
		return out
	}
	var flat bytes.Buffer
	if err := json.Compact(&flat, receipt.Profile); err == nil {
		sum := sha256.Sum256(flat.Bytes())
		out.Digests.Profile = hex.EncodeToString(sum[:])
	}
	return out
}

// countAudit is an audit in numbers.
func countAudit(r checks.Report) *install.AuditCount {
	n := count(r)
	out := &install.AuditCount{Pass: n.Pass, Warn: n.Warn, Fail: n.Fail, Unknown: n.Unknown, Skipped: n.Skip}
	for _, f := range r.Failed() {
		if !slices.Contains(out.Failing, f.ID) {
			out.Failing = append(out.Failing, f.ID)
		}
	}
	return out
}
