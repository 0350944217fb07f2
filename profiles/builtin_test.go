package profiles

import (
	"bytes"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
)

func loadExample(t *testing.T, name string) (*Profile, diag.List) {
	t.Helper()
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	return Loader{Dir: dir, Read: os.ReadFile}.Load(name)
}

// examples are the profiles that ship with the project.
func examples(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("..", "examples", "*.yaml"))
	if err != nil || len(names) < 8 {
		t.Fatalf("found %d examples, %v", len(names), err)
	}
	return names
}

// Built-ins and examples resolve without a finding on amd64 and arm64, and on no host.
func TestShippedProfiles(t *testing.T) {
	for _, name := range append(examples(t), BuiltIns()...) {
		for _, arch := range []string{"amd64", "arm64", ""} {
			p, list := loadExample(t, name)
			facts := Facts{}
			if arch != "" {
				facts = bookworm()
				facts.Arch = arch
			}
			s, more := Resolve(p, facts)
			if list = append(list, more...); len(list) > 0 {
				t.Errorf("%s on %q:\n%s", name, arch, strings.Join(lines(list), "\n"))
			}
			if s == nil {
				continue
			}
			var local []LocalFile
			for _, r := range s.Registries {
				for _, e := range r.Mirrors {
					local = append(local, e.CA...)
				}
				if r.Server != nil {
					local = append(local, r.Server.CA...)
				}
			}
			for _, f := range local {
				data, err := os.ReadFile(f.Path)
				if err != nil {
					t.Error(err)
				}
				if block, _ := pem.Decode(data); block == nil || block.Type != "CERTIFICATE" {
					t.Errorf("%s: %s holds no certificate", name, f.Given)
				}
				if !filepath.IsAbs(f.Path) {
					t.Errorf("%s: the path %s is not absolute", name, f.Path)
				}
			}
		}
	}
}

// The examples are of use only while they say what they are for.
func TestExamplesAreExplained(t *testing.T) {
	for _, name := range examples(t) {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.HasPrefix(data, []byte("# ")) {
			t.Errorf("%s does not begin with what it is for", name)
		}
	}
}

func TestNoPrivateKeysInExamples(t *testing.T) {
	err := filepath.WalkDir(filepath.Join("..", "examples"), func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := os.ReadFile(name)
		if bytes.Contains(data, []byte("PRIVATE KEY")) {
			t.Errorf("%s holds a private key", name)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

func TestKubernetesBuiltIn(t *testing.T) {
	s, _ := resolve(t, "extends: kubernetes\n", bookworm())
	if diff := cmp.Diff([]string{"overlay", "br_netfilter"}, s.Modules); diff != "" {
		t.Error(diff)
	}
	want := map[string]string{"net.ipv4.ip_forward": "1", "net.bridge.bridge-nf-call-iptables": "1", "net.bridge.bridge-nf-call-ip6tables": "1"}
	if diff := cmp.Diff(want, s.Sysctl); diff != "" {
		t.Error(diff)
	}
	if !s.Containerd.SystemdCgroup || s.Kubernetes != "" {
		t.Errorf("systemd cgroups %v, Kubernetes %q", s.Containerd.SystemdCgroup, s.Kubernetes)
	}
}

// The starter loads as it is and as it is after every "#" at the start of a line has
// been removed, and then says something about every section.
func TestStarter(t *testing.T) {
	for _, name := range BuiltIns() {
		text, err := Starter(name)
		if err != nil {
			t.Fatal(err)
		}
		s, notes := resolve(t, string(text), bookworm())
		plain, _ := resolve(t, "extends: "+name+"\n", bookworm())
		if diff := cmp.Diff(plain, s, cmpopts.IgnoreUnexported(Spec{})); diff != "" || len(notes) > 0 {
			t.Errorf("the starter changes %s:\n%s\n%q", name, diff, notes)
		}

		full := strings.ReplaceAll("\n"+string(text), "\n#", "\n")
		p, list := Load("p.yaml", files{"p.yaml": full}.read)
		_, more := Resolve(p, bookworm())
		if list = append(list, more...); len(list) > 0 {
			t.Errorf("uncommented:\n%s", strings.Join(lines(list), "\n"))
		}
		for _, f := range fieldsOf(profileType()) {
			if _, ok := p.origins[f.key]; !ok || p.origins[f.key].File != "p.yaml" {
				t.Errorf("the starter for %s does not mention %s", name, f.key)
			}
		}
	}
	if _, err := Starter("kubernets"); err == nil || !strings.Contains(err.Error(), "default, kubernetes, minimal") {
		t.Errorf("error %v", err)
	}
}

// The starter names the versions that are the defaults.
func TestStarterVersions(t *testing.T) {
	for _, c := range []string{releases.Containerd, releases.Runc, releases.CNI, releases.Crictl} {
		if v := releases.DefaultVersion(c).String(); !bytes.Contains(starter, []byte("version: "+v)) {
			t.Errorf("the starter does not name %s %s", c, v)
		}
	}
}

func TestBuiltInNames(t *testing.T) {
	entries, err := builtins.ReadDir("builtin")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, strings.TrimSuffix(e.Name(), ".yaml"))
	}
	slices.Sort(names)
	if diff := cmp.Diff(BuiltIns(), names); diff != "" {
		t.Error(diff)
	}
}
