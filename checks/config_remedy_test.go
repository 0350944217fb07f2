package checks

import (
	"context"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// killMode is a systemd that has containerd.service with one.
func killMode(mode string) func(*Outside) {
	return withUnits(units{systemd.UnitName: {LoadState: "loaded", KillMode: mode, FragmentPath: systemd.UnitPath}})
}

// TestRestartKeepsContainers: no remedy restarts a daemon whose KillMode would end its
// containers before that is mended, or in an image.
func TestRestartKeepsContainers(t *testing.T) {
	const config = "version = 3\noom_score = -500\n"
	const dump = "/usr/local/bin/containerd --config /etc/containerd/config.toml config dump > /dev/null && "
	for name, c := range map[string]struct {
		change func(*Outside)
		want   string // the last line
	}{
		"process":       {killMode("process"), dump + "systemctl restart containerd.service"},
		"control-group": {killMode("control-group"), dump + "install -d /etc/systemd/system/containerd.service.d && printf '%s\\n' '[Service]' KillMode=process > /etc/systemd/system/containerd.service.d/zz-nodeprep-killmode.conf && systemctl daemon-reload && systemctl restart containerd.service"},
		"no systemd":    {func(o *Outside) { o.Facts.SystemdInit, o.Units = false, nil }, "# restart containerd"},
		"not told":      {func(o *Outside) { o.Units = nil }, dump + "systemctl show -P KillMode containerd.service | grep -qx process && systemctl restart containerd.service"},
		"no such unit":  {withUnits(units{systemd.UnitName: {LoadState: "not-found"}}), "# restart the containerd that reads it: it is not containerd.service"},
	} {
		t.Run(name, func(t *testing.T) {
			// Where systemd does not tell of the unit, its file does.
			unit := files{systemd.UnitPath: "[Service]\nExecStart=/usr/local/bin/containerd\n"}
			n := with(t, "2.1.9", config, unit, c.change)
			r := results(t, n, "config/oom-score")[0]
			lines := strings.Split(r.Remedy, "\n")
			if got := lines[len(lines)-1]; got != c.want {
				t.Errorf("%+v\n got %s\nwant %s", r, got, c.want)
			}
		})
	}
	n := with(t, "2.1.9", config, nil, asImage)
	for _, r := range results(t, n, "config/oom-score") {
		if r.Verdict != Fail || strings.Contains(r.Remedy, "restart") || strings.Contains(r.Remedy, "dump") {
			t.Errorf("in an image: %+v %s", r, r.Remedy)
		}
	}
}

// TestRemediesOfDaemonsRestart is the same for what asks the daemon.
func TestRemediesOfDaemonsRestart(t *testing.T) {
	change := func(o *Outside) {
		runs(&containerd{version: "1.7.24"}, "2.4.2")(o)
		withUnits(units{systemd.UnitName: {MainPID: 7, KillMode: "mixed"}})(o)
	}
	n := fake(t, daemonFiles(nil), change)
	expect(t, n, "daemon/version", want{verdict: Fail, remedy: "KillMode=process > /etc/systemd/system/containerd.service.d/"})
	n = fake(t, daemonFiles(files{configFile: "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry.configs.'docker.io'.auth]\nusername = 'u'\n"}), change)
	expect(t, n, "registry/credentials", want{verdict: Warn, remedy: "config dump > /dev/null && install -d /etc/systemd/system/containerd.service.d && printf"})
}

// paste runs remedies in a shell, one after the other, with a fake's files in place of
// this machine's.
func paste(t *testing.T, n *Node, remedies ...string) {
	t.Helper()
	script := strings.Join(remedies, "\n")
	for _, dir := range []string{"/etc/", "/var/lib/kubelet/"} {
		script = strings.ReplaceAll(script, " "+dir, " "+n.Host.Root.Dir()+dir)
	}
	script = "systemctl() { :; }\ndaemon() { :; }\nset -e\n" + strings.ReplaceAll(script, "/usr/local/bin/containerd ", "daemon ")
	if out, err := exec.CommandContext(t.Context(), "sh", "-c", script).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s\n%s", err, out, script)
	}
}

