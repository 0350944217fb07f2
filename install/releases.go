package install

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
)

// Releases are the Artifacts of a release.Store.
type Releases struct {
	Store *release.Store
	// Root and LibC are what programs are held against before they are installed.
	Root *host.Root
	LibC host.LibC
}

// Obtain finds the file and, if it is not on this machine, fetches it into the cache.
func (s Releases) Obtain(ctx context.Context, a desired.Artifact, progress func(done, total int64)) (*Archive, error) {
	l, err := s.Store.Locate(ctx, a)
	if err != nil {
		return nil, err
	}
	if l, err = s.Store.Fetch(ctx, l, progress); err != nil {
		return nil, err
	}
	packed, unpacked, err := release.Sizes(l)
	if err != nil {
		return nil, err
	}
	return &Archive{
		File: l.File, SHA256: l.SHA256, SHA256From: l.SHA256From, Packed: packed, Unpacked: unpacked,
		Unpack: func(ctx context.Context, create func(desired.Member, fs.FileMode) (io.WriteCloser, error)) error {
			_, err := release.UnpackFile(ctx, l, release.SinkFunc(create))
			return err
		},
		Check: check(s.Root, s.LibC, a),
	}, nil
}

// Bundled are the Artifacts of a bundle's part for one architecture. A bundle has only what is
// installed of a release, unpacked: it is held to what the profile or a lock says of the
// archive that upstream publishes, which is also what a receipt says of it.
type Bundled struct {
	Node *bundle.Node
	// Name is the bundle's, for messages.
	Name string
	// Root and LibC are what programs are held against before they are installed.
	Root *host.Root
	LibC host.LibC
}

// Obtain finds a release in the bundle; its bytes are read when it is unpacked.
func (b Bundled) Obtain(_ context.Context, a desired.Artifact, _ func(done, total int64)) (*Archive, error) {
	c, same := b.Node.Release(a)
	switch {
	case c == nil:
		return nil, fmt.Errorf("install %s: not in %s, which has %s for %s%s", a.Title(), b.Name, b.has(), b.Node.Config.Architecture, wantedBy(a.Origin))
	case !same:
		return nil, &release.DigestError{File: b.Name + ": " + c.File, Got: c.SHA256, Want: a.SHA256, From: a.SHA256From}
	}
	unpacked := int64(0)
	for _, m := range a.Members {
		for _, has := range c.Members {
			if "/"+has.Path == m.Path {
				unpacked += has.Size
			}
		}
	}
	return &Archive{
		File: c.File, SHA256: c.SHA256, SHA256From: "bundle " + b.Name, Packed: b.Node.Size(c.Layer), Unpacked: unpacked,
		Unpack: func(ctx context.Context, create func(desired.Member, fs.FileMode) (io.WriteCloser, error)) error {
			_, err := b.Node.Unpack(ctx, c, a.Members, release.SinkFunc(create))
			return err
		},
		Check: check(b.Root, b.LibC, a),
	}, nil
}

// has lists the releases in the bundle.
func (b Bundled) has() string {
	var out []string
	for _, c := range b.Node.Config.Components {
		if c.Name != bundle.Program {
			out = append(out, c.Title())
		}
	}
	if len(out) == 0 {
		return "nothing"
	}
	return strings.Join(out, ", ")
}

func wantedBy(o diag.Origin) string {
	if o.String() == "" {
		return ""
	}
	return " (from " + o.String() + ")"
}

// check holds an unpacked program against a root.
func check(root *host.Root, libc host.LibC, a desired.Artifact) func(f io.ReaderAt, name string) (string, error) {
	return func(f io.ReaderAt, _ string) (string, error) {
		has := func(p string) bool { _, err := root.Stat(p); return err == nil }
		return release.CheckProgram(f, a.Component, a.Arch, libc, root.Live(), has)
	}
}
