package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// UninstallOptions are what an uninstall may do beyond giving the host back.
type UninstallOptions struct {
	// Force stops tasks that run.
	Force bool
	// Purge removes containerd's data. There is no way back from that.
	Purge bool
}

// uninstalling is what a plan has only for an uninstall.
type uninstalling struct {
	force, stopTasks bool
	purge            []string
}

// savedEnding is what the name gets of something that was there before nodeprep, where a
// file of nodeprep's that was edited since stays in its place.
const savedEnding = ".before-nodeprep"

// DiffUninstall plans to remove all that the receipt owns and nobody changed, and to give
// back what was there before. A host without a receipt has an empty plan. Images stay in
// containerd's data, which stays too, with their pins: whoever runs a containerd on that again
// has what he had. Archives that wait for a first boot go.
func DiffUninstall(ctx context.Context, h *host.Host, receipt *Receipt, opt DiffOptions, un UninstallOptions) (*Plan, error) {
	return steady(ctx, h, receipt, func(receipt *Receipt) (*Plan, error) { return diffUninstall(ctx, h, receipt, opt, un) })
}

func diffUninstall(ctx context.Context, h *host.Host, receipt *Receipt, opt DiffOptions, un UninstallOptions) (*Plan, error) {
	state := &desired.State{}
	if receipt != nil {
		state.Daemon = receipt.Daemon
	}
	d := newDiffer(h, VerbUninstall, state, receipt, opt)
	d.plan.force = un.Force
	d.plan.again = func(ctx context.Context, now *Receipt) (*Plan, error) { return DiffUninstall(ctx, h, now, opt, un) }
	if receipt == nil {
		return d.plan, nil
	}
	if un.Purge {
		dirs, err := d.dataDirs()
		if err != nil {
			return nil, err
		}
		for _, p := range dirs {
			d.add(Item{Action: Remove, Kind: KindDir, Path: p, Reason: "is containerd's data; this cannot be undone"})
		}
		d.plan.purge = dirs
	}
	if err := d.removals(); err != nil {
		return nil, err
	}
	for i := range receipt.Owned {
		if own := &receipt.Owned[i]; own.First && own.Kind != KindDir {
			it, err := d.removal(own, nil, nil)
			if err != nil {
				return nil, err
			}
			if it != nil {
				if it.first = true; it.Action == Remove {
					it.Reason = "is nodeprep's own, and goes last"
				}
				d.add(*it)
			}
		}
	}
	for i := range d.plan.Items {
		if it := d.plan.Items[i]; it.Action == Leave && it.own != nil && it.own.Before != nil {
			if err := d.save(&it); err != nil {
				return nil, err
			}
		}
	}
	return d.plan, d.stop(ctx, un)
}

// save plans to give back what stood before a file that somebody edited, beside it.
func (d *differ) save(it *Item) error {
	p := it.Path + savedEnding
	real, fi, err := d.look(p)
	if err != nil {
		return err
	}
	saved := Item{Action: Create, Kind: it.own.Before.Kind, Path: p, Reason: "was at " + it.Path + " before nodeprep", kept: it.own.Before, real: real}
	if fi != nil {
		saved.Action, saved.Reason = Refuse, "stands in the way of what was at "+it.Path+" before nodeprep"
	}
	d.add(saved)
	return nil
}

// dataDirs are containerd's root and state directories, as its config has them, if they are there.
func (d *differ) dataDirs() ([]string, error) {
	var content []byte
	if p := d.receipt.Daemon.ConfigPath; p != "" {
		var err error
		if content, err = d.root.ReadFile(p); err != nil && !isAbsent(err) {
			return nil, fmt.Errorf("find containerd's data: %w", err)
		}
	}
	facts, err := daemonFacts(content, d.receipt.Daemon.Version)
	if err != nil {
		return nil, fmt.Errorf("find containerd's data: %w", err)
	}
	var out []string
	for _, p := range []string{facts.root, facts.state} {
		if err := checkPath(p); err != nil {
			return nil, fmt.Errorf("find containerd's data: %w", err)
		}
		if len(strings.Split(p, "/")) < 3 {
			return nil, fmt.Errorf("purge %s: that is at the top of the root, and may hold more than containerd's data; remove it by hand", p)
		}
		real, err := d.root.Resolve(p)
		if err != nil {
			return nil, err
		}
		for _, other := range append(d.places(), StateDir) {
			at, err := d.root.Resolve(other)
			if err != nil {
				return nil, err
			}
			if strings.HasPrefix(at, real+"/") {
				return nil, fmt.Errorf("purge %s: %s is in it, so that it holds more than containerd's data; remove that by hand", p, other)
			}
		}
		if fi, err := lstat(real); err != nil {
			return nil, err
		} else if fi != nil {
			out = append(out, p)
		}
	}
	return out, nil
}

