package checks

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/systemd"
)

const (
	goodLimits = `Limit                     Soft Limit           Hard Limit           Units     
Max processes             unlimited            unlimited            processes 
Max open files            524288               524288               files     
Max core file size        unlimited            unlimited            bytes     
`
	ownCgroup = "0::/system.slice/containerd.service\n"
	podCgroup = "0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-b.scope\n"
)

// runningHost is a host whose daemon is process 42, with a pod: its shim is 50, its sandbox 51
// and a container 52.
func runningHost(more files) files {
	f := stockHost(files{
		"/proc/42/oom_score_adj": "-999\n", "/proc/42/limits": goodLimits, "/proc/42/cgroup": ownCgroup, "/proc/42/comm": "containerd\n",
		"/proc/50/comm": "containerd-shim\n", "/proc/50/exe": "-> /usr/local/bin/containerd-shim-runc-v2", "/proc/50/oom_score_adj": "-998\n", "/proc/50/cgroup": ownCgroup,
		"/proc/50/cmdline":       "/usr/local/bin/containerd-shim-runc-v2\x00-namespace\x00k8s.io\x00-id\x00a\x00-address\x00/run/containerd/containerd.sock\x00",
		"/proc/51/oom_score_adj": "-998\n", "/proc/51/comm": "pause\n", "/proc/51/cgroup": podCgroup,
		"/proc/52/oom_score_adj": "-997\n", "/proc/52/comm": "sleep\n", "/proc/52/cgroup": podCgroup,
		"/proc/sys/fs/nr_open": "1048576\n",
		defaultConfig:          "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = true\n",
	})
	for p, content := range more {
		f[p] = content
	}
	return f
}

func pod() *containerd {
	return &containerd{tasks: []daemon.Task{
		{Namespace: "k8s.io", ID: "a", PID: 51, Status: "running", Shim: 50},
		{Namespace: "k8s.io", ID: "b", PID: 52, Status: "running", Shim: 50},
		{Namespace: "k8s.io", ID: "c", PID: 53, Status: "stopped", Shim: 50},
	}}
}

// listens says who listens at the daemon's socket.
func listens(pid int, err error) func(*Outside) {
	return func(o *Outside) { o.Listener = func(context.Context, string) (int, error) { return pid, err } }
}