// TestAllRemediesOfAReport pastes all that a report says, in its order: remedies do not
// get into each other's way, and what they leave is a config without faults.
func TestAllRemediesOfAReport(t *testing.T) {
	runtime := "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes."
	hosts := files{"/etc/containerd/certs.d/docker.io/hosts.toml": "server = 'https://docker.io'\n"}
	kubelet := files{"/var/lib/kubelet/config.yaml": "cgroupDriver: systemd\n", "/var/lib/dpkg/status": "Package: kubelet\nStatus: install ok installed\nVersion: 1.33.1-1.1\n\n"}
	both := maps.Clone(hosts)
	maps.Copy(both, kubelet)
	for name, c := range map[string]struct {
		release, config string
		more            files
		faults          int // at least
	}{
		"two runtimes": {"2.1.9", "version = 3\n" + runtime + "runc]\nruntime_type = 'io.containerd.runc.v2'\n" + runtime + "runc.options]\nBinaryName = '/usr/local/sbin/runc'\n" +
			runtime + "untrusted]\nruntime_type = 'io.containerd.runc.v2'\n" + runtime + "untrusted.options]\nBinaryName = '/usr/local/sbin/runc'\n", nil, 2},
		"two keys": {"2.1.9", "version = 3\n" + v3Runtime + "foo = 1\nenable_selinux = false\nbar = 2\nmax_container_log_line_size = 16384\n" + systemd3, nil, 2},
		"a key of each table": {"2.1.9", "version = 3\noom_score = -500\n" + v3Images + "foo = 1\nmax_concurrent_downloads = 10\n" + v3Registry + "config_path = ''\n" +
			v3Runtime + "foo = 1\n  " + v3Options + "  foo = 'x'\n  SystemdCgroup = false\n[metrics]\naddress = ':1338'\n[debug]\naddress = ':1339'\n", both, 7},
		"a printed default":         {"2.2.7", "version = 3\n[plugins]\n  " + v3Images + "    snapshotter = 'overlayfs'\n\n    " + v3Pinned + "      sandbox = 'registry.k8s.io/pause:3.1'\n\n    " + v3Registry + "      config_path = ''\n\n  " + v3Options + "      SystemdCgroup = false\n", both, 3},
		"a printed default of 1.7":  {"1.7.34", "version = 2\n[plugins]\n  [plugins.\"io.containerd.grpc.v1.cri\"]\n    sandbox_image = \"registry.k8s.io/pause:3.8\"\n    [plugins.\"io.containerd.grpc.v1.cri\".registry]\n      config_path = \"\"\n  [plugins.\"io.containerd.transfer.v1.local\"]\n    config_path = \"\"\n", both, 3},
		"no type in 1.7":            {"1.7.34", "version = 2\n" + v2Options + "BinaryName = '/usr/local/sbin/runc'\n", both, 3},
		"no file":                   {"2.4.2", noFile, both, 3},
		"no file of 1.7":            {"1.7.34", noFile, both, 3},
		"nothing but a version":     {"2.4.2", "version = 4\n", both, 2},
		"no version in 2.1":         {"2.1.9", "imports = []\n", both, 2},
		"version 1 in 2.1":          {"2.1.9", "version = 1\n", both, 2},
		"no version in 2.4":         {"2.4.2", "imports = []\n", both, 2},
		"dead sections":             {"2.1.9", "disabled_plugins = []\n\n[plugins.\"cri\".containerd.runtimes.runc]\n  runtime_type = \"io.containerd.runc.v2\"\n[plugins.\"cri\".containerd.runtimes.runc.options]\n  SystemdCgroup = true\n", nil, 1},
		"dead sections, version 1":  {"2.0.11", "version = 1\n[plugins.cri]\nenable_selinux = true\n[plugins.cri.containerd.runtimes.runc.options]\n  SystemdCgroup = true\n", nil, 1},
		"CRI off, and more":         {"2.1.9", "oom_score = -500\nversion = 3\ndisabled_plugins = ['io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime']\n" + systemd3, kubelet, 3},
		"mirrors and TLS":           {"2.1.9", "version = 3\n" + systemd3 + v3Registry + "config_path = '/etc/containerd/certs.d'\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors]\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['https://m']\n# a comment\n[plugins.'io.containerd.cri.v1.images'.registry.configs.'h'.tls]\nca_file = '/ca'\n[debug]\nlevel = 'info'\n", nil, 2},
		"a drop-in that replaces":   {"1.7.34", "version = 2\nimports = ['/etc/containerd/conf.d/*.toml']\n" + v2Runc + v2Options + "SystemdCgroup = true\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'x'\n", files{"/etc/containerd/conf.d/a.toml": "[plugins.'io.containerd.grpc.v1.cri']\nenable_cdi = true\n"}, 2},
		"a list over several lines": {"2.1.9", "version = 3\noom_score = -500\nrequired_plugins = [\n  'io.containerd.grpc.v1.cri',\n]\n" + systemd3, nil, 1},
	} {
		t.Run(name, func(t *testing.T) {
			n := with(t, c.release, c.config, c.more)
			report := func(n *Node) (faults []Result, remedies []string) {
				verdicts := map[string]Verdict{}
				for _, check := range configChecks() {
					if slices.Contains(check.Needs, NeedProfile) || check.ID == "config/deprecated" || check.ID == "config/permissions" || check.ID == "config/schema" {
						continue
					}
					if slices.ContainsFunc(check.Needs, func(id string) bool { return verdicts[id] == Fail }) || slices.Contains(check.Needs, NeedKubelet) && n.lacks(t.Context(), NeedKubelet) != nil {
						verdicts[check.ID] = Fail
						continue
					}
					for _, r := range check.Run(t.Context(), n) {
						if r.Verdict == Pass || r.Verdict == Skip {
							continue
						}
						verdicts[check.ID] = r.Verdict
						if slices.ContainsFunc(remedies, func(s string) bool { return s == r.Remedy }) {
							t.Logf("twice: %s", r.Remedy)
						}
						r.Object = check.ID + " " + r.Object
						faults, remedies = append(faults, r), append(remedies, r.Remedy)
					}
				}
				return faults, remedies
			}
			before, remedies := report(n)
			if len(before) < c.faults {
				t.Fatalf("%d faults, want %d or more: %+v", len(before), c.faults, before)
			}
			paste(t, n, remedies...)
			// Checks that others held back have their say now.
			n = NewNode(t.Context(), n.Outside)
			if _, more := report(n); len(more) > 0 {
				remedies = append(remedies, "# and again:")
				remedies = append(remedies, more...)
				paste(t, n, more...)
			}
			after, _ := report(NewNode(t.Context(), n.Outside))
			config, _ := os.ReadFile(filepath.Join(n.Host.Root.Dir(), configFile))
			for _, r := range after {
				t.Errorf("%+v\n%s\n%s", r, strings.Join(remedies, "\n"), config)
			}
		})
	}
}

