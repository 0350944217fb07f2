package checks

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// provisioned is a host on which nodeprep installed containerd.
func provisioned(o *Outside) {
	o.Receipt = &Receipt{Programs: []string{systemd.Binary}, Versions: map[string]string{"containerd": "2.1.9"}}
}

// withUnitsThatFail is a systemd that does not answer.
func withUnitsThatFail(o *Outside) {
	o.Facts.SystemdInit = true
	o.Units = func(context.Context) (Units, error) { return nil, errors.New("systemd is silent") }
}

func TestForeignDocker(t *testing.T) {
	const dockerd, unit = "/usr/bin/dockerd", "/usr/lib/systemd/system/docker.service"
	is := func(state string) func(*Outside) {
		return withUnits(units{"docker.service": {LoadState: "loaded", ActiveState: state}})
	}
	looks(t, "foreign/docker",
		look{"none", nil, nil, one(Pass, "no dockerd")},
		look{"in an image", files{dockerd: ""}, given(offline), []want{{verdict: Warn, observed: dockerd, place: dockerd, remedy: " disable docker.service"}}},
		look{"not active", files{dockerd: "", unit: ""}, given(is("inactive")), one(Pass, "not active")},
		look{"with this containerd", files{dockerd: "", unit: ""}, given(is("active")), one(Warn, "uses this host's containerd")},
		look{"with its own", files{dockerd: "", unit: "", "/run/docker/containerd/containerd.sock": ""}, given(is("active")), one(Warn, "a containerd of its own")},
		look{"systemd is silent", files{dockerd: "", unit: ""}, given(booted), one(Unknown, "systemd")},
	)
}

func TestForeignPackages(t *testing.T) {
	const status = "/var/lib/dpkg/status"
	dpkg := func(want string) string {
		return "Package: adduser\nStatus: install ok installed\nVersion: 3\n\nPackage: containerd\nStatus: " + want + "\nVersion: 1.6.20~ds1-1\n\n"
	}
	looks(t, "foreign/packages",
		look{"none", files{status: dpkg("install ok installed")}, given(provisioned), one(Pass, "no package")},
		look{"Debian's", files{status: dpkg("install ok installed"), "/usr/bin/containerd": ""}, given(provisioned), []want{{
			verdict: Warn, object: "containerd", observed: "1.6.20~ds1-1", place: status, remedy: "apt-mark hold containerd",
		}}},
		look{"Debian's, before an install", files{status: dpkg("install ok installed"), "/usr/bin/containerd": ""}, given(withSpec(dynamic())), one(Warn, "1.6.20~ds1-1")},
		look{"held", files{status: dpkg("hold ok installed"), "/usr/bin/containerd": ""}, given(provisioned), one(Pass, "no package")},
		look{"removed", files{status: dpkg("deinstall ok config-files"), "/usr/bin/runc": ""}, given(provisioned), one(Pass, "no package")},
		look{"of a node that is the package's", files{status: dpkg("install ok installed"), "/usr/bin/containerd": ""}, nil, one(Pass, "no stranger")},
		look{"of rpm", files{"/var/lib/rpm/": "", "/usr/bin/runc": ""}, given(provisioned), []want{{verdict: Warn, object: "/usr/bin/runc", remedy: "rpm -qf /usr/bin/runc"}}},
		look{"unreadable", files{status + "/": "", "/usr/bin/containerd": ""}, given(provisioned), one(Unknown, "is a directory")},
	)
}

func TestForeignDistributions(t *testing.T) {
	const unit = "/etc/systemd/system/k3s.service"
	looks(t, "foreign/distributions",
		look{"none", nil, nil, one(Pass, "none of k3s")},
		look{"k3s", files{"/usr/local/bin/k3s": "", unit: ""}, given(withUnits(units{"k3s.service": {ActiveState: "active"}})), []want{{
			verdict: Warn, object: "k3s", observed: "k3s.service is active", place: "k3s.service", remedy: "k3s-killall.sh",
		}}},
		look{"RKE2 and k0s", files{"/var/lib/rancher/rke2/": "", "/usr/local/bin/k0s": ""}, nil, []want{{verdict: Warn, object: "RKE2", place: "/var/lib/rancher/rke2"}, {verdict: Warn, object: "k0s"}}},
		look{"MicroK8s", files{"/snap/bin/microk8s": ""}, nil, []want{{verdict: Warn, object: "MicroK8s"}}},
		look{"systemd is silent", files{"/usr/local/bin/k3s": "", unit: ""}, given(booted), one(Unknown, "systemd")},
	)
}

