package install

import (
	"context"
	"encoding/json"
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

	"github.com/nodeprep/nodeprep/internal/diag"
)

const (
	// keptDir is at the top of a filesystem other than StateDir's: it keeps what must
	// be kept by hard link there.
	keptDir = ".nodeprep"
	// copyLimit is up to which size a file on another filesystem is kept as a copy, bytes.
	copyLimit = 1 << 20
	// recordFormat grows when an older nodeprep could misread a record.
	recordFormat = 1
)

// Record is all that one run does to the files of a host, and what it takes to undo
// it: plain data, complete before the first change. Paths are as on the node, with
// links in their directories followed.
type Record struct {
	Format int    `json:"format"`
	ID     string `json:"id"`
	// From and To are the generations before and after.
	From int `json:"from"`
	To   int `json:"to"`
	// Dirs are directories that the run makes for its files, outermost first.
	Dirs []string `json:"dirs,omitempty"`
	// Changes are in the order in which they are made, Repairs come after them.
	Changes []Change `json:"changes"`
	Repairs []Repair `json:"repairs,omitempty"`
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

// removedDir is a directory that is gone, as it was.
type removedDir struct {
	path string
	fi   fs.FileInfo
}

// commit keeps what will be replaced, writes the record, and then renames. It does
// not look at the context: from here on the run is finished or undone.
func (r *run) commit() error {
	if err := r.record(); err != nil {
		return err
	}
	if err := r.keepAll(); err != nil {
		return r.explain(err)
	}
	if err := r.syncDirs(); err != nil {
		return err
	}
	for i := range r.rec.Changes {
		c := &r.rec.Changes[i]
		if err := r.change(c); err != nil {
			return r.explain(fmt.Errorf("replace %s: %w", c.Path, err))
		}
		r.committed++
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

// record turns what was staged into the record's changes, looks for a last time
// whether the host is as it was planned for, and finds the directories to make.
func (r *run) record() error {
	r.rec = Record{Format: recordFormat, ID: r.id, From: r.plan.receipt.generation(), To: r.plan.receipt.generation() + 1}
	adopted := map[string]bool{}
	for i := range r.plan.Items {
		for _, p := range r.plan.Items[i].Adopted {
			adopted[p] = true
		}
	}
	items := slices.Clone(r.staging.items)
	slices.SortFunc(items, func(a, b *staged) int { return strings.Compare(a.real, b.real) })
	for _, s := range items {
		r.rec.Changes = append(r.rec.Changes, Change{Path: s.own.Path, Real: r.shown(s.real), Staged: r.shown(s.temp), Adopted: adopted[s.own.Path]})
	}
	for i := range r.staging.removals {
		if it := &r.staging.removals[i]; it.Kind != KindDir {
			r.rec.Changes = append(r.rec.Changes, Change{Path: it.Path, Real: r.shown(it.real)})
		}
	}
	for _, c := range r.rec.Changes {
		real := r.abs(c.Real)
		now, err := lstat(real)
		if err != nil {
			return err
		}
		if was, looked := r.plan.seen[real]; looked && !sameStat(was, now) {
			return fmt.Errorf("replace %s: somebody else changed it meanwhile", c.Path)
		}
		for _, p := range parents(real) {
			if fi, err := lstat(p); err != nil {
				return err
			} else if fi == nil && c.Staged != "" && !slices.Contains(r.rec.Dirs, r.shown(p)) {
				r.rec.Dirs = append(r.rec.Dirs, r.shown(p))
			}
		}
	}
	for i := range r.plan.Items {
		if it := &r.plan.Items[i]; it.dir != nil && it.Action == Create {
			for _, p := range append(parents(it.real), it.real) {
				if fi, err := lstat(p); err != nil {
					return err
				} else if fi == nil && !slices.Contains(r.rec.Dirs, r.shown(p)) {
					r.rec.Dirs = append(r.rec.Dirs, r.shown(p))
				}
			}
		}
	}
	slices.Sort(r.rec.Dirs)
	return r.recordRepairs()
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
func (r *run) keptAt(k *Kept) (string, error) {
	real, err := r.root.Locate(k.Path)
	if err != nil {
		return "", err
	}
	for _, dir := range []string{"generations", "original"} {
		top, err := r.root.Resolve(path.Join(StateDir, dir))
		if err != nil {
			return "", err
		}
		if strings.HasPrefix(real, top+"/") || strings.Contains(r.shown(real), "/"+keptDir+"/"+dir+"/") {
			return real, nil
		}
	}
	return "", fmt.Errorf("%s is not where nodeprep keeps what it puts aside", k.Path)
}

// keepAll puts aside what the changes will replace, with the record and the receipt
// that belong to it.
func (r *run) keepAll() error {
	dir, err := r.root.Locate(generation(StateDir, r.rec.From, ""))
	if err != nil {
		return err
	}
	// What an earlier run left under this number belongs to no receipt.
	if err := r.w.removeTree(dir); err != nil {
		return err
	}
	for i := range r.rec.Changes {
		c := &r.rec.Changes[i]
		if c.Kept, err = r.keep(i, c); err != nil {
			return fmt.Errorf("keep %s: %w", c.Path, err)
		}
	}
	if err := r.ensureDir(dir, 0o700); err != nil {
		return err
	}
	data, err := json.MarshalIndent(&r.rec, "", " ")
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	if err := r.writeSmall(filepath.Join(dir, "record.json"), append(data, '\n')); err != nil {
		return err
	}
	if r.plan.receipt == nil {
		return nil
	}
	// A copy, not a link: not every filesystem has hard links.
	if data, err = r.root.ReadFile(ReceiptPath); err != nil {
		return err
	}
	return r.writeSmall(filepath.Join(dir, "receipt.json"), data)
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

// keep puts one path aside: by hard link, which costs nothing and keeps everything
// of the file, near StateDir where that is on the same filesystem; else a small file
// as a copy there, a large one by hard link at the top of its own filesystem.
func (r *run) keep(i int, c *Change) (*Kept, error) {
	real := r.abs(c.Real)
	fi, err := lstat(real)
	if err != nil || fi == nil {
		return nil, err
	}
	st := fi.Sys().(*syscall.Stat_t)
	k := &Kept{Kind: KindFile, Size: fi.Size(), Mode: permissions(fi.Mode()), UID: st.Uid, GID: st.Gid, MTime: fi.ModTime().UnixNano()}
	if fi.Mode().Type() == fs.ModeSymlink {
		k.Kind, k.Size, k.MTime = KindLink, 0, 0
		k.Target, err = os.Readlink(real)
		return k, err
	}
	place := func(top string) (string, error) {
		name := fmt.Sprintf("%04d-%s", i, path.Base(c.Real))
		p := generation(top, r.rec.From, name)
		if c.Adopted {
			p = path.Join(top, "original", r.id+"-"+name)
		}
		at, err := r.root.Locate(p)
		if err != nil {
			return "", err
		}
		return at, r.ensureDir(filepath.Dir(at), 0o700)
	}
	near, err := place(StateDir)
	if err != nil {
		return nil, err
	}
	at := near
	err = r.w.link(real, at)
	if errors.Is(err, unix.EXDEV) && fi.Size() > copyLimit {
		if at, err = place(path.Join(r.shown(topOf(real, r.root.Dir())), keptDir)); err != nil {
			return nil, err
		}
		// What an earlier run left under this name belongs to no receipt.
		if err := r.w.remove(at); err != nil {
			return nil, err
		}
		err = r.w.link(real, at)
	}
	if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EMLINK) {
		// Filesystems without hard links, and small files of another one.
		k.Copied, at = true, near
		err = r.copyFile(context.Background(), real, at, k)
	}
	if err != nil {
		return nil, err
	}
	r.dirty[filepath.Dir(at)] = true
	k.Path = r.shown(at)
	return k, nil
}

// topOf is the highest directory within root to which a file in a path's directory can
// be linked: on its device, since one mount may show several (btrfs), and in its mount,
// since link(2) does not cross from one mount of a filesystem to another.
func topOf(real, root string) string {
	device := func(p string) uint64 {
		var st unix.Stat_t
		if unix.Stat(p, &st) != nil {
			return 0
		}
		return uint64(st.Dev)
	}
	dir := filepath.Dir(real)
	top := mountPoint(dir)
	for dir != root && dir != top && dir != "/" && device(filepath.Dir(dir)) == device(dir) {
		dir = filepath.Dir(dir)
	}
	return dir
}

// copyFile copies content, owner, mode and time, durably; when it fails there is no
// copy.
func (r *run) copyFile(ctx context.Context, from, to string, k *Kept) error {
	in, err := os.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := r.w.create(ctx, to, newHash("", false))
	if err != nil {
		return err
	}
	if _, err = io.Copy(struct{ io.Writer }{out}, in); err != nil {
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

// copyKept makes what was kept appear at a staging name, and leaves it kept.
func (r *run) copyKept(ctx context.Context, k *Kept, temp string) error {
	if k.Kind == KindLink {
		if err := r.w.symlink(k.Target, temp); err != nil {
			return err
		}
		if r.w.chown {
			return r.w.lchown(temp, k.UID, k.GID)
		}
		return nil
	}
	at, err := r.keptAt(k)
	if err != nil {
		return err
	}
	if !k.Copied {
		err := r.w.link(at, temp)
		if err == nil || !errors.Is(err, unix.EXDEV) {
			return err
		}
	}
	return r.copyFile(ctx, at, temp, k)
}

// ensureDir makes a directory of nodeprep's own, and those above it.
func (r *run) ensureDir(real string, mode fs.FileMode) error {
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
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	for _, dir := range slices.Backward(lacking) {
		m := mode
		if strings.HasPrefix(state, dir+"/") {
			m = 0o755 // /var, /var/lib
		}
		if err := r.mkdir(dir, m); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) mkdir(real string, mode fs.FileMode) error {
	// Noted first: what mkdir left half done must be found as well.
	r.made = append(r.made, real)
	r.dirty[filepath.Dir(real)] = true
	r.dirty[real] = true
	return r.w.mkdir(real, mode)
}

// change makes one change, with the directories that it needs: right before it, so
// that a loader hardly ever sees one of them empty.
func (r *run) change(c *Change) error {
	real := r.abs(c.Real)
	r.dirty[filepath.Dir(real)] = true
	if c.Staged == "" {
		return r.w.remove(real)
	}
	for _, p := range parents(real) {
		if slices.Contains(r.rec.Dirs, r.shown(p)) && !slices.Contains(r.made, p) {
			if err := r.mkdir(p, r.dirMode(p)); err != nil {
				return err
			}
		}
	}
	temp := r.abs(c.Staged)
	r.dirty[filepath.Dir(temp)] = true
	return r.w.rename(temp, real)
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
	for _, p := range r.rec.Dirs {
		if real := r.abs(p); !slices.Contains(r.made, real) {
			if err := r.mkdir(real, r.dirMode(real)); err != nil {
				return err
			}
		}
	}
	return nil
}

// dropDirs removes directories of ours that nothing needs any more, if they are empty.
func (r *run) dropDirs() error {
	for i := range r.staging.removals {
		it := &r.staging.removals[i]
		if it.Kind != KindDir {
			continue
		}
		fi, err := lstat(it.real)
		if err != nil {
			return err
		}
		if fi == nil {
			continue
		}
		gone, err := r.w.rmdirUnused(it.real)
		if err != nil {
			return err
		}
		if !gone {
			continue // somebody uses it
		}
		r.removedDirs = append(r.removedDirs, removedDir{it.real, fi})
		r.dirty[filepath.Dir(it.real)] = true
		delete(r.dirty, it.real)
	}
	return nil
}

// syncDirs makes all changed directories durable, side by side.
func (r *run) syncDirs() error {
	var g errgroup.Group
	g.SetLimit(16)
	for dir := range r.dirty {
		g.Go(func() error { return r.w.sync(dir) })
	}
	r.dirty = map[string]bool{}
	return g.Wait()
}

// settle writes the receipt: after it the run is done.
func (r *run) settle() error {
	rec, err := r.newReceipt()
	if err != nil {
		return err
	}
	data, err := rec.encode()
	if err != nil {
		return err
	}
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return err
	}
	if err := r.ensureDir(state, 0o700); err != nil {
		return err
	}
	temp := filepath.Join(state, ".receipt.json.nodeprep-"+r.id)
	if err := r.writeSmall(temp, data); err != nil {
		return r.explain(errors.Join(fmt.Errorf("write receipt: %w", err), r.w.remove(temp)))
	}
	if err := r.w.rename(temp, filepath.Join(state, "receipt.json")); err != nil {
		return errors.Join(fmt.Errorf("write receipt: %w", err), r.w.remove(temp))
	}
	// The rename is done, so that an error here must not undo a run whose receipt may
	// be on the disk.
	if err := r.syncDirs(); err != nil {
		r.res.Warnings.Warnf(diag.Origin{File: ReceiptPath}, "", "it is written, but may not survive a power cut right now: %v", err)
	}
	r.res.Generation, r.res.Artifacts = rec.Generation, rec.Artifacts
	for i := range r.plan.Items {
		if it := r.plan.Items[i]; it.Changes() {
			r.res.Changed = append(r.res.Changed, it)
		}
	}
	r.res.Warnings = append(r.res.Warnings, r.plan.Warnings[r.told:]...)
	return nil
}

// newReceipt is the receipt of the host as it is now.
func (r *run) newReceipt() (*Receipt, error) {
	old := r.plan.receipt
	rec := &Receipt{
		Format: receiptFormat, ID: r.id, Generation: r.rec.To, Nodeprep: r.opt.Version, Time: r.h.Now().UTC(),
		Arch: r.plan.state.Arch, Profiles: r.opt.Profiles, Profile: r.opt.Profile, Salt: r.staging.salt, Images: r.images, Daemon: r.plan.state.Daemon,
	}
	for _, u := range r.plan.state.Units {
		rec.Units = append(rec.Units, u.Name)
	}
	rec.Modules = r.modules()
	owned := map[string]Owned{}
	gone := map[string]bool{}
	for _, c := range r.rec.Changes {
		if c.Staged == "" {
			gone[c.Path] = true
		}
	}
	for _, d := range r.removedDirs {
		gone[r.shown(d.path)] = true
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
	for i := range r.rec.Changes {
		kept[r.rec.Changes[i].Path] = &r.rec.Changes[i]
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
	state, err := r.root.Resolve(StateDir)
	if err != nil {
		return nil, err
	}
	for _, real := range r.made {
		p := r.shown(real)
		if strings.HasPrefix(real, state+"/") || strings.Contains(p, "/"+keptDir+"/") {
			continue // nodeprep's own, inside of what is listed
		}
		own := Owned{Path: p, Kind: KindDir}
		fi, err := os.Lstat(real)
		if err != nil {
			return nil, err
		}
		own.stat(fi)
		own.MTime, own.Inode = 0, 0 // they change with what is in it
		owned[p] = own
	}
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
