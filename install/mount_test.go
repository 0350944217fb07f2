package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// mount puts a filesystem into the root, for as long as the test runs.
func (n *node) mount(p string, size int, flags uintptr) {
	n.t.Helper()
	if os.Geteuid() != 0 {
		n.t.Skip("mounting needs root: kept files on other filesystems, full and read-only ones are not tested")
	}
	real := filepath.Join(n.dir, p)
	if err := os.MkdirAll(real, 0o755); err != nil {
		n.t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", real, "tmpfs", flags, fmt.Sprintf("size=%d,mode=755", size)); err != nil {
		if errors.Is(err, unix.EPERM) {
			n.t.Skip("this root may not mount: kept files on other filesystems, full and read-only ones are not tested")
		}
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		// A program that is being started beside us has a copy of what is open here, until
		// it is itself: the filesystem is busy for that moment.
		if err := unix.Unmount(real, unix.MNT_DETACH); err != nil {
			n.t.Error(err)
		}
	})
}

func TestRealFullDisk(t *testing.T) {
	n := newNode(t)
	n.mount("/usr", 1<<20, 0)
	n.releases["containerd 1.0.0"]["ctr"] = strings.Repeat("x", 2<<20)
	before := n.tree(true)
	_, err := n.tryApply(t.Context())
	var full *SpaceError
	if !errors.As(err, &full) || len(full.Short) != 1 || full.Short[0].Path != "/usr/local/bin" || full.Short[0].Available != 1<<20 {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "found before")
	// The same disk, filled while nodeprep writes.
	n.opt.Artifacts = understated{n.releases}
	_, err = n.tryApply(t.Context())
	if !errors.As(err, &full) || !strings.Contains(err.Error(), "the filesystem of /usr became full while writing") {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "met halfway")
}

func TestReadOnlyFilesystem(t *testing.T) {
	n := newNode(t)
	n.mount("/usr", 1<<20, unix.MS_RDONLY)
	before := n.tree(true)
	_, err := n.tryApply(t.Context())
	if err == nil || !strings.Contains(err.Error(), "write /usr: this filesystem is mounted read-only") || strings.Count(err.Error(), "read-only") != 1 {
		t.Fatalf("apply = %v", err)
	}
	n.same(before, true, "read-only")
}

// TestSeparateFilesystems has /usr and /var as filesystems of their own: a large binary
// is kept by hard link on its own, a small file as a copy in the state directory.
func TestSeparateFilesystems(t *testing.T) {
	n := newNode(t)
	n.mount("/usr", 64<<20, 0)
	n.mount("/var", 64<<20, 0)
	big := strings.Repeat("daemon", copyLimit/6+1)
	n.releases["containerd 1.0.0"]["containerd"] = big
	n.apply()
	inode, err := n.h.Root.Lstat("/usr/local/bin/containerd")
	if err != nil {
		t.Fatal(err)
	}
	const config = "/etc/containerd/config.toml"
	n.state.Artifacts[0].Version = "2.0.0"
	n.file(config).Content = []byte("version = 3\n")
	before := n.tree(true)

	// A failure at the end gives all of it back, from both places.
	n.opt.writer = &writer{chown: true, before: func(_ int64, op, path string) error {
		if op == "rename" && strings.HasSuffix(path, "receipt.json") {
			return errors.New("disk died")
		}
		return nil
	}}
	_, err = n.tryApply(t.Context())
	var reverted *RevertedError
	if !errors.As(err, &reverted) {
		t.Fatalf("apply = %v", err)
	}
	now := n.tree(true)
	for i := range before { // copies have other inodes
		if !strings.Contains(before[i], "/bin/containerd ") && before[i][0] == '-' {
			before[i], now[i] = before[i][:strings.LastIndex(before[i], " ")], now[i][:strings.LastIndex(now[i], " ")]
		}
	}
	for i := range before {
		if before[i] != now[i] {
			t.Errorf("undo: was %s, is %s", before[i], now[i])
		}
	}
	n.opt.writer = nil

	n.apply()
	rec, err := readJournal(n.h.Root, StateDir+"/generations/1/record.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range rec.Changes {
		switch c.Path {
		case config:
			if !c.Kept.Copied || !strings.HasPrefix(c.Kept.Path, StateDir+"/generations/1/") || n.read(c.Kept.Path) != "version = 2\n" {
				t.Errorf("%s is kept as %+v", c.Path, c.Kept)
			}
		case "/usr/local/bin/containerd":
			fi, err := n.h.Root.Lstat(c.Kept.Path)
			if err != nil || c.Kept.Copied || !strings.HasPrefix(c.Kept.Path, "/usr/.nodeprep/generations/1/") || !os.SameFile(fi, inode) {
				t.Errorf("%s is kept as %+v (%v)", c.Path, c.Kept, err)
			}
		}
	}
	if fi, err := n.h.Root.Lstat("/usr/.nodeprep"); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("/usr/.nodeprep: %v, %v", fi.Mode(), err)
	}
	if plan := n.diff(); !plan.Empty() {
		t.Errorf("afterwards there is more to do: %v", actions(plan))
	}
	// Generations that go take what they kept elsewhere with them.
	for i := range 4 {
		n.file(config).Content = fmt.Appendf(nil, "version = %d\n", 4+i)
		n.apply()
	}
	if _, err := n.h.Root.Lstat("/usr/.nodeprep"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("/usr/.nodeprep is left though nothing in it is needed (%v)", err)
	}
}

// understated says of every release that it is small.
type understated struct{ releases }

// Obtain says that the release takes no room.
func (u understated) Obtain(ctx context.Context, a desired.Artifact, p func(int64, int64)) (*Archive, error) {
	out, err := u.releases.Obtain(ctx, a, p)
	if err == nil {
		out.Unpacked = 0
	}
	return out, err
}
