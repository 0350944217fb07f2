package systemd

import (
	"io/fs"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
)

const (
	// FirstBootUnitName is the unit that finishes, where it runs for the first time, a
	// root that was made while it did not run.
	FirstBootUnitName = "nodeprep-firstboot.service"
	FirstBootUnitPath = "/etc/systemd/system/" + FirstBootUnitName
	// FirstBootMarker is there only while that is to be done.
	FirstBootMarker = "/var/lib/nodeprep/firstboot"
	// FirstBootImages is there only while images wait.
	FirstBootImages = "/var/lib/nodeprep/images"
)

// FirstBootUnit is nodeprep-firstboot.service.
//
// It asks containerd, and so comes after it and wants it up. It does not require it: where
// containerd does not start, the unit runs all the same and says so, instead of being left
// out. The kubelet is ordered behind it: it finds its sandbox image there. The kubelet does
// not require it either: a node whose first boot fails goes on, and the next boot tries
// again. No network is waited for, and none is used; nor is time-sync.target, whose units
// wait without a deadline.
//
// The unit stays when all is done: neither of its conditions holds then, and every later
// boot passes it over. One would do for an image; a rollback of a disk that does not run
// may let images wait without a marker.
func FirstBootUnit(origin diag.Origin) desired.File {
	f := unitFile(FirstBootUnitPath, []*unit.UnitOption{
		{Section: "Unit", Name: "Description", Value: "Finish this node at its first boot"},
		{Section: "Unit", Name: "Documentation", Value: "https://github.com/nodeprep/nodeprep"},
		{Section: "Unit", Name: "ConditionPathExists", Value: "|" + FirstBootMarker},
		{Section: "Unit", Name: "ConditionDirectoryNotEmpty", Value: "|" + FirstBootImages},
		{Section: "Unit", Name: "Wants", Value: UnitName},
		{Section: "Unit", Name: "After", Value: RecoverUnitName + " " + UnitName},
		{Section: "Unit", Name: "Before", Value: "kubelet.service"},
		{Section: "Unit", Name: "RequiresMountsFor", Value: "/usr/local/bin /var/lib/nodeprep"},
		{Section: "Service", Name: "Type", Value: "oneshot"},
		{Section: "Service", Name: "ExecStart", Value: Program + " firstboot"},
		// One-shot units have no limit of their own (systemd.service(5)), and the kubelet
		// waits. Slow cards take minutes for an image; what is imported by then stays.
		{Section: "Service", Name: "TimeoutStartSec", Value: "30min"},
		{Section: "Service", Name: "RemainAfterExit", Value: "no"},
		{Section: "Install", Name: "WantedBy", Value: "multi-user.target"},
	}, origin)
	f.Unit = FirstBootUnitName
	return f
}

// FirstBootMarkerFile is the marker. There is nothing in it of the machine that made it.
func FirstBootMarkerFile(origin diag.Origin) desired.File {
	return desired.File{
		Path: FirstBootMarker, Mode: fs.FileMode(0o600), Format: desired.FormatRaw, Origin: origin,
		Content: []byte("# " + FirstBootUnitName + " finishes this node at its next boot, and removes this file.\n"),
	}
}
