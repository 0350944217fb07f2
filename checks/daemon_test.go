package checks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// runs gives the host a containerd that runs and says that it is of a release, as does
// the program on the disk.
func runs(c *containerd, version string) func(*Outside) {
	return func(o *Outside) {
		if c != nil && c.version == "" {
			c.version = version
		}
		withDaemon(c)(o)
		withUnits(units{systemd.UnitName: {MainPID: 7, KillMode: "process"}})(o)
		prints(map[string]string{"/usr/local/bin/containerd --version": "containerd github.com/containerd/containerd v" + version + " 1"})(o)
	}
}

// daemonFiles are the files of a host on which containerd runs.
func daemonFiles(more files) files {
	f := files{
		"/proc/7/cmdline": "/usr/local/bin/containerd\x00", "/proc/7/exe": "-> /usr/local/bin/containerd",
		"/usr/local/bin/containerd": "", "/etc/containerd/config.toml": "version = 3\n",
	}
	for p, content := range more {
		f[p] = content
	}
	return f
}

// pluginsOK are plugins that are well, as TYPE and ID by turns.
func pluginsOK(names ...string) []daemon.Plugin {
	var out []daemon.Plugin
	for i := 0; i < len(names); i += 2 {
		out = append(out, daemon.Plugin{Type: names[i], ID: names[i+1], State: daemon.StateOK})
	}
	return out
}

const (
	criType, oldCRIType, snapshotterType = "io.containerd.cri.v1", "io.containerd.grpc.v1", "io.containerd.snapshotter.v1"
)

// wellPlugins are the plugins of a 2.x that serves a kubelet.
func wellPlugins() []daemon.Plugin {
	return pluginsOK(snapshotterType, "overlayfs", snapshotterType, "native", criType, "images", criType, "runtime", oldCRIType, "cri")
}

// illPlugin is wellPlugins with one plugin in another state.
func illPlugin(id string, state daemon.State, message string) []daemon.Plugin {
	all := wellPlugins()
	for i := range all {
		if all[i].ID == id {
			all[i].State, all[i].Err = state, message
		}
	}
	return all
}

func wantsVersion(v string) func(*Outside) {
	return withSpec(profiles.Spec{Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion(v)}}, Profiles: []string{"/root/node.yaml"}})
}

func TestDaemonAnswers(t *testing.T) {
	const id = "daemon/answers"
	refuses := func(err error) func(*Outside) {
		return func(o *Outside) {
			runs(nil, "2.4.2")(o)
			o.Daemon = func(context.Context, string) (Containerd, error) { return nil, err }
		}
	}
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, "2.4.2")), id, want{verdict: Pass, object: "/run/containerd/containerd.sock", place: "containerd's default"})
	expect(t, fake(t, daemonFiles(nil), refuses(fmt.Errorf("connect: %w", fs.ErrPermission))), id, want{verdict: Unknown, observed: "permission denied"})
	elsewhere := daemonFiles(files{"/etc/containerd/config.toml": "version = 2\n[grpc]\naddress = \"/run/other.sock\"\n"})
	expect(t, fake(t, elsewhere, refuses(errors.New("connect to containerd at /run/other.sock: connection refused"))), id,
		want{verdict: Fail, object: "/run/other.sock", observed: "connection refused", place: "/etc/containerd/config.toml:3", remedy: "systemctl restart containerd"})
}

