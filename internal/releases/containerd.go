package releases

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// ConfigSchema is the version of config.toml that a containerd release reads as its
// own: 2 for 1.x, 3 for 2.0 to 2.2, 4 from 2.3 on (containerd version/version.go).
func ConfigSchema(v Version) int {
	switch {
	case v.AtLeast(2, 3, 0):
		return 4
	case v.AtLeast(2, 0, 0):
		return 3
	}
	return 2
}

// Refused reports whether nodeprep installs a version at all, and why not.
func Refused(component string, v Version) (reason string, refused bool) {
	if component != Containerd {
		return "", false
	}
	switch {
	case !v.AtLeast(1, 6, 0):
		return fmt.Sprintf("containerd %s is not supported: 1.5 and older speak only CRI v1alpha2, which no kubelet since Kubernetes 1.26 does, and get no security fixes", v), true
	case v.Major == 1 && v.Minor > 7:
		return fmt.Sprintf("containerd %s does not exist: the 1.x series ends with 1.7", v), true
	case v.Major > 2:
		return fmt.Sprintf("containerd %s is not known: its config format is not defined yet", v), true
	}
	return "", false
}

// endOfLife is the last day of upstream support by release line (containerd's
// RELEASES.md of v2.4.2, October 2026).
var endOfLife = map[string]string{
	"1.6": "2025-08-23",
	"1.7": "2026-09-30",
	"2.0": "2027-03-31",
	"2.1": "2026-07-03",
	"2.2": "2026-11-06",
	"2.3": "2028-04-30",
	"2.4": "2027-05-16",
}

// EndOfLife says whether upstream support of a containerd release ended before a day.
func EndOfLife(v Version, today time.Time) (note string, ended bool) {
	end, ok := endOfLife[v.Line()]
	if !ok || today.Format(time.DateOnly) <= end {
		return "", false
	}
	return fmt.Sprintf("containerd %s is past its end of life (%s): no more security fixes", v.Line(), end), true
}

// matrix gives, by Kubernetes minor, the oldest containerd patch of each line that
// is tested with it (containerd's RELEASES.md, "Kubernetes support").
var matrix = map[string][]Version{
	"1.24": {{1, 6, 4, ""}, {1, 7, 0, ""}},
	"1.25": {{1, 6, 4, ""}, {1, 7, 0, ""}},
	"1.26": {{1, 6, 15, ""}, {1, 7, 0, ""}},
	"1.27": {{1, 6, 15, ""}, {1, 7, 0, ""}},
	"1.28": {{1, 6, 15, ""}, {1, 7, 0, ""}},
	"1.29": {{1, 6, 27, ""}, {1, 7, 11, ""}},
	"1.30": {{1, 6, 28, ""}, {1, 7, 13, ""}, {2, 0, 0, ""}, {2, 1, 0, ""}},
	"1.31": {{1, 6, 34, ""}, {1, 7, 20, ""}, {2, 0, 0, ""}, {2, 1, 0, ""}},
	"1.32": {{1, 6, 36, ""}, {1, 7, 24, ""}, {2, 0, 1, ""}, {2, 1, 0, ""}},
	"1.33": {{1, 6, 36, ""}, {1, 7, 24, ""}, {2, 0, 4, ""}, {2, 1, 0, ""}},
	"1.34": {{1, 6, 39, ""}, {1, 7, 28, ""}, {2, 0, 6, ""}, {2, 1, 3, ""}},
	"1.35": {{1, 7, 28, ""}, {2, 1, 5, ""}, {2, 2, 0, ""}},
	"1.36": {{2, 2, 0, ""}, {2, 3, 0, ""}},
	"1.37": {{2, 3, 0, ""}, {2, 4, 0, ""}},
}

// SupportedBy says whether a containerd release is on Kubernetes's support matrix.
// A line newer than every listed one counts as supported; a Kubernetes version that
// is not in the matrix gives ok with a note.
func SupportedBy(kubernetes string, v Version) (note string, ok bool) {
	lines, known := matrix[kubernetes]
	if !known {
		return fmt.Sprintf("Kubernetes %s is not in the support matrix nodeprep knows (1.24 to 1.37)", kubernetes), true
	}
	var want []string
	for _, min := range lines {
		want = append(want, min.String()+"+")
		if v.Line() == min.Line() {
			if v.Compare(min) >= 0 {
				return "", true
			}
			return fmt.Sprintf("containerd %s is too old for Kubernetes %s: the %s line needs %s or newer", v, kubernetes, v.Line(), min), false
		}
	}
	newest := lines[len(lines)-1]
	if v.Compare(newest) > 0 && (v.Major > newest.Major || v.Minor > newest.Minor) && v.Major >= 2 {
		return "", true
	}
	return fmt.Sprintf("containerd %s is not on Kubernetes %s's support matrix (%s)", v, kubernetes, strings.Join(want, ", ")), false
}

// PauseImage is the sandbox image of a Kubernetes minor version (kubeadm's constant).
func PauseImage(kubernetes string) (string, bool) {
	tags := map[string]string{
		"1.24": "3.7", "1.25": "3.8",
		"1.26": "3.9", "1.27": "3.9", "1.28": "3.9", "1.29": "3.9", "1.30": "3.9",
		"1.31": "3.10", "1.32": "3.10", "1.33": "3.10",
		"1.34": "3.10.1", "1.35": "3.10.1", "1.36": "3.10.2",
	}
	tag, ok := tags[kubernetes]
	return "registry.k8s.io/pause:" + tag, ok
}

