package profiles_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeprep/nodeprep/internal/diag"
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
  four.example.com:
    mirrors:
      - url: https://m.example.com
        auth: {username: robot, password: S3CRET-P}
      - url: https://n.example.com
        auth: {identityToken: S3CRET-Q}
        header: {X-Auth: S3CRET-R}
      - url: https://o.example.com
        auth: {username: {env: KEPT_USER}, password: {file: kept-mirror-file}}
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
	for _, kept := range []string{"KEPT_ENV", "kept-file", "kept-credential", "KEPT_USER", "kept-mirror-file", "kept.proxy", "kept.example.com/pause:3.9", `"KEPT":"value"`, "--kept-argument", "1.7.24", "@mirror", "mirror.example.com/{file}"} {
		if !strings.Contains(string(got), kept) {
			t.Errorf("%s is lost: %s", kept, got)
		}
	}
}

// hostileProfile has in every place what is easily lost or changed on the way through JSON.
const hostileProfile = `apiVersion: nodeprep/v1alpha1
kind: NodeProfile
containerd:
  version: 2.3.4
  address: /run/token/containerd.sock
  snapshotter: secret-store
  defaultRuntime: credential-runtime
  runtimes:
    credential-runtime: {}
    other: {type: io.containerd.kata.v2, path: /usr/bin/kata, options: {ConfigPath: "", Level: 3, Ratio: 2.0}}
  proxyPlugins:
    secret-store: {type: snapshot, address: /run/secret/store.sock, exports: {root: "", x: "y"}}
  settings:
    timeouts: {"io.containerd.timeout.shim.load": 5s}
    stream_processors:
      "weird \" key, {with}: everything":
        accepts: [a, "", "é \U0001F600 \u2028 <&>"]
        map: {}
        list: []
        whole: 5.0
        large: 1.0e+30
        small: 1.5e-9
        number: -9223372036854775808
        "true": "true"
        digits: "0123"
        null text: "null"
        nested: [[1, 2.0], {a: {b: []}}, false]
registries:
  "*": {mirrors: [{url: "https://auth.example.com/token"}]}
  token.example.com: {server: "https://secret.example.com:5000", capabilities: [pull, resolve], skipVerify: false, dialTimeout: 5s}
  empty.example.com: {}
  denied.example.com:
    upstream: deny
    mirrors:
      - url: https://password.example.com/v2
        overridePath: true
        ca: [ca.pem, /abs/other.pem]
        client: {cert: c.pem, key: k.pem}
        header: {X-Plain: text, X-Many: [a, {env: B}]}
  "[::1]:5000": {auth: {username: robot, password: hunter2}, mirrors: [{url: "https://m", auth: {identityToken: {env: T}}}, {url: "https://n", auth: {username: {credential: c}, password: hunter2}}]}
systemd:
  limitNOFILE: "1024:4096"
  delegate: false
  environment: {EMPTY: "", LINE: "a b  c", "NO": "yes"}
  proxy: {http: "http://me:hunter2@proxy:3128", https: "http://proxy:3128", noProxy: []}
host:
  modules: []
  sysctl: {net.sctp.auth_enable: 1, net.ipv4.ip_local_port_range: "1024 65000", kernel/core_pattern: "|/bin/x %p"}
cni: {network: {subnet: [10.1.0.0/16, "fd00::/64"], mtu: 1400, ipMasq: false}}
images: [{file: a.tar, pin: false}, {file: /b.tar}]
sources: [{dir: .}, {url: "https://mirror.example.com/secret/{file}"}]
generations: 1
checks: {skip: ["*"]}
kubelet:
  credentialProviders: [{name: secret-provider, matchImages: ["token.example.com"], args: [], env: {A: ""}}]
`

