package install

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/systemd"
)

// TestCancelAnywhere ends the context of each operation at each call of the writer: the
// root is the old one or the new one, at once, without any recovery.
func TestCancelAnywhere(t *testing.T) {
	m := newMatrix(t)
	step := stride(t, 7)
	for _, verb := range []string{"install", "upgrade", "rollback", "uninstall"} {
		t.Run(verb, func(t *testing.T) {
			op := m.verbs[verb]
			root := filepath.Join(m.dir, "cancelled")
			old, now := 0, 0
			for at := 1; at <= len(op.calls) && !t.Failed(); at += step {
				copyTree(t, op.template, root)
				before := treeOf(t, root)
				n := m.node(t, root, verb)
				p := &points{fail: -1}
				n.watch(p)
				why := errors.New("interrupted")
				ctx, cancel := context.WithCancelCause(t.Context())
				end := n.opt.writer.after
				n.opt.writer.after = func(i int64, op, path string) {
					if end(i, op, path); p.n >= at {
						cancel(why)
					}
				}
				err := n.do(ctx, verb)
				cancel(nil)
				what := fmt.Sprintf("%s, cancelled at call %d of %d", verb, at, len(op.calls))
				switch {
				case err == nil:
					now++
					if diff := differs(op.after, treeOf(t, root).relativeTo(before)); diff != "" {
						t.Errorf("%s: it went on and made something else (-want +got):\n%s", what, diff)
					}
				case !errors.Is(err, why):
					t.Errorf("%s: %v", what, err)
				default:
					old++
					if diff := differs(before.exactly(), treeOf(t, root).exactly()); diff != "" {
						t.Errorf("%s: %v; the root is not the old one (-want +got):\n%s", what, err, diff)
					}
				}
				if err := os.RemoveAll(root); err != nil {
					t.Fatal(err)
				}
			}
			t.Logf("%s: %d times the old root, %d times the new one", verb, old, now)
			if old == 0 || now == 0 {
				t.Errorf("%d times the old root, %d times the new one; want both", old, now)
			}
		})
	}
}

// interrupted is a root whose last run was killed in its commit.
func interrupted(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	n.apply()
	n.state.Artifacts[1].Version = "1.1.0"
	n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
	dead := false
	n.opt.writer = failing(func(op, path string) error {
		if dead = dead || op == "rename" && strings.HasSuffix(path, "/sbin/runc"); dead {
			return errDead
		}
		return nil
	})
	if _, err := n.tryApply(t.Context()); !errors.Is(err, errDead) {
		t.Fatalf("apply = %v", err)
	}
	n.opt.writer = nil
	return n
}

// TestJournalThatCannotBeRead stops every run, changes nothing, and says why.
func TestJournalThatCannotBeRead(t *testing.T) {
	tests := []struct {
		name   string
		damage func(n *node)
		want   string
	}{
		{"of a newer nodeprep", func(n *node) {
			n.edit(JournalPath, func(m map[string]any) { m["format"], m["nodeprep"] = 2, "7.0.0" })
		}, "it has format 2, written by nodeprep 7.0.0, and this one knows up to 1; use nodeprep 7.0.0 or newer"},
		{"cut off", func(n *node) { n.write(JournalPath, `{"format": 1, "id": `) }, "read " + JournalPath + ": unexpected end of JSON input"},
		{"empty", func(n *node) { n.write(JournalPath, "") }, "read " + JournalPath},
		{"a named pipe", func(n *node) { n.remove(JournalPath); n.fifo(JournalPath) }, "is a named pipe"},
		{"a link to a named pipe", func(n *node) {
			n.remove(JournalPath)
			n.fifo("/srv/pipe")
			n.symlink("/srv/pipe", JournalPath)
		}, "is a named pipe"},
		{"a directory", func(n *node) { n.remove(JournalPath); n.write(JournalPath+"/x", "") }, "is a directory"},
		{"no ID", func(n *node) { n.edit(JournalPath, func(m map[string]any) { m["id"] = "../../x" }) }, `"../../x" is no run's ID`},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := interrupted(t)
			tt.damage(n)
			n.opt.Adopt = true
			before := names(n)
			if _, err := Pending(n.h.Root); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("pending = %v, want %q", err, tt.want)
			}
			if _, err := Recover(t.Context(), n.h, RecoverOptions{}); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("recover = %v, want %q", err, tt.want)
			}
			if _, err := n.tryApply(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("apply = %v, want %q", err, tt.want)
			}
			if after := names(n); !slices.Equal(before, after) {
				t.Errorf("something was changed:\n%v\n%v", before, after)
			}
		})
	}
}

