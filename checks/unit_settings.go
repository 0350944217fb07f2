package checks

import (
	"cmp"
	"fmt"
	"net/url"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// These are about single settings of the unit that are in force.

// Kubelets give a guaranteed pod's containers -997, so that is what must not be reached
// (kubernetes pkg/kubelet/qos/policy.go).
const (
	stockOOMScore     = -999
	protectedOOMScore = -998
)

func unitOOMScore(n *Node, s *service) []Result {
	wanted := stockOOMScore
	good := func(score int) bool { return score <= protectedOOMScore }
	if p := n.unitSpec(); p != nil {
		wanted = p.OOMScoreAdjust
		good = func(score int) bool { return score == wanted }
	}
	r := Result{Verdict: Pass, Observed: strconv.Itoa(s.OOMScoreAdjust), Place: s.where("Service", "OOMScoreAdjust")}
	if good(s.OOMScoreAdjust) {
		return []Result{r}
	}
	if score, by := n.effectiveOOMScore(s); by != "" && good(score) {
		r.Note = fmt.Sprintf("%s makes it %d, which counts", by, score)
		return []Result{r}
	}
	r.Verdict, r.Wanted = Fail, strconv.Itoa(wanted)
	r.Observed += s.unset("Service", "OOMScoreAdjust")
	r.Remedy = n.repair(s, "Service", fmt.Sprintf("OOMScoreAdjust=%d", wanted))
	if s.MainPID != 0 {
		// The same for the daemon that runs, without a restart.
		r.Remedy += fmt.Sprintf("\necho %d > /proc/%d/oom_score_adj", wanted, s.MainPID)
	}
	return []Result{r}
}

// effectiveOOMScore is what the daemon has in place of what its unit says, and what makes
// it so: oom_score in its config or, where that cannot be read, or the unit starts another
// program that starts the daemon, the value that it runs with. by is "" where the unit's
// counts.
func (n *Node) effectiveOOMScore(s *service) (score int, by string) {
	c, err := n.Config()
	unread := err != nil || len(c.Faults) > 0
	if err == nil {
		if v, at := c.OOMScore(); v != 0 {
			return v, at.String()
		}
	}
	raw, _, errRaw := n.ExecStart()
	argv, errArgv := n.unwrap(raw)
	wraps := errRaw == nil && (errArgv != nil || len(argv) != len(raw))
	if (unread || wraps) && s.MainPID != 0 {
		if v, gone, err := n.oomScore(s.MainPID); err == nil && !gone && v < s.OOMScoreAdjust {
			return v, ofProcess(s.MainPID, "oom_score_adj")
		}
	}
	return s.OOMScoreAdjust, ""
}

func unitDelegate(n *Node, s *service) []Result {
	r := Result{Verdict: Pass, Observed: yesNo(s.Delegate), Place: s.where("Service", "Delegate")}
	if p := n.unitSpec(); !s.Delegate && (p == nil || p.Delegate) {
		r.Verdict, r.Wanted = Fail, "yes"
		r.Observed += s.unset("Service", "Delegate")
		r.Remedy = n.repair(s, "Service", "Delegate=yes")
		return []Result{r}
	}
	// A list hands down these and no others; an empty one cannot be told from an older
	// systemd, which has no such property.
	if given := s.DelegateControllers; s.Delegate && len(given) > 0 {
		lacking := slices.DeleteFunc([]string{"cpu", "memory", "pids"}, func(c string) bool { return slices.Contains(given, c) })
		if len(lacking) > 0 {
			r.Verdict, r.Wanted = Warn, "yes: all controllers"
			r.Observed = strings.Join(given, " ") + ", without " + strings.Join(lacking, ", ")
			r.Remedy = n.repair(s, "Service", "Delegate=yes")
		}
	}
	return []Result{r}
}

func unitKillMode(n *Node, s *service) []Result {
	r := Result{Verdict: Pass, Observed: s.KillMode, Place: s.where("Service", "KillMode", "process", "none", "mixed", "control-group")}
	switch s.KillMode {
	case "control-group":
		r.Note = "each stop or restart of the daemon kills all shims and containers"
	case "mixed":
		r.Note = "each stop or restart ends the daemon, and then kills all shims and containers without a chance to stop"
	case "none":
		r.Note = "a stop leaves the daemon itself behind: the next start finds its database locked, and waits for it"
	}
	if wanted := n.wantedKillMode(); s.KillMode != wanted {
		r.Verdict, r.Wanted = Fail, wanted
		r.Observed += s.unset("Service", "KillMode")
		// No restart, which would do the harm: a reload puts it in force.
		r.Remedy = n.repair(s, "Service", "KillMode="+wanted)
	}
	return []Result{r}
}

func unitType(n *Node, s *service) []Result {
	r := Result{Verdict: Pass, Observed: s.Type, Place: s.where("Service", "Type")}
	if s.Type != "notify" && s.Type != "notify-reload" {
		r.Verdict, r.Wanted = Warn, "notify"
		r.Observed += s.unset("Service", "Type")
		r.Note = "systemd says started before the daemon answers at its socket"
		r.Remedy = n.repair(s, "Service", "Type=notify")
	}
	return []Result{r}
}

func unitRestart(n *Node, s *service) []Result {
	r := Result{Verdict: Pass, Observed: s.Restart, Place: s.where("Service", "Restart")}
	if s.Restart != "always" {
		r.Verdict, r.Wanted = Warn, "always"
		r.Observed += s.unset("Service", "Restart")
		r.Remedy = n.repair(s, "Service", "Restart=always")
	}
	return []Result{r}
}

func unitTasksMax(n *Node, s *service) []Result {
	r := Result{Verdict: Pass, Observed: s.TasksMax.String(), Place: s.where("Service", "TasksMax")}
	if s.TasksMax != systemd.Infinity {
		r.Verdict, r.Wanted = Warn, "infinity"
		r.Observed += s.unset("Service", "TasksMax")
		r.Remedy = n.repair(s, "Service", "TasksMax=infinity")
	}
	return []Result{r}
}

// unitLimit is for limits that shall not be there.
func unitLimit(name string) func(*Node, *service) []Result {
	return func(n *Node, s *service) []Result {
		limit := s.LimitNPROC
		if name == "LimitCORE" {
			limit = s.LimitCORE
		}
		r := Result{Verdict: Pass, Observed: limit.String(), Place: s.where("Service", name)}
		if limit != systemd.Infinity {
			r.Verdict, r.Wanted = Warn, "infinity"
			r.Observed += s.unset("Service", name)
			r.Remedy = n.repair(s, "Service", name+"=infinity")
		}
		return []Result{r}
	}
}

const (
	// fewFiles is what k0s and Kubernetes' own node tests ask for.
	fewFiles = 65536
	// manyFiles is more than anybody opens; infinity is fs.nr_open, which systemd raises
	// to 2^30 (systemd's NEWS for 240).
	manyFiles = 1 << 24
)

func unitLimitNOFILE(n *Node, s *service) []Result {
	r := Result{Verdict: Pass, Observed: s.LimitNOFILESoft.String() + ":" + s.LimitNOFILE.String(), Place: s.where("Service", "LimitNOFILE")}
	v, _, _ := n.Release()
	wanted := ""
	if p := n.unitSpec(); p != nil {
		wanted = p.LimitNOFILE
	}
	fault := func(wanted string) []Result {
		r.Verdict, r.Wanted = Warn, wanted
		r.Observed += s.unset("Service", "LimitNOFILE")
		r.Remedy = n.repair(s, "Service", "LimitNOFILE="+wanted)
		return []Result{r}
	}
	// Before 2.0 upstream's unit says infinity; without a version nobody knows.
	endless := v != (releases.Version{}) && releases.LimitNOFILE(v, n.Facts.Systemd) == "infinity"
	switch soft, hard, ok := limits(wanted); {
	case ok && (hard != s.LimitNOFILE || soft != s.LimitNOFILESoft):
		return fault(wanted)
	case ok:
	case s.LimitNOFILE < fewFiles:
		r.Note = "too few for the daemon and for what it starts"
		return fault("1024:524288")
	case s.LimitNOFILE > manyFiles && endless:
		r.Note = "as upstream's unit has it up to 1.7; containers inherit it, and some programs in them go through all possible descriptors"
	case s.LimitNOFILE > manyFiles:
		r.Note = "containers inherit it, and some programs in them go through all possible descriptors; upstream's unit has no LimitNOFILE= since 2.0"
		return fault("1024:524288")
	}
	return []Result{r}
}

// limits reads "SOFT:HARD" or one for both (systemd.exec(5), Process Properties).
func limits(s string) (soft, hard systemd.Limit, ok bool) {
	first, second, two := strings.Cut(s, ":")
	if !two {
		second = first
	}
	soft, okSoft := limit(first)
	hard, okHard := limit(second)
	return soft, hard, okSoft && okHard
}

func limit(s string) (systemd.Limit, bool) {
	if s == "infinity" {
		return systemd.Infinity, true
	}
	v, err := strconv.ParseUint(s, 10, 64)
	return systemd.Limit(v), err == nil
}

// anyProgram is a containerd for a unit that names none or a wrong one: nodeprep's where
// the unit is, else the first of the commands that exists, else any.
func (n *Node) anyProgram(commands [][]string) string {
	var candidates []string
	if n.unitSpec() != nil || n.Receipt != nil {
		candidates = append(candidates, systemd.Binary)
	}
	for _, argv := range commands {
		candidates = append(candidates, argv[0])
	}
	for _, p := range append(candidates, systemd.Binary, "/usr/bin/containerd") {
		if fi, err := n.Host.Root.Stat(p); path.IsAbs(p) && err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return p
		}
	}
	return ""
}

