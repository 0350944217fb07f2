package checks

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

const stockUnit = `[Unit]
Description=containerd container runtime
After=network.target dbus.service

[Service]
ExecStart=/usr/local/bin/containerd
Type=notify
Delegate=yes
KillMode=process
Restart=always
LimitNPROC=infinity
LimitCORE=infinity
TasksMax=infinity
OOMScoreAdjust=-999

[Install]
WantedBy=multi-user.target
`

const unitWants = "/etc/systemd/system/multi-user.target.wants/containerd.service"

// stockHost is a host with upstream's unit, and what else is given.
func stockHost(more files) files {
	f := files{
		systemd.UnitPath:   stockUnit,
		unitWants:          "-> " + systemd.UnitPath,
		systemd.Binary:     "a program",
		"/proc/42/exe":     "-> " + systemd.Binary,
		"/proc/42/cmdline": systemd.Binary + "\x00",
	}
	for p, content := range more {
		f[p] = content
	}
	return f
}

// inForce is what systemd says of it, but for what change makes of that.
func inForce(change ...func(*systemd.Properties)) func(*Outside) {
	p := systemd.Properties{
		LoadState: "loaded", ActiveState: "active", SubState: "running", UnitFileState: "enabled", FragmentPath: systemd.UnitPath,
		After: []string{"network.target", "dbus.service", "sysinit.target"}, WantedBy: []string{"multi-user.target"}, ControlGroup: "/system.slice/containerd.service",
		Type: "notify", Result: "success", MainPID: 42, MainStart: time.Date(2026, 8, 1, 12, 0, 0, 0, time.UTC),
		Delegate: true, KillMode: "process", OOMScoreAdjust: -999, Restart: "always",
		LimitNOFILE: 524288, LimitNOFILESoft: 1024, LimitNPROC: systemd.Infinity, LimitCORE: systemd.Infinity, TasksMax: systemd.Infinity,
		ExecStart: [][]string{{systemd.Binary}},
	}
	for _, c := range change {
		c(&p)
	}
	return withUnits(units{systemd.UnitName: p})
}

// dropIns are those that systemd has read.
func dropIns(names ...string) func(*systemd.Properties) {
	return func(p *systemd.Properties) {
		for _, n := range names {
			p.DropInPaths = append(p.DropInPaths, dropInDir+n)
		}
	}
}

func unitProfile(change func(*profiles.Spec)) func(*Outside) {
	s := profiles.Spec{Systemd: profiles.Systemd{OOMScoreAdjust: -999, Delegate: true, KillMode: "process"}}
	s.Containerd.Version = releases.MustVersion("2.1.9")
	if change != nil {
		change(&s)
	}
	return withSpec(s)
}

// printsVersion has the program say its version.
func printsVersion(v string) func(*Outside) {
	return prints(map[string]string{systemd.Binary + " --version": "containerd github.com/containerd/containerd " + v + " abc"})
}

