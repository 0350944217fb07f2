package checks

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/systemd"
)

// These are about the unit itself: whether it is there, comes up, and where it comes from.

func unitLoaded(n *Node, s *service) []Result {
	switch s.LoadState {
	case "loaded":
		return []Result{{Verdict: Pass, Observed: "loaded", Place: s.FragmentPath}}
	case "not-found", "":
		return unitMissing(n)
	case "masked":
		return unitMasked(n, s)
	}
	if files := n.unitFiles(systemd.UnitName); len(files) > 0 && !n.exists(files[0]) {
		return unitMissing(n)
	}
	r := Result{Verdict: Fail, Observed: s.LoadState, Wanted: "loaded", Place: s.FragmentPath}
	if s.LoadError != "" {
		r.Observed += ": " + s.LoadError
	}
	commands := systemd.Commands(s.fragments, "ExecStart")
	switch program := n.anyProgram(commands); {
	case s.LoadState == "bad-setting" && s.unread == nil && len(commands) != 1 && program != "":
		// The setting without which no service loads: none, or more than one.
		r.Place = s.where("Service", "ExecStart")
		r.Note = fmt.Sprintf("its files have %d commands in ExecStart=", len(commands))
		r.Remedy = n.override(s, "Service", "ExecStart=", "ExecStart="+program)
	default:
		r.Remedy = "# repair the line that this names:\nsystemd-analyze verify " + quote(n.onHost(r.Place)) + n.reload()
	}
	return []Result{r}
}

func unitMissing(n *Node) []Result {
	if n.nothing() {
		return skip("no containerd is installed here")
	}
	if docker := n.dockersOwn(); docker != "" {
		return skip("%s starts a containerd of its own, and nothing else needs one here", docker)
	}
	r := Result{Verdict: Fail, Observed: "no containerd.service", Wanted: "containerd.service", Place: systemd.UnitPath}
	if files := n.unitFiles(systemd.UnitName); len(files) > 0 && !n.masks(files[0]) {
		r.Observed, r.Place, r.Remedy = "systemd has not read "+files[0], files[0], "systemctl daemon-reload"
		if !n.exists(files[0]) {
			r.Observed, r.Remedy = files[0]+" is a link that leads nowhere", "rm "+quote(n.onHost(files[0]))+n.reload()
			if len(files) == 1 {
				r.Remedy += "\n" + n.reinstall()
			}
		}
		return []Result{r}
	}
	r.Remedy = n.reinstall()
	return []Result{r}
}

// dockersOwn is the dockerd of a host whose only containerd is what dockerd starts by
// itself, as Docker's static binaries do; "" on other hosts.
func (n *Node) dockersOwn() string {
	if n.unitSpec() != nil || n.Receipt != nil || len(n.unitFiles(systemd.UnitName)) > 0 {
		return ""
	}
	if k, err := n.Kubelet(); err != nil || k != nil {
		return ""
	}
	for _, p := range n.there("/usr/bin/dockerd", "/usr/sbin/dockerd", "/usr/local/bin/dockerd") {
		return p
	}
	return ""
}

// reinstall are the lines that bring back what is missing of containerd.
func (n *Node) reinstall() string {
	if n.unitSpec() != nil || n.Receipt != nil {
		return n.reapply(false)
	}
	return "# install the package that has it again, or provision the node with nodeprep apply"
}