// places are the directories of what is ours.
func (d *differ) places() []string {
	var out []string
	for i := range d.receipt.Owned {
		if own := &d.receipt.Owned[i]; own.Kind != KindDir {
			out = append(out, path.Dir(own.Path))
		}
	}
	return out
}

// stop plans what becomes of the daemon: it stops while its unit is there, and starts
// again where another one is given back.
func (d *differ) stop(ctx context.Context, un UninstallOptions) error {
	if !d.plan.live || d.opt.Services == nil || d.receipt.Daemon.Unit == "" {
		return nil
	}
	name := d.receipt.Daemon.Unit
	p, err := d.opt.Services.Properties(ctx, name)
	if err != nil {
		return err
	}
	unit := d.receipt.Find(unitDir + "/" + name)
	stop := p.ActiveState != "inactive" && p.ActiveState != "failed" && unit != nil
	if stop {
		it := Item{Action: Stop, Kind: KindUnit, Path: name, OldVersion: p.ActiveState, Reason: "is removed"}
		others, err := dependents(ctx, d.opt.Services, name)
		if err != nil {
			return err
		}
		for _, u := range others {
			it.Details = append(it.Details, u+" requires it, and stops too")
		}
		d.add(it)
	}
	// Also where the daemon is down: containers live without it.
	if err := d.tasks(ctx, un, stop); err != nil {
		return err
	}
	reload := slices.ContainsFunc(d.plan.Items, func(it Item) bool {
		return it.Changes() && it.own != nil && (it.own.Effect == desired.EffectUnit || strings.HasPrefix(it.Path, unitDir+"/"))
	})
	if reload {
		d.add(Item{Action: Reload, Kind: KindUnit, Path: "systemd", Reason: "units are removed"})
	}
	if unit != nil && unit.Before != nil && running(p) {
		d.add(Item{Action: Start, Kind: KindUnit, Path: name, Reason: "is what it was before nodeprep"})
	}
	return nil
}

// tasks refuses an uninstall under running tasks. A daemon that does not answer is no
// excuse: shims show in proc(5).
func (d *differ) tasks(ctx context.Context, un UninstallOptions, stop bool) error {
	if d.opt.Daemon == nil {
		return nil
	}
	l, err := look(ctx, d.root, d.opt.Daemon, d.receipt.Daemon)
	if err != nil {
		return err
	}
	it := Item{Action: Refuse, Kind: KindUnit, Path: d.receipt.Daemon.Unit}
	switch {
	case l.err == nil && un.Force && stop:
		d.plan.stopTasks = true
		return nil
	case len(l.tasks) == 0:
		return nil
	case l.err == nil:
		names := taskNames(ctx, d.opt.Daemon, d.receipt.Daemon, l.tasks)
		it.Reason = fmt.Sprintf("%d %s under it: %s", len(names), plural(len(names), "task runs", "tasks run"), strings.Join(names, ", "))
		it.Hint = "drain the node or stop them first; --force stops them"
	default:
		it.Reason = fmt.Sprintf("containerd does not answer (%v), and containers run all the same: %s", l.err, strings.Join(shims(l.tasks), ", "))
		it.Hint = "start " + it.Path + " again and stop them, or reboot; --force goes on, and leaves them running with nobody to look after them"
	}
	d.refuseOrWarn(un.Force, it)
	return nil
}

// shims lists tasks of which no more is known than their shims.
func shims(tasks []daemon.Task) []string {
	var out []string
	for _, t := range tasks {
		out = append(out, fmt.Sprintf("%s/%s (shim %d)", t.Namespace, t.ID, t.Shim))
	}
	slices.Sort(out)
	return out
}

