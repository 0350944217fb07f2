package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
)

// unitRoot makes a root of files, and of links where the content begins with "-> ".
func unitRoot(t *testing.T, files map[string]string) *host.Root {
	t.Helper()
	root, err := host.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	for p, content := range files {
		at := filepath.Join(root.Dir(), p)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			err = os.Symlink(target, at)
		} else {
			err = os.WriteFile(at, []byte(content), 0o644)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func TestFragmentsAsSystemdLoadsThem(t *testing.T) {
	const (
		etc    = "/etc/systemd/system/"
		run    = "/run/systemd/system/"
		vendor = "/usr/lib/systemd/system/"
		drop   = "containerd.service.d/"
	)
	for name, c := range map[string]struct {
		files map[string]string
		over  map[string]later
		want  []string
	}{
		"none": {},
		"the unit of highest precedence": {
			files: map[string]string{vendor + "containerd.service": "v", run + "containerd.service": "r", "/usr/local/lib/systemd/system/containerd.service": "l", etc + "containerd.service": "e"},
			want:  []string{etc + "containerd.service"},
		},
		"drop-ins by name, wherever they are": {
			files: map[string]string{etc + "containerd.service": "e", etc + drop + "20.conf": "x", vendor + drop + "10.conf": "x", run + drop + "30.conf": "x", etc + "service.d/15.conf": "x", etc + drop + "ignored.txt": "x"},
			want:  []string{etc + "containerd.service", vendor + drop + "10.conf", etc + "service.d/15.conf", etc + drop + "20.conf", run + drop + "30.conf"},
		},
		"one name, several places": {
			files: map[string]string{vendor + drop + "10.conf": "v", run + drop + "10.conf": "r", etc + drop + "10.conf": "e", "/etc/systemd/system.control/" + drop + "10.conf": "c", etc + "service.d/10.conf": "all"},
			want:  []string{"/etc/systemd/system.control/" + drop + "10.conf"},
		},
		"the unit's own before those for all, also a vendor's": {
			files: map[string]string{etc + "service.d/10.conf": "all", vendor + drop + "10.conf": "v"},
			want:  []string{vendor + drop + "10.conf"},
		},
		"masked": {
			files: map[string]string{vendor + drop + "10.conf": "v", etc + drop + "10.conf": "-> /dev/null", vendor + drop + "20.conf": "v", etc + drop + "20.conf": "", vendor + drop + "30.conf": "v", etc + drop + "30.conf": "-> /nowhere"},
		},
		"/lib leads to /usr/lib": {
			files: map[string]string{"/lib": "-> usr/lib", vendor + "containerd.service": "v", vendor + drop + "10.conf": "v"},
			want:  []string{vendor + "containerd.service", vendor + drop + "10.conf"},
		},
		"an alias brings its own": {
			files: map[string]string{etc + "containerd.service": "-> " + vendor + "docker-containerd.service", vendor + "docker-containerd.service": "v", etc + "docker-containerd.service.d/10.conf": "x"},
			want:  []string{etc + "containerd.service", etc + "docker-containerd.service.d/10.conf"},
		},
		"a link to a drop-in elsewhere": {
			files: map[string]string{etc + drop + "10.conf": "-> ../../../../opt/site.conf", "/opt/site.conf": "x"},
			want:  []string{etc + drop + "10.conf"},
		},
		"a plan writes, replaces and removes": {
			files: map[string]string{etc + drop + "10.conf": "old", etc + drop + "20.conf": "old", vendor + drop + "20.conf": "v", vendor + "containerd.service": "v", vendor + drop + "40.conf": "v"},
			over: map[string]later{
				etc + "containerd.service": {content: []byte("new")}, etc + drop + "10.conf": {content: []byte("new")},
				etc + drop + "20.conf": {gone: true}, etc + drop + "30.conf": {content: []byte("new")}, etc + drop + "40.conf": {target: "/dev/null"},
			},
			want: []string{etc + "containerd.service", etc + drop + "10.conf", vendor + drop + "20.conf", etc + drop + "30.conf"},
		},
		"a directory and a device are no files": {
			files: map[string]string{etc + drop + "10.conf/x": "x", etc + "containerd.service/x": "x", vendor + "containerd.service": "v"},
			want:  []string{vendor + "containerd.service"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			root := unitRoot(t, c.files)
			o := outlook{root: root, over: map[string]later{}}
			for p, l := range c.over {
				o.over[filepath.Join(root.Dir(), p)] = l
			}
			got, err := o.fragments("containerd.service")
			if err != nil {
				t.Fatal(err)
			}
			var paths []string
			for _, f := range got {
				paths = append(paths, f.Path)
				if l, ok := c.over[f.Path]; ok && string(f.Content) != string(l.content) {
					t.Errorf("%s has %q", f.Path, f.Content)
				}
			}
			if diff := cmp.Diff(c.want, paths); diff != "" {
				t.Errorf("fragments (-want +got):\n%s", diff)
			}
		})
	}
}

func TestShadowing(t *testing.T) {
	const (
		unit = "/etc/systemd/system/containerd.service"
		env  = "/etc/systemd/system/containerd.service.d/10-nodeprep-environment.conf"
		site = "/etc/systemd/system/containerd.service.d/50-site.conf"
	)
	ours := map[string]string{
		unit: "[Unit]\nDescription=containerd\nAfter=network.target\n[Service]\nExecStartPre=-/sbin/modprobe overlay\nExecStart=/usr/local/bin/containerd\nKillMode=process\nDelegate=yes\nOOMScoreAdjust=-999\n[Install]\nWantedBy=multi-user.target\n",
		env:  "[Service]\nEnvironment=\"A=one word\"\nEnvironment=\"B=%%x\"\n",
	}
	type found struct{ Path, What string }
	for name, c := range map[string]struct {
		others map[string]string
		want   []found
	}{
		"nothing of others":       {},
		"what ours do not set":    {others: map[string]string{site: "[Service]\nLimitCORE=0\nEnvironment=C=1\nEnvironmentFile=/etc/x\n"}},
		"the same values":         {others: map[string]string{site: "[Service]\nKillMode=process\nDelegate=true\nEnvironment=\"A=one word\"\n"}},
		"it adds":                 {others: map[string]string{site: "[Unit]\nAfter=zfs.target\nDescription=x\n[Service]\nExecStartPre=/bin/true\n[Install]\nWantedBy=x.target\n"}},
		"ignored by systemd":      {others: map[string]string{site: "[Service]\nKillMode=nonsense\n"}},
		"before ours in order":    {others: map[string]string{"/etc/systemd/system/containerd.service.d/05-x.conf": "[Service]\nEnvironment=A=two\n"}},
		"masked":                  {others: map[string]string{"/usr/lib/systemd/system/containerd.service.d/50-site.conf": "[Service]\nKillMode=mixed\n", site: "-> /dev/null"}},
		"another unit's":          {others: map[string]string{"/etc/systemd/system/docker.service.d/x.conf": "[Service]\nKillMode=mixed\n"}},
		"a vendor's unit beneath": {others: map[string]string{"/usr/lib/systemd/system/containerd.service": "[Service]\nKillMode=mixed\n"}},
		"single values": {
			others: map[string]string{site: "[Service]\nKillMode=mixed\nDelegate=no\nOOMScoreAdjust=0\n"},
			want: []found{
				{site, "sets KillMode=mixed over process of " + unit},
				{site, "sets Delegate=no over yes of " + unit},
				{site, "sets OOMScoreAdjust=0 over -999 of " + unit},
			},
		},
		"taken back": {
			others: map[string]string{site: "[Service]\nKillMode=\nOOMScoreAdjust=\n"},
			want: []found{
				{site, "sets KillMode=control-group over process of " + unit},
				{site, "sets OOMScoreAdjust=nothing over -999 of " + unit},
			},
		},
		"the program": {
			others: map[string]string{site: "[Service]\nExecStart=\nExecStart=/usr/bin/containerd\n"},
			want:   []found{{site, "sets ExecStart=/usr/bin/containerd over /usr/local/bin/containerd of " + unit}},
		},
		"a list emptied": {
			others: map[string]string{site: "[Service]\nExecStartPre=\n"},
			want:   []found{{site, "sets ExecStartPre=nothing over -/sbin/modprobe overlay of " + unit}},
		},
		"for all services": {
			others: map[string]string{"/etc/systemd/system/service.d/99.conf": "[Service]\nOOMScoreAdjust=-100\n"},
			want:   []found{{"/etc/systemd/system/service.d/99.conf", "sets OOMScoreAdjust=-100 over -999 of " + unit}},
		},
		"a variable, whose value is nobody's business": {
			others: map[string]string{site: "[Service]\nEnvironment=\"X=1\" 'A=hunter2'\n"},
			want:   []found{{site, "sets the variable A over that of " + env}},
		},
		"all variables": {
			others: map[string]string{site: "[Service]\nEnvironment=\nEnvironment=A=\"one word\"\n"},
			want:   []found{{site, "takes the variable B of " + env + " away with an empty Environment="}},
		},
		"a file in place of ours": {
			others: map[string]string{"/etc/systemd/system.control/containerd.service.d/10-nodeprep-environment.conf": "[Service]\nEnvironment=Z=1\n"},
			want:   []found{{env, "is not read by systemd: /etc/systemd/system.control/containerd.service.d/10-nodeprep-environment.conf has precedence"}},
		},
		"a unit in place of ours": {
			others: map[string]string{"/run/systemd/transient/containerd.service": "[Service]\nExecStart=/bin/x\n"},
			want:   []found{{unit, "is not read by systemd: /run/systemd/transient/containerd.service has precedence"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{}
			receipt := &Receipt{Owned: []Owned{{Path: "/etc/containerd/config.toml", Kind: KindFile}, {Path: "/etc/systemd/system/multi-user.target.wants/containerd.service", Kind: KindLink}}}
			for p, content := range ours {
				files[p] = content
				receipt.Owned = append(receipt.Owned, Owned{Path: p, Kind: KindFile, Format: desired.FormatUnit})
			}
			for p, content := range c.others {
				files[p] = content
			}
			got, err := Shadowing(unitRoot(t, files), receipt)
			if err != nil {
				t.Fatal(err)
			}
			var all []found
			for _, d := range got {
				all = append(all, found{d.Path, d.What})
			}
			if diff := cmp.Diff(c.want, all); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
		})
	}
	if got, err := Shadowing(unitRoot(t, nil), nil); err != nil || got != nil {
		t.Errorf("without a receipt: %v, %v", got, err)
	}
}
