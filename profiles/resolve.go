package profiles

import (
	"net/netip"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/internal/spelling"
)

// runcPath is where nodeprep installs runc, upstream's place for it.
const runcPath = "/usr/local/sbin/runc"

// runcType is the shim of runc and of every OCI runtime with runc's command line.
const runcType = "io.containerd.runc.v2"

// Resolve makes every choice that a profile leaves open, for a host with these
// Facts, and checks what one field alone cannot tell. The zero Facts mean that no
// host is known: what depends on one is then chosen as for a current systemd host
// and nothing is said about it.
//
// The Spec is nil when a finding is an error. Findings are sorted by place.
func Resolve(p *Profile, facts Facts) (*Spec, diag.List) {
	r := resolver{p: p, facts: facts, spec: &Spec{
		Arch:     facts.Arch,
		Profiles: p.Layers(),
		origins:  p.origins,
	}}
	r.components()
	r.containerd()
	r.network()
	r.registries()
	r.systemd()
	r.rest()
	if facts.Arch != "" && !r.list.HasErrors() {
		r.list = append(r.list, AbsentCheck(r.spec, facts.Arch)...)
	}
	r.list.Sort()
	if r.list.HasErrors() {
		return nil, r.list
	}
	return r.spec, r.list
}

// AbsentCheck warns of every component for which upstream publishes nothing for an
// architecture, so that the release file of a known digest has to come from elsewhere.
// Without a digest there is nothing to be had, which is a fault of the release.
func AbsentCheck(s *Spec, arch string) diag.List {
	var list diag.List
	for _, c := range []struct {
		name      string
		component Component
		static    bool
	}{
		{releases.Containerd, s.Containerd.Component, s.Containerd.Static},
		{releases.Runc, s.Runc, false},
		{releases.CNI, s.CNI.Component, false},
		{releases.Crictl, s.Crictl, false},
	} {
		if !c.component.Installed() || releases.URL(c.name, c.static, c.component.Version, arch) != "" {
			continue
		}
		if _, known := releases.SHA256(c.name, c.static, c.component.Version, arch); !known && c.component.SHA256 == "" {
			continue
		}
		what := c.name
		if c.static {
			what += " (static)"
		}
		at := s.Origin(c.name + ".version")
		if at.File == "" && len(s.Profiles) > 0 {
			at.File = s.Profiles[0]
		}
		list.Warnf(at, "build it and offer it in a folder of sources",
			"upstream publishes no %s %s for %s", what, c.component.Version, arch)
	}
	return list
}

// resolver is one run of Resolve.
type resolver struct {
	p     *Profile
	facts Facts
	spec  *Spec
	list  diag.List
	// unknown is set where containerd's version could not be read: what depends on
	// it is not judged.
	unknown bool
}

// at is the place of a field, or of its nearest ancestor, or the profile itself.
func (r *resolver) at(at string) diag.Origin {
	o := r.spec.Origin(at)
	if o.File == "" && len(r.p.layers) > 0 {
		o.File = r.p.layers[0]
	}
	return o
}

func (r *resolver) fault(at, hint, format string, args ...any) {
	r.list.Errorf(r.at(at), hint, format, args...)
}

func (r *resolver) warn(at, hint, format string, args ...any) {
	r.list.Warnf(r.at(at), hint, format, args...)
}

// noHost says that the Facts are those of no host in particular: an architecture and
// systemd as PID 1 at most, which cannot be without a C library and a version.
func (r *resolver) noHost() bool {
	f := r.facts
	return f.LibC == "" && f.LibCVersion == (releases.Version{}) && f.Systemd == 0 && (f.SystemdInit || f.Arch == "")
}

// systemdRuns says whether systemd is PID 1. A root without a C library is no system
// yet, so that nothing speaks against systemd there.
func (r *resolver) systemdRuns() bool { return r.facts.SystemdInit || r.facts.LibC == "" }

// or is a value, or its default where the profile does not have it.
func or[T any](v *T, otherwise T) T {
	if v == nil {
		return otherwise
	}
	return *v
}

func orText(s, otherwise string) string {
	if s == "" {
		return otherwise
	}
	return s
}

// component resolves a release; what is said of the version is the decoder's.
func (r *resolver) component(name, version string, digests map[string]string) Component {
	c := Component{SHA256: strings.ToLower(digests[r.facts.Arch])}
	switch version {
	case "":
		c.Version = releases.DefaultVersion(name)
	case "none":
		c.SHA256 = ""
		if len(digests) > 0 {
			r.warn(name+".sha256", "remove it", "this has no effect, since %s.version is none", name)
		}
	default:
		v, err := releases.ParseVersion(version)
		if err != nil {
			v = releases.DefaultVersion(name)
			if !r.p.faulty[name+".version"] {
				r.fault(name+".version", "", "%v", err)
			}
		}
		c.Version = v
		if reason, refused := releases.Refused(name, v); refused {
			r.fault(name+".version", "", "%s", reason)
		}
	}
	return c
}