func unitExecStart(n *Node, s *service) []Result {
	raw, place, err := n.ExecStart()
	if err != nil {
		return unknown(err)
	}
	argv, wrapped := n.unwrap(raw)
	started := raw[:1] // the program that systemd starts and, behind a wrapper, the daemon's
	if wrapped == nil && argv[0] != raw[0] {
		started = []string{raw[0], argv[0]}
	}
	program := started[len(started)-1]
	r := Result{Verdict: Fail, Observed: strings.Join(s.Properties.ExecStart[0], " "), Place: place}
	// fix names a program that is there, with no arguments: the config is then at its
	// usual place.
	fix := func(other string) string {
		if other == "" {
			return n.reinstall()
		}
		return n.repair(s, "Service", "ExecStart=", "ExecStart="+other)
	}
	for _, p := range started {
		fi, err := n.Host.Root.Stat(p)
		switch {
		case absent(err):
			r.Observed, r.Wanted, r.Remedy = p+" does not exist", "a program", fix(n.anyProgram(nil))
			return []Result{r}
		case err != nil:
			return unknown(err)
		case fi.IsDir():
			r.Observed, r.Wanted, r.Remedy = p+" is a directory", "a program", fix(n.anyProgram(nil))
			return []Result{r}
		case fi.Mode()&0o111 == 0:
			r.Observed, r.Wanted = fmt.Sprintf("%s has mode %04o", p, fi.Mode().Perm()), "0755"
			r.Remedy = "chmod 0755 " + quote(n.onHost(p))
			return []Result{r}
		}
	}
	if wrapped != nil {
		// What it started last time tells what it starts.
		if argv = n.runningArgv(); argv == nil || s.MainPID == 0 {
			return unknown(wrapped)
		}
		p, _ := n.Process() // there is one, whose arguments these are
		program = cmp.Or(p.Exe, argv[0])
		r.Note = "which has started " + program
	}
	switch {
	case n.unitSpec() != nil && !n.sameFile(program, systemd.Binary):
		r.Wanted, r.Remedy = systemd.Binary, fix(systemd.Binary)
		return []Result{r}
	}
	config, given := configArgument(argv)
	if given && n.unexpanded(config) {
		// Whoever started the daemon knew it.
		running, ok := configArgument(n.runningArgv())
		if p, err := n.Process(); err != nil || !p.Unit || !ok {
			return unknown(fmt.Errorf("nothing tells what %s comes to, the config that %s is told to read", config, program))
		}
		config = running
	}
	if given {
		if _, err := n.Host.Root.Stat(config); absent(err) {
			r.Observed, r.Wanted = config+" does not exist", "the config that "+program+" is told to read"
			r.Note = "the daemon runs with its defaults then, and says nothing"
			if n.exists(defaultConfig) {
				r.Remedy = fix(program)
			} else {
				at := quote(n.onHost(config))
				r.Remedy = fmt.Sprintf("install -d %s\n%s config default > %s", quote(path.Dir(n.onHost(config))), quote(n.onHost(program)), at)
			}
			return []Result{r}
		}
	}
	r.Verdict = Pass
	return []Result{r}
}

