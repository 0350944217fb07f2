package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/render/cloudinit"
)

const (
	// cloudInitTime is how long a run may take when it has its bundle, and recoverTime to end one
	// that was interrupted, as long as nodeprep-recover.service has. systemd gives it a
	// little more than both and the waiting (cloudinit.Limited), and nobody would write down
	// what became of it.
	cloudInitTime = 25 * time.Minute
	recoverTime   = 10 * time.Minute
	// timeAwaited is how long at most a machine that boots waits for the time of day.
	timeAwaited = 2 * time.Minute
)

// maxBundle is the most that is fetched, in bytes: a disk that is filled up serves nobody.
const maxBundle = 64 << 30

// cloudInitResult is the machine form of a run.
type cloudInitResult struct {
	// Already says that this was done before, and nothing now.
	Already bool `json:"already"`
	// Otherwise says that something else was applied since, and nothing is changed.
	Otherwise bool                `json:"otherwise,omitempty"`
	Apply     *applyResult        `json:"apply,omitempty"`
	Result    *install.BootResult `json:"result,omitempty"`
}

// cloudInitRun is what is to be done.
type cloudInitRun struct {
	cloudInitBundle
	digest string
	// files are the profile and what it names; the digest is theirs.
	files []string
	// settled asks whether anything is left to do.
	settled bool
}

