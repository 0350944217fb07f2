package host

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LibC is a root's C library.
type LibC struct {
	// Kind is "glibc", "musl" or "" where the root has none.
	Kind string
	// Major and Minor are glibc's version; 0 where it could not be found out.
	Major, Minor int
	// Path is the library or loader that was looked at.
	Path string
}

// String is "glibc 2.36", "musl" or "none".
func (l LibC) String() string {
	switch {
	case l.Kind == "":
		return "none"
	case l.Major == 0:
		return l.Kind
	}
	return fmt.Sprintf("%s %d.%d", l.Kind, l.Major, l.Minor)
}

// Facts are what a root tells of its host, from its files alone.
type Facts struct {
	// Arch is Go's name of the root's architecture: that of its programs, else, for
	// an empty root, that of this machine.
	Arch string
	// ArchKnown is false when Arch is only this machine's.
	ArchKnown bool
	LibC      LibC
	// Systemd is the major version, 0 where unknown.
	Systemd int
	// SystemdInit reports that PID 1 is systemd (live) or that /sbin/init leads to it.
	SystemdInit bool
}

// loader is where the dynamic loader of an architecture lives: the ABI's fixed path.
type loader struct {
	arch, glibc, musl string
	machine           elf.Machine
}

func loaders() []loader {
	return []loader{
		{"amd64", "/lib64/ld-linux-x86-64.so.2", "/lib/ld-musl-x86_64.so.1", elf.EM_X86_64},
		{"arm64", "/lib/ld-linux-aarch64.so.1", "/lib/ld-musl-aarch64.so.1", elf.EM_AARCH64},
		{"arm", "/lib/ld-linux-armhf.so.3", "/lib/ld-musl-armhf.so.1", elf.EM_ARM},
		{"386", "/lib/ld-linux.so.2", "/lib/ld-musl-i386.so.1", elf.EM_386},
		{"ppc64le", "/lib64/ld64.so.2", "/lib/ld-musl-powerpc64le.so.1", elf.EM_PPC64},
		{"riscv64", "/lib/ld-linux-riscv64-lp64d.so.1", "/lib/ld-musl-riscv64.so.1", elf.EM_RISCV},
		{"s390x", "/lib/ld64.so.1", "/lib/ld-musl-s390x.so.1", elf.EM_S390},
	}
}

// GatherFacts reads the facts of a root. arch, if not "", is taken as given.
func GatherFacts(r *Root, arch string) Facts {
	f := Facts{Arch: arch, ArchKnown: arch != ""}
	if f.Arch == "" && r.Live() {
		f.Arch, f.ArchKnown = runtime.GOARCH, true
	}
	for _, l := range loaders() {
		if f.ArchKnown && l.arch != f.Arch {
			continue
		}
		libc, ok := findLibC(r, l)
		if !ok {
			continue
		}
		f.LibC = libc
		if !f.ArchKnown {
			f.Arch, f.ArchKnown = l.arch, true
		}
		break
	}
	if f.Arch == "" {
		f.Arch = runtime.GOARCH
	}
	f.Systemd = systemdVersion(r)
	f.SystemdInit = systemdInit(r)
	return f
}

// systemdInit follows sd_booted(3) on the live host; elsewhere it looks at what
// /sbin/init leads to.
func systemdInit(r *Root) bool {
	if r.Live() {
		if fi, err := r.Lstat("/run/systemd/system"); err != nil || !fi.IsDir() {
			return false
		}
		// In a PID namespace of its own with the host's /run, PID 1 is another program.
		comm, err := r.ReadFile("/proc/1/comm")
		return err != nil || strings.TrimSpace(string(comm)) == "systemd"
	}
	real, err := r.Resolve("/sbin/init")
	if err != nil || path.Base(real) != "systemd" {
		return false
	}
	_, err = r.Stat("/sbin/init")
	return err == nil
}