func unitMasked(n *Node, s *service) []Result {
	r := Result{Verdict: Fail, Observed: "masked", Wanted: "loaded", Place: s.FragmentPath}
	files := n.unitFiles(systemd.UnitName)
	for _, f := range files {
		if !n.masks(f) {
			continue
		}
		r.Place = f
		if target, err := n.Host.Root.Readlink(f); err == nil {
			r.Observed = fmt.Sprintf("masked: %s is a link to %s", f, target)
		} else {
			r.Observed = fmt.Sprintf("masked: %s is empty", f)
		}
		break
	}
	switch dir := path.Dir(r.Place); {
	case !n.Live:
		r.Remedy = "rm " + quote(n.onHost(r.Place))
	case dir == "/etc/systemd/system":
		r.Remedy = "systemctl unmask " + systemd.UnitName
	case dir == "/run/systemd/system":
		r.Remedy = "systemctl unmask --runtime " + systemd.UnitName
	default:
		r.Remedy = "rm " + quote(r.Place) + n.reload()
	}
	// A unit file that the mask stands in the place of is gone.
	if behind := slices.DeleteFunc(files, n.masks); len(behind) == 0 {
		r.Remedy += "\n" + n.reinstall()
	}
	return []Result{r}
}

func unitFragment(n *Node, s *service) []Result {
	files := n.unitFiles(systemd.UnitName)
	hidden := slices.DeleteFunc(slices.Clone(files), func(p string) bool { return n.sameFile(p, s.FragmentPath) })
	r := Result{Verdict: Pass, Observed: s.FragmentPath, Place: s.FragmentPath}
	switch {
	case n.unitSpec() != nil && !n.sameFile(s.FragmentPath, systemd.UnitPath):
		r.Verdict, r.Wanted = Warn, systemd.UnitPath
		r.Remedy = "# not nodeprep's: give it up, or take the node over with nodeprep apply --adopt\nmv " + quote(n.onHost(s.FragmentPath)) + " " + quote(n.onHost(s.FragmentPath)+".off") + n.reload()
		if !n.exists(systemd.UnitPath) {
			r.Remedy += "\n" + n.reinstall()
		}
	case len(hidden) > 0:
		r.Verdict, r.Wanted = Warn, "one containerd.service"
		r.Observed = s.FragmentPath + " hides " + strings.Join(hidden, " and ")
		r.Place, r.Note = hidden[0], "systemd reads only the first; who changes the other changes nothing"
		r.Remedy = "# whose it is, to be removed if it is not needed:\ndpkg -S " + quote(n.onHost(hidden[0])) + " || rpm -qf " + quote(n.onHost(hidden[0]))
	}
	return []Result{r}
}

// sameFile holds for two paths of one file, through links.
func (n *Node) sameFile(a, b string) bool {
	x, errX := n.Host.Root.Resolve(a)
	y, errY := n.Host.Root.Resolve(b)
	return a == b || errX == nil && errY == nil && x == y
}

// ownDropIn holds for those that nodeprep writes, and that its remedies have written.
func ownDropIn(p string) bool {
	base := path.Base(p)
	return p == systemd.EnvironmentPath || p == systemd.ProxyPath ||
		path.Dir(p)+"/" == dropInDir && (strings.HasPrefix(base, "zz-nodeprep-") || strings.HasSuffix(base, "_nodeprep.conf"))
}

// harmless are settings that a drop-in may well add: what describes the unit, what the
// daemon's environment is, and what only adds to a list of dependencies.
func harmless(a systemd.Assignment) bool {
	switch a.Section {
	case "Unit":
		return slices.Contains([]string{"Description", "Documentation", "After", "Before", "Wants"}, a.Key)
	case "Service":
		return slices.Contains([]string{"Environment", "EnvironmentFile", "PassEnvironment", "UnsetEnvironment"}, a.Key)
	}
	return true
}

