package checks

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/systemd"
)

// foreignChecks are about other container runtimes on the host, which are named and never touched.
func foreignChecks() []Check {
	return []Check{
		{
			ID: "foreign/docker", Stage: Preflight, Severity: Recommended,
			Why:    "Docker starts a containerd of its own or uses the host's: then a restart of that one is felt by all of Docker's containers.",
			Source: "dockerd(8), --containerd; kubespray issues 8693 and 10530",
			Remedy: "give Docker and the node machines of their own, or know that they share one daemon",
			Run:    single(foreignDocker),
		},
		{
			ID: "foreign/packages", Stage: Preflight, Severity: Recommended,
			Why:    "An upgrade of a package restarts containerd.service, and programs of the package lie beside nodeprep's in PATH.",
			Source: "dh_installsystemd(1), --restart-after-upgrade; apt-mark(8)",
			Remedy: "hold the packages, or remove them",
			Run:    foreignPackages,
		},
		{
			ID: "foreign/distributions", Stage: Preflight, Severity: Recommended,
			Why:    "k3s, RKE2, k0s and MicroK8s bring a containerd, CNI and iptables rules of their own, at other paths, and a kubelet on the same port.",
			Source: "docs.k3s.io, docs.rke2.io, docs.k0sproject.io, microk8s.io",
			Remedy: "have one of them on a machine",
			Run:    foreignDistributions,
		},
		{
			ID: "foreign/snap", Stage: Preflight, Severity: Recommended,
			Why:    "Snaps update themselves, and restart the containers of the Docker in them when they do.",
			Source: "snapcraft.io/docs, Managing updates",
			Remedy: "hold the snap's updates, or remove it",
			Run:    foreignSnap,
		},
		{
			ID: "foreign/podman", Stage: Preflight, Severity: Recommended,
			Why:    "Podman needs no daemon and does no harm, except for a network in /etc/cni/net.d that containerd may take for its own.",
			Source: "podman-network(1); containerd docs/cri/config.md, max_conf_num",
			Remedy: "move podman's file out of /etc/cni/net.d",
			Run:    single(foreignPodman),
		},
		{
			ID: "foreign/crio", Stage: Preflight, Severity: Recommended,
			Why:    "Two CRI runtimes on a node: the kubelet uses one of them, and tools without a configured endpoint may find the other.",
			Source: "crio(8); crictl(1), runtime-endpoint",
			Remedy: "have one CRI runtime on a node",
			Run:    single(foreignCRIO),
		},
		{
			ID: "foreign/masked-unit", Stage: Preflight, Severity: Required,
			Why:    "A masked unit cannot be started by anything, and some installers mask containerd.service to keep it out of their way.",
			Source: "systemctl(1), mask; kubespray issue 8725",
			Remedy: "systemctl unmask containerd.service",
			Run:    single(maskedUnit),
		},
		{
			ID: "foreign/binary-owner", Stage: Audit, Severity: Recommended,
			Why:    "With two containerds on a host, scripts that look for one find the other, and report or configure the wrong version.",
			Source: "nvidia-container-toolkit issue 982",
			Remedy: "remove the one that nothing runs",
			Run:    single(binaryOwner),
		},
		{
			ID: "foreign/cni-conf", Stage: Audit, Severity: Required,
			Why:    "containerd takes the first files of the CNI folder: a leftover there is the network of all pods, and one that cannot be read leaves them without any.",
			Source: "go-cni, loadFromConfDir; containerd docs/cri/config.md, max_conf_num",
			Needs:  []string{"config/parses"},
			Remedy: "rename files that are not the cluster's, so that they end in .off",
			Run:    cniConf,
		},
		{
			ID: "foreign/daemons", Stage: Audit, Severity: Recommended,
			Why:    "A second containerd has images and containers that the first does not know; with the same root each breaks the other's.",
			Source: "containerd docs/ops.md",
			Needs:  []string{NeedLive},
			Remedy: "stop the one that nothing needs",
			Run:    foreignDaemons,
		},
		{
			ID: "foreign/crictl", Stage: Audit, Severity: Recommended,
			Why:    "With an endpoint that is not containerd's, crictl shows another runtime's pods, or none; a key that it does not know stops it.",
			Source: "cri-tools docs/crictl.md",
			Remedy: "runtime-endpoint: unix:///run/containerd/containerd.sock in /etc/crictl.yaml",
			Run:    crictlConfig,
		},
		{
			ID: "foreign/kubelet-endpoint", Stage: Audit, Severity: Required,
			Why:    "The kubelet runs pods with whoever listens at its containerRuntimeEndpoint; if that is not this containerd, nothing of it is in effect.",
			Source: "kubernetes.io, KubeletConfiguration: containerRuntimeEndpoint",
			Needs:  []string{NeedKubelet, "config/parses"},
			Remedy: "set containerRuntimeEndpoint to containerd's socket",
			Run:    single(kubeletEndpoint),
		},
	}
}

