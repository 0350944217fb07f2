package releases

import (
	"fmt"
	"slices"
	"strings"
)

// Plugin URIs whose place changed between config schemas.
const (
	criV2      = "io.containerd.grpc.v1.cri"
	criImages  = "io.containerd.cri.v1.images"
	criRuntime = "io.containerd.cri.v1.runtime"
)

// key prints a config.toml path as one would write it: plugins."io.containerd...".key.
func key(parts ...string) string {
	out := make([]string, len(parts))
	for i, p := range parts {
		if strings.ContainsAny(p, ".: /") {
			p = `"` + p + `"`
		}
		out[i] = p
	}
	return strings.Join(out, ".")
}

func use(parts ...string) string { return "use " + key(parts...) }

// moved is the hint for a key that went to another place: the field of the profile
// that writes that place, what is to be said of the place itself, or the place.
func moved(v Version, path ...string) string {
	if field := fieldOf(path); field != "" {
		return "set " + field
	}
	if hint, fault := SettingsFault(v, path); fault {
		return hint
	}
	return use(path...)
}

// fieldOf is the field of a profile that writes a key of config.toml, "" for others.
func fieldOf(path []string) string {
	switch strings.Join(path, "\x00") {
	case strings.Join([]string{"plugins", criImages, "pinned_images", "sandbox"}, "\x00"):
		return "containerd.sandboxImage"
	case strings.Join([]string{"plugins", criImages, "snapshotter"}, "\x00"):
		return "containerd.snapshotter"
	case strings.Join([]string{"plugins", criRuntime, "containerd", "default_runtime_name"}, "\x00"):
		return "containerd.defaultRuntime"
	case "plugins\x00io.containerd.server.v1.grpc\x00address", "plugins\x00io.containerd.server.v1.ttrpc\x00address":
		return "containerd.address"
	}
	return ""
}

// SettingsFault says whether a key of config.toml, given as its path from the top,
// is one that a containerd release does not read: a key of another schema, a removed
// one, or one that breaks what nodeprep writes. The hint names what to use instead.
// Sources: containerd's RELEASES.md tables and its configMigration functions
// (plugins/cri, core/metrics/cgroups, plugins/restart, cmd/containerd/server/config).
func SettingsFault(v Version, path []string) (hint string, fault bool) {
	if len(path) == 0 {
		return "", false
	}
	schema := ConfigSchema(v)
	switch path[0] {
	case "version":
		return "nodeprep chooses it by containerd.version", len(path) == 1
	case "plugin_dir":
		return "removed in containerd 2.1: use proxyPlugins", v.AtLeast(2, 1, 0)
	case "grpc", "ttrpc", "metrics", "debug":
		if schema >= 4 {
			return serverFault(v, path)
		}
		return "", false
	case "plugins":
		if len(path) == 1 {
			return "", false
		}
		return pluginFault(v, schema, path[1], path[2:])
	}
	return "", false
}

// serverFault handles the top-level tables that schema 4 parses and does not apply:
// what listens became plugins.
func serverFault(v Version, path []string) (string, bool) {
	if len(path) == 1 {
		// [debug] itself lives on for level, format and log_trace_id.
		switch path[0] {
		case "grpc", "ttrpc":
			return use("plugins", "io.containerd.server.v1."+path[0]), true
		case "metrics":
			return use("plugins", "io.containerd.server.v1.metrics"), true
		}
		return "", false
	}
	name := path[1]
	switch path[0] {
	case "grpc":
		if tcp, ok := strings.CutPrefix(name, "tcp_"); ok {
			return moved(v, "plugins", "io.containerd.server.v1.grpc-tcp", tcp), true
		}
		return moved(v, "plugins", "io.containerd.server.v1.grpc", name), true
	case "ttrpc":
		return moved(v, "plugins", "io.containerd.server.v1.ttrpc", name), true
	case "metrics":
		if name == "grpc_histogram" {
			return moved(v, "plugins", "io.containerd.metrics.v1.grpc-prometheus", name), true
		}
		return moved(v, "plugins", "io.containerd.server.v1.metrics", name), true
	}
	if slices.Contains([]string{"address", "uid", "gid"}, name) {
		return moved(v, "plugins", "io.containerd.server.v1.debug", name), true
	}
	return "", false
}

// imageKeys and streamKeys are the keys of schema 2's CRI section that went
// elsewhere than to the runtime plugin.
func imageKeys() []string {
	return []string{"registry", "image_decryption", "max_concurrent_downloads",
		"image_pull_progress_timeout", "image_pull_with_sync_fs", "stats_collect_period"}
}

