package checks

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

func TestUnwrap(t *testing.T) {
	const containerd = "/usr/local/bin/containerd"
	n := fake(t, files{containerd: "x", "/opt/start": "#!/bin/sh\n", "/opt/containerd": "#!/bin/sh\n"})
	for in, want := range map[string]string{
		containerd + " -c x": containerd + " -c x",
		"containerd -c x":    containerd + " -c x",
		"/usr/bin/env GOMEMLIMIT=1G -u A -i " + containerd:  containerd,
		"env --chdir=/ -- " + containerd + " -c A=b":        containerd + " -c A=b",
		"taskset -c 0-3 " + containerd + " -c x":            containerd + " -c x",
		"nice -n -5 ionice -c2 -n 0 " + containerd:          containerd,
		"chrt -r 10 " + containerd + " -l debug":            containerd + " -l debug",
		"numactl --cpunodebind=0 -m 0 " + containerd:        containerd,
		"choom -n -999 -- " + containerd:                    containerd,
		"setsid nohup " + containerd:                        containerd,
		"/bin/sh -c|exec " + containerd + " -c /etc/c.toml": containerd + " -c /etc/c.toml",
		"/bin/bash -ec|A=b exec containerd":                 containerd,
		"/opt/containerd":                                   "/opt/containerd",
		"env -S containerd":                                 "",
		"env A=b":                                           "",
		"nice -n":                                           "",
		"taskset -p 1":                                      "",
		"chrt 10":                                           "",
		"sh /opt/run":                                       "",
		"sh -c|modprobe overlay; exec containerd":           "",
		"sh -c|exec $CONTAINERD":                            "",
		"sh -c|exec -a x containerd":                        "",
		"sh -c":                                             "",
		"/opt/start -c x":                                   "",
		"unshare -m containerd":                             "",
		"python3 /opt/x":                                    "",
	} {
		words, inner, shell := strings.Cut(in, "|")
		argv := strings.Fields(words)
		if shell {
			argv = append(argv, inner)
		}
		got, err := n.unwrap(argv)
		if strings.Join(got, " ") != want || (err != nil) != (want == "") || err != nil && !errors.Is(err, errWrapped) {
			t.Errorf("%s is %q (%v), want %q", in, got, err, want)
		}
	}
}

func TestExpand(t *testing.T) {
	env := map[string]string{"CONF": "/etc/a b.toml", "OPTS": `-l debug "x y"`, "NONE": ""}
	for _, c := range []struct {
		in, want []string
		all      bool
	}{
		{[]string{"/x", "--config", "${CONF}"}, []string{"/x", "--config", "/etc/a b.toml"}, true},
		{[]string{"/x", "--config=${CONF}", "$OPTS"}, []string{"/x", "--config=/etc/a b.toml", "-l", "debug", "x y"}, true},
		{[]string{"/x", "$OTHER", "$NONE", "${OTHER}", "$$HOME", "a$OPTS"}, []string{"/x", "${OTHER}", "$HOME", "a$OPTS"}, true},
		{[]string{"/x", "$OTHER", "${NONE}", "${", "$"}, []string{"/x", "$OTHER", "", "${", "$"}, false},
	} {
		if got := expand(c.in, env, c.all); !slices.Equal(got, c.want) {
			t.Errorf("%q becomes %q, want %q", c.in, got, c.want)
		}
	}
}

const (
	flatcarUnitPath = "/usr/lib/systemd/system/containerd.service"
	flatcarConfig   = "/usr/share/containerd/config.toml"
	flatcarUnit     = `[Service]
Delegate=yes
Environment=CONTAINERD_CONFIG=` + flatcarConfig + `
ExecStart=/usr/bin/containerd --config ${CONTAINERD_CONFIG}
KillMode=process
Restart=always
`
	flatcarTOML = `version = 2
oom_score = -999
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
`
)

// flatcar is a host whose unit names its config by a variable and is protected by that.
func flatcar(t *testing.T, more files, change func(*systemd.Properties)) *Node {
	t.Helper()
	f := files{
		flatcarUnitPath: flatcarUnit, flatcarConfig: flatcarTOML, "/usr/bin/containerd": "x", "/proc/42/oom_score_adj": "-999\n",
		"/proc/42/exe": "-> /usr/bin/containerd", "/proc/42/cmdline": "/usr/bin/containerd\x00--config\x00" + flatcarConfig + "\x00",
	}
	for p, content := range more {
		if f[p] = content; content == noFile {
			delete(f, p)
		}
	}
	return fake(t, f, prints(map[string]string{"/usr/bin/containerd --version": "containerd github.com/containerd/containerd 1.7.24 abc"}), inForce(func(p *systemd.Properties) {
		p.FragmentPath, p.OOMScoreAdjust, p.Type = flatcarUnitPath, 0, "simple"
		p.Environment = []string{"CONTAINERD_CONFIG=" + flatcarConfig}
		p.ExecStart = [][]string{{"/usr/bin/containerd", "--config", "${CONTAINERD_CONFIG}"}}
		if change != nil {
			change(p)
		}
	}))
}

