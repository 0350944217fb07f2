package vm_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// notBroken are the required checks that nothing here breaks, each with the reason.
func notBroken() map[string]string {
	const elsewhere = "that takes another machine; its table test has it"
	return map[string]string{
		"host/privilege":       "asked before an apply alone: TestRefused, not root",
		"host/init":            "TestRefused, no systemd as PID 1",
		"host/arch":            elsewhere,
		"host/libc-version":    "an older C library is another distribution; its table test has it",
		"host/apparmor-parser": "it fails with containerd before 1.6.18 alone, and warns on all machines here",
		"kernel/version":       elsewhere,
		"kernel/seccomp":       elsewhere,
		"board/userland":       elsewhere,
		"config/schema":        "a version that the release does not read is found by config/parses, and an older one is a warning",
		"daemon/version":       "binary/version or process/exe find the cause; its table test has it",
	}
}

const (
	dropIns = "/etc/systemd/system/containerd.service.d/"
	confd   = "/etc/containerd/conf.d/zz-other.toml"
)

// dropIn is a script that adds a drop-in for containerd.service, of which systemd knows.
func dropIn(name, text string) string {
	return "mkdir -p " + dropIns + "\nprintf '%s\\n' '[Service]' '" + text + "' >" + dropIns + name + "\nsystemctl daemon-reload"
}

// noDropIns puts the unit back.
const noDropIns = "rm -rf " + dropIns + "\nsystemctl daemon-reload"

// configured is a script that adds a file to the daemon's config, with which it runs.
func configured(text string) string {
	return "mkdir -p /etc/containerd/conf.d\ncat >" + confd + " <<'E'\nversion = 3\n" + text + "\nE\nsystemctl restart containerd"
}

// edited is a script that changes the daemon's config with sed, with which it then runs.
func edited(sed string) string {
	return "cp -a /etc/containerd/config.toml /root/config.toml\nsed -i \"" + sed + "\" /etc/containerd/config.toml\nsystemctl restart containerd"
}

const (
	unconfigured = "rm -rf /etc/containerd/conf.d"
	unedited     = "mv /root/config.toml /etc/containerd/config.toml\nsystemctl restart containerd"
)

// kept is a script that keeps a copy of a file in /root, and putBack one that puts it back.
func kept(path string) string { return "cp -a " + path + " /root/kept\n" }

func putBack(path string) string {
	return "if test -e /root/kept; then rm -f " + path + "; mv /root/kept " + path + "; fi\n"
}

func brokenNodes() []brokenNode {
	return []brokenNode{
		{name: "unit", prepare: onePod, cases: unitCases()},
		{name: "binaries", prepare: onePod, cases: binaryCases()},
		{name: "config", profile: configProfile, files: certificates, before: "modprobe br_netfilter", prepare: mirrorServes + kubelet, options: checkEverything, cases: configCases()},
		{name: "host", prepare: kubelet, cases: hostCases()},
		{name: "boot", prepare: kubelet, cases: bootCases()},
		{name: "by hand", byHand: byHand, cases: byHandCases()},
	}
}

// nodeOfMain is the one machine of every make test: the one that has most to break, with the
// cases of all that are marked so.
func nodeOfMain(all []brokenNode) brokenNode {
	i := slices.IndexFunc(all, func(g brokenNode) bool { return g.name == "config" })
	one := all[i]
	one.name, one.cases = "main", nil
	for _, g := range all {
		for _, c := range g.cases {
			if c.main {
				one.cases = append(one.cases, c)
			}
		}
	}
	return one
}

// checkEverything also uses the network, of which the machines have a loopback.
const checkEverything = "--color never"

// onePod is a container that runs, for what is looked at in shims and pods.
const onePod = "/media/stick/inguest cri /run/containerd/containerd.sock run one docker.io/library/busybox:test sleep 100000"

// anotherPod takes the container down and starts it anew.
const anotherPod = "/media/stick/inguest cri /run/containerd/containerd.sock rm one\n" + onePod

// copied is a script that puts a copy of the daemon's program in its place.
const copied = `cd /usr/local/bin
ln containerd .kept
cp -a containerd .copy
mv .copy containerd
`

// theShim and thePod print process numbers.
const (
	theDaemon = "$(systemctl show -P MainPID containerd)"
	theShim   = "$(pgrep -f ^/usr/local/bin/containerd-shim-runc-v2)"
	thePod    = "$(pgrep -f '^sleep 100000')"
)

