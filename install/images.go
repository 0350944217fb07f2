package install

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
	"github.com/nodeprep/nodeprep/systemd"
)

// ImagesDir is where the image archives of a root that is not running wait for its first
// boot, each as SHA256.tar, mode 0600.
const ImagesDir = systemd.FirstBootImages

// ImageSource opens image archives that are no files of this machine: those of a bundle,
// which desired.Image.SHA256 tells.
type ImageSource interface {
	// Open begins to read an archive. It is opened once to be verified and once more to be
	// imported; whoever reads it holds it to its digest.
	Open(ctx context.Context, img desired.Image) (io.ReadCloser, error)
}

// ImportedImage is one image that a run brought.
type ImportedImage struct {
	Name   string `json:"name"` // docker.io/library/busybox:1
	Digest string `json:"digest,omitempty"`
	// Archive is the profile's name for the archive.
	Archive string `json:"archive"`
	Pinned  bool   `json:"pinned,omitempty"`
	// Present says that containerd had it just so before.
	Present bool `json:"present,omitempty"`
	// Pending says that it waits for the first boot.
	Pending bool `json:"pending,omitempty"`
}

// waitingPath is where an archive waits, by its digest.
func waitingPath(sum string) string { return path.Join(ImagesDir, sum+".tar") }

// atHand is what is known of a wanted archive, as far as possible without reading it.
type atHand struct {
	sum   string // hex; "" where it is not known yet
	size  int64
	mtime int64 // nanoseconds since 1970; 0 for one of a bundle
	// missing is why there is none.
	missing error
}

// runsImages reports whether there is a containerd to be given images.
func (d *differ) runsImages() bool { return d.plan.live && d.opt.Daemon != nil }

// images plans what becomes of images. What an archive is, is told by its digest: it may come
// from a file, from a bundle, or wait on the host. Waiting archives that are still needed are
// marked as wanted, so that this comes before removals.
func (d *differ) images(ctx context.Context) ([]Item, error) {
	var was []Imported
	if d.receipt != nil {
		was = slices.Clone(d.receipt.Images)
	}
	there := d.imagesThere(ctx, was)
	var out []Item
	var faults []error
	used := map[string]bool{} // by digest: what the receipt has and the state still wants
	for i := range d.state.Images {
		it, err := d.image(&d.state.Images[i], was, there)
		if err != nil {
			faults = append(faults, err)
			continue
		}
		for _, x := range []*Imported{it.imported, it.replaced} {
			if x != nil {
				used[x.SHA256] = true
			}
		}
		out = append(out, it)
	}
	if len(faults) > 0 {
		return nil, errors.Join(faults...)
	}
	for _, x := range was {
		if !used[x.SHA256] {
			out = append(out, d.dropped(x)...)
		}
	}
	pinned := map[string]bool{}
	for i := range out {
		if it := &out[i]; it.image != nil && it.image.Pin && it.imported != nil {
			for _, name := range it.imported.Names {
				pinned[name] = true
			}
		}
	}
	for i := range out {
		if it := &out[i]; it.Action == Unpin {
			// Another archive may pin it, or somebody has taken the pin already.
			it.names = slices.DeleteFunc(slices.Clone(it.names), func(name string) bool {
				return pinned[name] || there != nil && !there[name].Pinned
			})
			it.Details = it.names
			if len(it.names) == 0 && it.image != nil && !it.imported.Pending {
				it.Action, it.Reason = Keep, ""
			}
		}
	}
	return slices.DeleteFunc(out, func(it Item) bool { return it.image == nil && len(it.names) == 0 }), nil
}

// imagesThere are the images of the running containerd, by name, and nil where it does not
// answer or nobody needs to know.
func (d *differ) imagesThere(ctx context.Context, was []Imported) map[string]daemon.Image {
	if !d.runsImages() || !slices.ContainsFunc(was, func(x Imported) bool { return !x.Pending }) {
		return nil
	}
	list, err := d.opt.Daemon.Images(ctx, d.receipt.Daemon)
	if err != nil {
		return nil
	}
	out := map[string]daemon.Image{}
	for _, img := range list {
		out[img.Name] = img
	}
	return out
}

