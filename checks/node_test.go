package checks

import (
	"context"
	"errors"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/systemd"
)

// files are a fake host's, by absolute path. A content that starts with "-> " makes a
// symbolic link; a path that ends with / makes a directory.
type files map[string]string

// write makes the files below dir.
func (f files) write(t *testing.T, dir string) {
	t.Helper()
	for p, content := range f {
		real := filepath.Join(dir, p)
		var err error
		switch target, isLink := strings.CutPrefix(content, "-> "); {
		case strings.HasSuffix(p, "/"):
			err = os.MkdirAll(real, 0o755)
		case isLink:
			err = errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.Symlink(target, real))
		default:
			err = errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, []byte(content), 0o755))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// overwrite makes plain files below dir, for those that change a fake.
func (f files) overwrite(dir string) {
	for p, content := range f {
		real := filepath.Join(dir, p)
		if err := errors.Join(os.MkdirAll(filepath.Dir(real), 0o755), os.WriteFile(real, []byte(content), 0o755)); err != nil {
			panic(err)
		}
	}
}

// fake is a live host that has these files and nothing else: no systemd, no daemon, no
// network, no programs that could be run. change gives it more.
func fake(t *testing.T, f files, change ...func(*Outside)) *Node {
	t.Helper()
	dir := t.TempDir()
	f.write(t, dir)
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := host.New(root)
	h.UID = 0
	h.Run = func(_ context.Context, cmd host.Cmd) (host.Output, error) {
		return host.Output{}, &host.ExitError{Cmd: cmd, Code: 127, Stderr: "no such program in this fake"}
	}
	o := Outside{Host: h, Live: true, Env: func(string) (string, bool) { return "", false }}
	for _, c := range change {
		c(&o)
	}
	return NewNode(t.Context(), o)
}

// prints answers commands, as typed, with what they print.
func prints(answers map[string]string) func(*Outside) {
	return func(o *Outside) {
		o.Host.Run = func(_ context.Context, cmd host.Cmd) (host.Output, error) {
			out, ok := answers[cmd.String()]
			if !ok {
				return host.Output{}, &host.ExitError{Cmd: cmd, Code: 127, Stderr: "no such program in this fake"}
			}
			return host.Output{Stdout: []byte(out)}, nil
		}
	}
}

// withSpec is a node with a profile.
func withSpec(s profiles.Spec) func(*Outside) {
	return func(o *Outside) { o.Spec = &s }
}

// units is a systemd that has these.
type units map[string]systemd.Properties

func (u units) Properties(_ context.Context, name string) (systemd.Properties, error) {
	return u[name], nil
}

// withUnits gives the host a systemd.
func withUnits(u units) func(*Outside) {
	return func(o *Outside) {
		o.Facts.SystemdInit = true
		o.Units = func(context.Context) (Units, error) { return u, nil }
	}
}

// containerd is a daemon that answers so.
type containerd struct {
	version string
	plugins []daemon.Plugin
	tasks   []daemon.Task
	images  map[string][]daemon.Image // by namespace
	// states are by namespace, too; without them all images are complete.
	states       map[string][]daemon.ImageState
	deprecations []daemon.Deprecation
	err          error // of every call
}

func (c *containerd) Version(context.Context) (string, error)          { return c.version, c.err }
func (c *containerd) Plugins(context.Context) ([]daemon.Plugin, error) { return c.plugins, c.err }
func (c *containerd) Tasks(context.Context) ([]daemon.Task, error)     { return c.tasks, c.err }
func (c *containerd) Images(_ context.Context, ns string) ([]daemon.Image, error) {
	return c.images[ns], c.err
}
func (c *containerd) Namespaces(context.Context) ([]string, error) {
	return slices.Sorted(maps.Keys(c.images)), c.err
}
func (c *containerd) Deprecations(context.Context) ([]daemon.Deprecation, error) {
	return c.deprecations, c.err
}
func (c *containerd) ImageStates(_ context.Context, ns, _, _ string, names ...string) ([]daemon.ImageState, error) {
	all := c.states[ns]
	if all == nil {
		for _, i := range c.images[ns] {
			all = append(all, daemon.ImageState{Image: i, Complete: true})
		}
	}
	if len(names) == 0 {
		return all, c.err
	}
	var out []daemon.ImageState
	for _, s := range all {
		if slices.Contains(names, s.Name) {
			out = append(out, s)
		}
	}
	return out, c.err
}

// withDaemon gives the host a daemon at any socket, or none where c is nil.
func withDaemon(c *containerd) func(*Outside) {
	return func(o *Outside) {
		o.Daemon = func(context.Context, string) (Containerd, error) {
			if c == nil {
				return nil, errors.New("nobody listens")
			}
			return c, nil
		}
	}
}

// online lets the host use the real network: tests have servers of their own on loopback.
func online(o *Outside) { o.Dial = new(net.Dialer).DialContext }

// results runs the check with that ID, without what it needs.
func results(t *testing.T, n *Node, id string) []Result {
	t.Helper()
	for _, c := range Catalogue() {
		if c.ID == id {
			return c.Run(t.Context(), n)
		}
	}
	t.Fatalf("no check is called %s", id)
	return nil
}

// want is what a result must be; texts are parts of what must be there, "" anything.
type want struct {
	verdict                                 Verdict
	object, observed, wanted, place, remedy string
}

// expect runs a check and holds its results against what is wanted of them.
func expect(t *testing.T, n *Node, id string, wants ...want) {
	t.Helper()
	got := results(t, n, id)
	if len(got) != len(wants) {
		t.Fatalf("%s: %d results, want %d: %+v", id, len(got), len(wants), got)
	}
	for i, w := range wants {
		g := got[i]
		if g.Observed == "" {
			t.Errorf("%s: nothing is observed: %+v", id, g)
		}
		for _, part := range []struct{ what, got, want string }{
			{"object", g.Object, w.object}, {"observed", g.Observed, w.observed}, {"wanted", g.Wanted, w.wanted},
			{"place", g.Place, w.place}, {"remedy", g.Remedy, w.remedy},
		} {
			if !strings.Contains(part.got, part.want) {
				t.Errorf("%s: %s is %q, want %q in it: %+v", id, part.what, part.got, part.want, g)
			}
		}
		if g.Verdict != w.verdict {
			t.Errorf("%s: %s, want %s: %+v", id, g.Verdict, w.verdict, g)
		}
	}
}
