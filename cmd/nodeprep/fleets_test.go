package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"
	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/cloudinit"
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

// fleetPages are the pages about fleets.
var fleetPages = []string{"../../docs/fleets.md", "../../examples/ansible/README.md"}

// block is a fenced part of a page.
type block struct{ page, language, text string }

func blocksOf(t *testing.T, page string) (all []block) {
	t.Helper()
	text, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range fenced.FindAllStringSubmatch(string(text), -1) {
		all = append(all, block{page, part[1], part[2]})
	}
	return all
}

var fenced = regexp.MustCompile("(?sm)^```(\\w*)\n(.*?\n)```$")

// fleetBlock is the only block of docs/fleets.md in a language that has a text in it.
func fleetBlock(t *testing.T, language, has string) string {
	t.Helper()
	var found []string
	for _, b := range blocksOf(t, fleetPages[0]) {
		if b.language == language && strings.Contains(b.text, has) {
			found = append(found, b.text)
		}
	}
	if len(found) != 1 {
		t.Fatalf("%s has %d %s blocks with %q, want one", fleetPages[0], len(found), language, has)
	}
	return found[0]
}

// Every YAML file for Ansible, and every YAML block on the pages about fleets, can be read;
// the parts of profiles in them are such. Blocks in other languages have tests of their own.
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
	blocks, templates := 0, 0
	for _, page := range fleetPages {
		for _, b := range blocksOf(t, page) {
			switch b.language {
			case "yaml":
				blocks++
				for _, doc := range documents(t, page, []byte(b.text)) {
					found += overlays(t, page, doc)
					if doc["kind"] == "KubeadmConfigTemplate" {
						templates++
						clusterAPI(t, page, doc)
					}
				}
			case "sh", "hcl": // TestDocumentedCommands, TestFleetTerraform
			default:
				t.Errorf("%s: nothing tests a block of %q", page, b.language)
			}
		}
	}
	if files < 10 || blocks < 5 || found < 3 || templates != 1 {
		t.Errorf("only %d files, %d blocks, %d overlays and %d templates found: the search is broken", files, blocks, found, templates)
	}
}

// clusterAPI holds a KubeadmConfigTemplate to what its reader wants of it: nodeprep is
// applied by what runs before kubeadm, with the files that are written before that, and
// what fails there ends the script that kubeadm's line is in, too. The fields are the ones of
// v1beta2 that the page uses, as Cluster API 1.11.3 defines them
// (bootstrap/kubeadm/config/crd/bases/bootstrap.cluster.x-k8s.io_kubeadmconfigtemplates.yaml):
// another has to be looked up there.
func clusterAPI(t *testing.T, page string, doc map[string]any) {
	t.Helper()
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
					PreKubeadmCommands []string `yaml:"preKubeadmCommands"`
					JoinConfiguration  struct {
						NodeRegistration struct {
							CRISocket string `yaml:"criSocket"`
						} `yaml:"nodeRegistration"`
					} `yaml:"joinConfiguration"`
				}
			}
		}
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&config); err != nil {
		t.Errorf("%s: %v", page, err)
	}
	if want := "bootstrap.cluster.x-k8s.io/v1beta2"; config.APIVersion != want {
		t.Errorf("%s: apiVersion %s, want %s", page, config.APIVersion, want)
	}
	spec := config.Spec.Template.Spec
	commands := strings.Join(spec.PreKubeadmCommands, "\n")
	if !strings.Contains(commands, "nodeprep apply") {
		t.Errorf("%s: nothing applies nodeprep before kubeadm:\n%s", page, commands)
	}
	for _, c := range spec.PreKubeadmCommands {
		if !strings.HasSuffix(c, " || exit 1") {
			t.Errorf("%s: kubeadm would join where this failed: %s", page, c)
		}
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

// The script that Terraform asks gives each group the user-data that nodeprep prints for its
// profile, and fails where that does: what is empty would become a machine's.
func TestFleetTerraform(t *testing.T) {
	if _, err := exec.LookPath("jq"); err != nil {
		t.Skip("no jq here (Debian package jq): the script for Terraform is not run")
	}
	var hcl string
	for _, b := range blocksOf(t, fleetPages[0]) {
		if b.language == "hcl" {
			hcl += b.text
		}
	}
	_, rest, _ := strings.Cut(hcl, "jsonencode(")
	object, _, ok := strings.Cut(rest, "})\n")
	if !ok {
		t.Fatal("the profile that Terraform makes was not found")
	}
	profile := strings.Replace(object+"}", "each.value", `{"vm.max_map_count": "262144"}`, 1)
	query, err := json.Marshal(map[string]string{"profile": profile})
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"user-data.sh": fleetBlock(t, "sh", "jq -"),
		"profile.json": profile,
		"query.json":   string(query),
		"wrong.json":   `{"profile": "{\"extends\": \"bundle\", \"hots\": {}}"}`,
		"empty.json":   `{"profile": ""}`,
		"none.json":    `{}`,
	}
	const bundle = "https://mirror.room.internal/node.bundle " + exampleSum
	runFleetScript(t, `stdin profile.json
nodeprep cloud-init -f - --bundle-url https://mirror.room.internal/node.bundle --bundle-sha256 `+exampleSum+`
cp stdout want
stdin query.json
exec sh user-data.sh `+bundle+`
cp stdout answer
stdin answer
exec jq -j .userData
cmp stdout want
stdin answer
exec jq -c keys
stdout '^\["userData"\]$'
grep max_map_count want
stdin query.json
! exec sh user-data.sh https://mirror.room.internal/node.bundle
! stdout .
stdin wrong.json
! exec sh user-data.sh `+bundle+`
! stdout .
stderr hots
stdin empty.json
! exec sh user-data.sh `+bundle+`
! stdout .
stdin none.json
! exec sh user-data.sh `+bundle+`
! stdout .
stdin empty
! exec sh user-data.sh `+bundle+`
! stdout .
`, files, "empty")
}