// dropped plans the end of an image that is no longer wanted: it stays, and the kubelet may
// remove it. Under a root that is not running the receipt remembers the pin.
func (d *differ) dropped(x Imported) []Item {
	if !x.Pin || x.Pending {
		return nil // the archive that waits is a file of ours like others
	}
	if !d.runsImages() {
		d.plan.forgotten = append(d.plan.forgotten, x)
		return nil
	}
	return []Item{{
		Action: Unpin, Kind: KindImage, Path: x.File, names: x.Names,
		Reason: "is no longer wanted; its images stay, and the kubelet may remove them",
	}}
}

func (d *differ) image(img *desired.Image, was []Imported, there map[string]daemon.Image) (Item, error) {
	it := Item{Kind: KindImage, Path: img.File, Origin: img.Origin, Action: Keep, image: img}
	fault := func(err error) error { return fmt.Errorf("image %s: %w (from %s)", img.File, err, img.Origin) }
	at, err := archiveAtHand(img, was)
	if err != nil {
		return it, fault(err)
	}
	sameFile := func(x Imported) bool { return x.File == img.File }
	same := func(x Imported) bool { return at.sum != "" && x.SHA256 == at.sum }
	if at.missing != nil {
		same = sameFile // it was imported; a stick that is gone since is no fault
	}
	i := slices.IndexFunc(was, func(x Imported) bool { return same(x) && sameFile(x) })
	if i < 0 {
		i = slices.IndexFunc(was, same)
	}
	if i < 0 {
		if at.missing != nil {
			return it, fault(at.missing)
		}
		it.Action, it.Reason = Import, "new"
		if i = slices.IndexFunc(was, sameFile); i >= 0 {
			it.Reason, it.replaced = "the archive changed", &was[i]
		}
		return it, nil
	}
	x := was[i]
	if at.missing == nil {
		x.File, x.Size, x.MTime = img.File, at.size, at.mtime
	}
	it.imported = &x
	if x.Pending {
		err = d.waitingImage(&it, at)
	} else if d.runsImages() {
		d.imagePresent(&it, at, there)
	}
	if err != nil {
		return it, fault(err)
	}
	return it, nil
}

// archiveAtHand finds out what a wanted archive is. A file whose size and time are as at its
// import is not read again, nor one that cannot be any that the receipt knows.
func archiveAtHand(img *desired.Image, was []Imported) (atHand, error) {
	if img.SHA256 != "" {
		return atHand{sum: img.SHA256, size: img.Size}, nil
	}
	fi, err := os.Stat(img.File)
	if err != nil {
		return atHand{missing: err}, nil
	}
	if !fi.Mode().IsRegular() {
		return atHand{}, fmt.Errorf("is %s, not an archive", typeName(fi.Mode()))
	}
	at := atHand{size: fi.Size(), mtime: fi.ModTime().UnixNano()}
	for _, x := range was {
		if x.File == img.File && x.Size == at.size && x.MTime == at.mtime {
			at.sum = x.SHA256
			return at, nil
		}
	}
	if slices.ContainsFunc(was, func(x Imported) bool { return x.Size == at.size }) {
		at.sum, err = digestArchive(img.File)
	}
	return at, err
}

// waitingImage plans an image whose archive waits for the first boot.
func (d *differ) waitingImage(it *Item, at atHand) error {
	x := it.imported
	why := "its archive does not wait here"
	real, fi, err := locate(d.root, waitingPath(x.SHA256))
	if err != nil {
		return err
	}
	if own := d.receipt.Find(waitingPath(x.SHA256)); own != nil {
		d.wanted[real] = own.Path
		drift, what, err := d.receipt.compare(real, fi, own, false)
		if err != nil {
			return fmt.Errorf("compare %s: %w", own.Path, err)
		}
		why = "the archive that waits " + what
		if drift == asWritten || drift == modeChanged {
			it.waits = real
		}
	}
	switch {
	case d.runsImages():
		it.Action, it.Reason = Import, "waits since this root was made"
	case it.waits == "":
		it.Action, it.Reason = Import, why
	case x.Pin != it.image.Pin:
		it.Action, it.Reason = pinning(it.image.Pin), "changes for when it is imported"
	}
	if it.Action == Import && it.waits == "" && at.missing != nil {
		return fmt.Errorf("%s, and it cannot be had anew: %w", why, at.missing)
	}
	return nil
}

