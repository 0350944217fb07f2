package registry

import (
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

// reader gives one real certificate and key for every file, and secrets by name.
type reader struct{ pair []byte }

func (r reader) File(f profiles.LocalFile) ([]byte, error) {
	if strings.Contains(f.Path, "missing") {
		return nil, &fs.PathError{Op: "open", Path: f.Path, Err: fs.ErrNotExist}
	}
	if strings.Contains(f.Path, "junk") {
		return []byte("junk"), nil
	}
	if strings.HasPrefix(path.Base(f.Path), "ca.") || strings.HasSuffix(f.Path, ".crt") {
		return certificate(r.pair), nil
	}
	return r.pair, nil
}

// certificate is a pair without its key.
func certificate(pair []byte) []byte {
	block, _ := pem.Decode(pair)
	return pem.EncodeToMemory(block)
}

func (r reader) Secret(s profiles.Secret) (string, error) {
	if s.Env == "MISSING" {
		return "", errors.New("environment variable MISSING is not set")
	}
	if s.Env == "EMPTY" {
		return "", nil
	}
	if s.Env != "" {
		return "value of " + s.Env, nil
	}
	return s.Value, nil
}

func newReader(t *testing.T) Reader {
	t.Helper()
	pair, err := os.ReadFile("../testdata/pair.pem")
	if err != nil {
		t.Fatal(err)
	}
	return reader{pair}
}

func spec(version string, regs ...profiles.Registry) *profiles.Spec {
	return &profiles.Spec{
		Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion(version)}},
		Registries: regs,
	}
}

func local(p string) profiles.LocalFile {
	return profiles.LocalFile{Path: "/etc/nodeprep/" + p, Given: p}
}

func plain(v string) []profiles.Secret { return []profiles.Secret{{Value: v, Plain: true}} }

func yes() *bool { v := true; return &v }

