package checks

import (
	"context"
	"crypto/md5"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/internal/elf/elftest"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

func static() string { return string(elftest.Program{Machine: elf.EM_X86_64}.Bytes()) }

// node is a host with containerd in /usr/local and a bridge network.
func nodeFiles(change files) files {
	f := files{
		"/usr/local/bin/containerd":              static(),
		"/usr/local/bin/containerd-shim-runc-v2": static(),
		"/usr/local/sbin/runc":                   static(),
		"/opt/cni/bin/loopback":                  static(),
		"/opt/cni/bin/bridge":                    static(),
		"/opt/cni/bin/host-local":                static(),
		"/etc/cni/net.d/10-node.conflist":        `{"plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}`,
	}
	maps.Copy(f, change)
	for p, content := range f {
		if content == noFile {
			delete(f, p)
		}
	}
	return f
}

// noFile takes a file away.
const noFile = "\x00none"

func amd64(o *Outside) {
	o.Facts.Arch, o.Facts.ArchKnown = "amd64", true
	o.Facts.LibC = host.LibC{Kind: "glibc", Major: 2, Minor: 36, Path: "/lib/x86_64-linux-gnu/libc.so.6"}
}

// asImage makes it a root that does not run, so that no program of it is asked.
func asImage(o *Outside) { o.Live = false }

// receipt is that of a node with these programs, of which some drifted.
func receipt(drift ...Drift) func(*Outside) {
	return func(o *Outside) {
		o.Receipt = &Receipt{
			Versions: map[string]string{"containerd": "2.3.4", "runc": "1.4.3"},
			Programs: []string{"/usr/local/bin/containerd", "/usr/local/bin/containerd-shim-runc-v2", "/usr/local/sbin/runc", "/usr/local/bin/ctr"},
			Profile:  "/root/node.yaml",
			Drift:    func(context.Context) ([]Drift, error) { return drift, nil },
		}
	}
}

// mode changes the mode of a fake's file.
func mode(t *testing.T, n *Node, p string, m os.FileMode) {
	t.Helper()
	if err := os.Chmod(filepath.Join(n.Host.Root.Dir(), p), m); err != nil {
		t.Fatal(err)
	}
}

func TestProgramsAreThere(t *testing.T) {
	bridge := "-> /opt/cni/bin/nowhere"
	for name, c := range map[string]struct {
		f      files
		change []func(*Outside)
		id     string
		want   []want
	}{
		"containerd":         {nil, nil, "binary/containerd", []want{{verdict: Pass, observed: "/usr/local/bin/containerd"}}},
		"containerd deleted": {files{"/usr/local/bin/containerd": noFile}, []func(*Outside){receipt()}, "binary/containerd", []want{{verdict: Fail, object: "/usr/local/bin/containerd", observed: "is missing", place: "receipt", remedy: " -f /root/node.yaml"}}},
		"containerd of a profile only": {files{"/usr/local/bin/containerd": noFile}, []func(*Outside){withSpec(profiles.Spec{Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("2.3.4")}}})},
			"binary/containerd", []want{{verdict: Fail, place: "profile", remedy: "nodeprep apply"}}},
		"containerd is a directory": {files{"/usr/local/bin/containerd": noFile, "/usr/local/bin/containerd/": ""}, []func(*Outside){receipt()}, "binary/containerd", []want{{verdict: Fail, observed: "is a directory"}}},
		"no containerd":             {files{"/usr/local/bin/containerd": noFile}, nil, "binary/containerd", []want{{verdict: Skip, observed: "no containerd"}}},
		"shim":                      {nil, nil, "binary/shim", []want{{verdict: Pass, observed: "/usr/local/bin/containerd-shim-runc-v2"}}},
		"shim beside the daemon":    {files{"/usr/local/bin/containerd": noFile, "/usr/local/bin/containerd-shim-runc-v2": noFile, "/opt/c/containerd-shim-runc-v2": static(), "/opt/c/containerd": static()}, []func(*Outside){func(o *Outside) { o.Receipt = &Receipt{Programs: []string{"/opt/c/containerd"}} }}, "binary/shim", []want{{verdict: Pass, observed: "/opt/c/containerd-shim-runc-v2"}}},
		"shim deleted":              {files{"/usr/local/bin/containerd-shim-runc-v2": noFile}, nil, "binary/shim", []want{{verdict: Fail, observed: "is missing", object: "/usr/local/bin/containerd-shim-runc-v2"}}},
		"runc":                      {nil, nil, "binary/runc", []want{{verdict: Pass, observed: "/usr/local/sbin/runc"}}},
		"runc of a package deleted": {files{"/usr/local/sbin/runc": noFile, "/etc/containerd/config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]\nBinaryName = '/usr/sbin/runc'\n",
			"/var/lib/dpkg/info/runc.list": "/.\n/usr/sbin/runc\n", "/var/lib/dpkg/status": "Package: runc\nStatus: install ok installed\nVersion: 1.1.15+ds1\n\n"},
			nil, "binary/runc", []want{{verdict: Fail, object: "/usr/sbin/runc", place: "/etc/containerd/config.toml:3", remedy: "apt-get install --reinstall -y runc"}}},
		"plugins":           {nil, nil, "binary/cni-plugins", []want{{verdict: Pass, observed: "bridge, host-local, loopback"}}},
		"loopback deleted":  {files{"/opt/cni/bin/loopback": noFile}, nil, "binary/cni-plugins", []want{{verdict: Fail, object: "/opt/cni/bin/loopback", observed: "is missing"}}},
		"internal loopback": {files{"/opt/cni/bin/loopback": noFile, "/etc/containerd/config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nuse_internal_loopback = true\n"}, nil, "binary/cni-plugins", []want{{verdict: Pass, observed: "bridge, host-local"}}},
		"ipam deleted":      {files{"/opt/cni/bin/host-local": noFile}, nil, "binary/cni-plugins", []want{{verdict: Fail, object: "host-local", place: "/etc/cni/net.d/10-node.conflist"}}},
		"a link to nowhere": {files{"/opt/cni/bin/bridge": bridge}, nil, "binary/cni-plugins", []want{{verdict: Fail, observed: "is a link to /opt/cni/bin/nowhere, which is missing"}}},
		"other folders":     {files{"/opt/cni/bin/loopback": noFile, "/usr/lib/cni/loopback": static(), "/etc/containerd/config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/usr/lib/cni', '/opt/cni/bin']\n"}, nil, "binary/cni-plugins", []want{{verdict: Pass}}},
		"Debian's folder":   {files{"/opt/cni/bin/loopback": noFile, "/var/lib/dpkg/status": "", "/etc/cni/net.d/10-node.conflist": `{"type": "loopback"}`, "/etc/containerd/config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['/usr/lib/cni']\n"}, nil, "binary/cni-plugins", []want{{verdict: Fail, object: "/usr/lib/cni/loopback", remedy: "apt-get install -y containernetworking-plugins"}}},
		"flannel":           {files{"/opt/cni/bin/bridge": noFile, "/opt/cni/bin/flannel": static(), "/etc/cni/net.d/10-node.conflist": `{"plugins":[{"type":"flannel","delegate":{"hairpinMode":true}}]}`}, nil, "binary/cni-plugins", []want{{verdict: Fail, object: "/opt/cni/bin/bridge"}}},
		"flannel by ptp":    {files{"/opt/cni/bin/bridge": noFile, "/opt/cni/bin/flannel": static(), "/opt/cni/bin/ptp": static(), "/etc/cni/net.d/10-node.conflist": `{"plugins":[{"type":"flannel","delegate":{"type":"ptp"}}]}`}, nil, "binary/cni-plugins", []want{{verdict: Pass, observed: "flannel, host-local, loopback, ptp"}}},
		"multus": {files{"/opt/cni/bin/multus": static(), "/etc/cni/net.d/10-node.conflist": noFile, "/etc/cni/net.d/00-multus.conf": `{"type":"multus","delegates":[{"plugins":[{"type":"calico","ipam":{"type":"calico-ipam"}}]},{"type":"bridge"}]}`}, nil, "binary/cni-plugins",
			[]want{{verdict: Fail, object: "/opt/cni/bin/calico", place: "00-multus.conf"}, {verdict: Fail, object: "/opt/cni/bin/calico-ipam"}}},
		"only crun":            {files{"/usr/local/sbin/runc": noFile, "/usr/bin/crun": static(), "/etc/containerd/config.toml": "version = 3\n[plugins.'io.containerd.cri.v1.runtime'.containerd]\ndefault_runtime_name = 'crun'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]\nruntime_type = 'io.containerd.runc.v2'\n[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]\nBinaryName = '/usr/bin/crun'\n"}, nil, "binary/runc", []want{{verdict: Skip, observed: "no runtime of the config uses runc"}}},
		"a link to itself":     {files{"/opt/cni/bin/bridge": "-> /opt/cni/bin/bridge"}, nil, "binary/cni-plugins", []want{{verdict: Unknown, object: "/opt/cni/bin/bridge"}}},
		"only the first file":  {files{"/etc/cni/net.d/20-b.conf": `{"type": "macvlan"}`}, nil, "binary/cni-plugins", []want{{verdict: Pass}}},
		"a single network":     {files{"/etc/cni/net.d/10-node.conflist": noFile, "/etc/cni/net.d/20-b.conf": `{"type": "macvlan"}`}, nil, "binary/cni-plugins", []want{{verdict: Fail, object: "/opt/cni/bin/macvlan"}}},
		"a broken network":     {files{"/etc/cni/net.d/10-node.conflist": "{"}, nil, "binary/cni-plugins", []want{{verdict: Unknown, observed: "read /etc/cni/net.d/10-node.conflist"}}},
		"no network yet":       {files{"/etc/cni/net.d/10-node.conflist": noFile, "/opt/cni/bin/loopback": noFile}, nil, "binary/cni-plugins", []want{{verdict: Skip, observed: "no network is configured"}}},
		"plugins of a profile": {files{"/etc/cni/net.d/10-node.conflist": noFile, "/opt/cni/bin/loopback": noFile}, []func(*Outside){withSpec(profiles.Spec{CNI: profiles.CNI{Component: profiles.Component{Version: releases.MustVersion("1.9.1")}}})}, "binary/cni-plugins", []want{{verdict: Fail, object: "loopback"}}},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, fake(t, nodeFiles(c.f), append(c.change, amd64, asImage)...), c.id, c.want...)
		})
	}
}