// runFleetScript runs a script with files, some of them empty.
func runFleetScript(t *testing.T, script string, files map[string]string, empty ...string) {
	t.Helper()
	for _, name := range slices.Sorted(maps.Keys(files)) {
		script += "-- " + name + " --\n" + strings.TrimSuffix(files[name], "\n") + "\n"
	}
	for _, name := range empty {
		script += "-- " + name + " --\n"
	}
	name := filepath.Join(t.TempDir(), "script.txtar")
	if err := os.WriteFile(name, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{Files: []string{name}, Setup: smallSelf, Cmds: scriptCommands()})
}

// What curtin and Ubuntu's installer are told to run makes their disk a node's, and ends
// the installation where a file is damaged.
func TestFleetInstallers(t *testing.T) {
	var curtin struct {
		Commands map[string][]string `yaml:"late_commands"`
	}
	if err := yaml.Unmarshal([]byte(fleetBlock(t, "yaml", "late_commands:")), &curtin); err != nil {
		t.Fatal(err)
	}
	var ubuntu struct {
		Autoinstall struct {
			Version  int
			Commands []string `yaml:"late-commands"`
		}
	}
	if err := yaml.Unmarshal([]byte(fleetBlock(t, "yaml", "late-commands:")), &ubuntu); err != nil {
		t.Fatal(err)
	}
	if ubuntu.Autoinstall.Version != 1 {
		t.Errorf("autoinstall has version %d, want 1", ubuntu.Autoinstall.Version)
	}
	// curtin runs them in the order of their names.
	var lines []string
	for _, name := range slices.Sorted(maps.Keys(curtin.Commands)) {
		if name <= "maas" {
			t.Errorf("%s runs before MAAS knows that the disk is to be booted", name)
		}
		c := curtin.Commands[name]
		if len(c) != 3 || c[0] != "sh" || c[1] != "-euc" {
			t.Fatalf("%s is %q, want a line for sh -euc", name, c)
		}
		lines = append(lines, c[2])
	}
	for name, lines := range map[string][]string{"curtin": lines, "autoinstall": ubuntu.Autoinstall.Commands} {
		t.Run(name, func(t *testing.T) {
			if len(lines) != 3 {
				t.Fatalf("there are %d commands, want to fetch, to verify and to apply", len(lines))
			}
			files := map[string]string{
				// What they fetch is in ./server.
				"wget":            "#!/bin/sh\nfor a; do case $a in http://rack.room.internal/*) cp ../server/\"${a##*/}\" . || exit 4 ;; esac; done\n",
				"server/nodeprep": "#!/bin/sh\nexec nodeprep \"$@\" --arch amd64\n",
			}
			script := "artifacts artifacts amd64\nnodeprep bundle create server/node.bundle -f node.yaml --arch amd64 --artifacts artifacts --offline\n" +
				"exec sh sums.sh\nchmod 755 wget\nmkdir tmp damaged target\nenv PATH=$WORK:$PATH\nenv TARGET_MOUNT_POINT=$WORK/target\n"
			files["sums.sh"] = "cd server && sha256sum nodeprep node.bundle >SHA256SUMS\n"
			for n, line := range lines {
				line = strings.NewReplacer("/tmp", "$WORK/tmp", "/target", "$WORK/target").Replace(line)
				file := fmt.Sprintf("%d.sh", n)
				files[file] = line + "\n"
				if n == 1 {
					files["damaged.sh"] = "echo >>tmp/node.bundle\n"
					script += "cp $WORK/tmp/node.bundle whole\nexec sh damaged.sh\n! exec sh -eu " + file + "\ncp whole tmp/node.bundle\n"
				}
				script += "exec sh -eu " + file + "\n"
			}
			script += "exists target/usr/local/bin/containerd target/var/lib/nodeprep/firstboot\n"
			runFleetScript(t, script, files)
		})
	}
}

