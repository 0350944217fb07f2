package vm_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
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
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
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

	// Of the last play.
	batches   []time.Duration
	processor time.Duration // of ansible-playbook and all that it waited for
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

// env is this process's environment without what Ansible would take from it, and with all
// that it leaves in the controller's folder.
func (c *controller) env() []string {
	env := slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, "ANSIBLE_") })
	return append(env, "ANSIBLE_HOME="+c.dir+"/.ansible")
}

// recap is what a playbook's last lines count of a host.
type recap struct{ OK, Changed, Unreachable, Failed int }

var recapLine = regexp.MustCompile(`(?m)^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)`)

// play runs site.yml and returns its exit code, all that it said, and the recap by host.
func (c *controller) play(args ...string) (int, string, map[string]recap) {
	c.t.Helper()
	inventory, err := yaml.Marshal(map[string]any{
		"nodes": map[string]any{"hosts": c.hosts, "vars": c.vars},
		// Where kubectl runs: without this it would leave its traces in root's own folder.
		"controller": map[string]any{"hosts": map[string]any{"localhost": map[string]any{
			"ansible_connection": "local", "ansible_python_interpreter": "/usr/bin/python3", "ansible_remote_tmp": c.dir + "/tmp", "ansible_pipelining": true,
		}}},
	})
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
	cmd.Env = append(c.env(), "ANSIBLE_CONFIG="+config, "ANSIBLE_ROLES_PATH="+roles, "ANSIBLE_SSH_CONTROL_PATH_DIR="+c.dir+"/cp", "ANSIBLE_NOCOLOR=1", "LC_ALL=C.UTF-8")
	if vault := filepath.Join(c.dir, "vault"); exists(vault) {
		cmd.Env = append(cmd.Env, "ANSIBLE_VAULT_PASSWORD_FILE="+vault)
	}
	var out batchClock
	cmd.Stdout, cmd.Stderr = &out, &out
	// Its workers, what they wait for, and the connections that it leaves end with it.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	began := time.Now()
	err = cmd.Run()
	code := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		c.t.Fatalf("ansible-playbook: %v\n%s", err, out.String())
	}
	c.batches, c.processor = out.batches(), cmd.ProcessState.UserTime()+cmd.ProcessState.SystemTime()
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

// batchClock keeps what ansible-playbook says, and when it began each batch and ended the
// last: it says so in lines "PLAY [NAME]" and "PLAY RECAP".
type batchClock struct {
	text  bytes.Buffer // not embedded: io.Copy would find its ReadFrom, and pass by Write
	marks []time.Time
}

func (b *batchClock) Write(p []byte) (int, error) {
	for range bytes.Count(p, []byte("PLAY [")) + bytes.Count(p, []byte("PLAY RECAP")) {
		b.marks = append(b.marks, time.Now())
	}
	return b.text.Write(p)
}

func (b *batchClock) String() string { return b.text.String() }

func (b *batchClock) batches() (d []time.Duration) {
	for i := 1; i < len(b.marks); i++ {
		d = append(d, b.marks[i].Sub(b.marks[i-1]))
	}
	return d
}

// connections is how long the processes have worked that hold the controller's connections
// open between two tasks, by process. They are nobody's children, and encrypt all that is
// carried.
func (c *controller) connections() map[int]time.Duration {
	c.t.Helper()
	found := make(map[int]time.Duration)
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		c.t.Fatal(err)
	}
	for _, dir := range processes {
		// Most end while they are looked at.
		command, err := os.ReadFile(dir + "/cmdline")
		if err != nil || !bytes.Contains(command, []byte(c.dir+"/cp/")) {
			continue
		}
		stat, err := os.ReadFile(dir + "/stat")
		if err != nil {
			continue
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		fields := strings.Fields(rest) // from the third on (proc_pid_stat(5))
		pid, errPID := strconv.Atoi(filepath.Base(dir))
		user, errUser := strconv.Atoi(fields[14-3])
		system, errSystem := strconv.Atoi(fields[15-3])
		if err := errors.Join(errPID, errUser, errSystem); err != nil {
			c.t.Fatal(err)
		}
		found[pid] = time.Duration(user+system) * (time.Second / 100) // USER_HZ
	}
	return found
}

func exists(file string) bool {
	_, err := os.Stat(file)
	return err == nil
}

