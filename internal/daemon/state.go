package daemon

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// Deprecation is something that the daemon was made to use and that a later release drops.
type Deprecation struct {
	ID      string // e.g. io.containerd.deprecation/cri-registry-configs
	Message string // the daemon's own words
	// Last is when it was used last.
	Last time.Time
}

// Deprecations are the daemon's own warnings since it was started (containerd
// docs/deprecations, introspection API; from 1.6.27 and 1.7.12 on: older ones give none).
func (d *Client) Deprecations(ctx context.Context) ([]Deprecation, error) {
	r, err := d.c.IntrospectionService().Server(ctx)
	if err != nil {
		return nil, fmt.Errorf("ask containerd for its deprecation warnings: %w", plain(err))
	}
	var out []Deprecation
	for _, w := range r.Deprecations {
		out = append(out, Deprecation{ID: w.ID, Message: w.Message, Last: w.LastOccurrence.AsTime()})
	}
	return out, nil
}

// Namespaces lists the daemon's namespaces, sorted.
func (d *Client) Namespaces(ctx context.Context) ([]string, error) {
	all, err := d.c.NamespaceService().List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containerd's namespaces: %w", plain(err))
	}
	slices.Sort(all)
	return all, nil
}

// ImageState is an image and what the daemon has of it for one platform.
type ImageState struct {
	Image
	// Artifact holds for what is no container image, such as a Helm chart.
	Artifact bool
	// Complete says that it can run: all its content is there or, where layers were
	// dropped after that, it is unpacked.
	Complete bool
	// Platforms are those that it has a manifest for, e.g. linux/arm64.
	Platforms []string
	// Missing are the digests of what lacks for the platform.
	Missing []string
	// InUse says that a container was made of it.
	InUse bool
	// Unlooked says that it is one too many: nothing but its name and digest is known.
	Unlooked bool
}

// mostStates bounds how many images are looked at where no names are given.
const mostStates = 200

// stateWorkers is how many images are looked at side by side.
const stateWorkers = 8

