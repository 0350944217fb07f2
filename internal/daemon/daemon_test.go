package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func plugins(except ...Plugin) []Plugin {
	all := []Plugin{
		{Type: "io.containerd.snapshotter.v1", ID: "overlayfs", State: StateOK},
		{Type: "io.containerd.snapshotter.v1", ID: "zfs", State: StateSkip, Err: "path is not on zfs: skip plugin"},
		{Type: "io.containerd.cri.v1", ID: "images", State: StateOK},
		{Type: "io.containerd.cri.v1", ID: "runtime", State: StateOK},
		{Type: "io.containerd.grpc.v1", ID: "cri", State: StateOK},
	}
	for _, e := range except {
		i := slices.IndexFunc(all, func(p Plugin) bool { return p.Type == e.Type && p.ID == e.ID })
		if e.State == "" {
			all = slices.Delete(all, i, i+1)
		} else {
			all[i] = e
		}
	}
	return all
}

func TestHealth(t *testing.T) {
	var (
		imagesFailed  = Plugin{Type: "io.containerd.cri.v1", ID: "images", State: StateError, Err: "failed to find snapshotter"}
		noImages      = Plugin{Type: "io.containerd.cri.v1", ID: "images"}
		noRuntime     = Plugin{Type: "io.containerd.cri.v1", ID: "runtime"}
		noCRI         = Plugin{Type: "io.containerd.grpc.v1", ID: "cri"}
		criFailed     = Plugin{Type: "io.containerd.grpc.v1", ID: "cri", State: StateError, Err: "`mirrors` cannot be set when `config_path` is provided"}
		overlaySkip   = Plugin{Type: "io.containerd.snapshotter.v1", ID: "overlayfs", State: StateSkip, Err: "no overlay: skip plugin"}
		overlayBroken = Plugin{Type: "io.containerd.snapshotter.v1", ID: "overlayfs", State: StateError, Err: "permission denied"}
	)
	for name, c := range map[string]struct {
		version     string
		plugins     []Plugin
		snapshotter string
		want        []string
	}{
		"2.x":                        {"2.4.2", plugins(), "overlayfs", nil},
		"1.x has one CRI plugin":     {"1.7.24~ds1", plugins(noImages, noRuntime), "overlayfs", nil},
		"1.x, CRI failed":            {"1.6.20", plugins(noImages, noRuntime, criFailed), "overlayfs", []string{"CRI plugin io.containerd.grpc.v1.cri failed: `mirrors` cannot be set"}},
		"1.x, CRI disabled":          {"1.6.20", plugins(noImages, noRuntime, noCRI), "overlayfs", []string{"io.containerd.grpc.v1.cri is not loaded: disabled_plugins"}},
		"2.x, one part failed":       {"2.1.9", plugins(imagesFailed), "overlayfs", []string{"CRI image plugin io.containerd.cri.v1.images failed: failed to find snapshotter"}},
		"2.x, nothing of CRI":        {"2.1.9", plugins(noImages, noRuntime, noCRI), "overlayfs", []string{"cri.v1.images is not loaded", "cri.v1.runtime is not loaded", "grpc.v1.cri is not loaded"}},
		"unknown build of 2.x":       {"unknown", plugins(noImages), "overlayfs", []string{"cri.v1.images is not loaded"}},
		"snapshotter skipped":        {"2.4.2", plugins(overlaySkip), "overlayfs", []string{"snapshotter io.containerd.snapshotter.v1.overlayfs was skipped: no overlay"}},
		"snapshotter and CRI failed": {"2.4.2", plugins(overlayBroken, imagesFailed), "overlayfs", []string{"overlayfs failed: permission denied", "images failed"}},
		"another one is wanted":      {"2.4.2", plugins(), "zfs", []string{"snapshotter io.containerd.snapshotter.v1.zfs was skipped: path is not on zfs"}},
		"unknown snapshotter":        {"2.4.2", plugins(), "stargz", []string{"snapshotter io.containerd.snapshotter.v1.stargz is not loaded"}},
	} {
		t.Run(name, func(t *testing.T) {
			err := health(c.version, c.plugins, c.snapshotter)
			var lines []string
			if err != nil {
				lines = strings.Split(err.Error(), "\n")
			}
			if len(lines) != len(c.want) {
				t.Fatalf("got %q, want one line for each of %q", lines, c.want)
			}
			for i, want := range c.want {
				if !strings.Contains(lines[i], want) {
					t.Errorf("line %q does not say %q", lines[i], want)
				}
			}
		})
	}
}

func TestConnectSaysWhyNobodyAnswers(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "c.sock")

	// A socket whose owner accepts and says nothing.
	mute := filepath.Join(t.TempDir(), "m.sock")
	l, err := new(net.ListenConfig).Listen(t.Context(), "unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()

	for address, want := range map[string]string{missing: "no such file", mute: "deadline exceeded"} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		c, err := Connect(ctx, address)
		cancel()
		if err == nil {
			c.Close()
			t.Fatalf("connected to %s", address)
		}
		if !strings.Contains(err.Error(), address) || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "rpc error") {
			t.Errorf("error %q; want the address and %q in plain words", err, want)
		}
	}
}

func TestPlainKeepsTheCause(t *testing.T) {
	cause := status.Error(codes.Unavailable, "connection refused")
	err := plain(fmt.Errorf("list: %w", cause))
	if err.Error() != "list: connection refused" || !errors.Is(err, cause) {
		t.Errorf("got %q, wrapping the cause: %v", err, errors.Is(err, cause))
	}
	if other := errors.New("other"); plain(other) != other {
		t.Error("an error that is not gRPC's is changed")
	}
}