func streamKeys() []string {
	return []string{"disable_tcp_service", "stream_server_address", "stream_server_port",
		"stream_idle_timeout", "enable_tls_streaming", "x509_key_pair_streaming"}
}

func pluginFault(v Version, schema int, plugin string, rest []string) (string, bool) {
	if !strings.HasPrefix(plugin, "io.containerd.") {
		if plugin == "cri" {
			if schema == 2 {
				return moved(v, append([]string{"plugins", criV2}, rest...)...), true
			}
			if hint, fault := movedCRI(v, rest); fault {
				return hint, true
			}
			return use("plugins", criImages) + " and " + key("plugins", criRuntime), true
		}
		return "plugins are named by their full URI, such as " + criImages, true
	}
	if hint, fault := renamedPlugin(v, schema, plugin, rest); fault {
		return hint, true
	}
	switch plugin {
	case criV2:
		if schema == 2 {
			return removedCRI(v, plugin, rest)
		}
		return movedCRI(v, rest)
	case criImages:
		if hint, fault := registryFault(rest); fault {
			return hint, true
		}
		// Set one level up since schema 3: under containerd it is an unknown key.
		if len(rest) > 0 && rest[0] == "containerd" {
			if len(rest) > 1 {
				return moved(v, append([]string{"plugins", criImages}, rest[1:]...)...), true
			}
			return use("plugins", criImages), true
		}
		if len(rest) > 0 && rest[0] == "sandbox_image" {
			return moved(v, "plugins", criImages, "pinned_images", "sandbox"), true
		}
	case criRuntime:
		return removedCRI(v, plugin, rest)
	}
	return "", false
}

func renamedPlugin(v Version, schema int, plugin string, rest []string) (string, bool) {
	switch plugin {
	case criImages, criRuntime:
		if schema == 2 {
			return "containerd 1.x has one CRI section: " + use("plugins", criV2), true
		}
	case "io.containerd.internal.v1.restart":
		if schema >= 3 {
			return use("plugins", "io.containerd.monitor.container.v1.restart"), true
		}
	case "io.containerd.monitor.container.v1.restart":
		if schema == 2 {
			return use("plugins", "io.containerd.internal.v1.restart"), true
		}
	case "io.containerd.monitor.v1.cgroups":
		if schema >= 3 {
			return use("plugins", "io.containerd.monitor.task.v1.cgroups"), true
		}
	case "io.containerd.monitor.task.v1.cgroups":
		if schema == 2 {
			return use("plugins", "io.containerd.monitor.v1.cgroups"), true
		}
	case "io.containerd.runtime.v1.linux":
		return "removed in containerd 2.0: the runtime is io.containerd.runc.v2", schema >= 3
	case "io.containerd.snapshotter.v1.aufs":
		return "removed in containerd 2.0: " + use("containerd", "snapshotter") + " overlayfs", schema >= 3
	case "io.containerd.runtime.v2.task":
		if schema >= 3 && len(rest) > 0 && rest[0] == "sched_core" {
			return use("plugins", "io.containerd.shim.v1.manager", "env") + ` with "SCHED_CORE=1"`, true
		}
	case "io.containerd.shim.v1.manager":
		if schema == 2 {
			return use("plugins", "io.containerd.runtime.v2.task"), true
		}
	case "io.containerd.tracing.processor.v1.otlp":
		if v.AtLeast(2, 4, 0) && len(rest) > 0 && slices.Contains([]string{"endpoint", "protocol", "insecure"}, rest[0]) {
			return "removed in containerd 2.4: set OTEL_EXPORTER_OTLP_* in systemd.environment", true
		}
	case "io.containerd.internal.v1.tracing":
		if v.AtLeast(2, 4, 0) && len(rest) > 0 && slices.Contains([]string{"service_name", "sampling_ratio"}, rest[0]) {
			return "removed in containerd 2.4: set OTEL_SERVICE_NAME or OTEL_TRACES_SAMPLER* in systemd.environment", true
		}
	}
	if server, ok := strings.CutPrefix(plugin, "io.containerd.server.v1."); ok && schema < 4 {
		if server == "grpc-tcp" {
			return fmt.Sprintf("server plugins come with containerd 2.3: %s (tcp_*)", use("grpc")), true
		}
		return "server plugins come with containerd 2.3: " + use(server), true
	}
	if plugin == "io.containerd.metrics.v1.grpc-prometheus" && schema < 4 {
		return use("metrics", "grpc_histogram"), true
	}
	return "", false
}