func unitCases() []broken {
	return []broken{
		{
			name: "KillMode=control-group in a drop-in", main: true, check: "unit/kill-mode",
			breaks: dropIn("10-kill.conf", "KillMode=control-group"),
			place:  dropIns + "10-kill.conf:2", observed: "control-group", after: noDropIns, warns: []string{"unit/drop-ins"},
		},
		{
			name: "KillMode=mixed in a drop-in of higher order", check: "unit/kill-mode",
			breaks: dropIn("zz-kill.conf", "KillMode=mixed"),
			place:  dropIns + "zz-kill.conf:2", observed: "mixed", after: noDropIns, warns: []string{"unit/drop-ins"},
		},
		{
			name: "OOMScoreAdjust=0 in a drop-in of higher order", main: true, check: "unit/oom-score-adjust",
			breaks: dropIn("10-oom.conf", "OOMScoreAdjust=-999") + "\n" + dropIn("zz-oom.conf", "OOMScoreAdjust=0"),
			place:  dropIns + "zz-oom.conf:2", observed: "0", after: noDropIns, warns: []string{"unit/drop-ins"},
		},
		{
			name: "OOMScoreAdjust=0 in force since a restart", check: "unit/oom-score-adjust",
			breaks: dropIn("zz-oom.conf", "OOMScoreAdjust=0") + "\nsystemctl restart containerd",
			place:  dropIns + "zz-oom.conf:2", observed: "0", after: noDropIns, warns: []string{"unit/drop-ins"},
		},
		{
			name: "Delegate=no", check: "unit/delegate",
			breaks: dropIn("zz-delegate.conf", "Delegate=no"),
			place:  dropIns + "zz-delegate.conf:2", observed: "no", after: noDropIns, warns: []string{"unit/drop-ins"},
		},
		{
			name: "Type=simple", check: "unit/type",
			breaks: dropIn("zz-type.conf", "Type=simple"),
			place:  dropIns + "zz-type.conf:2", observed: "simple", after: noDropIns, warns: []string{"unit/drop-ins"},
		},
		{
			name: "Restart=no", check: "unit/restart",
			breaks: dropIn("zz-restart.conf", "Restart=no"),
			place:  dropIns + "zz-restart.conf:2", observed: "no", after: noDropIns, warns: []string{"unit/drop-ins"},
		},
		{
			name: "TasksMax=64", check: "unit/tasks-max",
			breaks: dropIn("zz-tasks.conf", "TasksMax=64"),
			place:  dropIns + "zz-tasks.conf:2", observed: "64", after: noDropIns, warns: []string{"unit/drop-ins"},
		},
		{
			name: "LimitNOFILE=1024", check: "unit/limit-nofile",
			breaks: dropIn("zz-files.conf", "LimitNOFILE=1024"),
			place:  dropIns + "zz-files.conf:2", observed: "1024", after: noDropIns, warns: []string{"unit/drop-ins", "process/limits"},
		},
		{
			name: "LimitNPROC=64", check: "unit/limit-nproc",
			breaks: dropIn("zz-processes.conf", "LimitNPROC=64"),
			place:  dropIns + "zz-processes.conf:2", observed: "64", after: noDropIns, warns: []string{"unit/drop-ins", "process/limits"},
		},
		{
			name: "LimitCORE=0", check: "unit/limit-core",
			breaks: dropIn("zz-core.conf", "LimitCORE=0"),
			place:  dropIns + "zz-core.conf:2", observed: "0", after: noDropIns, warns: []string{"unit/drop-ins", "process/limits"},
		},
		{
			name: "ExecStart is a program that is not there", check: "unit/exec-start",
			breaks: dropIn("zz-exec.conf", "ExecStart=") + "\necho ExecStart=/opt/missing/containerd >>" + dropIns + "zz-exec.conf\nsystemctl daemon-reload",
			place:  dropIns + "zz-exec.conf:3", observed: "/opt/missing/containerd", warns: []string{"unit/drop-ins"}, after: noDropIns,
		},
		{
			name: "a config file that is not there", check: "unit/exec-start",
			breaks: dropIn("zz-exec.conf", "ExecStart=") + "\necho ExecStart=/usr/local/bin/containerd --config /etc/containerd/missing.toml >>" + dropIns + "zz-exec.conf\nsystemctl daemon-reload",
			place:  dropIns + "zz-exec.conf:3", observed: "/etc/containerd/missing.toml", warns: []string{"unit/drop-ins"}, after: noDropIns,
		},
		{
			name: "PrivateMounts=yes", check: "unit/sandboxing",
			breaks: dropIn("zz-mounts.conf", "PrivateMounts=yes"),
			place:  dropIns + "zz-mounts.conf:2", observed: "PrivateMounts", after: noDropIns, warns: []string{"unit/drop-ins"},
		},
		{
			name: "edited without a daemon-reload", check: "unit/daemon-reload",
			breaks: "sleep 1\ntouch /etc/systemd/system/containerd.service",
			place:  "/etc/systemd/system/containerd.service",
		},
		{
			name: "a unit file that comes before nodeprep's", check: "unit/fragment",
			breaks: "mkdir -p /etc/systemd/system.control\ncp /etc/systemd/system/containerd.service /etc/systemd/system.control/\nsystemctl daemon-reload",
			place:  "/etc/systemd/system.control/containerd.service",
		},
		{
			name: "masked", check: "foreign/masked-unit",
			breaks: kept("/etc/systemd/system/containerd.service") + "ln -sf /dev/null /etc/systemd/system/containerd.service\nsystemctl daemon-reload",
			place:  "/etc/systemd/system/containerd.service", observed: "masked",
			fix: "systemctl unmask containerd.service\n" + putBack("/etc/systemd/system/containerd.service") + "systemctl daemon-reload\nsystemctl enable containerd", why: "the mask took the place of the unit's file",
		},
		{
			name: "the unit file is gone", check: "unit/loaded",
			breaks: kept("/etc/systemd/system/containerd.service") + "rm /etc/systemd/system/containerd.service\nsystemctl daemon-reload",
			place:  "/etc/systemd/system/containerd.service", observed: "no containerd.service", after: "rm -f /root/kept",
		},
		{
			name: "disabled", check: "unit/enabled",
			breaks: "systemctl disable containerd", place: "containerd.service", observed: "disabled",
		},
		{
			name: "stopped", check: "unit/active",
			breaks: "systemctl stop containerd", place: "containerd.service", observed: "inactive",
			skips: []string{"no containerd runs here"},
		},
		{
			name: "the daemon protected less than its unit says", check: "process/oom-score-adj",
			breaks: "choom -n -500 -p " + theDaemon, observed: "-500",
		},
		{
			name: "the daemon with few file descriptors", check: "process/limits",
			breaks: "prlimit --nofile=1024:1024 -p " + theDaemon, observed: "1024",
		},
		{
			name: "the daemon outside of its unit's cgroup", check: "process/cgroup",
			breaks:   "mkdir -p /sys/fs/cgroup/elsewhere\necho " + theDaemon + " >/sys/fs/cgroup/elsewhere/cgroup.procs",
			observed: "/elsewhere", after: "rmdir /sys/fs/cgroup/elsewhere",
		},
		{
			name: "a shim that is killed first", check: "process/shim-oom-score",
			breaks: "choom -n 500 -p " + theShim, observed: "500",
		},
		{
			name: "a pod that is never killed", check: "process/pod-oom-score",
			breaks: "choom -n -999 -p " + thePod, observed: "-999",
		},
		{
			// The daemon runs a copy, and what it was copied from is put back over that: the
			// same file as ever, which nobody has to hash anew.
			name: "the program replaced under the daemon", check: "process/exe",
			breaks: copied + "systemctl restart containerd\nmv .kept containerd",
			place:  "/exe", observed: "/usr/local/bin/containerd was replaced",
		},
		{
			name: "the program replaced under a shim", check: "process/shim-exe",
			breaks: strings.ReplaceAll(copied, "containerd", "containerd-shim-runc-v2"), observed: "1 of 1",
			// A changed file's hash may take an emulated machine longer than a check has.
			unknowns: []string{"binary/integrity", "binary/version"},
			fix:      "cd /usr/local/bin\nmv .kept containerd-shim-runc-v2\n" + anotherPod, why: "its pods are the cluster's to start anew",
		},
		{
			name: "the config edited after the start", check: "process/config",
			breaks: "sleep 1\nsed -i 's/^oom_score = 0/oom_score = 0 /' /etc/containerd/config.toml",
			place:  "/etc/containerd/config.toml",
		},
		{
			name: "another process has the socket", check: "process/socket-owner",
			breaks: "rm /run/containerd/containerd.sock\nsystemd-run --unit=thief --collect systemd-socket-activate -l /run/containerd/containerd.sock /bin/sleep 1000\nuntil test -S /run/containerd/containerd.sock; do sleep 0.1; done",
			place:  "/run/containerd/containerd.sock", observed: "of thief.service", skips: []string{"another process listens there"},
		},
		{
			name: "the daemon hangs", check: "daemon/answers",
			breaks: "kill -STOP " + theDaemon, place: "/etc/containerd/config.toml:", observed: "/run/containerd/containerd.sock",
		},
	}
}