func TestUnitChecks(t *testing.T) {
	for name, c := range map[string]struct {
		id     string
		files  files
		unit   func(*systemd.Properties)
		change []func(*Outside)
		want   want
	}{
		"loaded":    {id: "unit/loaded", want: want{verdict: Pass, place: systemd.UnitPath}},
		"not there": {id: "unit/loaded", unit: func(p *systemd.Properties) { *p = systemd.Properties{LoadState: "not-found"} }, want: want{verdict: Fail, observed: "has not read /etc/systemd/system/containerd.service", remedy: "systemctl daemon-reload"}},
		"masked": {id: "unit/loaded", files: files{systemd.UnitPath: "-> /dev/null", "/usr/lib/systemd/system/containerd.service": stockUnit},
			unit: func(p *systemd.Properties) {
				*p = systemd.Properties{LoadState: "masked", FragmentPath: systemd.UnitPath}
			},
			want: want{verdict: Fail, observed: "masked: /etc/systemd/system/containerd.service is a link to /dev/null", place: systemd.UnitPath, remedy: "systemctl unmask containerd.service"}},
		"masked for now": {id: "unit/loaded", files: files{systemd.UnitPath: "", "/run/systemd/system/containerd.service": "-> /dev/null"},
			unit: func(p *systemd.Properties) { *p = systemd.Properties{LoadState: "masked"} },
			want: want{verdict: Fail, observed: "containerd.service is empty", remedy: "systemctl unmask containerd.service\n# install"}},
		"masked in place of ours": {id: "unit/loaded", files: files{systemd.UnitPath: "-> /dev/null", "/etc/nodeprep/profile.yaml": "x"},
			unit: func(p *systemd.Properties) { *p = systemd.Properties{LoadState: "masked"} }, change: []func(*Outside){unitProfile(nil)},
			want: want{verdict: Fail, remedy: "systemctl unmask containerd.service\nnodeprep apply"}},
		"no command": {id: "unit/loaded", files: files{dropInDir + "a.conf": "[Service]\nExecStart=\n"},
			unit: func(p *systemd.Properties) {
				p.LoadState, p.LoadError, p.ExecStart = "bad-setting", "Unit containerd.service has a bad unit file setting.", nil
				dropIns("a.conf")(p)
			},
			want: want{verdict: Fail, observed: "bad-setting: Unit containerd.service has a bad", place: dropInDir + "a.conf:2", remedy: "'[Service]' ExecStart= ExecStart=/usr/local/bin/containerd > " + dropInDir + "zz-nodeprep-execstart.conf\nsystemctl daemon-reload"}},
		"broken otherwise": {id: "unit/loaded", unit: func(p *systemd.Properties) { p.LoadState, p.LoadError = "error", "Too many levels" },
			want: want{verdict: Fail, observed: "error: Too many levels", place: systemd.UnitPath, remedy: "systemd-analyze verify /etc/systemd/system/containerd.service\nsystemctl daemon-reload"}},

		"leads nowhere": {id: "unit/loaded", files: files{systemd.UnitPath: "-> /opt/unit", "/usr/lib/systemd/system/containerd.service": stockUnit}, unit: func(p *systemd.Properties) { *p = systemd.Properties{LoadState: "not-found"} },
			want: want{verdict: Fail, observed: "is a link that leads nowhere", place: systemd.UnitPath, remedy: "rm " + systemd.UnitPath + "\nsystemctl daemon-reload"}},

		"one fragment": {id: "unit/fragment", want: want{verdict: Pass, observed: systemd.UnitPath}},
		"a hidden one": {id: "unit/fragment", files: files{"/usr/lib/systemd/system/containerd.service": stockUnit},
			want: want{verdict: Warn, observed: systemd.UnitPath + " hides /usr/lib/systemd/system/containerd.service", place: "/usr/lib/systemd/system/containerd.service", remedy: "dpkg -S"}},
		"another than ours": {id: "unit/fragment", files: files{"/run/systemd/system.control/containerd.service": stockUnit}, change: []func(*Outside){unitProfile(nil)},
			unit: func(p *systemd.Properties) { p.FragmentPath = "/run/systemd/system.control/containerd.service" },
			want: want{verdict: Warn, wanted: systemd.UnitPath, place: "/run/systemd/system.control/containerd.service", remedy: "systemctl daemon-reload"}},
		"/lib is /usr/lib": {id: "unit/fragment", files: files{systemd.UnitPath: "-> /usr/lib/systemd/system/containerd.service", "/lib": "-> usr/lib", "/usr/lib/systemd/system/containerd.service": stockUnit},
			unit: func(p *systemd.Properties) { p.FragmentPath = "/lib/systemd/system/containerd.service" },
			want: want{verdict: Pass}},

		"no drop-ins": {id: "unit/drop-ins", want: want{verdict: Pass, observed: "0 drop-ins"}},
		"proxies of somebody": {id: "unit/drop-ins", files: files{dropInDir + "proxy.conf": "[Unit]\nAfter=x.service\n[Service]\nEnvironment=HTTPS_PROXY=http://x\n", systemd.ProxyPath: "[Service]\nKillMode=mixed\n", dropInDir + "same.conf": "[Service]\nKillMode=process\n"},
			unit: dropIns("20-nodeprep-proxy.conf", "proxy.conf", "same.conf"), want: want{verdict: Pass, observed: "3 drop-ins"}},
		"a drop-in": {id: "unit/drop-ins", files: files{dropInDir + "x.conf": "# why\n[Service]\nEnvironment=A=b\nTimeoutStopSec=\nKillMode=mixed\nTimeoutStopSec=1\n"}, unit: dropIns("x.conf"),
			want: want{verdict: Warn, object: dropInDir + "x.conf", observed: "sets KillMode=mixed over KillMode=process, TimeoutStopSec=1 over nothing", place: dropInDir + "x.conf:5", remedy: "mv " + dropInDir + "x.conf " + dropInDir + "x.conf.off\nsystemctl daemon-reload"}},

		"enabled":      {id: "unit/enabled", want: want{verdict: Pass, observed: "enabled"}},
		"disabled":     {id: "unit/enabled", unit: func(p *systemd.Properties) { p.UnitFileState, p.WantedBy = "disabled", nil }, want: want{verdict: Fail, observed: "disabled", wanted: "enabled", remedy: "systemctl enable containerd.service"}},
		"until reboot": {id: "unit/enabled", unit: func(p *systemd.Properties) { p.UnitFileState = "enabled-runtime" }, want: want{verdict: Fail, observed: "enabled-runtime", remedy: "systemctl enable containerd.service"}},
		"by another":   {id: "unit/enabled", unit: func(p *systemd.Properties) { p.UnitFileState, p.WantedBy = "disabled", []string{"docker.service"} }, want: want{verdict: Warn, observed: "disabled, started by docker.service"}},
		"by another that comes up": {id: "unit/enabled", change: []func(*Outside){withUnits(units{
			systemd.UnitName: {LoadState: "loaded", UnitFileState: "disabled", RequiredBy: []string{"kubelet.service"}, FragmentPath: systemd.UnitPath}, "kubelet.service": {UnitFileState: "enabled"},
		})}, want: want{verdict: Pass, observed: "disabled, started by kubelet.service"}},
		"by another that does not": {id: "unit/enabled", change: []func(*Outside){withUnits(units{
			systemd.UnitName: {LoadState: "loaded", UnitFileState: "disabled", BoundBy: []string{"kubelet.service"}, FragmentPath: systemd.UnitPath}, "kubelet.service": {UnitFileState: "disabled"},
		})}, want: want{verdict: Warn, observed: "disabled, started by kubelet.service", remedy: "systemctl enable containerd.service"}},
		"upheld": {id: "unit/enabled", unit: func(p *systemd.Properties) {
			p.UnitFileState, p.WantedBy, p.UpheldBy = "disabled", nil, []string{"multi-user.target"}
		}, want: want{verdict: Pass, observed: "disabled, started by multi-user.target"}},
		"static":        {id: "unit/enabled", unit: func(p *systemd.Properties) { p.UnitFileState, p.WantedBy = "static", nil }, want: want{verdict: Fail, observed: "static", remedy: "systemctl add-wants multi-user.target containerd.service"}},
		"static wanted": {id: "unit/enabled", unit: func(p *systemd.Properties) { p.UnitFileState = "static" }, want: want{verdict: Pass, observed: "static, started by multi-user.target"}},
		"no file":       {id: "unit/enabled", unit: func(p *systemd.Properties) { p.UnitFileState = "" }, want: want{verdict: Fail, observed: "unknown to systemd"}},

		"active":    {id: "unit/active", want: want{verdict: Pass, observed: "active/running"}},
		"reloading": {id: "unit/active", unit: func(p *systemd.Properties) { p.ActiveState = "reloading" }, want: want{verdict: Pass}},
		"failed": {id: "unit/active", unit: func(p *systemd.Properties) {
			p.ActiveState, p.SubState, p.Result, p.ExecMainCode, p.ExecMainStatus = "failed", "failed", "exit-code", 1, 203
		}, want: want{verdict: Fail, observed: "result exit-code, exit status 203 (its binary cannot be executed), state failed/failed", wanted: "active", remedy: "journalctl -u containerd.service -n 50 --no-pager\nsystemctl reset-failed containerd.service\nsystemctl start containerd.service"}},
		"again and again": {id: "unit/active", unit: func(p *systemd.Properties) { p.ActiveState, p.SubState, p.NRestarts = "activating", "auto-restart", 7 },
			want: want{verdict: Fail, observed: "state activating/auto-restart, restarted 7 times"}},

		"no restarts": {id: "unit/restarts", want: want{verdict: Pass}},
		"restarts":    {id: "unit/restarts", unit: func(p *systemd.Properties) { p.NRestarts = 3 }, want: want{verdict: Warn, observed: "3 times", remedy: "systemctl reset-failed containerd.service"}},

		"protected":         {id: "unit/oom-score-adjust", want: want{verdict: Pass, observed: "-999", place: systemd.UnitPath + ":14"}},
		"protected enough":  {id: "unit/oom-score-adjust", unit: func(p *systemd.Properties) { p.OOMScoreAdjust = -998 }, want: want{verdict: Pass}},
		"as a pod":          {id: "unit/oom-score-adjust", unit: func(p *systemd.Properties) { p.OOMScoreAdjust = -997 }, want: want{verdict: Fail, observed: "-997", wanted: "-999"}},
		"as in the profile": {id: "unit/oom-score-adjust", unit: func(p *systemd.Properties) { p.OOMScoreAdjust = -500 }, change: []func(*Outside){unitProfile(func(s *profiles.Spec) { s.Systemd.OOMScoreAdjust = -500 })}, want: want{verdict: Pass, observed: "-500"}},
		"not in the profile": {id: "unit/oom-score-adjust", change: []func(*Outside){unitProfile(func(s *profiles.Spec) { s.Systemd.OOMScoreAdjust = -500 })},
			want: want{verdict: Fail, observed: "-999", wanted: "-500"}},
		"a drop-in takes it": {id: "unit/oom-score-adjust", files: files{dropInDir + "zz.conf": "[Service]\n\nOOMScoreAdjust=0\n"},
			unit: func(p *systemd.Properties) { p.OOMScoreAdjust = 0; dropIns("zz.conf")(p) },
			want: want{verdict: Fail, observed: "0", place: dropInDir + "zz.conf:3",
				remedy: "install -d /etc/systemd/system/containerd.service.d\nprintf '%s\\n' '[Service]' OOMScoreAdjust=-999 > " + dropInDir + "zz_nodeprep.conf\nsystemctl daemon-reload\necho -999 > /proc/42/oom_score_adj"}},
		"nobody sets it": {id: "unit/oom-score-adjust", files: files{systemd.UnitPath: "[Service]\nExecStart=/x\n"}, unit: func(p *systemd.Properties) { p.OOMScoreAdjust, p.MainPID = 0, 0 },
			want: want{verdict: Fail, observed: "0, not set: systemd's default", place: systemd.UnitPath, remedy: "zz-nodeprep-oomscoreadjust.conf\nsystemctl daemon-reload"}},

		"delegated": {id: "unit/delegate", want: want{verdict: Pass, observed: "yes", place: systemd.UnitPath + ":8"}},
		"not delegated": {id: "unit/delegate", files: files{dropInDir + "a.conf": "[Service]\nDelegate=no\n"}, unit: func(p *systemd.Properties) { p.Delegate = false; dropIns("a.conf")(p) },
			want: want{verdict: Fail, observed: "no", wanted: "yes", place: dropInDir + "a.conf:2", remedy: "Delegate=yes > " + dropInDir + "zz-nodeprep-delegate.conf\n"}},
		"delegated in part": {id: "unit/delegate", files: files{dropInDir + "a.conf": "[Service]\nDelegate=cpu\n"}, unit: func(p *systemd.Properties) { p.DelegateControllers = []string{"cpu"}; dropIns("a.conf")(p) },
			want: want{verdict: Warn, observed: "cpu, without memory, pids", wanted: "yes", place: dropInDir + "a.conf:2", remedy: "Delegate=yes"}},
		"delegated by name": {id: "unit/delegate", unit: func(p *systemd.Properties) { p.DelegateControllers = []string{"pids", "memory", "cpu", "io"} }, want: want{verdict: Pass}},
		"not wanted":        {id: "unit/delegate", unit: func(p *systemd.Properties) { p.Delegate = false }, change: []func(*Outside){unitProfile(func(s *profiles.Spec) { s.Systemd.Delegate = false })}, want: want{verdict: Pass}},

		"kills itself alone": {id: "unit/kill-mode", want: want{verdict: Pass, observed: "process", place: systemd.UnitPath + ":9"}},
		"kills all": {id: "unit/kill-mode", files: files{dropInDir + "k.conf": "[Service]\nKillMode=control-group\nKillMode=bogus\n"}, unit: func(p *systemd.Properties) { p.KillMode = "control-group"; dropIns("k.conf")(p) },
			want: want{verdict: Fail, observed: "control-group", wanted: "process", place: dropInDir + "k.conf:2", remedy: "KillMode=process > " + dropInDir + "zz-nodeprep-killmode.conf\nsystemctl daemon-reload"}},
		"kills none":     {id: "unit/kill-mode", unit: func(p *systemd.Properties) { p.KillMode = "none" }, want: want{verdict: Fail, observed: "none"}},
		"kills after":    {id: "unit/kill-mode", unit: func(p *systemd.Properties) { p.KillMode = "mixed" }, want: want{verdict: Fail, observed: "mixed"}},
		"kills as meant": {id: "unit/kill-mode", unit: func(p *systemd.Properties) { p.KillMode = "mixed" }, change: []func(*Outside){unitProfile(func(s *profiles.Spec) { s.Systemd.KillMode = "mixed" })}, want: want{verdict: Pass, observed: "mixed"}},
		"kills by default": {id: "unit/kill-mode", files: files{systemd.UnitPath: "[Service]\nExecStart=/x\n"}, unit: func(p *systemd.Properties) { p.KillMode = "control-group" },
			want: want{verdict: Fail, observed: "control-group, not set: systemd's default", place: systemd.UnitPath}},
		"the last of them": {id: "unit/kill-mode", files: files{dropInDir + "zzzz.conf": "[Service]\nKillMode=mixed\n", dropInDir + "zz-nodeprep-killmode.conf": "[Service]\nKillMode=process\n"},
			unit: func(p *systemd.Properties) {
				p.KillMode = "mixed"
				dropIns("zz-nodeprep-killmode.conf", "zzzz.conf")(p)
			},
			want: want{verdict: Fail, place: dropInDir + "zzzz.conf:2", remedy: "> " + dropInDir + "zzzz_nodeprep.conf"}},

		"notify":        {id: "unit/type", want: want{verdict: Pass, observed: "notify"}},
		"notify-reload": {id: "unit/type", unit: func(p *systemd.Properties) { p.Type = "notify-reload" }, want: want{verdict: Pass}},
		"simple":        {id: "unit/type", unit: func(p *systemd.Properties) { p.Type = "simple" }, want: want{verdict: Warn, observed: "simple", wanted: "notify", place: systemd.UnitPath + ":7", remedy: "Type=notify > " + dropInDir + "zz-nodeprep-type.conf"}},

		"always":     {id: "unit/restart", want: want{verdict: Pass, observed: "always"}},
		"on failure": {id: "unit/restart", unit: func(p *systemd.Properties) { p.Restart = "on-failure" }, want: want{verdict: Warn, observed: "on-failure", wanted: "always", remedy: "Restart=always"}},

		"tasks":     {id: "unit/tasks-max", want: want{verdict: Pass, observed: "infinity"}},
		"few tasks": {id: "unit/tasks-max", unit: func(p *systemd.Properties) { p.TasksMax = 4915 }, want: want{verdict: Warn, observed: "4915", wanted: "infinity", place: systemd.UnitPath + ":13", remedy: "TasksMax=infinity"}},

		"processes":     {id: "unit/limit-nproc", want: want{verdict: Pass, observed: "infinity"}},
		"few processes": {id: "unit/limit-nproc", unit: func(p *systemd.Properties) { p.LimitNPROC = 1000 }, want: want{verdict: Warn, observed: "1000", remedy: "LimitNPROC=infinity"}},
		"core":          {id: "unit/limit-core", want: want{verdict: Pass, observed: "infinity"}},
		"no core":       {id: "unit/limit-core", unit: func(p *systemd.Properties) { p.LimitCORE = 0 }, want: want{verdict: Warn, observed: "0", remedy: "LimitCORE=infinity"}},

		"files": {id: "unit/limit-nofile", want: want{verdict: Pass, observed: "1024:524288"}},
		"few files": {id: "unit/limit-nofile", unit: func(p *systemd.Properties) { p.LimitNOFILE = 4096 },
			want: want{verdict: Warn, observed: "1024:4096, not set: systemd's default", wanted: "1024:524288", remedy: "LimitNOFILE=1024:524288"}},
		"no limit with 2.x": {id: "unit/limit-nofile", unit: func(p *systemd.Properties) { p.LimitNOFILE = systemd.Infinity }, change: []func(*Outside){printsVersion("v2.1.9")},
			want: want{verdict: Warn, observed: "1024:infinity", wanted: "1024:524288"}},
		"no limit with 1.7":     {id: "unit/limit-nofile", unit: func(p *systemd.Properties) { p.LimitNOFILE = systemd.Infinity }, change: []func(*Outside){printsVersion("v1.7.24")}, want: want{verdict: Pass}},
		"no limit, no version":  {id: "unit/limit-nofile", unit: func(p *systemd.Properties) { p.LimitNOFILE = 1 << 30 }, want: want{verdict: Warn}},
		"files of the profile":  {id: "unit/limit-nofile", unit: func(p *systemd.Properties) { p.LimitNOFILE, p.LimitNOFILESoft = 2048, 2048 }, change: []func(*Outside){unitProfile(func(s *profiles.Spec) { s.Systemd.LimitNOFILE = "2048" })}, want: want{verdict: Pass, observed: "2048:2048"}},
		"not of the profile":    {id: "unit/limit-nofile", change: []func(*Outside){unitProfile(func(s *profiles.Spec) { s.Systemd.LimitNOFILE = "1024:infinity" })}, want: want{verdict: Warn, wanted: "1024:infinity", remedy: "LimitNOFILE=1024:infinity"}},
		"files of the old ones": {id: "unit/limit-nofile", unit: func(p *systemd.Properties) { p.LimitNOFILE = 1048576 }, want: want{verdict: Pass}},

		"runs": {id: "unit/exec-start", want: want{verdict: Pass, observed: systemd.Binary, place: systemd.UnitPath + ":6"}},
		"runs what is not there": {id: "unit/exec-start", files: files{dropInDir + "x.conf": "[Service]\nExecStart=\nExecStart=/opt/containerd\n"},
			unit: func(p *systemd.Properties) { p.ExecStart = [][]string{{"/opt/containerd"}}; dropIns("x.conf")(p) },
			want: want{verdict: Fail, observed: "/opt/containerd does not exist", place: dropInDir + "x.conf:3", remedy: "ExecStart= ExecStart=/usr/local/bin/containerd > " + dropInDir + "zz-nodeprep-execstart.conf"}},
		"runs a folder": {id: "unit/exec-start", files: files{"/opt/containerd/": ""}, unit: func(p *systemd.Properties) { p.ExecStart = [][]string{{"/opt/containerd"}} },
			want: want{verdict: Fail, observed: "is a directory"}},
		"runs another's": {id: "unit/exec-start", files: files{"/usr/bin/containerd": "x"}, unit: func(p *systemd.Properties) { p.ExecStart = [][]string{{"/usr/bin/containerd"}} }, change: []func(*Outside){unitProfile(nil)},
			want: want{verdict: Fail, observed: "/usr/bin/containerd", wanted: systemd.Binary, remedy: "ExecStart=/usr/local/bin/containerd"}},
		"runs a package's":   {id: "unit/exec-start", files: files{"/usr/bin/containerd": "x"}, unit: func(p *systemd.Properties) { p.ExecStart = [][]string{{"/usr/bin/containerd"}} }, want: want{verdict: Pass}},
		"runs with a config": {id: "unit/exec-start", files: files{"/etc/c.toml": ""}, unit: func(p *systemd.Properties) { p.ExecStart = [][]string{{systemd.Binary, "--config=/etc/c.toml"}} }, want: want{verdict: Pass}},
		"config is gone": {id: "unit/exec-start", unit: func(p *systemd.Properties) { p.ExecStart = [][]string{{systemd.Binary, "-c", "/etc/x/c.toml"}} },
			want: want{verdict: Fail, observed: "/etc/x/c.toml does not exist", remedy: "install -d /etc/x\n/usr/local/bin/containerd config default > /etc/x/c.toml"}},
		"config is elsewhere": {id: "unit/exec-start", files: files{defaultConfig: ""}, unit: func(p *systemd.Properties) { p.ExecStart = [][]string{{systemd.Binary, "-c", "/etc/x/c.toml"}} },
			want: want{verdict: Fail, observed: "/etc/x/c.toml does not exist", remedy: "ExecStart= ExecStart=/usr/local/bin/containerd >"}},
		"runs nothing": {id: "unit/exec-start", unit: func(p *systemd.Properties) { p.ExecStart = nil }, want: want{verdict: Unknown}},

		"ordered":              {id: "unit/ordering", change: []func(*Outside){printsVersion("v1.7.24")}, want: want{verdict: Pass, observed: "after dbus.service local-fs.target network.target"}},
		"dbus by another name": {id: "unit/ordering", unit: func(p *systemd.Properties) { p.After = []string{"dbus-broker.service"} }, want: want{verdict: Pass}},
		"before dbus": {id: "unit/ordering", files: files{systemd.UnitPath: "[Unit]\nAfter=network.target\n"}, unit: func(p *systemd.Properties) { p.After = []string{"network.target", "sysinit.target"} }, change: []func(*Outside){printsVersion("v1.7.24")},
			want: want{verdict: Warn, observed: "not after dbus.service", wanted: "After=dbus.service", place: systemd.UnitPath + ":2", remedy: "'[Unit]' After=dbus.service > " + dropInDir + "zz-nodeprep-after.conf"}},
		"not after the profile's": {id: "unit/ordering", change: []func(*Outside){unitProfile(func(s *profiles.Spec) { s.Systemd.After = []string{"tailscaled.service"} }), printsVersion("v2.1.9")},
			want: want{verdict: Warn, observed: "not after tailscaled.service"}},
		"a late disk": {id: "unit/ordering", files: files{"/proc/self/mountinfo": "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var/lib/containerd rw - ext4 /dev/sdb1 rw\n", "/etc/fstab": "\n/dev/sdb1 /var/lib/containerd ext4 defaults,nofail 0 2\n", "/var/lib/containerd/": ""},
			want: want{verdict: Warn, observed: "/var/lib/containerd may be mounted after", wanted: "RequiresMountsFor=/var/lib/containerd", place: "/etc/fstab:2", remedy: "RequiresMountsFor=/var/lib/containerd >"}},
		"a disk by hand": {id: "unit/ordering", files: files{"/proc/self/mountinfo": "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var/lib/containerd rw - ext4 /dev/sdb1 rw\n", "/var/lib/containerd/": ""},
			want: want{verdict: Warn, place: "/proc/self/mountinfo"}},
		"a mount unit": {id: "unit/ordering", files: files{"/proc/self/mountinfo": "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var/lib rw - ext4 /dev/sdb1 rw\n", "/etc/systemd/system/var-lib.mount": "x", "/var/lib/containerd/": ""},
			want: want{verdict: Pass}},
		"a disk in time": {id: "unit/ordering", files: files{"/proc/self/mountinfo": "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var rw - ext4 /dev/sdb1 rw\n", "/etc/fstab": "/dev/sdb1 /var ext4 defaults 0 2\n", "/var/lib/containerd/": ""},
			want: want{verdict: Pass}},
		"a disk waited for": {id: "unit/ordering", files: files{"/proc/self/mountinfo": "1 0 8:1 / / rw - ext4 /dev/sda1 rw\n2 1 8:2 / /var/lib/containerd rw - ext4 /dev/sdb1 rw\n", "/var/lib/containerd/": ""}, unit: func(p *systemd.Properties) { p.RequiresMountsFor = []string{"/var/lib/containerd"} },
			want: want{verdict: Pass}},

		"read": {id: "unit/daemon-reload", want: want{verdict: Pass}},
		"a new drop-in": {id: "unit/daemon-reload", files: files{dropInDir + "n.conf": "[Service]\nKillMode=mixed\n"}, unit: func(p *systemd.Properties) { p.NeedDaemonReload = true },
			want: want{verdict: Fail, observed: "has not read " + dropInDir + "n.conf", place: dropInDir + "n.conf", remedy: "systemctl daemon-reload"}},
		"a drop-in in a new folder": {id: "unit/daemon-reload", files: files{dropInDir + "n.conf": "[Service]\nKillMode=mixed\n"}, want: want{verdict: Fail, place: dropInDir + "n.conf", remedy: "systemctl daemon-reload"}},
		"a unit that has precedence": {id: "unit/daemon-reload", files: files{"/usr/lib/systemd/system/containerd.service": stockUnit}, unit: func(p *systemd.Properties) { p.FragmentPath = "/usr/lib/systemd/system/containerd.service" },
			want: want{verdict: Fail, observed: "has not read " + systemd.UnitPath, place: systemd.UnitPath}},
		"masked drop-ins and those for all": {id: "unit/daemon-reload", files: files{dropInDir + "m.conf": "-> /dev/null", "/etc/systemd/system/service.d/a.conf": "[Service]\n"}, unit: dropIns("m.conf"), want: want{verdict: Pass}},
		"a drop-in is gone": {id: "unit/daemon-reload", unit: func(p *systemd.Properties) { p.NeedDaemonReload = true; dropIns("g.conf")(p) },
			want: want{verdict: Fail, observed: dropInDir + "g.conf is gone and in force", place: dropInDir + "g.conf"}},
		"a changed unit": {id: "unit/daemon-reload", unit: func(p *systemd.Properties) { p.NeedDaemonReload = true },
			want: want{verdict: Fail, observed: systemd.UnitPath + " was changed", place: systemd.UnitPath}},

		"a link to nowhere":                    {id: "unit/daemon-reload", files: files{dropInDir + "50-gone.conf": "-> /opt/removed/x.conf"}, want: want{verdict: Pass}},
		"a link to nowhere, which systemd has": {id: "unit/daemon-reload", files: files{dropInDir + "50-gone.conf": "-> /opt/removed/x.conf"}, unit: func(p *systemd.Properties) { p.NeedDaemonReload = true; dropIns("50-gone.conf")(p) }, want: want{verdict: Pass}},
		"a link to nowhere, and a change": {id: "unit/daemon-reload", files: files{dropInDir + "50-gone.conf": "-> /opt/removed/x.conf"}, unit: func(p *systemd.Properties) {
			p.NeedDaemonReload, p.KillMode = true, "mixed"
			dropIns("50-gone.conf")(p)
		}, want: want{verdict: Fail, remedy: "systemctl daemon-reload"}},

		"open": {id: "unit/sandboxing", want: want{verdict: Pass}},
		"confined": {id: "unit/sandboxing", files: files{dropInDir + "s.conf": "[Service]\nProtectSystem=full\n"}, unit: func(p *systemd.Properties) {
			p.Confined = []systemd.Setting{{Name: "ProtectSystem", Value: "full"}}
			dropIns("s.conf")(p)
		}, want: want{verdict: Warn, object: "ProtectSystem", observed: "full", place: dropInDir + "s.conf:2", remedy: "ProtectSystem=no > " + dropInDir + "zz-nodeprep-protectsystem.conf\nsystemctl daemon-reload\nsystemctl restart containerd.service"}},
		"slave mounts": {id: "unit/sandboxing", unit: func(p *systemd.Properties) {
			p.Confined = []systemd.Setting{{Name: "MountFlags", Value: "slave"}}
			p.KillMode = "mixed"
		},
			want: want{verdict: Warn, observed: "slave", remedy: "KillMode=process > " + dropInDir + "zz-nodeprep-killmode.conf && systemctl daemon-reload && systemctl restart containerd.service"}},

		"no variables": {id: "unit/environment", want: want{verdict: Pass, observed: "0 variables"}},
		"plain variables": {id: "unit/environment", unit: func(p *systemd.Properties) {
			p.Environment = []string{"HTTPS_PROXY=http://proxy:3128", "NO_PROXY=a@b", "TOKEN_FILE=/x", "AWS_SECRET=/etc/x", "A=http://u@h", "B=x y:z@"}
		}, want: want{verdict: Pass, observed: "6 variables"}},
		"a password": {id: "unit/environment", files: files{dropInDir + "p.conf": "[Service]\nEnvironment=\"HTTPS_PROXY=http://joe:hunter2@proxy:3128\" A=b\n"},
			unit: func(p *systemd.Properties) {
				p.Environment = []string{"HTTPS_PROXY=http://joe:hunter2@proxy:3128", "A=b"}
				dropIns("p.conf")(p)
			},
			want: want{verdict: Warn, object: "HTTPS_PROXY", place: dropInDir + "p.conf:2", remedy: "systemctl daemon-reload"}},
		"a password without a scheme": {id: "unit/environment", unit: func(p *systemd.Properties) { p.Environment = []string{"HTTP_PROXY=joe:hunter2@proxy:3128"} }, want: want{verdict: Warn, object: "HTTP_PROXY", place: "containerd.service", remedy: "systemctl cat"}},
		"a password with %":           {id: "unit/environment", unit: func(p *systemd.Properties) { p.Environment = []string{"HTTP_PROXY=http://joe:hunter2%@proxy:3128"} }, want: want{verdict: Warn}},
		"a token":                     {id: "unit/environment", unit: func(p *systemd.Properties) { p.Environment = []string{"API_TOKEN=hunter2"} }, want: want{verdict: Warn, object: "API_TOKEN"}},
	} {
		t.Run(name, func(t *testing.T) {
			var changes []func(*systemd.Properties)
			if c.unit != nil {
				changes = append(changes, c.unit)
			}
			n := fake(t, stockHost(c.files), append([]func(*Outside){inForce(changes...)}, c.change...)...)
			expect(t, n, c.id, c.want)
			for _, r := range results(t, n, c.id) {
				if strings.Contains(strings.Join([]string{r.Observed, r.Wanted, r.Place, r.Remedy, r.Note}, " "), "hunter2") {
					t.Errorf("it shows the password: %+v", r)
				}
				if r.Verdict != Pass && r.Verdict != Unknown && r.Remedy == "" {
					t.Errorf("no remedy: %+v", r)
				}
			}
		})
	}
}

