package checks

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strconv"
	"strings"
)

// Mount is a line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type Mount struct {
	Device       string // major:minor
	Root         string // the directory of the filesystem that is mounted
	Path         string // where
	Options      []string
	Propagation  string // shared, slave, shared,slave, unbindable or private
	FSType       string // e.g. ext4, cgroup2, fuse.sshfs
	Source       string // e.g. /dev/sda1
	SuperOptions []string
}

// Mounts are those of this process's mount namespace.
func (n *Node) Mounts() ([]Mount, error) {
	return remember(n, "mounts", func(context.Context) ([]Mount, error) {
		if !n.Live {
			return nil, errors.New("the mounts of an image are not known")
		}
		b, err := n.Host.Root.ReadFile("/proc/self/mountinfo")
		if err != nil {
			return nil, err
		}
		var mounts []Mount
		for line := range strings.Lines(string(b)) {
			if m, ok := parseMount(line); ok {
				mounts = append(mounts, m)
			}
		}
		return mounts, nil
	})
}

func parseMount(line string) (Mount, bool) {
	before, after, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " - ")
	f, g := strings.Fields(before), strings.Fields(after)
	if !ok || len(f) < 6 || len(g) < 2 {
		return Mount{}, false
	}
	m := Mount{
		Device: f[2], Root: unescape(f[3]), Path: unescape(f[4]), Options: strings.Split(f[5], ","),
		FSType: g[0], Source: unescape(g[1]),
	}
	if len(g) > 2 {
		m.SuperOptions = strings.Split(g[2], ",")
	}
	var propagation []string
	for _, tag := range f[6:] {
		switch name, _, _ := strings.Cut(tag, ":"); name {
		case "shared", "unbindable":
			propagation = append(propagation, name)
		case "master":
			propagation = append(propagation, "slave")
		}
	}
	if m.Propagation = strings.Join(propagation, ","); m.Propagation == "" {
		m.Propagation = "private"
	}
	return m, true
}

// unescape decodes the octal escapes of mountinfo: \040 is a space.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if c, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(c))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// MountOf is the mount that p, or what it will lie in, is on; links are followed.
func (n *Node) MountOf(p string) (Mount, error) {
	mounts, err := n.Mounts()
	if err != nil {
		return Mount{}, err
	}
	if p, err = n.real(p); err != nil {
		return Mount{}, err
	}
	var best Mount
	for _, m := range mounts {
		// Of several at one path the last is on top.
		if within(p, m.Path) && len(m.Path) >= len(best.Path) {
			best = m
		}
	}
	if best.Path == "" {
		return Mount{}, fmt.Errorf("%s is on no mount that /proc/self/mountinfo shows", p)
	}
	return best, nil
}

// within reports whether p is dir or below it.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// real is p as on the host, with its links followed.
func (n *Node) real(p string) (string, error) {
	real, err := n.Host.Root.Resolve(p)
	if err != nil {
		return "", err
	}
	return path.Join("/", strings.TrimPrefix(real, strings.TrimSuffix(n.Host.Root.Dir(), "/"))), nil
}

// KernelRelease is the running kernel's, such as 6.1.0-28-cloud-amd64.
func (n *Node) KernelRelease() (string, error) {
	return remember(n, "kernel release", func(context.Context) (string, error) {
		if !n.Live {
			return "", errors.New("an image has no running kernel")
		}
		if release, err := n.text("/proc/sys/kernel/osrelease"); err == nil && release != "" {
			return release, nil
		}
		u, err := n.Host.Uname()
		return u.Release, err
	})
}

// errNoKernel is that an image has no kernel: it is a container's, or not finished.
var errNoKernel = errors.New("this image has no kernel in /lib/modules")

// Kernels are the releases that matter: the running kernel's or, in an image, those of
// all kernels that it can boot.
func (n *Node) Kernels() ([]string, error) {
	return remember(n, "kernels", func(context.Context) ([]string, error) {
		if n.Live {
			release, err := n.KernelRelease()
			return []string{release}, err
		}
		var kernels []string
		for _, dir := range moduleDirs() {
			entries, err := n.Host.Root.ReadDir(dir)
			if err != nil && !absent(err) {
				return nil, err
			}
			for _, e := range entries {
				// Leftovers of removed kernels lack what depmod needs.
				if n.exists(path.Join(dir, e.Name(), "modules.builtin")) && !slices.Contains(kernels, e.Name()) {
					kernels = append(kernels, e.Name())
				}
			}
		}
		if len(kernels) == 0 {
			return nil, errNoKernel
		}
		slices.Sort(kernels)
		return kernels, nil
	})
}

