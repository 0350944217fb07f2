package vm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/test/vm"
)

// ansible is where the role and its playbook are.
const ansible = "../../examples/ansible"

// controller is a machine that runs Ansible: this one, with an inventory of its own.
type controller struct {
	t     *testing.T
	ctx   context.Context
	dir   string                    // short, with site.yml
	hosts map[string]map[string]any // their variables
	vars  map[string]any            // of all
}

func newController(t *testing.T, ctx context.Context, lab *vm.Lab) *controller {
	t.Helper()
	dir, err := lab.Scratch()
	if err != nil {
		t.Fatal(err)
	}
	c := &controller{t: t, ctx: ctx, dir: dir, hosts: make(map[string]map[string]any), vars: make(map[string]any)}
	// In a folder of its own: beside the example's it would have the example's variables.
	site, err := os.ReadFile(ansible + "/site.yml")
	if err != nil {
		t.Fatal(err)
	}
	c.write("site.yml", string(site), 0o644)
	return c
}

func (c *controller) write(name, text string, mode os.FileMode) string {
	c.t.Helper()
	path := filepath.Join(c.dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		c.t.Fatal(err)
	}
	return path
}

// recap is what a playbook's last lines count of a host.
type recap struct{ OK, Changed, Unreachable, Failed int }

var recapLine = regexp.MustCompile(`(?m)^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)`)

// play runs site.yml and returns its exit code, all that it said, and the recap by host.
func (c *controller) play(args ...string) (int, string, map[string]recap) {
	c.t.Helper()
	inventory, err := yaml.Marshal(map[string]any{"nodes": map[string]any{"hosts": c.hosts, "vars": c.vars}})
	if err != nil {
		c.t.Fatal(err)
	}
	roles, err := filepath.Abs(ansible + "/roles")
	if err != nil {
		c.t.Fatal(err)
	}
	config, err := filepath.Abs(ansible + "/ansible.cfg")
	if err != nil {
		c.t.Fatal(err)
	}
	cmd := exec.CommandContext(c.ctx, "ansible-playbook", append([]string{"-i", c.write("inventory.yaml", string(inventory), 0o600), "site.yml"}, args...)...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "ANSIBLE_CONFIG="+config, "ANSIBLE_ROLES_PATH="+roles, "ANSIBLE_HOME="+c.dir+"/.ansible", "ANSIBLE_SSH_CONTROL_PATH_DIR="+c.dir+"/cp", "ANSIBLE_NOCOLOR=1", "LC_ALL=C.UTF-8")
	if vault := filepath.Join(c.dir, "vault"); exists(vault) {
		cmd.Env = append(cmd.Env, "ANSIBLE_VAULT_PASSWORD_FILE="+vault)
	}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	// Its children hold the pipe.
	cmd.WaitDelay = 10 * time.Second
	began := time.Now()
	err = cmd.Run()
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		c.t.Fatalf("ansible-playbook: %v\n%s", err, out.String())
	}
	recaps := make(map[string]recap)
	for _, f := range recapLine.FindAllStringSubmatch(out.String(), -1) {
		var n [4]int
		for i := range n {
			n[i], _ = strconv.Atoi(f[i+2]) // digits
		}
		recaps[f[1]] = recap{n[0], n[1], n[2], n[3]}
	}
	c.t.Logf("ansible-playbook %s: exit %d after %.1f s: %+v", strings.Join(args, " "), code, time.Since(began).Seconds(), recaps)
	return code, out.String(), recaps
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// vaulted is a variable's value that is encrypted with the controller's vault password.
func (c *controller) vaulted(value string) *yaml.Node {
	c.t.Helper()
	cmd := exec.CommandContext(c.ctx, "ansible-vault", "encrypt", "--vault-password-file", c.write("vault", "a password\n", 0o600))
	cmd.Stdin = strings.NewReader(value)
	out, err := cmd.Output()
	if err != nil {
		c.t.Fatalf("ansible-vault: %v", err)
	}
	return &yaml.Node{Kind: yaml.ScalarNode, Tag: "!vault", Style: yaml.LiteralStyle, Value: string(out)}
}

// plays is a play that has to end with a code and to have said words.
func (c *controller) plays(code int, words []string, args ...string) (string, map[string]recap) {
	c.t.Helper()
	got, out, recaps := c.play(args...)
	if got != code {
		c.t.Fatalf("ansible-playbook %s: exit %d, want %d\n%s", strings.Join(args, " "), got, code, out)
	}
	for _, w := range words {
		if !strings.Contains(out, w) {
			c.t.Errorf("ansible-playbook %s: nothing said of %q in:\n%s", strings.Join(args, " "), w, out)
		}
	}
	return out, recaps
}

