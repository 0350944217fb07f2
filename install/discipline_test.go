package install

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
	"github.com/nodeprep/nodeprep/systemd"
)

// runtimeFake is a containerd with pods, which answers at one address or at none.
type runtimeFake struct {
	address    string // "" is any
	err        error
	tasks      []daemon.Task
	containers []daemon.Container
	asked      []string
	followed   []daemon.Task
	ended      map[string]time.Time // by task: when its shim ended
	closed     bool
}

func (f *runtimeFake) answer(d desired.Daemon) error {
	f.asked = append(f.asked, d.Address)
	if f.address != "" && f.address != d.Address {
		return errors.New("no such socket")
	}
	return f.err
}

func (f *runtimeFake) Healthy(context.Context, desired.Daemon) error        { return nil }
func (f *runtimeFake) Process(context.Context, desired.Daemon) (int, error) { return 7, nil }
func (f *runtimeFake) Import(context.Context, desired.Daemon, desired.Image, io.Reader, *imagearchive.Archive) ([]daemon.Image, error) {
	return nil, nil
}
func (f *runtimeFake) Images(context.Context, desired.Daemon) ([]daemon.Image, error) {
	return nil, nil
}
func (f *runtimeFake) Pin(context.Context, desired.Daemon, []string) error   { return nil }
func (f *runtimeFake) Unpin(context.Context, desired.Daemon, []string) error { return nil }
func (f *runtimeFake) Tasks(_ context.Context, d desired.Daemon) ([]daemon.Task, error) {
	return slices.Clone(f.tasks), f.answer(d)
}
func (f *runtimeFake) Containers(_ context.Context, d desired.Daemon) ([]daemon.Container, error) {
	return f.containers, f.answer(d)
}
func (f *runtimeFake) StopTasks(context.Context, desired.Daemon) error { return nil }
func (f *runtimeFake) Watch(tasks []daemon.Task) (ShimWatch, error) {
	f.followed = tasks
	return f, nil
}
func (f *runtimeFake) Ended(from, to time.Time) []daemon.Task {
	var out []daemon.Task
	for _, t := range f.followed {
		if at, ok := f.ended[t.ID]; ok && !at.Before(from) && !at.After(to) {
			out = append(out, t)
		}
	}
	return out
}
func (f *runtimeFake) Close() { f.closed = true }

// twoPods are a pod with two containers, one that has ended, and a container of no pod.
func twoPods(created time.Time) *runtimeFake {
	f := &runtimeFake{}
	for _, c := range []struct {
		ns, id, name, status string
		sandbox              bool
	}{
		{"k8s.io", "p1", "default/web", "running", true},
		{"k8s.io", "c1", "default/web/nginx", "running", false},
		{"k8s.io", "c2", "default/web/sidecar", "running", false},
		{"k8s.io", "c3", "default/job/once", "stopped", false},
		{"build", "b1", "b1", "paused", false},
	} {
		t := daemon.Task{Namespace: c.ns, ID: c.id, PID: 100 + len(f.tasks), Status: c.status, Shim: 50}
		if c.status == "stopped" {
			t.PID = 0
		}
		f.tasks = append(f.tasks, t)
		f.containers = append(f.containers, daemon.Container{Namespace: c.ns, ID: c.id, Name: c.name, Created: created, Sandbox: c.sandbox})
	}
	return f
}

// applied is a running node after its first apply, with pods and a new config.toml to
// come, which restarts the daemon.
func applied(t *testing.T, files map[string]string) (*node, *runtimeFake) {
	t.Helper()
	n := newNode(t)
	n.live()
	n.file("/etc/systemd/system/containerd.service").Content = []byte("[Service]\nExecStart=/usr/local/bin/containerd\nKillMode=process\nDelegate=yes\n[Install]\nWantedBy=multi-user.target\n")
	n.state.Daemon.ConfigPath, n.state.Daemon.Version = "/etc/containerd/config.toml", "1.0.0"
	n.apply()
	n.services.active = "active"
	for p, content := range files {
		n.write(p, content)
	}
	f := twoPods(time.Now().Add(-time.Hour))
	n.opt.Daemon = f
	n.file("/etc/containerd/config.toml").Content = []byte("version = 2\noom_score = -1\n")
	return n, f
}

// refusals are what a plan refuses, with the hints.
func refusals(p *Plan) []string {
	var out []string
	for _, it := range p.Items {
		if it.Action == Refuse {
			out = append(out, fmt.Sprintf("%s %s: %s | %s", it.Kind, it.Path, it.Reason, it.Hint))
		}
	}
	return out
}

