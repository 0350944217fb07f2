package release

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// Request is one component that a node shall have.
type Request struct {
	Component string // releases.Containerd and so on
	Version   releases.Version
	Arch      string // Go's name
	Static    bool   // containerd's static variant
	// SHA256 is the profile's own digest for the file, hex; "" if it has none.
	SHA256 string
	// Origin is the profile's line of the digest, or else of the version.
	Origin diag.Origin
}

// Names of who knows a digest, as they appear in messages.
const (
	fromProfile   = "profile"
	fromCatalogue = "catalogue"
)

var hexDigest = regexp.MustCompile(`^[0-9a-f]{64}$`)

// Artifacts says which release files the requests need: acceptable names, address,
// digest and members. It looks at nothing outside its arguments. A request that no
// file can satisfy is an error in the list.
func Artifacts(reqs []Request) ([]desired.Artifact, diag.List) {
	all, list := wanted(reqs)
	var out []desired.Artifact
	for _, a := range all {
		if a.URL == "" && a.SHA256 == "" {
			list.Errorf(a.Origin, fmt.Sprintf("for a file of your own, set %s.sha256.%s and give its folder with --artifacts, or let nodeprep lock measure it there", a.Component, a.Arch),
				"upstream publishes no %s for linux/%s%s", a.Title(), a.Arch, published(a))
			continue
		}
		out = append(out, a)
	}
	return out, list
}

// wanted is Artifacts before it is asked whether there is such a file at all.
func wanted(reqs []Request) ([]desired.Artifact, diag.List) {
	var list diag.List
	var out []desired.Artifact
	var containerd releases.Version
	for _, r := range reqs {
		if r.Component == releases.Containerd {
			containerd = r.Version
		}
	}
	for _, r := range reqs {
		a := desired.Artifact{
			Component: r.Component, Version: r.Version.String(), Arch: r.Arch, Static: r.Static,
			URL:     releases.URL(r.Component, r.Static, r.Version, r.Arch),
			Members: members(r.Component), Origin: r.Origin,
		}
		if a.Members == nil {
			list.Errorf(r.Origin, "", "unknown component %q", r.Component)
			continue
		}
		name := releases.FileName(r.Component, r.Static, r.Version, r.Arch)
		a.Files = append([]string{name}, bundles(r, containerd)...)
		if r.SHA256 != "" {
			a.SHA256 = strings.ToLower(strings.TrimPrefix(r.SHA256, "sha256:"))
			a.SHA256From = fromProfile
			if p := (diag.Origin{File: r.Origin.File, Line: r.Origin.Line}).Place(); p != "" {
				a.SHA256From += " " + p
			}
			if !hexDigest.MatchString(a.SHA256) {
				list.Errorf(r.Origin, "sha256sum "+name+" prints it", "sha256 %q is not 64 hexadecimal digits", r.SHA256)
				continue
			}
		} else if d, ok := releases.SHA256(r.Component, r.Static, r.Version, r.Arch); ok {
			a.SHA256, a.SHA256From = d, fromCatalogue
		}
		out = append(out, a)
	}
	return out, list
}

// published says what there is instead.
func published(a desired.Artifact) string {
	v, err := releases.ParseVersion(a.Version)
	if err != nil {
		return ""
	}
	arches := releases.Arches(a.Component, a.Static, v)
	if len(arches) == 0 {
		return ": there is no such file for any architecture"
	}
	return ", only for " + strings.Join(arches, ", ")
}

// bundles are the older and larger release files with a component in them, as
// patterns of path.Match; containerd is the version wanted of it, since two of them
// are named after it. cri-containerd ended with containerd 1.7 (its RELEASES.md) and
// only its -cni- variant has plugins; nerdctl-full is named after nerdctl and comes
// without crictl.
func bundles(r Request, containerd releases.Version) []string {
	var out []string
	if containerd.Major == 1 && !r.Static {
		if r.Component != releases.CNI {
			out = append(out, fmt.Sprintf("cri-containerd-%s-linux-%s.tar.gz", containerd, r.Arch))
		}
		out = append(out, fmt.Sprintf("cri-containerd-cni-%s-linux-%s.tar.gz", containerd, r.Arch))
	}
	if r.Component != releases.Crictl && (r.Arch == "amd64" || r.Arch == "arm64") {
		out = append(out, fmt.Sprintf("nerdctl-full-*-linux-%s.tar.gz", r.Arch))
	}
	return out
}

// isBundle says that a file is one of those.
func isBundle(file string) bool {
	return strings.HasPrefix(file, "cri-containerd-") || strings.HasPrefix(file, "nerdctl-full-")
}

// cniPlugins are those of containernetworking/plugins since 1.0; tap came with 1.3
// and dummy with 1.2.
const cniPlugins = "bandwidth bridge dhcp dummy firewall host-device host-local ipvlan loopback macvlan portmap ptp sbr static tap tuning vlan vrf"

// members are what is taken of a component's file, and where upstream's instructions
// put it. nil means that the component is unknown.
func members(component string) []desired.Member {
	switch component {
	case releases.Containerd:
		var out []desired.Member
		for _, m := range []desired.Member{
			{Name: "containerd", Effect: desired.EffectRestart},
			{Name: "containerd-shim-runc-v2"},
			{Name: "ctr"},
			{Name: "containerd-shim", Optional: true},
			{Name: "containerd-shim-runc-v1", Optional: true},
			{Name: "containerd-stress", Optional: true},
		} {
			m.Path = "/usr/local/bin/" + m.Name
			out = append(out, m)
		}
		return out
	case releases.Runc:
		return []desired.Member{{Name: "runc", Path: "/usr/local/sbin/runc"}}
	case releases.CNI:
		required := []string{"bridge", "host-local", "loopback", "portmap"}
		var out []desired.Member
		for _, name := range strings.Fields(cniPlugins) {
			out = append(out, desired.Member{Name: name, Path: "/opt/cni/bin/" + name, Optional: !slices.Contains(required, name)})
		}
		return out
	case releases.Crictl:
		return []desired.Member{{Name: "crictl", Path: "/usr/local/bin/crictl"}}
	}
	return nil
}

// folders are where a component's members lie in the known layouts: upstream's own,
// cri-containerd's (rooted at /), nerdctl-full's (to be unpacked in /usr/local) and,
// for CNI plugins, those of distributions.
func folders(component string) []string {
	switch component {
	case releases.Runc:
		return []string{".", "bin", "sbin", "usr/local/sbin", "usr/local/bin"}
	case releases.CNI:
		return []string{".", "bin", "opt/cni/bin", "libexec/cni", "usr/lib/cni", "usr/libexec/cni"}
	}
	return []string{".", "bin", "usr/local/bin"}
}
