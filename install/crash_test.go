package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/systemd"
)

// The crash matrix: each operation runs in a process of its own, which is killed with
// SIGKILL before and after every call of the writer, and before and after everything
// that it asks of systemd, in turn. What recovery makes of that must be the old root or
// the new one.

// childJob is what a child process of these tests shall do, as JSON in childEnv.
type childJob struct {
	// Root is worked on, Programs holds the programs of which nodeprep's own is a copy.
	Root, Programs string
	// Verb is install, upgrade, rollback, uninstall or recover.
	Verb string
	// Kill is the point at which the child ends itself: 2n-1 is right before its n-th
	// call, 2n right after it; 0 is never.
	Kill int
	// Log has each call written to standard error.
	Log bool
	// Big makes some programs too big to be kept as a copy on another filesystem.
	Big bool
	// Source is where releases and images come from.
	Source source
	// Stray makes the child write behind the writer's back.
	Stray bool
	// Race makes it wait for the end of its input, and say what became of it.
	Race bool
}

const childEnv = "NODEPREP_TEST_CHILD"

// TestChild is the child's side, and nothing in a run of its own.
func TestChild(t *testing.T) {
	text := os.Getenv(childEnv)
	if text == "" {
		return
	}
	var job childJob
	if err := json.Unmarshal([]byte(text), &job); err != nil {
		t.Fatal(err)
	}
	n := matrixNode(t, job.Root, job.Programs, job.Verb)
	if job.Big {
		n.big()
	}
	n.from(job.Source, job.Programs, job.Verb)
	p := &points{kill: job.Kill, log: job.Log, fail: -1}
	n.watch(p)
	if job.Stray {
		n.opt.Artifacts = strayArtifacts{n.opt.Artifacts, n.dir}
	}
	if job.Race {
		n.race(t.Context(), job.Verb, p)
		return
	}
	err := n.do(t.Context(), job.Verb)
	fmt.Printf("calls=%d\n", p.n)
	if err != nil {
		t.Fatal(err)
	}
}

// points numbers what changes a host, and ends the process at one of them.
type points struct {
	mu   sync.Mutex
	n    int
	kill int
	log  bool
	// fail, if not negative, is after how many calls all others fail.
	fail int
	// calls are those made.
	calls []string
}

// errDead is what calls get after the point at which a process is as good as dead.
var errDead = errors.New("this process is dead")

func (p *points) begin(op, path string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.fail >= 0 && p.n >= p.fail {
		return errDead
	}
	p.n++
	p.calls = append(p.calls, op+" "+path)
	p.at(2*p.n - 1)
	if p.log {
		fmt.Fprintf(os.Stderr, "BEGIN %d %s %s\n", p.n, op, path)
	}
	return nil
}

func (p *points) end(op, path string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.log {
		fmt.Fprintf(os.Stderr, "END %d %s %s\n", p.n, op, path)
	}
	p.at(2 * p.n)
}

