package configtoml

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestNotUnpacked: the transfer service unpacks for overlayfs, and for what files say in
// place of it.
func TestNotUnpacked(t *testing.T) {
	const (
		images  = "[plugins.'io.containerd.cri.v1.images']\n"
		kata    = "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.kata]\nruntime_type = 'io.containerd.kata.v2'\nsnapshotter = 'erofs'\n"
		unpack  = "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nplatform = 'linux/amd64'\nsnapshotter = "
		dropIns = "/etc/containerd/conf.d/a.toml"
	)
	imports := "version = 3\nimports = ['/etc/containerd/conf.d/*.toml']\n"
	native := images + "snapshotter = 'native'\n"
	tests := []struct {
		name, releases string
		files          map[string]string
		want           []string
	}{
		{"overlayfs", "2.1.9 2.4.2", one("version = 3\n"), nil},
		{"native", "2.1.9 2.4.2", one("version = 3\n" + native), []string{"native for  at /etc/containerd/config.toml:3"}},
		{"schema 2", "2.1.9 2.4.2", one("version = 2\n[plugins.'io.containerd.grpc.v1.cri'.containerd.runtimes.kata]\nsnapshotter = 'native'\n"), []string{"native for kata at /etc/containerd/config.toml:3"}},
		{"native, before", "2.0.11", one("version = 3\n" + native), nil},
		{"native, and said", "2.1.9 2.4.2", one("version = 3\n" + native + unpack + "'native'\n"), nil},
		{"native, and another said", "2.1.9 2.4.2", one("version = 3\n" + native + unpack + "'overlayfs'\n"), []string{"native for  at /etc/containerd/config.toml:3"}},
		{"overlayfs, and only another said", "2.1.9", one("version = 3\n" + unpack + "'native'\n"), []string{"overlayfs for  at "}},
		{"none said", "2.4.2", one("version = 3\n[plugins.'io.containerd.transfer.v1.local']\nunpack_config = []\n"), []string{"overlayfs for  at "}},
		{"said by a file of 1.7", "2.1.9", one("version = 2\n[plugins.'io.containerd.transfer.v1.local']\n[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]\nsnapshotter = 'native'\n"), []string{"overlayfs for  at "}},
		{"a runtime's", "2.1.9 2.2.7", one("version = 3\n" + kata), []string{"erofs for kata at /etc/containerd/config.toml:4"}},
		{"a runtime's that the default has", "2.3.4 2.4.2", one("version = 3\n" + kata), nil},
		{"the local pull", "2.1.9 2.4.2", one("version = 3\n" + native + "use_local_image_pull = true\n"), nil},
		{"a file that is imported", "2.2.7", map[string]string{rootFile: imports + native, dropIns: "version = 3\n" + unpack + "'native'\n"}, nil},
		{"one that takes it away", "2.2.7", map[string]string{rootFile: imports + native + unpack + "'native'\n", dropIns: "version = 3\n" + unpack + "'zfs'\n"}, []string{"native for  at /etc/containerd/config.toml:4"}},
	}
	for _, tt := range tests {
		for release := range strings.FieldsSeq(tt.releases) {
			t.Run(tt.name+" "+release, func(t *testing.T) {
				var got []string
				for _, u := range load(t, release, tt.files).NotUnpacked() {
					got = append(got, u.Snapshotter+" for "+u.Runtime+" at "+u.Place.String())
				}
				if diff := cmp.Diff(tt.want, got); diff != "" {
					t.Errorf("(-want +got):\n%s", diff)
				}
			})
		}
	}
}
