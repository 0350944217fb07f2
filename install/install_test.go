package install

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/txtar"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
	"github.com/nodeprep/nodeprep/systemd"
)

// node is a temporary root with everything that Apply asks for.
type node struct {
	t        *testing.T
	dir      string
	h        *host.Host
	state    *desired.State
	releases releases
	services *services
	daemon   *fakeDaemon
	opt      ApplyOptions
	// image says that the root does not run.
	image bool
}

// releases are artifacts made of thin air: component and version to file contents.
type releases map[string]map[string]string

func (r releases) Obtain(_ context.Context, a desired.Artifact, _ func(done, total int64)) (*Archive, error) {
	files, ok := r[a.Component+" "+a.Version]
	if !ok {
		return nil, fmt.Errorf("install %s %s: not found", a.Component, a.Version)
	}
	sum := sha256.Sum256([]byte(a.Component + a.Version))
	out := &Archive{File: a.Files[0], SHA256: hex.EncodeToString(sum[:]), SHA256From: "test"}
	for _, c := range files {
		out.Unpacked += int64(len(c))
	}
	out.Unpack = func(ctx context.Context, create func(desired.Member, fs.FileMode) (io.WriteCloser, error)) error {
		for _, m := range a.Members {
			content, ok := files[m.Name]
			if !ok {
				continue
			}
			w, err := create(m, 0o755)
			if err != nil {
				return err
			}
			if _, err := io.WriteString(w, content); err != nil {
				return err
			}
			if err := w.Close(); err != nil {
				return err
			}
		}
		if content, bad := files["BAD"]; bad {
			return errors.New(content)
		}
		return nil
	}
	return out, nil
}

// services is a systemd that does what it is told, and notes it.
type services struct {
	mu     sync.Mutex
	active string
	asked  int
	did    []string
	fail   map[string]error
	// mainPID is the unit's process; 0 is 7, as the root's proc has it, -1 is none.
	mainPID int
}

func (s *services) act(what string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.did = append(s.did, what)
	err := s.fail[what]
	delete(s.fail, what) // the second try, by an undo, works
	return err
}

func (s *services) Properties(context.Context, string) (systemd.Properties, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	p := systemd.Properties{LoadState: "loaded", ActiveState: s.active, MainPID: 7}
	if s.mainPID != 0 {
		p.MainPID = max(s.mainPID, 0)
	}
	return p, nil
}
func (s *services) Reload(context.Context) error { return s.act("reload") }
func (s *services) Start(_ context.Context, u string) error {
	s.active = "active"
	return s.act("start " + u)
}
func (s *services) Restart(_ context.Context, u string) error { return s.act("restart " + u) }
func (s *services) Stop(_ context.Context, u string) error {
	s.active = "inactive"
	return s.act("stop " + u)
}

// fakeDaemon is a containerd that is healthy or not, version by version.
type fakeDaemon struct {
	sick     map[string]error
	asked    []string
	imported []string
	// images are those that it has, by name; silent is why it does not list them.
	images map[string]daemon.Image
	silent error
	asks   int // how often it was asked for them
	pins   []string
	pid    int // who listens; 0 is the unit's own process
	// tasks run under it, containers are known to it; stopped tells that tasks were ended.
	tasks      []daemon.Task
	containers []daemon.Container
	lost       []daemon.Task // by the shims' watch
	stopped    bool
}

func (d *fakeDaemon) Tasks(context.Context, desired.Daemon) ([]daemon.Task, error) {
	return d.tasks, nil
}

func (d *fakeDaemon) Containers(context.Context, desired.Daemon) ([]daemon.Container, error) {
	return d.containers, nil
}

func (d *fakeDaemon) Watch([]daemon.Task) (ShimWatch, error) { return d, nil }

func (d *fakeDaemon) Ended(time.Time, time.Time) []daemon.Task { return d.lost }

func (d *fakeDaemon) Close() {}

func (d *fakeDaemon) StopTasks(context.Context, desired.Daemon) error {
	d.tasks, d.stopped = nil, true
	return nil
}

func (d *fakeDaemon) Healthy(_ context.Context, want desired.Daemon) error {
	d.asked = append(d.asked, want.Version)
	return d.sick[want.Version]
}

func (d *fakeDaemon) Process(context.Context, desired.Daemon) (int, error) {
	if d.pid != 0 {
		return d.pid, nil
	}
	return 7, nil
}

// Import takes what a containerd would, and nothing of an archive that is not whole.
func (d *fakeDaemon) Import(ctx context.Context, _ desired.Daemon, img desired.Image, archive io.Reader, _ *imagearchive.Archive) ([]daemon.Image, error) {
	b, err := io.ReadAll(archive)
	if err != nil {
		return nil, err
	}
	a, err := imagearchive.Inspect(ctx, bytes.NewReader(b))
	if err != nil {
		return nil, err
	}
	if err := d.sick["import "+filepath.Base(img.File)]; err != nil {
		return nil, err
	}
	d.imported = append(d.imported, fmt.Sprintf("%s pin=%v", filepath.Base(img.File), img.Pin))
	if d.images == nil {
		d.images = map[string]daemon.Image{}
	}
	var out []daemon.Image
	for _, i := range a.Images {
		for _, name := range i.Names {
			is := daemon.Image{Name: name, Digest: i.Digest, Pinned: img.Pin || d.images[name].Pinned}
			is.Changed = is != d.images[name]
			out = append(out, is)
			is.Changed = false
			d.images[name] = is
		}
	}
	return out, nil
}

func (d *fakeDaemon) Images(context.Context, desired.Daemon) ([]daemon.Image, error) {
	d.asks++
	if d.silent != nil {
		return nil, d.silent
	}
	var out []daemon.Image
	for _, name := range sortedKeys(d.images) {
		out = append(out, d.images[name])
	}
	return out, nil
}

func (d *fakeDaemon) Pin(_ context.Context, _ desired.Daemon, names []string) error {
	return d.pin(true, names)
}

func (d *fakeDaemon) Unpin(_ context.Context, _ desired.Daemon, names []string) error {
	return d.pin(false, names)
}

func (d *fakeDaemon) pin(pinned bool, names []string) error {
	what := "unpin"
	if pinned {
		what = "pin"
	}
	if err := d.sick[what]; err != nil {
		return err
	}
	for _, name := range names {
		d.pins = append(d.pins, what+" "+name)
		if img, ok := d.images[name]; ok {
			img.Pinned = pinned
			d.images[name] = img
		}
	}
	return nil
}

const unitText = "[Service]\nExecStart=/usr/local/bin/containerd\n\n[Install]\nWantedBy=multi-user.target\n"

// newNode is an empty root and a small but whole state for it.
func newNode(t *testing.T) *node {
	t.Helper()
	return nodeAt(t, t.TempDir())
}

