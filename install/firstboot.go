package install

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// FirstBootPath is the marker of a root that was made while it did not run: something is
// to be done when it does, for the first time.
const FirstBootPath = systemd.FirstBootMarker

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
	// Waited says that there was something to do.
	Waited bool            `json:"waited"`
	Images []ImportedImage `json:"images,omitempty"`
	// Modules were loaded and Settings, as KEY=VALUE, set: systemd had not.
	Modules  []string `json:"modules,omitempty"`
	Settings []string `json:"settings,omitempty"`
	// Left says what stays that need not.
	Left []string `json:"left,omitempty"`
}

// FirstBoot finishes what could not be done while the root did not run: it sees to it that
// the kernel has the modules and settings of the root's files, gives the running containerd
// the image archives that wait, and notes each in the receipt as it is imported. What fails
// does not keep the rest: all faults come at once. The marker stays until EndFirstBoot:
// until then every boot does this again. It may be interrupted anywhere. On a host where
// nothing waits it does nothing. A run that was interrupted must be recovered before.
func FirstBoot(ctx context.Context, h *host.Host, opt FirstBootOptions) (*FirstBooted, error) {
	unlock, err := lockForBoot(ctx, h.Root)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if j, err := Pending(h.Root); err != nil {
		return nil, err
	} else if j != nil {
		return nil, fmt.Errorf("finish the first boot: the %s of %s was interrupted; nodeprep recover ends it", j.Verb, j.Time.UTC().Format("2006-01-02 15:04 MST"))
	}
	rec, err := ReadReceipt(h.Root)
	if err != nil {
		return nil, err
	}
	plan := &Plan{state: &desired.State{}, receipt: rec, live: h.Root.Live() || opt.live}
	r := newRun(h, plan, ApplyOptions{DiffOptions: DiffOptions{Daemon: opt.Daemon}, Observer: opt.Observer, Version: opt.Version, writer: opt.writer})
	if !r.runsImages() {
		return nil, fmt.Errorf("finish the first boot: %s is not a running host", h.Root.Dir())
	}
	out := new(FirstBooted)
	if rec == nil {
		return out, nil
	}
	if out.Waited, err = FirstBootWaits(h.Root); err != nil || !out.Waited {
		return out, err
	}
	if err := r.sweep(); err != nil {
		return out, err
	}
	faults := []error{r.kernelInForce(ctx, rec, out)}
	if slices.ContainsFunc(rec.Images, func(x Imported) bool { return x.Pending }) {
		faults = append(faults, r.importWaiting(ctx, rec)...)
	}
	faults = append(faults, r.clearWaiting(rec), r.syncDirs())
	out.Images, out.Left = r.res.Images, r.left
	return out, errors.Join(faults...)
}

// lockForBoot waits a minute for whoever works on the root: at boot nobody runs it again.
func lockForBoot(ctx context.Context, root *host.Root) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return lockAtBoot(ctx, root)
}

// EndFirstBoot ends the first boot of a root: the receipt has its marker no more, and then
// it goes. While images wait it is an error.
func EndFirstBoot(ctx context.Context, h *host.Host, opt FirstBootOptions) error {
	unlock, err := lockForBoot(ctx, h.Root)
	if err != nil {
		return err
	}
	defer unlock()
	rec, err := ReadReceipt(h.Root)
	if err != nil {
		return err
	}
	if rec != nil && slices.ContainsFunc(rec.Images, func(x Imported) bool { return x.Pending }) {
		return errors.New("end the first boot: images wait to be imported")
	}
	r := newRun(h, &Plan{state: &desired.State{}, receipt: rec}, ApplyOptions{Version: opt.Version, writer: opt.writer})
	real, err := r.root.Locate(FirstBootPath)
	if err != nil {
		return err
	}
	if rec.Find(FirstBootPath) != nil {
		next := *rec
		next.Owned = slices.DeleteFunc(slices.Clone(rec.Owned), func(o Owned) bool { return o.Path == FirstBootPath })
		if err := r.replaceReceipt(&next); err != nil {
			return err
		}
	}
	r.dirty[filepath.Dir(real)] = true
	return errors.Join(r.w.remove(real), r.syncDirs())
}

