package checks

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

func TestHostname(t *testing.T) {
	const kernel = "/proc/sys/kernel/hostname"
	looks(t, "host/hostname",
		look{"in /etc/hosts", files{kernel: "node-1\n", "/etc/hosts": "127.0.1.1 node-1.example.org node-1 # us\n"}, nil, one(Pass, "node-1")},
		look{"known by systemd", files{kernel: "node-1\n", "/etc/nsswitch.conf": "hosts: files myhostname dns\n"}, nil, one(Pass, "node-1")},
		look{"for DNS to know", files{kernel: "node-1\n", "/etc/hosts": "127.0.0.1 localhost\n# 127.0.1.1 node-1\n"}, nil, []want{{
			verdict: Warn, object: "resolution", observed: "node-1 is not in /etc/hosts", place: "/etc/hosts", remedy: "echo 127.0.1.1 node-1 >> /etc/hosts",
		}}},
		look{"files that nobody looks into", files{kernel: "node-1\n", "/etc/hosts": "127.0.1.1 node-1\n", "/etc/nsswitch.conf": "hosts: dns\n"}, nil, []want{{verdict: Warn, object: "resolution"}}},
		look{"no DNS name", files{kernel: "My_Node\n"}, nil, []want{{
			verdict: Warn, object: "name", observed: `"My_Node"`, place: kernel, remedy: "echo my-node > /etc/hostname\necho my-node > " + kernel,
		}}},
		look{"localhost", files{kernel: "localhost\n", "/etc/machine-id": "0123456789abcdef0123456789abcdef\n"}, nil, []want{{verdict: Warn, remedy: "echo node-01234567 > /etc/hostname"}}},
		look{"an image without", nil, given(offline), one(Pass, "not set")},
		look{"hosts that cannot be read", files{kernel: "node-1\n", "/etc/hosts/": ""}, nil, one(Unknown, "is a directory")},
		look{"unreadable", nil, nil, one(Unknown, "no such file")},
	)
}

func TestLocalhost(t *testing.T) {
	looks(t, "host/localhost",
		look{"there", files{"/etc/hosts": "# a comment\n127.0.0.1\tlocalhost\n::1 localhost ip6-localhost\n"}, nil, []want{{verdict: Pass, place: "/etc/hosts:3"}}},
		look{"another's", files{"/etc/hosts": "10.0.0.1 localhost\n"}, nil, []want{{
			verdict: Warn, observed: "10.0.0.1", wanted: "127.0.0.1", place: "/etc/hosts:1", remedy: "sed -i '1s/^/# /' /etc/hosts",
		}}},
		look{"not there", nil, nil, []want{{verdict: Warn, observed: "does not have it", remedy: "echo 127.0.0.1 localhost >> /etc/hosts"}}},
		look{"not looked for there", files{"/etc/hosts": "127.0.0.1 localhost\n", "/etc/nsswitch.conf": "hosts: dns\n"}, nil, []want{{verdict: Warn, place: "/etc/nsswitch.conf", remedy: "hosts: files dns"}}},
		look{"known by systemd", files{"/etc/nsswitch.conf": "hosts: files myhostname\n"}, nil, one(Pass, "systemd")},
		look{"sources that cannot be read", files{"/etc/nsswitch.conf/": ""}, nil, one(Unknown, "is a directory")},
		look{"unreadable", files{"/etc/hosts/": ""}, nil, one(Unknown, "is a directory")},
	)
}

func TestDNS(t *testing.T) {
	const config, real = "/var/lib/kubelet/config.yaml", "/run/systemd/resolve/resolv.conf"
	looks(t, "host/dns",
		look{"there", files{resolvConf: "search example.org\nnameserver 192.0.2.1\n"}, nil, []want{{verdict: Pass, observed: "192.0.2.1", place: resolvConf}}},
		look{"none", nil, nil, []want{{verdict: Warn, observed: "no nameserver", place: resolvConf}}},
		look{"none, and systemd has one", files{"/run/systemd/resolve/stub-resolv.conf": ""}, nil, []want{{verdict: Warn, remedy: "ln -sf"}}},
		look{"a stub without a kubelet", files{resolvConf: "nameserver 127.0.0.53\n"}, nil, one(Pass, "127.0.0.53")},
		look{"a stub that pods are given", files{resolvConf: "nameserver 127.0.0.53\n", config: "kind: KubeletConfiguration\n", real: "nameserver 192.0.2.1\n"}, nil, []want{{
			verdict: Warn, observed: "127.0.0.53 of /etc/resolv.conf", place: config, remedy: "echo 'resolvConf: " + real + "' >> " + config,
		}}},
		look{"a stub that pods are not given", files{resolvConf: "nameserver 127.0.0.53\n", config: "resolvConf: " + real + "\n", real: "nameserver 192.0.2.1\n"}, nil, one(Pass, "127.0.0.53")},
		look{"pods' own cannot be read", files{resolvConf: "nameserver 127.0.0.53\n", config: "resolvConf: " + real + "\n", real + "/": ""}, nil, one(Unknown, "is a directory")},
		look{"unreadable", files{resolvConf + "/": ""}, nil, one(Unknown, "is a directory")},
	)
}

