package checks

import (
	"cmp"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/render/registry"
)

// configChecks are about config.toml and its imports.
func configChecks() []Check {
	const parses = "config/parses"
	return []Check{
		{
			ID: parses, Stage: Audit, Severity: Required,
			Why:    "With a config that it cannot read the daemon does not come back after the next restart.",
			Source: "containerd-config.tomlText(5); cmd/containerd/server/config",
			Needs:  []string{"binary/containerd"},
			Remedy: "correct the line; containerd --config FILE config dump says whether it is read",
			Run:    ofConfig(configParses),
		},
		{
			ID: "config/schema", Stage: Audit, Severity: Required,
			Why:    "A config of another version than the daemon's is migrated at each start, or read by the wrong rules.",
			Source: "containerd RELEASES.md, Daemon Configuration",
			Needs:  []string{parses, "config/imports"},
			Remedy: "write the config anew in the release's own version: containerd config migrate",
			Run:    ofConfig(configSchema),
		},
		{
			ID: "config/imports", Stage: Audit, Severity: Required,
			Why:    "A drop-in of another version turns off sections of the root file, and with 1.x any drop-in replaces whole sections of it.",
			Source: "containerd issues 5837, 7982; cmd/containerd/server/config, mergeConfig",
			Needs:  []string{parses},
			Remedy: "give all files one version and, with 1.x, keep each section in one file",
			Run:    ofConfig(configImports),
		},
		{
			ID: "config/ignored-sections", Stage: Audit, Severity: Required,
			Why:    "Settings where this release does not look do nothing: no systemd cgroups, another sandbox image, no metrics, and no error.",
			Source: "containerd docs/cri/config.md, versions; kubespray issue 13285",
			Needs:  []string{parses, "config/imports"},
			Remedy: "write the settings where the file's version has them, or give the file the version that they are of",
			Run:    ofConfig(configSections),
		},
		{
			ID: "config/ignored-keys", Stage: Audit, Severity: Recommended,
			Why:    "A key that the daemon does not know does nothing, and only a line of its log says so, with 1.x not even that.",
			Source: "containerd-config.tomlText(5)",
			Needs:  []string{parses},
			Remedy: "correct the key or take it out",
			Run:    ofConfig(configKeys),
		},
		{
			ID: "config/deprecated", Stage: Audit, Severity: Recommended,
			Why:    "A deprecated setting works until the upgrade that drops it.",
			Source: "containerd RELEASES.md, Deprecated features",
			Needs:  []string{parses},
			Remedy: "use what takes its place",
			Run:    ofConfig(configDeprecated),
		},
		{
			ID: "config/mirrors", Stage: Audit, Severity: Required,
			Why:    "CRI refuses to start with mirrors beside config_path, and since 2.0 nobody reads registry.configs for TLS: every pull with a private CA fails.",
			Source: "containerd internal/cri/config, ValidateImageConfig; kubespray issue 9741; kops issue 18279",
			Needs:  []string{parses},
			Remedy: "move mirrors and TLS to hosts.toml files below config_path",
			Run:    ofConfig(configMirrors),
		},
		{
			ID: "config/registry-path", Stage: Audit, Severity: Required,
			Why:    "Since 2.1 config_path is one folder's name, also where a list of two is the default: with a list no hosts.toml is read.",
			Source: "containerd issue 12808; core/transfer/registry/registry.go",
			Needs:  []string{parses, "config/mirrors"},
			Remedy: "write config_path = \"/etc/containerd/certs.d\"",
			Run:    ofConfig(configRegistryPath),
		},
		{
			ID: "config/cni-bin-dirs", Stage: Audit, Severity: Required,
			Why:    "CRI refuses to start with both bin_dir and bin_dirs.",
			Source: "containerd internal/cri/config, ValidateRuntimeConfig",
			Needs:  []string{parses},
			Remedy: "take out bin_dir",
			Run:    ofConfig(configBinDirs),
		},
		{
			ID: "config/cri-enabled", Stage: Audit, Severity: Required,
			Why:    "Without CRI a kubelet gets \"unknown service runtime.v1.RuntimeService\": Docker's package ships a config that turns it off.",
			Source: "containerd docs/getting-started.md; kubeadm, Installing a container runtime",
			Needs:  []string{parses},
			Remedy: "take cri out of disabled_plugins",
			Run:    ofConfig(configCRI),
		},
		{
			ID: "config/default-runtime", Stage: Audit, Severity: Required,
			Why:    "CRI refuses to start when its default runtime is not among its runtimes.",
			Source: "containerd internal/cri/config, ValidateRuntimeConfig",
			Needs:  []string{parses, "config/imports", "config/ignored-sections"},
			Remedy: "set default_runtime_name to a runtime that is configured",
			Run:    ofConfig(configDefaultRuntime),
		},
		{
			ID: "config/runtimes", Stage: Audit, Severity: Required,
			Why:    "Pods of a runtime whose program or shim is missing, or that has no type, do not start; nothing looks before that.",
			Source: "containerd docs/cri/config.md, runtimes; core/runtime/v2/shim_manager.go",
			Needs:  []string{parses},
			Remedy: "install the runtime, or take it out of the config",
			Run:    ofConfig(configRuntimes),
		},
		{
			ID: "config/systemd-cgroup", Stage: Audit, Severity: Required,
			Why:    "With systemd as init a second manager of cgroups does what systemd undoes: pods are killed and restarted under pressure.",
			Source: "Kubernetes docs, Container Runtimes, cgroup drivers; kubernetes issue 117293",
			Needs:  []string{parses, "config/imports", "config/ignored-sections"},
			Remedy: "set SystemdCgroup = true in the options of each runtime of runc's shim",
			Run:    ofConfig(configSystemdCgroup),
		},
		{
			ID: "config/kubelet-cgroup-driver", Stage: Audit, Severity: Required,
			Why:    "When the kubelet and containerd have different cgroup drivers, the kubelet's limits are on groups that have no processes.",
			Source: "Kubernetes docs, Configuring a cgroup driver",
			Needs:  []string{NeedKubelet, parses, "config/systemd-cgroup"},
			Remedy: "set cgroupDriver: systemd in the kubelet's config",
			Run:    ofConfig(configKubelet),
		},
		{
			ID: "config/sandbox-image", Stage: Audit, Severity: Recommended,
			Why:    "kubeadm pulls and keeps one pause image; when containerd wants another, a node without the internet starts no pod.",
			Source: "kubernetes issue 129479; kubeadm issues 2801, 3146",
			Needs:  []string{parses},
			Remedy: "set the sandbox image to the one of the Kubernetes version",
			Run:    ofConfig(configSandboxImage),
		},
		{
			ID: "config/oom-score", Stage: Audit, Severity: Required,
			Why:    "oom_score in config.toml is written by the daemon itself after its start and overrides the unit's OOMScoreAdjust.",
			Source: "containerd cmd/containerd/server/server_linux.go; systemd.exec(5), OOMScoreAdjust=",
			Needs:  []string{parses},
			Remedy: "take oom_score out of config.toml",
			Run:    ofConfig(configOOMScore),
		},
		{
			ID: "config/profile", Stage: Audit, Severity: Required,
			Why:    "A setting that was changed by hand is in force until the next apply, which takes it away again.",
			Source: "nodeprep docs, Drift",
			Needs:  []string{NeedProfile, parses, "config/ignored-sections", "config/default-runtime", "config/registry-path"},
			Remedy: "nodeprep apply --adopt, or put the change into the profile",
			Run:    ofConfig(configProfile),
		},
		{
			ID: "config/root", Stage: Audit, Severity: Recommended,
			Why:    "Images on a tmpfs fill memory and are gone after a reboot, and data in a root that is no longer used fills the disk.",
			Source: "containerd docs/ops.md, Base configuration",
			Needs:  []string{parses},
			Remedy: "put root on a disk, and remove what the old one has",
			Run:    ofConfig(configRoot),
		},
		{
			ID: "config/permissions", Stage: Audit, Severity: Recommended,
			Why:    "Credentials in a config that everybody can read are everybody's.",
			Source: "containerd docs/cri/registry.md, Configure Registry Credentials",
			Needs:  []string{parses},
			Remedy: "chmod 0600 the file",
			Run:    ofConfig(configPermissions),
		},
		{
			ID: "config/exposed", Stage: Audit, Severity: Recommended,
			Why:    "Whoever reaches containerd's API over TCP is root on the node; its metrics and debug ports tell what runs here.",
			Source: "containerd docs/ops.md; containerd-config.tomlText(5), grpc tcp_address",
			Needs:  []string{parses},
			Remedy: "listen on 127.0.0.1, or with TLS that demands certificates of clients",
			Run:    ofConfig(configExposed),
		},
		{
			ID: "config/transfer", Stage: Audit, Severity: Recommended,
			Why:    "Since 2.1 one of several old settings is enough to make CRI pull by itself, without the transfer service and its settings.",
			Source: "containerd internal/cri/config, CheckLocalImagePullConfigs",
			Needs:  []string{parses},
			Remedy: "take the setting out, or set use_local_image_pull = true to say that it is meant",
			Run:    ofConfig(configTransfer),
		},
	}
}

