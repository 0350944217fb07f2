package install

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
)

const (
	// StateDir is where nodeprep keeps what it must remember, mode 0700.
	StateDir = "/var/lib/nodeprep"
	// ReceiptPath is the receipt, mode 0600.
	ReceiptPath = StateDir + "/receipt.json"
	// CacheDir holds verified downloads, by digest and name.
	CacheDir = StateDir + "/cache"
	// receiptFormat grows when an older nodeprep could misread the file.
	receiptFormat = 1
)

// Kind is what a path, or an item of a plan, is.
type Kind string

const (
	KindFile     Kind = "file"
	KindLink     Kind = "link"
	KindDir      Kind = "dir"
	KindArtifact Kind = "artifact"
	KindUnit     Kind = "unit"
	KindModule   Kind = "module"
	KindSysctl   Kind = "sysctl"
	KindImage    Kind = "image"
)

// Receipt is what the last apply left on a host. It holds no secrets: of files that
// hold some it has a salted digest, since a short password could be guessed from a
// plain one.
type Receipt struct {
	Format int `json:"format"`
	// ID is that of the run which wrote the receipt.
	ID string `json:"id"`
	// Generation counts the states of the host; 0 is the one before nodeprep.
	Generation int       `json:"generation"`
	Nodeprep   string    `json:"nodeprep"`
	Time       time.Time `json:"time"`
	Arch       string    `json:"arch"`
	// Profiles are the names of the profile's layers, Profile is it flattened and
	// without secrets.
	Profiles []string        `json:"profiles,omitempty"`
	Profile  json.RawMessage `json:"profile,omitempty"`
	// UserData has the digests of the user-data that this was applied for, and of its bundle
	// where one was given; none where somebody applied it otherwise, or went back.
	UserData BootDigests `json:"userData,omitzero"`
	// Salt goes before the content into salted digests; hex.
	Salt      string      `json:"salt"`
	Owned     []Owned     `json:"owned"`
	Artifacts []Installed `json:"artifacts,omitempty"`
	Units     []string    `json:"units,omitempty"`
	Images    []Imported  `json:"images,omitempty"`
	// Modules has, for each module that was loaded by an alias, those which the kernel
	// shows in its place; none where that could not be told.
	Modules map[string][]string `json:"modules,omitempty"`
	// Daemon is what the running containerd was held to.
	Daemon desired.Daemon `json:"daemon"`
	// Generations is how many states are kept for rollback, Tops where beside StateDir.
	Generations int      `json:"generations"`
	Tops        []string `json:"tops,omitempty"`
}

// Owned is one path that is ours, as it was written.
type Owned struct {
	Path string `json:"path"`
	Kind Kind   `json:"kind"`
	// SHA256 is of a file's content, lower-case hex; with Salted, of the receipt's
	// salt followed by the content.
	SHA256 string `json:"sha256,omitempty"`
	Salted bool   `json:"salted,omitempty"`
	Size   int64  `json:"size,omitempty"`
	// Mode are the permission bits.
	Mode fs.FileMode `json:"mode"`
	UID  uint32      `json:"uid"`
	GID  uint32      `json:"gid"`
	// MTime (nanoseconds since 1970) and Inode tell a file that was not touched
	// without reading it; where they differ, the digest decides.
	MTime int64  `json:"mtime,omitempty"`
	Inode uint64 `json:"inode,omitempty"`
	// Target is where a link points.
	Target string `json:"target,omitempty"`
	// First marks nodeprep's own files, which no rollback touches. Source is, for its
	// program, the file that it was copied from.
	First  bool    `json:"first,omitempty"`
	Source *Source `json:"source,omitempty"`
	// Component is the release that a file was unpacked from.
	Component string         `json:"component,omitempty"`
	Format    desired.Format `json:"format,omitempty"`
	Effect    desired.Effect `json:"effect,omitempty"`
	Unit      string         `json:"unit,omitempty"`
	Origin    diag.Origin    `json:"origin,omitzero"`
	// Before is what was there and was taken over; nil when nothing was.
	Before *Kept `json:"before,omitempty"`
}

// Source tells a file apart that was copied, without reading it again.
type Source struct {
	Size  int64  `json:"size"`
	MTime int64  `json:"mtime"` // nanoseconds since 1970
	Inode uint64 `json:"inode"`
}