// at ends the process, also when the point itself was passed over: a call that failed
// has no end.
func (p *points) at(point int) {
	if p.kill == 0 || point < p.kill {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {}
}

// writer is one whose calls are points.
func (p *points) writer() *writer {
	return &writer{
		chown:  os.Geteuid() == 0,
		before: func(_ int64, op, path string) error { return p.begin(op, path) },
		after:  func(_ int64, op, path string) { p.end(op, path) },
	}
}

// watch has all that the node does counted.
func (n *node) watch(p *points) {
	n.opt.writer = p.writer()
	n.opt.Services = &watchedServices{n.services, p}
	n.opt.Daemon = &watchedDaemon{n.daemon, p}
}

// watchedServices is a systemd each of whose jobs is a point.
type watchedServices struct {
	*services
	p *points
}

func (s *watchedServices) job(what string, do func() error) error {
	if err := s.p.begin("systemd", what); err != nil {
		return err
	}
	err := do()
	s.p.end("systemd", what)
	return err
}

// Reload is a point.
func (s *watchedServices) Reload(ctx context.Context) error {
	return s.job("reload", func() error { return s.services.Reload(ctx) })
}

// Start is a point.
func (s *watchedServices) Start(ctx context.Context, u string) error {
	return s.job("start", func() error { return s.services.Start(ctx, u) })
}

// Restart is a point.
func (s *watchedServices) Restart(ctx context.Context, u string) error {
	return s.job("restart", func() error { return s.services.Restart(ctx, u) })
}

// Stop is a point.
func (s *watchedServices) Stop(ctx context.Context, u string) error {
	return s.job("stop", func() error { return s.services.Stop(ctx, u) })
}

// strayArtifacts write where only the writer may.
type strayArtifacts struct {
	Artifacts
	root string
}

// Obtain leaves a file behind.
func (s strayArtifacts) Obtain(ctx context.Context, a desired.Artifact, p func(int64, int64)) (*Archive, error) {
	if err := os.WriteFile(filepath.Join(s.root, "stray"), nil, 0o600); err != nil {
		return nil, err
	}
	return s.Artifacts.Obtain(ctx, a, p)
}

const (
	recoverUnit = "nodeprep-recover.service"
	adoptedFile = "/etc/crictl.yaml"
	adoptedLink = "/etc/cni/net.d/10-pods.conflist"
	givenBack   = "/etc/containerd/certs.d/quay.io/hosts.toml"
	dockerDir   = "/etc/containerd/certs.d/docker.io"
	quaySecret  = "/etc/containerd/certs.d/quay.io/secret.toml"
	oldMTime    = 1_000_000_000 // a time that nothing written by a test has
)

// matrixNode is the node of the crash matrix before a verb, with the state that the verb
// brings. Its root is that of a running machine with a systemd.
func matrixNode(t *testing.T, dir, programs, verb string) *node {
	n := nodeAt(t, dir)
	n.services = &services{active: "active", fail: map[string]error{}}
	n.daemon = &fakeDaemon{sick: map[string]error{}}
	n.opt.Services, n.opt.Daemon, n.opt.live = n.services, n.daemon, true
	n.h.Now = func() time.Time { return time.Unix(2_000_000_000, 0) }
	n.h.Run = func(context.Context, host.Cmd) (host.Output, error) {
		return host.Output{Stdout: []byte("I am v1.0.0, 1.1.0 and 2.0.0")}, nil
	}
	n.opt.Adopt = true
	n.releases["crictl 1.0.0"] = map[string]string{"crictl": "crictl one"}
	n.opt.Artifacts = downloads{n}
	n.state.Generations = 1
	n.state.Daemon.ConfigPath = "/etc/containerd/config.toml"
	n.state.Artifacts = append(n.state.Artifacts, desired.Artifact{
		Component: "crictl", Version: "1.0.0", Arch: "amd64", Files: []string{"crictl.tar.gz"},
		Members: []desired.Member{{Name: "crictl", Path: "/usr/local/bin/crictl"}},
	})
	n.state.Files = append(n.state.Files,
		desired.File{Path: systemd.Program, Source: filepath.Join(programs, "nodeprep-1"), Mode: 0o755, Format: desired.FormatRaw, First: true},
		desired.File{Path: unitDir + "/" + recoverUnit, Content: []byte("[Service]\nType=oneshot\nExecStart=" + systemd.Program + " recover\n\n[Install]\nWantedBy=multi-user.target\n"),
			Mode: 0o644, Format: desired.FormatUnit, Effect: desired.EffectUnit, Unit: recoverUnit, First: true},
		desired.File{Path: "/etc/sysctl.d/90-nodeprep.conf", Content: []byte("net.ipv4.ip_forward = 1\n"), Mode: 0o644, Format: desired.FormatLines, Effect: desired.EffectSysctl},
		desired.File{Path: quaySecret, Content: []byte("hunter2\n"), Mode: 0o600, Format: desired.FormatRaw, Secret: true},
	)
	n.state.Units = append(n.state.Units, desired.Unit{Name: recoverUnit, Enabled: true})
	n.state.Sysctl = map[string]string{"net.ipv4.ip_forward": "1"}
	switch verb {
	case "install":
		n.services.active = "inactive"
	case "prepare":
		// A state before the first one: with a file that is taken over and given back later.
		n.file("/etc/containerd/config.toml").Content = []byte("version = 1\n")
		n.state.Files = append(n.state.Files, desired.File{Path: givenBack, Content: []byte("server = \"https://q\"\n"), Mode: 0o644, Format: desired.FormatHosts})
	case "upgrade", "uninstall":
		n.upgrade(programs)
	case "rollback":
		n.program(programs, 2)
	}
	return n
}

// big makes the daemon a program that is kept by hard link on its own filesystem.
func (n *node) big() {
	for _, v := range []string{"1", "2"} {
		n.releases["containerd "+v+".0.0"]["containerd"] = strings.Repeat("daemon "+v, copyLimit/8+1)
	}
}

func (n *node) program(programs string, version int) {
	n.file(systemd.Program).Source = filepath.Join(programs, fmt.Sprint("nodeprep-", version))
}

// upgrade wants another version of everything: members that come and go, files and
// directories too, files that are taken over, secrets that change.
func (n *node) upgrade(programs string) {
	n.program(programs, 2)
	n.file(unitDir + "/" + recoverUnit).Content = []byte("[Unit]\nDescription=x\n" + string(n.file(unitDir+"/"+recoverUnit).Content))
	n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0"
	n.state.Artifacts[1].Version = "1.1.0"
	n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
	n.file("/etc/systemd/system/containerd.service").Content = []byte(strings.Replace(unitText, "[Install]", "TasksMax=infinity\n\n[Install]", 1))
	n.file(quaySecret).Content = []byte("hunter3\n")
	n.file("/etc/sysctl.d/90-nodeprep.conf").Content = []byte("net.ipv4.ip_forward = 1\nvm.overcommit_memory = 1\n")
	n.state.Sysctl["vm.overcommit_memory"] = "1"
	n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return strings.HasPrefix(f.Path, dockerDir) })
	n.state.Files = append(n.state.Files,
		desired.File{Path: adoptedFile, Content: []byte("timeout: 2\n"), Mode: 0o644, Format: desired.FormatYAML},
		desired.File{Path: adoptedLink, Content: []byte("{}\n"), Mode: 0o644, Format: desired.FormatJSON},
		desired.File{Path: "/etc/new/dir/file", Content: []byte("new\n"), Mode: 0o640, Format: desired.FormatRaw},
	)
	n.state.Dirs = append(n.state.Dirs, desired.Dir{Path: "/opt/made/empty", Mode: 0o750})
}

