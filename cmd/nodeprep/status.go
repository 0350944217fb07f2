package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// statusResult is the machine form of status.
type statusResult struct {
	Root        string              `json:"root"`
	Provisioned bool                `json:"provisioned"`
	Generation  int                 `json:"generation,omitempty"`
	Time        time.Time           `json:"time,omitzero"`
	Nodeprep    string              `json:"nodeprep,omitempty"`
	Profiles    []string            `json:"profiles,omitempty"`
	Artifacts   []install.Installed `json:"artifacts,omitempty"`
	Unit        *unitStatus         `json:"unit,omitempty"`
	Drift       []install.Drifted   `json:"drift"`
}

// unitStatus is what systemd says of containerd.service.
type unitStatus struct {
	Active   string   `json:"active"`
	Enabled  string   `json:"enabled"`
	PID      int      `json:"pid,omitempty"`
	Fragment string   `json:"fragment,omitempty"`
	DropIns  []string `json:"dropIns,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	var deep bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what drifted since the last apply",
		Long: `status compares the host with the receipt of the last apply: owned files that were changed or are missing,
drop-ins that others added, the unit and the daemon. It exits with 0 when nothing drifted and with 3 when something did.
A file whose size, time and inode are as recorded is not read again; --deep reads all.`,
		Example: `  sudo nodeprep status
  sudo nodeprep status --deep -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if a.profile != "" {
				return usagef("status: compares with the last apply and takes no profile; nodeprep plan -f %s compares with a profile", a.profile)
			}
			return a.status(cmd.Context(), deep)
		},
	}
	cmd.Flags().BoolVar(&deep, "deep", false, "read every owned file again")
	return cmd
}

func (a *app) status(ctx context.Context, deep bool) error {
	root, err := a.openRoot()
	if err != nil {
		return err
	}
	receipt, err := readReceipt(root)
	if err != nil {
		return err
	}
	r := statusResult{Root: root.Dir(), Drift: []install.Drifted{}}
	if receipt == nil {
		a.result = r
		if !a.structured {
			fmt.Fprintf(a.out, "not provisioned: %s has no receipt of nodeprep\n", root.Dir())
		}
		return &codeError{exitDiffers}
	}
	r.Provisioned, r.Generation, r.Time, r.Nodeprep = true, receipt.Generation, receipt.Time, receipt.Nodeprep
	r.Profiles, r.Artifacts = receipt.Profiles, receipt.Artifacts
	drift, err := install.Drift(ctx, root, receipt, deep)
	if err != nil {
		return err
	}
	r.Drift = append(r.Drift, drift...)
	h := host.New(root)
	if root.Live() && host.GatherFacts(root, "").SystemdInit {
		m, err := systemd.Connect(ctx, runner(h))
		if err != nil {
			return err
		}
		defer m.Close()
		p, err := m.Properties(ctx, systemd.UnitName)
		if err != nil {
			return err
		}
		unit, more := unitDrift(p, receipt)
		r.Unit = &unit
		r.Drift = append(r.Drift, more...)
		if p.ActiveState == "active" {
			r.Drift = append(r.Drift, daemonDrift(ctx, receipt)...)
		}
	}
	a.result = r
	if !a.structured {
		a.printStatus(r)
	}
	if len(r.Drift) > 0 {
		return &codeError{exitDiffers}
	}
	return nil
}

// unitDrift says how the unit in force differs from the one that was written.
func unitDrift(p systemd.Properties, receipt *install.Receipt) (unitStatus, []install.Drifted) {
	u := unitStatus{Active: p.ActiveState, Enabled: p.UnitFileState, PID: p.MainPID, Fragment: p.FragmentPath, DropIns: p.DropInPaths}
	var drift []install.Drifted
	add := func(path, format string, args ...any) {
		drift = append(drift, install.Drifted{Path: path, What: fmt.Sprintf(format, args...)})
	}
	if p.ActiveState != "active" {
		add(systemd.UnitName, "is %s (%s); journalctl -u %s says why", p.ActiveState, p.SubState, systemd.UnitName)
	}
	if p.UnitFileState != "enabled" {
		add(systemd.UnitName, "is %s, so it does not start at boot", orNone(p.UnitFileState))
	}
	if p.FragmentPath != "" && receipt.Find(p.FragmentPath) == nil {
		add(p.FragmentPath, "is the unit file in force, and it is not nodeprep's")
	}
	for _, d := range p.DropInPaths {
		if receipt.Find(d) == nil {
			add(d, "is a drop-in of others that may override the unit; systemctl cat %s shows it", systemd.UnitName)
		}
	}
	if p.NeedDaemonReload {
		add(systemd.UnitName, "was changed on disk since systemd read it; systemctl daemon-reload makes it count")
	}
	return u, drift
}

// answerTime is how long a daemon that runs may take to answer: it serves from memory.
const answerTime = 5 * time.Second

// daemonDrift asks the daemon itself: a unit that is active may run another version, or
// serve no CRI.
func daemonDrift(ctx context.Context, receipt *install.Receipt) []install.Drifted {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	if err := (install.Containerd{}).Healthy(ctx, receipt.Daemon); err != nil {
		return []install.Drifted{{Path: "containerd", What: "does not work as planned: " + err.Error()}}
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "not installed"
	}
	return s
}

func (a *app) printStatus(r statusResult) {
	c := a.paint(a.out)
	var versions []string
	for _, x := range r.Artifacts {
		versions = append(versions, x.Component+" "+x.Version)
	}
	slices.Sort(versions)
	fmt.Fprintf(a.out, "generation %d, applied %s by nodeprep %s\n", r.Generation, r.Time.Local().Format(time.DateTime), r.Nodeprep)
	fmt.Fprintf(a.out, "profile    %s\n", strings.Join(r.Profiles, ", "))
	fmt.Fprintf(a.out, "releases   %s\n", strings.Join(versions, ", "))
	if u := r.Unit; u != nil {
		line := u.Active + ", " + orNone(u.Enabled)
		if u.PID > 0 {
			line += fmt.Sprintf(", pid %d", u.PID)
		}
		fmt.Fprintf(a.out, "%s %s\n", systemd.UnitName, line)
	}
	if len(r.Drift) == 0 {
		fmt.Fprintln(a.out, c.green("nothing drifted"))
		return
	}
	for _, d := range r.Drift {
		fmt.Fprintf(a.out, "%s %s %s\n", c.yellow("~"), c.bold(d.Path), d.What)
	}
}