// TestRemedyOfATableKeepsComments: only what a table says is taken out.
func TestRemedyOfATableKeepsComments(t *testing.T) {
	n := with(t, "2.1.9", "version = 3\n"+v3Registry+"config_path = '/etc/containerd/certs.d'\n[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['https://m']\n# of debug\n[debug]\nlevel = 'info'\n", nil)
	paste(t, n, results(t, n, "config/mirrors")[0].Remedy)
	got, err := n.text(configFile)
	if want := "version = 3\n" + v3Registry + "config_path = '/etc/containerd/certs.d'\n# of debug\n[debug]\nlevel = 'info'"; err != nil || got != want {
		t.Errorf("%v\n got %q\nwant %q", err, got, want)
	}
}

// TestRemediesThatAreComments: what no line editor can do is said, not tried.
func TestRemediesThatAreComments(t *testing.T) {
	hosts := files{"/etc/containerd/certs.d/docker.io/hosts.toml": "server = 'https://docker.io'\n"}
	for name, c := range map[string]struct {
		id, release, config string
		more                files
		wants               []string
	}{
		"a dotted key":        {"config/registry-path", "2.1.9", "version = 3\n" + v3Images + "registry.headers = {}\n", hosts, []string{`# in /etc/containerd/config.toml, in a file of version 3, below [plugins."io.containerd.cri.v1.images".registry]: config_path = "/etc/containerd/certs.d"`}},
		"an inline table":     {"config/systemd-cgroup", "2.1.9", "version = 3\n" + v3Runtime + "containerd = { runtimes = { runc = { runtime_type = 'io.containerd.runc.v2' } } }\n", nil, []string{"# in /etc/containerd/config.toml", "SystemdCgroup = true"}},
		"a short name":        {"config/systemd-cgroup", "2.1.9", "disabled_plugins = ['zfs']\n", nil, []string{"# in /etc/containerd/config.toml, in a file of version 3"}},
		"more than cri":       {"config/ignored-sections", "2.1.9", "disabled_plugins = ['zfs']\n[plugins.cri]\nenable_selinux = true\n", nil, []string{"# /etc/containerd/config.toml:3, plugins.cri.enable_selinux"}},
		"a list on two lines": {"config/ignored-keys", "2.1.9", "version = 3\n" + v3Images + "foo = [\n1]\n", nil, []string{"# take out what stands at /etc/containerd/config.toml:3"}},
		"a named import":      {"config/imports", "2.1.9", "version = 2\nimports = ['/etc/containerd/a.toml']\n" + v2Runc + v2Options + "SystemdCgroup = true\n", files{"/etc/containerd/a.toml": "version = 3\n"}, []string{"taken out of imports at /etc/containerd/config.toml:2"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := results(t, with(t, c.release, c.config, c.more), c.id)[0]
			for _, w := range c.wants {
				if r.Verdict == Pass || r.Verdict == Skip || !strings.Contains(r.Remedy, w) {
					t.Errorf("%+v\n%s\nwant %q", r, r.Remedy, w)
				}
			}
			for line := range strings.SplitSeq(r.Remedy, "\n") {
				if !strings.HasPrefix(line, "#") && !strings.HasSuffix(line, "systemctl restart containerd.service") {
					t.Errorf("it does something: %s", line)
				}
			}
		})
	}
}