func TestProgramThatCannotBeExecuted(t *testing.T) {
	for p, id := range map[string]string{
		"/usr/local/bin/containerd": "binary/containerd", "/usr/local/bin/containerd-shim-runc-v2": "binary/shim",
		"/usr/local/sbin/runc": "binary/runc", "/opt/cni/bin/bridge": "binary/cni-plugins",
	} {
		n := fake(t, nodeFiles(nil), amd64, asImage, receipt(Drift{p, "has mode 0644, not 0755"}))
		mode(t, n, p, 0o644)
		expect(t, n, id, want{verdict: Fail, object: p, observed: "cannot be executed: mode 0644", place: p, remedy: "chmod 0755 " + p})
		// No other check reports it again.
		for _, other := range []string{"binary/arch", "binary/interpreter", "binary/libraries", "binary/writable", "binary/integrity"} {
			if got := results(t, n, other); got[0].Verdict != Pass {
				t.Errorf("%s: %s: %+v", p, other, got)
			}
		}
		mode(t, n, p, 0o755)
		expect(t, NewNode(t.Context(), n.Outside), id, want{verdict: Pass})
	}
}

func TestHeadersOfPrograms(t *testing.T) {
	arm := string(elftest.Program{Machine: elf.EM_AARCH64}.Bytes())
	dynamic := string(elftest.Dynamic("GLIBC_2.34").Bytes())
	newer := string(elftest.Dynamic("GLIBC_2.38").Bytes())
	musl := string(elftest.Program{Machine: elf.EM_X86_64, Interp: "/lib/ld-musl-x86_64.so.1"}.Bytes())
	libs := files{"/lib64/ld-linux-x86-64.so.2": "loader", "/lib/x86_64-linux-gnu/libc.so.6": "libc", "/usr/lib/x86_64-linux-gnu/libseccomp.so.2": "x"}
	with := func(more files) files {
		f := maps.Clone(libs)
		maps.Copy(f, more)
		return f
	}
	const runc = "/usr/local/sbin/runc"
	for name, c := range map[string]struct {
		f    files
		fail string // the one check that fails
		want want
	}{
		"static":                 {nil, "", want{}},
		"dynamic":                {with(files{runc: dynamic}), "", want{}},
		"another machine":        {files{runc: arm}, "binary/arch", want{observed: "a program for arm64 (EM_AARCH64)", wanted: "amd64"}},
		"cut short":              {files{runc: static()[:40]}, "binary/arch", want{observed: "it is not a Linux program", wanted: "a program for amd64"}},
		"empty":                  {files{runc: ""}, "binary/arch", want{observed: "it is not a Linux program"}},
		"a script":               {files{runc: "#!/bin/sh\nexec runc.real \"$@\"\n", "/bin/sh": "sh"}, "", want{}},
		"a script of no shell":   {files{runc: "#! /bin/zsh -f\n"}, "binary/interpreter", want{observed: "its loader /bin/zsh is missing"}},
		"no loader":              {files{runc: dynamic}, "binary/interpreter", want{observed: "its loader /lib64/ld-linux-x86-64.so.2 is missing", wanted: "/lib64/ld-linux-x86-64.so.2"}},
		"a newer C library":      {with(files{runc: newer}), "binary/libraries", want{observed: "glibc 2.36", wanted: "glibc 2.38 or newer", place: "/lib/x86_64-linux-gnu/libc.so.6"}},
		"no libseccomp":          {with(files{runc: dynamic, "/usr/lib/x86_64-linux-gnu/libseccomp.so.2": noFile, "/var/lib/dpkg/status": ""}), "binary/libraries", want{observed: "libseccomp.so.2 missing", remedy: "apt-get install -y libseccomp2"}},
		"another library folder": {with(files{runc: dynamic, "/usr/lib/x86_64-linux-gnu/libseccomp.so.2": noFile, "/etc/ld.so.conf.d/own.conf": "# own\n/opt/lib\n", "/opt/lib/libseccomp.so.2": "x"}), "", want{}},
		"musl on glibc":          {with(files{runc: musl, "/lib/ld-musl-x86_64.so.1": "x"}), "binary/libraries", want{observed: "glibc 2.36", wanted: "musl"}},
	} {
		t.Run(name, func(t *testing.T) {
			n := fake(t, nodeFiles(c.f), amd64, asImage, receipt(Drift{runc, "has other content than was written"}))
			for _, id := range []string{"binary/runc", "binary/arch", "binary/interpreter", "binary/libraries", "binary/writable"} {
				if id != c.fail {
					if got := results(t, n, id); len(got) != 1 || got[0].Verdict != Pass {
						t.Errorf("%s: %+v", id, got)
					}
					continue
				}
				c.want.verdict, c.want.object = Fail, runc
				expect(t, n, id, c.want)
			}
			// What is broken otherwise is not reported as changed, too.
			integrity := want{verdict: Pass}
			if c.fail == "" {
				integrity = want{verdict: Fail, object: runc, observed: "has other content", wanted: "as it was installed", remedy: "nodeprep apply --adopt --root " + n.Host.Root.Dir() + " -f /root/node.yaml"}
			}
			expect(t, n, "binary/integrity", integrity)
		})
	}
}

