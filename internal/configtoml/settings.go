package configtoml

import (
	"cmp"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/releases"
)

// Sections of config.toml.
const (
	criV2        = "io.containerd.grpc.v1.cri" // all of CRI in schema 2, its streaming server since 3
	criImages    = "io.containerd.cri.v1.images"
	criRuntime   = "io.containerd.cri.v1.runtime"
	serverPrefix = "io.containerd.server.v1."
)

// images and runtime are the sections in which a release has CRI's image and runtime
// settings.
func (c *Config) images() []string {
	if c.old() {
		return []string{"plugins", criV2}
	}
	return []string{"plugins", criImages}
}

func (c *Config) runtime() []string {
	if c.old() {
		return []string{"plugins", criV2}
	}
	return []string{"plugins", criRuntime}
}

func below(path []string, more ...string) []string { return slices.Concat(path, more) }

func (c *Config) textAt(fallback string, path ...string) (string, Place) {
	n := c.at(path...)
	if s, ok := n.text(); ok {
		return s, n.at
	}
	return fallback, Place{}
}

// topText is a text outside of plugins, where an empty one sets nothing.
func (c *Config) topText(fallback string, path ...string) (string, Place) {
	if s, at := c.textAt("", path...); s != "" {
		return s, at
	}
	return fallback, Place{}
}

// Root is the folder of persistent data.
func (c *Config) Root() (string, Place) { return c.topText("/var/lib/containerd", "root") }

// State is the folder of state that need not survive a reboot.
func (c *Config) State() (string, Place) { return c.topText("/run/containerd", "state") }

const defaultSocket = "/run/containerd/containerd.sock"

// Address is the path of the daemon's gRPC socket.
func (c *Config) Address() (string, Place) {
	if c.rules.AtLeast(2, 3, 0) {
		return c.textAt(defaultSocket, "plugins", serverPrefix+"grpc", "address")
	}
	return c.topText(defaultSocket, "grpc", "address")
}

// TTRPCAddress is the path of the socket that shims answer on. Up to 2.2, and with files
// of schemas below 4, it follows Address; in schema 4 it does not.
func (c *Config) TTRPCAddress() (string, Place) {
	if c.rules.AtLeast(2, 3, 0) {
		return c.textAt(defaultSocket+".ttrpc", "plugins", serverPrefix+"ttrpc", "address")
	}
	address, at := c.Address()
	return c.topTextAt(address+".ttrpc", at, "ttrpc", "address")
}

func (c *Config) topTextAt(fallback string, fallbackAt Place, path ...string) (string, Place) {
	if s, at := c.topText("", path...); s != "" {
		return s, at
	}
	return fallback, fallbackAt
}

// TCPAddress is where the daemon also serves its API over TCP, "" for nowhere. Whoever
// reaches it is root on the node, unless TCPTLS says so.
func (c *Config) TCPAddress() (string, Place) {
	if c.rules.AtLeast(2, 3, 0) {
		return c.textAt("", "plugins", serverPrefix+"grpc-tcp", "address")
	}
	return c.topText("", "grpc", "tcp_address")
}

// TCPTLS says whether the TCP address speaks TLS, and whether it demands certificates
// of its clients.
func (c *Config) TCPTLS() (tls, clients bool) {
	section, prefix := []string{"grpc"}, "tcp_"
	if c.rules.AtLeast(2, 3, 0) {
		section, prefix = []string{"plugins", serverPrefix + "grpc-tcp"}, ""
	}
	cert, _ := c.topText("", below(section, prefix+"tls_cert")...)
	ca, _ := c.topText("", below(section, prefix+"tls_ca")...)
	return cert != "", cert != "" && ca != ""
}

// MetricsAddress is where the daemon serves metrics over HTTP, "" for nowhere.
func (c *Config) MetricsAddress() (string, Place) {
	if c.rules.AtLeast(2, 3, 0) {
		return c.textAt("", "plugins", serverPrefix+"metrics", "address")
	}
	return c.topText("", "metrics", "address")
}

// DebugAddress is the socket, or HOST:PORT, of the daemon's debug service, "" for none.
func (c *Config) DebugAddress() (string, Place) {
	if c.rules.AtLeast(2, 3, 0) {
		return c.textAt("", "plugins", serverPrefix+"debug", "address")
	}
	return c.topText("", "debug", "address")
}

// OOMScore is the OOM score that the daemon gives itself; 0 leaves what it was started
// with.
func (c *Config) OOMScore() (int, Place) {
	if n := c.at("oom_score"); n != nil {
		if i, ok := n.number(); ok && i != 0 {
			return i, n.at
		}
	}
	return 0, Place{}
}

// SandboxImage is the image of pods' sandboxes.
func (c *Config) SandboxImage() (string, Place) {
	fallback := releases.DefaultPauseImage(c.rules)
	if c.old() {
		return c.textAt(fallback, below(c.images(), "sandbox_image")...)
	}
	return c.textAt(fallback, below(c.images(), "pinned_images", "sandbox")...)
}