// vaulted is a variable's value that is encrypted with the controller's vault password.
func (c *controller) vaulted(value string) *yaml.Node {
	c.t.Helper()
	cmd := exec.CommandContext(c.ctx, "ansible-vault", "encrypt", "--vault-password-file", c.write("vault", "a password\n", 0o600))
	cmd.Env = c.env()
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

// local are hosts that are folders of this machine: a script that obeys files there is
// nodeprep, and another is kubectl.
type local struct {
	*controller
	site string
}

// program is nodeprep on a host that is a folder: a verb runs VERB.sh there, says VERB.out
// and ends with VERB.code.
const program = `#!/bin/sh
cd "${0%/*/*}" || exit 99
verb=$1
echo "$*" >>calls
test ! -e "$verb.sh" || . "./$verb.sh"
test ! -e "$verb.out" || cat "$verb.out"
exit "$(cat "$verb.code" 2>/dev/null || echo 0)"
`

// kubectl knows the hosts by their folders, which have files for what a node is: cordoned,
// marked (by the role), stranger (no member). VERB.fails makes it fail. Of pods, which are
// lines of a file, a drain leaves those of a DaemonSet. All nodes are called ready; when that
// was last heard is long ago where no kubelet runs, or one that is silent.
const kubectl = `#!/bin/sh -eu
case $1 in
get | patch) host=$3 ;;
*) host=$2 ;;
esac
cd "${0%/*}/$host"
echo "$*" >>kubectl.log
test ! -e "$1.fails" || { test "$1" != drain || touch cordoned; echo "a reason not to $1" >&2; exit 1; }
case $1 in
get)
	test ! -e stranger || exit 0
	unschedulable=false note= heard=2001-01-01T00:00:00Z
	test ! -e cordoned || unschedulable=true
	test ! -e marked || note='"nodeprep-cordoned": "true"'
	test ! -e kubelet || test -e silent || heard=$(date -u +%Y-%m-%dT%H:%M:%SZ)
	echo "{\"metadata\": {\"name\": \"$3\", \"annotations\": {$note}}, \"spec\": {\"unschedulable\": $unschedulable},
 \"status\": {\"conditions\": [{\"type\": \"Ready\", \"status\": \"True\", \"lastHeartbeatTime\": \"$heard\"}]}}" ;;
patch)
	case $5 in *true*) touch marked cordoned ;; *) rm -f marked cordoned ;; esac ;;
drain)
	touch cordoned
	test ! -e pods || sed -i /^web/d pods ;;
*) exit 2 ;;
esac
`

// What the role asks kubectl for.
const (
	askNode  = "get node NODE --ignore-not-found -o json\n"
	askMark  = `patch node NODE --type=merge --patch={"metadata": {"annotations": {"nodeprep-cordoned": "true"}}, "spec": {"unschedulable": true}}` + "\n"
	askDrain = "drain NODE --ignore-daemonsets --delete-emptydir-data --timeout=10m\n"
	askReady = "get node NODE -o json --request-timeout=10s\n"
	askBack  = `patch node NODE --type=merge --patch={"metadata": {"annotations": {"nodeprep-cordoned": null}}, "spec": {"unschedulable": null}}` + "\n"
)

// nodePrograms are what the role needs on a node beside nodeprep. They take notes. The
// kubelet is a file, or what file "state" says; pods are lines of one.
var nodePrograms = map[string]string{
	"systemctl": `#!/bin/sh
echo "systemctl $*" >>"$NODE/node.log"
test ! -e "$NODE/$1.fails" || exit 1
case $1 in
show) if test -e "$NODE/state"; then cat "$NODE/state"; elif test -e "$NODE/kubelet"; then echo active; else echo inactive; fi ;;
stop) rm -f "$NODE/kubelet" ;;
start) touch "$NODE/kubelet" ;;
*) exit 2 ;;
esac
`,
	// One that is slow removes a pod and fails, once.
	"crictl": `#!/bin/sh
echo "crictl $*" >>"$NODE/node.log"
test "$*" = "rmp --all --force" || exit 2
test ! -e "$NODE/crictl.fails" || exit 1
test ! -e "$NODE/slow" || { rm "$NODE/slow"; sed -i 1d "$NODE/pods"; exit 1; }
: >"$NODE/pods"
`,
	// Where somebody else is faster, a task is gone before it is removed; where that is slow,
	// a container still has its task at the first try.
	"ctr": `#!/bin/sh
test "$1 $3 $4" = "--address --namespace k8s.io" || exit 2
echo "ctr $2 $5 $6 $7 $8" >>"$NODE/node.log"
case "$5 $6" in
"tasks list" | "containers list") cat "$NODE/pods" ;;
"tasks rm") test ! -e "$NODE/faster" ;;
"containers rm")
	test ! -e "$NODE/slow" || { rm "$NODE/slow"; exit 1; }
	sed -i "/^$7$/d" "$NODE/pods" ;;
*) exit 2 ;;
esac
`,
	"sleep": "#!/bin/sh\n",
}

func newLocal(t *testing.T, lab *vm.Lab) *local {
	t.Helper()
	l := &local{controller: newController(t, t.Context(), lab)}
	site, err := os.ReadFile(l.dir + "/site.yml")
	if err != nil {
		t.Fatal(err)
	}
	l.site = string(site)
	host := l.dir + "/{{ inventory_hostname }}"
	l.vars = map[string]any{
		"ansible_connection":         "local",
		"ansible_python_interpreter": "/usr/bin/python3",
		"ansible_remote_tmp":         l.dir + "/tmp",
		"ansible_pipelining":         true,
		"nodeprep_dir":               host + "/opt",
		"nodeprep_profile_dir":       host + "/etc",
		"nodeprep_tmp":               host,
		"nodeprep_binaries":          map[string]string{"amd64": l.write("program", program, 0o755)},
	}
	l.write("kubectl", kubectl, 0o755)
	if err := os.Mkdir(l.dir+"/bin", 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range nodePrograms {
		l.write("bin/"+name, text, 0o755)
	}
	l.rules()
	return l
}

// rules makes the play from the example's: with replacements, in pairs, of what must be in
// it.
func (l *local) rules(replace ...string) {
	l.t.Helper()
	text := l.site
	for pair := range slices.Chunk(append(replace, "  roles:\n", "  environment: {NODE: '"+l.dir+"/{{ inventory_hostname }}', PATH: '"+l.dir+"/bin:/usr/sbin:/usr/bin:/sbin:/bin'}\n  roles:\n"), 2) {
		if !strings.Contains(text, pair[0]) {
			l.t.Fatalf("the playbook has no %s", pair[0])
		}
		text = strings.Replace(text, pair[0], pair[1], 1)
	}
	l.write("site.yml", text, 0o644)
}

// read is a file of a host, "" where there is none.
func (l *local) read(host, name string) string {
	l.t.Helper()
	data, err := os.ReadFile(filepath.Join(l.dir, host, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.t.Fatal(err)
	}
	return string(data)
}

// host makes one, with the files that say how it behaves.
func (l *local) host(name string, vars map[string]any, files map[string]string) {
	l.t.Helper()
	for file, text := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(l.dir, name, file)), 0o755); err != nil {
			l.t.Fatal(err)
		}
		l.write(name+"/"+file, text, 0o644)
	}
	if vars == nil {
		vars = map[string]any{}
	}
	l.hosts[name] = vars
}

// breakable is a host behind an ssh that has no connection any more once there is a file
// "gone".
func (l *local) breakable(name string, vars map[string]any, files map[string]string) {
	l.t.Helper()
	l.host(name, vars, files)
	ssh := l.write(name+"/ssh", fmt.Sprintf(`#!/bin/sh
for last; do :; done
test ! -e %[1]s/gone || { echo "no route to host" >&2; exit 255; }
sh -c "$last"
code=$?
test ! -e %[1]s/gone || exit 255
exit $code
`, filepath.Join(l.dir, name)), 0o755)
	maps.Copy(l.hosts[name], map[string]any{"ansible_connection": "ssh", "ansible_user": "root", "ansible_ssh_executable": ssh, "ansible_ssh_transfer_method": "piped"})
}

const (
	planned   = `{"items": [{"action": "update", "kind": "file", "path": "/etc/x", "reason": "differs", "diff": "@@ -1 +1 @@\n-old\n+new\n"}, {"action": "create", "kind": "file", "path": "/etc/y", "secret": true}]}`
	planEmpty = `{"items": []}`
	planDrain = `{"items": [{"action": "refuse", "kind": "unit", "path": "containerd.service", "reason": "the cgroup driver would change", "drain": true}]}`
	done      = `{"generation": 1, "changed": [{"path": "/etc/x"}]}`
	wellAudit = `{"findings": []}`
)

// fails is an apply that ends with a code.
func fails(name string, code int) map[string]string {
	return map[string]string{
		"plan.out": planned, "plan.code": "3", "apply.code": strconv.Itoa(code),
		"apply.out": `{"generation": 1, "changed": [{"path": "/etc/x"}], "error": {"message": "word of ` + name + `", "diagnostics": [{"file": "profile.yaml", "line": 4, "message": "a fault", "hint": "a hint"}]},
 "audit": [{"id": "unit/oom-score", "verdict": "fail", "observed": "it is 0", "remedy": "mend it"}]}`,
	}
}

// with is a map and more.
func with[V any](m map[string]V, more ...map[string]V) map[string]V {
	m = maps.Clone(m)
	for _, o := range more {
		maps.Copy(m, o)
	}
	return m
}