// ofConfig is a check of the config as it is on the disk.
func ofConfig(look func(n *Node, c *configtoml.Config) []Result) func(context.Context, *Node) []Result {
	return func(_ context.Context, n *Node) []Result {
		c, err := n.Config()
		if err != nil {
			return unknown(err)
		}
		return look(n, c)
	}
}

// rules is the release by whose rules the config is read: the newest where it is not known.
func rules(c *configtoml.Config) releases.Version {
	if c.Release == (releases.Version{}) {
		return releases.Version{Major: 2, Minor: 4, Patch: 2}
	}
	return c.Release
}

// key prints a path of config.toml as one would write it.
func key(path []string) string {
	out := make([]string, len(path))
	for i, p := range path {
		if out[i] = p; strings.ContainsAny(p, ".: /") || p == "" {
			out[i] = tomlText(p)
		}
	}
	return strings.Join(out, ".")
}

func configParses(n *Node, c *configtoml.Config) []Result {
	var faults []Result
	for _, f := range c.Faults {
		edit := "# " + cmp.Or(f.Hint, "correct "+f.Place.String())
		if want := releases.ConfigSchema(c.Release); n.isSetting(f.Place, "version") && c.Release != (releases.Version{}) {
			edit = n.setValue(f.Place, "version", strconv.Itoa(want))
		}
		faults = append(faults, Result{Verdict: Fail, Observed: f.Problem, Wanted: f.Hint, Place: f.Place.String(), Remedy: n.fixConfig(f.Place.File, edit)})
	}
	if !c.Exists {
		return orPass(faults, "there is no %s: containerd's defaults hold", c.Path)
	}
	names := make([]string, len(c.Files))
	for i, f := range c.Files {
		names[i] = f.Path
	}
	return orPass(faults, "%s", strings.Join(names, ", "))
}

func configSchema(n *Node, c *configtoml.Config) []Result {
	if !c.Exists {
		return pass("there is no %s: containerd's defaults hold", c.Path)
	}
	if c.Release == (releases.Version{}) {
		return []Result{{Verdict: Unknown, Observed: "which containerd reads " + c.Path + " is not known"}}
	}
	want := releases.ConfigSchema(c.Release)
	var faults []Result
	for _, f := range c.Files {
		place := cmp.Or(f.Place("version").String(), f.Path)
		r := Result{Object: f.Path, Observed: fmt.Sprintf("version %d", f.Version), Wanted: fmt.Sprintf("version %d", want), Place: place}
		if f.Version == 0 {
			r.Observed = "no version, which is taken as 1"
		}
		switch {
		case f.Version == want:
			continue
		case f.Version > want:
			r.Verdict, r.Note = Fail, fmt.Sprintf("containerd %s reads it by the rules of version %d, which has other sections", c.Release, want)
			r.Remedy = n.fixConfig(f.Path, fmt.Sprintf("# write it anew in version %d: containerd config default shows its keys", want))
		default:
			r.Verdict, r.Note = Warn, "containerd migrates it at each start"
			if c.Release.AtLeast(2, 0, 0) && len(c.Files) == 1 {
				file := quote(n.onHost(f.Path))
				r.Remedy = n.fixConfig(f.Path, fmt.Sprintf("containerd --config %s config migrate > %s.new && mv %s.new %s", file, file, file, file))
			}
		}
		faults = append(faults, r)
	}
	return orPass(faults, "version %d, which containerd %s reads as its own", want, c.Release.Line())
}

