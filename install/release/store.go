package release

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// Store knows the places where release files may be. Its methods may be called from
// several goroutines; its fields must not change meanwhile.
type Store struct {
	// Dirs are the folders given with --artifacts; files in them are used in place.
	Dirs []string
	// CacheDir keeps what was fetched; it is made when needed, 0700.
	CacheDir string
	// Sources are the profile's, tried before upstream.
	Sources []desired.Source
	// Offline makes the first use of the network an error, which says what else to do.
	Offline bool
	// Network is what may be reached; nil means everything.
	Network *host.Network
	// MaxBytes is the most that is fetched for one file; 0 means 512 MiB.
	MaxBytes int64
	// StallTimeout is how long a server may send nothing; 0 means 30 s.
	StallTimeout time.Duration

	// Set by tests; zero values mean the network, five attempts and 500 ms.
	transport http.RoundTripper
	attempts  int
	firstWait time.Duration
}

// Located is a release file that was found, or where it can be fetched.
type Located struct {
	Artifact desired.Artifact
	// File is its name: the wanted one, or that of an older bundle.
	File string
	// Path is where it lies on this machine; "" if it must be fetched.
	Path string
	// URL is where it is fetched from first, without secrets; "" for a local file.
	URL string
	// Place says which place knew it: "--artifacts DIR", "cache", "source ...", "upstream".
	Place string
	// Size is its size in bytes; 0 where unknown.
	Size int64
	// SHA256 is the digest it must have, and SHA256From who says so.
	SHA256     string
	SHA256From string

	bundle  bool
	layer   *Layer // what the file is, if that is known; else nil
	remotes []remote
	looked  []Place
}

// remote is an address to be tried: a "source" or "upstream".
type remote struct {
	kind string
	url  *url.URL
}

// where is how messages call it.
func (r remote) where() string { return r.kind + " " + mask(r.url) }

// Locate finds a release file without using the network. The order is: --artifacts
// folders, cache, folders of the profile's sources, their addresses, upstream; in
// folders of one kind the wanted name comes before older bundles. The digest is the
// artifact's; only where that is unknown, a checksum file beside a local file decides.
//
// Errors: *NotFoundError, *NoDigestError, *SizeError, and those of reading local files.
func (s *Store) Locate(ctx context.Context, a desired.Artifact) (Located, error) {
	l := Located{Artifact: a, File: a.Files[0], SHA256: a.SHA256, SHA256From: a.SHA256From}
	var given, sources []folder
	for _, d := range s.Dirs {
		given = append(given, folder{d, "--artifacts " + d})
	}
	for _, src := range s.Sources {
		if src.Dir != "" {
			sources = append(sources, folder{src.Dir, "source " + src.Dir})
		}
	}
	var err error
	if l.remotes, err = s.remotes(a, nil); err != nil {
		return l, err
	}
	for _, look := range []func() (bool, error){
		func() (bool, error) { return l.inFolders(given) },
		func() (bool, error) { return s.inCache(ctx, &l) },
		func() (bool, error) { return l.inFolders(sources) },
	} {
		if found, err := look(); err != nil || found {
			return l, err
		}
		if err := ctx.Err(); err != nil {
			return l, err
		}
	}
	if len(l.remotes) == 0 {
		return l, &NotFoundError{Title: a.Title(), File: l.File, Places: l.looked}
	}
	l.URL, l.Place = mask(l.remotes[0].url), l.remotes[0].kind
	if l.SHA256 == "" {
		return l, noDigest(l)
	}
	return l, nil
}