func (r *resolver) components() {
	p, s := r.p, r.spec
	s.Kubernetes = kubernetesMinor(p.Kubernetes.Version)
	s.Containerd.Component = r.component(releases.Containerd, p.Containerd.Version, p.Containerd.SHA256)
	s.Runc = r.component(releases.Runc, p.Runc.Version, p.Runc.SHA256)
	s.CNI.Component = r.component(releases.CNI, p.CNI.Version, p.CNI.SHA256)
	s.Crictl = r.component(releases.Crictl, p.Crictl.Version, p.Crictl.SHA256)
	if p.Crictl.Version == "" {
		s.Crictl.Version = defaultCrictl(s.Kubernetes)
	}

	v := s.Containerd.Version
	_, refused := releases.Refused(releases.Containerd, v)
	r.unknown = p.faulty["containerd.version"] || refused
	if r.unknown {
		return
	}
	if s.Kubernetes != "" && !p.faulty["kubernetes.version"] {
		at := "containerd.version"
		if p.Containerd.Version == "" {
			at = "kubernetes.version"
		}
		if note, ok := releases.SupportedBy(s.Kubernetes, v); !ok {
			r.warn(at, "", "%s", note)
		} else if note != "" {
			r.warn("kubernetes.version", "", "%s", note)
		}
	}
}

