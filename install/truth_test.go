package install

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

func (n *node) chmod(p string, mode os.FileMode) {
	n.t.Helper()
	if err := os.Chmod(filepath.Join(n.dir, p), mode); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) item(p string) Item {
	n.t.Helper()
	plan := n.diff()
	i := slices.IndexFunc(plan.Items, func(it Item) bool { return it.Path == p })
	if i < 0 {
		n.t.Fatalf("the plan has no %s: %v", p, actions(plan))
	}
	return plan.Items[i]
}

// TestPlanGivesNoSecretAway has every way in which what stands on the host is a secret
// while what the profile wants there is none.
func TestPlanGivesNoSecretAway(t *testing.T) {
	const secret = "/etc/containerd/certs.d/docker.io/secret.toml"
	const config = "/etc/containerd/config.toml"
	tests := []struct {
		name    string
		path    string
		action  Action
		prepare func(n *node)
	}{
		{"the secret is no longer wanted in the file", secret, Update, func(n *node) {
			n.apply()
			f := n.file(secret)
			f.Secret, f.Mode, f.Content, f.Format = false, 0o644, []byte("server = 'https://a'\n"), desired.FormatTOML
		}},
		{"the file goes", secret, Remove, func(n *node) {
			n.apply()
			n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return f.Path == secret })
		}},
		{"another's file is taken over", config, Update, func(n *node) {
			n.write(config, "hunter2 = 'hunter2'\n")
			n.chmod(config, 0o600)
			n.opt.Adopt = true
		}},
		{"another's file stands in the way", config, Refuse, func(n *node) {
			n.write(config, "hunter2 = 'hunter2'\n")
			n.chmod(config, 0o600)
		}},
		{"our file was closed and edited", config, Update, func(n *node) {
			n.apply()
			n.write(config, "hunter2 = 'hunter2'\n")
			n.chmod(config, 0o640)
			n.opt.Adopt = true
		}},
		{"our file was closed and is no longer wanted", config, Remove, func(n *node) {
			n.file(config).Content = []byte("version = 2 # hunter2\n")
			n.apply()
			n.chmod(config, 0o600)
			n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return f.Path == config })
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.services.active = "active"
			tt.prepare(n)
			it := n.item(tt.path)
			if it.Action != tt.action {
				t.Fatalf("%s: action %s, want %s", tt.path, it.Action, tt.action)
			}
			if !it.Secret || it.Old != nil || it.New != nil {
				t.Errorf("secret %v, old %q, new %q; want nothing to show", it.Secret, it.Old, it.New)
			}
			data, err := json.Marshal(n.diff())
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(data), "hunter2") {
				t.Errorf("the plan gives the secret away: %s", data)
			}
		})
	}
}

func TestPlanShowsWhatIsNoSecret(t *testing.T) {
	n := newNode(t)
	n.apply()
	const config = "/etc/containerd/config.toml"
	n.file(config).Content = []byte("version = 3\n")
	if it := n.item(config); it.Secret || string(it.Old) != "version = 2\n" || string(it.New) != "version = 3\n" {
		t.Errorf("secret %v, old %q, new %q", it.Secret, it.Old, it.New)
	}
}