func TestHostsFile(t *testing.T) {
	for _, tt := range []struct {
		name, version string
		reg           profiles.Registry
		dir, want     string
		secret        bool
		faults        []string // warnings
	}{
		{
			name: "docker hub", version: "2.4.2", dir: "docker.io",
			reg:  profiles.Registry{Host: "docker.io", Mirrors: []profiles.Endpoint{{URL: "https://mirror.example.com/"}}},
			want: "server = 'https://registry-1.docker.io'\n\n[host.'https://mirror.example.com']\n",
		},
		{
			name: "bare host table where a file without one is ignored", version: "1.7.31", dir: "quay.io",
			reg:  profiles.Registry{Host: "quay.io"},
			want: "server = 'https://quay.io'\n\n[host]\n",
		},
		{
			name: "no bare host table", version: "1.7.32", dir: "quay.io",
			reg:  profiles.Registry{Host: "quay.io"},
			want: "server = 'https://quay.io'\n",
		},
		{
			name: "deny makes the last mirror the server", version: "2.2.7", dir: "_default",
			reg: profiles.Registry{Host: "*", Deny: true, Mirrors: []profiles.Endpoint{
				{URL: "http://one:5000", Capabilities: []string{"Pull"}},
				{URL: "https://two/v2/proxy", CA: []profiles.LocalFile{local("ca.crt")}, Header: []profiles.Header{{Name: "X-A", Values: plain("b")}}},
			}},
			want: `server = 'https://two/v2/proxy'
ca = ['ca.pem']
override_path = true

[header]
X-A = 'b'

[host.'http://one:5000']
capabilities = ['pull']
`,
		},
		{
			name: "deny with one mirror on an old release", version: "1.6.39", dir: "docker.io",
			reg:  profiles.Registry{Host: "docker.io", Deny: true, Mirrors: []profiles.Endpoint{{URL: "https://two"}}},
			want: "server = 'https://two'\n\n[host]\n",
		},
		{
			name: "everything", version: "2.3.4", dir: "reg.example.com_5000_", secret: true,
			reg: profiles.Registry{Host: "reg.example.com:5000", Server: &profiles.Endpoint{CA: []profiles.LocalFile{local("ca.pem")}}, Mirrors: []profiles.Endpoint{{
				URL: "https://m/x/", Capabilities: []string{"pull", "resolve", "referrers"},
				CA:         []profiles.LocalFile{local("other/ca.crt"), local("ca.pem")},
				Client:     []profiles.ClientCert{{Cert: local("c.pem"), Key: local("k.pem")}, {Cert: local("both.pem")}},
				SkipVerify: new(bool), OverridePath: true, DialTimeout: 90 * time.Second,
				Header: []profiles.Header{{Name: "Authorization", Values: []profiles.Secret{{Env: "TOKEN"}}}, {Name: "X-Two", Values: []profiles.Secret{{Value: "a"}, {Value: `"b"`}}}},
			}, {URL: "https://n"}}},
			want: `server = 'https://reg.example.com:5000'
ca = ['ca-2.pem']

[host.'https://m/x']
capabilities = ['pull', 'resolve', 'referrers']
ca = ['ca.pem', 'ca-2.pem']
client = [['c.pem', 'k.pem'], ['both.pem', 'both.pem']]
skip_verify = false
override_path = true
dial_timeout = '1m30s'

[host.'https://m/x'.header]
Authorization = 'value of TOKEN'
X-Two = ['a', '"b"']

[host.'https://n']
`,
		},
		{
			name: "http with TLS settings", version: "2.4.2", dir: "quay.io",
			reg:    profiles.Registry{Host: "quay.io", Mirrors: []profiles.Endpoint{{URL: "http://m:5000", SkipVerify: yes()}}},
			want:   "server = 'https://quay.io'\n\n[host.'http://m:5000']\nskip_verify = true\n",
			faults: []string{"containerd tries HTTPS first"},
		},
		{
			name: "localhost keeps containerd's own way", version: "2.4.2", dir: "localhost_5000_",
			reg:  profiles.Registry{Host: "localhost:5000", Server: &profiles.Endpoint{SkipVerify: yes()}},
			want: "skip_verify = true\n",
		},
		{name: "IPv6 with port", version: "2.4.2", dir: "[::1]_5000_", reg: profiles.Registry{Host: "[::1]:5000"}, want: ""},
		{name: "IPv6", version: "2.4.2", dir: "[fd00:_1]_", reg: profiles.Registry{Host: "[fd00::1]"}, want: "server = 'https://[fd00::1]'\n"},
		{
			name: "IPv6 mirror on 1.x", version: "1.7.34", dir: "a.b",
			reg: profiles.Registry{Host: "a.b", Mirrors: []profiles.Endpoint{{URL: "https://b", CA: []profiles.LocalFile{local("ca.pem")}}, {URL: "http://[::2]:5000", Header: []profiles.Header{{Name: "X", Values: plain("y")}}}}},
			want: `server = 'https://a.b'

[host]
'https://b'.ca = ['ca.pem']
'http://[::2]:5000'.header.X = 'y'
`,
		},
		{
			name: "IPv6 mirror on 2.x", version: "2.0.11", dir: "a.b",
			reg:  profiles.Registry{Host: "a.b", Mirrors: []profiles.Endpoint{{URL: "http://[::2]:5000"}}},
			want: "server = 'https://a.b'\n\n[host.'http://[::2]:5000']\n",
		},
		{
			name: "path that ends in a word beginning with v2", version: "2.4.2", dir: "a.b",
			reg:  profiles.Registry{Host: "a.b", Mirrors: []profiles.Endpoint{{URL: "https://m/v2proxy"}, {URL: "https://m/x/v2"}}},
			want: "server = 'https://a.b'\n\n[host.'https://m/v2proxy']\n\n[host.'https://m/x/v2']\noverride_path = true\n",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files, faults := Files(spec(tt.version, tt.reg), newReader(t))
			if len(faults) != len(tt.faults) || faults.HasErrors() {
				t.Fatalf("faults: %v, want %q", faults, tt.faults)
			}
			for i, want := range tt.faults {
				if !strings.Contains(faults[i].Message, want) {
					t.Errorf("fault %q, want %q", faults[i], want)
				}
			}
			if len(files) == 0 {
				t.Fatal("no file")
			}
			f := files[0]
			if want := "/etc/containerd/certs.d/" + tt.dir + "/hosts.toml"; f.Path != want {
				t.Errorf("path %s, want %s", f.Path, want)
			}
			if diff := cmp.Diff(desired.Header+tt.want, string(f.Content)); diff != "" {
				t.Errorf("hosts.toml (-want +got):\n%s", diff)
			}
			mode := fs.FileMode(0o644)
			if tt.secret {
				mode = 0o600
			}
			if f.Mode != mode || f.Secret != tt.secret || f.Effect != desired.EffectNone || f.Format != desired.FormatHosts {
				t.Errorf("mode %v secret %v effect %q format %q", f.Mode, f.Secret, f.Effect, f.Format)
			}
		})
	}
}