// What somebody did to nodeprep's own files is taken back; only what others wrote is
// overridden by a drop-in.
func TestRemedyForOwnFiles(t *testing.T) {
	const (
		apply  = "nodeprep apply --adopt -f /root/node.yaml"
		proxy  = "HTTPS_PROXY=http://joe:hunter2@proxy:3128"
		edited = "has other content than was written"
	)
	all := func(p *systemd.Properties) { p.KillMode = "control-group" }
	for name, c := range map[string]struct {
		id     string
		files  files
		unit   func(*systemd.Properties)
		drift  []Drift
		remedy string
		start  bool // of the remedy, which has more
	}{
		"the unit edited":      {id: "unit/kill-mode", files: files{systemd.UnitPath: strings.Replace(stockUnit, "KillMode=process", "KillMode=control-group", 1)}, unit: all, drift: []Drift{{systemd.UnitPath, edited}}, remedy: apply},
		"a line taken out":     {id: "unit/kill-mode", files: files{systemd.UnitPath: strings.Replace(stockUnit, "KillMode=process\n", "", 1)}, unit: all, drift: []Drift{{systemd.UnitPath, edited}}, remedy: apply},
		"the unit's type":      {id: "unit/type", files: files{systemd.UnitPath: strings.Replace(stockUnit, "notify", "simple", 1)}, unit: func(p *systemd.Properties) { p.Type = "simple" }, drift: []Drift{{systemd.UnitPath, edited}}, remedy: apply},
		"a drop-in of another": {id: "unit/kill-mode", files: files{dropInDir + "k.conf": "[Service]\nKillMode=control-group\n"}, unit: func(p *systemd.Properties) { all(p); dropIns("k.conf")(p) }, drift: []Drift{{systemd.UnitPath, edited}}, remedy: "install -d ", start: true},
		"not edited":           {id: "unit/kill-mode", unit: all, remedy: "install -d ", start: true},
		"its own drop-in edited": {id: "unit/kill-mode", files: files{systemd.EnvironmentPath: "[Service]\nKillMode=control-group\n"}, unit: func(p *systemd.Properties) { all(p); dropIns("10-nodeprep-environment.conf")(p) },
			drift: []Drift{{systemd.EnvironmentPath, edited}}, remedy: apply},
		"its proxies edited": {id: "unit/environment", files: files{systemd.ProxyPath: "[Service]\nEnvironment=" + proxy + "\n"}, unit: func(p *systemd.Properties) {
			p.Environment = []string{proxy}
			dropIns("20-nodeprep-proxy.conf")(p)
		}, drift: []Drift{{systemd.ProxyPath, edited}}, remedy: apply},
		"its environment": {id: "unit/environment", files: files{systemd.EnvironmentPath: "[Service]\nEnvironment=" + proxy + "\n"}, unit: func(p *systemd.Properties) {
			p.Environment = []string{proxy}
			dropIns("10-nodeprep-environment.conf")(p)
		}, remedy: "# take it out of the profile's systemd.environment", start: true},
	} {
		n := fake(t, stockHost(c.files), inForce(c.unit), receipt(c.drift...), unitProfile(nil))
		got := results(t, n, c.id)[0].Remedy
		if got != c.remedy && (!c.start || !strings.HasPrefix(got, c.remedy)) {
			t.Errorf("%s: the remedy is %s, want %s", name, got, c.remedy)
		}
		if strings.Contains(got, "sed -i") {
			t.Errorf("%s: the remedy edits a file of nodeprep's: %s", name, got)
		}
	}
}