// there are those paths that exist.
func (n *Node) there(paths ...string) []string {
	return slices.DeleteFunc(slices.Clone(paths), func(p string) bool { return !n.exists(p) })
}

func foreignDocker(_ context.Context, n *Node) Result {
	found := n.there("/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd")
	if len(found) == 0 {
		return Result{Verdict: Pass, Observed: "no dockerd"}
	}
	r := Result{Verdict: Warn, Observed: found[0] + " is installed", Wanted: "no Docker on a node", Place: found[0]}
	r.Remedy = "# if nothing needs Docker's containers, which end with it:\n" + n.disable("docker.service", "docker.socket")
	on, err := n.active("docker.service")
	if err != nil {
		return unknown(err)[0]
	}
	switch own := n.exists("/run/docker/containerd/containerd.sock"); {
	case on && own:
		r.Observed, r.Note = "docker.service is active, with a containerd of its own", "its containerd is /run/docker/containerd/containerd.sock"
	case on:
		r.Observed, r.Note = "docker.service is active, and uses this host's containerd", "its containers are in the namespace moby; they are felt by a restart, and by an uninstall"
	case n.Live && n.Facts.SystemdInit:
		r.Observed += ", and docker.service is not active"
		r.Verdict, r.Wanted, r.Remedy = Pass, "", ""
	}
	return r
}

// foreignPackages are those whose containerd or runc is not the node's own.
func foreignPackages(_ context.Context, n *Node) []Result {
	if !n.provisioned() && n.DaemonBinary() != systemd.Binary {
		return pass("containerd is not nodeprep's here: a package's is no stranger")
	}
	var faults []Result
	programs := n.there("/usr/bin/containerd", "/usr/bin/runc", "/usr/sbin/runc", "/usr/bin/containerd-shim-runc-v2")
	if len(programs) > 0 && n.exists("/var/lib/dpkg/status") {
		for _, pkg := range runtimePackages() {
			version, err := n.packaged(pkg)
			if err != nil {
				return unknown(err)
			}
			if version == "" || n.held(pkg) {
				continue
			}
			faults = append(faults, Result{
				Verdict: Warn, Object: pkg, Observed: version + " is installed, and upgraded with all packages", Wanted: "the package held, or not there", Place: "/var/lib/dpkg/status",
				Remedy: n.inRoot("apt-mark hold " + pkg),
			})
		}
	} else if len(programs) > 0 && len(n.there("/var/lib/rpm", "/usr/lib/sysimage/rpm")) > 0 {
		faults = append(faults, Result{
			Verdict: Warn, Object: programs[0], Observed: "is there, probably a package's", Wanted: "no package's containerd or runc", Place: programs[0],
			Remedy: "# see whose it is; removing that takes away what depends on it\n" + n.inRoot("rpm -qf "+programs[0]),
		})
	}
	return orPass(faults, "no package brings another containerd or runc")
}

// held says whether apt keeps a package as it is (dpkg(1), --set-selections).
func (n *Node) held(pkg string) bool {
	b, err := n.Host.Root.ReadFile("/var/lib/dpkg/status")
	_, stanza, ok := strings.Cut("\n"+string(b), "\nPackage: "+pkg+"\n")
	stanza, _, _ = strings.Cut(stanza, "\n\n")
	return err == nil && ok && strings.Contains("\n"+stanza, "\nStatus: hold ")
}