func TestCertificateFiles(t *testing.T) {
	files, faults := Files(spec("2.4.2", profiles.Registry{Host: "quay.io", Mirrors: []profiles.Endpoint{{
		URL: "https://m", CA: []profiles.LocalFile{local("..weird name.crt")},
		Client: []profiles.ClientCert{{Cert: local("c.crt"), Key: local("c.key")}},
	}, {URL: "https://n", Client: []profiles.ClientCert{{Cert: local("both.pem")}}}}}), newReader(t))
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	type file struct {
		Path   string
		Mode   fs.FileMode
		Secret bool
	}
	var got []file
	for _, f := range files {
		got = append(got, file{strings.TrimPrefix(f.Path, "/etc/containerd/certs.d/quay.io/"), f.Mode, f.Secret})
	}
	want := []file{{"hosts.toml", 0o644, false}, {"weird_name.pem", 0o644, false}, {"c.pem", 0o644, false}, {"c-2.pem", 0o600, true}, {"both.pem", 0o600, true}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

func TestFaults(t *testing.T) {
	mirror := func(e profiles.Endpoint) profiles.Registry {
		return profiles.Registry{Host: "quay.io", Mirrors: []profiles.Endpoint{e}}
	}
	for _, tt := range []struct {
		name, version string
		reg           profiles.Registry
		path, want    string
	}{
		{"duplicate mirror", "2.4.2", profiles.Registry{Host: "quay.io", Mirrors: []profiles.Endpoint{{URL: "https://a"}, {URL: "https://A/"}}}, "registries.quay.io.mirrors[1].url", "is there twice"},
		{"scheme", "2.4.2", mirror(profiles.Endpoint{URL: "ftp://a"}), "registries.quay.io.mirrors[0].url", `unsupported scheme "ftp"`},
		{"no scheme", "2.4.2", mirror(profiles.Endpoint{URL: "httpbin.local"}), "registries.quay.io.mirrors[0].url", `unsupported scheme ""`},
		{"credentials in the URL", "2.4.2", mirror(profiles.Endpoint{URL: "https://u:hunter2@a"}), "registries.quay.io.mirrors[0].url", "ignores credentials"},
		{"credentials in a bad URL", "2.4.2", mirror(profiles.Endpoint{URL: "https://u:hunter2@a b"}), "registries.quay.io.mirrors[0].url", "bad URL"},
		{"query", "2.4.2", mirror(profiles.Endpoint{URL: "https://a?x=y"}), "registries.quay.io.mirrors[0].url", "ignores the query"},
		{"capability", "2.4.2", mirror(profiles.Endpoint{URL: "https://a", Capabilities: []string{"list"}}), "registries.quay.io.mirrors[0].capabilities[0]", `unknown capability "list"`},
		{"only capability is unknown to the release", "1.7.34", mirror(profiles.Endpoint{URL: "https://a", Capabilities: []string{"referrers"}}), "registries.quay.io.mirrors[0].capabilities[0]", "does not know the capability"},
		{"referrers beside others", "2.1.9", mirror(profiles.Endpoint{URL: "https://a", Capabilities: []string{"pull", "referrers"}}), "registries.quay.io.mirrors[0].capabilities[1]", "containerd 2.1.9 does not know the capability referrers"},
		{"dial timeout", "2.0.6", mirror(profiles.Endpoint{URL: "https://a", DialTimeout: time.Second}), "registries.quay.io.mirrors[0].dialTimeout", "containerd 2.0.6 has no dial timeout"},
		{"dial timeout of a server", "1.7.34", profiles.Registry{Host: "quay.io", Server: &profiles.Endpoint{DialTimeout: time.Second}}, "registries.quay.io.dialTimeout", "containerd 1.7.34 has no dial timeout"},
		{"empty header", "2.4.2", mirror(profiles.Endpoint{URL: "https://a", Header: []profiles.Header{{Name: "A", Values: []profiles.Secret{{Env: "EMPTY"}}}}}), "registries.quay.io.mirrors[0].header.A", "the value of header A is empty"},
		{"deny without mirrors", "2.4.2", profiles.Registry{Host: "quay.io", Deny: true}, "registries.quay.io.upstream", "nothing to pull from"},
		{"default on a release without it", "1.6.16", profiles.Registry{Host: "*"}, "registries.*", "knows no default registry"},
		{"host that is a path", "2.4.2", profiles.Registry{Host: "../etc"}, "registries.../etc", "is not a host"},
		{"host that is two dots", "2.4.2", profiles.Registry{Host: ".."}, "registries...", "is not a host"},
		{"missing file", "2.4.2", mirror(profiles.Endpoint{URL: "https://a", CA: []profiles.LocalFile{local("missing.pem")}}), "", "file does not exist"},
		{"CA without a certificate", "2.4.2", mirror(profiles.Endpoint{URL: "https://a", CA: []profiles.LocalFile{local("junk.pem")}}), "", "no certificate in junk.pem"},
		{"key that is none", "2.4.2", mirror(profiles.Endpoint{URL: "https://a", Client: []profiles.ClientCert{{Cert: local("c.pem"), Key: local("junk.pem")}}}), "", "client certificate c.pem with key junk.pem"},
		{"missing secret", "2.4.2", mirror(profiles.Endpoint{URL: "https://a", Header: []profiles.Header{{Name: "A", Values: []profiles.Secret{{Env: "MISSING"}}}}}), "registries.quay.io.mirrors[0].header.A", "MISSING is not set"},
		{"header value of two lines", "2.4.2", mirror(profiles.Endpoint{URL: "https://a", Header: []profiles.Header{{Name: "A", Values: plain("hunter2\nB: c")}}}), "registries.quay.io.mirrors[0].header.A", "control characters"},
		{"header name", "2.4.2", mirror(profiles.Endpoint{URL: "https://a", Header: []profiles.Header{{Name: "A B", Values: plain("c")}}}), "registries.quay.io.mirrors[0].header.A B", "not the name of an HTTP header"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, faults := Files(spec(tt.version, tt.reg), newReader(t))
			if len(faults.Errors()) != 1 {
				t.Fatalf("faults %v, want one error", faults)
			}
			d := faults.Errors()[0]
			if d.Path != tt.path || !strings.Contains(d.Message, tt.want) {
				t.Errorf("got %q at %q, want %q at %q", d.Message, d.Path, tt.want, tt.path)
			}
			if strings.Contains(d.String(), "hunter2") {
				t.Errorf("secret shown: %s", d)
			}
		})
	}
}

func TestTwoRegistriesInOneFolder(t *testing.T) {
	_, faults := Files(spec("2.4.2", profiles.Registry{Host: "a:1"}, profiles.Registry{Host: "a_1_"}), nil)
	if len(faults.Errors()) != 1 || !strings.Contains(faults[0].Message, "same folder") {
		t.Errorf("faults %v", faults)
	}
}

// Without a Reader nothing is read, and what stands in for it says so.
func TestPlaceholders(t *testing.T) {
	files, faults := Files(spec("2.4.2", profiles.Registry{Host: "quay.io", Mirrors: []profiles.Endpoint{{
		URL: "https://a", CA: []profiles.LocalFile{local("missing.pem")},
		Client: []profiles.ClientCert{{Cert: local("c.pem"), Key: local("k.pem")}},
		Header: []profiles.Header{{Name: "Authorization", Values: []profiles.Secret{{File: "/run/secrets/mirror"}}}},
	}}}), nil)
	if len(faults) > 0 || len(files) != 4 {
		t.Fatalf("files %v, faults %v", files, faults)
	}
	for i, want := range []string{"Authorization = '(placeholder made by nodeprep: file /run/secrets/mirror)'", "placeholder made by nodeprep: the contents of missing.pem", "c.pem", "k.pem"} {
		if !strings.Contains(string(files[i].Content), want) {
			t.Errorf("%s: %q lacks %q", files[i].Path, files[i].Content, want)
		}
	}
}

func TestCredentialHost(t *testing.T) {
	for _, tt := range []struct {
		reg  profiles.Registry
		want string
	}{
		{profiles.Registry{Host: "docker.io"}, "registry-1.docker.io"},
		{profiles.Registry{Host: "a:5000"}, "a:5000"},
		{profiles.Registry{Host: "a", Server: &profiles.Endpoint{URL: "https://b:1/x"}}, "b:1"},
		{profiles.Registry{Host: "a", Server: &profiles.Endpoint{}}, "a"},
		{profiles.Registry{Host: "*"}, ""},
	} {
		if got := CredentialHost(tt.reg); got != tt.want {
			t.Errorf("CredentialHost(%s) = %q, want %q", tt.reg.Host, got, tt.want)
		}
	}
}

func ExampleFiles() {
	files, _ := Files(&profiles.Spec{
		Containerd: profiles.Containerd{Component: profiles.Component{Version: releases.MustVersion("2.3.4")}},
		Registries: []profiles.Registry{{Host: "docker.io", Mirrors: []profiles.Endpoint{{URL: "https://mirror.example.com"}}}},
	}, nil)
	fmt.Printf("%s\n%s", files[0].Path, strings.TrimPrefix(string(files[0].Content), desired.Header))
	// Output:
	// /etc/containerd/certs.d/docker.io/hosts.toml
	// server = 'https://registry-1.docker.io'
	//
	// [host.'https://mirror.example.com']
}