func TestHeadersWithoutFacts(t *testing.T) {
	n := fake(t, nodeFiles(files{"/usr/local/sbin/runc": string(elftest.Dynamic("GLIBC_2.34").Bytes()), "/lib64/ld-linux-x86-64.so.2": "loader"}), asImage,
		func(o *Outside) { o.Facts.Arch, o.Facts.LibC = "amd64", host.LibC{Kind: "glibc"} })
	expect(t, n, "binary/libraries", want{verdict: Unknown, object: "/usr/local/sbin/runc", observed: "it needs glibc 2.34, and the version"})
	for _, r := range results(t, n, "binary/arch") {
		if r.Verdict != Unknown {
			t.Errorf("%+v", r)
		}
	}
	n = fake(t, nodeFiles(files{"/usr/local/sbin/runc": string(elftest.Dynamic("GLIBC_2.34").Bytes())}), asImage,
		func(o *Outside) { o.Facts.Arch = "amd64" })
	expect(t, n, "binary/interpreter", want{verdict: Unknown, object: "/usr/local/sbin/runc", observed: "no C library yet"})
	// What cannot be told does not hide what can.
	n = fake(t, nodeFiles(nil), asImage, receipt(Drift{"/usr/local/sbin/runc", "has other content"}))
	expect(t, n, "binary/integrity", want{verdict: Fail, object: "/usr/local/sbin/runc"})
	none := fake(t, files{}, amd64)
	for _, id := range []string{"binary/containerd", "binary/shim", "binary/runc", "binary/cni-plugins", "binary/arch", "binary/interpreter", "binary/libraries", "binary/writable",
		"binary/version", "binary/provenance", "binary/duplicates", "binary/path", "binary/runc-version", "binary/runc-libseccomp", "binary/selinux"} {
		expect(t, none, id, want{verdict: Skip})
	}
}

