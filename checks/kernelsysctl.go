package checks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
)

// confFiles are the files of a folder of systemd's such as sysctl.d, in the order in
// which they are read: by base name, of two with one name only that of the directory
// that goes first, and none that a link to /dev/null masks.
func (n *Node) confFiles(folder string) ([]string, error) {
	files := map[string]string{}
	for _, dir := range []string{"/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"} {
		entries, err := n.Host.Root.ReadDir(path.Join(dir, folder))
		if absent(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			name, p := e.Name(), path.Join(dir, folder, e.Name())
			if _, known := files[name]; known || !strings.HasSuffix(name, ".conf") {
				continue
			}
			files[name] = p
			if target, err := n.Host.Root.Readlink(p); err == nil && (target == "/dev/null" || path.Join(path.Dir(p), target) == "/dev/null") {
				files[name] = ""
			}
		}
	}
	var out []string
	for _, name := range slices.Sorted(maps.Keys(files)) {
		if files[name] != "" {
			out = append(out, files[name])
		}
	}
	return out, nil
}

// confLine is a line of such a file that is no comment.
type confLine struct {
	text string
	file string // as it was found
	// place is FILE:LINE with the file's links followed: what an editor changes.
	place string
}

// confLines are the lines of all files of a folder, in order, and of the files that
// follow.
func (n *Node) confLines(folder string, more ...string) ([]confLine, error) {
	files, err := n.confFiles(folder)
	if err != nil {
		return nil, err
	}
	var out []confLine
	for _, p := range append(files, more...) {
		b, err := n.Host.Root.ReadFile(p)
		if absent(err) {
			continue // a link that leads nowhere
		}
		if err != nil {
			return nil, err
		}
		real, err := n.real(p)
		if err != nil {
			return nil, err
		}
		i := 0
		for line := range strings.Lines(string(b)) {
			i++
			if line = strings.TrimSpace(line); line != "" && line[0] != '#' && line[0] != ';' {
				out = append(out, confLine{line, p, fmt.Sprintf("%s:%d", real, i)})
			}
		}
	}
	return out, nil
}

const sysctlConf = "/etc/sysctl.conf"

// sysctlSetting is a line of sysctl.d(5).
type sysctlSetting struct {
	key      string // with slashes; a pattern where it has one
	value    string
	excluded bool // "-key": no pattern applies to it
	confLine
}

// sysctlSettings are what is set at boot, in order.
func (n *Node) sysctlSettings() ([]sysctlSetting, error) {
	return remember(n, "sysctl settings", func(context.Context) ([]sysctlSetting, error) {
		var more []string
		if n.Live && !n.Facts.SystemdInit {
			more = []string{sysctlConf} // of procps, which reads it last
		}
		lines, err := n.confLines("sysctl.d", more...)
		if err != nil {
			return nil, err
		}
		var settings []sysctlSetting
		for _, l := range lines {
			if s, ok := parseSysctl(l); ok {
				settings = append(settings, s)
			}
		}
		return settings, nil
	})
}

func parseSysctl(l confLine) (sysctlSetting, bool) {
	key, value, assigned := strings.Cut(l.text, "=")
	key, dashed := strings.CutPrefix(strings.TrimSpace(key), "-")
	if !assigned && !dashed {
		return sysctlSetting{}, false
	}
	return sysctlSetting{
		key: slashed(strings.TrimSpace(key)), value: strings.Join(strings.Fields(value), " "), excluded: !assigned, confLine: l,
	}, true
}

// persisted is what sets a key at the next boot, nil where nothing does: the last line
// that names it, else the last pattern that it matches.
func (n *Node) persisted(key string) (*sysctlSetting, error) {
	settings, err := n.sysctlSettings()
	if err != nil {
		return nil, err
	}
	key = slashed(key)
	var named, matched *sysctlSetting
	for i, s := range settings {
		if s.key == key {
			named = &settings[i]
		} else if ok, err := path.Match(s.key, key); err == nil && ok && !s.excluded {
			matched = &settings[i]
		}
	}
	switch {
	case named == nil:
		return matched, nil
	case named.excluded:
		return nil, nil
	}
	return named, nil
}