// moduleDirs are where kmod looks; mostly they are one directory by two names.
func moduleDirs() []string { return []string{"/lib/modules", "/usr/lib/modules"} }

// sysctlPath is the file of a key. Where a key's first separator is a dot, dots separate
// and slashes stand for dots; else slashes separate (sysctl.d(5)).
func sysctlPath(key string) string { return path.Join("/proc/sys", path.Clean("/"+slashed(key))) }

// slashed is a key with slashes for separators, as sysctl.d(5) compares them.
func slashed(key string) string {
	if i := strings.IndexAny(key, "./"); i >= 0 && key[i] == '.' {
		return strings.NewReplacer(".", "/", "/", ".").Replace(key)
	}
	return key
}

// Sysctl is the value in force of a key such as net.ipv4.ip_forward, with one space
// between its fields; the error is fs.ErrNotExist where the kernel has no such key.
func (n *Node) Sysctl(key string) (string, error) {
	if !n.Live {
		return "", errors.New("an image has no settings in force")
	}
	b, err := n.Host.Root.ReadFile(sysctlPath(key))
	return strings.Join(strings.Fields(string(b)), " "), err
}

// sysctlNumber is a key that has one number.
func (n *Node) sysctlNumber(key string) (int64, error) {
	s, err := n.Sysctl(key)
	if err != nil {
		return 0, err
	}
	v, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		// fs.file-max and its like may be more than 63 bits.
		if u, uerr := strconv.ParseUint(s, 10, 64); uerr == nil && u > 1<<63-1 {
			return 1<<63 - 1, nil
		}
		return 0, fmt.Errorf("%s is %q, no number", key, s)
	}
	return v, nil
}

// KernelConfig is the options that a kernel was built with.
type KernelConfig struct {
	Path string // the file that says so
	// Options has y, m, a number or a text for each option that is set, by its name
	// without CONFIG_.
	Options map[string]string
}

// errNoConfig is that no file has the options of a kernel.
var errNoConfig = errors.New("no kernel config in /proc/config.gz, /boot or /lib/modules")

// KernelConfig is the running kernel's; errNoConfig where the host does not have it.
func (n *Node) KernelConfig() (KernelConfig, error) {
	release, err := n.KernelRelease()
	if err != nil {
		return KernelConfig{}, err
	}
	return n.kernelConfigOf(release)
}

func (n *Node) kernelConfigOf(release string) (KernelConfig, error) {
	return remember(n, "kernel config "+release, func(context.Context) (KernelConfig, error) {
		files := []string{
			"/boot/config-" + release,
			"/lib/modules/" + release + "/config",
			"/lib/modules/" + release + "/build/.config",
			"/usr/lib/modules/" + release + "/config",
			"/usr/lib/ostree-boot/config-" + release,
			"/usr/lib/kernel/config-" + release,
			"/usr/src/linux-" + release + "/.config",
			"/usr/src/linux-headers-" + release + "/.config",
			"/usr/src/linux/.config",
		}
		if n.Live {
			// The kernel's own word, of itself.
			files = slices.Insert(files, 0, "/proc/config.gz")
		}
		var denied error
		for _, p := range files {
			f, err := n.Host.Root.Open(p)
			if err != nil {
				if !absent(err) {
					denied = err
				}
				continue
			}
			options, err := readKernelConfig(f)
			_ = f.Close() // opened for reading
			if err != nil || len(options) == 0 {
				denied = fmt.Errorf("read %s: it is no kernel config: %w", p, err)
				continue
			}
			return KernelConfig{p, options}, nil
		}
		if denied != nil {
			return KernelConfig{}, denied
		}
		return KernelConfig{}, errNoConfig
	})
}

// configLimit is the largest kernel config that is read: they have some 300 KB.
const configLimit = 8 << 20

// readKernelConfig reads lines of CONFIG_NAME=value, compressed or not.
func readKernelConfig(r io.Reader) (map[string]string, error) {
	buffered := bufio.NewReader(r)
	r = buffered
	if magic, err := buffered.Peek(2); err == nil && bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		unzipped, err := gzip.NewReader(buffered)
		if err != nil {
			return nil, err
		}
		r = unzipped
	}
	options := map[string]string{}
	lines := bufio.NewScanner(io.LimitReader(r, configLimit))
	for lines.Scan() {
		if option, ok := strings.CutPrefix(lines.Text(), "CONFIG_"); ok {
			if name, value, ok := strings.Cut(option, "="); ok {
				options[name] = strings.Trim(value, `"`)
			}
		}
	}
	return options, lines.Err()
}