// What each KillMode leads to is another thing.
func TestKillModesConsequences(t *testing.T) {
	seen := map[string]bool{}
	for _, mode := range []string{"none", "mixed", "control-group"} {
		n := fake(t, stockHost(nil), inForce(func(p *systemd.Properties) { p.KillMode = mode }))
		note := results(t, n, "unit/kill-mode")[0].Note
		if note == "" || seen[note] {
			t.Errorf("%s leads to %q", mode, note)
		}
		seen[note] = true
	}
}

// A profile that wants containers killed gets its restart, with a word of warning.
func TestRestartRemedy(t *testing.T) {
	mixed := func(s *profiles.Spec) { s.Systemd.KillMode = "mixed" }
	n := fake(t, stockHost(nil), inForce(func(p *systemd.Properties) { p.KillMode = "mixed" }), unitProfile(mixed))
	s, err := n.service()
	if err != nil {
		t.Fatal(err)
	}
	if got := n.restart(s); !strings.HasPrefix(got, "# with KillMode=mixed this ends") || !strings.HasSuffix(got, "\nsystemctl restart containerd.service") {
		t.Errorf("%s", got)
	}
}

func TestUnitThatIsNotThere(t *testing.T) {
	gone := inForce(func(p *systemd.Properties) { *p = systemd.Properties{LoadState: "not-found"} })
	// A host without any containerd has nothing to be faulted for.
	expect(t, fake(t, files{}, gone), "unit/loaded", want{verdict: Skip, observed: "no containerd is installed"})
	expect(t, fake(t, files{}, gone, unitProfile(nil)), "unit/loaded", want{verdict: Fail, observed: "no containerd.service", place: systemd.UnitPath, remedy: "nodeprep apply"})
	expect(t, fake(t, files{"/usr/bin/containerd": "x"}, gone), "unit/loaded", want{verdict: Fail, remedy: "# install the package"})

	// Docker's static binaries start a containerd of their own.
	docker := files{"/usr/local/bin/dockerd": "x", "/usr/local/bin/containerd": "x"}
	expect(t, fake(t, docker, gone), "unit/loaded", want{verdict: Skip, observed: "/usr/local/bin/dockerd starts a containerd of its own"})
	expect(t, fake(t, docker, gone, receipt()), "unit/loaded", want{verdict: Fail, observed: "no containerd.service"})
	expect(t, fake(t, docker, gone, unitProfile(nil)), "unit/loaded", want{verdict: Fail, observed: "no containerd.service"})
	docker["/var/lib/kubelet/config.yaml"] = "kind: KubeletConfiguration\n"
	expect(t, fake(t, docker, gone), "unit/loaded", want{verdict: Fail, observed: "no containerd.service"})

	if _, _, err := fake(t, files{}, gone).ExecStart(); !errors.Is(err, errNoUnit) {
		t.Errorf("%v", err)
	}
}

