package checks

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

const configFile = "/etc/containerd/config.toml"

// with is a live host, systemd on cgroup v2, whose containerd of a release reads this
// config.
func with(t *testing.T, release, config string, more files, change ...func(*Outside)) *Node {
	t.Helper()
	f := nodeFiles(files{"/sys/fs/cgroup/cgroup.controllers": "cpu memory", configFile: config})
	if config == noFile {
		delete(f, configFile)
	}
	maps.Copy(f, more)
	says := "containerd github.com/containerd/containerd v" + release + " 1234abcd\n"
	all := append([]func(*Outside){amd64, withUnits(units{systemd.UnitName: {LoadState: "loaded", KillMode: "process"}}), asks(says, runcIs)}, change...)
	return fake(t, f, all...)
}

// tables of CRI, short.
const (
	v2Runc     = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n"
	v2Options  = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]\n"
	v3Runtime  = "[plugins.'io.containerd.cri.v1.runtime']\n"
	v3Runc     = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n"
	v3Options  = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\n"
	v3Images   = "[plugins.'io.containerd.cri.v1.images']\n"
	v3Pinned   = "[plugins.'io.containerd.cri.v1.images'.pinned_images]\n"
	v3Registry = "[plugins.'io.containerd.cri.v1.images'.registry]\n"
	v3CNI      = "[plugins.'io.containerd.cri.v1.runtime'.cni]\n"
	systemd3   = v3Options + "SystemdCgroup = true\n"
)

// TestGoodConfigs: on configs that are right nothing fails, in any release.
func TestGoodConfigs(t *testing.T) {
	for name, c := range map[string]struct{ release, config string }{
		"schema 4": {"2.4.2", "version = 4\n" + systemd3}, "schema 3": {"2.1.9", "version = 3\n" + systemd3},
		"schema 2": {"1.7.34", "version = 2\n" + v2Runc + v2Options + "SystemdCgroup = true\n"},
	} {
		t.Run(name, func(t *testing.T) {
			n := with(t, c.release, c.config, nil)
			for _, check := range configChecks() {
				if slices.Contains(check.Needs, NeedProfile) || slices.Contains(check.Needs, NeedKubelet) {
					continue
				}
				for _, r := range check.Run(t.Context(), n) {
					if r.Verdict != Pass && r.Verdict != Skip {
						t.Errorf("%s: %s %+v", check.ID, r.Verdict, r)
					}
				}
			}
		})
	}
}

type configCase struct {
	release, config string
	more            files
	change          []func(*Outside)
	id              string
	want            []want
}

