package checks

import (
	"context"
	"fmt"
	"path"
	"runtime"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/releases"
)

// Privilege is the ID of the check for root, which apply asks before all others.
const Privilege = "host/privilege"

// hostChecks are about the machine and its system, before anything is installed.
func hostChecks() []Check {
	return slices.Concat(systemChecks(), storageChecks(), resourceChecks(), baseChecks(), networkChecks())
}

// systemChecks are about what the programs need to run at all.
func systemChecks() []Check {
	return []Check{
		{
			ID: Privilege, Stage: Preflight, Severity: Required,
			Why:    "Installing below / needs root: a run that finds out halfway has already staged files.",
			Source: "path_resolution(7), Permissions",
			Remedy: "run nodeprep as root",
			Run:    single(privilege),
		},
		{
			ID: "host/init", Stage: Preflight, Severity: Required,
			Why:    "The daemon is run by a systemd unit; without systemd as PID 1 nothing would start it.",
			Source: "sd_booted(3)",
			Remedy: "run nodeprep on the host itself, or use --root for an image that will boot with systemd",
			Run:    single(initSystem),
		},
		{
			ID: "host/arch", Stage: Preflight, Severity: Required,
			Why:    "Programs of another architecture end in \"exec format error\" only when the unit starts.",
			Source: "execve(2), ENOEXEC",
			Needs:  []string{NeedProfile},
			Remedy: "leave --arch out, or use a root of the wanted architecture",
			Run:    single(arch),
		},
		{
			ID: "host/foreign-runtime", Stage: Preflight, Severity: Required,
			Why:    "A unit in /etc/systemd/system hides a package's of the same name: the daemon under Docker or a kubelet would be another one, without a word.",
			Source: "systemd.unit(5), Unit File Load Path",
			Needs:  []string{NeedProfile},
			Remedy: "remove what the other containerd.service belongs to, or let nodeprep's hide it with --skip host/foreign-runtime",
			Run:    single(foreignRuntime),
		},
		{
			ID: "host/libc", Stage: Preflight, Severity: Recommended,
			Why:    "The dynamic containerd needs the C library it was built for; without one known, nothing can be said.",
			Source: "containerd issue 7255 (GLIBC_2.34 not found)",
			Remedy: "set containerd.variant to static if the image will have no C library",
			Run:    single(libc),
		},
		{
			ID: "host/libc-version", Stage: Preflight, Severity: Required,
			Why:    "A dynamic containerd on an older C library ends with \"version GLIBC_2.34 not found\" when the unit starts.",
			Source: "containerd issues 7255 and 7296; ld.so(8)",
			Needs:  []string{NeedProfile, "host/libc"},
			Remedy: "set containerd.variant to auto or static in the profile",
			Run:    single(libcVersion),
		},
	}
}

func privilege(_ context.Context, n *Node) Result {
	r := Result{Observed: fmt.Sprintf("running as uid %d", n.Host.UID)}
	switch {
	case n.Host.UID == 0:
		r.Verdict = Pass
	case !n.Applying:
		r.Verdict, r.Observed = Unknown, r.Observed+": what only root may see stays unknown"
	case n.Live:
		r.Verdict, r.Wanted, r.Remedy = Fail, "root", "# run it with sudo"
	default:
		r.Verdict, r.Wanted = Warn, "root: files written now belong to this user"
	}
	return r
}

func initSystem(_ context.Context, n *Node) Result {
	if n.Facts.SystemdInit {
		return Result{Verdict: Pass, Observed: "systemd"}
	}
	if !n.Live {
		return Result{Verdict: Warn, Observed: "no systemd at /sbin/init of this root", Wanted: "a root that boots with systemd", Place: "/sbin/init"}
	}
	comm := "unknown"
	if s, err := n.text("/proc/1/comm"); err == nil && s != "" {
		comm = s
	}
	return Result{
		Verdict: Fail, Observed: "PID 1 is " + comm + ", not systemd", Wanted: "systemd", Place: "/run/systemd/system",
		Remedy: "# run it on the host itself, or use --root DIR for an image that will boot with systemd",
	}
}

func arch(_ context.Context, n *Node) Result {
	r := Result{Verdict: Pass, Observed: n.Facts.Arch, Wanted: n.Spec.Arch}
	switch {
	case !n.Facts.ArchKnown:
		r.Verdict, r.Observed = Unknown, "the root has no C library that tells its architecture"
	case n.Facts.Arch != n.Spec.Arch:
		r.Verdict = Fail
	case n.Live && n.Facts.Arch != runtime.GOARCH:
		r.Verdict, r.Observed = Fail, runtime.GOARCH
	}
	if r.Verdict == Fail {
		r.Remedy = "# leave --arch out: this is a host for " + r.Observed
	}
	return r
}

