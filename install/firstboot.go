package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
)

// FirstBootOptions are what a first boot needs.
type FirstBootOptions struct {
	Daemon   Daemon
	Observer Observer
	// Version is nodeprep's own.
	Version string

	live   bool
	writer *writer
}

// FirstBooted is what a first boot did.
type FirstBooted struct {
	Images []ImportedImage `json:"images,omitempty"`
	// Left says what stays that need not.
	Left []string `json:"left,omitempty"`
}

// FirstBoot gives the running containerd the image archives that wait since the root was
// made, notes each in the receipt as it is imported, and removes it. One that fails does
// not keep the others: all faults come at once, and what failed waits for the next boot.
// It may be interrupted anywhere, and done again. On a host where nothing waits it does
// nothing. A run that was interrupted must be recovered before.
func FirstBoot(ctx context.Context, h *host.Host, opt FirstBootOptions) (*FirstBooted, error) {
	unlock, err := func() (func(), error) {
		ctx, cancel := context.WithTimeout(ctx, lockTimeout)
		defer cancel()
		return lockAtBoot(ctx, h.Root)
	}()
	if err != nil {
		return nil, err
	}
	defer unlock()
	if j, err := Pending(h.Root); err != nil {
		return nil, err
	} else if j != nil {
		return nil, fmt.Errorf("import images: the %s of %s was interrupted; nodeprep recover ends it", j.Verb, j.Time.UTC().Format("2006-01-02 15:04 MST"))
	}
	rec, err := ReadReceipt(h.Root)
	if err != nil {
		return nil, err
	}
	plan := &Plan{state: &desired.State{}, receipt: rec, live: h.Root.Live() || opt.live}
	r := newRun(h, plan, ApplyOptions{DiffOptions: DiffOptions{Daemon: opt.Daemon}, Observer: opt.Observer, Version: opt.Version, writer: opt.writer})
	if !r.runsImages() {
		return nil, fmt.Errorf("import images: %s is not a running host", h.Root.Dir())
	}
	if rec == nil {
		return &FirstBooted{}, nil
	}
	if err := r.sweep(); err != nil {
		return nil, err
	}
	var faults []error
	if slices.ContainsFunc(rec.Images, func(x Imported) bool { return x.Pending }) {
		faults = r.importWaiting(ctx, rec)
	}
	faults = append(faults, r.clearWaiting(rec), r.syncDirs())
	return &FirstBooted{Images: r.res.Images, Left: r.left}, errors.Join(faults...)
}

// importWaiting imports all that waits.
func (r *run) importWaiting(ctx context.Context, rec *Receipt) []error {
	healthy, cancel := context.WithTimeoutCause(ctx, healthTimeout, fmt.Errorf("no answer within %s", healthTimeout))
	defer cancel()
	// Whichever containerd runs by now will do.
	if err := r.opt.Daemon.Healthy(healthy, desired.Daemon{Address: rec.Daemon.Address, Snapshotter: rec.Daemon.Snapshotter}); err != nil {
		return []error{fmt.Errorf("import images: %w", err)}
	}
	var faults []error
	for i := range rec.Images {
		if !rec.Images[i].Pending {
			continue
		}
		if ctx.Err() != nil {
			return append(faults, context.Cause(ctx))
		}
		if err := r.importWaited(ctx, rec, i); err != nil {
			faults = append(faults, fmt.Errorf("import %s: %w", rec.Images[i].File, err))
		}
	}
	return faults
}

// importWaited imports one archive. It goes when the receipt, durably, says so; until then
// rec says that it waits.
func (r *run) importWaited(ctx context.Context, rec *Receipt, i int) error {
	x := rec.Images[i]
	p := waitingPath(x.SHA256)
	real, err := r.root.Locate(p)
	if err != nil {
		return err
	}
	f, size, err := openRegular(real)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := r.give(ctx, rec.Daemon, desired.Image{File: x.File, Pin: x.Pin}, &reading{ctx: ctx, in: f, r: r, name: path.Base(x.File), total: size}, &checkedImage{sum: x.SHA256})
	for _, g := range got {
		r.res.Images = append(r.res.Images, ImportedImage{Name: g.Name, Digest: g.Digest, Archive: x.File, Pinned: g.Pinned, Present: !g.Changed})
	}
	if err != nil {
		return err
	}
	x.Pending, x.Names = false, nil
	for _, g := range got {
		x.Names = append(x.Names, g.Name)
	}
	next := *rec
	next.Images = slices.Clone(rec.Images)
	next.Images[i] = x
	// Another archive of the receipt may be the same one.
	if slices.ContainsFunc(next.Images, func(o Imported) bool { return o.Pending && o.SHA256 == x.SHA256 }) {
		*rec = next
		return nil
	}
	return r.noteImported(rec, next, p, real)
}

// noteImported replaces a receipt by one in which an archive waits no more, and removes that.
func (r *run) noteImported(rec *Receipt, next Receipt, p, real string) error {
	// A plan that was made before knows by the ID that it is not of this host any more.
	var err error
	if r.id, err = randomHex(8); err != nil {
		return err
	}
	owned := map[string]Owned{}
	for _, own := range next.Owned {
		owned[own.Path] = own
	}
	withoutWaited(owned, []string{p})
	next.ID, next.Owned = r.id, nil
	for _, at := range sortedKeys(owned) {
		next.Owned = append(next.Owned, owned[at])
	}
	if err := r.writeReceipt(&next); err != nil {
		return err
	}
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	if err := r.w.sync(state); err != nil {
		return err
	}
	*rec = next
	r.dirty[filepath.Dir(real)] = true
	return r.w.remove(real)
}

// clearWaiting removes archives that nothing waits for, which a power cut may have left, and
// the directory when it is empty: with it the unit's condition ends.
func (r *run) clearWaiting(rec *Receipt) error {
	dir, err := r.root.Resolve(ImagesDir)
	if err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if isAbsent(err) {
			return nil
		}
		return err
	}
	var faults []error
	for _, e := range entries {
		sum, is := strings.CutSuffix(e.Name(), ".tar")
		if !is || len(sum) != 64 || strings.Trim(sum, "0123456789abcdef") != "" || e.IsDir() {
			r.left = append(r.left, path.Join(ImagesDir, e.Name())+" stays: nodeprep did not make it")
			continue
		}
		if rec.Find(waitingPath(sum)) == nil {
			faults = append(faults, r.w.remove(filepath.Join(dir, e.Name())))
			r.dirty[dir] = true
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	gone, err := r.w.rmdirUnused(dir)
	if gone {
		delete(r.dirty, dir)
		r.dirty[filepath.Dir(dir)] = true
	}
	return err
}