func TestWritablePrograms(t *testing.T) {
	for name, c := range map[string]struct {
		path string
		mode os.FileMode
		want want
	}{
		"as usual":              {"/usr/local/sbin/runc", 0o755, want{verdict: Pass}},
		"everybody":             {"/usr/local/sbin/runc", 0o757, want{verdict: Fail, object: "/usr/local/sbin/runc", observed: "everybody may write it", remedy: "chmod 0755 /usr/local/sbin/runc"}},
		"the folder":            {"/usr/local/sbin", 0o777, want{verdict: Fail, object: "/usr/local/sbin/runc", observed: "/usr/local/sbin has mode 0777", place: "/usr/local/sbin", remedy: "chmod 0755 /usr/local/sbin"}},
		"the folder, and stuck": {"/usr/local/sbin", 0o777 | os.ModeSticky, want{verdict: Pass}},
	} {
		t.Run(name, func(t *testing.T) {
			n := fake(t, nodeFiles(nil), amd64, asImage)
			mode(t, n, c.path, c.mode)
			expect(t, n, "binary/writable", c.want)
		})
	}
	n := fake(t, nodeFiles(nil), amd64)
	for _, c := range []struct {
		p    program
		want string
	}{
		{program{path: "/usr/local/sbin/runc", mode: 0o775, gid: 50}, "mode 0775: group 50 may write it"},
		{program{path: "/usr/local/sbin/runc", mode: 0o775}, ""},
		{program{path: "/usr/local/sbin/runc", mode: 0o755, uid: 4321}, "belongs to uid 4321"},
		{program{path: "/usr/local/sbin/runc", mode: 0o755, uid: 998}, "belongs to uid 998"},
		{program{role: roleCNI, path: "/opt/cni/bin/calico", mode: 0o755, uid: 998}, ""}, // of an installer's own user: a warning
		{program{role: roleCNI, path: "/opt/cni/bin/calico", mode: 0o755, uid: 1000}, "belongs to uid 1000"},
		{program{role: roleCNI, path: "/opt/cni/bin/calico", mode: 0o775, uid: 998, gid: 998}, "mode 0775: group 998 may write it"},
	} {
		if c.p.uid == 0 {
			c.p.uid = os.Getuid() // whose the fake's / is
		}
		got := ""
		if r := writableOf(n, &c.p); r != nil && r.Verdict == Fail {
			got = r.Observed
		}
		if got != c.want {
			t.Errorf("%+v: %q, want %q", c.p, got, c.want)
		}
	}
}