func foreignDistributions(_ context.Context, n *Node) []Result {
	var faults []Result
	for _, d := range []struct {
		name  string
		files []string
		units []string
		// off is how its own containers are ended, which stopping the unit does not do.
		off string
	}{
		{
			"k3s",
			[]string{"/usr/local/bin/k3s", "/opt/bin/k3s", "/usr/bin/k3s", "/var/lib/rancher/k3s", "/run/k3s/containerd/containerd.sock"},
			[]string{"k3s.service", "k3s-agent.service"}, "k3s-killall.sh",
		},
		{
			"RKE2",
			[]string{"/usr/local/bin/rke2", "/opt/rke2/bin/rke2", "/usr/bin/rke2", "/var/lib/rancher/rke2"},
			[]string{"rke2-server.service", "rke2-agent.service"}, "rke2-killall.sh",
		},
		{
			"k0s",
			[]string{"/usr/local/bin/k0s", "/usr/bin/k0s", "/var/lib/k0s", "/run/k0s/containerd.sock"},
			[]string{"k0scontroller.service", "k0sworker.service"}, "k0s stop",
		},
		{
			"MicroK8s", []string{"/snap/bin/microk8s", "/var/snap/microk8s"},
			[]string{"snap.microk8s.daemon-containerd.service", "snap.microk8s.daemon-kubelite.service"}, "microk8s stop",
		},
	} {
		found := n.there(d.files...)
		if len(found) == 0 {
			continue
		}
		r := Result{
			Verdict: Warn, Object: d.name, Observed: found[0] + " is there", Wanted: "one Kubernetes on a machine", Place: found[0],
			Remedy: "# if nothing needs it any more; its pods end with it, and its data stays\n" + d.off,
		}
		if !n.Live {
			r.Remedy = "# take it out of the image, if nothing needs it"
		}
		for _, unit := range d.units {
			on, err := n.active(unit)
			if err != nil {
				return unknown(err)
			}
			if on {
				r.Observed, r.Place = unit+" is active", unit
			}
		}
		faults = append(faults, r)
	}
	return orPass(faults, "none of k3s, RKE2, k0s and MicroK8s")
}

func foreignSnap(_ context.Context, n *Node) []Result {
	var faults []Result
	for _, snap := range []string{"docker", "k8s"} {
		// /snap/bin has commands, /var/snap the data, which a removed snap leaves for a while.
		found := n.there("/snap/"+snap+"/current", "/snap/bin/"+snap, "/var/lib/snapd/snap/"+snap+"/current")
		if len(found) == 0 {
			continue
		}
		r := Result{
			Verdict: Warn, Object: snap, Observed: found[0] + " is there", Wanted: "no container runtime in a snap", Place: found[0],
			Remedy: "# if nothing needs it any more; its containers end with it, and come back with snap enable\nsnap disable " + snap,
		}
		if !n.Live {
			r.Remedy = "# take it out of the image, if nothing needs it"
		}
		faults = append(faults, r)
	}
	return orPass(faults, "no snap brings a container runtime")
}

func foreignPodman(_ context.Context, n *Node) Result {
	found := n.there("/usr/bin/podman", "/usr/local/bin/podman")
	files, _, _, err := n.cniFiles()
	if err != nil {
		return unknown(err)[0]
	}
	for _, f := range files {
		if strings.Contains(path.Base(f), "podman") {
			return Result{
				Verdict: Warn, Observed: f + " is podman's network", Wanted: "no network of podman's where containerd looks", Place: f,
				Remedy: "# podman before version 4 then has no network, unless it has its own folder (cni_config_dir in containers.conf)\n" + n.putAside(f),
			}
		}
	}
	if len(found) > 0 {
		return Result{Verdict: Pass, Observed: found[0] + " is there, and shares nothing", Place: found[0]}
	}
	return Result{Verdict: Pass, Observed: "no podman"}
}

