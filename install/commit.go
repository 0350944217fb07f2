package install

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/host"
)

const (
	// keptDir is at the top of a filesystem other than StateDir's: it keeps what must
	// be kept by hard link there.
	keptDir = ".nodeprep"
	// copyLimit is up to which size a file on another filesystem is kept as a copy, bytes.
	copyLimit = 1 << 20
	// showLimit is up to which size a plan tells what changes in a file, bytes.
	showLimit = 1 << 20
)

// commit keeps what will be replaced, makes the record durable, and then renames. It
// does not look at the context: from here on the run is finished or undone.
func (r *run) commit() error {
	if err := r.record(); err != nil {
		return err
	}
	if err := r.keepAll(); err != nil {
		return r.explain(err)
	}
	// What is staged and what is kept must be found by whoever reads the journal.
	for _, s := range r.staging.items {
		r.dirty[filepath.Dir(s.temp)] = r.dirty[filepath.Dir(s.temp)] || !s.first
	}
	if err := r.syncDirs(); err != nil {
		return err
	}
	next := recorded
	if len(r.j.Stop) > 0 {
		next = activating
	}
	if err := r.enter(next); err != nil {
		return err
	}
	if err := r.stopUnits(); err != nil {
		return err
	}
	for i := range r.j.Changes {
		c := &r.j.Changes[i]
		if err := r.change(c, r.j.Dirs); err != nil {
			return r.explain(fmt.Errorf("replace %s: %w", c.Path, err))
		}
	}
	if err := r.repairAll(); err != nil {
		return err
	}
	if err := r.makeDirs(); err != nil {
		return r.explain(err)
	}
	if err := r.dropDirs(); err != nil {
		return err
	}
	return r.syncDirs()
}

// record turns what was staged into the journal's record, looks for a last time
// whether the host is as it was planned for, and finds the directories to make.
func (r *run) record() error {
	adopted := map[string]bool{}
	for i := range r.plan.Items {
		for _, p := range r.plan.Items[i].Adopted {
			adopted[p] = true
		}
	}
	items := slices.DeleteFunc(slices.Clone(r.staging.items), func(s *staged) bool { return s.first })
	slices.SortFunc(items, func(a, b *staged) int { return strings.Compare(a.real, b.real) })
	for _, s := range items {
		r.j.Changes = append(r.j.Changes, Change{Path: s.own.Path, Real: r.shown(s.real), Staged: r.shown(s.temp), Adopted: adopted[s.own.Path]})
	}
	for i := range r.staging.removals {
		it := &r.staging.removals[i]
		if it.Kind != KindDir {
			r.j.Changes = append(r.j.Changes, Change{Path: it.Path, Real: r.shown(it.real)})
			continue
		}
		fi, err := lstat(it.real)
		if err != nil {
			return err
		}
		if fi != nil {
			k := keptStat(fi)
			r.j.Drop = append(r.j.Drop, Dropped{Path: r.shown(it.real), Mode: k.Mode, UID: k.UID, GID: k.GID})
		}
	}
	for i := range r.j.Changes {
		c := &r.j.Changes[i]
		real := r.abs(c.Real)
		now, err := lstat(real)
		if err != nil {
			return err
		}
		if was, looked := r.plan.seen[real]; looked && !sameStat(was, now) {
			return fmt.Errorf("replace %s: somebody else changed it meanwhile", c.Path)
		}
		if c.Staged != "" {
			if err := r.lackingDirs(real, &r.j.Dirs); err != nil {
				return err
			}
		}
		if c.Kept, err = r.planKept("", i, c); err != nil {
			return err
		}
	}
	for i := range r.plan.Items {
		if it := &r.plan.Items[i]; it.dir != nil && it.Action == Create {
			if err := r.lackingDirs(filepath.Join(it.real, "x"), &r.j.Dirs); err != nil {
				return err
			}
		}
	}
	slices.Sort(r.j.Dirs)
	if err := r.recordRepairs(); err != nil {
		return err
	}
	if err := r.recordUninstall(); err != nil {
		return err
	}
	if err := r.recordImages(); err != nil {
		return err
	}
	// Repairs make none: there is nothing in them to go back to.
	if len(r.j.Changes)+len(r.j.Dirs)+len(r.j.Drop) > 0 {
		r.j.To = r.j.From + 1
	}
	return r.recordServices()
}