// TestAnotherDaemonIsNotAccepted has what is healthy and yet not the daemon that was
// planned.
func TestAnotherDaemonIsNotAccepted(t *testing.T) {
	tests := []struct {
		name    string
		prepare func(n *node)
		want    string // "" when it is the planned one
	}{
		{"the unit's own", func(*node) {}, ""},

		{"another program", func(n *node) {
			n.remove("/proc/7/exe")
			n.symlink("/usr/bin/containerd", "/proc/7/exe")
		}, "process 7 runs /usr/bin/containerd, want /usr/local/bin/containerd"},
		{"a program that was replaced", func(n *node) {
			n.remove("/proc/7/exe")
			n.symlink("/usr/local/bin/containerd (deleted)", "/proc/7/exe")
		}, "process 7 runs /usr/local/bin/containerd (deleted)"},
		{"no main process", func(n *node) { n.services.mainPID = -1 }, "no main process"},
		{"another process at the socket", func(n *node) { n.daemon.pid = 8 }, "its process is 7, but process 8 listens at /run/containerd/containerd.sock"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.state.Daemon.Binary = "/usr/local/bin/containerd"
			tt.prepare(n)
			_, err := n.tryApply(t.Context())
			if tt.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("apply = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestMentionsWholeReleases(t *testing.T) {
	for text, want := range map[string]bool{
		"2.0.0":                  true,
		"v2.0.0":                 true,
		"runc version 2.0.0\n":   true,
		"2.0.0~ds1":              true,
		"2.0.0+unknown":          true,
		"2.0.0-0ubuntu1~22.04.1": true,
		"2.0.0-rc.3":             false,
		"2.0.0-beta.0":           false,
		"2.0.0~rc3":              false,
		"2.0.0-alpha":            false,
		"2.0.01":                 false,
		"12.0.0":                 false,
		"2.0.0-rc.1, then 2.0.0": true,
	} {
		if got := mentions(text, "2.0.0"); got != want {
			t.Errorf("mentions(%q, 2.0.0) = %v, want %v", text, got, want)
		}
	}
	if !mentions("containerd v2.0.0-rc.3", "2.0.0-rc.3") {
		t.Error("a release candidate that is wanted is not found")
	}
}

const unitFile = "/etc/systemd/system/containerd.service"

// stale is a systemd that read its units before they changed.
type stale struct{ *services }

func (s stale) Properties(ctx context.Context, unit string) (systemd.Properties, error) {
	p, err := s.services.Properties(ctx, unit)
	p.NeedDaemonReload = true
	return p, err
}

func TestSystemdReadsWhatWasReplaced(t *testing.T) {
	tests := []struct {
		name   string
		change func(n *node)
		want   []string
	}{
		{"a unit's comment", func(n *node) { n.file(unitFile).Content = []byte("# newer\n" + unitText) }, []string{"update file " + unitFile, "reload unit systemd"}},
		{"a unit's mode", func(n *node) { n.chmod(unitFile, 0o600) }, []string{"update file " + unitFile, "reload unit systemd"}},
		{"a unit that systemd has not read", func(n *node) { n.opt.Services = stale{n.services} }, []string{"reload unit systemd"}},
		{"a reload is planned once", func(n *node) {
			n.opt.Services = stale{n.services}
			n.file(unitFile).Content = []byte("# newer\n" + unitText)
		}, []string{"update file " + unitFile, "reload unit systemd"}},
		{"what systemd does not read", func(n *node) { n.file("/etc/containerd/config.toml").Content = []byte("version = 2 # x\n") }, []string{"update file /etc/containerd/config.toml"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.apply()
			n.services.did = nil
			tt.change(n)
			if diff := cmp.Diff(tt.want, actions(n.diff())); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			n.apply()
			if want := slices.Contains(tt.want, "reload unit systemd"); slices.Contains(n.services.did, "reload") != want || len(n.services.did) > 1 {
				t.Errorf("systemd was told %v", n.services.did)
			}
		})
	}
}

func TestMaskedIsNotEnabled(t *testing.T) {
	const wants = "/etc/systemd/system/multi-user.target.wants/containerd.service"
	for target, masked := range map[string]bool{
		"/dev/null":                              true,
		"../../../../dev/null":                   true,
		"/opt/empty":                             true,
		"/lib/systemd/system/containerd.service": false, // the name counts, not where it leads
	} {
		t.Run(target, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.write("/opt/empty", "")
			n.symlink(target, wants)
			_, err := n.tryApply(t.Context())
			if !masked {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), wants+": is a symbolic link to "+target+", which keeps the unit from starting at boot") || !strings.Contains(err.Error(), "--adopt") {
				t.Fatalf("apply = %v, want a refusal", err)
			}
			n.opt.Adopt = true
			n.apply()
			if got, err := n.h.Root.Readlink(wants); err != nil || got != unitFile {
				t.Errorf("taken over, it is a link to %q, %v", got, err)
			}
			rec, err := ReadReceipt(n.h.Root)
			if err != nil {
				t.Fatal(err)
			}
			if b := rec.Find(wants).Before; b == nil || b.Target != target {
				t.Errorf("before there was %+v", b)
			}
			if plan := n.diff(); !plan.Empty() {
				t.Errorf("afterwards there is more to do: %v", actions(plan))
			}
		})
	}
}

func TestMaskedUnitSaysHowToUnmask(t *testing.T) {
	for _, ours := range []bool{false, true} {
		n := newNode(t)
		if ours {
			n.apply()
			n.remove(unitFile)
		}
		n.symlink("/dev/null", unitFile)
		_, err := n.tryApply(t.Context())
		if err == nil || !strings.Contains(err.Error(), `the unit is masked; "systemctl unmask containerd.service" lifts that`) {
			t.Errorf("ours %v: apply = %v", ours, err)
		}
	}
}

// TestModeOfABinaryIsRepaired needs neither the release nor a restart.
func TestModeOfABinaryIsRepaired(t *testing.T) {
	const daemon = "/usr/local/bin/containerd"
	drifts := map[string]func(n *node){"mode": func(n *node) { n.chmod(daemon, 0o775) }}
	if os.Getuid() == 0 {
		drifts["owner"] = func(n *node) {
			if err := os.Chown(filepath.Join(n.dir, daemon), 1, 2); err != nil {
				n.t.Fatal(err)
			}
		}
		drifts["setuid"] = func(n *node) {
			drifts["owner"](n)
			n.chmod(daemon, 0o755|os.ModeSetuid)
		}
	} else {
		t.Log("without root owners cannot drift: only modes are tried")
	}
	for name, drift := range drifts {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.apply()
			fi, err := n.h.Root.Lstat(daemon)
			if err != nil {
				t.Fatal(err)
			}
			drift(n)
			n.services.did = nil
			n.opt.Artifacts = nil
			if diff := cmp.Diff([]string{"update file " + daemon}, actions(n.diff())); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			n.apply()
			now, err := n.h.Root.Lstat(daemon)
			if err != nil {
				t.Fatal(err)
			}
			was, is := fi.Sys().(*syscall.Stat_t), now.Sys().(*syscall.Stat_t)
			if !os.SameFile(fi, now) || now.Mode() != fi.Mode() || is.Uid != was.Uid || is.Gid != was.Gid {
				t.Errorf("it has %v %d:%d, had %v %d:%d", now.Mode(), is.Uid, is.Gid, fi.Mode(), was.Uid, was.Gid)
			}
			if len(n.services.did) > 0 {
				t.Errorf("systemd was told %v", n.services.did)
			}
			if plan := n.diff(); !plan.Empty() {
				t.Errorf("afterwards there is more to do: %v", actions(plan))
			}
		})
	}
}