// What hosts are made of, by how they end.
var (
	goodFiles = map[string]string{"plan.out": planned, "plan.code": "3", "apply.out": done}
	idleFiles = map[string]string{"plan.out": planEmpty, "check.out": wellAudit}
	// apply refuses as long as there are pods.
	podsFiles = map[string]string{
		"plan.out": planDrain, "plan.code": "3", "apply.out": done, "kubelet": "", "pods": "web\nproxy\n",
		"apply.sh": "echo apply >>node.log\ntest ! -s pods || { echo '{\"error\": {\"message\": \"pods run\"}}'; exit 1; }\n",
	}
)

// clustered has the role ask the fake kubectl.
func (l *local) clustered() map[string]any {
	return map[string]any{"nodeprep_kubectl": []string{l.dir + "/kubectl"}}
}

// bundleServer is a server of one bundle, which counts how often a path was fetched.
type bundleServer struct {
	url, sum, content string

	fetches sync.Map
}

func serveBundles(t *testing.T) *bundleServer {
	b := &bundleServer{content: "what a bundle is, a script does not look at\n"}
	b.sum = fmt.Sprintf("%x", sha256.Sum256([]byte(b.content)))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet {
			n, _ := b.fetches.LoadOrStore(strings.TrimPrefix(r.URL.Path, "/"), new(atomic.Int32))
			n.(*atomic.Int32).Add(1)
		}
		io.WriteString(w, b.content)
	}))
	t.Cleanup(server.Close)
	b.url = server.URL
	return b
}

// of is what a host's bundle is said to be.
func (b *bundleServer) of(host, sum string) map[string]any {
	return map[string]any{"nodeprep_bundle": b.url + "/" + host, "nodeprep_bundle_sha256": sum}
}

func (b *bundleServer) fetched(host string) int32 {
	n, ok := b.fetches.Load(host)
	if !ok {
		return 0
	}
	return n.(*atomic.Int32).Load()
}

// What becomes of a node is said in words, counted, and told to Kubernetes: by the exit
// codes of nodeprep, by what a drain leaves, by where the bundle comes from.
func TestFleetRole(t *testing.T) {
	lab := wanted(t, inMain)
	t.Run("ends", func(t *testing.T) { roleEnds(t, newLocal(t, lab)) })
	t.Run("rehearsal", func(t *testing.T) { roleRehearses(t, newLocal(t, lab)) })
	t.Run("stop", func(t *testing.T) { roleStops(t, lab) })
}

