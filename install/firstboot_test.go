package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// goldenRoot is a root that was provisioned as an image, without images of containers, and
// then booted: its kernel has neither the module nor the settings yet.
func goldenRoot(t *testing.T) *node {
	t.Helper()
	n := nodeAt(t, fastDir(t))
	n.install("nodeprep")
	n.state.Modules = []string{"overlay", "br_netfilter"}
	n.state.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "net.bridge.bridge-nf-call-iptables": "1"}
	n.state.Files = append(n.state.Files,
		desired.File{Path: "/etc/modules-load.d/nodeprep.conf", Mode: 0o644, Format: desired.FormatLines, Effect: desired.EffectSysctl, Content: []byte("# ours\noverlay\nbr_netfilter\n")},
		desired.File{Path: "/etc/sysctl.d/90-nodeprep.conf", Mode: 0o644, Format: desired.FormatLines, Effect: desired.EffectSysctl, Content: []byte("net.ipv4.ip_forward = 1\nnet.bridge.bridge-nf-call-iptables = 1\n")})
	n.apply()
	n.boot()
	n.write("/proc/sys/net/ipv4/ip_forward", "0\n")
	n.write("/sys/module/overlay/refcnt", "0\n")
	n.h.Run = func(_ context.Context, c host.Cmd) (host.Output, error) {
		if c.Path == "/sbin/modprobe" && slices.Equal(c.Args, []string{"--", "br_netfilter"}) {
			n.write("/sys/module/br_netfilter/refcnt", "0\n")
			n.write(bridged, "0\n")
			return host.Output{}, nil
		}
		return host.Output{}, fmt.Errorf("%s: not expected", c)
	}
	return n
}

const bridged = "/proc/sys/net/bridge/bridge-nf-call-iptables"

// TestEveryRootThatDoesNotRunGetsAMarker: also one without images, and none without a
// program that would take it away.
func TestEveryRootThatDoesNotRunGetsAMarker(t *testing.T) {
	n := goldenRoot(t)
	if waits, err := FirstBootWaits(n.h.Root); !waits || err != nil {
		t.Errorf("the first boot has nothing to do (%v)", err)
	}
	if target, err := n.h.Root.Readlink(firstBootLink); err != nil || target != systemd.FirstBootUnitPath {
		t.Errorf("the unit is enabled by a link to %q (%v)", target, err)
	}
	n.clean()
	without := newNode(t)
	without.apply()
	if _, err := without.h.Root.Lstat(FirstBootPath); !isAbsent(err) {
		t.Errorf("a root without nodeprep has a marker that nobody takes away (%v)", err)
	}
	running := newNode(t)
	running.live()
	running.install("nodeprep")
	running.apply()
	for _, p := range []string{FirstBootPath, systemd.FirstBootUnitPath} {
		if _, err := running.h.Root.Lstat(p); !isAbsent(err) {
			t.Errorf("a running host has %s (%v)", p, err)
		}
	}
}

// TestFirstBootKernel: what systemd did not load and set is loaded and set.
func TestFirstBootKernel(t *testing.T) {
	n := goldenRoot(t)
	id := n.receipt().ID
	got, err := n.firstBoot()
	if err != nil {
		t.Fatal(err)
	}
	want := &FirstBooted{Waited: true, Modules: []string{"br_netfilter"}, Settings: []string{"net.bridge.bridge-nf-call-iptables=1", "net.ipv4.ip_forward=1"}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("first boot (-want +got):\n%s", diff)
	}
	for _, p := range []string{bridged, "/proc/sys/net/ipv4/ip_forward"} {
		if n.read(p) != "1\n" {
			t.Errorf("%s is %q", p, n.read(p))
		}
	}
	n.nothingWaits("first boot")
	// Machines that were made of one image are told apart from now on.
	if n.receipt().ID == id {
		t.Error("the receipt has the ID that all machines of this image began with")
	}
	n.clean()
	n.noDebris()
	n.wantActions("afterwards")
	if got, err := n.firstBoot(); err != nil || got.Waited {
		t.Errorf("the second boot: %+v, %v", got, err)
	}
}

