package install

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
)

// Generation is a state of the host that can be gone back to.
type Generation struct {
	Number int `json:"number"`
	// Current marks the host as it is.
	Current   bool        `json:"current,omitempty"`
	Time      time.Time   `json:"time,omitzero"`
	Profiles  []string    `json:"profiles,omitempty"`
	Artifacts []Installed `json:"artifacts,omitempty"`
}

// NoGenerationError says that a generation is not kept.
type NoGenerationError struct {
	Wanted, Current int
	// Kept are those that are, oldest first.
	Kept []int
}

// Error names the generations that there are.
func (e *NoGenerationError) Error() string {
	if len(e.Kept) == 0 {
		return "roll back: there is no earlier generation; every apply that changes files keeps the one before (generations in the profile says how many)"
	}
	var list []string
	for _, n := range e.Kept {
		list = append(list, fmt.Sprint(n))
	}
	why := "it is not kept"
	if e.Wanted == e.Current {
		why = "that is what the host is"
	}
	return fmt.Sprintf("roll back to generation %d: %s; kept are %s", e.Wanted, why, strings.Join(list, ", "))
}

// Generations lists the generations that can be gone back to and, last, the current one.
// The host as it was before nodeprep is none of them: uninstall leads there.
func Generations(root *host.Root, receipt *Receipt) ([]Generation, error) {
	if receipt == nil {
		return nil, nil
	}
	var out []Generation
	for n := receipt.Generation - 1; n > 0; n-- {
		rec, was, err := kept(root, n)
		if err != nil {
			return nil, err
		}
		if rec == nil || was == nil {
			break
		}
		out = append(out, Generation{Number: n, Time: was.Time, Profiles: was.Profiles, Artifacts: was.Artifacts})
	}
	slices.Reverse(out)
	return append(out, Generation{Number: receipt.Generation, Current: true, Time: receipt.Time, Profiles: receipt.Profiles, Artifacts: receipt.Artifacts}), nil
}

// kept reads what is kept of a generation; both are nil when it is not.
func kept(root *host.Root, n int) (*Journal, *Receipt, error) {
	rec, err := readJournal(root, generation(StateDir, n, "record.json"))
	if err != nil || rec == nil {
		return nil, nil, err
	}
	was, err := readReceiptFile(root, generation(StateDir, n, "receipt.json"))
	if err != nil || was.Format == 0 {
		return nil, nil, err
	}
	return rec, &was, nil
}

// DiffRollback compares a host with what it was in an earlier generation; to is its
// number, or 0 for the one before the current. What was changed since by somebody else
// is refused as in Diff. Images stay imported, those that wait for a first boot become those of
// then, and nodeprep itself stays what it is. A
// mode or owner that was repaired stays repaired: what the generation wanted is that too.
// A generation that is not kept is *NoGenerationError.
func DiffRollback(ctx context.Context, h *host.Host, receipt *Receipt, to int, opt DiffOptions) (*Plan, error) {
	return steady(ctx, h, receipt, func(receipt *Receipt) (*Plan, error) { return diffRollback(ctx, h, receipt, to, opt) })
}

