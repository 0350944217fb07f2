package checks

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// unitChecks are about containerd.service as systemd has it in force, or, in an image, as
// it will: what its unit file and all drop-ins come to.
func unitChecks() []Check {
	audit := func(id string, severity Severity, run func(context.Context, *Node) []Result, why, source, remedy string, needs ...string) Check {
		return Check{ID: id, Stage: Audit, Severity: severity, Why: why, Source: source, Needs: needs, Remedy: remedy, Run: run}
	}
	const (
		dropIn = "put the setting into a drop-in of containerd.service that sorts behind all others, and run systemctl daemon-reload"
		loaded = "unit/loaded"
	)
	return []Check{
		audit("unit/loaded", Required, ofUnit(unitLoaded),
			"A unit that is missing, masked or refused by systemd starts no daemon at the next boot, whatever runs now.",
			"systemd.unit(5), systemctl(1) mask", "systemctl unmask containerd.service, or repair the line that systemd names", "foreign/masked-unit"),
		audit("unit/fragment", Recommended, ofUnit(unitFragment),
			"Of several unit files of one name systemd reads only the first of its load path: an upgrade of the package changes a file that nobody reads.",
			"systemd.unit(5), Unit File Load Path", "remove the unit file that is not meant, or the package that brought it", loaded),
		audit("unit/drop-ins", Recommended, ofUnit(unitDropIns),
			"A drop-in changes the unit for good and survives every rewrite of the unit file; nobody looks there when the node misbehaves.",
			"systemd.unit(5), drop-in files; systemd-delta(1)", "remove the drop-in if nobody needs it, and run systemctl daemon-reload", loaded),
		audit("unit/enabled", Required, ofUnit(unitEnabled),
			"A daemon that was only started by hand is gone after the next boot.",
			"systemctl(1), enable and is-enabled", "systemctl enable containerd.service", loaded),
		audit("unit/active", Required, ofUnit(unitActive),
			"Without a running daemon the kubelet can start and stop nothing; what runs keeps running and nobody watches it.",
			"systemd.service(5), systemctl(1) status", "read journalctl -u containerd.service, then systemctl start containerd.service",
			NeedLive, NeedSystemd, loaded, "unit/exec-start", "config/parses"),
		audit("unit/restarts", Recommended, ofUnit(unitRestarts),
			"A daemon that systemd had to start again crashed or was killed, which Restart=always hides until it comes too often.",
			"systemd.service(5), Restart=; org.freedesktop.systemd1(5), NRestarts", "find the reason in journalctl -u containerd.service; systemctl reset-failed containerd.service sets the counter back",
			NeedLive, NeedSystemd, "unit/active"),
		audit("unit/oom-score-adjust", Required, ofUnit(unitOOMScore),
			"Without protection the kernel kills the daemon before the pod that used the memory up: a guaranteed pod has -997.",
			"containerd's containerd.service; kubernetes issue 86420; systemd.exec(5), OOMScoreAdjust=", dropIn, loaded),
		audit("unit/delegate", Required, ofUnit(unitDelegate),
			"Without delegation systemd moves processes and takes controllers away below the daemon's cgroup at any reload.",
			"systemd.resource-control(5), Delegate=; systemd's CGROUP_DELEGATION document", dropIn, loaded),
		audit("unit/kill-mode", Required, ofUnit(unitKillMode),
			"With any KillMode but process a restart of the daemon, as in every upgrade, ends its shims and so all containers, or leaves the old daemon behind.",
			"systemd.kill(5), KillMode=; containerd issue 7076", dropIn, loaded),
		audit("unit/type", Recommended, ofUnit(unitType),
			"Only with Type=notify does systemd wait until the daemon serves: otherwise the kubelet is started before the socket is there.",
			"systemd.service(5), Type=; containerd's containerd.service", dropIn, loaded),
		audit("unit/restart", Recommended, ofUnit(unitRestart),
			"Only Restart=always brings the daemon back whatever ended it.",
			"systemd.service(5), Restart=; containerd's containerd.service", dropIn, loaded),
		audit("unit/tasks-max", Recommended, ofUnit(unitTasksMax),
			"Shims live in the daemon's cgroup: with systemd's default limit a node of many pods cannot fork any more.",
			"systemd.resource-control(5), TasksMax=; containerd's containerd.service", dropIn, NeedLive, NeedSystemd, loaded),
		audit("unit/limit-nofile", Recommended, ofUnit(unitLimitNOFILE),
			"Containers inherit the limit: with too few files busy nodes fail, and without a limit programs that go through all possible descriptors take minutes.",
			"containerd pull requests 7566 and 8924; kubernetes' and k0s' minimum of 65536; systemd.exec(5), LimitNOFILE=", dropIn, NeedLive, NeedSystemd, loaded),
		audit("unit/limit-nproc", Recommended, ofUnit(unitLimit("LimitNPROC")),
			"Containers inherit the limit, and it counts all processes of a user ID on the node: fork then fails in pods that have few.",
			"getrlimit(2), RLIMIT_NPROC; containerd's containerd.service", dropIn, NeedLive, NeedSystemd, loaded),
		audit("unit/limit-core", Recommended, ofUnit(unitLimit("LimitCORE")),
			"Containers inherit the limit: below it no workload can leave a core dump.",
			"getrlimit(2), RLIMIT_CORE; containerd's containerd.service", dropIn, NeedLive, NeedSystemd, loaded),
		audit("unit/exec-start", Required, ofUnit(unitExecStart),
			"A program that is not there is exit status 203 at the next start, and a daemon whose config file is missing runs with its defaults without a word.",
			"systemd.exec(5), Process Exit Codes; containerd's cmd/containerd/command/main.go", "name the program that is meant in a drop-in, behind an empty ExecStart=", loaded, "binary/containerd"),
		audit("unit/ordering", Recommended, ofUnit(unitOrdering),
			"At shutdown units stop in reverse order: runc asks systemd over D-Bus to end cgroups, and images whose mount comes late land on the disk below it.",
			"containerd's containerd.service and its history; systemd.unit(5), After= and RequiresMountsFor=", dropIn, NeedLive, NeedSystemd, loaded),
		audit("unit/daemon-reload", Required, ofUnit(unitDaemonReload),
			"What is in force is not what stands in the files: the next reload, by anybody, changes the unit.",
			"systemctl(1), daemon-reload; org.freedesktop.systemd1(5), NeedDaemonReload", "systemctl daemon-reload", NeedLive, NeedSystemd, loaded),
		audit("unit/sandboxing", Recommended, ofUnit(unitSandboxing),
			"A daemon in a mount namespace of its own makes mounts that neither host nor kubelet see, and its filters and rights are inherited by every container.",
			"systemd.exec(5), Sandboxing; containerd issue 3667", dropIn, NeedLive, NeedSystemd, loaded),
		audit("unit/environment", Recommended, ofUnit(unitEnvironment),
			"Every user of the node can read Environment= with systemctl show.",
			"systemd.exec(5), Environment=", "move the variable into a file of mode 0600 and name that with EnvironmentFile=", loaded),
	}
}