// roleEnds is one play with a host for each end that one can come to.
func roleEnds(t *testing.T, l *local) {
	l.vars["nodeprep_overlay"] = map[string]any{
		// A text that YAML would make a number of, and a value that only a password opens.
		"host":       map[string]any{"sysctl": map[string]string{"vm.overcommit_memory": "1"}},
		"registries": map[string]any{"*": map[string]any{"header": map[string]any{"X-Token": l.vaulted("sesame: {in} \"a\" vault")}}},
	}
	server := serveBundles(t)
	sum, fetched, url := server.sum, server.fetched, server.of
	if err := os.Mkdir(l.dir+"/artifacts", 0o755); err != nil {
		t.Fatal(err)
	}
	l.write("artifacts/runc.amd64", "a release\n", 0o644)
	base := l.write("node.yaml", "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nextends: kubernetes\n", 0o644)
	// This one cannot be started.
	noProgram := map[string]any{"nodeprep_binaries": map[string]string{"amd64": l.write("broken", "#!/nonexistent/sh\n", 0o755)}}

	good, idle, pods, cluster := goodFiles, idleFiles, podsFiles, l.clustered()
	ours := map[string]string{"cordoned": "", "marked": ""}
	const (
		emptied = "systemctl show --property ActiveState --value kubelet.service\nsystemctl stop kubelet.service\ncrictl rmp --all --force\napply\nsystemctl start --no-block kubelet.service\n"
		carries = 3 // changes: two folders in one task, the program and the profile
	)
	type want struct {
		vars    map[string]any
		files   map[string]string
		lost    bool // it can lose its connection
		all     bool // only in the whole set
		changed int  // beside what is carried
		failed  int
		says    []string
		verbs   string // of nodeprep
		kubectl string
		node    string
		has     []string // files
	}
	hosts := map[string]want{
		"a0": {files: good, changed: 1, says: []string{"generation 1: 1 changed"}, verbs: "plan apply"},
		"b1": {all: true, files: fails("b1", 1), failed: 1, says: []string{"nodeprep apply: it failed, and the node is as it was before", "word of b1"}, verbs: "plan apply"},
		"c2": {all: true, files: fails("c2", 2), failed: 1, says: []string{"nodeprep apply: the profile, the lock, the bundle or the command line is at fault; nothing was changed", "word of c2", "profile.yaml:4: a fault (a hint)"}, verbs: "plan apply"},
		"d3": {files: fails("d3", 3), changed: 1, failed: 1, says: []string{"nodeprep apply: it is done, but the audit afterwards failed, so the node stays changed", "word of d3", "unit/oom-score: it is 0; remedy: mend it"}, verbs: "plan apply"},
		// Whoever says so puts up with it, at once and later.
		"d3-fine":    {all: true, vars: map[string]any{"nodeprep_audit_fails": false}, files: fails("d3", 3), changed: 1, says: []string{"audit: unit/oom-score: it is 0"}, verbs: "plan apply"},
		"idle-fine":  {all: true, vars: map[string]any{"nodeprep_audit_fails": false}, files: with(idle, map[string]string{"check.code": "3"}), verbs: "plan"},
		"f137":       {all: true, files: with(good, map[string]string{"apply.sh": "kill -KILL $$\n"}), failed: 1, says: []string{"nodeprep apply ended with -9 and told nothing"}, verbs: "plan apply"},
		"no-program": {vars: noProgram, files: idle, failed: 1, says: []string{"nodeprep plan ended with 2 and told nothing; nothing was changed"}},
		"junk":       {all: true, files: with(good, map[string]string{"apply.out": "a warning of something else"}), changed: 1, verbs: "plan apply"},
		"cut": {
			files: with(good, map[string]string{
				"plan.sh":     "test -e recovered || { echo '{\"error\": {\"message\": \"interrupted\"}}'; exit 1; }\n",
				"recover.sh":  "touch recovered\n",
				"recover.out": `{"outcome": "reverted"}`,
			}),
			changed: 2, verbs: "plan recover plan apply",
		},
		"refused": {
			all:    true,
			vars:   map[string]any{"nodeprep_flags": []string{"--force-restart"}},
			files:  map[string]string{"plan.code": "3", "plan.out": `{"items": [{"action": "refuse", "kind": "file", "path": "/etc/x", "reason": "is not ours", "adoptable": true}]}`},
			failed: 1, says: []string{"apply would refuse this; nothing was changed", "/etc/x: is not ours (--adopt in nodeprep_flags takes it over)"}, verbs: "plan",
		},
		"never": {all: true, vars: with(cluster, map[string]any{"nodeprep_drain": "never"}), files: pods, failed: 1, says: []string{"the cgroup driver would change"}, verbs: "plan", has: []string{"kubelet"}},

		// A node with nothing to apply is only good if its audit is.
		"sick": {vars: cluster, files: with(idle, ours, map[string]string{"check.code": "3", "check.out": `{"findings": [{"id": "process/oom", "verdict": "fail", "observed": "it is 1"}]}`}),
			failed: 1, says: []string{"there is nothing to apply, but the node is not well", "process/oom: it is 1"}, verbs: "plan check", has: []string{"cordoned", "marked"}},
		// Somebody has uncordoned it since.
		"freed": {all: true, vars: cluster, files: with(idle, map[string]string{"marked": ""}), changed: 1, verbs: "plan check", kubectl: askNode + askReady + askBack},
		"well":  {all: true, vars: cluster, files: with(idle, ours), changed: 1, verbs: "plan check", kubectl: askNode + askReady + askBack},

		"full": {vars: cluster, files: pods, changed: 4, verbs: "plan apply", kubectl: askNode + askMark + askDrain + askReady + askBack, node: emptied, has: []string{"kubelet"}},
		"full-fails": {all: true, vars: cluster, files: with(pods, map[string]string{"apply.code": "1", "apply.out": `{"error": {"message": "word of full-fails"}}`}),
			changed: 3, failed: 1, says: []string{"word of full-fails", "full-fails stays cordoned"}, verbs: "plan apply", kubectl: askNode + askMark + askDrain, node: emptied, has: []string{"kubelet", "cordoned", "marked"}},
		"stuck": {all: true, vars: cluster, files: with(pods, map[string]string{"drain.fails": ""}), changed: 1, failed: 1,
			says: []string{"kubectl drain stuck: exit 1; nothing was changed on the node", "a reason not to drain", "stuck stays cordoned"}, verbs: "plan", kubectl: askNode + askMark + askDrain, has: []string{"kubelet", "cordoned", "marked"}},
		// Where it cannot be noted who cordons, nobody does.
		"unmarked": {all: true, vars: cluster, files: with(pods, map[string]string{"patch.fails": ""}), failed: 1, says: []string{"a reason not to patch"}, verbs: "plan", kubectl: askNode + askMark, has: []string{"kubelet"}},
		"unready":  {vars: with(cluster, map[string]any{"nodeprep_ready_timeout": 5}), files: with(pods, map[string]string{"silent": ""}), changed: 3, failed: 1, says: []string{"the node is as planned, but its kubelet is not ready after 5 seconds", "unready stays cordoned"}, verbs: "plan apply", kubectl: askNode + askMark + askDrain + askReady + askReady, node: emptied, has: []string{"kubelet", "cordoned", "marked"}},
		"theirs":   {all: true, vars: cluster, files: with(pods, map[string]string{"cordoned": ""}), changed: 2, verbs: "plan apply", kubectl: askNode + askDrain, node: emptied, has: []string{"kubelet", "cordoned"}},
		"stranger": {all: true, vars: cluster, files: with(pods, map[string]string{"stranger": ""}), failed: 1, says: []string{"pods run"}, verbs: "plan apply", kubectl: askNode, node: "apply\n", has: []string{"kubelet"}},
		"restart": {all: true, vars: with(cluster, map[string]any{"nodeprep_drain": "restart"}), files: with(good, map[string]string{"kubelet": "", "plan.out": `{"items": [{"action": "restart", "kind": "unit", "path": "node.service"}]}`}),
			changed: 4, verbs: "plan apply", kubectl: askNode + askMark + askDrain + askReady + askBack, has: []string{"kubelet"}},

		"dead": {all: true, lost: true, files: with(good, map[string]string{"gone": ""}), changed: -carries, failed: 1, says: []string{"the node does not answer", "no route to host"}},
		"lost": {all: true, lost: true, vars: cluster, files: with(pods, map[string]string{"apply.sh": "touch gone\n"}), changed: 2, failed: 1,
			says: []string{"the connection was lost: what became of it is not known", "lost stays cordoned"}, verbs: "plan apply", kubectl: askNode + askMark + askDrain, node: strings.Replace(emptied, "apply\n", "", 1), has: []string{"kubelet", "cordoned", "marked"}},

		"release-files": {all: true, vars: map[string]any{"nodeprep_profile": base, "nodeprep_artifacts": map[string]string{"amd64": l.dir + "/artifacts"}}, files: good, changed: 3, verbs: "plan apply", has: []string{"opt/artifacts/runc.amd64", "etc/base.yaml"}},
		"oci": {all: true, vars: map[string]any{"nodeprep_bundle": "oci://registry.example.com/node@sha256:" + sum}, files: with(good, map[string]string{"etc/profile.yaml": "# Made by Ansible for oci: x\n"}),
			changed: 2, verbs: "plan apply", has: []string{"etc/overlay.yaml"}},
		"url":     {all: true, vars: url("url", sum), files: with(good, map[string]string{"etc/profile.yaml": "# Made by hand.\n"}), changed: 2, verbs: "plan apply", has: []string{"opt/node.bundle", "etc/profile.yaml"}},
		"url-bad": {vars: url("url-bad", strings.Repeat("0", 64)), files: good, changed: -1, failed: 1, says: []string{"The checksum"}},
	}
	if thisRun() == inMain {
		maps.DeleteFunc(hosts, func(_ string, w want) bool { return w.all })
	}
	for name, w := range hosts {
		make := l.host
		if w.lost {
			make = l.breakable
		}
		make(name, maps.Clone(w.vars), w.files)
	}

	l.rules("[1, '25%']", "'100%'", "else 0", "else 100")
	out, recaps := l.plays(2, nil)
	for name, w := range hosts {
		for _, words := range w.says {
			if !strings.Contains(out, words) {
				t.Errorf("%s: nothing said of %q", name, words)
			}
		}
		got := recaps[name]
		if got.Changed != w.changed+carries || got.Failed != w.failed || got.Unreachable > 0 {
			t.Errorf("%s: the recap is %+v, want %d changed beside what is carried, %d failed, none unreachable", name, got, w.changed, w.failed)
		}
		var verbs []string
		for line := range strings.Lines(l.read(name, "calls")) {
			verbs = append(verbs, strings.Fields(line)[0])
		}
		if diff := cmp.Diff(w.verbs, strings.Join(verbs, " ")); diff != "" {
			t.Errorf("%s: what nodeprep was asked (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(strings.ReplaceAll(w.kubectl, "NODE", name), l.read(name, "kubectl.log")); diff != "" {
			t.Errorf("%s: what kubectl was asked (-want +got):\n%s", name, diff)
		}
		if diff := cmp.Diff(w.node, l.read(name, "node.log")); diff != "" {
			t.Errorf("%s: what was done around apply (-want +got):\n%s", name, diff)
		}
		for _, file := range []string{"kubelet", "cordoned", "marked"} {
			if there := exists(filepath.Join(l.dir, name, file)); there != slices.Contains(w.has, file) {
				t.Errorf("%s: %s is there: %v", name, file, there)
			}
		}
		for _, file := range w.has {
			if !exists(filepath.Join(l.dir, name, file)) {
				t.Errorf("%s: there is no %s", name, file)
			}
		}
	}
	if t.Failed() {
		t.Log(out)
	}
	if exists(l.dir + "/oci/etc/profile.yaml") {
		t.Error("the profile of before the bundle is still there")
	}
	if exists(l.dir + "/url-bad/opt/node.bundle") {
		t.Error("a bundle was kept that is another than the one wanted")
	}
	if n := fetched("url-bad"); n != 1 {
		t.Errorf("a bundle that is another than the one wanted was fetched %d times, want 1", n)
	}
	for host, args := range map[string]string{
		"a0":            "plan -o json -f DIR/etc/profile.yaml\napply -o json -f DIR/etc/profile.yaml\n",
		"well":          "plan -o json -f DIR/etc/profile.yaml\ncheck --stage audit -o json --offline\n",
		"refused":       "plan -o json -f DIR/etc/profile.yaml --force-restart\n",
		"release-files": "plan -o json -f DIR/etc/profile.yaml --artifacts DIR/opt/artifacts --offline\napply -o json -f DIR/etc/profile.yaml --artifacts DIR/opt/artifacts --offline\n",
		"oci":           "plan -o json -f DIR/etc/overlay.yaml --bundle oci://registry.example.com/node@sha256:" + sum + "\napply -o json -f DIR/etc/overlay.yaml --bundle oci://registry.example.com/node@sha256:" + sum + "\n",
		"url":           "plan -o json -f DIR/etc/overlay.yaml --bundle DIR/opt/node.bundle\napply -o json -f DIR/etc/overlay.yaml --bundle DIR/opt/node.bundle\n",
	} {
		if _, there := hosts[host]; !there {
			continue
		}
		if diff := cmp.Diff(strings.ReplaceAll(args, "DIR", l.dir+"/"+host), l.read(host, "calls")); diff != "" {
			t.Errorf("%s: how nodeprep was called (-want +got):\n%s", host, diff)
		}
	}
	for host, extends := range map[string]string{"a0": "kubernetes", "release-files": "base.yaml"} {
		if _, there := hosts[host]; !there {
			continue
		}
		var got any
		if err := yaml.Unmarshal([]byte(l.read(host, "etc/profile.yaml")), &got); err != nil {
			t.Fatal(err)
		}
		want := map[string]any{
			"apiVersion": "nodeprep/v1alpha1", "kind": "NodeProfile", "extends": extends,
			"host":       map[string]any{"sysctl": map[string]any{"vm.overcommit_memory": "1"}},
			"registries": map[string]any{"*": map[string]any{"header": map[string]any{"X-Token": "sesame: {in} \"a\" vault"}}},
		}
		if diff := cmp.Diff(any(want), got); diff != "" {
			t.Errorf("%s: the node's profile (-want +got):\n%s", host, diff)
		}
	}
}

// roleRehearses is the playbook as it is shipped in check mode: it looks at all, whatever
// one of them is, asks nothing but plan, and leaves nothing.
func roleRehearses(t *testing.T, l *local) {
	server := serveBundles(t)
	l.host("bad-plan", nil, map[string]string{"plan.code": "2", "plan.out": `{"error": {"message": "word of bad-plan"}}`})
	l.host("fresh", with(server.of("fresh", server.sum), l.clustered(), map[string]any{"nodeprep_drain_at_most": 0}), map[string]string{
		"plan.out": strings.Replace(planned, "[", strings.TrimSuffix(strings.TrimPrefix(planDrain, `{"items": `), "]}")+", ", 1), "plan.code": "3",
		"plan.sh": "for last; do :; done\ncmp -s \"$last\" ../want.bundle || exit 7\n",
	})
	l.write("want.bundle", server.content, 0o644)
	l.host("has", server.of("has", server.sum), with(goodFiles, map[string]string{"opt/node.bundle": server.content}))
	out, recaps := l.plays(2, []string{"~ /etc/x: differs", "-old", "+new", "(secret content, not shown)", "word of bad-plan", "1 nodes would have to be drained, and nodeprep_drain_at_most is 0"}, "--check", "--diff")
	if diff := cmp.Diff(map[string]recap{"bad-plan": {Changed: 1, Failed: 1}, "fresh": {Changed: 2}, "has": {Changed: 2}}, recaps, cmpopts.IgnoreFields(recap{}, "OK")); diff != "" {
		t.Errorf("the rehearsal's recap (-want +got):\n%s\n%s", diff, out)
	}
	if got := l.read("fresh", "calls"); !strings.HasPrefix(got, "plan -o json -f "+l.dir+"/fresh/nodeprep-check.") || strings.Count(got, "\n") != 1 {
		t.Errorf("in check mode nodeprep was called as\n%s", got)
	}
	if got := l.read("fresh", "kubectl.log"); got != "" {
		t.Errorf("in check mode kubectl was asked\n%s", got)
	}
	if got := [2]int32{server.fetched("fresh"), server.fetched("has")}; got != [2]int32{1, 0} {
		t.Errorf("the rehearsal fetched the bundle %v times, want once for the one that has none, and never for the one that has it", got)
	}
	for _, pattern := range []string{"/*/nodeprep-check.*", "/fresh/[oe]*"} {
		if left, _ := filepath.Glob(l.dir + pattern); len(left) > 0 {
			t.Errorf("check mode left %v", left)
		}
	}
}

// roleStops plays the batches of the playbook as it is shipped, which are 1, 2, 2, 2 and 1 of
// eight hosts: one failure in the second batch, wherever it is, and none comes after. The
// other of that batch does all that it has to.
func roleStops(t *testing.T, lab *vm.Lab) {
	for name, stop := range map[string]struct {
		all      bool
		half     map[string]string
		lost     bool // it can lose its connection
		tolerant bool
		says     string
	}{
		"apply": {all: true, half: fails("b-half", 1), says: "word of b-half"},
		"plan":  {all: true, half: map[string]string{"plan.code": "2", "plan.out": `{"error": {"message": "word of bad-plan"}}`}, says: "word of bad-plan"},
		"lost":  {all: true, half: with(goodFiles, map[string]string{"apply.sh": "touch gone\n"}), lost: true, says: "the connection was lost: what became of it is not known"},
		// After this one nobody goes on, whatever the playbook would put up with.
		"stranded": {half: fails("b-half", 4), tolerant: true, says: "the node could not be brought back"},
	} {
		if stop.all && thisRun() == inMain {
			continue
		}
		t.Run(name, func(t *testing.T) {
			l := newLocal(t, lab)
			if stop.tolerant {
				l.rules("else 0", "else 100")
			}
			l.host("a", nil, idleFiles)
			l.host("b-fellow", l.clustered(), podsFiles)
			if stop.lost {
				l.breakable("b-half", nil, stop.half)
			} else {
				l.host("b-half", nil, stop.half)
			}
			for n := range 5 {
				l.host(fmt.Sprintf("c%d", n), nil, idleFiles)
			}
			out, recaps := l.plays(2, []string{stop.says})
			if diff := cmp.Diff([]string{"a", "b-fellow", "b-half"}, slices.Sorted(maps.Keys(recaps))); diff != "" {
				t.Errorf("nodes that were looked at (-want +got):\n%s\n%s", diff, out)
			}
			if r := recaps["b-half"]; r.Failed != 1 || r.Unreachable > 0 {
				t.Errorf("the recap of the node that fails is %+v, want one failure", r)
			}
			if r := recaps["b-fellow"]; r.Failed > 0 {
				t.Errorf("the recap of its fellow is %+v, want none failed\n%s", r, out)
			}
			if got, want := l.read("b-fellow", "kubectl.log"), strings.ReplaceAll(askNode+askMark+askDrain+askReady+askBack, "NODE", "b-fellow"); got != want || exists(l.dir+"/b-fellow/cordoned") || !exists(l.dir+"/b-fellow/kubelet") {
				t.Errorf("a node that was drained stays so, for another's failure; kubectl was asked\n%s", got)
			}
		})
	}
}

// What runs around apply on a node that was drained: the kubelet comes back whatever
// happens, and what is to run there runs only without pods.
func TestFleetEmptyNode(t *testing.T) {
	script, err := os.ReadFile(ansible + "/roles/nodeprep/files/empty.sh")
	if err != nil {
		t.Fatal(err)
	}
	const (
		state, stop, start = "systemctl show --property ActiveState --value kubelet.service\n", "systemctl stop kubelet.service\n", "systemctl start --no-block kubelet.service\n"
		rmp                = "crictl rmp --all --force\n"
		ctr                = "ctr /run/test.sock "
		ctrTasks           = ctr + "tasks list --quiet \n" + ctr + "tasks rm --force one\n" + ctr + "tasks rm --force two\n"
		ctrContainers      = ctr + "containers list --quiet \n" + ctr + "containers rm one \n" + ctr + "containers rm two \n"
		ctrLeft            = ctr + "containers list --quiet \n"
	)
	running := map[string]string{"kubelet": ""}
	for name, c := range map[string]struct {
		files   map[string]string
		no      string // a program that is not there
		command string
		code    int
		want    string
	}{
		"well":            {files: running, command: "true", want: state + stop + rmp + "command\n" + start},
		"it fails":        {files: running, command: "exit 3", code: 3, want: state + stop + rmp + "command\n" + start},
		"it is killed":    {files: running, command: "kill -KILL $$", code: 137, want: state + stop + rmp + "command\n" + start},
		"the run is told": {files: running, command: "kill -TERM $PPID; exit 3", code: 3, want: state + stop + rmp + "command\n" + start},
		"no kubelet runs": {command: "true", want: state + rmp + "command\n"},
		// Its last try failed, and the next is to come.
		"a kubelet in trouble": {files: map[string]string{"state": "activating\n"}, command: "true", want: state + stop + rmp + "command\n" + start},
		"a slow network":       {files: map[string]string{"kubelet": "", "slow": ""}, command: "true", want: state + stop + rmp + rmp + "command\n" + start},
		// apply would see them, and refuse.
		"pods that stay":                 {files: map[string]string{"kubelet": "", "crictl.fails": ""}, command: "true", code: 7, want: state + stop + strings.Repeat(rmp, 5) + "command\n" + start},
		"no crictl":                      {files: running, no: "crictl", command: "true", want: state + stop + ctrTasks + ctrContainers + ctrLeft + "command\n" + start},
		"no crictl, who is faster":       {files: map[string]string{"kubelet": "", "faster": ""}, no: "crictl", command: "true", want: state + stop + ctrTasks + ctrContainers + ctrLeft + "command\n" + start},
		"no crictl, who is slow":         {files: map[string]string{"kubelet": "", "slow": ""}, no: "crictl", command: "true", want: state + stop + ctrTasks + ctrContainers + ctrLeft + ctr + "tasks list --quiet \n" + ctr + "tasks rm --force one\n" + ctr + "containers list --quiet \n" + ctr + "containers rm one \n" + ctrLeft + "command\n" + start},
		"a kubelet that does not stop":   {files: map[string]string{"kubelet": "", "stop.fails": ""}, command: "true", code: 90, want: state + stop + start},
		"one that is lost":               {files: map[string]string{"kubelet": "", "start.fails": ""}, command: "true", code: 91, want: state + stop + rmp + "command\n" + start},
		"one that is lost, and it fails": {files: map[string]string{"kubelet": "", "start.fails": ""}, command: "exit 4", code: 4, want: state + stop + rmp + "command\n" + start},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write := func(name, text string, mode os.FileMode) {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(text), mode); err != nil {
					t.Fatal(err)
				}
			}
			for name, text := range nodePrograms {
				write(name, text, 0o755)
			}
			write("pods", "one\ntwo\n", 0o644)
			for f, text := range c.files {
				write(f, text, 0o644)
			}
			// This machine's own may be another.
			text := "sed() { echo /run/test.sock; }\n" + string(script)
			if c.no != "" {
				// The real one may well be installed here.
				text = "command() { test \"$2\" != " + c.no + "; }\n" + text
			}
			cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", text, "empty", "/bin/sh", "-c", `echo command >>"$NODE/node.log"; test ! -s "$NODE/pods" || exit 7; `+c.command)
			cmd.Env = []string{"NODE=" + dir, "PATH=" + dir + ":/usr/bin:/bin"}
			out, err := cmd.CombinedOutput()
			if code := cmd.ProcessState.ExitCode(); code != c.code {
				t.Errorf("exit %d (%v), want %d\n%s", code, err, c.code, out)
			}
			got, err := os.ReadFile(filepath.Join(dir, "node.log"))
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(c.want, string(got)); diff != "" {
				t.Errorf("what was done (-want +got):\n%s", diff)
			}
		})
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