func says(t *testing.T, got []string, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("got %d lines, want %d:\n%s", len(got), len(want), strings.Join(got, "\n"))
	}
	for i := range want {
		for part := range strings.SplitSeq(want[i], "…") {
			if !strings.Contains(got[i], part) {
				t.Errorf("it does not say %q:\n%s", part, got[i])
			}
		}
	}
}

func TestRestartThatWouldKillContainers(t *testing.T) {
	const dropIn = "/etc/systemd/system/containerd.service.d/"
	bad := "[Service]\nKillMode=mixed\n"
	unit := "/etc/systemd/system/containerd.service"
	for name, c := range map[string]struct {
		files   map[string]string
		change  func(*node, *runtimeFake)
		refused []string
		warned  []string
	}{
		"nothing wrong": {},
		"a drop-in shadows the unit": {
			files:   map[string]string{dropIn + "99-site.conf": bad},
			refused: []string{"unit containerd.service: a restart would kill 3 containers (pod default/web; b1): KillMode=mixed comes from " + dropIn + "99-site.conf | remove KillMode from " + dropIn + "99-site.conf…--force-restart"},
		},
		"a drop-in of the vendor does": {
			files:   map[string]string{"/usr/lib/systemd/system/containerd.service.d/99-vendor.conf": bad},
			refused: []string{"/usr/lib/systemd/system/containerd.service.d/99-vendor.conf"},
		},
		"one for all services does": {
			files:   map[string]string{"/etc/systemd/system/service.d/99-all.conf": bad},
			refused: []string{"/etc/systemd/system/service.d/99-all.conf"},
		},
		"a reset by an empty assignment": {
			files:   map[string]string{dropIn + "99-site.conf": "[Service]\nKillMode=\n"},
			refused: []string{"KillMode=control-group comes from " + dropIn + "99-site.conf"},
		},
		"a later drop-in repairs it": {
			files: map[string]string{dropIn + "50-bad.conf": bad, dropIn + "60-good.conf": "[Service]\nKillMode=process\n"},
		},
		"the drop-in is masked": {
			files:  map[string]string{"/usr/lib/systemd/system/containerd.service.d/99-vendor.conf": bad},
			change: func(n *node, _ *runtimeFake) { n.symlink("/dev/null", dropIn+"99-vendor.conf") },
		},
		"the drop-in is emptied": {
			files: map[string]string{"/usr/lib/systemd/system/containerd.service.d/99-vendor.conf": bad, dropIn + "99-vendor.conf": ""},
		},
		"a container that ended does not count": {
			files:  map[string]string{dropIn + "99-site.conf": bad},
			change: func(_ *node, f *runtimeFake) { f.tasks = f.tasks[3:4] },
		},
		"no containers": {
			files:  map[string]string{dropIn + "99-site.conf": bad},
			change: func(_ *node, f *runtimeFake) { f.tasks, f.containers = nil, nil },
		},
		"no restart": {
			files: map[string]string{dropIn + "99-site.conf": bad},
			change: func(n *node, _ *runtimeFake) {
				n.file("/etc/containerd/config.toml").Content = []byte("version = 2 # now\n")
			},
		},
		"allowed": {
			files:  map[string]string{dropIn + "99-site.conf": bad},
			change: func(n *node, _ *runtimeFake) { n.opt.ForceRestart = true },
			warned: []string{"a restart would kill 3 containers"},
		},
		"the new unit is to blame": {
			change: func(n *node, _ *runtimeFake) {
				f := n.file(unit)
				f.Content = []byte(strings.Replace(string(f.Content), "KillMode=process", "KillMode=mixed", 1))
				f.Origin = diag.Origin{Path: "systemd.killMode", File: "node.yaml", Line: 9}
			},
			refused: []string{"KillMode=mixed comes from " + unit + " | set systemd.killMode: process in the profile"},
		},
		"nobody sets it": {
			change: func(n *node, _ *runtimeFake) {
				f := n.file(unit)
				f.Content = []byte(strings.Replace(string(f.Content), "KillMode=process\n", "", 1))
			},
			refused: []string{"KillMode=control-group is systemd's default, and " + unit + " sets no other"},
		},
		"the plan repairs it": {
			change: func(n *node, _ *runtimeFake) {
				// As it stands on the host, whoever wrote it; the plan brings the good one.
				n.write(unit, strings.Replace(string(n.file(unit).Content), "KillMode=process", "KillMode=control-group", 1))
				n.opt.Adopt = true
			},
		},
		"the plan removes the drop-in": {
			change: func(n *node, f *runtimeFake) {
				good := n.file("/etc/containerd/config.toml").Content
				n.file("/etc/containerd/config.toml").Content = []byte("version = 2\n")
				n.opt.Daemon = n.daemon
				n.state.Files = append(n.state.Files, desired.File{
					Path: dropIn + "50-ours.conf", Content: []byte(bad), Mode: 0o644, Format: desired.FormatUnit, Effect: desired.EffectUnit,
				})
				n.apply()
				n.state.Files = n.state.Files[:len(n.state.Files)-1]
				n.file("/etc/containerd/config.toml").Content = good
				n.opt.Daemon = f
			},
		},
		"the daemon does not answer, and shims run": {
			files: map[string]string{
				dropIn + "99-site.conf": bad,
				"/proc/60/comm":         "containerd-shim\n",
				"/proc/60/cmdline":      "/usr/local/bin/containerd-shim-runc-v2\x00-namespace\x00k8s.io\x00-id\x00p1\x00-address\x00/run/containerd/containerd.sock\x00",
			},
			change:  func(_ *node, f *runtimeFake) { f.err = errors.New("hangs") },
			refused: []string{"an unknown number of containers (1 shims run; containerd does not answer)…KillMode=mixed"},
		},
		"the daemon does not answer, and nothing runs": {
			files:  map[string]string{dropIn + "99-site.conf": bad},
			change: func(_ *node, f *runtimeFake) { f.err = errors.New("hangs") },
		},
		"not delegated": {
			files:  map[string]string{dropIn + "99-site.conf": "[Service]\nDelegate=no\n"},
			warned: []string{"Delegate=no comes from " + dropIn + "99-site.conf"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, f := applied(t, c.files)
			if c.change != nil {
				c.change(n, f)
			}
			plan := n.diff()
			says(t, refusals(plan), c.refused...)
			var warned []string
			for _, w := range plan.Warnings {
				warned = append(warned, w.Message)
			}
			says(t, warned, c.warned...)
			if len(c.refused) > 0 {
				_, err := n.tryApply(t.Context())
				if refused, ok := errors.AsType[*NotOwnedError](err); !ok || !strings.HasSuffix(refused.Error(), "nothing was changed") {
					t.Errorf("apply = %v", err)
				}
			}
		})
	}
}

