package releases

import (
	"strings"
	"unicode"
)

// ValueType is the type of a setting, as messages call it.
type ValueType string

// The types of settings. A duration is a text that time.ParseDuration reads.
const (
	AnyValue      ValueType = ""
	MapValue      ValueType = "a map"
	TextValue     ValueType = "a text"
	NumberValue   ValueType = "a whole number"
	BooleanValue  ValueType = "a boolean"
	TextsValue    ValueType = "a list of texts"
	DurationValue ValueType = "a duration"
)

// topTypes are the types of config.toml outside of plugins; "*" is any key.
// Source: the Config struct of containerd's cmd/containerd/server/config (1.x:
// services/server/config), which is decoded strictly.
func topTypes() map[string]ValueType {
	return map[string]ValueType{
		"root": TextValue, "state": TextValue, "temp": TextValue, "plugin_dir": TextValue,
		"oom_score": NumberValue,
		"imports":   TextsValue, "disabled_plugins": TextsValue, "required_plugins": TextsValue,

		"grpc": MapValue, "grpc/address": TextValue, "grpc/uid": NumberValue, "grpc/gid": NumberValue,
		"grpc/tcp_address": TextValue, "grpc/tcp_tls_ca": TextValue, "grpc/tcp_tls_cert": TextValue,
		"grpc/tcp_tls_key": TextValue, "grpc/tcp_tls_common_name": TextValue,
		"grpc/max_recv_message_size": NumberValue, "grpc/max_send_message_size": NumberValue,

		"ttrpc": MapValue, "ttrpc/address": TextValue, "ttrpc/uid": NumberValue, "ttrpc/gid": NumberValue,

		"debug": MapValue, "debug/address": TextValue, "debug/uid": NumberValue, "debug/gid": NumberValue,
		"debug/level": TextValue, "debug/format": TextValue, "debug/log_trace_id": BooleanValue,

		"metrics": MapValue, "metrics/address": TextValue, "metrics/grpc_histogram": BooleanValue,
		"cgroup": MapValue, "cgroup/path": TextValue,
		"timeouts": MapValue, "timeouts/*": DurationValue,

		"proxy_plugins": MapValue, "proxy_plugins/*": MapValue, "proxy_plugins/*/type": TextValue,
		"proxy_plugins/*/address": TextValue, "proxy_plugins/*/platform": TextValue,
		"proxy_plugins/*/exports": MapValue, "proxy_plugins/*/exports/*": TextValue, "proxy_plugins/*/capabilities": TextsValue,

		"stream_processors": MapValue, "stream_processors/*": MapValue, "stream_processors/*/accepts": TextsValue,
		"stream_processors/*/returns": TextValue, "stream_processors/*/path": TextValue,
		"stream_processors/*/args": TextsValue, "stream_processors/*/env": TextsValue,

		"plugins": MapValue, "plugins/*": MapValue,
	}
}

