package profiles_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/profiles"
)

// What is flattened can be loaded again and says the same: nothing is lost.
func TestFlatIsAProfile(t *testing.T) {
	examples, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(examples) < 5 {
		t.Fatalf("%d examples, %v", len(examples), err)
	}
	for _, name := range append(examples, "kubernetes", "minimal", "default") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			p, list := profiles.Load(name, os.ReadFile)
			if list.HasErrors() {
				t.Fatal(list)
			}
			first, err := json.Marshal(p.Flat())
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(first), profiles.Masked) {
				t.Logf("masked: %s", first)
			}
			again, list := profiles.Load("flat.yaml", func(string) ([]byte, error) { return first, nil })
			if list.HasErrors() {
				t.Fatalf("%s\n%v", first, list)
			}
			second, err := json.Marshal(again.Flat())
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(first), string(second)); diff != "" {
				t.Error(diff)
			}
			facts := profiles.Facts{Arch: "amd64", LibC: "glibc", Systemd: 252, SystemdInit: true}
			a, list := profiles.Resolve(p, facts)
			if list.HasErrors() {
				t.Fatal(list)
			}
			b, list := profiles.Resolve(again, facts)
			if list.HasErrors() {
				t.Fatal(list)
			}
			if a.Containerd.Version != b.Containerd.Version || len(a.Registries) != len(b.Registries) || len(a.Sysctl) != len(b.Sysctl) {
				t.Errorf("resolved differently: %v, %v", a, b)
			}
		})
	}
}

// A value that stands in the profile is never in the flattened one, wherever it can be
// a secret; references and what is plainly none stay.
func TestFlatHasNoSecrets(t *testing.T) {
	const text = `apiVersion: nodeprep/v1alpha1
kind: NodeProfile
containerd:
  version: 1.7.24
  settings:
    plugins:
      io.containerd.grpc.v1.cri:
        registry:
          configs:
            r.example.com: {auth: {username: robot, password: S3CRET-A, auth: S3CRET-B}}
          mirrors: {x: {endpoint: ["https://u:S3CRET-C@mirror"]}}
        secret_token: S3CRET-D
        numeric_password: 42424242
        sandbox_image: kept.example.com/pause:3.9
registries:
  one.example.com:
    auth: {username: robot, password: S3CRET-E}
    header: {Authorization: Basic S3CRET-F, X-Two: [S3CRET-G, {env: KEPT_ENV}]}
  two.example.com:
    auth: {username: robot, password: {file: kept-file}}
  three.example.com:
    auth: {identityToken: {credential: kept-credential}}
systemd:
  environment: {API_TOKEN: S3CRET-H, HTTP_PROXY: "http://me:S3CRET-I@proxy:3128", KEPT: value}
  proxy: {http: "http://me:S3CRET-J@proxy:3128", https: "http://kept.proxy:3128"}
kubelet:
  credentialProviders:
    - name: p
      matchImages: [kept.example.com]
      args: ["--token=S3CRET-K", "--password", "S3CRET-M", "--url=https://u:S3CRET-L@h/", "--kept-argument"]
      env: {SECRET_KEY: S3CRET-N}
sources:
  - url: https://mirror.example.com/{file}?sig=S3CRET-O
`
	p, _ := profiles.Load("node.yaml", func(string) ([]byte, error) { return []byte(text), nil })
	got, err := json.Marshal(p.Flat())
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"S3CRET", "42424242"} {
		if i := strings.Index(string(got), secret); i >= 0 {
			t.Errorf("a secret is there: ...%s...", got[max(i-60, 0):min(i+20, len(got))])
		}
	}
	for _, kept := range []string{"KEPT_ENV", "kept-file", "kept-credential", "kept.proxy", "kept.example.com/pause:3.9", `"KEPT":"value"`, "--kept-argument", "1.7.24", "@mirror", "mirror.example.com/{file}"} {
		if !strings.Contains(string(got), kept) {
			t.Errorf("%s is lost: %s", kept, got)
		}
	}
}
