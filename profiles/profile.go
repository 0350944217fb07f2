package profiles

import "github.com/nodeprep/nodeprep/internal/diag"

// The identity of the profile format.
const (
	APIVersion = "nodeprep/v1alpha1"
	Kind       = "NodeProfile"
)

// Profile is a node profile as written: all layers merged, nothing defaulted. A
// field that no layer gives has its zero value.
//
// The struct tags are the single description of the format. Decoder and JSON Schema
// read them alike:
//
//	yaml      the key; ",inline" folds an embedded struct into its parent
//	doc       what the field says, for people
//	enum      the values allowed, separated by commas
//	format    the rule for a string, or for each string of a list or map (see formatOf)
//	keys      the rule for the keys of a map
//	accept    "int": a plain decimal number is taken as text, too
//	empty     "ok": the empty string means the same as leaving the field out
//	required  "true": the enclosing object is useless without it
//	min, max  the bounds of a number
//	default   what Resolve takes when the field is left out, for people
//	examples  separated by |
type Profile struct {
	APIVersion string `yaml:"apiVersion" enum:"nodeprep/v1alpha1" doc:"The version of the profile format."`
	Kind       string `yaml:"kind" enum:"NodeProfile" doc:"What this document is."`
	Extends    string `yaml:"extends" format:"extends" examples:"kubernetes|base.yaml" doc:"The profile beneath this one: a built-in (default, kubernetes, minimal) or a file, relative to this one. Maps merge key by key, lists replace, null removes an inherited key."`

	Kubernetes KubernetesSection `yaml:"kubernetes" doc:"The cluster this node is for."`
	Containerd ContainerdSection `yaml:"containerd" doc:"The container daemon and its config.toml."`
	Runc       ComponentSection  `yaml:"runc" doc:"The default OCI runtime."`
	CNI        CNISection        `yaml:"cni" doc:"The CNI plugins and, on request, a bridge network."`
	Crictl     OptionalSection   `yaml:"crictl" doc:"The command line tool for CRI."`

	Registries map[string]RegistrySection `yaml:"registries" keys:"registry" doc:"Where images come from: one entry a registry, by the host in image references (docker.io, registry.example.com:5000). The key \"*\" holds for every registry without an entry of its own."`

	Systemd     SystemdSection  `yaml:"systemd" doc:"What containerd.service says beyond upstream's unit."`
	Host        HostSection     `yaml:"host" doc:"Kernel modules and sysctl values."`
	Images      []ImageSection  `yaml:"images" doc:"Image archives to import into the k8s.io namespace."`
	Sources     []SourceSection `yaml:"sources" doc:"Where release files come from, in this order; upstream comes last unless the run is offline."`
	Kubelet     KubeletSection  `yaml:"kubelet" doc:"Files for the kubelet that belong to pulling images."`
	Generations *int            `yaml:"generations" min:"1" max:"100" default:"3" doc:"How many earlier states are kept for rollback."`
	Checks      ChecksSection   `yaml:"checks" doc:"The host checks before and after applying."`

	layers  []string // names, outermost first
	origins map[string]diag.Origin
	// faulty are the fields that could not be decoded, and faultyWithin these and all
	// above them: what follows from them is not judged.
	faulty, faultyWithin map[string]bool
}

// Layers are the names of the profiles this one was merged from, outermost first.
func (p *Profile) Layers() []string { return append([]string(nil), p.layers...) }

// KubernetesSection says which Kubernetes the node is for.
type KubernetesSection struct {
	Version string `yaml:"version" format:"kubernetes" examples:"1.36" doc:"The Kubernetes version, quoted. It picks the pause image and crictl, and the containerd version is checked against its support matrix."`
}

