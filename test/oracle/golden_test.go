package oracle

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const goldens = "../../render/testdata/golden"

// golden is one rendered node: its files under root, and what its profile meant.
type golden struct {
	name  string // PROFILE/ARCH/VERSION
	root  string
	meant meant
}

func (g golden) config() string { return filepath.Join(g.root, "etc/containerd/config.toml") }
func (g golden) certsD() string { return filepath.Join(g.root, "etc/containerd/certs.d") }

// line is MAJOR.MINOR of the containerd that a golden is for.
func (g golden) line() string {
	return strings.Join(strings.SplitN(g.meant.Version, ".", 3)[:2], ".")
}

// meant is meant.json: a resolved profile, as far as containerd's files go.
type meant struct {
	Arch       string
	Version    string
	Containerd struct {
		Version                                                         struct{ Major, Minor, Patch int }
		Root, State, Address, Snapshotter, SandboxImage, DefaultRuntime string
		SystemdCgroup                                                   bool
		OOMScore                                                        int
		Runtimes                                                        []runtime
		ProxyPlugins                                                    []proxyPlugin
		Settings                                                        map[string]any
	}
	Registries []registry
	Files      []struct {
		Path, Mode string
		Secret     bool
	}
}

type runtime struct {
	Name, Type, Path string
	Options          map[string]any
}

type proxyPlugin struct {
	Name, Type, Address, Platform string
	Exports                       map[string]string
}

type registry struct {
	Host    string
	Deny    bool
	Server  *endpoint
	Mirrors []endpoint
	Auth    *auth
}

type endpoint struct {
	URL          string
	Capabilities []string
	CA, Client   []any
	SkipVerify   *bool
	OverridePath bool
	Auth         *auth
	Header       []struct {
		Name   string
		Values []secret
	}
}

type auth struct{ Username, Password, IdentityToken secret }

type secret struct{ Value, File, Env, Credential string }

// text is what the goldens have for a secret: its value, or where it is from.
func (s secret) text() string {
	switch {
	case s.Value != "":
		return s.Value
	case s.File != "":
		return "from file " + s.File
	case s.Env != "":
		return "from environment variable " + s.Env
	case s.Credential != "":
		return "from credential " + s.Credential
	}
	return ""
}

// readGoldens finds all goldens that have files; those with errors alone have none.
func readGoldens(t *testing.T) []golden {
	t.Helper()
	files, err := filepath.Glob(goldens + "/*/*/*/meant.json")
	if err != nil || len(files) == 0 {
		t.Fatalf("no goldens under %s: %v", goldens, err)
	}
	var out []golden
	for _, f := range files {
		out = append(out, readGolden(t, filepath.Dir(f)))
	}
	return out
}

func readGolden(t *testing.T, dir string) golden {
	t.Helper()
	g := golden{root: dir}
	name, err := filepath.Rel(goldens, dir)
	if err != nil {
		t.Fatal(err)
	}
	g.name = filepath.ToSlash(name)
	raw, err := os.ReadFile(filepath.Join(dir, "meant.json"))
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &g.meant); err != nil {
		t.Fatalf("%s: %v", dir, err)
	}
	return g
}