// Filesystems are the types that the running kernel can mount now; those of modules that
// are not loaded yet are not among them.
func (n *Node) Filesystems() ([]string, error) {
	return remember(n, "filesystems", func(context.Context) ([]string, error) {
		if !n.Live {
			return nil, errors.New("an image has no running kernel")
		}
		b, err := n.Host.Root.ReadFile("/proc/filesystems")
		if err != nil {
			return nil, err
		}
		var types []string
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); len(f) > 0 {
				types = append(types, f[len(f)-1])
			}
		}
		return types, nil
	})
}

// ModuleState is how far a module is.
type ModuleState string

const (
	ModuleBuiltin  ModuleState = "builtin" // part of the kernel
	ModuleLoaded   ModuleState = "loaded"
	ModuleLoadable ModuleState = "loadable" // its file is there
	ModuleMissing  ModuleState = "missing"
)

// InEffect reports whether what the module brings can be used.
func (s ModuleState) InEffect() bool { return s == ModuleBuiltin || s == ModuleLoaded }

// ModuleState is how far a module, or what it is an alias of, is in the running kernel
// or, in an image, in that of its kernels that is worst off.
func (n *Node) ModuleState(name string) (ModuleState, error) {
	name = moduleName(name)
	return remember(n, "module "+name, func(context.Context) (ModuleState, error) {
		kernels, err := n.Kernels()
		if err != nil {
			return ModuleMissing, err
		}
		worst := ModuleBuiltin
		for _, release := range kernels {
			state, err := n.moduleIn(release, name)
			if err != nil {
				return ModuleMissing, err
			}
			if state == ModuleMissing || state == ModuleLoadable && worst != ModuleMissing || state == ModuleLoaded && worst == ModuleBuiltin {
				worst = state
			}
		}
		return worst, nil
	})
}

// moduleName is a module's name as the kernel has it: dashes are underscores.
func moduleName(name string) string { return strings.ReplaceAll(name, "-", "_") }

func (n *Node) moduleIn(release, name string) (ModuleState, error) {
	files, err := n.moduleFiles(release)
	if err != nil {
		return ModuleMissing, err
	}
	state := n.moduleNamed(release, name, files)
	if real := files.alias[name]; state == ModuleMissing && real != "" {
		state = n.moduleNamed(release, real, files)
	}
	return state, nil
}

func (n *Node) moduleNamed(release, name string, files moduleFiles) ModuleState {
	dir := "/sys/module/" + name
	switch file := files.loadable[name]; {
	case n.Live && n.exists(dir+"/initstate"): // only modules that were loaded have one
		return ModuleLoaded
	case n.Live && n.exists(dir), files.builtin[name]:
		return ModuleBuiltin
	case n.Live && n.seen(name): // a kernel without module files, a part without parameters
		return ModuleBuiltin
	case file != "" && n.exists(file):
		return ModuleLoadable
	}
	if option := moduleOption(name); option != "" {
		if c, err := n.kernelConfigOf(release); err == nil && c.Options[option] == "y" {
			return ModuleBuiltin
		}
	}
	return ModuleMissing
}

// seen reports whether the running kernel shows what a module brings.
func (n *Node) seen(module string) bool {
	if types, err := n.Filesystems(); err == nil && slices.Contains(types, module) {
		return true
	}
	trace := map[string]string{
		"br_netfilter": "/proc/sys/net/bridge",
		"nf_conntrack": "/proc/sys/net/netfilter/nf_conntrack_max",
		"ip_vs":        "/proc/net/ip_vs",
		"tun":          "/sys/class/misc/tun",
		"fuse":         "/sys/fs/fuse/connections",
	}[module]
	return trace != "" && n.exists(trace)
}

// moduleOption is the kernel option that brings a module, "" for those that nothing here
// asks about.
func moduleOption(module string) string {
	for _, o := range kernelOptions() {
		if o.module == module {
			return o.name
		}
	}
	return map[string]string{"ip_vs": "IP_VS", "tun": "TUN", "fuse": "FUSE_FS", "erofs": "EROFS_FS", "btrfs": "BTRFS_FS"}[module]
}