func TestDaemonVersion(t *testing.T) {
	const id = "daemon/version"
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, "2.4.2")), id, want{verdict: Pass, observed: "2.4.2"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{version: "2.4.2+ds1"}, "2.4.2"), wantsVersion("2.4.2")), id, want{verdict: Pass, observed: "2.4.2+ds1"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{version: "1.7.24~ds1"}, "2.4.2")), id,
		want{verdict: Fail, observed: "1.7.24~ds1", wanted: "2.4.2 (/usr/local/bin/containerd --version)", place: "/usr/local/bin/containerd", remedy: "systemctl restart containerd.service"})
	// What is on the disk and runs is not daemon/version's.
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, "2.1.9"), wantsVersion("2.4.2")), id, want{verdict: Pass})
	// A program that cannot be asked leaves the word to the profile.
	mute := func(o *Outside) {
		runs(&containerd{version: "2.1.9"}, "2.1.9")(o)
		prints(nil)(o)
		wantsVersion("2.4.2")(o)
	}
	expect(t, fake(t, daemonFiles(nil), mute), id, want{verdict: Fail, observed: "2.1.9", wanted: "2.4.2 (profile)", remedy: "nodeprep apply"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{version: "devel"}, "2.4.2")), id, want{verdict: Unknown, observed: "devel"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: append(wellPlugins(), daemon.Plugin{Type: oldCRIType, ID: "sandbox-controllers", State: daemon.StateError, Err: "unable to load CRI image service plugin dependency: x"})}, "2.4.2")), id, want{verdict: Pass})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestDaemonSnapshotter(t *testing.T) {
	const id = "daemon/snapshotter"
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: wellPlugins()}, "2.4.2")), id, want{verdict: Pass, object: "overlayfs"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: illPlugin("overlayfs", daemon.StateError, "does not support d_type")}, "2.4.2")), id,
		want{verdict: Fail, object: "overlayfs", observed: "does not support d_type", place: "containerd's default"})
	zfs := daemonFiles(files{"/etc/containerd/config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = \"zfs\"\n"})
	skipped := append(wellPlugins(), daemon.Plugin{Type: snapshotterType, ID: "zfs", State: daemon.StateSkip, Err: "must be a zfs filesystem: skip plugin"})
	n := fake(t, zfs, runs(&containerd{plugins: skipped}, "2.4.2"))
	expect(t, n, id, want{verdict: Fail, object: "zfs", observed: "skipped: must be a zfs filesystem", place: "/etc/containerd/config.toml:3",
		remedy: `.*|\1 "overlayfs"|' /etc/containerd/config.toml` + "\n/usr/local/bin/containerd --config /etc/containerd/config.toml config dump > /dev/null && systemctl restart containerd.service"})
	expect(t, fake(t, zfs, runs(&containerd{plugins: wellPlugins()}, "2.4.2")), id, want{verdict: Fail, object: "zfs", observed: "not loaded"})
	stargz := daemonFiles(files{"/etc/containerd/config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.images']\nsnapshotter = \"stargz\"\n[proxy_plugins.stargz]\ntype = \"snapshot\"\naddress = \"/run/s.sock\"\n"})
	n = fake(t, stargz, runs(&containerd{plugins: wellPlugins()}, "2.4.2"))
	expect(t, n, id, want{verdict: Fail, object: "stargz"})
	if r := results(t, n, id)[0]; r.Note != "stargz is a plugin of another process, which should listen at /run/s.sock; ok here: native, overlayfs" {
		t.Errorf("note %q", r.Note)
	}
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestDaemonCRI(t *testing.T) {
	const id = "daemon/cri"
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: wellPlugins()}, "2.4.2")), id, want{verdict: Pass, observed: "io.containerd.cri.v1.images, io.containerd.cri.v1.runtime, io.containerd.grpc.v1.cri ok"})
	old := pluginsOK(snapshotterType, "overlayfs", oldCRIType, "cri")
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: old}, "1.7.24")), id, want{verdict: Pass, observed: "io.containerd.grpc.v1.cri ok"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: old}, "2.4.2")), id, want{verdict: Fail, object: "io.containerd.cri.v1.images", observed: "not loaded"})
	broken := illPlugin("runtime", daemon.StateError, "invalid plugin config: no runtime for \"kata\"")
	broken[4].State, broken[4].Err = daemon.StateError, "unable to load CRI runtime service plugin dependency"
	n := fake(t, daemonFiles(nil), runs(&containerd{plugins: broken}, "2.4.2"))
	expect(t, n, id, want{verdict: Fail, object: "io.containerd.cri.v1.runtime", observed: `no runtime for "kata"`, place: "/etc/containerd/config.toml", remedy: "systemctl restart containerd.service"})
	if r := results(t, n, id)[0]; r.Note != "with it io.containerd.grpc.v1.cri" {
		t.Errorf("note %q", r.Note)
	}
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestDaemonPlugins(t *testing.T) {
	const id = "daemon/plugins"
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: append(wellPlugins(), daemon.Plugin{Type: snapshotterType, ID: "zfs", State: daemon.StateSkip, Err: "skip plugin"})}, "2.4.2")), id,
		want{verdict: Pass, observed: "none in error, 1 not needed here"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: append(wellPlugins(), daemon.Plugin{Type: snapshotterType, ID: "devmapper", State: daemon.StateError, Err: "devmapper not configured"})}, "1.6.20")), id,
		want{verdict: Pass, observed: "1 not needed here"})
	// CRI and its snapshotter have checks of their own.
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: illPlugin("cri", daemon.StateError, "x")}, "2.4.2")), id, want{verdict: Pass})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: illPlugin("overlayfs", daemon.StateError, "x")}, "2.4.2")), id, want{verdict: Pass})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{plugins: illPlugin("native", daemon.StateError, "no space")}, "2.4.2")), id,
		want{verdict: Warn, object: "io.containerd.snapshotter.v1.native", observed: "no space"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestDaemonDeprecations(t *testing.T) {
	const id = "daemon/deprecations"
	warned := []daemon.Deprecation{{ID: "io.containerd.deprecation/cgroup-v1", Message: "The support for cgroup v1 is deprecated", Last: time.Unix(0, 0)}}
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, "2.4.2")), id, want{verdict: Pass})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{deprecations: warned}, "1.7.12")), id, want{verdict: Warn, object: "cgroup-v1", observed: "cgroup v1 is deprecated"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, "1.6.27")), id, want{verdict: Pass})
	for _, v := range []string{"1.6.26", "1.7.11"} {
		expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, v)), id, want{verdict: Skip, observed: v})
	}
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}

