package checks

import (
	"cmp"
	"context"
	"crypto/md5"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeprep/nodeprep/internal/elf"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// binaryChecks are about the programs of containerd, runc and CNI.
func binaryChecks() []Check {
	return []Check{
		{
			ID: "binary/containerd", Stage: Audit, Severity: Required,
			Why:    "Without its program the daemon does not come back after the next restart, though the running one goes on.",
			Source: "systemd.exec(5), exit status 203/EXEC",
			Remedy: "put the program back: nodeprep apply, or reinstall its package",
			Run:    present(roleDaemon, "the daemon's program"),
		},
		{
			ID: "binary/shim", Stage: Audit, Severity: Required,
			Why:    "containerd starts no container without its shim, which it looks for in its PATH and beside itself.",
			Source: "containerd core/runtime/v2/shim_manager.go, resolveRuntimePath",
			Remedy: "put the program back: nodeprep apply, or reinstall its package",
			Run:    present(roleShim, "the shim"),
		},
		{
			ID: "binary/runc", Stage: Audit, Severity: Required,
			Why:    "The shim starts runc for each container and each exec: without it pods fail, and running ones cannot be entered or stopped.",
			Source: "containerd docs/cri/config.md, BinaryName",
			Remedy: "put the program back: nodeprep apply, or reinstall its package",
			Run:    present(roleRunc, "runc"),
		},
		{
			ID: "binary/cni-plugins", Stage: Audit, Severity: Required,
			Why:    "Every pod needs the loopback plugin and those that the network's configuration names; without one, none starts.",
			Source: "CNI specification, Plugin execution; containerd internal/cri/server/service_linux.go",
			Needs:  []string{"config/cni-bin-dirs", "foreign/cni-conf"},
			Remedy: "install the CNI plugins: cni.version in the profile, or the package that has them",
			Run:    cniPresent,
		},
		{
			ID: "binary/arch", Stage: Audit, Severity: Required,
			Why:    "A program of another architecture, or one cut short, ends in \"exec format error\" only when it is started.",
			Source: "execve(2), ENOEXEC",
			Remedy: "put a program of this architecture there",
			Run:    eachProgram("are programs for this host", archOf),
		},
		{
			ID: "binary/interpreter", Stage: Audit, Severity: Required,
			Why:    "A dynamic program whose loader is missing fails with \"no such file or directory\", though it is there.",
			Source: "execve(2), ENOENT; ld.so(8)",
			Remedy: "install the C library that it was built for, or a static program",
			Run:    eachProgram("have their loaders", interpreterOf),
		},
		{
			ID: "binary/libraries", Stage: Audit, Severity: Required,
			Why:    "A program built for a newer C library ends at its start with \"version GLIBC_2.34 not found\".",
			Source: "ld.so(8); containerd issue 7255",
			Remedy: "set containerd.variant: static, or install the libraries",
			Run:    eachProgram("find their libraries", librariesOf),
		},
		{
			ID: "binary/writable", Stage: Audit, Severity: Required,
			Why:    "Whoever may write a program that root runs is root.",
			Source: "chmod(1); CIS Kubernetes Benchmark, file permissions",
			Remedy: "chown root:root and chmod 0755 the program",
			Run:    eachProgram("belong to root and only root may write them", writableOf),
		},
		{
			ID: "binary/integrity", Stage: Audit, Severity: Required,
			Why:    "A program that is not the one that was verified and installed may be anything.",
			Source: "SLSA, verifying artifacts",
			Needs:  []string{NeedReceipt},
			Time:   programTime,
			Remedy: "nodeprep apply --adopt",
			Run:    integrity,
		},
		{
			ID: "binary/version", Stage: Audit, Severity: Required,
			Why:    "Another version than the one that was chosen reads the config by other rules and has other bugs.",
			Source: "containerd RELEASES.md, Kubernetes support",
			Needs:  []string{NeedLive},
			Remedy: "nodeprep apply",
			Run:    onDiskVersion,
		},
		{
			ID: "binary/provenance", Stage: Audit, Severity: Recommended,
			Why:    "Of a program that nobody can place, nobody knows whether it was changed.",
			Source: "dpkg(1), --verify; runc's release checksums",
			Remedy: "install the program from a package or with nodeprep",
			Run:    provenance,
		},
		{
			ID: "binary/duplicates", Stage: Audit, Severity: Recommended,
			Why:    "With two of a program, the one that people ask is not the one that runs, and an upgrade replaces the wrong one.",
			Source: "NVIDIA nvidia-container-toolkit issue 982",
			Remedy: "keep one of them",
			Run:    duplicates,
		},
		{
			ID: "binary/path", Stage: Audit, Severity: Recommended,
			Why:    "Where root's or sudo's PATH lacks a folder, ctr, crictl and runc are \"command not found\" just when they are needed.",
			Source: "sudoers(5), secure_path; login.defs(5), ENV_SUPATH",
			Remedy: "add /usr/local/sbin and /usr/local/bin to the PATH of root and sudo",
			Run:    reach,
		},
		{
			ID: "binary/runc-version", Stage: Audit, Severity: Recommended,
			Why:    "Old releases of runc let a container out onto its host.",
			Source: "CVE-2024-21626 (fixed in 1.1.12); CVE-2025-31133, CVE-2025-52565, CVE-2025-52881 (fixed in 1.2.8, 1.3.3, 1.4.0)",
			Needs:  []string{"binary/runc", "binary/arch", "binary/interpreter", "binary/libraries", NeedLive},
			Remedy: "upgrade runc",
			Run:    eachRunc(runcRelease),
		},
		{
			ID: "binary/runc-libseccomp", Stage: Audit, Severity: Recommended,
			Why:    "runc without libseccomp refuses pods with a seccomp profile; an old one denies new system calls with EPERM in place of ENOSYS.",
			Source: "runc docs/systemd.md; runc libcontainer/seccomp; libseccomp 2.4 release notes",
			Needs:  []string{"binary/runc", "binary/arch", "binary/interpreter", "binary/libraries", NeedLive},
			Remedy: "install upstream's runc, which has its own libseccomp",
			Run:    eachRunc(runcSeccomp),
		},
		{
			ID: "binary/selinux", Stage: Audit, Severity: Recommended,
			Why:    "SELinux lets systemd run no program that has the label of a home or temporary folder: the unit fails with 203/EXEC.",
			Source: "containerd issue 11814; restorecon(8)",
			Needs:  []string{NeedLive},
			Remedy: "restorecon -v the programs",
			Run:    labels,
		},
	}
}

// noDaemon is the result of checks of programs on a host that has none.
func noDaemon() []Result { return skip("no containerd is installed here") }

// present is a check of the programs of one role: each is there and can be executed.
func present(r role, what string) func(context.Context, *Node) []Result {
	return func(_ context.Context, n *Node) []Result {
		all := n.programs()
		if len(all) == 0 {
			return noDaemon()
		}
		var faults []Result
		var found []string
		for _, p := range all {
			if p.role != r {
				continue
			}
			if f := p.missing(n); f != nil {
				faults = append(faults, *f)
			} else {
				found = append(found, p.path)
			}
		}
		if len(faults) == 0 && len(found) == 0 {
			return skip("no runtime of the config uses %s", what)
		}
		return orPass(faults, "%s", strings.Join(found, ", "))
	}
}

// missing is the fault of a program that is not there or cannot be run; nil is none.
func (p *program) missing(n *Node) *Result {
	if p.err != nil && p.fault == "" {
		return &Result{Verdict: Unknown, Object: p.path, Observed: p.err.Error()}
	}
	if p.fault == "" {
		return nil
	}
	r := &Result{Verdict: Fail, Object: p.path, Observed: p.fault, Wanted: "an executable program", Place: cmp.Or(p.by, p.path), Remedy: n.putBack(p)}
	if strings.HasPrefix(p.fault, "cannot be executed") {
		r.Place, r.Remedy = p.path, "chmod 0755 "+n.word(p.path)
	}
	if p.role == roleDaemon {
		r.Note = "a daemon that runs goes on until it is restarted"
	}
	return r
}

func cniPresent(_ context.Context, n *Node) []Result {
	if len(n.programs()) == 0 {
		return noDaemon()
	}
	_, conf, err := n.cniPlugins()
	var faults []Result
	var found []string
	for _, p := range n.programs() {
		if p.role != roleCNI {
			continue
		}
		if f := p.missing(n); f != nil {
			faults = append(faults, *f)
		} else {
			found = append(found, p.name)
		}
	}
	if err != nil {
		faults = append(faults, Result{Verdict: Unknown, Observed: err.Error()})
	}
	if conf == "" && len(faults) == 0 && len(found) == 0 {
		return skip("no network is configured: the cluster's brings its plugins")
	}
	return orPass(faults, "%s", strings.Join(found, ", "))
}

// eachProgram looks at all programs that are there. Nothing is the result of one that is
// as it should be.
func eachProgram(all string, look func(n *Node, p *program) *Result) func(context.Context, *Node) []Result {
	return func(_ context.Context, n *Node) []Result {
		programs := slices.DeleteFunc(slices.Clone(n.programs()), func(p *program) bool { return !p.usable() })
		if len(programs) == 0 {
			return noDaemon()
		}
		var faults []Result
		for _, p := range programs {
			if r := look(n, p); r != nil {
				r.Object, r.Place = p.path, cmp.Or(r.Place, p.path)
				if r.Remedy == "" && r.Verdict == Fail {
					r.Remedy = n.putBack(p)
				}
				faults = append(faults, *r)
			}
		}
		return orPass(faults, "%d programs %s", len(programs), all)
	}
}

func archOf(n *Node, p *program) *Result {
	if !n.Facts.ArchKnown {
		return &Result{Verdict: Unknown, Observed: "the root has no C library that tells its architecture"}
	}
	if other, ok := errors.AsType[*elf.MachineError](p.elfErr); ok {
		return &Result{Verdict: Fail, Observed: fmt.Sprintf("a program for %s (%s)", other.Found, other.Machine), Wanted: other.Want}
	}
	if p.elfErr != nil {
		return &Result{Verdict: Fail, Observed: p.elfErr.Error(), Wanted: "a program for " + n.Facts.Arch}
	}
	return nil
}

func interpreterOf(n *Node, p *program) *Result {
	loader := cmp.Or(p.interpreter, p.elf.Interp)
	if p.elfErr != nil || loader == "" || n.exists(loader) {
		return nil
	}
	if !n.Live && n.Facts.LibC.Kind == "" {
		// An image that is being built gets its C library from elsewhere, and later, maybe.
		return &Result{Verdict: Unknown, Observed: "it needs " + loader + ", and the root has no C library yet"}
	}
	return &Result{Verdict: Fail, Observed: "its loader " + loader + " is missing", Wanted: loader, Remedy: n.static(p)}
}

// static is how to get a program that needs no libraries.
func (n *Node) static(p *program) string {
	if n.Receipt == nil && n.Spec == nil {
		return ""
	}
	if p.role == roleDaemon || p.role == roleShim {
		return "# with containerd.variant: static in the profile:\n" + n.reapply(true)
	}
	return n.putBack(p)
}

func librariesOf(n *Node, p *program) *Result {
	// A program without a loader has a check of its own.
	needs := p.elf.LibC()
	if p.elfErr != nil || needs == "" || p.elf.Interp != "" && !n.exists(p.elf.Interp) {
		return nil
	}
	has := n.Facts.LibC
	newer := has.Kind == "glibc" && has.Major != 0 && p.elf.GLibC.Newer(elf.GLibC{Major: has.Major, Minor: has.Minor})
	switch {
	case newer, has.Kind != "" && has.Kind != strings.Fields(needs)[0]:
		return &Result{Verdict: Fail, Observed: has.String(), Wanted: needs + " or newer", Place: has.Path, Remedy: n.static(p)}
	case has.Kind == "", has.Kind == "glibc" && has.Major == 0 && p.elf.GLibC != elf.GLibC{}:
		return &Result{Verdict: Unknown, Observed: "it needs " + needs + ", and the version of the host's C library is not known"}
	}
	missing := p.elf.Missing(n.libraries())
	if len(missing) == 0 {
		return nil
	}
	remedy := n.static(p)
	if pkgs := libraryPackages(missing); pkgs != "" && n.exists("/var/lib/dpkg/status") {
		remedy = n.inRoot("apt-get install -y " + pkgs)
	}
	return &Result{
		Verdict: Fail, Observed: strings.Join(missing, ", ") + " missing", Wanted: strings.Join(missing, ", ") + " in a library folder", Remedy: remedy,
	}
}

// libraryPackages are Debian's packages of the libraries that container runtimes use, ""
// where one is not known.
func libraryPackages(libs []string) string {
	var out []string
	for _, lib := range libs {
		pkg := map[string]string{
			"libseccomp.so.2": "libseccomp2", "libc.so.6": "libc6", "libresolv.so.2": "libc6", "libpthread.so.0": "libc6",
			"libgcc_s.so.1": "libgcc-s1", "libyajl.so.2": "libyajl2", "libsystemd.so.0": "libsystemd0", "libcap.so.2": "libcap2",
		}[lib]
		if pkg == "" {
			return ""
		}
		out = append(out, pkg)
	}
	slices.Sort(out)
	return strings.Join(slices.Compact(out), " ")
}

// firstUser is the first uid of people (login.defs(5), UID_MIN); those below are systems'.
const firstUser = 1000

func writableOf(n *Node, p *program) *Result {
	uid := p.uid
	// A root that an ordinary user made belongs to that user as a whole.
	if fi, err := n.Host.Root.Stat("/"); err == nil {
		if of, _ := owner(fi); of == uid {
			uid = 0
		}
	}
	perm := p.mode.Perm()
	fix := fmt.Sprintf("chown root:root %[1]s\nchmod 0755 %[1]s", n.word(p.path))
	switch {
	case perm&0o002 != 0:
		return &Result{Verdict: Fail, Observed: fmt.Sprintf("mode %04o: everybody may write it", perm), Wanted: "mode 0755", Remedy: fix}
	case perm&0o020 != 0 && p.gid != 0:
		return &Result{Verdict: Fail, Observed: fmt.Sprintf("mode %04o: group %d may write it", perm, p.gid), Wanted: "mode 0755", Remedy: fix}
	case uid != 0 && uid < firstUser && p.role == roleCNI:
		// Installers of networks hand the folder to a user of their own.
		return &Result{Verdict: Warn, Observed: fmt.Sprintf("belongs to uid %d, a system user", uid), Wanted: "root", Remedy: fix}
	case uid != 0:
		return &Result{Verdict: Fail, Observed: fmt.Sprintf("belongs to uid %d", uid), Wanted: "root", Remedy: fix}
	}
	dir := path.Dir(p.path)
	if fi, err := n.Host.Root.Stat(dir); err == nil && fi.Mode().Perm()&0o002 != 0 && fi.Mode()&fs.ModeSticky == 0 {
		return &Result{
			Verdict: Fail, Observed: fmt.Sprintf("%s has mode %04o: everybody may replace it", dir, fi.Mode().Perm()), Wanted: "mode 0755",
			Place: dir, Remedy: "chmod 0755 " + n.word(dir),
		}
	}
	return nil
}

// integrity holds the programs against what was installed. Those that are missing or
// otherwise broken have checks of their own.
func integrity(_ context.Context, n *Node) []Result {
	drift, err := n.drifted()
	if err != nil {
		return unknown(err)
	}
	broken := map[string]bool{}
	for _, p := range n.programs() {
		broken[p.path] = !p.usable()
		for _, look := range []func(*Node, *program) *Result{archOf, interpreterOf, librariesOf, writableOf} {
			if !broken[p.path] {
				r := look(n, p)
				broken[p.path] = r != nil && r.Verdict == Fail
			}
		}
	}
	var faults []Result
	for _, p := range n.Receipt.Programs {
		if what, ok := drift[p]; ok && !broken[p] {
			faults = append(faults, Result{
				Verdict: Fail, Object: p, Observed: what, Wanted: "as it was installed", Place: p, Remedy: n.reapply(n.exists(p)),
			})
		}
	}
	return orPass(faults, "%d programs are as they were installed", len(n.Receipt.Programs))
}

// onDiskVersion holds what containerd and runc say of themselves against what was chosen.
// A program that is not the installed one is known already.
func onDiskVersion(_ context.Context, n *Node) []Result {
	if len(n.programs()) == 0 {
		return noDaemon()
	}
	if n.Spec == nil && n.Receipt == nil {
		return skip("no profile to compare with")
	}
	wanted := func(component string) (v releases.Version, from string) {
		if n.Spec != nil {
			c := map[string]releases.Version{releases.Containerd: n.Spec.Containerd.Version, releases.Runc: n.Spec.Runc.Version}
			return c[component], "profile"
		}
		v, err := releases.ParseVersion(n.Receipt.Versions[component])
		if err != nil {
			return releases.Version{}, ""
		}
		return v, "receipt"
	}
	drift, err := n.drifted()
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	var good []string
	for _, p := range n.programs() {
		if _, replaced := drift[p.path]; replaced || !p.usable() || p.elfErr != nil || p.role == roleCNI || p.role == roleShim {
			continue
		}
		want, from := wanted(p.name)
		if want == (releases.Version{}) {
			continue
		}
		got, err := n.versionOf(p)
		switch {
		case err != nil:
			faults = append(faults, Result{Verdict: Unknown, Object: p.path, Observed: err.Error()})
		case got != want:
			faults = append(faults, Result{
				Verdict: Fail, Object: p.path, Observed: got.String(), Wanted: want.String() + " (" + from + ")", Place: p.path, Remedy: n.reapply(true),
			})
		default:
			good = append(good, p.name+" "+got.String())
		}
	}
	if len(good) == 0 && len(faults) == 0 {
		return skip("nothing says which versions are wanted")
	}
	return orPass(faults, "%s", strings.Join(good, ", "))
}

// versionOf is what a program says of itself.
func (n *Node) versionOf(p *program) (releases.Version, error) {
	if p.role == roleRunc {
		s, err := n.runcVersion(p.path)
		return s.version, err
	}
	v, from, err := n.Release()
	if err == nil && from != p.path+" --version" {
		err = fmt.Errorf("%s does not say which containerd it is", p.path)
	}
	return v, err
}

// provenance looks for who installed the programs, where nodeprep did not. Only small
// files are hashed, and large ones that changed after their package was installed.
func provenance(ctx context.Context, n *Node) []Result {
	if n.Receipt != nil {
		return skip("installed by nodeprep: binary/integrity looks at them")
	}
	if len(n.programs()) == 0 {
		return noDaemon()
	}
	var out []Result
	var good []string
	for _, p := range n.programs() {
		if p.role == roleCNI || !p.usable() {
			continue
		}
		r := n.origin(ctx, p)
		if r.Verdict == Pass {
			good = append(good, r.Observed)
			continue
		}
		r.Object = p.path
		out = append(out, r)
	}
	return orPass(out, "%s", strings.Join(good, ", "))
}

func (n *Node) origin(ctx context.Context, p *program) Result {
	if pkg, list := n.packageOf(p.path); pkg != "" {
		version, _ := n.packaged(pkg)
		name := pkg + " " + version
		fi, err := n.Host.Root.Stat(p.path)
		if err != nil {
			return Result{Verdict: Unknown, Observed: err.Error()}
		}
		// A package's files are older than their installation: one that is newer was changed.
		if p.role != roleRunc && !fi.ModTime().After(list.ModTime()) {
			return Result{Verdict: Pass, Observed: fmt.Sprintf("%s is of package %s", p.name, name)}
		}
		sums, err := n.text("/var/lib/dpkg/info/" + pkg + ".md5sums")
		if err != nil {
			return Result{Verdict: Unknown, Observed: err.Error()}
		}
		for line := range strings.Lines(sums) {
			sum, file, _ := strings.Cut(strings.TrimSpace(line), "  ")
			if "/"+file != p.path {
				continue
			}
			got, err := n.digest(ctx, p.path, md5.New())
			switch {
			case err != nil:
				return Result{Verdict: Unknown, Observed: err.Error()}
			case got != sum:
				return Result{
					Verdict: Fail, Observed: "is not the file of package " + name, Wanted: "md5 " + sum,
					Place: p.path, Remedy: n.inRoot("apt-get install --reinstall -y " + pkg),
				}
			}
			return Result{Verdict: Pass, Observed: fmt.Sprintf("%s is of package %s, unchanged", p.name, name)}
		}
		return Result{Verdict: Unknown, Observed: "package " + name + " has no digest of it"}
	}
	if p.role != roleRunc {
		return Result{Verdict: Unknown, Observed: "it is of no package that is known here, and upstream publishes digests of archives only"}
	}
	sum, err := n.digest(ctx, p.path, sha256.New())
	if err != nil {
		return Result{Verdict: Unknown, Observed: err.Error()}
	}
	for _, v := range releases.Known(releases.Runc, false) {
		if want, ok := releases.SHA256(releases.Runc, false, v, n.Facts.Arch); ok && want == sum {
			return Result{Verdict: Pass, Observed: "runc is upstream's release " + v.String()}
		}
	}
	return Result{Verdict: Unknown, Observed: "sha256 " + sum + " is of no release or package that is known here"}
}

// digest reads a file whole, lower-case hex.
func (n *Node) digest(ctx context.Context, p string, h hash.Hash) (string, error) {
	f, err := n.Host.Root.Open(p)
	if err != nil {
		return "", err
	}
	defer f.Close()
	for {
		if err := ctx.Err(); err != nil {
			return "", err
		}
		switch _, err := io.CopyN(h, f, 4<<20); {
		case errors.Is(err, io.EOF):
			return hex.EncodeToString(h.Sum(nil)), nil
		case err != nil:
			return "", err
		}
	}
}

// duplicates looks for programs of which there are several.
func duplicates(_ context.Context, n *Node) []Result {
	if len(n.programs()) == 0 {
		return noDaemon()
	}
	service := n.daemonPath()
	dirs := append(slices.Clone(service), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/opt/bin", "/opt/containerd/bin")
	// foreign/binary-owner has those of the daemon, and what lies beside one goes with it.
	others, _ := n.otherDaemons()
	folder := func(p string) string {
		real, err := n.Host.Root.Resolve(path.Dir(p)) // /bin may be /usr/bin
		if err != nil {
			return path.Dir(p)
		}
		return real
	}
	named := func(p string) bool {
		return slices.ContainsFunc(others, func(o string) bool { return folder(o) == folder(p) })
	}
	var out []Result
	var single []string
	for _, name := range []string{string(roleDaemon), string(roleShim), string(roleRunc)} {
		used := ""
		for _, p := range n.programs() {
			if p.name == name && used == "" {
				used = p.path
			}
		}
		var found []string
		seen := map[string]bool{}
		if used != "" {
			if real, err := n.Host.Root.Resolve(used); err == nil && n.exists(used) {
				seen[real], found = true, append(found, used)
			}
		}
		for _, dir := range dirs {
			p := path.Join(dir, name)
			real, err := n.Host.Root.Resolve(p)
			if err != nil || seen[real] || !n.exists(p) || name != string(roleRunc) && named(p) {
				continue
			}
			seen[real], found = true, append(found, p)
		}
		if len(found) < 2 {
			single = append(single, found...)
			continue
		}
		others := found[1:]
		r := Result{
			Verdict: Fail, Object: name, Observed: strings.Join(found, ", "), Wanted: "one " + name, Place: others[0],
			Note: "the daemon uses " + found[0] + "; a root shell finds " + cmp.Or(n.lookup(name, strings.Split(servicePath, ":")), "none"),
		}
		var lines []string
		for _, p := range others {
			if pkg, _ := n.packageOf(p); pkg != "" {
				lines = append(lines, n.inRoot("apt-get remove -y "+pkg))
			} else {
				lines = append(lines, "# if nothing else uses it:\nrm "+n.word(p))
			}
		}
		r.Remedy = strings.Join(slices.Compact(lines), "\n")
		out = append(out, r)
	}
	return orPass(out, "one of each: %s", strings.Join(single, ", "))
}

// reach looks whether a root shell and sudo find the programs that people type.
func reach(_ context.Context, n *Node) []Result {
	var dirs []string
	for _, dir := range []string{"/usr/local/sbin", "/usr/local/bin"} {
		for _, name := range []string{"runc", "ctr", "crictl", "nerdctl", "nodeprep", "containerd"} {
			if n.exists(path.Join(dir, name)) && !slices.Contains(dirs, dir) {
				dirs = append(dirs, dir)
			}
		}
	}
	if len(dirs) == 0 {
		return skip("no program lies in /usr/local")
	}
	var out []Result
	for _, source := range []struct {
		what, pattern string
		files         []string
		fix           func(p, whole string) string
	}{
		{"PATH of all logins", `^\s*(?:export\s+)?PATH\s*=\s*["']?([^"'\s#]+)`, []string{"/etc/environment"}, func(p, whole string) string {
			return "sed -i 's|^[[:space:]]*\\(export[[:space:]]*\\)\\{0,1\\}PATH=.*|PATH=\"" + whole + "\"|' " + n.word(p)
		}},
		{"PATH of root's logins", `^\s*ENV_SUPATH\s+(?:PATH=)?(\S+)`, []string{"/etc/login.defs"}, func(p, whole string) string {
			return "sed -i 's|^[[:space:]]*ENV_SUPATH.*|ENV_SUPATH PATH=" + whole + "|' " + n.word(p)
		}},
		{"secure_path of sudo", `^\s*Defaults\s.*?secure_path\s*=\s*"?([^"\s]+)`, n.sudoers(), func(_, whole string) string {
			const own = "/etc/sudoers.d/zz-local-path"
			return "echo 'Defaults secure_path=\"" + whole + "\"' > " + n.word(own) + "\nchmod 0440 " + n.word(own) + "\n" + n.inRoot("visudo -c")
		}},
	} {
		value, place, err := n.lastMatch(regexp.MustCompile(source.pattern), source.files)
		if err != nil {
			out = append(out, Result{Verdict: Unknown, Object: source.what, Observed: err.Error()})
			continue
		}
		has := strings.Split(value, ":")
		missing := slices.DeleteFunc(slices.Clone(dirs), func(d string) bool { return slices.Contains(has, d) })
		if value == "" || len(missing) == 0 {
			continue
		}
		file, _, _ := strings.Cut(place, ":")
		out = append(out, Result{
			Verdict: Fail, Object: source.what, Observed: value, Wanted: strings.Join(missing, " and ") + " in it", Place: place,
			Remedy: source.fix(file, strings.Join(missing, ":")+":"+value),
		})
	}
	return orPass(out, "%s in the PATH of root and sudo", strings.Join(dirs, " and "))
}

// sudoers are the files of sudo's policy in the order in which they are read, the usual
// @includedir last (sudoers(5)).
func (n *Node) sudoers() []string {
	out := []string{"/etc/sudoers"}
	entries, err := n.Host.Root.ReadDir("/etc/sudoers.d")
	if errors.Is(err, fs.ErrPermission) {
		out = append(out, "/etc/sudoers.d")
	}
	for _, e := range entries {
		if !strings.Contains(e.Name(), ".") && !strings.HasSuffix(e.Name(), "~") {
			out = append(out, "/etc/sudoers.d/"+e.Name())
		}
	}
	return out
}

// lastMatch is the first group of the last line that matches in the files, "" without one,
// and where that is.
func (n *Node) lastMatch(pattern *regexp.Regexp, files []string) (value, place string, err error) {
	for _, p := range files {
		b, err := n.Host.Root.ReadFile(p)
		if absent(err) {
			continue
		}
		if err != nil {
			return "", "", err
		}
		line := 0
		for text := range strings.Lines(string(b)) {
			line++
			if m := pattern.FindStringSubmatch(text); m != nil {
				value, place = m[1], p+":"+strconv.Itoa(line)
			}
		}
	}
	return value, place, nil
}

// eachRunc looks at what each runc says of itself.
func eachRunc(look func(n *Node, p *program, s runcSays) (Result, string)) func(context.Context, *Node) []Result {
	return func(_ context.Context, n *Node) []Result {
		var out []Result
		var good []string
		for _, p := range n.programs() {
			if p.role != roleRunc || !p.usable() {
				continue
			}
			s, err := n.runcVersion(p.path)
			if err != nil {
				out = append(out, Result{Verdict: Unknown, Object: p.path, Observed: err.Error()})
				continue
			}
			r, ok := look(n, p, s)
			if r.Verdict == Pass {
				good = append(good, ok)
				continue
			}
			r.Object, r.Place = p.path, p.path
			out = append(out, r)
		}
		if len(out) == 0 && len(good) == 0 {
			return skip("no runc is installed here")
		}
		return orPass(out, "%s", strings.Join(good, ", "))
	}
}

func runcRelease(n *Node, p *program, s runcSays) (Result, string) {
	// A distribution repairs old versions without a new number.
	if pkg, _ := n.packageOf(p.path); pkg == "runc" || strings.ContainsAny(s.text, "+~") {
		return Result{Verdict: Pass}, "runc " + s.text + ", whose distribution brings the fixes of later ones"
	}
	v := s.version
	escape := "CVE-2024-21626"
	wanted := ""
	switch {
	case !v.AtLeast(1, 1, 12):
		wanted = "1.2.8 or newer"
	case !v.AtLeast(1, 2, 8):
		escape, wanted = "CVE-2025-31133", "1.2.8 or newer"
	case v.Line() == "1.3" && !v.AtLeast(1, 3, 3):
		escape, wanted = "CVE-2025-31133", "1.3.3 or newer"
	case v.Line() == "1.4" && v.Compare(releases.Version{Major: 1, Minor: 4, Pre: "rc.3"}) < 0:
		escape, wanted = "CVE-2025-31133", "1.4.0 or newer"
	default:
		return Result{Verdict: Pass}, "runc " + s.text
	}
	r := Result{Verdict: Fail, Observed: "runc " + s.text, Wanted: wanted, Note: "a container can get out onto the host: " + escape}
	if n.Spec != nil || n.Receipt != nil {
		r.Remedy = "# with runc.version: " + strings.Fields(wanted)[0] + " in the profile:\n" + n.reapply(false)
	}
	return r, ""
}

func runcSeccomp(n *Node, p *program, s runcSays) (Result, string) {
	remedy := "apt-get install -y libseccomp2"
	if p.elf.LibC() == "" {
		remedy = n.putBack(p)
	}
	if s.libseccomp == "" {
		return Result{Verdict: Fail, Observed: "built without libseccomp", Wanted: "libseccomp 2.4 or newer", Remedy: n.putBack(p)}, ""
	}
	if v, err := releases.ParseVersion(s.libseccomp); err == nil && !v.AtLeast(2, 4, 0) {
		return Result{Verdict: Fail, Observed: "libseccomp " + s.libseccomp, Wanted: "libseccomp 2.4 or newer", Remedy: remedy}, ""
	}
	return Result{Verdict: Pass}, "libseccomp " + s.libseccomp
}

// labels looks at the SELinux types of programs where SELinux enforces.
func labels(_ context.Context, n *Node) []Result {
	enforce, err := n.text("/sys/fs/selinux/enforce")
	switch {
	case absent(err):
		return skip("no SELinux here")
	case err != nil:
		return unknown(err)
	case enforce != "1":
		return skip("SELinux does not enforce")
	case len(n.programs()) == 0:
		return noDaemon()
	}
	var out []Result
	var good []string
	for _, p := range n.programs() {
		if !p.usable() {
			continue
		}
		label, err := n.Host.Label(p.path)
		if err != nil {
			out = append(out, Result{Verdict: Unknown, Object: p.path, Observed: err.Error()})
			continue
		}
		kind := "none"
		if parts := strings.Split(label, ":"); len(parts) > 2 {
			kind = parts[2]
		}
		if kind == "bin_t" || kind == "usr_t" || kind == "lib_t" || strings.HasSuffix(kind, "_exec_t") {
			if !slices.Contains(good, kind) {
				good = append(good, kind)
			}
			continue
		}
		wanted := "container_runtime_exec_t or bin_t"
		if p.role == roleCNI {
			wanted = "bin_t"
		}
		out = append(out, Result{
			Verdict: Fail, Object: p.path, Observed: kind, Wanted: wanted, Place: p.path, Remedy: "restorecon -v " + quote(p.path),
		})
	}
	return orPass(out, "%s", strings.Join(good, ", "))
}
