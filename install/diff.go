package install

import (
	"cmp"
	"context"
	"debug/buildinfo"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// DiffOptions are what a comparison needs besides the state and the host.
type DiffOptions struct {
	// Adopt allows files that are not ours, or were changed since, to be replaced.
	Adopt bool
	// Services is asked once which units run; nil under a root that is not running.
	Services Services
	// Daemon is asked what runs under it; nil under a root that is not running.
	Daemon Daemon
	// Images opens the image archives of a bundle; nil where there is none.
	Images ImageSource
	// ForceRestart allows a restart that kills containers. WithRunningPods allows what
	// pods that run do not survive, such as another cgroup driver.
	ForceRestart    bool
	WithRunningPods bool

	// live overrides, in tests, what the root itself says.
	live bool
}

// masks reports whether a path leads to /dev/null or to an empty file, which to systemd
// is as if there were none, even where another directory has one (systemd.unit(5)).
func (d *differ) masks(p string) bool {
	fi, err := d.root.Lstat(p)
	if err != nil || fi.Mode().Type() != fs.ModeSymlink {
		return false
	}
	real, err := d.root.Resolve(p)
	if err != nil {
		return false
	}
	if d.shown(real) == "/dev/null" {
		return true
	}
	fi, err = lstat(real)
	return err == nil && fi != nil && fi.Mode().IsRegular() && fi.Size() == 0
}

// unitDir is where the host's own units are.
const unitDir = "/etc/systemd/system"

// hostsDirs is the name of the folder whose folders are registries' (containerd
// docs/hosts.md): one that is left over changes where pulls go.
const hostsDirs = "certs.d"

// defaultUnit is restarted by changes that name no unit.
const defaultUnit = systemd.UnitName

// Diff compares a host with the state it shall have, and only reads: a file whose
// size, time and inode are as the receipt has them is not even opened. receipt is nil
// on a host without one. What cannot be planned at all, such as two files for one
// path, is an error; what stands in the way is in the plan, see Plan.Refusal.
func Diff(ctx context.Context, h *host.Host, state *desired.State, receipt *Receipt, opt DiffOptions) (*Plan, error) {
	return steady(ctx, h, receipt, func(receipt *Receipt) (*Plan, error) { return diff(ctx, h, state, receipt, opt) })
}

// steady makes a plan once more, from the receipt as it is by then, where something went
// away while it was being made: plans are made without the lock, and another nodeprep may
// be at work. A path that is said to be there and is not stays the error it is.
func steady(ctx context.Context, h *host.Host, receipt *Receipt, plan func(*Receipt) (*Plan, error)) (*Plan, error) {
	p, err := plan(receipt)
	for range 2 {
		if !isAbsent(err) || ctx.Err() != nil {
			break
		}
		now, rerr := ReadReceipt(h.Root)
		if rerr != nil {
			return nil, errors.Join(err, rerr)
		}
		p, err = plan(now)
	}
	return p, err
}

func diff(ctx context.Context, h *host.Host, state *desired.State, receipt *Receipt, opt DiffOptions) (*Plan, error) {
	d := newDiffer(h, VerbApply, state, receipt, opt)
	d.plan.again = func(ctx context.Context, now *Receipt) (*Plan, error) { return Diff(ctx, h, state, now, opt) }
	var faults []error
	note := func(err error) {
		if err != nil {
			faults = append(faults, err)
		}
	}
	d.firstBoot()
	state = d.state
	for i := range state.Artifacts {
		note(d.artifact(&state.Artifacts[i]))
	}
	for i := range state.Dirs {
		note(d.dir(&state.Dirs[i]))
	}
	for i := range state.Files {
		note(d.file(&state.Files[i]))
	}
	links, err := d.links()
	note(err)
	for i := range links {
		note(d.link(&links[i]))
	}
	images, err := d.images(ctx)
	note(err)
	note(d.removals())
	note(d.hostsOfOthers())
	if d.plan.live {
		note(d.kernel())
	}
	note(d.services(ctx))
	note(d.discipline(ctx))
	d.plan.Items = append(d.plan.Items, images...)
	if err := errors.Join(faults...); err != nil {
		return nil, err
	}
	return d.plan, ctx.Err()
}

type differ struct {
	root    *host.Root
	state   *desired.State
	receipt *Receipt
	opt     DiffOptions
	plan    *Plan
	// wanted maps each real path that the state wants to its path in the state.
	wanted map[string]string
	units  map[string]*unitCauses
}

// newDiffer begins a plan, with nothing in it.
func newDiffer(h *host.Host, verb Verb, state *desired.State, receipt *Receipt, opt DiffOptions) *differ {
	return &differ{
		root: h.Root, state: state, receipt: receipt, opt: opt,
		wanted: map[string]string{}, units: map[string]*unitCauses{},
		plan: &Plan{verb: verb, state: state, receipt: receipt, live: h.Root.Live() || opt.live, seen: map[string]fs.FileInfo{}},
	}
}

// unitCauses gathers what changed items ask of a unit.
type unitCauses struct{ reload, restart []cause }

func (d *differ) add(it Item) { d.plan.Items = append(d.plan.Items, it) }

// program plans a file that is copied from another one: nodeprep itself. It is large, so
// that it is read only where sizes and times do not tell.
func (d *differ) program(f *desired.File, it Item, fi fs.FileInfo) error {
	src, err := os.Stat(f.Source)
	if err != nil {
		return fmt.Errorf("plan %s: %w", f.Path, err)
	}
	own := d.receipt.Find(f.Path)
	it.own = own
	if why := d.blocked(it.real); why != "" {
		it.Action, it.Reason = Refuse, why
		d.add(it)
		return nil
	}
	same := func() (bool, error) {
		if os.SameFile(fi, src) {
			return true, nil
		}
		if fi.Size() != src.Size() {
			return false, nil
		}
		a, err := digestFile(it.real, "", false)
		if err != nil {
			return false, err
		}
		b, err := digestArchive(f.Source)
		return a == b, err
	}
	switch {
	case fi == nil:
		it.Action, it.Reason = Create, "recovers an interrupted run, also at boot"
	case own == nil || own.Kind != KindFile:
		if !fi.Mode().IsRegular() {
			it.Action, it.Reason = Refuse, "is "+typeName(fi.Mode())+" that nodeprep did not make"
			break
		}
		is, err := same()
		if err != nil {
			return fmt.Errorf("plan %s: %w", f.Path, err)
		}
		// Put there by hand and what runs now: it is as good as ours, and stays theirs.
		if it.Action = Keep; !is {
			it.Action, it.Reason, it.Adopted = Update, "is another version", []string{f.Path}
			if !isNodeprep(it.real) {
				it.Reason, it.Adoptable = "exists and is not nodeprep", true
				if !d.opt.Adopt {
					it.Action, it.Adopted = Refuse, nil
				}
			}
		}
	default:
		drift, what, err := d.receipt.compare(it.real, fi, own, false)
		if err != nil {
			return fmt.Errorf("compare %s: %w", f.Path, err)
		}
		unchanged := own.Source != nil && *own.Source == *sourceOf(src)
		if !unchanged {
			if unchanged, err = same(); err != nil {
				return fmt.Errorf("plan %s: %w", f.Path, err)
			}
		}
		switch {
		case drift == asWritten && unchanged:
			it.Action = Keep
		case drift == asWritten:
			it.Action, it.Reason = Update, "another version runs now"
		default:
			it.Action, it.Reason = Update, what
			if drift == edited && !isNodeprep(it.real) {
				it.Action, it.Reason, it.Adoptable = Refuse, "was changed since nodeprep wrote it: "+what, true
				if d.opt.Adopt {
					it.Action, it.Adopted = Update, []string{f.Path}
				}
			}
		}
	}
	d.add(it)
	return nil
}

// isNodeprep reports whether a program is some version of nodeprep (debug/buildinfo).
func isNodeprep(real string) bool {
	info, err := buildinfo.ReadFile(real)
	return err == nil && info.Main.Path == "github.com/nodeprep/nodeprep"
}

// look resolves a wanted path and notes it; two wanted paths in one place are a fault.
func (d *differ) look(p string) (real string, fi fs.FileInfo, err error) {
	if p != path.Clean(p) || !path.IsAbs(p) || p == "/" {
		return "", nil, fmt.Errorf("plan %q: not a clean absolute path", p)
	}
	real, fi, err = locate(d.root, p)
	if err != nil {
		return "", nil, err
	}
	if other, taken := d.wanted[real]; taken {
		return "", nil, fmt.Errorf("plan %s: %s is wanted in the same place", p, other)
	}
	d.wanted[real] = p
	d.plan.seen[real] = fi
	return real, fi, nil
}

// blocked says why a directory of p cannot be had, "" when it can.
func (d *differ) blocked(real string) string {
	dir := filepath.Dir(real)
	for {
		fi, err := os.Lstat(dir)
		switch {
		case err == nil && fi.IsDir():
			return ""
		case err == nil:
			return fmt.Sprintf("%s is %s where a directory is needed", d.shown(dir), typeName(fi.Mode()))
		case !isAbsent(err):
			return err.Error()
		}
		dir = filepath.Dir(dir)
	}
}

// shown is a real path as it is on the node.
func (d *differ) shown(real string) string { return shown(d.root, real) }

func shown(root *host.Root, real string) string {
	if root.Live() {
		return real
	}
	return "/" + strings.TrimPrefix(strings.TrimPrefix(real, root.Dir()), "/")
}

// private reports whether a file is not for everybody to read, so that showing what
// is in it would give it away.
func private(fi fs.FileInfo) bool {
	return fi != nil && fi.Mode().IsRegular() && fi.Mode().Perm()&0o004 == 0
}

func isAbsent(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)
}