// recordServices notes what the run is about to ask of the running system, and how
// that is now.
func (r *run) recordServices() error {
	if !r.plan.live {
		return nil
	}
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		switch it.Action {
		case Reload:
			r.j.Reload = true
		case Stop:
			r.j.Stop = append(r.j.Stop, it.Path)
		case Restart:
			r.j.Restart = append(r.j.Restart, it.Path)
		case Start:
			r.j.Start = append(r.j.Start, it.Path)
			if it.OldVersion == "failed" {
				r.j.Failed = append(r.j.Failed, it.Path)
			}
		case Set:
			now, err := r.root.ReadFile(sysctlPath(it.Path))
			if isAbsent(err) {
				continue // a module brings it
			}
			if err != nil {
				return fmt.Errorf("read kernel setting %s: %w", it.Path, err)
			}
			r.j.Settings = append(r.j.Settings, Setting{it.Path, strings.TrimSpace(string(now))})
		}
	}
	var err error
	if units := slices.Concat(r.j.Stop, r.j.Restart); len(units) > 0 {
		r.j.Dependents, err = dependents(context.Background(), r.opt.Services, units...)
	}
	return err
}

func sameStat(a, b fs.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	x, y := a.Sys().(*syscall.Stat_t), b.Sys().(*syscall.Stat_t)
	return x.Ino == y.Ino && x.Mode == y.Mode && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}

// generation is a path, as on the node, below the directory that keeps what generation
// n was; top is StateDir or a keptDir.
func generation(top string, n int, name string) string {
	return path.Join(top, "generations", fmt.Sprint(n), name)
}

// keptAt is where on this machine something kept is. What it was read from comes with
// the root, so that it must neither lead out of the root nor to what nodeprep did not
// put aside.
func keptAt(root *host.Root, k *Kept) (string, error) {
	real, err := root.Locate(k.Path)
	if err != nil {
		return "", err
	}
	for _, dir := range []string{"generations", "original"} {
		top, err := root.Resolve(path.Join(StateDir, dir))
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(real, top+"/") || strings.Contains(shown(root, real), "/"+keptDir+"/"+dir+"/") {
			return real, nil
		}
	}
	return "", fmt.Errorf("%s is not where nodeprep keeps what it puts aside", k.Path)
}

// keepAll puts aside what the changes will replace, and the receipt that belongs to it.
func (r *run) keepAll() error {
	for i := range r.j.Changes {
		if err := r.keep(&r.j.Changes[i]); err != nil {
			return fmt.Errorf("keep %s: %w", r.j.Changes[i].Path, err)
		}
	}
	if r.j.To == r.j.From || r.j.Verb == VerbUninstall {
		return nil
	}
	dir, err := r.root.Locate(generation(StateDir, r.j.From, ""))
	if err != nil {
		return err
	}
	if err := r.ensureDir(dir); err != nil {
		return err
	}
	if r.plan.receipt == nil {
		return nil
	}
	// A copy, not a link: not every filesystem has hard links.
	data, err := readOwn(r.root, ReceiptPath)
	if err != nil {
		return err
	}
	return r.writeSmall(filepath.Join(dir, "receipt.json"), data)
}

// planKept is how and where the thing at a change's place will be kept: what can be
// linked to StateDir is, which costs nothing and keeps everything of the file; else a
// small file becomes a copy there, and a large one a hard link at the top of its own
// filesystem. nil when there is nothing.
func (r *run) planKept(prefix string, i int, c *Change) (*Kept, error) {
	real := r.abs(c.Real)
	fi, err := lstat(real)
	if err != nil || fi == nil {
		return nil, err
	}
	k := keptStat(fi)
	if fi.Mode().Type() == fs.ModeSymlink {
		k.Kind, k.Size = KindLink, 0
		k.Target, err = os.Readlink(real)
		return k, err
	}
	top := StateDir
	if !r.linkable(real) && fi.Size() > copyLimit {
		top = r.farTop(real)
		if !slices.Contains(r.j.Tops, top) {
			return nil, fmt.Errorf("keep %s: its filesystem changed meanwhile", c.Path)
		}
	}
	name := fmt.Sprintf("%s%04d-%s", prefix, i, path.Base(c.Real))
	p := generation(top, r.j.From, name)
	if c.Adopted {
		p = path.Join(top, "original", r.id+"-"+name)
	}
	at, err := r.root.Locate(p)
	k.Path = r.shown(at)
	return k, err
}

