package release

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// LockRequest is a release to be locked.
type LockRequest struct {
	Request
	// Optional is left out where it cannot be resolved: a variant that some node may want.
	Optional bool
}

// LockOptions are what a lock is made with.
type LockOptions struct {
	// Old is the lock that is replaced, nil where there is none. It is not obeyed: what is
	// known of the very same file (its size, who signed it) is taken from it, and a file
	// that changed under its version is found.
	Old *Lock
	// Update allows such changes.
	Update bool
	// Keyring is that of runc's releases.
	Keyring *Keyring
}

// resolving at the same time: most of it is waiting for servers.
const resolving = 4

// Lock finds out all that a lock says of the requested releases, for every one of them or
// not at all: the error joins what could not be found out, about all of them. What people
// should know besides is in notes.
//
// The digest is the profile's or the catalogue's; else that of upstream's checksum file
// over the network, from the profile's sources before upstream; else, for a file in a
// folder, that of the checksum file beside it, or its own. A file that is at hand is
// hashed in any case.
//
// Errors in the join: *UnresolvedError, *DigestError, *ChangedError, *SignatureError,
// *NotFoundError, those of reading local files.
func (s *Store) Lock(ctx context.Context, reqs []LockRequest, opt LockOptions) (lock *Lock, notes []string, err error) {
	type answer struct {
		entry *Locked
		notes []string
		err   error
	}
	answers := make([]answer, len(reqs))
	hashes := &hashes{known: map[string]*hashed{}}
	var g errgroup.Group
	g.SetLimit(resolving)
	for i, req := range reqs {
		artifacts, list := wanted([]Request{req.Request})
		if err := list.Err(); err != nil {
			answers[i].err = err
			continue
		}
		g.Go(func() error {
			r := resolver{s: s, a: artifacts[0], opt: opt, hashes: hashes}
			e, err := r.resolve(ctx)
			answers[i] = answer{e, r.notes, err}
			return nil
		})
	}
	_ = g.Wait() // their errors are in the answers
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	lock = &Lock{}
	var errs []error
	for i, a := range answers {
		_, unresolved := errors.AsType[*UnresolvedError](a.err)
		switch {
		case unresolved && reqs[i].Optional:
			u, _ := errors.AsType[*UnresolvedError](a.err)
			notes = append(notes, fmt.Sprintf("%s is left out: the %s of %s could not be found out", u.Title, u.What, u.File))
		case a.err != nil:
			errs = append(errs, a.err)
		default:
			notes = append(notes, a.notes...)
			lock.Entries = append(lock.Entries, *a.entry)
		}
	}
	if len(errs) > 0 {
		return nil, notes, errors.Join(errs...)
	}
	lock.Sort()
	return lock, slices.Compact(notes), nil
}

// UnresolvedError is a release of which a lock could not say everything.
type UnresolvedError struct {
	Title  string // "containerd 2.3.4 for linux/amd64"
	What   string // "sha256" or "size"
	File   string
	Places []Place
	Remedy string
	errs   []error
}

// Error is one line a place.
func (e *UnresolvedError) Error() string {
	return fmt.Sprintf("lock %s: the %s of %s could not be found out; %s; looked at:%s", e.Title, e.What, e.File, e.Remedy, places(e.Places))
}

// Unwrap is what the network said.
func (e *UnresolvedError) Unwrap() []error { return e.errs }

// ChangedError is a release file that is another one than when it was locked.
type ChangedError struct {
	Title string // "containerd 2.3.4 for linux/amd64"
	Was   string // hex
	Place string // where that stands: "nodeprep.lock:7"
	Is    string // hex
	From  string // who says so
}

// Error names both digests, and what can be behind it.
func (e *ChangedError) Error() string {
	return fmt.Sprintf("lock %s: the file changed under its version: it was %s (%s) and is %s (%s): it was repackaged, or somebody tampers with it; find out which, then --update takes the new one",
		e.Title, e.Was, e.Place, e.Is, e.From)
}

// hashes hashes every file once: an older bundle serves several components.
type hashes struct {
	mu    sync.Mutex
	known map[string]*hashed
}

type hashed struct {
	once   sync.Once
	digest string
	size   int64
	err    error
}

func (h *hashes) of(ctx context.Context, file string) (string, int64, error) {
	h.mu.Lock()
	one := h.known[file]
	if one == nil {
		one = &hashed{}
		h.known[file] = one
	}
	h.mu.Unlock()
	one.once.Do(func() { one.digest, one.size, one.err = hashFile(ctx, file) })
	return one.digest, one.size, one.err
}

