package checks

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/elf"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/systemd"
)

// role is what a program is to the daemon.
type role string

const (
	roleDaemon role = "containerd"
	roleShim   role = "containerd-shim-runc-v2"
	roleRunc   role = "runc"
	roleCNI    role = "cni"
)

// program is one of containerd's programs as it lies on the disk.
type program struct {
	role role
	name string
	// path is where it is, or should be.
	path string
	// by names it: a unit, a config with its line, a receipt.
	by    string
	mode  fs.FileMode
	fault string // "", or why it cannot be run: is missing, is a directory
	err   error  // it could not be looked at
	// elf are its headers; elfErr says that it is no program for this host. A script has
	// its interpreter instead.
	elf         elf.Info
	elfErr      error
	interpreter string
	uid, gid    int
}

// usable says that there is a program, whatever else may be wrong with it.
func (p *program) usable() bool { return p.fault == "" && p.err == nil }

// servicePath is where systemd lets services look for programs (systemd.exec(5), "$PATH").
const servicePath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// daemonPath are the folders in which the daemon looks for programs: those of its own
// PATH where it runs and may be asked, else systemd's.
func (n *Node) daemonPath() []string {
	if p, err := n.Process(); err == nil {
		env, _ := n.Host.Root.ReadFile("/proc/" + strconv.Itoa(p.PID) + "/environ")
		for v := range strings.SplitSeq(string(env), "\x00") {
			if dirs, ok := strings.CutPrefix(v, "PATH="); ok {
				return strings.Split(dirs, ":")
			}
		}
	}
	return strings.Split(servicePath, ":")
}