// kubernetesMinor cuts 1.36.2 and v1.36 to 1.36; "" stays.
func kubernetesMinor(s string) string {
	parts := strings.Split(strings.TrimPrefix(s, "v"), ".")
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// defaultCrictl is the newest known crictl of Kubernetes's own minor, as cri-tools
// asks for, else the default.
func defaultCrictl(kubernetes string) releases.Version {
	for _, v := range releases.Known(releases.Crictl, false) {
		if v.Line() == kubernetes && v.Pre == "" {
			return v
		}
	}
	return releases.DefaultVersion(releases.Crictl)
}

// variant chooses between upstream's dynamic and static build.
func (r *resolver) variant() (static bool) {
	c, v := r.p.Containerd, r.spec.Containerd.Version
	needs := releases.GLibC(v)
	tooOld := r.facts.LibC == "glibc" && r.facts.LibCVersion != (releases.Version{}) && r.facts.LibCVersion.Compare(needs) < 0
	host := "musl"
	if tooOld {
		host = "glibc " + glibc(r.facts.LibCVersion)
	}
	noStatic := len(releases.Arches(releases.Containerd, true, v)) == 0
	switch c.Variant {
	case "static":
		return true // that there is none is said of the release
	case "dynamic":
		if (tooOld || r.facts.LibC == "musl") && !r.unknown {
			r.warn("containerd.variant", "set containerd.variant to static", "containerd %s as upstream builds it needs glibc %s, and the host has %s", v, glibc(needs), host)
		}
		return false
	}
	if len(c.SHA256) > 0 {
		r.fault("containerd.sha256", "set containerd.variant to dynamic or static, whichever file the digests are of",
			"digests are of one variant of containerd, and the variant is auto")
	}
	switch {
	case r.unknown:
		return false
	case r.facts.LibC == "glibc" && r.facts.LibCVersion == (releases.Version{}):
		r.warn("containerd.variant", "set containerd.variant to dynamic or static", "the version of the host's glibc is not known; taking the dynamic build, which needs glibc %s", glibc(needs))
		return false
	case r.facts.LibC == "glibc" && !tooOld:
		return false
	case r.facts.LibC != "glibc" && r.facts.LibC != "musl":
		if !r.noHost() {
			r.warn("containerd.variant", "set containerd.variant to dynamic or static", "the host's C library is not known; taking the dynamic build, which needs glibc %s", glibc(needs))
		}
		return false
	case noStatic:
		r.warn("containerd.variant", "take containerd 1.7 or newer, or build it", "containerd %s as upstream builds it needs glibc %s, the host has %s, and upstream publishes no static build of it", v, glibc(needs), host)
		return false
	}
	return true
}

// glibc writes a C library's version as the C library does: 2.35.
func glibc(v releases.Version) string {
	if v.Patch == 0 {
		return v.Line()
	}
	return v.String()
}

func (r *resolver) containerd() {
	c, s := r.p.Containerd, &r.spec.Containerd
	v := s.Version
	s.Static = r.variant()
	s.Root = orText(c.Root, "/var/lib/containerd")
	s.State = orText(c.State, "/run/containerd")
	s.Address = orText(c.Address, "/run/containerd/containerd.sock")
	s.Snapshotter = orText(c.Snapshotter, "overlayfs")
	s.DefaultRuntime = orText(c.DefaultRuntime, "runc")
	s.OOMScore = or(c.OOMScore, 0)
	if s.Root == s.State {
		r.fault("containerd.state", "", "root and state are both %s; containerd wants two folders", s.Root)
	}
	// sockaddr_un holds 107 bytes and a NUL (unix(7)); the ttrpc socket is beside it.
	if most := 107 - len(".ttrpc"); len(s.Address) > most {
		r.fault("containerd.address", "choose a shorter path", "the socket's path has %d bytes, more than the %d that a socket's name may have", len(s.Address), most)
	}

	s.SandboxImage = c.SandboxImage
	if image, ok := releases.PauseImage(r.spec.Kubernetes); ok && s.SandboxImage == "" {
		s.SandboxImage = image
	}
	s.SandboxImage = orText(s.SandboxImage, releases.DefaultPauseImage(v))

	switch c.CgroupDriver {
	case "systemd":
		s.SystemdCgroup = true
		if !r.systemdRuns() {
			r.warn("containerd.cgroupDriver", "set it to cgroupfs or auto", "the cgroup driver is systemd, and systemd does not run this host")
		}
	case "cgroupfs":
	default:
		s.SystemdCgroup = r.systemdRuns()
	}

	r.runtimes()
	r.proxyPlugins()
	r.snapshotter()
	s.Settings = map[string]any(c.Settings)
	if s.Settings == nil {
		s.Settings = map[string]any{}
	}
	if !r.unknown {
		r.settings()
	}
}

func (r *resolver) runtimes() {
	c, s := r.p.Containerd, &r.spec.Containerd
	names := sortedKeys(c.Runtimes)
	if !slices.Contains(names, "runc") {
		names = append(names, "runc")
		slices.Sort(names)
	}
	for _, name := range names {
		given := c.Runtimes[name]
		at := "containerd.runtimes." + name
		rt := Runtime{Name: name, Type: orText(given.Type, runcType), Path: given.Path, Options: map[string]any(given.Options)}
		if rt.Path == "" && rt.Type == runcType {
			rt.Path = runcPath
		}
		switch rt.Type {
		case "io.containerd.runc.v1", "io.containerd.runtime.v1.linux":
			if r.spec.Containerd.Version.AtLeast(2, 0, 0) && !r.unknown {
				r.fault(at+".type", "use "+runcType, "containerd %s no longer has the shim %s", s.Version, rt.Type)
			}
		}
		if driver, ok := rt.Options["SystemdCgroup"].(bool); ok && driver != s.SystemdCgroup && c.CgroupDriver != "" && c.CgroupDriver != "auto" {
			r.warn(at+".options.SystemdCgroup", "all runtimes of a node must have the kubelet's driver", "this contradicts containerd.cgroupDriver: %s, and wins", c.CgroupDriver)
		}
		if bin, ok := rt.Options["BinaryName"].(string); ok && given.Path != "" && bin != given.Path {
			r.warn(at+".options.BinaryName", "give one of the two", "this contradicts %s.path: %s, and wins", at, given.Path)
		}
		s.Runtimes = append(s.Runtimes, rt)
	}
	if !slices.Contains(names, s.DefaultRuntime) && !r.p.faulty["containerd.runtimes"] {
		hint := "declare it under containerd.runtimes"
		if n := spelling.Nearest(s.DefaultRuntime, names); n != "" {
			hint = "did you mean " + n + "?"
		}
		r.fault("containerd.defaultRuntime", hint, "there is no runtime %s; the node has %s", quote(s.DefaultRuntime), strings.Join(names, ", "))
	}
}

func (r *resolver) proxyPlugins() {
	for _, name := range sortedKeys(r.p.Containerd.ProxyPlugins) {
		given := r.p.Containerd.ProxyPlugins[name]
		r.spec.Containerd.ProxyPlugins = append(r.spec.Containerd.ProxyPlugins, ProxyPlugin{
			Name: name, Type: given.Type, Address: given.Address, Platform: given.Platform, Exports: given.Exports,
		})
		if given.Type == "sandbox" && !r.unknown && !r.spec.Containerd.Version.AtLeast(1, 7, 0) {
			r.fault("containerd.proxyPlugins."+name+".type", "", "containerd %s has no proxy plugins of type sandbox; they came with 1.7.0", r.spec.Containerd.Version)
		}
	}
}

// snapshotter checks that there will be one of the wanted name: CRI does not start
// without.
func (r *resolver) snapshotter() {
	c, s := r.p.Containerd, r.spec.Containerd
	if r.unknown {
		return
	}
	v := s.Version
	known := []string{"overlayfs", "native", "btrfs", "zfs", "devmapper"}
	if v.AtLeast(1, 7, 0) {
		known = append(known, "blockfile")
	}
	if v.AtLeast(2, 1, 0) {
		known = append(known, "erofs")
	}
	if !v.AtLeast(2, 0, 0) {
		known = append(known, "aufs")
	}
	if slices.Contains(known, s.Snapshotter) {
		return
	}
	for name, plugin := range c.ProxyPlugins {
		if name != s.Snapshotter {
			known = append(known, name)
			continue
		}
		if plugin.Type == "snapshot" || plugin.Type == "" {
			return
		}
		r.fault("containerd.snapshotter", "", "the proxy plugin %s is of type %s, not a snapshotter", name, plugin.Type)
		return
	}
	if plugins, ok := c.Settings["proxy_plugins"].(map[string]any); ok && plugins[s.Snapshotter] != nil {
		return
	}
	hint := "declare it under containerd.proxyPlugins"
	slices.Sort(known)
	if n := spelling.Nearest(s.Snapshotter, known); n != "" {
		hint = "did you mean " + n + "?"
	}
	r.fault("containerd.snapshotter", hint, "containerd %s has no snapshotter %s, and no proxy plugin has that name", v, quote(s.Snapshotter))
}

func (r *resolver) network() {
	n := r.p.CNI.Network
	const at = "cni.network"
	if n.None || len(n.Subnet) == 0 {
		return
	}
	if !r.spec.CNI.Installed() {
		r.fault(at, "leave cni.version out, or set cni.network to none", "a bridge network needs the CNI plugins, and cni.version is none")
	}
	if len(n.Subnet) > 2 {
		r.fault(at+".subnet", "", "found %d subnets, want one, or one of IPv4 and one of IPv6", len(n.Subnet))
	} else if len(n.Subnet) == 2 {
		a, errA := netip.ParsePrefix(n.Subnet[0])
		b, errB := netip.ParsePrefix(n.Subnet[1])
		if errA == nil && errB == nil && a.Addr().Is4() == b.Addr().Is4() {
			r.fault(at+".subnet", "", "both subnets are of the same address family, want one of IPv4 and one of IPv6")
		}
	}
	r.spec.CNI.Network = &Network{
		Name: orText(n.Name, "nodeprep"), Bridge: orText(n.Bridge, "cni0"),
		Subnets: n.Subnet, MTU: or(n.MTU, 0),
		IPMasq: or(n.IPMasq, true), PortMapping: or(n.PortMapping, true),
	}
}

func (r *resolver) systemd() {
	g, s := r.p.Systemd, &r.spec.Systemd
	s.OOMScoreAdjust = or(g.OOMScoreAdjust, -999)
	s.Delegate = or(g.Delegate, true)
	s.KillMode = orText(g.KillMode, "process")
	s.LimitNOFILE = g.LimitNOFILE
	s.HostVersion = r.facts.Systemd
	s.After = g.After
	s.RequiresMountsFor = g.RequiresMountsFor
	s.NoProxy = g.Proxy.NoProxy
	s.Environment = map[string]string{}
	for _, name := range sortedKeys(g.Environment) {
		at := "systemd.environment." + name
		s.Environment[name] = g.Environment[name]
		field := map[string]string{"HTTP_PROXY": "http", "HTTPS_PROXY": "https", "NO_PROXY": "noProxy"}[strings.ToUpper(name)]
		switch {
		case field != "":
			r.warn(at, "write it as systemd.proxy."+field, "a proxy in environment is shown to every user by systemctl show, credentials included")
		case SecretNamed(name, g.Environment[name]):
			r.warn(at, "keep secrets out of the environment", "this sounds like a secret, and systemctl show prints the environment to every user")
		case HasSecret(g.Environment[name]):
			r.warn(at, "keep secrets out of the environment", "a secret seems to be in this value, and systemctl show prints the environment to every user")
		}
	}
	if !s.Delegate {
		r.warn("systemd.delegate", "leave it out", "without delegation systemd may move containers out of their cgroups")
	}
	if s.KillMode != "process" {
		r.warn("systemd.killMode", "leave it out", "with %s, restarting containerd kills the containers", s.KillMode)
	}
	s.HTTPProxy = r.proxy("systemd.proxy.http", g.Proxy.HTTP)
	s.HTTPSProxy = r.proxy("systemd.proxy.https", g.Proxy.HTTPS)
	if len(s.NoProxy) > 0 && !g.Proxy.HTTP.Given() && !g.Proxy.HTTPS.Given() && !r.faultyUnder("systemd.proxy") {
		r.warn("systemd.proxy.noProxy", "give systemd.proxy.http or https", "this has no effect without a proxy")
	}
}

// faultyUnder says whether a field, or one within it, could not be decoded.
func (r *resolver) faultyUnder(at string) bool { return r.p.faultyWithin[at] }

// proxy marks a proxy without credentials as fit to be seen.
func (r *resolver) proxy(at string, s Secret) Secret {
	if s.Value == "" || s.Value == Masked {
		return s
	}
	u, err := url.Parse(s.Value)
	s.Plain = err == nil && u.User == nil
	if !s.Plain {
		r.warn(at, "give the URL as {file: PATH}, {env: NAME} or {credential: NAME}", "the proxy's credentials stand in the profile for all to read")
	}
	return s
}

func (r *resolver) rest() {
	p, s := r.p, r.spec
	s.Modules = p.Host.Modules
	if s.Modules == nil {
		s.Modules = []string{"overlay"}
	}
	s.Sysctl = map[string]string{}
	seen := map[string]string{}
	for _, key := range sortedKeys(p.Host.Sysctl) {
		at := "host.sysctl." + key
		if p.Host.Sysctl[key] == "" {
			continue // reported by the decoder
		}
		if other, ok := seen[sysctlPath(key)]; ok {
			r.fault(at, "remove one of them", "%s and %s are the same kernel parameter", other, key)
		}
		seen[sysctlPath(key)] = key
		s.Sysctl[key] = p.Host.Sysctl[key]
		if strings.HasPrefix(key, "net.bridge.") && !slices.Contains(s.Modules, "br_netfilter") {
			r.warn(at, "add br_netfilter to host.modules", "this key does not exist before the module br_netfilter is loaded")
		}
	}
	warned := false
	for i, image := range p.Images {
		at := index("images", i)
		if image.File.Path == "" {
			continue
		}
		img := Image{File: image.File, Pin: or(image.Pin, true)}
		s.Images = append(s.Images, img)
		// Once, since they are pinned unless the profile says otherwise.
		if img.Pin && !warned && !r.unknown && !releases.PinSupported(s.Containerd.Version) {
			warned = true
			if image.Pin != nil {
				at += ".pin"
			}
			r.warn(at, "write pin: false, or take containerd 1.6.22, 1.7.3 or newer",
				"containerd %s ignores pins, so that the kubelet may remove images when its disk fills; they came with 1.6.22 and 1.7.3", s.Containerd.Version)
		}
	}
	for i, source := range p.Sources {
		at := index("sources", i)
		switch dir, web := source.Dir.Path != "", source.URL != ""; {
		case dir && web:
			r.fault(at, "write two sources", "a source is a dir or a url, and this has both")
		case !dir && !web && !r.faultyUnder(at):
			r.fault(at, "write {dir: PATH} or {url: URL}", "a source is a dir or a url, and this has neither")
		default:
			s.Sources = append(s.Sources, Source{Dir: source.Dir.Path, URL: source.URL, Origin: r.at(at)})
		}
	}
	s.Generations = or(p.Generations, 3)
	s.SkipChecks = p.Checks.Skip
	names := map[string]bool{}
	for i, c := range p.Kubelet.CredentialProviders {
		at := index("kubelet.credentialProviders", i)
		if c.Name != "" && names[c.Name] {
			r.fault(at+".name", "", "a second provider has the name %s", c.Name)
		}
		names[c.Name] = true
		if c.MatchImages != nil && len(c.MatchImages) == 0 {
			r.fault(at+".matchImages", "", "the list is empty, so the provider would never be asked")
		}
		s.CredentialProviders = append(s.CredentialProviders, CredentialProvider{
			Name: c.Name, MatchImages: c.MatchImages,
			DefaultCacheDuration: orText(c.DefaultCacheDuration, "12h"),
			APIVersion:           orText(c.APIVersion, "credentialprovider.kubelet.k8s.io/v1"),
			Args:                 c.Args, Env: c.Env,
			TokenAttributes: r.tokenAttributes(at, c),
		})
		for j, image := range c.MatchImages {
			if strings.Contains(image, "://") {
				r.fault(index(at+".matchImages", j), "leave the scheme out", "a pattern with a scheme matches no image")
			}
		}
	}
}

// tokenAttributes checks what the kubelet would refuse, and so not start with
// (pkg/credentialprovider/plugin, validateCredentialProviderConfig).
func (r *resolver) tokenAttributes(at string, c CredentialProviderSection) *TokenAttributes {
	g := c.TokenAttributes
	if g == nil {
		return nil
	}
	at += ".tokenAttributes"
	kubernetes, err := releases.ParseVersion(r.spec.Kubernetes + ".0")
	known := err == nil
	switch {
	case known && !kubernetes.AtLeast(1, 33, 0):
		r.fault(at, "leave it out", "the kubelet of Kubernetes %s does not know this; it came with 1.33", r.spec.Kubernetes)
	case known && !kubernetes.AtLeast(1, 34, 0) && g.CacheType != "":
		r.fault(at+".cacheType", "leave it out", "the kubelet of Kubernetes %s does not know this; it came with 1.34", r.spec.Kubernetes)
	case (!known || kubernetes.AtLeast(1, 34, 0)) && g.CacheType == "" && !r.faultyUnder(at):
		r.fault(at, "such as cacheType: ServiceAccount", `"cacheType" is missing, without which the kubelet of Kubernetes 1.34 and newer does not start`)
	}
	if v := c.APIVersion; v != "" && v != "credentialprovider.kubelet.k8s.io/v1" {
		r.fault(at, "leave apiVersion out", "the kubelet gives tokens to providers of credentialprovider.kubelet.k8s.io/v1 alone, not of %s", v)
	}
	if !or(g.RequireServiceAccount, true) && len(g.RequiredServiceAccountAnnotationKeys) > 0 {
		r.fault(at+".requiredServiceAccountAnnotationKeys", "write them as optionalServiceAccountAnnotationKeys", "annotations cannot be required where a service account is not")
	}
	return &TokenAttributes{
		Audience: g.ServiceAccountTokenAudience, CacheType: g.CacheType, RequireServiceAccount: or(g.RequireServiceAccount, false),
		RequiredAnnotations: g.RequiredServiceAccountAnnotationKeys, OptionalAnnotations: g.OptionalServiceAccountAnnotationKeys,
	}
}

// sysctlPath is the file of a kernel parameter as sysctl.d(5) finds it: with a dot as
// the first separator, dots and slashes trade places.
func sysctlPath(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		return strings.Map(func(c rune) rune {
			switch c {
			case '.':
				return '/'
			case '/':
				return '.'
			}
			return c
		}, key)
	}
	return key
}

