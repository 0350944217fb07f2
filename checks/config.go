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
	"syscall"

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
			Run:    ofCRI(configMirrors),
		},
		{
			ID: "config/registry-path", Stage: Audit, Severity: Required,
			Why:    "Since 2.1 config_path is one folder's name, also where a list of two is the default: with a list no hosts.toml is read.",
			Source: "containerd issue 12808; core/transfer/registry/registry.go",
			Needs:  []string{"config/imports", parses, "config/mirrors", "config/ignored-sections"},
			Remedy: "write config_path = \"/etc/containerd/certs.d\"",
			Run:    ofCRI(configRegistryPath),
		},
		{
			ID: "config/cni-bin-dirs", Stage: Audit, Severity: Required,
			Why:    "CRI refuses to start with both bin_dir and bin_dirs.",
			Source: "containerd internal/cri/config, ValidateRuntimeConfig",
			Needs:  []string{parses},
			Remedy: "take out bin_dir",
			Run:    ofCRI(configBinDirs),
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
			Run:    ofCRI(configDefaultRuntime),
		},
		{
			ID: "config/runtimes", Stage: Audit, Severity: Required,
			Why:    "Pods of a runtime whose program or shim is missing, or that has no type, do not start; nothing looks before that.",
			Source: "containerd docs/cri/config.md, runtimes; core/runtime/v2/shim_manager.go",
			Needs:  []string{parses, "config/ignored-sections"},
			Remedy: "install the runtime, or take it out of the config",
			Run:    ofCRI(configRuntimes),
		},
		{
			ID: "config/systemd-cgroup", Stage: Audit, Severity: Required,
			Why:    "With systemd as init a second manager of cgroups does what systemd undoes: pods are killed and restarted under pressure.",
			Source: "Kubernetes docs, Container Runtimes, cgroup drivers; kubernetes issue 117293",
			Needs:  []string{parses, "config/imports", "config/ignored-sections"},
			Remedy: "set SystemdCgroup = true in the options of each runtime of runc's shim",
			Run:    ofCRI(configSystemdCgroup),
		},
		{
			ID: "config/kubelet-cgroup-driver", Stage: Audit, Severity: Required,
			Why:    "When the kubelet and containerd have different cgroup drivers, the kubelet's limits are on groups that have no processes.",
			Source: "Kubernetes docs, Configuring a cgroup driver",
			Needs:  []string{"config/default-runtime", NeedKubelet, parses, "config/systemd-cgroup"},
			Remedy: "set cgroupDriver: systemd in the kubelet's config",
			Run:    ofCRI(configKubelet),
		},
		{
			ID: "config/sandbox-image", Stage: Audit, Severity: Recommended,
			Why:    "kubeadm pulls and keeps one pause image; when containerd wants another, a node without the internet starts no pod.",
			Source: "kubernetes issue 129479; kubeadm issues 2801, 3146",
			Needs:  []string{parses, "config/ignored-sections"},
			Remedy: "set the sandbox image to the one of the Kubernetes version",
			Run:    ofCRI(configSandboxImage),
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
			Remedy: "put root on a disk, and look through what the old one has",
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
			ID: "config/unpack", Stage: Audit, Severity: Required,
			Why:    "Since 2.1 CRI pulls through the transfer service, which by itself unpacks for overlayfs: with another snapshotter every pull fails.",
			Source: "containerd plugins/transfer, configureUnpackPlatforms; core/transfer/local/pull.go",
			Needs:  []string{parses, "config/imports", "config/ignored-sections"},
			Remedy: "name the snapshotter in an unpack_config of plugins.'io.containerd.transfer.v1.local'",
			Run:    ofCRI(configUnpack),
		},
		{
			ID: "config/transfer", Stage: Audit, Severity: Recommended,
			Why:    "Since 2.1 one of several old settings is enough to make CRI pull by itself, without the transfer service and its settings.",
			Source: "containerd internal/cri/config, CheckLocalImagePullConfigs",
			Needs:  []string{parses},
			Remedy: "take the setting out, or set use_local_image_pull = true to say that it is meant",
			Run:    ofCRI(configTransfer),
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
		faults = append(faults, Result{Verdict: Fail, Observed: f.Problem, Wanted: f.Hint, Place: f.Place.String(), Remedy: n.fixConfig(f.Place.File, "containerd.settings", edit)})
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
			r.Remedy = n.fixConfig(f.Path, "containerd.version", fmt.Sprintf("# write it anew in version %d: containerd config default shows its keys", want))
		default:
			r.Verdict, r.Note = Warn, "containerd migrates it at each start"
			switch {
			case !rules(c).AtLeast(2, 0, 0):
				r.Note = "containerd 2.x migrates it at each start"
			case deadNames(c, f.Version):
				r.Note = fmt.Sprintf("containerd %s takes it for version 3, but for the short names of plugins", c.Release)
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
		// A short name, which only version 1 has.
		return version >= 2 || deadNames(c, version)
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
			Remedy: n.fixConfig(s.file, "containerd.settings."+s.name, n.otherVersion(c, s.file, keys)),
		})
	}
	return orPass(faults, "every section is read")
}