// ContainerdSection is the daemon: its release, its places, its runtimes.
type ContainerdSection struct {
	Version string            `yaml:"version" format:"version" default:"2.3.4" examples:"2.3.4|1.7.34" doc:"The containerd release, 1.6 or newer."`
	Variant string            `yaml:"variant" enum:"auto,dynamic,static" default:"auto" doc:"Which of upstream's builds: dynamic needs a glibc at least as new as the one it was built with, static runs everywhere. auto reads the host's C library."`
	SHA256  map[string]string `yaml:"sha256" keys:"arch" format:"sha256" doc:"The release file's sha256 by architecture, for repackaged files; it beats the built-in catalogue. Needs a variant of dynamic or static, since each is a file of its own."`

	Root           string                        `yaml:"root" format:"path" default:"/var/lib/containerd" doc:"Where images and containers are kept."`
	State          string                        `yaml:"state" format:"path" default:"/run/containerd" doc:"Where the state of running containers is kept; lost at reboot."`
	Address        string                        `yaml:"address" format:"path" default:"/run/containerd/containerd.sock" doc:"The socket of the daemon."`
	Snapshotter    string                        `yaml:"snapshotter" format:"name" default:"overlayfs" examples:"overlayfs|zfs|native" doc:"The snapshotter of CRI: one that the release has, or a proxy plugin of type snapshot."`
	SandboxImage   string                        `yaml:"sandboxImage" format:"image" examples:"registry.k8s.io/pause:3.10.2" doc:"The pause image of pods. Left out: the one of kubernetes.version, else the release's own."`
	CgroupDriver   string                        `yaml:"cgroupDriver" enum:"systemd,cgroupfs,auto" default:"auto" doc:"Who manages the cgroups of containers; must be what the kubelet has. auto is systemd where systemd is PID 1."`
	OOMScore       *int                          `yaml:"oomScore" min:"-1000" max:"1000" default:"0" doc:"The oom_score_adj the daemon gives itself; 0 leaves the unit's OOMScoreAdjust in force."`
	DefaultRuntime string                        `yaml:"defaultRuntime" format:"name" default:"runc" doc:"The runtime of pods that name none."`
	Runtimes       map[string]RuntimeSection     `yaml:"runtimes" keys:"name" doc:"Further runtimes, by the name of their handler; runc is always there."`
	ProxyPlugins   map[string]ProxyPluginSection `yaml:"proxyPlugins" keys:"name" doc:"Plugins that run as services of their own, such as remote snapshotters."`
	Settings       Settings                      `yaml:"settings" doc:"Anything else, in the shape of the target release's own config.toml; merged key by key over what nodeprep writes."`
}

// ComponentSection is a release to install.
type ComponentSection struct {
	Version string            `yaml:"version" format:"version" doc:"The release."`
	SHA256  map[string]string `yaml:"sha256" keys:"arch" format:"sha256" doc:"The release file's sha256 by architecture; it beats the built-in catalogue."`
}

// OptionalSection is a release that may be left out.
type OptionalSection struct {
	Version string            `yaml:"version" format:"versionOrNone" examples:"1.36.0|none" doc:"The release; none leaves the binaries out."`
	SHA256  map[string]string `yaml:"sha256" keys:"arch" format:"sha256" doc:"The release file's sha256 by architecture; it beats the built-in catalogue."`
}

// RuntimeSection is one CRI runtime handler.
type RuntimeSection struct {
	Type    string   `yaml:"type" format:"runtimeType" default:"io.containerd.runc.v2" examples:"io.containerd.runc.v2|io.containerd.kata.v2" doc:"The shim."`
	Path    string   `yaml:"path" format:"path" examples:"/usr/bin/crun" doc:"The OCI runtime's binary. Left out: runc as nodeprep installs it."`
	Options Settings `yaml:"options" doc:"Further options of the shim, by the names of containerd's config.toml."`
}

// ProxyPluginSection is a plugin reached over a socket.
type ProxyPluginSection struct {
	Type     string            `yaml:"type" enum:"snapshot,content,diff,sandbox" required:"true" doc:"What the plugin serves."`
	Address  string            `yaml:"address" format:"path" required:"true" doc:"The plugin's socket."`
	Platform string            `yaml:"platform" format:"platform" examples:"linux/amd64" doc:"The platform the plugin is for."`
	Exports  map[string]string `yaml:"exports" keys:"name" empty:"ok" doc:"Values the plugin tells others, such as root."`
}

// CNISection is the CNI plugins and an optional network.
type CNISection struct {
	Version string            `yaml:"version" format:"versionOrNone" default:"1.9.1" examples:"1.9.1|none" doc:"The release of the CNI plugins; none leaves the binaries out."`
	SHA256  map[string]string `yaml:"sha256" keys:"arch" format:"sha256" doc:"The release file's sha256 by architecture; it beats the built-in catalogue."`
	Network NetworkSection    `yaml:"network" default:"none" doc:"none, where the cluster's CNI brings its own, or a bridge network."`
}

// NetworkSection is a bridge network; None says that the profile has "none".
type NetworkSection struct {
	None        bool    `yaml:"-"`
	Name        string  `yaml:"name" format:"name" default:"nodeprep" doc:"The network's name."`
	Bridge      string  `yaml:"bridge" format:"interface" default:"cni0" doc:"The bridge's interface name, at most 15 bytes."`
	Subnet      Strings `yaml:"subnet" format:"cidr" required:"true" examples:"10.88.0.0/16" doc:"The addresses of containers, as CIDR: one, or one of IPv4 and one of IPv6."`
	MTU         *int    `yaml:"mtu" min:"1280" max:"65535" doc:"The bridge's MTU. Left out: the plugin's choice."`
	IPMasq      *bool   `yaml:"ipMasq" default:"true" doc:"Whether traffic that leaves the node gets the node's address."`
	PortMapping *bool   `yaml:"portMapping" default:"true" doc:"Whether hostPort works."`
}