// registries resolves certs.d, sorted by host with "*" last.
func (r *resolver) registries() {
	hosts := sortedKeys(r.p.Registries)
	if i := slices.Index(hosts, "*"); i >= 0 {
		hosts = append(slices.Delete(hosts, i, i+1), "*")
	}
	for _, host := range hosts {
		r.registry(host, r.p.Registries[host])
	}
}

func (r *resolver) registry(host string, g RegistrySection) {
	at := "registries." + host
	v := r.spec.Containerd.Version
	out := Registry{Host: host, Deny: g.Upstream == "deny"}
	if host == "*" && !r.unknown && !releases.DefaultDirSupported(v) {
		r.fault(at, "name the registries one by one, or take 1.6.17 or newer", "containerd %s does not read the folder for every registry; it came with 1.6.17", v)
	}
	if host != "*" && host != "localhost" && !strings.ContainsAny(host, ".:") {
		// reference.ParseDockerRef takes it for the first part of a name on Docker Hub.
		r.warn(at, "write its full name, such as "+host+".example.com", "%s has neither a dot nor a port: images named %s/... are Docker Hub's, so this entry is never read", host, host)
	}
	switch hub, ok := Hub(host); {
	case !ok, host == "docker.io":
	case hub.Unread:
		r.warn(at, "write docker.io", "images of Docker Hub are looked up under docker.io, so this entry is never read")
	default:
		r.warn(at, "write docker.io", "images of Docker Hub are looked up under docker.io; this entry is for images that are named %s/... alone", host)
	}
	seen := map[string]string{}
	for i, m := range g.Mirrors {
		field := index(at+".mirrors", i)
		e := r.endpoint(field, m.URL, m.EndpointSection)
		switch api := apiRoot(m.URL, e.OverridePath); {
		case api == "":
		case seen[api] == m.URL:
			r.fault(field+".url", "remove one of them", "the mirror %s is listed twice; containerd would ignore the whole file", m.URL)
		case seen[api] != "":
			r.fault(field+".url", "remove one of them", "the mirror %s is listed twice: %s is the same, and would be asked again", m.URL, seen[api])
		default:
			seen[api] = m.URL
		}
		r.notTheHub(field+".url", m.URL, "write https://registry-1.docker.io")
		e.Auth = r.auth("", field+".auth", m.Auth)
		out.Mirrors = append(out.Mirrors, e)
	}

	server := r.endpoint(at, g.Server, g.EndpointSection)
	if g.Server != "" || serverGiven(g.EndpointSection) {
		out.Server = &server
	}
	switch {
	case !out.Deny:
	case len(g.Mirrors) == 0 && !r.faultyUnder(at+".mirrors"):
		r.fault(at+".upstream", "add a mirror, or allow the upstream", "upstream is denied and there is no mirror, so nothing could be pulled")
	case out.Server != nil:
		r.fault(at+".upstream", "remove them, or allow the upstream", "upstream is denied, and the entry says how to speak to it: %s", strings.Join(serverKeys(g), ", "))
	}
	if i := slices.IndexFunc(g.Mirrors, func(m MirrorSection) bool { return isUpstream(host, m.URL) }); out.Deny && i >= 0 {
		r.fault(index(at+".mirrors", i)+".url", "take the mirror away, or allow the upstream", "upstream is denied, and the mirror %s is the upstream", g.Mirrors[i].URL)
	}
	if out.Deny && len(out.Mirrors) > 0 && !slices.ContainsFunc(out.Mirrors, resolves) && !r.faultyUnder(at+".mirrors") {
		r.warn(at+".upstream", "give a mirror the capability resolve", "upstream is denied and no mirror resolves tags, so images can be pulled by digest alone")
	}
	hint := "write https://registry-1.docker.io"
	if host == "docker.io" {
		hint += ", or leave it out"
	}
	r.notTheHub(at+".server", g.Server, hint)
	if host == "*" && g.Server != "" {
		r.warn(at+".server", "write it as the last mirror, with upstream: deny, if that is meant", "with this every registry without an entry of its own is asked for at %s, and never itself", g.Server)
	}
	out.Auth = r.auth(host, at+".auth", g.Auth)
	r.spec.Registries = append(r.spec.Registries, out)
}

