package bundle

import (
	"context"
	"slices"

	"github.com/opencontainers/go-digest"

	"github.com/nodeprep/nodeprep/install/release"
)

// Inspection is what a bundle says of itself; no layer is read for it.
type Inspection struct {
	Bundle     string        `json:"bundle"`
	Digest     digest.Digest `json:"digest"` // of the image index
	Nodeprep   string        `json:"nodeprep"`
	Format     int           `json:"formatVersion"`
	Arches     []string      `json:"arches"`
	Components []Inspected   `json:"components"`
	Files      []NodeFile    `json:"files"`
	Images     []ImageFile   `json:"images"`
}

// Inspected is a component for one architecture.
type Inspected struct {
	Component  string             `json:"component"`
	Version    string             `json:"version"`
	Static     bool               `json:"static,omitempty"`
	Arch       string             `json:"arch"`
	File       string             `json:"file,omitempty"`   // upstream's
	SHA256     string             `json:"sha256,omitempty"` // of that
	SHA256From string             `json:"sha256From,omitempty"`
	Signature  *release.Signature `json:"signature,omitempty"`
	Layer      digest.Digest      `json:"layer"`
	Packed     int64              `json:"packed"`   // bytes in the bundle
	Unpacked   int64              `json:"unpacked"` // bytes on a node
	Members    []Member           `json:"members"`
}

// NodeFile is a file of the node layer.
type NodeFile struct {
	Member
	Arches []string `json:"arches"`
}

// ImageFile is an image archive.
type ImageFile struct {
	Image
	Platforms []string `json:"platforms"` // those of the nodes that get it
	InBundle  int64    `json:"inBundle"`  // bytes
}

// Inspect says what is in a bundle. It reads index, manifests and configs alone.
//
// Errors: those of Open and For.
func Inspect(ctx context.Context, ref string, opt OpenOptions) (*Inspection, error) {
	b, err := Open(ctx, ref, opt)
	if err != nil {
		return nil, err
	}
	defer b.Close()
	out := &Inspection{Bundle: b.name, Digest: b.Digest(), Arches: []string{}, Components: []Inspected{}, Files: []NodeFile{}, Images: []ImageFile{}}
	for _, arch := range b.Arches() {
		n, err := b.For(ctx, arch)
		if err != nil {
			return nil, err
		}
		out.add(n)
	}
	if len(out.Arches) == 0 {
		_, err := b.For(ctx, "") // says what it is instead
		return nil, err
	}
	return out, nil
}

func (out *Inspection) add(n *Node) {
	c := n.Config
	out.Nodeprep, out.Format = c.Nodeprep, c.FormatVersion
	out.Arches = append(out.Arches, c.Architecture)
	for _, p := range c.Components {
		out.Components = append(out.Components, Inspected{
			Component: p.Name, Version: p.Version, Static: p.Static, Arch: c.Architecture,
			File: p.File, SHA256: p.SHA256, SHA256From: p.SHA256From, Signature: p.Signature,
			Layer: p.Layer, Packed: n.Size(p.Layer), Unpacked: unpackedSize(p.Members), Members: p.Members,
		})
	}
	for _, m := range c.Node.Members {
		i := slices.IndexFunc(out.Files, func(f NodeFile) bool { return f.Member == m })
		if i < 0 {
			i = len(out.Files)
			out.Files = append(out.Files, NodeFile{Member: m})
		}
		out.Files[i].Arches = append(out.Files[i].Arches, c.Architecture)
	}
	for _, img := range c.Images {
		i := slices.IndexFunc(out.Images, func(f ImageFile) bool { return f.File == img.File && f.Layer == img.Layer })
		if i < 0 {
			i = len(out.Images)
			out.Images = append(out.Images, ImageFile{Image: img, InBundle: n.Size(img.Layer)})
		}
		out.Images[i].Platforms = append(out.Images[i].Platforms, n.platform)
	}
}