// lstat is os.Lstat with nil for nothing there.
func lstat(real string) (fs.FileInfo, error) {
	fi, err := os.Lstat(real)
	if isAbsent(err) {
		return nil, nil
	}
	return fi, err
}

// unit is where the causes of a unit gather; "" is the daemon's.
func (d *differ) unit(name string) *unitCauses {
	name = cmp.Or(name, d.state.Daemon.Unit, defaultUnit)
	u := d.units[name]
	if u == nil {
		u = &unitCauses{}
		d.units[name] = u
	}
	return u
}

func (d *differ) effect(e desired.Effect, unit string, c cause) {
	u := d.unit(unit)
	switch e {
	case desired.EffectUnit:
		u.reload = append(u.reload, c)
		u.restart = append(u.restart, c)
	case desired.EffectRestart:
		u.restart = append(u.restart, c)
	}
}

func (d *differ) file(f *desired.File) error {
	real, fi, err := d.look(f.Path)
	if err != nil {
		return err
	}
	it := Item{Kind: KindFile, Path: f.Path, Origin: f.Origin, Secret: f.Secret, NewMode: permissions(f.Mode), file: f, real: real, first: f.First}
	if f.Source != "" {
		return d.program(f, it, fi)
	}
	if !f.Secret {
		it.New = f.Content
	}
	if f.Secret && f.Mode.Perm()&0o077 != 0 {
		return fmt.Errorf("plan %s: a secret file must not be readable by others, mode is %04o", f.Path, f.Mode.Perm())
	}
	own := d.receipt.Find(f.Path)
	it.own = own
	if own != nil && own.Salted || private(fi) {
		// What stands there is a secret, even if what comes is none: a diff has both.
		it.Secret, it.New = true, nil
	}
	if why := d.blocked(real); why != "" {
		it.Action, it.Reason = Refuse, why
		d.add(it)
		return nil
	}
	if fi == nil {
		it.Action, it.Reason = Create, "new"
		if own != nil {
			it.Reason = "is missing"
		}
		d.add(it)
		d.effect(f.Effect, f.Unit, cause{reason: path.Base(f.Path) + ": " + it.Reason})
		return nil
	}
	foreign, why := "", ""
	if own == nil && f.Path == FirstBootPath && fi.Mode().IsRegular() {
		why = "is of a first boot that was cut off at its end" // after the receipt, before this went
	} else if own == nil || own.Kind != KindFile {
		foreign = "exists and was not written by nodeprep"
		if !fi.Mode().IsRegular() {
			foreign = "is " + typeName(fi.Mode()) + " that nodeprep did not make"
		}
	} else {
		drift, what, err := d.receipt.compare(real, fi, own, false)
		if err != nil {
			return fmt.Errorf("compare %s: %w", f.Path, err)
		}
		switch drift {
		case edited:
			foreign = "was changed since nodeprep wrote it: " + what
		case modeChanged:
			why = what
		case asWritten:
			if own.SHA256 == digest(d.receipt.Salt, own.Salted, f.Content) && permissions(f.Mode) == permissions(fi.Mode()) {
				it.Action = Keep
				d.add(it)
				return nil
			}
		}
	}
	it.OldMode = permissions(fi.Mode())
	if foreign != "" && f.Effect == desired.EffectUnit && d.masks(f.Path) {
		foreign = "is a symbolic link that masks it; remove the link to lift that"
		if path.Dir(f.Path) == unitDir {
			foreign = fmt.Sprintf(`is a symbolic link: the unit is masked; "systemctl unmask %s" lifts that`, path.Base(f.Path))
		}
	}
	if foreign != "" {
		it.Adoptable = fi.Mode().IsRegular() || fi.Mode().Type() == fs.ModeSymlink
		if !d.opt.Adopt || !it.Adoptable {
			it.Action, it.Reason = Refuse, foreign
			d.add(it)
			return nil
		}
		it.Adopted = []string{f.Path}
		why = foreign
	}
	it.Action = Update
	keys := []string{"content"}
	if fi.Mode().IsRegular() {
		old, whole, err := readShown(real)
		if err != nil {
			return fmt.Errorf("read %s: %w", f.Path, err)
		}
		if whole {
			keys = changedKeys(f.Format, old, f.Content)
		}
		switch {
		case !whole:
			it.New = nil
		case !it.Secret:
			it.Old = old
		}
		if why == "" && len(keys) == 0 {
			why = "only its form changes"
			if string(old) == string(f.Content) {
				why = fmt.Sprintf("has mode %04o, not %04o", octal(it.OldMode), octal(it.NewMode))
			}
		}
	}
	if !it.Secret {
		it.Details = keys
	}
	it.Reason = why
	if it.Reason == "" {
		it.Reason = "content changes"
	}
	d.add(it)
	if len(keys) > 0 {
		what := strings.Join(keys, ", ")
		if it.Secret {
			what = "content"
		}
		d.effect(f.Effect, f.Unit, cause{reason: path.Base(f.Path) + ": " + what + " changed"})
	} else if f.Effect == desired.EffectUnit {
		// systemd goes by the file's time, not by its meaning: without a reload it
		// warns about the unit from now on.
		u := d.unit(f.Unit)
		u.reload = append(u.reload, cause{reason: path.Base(f.Path) + ": " + it.Reason})
	}
	return nil
}