// startFleet starts machines and makes an inventory of them, with what is carried there but
// for where release files come from.
func startFleet(t *testing.T, s set, names ...string) *fleet {
	t.Helper()
	lab := wanted(t, s)
	ctx, cancel := context.WithTimeout(t.Context(), 55*time.Minute)
	t.Cleanup(cancel)
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
		"nodeprep_binaries":            map[string]string{"amd64": lab.Nodeprep()},
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
	f.size("nodeprep", lab.Nodeprep())
	return f
}

// size logs a file's.
func (f *fleet) size(what, file string) {
	f.t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Logf("%s: %d bytes", what, info.Size())
}

// bundled has the fleet's release files come from a bundle, which is carried.
func (f *fleet) bundled() {
	f.t.Helper()
	f.vars["nodeprep_bundle"] = bundleOf(f.t, f.node).file
	f.size("the bundle", bundleOf(f.t, f.node).file)
}

// nearby has them come from the machines' own media, which costs the least.
func (f *fleet) nearby() {
	f.t.Helper()
	var beside []string
	for name, text := range f.node.profile(f.t, f.machines["node-1"].sum, "") {
		if file := f.write(name, text, 0o644); name == "profile.yaml" {
			f.vars["nodeprep_profile"] = file
		} else {
			beside = append(beside, file)
		}
	}
	f.vars["nodeprep_files"] = append(beside, f.vars["nodeprep_files"].([]string)...)
	f.vars["nodeprep_flags"] = append([]string{"--offline"}, strings.Fields(f.node.artifacts())...)
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

// receivedBy are the bytes that came to a machine through its network card.
func receivedBy(m *machine) int {
	m.t.Helper()
	n, err := strconv.Atoi(m.must("cat /sys/class/net/e*/statistics/rx_bytes"))
	if err != nil {
		m.t.Fatal(err)
	}
	return n
}

// measured is a playbook run that has to succeed, one node at a time, and logs what
// docs/fleets.md says of it in the column of its tables that is named so.
func (f *fleet) measured(column string, words []string, args ...string) (out string, recaps map[string]recap, received map[string]int) {
	f.t.Helper()
	f.serial("1")
	defer f.serial(shipped)
	names := slices.Sorted(maps.Keys(f.hosts))
	had, worked := make(map[string]int), f.connections()
	for _, name := range names {
		had[name] = receivedBy(f.machines[name])
	}
	out, recaps = f.plays(0, words, args...)
	if len(f.batches) != len(names) {
		f.t.Fatalf("%s: %d batches for %d nodes", column, len(f.batches), len(names))
	}
	var seconds, connections float64
	var bytes int
	held := f.connections()
	for pid, d := range held {
		connections += (d - worked[pid]).Seconds()
	}
	received = make(map[string]int)
	for i, name := range names {
		received[name] = receivedBy(f.machines[name]) - had[name]
		f.t.Logf("%s: %s: %.1f s, %d bytes received", column, name, f.batches[i].Seconds(), received[name])
		seconds, bytes = seconds+f.batches[i].Seconds(), bytes+received[name]
	}
	n := float64(len(names))
	f.t.Logf("docs/fleets.md, %s: t = %.0f, c = %.1f (ansible-playbook and its children %.1f, %d connections %.1f), bytes = %.1f MB",
		column, seconds/n, (f.processor.Seconds()+connections)/n, f.processor.Seconds()/n, len(held), connections/n, float64(bytes)/n/1e6)
	return out, recaps, received
}

// look is a rehearsal: it shows the plan and leaves every machine as it is.
func (f *fleet) look() {
	f.t.Helper()
	before := make(map[string]string)
	for name, m := range f.machines {
		before[name] = m.tree("-skip /home/admin")
	}
	out, recaps, _ := f.measured("rehearsal", []string{"+++ /etc/containerd/certs.d/quay.io/hosts.toml", "+server = 'https://quay.io'", "quay.example.com", "(secret content, not shown)", "+ containerd 2.1.9: new"}, "--check", "--diff")
	f.hides(out)
	for name, m := range f.machines {
		if r := recaps[name]; r.Changed == 0 || r.Failed+r.Unreachable > 0 {
			f.t.Errorf("a rehearsal counts %+v for %s, want changes and no failures", r, name)
		}
		if diff := cmp.Diff(before[name], m.tree("-skip /home/admin")); diff != "" {
			f.t.Errorf("the rehearsal changed %s (-before +after):\n%s", name, diff)
		}
		m.must("for p in /var/tmp/nodeprep* /opt/nodeprep /etc/nodeprep; do test ! -e $p || exit 1; done")
	}
}

// good holds a machine to the plan.
func (f *fleet) good(name string) {
	f.t.Helper()
	m := f.machines[name]
	m.exits(0, "/usr/local/bin/nodeprep status --deep")
	serves(m, f.node.containerd.Version)
	m.says(m.must("cat /etc/containerd/certs.d/docker.io/hosts.toml"), "https://mirror.example.com", f.secrets[1])
	m.must("test $(stat -c %a /etc/nodeprep/*.yaml /etc/nodeprep/password | sort -u) = 600")
	// Ansible's modules log how they are called, and leave files where they are interrupted.
	// (The guest's agent logs these commands.)
	m.must("echo the journal has words | systemd-cat && journalctl --sync && journalctl -b -o cat | grep '^the journal has words$' && grep -rs sesame[-]in /etc/containerd")
	m.must("! journalctl -b -o cat | grep sesame[-]in && ! grep -rs sesame[-]in /home/admin /var/tmp /root/.ansible")
}

// shipped are the batches of the playbook as it is.
const shipped = `"{{ '100%' if ansible_check_mode else [1, '25%'] }}"`

// serial makes the batches of the playbook others, for a rehearsal, too.
func (f *fleet) serial(batches string) {
	f.t.Helper()
	text, err := os.ReadFile(ansible + "/site.yml")
	if err != nil {
		f.t.Fatal(err)
	}
	if !bytes.Contains(text, []byte(shipped)) {
		f.t.Fatalf("the playbook has no %s", shipped)
	}
	f.write("site.yml", strings.Replace(string(text), shipped, batches, 1), 0o644)
}

// idle finds nothing to do, and carries nothing.
func (f *fleet) idle() {
	f.t.Helper()
	_, recaps, received := f.measured("nothing to do", nil)
	for name, n := range received {
		if r := recaps[name]; r.OK == 0 || r.Changed+r.Failed+r.Unreachable > 0 {
			f.t.Errorf("with nothing to do the recap of %s is %+v", name, r)
		}
		if n > 3<<20 {
			f.t.Errorf("%d bytes went to %s, which had everything", n, name)
		}
	}
}

// badDropIn is one with which containerd cannot start.
const badDropIn = "/etc/systemd/system/containerd.service.d/zz-site.conf"

// breaks makes a machine one that cannot be what is planned.
func (f *fleet) breaks(name string) *machine {
	f.t.Helper()
	m := f.machines[name]
	if err := m.WriteFile(f.ctx, badDropIn, "[Service]\nExecStartPre=/bin/false\n"); err != nil {
		f.t.Fatal(err)
	}
	m.must("systemctl daemon-reload")
	return m
}

// stopped is a rollout that ends with the batch of node-2, which is broken: that is as it
// was, node-1 as planned, of which words tell, and node-3 was not touched.
func (f *fleet) stopped(words ...string) {
	f.t.Helper()
	// To the one that is not touched nothing is carried, either.
	const untouched = "-skip /home/admin"
	before := map[string]string{
		"node-2": f.machines["node-2"].tree(carried),
		"node-3": f.machines["node-3"].tree(untouched),
	}
	out, recaps := f.plays(2, append(words, "nodeprep apply: it failed, and the node is as it was before", "containerd.service"), "--diff", "-vvv")
	f.hides(out)
	if r := recaps["node-1"]; r.Changed == 0 || r.Failed+r.Unreachable > 0 {
		f.t.Errorf("the recap of the good host is %+v", r)
	}
	if r := recaps["node-2"]; r.Failed != 1 {
		f.t.Errorf("the recap of the broken host is %+v, want one failure", r)
	}
	if r, there := recaps["node-3"]; there {
		f.t.Errorf("the rollout went on to node-3 after the broken host: %+v", r)
	}
	f.good("node-1")
	if diff := cmp.Diff(before["node-2"], f.machines["node-2"].tree(carried)); diff != "" {
		f.t.Errorf("the broken host is not as it was (-before +after):\n%s", diff)
	}
	after := f.machines["node-3"]
	if diff := cmp.Diff(before["node-3"], after.tree(untouched)); diff != "" {
		f.t.Errorf("the host after the broken one was touched (-before +after):\n%s", diff)
	}
}

// Three hosts, of which two are changed at a time, and one of these is broken.
func TestFleet(t *testing.T) {
	if thisRun() > inMain {
		t.Skip("TestFleetRollout has a rollout that stops, too")
	}
	f := startFleet(t, inMain, "node-1", "node-2", "node-3")
	f.nearby()
	f.serial("2")
	f.breaks("node-2")
	f.stopped("generation 1:", "started containerd.service")
}

// A rehearsal, and the playbook as it is: a rollout that stops at the second of three hosts
// and goes on once that is mended, one that finds nothing to do, and a change that needs a
// drain. In its longest form it begins with what docs/fleets.md has numbers of.
func TestFleetRollout(t *testing.T) {
	f := startFleet(t, inAll, "node-1", "node-2", "node-3")
	f.bundled()
	near := func(name string) {
		f.hosts[name]["nodeprep_host_overlay"] = map[string]any{"registries": map[string]any{
			"quay.io": map[string]any{"mirrors": []any{map[string]any{"url": "https://near-" + name + ".example.com"}}},
		}}
	}
	near("node-3")
	f.look()
	words := []string{"generation 1:", "started containerd.service"}
	if thisRun() == inEvery {
		_, recaps, _ := f.measured("rollout", words)
		for name := range f.machines {
			if r := recaps[name]; r.Changed == 0 || r.Failed+r.Unreachable > 0 {
				t.Errorf("of a rollout that meets nothing bad the recap of %s is %+v", name, r)
			}
		}
		f.idle()

		// Two are none again, and what is carried is there.
		for _, name := range []string{"node-2", "node-3"} {
			f.machines[name].exits(0, "/opt/nodeprep/nodeprep uninstall --purge --yes")
		}
		words = []string{"generation 2:"}
	}
	if thisRun() < inEvery {
		t.Log("only with -vm=every: a rollout that meets nothing bad, measured")
	}
	near("node-1")
	log := f.kubectl()
	broken := f.breaks("node-2")
	f.stopped(words...)
	broken.must("rm -r " + filepath.Dir(badDropIn) + " && systemctl daemon-reload")
	_, recaps := f.plays(0, nil)
	if recaps["node-1"].Changed != 0 || recaps["node-2"].Changed == 0 || recaps["node-3"].Changed == 0 {
		t.Errorf("once all are well the recap is %+v", recaps)
	}
	for name, m := range f.machines {
		f.good(name)
		mirror := "https://near-" + name + ".example.com"
		if name == "node-2" {
			mirror = "https://quay.example.com"
		}
		m.says(m.must("cat /etc/containerd/certs.d/quay.io/hosts.toml"), mirror)
	}
	if thisRun() < inEvery {
		f.idle()
	}
	if said := log(); strings.Contains(said, "drain") || strings.Contains(said, "patch") {
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
	echo "{\"metadata\": {\"name\": \"$3\", \"annotations\": {$note}}, \"spec\": {\"unschedulable\": $unschedulable},
 \"status\": {\"conditions\": [{\"type\": \"Ready\", \"status\": \"True\", \"lastHeartbeatTime\": \"9999-12-31T23:59:59Z\"}]}}" ;;
patch)
	case $5 in *true*) touch marked-$3 cordoned-$3 ;; *) rm -f marked-$3 cordoned-$3 ;; esac ;;