func binaryCases() []broken {
	const (
		containerd = "/usr/local/bin/containerd"
		shim       = "/usr/local/bin/containerd-shim-runc-v2"
		runc       = "/usr/local/sbin/runc"
		loopback   = "/opt/cni/bin/loopback"
		replaceBy  = "rm " + runc + "\ninstall -m 755 "
		profile    = "/root/node/profile.yaml"
		pause      = "/media/stick/images/pause.tar"
		rmPause    = "ctr -n k8s.io images rm --sync registry.k8s.io/pause:3.10"
		pin        = "ctr -n k8s.io images label registry.k8s.io/pause:3.10 io.cri-containerd.pinned=pinned"
	)
	return []broken{
		{name: "containerd deleted", check: "binary/containerd", breaks: "rm " + containerd, observed: containerd, after: "systemctl restart containerd"},
		{name: "the shim deleted", check: "binary/shim", breaks: "rm " + shim, place: shim, warns: []string{"process/shim-exe"}, after: anotherPod},
		{name: "runc deleted", check: "binary/runc", breaks: "rm " + runc, place: "/etc/containerd/config.toml:", observed: runc},
		{name: "runc not executable", check: "binary/runc", breaks: "chmod -x " + runc, place: runc, observed: "executed"},
		{
			name: "a byte more in runc", check: "binary/integrity",
			breaks: kept(runc) + replaceBy + "/root/kept " + runc + "\nrm /root/kept\nprintf x >>" + runc, place: runc,
		},
		{
			name: "a runc for another architecture", check: "binary/arch",
			breaks: replaceBy + "/media/stick/pause.foreign " + runc, place: runc, observed: "arm64",
		},
		{
			name: "a runc that needs a newer C library", check: "binary/libraries",
			breaks: replaceBy + "/media/releases/runc-1.1.15-amd64/runc.amd64 " + runc, observed: "2.36",
		},
		{
			name: "a runc whose loader is not there", check: "binary/interpreter",
			breaks: kept(runc) + "rm " + runc + "\nsed s,/lib64/ld-linux-x86-64.so.2,/lib64/ld-linux-x86-64.so.9, /root/kept >" + runc + "\nchmod 755 " + runc + "\nrm /root/kept",
			place:  runc, observed: "so.9",
		},
		{name: "runc for everybody to write", check: "binary/writable", breaks: "chmod o+w " + runc, place: runc, observed: "everybody"},
		{
			name: "another runc in the profile than is there", check: "binary/version",
			breaks: kept(profile) + "echo 'runc: {version: 1.1.15}' >>" + profile, place: runc, observed: "1.1.5",
			fix: putBack(profile), why: "that release does not run here",
		},
		{name: "no loopback plugin", check: "binary/cni-plugins", breaks: "rm " + loopback, place: "/opt/cni/bin", observed: "loopback"},
		{name: "another containerd on PATH", check: "foreign/binary-owner", breaks: "cp " + containerd + " /usr/bin/containerd", place: "/usr/bin/containerd", warns: []string{"host/foreign-runtime"}},
		{
			name: "the sandbox image only in default", check: "images/sandbox",
			breaks: rmPause + "\nctr images import " + pause, place: "/etc/containerd/config.toml:", observed: "only in namespace default",
			warns: []string{"images/default-namespace"}, after: pin + "\nctr images rm --sync $(ctr images ls -q)",
		},
		{
			name: "no sandbox image", check: "images/sandbox",
			breaks: rmPause, place: "/etc/containerd/config.toml:", observed: "registry.k8s.io/pause:3.10: not there", after: pin,
		},
		{
			name: "an image of another platform", check: "images/platform",
			breaks: "mkdir /root/pause\ntar xf " + pause + " -C /root/pause\nsed -i s/amd64/arm64/ /root/pause/*.json\nsed -i s,registry.k8s.io/pause,registry.example.com/pause,g /root/pause/manifest.json\ntar cf /root/arm64.tar -C /root/pause .\n" +
				"ctr -n k8s.io images import --all-platforms --no-unpack /root/arm64.tar\nrm -r /root/pause",
			observed: "arm64", warns: []string{"images/sandbox-pinned"},
			after: "ctr -n k8s.io images rm --sync $(ctr -n k8s.io images ls -q | grep example.com) || true",
		},
	}
}