func (d *differ) dir(want *desired.Dir) error {
	// A link to a directory is as good as one: it is followed, never replaced.
	real, err := d.root.Resolve(want.Path)
	if err != nil {
		return fmt.Errorf("resolve %s: %w", want.Path, err)
	}
	fi, err := lstat(real)
	if err != nil {
		return err
	}
	d.wanted[real] = want.Path
	it := Item{Kind: KindDir, Path: want.Path, Origin: want.Origin, NewMode: permissions(want.Mode), dir: want, real: real, own: d.receipt.Find(want.Path)}
	switch {
	case fi == nil && d.blocked(real) != "":
		it.Action, it.Reason = Refuse, d.blocked(real)
	case fi == nil:
		it.Action, it.Reason = Create, "new"
	case fi.IsDir():
		it.Action, it.OldMode = Keep, permissions(fi.Mode())
	default:
		it.Action, it.Reason = Refuse, "is "+typeName(fi.Mode())+" where a directory is needed"
	}
	d.add(it)
	return nil
}

func (d *differ) link(w *wantedLink) error {
	want, unit := &w.Link, w.unit
	real, fi, err := d.look(want.Path)
	if err != nil {
		return err
	}
	own := d.receipt.Find(want.Path)
	it := Item{Kind: KindLink, Path: want.Path, Origin: want.Origin, NewVersion: want.Target, symlink: want, real: real, own: own, first: w.first}
	if unit != "" {
		it.Kind = KindUnit // shown as "enable UNIT"; the link is how
	}
	why := d.blocked(real)
	switch {
	case why != "":
		it.Action, it.Reason = Refuse, why
	case fi == nil:
		it.Action, it.Reason = Create, "new"
		if own != nil {
			it.Reason = "is missing"
		}
	case fi.Mode().Type() == fs.ModeSymlink:
		if it.OldVersion, err = os.Readlink(real); err != nil {
			return err
		}
		switch {
		case unit != "" && it.OldVersion != want.Target && d.masks(want.Path):
			it.Reason, it.Adoptable = "is a symbolic link to "+it.OldVersion+", which keeps the unit from starting at boot", true
		// systemd looks at the name of a link in a .wants directory, not at its target.
		case it.OldVersion == want.Target && own != nil, unit != "":
			it.Action = Keep
		case own != nil && own.Kind == KindLink && own.Target == it.OldVersion:
			it.Action, it.Reason = Update, "points to "+it.OldVersion
		default:
			it.Reason, it.Adoptable = "is a symbolic link to "+it.OldVersion+" that nodeprep did not make", true
		}
	default:
		it.Reason, it.Adoptable = "is "+typeName(fi.Mode())+" that nodeprep did not make", fi.Mode().IsRegular()
	}
	if it.Action == "" {
		it.Action = Refuse
		if it.Adoptable && d.opt.Adopt {
			it.Action, it.Adopted = Update, []string{want.Path}
		}
	}
	if unit != "" && it.Action == Create {
		it.Action, it.Reason = Enable, "shall start at boot"
	}
	if unit != "" && it.Action != Refuse {
		it.Path, it.Details = unit, []string{want.Path}
	}
	d.add(it)
	if unit != "" && it.Changes() {
		d.unit(unit).reload = append(d.unit(unit).reload, cause{reason: unit + " is enabled"})
	}
	return nil
}