func pinning(pin bool) Action {
	if pin {
		return Pin
	}
	return Unpin
}

// imagePresent plans an image that was imported: containerd may have lost it, or its pin.
// Whether a name stands for what the archive had is not asked: the kubelet may have pulled
// it anew.
func (d *differ) imagePresent(it *Item, at atHand, there map[string]daemon.Image) {
	x, pin := it.imported, it.image.Pin
	var gone, unpinned []string
	for _, name := range x.Names {
		switch img, ok := there[name]; {
		case there == nil:
		case !ok:
			gone = append(gone, name)
		case !img.Pinned:
			unpinned = append(unpinned, name)
		}
	}
	switch {
	case len(gone) > 0 && at.missing != nil:
		d.plan.Warnings.Warnf(it.Origin, "put the archive back", "image %s is gone from containerd, and so is its archive: %v", strings.Join(gone, ", "), at.missing)
	case len(gone) > 0:
		it.Action, it.Reason = Import, strings.Join(gone, ", ")+" is gone from containerd"
	case pin && !x.Pin && len(x.Names) == 0:
		if at.missing == nil { // whoever imported it did not tell its names
			it.Action, it.Reason = Import, "its pin changes"
		}
	case pin && !x.Pin:
		it.Action, it.Reason, it.names = Pin, "shall not be removed by the kubelet", x.Names
	case pin && len(unpinned) > 0:
		it.Action, it.Reason, it.names = Pin, "lost its pin", unpinned
	case !pin && x.Pin:
		it.Action, it.Reason, it.names = Unpin, "may be removed by the kubelet", x.Names
	}
	if it.Action == Pin {
		it.Details = it.names
	}
}

// checkedImage is an archive that was read to its end and found good.
type checkedImage struct {
	sum         string
	size, mtime int64
	archive     *imagearchive.Archive // nil where it was too much to look into
	needs       int64                 // bytes that it takes, in containerd packed and unpacked
}

// runsImages reports whether this run gives images to a containerd.
func (r *run) runsImages() bool { return r.plan.live && r.opt.Daemon != nil }

// imports are the items whose archives are read.
func (r *run) imports() []*Item {
	var out []*Item
	for i := range r.plan.Items {
		if it := &r.plan.Items[i]; it.Action == Import {
			out = append(out, it)
		}
	}
	return out
}

