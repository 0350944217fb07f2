package releases

import "slices"

// Retired is a setting of config.toml that containerd takes back.
type Retired struct {
	Since   Version // the release that deprecates it; zero: none did
	Removed Version // the release that no longer reads it; zero: none is named
	Instead string  // what to do, such as "use bin_dirs"
}

// RetiredSettings are the settings that containerd took or takes back. Sources: the
// tables of containerd's RELEASES.md (of v2.4.2) and its Validate functions for CRI.
type RetiredSettings struct {
	byName map[string][]retiredSetting // by the last part of their path
}

// NewRetiredSettings makes the table, for as many questions as there are.
func NewRetiredSettings() RetiredSettings {
	t := RetiredSettings{map[string][]retiredSetting{}}
	for _, r := range retired() {
		name := r.path[len(r.path)-1]
		t.byName[name] = append(t.byName[name], r)
	}
	return t
}

// Of tells of a deprecated or removed key of config.toml, by its path from the top as
// any schema spells it.
func (t RetiredSettings) Of(path []string) (Retired, bool) {
	if len(path) == 0 {
		return Retired{}, false
	}
	for _, r := range t.byName[path[len(path)-1]] {
		if matches(r.path, path) {
			return r.Retired, true
		}
	}
	return Retired{}, false
}

// matches compares paths; "*" in the pattern is any key.
func matches(pattern, path []string) bool {
	return slices.EqualFunc(pattern, path, func(p, k string) bool { return p == "*" || p == k })
}

type retiredSetting struct {
	path []string
	Retired
}

func retired() []retiredSetting {
	v := func(major, minor int) Version { return Version{Major: major, Minor: minor} }
	two, never := v(2, 0), Version{}
	// cri is a key of the one CRI section of schema 2 and of the two plugins since.
	cri := func(since, removed Version, instead string, path ...string) []retiredSetting {
		var out []retiredSetting
		for _, plugin := range []string{criV2, criImages, criRuntime} {
			out = append(out, retiredSetting{slices.Concat([]string{"plugins", plugin}, path), Retired{since, removed, instead}})
		}
		return out
	}
	plugin := func(since, removed Version, instead string, path ...string) []retiredSetting {
		return []retiredSetting{{slices.Concat([]string{"plugins"}, path), Retired{since, removed, instead}}}
	}
	const otlp, tracing = "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing"
	tracingSince := Version{Major: 1, Minor: 6, Patch: 29}
	return slices.Concat(
		[]retiredSetting{{[]string{"plugin_dir"}, Retired{two, v(2, 1), "use proxy_plugins"}}},
		cri(v(1, 3), two, "use SystemdCgroup among the options of the runtime", "systemd_cgroup"),
		cri(never, two, "cgroup v2 is delegated instead", "disable_cgroup"),
		cri(v(1, 2), two, "use a runtime named untrusted in runtimes", "containerd", "untrusted_workload_runtime"),
		cri(v(1, 3), two, "use default_runtime_name", "containerd", "default_runtime"),
		cri(never, two, "use NoPivotRoot among the options of the runtime", "containerd", "no_pivot"),
		cri(v(1, 3), two, "use BinaryName among the options of the runtime", "containerd", "runtimes", "*", "runtime_engine"),
		cri(v(1, 3), two, "use Root among the options of the runtime", "containerd", "runtimes", "*", "runtime_root"),
		cri(v(1, 7), two, "criu is found in PATH", "containerd", "runtimes", "*", "options", "CriuPath"),
		cri(v(1, 5), two, "use hosts.toml files in config_path", "registry", "configs", "*", "tls"),
		cri(v(1, 5), v(2, 7), "use hosts.toml files in config_path", "registry", "mirrors"),
		cri(v(1, 5), v(2, 7), "use hosts.toml files in config_path, and imagePullSecrets for credentials", "registry", "configs"),
		cri(v(1, 3), v(2, 7), "use imagePullSecrets", "registry", "auths"),
		cri(v(2, 1), v(2, 4), "use bin_dirs", "cni", "bin_dir"),
		cri(v(2, 2), v(2, 4), "CDI is always on", "enable_cdi"),
		plugin(v(1, 4), two, "use io.containerd.runc.v2 as runtime_type", "io.containerd.runtime.v1.linux"),
		plugin(v(1, 5), two, "use the overlayfs snapshotter", "io.containerd.snapshotter.v1.aufs"),
		plugin(tracingSince, v(2, 4), "use OTEL_EXPORTER_OTLP_ENDPOINT in the daemon's environment", otlp, "endpoint"),
		plugin(tracingSince, v(2, 4), "use OTEL_EXPORTER_OTLP_PROTOCOL in the daemon's environment", otlp, "protocol"),
		plugin(tracingSince, v(2, 4), "use OTEL_EXPORTER_OTLP_INSECURE in the daemon's environment", otlp, "insecure"),
		plugin(tracingSince, v(2, 4), "use OTEL_SERVICE_NAME in the daemon's environment", tracing, "service_name"),
		plugin(tracingSince, v(2, 4), "use OTEL_TRACES_SAMPLER in the daemon's environment", tracing, "sampling_ratio"),
	)
}