// resolver finds out what a lock says of one artifact.
type resolver struct {
	s      *Store
	a      desired.Artifact
	opt    LockOptions
	hashes *hashes

	e      Locked
	dir    string // where the file is at hand, else ""
	bundle bool   // the file at hand is an older bundle
	looked []Place
	errs   []error
	notes  []string
}

func (r *resolver) note(format string, args ...any) {
	r.notes = append(r.notes, r.e.Title()+": "+fmt.Sprintf(format, args...))
}

func (r *resolver) missed(where string, err error) {
	r.looked = append(r.looked, Place{where, because(err)})
	r.errs = append(r.errs, err)
}

// forbidden notes addresses that were not asked.
func (r *resolver) forbidden(remotes []remote) {
	for _, u := range remotes {
		r.looked = append(r.looked, Place{u.where(), "the network may not be used (--offline)"})
	}
}

func (r *resolver) resolve(ctx context.Context) (*Locked, error) {
	a := r.a
	r.e = Locked{Component: a.Component, Version: a.Version, Arch: a.Arch, Static: a.Static, File: a.Files[0], URL: a.URL}
	if err := r.local(); err != nil {
		return nil, err
	}
	if err := r.digest(ctx); err != nil {
		return nil, err
	}
	old := r.opt.Old.Find(a.Component, a.Version, a.Arch, a.Static)
	if old != nil && old.File != r.e.File {
		old = nil // another file may have another digest
	}
	if old != nil && old.SHA256 != r.e.SHA256 {
		if !r.opt.Update {
			place := (diag.Origin{File: old.Origin.File, Line: old.Origin.Line}).Place()
			return nil, &ChangedError{Title: r.e.Title(), Was: old.SHA256, Place: place, Is: r.e.SHA256, From: r.e.From}
		}
		old = nil
	}
	at, err := r.size(ctx, old)
	if err != nil {
		return nil, err
	}
	if err := r.signed(at, old); err != nil {
		return nil, err
	}
	return &r.e, nil
}

// folders are the local ones, in the order in which they are looked through.
func (r *resolver) folders() []folder {
	var out []folder
	for _, d := range r.s.Dirs {
		out = append(out, folder{d, "--artifacts " + d})
	}
	for _, src := range r.s.Sources {
		if src.Dir != "" {
			out = append(out, folder{src.Dir, "source " + src.Dir})
		}
	}
	return out
}

// local looks for the file in the folders: under the wanted name, else as an older bundle
// with a digest of its own.
func (r *resolver) local() error {
	folders := r.folders()
	listed, why := listFolders(folders)
	for rank, pattern := range r.a.Files {
		for i, f := range folders {
			l := Located{Artifact: r.a, SHA256: r.a.SHA256, SHA256From: r.a.SHA256From}
			found, err := l.take(f, listed[i], pattern, rank > 0, &why[i])
			if _, unknown := errors.AsType[*NoDigestError](err); unknown {
				// It may be measured.
				found, l.File = true, r.a.Files[0]
			} else if err != nil {
				return err
			}
			if !found {
				continue
			}
			r.dir, r.e.File, r.bundle = f.dir, l.File, rank > 0
			if rank > 0 {
				r.e.URL, r.e.SHA256, r.e.From = "", l.SHA256, r.origin(l.SHA256From)
			}
			return nil
		}
	}
	for i, f := range folders {
		if why[i] == "" {
			why[i] = "no such file" + similar(listed[i], r.a.Files[0])
		}
		r.looked = append(r.looked, Place{f.where, why[i]})
	}
	return nil
}

// origin is who knows a digest as a lock has it: without places that change with every
// edit of the profile, or are of this machine.
func (r *resolver) origin(from string) string {
	switch {
	case strings.HasPrefix(from, fromProfile):
		return fromProfile
	case from == fromCatalogue:
		return from
	}
	return "checksum file " + filepath.Base(from)
}

func (r *resolver) path() string { return filepath.Join(r.dir, r.e.File) }

// digest finds it out and holds a file at hand to it.
func (r *resolver) digest(ctx context.Context) error {
	if !r.bundle && r.a.SHA256 != "" {
		r.e.SHA256, r.e.From = r.a.SHA256, r.origin(r.a.SHA256From)
	}
	if r.e.SHA256 == "" {
		if err := r.published(ctx); err != nil {
			return err
		}
	}
	if r.e.SHA256 == "" && r.dir != "" {
		if err := r.beside(); err != nil {
			return err
		}
	}
	if r.dir == "" {
		if r.e.SHA256 == "" {
			return r.unresolved("sha256")
		}
		return nil
	}
	got, size, err := r.hashes.of(ctx, r.path())
	if err != nil {
		return fmt.Errorf("measure %s: %w", r.path(), err)
	}
	r.e.Size = size
	if r.e.SHA256 == "" {
		r.e.SHA256, r.e.From = got, "measured "+r.e.File
	}
	if got != r.e.SHA256 {
		return &DigestError{File: r.path(), Got: got, Want: r.e.SHA256, From: r.wanted()}
	}
	return nil
}