// pluginTypes are keys of plugins whose type is the same in every release that has
// them; a wrong one takes the plugin away, or the daemon with it. Source: the output of
// "containerd config default" of each release.
func pluginTypes() map[string]ValueType {
	cri := map[string]ValueType{
		"sandbox_image": TextValue, "snapshotter": TextValue, "registry": MapValue, "registry/config_path": TextValue,
		"registry/configs": MapValue, "registry/configs/*": MapValue, "registry/configs/*/auth": MapValue, "registry/configs/*/auth/*": TextValue,
		"pinned_images": MapValue, "pinned_images/*": TextValue, "image_decryption": MapValue, "image_decryption/key_model": TextValue,
		"max_concurrent_downloads": NumberValue, "image_pull_progress_timeout": TextValue, "image_pull_with_sync_fs": BooleanValue,
		"disable_snapshot_annotations": BooleanValue, "discard_unpacked_layers": BooleanValue, "use_local_image_pull": BooleanValue,

		"containerd": MapValue, "containerd/default_runtime_name": TextValue, "containerd/snapshotter": TextValue,
		"containerd/runtimes": MapValue, "containerd/runtimes/*": MapValue, "containerd/runtimes/*/runtime_type": TextValue,
		"containerd/runtimes/*/runtime_path": TextValue, "containerd/runtimes/*/options": MapValue,
		"containerd/runtimes/*/options/SystemdCgroup": BooleanValue, "containerd/runtimes/*/options/BinaryName": TextValue,
		"containerd/runtimes/*/pod_annotations": TextsValue, "containerd/runtimes/*/container_annotations": TextsValue,
		"containerd/runtimes/*/privileged_without_host_devices": BooleanValue, "containerd/runtimes/*/base_runtime_spec": TextValue,
		"containerd/runtimes/*/snapshotter": TextValue, "containerd/runtimes/*/sandboxer": TextValue,
		"cni": MapValue, "cni/bin_dir": TextValue, "cni/bin_dirs": TextsValue, "cni/conf_dir": TextValue,
		"cni/max_conf_num": NumberValue, "cni/conf_template": TextValue, "cni/ip_pref": TextValue, "cni/setup_serially": BooleanValue,

		"enable_selinux": BooleanValue, "selinux_category_range": NumberValue, "max_container_log_line_size": NumberValue,
		"disable_apparmor": BooleanValue, "restrict_oom_score_adj": BooleanValue, "disable_proc_mount": BooleanValue,
		"unset_seccomp_profile": TextValue, "tolerate_missing_hugetlb_controller": BooleanValue, "disable_hugetlb_controller": BooleanValue,
		"device_ownership_from_security_context": BooleanValue, "ignore_image_defined_volumes": BooleanValue,
		"netns_mounts_under_state_dir": BooleanValue, "enable_unprivileged_ports": BooleanValue, "enable_unprivileged_icmp": BooleanValue,
		"enable_cdi": BooleanValue, "cdi_spec_dirs": TextsValue, "drain_exec_sync_io_timeout": TextValue,
		"disable_tcp_service": BooleanValue, "stream_server_address": TextValue, "stream_server_port": TextValue,
		"stream_idle_timeout": TextValue, "enable_tls_streaming": BooleanValue,
	}
	out := map[string]ValueType{}
	for _, plugin := range []string{criV2, criImages, criRuntime} {
		for k, t := range cri {
			out[plugin+"/"+k] = t
		}
	}
	for k, t := range map[string]ValueType{
		"snapshotter.v1.overlayfs/root_path": TextValue, "snapshotter.v1.overlayfs/upperdir_label": BooleanValue,
		"snapshotter.v1.overlayfs/sync_remove": BooleanValue, "snapshotter.v1.overlayfs/slow_chown": BooleanValue,
		"snapshotter.v1.overlayfs/mount_options": TextsValue,
		"snapshotter.v1.native/root_path":        TextValue, "snapshotter.v1.btrfs/root_path": TextValue, "snapshotter.v1.zfs/root_path": TextValue,
		"snapshotter.v1.devmapper/root_path": TextValue, "snapshotter.v1.devmapper/pool_name": TextValue,
		"snapshotter.v1.devmapper/base_image_size": TextValue, "snapshotter.v1.devmapper/async_remove": BooleanValue,
		"snapshotter.v1.devmapper/discard_blocks": BooleanValue,
		"internal.v1.opt/path":                    TextValue,
		"gc.v1.scheduler/mutation_threshold":      NumberValue, "gc.v1.scheduler/deletion_threshold": NumberValue,
		"gc.v1.scheduler/schedule_delay": DurationValue, "gc.v1.scheduler/startup_delay": DurationValue,
		"metadata.v1.bolt/content_sharing_policy": TextValue, "metadata.v1.bolt/no_sync": BooleanValue,
		"runtime.v2.task/platforms": TextsValue, "service.v1.diff-service/default": TextsValue, "shim.v1.manager/env": TextsValue,
		"nri.v1.nri/disable": BooleanValue, "nri.v1.nri/socket_path": TextValue,
		"server.v1.grpc/address": TextValue, "server.v1.grpc/uid": NumberValue, "server.v1.grpc/gid": NumberValue,
		"server.v1.grpc/max_recv_message_size": NumberValue, "server.v1.grpc/max_send_message_size": NumberValue,
		"server.v1.grpc-tcp/address": TextValue, "server.v1.metrics/address": TextValue,
		"server.v1.ttrpc/address": TextValue, "server.v1.ttrpc/uid": NumberValue, "server.v1.ttrpc/gid": NumberValue,
		"server.v1.debug/address": TextValue, "server.v1.debug/uid": NumberValue, "server.v1.debug/gid": NumberValue,
		"metrics.v1.grpc-prometheus/grpc_histogram": BooleanValue,
	} {
		out["io.containerd."+k] = t
	}
	return out
}

// KnownSection says whether a release reads a key at the top of config.toml, or once
// read it, which is SettingsFault's to say.
func KnownSection(_ Version, name string) bool {
	return name == "version" || name != "*" && !strings.Contains(name, "/") && topTypes()[name] != AnyValue
}

// SettingTypes are the types of config.toml's keys.
type SettingTypes struct{ top *typeNode }

type typeNode struct {
	value ValueType
	below map[string]*typeNode
}

// NewSettingTypes makes the table, for as many questions as there are.
func NewSettingTypes() SettingTypes {
	top := &typeNode{}
	add := func(path string, t ValueType) {
		n := top
		for part := range strings.SplitSeq(path, "/") {
			next := n.below[part]
			if next == nil {
				next = &typeNode{}
				if n.below == nil {
					n.below = map[string]*typeNode{}
				}
				n.below[part] = next
			}
			n = next
		}
		n.value = t
	}
	for path, t := range topTypes() {
		add(path, t)
	}
	for path, t := range pluginTypes() {
		add("plugins/"+path, t)
	}
	return SettingTypes{top}
}

// Of is the type a key of config.toml must have, AnyValue where that is not known.
// The path is from the top.
func (s SettingTypes) Of(path []string) ValueType {
	n := s.top
	for _, key := range path {
		next := n.below[key]
		if next == nil {
			next = n.below["*"]
		}
		if next == nil {
			return AnyValue
		}
		n = next
	}
	if n.value == AnyValue && n.below != nil {
		return MapValue
	}
	return n.value
}

// UnreadableKey says whether a release cannot read a key of config.toml in a table's
// header: the TOML library of containerd 1.x (go-toml v1) fails at an escape or a
// closing bracket in it.
func UnreadableKey(v Version, key string) bool {
	return ConfigSchema(v) == 2 &&
		(strings.ContainsFunc(key, unicode.IsControl) || strings.Contains(key, "]") || strings.Contains(key, "'") && strings.ContainsAny(key, `"\`))
}