func TestIntegrity(t *testing.T) {
	expect(t, fake(t, nodeFiles(nil), amd64, receipt()), "binary/integrity", want{verdict: Pass, observed: "4 programs"})
	n := fake(t, nodeFiles(files{"/etc/nodeprep/profile.yaml": "x"}), amd64, receipt(
		Drift{"/usr/local/sbin/runc", "has other content than was written"}, Drift{"/usr/local/bin/ctr", "is missing"}, Drift{"/etc/containerd/config.toml", "has 3 bytes"},
	))
	expect(t, n, "binary/integrity",
		want{verdict: Fail, object: "/usr/local/sbin/runc", remedy: "nodeprep apply --adopt"},
		want{verdict: Fail, object: "/usr/local/bin/ctr", observed: "is missing", remedy: "nodeprep apply"})
	expect(t, fake(t, nodeFiles(nil), amd64, func(o *Outside) {
		o.Receipt = &Receipt{Drift: func(context.Context) ([]Drift, error) { return nil, errors.New("a file cannot be read") }}
	}), "binary/integrity", want{verdict: Unknown, observed: "a file cannot be read"})
}

const (
	containerdSays = "containerd github.com/containerd/containerd/v2 v2.3.4 1234abcd\n"
	runcIs         = "runc version 1.4.3\ncommit: v1.4.3-0-gabc\nspec: 1.3.0\ngo: go1.25.1\nlibseccomp: 2.6.0\n"
)

func asks(containerd, runc string) func(*Outside) {
	m := map[string]string{}
	if containerd != "" {
		m["/usr/local/bin/containerd --version"] = containerd
	}
	if runc != "" {
		m["/usr/local/sbin/runc --version"] = runc
	}
	return prints(m)
}