// configProfile is of nodes that have mirrors, one that nodes may go past and one that
// keeps them in the house; whose daemon stays up without CRI; and on which others load
// br_netfilter.
const configProfile = `registries:
  docker.io:
    mirrors: [{url: "https://127.0.0.1:5000", ca: ca.pem}]
  "*":
    upstream: deny
    mirrors: [{url: "https://127.0.0.1:5000", ca: ca.pem, client: {cert: client.pem, key: client.key}}]
containerd: {settings: {required_plugins: []}}
host: {modules: [overlay]}
`

// mirrorServes starts the mirror of configProfile.
const mirrorServes = `systemd-run -q --unit=mirror --collect /media/stick/inguest registry 127.0.0.1:5000 /root/node/ca.pem /root/ca.key
`

func configCases() []broken {
	const (
		config   = "/etc/containerd/config.toml"
		hosts    = "/etc/containerd/certs.d/docker.io/hosts.toml"
		fallback = "/etc/containerd/certs.d/_default/hosts.toml"
		// The folder with the files of a registry, and those of its mirrors.
		pems = "/etc/containerd/certs.d/docker.io/ca.pem"
		keys = "$(grep -rl PRIVATE /etc/containerd/certs.d/_default)"
	)
	drop := func(name, check string, line, text, observed string) broken {
		return broken{name: name, check: check, breaks: configured(text), place: confd + ":" + line, observed: observed, after: unconfigured}
	}
	chosen := func(c broken) broken {
		c.main = true
		return c
	}
	also := func(c broken, warns ...string) broken {
		c.warns = append(c.warns, warns...)
		return c
	}
	absentThen := func(c broken, why string) broken {
		c.skips = append(c.skips, why)
		return c
	}
	mended := func(c broken, fix, why string) broken {
		c.fix, c.why, c.place = fix, why, "/etc/containerd/"
		return c
	}
	return []broken{
		{
			name: "no TOML", main: true, check: "config/parses",
			breaks: "mkdir -p /etc/containerd/conf.d\nprintf 'version = 3\\n[plugins\\n' >" + confd, place: confd + ":2",
			fix: "rm -r /etc/containerd/conf.d", why: "nobody knows what was meant",
		},
		{
			name: "a drop-in of another version", check: "config/imports",
			breaks: "mkdir -p /etc/containerd/conf.d\nprintf '[plugins.\"io.containerd.grpc.v1.cri\".containerd]\\n  default_runtime_name = \"runc\"\\n' >" + confd + "\nsystemctl restart containerd",
			place:  confd, observed: "no version", after: unconfigured, warns: []string{"config/schema"},
		},
		{
			name: "sections of schema 2", check: "config/ignored-sections",
			breaks: configured("[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc.options]\nSystemdCgroup = true"),
			place:  confd + ":2", observed: "io.containerd.grpc.v1.cri", fix: unconfigured, why: "what is meant is told, for somebody to write",
		},
		also(drop("mirrors beside a config_path", "config/mirrors", "2",
			"[plugins.'io.containerd.cri.v1.images'.registry.mirrors.'docker.io']\nendpoint = ['https://mirror.example.com']", "docker.io"),
			"config/deprecated", "config/transfer"),
		drop("two folders as config_path", "config/registry-path", "3",
			"[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = '/etc/containerd/certs.d:/etc/docker/certs.d'", "/etc/docker/certs.d"),
		also(drop("bin_dir beside bin_dirs", "config/cni-bin-dirs", "3",
			"[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = '/opt/cni/bin'", "bin_dir"), "config/deprecated"),
		drop("CRI disabled", "config/cri-enabled", "2", "disabled_plugins = ['io.containerd.grpc.v1.cri']", "io.containerd.grpc.v1.cri"),
		drop("a default runtime that nobody defines", "config/default-runtime", "3",
			"[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'kata'", "kata"),
		mended(drop("a runtime whose program is not there", "config/runtimes", "5",
			"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]\nruntime_type = 'io.containerd.runc.v2'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]\nBinaryName = '/usr/bin/crun'\nSystemdCgroup = true", "/usr/bin/crun"),
			unconfigured+"\nsystemctl restart containerd", "whether to install it or not is somebody's choice"),
		chosen(absentThen(drop("cgroupfs in a drop-in", "config/systemd-cgroup", "3",
			"[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nSystemdCgroup = false", "false"), "no runtime uses the systemd cgroup driver")),
		absentThen(drop("another sandbox image", "config/profile", "3",
			"[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'registry.k8s.io/pause:3.9'", "pause:3.9"), "nothing says for which Kubernetes"),
		drop("nobody unpacks for overlayfs", "config/unpack", "2",
			"[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux'\nsnapshotter = 'native'", "native"),
		mended(drop("the snapshotter disabled", "daemon/snapshotter", "",
			"disabled_plugins = ['io.containerd.snapshotter.v1.overlayfs']", "not loaded"),
			unconfigured+"\nsystemctl restart containerd", "whoever disabled it may have meant it"),
		mended(drop("CRI in error", "daemon/cri", "",
			"[plugins.'io.containerd.cri.v1.images']\nimage_pull_progress_timeout = 'soon'", "soon"),
			unconfigured+"\nsystemctl restart containerd", "the daemon's message does not say in which file"),
		{
			name: "oom_score in the config", check: "config/oom-score",
			breaks: edited("s/^oom_score = 0/oom_score = -500/"), place: config + ":4", observed: "-500", after: "rm -f /root/config.toml",
		},
		{
			name: "a config for everybody to write", check: "config/permissions",
			breaks: "chmod 666 " + config, place: config, observed: "0666",
		},
		{
			name: "a kubelet with cgroupfs", check: "config/kubelet-cgroup-driver",
			breaks: "sed -i 's/cgroupDriver: systemd/cgroupDriver: cgroupfs/' /var/lib/kubelet/config.yaml",
			place:  "/var/lib/kubelet/config.yaml:3", observed: "cgroupfs",
		},
		{
			name: "a kubelet that asks another runtime", check: "foreign/kubelet-endpoint",
			breaks: "sed -i 's,run/containerd/containerd.sock,run/crio/crio.sock,' /var/lib/kubelet/config.yaml",
			place:  "/var/lib/kubelet/config.yaml:4", observed: "/run/crio/crio.sock",
		},
		{
			name: "one bad capability", main: true, check: "registry/hosts-toml",
			breaks: kept(hosts) + "sed -i \"s/^\\(\\[host.*\\)/\\1\\ncapabilities = ['pull', 'resolv']/\" " + hosts,
			place:  hosts, observed: "resolv", after: putBack(hosts),
		},
		{
			name: "a CA that expired", check: "registry/ca",
			breaks: "cp -a " + pems + " /root/kept\ncp /root/expired.pem " + pems, place: "/etc/containerd/certs.d/docker.io/", observed: "expired",
			fix: putBack(pems), why: "a new certificate is its authority's to make",
		},
		{
			name: "a CA that is not there", check: "registry/ca",
			breaks: "rm " + pems, place: hosts,
		},
		{
			name: "a key that is not the certificate's", check: "registry/client-cert",
			breaks: "cp -a " + keys + " /root/kept\ncp /root/ca.key " + keys, place: "/etc/containerd/certs.d/_default/",
		},
		{
			name: "a key for everybody to read", check: "registry/permissions",
			breaks: "chmod 644 " + keys, place: "/etc/containerd/certs.d/_default/",
		},
		{
			name: "a way past the mirror", check: "registry/deny",
			breaks: "sed -i \"s,^server.*,server = 'https://localhost:5000',\" " + fallback, place: fallback + ":2", observed: "https://localhost:5000",
		},
		{
			name: "a mirror that is down", check: "registry/mirror-reachable",
			breaks: "systemctl stop mirror", place: "/etc/containerd/certs.d/", observed: "refused",
			fix: mirrorServes + "until curl -sk https://127.0.0.1:5000/v2/; do sleep 0.1; done", why: "it is another machine's",
		},
		{
			name: "a CNI config that comes first", check: "foreign/cni-conf",
			breaks: "printf '{\"cniVersion\":\"1.0.0\",\"name\":\"old\",\"plugins\":[{\"type\":\"loopback\"}]}' >/etc/cni/net.d/00-old.conflist",
			place:  "/etc/cni/net.d/00-old.conflist", after: "rm -f /etc/cni/net.d/00-old.*",
		},
		{
			name: "a CNI config that is no JSON", check: "foreign/cni-conf",
			breaks: "echo '{' >/etc/cni/net.d/00-old.conflist", place: "/etc/cni/net.d/00-old.conflist", after: "rm -f /etc/cni/net.d/00-old.*",
		},
		{
			name: "br_netfilter not loaded, which others should", check: "kernel/br-netfilter",
			breaks: "modprobe -r br_netfilter", place: "/proc/sys/net/bridge", observed: "not loaded",
			after: "rm -f /etc/modules-load.d/br_netfilter.conf",
		},
	}
}