// EndpointSection is how one host is spoken to; mirrors have it, and registries for
// the registry itself.
type EndpointSection struct {
	Capabilities []string                `yaml:"capabilities" enum:"pull,resolve,push,referrers" doc:"What the host is asked for; left out: everything. A host without resolve serves pulls by digest alone."`
	CA           Files                   `yaml:"ca" doc:"CA certificates, PEM, relative to this profile; copied to the node. One file or a list."`
	Client       ClientCerts             `yaml:"client" doc:"TLS client certificates: {cert, key} or a list of them."`
	SkipVerify   *bool                   `yaml:"skipVerify" default:"false" doc:"Whether the host's certificate goes unchecked."`
	OverridePath *bool                   `yaml:"overridePath" default:"false" doc:"Whether the URL's path is the whole API root, so that no /v2 is added. Not needed where /v2 is in the path."`
	Header       map[string]HeaderValues `yaml:"header" keys:"header" doc:"HTTP headers of every request: a text, a secret or a list of them."`
	DialTimeout  string                  `yaml:"dialTimeout" format:"duration" examples:"5s" doc:"How long connecting may take; needs containerd 2.0.7 or 2.1."`
}

// MirrorSection is a host that is asked before the registry itself.
type MirrorSection struct {
	URL             string      `yaml:"url" format:"url" required:"true" examples:"https://mirror.example.com" doc:"The mirror: scheme and host, a path where it has one, no slash at the end."`
	Auth            AuthSection `yaml:"auth" doc:"Credentials for the mirror's host, by user name and password or by identity token. They go into config.toml. Pull secrets are found by the registry in the image's name, not by the mirror's."`
	EndpointSection `yaml:",inline"`
}

// RegistrySection is one registry: its mirrors, and how it is spoken to itself.
type RegistrySection struct {
	Upstream        string          `yaml:"upstream" enum:"allow,deny" default:"allow" doc:"Whether the registry itself is asked when the mirrors have nothing. deny makes the last mirror the server, so that nothing leaves the site."`
	Server          string          `yaml:"server" format:"url" doc:"The registry's own URL where it is not https://HOST."`
	Mirrors         []MirrorSection `yaml:"mirrors" doc:"Hosts to ask first, in this order."`
	Auth            AuthSection     `yaml:"auth" doc:"Credentials of the registry itself, by user name and password or by identity token. They go into config.toml; a mirror has its own."`
	EndpointSection `yaml:",inline"`
}

// AuthSection are credentials for a registry or mirror.
type AuthSection struct {
	Username      Secret `yaml:"username" doc:"The user name; may stand here in the open."`
	Password      Secret `yaml:"password" doc:"The password: {file: PATH}, {env: NAME} or {credential: NAME}."`
	IdentityToken Secret `yaml:"identityToken" doc:"A bearer token, in place of user name and password."`
}

// ClientCertSection is a TLS client certificate.
type ClientCertSection struct {
	Cert LocalFile `yaml:"cert" required:"true" doc:"The certificate, PEM; may hold the key, too."`
	Key  LocalFile `yaml:"key" doc:"The private key, PEM."`
}

// SystemdSection is what the unit says.
type SystemdSection struct {
	OOMScoreAdjust    *int              `yaml:"oomScoreAdjust" min:"-1000" max:"1000" default:"-999" doc:"OOMScoreAdjust=: how unlikely the kernel is to kill the daemon when memory runs out."`
	Delegate          *bool             `yaml:"delegate" default:"true" doc:"Delegate=: whether the cgroups of containers are left alone by systemd."`
	KillMode          string            `yaml:"killMode" enum:"process,mixed,control-group,none" default:"process" doc:"KillMode=: process lets containers outlive the daemon."`
	LimitNOFILE       string            `yaml:"limitNOFILE" format:"limit" accept:"int" empty:"ok" examples:"1048576|1024:524288|infinity" doc:"LimitNOFILE=. Empty: upstream's choice for this release and systemd."`
	Environment       map[string]string `yaml:"environment" keys:"env" format:"line" accept:"int" empty:"ok" doc:"Environment variables of the daemon. They are no secret: systemctl show prints them to everyone."`
	Proxy             ProxySection      `yaml:"proxy" doc:"The proxy through which the daemon pulls."`
	After             []string          `yaml:"after" format:"unit" doc:"Units to start after, beyond upstream's."`
	RequiresMountsFor []string          `yaml:"requiresMountsFor" format:"path" doc:"Paths whose mounts must be there before the daemon starts."`
}