// keep puts one thing aside, where planKept said.
func (r *run) keep(c *Change) error {
	k := c.Kept
	if k == nil || k.Kind == KindLink {
		return nil
	}
	at := r.abs(k.Path)
	if err := r.ensureDir(filepath.Dir(at)); err != nil {
		return err
	}
	r.dirty[filepath.Dir(at)] = true
	err := r.w.link(r.abs(c.Real), at)
	if noLinks(err) {
		k.Copied = true
		err = r.copyFile(context.Background(), r.abs(c.Real), at, k)
	}
	return err
}

// noLinks holds for filesystems without hard links, and for two that are not one.
func noLinks(err error) bool {
	return errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EMLINK)
}

// linkable reports whether a file can be linked to StateDir: link(2) needs the same
// mount, and btrfs the same subvolume.
func (r *run) linkable(real string) bool {
	state, err := r.root.Locate(StateDir)
	if err != nil {
		return false
	}
	near, err := stageDir(state + "/x")
	if err != nil {
		return false
	}
	dir, err := stageDir(real)
	if err != nil {
		return false
	}
	return device(near) == device(dir) && mountPoint(near) == mountPoint(dir)
}

// farTop is where a file is kept that cannot be linked to StateDir.
func (r *run) farTop(real string) string {
	return path.Join(r.shown(topOf(real, r.root.Dir())), keptDir)
}

// writeSmall writes a file of nodeprep's own, 0600 and durable.
func (r *run) writeSmall(real string, data []byte) error {
	f, err := r.w.create(context.Background(), real, newHash("", false))
	if err != nil {
		return err
	}
	r.dirty[filepath.Dir(real)] = true
	if _, err := f.Write(data); err != nil {
		f.abandon()
		return err
	}
	var o *owner
	if r.w.chown {
		o = &owner{}
	}
	return f.finish(0o600, o, time.Time{})
}

// topOf is the highest directory within root to which a file in a path's directory can
// be linked: on its device, since one mount may show several (btrfs), and in its mount,
// since link(2) does not cross from one mount of a filesystem to another.
func topOf(real, root string) string {
	dir := filepath.Dir(real)
	top := mountPoint(dir)
	for dir != root && dir != top && dir != "/" && device(filepath.Dir(dir)) == device(dir) {
		dir = filepath.Dir(dir)
	}
	return dir
}

func device(p string) uint64 {
	var st unix.Stat_t
	if unix.Stat(p, &st) != nil {
		return 0
	}
	return uint64(st.Dev)
}

// openRegular opens a file, and nothing else that may stand in its place: a root may be
// somebody else's image, with a link, a device or a fifo there. More than the size that
// it has now need not be read.
func openRegular(real string) (f *os.File, size int64, err error) {
	if f, err = os.OpenFile(real, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0); err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: real, Err: fmt.Errorf("it is %s", typeName(fi.Mode()))}
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

// readRegular reads a file, and nothing else.
func readRegular(real string) ([]byte, error) {
	f, size, err := openRegular(real)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, size))
}

// readShown reads a file that a plan compares and shows. Of one that is too large for that,
// such as an image archive that waits, there is nothing, and whole is false.
func readShown(real string) (content []byte, whole bool, err error) {
	f, size, err := openRegular(real)
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	if size > showLimit {
		return nil, false, nil
	}
	content, err = io.ReadAll(io.LimitReader(f, size))
	return content, err == nil, err
}