// persistLine is the shell line that makes a key have a value at the next boot: in a file
// of its own, which is read after the one that sets it now.
func (n *Node) persistLine(key, value string) string {
	file := "/etc/sysctl.d/95-node.conf"
	if s, err := n.persisted(key); err == nil && s != nil {
		base := path.Base(s.file)
		switch {
		case s.file == sysctlConf:
			file = sysctlConf
		case base >= "99-node.conf":
			file = "/etc/sysctl.d/" + strings.TrimSuffix(base, ".conf") + ".zz.conf"
		case base >= "95-node.conf":
			file = "/etc/sysctl.d/99-node.conf"
		}
	}
	return "echo " + quote(key+" = "+value) + " >> " + quote(n.onHost(file))
}

// setLines make a key have a value now and at the next boot.
func (n *Node) setLines(key, value string) string {
	now := "sysctl -w " + quote(key+"="+value)
	if s, err := n.persisted(key); err == nil && s != nil && sameValue(s.value, value) {
		return now
	}
	return now + "\n" + n.persistLine(key, value)
}

// sysctlPlace is what gives a key the value that it has: the line that set it at boot,
// else the key itself.
func (n *Node) sysctlPlace(key, value string) string {
	if s, err := n.persisted(key); err == nil && s != nil && sameValue(s.value, value) {
		return s.place
	}
	return sysctlPath(key)
}

// sameValue also holds for numbers that are written in two ways.
func sameValue(a, b string) bool {
	f, g := strings.Fields(a), strings.Fields(b)
	return slices.EqualFunc(f, g, func(a, b string) bool {
		x, err := strconv.ParseInt(a, 0, 64)
		y, err2 := strconv.ParseInt(b, 0, 64)
		return a == b || err == nil && err2 == nil && x == y
	})
}

// wantedSysctl is a setting that the node shall have.
type wantedSysctl struct {
	key, value string
	note       string // who wants it
	soft       bool   // the node gets along without it
}

const (
	ipForward  = "net.ipv4.ip_forward"
	ip6Forward = "net.ipv6.conf.all.forwarding"
)

// onlyIPv6 says whether the host has a way out by IPv6 and, loopback aside, no IPv4 at all.
func (n *Node) onlyIPv6() bool {
	if !n.Live {
		return false
	}
	routes, err := n.routes()
	if err != nil {
		return false
	}
	six := false
	for _, r := range routes {
		if r.iface == "lo" {
			continue
		}
		if r.to.Addr().Is4() {
			return false
		}
		six = six || r.to.Bits() == 0
	}
	return six
}

// wantedSysctls are the profile's. Without one it is what a kubelet or a bridge network
// that is configured here needs.
func (n *Node) wantedSysctls() ([]wantedSysctl, error) {
	var wanted []wantedSysctl
	if n.Spec != nil {
		for _, k := range slices.Sorted(maps.Keys(n.Spec.Sysctl)) {
			wanted = append(wanted, wantedSysctl{key: k, value: n.Spec.Sysctl[k], note: "the profile wants it"})
		}
		return wanted, nil
	}
	k, err := n.Kubelet()
	if err != nil {
		return nil, err
	}
	if k != nil {
		key := ipForward
		if n.onlyIPv6() {
			key = ip6Forward
		}
		return []wantedSysctl{{key: key, value: "1", note: "the network of pods is forwarded"}}, nil
	}
	conf, err := n.bridgeNetwork()
	if conf != "" {
		wanted = []wantedSysctl{{ipForward, "1", conf + " has a bridge network, whose plugin turns it on with the first container only", true}}
	}
	return wanted, err
}