// FirstBootWaits reports whether a root is still to be finished at its first boot, or what
// failed then at the next one.
func FirstBootWaits(root *host.Root) (bool, error) {
	for _, p := range []string{FirstBootPath, ImagesDir} {
		real, err := root.Locate(p)
		if err != nil {
			return false, err
		}
		if fi, err := lstat(real); err != nil || fi != nil {
			return err == nil, err
		}
	}
	return false, nil
}

// kernelInForce holds the running kernel to the files of ours that systemd should have read
// at boot. A module that was built for another kernel, or a setting that came before its
// module, is told by nobody else.
func (r *run) kernelInForce(ctx context.Context, rec *Receipt, out *FirstBooted) error {
	st := r.plan.state
	st.Sysctl = map[string]string{}
	var faults []error
	for i := range rec.Owned {
		p := rec.Owned[i].Path
		if !forKernel(p) || rec.Owned[i].Kind != KindFile {
			continue
		}
		content, err := r.root.ReadFile(p)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		modules, settings := kernelLines(p, string(content))
		st.Modules = append(st.Modules, modules...)
		maps.Copy(st.Sysctl, settings)
	}
	lacking := func() ([]Item, error) {
		d := &differ{root: r.root, state: st, receipt: rec, plan: &Plan{}}
		err := d.kernel()
		return slices.DeleteFunc(d.plan.Items, func(it Item) bool { return it.Action == Keep }), err
	}
	tried := map[string]bool{}
	for _, kind := range []Kind{KindModule, KindSysctl} { // modules bring settings
		items, err := lacking()
		if err != nil {
			return errors.Join(append(faults, err)...)
		}
		r.plan.Items = append(r.plan.Items, items...)
		for _, it := range items {
			switch {
			case it.Kind != kind:
				continue
			case ctx.Err() != nil:
				return errors.Join(append(faults, context.Cause(ctx))...)
			case kind == KindModule:
				err = r.load(ctx, it.Path)
				out.Modules = append(out.Modules, it.Path)
			default:
				err = r.set(it.Path, it.NewVersion)
				out.Settings = append(out.Settings, it.Path+"="+it.NewVersion)
			}
			tried[it.Path] = err != nil
			faults = append(faults, err)
		}
	}
	// That it worked is not that it holds. An alias is known by now.
	if len(r.aliases) > 0 {
		next := *rec
		next.Modules = r.modules()
		if err := r.replaceReceipt(&next); err != nil {
			return errors.Join(append(faults, err)...)
		}
		*rec = next
	}
	items, err := lacking()
	if err != nil {
		return errors.Join(append(faults, err)...)
	}
	for _, it := range items {
		if !tried[it.Path] {
			faults = append(faults, fmt.Errorf("%s %s: it %s", it.Kind, it.Path, strings.Replace(it.Reason, "is not there yet", "is not there", 1)))
		}
	}
	return errors.Join(faults...)
}

// replaceReceipt writes a receipt that says something else of the same generation, durably.
func (r *run) replaceReceipt(next *Receipt) error {
	// A plan that was made before knows by the ID that it is not of this host any more.
	var err error
	if r.id, err = randomHex(8); err != nil {
		return err
	}
	next.ID = r.id
	if err := r.writeReceipt(next); err != nil {
		return err
	}
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	return r.w.sync(state)
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
	owned := map[string]Owned{}
	for _, own := range next.Owned {
		owned[own.Path] = own
	}
	withoutWaited(owned, []string{p})
	next.Owned = nil
	for _, at := range sortedKeys(owned) {
		next.Owned = append(next.Owned, owned[at])
	}
	if err := r.replaceReceipt(&next); err != nil {
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
