package checks

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/systemd"
)

// intended is what one field of the profile or key of the config says: the profile's
// before a run that changes the host, else what the daemon reads now.
func (n *Node) intended(field, profile, fallback string, key func(*configtoml.Config) (string, configtoml.Place)) (value, place string) {
	fromProfile := n.Spec != nil && profile != ""
	if !fromProfile || !n.Applying {
		if c, err := n.Config(); err == nil && c.Exists {
			value, at := key(c)
			return value, at.String()
		}
	}
	if fromProfile {
		return profile, n.Spec.Origin(field).Place()
	}
	return fallback, ""
}

// dataRoot is where containerd keeps images and snapshots, and what says so.
func (n *Node) dataRoot() (dir, place string) {
	profile := ""
	if n.Spec != nil {
		profile = n.Spec.Containerd.Root
	}
	return n.intended("containerd.root", profile, "/var/lib/containerd", (*configtoml.Config).Root)
}

func (n *Node) stateDir() (dir, place string) {
	profile := ""
	if n.Spec != nil {
		profile = n.Spec.Containerd.State
	}
	return n.intended("containerd.state", profile, "/run/containerd", (*configtoml.Config).State)
}

// snapshotter is that of CRI's images.
func (n *Node) snapshotter() (name, place string) {
	profile := ""
	if n.Spec != nil {
		profile = n.Spec.Containerd.Snapshotter
	}
	return n.intended("containerd.snapshotter", profile, "overlayfs", (*configtoml.Config).Snapshotter)
}

// pluginKey is a key of a plugin's section, in the profile's settings or the config.
func (n *Node) pluginKey(plugin, key string) string {
	if n.Spec != nil {
		if s, ok := setting(n.Spec.Containerd.Settings, "plugins", plugin, key).(string); ok {
			return s
		}
	}
	if c, err := n.Config(); err == nil {
		if v, _, ok := c.Get("plugins", plugin, key); ok {
			s, _ := v.(string)
			return s
		}
	}
	return ""
}

// setting is a value of nested settings, nil where there is none.
func setting(settings map[string]any, at ...string) any {
	var v any = settings
	for _, key := range at {
		table, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = table[key]
	}
	return v
}

// forKubernetes says whether the host is meant to be a node: the profile names a
// Kubernetes version, or a kubelet is configured.
func (n *Node) forKubernetes() bool {
	if n.Spec != nil && n.Spec.Kubernetes != "" {
		return true
	}
	k, err := n.Kubelet()
	return k != nil || err != nil
}

// provisioned says whether containerd is nodeprep's here, or will be.
func (n *Node) provisioned() bool {
	if n.Receipt != nil {
		return slices.Contains(n.Receipt.Programs, systemd.Binary)
	}
	return n.Spec != nil && n.Spec.Containerd.Installed()
}

// tool is the program of that name on a service's PATH, "" is none.
func (n *Node) tool(name string) string { return n.lookup(name, strings.Split(servicePath, ":")) }

// installLine is the line that installs a package, by the names that distributions of
// Debian's and of Red Hat's kind give it; "" where no package manager is known.
func (n *Node) installLine(debian, redhat string) string {
	for _, m := range []struct{ program, line string }{
		{"apt-get", "apt-get install -y " + debian},
		{"dnf", "dnf install -y " + redhat},
		{"yum", "yum install -y " + redhat},
		{"zypper", "zypper --non-interactive install " + redhat},
	} {
		if n.tool(m.program) != "" {
			return n.inRoot(m.line)
		}
	}
	return "# install the package " + debian
}

// inRoot is a shell line that changes the system it is run on: within an image's root where
// this is one.
func (n *Node) inRoot(line string) string {
	switch {
	case n.Live:
		return line
	case strings.ContainsAny(line, "&|;<>$"):
		return "chroot " + quote(n.Host.Root.Dir()) + " sh -c " + quote(line)
	}
	return "chroot " + quote(n.Host.Root.Dir()) + " " + line
}

// disable is the line that stops units and keeps them from being started at boot; nothing
// runs in an image (systemctl(1), --root).
func (n *Node) disable(units ...string) string {
	if n.Live {
		return "systemctl disable --now " + strings.Join(units, " ")
	}
	return "systemctl --root=" + quote(n.Host.Root.Dir()) + " disable " + strings.Join(units, " ")
}

// putAside is the line that renames a file, so that nobody reads or runs it.
func (n *Node) putAside(p string) string { return "mv " + n.word(p) + " " + n.word(p+".off") }