// A plan that restarts nothing asks the daemon nothing.
func TestQuietPlanAsksNobody(t *testing.T) {
	n, f := applied(t, nil)
	n.file("/etc/containerd/config.toml").Content = []byte("version = 2\n")
	if plan := n.diff(); !plan.Empty() || len(f.asked) != 0 {
		t.Errorf("plan %v; asked at %v", actions(plan), f.asked)
	}
}

func TestWhatRunningPodsDoNotSurvive(t *testing.T) {
	const runc = `[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = `
	for name, c := range map[string]struct {
		content string
		change  func(*node, *runtimeFake)
		refused []string
		warned  []string
	}{
		"another log level":  {content: "version = 2\n[debug]\nlevel = 'info'\n"},
		"defaults, said":     {content: "version = 2\nroot = '/var/lib/containerd/'\nstate = '/run/containerd'\n[grpc]\naddress='/run/containerd/containerd.sock'\n" + runc + "false\n"},
		"root":               {content: "version = 2\nroot = '/data'\n", refused: []string{"root would change from /var/lib/containerd to /data under 3 containers (pod default/web; b1): …--with-running-pods"}},
		"root, the same one": {content: "version = 2\nroot = '/data/containerd'\n", change: func(n *node, _ *runtimeFake) { n.symlink("/data/containerd", "/var/lib/containerd") }},
		"state":              {content: "version = 2\nstate = '/run/c'\n", refused: []string{"state would change from /run/containerd to /run/c"}},
		"address": {content: "version = 2\n[grpc]\naddress = '/run/c.sock'\n", change: func(n *node, f *runtimeFake) {
			n.state.Daemon.Address = "/run/c.sock"
			f.address = "/run/containerd/containerd.sock" // it still answers there
		}, refused: []string{"address would change from /run/containerd/containerd.sock to /run/c.sock"}},
		"cgroup driver": {content: "version = 2\n" + runc + "true\n", refused: []string{"cgroup driver of runtime runc would change from cgroupfs to systemd under 2 containers (pod default/web): "}},
		"snapshotter": {
			content: "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'zfs'\n",
			refused: []string{"snapshotter would change from overlayfs to zfs under 2 containers (pod default/web): "},
		},
		"all at once": {content: "version = 2\nroot = '/data'\nstate = '/run/c'\n" + runc + "true\n", refused: []string{"root", "state", "cgroup driver"}},
		"no pods, for what only pods hang on": {
			content: "version = 2\n" + runc + "true\n",
			change:  func(_ *node, f *runtimeFake) { f.tasks = f.tasks[4:] },
		},
		"nothing runs": {content: "version = 2\nroot = '/data'\n", change: func(_ *node, f *runtimeFake) { f.tasks = nil }},
		"allowed": {content: "version = 2\nroot = '/data'\n", change: func(n *node, _ *runtimeFake) { n.opt.WithRunningPods = true },
			warned: []string{"root would change"}},
		"the other flag allows nothing": {content: "version = 2\nroot = '/data'\n", change: func(n *node, _ *runtimeFake) { n.opt.ForceRestart = true },
			refused: []string{"root would change"}},
		"a config nobody can read": {content: "version = 2\nroot = '/data'\n", change: func(n *node, _ *runtimeFake) {
			n.write("/etc/containerd/config.toml", "root = ")
			n.opt.Adopt = true
		}, warned: []string{"cannot be read"}},
	} {
		t.Run(name, func(t *testing.T) {
			n, f := applied(t, nil)
			n.file("/etc/containerd/config.toml").Content = []byte(c.content)
			if c.change != nil {
				c.change(n, f)
			}
			plan := n.diff()
			says(t, refusals(plan), c.refused...)
			var warned []string
			for _, w := range plan.Warnings {
				warned = append(warned, w.Message)
			}
			says(t, warned, c.warned...)
		})
	}
}

