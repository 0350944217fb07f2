package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

// lockFlag is that of verbs that work with a profile.
func (a *app) lockFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&a.lock, "lock", "", "the lock `FILE` that rules which release files are used; by default "+release.LockFile+" beside the profile, where it is there")
}

// lockName is where a profile's lock is: --lock, or beside the profile; "" for a profile
// that is no file, and where none is to be taken from there.
func (a *app) lockName(profileName string) string {
	switch {
	case a.lock != "":
		return a.lock
	case a.noLock:
		return ""
	case profileName == "-" || profileName == profiles.BundleName || slices.Contains(profiles.BuiltIns(), profileName):
		return ""
	}
	return filepath.Join(filepath.Dir(profileName), release.LockFile)
}

// lockCommandLine is what writes a profile's lock anew.
func (a *app) lockCommandLine(profileName string) string {
	line := "nodeprep lock -f " + profileName
	if a.lock != "" {
		line += " --lock " + a.lock
	}
	return line
}

// lockOf is the lock of a profile by the name it was loaded with, nil where there is none.
// Its faults are an *invalidError.
func (a *app) lockOf(profileName string) (*release.Lock, error) {
	name := a.lockName(profileName)
	if name == "" {
		return nil, nil
	}
	lock, list, err := release.LoadLock(name)
	switch {
	case errors.Is(err, fs.ErrNotExist) && a.lock == "":
		if _, linked := os.Lstat(name); linked == nil {
			// Someone meant a lock to be there.
			return nil, usagef("read the lock: %s is a link to nothing", name)
		}
		return nil, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, usagef("--lock: %w; %s writes it", err, a.lockCommandLine(profileName))
	case err != nil:
		return nil, fmt.Errorf("read the lock: %w", err)
	}
	if list.HasErrors() {
		return nil, &invalidLockError{invalidError{list}}
	}
	lock.Command = a.lockCommandLine(profileName)
	return lock, nil
}

// ruling is the lock that rules what a profile's nodes get: its own, else that of the
// bundle, else none.
func (a *app) ruling(ctx context.Context, profileName string) (*release.Lock, error) {
	lock, err := a.lockOf(profileName)
	if lock != nil && a.source.node != nil {
		// Whatever it says, there are no other files, and nodeprep lock takes no bundle.
		lock.Bundled = true
	}
	if lock != nil || err != nil || a.source.node == nil {
		return lock, err
	}
	lock, list, err := a.source.lock(ctx)
	if err != nil {
		return nil, err
	}
	if list.HasErrors() {
		return nil, &invalidLockError{invalidError{list}}
	}
	return lock, nil
}

// invalidLockError is a lock with faults: exit code 2.
type invalidLockError struct{ invalidError }

func (e *invalidLockError) Error() string {
	return "invalid lock: " + plural(len(e.list.Errors()), "fault")
}

// Unwrap is what prints the faults.
func (e *invalidLockError) Unwrap() error { return &e.invalidError }

// lockFaults are what is wrong with a lock, as findings.
func lockFaults(err error) diag.List {
	if invalid, ok := errors.AsType[*invalidError](err); ok {
		return invalid.list
	}
	if err != nil {
		return diag.List{{Message: err.Error()}}
	}
	return nil
}

// lockResult is the machine form of a lock that was made.
type lockResult struct {
	Lock     string        `json:"lock"`
	Profiles []string      `json:"profiles"`
	Arches   []string      `json:"arches"`
	Written  bool          `json:"written"` // false where nothing was to be changed
	Files    []lockedFile  `json:"files"`
	Removed  []lockedShort `json:"removed,omitempty"`
	Notes    []string      `json:"notes,omitempty"`
}

type lockedShort struct {
	Component string `json:"component"`
	Version   string `json:"version"`
	Arch      string `json:"arch"`
	Variant   string `json:"variant,omitempty"`
	File      string `json:"file"`
	SHA256    string `json:"sha256"`
}

type lockedFile struct {
	lockedShort
	URL       string             `json:"url,omitempty"`
	Size      int64              `json:"size"`
	From      string             `json:"from"`
	Signature *release.Signature `json:"signature,omitempty"`
	// Change is added, changed, kept or, where only other words are used of the same
	// file, noted.
	Change string `json:"change"`
	Was    string `json:"was,omitempty"` // the digest that changed
}

