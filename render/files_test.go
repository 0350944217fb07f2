package render

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/profiles"
)

// find renders a spec and returns one of its files, nil when there is none.
func find(t *testing.T, spec *profiles.Spec, path string) *desired.File {
	t.Helper()
	files, faults := Files(spec, nil)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	i := slices.IndexFunc(files, func(f desired.File) bool { return f.Path == path })
	if i < 0 {
		return nil
	}
	return &files[i]
}

func TestNothingAskedForNothingWritten(t *testing.T) {
	spec := newSpec("2.4.2")
	spec.Crictl = profiles.Component{}
	files, faults := Files(spec, nil)
	if len(faults) > 0 || len(files) != 2 || files[0].Path != ConfigPath || files[1].Path != CrictlPath {
		t.Errorf("files %v, faults %v, want config.toml and crictl.yaml", files, faults)
	}
}

func TestCrictl(t *testing.T) {
	spec := newSpec("2.4.2")
	spec.Containerd.Address = "/run/other/c.sock"
	f := find(t, spec, CrictlPath)
	want := desired.Header + "runtime-endpoint: unix:///run/other/c.sock\nimage-endpoint: unix:///run/other/c.sock\ntimeout: 10\n"
	if diff := cmp.Diff(want, string(f.Content)); diff != "" {
		t.Errorf("crictl.yaml (-want +got):\n%s", diff)
	}
	if f.Effect != desired.EffectNone || f.Format != desired.FormatYAML {
		t.Errorf("effect %q, format %q", f.Effect, f.Format)
	}
}

func TestModulesAndSysctl(t *testing.T) {
	spec := newSpec("2.4.2")
	spec.Modules = []string{"overlay", "br_netfilter"}
	spec.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "kernel.core_pattern": "|/usr/bin/dump %p # = ;", "net.ipv4.conf.*.rp_filter": "2"}
	modules, sysctl := find(t, spec, ModulesPath), find(t, spec, SysctlPath)
	if diff := cmp.Diff(desired.Header+"overlay\nbr_netfilter\n", string(modules.Content)); diff != "" {
		t.Errorf("modules (-want +got):\n%s", diff)
	}
	want := desired.Header + "kernel.core_pattern = |/usr/bin/dump %p # = ;\nnet.ipv4.conf.*.rp_filter = 2\nnet.ipv4.ip_forward = 1\n"
	if diff := cmp.Diff(want, string(sysctl.Content)); diff != "" {
		t.Errorf("sysctl (-want +got):\n%s", diff)
	}
	for f, effect := range map[*desired.File]desired.Effect{modules: desired.EffectModules, sysctl: desired.EffectSysctl} {
		if f.Effect != effect || f.Format != desired.FormatLines {
			t.Errorf("%s: effect %q, format %q", f.Path, f.Effect, f.Format)
		}
	}
}

// What a line cannot hold is a fault: it would become another line.
func TestLinesThatCannotBeWritten(t *testing.T) {
	for _, module := range []string{"", "a b", "a\nb", "#a", "../a"} {
		spec := newSpec("2.4.2")
		spec.Modules = []string{module}
		if _, faults := Files(spec, nil); len(faults.Errors()) != 1 {
			t.Errorf("module %q: %v", module, faults)
		}
	}
	for k, v := range map[string]string{"a=b": "1", "a b": "1", "a\nb": "1", "#a": "1", "a": "1\nkernel.panic = 1", "b": "", "c": " 1"} {
		spec := newSpec("2.4.2")
		spec.Sysctl = map[string]string{k: v}
		_, faults := Files(spec, nil)
		if len(faults.Errors()) != 1 || !strings.HasPrefix(faults[0].Path, "host.sysctl.") {
			t.Errorf("sysctl %q = %q: %v", k, v, faults)
		}
	}
}

