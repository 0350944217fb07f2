package install

import (
	"context"
	"io"
	"io/fs"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
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
		Check: func(f io.ReaderAt, _ string) (string, error) {
			has := func(p string) bool { _, err := s.Root.Stat(p); return err == nil }
			return release.CheckProgram(f, a.Component, a.Arch, s.LibC, s.Root.Live(), has)
		},
	}, nil
}
