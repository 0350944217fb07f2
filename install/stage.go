package install

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// staged is one file or link under its staging name, and what it will be.
type staged struct {
	own  Owned  // Path, Kind and all that the receipt shall say; stat values come later
	real string // where it goes
	temp string // where it is
	// back marks what was there before and comes back: it will not be ours.
	back bool
	// first marks nodeprep's own, which is in place before the rest is staged.
	first bool
	file  *newFile
}

// staging is everything under staging names. Its lock is for the goroutines that
// unpack side by side.
type staging struct {
	mu    sync.Mutex
	n     int
	items []*staged
	// archives and their releases, by component; images are those that were looked into.
	archives map[string]*Archive
	images   map[*desired.Image]*checkedImage
	// removals are items that go without a successor.
	removals []Item
	// self are the items of nodeprep's own files.
	self []*Item
	salt string
}

// stageDir is the nearest existing directory above a path: on the filesystem where
// the path will be, and nobody takes notice of a file there.
func stageDir(real string) (string, error) {
	for dir := filepath.Dir(real); ; dir = filepath.Dir(dir) {
		fi, err := os.Lstat(dir)
		if err == nil && fi.IsDir() {
			return dir, nil
		}
		if err != nil && !isAbsent(err) {
			return "", err
		}
		if dir == "/" {
			return "", fmt.Errorf("%s has no directory above it", real)
		}
	}
}

// tempName is a fresh name beside real. The leading dot and the ending keep it out of
// every loader's glob (conf.d, net.d, sysctl.d, systemd's unit directories).
func (r *run) tempName(real string) (string, error) {
	dir, err := stageDir(real)
	if err != nil {
		return "", err
	}
	// Where images wait there is nothing else, not for a moment.
	if images, err := r.root.Resolve(ImagesDir); err == nil && dir == images {
		dir = filepath.Dir(images)
	}
	r.staging.n++
	base := filepath.Base(real)
	if len(base) > 200 {
		base = base[:200]
	}
	return filepath.Join(dir, fmt.Sprintf(".%s.nodeprep-%s-%d", base, r.id, r.staging.n)), nil
}

// newStaged registers a staging name before anything is made under it, so that it is
// removed whatever happens.
func (r *run) newStaged(own Owned, real string) (*staged, error) {
	r.staging.mu.Lock()
	defer r.staging.mu.Unlock()
	temp, err := r.tempName(real)
	if err != nil {
		return nil, fmt.Errorf("stage %s: %w", own.Path, err)
	}
	s := &staged{own: own, real: real, temp: temp}
	r.staging.items = append(r.staging.items, s)
	return s, nil
}

// stage brings everything that will be new under staging names, verified and durable.
func (r *run) stage(ctx context.Context) error {
	if err := r.prepare(); err != nil {
		return err
	}
	if err := r.writable(); err != nil {
		return err
	}
	if err := r.checkImages(ctx); err != nil {
		return err
	}
	if err := r.begin(); err != nil {
		return err
	}
	if err := r.obtain(ctx); err != nil {
		return err
	}
	if err := r.space(); err != nil {
		return err
	}
	g, unpacking := errgroup.WithContext(ctx)
	// fsync waits for the disk, not for the processor: many wait side by side.
	var syncs errgroup.Group
	syncs.SetLimit(32)
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if !it.Changes() || it.first {
			continue
		}
		switch {
		case it.artifact != nil:
			g.Go(func() error { return r.unpack(unpacking, it, &syncs) })
		case it.kept != nil:
			syncs.Go(func() error { return r.stageKept(ctx, it) })
		case it.file != nil:
			syncs.Go(func() error { return r.stageFile(ctx, it) })
		case it.symlink != nil:
			g.Go(func() error { return r.stageLink(it) })
		case it.Action == Remove && it.own != nil && it.own.Before != nil:
			syncs.Go(func() error { return r.stageBack(ctx, it.own, it.real) })
		case it.Action == Remove && it.real != "":
			r.staging.removals = append(r.staging.removals, *it)
		}
	}
	images := r.stageImages(ctx)
	err := g.Wait()
	if err := errors.Join(images, err, syncs.Wait()); err != nil {
		return r.explain(err)
	}
	return r.settleArtifacts(ctx)
}

