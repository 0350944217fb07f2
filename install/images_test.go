package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
	"github.com/nodeprep/nodeprep/systemd"
)

const (
	pauseName = "registry.k8s.io/pause:3.10"
	webName   = "registry.example.com/web:1"
)

// bundled are image archives that are in no file, by the name that a bundle has for them.
type bundled map[string][]byte

// Open is ImageSource's.
func (b bundled) Open(_ context.Context, img desired.Image) (io.ReadCloser, error) {
	content, ok := b[img.File]
	if !ok {
		return nil, fmt.Errorf("open %s: not in the bundle", img.File)
	}
	return io.NopCloser(bytes.NewReader(content)), nil
}

// image is a bundle's archive as a state has it.
func (b bundled) image(name string, pin bool) desired.Image {
	return desired.Image{File: name, Pin: pin, SHA256: digest("", false, b[name]), Size: int64(len(b[name])), Origin: diag.Origin{File: "bundle:profile.yaml", Line: 9}}
}

// imagesOf is a list of a daemon's images, pinned ones marked.
func (d *fakeDaemon) has() []string {
	var out []string
	for _, name := range sortedKeys(d.images) {
		if d.images[name].Pinned {
			name += " pinned"
		}
		out = append(out, name)
	}
	return out
}

func (n *node) wantActions(what string, want ...string) {
	n.t.Helper()
	if diff := cmp.Diff(want, actions(n.diff())); diff != "" {
		n.t.Errorf("%s: plan (-want +got):\n%s", what, diff)
	}
}

func (n *node) wantImages(what string, want ...string) {
	n.t.Helper()
	if diff := cmp.Diff(want, n.daemon.has()); diff != "" {
		n.t.Errorf("%s: containerd has (-want +got):\n%s", what, diff)
	}
}

func TestImages(t *testing.T) {
	n := newNode(t)
	n.live()
	dir := t.TempDir()
	archive := pause().file(t, dir, "pause.tar")
	n.state.Images = []desired.Image{{File: archive, Pin: true}}
	res := n.apply()
	n.wantImages("apply", pauseName+" pinned")
	if len(res.Images) != 1 || res.Images[0].Name != pauseName || !strings.HasPrefix(res.Images[0].Digest, "sha256:") ||
		res.Images[0].Archive != archive || !res.Images[0].Pinned || res.Images[0].Present || res.Images[0].Pending {
		t.Errorf("the result has %+v", res.Images)
	}
	if rec := n.receipt().Images; len(rec) != 1 || !slices.Equal(rec[0].Names, []string{pauseName}) || rec[0].Pending || !rec[0].Pin || rec[0].SHA256 != digest("", false, pause().tar(t)) {
		t.Errorf("the receipt has %+v", rec)
	}
	n.daemon.asks = 0
	n.wantActions("again")
	if n.daemon.asks != 1 {
		t.Errorf("a plan asks containerd %d times for its images", n.daemon.asks)
	}
	if err := os.Chtimes(archive, time.Time{}, time.Now().Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	n.wantActions("a touched archive")
	pause("registry.k8s.io/pause:3.11").file(t, dir, "pause.tar")
	n.wantActions("another archive", "import image "+archive)
	n.apply()
	// What it held before is not wanted any more.
	n.wantImages("another archive", pauseName, "registry.k8s.io/pause:3.11 pinned")
	// A stick that is gone since is no fault.
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	n.wantActions("an archive that is gone")
	n.clean()
}

func TestImageByALink(t *testing.T) {
	n := newNode(t)
	n.live()
	dir := t.TempDir()
	archive, link := pause().file(t, dir, "pause-3.10.tar"), filepath.Join(dir, "pause.tar")
	if err := os.Symlink(archive, link); err != nil {
		t.Fatal(err)
	}
	n.state.Images = []desired.Image{{File: link}}
	n.apply()
	if want := digest("", false, pause().tar(t)); n.receipt().Images[0].SHA256 != want {
		t.Errorf("the receipt has %+v, want sha256 %s", n.receipt().Images[0], want)
	}
	n.wantActions("again")
}

// TestImageIsItsDigest: a file and a bundle with the same archive are the same.
func TestImageIsItsDigest(t *testing.T) {
	file := pause().file(t, t.TempDir(), "pause.tar")
	b := bundled{"images/pause.tar": pause().tar(t), "images/other.tar": pause(webName).tar(t)}
	for _, tt := range []struct {
		name        string
		first, then desired.Image
	}{
		{"from a file to a bundle", desired.Image{File: file, Pin: true}, b.image("images/pause.tar", true)},
		{"from a bundle to a file", b.image("images/pause.tar", true), desired.Image{File: file, Pin: true}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.opt.Images = b
			n.state.Images = []desired.Image{tt.first}
			n.apply()
			n.state.Images = []desired.Image{tt.then}
			n.wantActions("the same archive")
			// The receipt says from where it is wanted when it is written the next time.
			n.file(config).Content = []byte("version = 3\n")
			n.apply()
			if got := n.receipt().Images; len(got) != 1 || got[0].File != tt.then.File || !slices.Equal(got[0].Names, []string{pauseName}) {
				t.Errorf("the receipt has %+v", got)
			}
			n.wantImages("afterwards", pauseName+" pinned")
			if len(n.daemon.imported) != 1 {
				t.Errorf("imported %v, want once", n.daemon.imported)
			}
			n.state.Images = []desired.Image{b.image("images/other.tar", true)}
			n.wantActions("another archive", "import image images/other.tar", "unpin image "+tt.then.File)
			n.apply()
			n.wantImages("another archive", webName+" pinned", pauseName)
		})
	}
}