// nodeAt is that state for a root which is there already.
func nodeAt(t *testing.T, dir string) *node {
	t.Helper()
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	n := &node{t: t, dir: root.Dir(), h: host.New(root)}
	n.releases = releases{
		"containerd 1.0.0": {"containerd": "daemon one", "ctr": "ctr", "containerd-shim-runc-v1": "old shim"},
		"containerd 2.0.0": {"containerd": "daemon two", "ctr": "ctr"},
		"runc 1.0.0":       {"runc": "runc one"},
		"runc 1.1.0":       {"runc": "runc two"},
	}
	n.state = &desired.State{
		Arch: "amd64",
		Artifacts: []desired.Artifact{
			{Component: "containerd", Version: "1.0.0", Arch: "amd64", Files: []string{"containerd-1.0.0.tar.gz"}, Members: []desired.Member{
				{Name: "containerd", Path: "/usr/local/bin/containerd", Effect: desired.EffectRestart},
				{Name: "ctr", Path: "/usr/local/bin/ctr"},
				{Name: "containerd-shim-runc-v1", Path: "/usr/local/bin/containerd-shim-runc-v1", Optional: true},
			}, Origin: diag.Origin{Path: "containerd.version", File: "node.yaml", Line: 3}},
			{Component: "runc", Version: "1.0.0", Arch: "amd64", Files: []string{"runc.amd64"}, Members: []desired.Member{
				{Name: "runc", Path: "/usr/local/sbin/runc"},
			}},
		},
		Dirs: []desired.Dir{{Path: "/etc/containerd/conf.d", Mode: 0o755}},
		Files: []desired.File{
			{Path: "/etc/containerd/config.toml", Content: []byte("version = 2\n"), Mode: 0o644, Format: desired.FormatTOML, Effect: desired.EffectRestart, Origin: diag.Origin{Path: "containerd", File: "node.yaml", Line: 2}},
			{Path: "/etc/containerd/certs.d/docker.io/hosts.toml", Content: []byte("server = \"https://a\"\n"), Mode: 0o644, Format: desired.FormatHosts},
			{Path: "/etc/containerd/certs.d/docker.io/secret.toml", Content: []byte("hunter2\n"), Mode: 0o600, Format: desired.FormatRaw, Secret: true},
			{Path: "/etc/systemd/system/containerd.service", Content: []byte(unitText), Mode: 0o644, Format: desired.FormatUnit, Effect: desired.EffectUnit},
		},
		Units:       []desired.Unit{{Name: "containerd.service", Enabled: true, Active: true}},
		Daemon:      desired.Daemon{Version: "1.0.0", Address: "/run/containerd/containerd.sock", Unit: "containerd.service", OOMScore: -999},
		Generations: 3,
	}
	n.opt = ApplyOptions{Version: "0.1.0", Artifacts: n.releases, Profiles: []string{"node.yaml"}}
	return n
}

// live makes the root look like a running one.
func (n *node) live() {
	n.services = &services{active: "inactive", fail: map[string]error{}}
	n.daemon = &fakeDaemon{sick: map[string]error{}}
	n.opt.Services, n.opt.Daemon, n.opt.live = n.services, n.daemon, true
	n.write("/proc/7/oom_score_adj", "-999\n")
	n.symlink("/usr/local/bin/containerd", "/proc/7/exe")
	n.h.Run = func(context.Context, host.Cmd) (host.Output, error) {
		return host.Output{Stdout: []byte("I am v1.0.0, 1.0.1~ds1, 1.1.0 and 2.0.0")}, nil
	}
	n.write("/sbin/modprobe", "")
}

