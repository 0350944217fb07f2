package checks

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/internal/host"
)

// TestRegistryRemedies pastes remedies into a shell, as somebody would, and looks again.
// The host is an image, so that they name its files and not this machine's.
func TestRegistryRemedies(t *testing.T) {
	cert, key := newKeys(t, time.Now().Add(-aDay), time.Now().Add(90*aDay))
	const sound = "[host.\"https://m.example.com\"]\n"
	for name, c := range map[string]struct {
		id, release string
		files       files
	}{
		"capability":            {"registry/hosts-toml", "2.4.2", files{"example.com/hosts.toml": sound + "capabilities = [\"pull\", \"list\"]\n"}},
		"capability, in ticks":  {"registry/hosts-toml", "2.4.2", files{"example.com/hosts.toml": sound + "capabilities = ['pull', 'resolv']\n"}},
		"capability, first":     {"registry/hosts-toml", "2.4.2", files{"example.com/hosts.toml": sound + "capabilities = [\"list\" , \"pull\"]\n"}},
		"capability, alone":     {"registry/hosts-toml", "2.4.2", files{"example.com/hosts.toml": sound + "capabilities = [\n\"a.b/c\",\n\"pull\"\n]\n"}},
		"referrers":             {"registry/hosts-toml", "1.7.35", files{"example.com/hosts.toml": sound + "capabilities = [\"pull\", \"Referrers\"]\n"}},
		"no host table":         {"registry/hosts-toml", "1.7.24", files{"example.com/hosts.toml": "server = \"https://example.com\""}},
		"server too late":       {"registry/hosts-toml", "2.4.2", files{"example.com/hosts.toml": sound + "server = \"https://s.example.com\"\n"}},
		"misspelt":              {"registry/ignored", "2.4.2", files{"example.com/hosts.toml": sound + "capabilites = [\"pull\"]\n"}},
		"not below host":        {"registry/ignored", "2.4.2", files{"example.com/hosts.toml": " [\"https://m.example.com\"]\n"}},
		"other name":            {"registry/ignored", "2.4.2", files{"example.com/host.toml": sound}},
		"port without its end":  {"registry/ignored", "2.4.2", files{"example.com_5000/hosts.toml": sound}},
		"Docker Hub":            {"registry/ignored", "2.4.2", files{"index.docker.io/hosts.toml": sound}},
		"pattern":               {"registry/ignored", "2.4.2", files{"*/hosts.toml": sound}},
		"empty hides":           {"registry/ignored", "2.4.2", files{"example.com/": "", "_default/hosts.toml": sound}},
		"slash":                 {"registry/urls", "2.4.2", files{"example.com/hosts.toml": "[host.\"https://m.example.com/x/\"]\n"}},
		"second v2":             {"registry/urls", "2.4.2", files{"example.com/hosts.toml": "[host.\"https://m.example.com/v2/x\"]\n"}},
		"second v2, server":     {"registry/urls", "2.4.2", files{"example.com/hosts.toml": "server = \"https://m.example.com/v2/x\"\n"}},
		"override nothing":      {"registry/urls", "2.4.2", files{"example.com/hosts.toml": sound + "override_path = true\n"}},
		"no scheme":             {"registry/urls", "2.4.2", files{"example.com/hosts.toml": "[host.\"m.example.com:5000\"]\n"}},
		"docker.io":             {"registry/urls", "2.4.2", files{"docker.io/hosts.toml": "server = \"https://docker.io\"\n"}},
		"CA under its old name": {"registry/ca", "2.4.2", files{"example.com/hosts.toml": sound + "ca = \"ca.pem\"\n", "example.com/ca.crt": cert}},
		"empty key":             {"registry/client-cert", "2.4.2", files{"example.com/hosts.toml": sound + "client = [[\"c.pem\", \"\"]]\n", "example.com/c.pem": cert + key}},
		"flat list":             {"registry/client-cert", "2.4.2", files{"example.com/hosts.toml": sound + "client = [\"c.pem\", \"k.pem\"]\n", "example.com/c.pem": cert, "example.com/k.pem": key}},
		"readable":              {"registry/permissions", "2.4.2", files{"example.com/hosts.toml": sound + "[host.\"https://m.example.com\".header]\nCookie = \"x\"\n"}},
	} {
		t.Run(name, func(t *testing.T) {
			image := func(o *Outside) { o.Live = false; wantsVersion(c.release)(o) }
			n := hostsOf(t, c.release, c.files, image)
			for _, r := range results(t, n, c.id) {
				if r.Verdict != Fail && r.Verdict != Warn || strings.HasPrefix(r.Remedy, "#") {
					t.Fatalf("%+v, want a fault with a remedy", r)
				}
				if out, err := exec.Command("sh", "-e", "-c", r.Remedy).CombinedOutput(); err != nil {
					t.Fatalf("%s: %v\n%s", r.Remedy, err, out)
				}
				if c.id == "registry/client-cert" {
					break // both say the same
				}
			}
			again := NewNode(t.Context(), Outside{Host: host.New(n.Host.Root), Spec: n.Spec, Env: n.Env})
			for _, id := range []string{c.id, "registry/hosts-toml"} {
				for _, r := range results(t, again, id) {
					if r.Verdict != Pass {
						t.Errorf("after the remedy, %s: %+v", id, r)
					}
				}
			}
		})
	}
}
