package checks

import (
	"context"
	"testing"

	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

func forNode(o *Outside) { o.Spec = &profiles.Spec{Kubernetes: "1.36"} }

func TestKubernetesPorts(t *testing.T) {
	const (
		id     = "kubernetes/ports"
		header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
		// 0.0.0.0:10250, listening
		kubelet = "   0: 00000000:280A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 999 1 0 100 0 0 10 0\n"
	)
	looks(t, id,
		look{"no node", nil, nil, one(Skip, "no kubelet")},
		look{"free", files{"/proc/net/tcp": header}, given(forNode), one(Pass, "are free")},
		look{"taken", files{"/proc/net/tcp": header + kubelet}, given(forNode), []want{{
			verdict: Warn, object: "port 10250, of the kubelet", observed: "0.0.0.0:10250", wanted: "nobody", place: "/proc/net/tcp", remedy: "ss -ltnp 'sport = :10250'",
		}}},
		look{"its own", files{"/proc/net/tcp": header + kubelet, "/usr/lib/systemd/system/kubelet.service": ""},
			given(forNode, withUnits(units{"kubelet.service": {LoadState: "loaded", ActiveState: "active"}})), one(Skip, "the kubelet runs")},
		look{"nobody tells", files{"/proc/net/tcp/": ""}, given(forNode), one(Unknown, "is a directory")},
		look{"systemd is silent", files{"/usr/lib/systemd/system/kubelet.service": ""}, given(forNode, withUnitsThatFail), one(Unknown, "silent")},
	)
}

func TestKubernetesLeftovers(t *testing.T) {
	looks(t, "kubernetes/leftovers",
		look{"no node", files{"/var/lib/etcd/member": ""}, nil, one(Skip, "no kubelet")},
		look{"none", files{"/etc/kubernetes/manifests/": ""}, given(forNode), one(Pass, "nothing")},
		look{"of a control plane", files{"/etc/kubernetes/manifests/etcd.yaml": "", "/var/lib/etcd/member/": ""}, given(forNode), []want{
			{verdict: Warn, object: "/etc/kubernetes/manifests", observed: "etcd.yaml", place: "/etc/kubernetes/manifests/etcd.yaml", remedy: "# kubeadm reset"},
			{verdict: Warn, object: "/var/lib/etcd"},
		}},
		look{"a node of a cluster", files{"/etc/kubernetes/manifests/etcd.yaml": "", "/etc/kubernetes/kubelet.conf": ""}, given(forNode), one(Skip, "part of a cluster")},
		look{"a link to itself", files{"/var/lib/etcd": "-> /var/lib/etcd"}, given(forNode), one(Unknown, "too many")},
	)
}

func TestKubeletService(t *testing.T) {
	is := func(p systemd.Properties) []func(*Outside) { return given(withUnits(units{"kubelet.service": p})) }
	f := files{"/var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\n"}
	looks(t, "kubernetes/kubelet-service",
		look{"well", f, is(systemd.Properties{LoadState: "loaded", UnitFileState: "enabled", ActiveState: "active"}), one(Pass, "enabled, active")},
		look{"not enabled", f, is(systemd.Properties{LoadState: "loaded", UnitFileState: "disabled", ActiveState: "active", FragmentPath: "/lib/systemd/system/kubelet.service"}), []want{{
			verdict: Warn, observed: "disabled, active", wanted: "enabled", place: "/lib/systemd/system/kubelet.service", remedy: "systemctl enable --now kubelet.service",
		}}},
		look{"wanted by another", f, is(systemd.Properties{LoadState: "loaded", UnitFileState: "disabled", ActiveState: "active", WantedBy: []string{"x.target"}}), one(Pass, "disabled, active")},
		look{"dead", f, is(systemd.Properties{LoadState: "loaded", UnitFileState: "enabled", ActiveState: "failed"}), []want{{verdict: Warn, observed: "failed", remedy: "journalctl -u kubelet.service"}}},
		look{"none", f, is(systemd.Properties{LoadState: "not-found"}), one(Skip, "there is no kubelet.service")},
		look{"systemd is silent", f, given(withUnitsThatFail), one(Unknown, "silent")},
	)
}

func TestIPv6Forwarding(t *testing.T) {
	const (
		inet6   = "/proc/net/if_inet6"
		value   = "/proc/sys/net/ipv6/conf/all/forwarding"
		local   = "00000000000000000000000000000001 01 80 10 80       lo\nfe800000000000000000000000000001 02 40 20 80     eth0\n"
		address = "20010db8000000000000000000000001 02 40 00 80     eth0\n"
	)
	looks(t, "kubernetes/ipv6-forwarding",
		look{"no node", files{inet6: address, value: "0\n"}, nil, one(Skip, "no kubelet")},
		look{"no IPv6", files{"/proc/net/": ""}, given(forNode), one(Skip, "no IPv6")},
		look{"local addresses alone", files{inet6: local, value: "0\n"}, given(forNode), one(Skip, "no interface")},
		look{"on", files{inet6: local + address, value: "1\n"}, given(forNode), one(Pass, "is 1")},
		look{"off", files{inet6: local + address, value: "0\n"}, given(forNode), []want{{
			verdict: Warn, observed: "is 0, and eth0", wanted: "1", place: value, remedy: "sysctl -w net.ipv6.conf.all.forwarding=1",
		}}},
		look{"unreadable", files{inet6 + "/": ""}, given(forNode), one(Unknown, "is a directory")},
		look{"no such setting", files{inet6: address}, given(forNode), one(Unknown, "no such file")},
	)
}

// A host whose kubelet's files cannot be read is taken for a node, and nothing is hidden.
func TestKubeletThatCannotBeRead(t *testing.T) {
	n := fake(t, files{"/var/lib/kubelet/config.yaml": "a: ["}, withUnits(units{}))
	if got := n.lacks(context.Background(), NeedKubelet); got == nil || got.Verdict != Unknown {
		t.Errorf("a kubelet's broken file is %+v", got)
	}
	if !n.forKubernetes() {
		t.Error("a host with a kubelet's broken file is no node")
	}
}
