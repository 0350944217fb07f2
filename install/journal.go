package install

import (
	"context"
	"encoding/json"
	"errors"
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
	"github.com/nodeprep/nodeprep/internal/host"
)

// JournalPath is the journal, mode 0600. It is there only while a run changes the host,
// and after a run that was interrupted.
const JournalPath = StateDir + "/journal.json"

// journalFormat grows when an older nodeprep could misread a journal or a record.
const journalFormat = 1

// Verb is what a run does as a whole.
type Verb string

const (
	VerbApply     Verb = "apply"
	VerbRollback  Verb = "rollback"
	VerbUninstall Verb = "uninstall"
)

// Stage of a run, as its journal has it.
type stageOfRun string

const (
	// intended: names and places are known, nothing but nodeprep's own files is changed.
	intended stageOfRun = "stage"
	// recorded: the record is whole; from here on files are replaced.
	recorded stageOfRun = "commit"
	// activating: files are replaced, and units may be stopped or started.
	activating stageOfRun = "activate"
	// reverted: everything is as before; what was kept aside may be gone already.
	reverted stageOfRun = "reverted"
	// settled: uninstall is past the point of no return.
	settled stageOfRun = "done"
)

// Journal is a run that has not ended, as plain data: what it takes to undo or to end
// it in another process, after a power cut, under another root. It is durable before
// what it tells of is done. Paths are as on the node, with links in their directories
// followed. Of a run that was done it becomes the record, from which rollback works.
//
// A run is done as soon as the receipt carries its ID, or, for uninstall, at its last
// stage; before that it is undone.
type Journal struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	Verb   Verb   `json:"verb"`
	// Stage is "stage", "commit", "activate", "reverted" or "done".
	Stage stageOfRun `json:"stage"`
	// Nodeprep is the version that wrote it, Time when the run began.
	Nodeprep string    `json:"nodeprep"`
	Time     time.Time `json:"time"`
	// Boot is the kernel's boot_id (random(4)); "" under a root that is not running.
	Boot string `json:"boot,omitempty"`
	// From and To are the generations before and after; equal when no file changes.
	From int `json:"from"`
	To   int `json:"to"`

	// Made are the directories made to hold the journal, outermost first.
	Made []string `json:"made,omitempty"`
	// Scratch are the directories in which staging names of this run may stand, Mounts
	// the mount points below the root that they are under.
	Scratch []string `json:"scratch,omitempty"`
	Mounts  []string `json:"mounts,omitempty"`
	// Tops are the directories that keep what is replaced: StateDir, and keptDir at the
	// top of other filesystems.
	Tops []string `json:"tops,omitempty"`
	// Self are changes of nodeprep's own files, made ahead of everything else.
	Self     []Change `json:"self,omitempty"`
	SelfDirs []string `json:"selfDirs,omitempty"`

	// Dirs are directories that the run makes for its files, outermost first; Drop are
	// those it removes if they are empty, innermost first.
	Dirs []string  `json:"dirs,omitempty"`
	Drop []Dropped `json:"drop,omitempty"`
	// Changes are in the order in which they are made, Repairs come after them.
	Changes []Change `json:"changes,omitempty"`
	Repairs []Repair `json:"repairs,omitempty"`

	// Reload, Stop, Start and Restart are what the run asks of systemd; Failed are those
	// of Start that were failed before.
	Reload  bool     `json:"reload,omitempty"`
	Stop    []string `json:"stop,omitempty"`
	Start   []string `json:"start,omitempty"`
	Restart []string `json:"restart,omitempty"`
	Failed  []string `json:"failed,omitempty"`
	// Dependents are units that were active and that systemd stops along with one of Stop
	// or Restart, unless that is one job.
	Dependents []string `json:"dependents,omitempty"`
	// Issued are those of Stop, Start and Restart that systemd was told, or was just about
	// to be, such as "restart containerd.service": nothing else must be taken back.
	Issued []string `json:"issued,omitempty"`
	// Ended says that tasks were stopped for good, or were just about to be.
	Ended bool `json:"ended,omitempty"`
	// Settings are kernel settings as they were.
	Settings []Setting `json:"settings,omitempty"`
	// Back says of a revert that files and units are as before again, so that nothing
	// must be stopped any more: the unit of before may kill containers with the daemon.
	Back bool `json:"back,omitempty"`
	// Stays are units that a revert does not stop, since that would kill containers.
	Stays []string `json:"stays,omitempty"`
	// Was is what the daemon was found to be; nil if it was not asked or did not answer.
	// Daemon is what it is to be.
	Was    *desired.Daemon `json:"was,omitempty"`
	Daemon desired.Daemon  `json:"daemon,omitzero"`

	// Waited are image archives that go once the receipt says that they are imported.
	// Pinned and Unpinned are images whose pins the run changes.
	Waited   []string `json:"waited,omitempty"`
	Pinned   []string `json:"pinned,omitempty"`
	Unpinned []string `json:"unpinned,omitempty"`

	// Purge are directories that uninstall removes with all that is in them. Last are
	// directories that are removed at the end if they are empty, innermost first.
	// Chain are the directories that end with StateDir and go with it, outermost first.
	Purge []string `json:"purge,omitempty"`
	Last  []string `json:"last,omitempty"`
	Chain []string `json:"chain,omitempty"`
}