// Each exit code of apply is said in words; the one after which nobody knows what a node
// is stops all others, whatever the playbook would put up with.
func TestFleetExitCodes(t *testing.T) {
	lab := wanted(t, inMain)
	c := newController(t, t.Context(), lab)
	c.vars = map[string]any{
		"ansible_connection":         "local",
		"ansible_python_interpreter": "/usr/bin/python3",
		"nodeprep_dir":               c.dir + "/{{ inventory_hostname }}/opt",
		"nodeprep_profile_dir":       c.dir + "/{{ inventory_hostname }}/etc",
		"nodeprep_tmp":               c.dir,
		"nodeprep_binaries":          map[string]string{"amd64": c.dir + "/{{ inventory_hostname }}/nodeprep"},
		"nodeprep_overlay": map[string]any{
			// A text that YAML would make a number of, and a value that only a password opens.
			"host":       map[string]any{"sysctl": map[string]string{"vm.overcommit_memory": "1"}},
			"registries": map[string]any{"*": map[string]any{"header": map[string]any{"X-Token": c.vaulted("sesame: {in} \"a\" vault")}}},
		},
	}
	for name, code := range map[string]int{"a0": 0, "b1": 1, "c2": 2, "d3": 3, "e4": 4, "f137": 137} {
		if err := os.MkdirAll(filepath.Join(c.dir, name), 0o755); err != nil {
			t.Fatal(err)
		}
		c.write(name+"/nodeprep", fmt.Sprintf(`#!/bin/sh
echo "$*" >>%s/%s/calls
case $1 in
plan)
	cat <<'END'
{"items": [{"action": "update", "kind": "file", "path": "/etc/x", "reason": "differs", "diff": "@@ -1 +1 @@\n-old\n+new\n"},
 {"action": "create", "kind": "file", "path": "/etc/y", "secret": true}]}
END
	exit 3 ;;
apply)
	test %[3]d = 137 && kill -KILL $$
	cat <<'END'
{"generation": 1, "changed": [{"path": "/etc/x"}], "error": {"message": "word of %[2]s", "diagnostics": [{"file": "profile.yaml", "line": 4, "message": "a fault", "hint": "a hint"}]},
 "audit": [{"id": "unit/oom-score", "verdict": "fail", "observed": "it is 0", "remedy": "mend it"}]}
END
	exit %[3]d ;;
esac
`, c.dir, name, code), 0o755)
		c.hosts[name] = map[string]any{}
	}
	calls := func(host string) string {
		data, err := os.ReadFile(filepath.Join(c.dir, host, "calls"))
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		return string(data)
	}

	// Nothing but plan, and nothing left.
	out, _ := c.plays(0, []string{"~ /etc/x: differs", "-old", "+new", "(secret content, not shown)"}, "--check", "--diff", "--limit", "a0")
	if n := strings.Count(calls("a0"), "\n"); n != 1 || !strings.HasPrefix(calls("a0"), "plan -o json -f "+c.dir+"/nodeprep-check.") {
		t.Errorf("in check mode nodeprep was called as\n%s\n%s", calls("a0"), out)
	}
	if left, _ := filepath.Glob(c.dir + "/nodeprep-check.*"); len(left) > 0 {
		t.Errorf("check mode left %v", left)
	}
	if left, _ := filepath.Glob(c.dir + "/a0/[oe]*"); len(left) > 0 {
		t.Errorf("check mode made %v", left)
	}

	site, err := os.ReadFile(c.dir + "/site.yml")
	if err != nil {
		t.Fatal(err)
	}
	// puts up with every failure.
	tolerant := func(serial string) {
		t.Helper()
		text := string(site)
		for _, r := range [][2]string{{`[1, "25%"]`, serial}, {"max_fail_percentage: 0", "max_fail_percentage: 100"}} {
			if !strings.Contains(text, r[0]) {
				t.Fatalf("the playbook has no %s", r[0])
			}
			text = strings.Replace(text, r[0], r[1], 1)
		}
		c.write("site.yml", text, 0o644)
	}
	tolerant("5")
	_, recaps := c.plays(2, []string{
		"generation 1: 1 changed",
		"nodeprep apply: it failed, and the node is as it was before", "word of b1",
		"nodeprep apply: the profile, the lock, the bundle or the command line is at fault; nothing was changed", "word of c2", "profile.yaml:4: a fault (a hint)",
		"nodeprep apply: it is done, but the audit afterwards failed, so the node stays changed", "word of d3", "unit/oom-score: it is 0; remedy: mend it",
		"nodeprep apply ended with -9, which is no exit code of nodeprep",
	}, "--limit", "a0:b1:c2:d3:f137")
	for host, want := range map[string]recap{"a0": {Changed: 1}, "b1": {Failed: 1}, "c2": {Failed: 1}, "d3": {Changed: 1, Failed: 1}, "f137": {Failed: 1}} {
		got := recaps[host]
		// Two folders, in one task, the program and the profile.
		if got.Changed != want.Changed+3 || got.Failed != want.Failed {
			t.Errorf("%s: the recap is %+v, want %d changed beside what was carried, and %d failed", host, got, want.Changed, want.Failed)
		}
	}
	profile, err := os.ReadFile(c.dir + "/a0/etc/profile.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var got any
	if err := yaml.Unmarshal(profile, &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"apiVersion": "nodeprep/v1alpha1", "kind": "NodeProfile", "extends": "kubernetes",
		"host":       map[string]any{"sysctl": map[string]any{"vm.overcommit_memory": "1"}},
		"registries": map[string]any{"*": map[string]any{"header": map[string]any{"X-Token": "sesame: {in} \"a\" vault"}}},
	}
	if diff := cmp.Diff(any(want), got); diff != "" {
		t.Errorf("the node's profile (-want +got):\n%s", diff)
	}

	// Batches of two: after one of which half failed come others, but for this code.
	tolerant("2")
	for half, want := range map[string][]string{"b1": {"a0", "b1", "f137"}, "e4": {"a0", "e4"}} {
		_, recaps := c.plays(2, []string{"word of " + half}, "--limit", "a0:"+half+":f137")
		if diff := cmp.Diff(want, slices.Sorted(maps.Keys(recaps))); diff != "" {
			t.Errorf("nodes that were looked at when %s failed (-want +got):\n%s", half, diff)
		}
	}
}

// A bundle behind a URL is fetched once, in check mode only for the plan, and not used
// where it is another.
func TestFleetBundleFromURL(t *testing.T) {
	lab := wanted(t, inMain)
	c := newController(t, t.Context(), lab)
	content := []byte("what a bundle is, a script does not look at\n")
	var fetched atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			fetched.Add(1)
		}
		w.Write(content)
	}))
	defer server.Close()
	program := c.write("program", fmt.Sprintf(`#!/bin/sh
while test "$1" != --bundle; do shift; done
cmp -s "$2" %s/content && echo '{"items": []}' || echo '{"error": {"message": "another bundle"}}'
`, c.dir), 0o755)
	c.write("content", string(content), 0o644)
	c.hosts["near"] = map[string]any{}
	c.vars = map[string]any{
		"ansible_connection":         "local",
		"ansible_python_interpreter": "/usr/bin/python3",
		"nodeprep_dir":               c.dir + "/opt",
		"nodeprep_profile_dir":       c.dir + "/etc",
		"nodeprep_tmp":               c.dir,
		"nodeprep_binaries":          map[string]string{"amd64": program},
		"nodeprep_bundle":            server.URL + "/node.bundle",
		"nodeprep_bundle_sha256":     fmt.Sprintf("%x", sha256.Sum256(content)),
	}
	for _, want := range []struct {
		args    []string
		changed bool
		fetched int32
	}{
		{[]string{"--check"}, false, 1},
		{nil, true, 2},
		{nil, false, 2},
		{[]string{"--check"}, false, 2},
	} {
		out, recaps := c.plays(0, nil, want.args...)
		if n := fetched.Load(); n != want.fetched {
			t.Errorf("%v: the bundle was fetched %d times in all, want %d\n%s", want.args, n, want.fetched, out)
		}
		if got := recaps["near"].Changed > 0; len(want.args) == 0 && got != want.changed {
			t.Errorf("changed %v, want %v\n%s", got, want.changed, out)
		}
		if left, _ := filepath.Glob(c.dir + "/nodeprep-check.*"); len(left) > 0 {
			t.Errorf("check mode left %v", left)
		}
	}
	content = append(content, "and more"...)
	c.vars["nodeprep_dir"] = c.dir + "/new"
	c.plays(2, []string{"The checksum"})
	if exists(c.dir + "/new/node.bundle") {
		t.Error("a bundle was kept that is another than the one wanted")
	}
}