// What a profile is flattened to gives the same node, but for secrets: a node is held
// against it long after the profile's file is gone.
func TestFromFlat(t *testing.T) {
	examples, err := filepath.Glob("../examples/*.yaml")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Options{
		cmpopts.IgnoreUnexported(profiles.Spec{}), cmpopts.IgnoreTypes(diag.Origin{}), cmpopts.IgnoreFields(profiles.LocalFile{}, "Given"),
		cmp.Comparer(func(a, b profiles.Secret) bool {
			return a.Given() == b.Given() && a.File == b.File && a.Env == b.Env && a.Credential == b.Credential &&
				(a.Value == b.Value || a.Value == profiles.Masked && !a.Plain || b.Value == profiles.Masked && !b.Plain)
		}),
	}
	for _, name := range append(examples, "kubernetes", "minimal", "default", "hostile.yaml") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			l := profiles.Loader{Dir: dir, Read: func(file string) ([]byte, error) {
				if name == "hostile.yaml" {
					return []byte(hostileProfile), nil
				}
				return os.ReadFile(file)
			}}
			p, list := l.Load(name)
			if list.HasErrors() {
				t.Fatal(list)
			}
			facts := profiles.Facts{Arch: "amd64", LibC: "glibc", Systemd: 252, SystemdInit: true}
			want, list := profiles.Resolve(p, facts)
			if list.HasErrors() {
				t.Fatal(list)
			}
			data, err := json.Marshal(p.Flat())
			if err != nil {
				t.Fatal(err)
			}
			if strings.Contains(string(data), "hunter2") {
				t.Errorf("a secret is there: %s", data)
			}
			again, err := profiles.FromFlat(data, p.Layers())
			if err != nil {
				t.Fatalf("%v\n%s", err, data)
			}
			got, list := profiles.Resolve(again, facts)
			if list.HasErrors() {
				t.Fatal(list)
			}
			if diff := cmp.Diff(want, got, same); diff != "" {
				t.Errorf("not the same (-profile +flattened):\n%s\n%s", diff, data)
			}
		})
	}
}

// Masked values are no values to hold a node against.
func TestFromFlatLeavesMaskedValuesOut(t *testing.T) {
	const text = `apiVersion: nodeprep/v1alpha1
kind: NodeProfile
containerd:
  version: 2.3.4
  settings: {stream_processors: {x: {token: S3CRET, numeric_password: 7, number_of_secrets: 7, kept: 1}}}
host: {sysctl: {net.ipv6.conf.all.stable_secret: "2001:db8::1", vm.overcommit_memory: 1}}
systemd: {environment: {API_TOKEN: S3CRET, KEPT: value}}
`
	p, list := profiles.Load("node.yaml", func(string) ([]byte, error) { return []byte(text), nil })
	if list.HasErrors() {
		t.Fatal(list)
	}
	data, err := json.Marshal(p.Flat())
	if err != nil {
		t.Fatal(err)
	}
	p, err = profiles.FromFlat(data, p.Layers())
	if err != nil {
		t.Fatal(err)
	}
	s, list := profiles.Resolve(p, profiles.Facts{Arch: "amd64"})
	if list.HasErrors() {
		t.Fatal(list)
	}
	got := []any{s.Containerd.Settings, s.Sysctl, s.Systemd.Environment, s.Profiles}
	want := []any{
		map[string]any{"stream_processors": map[string]any{"x": map[string]any{"kept": int64(1), "number_of_secrets": int64(7)}}},
		map[string]string{"vm.overcommit_memory": "1"}, map[string]string{"KEPT": "value"}, []string{"node.yaml"},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestFromFlatRefuses(t *testing.T) {
	const head = `"apiVersion":"nodeprep/v1alpha1","kind":"NodeProfile"`
	for name, c := range map[string]struct{ data, want string }{
		"nothing":           {"", "EOF"},
		"another format":    {`{"apiVersion":"nodeprep/v9","kind":"NodeProfile"}`, "nodeprep/v9 NodeProfile, want nodeprep/v1alpha1 NodeProfile"},
		"a later field":     {`{` + head + `,"containerd":{"turbo":true}}`, "containerd.turbo: unknown here; a newer nodeprep wrote it"},
		"another type":      {`{` + head + `,"generations":"three"}`, "generations: found a text, want int"},
		"a broken number":   {`{` + head + `,"generations":1.5}`, "generations: found a number, want int"},
		"a list for a map":  {`{` + head + `,"registries":[]}`, "registries: found a list"},
		"a null in a list":  {`{` + head + `,"images":[null]}`, "images[0]: found nothing"},
		"a text for a list": {`{` + head + `,"host":{"modules":"overlay"}}`, "host.modules: found a text"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := profiles.FromFlat([]byte(c.data), nil)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q in it", err, c.want)
			}
		})
	}
}