func diffRollback(ctx context.Context, h *host.Host, receipt *Receipt, to int, opt DiffOptions) (*Plan, error) {
	all, err := Generations(h.Root, receipt)
	if err != nil {
		return nil, err
	}
	none := &NoGenerationError{Wanted: to, Current: receipt.generation()}
	for _, g := range all {
		if !g.Current {
			none.Kept = append(none.Kept, g.Number)
		}
	}
	if to == 0 && len(none.Kept) > 0 {
		to = none.Kept[len(none.Kept)-1]
	}
	if !slices.Contains(none.Kept, to) {
		return nil, none
	}
	_, target, err := kept(h.Root, to)
	if err == nil && target == nil {
		// Another run took it away since it was listed: the caller looks again.
		err = fmt.Errorf("roll back to generation %d: it was removed meanwhile: %w", to, fs.ErrNotExist)
	}
	if err != nil {
		return nil, err
	}
	state := &desired.State{Arch: target.Arch, Daemon: target.Daemon, Generations: receipt.Generations, Sysctl: map[string]string{}}
	for _, u := range target.Units {
		state.Units = append(state.Units, desired.Unit{Name: u, Active: u == target.Daemon.Unit})
	}
	d := newDiffer(h, VerbRollback, state, receipt, opt)
	d.plan.back = target
	d.plan.again = func(ctx context.Context, now *Receipt) (*Plan, error) { return DiffRollback(ctx, h, now, to, opt) }
	was, err := before(h.Root, to, receipt.Generation)
	if err != nil {
		return nil, err
	}
	d.releasesBack(target)
	for _, p := range sortedKeys(was.changes) {
		if err := d.back(was.changes[p]); err != nil {
			return nil, err
		}
	}
	if err := d.dirsBack(was); err != nil {
		return nil, err
	}
	if d.plan.live {
		if err := d.kernel(); err != nil {
			return nil, err
		}
	}
	if err := d.services(ctx); err != nil {
		return nil, err
	}
	if err := d.discipline(ctx); err != nil {
		return nil, err
	}
	return d.plan, ctx.Err()
}

// earlier is what a range of records tells of the state before them.
type earlier struct {
	// changes are by path, the oldest of each.
	changes map[string]*Change
	made    []string
	dropped map[string]Dropped
}

// before goes through the records from the newest back to that of generation n.
func before(root *host.Root, n, current int) (*earlier, error) {
	out := &earlier{changes: map[string]*Change{}, dropped: map[string]Dropped{}}
	for g := current - 1; g >= n; g-- {
		rec, _, err := kept(root, g)
		if err != nil {
			return nil, err
		}
		if rec == nil {
			return nil, fmt.Errorf("roll back to generation %d: the record of generation %d is missing: %w", n, g, fs.ErrNotExist)
		}
		for i := range rec.Changes {
			out.changes[rec.Changes[i].Path] = &rec.Changes[i]
		}
		for _, drop := range rec.Drop {
			out.dropped[drop.Path] = drop
			out.made = slices.DeleteFunc(out.made, func(p string) bool { return p == drop.Path })
		}
		for _, p := range rec.Dirs {
			delete(out.dropped, p)
			out.made = append(out.made, p)
		}
	}
	slices.Sort(out.made)
	out.made = slices.Compact(out.made)
	return out, nil
}

// releasesBack shows which versions come back; their files are changes of their own.
func (d *differ) releasesBack(target *Receipt) {
	names := map[string]bool{}
	for _, a := range slices.Concat(target.Artifacts, d.receipt.Artifacts) {
		names[a.Component] = true
	}
	for _, name := range sortedKeys(names) {
		now, then := d.receipt.installed(name), target.installed(name)
		it := Item{Kind: KindArtifact, Path: name, Action: Update}
		switch {
		case then == nil:
			it.Action, it.OldVersion, it.Reason = Remove, now.Version, "was not installed then"
		case now == nil:
			it.Action, it.NewVersion, it.Reason = Create, then.Version, "was installed then"
		case now.SHA256 == then.SHA256:
			continue
		default:
			it.OldVersion, it.NewVersion, it.Reason = now.Version, then.Version, now.Version+" becomes "+then.Version+" again"
		}
		d.add(it)
	}
}

