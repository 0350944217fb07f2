package checks

import (
	"context"
	"errors"
	"path"
	"slices"
	"strings"
)

// wantedModules are the profile's, and what the snapshotter of the containerd that is here
// needs.
func (n *Node) wantedModules() []string {
	var wanted []string
	here := n.DaemonBinary() != ""
	if n.Spec != nil {
		wanted = slices.Clone(n.Spec.Modules)
		here = here || n.Spec.Containerd.Installed()
	}
	if s, _ := n.snapshotter(); here && s == "overlayfs" && !slices.Contains(wanted, "overlay") {
		wanted = append(wanted, "overlay")
	}
	return wanted
}

// modulesLoad are the modules that are loaded at boot because a file or the kernel command
// line says so (modules-load.d(5), systemd-modules-load.service(8)), and what says so.
func (n *Node) modulesLoad() (map[string]string, error) {
	return remember(n, "modules-load", func(context.Context) (map[string]string, error) {
		lines, err := n.confLines("modules-load.d")
		if err != nil {
			return nil, err
		}
		loaded := map[string]string{}
		for _, l := range lines {
			if name := moduleName(l.text); loaded[name] == "" {
				loaded[name] = l.place
			}
		}
		if !n.Live {
			return loaded, nil
		}
		words, err := n.Cmdline()
		if err != nil && !absent(err) {
			return nil, err
		}
		for _, w := range words {
			for _, option := range []string{"modules_load=", "modules-load="} {
				if list, ok := strings.CutPrefix(w, option); ok {
					for name := range strings.SplitSeq(list, ",") {
						if name = moduleName(name); loaded[name] == "" {
							loaded[name] = "/proc/cmdline"
						}
					}
				}
			}
		}
		return loaded, nil
	})
}

func modules(_ context.Context, n *Node) []Result {
	wanted := n.wantedModules()
	if len(wanted) == 0 {
		return pass("no module is wanted")
	}
	loads, err := n.modulesLoad()
	if err != nil {
		return unknown(err)
	}
	release, err := n.KernelRelease()
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	for _, name := range wanted {
		state, err := n.ModuleState(name)
		r := Result{Verdict: Fail, Object: name, Wanted: "loaded or part of the kernel", Place: loads[moduleName(name)]}
		switch {
		case err != nil:
			return unknown(err)
		case state.InEffect():
			continue
		case state == ModuleMissing:
			r.Observed, r.Place = "not in kernel "+release, "/lib/modules/"+release
			r.Remedy = n.modulesRemedy(release) + "\nmodprobe " + quote(name)
		default:
			r.Observed, r.Remedy = "not loaded", "modprobe "+quote(name)
			if r.Place == "" {
				r.Place = "/sys/module/" + moduleName(name)
			}
			b, err := n.blockedModule(name)
			if err == nil && b.load != "" {
				r.Note, r.Remedy = b.what, b.load
				break
			}
			// The kernel loads a filesystem when it is first mounted.
			if _, err := n.Process(); name == "overlay" && errors.Is(err, errNoProcess) {
				r.Verdict, r.Note = Warn, "containerd's unit, or its first mount, loads it"
			}
		}
		faults = append(faults, r)
	}
	return orPass(faults, "%s", strings.Join(wanted, ", ")+": in effect")
}

func modulesPersisted(_ context.Context, n *Node) []Result {
	wanted := n.wantedModules()
	if len(wanted) == 0 {
		return pass("no module is wanted")
	}
	loads, err := n.modulesLoad()
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	var by []string
	for _, name := range wanted {
		state, err := n.ModuleState(name)
		switch {
		case errors.Is(err, errNoKernel):
		case err != nil:
			return unknown(err)
		case state == ModuleBuiltin:
			by = append(by, name+" is part of the kernel")
			continue
		}
		if at := loads[moduleName(name)]; at != "" {
			by = append(by, at+" loads "+name)
			continue
		}
		if at := n.unitLoads(name); at != "" {
			by = append(by, at+" loads "+name)
			continue
		}
		faults = append(faults, Result{
			Verdict: Fail, Object: name, Observed: "nothing loads it at boot", Wanted: "a line in /etc/modules-load.d", Place: "/etc/modules-load.d",
			Remedy: n.loadLine(name),
		})
	}
	return orPass(faults, "%s", strings.Join(by, ", "))
}

// loadLine is the shell line that makes a module be loaded at boot.
func (n *Node) loadLine(module string) string {
	file := "/etc/modules-load.d/" + module + ".conf"
	// What would be written through a link to /dev/null is lost.
	if _, err := n.Host.Root.Readlink(file); err == nil {
		file = "/etc/modules-load.d/node-" + module + ".conf"
	}
	return "echo " + quote(module) + " > " + quote(n.onHost(file))
}

// unitLoads is the line of containerd.service that loads a module before the daemon is
// started, as upstream's unit does with overlay; "" is none.
func (n *Node) unitLoads(module string) string {
	unit := n.unitFile("containerd.service")
	if unit == "" {
		return ""
	}
	lines, err := n.lines(unit)
	if err != nil {
		return ""
	}
	for _, l := range lines {
		f := strings.Fields(l.text)
		if strings.HasPrefix(l.text, "ExecStartPre=") && len(f) > 1 && path.Base(f[0]) == "modprobe" && slices.Contains(f[1:], module) {
			return l.place
		}
	}
	return ""
}