// checkImages reads every archive that will be imported, before anything is written. One at
// a time: a packed one may ask for memory.
func (r *run) checkImages(ctx context.Context) error {
	r.staging.images = map[*desired.Image]*checkedImage{}
	var faults []error
	for _, it := range r.imports() {
		if r.runsImages() {
			faults = append(faults, r.checkImage(ctx, it, io.Discard))
		} else {
			// They are read when they are copied to where they wait.
			faults = append(faults, r.measure(ctx, it))
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return errors.Join(faults...)
}

// openImage opens an archive: where it waits, in the bundle, or on this machine.
func (r *run) openImage(ctx context.Context, it *Item) (io.ReadCloser, atHand, error) {
	img := it.image
	fault := func(err error) (io.ReadCloser, atHand, error) {
		return nil, atHand{}, fmt.Errorf("image %s: %w (from %s)", img.File, err, img.Origin)
	}
	switch {
	case it.waits != "":
		f, size, err := openRegular(it.waits)
		if err != nil {
			return fault(err)
		}
		return f, atHand{sum: it.imported.SHA256, size: size, mtime: it.imported.MTime}, nil
	case img.SHA256 != "":
		if r.opt.Images == nil {
			return fault(errors.New("no source of images was given"))
		}
		f, err := r.opt.Images.Open(ctx, *img)
		if err != nil {
			return fault(err)
		}
		return f, atHand{sum: img.SHA256, size: img.Size}, nil
	}
	f, err := os.Open(img.File)
	if err != nil {
		return fault(err)
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = fmt.Errorf("is %s, not an archive", typeName(fi.Mode()))
	}
	if err != nil {
		f.Close()
		return fault(err)
	}
	return f, atHand{size: fi.Size(), mtime: fi.ModTime().UnixNano()}, nil
}

// measure notes how large an archive is that can be opened.
func (r *run) measure(ctx context.Context, it *Item) error {
	size := it.image.Size
	if it.image.SHA256 == "" || r.opt.Images == nil {
		f, at, err := r.openImage(ctx, it)
		if err != nil {
			return err
		}
		f.Close()
		size = at.size
	}
	r.staging.images[it.image] = &checkedImage{needs: size}
	return nil
}

// checkImage reads an archive to its end and holds it to its digest and to what the node
// can use. What is read goes to a writer.
func (r *run) checkImage(ctx context.Context, it *Item, to io.Writer) error {
	img := it.image
	f, at, err := r.openImage(ctx, it)
	if err != nil {
		return err
	}
	defer f.Close()
	fault := func(err error) error { return fmt.Errorf("image %s: %w (from %s)", img.File, err, img.Origin) }
	sum, out := newHash("", false), &sticky{w: to}
	stream := io.TeeReader(&reading{ctx: ctx, in: f, r: r, name: "check " + path.Base(img.File), total: at.size}, io.MultiWriter(sum, out))
	archive, err := imagearchive.Inspect(ctx, stream)
	if _, rest := io.Copy(io.Discard, stream); rest != nil {
		return fault(cmp.Or(out.err, rest))
	}
	got := hex.EncodeToString(sum.Sum(nil))
	if at.sum != "" && at.sum != got {
		return fault(&release.DigestError{File: img.File, Got: got, Want: at.sum, From: from(it), Err: err})
	}
	c := &checkedImage{sum: got, size: at.size, mtime: at.mtime, needs: at.size}
	node := "linux/" + r.plan.state.Arch
	switch {
	case errors.Is(err, imagearchive.ErrTooMuch):
		r.res.Warnings.Warnf(img.Origin, "", "image %s: %v, so that only the import tells whether it is whole", img.File, err)
	case err != nil:
		return fault(err)
	default:
		if err := archive.Usable(node); err != nil {
			return fault(err)
		}
		c.archive = archive
		r.notForUs(img, archive, node)
		// Several images may share their layers: what the largest one takes is sure.
		c.needs = 0
		for _, i := range archive.Images {
			if platform, fits := i.For(node); fits {
				c.needs = max(c.needs, i.Stored[platform]+i.Unpacked[platform])
			}
		}
	}
	r.staging.images[img] = c
	return nil
}

// notForUs says which images of an archive are not imported, since it has none of their
// platforms for the node.
func (r *run) notForUs(img *desired.Image, archive *imagearchive.Archive, node string) {
	for _, i := range archive.Images {
		if _, fits := i.For(node); fits || len(i.Names) == 0 {
			continue
		}
		others := slices.DeleteFunc(slices.Concat(i.Platforms, slices.Sorted(maps.Keys(i.Missing))), func(p string) bool { return p == imagearchive.Unknown })
		slices.Sort(others)
		if others = slices.Compact(others); len(others) == 0 {
			continue // a signature, or the like
		}
		r.res.Warnings.Warnf(img.Origin, "save it for "+node+", or without that image", "image %s: %s is for %s, not for %s, and is not imported",
			img.File, strings.Join(i.Names, ", "), strings.Join(others, ", "), node)
	}
}

// names are those of the archive's images for the node, as far as they are known.
func (c *checkedImage) names(arch string) []string {
	if c.archive == nil {
		return nil
	}
	var out []string
	for _, i := range c.archive.Images {
		if _, fits := i.For("linux/" + arch); fits {
			out = append(out, i.Names...)
		}
	}
	return out
}

// from is who knows an archive's digest.
func from(it *Item) string {
	if it.waits != "" {
		return ReceiptPath
	}
	return "the bundle"
}

// sticky remembers that something could not be written: whoever copies takes it for a fault
// of what is read.
type sticky struct {
	w   io.Writer
	err error
}

// Write writes.
func (s *sticky) Write(p []byte) (int, error) {
	n, err := s.w.Write(p)
	s.err = cmp.Or(s.err, err)
	return n, err
}

// stageImages copies the archives of a root that is not running to where they wait, and
// verifies them on the way. All faults at once.
func (r *run) stageImages(ctx context.Context) error {
	if r.runsImages() {
		return nil
	}
	var faults []error
	staged := map[string]bool{}
	for _, it := range r.imports() {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		faults = append(faults, r.stageImage(ctx, it, staged))
	}
	return errors.Join(faults...)
}

func (r *run) stageImage(ctx context.Context, it *Item, staged map[string]bool) error {
	// Its name is its digest, which shows at the end.
	real, err := r.root.Locate(path.Join(ImagesDir, "archive"))
	if err != nil {
		return err
	}
	s, err := r.newStaged(Owned{Path: path.Join(ImagesDir, "archive"), Kind: KindFile, Mode: 0o600, Origin: it.Origin, Format: desired.FormatRaw}, real)
	if err != nil {
		return err
	}
	if s.file, err = r.w.create(ctx, s.temp, newHash("", false)); err != nil {
		return fmt.Errorf("stage %s: %w", it.Path, err)
	}
	if err := r.checkImage(ctx, it, s.file); err != nil {
		return err
	}
	c := r.staging.images[it.image]
	if staged[c.sum] {
		r.unstaged(s)
		return r.w.remove(s.temp)
	}
	staged[c.sum] = true
	s.own.Path = waitingPath(c.sum)
	if s.real, err = r.root.Locate(s.own.Path); err != nil {
		return err
	}
	return r.finish(s)
}

// unstaged forgets something under a staging name.
func (r *run) unstaged(s *staged) {
	r.staging.mu.Lock()
	defer r.staging.mu.Unlock()
	s.file.abandon()
	r.staging.items = slices.DeleteFunc(r.staging.items, func(x *staged) bool { return x == s })
}

// imageSpace is what images take on the filesystems of the host. Of a root that is not running
// only the room for the archives counts: at its first boot it may be a larger disk.
func (r *run) imageSpace(add func(p string, bytes int64, files int) error) error {
	for _, it := range r.imports() {
		dir := ImagesDir
		if r.runsImages() {
			var err error
			if dir, err = r.dataRoot(); err != nil {
				return err
			}
		}
		if err := add(dir, r.staging.images[it.image].needs, 1); err != nil {
			return err
		}
	}
	return nil
}

// dataRoot is where containerd keeps its data, by its config as it will be.
func (r *run) dataRoot() (string, error) {
	want := r.plan.state.Daemon
	d := &differ{root: r.root, state: r.plan.state}
	var content []byte
	if f := d.stateFile(want.ConfigPath); f != nil {
		content = f.Content
	} else if want.ConfigPath != "" {
		var err error
		if content, err = r.root.ReadFile(want.ConfigPath); err != nil && !isAbsent(err) {
			return "", err
		}
	}
	facts, err := daemonFacts(content, want.Version)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", want.ConfigPath, err)
	}
	return facts.root, nil
}

// importImages gives containerd what the plan says. Every archive is tried, whatever becomes
// of the others. Under a root that is not running images wait for its first boot. What was
// imported is not taken out by an undo; pins are.
func (r *run) importImages(ctx context.Context) error {
	if r.plan.verb != VerbApply {
		return nil
	}
	var faults []error
	var pin, unpin []string
	stay := map[string]bool{} // names that a wanted archive pins
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		if it.Kind != KindImage {
			continue
		}
		if ctx.Err() != nil {
			faults = append(faults, context.Cause(ctx))
			break
		}
		var im *Imported
		switch {
		case it.Action == Import:
			var err error
			if im, err = r.importImage(ctx, it); err != nil {
				faults = append(faults, err)
				continue
			}
			for _, old := range []*Imported{it.imported, it.replaced} {
				if old != nil && old.Pin && !old.Pending && (it.replaced == old || !im.Pin) {
					unpin = append(unpin, old.Names...)
				}
			}
		case it.image == nil:
			unpin = append(unpin, it.names...)
			continue
		default:
			im = it.imported
			switch {
			case it.Action == Pin:
				im.Pin = true
				pin = append(pin, it.names...)
			case it.Action == Unpin, !it.image.Pin && r.runsImages(): // or nothing is left of its pin
				im.Pin = false
				unpin = append(unpin, it.names...)
			}
		}
		r.images = append(r.images, *im)
		if im.Pin {
			for _, name := range im.Names {
				stay[name] = true
			}
		}
	}
	r.images = append(r.images, r.plan.forgotten...)
	if len(faults) > 0 {
		return errors.Join(faults...)
	}
	unpin = slices.DeleteFunc(unpin, func(name string) bool { return stay[name] })
	pin, unpin, err := r.otherwise(ctx, pin, unpin)
	if err != nil {
		return err
	}
	return r.pins(ctx, pin, unpin)
}