// cloudInitRunCommand is what nodeprep-cloud-init.service runs.
func (a *app) cloudInitRunCommand() *cobra.Command {
	var o cloudInitRun
	cmd := &cobra.Command{
		Use:   "run PROFILE [FILE...]",
		Short: "Do on the node what cloud-init's user-data says",
		Long: `run applies a profile once: ` + install.ResultPath + ` says that it was done for a digest, and then it does nothing.
It is what ` + cloudinit.UnitName + ` runs at every boot, until it has succeeded. The digest is that of what sha256sum
prints of the files. What was applied and failed its audit is audited again, and no more; and where something else was applied since,
that stays.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s: name the profile", cmd.CommandPath())
			}
			return nil
		},
		Hidden: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			o.files = args
			return a.runCloudInit(cmd.Context(), o)
		},
	}
	cmd.Flags().StringVar(&o.digest, "digest", "", "the digest of the files, `HEX`")
	cmd.Flags().BoolVar(&o.settled, "settled", false, "do nothing, and succeed where a run would change nothing and needs no bundle")
	o.register(cmd)
	cmd.Flags().StringVar(&a.arch, "arch", "", "with --root: the image's architecture, by Go's name")
	return cmd
}

func (a *app) runCloudInit(ctx context.Context, o cloudInitRun) error {
	faults := []error{isSHA256("digest", o.digest)}
	if o.settled {
		faults = append(faults, isSHA256("bundle-sha256", o.sha256)) // where it comes from is not asked
	} else {
		faults = append(faults, o.check())
	}
	if o.digest == "" {
		faults = append(faults, usagef("--digest: which files are these? it is missing"))
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	t, err := a.openFor("cloud-init run")
	if err != nil {
		return err
	}
	defer t.close()
	if err := a.privileged(ctx); err != nil {
		return err
	}
	// One that cannot be read is replaced by this run's.
	newest, _ := install.ReadResult(t.root)
	last := o.last(newest)
	if o.settled {
		return o.isSettled(t.root, last)
	}
	result := &cloudInitResult{}
	a.result = result
	if last.Done() {
		result.Already, result.Otherwise, result.Result = true, last.Otherwise, last
		switch {
		case a.structured:
		case last.Otherwise:
			a.printOtherwise(last)
		default:
			fmt.Fprintf(a.out, "nothing to do: the profile %s was applied at %s, in %.0f s\n", o.digest, last.Ended.UTC().Format(bootTime), last.Seconds)
		}
		return nil
	}
	run := &cloudInitOnce{cloudInitRun: o, target: t, result: result, out: &install.BootResult{Verb: install.VerbCloudInit, Nodeprep: versionString(), Began: time.Now().UTC()}}
	run.out.Digests.Profile = o.digest
	began := time.Now()
	err = a.asCloudInit(ctx, run, last)
	r := run.out
	r.Ended, r.Seconds = time.Now().UTC(), time.Since(began).Seconds()
	run.outcome(last, err)
	result.Otherwise, result.Result = r.Otherwise, r
	// The phases' end may have taken all the time.
	late, end := context.WithTimeout(context.WithoutCancel(ctx), resultTime)
	defer end()
	if werr := install.WriteResult(late, t.host, r); werr != nil {
		err = errors.Join(err, werr)
	}
	a.result = result
	if !a.structured {
		if r.Otherwise {
			a.printOtherwise(r)
		}
		fmt.Fprintln(a.out, bootLine(r))
	}
	return err
}

// printOtherwise says why a profile counts for nothing.
func (a *app) printOtherwise(r *install.BootResult) {
	fmt.Fprintf(a.out, "nothing is changed: something else was applied since, generation %d of %s; the profile of cloud-init counts again when that is uninstalled\n",
		r.Generation, r.Applied.UTC().Format(bootTime))
}

// bootTime is how times of runs at boot are printed.
const bootTime = "2006-01-02 15:04:05 MST"

// cloudInitOnce is one run.
type cloudInitOnce struct {
	cloudInitRun
	*target
	out    *install.BootResult
	result *cloudInitResult
}

// last is what became of the last run for these files and this bundle, nil where there was
// none.
func (o *cloudInitRun) last(newest *install.BootResult) *install.BootResult {
	last := newest.Of(install.VerbCloudInit)
	if last == nil || last.Digests.Profile != o.digest || o.sha256 != "" && last.Digests.Bundle != o.sha256 {
		return nil
	}
	return last
}

// What a run that is not done yet has to do.
type cloudInitStep int

const (
	applyAll cloudInitStep = iota
	// auditOnly is for a host to which all was applied already: its audit failed, or the power
	// went before it was written down.
	auditOnly
	// leaveAll is for one to which somebody has applied something else since.
	leaveAll
)

// next decides by the result of the last run, which may be nil, and the receipt.
func (o *cloudInitRun) next(last *install.BootResult, receipt *install.Receipt) cloudInitStep {
	switch {
	case o.ours(receipt):
		return auditOnly
	case last == nil || receipt == nil:
		return applyAll
	case !last.Saw(receipt):
		return leaveAll
	case last.ExitCode == exitDiffers:
		return auditOnly
	}
	return applyAll
}

// ours says whether a receipt, which may be nil, is of these files and this bundle.
func (o *cloudInitRun) ours(receipt *install.Receipt) bool {
	return receipt != nil && receipt.UserData.Profile == o.digest && (o.sha256 == "" || receipt.UserData.Bundle == o.sha256)
}

// isSettled ends well where a run would change nothing and fetch nothing.
func (o *cloudInitRun) isSettled(root *host.Root, last *install.BootResult) error {
	if last.Done() {
		return nil
	}
	j, err := pending(root)
	if err != nil {
		return err
	}
	receipt, err := readReceipt(root)
	if err != nil {
		return err
	}
	if j != nil || o.next(last, receipt) == applyAll {
		return &codeError{exitFailed}
	}
	return nil
}

// asCloudInit does what is left to do.
func (a *app) asCloudInit(ctx context.Context, run *cloudInitOnce, last *install.BootResult) error {
	// What was interrupted decides by how it ends.
	recovering, cancel := context.WithTimeoutCause(ctx, recoverTime, fmt.Errorf("it took longer than %s", recoverTime))
	defer cancel()
	if _, err := a.recoverFirst(recovering, run.target, false); err != nil {
		return err
	}
	receipt, err := readReceipt(run.root)
	if err != nil {
		return err
	}
	step := run.next(last, receipt)
	if step == leaveAll {
		run.out.Otherwise, run.out.Digests.Bundle = true, run.sha256
		return nil
	}
	a.awaitTime(ctx, run.host, min(run.wait, timeAwaited))
	if step == auditOnly {
		return a.auditUserData(ctx, run, last, receipt)
	}
	return a.applyUserData(ctx, run)
}

// cloudInitLimit ends what a run does when it has its bundle.
func cloudInitLimit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, cloudInitTime, fmt.Errorf("it took longer than %s", cloudInitTime))
}

// applyUserData gets what is to be applied, and applies it.
func (a *app) applyUserData(ctx context.Context, run *cloudInitOnce) error {
	if err := checkDigest(run.root, run.files, run.digest); err != nil {
		return err
	}
	var err error
	if a.profile, err = run.root.Resolve(run.files[0]); err != nil {
		return err
	}
	// A lock is taken where user-data brought one; what lies beside the profile is of another.
	a.noLock = !slices.Contains(run.files, cloudinit.LockPath)
	run.out.Digests.Bundle = run.sha256
	if run.given() {
		if err := a.takeBundle(ctx, run.target, &run.cloudInitBundle); err != nil {
			return err
		}
	}
	ctx, cancel := cloudInitLimit(ctx)
	defer cancel()
	if run.device != "" && run.sha256 != "" {
		if err := hashed(ctx, a.bundleFile, run.sha256, a.bundle); err != nil {
			a.bundleFile.Close()
			return err
		}
	}
	a.unattended = &install.BootDigests{Profile: run.digest, Bundle: run.sha256}
	err = a.apply(ctx, planFlags{}, nil)
	run.result.Apply, _ = a.result.(*applyResult)
	if a.source.bundle != nil {
		run.out.Digests.BundleIndex = a.source.bundle.Digest().Encoded()
	}
	if done := run.result.Apply; err == nil && done != nil && len(done.Audit) == 0 {
		// The host is as it should be, which is no reason to believe that it works.
		err = a.auditApplied(ctx, run.target, done)
	}
	return a.auditPatiently(ctx, run, err)
}

// auditUserData audits what was applied already, as the receipt says; last may be nil.
func (a *app) auditUserData(ctx context.Context, run *cloudInitOnce, last *install.BootResult, receipt *install.Receipt) error {
	ctx, cancel := cloudInitLimit(ctx)
	defer cancel()
	used := receipt.UserData
	if !run.ours(receipt) { // nothing was to be changed for it
		used = last.Digests
	}
	run.out.Digests.Bundle, run.out.Digests.BundleIndex = used.Bundle, used.BundleIndex
	run.result.Apply = &applyResult{Root: run.root.Dir(), Profiles: receipt.Profiles, Changed: []planItem{}, Generation: receipt.Generation}
	err := a.auditApplied(ctx, run.target, run.result.Apply)
	if last != nil && last.ExitCode == exitDiffers {
		return err // the boot before had the patience
	}
	return a.auditPatiently(ctx, run, err)
}

// auditPatiently makes an audit that failed again; any other error it returns as it is.
func (a *app) auditPatiently(ctx context.Context, run *cloudInitOnce, err error) error {
	for range auditedAgain {
		if _, failed := errors.AsType[*auditError](err); !failed {
			break
		}
		again := time.NewTimer(auditPause)
		select {
		case <-again.C:
			err = a.auditApplied(ctx, run.target, run.result.Apply)
		case <-ctx.Done():
			again.Stop()
			return err
		}
	}
	return err
}

// A machine that boots is busy with other things, and may answer a little later: an audit
// that failed is made again, so often, after such a pause. In later boots it is not.
const (
	auditedAgain = 2
	auditPause   = 10 * time.Second
)

// checkDigest holds the files to the digest that user-data came with: cloud-init writes them
// once, and who changes one since applies that himself.
func checkDigest(root *host.Root, names []string, want string) error {
	var files []cloudinit.File
	for _, name := range names {
		data, err := root.ReadFile(name)
		if err != nil {
			return fmt.Errorf("read what cloud-init wrote: %w", err)
		}
		files = append(files, cloudinit.File{Path: name, Data: data})
	}
	if got := cloudinit.Digest(files); got != want {
		return fmt.Errorf("%s is not what cloud-init wrote: the digest of %s is %s, want %s; nodeprep apply -f %s applies what it is now",
			names[0], plural(len(names), "file"), got, want, names[0])
	}
	return nil
}

// takeBundle has the bundle at hand, as a file without a name, in the time that is given for
// that. A disk is mounted only while the file is opened.
func (a *app) takeBundle(ctx context.Context, t *target, o *cloudInitBundle) error {
	waiting, cancel := context.WithTimeoutCause(ctx, o.wait, fmt.Errorf("gave up after %s", o.wait))
	defer cancel()
	var f *os.File
	var err error
	if o.url != "" {
		f, err = a.fetchBundle(waiting, o)
		a.bundle = release.Shown(o.url)
	} else {
		f, err = openOnDisk(waiting, t.host, o.device, a.note)
		a.bundle = cloudinit.BundleFile + " on the disk " + o.device
	}
	if err != nil {
		return fmt.Errorf("get the bundle: %w", err)
	}
	a.bundleFile = f
	return nil
}

// fetchBundle fetches the bundle, verified.
func (a *app) fetchBundle(ctx context.Context, o *cloudInitBundle) (*os.File, error) {
	f, err := host.UnnamedFile(a.tempDir())
	if err != nil {
		return nil, err
	}
	p := a.progress()
	defer p.finish()
	store := &release.Store{Network: a.network(), Offline: a.offline, MaxBytes: maxBundle}
	if !a.structured {
		p.say("fetching %s...", release.Shown(o.url))
	}
	if err := store.Download(ctx, o.url, o.sha256, f, func(done, total int64) { p.Progress("fetching the bundle", done, total) }); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// awaitTime waits a while for the time of day where the clock says what cannot be: a board
// without a battery starts in 1970, in which no certificate is valid. Whatever sets the time
// may never come.
func (a *app) awaitTime(ctx context.Context, h *host.Host, most time.Duration) {
	if !h.Root.Live() || !checks.TooEarly(h.Now()) {
		return
	}
	a.note("the clock says %s, which cannot be: the time is waited for, %s at most", h.Now().UTC().Format(bootTime), most)
	ctx, cancel := context.WithTimeout(ctx, most)
	defer cancel()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for checks.TooEarly(h.Now()) {
		select {
		case <-look.C:
		case <-ctx.Done():
			a.note("nobody has set the time: it goes on with %s", h.Now().UTC().Format(bootTime))
			return
		}
	}
	a.note("the time is there: %s", h.Now().UTC().Format(bootTime))
}

const (
	// diskAsked is how often is looked whether a disk has come, and mountAgain the pause after
	// which one that could not be mounted is tried again.
	diskAsked  = 250 * time.Millisecond
	mountAgain = 5 * time.Second
)

// mountError is a disk that is there and is not mounted. It may be in a moment: it settles, or
// another has it.
type mountError struct {
	label string
	err   error
	says  []byte
}

func (e *mountError) Error() string {
	return fmt.Sprintf("mount the disk %s: %v\n%s", e.label, e.err, bytes.TrimSpace(e.says))
}

func (e *mountError) Unwrap() error { return e.err }

// openOnDisk opens the bundle on the disk with a label, once that is there and can be mounted.
func openOnDisk(ctx context.Context, h *host.Host, label string, note func(string, ...any)) (*os.File, error) {
	byLabel, err := h.Root.Resolve(filepath.Clean(cloudinit.ByLabel))
	if err != nil {
		return nil, err
	}
	disk := filepath.Join(byLabel, label)
	ask := time.NewTicker(diskAsked)
	defer ask.Stop()
	said := ""
	for {
		_, err := os.Stat(disk)
		switch {
		case err == nil:
			var f *os.File
			f, err = openMounted(ctx, h, disk, label)
			if _, again := errors.AsType[*mountError](err); !again {
				return f, err
			}
			if said != err.Error() {
				said = err.Error()
				note("%s; it is tried again", said)
			}
			ask.Reset(mountAgain)
		case errors.Is(err, fs.ErrNotExist):
			err = fmt.Errorf("no disk has the label %s", label)
		default:
			return nil, err
		}
		select {
		case <-ask.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", err, context.Cause(ctx))
		}
	}
}

// openMounted opens the bundle on a disk, which is mounted out of everybody's way, and not any
// more when this returns: what is open stays readable. It is *mountError where it is not.
func openMounted(ctx context.Context, h *host.Host, disk, label string) (f *os.File, err error) {
	run, err := h.Root.Resolve("/run")
	if err != nil {
		return nil, err
	}
	at, err := os.MkdirTemp(run, "nodeprep-") // 0700
	if err != nil {
		return nil, err
	}
	defer func() {
		if err = errors.Join(err, os.Remove(at)); err != nil && f != nil {
			f.Close()
			f = nil
		}
	}()
	if out, err := h.Run(ctx, host.Cmd{Path: "mount", Args: []string{"-o", "ro,nosuid,nodev,noexec", disk, at}}); err != nil {
		return nil, &mountError{label, err, out.Stderr}
	}
	f, err = openRegular(filepath.Join(at, cloudinit.BundleFile))
	if err != nil {
		err = fmt.Errorf("the disk %s has no %s at its top: %w", label, cloudinit.BundleFile, err)
	}
	if out, uerr := h.Run(context.WithoutCancel(ctx), host.Cmd{Path: "umount", Args: []string{"--lazy", at}}); uerr != nil {
		err = errors.Join(err, fmt.Errorf("unmount the disk %s: %w\n%s", label, uerr, bytes.TrimSpace(out.Stderr)))
	}
	return f, err
}

// openRegular opens a file on a disk that anybody may have made: a pipe would never open, and
// a link leaves it.
func openRegular(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", filepath.Base(name))
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// hashed reads a file and wants a digest.
func hashed(ctx context.Context, f *os.File, want, name string) error {
	var got string
	var err error
	read := make(chan struct{})
	go func() {
		defer close(read)
		got, err = sha256Of(f)
	}()
	// A disk that hangs ends no read, whatever is closed.
	select {
	case <-read:
	case <-ctx.Done():
		return fmt.Errorf("read %s: %w", name, context.Cause(ctx))
	}
	if err != nil {
		return fmt.Errorf("read %s: %w", name, err)
	}
	if got != want {
		return &release.DigestError{File: name, Got: got, Want: want, From: "--bundle-sha256"}
	}
	_, err = f.Seek(0, io.SeekStart)
	return err
}

// outcome fills in what became of a run.
func (run *cloudInitOnce) outcome(last *install.BootResult, err error) {
	r, done := run.out, run.result.Apply
	r.Outcome = install.BootUnchanged
	receipt, rerr := readReceipt(run.root)
	switch {
	case r.Otherwise:
	case done != nil && len(done.Changed) > 0,
		// It was changed before: by the run whose audit is made again, or that was interrupted.
		rerr == nil && run.ours(receipt),
		last != nil && last.Outcome == install.BootDone:
		r.Outcome = install.BootDone
	}
	var audit checks.Report
	if done != nil {
		audit = done.Audit
	}
	bootOutcome(r, receipt, audit, err)
}

// bootOutcome fills in what is the same of all runs that a machine starts by itself. The
// receipt may be nil; what is not to be read of it is in the error already.
func bootOutcome(r *install.BootResult, receipt *install.Receipt, audit checks.Report, err error) {
	r.ExitCode, r.Digests.Nodeprep = exitCode(err), ownDigest()
	if err != nil {
		r.Error = whatFailed(err)
		if r.ExitCode != exitDiffers {
			r.Outcome = install.BootFailed
		}
	}
	if len(audit) > 0 {
		r.Audit = countAudit(audit)
	}
	if receipt != nil {
		r.Versions = map[string]string{}
		for _, x := range receipt.Artifacts {
			r.Versions[x.Component] = x.Version
		}
	}
}

// ownDigest is the sha256 of the running program, "" where it cannot be read. The receipt
// knows one only where nodeprep was not there before.
func ownDigest() string {
	f, err := os.Open("/proc/self/exe")
	if err != nil {
		return ""
	}
	defer f.Close()
	sum, _ := sha256Of(f)
	return sum
}

// sha256Of is the digest of what is left to read, lower-case hex; "" beside an error.
func sha256Of(r io.Reader) (string, error) {
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// maxError is the most that is written down of an error, in bytes.
const maxError = 4 << 10

// whatFailed is an error with the faults of a profile that it is about.
func whatFailed(err error) string {
	lines := []string{err.Error()}
	if invalid, ok := errors.AsType[*invalidError](err); ok {
		for _, d := range invalid.list.Errors() {
			lines = append(lines, d.String())
		}
	}
	msg := strings.Join(lines, "\n")
	if len(msg) > maxError {
		msg = strings.ToValidUTF8(msg[:maxError], "") + "..."
	}
	return msg
}

// bootLine says in a line what a run came to.
func bootLine(r *install.BootResult) string {
	line := fmt.Sprintf("%s: %s in %.1f s, exit code %d", r.Verb, r.Outcome, r.Seconds, r.ExitCode)
	if r.Error != "" {
		line += ": " + oneLine(r.Error)
	}
	return line
}