// copyFile copies content, owner, mode, time and extended attributes, durably; when it
// fails there is no copy.
func (r *run) copyFile(ctx context.Context, from, to string, k *Kept) error {
	in, size, err := openRegular(from)
	if err != nil {
		return err
	}
	defer in.Close()
	if size != k.Size {
		return fmt.Errorf("copy %s: it has %d bytes, and had %d", r.shown(from), size, k.Size)
	}
	out, err := r.w.create(ctx, to, newHash("", false))
	if err != nil {
		return err
	}
	out.attributes = attributes(in)
	if n, copied := io.Copy(struct{ io.Writer }{out}, io.LimitReader(in, size)); copied != nil || n != size {
		err = cmp.Or(copied, io.ErrUnexpectedEOF)
		out.abandon()
	} else {
		var o *owner
		if r.w.chown {
			o = &owner{k.UID, k.GID}
		}
		err = out.finish(k.Mode, o, time.Unix(0, k.MTime))
	}
	if err != nil {
		return errors.Join(err, r.w.remove(to))
	}
	return nil
}

// copyKept makes what was kept appear at a staging name, and leaves it kept. With own,
// a small file is a copy: what becomes of the file must not happen to what is kept.
func (r *run) copyKept(ctx context.Context, k *Kept, temp string, own bool) error {
	if k.Kind == KindLink {
		if err := r.w.symlink(k.Target, temp); err != nil {
			return err
		}
		if r.w.chown {
			if err := r.w.lchown(temp, k.UID, k.GID); err != nil {
				return err
			}
		}
		return r.w.lutime(temp, k.MTime)
	}
	at, err := keptAt(r.root, k)
	if err != nil {
		return err
	}
	if !k.Copied && (!own || k.Size > copyLimit) {
		err := r.w.link(at, temp)
		if err == nil || !noLinks(err) {
			return err
		}
	}
	return r.copyFile(ctx, at, temp, k)
}

