package vm_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// A node as tutorials make them: Debian's packages as Debian configures them, and the
// sandbox image imported without a namespace. nodeprep did not make it and has no profile
// of it, and says what is wrong with it.
func TestCheckByHand(t *testing.T) {
	m := start(t, inAll)
	m.must("dpkg -i /media/stick/packages/*.deb && systemctl is-active --wait containerd")
	// 1.6's own choice of sandbox image.
	m.must("ctr images import /media/stick/images/pause.tar && ctr images tag registry.k8s.io/pause:3.9 registry.k8s.io/pause:3.6")
	var got diagnosis
	m.unchanged(func() { got = m.check("", "--offline") })
	t.Logf("a node by hand:\n%s", lines(append(got.with("fail"), got.with("warn")...)))

	const config = "/etc/containerd/config.toml"
	// Nothing in the file says so: it is the default.
	wantFinding(t, got, "fail", "config/systemd-cgroup", config, "SystemdCgroup is false")
	wantFinding(t, got, "fail", "images/sandbox", "containerd's default", "only in namespace default")
	wantFinding(t, got, "warn", "unit/ordering", "/lib/systemd/system/containerd.service:", "dbus.service")
	wantFinding(t, got, "pass", "unit/limit-nofile", "/lib/systemd/system/containerd.service:33", "as upstream's unit has it")
	wantFinding(t, got, "warn", "daemon/support", "", "1.6")
	if diff := cmp.Diff([]string{"config/systemd-cgroup", "images/sandbox"}, ids(got.with("fail"))); diff != "" {
		t.Errorf("what fails (-want +got):\n%s%s", diff, lines(got.with("fail")))
	}
	for _, f := range got.Findings {
		if f.Verdict == "unknown" {
			t.Errorf("root could not find out: %v", f)
		}
		// What dpkg put there is no stranger on a node that is run with it.
		if strings.HasPrefix(f.ID, "foreign/") && f.Verdict != "pass" && f.Verdict != "skip" {
			t.Errorf("Debian's own packages are called foreign: %v", f)
		}
	}

	// Somebody who may not look everywhere is told what could not be seen.
	const nobody = "setpriv --reuid=65534 --regid=65534 --clear-groups"
	if r := m.run(nobody + " nodeprep check --offline >/dev/null"); r.Code != 0 && r.Code != 3 {
		t.Errorf("nodeprep check as nobody: exit %d\n%s", r.Code, r.Stderr)
	}
	seen := asJSON[diagnosis](m, nobody+" nodeprep check --offline -o json || test $? = 3")
	if len(seen.with("unknown")) == 0 {
		t.Error("nobody finds out everything")
	}
	all := got.verdicts()
	for _, f := range seen.Findings {
		if f.Verdict == "unknown" && f.Observed == "" {
			t.Errorf("unknown, and no reason: %v", f)
		}
		if was, ok := all[strings.TrimSpace(f.ID+" "+f.Object)]; f.Verdict == "pass" && ok && was != "pass" {
			t.Errorf("root found %s, and nobody: %v", was, f)
		}
		if strings.Contains(f.Observed, "broke") {
			t.Errorf("nobody sees %v", f)
		}
	}
	// The daemon's API and what root alone may read.
	for _, id := range []string{"daemon/answers", "images/sandbox"} {
		for _, f := range seen.of(id) {
			if f.Verdict == "pass" {
				t.Errorf("nobody may not ask the daemon: %v", f)
			}
		}
	}
}

// wantFinding wants the check to say so of something.
func wantFinding(t *testing.T, d diagnosis, verdict, id, place, observed string) {
	t.Helper()
	for _, f := range d.of(id) {
		if f.Verdict == verdict && strings.Contains(f.Place, place) && strings.Contains(f.Observed+" "+f.Note, observed) {
			return
		}
	}
	t.Errorf("want %s: %s with %q in what was observed and %q in the place:\n%s", id, verdict, observed, place, lines(d.of(id)))
}