// do carries a verb out.
func (n *node) do(ctx context.Context, verb string) error {
	rec, err := ReadReceipt(n.h.Root)
	if err != nil {
		return err
	}
	var plan *Plan
	switch verb {
	case "recover":
		_, err := Recover(ctx, n.h, n.recovery())
		return err
	case "rollback":
		plan, err = DiffRollback(ctx, n.h, rec, 0, n.opt.DiffOptions)
	case "uninstall":
		plan, err = DiffUninstall(ctx, n.h, rec, n.opt.DiffOptions, UninstallOptions{})
	default:
		plan, err = Diff(ctx, n.h, n.state, rec, n.opt.DiffOptions)
	}
	if err != nil {
		return err
	}
	res, err := Apply(ctx, n.h, plan, n.opt)
	if err == nil && len(res.Warnings) > len(plan.Warnings) {
		err = fmt.Errorf("done, with warnings: %v", res.Warnings)
	}
	return err
}

func (n *node) recovery() RecoverOptions {
	return RecoverOptions{Services: n.opt.Services, Daemon: n.opt.Daemon, Version: n.opt.Version, live: !n.image, writer: n.opt.writer}
}

// matrix has the roots from which operations start.
type matrix struct {
	dir      string // on a fast filesystem
	programs string
	verbs    map[string]*operation
	// mounts are directories that are filesystems of their own in every root.
	mounts []string
	source source
}

// operation is one row of the matrix.
type operation struct {
	verb     string
	template string   // a root as it is before
	calls    []string // those of an undisturbed run
	// after is the root that such a run leaves.
	after map[string]string
}

// newMatrix makes a root for each verb, by the verbs before it.
func newMatrix(t *testing.T, mounts ...string) *matrix {
	t.Helper()
	return newMatrixFrom(t, theFake, mounts...)
}

