package profiles

import (
	"time"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// Facts is what resolving needs to know of a host. Under --root it comes from that
// root alone; a field that could not be found out has its zero value.
type Facts struct {
	// Arch is Go's name of the architecture, e.g. amd64.
	Arch string
	// LibC is "glibc", "musl" or "" when the root has none.
	LibC string
	// LibCVersion is the C library's version, e.g. 2.36; the zero Version when unknown.
	LibCVersion releases.Version
	// Systemd is systemd's major version, 0 when unknown.
	Systemd int
	// SystemdInit says that PID 1 is systemd, or that the root boots with it.
	SystemdInit bool
}

// Spec is a resolved profile: every default filled in, every choice made. Equal
// profiles and Facts give equal Specs.
type Spec struct {
	Arch       string
	Kubernetes string // minor version such as "1.36", "" when the profile names none

	Containerd Containerd
	Runc       Component
	CNI        CNI
	Crictl     Component

	// Registries are sorted by host, "*" last.
	Registries  []Registry
	Systemd     Systemd
	Modules     []string          // in the profile's order
	Sysctl      map[string]string // key to value
	Images      []Image
	Sources     []Source // upstream is implied, last
	Generations int
	SkipChecks  []string
	// CredentialProviders are the kubelet's; nil when the profile gives none.
	CredentialProviders []CredentialProvider

	// Profiles are the names of the layers, outermost (the user's file) first.
	Profiles []string
	origins  map[string]diag.Origin
}

// Component is a release to be installed.
type Component struct {
	// Version is the zero Version when the profile says "none".
	Version releases.Version
	// SHA256 is the profile's own digest for the Spec's arch, "" when it gives none.
	SHA256 string
}

// Installed reports whether the component is wanted at all.
func (c Component) Installed() bool { return c.Version != (releases.Version{}) }

// Containerd is the daemon's part of a Spec.
type Containerd struct {
	Component
	Static         bool // the static variant of the release
	Root           string
	State          string
	Address        string // socket path
	Snapshotter    string
	SandboxImage   string
	SystemdCgroup  bool
	OOMScore       int // 0 leaves the unit's OOMScoreAdjust in force
	DefaultRuntime string
	// Runtimes are sorted by name; runc is always among them.
	Runtimes     []Runtime
	ProxyPlugins []ProxyPlugin // sorted by name
	// Settings is merged key by key over the rendered config; its shape is that of
	// the target version's config.toml. Numbers are int64 or float64.
	Settings map[string]any
}

// Runtime is one CRI runtime handler.
type Runtime struct {
	Name string
	Type string // io.containerd.runc.v2 unless the profile says otherwise
	Path string // the OCI runtime's binary: options.BinaryName
	// Options are further runtime options by their TOML names; SystemdCgroup and
	// BinaryName are set from the fields above unless given here.
	Options map[string]any
}

// ProxyPlugin is an entry of [proxy_plugins].
type ProxyPlugin struct {
	Name     string
	Type     string // snapshot, content, diff, sandbox
	Address  string // socket path
	Platform string
	Exports  map[string]string
}

// CNI is the plugins' part of a Spec.
type CNI struct {
	Component
	// Network is nil when the cluster's CNI brings its own.
	Network *Network
}

// Network is a bridge network, rendered as a conflist.
type Network struct {
	Name        string
	Bridge      string   // interface name
	Subnets     []string // CIDR; one, or one IPv4 and one IPv6
	MTU         int      // 0: the plugin's choice
	IPMasq      bool
	PortMapping bool // with the portmap plugin
}

// Registry is one certs.d folder.
type Registry struct {
	Host    string // as in an image reference; "*" is containerd's _default
	Deny    bool   // upstream: deny
	Server  *Endpoint
	Mirrors []Endpoint
	Auth    *Auth
}

// Endpoint is a host to pull from. For a Registry's Server the URL may be empty: containerd's own choice.
type Endpoint struct {
	URL          string
	Capabilities []string // empty: all
	CA           []LocalFile
	Client       []ClientCert
	SkipVerify   *bool
	OverridePath bool
	Header       []Header      // sorted by name
	DialTimeout  time.Duration // 0: containerd's default
	Auth         *Auth         // a mirror's; those of the registry itself are the Registry's
}

// ClientCert is a TLS client certificate; Key.Path is "" when Cert holds both.
type ClientCert struct{ Cert, Key LocalFile }

// Header is an HTTP header with one or more values.
type Header struct {
	Name   string
	Values []Secret
}

// LocalFile is a file on the machine that runs nodeprep.
type LocalFile struct {
	Path   string // absolute
	Given  string // as the profile has it
	Origin diag.Origin
}

// Secret is a value that must not be shown: given plainly or by reference. It is
// read (by whoever may touch the host) only when a file that needs it is rendered.
type Secret struct {
	// Value is the value when it is known.
	Value string
	// File, Env and Credential name where the value is to be read from; at most one is set.
	File, Env, Credential string
	// FileGiven is File as the profile has it.
	FileGiven string
	// Plain says that the profile has the value in the open and that it need not be masked.
	Plain  bool
	Origin diag.Origin
}

// Referenced says whether the value is somewhere else than in the profile.
func (s Secret) Referenced() bool { return s.File != "" || s.Env != "" || s.Credential != "" }

// Auth are the credentials of a registry or mirror.
type Auth struct {
	Username, Password, IdentityToken Secret
}

// Systemd is the unit's part of a Spec.
type Systemd struct {
	OOMScoreAdjust int
	Delegate       bool
	KillMode       string
	// LimitNOFILE is "" for upstream's choice, which systemd.LimitNOFILE knows.
	LimitNOFILE string
	// HostVersion is the host's systemd, 0 when unknown.
	HostVersion       int
	Environment       map[string]string
	HTTPProxy         Secret // URL; Plain unless it holds credentials
	HTTPSProxy        Secret
	NoProxy           []string
	After             []string
	RequiresMountsFor []string
}

// Image is an archive to import.
type Image struct {
	File LocalFile
	Pin  bool
}

// Source is a place for artifacts: exactly one of Dir and URL is set.
type Source struct {
	Dir    string // absolute
	URL    string
	Origin diag.Origin
}

// CredentialProvider is one entry of kubelet's CredentialProviderConfig
// (kubelet.config.k8s.io/v1).
type CredentialProvider struct {
	Name                 string
	MatchImages          []string
	DefaultCacheDuration string
	APIVersion           string
	Args                 []string
	Env                  map[string]string
	TokenAttributes      *TokenAttributes // nil: the provider gets no token
}

// TokenAttributes is ServiceAccountTokenAttributes of kubelet.config.k8s.io/v1.
type TokenAttributes struct {
	Audience              string
	CacheType             string // "" for Kubernetes 1.33
	RequireServiceAccount bool
	RequiredAnnotations   []string
	OptionalAnnotations   []string
}

// Origin returns the place of a field, as in "containerd.version" or
// "registries.docker.io.mirrors[0].url"; of its nearest ancestor where the profile
// does not have it; the zero place (with the path alone) where that is a default.
func (s *Spec) Origin(path string) diag.Origin {
	for p := path; p != ""; p = parent(p) {
		if o, ok := s.origins[p]; ok {
			o.Path = path
			return o
		}
	}
	return diag.Origin{Path: path}
}

// parent cuts the last component of a field path: a.b[0].c, a.b[0], a.b, a.
func parent(path string) string {
	for i := len(path) - 1; i >= 0; i-- {
		if path[i] == '.' || path[i] == '[' {
			return path[:i]
		}
	}
	return ""
}