// sameRelease reports whether what was unpacked is what is wanted. A wanted digest
// that nobody knows cannot differ.
func sameRelease(a *desired.Artifact, was *Installed) bool {
	return was != nil && was.Version == a.Version && was.Arch == a.Arch && was.Static == a.Static &&
		(a.SHA256 == "" || a.SHA256 == was.SHA256 || a.SHA256 == was.Wanted)
}

func (d *differ) artifact(a *desired.Artifact) error {
	was := d.receipt.installed(a.Component)
	same := sameRelease(a, was)
	it := Item{Kind: KindArtifact, Path: a.Component, Origin: a.Origin, NewVersion: a.Version, artifact: a, only: map[string]bool{}}
	if was != nil {
		it.OldVersion = was.Version
	}
	var restart, broken []string
	var refused, repairs []Item
	for i := range a.Members {
		m := &a.Members[i]
		real, fi, err := d.look(m.Path)
		if err != nil {
			return err
		}
		own := d.receipt.Find(m.Path)
		refuse := func(why string, adoptable bool) {
			if adoptable && d.opt.Adopt {
				it.Adopted = append(it.Adopted, m.Path)
				it.only[m.Path] = true
				return
			}
			if m.Optional && !same {
				if it.undecided == nil {
					it.undecided = map[string]Refused{}
				}
				it.undecided[m.Path] = Refused{Path: m.Path, Reason: why, Origin: a.Origin, Adoptable: adoptable}
				hint := "move it out of the way"
				if adoptable {
					hint += ", or take it over with --adopt"
				}
				d.plan.Warnings.Warnf(diag.Origin{File: m.Path}, hint, "%s; apply stops if %s %s has a file for this place", why, a.Component, a.Version)
				return
			}
			refused = append(refused, Item{Action: Refuse, Kind: KindFile, Path: m.Path, Reason: why, Origin: a.Origin, Adoptable: adoptable, real: real})
		}
		if why := d.blocked(real); why != "" {
			refuse(why, false)
			continue
		}
		fix := ""
		switch {
		case fi == nil && (own != nil && own.Component == a.Component || !m.Optional):
			fix = "is missing"
		case fi == nil:
		case same && m.Optional && (own == nil || own.Component != a.Component):
			// The release lacks it: what is there is none of ours.
		case own == nil || own.Kind != KindFile:
			why := "exists and was not written by nodeprep"
			if !fi.Mode().IsRegular() {
				why = "is " + typeName(fi.Mode()) + " that nodeprep did not make"
			}
			refuse(why, fi.Mode().IsRegular() || fi.Mode().Type() == fs.ModeSymlink)
			fix = "is taken over"
		default:
			drift, what, err := d.receipt.compare(real, fi, own, false)
			if err != nil {
				return fmt.Errorf("compare %s: %w", m.Path, err)
			}
			if drift == modeChanged {
				// Who could change these may have changed more, and the time too.
				if drift, what, err = d.receipt.compare(real, fi, own, true); err != nil {
					return fmt.Errorf("compare %s: %w", m.Path, err)
				}
			}
			switch drift {
			case edited:
				refuse("was changed since nodeprep wrote it: "+what, fi.Mode().IsRegular() || fi.Mode().Type() == fs.ModeSymlink)
				fix = "is taken over"
			case modeChanged:
				if same {
					repairs = append(repairs, Item{
						Action: Update, Kind: KindFile, Path: m.Path, Reason: what, Origin: a.Origin,
						OldMode: permissions(fi.Mode()), NewMode: own.Mode, own: own, real: real, repair: true,
					})
				}
			}
		}
		if fix == "" {
			continue
		}
		it.only[m.Path] = true
		broken = append(broken, m.Path+" "+fix)
		if m.Effect != desired.EffectNone {
			restart = append(restart, m.Name+" "+fix)
		}
	}
	d.plan.Items = append(append(d.plan.Items, refused...), repairs...)
	switch {
	case same && len(it.only) == 0:
		it.Action = Keep
		d.add(it)
		return nil
	case same:
		it.Action, it.Reason, it.Details = Update, broken[0], broken
	case was == nil:
		it.Action, it.Reason, it.only = Create, "new", nil
	default:
		it.Action, it.only = Update, nil
		switch {
		case was.Version != a.Version:
			it.Reason = was.Version + " becomes " + a.Version
		case was.Static != a.Static || was.Arch != a.Arch:
			it.Reason = "the other variant is wanted"
		default:
			it.Reason = "another sha256 is wanted"
		}
	}
	d.add(it)
	for i := range a.Members {
		if e := a.Members[i].Effect; !same && e != desired.EffectNone {
			what := a.Component + " " + a.Version + " is new"
			if was != nil {
				what = a.Component + ": " + it.Reason
			}
			d.effect(e, "", cause{a.Component, what})
			break
		}
	}
	if same && len(restart) > 0 {
		d.effect(desired.EffectRestart, "", cause{a.Component, restart[0]})
	}
	return nil
}

