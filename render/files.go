package render

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

// Where the files go. The conflist has the name of containerd's own sample (script/
// setup/install-cni), so that a leftover of it is met and not shadowed.
const (
	ConfigPath              = "/etc/containerd/config.toml"
	CrictlPath              = "/etc/crictl.yaml"
	ConflistPath            = "/etc/cni/net.d/10-containerd-net.conflist"
	ModulesPath             = "/etc/modules-load.d/nodeprep.conf"
	SysctlPath              = "/etc/sysctl.d/90-nodeprep.conf"
	CredentialProvidersPath = "/etc/kubernetes/image-credential-providers.yaml"
)

// Files renders everything but hosts.toml files (registry.Files) and systemd units.
// A nil Reader gives placeholders for secrets. Faults have the place of the field; a
// file with a fault is left out.
func Files(spec *profiles.Spec, r registry.Reader) ([]desired.File, diag.List) {
	var faults diag.List
	var files []desired.File
	add := func(f desired.File, err error) {
		if err != nil {
			faults.Errorf(f.Origin, "", "render %s: %v", f.Path, err)
			return
		}
		if f.Content == nil {
			return
		}
		if f.Mode == 0 {
			f.Mode = 0o644
		}
		files = append(files, f)
	}
	config, list := configFile(spec, registry.OrPlaceholders(r))
	faults = append(faults, list...)
	add(config, nil)
	add(crictlFile(spec))
	add(conflistFile(spec))
	add(modulesFile(spec))
	add(sysctlFile(spec))
	add(credentialProvidersFile(spec))
	return files, faults
}

// crictlFile is crictl.yaml(cri-tools docs/crictl.md) with the keys that every crictl
// reads: it refuses a file with a key it does not know. A crictl that came
// by another way finds it, too.
func crictlFile(spec *profiles.Spec) (desired.File, error) {
	f := desired.File{Path: CrictlPath, Format: desired.FormatYAML, Origin: spec.Origin("crictl")}
	endpoint := "unix://" + spec.Containerd.Address
	body, err := marshalYAML(struct {
		Runtime string `yaml:"runtime-endpoint"`
		Image   string `yaml:"image-endpoint"`
		Timeout int    `yaml:"timeout"` // seconds; crictl's own 2 are few for a slow board
	}{endpoint, endpoint, 10})
	f.Content = body
	return f, err
}

// modulesFile is modules-load.d(5).
func modulesFile(spec *profiles.Spec) (desired.File, error) {
	f := desired.File{Path: ModulesPath, Format: desired.FormatLines, Effect: desired.EffectModules, Origin: spec.Origin("host.modules")}
	if len(spec.Modules) == 0 {
		return f, nil
	}
	b := bytes.NewBufferString(desired.Header)
	for _, m := range spec.Modules {
		if m == "" || strings.ContainsAny(m, " \t\r\n\x00#;/") {
			return f, fmt.Errorf("module name %q: cannot be written on a line of its own", m)
		}
		b.WriteString(m + "\n")
	}
	f.Content = b.Bytes()
	return f, nil
}

// sysctlFile is sysctl.d(5): "key = value", split at the first equals sign.
func sysctlFile(spec *profiles.Spec) (desired.File, error) {
	f := desired.File{Path: SysctlPath, Format: desired.FormatLines, Effect: desired.EffectSysctl, Origin: spec.Origin("host.sysctl")}
	if len(spec.Sysctl) == 0 {
		return f, nil
	}
	b := bytes.NewBufferString(desired.Header)
	for _, k := range slices.Sorted(maps.Keys(spec.Sysctl)) {
		v := spec.Sysctl[k]
		if k == "" || strings.ContainsAny(k, " \t\r\n\x00#;=") || strings.HasPrefix(k, "-") {
			f.Origin = spec.Origin("host.sysctl." + k)
			return f, fmt.Errorf("sysctl key %q: cannot be written on a line of its own", k)
		}
		if v == "" || strings.ContainsAny(v, "\r\n\x00") || strings.TrimSpace(v) != v {
			f.Origin = spec.Origin("host.sysctl." + k)
			return f, fmt.Errorf("sysctl %s: value %q cannot be written on a line of its own", k, v)
		}
		fmt.Fprintf(b, "%s = %s\n", k, v)
	}
	f.Content = b.Bytes()
	return f, nil
}

// credentialProvidersFile is the kubelet's CredentialProviderConfig
// (kubelet.config.k8s.io/v1), for its --image-credential-provider-config. It names the
// plugins' executables; a kubelet reads it at its own start.
func credentialProvidersFile(spec *profiles.Spec) (desired.File, error) {
	f := desired.File{Path: CredentialProvidersPath, Format: desired.FormatYAML, Origin: spec.Origin("kubelet.credentialProviders")}
	if len(spec.CredentialProviders) == 0 {
		return f, nil
	}
	type env struct {
		Name  string `yaml:"name"`
		Value string `yaml:"value"`
	}
	type tokenAttributes struct {
		Audience              string   `yaml:"serviceAccountTokenAudience"`
		CacheType             string   `yaml:"cacheType,omitempty"`
		RequireServiceAccount bool     `yaml:"requireServiceAccount"`
		Required              []string `yaml:"requiredServiceAccountAnnotationKeys,omitempty"`
		Optional              []string `yaml:"optionalServiceAccountAnnotationKeys,omitempty"`
	}
	type provider struct {
		Name                 string   `yaml:"name"`
		MatchImages          []string `yaml:"matchImages"`
		DefaultCacheDuration string   `yaml:"defaultCacheDuration"`
		APIVersion           string   `yaml:"apiVersion"`
		Args                 []string `yaml:"args,omitempty"`
		Env                  []env    `yaml:"env,omitempty"`

		TokenAttributes *tokenAttributes `yaml:"tokenAttributes,omitempty"`
	}
	config := struct {
		APIVersion string     `yaml:"apiVersion"`
		Kind       string     `yaml:"kind"`
		Providers  []provider `yaml:"providers"`
	}{APIVersion: "kubelet.config.k8s.io/v1", Kind: "CredentialProviderConfig"}
	for _, p := range spec.CredentialProviders {
		if profiles.HasSecret(p.Args) || profiles.HasSecret(p.Env) {
			f.Mode, f.Secret = 0o600, true // the kubelet is root
		}
		out := provider{Name: p.Name, MatchImages: p.MatchImages, DefaultCacheDuration: p.DefaultCacheDuration, APIVersion: p.APIVersion, Args: p.Args}
		for _, k := range slices.Sorted(maps.Keys(p.Env)) {
			out.Env = append(out.Env, env{k, p.Env[k]})
		}
		if t := p.TokenAttributes; t != nil {
			out.TokenAttributes = &tokenAttributes{t.Audience, t.CacheType, t.RequireServiceAccount, t.RequiredAnnotations, t.OptionalAnnotations}
		}
		config.Providers = append(config.Providers, out)
	}
	body, err := marshalYAML(config)
	f.Content = body
	return f, err
}

func marshalYAML(v any) ([]byte, error) {
	b := bytes.NewBufferString(desired.Header)
	e := yaml.NewEncoder(b)
	e.SetIndent(2)
	if err := e.Encode(v); err != nil {
		return nil, err
	}
	return b.Bytes(), e.Close()
}