func TestProcessChecks(t *testing.T) {
	tasks := func(more ...daemon.Task) func(*Outside) {
		c := pod()
		c.tasks = append(c.tasks, more...)
		return withDaemon(c)
	}
	mixed := func(p *systemd.Properties) { p.KillMode = "mixed" }
	const old = "/opt/containerd"
	for name, c := range map[string]struct {
		id     string
		files  files
		unit   func(*systemd.Properties)
		change []func(*Outside)
		want   want
	}{
		"protected": {id: "process/oom-score-adj", want: want{verdict: Pass, observed: "-999", place: "/proc/42/oom_score_adj"}},
		"not protected": {id: "process/oom-score-adj", files: files{"/proc/42/oom_score_adj": "0\n"},
			want: want{verdict: Fail, observed: "0", wanted: "-999", place: "/proc/42/oom_score_adj", remedy: "echo -999 > /proc/42/oom_score_adj"}},
		"by its config": {id: "process/oom-score-adj", files: files{"/proc/42/oom_score_adj": "-500\n", defaultConfig: "version = 3\noom_score = -500\n"}, want: want{verdict: Pass, observed: "-500"}},
		"not by its config": {id: "process/oom-score-adj", files: files{defaultConfig: "version = 3\noom_score = -500\n"},
			want: want{verdict: Fail, observed: "-999", wanted: "-500"}},
		"nonsense": {id: "process/oom-score-adj", files: files{"/proc/42/oom_score_adj": "x"}, want: want{verdict: Unknown, observed: "x"}},

		"shims": {id: "process/shim-oom-score", want: want{verdict: Pass, observed: "1 shims, none above -998"}},
		"an old shim": {id: "process/shim-oom-score", files: files{"/proc/50/oom_score_adj": "1\n"},
			want: want{verdict: Warn, object: "shim 50 of k8s.io/a", observed: "1", wanted: "-998", place: "/proc/50/oom_score_adj", remedy: "echo -998 > /proc/50/oom_score_adj"}},
		"a better shim":   {id: "process/shim-oom-score", files: files{"/proc/50/oom_score_adj": "-1000\n"}, want: want{verdict: Pass}},
		"another's shim":  {id: "process/shim-oom-score", files: files{"/proc/50/oom_score_adj": "1\n", "/proc/50/cmdline": "x\x00-id\x00a\x00-address\x00/run/k3s.sock\x00"}, want: want{verdict: Pass, observed: "0 shims"}},
		"a shim's secret": {id: "process/shim-oom-score", files: files{"/proc/50/oom_score_adj": "?\n"}, want: want{verdict: Unknown}},

		"pods": {id: "process/pod-oom-score", want: want{verdict: Pass, observed: "2 containers"}},
		"a protected pod": {id: "process/pod-oom-score", files: files{"/proc/52/oom_score_adj": "-998\n"},
			want: want{verdict: Fail, object: "k8s.io/b", observed: "-998", wanted: "above -998", place: "/proc/52/oom_score_adj", remedy: "echo 0 > /proc/52/oom_score_adj"}},
		"kube-proxy": {id: "process/pod-oom-score", files: files{"/proc/52/oom_score_adj": "-999\n", "/proc/52/comm": "kube-proxy\n"}, want: want{verdict: Pass}},
		"of ctr": {id: "process/pod-oom-score", files: files{"/proc/60/oom_score_adj": "-998\n", "/proc/60/comm": "x\n"}, change: []func(*Outside){tasks(daemon.Task{Namespace: "default", ID: "x", PID: 60, Status: "running"})},
			want: want{verdict: Warn, object: "default/x", observed: "-998"}},
		"as the daemon":      {id: "process/pod-oom-score", files: files{"/proc/52/oom_score_adj": "-999\n"}, want: want{verdict: Fail, observed: "-999"}},
		"as an older shim":   {id: "process/pod-oom-score", files: files{"/proc/42/oom_score_adj": "-500\n", "/proc/52/oom_score_adj": "-998\n"}, want: want{verdict: Fail, observed: "-998"}},
		"more than the shim": {id: "process/pod-oom-score", files: files{"/proc/52/oom_score_adj": "-1000\n", "/proc/52/comm": "watchdog\n"}, want: want{verdict: Warn, observed: "-1000", remedy: "# if it is not meant to be"}},
		"sshd":               {id: "process/pod-oom-score", files: files{"/proc/52/oom_score_adj": "-1000\n", "/proc/52/comm": "sshd\n"}, want: want{verdict: Pass}},
		"udev":               {id: "process/pod-oom-score", files: files{"/proc/52/oom_score_adj": "-1000\n", "/proc/52/comm": "systemd-udevd\n"}, want: want{verdict: Pass}},
		"a virtual machine":  {id: "process/pod-oom-score", files: files{"/proc/52/oom_score_adj": "-998\n", "/proc/52/comm": "qemu-system-x86\n"}, want: want{verdict: Pass}},
		"the sandbox's own":  {id: "process/pod-oom-score", change: []func(*Outside){tasks(daemon.Task{Namespace: "k8s.io", ID: "vm", PID: 51, Status: "running", Shim: 50})}, want: want{verdict: Pass}},
		"the shim's own":     {id: "process/pod-oom-score", change: []func(*Outside){tasks(daemon.Task{Namespace: "k8s.io", ID: "vm", PID: 50, Status: "running", Shim: 50})}, want: want{verdict: Pass}},
		"gone":               {id: "process/pod-oom-score", change: []func(*Outside){tasks(daemon.Task{Namespace: "k8s.io", ID: "x", PID: 61, Status: "running"})}, want: want{verdict: Pass}},
		"not to say":         {id: "process/pod-oom-score", change: []func(*Outside){withDaemon(&containerd{err: errors.New("permission denied")})}, want: want{verdict: Unknown, observed: "permission denied"}},

		"limits":             {id: "process/limits", want: want{verdict: Pass}},
		"no limits at all":   {id: "process/limits", unit: func(p *systemd.Properties) { p.LimitNOFILE = systemd.Infinity }, files: files{"/proc/42/limits": strings.ReplaceAll(goodLimits, " 524288 ", " 1048576 ")}, want: want{verdict: Pass}},
		"fewer than allowed": {id: "process/limits", unit: func(p *systemd.Properties) { p.LimitNOFILE = systemd.Infinity }, want: want{verdict: Warn, object: "LimitNOFILE", observed: "524288", wanted: "infinity", remedy: "systemctl restart containerd.service"}},
		"by hand": {id: "process/limits", files: files{"/proc/42/limits": strings.Replace(goodLimits, "unlimited            unlimited            processes", "100 100 processes", 1)},
			want: want{verdict: Warn, object: "LimitNPROC", observed: "100", wanted: "infinity", place: "/proc/42/limits"}},
		"by hand, soft": {id: "process/limits", files: files{"/proc/42/limits": strings.Replace(goodLimits, "524288    ", "64     ", 1)},
			want: want{verdict: Warn, object: "LimitNOFILE", observed: "soft 64", wanted: "soft 1024"}},
		"limits of another kernel": {id: "process/limits", files: files{"/proc/42/limits": "x"}, want: want{verdict: Unknown}},
		"no way to see limits":     {id: "process/limits", files: files{"/proc/42/limits": "-> limits"}, want: want{verdict: Unknown}},

		"cgroups": {id: "process/cgroup", want: want{verdict: Pass, observed: "the daemon in /system.slice/containerd.service, 2 containers"}},
		"another cgroup": {id: "process/cgroup", files: files{"/proc/42/cgroup": "0::/user.slice\n"},
			want: want{verdict: Fail, object: "daemon", observed: "/user.slice", wanted: "/system.slice/containerd.service", remedy: "echo 42 > /sys/fs/cgroup/system.slice/containerd.service/cgroup.procs"}},
		"a cgroup below its own": {id: "process/cgroup", files: files{"/proc/42/cgroup": "0::/system.slice/containerd.service/daemon\n"}, want: want{verdict: Pass, observed: "the daemon in /system.slice/containerd.service/daemon"}},
		"a cgroup named alike":   {id: "process/cgroup", files: files{"/proc/42/cgroup": "0::/system.slice/containerd.service2\n"}, want: want{verdict: Fail}},
		"another cgroup of v1": {id: "process/cgroup", files: files{"/proc/42/cgroup": "5:memory:/\n1:name=systemd:/user.slice\n0::/x\n"}, unit: mixed,
			want: want{verdict: Fail, observed: "/user.slice", remedy: "KillMode=process > " + dropInDir + "zz-nodeprep-killmode.conf && systemctl daemon-reload && systemctl restart containerd.service"}},
		"cgroups of v1": {id: "process/cgroup", files: files{"/proc/42/cgroup": "5:memory:/\n1:name=systemd:/system.slice/containerd.service\n"}, want: want{verdict: Pass}},
		"a container within": {id: "process/cgroup", files: files{"/proc/52/cgroup": "0::/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:b\n"},
			want: want{verdict: Fail, object: "k8s.io/b", observed: "/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:b", place: "/proc/52/cgroup", remedy: "ctr -n k8s.io tasks kill -s SIGTERM b"}},
		"a container within, by cgroupfs": {id: "process/cgroup", files: files{defaultConfig: "version = 3\n", "/proc/52/cgroup": "0::/system.slice/containerd.service/x\n"}, want: want{verdict: Pass}},
		"no cgroup":                       {id: "process/cgroup", unit: func(p *systemd.Properties) { p.ControlGroup = "" }, want: want{verdict: Unknown}},
		"nonsense cgroups":                {id: "process/cgroup", files: files{"/proc/42/cgroup": "x\n"}, want: want{verdict: Unknown}},

		"runs": {id: "process/exe", want: want{verdict: Pass, observed: systemd.Binary}},
		"replaced": {id: "process/exe", files: files{"/proc/42/exe": "-> " + systemd.Binary + " (deleted)"},
			want: want{verdict: Fail, observed: "was replaced since it started", place: "/proc/42/exe", remedy: "systemctl restart containerd.service"}},
		"removed": {id: "process/exe", files: files{"/proc/42/exe": "-> /opt/x (deleted)"}, want: want{verdict: Fail, observed: "/opt/x was removed since it started"}},
		"moved away": {id: "process/exe", files: files{"/proc/42/exe": "-> " + old, old: "x"}, unit: mixed,
			want: want{verdict: Fail, observed: old, wanted: systemd.Binary, remedy: "zz-nodeprep-killmode.conf && systemctl daemon-reload && systemctl restart"}},
		"by a link":    {id: "process/exe", files: files{"/proc/42/exe": "-> " + old, old: "x", systemd.Binary: "-> " + old}, want: want{verdict: Pass}},
		"not its exe":  {id: "process/exe", files: files{"/proc/42/exe": "no link"}, want: want{verdict: Unknown}},
		"runs nothing": {id: "process/exe", unit: func(p *systemd.Properties) { p.ExecStart = nil }, want: want{verdict: Unknown}},

		"shims run":  {id: "process/shim-exe", want: want{verdict: Pass, observed: "1 shims"}},
		"shim's exe": {id: "process/shim-exe", files: files{"/proc/50/exe": "-> /usr/local/bin/containerd-shim-runc-v2 (deleted)"}, want: want{verdict: Warn, observed: "1 of 1 shims run a program that was replaced since: 50", place: "/usr/local/bin/containerd-shim-runc-v2"}},
		"shim hides": {id: "process/shim-exe", files: files{"/proc/50/exe": "no link"}, want: want{verdict: Unknown, observed: "shim 50"}},

		"listens":         {id: "process/socket-owner", change: []func(*Outside){listens(42, nil)}, want: want{verdict: Pass, observed: "process 42", place: defaultAddress}},
		"another listens": {id: "process/socket-owner", change: []func(*Outside){listens(77, nil)}, files: files{"/proc/77/comm": "containerd\n", "/proc/77/cgroup": "0::/user.slice\n"}, want: want{verdict: Fail, observed: "process 77 (containerd)", wanted: "process 42 of containerd.service", place: defaultAddress, remedy: "kill 77\nsystemctl restart containerd.service"}},
		"another unit": {id: "process/socket-owner", change: []func(*Outside){listens(77, nil), func(o *Outside) {
			before := o.Units
			o.Units = func(ctx context.Context) (Units, error) {
				u, err := before(ctx)
				u.(units)["other.service"] = systemd.Properties{MainPID: 77}
				return u, err
			}
		}}, files: files{"/proc/77/cgroup": "0::/system.slice/other.service\n"}, want: want{verdict: Fail, observed: "process 77 (?) of other.service", remedy: "systemctl disable --now other.service\nsystemctl restart containerd.service"}},
		"a child of another unit":   {id: "process/socket-owner", change: []func(*Outside){listens(77, nil)}, files: files{"/proc/77/cgroup": "0::/system.slice/ssh.service\n"}, want: want{verdict: Fail, observed: "process 77 (?)", remedy: "kill 77\nsystemctl restart containerd.service"}},
		"a child listens":           {id: "process/socket-owner", change: []func(*Outside){listens(43, nil)}, files: files{"/proc/43/cgroup": ownCgroup}, want: want{verdict: Pass, observed: "process 43, in the unit's cgroup"}},
		"listens in a cgroup below": {id: "process/socket-owner", change: []func(*Outside){listens(43, nil)}, files: files{"/proc/43/cgroup": "0::/system.slice/containerd.service/daemon\n"}, want: want{verdict: Pass}},
		"nobody listens":            {id: "process/socket-owner", change: []func(*Outside){listens(0, errors.New("refused"))}, want: want{verdict: Pass, observed: "nobody else listens at " + defaultAddress}},
		"may not ask":               {id: "process/socket-owner", change: []func(*Outside){listens(0, fmt.Errorf("dial: %w", fs.ErrPermission))}, want: want{verdict: Unknown, observed: "permission denied"}},
		"from far away":             {id: "process/socket-owner", change: []func(*Outside){listens(0, nil)}, want: want{verdict: Unknown, observed: "outside of this PID namespace"}},
		"nobody to be asked":        {id: "process/socket-owner", want: want{verdict: Unknown}},
	} {
		t.Run(name, func(t *testing.T) {
			var changes []func(*systemd.Properties)
			if c.unit != nil {
				changes = append(changes, c.unit)
			}
			n := fake(t, runningHost(c.files), append([]func(*Outside){inForce(changes...), withDaemon(pod()), printsVersion("v2.1.9")}, c.change...)...)
			expect(t, n, c.id, c.want)
			for _, r := range results(t, n, c.id) {
				if (r.Verdict == Fail || r.Verdict == Warn) && r.Remedy == "" {
					t.Errorf("no remedy: %+v", r)
				}
			}
		})
	}
}