// DefaultPauseImage is the sandbox image that a containerd release uses when its
// config names none.
func DefaultPauseImage(v Version) string {
	tag := "3.10.2"
	switch {
	case !v.AtLeast(1, 7, 0):
		tag = "3.6"
	case !v.AtLeast(2, 0, 0):
		tag = "3.8"
	case !v.AtLeast(2, 2, 0):
		tag = "3.10"
	case !v.AtLeast(2, 3, 0):
		tag = "3.10.1"
	}
	return "registry.k8s.io/pause:" + tag
}

// GLibC is the oldest C library that upstream's dynamically linked containerd of a
// release line runs with: that of the Ubuntu it is built on. The zero Version means
// that a line is not known.
func GLibC(v Version) Version {
	switch {
	case v.AtLeast(2, 1, 0):
		return Version{Major: 2, Minor: 35}
	case v.AtLeast(1, 7, 0):
		return Version{Major: 2, Minor: 31}
	}
	return Version{Major: 2, Minor: 27}
}

// LimitNOFILE is the unit's LimitNOFILE= for a release and a systemd: upstream wrote
// infinity up to 1.7 and nothing since 2.0, relying on systemd 240's default of
// 1024:524288, which older systemds need to be told. "" leaves it out.
func LimitNOFILE(v Version, systemd int) string {
	switch {
	case !v.AtLeast(2, 0, 0):
		return "infinity"
	case systemd > 0 && systemd < 240:
		return "1024:524288"
	}
	return ""
}

// UnitAfter is After= of upstream's containerd.service by release.
func UnitAfter(v Version) []string {
	switch {
	case v.AtLeast(2, 1, 0):
		return []string{"network.target", "dbus.service"}
	case v.AtLeast(2, 0, 0), v.Line() == "1.7" && v.AtLeast(1, 7, 24), v.Line() == "1.6" && v.AtLeast(1, 6, 37):
		return []string{"network.target", "local-fs.target", "dbus.service"}
	}
	return []string{"network.target", "local-fs.target"}
}

// DefaultDirSupported says whether certs.d/_default is looked at.
func DefaultDirSupported(v Version) bool {
	return v.AtLeast(1, 7, 0) || v.Line() == "1.6" && v.Patch >= 17
}

// DialTimeoutSupported says whether hosts.toml's dial_timeout is read.
func DialTimeoutSupported(v Version) bool {
	return v.AtLeast(2, 1, 0) || v.Line() == "2.0" && v.Patch >= 7
}

// ReferrersSupported says whether hosts.toml may name the capability "referrers";
// older releases then ignore the whole file.
func ReferrersSupported(v Version) bool { return v.AtLeast(2, 2, 0) }

// CredentialsSupported says whether config.toml may hold credentials of registries
// (registry.configs.HOST.auth), which upstream removes in 2.7 (RELEASES.md of v2.4.2,
// "Deprecated config properties").
func CredentialsSupported(v Version) bool { return !v.AtLeast(2, 7, 0) }

// TransferPull says whether CRI pulls through the transfer service by itself, which takes
// no credentials from config.toml: with some there it pulls the old way.
func TransferPull(v Version) bool { return v.AtLeast(2, 1, 0) }

// TokenHeaders says whether the headers of a hosts.toml go to token servers, too; older
// releases keep them to the host itself.
func TokenHeaders(v Version) bool { return v.AtLeast(2, 1, 0) }

// OptionalUnpackSupported says whether an unpack_config entry of the transfer service may be
// optional; without it one whose snapshotter is not there keeps the service from loading.
func OptionalUnpackSupported(v Version) bool { return v.AtLeast(2, 3, 0) }

// DefaultSnapshotter is the one for which the transfer service unpacks where its
// unpack_config says nothing, and the one of ctr and CRI by default.
const DefaultSnapshotter = "overlayfs"

// Unpacker is an entry of the transfer service's unpack_config, but for its platform.
type Unpacker struct {
	Snapshotter string
	// Differ is "" for the default one.
	Differ   string
	Optional bool
}

// Unpackers are the entries that a node needs whose CRI uses these snapshotters: one each, and the
// default one for ctr where it may be missing.
func Unpackers(v Version, used []string) []Unpacker {
	var list []Unpacker
	for _, s := range used {
		u := Unpacker{Snapshotter: s}
		if s == "erofs" {
			// Its layers are made by a differ of its own (docs/snapshotters/erofs.md).
			u.Differ = "erofs"
		}
		if !slices.Contains(list, u) {
			list = append(list, u)
		}
	}
	if !slices.Contains(used, DefaultSnapshotter) && OptionalUnpackSupported(v) {
		list = append(list, Unpacker{Snapshotter: DefaultSnapshotter, Optional: true})
	}
	return list
}

// BareHostTableNeeded says whether a hosts.toml without any [host] table is taken
// for broken, and so ignored (containerd issue 10027; fixed in 1.7.32 and 2.0).
func BareHostTableNeeded(v Version) bool { return !v.AtLeast(1, 7, 32) }

// PinSupported says whether CRI honours the label that pins an image.
func PinSupported(v Version) bool {
	return v.AtLeast(1, 7, 3) || v.Line() == "1.6" && v.Patch >= 22
}

// BinDirsSupported says whether the CNI binary folder is the list bin_dirs (2.1 on)
// or the single bin_dir.
func BinDirsSupported(v Version) bool { return v.AtLeast(2, 1, 0) }
