package profiles_test

import (
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/profiles"
)

// A portable profile is one that loads in a bundle, and is resolved to the same node but for
// the places of its files and of release files.
func TestPortableIsTheSameProfile(t *testing.T) {
	examples, err := filepath.Glob("../examples/*.yaml")
	if err != nil || len(examples) < 5 {
		t.Fatalf("%d examples, %v", len(examples), err)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	same := cmp.Options{
		cmpopts.IgnoreUnexported(profiles.Spec{}), cmpopts.IgnoreTypes(diag.Origin{}),
		cmpopts.IgnoreFields(profiles.Spec{}, "Profiles", "Sources"),
		cmpopts.IgnoreFields(profiles.Secret{}, "FileGiven"),
		// Of files their content is compared below.
		cmp.Comparer(func(a, b profiles.LocalFile) bool { return path.Base(a.Path) == path.Base(b.Path) }),
	}
	for _, name := range append(examples, "kubernetes", "minimal", "default", "hostile.yaml") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			p, list := profiles.Loader{Dir: dir, Read: func(file string) ([]byte, error) {
				if name == "hostile.yaml" {
					return []byte(hostileProfile), nil
				}
				return os.ReadFile(file)
			}}.Load(name)
			if list.HasErrors() {
				t.Fatal(list)
			}
			facts := profiles.Facts{Arch: "amd64", LibC: "glibc", Systemd: 252, SystemdInit: true}
			want, list := profiles.Resolve(p, facts)
			if list.HasErrors() {
				t.Fatal(list)
			}
			opt := profiles.PortableOptions{WithSecrets: true, Read: func(f profiles.LocalFile) ([]byte, error) { return []byte(f.Given), nil }}
			portable, list := p.Portable(opt)
			if list.HasErrors() {
				t.Fatal(list)
			}
			text, err := portable.YAML(nil)
			if err != nil {
				t.Fatal(err)
			}
			again, list := profiles.Loader{Bundle: "stick.tar", Read: func(file string) ([]byte, error) {
				if file != profiles.BundleProfile {
					return nil, fmt.Errorf("read of %s", file)
				}
				return text, nil
			}}.Load("bundle")
			if list.HasErrors() {
				t.Fatalf("%s\n%v", text, list)
			}
			got, list := profiles.Resolve(again, facts)
			if list.HasErrors() {
				t.Fatal(list)
			}
			if len(got.Sources) > 0 || len(got.Profiles) != 1 {
				t.Errorf("sources %v, layers %v", got.Sources, got.Profiles)
			}
			if diff := cmp.Diff(want, got, same); diff != "" {
				t.Errorf("not the same (-profile +portable):\n%s\n%s", diff, text)
			}
			for range 5 {
				once, _ := p.Portable(opt)
				if twice, err := once.YAML(nil); err != nil || string(twice) != string(text) || !cmp.Equal(once.Files, portable.Files) {
					t.Fatalf("not the same every time: %v\n%s\n%s", err, twice, text)
				}
			}
			// What was made portable can be made so again, from where it is.
			twice, list := again.Portable(opt)
			if list.HasErrors() || len(twice.Files) != len(portable.Files) {
				t.Errorf("again: %v, %v, before %v", list, twice.Files, portable.Files)
			}
		})
	}
}