// Where the daemon cannot be asked, its own cgroup is told and its containers' are not.
func TestCgroupsWithoutTasks(t *testing.T) {
	n := fake(t, runningHost(nil), inForce(), withDaemon(nil), printsVersion("v2.1.9"))
	expect(t, n, "process/cgroup", want{verdict: Pass, observed: "the daemon in"}, want{verdict: Unknown, object: "containers", observed: "nobody listens"})
}

// The processes of others, and of nobody, are not measured by this unit.
func TestProcessChecksOfOthers(t *testing.T) {
	none := fake(t, stockHost(nil), inForce(func(p *systemd.Properties) { p.MainPID = 0 }))
	other := fake(t, runningHost(nil), inForce(func(p *systemd.Properties) { p.MainPID = 0 }), listens(42, nil), withDaemon(pod()), printsVersion("v2.1.9"))
	for _, c := range processChecks() {
		if c.ID == "process/pod-oom-score" {
			continue // whoever started them
		}
		if c.ID == "process/socket-owner" {
			// What the daemon says of itself is asked of it all the same.
			expect(t, other, c.ID, want{verdict: Pass, observed: "containerd.service does not run"})
			continue
		}
		expect(t, other, c.ID, want{verdict: Skip, observed: "process 42 is not of containerd.service"})
		expect(t, none, c.ID, want{verdict: Skip, observed: "no containerd runs here"})
	}
}