// Who carries nodeprep about learns from the plan which refusals a drain ends.
func TestDrainEndsWhatPodsAloneAreInTheWayOf(t *testing.T) {
	const unit = "unit containerd.service"
	pods := func(_ *node, f *runtimeFake) { f.tasks = f.tasks[:4] }
	minor := func(n *node, f *runtimeFake) {
		n.file("/etc/containerd/config.toml").Content = []byte("version = 2\n")
		version := func(v string) {
			n.state.Artifacts[0].Version, n.state.Artifacts[0].Files = v, []string{"containerd-" + v + ".tar.gz"}
			n.state.Daemon.Version = v
		}
		version("2.0.0")
		n.opt.Daemon = n.daemon
		n.apply()
		version("1.0.0")
		n.opt.Daemon = f
		f.containers = twoPods(time.Now().Add(time.Hour)).containers[:4]
	}
	for name, c := range map[string]struct {
		files  map[string]string
		change func(*node, *runtimeFake)
		want   map[string]bool // by refused item: whether a drain ends it
	}{
		"pods": {change: pods, want: map[string]bool{unit: true}},
		"a container of no pod": {
			want: map[string]bool{unit: false},
		},
		"one of no pod, where only pods count": {
			change: func(n *node, _ *runtimeFake) {
				n.file("/etc/containerd/config.toml").Content = []byte("version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'zfs'\n")
			},
			want: map[string]bool{unit: true},
		},
		"a daemon that can remove none": {
			change: func(n *node, f *runtimeFake) {
				f.err = errors.New("hangs")
				n.write("/proc/60/comm", "containerd-shim\n")
				n.write("/proc/60/cmdline", "containerd-shim-runc-v2\x00-namespace\x00k8s.io\x00-id\x00p1\x00")
			},
			want: map[string]bool{unit: false},
		},
		"a restart that kills pods": {
			files: map[string]string{"/etc/systemd/system/containerd.service.d/99-site.conf": "[Service]\nKillMode=mixed\n"},
			change: func(n *node, f *runtimeFake) {
				pods(n, f)
				n.file("/etc/containerd/config.toml").Content = []byte("version = 2\noom_score = -1\n")
			},
			want: map[string]bool{unit: true},
		},
		"a restart that kills another container": {
			files: map[string]string{"/etc/systemd/system/containerd.service.d/99-site.conf": "[Service]\nKillMode=mixed\n"},
			change: func(n *node, _ *runtimeFake) {
				n.file("/etc/containerd/config.toml").Content = []byte("version = 2\noom_score = -1\n")
			},
			want: map[string]bool{unit: false},
		},
		"a file that is not ours beside it": {
			change: func(n *node, f *runtimeFake) {
				pods(n, f)
				n.write("/etc/foreign", "theirs\n")
				n.state.Files = append(n.state.Files, desired.File{Path: "/etc/foreign", Content: []byte("ours\n"), Mode: 0o644})
			},
			want: map[string]bool{unit: true, "file /etc/foreign": false},
		},
		"an older minor under pods": {change: minor, want: map[string]bool{"artifact containerd": true}},
		"an older minor under another container": {
			change: func(n *node, f *runtimeFake) {
				minor(n, f)
				f.containers = twoPods(time.Now().Add(time.Hour)).containers
			},
			want: map[string]bool{"artifact containerd": false},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, f := applied(t, c.files)
			n.file("/etc/containerd/config.toml").Content = []byte("version = 2\nroot = '/data'\n")
			if c.change != nil {
				c.change(n, f)
			}
			got := map[string]bool{}
			for _, it := range n.diff().Items {
				if it.Action == Refuse {
					got[fmt.Sprintf("%s %s", it.Kind, it.Path)] = it.Drain
				} else if it.Drain {
					t.Errorf("%s %s would end with a drain, and is not refused", it.Action, it.Path)
				}
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("refused, and whether a drain ends it (-want +got):\n%s", diff)
			}
		})
	}
}