// recordUninstall notes what is removed once there is no way back.
func (r *run) recordUninstall() error {
	if r.plan.verb != VerbUninstall {
		return nil
	}
	r.j.Purge = r.plan.purge
	chain := []string{StateDir}
	for p := path.Dir(StateDir); p != "/"; p = path.Dir(p) {
		chain = append(chain, p)
	}
	for i := len(r.plan.receipt.Owned) - 1; i >= 0; i-- { // children before parents
		own := &r.plan.receipt.Owned[i]
		real, fi, err := locate(r.root, own.Path)
		if err != nil {
			return err
		}
		if own.Kind != KindDir {
			continue
		}
		switch {
		case slices.Contains(chain, own.Path):
			r.j.Chain = append(r.j.Chain, own.Path)
		case fi != nil && fi.IsDir():
			r.j.Last = append(r.j.Last, r.shown(real))
		}
	}
	slices.Sort(r.j.Chain)
	if len(r.plan.purge) > 0 {
		// containerd makes these at its start, for people to fill (its opt plugin).
		for _, p := range []string{"/opt/containerd/bin", "/opt/containerd/lib", "/opt/containerd"} {
			real, fi, err := locate(r.root, p)
			if err != nil {
				return err
			}
			if fi != nil && fi.IsDir() {
				r.j.Last = append(r.j.Last, r.shown(real))
			}
		}
	}
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if !it.first || !it.Changes() {
			continue
		}
		c := Change{Path: it.Path, Real: r.shown(it.real), Kept: it.own.Before}
		r.j.Self = append(r.j.Self, c)
	}
	// The link before the unit, the unit before the program that it calls.
	slices.SortFunc(r.j.Self, func(a, b Change) int { return rank(a.Path) - rank(b.Path) })
	return nil
}

// rank orders nodeprep's own files: each needs those with a higher one.
func rank(p string) int {
	switch {
	case p == systemd.Program:
		return 2
	case path.Dir(p) == unitDir:
		return 1
	}
	return 0
}

// finishUninstall removes what is left. It may have been begun before. nodeprep and its
// journal go when everything else is gone: whoever is interrupted here, or fails, is
// still there to go on, also at the next boot.
func (r *run) finishUninstall(ctx context.Context) error {
	if err := r.clearUp(); err != nil {
		return err
	}
	err := r.leave(ctx)
	if len(r.j.Self) > 0 && r.plan.live && r.opt.Services != nil {
		if err := r.opt.Services.Reload(ctx); err != nil {
			r.left = append(r.left, fmt.Sprintf("systemd still knows %s, until it reads its units again: %v", systemd.RecoverUnitName, err))
		}
	}
	return err
}

// clearUp removes all but nodeprep's own files, the directories that hold them, and the
// journal.
func (r *run) clearUp() error {
	var faults []error
	for _, p := range r.j.Purge {
		faults = append(faults, r.purge(p))
	}
	faults = append(faults, r.unstage())
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return errors.Join(append(faults, err)...)
	}
	stays, err := r.strangers(state)
	if err != nil {
		return errors.Join(append(faults, err)...)
	}
	for _, p := range stays {
		r.left = append(r.left, r.shown(p)+" stays: nodeprep did not make it")
	}
	stays = append(stays, filepath.Join(state, "journal.json"))
	if r.keepsSelf() {
		stays = append(stays, filepath.Join(state, "original"))
	} else {
		faults = append(faults, r.removeTops())
	}
	faults = append(faults, r.empty(state, stays))
	for _, p := range r.j.Last {
		if !r.holdsSelf(p) {
			faults = append(faults, r.removeLast(p))
		}
	}
	return errors.Join(append(faults, r.syncDirs())...)
}

// leave removes nodeprep's own files and the journal, in as few steps as may be. It stops
// at the first that fails: what is not removed yet can be told to go on.
func (r *run) leave(ctx context.Context) error {
	for i := range r.j.Self {
		c := &r.j.Self[i]
		if err := r.removeSelf(ctx, c, i); err != nil {
			return fmt.Errorf("remove %s: %w", c.Path, err)
		}
	}
	if r.keepsSelf() {
		if err := r.removeTops(); err != nil {
			return err
		}
	}
	for _, p := range r.j.Last {
		if r.holdsSelf(p) {
			if err := r.removeLast(p); err != nil {
				return err
			}
		}
	}
	if err := r.syncDirs(); err != nil {
		return err
	}
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	others, err := r.strangers(state)
	if err != nil {
		return err
	}
	if len(others) == 0 && slices.Contains(r.j.Chain, r.shown(state)) {
		return r.vanish(r.j.Chain)
	}
	return r.clearOut(state, others)
}

// keepsSelf reports whether something that stood in the place of one of nodeprep's own
// files is to be given back.
func (r *run) keepsSelf() bool {
	return slices.ContainsFunc(r.j.Self, func(c Change) bool { return c.Kept != nil && c.Kept.Path != "" })
}

// holdsSelf reports whether one of nodeprep's own files is below a directory.
func (r *run) holdsSelf(dir string) bool {
	return slices.ContainsFunc(r.j.Self, func(c Change) bool { return strings.HasPrefix(c.Real, dir+"/") })
}