// misplaced says whether a key is ignored for where it stands: it means something in a
// file of another version. That it is misspelt, or removed, is another matter.
func misplaced(c *configtoml.Config, k configtoml.Key) bool {
	if k.Empty || len(k.Path) < 2 {
		return false
	}
	version := 0
	for _, f := range c.Files {
		if f.Path == k.Place.File {
			version = f.Version
		}
	}
	two, servers := rules(c).AtLeast(2, 0, 0), rules(c).AtLeast(2, 3, 0)
	name := k.Path[1]
	switch k.Path[0] {
	case "grpc", "ttrpc", "metrics", "debug":
		settings := []string{"address", "uid", "gid", "max_recv_message_size", "max_send_message_size", "grpc_histogram"}
		return servers && (slices.Contains(settings, name) || strings.HasPrefix(name, "tcp_"))
	case "plugins":
	default:
		return false
	}
	if r, ok := releases.NewRetiredSettings().Of(k.Path); ok && r.Removed != (releases.Version{}) && rules(c).Compare(r.Removed) >= 0 {
		return false
	}
	_, elsewhere := releases.SettingsFault(rules(c), k.Path)
	switch {
	case name == "cri":
		return version >= 2 // a short name, which only version 1 has
	case name == criSection:
		migrated := c.Schema < 3
		if servers {
			migrated = version < 3
		}
		// Of what is migrated, the snapshotter's settings may be dropped.
		dropped := len(k.Path) == 4 && k.Path[2] == "containerd" &&
			slices.Contains([]string{"snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"}, k.Path[3])
		return !two && version < 2 || two && (!migrated || dropped)
	case name == criImagesSection, name == criRuntimeSection:
		return !two || elsewhere
	case strings.HasPrefix(name, "io.containerd.server.v1."):
		return !servers
	}
	return false
}

func configSections(n *Node, c *configtoml.Config) []Result {
	type section struct{ file, name string }
	var order []section
	found := map[section][]configtoml.Key{}
	for _, k := range c.Ignored {
		if !misplaced(c, k) {
			continue
		}
		s := section{k.Place.File, key(k.Path[:1])}
		if k.Path[0] == "plugins" {
			s.name = key(k.Path[:2])
		}
		if found[s] == nil {
			order = append(order, s)
		}
		found[s] = append(found[s], k)
	}
	var faults []Result
	for _, s := range order {
		keys := found[s]
		skip := strings.Count(s.name, ".") + 1
		if strings.HasPrefix(s.name, "plugins.") {
			skip = 2
		}
		var names, hints []string
		for _, k := range keys {
			if len(k.Path) > skip {
				names = append(names, key(k.Path[skip:]))
			}
			if k.Hint != "" && !slices.Contains(hints, k.Hint) {
				hints = append(hints, k.Hint)
			}
		}
		observed := "is not read"
		if len(names) > 0 {
			observed = "not read: " + strings.Join(names, ", ")
		}
		faults = append(faults, Result{
			Verdict: Fail, Object: s.name, Observed: observed, Wanted: strings.Join(hints, "; "), Place: keys[0].Place.String(),
			Remedy: n.fixConfig(s.file, n.otherVersion(c, s.file, keys)),
		})
	}
	return orPass(faults, "every section is read")
}

// otherVersion is the edit that gives a file the version that its sections are of, where
// all of them are of one.
func (n *Node) otherVersion(c *configtoml.Config, file string, keys []configtoml.Key) string {
	for _, f := range c.Files {
		at := f.Place("version")
		if f.Path != file || !n.isSetting(at, "version") {
			continue
		}
		plugins, _ := f.Tree["plugins"].(map[string]any)
		has := func(prefix string) bool {
			return slices.ContainsFunc(slices.Collect(maps.Keys(plugins)), func(p string) bool { return strings.HasPrefix(p, prefix) })
		}
		server := slices.ContainsFunc(keys, func(k configtoml.Key) bool { return k.Path[0] != "plugins" })
		switch {
		case server && f.Version == 4 && !has("io.containerd.server.v1."):
			return n.setValue(at, "version", "3")
		case !server && f.Version >= 3 && len(c.Files) == 1 && !has("io.containerd.cri.v1.") && !has("io.containerd.server.v1."):
			return n.setValue(at, "version", "2")
		}
	}
	var lines []string
	for _, k := range keys {
		lines = append(lines, fmt.Sprintf("# %s, %s: %s", k.Place, key(k.Path), k.Hint))
	}
	return strings.Join(lines, "\n")
}

// ofTLS says whether a key is registry.configs.HOST.tls.
func ofTLS(path []string) bool {
	return len(path) >= 6 && path[0] == "plugins" && path[2] == "registry" && path[3] == "configs" && path[5] == "tls"
}

func configKeys(n *Node, c *configtoml.Config) []Result {
	var faults []Result
	for _, k := range c.Ignored {
		if k.Empty || misplaced(c, k) || ofTLS(k.Path) {
			continue
		}
		faults = append(faults, Result{
			Verdict: Fail, Object: key(k.Path), Observed: "not read", Wanted: k.Hint, Place: k.Place.String(),
			Remedy: n.fixConfig(k.Place.File, n.drop(k.Place.File, []configtoml.Place{k.Place})),
		})
	}
	return orPass(faults, "every key is read")
}

func configDeprecated(n *Node, c *configtoml.Config) []Result {
	var faults []Result
	for _, k := range c.Deprecated {
		observed := "deprecated"
		if k.Removed != "" {
			observed += ", gone in " + k.Removed
		}
		faults = append(faults, Result{Verdict: Fail, Object: key(k.Path), Observed: observed, Wanted: k.Hint, Place: k.Place.String()})
	}
	return orPass(faults, "nothing deprecated")
}

func configMirrors(n *Node, c *configtoml.Config) []Result {
	reg := c.Registry()
	given, at := c.ConfigPath()
	var faults []Result
	drop := func(places []configtoml.Place) string {
		return n.fixConfig(places[0].File, "# with the mirrors and CAs in "+cmp.Or(given, usualCerts)+"/HOST/hosts.toml:", n.drop(places[0].File, places))
	}
	if given != "" && at.File != "" && len(reg.Mirrors) > 0 {
		var names []string
		var places []configtoml.Place
		for _, m := range reg.Mirrors {
			names, places = append(names, m.Name), append(places, m.Place)
		}
		faults = append(faults, Result{
			Verdict: Fail, Object: "registry.mirrors", Observed: strings.Join(names, ", ") + " beside config_path (" + at.String() + ")",
			Wanted: "one of the two", Place: reg.Mirrors[0].Place.String(), Remedy: drop(places),
		})
	}
	tls := map[string]configtoml.Place{}
	for _, r := range reg.Configs {
		// 1.x refuses it beside config_path, 2.x does not read it.
		if r.HasTLS && given != "" && at.File != "" {
			tls[r.Host] = r.Place
		}
	}
	for _, k := range c.Ignored {
		if ofTLS(k.Path) && !k.Empty {
			tls[k.Path[4]] = k.Place
		}
	}
	for _, host := range slices.Sorted(maps.Keys(tls)) {
		observed := "is not read since containerd 2.0"
		if !rules(c).AtLeast(2, 0, 0) {
			observed = "stands beside config_path (" + at.String() + ")"
		}
		faults = append(faults, Result{
			Verdict: Fail, Object: "registry.configs." + tomlText(host) + ".tls", Observed: observed, Wanted: "ca, client or skip_verify in hosts.toml",
			Place: tls[host].String(), Remedy: drop([]configtoml.Place{tls[host]}),
		})
	}
	return orPass(faults, "mirrors and TLS are set in one place")
}