// names lists a root, pipes and all, without reading anything.
func names(n *node) []string {
	n.t.Helper()
	var out []string
	err := filepath.WalkDir(n.dir, func(p string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := e.Info()
		if err != nil {
			return err
		}
		line := fmt.Sprint(p, fi.Mode())
		if !fi.IsDir() {
			line += fmt.Sprint(fi.ModTime(), fi.Sys().(*syscall.Stat_t).Ino)
		}
		out = append(out, line)
		return nil
	})
	if err != nil {
		n.t.Fatal(err)
	}
	return out
}

// TestHostileJournalTouchesNothingOutside: a root may be an image from anywhere, with a
// journal of whoever made it.
func TestHostileJournalTouchesNothingOutside(t *testing.T) {
	// away makes a directory of the root a link to one outside of it.
	away := func(n *node, outside, p string) {
		real := filepath.Join(n.dir, p)
		if err := os.RemoveAll(real); err != nil {
			n.t.Fatal(err)
		}
		if err := os.Symlink(outside, real); err != nil {
			n.t.Fatal(err)
		}
	}
	change := func(n *node, of func(j *Journal)) {
		j, err := Pending(n.h.Root)
		if err != nil {
			n.t.Fatal(err)
		}
		of(j)
		data, err := json.Marshal(j)
		if err != nil {
			n.t.Fatal(err)
		}
		n.write(JournalPath, string(data))
	}
	tests := []struct {
		name   string
		attack func(n *node, outside, up string)
		want   string // of the error; "" when recovery goes well
	}{
		{"changes above the root", func(n *node, _, up string) {
			change(n, func(j *Journal) { j.Changes[0].Real, j.Changes[0].Kept = up+"/victim", nil })
		}, "not a clean absolute path"},
		{"changes behind a link", func(n *node, outside, _ string) {
			change(n, func(j *Journal) { j.Changes[0].Real, j.Changes[0].Kept = "/opt/out/victim", nil })
			n.write("/opt/out/x", "")
			away(n, outside, "/opt/out")
		}, "/opt/out/victim leads through a symbolic link"},
		{"staged behind a link", func(n *node, outside, _ string) {
			change(n, func(j *Journal) { j.Changes[0].Staged = "/opt/out/.victim.nodeprep-" + j.ID })
			n.write("/opt/out/x", "")
			away(n, outside, "/opt/out")
		}, "leads through a symbolic link"},
		{"staged is no staging name", func(n *node, _, _ string) {
			change(n, func(j *Journal) { j.Changes[0].Staged = "/etc/victim" })
		}, "no staging name of this run"},
		{"the places of staging are a link", func(n *node, outside, _ string) {
			change(n, func(j *Journal) {
				j.Scratch = []string{"/opt/out"}
				if err := os.WriteFile(filepath.Join(outside, ".x.nodeprep-"+j.ID), nil, 0o600); err != nil {
					n.t.Fatal(err)
				}
			})
			n.write("/opt/out/x", "")
			away(n, outside, "/opt/out")
		}, "/opt/out leads through a symbolic link"},
		{"made directories are outside", func(n *node, outside, _ string) {
			change(n, func(j *Journal) { j.Dirs = []string{"/opt/out/empty"} })
			n.write("/opt/out/x", "")
			away(n, outside, "/opt/out")
		}, "leads through a symbolic link"},
		{"removed directories are outside", func(n *node, outside, _ string) {
			change(n, func(j *Journal) { j.Drop = []Dropped{{Path: "/opt/out/new", Mode: 0o777}} })
			n.write("/opt/out/x", "")
			away(n, outside, "/opt/out")
		}, "leads through a symbolic link"},
		{"repairs are outside", func(n *node, outside, _ string) {
			change(n, func(j *Journal) { j.Repairs = []Repair{{Path: "/opt/x", Real: "/opt/out/victim", Mode: 0o777}} })
			n.write("/opt/out/x", "")
			away(n, outside, "/opt/out")
		}, "leads through a symbolic link"},
		{"made for the journal, outside", func(n *node, outside, _ string) {
			change(n, func(j *Journal) { j.Stage, j.Made = reverted, []string{"/opt/out/empty", StateDir} })
			n.write("/opt/out/x", "")
			away(n, outside, "/opt/out")
		}, "leads through a symbolic link"},
		{"kept is outside", func(n *node, _, up string) {
			change(n, func(j *Journal) { j.Changes[0].Kept.Path = up + "/victim" })
		}, "not a clean absolute path"},
		{"kept is somebody else's", func(n *node, _, _ string) {
			n.write("/etc/shadow", "secret")
			change(n, func(j *Journal) {
				for i := range j.Changes {
					j.Changes[i].Kept.Path = "/etc/shadow"
				}
			})
		}, "/etc/shadow is not where nodeprep keeps"},
		{"kept things are a link", func(n *node, outside, _ string) {
			away(n, outside, StateDir+"/generations")
		}, "no such file"},
		{"other filesystems' kept things are a link", func(n *node, outside, _ string) {
			n.write("/opt/.nodeprep/x", "")
			away(n, outside, "/opt/.nodeprep")
			change(n, func(j *Journal) { j.Tops = append(j.Tops, "/opt/.nodeprep") })
		}, ""},
		{"other filesystems' kept things are elsewhere", func(n *node, _, _ string) {
			change(n, func(j *Journal) { j.Tops = append(j.Tops, "/etc") })
		}, "/etc is not where nodeprep keeps"},
		{"uninstalled, with what is kept a link", func(n *node, outside, _ string) {
			n.write("/opt/.nodeprep/x", "")
			away(n, outside, "/opt/.nodeprep")
			change(n, func(j *Journal) {
				j.Verb, j.Stage, j.Tops, j.Purge = VerbUninstall, settled, append(j.Tops, "/opt/.nodeprep"), []string{"/opt/.nodeprep"}
			})
		}, ""},
		{"uninstalled through a link", func(n *node, outside, _ string) {
			n.write("/opt/out/x", "")
			away(n, outside, "/opt/out")
			change(n, func(j *Journal) {
				j.Verb, j.Stage, j.Last = VerbUninstall, settled, []string{"/opt/out/empty"}
			})
		}, "leads through a symbolic link"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := interrupted(t)
			outside := t.TempDir()
			for p, content := range map[string]string{"victim": "precious", "1/victim": "precious"} {
				if err := os.MkdirAll(filepath.Dir(filepath.Join(outside, p)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(outside, p), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if err := os.Mkdir(filepath.Join(outside, "empty"), 0o700); err != nil {
				t.Fatal(err)
			}
			tt.attack(n, outside, strings.Repeat("/..", strings.Count(n.dir, "/"))+outside)
			before := treeOf(t, outside).exactly()
			_, err := Recover(t.Context(), n.h, RecoverOptions{})
			if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
				t.Errorf("recover = %v, want %q", err, tt.want)
			}
			if diff := differs(before, treeOf(t, outside).exactly()); diff != "" {
				t.Errorf("outside of the root something changed:\n%s", diff)
			}
		})
	}
}

// TestGenerationsOutliveOwnChanges: a run that changes nothing but nodeprep itself makes no
// generation, and must not push one out.
func TestGenerationsOutliveOwnChanges(t *testing.T) {
	n := newNode(t)
	n.state.Generations = 1
	program := filepath.Join(t.TempDir(), "nodeprep")
	n.state.Files = append(n.state.Files, desired.File{Path: systemd.Program, Source: program, Mode: 0o755, First: true})
	for i := range 4 {
		if err := os.WriteFile(program, fmt.Appendf(nil, "nodeprep %d", i), 0o700); err != nil {
			t.Fatal(err)
		}
		if i < 2 {
			n.file("/etc/containerd/config.toml").Content = fmt.Appendf(nil, "version = %d\n", i+2)
		}
		n.apply()
	}
	rec, err := ReadReceipt(n.h.Root)
	if err != nil || rec.Generation != 2 {
		t.Fatalf("receipt %+v, %v; want generation 2", rec, err)
	}
	all, err := Generations(n.h.Root, rec)
	if err != nil || len(all) != 2 || all[0].Number != 1 {
		t.Errorf("generations %+v, %v; want 1 and 2", all, err)
	}
	entries, err := n.h.Root.ReadDir(StateDir + "/generations")
	if err != nil || len(entries) != 1 {
		t.Errorf("kept are %v (%v), want generation 1 alone", entries, err)
	}
}

// TestOriginalsGoWithTheLastWhoNeedsThem: given back long ago, and no generation left that
// knew of it.
func TestOriginalsGoWithTheLastWhoNeedsThem(t *testing.T) {
	const hosts = "/etc/containerd/certs.d/docker.io/hosts.toml"
	n := newNode(t)
	n.state.Generations = 1
	n.opt.Adopt = true
	n.write(hosts, "mine")
	step := 0
	next := func() {
		step++
		n.file("/etc/containerd/config.toml").Content = fmt.Appendf(nil, "version = 2\nstep = %d\n", step)
		n.apply()
	}
	next()
	next() // the generation in which it was taken over goes
	next()
	if entries, err := n.h.Root.ReadDir(StateDir + "/original"); err != nil || len(entries) != 1 {
		t.Fatalf("originals: %v, %v", entries, err)
	}
	n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return f.Path == hosts })
	next() // it is given back
	if _, err := n.h.Root.ReadDir(StateDir + "/original"); err != nil {
		t.Errorf("a rollback could not take it over again: %v", err)
	}
	next()
	if entries, err := n.h.Root.ReadDir(StateDir + "/original"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nobody needs %v any more (%v)", entries, err)
	}
	if got := n.read(hosts); got != "mine" {
		t.Errorf("%s is %q", hosts, got)
	}
}