// importImage imports one archive, or says that it waits. It is in containerd only where
// what was read is what was verified. Its images are pinned once they are there: the journal
// must know which of them had no pin.
func (r *run) importImage(ctx context.Context, it *Item) (*Imported, error) {
	img, c := it.image, r.staging.images[it.image]
	im := &Imported{File: img.File, SHA256: c.sum, Size: c.size, MTime: c.mtime, Pin: img.Pin, Names: c.names(r.plan.state.Arch)}
	if !r.runsImages() {
		im.Pending = true
		for _, name := range im.Names {
			r.res.Images = append(r.res.Images, ImportedImage{Name: name, Archive: img.File, Pinned: img.Pin, Pending: true})
		}
		return im, nil
	}
	f, at, err := r.openImage(ctx, it)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	unpinned := *img
	unpinned.Pin = false
	got, err := r.give(ctx, r.plan.state.Daemon, unpinned, &reading{ctx: ctx, in: f, r: r, name: path.Base(img.File), total: at.size}, c)
	im.Names = nil
	var pin []string
	for _, g := range got {
		im.Names = append(im.Names, g.Name)
		if img.Pin && !g.Pinned {
			pin = append(pin, g.Name)
		}
	}
	if err == nil {
		err = r.pins(ctx, pin, nil)
	}
	for _, g := range got {
		r.res.Images = append(r.res.Images, ImportedImage{Name: g.Name, Digest: g.Digest, Archive: img.File, Pinned: g.Pinned || img.Pin && err == nil, Present: !g.Changed})
	}
	if err != nil {
		return nil, fmt.Errorf("import %s: %w (from %s)", img.File, err, img.Origin)
	}
	return im, nil
}