// unitFile is the file of a unit that is installed, "" is none.
func (n *Node) unitFile(name string) string {
	for _, dir := range []string{
		"/etc/systemd/system", "/run/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system",
	} {
		if p := path.Join(dir, name); n.exists(p) {
			return p
		}
	}
	return ""
}

// active says whether a unit that is installed runs; systemd is only asked of those.
func (n *Node) active(unit string) (bool, error) {
	if !n.Live || !n.Facts.SystemdInit || n.unitFile(unit) == "" {
		return false, nil
	}
	p, err := n.Unit(unit)
	return p.ActiveState == "active" || p.ActiveState == "reloading" || p.ActiveState == "activating", err
}

// lines are those of a file, numbered from 1, without comments; nothing where the file is
// not there.
func (n *Node) lines(p string) ([]numbered, error) {
	b, err := n.Host.Root.ReadFile(p)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []numbered
	i := 0
	for line := range strings.Lines(string(b)) {
		i++
		if line, _, _ = strings.Cut(line, "#"); strings.TrimSpace(line) != "" {
			out = append(out, numbered{strings.TrimSpace(line), fmt.Sprintf("%s:%d", p, i)})
		}
	}
	return out, nil
}

type numbered struct{ text, place string }

// listener is a TCP socket in state LISTEN.
type listener struct {
	addr  netip.AddrPort
	inode string
}

// listeners are those of this network namespace (proc_net_tcp in proc(5)).
func (n *Node) listeners() ([]listener, error) {
	return remember(n, "listeners", func(context.Context) ([]listener, error) {
		var out []listener
		for _, p := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
			b, err := n.Host.Root.ReadFile(p)
			if absent(err) {
				continue // no IPv6
			}
			if err != nil {
				return nil, err
			}
			for line := range strings.Lines(string(b)) {
				f := strings.Fields(line)
				if len(f) < 10 || f[3] != "0A" {
					continue
				}
				if addr, ok := procAddr(f[1]); ok {
					out = append(out, listener{addr, f[9]})
				}
			}
		}
		return out, nil
	})
}

// procAddr reads ADDRESS:PORT in hexadecimal.
func procAddr(s string) (netip.AddrPort, bool) {
	host, port, ok := strings.Cut(s, ":")
	p, err := strconv.ParseUint(port, 16, 16)
	if !ok || err != nil {
		return netip.AddrPort{}, false
	}
	addr, ok := procIP(host)
	return netip.AddrPortFrom(addr, uint16(p)), ok
}

// procIP reads an address that the kernel writes as numbers of 32 bits, each of the
// machine's own byte order.
func procIP(s string) (netip.Addr, bool) {
	b, err := hex.DecodeString(s)
	if err != nil {
		return netip.Addr{}, false
	}
	for i := 0; i+4 <= len(b); i += 4 {
		binary.NativeEndian.PutUint32(b[i:], binary.BigEndian.Uint32(b[i:]))
	}
	addr, ok := netip.AddrFromSlice(b)
	return addr.Unmap(), ok
}

// processName is a process and its name, which is cut to 15 bytes (proc_pid_comm(5)); "" where
// it has ended since, or tells nobody.
type processName struct {
	pid  int
	comm string
}

// processes are all that /proc shows, read once.
func (n *Node) processes() ([]processName, error) {
	return remember(n, "processes", func(context.Context) ([]processName, error) {
		entries, err := n.Host.Root.ReadDir("/proc")
		if err != nil {
			return nil, err
		}
		var out []processName
		for _, e := range entries {
			pid, err := strconv.Atoi(e.Name())
			if err != nil {
				continue
			}
			out = append(out, processName{pid, n.ifThere("/proc/" + e.Name() + "/comm")})
		}
		return out, nil
	})
}

// bytesText is a size for people: 1.5 GiB, 300 MiB.
func bytesText(b uint64) string {
	switch {
	case b >= 1<<30:
		return strings.TrimSuffix(fmt.Sprintf("%.1f", float64(b)/(1<<30)), ".0") + " GiB"
	case b >= 1<<20:
		return fmt.Sprintf("%d MiB", b>>20)
	}
	return fmt.Sprintf("%d KiB", b>>10)
}

// percent is how much of all a part is; 0 of nothing.
func percent(part, all uint64) int {
	if all == 0 {
		return 0
	}
	return int(float64(part) / float64(all) * 100)
}