// back plans one path. An archive that waited then and was imported since does not wait again.
func (d *differ) back(c *Change) error {
	if path.Dir(c.Path) == ImagesDir && c.Kept != nil &&
		slices.ContainsFunc(d.receipt.Images, func(x Imported) bool { return !x.Pending && waitingPath(x.SHA256) == c.Path }) {
		return nil
	}
	if c.Path == FirstBootPath && d.plan.live {
		return nil // nor does the first boot come again
	}
	real, fi, err := d.look(c.Path)
	if err != nil {
		return err
	}
	own, becomes := d.receipt.Find(c.Path), d.plan.back.Find(c.Path)
	it := Item{Kind: KindFile, Path: c.Path, own: own, becomes: becomes, kept: c.Kept, unproven: c.Adopted, real: real}
	if becomes != nil {
		it.Origin = becomes.Origin
	}
	if c.Kept != nil && c.Kept.Kind == KindLink || c.Kept == nil && own != nil && own.Kind == KindLink {
		it.Kind = KindLink
	}
	it.Secret = own != nil && own.Salted || becomes != nil && becomes.Salted || private(fi) ||
		c.Kept != nil && c.Kept.Kind == KindFile && c.Kept.Mode.Perm()&0o004 == 0
	foreign := ""
	if fi != nil {
		if foreign, err = d.foreign(own, becomes, real, fi); err != nil {
			return err
		}
	}
	if fi != nil && foreign == "" && sameThing(own, becomes) {
		return nil
	}
	switch {
	case c.Kept == nil && fi == nil:
		return nil
	case c.Kept == nil && foreign != "":
		it.Action, it.Reason = Leave, "was not there then, and stays because it "+foreign
		d.plan.Warnings.Warnf(diag.Origin{File: c.Path}, "remove it by hand if nobody needs it", "%s", it.Reason)
	case c.Kept == nil:
		it.Action, it.Reason = Remove, "was not there then"
		if becomes != nil {
			d.plan.Warnings.Warnf(diag.Origin{File: c.Path}, "apply the profile of then to have it again", "was missing when the next generation came, so that nothing of it is kept: it is removed")
		}
	case fi == nil:
		it.Action, it.Reason = Create, "comes back"
	case it.Kind == KindLink && fi.Mode().Type() == fs.ModeSymlink && sameTarget(real, c.Kept.Target):
		return nil
	case foreign != "":
		it.Action, it.Reason, it.Adoptable = Refuse, foreign, fi.Mode().IsRegular() || fi.Mode().Type() == fs.ModeSymlink
		if d.opt.Adopt && it.Adoptable {
			it.Action, it.Adopted = Update, []string{c.Path}
		}
	default:
		it.Action, it.Reason = Update, "becomes what it was"
	}
	return d.consequences(it, fi)
}

// sameThing holds for two entries of one file or link that say the same of it.
func sameThing(a, b *Owned) bool {
	return a != nil && b != nil && a.Kind == b.Kind && a.SHA256 == b.SHA256 && a.Salted == b.Salted && a.Mode == b.Mode && a.Target == b.Target
}

// consequences adds the item of a path that changes, and what follows from it.
func (d *differ) consequences(it Item, fi fs.FileInfo) error {
	var format desired.Format
	var effect desired.Effect
	unit, component := "", ""
	for _, o := range []*Owned{it.own, it.becomes} {
		if o != nil {
			format, effect, unit, component = o.Format, o.Effect, o.Unit, o.Component
		}
	}
	keys := []string{"content"}
	var content, old []byte
	if component == "" && it.Kind == KindFile {
		there, comes := true, true // and small enough to be compared
		if it.kept != nil {
			at, err := keptAt(d.root, it.kept)
			if err != nil {
				return err
			}
			if content, comes, err = readShown(at); err != nil {
				return fmt.Errorf("read what was kept of %s: %w", it.Path, err)
			}
		}
		if fi != nil && fi.Mode().IsRegular() {
			var err error
			if old, there, err = readShown(it.real); err != nil {
				return err
			}
			if it.kept != nil && there && comes {
				keys = changedKeys(format, old, content)
			}
		}
		if !it.Secret {
			if there && comes {
				it.Old, it.New = old, content
			}
			if it.Action == Update {
				it.Details = keys
			}
		}
	}
	if fi != nil && it.kept != nil && it.Kind == KindFile {
		it.OldMode, it.NewMode = permissions(fi.Mode()), it.kept.Mode
	}
	d.add(it)
	if !it.Changes() {
		return nil
	}
	d.kernelBack(it.Path, content)
	reason := cause{component, path.Base(it.Path) + ": " + it.Reason}
	switch {
	case it.Kind == KindLink && path.Dir(path.Dir(it.Path)) == unitDir: // enables a unit
		u := d.unit(path.Base(it.Path))
		u.reload = append(u.reload, reason)
	case len(keys) > 0:
		d.effect(effect, unit, reason)
	case effect == desired.EffectUnit:
		u := d.unit(unit)
		u.reload = append(u.reload, reason)
	}
	return nil
}