// ensureDir makes a directory of nodeprep's own, and those above it; they are there
// as long as something is kept in them.
func (r *run) ensureDir(real string) error {
	var lacking []string
	for dir := real; ; dir = filepath.Dir(dir) {
		fi, err := lstat(dir)
		if err != nil {
			return err
		}
		if fi != nil {
			if !fi.IsDir() {
				return &fs.PathError{Op: "mkdir", Path: dir, Err: unix.ENOTDIR}
			}
			break
		}
		lacking = append(lacking, dir)
	}
	for _, dir := range slices.Backward(lacking) {
		if err := r.mkdir(dir, 0o700); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) mkdir(real string, mode fs.FileMode) error {
	r.dirty[filepath.Dir(real)] = true
	r.dirty[real] = true
	return r.w.mkdir(real, mode)
}

// change makes one change, with those of the directories that it needs: right before
// it, so that a loader hardly ever sees one of them empty.
func (r *run) change(c *Change, dirs []string) error {
	real := r.abs(c.Real)
	r.dirty[filepath.Dir(real)] = true
	if c.Staged == "" {
		return r.w.remove(real)
	}
	for _, p := range parents(real) {
		if slices.Contains(dirs, r.shown(p)) {
			if err := r.makeDir(p); err != nil {
				return err
			}
		}
	}
	temp := r.abs(c.Staged)
	r.dirty[filepath.Dir(temp)] = true
	return r.w.rename(temp, real)
}

// makeDir makes a directory of the record, unless it is made already.
func (r *run) makeDir(real string) error {
	fi, err := lstat(real)
	if err != nil || fi != nil {
		return err
	}
	if err := r.mkdir(real, r.dirMode(real)); err != nil {
		return err
	}
	for i := range r.plan.Items {
		if it := &r.plan.Items[i]; it.dropped != nil && it.real == real {
			return r.dress(real, it.dropped)
		}
	}
	return nil
}

// dirMode is the wanted mode of a directory that is made.
func (r *run) dirMode(real string) fs.FileMode {
	for i := range r.plan.Items {
		if it := &r.plan.Items[i]; it.dir != nil && it.real == real && it.dir.Mode != 0 {
			return permissions(it.dir.Mode)
		}
	}
	return 0o755
}

// makeDirs makes the directories that no file needed.
func (r *run) makeDirs() error {
	for _, p := range r.j.Dirs {
		if err := r.makeDir(r.abs(p)); err != nil {
			return err
		}
	}
	return nil
}

// dropDirs removes directories that nothing needs any more, if they are empty.
func (r *run) dropDirs() error {
	for _, d := range r.j.Drop {
		real := r.abs(d.Path)
		if _, err := r.w.rmdirUnused(real); err != nil {
			return err
		}
		r.dirty[filepath.Dir(real)] = true
		delete(r.dirty, real)
	}
	return nil
}

// syncDirs makes all changed directories durable, side by side.
func (r *run) syncDirs() error {
	var g errgroup.Group
	g.SetLimit(16)
	for _, dir := range sortedKeys(r.dirty) {
		if !r.dirty[dir] {
			continue
		}
		g.Go(func() error {
			if err := r.w.sync(dir); !isAbsent(err) {
				return err
			}
			return nil // it went since
		})
	}
	r.dirty = map[string]bool{}
	return g.Wait()
}

// settle writes the receipt: with it the run is done.
func (r *run) settle() error {
	if r.j.Verb == VerbUninstall {
		was := r.j.Stage
		if err := r.enter(settled); err != nil {
			// It may be in place all the same, and who recovers from it must go back too.
			r.j.Stage = was
			return errors.Join(err, r.writeJournal())
		}
		r.res.Generation = 0
		r.changed()
		return nil
	}
	rec, err := r.newReceipt()
	if err != nil {
		return err
	}
	if err := r.writeReceipt(rec); err != nil {
		return err
	}
	r.res.Generation, r.res.Artifacts = rec.Generation, rec.Artifacts
	r.changed()
	return nil
}

// writeReceipt puts a receipt into place. It is durable once its directory is.
func (r *run) writeReceipt(rec *Receipt) error {
	data, err := rec.encode()
	if err != nil {
		return err
	}
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	temp := r.ownTemp(filepath.Join(state, "receipt.json"))
	if err := r.writeSmall(temp, data); err != nil {
		return r.explain(errors.Join(fmt.Errorf("write receipt: %w", err), r.w.remove(temp)))
	}
	if err := r.w.rename(temp, filepath.Join(state, "receipt.json")); err != nil {
		return errors.Join(fmt.Errorf("write receipt: %w", err), r.w.remove(temp))
	}
	return nil
}

// changed tells whoever called Apply what was done.
func (r *run) changed() {
	for i := range r.plan.Items {
		if it := r.plan.Items[i]; it.Changes() {
			r.res.Changed = append(r.res.Changed, it)
		}
	}
	r.res.Warnings = append(r.res.Warnings, r.plan.Warnings[r.told:]...)
}

// newReceipt is the receipt of the host as it is now.
func (r *run) newReceipt() (*Receipt, error) {
	if r.plan.back != nil {
		return r.receiptBack()
	}
	old := r.plan.receipt
	rec := &Receipt{
		Format: receiptFormat, ID: r.id, Generation: r.j.To, Nodeprep: r.opt.Version, Time: r.h.Now().UTC(),
		Arch: r.plan.state.Arch, Profiles: r.opt.Profiles, Profile: r.opt.Profile, UserData: r.opt.UserData, Salt: r.staging.salt, Images: r.images, Daemon: r.plan.state.Daemon,
		Generations: r.plan.state.Generations, Tops: r.farTops(),
	}
	for _, u := range r.plan.state.Units {
		rec.Units = append(rec.Units, u.Name)
	}
	rec.Modules = r.modules()
	owned := map[string]Owned{}
	gone := map[string]bool{}
	for _, c := range r.j.Changes {
		if c.Staged == "" {
			gone[c.Path] = true
		}
	}
	if old != nil {
		for _, own := range old.Owned {
			fi, err := r.lstatOwned(&own)
			if err != nil {
				return nil, err
			}
			if !gone[own.Path] && fi != nil {
				owned[own.Path] = own
			}
		}
	}
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if it.Action != Leave || it.own == nil || r.plan.find(KindArtifact, it.own.Component) == nil {
			continue
		}
		// The release has it no longer: what somebody made of it is his. Only what it
		// replaced is still to be given back.
		if own := *it.own; own.Before == nil {
			delete(owned, own.Path)
		} else {
			own.Component = ""
			owned[own.Path] = own
		}
	}
	for i := range r.plan.Items {
		if it := &r.plan.Items[i]; it.Action == Keep && it.own != nil && it.file != nil {
			own := *it.own
			own.Origin, own.Format, own.Effect, own.Unit = it.file.Origin, it.file.Format, it.file.Effect, it.file.Unit
			owned[own.Path] = own
		}
	}
	kept := map[string]*Change{}
	for _, changes := range [][]Change{r.j.Self, r.j.Changes} {
		for i := range changes {
			kept[changes[i].Path] = &changes[i]
		}
	}
	for _, s := range r.staging.items {
		if s.back {
			delete(owned, s.own.Path)
			continue
		}
		own := s.own
		fi, err := os.Lstat(s.real)
		if err != nil {
			return nil, err
		}
		own.stat(fi)
		if was := old.Find(own.Path); was != nil {
			own.Before = was.Before
		}
		if c := kept[own.Path]; c.Adopted && own.Before == nil {
			own.Before = c.Kept
		}
		owned[own.Path] = own
	}
	for _, p := range slices.Concat(r.j.Made, r.j.SelfDirs, r.j.Dirs) {
		own := Owned{Path: p, Kind: KindDir}
		fi, err := os.Lstat(r.abs(p))
		if err != nil {
			return nil, err
		}
		own.stat(fi)
		for j := range r.plan.Items {
			if it := &r.plan.Items[j]; it.dir != nil && it.real == r.abs(p) {
				own.Origin = it.Origin
			}
		}
		owned[p] = own
	}
	withoutWaited(owned, r.j.Waited)
	for _, p := range sortedKeys(owned) {
		rec.Owned = append(rec.Owned, owned[p])
	}
	rec.Artifacts = r.installed(rec)
	return rec, nil
}