func (a *app) lockCommand() *cobra.Command {
	var (
		arches []string
		update bool
	)
	cmd := &cobra.Command{
		Use:   "lock",
		Short: "Write down which release files a profile's nodes get: version, address, size and sha256",
		Long: `lock finds out the exact file, size and sha256 of every release that the profile wants, for each architecture, and writes
` + release.LockFile + ` beside the profile. From then on render, plan, apply, bundle and validate use these files and no others.

A sha256 is the profile's own, or the built-in catalogue's; else that of upstream's checksum file, asked for at the profile's
sources before upstream; else, with --artifacts, that of the checksum file beside the file, or its own. A file that is at hand is
hashed in any case. runc's signature, where runc.ARCH.asc lies beside it, is verified against the keys of runc's maintainers,
and so is the signed checksum file.

A file that changed under its version, against the lock that is there, is a fault: it was repackaged, or somebody tampers with it.
Where nothing changes the lock is not touched.`,
		Example: `  nodeprep lock -f node.yaml --arch amd64,arm64
  nodeprep lock -f node.yaml --artifacts ./artifacts --offline`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.makeLock(cmd.Context(), arches, update) },
	}
	f := cmd.Flags()
	f.StringSliceVar(&arches, "arch", nil, "the `ARCHES` to lock, by Go's names; by default those of the lock that is there, else this machine's")
	f.StringVar(&a.lock, "lock", "", "write this `FILE`; by default "+release.LockFile+" beside the profile")
	f.BoolVar(&update, "update", false, "take files that changed under their version")
	return cmd
}

func (a *app) makeLock(ctx context.Context, arches []string, update bool) error {
	if a.lock == "-" {
		return usagef("--lock -: a lock is kept as a file, not sent to standard output: name one")
	}
	root, err := host.OpenRoot(a.root)
	if err != nil {
		return usagef("--root: %w", err)
	}
	profileName, err := a.chosen(root, noReceipt)
	if err != nil {
		return err
	}
	name := a.lockName(profileName)
	if name == "" {
		return usagef("lock: the profile %s is no file, so that nothing lies beside it; name the lock with --lock FILE", profileName)
	}
	old, err := a.oldLock(name)
	if err != nil {
		return err
	}
	if arches, err = wantedArches(arches, old); err != nil {
		return err
	}
	profile, err := a.load(ctx, profileName)
	if err != nil {
		return err
	}
	reqs, sources, err := a.lockRequests(profile, arches)
	if err != nil {
		return err
	}
	store, err := a.lockStore(sources)
	if err != nil {
		return err
	}
	keyring, err := release.RuncKeyring()
	if err != nil {
		return err
	}
	if !a.structured {
		fmt.Fprintf(a.stdio.err, "locking %s for %s...\n", plural(len(reqs), "release file"), strings.Join(arches, ", "))
	}
	lock, notes, err := store.Lock(ctx, reqs, release.LockOptions{Old: old, Update: update, Keyring: keyring})
	if err != nil {
		for _, n := range notes {
			a.note("%s", n)
		}
		return err
	}
	lock.File = name
	result := makeLockResult(lock, old)
	result.Profiles, result.Arches, result.Notes = profile.Layers(), arches, notes
	if old == nil || !bytes.Equal(lock.Marshal(), old.Marshal()) {
		if err := writeLock(name, lock.Marshal()); err != nil {
			return fmt.Errorf("write the lock: %w", err)
		}
		result.Written, a.changed = true, true
	}
	a.result = result
	if !a.structured {
		for _, n := range notes {
			a.note("%s", n)
		}
		a.printLock(result)
	}
	return nil
}

// oldLock is the lock that is to be replaced, nil where there is none. One that cannot be
// read is not overwritten: it may be a newer nodeprep's, or no lock at all.
func (a *app) oldLock(name string) (*release.Lock, error) {
	lock, list, err := release.LoadLock(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the lock: %w", err)
	}
	if list.HasErrors() {
		return nil, fmt.Errorf("%w; it is not overwritten: repair it, or remove it", &invalidLockError{invalidError{list}})
	}
	return lock, nil
}

// wantedArches are those of --arch, else of the lock that is there, which may be nil, else this
// machine's, sorted. One for which nobody publishes anything is refused.
func wantedArches(given []string, lock *release.Lock) ([]string, error) {
	arches := given
	if len(arches) == 0 {
		arches = lock.Arches()
	}
	if len(arches) == 0 {
		arches = []string{runtime.GOARCH}
	}
	slices.Sort(arches)
	arches = slices.Compact(arches)
	var known []string
	for _, c := range []string{releases.Containerd, releases.Runc, releases.CNI, releases.Crictl} {
		known = append(known, releases.Arches(c, false, releases.DefaultVersion(c))...)
	}
	slices.Sort(known)
	known = slices.Compact(known)
	for _, arch := range arches {
		if err := oneOf("arch", arch, known...); err != nil {
			return nil, err
		}
	}
	return arches, nil
}