// ImageStates looks at the images of a namespace ("" is k8s.io), or at those of the names
// alone, and says what the daemon has of them for a platform ("" is this program's own)
// and a snapshotter, or any other that it was unpacked for. They are sorted by name. Without
// names, more than 200 images are not looked at (ImageState.Unlooked).
func (d *Client) ImageStates(ctx context.Context, namespace, platform, snapshotter string, names ...string) ([]ImageState, error) {
	if namespace == "" {
		namespace = "k8s.io"
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	spec := platforms.DefaultSpec()
	var err error
	if platform != "" {
		if spec, err = platforms.Parse(platform); err != nil {
			return nil, fmt.Errorf("look at images: %w", err)
		}
	}
	var filters []string
	for _, name := range names {
		filters = append(filters, "name=="+strconv.Quote(name))
	}
	list, err := d.c.ImageService().List(ctx, filters...)
	if err != nil {
		return nil, fmt.Errorf("list images in namespace %s: %w", namespace, plain(err))
	}
	if len(list) == 0 {
		return nil, nil
	}
	l := looker{client: d, matcher: platforms.Only(spec), snapshotter: snapshotter, there: map[digest.Digest]bool{}, unpacked: map[digest.Digest][]string{}}
	err = d.c.ContentStore().Walk(ctx, func(i content.Info) error {
		l.there[i.Digest] = true
		for label := range i.Labels {
			if s, ok := strings.CutPrefix(label, snapshotLabel); ok {
				l.unpacked[i.Digest] = append(l.unpacked[i.Digest], s)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list content in namespace %s: %w", namespace, plain(err))
	}
	used, err := d.used(ctx)
	if err != nil {
		return nil, fmt.Errorf("list containers in namespace %s: %w", namespace, plain(err))
	}

	// CRI gives an image several names.
	byTarget := map[digest.Digest]*ImageState{}
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(stateWorkers)
	inUse := map[digest.Digest]bool{}
	for _, img := range list {
		inUse[img.Target.Digest] = inUse[img.Target.Digest] || used[img.Name]
		if byTarget[img.Target.Digest] != nil {
			continue
		}
		s := &ImageState{Unlooked: len(names) == 0 && len(byTarget) >= mostStates}
		byTarget[img.Target.Digest] = s
		if s.Unlooked {
			continue
		}
		g.Go(func() error {
			if err := l.look(ctx, img.Target, s); err != nil {
				return fmt.Errorf("look at image %s in namespace %s: %w", img.Name, namespace, plain(err))
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	out := make([]ImageState, 0, len(list))
	for _, img := range list {
		s := *byTarget[img.Target.Digest]
		s.Image = Image{Name: img.Name, Digest: img.Target.Digest.String(), Pinned: img.Labels[pinnedLabel] == pinnedValue}
		s.InUse = inUse[img.Target.Digest]
		out = append(out, s)
	}
	slices.SortFunc(out, func(a, b ImageState) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// used are the names of the images that containers were made of.
func (d *Client) used(ctx context.Context) (map[string]bool, error) {
	all, err := d.c.ContainerService().List(ctx)
	out := map[string]bool{}
	for _, c := range all {
		out[c.Image] = true
	}
	return out, err
}

// snapshotLabel and a snapshotter's name are the label of an image's config that has the
// snapshot it was unpacked to (containerd docs/garbage-collection.md).
const snapshotLabel = "containerd.io/gc.ref.snapshot."

// looker looks at the content of images.
type looker struct {
	client      *Client
	matcher     platforms.MatchComparer
	snapshotter string
	there       map[digest.Digest]bool
	unpacked    map[digest.Digest][]string // the snapshotters of a config
}

func (l looker) read(ctx context.Context, desc ocispec.Descriptor, v any) error {
	b, err := content.ReadBlob(ctx, l.client.c.ContentStore(), desc)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, v); err != nil {
		return fmt.Errorf("read %s: %w", desc.Digest, err)
	}
	return nil
}

// look fills in what an image's target, an index or a manifest, has.
func (l looker) look(ctx context.Context, target ocispec.Descriptor, s *ImageState) error {
	if !l.there[target.Digest] {
		s.Missing = append(s.Missing, target.Digest.String())
		return nil
	}
	if !images.IsIndexType(target.MediaType) {
		return l.manifest(ctx, target, s, false)
	}
	var index ocispec.Index
	if err := l.read(ctx, target, &index); err != nil {
		return err
	}
	var best *ocispec.Descriptor
	for _, m := range index.Manifests {
		switch {
		case m.Platform == nil:
			// Such an entry says only in its config what it is for.
			if !l.there[m.Digest] {
				continue
			}
			other := ImageState{}
			if err := l.manifest(ctx, m, &other, false); err != nil {
				return err
			}
			s.Platforms = append(s.Platforms, other.Platforms...)
			if other.Complete && best == nil {
				s.Complete = true
			}
			continue
		case m.Platform.OS == "unknown" || m.Platform.Architecture == "unknown":
			continue // an attestation
		}
		if l.there[m.Digest] {
			s.Platforms = append(s.Platforms, platforms.Format(*m.Platform))
		}
		if l.matcher.Match(*m.Platform) && (best == nil || l.matcher.Less(*m.Platform, *best.Platform)) {
			best = &m
		}
	}
	if best == nil || s.Complete {
		return nil
	}
	if !l.there[best.Digest] {
		s.Missing = append(s.Missing, best.Digest.String())
		return nil
	}
	return l.manifest(ctx, *best, s, true)
}

// manifest fills in what a manifest has, which is known to be for the platform or says
// so in its config.
func (l looker) manifest(ctx context.Context, desc ocispec.Descriptor, s *ImageState, matched bool) error {
	if !images.IsManifestType(desc.MediaType) {
		s.Artifact = true
		return nil
	}
	var m ocispec.Manifest
	if err := l.read(ctx, desc, &m); err != nil {
		return err
	}
	if !images.IsConfigType(m.Config.MediaType) {
		s.Artifact = true
		return nil
	}
	if !l.there[m.Config.Digest] {
		s.Missing = append(s.Missing, m.Config.Digest.String())
		return nil
	}
	if !matched {
		var p ocispec.Platform
		if err := l.read(ctx, m.Config, &p); err != nil {
			return err
		}
		if p.OS != "" || p.Architecture != "" {
			p = platforms.Normalize(p)
			s.Platforms = append(s.Platforms, platforms.Format(p))
			if !l.matcher.Match(p) {
				return nil
			}
		}
	}
	for _, layer := range m.Layers {
		if !l.there[layer.Digest] {
			s.Missing = append(s.Missing, layer.Digest.String())
		}
	}
	s.Complete = len(s.Missing) == 0
	// CRI can drop layers once they are unpacked (discard_unpacked_layers), and remote
	// snapshotters never fetch them. A runtime can have a snapshotter of its own.
	snapshotters := slices.Clone(l.unpacked[m.Config.Digest])
	if l.snapshotter != "" && !slices.Contains(snapshotters, l.snapshotter) {
		snapshotters = append(snapshotters, l.snapshotter)
	}
	if s.Complete || len(snapshotters) == 0 {
		return nil
	}
	var image ocispec.Image
	if err := l.read(ctx, m.Config, &image); err != nil {
		return err
	}
	chain := identity.ChainID(image.RootFS.DiffIDs).String()
	for _, name := range snapshotters {
		_, err := l.client.c.SnapshotService(name).Stat(ctx, chain)
		switch {
		case err == nil:
			s.Complete, s.Missing = true, nil
			return nil
		case !errdefs.IsNotFound(err) && name == l.snapshotter:
			return err // another one may have left the config since
		}
	}
	return nil
}