// service is containerd.service: as systemd has it in force or, where the root is an
// image, what its files come to, as far as they can tell.
type service struct {
	systemd.Properties
	// fragments are the unit file and its drop-ins as they are on the disk.
	fragments []systemd.Fragment
	unread    error // why fragments are not all
}

var errNoSystemd = errors.New("systemd does not run here")

// service is errNoSystemd on a live host without systemd.
func (n *Node) service() (*service, error) {
	return remember(n, "service", func(context.Context) (*service, error) {
		if n.Live && !n.Facts.SystemdInit {
			return nil, errNoSystemd
		}
		s := &service{}
		if n.Live {
			p, err := n.Unit(systemd.UnitName)
			if err != nil {
				return nil, err
			}
			s.Properties = p
		}
		s.fragments, s.unread = n.Fragments(systemd.UnitName)
		if !n.Live {
			var err error
			if s.Properties, err = n.fromFiles(systemd.UnitName, s.fragments); err == nil {
				err = s.unread
			}
			if err != nil {
				return nil, err
			}
		}
		return s, nil
	})
}

// ofUnit is a check of containerd.service.
func ofUnit(look func(*Node, *service) []Result) func(context.Context, *Node) []Result {
	return func(_ context.Context, n *Node) []Result {
		s, err := n.service()
		switch {
		case errors.Is(err, errNoSystemd):
			return skip("%v", err)
		case err != nil:
			return unknown(err)
		}
		return look(n, s)
	}
}

// where is the place that sets a setting: FILE:LINE of the last line that does, the unit
// file where none does. valid are the values that systemd does not ignore, if not all.
func (s *service) where(section, key string, valid ...string) string {
	if s.unread != nil {
		return systemd.UnitName // a file that may not be read may be it
	}
	place := s.FragmentPath
	for _, f := range s.fragments {
		for _, a := range f.Assignments() {
			if a.Section == section && a.Key == key && (len(valid) == 0 || a.Value == "" || slices.Contains(valid, a.Value)) {
				place = fmt.Sprintf("%s:%d", f.Path, a.Line)
			}
		}
	}
	if place == "" {
		place = systemd.UnitName
	}
	return place
}