func (r *run) prepare() error {
	r.staging.archives = map[string]*Archive{}
	if r.plan.receipt != nil {
		r.staging.salt = r.plan.receipt.Salt
	}
	if r.staging.salt == "" {
		salt, err := randomHex(16)
		if err != nil {
			return err
		}
		r.staging.salt = salt
	}
	return nil
}

// explain turns a full disk into *SpaceError.
func (r *run) explain(err error) error {
	if !isFull(err) {
		return err
	}
	full := &SpaceError{}
	var pe *fs.PathError
	if errors.As(err, &pe) {
		full.Short = []Shortage{{Path: r.shown(filepath.Dir(pe.Path))}}
	}
	return full
}

// targets are the real paths that the plan makes or removes something at.
func (r *run) targets() []string {
	var out []string
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if !it.Changes() {
			continue
		}
		if it.artifact != nil {
			for _, m := range it.artifact.Members {
				if real, err := r.root.Locate(m.Path); err == nil && (it.only == nil || it.only[m.Path]) {
					out = append(out, real)
				}
			}
		} else if it.real != "" {
			out = append(out, it.real)
		}
	}
	if state, err := r.root.Locate(ReceiptPath); err == nil {
		out = append(out, state)
	}
	if images, err := r.root.Locate(waitingPath("archive")); err == nil && !r.runsImages() && len(r.imports()) > 0 {
		out = append(out, images)
	}
	return out
}

// writable finds read-only filesystems and directories, and files that no rename can
// replace, before anything is written.
func (r *run) writable() error {
	seen := map[string]bool{}
	var faults []error
	for _, real := range r.targets() {
		if why := fixed(real, r.shown(real)); why != "" {
			faults = append(faults, fmt.Errorf("write %s: %s", r.shown(real), why))
		}
		dir, err := stageDir(real)
		if err != nil {
			return err
		}
		if seen[dir] {
			continue
		}
		seen[dir] = true
		switch err := unix.Faccessat(unix.AT_FDCWD, dir, unix.W_OK|unix.X_OK, unix.AT_EACCESS); {
		case errors.Is(err, unix.EROFS):
			top := mountPoint(dir)
			if !slices.ContainsFunc(faults, func(e error) bool { return strings.HasPrefix(e.Error(), "write "+r.shown(top)+":") }) {
				faults = append(faults, fmt.Errorf("write %s: this filesystem is mounted read-only and %s is on it; remount it writable (mount -o remount,rw %s)",
					r.shown(top), r.shown(dir), r.shown(top)))
			}
		case err != nil:
			faults = append(faults, fmt.Errorf("write %s: %w", r.shown(dir), err))
		}
	}
	return errors.Join(faults...)
}

// mountPoint is the longest mount point that a real path is under.
func mountPoint(real string) string {
	best := "/"
	all, err := mountPoints()
	if err != nil {
		return best
	}
	for at := range all {
		if (real == at || strings.HasPrefix(real, strings.TrimSuffix(at, "/")+"/")) && len(at) >= len(best) {
			best = at
		}
	}
	return best
}

// mountPoints are the directories and files on which something is mounted (proc(5),
// mountinfo).
func mountPoints() (map[string]bool, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	out := map[string]bool{}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		if fields := strings.Fields(lines.Text()); len(fields) >= 5 {
			out[unescape.Replace(fields[4])] = true
		}
	}
	return out, lines.Err()
}