// hostsDirs are the folders of a certs.d that have a hosts.toml.
func (n *Node) hostsDirs(dir string) []string {
	entries, _ := n.Host.Root.ReadDir(dir) // what cannot be read is for the checks of registries
	var out []string
	for _, e := range entries {
		if n.exists(path.Join(dir, e.Name(), "hosts.toml")) {
			out = append(out, e.Name())
		}
	}
	return out
}

func configRegistryPath(n *Node, c *configtoml.Config) []Result {
	given, at := c.ConfigPath()
	dirs := strings.FieldsFunc(given, func(r rune) bool { return r == ':' })
	single := rules(c).AtLeast(2, 1, 0)
	r := Result{Verdict: Fail, Observed: cmp.Or(given, "not set"), Wanted: usualCerts, Place: cmp.Or(at.String(), c.Path)}
	fix := func() Result {
		if at.File != "" {
			r.Remedy = n.fixConfig(at.File, n.setValue(at, "config_path", tomlText(usualCerts)))
			return r
		}
		if !c.Exists {
			r.Remedy = fmt.Sprintf("mkdir -p %s\nprintf 'version = %d\\n[plugins.\"%s\".registry]\\n  config_path = \"%s\"\\n' > %s\n%s", quote(path.Dir(c.Path)),
				releases.ConfigSchema(rules(c)), imageSection(releases.ConfigSchema(rules(c))), usualCerts, quote(n.onHost(c.Path)), restart)
			return r
		}
		table := []string{"plugins", tomlText(imageSection(c.Files[0].Version)), "registry"}
		if line := n.tableLine(c.Path, table); line > 0 {
			r.Remedy = n.fixConfig(c.Path, fmt.Sprintf("sed -i '%da config_path = %s' %s", line, tomlText(usualCerts), quote(n.onHost(c.Path))))
		} else {
			r.Remedy = n.fixConfig(c.Path, n.appendTo(c.Path, fmt.Sprintf("[%s]\n  config_path = %s\n", strings.Join(table, "."), tomlText(usualCerts))))
		}
		return r
	}
	switch {
	case len(dirs) > 1 && single && len(localPull(c)) == 0:
		files := 0
		for _, d := range dirs {
			files += len(n.hostsDirs(d))
		}
		if at.File == "" && files == 0 {
			return pass("the default, %s, with nothing in it", given)
		}
		if at.File == "" {
			r.Observed = "not set, and the default is " + given
		}
		r.Note = "a list is taken for one folder that is not there"
		return []Result{fix()}
	case len(dirs) == 0:
		if hosts := n.hostsDirs(usualCerts); len(hosts) > 0 && len(c.Registry().Mirrors) == 0 {
			r.Note = fmt.Sprintf("nobody reads %s of %s", strings.Join(hosts, ", "), usualCerts)
			return []Result{fix()}
		}
		return pass("not set, and no hosts.toml is there")
	}
	for _, d := range dirs {
		if !path.IsAbs(d) {
			r.Note = "a relative path starts at the daemon's working directory"
			return []Result{fix()}
		}
	}
	if !slices.ContainsFunc(dirs, n.exists) && n.Spec != nil && len(n.Spec.Registries) > 0 {
		r.Observed, r.Wanted, r.Remedy = given+" is missing", "the folder of the profile's registries", n.reapply(false)
		return []Result{r}
	}
	return pass("%s", given)
}

// imageSection is CRI's section of images in a file of a version.
func imageSection(version int) string {
	if s := runtimeSection(version); s != criRuntimeSection {
		return s
	}
	return criImagesSection
}

func configBinDirs(n *Node, c *configtoml.Config) []Result {
	dirs, _, at, _, both := c.CNI()
	if !both {
		return pass("%s", strings.Join(dirs, ", "))
	}
	_, single, _ := c.Get("plugins", criRuntimeSection, "cni", "bin_dir")
	return []Result{{
		Verdict: Fail, Observed: "bin_dir and bin_dirs (" + at.String() + ")", Wanted: "bin_dirs alone", Place: single.String(),
		Remedy: n.fixConfig(single.File, n.drop(single.File, []configtoml.Place{single})),
	}}
}

func configCRI(n *Node, c *configtoml.Config) []Result {
	var faults []Result
	for _, d := range c.DisabledCRI() {
		r := Result{Verdict: Fail, Object: "disabled_plugins", Observed: "has " + d.Name, Wanted: "without it", Place: d.Place.String()}
		if text := strings.Join(n.configLines(d.Place.File), "\n"); strings.Contains(text, "Docker Inc") {
			r.Note = "it is the file of Docker's package containerd.io, for Docker alone"
		}
		edit := fmt.Sprintf("# take %s out of disabled_plugins in %s", d.Name, d.Place.File)
		if n.isSetting(d.Place, "disabled_plugins") {
			edit = fmt.Sprintf(`sed -i -E '%ds/["'"'"']%s["'"'"'] *,? *//' %s`, d.Place.Line, strings.ReplaceAll(d.Name, ".", `\.`), quote(n.onHost(d.Place.File)))
		}
		r.Remedy = n.fixConfig(d.Place.File, edit)
		faults = append(faults, r)
	}
	return orPass(faults, "nothing turns CRI off")
}

