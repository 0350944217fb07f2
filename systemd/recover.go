package systemd

import (
	"io/fs"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
)

const (
	// Program is nodeprep itself on a node.
	Program = "/usr/local/bin/nodeprep"
	// RecoverUnitName is the unit that recovers an interrupted run at boot.
	RecoverUnitName = "nodeprep-recover.service"
	RecoverUnitPath = "/etc/systemd/system/" + RecoverUnitName
	// RecoverJournal is there only while a run is unfinished.
	RecoverJournal = "/var/lib/nodeprep/journal.json"
)

// RecoverUnit is nodeprep-recover.service.
//
// The daemon is ordered behind it and does not require it: a node whose recovery fails
// still boots with what it has, and a restart of containerd pulls in nothing. The
// default dependencies put it behind sysinit.target (systemd.special(7)), and so behind
// systemd-modules-load and systemd-sysctl, which may have read half of a new state:
// recover loads and sets our modules and settings again. No network is asked for.
//
// containerd's start waits until this unit has ended: the program must not wait, in
// here, for a start or restart of containerd, which would not come before the time is
// up. With --boot it does not, also where the kernel stayed the same one: a soft reboot,
// a container. Nobody starts the unit by hand: "nodeprep recover" is that.
// A daemon-reload in here keeps the queued start, which then follows the units as
// they are after it.
func RecoverUnit(origin diag.Origin) desired.File {
	f := unitFile(RecoverUnitPath, []*unit.UnitOption{
		{Section: "Unit", Name: "Description", Value: "Finish or undo an interrupted nodeprep run"},
		{Section: "Unit", Name: "Documentation", Value: "https://github.com/nodeprep/nodeprep"},
		{Section: "Unit", Name: "ConditionPathExists", Value: RecoverJournal},
		{Section: "Unit", Name: "After", Value: "local-fs.target"},
		{Section: "Unit", Name: "Before", Value: UnitName + " kubelet.service"},
		// Also mounts that are not local ones; reverting beneath a mount that is missing
		// would take its files for lost ones.
		{Section: "Unit", Name: "RequiresMountsFor", Value: "/etc /usr/local/bin /usr/local/sbin /opt/cni/bin /var/lib/nodeprep"},
		{Section: "Unit", Name: "RefuseManualStart", Value: "yes"},
		{Section: "Service", Name: "Type", Value: "oneshot"},
		{Section: "Service", Name: "ExecStart", Value: Program + " recover --boot"},
		// One-shot units have no limit of their own (systemd.service(5)), and the daemon
		// waits. A recovery that is cut off can be begun again.
		{Section: "Service", Name: "TimeoutStartSec", Value: "10min"},
		{Section: "Install", Name: "WantedBy", Value: "multi-user.target"},
	}, origin)
	f.Unit, f.First, f.Mode = RecoverUnitName, true, fs.FileMode(0o644)
	return f
}