// Snapshotter is the snapshotter of CRI's images.
func (c *Config) Snapshotter() (string, Place) {
	if c.old() {
		return c.textAt("overlayfs", below(c.images(), "containerd", "snapshotter")...)
	}
	return c.textAt("overlayfs", below(c.images(), "snapshotter")...)
}

// DefaultRuntime is the name of the runtime of pods that ask for none.
func (c *Config) DefaultRuntime() (string, Place) {
	section := below(c.runtime(), "containerd")
	if c.old() {
		// A table default_runtime with a type is a runtime named "default", and wins.
		if n := c.at(below(section, "default_runtime", "runtime_type")...); n != nil {
			if s, _ := n.text(); s != "" {
				return "default", n.at
			}
		}
	}
	return c.textAt("runc", below(section, "default_runtime_name")...)
}

// ConfigPath is where hosts.toml files are looked for, as it is written. Where nothing
// is set, 2.2 and newer have a list of two folders, unless mirrors are set.
func (c *Config) ConfigPath() (string, Place) {
	s, at := c.textAt("", below(c.images(), "registry", "config_path")...)
	if s == "" && c.rules.AtLeast(2, 2, 0) && len(c.at(below(c.images(), "registry", "mirrors")...).keys()) == 0 {
		return "/etc/containerd/certs.d:/etc/docker/certs.d", Place{}
	}
	return s, at
}

// Runtime is a runtime handler of CRI.
type Runtime struct {
	Name          string
	Type          string         // "" where the file's table resets the built-in one (1.x)
	Options       map[string]any // as files set them; defaults are not in it
	BinaryName    string         // "" is the shim's default
	SystemdCgroup bool
	Snapshotter   string // "" is that of CRI

	// Place is the table's, zero where no file has one; the others are zero where the
	// default counts.
	Place, TypePlace, BinaryPlace, SystemdCgroupPlace, SnapshotterPlace Place
}

const runcV2 = "io.containerd.runc.v2"