func TestConflist(t *testing.T) {
	for _, name := range append(slices.Clone(hostile), "containerd-net") {
		spec := newSpec("2.4.2")
		spec.CNI.Network = &profiles.Network{Name: name, Bridge: "cni0", Subnets: []string{"10.88.0.0/16", "fd00::/64"}, IPMasq: true}
		f := find(t, spec, ConflistPath)
		var got map[string]any
		if err := json.Unmarshal(f.Content, &got); err != nil {
			t.Fatalf("%q: %v", name, err)
		}
		want := map[string]any{
			"cniVersion": "1.0.0", "name": name,
			"plugins": []any{map[string]any{
				"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": true, "promiscMode": true,
				"ipam": map[string]any{
					"type":   "host-local",
					"ranges": []any{[]any{map[string]any{"subnet": "10.88.0.0/16"}}, []any{map[string]any{"subnet": "fd00::/64"}}},
					"routes": []any{map[string]any{"dst": "0.0.0.0/0"}, map[string]any{"dst": "::/0"}},
				},
			}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", name, diff)
		}
		if f.Effect != desired.EffectNone || strings.HasPrefix(string(f.Content), "#") {
			t.Errorf("effect %q, content %s", f.Effect, f.Content)
		}
	}
	spec := newSpec("2.4.2")
	spec.CNI.Network = &profiles.Network{Name: "a", Subnets: []string{"10.88.0.0"}}
	if _, faults := Files(spec, nil); len(faults.Errors()) != 1 {
		t.Errorf("subnet without a length: %v", faults)
	}
}

func TestCredentialProviders(t *testing.T) {
	for _, s := range hostile {
		if strings.ContainsAny(s, "\x00\x01") {
			continue // no argument of a process holds a NUL; YAML has no place for the rest
		}
		spec := newSpec("2.4.2")
		spec.CredentialProviders = []profiles.CredentialProvider{{
			Name: s, MatchImages: []string{s}, DefaultCacheDuration: "12h", APIVersion: "credentialprovider.kubelet.k8s.io/v1", Args: []string{s}, Env: map[string]string{"B": s, "A": "1"},
		}}
		f := find(t, spec, CredentialProvidersPath)
		var got map[string]any
		if err := yaml.Unmarshal(f.Content, &got); err != nil {
			t.Fatalf("%q: %v\n%s", s, err, f.Content)
		}
		want := map[string]any{
			"apiVersion": "kubelet.config.k8s.io/v1", "kind": "CredentialProviderConfig",
			"providers": []any{map[string]any{
				"name": s, "matchImages": []any{s}, "defaultCacheDuration": "12h", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "args": []any{s},
				"env": []any{map[string]any{"name": "A", "value": "1"}, map[string]any{"name": "B", "value": s}},
			}},
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%q (-want +got):\n%s", s, diff)
		}
	}
}

func TestTokenAttributes(t *testing.T) {
	for _, tt := range []struct {
		name string
		give profiles.TokenAttributes
		want map[string]any
	}{
		{"all", profiles.TokenAttributes{Audience: "registry", CacheType: "Token", RequireServiceAccount: true, RequiredAnnotations: []string{"a/b"}, OptionalAnnotations: []string{"c", "d"}},
			map[string]any{"serviceAccountTokenAudience": "registry", "cacheType": "Token", "requireServiceAccount": true, "requiredServiceAccountAnnotationKeys": []any{"a/b"}, "optionalServiceAccountAnnotationKeys": []any{"c", "d"}}},
		// The kubelet wants to be told, also where it is not required, and 1.33 knows no cacheType.
		{"1.33", profiles.TokenAttributes{Audience: "true"}, map[string]any{"serviceAccountTokenAudience": "true", "requireServiceAccount": false}},
	} {
		spec := newSpec("2.4.2")
		spec.CredentialProviders = []profiles.CredentialProvider{{Name: "p", TokenAttributes: &tt.give}}
		var got struct {
			Providers []map[string]any `yaml:"providers"`
		}
		f := find(t, spec, CredentialProvidersPath)
		if err := yaml.Unmarshal(f.Content, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(any(tt.want), got.Providers[0]["tokenAttributes"]); diff != "" || f.Mode != 0o644 {
			t.Errorf("%s: mode %v (-want +got):\n%s", tt.name, f.Mode, diff)
		}
	}
}

// Where a secret stands among what other programs define, the file is its owner's alone
// and not shown; names that are about secrets hide nothing.
func TestFilesWithSecretsAreSecret(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*profiles.Spec)
		path   string
		secret bool
	}{
		{"provider argument", provider([]string{"--auth", "S3CRET"}, nil), CredentialProvidersPath, true},
		{"provider variable", provider(nil, map[string]string{"A": "B", "REGISTRY_TOKEN": "S3CRET"}), CredentialProvidersPath, true},
		{"provider of none", provider([]string{"get-credentials", "--v=3", "--token-file=/run/token"}, map[string]string{"AWS_REGION": "eu-central-1", "GOOGLE_APPLICATION_CREDENTIALS": "/etc/key.json"}), CredentialProvidersPath, false},
		{"setting", settings(map[string]any{"stream_processors": map[string]any{"x": map[string]any{"env": []any{"A=b", "OCICRYPT_PASSWORD=S3CRET"}}}}), ConfigPath, true},
		{"inline key", settings(map[string]any{"plugins": map[string]any{"x": map[string]any{"note": "a\n-----BEGIN EC PRIVATE KEY-----\nMIIE\n"}}}), ConfigPath, true},
		{"runtime option", func(s *profiles.Spec) { s.Containerd.Runtimes[0].Options = map[string]any{"apiKey": "S3CRET"} }, ConfigPath, true},
		{"proxy plugin", func(s *profiles.Spec) {
			s.Containerd.ProxyPlugins = []profiles.ProxyPlugin{{Name: "p", Type: "snapshot", Address: "/run/p", Exports: map[string]string{"passphrase": "S3CRET"}}}
		}, ConfigPath, true},
		{"setting of none", settings(map[string]any{"stream_processors": map[string]any{"x": map[string]any{"args": []any{"--decryption-keys-path", "/etc/containerd/ocicrypt/keys"}}}}), ConfigPath, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			spec := newSpec("2.4.2")
			c.change(spec)
			f := find(t, spec, c.path)
			mode := uint32(0o644)
			if c.secret {
				mode = 0o600
			}
			if f == nil || f.Secret != c.secret || uint32(f.Mode) != mode {
				t.Errorf("got %+v, want secret %v, mode %04o", f, c.secret, mode)
			}
		})
	}
}

func provider(args []string, env map[string]string) func(*profiles.Spec) {
	return func(s *profiles.Spec) {
		// The first has nothing to hide.
		s.CredentialProviders = []profiles.CredentialProvider{{Name: "one"}, {Name: "two", Args: args, Env: env}}
	}
}

func settings(x map[string]any) func(*profiles.Spec) {
	return func(s *profiles.Spec) { s.Containerd.Settings = x }
}