// blocked is what keeps a module from being loaded.
type blocked struct {
	what, place, remedy string
	load                string // what loads it now, "" where modprobe does
}

// blockedModule looks for lines of modprobe.d(5) and words of the kernel command line
// that keep a module from being loaded, now or at boot.
func (n *Node) blockedModule(name string) (blocked, error) {
	lines, err := n.confLines("modprobe.d")
	if err != nil {
		return blocked{}, err
	}
	name = moduleName(name)
	for _, l := range lines {
		f := strings.Fields(l.text)
		if len(f) < 2 || moduleName(f[1]) != name {
			continue
		}
		file, line := cutPlace(l.place)
		remedy := "sed -i " + quote(line+"s/^/#/") + " " + quote(n.onHost(file))
		switch {
		case f[0] == "blacklist":
			return blocked{"\"" + l.text + "\": it is not loaded at boot", l.place, remedy, ""}, nil
		case f[0] == "install" && len(f) > 2 && slices.Contains([]string{"false", "true", ":"}, path.Base(f[2])):
			return blocked{"\"" + l.text + "\": modprobe does nothing", l.place, remedy, "modprobe --ignore-install " + quote(name)}, nil
		}
	}
	if !n.Live {
		return blocked{}, nil
	}
	words, err := n.Cmdline()
	if err != nil && !absent(err) {
		return blocked{}, err
	}
	for _, w := range words {
		option, list, _ := strings.Cut(w, "=")
		if option != "module_blacklist" && option != "modprobe.blacklist" && option != "rd.driver.blacklist" {
			continue
		}
		if !slices.ContainsFunc(strings.Split(list, ","), func(m string) bool { return moduleName(m) == name }) {
			continue
		}
		edit := n.editCmdline(func(word string) string { return withoutItem(word, option, name) })
		b := blocked{"\"" + w + "\" on the kernel command line: it is not loaded", edit.place, edit.remedy, ""}
		if option == "module_blacklist" {
			b.load = edit.remedy // the kernel itself refuses it
		}
		return b, nil
	}
	return blocked{}, nil
}

// cutPlace splits FILE:LINE.
func cutPlace(place string) (file, line string) {
	i := strings.LastIndexByte(place, ':')
	return place[:i], place[i+1:]
}

func modulesBlacklisted(_ context.Context, n *Node) []Result {
	wanted := n.wantedModules()
	if len(wanted) == 0 {
		return pass("no module is wanted")
	}
	var faults []Result
	for _, name := range wanted {
		if state, err := n.ModuleState(name); err == nil && state == ModuleBuiltin {
			continue // nothing keeps it out
		}
		b, err := n.blockedModule(name)
		if err != nil {
			return unknown(err)
		}
		if b.what != "" {
			faults = append(faults, Result{Verdict: Fail, Object: name, Observed: b.what, Wanted: "nothing that keeps it out", Place: b.place, Remedy: b.remedy})
		}
	}
	return orPass(faults, "nothing keeps %s out", strings.Join(wanted, ", "))
}

func brNetfilter(_ context.Context, n *Node) []Result {
	wanted, err := n.wantedSysctls()
	if err != nil {
		return unknown(err)
	}
	var key wantedSysctl
	for _, w := range wanted {
		if bridgeKey(w.key) {
			key = w
			break
		}
	}
	if key.key == "" {
		return pass("no setting of br_netfilter is wanted")
	}
	if n.exists("/proc/sys/net/bridge") {
		return pass("/proc/sys/net/bridge is there")
	}
	state, err := n.ModuleState("br_netfilter")
	if err != nil {
		return unknown(err)
	}
	r := Result{Verdict: Fail, Object: "br_netfilter", Observed: "not loaded", Wanted: key.key + " = " + key.value, Place: "/proc/sys/net/bridge"}
	r.Remedy = "modprobe br_netfilter && " + n.loadLine("br_netfilter")
	for _, w := range wanted {
		if bridgeKey(w.key) {
			r.Remedy += "\nsysctl -w " + quote(w.key+"="+w.value)
		}
	}
	if state == ModuleMissing {
		release, err := n.KernelRelease()
		if err != nil {
			return unknown(err)
		}
		r.Observed, r.Remedy = "not in kernel "+release, n.modulesRemedy(release)+"\n"+r.Remedy
	}
	return []Result{r}
}

// overlay is about the module alone; what its files lie on is another matter.
func overlay(_ context.Context, n *Node) []Result {
	if s, place := n.snapshotter(); s != "overlayfs" {
		return []Result{{Verdict: Pass, Observed: "the snapshotter is " + s + ", which does not use it", Place: place}}
	}
	kernels, err := n.Kernels()
	if errors.Is(err, errNoKernel) {
		return skip("%v", err)
	}
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	var states []string
	for _, release := range kernels {
		state, err := n.moduleIn(release, "overlay")
		if err != nil {
			return unknown(err)
		}
		states = append(states, string(state)+" in "+release)
		if state == ModuleMissing {
			faults = append(faults, Result{
				Verdict: Fail, Object: "overlay", Observed: "neither part of kernel " + release + " nor among its modules", Wanted: "builtin, loaded or loadable",
				Place: "/lib/modules/" + release, Remedy: n.modulesRemedy(release),
			})
		}
	}
	return orPass(faults, "%s", strings.Join(states, ", "))
}