// Files get names that are theirs alone: the same content the same, others with a number,
// nothing in them that leads anywhere.
func TestPortableFiles(t *testing.T) {
	const text = `apiVersion: nodeprep/v1alpha1
kind: NodeProfile
registries:
  one.example.com: {ca: [ca.pem, a/ca.pem, b/ca.pem, /srv/ca.pem]}
  two.example.com: {ca: "../ü €.pem", mirrors: [{url: "https://m.example.com", ca: [.pem, b/ca.pem]}]}
images:
  - file: pause.tar
  - {file: other/pause.tar, pin: false}
  - file: pause.tar
sources: [{dir: here}]
`
	content := map[string]string{"/home/ca.pem": "one", "/home/a/ca.pem": "two", "/home/b/ca.pem": "one", "/srv/ca.pem": "three", "/ü €.pem": "four", "/home/.pem": "five"}
	p, list := profiles.Loader{Dir: "/home", Read: func(string) ([]byte, error) { return []byte(text), nil }}.Load("node.yaml")
	if list.HasErrors() {
		t.Fatal(list)
	}
	portable, list := p.Portable(profiles.PortableOptions{
		Read: func(f profiles.LocalFile) ([]byte, error) {
			if s, ok := content[f.Path]; ok {
				return []byte(s), nil
			}
			return nil, fs.ErrNotExist
		},
		Pulled: []string{"registry.example.com:5000/app@sha256:0123", "pause", "pause"},
	})
	if list.HasErrors() || portable.Secret {
		t.Fatal(list, portable.Secret)
	}
	var got []string
	for _, f := range portable.Files {
		got = append(got, fmt.Sprintf("%s %s%s %s", f.Name, f.From.Path, f.Pulled, f.Data))
	}
	want := []string{
		"files/ca.pem /home/ca.pem one", "files/ca-2.pem /home/a/ca.pem two", "files/ca-3.pem /srv/ca.pem three",
		"files/_.pem /home/.pem five", "files/_-2.pem /ü €.pem four",
		"images/pause.tar /home/pause.tar ", "images/pause-2.tar /home/other/pause.tar ",
		"images/registry.example.com_5000_app_sha256_0123.tar registry.example.com:5000/app@sha256:0123 ", "images/pause-3.tar pause ",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	yaml, err := portable.YAML(func(name string) bool { return name == "images/pause.tar" })
	if err != nil {
		t.Fatal(err)
	}
	const wantYAML = `apiVersion: nodeprep/v1alpha1
images:
  - file: images/pause-2.tar
    pin: false
  - file: images/registry.example.com_5000_app_sha256_0123.tar
  - file: images/pause-3.tar
  - file: images/pause-3.tar
kind: NodeProfile
registries:
  one.example.com:
    ca:
      - files/ca.pem
      - files/ca-2.pem
      - files/ca.pem
      - files/ca-3.pem
  two.example.com:
    ca:
      - files/_-2.pem
    mirrors:
      - ca:
          - files/_.pem
          - files/ca.pem
        url: https://m.example.com
`
	if diff := cmp.Diff(wantYAML, string(yaml)); diff != "" {
		t.Error(diff)
	}
	if none, err := portable.YAML(func(string) bool { return true }); err != nil || strings.Contains(string(none), "images") {
		t.Errorf("%v\n%s", err, none)
	}
}

// Every secret that would go along is refused with its line, all at once; what is none, or
// is a reference that holds elsewhere, is not.
func TestPortableRefusesSecrets(t *testing.T) {
	const text = `apiVersion: nodeprep/v1alpha1
kind: NodeProfile
containerd:
  version: 1.7.24
  settings:
    plugins:
      io.containerd.grpc.v1.cri:
        registry:
          configs:
            r.example.com: {auth: {password: S3CRET}}
        numeric_password: 4242
registries:
  one.example.com:
    auth: {username: robot, password: S3CRET}
    header:
      Authorization: Basic S3CRET
      X-Two: [plain, {env: KEPT_ENV}]
  two.example.com:
    auth: {username: robot, password: {file: relative}}
    header: {Cookie: {file: /run/secrets/kept}}
  three.example.com:
    auth: {identityToken: {credential: kept-credential}}
    client: {cert: public.pem, key: private.pem}
  four.example.com:
    client: {cert: both.pem}
  five.example.com:
    mirrors:
      - url: https://m.example.com
        auth: {username: robot, password: S3CRET}
      - url: https://n.example.com
        auth: {username: {env: KEPT_USER}, password: {file: relative-of-mirror}}
systemd:
  environment: {API_TOKEN: S3CRET, HTTP_PROXY: "http://me:S3CRET@proxy:3128", KEPT: value}
  proxy: {http: "http://me:S3CRET@proxy:3128", https: "http://kept.proxy:3128"}
kubelet:
  credentialProviders:
    - name: p
      matchImages: [kept.example.com]
      args: ["--token=S3CRET", "--password", "S3CRET",
        "--kept-argument"]
      env: {SECRET_KEY: S3CRET}
`
	p, list := profiles.Loader{Dir: "/home", Read: func(string) ([]byte, error) { return []byte(text), nil }}.Load("node.yaml")
	if list.HasErrors() {
		t.Fatal(list)
	}
	read := func(f profiles.LocalFile) ([]byte, error) {
		switch f.Given {
		case "relative", "relative-of-mirror":
			return []byte("S3CRET\n"), nil
		case "private.pem", "both.pem":
			return []byte("-----BEGIN EC PRIVATE KEY-----\nS3CRET\n"), nil
		}
		return []byte("-----BEGIN CERTIFICATE-----\n"), nil
	}
	portable, list := p.Portable(profiles.PortableOptions{Read: read})
	var got []string
	for _, d := range list {
		if !strings.Contains(d.Hint, "--with-secrets") || strings.Contains(d.String(), "S3CRET") {
			t.Errorf("fault %s", d)
		}
		got = append(got, fmt.Sprintf("%d %s", d.Line, d.Path))
	}
	want := []string{
		"10 containerd.settings.plugins.io.containerd.grpc.v1.cri.registry.configs.r.example.com.auth.password",
		"11 containerd.settings.plugins.io.containerd.grpc.v1.cri.numeric_password",
		"14 registries.one.example.com.auth.password",
		"16 registries.one.example.com.header.Authorization",
		"19 registries.two.example.com.auth.password",
		"23 registries.three.example.com.client.key",
		"25 registries.four.example.com.client.cert",
		"29 registries.five.example.com.mirrors[0].auth.password",
		"31 registries.five.example.com.mirrors[1].auth.password",
		"33 systemd.environment.API_TOKEN",
		"33 systemd.environment.HTTP_PROXY",
		"34 systemd.proxy.http",
		"39 kubelet.credentialProviders[0].args[0]",
		"39 kubelet.credentialProviders[0].args[2]",
		"41 kubelet.credentialProviders[0].env.SECRET_KEY",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s\n%v", diff, list)
	}
	if !portable.Secret {
		t.Error("it is not said that there are secrets")
	}
	// Who asks for them gets them, and what is to be read on the node stays there.
	portable, list = p.Portable(profiles.PortableOptions{Read: read, WithSecrets: true})
	if list.HasErrors() || !portable.Secret {
		t.Fatal(list, portable.Secret)
	}
	yaml, err := portable.YAML(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, kept := range []string{"file: files/relative", "file: /run/secrets/kept", "credential: kept-credential", "env: KEPT_ENV", "env: KEPT_USER", "file: files/relative-of-mirror", "key: files/private.pem", "4242", "--token=S3CRET"} {
		if !strings.Contains(string(yaml), kept) {
			t.Errorf("%s is lost:\n%s", kept, yaml)
		}
	}
}

// A file that cannot be read is told with its line, beside the others.
func TestPortableUnreadable(t *testing.T) {
	const text = "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nregistries:\n  a.example.com: {ca: a.pem}\n  b.example.com: {ca: b.pem}\n"
	p, list := profiles.Load("node.yaml", func(string) ([]byte, error) { return []byte(text), nil })
	if list.HasErrors() {
		t.Fatal(list)
	}
	_, list = p.Portable(profiles.PortableOptions{Read: func(f profiles.LocalFile) ([]byte, error) {
		return nil, &fs.PathError{Op: "open", Path: f.Path, Err: fs.ErrNotExist}
	}})
	if len(list) != 2 || list[0].Line != 4 || !strings.Contains(list[1].Message, "open b.pem: file does not exist") {
		t.Errorf("got %v", list)
	}
}

// A profile that goes by itself keeps what is on the other machine already, and says what is
// not; one for a bundle leaves to that what is in it.
func TestPortableByItself(t *testing.T) {
	load := func(text string) *profiles.Profile {
		t.Helper()
		p, list := profiles.Loader{Dir: "/home", Read: func(string) ([]byte, error) { return []byte(text), nil }}.Load("node.yaml")
		if list.HasErrors() {
			t.Fatal(list)
		}
		return p
	}
	read := func(profiles.LocalFile) ([]byte, error) { return []byte("CERTIFICATE"), nil }
	const head = "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\n"
	const rest = `registries: {r.example.com: {ca: ca.pem}}
images: [{file: /srv/pause.tar}]
sources: [{dir: /srv/releases}, {url: "https://m.example.com/{file}"}]
`
	for name, tt := range map[string]struct {
		opt  profiles.PortableOptions
		want string
	}{
		"by itself": {profiles.PortableOptions{Read: read, ByItself: true}, `apiVersion: nodeprep/v1alpha1
images:
  - file: /srv/pause.tar
kind: NodeProfile
registries:
  r.example.com:
    ca:
      - files/ca.pem
sources:
  - dir: /srv/releases
  - url: "https://m.example.com/{file}"
`},
		"for a bundle": {profiles.PortableOptions{Read: read, Bundled: true}, `apiVersion: nodeprep/v1alpha1
extends: bundle
kind: NodeProfile
registries:
  r.example.com:
    ca:
      - files/ca.pem
`},
	} {
		t.Run(name, func(t *testing.T) {
			portable, list := load(head + rest).Portable(tt.opt)
			if list.HasErrors() {
				t.Fatal(list)
			}
			got, err := portable.YAML(nil)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, string(got)); diff != "" {
				t.Error(diff)
			}
		})
	}
	_, list := load(head + "images: [{file: pause.tar}]\nsources: [{dir: releases}]\n").Portable(profiles.PortableOptions{Read: read, ByItself: true})
	if got := fmt.Sprint(list); strings.Count(got, "not carried along") != 2 || !strings.Contains(got, `"pause.tar"`) || !strings.Contains(got, `"releases"`) {
		t.Error(got)
	}
}