func TestUnitWithVariables(t *testing.T) {
	const env = "/run/containerd.env"
	stopped := func(p *systemd.Properties) { p.MainPID = 0 }
	for name, c := range map[string]struct {
		files  files
		unit   func(*systemd.Properties)
		config string // "" is not to be told
		want   want
	}{
		"of Environment=":            {config: flatcarConfig, want: want{verdict: Pass, observed: "${CONTAINERD_CONFIG}"}},
		"of Environment=, not begun": {unit: stopped, config: flatcarConfig, want: want{verdict: Pass}},
		"of EnvironmentFile=": {files: files{env: "CONTAINERD_CONFIG=/etc/c.toml\n", "/etc/c.toml": "version = 2\n"},
			unit: func(p *systemd.Properties) { p.MainPID, p.EnvironmentFile = 0, []string{env} }, config: "/etc/c.toml", want: want{verdict: Pass}},
		"leads nowhere": {files: files{env: "CONTAINERD_CONFIG=/etc/x/c.toml\n"}, unit: func(p *systemd.Properties) { p.MainPID, p.EnvironmentFile = 0, []string{env} }, config: "/etc/x/c.toml",
			want: want{verdict: Fail, observed: "/etc/x/c.toml does not exist", remedy: "/usr/bin/containerd config default > /etc/x/c.toml"}},
		"that only the daemon tells":  {unit: func(p *systemd.Properties) { p.Environment = nil }, config: flatcarConfig, want: want{verdict: Pass}},
		"that nobody tells":           {unit: func(p *systemd.Properties) { p.Environment, p.MainPID = nil, 0 }, want: want{verdict: Unknown, observed: "${CONTAINERD_CONFIG}"}},
		"in a file that none may see": {files: files{env + "/": ""}, unit: func(p *systemd.Properties) { p.Environment, p.MainPID, p.EnvironmentFile = nil, 0, []string{env} }, want: want{verdict: Unknown}},
		"for options that are not set": {unit: func(p *systemd.Properties) {
			p.ExecStart, p.MainPID = [][]string{{"/usr/bin/containerd", "$CONTAINERD_OPTS"}}, 0
		}, config: defaultConfig,
			want: want{verdict: Pass}},
	} {
		t.Run(name, func(t *testing.T) {
			n := flatcar(t, c.files, c.unit)
			expect(t, n, "unit/exec-start", c.want)
			if got, err := n.configPath(); got != c.config || (err != nil) != (c.config == "") {
				t.Errorf("its config is %q (%v), want %q", got, err, c.config)
			}
			if _, err := n.Config(); (err != nil) != (c.config == "") {
				t.Errorf("reading its config: %v", err)
			}
			for _, r := range results(t, n, "unit/exec-start") {
				if strings.Contains(r.Remedy, "$") {
					t.Errorf("a remedy with a variable: %s", r.Remedy)
				}
			}
		})
	}
	// In an image its files are all there is.
	image := fake(t, files{flatcarUnitPath: flatcarUnit, flatcarConfig: flatcarTOML, "/usr/bin/containerd": "x"}, asImage)
	expect(t, image, "unit/exec-start", want{verdict: Pass})
	if got := image.ConfigPath(); got != flatcarConfig {
		t.Errorf("its config is %s", got)
	}
	image = fake(t, files{flatcarUnitPath: strings.Replace(flatcarUnit, flatcarConfig, "%E/containerd.toml", 1), "/usr/bin/containerd": "x"}, asImage)
	expect(t, image, "unit/exec-start", want{verdict: Unknown, observed: "%E/containerd.toml"})
}

// What counts is what the daemon has: its config overrides its unit.
func TestOOMScoreOfTheConfig(t *testing.T) {
	n := flatcar(t, nil, nil)
	expect(t, n, "unit/oom-score-adjust", want{verdict: Pass, observed: "0"})
	if note := results(t, n, "unit/oom-score-adjust")[0].Note; !strings.Contains(note, flatcarConfig+":2 makes it -999") {
		t.Errorf("its note is %q", note)
	}
	expect(t, n, "config/oom-score", want{verdict: Pass})
	expect(t, n, "process/oom-score-adj", want{verdict: Pass, observed: "-999"})

	// Protected by hand alone, it is not at the next start.
	n = flatcar(t, files{flatcarConfig: strings.Replace(flatcarTOML, "oom_score = -999\n", "", 1)}, nil)
	expect(t, n, "unit/oom-score-adjust", want{verdict: Fail, observed: "0", wanted: "-999"})
	// A wrapper protects it at each start.
	choom := func(p *systemd.Properties) {
		p.ExecStart = [][]string{{"/usr/bin/choom", "-n", "-999", "--", "/usr/bin/containerd"}}
	}
	n = flatcar(t, files{flatcarConfig: "version = 2\n"}, choom)
	expect(t, n, "unit/oom-score-adjust", want{verdict: Pass})
	expect(t, n, "process/oom-score-adj", want{verdict: Pass})
	n = flatcar(t, files{flatcarConfig: "version = 2\n", "/proc/42/oom_score_adj": "0\n"}, choom)
	expect(t, n, "unit/oom-score-adjust", want{verdict: Fail})
	// Who may not read the config still sees the daemon.
	n = flatcar(t, files{flatcarConfig + "/": "", flatcarConfig: noFile}, nil)
	expect(t, n, "unit/oom-score-adjust", want{verdict: Pass})
}