func foreignCRIO(_ context.Context, n *Node) Result {
	found := n.there("/run/crio/crio.sock", "/usr/bin/crio", "/usr/local/bin/crio")
	if len(found) == 0 {
		return Result{Verdict: Pass, Observed: "no CRI-O"}
	}
	r := Result{
		Verdict: Warn, Observed: found[0] + " is there", Wanted: "one CRI runtime on a node", Place: found[0],
		Remedy: "# its pods end when the node boots, or with crictl; what the kubelet uses is its containerRuntimeEndpoint\n" + n.disable("crio.service"),
	}
	on, err := n.active("crio.service")
	switch {
	case err != nil:
		return unknown(err)[0]
	case on:
		r.Observed, r.Place = "crio.service is active", "crio.service"
	case n.Live && n.Facts.SystemdInit && found[0] != "/run/crio/crio.sock":
		r.Verdict, r.Observed, r.Wanted, r.Remedy = Pass, found[0]+" is there, and crio.service is not active", "", ""
	}
	return r
}

func maskedUnit(_ context.Context, n *Node) Result {
	for _, dir := range systemd.LoadPath() {
		file := path.Join(dir, systemd.UnitName)
		fi, err := n.Host.Root.Lstat(file)
		if absent(err) {
			continue
		}
		if err != nil {
			return unknown(err)[0]
		}
		r := Result{Verdict: Fail, Wanted: "a unit that may start", Place: file}
		switch to, _ := n.Host.Root.Readlink(file); {
		case to == "/dev/null":
			r.Observed = file + " is a link to /dev/null: the unit is masked"
			r.Remedy = "systemctl unmask " + systemd.UnitName
			if strings.HasPrefix(dir, "/run") {
				r.Remedy = "systemctl unmask --runtime " + systemd.UnitName
			}
			if !n.Live || dir != "/etc/systemd/system" && dir != "/run/systemd/system" {
				r.Remedy = "rm " + n.word(file)
			}
		case fi.Mode().IsRegular() && fi.Size() == 0:
			r.Observed = file + " is empty, which masks the unit"
			r.Remedy = "rm " + n.word(file)
		default:
			// The first one counts.
			return Result{Verdict: Pass, Observed: file + " is not a mask", Place: file}
		}
		if n.Live && strings.HasPrefix(r.Remedy, "rm ") {
			r.Remedy += "\nsystemctl daemon-reload"
		}
		if n.Receipt != nil && file == systemd.UnitPath {
			r.Remedy += "\n# it took the place of nodeprep's unit\n" + n.reapply(false)
		}
		return r
	}
	return Result{Verdict: Pass, Observed: "not masked"}
}

// otherDaemons are the containerds in the usual places that are not the daemon's, and all
// that there are.
func (n *Node) otherDaemons() (others, found []string) {
	found = n.there("/usr/local/bin/containerd", "/usr/bin/containerd", "/opt/bin/containerd", "/usr/local/sbin/containerd")
	// One program by two names is one.
	var real []string
	found = slices.DeleteFunc(found, func(p string) bool {
		r, err := n.real(p)
		if err != nil || slices.Contains(real, r) {
			return true
		}
		real = append(real, r)
		return false
	})
	used := n.DaemonBinary()
	return slices.DeleteFunc(slices.Clone(found), func(p string) bool { return n.same(p, used) }), found
}

func binaryOwner(_ context.Context, n *Node) Result {
	others, found := n.otherDaemons()
	if len(found) == 0 {
		return Result{Verdict: Pass, Observed: "none of its usual places has a containerd"}
	}
	used := n.DaemonBinary()
	if len(others) == 0 {
		return Result{Verdict: Pass, Observed: found[0] + " alone", Place: found[0]}
	}
	r := Result{
		Verdict: Warn, Observed: others[0] + " is there beside " + used, Wanted: "one containerd", Place: others[0],
		Remedy: "# whatever starts it will not find it any more\n" + n.putAside(others[0]),
	}
	if pkg := n.runtimePackage(others[0]); pkg != "" {
		r.Observed = others[0] + " of the package " + pkg + " is there beside " + used
		r.Remedy = "# this also takes away what depends on it, such as Docker\n" + n.inRoot("apt-get remove "+pkg)
	}
	return r
}