func (n *node) write(p, content string) {
	n.t.Helper()
	real := filepath.Join(n.dir, p)
	if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.WriteFile(real, []byte(content), 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) read(p string) string {
	n.t.Helper()
	b, err := n.h.Root.ReadFile(p)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

func (n *node) file(p string) *desired.File {
	n.t.Helper()
	i := slices.IndexFunc(n.state.Files, func(f desired.File) bool { return f.Path == p })
	if i < 0 {
		n.t.Fatalf("the state has no %s", p)
	}
	return &n.state.Files[i]
}

func (n *node) diff() *Plan {
	n.t.Helper()
	rec, err := ReadReceipt(n.h.Root)
	if err != nil {
		n.t.Fatal(err)
	}
	plan, err := Diff(n.t.Context(), n.h, n.state, rec, n.opt.DiffOptions)
	if err != nil {
		n.t.Fatal(err)
	}
	return plan
}

func (n *node) tryApply(ctx context.Context) (*Result, error) {
	n.t.Helper()
	return Apply(ctx, n.h, n.diff(), n.opt)
}

func (n *node) apply() *Result {
	n.t.Helper()
	res, err := n.tryApply(n.t.Context())
	if err != nil {
		n.t.Fatalf("apply: %v", err)
	}
	return res
}

// tree lists everything under the root: type, mode, content or target, and with
// times the modification time and inode too.
func (n *node) tree(times bool, but ...string) []string {
	n.t.Helper()
	var out []string
	err := filepath.WalkDir(n.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		shown := strings.TrimPrefix(p, n.dir)
		if slices.Contains(but, shown) {
			if e.IsDir() {
				return fs.SkipDir
			}
			return nil
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprintf("%s %s", fi.Mode(), shown)
		switch {
		case fi.Mode().IsRegular():
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			sum := sha256.Sum256(b)
			line += " " + hex.EncodeToString(sum[:4])
		case fi.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(p)
			if err != nil {
				return err
			}
			line += " -> " + target
		}
		if times && !fi.IsDir() {
			line += fmt.Sprintf(" %s %d", fi.ModTime().Format(time.RFC3339Nano), fi.Sys().(*syscall.Stat_t).Ino)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// same fails the test when the root differs from a listing.
func (n *node) same(before []string, times bool, what string) {
	n.t.Helper()
	if diff := cmp.Diff(before, n.tree(times)); diff != "" {
		n.t.Errorf("%s: the root changed (-before +after):\n%s", what, diff)
	}
}

func (n *node) noDebris() {
	n.t.Helper()
	for _, line := range n.tree(false) {
		if strings.Contains(line, ".nodeprep-") {
			n.t.Errorf("left behind: %s", line)
		}
	}
}

// actions are the items that change something, as "action kind path".
func actions(p *Plan) []string {
	var out []string
	for _, it := range p.Items {
		if it.Action != Keep {
			out = append(out, fmt.Sprintf("%s %s %s", it.Action, it.Kind, it.Path))
		}
	}
	return out
}

func TestApplyToEmptyRoot(t *testing.T) {
	n := newNode(t)
	res := n.apply()
	for p, want := range map[string]string{
		"/usr/local/bin/containerd":                     "daemon one",
		"/usr/local/sbin/runc":                          "runc one",
		"/etc/containerd/config.toml":                   "version = 2\n",
		"/etc/containerd/certs.d/docker.io/secret.toml": "hunter2\n",
		"/etc/systemd/system/containerd.service":        unitText,
		// WantedBy= of the unit, followed through the link.
		"/etc/systemd/system/multi-user.target.wants/containerd.service": "",
	} {
		if want == "" {
			target, err := n.h.Root.Readlink(p)
			if err != nil || target != "/etc/systemd/system/containerd.service" {
				t.Errorf("%s -> %q, %v", p, target, err)
			}
			continue
		}
		if got := n.read(p); got != want {
			t.Errorf("%s = %q, want %q", p, got, want)
		}
	}
	for p, want := range map[string]fs.FileMode{
		"/usr/local/bin/containerd":                     0o755,
		"/etc/containerd/config.toml":                   0o644,
		"/etc/containerd/certs.d/docker.io/secret.toml": 0o600,
		"/etc/containerd/conf.d":                        0o755 | fs.ModeDir,
		StateDir:                                        0o700 | fs.ModeDir,
		ReceiptPath:                                     0o600,
	} {
		fi, err := n.h.Root.Lstat(p)
		if err != nil {
			t.Error(err)
		} else if fi.Mode() != want {
			t.Errorf("%s has mode %v, want %v", p, fi.Mode(), want)
		}
	}
	n.noDebris()
	if res.Generation != 1 {
		t.Errorf("generation %d, want 1", res.Generation)
	}
	rec, err := ReadReceipt(n.h.Root)
	if err != nil {
		t.Fatal(err)
	}
	own := rec.Find("/usr/local/bin/containerd")
	if own == nil || own.SHA256 != digest("", false, []byte("daemon one")) || own.Component != "containerd" || own.Origin.Line != 3 {
		t.Errorf("receipt has %+v", own)
	}
	if text := n.read(ReceiptPath); strings.Contains(text, digest("", false, []byte("hunter2\n"))) || strings.Contains(text, "hunter2") {
		t.Error("the receipt gives a secret away")
	}
	if in := rec.installed("runc"); in == nil || in.Version != "1.0.0" || !slices.Equal(in.Files, []string{"/usr/local/sbin/runc"}) {
		t.Errorf("receipt has %+v", in)
	}
}

func TestApplyAgainDoesNothing(t *testing.T) {
	n := newNode(t)
	n.apply()
	before := n.tree(true)
	plan := n.diff()
	if !plan.Empty() {
		t.Errorf("the second plan is not empty: %v", actions(plan))
	}
	n.opt.Preflight = func(context.Context) error { t.Error("an empty plan asks for checks"); return nil }
	n.opt.writer = &writer{before: func(_ int64, op, path string) error {
		t.Errorf("an empty plan makes a change: %s %s", op, path)
		return nil
	}}
	res, err := Apply(t.Context(), n.h, plan, n.opt)
	if err != nil || len(res.Changed) != 0 {
		t.Errorf("Apply = %+v, %v", res, err)
	}
	n.same(before, true, "second apply")
}

// TestRefused has every reason for which a plan is refused, and that a refusal leaves
// the root as it was.
func TestRefused(t *testing.T) {
	const config = "/etc/containerd/config.toml"
	tests := []struct {
		name      string
		prepare   func(n *node)
		want      []string // path and a part of the reason
		adoptable bool
	}{
		{"foreign file", func(n *node) { n.write(config, "x") }, []string{config, "exists and was not written by nodeprep"}, true},
		{"foreign binary", func(n *node) { n.write("/usr/local/bin/ctr", "x") }, []string{"/usr/local/bin/ctr", "exists and was not written by nodeprep"}, true},
		{"foreign optional binary", func(n *node) { n.write("/usr/local/bin/containerd-shim-runc-v1", "x") }, []string{"/usr/local/bin/containerd-shim-runc-v1", "not written by nodeprep"}, true},
		{"edited file", func(n *node) { n.apply(); n.write(config, "version = 3\n#") }, []string{config, "was changed since nodeprep wrote it: has 13 bytes, 12 were written"}, true},
		{"edited binary", func(n *node) { n.apply(); n.write("/usr/local/sbin/runc", "RUNC one") }, []string{"/usr/local/sbin/runc", "has other content than was written"}, true},
		{"link", func(n *node) {
			n.write("/opt/config.toml", "x")
			n.symlink("/opt/config.toml", config)
		}, []string{config, "is a symbolic link that nodeprep did not make"}, true},
		{"directory", func(n *node) { n.write(config+"/x", "x") }, []string{config, "is a directory that nodeprep did not make"}, false},
		{"named pipe", func(n *node) { n.fifo("/usr/local/bin/containerd") }, []string{"/usr/local/bin/containerd", "is a named pipe that nodeprep did not make"}, false},
		{"file in the way of a directory", func(n *node) { n.write("/etc/containerd", "x") }, []string{config, "/etc/containerd is a file where a directory is needed"}, false},
		{"masked unit", func(n *node) { n.symlink("/dev/null", "/etc/systemd/system/containerd.service") }, []string{"/etc/systemd/system/containerd.service", "is a symbolic link"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			tt.prepare(n)
			before := n.tree(true)
			_, err := n.tryApply(t.Context())
			var refused *NotOwnedError
			if !errors.As(err, &refused) {
				t.Fatalf("apply = %v, want a refusal", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("the error does not say %q:\n%v", want, err)
				}
			}
			if strings.Contains(err.Error(), "--adopt") != tt.adoptable {
				t.Errorf("adoptable = %v, want %v:\n%v", !tt.adoptable, tt.adoptable, err)
			}
			n.same(before, true, "refusal")
		})
	}
}

func (n *node) symlink(target, p string) {
	n.t.Helper()
	real := filepath.Join(n.dir, p)
	if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := os.Symlink(target, real); err != nil {
		n.t.Fatal(err)
	}
}

func (n *node) fifo(p string) {
	n.t.Helper()
	real := filepath.Join(n.dir, p)
	if err := os.MkdirAll(filepath.Dir(real), 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := syscall.Mkfifo(real, 0o644); err != nil {
		n.t.Fatal(err)
	}
}

func TestAdoptKeepsAndGivesBack(t *testing.T) {
	n := newNode(t)
	const config, hosts = "/etc/containerd/config.toml", "/etc/containerd/certs.d/docker.io/hosts.toml"
	n.write(hosts, "mine")
	n.symlink("/opt/config.toml", config)
	n.write("/opt/config.toml", "also mine")
	n.write("/usr/local/sbin/runc", "my runc")
	n.opt.Adopt = true
	n.apply()
	if got := n.read(hosts); got != "server = \"https://a\"\n" {
		t.Errorf("%s = %q", hosts, got)
	}
	if got := n.read("/opt/config.toml"); got != "also mine" {
		t.Errorf("the target of a link that was taken over has become %q", got)
	}
	rec, err := ReadReceipt(n.h.Root)
	if err != nil {
		t.Fatal(err)
	}
	if b := rec.Find(config).Before; b == nil || b.Kind != KindLink || b.Target != "/opt/config.toml" {
		t.Errorf("before %s there was %+v", config, b)
	}
	if b := rec.Find("/usr/local/sbin/runc").Before; b == nil || n.read(b.Path) != "my runc" {
		t.Errorf("before runc there was %+v", b)
	}
	// Generations come and go, an original stays.
	for i := range 5 {
		n.file(config).Content = fmt.Appendf(nil, "version = %d\n", i+3)
		n.apply()
	}
	if rec, err = ReadReceipt(n.h.Root); err != nil {
		t.Fatal(err)
	}
	if b := rec.Find(hosts).Before; b == nil || n.read(b.Path) != "mine" {
		t.Errorf("before %s there was %+v", hosts, b)
	}
	entries, err := n.h.Root.ReadDir(StateDir + "/generations")
	if err != nil || len(entries) != 3 {
		t.Errorf("%d generations are kept, want 3 (%v)", len(entries), err)
	}
	// No longer wanted: what was there comes back.
	n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return f.Path == hosts || f.Path == config })
	n.apply()
	if got := n.read(hosts); got != "mine" {
		t.Errorf("%s was given back as %q", hosts, got)
	}
	if target, err := n.h.Root.Readlink(config); err != nil || target != "/opt/config.toml" {
		t.Errorf("%s was given back as a link to %q, %v", config, target, err)
	}
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is more to do: %v", actions(plan))
	}
}

func TestUpgradeAndRemoval(t *testing.T) {
	n := newNode(t)
	n.apply()
	shim, secret := "/usr/local/bin/containerd-shim-runc-v1", "/etc/containerd/certs.d/docker.io/secret.toml"
	ctr, err := n.h.Root.Lstat("/usr/local/bin/ctr")
	if err != nil {
		t.Fatal(err)
	}
	n.state.Artifacts[0].Version = "2.0.0"
	n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return strings.Contains(f.Path, "certs.d") })
	want := []string{
		"update artifact containerd",
		"remove file " + secret,
		"remove file /etc/containerd/certs.d/docker.io/hosts.toml",
		"remove dir /etc/containerd/certs.d/docker.io",
		"remove dir /etc/containerd/certs.d",
	}
	if diff := cmp.Diff(want, actions(n.diff())); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	n.apply()
	if got := n.read("/usr/local/bin/containerd"); got != "daemon two" {
		t.Errorf("containerd = %q", got)
	}
	for _, p := range []string{shim, secret, "/etc/containerd/certs.d"} {
		if _, err := n.h.Root.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there (%v)", p, err)
		}
	}
	// What both releases have alike is not written again.
	if now, err := n.h.Root.Lstat("/usr/local/bin/ctr"); err != nil || !os.SameFile(ctr, now) {
		t.Errorf("ctr was replaced by itself (%v)", err)
	}
	if got := n.read(StateDir + "/generations/1/receipt.json"); !strings.Contains(got, `"1.0.0"`) {
		t.Error("the generation before has no receipt")
	}
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is more to do: %v", actions(plan))
	}
	n.noDebris()
}