// TestRepairIsUndone fails a repair at each of its writes.
func TestRepairIsUndone(t *testing.T) {
	undone := 0
	for at, total := int64(1), int64(1); at <= total; at++ {
		n := newNode(t)
		n.apply()
		n.chmod("/usr/local/bin/containerd", 0o775)
		n.chmod("/usr/local/sbin/runc", 0o700)
		before := n.tree(true)
		w := &writer{chown: n.h.UID == 0}
		var what string
		w.before = func(call int64, op, path string) error {
			if call == at {
				what = op + " " + path
				return syscall.EIO
			}
			return nil
		}
		n.opt.writer = w
		if _, err := n.tryApply(t.Context()); err == nil {
			total = w.calls.Load()
			continue
		} else if stranded := (*StrandedError)(nil); errors.As(err, &stranded) {
			t.Errorf("write %d (%s): %v", at, what, err)
		}
		total = max(total, at+1)
		n.same(before, true, fmt.Sprintf("write %d (%s)", at, what))
		undone++
	}
	if undone < 4 {
		t.Errorf("only %d writes could fail", undone)
	}
}

// A file whose mode changed may have been changed otherwise, and its time set back.
func TestRepairLooksIntoTheFile(t *testing.T) {
	const daemon = "/usr/local/bin/containerd"
	n := newNode(t)
	n.apply()
	fi, err := n.h.Root.Lstat(daemon)
	if err != nil {
		t.Fatal(err)
	}
	n.write(daemon, "daemon 666")
	if err := os.Chtimes(filepath.Join(n.dir, daemon), fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	n.chmod(daemon, 0o775)
	if got := actions(n.diff()); !slices.Equal(got, []string{"refuse file " + daemon, "update artifact containerd"}) {
		t.Errorf("plan %v", got)
	}
}

func TestEditedMemberThatTheNewReleaseLacks(t *testing.T) {
	const shim = "/usr/local/bin/containerd-shim-runc-v1"
	for _, foreign := range []bool{false, true} {
		n := newNode(t)
		if foreign {
			n.write(shim, "somebody's")
			n.opt.Adopt = true
			n.apply()
			n.opt.Adopt = false
		}
		n.apply()
		n.write(shim, "edited by hand")
		n.state.Artifacts[0].Version = "2.0.0"
		n.apply()
		if got := n.read(shim); got != "edited by hand" {
			t.Errorf("it was not left alone: %q", got)
		}
		if plan := n.diff(); !plan.Empty() {
			t.Errorf("afterwards there is more to do: %v", actions(plan))
		}
		rec, err := ReadReceipt(n.h.Root)
		if err != nil {
			t.Fatal(err)
		}
		if in := rec.installed("containerd"); slices.Contains(in.Files, shim) {
			t.Errorf("the release still has %v", in.Files)
		}
		// What it took the place of can still be given back.
		if own := rec.Find(shim); (own != nil) != foreign || foreign && n.read(own.Before.Path) != "somebody's" {
			t.Errorf("foreign %v: the receipt has %+v", foreign, own)
		}
	}
}

func TestOptionalMemberInTheWay(t *testing.T) {
	const shim = "/usr/local/bin/containerd-shim-runc-v1"
	n := newNode(t)
	n.write(shim, "somebody's")
	n.state.Artifacts[0].Version = "2.0.0" // has none
	plan := n.diff()
	if plan.Refusal() != nil || len(plan.Warnings) != 1 || !strings.Contains(plan.Warnings[0].String(), shim) {
		t.Errorf("refused: %v, warnings %v", plan.Refusal(), plan.Warnings)
	}
	n.opt.Adopt = true
	res := n.apply()
	for _, it := range res.Changed {
		if len(it.Adopted) > 0 {
			t.Errorf("%s says that it took over %v", it.Path, it.Adopted)
		}
	}
	if got := n.read(shim); got != "somebody's" {
		t.Errorf("it has become %q", got)
	}
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is more to do: %v", actions(plan))
	}
	// A release that has one does not get it by itself.
	n.opt.Adopt = false
	n.state.Artifacts[0].Version = "1.0.0"
	before := n.tree(true)
	_, err := n.tryApply(t.Context())
	if refused := (*NotOwnedError)(nil); !errors.As(err, &refused) || refused.Refused[0].Path != shim {
		t.Errorf("apply = %v, want a refusal of %s", err, shim)
	}
	n.same(before, true, "refusal")
	n.opt.Adopt = true
	n.apply()
	if got := n.read(shim); got != "old shim" {
		t.Errorf("taken over, it is %q", got)
	}
}