func configImports(n *Node, c *configtoml.Config) []Result {
	var faults []Result
	dead := slices.ContainsFunc(c.Ignored, func(k configtoml.Key) bool { return misplaced(c, k) })
	for _, i := range c.Imports() {
		for _, v := range i.Versions {
			r := Result{
				Verdict: Warn, Object: v.Place.File, Observed: fmt.Sprintf("version %d", v.Version), Wanted: fmt.Sprintf("version %d, as %s has", v.Root, c.Path), Place: v.Place.String(),
			}
			if v.Version == 0 {
				r.Observed = "no version"
			}
			if dead {
				r.Verdict, r.Note = Fail, "settings of the other files are not read for it"
			}
			edit := fmt.Sprintf("# write the settings of %s as version %d has them", v.Place.File, v.Root)
			r.Remedy = n.fixConfig(v.Place.File, edit, fmt.Sprintf("mv %s %s.off", quote(n.onHost(v.Place.File)), quote(n.onHost(v.Place.File))))
			faults = append(faults, r)
		}
		for _, re := range i.Replaced {
			lost := n.lostKeys(c, re)
			if len(lost) == 0 {
				continue
			}
			file := quote(n.onHost(re.New.File))
			faults = append(faults, Result{
				Verdict: Fail, Object: re.New.File, Observed: fmt.Sprintf("replaces all of %s: %s of %s lost", key([]string{re.Section}), strings.Join(lost, ", "), re.Lost.File),
				Wanted: "each section in one file", Place: re.New.String(),
				Remedy: n.fixConfig(re.New.File, "# with its settings moved to "+re.Lost.File+":", "mv "+file+" "+file+".off"),
			})
		}
	}
	if len(c.Imports()) == 0 {
		return pass("no imports")
	}
	return orPass(faults, "%d files go together", len(c.Files))
}

// lostKeys are the settings of a section that a later file does not repeat.
func (n *Node) lostKeys(c *configtoml.Config, r configtoml.Replaced) []string {
	leaves := func(file string) map[string]bool {
		out := map[string]bool{}
		for _, f := range c.Files {
			if f.Path != file {
				continue
			}
			plugins, _ := f.Tree["plugins"].(map[string]any)
			for name, section := range plugins {
				// A file of version 1 has the short name.
				if name == r.Section || r.Section == criSection && name == "cri" {
					collectLeaves(out, nil, section)
				}
			}
		}
		return out
	}
	after := leaves(r.New.File)
	var lost []string
	for _, k := range slices.Sorted(maps.Keys(leaves(r.Lost.File))) {
		if !after[k] {
			lost = append(lost, k)
		}
	}
	return lost
}

func collectLeaves(out map[string]bool, at []string, v any) {
	table, ok := v.(map[string]any)
	if !ok {
		out[key(at)] = true
		return
	}
	for k, e := range table {
		collectLeaves(out, append(slices.Clip(at), k), e)
	}
}

func configDefaultRuntime(n *Node, c *configtoml.Config) []Result {
	name, at := c.DefaultRuntime()
	var names []string
	for _, r := range c.Runtimes() {
		names = append(names, r.Name)
	}
	if slices.Contains(names, name) {
		return pass("%s", name)
	}
	r := Result{Verdict: Fail, Observed: name, Wanted: "one of " + strings.Join(names, ", "), Place: cmp.Or(at.String(), c.Path)}
	if at.File != "" && len(names) > 0 {
		to := names[0]
		if slices.Contains(names, "runc") {
			to = "runc"
		}
		r.Remedy = n.fixConfig(at.File, n.setValue(at, "default_runtime_name", tomlText(to)))
	}
	return []Result{r}
}

func configRuntimes(n *Node, c *configtoml.Config) []Result {
	daemon, _ := n.daemonProgram()
	dirs := n.daemonPath()
	var faults []Result
	var names []string
	for _, r := range c.Runtimes() {
		names = append(names, r.Name)
		fault := func(observed, wanted string, at configtoml.Place, edit string) {
			place := cmp.Or(at.String(), r.Place.String(), c.Path)
			faults = append(faults, Result{
				Verdict: Fail, Object: "runtime " + r.Name, Observed: observed, Wanted: wanted, Place: place, Remedy: n.fixConfig(cmp.Or(at.File, r.Place.File, c.Path), edit),
			})
		}
		shim := n.shimOf(c, r)
		switch {
		case r.Type == "":
			fault("no runtime_type: containerd 1.x does not keep the built-in one beside a table", "runtime_type = "+tomlText(runcShim), r.TypePlace, n.setType(c, r))
			continue
		case rules(c).AtLeast(2, 0, 0) && (r.Type == "io.containerd.runtime.v1.linux" || r.Type == "io.containerd.runc.v1"):
			fault(r.Type+", which containerd 2.0 removed", runcShim, r.TypePlace, n.setValue(r.TypePlace, "runtime_type", tomlText(runcShim)))
			continue
		case r.Type == runcShim, shim == "": // binary/shim looks at runc's; without a name it is a sandboxer's own
		case path.IsAbs(shim):
			if !n.exists(shim) {
				fault("shim "+shim+" is missing", "the shim", r.TypePlace, "# install the runtime, or take it out of "+r.Place.String())
			}
		case n.lookup(shim, shimPath(dirs, daemon)) == "":
			fault(shim+" is nowhere in PATH", "the shim of "+r.Type, r.TypePlace, "# install the runtime, or take it out of "+r.Place.String())
		}
		if r.Type != runcShim || r.BinaryName == "" || path.Base(r.BinaryName) == "runc" {
			continue // runc itself is binary/runc's
		}
		switch p := r.BinaryName; {
		case path.IsAbs(p) && n.lookup(path.Base(p), []string{path.Dir(p)}) == "":
			fault(p+" is missing or cannot be executed", "an executable program", r.BinaryPlace, "# install it, or correct BinaryName at "+r.BinaryPlace.String())
		case !path.IsAbs(p) && n.lookup(p, dirs) == "":
			fault(p+" is nowhere in the daemon's PATH", "a program in "+strings.Join(dirs, ":"), r.BinaryPlace, "# install it, or correct BinaryName at "+r.BinaryPlace.String())
		}
	}
	return orPass(faults, "%s", strings.Join(names, ", "))
}

// shimOf is the program of a runtime's shim: its path, or the name made from its type
// (containerd pkg/shim, BinaryName).
func (n *Node) shimOf(c *configtoml.Config, r configtoml.Runtime) string {
	section := criRuntimeSection
	if !rules(c).AtLeast(2, 0, 0) {
		section = criSection
	}
	if v, _, ok := c.Get("plugins", section, "containerd", "runtimes", r.Name, "runtime_path"); ok {
		if p, ok := v.(string); ok && p != "" {
			return p
		}
	}
	if path.IsAbs(r.Type) {
		return r.Type
	}
	parts := strings.Split(r.Type, ".")
	if len(parts) < 2 {
		return ""
	}
	return "containerd-shim-" + parts[len(parts)-2] + "-" + parts[len(parts)-1]
}