// lockRequests are the releases that the profile wants for some architectures. Where it
// leaves containerd's variant to the node, both are asked for.
func (a *app) lockRequests(profile *profiles.Profile, arches []string) ([]release.LockRequest, []desired.Source, error) {
	var (
		reqs    []release.LockRequest
		sources []desired.Source
		list    diag.List
	)
	for i, arch := range arches {
		spec, more := profiles.Resolve(profile, profiles.Facts{Arch: arch, SystemdInit: true})
		list = append(list, more...)
		if more.HasErrors() {
			continue
		}
		if i == 0 {
			list = append(list, supportNotes(spec, time.Now())...)
			for _, s := range spec.Sources {
				sources = append(sources, desired.Source{Dir: s.Dir, URL: s.URL, Origin: s.Origin})
			}
		}
		for _, req := range requests(spec) {
			reqs = append(reqs, release.LockRequest{Request: req})
			auto := profile.Containerd.Variant == "" || profile.Containerd.Variant == "auto"
			if req.Component == releases.Containerd && auto && releases.URL(req.Component, true, req.Version, arch) != "" {
				req.Static, req.SHA256 = true, ""
				reqs = append(reqs, release.LockRequest{Request: req, Optional: true})
			}
		}
	}
	list.Sort()
	if list.HasErrors() {
		return nil, nil, &invalidError{list}
	}
	a.warn(list)
	return reqs, sources, nil
}

// lockStore is where the files of a lock are looked for. Folders stay as they were given:
// the lock names what it measured, and is read elsewhere.
func (a *app) lockStore(sources []desired.Source) (*release.Store, error) {
	if _, err := a.artifactFolders(); err != nil {
		return nil, err
	}
	s := &release.Store{Sources: sources, Offline: a.offline, Network: a.network()}
	for _, d := range a.artifacts {
		s.Dirs = append(s.Dirs, filepath.Clean(d))
	}
	// Without a home there is none, and only a file without a known length asks for it.
	if user, err := os.UserCacheDir(); err == nil {
		s.CacheDir = filepath.Join(user, "nodeprep")
	}
	return s, nil
}

// writeLock replaces the file at once or not at all, through a link too.
func writeLock(name string, data []byte) (err error) {
	mode := fs.FileMode(0o644)
	if real, err := filepath.EvalSymlinks(name); err == nil {
		name = real
	}
	if fi, err := os.Stat(name); err == nil {
		mode = fi.Mode().Perm()
	}
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+"-*")
	if err != nil {
		return err
	}
	defer func() {
		f.Close()
		if err != nil {
			_ = os.Remove(f.Name()) // what went wrong before is what counts
		}
	}()
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(mode); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	return os.Rename(f.Name(), name)
}

// Words for what became of a locked file.
const (
	lockAdded   = "added"
	lockChanged = "changed"
	lockNoted   = "noted"
	lockKept    = "kept"
)

func makeLockResult(lock, old *release.Lock) *lockResult {
	r := &lockResult{Lock: lock.File, Files: []lockedFile{}}
	for _, c := range release.Changes(old, lock) {
		if c.New == nil {
			r.Removed = append(r.Removed, short(c.Old))
			continue
		}
		f := lockedFile{lockedShort: short(c.New), URL: c.New.URL, Size: c.New.Size, From: c.New.From, Signature: c.New.Signature}
		switch {
		case c.Old == nil:
			f.Change = lockAdded
		case !c.Same():
			f.Change = lockChanged
			if c.Old.SHA256 != c.New.SHA256 {
				f.Was = c.Old.SHA256
			}
		case c.Old.From != c.New.From || !sameSignature(c.Old.Signature, c.New.Signature):
			f.Change = lockNoted
		default:
			f.Change = lockKept
		}
		r.Files = append(r.Files, f)
	}
	return r
}

func sameSignature(a, b *release.Signature) bool {
	return a == b || a != nil && b != nil && *a == *b
}

func short(e *release.Locked) lockedShort {
	return lockedShort{Component: e.Component, Version: e.Version, Arch: e.Arch, Variant: e.Variant(), File: e.File, SHA256: e.SHA256}
}

func (s lockedShort) title() string {
	return strings.TrimSpace(s.Component + " " + s.Version + " " + s.Variant)
}

func (a *app) printLock(r *lockResult) {
	p := a.paint(a.out)
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  release\tarch\tfile\tsize\tsha256 from")
	count := map[string]int{}
	for _, f := range r.Files {
		mark := map[string]string{lockAdded: "+", lockChanged: "~", lockNoted: "~", lockKept: " "}[f.Change]
		from := f.From
		if f.Signature != nil {
			from += ", signed by " + f.Signature.Signer
		}
		if f.Was != "" {
			from += ", was " + f.Was
		}
		fmt.Fprintf(w, "%s %s\t%s\t%s\t%s\t%s\n", mark, f.title(), f.Arch, f.File, bytesText(f.Size), from)
		count[f.Change]++
	}
	for _, f := range r.Removed {
		fmt.Fprintf(w, "- %s\t%s\t%s\t\t\n", f.title(), f.Arch, f.File)
	}
	_ = w.Flush() // a result that could not be written is told at the end
	if !r.Written {
		fmt.Fprintf(a.out, "%s is as it was: %s\n", p.bold(r.Lock), plural(len(r.Files), "release file"))
		return
	}
	fmt.Fprintf(a.out, "wrote %s: %s, %d added, %d changed, %d removed\n", p.bold(r.Lock), plural(len(r.Files), "release file"),
		count[lockAdded], count[lockChanged]+count[lockNoted], len(r.Removed))
}
