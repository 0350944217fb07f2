package checks

import (
	"strings"
	"testing"
)

const nativeImages = v3Images + "snapshotter = 'native'\n"

// TestUnpack: a snapshotter for which the transfer service does not unpack is found, and what
// the report says mends it, once and twice.
func TestUnpack(t *testing.T) {
	const (
		dropIn  = "/etc/containerd/conf.d/a.toml"
		unpack  = "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/amd64'\nsnapshotter = "
		kata    = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\nsnapshotter = 'native'\n"
		imports = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"
	)
	for name, c := range map[string]struct {
		release, config string
		more            files
		want            want
		after           string // the snapshotters after the remedy
	}{
		"native":             {"2.1.9", "version = 3\n" + nativeImages, nil, want{verdict: Fail, observed: "CRI has native, and the transfer service unpacks for overlayfs (the default)", place: configFile + ":3"}, "native"},
		"native, and ctr's":  {"2.4.2", "version = 4\n" + nativeImages, nil, want{verdict: Fail, place: configFile + ":3"}, "native overlayfs"},
		"a runtime's":        {"2.1.9", "version = 3\n" + kata, nil, want{verdict: Fail, observed: "runtime kata has native", place: configFile + ":4"}, "native overlayfs"},
		"a default of 1.7":   {"2.2.7", "version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.runc]\nruntime_type = 'io.containerd.runc.v2'\nsnapshotter = 'native'\n[plugins]\n" + unpack + "'overlayfs'\n", nil, want{verdict: Fail, observed: "unpacks for overlayfs (" + configFile + ":6)", place: configFile + ":6"}, "overlayfs native"},
		"in a drop-in":       {"2.2.7", imports, files{dropIn: "version = 3\n" + nativeImages}, want{verdict: Fail, place: dropIn + ":3"}, "native"},
		"taken by a drop-in": {"2.2.7", imports + nativeImages + unpack + "'native'\n", files{dropIn: "version = 3\n" + unpack + "'zfs'\n"}, want{verdict: Fail, observed: "unpacks for zfs (" + dropIn + ":2)", place: dropIn + ":2"}, "zfs native"},
		"for nothing":        {"2.1.9", "version = 3\n" + nativeImages + "[plugins.'io.containerd.transfer.v1.local']\nunpack_config = []\n[debug]\nlevel = 'info'\n", nil, want{verdict: Fail, observed: "unpacks for nothing", place: configFile + ":5"}, "native"},
		"an inline list":     {"2.1.9", "version = 3\n" + nativeImages + "[plugins.'io.containerd.transfer.v1.local']\nunpack_config = [{platform = 'linux', snapshotter = 'overlayfs'}]\n", nil, want{verdict: Fail, remedy: "one for each of native"}, ""},
		"overlayfs":          {"2.4.2", "version = 4\n", nil, want{verdict: Pass, observed: "unpacks for overlayfs, erofs"}, ""},
		"no file":            {"2.4.2", noFile, nil, want{verdict: Pass}, ""},
		"CRI pulls":          {"2.4.2", "version = 4\n" + nativeImages + "use_local_image_pull = true\n", nil, want{verdict: Pass, observed: "CRI pulls by itself, because of use_local_image_pull"}, ""},
		"before transfer":    {"2.0.11", "version = 3\n" + nativeImages, nil, want{verdict: Skip}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			n := with(t, c.release, c.config, c.more)
			expect(t, n, "config/unpack", c.want)
			if c.after == "" {
				return
			}
			remedy := results(t, n, "config/unpack")[0].Remedy
			if !strings.Contains(remedy, "restart containerd.service") {
				t.Errorf("no restart in %s", remedy)
			}
			for range 2 {
				paste(t, n, remedy)
				n = NewNode(t.Context(), n.Outside)
				expect(t, n, "config/unpack", want{verdict: Pass})
				expect(t, n, "config/parses", want{verdict: Pass})
			}
			config, err := n.Config()
			if err != nil {
				t.Fatal(err)
			}
			got, _ := config.Unpackers()
			if all := strings.Join(got, " "); !strings.HasPrefix(all, c.after) {
				t.Errorf("unpacks for %s, want %s", all, c.after)
			}
		})
	}
}

// TestUnpackBesideTransfer: what CRI is kept from pulling through the transfer service by is
// taken out only together with what lets that service unpack.
func TestUnpackBesideTransfer(t *testing.T) {
	n := with(t, "2.1.9", "version = 3\n"+nativeImages+"max_concurrent_downloads = 10\n", nil)
	expect(t, n, "config/unpack", want{verdict: Pass, observed: "max_concurrent_downloads"})
	paste(t, n, results(t, n, "config/transfer")[0].Remedy)
	n = NewNode(t.Context(), n.Outside)
	expect(t, n, "config/transfer", want{verdict: Pass})
	expect(t, n, "config/unpack", want{verdict: Pass, observed: "unpacks for native"})
}

// TestUnpackOfNodeprep: its own file is made anew, which says it by itself; what the profile
// says itself is for the profile.
func TestUnpackOfNodeprep(t *testing.T) {
	native := strings.Replace(rendered, "snapshotter = 'overlayfs'", "snapshotter = 'native'", 1)
	for name, c := range map[string]struct{ config, remedy string }{
		"made before that": {native, "nodeprep apply"},
		"by settings":      {native + "\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nsnapshotter = 'zfs'\n", `change containerd.settings.plugins."io.containerd.transfer.v1.local".unpack_config there`},
	} {
		n := with(t, "2.1.9", c.config, nil, receipt())
		expect(t, n, "config/unpack", want{verdict: Fail, remedy: c.remedy})
		if r := results(t, n, "config/unpack")[0].Remedy; strings.Contains(r, "printf") {
			t.Errorf("%s is edited: %s", name, r)
		}
	}
}
