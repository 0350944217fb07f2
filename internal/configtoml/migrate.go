package configtoml

import (
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/releases"
)

// The migrations of containerd 2.x, from the file of an older schema towards the newest:
// v1Migrate and serviceMigrate of cmd/containerd/server/config, and the ConfigMigration
// of the plugins that have one.

// migrate brings one file to a schema, as 2.3 and newer do file by file.
func (l *loader) migrate(top *node, from, to int) {
	for v := from; v < to; v++ {
		switch v {
		case 1:
			l.renameV1(top)
		case 3:
			l.migrateServer(top)
		}
		l.migratePlugins(top)
	}
}

// nameV1 is the full URI of a plugin that schema 1 names in short.
func nameV1(name string) string {
	if strings.Contains(name, ".") {
		return name
	}
	kinds := map[string]string{
		"cgroups": "monitor.v1", "linux": "runtime.v1", "scheduler": "gc.v1", "bolt": "metadata.v1", "task": "runtime.v2",
		"opt": "internal.v1", "restart": "internal.v1", "tracing": "internal.v1", "otlp": "tracing.processor.v1",
		"aufs": "snapshotter.v1", "btrfs": "snapshotter.v1", "devmapper": "snapshotter.v1", "native": "snapshotter.v1",
		"overlayfs": "snapshotter.v1", "zfs": "snapshotter.v1", "windows": "snapshotter.v1", "windows-lcow": "snapshotter.v1",
	}
	kind := kinds[name]
	switch {
	case kind != "":
	case strings.HasSuffix(name, "-service"):
		kind = "service.v1"
	default:
		kind = "grpc.v1"
	}
	return "io.containerd." + kind + "." + name
}

// renameV1 gives plugins the names they have since schema 2.
func (l *loader) renameV1(top *node) {
	if plugins := top.get("plugins"); plugins.isTable() {
		for _, name := range plugins.keys() {
			if full := nameV1(name); full != name {
				plugins.table[full] = plugins.table[name]
				delete(plugins.table, name)
			}
		}
	}
	for _, list := range []string{"disabled_plugins", "required_plugins"} {
		n := top.get(list)
		if n == nil {
			continue
		}
		for _, e := range n.list {
			if name, ok := e.text(); ok && nameV1(name) != name {
				e.leaf, e.was = nameV1(name), name
			}
		}
	}
}