// Runtimes are all runtime handlers, by name, the built-in runc among them where it is
// left.
func (c *Config) Runtimes() []Runtime {
	section := below(c.runtime(), "containerd")
	tables := map[string]*node{}
	table := c.at(below(section, "runtimes")...)
	for _, name := range table.keys() {
		tables[name] = table.table[name]
	}
	// 1.x decodes runtimes into a new map; 2.x on top of the built-in one.
	if table == nil || !c.old() && tables["runc"] == nil {
		tables["runc"] = nil
	}
	if c.old() {
		for from, name := range map[string]string{"default_runtime": "default", "untrusted_workload_runtime": "untrusted"} {
			t := c.at(below(section, from)...)
			if s, _ := c.child(t, "runtime_type").text(); s != "" {
				tables[name] = t
			}
		}
	}
	var out []Runtime
	for name, t := range tables {
		r := Runtime{Name: name, Options: map[string]any{}}
		if name == "runc" && (t == nil || !c.old()) {
			r.Type = runcV2
		}
		if t != nil {
			r.Place = t.at
			if n := c.child(t, "runtime_type"); n != nil {
				if s, ok := n.text(); ok {
					r.Type, r.TypePlace = s, n.at
				}
			}
			if n := c.child(t, "snapshotter"); n != nil {
				r.Snapshotter, _ = n.text()
				r.SnapshotterPlace = n.at
			}
			options := c.child(t, "options")
			if options.isTable() {
				r.Options, _ = options.plain().(map[string]any)
			}
			if n := c.option(options, "BinaryName", name == "runc"); n != nil {
				r.BinaryName, _ = n.text()
				r.BinaryPlace = n.at
			}
			if n := c.option(options, "SystemdCgroup", name == "runc"); n != nil {
				r.SystemdCgroup, r.SystemdCgroupPlace = n.boolean(), n.at
			}
		}
		out = append(out, r)
	}
	slices.SortFunc(out, func(a, b Runtime) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// CNI is where CRI looks for network plugins and their configuration. both says that
// files set bin_dir and bin_dirs: that stops CRI (2.1 to 2.3), or, where bin_dirs is what
// this build has by default, the single one wins without a word; distributions change
// that default, so that the same config works with one build and not with another.
func (c *Config) CNI() (binDirs []string, confDir string, binPlace, confPlace Place, both bool) {
	section := below(c.runtime(), "cni")
	confDir, confPlace = c.textAt("/etc/cni/net.d", below(section, "conf_dir")...)
	const usual = "/opt/cni/bin"
	if !releases.BinDirsSupported(c.rules) {
		dir, at := c.textAt(usual, below(section, "bin_dir")...)
		return []string{dir}, confDir, at, confPlace, false
	}
	binDirs = []string{usual}
	given := false
	if n := c.at(below(section, "bin_dirs")...); n != nil && n.kind == listKind {
		binDirs, binPlace = n.texts(), n.at
		given = len(binDirs) > 0
	}
	if dir, at := c.textAt("", below(section, "bin_dir")...); dir != "" {
		// The single one takes the place of the default, written out or not, and of none.
		if len(binDirs) == 0 || slices.Equal(binDirs, []string{usual}) {
			return []string{dir}, confDir, at, confPlace, given
		}
		both = true
	}
	return binDirs, confDir, binPlace, confPlace, both
}

// MaxConfNum is how many files of the CNI folder are used, 0 for all.
func (c *Config) MaxConfNum() (int, Place) {
	if n := c.at(below(c.runtime(), "cni", "max_conf_num")...); n != nil {
		if i, ok := n.number(); ok {
			return i, n.at
		}
	}
	return 1, Place{}
}

// Disabled is an entry of disabled_plugins or required_plugins.
type Disabled struct {
	Name  string // as it is written
	Place Place
}

// DisabledPlugins are the entries of disabled_plugins of all files.
func (c *Config) DisabledPlugins() []Disabled { return c.entries("disabled_plugins") }

// RequiredPlugins are the entries of required_plugins of all files.
func (c *Config) RequiredPlugins() []Disabled { return c.entries("required_plugins") }

func (c *Config) entries(name string) []Disabled {
	var out []Disabled
	n := c.at(name)
	if n == nil {
		return nil
	}
	for _, e := range n.list {
		if s, ok := e.text(); ok {
			out = append(out, Disabled{cmp.Or(e.was, s), e.at})
		}
	}
	return out
}

// DisabledCRI are the entries that take CRI away, in whatever spelling this release
// honours for the version of its file.
func (c *Config) DisabledCRI() []Disabled {
	n := c.at("disabled_plugins")
	if n == nil {
		return nil
	}
	var out []Disabled
	for _, e := range n.list {
		name, _ := e.text()
		if name == criV2 || !c.old() && (name == criImages || name == criRuntime) {
			out = append(out, Disabled{cmp.Or(e.was, name), e.at})
		}
	}
	return out
}

// NamedPlace is a name and where it is.
type NamedPlace struct {
	Name  string
	Place Place
}

// RegistryConfig is what registry.configs has for a host; secrets are not in it.
type RegistryConfig struct {
	Host            string
	HasAuth, HasTLS bool
	Place           Place
	TLS             RegistryTLS // zero without HasTLS
}

// RegistryTLS is registry.configs.HOST.tls, which 1.x alone reads: paths on the node.
type RegistryTLS struct {
	CAFile, CertFile, KeyFile string
	InsecureSkipVerify        bool
	Place                     Place
}

// Registry is what is set beside hosts.toml files: names and places, no secret values.
type Registry struct {
	Place   Place // of the registry table, zero without one
	Mirrors []NamedPlace
	Configs []RegistryConfig
	Auths   []NamedPlace
	Headers []NamedPlace
}

// Registry is CRI's registry table.
func (c *Config) Registry() Registry {
	r := c.at(below(c.images(), "registry")...)
	if r == nil {
		return Registry{}
	}
	out := Registry{Place: r.at}
	named := func(key string) []NamedPlace {
		var list []NamedPlace
		t := c.child(r, key)
		for _, name := range t.keys() {
			list = append(list, NamedPlace{name, t.table[name].at})
		}
		return list
	}
	out.Mirrors, out.Auths, out.Headers = named("mirrors"), named("auths"), named("headers")
	configs := c.child(r, "configs")
	for _, host := range configs.keys() {
		t := configs.table[host]
		config := RegistryConfig{Host: host, HasAuth: c.child(t, "auth") != nil, Place: t.at}
		if tls := c.child(t, "tls"); tls != nil {
			text := func(key string) string {
				s, _ := c.child(tls, key).text()
				return s
			}
			config.HasTLS = true
			config.TLS = RegistryTLS{
				CAFile: text("ca_file"), CertFile: text("cert_file"), KeyFile: text("key_file"),
				InsecureSkipVerify: c.child(tls, "insecure_skip_verify").boolean(), Place: tls.at,
			}
		}
		out.Configs = append(out.Configs, config)
	}
	return out
}

// ProxyPlugin is a plugin that another process serves.
type ProxyPlugin struct {
	Name, Type, Address string
	Place               Place
}

// ProxyPlugins are all of them, by name.
func (c *Config) ProxyPlugins() []ProxyPlugin {
	var out []ProxyPlugin
	t := c.at("proxy_plugins")
	for _, name := range t.keys() {
		n := t.table[name]
		p := ProxyPlugin{Name: name, Place: n.at}
		p.Type, _ = c.child(n, "type").text()
		p.Address, _ = c.child(n, "address").text()
		out = append(out, p)
	}
	return out
}