// foreign says why what stands at a path is not what nodeprep wrote, "" when it is. What
// was given back, and is as it was when it was taken over, may be taken over again.
func (d *differ) foreign(own, becomes *Owned, real string, fi fs.FileInfo) (string, error) {
	if own == nil && becomes != nil && becomes.Before != nil {
		if same, err := d.isOriginal(becomes.Before, real, fi); err != nil || same {
			return "", err
		}
	}
	if own == nil {
		if !fi.Mode().IsRegular() {
			return "is " + typeName(fi.Mode()) + " that nodeprep did not make", nil
		}
		return "exists and was not written by nodeprep", nil
	}
	drift, what, err := d.receipt.compare(real, fi, own, false)
	if err != nil {
		return "", fmt.Errorf("compare %s: %w", own.Path, err)
	}
	if drift == edited {
		return "was changed since nodeprep wrote it: " + what, nil
	}
	return "", nil
}

// isOriginal reports whether what stands at a path is what was put aside.
func (d *differ) isOriginal(k *Kept, real string, fi fs.FileInfo) (bool, error) {
	if k.Kind == KindLink {
		return fi.Mode().Type() == fs.ModeSymlink && sameTarget(real, k.Target), nil
	}
	st := fi.Sys().(*syscall.Stat_t)
	if !fi.Mode().IsRegular() || fi.Size() != k.Size || permissions(fi.Mode()) != k.Mode || st.Uid != k.UID || st.Gid != k.GID {
		return false, nil
	}
	at, err := keptAt(d.root, k)
	if err != nil {
		return false, err
	}
	was, err := digestFile(at, "", false)
	if err != nil {
		return false, fmt.Errorf("read what was put aside: %w", err)
	}
	now, err := digestFile(real, "", false)
	return now == was, err
}

// untouched fails where somebody changed what was put aside. Of what was not ours no
// digest is known, only what lstat said.
func (r *run) untouched(k *Kept) error {
	if k.Kind == KindLink {
		return nil
	}
	at, err := keptAt(r.root, k)
	if err != nil {
		return err
	}
	fi, err := os.Lstat(at)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() || fi.Size() != k.Size || fi.ModTime().UnixNano() != k.MTime {
		return fmt.Errorf("what was kept of it, %s, is not as it was put aside; somebody changed it", k.Path)
	}
	return nil
}

func sameTarget(real, target string) bool {
	now, err := os.Readlink(real)
	return err == nil && now == target
}

// kernelBack wants of the kernel what a file that comes back says.
func (d *differ) kernelBack(p string, content []byte) {
	modules, settings := kernelLines(p, string(content))
	d.state.Modules = append(d.state.Modules, modules...)
	for key, value := range settings {
		d.state.Sysctl[key] = value
	}
}

// dirsBack plans directories: those that went come back, those that came go if nothing
// else is in them.
func (d *differ) dirsBack(was *earlier) error {
	gone, needed := map[string]bool{}, map[string]bool{}
	for i := range d.plan.Items {
		switch it := &d.plan.Items[i]; it.Action {
		case Remove:
			gone[it.real] = true
		case Create, Update:
			for _, p := range parents(it.real) {
				needed[p] = true
			}
		}
	}
	for _, p := range sortedKeys(was.dropped) {
		real, fi, err := locate(d.root, p)
		if err != nil {
			return err
		}
		if p == ImagesDir && !needed[real] {
			continue // it tells that something waits
		}
		if drop := was.dropped[p]; fi == nil {
			d.add(Item{Kind: KindDir, Path: p, Action: Create, Reason: "comes back", real: real, dir: &desired.Dir{Path: p, Mode: drop.Mode}, dropped: &drop})
		}
	}
	for _, p := range slices.Backward(was.made) {
		real, fi, err := locate(d.root, p)
		if err != nil {
			return err
		}
		if fi == nil || !fi.IsDir() || needed[real] {
			continue
		}
		entries, err := os.ReadDir(real)
		if err != nil {
			return err
		}
		if slices.ContainsFunc(entries, func(e os.DirEntry) bool { return !gone[filepath.Join(real, e.Name())] }) {
			continue // somebody uses it
		}
		gone[real] = true
		d.add(Item{Kind: KindDir, Path: p, Action: Remove, Reason: "was not there then", real: real})
	}
	return nil
}

