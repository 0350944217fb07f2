package release

import (
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
)

func TestArtifactsOfANode(t *testing.T) {
	own := strings.Repeat("AB", 32)
	at := diag.Origin{Path: "runc.sha256", File: "node.yaml", Line: 12, Column: 3}
	got, list := Artifacts([]Request{
		{Component: releases.Containerd, Version: releases.MustVersion("1.7.34"), Arch: "amd64"},
		{Component: releases.Runc, Version: releases.MustVersion("1.3.6"), Arch: "amd64", SHA256: own, Origin: at},
		{Component: releases.CNI, Version: releases.MustVersion("1.9.1"), Arch: "amd64"},
		{Component: releases.Crictl, Version: releases.MustVersion("1.36.0"), Arch: "amd64"},
	})
	if len(list) > 0 || len(got) != 4 {
		t.Fatalf("%v, %d artifacts", list, len(got))
	}
	want := [][]string{
		{"containerd-1.7.34-linux-amd64.tar.gz", "cri-containerd-1.7.34-linux-amd64.tar.gz", "cri-containerd-cni-1.7.34-linux-amd64.tar.gz", "nerdctl-full-*-linux-amd64.tar.gz"},
		{"runc.amd64", "cri-containerd-1.7.34-linux-amd64.tar.gz", "cri-containerd-cni-1.7.34-linux-amd64.tar.gz", "nerdctl-full-*-linux-amd64.tar.gz"},
		{"cni-plugins-linux-amd64-v1.9.1.tgz", "cri-containerd-cni-1.7.34-linux-amd64.tar.gz", "nerdctl-full-*-linux-amd64.tar.gz"},
		{"crictl-v1.36.0-linux-amd64.tar.gz", "cri-containerd-1.7.34-linux-amd64.tar.gz", "cri-containerd-cni-1.7.34-linux-amd64.tar.gz"},
	}
	for i, a := range got {
		if d := cmp.Diff(want[i], a.Files); d != "" {
			t.Errorf("%s: files (-want +got)\n%s", a.Component, d)
		}
		if !strings.HasPrefix(a.URL, "https://github.com/") || !strings.HasSuffix(a.URL, "/"+a.Files[0]) {
			t.Errorf("%s: URL %s", a.Component, a.URL)
		}
	}
	if a := got[0]; a.SHA256 != "640f989745020ea4897ad0a3d7d977863a7279d3f2e132792fc62c25a45bda50" || a.SHA256From != "catalogue" {
		t.Errorf("containerd: %s from %s", a.SHA256, a.SHA256From)
	}
	if a := got[1]; a.SHA256 != strings.ToLower(own) || a.SHA256From != "profile node.yaml:12" {
		t.Errorf("runc: %s from %s", a.SHA256, a.SHA256From)
	}
	for _, m := range got[0].Members {
		restart := m.Name == "containerd"
		optional := slices.Contains([]string{"containerd-stress", "containerd-shim", "containerd-shim-runc-v1"}, m.Name)
		if (m.Effect == desired.EffectRestart) != restart || m.Optional != optional || m.Path != "/usr/local/bin/"+m.Name {
			t.Errorf("%+v", m)
		}
	}
	if m := got[1].Members; len(m) != 1 || m[0].Path != "/usr/local/sbin/runc" || m[0].Effect != desired.EffectNone {
		t.Errorf("%+v", m)
	}
	var required []string
	for _, m := range got[2].Members {
		if !m.Optional {
			required = append(required, m.Path)
		}
	}
	if d := cmp.Diff([]string{"/opt/cni/bin/bridge", "/opt/cni/bin/host-local", "/opt/cni/bin/loopback", "/opt/cni/bin/portmap"}, required); d != "" {
		t.Error(d)
	}
}

func TestArtifactsThatCannotBe(t *testing.T) {
	at := diag.Origin{Path: "containerd.version", File: "n.yaml", Line: 4, Column: 2}
	v := releases.MustVersion
	for _, c := range []struct {
		req  Request
		want string
	}{
		{Request{Component: "containerd", Version: v("1.6.20"), Arch: "s390x", Origin: at},
			`n.yaml:4:2: containerd.version: upstream publishes no containerd 1.6.20 for linux/s390x, only for amd64, arm64, ppc64le, riscv64 (for a file of your own, set containerd.sha256.s390x and give its folder with --artifacts, or let nodeprep lock measure it there)`},
		{Request{Component: "containerd", Version: v("1.6.20"), Arch: "amd64", Static: true},
			"no static containerd 1.6.20 for linux/amd64: there is no such file for any architecture"},
		{Request{Component: "crictl", Version: v("1.36.0"), Arch: "arm"}, "no crictl 1.36.0 for linux/arm, only for 386, amd64"},
		{Request{Component: "podman", Version: v("1.0.0"), Arch: "amd64"}, `unknown component "podman"`},
		{Request{Component: "runc", Version: v("1.3.6"), Arch: "amd64", SHA256: "12"}, `sha256 "12" is not 64 hexadecimal digits (sha256sum runc.amd64 prints it)`},
	} {
		got, list := Artifacts([]Request{c.req})
		if len(got) != 0 || len(list.Errors()) != 1 || !strings.Contains(list[0].String(), c.want) {
			t.Errorf("%d artifacts\ngot  %v\nwant %s", len(got), list, c.want)
		}
	}
	// A file of one's own is enough where upstream has none.
	got, list := Artifacts([]Request{{Component: "containerd", Version: v("2.3.4"), Arch: "arm", SHA256: strings.Repeat("0", 64)}})
	if len(list) > 0 || len(got) != 1 || got[0].URL != "" {
		t.Errorf("%v %+v", list, got)
	}
	// An unknown version is no fault yet: it can still be locked.
	got, list = Artifacts([]Request{{Component: "containerd", Version: v("2.99.0"), Arch: "amd64"}})
	if len(list) > 0 || len(got) != 1 || got[0].SHA256 != "" || got[0].URL == "" {
		t.Errorf("%v %+v", list, got)
	}
}