// movedCRI says where a key of schema 2's one CRI section went in schema 3.
func movedCRI(v Version, rest []string) (string, bool) {
	if len(rest) == 0 || slices.Contains(streamKeys(), rest[0]) {
		return "", false
	}
	at := func(plugin string, path ...string) (string, bool) {
		return moved(v, append([]string{"plugins", plugin}, path...)...), true
	}
	switch {
	case rest[0] == "sandbox_image":
		return at(criImages, "pinned_images", "sandbox")
	case slices.Contains(imageKeys(), rest[0]):
		return at(criImages, rest...)
	case rest[0] == "containerd" && len(rest) > 1 &&
		slices.Contains([]string{"snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"}, rest[1]):
		return at(criImages, rest[1:]...)
	case rest[0] == "cni" && len(rest) > 1 && rest[1] == "bin_dir" && BinDirsSupported(v):
		return at(criRuntime, "cni", "bin_dirs")
	}
	if hint, removed := removedCRI(v, criRuntime, rest); removed {
		return hint, true
	}
	return at(criRuntime, rest...)
}

// registryFault handles the ways of naming mirrors that fight with config_path.
func registryFault(rest []string) (string, bool) {
	if len(rest) < 2 || rest[0] != "registry" {
		return "", false
	}
	switch {
	case rest[1] == "mirrors":
		return "mirrors cannot be set beside config_path, which nodeprep sets: use the profile's registries section", true
	case rest[1] == "config_path":
		return "nodeprep writes certs.d and points config_path at it: use the profile's registries section", true
	case len(rest) > 3 && rest[1] == "configs" && rest[3] == "tls":
		return "TLS settings are read from hosts.toml only: use ca and client in the profile's registries section", true
	}
	return "", false
}

// removedCRI handles keys of the CRI sections that a release no longer has.
func removedCRI(v Version, plugin string, rest []string) (string, bool) {
	if len(rest) == 0 {
		return "", false
	}
	if plugin == criV2 {
		if hint, fault := registryFault(rest); fault {
			return hint, true
		}
	}
	path := strings.Join(rest, "\x00")
	is := func(keys ...string) bool {
		want := strings.Join(keys, "\x00")
		return path == want || strings.HasPrefix(path, want+"\x00")
	}
	two := v.AtLeast(2, 0, 0)
	switch {
	case is("systemd_cgroup"):
		return "it only works with the removed runtime v1: set containerd.cgroupDriver", true
	case is("disable_cgroup"):
		return "removed in containerd 2.0: cgroup v2 is delegated instead", two
	case is("containerd", "untrusted_workload_runtime"):
		return "removed in containerd 2.0: add a runtime named untrusted", two
	case is("containerd", "default_runtime"):
		return "removed in containerd 2.0: set containerd.defaultRuntime", two
	case is("containerd", "no_pivot"):
		return "removed in containerd 2.0: use the runtime option NoPivotRoot", two
	case is("sandbox_image") && plugin == criRuntime:
		return moved(v, "plugins", criImages, "pinned_images", "sandbox"), true
	case plugin == criRuntime && (slices.Contains(imageKeys(), rest[0]) && rest[0] != "stats_collect_period"):
		return moved(v, append([]string{"plugins", criImages}, rest...)...), true
	case plugin == criRuntime && len(rest) > 1 && rest[0] == "containerd" && rest[1] == "snapshotter":
		return moved(v, "plugins", criImages, "snapshotter"), true
	case is("cni", "bin_dir") && BinDirsSupported(v):
		return "bin_dirs is set, and both are an error: " + use("plugins", criRuntime, "cni", "bin_dirs"), true
	case is("cni", "bin_dirs") && !BinDirsSupported(v):
		return fmt.Sprintf("containerd %s has no bin_dirs, it came with 2.1: %s", v, use("plugins", plugin, "cni", "bin_dir")), true
	case is("enable_cdi") && v.AtLeast(2, 4, 0):
		return "removed in containerd 2.4: CDI is always on", true
	}
	if len(rest) >= 4 && rest[0] == "containerd" && rest[1] == "runtimes" {
		switch name := rest[3]; {
		case name == "runtime_engine" && two:
			return "removed in containerd 2.0: use the runtime option BinaryName", true
		case name == "runtime_root" && two:
			return "removed in containerd 2.0: use the runtime option Root", true
		case name == "sandbox_mode" && two:
			return "renamed in containerd 2.0: use sandboxer", true
		case name == "options" && len(rest) > 4 && rest[4] == "CriuPath" && two:
			return "removed in containerd 2.0: criu is found in PATH", true
		}
	}
	return "", false
}
