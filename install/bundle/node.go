package bundle

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
)

// maxNode is the most that the node layer may unpack to, in bytes: it is held whole.
const maxNode = 16 << 20

// Who knows digests, for messages.
const (
	fromManifest = "the bundle's manifest"
	fromConfig   = "the bundle's config"
)

// Node is what a bundle has for one architecture. Its methods may be called from several
// goroutines.
type Node struct {
	Config Config

	bundle   *Bundle
	platform string // "linux/amd64"
	manifest ocispec.Descriptor
	config   ocispec.Descriptor
	layers   map[digest.Digest]ocispec.Descriptor

	mu    sync.Mutex
	files map[string][]byte // those of the node layer, once it was read
}

// For reads the manifest and the config for an architecture (Go's name) and verifies them.
//
// Errors: *ArchError, *VersionError, *NotBundleError, *DamagedError, the context's cause,
// and those of reading.
func (b *Bundle) For(ctx context.Context, arch string) (*Node, error) {
	for _, m := range b.index.Manifests {
		if m.Platform == nil || m.Platform.OS != platformOS || m.Platform.Architecture != arch {
			continue
		}
		n, faults, err := b.node(ctx, m)
		if err == nil && len(faults) > 0 {
			err = b.damaged(faults[0].Part, faults[0].Err)
		}
		return n, err
	}
	// Something else than a bundle has nothing for any node.
	if _, _, err := b.node(ctx, b.index.Manifests[0]); err != nil {
		if _, not := errors.AsType[*NotBundleError](err); not {
			return nil, err
		}
	}
	return nil, &ArchError{Name: b.name, Arch: arch, Has: b.Arches()}
}

// node reads one manifest and its config. The faults are those of what they say, the error
// is why they could not be read.
func (b *Bundle) node(ctx context.Context, d ocispec.Descriptor) (*Node, []Fault, error) {
	n := &Node{bundle: b, manifest: d, layers: map[digest.Digest]ocispec.Descriptor{}}
	if d.Platform != nil {
		n.platform = d.Platform.OS + "/" + d.Platform.Architecture
	}
	var m ocispec.Manifest
	if d.MediaType != ocispec.MediaTypeImageManifest {
		return nil, nil, &NotBundleError{Name: b.name, Problem: fmt.Sprintf("its index lists %s", mediaType(d.MediaType))}
	}
	data, err := b.small(ctx, n.part("manifest"), d)
	if err != nil {
		return nil, nil, err
	}
	if err := decode(data, false, &m); err != nil {
		return nil, nil, b.damaged(n.part("manifest"), err)
	}
	if err := b.ours(m); err != nil {
		return nil, nil, err
	}
	n.config = m.Config
	if data, err = b.small(ctx, n.part("config"), m.Config); err != nil {
		return nil, nil, err
	}
	if err := onlyText(data); err != nil {
		return nil, nil, b.damaged(n.part("config"), err)
	}
	var version struct {
		FormatVersion int    `json:"formatVersion"`
		Nodeprep      string `json:"nodeprep"`
	}
	if err := decode(data, false, &version); err != nil {
		return nil, nil, b.damaged(n.part("config"), err)
	}
	if version.FormatVersion > FormatVersion {
		return nil, nil, &VersionError{Name: b.name, Format: fmt.Sprintf("format %d", version.FormatVersion), Nodeprep: version.Nodeprep}
	}
	if err := decode(data, true, &n.Config); err != nil {
		return nil, nil, b.damaged(n.part("config"), err)
	}
	for _, l := range m.Layers {
		n.layers[l.Digest] = l
	}
	return n, n.check(), nil
}

// ours says why a manifest is not that of a bundle of this format.
func (b *Bundle) ours(m ocispec.Manifest) error {
	const family = "application/vnd.nodeprep.bundle."
	switch {
	case m.ArtifactType == ArtifactType && m.Config.MediaType == ConfigType:
		return nil
	case m.ArtifactType != ArtifactType && strings.HasPrefix(m.ArtifactType, family),
		m.ArtifactType == ArtifactType && strings.HasPrefix(m.Config.MediaType, family):
		format := m.ArtifactType
		if format == ArtifactType {
			format = m.Config.MediaType
		}
		return &VersionError{Name: b.name, Format: "the format " + format}
	case m.ArtifactType == "" && m.Config.MediaType == ocispec.MediaTypeImageConfig:
		return &NotBundleError{Name: b.name, Problem: "it is a container image"}
	}
	return &NotBundleError{Name: b.name, Problem: "it holds " + mediaType(cmp.Or(m.ArtifactType, m.Config.MediaType))}
}

