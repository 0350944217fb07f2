package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// The page about kubeadm names checks that there are, and the sandbox images that profiles get.
func TestKubernetesPage(t *testing.T) {
	data, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	page := string(data)
	known := make(map[string]bool)
	for _, c := range checks.Catalogue() {
		known[c.ID] = true
	}
	named := regexp.MustCompile("`((?:host|kernel|config|daemon|images|foreign|kubernetes|registry)/[a-z0-9-]+)`").FindAllStringSubmatch(page, -1)
	if len(named) < 20 {
		t.Errorf("only %d checks found on the page: the search is broken", len(named))
	}
	for _, m := range named {
		if !known[m[1]] {
			t.Errorf("the page names the check %s, which there is not", m[1])
		}
	}
	for _, version := range strings.Fields("1.24 1.25 1.26 1.27 1.28 1.29 1.30 1.31 1.32 1.33 1.34 1.35 1.36 1.37") {
		image, known := releases.PauseImage(version)
		if row := sandboxRow(page, version); known && row != image {
			t.Errorf("the page has the sandbox image of Kubernetes %s as %q, want %s", version, row, image)
		} else if !known && row != "" {
			t.Errorf("the page has a sandbox image of Kubernetes %s, which nobody knows: %s", version, row)
		}
	}
}

// sandboxRow is the image in the row of a Kubernetes version: "1.24", "1.26 to 1.30" or "1.34, 1.35".
func sandboxRow(page, version string) string {
	minor := func(s string) string { return strings.TrimPrefix(s, "1.") }
	for _, m := range regexp.MustCompile("(?m)^\\| (1\\.\\d\\d)(?:( to |, )(1\\.\\d\\d))? \\| `([^`]+)` \\|$").FindAllStringSubmatch(page, -1) {
		first, last := minor(m[1]), minor(m[1])
		if m[2] != "" {
			last = minor(m[3])
		}
		if n := minor(version); first <= n && n <= last { // all have two digits
			return m[4]
		}
	}
	return ""
}