func TestVersionsOnTheDisk(t *testing.T) {
	other := strings.Replace(runcIs, "1.4.3", "1.3.6", 1)
	spec := withSpec(profiles.Spec{Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("2.3.4")}}, Runc: profiles.Component{Version: releases.MustVersion("1.4.3")}})
	for name, c := range map[string]struct {
		change []func(*Outside)
		want   []want
	}{
		"as installed":     {[]func(*Outside){receipt(), asks(containerdSays, runcIs)}, []want{{verdict: Pass, observed: "containerd 2.3.4, runc 1.4.3"}}},
		"as chosen":        {[]func(*Outside){spec, asks(containerdSays, runcIs)}, []want{{verdict: Pass}}},
		"another runc":     {[]func(*Outside){spec, asks(containerdSays, other)}, []want{{verdict: Fail, object: "/usr/local/sbin/runc", observed: "1.3.6", wanted: "1.4.3 (profile)", remedy: "nodeprep apply --adopt"}}},
		"another daemon":   {[]func(*Outside){receipt(), asks(strings.Replace(containerdSays, "2.3.4", "1.7.24~ds1", 1), runcIs)}, []want{{verdict: Fail, object: "containerd", observed: "1.7.24", wanted: "2.3.4 (receipt)"}}},
		"known to differ":  {[]func(*Outside){receipt(Drift{"/usr/local/sbin/runc", "has other content"}), asks(containerdSays, other)}, []want{{verdict: Pass, observed: "containerd 2.3.4"}}},
		"it does not say":  {[]func(*Outside){spec, asks(containerdSays, "runc version\n")}, []want{{verdict: Unknown, object: "runc"}}},
		"it does not run":  {[]func(*Outside){receipt(), asks("", runcIs)}, []want{{verdict: Unknown, object: "containerd"}}},
		"nothing to go by": {[]func(*Outside){asks(containerdSays, runcIs)}, []want{{verdict: Skip, observed: "no profile"}}},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, fake(t, nodeFiles(nil), append([]func(*Outside){amd64}, c.change...)...), "binary/version", c.want...)
		})
	}
}

func TestProvenance(t *testing.T) {
	const status = "Package: runc\nStatus: install ok installed\nVersion: 1.1.15+ds1\n\nPackage: containerd\nStatus: install ok installed\nVersion: 1.7.24~ds1\n\n"
	sum := md5.Sum([]byte("runc of the package"))
	packaged := files{
		"/usr/local/bin/containerd": noFile, "/usr/local/bin/containerd-shim-runc-v2": noFile, "/usr/local/sbin/runc": noFile,
		"/usr/bin/containerd": static(), "/usr/bin/containerd-shim-runc-v2": static(), "/usr/sbin/runc": "runc of the package",
		"/var/lib/dpkg/status":                  status,
		"/var/lib/dpkg/info/runc.list":          "/.\n/usr/sbin/runc\n",
		"/var/lib/dpkg/info/runc.md5sums":       hex.EncodeToString(sum[:]) + "  usr/sbin/runc\n",
		"/var/lib/dpkg/info/containerd.list":    "/.\n/usr/bin/containerd\n/usr/bin/containerd-shim-runc-v2\n",
		"/var/lib/dpkg/info/containerd.md5sums": "00000000000000000000000000000000  usr/bin/containerd\n",
	}
	// old makes the files of packages older than their installation.
	old := func(t *testing.T, n *Node, names ...string) *Node {
		for _, p := range names {
			if err := os.Chtimes(filepath.Join(n.Host.Root.Dir(), p), time.Unix(1e9, 0), time.Unix(1e9, 0)); err != nil {
				t.Fatal(err)
			}
		}
		return n
	}
	n := old(t, fake(t, nodeFiles(packaged), amd64), "/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2")
	expect(t, n, "binary/provenance", want{verdict: Pass, observed: "containerd is of package containerd 1.7.24~ds1, containerd-shim-runc-v2 is of package containerd 1.7.24~ds1, runc is of package runc 1.1.15+ds1, unchanged"})

	changed := maps.Clone(packaged)
	changed["/usr/sbin/runc"] = "another runc"
	n = fake(t, nodeFiles(changed), amd64)
	old(t, n, "/usr/bin/containerd-shim-runc-v2")
	old(t, n, "/var/lib/dpkg/info/containerd.list") // containerd is newer: it was changed since
	if err := os.Chtimes(filepath.Join(n.Host.Root.Dir(), "/usr/bin/containerd-shim-runc-v2"), time.Unix(1e8, 0), time.Unix(1e8, 0)); err != nil {
		t.Fatal(err)
	}
	expect(t, n, "binary/provenance",
		want{verdict: Fail, object: "/usr/bin/containerd", observed: "is not the file of package containerd 1.7.24~ds1", remedy: "apt-get install --reinstall -y containerd"},
		want{verdict: Fail, object: "/usr/sbin/runc", observed: "is not the file of package runc", remedy: "apt-get install --reinstall -y runc"})

	silent := maps.Clone(packaged)
	silent["/var/lib/dpkg/info/runc.md5sums"] = ""
	n = old(t, fake(t, nodeFiles(silent), amd64), "/usr/bin/containerd", "/usr/bin/containerd-shim-runc-v2")
	expect(t, n, "binary/provenance", want{verdict: Unknown, object: "/usr/sbin/runc", observed: "package runc 1.1.15+ds1 has no digest of it"})

	// Digests of releases are known of runc alone; this one is of none.
	digest := sha256.Sum256([]byte(static()))
	expect(t, fake(t, nodeFiles(nil), amd64), "binary/provenance",
		want{verdict: Unknown, object: "/usr/local/bin/containerd", observed: "no package"},
		want{verdict: Unknown, object: "containerd-shim-runc-v2", observed: "no package"},
		want{verdict: Unknown, object: "/usr/local/sbin/runc", observed: hex.EncodeToString(digest[:])})
	expect(t, fake(t, nodeFiles(nil), amd64, receipt()), "binary/provenance", want{verdict: Skip, observed: "installed by nodeprep"})
}