func unitDropIns(n *Node, s *service) []Result {
	if s.unread != nil {
		return unknown(s.unread)
	}
	var faults []Result
	unit := slices.IndexFunc(s.fragments, func(f systemd.Fragment) bool { return f.Path == s.FragmentPath })
	seen := 0
	for i, f := range s.fragments {
		if i == unit {
			continue
		}
		seen++
		if ownDropIn(f.Path) {
			continue
		}
		var sets []string
		line := 0
		for _, a := range f.Assignments() {
			if last, _, _ := systemd.Deciding(s.fragments[i:i+1], a.Section, a.Key); harmless(a) || last.Line != a.Line {
				continue
			}
			before := "nothing"
			if unit >= 0 {
				if was, _, set := systemd.Deciding(s.fragments[unit:unit+1], a.Section, a.Key); set {
					before = a.Key + "=" + was.Value
				}
			}
			if said := a.Key + "=" + a.Value; said != before {
				sets = append(sets, said+" over "+before)
				if line == 0 {
					line = a.Line
				}
			}
		}
		if len(sets) > 0 {
			faults = append(faults, Result{
				Verdict: Warn, Object: f.Path, Observed: "sets " + strings.Join(sets, ", "), Wanted: "what the unit file says",
				Place: fmt.Sprintf("%s:%d", f.Path, line), Remedy: n.dropRemedy(f.Path),
			})
		}
	}
	return orPass(faults, "%d drop-ins, none changes how the unit runs", seen)
}

func (n *Node) dropRemedy(p string) string {
	return "# if nobody needs it; its new name keeps systemd from reading it:\n" + n.putAside(p) + n.reload()
}

func unitEnabled(n *Node, s *service) []Result {
	r := Result{Verdict: Pass, Observed: s.UnitFileState, Place: s.FragmentPath}
	by := slices.Concat(s.WantedBy, s.RequiredBy, s.UpheldBy, s.BoundBy)
	slices.Sort(by)
	by = slices.DeleteFunc(slices.Compact(by), func(u string) bool { return u == "" })
	enable := "systemctl enable " + systemd.UnitName
	if !n.Live {
		enable = "systemctl --root=" + quote(n.Host.Root.Dir()) + " enable " + systemd.UnitName
	}
	switch s.UnitFileState {
	case "enabled", "alias", "generated":
		return []Result{r}
	case "":
		r.Observed = "unknown to systemd"
	case "static", "indirect":
		// No [Install] section of its own: another unit has to name it.
		if len(by) > 0 {
			r.Observed += ", started by " + strings.Join(by, " ")
			return []Result{r}
		}
		enable = strings.Replace(enable, "enable ", "add-wants multi-user.target ", 1)
	case "enabled-runtime":
		r.Note = "until the next boot only"
	default:
		if i := slices.IndexFunc(by, n.comesUp); i >= 0 {
			r.Observed += ", started by " + strings.Join(by, " ")
			r.Note = by[i] + " has it started at boot, which disabling the unit does not change"
			return []Result{r}
		}
		if len(by) > 0 {
			r.Verdict, r.Wanted, r.Remedy = Warn, "enabled", enable
			r.Observed += ", started by " + strings.Join(by, " ")
			return []Result{r}
		}
	}
	r.Verdict, r.Wanted, r.Remedy = Fail, "enabled", enable
	return []Result{r}
}

// comesUp holds for a unit that is itself started at boot, as far as systemd tells.
func (n *Node) comesUp(unit string) bool {
	if path.Ext(unit) == ".target" {
		return true
	}
	if !n.Live {
		_, state := n.wantedBy(unit)
		return state == "enabled" || state == "static"
	}
	p, err := n.Unit(unit)
	return err == nil && slices.Contains([]string{"enabled", "alias", "generated"}, p.UnitFileState)
}

func unitActive(_ *Node, s *service) []Result {
	if s.ActiveState == "active" || s.ActiveState == "reloading" {
		return pass("%s/%s", s.ActiveState, s.SubState)
	}
	return []Result{{
		Verdict: Fail, Observed: s.Explain(), Wanted: "active", Place: systemd.UnitName,
		// Not restart, which ends what a daemon that is half up left running.
		Remedy: fmt.Sprintf("journalctl -u %[1]s -n 50 --no-pager\nsystemctl reset-failed %[1]s\nsystemctl start %[1]s", systemd.UnitName),
	}}
}

func unitRestarts(_ *Node, s *service) []Result {
	if s.NRestarts == 0 {
		return pass("none since it was last started by hand or at boot")
	}
	return []Result{{
		Verdict: Warn, Observed: fmt.Sprintf("restarted by systemd %d times", s.NRestarts), Wanted: "0", Place: systemd.UnitName,
		Remedy: fmt.Sprintf("journalctl -u %[1]s -n 100 --no-pager\n# once the reason is known, to count anew:\nsystemctl reset-failed %[1]s", systemd.UnitName),
	}}
}