// lookup is the first executable file of that name in the folders, as execvp(3) looks for
// it, "" where there is none.
func (n *Node) lookup(name string, dirs []string) string {
	for _, dir := range dirs {
		p := path.Join(dir, name)
		if fi, err := n.Host.Root.Stat(p); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

// installed is the path of a program that the last apply installed, "" without one.
func (n *Node) installed(name string) string {
	if n.Receipt == nil {
		return ""
	}
	for _, p := range n.Receipt.Programs {
		if path.Base(p) == name {
			return p
		}
	}
	return ""
}

// daemonProgram is the program that is, or should be, the daemon, and what says so: the
// installed one before the one that the unit names, which may name a wrong one. "" is a
// host that has no containerd and needs none.
func (n *Node) daemonProgram() (p, by string) {
	argv, place, err := n.daemonArgv()
	unit := err == nil && len(argv) > 0
	if p := n.installed("containerd"); p != "" {
		if unit && argv[0] == p {
			return p, place
		}
		return p, "receipt"
	}
	if n.Spec != nil && n.Spec.Containerd.Installed() {
		return systemd.Binary, "profile"
	}
	if unit {
		return argv[0], place
	}
	if p, err := n.Process(); err == nil && p.Exe != "" && !n.startsOthers(p.Exe) {
		return p.Exe, "process " + strconv.Itoa(p.PID)
	}
	return n.DaemonBinary(), ""
}

// programs are those that the daemon needs, as the unit, the config and the network's
// configuration name them. Empty on a host without containerd.
func (n *Node) programs() []*program {
	out, _ := remember(n, "programs", func(context.Context) ([]*program, error) {
		daemon, by := n.daemonProgram()
		if daemon == "" {
			return nil, nil
		}
		out := []*program{{role: roleDaemon, name: "containerd", path: daemon, by: by}}
		dirs := n.daemonPath()

		runcs, usesShim := n.runcs()
		if usesShim {
			shim := &program{role: roleShim, name: string(roleShim)}
			if shim.path = n.lookup(shim.name, shimPath(dirs, daemon)); shim.path == "" {
				shim.path = cmp.Or(n.installed(shim.name), path.Join(path.Dir(daemon), shim.name))
			}
			out = append(out, shim)
		}
		for _, r := range runcs {
			if !path.IsAbs(r.path) {
				if p := n.lookup(r.path, dirs); p != "" {
					r.path = p
				} else {
					r.path = cmp.Or(n.installed(r.name), "/usr/local/sbin/"+r.name)
				}
			}
			if !slices.ContainsFunc(out, func(o *program) bool { return o.path == r.path }) {
				out = append(out, r)
			}
		}
		plugins, _, _ := n.cniPlugins()
		out = append(out, plugins...)
		for _, p := range out {
			p.look(n)
		}
		return out, nil
	})
	return out
}

// shimPath are the folders in which the daemon looks for shims: PATH, then its own
// (resolveRuntimePath of containerd's core/runtime/v2).
func shimPath(dirs []string, daemon string) []string {
	return append(slices.Clone(dirs), path.Dir(daemon))
}

// runcs are the runc that each runtime of runc's shim starts, and whether there are such
// runtimes at all; other OCI runtimes are the config's affair.
func (n *Node) runcs() (out []*program, usesShim bool) {
	c, err := n.Config()
	if err != nil || len(c.Faults) > 0 {
		return []*program{{role: roleRunc, name: "runc", path: "runc"}}, true
	}
	for _, r := range c.Runtimes() {
		if r.Type != runcShim {
			continue
		}
		usesShim = true
		// Nobody starts the built-in one where another is the default.
		if def, _ := c.DefaultRuntime(); r.Place == (configtoml.Place{}) && r.BinaryName == "" && r.Name != def {
			continue
		}
		if name := cmp.Or(r.BinaryName, "runc"); path.Base(name) == "runc" {
			out = append(out, &program{role: roleRunc, name: "runc", path: name, by: r.BinaryPlace.String()})
		}
	}
	return out, usesShim
}

// runcShim is the runtime type of runc and what is called like it.
const runcShim = "io.containerd.runc.v2"

// network is what is read of a CNI configuration, a list or a single one (CNI
// specification, "Network configuration format").
type network struct {
	networkEntry
	Plugins []networkEntry `json:"plugins"`
}

type cniType struct {
	Type string `json:"type"`
}

type networkEntry struct {
	Type string  `json:"type"`
	IPAM cniType `json:"ipam"`
	// Delegate is what flannel starts, Delegates what multus does.
	Delegate  *network  `json:"delegate"`
	Delegates []network `json:"delegates"`
}

// types are the plugins that a network needs, by name. flannel has bridge and host-local do
// its work unless it is told otherwise (flannel-io/cni-plugin README).
func (c *network) types() []string {
	var out []string
	for _, e := range append(slices.Clone(c.Plugins), c.networkEntry) {
		out = append(out, e.Type, e.IPAM.Type)
		if e.Type == "flannel" {
			d := network{}
			if e.Delegate != nil {
				d = *e.Delegate
			}
			d.Type, d.IPAM.Type = cmp.Or(d.Type, "bridge"), cmp.Or(d.IPAM.Type, "host-local")
			out = append(out, d.types()...)
		}
		for i := range e.Delegates {
			out = append(out, e.Delegates[i].types()...)
		}
	}
	return slices.DeleteFunc(out, func(name string) bool { return name == "" || strings.Contains(name, "/") })
}

// cniPlugins are the network plugins that pods need: loopback, and those that the
// configuration names. conf is its first file, "" where there is none; then pods have no
// network in any case, and only plugins that nodeprep installs are wanted.
func (n *Node) cniPlugins() (plugins []*program, conf string, err error) {
	dirs, confDir, most, internal := []string{"/opt/cni/bin"}, "/etc/cni/net.d", 1, false
	if c, err := n.Config(); err == nil {
		binDirs, dir, _, _, _ := c.CNI()
		if len(binDirs) > 0 {
			dirs = binDirs
		}
		confDir = dir
		most, _ = c.MaxConfNum()
		if v, _, ok := c.Get("plugins", "io.containerd.cri.v1.runtime", "cni", "use_internal_loopback"); ok {
			internal, _ = v.(bool)
		}
	}
	wanted := map[string]string{}
	conf, err = n.networks(confDir, most, wanted)
	if !internal && (conf != "" || n.installed("loopback") != "" || n.Spec != nil && n.Spec.CNI.Installed()) {
		wanted["loopback"] = ""
	}
	for name, by := range wanted {
		p := n.lookup(name, dirs)
		if p == "" {
			p = path.Join(dirs[0], name)
			// One that is there and cannot be run is shown where it is.
			for _, d := range dirs {
				if n.exists(path.Join(d, name)) {
					p = path.Join(d, name)
					break
				}
			}
		}
		plugins = append(plugins, &program{role: roleCNI, name: name, path: p, by: by})
	}
	slices.SortFunc(plugins, func(a, b *program) int { return strings.Compare(a.name, b.name) })
	return plugins, conf, err
}

// networks adds the types that the first files of a CNI folder name.
func (n *Node) networks(dir string, most int, wanted map[string]string) (first string, err error) {
	entries, err := n.Host.Root.ReadDir(dir)
	if absent(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	used := 0
	for _, e := range entries {
		if !slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(e.Name())) || most > 0 && used == most {
			continue
		}
		used++
		p := path.Join(dir, e.Name())
		first = cmp.Or(first, p)
		b, err := n.Host.Root.ReadFile(p)
		if err != nil {
			return first, err
		}
		var c network
		if err := json.Unmarshal(b, &c); err != nil {
			return first, fmt.Errorf("read %s: %w", p, err)
		}
		for _, name := range c.types() {
			wanted[name] = p
		}
	}
	return first, nil
}

// look fills in what the file says.
func (p *program) look(n *Node) {
	fi, err := n.Host.Root.Stat(p.path)
	switch {
	case absent(err):
		p.fault = "is missing"
		if to, err := n.Host.Root.Readlink(p.path); err == nil {
			p.fault = "is a link to " + to + ", which is missing"
		}
		return
	case err != nil:
		p.err = err
		return
	case fi.IsDir():
		p.fault = "is a directory"
		return
	case !fi.Mode().IsRegular():
		p.fault = "is no regular file"
		return
	case fi.Mode()&0o111 == 0:
		p.fault = fmt.Sprintf("cannot be executed: mode %04o", fi.Mode().Perm())
		return
	}
	p.mode = fi.Mode()
	p.uid, p.gid = owner(fi)
	f, err := n.Host.Root.Open(p.path)
	if err != nil {
		p.err = err
		return
	}
	defer f.Close()
	head := make([]byte, 256)
	size, _ := f.ReadAt(head, 0) // short files are what elf.Read complains of
	if line, ok := strings.CutPrefix(string(head[:size]), "#!"); ok {
		line, _, _ = strings.Cut(line, "\n")
		if words := strings.Fields(line); len(words) > 0 {
			p.interpreter = words[0]
			return
		}
	}
	p.elf, p.elfErr = elf.Read(f, n.Facts.Arch)
}

func owner(fi fs.FileInfo) (uid, gid int) {
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		return int(st.Uid), int(st.Gid)
	}
	return 0, 0
}

// libraries reports whether a path, or a library of the same name in a folder that
// ld.so.conf adds, is on the host (ld.so(8), ldconfig(8)).
func (n *Node) libraries() func(p string) bool {
	dirs, _ := remember(n, "ld.so.conf", func(context.Context) ([]string, error) {
		files := []string{"/etc/ld.so.conf"}
		entries, _ := n.Host.Root.ReadDir("/etc/ld.so.conf.d")
		for _, e := range entries {
			files = append(files, "/etc/ld.so.conf.d/"+e.Name())
		}
		var dirs []string
		for _, p := range files {
			text, _ := n.text(p) // none is the rule on musl
			for line := range strings.Lines(text) {
				if line = strings.TrimSpace(line); strings.HasPrefix(line, "/") {
					dirs = append(dirs, line)
				}
			}
		}
		return dirs, nil
	})
	return func(p string) bool {
		return n.exists(p) || slices.ContainsFunc(dirs, func(d string) bool { return n.exists(path.Join(d, path.Base(p))) })
	}
}

// drifted are nodeprep's files that are not as its last apply left them, by path.
func (n *Node) drifted() (map[string]string, error) {
	return remember(n, "drift", func(ctx context.Context) (map[string]string, error) {
		out := map[string]string{}
		if n.Receipt == nil || n.Receipt.Drift == nil {
			return out, nil
		}
		list, err := n.Receipt.Drift(ctx)
		for _, d := range list {
			out[d.Path] = d.What
		}
		return out, err
	})
}

// reapply is the line that makes the host what its profile says again. adopt also takes
// over files that were changed since.
func (n *Node) reapply(adopt bool) string {
	line := "nodeprep apply"
	if adopt {
		line += " --adopt"
	}
	if !n.Live {
		line += " --root " + quote(n.Host.Root.Dir())
	}
	switch {
	case n.exists("/etc/nodeprep/profile.yaml"):
		return line
	case n.Receipt != nil && n.Receipt.Profile != "":
		return line + " -f " + quote(n.Receipt.Profile)
	}
	return "# with the profile of this node:\n" + line + " -f node.yaml"
}

// quote makes one word of s for a shell.
func quote(s string) string {
	return diag.ShellWord(s)
}

// putBack is what puts a program back that is missing or damaged.
func (n *Node) putBack(p *program) string {
	ours := n.Receipt != nil && slices.Contains(n.Receipt.Programs, p.path)
	pkg := ""
	if !ours {
		pkg, _ = n.packageOf(p.path)
	}
	switch {
	case ours:
		return n.reapply(p.usable())
	case pkg != "":
		return n.inRoot("apt-get install --reinstall -y " + pkg)
	case n.Spec != nil:
		return n.reapply(true)
	case p.role == roleCNI && path.Dir(p.path) == "/usr/lib/cni" && n.exists("/var/lib/dpkg/status"):
		return n.inRoot("apt-get install -y containernetworking-plugins")
	}
	return ""
}

// packageOf is the Debian package that has a file, asked only of those that are known to
// have containerd's programs: dpkg's database has a file for each package.
func (n *Node) packageOf(p string) (pkg string, list fs.FileInfo) {
	for _, pkg := range []string{
		"containerd", "containerd.io", "runc", "kubernetes-cni", "containernetworking-plugins", "cri-tools", "docker.io", "docker-ce", "crun",
	} {
		name := "/var/lib/dpkg/info/" + pkg + ".list"
		text, err := n.text(name)
		if err != nil || !slices.Contains(strings.Split(text, "\n"), p) {
			continue
		}
		if version, err := n.packaged(pkg); err != nil || version == "" {
			continue
		}
		if fi, err := n.Host.Root.Stat(name); err == nil {
			return pkg, fi
		}
	}
	return "", nil
}

// runcSays is what a runc prints of itself.
type runcSays struct {
	version    releases.Version
	text       string // the version as it is printed
	libseccomp string // "" where it was built without
}

// runcVersion asks a runc for its version (runc(8), --version).
func (n *Node) runcVersion(p string) (runcSays, error) {
	return remember(n, "runc "+p, func(ctx context.Context) (runcSays, error) {
		out, err := n.run(ctx, p, "--version")
		if err != nil {
			return runcSays{}, err
		}
		var s runcSays
		for line := range strings.Lines(out) {
			line = strings.TrimSpace(line)
			if v, ok := strings.CutPrefix(line, "runc version "); ok {
				s.text = v
			}
			if v, ok := strings.CutPrefix(line, "libseccomp: "); ok {
				s.libseccomp = v
			}
		}
		if s.text == "" {
			return s, errors.New(p + " --version does not say which runc it is")
		}
		if s.version, err = releases.ParseVersion(cutDistribution(s.text)); err != nil {
			return s, fmt.Errorf("%s --version: %w", p, err)
		}
		return s, nil
	})
}