// TestBadImages: all of them are told at once, and nothing was changed.
func TestBadImages(t *testing.T) {
	dir := t.TempDir()
	write := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	whole := pause().tar(t)
	b := bundled{"images/flipped.tar": whole, "images/good.tar": whole}
	flipped := b.image("images/flipped.tar", true)
	other := slices.Clone(whole)
	other[600]++
	b["images/flipped.tar"] = other
	lacking := b.image("images/good.tar", true)
	lacking.File = "images/lacking.tar"
	local := func(p string) desired.Image {
		return desired.Image{File: p, Origin: diag.Origin{File: "node.yaml", Line: 12}}
	}
	all := []desired.Image{
		b.image("images/good.tar", true), flipped, lacking,
		local(write("text.tar", bytes.Repeat([]byte("not an archive "), 100))),
		local(write("empty.tar", nil)),
		local(write("cut.tar", whole[:len(whole)/2])),
		local(write("other.tar", archiveOf{names: []string{webName}, platforms: []string{"arm64", "riscv64"}}.tar(t))),
		local(write("missing.tar", archiveOf{names: []string{webName}, platforms: []string{"amd64", "arm64"}, lacks: "amd64"}.tar(t))),
		local(write("nameless.tar", archiveOf{}.tar(t))),
		// Parts for others alone are missing.
		local(write("fine.tar", archiveOf{names: []string{webName}, platforms: []string{"amd64", "arm64"}, lacks: "arm64"}.tar(t))),
	}
	for _, live := range []bool{true, false} {
		t.Run(fmt.Sprint("live ", live), func(t *testing.T) {
			n := newNode(t)
			if live {
				n.live()
			}
			n.opt.Images = b
			n.install("nodeprep")
			n.state.Images = all
			before := n.tree(true)
			_, err := n.tryApply(t.Context())
			if err == nil {
				t.Fatal("no error")
			}
			if _, reverted := errors.AsType[*RevertedError](err); reverted {
				t.Errorf("it was noticed after the commit")
			}
			for _, want := range []string{
				"image images/flipped.tar: verify images/flipped.tar: sha256 mismatch", "image images/lacking.tar: open images/lacking.tar: not in the bundle",
				"text.tar: not an archive of images", "empty.tar: ", "cut.tar: ", "other.tar: no image for linux/amd64",
				"missing.tar: " + webName + " lacks parts for linux/amd64: layer sha256:", "nameless.tar: no image for linux/amd64", "(from node.yaml:12)", "(from bundle:profile.yaml:9)",
			} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("it does not say %q:\n%v", want, err)
				}
			}
			for _, fine := range []string{"good.tar", "fine.tar"} {
				if strings.Contains(err.Error(), fine) {
					t.Errorf("it finds fault with %s:\n%v", fine, err)
				}
			}
			if _, is := errors.AsType[*release.DigestError](err); !is {
				t.Errorf("no DigestError in %v", err)
			}
			n.same(before, true, "refusal")
			if live && len(n.daemon.imported)+len(n.services.did) > 0 {
				t.Errorf("imported %v, systemd was told %v", n.daemon.imported, n.services.did)
			}
		})
	}
}

func TestImageThatCannotBeReadStopsEarly(t *testing.T) {
	n := newNode(t)
	n.live()
	archive := pause().file(t, t.TempDir(), "pause.tar")
	n.state.Images = []desired.Image{{File: archive}}
	plan := n.diff()
	before := n.tree(true)
	if err := os.Remove(archive); err != nil {
		t.Fatal(err)
	}
	_, err := Apply(t.Context(), n.h, plan, n.opt)
	if reverted := (*RevertedError)(nil); err == nil || errors.As(err, &reverted) || !strings.Contains(err.Error(), archive) {
		t.Errorf("apply = %v, want a refusal before anything is written", err)
	}
	n.same(before, true, "refusal")
	n.state.Images = []desired.Image{{File: filepath.Dir(archive)}}
	if _, err := Diff(t.Context(), n.h, n.state, nil, n.opt.DiffOptions); err == nil || !strings.Contains(err.Error(), "is a directory, not an archive") {
		t.Errorf("a directory for an archive: %v", err)
	}
}

// TestImageThatChangesMeanwhile is not imported: what is in containerd was verified.
func TestImageThatChangesMeanwhile(t *testing.T) {
	n := newNode(t)
	n.live()
	dir := t.TempDir()
	archive := pause().file(t, dir, "pause.tar")
	n.state.Images = []desired.Image{{File: archive}}
	n.opt.Observer = onPhase(func(p Phase) {
		if p == PhaseCommit {
			pause(webName).file(t, dir, "pause.tar")
		}
	})
	_, err := n.tryApply(t.Context())
	if err == nil || !strings.Contains(err.Error(), "changed since it was verified") {
		t.Errorf("apply = %v", err)
	}
	n.wantImages("afterwards")
}

// onPhase is called at the start of each phase.
type onPhase func(Phase)

func (f onPhase) PhaseStart(p Phase)                   { f(p) }
func (f onPhase) PhaseEnd(Phase, time.Duration, error) {}
func (f onPhase) Progress(string, int64, int64)        {}