// rendered is what nodeprep makes of a small profile for 2.1.
const rendered = `version = 3
imports = ['/etc/containerd/conf.d/*.toml']
oom_score = 0
required_plugins = ['io.containerd.grpc.v1.cri']
root = '/var/lib/containerd'
state = '/run/containerd'

[grpc]
address = '/run/containerd/containerd.sock'

[plugins]
[plugins.'io.containerd.cri.v1.images']
snapshotter = 'overlayfs'

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'registry.k8s.io/pause:3.10'

[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '/etc/containerd/certs.d'

[plugins.'io.containerd.cri.v1.runtime']
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/opt/cni/bin']
conf_dir = '/etc/cni/net.d'

[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes]
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '/usr/local/sbin/runc'
SystemdCgroup = true
`

// TestConfigOfNodeprep: its own file is well, drop-ins or none, and is not edited by hand.
func TestConfigOfNodeprep(t *testing.T) {
	for name, more := range map[string]files{
		"no drop-ins": nil, "a folder without any": {"/etc/containerd/conf.d/": ""},
		"a drop-in": {"/etc/containerd/conf.d/10-debug.toml": "version = 3\n[debug]\nlevel = 'debug'\n"},
	} {
		t.Run(name, func(t *testing.T) {
			n := with(t, "2.1.9", rendered, more, receipt())
			for _, check := range configChecks() {
				if slices.Contains(check.Needs, NeedProfile) || slices.Contains(check.Needs, NeedKubelet) {
					continue
				}
				for _, r := range check.Run(t.Context(), n) {
					if r.Verdict != Pass && r.Verdict != Skip {
						t.Errorf("%s: %+v", check.ID, r)
					}
				}
			}
		})
	}
	for name, c := range map[string]struct {
		id, from, to, field string
		change              func(*Outside)
	}{
		"transfer":        {"config/transfer", "snapshotter = 'overlayfs'", "max_concurrent_downloads = 10", "containerd.settings", nil},
		"exposed":         {"config/exposed", "[grpc]", "[metrics]\naddress = ':1338'\n[grpc]", "containerd.settings", nil},
		"systemd cgroup":  {"config/systemd-cgroup", "SystemdCgroup = true", "SystemdCgroup = false", "containerd.systemdCgroup", nil},
		"no option":       {"config/systemd-cgroup", "SystemdCgroup = true", "", "containerd.systemdCgroup", nil},
		"OOM score":       {"config/oom-score", "oom_score = 0", "oom_score = -500", "containerd.oomScore", nil},
		"default runtime": {"config/default-runtime", "'runc'\n", "'crun'\n", "containerd.defaultRuntime", nil},
		"sandbox image":   {"config/sandbox-image", "pause:3.10", "pause:3.1", "containerd.sandboxImage", withSpec(profiles.Spec{Kubernetes: "1.33"})},
		"a list":          {"config/registry-path", "certs.d'", "certs.d:/etc/docker/certs.d'", `containerd.settings.plugins."io.containerd.cri.v1.images".registry.config_path`, nil},
		"a typo":          {"config/ignored-keys", "snapshotter =", "snapshoter =", `containerd.settings.plugins."io.containerd.cri.v1.images".snapshoter`, nil},
		"CRI off":         {"config/cri-enabled", "oom_score = 0", "disabled_plugins = ['io.containerd.grpc.v1.cri']", "containerd.settings.disabled_plugins", nil},
	} {
		t.Run(name, func(t *testing.T) {
			changes := []func(*Outside){receipt()}
			if c.change != nil {
				changes = append(changes, c.change)
			}
			n := with(t, "2.1.9", strings.Replace(rendered, c.from, c.to, 1), nil, changes...)
			expect(t, n, c.id, want{verdict: Fail, remedy: "# /etc/containerd/config.toml is made from the profile: change " + c.field + " there\nnodeprep apply -f /root/node.yaml"})
			for _, r := range results(t, n, c.id) {
				if strings.Contains(r.Remedy, "sed") || strings.Contains(r.Remedy, "restart") {
					t.Errorf("%s edits it: %s", c.id, r.Remedy)
				}
			}
		})
	}
	// A drop-in is nobody's, with nodeprep or without.
	n := with(t, "2.1.9", rendered, files{"/etc/containerd/conf.d/z.toml": "version = 3\noom_score = 10\n"}, receipt())
	expect(t, n, "config/oom-score", want{verdict: Fail, remedy: "/etc/containerd/conf.d/z.toml"})
	if r := results(t, n, "config/oom-score")[0]; !strings.HasPrefix(r.Remedy, "sed -i") {
		t.Error(r.Remedy)
	}
}