// give has a daemon import an archive of a known digest. One that it has not read, because
// it has all that is in it, need not be.
func (r *run) give(ctx context.Context, d desired.Daemon, img desired.Image, in io.Reader, c *checkedImage) ([]daemon.Image, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, importTimeout, fmt.Errorf("it took longer than %s", importTimeout))
	defer cancel()
	archive := &proved{in: in, sum: newHash("", false), want: c.sum}
	got, err := r.opt.Daemon.Import(ctx, d, img, archive, c.archive)
	if err == nil && archive.read {
		_, err = io.Copy(io.Discard, archive)
	}
	return got, err
}

// proved reads something of a known digest: its end is an error where it is something else,
// so that nobody takes it for whole.
type proved struct {
	in   io.Reader
	sum  hash.Hash
	want string // hex
	read bool   // some of it
}

// Read reads.
func (p *proved) Read(b []byte) (int, error) {
	n, err := p.in.Read(b)
	p.read = true
	_, _ = p.sum.Write(b[:n]) // a hash takes everything
	if errors.Is(err, io.EOF) {
		if got := hex.EncodeToString(p.sum.Sum(nil)); got != p.want {
			return n, fmt.Errorf("it changed since it was verified: its sha256 is %s, and was %s", got, p.want)
		}
	}
	return n, err
}