// A program that only starts the daemon is never taken for it.
func TestWrappedDaemon(t *testing.T) {
	wrapped := func(argv ...string) func(*systemd.Properties) {
		return func(p *systemd.Properties) { p.ExecStart = [][]string{argv} }
	}
	for name, c := range map[string]struct {
		files     files
		unit      func(*systemd.Properties)
		program   string
		execStart want
		exe       want
	}{
		"env": {unit: wrapped("/usr/bin/env", "GOMEMLIMIT=1G", systemd.Binary), program: systemd.Binary,
			execStart: want{verdict: Pass, observed: "/usr/bin/env GOMEMLIMIT=1G"}, exe: want{verdict: Pass, observed: systemd.Binary}},
		"not begun": {unit: func(p *systemd.Properties) {
			p.MainPID, p.ExecStart = 0, [][]string{{"/usr/bin/env", "A=b", "/opt/containerd"}}
		}, files: files{"/opt/containerd": "x"}, program: "/opt/containerd", execStart: want{verdict: Pass}, exe: want{verdict: Skip}},
		"of what is not there": {unit: wrapped("/usr/bin/env", "/opt/containerd"), program: "/opt/containerd",
			execStart: want{verdict: Fail, observed: "/opt/containerd does not exist"}, exe: want{verdict: Fail, wanted: "/opt/containerd"}},
		"a wrapper that is not there": {unit: wrapped("/usr/bin/nice", systemd.Binary), program: systemd.Binary,
			execStart: want{verdict: Fail, observed: "/usr/bin/nice does not exist"}, exe: want{verdict: Pass}},
		"a script": {unit: wrapped("/opt/start"), files: files{"/opt/start": "#!/bin/sh\n"}, program: systemd.Binary,
			execStart: want{verdict: Pass, observed: "/opt/start"}, exe: want{verdict: Unknown, observed: "/opt/start"}},
		"a script of another daemon": {unit: wrapped("/opt/start"), files: files{"/opt/start": "#!/bin/sh\n", "/opt/containerd": "x", "/proc/42/exe": "-> /opt/containerd"}, program: "/opt/containerd",
			execStart: want{verdict: Pass}, exe: want{verdict: Unknown}},
		"a shell that stays": {unit: wrapped("/bin/sh", "-c", "modprobe overlay; containerd"), program: systemd.Binary,
			files:     files{"/proc/42/exe": "-> /usr/bin/dash", "/proc/42/cmdline": "/bin/sh\x00-c\x00modprobe overlay; containerd\x00"},
			execStart: want{verdict: Unknown}, exe: want{verdict: Unknown, observed: "/usr/bin/dash"}},
		"something unknown, not begun": {unit: func(p *systemd.Properties) { p.MainPID, p.ExecStart = 0, [][]string{{"/bin/sh", "-c", "a; b"}} }, program: systemd.Binary,
			execStart: want{verdict: Unknown}, exe: want{verdict: Skip}},
	} {
		t.Run(name, func(t *testing.T) {
			f := stockHost(files{"/usr/bin/env": "x", "/bin/sh": "x"})
			maps.Copy(f, c.files)
			n := fake(t, f, inForce(c.unit), func(o *Outside) {
				o.Host.Run = func(_ context.Context, cmd host.Cmd) (host.Output, error) {
					if !strings.HasSuffix(cmd.Path, "containerd") {
						t.Errorf("%s was run", cmd)
					}
					return host.Output{Stdout: []byte("containerd github.com/containerd/containerd v2.1.9 abc")}, nil
				}
			})
			expect(t, n, "unit/exec-start", c.execStart)
			expect(t, n, "process/exe", c.exe)
			if got, _ := n.daemonProgram(); got != c.program {
				t.Errorf("the daemon is %s, want %s", got, c.program)
			}
			if v, _, err := n.Release(); err != nil || v.String() != "2.1.9" {
				t.Errorf("its version is %s (%v)", v, err)
			}
		})
	}
}