// nameserver answers for hosts that are known as registry.example and says of all others
// that they do not exist. All nameservers that are dialled are this one.
func nameserver(t *testing.T) func(*Outside) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buf := make([]byte, 1500)
		for {
			size, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:size]) != nil || len(m.Questions) == 0 {
				continue
			}
			m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
			q := m.Questions[0]
			switch {
			case !strings.HasPrefix(q.Name.String(), "registry.example."):
				m.RCode = dnsmessage.RCodeNameError
			case q.Type == dnsmessage.TypeA:
				m.Answers = []dnsmessage.Resource{{
					Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 60}, Body: &dnsmessage.AResource{A: [4]byte{192, 0, 2, 7}},
				}}
			}
			if b, err := m.Pack(); err == nil {
				_, _ = conn.WriteTo(b, from) // who asked is gone
			}
		}
	}()
	return func(o *Outside) {
		o.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "udp", conn.LocalAddr().String())
		}
	}
}

func TestDNSAnswers(t *testing.T) {
	f := files{resolvConf: "nameserver 192.0.2.53\n"}
	registries := func(hosts ...string) profiles.Spec {
		s := dynamic()
		for _, h := range hosts {
			s.Registries = append(s.Registries, profiles.Registry{Host: h, Deny: true, Mirrors: []profiles.Endpoint{{URL: "https://" + h}}})
		}
		return s
	}
	proxied := registries("registry.example")
	proxied.Systemd.HTTPSProxy = profiles.Secret{Value: "http://proxy.example"}
	refused := func(o *Outside) {
		o.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("connection refused") }
	}
	server := nameserver(t)
	looks(t, "host/dns-answers",
		look{"known", f, given(server, withSpec(registries("registry.example"))), one(Pass, "registry.example is 192.0.2.7")},
		look{"unknown", f, given(server, withSpec(registries("nowhere.example"))), []want{{
			verdict: Warn, object: "nowhere.example", observed: "192.0.2.53 knows no such host", place: resolvConf,
		}}},
		look{"Kubernetes' own, without a profile", f, given(refused), []want{{verdict: Warn, object: "registry.k8s.io", observed: "no answer from 192.0.2.53"}}},
		look{"an address", f, given(refused, withSpec(registries("192.0.2.9:5000"))), one(Pass, "no registry has a name")},
		look{"nobody to ask", nil, given(server), one(Skip, "no nameserver")},
		look{"a proxy resolves", f, given(refused, withSpec(proxied)), one(Skip, "proxy")},
		look{"unreadable", files{resolvConf + "/": ""}, given(server), one(Unknown, "is a directory")},
	)
}

// withProcess is a containerd with that environment and process number 7.
func withProcess(o *Outside) {
	withUnits(units{systemd.UnitName: {LoadState: "loaded", ActiveState: "active", MainPID: 7}})(o)
}