// The unit that joins waits for nodeprep's, does not run where that failed, and is tried
// again by every boot until the node is one of the cluster.
func TestFleetJoins(t *testing.T) {
	text := fleetBlock(t, "yaml", "kubeadm join")
	if !strings.HasPrefix(text, "#cloud-config\n") {
		t.Errorf("cloud-init would not know it:\n%s", text)
	}
	var part struct {
		MergeHow []struct {
			Name     string
			Settings []string
		} `yaml:"merge_how"`
		Files []struct {
			Path, Content string
		} `yaml:"write_files"`
		Commands []string `yaml:"runcmd"`
	}
	dec := yaml.NewDecoder(strings.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(&part); err != nil {
		t.Fatal(err)
	}
	if len(part.Files) != 1 || len(part.MergeHow) == 0 || part.MergeHow[0].Name != "list" || !slices.Contains(part.MergeHow[0].Settings, "append") {
		t.Fatalf("want one file that is appended to others, got %+v", part)
	}
	unit := part.Files[0]
	for _, want := range []string{"Requisite=" + cloudinit.UnitName + "\n", "After=" + cloudinit.UnitName + " ", "ConditionPathExists=!/etc/kubernetes/kubelet.conf\n", "TimeoutStartSec=", "WantedBy=multi-user.target\n"} {
		if !strings.Contains(unit.Content, want) {
			t.Errorf("%s has no %s:\n%s", unit.Path, want, unit.Content)
		}
	}
	for _, c := range part.Commands[1:] {
		if !strings.HasSuffix(c, " "+filepath.Base(unit.Path)) {
			t.Errorf("%q has nothing to do with %s", c, unit.Path)
		}
	}

	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here (Debian package systemd): the unit that joins is not checked by systemd's own parser")
	}
	dir := t.TempDir()
	for name, text := range map[string]string{
		filepath.Base(unit.Path): strings.Replace(unit.Content, "/usr/bin/kubeadm", "/bin/true", 1),
		cloudinit.UnitName:       "[Service]\nType=oneshot\nExecStart=/bin/true\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), verify, "verify", "--man=no", "--generators=no", filepath.Join(dir, filepath.Base(unit.Path)))
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	if out, err := cmd.CombinedOutput(); err != nil || bytes.Contains(out, []byte(dir)) {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

// Of a bundle in a registry plan reads no release files, apply each that it needs once, and
// neither reads more where there is nothing to do.
func TestFleetRegistry(t *testing.T) {
	const (
		ref   = " --bundle oci://$REGISTRY/node@$DIGEST --root root --arch amd64\n"
		count = "asked "
	)
	var (
		mu    sync.Mutex
		asked []string
		runs  = make(map[string][]string)
	)
	cmds := scriptCommands()
	cmds["counting"] = func(ts *testscript.TestScript, _ bool, args []string) {
		registry := archives(map[string]string{"node": ts.MkAbs(args[0])})
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "sha256:") {
				mu.Lock()
				asked = append(asked, r.URL.Path)
				mu.Unlock()
			}
			registry.ServeHTTP(w, r)
		}))
		ts.Defer(server.Close)
		ts.Setenv("REGISTRY", strings.TrimPrefix(server.URL, "http://"))
	}
	cmds["asked"] = func(_ *testscript.TestScript, _ bool, args []string) {
		mu.Lock()
		defer mu.Unlock()
		runs[args[0]], asked = slices.Sorted(slices.Values(asked)), nil
	}
	name := filepath.Join(t.TempDir(), "script.txtar")
	script := `mkdir root
artifacts artifacts amd64,arm64
nodeprep bundle create node.bundle -f node.yaml --arch amd64,arm64 --artifacts artifacts --offline
digest node.bundle
counting node.bundle
` + "code 3 nodeprep plan" + ref + count + "plan\ncode 0 nodeprep apply" + ref + count + "apply\ncode 0 nodeprep plan" + ref + count + "idle-plan\ncode 0 nodeprep apply" + ref + count + "idle-apply\n"
	if err := os.WriteFile(name, []byte(script), 0o600); err != nil {
		t.Fatal(err)
	}
	// Run returns before its scripts are through, which are subtests that run in parallel.
	t.Run("script", func(t *testing.T) {
		testscript.Run(t, testscript.Params{Files: []string{name}, Setup: smallSelf, Cmds: cmds})
	})
	if t.Failed() {
		return
	}
	plan, apply := runs["plan"], runs["apply"]
	if len(plan) == 0 || len(plan) > 4 {
		t.Errorf("plan read %q, want the index, a manifest, a configuration and the profile's layer", plan)
	}
	if len(apply) != len(plan)+3 || len(slices.Compact(slices.Clone(apply))) != len(apply) {
		t.Errorf("apply read %q, want the release files of containerd, runc and the CNI plugins for one architecture, once, beside\n%q", apply, plan)
	}
	for _, run := range []string{"idle-plan", "idle-apply"} {
		if diff := cmp.Diff(plan, runs[run]); diff != "" {
			t.Errorf("%s read other than plan (-plan +%s):\n%s", run, run, diff)
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