func TestUnitModeOfProgram(t *testing.T) {
	n := fake(t, stockHost(nil), inForce())
	mustChmod(t, n, systemd.Binary, 0o644)
	expect(t, n, "unit/exec-start", want{verdict: Fail, observed: "has mode 0644", wanted: "0755", remedy: "chmod 0755 /usr/local/bin/containerd"})
}

func mustChmod(t *testing.T, n *Node, p string, m os.FileMode) {
	t.Helper()
	if err := os.Chmod(filepath.Join(n.Host.Root.Dir(), p), m); err != nil {
		t.Fatal(err)
	}
}

// What would change with a reload is told.
func TestReloadSaysWhatChanges(t *testing.T) {
	n := fake(t, stockHost(files{dropInDir + "n.conf": "[Service]\nKillMode=mixed\nOOMScoreAdjust=\n"}), inForce(func(p *systemd.Properties) { p.NeedDaemonReload = true }))
	if got := results(t, n, "unit/daemon-reload")[0].Note; got != "KillMode process becomes mixed, OOMScoreAdjust -999 becomes 0" {
		t.Errorf("%q", got)
	}
}

func TestUnitChecksWithoutSystemd(t *testing.T) {
	lost := func(o *Outside) {
		o.Facts.SystemdInit = true
		o.Units = func(context.Context) (Units, error) { return nil, errors.New("nobody answers") }
	}
	for _, c := range unitChecks() {
		expect(t, fake(t, stockHost(nil)), c.ID, want{verdict: Skip, observed: "systemd does not run here"})
		expect(t, fake(t, stockHost(nil), lost), c.ID, want{verdict: Unknown, observed: "nobody answers"})
	}
	// Its files still tell what it would run.
	argv, place, err := fake(t, stockHost(nil)).ExecStart()
	if err != nil || !slices.Equal(argv, []string{systemd.Binary}) || place != systemd.UnitPath+":6" {
		t.Errorf("%v %s %v", argv, place, err)
	}
}

