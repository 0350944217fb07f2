package diag

import (
	"os/exec"
	"testing"
)

// TestShellWord: a shell gets what was meant, and what needs no quotes has none.
func TestShellWord(t *testing.T) {
	for _, s := range []string{"", "a b", "it's", "$HOME", "a;b", "`id`", "*", "~", "[::1]:5000/x", "x\ny", "ä", "#c", `a\b`, "--hosts-dir", "/etc/a-b_c.d:1=@%+,"} {
		out, err := exec.Command("sh", "-c", "printf %s "+ShellWord(s)).Output()
		if err != nil || string(out) != s {
			t.Errorf("%q as %s: %q, %v", s, ShellWord(s), out, err)
		}
	}
	for _, s := range []string{"--hosts-dir", "/etc/containerd/certs.d", "docker.io/library/nginx:latest"} {
		if got := ShellWord(s); got != s {
			t.Errorf("%s for %s", got, s)
		}
	}
}