// configArgument is the value of containerd's -c.
func configArgument(argv []string) (value string, ok bool) {
	for i, a := range argv {
		if i == 0 {
			continue
		}
		for _, name := range []string{"-c", "--config", "-config"} {
			if v, is := strings.CutPrefix(a, name+"="); is {
				return v, true
			}
			if a == name && i+1 < len(argv) {
				return argv[i+1], true
			}
		}
	}
	return "", false
}

func unitOrdering(n *Node, s *service) []Result {
	v, _, _ := n.Release()
	wanted := []string{"dbus.service"}
	if v != (releases.Version{}) {
		wanted = append(wanted, releases.UnitAfter(v)...)
	}
	if p := n.unitSpec(); p != nil {
		wanted = append(wanted, p.After...)
	}
	has := func(unit string) bool {
		if slices.Contains(s.After, unit) {
			return true
		}
		// dbus.service may be another name of what does its work, and sysinit.target comes
		// behind local-fs.target (bootup(7)).
		return unit == "dbus.service" && (slices.Contains(s.After, "dbus-broker.service") || slices.Contains(s.After, "dbus-daemon.service")) ||
			unit == "local-fs.target" && slices.Contains(s.After, "sysinit.target")
	}
	slices.Sort(wanted)
	wanted = slices.Compact(wanted)
	missing := slices.DeleteFunc(slices.Clone(wanted), has)
	var faults []Result
	if len(missing) > 0 {
		faults = append(faults, Result{
			Verdict: Warn, Observed: "not after " + strings.Join(missing, " "), Wanted: "After=" + strings.Join(missing, " "),
			Place: s.where("Unit", "After"), Remedy: n.repair(s, "Unit", "After="+strings.Join(missing, " ")),
		})
	}
	if r, late := n.lateMount(s); late {
		faults = append(faults, r)
	}
	return orPass(faults, "after %s", strings.Join(wanted, " "))
}