// migrateServer makes plugins of what listens. A plugin's section that is there already
// wins whole.
func (l *loader) migrateServer(top *node) {
	grpc, ttrpc, debug, metrics := top.get("grpc"), top.get("ttrpc"), top.get("debug"), top.get("metrics")
	at := Place{}
	for _, n := range []*node{grpc, ttrpc, debug, metrics} {
		if n != nil && at == (Place{}) {
			at = n.at
		}
	}
	plugins := top.get("plugins")
	if plugins == nil {
		plugins = newTable(at)
	}
	if !plugins.isTable() {
		return
	}
	// take moves the named settings of a table, those that are unset left out.
	take := func(into string, from *node, prefix string, names ...string) *node {
		section := newTable(from.at)
		for _, name := range names {
			n := from.get(prefix + name)
			if n != nil && !n.zero() {
				section.table[name] = n
			}
		}
		if len(section.table) > 0 {
			plugins.table[into] = section
		}
		return section
	}
	// drop forgets settings that moved, and those that set nothing.
	drop := func(from *node, names ...string) {
		if !from.isTable() {
			return
		}
		for _, name := range from.keys() {
			if slices.Contains(names, name) || from.table[name].zero() {
				delete(from.table, name)
			}
		}
	}
	free := func(name string) bool { return plugins.table[name] == nil }
	// own makes uid and gid of a socket count though they are 0, as they do where an
	// address is moved.
	own := func(section, from *node) {
		for _, name := range []string{"uid", "gid"} {
			if section.table[name] == nil {
				section.table[name] = &node{at: from.at, leaf: int64(0)}
			}
		}
	}

	if a := debug.get("address"); a != nil && !a.zero() && free(serverPrefix+"debug") {
		own(take(serverPrefix+"debug", debug, "", "address", "uid", "gid"), a)
		drop(debug, "address", "uid", "gid")
	}
	address := grpc.get("address")
	if address != nil && address.zero() {
		address = nil
	}
	uid, gid := grpc.get("uid"), grpc.get("gid")
	moved := false
	if grpc.isTable() {
		if free(serverPrefix + "grpc") {
			s := take(serverPrefix+"grpc", grpc, "", "address", "uid", "gid", "max_recv_message_size", "max_send_message_size")
			if address != nil {
				own(s, address)
			}
			moved = len(s.table) > 0
		}
		if tcp := grpc.get("tcp_address"); tcp != nil && !tcp.zero() && free(serverPrefix+"grpc-tcp") {
			s := take(serverPrefix+"grpc-tcp", grpc, "tcp_", "address", "tls_ca", "tls_cert", "tls_key", "tls_common_name")
			for _, name := range []string{"max_recv_message_size", "max_send_message_size"} {
				if n := grpc.get(name); n != nil && !n.zero() {
					s.table[name] = n
				}
			}
			moved = true
		}
		if moved {
			drop(grpc, grpc.keys()...)
		}
	}
	if free(serverPrefix + "ttrpc") {
		s := newTable(at)
		if ttrpc.isTable() {
			s = take(serverPrefix+"ttrpc", ttrpc, "", "address", "uid", "gid")
		}
		if s.table["address"] == nil && address != nil {
			socket, _ := address.text()
			s.at = address.at
			s.table["address"] = &node{at: address.at, leaf: socket + ".ttrpc"}
			for name, n := range map[string]*node{"uid": uid, "gid": gid} {
				if s.table[name] == nil && n != nil && !n.zero() {
					s.table[name] = &node{at: n.at, leaf: n.leaf}
				}
			}
		}
		if len(s.table) > 0 {
			own(s, s)
			plugins.table[serverPrefix+"ttrpc"] = s
			drop(ttrpc, "address", "uid", "gid")
		}
	}
	const prometheus = "io.containerd.metrics.v1.grpc-prometheus"
	if metrics.get("grpc_histogram").boolean() && free(prometheus) {
		take(prometheus, metrics, "", "grpc_histogram")
		drop(metrics, "grpc_histogram")
	}
	if a := metrics.get("address"); a != nil && !a.zero() && free(serverPrefix+"metrics") {
		take(serverPrefix+"metrics", metrics, "", "address")
		drop(metrics, "address")
	}
	drop(grpc)
	drop(ttrpc)
	drop(metrics)
	if len(plugins.table) > 0 {
		top.table["plugins"] = plugins
	}
}

// migratePlugins runs what the plugins of 2.x do with sections of schema 2.
func (l *loader) migratePlugins(top *node) {
	plugins := top.get("plugins")
	if !plugins.isTable() {
		return
	}
	if cri := plugins.table[criV2]; cri.isTable() {
		l.migrateImages(plugins, cri)
		l.migrateRuntime(plugins, cri)
		kept := *cri
		kept.table = map[string]*node{}
		for _, key := range streamKeys() {
			if n := cri.table[key]; n != nil {
				kept.table[key] = n
			}
		}
		plugins.table[criV2] = &kept
	}
	for from, to := range map[string]string{
		"io.containerd.internal.v1.restart": "io.containerd.monitor.container.v1.restart",
		"io.containerd.monitor.v1.cgroups":  "io.containerd.monitor.task.v1.cgroups",
	} {
		if n := plugins.table[from]; n != nil {
			if lost := plugins.table[to]; lost != nil {
				l.ignore(lost, "plugins.%q is there too, and wins", from)
			}
			plugins.table[to] = n
			delete(plugins.table, from)
		}
	}
	const manager = "io.containerd.shim.v1.manager"
	if task := plugins.table["io.containerd.runtime.v2.task"]; task.isTable() {
		section := newTable(task.at)
		if core := task.table["sched_core"]; core != nil {
			if core.boolean() {
				section.table["env"] = &node{at: core.at, path: core.path, kind: listKind, from: core,
					list: []*node{{at: core.at, leaf: "SCHED_CORE=1"}}}
			}
			delete(task.table, "sched_core")
		}
		if lost := plugins.table[manager]; lost != nil && len(lost.table) > 0 && lost.path != nil {
			l.ignore(lost, "the migration to schema %d makes this section anew from io.containerd.runtime.v2.task: write version = %d",
				releases.ConfigSchema(l.rules), releases.ConfigSchema(l.rules))
		}
		delete(plugins.table, manager)
		if len(section.table) > 0 {
			plugins.table[manager] = section
		}
	}
}