// setType writes a runtime's type where its table has none.
func (n *Node) setType(c *configtoml.Config, r configtoml.Runtime) string {
	if n.isSetting(r.TypePlace, "runtime_type") {
		return n.setValue(r.TypePlace, "runtime_type", tomlText(runcShim))
	}
	file := cmp.Or(r.Place.File, c.Path)
	version := 2
	for _, f := range c.Files {
		if f.Path == file {
			version = f.Version
		}
	}
	table := []string{"plugins", tomlText(runtimeSection(version)), "containerd", "runtimes", r.Name}
	if line := n.tableLine(file, table); line > 0 {
		return fmt.Sprintf("sed -i '%da runtime_type = %s' %s", line, tomlText(runcShim), quote(n.onHost(file)))
	}
	return n.appendTo(file, fmt.Sprintf("[%s]\n  runtime_type = %s\n", strings.Join(table, "."), tomlText(runcShim)))
}

// driver is a cgroup driver that is wanted, and why.
type driver struct {
	systemd bool
	why     string
}

// wantedDriver is the cgroup driver that a node must have; ok is false where either does.
func (n *Node) wantedDriver() (d driver, ok bool, err error) {
	v2 := n.exists("/sys/fs/cgroup/cgroup.controllers")
	if n.Spec != nil && n.Spec.Containerd.Installed() {
		return driver{n.Spec.Containerd.SystemdCgroup, "the profile's"}, true, nil
	}
	k, err := n.Kubelet()
	if err != nil {
		return driver{}, false, err
	}
	switch {
	case k != nil && k.CgroupDriver == "systemd":
		return driver{true, "the kubelet's is systemd (" + k.Place("cgroupDriver") + ")"}, true, nil
	case n.Live && !n.Facts.SystemdInit:
		return driver{false, "systemd does not run here"}, true, nil
	case n.Live && v2:
		return driver{true, "systemd manages cgroup v2 here"}, true, nil
	}
	return driver{}, false, nil
}

func configSystemdCgroup(n *Node, c *configtoml.Config) []Result {
	if v, at, ok := c.Get("plugins", criSection, "systemd_cgroup"); ok && v == true {
		return []Result{{
			Verdict: Fail, Object: "systemd_cgroup", Observed: "true: CRI does not start with it", Wanted: "SystemdCgroup in the options of runc", Place: at.String(),
			Remedy: n.fixConfig(at.File, n.setValue(at, "systemd_cgroup", "false")),
		}}
	}
	want, decided, err := n.wantedDriver()
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	var said []string
	for _, r := range c.Runtimes() {
		if r.Type != runcShim && r.Type != "" {
			continue
		}
		said = append(said, fmt.Sprintf("%s: %t", r.Name, r.SystemdCgroup))
		if !decided || r.SystemdCgroup == want.systemd {
			continue
		}
		file, edit := n.setOption(c, r, r.SystemdCgroupPlace, "SystemdCgroup", strconv.FormatBool(want.systemd))
		observed := fmt.Sprintf("SystemdCgroup is %t", r.SystemdCgroup)
		if r.SystemdCgroupPlace.File == "" {
			observed += ", containerd's default"
		}
		faults = append(faults, Result{
			Verdict: Fail, Object: "runtime " + r.Name, Observed: observed, Wanted: fmt.Sprintf("%t: %s", want.systemd, want.why),
			Place: cmp.Or(r.SystemdCgroupPlace.String(), r.Place.String(), c.Path), Remedy: n.fixConfig(file, edit),
			Note: "pods that run keep their cgroups: drain the node first",
		})
	}
	return orPass(faults, "%s", cmp.Or(strings.Join(said, ", "), "no runtime of runc's shim"))
}

func configKubelet(n *Node, c *configtoml.Config) []Result {
	k, err := n.Kubelet()
	if err != nil {
		return unknown(err)
	}
	name, _ := c.DefaultRuntime()
	ours := "cgroupfs"
	for _, r := range c.Runtimes() {
		if r.Name == name && r.SystemdCgroup {
			ours = "systemd"
		}
	}
	theirs := cmp.Or(k.CgroupDriver, "cgroupfs")
	if ours == theirs {
		return pass("%s, as the kubelet has", ours)
	}
	r := Result{
		Verdict: Fail, Observed: "cgroupDriver " + cmp.Or(k.CgroupDriver, "is not set: cgroupfs"), Wanted: ours, Place: k.Place("cgroupDriver"),
	}
	// Since 1.31 the kubelet asks CRI (KubeletCgroupDriverFromCRI), which 2.x answers.
	if v, err := releases.ParseVersion(k.Version); err == nil && v.AtLeast(1, 31, 0) && c.Release.AtLeast(2, 0, 0) {
		return pass("%s: the kubelet %s takes over what containerd says", ours, k.Version)
	}
	file := quote(n.onHost(cmp.Or(k.Path, kubeletFiles()[0])))
	switch line := k.Lines["cgroupDriver"]; {
	case line > 0:
		r.Remedy = fmt.Sprintf("sed -i -E '%ds/(cgroupDriver\"?:) *[^ ,]*/\\1 %s/' %s", line, ours, file)
		if strings.HasSuffix(k.Path, ".json") {
			r.Remedy = fmt.Sprintf("sed -i -E '%ds/(\"cgroupDriver\" *:) *\"[^\"]*\"/\\1 \"%s\"/' %s", line, ours, file)
		}
	case k.CgroupDriver == "" && k.Path != "" && !strings.HasSuffix(k.Path, ".json"):
		r.Remedy = fmt.Sprintf("echo 'cgroupDriver: %s' >> %s", ours, file)
	default:
		r.Remedy = "# at " + r.Place + ": " + ours
	}
	if n.Live {
		r.Remedy += "\nsystemctl restart kubelet"
	}
	return []Result{r}
}

// kubernetesOf is the Kubernetes minor of this node, and what says so; "" is none.
func (n *Node) kubernetesOf() (minor, from string) {
	if n.Spec != nil && n.Spec.Kubernetes != "" {
		return n.Spec.Kubernetes, "profile"
	}
	if k, err := n.Kubelet(); err == nil && k != nil {
		if v, err := releases.ParseVersion(k.Version); err == nil {
			return v.Line(), "kubelet " + k.Version
		}
	}
	return "", ""
}