// lateMount finds a file system of the daemon's own root that may be mounted after it:
// one that fstab(5) does not name, or names with an option for not waiting.
func (n *Node) lateMount(s *service) (Result, bool) {
	root, _ := n.dataRoot()
	mount, err := n.MountOf(root)
	if err != nil || mount.Path == "/" || slices.ContainsFunc(s.RequiresMountsFor, func(p string) bool { return within(p, mount.Path) }) {
		return Result{}, false
	}
	place := "/proc/self/mountinfo"
	table, err := n.lines("/etc/fstab")
	if err != nil || mount.FSType == "zfs" { // zfs-mount.service comes before local-fs.target
		return Result{}, false
	}
	for _, l := range table {
		f := strings.Fields(l.text)
		if len(f) < 4 || path.Clean(unescape(f[1])) != mount.Path {
			continue
		}
		late := slices.ContainsFunc(strings.Split(f[3], ","), func(o string) bool {
			return slices.Contains([]string{"nofail", "noauto", "_netdev", "x-systemd.automount"}, o)
		})
		if !late && !slices.Contains([]string{"nfs", "nfs4", "cifs", "glusterfs", "ceph"}, f[2]) {
			return Result{}, false // local-fs.target waits for it
		}
		place = l.place
	}
	// A mount unit of its own comes before local-fs.target, too (systemd.mount(5)); its
	// name is the path, escaped (systemd.unit(5)).
	unit := strings.NewReplacer("-", `\x2d`, "/", "-").Replace(strings.Trim(mount.Path, "/")) + ".mount"
	if place == "/proc/self/mountinfo" && len(n.unitFiles(unit)) > 0 {
		return Result{}, false
	}
	return Result{
		Verdict: Warn, Observed: mount.Path + " may be mounted after the daemon is started", Wanted: "RequiresMountsFor=" + root, Place: place,
		Note:   root + " is on it",
		Remedy: n.repair(s, "Unit", "RequiresMountsFor="+root),
	}, true
}

// confinement says what a sandboxing setting breaks.
func confinement(name string) (breaks, undo string) {
	const mounts = "it gives the daemon a mount namespace of its own: mounts made below it are not the host's"
	switch name {
	case "ProtectSystem", "ProtectHome":
		return mounts, "no"
	case "MountFlags":
		return "mounts of containers do not reach the host, nor the host's containers", ""
	case "NoNewPrivileges":
		return "every container inherits it: setuid programs and file capabilities do nothing", "no"
	case "MemoryDenyWriteExecute":
		return "every container inherits it: programs that compile while they run crash", "no"
	case "RestrictNamespaces":
		return "runc cannot make a container's namespaces", "no"
	case "RestrictSUIDSGID":
		return "every container inherits it: images with setuid files cannot be unpacked", "no"
	case "PrivateNetwork":
		return "pulls have no network, and CNI sets up pods in the wrong one", "no"
	case "PrivateUsers", "DynamicUser":
		return "the daemon is not the host's root", "no"
	case "User", "RootDirectory", "RootImage":
		return "the daemon is not root on the host", ""
	case "CapabilityBoundingSet":
		return "runc cannot mount, and no container can have the capability", "~"
	case "SystemCallFilter", "RestrictAddressFamilies":
		return "every container inherits the filter", ""
	case "ReadOnlyPaths", "InaccessiblePaths":
		return mounts, ""
	}
	return mounts, "no"
}