func TestDuplicates(t *testing.T) {
	expect(t, fake(t, nodeFiles(files{"/usr/bin/containerd": "-> /usr/local/bin/containerd"}), amd64, asImage), "binary/duplicates", want{verdict: Pass, observed: "one of each"})
	expect(t, fake(t, nodeFiles(files{"/usr/sbin/runc": static()}), amd64, asImage), "binary/duplicates",
		want{verdict: Fail, object: "runc", observed: "/usr/local/sbin/runc, /usr/sbin/runc", wanted: "one runc", place: "/usr/sbin/runc", remedy: "rm /usr/sbin/runc"})
	n := fake(t, nodeFiles(files{
		"/usr/bin/containerd": static(), "/var/lib/dpkg/info/containerd.io.list": "/usr/bin/containerd\n",
		"/var/lib/dpkg/status": "Package: containerd.io\nStatus: install ok installed\nVersion: 1.7.25-1\n\n",
	}), amd64, asImage)
	// One second containerd is one warning.
	expect(t, n, "binary/duplicates", want{verdict: Pass})
	expect(t, n, "foreign/binary-owner", want{verdict: Warn, place: "/usr/bin/containerd", remedy: "apt-get remove containerd.io"})
	n = fake(t, nodeFiles(files{"/opt/containerd/bin/containerd": static()}), amd64, asImage)
	expect(t, n, "binary/duplicates", want{verdict: Fail, object: "containerd", place: "/opt/containerd/bin/containerd"})
	expect(t, n, "foreign/binary-owner", want{verdict: Pass})
}

func TestProgramsAreOnThePath(t *testing.T) {
	const whole = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin"
	fine := files{
		"/etc/environment": "PATH=\"" + whole + "\"\n", "/etc/login.defs": "ENV_SUPATH\tPATH=" + whole + "\nENV_PATH PATH=/bin\n",
		"/etc/sudoers": "Defaults env_reset\nDefaults\tsecure_path=\"" + whole + ":/snap/bin\"\n",
	}
	expect(t, fake(t, nodeFiles(fine)), "binary/path", want{verdict: Pass, observed: "/usr/local/sbin and /usr/local/bin"})
	expect(t, fake(t, nodeFiles(nil)), "binary/path", want{verdict: Pass})
	rhel := maps.Clone(fine)
	rhel["/etc/sudoers"] = "Defaults    always_set_home\nDefaults    secure_path = /sbin:/bin:/usr/sbin:/usr/bin\n"
	expect(t, fake(t, nodeFiles(rhel)), "binary/path", want{verdict: Fail, object: "secure_path of sudo", observed: "/sbin:/bin:/usr/sbin:/usr/bin", wanted: "/usr/local/sbin and /usr/local/bin in it",
		place: "/etc/sudoers:2", remedy: `echo 'Defaults secure_path="/usr/local/sbin:/usr/local/bin:/sbin:/bin:/usr/sbin:/usr/bin"' > /etc/sudoers.d/zz-local-path`})
	rhel["/etc/sudoers.d/zz-local-path"] = "Defaults secure_path=\"" + whole + "\"\n"
	rhel["/etc/sudoers.d/old.bak"] = "Defaults secure_path=\"/bin\"\n"
	expect(t, fake(t, nodeFiles(rhel)), "binary/path", want{verdict: Pass})
	few := maps.Clone(fine)
	few["/etc/environment"], few["/etc/login.defs"] = "PATH=/usr/bin:/bin\n", "ENV_SUPATH PATH=/usr/local/bin:/bin\n"
	expect(t, fake(t, nodeFiles(few)), "binary/path",
		want{verdict: Fail, object: "all logins", place: "/etc/environment:1", remedy: `PATH="/usr/local/sbin:/usr/local/bin:/usr/bin:/bin"`},
		want{verdict: Fail, object: "root's logins", wanted: "/usr/local/sbin in it", place: "/etc/login.defs:1"})
	few["/etc/sudoers"] = noFile
	few["/etc/sudoers/"] = ""
	n := fake(t, nodeFiles(few))
	if got := results(t, n, "binary/path"); len(got) != 3 || got[2].Verdict != Unknown {
		t.Errorf("sudoers that cannot be read: %+v", got)
	}
}