// removals plans what is ours and no longer wanted. Members of a release that is
// replaced are looked at again when the new one is unpacked.
func (d *differ) removals() error {
	if d.receipt == nil {
		return nil
	}
	needed := map[string]bool{}
	for real := range d.wanted {
		for _, p := range parents(real) {
			needed[p] = true
		}
	}
	gone := map[string]bool{}
	for i := len(d.receipt.Owned) - 1; i >= 0; i-- { // children before parents
		own := &d.receipt.Owned[i]
		if own.First {
			continue // nodeprep itself goes with an uninstall only
		}
		it, err := d.removal(own, needed, gone)
		if err != nil {
			return err
		}
		if it == nil {
			continue
		}
		if own.Path == FirstBootPath && it.Action == Remove && d.plan.verb == VerbApply {
			it.Reason = "is not needed any more: this run does what the first boot has not"
		}
		d.add(*it)
		if it.Action == Remove {
			gone[it.real] = true
		}
		if it.Changes() && own.Effect != desired.EffectNone {
			d.effect(own.Effect, own.Unit, cause{own.Component, path.Base(own.Path) + ": is removed"})
		}
	}
	return nil
}

func (d *differ) removal(own *Owned, needed, gone map[string]bool) (*Item, error) {
	real, fi, err := locate(d.root, own.Path)
	if err != nil {
		return nil, err
	}
	if own.Kind == KindDir && fi != nil && fi.Mode().Type() == fs.ModeSymlink {
		return nil, nil
	}
	if _, wanted := d.wanted[real]; wanted || fi == nil && own.Before == nil {
		return nil, nil
	}
	if a := d.wantedArtifact(own.Component); a != nil && sameRelease(a, d.receipt.installed(own.Component)) {
		return nil, nil
	}
	it := &Item{Action: Remove, Kind: own.Kind, Path: own.Path, Reason: "is no longer wanted", Origin: own.Origin, own: own, real: real}
	if fi == nil {
		// Somebody has removed ours, which is no reason to lose theirs.
		it.Action, it.Kind, it.Reason, it.kept = Create, own.Before.Kind, "is missing, and no longer wanted; what was there before comes back", own.Before
		d.plan.seen[real] = nil
		return it, nil
	}
	if own.Kind == KindDir {
		state, err := d.root.Resolve(StateDir)
		if err != nil {
			return nil, err
		}
		if needed[real] || real == state || strings.HasPrefix(state, real+"/") || path.Base(real) == keptDir {
			return nil, nil
		}
		entries, err := os.ReadDir(real)
		if err != nil {
			return nil, err
		}
		var others []string
		used := false
		for _, e := range entries {
			if !gone[filepath.Join(real, e.Name())] {
				used = true
				if d.receipt.Find(path.Join(own.Path, e.Name())) == nil {
					others = append(others, e.Name())
				}
			}
		}
		switch {
		case !used:
			return it, nil
		case len(others) == 0 || path.Base(path.Dir(own.Path)) != hostsDirs:
			return nil, nil // somebody uses it
		}
		it.Action, it.Reason = Leave, fmt.Sprintf("is no longer wanted, and stays because %s in it is not nodeprep's", strings.Join(others, ", "))
		d.plan.Warnings.Warnf(diag.Origin{File: own.Path}, "remove it by hand if nobody needs it",
			"%s: containerd takes the folder for the registry's settings, and does not look at _default", it.Reason)
		return it, nil
	}
	drift, what, err := d.receipt.compare(real, fi, own, false)
	if err != nil {
		return nil, fmt.Errorf("compare %s: %w", own.Path, err)
	}
	switch {
	case drift != asWritten && drift != modeChanged:
		it.Action, it.Reason = Leave, "is no longer wanted, and stays because it "+what
		d.plan.Warnings.Warnf(diag.Origin{File: own.Path}, "remove it by hand if nobody needs it", "%s", it.Reason)
		return it, nil
	case own.Before != nil:
		it.Reason = "is no longer wanted; what was there before comes back"
	}
	d.plan.seen[real] = fi
	it.Secret = own.Salted || own.Component == "" && private(fi)
	if own.Kind == KindFile && own.Component == "" && !it.Secret {
		if it.Old, _, err = readShown(real); err != nil {
			return nil, err
		}
	}
	return it, nil
}