func TestEditedAndUnwantedStays(t *testing.T) {
	n := newNode(t)
	n.apply()
	const hosts = "/etc/containerd/certs.d/docker.io/hosts.toml"
	n.write(hosts, "edited")
	n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return f.Path == hosts })
	plan := n.diff()
	if !plan.Empty() || !strings.Contains(plan.Warnings[0].String(), hosts) {
		t.Errorf("plan %v, warnings %v; want nothing to do and a word about %s", actions(plan), plan.Warnings, hosts)
	}
	n.apply()
	if got := n.read(hosts); got != "edited" {
		t.Errorf("%s = %q", hosts, got)
	}
}

// A registry that the profile drops takes its folder along, with what it rendered there; what
// others put there stays, and is reported as long as it changes where pulls go. Folders of
// others are nobody's business. containerd runs on.
func TestRegistryThatLeaves(t *testing.T) {
	const root = "/etc/containerd/certs.d"
	const dir, left = root + "/quay.io", "is no longer wanted, and stays because notes.txt in it is not nodeprep's"
	n := newNode(t)
	n.live()
	without := slices.Clone(n.state.Files)
	n.state.Files = append(n.state.Files,
		desired.File{Path: dir + "/hosts.toml", Mode: 0o644, Content: []byte("server = 'https://m'\nca = ['ca.pem']\n"), Format: desired.FormatHosts},
		desired.File{Path: dir + "/ca.pem", Mode: 0o644, Content: []byte("ca")},
		desired.File{Path: dir + "/key.pem", Mode: 0o600, Secret: true, Content: []byte("key")},
	)
	n.apply()
	n.write(root+"/other/hosts.toml", "theirs")
	with := n.state.Files
	n.state.Files = without
	want := []string{"remove file " + dir + "/key.pem", "remove file " + dir + "/hosts.toml", "remove file " + dir + "/ca.pem", "remove dir " + dir}
	if diff := cmp.Diff(want, actions(n.diff())); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	// Another's is told of, as long as there are any of ours.
	const theirs = root + "/other"
	told := func(p *Plan) (list []string) {
		for _, w := range p.Warnings {
			if w.File == theirs && strings.Contains(w.Message, "is not nodeprep's, and stays") {
				continue
			}
			list = append(list, w.String())
		}
		return list
	}
	if plan := n.diff(); len(plan.Warnings) != 1 || len(told(plan)) != 0 {
		t.Errorf("%s is not told of: %v", theirs, plan.Warnings)
	}

	// With a file of somebody's in it.
	n.write(dir+"/notes.txt", "mine")
	plan := n.diff()
	if diff := cmp.Diff(append(want[:3:3], "leave dir "+dir), actions(plan)); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	for range 2 {
		if list := told(plan); len(list) != 1 || !strings.Contains(list[0], left) || !strings.Contains(list[0], "does not look at _default") {
			t.Errorf("warnings %v", plan.Warnings)
		}
		n.apply()
		plan = n.diff()
		if !plan.Empty() {
			t.Errorf("afterwards there is more to do: %v", actions(plan))
		}
	}
	if got := n.read(dir + "/notes.txt"); got != "mine" {
		t.Errorf("notes: %q", got)
	}
	n.remove(dir + "/notes.txt")
	n.apply()
	if _, err := n.h.Root.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there (%v)", dir, err)
	}
	if got := n.read(root + "/other/hosts.toml"); got != "theirs" {
		t.Errorf("another's folder: %q", got)
	}

	// It comes back, and goes whole.
	n.state.Files = with
	n.apply()
	n.state.Files = without
	n.apply()
	if _, err := n.h.Root.Lstat(dir); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%s is still there (%v)", dir, err)
	}
	n.noDebris()
}

