package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/profiles"
)

// documents are all documents of a YAML text, decoded.
func documents(t *testing.T, name string, text []byte) []map[string]any {
	t.Helper()
	var all []map[string]any
	for dec := yaml.NewDecoder(bytes.NewReader(text)); ; {
		var node yaml.Node
		err := dec.Decode(&node)
		if errors.Is(err, io.EOF) {
			return all
		}
		var doc map[string]any
		if err == nil && node.Content[0].Kind == yaml.MappingNode {
			err = node.Decode(&doc)
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			return all
		}
		if doc != nil {
			all = append(all, doc)
		}
	}
}

// overlays holds what stands in a role's variables to the profile's own rules.
func overlays(t *testing.T, name string, doc map[string]any) (found int) {
	t.Helper()
	for _, key := range []string{"nodeprep_overlay", "nodeprep_host_overlay"} {
		overlay, ok := doc[key].(map[string]any)
		if !ok || len(overlay) == 0 {
			continue
		}
		found++
		profile := map[string]any{"apiVersion": profiles.APIVersion, "kind": profiles.Kind, "extends": "kubernetes"}
		for k, v := range overlay {
			profile[k] = v
		}
		text, err := yaml.Marshal(profile)
		if err != nil {
			t.Fatal(err)
		}
		if _, list := profiles.Load("overlay.yaml", func(string) ([]byte, error) { return text, nil }); list.HasErrors() {
			t.Errorf("%s: %s: %v\n%s", name, key, list, text)
		}
	}
	return found
}

// Every YAML file for Ansible, and every YAML block on the pages about fleets, can be read;
// the parts of profiles in them are such.
func TestFleetExamples(t *testing.T) {
	files, found := 0, 0
	err := filepath.WalkDir("../../examples/ansible", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !slices.Contains([]string{".yml", ".yaml"}, filepath.Ext(name)) {
			return err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		files++
		for _, doc := range documents(t, name, text) {
			found += overlays(t, name, doc)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	blocks := 0
	for _, page := range []string{"../../docs/fleets.md", "../../examples/ansible/README.md"} {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, part := range strings.Split(string(text), "\n```yaml\n")[1:] {
			block, _, _ := strings.Cut(part, "\n```")
			blocks++
			for _, doc := range documents(t, page, []byte(block)) {
				found += overlays(t, page, doc)
				clusterAPI(t, page, doc)
			}
		}
	}
	if files < 10 || blocks < 5 || found < 3 {
		t.Errorf("only %d files, %d blocks and %d overlays found: the search is broken", files, blocks, found)
	}
}

// clusterAPI holds a KubeadmConfigTemplate to what its reader wants of it: nodeprep is
// applied by what runs before kubeadm, with the files that are written before that.
func clusterAPI(t *testing.T, page string, doc map[string]any) {
	t.Helper()
	if doc["kind"] != "KubeadmConfigTemplate" {
		return
	}
	text, err := yaml.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   map[string]any
		Spec       struct {
			Template struct {
				Spec struct {
					Files []struct {
						Path, Owner, Permissions, Content string
					}
					PreKubeadmCommands []string       `yaml:"preKubeadmCommands"`
					JoinConfiguration  map[string]any `yaml:"joinConfiguration"`
				}
			}
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&config); err != nil {
		t.Errorf("%s: %v", page, err)
	}
	spec := config.Spec.Template.Spec
	commands := strings.Join(spec.PreKubeadmCommands, "\n")
	if !strings.Contains(commands, "nodeprep apply") {
		t.Errorf("%s: nothing applies nodeprep before kubeadm:\n%s", page, commands)
	}
	for _, f := range spec.Files {
		if !strings.Contains(commands, f.Path) {
			t.Errorf("%s: nothing reads %s", page, f.Path)
		}
		if strings.HasSuffix(f.Path, "profile.yaml") {
			if _, list := profiles.Load(f.Path, func(string) ([]byte, error) { return []byte(f.Content), nil }); list.HasErrors() {
				t.Errorf("%s: %s: %v", page, f.Path, list)
			}
		}
	}
}

// The role says in words what each exit code is, and knows no others.
func TestFleetKnowsTheExitCodes(t *testing.T) {
	text, err := os.ReadFile("../../examples/ansible/roles/nodeprep/vars/main.yml")
	if err != nil {
		t.Fatal(err)
	}
	var vars struct {
		Codes map[int]string `yaml:"nodeprep_exit_codes"`
	}
	if err := yaml.Unmarshal(text, &vars); err != nil {
		t.Fatal(err)
	}
	for _, code := range []int{exitFailed, exitUsage, exitDiffers, exitStranded} {
		if vars.Codes[code] == "" {
			t.Errorf("the role does not know exit code %d", code)
		}
		delete(vars.Codes, code)
	}
	if len(vars.Codes) > 0 {
		t.Errorf("the role knows exit codes that nodeprep does not have: %v", vars.Codes)
	}
}