func configSandboxImage(n *Node, c *configtoml.Config) []Result {
	image, at := c.SandboxImage()
	if n.Spec != nil && n.Spec.Containerd.Installed() && image == n.Spec.Containerd.SandboxImage {
		return pass("%s, as the profile has it", image)
	}
	minor, from := n.kubernetesOf()
	if minor == "" {
		return skip("nothing says for which Kubernetes %s is", image)
	}
	want, known := releases.PauseImage(minor)
	if !known {
		return skip("the sandbox image of Kubernetes %s is not known", minor)
	}
	// From a mirror it has another name, and the same tag.
	if path.Base(image) == path.Base(want) || strings.HasPrefix(path.Base(image), path.Base(want)+"@") {
		return pass("%s, for %s", image, from)
	}
	r := Result{
		Verdict: Fail, Observed: image, Wanted: want + " (" + from + ")", Place: cmp.Or(at.String(), c.Path),
	}
	if at.File == "" {
		r.Observed += ", containerd's default"
	}
	switch {
	case at.File != "":
		name := "sandbox_image"
		if strings.Contains(n.configLine(at), "sandbox ") || strings.Contains(n.configLine(at), "sandbox=") {
			name = "sandbox"
		}
		r.Remedy = n.fixConfig(at.File, n.setValue(at, name, tomlText(want)))
	case c.Exists && c.Files[0].Version >= 3 && n.tableLine(c.Path, []string{"plugins", criImagesSection, "pinned_images"}) == 0:
		r.Remedy = n.fixConfig(c.Path, n.appendTo(c.Path, fmt.Sprintf("[plugins.%s.pinned_images]\n  sandbox = %s\n", tomlText(criImagesSection), tomlText(want))))
	case c.Exists && c.Files[0].Version == 2:
		table := []string{"plugins", criSection}
		if line := n.tableLine(c.Path, table); line > 0 {
			r.Remedy = n.fixConfig(c.Path, fmt.Sprintf("sed -i '%da sandbox_image = %s' %s", line, tomlText(want), quote(n.onHost(c.Path))))
		} else {
			r.Remedy = n.fixConfig(c.Path, n.appendTo(c.Path, fmt.Sprintf("[plugins.%s]\n  sandbox_image = %s\n", tomlText(criSection), tomlText(want))))
		}
	}
	return []Result{r}
}

func configOOMScore(n *Node, c *configtoml.Config) []Result {
	score, at := c.OOMScore()
	want, why := 0, "0, which leaves the unit's OOMScoreAdjust"
	if n.Spec != nil && n.Spec.Containerd.Installed() && n.Spec.Containerd.OOMScore != 0 {
		want, why = n.Spec.Containerd.OOMScore, strconv.Itoa(n.Spec.Containerd.OOMScore)+", the profile's"
	}
	switch {
	case score == want && score == 0:
		return pass("0: the unit's OOMScoreAdjust holds")
	case score == want, n.Spec == nil && score <= -999:
		return pass("%d (%s)", score, at)
	}
	r := Result{Verdict: Fail, Observed: fmt.Sprintf("oom_score = %d", score), Wanted: why, Place: cmp.Or(at.String(), c.Path), Remedy: n.reapply(true)}
	if at.File != "" {
		r.Remedy = n.fixConfig(at.File, n.setValue(at, "oom_score", strconv.Itoa(want)))
	}
	return []Result{r}
}

func configProfile(n *Node, c *configtoml.Config) []Result {
	spec := n.Spec.Containerd
	if !spec.Installed() {
		return skip("the profile installs no containerd")
	}
	if !c.Exists {
		return []Result{{Verdict: Fail, Observed: c.Path + " is missing", Wanted: "the profile's", Place: c.Path, Remedy: n.reapply(false)}}
	}
	var faults []Result
	for _, s := range []struct {
		name, want, field string
		get               func() (string, configtoml.Place)
	}{
		{"root", spec.Root, "containerd.root", c.Root},
		{"state", spec.State, "containerd.state", c.State},
		{"address", spec.Address, "containerd.address", c.Address},
		{"snapshotter", spec.Snapshotter, "containerd.snapshotter", c.Snapshotter},
		{"sandbox image", spec.SandboxImage, "containerd.sandboxImage", c.SandboxImage},
		{"default runtime", spec.DefaultRuntime, "containerd.defaultRuntime", c.DefaultRuntime},
		{"config_path", registry.Root, "registries", c.ConfigPath},
	} {
		got, at := s.get()
		if s.want == "" || got == s.want {
			continue
		}
		wanted := s.want
		if from := n.Spec.Origin(s.field).Place(); from != "" {
			wanted += " (" + from + ")"
		}
		faults = append(faults, Result{Verdict: Fail, Object: s.name, Observed: got, Wanted: wanted, Place: cmp.Or(at.String(), c.Path), Remedy: n.fixProfile(at)})
	}
	return orPass(faults, "as the profile has it")
}

// fixProfile is the remedy for a setting that is not the profile's: a file of nodeprep's
// is written anew, one of others has to go.
func (n *Node) fixProfile(at configtoml.Place) string {
	if at.File == "" || at.File == n.ConfigPath() {
		return n.reapply(true)
	}
	return n.fixConfig(at.File, n.drop(at.File, []configtoml.Place{at}))
}

func configRoot(n *Node, c *configtoml.Config) []Result {
	root, at := c.Root()
	state, stateAt := c.State()
	const usual = "/var/lib/containerd"
	var faults []Result
	below := func(dir, of string) bool { return dir == of || strings.HasPrefix(dir, strings.TrimSuffix(of, "/")+"/") }
	switch {
	case below(root, state):
		faults = append(faults, Result{Verdict: Fail, Object: "root", Observed: root + " is in state, " + state, Wanted: "folders of their own", Place: cmp.Or(at.String(), c.Path)})
	case below(state, root):
		faults = append(faults, Result{Verdict: Fail, Object: "state", Observed: state + " is in root, " + root, Wanted: "folders of their own", Place: cmp.Or(stateAt.String(), c.Path)})
	}
	if n.Live && n.exists(root) {
		switch m, err := n.MountOf(root); {
		case err != nil:
			faults = append(faults, Result{Verdict: Unknown, Object: root, Observed: err.Error()})
		case m.FSType == "tmpfs" || m.FSType == "ramfs":
			faults = append(faults, Result{Verdict: Fail, Object: root, Observed: m.FSType, Wanted: "a filesystem on a disk", Place: cmp.Or(at.String(), m.Path)})
		}
	}
	if root != usual && n.exists(usual+"/io.containerd.metadata.v1.bolt/meta.db") {
		faults = append(faults, Result{
			Verdict: Fail, Object: usual, Observed: "has data of the time before root was " + root, Wanted: "no data that nobody uses", Place: cmp.Or(at.String(), c.Path),
			Remedy: "# its images and containers are not known to this containerd; when nothing of them is wanted:\nrm -rf " + n.onHost(usual),
		})
	}
	return orPass(faults, "%s", root)
}