// wanted is who knows the digest, with the profile's line.
func (r *resolver) wanted() string {
	if r.e.From == fromProfile {
		return r.a.SHA256From
	}
	return r.e.From
}

func (r *resolver) unresolved(what string) error {
	remedy := "put the file into a folder and give that with --artifacts"
	if r.s.Offline {
		remedy += ", or do it without --offline"
	}
	if what == "sha256" {
		remedy += fmt.Sprintf(", or set %s.sha256.%s in the profile", r.a.Component, r.a.Arch)
	}
	return &UnresolvedError{Title: r.e.Title(), What: what, File: r.e.File, Places: r.looked, Remedy: remedy, errs: r.errs}
}

// published takes the digest from upstream's checksum file, as the sources or upstream
// have it.
func (r *resolver) published(ctx context.Context) error {
	v, err := releases.ParseVersion(r.a.Version)
	if err != nil {
		return err
	}
	sums := releases.ChecksumURL(r.a.Component, r.a.Static, v, r.a.Arch)
	if sums == "" {
		r.looked = append(r.looked, Place{"upstream", "it publishes no such file for linux/" + r.a.Arch})
		return nil
	}
	name := path.Base(sums)
	asked := r.a
	asked.Files, asked.URL = []string{name}, sums
	remotes, err := r.s.remotes(asked, func(template string) bool { return strings.Contains(template, "{file}") })
	if err != nil {
		return err
	}
	if r.s.Offline {
		r.forbidden(remotes)
		return nil
	}
	f := r.s.fetcher(nil)
	defer f.client.CloseIdleConnections()
	if r.dir != "" {
		// There is another way.
		f.attempts = min(f.attempts, 2)
	}
	for _, u := range remotes {
		where := u.where()
		data, err := f.text(host.For(ctx, "the sha256 of "+r.e.Title()), u.url)
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			r.missed(where, err)
			continue
		}
		digest, err := r.read(where, name, data, r.a.Component != releases.Runc)
		if err != nil {
			return err
		}
		if digest == "" {
			r.missed(where, fmt.Errorf("it has no sha256 of %s", r.e.File))
			continue
		}
		r.e.SHA256, r.e.From = digest, where
		return nil
	}
	if r.dir != "" {
		r.note("upstream's checksum file is not to be had, the file at hand decides: %s: %s", r.looked[len(r.looked)-1].Where, r.looked[len(r.looked)-1].Why)
	}
	return nil
}

// beside takes the digest from a checksum file beside the file at hand.
func (r *resolver) beside() error {
	for _, c := range checksumFiles(r.e.File) {
		name := filepath.Join(r.dir, c.name)
		data, err := readAtMost(name, maxChecksums)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		digest, err := r.read(name, c.name, data, c.bare)
		if err != nil {
			return err
		}
		if digest != "" {
			r.e.SHA256, r.e.From = digest, r.origin(name)
			return nil
		}
	}
	return nil
}

// read finds the file's digest in a checksum file, whose signature, where it has one, must
// be good; that of an unknown key says nothing.
func (r *resolver) read(where, name string, data []byte, bare bool) (string, error) {
	var signature *Signature
	if isClearSigned(data) && r.a.Component == releases.Runc && r.opt.Keyring != nil {
		text, s, err := r.opt.Keyring.ClearSigned(where, data)
		if _, unknown := errors.AsType[*UnknownKeyError](err); unknown {
			r.note("%v", err)
		} else if err != nil {
			return "", err
		} else {
			s.File = name
		}
		data, signature = text, s
	}
	digest, err := readChecksums(strings.NewReader(string(data)), r.e.File, bare)
	if err != nil {
		return "", fmt.Errorf("read %s: %w", where, err)
	}
	if digest != "" {
		r.e.Signature = signature
	}
	return digest, nil
}

