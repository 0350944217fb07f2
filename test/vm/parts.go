package vm

import "github.com/nodeprep/nodeprep/test/vm/supply"

// packages are Debian's own, as its users install them.
func packages() []supply.Package {
	return []supply.Package{
		{Name: "containerd", Version: "1.6.20"},
		{Name: "runc", Version: "1.1.5"},
		{Name: "containernetworking-plugins", Version: "1.1.1"},
	}
}

// Releases are all that the scenarios install: the generations of containerd that there
// are real binaries of, and what goes with them.
func Releases() []supply.Release {
	all := []supply.Release{
		{Component: "containerd", Version: "1.6.20"},
		{Component: "containerd", Version: "1.7.24"},
		{Component: "containerd", Version: "2.1.9"},
		{Component: "containerd", Version: "2.4.2", Static: true},
		{Component: "runc", Version: "1.1.5"},
		{Component: "runc", Version: "1.1.15"}, // needs a newer libc than the guest has
		{Component: "cni", Version: "1.1.1"},
		{Component: "cni", Version: "1.9.1"},
	}
	for i := range all {
		all[i].Arch = "amd64"
	}
	return all
}