func TestReasonOfARestartIsOneThatHolds(t *testing.T) {
	n := newNode(t)
	n.live()
	n.apply()
	n.releases["containerd 1.0.1"] = n.releases["containerd 1.0.0"]
	n.state.Artifacts[0].Version, n.state.Daemon.Version = "1.0.1", "1.0.1"
	n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
	for _, it := range n.apply().Changed {
		if it.Action != Restart {
			continue
		}
		if diff := cmp.Diff([]string{it.Reason}, it.Details); diff != "" || !strings.HasPrefix(it.Reason, "config.toml") {
			t.Errorf("reason %q, details %v", it.Reason, it.Details)
		}
	}
}

func TestWarningsAreToldOnce(t *testing.T) {
	n := newNode(t)
	n.apply()
	const hosts, shim = "/etc/containerd/certs.d/docker.io/hosts.toml", "/usr/local/bin/containerd-shim-runc-v1"
	n.write(hosts, "edited")
	n.write(shim, "edited")
	n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return f.Path == hosts })
	n.state.Artifacts[0].Version = "2.0.0"
	plan := n.diff()
	told := len(plan.Warnings)
	res, err := Apply(t.Context(), n.h, plan, n.opt)
	if err != nil {
		t.Fatal(err)
	}
	if told == 0 || len(res.Warnings) != 1 || !strings.Contains(res.Warnings[0].String(), shim) {
		t.Errorf("the plan has %v, the result %v; want what is new in the result alone", plan.Warnings[:told], res.Warnings)
	}
}