// otherVersion is the edit that gives a file the version that its sections are of, where
// all of them are of one.
func (n *Node) otherVersion(c *configtoml.Config, file string, keys []configtoml.Key) string {
	for _, f := range c.Files {
		at := f.Place("version")
		if f.Path != file {
			continue
		}
		if edit := n.fullNames(c, f); edit != "" {
			return edit
		}
		if !n.isSetting(at, "version") {
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

// fullNames makes a file of version 2 of one whose section cri is dead for want of a
// version; "" where more than that is to be done.
func (n *Node) fullNames(c *configtoml.Config, f *configtoml.File) string {
	short := shortNames(f)
	if !deadNames(c, f.Version) || len(c.Files) > 1 || !slices.Equal(short, []string{"cri"}) {
		return ""
	}
	plugins, _ := f.Tree["plugins"].(map[string]any)
	for name := range plugins {
		if strings.HasPrefix(name, "io.containerd.cri.v1.") || name == criSection {
			return ""
		}
	}
	if _, ok := plugins["cri"]; !ok || !strings.HasPrefix(strings.TrimSpace(n.configLine(f.Place("plugins", "cri"))), "[") {
		return ""
	}
	rename := `s/^\([[:space:]]*\[[[:space:]]*plugins[[:space:]]*\.[[:space:]]*\)["'\'']\{0,1\}cri["'\'']\{0,1\}\([[:space:]]*[].]\)/\1"` + criSection + `"\2/`
	return n.setVersion(f, 2) + "\nsed -i '" + rename + "' " + quote(n.onHost(f.Path))
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
			Remedy: n.fixConfig(k.Place.File, "containerd.settings."+key(k.Path), n.drop(k.Place.File, k.Place)),
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
		return n.fixConfig(places[0].File, "registries, not containerd.settings,", "# with the mirrors and CAs in "+cmp.Or(given, usualCerts)+"/HOST/hosts.toml:", n.drop(places[0].File, places...))
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
	single := releases.TransferPull(rules(c))
	r := Result{Verdict: Fail, Observed: cmp.Or(given, "not set"), Wanted: usualCerts, Place: cmp.Or(at.String(), c.Path)}
	fix := func() Result {
		// One that is empty stands for the default, and has a place all the same.
		set := at
		if set.File == "" {
			_, set, _ = c.Get("plugins", criName(daemonSchema(c), true), "registry", "config_path")
		}
		file, edit := set.File, ""
		if file != "" {
			edit = n.setValue(set, "config_path", tomlText(usualCerts))
			r.Place = set.String()
		} else {
			file = c.Path
			edit = n.addKeys(c, file, newKey{true, []string{"registry"}, "config_path", tomlText(usualCerts)})
		}
		r.Remedy = n.fixConfig(file, "containerd.settings."+key([]string{"plugins", criName(daemonSchema(c), true), "registry", "config_path"}), edit)
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

// daemonSchema is the version of which a release keeps the config, as Get has it.
func daemonSchema(c *configtoml.Config) int { return releases.ConfigSchema(rules(c)) }

func configBinDirs(n *Node, c *configtoml.Config) []Result {
	dirs, _, at, _, both := c.CNI()
	if !both {
		return pass("%s", strings.Join(dirs, ", "))
	}
	_, single, _ := c.Get("plugins", criRuntimeSection, "cni", "bin_dir")
	return []Result{{
		Verdict: Fail, Observed: "bin_dir and bin_dirs (" + at.String() + ")", Wanted: "bin_dirs alone", Place: single.String(),
		Remedy: n.fixConfig(single.File, "containerd.settings."+key([]string{"plugins", criRuntimeSection, "cni", "bin_dir"}), n.drop(single.File, single)),
	}}
}

func configCRI(n *Node, c *configtoml.Config) []Result {
	used, err := n.usesCRI()
	if err != nil && len(c.DisabledCRI()) > 0 {
		return unknown(err)
	}
	var faults []Result
	for _, d := range c.DisabledCRI() {
		r := Result{Verdict: Fail, Object: "disabled_plugins", Observed: "has " + d.Name, Wanted: "without it", Place: d.Place.String()}
		if text := strings.Join(n.configLines(d.Place.File), "\n"); strings.Contains(text, "Docker Inc") {
			r.Note = "it is the file of Docker's package containerd.io, for Docker alone"
		}
		if !used {
			r.Verdict = Warn
			r.Note = strings.TrimPrefix(r.Note+"; no kubelet here uses CRI", "; ")
		}
		edit := fmt.Sprintf("# take %s out of disabled_plugins in %s", d.Name, d.Place.File)
		if table := n.table(d.Place); table != "" && n.isSetting(d.Place, "disabled_plugins") {
			edit = fmt.Sprintf(`sed -i '%s{/%s/s/["'\'']%s["'\''] *,\{0,1\} *//;}' %s`, table, n.setting(d.Place), sedPattern(d.Name), quote(n.onHost(d.Place.File)))
		}
		r.Remedy = n.fixConfig(d.Place.File, "containerd.settings.disabled_plugins", edit)
		faults = append(faults, r)
	}
	return orPass(faults, "nothing turns CRI off")
}

// usesCRI says whether something on this host needs containerd's CRI: a profile wants it,
// or a kubelet uses it, or will. Docker does not.
func (n *Node) usesCRI() (bool, error) {
	if n.Spec != nil || n.Receipt != nil {
		return true, nil
	}
	k, err := n.Kubelet()
	if k == nil || err != nil {
		return false, err
	}
	// Without an endpoint it would be containerd's own default or a flag's.
	endpoint := strings.TrimPrefix(k.ContainerRuntimeEndpoint, "unix://")
	return endpoint == "" || endpoint == n.Address(), nil
}

// ofCRI is a check of what CRI's plugins read, which nobody does where they are off.
func ofCRI(look func(n *Node, c *configtoml.Config) []Result) func(context.Context, *Node) []Result {
	return ofConfig(func(n *Node, c *configtoml.Config) []Result {
		if off := c.DisabledCRI(); len(off) > 0 {
			return skip("CRI is off (%s)", off[0].Place)
		}
		return look(n, c)
	})
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
			r.Remedy = n.fixConfig(v.Place.File, "containerd.settings", append([]string{edit}, n.turnOff(i, v.Place.File)...)...)
			faults = append(faults, r)
		}
		for _, re := range i.Replaced {
			lost := n.lostKeys(c, re)
			if len(lost) == 0 {
				continue
			}
			faults = append(faults, Result{
				Verdict: Fail, Object: re.New.File, Observed: fmt.Sprintf("replaces all of %s: %s of %s lost", key([]string{re.Section}), strings.Join(lost, ", "), re.Lost.File),
				Wanted: "each section in one file", Place: re.New.String(),
				Remedy: n.fixConfig(re.New.File, "containerd.settings", append([]string{"# with its settings moved to " + re.Lost.File + ":"}, n.turnOff(i, re.New.File)...)...),
			})
		}
	}
	if len(c.Imports()) == 0 {
		return pass("no imports")
	}
	return orPass(faults, "%d files go together", len(c.Files))
}

// turnOff takes a file out of reach of a pattern of imports. One that is named outright
// must be there.
func (n *Node) turnOff(i configtoml.Import, file string) []string {
	if !strings.Contains(i.Pattern, "*") {
		return []string{"# and " + file + " taken out of imports at " + i.Place.String()}
	}
	from := quote(n.onHost(file))
	return []string{fmt.Sprintf("test ! -e %s || mv %[1]s %s", from, quote(n.onHost(file)+".off"))}
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
		r.Remedy = n.fixConfig(at.File, "containerd.defaultRuntime", n.setValue(at, "default_runtime_name", tomlText(to)))
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
				Verdict: Fail, Object: "runtime " + r.Name, Observed: observed, Wanted: wanted, Place: place, Remedy: n.fixConfig(cmp.Or(at.File, r.Place.File, c.Path), "containerd.runtimes", edit),
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
	return n.addKeys(c, cmp.Or(r.Place.File, c.Path), newKey{table: []string{"containerd", "runtimes", r.Name}, key: "runtime_type", value: tomlText(runcShim)})
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
			Remedy: n.fixConfig(at.File, "containerd.settings", n.setValue(at, "systemd_cgroup", "false")),
		}}
	}
	want, decided, err := n.wantedDriver()
	if err != nil {
		return unknown(err)
	}
	name, _ := c.DefaultRuntime()
	var faults []Result
	var said []string
	for _, r := range c.Runtimes() {
		if r.Type != runcShim && r.Type != "" {
			continue
		}
		if r.Place == (configtoml.Place{}) && r.Name != name {
			continue // the built-in runc, which no file names and no pod gets
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
			Place: cmp.Or(r.SystemdCgroupPlace.String(), r.Place.String(), c.Path), Remedy: n.fixConfig(file, "containerd.systemdCgroup", edit),
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
	runtime := ofRuncShim(c)
	if runtime == nil {
		return skip("no runtime of runc's shim")
	}
	ours := "cgroupfs"
	if runtime.SystemdCgroup {
		ours = "systemd"
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
	if ours == "cgroupfs" && n.Live && n.Facts.SystemdInit && n.exists("/sys/fs/cgroup/cgroup.controllers") {
		// The kubelet is right.
		file, edit := n.setOption(c, *runtime, runtime.SystemdCgroupPlace, "SystemdCgroup", "true")
		return []Result{{
			Verdict: Fail, Object: "runtime " + runtime.Name, Observed: "SystemdCgroup is false", Wanted: "true, as the kubelet has (" + k.Place("cgroupDriver") + ")",
			Place: cmp.Or(runtime.SystemdCgroupPlace.String(), runtime.Place.String(), c.Path), Remedy: n.fixConfig(file, "containerd.systemdCgroup", edit),
		}}
	}
	file, line := k.Line("cgroupDriver")
	switch at := quote(n.onHost(cmp.Or(file, k.Path))); {
	case line > 0:
		r.Remedy = fmt.Sprintf("sed -i -E 's/(cgroupDriver\"?:) *[^ ,]*/\\1 %s/' %s", ours, at)
		if strings.HasSuffix(file, ".json") {
			r.Remedy = fmt.Sprintf("sed -i -E 's/(\"cgroupDriver\" *:) *\"[^\"]*\"/\\1 \"%s\"/' %s", ours, at)
		}
	case k.CgroupDriver == "" && k.Path != "" && !strings.HasSuffix(k.Path, ".json"):
		r.Remedy = fmt.Sprintf("echo 'cgroupDriver: %s' >> %s", ours, at)
	default:
		r.Remedy = "# at " + r.Place + ": " + ours
	}
	if n.Live {
		r.Remedy += "\nsystemctl restart kubelet"
	}
	return []Result{r}
}

// ofRuncShim is the runtime of runc's shim that pods get: the default one or, where that
// is of another kind, the first that a file names; nil where there is none.
func ofRuncShim(c *configtoml.Config) *configtoml.Runtime {
	name, _ := c.DefaultRuntime()
	var found *configtoml.Runtime
	for _, r := range c.Runtimes() {
		switch {
		case r.Type != runcShim:
		case r.Name == name:
			return &r
		case found == nil && r.Place != (configtoml.Place{}):
			found = &r
		}
	}
	return found
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
		r.Remedy = n.fixConfig(at.File, "containerd.sandboxImage", n.setValue(at, name, tomlText(want)))
	default:
		version := daemonSchema(c)
		if f := fileOf(c, c.Path); f != nil && !deadNames(c, f.Version) {
			version = min(version, f.Version)
		}
		add := newKey{true, []string{"pinned_images"}, "sandbox", tomlText(want)}
		if version <= 2 {
			add = newKey{true, nil, "sandbox_image", tomlText(want)}
		}
		r.Remedy = n.fixConfig(c.Path, "containerd.sandboxImage", n.addKeys(c, c.Path, add))
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
		r.Remedy = n.fixConfig(at.File, "containerd.oomScore", n.setValue(at, "oom_score", strconv.Itoa(want)))
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
	return n.fixConfig(at.File, "it", n.drop(at.File, at))
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
	const data = "/io.containerd.metadata.v1.bolt/meta.db"
	if root != usual && n.exists(usual+data) && !n.sameInode(usual, root) && !n.sameInode(usual+data, root+data) {
		faults = append(faults, Result{
			Verdict: Fail, Object: usual, Observed: "has data of the time before root was " + root, Wanted: "no data that nobody uses", Place: cmp.Or(at.String(), c.Path),
			Remedy: "# its images and containers are not known to this containerd: look through " + n.onHost(usual) + ", and remove by hand what is not wanted",
		})
	}
	return orPass(faults, "%s", root)
}

// sameInode says whether two paths are one file or folder, through links and mounts.
func (n *Node) sameInode(a, b string) bool {
	var ids [2]struct{ dev, ino uint64 }
	for i, p := range []string{a, b} {
		fi, err := n.Host.Root.Stat(p)
		if err != nil {
			return false
		}
		st, ok := fi.Sys().(*syscall.Stat_t)
		if !ok {
			return false
		}
		ids[i].dev, ids[i].ino = uint64(st.Dev), st.Ino
	}
	return ids[0] == ids[1]
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
				Remedy: n.fixConfig(at.File, "containerd.settings", n.drop(at.File, at)),
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
			Remedy: n.fixConfig(at.File, "containerd.settings", n.setValue(at, "address", tomlText(to))),
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
	if !releases.TransferPull(rules(c)) {
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
		edits := []string{n.drop(p.Place.File, p.Place)}
		// Without it the pulls would go where nobody unpacks for them.
		if file, edit := n.addUnpackers(c); file != "" && len(faults) == 0 && !n.makes(file) {
			edits = append([]string{edit}, edits...)
		}
		if strings.HasPrefix(p.Name, "registry.") {
			edits = append([]string{"# with what it says in " + usualCerts + "/HOST/hosts.toml:"}, edits...)
		}
		faults = append(faults, Result{
			Verdict: Fail, Object: p.Name, Observed: "makes CRI pull without the transfer service", Wanted: "use_local_image_pull = true, or its default", Place: p.Place.String(),
			Remedy: n.fixConfig(p.Place.File, "containerd.settings", edits...),
		})
	}
	return orPass(faults, "the transfer service pulls")
}
