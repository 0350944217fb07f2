package bundle

import (
	"github.com/opencontainers/go-digest"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
)

// Media types of a bundle (OCI image-spec 1.1, artifacts). The layers have the types of
// images, which all tools and registries carry.
const (
	// ArtifactType is that of a bundle's manifests. It does not stand in the index:
	// there it does not survive being copied by older tools.
	ArtifactType = "application/vnd.nodeprep.bundle.v1"
	ConfigType   = "application/vnd.nodeprep.bundle.config.v1+json"
)

// FormatVersion is that of the config that this nodeprep writes. A newer one is refused.
const FormatVersion = 1

// Program is the component that is nodeprep itself.
const Program = "nodeprep"

// Modes of files: those of components are programs, and nothing else is installed with a mode
// of the bundle's.
const (
	programMode = 0o755
	fileMode    = 0o644
)

// Names of files in a bundle's node layer.
const (
	ProfileName = "profile.yaml"
	LockName    = "nodeprep.lock"
)

// Config is the config blob of a manifest: what the layers for one architecture hold, and
// the digests that it must have.
type Config struct {
	FormatVersion int    `json:"formatVersion"`
	Nodeprep      string `json:"nodeprep"` // the version that made it
	OS            string `json:"os"`       // linux, as in an image's config
	Architecture  string `json:"architecture"`
	// Components are the releases, nodeprep itself last.
	Components []Component `json:"components"`
	// Node is the layer with the profile, its lock and the files it names.
	Node Files `json:"node"`
	// Images are in the profile's order.
	Images []Image `json:"images,omitempty"`
}

// Component is one release and its layer: a tar packed by zstd, with the files at the places
// where they are installed, below /.
type Component struct {
	Name    string `json:"name"` // containerd, runc, cni, crictl or nodeprep
	Version string `json:"version"`
	Static  bool   `json:"static,omitempty"`
	// File and SHA256 are upstream's archive, which the members came from, and SHA256From
	// says who knew the digest. nodeprep itself has none.
	File       string `json:"file,omitempty"`
	SHA256     string `json:"sha256,omitempty"`
	SHA256From string `json:"sha256From,omitempty"`
	// Signature is whose signature of File was found good, if any.
	Signature *release.Signature `json:"signature,omitempty"`
	Layer     digest.Digest      `json:"layer"`
	Members   []Member           `json:"members"`
}

// Title is how people call the release: "containerd 2.1.9".
func (c Component) Title() string {
	return desired.Artifact{Component: c.Name, Version: c.Version, Static: c.Static}.Title()
}

// Member is one file of a layer.
type Member struct {
	Path   string `json:"path"` // below the layer's root, without a leading slash
	Mode   uint32 `json:"mode"` // 0755 in a component, 0644 in the node layer
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"` // hex
}

// Files is a layer of small files.
type Files struct {
	Layer   digest.Digest `json:"layer"`
	Members []Member      `json:"members"`
}

// Image is an image archive, docker save's or an OCI layout, as a layer of its own. A plain
// tar is packed by zstd; Packed says so.
type Image struct {
	File   string        `json:"file"`  // its name in the bundle's profile: images/pause.tar
	Names  []string      `json:"names"` // full names of the images in it
	Layer  digest.Digest `json:"layer"`
	SHA256 string        `json:"sha256"` // of the archive as it is read from the bundle, unpacked if Packed
	Size   int64         `json:"size"`   // of the same
	Packed bool          `json:"packed,omitempty"`
}