// part is how messages call something of this node.
func (n *Node) part(what string) string {
	if n.platform == "" {
		return what
	}
	return what + " " + n.platform
}

// sha256Hex is how the config writes digests that are not descriptors'.
var sha256Hex = regexp.MustCompile(`^[0-9a-f]{64}$`)

// maxFaults is how many faults of a config are told.
const maxFaults = 50

// check holds the config against the manifest and against sense.
func (n *Node) check() []Fault {
	var out []Fault
	fault := func(format string, args ...any) {
		switch {
		case len(out) < maxFaults:
			out = append(out, Fault{n.part("config"), fmt.Errorf(format, args...)})
		case len(out) == maxFaults:
			out = append(out, Fault{n.part("config"), errors.New("and more")})
		}
	}
	c := n.Config
	if c.FormatVersion < 1 {
		fault("its formatVersion is %d", c.FormatVersion)
	}
	if c.OS+"/"+c.Architecture != n.platform {
		fault("it is for %s/%s, and its manifest is for %s", c.OS, c.Architecture, n.platform)
	}
	named := map[digest.Digest]bool{}
	layer := func(what string, d digest.Digest) bool {
		named[d] = true
		l, ok := n.layers[d]
		if !ok {
			fault("the layer of %s, %s, is not in the manifest", what, d)
		} else if err := acceptable(l); err != nil {
			fault("the layer of %s: %w", what, err)
			return false
		}
		return ok
	}
	members := func(what string, list []Member, mode fs.FileMode) {
		seen := map[string]bool{}
		for _, m := range list {
			switch {
			case !fs.ValidPath(m.Path) || m.Path == ".":
				fault("%s has a file whose name leads out of it: %q", what, m.Path)
			case seen[m.Path]:
				fault("%s has %s twice", what, m.Path)
			case m.Mode != uint32(mode):
				fault("%s has %s with mode %#o, want %#o", what, m.Path, m.Mode, mode)
			case m.Size < 0 || !sha256Hex.MatchString(m.SHA256):
				fault("%s has %s without a size and a sha256", what, m.Path)
			}
			seen[m.Path] = true
		}
	}
	seen := map[string]bool{}
	for _, p := range c.Components {
		layer(p.Title(), p.Layer)
		members(p.Title(), p.Members, programMode)
		if p.SHA256 != "" && !sha256Hex.MatchString(p.SHA256) || p.SHA256 == "" && p.Name != Program {
			fault("%s has no sha256 of its release file", p.Title())
		}
		if seen[p.Title()] {
			fault("%s is there twice", p.Title())
		}
		seen[p.Title()] = true
	}
	layer("the node", c.Node.Layer)
	members("the node", c.Node.Members, fileMode)
	if size := unpackedSize(c.Node.Members); size > maxNode {
		fault("the files of the node have %d bytes, and the limit is %d", size, int64(maxNode))
	}
	for _, img := range c.Images {
		if !fs.ValidPath(img.File) || img.Size < 0 || !sha256Hex.MatchString(img.SHA256) {
			fault("image archive %q: without a name in the bundle, a size and a sha256", img.File)
		}
		if seen[img.File] {
			fault("%s is there twice", img.File)
		}
		seen[img.File] = true
		if !layer(img.File, img.Layer) || img.Packed {
			continue
		}
		if l := n.layers[img.Layer]; l.Digest.Encoded() != img.SHA256 || l.Size != img.Size {
			fault("%s has sha256 %s and %d bytes, and its layer %s has %d", img.File, img.SHA256, img.Size, l.Digest, l.Size)
		}
	}
	for d := range n.layers {
		if !named[d] {
			fault("it does not say what layer %s is", d)
		}
	}
	return out
}

func unpackedSize(members []Member) int64 {
	var total int64
	for _, m := range members {
		if total += m.Size; total < 0 {
			return 1<<63 - 1
		}
	}
	return total
}

// Component finds a release among the config's.
func (n *Node) Component(name, version string, static bool) (*Component, bool) {
	for i := range n.Config.Components {
		if c := &n.Config.Components[i]; c.Name == name && c.Version == version && c.Static == static {
			return c, true
		}
	}
	return nil, false
}

// Release is what the bundle has for an artifact, nil where it has none. same says that it was
// made of the very release file, as far as that one's digest is known.
func (n *Node) Release(a desired.Artifact) (c *Component, same bool) {
	c, ok := n.Component(a.Component, a.Version, a.Static)
	return c, ok && (a.SHA256 == "" || a.SHA256 == c.SHA256)
}

// Size is how much a layer of this node's takes in the bundle, in bytes.
func (n *Node) Size(layer digest.Digest) int64 { return n.layers[layer].Size }