// TestFirstBootKernelAlias: a module that has another name when it is loaded is known by that.
func TestFirstBootKernelAlias(t *testing.T) {
	n := goldenRoot(t)
	run := n.h.Run
	n.h.Run = func(ctx context.Context, c host.Cmd) (host.Output, error) {
		if slices.Equal(c.Args, []string{"--", "br_netfilter"}) {
			n.write("/sys/module/br_real/refcnt", "0\n")
			n.write(bridged, "0\n")
			return host.Output{}, nil
		}
		if slices.Contains(c.Args, "--resolve-alias") {
			return host.Output{Stdout: []byte("br_real\n")}, nil
		}
		return run(ctx, c)
	}
	if _, err := n.firstBoot(); err != nil {
		t.Fatal(err)
	}
	if got := n.receipt().Modules; !slices.Equal(got["br_netfilter"], []string{"br_real"}) {
		t.Errorf("the receipt has aliases %v", got)
	}
	n.nothingWaits("first boot")
	n.wantActions("afterwards")
}

// TestFirstBootIsTriedAgain: whatever fails, the rest is done, all of it is said, and the
// next boot does it all.
func TestFirstBootIsTriedAgain(t *testing.T) {
	for _, tt := range []struct {
		name  string
		spoil func(n *node, opt *FirstBootOptions)
		says  string
	}{
		{"module", func(n *node, _ *FirstBootOptions) {
			n.h.Run = func(context.Context, host.Cmd) (host.Output, error) {
				return host.Output{}, errors.New("Module br_netfilter not found")
			}
			n.write(bridged, "0\n")
		}, "load module br_netfilter: Module br_netfilter not found"},
		{"setting that this kernel lacks", func(n *node, _ *FirstBootOptions) {
			n.h.Run = func(context.Context, host.Cmd) (host.Output, error) {
				n.write("/sys/module/br_netfilter/refcnt", "0\n")
				return host.Output{}, nil
			}
		}, "set net.bridge.bridge-nf-call-iptables: this kernel has no such setting"},
		{"setting that does not hold", func(n *node, opt *FirstBootOptions) {
			opt.writer = &writer{chown: n.h.UID == 0, after: func(_ int64, _, p string) {
				if strings.HasSuffix(p, "ip_forward") {
					n.write("/proc/sys/net/ipv4/ip_forward", "0\n")
				}
			}}
		}, `sysctl net.ipv4.ip_forward: it is "0", not "1"`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := goldenRoot(t)
			works := n.h.Run
			id := n.receipt().ID
			opt := FirstBootOptions{Daemon: n.daemon, Version: "0.1.0", live: true}
			tt.spoil(n, &opt)
			_, err := FirstBoot(t.Context(), n.h, opt)
			if err == nil || !strings.Contains(err.Error(), tt.says) {
				t.Fatalf("first boot = %v, want %q", err, tt.says)
			}
			if tt.name != "setting that does not hold" && n.read("/proc/sys/net/ipv4/ip_forward") != "1\n" {
				t.Error("what had nothing to do with it was not done")
			}
			if _, err := n.h.Root.Lstat(FirstBootPath); err != nil || n.receipt().ID != id {
				t.Errorf("the marker does not stay: %v", err)
			}
			n.clean()
			n.h.Run = works
			n.write(bridged, "0\n")
			if got, err := n.firstBoot(); err != nil || !got.Waited {
				t.Fatalf("the next boot: %+v, %v", got, err)
			}
			n.nothingWaits("the next boot")
			n.clean()
		})
	}
}

// TestFirstBootSaysAll: a fault of each part comes at once.
func TestFirstBootSaysAll(t *testing.T) {
	n, _, _ := imageRoot(t)
	n.state.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	n.state.Files = append(n.state.Files, desired.File{Path: "/etc/sysctl.d/90-nodeprep.conf", Mode: 0o644, Format: desired.FormatLines, Content: []byte("net.ipv4.ip_forward = 1\n")})
	n.apply()
	n.boot()
	n.daemon.sick["import web.tar"] = errors.New("no space left on device")
	_, err := FirstBoot(t.Context(), n.h, FirstBootOptions{Daemon: n.daemon, Version: "0.1.0", live: true})
	for _, want := range []string{"set net.ipv4.ip_forward: ", "web.tar: no space left on device"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q: %v", want, err)
		}
	}
	n.wantImages("first boot", pauseName+" pinned")
	if err := EndFirstBoot(t.Context(), n.h, FirstBootOptions{live: true}); err == nil || !strings.Contains(err.Error(), "images wait") {
		t.Errorf("ended while an image waits: %v", err)
	}
	n.clean()
}