// TestOneImageFails: the others are imported, and stay; the host is as before.
func TestOneImageFails(t *testing.T) {
	n := newNode(t)
	n.live()
	n.apply()
	dir := t.TempDir()
	names := []string{"a", "b", "c", "d"}
	n.change(func() {
		for _, name := range names {
			archive := pause("registry.example.com/"+name+":1").file(t, dir, name+".tar")
			n.state.Images = append(n.state.Images, desired.Image{File: archive, Pin: true})
		}
		n.file(config).Content = []byte("version = 3\n")
	})
	n.daemon.sick["import a.tar"] = errors.New("no space left on device")
	n.daemon.sick["import c.tar"] = errors.New("out of luck")
	before := n.tree(true)
	_, err := n.tryApply(t.Context())
	reverted, ok := errors.AsType[*RevertedError](err)
	if !ok || reverted.Phase != PhaseVerify {
		t.Fatalf("apply = %v", err)
	}
	for _, want := range []string{
		"a.tar: no space left on device", "c.tar: out of luck",
		"registry.example.com/b:1 (" + dir + "/b.tar) was imported, and stays in containerd", "registry.example.com/d:1 (" + dir + "/d.tar) was imported",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("it does not say %q:\n%v", want, err)
		}
	}
	// Nobody would know of their pins.
	n.wantImages("afterwards", "registry.example.com/b:1", "registry.example.com/d:1")
	n.same(before, true, "revert")
	clear(n.daemon.sick)
	res := n.apply()
	n.wantImages("the next try", "registry.example.com/a:1 pinned", "registry.example.com/b:1 pinned", "registry.example.com/c:1 pinned", "registry.example.com/d:1 pinned")
	var present []bool
	for _, img := range res.Images {
		present = append(present, img.Present)
	}
	if !slices.Equal(present, []bool{false, true, false, true}) {
		t.Errorf("present before: %v", present)
	}
	n.clean()
}

func TestPins(t *testing.T) {
	dir := t.TempDir()
	both := pause(pauseName, webName).file(t, dir, "both.tar")
	web := archiveOf{names: []string{webName}, content: "web"}.file(t, dir, "web.tar")
	for _, tt := range []struct {
		name        string
		first, then []desired.Image
		meanwhile   func(*fakeDaemon)
		plan        []string
		has         []string
	}{
		{
			"dropped", []desired.Image{{File: both, Pin: true}}, nil, nil,
			[]string{"unpin image " + both}, []string{webName, pauseName},
		},
		{"dropped without a pin", []desired.Image{{File: both}}, nil, nil, nil, []string{webName, pauseName}},
		{
			"dropped, another one pins a name", []desired.Image{{File: web, Pin: true}, {File: both, Pin: true}}, []desired.Image{{File: web, Pin: true}}, nil,
			[]string{"unpin image " + both}, []string{webName + " pinned", pauseName},
		},
		{
			"dropped, another one pins all", []desired.Image{{File: web, Pin: true}, {File: both, Pin: true}}, []desired.Image{{File: both, Pin: true}}, nil,
			nil, []string{webName + " pinned", pauseName + " pinned"},
		},
		{"no pin any more", []desired.Image{{File: web, Pin: true}}, []desired.Image{{File: web}}, nil, []string{"unpin image " + web}, []string{webName}},
		{"a pin now", []desired.Image{{File: web}}, []desired.Image{{File: web, Pin: true}}, nil, []string{"pin image " + web}, []string{webName + " pinned"}},
		{
			"lost its pin", []desired.Image{{File: both, Pin: true}}, []desired.Image{{File: both, Pin: true}},
			func(d *fakeDaemon) { d.images[webName] = daemon.Image{Name: webName} },
			[]string{"pin image " + both}, []string{webName + " pinned", pauseName + " pinned"},
		},
		{
			"gone", []desired.Image{{File: both, Pin: true}}, []desired.Image{{File: both, Pin: true}},
			func(d *fakeDaemon) { delete(d.images, webName) },
			[]string{"import image " + both}, []string{webName + " pinned", pauseName + " pinned"},
		},
		{
			"pulled anew", []desired.Image{{File: web}}, []desired.Image{{File: web}},
			func(d *fakeDaemon) { d.images[webName] = daemon.Image{Name: webName, Digest: "sha256:0"} }, nil, []string{webName},
		},
		{
			"dropped, and somebody took the pin", []desired.Image{{File: web, Pin: true}}, nil,
			func(d *fakeDaemon) { d.images[webName] = daemon.Image{Name: webName} }, nil, []string{webName},
		},
		{
			"dropped, and gone", []desired.Image{{File: web, Pin: true}}, nil,
			func(d *fakeDaemon) { delete(d.images, webName) }, nil, nil,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			n.state.Images = tt.first
			n.apply()
			if tt.meanwhile != nil {
				tt.meanwhile(n.daemon)
			}
			n.change(func() { n.state.Images = tt.then })
			n.wantActions(tt.name, tt.plan...)
			n.apply()
			n.wantImages(tt.name, tt.has...)
			n.wantActions("afterwards")
			n.clean()
		})
	}
}