// Kept is something that stood in the way and was put aside.
type Kept struct {
	Kind Kind `json:"kind"`
	// Path is where it is now, as on the node; "" for a link, which is its Target.
	Path   string      `json:"path,omitempty"`
	Target string      `json:"target,omitempty"`
	Size   int64       `json:"size,omitempty"`
	Mode   fs.FileMode `json:"mode,omitempty"`
	UID    uint32      `json:"uid"`
	GID    uint32      `json:"gid"`
	MTime  int64       `json:"mtime,omitempty"`
	// Copied is true where Path is a copy, not the same inode.
	Copied bool `json:"copied,omitempty"`
}

// Installed is one release as it was unpacked.
type Installed struct {
	Component string `json:"component"`
	Version   string `json:"version"`
	Arch      string `json:"arch"`
	Static    bool   `json:"static,omitempty"`
	// File is the archive's name and SHA256 its digest; Wanted is the digest that
	// the profile asked for when another archive, an older bundle, was used.
	File       string `json:"file"`
	SHA256     string `json:"sha256"`
	Wanted     string `json:"wanted,omitempty"`
	SHA256From string `json:"sha256From,omitempty"`
	// Time is when the first release of this one's minor was installed.
	Time time.Time `json:"time,omitzero"`
	// Files are the paths that came from it.
	Files []string `json:"files"`
}

// Imported is an image archive that was imported or, under a root that is not
// running, waits for the first boot.
type Imported struct {
	File    string   `json:"file"`
	SHA256  string   `json:"sha256,omitempty"`
	Size    int64    `json:"size"`
	MTime   int64    `json:"mtime"`
	Pin     bool     `json:"pin,omitempty"`
	Pending bool     `json:"pending,omitempty"`
	Names   []string `json:"names,omitempty"`
}