func TestOlderMinorUnderItsPods(t *testing.T) {
	came := time.Date(2026, 10, 1, 12, 0, 0, 0, time.UTC)
	made := func(after time.Duration) []daemon.Container {
		return []daemon.Container{
			{Name: "default/old/c", Created: came.Add(-time.Hour)},
			{Name: "default/web", Sandbox: true, Created: came.Add(after)},
			{Name: "default/web/nginx", Created: came.Add(after)},
		}
	}
	for name, c := range map[string]struct {
		from, to   string
		containers []daemon.Container
		want       string
	}{
		"minor":          {"2.4.2", "2.1.9", made(time.Hour), "goes back from 2.4.2 to 2.1.9, and 2.4.2 made 1 container (pod default/web) since it came on 2026-10-01 12:00 UTC"},
		"major":          {"2.1.9", "1.7.24", made(time.Hour), "goes back from 2.1.9 to 1.7.24"},
		"patch":          {"2.1.9", "2.1.2", made(time.Hour), ""},
		"newer":          {"2.1.9", "2.4.2", made(time.Hour), ""},
		"tenth minor":    {"2.10.0", "2.9.0", made(time.Hour), "goes back"},
		"only older":     {"2.4.2", "2.1.9", made(-time.Hour), ""},
		"no containers":  {"2.4.2", "2.1.9", nil, ""},
		"distribution's": {"1.7.24~ds1", "1.6.20~ds1", made(time.Hour), "goes back"},
		"not a version":  {"unknown", "1.6.20", made(time.Hour), ""},
	} {
		t.Run(name, func(t *testing.T) {
			got := downgrade(c.from, c.to, came, c.containers)
			if !strings.Contains(got, c.want) || (got == "") != (c.want == "") {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}

func TestDowngradeIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		change  func(*node, *runtimeFake)
		refused []string
		warned  []string
	}{
		"pods of before": {},
		"pods made since": {
			change:  func(_ *node, f *runtimeFake) { f.containers = twoPods(time.Now().Add(time.Hour)).containers },
			refused: []string{"artifact containerd: goes back from 2.0.0 to 1.0.0, and 2.0.0 made 4 containers (pods default/job, default/web; b1)…--with-running-pods"},
		},
		"stopped ones too": {
			change: func(_ *node, f *runtimeFake) {
				f.containers, f.tasks = twoPods(time.Now().Add(time.Hour)).containers, nil
			},
			refused: []string{"goes back"},
		},
		"allowed": {
			change: func(n *node, f *runtimeFake) {
				f.containers, n.opt.WithRunningPods = twoPods(time.Now().Add(time.Hour)).containers, true
			},
			warned: []string{"goes back"},
		},
		"no answer": {
			change: func(_ *node, f *runtimeFake) { f.err = errors.New("hangs") },
			warned: []string{"containerd does not answer (hangs)"},
		},
		"no answer, and shims": {
			change: func(n *node, f *runtimeFake) {
				f.err = errors.New("hangs")
				n.write("/proc/60/comm", "containerd-shim\n")
				n.write("/proc/60/cmdline", "containerd-shim-runc-v2\x00-id\x00p1\x00")
			},
			refused: []string{"whether 2.0.0 made any of them cannot be told"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			n, f := applied(t, nil)
			n.file("/etc/containerd/config.toml").Content = []byte("version = 2\n")
			version := func(v string) {
				n.state.Artifacts[0].Version, n.state.Artifacts[0].Files = v, []string{"containerd-" + v + ".tar.gz"}
				n.state.Daemon.Version = v
			}
			version("2.0.0")
			n.opt.Daemon = n.daemon
			n.apply()
			version("1.0.0")
			n.opt.Daemon = f
			if c.change != nil {
				c.change(n, f)
			}
			plan := n.diff()
			says(t, refusals(plan), c.refused...)
			var warned []string
			for _, w := range plan.Warnings {
				warned = append(warned, w.Message)
			}
			says(t, warned, c.warned...)
		})
	}
}

// The same settings as each schema has them.
func TestFactsAreTheSameInEverySchema(t *testing.T) {
	two := `version = 2
root = "/data"
state = "/run/c"
[grpc]
  address = "/run/c.sock"
[plugins."io.containerd.grpc.v1.cri".containerd]
  snapshotter = "zfs"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = true
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
    runtime_type = "io.containerd.kata.v2"
`
	three := `version = 3
root = "/data"
state = "/run/c"
[grpc]
  address = "/run/c.sock"
[plugins."io.containerd.cri.v1.images"]
  snapshotter = "zfs"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
  SystemdCgroup = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.kata]
  runtime_type = "io.containerd.kata.v2"
`
	four := strings.NewReplacer("version = 3", "version = 4", "[grpc]", `[plugins."io.containerd.server.v1.grpc"]`).Replace(three)
	one := strings.NewReplacer("version = 2\n", "", "io.containerd.grpc.v1.cri", "cri").Replace(two)
	want := facts{root: "/data", state: "/run/c", address: "/run/c.sock", snapshotter: "zfs", cgroups: map[string]string{"runc": "systemd"}}
	defaults := facts{root: "/var/lib/containerd", state: "/run/containerd", address: "/run/containerd/containerd.sock", snapshotter: "overlayfs", cgroups: map[string]string{"runc": "cgroupfs"}}
	edit := func(f facts, change func(*facts)) facts { change(&f); return f }

	for name, c := range map[string]struct {
		content, version string
		want             facts
	}{
		"1 on 1.6": {one, "1.6.20", want}, "1 on 2.4": {one, "2.4.2", want}, "1 on unknown": {one, "", want},
		"2 on 1.6": {two, "1.6.20~ds1", want}, "2 on 1.7": {two, "1.7.24", want}, "2 on 2.1": {two, "2.1.9", want}, "2 on 2.4": {two, "2.4.2", want}, "2 on unknown": {two, "", want},
		"3 on 2.0": {three, "2.0.11", want}, "3 on 2.4": {three, "2.4.2", want}, "3 on unknown": {three, "", want},
		"4 on 2.3": {four, "2.3.4", want}, "4 on unknown": {four, "", want},
		"no config": {"", "1.7.24", defaults}, "no config, 2.4": {"", "2.4.2", defaults}, "empty 4": {"version = 4\n", "2.4.2", defaults},
		"top level in 4": {"version = 4\n[grpc]\naddress = '/x'\n", "2.4.2", defaults},
		"sections of 2 in 3, not migrated": {strings.Replace(two, "version = 2", "version = 3", 1), "2.1.9",
			edit(want, func(f *facts) { f.snapshotter, f.cgroups = "overlayfs", defaults.cgroups })},
		"sections of 2 in 3, migrated":         {strings.Replace(two, "version = 2", "version = 3", 1), "2.3.4", want},
		"sections of 2 in 4":                   {strings.Replace(two, "version = 2", "version = 4", 1), "2.3.4", edit(defaults, func(f *facts) { f.root, f.state = "/data", "/run/c" })},
		"snapshotter that the migration loses": {"version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'zfs'\n", "2.1.9", defaults},
		"snapshotter that it would lose":       {"version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd]\nsnapshotter = 'zfs'\n", "1.7.24", edit(defaults, func(f *facts) { f.snapshotter = "zfs" })},
		"another runtime beside runc":          {"version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]\nSystemdCgroup = true\n", "2.1.9", edit(defaults, func(f *facts) { f.cgroups = map[string]string{"runc": "cgroupfs", "crun": "systemd"} })},
		"types that are wrong":                 {"version = 3\n[plugins]\n'io.containerd.cri.v1.images' = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\nruntimes = 'x'\n", "2.1.9", defaults},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := daemonFacts([]byte(c.content), c.version)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, got, cmp.AllowUnexported(facts{})); diff != "" {
				t.Errorf("facts (-want +got):\n%s", diff)
			}
		})
	}
	if _, err := daemonFacts([]byte("root ="), ""); err == nil {
		t.Error("no error for what is no TOML")
	}
}