func TestConfig(t *testing.T) {
	profile := func(change func(*profiles.Containerd)) []func(*Outside) {
		c := profiles.Containerd{
			Component: profiles.Component{Version: releases.MustVersion("2.1.9")}, Root: "/var/lib/containerd", State: "/run/containerd", Address: "/run/containerd/containerd.sock",
			Snapshotter: "overlayfs", SandboxImage: "registry.k8s.io/pause:3.10", SystemdCgroup: true, DefaultRuntime: "runc",
		}
		if change != nil {
			change(&c)
		}
		return []func(*Outside){withSpec(profiles.Spec{Containerd: c, Kubernetes: "1.33"})}
	}
	certs := "config_path = '/etc/containerd/certs.d'\n"
	hosts := files{"/etc/containerd/certs.d/docker.io/hosts.toml": "server = 'https://docker.io'\n"}
	kubeadm := files{"/var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\ncgroupDriver: systemd\n"}
	for name, c := range map[string]configCase{
		"no file":              {"2.1.9", noFile, nil, nil, "config/parses", []want{{verdict: Pass, observed: "there is no /etc/containerd/config.toml"}}},
		"a file":               {"2.1.9", "version = 3\n", nil, nil, "config/parses", []want{{verdict: Pass, observed: configFile}}},
		"no TOML":              {"2.1.9", "version = 3\n[plugins\n", nil, nil, "config/parses", []want{{verdict: Fail, observed: "not valid TOML", place: configFile + ":2"}}},
		"too new":              {"1.7.34", "version = 3\n", nil, nil, "config/parses", []want{{verdict: Fail, observed: "version 3 is more than the 2", place: configFile + ":1", remedy: `version[[:space:]]*=\).*|\1 2|' ` + configFile + "\n/usr/local/bin/containerd --config " + configFile + " config dump > /dev/null && systemctl restart containerd.service"}}},
		"a lost import":        {"2.1.9", "version = 3\nimports = ['/etc/containerd/other.toml']\n", nil, nil, "config/parses", []want{{verdict: Fail, observed: "/etc/containerd/other.toml, which is not there", place: configFile + ":2"}}},
		"edited, and ours":     {"2.1.9", "version = \n", nil, []func(*Outside){receipt(Drift{configFile, "has other content"})}, "config/parses", []want{{verdict: Fail, remedy: "nodeprep apply --adopt"}}},
		"short disabled name":  {"2.1.9", "version = 3\ndisabled_plugins = ['cri']\n", nil, nil, "config/parses", []want{{verdict: Fail, observed: "no plugin's full name", place: configFile + ":2"}}},
		"its own version":      {"2.4.2", "version = 4\n", nil, nil, "config/schema", []want{{verdict: Pass, observed: "version 4"}}},
		"an older version":     {"2.4.2", "version = 2\n", nil, nil, "config/schema", []want{{verdict: Warn, observed: "version 2", wanted: "version 4", place: configFile + ":1"}}},
		"no version":           {"1.7.34", "oom_score = 0\n", nil, nil, "config/schema", []want{{verdict: Warn, observed: "no version, which is taken as 1", wanted: "version 2", place: configFile}}},
		"newer, and read":      {"1.7.10", "version = 3\n", nil, nil, "config/schema", []want{{verdict: Fail, observed: "version 3", wanted: "version 2", place: configFile + ":1"}}},
		"schema of no file":    {"2.4.2", noFile, nil, nil, "config/schema", []want{{verdict: Pass}}},
		"sections of 2 in 3":   {"2.1.9", "version = 3\n" + v2Runc + v2Options + "SystemdCgroup = true\n", nil, nil, "config/ignored-sections", []want{{verdict: Fail, object: `plugins."io.containerd.grpc.v1.cri"`, observed: "not read: containerd.runtimes", place: configFile + ":2", remedy: "version[[:space:]]*=\\).*|\\1 2|' " + configFile}}},
		"grpc in 4":            {"2.4.2", "version = 4\n[metrics]\naddress = '127.0.0.1:1338'\n", nil, nil, "config/ignored-sections", []want{{verdict: Fail, object: "metrics", observed: "not read: address", place: configFile + ":3", remedy: "version[[:space:]]*=\\).*|\\1 3|' " + configFile}}},
		"grpc in 3":            {"2.4.2", "version = 3\n[metrics]\naddress = '127.0.0.1:1338'\n", nil, nil, "config/ignored-sections", []want{{verdict: Pass}}},
		"a dropped setting":    {"2.1.9", "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'zfs'\n", nil, nil, "config/ignored-sections", []want{{verdict: Fail, observed: "containerd.snapshotter", place: configFile + ":3"}}},
		"sections of 3 in 1.7": {"1.7.34", "version = 2\n" + v3Images + "snapshotter = 'zfs'\n", nil, nil, "config/ignored-sections", []want{{verdict: Fail, object: "io.containerd.cri.v1.images", wanted: "io.containerd.grpc.v1.cri", place: configFile + ":2"}}},
		"a short name":         {"2.1.9", "version = 3\n[plugins.cri]\nsandbox_image = 'x'\n", nil, nil, "config/ignored-sections", []want{{verdict: Fail, object: "plugins.cri"}}},
		"a key one level off":  {"2.1.9", "version = 3\n" + v3Images + "sandbox_image = 'x'\n", nil, nil, "config/ignored-sections", []want{{verdict: Fail, observed: "sandbox_image", wanted: "pinned_images.sandbox"}}},
		"no typos there":       {"2.1.9", "version = 3\n" + v3Images + "snapshoter = 'x'\n", nil, nil, "config/ignored-sections", []want{{verdict: Pass}}},
		"a typo":               {"2.1.9", "version = 3\n" + v3Images + "snapshoter = 'x'\n", nil, nil, "config/ignored-keys", []want{{verdict: Fail, object: "snapshoter", wanted: "did you mean snapshotter", place: configFile + ":3", remedy: "snapshoter[[:space:]]*=/d;}' " + configFile}}},
		"a typo of version 2":  {"2.1.9", "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_imag = 'x'\n", nil, nil, "config/ignored-keys", []want{{verdict: Fail, object: "sandbox_imag"}}},
		"removed keys":         {"2.1.9", "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsystemd_cgroup = true\n", nil, nil, "config/ignored-keys", []want{{verdict: Fail, object: "systemd_cgroup", wanted: "removed in containerd 2.0"}}},
		"empty ones":           {"2.1.9", "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsystemd_cgroup = false\n", nil, nil, "config/ignored-keys", []want{{verdict: Pass}}},
		"deprecated":           {"2.1.9", "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['https://m']\n", nil, nil, "config/deprecated", []want{{verdict: Fail, observed: "deprecated, gone in 2.7", wanted: "hosts.toml", place: configFile + ":2"}}},
		"nothing deprecated":   {"2.1.9", "version = 3\n", nil, nil, "config/deprecated", []want{{verdict: Pass}}},

		"mirrors and path": {"2.1.9", "version = 3\n" + v3Registry + certs + "[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['https://m']\n[debug]\nlevel = 'info'\n", nil, nil, "config/mirrors",
			[]want{{verdict: Fail, object: "registry.mirrors", observed: "docker.io beside config_path (" + configFile + ":3)", place: configFile + ":4", remedy: `mirrors\..docker\.io.\]$/,` + sedHeader}}},
		"mirrors alone":    {"2.1.9", "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['https://m']\n", nil, nil, "config/mirrors", []want{{verdict: Pass}}},
		"TLS since 2.0":    {"2.1.9", "version = 3\n" + v3Registry + "[plugins.'io.containerd.cri.v1.images'.registry.configs.'h'.tls]\nca_file = '/ca'\n", nil, nil, "config/mirrors", []want{{verdict: Fail, object: `registry.configs."h".tls`, observed: "not read since containerd 2.0", place: configFile + ":3"}}},
		"TLS once":         {"2.1.9", "version = 3\n" + v3Registry + "[plugins.'io.containerd.cri.v1.images'.registry.configs.'h'.tls]\nca_file = '/ca'\n", nil, nil, "config/ignored-keys", []want{{verdict: Pass}}},
		"TLS in 1.7":       {"1.7.34", "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\n" + certs + "[plugins.'io.containerd.grpc.v1.cri'.registry.configs.'h'.tls]\nca_file = '/ca'\n", nil, nil, "config/mirrors", []want{{verdict: Fail, observed: "stands beside config_path"}}},
		"TLS alone":        {"1.7.34", "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry.configs.'h'.tls]\nca_file = '/ca'\n", nil, nil, "config/mirrors", []want{{verdict: Pass}}},
		"one folder":       {"2.1.9", "version = 3\n" + v3Registry + certs, hosts, nil, "config/registry-path", []want{{verdict: Pass, observed: "/etc/containerd/certs.d"}}},
		"a list":           {"2.1.9", "version = 3\n" + v3Registry + "config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n", nil, nil, "config/registry-path", []want{{verdict: Fail, observed: "/etc/containerd/certs.d:/etc/docker/certs.d", place: configFile + ":3", remedy: `.*|\1 "/etc/containerd/certs.d"|' ` + configFile}}},
		"a list in 1.7":    {"1.7.34", "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\nconfig_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n", nil, nil, "config/registry-path", []want{{verdict: Pass}}},
		"a list, local":    {"2.1.9", "version = 3\n" + v3Images + "use_local_image_pull = true\n" + v3Registry + "config_path = '/a:/b'\n", nil, nil, "config/registry-path", []want{{verdict: Pass}}},
		"default list":     {"2.2.7", "version = 3\n", hosts, nil, "config/registry-path", []want{{verdict: Fail, observed: "not set, and the default is", place: configFile, remedy: "[plugins.\"io.containerd.cri.v1.images\".registry]' >> " + configFile}}},
		"default, empty":   {"2.2.7", "version = 3\n", nil, nil, "config/registry-path", []want{{verdict: Pass}}},
		"no path":          {"2.1.9", "version = 3\n" + v3Registry, hosts, nil, "config/registry-path", []want{{verdict: Fail, observed: "not set", remedy: "/a config_path = "}}},
		"no path nor file": {"1.7.34", noFile, hosts, nil, "config/registry-path", []want{{verdict: Fail, observed: "not set", remedy: "version = 2"}}},
		"no path, no use":  {"2.1.9", "version = 3\n", nil, nil, "config/registry-path", []want{{verdict: Pass}}},
		"relative":         {"2.1.9", "version = 3\n" + v3Registry + "config_path = 'certs.d'\n", nil, nil, "config/registry-path", []want{{verdict: Fail, observed: "certs.d", remedy: "/etc/containerd/certs.d"}}},
		"lost folder":      {"2.1.9", "version = 3\n" + v3Registry + certs, nil, []func(*Outside){withSpec(profiles.Spec{Registries: []profiles.Registry{{Host: "docker.io"}}})}, "config/registry-path", []want{{verdict: Fail, observed: "is missing", remedy: "nodeprep apply"}}},

		"both":                 {"2.1.9", "version = 3\n" + v3CNI + "bin_dirs = ['/usr/lib/cni']\nbin_dir = '/opt/other'\n", nil, nil, "config/cni-bin-dirs", []want{{verdict: Fail, observed: "bin_dir and bin_dirs", place: configFile + ":4", remedy: "bin_dir[[:space:]]*=/d;}' " + configFile}}},
		"one of them":          {"2.1.9", "version = 3\n" + v3CNI + "bin_dirs = ['/usr/lib/cni']\n", nil, nil, "config/cni-bin-dirs", []want{{verdict: Pass, observed: "/usr/lib/cni"}}},
		"Docker's file":        {"1.7.34", "# Copyright 2018-2022 Docker Inc.\ndisabled_plugins = [\"cri\"]\n", kubeadm, nil, "config/cri-enabled", []want{{verdict: Fail, observed: "has cri", place: configFile + ":2", remedy: `cri["'\''] *,\{0,1\} *//;}' ` + configFile}}},
		"Docker's file in 2.x": {"2.1.9", "disabled_plugins = [\"cri\"]\n", kubeadm, nil, "config/cri-enabled", []want{{verdict: Fail, observed: "has cri", place: configFile + ":1"}}},
		"in full":              {"2.1.9", "version = 2\ndisabled_plugins = ['x.y.z', \"io.containerd.grpc.v1.cri\"]\n", kubeadm, nil, "config/cri-enabled", []want{{verdict: Fail, observed: "has io.containerd.grpc.v1.cri"}}},
		"its images":           {"2.1.9", "version = 3\ndisabled_plugins = ['io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime']\n", kubeadm, nil, "config/cri-enabled", []want{{verdict: Fail, observed: "images"}, {verdict: Fail, observed: "runtime"}}},
		"on":                   {"2.1.9", "version = 3\ndisabled_plugins = ['io.containerd.snapshotter.v1.zfs']\n", nil, nil, "config/cri-enabled", []want{{verdict: Pass}}},
		"no imports":           {"2.1.9", "version = 3\n", nil, nil, "config/imports", []want{{verdict: Pass, observed: "no imports"}}},
		"newer drop-in":        {"2.1.9", "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n" + v2Runc + v2Options + "SystemdCgroup = true\n", files{"/etc/containerd/conf.d/a.toml": "version = 3\n" + v3Images + "snapshotter = 'native'\n"}, nil, "config/imports", []want{{verdict: Fail, object: "/etc/containerd/conf.d/a.toml", observed: "version 3", wanted: "version 2", place: "/etc/containerd/conf.d/a.toml:1", remedy: "|| mv /etc/containerd/conf.d/a.toml /etc/containerd/conf.d/a.toml.off"}}},
		"older drop-in":        {"2.1.9", "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n" + systemd3, files{"/etc/containerd/conf.d/a.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'x'\n"}, nil, "config/imports", []want{{verdict: Warn, observed: "version 2", wanted: "version 3"}}},
		"same version":         {"2.1.9", "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n", files{"/etc/containerd/conf.d/a.toml": "version = 3\n"}, nil, "config/imports", []want{{verdict: Pass, observed: "2 files"}}},
		"replaced":             {"1.7.34", "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'x'\n" + v2Runc, files{"/etc/containerd/conf.d/a.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.registry]\n" + certs}, nil, "config/imports", []want{{verdict: Fail, object: "/etc/containerd/conf.d/a.toml", observed: "containerd.runtimes.runc.runtime_type, sandbox_image of " + configFile + " lost", place: "/etc/containerd/conf.d/a.toml:2", remedy: "|| mv /etc/containerd/conf.d/a.toml"}}},
		"replaced whole":       {"1.7.34", "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'x'\n", files{"/etc/containerd/conf.d/a.toml": "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'y'\n"}, nil, "config/imports", []want{{verdict: Pass}}},
		"default is runc":      {"2.1.9", "version = 3\n", nil, nil, "config/default-runtime", []want{{verdict: Pass, observed: "runc"}}},
		"default is lost":      {"2.1.9", "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'nvidia'\n", nil, nil, "config/default-runtime", []want{{verdict: Fail, observed: "nvidia", wanted: "one of runc", place: configFile + ":3", remedy: `.*|\1 "runc"|' ` + configFile}}},

		"runc alone":        {"2.1.9", "version = 3\n", nil, nil, "config/runtimes", []want{{verdict: Pass, observed: "runc"}}},
		"no type":           {"1.7.34", "version = 2\n" + v2Options + "SystemdCgroup = true\n", nil, nil, "config/runtimes", []want{{verdict: Fail, object: "runtime runc", observed: "no runtime_type", remedy: "a runtime_type = \"io.containerd.runc.v2\""}}},
		"no type in 2.x":    {"2.1.9", "version = 2\n" + v2Options + "SystemdCgroup = true\n", nil, nil, "config/runtimes", []want{{verdict: Pass}}},
		"empty type":        {"1.7.34", "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = ''\n", nil, nil, "config/runtimes", []want{{verdict: Fail, place: configFile + ":3", remedy: `.*|\1 "io.containerd.runc.v2"|'`}}},
		"a removed type":    {"2.1.9", "version = 3\n" + v3Runc + "runtime_type = 'io.containerd.runtime.v1.linux'\n", nil, nil, "config/runtimes", []want{{verdict: Fail, observed: "io.containerd.runtime.v1.linux, which containerd 2.0 removed", place: configFile + ":3"}}},
		"no shim":           {"2.1.9", "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\n", nil, nil, "config/runtimes", []want{{verdict: Fail, object: "runtime kata", observed: "containerd-shim-kata-v2 is nowhere in PATH", place: configFile + ":3"}}},
		"a shim":            {"2.1.9", "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\n", files{"/usr/bin/containerd-shim-kata-v2": static()}, nil, "config/runtimes", []want{{verdict: Pass, observed: "kata, runc"}}},
		"a shim's path":     {"2.1.9", "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\nruntime_path = '/opt/kata/shim'\n", nil, nil, "config/runtimes", []want{{verdict: Fail, observed: "shim /opt/kata/shim is missing"}}},
		"no program":        {"2.1.9", "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]\nruntime_type = 'io.containerd.runc.v2'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]\nBinaryName = '/usr/bin/crun'\n", nil, nil, "config/runtimes", []want{{verdict: Fail, object: "runtime crun", observed: "/usr/bin/crun is missing", place: configFile + ":5"}}},
		"not on the path":   {"2.1.9", "version = 3\n" + v3Options + "BinaryName = 'crun'\n", nil, nil, "config/runtimes", []want{{verdict: Fail, observed: "crun is nowhere in the daemon's PATH"}}},
		"on the path":       {"2.1.9", "version = 3\n" + v3Options + "BinaryName = 'crun'\n", files{"/usr/bin/crun": static()}, nil, "config/runtimes", []want{{verdict: Pass}}},
		"runc is another's": {"2.1.9", "version = 3\n" + v3Options + "BinaryName = '/nowhere/runc'\n", nil, nil, "config/runtimes", []want{{verdict: Pass}}},

		"systemd":                {"2.1.9", "version = 3\n" + systemd3, nil, nil, "config/systemd-cgroup", []want{{verdict: Pass, observed: "runc: true"}}},
		"a package's default":    {"1.7.24", "version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n", nil, nil, "config/systemd-cgroup", []want{{verdict: Fail, object: "runtime runc", observed: "SystemdCgroup is false, containerd's default", wanted: "true: systemd manages cgroup v2 here", place: configFile, remedy: "runtimes.runc.options]' >> " + configFile}}},
		"no file, no driver":     {"2.1.9", noFile, nil, nil, "config/systemd-cgroup", []want{{verdict: Fail, remedy: "|| echo 'version = 3' > " + configFile}}},
		"printed default":        {"2.1.9", "version = 3\n" + v3Options + "SystemdCgroup = false\n", nil, nil, "config/systemd-cgroup", []want{{verdict: Fail, observed: "SystemdCgroup is false", place: configFile + ":3", remedy: `.*|\1 true|' ` + configFile}}},
		"other options":          {"2.1.9", "version = 3\n" + v3Options + "BinaryName = 'runc'\n", nil, nil, "config/systemd-cgroup", []want{{verdict: Fail, place: configFile, remedy: "/a SystemdCgroup = true' " + configFile}}},
		"a second runtime":       {"2.1.9", "version = 3\n" + systemd3 + "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]\nruntime_type = 'io.containerd.runc.v2'\n", nil, nil, "config/systemd-cgroup", []want{{verdict: Fail, object: "runtime crun"}}},
		"kata needs none":        {"2.1.9", "version = 3\n" + systemd3 + "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\n", nil, nil, "config/systemd-cgroup", []want{{verdict: Pass, observed: "runc: true"}}},
		"cgroup v1":              {"2.1.9", "version = 3\n", files{"/sys/fs/cgroup/cgroup.controllers": noFile}, nil, "config/systemd-cgroup", []want{{verdict: Pass, observed: "runc: false"}}},
		"cgroup v1 and kubelet":  {"2.1.9", "version = 3\n", files{"/sys/fs/cgroup/cgroup.controllers": noFile, "/var/lib/kubelet/config.yaml": "cgroupDriver: systemd\n"}, nil, "config/systemd-cgroup", []want{{verdict: Fail, wanted: "true: the kubelet's is systemd (/var/lib/kubelet/config.yaml:1)"}}},
		"a profile's cgroupfs":   {"2.1.9", "version = 3\n", nil, profile(func(c *profiles.Containerd) { c.SystemdCgroup = false }), "config/systemd-cgroup", []want{{verdict: Pass}}},
		"a profile's systemd":    {"2.1.9", "version = 3\n", nil, profile(nil), "config/systemd-cgroup", []want{{verdict: Fail, wanted: "true: the profile's"}}},
		"without systemd":        {"2.1.9", "version = 3\n" + systemd3, nil, []func(*Outside){func(o *Outside) { o.Facts.SystemdInit = false }}, "config/systemd-cgroup", []want{{verdict: Fail, wanted: "false: systemd does not run here"}}},
		"a kubelet that is odd":  {"2.1.9", "version = 3\n", files{"/var/lib/kubelet/config.yaml": "a: ["}, nil, "config/systemd-cgroup", []want{{verdict: Unknown, observed: "/var/lib/kubelet/config.yaml"}}},
		"the dead key":           {"1.7.34", "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsystemd_cgroup = true\n", nil, nil, "config/systemd-cgroup", []want{{verdict: Fail, object: "systemd_cgroup", place: configFile + ":3", remedy: `.*|\1 false|'`}}},
		"as the kubelet":         {"2.1.9", "version = 3\n" + systemd3, kubeadm, nil, "config/kubelet-cgroup-driver", []want{{verdict: Pass, observed: "systemd, as the kubelet"}}},
		"a kubelet's cgroupfs":   {"2.1.9", "version = 3\n" + systemd3, files{"/var/lib/kubelet/config.yaml": "kind: x\ncgroupDriver: cgroupfs\n"}, nil, "config/kubelet-cgroup-driver", []want{{verdict: Fail, observed: "cgroupDriver cgroupfs", wanted: "systemd", place: "/var/lib/kubelet/config.yaml:2", remedy: "systemctl restart kubelet"}}},
		"a kubelet's default":    {"1.7.34", "version = 2\n" + v2Runc + v2Options + "SystemdCgroup = true\n", files{"/var/lib/kubelet/config.yaml": "kind: x\n"}, nil, "config/kubelet-cgroup-driver", []want{{verdict: Fail, observed: "is not set: cgroupfs", remedy: "echo 'cgroupDriver: systemd' >> /var/lib/kubelet/config.yaml"}}},
		"a kubelet that asks":    {"2.1.9", "version = 3\n" + systemd3, files{"/var/lib/kubelet/config.yaml": "kind: x\n", "/var/lib/dpkg/status": "Package: kubelet\nStatus: install ok installed\nVersion: 1.33.1-1.1\n\n"}, nil, "config/kubelet-cgroup-driver", []want{{verdict: Pass, observed: "takes over what containerd says"}}},
		"a kubelet in the way":   {"2.1.9", "version = 3\n", files{"/var/lib/kubelet/config.yaml": "a: ["}, nil, "config/kubelet-cgroup-driver", []want{{verdict: Unknown}}},
		"pause of the profile":   {"2.1.9", "version = 3\n", nil, profile(nil), "config/sandbox-image", []want{{verdict: Pass, observed: "as the profile has it"}}},
		"pause of Kubernetes":    {"2.1.9", "version = 3\n" + v3Pinned + "sandbox = 'mirror.example/x/pause:3.10'\n", nil, profile(func(c *profiles.Containerd) { c.SandboxImage = "other" }), "config/sandbox-image", []want{{verdict: Pass, observed: "for profile"}}},
		"another pause":          {"2.1.9", "version = 3\n" + v3Pinned + "sandbox = 'registry.k8s.io/pause:3.6'\n", nil, profile(nil), "config/sandbox-image", []want{{verdict: Fail, observed: "registry.k8s.io/pause:3.6", wanted: "registry.k8s.io/pause:3.10 (profile)", place: configFile + ":3", remedy: `.*|\1 "registry.k8s.io/pause:3.10"|'`}}},
		"another, by default":    {"1.7.34", "version = 2\n", files{"/var/lib/kubelet/config.yaml": "cgroupDriver: systemd\n", "/var/lib/dpkg/status": "Package: kubelet\nStatus: install ok installed\nVersion: 1.31.1-1.1\n\n"}, nil, "config/sandbox-image", []want{{verdict: Fail, observed: "registry.k8s.io/pause:3.8, containerd's default", wanted: "pause:3.10 (kubelet 1.31.1)", remedy: "/a sandbox_image = \"registry.k8s.io/pause:3.10\"'"}}},
		"nobody's pause":         {"2.1.9", "version = 3\n", nil, nil, "config/sandbox-image", []want{{verdict: Skip}}},
		"an unknown Kubernetes":  {"2.1.9", "version = 3\n", nil, []func(*Outside){withSpec(profiles.Spec{Kubernetes: "1.99"})}, "config/sandbox-image", []want{{verdict: Skip}}},
		"score left alone":       {"2.1.9", "version = 3\noom_score = 0\n", nil, nil, "config/oom-score", []want{{verdict: Pass}}},
		"score that overrides":   {"2.1.9", "version = 3\noom_score = -500\n", nil, nil, "config/oom-score", []want{{verdict: Fail, observed: "oom_score = -500", wanted: "0", place: configFile + ":2", remedy: `.*|\1 0|' ` + configFile}}},
		"score of old tutorials": {"2.1.9", "version = 3\noom_score = -999\n", nil, nil, "config/oom-score", []want{{verdict: Pass}}},
		"score in a drop-in":     {"2.1.9", "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n", files{"/etc/containerd/conf.d/z.toml": "version = 3\noom_score = 10\n"}, nil, "config/oom-score", []want{{verdict: Fail, place: "/etc/containerd/conf.d/z.toml:2", remedy: ".*|\\1 0|' /etc/containerd/conf.d/z.toml"}}},
		"score of the profile":   {"2.1.9", "version = 3\n", nil, profile(func(c *profiles.Containerd) { c.OOMScore = -400 }), "config/oom-score", []want{{verdict: Fail, observed: "oom_score = 0", wanted: "-400, the profile's", remedy: "nodeprep apply --adopt"}}},

		"as the profile": {"2.1.9", "version = 3\n" + v3Registry + certs, nil, profile(nil), "config/profile", []want{{verdict: Pass}}},
		"by hand":        {"2.1.9", "version = 3\nroot = '/data'\n" + v3Images + "snapshotter = 'native'\n" + v3Registry + certs, nil, profile(nil), "config/profile", []want{{verdict: Fail, object: "root", observed: "/data", wanted: "/var/lib/containerd", place: configFile + ":2", remedy: "nodeprep apply --adopt"}, {verdict: Fail, object: "snapshotter", observed: "native", place: configFile + ":4"}}},
		"by a drop-in":   {"2.1.9", "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n" + v3Registry + certs, files{"/etc/containerd/conf.d/z.toml": "version = 3\n" + v3Images + "snapshotter = 'native'\n"}, profile(nil), "config/profile", []want{{verdict: Fail, place: "/etc/containerd/conf.d/z.toml:3", remedy: "snapshotter[[:space:]]*=/d;}' /etc/containerd/conf.d/z.toml"}}},
		"deleted":        {"2.1.9", noFile, nil, profile(nil), "config/profile", []want{{verdict: Fail, observed: "is missing", remedy: "nodeprep apply"}}},
		"not installed":  {"2.1.9", "version = 3\n", nil, profile(func(c *profiles.Containerd) { c.Version = releases.Version{} }), "config/profile", []want{{verdict: Skip}}},

		"root":           {"2.1.9", "version = 3\n", nil, nil, "config/root", []want{{verdict: Pass, observed: "/var/lib/containerd"}}},
		"root in state":  {"2.1.9", "version = 3\nroot = '/run/containerd/root'\n", nil, nil, "config/root", []want{{verdict: Fail, object: "root", observed: "/run/containerd/root is in state", place: configFile + ":2"}}},
		"state in root":  {"2.1.9", "version = 3\nstate = '/var/lib/containerd/state'\n", nil, nil, "config/root", []want{{verdict: Fail, object: "state"}}},
		"root was moved": {"2.1.9", "version = 3\nroot = '/data'\n", files{"/var/lib/containerd/io.containerd.metadata.v1.bolt/meta.db": "x"}, nil, "config/root", []want{{verdict: Fail, object: "/var/lib/containerd", place: configFile + ":2", remedy: "look through /var/lib/containerd, and remove by hand"}}},

		"nothing listens":        {"2.1.9", "version = 3\n[metrics]\naddress = '127.0.0.1:1338'\n[debug]\naddress = '/run/containerd/debug.sock'\n", nil, nil, "config/exposed", []want{{verdict: Pass}}},
		"metrics for everybody":  {"2.1.9", "version = 3\n[metrics]\naddress = ':1338'\n", nil, nil, "config/exposed", []want{{verdict: Fail, object: "metrics", observed: ":1338", wanted: "127.0.0.1:1338", place: configFile + ":3", remedy: `.*|\1 "127.0.0.1:1338"|'`}}},
		"the API for everybody":  {"2.4.2", "version = 3\n[grpc]\ntcp_address = '127.0.0.1:9999'\n", nil, nil, "config/exposed", []want{{verdict: Fail, object: "API", observed: "without TLS", place: configFile + ":3", remedy: "tcp_address[[:space:]]*=/d;}'"}}},
		"the API without a CA":   {"2.1.9", "version = 3\n[grpc]\ntcp_address = '0.0.0.0:9999'\ntcp_tls_cert = '/c'\ntcp_tls_key = '/k'\n", nil, nil, "config/exposed", []want{{verdict: Fail, observed: "without certificates of clients"}}},
		"the API with a CA":      {"2.1.9", "version = 3\n[grpc]\ntcp_address = '0.0.0.0:9999'\ntcp_tls_cert = '/c'\ntcp_tls_key = '/k'\ntcp_tls_ca = '/ca'\n", nil, nil, "config/exposed", []want{{verdict: Pass}}},
		"transfer":               {"2.1.9", "version = 3\n" + v3Images + "max_concurrent_downloads = 3\n", nil, nil, "config/transfer", []want{{verdict: Pass}}},
		"a setting of old":       {"2.1.9", "version = 3\n" + v3Images + "max_concurrent_downloads = 10\n", nil, nil, "config/transfer", []want{{verdict: Fail, object: "max_concurrent_downloads = 10", place: configFile + ":3", remedy: "max_concurrent_downloads[[:space:]]*=/d;}'"}}},
		"meant":                  {"2.1.9", "version = 3\n" + v3Images + "use_local_image_pull = true\nmax_concurrent_downloads = 10\n", nil, nil, "config/transfer", []want{{verdict: Pass, observed: "CRI pulls by itself"}}},
		"credentials":            {"2.1.9", "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry.configs.'h'.auth]\nusername = 'u'\n", nil, nil, "config/transfer", []want{{verdict: Pass}}},
		"before transfer":        {"2.0.11", "version = 3\n", nil, nil, "config/transfer", []want{{verdict: Skip}}},
		"no credentials":         {"2.1.9", "version = 3\n", nil, nil, "config/permissions", []want{{verdict: Pass}}},
		"credentials of anybody": {"2.1.9", "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry.configs.'h'.auth]\nusername = 'u'\n", nil, nil, "config/permissions", []want{{verdict: Fail, object: configFile, observed: "mode 0755", place: configFile + ":2", remedy: "chmod 0600 " + configFile}}},
	} {
		t.Run(name, func(t *testing.T) {
			more := maps.Clone(c.more)
			if more == nil {
				more = files{}
			}
			for p, content := range more {
				if content == noFile {
					delete(more, p)
				}
			}
			n := with(t, c.release, c.config, more, c.change...)
			for p, content := range c.more {
				if content == noFile {
					if err := os.Remove(filepath.Join(n.Host.Root.Dir(), p)); err != nil {
						t.Fatal(err)
					}
				}
			}
			expect(t, n, c.id, c.want...)
		})
	}
}

