package main

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/systemd"
)

// What systemd says of the unit is drift where it is not as apply left it, told once and
// in words.
func TestUnitDrift(t *testing.T) {
	const unit = "/etc/systemd/system/containerd.service"
	receipt := &install.Receipt{Owned: []install.Owned{
		{Path: unit, Kind: install.KindFile},
		{Path: "/etc/systemd/system/containerd.service.d/10-ours.conf", Kind: install.KindFile},
	}}
	asApplied := systemd.Properties{
		ActiveState: "active", SubState: "running", UnitFileState: "enabled", FragmentPath: unit,
		DropInPaths: []string{"/etc/systemd/system/containerd.service.d/10-ours.conf"},
	}
	missingLink := inWords(install.Drifted{Path: "/etc/systemd/system/multi-user.target.wants/containerd.service", What: "is missing"})
	if want := "is missing: containerd.service is disabled and does not start at boot"; missingLink.What != want {
		t.Errorf("got %q, want %q", missingLink.What, want)
	}
	for _, c := range []struct {
		name   string
		change func(*systemd.Properties)
		known  []install.Drifted
		want   []string
		others []string
	}{
		{name: "as applied", change: func(*systemd.Properties) {}},
		{
			name: "down", change: func(p *systemd.Properties) { p.ActiveState, p.SubState = "failed", "failed" },
			want: []string{"containerd.service is failed (failed); journalctl -u containerd.service says why"},
		},
		{
			name: "disabled", change: func(p *systemd.Properties) { p.UnitFileState = "disabled" },
			want: []string{"containerd.service is disabled, so it does not start at boot"},
		},
		{
			name: "disabled, and the link was told of", change: func(p *systemd.Properties) { p.UnitFileState = "disabled" },
			known: []install.Drifted{missingLink},
		},
		{
			name: "masked", change: func(p *systemd.Properties) { p.UnitFileState = "masked" },
			want: []string{"containerd.service is masked, so it does not start at boot"},
		},
		{
			name: "another unit file", change: func(p *systemd.Properties) { p.FragmentPath = "/run/systemd/system/containerd.service" },
			want: []string{"/run/systemd/system/containerd.service is the unit file in force, and it is not nodeprep's"},
		},
		{
			name: "a drop-in of others that overrides nothing", change: func(p *systemd.Properties) {
				p.DropInPaths = append(p.DropInPaths, "/usr/lib/systemd/system/service.d/10-distribution.conf")
			},
			others: []string{"/usr/lib/systemd/system/service.d/10-distribution.conf"},
		},
		{
			name: "not reloaded", change: func(p *systemd.Properties) { p.NeedDaemonReload = true },
			want: []string{"containerd.service was changed on disk since systemd read it; systemctl daemon-reload makes it count"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := asApplied
			p.DropInPaths = append([]string(nil), asApplied.DropInPaths...)
			c.change(&p)
			status, drift := unitDrift(p, receipt, c.known)
			var got []string
			for _, d := range drift {
				got = append(got, d.Path+" "+d.What)
			}
			if diff := cmp.Diff(c.want, got); diff != "" {
				t.Errorf("drift (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(c.others, status.Others); diff != "" {
				t.Errorf("drop-ins of others (-want +got):\n%s", diff)
			}
		})
	}
}