func TestProxies(t *testing.T) {
	spec := func(change func(*profiles.Spec)) func(*Outside) {
		s := dynamic()
		s.Systemd.HTTPSProxy = profiles.Secret{File: "/secret"}
		change(&s)
		return withSpec(s)
	}
	mirror := func(url string) []profiles.Registry {
		return []profiles.Registry{{Host: "docker.io", Mirrors: []profiles.Endpoint{{URL: url}}}}
	}
	env := func(name, value string) func(*Outside) {
		return func(o *Outside) { o.Env = func(asked string) (string, bool) { return value, asked == name } }
	}
	none := func(o *Outside) {}
	process := func(environ string) files {
		return files{"/proc/7/cmdline": "/usr/bin/containerd\x00", "/proc/7/environ": environ}
	}
	looks(t, "host/proxy",
		look{"none", nil, given(withSpec(dynamic())), one(Pass, "no proxy")},
		look{"a shell's", nil, given(withSpec(dynamic()), env("https_proxy", "http://p:3128")), []want{{
			verdict: Warn, observed: "this environment has a proxy, and containerd none", remedy: "systemd.proxy",
		}}},
		look{"all logins'", files{"/etc/environment": "LANG=C\nHTTPS_PROXY=\"http://p:3128\"\n"}, given(withSpec(dynamic())), []want{{verdict: Warn, place: "/etc/environment:2"}}},
		look{"the profile's", nil, given(spec(func(*profiles.Spec) {})), one(Pass, "has a proxy")},
		look{"a mirror nearby", nil, given(spec(func(s *profiles.Spec) { s.Registries = mirror("https://10.1.2.3:5000") })), []want{{
			verdict: Warn, object: "10.1.2.3", observed: "through the proxy", wanted: "NO_PROXY",
		}}},
		look{"a mirror nearby that is named", nil, given(spec(func(s *profiles.Spec) {
			s.Registries, s.Systemd.NoProxy = mirror("https://hub.lan"), []string{".lan"}
		})), one(Pass, "goes past it")},
		look{"a mirror far away", nil, given(spec(func(s *profiles.Spec) { s.Registries = mirror("https://mirror.example.org") })), one(Pass, "goes past it")},
		look{"pods", nil, given(spec(func(s *profiles.Spec) { s.CNI.Network = &profiles.Network{Subnets: []string{"10.88.0.0/16"}} })), []want{{verdict: Warn, object: "10.88.0.0/16"}}},
		look{"a running daemon's", process("PATH=/bin\x00https_proxy=http://p\x00"), given(withProcess), one(Pass, "has a proxy")},
		look{"a running daemon without", process("PATH=/bin\x00"), given(withProcess, env("HTTP_PROXY", "http://p")), []want{{verdict: Warn, observed: "containerd none"}}},
		look{"unreadable", files{"/etc/environment/": ""}, given(none), one(Unknown, "is a directory")},
	)
}

func TestPorts(t *testing.T) {
	const header = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
	// 127.0.0.1:1338, [::]:10010 and, not listening, 0.0.0.0:1338.
	tcp := header + "   0: 0100007F:053A 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1001 1 0 100 0 0 10 0\n" +
		"   1: 00000000:053A 00000000:0000 06 00000000:00000000 00:00000000 00000000     0        0 1002 1 0 100 0 0 10 0\n"
	tcp6 := header + "   0: 00000000000000000000000000000000:271A 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 1003 1 0 100 0 0 10 0\n"
	taken := func(comm string) files {
		return files{
			"/proc/net/tcp": tcp, "/proc/net/tcp6": tcp6,
			"/proc/7/comm": comm + "\n", "/proc/7/fd/3": "-> socket:[1001]", "/proc/7/fd/4": "-> socket:[1003]",
		}
	}
	settings := func(s map[string]any) func(*Outside) {
		spec := dynamic()
		spec.Containerd.Settings = s
		return withSpec(spec)
	}
	metrics := func(address string) func(*Outside) {
		return settings(map[string]any{"metrics": map[string]any{"address": address}})
	}
	streaming := settings(map[string]any{"plugins": map[string]any{"io.containerd.grpc.v1.cri": map[string]any{"stream_server_address": "127.0.0.1", "stream_server_port": "10010"}}})
	config := taken("nginx")
	config["/etc/containerd/config.toml"] = "version = 2\n[metrics]\naddress = \"0.0.0.0:1338\"\n"
	looks(t, "host/ports",
		look{"none", nil, given(withSpec(dynamic()), applying), one(Pass, "no TCP port")},
		look{"free", taken("nginx"), given(metrics("127.0.0.1:1339"), applying), one(Pass, "1 TCP ports are free")},
		look{"another address", taken("nginx"), given(metrics("192.0.2.1:1338"), applying), one(Pass, "free")},
		look{"taken", taken("nginx"), given(metrics("127.0.0.1:1338"), applying), []want{{
			verdict: Warn, object: "127.0.0.1:1338", observed: "taken by nginx (process 7)", wanted: "metrics",
		}}},
		look{"taken on all addresses", taken("nginx"), given(streaming, applying), []want{{verdict: Warn, object: "127.0.0.1:10010", wanted: "streaming"}}},
		look{"taken, as configured", config, nil, []want{{verdict: Warn, object: "0.0.0.0:1338", place: "/etc/containerd/config.toml:3"}}},
		look{"containerd's own", taken("containerd"), given(metrics("127.0.0.1:1338"), applying), one(Pass, "containerd's")},
		look{"by one that cannot be asked", files{"/proc/net/tcp": tcp, "/proc/7/fd/3": "-> socket:[1001]"}, given(metrics("127.0.0.1:1338"), applying), one(Unknown, "who listens")},
		look{"by nobody here", files{"/proc/net/tcp": tcp}, given(metrics("127.0.0.1:1338"), applying), []want{{verdict: Warn, observed: "another process"}}},
		look{"unreadable", files{"/proc/net/tcp/": ""}, given(metrics("127.0.0.1:1338"), applying), one(Unknown, "is a directory")},
	)
}