// An image has no systemd to ask: its files are read as systemd will.
func TestUnitChecksOfAnImage(t *testing.T) {
	const usr = "/usr/lib/systemd/system/"
	for name, c := range map[string]struct {
		id    string
		files files
		want  want
	}{
		"loaded":         {"unit/loaded", nil, want{verdict: Pass, place: systemd.UnitPath}},
		"masked":         {"unit/loaded", files{systemd.UnitPath: "-> /dev/null", usr + "containerd.service": stockUnit}, want{verdict: Fail, observed: "masked", place: systemd.UnitPath, remedy: "rm /"}},
		"nothing to run": {"unit/loaded", files{dropInDir + "x.conf": "[Service]\nExecStart=\n"}, want{verdict: Fail, observed: "bad-setting: the unit has 0 ExecStart=", place: dropInDir + "x.conf:2", remedy: "ExecStart=/usr/local/bin/containerd"}},
		"leads nowhere":  {"unit/loaded", files{systemd.UnitPath: "-> /opt/unit"}, want{verdict: Fail, observed: systemd.UnitPath + " is a link that leads nowhere", remedy: "rm /"}},
		"enabled":        {"unit/enabled", nil, want{verdict: Pass, observed: "enabled"}},
		"not enabled":    {"unit/enabled", files{unitWants: ""}, want{verdict: Pass}},
		"upheld":         {"unit/enabled", files{usr + "x.service.wants/": "", usr + "multi-user.target.d/10-c.conf": "[Unit]\nUpholds=a.service containerd.service\n"}, want{verdict: Pass}},
		"kills all":      {"unit/kill-mode", files{"/run/systemd/system/service.d/a.conf": "[Service]\nKillMode=control-group\n"}, want{verdict: Fail, observed: "control-group", place: "/run/systemd/system/service.d/a.conf:2"}},
		"masked drop-in": {"unit/kill-mode", files{usr + "containerd.service.d/a.conf": "[Service]\nKillMode=mixed\n", dropInDir + "a.conf": "-> /dev/null"}, want{verdict: Pass}},
		"an earlier one": {"unit/kill-mode", files{usr + "containerd.service.d/z.conf": "[Service]\nKillMode=mixed\n", dropInDir + "a.conf": "[Service]\nKillMode=process\n"}, want{verdict: Fail, place: usr + "containerd.service.d/z.conf:2"}},
		"an alias": {"unit/kill-mode", files{systemd.UnitPath: "-> /usr/lib/systemd/system/cri.service", usr + "cri.service": stockUnit, usr + "cri.service.d/z.conf": "[Service]\nKillMode=mixed\n"},
			want{verdict: Fail, place: usr + "cri.service.d/z.conf:2"}},
		"delegate":      {"unit/delegate", files{dropInDir + "z.conf": "[Service]\nDelegate=off\n"}, want{verdict: Fail, observed: "no", place: dropInDir + "z.conf:2"}},
		"oom":           {"unit/oom-score-adjust", files{dropInDir + "z.conf": "[Service]\nOOMScoreAdjust=0\n"}, want{verdict: Fail, observed: "0", place: dropInDir + "z.conf:2"}},
		"oom, nonsense": {"unit/oom-score-adjust", files{dropInDir + "z.conf": "[Service]\nOOMScoreAdjust=5000\n"}, want{verdict: Pass, observed: "-999"}},
		"program":       {"unit/exec-start", nil, want{verdict: Pass, observed: systemd.Binary}},
		"no program":    {"unit/exec-start", files{dropInDir + "z.conf": "[Service]\nExecStart=\nExecStart=-/opt/x --config \"/a b\"\n"}, want{verdict: Fail, observed: "/opt/x does not exist", place: dropInDir + "z.conf:3"}},
		"by name":       {"unit/exec-start", files{systemd.UnitPath: "[Service]\nExecStart=containerd\n"}, want{verdict: Pass, observed: systemd.Binary}},
		"type":          {"unit/type", files{dropInDir + "z.conf": "[Service]\nType=exec\n"}, want{verdict: Warn, observed: "exec"}},
		"restart":       {"unit/restart", files{dropInDir + "z.conf": "[Service]\nRestart=no\n"}, want{verdict: Warn, observed: "no"}},
		"password":      {"unit/environment", files{dropInDir + "z.conf": "[Service]\nEnvironment=TOKEN=x\n"}, want{verdict: Warn, object: "TOKEN", place: dropInDir + "z.conf:2"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := fake(t, stockHost(c.files), asImage)
			expect(t, n, c.id, c.want)
			for _, r := range results(t, n, c.id) {
				if strings.Contains(r.Remedy, "daemon-reload") || strings.Contains(r.Remedy, "> /etc") {
					t.Errorf("the remedy is for another system than the image: %s", r.Remedy)
				}
			}
			if c.want.verdict == Pass || strings.Contains(results(t, n, c.id)[0].Remedy, "#") {
				return
			}
			// Pasted, it makes the check pass.
			remedy := exec.CommandContext(t.Context(), "sh", "-e", "-c", results(t, n, c.id)[0].Remedy)
			if out, err := remedy.CombinedOutput(); err != nil {
				t.Fatalf("%s: %v\n%s", remedy, err, out)
			}
			for _, r := range results(t, NewNode(t.Context(), n.Outside), c.id) {
				if r.Verdict != Pass {
					t.Errorf("after its remedy: %+v\n%s", r, remedy)
				}
			}
		})
	}
	off := stockHost(nil)
	delete(off, unitWants)
	n := fake(t, off, asImage)
	expect(t, n, "unit/enabled", want{verdict: Fail, observed: "disabled", remedy: "systemctl --root=" + n.Host.Root.Dir() + " enable containerd.service"})
	expect(t, fake(t, files{}, asImage), "unit/loaded", want{verdict: Skip})
}