// ReadReceipt returns the root's receipt, nil when there is none. A receipt of a
// newer nodeprep is refused with the version that wrote it.
func ReadReceipt(root *host.Root) (*Receipt, error) {
	data, err := readOwn(root, ReceiptPath)
	if isAbsent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read receipt: %w", err)
	}
	var head struct {
		Format   int    `json:"format"`
		Nodeprep string `json:"nodeprep"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return nil, fmt.Errorf("read receipt %s: %w", ReceiptPath, err)
	}
	if head.Format > receiptFormat {
		return nil, fmt.Errorf("read receipt %s: it has format %d, written by nodeprep %s, and this one knows up to %d; use nodeprep %s or newer",
			ReceiptPath, head.Format, head.Nodeprep, receiptFormat, head.Nodeprep)
	}
	r := new(Receipt)
	if err := json.Unmarshal(data, r); err != nil {
		return nil, fmt.Errorf("read receipt %s: %w", ReceiptPath, err)
	}
	if err := r.check(); err != nil {
		return nil, fmt.Errorf("read receipt %s: %w", ReceiptPath, err)
	}
	return r, nil
}

// check refuses paths that no nodeprep wrote: a receipt comes with the root, which may
// be somebody else's image.
func (r *Receipt) check() error {
	var faults []error
	for i := range r.Owned {
		own := &r.Owned[i]
		faults = append(faults, checkPath(own.Path), own.Before.check())
	}
	for _, p := range r.Tops {
		if faults = append(faults, checkPath(p)); path.Base(p) != keptDir {
			faults = append(faults, fmt.Errorf("%s is not where nodeprep keeps what it puts aside", p))
		}
	}
	return errors.Join(faults...)
}

func (k *Kept) check() error {
	if k == nil || k.Kind == KindLink && k.Path == "" {
		return nil
	}
	return checkPath(k.Path)
}

func checkPath(p string) error {
	if p != path.Clean(p) || !path.IsAbs(p) || p == "/" {
		return fmt.Errorf("%q is not a clean absolute path; nodeprep did not write that", p)
	}
	return nil
}

// encode is the receipt's file.
func (r *Receipt) encode() ([]byte, error) {
	slices.SortFunc(r.Owned, func(a, b Owned) int { return strings.Compare(a.Path, b.Path) })
	data, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, fmt.Errorf("encode receipt: %w", err)
	}
	return append(data, '\n'), nil
}

// Find returns the entry of a path, nil when it is not ours. A nil receipt owns nothing.
func (r *Receipt) Find(p string) *Owned {
	if r == nil {
		return nil
	}
	if i := slices.IndexFunc(r.Owned, func(o Owned) bool { return o.Path == p }); i >= 0 {
		return &r.Owned[i]
	}
	return nil
}

// installed returns the entry of a component, nil when there is none.
func (r *Receipt) installed(component string) *Installed {
	if r == nil {
		return nil
	}
	if i := slices.IndexFunc(r.Artifacts, func(a Installed) bool { return a.Component == component }); i >= 0 {
		return &r.Artifacts[i]
	}
	return nil
}

func (r *Receipt) generation() int {
	if r == nil {
		return 0
	}
	return r.Generation
}

func (r *Receipt) id() string {
	if r == nil {
		return ""
	}
	return r.ID
}

// newHash starts a digest, salted or plain.
func newHash(salt string, salted bool) hash.Hash {
	h := sha256.New()
	if salted {
		io.WriteString(h, salt)
	}
	return h
}

// digest is the digest of content as an entry records it.
func digest(salt string, salted bool, content []byte) string {
	h := newHash(salt, salted)
	h.Write(content)
	return hex.EncodeToString(h.Sum(nil))
}

// digestFile is digest for a file's content. It refuses anything but a regular
// file: a fifo would hang it.
func digestFile(real, salt string, salted bool) (string, error) {
	f, size, err := openRegular(real)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := newHash(salt, salted)
	if _, err := io.Copy(h, io.LimitReader(f, size)); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// drift is how a path differs from what the receipt says of it.
type drift int

const (
	asWritten drift = iota
	missing
	modeChanged // content as written, permissions or owner not
	edited
)

// compare looks whether the path is still as the receipt has it. fi is what lstat
// says of it, nil for nothing; deep reads a file even where its times say that
// nothing touched it. what is a phrase for people.
func (r *Receipt) compare(real string, fi fs.FileInfo, own *Owned, deep bool) (d drift, what string, err error) {
	if fi == nil {
		return missing, "is missing", nil
	}
	st := fi.Sys().(*syscall.Stat_t)
	switch own.Kind {
	case KindDir:
		if !fi.IsDir() {
			return edited, "is no longer a directory", nil
		}
		return asWritten, "", nil
	case KindLink:
		if fi.Mode().Type() != fs.ModeSymlink {
			return edited, "is no longer a link", nil
		}
		target, err := os.Readlink(real)
		if err != nil {
			return edited, "", err
		}
		if target != own.Target {
			return edited, fmt.Sprintf("points to %s, not to %s", target, own.Target), nil
		}
		return asWritten, "", nil
	}
	if !fi.Mode().IsRegular() {
		return edited, "is " + typeName(fi.Mode()) + " now", nil
	}
	if fi.Size() != own.Size {
		return edited, fmt.Sprintf("has %d bytes, %d were written", fi.Size(), own.Size), nil
	}
	if deep || st.Ino != own.Inode || fi.ModTime().UnixNano() != own.MTime {
		sum, err := digestFile(real, r.Salt, own.Salted)
		if err != nil {
			return edited, "", err
		}
		if sum != own.SHA256 {
			return edited, "has other content than was written", nil
		}
	}
	switch {
	case permissions(fi.Mode()) != own.Mode:
		return modeChanged, fmt.Sprintf("has mode %04o, not %04o", octal(permissions(fi.Mode())), octal(own.Mode)), nil
	case st.Uid != own.UID || st.Gid != own.GID:
		return modeChanged, fmt.Sprintf("belongs to %d:%d, not %d:%d", st.Uid, st.Gid, own.UID, own.GID), nil
	}
	return asWritten, "", nil
}

// permissions keeps what chmod(2) sets.
func permissions(m fs.FileMode) fs.FileMode {
	return m & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky)
}

// octal is a mode as chmod(1) takes it.
func octal(m fs.FileMode) uint32 {
	n := uint32(m.Perm())
	for bit, v := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&bit != 0 {
			n |= v
		}
	}
	return n
}

func typeName(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "a file"
	case fs.ModeDir:
		return "a directory"
	case fs.ModeSymlink:
		return "a symbolic link"
	case fs.ModeNamedPipe:
		return "a named pipe"
	case fs.ModeSocket:
		return "a socket"
	}
	return "a device"
}

// parents lists the directories above p, outermost first, without the root.
func parents(p string) []string {
	var out []string
	for d := path.Dir(p); d != "/" && d != "."; d = path.Dir(d) {
		out = append(out, d)
	}
	slices.Reverse(out)
	return out
}