// foreignRuntime looks for a containerd that others installed, and for what brings one
// of its own. They are named and never touched.
func foreignRuntime(_ context.Context, n *Node) Result {
	for _, dir := range []string{"/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		unit := dir + "/containerd.service"
		if !n.exists(unit) {
			continue
		}
		r := Result{
			Verdict: Fail, Observed: unit + " is installed, by hand or by a package unknown here",
			Wanted: "no other containerd.service, which nodeprep's would hide", Place: unit,
			Remedy: "# whatever starts it will not find it any more; or hide it with --skip host/foreign-runtime\n" + n.putAside(unit) + n.reload(),
		}
		if owner := n.runtimePackage(unit); owner != "" {
			r.Observed = unit + " belongs to the package " + owner
			r.Remedy = "# this also takes away what depends on it, such as Docker; or hide its unit with --skip host/foreign-runtime\n" +
				n.inRoot("apt-get remove "+owner)
		}
		return r
	}
	var found []string
	for _, p := range []string{
		"/usr/bin/containerd", "/usr/bin/dockerd", "/usr/local/bin/k3s", "/usr/local/bin/rke2", "/usr/local/bin/k0s",
		"/snap/bin/docker", "/snap/bin/microk8s",
	} {
		if n.exists(p) {
			found = append(found, p)
		}
	}
	if len(found) > 0 {
		return Result{Verdict: Warn, Observed: "found " + strings.Join(found, ", "), Wanted: "one container runtime on a node", Place: found[0]}
	}
	return Result{Verdict: Pass, Observed: "none"}
}

// runtimePackage is the Debian package that brings a file, of those that bring container
// runtimes; "" where none says so (dpkg(1), /var/lib/dpkg/info/*.list).
func (n *Node) runtimePackage(file string) string {
	// A package may list a file by the name that it has through /lib, a link.
	names := []string{file, strings.TrimPrefix(file, "/usr"), path.Join("/usr", file)}
	for _, pkg := range runtimePackages() {
		for _, suffix := range []string{".list", ":" + n.Facts.Arch + ".list"} {
			lines, err := n.lines("/var/lib/dpkg/info/" + pkg + suffix)
			if err == nil && slices.ContainsFunc(lines, func(l numbered) bool { return slices.Contains(names, l.text) }) {
				return pkg
			}
		}
	}
	return ""
}

// runtimePackages are Debian's, Ubuntu's, Docker's and Microsoft's.
func runtimePackages() []string {
	return []string{"containerd", "containerd.io", "containerd-app", "moby-containerd", "moby-engine", "docker.io", "docker-ce", "runc", "runc-app", "moby-runc"}
}

func libc(_ context.Context, n *Node) Result {
	if n.Facts.LibC.Kind == "" {
		return Result{
			Verdict: Unknown, Observed: "no C library found in this root",
			Wanted: "a C library, or containerd.variant: static", Remedy: "# set containerd.variant: static if the image will have none",
		}
	}
	return Result{Verdict: Pass, Observed: n.Facts.LibC.String(), Place: n.Facts.LibC.Path}
}

func libcVersion(_ context.Context, n *Node) Result {
	c, has := n.Spec.Containerd, n.Facts.LibC
	r := Result{Verdict: Pass, Observed: has.String(), Place: has.Path}
	needs := releases.GLibC(c.Version)
	switch {
	case !c.Installed():
		r.Verdict, r.Observed = Skip, "the profile installs no containerd"
		return r
	case c.Static:
		r.Observed = "the static build needs none"
		return r
	case has.Kind == "glibc" && has.Major == 0:
		r.Verdict, r.Observed = Unknown, "which glibc "+has.Path+" is cannot be told"
	case has.Kind != "glibc" || (releases.Version{Major: has.Major, Minor: has.Minor}).Compare(needs) < 0:
		r.Verdict = Fail
		r.Remedy = "# set containerd.variant: static in the profile"
		// A build of one's own may need less; what it needs is seen when it is staged.
		if known, ok := releases.SHA256(releases.Containerd, false, c.Version, n.Spec.Arch); c.SHA256 != "" && (!ok || known != c.SHA256) {
			r.Verdict, r.Note = Warn, "the profile has a sha256 of its own, which may be that of a build that needs less"
		}
	}
	r.Wanted = "glibc " + needs.Line() + " or newer, as upstream's containerd " + c.Version.String() + " needs"
	return r
}
