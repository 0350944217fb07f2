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
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/render/cloudinit"
)

// cloudInitTime is how long a run may take beside waiting for its bundle. systemd gives it a
// little more, and nobody would write down what became of it.
const cloudInitTime = cloudinit.Limited - 5*time.Minute

// maxBundle is the most that is fetched, in bytes: a disk that is filled up serves nobody.
const maxBundle = 64 << 30

// cloudInitResult is the machine form of a run.
type cloudInitResult struct {
	// Already says that this was done before, and nothing now.
	Already bool                `json:"already"`
	Apply   *applyResult        `json:"apply,omitempty"`
	Result  *install.BootResult `json:"result,omitempty"`
}

// cloudInitRun is what is to be done.
type cloudInitRun struct {
	cloudInitBundle
	digest string
	// files are the profile and what it names; the digest is theirs.
	files []string
}

// cloudInitRunCommand is what nodeprep-cloud-init.service runs.
func (a *app) cloudInitRunCommand() *cobra.Command {
	var o cloudInitRun
	cmd := &cobra.Command{
		Use:   "run PROFILE [FILE...]",
		Short: "Do on the node what cloud-init's user-data says",
		Long: `run applies a profile once: ` + install.ResultPath + ` says that it was done for a digest, and then it does nothing.
It is what ` + cloudinit.UnitName + ` runs at every boot, until it has succeeded. The digest is that of what sha256sum
prints of the files.`,
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
	o.register(cmd)
	cmd.Flags().StringVar(&a.arch, "arch", "", "with --root: the image's architecture, by Go's name")
	return cmd
}

func (a *app) runCloudInit(ctx context.Context, o cloudInitRun) error {
	faults := []error{o.check(), isSHA256("digest", o.digest)}
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
	result := &cloudInitResult{}
	a.result = result
	// One that cannot be read is replaced by this run's.
	if last, err := install.ReadResult(t.root); err == nil && o.wasDone(last) {
		result.Already, result.Result = true, last
		if !a.structured {
			fmt.Fprintf(a.out, "nothing to do: the profile %s was applied at %s, in %.0f s\n", o.digest, last.Ended.UTC().Format("2006-01-02 15:04:05 MST"), last.Seconds)
		}
		return nil
	}
	r := &install.BootResult{Verb: install.VerbCloudInit, Nodeprep: versionString(), Began: time.Now().UTC()}
	r.Digests.Profile, r.Digests.Nodeprep = o.digest, ownDigest()
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, o.wait+cloudInitTime, fmt.Errorf("it took longer than %s", o.wait+cloudInitTime))
	defer cancel()
	var done *applyResult
	err = a.asCloudInit(ctx, t, o, r, &done)
	result.Apply = done
	r.Ended, r.Seconds = time.Now().UTC(), time.Since(began).Seconds()
	a.cloudInitOutcome(t, r, done, err)
	result.Result = r
	// The phases' end may have taken all the time.
	late, end := context.WithTimeout(context.WithoutCancel(ctx), resultTime)
	defer end()
	if werr := install.WriteResult(late, t.host, r); werr != nil {
		err = errors.Join(err, werr)
	}
	a.result = result
	if !a.structured {
		fmt.Fprintln(a.out, bootLine(r))
	}
	return err
}

// wasDone says whether a run came to its end with these files and this bundle.
func (o *cloudInitRun) wasDone(last *install.BootResult) bool {
	return last.Done() && last.Verb == install.VerbCloudInit && last.Digests.Profile == o.digest &&
		(o.sha256 == "" || last.Digests.Bundle == o.sha256)
}

// asCloudInit applies what is there, and what comes from elsewhere. done is what apply did,
// nil where it did not come to that.
func (a *app) asCloudInit(ctx context.Context, t *target, o cloudInitRun, r *install.BootResult, done **applyResult) error {
	if err := checkDigest(t.root, o.files, o.digest); err != nil {
		return err
	}
	var err error
	if a.profile, err = t.root.Resolve(o.files[0]); err != nil {
		return err
	}
	if o.given() {
		if err := a.takeBundle(ctx, t, &o.cloudInitBundle, r); err != nil {
			return err
		}
	}
	err = a.apply(ctx, planFlags{}, nil)
	*done, _ = a.result.(*applyResult)
	if err == nil && *done != nil && len((*done).Audit) == 0 {
		// The host is as it should be, which is no reason to believe that it works.
		err = a.auditApplied(ctx, t, *done)
	}
	for range auditedAgain {
		if _, failed := errors.AsType[*auditError](err); !failed {
			break
		}
		again := time.NewTimer(auditPause)
		select {
		case <-again.C:
			err = a.auditApplied(ctx, t, *done)
		case <-ctx.Done():
			again.Stop()
			return err
		}
	}
	return err
}