// TestDamagedGenerationStopsNobody: it is told of, and goes when its time comes.
func TestDamagedGenerationStopsNobody(t *testing.T) {
	n := newNode(t)
	n.state.Generations = 2
	for i := range 6 {
		n.file("/etc/containerd/config.toml").Content = fmt.Appendf(nil, "version = %d\n", i+2)
		res := n.apply()
		if i == 1 {
			n.write(StateDir+"/generations/1/record.json", "{")
		}
		if told := strings.Contains(fmt.Sprint(res.Warnings), "generations/1/record.json"); told != (i == 2) {
			t.Errorf("apply %d: warnings %v", i, res.Warnings)
		}
		if _, err := n.h.Root.Lstat(JournalPath); err == nil {
			t.Errorf("apply %d does not come to an end", i)
		}
	}
}

// TestFailedFirstRunLeavesOthers what they put into nodeprep's directory.
func TestFailedFirstRunLeavesOthers(t *testing.T) {
	n := newNode(t)
	n.opt.writer = failing(func(op, path string) error {
		if op == "rename" && strings.HasSuffix(path, "/sbin/runc") {
			n.write(StateDir+"/node.yaml", "theirs")
			return errDead
		}
		return nil
	})
	_, err := n.tryApply(t.Context())
	var e *RevertedError
	if !errors.As(err, &e) || len(e.Warnings) != 1 || !strings.HasPrefix(e.Warnings[0], StateDir+" stays") {
		t.Fatalf("apply = %v", err)
	}
	if diff := differs(map[string]string{"/": "d", "/var": "d", "/var/lib": "d", StateDir: "d", StateDir + "/node.yaml": "-"}, kinds(treeOf(t, n.dir))); diff != "" {
		t.Errorf("left is (-want +got):\n%s", diff)
	}
}