func TestConfigThatCannotBeRead(t *testing.T) {
	n := fake(t, nodeFiles(files{configFile: "version = 3\n"})) // its containerd does not run
	for _, c := range configChecks() {
		expect(t, n, c.ID, want{verdict: Unknown, observed: "no such program in this fake"})
	}
	// In an image nothing says which containerd it is for.
	n = fake(t, nodeFiles(files{configFile: "version = 3\n"}), asImage)
	expect(t, n, "config/schema", want{verdict: Unknown, observed: "which containerd reads"})
	expect(t, n, "config/systemd-cgroup", want{verdict: Pass, observed: "runc: false"})
}

func TestConfigPermissionsOfOthers(t *testing.T) {
	auth := "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry.configs.'h'.auth]\nusername = 'u'\n"
	n := with(t, "2.1.9", auth, nil)
	mode(t, n, configFile, 0o600)
	expect(t, n, "config/permissions", want{verdict: Pass})
	n = with(t, "2.1.9", "version = 3\n", nil)
	mode(t, n, configFile, 0o666)
	expect(t, n, "config/permissions", want{verdict: Fail, observed: "everybody may write it", remedy: "chmod go-w " + configFile})
}

func TestRootOnTmpfs(t *testing.T) {
	dir := ""
	n := with(t, "2.1.9", "version = 3\n", files{"/var/lib/containerd/": "", "/proc/self/mountinfo": "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n22 21 0:5 / /var/lib rw - tmpfs tmpfs rw\n"}, func(o *Outside) { dir = o.Host.Root.Dir() })
	expect(t, n, "config/root", want{verdict: Fail, object: "/var/lib/containerd", observed: "tmpfs", wanted: "a filesystem on a disk", place: "/var/lib"})
	if dir == "" {
		t.Error("no root")
	}
	n = with(t, "2.1.9", "version = 3\n", files{"/var/lib/containerd/": ""})
	expect(t, n, "config/root", want{verdict: Unknown, object: "/var/lib/containerd"})
}

