package systemd

import (
	"github.com/coreos/go-systemd/v22/unit"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
)

const (
	// FirstBootUnitName is the unit that imports the images which wait on a root that
	// was made while it did not run.
	FirstBootUnitName = "nodeprep-firstboot.service"
	FirstBootUnitPath = "/etc/systemd/system/" + FirstBootUnitName
	// FirstBootImages is there only while images wait.
	FirstBootImages = "/var/lib/nodeprep/images"
)

// FirstBootUnit is nodeprep-firstboot.service.
//
// It asks containerd, and so comes after it and wants it up. The kubelet is ordered behind
// it: it finds its sandbox image there. It does not require it: a node whose import fails
// goes on, with the archives kept, and the next boot tries again.
//
// The unit stays when all is imported: its condition does not hold then, and every later
// boot passes it over.
func FirstBootUnit(origin diag.Origin) desired.File {
	f := unitFile(FirstBootUnitPath, []*unit.UnitOption{
		{Section: "Unit", Name: "Description", Value: "Import the container images that wait for the first boot"},
		{Section: "Unit", Name: "Documentation", Value: "https://github.com/nodeprep/nodeprep"},
		{Section: "Unit", Name: "ConditionDirectoryNotEmpty", Value: FirstBootImages},
		{Section: "Unit", Name: "Requires", Value: UnitName},
		{Section: "Unit", Name: "After", Value: UnitName},
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