func TestIptables(t *testing.T) {
	const program = "/usr/sbin/iptables"
	says := func(s string) func(*Outside) { return prints(map[string]string{program + " --version": s + "\n"}) }
	looks(t, "host/iptables",
		look{"none", nil, nil, one(Pass, "no iptables")},
		look{"nftables", files{program: ""}, given(says("iptables v1.8.9 (nf_tables)")), []want{{verdict: Pass, observed: "v1.8.9", place: program}}},
		look{"legacy", files{program: "", "/proc/net/ip_tables_names": "nat\n"}, given(says("iptables v1.8.9 (legacy)")), one(Pass, "legacy")},
		look{"a broken one", files{program: "", "/usr/sbin/iptables-legacy": "", "/usr/bin/update-alternatives": ""}, given(says("iptables v1.8.2 (nf_tables)")), []want{{
			verdict: Warn, observed: "v1.8.2", wanted: "1.8.4", remedy: "update-alternatives --set iptables /usr/sbin/iptables-legacy",
		}}},
		look{"both", files{program: "", "/proc/net/ip_tables_names": "filter\nnat\n"}, given(says("iptables v1.8.9 (nf_tables)")), []want{{
			verdict: Warn, observed: "legacy tables are in use: filter, nat", place: "/proc/net/ip_tables_names",
		}}},
		look{"it does not run", files{program: ""}, nil, one(Unknown, "exit status 127")},
		look{"it says something else", files{program: ""}, given(says("hello")), one(Unknown, "hello")},
	)
}

func TestFirewall(t *testing.T) {
	const firewalld, ufw = "/usr/lib/systemd/system/firewalld.service", "/lib/systemd/system/ufw.service"
	active := withUnits(units{"firewalld.service": {ActiveState: "active"}, "ufw.service": {ActiveState: "active"}})
	looks(t, "host/firewall",
		look{"none", nil, given(active), one(Pass, "neither")},
		look{"installed", files{firewalld: ""}, given(withUnits(units{"firewalld.service": {ActiveState: "inactive"}})), one(Pass, "neither")},
		look{"firewalld", files{firewalld: ""}, given(active), []want{{verdict: Warn, object: "firewalld", observed: "active", remedy: "systemctl disable --now firewalld.service"}}},
		look{"ufw", files{ufw: "", "/etc/ufw/ufw.conf": "ENABLED=yes\n"}, given(active), []want{{verdict: Warn, object: "ufw", place: "/etc/ufw/ufw.conf", remedy: "ufw disable"}}},
		look{"ufw, switched off", files{ufw: "", "/etc/ufw/ufw.conf": "ENABLED=no\n"}, given(active), one(Pass, "neither")},
		look{"unreadable", files{ufw: "", "/etc/ufw/ufw.conf/": ""}, given(active), one(Unknown, "is a directory")},
		look{"systemd is silent", files{firewalld: ""}, given(booted), one(Unknown, "systemd")},
	)
}

func TestCNINetwork(t *testing.T) {
	// The default route, 10.88.0.0/16 by cni0 and 10.0.0.0/8 by eth0; fd00::/64 by eth0.
	const head = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n" +
		"eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n" + "cni0\t0000580A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
	const wide = "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t000000FF\t0\t0\t0\n"
	const six = "fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0\n"
	network := func(subnets ...string) func(*Outside) {
		s := dynamic()
		s.CNI.Network = &profiles.Network{Bridge: "cni0", Subnets: subnets}
		return withSpec(s)
	}
	looks(t, "host/cni-network",
		look{"the cluster's", nil, given(withSpec(dynamic())), one(Pass, "brings its own")},
		look{"of its own", files{"/proc/net/route": head}, given(network("10.88.0.0/16")), one(Pass, "10.88.0.0/16")},
		look{"another's", files{"/proc/net/route": head + wide}, given(network("10.88.0.0/16")), []want{{
			verdict: Warn, object: "10.88.0.0/16", observed: "10.0.0.0/8 by eth0", remedy: "cni.network",
		}}},
		look{"another's, IPv6", files{"/proc/net/ipv6_route": six}, given(network("fd00::/80")), []want{{verdict: Warn, observed: "fd00::/64 by eth0"}}},
		look{"unreadable", files{"/proc/net/route/": ""}, given(network("10.88.0.0/16")), one(Unknown, "is a directory")},
	)
}
