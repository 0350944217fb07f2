package registry

import (
	"os"
	"strings"
	"testing"
)

// TestNewestRules: the rules that are taken where no release is known are those of the
// parser that is linked.
func TestNewestRules(t *testing.T) {
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if want := "github.com/containerd/containerd/v2 v" + newestRules().String() + "\n"; !strings.Contains(string(mod), want) {
		t.Errorf("go.mod requires another containerd than v%s", newestRules())
	}
}