// isUpstream says whether a URL goes to the registry itself.
func isUpstream(registry, u string) bool {
	parsed, err := url.Parse(u)
	if err != nil || parsed.Host == "" {
		return false
	}
	host, own := strings.ToLower(parsed.Host), strings.ToLower(registry)
	for _, port := range []string{":443", ":80"} {
		if parsed.Scheme == map[string]string{":443": "https", ":80": "http"}[port] {
			host, own = strings.TrimSuffix(host, port), strings.TrimSuffix(own, port)
		}
	}
	if hub, ok := Hub(host); ok && hub.Serves {
		host = "docker.io"
	}
	return host == own
}

// notTheHub warns of a URL that goes to Docker Hub by a name that serves no images.
func (r *resolver) notTheHub(at, u, hint string) {
	parsed, err := url.Parse(u)
	if err != nil {
		return
	}
	if hub, ok := Hub(strings.ToLower(parsed.Hostname())); ok && !hub.Serves {
		r.warn(at, hint, "%s does not serve images", u)
	}
}

// apiRoot is the root of a host's API, by which two spellings of one URL are known: hosts
// are written in any case and with the port of their scheme. "" for what is no URL.
func apiRoot(u string, override bool) string {
	parsed, err := url.Parse(u)
	if err != nil || parsed.Host == "" {
		return ""
	}
	host, port := strings.ToLower(parsed.Hostname()), parsed.Port()
	if port == "" || port == "443" && parsed.Scheme == "https" || port == "80" && parsed.Scheme == "http" {
		port = ""
	} else {
		port = ":" + port
	}
	p := strings.TrimRight(parsed.Path, "/")
	if !override && !hasV2(p) {
		p += "/v2"
	}
	return parsed.Scheme + "://[" + host + "]" + port + p
}