func kinds(r tree) map[string]string {
	out := map[string]string{}
	for p, s := range r {
		out[p] = s.line[:1]
	}
	return out
}

// TestFailedFirstRunLeavesNoDownloads: the cache goes with the rest.
func TestFailedFirstRunLeavesNoDownloads(t *testing.T) {
	n := newNode(t)
	before := n.tree(true)
	n.opt.Artifacts = downloads{n}
	n.opt.writer = failing(func(op, path string) error {
		if op == "rename" && strings.HasSuffix(path, "/sbin/runc") {
			return errDead
		}
		return nil
	})
	n.reverted(before, errDead.Error())
	n.opt.writer = nil
	n.apply()
	if entries, err := n.h.Root.ReadDir(CacheDir); err != nil || len(entries) != 2 {
		t.Errorf("the cache has %v (%v)", entries, err)
	}
}

// downloads puts what it is asked for into the cache, as install/release does.
type downloads struct{ n *node }

// Obtain downloads.
func (d downloads) Obtain(ctx context.Context, a desired.Artifact, p func(int64, int64)) (*Archive, error) {
	out, err := d.n.releases.Obtain(ctx, a, p)
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(d.n.dir, CacheDir)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	file := filepath.Join(dir, out.SHA256+"-"+out.File)
	if _, err := os.Stat(file); err == nil {
		return out, nil
	}
	return out, os.WriteFile(file, []byte("packed"), 0o600)
}

// TestUnlockedWhileAProgramStarts: a process that is forked but not yet another program
// has a copy of every descriptor, and the lock must not live on in it.
func TestUnlockedWhileAProgramStarts(t *testing.T) {
	n := newNode(t)
	unlock, err := Lock(n.h.Root)
	if err != nil {
		t.Fatal(err)
	}
	// A program that is given the lock's descriptor stands for one that has not closed it.
	fd := -1
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Skip("no /proc here: the lock's descriptor cannot be found, and is not tested")
	}
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && target == n.dir {
			_, _ = fmt.Sscan(e.Name(), &fd)
		}
	}
	copied, err := syscall.Dup(fd)
	if err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), "cat")
	c.ExtraFiles = []*os.File{os.NewFile(uintptr(copied), "lock")}
	in, err := c.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	c.Stdout = &out
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	c.ExtraFiles[0].Close()
	unlock()
	if again, err := Lock(n.h.Root); err != nil {
		t.Errorf("lock = %v", err)
	} else {
		again()
	}
	in.Close()
	if err := c.Wait(); err != nil {
		t.Error(err)
	}
}