func TestGuard(t *testing.T) {
	const unit = "containerd.service"
	begin := time.Now()
	for name, c := range map[string]struct {
		properties systemd.Properties
		before     func(*node, *runtimeFake)
		// restarted is what the restart, and others, do.
		restarted func(n *node, f *runtimeFake, p *systemd.Properties)
		refused   string
		notes     []string
		lost      string
	}{
		"all live on": {properties: systemd.Properties{KillMode: "process"}},
		"none runs":   {properties: systemd.Properties{KillMode: "mixed"}, before: func(_ *node, f *runtimeFake) { f.tasks = f.tasks[3:4] }},
		"the KillMode in force kills": {
			properties: systemd.Properties{KillMode: "mixed", FragmentPath: "/etc/systemd/system/containerd.service", DropInPaths: []string{"/run/systemd/system/containerd.service.d/x.conf"}},
			refused:    "it would kill 3 containers (pod default/web; b1): KillMode=mixed comes from /run/systemd/system/containerd.service.d/x.conf; set KillMode=process there, or allow it with --force-restart",
		},
		"nobody knows why":                 {properties: systemd.Properties{KillMode: "control-group", ActiveState: "active", FragmentPath: "/etc/systemd/system/containerd.service"}, refused: "KillMode=control-group is in force, and no file of the unit says so"},
		"a unit that is down kills nobody": {properties: systemd.Properties{KillMode: "mixed", ActiveState: "inactive"}},
		"allowed, and they die": {
			properties: systemd.Properties{KillMode: "mixed"},
			before:     func(n *node, _ *runtimeFake) { n.opt.ForceRestart = true },
			restarted: func(_ *node, f *runtimeFake, _ *systemd.Properties) {
				f.tasks = nil
				f.ended = map[string]time.Time{"p1": time.Now(), "c1": time.Now(), "c2": time.Now(), "b1": time.Now()}
			},
			notes: []string{"4 of 4 tasks did not survive…--force-restart allowed it"},
		},
		"a shim vanishes": {
			properties: systemd.Properties{KillMode: "process"},
			restarted: func(_ *node, f *runtimeFake, _ *systemd.Properties) {
				f.tasks, f.ended = f.tasks[:4], map[string]time.Time{"b1": time.Now()}
			},
			lost: "1 of 4 tasks did not survive the restart of containerd.service: b1 (shim 50)",
		},
		"a pod's shim vanishes": {
			properties: systemd.Properties{KillMode: "process"},
			restarted: func(_ *node, f *runtimeFake, _ *systemd.Properties) {
				f.tasks = f.tasks[4:]
				f.ended = map[string]time.Time{"p1": time.Now(), "c1": time.Now(), "c2": time.Now()}
			},
			lost: "3 of 4 tasks did not survive the restart of containerd.service: default/web (shim 50), default/web/nginx (shim 50), default/web/sidecar (shim 50)",
		},
		"another process has its name": {
			properties: systemd.Properties{KillMode: "process"},
			restarted: func(_ *node, f *runtimeFake, _ *systemd.Properties) {
				f.tasks[4].PID, f.ended = 999, map[string]time.Time{"b1": time.Now()}
			},
			lost: "b1",
		},
		"one ended by itself": {
			properties: systemd.Properties{KillMode: "process"},
			restarted:  func(_ *node, f *runtimeFake, _ *systemd.Properties) { f.tasks[4].Status, f.tasks[4].PID = "stopped", 0 },
			notes:      []string{"container b1 ended by itself…its exit is recorded"},
		},
		"one ended by itself, and the new daemon tidied it up before it served": {
			properties: systemd.Properties{KillMode: "process"},
			restarted: func(_ *node, f *runtimeFake, p *systemd.Properties) {
				p.MainStart = time.Now()
				f.tasks, f.ended = f.tasks[:4], map[string]time.Time{"b1": time.Now().Add(time.Millisecond)}
			},
			notes: []string{"container b1 ended while"},
		},
		"one was ended after the daemon served": {
			properties: systemd.Properties{KillMode: "process"},
			restarted: func(_ *node, f *runtimeFake, _ *systemd.Properties) {
				f.tasks, f.ended = f.tasks[:4], map[string]time.Time{"b1": time.Now().Add(time.Hour)}
			},
			notes: []string{"container b1 ended while"},
		},
		"one was removed on order": {
			properties: systemd.Properties{KillMode: "process"},
			restarted: func(_ *node, f *runtimeFake, _ *systemd.Properties) {
				f.tasks, f.containers, f.ended = f.tasks[:4], f.containers[:4], map[string]time.Time{"b1": time.Now()}
			},
			notes: []string{"container b1 ended while"},
		},
		"one was started": {
			properties: systemd.Properties{KillMode: "process"},
			restarted: func(_ *node, f *runtimeFake, _ *systemd.Properties) {
				f.tasks = append(f.tasks, daemon.Task{Namespace: "k8s.io", ID: "new", PID: 1000, Status: "running"})
			},
		},
		"the daemon was down before, and a shim vanished": {
			properties: systemd.Properties{KillMode: "process"},
			before: func(n *node, f *runtimeFake) {
				f.err = errors.New("hangs")
				for pid, id := range map[int]string{60: "p1", 61: "b1"} {
					n.write(fmt.Sprintf("/proc/%d/comm", pid), "containerd-shim\n")
					n.write(fmt.Sprintf("/proc/%d/cmdline", pid), "containerd-shim-runc-v2\x00-namespace\x00"+map[string]string{"p1": "k8s.io", "b1": "build"}[id]+"\x00-id\x00"+id+"\x00")
				}
			},
			restarted: func(_ *node, f *runtimeFake, _ *systemd.Properties) {
				f.err, f.tasks, f.ended = nil, f.tasks[:4], map[string]time.Time{"b1": time.Now()}
			},
			lost: "1 of 2 tasks did not survive the restart of containerd.service: b1 (shim 61)",
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.write("/etc/systemd/system/containerd.service", unitText)
			n.write("/run/systemd/system/containerd.service.d/x.conf", "[Service]\nKillMode=mixed\n")
			if name == "nobody knows why" {
				n.write("/etc/systemd/system/containerd.service", "[Service]\nKillMode=process\n")
			}
			f := twoPods(begin)
			p := c.properties
			n.opt.Services = unitServices{n.services, &p}
			n.opt.Daemon = f
			if c.before != nil {
				c.before(n, f)
			}
			g := newGuard(n.h, n.opt.DiffOptions, n.state.Daemon)
			err := g.check(t.Context(), unit)
			if c.refused != "" {
				if err == nil || !strings.Contains(err.Error(), c.refused) {
					t.Fatalf("check = %v, want %q", err, c.refused)
				}
				g.close()
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if c.restarted != nil {
				c.restarted(n, f, &p)
			}
			notes, err := g.survived(t.Context(), time.Now())
			if (err == nil) != (c.lost == "") || err != nil && !strings.Contains(err.Error(), c.lost) {
				t.Errorf("survived = %v, want %q", err, c.lost)
			}
			says(t, notes, c.notes...)
			g.close()
			if len(f.followed) > 0 && !f.closed {
				t.Error("the watch goes on")
			}
		})
	}
}