// foreignDaemons looks for processes that are called containerd and are not the daemon of
// this node.
func foreignDaemons(_ context.Context, n *Node) []Result {
	all, err := n.processes()
	if err != nil {
		return unknown(err)
	}
	main := 0
	if p, err := n.Process(); err == nil {
		main = p.PID
	} else if !errors.Is(err, errNoProcess) {
		return unknown(err)
	}
	var faults []Result
	for _, p := range all {
		if p.comm != "containerd" || p.pid == main {
			continue
		}
		pid, number := p.pid, strconv.Itoa(p.pid)
		dir := "/proc/" + number
		// A child of the daemon is called like it until it has become a shim.
		if main != 0 && n.parent(pid) == main {
			continue
		}
		cmdline, _ := n.text(dir + "/cmdline")
		args := strings.Split(strings.Trim(cmdline, "\x00"), "\x00")
		exe, err := n.Host.Root.Readlink(dir + "/exe")
		if err != nil {
			exe = args[0]
		}
		r := Result{
			Verdict: Warn, Object: "process " + number, Observed: "another containerd, " + exe, Wanted: "one containerd",
			Place: dir, Remedy: "# see what started it; its containers stay, and nobody looks after them when it ends\nsystemctl status " + number,
		}
		if len(args) > 1 {
			r.Note = "started as " + strings.Join(args, " ")
		}
		if n.inContainer(pid) {
			r.Note = "it runs in a container"
		}
		faults = append(faults, r)
	}
	return orPass(faults, "no other process is called containerd")
}

// parent is a process's parent, 0 where nobody tells (proc_pid_stat(5)).
func (n *Node) parent(pid int) int {
	stat, err := n.text("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	// The name, in parentheses, may hold anything.
	if f := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:]); len(f) > 1 {
		ppid, _ := strconv.Atoi(f[1])
		return ppid
	}
	return 0
}

// inContainer says whether a process has a PID namespace below this one (proc_pid_status(5), NSpid).
func (n *Node) inContainer(pid int) bool {
	status, err := n.text("/proc/" + strconv.Itoa(pid) + "/status")
	if err != nil {
		return false
	}
	for line := range strings.Lines(status) {
		if f := strings.Fields(line); len(f) > 0 && f[0] == "NSpid:" {
			return len(f) > 2
		}
	}
	return false
}

// crictlKeys are those of cri-tools' newest releases; max-retries came after 1.36.0.
func crictlKeys() []string {
	return []string{"runtime-endpoint", "image-endpoint", "timeout", "debug", "pull-image-on-create", "disable-pull-on-run", "max-retries"}
}