// receiptBack is the receipt after a rollback: that of the generation, with the files as
// they are now.
func (r *run) receiptBack() (*Receipt, error) {
	now, then := r.plan.receipt, r.plan.back
	rec := *then
	rec.Format, rec.ID, rec.Generation, rec.Nodeprep, rec.Time = receiptFormat, r.id, r.j.To, r.opt.Version, r.h.Now().UTC()
	rec.Generations, rec.Tops, rec.Salt = now.Generations, r.farTops(), now.Salt
	rec.UserData = BootDigests{} // somebody wanted this, not user-data
	var err error
	if rec.Images, err = r.imagesBack(now, then); err != nil {
		return nil, err
	}
	rec.Owned, rec.Artifacts = nil, slices.Clone(then.Artifacts)
	for i := range rec.Artifacts {
		a := &rec.Artifacts[i]
		if a.Time = rec.Time; now.installed(a.Component) != nil && sameMinor(now.installed(a.Component).Version, a.Version) {
			a.Time = now.installed(a.Component).Time
		}
	}
	brought := map[string]*Item{}
	for i := range r.plan.Items {
		if it := &r.plan.Items[i]; it.kept != nil && it.Changes() {
			brought[it.Path] = it
		}
	}
	changed := map[string]*Change{}
	for i := range r.j.Changes {
		changed[r.j.Changes[i].Path] = &r.j.Changes[i]
	}
	for _, own := range then.Owned {
		if own.First {
			continue
		}
		_, fi, err := locate(r.root, own.Path)
		if err != nil {
			return nil, err
		}
		if own.Kind == KindDir || path.Dir(own.Path) == ImagesDir || own.Path == FirstBootPath {
			if fi != nil {
				rec.Owned = append(rec.Owned, own)
			}
			continue
		}
		// Times tell a file that needs no reading; of one that is not known to be what
		// the entry says they would hide that.
		it, was := brought[own.Path], now.Find(own.Path)
		switch {
		case own.Kind != KindFile || fi == nil:
		case it != nil && !it.unproven && fi.Mode().IsRegular():
			fresh := Owned{Kind: KindFile}
			fresh.stat(fi)
			own.MTime, own.Inode = fresh.MTime, fresh.Inode
		case it == nil && sameThing(was, &own):
			own.MTime, own.Inode = was.MTime, was.Inode
		}
		if c := changed[own.Path]; c != nil && c.Adopted && own.Before == nil {
			own.Before = c.Kept
		}
		rec.Owned = append(rec.Owned, own)
	}
	for _, own := range now.Owned {
		_, fi, err := locate(r.root, own.Path)
		if err != nil {
			return nil, err
		}
		// nodeprep itself, and directories that others use.
		if own.First || own.Kind == KindDir && fi != nil && rec.Find(own.Path) == nil {
			rec.Owned = append(rec.Owned, own)
		}
	}
	for _, p := range r.j.Dirs {
		if rec.Find(p) != nil {
			continue
		}
		fi, err := os.Lstat(r.abs(p))
		if err != nil {
			return nil, err
		}
		own := Owned{Path: p, Kind: KindDir}
		own.stat(fi)
		rec.Owned = append(rec.Owned, own)
	}
	return &rec, nil
}