// fleet are machines that a controller reaches by ssh.
type fleet struct {
	*controller
	node     node
	machines map[string]*machine
	secrets  []string
}

// carried are the folders that the role fills on a node.
const carried = " -skip /opt/nodeprep -skip /etc/nodeprep -skip /home/admin"

// startFleet starts machines and makes an inventory of them.
func startFleet(t *testing.T, s set, names ...string) *fleet {
	t.Helper()
	shared := wanted(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 45*time.Minute)
	t.Cleanup(cancel)
	lab, err := shared.Beside(ctx, "fleet")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	f := &fleet{controller: newController(t, ctx, lab), node: nodeOf("2.1.9"), machines: make(map[string]*machine), secrets: []string{"sesame-in-a-file", "sesame-in-a-variable"}}
	key := filepath.Join(f.dir, "key")
	if out, err := exec.CommandContext(ctx, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key).CombinedOutput(); err != nil {
		t.Fatalf("ssh-keygen: %v\n%s", err, out)
	}
	public, err := os.ReadFile(key + ".pub")
	if err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(f.dir, "known_hosts")
	f.vars = map[string]any{
		"ansible_user":                 "admin",
		"ansible_ssh_private_key_file": key,
		"ansible_ssh_common_args":      "-F none -o StrictHostKeyChecking=yes -o UserKnownHostsFile=" + known,
		"ansible_python_interpreter":   "/usr/bin/python3",
		"nodeprep_binaries":            map[string]string{"amd64": shared.Nodeprep()},
		"nodeprep_bundle":              bundleOf(t, f.node).file,
		"nodeprep_files":               []string{f.write("password", f.secrets[0]+"\n", 0o600)},
		"nodeprep_token":               f.secrets[1],
		"nodeprep_overlay": map[string]any{"registries": map[string]any{
			"docker.io":            map[string]any{"mirrors": []any{map[string]any{"url": "https://mirror.example.com", "header": map[string]any{"X-Token": "{{ nodeprep_token }}"}}}},
			"registry.example.com": map[string]any{"auth": map[string]any{"username": "node", "password": map[string]any{"file": "password"}}},
			"quay.io":              map[string]any{"mirrors": []any{map[string]any{"url": "https://quay.example.com"}}},
		}},
	}
	var hostKeys strings.Builder
	for _, name := range names {
		m, err := lab.Start(ctx, t.Name()+"-"+name)
		f.machines[name] = held(t, ctx, m, err)
		ssh, err := m.OpenSSH(ctx, "admin", string(public))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&hostKeys, "[%s]:%d %s\n", ssh.Address.Addr(), ssh.Address.Port(), ssh.HostKey)
		f.hosts[name] = map[string]any{"ansible_host": ssh.Address.Addr().String(), "ansible_port": int(ssh.Address.Port())}
	}
	f.write("known_hosts", hostKeys.String(), 0o600)
	for what, file := range map[string]string{"nodeprep": shared.Nodeprep(), "the bundle": bundleOf(t, f.node).file} {
		info, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%s: %d bytes", what, info.Size())
	}
	return f
}