// hostsOfOthers tells of registries' folders beside ours that are not nodeprep's. They
// stay, and where pulls of their registries go they decide and not the profile.
func (d *differ) hostsOfOthers() error {
	ours, roots := map[string]bool{}, map[string]bool{}
	mark := func(file string) {
		if dir := path.Dir(file); path.Base(path.Dir(dir)) == hostsDirs {
			ours[dir], roots[path.Dir(dir)] = true, true
		}
	}
	for _, f := range d.state.Files {
		if f.Format == desired.FormatHosts {
			mark(f.Path)
		}
	}
	if d.receipt != nil {
		for _, own := range d.receipt.Owned {
			// Also what is left of a folder that was ours, which is told of already.
			mark(own.Path)
			if path.Base(path.Dir(own.Path)) == hostsDirs {
				ours[own.Path] = true
			}
		}
	}
	for _, root := range slices.Sorted(maps.Keys(roots)) {
		entries, err := d.root.ReadDir(root)
		if err != nil && !isAbsent(err) {
			return fmt.Errorf("list %s: %w", root, err)
		}
		for _, e := range entries {
			if dir := path.Join(root, e.Name()); !ours[dir] && (e.IsDir() || e.Type()&fs.ModeSymlink != 0) {
				d.plan.Warnings.Warnf(diag.Origin{File: dir}, "remove it by hand if nobody needs it",
					"is not nodeprep's, and stays: containerd takes it for the settings of its registry")
			}
		}
	}
	return nil
}

