package main

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/install"
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
	// Pending is a run that has not ended.
	Pending *pendingStatus `json:"pending,omitempty"`
	// Boot is what the last run that the machine started by itself came to.
	Boot *install.BootResult `json:"boot,omitempty"`
	// FirstBoot says that the root is still to be finished at its first boot, or the next one.
	FirstBoot bool              `json:"firstBoot,omitempty"`
	Drift     []install.Drifted `json:"drift"`
}

// pendingStatus is a run that has not ended: it goes on, or was interrupted.
type pendingStatus struct {
	Verb     install.Verb `json:"verb"`
	Time     time.Time    `json:"time"`
	Nodeprep string       `json:"nodeprep"`
	// PID is the process that works on the root, 0 where none does.
	PID int `json:"pid,omitempty"`
}

// unitStatus is what systemd says of containerd.service.
type unitStatus struct {
	Active   string   `json:"active"`
	Enabled  string   `json:"enabled"`
	PID      int      `json:"pid,omitempty"`
	Fragment string   `json:"fragment,omitempty"`
	DropIns  []string `json:"dropIns,omitempty"`
	// Others are those of DropIns that are not nodeprep's.
	Others []string `json:"others,omitempty"`
}

func (a *app) statusCommand() *cobra.Command {
	var deep bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show what drifted since the last apply",
		Long: `status compares the host with the receipt of the last apply: owned files that were changed or are missing,
drop-ins of others that override ours, the unit, the daemon and its version, and a run that was interrupted. It exits with 0 when nothing drifted and with 3 when something did.
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
	t, err := a.open()
	if err != nil {
		return err
	}
	defer t.close()
	receipt, err := readReceipt(t.root)
	if err != nil {
		return err
	}
	r := statusResult{Root: t.root.Dir(), Drift: []install.Drifted{}}
	j, err := pending(t.root)
	if err != nil {
		return err
	}
	if j != nil {
		r.Pending = &pendingStatus{Verb: j.Verb, Time: j.Time, Nodeprep: j.Nodeprep}
		if at := install.Working(t.root); at != nil {
			r.Pending.PID = at.PID
		}
		r.Drift = append(r.Drift, install.Drifted{Path: install.JournalPath, What: "is there: " + interrupted(t.root, j)})
	}
	// What became of a boot is no drift: it is told, and read by whoever may.
	if r.Boot, err = install.ReadResult(t.root); err != nil {
		a.note("%v", err)
	}
	if r.FirstBoot, err = install.FirstBootWaits(t.root); err != nil {
		return err
	}
	if receipt == nil {
		a.result = r
		if !a.structured {
			fmt.Fprintf(a.out, "not provisioned: %s has no receipt of nodeprep\n", t.root.Dir())
			a.printBoot(r.Boot)
			a.printDrift(r.Drift)
		}
		return &codeError{exitDiffers}
	}
	r.Provisioned, r.Generation, r.Time, r.Nodeprep = true, receipt.Generation, receipt.Time, receipt.Nodeprep
	r.Profiles, r.Artifacts = receipt.Profiles, receipt.Artifacts
	drift, err := install.Drift(ctx, t.root, receipt, deep)
	if err != nil {
		return err
	}
	for _, d := range drift {
		r.Drift = append(r.Drift, inWords(d))
	}
	shadowing, err := install.Shadowing(t.root, receipt)
	if err != nil {
		return err
	}
	r.Drift = append(r.Drift, shadowing...)
	if err := t.connect(ctx); err != nil {
		return err
	}
	if t.manager != nil {
		p, err := t.manager.Properties(ctx, systemd.UnitName)
		if err != nil {
			return err
		}
		unit, more := unitDrift(p, receipt, r.Drift)
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
func unitDrift(p systemd.Properties, receipt *install.Receipt, known []install.Drifted) (unitStatus, []install.Drifted) {
	u := unitStatus{Active: p.ActiveState, Enabled: p.UnitFileState, PID: p.MainPID, Fragment: p.FragmentPath, DropIns: p.DropInPaths}
	for _, d := range p.DropInPaths {
		if receipt.Find(d) == nil {
			u.Others = append(u.Others, d)
		}
	}
	var drift []install.Drifted
	add := func(path, format string, args ...any) {
		drift = append(drift, install.Drifted{Path: path, What: fmt.Sprintf(format, args...)})
	}
	if p.ActiveState != "active" {
		add(systemd.UnitName, "is %s (%s); journalctl -u %s says why", p.ActiveState, p.SubState, systemd.UnitName)
	}
	told := slices.ContainsFunc(known, func(d install.Drifted) bool {
		return path.Base(d.Path) == systemd.UnitName && path.Ext(path.Dir(d.Path)) == ".wants"
	})
	if p.UnitFileState != "enabled" && !told {
		add(systemd.UnitName, "is %s, so it does not start at boot", orNone(p.UnitFileState))
	}
	if p.FragmentPath != "" && receipt.Find(p.FragmentPath) == nil {
		add(p.FragmentPath, "is the unit file in force, and it is not nodeprep's")
	}
	if p.NeedDaemonReload {
		add(systemd.UnitName, "was changed on disk since systemd read it; systemctl daemon-reload makes it count")
	}
	return u, drift
}

// inWords adds what the loss of a link that enables a unit means.
func inWords(d install.Drifted) install.Drifted {
	if dir := path.Dir(d.Path); path.Dir(dir) == "/etc/systemd/system" && path.Ext(dir) == ".wants" {
		d.What += fmt.Sprintf(": %s is disabled and does not start at boot", path.Base(d.Path))
	}
	return d
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
	fmt.Fprintf(a.out, "generation %d, applied %s by nodeprep %s\n", r.Generation, r.Time.Local().Format(time.DateTime), r.Nodeprep)
	fmt.Fprintf(a.out, "profile    %s\n", strings.Join(r.Profiles, ", "))
	fmt.Fprintf(a.out, "releases   %s\n", versions(r.Artifacts))
	a.printBoot(r.Boot)
	if r.FirstBoot {
		fmt.Fprintf(a.out, "first boot is not finished: %s does the rest at the next boot\n", systemd.FirstBootUnitName)
	}
	if u := r.Unit; u != nil {
		line := u.Active + ", " + orNone(u.Enabled)
		if u.PID > 0 {
			line += fmt.Sprintf(", pid %d", u.PID)
		}
		fmt.Fprintf(a.out, "%s %s\n", systemd.UnitName, line)
		if len(u.Others) > 0 {
			fmt.Fprintf(a.out, "drop-ins of others: %s\n", strings.Join(u.Others, ", "))
		}
	}
	if len(r.Drift) == 0 {
		fmt.Fprintln(a.out, c.green("nothing drifted"))
		return
	}
	a.printDrift(r.Drift)
}

// printBoot says what the last run that the machine started by itself came to.
func (a *app) printBoot(r *install.BootResult) {
	if r == nil {
		return
	}
	c, line := a.paint(a.out), fmt.Sprintf("%s at %s: %s after %.1f s", r.Verb, r.Began.Local().Format(time.DateTime), r.Outcome, r.Seconds)
	if r.Otherwise {
		line += ", since something else was applied"
	}
	if r.ExitCode != exitDone {
		line = c.red(line + fmt.Sprintf(", exit code %d", r.ExitCode))
	}
	fmt.Fprintf(a.out, "at boot    %s\n", line)
	if r.Error != "" {
		fmt.Fprintf(a.out, "           %s\n", indented(r.Error, "           "))
	}
}

func (a *app) printDrift(list []install.Drifted) {
	c := a.paint(a.out)
	for _, d := range list {
		fmt.Fprintf(a.out, "%s %s %s\n", c.yellow("~"), c.bold(d.Path), d.What)
	}
}
