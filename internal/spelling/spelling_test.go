package spelling

import "testing"

func TestNearest(t *testing.T) {
	for _, tt := range []struct {
		word, want string
		candidates []string
	}{
		{"sandbox_image", "sandboxImage", []string{"snapshotter", "sandboxImage"}},
		{"containred", "containerd", []string{"containerd", "cni"}}, // neighbours swapped
		{"capabilites", "capabilities", []string{"ca", "capabilities", "client"}},
		{"server", "", []string{"ca", "header"}},
		{"cb", "ca", []string{"ca", "client"}},
		{"ab", "aa", []string{"aa", "ac"}}, // the first of equals
		{"", "", []string{"ca"}},
		{"überall", "uberall", []string{"uberall"}},
	} {
		if got := Nearest(tt.word, tt.candidates); got != tt.want {
			t.Errorf("%q of %q means %q, want %q", tt.word, tt.candidates, got, tt.want)
		}
	}
	long := make([]byte, 1<<16)
	if got := Nearest(string(long), []string{"ca"}); got != "" {
		t.Errorf("a word of %d bytes means %q", len(long), got)
	}
}