// otherwise are those of the names whose pins are not as wanted by now. Others are somebody
// else's, and no undo may touch them.
func (r *run) otherwise(ctx context.Context, pin, unpin []string) (toPin, toUnpin []string, err error) {
	if !r.runsImages() || len(pin)+len(unpin) == 0 {
		return nil, nil, nil
	}
	list, err := r.opt.Daemon.Images(ctx, r.plan.state.Daemon)
	if err != nil {
		return nil, nil, fmt.Errorf("see what is pinned: %w", err)
	}
	for _, img := range list {
		switch {
		case !img.Pinned && slices.Contains(pin, img.Name):
			toPin = append(toPin, img.Name)
		case img.Pinned && slices.Contains(unpin, img.Name):
			toUnpin = append(toUnpin, img.Name)
		}
	}
	return toPin, toUnpin, nil
}

// pins changes what the kubelet may remove, of images of which each pin changes. The journal
// has it first: a run that is undone takes it back.
func (r *run) pins(ctx context.Context, pin, unpin []string) error {
	if len(pin)+len(unpin) == 0 {
		return nil
	}
	r.j.Pinned, r.j.Unpinned = append(r.j.Pinned, pin...), append(r.j.Unpinned, unpin...)
	if err := r.writeJournal(); err != nil {
		return r.explain(err)
	}
	return r.setPins(ctx, r.plan.state.Daemon, pin, unpin)
}

func (r *run) setPins(ctx context.Context, d desired.Daemon, pin, unpin []string) error {
	var faults []error
	if len(pin) > 0 {
		if err := r.opt.Daemon.Pin(ctx, d, pin); err != nil {
			faults = append(faults, fmt.Errorf("pin %s: %w", strings.Join(pin, ", "), err))
		}
	}
	if len(unpin) > 0 {
		if err := r.opt.Daemon.Unpin(ctx, d, unpin); err != nil {
			faults = append(faults, fmt.Errorf("unpin %s: %w", strings.Join(unpin, ", "), err))
		}
	}
	return errors.Join(faults...)
}

// pinsBack takes that back, if there is a containerd to be asked. If not it is no fault: the
// next apply sees which pins are lost.
func (r *run) pinsBack(ctx context.Context) {
	if len(r.j.Pinned)+len(r.j.Unpinned) == 0 {
		return
	}
	err := errors.New("no containerd runs here")
	if r.runsImages() {
		err = r.setPins(ctx, r.before(), r.j.Unpinned, r.j.Pinned)
	}
	if err != nil {
		r.left = append(r.left, fmt.Sprintf("the pins of %s are not as before: %v", strings.Join(slices.Concat(r.j.Unpinned, r.j.Pinned), ", "), err))
	}
}

// imported says which images an undo leaves in containerd.
func (r *run) imported() {
	for _, img := range r.res.Images {
		if !img.Present && !img.Pending {
			r.left = append(r.left, fmt.Sprintf("%s (%s) was imported, and stays in containerd", img.Name, img.Archive))
		}
	}
}

// recordImages notes which archives that waited go when the receipt says that they are
// imported.
func (r *run) recordImages() error {
	others := false
	for i := range r.plan.Items {
		it := &r.plan.Items[i]
		switch {
		case it.Kind != KindImage || it.imported == nil || !it.imported.Pending:
		case it.Action == Import && r.runsImages():
			if p := waitingPath(it.imported.SHA256); r.plan.receipt.Find(p) != nil && !slices.Contains(r.j.Waited, p) {
				r.j.Waited = append(r.j.Waited, p)
			}
		default:
			others = true
		}
	}
	if others || len(r.j.Waited) == 0 {
		return nil
	}
	dir, err := r.root.Resolve(ImagesDir)
	if err == nil && !slices.Contains(r.j.Last, r.shown(dir)) {
		r.j.Last = append(r.j.Last, r.shown(dir))
	}
	return err
}