// File is a file of the node layer: the profile, its lock, or one that the profile names.
// The layer is read once, whole, and verified before any of it is given out.
//
// Errors: fs.ErrNotExist; else as Unpack.
func (n *Node) File(ctx context.Context, name string) ([]byte, error) {
	if !slices.ContainsFunc(n.Config.Node.Members, func(m Member) bool { return m.Path == name }) {
		return nil, &fs.PathError{Op: "open", Path: n.bundle.name + ":" + name, Err: fs.ErrNotExist}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.files == nil {
		files := map[string]*bytes.Buffer{}
		sink := func(m desired.Member, _ fs.FileMode) (io.WriteCloser, error) {
			b := &bytes.Buffer{}
			files[m.Path] = b
			return unclosed{b}, nil
		}
		if _, err := n.unpack(ctx, "node", n.Config.Node, nil, release.SinkFunc(sink), nil); err != nil {
			return nil, err
		}
		n.files = map[string][]byte{}
		for p, b := range files {
			n.files[strings.TrimPrefix(p, "/")] = b.Bytes()
		}
	}
	return bytes.Clone(n.files[name]), nil
}

// unclosed is a writer that need not be closed.
type unclosed struct{ io.Writer }

func (unclosed) Close() error { return nil }

// Unpack verifies a component's layer while it is read and gives those of members that it
// has to the sink, with the modes that the config says; a member is found by its Path.
// What the sink got counts only when Unpack returns nil. SHA256 of the result is that of
// upstream's archive, which the layer was made of.
//
// Errors: *DamagedError, with a *release.DigestError or *release.ArchiveError inside; the
// context's cause; those of the sink and of reading, wrapped.
func (n *Node) Unpack(ctx context.Context, c *Component, members []desired.Member, sink release.Sink) (release.Unpacked, error) {
	wanted := map[string]desired.Member{}
	var missing []string
	for _, m := range members {
		wanted[m.Path] = m
		if !m.Optional && !slices.ContainsFunc(c.Members, func(has Member) bool { return "/"+has.Path == m.Path }) {
			missing = append(missing, m.Path)
		}
	}
	if len(missing) > 0 {
		return release.Unpacked{}, n.bundle.damaged(n.part(c.Title()), fmt.Errorf("it lacks %s", strings.Join(missing, ", ")))
	}
	out, err := n.unpack(ctx, c.Title(), Files{c.Layer, c.Members}, wanted, release.SinkFunc(func(m desired.Member, mode fs.FileMode) (io.WriteCloser, error) {
		if _, is := wanted[m.Path]; !is {
			return unclosed{io.Discard}, nil
		}
		return sink.Create(m, mode)
	}), nil)
	if err != nil {
		return release.Unpacked{}, err
	}
	out.SHA256 = c.SHA256
	out.Members = slices.DeleteFunc(out.Members, func(m release.UnpackedMember) bool {
		_, is := wanted[m.Path]
		return !is
	})
	return out, nil
}

// unpack reads a layer. as says how the sink shall see members, by path.
func (n *Node) unpack(ctx context.Context, what string, f Files, as map[string]desired.Member, sink release.Sink, told func(n int)) (release.Unpacked, error) {
	l := release.Layer{Name: "layer " + f.Layer.String(), SHA256: f.Layer.Encoded(), SHA256From: fromManifest, MembersFrom: fromConfig}
	for _, m := range f.Members {
		member, ok := as["/"+m.Path]
		if !ok {
			member = desired.Member{Name: path.Base(m.Path), Path: "/" + m.Path}
		}
		l.Members = append(l.Members, release.LayerMember{Member: member, File: m.Path, Mode: fs.FileMode(m.Mode), Size: m.Size, SHA256: m.SHA256})
	}
	r, err := n.bundle.blob(ctx, n.layers[f.Layer], told)
	if err != nil {
		return release.Unpacked{}, n.bundle.damaged(n.part(what), err)
	}
	defer r.Close()
	out, err := release.UnpackLayer(ctx, r, l, sink)
	if err == nil {
		return out, nil
	}
	if wrong, is := errors.AsType[*release.DigestError](err); is {
		wrong.Err = nil // explained by the digest
	}
	if isContent(err) {
		err = n.bundle.damaged(n.part(what), err)
	}
	return release.Unpacked{}, err
}

// isContent says whether an error is about what was read.
func isContent(err error) bool {
	_, digest := errors.AsType[*release.DigestError](err)
	_, archive := errors.AsType[*release.ArchiveError](err)
	_, content := errors.AsType[*contentError](err)
	return digest || archive || content
}