// TestRefusedByHalfOfAnotherRun: a plan that was made while another run was at work finds
// files that no receipt has. Once the lock is there it is made anew.
func TestRefusedByHalfOfAnotherRun(t *testing.T) {
	n := newNode(t)
	var plan *Plan
	n.opt.writer = failing(func(op, path string) error {
		if op == "create" && strings.Contains(path, ".receipt.json.") {
			plan = n.diff()
		}
		return nil
	})
	n.apply()
	n.opt.writer = nil
	if plan.Refusal() == nil {
		t.Fatal("the plan is not refused")
	}
	res, err := Apply(t.Context(), n.h, plan, n.opt)
	if err != nil || len(res.Changed) > 0 {
		t.Errorf("apply = %+v, %v; want nothing to do", res, err)
	}
}

// TestRecoverSaysWhatItDid, to whoever asks at boot.
func TestRecoverSaysWhatItDid(t *testing.T) {
	n := interrupted(t)
	j, err := Pending(n.h.Root)
	if err != nil || j == nil || j.Verb != VerbApply || j.Stage != recorded {
		t.Fatalf("pending = %+v, %v", j, err)
	}
	got, err := Recover(t.Context(), n.h, RecoverOptions{})
	if err != nil || got.Outcome != WasReverted || got.Nodeprep != "0.1.0" || got.Generation != 1 || time.Since(got.Time) > time.Hour {
		t.Errorf("recover = %+v, %v", got, err)
	}
	if got, err = Recover(t.Context(), n.h, RecoverOptions{}); err != nil || got.Outcome != NothingPending {
		t.Errorf("a second recover = %+v, %v", got, err)
	}
}

// TestUninstallThatCannotSettle is put back, and by whoever recovers too: its journal must
// not go on to say that there is no way back.
func TestUninstallThatCannotSettle(t *testing.T) {
	n := newNode(t)
	n.apply()
	before := n.tree(true)
	stage := func() stageOfRun {
		j, err := Pending(n.h.Root)
		if err != nil || j == nil {
			t.Fatalf("pending = %+v, %v", j, err)
		}
		return j.Stage
	}
	failed := false
	n.opt.writer = failing(func(op, path string) error {
		if op == "fsync" && strings.HasSuffix(path, StateDir) && !failed && stage() == settled {
			failed = true
			return syscall.EIO
		}
		if failed && strings.HasPrefix(path, n.dir+"/usr/") && stage() == settled {
			t.Errorf("%s %s while the journal says that the run is done", op, path)
		}
		return nil
	})
	err := n.do(t.Context(), "uninstall")
	var e *RevertedError
	if !errors.As(err, &e) || !errors.Is(err, syscall.EIO) || !failed {
		t.Fatalf("uninstall = %v", err)
	}
	links := func(tree []string) []string { // a link that comes back is another one
		return slices.DeleteFunc(tree, func(l string) bool { return l[0] == 'L' })
	}
	if after := n.tree(true); !slices.Equal(links(before), links(after)) {
		t.Errorf("the root was\n%s\nand is\n%s", strings.Join(before, "\n"), strings.Join(after, "\n"))
	}
}

// TestNoRoomForTheRecord: what there is no room to note was not done, and nothing need be
// noted to undo it.
func TestNoRoomForTheRecord(t *testing.T) {
	n := newNode(t)
	n.apply()
	n.file("/etc/containerd/config.toml").Content = []byte("version = 3\n")
	before := n.tree(true)
	journals := 0
	n.opt.writer = failing(func(op, path string) error {
		if op == "create" && strings.Contains(path, "/.journal.json.") {
			if journals++; journals > 1 {
				return syscall.ENOSPC
			}
		}
		return nil
	})
	_, err := n.tryApply(t.Context())
	var full *SpaceError
	if !errors.As(err, &full) {
		t.Fatalf("apply = %v", err)
	}
	var stranded *StrandedError
	if errors.As(err, &stranded) {
		t.Errorf("apply = %v", err)
	}
	n.same(before, true, "apply")
}
