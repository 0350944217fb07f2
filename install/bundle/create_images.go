package bundle

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
	"github.com/nodeprep/nodeprep/profiles"
)

// lookedAt is an image archive of the profile that was looked into.
type lookedAt struct {
	file profiles.PortableFile
	has  *imagearchive.Archive
	size int64
	err  error
}

// inspect looks into all image archives of a profile, side by side, and says what keeps
// them from being what nodes of these architectures need. The error is the context's.
func inspect(ctx context.Context, portable *profiles.Portable, arches []string) (map[string]*lookedAt, diag.List, error) {
	var all []*lookedAt
	for _, f := range portable.Files {
		if f.Image && f.Pulled == "" {
			all = append(all, &lookedAt{file: f})
		}
	}
	var g errgroup.Group
	g.SetLimit(sideBySide)
	for _, l := range all {
		g.Go(func() error {
			l.err = l.look(ctx)
			return nil
		})
	}
	_ = g.Wait() // the faults are kept
	if ctx.Err() != nil {
		return nil, nil, context.Cause(ctx)
	}
	var list diag.List
	by := map[string]*lookedAt{}
	for _, l := range all {
		by[l.file.Name] = l
		if l.err != nil {
			list.Errorf(l.file.From.Origin, "", "cannot use %s: %v", l.file.From.Given, l.err)
		}
	}
	for _, l := range all {
		if l.err == nil {
			l.judge(all, arches, &list)
		}
	}
	return by, list, nil
}

func (l *lookedAt) look(ctx context.Context) error {
	fi, err := os.Stat(l.file.From.Path)
	if err != nil {
		return err
	}
	if !fi.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", l.file.From.Path)
	}
	f, err := os.Open(l.file.From.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	l.size = fi.Size()
	l.has, err = imagearchive.Inspect(ctx, f)
	return err
}

// judge says for which architectures the archive's images are not to be had, neither here
// nor in another archive.
func (l *lookedAt) judge(all []*lookedAt, arches []string, list *diag.List) {
	at, given := l.file.From.Origin, l.file.From.Given
	const hint = "take an archive for several platforms, or make a bundle for each architecture"
	offered := func(name, arch string) bool {
		return slices.ContainsFunc(all, func(o *lookedAt) bool { return slices.Contains(o.names(arch), name) })
	}
	for _, arch := range arches {
		var lacking []string
		for _, img := range l.has.Images {
			for _, name := range img.Names {
				if !offered(name, arch) && !slices.Contains(lacking, name) {
					lacking = append(lacking, name)
				}
			}
		}
		err := l.has.Usable(platformOS + "/" + arch)
		switch {
		case err != nil && (len(lacking) > 0 || len(l.has.Names()) == 0):
			list.Errorf(at, hint, "cannot use %s: %v", given, err)
		case len(lacking) > 0:
			list.Errorf(at, hint, "%s has no %s for %s/%s", given, strings.Join(lacking, ", "), platformOS, arch)
		}
	}
}

// fits says whether nodes of an architecture have a use for the archive.
func (l *lookedAt) fits(arch string) bool {
	return l.err == nil && l.has.Usable(platformOS+"/"+arch) == nil
}

// names are those of the images that a node of an architecture gets from the archive.
func (l *lookedAt) names(arch string) []string {
	var out []string
	if !l.fits(arch) {
		return nil
	}
	for _, img := range l.has.Images {
		if _, ok := img.For(platformOS + "/" + arch); ok {
			out = append(out, img.Names...)
		}
	}
	return out
}

// archive is the archive, to be packed.
func (l *lookedAt) archive(f profiles.PortableFile) *ImageArchive {
	return &ImageArchive{File: f.Name, Names: l.has.Names(), Size: l.size, Open: func() (io.ReadCloser, error) { return os.Open(f.From.Path) }}
}

// fullName is an image's name as containerd keeps it, or what is no name as it is.
func fullName(name string) string {
	if full, err := imagearchive.FullName(name); err == nil {
		return full
	}
	return name
}