func unitDaemonReload(n *Node, s *service) []Result {
	place, what := n.changedFile(s)
	if place == "" {
		return pass("systemd has read the files as they are")
	}
	return []Result{{
		Verdict: Fail, Observed: what, Wanted: "what is on the disk in force", Place: place, Remedy: "systemctl daemon-reload",
		Note: strings.Join(n.pending(s), ", "),
	}}
}

// pending are the settings that the next reload changes.
func (n *Node) pending(s *service) []string {
	var differ []string
	if now, err := n.unitOnDisk(); err == nil {
		for _, c := range []struct{ name, is, becomes string }{
			{"KillMode", s.KillMode, now.KillMode},
			{"Delegate", yesNo(s.Delegate), yesNo(now.Delegate)},
			{"OOMScoreAdjust", fmt.Sprint(s.OOMScoreAdjust), fmt.Sprint(now.OOMScoreAdjust)},
			{"Type", s.Type, now.Type},
			{"Restart", s.Restart, now.Restart},
			{"ExecStart", commands(s.Properties), commands(now)},
		} {
			if c.is != c.becomes {
				differ = append(differ, fmt.Sprintf("%s %s becomes %s", c.name, c.is, c.becomes))
			}
		}
	}
	return differ
}

// unitOnDisk is what the unit will be once systemd has read its files.
func (n *Node) unitOnDisk() (systemd.Properties, error) {
	paths, err := n.searchFragments(systemd.UnitName)
	if err != nil {
		return systemd.Properties{}, err
	}
	var fragments []systemd.Fragment
	for _, p := range paths {
		content, err := n.Host.Root.ReadFile(p)
		if absent(err) {
			continue // a link that leads nowhere
		}
		if err != nil {
			return systemd.Properties{}, err
		}
		fragments = append(fragments, systemd.Fragment{Path: p, Content: content})
	}
	return n.fromFiles(systemd.UnitName, fragments)
}

// changedFile is a file that systemd has not read as it is, "" where there is none.
// NeedDaemonReload alone does not tell: it knows nothing of a unit file that is new and
// has precedence, nor of drop-ins in a folder that was not there at the last reload.
func (n *Node) changedFile(s *service) (place, what string) {
	read := append([]string{s.FragmentPath}, s.DropInPaths...)
	there, err := n.searchFragments(systemd.UnitName)
	if err == nil {
		for _, p := range there {
			// Older systemds read no drop-ins for all services.
			ours := slices.Contains(n.unitFiles(systemd.UnitName), p) || path.Base(path.Dir(p)) == systemd.UnitName+".d"
			if ours && n.exists(p) && !slices.ContainsFunc(read, func(q string) bool { return n.sameFile(p, q) }) {
				return p, "systemd has not read " + p
			}
		}
	}
	newest, dangling := s.FragmentPath, false
	for _, p := range read {
		if p == "" {
			continue
		}
		if _, err := n.Host.Root.Lstat(p); absent(err) {
			return p, p + " is gone and in force"
		}
		dangling = dangling || !n.exists(p)
		a, errA := n.Host.Root.Stat(p)
		b, errB := n.Host.Root.Stat(newest)
		if errA == nil && (errB != nil || a.ModTime().After(b.ModTime())) {
			newest = p
		}
	}
	// Of a link that leads nowhere systemd says for ever that it was changed since.
	if !s.NeedDaemonReload || dangling && len(n.pending(s)) == 0 {
		return "", ""
	}
	return newest, newest + " was changed since systemd read it"
}

func commands(p systemd.Properties) string {
	var out []string
	for _, argv := range p.ExecStart {
		out = append(out, strings.Join(argv, " "))
	}
	return strings.Join(out, "; ")
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
