package checks

import (
	"context"
	"fmt"
	"runtime"
	"strings"
)

// Privilege is the ID of the check for root, which apply asks before all others.
const Privilege = "host/privilege"

// Catalogue lists every check.
func Catalogue() []Check {
	return []Check{
		{
			ID: Privilege, Stage: Preflight, Severity: Required,
			Why:    "Installing below / needs root: a run that finds out halfway has already staged files.",
			Source: "path_resolution(7), Permissions",
			Run:    privilege,
		},
		{
			ID: "host/init", Stage: Preflight, Severity: Required,
			Why:    "The daemon is run by a systemd unit; without systemd as PID 1 nothing would start it.",
			Source: "sd_booted(3)",
			Run:    initSystem,
		},
		{
			ID: "host/arch", Stage: Preflight, Severity: Required,
			Why:    "Programs of another architecture end in \"exec format error\" only when the unit starts.",
			Source: "execve(2), ENOEXEC",
			Run:    arch,
		},
		{
			ID: "host/foreign-runtime", Stage: Preflight, Severity: Required,
			Why:    "A unit in /etc/systemd/system hides a package's of the same name: the daemon under Docker or a kubelet would be another one, without a word.",
			Source: "systemd.unit(5), Unit File Load Path",
			Run:    foreignRuntime,
		},
		{
			ID: "host/libc", Stage: Preflight, Severity: Recommended,
			Why:    "The dynamic containerd needs the C library it was built for; without one known, nothing can be said.",
			Source: "containerd issue 7255 (GLIBC_2.34 not found)",
			Run:    libc,
		},
	}
}

func privilege(_ context.Context, t Target) Result {
	r := Result{Observed: fmt.Sprintf("running as uid %d", t.Host.UID)}
	switch {
	case t.Host.UID == 0:
		r.Verdict = Pass
	case t.Host.Root.Live():
		r.Verdict, r.Wanted, r.Remedy = Fail, "root", "run it with sudo"
	default:
		r.Verdict, r.Wanted = Warn, "root: files written now belong to this user"
	}
	return r
}

func initSystem(_ context.Context, t Target) Result {
	if t.Facts.SystemdInit {
		return Result{Verdict: Pass, Observed: "systemd"}
	}
	if !t.Host.Root.Live() {
		return Result{Verdict: Warn, Observed: "no systemd at /sbin/init of this root", Wanted: "a root that boots with systemd", Place: "/sbin/init"}
	}
	comm := "unknown"
	if b, err := t.Host.Root.ReadFile("/proc/1/comm"); err == nil && len(b) > 1 {
		comm = string(b[:len(b)-1])
	}
	return Result{
		Verdict: Fail, Observed: "PID 1 is " + comm + ", not systemd", Wanted: "systemd", Place: "/run/systemd/system",
		Remedy: "run it on the host itself, or use --root DIR for an image that will boot with systemd",
	}
}

func arch(_ context.Context, t Target) Result {
	if t.Spec == nil {
		return Result{Verdict: Skip, Observed: "no profile to compare with"}
	}
	r := Result{Verdict: Pass, Observed: t.Facts.Arch, Wanted: t.Spec.Arch}
	switch {
	case !t.Facts.ArchKnown:
		r.Verdict, r.Observed = Unknown, "the root has no C library that tells its architecture"
	case t.Facts.Arch != t.Spec.Arch:
		r.Verdict = Fail
	case t.Host.Root.Live() && t.Facts.Arch != runtime.GOARCH:
		r.Verdict, r.Observed = Fail, runtime.GOARCH
	}
	return r
}

// foreignRuntime looks for a containerd that others installed, and for what brings one
// of its own. They are named and never touched.
func foreignRuntime(_ context.Context, t Target) Result {
	exists := func(p string) bool { _, err := t.Host.Root.Stat(p); return err == nil }
	for _, dir := range []string{"/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"} {
		if unit := dir + "/containerd.service"; exists(unit) {
			return Result{
				Verdict: Fail, Observed: unit + " is installed, by a package or by hand", Wanted: "no other containerd.service, which nodeprep's would hide",
				Place: unit, Remedy: "remove what it belongs to, or let nodeprep's unit hide it with --skip host/foreign-runtime",
			}
		}
	}
	var found []string
	for _, p := range []string{
		"/usr/bin/containerd", "/usr/bin/dockerd", "/usr/local/bin/k3s", "/usr/local/bin/rke2", "/usr/local/bin/k0s",
		"/snap/bin/docker", "/snap/bin/microk8s",
	} {
		if exists(p) {
			found = append(found, p)
		}
	}
	if len(found) > 0 {
		return Result{Verdict: Warn, Observed: "found " + strings.Join(found, ", "), Wanted: "one container runtime on a node", Place: found[0]}
	}
	return Result{Verdict: Pass, Observed: "none"}
}

func libc(_ context.Context, t Target) Result {
	if t.Facts.LibC.Kind == "" {
		return Result{
			Verdict: Unknown, Observed: "no C library found in this root",
			Wanted: "a C library, or containerd.variant: static", Remedy: "set containerd.variant: static if the image will have none",
		}
	}
	return Result{Verdict: Pass, Observed: t.Facts.LibC.String(), Place: t.Facts.LibC.Path}
}