// kubelet is the config of one, which the profile's containerd suits, and a unit that can
// be restarted in its place.
const kubelet = `mkdir -p /var/lib/kubelet
cat >/var/lib/kubelet/config.yaml <<'E'
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
failCgroupV1: true
E
cat >/etc/systemd/system/kubelet.service <<'E'
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
E
systemctl daemon-reload
systemctl enable --now kubelet
`

func hostCases() []broken {
	return []broken{
		{
			name: "br_netfilter not loaded", check: "kernel/modules",
			breaks: "modprobe -r br_netfilter", place: "/etc/modules-load.d/nodeprep.conf:", observed: "br_netfilter: not loaded",
			after: "sysctl -q --system",
		},
		{
			name: "modules that nobody loads at the next boot", check: "kernel/modules-persisted",
			breaks: kept("/etc/modules-load.d/nodeprep.conf") + "rm /etc/modules-load.d/nodeprep.conf", place: "/etc/modules-load.d", observed: "br_netfilter",
			skips: []string{"kernel/modules-persisted says"},
			after: "rm -f /etc/modules-load.d/br_netfilter.conf /etc/modules-load.d/overlay.conf\nmv /root/kept /etc/modules-load.d/nodeprep.conf",
		},
		{
			name: "a module that may not be loaded", check: "kernel/modules-blacklisted",
			breaks: "echo 'install br_netfilter /bin/false' >/etc/modprobe.d/other.conf", place: "/etc/modprobe.d/other.conf:1", observed: "br_netfilter",
			after: "rm -f /etc/modprobe.d/other.conf",
		},
		{
			name: "no module overlay", check: "kernel/overlay",
			breaks: "modprobe -r overlay\nfind /lib/modules -name 'overlay.ko*' | while read -r f; do mv $f /root/; echo $f >/root/overlay; done",
			place:  "/lib/modules/", observed: "overlay",
			fix: "mv /root/overlay.ko* $(cat /root/overlay)\nmodprobe overlay", why: "no network to install the kernel's package from",
		},
		{
			name: "no module for pods' networks", check: "kernel/config",
			breaks: "find /lib/modules -name 'veth.ko*' | while read -r f; do mv $f /root/; echo $f >/root/veth; done", observed: "CONFIG_VETH",
			fix: "mv /root/veth.ko* $(cat /root/veth)", why: "no network to install the kernel's package from",
		},
		{
			name: "no more network namespaces", check: "kernel/namespaces",
			breaks: "sysctl -q -w user.max_net_namespaces=0", place: "/proc/sys/user/max_net_namespaces", observed: "user.max_net_namespaces: 0",
			after: "rm -f /etc/sysctl.d/*user*",
		},
		{
			name: "forwarding switched off", check: "kernel/sysctl",
			breaks: "sysctl -q -w net.ipv4.ip_forward=0", place: "/proc/sys/net/ipv4/ip_forward", observed: "net.ipv4.ip_forward: 0",
		},
		{
			name: "forwarding switched off at the next boot", check: "kernel/sysctl-persisted",
			breaks: "printf '# theirs\\nnet.ipv4.ip_forward = 0\\n' >/etc/sysctl.d/99-other.conf", place: "/etc/sysctl.d/99-other.conf:2", observed: "0",
			after: "ls /etc/sysctl.d; rm -f /etc/sysctl.d/99-other.conf /etc/sysctl.d/zz*",
		},
		{
			name: "a controller that is missing", check: "kernel/cgroup-controllers",
			breaks:   "sed s/pids// /sys/fs/cgroup/cgroup.controllers >/run/controllers\nmount --bind /run/controllers /sys/fs/cgroup/cgroup.controllers",
			observed: "pids", place: "/sys/fs/cgroup/cgroup.controllers", warns: []string{"kernel/cgroup-subtree"},
			fix: "umount /sys/fs/cgroup/cgroup.controllers", why: "the kernel has it only from its next boot on",
		},
		{
			name: "the disk is full", check: "host/space",
			breaks: "fallocate -l $(($(stat -f -c %a*%S /) - 20000000)) /fill", place: "/ (", observed: "/var/lib/containerd",
			fix: "rm /fill", why: "nobody else knows what may go",
		},
		{
			name: "no inode is left", check: "host/inodes",
			breaks: `systemctl stop containerd
truncate -s 3G /root/small.img
mkfs.ext4 -q -N 512 /root/small.img
mount -o loop /root/small.img /mnt
cp -a /var/lib/containerd/. /mnt
umount /mnt
mount -o loop /root/small.img /var/lib/containerd
systemctl start containerd
cd /var/lib/containerd
i=0; while touch file$i 2>/dev/null; do i=$((i+1)); done`,
			place: "/var/lib/containerd", warns: []string{"unit/ordering"},
			fix: "systemctl stop containerd\numount /var/lib/containerd\nrm /root/small.img\nsystemctl start containerd", why: "a file system has as many inodes as it was made with",
		},
		{
			name: "no room for state", check: "host/state-directory",
			breaks: "fallocate -l $(($(stat -f -c %a*%S /run))) /run/fill", place: "/run",
			fix: "rm /run/fill", why: "nobody else knows what may go",
		},
		{
			name: "images on an overlay", check: "host/backing-filesystem",
			breaks: "mkdir /root/upper /root/work\nmount -t overlay -o lowerdir=/var/lib/containerd,upperdir=/root/upper,workdir=/root/work overlay /var/lib/containerd",
			place:  "/var/lib/containerd", observed: "overlay", warns: []string{"unit/ordering", "board/storage"}, after: "rm -rf /root/upper /root/work",
		},
		{
			name: "noexec where plugins are", check: "host/mount-options",
			breaks: "mount --bind /opt /opt\nmount -o remount,bind,noexec /opt", place: "/opt", observed: "noexec",
			after: "umount /opt",
		},
		{
			name: "read-only where programs are", check: "host/read-only",
			breaks: "mount --bind /usr/local /usr/local\nmount -o remount,bind,ro /usr/local", place: "/usr/local", observed: "read-only",
			after: "umount -l /usr/local",
		},
		{
			name: "swap under a kubelet", check: "host/kubelet-swap",
			breaks: "fallocate -l 64M /swap\nchmod 600 /swap\nmkswap -q /swap\nswapon /swap", place: "/swap", observed: "failSwapOn",
			warns: []string{"host/swap"}, after: "rm -f /swap",
		},
		{
			name: "a clock that nobody set", check: "host/clock",
			breaks: "date +%s >/root/now\ndate -s @86400", place: "clock", observed: "1970",
			after: "date -s @$(($(cat /root/now) + 30))",
		},
		{
			name: "no system bus", check: "host/dbus", warned: true,
			breaks: "systemctl stop dbus.socket dbus.service\nrm /run/dbus/system_bus_socket", place: "/run/dbus/system_bus_socket",
		},
		{
			name: "another containerd.service below nodeprep's", check: "host/foreign-runtime",
			breaks: "cp /etc/systemd/system/containerd.service /lib/systemd/system/\nsystemctl daemon-reload", place: "/systemd/system/containerd.service",
			warns: []string{"unit/fragment"}, after: "rm -f /lib/systemd/system/containerd.service*",
		},
		{
			name: "localhost is nobody", check: "host/localhost",
			breaks: kept("/etc/hosts") + "sed -i 's/ localhost//' /etc/hosts", place: "/etc/hosts", after: "mv /root/kept /etc/hosts",
		},
		{
			name: "no machine id", check: "host/machine-id",
			breaks: kept("/etc/machine-id") + ": >/etc/machine-id", place: "/etc/machine-id", after: "mv /root/kept /etc/machine-id",
		},
		{
			name: "a host name that no node may have", check: "host/hostname",
			breaks: "echo Node_1 >/proc/sys/kernel/hostname", observed: "Node_1", fix: "echo bookworm >/proc/sys/kernel/hostname", why: "its name is its owner's to choose",
		},
		{
			name: "no iptables", check: "host/tools",
			breaks: "mv /usr/sbin/iptables /root/iptables", observed: "iptables",
			fix: "mv /root/iptables /usr/sbin/iptables", why: "no network to install it from",
		},
	}
}