drain)
	touch cordoned-$2
	test ! -e stuck || { echo "cannot evict pod: a disruption budget forbids it" >&2; exit 1; }
	sh ./evict-$2 ;;
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
	// A drain removes the first; the second stands for a DaemonSet's.
	pod, left := f.node.runPod(m, "one"), f.node.runPod(m, "two")
	if err := m.WriteFile(f.ctx, "/etc/systemd/system/kubelet.service", "[Service]\nExecStart=/bin/sleep infinity\n"); err != nil {
		f.t.Fatal(err)
	}
	m.must("systemctl daemon-reload && systemctl start kubelet")
	kubelet := m.shows("kubelet", "MainPID")["MainPID"]
	f.hosts["node-1"]["nodeprep_host_overlay"] = map[string]any{"containerd": map[string]any{"cgroupDriver": "cgroupfs"}}
	f.write("stuck", "", 0o600)
	_, recaps := f.plays(2, []string{"kubectl drain node-1: exit 1", "a disruption budget forbids it"}, "--limit", "node-1")
	if r := recaps["node-1"]; r.Failed != 1 {
		f.t.Errorf("of a node that cannot be drained the recap is %+v", r)
	}
	m.must(fmt.Sprintf("test -d /proc/%d && test -d /proc/%d && test -d /proc/%s", pod.PID, left.PID, kubelet))
	asked := func(of string) string { return strings.ReplaceAll(of, "NODE", "node-1") }
	if diff := cmp.Diff(asked(askNode+askMark+askDrain), log()); diff != "" {
		f.t.Errorf("asked of kubectl where a node cannot be drained (-want +got):\n%s", diff)
	}
	if err := os.Remove(filepath.Join(f.dir, "stuck")); err != nil {
		f.t.Fatal(err)
	}
	f.plays(0, []string{"restarted containerd.service"}, "--limit", "node-1")
	if diff := cmp.Diff(asked(askNode+askDrain+askReady+askBack), log()); diff != "" {
		f.t.Errorf("asked of kubectl (-want +got):\n%s", diff)
	}
	m.must(fmt.Sprintf("test ! -d /proc/%d && test ! -d /proc/%d && test ! -d /proc/%s", pod.PID, left.PID, kubelet))
	m.must("systemctl is-active kubelet")
	m.must("containerd config dump | grep -q 'SystemdCgroup = false'")
	f.plays(0, nil, "--limit", "node-1")
	if diff := cmp.Diff(asked(askNode), log()); diff != "" {
		f.t.Errorf("asked of kubectl with nothing to do (-want +got):\n%s", diff)
	}
}