func TestForeignOthers(t *testing.T) {
	const podman = "/etc/cni/net.d/87-podman-bridge.conflist"
	const crio = "/usr/lib/systemd/system/crio.service"
	looks(t, "foreign/snap",
		look{"none", nil, nil, one(Pass, "no snap")},
		look{"Docker", files{"/snap/bin/docker": ""}, nil, []want{{verdict: Warn, object: "docker", remedy: "snap disable docker"}}},
	)
	looks(t, "foreign/podman",
		look{"none", nil, nil, one(Pass, "no podman")},
		look{"alone", files{"/usr/bin/podman": ""}, nil, one(Pass, "shares nothing")},
		look{"with a network", files{"/usr/bin/podman": "", podman: "{}"}, nil, []want{{verdict: Warn, observed: podman, place: podman, remedy: "mv " + podman + " " + podman + ".off"}}},
		look{"unreadable", files{"/etc/cni/net.d": "-> net.d"}, nil, one(Unknown, "too many levels")},
	)
	looks(t, "foreign/crio",
		look{"none", nil, nil, one(Pass, "no CRI-O")},
		look{"in an image", files{"/usr/bin/crio": ""}, given(offline), one(Warn, "/usr/bin/crio")},
		look{"not active", files{"/usr/bin/crio": "", crio: ""}, given(withUnits(units{"crio.service": {ActiveState: "inactive"}})), one(Pass, "not active")},
		look{"active", files{"/usr/bin/crio": "", crio: ""}, given(withUnits(units{"crio.service": {ActiveState: "active"}})), []want{{verdict: Warn, observed: "crio.service is active", remedy: "systemctl disable --now crio.service"}}},
		look{"systemd is silent", files{"/usr/bin/crio": "", crio: ""}, given(booted), one(Unknown, "systemd")},
	)
}

func TestMaskedUnit(t *testing.T) {
	const run = "/run/systemd/system/containerd.service"
	looks(t, "foreign/masked-unit",
		look{"no unit", nil, nil, one(Pass, "not masked")},
		look{"unreadable", files{"/etc/systemd/system": "-> system"}, nil, one(Unknown, "too many levels")},
		look{"a unit", files{systemd.UnitPath: "[Service]\n"}, nil, one(Pass, "is not a mask")},
		look{"a mask", files{systemd.UnitPath: "-> /dev/null"}, nil, []want{{
			verdict: Fail, observed: "a link to /dev/null", place: systemd.UnitPath, remedy: "systemctl unmask containerd.service",
		}}},
		look{"a mask in the place of nodeprep's unit", files{systemd.UnitPath: "-> /dev/null"}, given(provisioned), []want{{verdict: Fail, remedy: "nodeprep apply"}}},
		look{"a mask until the next boot", files{run: "-> /dev/null"}, nil, []want{{verdict: Fail, place: run, remedy: "systemctl unmask --runtime containerd.service"}}},
		look{"a mask that another unit hides", files{systemd.UnitPath: "[Service]\n", run: "-> /dev/null"}, nil, one(Pass, "is not a mask")},
		look{"an empty unit", files{systemd.UnitPath: ""}, nil, []want{{verdict: Fail, observed: "empty", remedy: "rm " + systemd.UnitPath + "\nsystemctl daemon-reload"}}},
		look{"an image", files{systemd.UnitPath: "-> /dev/null"}, given(offline), []want{{verdict: Fail, remedy: systemd.UnitPath}}},
	)
}