// Keys of schema 2's CRI section by where they went. Everything else went to the runtime
// plugin.
func imageKeys() []string {
	return []string{"registry", "image_decryption", "max_concurrent_downloads",
		"image_pull_progress_timeout", "image_pull_with_sync_fs", "stats_collect_period"}
}

func streamKeys() []string {
	return []string{"disable_tcp_service", "stream_server_address", "stream_server_port",
		"stream_idle_timeout", "enable_tls_streaming", "x509_key_pair_streaming"}
}

func snapshotKeys() []string {
	return []string{"snapshotter", "disable_snapshot_annotations", "discard_unpacked_layers"}
}

// migrateImages fills the image plugin's section; what schema 2 says wins there.
func (l *loader) migrateImages(plugins, cri *node) {
	images := plugins.section(criImages, cri.at)
	if images == nil {
		return
	}
	put := func(into *node, key string, n *node) {
		if lost := into.table[key]; lost != nil {
			l.ignore(lost, "the section of schema 2 (%s) sets it too, and wins", n.at)
		}
		into.table[key] = n
	}
	if n := cri.table["sandbox_image"]; n != nil {
		if pinned := images.section("pinned_images", n.at); pinned != nil {
			put(pinned, "sandbox", n)
		}
	}
	for _, key := range imageKeys() {
		if n := cri.table[key]; n != nil {
			put(images, key, n)
		}
	}
	containerd := cri.table["containerd"]
	for _, key := range snapshotKeys() {
		n := containerd.get(key)
		switch {
		case n == nil:
		case containerd.table["runtimes"] == nil:
			l.ignore(n, "the migration drops it from a file without a runtimes table: write it under [plugins.%q] in a file of version %d",
				criImages, releases.ConfigSchema(l.rules))
		default:
			put(images, key, n)
		}
	}
}

// migrateRuntime fills the runtime plugin's section; what is there already wins.
func (l *loader) migrateRuntime(plugins, cri *node) {
	runtime := plugins.section(criRuntime, cri.at)
	if runtime == nil {
		return
	}
	put := func(into *node, key string, n *node) {
		if have := into.table[key]; have != nil && have != n {
			l.ignore(n, "%s sets it too, and wins", have.at)
			return
		}
		into.table[key] = n
	}
	elsewhere := slices.Concat([]string{"sandbox_image", "containerd"}, imageKeys(), streamKeys())
	for _, key := range cri.keys() {
		n := cri.table[key]
		switch {
		case slices.Contains(elsewhere, key):
		case key == "cni" && releases.BinDirsSupported(l.rules) && n.isTable():
			cni := runtime.section("cni", n.at)
			if cni == nil {
				continue
			}
			for _, key := range n.keys() {
				if key != "bin_dir" {
					put(cni, key, n.table[key])
				}
			}
			if dir := n.table["bin_dir"]; dir != nil {
				if lost := cni.table["bin_dirs"]; lost != nil {
					l.ignore(lost, "bin_dir (%s) is there too, and wins", dir.at)
				}
				cni.table["bin_dirs"] = &node{at: dir.at, path: dir.path, kind: listKind, list: []*node{dir}, from: dir}
			}
		case key == "enable_cdi" && l.rules.AtLeast(2, 4, 0):
			l.ignore(n, "removed in containerd 2.4: CDI is always on")
		default:
			put(runtime, key, n)
		}
	}
	containerd := cri.table["containerd"]
	if !containerd.isTable() {
		return
	}
	into := runtime.section("containerd", containerd.at)
	if into == nil {
		return
	}
	for _, key := range containerd.keys() {
		if !slices.Contains(snapshotKeys(), key) {
			put(into, key, containerd.table[key])
		}
	}
	runtimes := into.get("runtimes")
	for _, name := range runtimes.keys() {
		r := runtimes.table[name]
		if mode := r.get("sandbox_mode"); mode != nil && r.get("sandboxer") == nil {
			r.table["sandboxer"] = mode
			delete(r.table, "sandbox_mode")
		}
	}
}
