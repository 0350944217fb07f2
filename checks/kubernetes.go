package checks

import (
	"context"
	"fmt"
	"slices"
	"strings"
)

// kubernetesChecks are what an installer of Kubernetes looks at beside the runtime: only
// on hosts that are meant to be nodes, and never a reason to stop.
func kubernetesChecks() []Check {
	return []Check{
		{
			ID: "kubernetes/ports", Stage: Preflight, Severity: Recommended,
			Why:    "What listens at a port of the kubelet or the control plane already keeps it from starting, and its log alone says so.",
			Source: "kubernetes.io, Ports and Protocols; kubeadm preflight Port-10250, Port-6443, Port-2379",
			Needs:  []string{NeedLive},
			Remedy: "stop what listens there: ss -ltnp",
			Run:    kubernetesPorts,
		},
		{
			ID: "kubernetes/leftovers", Stage: Preflight, Severity: Recommended,
			Why:    "Files of an earlier cluster make kubeadm refuse the node, or a kubelet start pods of a cluster that is gone.",
			Source: "kubeadm preflight FileAvailable, DirAvailable--var-lib-etcd",
			Remedy: "kubeadm reset, where the node is not part of a cluster any more",
			Run:    kubernetesLeftovers,
		},
		{
			ID: "kubernetes/kubelet-service", Stage: Audit, Severity: Recommended,
			Why:    "A kubelet that is configured and not enabled leaves the node NotReady after its next boot.",
			Source: "kubeadm preflight Service-Kubelet; systemctl(1), enable",
			Needs:  []string{NeedLive, NeedSystemd, NeedKubelet},
			Remedy: "systemctl enable --now kubelet.service",
			Run:    single(kubeletService),
		},
		{
			ID: "kubernetes/ipv6-forwarding", Stage: Audit, Severity: Recommended,
			Why:    "On a node with IPv6 addresses pods of a dual-stack cluster reach nobody by IPv6 while the kernel does not forward it.",
			Source: "kubernetes.io, dual-stack; kubeadm preflight FileContent--proc-sys-net-ipv6-conf-default-forwarding",
			Needs:  []string{NeedLive},
			Remedy: "sysctl -w net.ipv6.conf.all.forwarding=1, where the cluster uses IPv6",
			Run:    single(ipv6Forwarding),
		},
	}
}

// notForKubernetes is the result where a host is not meant to be a node.
func notForKubernetes() []Result { return skip("no kubelet and no Kubernetes version is known here") }

// kubernetesPorts asks only where none of Kubernetes's own programs may have them.
func kubernetesPorts(_ context.Context, n *Node) []Result {
	if !n.forKubernetes() {
		return notForKubernetes()
	}
	on, err := n.active("kubelet.service")
	if err != nil {
		return unknown(err)
	}
	if on {
		return skip("the kubelet runs: what listens at these ports is its own")
	}
	open, err := n.listeners()
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	for _, p := range []struct {
		port uint16
		of   string
	}{
		{10250, "the kubelet"}, {6443, "kube-apiserver"}, {2379, "etcd"}, {2380, "etcd"},
		{10257, "kube-controller-manager"}, {10259, "kube-scheduler"}, {10256, "kube-proxy"},
	} {
		i := slices.IndexFunc(open, func(l listener) bool { return l.addr.Port() == p.port })
		if i < 0 {
			continue
		}
		faults = append(faults, Result{
			Verdict: Warn, Object: fmt.Sprintf("port %d, of %s", p.port, p.of), Observed: "somebody listens at " + open[i].addr.String(), Wanted: "nobody",
			Place: "/proc/net/tcp", Remedy: fmt.Sprintf("# see who it is, and stop it\nss -ltnp 'sport = :%d'", p.port),
		})
	}
	return orPass(faults, "the ports of the kubelet and the control plane are free")
}

func kubernetesLeftovers(_ context.Context, n *Node) []Result {
	if !n.forKubernetes() {
		return notForKubernetes()
	}
	// A node that joined has these rightly.
	for _, p := range []string{"/etc/kubernetes/kubelet.conf", "/var/lib/kubelet/config.yaml"} {
		if n.exists(p) {
			return skip("the node is part of a cluster: %s is there", p)
		}
	}
	var faults []Result
	for _, dir := range []string{"/etc/kubernetes/manifests", "/var/lib/etcd"} {
		entries, err := n.Host.Root.ReadDir(dir)
		if absent(err) {
			continue
		}
		if err != nil {
			return unknown(err)
		}
		if len(entries) > 0 {
			faults = append(faults, Result{
				Verdict: Warn, Object: dir, Observed: fmt.Sprintf("has %s, and the node has joined no cluster", entries[0].Name()), Wanted: "an empty folder, or none",
				Place: dir + "/" + entries[0].Name(), Remedy: "# if nobody needs what is in there; it cannot be undone\n# kubeadm reset",
			})
		}
	}
	return orPass(faults, "nothing of an earlier cluster is left")
}

func kubeletService(_ context.Context, n *Node) Result {
	const unit = "kubelet.service"
	p, err := n.Unit(unit)
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{Observed: p.UnitFileState + ", " + p.ActiveState, Place: p.FragmentPath, Wanted: "enabled, active"}
	switch {
	case !p.Exists():
		return Result{Verdict: Skip, Observed: "there is no " + unit + ": something else starts the kubelet"}
	case p.UnitFileState != "enabled" && p.UnitFileState != "static" && p.UnitFileState != "enabled-runtime" && len(p.RequiredBy)+len(p.WantedBy) == 0:
		r.Verdict, r.Remedy = Warn, "systemctl enable --now "+unit
	case p.ActiveState != "active":
		r.Verdict, r.Remedy = Warn, "journalctl -u "+unit+" -b -n 50\nsystemctl restart "+unit
	default:
		r.Verdict, r.Wanted = Pass, ""
	}
	return r
}

// ipv6Forwarding asks only where the host has an IPv6 address that others can reach
// (/proc/net/if_inet6: scope 00 is global).
func ipv6Forwarding(_ context.Context, n *Node) Result {
	if !n.forKubernetes() {
		return notForKubernetes()[0]
	}
	text, err := n.text("/proc/net/if_inet6")
	if absent(err) {
		return Result{Verdict: Skip, Observed: "the kernel has no IPv6"}
	}
	if err != nil {
		return unknown(err)[0]
	}
	global := ""
	for line := range strings.Lines(text) {
		// address, index, prefix length, scope, flags, name
		if f := strings.Fields(line); len(f) == 6 && f[3] == "00" {
			global = f[5]
		}
	}
	if global == "" {
		return Result{Verdict: Skip, Observed: "no interface has a global IPv6 address"}
	}
	const key = "net.ipv6.conf.all.forwarding"
	v, err := n.Sysctl(key)
	if err != nil {
		return unknown(err)[0]
	}
	if v == "1" {
		return Result{Verdict: Pass, Observed: key + " is 1"}
	}
	return Result{
		Verdict: Warn, Observed: fmt.Sprintf("%s is %s, and %s has a global address", key, v, global), Wanted: "1, where the cluster uses IPv6", Place: "/proc/sys/net/ipv6/conf/all/forwarding",
		Remedy: "printf '%s\\n' '" + key + " = 1' > /etc/sysctl.d/95-kubernetes-ipv6.conf\nsysctl -w " + key + "=1",
		Note:   "an interface that takes its address from router advertisements needs accept_ra=2 beside it",
	}
}