func TestBinaryOwner(t *testing.T) {
	const debian = "/usr/bin/containerd"
	owned := files{systemd.Binary: "", debian: "", "/var/lib/dpkg/info/containerd.list": debian + "\n"}
	looks(t, "foreign/binary-owner",
		look{"none", nil, nil, one(Pass, "none")},
		look{"nodeprep's", files{systemd.Binary: ""}, given(provisioned), one(Pass, systemd.Binary)},
		look{"a package's alone", files{debian: ""}, nil, one(Pass, debian)},
		look{"two", files{systemd.Binary: "", debian: ""}, given(provisioned), []want{{
			verdict: Warn, observed: debian + " is there beside " + systemd.Binary, place: debian, remedy: "mv " + debian + " " + debian + ".off",
		}}},
		look{"a package's beside it", owned, given(provisioned), []want{{verdict: Warn, observed: "of the package containerd", remedy: "apt-get remove containerd"}}},
		look{"one by two names", files{systemd.Binary: "", debian: "-> " + systemd.Binary}, given(provisioned), one(Pass, "alone")},
	)
}

func TestCNIConf(t *testing.T) {
	const dir = "/etc/cni/net.d/"
	list := func(name, kind string) string {
		return `{"cniVersion":"1.0.0","name":"` + name + `","plugins":[{"type":"` + kind + `"}]}`
	}
	own, calico, podman := dir+ownNetwork, dir+"10-calico.conflist", dir+"87-podman.conflist"
	flannel := dir + "10-flannel.conflist"
	network := dynamic()
	network.CNI.Network = &profiles.Network{}
	looks(t, "foreign/cni-conf",
		look{"none", nil, nil, one(Pass, "pods wait")},
		look{"the cluster's", files{calico: list("k8s-pod-network", "calico"), podman: list("podman", "bridge")}, nil, one(Pass, calico)},
		look{"nodeprep's", files{own: list("containerd-net", "bridge"), podman: list("podman", "bridge")}, given(withSpec(network)), one(Pass, own)},
		look{"a leftover before the cluster's", files{own: list("containerd-net", "bridge"), flannel: list("cbr0", "flannel")}, nil, []want{{
			verdict: Fail, object: own, observed: "comes before " + flannel, wanted: "the cluster's network first", place: own, remedy: "mv " + own + " " + own + ".off",
		}}},
		look{"a leftover before nodeprep's", files{dir + "00-old.conf": `{"type":"bridge"}`, own: list("containerd-net", "bridge")}, given(withSpec(network)), []want{{
			verdict: Fail, object: dir + "00-old.conf", wanted: "the profile's network first",
		}}},
		look{"a cluster's before nodeprep's", files{calico: list("x", "calico"), own: list("containerd-net", "bridge")}, given(withSpec(network)), one(Warn, "comes before "+own)},
		look{"podman's for a kubelet", files{podman: list("podman", "bridge"), "/var/lib/kubelet/config.yaml": "kind: x\n"}, nil, []want{{verdict: Warn, object: podman, wanted: "the cluster's network"}}},
		look{"no JSON", files{own: "{"}, nil, []want{{verdict: Fail, object: own, observed: "no JSON", place: own, remedy: "mv " + own}}},
		look{"no plugins", files{own: `{"name":"x"}`}, nil, one(Fail, "no plugins")},
		look{"no name", files{own: `{"plugins":[{"type":"bridge"}]}`}, nil, one(Fail, "no name")},
		look{"no type", files{dir + "10-x.conf": `{"name":"x"}`}, nil, one(Fail, "no type")},
		look{"no JSON, and not used", files{calico: list("x", "calico"), podman: "{"}, nil, one(Pass, calico)},
		look{"two of two", files{"/etc/containerd/config.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nmax_conf_num = 2\n", own: list("a", "bridge"), flannel: list("b", "flannel")}, withRelease("1.7.20"), one(Pass, flannel)},
		look{"another folder", files{"/etc/containerd/config.toml": "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_dir = \"/cni\"\n", own: "{"}, withRelease("1.7.20"), one(Pass, "pods wait")},
		look{"a folder that cannot be read", files{"/etc/cni/net.d": "-> net.d"}, nil, one(Unknown, "too many levels")},
		look{"one that is not used and cannot be read", files{own: list("a", "bridge"), dir + "20-x.conflist": "-> /nowhere"}, nil, one(Unknown, "no such file")},
		look{"a file that cannot be read", files{dir + "10-x.conflist": "-> /nowhere"}, nil, one(Unknown, "no such file")},
	)
}