func newMatrixFrom(t *testing.T, s source, mounts ...string) *matrix {
	t.Helper()
	m := &matrix{dir: fastDir(t), verbs: map[string]*operation{}, mounts: mounts, source: s}
	// Thousands of small roots are read: collecting each at once is half of the work.
	percent := debug.SetGCPercent(1000)
	t.Cleanup(func() { debug.SetGCPercent(percent) })
	m.programs = filepath.Join(m.dir, "programs")
	if err := os.Mkdir(m.programs, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"1", "2"} {
		if err := os.WriteFile(filepath.Join(m.programs, "nodeprep-"+v), []byte("nodeprep "+v), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if s != theFake {
		writeBundle(t, m.programs)
	}
	at := func(verb string) string { return filepath.Join(m.dir, "before-"+verb) }
	for _, name := range []string{"install", "upgrade", "foreign", "rollback", "uninstall"} {
		m.newRoot(t, at(name))
	}
	n := m.node(t, at("install"), "install")
	n.write("/proc/7/oom_score_adj", "-999\n")
	n.write("/proc/sys/net/ipv4/ip_forward", "0\n")
	n.write("/proc/sys/vm/overcommit_memory", "0\n")
	n.write("/sbin/modprobe", "")

	copyTree(t, at("install"), at("upgrade"))
	n = m.node(t, at("upgrade"), "prepare")
	n.write(givenBack, "mine\n")
	n.write(adoptedFile, "mine too\n")
	n.write("/srv/pods.conflist", "not ours\n")
	n.symlink("/srv/pods.conflist", adoptedLink)
	for _, p := range []string{givenBack, adoptedFile, "/srv/pods.conflist"} {
		n.age(p, 0o640, 1000)
	}
	n.age("/etc/containerd/certs.d/quay.io", 0o750, 1000)
	copyTree(t, at("upgrade"), at("foreign"))
	n.must("apply")
	n = m.node(t, at("upgrade"), "again")
	n.must("apply")
	// A directory of ours that somebody else made his own, and a program that he closed.
	n.age(dockerDir, 0o2750, 1000)
	n.age("/usr/local/bin/crictl", 0o700, 1000)

	copyTree(t, at("upgrade"), at("rollback"))
	n = m.node(t, at("rollback"), "upgrade")
	n.must("apply")
	copyTree(t, at("rollback"), at("uninstall"))
	for _, verb := range []string{"install", "upgrade", "rollback", "uninstall"} {
		op := &operation{verb: verb, template: at(verb)}
		root := filepath.Join(m.dir, "reference "+verb)
		m.newRoot(t, root)
		copyTree(t, op.template, root)
		before := treeOf(t, root)
		n := m.node(t, root, verb)
		p := &points{fail: -1}
		n.watch(p)
		n.must(verb)
		op.calls, op.after = p.calls, treeOf(t, root).relativeTo(before)
		m.verbs[verb] = op
		for p := range op.after {
			if strings.Contains(p, ".nodeprep-") || p == JournalPath {
				t.Errorf("%s, undisturbed, leaves %s", verb, p)
			}
		}
		switch verb {
		case "rollback":
			m.sameOutside(t, at("upgrade"), root, "rollback", StateDir, "/proc", systemd.Program, unitDir+"/"+recoverUnit, "/usr/local/bin/crictl", "/usr/"+keptDir)
		case "uninstall":
			m.sameOutside(t, at("foreign"), root, "uninstall", "/proc")
		}
		m.clear(t, root)
	}
	return m
}

// newRoot makes an empty root with its filesystems.
func (m *matrix) newRoot(t *testing.T, root string) {
	t.Helper()
	if err := os.Mkdir(root, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, p := range m.mounts {
		(&node{t: t, dir: root}).mount(p, 64<<20, 0)
	}
}

// clear removes all that is in a root, and it where nothing is mounted there.
func (m *matrix) clear(t *testing.T, root string) {
	t.Helper()
	var err error
	if len(m.mounts) == 0 {
		err = os.RemoveAll(root)
	} else {
		err = m.clearMounted(root)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (m *matrix) clearMounted(dir string) error {
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		p := filepath.Join(dir, e.Name())
		if slices.ContainsFunc(m.mounts, func(at string) bool { return strings.HasSuffix(p, at) && e.IsDir() }) {
			err = errors.Join(err, m.clearMounted(p))
		} else {
			err = errors.Join(err, os.RemoveAll(p))
		}
	}
	return err
}

// sameOutside compares two roots by what everybody sees, but for some places.
func (m *matrix) sameOutside(t *testing.T, want, got, what string, but ...string) {
	t.Helper()
	a, b := treeOf(t, want), treeOf(t, got)
	for _, tree := range []tree{a, b} {
		for p := range tree {
			if slices.ContainsFunc(but, func(x string) bool { return p == x || strings.HasPrefix(p, x+"/") }) {
				delete(tree, p)
			}
		}
	}
	if diff := differs(a.relativeTo(tree{}), b.relativeTo(tree{})); diff != "" {
		t.Errorf("%s does not give the host back as it was (-was +is):\n%s", what, diff)
	}
}

func (m *matrix) node(t *testing.T, root, verb string) *node {
	n := matrixNode(t, root, m.programs, verb)
	if len(m.mounts) > 0 {
		n.big()
	}
	n.from(m.source, m.programs, verb)
	return n
}

// must carries a verb out on a fresh systemd.
func (n *node) must(verb string) {
	n.t.Helper()
	if err := n.do(n.t.Context(), verb); err != nil {
		n.t.Fatalf("%s: %v", verb, err)
	}
}

// age gives a path an owner, where that is possible, a mode and an old time.
func (n *node) age(p string, mode uint32, owner int) {
	n.t.Helper()
	real := filepath.Join(n.dir, p)
	if os.Geteuid() == 0 {
		if err := os.Chown(real, owner, owner); err != nil {
			n.t.Fatal(err)
		}
	}
	if err := syscall.Chmod(real, mode); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Chtimes(real, time.Unix(oldMTime, 0), time.Unix(oldMTime, 0)); err != nil {
		n.t.Fatal(err)
	}
}

// fastDir is a temporary directory in memory, where the machine has that.
func fastDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nodeprep-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// copyTree makes to a copy of from, with owners, modes, times and hard links, and tells
// which inode became which.
func copyTree(t *testing.T, from, to string) map[uint64]uint64 {
	t.Helper()
	links := map[uint64]string{}
	became := map[uint64]uint64{}
	err := filepath.WalkDir(from, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		dst := to + strings.TrimPrefix(p, from)
		switch {
		case fi.IsDir():
			if err := os.Mkdir(dst, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
				return err
			}
		case fi.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			if err := os.Symlink(target, dst); err != nil {
				return err
			}
			return os.Lchown(dst, int(st.Uid), int(st.Gid))
		case links[inode(st)] != "":
			return os.Link(links[inode(st)], dst)
		default:
			if st.Nlink > 1 {
				links[inode(st)] = dst
			}
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			if err := os.WriteFile(dst, content, 0o600); err != nil {
				return err
			}
			fi, err := os.Lstat(dst)
			if err != nil {
				return err
			}
			became[inode(st)] = inode(fi.Sys().(*syscall.Stat_t))
		}
		if err := os.Chown(dst, int(st.Uid), int(st.Gid)); err != nil {
			return err
		}
		if err := syscall.Chmod(dst, st.Mode&0o7777); err != nil {
			return err
		}
		if fi.IsDir() {
			return nil
		}
		return os.Chtimes(dst, fi.ModTime(), fi.ModTime())
	})
	if err != nil {
		t.Fatal(err)
	}
	return became
}

// inode is a file's own, on whichever filesystem.
func inode(st *syscall.Stat_t) uint64 { return st.Dev<<48 ^ st.Ino }

// seen is what there is at a path.
type seen struct {
	line    string // type, mode, owner, and a link's target
	content string
	inode   uint64
	mtime   int64 // nanoseconds since 1970
}

// tree is a whole root, by path.
type tree map[string]seen

func treeOf(t *testing.T, root string) tree {
	t.Helper()
	out := tree{}
	err := filepath.WalkDir(root, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		st := fi.Sys().(*syscall.Stat_t)
		s := seen{line: fmt.Sprintf("%v %d:%d", fi.Mode(), st.Uid, st.Gid)}
		switch {
		case fi.Mode().IsRegular():
			content, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			s.content, s.inode, s.mtime = string(content), inode(st), fi.ModTime().UnixNano()
		case fi.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			s.line += " -> " + target
		}
		out["/"+strings.TrimPrefix(strings.TrimPrefix(p, root), "/")] = s
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// exactly is the tree with inodes and times: what a revert owes.
func (r tree) exactly() map[string]string {
	out := map[string]string{}
	for p, s := range r {
		if strings.HasPrefix(p, "/proc/") {
			s.inode, s.mtime = 0, 0
		}
		out[p] = fmt.Sprintf("%s inode %d time %d\n%s", s.line, s.inode, s.mtime, brief(s.content))
	}
	return out
}

// exactly is what a revert owes here: a copy that was kept on another filesystem comes
// back as another inode.
func (m *matrix) exactly(r tree) map[string]string {
	if len(m.mounts) == 0 {
		return r.exactly()
	}
	copies := tree{}
	for p, s := range r {
		if len(s.content) <= copyLimit {
			s.inode = 0
		}
		copies[p] = s
	}
	return copies.exactly()
}

// relativeTo is the tree as any run from before would leave it: without what is random
// or of the moment, but with the path of before whose very file a path has now.
func (r tree) relativeTo(before tree) map[string]string {
	type file struct {
		inode uint64
		mtime int64
	}
	same := map[file]string{}
	for p, s := range before {
		if f := (file{s.inode, s.mtime}); s.inode != 0 && (same[f] == "" || p < same[f]) {
			same[f] = p
		}
	}
	out := map[string]string{}
	for p, s := range r {
		text := s.line
		if was := same[file{s.inode, s.mtime}]; was != "" && !strings.HasPrefix(p, "/proc/") {
			text += " the file that was " + withoutIDs(was)
		}
		if s.mtime == oldMTime*int64(time.Second) {
			text += " old"
		}
		content := brief(s.content)
		if strings.HasPrefix(p, StateDir+"/") && strings.HasSuffix(p, ".json") {
			content = timeless(s.content)
		}
		out[withoutIDs(p)] = text + "\n" + content
	}
	return out
}

// differs is cmp.Diff, which takes its time, for trees that hardly ever do.
func differs(want, got map[string]string) string {
	if maps.Equal(want, got) {
		return ""
	}
	return cmp.Diff(want, got)
}

func brief(s string) string {
	if len(s) > 4096 {
		return fmt.Sprintf("%d bytes of %s", len(s), s[:32])
	}
	return s
}

// ids are the parts of names that differ from run to run.
var ids = regexp.MustCompile(`(\.nodeprep|original/|^)(-?)[0-9a-f]{16}(-\d+)?`)

func withoutIDs(s string) string {
	if !strings.Contains(s, "nodeprep") {
		return s
	}
	return ids.ReplaceAllString(s, "${1}${2}ID")
}

// timeless is a receipt or record without what differs between two runs.
func timeless(text string) string {
	var v any
	if err := json.Unmarshal([]byte(text), &v); err != nil {
		return text
	}
	var strip func(any) any
	strip = func(v any) any {
		switch v := v.(type) {
		case map[string]any:
			if v["salted"] == true {
				delete(v, "sha256")
			}
			for key := range v {
				switch key {
				case "id", "salt", "time", "mtime", "inode", "source":
					delete(v, key)
				default:
					v[key] = strip(v[key])
				}
			}
		case []any:
			for i := range v {
				v[i] = strip(v[i])
			}
		case string:
			return withoutIDs(v)
		}
		return v
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetIndent("", " ")
	if err := enc.Encode(strip(v)); err != nil {
		return err.Error()
	}
	return out.String()
}

// child runs a job in a process of its own and reports whether that was killed, and how
// many calls it made if not.
func child(t *testing.T, job childJob) (killed bool, calls int) {
	t.Helper()
	c := childCommand(t, job)
	out, err := c.CombinedOutput()
	var exit *exec.ExitError
	if errors.As(err, &exit) && exit.Sys().(syscall.WaitStatus).Signal() == syscall.SIGKILL && t.Context().Err() == nil {
		return true, 0
	}
	if err != nil {
		t.Fatalf("%s, to be killed at %d: %v\n%s", job.Verb, job.Kill, err, out)
	}
	if i := bytes.Index(out, []byte("calls=")); i >= 0 {
		_, err = fmt.Sscanf(string(out[i:]), "calls=%d", &calls)
	} else {
		err = io.ErrUnexpectedEOF
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", job.Verb, err, out)
	}
	return false, calls
}

// childCommand is this test binary about to do a job.
func childCommand(t *testing.T, job childJob, prefix ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(job)
	if err != nil {
		t.Fatal(err)
	}
	args := append(slices.Clone(prefix), exe, "-test.run=^TestChild$", "-test.timeout=60s")
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	// One that is killed does not tidy up; what it leaves goes with the programs.
	c.Env = append(os.Environ(), childEnv+"="+string(text), "TMPDIR="+job.Programs, "GORACE=atexit_sleep_ms=0", "GOGC=off")
	return c
}

// recovered recovers a root and holds it against what it was before the operation and
// what an undisturbed one makes of it. It reports whether it is the new one.
func (m *matrix) recovered(t *testing.T, op *operation, root string, before tree, what string) (isNew bool) {
	t.Helper()
	n := m.node(t, root, op.verb)
	got, err := Recover(t.Context(), n.h, n.recovery())
	if err != nil {
		t.Errorf("%s: recover: %v", what, err)
		return false
	}
	if len(got.Warnings) > 0 {
		t.Errorf("%s: recover: %v", what, got.Warnings)
	}
	now := treeOf(t, root)
	old := differs(m.exactly(before), m.exactly(now))
	if old != "" {
		isNew = true
		if diff := differs(op.after, now.relativeTo(before)); diff != "" {
			if len(diff) > len(old) || got.Outcome == WasReverted {
				diff = old
			}
			t.Errorf("%s: after recovery (%s) the root is neither the old one nor the new; it differs (-want +got):\n%s", what, got.Outcome, diff)
			return isNew
		}
	}
	if isNew && got.Outcome == WasReverted || !isNew && got.Outcome == WasFinished {
		t.Errorf("%s: recovery says %q, and the root is new: %v", what, got.Outcome, isNew)
	}
	return isNew
}

// goesOn proves that a recovered root is as good as any: the operation, done again where
// it was undone, makes what it would have made, and elsewhere the next one succeeds.
func (m *matrix) goesOn(t *testing.T, op *operation, root string, before tree, isNew bool, what string) {
	t.Helper()
	if !isNew {
		n := m.node(t, root, op.verb)
		if err := n.do(t.Context(), op.verb); err != nil {
			t.Errorf("%s: %s after recovery: %v", what, op.verb, err)
			return
		}
		if diff := differs(op.after, treeOf(t, root).relativeTo(before)); diff != "" {
			t.Errorf("%s: %s after recovery makes something else (-want +got):\n%s", what, op.verb, diff)
		}
		return
	}
	// The new root is as good a place to go on from.
	next := map[string]string{"install": "upgrade", "upgrade": "rollback", "rollback": "upgrade", "uninstall": "install"}[op.verb]
	n := m.node(t, root, next)
	if err := n.do(t.Context(), next); err != nil {
		t.Errorf("%s: %s after recovery: %v", what, next, err)
	}
	n.noDebris()
}

// nothingToDo proves that a second recovery and a diff with the state that belongs to a
// root find nothing to do.
func (m *matrix) nothingToDo(t *testing.T, op *operation, root string, isNew bool, what string) {
	t.Helper()
	n := m.node(t, root, op.verb)
	p := &points{fail: -1}
	n.watch(p)
	settled := treeOf(t, root).exactly()
	if got, err := Recover(t.Context(), n.h, n.recovery()); err != nil || got.Outcome != NothingPending || p.n != 0 {
		t.Errorf("%s: a second recovery says %+v, %v, and makes %d changes", what, got, err, p.n)
	}
	if diff := differs(settled, treeOf(t, root).exactly()); diff != "" {
		t.Errorf("%s: a second recovery changes the root:\n%s", what, diff)
	}
	state := map[string]string{"install new": "again", "upgrade new": "upgrade", "upgrade old": "again",
		"rollback old": "upgrade", "rollback new": "rollback", "uninstall old": "uninstall"}[op.verb+map[bool]string{true: " new", false: " old"}[isNew]]
	if state == "" {
		return // nothing is installed
	}
	n = m.node(t, root, state)
	if op.verb == "rollback" && isNew {
		// Other than the state of then, nodeprep's own unit is the new one.
		n.file(unitDir + "/" + recoverUnit).Content = []byte(n.read(unitDir + "/" + recoverUnit))
	}
	want := []string{}
	if op.verb == "upgrade" && !isNew {
		want = []string{"update file /usr/local/bin/crictl"} // as somebody left it
	}
	other := func(a string) bool {
		// On a running host images stay as they were, also in a rollback.
		return strings.HasPrefix(a, "set ") || op.verb == "rollback" && isNew && m.source == aBundle && strings.Contains(a, " image ")
	}
	if plan := n.diff(); !slices.Equal(slices.DeleteFunc(actions(plan), other), want) {
		t.Errorf("%s: a diff finds %v, want %v", what, actions(plan), want)
	}
}

// workers is how many children run side by side.
const workers = 2

// everyNth makes the crash matrix and its kin coarser where -short would be too coarse.
var everyNth = flag.Int("points", 1, "test every `N`th point only")

// stride is by how much a test goes through its points: all of them, unless in a hurry. What
// is killed here has hardly two threads, so that the race detector sees the fewest.
func stride(t *testing.T, hurried int) int {
	t.Helper()
	step := max(*everyNth, 1)
	switch {
	case testing.Short() && underRace:
		step = 3 * hurried
	case testing.Short():
		step = hurried
	}
	if step > 1 {
		t.Logf("only every %dth point is tested", step)
	}
	return step
}

// TestCrashMatrix kills every operation at every point. A point is a moment right before
// or right after a call, as both are counted.
func TestCrashMatrix(t *testing.T) {
	m := newMatrix(t)
	step := stride(t, 13)
	total := 0
	for _, verb := range []string{"install", "upgrade", "rollback", "uninstall"} {
		total += m.crash(t, m.verbs[verb], step)
	}
	t.Logf("%d points in total, before and after each call counted as one", total)
	if total < 300 && step == 1 {
		t.Errorf("only %d points were tested, want at least 300", total)
	}
}

// TestCrashMatrixOfFilesystems is the same where kept files cannot be linked into the
// state directory, or not all.
func TestCrashMatrixOfFilesystems(t *testing.T) {
	m := newMatrix(t, "/usr", "/opt", "/var")
	step := stride(t, 61)
	if !testing.Short() {
		step *= 19
	}
	t.Logf("every %dth point is tested", step)
	for _, verb := range []string{"install", "upgrade", "rollback", "uninstall"} {
		m.crash(t, m.verbs[verb], step)
	}
}

// TestCrashMatrixOfBundles is the same with a bundle as the source of all: on a host that
// runs, and under a root where images wait for the first boot.
func TestCrashMatrixOfBundles(t *testing.T) {
	for _, tt := range []struct {
		source   source
		verbs    []string
		step     int
		hurrying int
	}{
		{aBundle, []string{"install", "upgrade"}, 1, 17},
		{aBundleOfARoot, []string{"install", "upgrade", "rollback", "uninstall"}, 3, 29},
	} {
		t.Run(string(tt.source), func(t *testing.T) {
			m := newMatrixFrom(t, tt.source)
			step := stride(t, tt.hurrying)
			if !testing.Short() {
				step *= tt.step
			}
			t.Logf("every %dth point is tested", step)
			for _, verb := range tt.verbs {
				m.crash(t, m.verbs[verb], step)
			}
		})
	}
}

// crash kills an operation at its points, and returns at how many.
func (m *matrix) crash(t *testing.T, op *operation, step int) int {
	var mu sync.Mutex
	tested, old, now := 0, 0, 0
	start := time.Now()
	t.Run(op.verb, func(t *testing.T) {
		for w := range workers {
			t.Run(fmt.Sprint("worker ", w), func(t *testing.T) {
				t.Parallel()
				root := filepath.Join(m.dir, fmt.Sprint(op.verb, w))
				if len(m.mounts) > 0 {
					m.newRoot(t, root)
				}
				// What runs side by side may need a call more or less.
				for kill := 1 + w*step; kill <= 2*len(op.calls)+8 && !t.Failed(); kill += workers * step {
					copyTree(t, op.template, root)
					before := treeOf(t, root)
					killed, calls := child(t, m.job(root, op.verb, kill))
					if !killed && kill <= 2*calls {
						t.Errorf("%s was not killed at point %d of %d", op.verb, kill, 2*calls)
					}
					if killed {
						what := fmt.Sprintf("%s, killed at point %d of %d", op.verb, kill, 2*len(op.calls))
						isNew := m.recovered(t, op, root, before, what)
						if kill/step%16 == 0 || isNew && kill%4 == 0 {
							m.nothingToDo(t, op, root, isNew, what)
						}
						if kill%2 == 1 || isNew || step > 1 {
							// After a call is as before the next one, for whoever goes on from there.
							m.goesOn(t, op, root, before, isNew, what)
						}
						mu.Lock()
						tested++
						if isNew {
							now++
						} else {
							old++
						}
						mu.Unlock()
					}
					m.clear(t, root)
				}
			})
		}
	})
	t.Logf("%s: %d points, recovered to the old root %d times and to the new one %d times, in %v", op.verb, tested, old, now, time.Since(start).Round(time.Second))
	if step == 1 && (old == 0 || now == 0) {
		t.Errorf("%s: recovered to the old root %d times and to the new one %d times; want both", op.verb, old, now)
	}
	return tested
}

// job is what a child shall do to one of the roots.
func (m *matrix) job(root, verb string, kill int) childJob {
	return childJob{Root: root, Programs: m.programs, Verb: verb, Kill: kill, Big: len(m.mounts) > 0, Source: m.source}
}

// interruption is a root in which an operation, or its recovery, was killed.
type interruption struct {
	op   *operation
	name string
	root string
	// before is the root of before the operation, with the inodes that root has.
	before tree
}

// interruptions kills an operation once in each part of it.
func (m *matrix) interruptions(t *testing.T, op *operation) []*interruption {
	t.Helper()
	var journals []int // calls that put a journal into place
	last := 0          // the one with which the operation is done
	for i, c := range op.calls {
		c = strings.TrimSuffix(c, "/var") // the first journal comes with its directories
		switch {
		case strings.HasPrefix(c, "rename ") && (strings.HasSuffix(c, "/journal.json") || c != op.calls[i]):
			journals = append(journals, i+1)
			last = i + 1
		case strings.HasPrefix(c, "rename ") && strings.HasSuffix(c, "/receipt.json"):
			journals, last = append(journals, i+1), i+1
		}
	}
	between := func(from, to int, part float64) int { return from + int(float64(to-from)*part) }
	intent, commit, end := journals[0], journals[1], len(op.calls)
	before := journals[len(journals)-2]
	at := map[string]int{
		"staging":    between(intent, commit, 0.7),
		"committing": between(commit, max(before, commit+40), 0.1), "committing, halfway": between(commit, max(before, last-10), 0.5), "committed": last - 12,
		"done": last, "tidying up": between(last, end, 0.5),
	}
	if intent != before && commit != before {
		at["activating"] = before + 1
	}
	if op.verb == "install" || op.verb == "upgrade" {
		at["nodeprep itself is new"] = 1 + slices.IndexFunc(op.calls, func(c string) bool {
			return strings.HasPrefix(c, "rename ") && strings.HasSuffix(c, systemd.Program)
		})
	}
	var out []*interruption
	for _, name := range sortedKeys(at) {
		out = append(out, m.interrupt(t, op, op.template, nil, op.verb, at[name], name))
	}
	return out
}

// interrupt kills a verb after a number of calls. from is nil for a fresh root.
func (m *matrix) interrupt(t *testing.T, op *operation, template string, from tree, verb string, calls int, name string) *interruption {
	t.Helper()
	out := &interruption{op: op, name: name, root: filepath.Join(m.dir, op.verb+" "+name)}
	became := copyTree(t, template, out.root)
	out.before = treeOf(t, out.root)
	if from != nil {
		out.before = from.as(became)
	}
	if killed, _ := child(t, m.job(out.root, verb, 2*calls)); !killed {
		t.Fatalf("%s was not killed after %d calls", op.verb, calls)
	}
	return out
}

// as is the tree with the inodes that a copy of it has.
func (r tree) as(became map[uint64]uint64) tree {
	out := tree{}
	for p, s := range r {
		if s.inode != 0 {
			s.inode = became[s.inode]
		}
		out[p] = s
	}
	return out
}

// TestRecoveryIsKilled interrupts each operation in each of its parts, and then the
// recovery from that at every one of its own points. Most of these deaths are played: from
// the point on, every call of the writer and of systemd fails. On the disk that is the
// same, since there are no other changes (TestOnlyTheWriterWrites): what the process does
// after its death reaches nothing. Right after a call and right before the next are one
// point then; some of both, all over the recovery, are reached with a real SIGKILL.
func TestRecoveryIsKilled(t *testing.T) {
	m := newMatrix(t)
	step := stride(t, 11)
	total, killed := 0, 0
	var mu sync.Mutex
	for _, verb := range []string{"install", "upgrade", "rollback", "uninstall"} {
		start := time.Now()
		states := m.interruptions(t, m.verbs[verb])
		for _, st := range slices.Clone(states) {
			// The clean-up of a revert is a part of its own.
			calls := m.recoveryOf(t, st, filepath.Join(m.dir, "undisturbed"))
			i := slices.IndexFunc(calls, func(c string) bool { return strings.HasPrefix(c, "rename ") && strings.HasSuffix(c, "/journal.json") })
			if strings.HasPrefix(st.name, "committing,") && i >= 0 {
				states = append(states, m.interrupt(t, st.op, st.root, st.before, "recover", i+3, "cleaning up"))
			}
		}
		of := 0
		t.Run(verb, func(t *testing.T) {
			for w := range workers {
				t.Run(fmt.Sprint("worker ", w), func(t *testing.T) {
					t.Parallel()
					for i := w; i < len(states) && !t.Failed(); i += workers {
						n, k := m.killRecovery(t, states[i], filepath.Join(m.dir, fmt.Sprint("again ", verb, w)), step)
						mu.Lock()
						of, killed = of+n, killed+k
						mu.Unlock()
					}
				})
			}
		})
		t.Logf("%s: recovery from %d interrupted states, killed at %d points in %v", verb, len(states), of, time.Since(start).Round(time.Second))
		total += of
	}
	t.Logf("%d points of recovery in total, %d of them with SIGKILL", total, killed)
}

// recoveryOf lists the calls of an undisturbed recovery.
func (m *matrix) recoveryOf(t *testing.T, st *interruption, root string) []string {
	t.Helper()
	became := copyTree(t, st.root, root)
	n := m.node(t, root, st.op.verb)
	p := &points{fail: -1}
	n.watch(p)
	n.must("recover")
	m.recovered(t, st.op, root, st.before.as(became), st.op.verb+", "+st.name)
	if err := os.RemoveAll(root); err != nil {
		t.Fatal(err)
	}
	return p.calls
}

func (m *matrix) killRecovery(t *testing.T, st *interruption, root string, step int) (tested, kills int) {
	t.Helper()
	calls := m.recoveryOf(t, st, root)
	for point := 1; point <= 2*len(calls) && !t.Failed(); point += step {
		reallyKilled := point%20 < 2
		if !reallyKilled && point%2 == 0 && step == 1 {
			continue // the next one is this one, played
		}
		before := st.before.as(copyTree(t, st.root, root))
		what := fmt.Sprintf("%s, %s, recovery killed at point %d of %d", st.op.verb, st.name, point, 2*len(calls))
		if reallyKilled {
			kills++
			child(t, m.job(root, "recover", point))
		} else {
			n := m.node(t, root, st.op.verb)
			// Before the n-th call and after the one before it are the same here.
			n.watch(&points{fail: point / 2})
			if _, err := Recover(t.Context(), n.h, n.recovery()); err == nil && point < 2*len(calls)-1 {
				t.Logf("%s: it did not notice", what)
			}
		}
		tested++
		isNew := m.recovered(t, st.op, root, before, what)
		if tested%8 == 0 {
			m.nothingToDo(t, st.op, root, isNew, what)
		}
		if tested%8 == 4 {
			m.goesOn(t, st.op, root, before, isNew, what)
		}
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
	}
	return tested, kills
}