// hasV2 says whether a path has the API's root in it, so that /v2 is not to be added.
func hasV2(p string) bool { return slices.Contains(strings.Split(p, "/"), "v2") }

// resolves says whether a host is asked what a tag stands for.
func resolves(e Endpoint) bool {
	return len(e.Capabilities) == 0 || slices.Contains(e.Capabilities, "resolve")
}

func serverGiven(e EndpointSection) bool {
	return len(serverKeys(RegistrySection{EndpointSection: e})) > 0
}

// serverKeys are the keys of an entry that are about the registry itself.
func serverKeys(g RegistrySection) []string {
	var out []string
	for _, k := range []struct {
		name  string
		given bool
	}{
		{"server", g.Server != ""},
		{"capabilities", len(g.Capabilities) > 0},
		{"ca", len(g.CA) > 0},
		{"client", len(g.Client) > 0},
		{"skipVerify", g.SkipVerify != nil},
		{"overridePath", g.OverridePath != nil},
		{"header", len(g.Header) > 0},
		{"dialTimeout", g.DialTimeout != ""},
	} {
		if k.given {
			out = append(out, k.name)
		}
	}
	return out
}

// endpoint resolves how one host is spoken to; u is empty for a registry itself.
func (r *resolver) endpoint(at, u string, g EndpointSection) Endpoint {
	v := r.spec.Containerd.Version
	e := Endpoint{
		URL: u, Capabilities: g.Capabilities, CA: g.CA,
		SkipVerify: g.SkipVerify, OverridePath: or(g.OverridePath, false),
	}
	for _, c := range g.Client {
		e.Client = append(e.Client, ClientCert(c))
	}
	if g.DialTimeout != "" {
		e.DialTimeout, _ = time.ParseDuration(g.DialTimeout) // the decoder checked it
		if !r.unknown && !releases.DialTimeoutSupported(v) {
			r.fault(at+".dialTimeout", "leave it out", "containerd %s does not read a dial timeout; it came with 2.0.7 and 2.1.0", v)
		}
	}
	if slices.Contains(g.Capabilities, "referrers") && !r.unknown && !releases.ReferrersSupported(v) {
		r.fault(index(at+".capabilities", slices.Index(g.Capabilities, "referrers")), "leave it out",
			"containerd %s ignores the whole file for the capability referrers; it came with 2.2.0", v)
	}
	given := map[string]string{}
	for _, name := range sortedKeys(g.Header) {
		if other := given[strings.ToLower(name)]; other != "" {
			r.fault(at+".header."+name, "keep one of them", "the headers %s and %s are one to HTTP, which knows no capitals", other, name)
		}
		given[strings.ToLower(name)] = name
		e.Header = append(e.Header, r.header(at+".header."+name, name, g.Header[name]))
	}
	r.endpointURL(at, u, g.OverridePath, e)
	return e
}