// withRelease has an installed containerd say that it is of that version.
func withRelease(version string) []func(*Outside) {
	return given(func(o *Outside) { o.Receipt = &Receipt{Versions: map[string]string{"containerd": version}} })
}

func TestForeignDaemons(t *testing.T) {
	f := files{
		"/proc/7/comm": "containerd\n", "/proc/7/cmdline": "/usr/local/bin/containerd\x00",
		"/proc/8/comm": "containerd-shim\n", "/proc/9/comm": "bash\n", "/proc/self/": "",
	}
	more := func(status string) files {
		all := files{"/proc/12/comm": "containerd\n", "/proc/12/cmdline": "containerd\x00--config\x00/var/run/docker/containerd/containerd.toml\x00", "/proc/12/exe": "-> /usr/bin/containerd", "/proc/12/status": status}
		for p, content := range f {
			all[p] = content
		}
		return all
	}
	child := more("NSpid:\t12\n")
	child["/proc/12/stat"] = "12 (containerd) S 7 12 12 0 -1 4194304"
	looks(t, "foreign/daemons",
		look{"none but the unit's", f, given(withProcess), one(Pass, "no other")},
		look{"Docker's", more("NSpid:\t12\n"), given(withProcess), []want{{
			verdict: Warn, object: "process 12", observed: "another containerd, /usr/bin/containerd", place: "/proc/12", remedy: "systemctl status 12",
		}}},
		look{"a child that is not a shim yet", child, given(withProcess), one(Pass, "no other")},
		look{"no process can be seen", nil, nil, one(Unknown, "no such file")},
		look{"systemd is silent", f, given(withUnitsThatFail), one(Unknown, "silent")},
	)
	got := results(t, fake(t, more("NSpid:\t12\t1\n"), withProcess), "foreign/daemons")
	if len(got) != 1 || !strings.Contains(got[0].Note, "in a container") {
		t.Errorf("a containerd of kind's is not told from one of the host's: %+v", got)
	}
}

func TestCrictlConfig(t *testing.T) {
	const file = "/etc/crictl.yaml"
	const good = "unix:///run/containerd/containerd.sock"
	looks(t, "foreign/crictl",
		look{"no crictl", nil, nil, one(Pass, "no crictl")},
		look{"good", files{file: "# a comment\nruntime-endpoint: " + good + "\ntimeout: 10\n"}, nil, one(Pass, good)},
		look{"by another name", files{file: "runtime-endpoint: unix:///var/run/containerd/containerd.sock\n", "/run/": "", "/var/run": "-> /run"}, nil, one(Pass, "/var/run")},
		look{"no file", files{"/usr/local/bin/crictl": ""}, nil, []want{{verdict: Warn, observed: "no " + file, remedy: "echo 'runtime-endpoint: " + good + "' > " + file}}},
		look{"another runtime", files{file: "timeout: 2\nruntime-endpoint: unix:///run/crio/crio.sock\n"}, nil, []want{{
			verdict: Warn, object: "runtime-endpoint", observed: "crio.sock", wanted: good, place: file + ":2", remedy: "sed -i '2 s|.*|runtime-endpoint: " + good + "|' " + file,
		}}},
		look{"a path", files{file: "runtime-endpoint: /run/containerd/containerd.sock\n"}, nil, []want{{verdict: Warn, wanted: "unix://"}}},
		look{"a key that it does not know", files{file: "runtime-endpoint: " + good + "\nruntime_endpoint: x\n"}, nil, []want{{verdict: Warn, object: "runtime_endpoint", place: file + ":2", remedy: "sed -i '2 s/^/# /' " + file}}},
		look{"no endpoint", files{file: "timeout: 2\n"}, nil, []want{{verdict: Warn, observed: "no runtime-endpoint", remedy: ">> " + file}}},
		look{"no YAML", files{file: "\t{"}, nil, one(Warn, "yaml")},
		look{"unreadable", files{file + "/": ""}, nil, one(Unknown, "is a directory")},
	)
}