// TestWhatRestarts shows that meaning decides, not bytes.
func TestWhatRestarts(t *testing.T) {
	const config, hosts, unit = "/etc/containerd/config.toml", "/etc/containerd/certs.d/docker.io/hosts.toml", "/etc/systemd/system/containerd.service"
	tests := []struct {
		name   string
		change func(n *node)
		want   []string
		reason string
	}{
		{"a comment", func(n *node) { n.file(config).Content = []byte("# hello\nversion = 2\n") }, []string{"update file " + config}, ""},
		{"order and spelling", func(n *node) { n.file(unit).Content = []byte("# x\n" + unitText) }, []string{"update file " + unit, "reload unit systemd"}, ""},
		{"a value", func(n *node) {
			n.file(config).Content = []byte("version = 2\n[plugins.'io.containerd.grpc.v1.cri']\nsandbox_image = 'x'\n")
		},
			[]string{"update file " + config, "restart unit containerd.service"}, "config.toml: plugins changed"},
		{"hosts.toml", func(n *node) { n.file(hosts).Content = []byte("server = 'https://b'\n") }, []string{"update file " + hosts}, ""},
		{"the unit", func(n *node) {
			n.file(unit).Content = []byte(strings.Replace(unitText, "[Install]", "KillMode=mixed\n[Install]", 1))
		},
			[]string{"update file " + unit, "reload unit systemd", "restart unit containerd.service"}, "containerd.service: Service.KillMode changed"},
		{"runc", func(n *node) { n.state.Artifacts[1].Version = "1.1.0" }, []string{"update artifact runc"}, ""},
		{"containerd", func(n *node) { n.state.Artifacts[0].Version = "2.0.0" },
			[]string{"update artifact containerd", "restart unit containerd.service"}, "containerd: 1.0.0 becomes 2.0.0"},
		{"a mode", func(n *node) { n.file(config).Mode = 0o640 }, []string{"update file " + config}, ""},
		{"an adopted edit that says the same", func(n *node) { n.write(config, "version=2"); n.opt.Adopt = true }, []string{"update file " + config}, ""},
		{"a missing file", func(n *node) { n.remove(config) }, []string{"create file " + config, "restart unit containerd.service"}, "config.toml: is missing"},
		{"a missing binary", func(n *node) { n.remove("/usr/local/bin/containerd") }, []string{"update artifact containerd", "restart unit containerd.service"}, "containerd is missing"},
		{"another missing binary", func(n *node) { n.remove("/usr/local/bin/ctr") }, []string{"update artifact containerd"}, ""},
		{"a stopped daemon", func(n *node) { n.services.active = "failed" }, []string{"start unit containerd.service"}, "is failed"},
		{"a disabled unit", func(n *node) { n.remove("/etc/systemd/system/multi-user.target.wants/containerd.service") },
			[]string{"enable unit containerd.service", "reload unit systemd"}, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.apply()
			if diff := cmp.Diff([]string{"reload", "start containerd.service"}, n.services.did); diff != "" {
				t.Errorf("first apply (-want +got):\n%s", diff)
			}
			n.services.did = nil
			tt.change(n)
			plan := n.diff()
			if diff := cmp.Diff(tt.want, actions(plan)); diff != "" {
				t.Errorf("plan (-want +got):\n%s", diff)
			}
			if last := plan.Items[len(plan.Items)-1]; tt.reason != "" && last.Reason != tt.reason {
				t.Errorf("reason %q, want %q", last.Reason, tt.reason)
			}
			if _, err := Apply(t.Context(), n.h, plan, n.opt); err != nil {
				t.Fatal(err)
			}
			var did []string
			for _, a := range tt.want {
				verb, rest, _ := strings.Cut(a, " unit ")
				switch verb {
				case "reload":
					did = append(did, verb)
				case "restart", "start":
					did = append(did, verb+" "+rest)
				}
			}
			if diff := cmp.Diff(did, n.services.did); diff != "" {
				t.Errorf("systemd was told (-want +got):\n%s", diff)
			}
			n.services.asked = 0
			if plan := n.diff(); !plan.Empty() {
				t.Errorf("afterwards there is more to do: %v", actions(plan))
			}
			if n.services.asked != 1 {
				t.Errorf("systemd was asked %d times, want once", n.services.asked)
			}
		})
	}
}

func (n *node) remove(p string) {
	n.t.Helper()
	if err := os.Remove(filepath.Join(n.dir, p)); err != nil {
		n.t.Fatal(err)
	}
}

// TestIdenticalBinaryDoesNotRestart: a repackaged release with the same daemon in it.
func TestIdenticalBinaryDoesNotRestart(t *testing.T) {
	n := newNode(t)
	n.live()
	n.apply()
	n.services.did = nil
	n.releases["containerd 1.0.1"] = map[string]string{"containerd": "daemon one", "ctr": "newer ctr"}
	n.state.Artifacts[0].Version = "1.0.1"
	res := n.apply()
	if len(n.services.did) > 0 || len(res.Restarted) > 0 {
		t.Errorf("systemd was told %v", n.services.did)
	}
	if got := n.read("/usr/local/bin/ctr"); got != "newer ctr" {
		t.Errorf("ctr = %q", got)
	}
}

// faults are what goes wrong after the commit.
func TestFailureAfterCommitIsUndone(t *testing.T) {
	tests := []struct {
		name  string
		fail  func(n *node)
		phase Phase
		want  string
		did   []string
	}{
		{"restart", func(n *node) { n.services.fail["restart containerd.service"] = errors.New("it died") }, PhaseActivate, "it died",
			[]string{"reload", "restart containerd.service", "stop containerd.service", "reload", "start containerd.service"}},
		{"reload", func(n *node) { n.services.fail["reload"] = errors.New("no bus") }, PhaseActivate, "no bus", []string{"reload", "reload"}},
		{"health", func(n *node) { n.daemon.sick["2.0.0"] = errors.New("CRI plugin is skipped") }, PhaseVerify, "CRI plugin is skipped",
			[]string{"reload", "restart containerd.service", "stop containerd.service", "reload", "start containerd.service"}},
		{"oom score", func(n *node) { n.write("/proc/7/oom_score_adj", "0\n") }, PhaseVerify, "oom_score_adj 0, want -999",
			[]string{"reload", "restart containerd.service", "stop containerd.service", "reload", "start containerd.service"}},
		{"module", func(n *node) {
			n.state.Modules = []string{"no_such_module"}
			n.h.Run = func(_ context.Context, c host.Cmd) (host.Output, error) {
				if c.Path == "/sbin/modprobe" {
					return host.Output{}, errors.New("modprobe: not found")
				}
				return host.Output{Stdout: []byte("2.0.0")}, nil
			}
		}, PhaseActivate, "load module no_such_module", nil},
		{"setting", func(n *node) {
			n.write("/proc/sys/net/ipv4/ip_forward", "0\n")
			n.state.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "net.x.y": "1"}
		}, PhaseActivate, "set net.x.y: this kernel has no such setting", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.opt.Adopt = true
			n.write("/usr/local/sbin/runc", "foreign")
			n.apply()
			n.services.did, n.daemon.asked = nil, nil
			n.releases["containerd 2.0.0"] = map[string]string{"containerd": "daemon two", "ctr": "newer ctr"}
			n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0"
			n.file("/etc/systemd/system/containerd.service").Content = []byte(unitText + "Alias=x\n")
			n.state.Files = append(n.state.Files, desired.File{Path: "/etc/new/dir/file", Mode: 0o600, Content: []byte("x")})
			n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return strings.HasSuffix(f.Path, "docker.io/secret.toml") })
			tt.fail(n)
			before := n.tree(true, "/proc")
			_, err := n.tryApply(t.Context())
			var reverted *RevertedError
			if !errors.As(err, &reverted) || reverted.Phase != tt.phase || !strings.Contains(err.Error(), tt.want) {
				t.Fatalf("apply = %v, want a revert of %s for %q", err, tt.phase, tt.want)
			}
			// All of the old state, the inodes too: the receipt still knows each file at sight.
			if diff := cmp.Diff(before, n.tree(true, "/proc")); diff != "" {
				t.Errorf("undo: the root changed (-before +after):\n%s", diff)
			}
			if tt.name == "setting" && n.read("/proc/sys/net/ipv4/ip_forward") != "0\n" {
				t.Error("a kernel setting was not put back")
			}
			if tt.did != nil {
				if diff := cmp.Diff(tt.did, n.services.did); diff != "" {
					t.Errorf("systemd was told (-want +got):\n%s", diff)
				}
			}
			if slices.Contains(tt.did, "restart containerd.service") && n.daemon.asked[len(n.daemon.asked)-1] != "1.0.0" {
				t.Errorf("the old daemon was not asked how it is: %v", n.daemon.asked)
			}
		})
	}
}

