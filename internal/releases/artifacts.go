package releases

import (
	"fmt"
	"slices"
)

// The components, by the names they have in a profile.
const (
	Containerd = "containerd"
	Runc       = "runc"
	CNI        = "cni"
	Crictl     = "crictl"
)

// DefaultVersion is what a profile that names no version gets: the newest stable
// release whose digests are in the catalogue.
func DefaultVersion(component string) Version {
	switch component {
	case Containerd:
		return Version{Major: 2, Minor: 3, Patch: 4}
	case Runc:
		return Version{Major: 1, Minor: 4, Patch: 3}
	case CNI:
		return Version{Major: 1, Minor: 9, Patch: 1}
	case Crictl:
		return Version{Major: 1, Minor: 36, Patch: 0}
	}
	return Version{}
}

// FileName is upstream's name of a release file: containerd's and cri-tools' release
// pages, runc's runc.ARCH, containernetworking/plugins.
func FileName(component string, static bool, v Version, arch string) string {
	switch component {
	case Containerd:
		if static {
			return fmt.Sprintf("containerd-static-%s-linux-%s.tar.gz", v, arch)
		}
		return fmt.Sprintf("containerd-%s-linux-%s.tar.gz", v, arch)
	case Runc:
		if arch == "arm" {
			arch = "armhf" // Debian's name for ARMv7 with a floating-point unit
		}
		return "runc." + arch
	case CNI:
		return fmt.Sprintf("cni-plugins-linux-%s-v%s.tgz", arch, v)
	case Crictl:
		return fmt.Sprintf("crictl-v%s-linux-%s.tar.gz", v, arch)
	}
	return ""
}

var repositories = map[string]string{
	Containerd: "containerd/containerd",
	Runc:       "opencontainers/runc",
	CNI:        "containernetworking/plugins",
	Crictl:     "kubernetes-sigs/cri-tools",
}

// Arches lists the architectures, by Go's names, for which upstream publishes
// Linux files of a release; it is empty where there is no such file at all.
func Arches(component string, static bool, v Version) []string {
	var out []string
	switch component {
	case Containerd:
		if static && !v.AtLeast(1, 7, 0) {
			return nil
		}
		out = []string{"amd64", "arm64", "ppc64le", "riscv64"}
		if v.AtLeast(1, 7, 0) {
			out = append(out, "s390x")
		}
	case Runc:
		if !v.AtLeast(1, 1, 0) {
			return []string{"amd64"}
		}
		out = []string{"amd64", "arm", "arm64", "ppc64le", "riscv64", "s390x"}
		if v.AtLeast(1, 2, 0) {
			out = append(out, "386")
		}
	case CNI:
		out = []string{"amd64", "arm", "arm64", "mips64le", "ppc64le", "s390x"}
		if v.AtLeast(1, 2, 0) {
			out = append(out, "riscv64")
		}
	case Crictl:
		out = []string{"386", "amd64", "arm64", "mips64le", "ppc64le", "s390x"}
		if v.AtLeast(1, 28, 0) {
			out = append(out, "riscv64")
		}
		if !v.AtLeast(1, 29, 0) {
			out = append(out, "arm")
		}
	}
	slices.Sort(out)
	return out
}

// URL is where upstream publishes a release file, "" where it has none for arch.
func URL(component string, static bool, v Version, arch string) string {
	if !slices.Contains(Arches(component, static, v), arch) {
		return ""
	}
	return fmt.Sprintf("https://github.com/%s/releases/download/v%s/%s",
		repositories[component], v, FileName(component, static, v, arch))
}

// ChecksumURL is where upstream publishes the sha256 of a release file, "" where it
// has none: FILE.sha256sum for containerd, one runc.sha256sum for all of runc's,
// FILE.sha256 for CNI plugins ("HASH  name") and crictl (the hash alone).
func ChecksumURL(component string, static bool, v Version, arch string) string {
	u := URL(component, static, v, arch)
	switch {
	case u == "":
		return ""
	case component == Containerd:
		return u + ".sha256sum"
	case component == Runc:
		return u[:len(u)-len(FileName(component, static, v, arch))] + "runc.sha256sum"
	}
	return u + ".sha256"
}