// size finds the size out and says where on this machine the file is, "" where it is not.
func (r *resolver) size(ctx context.Context, old *Locked) (string, error) {
	if r.dir != "" {
		return r.path(), nil
	}
	if old != nil && old.Size > 0 {
		r.e.Size = old.Size
		return "", nil
	}
	a := r.a
	a.Files, a.SHA256, a.SHA256From, a.Size = a.Files[:1], r.e.SHA256, r.e.From, 0
	l := Located{Artifact: a, File: a.Files[0], SHA256: a.SHA256, SHA256From: a.SHA256From}
	if found, err := r.s.inCache(ctx, &l); err != nil || found {
		r.e.Size = l.Size
		return l.Path, err
	}
	var err error
	if l.remotes, err = r.s.remotes(a, nil); err != nil {
		return "", err
	}
	if r.s.Offline {
		r.forbidden(l.remotes)
		return "", r.unresolved("size")
	}
	if len(l.remotes) == 0 {
		return "", r.unresolved("size")
	}
	f := r.s.fetcher(nil)
	defer f.client.CloseIdleConnections()
	f.attempts = min(f.attempts, 2) // the fetch below insists
	for _, u := range l.remotes {
		n, err := f.length(host.For(ctx, "the size of "+r.e.Title()), u.url)
		if ctx.Err() != nil {
			return "", context.Cause(ctx)
		}
		if err == nil && n > 0 {
			r.e.Size = n
			return "", nil
		}
	}
	// Some servers tell no length before they send.
	l, err = r.s.Fetch(ctx, l, nil)
	if missing, ok := errors.AsType[*NotFoundError](err); ok {
		r.looked, r.errs = append(r.looked, missing.Places...), append(r.errs, missing.errs...)
		return "", r.unresolved("size")
	}
	if err != nil {
		return "", err
	}
	r.e.Size = l.Size
	return l.Path, nil
}

// signed verifies runc's detached signature where it is at hand, with the file that it is
// of; what an earlier lock knows of the same file stays true.
func (r *resolver) signed(file string, old *Locked) error {
	if r.a.Component == releases.Runc && !r.bundle && r.opt.Keyring != nil {
		done, err := r.detached(file)
		if err != nil || done {
			return err
		}
	}
	if r.e.Signature == nil && old != nil {
		r.e.Signature = old.Signature
	}
	return nil
}

func (r *resolver) detached(file string) (done bool, err error) {
	name := r.e.File + ".asc"
	for _, f := range r.folders() {
		at := filepath.Join(f.dir, name)
		signature, err := readAtMost(at, maxSignature)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return false, err
		}
		if file == "" {
			r.note("%s is not verified: %s itself is not at hand", at, r.e.File)
			return false, nil
		}
		in, err := os.Open(file)
		if err != nil {
			return false, err
		}
		s, err := r.opt.Keyring.Detached(at, signature, file, in)
		in.Close()
		if _, unknown := errors.AsType[*UnknownKeyError](err); unknown {
			r.note("%v", err)
			return false, nil
		}
		if err != nil {
			return false, err
		}
		s.File = name
		r.e.Signature = s
		return true, nil
	}
	return false, nil
}

// openFile opens a regular file; a pipe under its name would wait for nobody.
func openFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err == nil && !fi.Mode().IsRegular() {
		err = &fs.PathError{Op: "read", Path: name, Err: errors.New("not a regular file")}
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// readAtMost reads a whole small file.
func readAtMost(name string, most int64) ([]byte, error) {
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, most+1))
	if err == nil && int64(len(data)) > most {
		err = fmt.Errorf("read %s: larger than %d bytes", name, most)
	}
	return data, err
}

// text fetches a small text file.
func (f *fetcher) text(ctx context.Context, u *url.URL) ([]byte, error) {
	var data []byte
	err := f.again(ctx, func() (bool, error) {
		resp, err := f.ask(ctx, http.MethodGet, u)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		data, err = io.ReadAll(io.LimitReader(resp.Body, maxChecksums+1))
		if err == nil && len(data) > maxChecksums {
			err = &sizeError{maxChecksums}
		}
		return false, err
	})
	return data, err
}

// length asks for a file's length, 0 where the server does not say.
func (f *fetcher) length(ctx context.Context, u *url.URL) (int64, error) {
	var n int64
	err := f.again(ctx, func() (bool, error) {
		resp, err := f.ask(ctx, http.MethodHead, u)
		if err != nil {
			return false, err
		}
		defer resp.Body.Close()
		// A page is what portals answer with that stand in the way.
		if resp.StatusCode == http.StatusOK && !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/html") {
			n = resp.ContentLength
		}
		return false, nil
	})
	return n, err
}

func (f *fetcher) ask(ctx context.Context, method string, u *url.URL) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, u.String(), nil)
	if err != nil {
		return nil, errors.New("the address is none") // not said which: it may hold a password
	}
	resp, err := f.client.Do(req)
	if ue, ok := errors.AsType[*url.Error](err); ok {
		// It repeats the address, with secrets of its query.
		err = ue.Err
	}
	return resp, err
}