// TestApplyDoesWhatTheFirstBootWould: whoever provisions the booted node first needs no
// first boot any more, and rolling that back does not bring it back.
func TestApplyDoesWhatTheFirstBootWould(t *testing.T) {
	n := goldenRoot(t)
	n.file(config).Content = []byte("version = 3\n")
	plan := n.diff()
	it := plan.find(KindFile, FirstBootPath)
	if it == nil || it.Action != Remove || !strings.Contains(it.Reason, "this run does what the first boot has not") {
		t.Errorf("the plan has %+v", it)
	}
	n.apply()
	n.nothingWaits("apply")
	if got, err := n.firstBoot(); err != nil || got.Waited {
		t.Errorf("first boot: %+v, %v", got, err)
	}
	n.rollback(1)
	n.nothingWaits("rollback")
	n.clean()
	n.noDebris()
	n.must("uninstall")
	for _, p := range []string{systemd.FirstBootUnitPath, firstBootLink, StateDir} {
		if _, err := n.h.Root.Lstat(p); !isAbsent(err) {
			t.Errorf("after uninstall: %s, %v", p, err)
		}
	}
}

// TestFirstBootBetweenGenerations: a rollback to a generation of before the first boot does
// not own a marker that is not there.
func TestFirstBootBetweenGenerations(t *testing.T) {
	n, _, _ := imageRoot(t)
	n.state.Images = nil
	n.apply()
	n.file(config).Content = []byte("version = 3\n")
	n.apply()
	n.boot()
	if _, err := n.firstBoot(); err != nil {
		t.Fatal(err)
	}
	n.rollback(1)
	n.nothingWaits("rollback")
	n.clean()
}

// TestFirstBootCutOffAtItsEnd: the receipt knows the marker no more, and it is there.
func TestFirstBootCutOffAtItsEnd(t *testing.T) {
	cut := func(t *testing.T) *node {
		n := goldenRoot(t)
		n.opt.writer = &writer{chown: n.h.UID == 0, before: func(_ int64, op, p string) error {
			if op == "remove" && strings.HasSuffix(p, FirstBootPath) {
				return errors.New("power cut")
			}
			return nil
		}}
		if _, err := n.firstBoot(); err == nil || n.receipt().Find(FirstBootPath) != nil {
			t.Fatalf("first boot = %v, the receipt has %+v", err, n.receipt().Find(FirstBootPath))
		}
		n.opt.writer = nil
		return n
	}
	t.Run("next boot", func(t *testing.T) {
		n := cut(t)
		n.wantActions("an apply before it")
		if got, err := n.firstBoot(); err != nil || !got.Waited {
			t.Errorf("the next boot: %+v, %v", got, err)
		}
		n.nothingWaits("the next boot")
		n.clean()
	})
	t.Run("uninstall", func(t *testing.T) {
		n := cut(t)
		n.must("uninstall")
		if _, err := n.h.Root.Lstat(StateDir); !isAbsent(err) {
			t.Errorf("%s is there (%v)", StateDir, err)
		}
	})
	t.Run("provisioned as an image again", func(t *testing.T) {
		n := cut(t)
		n.opt.Services, n.opt.Daemon, n.opt.live = nil, nil, false
		n.wantActions("another image", "update file "+FirstBootPath)
		n.apply()
		if own := n.receipt().Find(FirstBootPath); own == nil || own.Before != nil {
			t.Errorf("the marker is owned as %+v", own)
		}
		n.clean()
		n.must("uninstall")
		if _, err := n.h.Root.Lstat(StateDir); !isAbsent(err) {
			t.Errorf("%s is there (%v)", StateDir, err)
		}
	})
}

// TestGoldenImageIsNobodys: what an image has of nodeprep names neither the machine that
// made it nor one that it will run on.
func TestGoldenImageIsNobodys(t *testing.T) {
	n, _, _ := imageRoot(t)
	n.write("/etc/machine-id", "")
	n.apply()
	var names [][]byte
	for _, p := range []string{"/etc/machine-id", "/proc/sys/kernel/random/boot_id"} {
		if b, err := os.ReadFile(p); err == nil && len(bytes.TrimSpace(b)) > 0 {
			names = append(names, bytes.TrimSpace(b))
		}
	}
	if h, err := os.Hostname(); err == nil && len(h) > 3 {
		names = append(names, []byte(h))
	}
	if len(names) == 0 {
		t.Fatal("nothing is known of this machine")
	}
	err := filepath.WalkDir(n.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return err
		}
		b, err := os.ReadFile(p)
		for _, name := range names {
			if bytes.Contains(b, name) {
				t.Errorf("%s has %q of the machine that made it", p, name)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if got := n.read("/etc/machine-id"); got != "" {
		t.Errorf("machine-id is %q", got)
	}
}