// withoutWaited drops from what is owned the archives that go, and their directory with the
// last one.
func withoutWaited(owned map[string]Owned, waited []string) {
	for _, p := range waited {
		delete(owned, p)
	}
	for p := range owned {
		if path.Dir(p) == ImagesDir {
			return
		}
	}
	if len(waited) > 0 {
		delete(owned, ImagesDir)
	}
}

// dropWaited removes archives that waited and are imported.
func (r *run) dropWaited() error {
	var faults []error
	for _, p := range r.j.Waited {
		real, err := r.root.Locate(p)
		if err == nil {
			r.dirty[filepath.Dir(real)] = true
			err = r.w.remove(real)
		}
		faults = append(faults, err)
	}
	if err := errors.Join(faults...); err != nil || len(r.j.Waited) == 0 {
		return err
	}
	for _, p := range r.j.Last {
		faults = append(faults, r.removeLast(p))
	}
	return errors.Join(faults...)
}

// imagesBack is what a receipt says of images after a rollback: what is imported stays so, and
// of what waits it has those whose archives are there now.
func (r *run) imagesBack(now, then *Receipt) ([]Imported, error) {
	var out []Imported
	for _, x := range slices.Concat(now.Images, then.Images) {
		if slices.ContainsFunc(out, func(o Imported) bool { return o.SHA256 == x.SHA256 }) {
			continue
		}
		if !x.Pending {
			if slices.ContainsFunc(now.Images, func(o Imported) bool { return o.SHA256 == x.SHA256 }) {
				out = append(out, x)
			}
			continue
		}
		fi, err := r.root.Lstat(waitingPath(x.SHA256))
		switch {
		case err == nil && fi.Mode().IsRegular():
			out = append(out, x)
		case err != nil && !isAbsent(err):
			return nil, err
		}
	}
	return out, nil
}

// firstBoot adds to a state the marker of a root that is not running, and the unit that
// finishes it when it does. On a host that has the unit it stays: its conditions do not hold
// once all is done. The marker goes with an apply there, which does the same and more.
func (d *differ) firstBoot() {
	waits := !d.runsImages() && len(d.state.Images) > 0
	if d.plan.live && !waits && d.receipt.Find(systemd.FirstBootUnitPath) == nil {
		return
	}
	if d.stateFile(systemd.Program) == nil && d.receipt.Find(systemd.Program) == nil {
		if waits {
			d.plan.Warnings.Warnf(d.state.Images[0].Origin, "apply the profile once on the host when it runs",
				"nobody imports the images at the first boot: nodeprep itself is left out of this root")
		}
		return
	}
	st := *d.state
	st.Files = append(slices.Clone(st.Files), systemd.FirstBootUnit(diag.Origin{}))
	if !d.plan.live {
		st.Files = append(st.Files, systemd.FirstBootMarkerFile(diag.Origin{}))
	}
	st.Units = append(slices.Clone(st.Units), desired.Unit{Name: systemd.FirstBootUnitName, Enabled: true})
	d.state, d.plan.state = &st, &st
}

// digestArchive is the plain digest of an image archive. An archive is the operator's,
// who may name it by a link.
func digestArchive(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := newHash("", false)
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// reading tells the observer how much of a file has been read, and ends with its context.
type reading struct {
	ctx   context.Context
	in    io.Reader
	r     *run
	name  string
	done  int64
	total int64
}

// Read reads on.
func (c *reading) Read(p []byte) (int, error) {
	if c.ctx.Err() != nil {
		return 0, context.Cause(c.ctx)
	}
	n, err := c.in.Read(p)
	c.done += int64(n)
	c.r.progress(c.name, c.done, c.total)
	return n, err
}