// unset is said of a value that comes from no file.
func (s *service) unset(section, key string) string {
	if _, _, set := systemd.Deciding(s.fragments, section, key); set || s.unread != nil {
		return ""
	}
	return ", not set: systemd's default"
}

const dropInDir = "/etc/systemd/system/" + systemd.UnitName + ".d/"

// onHost is where a path of the root is for a shell on this machine.
func (n *Node) onHost(p string) string {
	if n.Live {
		return p
	}
	return filepath.Join(n.Host.Root.Dir(), p)
}

// reload is what puts changed unit files in force, nothing in an image.
func (n *Node) reload() string {
	if n.Live {
		return "\nsystemctl daemon-reload"
	}
	return ""
}

// override are the lines that set the last of these assignments with a drop-in. It has a
// name behind that of every drop-in that sets it, since the last one wins.
func (n *Node) override(s *service, section string, assignments ...string) string {
	key, _, _ := strings.Cut(assignments[len(assignments)-1], "=")
	name := "zz-nodeprep-" + strings.ToLower(key) + ".conf"
	for i, f := range s.fragments {
		if _, _, sets := systemd.Deciding([]systemd.Fragment{f}, section, key); i == 0 && f.Path == s.FragmentPath || !sets || f.Path == dropInDir+name {
			continue
		}
		if base := filepath.Base(f.Path); base >= name {
			// An underscore sorts behind the dot.
			name = strings.TrimSuffix(base, ".conf") + "_nodeprep.conf"
		}
	}
	lines := []string{quote("[" + section + "]")}
	for _, a := range assignments {
		lines = append(lines, quote(a))
	}
	dir := n.onHost(dropInDir)
	return fmt.Sprintf("install -d %s\nprintf '%%s\\n' %s > %s%s",
		quote(strings.TrimSuffix(dir, "/")), strings.Join(lines, " "), quote(filepath.Join(dir, name)), n.reload())
}

// writes holds for a file of the unit that nodeprep writes on this host.
func (n *Node) writes(p string) bool {
	return (n.Receipt != nil || n.unitSpec() != nil) && slices.Contains([]string{systemd.UnitPath, systemd.EnvironmentPath, systemd.ProxyPath}, p)
}

// takeBack is what makes a file of nodeprep's what its last apply left, "" for files of
// others and for those that are so.
func (n *Node) takeBack(p string) string {
	// Where drift cannot be told, a drop-in does no harm.
	if all, err := n.drifted(); err != nil || all[p] == "" || !n.writes(p) {
		return ""
	}
	return n.reapply(true)
}

// repair are the lines that set the last of these assignments: where nodeprep's own file
// was edited, those that take the edit back, else those of a drop-in.
func (n *Node) repair(s *service, section string, assignments ...string) string {
	key, _, _ := strings.Cut(assignments[len(assignments)-1], "=")
	decides := s.FragmentPath // where nobody sets it, the unit file should
	if _, from, set := systemd.Deciding(s.fragments, section, key); set {
		decides = from.Path
	}
	if s.unread == nil {
		if line := n.takeBack(decides); line != "" {
			return line
		}
	}
	return n.override(s, section, assignments...)
}

// restart are the lines that restart the daemon and keep its containers. Only where the
// profile wants them killed does it say so: a reload puts KillMode in force by itself.
func (n *Node) restart(s *service) string {
	const line = "systemctl restart " + systemd.UnitName
	switch wanted := n.wantedKillMode(); {
	case s.KillMode == "process":
		return line
	case wanted == "process":
		return strings.ReplaceAll(n.override(s, "Service", "KillMode="+wanted), "\n", " && ") + " && " + line
	}
	return "# with KillMode=" + s.KillMode + " this ends the node's containers: drain it first\n" + line
}

// unitSpec is what the profile says of the unit, nil without one that has containerd.
func (n *Node) unitSpec() *profiles.Systemd {
	if n.Spec == nil || !n.Spec.Containerd.Installed() {
		return nil
	}
	return &n.Spec.Systemd
}

func (n *Node) wantedKillMode() string {
	if p := n.unitSpec(); p != nil && p.KillMode != "" {
		return p.KillMode
	}
	return "process"
}
