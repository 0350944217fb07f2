package render

import (
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

var update = flag.Bool("update", false, "write the goldens anew")

const goldens = "testdata/golden"

// TestGolden renders every built-in profile and every example, on both main
// architectures and for each containerd release line, and compares with
// testdata/golden/PROFILE/ARCH/VERSION:
//
//	etc/...       the files, by their path on the node
//	findings.txt  errors and warnings, if any; a profile that does not go with a
//	              release has its errors here and no files
//	meant.json    what the profile asks for, for test/oracle, which reads the files
//	              back with containerd's own code
func TestGolden(t *testing.T) {
	want := map[string]bool{}
	for _, c := range goldenCases(t) {
		for _, arch := range []string{"amd64", "arm64"} {
			for _, version := range allReleases {
				dir := filepath.Join(goldens, c.name, arch, version)
				want[dir] = true
				t.Run(filepath.Join(c.name, arch, version), func(t *testing.T) {
					compareGolden(t, dir, renderGolden(t, c.spec, arch, version))
				})
			}
		}
	}
	found, err := filepath.Glob(goldens + "/*/*/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range found {
		if want[dir] {
			continue
		}
		if !*update {
			t.Errorf("%s: there is no such case (run with -update)", dir)
		} else if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	}
}

type goldenCase struct {
	name string
	spec func(t *testing.T, arch, version string) (*profiles.Spec, diag.List)
}

func goldenCases(t *testing.T) []goldenCase {
	t.Helper()
	cases := []goldenCase{{"hostile", hostileSpec}}
	for _, name := range profiles.BuiltIns() {
		cases = append(cases, goldenCase{name, fromProfile(name)})
	}
	examples, err := filepath.Glob("../examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range examples {
		cases = append(cases, goldenCase{"example-" + strings.TrimSuffix(filepath.Base(file), ".yaml"), fromProfile(file)})
	}
	return cases
}

// fromProfile loads a profile under an overlay that does nothing but choose the
// containerd release.
func fromProfile(name string) func(*testing.T, string, string) (*profiles.Spec, diag.List) {
	return func(t *testing.T, arch, version string) (*profiles.Spec, diag.List) {
		overlay := fmt.Sprintf("apiVersion: %s\nkind: %s\nextends: %s\ncontainerd: {version: %s}\n", profiles.APIVersion, profiles.Kind, name, version)
		loader := profiles.Loader{Read: func(file string) ([]byte, error) {
			if file == "overlay.yaml" {
				return []byte(overlay), nil
			}
			return os.ReadFile(file)
		}}
		p, list := loader.Load("overlay.yaml")
		spec, more := profiles.Resolve(p, profiles.Facts{
			Arch: arch, LibC: "glibc", LibCVersion: releases.Version{Major: 2, Minor: 36}, Systemd: 252, SystemdInit: true,
		})
		list = append(list, more...)
		return spec, list
	}
}

// hostileSpec has every field that ends in a file, with strings in it that break
// files made by templates.
func hostileSpec(_ *testing.T, arch, version string) (*profiles.Spec, diag.List) {
	odd := "é\u2028 \"q\" 'a' \\n # = [x] {{.}} $HOME"
	spec := newSpec(version)
	spec.Arch = arch
	spec.Modules = []string{"overlay", "br_netfilter"}
	spec.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.core_pattern": "|/bin/x %p = # ;"}
	spec.CNI.Network = &profiles.Network{Name: odd, Bridge: "cni0", Subnets: []string{"10.88.0.0/16", "fd00:88::/64"}, MTU: 1400, IPMasq: true, PortMapping: true}
	spec.CredentialProviders = []profiles.CredentialProvider{{
		Name: "ecr", MatchImages: []string{"*.dkr.ecr.*.amazonaws.com", odd}, DefaultCacheDuration: "12h",
		APIVersion: "credentialprovider.kubelet.k8s.io/v1", Args: []string{"get", odd, "a\nb"}, Env: map[string]string{"A": odd, "B": "true"},
	}}
	c := &spec.Containerd
	c.Root, c.State, c.Address = "/data "+odd+"/containerd", "/run/"+odd, "/run/"+odd+"/c.sock"
	c.OOMScore, c.Snapshotter, c.SandboxImage, c.DefaultRuntime = -500, "stargz", "registry.example.com/"+odd+":1", `a.b "c" \d`
	c.Runtimes = []profiles.Runtime{
		{Name: c.DefaultRuntime, Type: "io.containerd.runc.v2", Path: "/opt/" + odd + "\n\t\x01\x7f", Options: map[string]any{"Root": odd}},
		{Name: "runc", Type: "io.containerd.runc.v2", Path: "/usr/local/sbin/runc"},
	}
	c.ProxyPlugins = []profiles.ProxyPlugin{{Name: "stargz", Type: "snapshot", Address: "/run/" + odd + ".sock", Platform: "linux/" + arch, Exports: map[string]string{"root": odd}}}
	c.Settings = map[string]any{"debug": map[string]any{"level": odd}, "stream_processors": map[string]any{c.DefaultRuntime: map[string]any{"path": odd, "args": []any{odd, "\r\n\x00"}}}}

	secret := func(v string) profiles.Secret { return profiles.Secret{Value: v} }
	file := func(name string) profiles.LocalFile {
		return profiles.LocalFile{Path: "certs/" + name, Given: "certs/" + name}
	}
	caps := []string{"pull", "resolve"}
	timeout := 1500 * time.Millisecond
	if !releases.DialTimeoutSupported(spec.Containerd.Version) {
		timeout = 0
	}
	yes, no := true, false
	spec.Registries = []profiles.Registry{
		{Host: "[fd00::1]:5000", Mirrors: []profiles.Endpoint{{URL: "http://[fd00::2]:5001/a/"}}},
		{Host: "docker.io", Auth: &profiles.Auth{IdentityToken: secret(odd + "\n\x00")}, Mirrors: []profiles.Endpoint{
			{URL: "https://z.example.com/v2/proxy", Capabilities: caps, CA: []profiles.LocalFile{file("ca.crt"), file("o/ca.crt")}, Header: []profiles.Header{{Name: "Authorization", Values: []profiles.Secret{secret(odd)}}, {Name: "X-Two", Values: []profiles.Secret{secret("1"), secret(`"2"`)}}}},
			{URL: "https://a.example.com:8443", Client: []profiles.ClientCert{{Cert: file("c.crt"), Key: file("c.key")}, {Cert: file("both.pem")}}, SkipVerify: &no},
			{URL: "http://m.example.com", Header: []profiles.Header{{Name: "X-Last", Values: []profiles.Secret{{Value: "plain", Plain: true}}}}},
			{URL: "https://m.example.com/a%20b/" + "ü", OverridePath: true, Auth: &profiles.Auth{Username: secret("mirror"), Password: secret(odd)}},
		}},
		{Host: "harbor.example.net:8443", Server: &profiles.Endpoint{CA: []profiles.LocalFile{file("harbor.pem")}, Header: []profiles.Header{{Name: "X-Root", Values: []profiles.Secret{{Value: odd, Plain: true}}}}}, Auth: &profiles.Auth{Username: secret("robot$" + odd), Password: secret(odd)}},
		{Host: "localhost:5000", Server: &profiles.Endpoint{SkipVerify: &yes}},
		{Host: "quay.io", Deny: true, Mirrors: []profiles.Endpoint{{URL: "https://one.example.com", CA: []profiles.LocalFile{file("one.pem")}}, {URL: "https://two.example.com/v2/quay", DialTimeout: timeout, Header: []profiles.Header{{Name: "X-Two", Values: []profiles.Secret{{Value: odd, Plain: true}}}}}}},
		{Host: "*", Deny: true, Mirrors: []profiles.Endpoint{{URL: "https://default.example.com"}}},
	}
	return spec, nil
}

// goldenReader answers without a file system: every file is one certificate, a client's
// with its key, and every secret says where it would have come from.
type goldenReader struct{ pair []byte }

func (r goldenReader) File(f profiles.LocalFile) ([]byte, error) {
	switch path.Base(f.Path) {
	case "c.crt", "c.key", "both.pem":
		return r.pair, nil
	}
	block, _ := pem.Decode(r.pair)
	return pem.EncodeToMemory(block), nil
}

func (goldenReader) Secret(s profiles.Secret) (string, error) {
	if s.Value != "" {
		return s.Value, nil
	}
	for kind, name := range map[string]string{"file": s.File, "environment variable": s.Env, "credential": s.Credential} {
		if name != "" {
			return "from " + kind + " " + name, nil
		}
	}
	return "", nil
}

// renderGolden is the content of a golden folder.
func renderGolden(t *testing.T, build func(*testing.T, string, string) (*profiles.Spec, diag.List), arch, version string) map[string]string {
	t.Helper()
	pair, err := os.ReadFile("testdata/pair.pem")
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{}
	spec, list := build(t, arch, version)
	if !list.HasErrors() {
		files, faults := Files(spec, goldenReader{pair})
		list = append(list, faults...)
		more, faults := registry.Files(spec, goldenReader{pair})
		list = append(list, faults...)
		if !list.HasErrors() {
			for _, f := range append(files, more...) {
				if _, twice := out[f.Path]; twice {
					t.Errorf("%s is there twice", f.Path)
				}
				out[strings.TrimPrefix(f.Path, "/")] = string(f.Content)
			}
			out["meant.json"] = meant(t, spec, append(files, more...))
		}
	}
	list.Sort()
	if len(list) > 0 {
		var b strings.Builder
		for _, d := range list {
			fmt.Fprintln(&b, d)
		}
		out["findings.txt"] = b.String()
	}
	return out
}

// meant is what a resolved profile asks of containerd, as the profiles package made
// it: the oracle compares it with what containerd makes of the files.
func meant(t *testing.T, spec *profiles.Spec, files []desired.File) string {
	t.Helper()
	type file struct {
		Path   string
		Mode   string
		Secret bool
	}
	doc := struct {
		Arch       string
		Version    string
		Containerd profiles.Containerd
		Registries []profiles.Registry
		Files      []file
	}{Arch: spec.Arch, Version: spec.Containerd.Version.String(), Containerd: spec.Containerd, Registries: spec.Registries}
	for _, f := range files {
		doc.Files = append(doc.Files, file{f.Path, fmt.Sprintf("%#o", f.Mode), f.Secret})
	}
	raw, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var tree any
	if err := json.Unmarshal(raw, &tree); err != nil {
		t.Fatal(err)
	}
	pretty, err := json.MarshalIndent(prune(tree), "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(pretty) + "\n"
}

// prune takes away what says nothing: places in profiles, and zero values.
func prune(v any) any {
	switch v := v.(type) {
	case map[string]any:
		delete(v, "Origin")
		for k, e := range v {
			if k == "Settings" || k == "Options" {
				continue // free form: false and 0 say something there
			}
			if e = prune(e); e == nil || e == "" || e == false || e == 0.0 {
				// SkipVerify is a pointer: false is not absent.
				if k != "SkipVerify" || e == nil {
					delete(v, k)
					continue
				}
			}
			v[k] = e
		}
		return v
	case []any:
		for i := range v {
			v[i] = prune(v[i])
		}
	}
	return v
}

func compareGolden(t *testing.T, dir string, got map[string]string) {
	t.Helper()
	if *update {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		for name, content := range got {
			file := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		return
	}
	want := map[string]string{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		content, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(dir, file)
		want[name] = string(content)
		return err
	})
	if err != nil {
		t.Fatalf("%v (run with -update)", err)
	}
	for _, name := range slices.Sorted(maps.Keys(merged(want, got))) {
		if diff := cmp.Diff(want[name], got[name]); diff != "" {
			t.Errorf("%s (-want +got; run with -update if that is meant):\n%s", filepath.Join(dir, name), diff)
		}
	}
}

func merged(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}