func TestKubeletEndpoint(t *testing.T) {
	const config, flags = "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/kubeadm-flags.env"
	const wanted = "unix:///run/containerd/containerd.sock"
	is := func(content string) files { return files{config: content, "/usr/bin/containerd": ""} }
	looks(t, "foreign/kubelet-endpoint",
		look{"the default", is("kind: KubeletConfiguration\n"), nil, one(Pass, wanted)},
		look{"set", is("containerRuntimeEndpoint: " + wanted + "\n"), nil, []want{{verdict: Pass, place: config + ":1"}}},
		look{"another's, on a host that nobody says to be containerd's", is("containerRuntimeEndpoint: unix:///run/crio/crio.sock\n"), nil, []want{{verdict: Warn, observed: "crio.sock", place: config + ":1"}}},
		look{"Docker's, on such a host", is("containerRuntimeEndpoint: unix:///var/run/cri-dockerd.sock\n"), nil, one(Warn, "cri-dockerd.sock")},
		look{"a socket that is nobody's, on such a host", is("containerRuntimeEndpoint: unix:///run/x.sock\n"), nil, one(Fail, "x.sock")},
		look{"another's", is("kind: x\ncontainerRuntimeEndpoint: unix:///run/crio/crio.sock\n"), given(withSpec(profiles.Spec{})), []want{{
			verdict: Fail, observed: "crio.sock", wanted: wanted, place: config + ":2", remedy: "sed -i 's|unix:///run/crio/crio.sock|" + wanted + "|' " + config + "\nsystemctl restart kubelet",
		}}},
		look{"another's, by a flag", files{flags: "KUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/crio/crio.sock\"\n", "/usr/bin/containerd": ""}, given(withSpec(profiles.Spec{})), []want{{
			verdict: Fail, place: flags + ":1", remedy: flags,
		}}},
		look{"the default, and a containerd elsewhere", files{
			config: "kind: x\n", "/etc/containerd/config.toml": "version = 2\n[grpc]\naddress = \"/run/c.sock\"\n", "/usr/bin/containerd": "",
		}, withRelease("1.7.20"), []want{{verdict: Fail, observed: wanted, wanted: "unix:///run/c.sock", remedy: "echo 'containerRuntimeEndpoint: unix:///run/c.sock' >> " + config}}},
		look{"no containerd", files{config: "kind: x\n"}, nil, one(Skip, "no containerd")},
		look{"unreadable", files{config + "/": "", "/usr/bin/containerd": ""}, nil, one(Unknown, "is a directory")},
	)
}

// Checks of the host's own that fail stop an apply: none of them may on a fresh Debian.
func TestAFreshDebianPasses(t *testing.T) {
	f := files{
		"/etc/hosts": "127.0.0.1 localhost\n", "/etc/fstab": "/dev/vda / ext4 defaults 0 1\n", "/proc/swaps": swapHeader, "/proc/meminfo": "MemTotal: 980000 kB\n",
		"/sys/devices/system/cpu/online": "0-1\n", "/proc/sys/kernel/hostname": "guest\n", "/sys/module/apparmor/parameters/enabled": "Y\n",
		"/bin/mount": "", "/bin/umount": "", "/sbin/modprobe": "", "/proc/1/environ": "", "/var/lib/dpkg/status": "Package: dash\nStatus: install ok installed\n\n",
		mountinfo: mounted("/run tmpfs rw,nosuid,nodev"), "/run/dbus/": "", "/proc/net/tcp": "", "/etc/": "", "/usr/bin/apt-get": "",
	}
	spec := dynamic()
	spec.Arch, spec.Containerd.Static, spec.Containerd.SystemdCgroup = runtime.GOARCH, true, true
	n := fake(t, f, withUnits(units{}), withSpec(spec), applying, socket("/run/dbus/system_bus_socket"), typed(true, true, nil), func(o *Outside) {
		o.Facts.Arch, o.Facts.ArchKnown = runtime.GOARCH, true
		o.Facts.LibC.Kind, o.Facts.LibC.Major, o.Facts.LibC.Minor = "glibc", 2, 36
	})
	families := slices.Concat(hostChecks(), foreignChecks())
	for _, r := range run(t.Context(), n, Selection{Stages: []Stage{Preflight}}, families) {
		if r.Verdict == Fail {
			t.Errorf("%s: %s", r.ID, r.String())
		}
		if strings.Contains(r.Observed, "broke") {
			t.Errorf("%s: %s", r.ID, r.Observed)
		}
	}
}