func TestFirstStartFails(t *testing.T) {
	n := newNode(t)
	n.live()
	n.services.fail["start containerd.service"] = errors.New("exit status 203")
	before := n.tree(true)
	_, err := n.tryApply(t.Context())
	var reverted *RevertedError
	if !errors.As(err, &reverted) {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "undo of a first install")
	if want := []string{"reload", "start containerd.service", "stop containerd.service", "reload", "reset-failed containerd.service"}; !slices.Equal(n.services.did, want) {
		t.Errorf("systemd was told %v, want %v", n.services.did, want)
	}
}

func TestStranded(t *testing.T) {
	n := newNode(t)
	n.live()
	n.apply()
	n.state.Artifacts[0].Version, n.state.Daemon.Version = "2.0.0", "2.0.0"
	n.daemon.sick["2.0.0"] = errors.New("new one is ill")
	n.opt.writer = &writer{before: func(_ int64, op, path string) error {
		if op == "rename" && path == filepath.Join(n.dir, "/usr/local/bin/containerd") {
			n.daemon.sick["1.0.0"] = errors.New("old one too")
		}
		return nil
	}}
	_, err := n.tryApply(t.Context())
	var stranded *StrandedError
	if !errors.As(err, &stranded) || !strings.Contains(err.Error(), "new one is ill") || !strings.Contains(err.Error(), "old one too") {
		t.Fatalf("apply = %v, want both faults", err)
	}
	if got := n.read("/usr/local/bin/containerd"); got != "daemon one" {
		t.Errorf("containerd = %q", got)
	}
}

func TestStrandedSaysWhatIsWhere(t *testing.T) {
	n := newNode(t)
	n.apply()
	n.state.Artifacts[0].Version = "2.0.0"
	// From the rename of the last change on, nothing can be written any more.
	dead := false
	n.opt.writer = &writer{before: func(_ int64, op, path string) error {
		if dead = dead || op == "remove" && strings.HasSuffix(path, "shim-runc-v1"); dead {
			return errors.New("disk died")
		}
		return nil
	}}
	_, err := n.tryApply(t.Context())
	var stranded *StrandedError
	if !errors.As(err, &stranded) {
		t.Fatalf("apply = %v", err)
	}
	if want := "/usr/local/bin/containerd: what was there before is /var/lib/nodeprep/generations/1/"; !strings.Contains(err.Error(), want) {
		t.Errorf("the error does not say %q:\n%v", want, err)
	}
}

// TestEveryWriteFails makes every single change of an apply fail in turn.
func TestEveryWriteFails(t *testing.T) {
	for _, kind := range []string{"install", "upgrade"} {
		t.Run(kind, func(t *testing.T) {
			total := int64(1)
			undone := 0
			for at := int64(1); at <= total; at++ {
				n := newNode(t)
				n.write("/etc/containerd/config.toml", "foreign")
				n.opt.Adopt = true
				if kind == "upgrade" {
					n.apply()
					n.state.Artifacts[0].Version = "2.0.0"
					n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
					n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return strings.Contains(f.Path, "certs.d") })
				}
				before := n.tree(true)
				w := &writer{chown: n.h.UID == 0}
				var op string
				w.before = func(call int64, what, path string) error {
					if call == at {
						op = what + " " + path
						return syscall.EIO
					}
					return nil
				}
				n.opt.writer = w
				res, err := n.tryApply(t.Context())
				if err == nil {
					// Only after the receipt is in place a fault may be a mere warning.
					if len(res.Warnings) == 0 && w.calls.Load() >= at {
						t.Errorf("change %d (%s) failed and nobody was told", at, op)
					}
					if total = w.calls.Load(); at == 1 {
						t.Fatal("nothing was written")
					}
					n.noDebris()
					continue
				}
				total = max(total, at+1)
				if !errors.Is(err, syscall.EIO) {
					t.Errorf("change %d (%s): %v", at, op, err)
				}
				n.same(before, true, fmt.Sprintf("change %d (%s)", at, op))
				undone++
			}
			t.Logf("%s: %d changes, %d of them undone", kind, total, undone)
		})
	}
}

func TestFullDiskMetHalfway(t *testing.T) {
	n := newNode(t)
	before := n.tree(true)
	n.opt.writer = &writer{before: func(_ int64, op, path string) error {
		if op == "write" && strings.Contains(path, "containerd-shim") {
			return syscall.ENOSPC
		}
		return nil
	}}
	_, err := n.tryApply(t.Context())
	var full *SpaceError
	if !errors.As(err, &full) || !strings.Contains(err.Error(), "became full while writing") {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "full disk")
}

func TestNoSpaceIsFoundBefore(t *testing.T) {
	n := newNode(t)
	before := n.tree(true)
	n.opt.Artifacts = huge{n.releases}
	_, err := n.tryApply(t.Context())
	var full *SpaceError
	if !errors.As(err, &full) || len(full.Short) != 1 || full.Short[0].Needed < 1<<60 || full.Short[0].Available == 0 {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "no space")
}

// huge says of every release that it is larger than any disk.
type huge struct{ releases }

func (h huge) Obtain(ctx context.Context, a desired.Artifact, p func(int64, int64)) (*Archive, error) {
	out, err := h.releases.Obtain(ctx, a, p)
	if err == nil {
		out.Unpacked = 1 << 60
	}
	return out, err
}

func TestCancelWhileStaging(t *testing.T) {
	n := newNode(t)
	before := n.tree(true)
	why := errors.New("interrupted")
	ctx, cancel := context.WithCancelCause(t.Context())
	n.opt.writer = &writer{after: func(_ int64, op, path string) {
		if op == "create" && strings.Contains(path, ".ctr.") {
			cancel(why)
		}
	}}
	if _, err := n.tryApply(ctx); !errors.Is(err, why) {
		t.Fatalf("apply = %v, want %v", err, why)
	}
	n.same(before, true, "cancelled")
}

func TestCancelAfterCommitReverts(t *testing.T) {
	n := newNode(t)
	n.live()
	before := n.tree(true)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n.opt.writer = &writer{chown: n.h.UID == 0, after: func(_ int64, op, path string) {
		if op == "rename" && path == filepath.Join(n.dir, "/usr/local/bin/containerd") {
			cancel()
		}
	}}
	_, err := n.tryApply(ctx)
	var reverted *RevertedError
	if !errors.As(err, &reverted) || !errors.Is(err, context.Canceled) {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "cancelled after the commit")
}

func TestBadArchiveLeavesNothing(t *testing.T) {
	n := newNode(t)
	n.releases["runc 1.0.0"] = map[string]string{"runc": "half a ru", "BAD": "sha256 mismatch"}
	before := n.tree(true)
	if _, err := n.tryApply(t.Context()); err == nil || !strings.Contains(err.Error(), "sha256 mismatch") {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "bad archive")
}

func TestAllMissingArtifactsAreNamed(t *testing.T) {
	n := newNode(t)
	n.state.Artifacts[0].Version, n.state.Artifacts[1].Version = "9.0.0", "9.1.0"
	before := n.tree(true)
	_, err := n.tryApply(t.Context())
	if err == nil || !strings.Contains(err.Error(), "9.0.0") || !strings.Contains(err.Error(), "9.1.0") {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "missing artifacts")
}