// moduleFiles is what depmod(8) has of a kernel's modules.
type moduleFiles struct {
	dir      string            // "" where the kernel has none
	builtin  map[string]bool   // modules.builtin
	loadable map[string]string // modules.dep: the file of each
	alias    map[string]string // modules.alias, without patterns: names that stand for others
}

func (n *Node) moduleFiles(release string) (moduleFiles, error) {
	return remember(n, "module files "+release, func(context.Context) (moduleFiles, error) {
		m := moduleFiles{builtin: map[string]bool{}, loadable: map[string]string{}, alias: map[string]string{}}
		for _, dir := range moduleDirs() {
			if n.exists(path.Join(dir, release)) {
				m.dir = path.Join(dir, release)
				break
			}
		}
		if m.dir == "" {
			return m, nil
		}
		read := func(name string) (string, error) {
			b, err := n.Host.Root.ReadFile(path.Join(m.dir, name))
			if absent(err) {
				err = nil // a kernel that is built without modules
			}
			return string(b), err
		}
		builtin, err1 := read("modules.builtin")
		dep, err2 := read("modules.dep")
		alias, err3 := read("modules.alias")
		for line := range strings.Lines(builtin) {
			m.builtin[moduleOfFile(strings.TrimSpace(line))] = true
		}
		for line := range strings.Lines(dep) {
			if file, _, ok := strings.Cut(line, ":"); ok {
				if !path.IsAbs(file) {
					file = path.Join(m.dir, file)
				}
				m.loadable[moduleOfFile(file)] = file
			}
		}
		for line := range strings.Lines(alias) {
			rest, ok := strings.CutPrefix(line, "alias ")
			// Names of hardware, by far the most, have a colon and patterns.
			if !ok || strings.ContainsAny(rest, ":*") {
				continue
			}
			if f := strings.Fields(rest); len(f) == 2 {
				m.alias[moduleName(f[0])] = moduleName(f[1])
			}
		}
		return m, errors.Join(err1, err2, err3)
	})
}

// moduleOfFile is overlay of kernel/fs/overlayfs/overlay.ko.xz.
func moduleOfFile(file string) string {
	base, _, _ := strings.Cut(path.Base(file), ".ko")
	return moduleName(base)
}

// CgroupMode is how cgroups are mounted.
type CgroupMode string

const (
	CgroupV1     CgroupMode = "v1"
	CgroupHybrid CgroupMode = "hybrid" // controllers in v1, systemd's own tree in v2
	CgroupV2     CgroupMode = "v2"
	CgroupNone   CgroupMode = "none"
)

const cgroupRoot = "/sys/fs/cgroup"

// CgroupMode is what is mounted at /sys/fs/cgroup, as runc and the kubelet look at it
// (cgroups(7)).
func (n *Node) CgroupMode() (CgroupMode, error) {
	mounts, err := n.Mounts()
	if err != nil {
		return "", err
	}
	mode := CgroupNone
	for _, m := range mounts {
		switch {
		case m.FSType == "cgroup2" && m.Path == cgroupRoot:
			return CgroupV2, nil
		case m.FSType == "cgroup2" && within(m.Path, cgroupRoot):
			mode = CgroupHybrid
		case m.FSType == "cgroup" && within(m.Path, cgroupRoot) && mode != CgroupHybrid:
			mode = CgroupV1
		}
	}
	return mode, nil
}

// controllers are those that a cgroup of v2 has, of its file of that name.
func (n *Node) controllers(cgroup string) ([]string, error) {
	s, err := n.text(path.Join(cgroupRoot, cgroup, "cgroup.controllers"))
	return strings.Fields(s), err
}

// v1Controllers are the controllers of /proc/cgroups, and whether each is enabled.
func (n *Node) v1Controllers() (map[string]bool, error) {
	b, err := n.Host.Root.ReadFile("/proc/cgroups")
	if err != nil {
		return nil, err
	}
	enabled := map[string]bool{}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); len(f) == 4 && !strings.HasPrefix(f[0], "#") {
			enabled[f[0]] = f[3] == "1"
		}
	}
	return enabled, nil
}

// Cmdline are the words that the running kernel was booted with (kernel-command-line(7)).
func (n *Node) Cmdline() ([]string, error) {
	s, err := n.text("/proc/cmdline")
	return strings.Fields(s), err
}