func crictlConfig(_ context.Context, n *Node) []Result {
	const file = "/etc/crictl.yaml"
	wanted, target := "unix://"+n.Address(), n.word(file)
	b, err := n.Host.Root.ReadFile(file)
	switch {
	case absent(err) && n.tool("crictl") == "":
		return pass("no crictl here")
	case absent(err):
		return []Result{{
			Verdict: Warn, Observed: "there is no " + file + ": crictl tries one socket after another", Wanted: "runtime-endpoint: " + wanted, Place: file,
			Remedy: "echo 'runtime-endpoint: " + wanted + "' > " + target,
		}}
	case err != nil:
		return unknown(err)
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return []Result{{
			Verdict: Warn, Observed: err.Error(), Wanted: "YAML", Place: file,
			Remedy: n.putAside(file) + "\necho 'runtime-endpoint: " + wanted + "' > " + target,
		}}
	}
	var faults []Result
	endpoints := map[string]string{}
	if len(doc.Content) > 0 && doc.Content[0].Kind == yaml.MappingNode {
		for i, c := 0, doc.Content[0].Content; i+1 < len(c); i += 2 {
			key, value, place := c[i].Value, c[i+1].Value, fmt.Sprintf("%s:%d", file, c[i].Line)
			if !slices.Contains(crictlKeys(), key) {
				faults = append(faults, Result{
					Verdict: Warn, Object: key, Observed: "a key that crictl does not know: it does nothing but say so", Wanted: "no such key", Place: place,
					Remedy: fmt.Sprintf("sed -i '%d s/^/# /' %s", c[i].Line, target),
				})
			}
			if key != "runtime-endpoint" && key != "image-endpoint" {
				continue
			}
			endpoints[key] = value
			socket, isURL := strings.CutPrefix(value, "unix://")
			if isURL && n.same(socket, n.Address()) {
				continue
			}
			faults = append(faults, Result{
				Verdict: Warn, Object: key, Observed: value, Wanted: wanted, Place: place,
				Remedy: fmt.Sprintf("sed -i '%d s|.*|%s: %s|' %s", c[i].Line, key, wanted, target),
			})
		}
	}
	if endpoints["runtime-endpoint"] == "" && len(faults) == 0 {
		faults = append(faults, Result{
			Verdict: Warn, Observed: "no runtime-endpoint: crictl tries one socket after another", Wanted: wanted, Place: file,
			Remedy: "echo 'runtime-endpoint: " + wanted + "' >> " + target,
		})
	}
	return orPass(faults, "%s", endpoints["runtime-endpoint"])
}

// same says whether two paths lead to the same place: /var/run is a link to /run.
func (n *Node) same(a, b string) bool {
	ra, err1 := n.real(a)
	rb, err2 := n.real(b)
	return err1 == nil && err2 == nil && ra == rb
}

// otherCRI is the CRI runtime that listens at a socket by default, "" where that is not
// known to be another one than containerd.
func otherCRI(socket string) string {
	switch path.Base(socket) {
	case "cri-dockerd.sock":
		return "cri-dockerd"
	case "crio.sock":
		return "CRI-O"
	}
	return ""
}

func kubeletEndpoint(_ context.Context, n *Node) Result {
	k, err := n.Kubelet()
	if err != nil {
		return unknown(err)[0]
	}
	if n.DaemonBinary() == "" {
		return Result{Verdict: Skip, Observed: "no containerd is installed here"}
	}
	// The default since the kubelet has no dockershim.
	endpoint, place := k.ContainerRuntimeEndpoint, k.Place("containerRuntimeEndpoint")
	if endpoint == "" {
		endpoint = "unix://" + defaultAddress
	}
	socket := strings.TrimPrefix(endpoint, "unix://")
	if n.same(socket, n.Address()) {
		return Result{Verdict: Pass, Observed: endpoint, Place: place}
	}
	wanted := "unix://" + n.Address()
	r := Result{Verdict: Fail, Observed: endpoint, Wanted: wanted, Place: place}
	if other := otherCRI(socket); other != "" && n.Spec == nil && n.Receipt == nil {
		// This containerd may be Docker's, which cri-dockerd asks in turn.
		r.Verdict, r.Note = Warn, "the kubelet's pods are "+other+"'s; this containerd may be there for something else"
		return r
	}
	file, _, hasLine := strings.Cut(place, ":")
	switch {
	case k.ContainerRuntimeEndpoint == "" && k.Path != "" && path.Ext(k.Path) != ".json":
		r.Remedy = "echo 'containerRuntimeEndpoint: " + wanted + "' >> " + n.word(k.Path)
	case k.ContainerRuntimeEndpoint != "" && hasLine && path.IsAbs(file):
		r.Remedy = "sed -i " + quote("s|"+endpoint+"|"+wanted+"|") + " " + n.word(file)
		if strings.ContainsAny(endpoint+wanted, "|\\\n&") {
			r.Remedy = "# set containerRuntimeEndpoint to " + quote(wanted) + " in " + n.word(file)
		}
	default:
		r.Remedy = "# set containerRuntimeEndpoint to " + wanted + " for the kubelet, and restart it"
		return r
	}
	if n.Live {
		r.Remedy += "\nsystemctl restart kubelet"
	}
	return r
}