func TestRuncReleases(t *testing.T) {
	for said, w := range map[string]want{
		"1.4.3":              {verdict: Pass, observed: "runc 1.4.3"},
		"1.4.0-rc.2":         {verdict: Fail, wanted: "1.4.0 or newer"},
		"1.4.0-rc.3":         {verdict: Pass},
		"1.3.2":              {verdict: Fail, observed: "runc 1.3.2", wanted: "1.3.3 or newer"},
		"1.3.3":              {verdict: Pass},
		"1.2.8":              {verdict: Pass},
		"1.2.7":              {verdict: Fail, wanted: "1.2.8 or newer"},
		"1.1.15":             {verdict: Fail, wanted: "1.2.8 or newer"},
		"1.1.11":             {verdict: Fail, wanted: "1.2.8 or newer"},
		"1.1.5+ds1":          {verdict: Pass, observed: "whose distribution brings the fixes"},
		"1.1.12-0ubuntu2~22": {verdict: Pass, observed: "whose distribution brings the fixes"},
		"unknown":            {verdict: Unknown, object: "/usr/local/sbin/runc"},
	} {
		n := fake(t, nodeFiles(nil), amd64, asks(containerdSays, strings.Replace(runcIs, "1.4.3", said, 1)))
		t.Run(said, func(t *testing.T) { expect(t, n, "binary/runc-version", w) })
	}
	if got := results(t, fake(t, nodeFiles(nil), amd64, asks(containerdSays, strings.Replace(runcIs, "1.4.3", "1.1.11", 1))), "binary/runc-version"); !strings.Contains(got[0].Note, "CVE-2024-21626") {
		t.Errorf("%+v", got)
	}
	for name, c := range map[string]struct {
		text string
		want want
	}{
		"own":  {runcIs, want{verdict: Pass, observed: "libseccomp 2.6.0"}},
		"old":  {strings.Replace(runcIs, "2.6.0", "2.3.3", 1), want{verdict: Fail, observed: "libseccomp 2.3.3", wanted: "2.4"}},
		"none": {strings.Replace(runcIs, "libseccomp: 2.6.0\n", "", 1), want{verdict: Fail, observed: "built without libseccomp"}},
		"dead": {"", want{verdict: Unknown}},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, fake(t, nodeFiles(nil), amd64, asks(containerdSays, c.text)), "binary/runc-libseccomp", c.want)
		})
	}
}

func TestLabelsOfPrograms(t *testing.T) {
	enforcing := files{"/sys/fs/selinux/enforce": "1"}
	label := func(of map[string]string, err error) func(*Outside) {
		return func(o *Outside) {
			o.Host.Label = func(p string) (string, error) {
				if l, ok := of[p]; ok {
					return l, err
				}
				return "system_u:object_r:container_runtime_exec_t:s0", nil
			}
		}
	}
	const runc = "/usr/local/sbin/runc"
	for name, c := range map[string]struct {
		f      files
		change func(*Outside)
		want   want
	}{
		"as the policy has it": {enforcing, label(map[string]string{"/opt/cni/bin/bridge": "system_u:object_r:bin_t:s0"}, nil), want{verdict: Pass, observed: "container_runtime_exec_t"}},
		"from a home":          {enforcing, label(map[string]string{runc: "unconfined_u:object_r:user_home_t:s0"}, nil), want{verdict: Fail, object: runc, observed: "user_home_t", remedy: "restorecon -v " + runc}},
		"no label":             {enforcing, label(map[string]string{runc: ""}, nil), want{verdict: Fail, observed: "none"}},
		"cannot be read":       {enforcing, label(map[string]string{runc: ""}, os.ErrPermission), want{verdict: Unknown, object: runc}},
		"permissive":           {files{"/sys/fs/selinux/enforce": "0"}, label(nil, nil), want{verdict: Skip}},
		"no SELinux":           {nil, label(nil, nil), want{verdict: Skip}},
	} {
		t.Run(name, func(t *testing.T) {
			expect(t, fake(t, nodeFiles(c.f), amd64, c.change), "binary/selinux", c.want)
		})
	}
}