// TestDockersHost: its containerd has CRI off, as it needs none.
func TestDockersHost(t *testing.T) {
	const docker = "# Copyright 2018-2022 Docker Inc.\ndisabled_plugins = [\"cri\"]\n"
	hosts := files{"/etc/containerd/certs.d/docker.io/hosts.toml": "server = 'https://docker.io'\n"}
	kubelet := func(endpoint string) files {
		f := maps.Clone(hosts)
		f["/var/lib/kubelet/config.yaml"] = "cgroupDriver: systemd\ncontainerRuntimeEndpoint: " + endpoint + "\n"
		return f
	}
	for name, c := range map[string]struct {
		more    files
		change  []func(*Outside)
		verdict Verdict
	}{
		"Docker alone": {hosts, nil, Warn}, "a kubelet of cri-dockerd": {kubelet("unix:///run/cri-dockerd.sock"), nil, Warn},
		"a kubelet of containerd": {kubelet("unix:///run/containerd/containerd.sock"), nil, Fail}, "a kubelet": {kubelet(`""`), nil, Fail},
		"a kubelet that is odd": {files{"/var/lib/kubelet/config.yaml": "a: ["}, nil, Unknown},
		"a profile":             {hosts, []func(*Outside){withSpec(profiles.Spec{})}, Fail}, "a receipt": {hosts, []func(*Outside){receipt()}, Fail},
	} {
		t.Run(name, func(t *testing.T) {
			n := with(t, "1.7.34", docker, c.more, c.change...)
			expect(t, n, "config/cri-enabled", want{verdict: c.verdict})
			if r := results(t, n, "config/cri-enabled")[0]; c.verdict == Warn && !strings.Contains(r.Note, "no kubelet here uses CRI") {
				t.Errorf("the note is %q", r.Note)
			}
			for _, id := range []string{"config/systemd-cgroup", "config/registry-path", "config/sandbox-image", "config/runtimes", "config/kubelet-cgroup-driver", "daemon/cri"} {
				expect(t, n, id, want{verdict: Skip, observed: "CRI is off (/etc/containerd/config.toml:2)"})
			}
		})
	}
}