func (d *differ) wantedArtifact(component string) *desired.Artifact {
	if i := slices.IndexFunc(d.state.Artifacts, func(a desired.Artifact) bool { return a.Component == component }); i >= 0 {
		return &d.state.Artifacts[i]
	}
	return nil
}

// kernel plans modules and settings of the running kernel.
func (d *differ) kernel() error {
	builtin := d.builtinModules()
	for _, m := range d.state.Modules {
		it := Item{Kind: KindModule, Path: m, Action: Keep}
		if !d.moduleLoaded(m, builtin) && !d.isAlias(m, builtin) {
			it.Action, it.Reason = Load, "is not loaded"
		}
		d.add(it)
	}
	for _, key := range sortedKeys(d.state.Sysctl) {
		want := d.state.Sysctl[key]
		it := Item{Kind: KindSysctl, Path: key, Action: Keep, NewVersion: want}
		now, err := d.root.ReadFile(sysctlPath(key))
		switch {
		case isAbsent(err):
			it.Action, it.Reason = Set, "is not there yet"
		case err != nil:
			return fmt.Errorf("read kernel setting %s: %w", key, err)
		default:
			it.OldVersion = strings.Join(strings.Fields(string(now)), " ")
			if it.OldVersion != strings.Join(strings.Fields(want), " ") {
				it.Action, it.Reason = Set, fmt.Sprintf("is %q, not %q", it.OldVersion, want)
			}
		}
		d.add(it)
	}
	return nil
}