// unitServices is a systemd with properties of a unit.
type unitServices struct {
	Services
	p *systemd.Properties
}

func (s unitServices) Properties(context.Context, string) (systemd.Properties, error) {
	return *s.p, nil
}

func TestGuardKeepsOutOfTheRest(t *testing.T) {
	n := newNode(t)
	n.live()
	f := twoPods(time.Now())
	n.opt.Daemon = f
	g := newGuard(n.h, n.opt.DiffOptions, n.state.Daemon)
	if err := g.check(t.Context(), "chrony.service"); err != nil || len(f.asked) != 0 {
		t.Errorf("another unit: %v, asked at %v", err, f.asked)
	}
	n.opt.Daemon = nil
	g = newGuard(n.h, n.opt.DiffOptions, n.state.Daemon)
	if err := g.check(t.Context(), "containerd.service"); err != nil {
		t.Error(err)
	}
	if notes, err := g.survived(t.Context(), time.Now()); err != nil || notes != nil {
		t.Errorf("without a daemon: %v, %v", notes, err)
	}
	g.close()

	// The old address is asked where the plan changes it.
	f.address = "/run/old.sock"
	n.opt.Daemon = f
	g = newGuard(n.h, n.opt.DiffOptions, n.state.Daemon, "/run/old.sock")
	if err := g.check(t.Context(), "containerd.service"); err != nil || len(f.followed) != 4 {
		t.Errorf("check at the old address: %v, followed %v", err, f.followed)
	}
}

