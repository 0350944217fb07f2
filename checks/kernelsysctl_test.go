package checks

import (
	"slices"
	"strings"
	"testing"
)

func TestConfFiles(t *testing.T) {
	n := fake(t, files{
		"/etc/sysctl.d/90-b.conf": "", "/run/sysctl.d/90-b.conf": "", "/usr/lib/sysctl.d/10-a.conf": "", "/usr/local/lib/sysctl.d/99-z.conf": "",
		"/etc/sysctl.d/50-masked.conf": "-> /dev/null", "/usr/lib/sysctl.d/50-masked.conf": "", "/etc/sysctl.d/51-too.conf": "-> ../../dev/null",
		"/lib": "-> usr/lib", "/etc/sysctl.d/README": "", "/etc/sysctl.d/95-note.conf.bak": "",
	})
	got, err := n.confFiles("sysctl.d")
	want := []string{"/usr/lib/sysctl.d/10-a.conf", "/etc/sysctl.d/90-b.conf", "/usr/local/lib/sysctl.d/99-z.conf"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
}

// What wins of several lines, by sysctl.d(5).
func TestPersisted(t *testing.T) {
	const key = "net.ipv4.ip_forward"
	for name, c := range map[string]struct {
		files       files
		key         string
		value, from string // "": nothing sets it
	}{
		"nothing":                     {files{"/etc/sysctl.d/a.conf": "# net.ipv4.ip_forward = 1\n; net.ipv4.ip_forward = 1\nnet.ipv4.ip_forward\n"}, key, "", ""},
		"one":                         {files{"/etc/sysctl.d/a.conf": "\n  net.ipv4.ip_forward=1  \n"}, key, "1", "/etc/sysctl.d/a.conf:2"},
		"the later line":              {files{"/etc/sysctl.d/a.conf": key + " = 1\n" + key + " = 0\n"}, key, "0", "/etc/sysctl.d/a.conf:2"},
		"the later file":              {files{"/etc/sysctl.d/90-a.conf": key + " = 1\n", "/usr/lib/sysctl.d/99-b.conf": key + " = 0\n"}, key, "0", "/usr/lib/sysctl.d/99-b.conf:1"},
		"the same name, in /etc":      {files{"/etc/sysctl.d/90-a.conf": key + " = 1\n", "/usr/lib/sysctl.d/90-a.conf": key + " = 0\n"}, key, "1", "/etc/sysctl.d/90-a.conf:1"},
		"with slashes":                {files{"/etc/sysctl.d/a.conf": "net/ipv4/ip_forward = 1\n"}, key, "1", "/etc/sysctl.d/a.conf:1"},
		"a failure does not matter":   {files{"/etc/sysctl.d/a.conf": "-net.ipv4.ip_forward = 1\n"}, key, "1", "/etc/sysctl.d/a.conf:1"},
		"a pattern":                   {files{"/etc/sysctl.d/a.conf": "net.ipv4.conf.*.rp_filter = 2\n"}, "net.ipv4.conf.all.rp_filter", "2", "/etc/sysctl.d/a.conf:1"},
		"a name before a pattern":     {files{"/etc/sysctl.d/a.conf": "net.ipv4.conf.all.rp_filter = 1\n", "/etc/sysctl.d/b.conf": "net.ipv4.conf.*.rp_filter = 2\n"}, "net.ipv4.conf.all.rp_filter", "1", "/etc/sysctl.d/a.conf:1"},
		"taken out of a pattern":      {files{"/etc/sysctl.d/a.conf": "net.ipv4.conf.*.rp_filter = 2\n-net.ipv4.conf.all.rp_filter\n"}, "net.ipv4.conf.all.rp_filter", "", ""},
		"a pattern of one level":      {files{"/etc/sysctl.d/a.conf": "net.*.ip_forward = 1\nnet.ipv4.* = 0\nnet.* = 2\n"}, key, "0", "/etc/sysctl.d/a.conf:2"},
		"sysctl.conf by Debian's way": {files{"/etc/sysctl.d/99-sysctl.conf": "-> ../sysctl.conf", "/etc/sysctl.conf": key + "=0\n", "/etc/sysctl.d/95-x.conf": key + "=1\n"}, key, "0", "/etc/sysctl.conf:1"},
		"sysctl.conf without a link":  {files{"/etc/sysctl.conf": key + "=0\n", "/etc/sysctl.d/95-x.conf": key + "=1\n"}, key, "1", "/etc/sysctl.d/95-x.conf:1"},
		"a link that leads nowhere":   {files{"/etc/sysctl.d/99-sysctl.conf": "-> ../sysctl.conf", "/etc/sysctl.d/95-x.conf": key + "=1\n"}, key, "1", "/etc/sysctl.d/95-x.conf:1"},
	} {
		n := fake(t, c.files, func(o *Outside) { o.Facts.SystemdInit = true })
		s, err := n.persisted(c.key)
		switch {
		case err != nil:
			t.Errorf("%s: %v", name, err)
		case s == nil && c.from != "", s != nil && (s.value != c.value || s.place != c.from):
			t.Errorf("%s: %+v; want %q of %s", name, s, c.value, c.from)
		}
	}
	n := fake(t, files{"/etc/sysctl.conf": key + "=0\n", "/etc/sysctl.d/95-x.conf": key + "=1\n"})
	if s, err := n.persisted(key); err != nil || s == nil || s.place != "/etc/sysctl.conf:1" {
		t.Errorf("without systemd: %+v, %v; want that of procps, which reads /etc/sysctl.conf last", s, err)
	}
}

// The line of a remedy makes the value the one that wins, whatever set it before.
func TestPersistLineWins(t *testing.T) {
	const key = "net.ipv4.ip_forward"
	for _, file := range []string{
		"", "/etc/sysctl.d/10-a.conf", "/etc/sysctl.d/95-node.conf", "/etc/sysctl.d/96-a.conf", "/usr/lib/sysctl.d/99-node.conf", "/etc/sysctl.d/99-sysctl.conf", "/etc/sysctl.d/zz-last.conf",
		"/etc/sysctl.d/zz.zz.conf", "/etc/sysctl.conf",
	} {
		f := files{}
		if file != "" {
			f[file] = key + " = 0\n"
		}
		systemd := func(o *Outside) { o.Facts.SystemdInit = file != "/etc/sysctl.conf" }
		line := fake(t, f, systemd).persistLine(key, "1")
		text, to, ok := strings.Cut(strings.TrimPrefix(line, "echo '"), "' >> ")
		if !ok {
			t.Fatalf("%q is no line that appends", line)
		}
		f[to] += text + "\n"
		if s, err := fake(t, f, systemd).persisted(key); err != nil || s == nil || s.value != "1" {
			t.Errorf("%s has it: after %q %+v, %v wins", file, line, s, err)
		}
	}
}

func TestSameValue(t *testing.T) {
	for _, c := range []struct {
		a, b string
		same bool
	}{
		{"1", "1", true}, {"1", "0", false}, {"0x10", "16", true}, {"4096\t87380", "4096 87380", true}, {"1 2", "1", false}, {"cubic", "cubic", true}, {"cubic", "bbr", false}, {"1", "one", false},
	} {
		if got := sameValue(c.a, c.b); got != c.same {
			t.Errorf("%q and %q: %v", c.a, c.b, got)
		}
	}
}

func TestSysctlsInForce(t *testing.T) {
	const id = "kernel/sysctl"
	forward := map[string]string{"net.ipv4.ip_forward": "1"}
	off := "/proc/sys/net/ipv4/ip_forward"
	// A default route by eth0, and the one of lo that is always there.
	none := strings.Repeat("0", 32)
	six := none + " 00 " + none + " 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003     eth0\n" +
		none + " 00 " + none + " 00 " + none + " ffffffff 00000001 00000000 00200200       lo\n"
	for name, c := range map[string]struct {
		files files
		with  func(*Outside)
		want  want
	}{
		"all is well":           {nil, spec(nil, forward), want{verdict: Pass, observed: "1 setting is in force"}},
		"nothing is wanted":     {files{off: "0\n"}, spec(nil, nil), want{verdict: Pass, observed: "no setting is wanted"}},
		"no kubelet, no bridge": {files{off: "0\n"}, nil, want{verdict: Pass, observed: "no setting is wanted"}},
		"off": {files{off: "0\n"}, spec(nil, forward), want{
			verdict: Fail, object: "net.ipv4.ip_forward", observed: "0", wanted: "1", place: off, remedy: "sysctl -w net.ipv4.ip_forward=1\necho 'net.ipv4.ip_forward = 1' >> /etc/sysctl.d/95-node.conf",
		}},
		"off by a later file": {
			files{off: "0\n", "/etc/sysctl.d/90-nodeprep.conf": "net.ipv4.ip_forward = 1\n", "/etc/sysctl.d/99-cis.conf": "# CIS\nnet.ipv4.ip_forward = 0\n"}, spec(nil, forward),
			want{verdict: Fail, observed: "0", place: "/etc/sysctl.d/99-cis.conf:2", remedy: "/etc/sysctl.d/99-node.conf"},
		},
		"a kubelet":                     {files{off: "0\n", "/var/lib/kubelet/config.yaml": "kind: KubeletConfiguration\n"}, nil, want{verdict: Fail, object: "net.ipv4.ip_forward"}},
		"a kubelet, IPv6 only":          {files{off: "0\n", "/var/lib/kubelet/config.yaml": "kind: x\n", "/proc/net/ipv6_route": six, "/proc/sys/net/ipv6/conf/all/forwarding": "1\n"}, nil, want{verdict: Pass}},
		"a kubelet, IPv6 only, and off": {files{off: "0\n", "/var/lib/kubelet/config.yaml": "kind: x\n", "/proc/net/ipv6_route": six, "/proc/sys/net/ipv6/conf/all/forwarding": "0\n"}, nil, want{verdict: Fail, object: "net.ipv6.conf.all.forwarding"}},
		"a kubelet, both": {files{off: "0\n", "/var/lib/kubelet/config.yaml": "kind: x\n", "/proc/net/ipv6_route": six, "/proc/net/route": "eth0\t0000000A\t00000000\t0001\t0\t0\t100\t000000FF\t0\t0\t0\n"}, nil,
			want{verdict: Fail, object: "net.ipv4.ip_forward"}},
		"a bridge": {
			files{off: "0\n", "/etc/cni/net.d/10-a.conflist": `{"plugins":[{"type":"bridge"}]}`}, nil,
			want{verdict: Warn, object: "net.ipv4.ip_forward", remedy: "sysctl -w"},
		},
		"an old bridge":   {files{off: "0\n", "/etc/cni/net.d/10-a.conf": `{"type":"bridge"}`}, nil, want{verdict: Warn}},
		"another network": {files{off: "0\n", "/etc/cni/net.d/10-a.conflist": `{"plugins":[{"type":"ptp"}]}`, "/etc/cni/net.d/x.conf": "no json", "/etc/cni/net.d/y.txt": `{"type":"bridge"}`}, nil, want{verdict: Pass}},
		"several fields":  {files{"/proc/sys/net/ipv4/ip_local_port_range": "32768\t60999\n"}, spec(nil, map[string]string{"net.ipv4.ip_local_port_range": "32768  60999"}), want{verdict: Pass}},
		"no such key": {nil, spec(nil, map[string]string{"net.ipv4.vs.conn_reuse_mode": "0"}), want{
			verdict: Fail, observed: "no such setting", place: "/proc/sys/net/ipv4/vs/conn_reuse_mode", remedy: "modprobe ip_vs && echo ip_vs > /etc/modules-load.d/ip_vs.conf\nsysctl -w net.ipv4.vs.conn_reuse_mode=0",
		}},
		"no such key at all": {nil, spec(nil, map[string]string{"net.none": "0"}), want{verdict: Fail, remedy: "# take net.none out of the profile"}},
		"it cannot be read":  {files{"/proc/sys/net/none/": ""}, spec(nil, map[string]string{"net.none": "0"}), want{verdict: Unknown, object: "net.none", observed: "is a directory"}},
		"a broken kubelet":   {files{"/var/lib/kubelet/config.yaml": "kind: [\n"}, nil, want{verdict: Unknown}},
	} {
		t.Run(name, func(t *testing.T) {
			n := linux(t, c.files)
			if c.with != nil {
				c.with(&n.Outside)
			}
			expect(t, n, id, c.want)
		})
	}
	// One result for each that is wrong.
	n := linux(t, files{off: "0\n", "/proc/sys/vm/overcommit_memory": "0\n"}, spec(nil, map[string]string{"net.ipv4.ip_forward": "1", "vm.overcommit_memory": "1", "kernel.pid_max": "4194304"}))
	expect(t, n, id, want{verdict: Fail, object: "net.ipv4.ip_forward"}, want{verdict: Fail, object: "vm.overcommit_memory"})
}

func TestSysctlsPersisted(t *testing.T) {
	const id = "kernel/sysctl-persisted"
	forward := spec(nil, map[string]string{"net.ipv4.ip_forward": "1"})
	ours := "/etc/sysctl.d/90-nodeprep.conf"
	for name, c := range map[string]struct {
		files files
		with  []func(*Outside)
		want  want
	}{
		"all is well":       {files{ours: "net.ipv4.ip_forward = 1\n"}, []func(*Outside){forward}, want{verdict: Pass, observed: "1 setting is set at boot"}},
		"nothing is wanted": {nil, nil, want{verdict: Pass, observed: "no setting is wanted"}},
		"no file":           {nil, []func(*Outside){forward}, want{verdict: Fail, object: "net.ipv4.ip_forward", observed: "no file sets it", wanted: "1", place: "/etc/sysctl.d", remedy: "echo 'net.ipv4.ip_forward = 1' >> /etc/sysctl.d/95-node.conf"}},
		"a later file": {
			files{ours: "net.ipv4.ip_forward = 1\n", "/etc/sysctl.d/99-local.conf": "net.ipv4.ip_forward = 0\n"}, []func(*Outside){forward},
			want{verdict: Fail, observed: "0 after the next boot", place: "/etc/sysctl.d/99-local.conf:1", remedy: ">> /etc/sysctl.d/99-node.conf"},
		},
		"a kubelet, and a program that set it": {files{"/var/lib/kubelet/config.yaml": "kind: x\n"}, nil, want{verdict: Warn, object: "net.ipv4.ip_forward", observed: "no file sets it", remedy: "95-node.conf"}},
		"a kubelet, and a file against it":     {files{"/var/lib/kubelet/config.yaml": "kind: x\n", "/etc/sysctl.d/99-local.conf": "net.ipv4.ip_forward = 0\n"}, nil, want{verdict: Fail, observed: "0 after the next boot"}},
		"a bridge alone":                       {files{"/etc/cni/net.d/a.conf": `{"type":"bridge"}`}, nil, want{verdict: Warn, observed: "no file sets it"}},
		"wrong now, too": {
			files{"/proc/sys/net/ipv4/ip_forward": "0\n", "/etc/sysctl.d/99-local.conf": "net.ipv4.ip_forward = 0\n"}, []func(*Outside){forward},
			want{verdict: Skip, observed: "kernel/sysctl says what is wrong"},
		},
		"an image": {files{"/proc/sys/net/ipv4/ip_forward": gone}, []func(*Outside){forward, image}, want{verdict: Fail, remedy: "/etc/sysctl.d/95-node.conf"}},
		"a folder that cannot be read": {
			files{"/etc/sysctl.d/a.conf/": ""}, []func(*Outside){forward}, want{verdict: Unknown, observed: "is a directory"},
		},
	} {
		t.Run(name, func(t *testing.T) { expect(t, linux(t, c.files, c.with...), id, c.want) })
	}
	n := linux(t, files{ours: "net.ipv4.ip_forward = 1\n", "/etc/sysctl.conf": "net.ipv4.ip_forward=0\n"}, forward)
	if got := results(t, n, id); got[0].Verdict != Pass || !strings.Contains(got[0].Note, "sysctl --system") {
		t.Errorf("/etc/sysctl.conf, which only procps reads, has another value: %+v", got)
	}
	n = linux(t, files{ours: "net.ipv4.ip_forward = 1\n", "/etc/sysctl.conf": "net.ipv4.ip_forward=1\nvm.swappiness=0\n-net.ipv4.ip_forward\n"}, forward)
	if got := results(t, n, id); got[0].Verdict != Pass || got[0].Note != "" {
		t.Errorf("/etc/sysctl.conf has nothing against it: %+v", got)
	}
}

func TestSysctlOrdering(t *testing.T) {
	const id = "kernel/sysctl-ordering"
	conf := "/etc/sysctl.d/k8s.conf"
	bridge := files{conf: "net.ipv4.ip_forward = 1\nnet.bridge.bridge-nf-call-iptables = 1\n"}
	and := func(more files) files {
		all := files{conf: bridge[conf]}
		for p, s := range more {
			all[p] = s
		}
		return all
	}
	lost := want{verdict: Fail, object: "net.bridge.bridge-nf-call-iptables", place: conf + ":2", remedy: "echo br_netfilter > /etc/modules-load.d/br_netfilter.conf"}
	for name, c := range map[string]struct {
		files files
		with  []func(*Outside)
		want  want
	}{
		"no setting of a bridge":       {files{conf: "net.ipv4.ip_forward = 1\n"}, nil, want{verdict: Pass, observed: "no file sets"}},
		"lost":                         {bridge, nil, lost},
		"lost though loaded now":       {and(files{"/sys/module/br_netfilter/initstate": "live\n"}), nil, lost},
		"loaded before":                {and(files{"/etc/modules-load.d/k8s.conf": "overlay\nbr-netfilter\n"}), nil, want{verdict: Pass, observed: "/etc/modules-load.d/k8s.conf:2 loads br_netfilter"}},
		"loaded by the kernel's words": {and(files{"/proc/cmdline": "ro modules_load=br_netfilter\n"}), nil, want{verdict: Pass, observed: "/proc/cmdline"}},
		"part of the kernel":           {and(files{lib + "/modules.builtin": "kernel/net/bridge/br_netfilter.ko\n"}), nil, want{verdict: Pass, observed: "part of the kernel"}},
		"its file is masked":           {and(files{"/usr/lib/modules-load.d/k8s.conf": "br_netfilter\n", "/etc/modules-load.d/k8s.conf": "-> /dev/null"}), nil, lost},
		"another check names it":       {bridge, []func(*Outside){spec([]string{"br_netfilter"}, nil)}, want{verdict: Skip, observed: "kernel/modules-persisted"}},
		"an image without a kernel":    {and(files{lib + "/modules.builtin": gone}), []func(*Outside){image}, want{verdict: Fail, remedy: "/etc/modules-load.d/br_netfilter.conf"}},
		"files that cannot be read":    {files{"/etc/sysctl.d/a.conf/": ""}, nil, want{verdict: Unknown}},
		"lists that cannot be read":    {and(files{"/etc/modules-load.d/a.conf/": ""}), nil, want{verdict: Unknown}},
	} {
		t.Run(name, func(t *testing.T) { expect(t, linux(t, c.files, c.with...), id, c.want) })
	}
}