// TestRootThatIsTheOldOne: data that is in use is not called left over, whatever its path.
func TestRootThatIsTheOldOne(t *testing.T) {
	const db = "/io.containerd.metadata.v1.bolt/meta.db"
	for name, c := range map[string]struct {
		root  string
		files files
		link  [2]string // hard link, as a mount of the same filesystem looks
		want  Verdict
	}{
		"a link to it":   {"/data", files{"/var/lib/containerd" + db: "x", "/data": "-> /var/lib/containerd"}, [2]string{}, Pass},
		"it is a link":   {"/data", files{"/data" + db: "x", "/var/lib/containerd": "-> /data"}, [2]string{}, Pass},
		"a link above":   {"/data/containerd", files{"/data/containerd" + db: "x", "/var/lib": "-> /data"}, [2]string{}, Pass},
		"a mount of it":  {"/data", files{"/data" + db: "x", "/var/lib/containerd/io.containerd.metadata.v1.bolt/": ""}, [2]string{"/data" + db, "/var/lib/containerd" + db}, Pass},
		"another":        {"/data", files{"/data" + db: "x", "/var/lib/containerd" + db: "y"}, [2]string{}, Fail},
		"another, empty": {"/data", files{"/var/lib/containerd" + db: "y"}, [2]string{}, Fail},
		"below it":       {"/var/lib/containerd/new", files{"/var/lib/containerd" + db: "y"}, [2]string{}, Fail},
	} {
		t.Run(name, func(t *testing.T) {
			more := maps.Clone(c.files)
			more["/proc/self/mountinfo"] = "21 1 8:1 / / rw - ext4 /dev/sda1 rw\n"
			n := with(t, "2.1.9", "version = 3\nroot = '"+c.root+"'\n", more)
			if c.link[0] != "" {
				if err := os.Link(filepath.Join(n.Host.Root.Dir(), c.link[0]), filepath.Join(n.Host.Root.Dir(), c.link[1])); err != nil {
					t.Fatal(err)
				}
			}
			got := results(t, n, "config/root")
			for _, r := range got {
				if r.Verdict != c.want || len(got) != 1 {
					t.Errorf("%+v, want %s", r, c.want)
				}
				for line := range strings.SplitSeq(r.Remedy, "\n") {
					if line != "" && !strings.HasPrefix(line, "#") {
						t.Errorf("it removes: %s", line)
					}
				}
			}
		})
	}
}

// TestSchemaHasNoRemedyThatRewrites: an old version is read, and rewriting a file is for
// its owner.
func TestSchemaHasNoRemedyThatRewrites(t *testing.T) {
	for _, config := range []string{"version = 2\n", "oom_score = 0\n"} {
		for _, release := range []string{"2.1.9", "2.4.2"} {
			if r := results(t, with(t, release, config, nil), "config/schema")[0]; r.Verdict != Warn || r.Remedy != "" {
				t.Errorf("%+v %s", r, r.Remedy)
			}
		}
	}
}