// endpointURL warns of URLs that are read, but not as their author means them.
func (r *resolver) endpointURL(at, u string, override *bool, e Endpoint) {
	if u == "" {
		if e.OverridePath && !strings.HasSuffix(at, "]") {
			r.fault(at+".overridePath", "give the registry's URL with its path as server", "overridePath without a server has no path to override with")
		}
		return
	}
	parsed, err := url.Parse(u)
	if err != nil {
		return
	}
	if e.OverridePath && path.Clean("/"+parsed.Path) == "/" {
		r.fault(at+".overridePath", "remove it, or write "+u+"/v2", "overridePath on a URL without a path: containerd would leave the API's /v2 out")
	}
	field := at + ".url"
	if !strings.HasSuffix(at, "]") {
		field = at + ".server"
	}
	switch p := strings.TrimRight(parsed.Path, "/"); {
	case p == "" || strings.HasSuffix(p, "/v2"):
	case hasV2(p) && override != nil && !*override:
		r.fault(at+".overridePath", "leave it out", "the path has /v2 in it, and without overridePath containerd would ask at %s/v2", p)
	case !hasV2(p) && override == nil:
		r.warn(field, "write overridePath: false if that is where it is, or true if the path is the whole root", "the API is asked for at %s/v2: containerd puts /v2 behind a path", p)
	}
}

