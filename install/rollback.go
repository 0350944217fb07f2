package install

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
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
	Wanted int
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
	return fmt.Sprintf("roll back to generation %d: it is not kept; there are %s", e.Wanted, strings.Join(list, ", "))
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
// is refused as in Diff. Images stay imported, and nodeprep itself stays what it is.
func DiffRollback(ctx context.Context, h *host.Host, receipt *Receipt, to int, opt DiffOptions) (*Plan, error) {
	all, err := Generations(h.Root, receipt)
	if err != nil {
		return nil, err
	}
	none := &NoGenerationError{Wanted: to}
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
	if err != nil {
		return nil, err
	}
	state := &desired.State{Arch: target.Arch, Daemon: target.Daemon, Generations: receipt.Generations, Sysctl: map[string]string{}}
	for _, u := range target.Units {
		state.Units = append(state.Units, desired.Unit{Name: u, Active: u == target.Daemon.Unit})
	}
	d := &differ{
		root: h.Root, state: state, receipt: receipt, opt: opt,
		wanted: map[string]string{}, units: map[string]*unitCauses{},
		plan: &Plan{verb: VerbRollback, state: state, receipt: receipt, back: target, live: h.Root.Live() || opt.live, seen: map[string]fs.FileInfo{}},
	}
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
			return nil, fmt.Errorf("roll back to generation %d: the record of generation %d is missing", n, g)
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

// back plans one path.
func (d *differ) back(c *Change) error {
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
	it.Secret = own != nil && own.Salted || becomes != nil && becomes.Salted || private(fi)
	foreign := ""
	if fi != nil {
		if foreign, err = d.foreign(own, real, fi); err != nil {
			return err
		}
	}
	var content []byte
	if c.Kept != nil && c.Kept.Kind == KindFile {
		at, err := (&run{root: d.root}).keptAt(c.Kept)
		if err != nil {
			return err
		}
		if fi != nil && foreign == "" && own != nil && becomes != nil && own.SHA256 == becomes.SHA256 && own.Mode == becomes.Mode {
			return nil // the same again
		}
		if c.Kept.Size <= copyLimit {
			if content, err = os.ReadFile(at); err != nil {
				return fmt.Errorf("read what was kept of %s: %w", c.Path, err)
			}
		}
	}
	switch {
	case c.Kept == nil && fi == nil:
		return nil
	case c.Kept == nil && foreign != "":
		it.Action, it.Reason = Leave, "was not there then, and stays because it "+foreign
	case c.Kept == nil:
		it.Action, it.Reason = Remove, "was not there then"
	case fi == nil:
		it.Action, it.Reason = Create, "comes back"
	case it.Kind == KindLink && fi.Mode()&fs.ModeSymlink != 0 && sameTarget(real, c.Kept.Target):
		return nil
	case foreign != "":
		it.Action, it.Reason, it.Adoptable = Refuse, foreign, fi.Mode().IsRegular() || fi.Mode()&fs.ModeSymlink != 0
		if d.opt.Adopt && it.Adoptable {
			it.Action, it.Adopted = Update, []string{c.Path}
		}
	default:
		it.Action, it.Reason = Update, "becomes what it was"
	}
	var format desired.Format
	var effect desired.Effect
	unit, component := "", ""
	for _, o := range []*Owned{own, becomes} {
		if o != nil {
			format, effect, unit, component = o.Format, o.Effect, o.Unit, o.Component
		}
	}
	var old []byte
	if fi != nil && fi.Mode().IsRegular() && component == "" {
		if old, err = os.ReadFile(real); err != nil {
			return err
		}
	}
	keys := []string{"content"}
	if content != nil && old != nil {
		keys = changedKeys(format, old, content)
	}
	if !it.Secret && component == "" {
		it.Old, it.New = old, content
		if it.Action == Update {
			it.Details = keys
		}
	}
	d.add(it)
	d.kernelBack(c.Path, content)
	if !it.Changes() || path.Dir(path.Dir(c.Path)) == unitDir && it.Kind == KindLink {
		if it.Changes() {
			u := d.unit(path.Base(c.Path))
			u.reload = append(u.reload, cause{reason: path.Base(c.Path) + ": " + it.Reason})
		}
		return nil
	}
	reason := path.Base(c.Path) + ": " + it.Reason
	switch {
	case len(keys) > 0:
		d.effect(effect, unit, cause{component, reason})
	case effect == desired.EffectUnit:
		u := d.unit(unit)
		u.reload = append(u.reload, cause{reason: reason})
	}
	return nil
}

// foreign says why what stands at a path is not what nodeprep wrote, "" when it is.
func (d *differ) foreign(own *Owned, real string, fi fs.FileInfo) (string, error) {
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

func sameTarget(real, target string) bool {
	now, err := os.Readlink(real)
	return err == nil && now == target
}

// kernelBack wants of the kernel what a file that comes back says.
func (d *differ) kernelBack(p string, content []byte) {
	dir := path.Dir(p)
	if dir != "/etc/modules-load.d" && dir != "/etc/sysctl.d" {
		return
	}
	modules, settings := kernelLines(dir, string(content))
	d.state.Modules = append(d.state.Modules, modules...)
	for key, value := range settings {
		d.state.Sysctl[key] = value
	}
}

// dirsBack plans directories.
func (d *differ) dirsBack(was *earlier) error {
	for _, p := range sortedKeys(was.dropped) {
		real, err := d.root.Locate(p)
		if err != nil {
			return err
		}
		fi, err := lstat(real)
		if err != nil {
			return err
		}
		if fi == nil {
			d.add(Item{Kind: KindDir, Path: p, Action: Create, Reason: "comes back", real: real, dir: &desired.Dir{Path: p, Mode: was.dropped[p].Mode}})
		}
	}
	for _, p := range slices.Backward(was.made) {
		real, err := d.root.Locate(p)
		if err != nil {
			return err
		}
		fi, err := lstat(real)
		if err != nil {
			return err
		}
		if fi != nil && fi.IsDir() {
			d.add(Item{Kind: KindDir, Path: p, Action: Remove, Reason: "was not there then", real: real, quiet: true})
		}
	}
	return nil
}

// receiptBack is the receipt after a rollback: that of the generation, with the files as
// they are now.
func (r *run) receiptBack() (*Receipt, error) {
	now, then := r.plan.receipt, r.plan.back
	rec := *then
	rec.Format, rec.ID, rec.Generation, rec.Nodeprep, rec.Time = receiptFormat, r.id, r.j.To, r.opt.Version, r.h.Now().UTC()
	rec.Images, rec.Generations, rec.Tops, rec.Salt = now.Images, now.Generations, r.farTops(), now.Salt
	rec.Owned, rec.Artifacts = nil, slices.Clone(then.Artifacts)
	add := func(own Owned, fresh bool) error {
		_, fi, err := locate(r.root, own.Path)
		if err != nil || fi == nil {
			return err
		}
		if was := now.Find(own.Path); was != nil && !fresh && was.Kind == own.Kind && was.SHA256 == own.SHA256 && was.Target == own.Target {
			own.MTime, own.Inode, own.Size = was.MTime, was.Inode, was.Size
		} else if own.Kind == KindFile && fi.Mode().IsRegular() {
			fresh := own
			fresh.stat(fi)
			own.MTime, own.Inode = fresh.MTime, fresh.Inode
		}
		rec.Owned = append(rec.Owned, own)
		return nil
	}
	written := map[string]bool{}
	for _, s := range r.staging.items {
		written[s.own.Path] = true
	}
	for _, own := range then.Owned {
		if own.First {
			continue
		}
		if err := add(own, written[own.Path]); err != nil {
			return nil, err
		}
	}
	for _, own := range now.Owned {
		// nodeprep itself, and directories that are not empty.
		if own.First || own.Kind == KindDir && rec.Find(own.Path) == nil {
			if err := add(own, false); err != nil {
				return nil, err
			}
		}
	}
	return &rec, nil
}