func (r *run) lstatOwned(own *Owned) (fs.FileInfo, error) {
	_, fi, err := locate(r.root, own.Path)
	return fi, err
}

// stat records what lstat says.
func (o *Owned) stat(fi fs.FileInfo) {
	st := fi.Sys().(*syscall.Stat_t)
	o.Mode, o.UID, o.GID = permissions(fi.Mode()), st.Uid, st.Gid
	if o.Kind == KindFile {
		o.Size, o.MTime, o.Inode = fi.Size(), fi.ModTime().UnixNano(), st.Ino
	}
}

// farTops are the places beside StateDir where something is kept.
func (r *run) farTops() []string {
	return slices.DeleteFunc(slices.Clone(r.j.Tops), func(p string) bool {
		fi, err := r.root.Lstat(p)
		return p == StateDir || err != nil || fi == nil
	})
}

// installed lists the releases that the receipt's files came from.
func (r *run) installed(rec *Receipt) []Installed {
	var out []Installed
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if it.artifact == nil {
			continue
		}
		a := it.artifact
		in := Installed{Component: a.Component, Version: a.Version, Arch: a.Arch, Static: a.Static, Wanted: a.SHA256}
		if archive := r.staging.archives[it.Path]; archive != nil && it.Changes() {
			in.File, in.SHA256, in.SHA256From = archive.File, archive.SHA256, archive.SHA256From
			in.Time = rec.Time
			if was := r.plan.receipt.installed(a.Component); was != nil && sameMinor(was.Version, a.Version) {
				in.Time = was.Time
			}
		} else if was := r.plan.receipt.installed(a.Component); was != nil {
			in = *was
		}
		if in.Wanted == in.SHA256 {
			in.Wanted = ""
		}
		in.Files = nil
		for _, own := range rec.Owned {
			if own.Component == a.Component {
				in.Files = append(in.Files, own.Path)
			}
		}
		out = append(out, in)
	}
	return out
}