// Change replaces, makes or removes one path, always by a single rename or unlink.
type Change struct {
	// Path is as the state names it, Real with its directories' links followed.
	Path string `json:"path"`
	Real string `json:"real"`
	// Staged is what is renamed to Real; "" removes Real.
	Staged string `json:"staged,omitempty"`
	// Kept is what was at Real; nil when nothing was.
	Kept *Kept `json:"kept,omitempty"`
	// Adopted says that Kept was not ours and is kept until Path is given back.
	Adopted bool `json:"adopted,omitempty"`
}

// Dropped is a directory that goes, as it was.
type Dropped struct {
	Path string      `json:"path"`
	Mode fs.FileMode `json:"mode"`
	UID  uint32      `json:"uid"`
	GID  uint32      `json:"gid"`
}

// Setting is a kernel setting as it was.
type Setting struct {
	Key   string `json:"key"`
	Value string `json:"value"`
}

// Pending returns the journal of a run that has not ended, nil when there is none. One
// of a newer nodeprep is refused with the version that wrote it. Whether the run was
// interrupted or is going on shows when the root is locked.
func Pending(root *host.Root) (*Journal, error) {
	return readJournal(root, JournalPath)
}

// readJournal reads a journal or the record of a generation.
func readJournal(root *host.Root, p string) (*Journal, error) {
	data, err := readOwn(root, p)
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	var head struct {
		Format   int    `json:"format"`
		Nodeprep string `json:"nodeprep"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	if head.Format > journalFormat {
		return nil, fmt.Errorf("read %s: it has format %d, written by nodeprep %s, and this one knows up to %d; use nodeprep %s or newer",
			p, head.Format, head.Nodeprep, journalFormat, head.Nodeprep)
	}
	j := new(Journal)
	if err := json.Unmarshal(data, j); err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	if err := j.check(); err != nil {
		return nil, fmt.Errorf("read %s: %w", p, err)
	}
	return j, nil
}

// readOwn reads a file of nodeprep's own. A root may be somebody else's image, in which
// it may be a fifo that never ends.
func readOwn(root *host.Root, p string) ([]byte, error) {
	fi, err := root.Stat(p)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is %s", p, typeName(fi.Mode()))
	}
	return root.ReadFile(p)
}

// check refuses paths that no nodeprep wrote: a journal comes with the root.
func (j *Journal) check() error {
	var faults []error
	if len(j.ID) != 16 || strings.Trim(j.ID, "0123456789abcdef") != "" {
		faults = append(faults, fmt.Errorf("%q is no run's ID", j.ID))
	}
	if !slices.Contains([]stageOfRun{intended, recorded, activating, reverted, settled}, j.Stage) {
		faults = append(faults, fmt.Errorf("%q is no stage of a run", j.Stage))
	}
	for _, c := range slices.Concat(j.Self, j.Changes) {
		faults = append(faults, checkPath(c.Path), checkPath(c.Real), c.Kept.check())
		if c.Staged != "" {
			faults = append(faults, checkPath(c.Staged))
			if !j.names(path.Base(c.Staged)) {
				faults = append(faults, fmt.Errorf("%s is no staging name of this run", c.Staged))
			}
		}
	}
	for _, p := range j.Repairs {
		faults = append(faults, checkPath(p.Path), checkPath(p.Real))
	}
	for _, d := range j.Drop {
		faults = append(faults, checkPath(d.Path))
	}
	for _, p := range slices.Concat(j.Made, j.Mounts, j.Dirs, j.SelfDirs, j.Last, j.Purge, j.Chain) {
		faults = append(faults, checkPath(p))
	}
	for _, p := range j.Waited {
		if faults = append(faults, checkPath(p)); path.Dir(p) != ImagesDir {
			faults = append(faults, fmt.Errorf("%s is not where image archives wait", p))
		}
	}
	for _, p := range j.Scratch {
		if p != "/" {
			faults = append(faults, checkPath(p))
		}
	}
	for _, p := range j.Tops {
		faults = append(faults, checkPath(p))
		if p != StateDir && path.Base(p) != keptDir {
			faults = append(faults, fmt.Errorf("%s is not where nodeprep keeps what it puts aside", p))
		}
	}
	return errors.Join(faults...)
}

// within refuses paths in whose directories there is a link: a run writes them with links
// followed, so that with one they may lead anywhere, out of the root too.
func (j *Journal) within(root *host.Root) error {
	var faults []error
	look := func(p string, resolve func(string) (string, error)) {
		real, err := resolve(p)
		if err == nil && real != filepath.Join(root.Dir(), p) {
			err = fmt.Errorf("%s leads through a symbolic link to %s; put back the directory that was there", p, shown(root, real))
		}
		faults = append(faults, err)
	}
	for _, p := range slices.Concat(j.Made, j.Scratch, j.SelfDirs, j.Dirs, j.Last, j.Chain) {
		look(p, root.Resolve)
	}
	for _, d := range j.Drop {
		look(d.Path, root.Resolve)
	}
	for _, c := range slices.Concat(j.Self, j.Changes) {
		look(c.Real, root.Locate)
		if c.Staged != "" {
			look(c.Staged, root.Locate)
		}
	}
	for _, p := range j.Repairs {
		look(p.Real, root.Locate)
	}
	return errors.Join(faults...)
}

// names reports whether a name is one under which this run stages.
func (j *Journal) names(name string) bool {
	return strings.HasPrefix(name, ".") && strings.Contains(name, ".nodeprep-"+j.ID)
}

// isStagingName reports whether some run of nodeprep made a name.
func isStagingName(name, base string) bool {
	id, ok := strings.CutPrefix(name, "."+base+".nodeprep-")
	return ok && len(id) >= 16 && strings.Trim(id[:16], "0123456789abcdef") == ""
}

// bootID tells boots of the live host apart.
func bootID(root *host.Root) string {
	b, err := root.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// begin writes the intent, durably: from here on a run that is killed leaves nothing
// that cannot be found. Then nodeprep puts itself in place, so that somebody is there
// to find it, also at the next boot.
func (r *run) begin() error {
	r.j = Journal{
		Format: journalFormat, ID: r.id, Verb: r.plan.verb, Stage: intended, Nodeprep: r.opt.Version, Time: r.h.Now().UTC(),
		From: r.plan.receipt.generation(), To: r.plan.receipt.generation(), Daemon: r.plan.state.Daemon,
	}
	if r.plan.live {
		r.j.Boot = bootID(r.root)
	}
	if r.j.Verb == "" {
		r.j.Verb = VerbApply
	}
	if err := r.places(); err != nil {
		return err
	}
	if err := r.planSelf(); err != nil {
		return err
	}
	if err := r.writeJournal(); err != nil {
		return r.explain(fmt.Errorf("write %s: %w", JournalPath, err))
	}
	// What may stand under this generation's number belongs to no receipt.
	for _, top := range r.j.Tops {
		if err := r.dropGeneration(top, r.j.From); err != nil {
			return err
		}
	}
	return r.commitSelf()
}

// places finds the directories in which this run may leave something.
func (r *run) places() error {
	scratch := map[string]bool{}
	note := func(real string) error {
		dir, err := stageDir(real)
		if err == nil {
			scratch[r.shown(dir)] = true
		}
		return err
	}
	targets := r.targets()
	if r.plan.receipt != nil {
		for i := range r.plan.receipt.Owned {
			real, err := r.root.Locate(r.plan.receipt.Owned[i].Path)
			if err != nil {
				return err
			}
			targets = append(targets, real)
		}
		for _, p := range r.plan.receipt.Tops {
			r.addTop(p)
		}
	}
	state, err := r.root.Locate(StateDir)
	if err != nil {
		return err
	}
	images := filepath.Join(state, path.Base(ImagesDir))
	r.addTop(StateDir)
	for _, real := range targets {
		if strings.HasPrefix(real, images+"/") {
			// They are staged beside their directory, and put back in it.
			for _, dir := range []string{state, images} {
				fi, err := lstat(dir)
				if err != nil {
					return err
				}
				if fi != nil && fi.IsDir() {
					scratch[r.shown(dir)] = true
				}
			}
		}
		if strings.HasPrefix(real, state+"/") {
			continue // StateDir is looked through anyway
		}
		if err := note(real); err != nil {
			return err
		}
		fi, err := lstat(real)
		if err != nil {
			return err
		}
		if fi != nil && fi.Mode().IsRegular() && fi.Size() > copyLimit && !r.linkable(real) {
			r.addTop(r.farTop(real))
		}
	}
	r.j.Scratch = sortedKeys(scratch)
	slices.Sort(r.j.Tops)
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	for _, at := range sortedKeys(mounts) {
		if p := r.shown(at); strings.HasPrefix(at, strings.TrimSuffix(r.root.Dir(), "/")+"/") && at != r.root.Dir() &&
			slices.ContainsFunc(r.j.Scratch, func(dir string) bool { return dir == p || strings.HasPrefix(dir, p+"/") }) {
			r.j.Mounts = append(r.j.Mounts, p)
		}
	}
	return nil
}

// mounted refuses to go on where something that the run had to do with is out of sight:
// what is missing there would look as if it had been put back already.
func (j *Journal) mounted(root *host.Root) error {
	mounts, err := mountPoints()
	if err != nil {
		return err
	}
	var faults []error
	for _, p := range j.Mounts {
		if !mounts[filepath.Join(root.Dir(), p)] {
			faults = append(faults, fmt.Errorf("%s is not mounted, and was when the run began; mount what was there", p))
		}
	}
	gone := slices.Concat(j.Dirs, j.SelfDirs, j.Made, j.Last, j.Chain)
	for _, d := range j.Drop {
		gone = append(gone, d.Path)
	}
	for _, p := range j.Scratch {
		fi, err := lstat(filepath.Join(root.Dir(), p))
		purged := slices.ContainsFunc(j.Purge, func(dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") })
		if err != nil {
			faults = append(faults, err)
		} else if fi == nil && !purged && !slices.Contains(gone, p) {
			faults = append(faults, fmt.Errorf("%s is not there: is its filesystem mounted?", p))
		}
	}
	return errors.Join(faults...)
}

func (r *run) addTop(p string) {
	if !slices.Contains(r.j.Tops, p) {
		r.j.Tops = append(r.j.Tops, p)
	}
}

// writeJournal makes the journal durable as r.j is now. The first one comes into place
// together with the directories that it needs, by one rename, so that a kill leaves
// either none of them or all of them and the journal that tells of them.
func (r *run) writeJournal() error {
	start := time.Now()
	defer func() { r.res.Journal += time.Since(start) }()
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	fi, err := lstat(state)
	if err != nil {
		return err
	}
	if fi != nil {
		if !r.began && r.j.Made == nil {
			r.j.Made = r.madeForResult(state)
		}
		return r.replaceOwn("journal.json", &r.j)
	}
	return r.makeState("journal.json", func(made []string) any {
		r.j.Made = made
		return &r.j
	})
}

// enter makes the journal durable at another stage. Where there is no room for it, the
// one that is there still says where the run is.
func (r *run) enter(stage stageOfRun) error {
	was := r.j.Stage
	r.j.Stage = stage
	err := r.writeJournal()
	if isFull(err) {
		r.j.Stage = was
	}
	return r.explain(err)
}

// issue notes durably what systemd is told next: only that is taken back by a revert.
func (r *run) issue(do Action, unit string) error {
	r.j.Issued = append(r.j.Issued, fmt.Sprint(do, " ", unit))
	err := r.writeJournal()
	if err != nil {
		r.j.Issued = r.j.Issued[:len(r.j.Issued)-1]
	}
	return r.explain(err)
}

// issued are those of units that systemd was told to do something about.
func (j *Journal) issued(do Action, units []string) []string {
	return slices.DeleteFunc(slices.Clone(units), func(u string) bool { return !slices.Contains(j.Issued, fmt.Sprint(do, " ", u)) })
}

// ownTemp is the staging name of something of nodeprep's own; Recover finds it
// without a journal.
func (r *run) ownTemp(real string) string {
	return filepath.Join(filepath.Dir(real), "."+filepath.Base(real)+".nodeprep-"+r.id)
}

// replaceOwn writes a file in StateDir, durably, by a rename.
func (r *run) replaceOwn(name string, v any) error {
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	real := filepath.Join(state, name)
	temp := r.ownTemp(real)
	if err := r.writeJSON(temp, v); err != nil {
		return errors.Join(err, r.w.remove(temp))
	}
	if err := r.w.rename(temp, real); err != nil {
		return errors.Join(err, r.w.remove(temp))
	}
	r.began = true
	delete(r.dirty, state)
	return r.w.sync(state)
}

func (r *run) writeJSON(real string, v any) error {
	data, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", filepath.Base(real), err)
	}
	return r.writeSmall(real, append(data, '\n'))
}

// planSelf finds the changes of nodeprep's own files and where what they replace is kept.
func (r *run) planSelf() error {
	if r.plan.verb == VerbUninstall {
		return nil // they go last
	}
	for i := range r.plan.Items {
		if it := &r.plan.Items[i]; it.first && it.Changes() && it.real != "" {
			r.staging.self = append(r.staging.self, it)
		}
	}
	slices.SortStableFunc(r.staging.self, func(a, b *Item) int { return rank(b.target()) - rank(a.target()) })
	for _, it := range r.staging.self {
		temp, err := r.tempName(it.real)
		if err != nil {
			return err
		}
		c := Change{Path: it.target(), Real: r.shown(it.real), Staged: r.shown(temp), Adopted: len(it.Adopted) > 0}
		if c.Kept, err = r.planKept("self", len(r.j.Self), &c); err != nil {
			return err
		}
		r.j.Self = append(r.j.Self, c)
		if err := r.lackingDirs(it.real, &r.j.SelfDirs); err != nil {
			return err
		}
	}
	slices.Sort(r.j.SelfDirs)
	return nil
}

// lackingDirs adds the directories above a path that are not there.
func (r *run) lackingDirs(real string, to *[]string) error {
	for _, p := range parents(real) {
		fi, err := lstat(p)
		if err != nil {
			return err
		}
		if fi == nil && !slices.Contains(*to, r.shown(p)) {
			*to = append(*to, r.shown(p))
		}
	}
	return nil
}

// commitSelf stages and puts into place nodeprep's own files: the program before the
// unit that calls it, the link that enables the unit last.
func (r *run) commitSelf() error {
	if len(r.j.Self) == 0 {
		return nil
	}
	for i, it := range r.staging.self {
		if err := r.stageSelf(it, &r.j.Self[i]); err != nil {
			return r.explain(err)
		}
	}
	for i := range r.j.Self {
		if err := r.keep(&r.j.Self[i]); err != nil {
			return r.explain(fmt.Errorf("keep %s: %w", r.j.Self[i].Path, err))
		}
	}
	if err := r.syncDirs(); err != nil {
		return err
	}
	for i := range r.j.Self {
		c := &r.j.Self[i]
		if err := r.change(c, r.j.SelfDirs); err != nil {
			return r.explain(fmt.Errorf("replace %s: %w", c.Path, err))
		}
	}
	return r.syncDirs()
}

func (r *run) stageSelf(it *Item, c *Change) error {
	temp := r.abs(c.Staged)
	r.dirty[filepath.Dir(temp)] = true
	s := &staged{real: it.real, temp: temp, first: true}
	r.staging.items = append(r.staging.items, s)
	if it.symlink != nil {
		s.own = Owned{Path: it.symlink.Path, Kind: KindLink, Target: it.symlink.Target, Origin: it.symlink.Origin, First: true}
		return r.w.symlink(it.symlink.Target, temp)
	}
	f := it.file
	s.own = Owned{Path: f.Path, Kind: KindFile, Mode: permissions(f.Mode), Origin: f.Origin, Format: f.Format, Effect: f.Effect, Unit: f.Unit, First: true}
	return r.stageContent(context.Background(), s, f)
}

// keptStat fills in what lstat says of something that is kept.
func keptStat(fi fs.FileInfo) *Kept {
	st := fi.Sys().(*syscall.Stat_t)
	return &Kept{Kind: KindFile, Size: fi.Size(), Mode: permissions(fi.Mode()), UID: st.Uid, GID: st.Gid, MTime: fi.ModTime().UnixNano()}
}

// sweep removes what a kill left at moments at which there is no journal: staging names
// of the journal itself, of the receipt, and of the directories that hold them.
func (r *run) sweep() error {
	var faults []error
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	places := []string{filepath.Join(state, "journal.json"), filepath.Join(state, "receipt.json"), filepath.Join(state, "result.json")}
	for p := state; p != r.root.Dir() && p != "/"; p = filepath.Dir(p) {
		places = append(places, p)
	}
	for _, p := range places {
		dir := filepath.Dir(p)
		entries, err := os.ReadDir(dir)
		if isAbsent(err) {
			continue
		}
		if err != nil {
			return err
		}
		for _, e := range entries {
			if isStagingName(e.Name(), filepath.Base(p)) {
				faults = append(faults, r.w.removeTree(filepath.Join(dir, e.Name())))
				r.dirty[dir] = true
			}
		}
	}
	return errors.Join(append(faults, r.syncDirs())...)
}

// endJournal removes the journal, and with it what was made for it: by one rename of
// the outermost such directory in which there is nothing else.
func (r *run) endJournal() error {
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	if slices.Contains(r.j.Made, r.shown(state)) {
		others, err := r.strangers(state)
		if err != nil {
			return err
		}
		result, err := r.keepResult(state)
		if err != nil {
			return err
		}
		if len(others) > 0 {
			r.left = append(r.left, r.shown(state)+" stays: something else was put there meanwhile")
		}
		if result != "" {
			others = append(others, result)
		}
		if len(others) == 0 {
			return r.vanish(r.j.Made)
		}
		return r.clearOut(state, others)
	}
	if err := r.w.remove(filepath.Join(state, "journal.json")); err != nil {
		return err
	}
	return r.w.sync(state)
}

// vanish removes a chain of directories that end with StateDir, outermost first.
func (r *run) vanish(chain []string) error {
	top := r.abs(chain[len(chain)-1])
	for i := len(chain) - 2; i >= 0; i-- {
		dir := r.abs(chain[i])
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		if len(entries) != 1 || filepath.Join(dir, entries[0].Name()) != top {
			r.left = append(r.left, r.shown(dir)+" stays: it is not empty")
			break
		}
		top = dir
	}
	temp := r.ownTemp(top)
	if err := r.w.rename(top, temp); err != nil {
		if !errors.Is(err, syscall.EBUSY) {
			return err
		}
		return r.clearOut(top, nil) // a mount point
	}
	err := r.w.sync(filepath.Dir(top))
	if err == nil {
		err = r.w.removeTree(temp)
	}
	if err == nil {
		err = r.w.sync(filepath.Dir(top))
	}
	for dir := range r.dirty {
		if dir == top || strings.HasPrefix(dir, top+"/") {
			delete(r.dirty, dir)
		}
	}
	return err
}

// clearOut removes what is in a directory but for some, the journal last.
func (r *run) clearOut(dir string, but []string) error {
	journal := filepath.Join(dir, "journal.json")
	if err := r.empty(dir, append(but, journal)); err != nil {
		return err
	}
	if err := r.w.remove(journal); err != nil {
		return err
	}
	return r.w.sync(dir)
}

// empty removes what is in a directory but for some.
func (r *run) empty(dir string, but []string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	var faults []error
	for _, e := range entries {
		if p := filepath.Join(dir, e.Name()); !slices.Contains(but, p) {
			faults = append(faults, r.w.removeTree(p))
			r.dirty[dir] = true
		}
	}
	return errors.Join(faults...)
}