func TestConfigInForce(t *testing.T) {
	start := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC) // as systemd has it
	const env = "/etc/containerd/proxy.env"
	for name, c := range map[string]struct {
		changed map[string]time.Duration // after the start
		now     time.Duration            // after the start
		files   files
		unit    func(*systemd.Properties)
		wants   []want
	}{
		"before": {wants: []want{{verdict: Pass, observed: "2 files"}}},
		"since": {changed: map[string]time.Duration{defaultConfig: time.Hour},
			wants: []want{{verdict: Fail, object: defaultConfig, observed: "changed 2026-08-01 13:00:00", wanted: "before 2026-08-01 12:00:00", place: defaultConfig, remedy: "systemctl restart containerd.service"}}},
		"an import": {changed: map[string]time.Duration{"/etc/containerd/conf.d/a.toml": time.Second},
			wants: []want{{verdict: Fail, object: "/etc/containerd/conf.d/a.toml"}}},
		"its environment": {changed: map[string]time.Duration{env: time.Second}, unit: func(p *systemd.Properties) { p.EnvironmentFile = []string{env, "/etc/none"}; p.KillMode = "none" },
			wants: []want{{verdict: Fail, object: env, remedy: "KillMode=process > " + dropInDir + "zz-nodeprep-killmode.conf && systemctl daemon-reload && systemctl restart"}}},
		// The clock was an hour behind at the start, and was then set: 600 s of the uptime of
		// 1000 s are since the start, so that it was 10 minutes ago.
		"a board without a clock": {changed: map[string]time.Duration{defaultConfig: 30 * time.Minute}, now: 70 * time.Minute,
			files: files{"/proc/42/stat": "42 (con) tainerd) S 1" + strings.Repeat(" 0", 17) + " 40000 0 0\n", "/proc/uptime": "1000.00 1900.00\n"},
			wants: []want{{verdict: Pass}}},
		"a board, since": {changed: map[string]time.Duration{defaultConfig: 61 * time.Minute}, now: 70 * time.Minute,
			files: files{"/proc/42/stat": "42 (con) tainerd) S 1" + strings.Repeat(" 0", 17) + " 40000 0 0\n", "/proc/uptime": "1000.00 1900.00\n"},
			wants: []want{{verdict: Fail, wanted: "before 2026-08-01 13:00:00"}}},
		"a clock that went back": {changed: map[string]time.Duration{defaultConfig: -time.Hour}, now: -24 * time.Hour,
			files: files{"/proc/42/stat": "42 (containerd) S 1" + strings.Repeat(" 0", 17) + " 40000 0 0\n", "/proc/uptime": "1000.00 1900.00\n"},
			wants: []want{{verdict: Pass}}},
		"nothing tells": {unit: func(p *systemd.Properties) { p.MainStart = time.Time{} }, wants: []want{{verdict: Unknown}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := runningHost(files{
				defaultConfig:                   "version = 3\nimports = [\"/etc/containerd/conf.d/*.toml\"]\n",
				"/etc/containerd/conf.d/a.toml": "version = 3\n", env: "A=b\n",
			})
			for p, content := range c.files {
				f[p] = content
			}
			unit := func(*systemd.Properties) {}
			if c.unit != nil {
				unit = c.unit
			}
			n := fake(t, f, inForce(unit), printsVersion("v2.1.9"), func(o *Outside) { o.Host.Now = func() time.Time { return start.Add(c.now) } })
			for _, p := range []string{defaultConfig, "/etc/containerd/conf.d/a.toml", env} {
				at := start.Add(-time.Hour)
				if after, changed := c.changed[p]; changed {
					at = start.Add(after)
				}
				if err := os.Chtimes(filepath.Join(n.Host.Root.Dir(), p), at, at); err != nil {
					t.Fatal(err)
				}
			}
			expect(t, n, "process/config", c.wants...)
		})
	}
}

// What nodeprep wrote since the start says the same as before, or it would have restarted
// the daemon; what somebody else wrote may say anything.
func TestConfigThatNodeprepWroteIsInForce(t *testing.T) {
	start := time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC)
	for _, tt := range []struct {
		drift []Drift
		want  want
	}{
		{nil, want{verdict: Pass}},
		{[]Drift{{defaultConfig, "has other content than was written"}}, want{verdict: Fail, object: defaultConfig, remedy: "systemctl restart containerd.service"}},
	} {
		n := fake(t, runningHost(files{defaultConfig: "version = 3\n"}), inForce(), printsVersion("v2.1.9"), func(o *Outside) {
			o.Host.Now = func() time.Time { return start.Add(2 * time.Hour) }
			o.Receipt = &Receipt{Versions: map[string]string{"containerd": "2.1.9"}, Drift: func(context.Context) ([]Drift, error) { return tt.drift, nil }}
		})
		at := start.Add(time.Hour)
		if err := os.Chtimes(filepath.Join(n.Host.Root.Dir(), defaultConfig), at, at); err != nil {
			t.Fatal(err)
		}
		expect(t, n, "process/config", tt.want)
	}
}