func unitSandboxing(n *Node, s *service) []Result {
	var faults []Result
	for _, c := range s.Confined {
		breaks, undo := confinement(c.Name)
		assignment := c.Name + "=" + undo
		if undo == "" {
			assignment = c.Name + "="
		}
		faults = append(faults, Result{
			Verdict: Warn, Object: c.Name, Observed: c.Value, Wanted: "not set", Place: s.where("Service", c.Name), Note: breaks,
			Remedy: n.repair(s, "Service", assignment) + "\n" + n.restart(s),
		})
	}
	return orPass(faults, "none")
}

func unitEnvironment(n *Node, s *service) []Result {
	var names []string
	for _, v := range s.Environment {
		if name, value, ok := strings.Cut(v, "="); ok && credential(name, value) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	var faults []Result
	for _, name := range names {
		r := Result{
			Verdict: Warn, Object: name, Observed: "a credential in Environment=", Wanted: "EnvironmentFile= of mode 0600", Place: systemd.UnitName,
			Note: "its value is not shown here; whoever could read it should count as knowing it",
		}
		if f, a, ok := variableAt(s.fragments, name); ok && s.unread == nil {
			r.Place = fmt.Sprintf("%s:%d", f.Path, a.Line)
			switch edited := n.takeBack(f.Path); {
			case edited != "":
				r.Remedy = edited
			case n.writes(f.Path):
				r.Note += "; it is the profile's, from which the next apply writes it again"
				r.Remedy = "# take it out of the profile's systemd.environment, into a file of mode 0600 that a drop-in names with EnvironmentFile=:\n" + n.reapply(false)
			case n.Live:
				r.Remedy = n.hide(f, a) + "\n" + n.restart(s) // the file is newer than the daemon
			default:
				r.Remedy = n.hide(f, a)
			}
		} else {
			r.Remedy = "# move it into a file of mode 0600 and name that with EnvironmentFile=\nsystemctl cat " + systemd.UnitName
		}
		faults = append(faults, r)
	}
	return orPass(faults, "%d variables, none with a credential", len(s.Environment))
}

// hide are the lines that move the variables of an assignment to a file for root alone,
// without their values being shown.
func (n *Node) hide(f systemd.Fragment, a systemd.Assignment) string {
	const file = "/etc/containerd/environment"
	if a.Lines > 1 {
		return "# move the variables of line " + strconv.Itoa(a.Line) + " into a file of mode 0600 and name that with EnvironmentFile=:\nsystemctl edit --full " + systemd.UnitName
	}
	at, from := quote(n.onHost(file)), quote(n.onHost(f.Path))
	return fmt.Sprintf(`install -d %s
(umask 077; touch %s; sed -n '%[3]ds/^[^=]*=//p' %[4]s | xargs -n 1 | sed 's/%%%%/%%/g' >> %[2]s)
chmod 0600 %[2]s
sed -i '%[3]ds|.*|EnvironmentFile=%[5]s|' %[4]s%[6]s`, quote(n.onHost(path.Dir(file))), at, a.Line, from, file, n.reload())
}

// variableAt is the last assignment of a variable.
func variableAt(fragments []systemd.Fragment, name string) (from systemd.Fragment, at systemd.Assignment, ok bool) {
	for _, f := range fragments {
		for _, a := range f.Assignments() {
			if a.Section != "Service" || a.Key != "Environment" {
				continue
			}
			for _, w := range systemd.Words(a.Value) {
				if strings.HasPrefix(w, name+"=") {
					from, at, ok = f, a, true
				}
			}
		}
	}
	return from, at, ok
}

// credential holds for a URL with a password and for what is named as one.
func credential(name, value string) bool {
	if value == "" {
		return false
	}
	if profiles.SecretNamed(name, value) {
		return true
	}
	if !strings.Contains(value, "://") {
		if !strings.HasSuffix(strings.ToUpper(name), "_PROXY") {
			return false
		}
		value = "http://" + value // proxies may be given so
	}
	u, err := url.Parse(value)
	if err != nil {
		// What cannot be parsed may well be a password with special characters in it.
		host, _, _ := strings.Cut(value[strings.Index(value, "://")+3:], "/")
		return strings.Contains(host, "@")
	}
	_, has := u.User.Password()
	return has
}