func configPermissions(n *Node, c *configtoml.Config) []Result {
	reg := c.Registry()
	secrets := map[string]string{} // the first place by file
	for _, r := range reg.Configs {
		if r.HasAuth {
			secrets[r.Place.File] = cmp.Or(secrets[r.Place.File], r.Place.String())
		}
	}
	for _, p := range slices.Concat(reg.Auths, reg.Headers) {
		secrets[p.Place.File] = cmp.Or(secrets[p.Place.File], p.Place.String())
	}
	var faults []Result
	for _, file := range slices.Sorted(maps.Keys(secrets)) {
		fi, err := n.Host.Root.Stat(file)
		if err != nil {
			faults = append(faults, Result{Verdict: Unknown, Object: file, Observed: err.Error()})
			continue
		}
		if fi.Mode().Perm()&0o044 != 0 {
			faults = append(faults, Result{
				Verdict: Fail, Object: file, Observed: fmt.Sprintf("mode %04o", fi.Mode().Perm()), Wanted: "mode 0600: it has credentials", Place: secrets[file],
				Remedy: "chmod 0600 " + quote(n.onHost(file)),
			})
		}
	}
	if f := n.writableConfig(c); f != nil {
		faults = append(faults, *f)
	}
	return orPass(faults, "no credentials that others may read")
}

// writableConfig is a file of the config that not only root may write.
func (n *Node) writableConfig(c *configtoml.Config) *Result {
	for _, f := range c.Files {
		fi, err := n.Host.Root.Stat(f.Path)
		if err == nil && fi.Mode().Perm()&fs.FileMode(0o002) != 0 {
			return &Result{
				Verdict: Fail, Object: f.Path, Observed: fmt.Sprintf("mode %04o: everybody may write it", fi.Mode().Perm()), Wanted: "mode 0644", Place: f.Path,
				Remedy: "chmod go-w " + quote(n.onHost(f.Path)),
			}
		}
	}
	return nil
}

func configExposed(n *Node, c *configtoml.Config) []Result {
	var faults []Result
	if address, at := c.TCPAddress(); address != "" {
		tls, clients := c.TCPTLS()
		if !tls || !clients && !loopback(address) {
			observed := address + " without TLS"
			if tls {
				observed = address + " without certificates of clients"
			}
			faults = append(faults, Result{
				Verdict: Fail, Object: "API", Observed: observed, Wanted: "no TCP, or TLS with a CA for clients", Place: at.String(),
				Remedy: n.fixConfig(at.File, n.drop(at.File, []configtoml.Place{at})),
			})
		}
	}
	for _, s := range []struct {
		name string
		get  func() (string, configtoml.Place)
	}{{"metrics", c.MetricsAddress}, {"debug", c.DebugAddress}} {
		address, at := s.get()
		if address == "" || strings.HasPrefix(address, "/") || loopback(address) {
			continue
		}
		to := "127.0.0.1"
		if _, port, err := net.SplitHostPort(address); err == nil {
			to = net.JoinHostPort(to, port)
		}
		faults = append(faults, Result{
			Verdict: Fail, Object: s.name, Observed: address, Wanted: to, Place: at.String(),
			Remedy: n.fixConfig(at.File, n.setValue(at, "address", tomlText(to))),
		})
	}
	return orPass(faults, "nothing listens beyond this node")
}

// loopback says whether HOST:PORT is reached from this host only.
func loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// localPull are the settings that make CRI of 2.1 and newer pull by itself (containerd
// internal/cri/config, CheckLocalImagePullConfigs).
func localPull(c *configtoml.Config) []configtoml.NamedPlace {
	var out []configtoml.NamedPlace
	for _, s := range []struct {
		name string
		off  any // the value that does not
	}{
		{"disable_snapshot_annotations", true}, {"discard_unpacked_layers", false}, {"image_pull_with_sync_fs", false}, {"max_concurrent_downloads", int64(3)},
		{"use_local_image_pull", false},
	} {
		if v, at, ok := c.Get("plugins", criImagesSection, s.name); ok && v != s.off {
			out = append(out, configtoml.NamedPlace{Name: fmt.Sprintf("%s = %v", s.name, v), Place: at})
		}
	}
	reg := c.Registry()
	for _, m := range reg.Mirrors {
		out = append(out, configtoml.NamedPlace{Name: "registry.mirrors." + tomlText(m.Name), Place: m.Place})
	}
	for _, m := range reg.Configs {
		out = append(out, configtoml.NamedPlace{Name: "registry.configs." + tomlText(m.Host), Place: m.Place})
	}
	for _, m := range reg.Auths {
		out = append(out, configtoml.NamedPlace{Name: "registry.auths." + tomlText(m.Name), Place: m.Place})
	}
	return out
}

func configTransfer(n *Node, c *configtoml.Config) []Result {
	if !rules(c).AtLeast(2, 1, 0) {
		return skip("containerd %s has no transfer service for CRI", c.Release.Line())
	}
	causes := localPull(c)
	if v, at, ok := c.Get("plugins", criImagesSection, "use_local_image_pull"); ok && v == true {
		return pass("CRI pulls by itself, as %s wants", at)
	}
	// Of credentials there is no other place: they are meant.
	causes = slices.DeleteFunc(causes, func(p configtoml.NamedPlace) bool {
		return slices.ContainsFunc(c.Registry().Configs, func(r configtoml.RegistryConfig) bool { return r.HasAuth && r.Place == p.Place })
	})
	var faults []Result
	for _, p := range causes {
		faults = append(faults, Result{
			Verdict: Fail, Object: p.Name, Observed: "makes CRI pull without the transfer service", Wanted: "use_local_image_pull = true, or its default", Place: p.Place.String(),
			Remedy: n.fixConfig(p.Place.File, n.drop(p.Place.File, []configtoml.Place{p.Place})),
		})
	}
	return orPass(faults, "the transfer service pulls")
}