// A unit file that may not be read is no reason to name another.
func TestPlaceThatMayNotBeRead(t *testing.T) {
	if os.Getuid() == 0 {
		t.Log("root may read everything: a folder in a drop-in's place stands for one that it may not")
	}
	n := fake(t, stockHost(files{dropInDir + "x.conf/": ""}), inForce(dropIns("x.conf")))
	expect(t, n, "unit/kill-mode", want{verdict: Pass, place: "containerd.service"})
	expect(t, n, "unit/drop-ins", want{verdict: Unknown, observed: "x.conf"})
}

func TestFragmentsInOrder(t *testing.T) {
	f := stockHost(files{dropInDir + "20-b.conf": "[Service]\n", "/run/systemd/system/containerd.service.d/10-a.conf": "[Service]\n"})
	var got []string
	for _, n := range []*Node{
		fake(t, f, inForce(func(p *systemd.Properties) {
			p.DropInPaths = []string{"/run/systemd/system/containerd.service.d/10-a.conf", dropInDir + "20-b.conf", dropInDir + "gone.conf"}
		})),
		fake(t, f, asImage),
	} {
		all, err := n.Fragments(systemd.UnitName)
		if err != nil {
			t.Fatal(err)
		}
		for _, x := range all {
			got = append(got, x.Path)
		}
	}
	want := []string{systemd.UnitPath, "/run/systemd/system/containerd.service.d/10-a.conf", dropInDir + "20-b.conf"}
	if !slices.Equal(got, append(want, want...)) {
		t.Errorf("%v", got)
	}
}

// A drop-in of an image is put aside there, and not on the host that looks at it.
func TestDropInsOfAnImage(t *testing.T) {
	n := fake(t, stockHost(files{dropInDir + "a.conf": "[Service]\nKillMode=mixed\n"}), func(o *Outside) { o.Live = false })
	expect(t, n, "unit/drop-ins", want{
		verdict: Warn, object: dropInDir + "a.conf", observed: "KillMode=mixed over KillMode=process", place: dropInDir + "a.conf:2", remedy: "mv " + n.word(dropInDir+"a.conf"),
	})
}