// systemdVersion reads the version from the name of systemd's private library, which
// is libsystemd-shared-VERSION.so with the distribution's suffix; no program of the
// root is run for it.
func systemdVersion(r *Root) int {
	name := regexp.MustCompile(`^libsystemd-shared-(\d+)`)
	dirs := []string{"/usr/lib/systemd", "/lib/systemd"}
	if entries, err := r.ReadDir("/usr/lib"); err == nil {
		for _, e := range entries {
			if strings.Contains(e.Name(), "-linux-") {
				dirs = append(dirs, "/usr/lib/"+e.Name()+"/systemd")
			}
		}
	}
	dirs = append(dirs, "/usr/lib64/systemd")
	for _, dir := range dirs {
		entries, err := r.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if m := name.FindStringSubmatch(e.Name()); m != nil {
				n, err := strconv.Atoi(m[1])
				if err == nil {
					return n
				}
			}
		}
	}
	return 0
}

func findLibC(r *Root, l loader) (LibC, bool) {
	if _, err := r.Stat(l.musl); err == nil {
		return LibC{Kind: "musl", Path: l.musl}, true
	}
	real, err := r.Resolve(l.glibc)
	if err != nil {
		return LibC{}, false
	}
	if _, err := r.Stat(l.glibc); err != nil {
		return LibC{}, false
	}
	found := LibC{Kind: "glibc", Path: l.glibc}
	// libc.so.6 lies in the loader's real folder, on Debian a multiarch one.
	dir := strings.TrimPrefix(path.Dir(real), strings.TrimSuffix(r.Dir(), "/"))
	for _, p := range []string{dir + "/libc.so.6", "/lib64/libc.so.6", "/usr/lib64/libc.so.6", "/usr/lib/libc.so.6", "/lib/libc.so.6"} {
		major, minor, err := glibcVersion(r, p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			found.Major, found.Minor, found.Path = major, minor, p
		}
		return found, true
	}
	return found, true
}

// glibcVersion is the highest GLIBC_x.y that the library defines: what programs can ask of it.
func glibcVersion(r *Root, p string) (major, minor int, err error) {
	file, err := r.Open(p)
	if err != nil {
		return 0, 0, err
	}
	defer file.Close()
	lib, err := elf.NewFile(file)
	if err != nil {
		return 0, 0, fmt.Errorf("read %s: %w", p, err)
	}
	defined, err := lib.DynamicVersions()
	if err != nil {
		return 0, 0, fmt.Errorf("read %s: %w", p, err)
	}
	var best []int
	for _, d := range defined {
		v, ok := strings.CutPrefix(d.Name, "GLIBC_")
		if !ok {
			continue
		}
		var parts []int
		for s := range strings.SplitSeq(v, ".") {
			n, err := strconv.Atoi(s)
			if err != nil {
				parts = nil
				break
			}
			parts = append(parts, n)
		}
		if len(parts) >= 2 && slices.Compare(parts, best) > 0 {
			best = parts
		}
	}
	if best == nil {
		return 0, 0, fmt.Errorf("read %s: it defines no GLIBC version", p)
	}
	return best[0], best[1], nil
}

// Space is the room on the filesystem of a path.
type Space struct {
	// Device tells filesystems apart.
	Device uint64
	// Available bytes for nodeprep: those free to unprivileged users, so that the
	// reserve stays what it is for.
	Available uint64
	// Total is what unprivileged users have in all, used and available.
	Total uint64
	// Inodes free; 0 with NoInodes where the filesystem does not count them (btrfs).
	Inodes uint64
	// TotalInodes are the free and the used ones.
	TotalInodes uint64
	NoInodes    bool
	ReadOnly    bool
}

// SpaceAt looks at the filesystem of p or, where p does not exist, of its nearest
// existing parent (statvfs(3)).
func (r *Root) SpaceAt(p string) (Space, error) {
	real, err := r.Resolve(p)
	if err != nil {
		return Space{}, err
	}
	for {
		var st unix.Statfs_t
		err := unix.Statfs(real, &st)
		if err == unix.ENOENT && real != r.dir {
			real = path.Dir(real)
			continue
		}
		if err != nil {
			return Space{}, fmt.Errorf("statfs %s: %w", p, err)
		}
		var fi unix.Stat_t
		if err := unix.Stat(real, &fi); err != nil {
			return Space{}, fmt.Errorf("stat %s: %w", p, err)
		}
		return Space{
			Device: uint64(fi.Dev), Available: st.Bavail * uint64(st.Bsize),
			Total:  (st.Blocks - st.Bfree + st.Bavail) * uint64(st.Bsize),
			Inodes: st.Ffree, TotalInodes: st.Files, NoInodes: st.Files == 0, ReadOnly: readOnly(&st),
		}, nil
	}
}