func TestDaemonSupport(t *testing.T) {
	const id = "daemon/support"
	on := func(day string) func(*Outside) {
		return func(o *Outside) {
			now, err := time.Parse(time.DateOnly, day)
			if err != nil {
				t.Fatal(err)
			}
			o.Host.Now = func() time.Time { return now }
		}
	}
	kubernetes := func(v string) func(*Outside) { return withSpec(profiles.Spec{Kubernetes: v}) }
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, "2.3.4"), on("2026-11-01"), kubernetes("1.36")), id, want{verdict: Pass, observed: "tested with Kubernetes 1.36"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, "2.3.4"), on("2026-11-01")), id, want{verdict: Pass, observed: "containerd 2.3 is supported"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{version: "1.7.24~ds1"}, "1.7.24"), on("2026-11-01"), kubernetes("1.36")), id,
		want{verdict: Warn, object: "upstream", observed: "end of life"}, want{verdict: Warn, object: "Kubernetes 1.36", observed: "not on Kubernetes 1.36's support matrix"})
	expect(t, fake(t, nil, on("2026-11-01")), id, want{verdict: Skip, observed: "no containerd"})
	image := func(o *Outside) { o.Live = false; wantsVersion("1.6.39")(o) }
	expect(t, fake(t, nil, on("2026-11-01"), image), id, want{verdict: Warn, observed: "1.6 is past its end of life"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "what")), id, want{verdict: Unknown, observed: "that is no version"})
}

func TestDaemonSocket(t *testing.T) {
	for _, c := range []struct {
		mode     fs.FileMode
		uid, gid uint32
		want     string
	}{
		{0o660, 0, 0, ""},
		{0o600, 0, 0, ""},
		{0o640, 0, 998, ""},
		{0o660, 0, 998, "group 998 may write to it (0660)"},
		{0o666, 0, 0, "everybody may write to it (0666)"},
		{0o600, 1000, 0, "user 1000 may write to it (0600)"},
		{0o777, 1000, 998, "everybody and group 998 and user 1000 may write to it (0777)"},
	} {
		if got := socketFault(c.mode, c.uid, c.gid); got != c.want {
			t.Errorf("%o %d:%d: %q, want %q", c.mode, c.uid, c.gid, got, c.want)
		}
	}

	const id, socket = "daemon/socket", "/run/containerd/containerd.sock"
	// The fake's files are 0755 of whoever runs the test.
	n := fake(t, daemonFiles(files{socket: ""}), runs(&containerd{}, "2.4.2"))
	if n.Host.UID = 0; results(t, n, id)[0].Object == socket {
		expect(t, n, id, want{verdict: Warn, object: socket, observed: "user", remedy: "chmod 0660 " + socket})
	}
	expect(t, fake(t, daemonFiles(files{"/run/x.sock": "", "/etc/containerd/config.toml": "version = 2\n[grpc\n"}), runs(&containerd{}, "2.4.2")), id, want{verdict: Pass})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{}, "what")), id, want{verdict: Unknown})
}

func TestDaemonTasks(t *testing.T) {
	const id = "daemon/tasks"
	tasks := []daemon.Task{{Namespace: "k8s.io", ID: "a", Status: "running"}, {Namespace: "k8s.io", ID: "b", Status: "paused"}}
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{tasks: tasks}, "2.4.2")), id, want{verdict: Pass, observed: "2 tasks"})
	tasks = append(tasks, daemon.Task{Namespace: "k8s.io", ID: "c", Status: "stopped"}, daemon.Task{Namespace: "moby", ID: "d", Status: "unknown"})
	elsewhere := daemonFiles(files{"/etc/containerd/config.toml": "version = 2\n[grpc]\naddress = \"/run/other.sock\"\n"})
	expect(t, fake(t, elsewhere, runs(&containerd{tasks: tasks}, "2.4.2")), id,
		want{verdict: Warn, object: "k8s.io/c", observed: "never deleted", remedy: "ctr -a /run/other.sock -n k8s.io tasks rm -f c"},
		want{verdict: Warn, object: "moby/d", observed: "shim does not answer", remedy: "ctr -a /run/other.sock -n moby tasks rm -f d"})
	expect(t, fake(t, daemonFiles(nil), runs(&containerd{err: errors.New("gone")}, "2.4.2")), id, want{verdict: Unknown, observed: "gone"})
}
