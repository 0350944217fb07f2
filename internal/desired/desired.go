package desired

import (
	"io/fs"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/diag"
)

// Format tells how a file's content is decoded when two versions of it are compared:
// a changed comment or order of keys is not a change of what the file says.
type Format string

const (
	FormatTOML  Format = "toml"
	FormatHosts Format = "hosts" // hosts.toml: the order of [host] tables counts
	FormatUnit  Format = "unit"  // systemd.syntax(7)
	FormatYAML  Format = "yaml"
	FormatJSON  Format = "json"
	FormatLines Format = "lines" // sysctl.d(5), modules-load.d(5): lines, # and ; comments
	FormatRaw   Format = "raw"   // bytes
)

// Effect is what must follow when a file's meaning changes.
type Effect string

const (
	EffectNone    Effect = ""        // read anew by whoever needs it (hosts.toml, conflist, crictl.yaml, runc)
	EffectRestart Effect = "restart" // the daemon reads it only at start
	EffectUnit    Effect = "unit"    // daemon-reload, then restart
	EffectModules Effect = "modules" // load the modules now
	EffectSysctl  Effect = "sysctl"  // apply the values now
)

// File is one file with its whole content.
type File struct {
	Path    string // absolute, as on the node
	Content []byte
	Mode    fs.FileMode // permission bits
	Format  Format
	Effect  Effect
	// Unit is the unit that Effect restarts; empty means containerd.service.
	Unit string
	// Secret content is never printed; such files are 0600.
	Secret bool
	// Source, if set, is the file on the machine that runs nodeprep whose content this
	// one has, in place of Content: nodeprep's own program.
	Source string
	// First says that the file is nodeprep's own: it is in place before anything else
	// changes, so that an interrupted run can be recovered, and no rollback touches it.
	First  bool
	Origin diag.Origin
}

// Dir is a directory that must exist. Missing parents of files need no Dir.
type Dir struct {
	Path   string
	Mode   fs.FileMode
	Origin diag.Origin
}

// Link is a symbolic link.
type Link struct {
	Path   string
	Target string
	Origin diag.Origin
}

// Member is one file taken from an artifact.
type Member struct {
	// Name is the base name of the file, e.g. containerd-shim-runc-v2.
	Name string
	// Path is where it is installed.
	Path string
	// Optional members are installed when the artifact has them.
	Optional bool
	Effect   Effect
}

// Artifact is one release file to be fetched, verified and unpacked.
type Artifact struct {
	Component string // containerd, runc, cni or crictl: the profile's name for it
	Version   string // without a leading v
	Arch      string // Go's name
	Static    bool   // containerd's static variant
	// Files are acceptable upstream file names, the wanted one first; later ones
	// are older bundles that contain the component, taken from local folders only.
	Files []string
	// URL is where upstream publishes Files[0]; empty if upstream has none for Arch.
	URL string
	// SHA256 is the wanted digest of Files[0], lower-case hex; empty if unknown, in
	// which case a checksum file beside a local artifact decides.
	SHA256 string
	// SHA256From says who knows the digest, for people: "profile node.yaml:12",
	// "nodeprep.lock:7", "catalogue".
	SHA256From string
	// Size is that of Files[0] in bytes, where a lock knows it; else 0.
	Size int64
	// Locked says that a lock chose the file: nothing but Files[0] may be used.
	Locked  bool
	Members []Member
	Origin  diag.Origin
}

// Title is how messages call the release: "static containerd 2.3.4".
func (a Artifact) Title() string {
	t := a.Component + " " + a.Version
	if a.Static {
		t = "static " + t
	}
	return t
}

// Unit is a systemd unit whose state we want.
type Unit struct {
	Name    string
	Enabled bool
	Active  bool
	Origin  diag.Origin
}

// Image is an archive to be imported into containerd's k8s.io namespace.
type Image struct {
	// File is an absolute path on the machine that runs nodeprep; of an archive in a bundle,
	// its name there.
	File string
	Pin  bool // keep from the kubelet's garbage collection
	// SHA256 (hex) and Size (bytes) are those of an archive that is in a bundle; "" and 0
	// of a file.
	SHA256 string
	Size   int64
	Origin diag.Origin
}

// Source is a place to look for artifacts: exactly one of Dir and URL is set.
type Source struct {
	Dir    string // absolute
	URL    string // with {component}, {version}, {arch} and {file}
	Origin diag.Origin
}

// Daemon is what the running containerd is asked about after a change.
type Daemon struct {
	Version     string `json:"version,omitempty"` // as planned, without a leading v
	Address     string `json:"address,omitempty"` // socket path
	Snapshotter string `json:"snapshotter,omitempty"`
	// ConfigPath is the config file, for validation by the staged binary.
	ConfigPath string `json:"configPath,omitempty"`
	Binary     string `json:"binary,omitempty"` // e.g. /usr/local/bin/containerd
	OOMScore   int    `json:"oomScore"`         // the oom_score_adj the process must have
	Unit       string `json:"unit,omitempty"`   // containerd.service
}

// State is everything a node shall have.
type State struct {
	Arch      string
	Files     []File
	Dirs      []Dir
	Links     []Link
	Artifacts []Artifact
	Units     []Unit
	Images    []Image
	Sources   []Source
	Daemon    Daemon
	Modules   []string          // to be loaded now
	Sysctl    map[string]string // to be set now
	// Generations is how many states to keep for rollback.
	Generations int
}

// Sort puts every list into the order of paths or names, so that equal states
// compare and print equal. Artifacts, images and sources keep their order.
func (s *State) Sort() {
	slices.SortFunc(s.Files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(s.Dirs, func(a, b Dir) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(s.Links, func(a, b Link) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(s.Units, func(a, b Unit) int { return strings.Compare(a.Name, b.Name) })
}

// Header is the first line of every generated file that can hold a comment. It has
// no version and no path in it, so that a newer nodeprep or a moved profile changes
// no file.
const Header = `# Made by nodeprep. Change the node profile, not this file; "nodeprep apply" writes it anew.` + "\n"