// TestSilentDaemon: one that does not say what it has changes no plan.
func TestSilentDaemon(t *testing.T) {
	n := newNode(t)
	n.live()
	web := pause(webName).file(t, t.TempDir(), "web.tar")
	n.state.Images = []desired.Image{{File: web, Pin: true}}
	n.apply()
	delete(n.daemon.images, webName)
	n.daemon.silent = errors.New("does not answer")
	n.wantActions("a daemon that does not answer")
	n.daemon.silent = nil
	n.wantActions("one that does", "import image "+web)
	if err := os.Remove(web); err != nil {
		t.Fatal(err)
	}
	plan := n.diff()
	if len(actions(plan)) > 0 || !strings.Contains(fmt.Sprint(plan.Warnings), webName+" is gone from containerd, and so is its archive") {
		t.Errorf("image and archive are gone: plan %v, warnings %v", actions(plan), plan.Warnings)
	}
}

// TestPinsComeBack when a run is undone: at once, and by a recovery.
func TestPinsComeBack(t *testing.T) {
	web := pause(webName).file(t, t.TempDir(), "web.tar")
	other := pause(pauseName).file(t, t.TempDir(), "other.tar")
	prepare := func() *node {
		n := newNode(t)
		n.live()
		n.state.Images = []desired.Image{{File: web, Pin: true}, {File: other}}
		n.apply()
		n.change(func() {
			n.state.Images = []desired.Image{{File: other, Pin: true}}
			n.file(config).Content = []byte("version = 3\n")
		})
		n.daemon.pins = nil
		return n
	}
	t.Run("undone", func(t *testing.T) {
		n := prepare()
		before := n.tree(true)
		n.noReceipt("create", ".receipt.json.nodeprep-*")
		if _, err := n.tryApply(t.Context()); err == nil || !strings.Contains(err.Error(), "out of luck") {
			t.Fatalf("apply = %v", err)
		}
		n.same(before, true, "revert")
		n.wantImages("revert", webName+" pinned", pauseName)
		if want := []string{"pin " + pauseName, "unpin " + webName, "pin " + webName, "unpin " + pauseName}; !slices.Equal(n.daemon.pins, want) {
			t.Errorf("pins changed: %v, want %v", n.daemon.pins, want)
		}
	})
	t.Run("recovered", func(t *testing.T) {
		n := prepare()
		before := n.tree(true)
		p := &points{fail: -1}
		n.opt.writer = p.writer()
		n.daemon.sick["unpin"] = errDead
		n.opt.Observer = onPhase(func(ph Phase) {
			if ph == PhaseUndo {
				p.fail = 0 // the process is dead
			}
		})
		if _, err := n.tryApply(t.Context()); err == nil {
			t.Fatal("no error")
		}
		n.opt.writer, n.opt.Observer = nil, nil
		clear(n.daemon.sick)
		n.daemon.pins = nil
		n.wantImages("before recovery", webName+" pinned", pauseName+" pinned")
		if _, err := Recover(t.Context(), n.h, n.recovery()); err != nil {
			t.Fatal(err)
		}
		n.same(before, true, "recovery")
		n.wantImages("recovery", webName+" pinned", pauseName)
	})
	t.Run("recovered after an import", func(t *testing.T) {
		n := prepare()
		n.change(func() {
			archive := pause("registry.example.com/new:1").file(t, t.TempDir(), "new.tar")
			n.state.Images = []desired.Image{{File: archive, Pin: true}, {File: pause("registry.example.com/bad:1").file(t, t.TempDir(), "bad.tar")}}
		})
		p := &points{fail: -1}
		n.opt.writer = p.writer()
		n.daemon.sick["import bad.tar"] = errDead
		n.opt.Observer = onPhase(func(ph Phase) {
			if ph == PhaseUndo {
				p.fail = 0 // the process is dead
			}
		})
		if _, err := n.tryApply(t.Context()); err == nil {
			t.Fatal("no error")
		}
		n.opt.writer, n.opt.Observer = nil, nil
		img := n.daemon.images["registry.example.com/new:1"]
		img.Pinned = true // a process that is dead took nothing back
		n.daemon.images[img.Name] = img
		if _, err := Recover(t.Context(), n.h, n.recovery()); err != nil {
			t.Fatal(err)
		}
		n.wantImages("recovery", "registry.example.com/new:1", webName+" pinned", pauseName)
	})
	t.Run("recovered without a daemon", func(t *testing.T) {
		n := prepare()
		n.opt.Observer = onPhase(func(ph Phase) {
			if ph == PhaseUndo {
				n.daemon.sick["pin"] = errors.New("nobody answers")
			}
		})
		n.daemon.sick["unpin"] = errors.New("out of luck")
		_, err := n.tryApply(t.Context())
		if reverted, ok := errors.AsType[*RevertedError](err); !ok || !strings.Contains(fmt.Sprint(reverted.Warnings), "the pins of "+webName) {
			t.Errorf("apply = %v", err)
		}
	})
}

// noReceipt has a kind of call fail for files whose names match a pattern.
func (n *node) noReceipt(op, pattern string) {
	n.opt.writer = &writer{chown: n.h.UID == 0, before: func(_ int64, o, path string) error {
		if is, _ := filepath.Match(pattern, filepath.Base(path)); is && o == op {
			return errors.New("out of luck")
		}
		return nil
	}}
}