// ProxySection is the proxy of the daemon.
type ProxySection struct {
	HTTP    Secret   `yaml:"http" format:"proxy" empty:"ok" doc:"The proxy for http URLs. One with credentials is a secret: {file: PATH}, {env: NAME} or {credential: NAME}."`
	HTTPS   Secret   `yaml:"https" format:"proxy" empty:"ok" doc:"The proxy for https URLs."`
	NoProxy []string `yaml:"noProxy" format:"noProxy" examples:"10.0.0.0/8|.example.com" doc:"Hosts, domains and networks that are reached without the proxy."`
}

// HostSection is what the kernel is told.
type HostSection struct {
	Modules []string          `yaml:"modules" format:"module" default:"[overlay]" doc:"Kernel modules loaded now and at every boot."`
	Sysctl  map[string]string `yaml:"sysctl" keys:"sysctl" format:"sysctlValue" accept:"int" doc:"Kernel parameters, set now and at every boot. Quote the values: YAML turns some into others."`
}

// ImageSection is an archive to import.
type ImageSection struct {
	File LocalFile `yaml:"file" required:"true" doc:"An OCI or docker-save archive, relative to this profile."`
	Pin  *bool     `yaml:"pin" default:"true" doc:"Whether the images are kept from the kubelet's garbage collection."`
}

// SourceSection is a place for release files: dir or url.
type SourceSection struct {
	Dir LocalFile `yaml:"dir" doc:"A folder of release files under upstream's names, relative to this profile."`
	URL string    `yaml:"url" format:"source" examples:"https://mirror.example.com/{component}/{version}/{file}" doc:"Where a file is; {component}, {version}, {arch} and {file} are filled in."`
}

// KubeletSection are the kubelet's files.
type KubeletSection struct {
	CredentialProviders []CredentialProviderSection `yaml:"credentialProviders" doc:"The kubelet's credential providers, which fetch registry credentials when they are needed."`
}

// CredentialProviderSection is one entry of kubelet's CredentialProviderConfig
// (kubelet.config.k8s.io/v1).
type CredentialProviderSection struct {
	Name                 string            `yaml:"name" format:"name" required:"true" doc:"The provider's binary in the kubelet's provider folder."`
	MatchImages          []string          `yaml:"matchImages" format:"line" required:"true" examples:"*.dkr.ecr.*.amazonaws.com" doc:"The images it is asked for, as patterns."`
	DefaultCacheDuration string            `yaml:"defaultCacheDuration" format:"duration" default:"12h" doc:"How long credentials are kept when the provider does not say."`
	APIVersion           string            `yaml:"apiVersion" enum:"credentialprovider.kubelet.k8s.io/v1,credentialprovider.kubelet.k8s.io/v1beta1,credentialprovider.kubelet.k8s.io/v1alpha1" default:"credentialprovider.kubelet.k8s.io/v1" doc:"The protocol the provider speaks."`
	Args                 []string          `yaml:"args" format:"line" doc:"Arguments of the provider."`
	Env                  map[string]string `yaml:"env" keys:"env" format:"line" accept:"int" empty:"ok" doc:"Environment variables of the provider."`

	TokenAttributes *TokenAttributesSection `yaml:"tokenAttributes" doc:"Has the kubelet give the provider a token of the pod's service account. Kubernetes 1.33 or newer."`
}

// TokenAttributesSection is ServiceAccountTokenAttributes of kubelet.config.k8s.io/v1.
type TokenAttributesSection struct {
	ServiceAccountTokenAudience          string   `yaml:"serviceAccountTokenAudience" format:"line" required:"true" doc:"Whom the token is for."`
	CacheType                            string   `yaml:"cacheType" enum:"ServiceAccount,Token" doc:"For whom credentials are kept: for all pods of a service account, or for one token. Kubernetes 1.34 and newer want it, 1.33 does not know it."`
	RequireServiceAccount                *bool    `yaml:"requireServiceAccount" required:"true" doc:"Whether the provider is left out for pods without a service account, such as static pods."`
	RequiredServiceAccountAnnotationKeys []string `yaml:"requiredServiceAccountAnnotationKeys" format:"line" doc:"Annotations of the service account that the provider gets, and that must be there."`
	OptionalServiceAccountAnnotationKeys []string `yaml:"optionalServiceAccountAnnotationKeys" format:"line" doc:"Annotations of the service account that the provider gets where they are there."`
}

// ChecksSection tunes the host checks.
type ChecksSection struct {
	Skip []string `yaml:"skip" format:"check" examples:"host/swap|kernel/*" doc:"IDs of checks whose failure is not to stop anything; * stands for any text."`
}