func TestRefusalsNameTheirOwnRemedies(t *testing.T) {
	file := Refused{Path: "/etc/a", Reason: "exists and was not written by nodeprep", Adoptable: true}
	way := Refused{Path: "/etc/b", Reason: "is a directory"}
	hinted := Refused{Path: "containerd.service", Reason: "a restart would kill 2 containers", Hint: "drain the node"}
	for name, c := range map[string]struct {
		refused []Refused
		want    string
	}{
		"hint":      {[]Refused{hinted}, "containerd.service: a restart would kill 2 containers\n  drain the node\nnothing was changed"},
		"adoptable": {[]Refused{file}, "/etc/a: exists and was not written by nodeprep\nnothing was changed; --adopt takes such files over and keeps what they are now for rollback and uninstall"},
		"in the way and hint": {[]Refused{way, hinted},
			"/etc/b: is a directory\ncontainerd.service: a restart would kill 2 containers\n  drain the node\nnothing was changed; move files that are in the way elsewhere"},
		"adoptable and hint": {[]Refused{file, hinted},
			"/etc/a: exists and was not written by nodeprep\ncontainerd.service: a restart would kill 2 containers\n  drain the node\nnothing was changed; --adopt takes files that are not nodeprep's over and keeps what they are now for rollback and uninstall"},
	} {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(c.want, (&NotOwnedError{c.refused}).Error()); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
}

func TestTaskNames(t *testing.T) {
	f := twoPods(time.Now())
	want := []string{"build/b1 (paused)", "default/job/once (stopped)", "default/web/nginx", "default/web/sidecar"}
	if diff := cmp.Diff(want, taskNames(t.Context(), f, desired.Daemon{}, f.tasks)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}