// A machine that boots is busy with other things, and may answer a little later: an audit
// that failed is made again, so often, after such a pause.
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

// takeBundle has the bundle at hand, as a file without a name. A disk is mounted only while
// that is opened.
func (a *app) takeBundle(ctx context.Context, t *target, o *cloudInitBundle, r *install.BootResult) error {
	waiting, cancel := context.WithTimeoutCause(ctx, o.wait, fmt.Errorf("gave up after %s", o.wait))
	defer cancel()
	var f *os.File
	var err error
	if o.url != "" {
		f, err = a.fetchBundle(waiting, o)
		a.bundle = withoutSecrets(o.url)
	} else {
		f, err = openOnDisk(waiting, t.host, o.device)
		a.bundle = cloudinit.BundleFile + " on the disk " + o.device
	}
	if err != nil {
		return fmt.Errorf("get the bundle: %w", err)
	}
	r.Digests.Bundle = o.sha256
	if o.device != "" && o.sha256 != "" {
		if err := hashed(ctx, f, o.sha256, a.bundle); err != nil {
			f.Close()
			return err
		}
	}
	a.bundleFile = f
	return nil
}

// withoutSecrets is an address without its query, which may hold a signature.
func withoutSecrets(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "the bundle"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return u.String()
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
		p.say("fetching %s...", withoutSecrets(o.url))
	}
	if err := store.Download(ctx, o.url, o.sha256, f, func(done, total int64) { p.Progress("fetching the bundle", done, total) }); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// diskAsked is how often is looked whether a disk has come.
const diskAsked = 250 * time.Millisecond

// openOnDisk opens the bundle on the disk with a label, once that is there. It is mounted
// out of everybody's way, and not any more when this returns: what is open stays readable.
func openOnDisk(ctx context.Context, h *host.Host, label string) (_ *os.File, err error) {
	disk := cloudinit.ByLabel + label
	real, err := h.Root.Resolve(filepath.Dir(disk))
	if err != nil {
		return nil, err
	}
	disk = filepath.Join(real, label)
	ask := time.NewTicker(diskAsked)
	defer ask.Stop()
	for {
		if _, err := os.Stat(disk); err == nil {
			break
		} else if !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		select {
		case <-ask.C:
		case <-ctx.Done():
			return nil, fmt.Errorf("no disk has the label %s: %w", label, context.Cause(ctx))
		}
	}
	at, err := os.MkdirTemp("/run", "nodeprep-") // 0700
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.Remove(at)) }()
	if out, err := h.Run(ctx, host.Cmd{Path: "mount", Args: []string{"-o", "ro,nosuid,nodev,noexec", disk, at}}); err != nil {
		return nil, fmt.Errorf("mount the disk %s: %w\n%s", label, err, bytes.TrimSpace(out.Stderr))
	}
	f, err := os.Open(filepath.Join(at, cloudinit.BundleFile))
	if err != nil {
		err = fmt.Errorf("the disk %s has no %s at its top: %w", label, cloudinit.BundleFile, err)
	}
	if out, uerr := h.Run(context.WithoutCancel(ctx), host.Cmd{Path: "umount", Args: []string{"--lazy", at}}); uerr != nil {
		err = errors.Join(err, fmt.Errorf("unmount the disk %s: %w\n%s", label, uerr, bytes.TrimSpace(out.Stderr)))
	}
	if err != nil && f != nil {
		f.Close()
		f = nil
	}
	return f, err
}

// hashed reads a file and wants a digest.
func hashed(ctx context.Context, f *os.File, want, name string) error {
	stop := context.AfterFunc(ctx, func() { f.Close() })
	defer stop()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return errors.Join(context.Cause(ctx), fmt.Errorf("read %s: %w", name, err))
	}
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return &release.DigestError{File: name, Got: got, Want: want, From: "--bundle-sha256"}
	}
	_, err := f.Seek(0, io.SeekStart)
	return err
}

// cloudInitOutcome fills in what became of a run.
func (a *app) cloudInitOutcome(t *target, r *install.BootResult, done *applyResult, err error) {
	r.ExitCode, r.Outcome = exitCode(err), install.BootUnchanged
	if done != nil && len(done.Changed) > 0 {
		r.Outcome = install.BootDone
	}
	if done != nil && len(done.Audit) > 0 {
		r.Audit = countAudit(done.Audit)
	}
	if err != nil {
		r.Error = whatFailed(err)
		if r.ExitCode != exitDiffers {
			r.Outcome = install.BootFailed
		}
	}
	receipt, rerr := readReceipt(t.root)
	if rerr != nil || receipt == nil {
		return
	}
	r.Versions = map[string]string{}
	for _, x := range receipt.Artifacts {
		r.Versions[x.Component] = x.Version
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
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return ""
	}
	return hex.EncodeToString(h.Sum(nil))
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