// obtain has every release file at hand, several at once.
func (r *run) obtain(ctx context.Context) error {
	var mu sync.Mutex
	var faults []error
	var g errgroup.Group
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if it.artifact == nil || !it.Changes() {
			continue
		}
		g.Go(func() error {
			if r.opt.Artifacts == nil {
				return fmt.Errorf("install %s %s: no source of releases was given", it.Path, it.NewVersion)
			}
			a, err := r.opt.Artifacts.Obtain(ctx, *it.artifact, func(done, total int64) {
				r.progress("fetch "+it.artifact.Files[0], done, total)
			})
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				faults = append(faults, err) // all of them, not only the first
				return nil
			}
			r.staging.archives[it.Path] = a
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	slices.SortFunc(faults, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
	return errors.Join(faults...)
}

// space holds what will be written against what every filesystem has.
func (r *run) space() error {
	type need struct {
		path  string
		bytes uint64
		files uint64
	}
	needs := map[uint64]*need{}
	add := func(p string, bytes int64, files int) error {
		at, err := r.root.SpaceAt(p)
		if err != nil {
			return err
		}
		n := needs[at.Device]
		if n == nil {
			n = &need{path: p}
			needs[at.Device] = n
		}
		// A block more for each file: sizes are rounded up on disk.
		n.bytes += uint64(bytes) + uint64(files)*4096
		n.files += uint64(files)
		return nil
	}
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if !it.Changes() {
			continue
		}
		var err error
		switch {
		case it.artifact != nil:
			if ms := it.artifact.Members; len(ms) > 0 {
				err = add(filepath.Dir(ms[0].Path), r.staging.archives[it.Path].Unpacked, len(ms))
			}
		case it.first:
			// It is in place already.
		case it.file != nil:
			err = add(filepath.Dir(it.file.Path), int64(len(it.file.Content)), 1)
		}
		if err != nil {
			return err
		}
	}
	if err := r.imageSpace(add); err != nil {
		return err
	}
	if err := add(StateDir, 256<<10, 4); err != nil {
		return err
	}
	full := &SpaceError{}
	for _, dev := range sortedKeys(needs) {
		n := needs[dev]
		at, err := r.root.SpaceAt(n.path)
		if err != nil {
			return err
		}
		if n.bytes > at.Available || !at.NoInodes && n.files > at.Inodes {
			full.Short = append(full.Short, Shortage{Path: n.path, Needed: n.bytes, Available: at.Available})
		}
	}
	if len(full.Short) > 0 {
		return full
	}
	return nil
}

// stageFile writes a rendered file.
func (r *run) stageFile(ctx context.Context, it *Item) error {
	f := it.file
	s, err := r.newStaged(Owned{
		Path: f.Path, Kind: KindFile, Salted: f.Secret, Mode: permissions(f.Mode), Origin: f.Origin,
		Format: f.Format, Effect: f.Effect, Unit: f.Unit,
	}, it.real)
	if err != nil {
		return err
	}
	return r.stageContent(ctx, s, f)
}

// stageContent writes a file's content, or what is in its source, under the staging name.
func (r *run) stageContent(ctx context.Context, s *staged, f *desired.File) (err error) {
	if s.file, err = r.w.create(ctx, s.temp, newHash(r.staging.salt, s.own.Salted)); err != nil {
		return fmt.Errorf("stage %s: %w", f.Path, err)
	}
	if f.Source == "" {
		_, err = s.file.Write(f.Content)
	} else {
		err = s.copySource(f.Source)
	}
	if err != nil {
		return fmt.Errorf("stage %s: %w", f.Path, err)
	}
	return r.finish(s)
}

func (s *staged) copySource(source string) error {
	in, err := os.Open(source)
	if err != nil {
		return err
	}
	defer in.Close()
	fi, err := in.Stat()
	if err != nil {
		return err
	}
	s.own.Source = sourceOf(fi)
	_, err = io.CopyBuffer(struct{ io.Writer }{s.file}, struct{ io.Reader }{in}, make([]byte, 1<<20))
	return err
}

func sourceOf(fi fs.FileInfo) *Source {
	st := fi.Sys().(*syscall.Stat_t)
	return &Source{Size: fi.Size(), MTime: fi.ModTime().UnixNano(), Inode: st.Ino}
}

func (r *run) finish(s *staged) error {
	s.own.SHA256, s.own.Size = s.file.sum(), s.file.size
	var o *owner
	if r.w.chown {
		o = &owner{}
	}
	if err := s.file.finish(s.own.Mode, o, time.Time{}); err != nil {
		return fmt.Errorf("stage %s: %w", s.own.Path, err)
	}
	return nil
}

func (r *run) stageLink(it *Item) error {
	l := it.symlink
	s, err := r.newStaged(Owned{Path: l.Path, Kind: KindLink, Target: l.Target, Origin: l.Origin}, it.real)
	if err != nil {
		return err
	}
	if err := r.w.symlink(l.Target, s.temp); err != nil {
		return fmt.Errorf("stage %s: %w", l.Path, err)
	}
	return nil
}

// stageBack makes ready what was there before a file of ours.
func (r *run) stageBack(ctx context.Context, own *Owned, real string) error {
	s, err := r.newStaged(Owned{Path: own.Path, Kind: own.Before.Kind}, real)
	if err != nil {
		return err
	}
	s.back = true
	if err := r.untouched(own.Before); err != nil {
		return fmt.Errorf("give back %s: %w", own.Path, err)
	}
	if err := r.copyKept(ctx, own.Before, s.temp, r.plan.verb != VerbUninstall); err != nil {
		return fmt.Errorf("give back %s: %w", own.Path, err)
	}
	return nil
}

// stageKept makes ready what an earlier generation had, and proves that it still is that.
func (r *run) stageKept(ctx context.Context, it *Item) error {
	own := Owned{Path: it.target(), Kind: it.kept.Kind}
	if it.becomes != nil {
		own = *it.becomes
	}
	s, err := r.newStaged(own, it.real)
	if err != nil {
		return err
	}
	s.back = it.becomes == nil
	if err := r.untouched(it.kept); err != nil {
		return fmt.Errorf("bring back %s: %w", own.Path, err)
	}
	if err := r.copyKept(ctx, it.kept, s.temp, r.plan.verb != VerbUninstall); err != nil {
		return fmt.Errorf("bring back %s: %w", own.Path, err)
	}
	if it.kept.Kind == KindLink || s.back || it.unproven {
		return nil
	}
	sum, err := digestFile(s.temp, r.staging.salt, own.Salted)
	if err != nil {
		return fmt.Errorf("bring back %s: %w", own.Path, err)
	}
	if sum != own.SHA256 {
		return fmt.Errorf("bring back %s: what was kept of it, %s, has sha256 %s, want %s; somebody changed it", own.Path, it.kept.Path, sum, own.SHA256)
	}
	return nil
}

// member is what Unpack writes a release's file to.
type member struct {
	*newFile
	closed func()
	digest string
}

// Close ends the file; it becomes durable while others are unpacked.
func (m *member) Close() error {
	m.digest = m.sum()
	m.closed()
	return nil
}

// SHA256 is the digest that was made while writing (release.Summed).
func (m *member) SHA256() string { return m.digest }

// nowhere takes what is not wanted.
type nowhere struct{ io.Writer }

func (nowhere) Close() error { return nil }

// unpack brings a release's members under staging names.
func (r *run) unpack(ctx context.Context, it *Item, syncs *errgroup.Group) error {
	a := r.staging.archives[it.Path]
	var done int64
	err := a.Unpack(ctx, func(m desired.Member, mode fs.FileMode) (io.WriteCloser, error) {
		if it.only != nil && !it.only[m.Path] {
			return nowhere{io.Discard}, nil
		}
		real, err := r.root.Locate(m.Path)
		if err != nil {
			return nil, err
		}
		s, err := r.newStaged(Owned{
			Path: m.Path, Kind: KindFile, Mode: permissions(mode), Origin: it.Origin, Component: it.Path,
			Format: desired.FormatRaw, Effect: m.Effect,
		}, real)
		if err != nil {
			return nil, err
		}
		if s.file, err = r.w.create(ctx, s.temp, newHash("", false)); err != nil {
			return nil, fmt.Errorf("stage %s: %w", m.Path, err)
		}
		s.file.progress = func(n int) {
			done += int64(n)
			r.progress(a.File, done, a.Unpacked)
		}
		return &member{newFile: s.file, closed: func() {
			s.file.flush()
			syncs.Go(func() error { return r.finish(s) })
		}}, nil
	})
	if err != nil {
		return err
	}
	r.progress(a.File, a.Unpacked, a.Unpacked)
	return nil
}

// settleArtifacts drops members that are on the host already, byte for byte, and finds
// what an older release had and the new one lacks.
func (r *run) settleArtifacts(ctx context.Context) error {
	rec := r.plan.receipt
	var replaced []string
	for i := range r.plan.Items {
		if it := &r.plan.Items[i]; it.artifact != nil && it.Changes() && it.only == nil {
			replaced = append(replaced, it.Path)
		}
	}
	var refused NotOwnedError
	for _, component := range replaced {
		now := map[string]bool{}
		changed := false
		it := r.plan.find(KindArtifact, component)
		for _, s := range slices.Clone(r.staging.items) {
			if s.own.Component != component {
				continue
			}
			if why, ok := it.undecided[s.own.Path]; ok {
				refused.Refused = append(refused.Refused, why)
			}
			now[s.own.Path] = true
			was := rec.Find(s.own.Path)
			same := false
			if was != nil && was.SHA256 == s.own.SHA256 && was.Mode == s.own.Mode && !was.Salted {
				fi, err := lstat(s.real)
				if err != nil {
					return err
				}
				d, _, err := rec.compare(s.real, fi, was, false)
				if err != nil {
					return err
				}
				same = d == asWritten
			}
			if same {
				if err := r.w.remove(s.temp); err != nil {
					return err
				}
				r.staging.items = slices.DeleteFunc(r.staging.items, func(x *staged) bool { return x == s })
			} else if s.own.Effect != desired.EffectNone {
				changed = true
			}
		}
		if rec != nil {
			for j := range rec.Owned {
				own := &rec.Owned[j]
				if own.Component != component || now[own.Path] || slices.ContainsFunc(r.plan.Items, func(x Item) bool { return x.own == own && (x.Action == Remove || x.Action == Leave) }) {
					continue
				}
				gone, err := r.outdated(ctx, own)
				if err != nil {
					return err
				}
				changed = changed || gone && own.Effect != desired.EffectNone
			}
		}
		// outdated may have moved the items.
		it = r.plan.find(KindArtifact, component)
		it.Adopted = slices.DeleteFunc(it.Adopted, func(p string) bool { return !now[p] })
		if !changed {
			r.calm(component)
		}
	}
	if len(refused.Refused) > 0 {
		return &refused
	}
	return nil
}

// outdated plans the end of a file that the new release no longer has.
func (r *run) outdated(ctx context.Context, own *Owned) (bool, error) {
	d := &differ{root: r.root, state: &desired.State{}, receipt: r.plan.receipt, plan: r.plan, wanted: map[string]string{}}
	it, err := d.removal(own, nil, nil)
	if err != nil || it == nil {
		return false, err
	}
	it.Reason = "the new release lacks it; it " + it.Reason
	if it.kept != nil {
		if err := r.stageKept(ctx, it); err != nil {
			return false, err
		}
	}
	if it.Action == Remove {
		if own.Before != nil {
			if err := r.stageBack(ctx, own, it.real); err != nil {
				return false, err
			}
		} else {
			r.staging.removals = append(r.staging.removals, *it)
		}
	}
	r.plan.Items = append(r.plan.Items, *it)
	return it.Action == Remove, nil
}

// calm takes back what a component asked of units: nothing that they run changed.
func (r *run) calm(component string) {
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if it.Action == Restart || it.Action == Reload {
			it.causes = slices.DeleteFunc(it.causes, func(c cause) bool { return c.component == component })
			it.Details = reasons(it.causes)
			if len(it.causes) > 0 {
				it.Reason = it.causes[0].reason
			}
		}
	}
	r.plan.Items = slices.DeleteFunc(r.plan.Items, func(it Item) bool {
		return (it.Action == Restart || it.Action == Reload) && len(it.causes) == 0
	})
}

// unstage removes everything under staging names, also what an earlier process left. The
// nearest directory above a file may be one that this run made for nodeprep's own.
func (r *run) unstage() error {
	for _, s := range r.staging.items {
		if s.file != nil {
			s.file.abandon()
		}
	}
	var faults []error
	for _, p := range slices.Concat(r.j.Scratch, r.j.SelfDirs, r.j.Made) {
		dir, err := r.root.Locate(p)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			if !isAbsent(err) {
				faults = append(faults, err)
			}
			continue
		}
		for _, e := range entries {
			if !e.IsDir() && r.j.names(e.Name()) {
				r.dirty[dir] = true
				faults = append(faults, r.w.remove(filepath.Join(dir, e.Name())))
			}
		}
	}
	return errors.Join(faults...)
}

// parseCount reads the number of a generation's directory.
func parseCount(name string) (int, bool) {
	n, err := strconv.Atoi(name)
	return n, err == nil && n >= 0 && strconv.Itoa(n) == name
}