func TestSecretsAreClosedFromTheFirstByte(t *testing.T) {
	n := newNode(t)
	n.opt.writer = &writer{after: func(_ int64, op, path string) {
		if op != "create" && op != "write" {
			return
		}
		fi, err := os.Lstat(path)
		if err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s %s: %v, %v", op, path, fi.Mode(), err)
		}
	}}
	n.apply()
	n.file("/etc/containerd/certs.d/docker.io/secret.toml").Content = []byte("hunter3\n")
	plan := n.diff()
	it := plan.find(KindFile, "/etc/containerd/certs.d/docker.io/secret.toml")
	if it.Action != Update || it.Old != nil || it.New != nil || !it.Secret {
		t.Errorf("a secret is in the plan: %+v", it)
	}
}

func TestStagingAppearsNowhereALoaderLooks(t *testing.T) {
	n := newNode(t)
	made := ""
	n.opt.writer = &writer{before: func(_ int64, op, path string) error {
		// The journal comes into place with the directories that hold it, by one rename.
		inState := strings.Contains(path, StateDir) || strings.HasPrefix(path, filepath.Join(n.dir, "/.var.nodeprep-"))
		if op == "mkdir" && !inState {
			made = path
		}
		if op == "create" && !inState {
			if made != "" {
				t.Errorf("%s is made before %s is staged", made, path)
			}
			if !strings.HasPrefix(filepath.Base(path), ".") {
				t.Errorf("%s is staged under a visible name", path)
			}
		}
		return nil
	}}
	n.state.Dirs = nil
	n.apply()
}

// TestLinksAreFollowed has the links of real hosts: merged /usr, a moved data directory.
func TestLinksAreFollowed(t *testing.T) {
	n := newNode(t)
	for _, d := range []string{"usr/lib", "usr/bin", "mnt/data", "var/lib"} {
		if err := os.MkdirAll(filepath.Join(n.dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	n.symlink("usr/lib", "/lib")
	n.symlink("/mnt/data", "/var/lib/containerd")
	n.symlink("/mnt/opt", "/opt") // dangling
	n.symlink("../../../../../../outside", "/srv")
	n.state.Files = append(n.state.Files,
		desired.File{Path: "/lib/modules-load.d/x.conf", Mode: 0o644, Content: []byte("a\n")},
		desired.File{Path: "/var/lib/containerd/x", Mode: 0o644, Content: []byte("b\n")},
		desired.File{Path: "/opt/cni/bin/x", Mode: 0o644, Content: []byte("c\n")},
		desired.File{Path: "/srv/x", Mode: 0o644, Content: []byte("d\n")},
	)
	n.state.Dirs = append(n.state.Dirs, desired.Dir{Path: "/var/lib/containerd", Mode: 0o711})
	n.apply()
	for link, target := range map[string]string{"/lib": "usr/lib", "/var/lib/containerd": "/mnt/data", "/opt": "/mnt/opt"} {
		if got, err := n.h.Root.Readlink(link); err != nil || got != target {
			t.Errorf("%s -> %q, %v", link, got, err)
		}
	}
	for p, want := range map[string]string{"/usr/lib/modules-load.d/x.conf": "a\n", "/mnt/data/x": "b\n", "/mnt/opt/cni/bin/x": "c\n", "/outside/x": "d\n"} {
		if got := n.read(p); got != want {
			t.Errorf("%s = %q", p, got)
		}
	}
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is more to do: %v", actions(plan))
	}
	n.state.Files = append(n.state.Files, desired.File{Path: "/usr/lib/modules-load.d/x.conf", Mode: 0o644})
	if _, err := Diff(t.Context(), n.h, n.state, nil, DiffOptions{}); err == nil || !strings.Contains(err.Error(), "wanted in the same place") {
		t.Errorf("two files for one place: %v", err)
	}
}

func TestChangedMeanwhile(t *testing.T) {
	n := newNode(t)
	plan := n.diff()
	n.write("/etc/containerd/config.toml", "somebody else's")
	before := n.tree(true)
	_, err := Apply(t.Context(), n.h, plan, n.opt)
	if err == nil || !strings.Contains(err.Error(), "/etc/containerd/config.toml: somebody else changed it meanwhile") {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "changed meanwhile")
}

func TestPlanIsMadeAnewAfterAnotherRun(t *testing.T) {
	n := newNode(t)
	stale := n.diff()
	n.apply()
	before := n.tree(true)
	res, err := Apply(t.Context(), n.h, stale, n.opt)
	if err != nil || len(res.Changed) > 0 {
		t.Fatalf("apply = %+v, %v", res, err)
	}
	n.same(before, true, "stale plan")
}

func TestOneAtATime(t *testing.T) {
	n := newNode(t)
	before := n.tree(true)
	unlock, err := Lock(n.h.Root)
	if err != nil {
		t.Fatal(err)
	}
	_, err = n.tryApply(t.Context())
	var locked *LockedError
	if !errors.As(err, &locked) || locked.PID != os.Getpid() || !strings.Contains(locked.Command, "test") {
		t.Errorf("apply = %v", err)
	}
	n.same(before, true, "locked")
	unlock()
	n.apply()
}

func TestPreflightFailureLeavesNothing(t *testing.T) {
	n := newNode(t)
	before := n.tree(true)
	n.opt.Preflight = func(context.Context) error { return errors.New("clock is wrong") }
	if _, err := n.tryApply(t.Context()); err == nil || err.Error() != "clock is wrong" {
		t.Errorf("apply = %v", err)
	}
	n.same(before, true, "preflight")
}

func TestNewerReceiptIsRefused(t *testing.T) {
	n := newNode(t)
	n.write(ReceiptPath, `{"format": 2, "nodeprep": "9.9.9", "owned": {}}`)
	if _, err := ReadReceipt(n.h.Root); err == nil || !strings.Contains(err.Error(), "nodeprep 9.9.9") {
		t.Errorf("ReadReceipt = %v", err)
	}
}

func TestKernel(t *testing.T) {
	n := newNode(t)
	n.live()
	n.write("/proc/sys/net/ipv4/ip_forward", "0\n")
	n.write("/proc/sys/net/ipv4/tcp_mem", "1\t2\t3\n")
	n.write("/sys/module/br_netfilter/refcnt", "0")
	var ran []string
	n.h.Run = func(_ context.Context, c host.Cmd) (host.Output, error) {
		ran = append(ran, filepath.Base(c.String()))
		if c.Path == "/sbin/modprobe" {
			n.write("/proc/sys/net/bridge/x", "0\n")
			n.write("/sys/module/"+c.Args[1]+"/refcnt", "0")
		}
		return host.Output{Stdout: []byte("1.0.0")}, nil
	}
	n.state.Modules = []string{"br-netfilter", "overlay"}
	n.state.Sysctl = map[string]string{"net.ipv4.ip_forward": "1", "net/bridge/x": "1", "net.ipv4.tcp_mem": "1 2 3"}
	n.apply()
	if !slices.Contains(ran, "modprobe -- overlay") || slices.Contains(ran, "modprobe -- br-netfilter") {
		t.Errorf("ran %v", ran)
	}
	for p, want := range map[string]string{"/proc/sys/net/ipv4/ip_forward": "1\n", "/proc/sys/net/bridge/x": "1\n", "/proc/sys/net/ipv4/tcp_mem": "1\t2\t3\n"} {
		if got := n.read(p); got != want {
			t.Errorf("%s = %q, want %q", p, got, want)
		}
	}
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is more to do: %v", actions(plan))
	}
	// Under a root that does not run, none of that is anybody's business.
	n.opt.live, n.opt.Services = false, nil
	n.write("/proc/sys/net/ipv4/ip_forward", "0\n")
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("plan for a root that is not running: %v", actions(plan))
	}
}