// bootCases are what the kernel is told when it boots.
func bootCases() []broken {
	return []broken{
		{
			name: "booted without the memory controller", check: "board/memory-cgroup", boots: "cgroup_disable=memory",
			place: bootWords + ":1", observed: "cgroup_disable=memory",
		},
		{
			name: "booted with cgroup v1 under a kubelet that refuses it", check: "kernel/cgroup-v1", boots: "systemd.unified_cgroup_hierarchy=0",
			place: bootWords + ":1", observed: "hybrid", warns: []string{"kernel/cgroup-mode"}, skips: []string{"cgroup hybrid passes nothing down"},
		},
	}
}

// byHand makes a node of release files as containerd's getting-started has it, of what is
// on the stick alone.
const byHand = `tar xzf /media/releases/containerd-2.1.9-amd64/*.tar.gz -C /usr/local
install -m 755 /media/releases/runc-1.1.5-amd64/runc.amd64 /usr/local/sbin/runc
mkdir -p /opt/cni/bin /etc/containerd
tar xzf /media/releases/cni-1.9.1-amd64/*.tgz -C /opt/cni/bin
cat >/etc/containerd/config.toml <<'E'
version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = 'registry.k8s.io/pause:3.10'
[plugins.'io.containerd.cri.v1.images'.registry]
  config_path = '/etc/containerd/certs.d'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = true
E
cat >/etc/systemd/system/containerd.service <<'E'
[Unit]
After=network.target dbus.service
[Service]
ExecStartPre=-/sbin/modprobe overlay
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
E
systemctl daemon-reload
systemctl enable --now containerd
ctr -n k8s.io images import /media/stick/images/pause.tar`