// TestImportDoesNotWaitForADeadDaemon: the hour that a large archive may take is not
// for a socket where nobody answers.
func TestImportDoesNotWaitForADeadDaemon(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := Containerd{wait: 50 * time.Millisecond}
	_, err := c.Import(ctx, desired.Daemon{Address: filepath.Join(t.TempDir(), "none.sock")}, desired.Image{}, strings.NewReader(""), nil)
	if err == nil || ctx.Err() != nil {
		t.Errorf("Import = %v; the import's own time: %v", err, ctx.Err())
	}
}

func TestImportAsksWhoAnswersFirst(t *testing.T) {
	n := newNode(t)
	n.live()
	n.apply()
	archive := filepath.Join(t.TempDir(), "pause.tar")
	if err := os.WriteFile(archive, pause().tar(t), 0o600); err != nil {
		t.Fatal(err)
	}
	n.state.Images = []desired.Image{{File: archive}}
	n.daemon.sick["1.0.0"] = errors.New("does not answer")
	if _, err := n.tryApply(t.Context()); err == nil || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("apply = %v", err)
	}
	if len(n.daemon.imported) > 0 {
		t.Errorf("imported %v", n.daemon.imported)
	}
}

func TestModuleByAnAlias(t *testing.T) {
	tests := []struct {
		name    string
		resolve string // what modprobe says the alias stands for
		err     error
		gone    []string // the plan once the module is gone
	}{
		{"resolved", "nf_conntrack\n", nil, []string{"load module nf-conntrack-2"}},
		{"a modprobe that cannot tell", "", errors.New("unknown option"), nil},
		{"nothing that the kernel shows", "something_else\n", nil, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			var ran []string
			n.h.Run = func(_ context.Context, c host.Cmd) (host.Output, error) {
				if c.Path != "/sbin/modprobe" {
					return host.Output{Stdout: []byte("1.0.0")}, nil
				}
				ran = append(ran, c.Args[0])
				if c.Args[0] == "--resolve-alias" {
					return host.Output{Stdout: []byte(tt.resolve)}, tt.err
				}
				n.write("/sys/module/nf_conntrack/refcnt", "0")
				return host.Output{}, nil
			}
			n.state.Modules = []string{"nf-conntrack-2"}
			n.apply()
			if diff := cmp.Diff([]string{"--", "--resolve-alias"}, ran); diff != "" {
				t.Errorf("modprobe was run with (-want +got):\n%s", diff)
			}
			ran = nil
			if plan := n.diff(); !plan.Empty() || len(ran) > 0 {
				t.Errorf("afterwards there is more to do: %v, ran %v", actions(plan), ran)
			}
			// Another run keeps what is known of it.
			n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
			n.apply()
			if plan := n.diff(); !plan.Empty() {
				t.Errorf("after another run there is more to do: %v", actions(plan))
			}
			n.remove("/sys/module/nf_conntrack/refcnt")
			n.remove("/sys/module/nf_conntrack")
			if got := actions(n.diff()); !slices.Equal(got, tt.gone) {
				t.Errorf("after a reboot the plan is %v, want %v", got, tt.gone)
			}
		})
	}
}

func TestModprobeIsFoundBeforeAnythingIsWritten(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	n := newNode(t)
	n.live()
	n.state.Modules = []string{"overlay"}
	n.remove("/sbin/modprobe")
	before := n.tree(true)
	_, err := n.tryApply(t.Context())
	if reverted := (*RevertedError)(nil); err == nil || errors.As(err, &reverted) || !strings.Contains(err.Error(), "modprobe") {
		t.Errorf("apply = %v, want a refusal before anything is written", err)
	}
	n.same(before, true, "refusal")
	// As on distributions that have no /sbin, and as root's PATH under cron.
	n.write("/usr/sbin/modprobe", "")
	var ran string
	n.h.Run = func(_ context.Context, c host.Cmd) (host.Output, error) {
		if strings.HasSuffix(c.Path, "modprobe") && ran == "" {
			ran = c.String()
		}
		return host.Output{Stdout: []byte("1.0.0")}, nil
	}
	n.apply()
	if ran != "/usr/sbin/modprobe -- overlay" {
		t.Errorf("ran %q", ran)
	}
}