func TestStagedProgramsAreAsked(t *testing.T) {
	tests := []struct {
		name    string
		version string
		dump    error
		want    string
	}{
		{"good", "containerd github.com/containerd/containerd 1.0.0~ds1", nil, ""},
		{"other version", "containerd containerd.io 11.0.0", nil, `says it is "containerd containerd.io 11.0.0", want 1.0.0`},
		{"bad config", "v1.0.0", &host.ExitError{Code: 1, Stderr: "containerd: invalid plugin key"}, "validate /etc/containerd/config.toml: containerd 1.0.0 does not accept it: containerd: invalid plugin key"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.state.Daemon.Binary, n.state.Daemon.ConfigPath = "/usr/local/bin/containerd", "/etc/containerd/config.toml"
			n.h.Run = func(_ context.Context, c host.Cmd) (host.Output, error) {
				if fi, err := os.Stat(c.Path); err != nil || fi.Mode().Perm() != 0o755 {
					t.Errorf("%s cannot be run: %v", c, err)
				}
				if len(c.Args) > 1 {
					if b, err := os.ReadFile(c.Args[1]); err != nil || string(b) != "version = 2\n" {
						t.Errorf("%s reads %q, %v", c, b, err)
					}
					return host.Output{}, tt.dump
				}
				if strings.Contains(c.Path, "runc.nodeprep") {
					return host.Output{Stdout: []byte("runc version 1.0.0\n")}, nil
				}
				return host.Output{Stdout: []byte(tt.version)}, nil
			}
			before := n.tree(true)
			_, err := n.tryApply(t.Context())
			if tt.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("apply = %v, want %q", err, tt.want)
			}
			n.same(before, true, "validate")
		})
	}
}

func TestNothingIsRunUnderAnotherRoot(t *testing.T) {
	n := newNode(t)
	n.state.Daemon.Binary, n.state.Daemon.ConfigPath = "/usr/local/bin/containerd", "/etc/containerd/config.toml"
	n.state.Modules, n.state.Sysctl = []string{"overlay"}, map[string]string{"a.b": "1"}
	n.h.Run = func(_ context.Context, c host.Cmd) (host.Output, error) {
		t.Errorf("%s was run", c)
		return host.Output{}, nil
	}
	n.apply()
}

func TestDrift(t *testing.T) {
	n := newNode(t)
	n.apply()
	rec, err := ReadReceipt(n.h.Root)
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(n.dir, "/etc/containerd/config.toml")
	fi, err := os.Lstat(config)
	if err != nil {
		t.Fatal(err)
	}
	// Same size, same time, same inode: only reading it tells.
	n.write("/etc/containerd/config.toml", "VERSION = 2\n")
	if err := os.Chtimes(config, fi.ModTime(), fi.ModTime()); err != nil {
		t.Fatal(err)
	}
	n.remove("/usr/local/sbin/runc")
	if err := os.Chmod(filepath.Join(n.dir, "/usr/local/bin/ctr"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(filepath.Join(n.dir, "/usr/local/bin/containerd"), time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	quick := []string{"/usr/local/bin/ctr has mode 0700, not 0755", "/usr/local/sbin/runc is missing"}
	deep := append([]string{"/etc/containerd/config.toml has other content than was written"}, quick...)
	for i, want := range [][]string{quick, deep} {
		drifted, err := Drift(t.Context(), n.h.Root, rec, i == 1)
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, d := range drifted {
			got = append(got, d.Path+" "+d.What)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("deep=%v (-want +got):\n%s", i == 1, diff)
		}
	}
}

func TestPhases(t *testing.T) {
	n := newNode(t)
	o := &watcher{}
	n.opt.Observer = o
	res := n.apply()
	want := []Phase{PhaseLock, PhaseStage, PhaseValidate, PhaseCommit, PhaseActivate, PhaseVerify, PhaseSettle}
	if !slices.Equal(o.phases, want) {
		t.Errorf("phases %v, want %v", o.phases, want)
	}
	if len(res.Phases) != len(want) {
		t.Errorf("the result has %v", res.Phases)
	}
	if got := o.done["containerd-1.0.0.tar.gz"]; got != int64(len("daemon onectrold shim")) {
		t.Errorf("progress reached %d bytes", got)
	}
}

type watcher struct {
	mu     sync.Mutex
	phases []Phase
	done   map[string]int64
}

func (w *watcher) PhaseStart(p Phase)                   { w.phases = append(w.phases, p) }
func (w *watcher) PhaseEnd(Phase, time.Duration, error) {}
func (w *watcher) Progress(name string, done, _ int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done == nil {
		w.done = map[string]int64{}
	}
	w.done[name] = done
}

// TestBeforeAfter applies the states of testdata to roots and compares what comes out.
func TestBeforeAfter(t *testing.T) {
	cases, err := filepath.Glob("testdata/*.txtar")
	if err != nil || len(cases) == 0 {
		t.Fatalf("no cases (%v)", err)
	}
	for _, file := range cases {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txtar"), func(t *testing.T) {
			ar, err := txtar.ParseFile(file)
			if err != nil {
				t.Fatal(err)
			}
			n := newNode(t)
			n.opt.Adopt = strings.Contains(string(ar.Comment), "\nadopt\n")
			want := map[string]string{}
			first, second := *n.state, *n.state
			first.Files, second.Files = nil, nil
			first.Dirs, second.Dirs, first.Units, second.Units = nil, nil, nil, nil
			first.Artifacts, second.Artifacts = nil, nil
			for _, f := range ar.Files {
				where, p, _ := strings.Cut(f.Name, "/")
				file := desired.File{Path: "/" + p, Content: f.Data, Mode: 0o644, Format: desired.FormatRaw}
				switch where {
				case "before":
					n.write(p, string(f.Data))
				case "first":
					first.Files = append(first.Files, file)
				case "state":
					second.Files = append(second.Files, file)
				case "after":
					want["/"+p] = string(f.Data)
				default:
					t.Fatalf("%s: want before/, first/, state/ or after/", f.Name)
				}
			}
			if len(first.Files) > 0 {
				n.state = &first
				n.apply()
			}
			n.state = &second
			n.apply()
			got := map[string]string{}
			err = filepath.WalkDir(n.dir, func(p string, e fs.DirEntry, err error) error {
				shown := strings.TrimPrefix(p, n.dir)
				if shown == "/var" {
					return fs.SkipDir
				}
				if err == nil && e.IsDir() && shown != "" {
					if inside, err := os.ReadDir(p); err != nil || len(inside) == 0 {
						got[shown+"/"] = "empty"
					}
				}
				if err != nil || e.IsDir() {
					return err
				}
				b, err := os.ReadFile(p)
				got[shown] = string(b)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("root (-want +got):\n%s", diff)
			}
		})
	}
}