// remotes are the addresses of an artifact's file: the sources' whose template is
// suitable, then upstream's. A nil suitable means all.
func (s *Store) remotes(a desired.Artifact, suitable func(template string) bool) ([]remote, error) {
	var out []remote
	for _, src := range s.Sources {
		if src.Dir != "" || suitable != nil && !suitable(src.URL) {
			continue
		}
		u, err := expand(src.URL, a)
		if err != nil {
			return nil, fmt.Errorf("read source URL of %s: %w", src.Origin, err)
		}
		out = append(out, remote{"source", u})
	}
	if a.URL != "" {
		u, err := url.Parse(a.URL)
		if err != nil {
			return nil, fmt.Errorf("read upstream's URL: %w", err)
		}
		out = append(out, remote{"upstream", u})
	}
	return out, nil
}

// folder is a local folder and its name in messages.
type folder struct{ dir, where string }

func (l *Located) note(where, why string) { l.looked = append(l.looked, Place{where, why}) }

// inFolders looks for the wanted file in all folders, then for bundles.
func (l *Located) inFolders(folders []folder) (bool, error) {
	listed, why := listFolders(folders)
	for rank, pattern := range l.Artifact.Files {
		for i, f := range folders {
			found, err := l.take(f, listed[i], pattern, rank > 0, &why[i])
			if err != nil || found {
				return found, err
			}
		}
	}
	for i, f := range folders {
		l.note(f.where, cmp.Or(why[i], "no such file"+similar(listed[i], l.Artifact.Files[0])))
	}
	return false, nil
}

// listFolders are the names in folders, and why there are none.
func listFolders(folders []folder) (listed [][]string, why []string) {
	listed, why = make([][]string, len(folders)), make([]string, len(folders))
	for i, f := range folders {
		entries, err := os.ReadDir(f.dir)
		if err != nil {
			why[i] = because(err)
		}
		for _, e := range entries {
			listed[i] = append(listed[i], e.Name())
		}
	}
	return listed, why
}

// take uses a folder's file that matches a pattern, if there is exactly one; why not
// goes to why.
func (l *Located) take(f folder, names []string, pattern string, bundle bool, why *string) (bool, error) {
	var match []string
	for _, n := range names {
		if ok, err := path.Match(pattern, n); err == nil && ok {
			match = append(match, n)
		}
	}
	if len(match) == 0 {
		return false, nil
	}
	if len(match) > 1 {
		*why = fmt.Sprintf("no such file, and of %s only one may be there", strings.Join(match, ", "))
		return false, nil
	}
	file := filepath.Join(f.dir, match[0])
	fi, err := os.Stat(file)
	if err != nil {
		return false, err
	}
	if !fi.Mode().IsRegular() {
		return false, fmt.Errorf("open %s: not a regular file", file)
	}
	digest, from := l.SHA256, l.SHA256From
	if bundle && !strings.HasPrefix(from, fromProfile) {
		// The catalogue and a lock know the wanted file, not the bundle.
		digest = ""
	}
	if digest == "" {
		if digest, from, err = checksumBeside(f.dir, match[0]); err != nil {
			return false, err
		}
	}
	if digest == "" {
		if bundle {
			*why = fmt.Sprintf("no such file, and %s has no checksum file beside it (sha256sum %s > %s.sha256sum makes one)", match[0], match[0], match[0])
			return false, nil
		}
		return false, &NoDigestError{Title: l.Artifact.Title(), File: file, Folder: f.dir, Component: l.Artifact.Component, Arch: l.Artifact.Arch}
	}
	l.File, l.Path, l.Place, l.Size, l.bundle = match[0], file, f.where, fi.Size(), bundle || isBundle(match[0])
	l.SHA256, l.SHA256From = digest, from
	return true, l.sized(fi.Size())
}

// inCache looks for what an earlier run fetched. A file there is hashed, so that a
// damaged one is fetched again instead of failing later.
func (s *Store) inCache(ctx context.Context, l *Located) (bool, error) {
	if s.CacheDir == "" || l.SHA256 == "" {
		return false, nil
	}
	file := s.cached(*l)
	where := "cache " + s.CacheDir
	got, size, err := hashFile(ctx, file)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		l.note(where, "no such file")
		return false, nil
	case err != nil && ctx.Err() != nil:
		return false, err
	case err != nil:
		l.note(where, because(err))
		return false, nil
	case got != l.SHA256:
		l.note(where, "damaged: its sha256 is "+got)
		return false, nil
	}
	l.Path, l.Place, l.Size, l.bundle = file, "cache", size, isBundle(l.File)
	return true, l.sized(size)
}