// bridgeNetwork is a CNI configuration with the bridge plugin, "" is none.
func (n *Node) bridgeNetwork() (string, error) {
	const dir = "/etc/cni/net.d"
	entries, err := n.Host.Root.ReadDir(dir)
	if absent(err) {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, e := range entries {
		p := path.Join(dir, e.Name())
		if !slices.Contains([]string{".conflist", ".conf", ".json"}, path.Ext(p)) {
			continue
		}
		b, err := n.Host.Root.ReadFile(p)
		if err != nil {
			if absent(err) {
				continue
			}
			return "", err
		}
		type plugin struct{ Type string }
		var conf struct {
			plugin
			Plugins []plugin
		}
		// What is wrong with a file is not for this check to say.
		if json.Unmarshal(b, &conf) == nil && slices.Contains(append(conf.Plugins, conf.plugin), plugin{"bridge"}) {
			return p, nil
		}
	}
	return "", nil
}

// bridgeKey reports whether a key is there only with br_netfilter.
func bridgeKey(key string) bool { return strings.HasPrefix(slashed(key), "net/bridge/") }

func sysctls(_ context.Context, n *Node) []Result {
	wanted, err := n.wantedSysctls()
	if err != nil {
		return unknown(err)
	}
	if len(wanted) == 0 {
		return pass("no setting is wanted: no profile, no kubelet and no bridge network")
	}
	var faults []Result
	for _, w := range wanted {
		value, err := n.Sysctl(w.key)
		r := Result{Verdict: Fail, Object: w.key, Observed: value, Wanted: w.value, Note: w.note}
		switch {
		case absent(err):
			r.Observed, r.Place, r.Remedy = "this kernel has no such setting", sysctlPath(w.key), n.missingKeyRemedy(w)
		case err != nil:
			r.Verdict, r.Observed = Unknown, err.Error()
		case sameValue(value, w.value):
			continue
		default:
			r.Place, r.Remedy = n.sysctlPlace(w.key, value), n.setLines(w.key, w.value)
			if w.soft {
				r.Verdict = Warn
			}
		}
		faults = append(faults, r)
	}
	return orPass(faults, "%s", countText(len(wanted), "setting is", "settings are")+" in force")
}

// missingKeyRemedy loads the module that brings a setting.
func (n *Node) missingKeyRemedy(w wantedSysctl) string {
	for _, m := range []struct{ prefix, module string }{
		{"net/bridge/", "br_netfilter"}, {"net/netfilter/nf_conntrack", "nf_conntrack"}, {"net/nf_conntrack", "nf_conntrack"}, {"net/ipv4/vs/", "ip_vs"},
	} {
		if strings.HasPrefix(slashed(w.key), m.prefix) {
			return "modprobe " + m.module + " && " + n.loadLine(m.module) + "\nsysctl -w " + quote(w.key+"="+w.value)
		}
	}
	return "# take " + w.key + " out of the profile, or boot a kernel that has it"
}

func countText(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return strconv.Itoa(n) + " " + many
}

func sysctlsPersisted(_ context.Context, n *Node) []Result {
	wanted, err := n.wantedSysctls()
	if err != nil {
		return unknown(err)
	}
	if len(wanted) == 0 {
		return pass("no setting is wanted: no profile, no kubelet and no bridge network")
	}
	var faults []Result
	left := 0
	for _, w := range wanted {
		if n.Live {
			// Where the value is wrong now, too, it is one fault, with one remedy for both.
			now, err := n.Sysctl(w.key)
			if err != nil || !sameValue(now, w.value) {
				left++
				continue
			}
		}
		s, err := n.persisted(w.key)
		if err != nil {
			return unknown(err)
		}
		r := Result{Verdict: Fail, Object: w.key, Wanted: w.value, Note: "it is right until the next boot"}
		if !n.Live {
			r.Note = ""
		}
		switch {
		case s == nil:
			r.Observed, r.Place = "no file sets it", "/etc/sysctl.d"
			if n.Spec == nil {
				// systemd-networkd, dockerd, ufw and others set it once they run.
				r.Verdict = Warn
				if n.Live {
					r.Note = "a program set it, and may do so at each boot"
				}
			}
		case !sameValue(s.value, w.value):
			r.Observed, r.Place = s.value+" after the next boot", s.place
		default:
			continue
		}
		if w.soft {
			r.Verdict = Warn
		}
		r.Remedy = n.persistLine(w.key, w.value)
		faults = append(faults, r)
	}
	if len(faults) == 0 && left == len(wanted) {
		return skip("kernel/sysctl says what is wrong")
	}
	results := orPass(faults, "%s", countText(len(wanted)-left, "setting is", "settings are")+" set at boot, and no later file sets another value")
	if len(faults) == 0 {
		results[0].Note = n.procpsNote(wanted)
	}
	return results
}

// procpsNote is about /etc/sysctl.conf, which systemd reads only by a link in sysctl.d and
// sysctl(8) always, last.
func (n *Node) procpsNote(wanted []wantedSysctl) string {
	b, err := n.Host.Root.ReadFile(sysctlConf)
	if err != nil {
		return ""
	}
	for line := range strings.Lines(string(b)) {
		s, ok := parseSysctl(confLine{text: strings.TrimSpace(line)})
		for _, w := range wanted {
			if ok && !s.excluded && s.key == slashed(w.key) && !sameValue(s.value, w.value) {
				return fmt.Sprintf("%s has %s = %s: \"sysctl --system\" would set that, last of all", sysctlConf, w.key, s.value)
			}
		}
	}
	return ""
}

// sysctlOrdering is about settings that exist only once br_netfilter is loaded: at boot
// they are set before anything but modules-load.d loads it.
func sysctlOrdering(_ context.Context, n *Node) []Result {
	settings, err := n.sysctlSettings()
	if err != nil {
		return unknown(err)
	}
	var first *sysctlSetting
	for i, s := range settings {
		if bridgeKey(s.key) && !s.excluded {
			first = &settings[i]
			break
		}
	}
	if first == nil {
		return pass("no file sets a setting of br_netfilter")
	}
	switch state, err := n.ModuleState("br_netfilter"); {
	case errors.Is(err, errNoKernel):
	case err != nil:
		return unknown(err)
	case state == ModuleBuiltin:
		return pass("br_netfilter is part of the kernel")
	}
	loaded, err := n.modulesLoad()
	if err != nil {
		return unknown(err)
	}
	if at, ok := loaded["br_netfilter"]; ok {
		return pass("%s loads br_netfilter before %s is read", at, path.Base(first.file))
	}
	if n.Spec != nil && slices.Contains(n.Spec.Modules, "br_netfilter") {
		return skip("kernel/modules-persisted says that nothing loads br_netfilter")
	}
	return []Result{{
		Verdict: Fail, Object: strings.ReplaceAll(first.key, "/", "."), Observed: "set at boot while br_netfilter is not loaded: it is lost",
		Wanted: "br_netfilter in /etc/modules-load.d", Place: first.place,
		Remedy: n.loadLine("br_netfilter"),
	}}
}

// atLeast is a check of keys that shall not be below a number.
func (n *Node) atLeast(key string, least int64, observed *[]string) ([]Result, error) {
	v, err := n.sysctlNumber(key)
	if absent(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	*observed = append(*observed, fmt.Sprintf("%s %d", key, v))
	if v >= least {
		return nil, nil
	}
	return []Result{{
		Verdict: Fail, Object: key, Observed: strconv.FormatInt(v, 10), Wanted: fmt.Sprintf("%d or more", least),
		Place: n.sysctlPlace(key, strconv.FormatInt(v, 10)), Remedy: n.setLines(key, strconv.FormatInt(least, 10)),
	}}, nil
}

// minimum is a number that a key shall have, or more.
type minimum struct {
	key   string
	least int64
}

// minima is a check of several such numbers; it is about one thing.
func minima(n *Node, minima ...minimum) []Result {
	var faults []Result
	var observed []string
	for _, m := range minima {
		r, err := n.atLeast(m.key, m.least, &observed)
		if err != nil {
			return unknown(err)
		}
		faults = append(faults, r...)
	}
	if len(observed) == 0 {
		return unknown(fmt.Errorf("%s: %w", sysctlPath(minima[0].key), fs.ErrNotExist))
	}
	return orPass(faults, "%s", strings.Join(observed, ", "))
}