// removeTops removes what is kept on other filesystems than StateDir's.
func (r *run) removeTops() error {
	var faults []error
	for _, top := range r.j.Tops {
		if top == StateDir {
			continue
		}
		dir, err := r.root.Locate(top)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		faults = append(faults, r.w.removeTree(dir))
		r.dirty[filepath.Dir(dir)] = true
	}
	return errors.Join(faults...)
}

// removeLast removes a directory of ours in which there is nothing any more.
func (r *run) removeLast(p string) error {
	real := r.abs(p)
	if fi, err := lstat(real); err != nil || fi == nil {
		return err
	}
	gone, err := r.w.rmdirUnused(real)
	if !gone && err == nil && !slices.ContainsFunc(r.left, func(l string) bool { return strings.HasPrefix(l, p+"/") }) {
		r.left = append(r.left, p+" stays: something else is in it")
	}
	if gone {
		delete(r.dirty, real)
		r.dirty[filepath.Dir(real)] = true
	}
	return err
}

// unfinished says that an uninstall is past its point of no return and cannot be ended.
func (r *run) unfinished(phase Phase, err error) error {
	e := &StrandedError{Phase: phase, Err: err}
	if fi, err := r.root.Lstat(JournalPath); err == nil && fi != nil {
		e.Journal = JournalPath
	}
	if !r.plan.live {
		e.Root = r.root.Dir()
	}
	return e
}

// strangers lists what somebody else has put into nodeprep's own directory.
func (r *run) strangers(state string) ([]string, error) {
	entries, err := os.ReadDir(state)
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		name := e.Name()
		switch name {
		case "journal.json", "receipt.json", "result.json", "generations", "original", "cache", path.Base(ImagesDir), path.Base(FirstBootPath):
			continue
		}
		if !isOwnTemp(name) {
			out = append(out, filepath.Join(state, name))
		}
	}
	return out, nil
}

// removeSelf removes one of nodeprep's own files, or gives back what stood there.
func (r *run) removeSelf(ctx context.Context, c *Change, i int) error {
	real := r.abs(c.Real)
	r.dirty[filepath.Dir(real)] = true
	if c.Kept == nil {
		return r.w.remove(real)
	}
	if same, err := r.isKept(c.Kept, real); err != nil || same {
		return err
	}
	if c.Kept.Kind == KindFile {
		at, err := keptAt(r.root, c.Kept)
		if err != nil {
			return err
		}
		if fi, err := lstat(at); err != nil || fi == nil {
			return err // given back already
		}
	}
	return r.putBack(ctx, c.Kept, real, fmt.Sprint("self", i))
}

// purge removes a directory of containerd's with all that is in it, but nothing that is
// mounted there.
func (r *run) purge(p string) error {
	real, err := r.root.Resolve(p)
	if err != nil {
		return err
	}
	fi, err := lstat(real)
	if err != nil || fi == nil {
		return err
	}
	return r.purgeTree(real, deviceOf(fi), nil, 0)
}

// deviceOf is the filesystem of what lstat told; its type differs among systems.
func deviceOf(fi fs.FileInfo) uint64 { return uint64(fi.Sys().(*syscall.Stat_t).Dev) }

// purgeTree removes a directory on a device. What is mounted is read again for each one at
// the top: something mounted later is another device, or else, such as a bind mount of
// the same one, made while its own tree is being removed, is not noticed.
func (r *run) purgeTree(dir string, dev uint64, mounts map[string]bool, depth int) error {
	if depth < 2 {
		var err error
		if mounts, err = mountPoints(); err != nil {
			return err
		}
	}
	fi, err := lstat(dir)
	if err != nil || fi == nil {
		return err
	}
	switch {
	case mounts[dir]:
		r.left = append(r.left, r.shown(dir)+" stays: something is mounted there")
		return nil
	case !fi.IsDir():
		return r.w.remove(dir)
	case deviceOf(fi) != dev:
		r.left = append(r.left, r.shown(dir)+" stays: it is on another filesystem, or a subvolume")
		return nil
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var faults []error
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		if e.IsDir() {
			faults = append(faults, r.purgeTree(p, dev, mounts, depth+1))
		} else if mounts[p] {
			r.left = append(r.left, r.shown(p)+" stays: something is mounted there")
		} else {
			faults = append(faults, r.w.remove(p))
		}
	}
	_, err = r.w.rmdirUnused(dir)
	r.dirty[filepath.Dir(dir)] = true
	delete(r.dirty, dir)
	return errors.Join(append(faults, err)...)
}