// sized holds a file at hand to the size that a lock has for it: a file that is cut short
// is found before anything of it is unpacked.
func (l *Located) sized(size int64) error {
	if want := l.Artifact.Size; want > 0 && size != want {
		return &SizeError{File: l.Path, Got: size, Want: want, From: l.Artifact.SHA256From}
	}
	return nil
}

// cached is the name in the cache; runc's file names have no version, so the digest
// is part of it.
func (s *Store) cached(l Located) string {
	return filepath.Join(s.CacheDir, l.SHA256+"-"+l.File)
}

func hashFile(ctx context.Context, file string) (digest string, size int64, err error) {
	f, err := os.Open(file)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	buf := make([]byte, 128<<10)
	for ctx.Err() == nil {
		n, err := f.Read(buf)
		h.Write(buf[:n])
		size += int64(n)
		if err == io.EOF {
			return hex.EncodeToString(h.Sum(nil)), size, nil
		}
		if err != nil {
			return "", 0, err
		}
	}
	return "", 0, ctx.Err()
}

// expand fills a source's template: {component}, {version}, {arch} and {file}.
func expand(template string, a desired.Artifact) (*url.URL, error) {
	u, err := url.Parse(strings.NewReplacer("{component}", a.Component, "{version}", a.Version, "{arch}", a.Arch, "{file}", a.Files[0]).Replace(template))
	if err != nil {
		// The error of url.Parse repeats the text, which may hold a password.
		return nil, errors.New("it cannot be parsed")
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, errors.New("want an address with http:// or https:// and a host")
	}
	// go-getter takes "//" in a path for the mark of a folder within an archive.
	for strings.Contains(u.Path, "//") {
		u.Path, u.RawPath = strings.ReplaceAll(u.Path, "//", "/"), ""
	}
	return u, nil
}

// mask is an address without its password and query, where tokens are.
func mask(u *url.URL) string {
	shown := *u
	if shown.User != nil {
		shown.User = url.User("xxxxx")
	}
	if shown.RawQuery != "" {
		shown.RawQuery = "xxxxx"
	}
	return shown.String()
}

// Shown is an address as messages and files may have it: without a password, and without its
// query, which may hold a signature. What is no address is not shown.
func Shown(address string) string {
	u, err := url.Parse(address)
	if err != nil {
		return "an address that cannot be parsed"
	}
	return mask(u)
}

// similar lists files that may have been meant, for "no such file".
func similar(names []string, want string) string {
	stem := strings.TrimRight(want[:strings.IndexAny(want+"0", "0123456789.")], "-v")
	var near []string
	for _, n := range names {
		if strings.HasPrefix(n, stem) && !strings.Contains(n, ".sha256") && n != want {
			near = append(near, n)
		}
	}
	if len(near) == 0 {
		return ""
	}
	if len(near) > 3 {
		near = append(near[:3], "...")
	}
	return " (it has " + strings.Join(near, ", ") + ")"
}

// because is an error without the path, which stands before it.
func because(err error) string {
	if p, ok := errors.AsType[*fs.PathError](err); ok {
		return p.Err.Error()
	}
	return err.Error()
}

// noDigest is the error for a file that would have to be fetched.
func noDigest(l Located) error {
	a := l.Artifact
	e := &NoDigestError{Title: a.Title(), File: l.URL, Component: a.Component, Arch: a.Arch}
	if v, err := releases.ParseVersion(a.Version); err == nil {
		e.Published = releases.ChecksumURL(a.Component, a.Static, v, a.Arch)
	}
	return e
}