// TestRemediesOfConfigs pastes remedies into a shell and looks again: each makes its
// check pass.
func TestRemediesOfConfigs(t *testing.T) {
	for name, c := range map[string]configCase{
		"version":          {release: "1.7.34", config: "version = 3\n", id: "config/parses"},
		"sections":         {release: "2.1.9", config: "version = 3\n" + v2Runc + v2Options + "SystemdCgroup = true\n", id: "config/ignored-sections"},
		"server":           {release: "2.4.2", config: "version = 4\n[grpc]\naddress = '/run/x.sock'\n", id: "config/ignored-sections"},
		"key":              {release: "2.1.9", config: "version = 3\n" + v3Images + "  snapshoter = 'x' # zfs\n", id: "config/ignored-keys"},
		"mirrors":          {release: "2.1.9", config: "version = 3\n" + v3Registry + "config_path = '/etc/containerd/certs.d'\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors]\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\n  endpoint = ['https://m']\n\n[debug]\nlevel = 'info'\n", id: "config/mirrors"},
		"list":             {release: "2.1.9", config: "version = 3\n" + v3Registry + "config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'\n", id: "config/registry-path"},
		"no path":          {release: "2.2.7", config: "version = 3\n", more: files{"/etc/containerd/certs.d/x/hosts.toml": ""}, id: "config/registry-path"},
		"no path in table": {release: "2.1.9", config: "version = 3\n" + v3Registry, more: files{"/etc/containerd/certs.d/x/hosts.toml": ""}, id: "config/registry-path"},
		"no file":          {release: "1.7.34", config: noFile, more: files{"/etc/containerd/certs.d/x/hosts.toml": ""}, id: "config/registry-path"},
		"bin_dir":          {release: "2.1.9", config: "version = 3\n" + v3CNI + "bin_dirs = ['/usr/lib/cni']\nbin_dir = '/opt/other'\n", id: "config/cni-bin-dirs"},
		"cri":              {release: "1.7.34", config: "disabled_plugins = [\"cri\"]\n", id: "config/cri-enabled"},
		"cri of several":   {release: "2.1.9", config: "version = 3\ndisabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.snapshotter.v1.zfs']\n", id: "config/cri-enabled"},
		"drop-in":          {release: "2.1.9", config: "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n" + v2Runc, more: files{"/etc/containerd/conf.d/a.toml": "version = 3\n"}, id: "config/imports"},
		"default runtime":  {release: "2.1.9", config: "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'nvidia'\n", id: "config/default-runtime"},
		"type":             {release: "1.7.34", config: "version = 2\n" + v2Options + "SystemdCgroup = true\n", id: "config/runtimes"},
		"removed type":     {release: "2.1.9", config: "version = 3\n" + v3Runc + "runtime_type = 'io.containerd.runtime.v1.linux'\n", id: "config/runtimes"},
		"systemd, printed": {release: "2.1.9", config: "version = 3\n" + v3Options + "  SystemdCgroup = false\n", id: "config/systemd-cgroup"},
		"systemd, package": {release: "1.7.24", config: "version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    [plugins.\"io.containerd.grpc.v1.cri\".cni]\n      bin_dir = \"/usr/lib/cni\"\n", id: "config/systemd-cgroup"},
		"systemd, Docker":  {release: "1.7.24", config: "disabled_plugins = [\"x\"]\n", id: "config/systemd-cgroup"},
		"systemd, options": {release: "2.1.9", config: "version = 3\n" + v3Options + "BinaryName = 'runc'\n", id: "config/systemd-cgroup"},
		"systemd, 3":       {release: "2.4.2", config: "version = 4\n", id: "config/systemd-cgroup"},
		"kubelet":          {release: "2.1.9", config: "version = 3\n" + systemd3, more: files{"/var/lib/kubelet/config.yaml": "kind: x\ncgroupDriver: cgroupfs\n"}, id: "config/kubelet-cgroup-driver"},
		"kubelet, JSON":    {release: "2.1.9", config: "version = 3\n" + systemd3, more: files{"/etc/kubernetes/kubelet/config.json": "{\n \"cgroupDriver\": \"cgroupfs\", \"a\": 1\n}\n"}, id: "config/kubelet-cgroup-driver"},
		"kubelet's":        {release: "2.1.9", config: "version = 3\n" + systemd3, more: files{"/var/lib/kubelet/config.yaml": "kind: x\n"}, id: "config/kubelet-cgroup-driver"},
		"sandbox":          {release: "2.1.9", config: "version = 3\n" + v3Pinned + "sandbox = 'registry.k8s.io/pause:3.6'\n", change: []func(*Outside){withSpec(profiles.Spec{Kubernetes: "1.33"})}, id: "config/sandbox-image"},
		"sandbox of 2":     {release: "1.7.34", config: "version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nenable_selinux = true\n", change: []func(*Outside){withSpec(profiles.Spec{Kubernetes: "1.33"})}, id: "config/sandbox-image"},
		"score":            {release: "2.1.9", config: "version = 3\noom_score = -500 # no\n", id: "config/oom-score"},
		"metrics":          {release: "2.1.9", config: "version = 3\n[metrics]\naddress = ':1338'\n", id: "config/exposed"},
		"permissions":      {release: "2.1.9", config: "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry.configs.'h'.auth]\nusername = 'u'\n", id: "config/permissions"},
		"transfer":         {release: "2.1.9", config: "version = 3\n" + v3Images + "max_concurrent_downloads = 10\n", id: "config/transfer"},
	} {
		t.Run(name, func(t *testing.T) {
			n := with(t, c.release, c.config, c.more, c.change...)
			before := results(t, n, c.id)
			if before[0].Verdict == Pass || before[0].Verdict == Unknown {
				t.Fatalf("nothing to remedy: %+v", before)
			}
			// In place of the root's, a shell gets the fake's files.
			script := before[0].Remedy
			for _, dir := range []string{"/etc/", "/var/lib/kubelet/"} {
				script = strings.ReplaceAll(script, " "+dir, " "+n.Host.Root.Dir()+dir)
			}
			script = "systemctl() { :; }\ndaemon() { :; }\nset -e\n" + strings.ReplaceAll(script, "/usr/local/bin/containerd ", "daemon ")
			if out, err := exec.CommandContext(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
				t.Fatalf("%v: %s\n%s", err, out, script)
			}
			after := NewNode(t.Context(), n.Outside)
			if f := results(t, after, "config/parses"); f[0].Verdict != Pass {
				t.Errorf("the config is broken: %+v\n%s", f, script)
			}
			for _, r := range results(t, after, c.id) {
				if r.Verdict != Pass {
					t.Errorf("%s: %+v\n%s", r.Verdict, r, script)
				}
			}
		})
	}
}

func TestMisplacedNeedsASetting(t *testing.T) {
	c := &configtoml.Config{}
	if misplaced(c, configtoml.Key{Path: []string{"plugins"}}) || misplaced(c, configtoml.Key{Path: []string{"plugins", "cri"}, Empty: true}) {
		t.Error("what sets nothing is nowhere misplaced")
	}
}