// secretHeader says whether the value of a header is a secret.
func secretHeader(name, value string) bool {
	return soundsSecret(name) || maskText(value) != value
}

// header resolves a header's values. Those that carry credentials are not shown.
func (r *resolver) header(at, name string, values HeaderValues) Header {
	h := Header{Name: name}
	for _, v := range values {
		secret := secretHeader(name, v.Value)
		v.Plain = v.Value != "" && v.Value != Masked && !secret
		if v.Value != "" && secret {
			r.list.Warnf(v.Origin, "give it as {file: PATH}, {env: NAME} or {credential: NAME}", "the value of this header stands in the profile for all to read")
		}
		h.Values = append(h.Values, v)
	}
	if len(h.Values) == 0 && !r.faultyUnder(at) {
		r.fault(at, "", "the header has no value")
	}
	return h
}

func (r *resolver) auth(host, at string, g AuthSection) *Auth {
	user, password, token := g.Username.Given(), g.Password.Given(), g.IdentityToken.Given()
	if !user && !password && !token {
		if _, ok := r.p.origins[at]; ok && !r.faultyUnder(at) {
			r.fault(at, "give username and password, or identityToken", "the credentials are empty")
		}
		return nil
	}
	switch {
	case r.faultyUnder(at):
	case host == "*":
		r.fault(at, "give them at the registry or mirror they are for", `containerd knows credentials by host, and "*" is none`)
	case token && (user || password):
		r.fault(at, "give one of the two", "found both an identity token and a user name or password")
	case user != password:
		r.fault(at, "", "found a user name or a password, want both")
	case strings.Contains(g.Username.Value, ":"):
		r.fault(at+".username", "", "the user name has a colon, which ends it for the registry (RFC 7617)")
	}
	a := Auth(g)
	a.Username.Plain = a.Username.Value != "" && a.Username.Value != Masked
	for _, s := range []struct {
		key   string
		value Secret
	}{{"password", a.Password}, {"identityToken", a.IdentityToken}} {
		if s.value.Value != "" {
			r.warn(at+"."+s.key, "give it as {file: PATH}, {env: NAME} or {credential: NAME}", "the %s stands in the profile for all to read", map[string]string{"password": "password", "identityToken": "token"}[s.key])
		}
	}
	return &a
}