// services plans what becomes of units: a reload, a start, or a restart with its causes.
func (d *differ) services(ctx context.Context) error {
	if !d.plan.live || d.opt.Services == nil {
		return nil
	}
	var reload []cause
	for _, name := range sortedKeys(d.units) {
		reload = append(reload, d.units[name].reload...)
	}
	now := make([]systemd.Properties, len(d.state.Units))
	for i, u := range d.state.Units {
		if !u.Active {
			continue
		}
		var err error
		if now[i], err = d.opt.Services.Properties(ctx, u.Name); err != nil {
			return err
		}
		if now[i].NeedDaemonReload && len(reload) == 0 {
			reload = append(reload, cause{reason: u.Name + ": its files changed since systemd read them"})
		}
	}
	if len(reload) > 0 {
		d.add(Item{Action: Reload, Kind: KindUnit, Path: "systemd", Reason: reload[0].reason, Details: reasons(reload), causes: reload})
	}
	for i := range d.state.Units {
		u, st := &d.state.Units[i], now[i]
		if !u.Active {
			continue
		}
		it := Item{Kind: KindUnit, Path: u.Name, Origin: u.Origin, Action: Keep, OldVersion: st.ActiveState}
		var causes []cause
		if c := d.units[u.Name]; c != nil {
			causes = c.restart
		}
		switch {
		case !running(st):
			it.Action, it.Reason = Start, "is "+st.ActiveState
		case len(causes) > 0:
			it.Action, it.Reason, it.Details, it.causes = Restart, causes[0].reason, reasons(causes), causes
		}
		d.add(it)
	}
	return nil
}

func reasons(causes []cause) []string {
	var out []string
	for _, c := range causes {
		if !slices.Contains(out, c.reason) {
			out = append(out, c.reason)
		}
	}
	return out
}

// Drifted is one owned path that is not as it was written.
type Drifted struct {
	Path   string      `json:"path"`
	What   string      `json:"what"`
	Origin diag.Origin `json:"origin,omitzero"`
}

// Drift compares a host with its receipt. With deep every file is read; else only
// those whose size, time or inode are not as recorded.
func Drift(ctx context.Context, root *host.Root, receipt *Receipt, deep bool) ([]Drifted, error) {
	var out []Drifted
	for i := range receipt.Owned {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		own := &receipt.Owned[i]
		real, fi, err := locate(root, own.Path)
		if err != nil {
			return nil, err
		}
		d, what, err := receipt.compare(real, fi, own, deep)
		if err != nil {
			return nil, fmt.Errorf("compare %s: %w", own.Path, err)
		}
		if d != asWritten {
			out = append(out, Drifted{Path: own.Path, What: what, Origin: own.Origin})
		}
	}
	return out, nil
}