func byHandCases() []broken {
	return []broken{
		{
			name: "a snapshotter without its pool", check: "host/snapshotter",
			breaks: edited("s/overlayfs/devmapper/"), place: "/etc/containerd/config.toml:3", observed: "devmapper",
			fix: unedited, why: "a pool of disks is its owner's to make",
		},
		{
			name: "a config of a later schema", check: "config/parses",
			breaks: "cp -a /etc/containerd/config.toml /root/config.toml\nsed -i 's/^version = 3/version = 4/' /etc/containerd/config.toml", place: "/etc/containerd/config.toml:1", observed: "4",
			after: unedited,
		},
	}
}

// certificates are the files of an authority, of one that expired, and of a client.
func certificates(t *testing.T) map[string]string {
	t.Helper()
	now := time.Now()
	ca := certificate(t, "authority", now.AddDate(10, 0, 0))
	client := certificate(t, "client", now.AddDate(10, 0, 0))
	return map[string]string{
		"/root/node/ca.pem":               ca.cert,
		"/root/ca.key":                    ca.key,
		"/etc/modules-load.d/theirs.conf": "br_netfilter\n",
		"/root/expired.pem":               certificate(t, "authority", now.AddDate(0, 0, -1)).cert,
		"/root/node/client.pem":           client.cert,
		"/root/node/client.key":           client.key,
	}
}

type pair struct{ cert, key string }

// certificate signs itself, and is from last year.
func certificate(t *testing.T, name string, until time.Time) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: until,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	cert, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	text := func(kind string, data []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}))
	}
	return pair{text("CERTIFICATE", cert), text("PRIVATE KEY", private)}
}