// TestUndoKnowsPins: a run that is undone leaves pins as it found them, whoever set them.
func TestUndoKnowsPins(t *testing.T) {
	inspected, err := imagearchive.Inspect(t.Context(), bytes.NewReader(pause().tar(t)))
	if err != nil {
		t.Fatal(err)
	}
	plain := daemon.Image{Name: pauseName, Digest: inspected.Images[0].Digest}
	pinned := plain
	pinned.Pinned = true
	const next = "registry.k8s.io/pause:3.11"
	for _, tt := range []struct {
		name  string
		first *desired.Image // what was wanted before; its archive has pauseName
		has   daemon.Image   // what containerd has since
		then  desired.Image
		holds string // what the archive has then
		after []string
		last  []string // where no image is wanted any more
	}{
		{"there before", nil, plain, desired.Image{Pin: true}, pauseName, []string{pauseName}, []string{pauseName}},
		{"pinned by somebody else", &desired.Image{}, pinned, desired.Image{Pin: true}, pauseName, []string{pauseName + " pinned"}, []string{pauseName + " pinned"}},
		{"unpinned by somebody else", &desired.Image{Pin: true}, plain, desired.Image{Pin: true}, next, []string{pauseName, next}, []string{pauseName, next}},
		{"unpinned by us", &desired.Image{Pin: true}, pinned, desired.Image{Pin: true}, next, []string{pauseName + " pinned", next}, []string{pauseName, next}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := newNode(t)
			n.live()
			dir := t.TempDir()
			archive := pause().file(t, dir, "pause.tar")
			if tt.first != nil {
				tt.first.File = archive
				n.state.Images = []desired.Image{*tt.first}
			}
			n.apply()
			n.daemon.images = map[string]daemon.Image{pauseName: tt.has}
			n.change(func() {
				pause(tt.holds).file(t, dir, "pause.tar")
				tt.then.File = archive
				n.state.Images = []desired.Image{tt.then}
			})
			n.noReceipt("create", ".receipt.json.nodeprep-*")
			_, err := n.tryApply(t.Context())
			if err == nil {
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), pauseName+" ") {
				t.Errorf("it tells of an image that was there: %v", err)
			}
			n.wantImages("the undone run", tt.after...)
			n.opt.writer = nil
			n.change(func() { n.state.Images = nil })
			n.apply()
			n.wantImages("without images", tt.last...)
		})
	}
}

// TestImageForOthers: what an archive has for other nodes alone is not passed over in silence.
func TestImageForOthers(t *testing.T) {
	for _, live := range []bool{true, false} {
		n := newNode(t)
		if live {
			n.live()
		}
		archive := pause(webName)
		archive.and = []archiveOf{{names: []string{pauseName}, platforms: []string{"arm64", "riscv64"}}}
		n.state.Images = []desired.Image{{File: archive.file(t, t.TempDir(), "both.tar"), Origin: diag.Origin{File: "node.yaml", Line: 12}}}
		res := n.apply()
		if got, want := fmt.Sprint(res.Warnings), pauseName+" is for linux/arm64, linux/riscv64, not for linux/amd64, and is not imported"; strings.Count(got, "is for") != 1 || !strings.Contains(got, want) {
			t.Errorf("live %v: warnings %s, want %q", live, got, want)
		}
	}
}

// TestPlanReadsNoArchives: one that waits may be larger than what a plan may take of memory.
func TestPlanReadsNoArchives(t *testing.T) {
	const size = 48 << 20
	prepare := func(t *testing.T) *node {
		n := nodeAt(t, fastDir(t))
		n.install("nodeprep")
		n.apply()
		archive := pause().file(t, t.TempDir(), "pause.tar")
		if err := os.Truncate(archive, size); err != nil { // zeros after the end of a tar are its end
			t.Fatal(err)
		}
		n.change(func() { n.state.Images = []desired.Image{{File: archive, Pin: true}} })
		n.apply()
		return n
	}
	readable := func(n *node) {
		if err := os.Chmod(filepath.Join(n.dir, ImagesDir, n.waiting()[0]), 0o644); err != nil {
			n.t.Fatal(err)
		}
	}
	for _, tt := range []struct {
		name    string
		prepare func(*node)
		plan    func(*node) *Plan
		want    string
	}{
		{"it goes in a rollback", func(*node) {}, func(n *node) *Plan { return n.planRollback(0) }, "remove file "},
		{"and comes back", func(n *node) { n.rollback(0) }, func(n *node) *Plan { return n.planRollback(0) }, "create file "},
		{"dropped", func(n *node) { n.change(func() { n.state.Images = nil }) }, func(n *node) *Plan { return n.diff() }, "remove file "},
		{"others may read it", func(n *node) {
			readable(n)
			n.change(func() { n.state.Images = nil })
		}, func(n *node) *Plan { return n.diff() }, "remove file "},
		{"others may read it, in a rollback", readable, func(n *node) *Plan { return n.planRollback(0) }, "remove file "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := prepare(t)
			tt.prepare(n)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			plan := tt.plan(n)
			runtime.ReadMemStats(&after)
			if took := after.TotalAlloc - before.TotalAlloc; took > size/2 {
				t.Errorf("the plan took %d MiB for an archive of %d", took>>20, size>>20)
			}
			if !slices.ContainsFunc(actions(plan), func(a string) bool { return strings.HasPrefix(a, tt.want+ImagesDir+"/") }) {
				t.Errorf("the plan is %v", actions(plan))
			}
			if _, err := Apply(t.Context(), n.h, plan, n.opt); err != nil {
				t.Fatal(err)
			}
			n.clean()
		})
	}
}