func TestCgroupDriversOfRuntimes(t *testing.T) {
	const kata2 = "[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"kata\"\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nruntime_type = \"io.containerd.kata.v2\"\n"
	const crun = "[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'crun'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]\nruntime_type = 'io.containerd.runc.v2'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]\nBinaryName = '/usr/bin/crun'\nSystemdCgroup = true\n"
	systemdKubelet := files{"/var/lib/kubelet/config.yaml": "cgroupDriver: systemd\n"}
	cgroupfsSpec := withSpec(profiles.Spec{Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("1.7.34")}}})
	dropIn := files{
		"/var/lib/kubelet/config.yaml": "kind: x\nb: c\n", "/etc/kubelet.d/10-a.conf": "kind: x\ncgroupDriver: cgroupfs\n",
		"/proc/77/cmdline": "/usr/bin/kubelet\x00--config=/var/lib/kubelet/config.yaml\x00--config-dir=/etc/kubelet.d\x00",
	}
	kubeletRuns := withUnits(units{systemd.UnitName: {LoadState: "loaded", KillMode: "process"}, "kubelet.service": {MainPID: 77}})
	for name, c := range map[string]configCase{
		"kata by default":            {"1.7.34", "version = 2\n" + kata2 + v2Runc + v2Options + "SystemdCgroup = true\n", systemdKubelet, nil, "config/kubelet-cgroup-driver", []want{{verdict: Pass, observed: "systemd, as the kubelet has"}}},
		"kata alone":                 {"1.7.34", "version = 2\n" + kata2, systemdKubelet, nil, "config/kubelet-cgroup-driver", []want{{verdict: Skip, observed: "no runtime of runc's shim"}}},
		"a profile's cgroupfs":       {"1.7.34", "version = 2\n" + v2Runc, systemdKubelet, []func(*Outside){cgroupfsSpec}, "config/kubelet-cgroup-driver", []want{{verdict: Fail, object: "runtime runc", wanted: "true, as the kubelet has (/var/lib/kubelet/config.yaml:1)", remedy: "SystemdCgroup = true"}}},
		"a drop-in of the kubelet's": {"1.7.34", "version = 2\n" + v2Runc + v2Options + "SystemdCgroup = true\n", dropIn, []func(*Outside){kubeletRuns}, "config/kubelet-cgroup-driver", []want{{verdict: Fail, place: "/etc/kubelet.d/10-a.conf:2", remedy: "sed -i -E 's/(cgroupDriver\"?:) *[^ ,]*/\\1 systemd/' /etc/kubelet.d/10-a.conf\nsystemctl restart kubelet"}}},
		"crun, and nobody's runc":    {"2.1.9", "version = 3\n" + crun, nil, nil, "config/systemd-cgroup", []want{{verdict: Pass, observed: "crun: true"}}},
		"crun, and somebody's runc":  {"2.1.9", "version = 3\n" + crun + v3Runc + "runtime_type = 'io.containerd.runc.v2'\n", nil, nil, "config/systemd-cgroup", []want{{verdict: Fail, object: "runtime runc"}}},
	} {
		t.Run(name, func(t *testing.T) {
			n := with(t, c.release, c.config, c.more, c.change...)
			expect(t, n, c.id, c.want...)
			for _, r := range results(t, n, c.id) {
				if strings.Contains(r.Remedy, "cgroupDriver: cgroupfs") || strings.Contains(r.Remedy, " cgroupfs/") {
					t.Errorf("cgroupfs on systemd and cgroup v2: %s", r.Remedy)
				}
			}
		})
	}
}

// TestDeadSectionsOfFilesWithoutVersion: see deadNames.
func TestDeadSectionsOfFilesWithoutVersion(t *testing.T) {
	const cri = "[plugins.\"cri\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n"
	for name, c := range map[string]struct {
		release, config string
		want            Verdict
	}{
		"2.1": {"2.1.9", cri, Fail}, "2.0": {"2.0.11", "version = 1\n" + cri, Fail}, "2.2": {"2.2.7", cri, Fail}, "2.4 migrates": {"2.4.2", cri, Pass},
		"1.7 reads them": {"1.7.34", cri, Pass}, "the names of 3": {"2.1.9", systemd3, Pass},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, with(t, c.release, c.config, nil), "config/ignored-sections", want{verdict: c.want})
		})
	}
}

func TestDriftOfTheConfigIsTakenOver(t *testing.T) {
	n := with(t, "2.1.9", rendered+"[debug]\naddress = ':1339'\n", nil, func(o *Outside) {
		receipt(Drift{configFile, "has other content"})(o)
		o.Receipt.Drift = func(context.Context) ([]Drift, error) { return []Drift{{configFile, "has other content"}}, nil }
	})
	expect(t, n, "config/exposed", want{verdict: Fail, remedy: "nodeprep apply --adopt -f /root/node.yaml"})
}