// hides fails the test where what Ansible said has a secret in it.
func (f *fleet) hides(out string) {
	f.t.Helper()
	for _, s := range f.secrets {
		if strings.Contains(out, s) {
			f.t.Errorf("ansible-playbook said %q:\n%s", s, out)
		}
	}
}

// received are the bytes that came to a machine through its network card.
func received(m *machine) int {
	m.t.Helper()
	n, err := strconv.Atoi(m.must("cat /sys/class/net/e*/statistics/rx_bytes"))
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// look is a rehearsal: it shows the plan and leaves every machine as it is.
func (f *fleet) look() {
	f.t.Helper()
	before := make(map[string]string)
	for name, m := range f.machines {
		before[name] = m.tree("-skip /home/admin")
	}
	out, recaps := f.plays(0, []string{"+++ /etc/containerd/certs.d/quay.io/hosts.toml", "+server = 'https://quay.io'", "quay.example.com", "(secret content, not shown)", "+ containerd 2.1.9: new"}, "--check", "--diff", "-vvv")
	f.hides(out)
	for name, m := range f.machines {
		if r := recaps[name]; r.Changed == 0 || r.Failed+r.Unreachable > 0 {
			f.t.Errorf("a rehearsal counts %+v for %s, want changes and no failures", r, name)
		}
		if diff := cmp.Diff(before[name], m.tree("-skip /home/admin")); diff != "" {
			f.t.Errorf("the rehearsal changed %s (-before +after):\n%s", name, diff)
		}
		m.must("! ls -d /var/tmp/nodeprep* /opt/nodeprep /etc/nodeprep")
	}
}

// good holds a machine to the plan.
func (f *fleet) good(name string) {
	f.t.Helper()
	m := f.machines[name]
	m.exits(0, "/usr/local/bin/nodeprep status --deep")
	serves(m, f.node.containerd.Version)
	m.says(m.must("cat /etc/containerd/certs.d/docker.io/hosts.toml"), "https://mirror.example.com", f.secrets[1])
	m.must("test $(stat -c %a /etc/nodeprep/overlay.yaml) = 600 && test $(stat -c %a /etc/nodeprep/password) = 600")
}

// idle is a rollout that finds nothing to do, and carries nothing.
func (f *fleet) idle() {
	f.t.Helper()
	had := make(map[string]int)
	for name, m := range f.machines {
		had[name] = received(m)
	}
	_, recaps := f.plays(0, nil)
	for name, m := range f.machines {
		if r := recaps[name]; r.OK == 0 || r.Changed+r.Failed+r.Unreachable > 0 {
			f.t.Errorf("with nothing to do the recap of %s is %+v", name, r)
		}
		n := received(m) - had[name]
		f.t.Logf("%s: %d bytes received with nothing to do", name, n)
		if n > 2<<20 {
			f.t.Errorf("%d bytes went to %s, which had everything", n, name)
		}
	}
}

// One host: the rehearsal and the rollout. That another one does nothing, TestFleetRollout shows.
func TestFleet(t *testing.T) {
	f := startFleet(t, inMain, "node-1")
	f.look()
	was := received(f.machines["node-1"])
	out, recaps := f.plays(0, []string{"generation 1:", "started containerd.service"}, "--diff", "-vvv")
	f.hides(out)
	if r := recaps["node-1"]; r.Changed == 0 || r.Failed > 0 {
		t.Errorf("the rollout's recap is %+v", r)
	}
	t.Logf("node-1: %d bytes received", received(f.machines["node-1"])-was)
	f.good("node-1")
}

// Three hosts of which one cannot be what is planned: the rollout stops there, and goes on
// once that is mended.
func TestFleetRollout(t *testing.T) {
	f := startFleet(t, inAll, "node-1", "node-2", "node-3")
	f.hosts["node-3"]["nodeprep_host_overlay"] = map[string]any{"registries": map[string]any{
		"quay.io": map[string]any{"mirrors": []any{map[string]any{"url": "https://near-node-3.example.com"}}},
	}}
	log := f.kubectl()
	const dropIn = "/etc/systemd/system/containerd.service.d/zz-site.conf"
	broken := f.machines["node-2"]
	if err := broken.WriteFile(f.ctx, dropIn, "[Service]\nExecStartPre=/bin/false\n"); err != nil {
		t.Fatal(err)
	}
	broken.must("systemctl daemon-reload")
	f.look()

	before := make(map[string]string)
	for name, m := range f.machines {
		before[name] = m.tree(carried)
	}
	out, recaps := f.plays(2, []string{"nodeprep apply: it failed, and the node is as it was before", "containerd.service"})
	f.hides(out)
	if r := recaps["node-2"]; r.Failed != 1 {
		t.Errorf("the broken host's recap is %+v", r)
	}
	if r, there := recaps["node-3"]; there {
		t.Errorf("the rollout went on to node-3 after the broken host: %+v", r)
	}
	f.good("node-1")
	if diff := cmp.Diff(before["node-2"], broken.tree(carried)); diff != "" {
		t.Errorf("the broken host is not as it was (-before +after):\n%s", diff)
	}
	if diff := cmp.Diff(before["node-3"], f.machines["node-3"].tree("-skip /home/admin")); diff != "" {
		t.Errorf("the host after the broken one was touched (-before +after):\n%s", diff)
	}

	broken.must("rm -r " + filepath.Dir(dropIn) + " && systemctl daemon-reload")
	had := received(f.machines["node-3"])
	_, recaps = f.plays(0, nil)
	t.Logf("node-3: %d bytes received by the rollout", received(f.machines["node-3"])-had)
	if recaps["node-1"].Changed != 0 || recaps["node-2"].Changed == 0 || recaps["node-3"].Changed == 0 {
		t.Errorf("once all are well the recap is %+v", recaps)
	}
	for name, m := range f.machines {
		f.good(name)
		mirror := "https://quay.example.com"
		if name == "node-3" {
			mirror = "https://near-node-3.example.com"
		}
		m.says(m.must("cat /etc/containerd/certs.d/quay.io/hosts.toml"), mirror)
	}
	f.idle()
	if said := log(); strings.Contains(said, "drain") || strings.Contains(said, "cordon") {
		t.Errorf("a node was drained for nothing:\n%s", said)
	}

	f.drains(log)
}

// kubectl makes a kubectl that knows the fleet's nodes, whether they are cordoned, and how
// to remove pod "one" from them. The function that it returns gives what was asked of it
// since the last time.
func (f *fleet) kubectl() (log func() string) {
	f.t.Helper()
	for name, vars := range f.hosts {
		f.write("evict-"+name, fmt.Sprintf("ssh %s -o BatchMode=yes -i %s/key -p %d admin@%s sudo %s/inguest %s\n",
			f.vars["ansible_ssh_common_args"], f.dir, vars["ansible_port"], vars["ansible_host"], vm.StickDir, strings.TrimPrefix(f.node.cri("rm one"), "inguest ")), 0o600)
	}
	path := f.write("kubectl", fmt.Sprintf(`#!/bin/sh -eu
cd %s
echo "$*" >>kubectl.log
case $1 in
get)
	unschedulable=false note=
	test ! -e cordoned-$3 || unschedulable=true
	test ! -e marked-$3 || note='"nodeprep-cordoned": "true"'
	echo "{\"metadata\": {\"name\": \"$3\", \"annotations\": {$note}}, \"spec\": {\"unschedulable\": $unschedulable}}" ;;
annotate)
	case $4 in *-) rm marked-$3 ;; *) touch marked-$3 ;; esac ;;
drain)
	touch cordoned-$2
	test ! -e stuck || { echo "cannot evict pod: a disruption budget forbids it" >&2; exit 1; }
	sh ./evict-$2 ;;
wait) ;;
uncordon) rm cordoned-$2 ;;
*) exit 2 ;;
esac
`, f.dir), 0o755)
	f.vars["nodeprep_kubectl"] = []string{path}
	return func() string {
		f.t.Helper()
		name := filepath.Join(f.dir, "kubectl.log")
		data, err := os.ReadFile(name)
		if err != nil {
			f.t.Fatal(err)
		}
		if err := os.Truncate(name, 0); err != nil {
			f.t.Fatal(err)
		}
		return string(data)
	}
}

// drains changes what a pod would not survive: a node is drained for that, and takes pods
// again only when it is as planned.
func (f *fleet) drains(log func() string) {
	f.t.Helper()
	m := f.machines["node-1"]
	pod := f.node.runPod(m, "one")
	f.hosts["node-1"]["nodeprep_host_overlay"] = map[string]any{"containerd": map[string]any{"cgroupDriver": "cgroupfs"}}
	f.write("stuck", "", 0o600)
	_, recaps := f.plays(2, []string{"kubectl drain node-1: exit 1", "a disruption budget forbids it"}, "--limit", "node-1")
	if r := recaps["node-1"]; r.Failed != 1 {
		f.t.Errorf("of a node that cannot be drained the recap is %+v", r)
	}
	alive(m, pod)
	const drain = "drain node-1 --ignore-daemonsets --delete-emptydir-data --timeout=10m\n"
	const get = "get node node-1 --ignore-not-found -o json\n"
	if diff := cmp.Diff(get+"annotate node node-1 nodeprep-cordoned=true --overwrite\n"+drain, log()); diff != "" {
		f.t.Errorf("asked of kubectl where a node cannot be drained (-want +got):\n%s", diff)
	}
	if err := os.Remove(filepath.Join(f.dir, "stuck")); err != nil {
		f.t.Fatal(err)
	}
	f.plays(0, []string{"restarted containerd.service"}, "--limit", "node-1")
	want := get + drain + "wait --for=condition=Ready node/node-1 --timeout=5m\nuncordon node-1\nannotate node node-1 nodeprep-cordoned-\n"
	if diff := cmp.Diff(want, log()); diff != "" {
		f.t.Errorf("asked of kubectl (-want +got):\n%s", diff)
	}
	m.must(fmt.Sprintf("test ! -d /proc/%d", pod.PID))
	m.must("containerd config dump | grep -q 'SystemdCgroup = false'")
	f.plays(0, nil, "--limit", "node-1")
	if diff := cmp.Diff(get, log()); diff != "" {
		f.t.Errorf("asked of kubectl with nothing to do (-want +got):\n%s", diff)
	}
}