// TestImagesTakeSpace in containerd, where its config says that its root is.
func TestImagesTakeSpace(t *testing.T) {
	n := newNode(t)
	n.live()
	n.state.Daemon.ConfigPath = config
	n.state.Daemon.Version = "2.0.0"
	n.state.Artifacts[0].Version = "2.0.0"
	n.file(config).Content = []byte("version = 3\nroot = '/data/containerd'\n")
	n.mount("/data", 1<<20, 0)
	big := archiveOf{names: []string{webName}, size: 2 << 20}
	n.state.Images = []desired.Image{{File: big.file(t, t.TempDir(), "big.tar")}}
	before := n.tree(true)
	_, err := n.tryApply(t.Context())
	if full, ok := errors.AsType[*SpaceError](err); !ok || len(full.Short) != 1 || full.Short[0].Path != "/data/containerd" || full.Short[0].Needed < 4<<20 {
		t.Errorf("apply = %v", err)
	}
	n.same(before, true, "refusal")
}

func (n *node) waiting() []string {
	n.t.Helper()
	entries, err := n.h.Root.ReadDir(ImagesDir)
	if err != nil && !isAbsent(err) {
		n.t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

// root is a node that was provisioned as an image, with two archives that wait.
func imageRoot(t *testing.T) (n *node, b bundled, web string) {
	n = nodeAt(t, fastDir(t))
	n.install("nodeprep")
	b = bundled{"images/pause.tar": pause().tar(t)}
	n.opt.Images = b
	web = pause(webName).file(t, t.TempDir(), "web.tar")
	n.state.Images = []desired.Image{b.image("images/pause.tar", true), {File: web}}
	return n, b, web
}

const firstBootLink = unitDir + "/multi-user.target.wants/" + systemd.FirstBootUnitName

func TestImagesWait(t *testing.T) {
	n, b, web := imageRoot(t)
	plain := n.tree(true)
	res := n.apply()
	sums := []string{digest("", false, b["images/pause.tar"]) + ".tar", digest("", false, pause(webName).tar(t)) + ".tar"}
	slices.Sort(sums)
	if got := n.waiting(); !slices.Equal(got, sums) {
		t.Errorf("there wait %v, want %v", got, sums)
	}
	for _, name := range sums {
		fi, err := n.h.Root.Lstat(ImagesDir + "/" + name)
		if err != nil || fi.Mode() != 0o600 {
			t.Errorf("%s: %v, %v", name, fi, err)
		}
		if own := n.receipt().Find(ImagesDir + "/" + name); own == nil {
			t.Errorf("%s is not owned", name)
		}
	}
	if target, err := n.h.Root.Readlink(firstBootLink); err != nil || target != systemd.FirstBootUnitPath {
		t.Errorf("the unit is enabled by a link to %q (%v)", target, err)
	}
	if len(res.Images) != 2 || !res.Images[0].Pending || res.Images[0].Name != pauseName || !res.Images[0].Pinned {
		t.Errorf("the result has %+v", res.Images)
	}
	if own := n.receipt().Find(FirstBootPath); own == nil || own.Mode != 0o600 {
		t.Errorf("the marker is owned as %+v", own)
	}
	n.wantActions("again")
	n.clean()
	n.noDebris()

	t.Run("lost archives", func(t *testing.T) {
		if err := os.Remove(filepath.Join(n.dir, ImagesDir, digest("", false, pause(webName).tar(t))+".tar")); err != nil {
			t.Fatal(err)
		}
		n.write(ImagesDir+"/"+digest("", false, b["images/pause.tar"])+".tar", "something else")
		n.wantActions("archives that are not there", "import image images/pause.tar", "import image "+web)
		n.apply()
		n.wantActions("afterwards")
		n.clean()
		n.noDebris()
	})
	t.Run("dropped", func(t *testing.T) {
		n.change(func() { n.state.Images = n.state.Images[:1] })
		n.wantActions("an image less", "remove file "+ImagesDir+"/"+digest("", false, pause(webName).tar(t))+".tar")
		n.apply()
		n.change(func() { n.state.Images[0].Pin = false })
		n.wantActions("a pin less", "unpin image images/pause.tar")
		n.apply()
		if got := n.receipt().Images; len(got) != 1 || got[0].Pin || !got[0].Pending {
			t.Errorf("the receipt has %+v", got)
		}
		n.clean()
		// Both wait again, and the pin is as it was when they did.
		n.rollback(0)
		if got := n.receipt().Images; len(n.waiting()) != 2 || len(got) != 2 {
			t.Errorf("after a rollback there wait %v, and the receipt has %+v", n.waiting(), got)
		}
		n.clean()
	})
	t.Run("rolled back and uninstalled", func(t *testing.T) {
		n.change(func() { n.state.Images = nil })
		n.apply()
		if got := n.waiting(); len(got) > 0 || len(n.receipt().Images) > 0 {
			t.Errorf("there wait %v; receipt %+v", got, n.receipt().Images)
		}
		n.rollback(0)
		if got := n.waiting(); !slices.Equal(got, sums) || len(n.receipt().Images) != 2 {
			t.Errorf("after a rollback there wait %v; receipt %+v", got, n.receipt().Images)
		}
		n.clean()
		n.must("uninstall")
		n.same(plain, false, "uninstall")
	})
}

// TestNothingWaitsWithoutNodeprep: there is nobody to import it.
func TestNothingWaitsWithoutNodeprep(t *testing.T) {
	n, _, _ := imageRoot(t)
	n.state.Files = slices.DeleteFunc(n.state.Files, func(f desired.File) bool { return f.First })
	n.state.Units = slices.DeleteFunc(n.state.Units, func(u desired.Unit) bool { return u.Name == systemd.RecoverUnitName })
	plan := n.diff()
	if !strings.Contains(fmt.Sprint(plan.Warnings), "nobody imports the images at the first boot") {
		t.Errorf("warnings %v", plan.Warnings)
	}
	n.apply()
	if _, err := n.h.Root.Lstat(systemd.FirstBootUnitPath); err == nil {
		t.Error("there is a unit for a program that is not there")
	}
}

// boot makes a root the running one.
func (n *node) boot() {
	n.live()
	n.services.active = "active"
}

func (n *node) firstBoot() (*FirstBooted, error) {
	opt := FirstBootOptions{Daemon: n.daemon, Version: "0.1.0", live: true, writer: n.opt.writer}
	got, err := FirstBoot(n.t.Context(), n.h, opt)
	if err == nil && got.Waited {
		err = EndFirstBoot(n.t.Context(), n.h, opt)
	}
	return got, err
}

// nothingWaits fails the test where a first boot has left something to do.
func (n *node) nothingWaits(what string) {
	n.t.Helper()
	if waits, err := FirstBootWaits(n.h.Root); err != nil || waits {
		n.t.Errorf("%s: the next boot has something to do: %v (%v)", what, waits, err)
	}
	for _, p := range []string{ImagesDir, FirstBootPath} {
		if _, err := n.h.Root.Lstat(p); !isAbsent(err) {
			n.t.Errorf("%s: %s is there (%v)", what, p, err)
		}
		if n.receipt().Find(p) != nil {
			n.t.Errorf("%s: the receipt has %s", what, p)
		}
	}
}

func TestFirstBoot(t *testing.T) {
	n, _, _ := imageRoot(t)
	n.apply()
	n.boot()
	id := n.receipt().ID
	got, err := n.firstBoot()
	if err != nil || len(got.Images) != 2 || len(got.Left) > 0 {
		t.Fatalf("first boot: %+v, %v", got, err)
	}
	n.wantImages("first boot", webName, pauseName+" pinned")
	n.nothingWaits("first boot")
	rec := n.receipt()
	if rec.ID == id || rec.Generation != 1 || slices.ContainsFunc(rec.Images, func(x Imported) bool { return x.Pending }) {
		t.Errorf("the receipt has ID %s, generation %d, %+v", rec.ID, rec.Generation, rec.Images)
	}
	n.clean()
	n.noDebris()
	// The next boot finds nothing to do, nor does an apply.
	n.daemon.imported = nil
	if got, err := n.firstBoot(); err != nil || len(got.Images) > 0 || len(n.daemon.imported) > 0 {
		t.Errorf("second boot: %+v, %v, imported %v", got, err, n.daemon.imported)
	}
	n.wantActions("after the first boot")
	n.must("uninstall")
	for _, p := range []string{systemd.FirstBootUnitPath, firstBootLink, StateDir} {
		if _, err := n.h.Root.Lstat(p); !isAbsent(err) {
			t.Errorf("after uninstall: %s, %v", p, err)
		}
	}
}

// TestFirstBootFails: what could not be imported waits on, the rest does not.
func TestFirstBootFails(t *testing.T) {
	n, b, _ := imageRoot(t)
	n.apply()
	n.boot()
	n.daemon.sick["import pause.tar"] = errors.New("no space left on device")
	if _, err := n.firstBoot(); err == nil || !strings.Contains(err.Error(), "import images/pause.tar: no space left on device") {
		t.Errorf("first boot: %v", err)
	}
	if got, want := n.waiting(), []string{digest("", false, b["images/pause.tar"]) + ".tar"}; !slices.Equal(got, want) {
		t.Errorf("there wait %v, want %v", got, want)
	}
	n.wantImages("first boot", webName)
	n.clean()
	// A damaged archive is no image.
	real := filepath.Join(n.dir, ImagesDir, n.waiting()[0])
	damaged := slices.Clone(b["images/pause.tar"])
	damaged[700]++
	if err := os.WriteFile(real, damaged, 0o600); err != nil {
		t.Fatal(err)
	}
	clear(n.daemon.sick)
	if _, err := n.firstBoot(); err == nil || len(n.waiting()) != 1 {
		t.Errorf("a damaged archive: %v, there wait %v", err, n.waiting())
	}
	n.wantImages("a damaged archive", webName)
	if err := os.WriteFile(real, b["images/pause.tar"], 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := n.firstBoot(); err != nil {
		t.Fatal(err)
	}
	n.wantImages("the next boot", webName, pauseName+" pinned")
}

// TestFirstBootWithoutReceipt: while the receipt on the disk says that archives wait, they do.
// The import may just have filled the disk.
func TestFirstBootWithoutReceipt(t *testing.T) {
	for _, tt := range []struct{ op, pattern string }{
		{"create", ".receipt.json.nodeprep-*"}, {"rename", "receipt.json"}, {"fsync", filepath.Base(StateDir)},
	} {
		t.Run(tt.op, func(t *testing.T) {
			n, _, _ := imageRoot(t)
			n.apply()
			n.boot()
			n.noReceipt(tt.op, tt.pattern)
			if _, err := n.firstBoot(); err == nil || !strings.Contains(err.Error(), "out of luck") {
				t.Errorf("first boot = %v", err)
			}
			if len(n.waiting()) != 2 {
				t.Errorf("there wait %v", n.waiting())
			}
			n.opt.writer = nil
			if _, err := n.firstBoot(); err != nil {
				t.Errorf("the next boot: %v", err)
			}
			n.wantImages("the next boot", webName, pauseName+" pinned")
			n.nothingWaits("at the end")
			n.wantActions("afterwards")
			n.clean()
			n.noDebris()
		})
	}
}

// TestRollbackAfterAFirstBoot: what was imported since does not wait again.
func TestRollbackAfterAFirstBoot(t *testing.T) {
	n, _, _ := imageRoot(t)
	all := n.state.Images
	n.apply()
	n.change(func() { n.state.Images = nil })
	n.apply()
	n.change(func() { n.state.Images = all[:1] })
	n.apply()
	n.boot()
	if _, err := n.firstBoot(); err != nil {
		t.Fatal(err)
	}
	n.rollback(2)
	if _, err := n.h.Root.Lstat(ImagesDir); !isAbsent(err) {
		t.Errorf("rolled back to where nothing waited: %s is there (%v)", ImagesDir, err)
	}
	n.rollback(1)
	// The other one was never imported.
	if got, want := n.waiting(), []string{digest("", false, pause(webName).tar(t)) + ".tar"}; !slices.Equal(got, want) {
		t.Errorf("there wait %v, want %v", got, want)
	}
	n.clean()
	if _, err := n.firstBoot(); err != nil {
		t.Fatal(err)
	}
	n.wantImages("the next boot", webName, pauseName+" pinned")
	n.nothingWaits("at the end")
	n.clean()
	n.noDebris()
}

// TestFirstBootIsKilled: the next boot does the rest.
func TestFirstBootIsKilled(t *testing.T) {
	tested := 0
	for point := 0; ; point++ {
		n, _, _ := imageRoot(t)
		n.apply()
		n.boot()
		p := &points{fail: point}
		n.opt.writer = p.writer()
		_, err := n.firstBoot()
		n.opt.writer = nil
		if _, again := n.firstBoot(); again != nil {
			t.Fatalf("killed before call %d: %v", point+1, again)
		}
		what := fmt.Sprintf("killed before call %d", point+1)
		n.wantImages(what, webName, pauseName+" pinned")
		n.nothingWaits(what)
		n.wantActions(what)
		n.clean()
		n.noDebris()
		tested++
		if err == nil {
			break
		}
	}
	if tested < 8 {
		t.Errorf("only %d points", tested)
	}
}

// TestFirstBootByApply: an apply that comes first does the same.
func TestFirstBootByApply(t *testing.T) {
	n, _, web := imageRoot(t)
	n.apply()
	n.boot()
	// Neither the bundle nor the file is there any more.
	n.opt.Images = nil
	if err := os.Remove(web); err != nil {
		t.Fatal(err)
	}
	n.wantActions("an apply before it", "remove file "+FirstBootPath, "import image images/pause.tar", "import image "+web)
	n.apply()
	n.wantImages("apply", webName, pauseName+" pinned")
	n.nothingWaits("at the end")
	n.wantActions("afterwards")
	n.clean()
	n.noDebris()
	if got, err := n.firstBoot(); err != nil || len(got.Images) > 0 {
		t.Errorf("first boot: %+v, %v", got, err)
	}
}

// TestFirstBootByApplyIsKilled: after a recovery either all waits as it did, or nothing does.
func TestFirstBootByApplyIsKilled(t *testing.T) {
	old, now := 0, 0
	step := stride(t, 7)
	for point := 0; ; point += step {
		n, _, _ := imageRoot(t)
		n.apply()
		n.boot()
		before, id := n.tree(true), n.receipt().ID
		p := &points{fail: point}
		n.opt.writer = p.writer()
		_, err := n.tryApply(t.Context())
		n.opt.writer = nil
		what := fmt.Sprintf("killed before call %d, recovered", point+1)
		if _, err := Recover(t.Context(), n.h, n.recovery()); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if n.receipt().ID != id {
			now++
		} else {
			old++
			n.same(before, true, what)
			n.apply()
		}
		n.wantImages(what, webName, pauseName+" pinned")
		n.nothingWaits(what)
		n.wantActions(what)
		n.clean()
		n.noDebris()
		if err == nil && len(p.calls) < point {
			break
		}
	}
	if old == 0 || now == 0 {
		t.Errorf("recovered to the old root %d times, to the new one %d times", old, now)
	}
}

// TestWaitingArchivesStayUntilTheReceipt: an apply that is undone leaves them.
func TestWaitingArchivesStayUntilTheReceipt(t *testing.T) {
	n, _, _ := imageRoot(t)
	n.apply()
	n.boot()
	before := n.tree(true)
	n.daemon.sick["import web.tar"] = errors.New("out of luck")
	if _, err := n.tryApply(t.Context()); err == nil {
		t.Fatal("no error")
	}
	n.same(before, true, "revert")
	if len(n.waiting()) != 2 {
		t.Errorf("there wait %v", n.waiting())
	}
	clear(n.daemon.sick)
	n.apply()
	n.clean()
}

func TestFirstBootAfterACrash(t *testing.T) {
	n, _, _ := imageRoot(t)
	n.apply()
	n.boot()
	n.write(JournalPath, `{"format":1,"id":"0123456789abcdef","stage":"stage","verb":"apply"}`)
	if _, err := n.firstBoot(); err == nil || !strings.Contains(err.Error(), "nodeprep recover") {
		t.Errorf("first boot = %v", err)
	}
	n.wantImages("first boot")
}
