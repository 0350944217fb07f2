package install

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func aResult(outcome BootOutcome) *BootResult {
	began := time.Date(2026, 11, 21, 22, 0, 0, 0, time.UTC)
	r := &BootResult{
		Verb: VerbCloudInit, Nodeprep: "1.2.3", Began: began, Ended: began.Add(90 * time.Second), Seconds: 90, Outcome: outcome,
		Digests: BootDigests{Profile: strings.Repeat("a", 64)}, Versions: map[string]string{"runc": "1.0.0"},
		Audit: &AuditCount{Pass: 3, Fail: 1, Failing: []string{"unit/active"}},
	}
	if outcome == BootFailed {
		r.ExitCode, r.Error = 1, "stage: it broke"
	}
	return r
}

// What is written is what is read, by root alone, and names the host's receipt.
func TestResult(t *testing.T) {
	n := newNode(t)
	if got, err := ReadResult(n.h.Root); got != nil || err != nil || got.Done() {
		t.Fatalf("on an empty root: %v, %v", got, err)
	}
	n.apply()
	want := aResult(BootDone)
	if err := WriteResult(t.Context(), n.h, want); err != nil {
		t.Fatal(err)
	}
	got, err := ReadResult(n.h.Root)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-written +read):\n%s", diff)
	}
	rec, err := ReadReceipt(n.h.Root)
	if err != nil {
		t.Fatal(err)
	}
	if got.Receipt != rec.ID || got.Generation != rec.Generation || got.Format != resultFormat || !got.Done() {
		t.Errorf("%+v, the receipt has %s and %d", got, rec.ID, rec.Generation)
	}
	fi, err := n.h.Root.Stat(ResultPath)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", fi.Mode(), err)
	}
	if err := WriteResult(t.Context(), n.h, aResult(BootFailed)); err != nil {
		t.Fatal(err)
	}
	if got, err := ReadResult(n.h.Root); err != nil || got.Error != "stage: it broke" || got.Done() {
		t.Errorf("replaced: %+v, %v", got, err)
	}
	// The other verb's last one stays beside it, once.
	for _, verb := range []BootVerb{VerbFirstBoot, VerbFirstBoot, VerbCloudInit, VerbFirstBoot} {
		res := aResult(BootDone)
		if res.Verb = verb; verb == VerbCloudInit {
			res.Error = "again"
		}
		if err := WriteResult(t.Context(), n.h, res); err != nil {
			t.Fatal(err)
		}
	}
	got, err = ReadResult(n.h.Root)
	if err != nil || got.Verb != VerbFirstBoot || got.Of(VerbFirstBoot) != got || got.Of(VerbCloudInit) == nil || got.Earlier.Error != "again" || got.Earlier.Earlier != nil {
		t.Errorf("after both: %+v, %v", got, err)
	}
	if !got.Saw(rec) || !got.Earlier.Saw(rec) || got.Saw(nil) {
		t.Errorf("%+v was of %+v", got, rec)
	}
	n.write(ResultPath, `{"format": 2, "nodeprep": "9.0.0"}`)
	if _, err := ReadResult(n.h.Root); err == nil || !strings.Contains(err.Error(), "nodeprep 9.0.0 or newer") {
		t.Errorf("of a newer nodeprep: %v", err)
	}
	n.write(ResultPath, `{`)
	if _, err := ReadResult(n.h.Root); err == nil {
		t.Error("half of one is read")
	}
	if err := WriteResult(t.Context(), n.h, aResult(BootDone)); err != nil {
		t.Errorf("over one that cannot be read: %v", err)
	}
}

// A receipt says for which user-data it was written, while it is the one that that asked for;
// and a result knows it from one that somebody else made since.
func TestReceiptOfUserData(t *testing.T) {
	n := newNode(t)
	n.opt.UserData = BootDigests{Profile: strings.Repeat("a", 64), Bundle: strings.Repeat("b", 64)}
	n.apply()
	if diff := cmp.Diff(n.opt.UserData, n.receipt().UserData); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	res := aResult(BootDone)
	if err := WriteResult(t.Context(), n.h, res); err != nil {
		t.Fatal(err)
	}
	// A first boot's note in the receipt is nobody's apply.
	r := newRun(n.h, &Plan{}, ApplyOptions{})
	if err := r.replaceReceipt(n.receipt()); err != nil {
		t.Fatal(err)
	}
	if now := n.receipt(); now.ID == res.Receipt || !res.Saw(now) || now.UserData.Profile == "" {
		t.Errorf("%+v, and the result has %s", now, res.Receipt)
	}
	n.opt.UserData = BootDigests{}
	n.state.Files = n.state.Files[:len(n.state.Files)-1]
	n.apply()
	if now := n.receipt(); now.UserData != (BootDigests{}) || res.Saw(now) {
		t.Errorf("applied otherwise: %+v", now)
	}
	n.rollback(1)
	if now := n.receipt(); now.UserData != (BootDigests{}) || res.Saw(now) {
		t.Errorf("back: %+v", now)
	}
}

// A first boot that failed leaves its result and nothing else; whatever comes after that, an
// uninstall leaves nothing at all.
func TestResultBeforeTheFirstApply(t *testing.T) {
	for _, failures := range []int{0, 1, 3} {
		t.Run(fmt.Sprint(failures, " failures"), func(t *testing.T) {
			n := newNode(t)
			n.install("nodeprep")
			before := n.exactly()
			for range failures {
				n.opt.writer = failing(func(op, path string) error {
					if op == "rename" && strings.HasSuffix(path, "receipt.json") {
						return unix.EIO
					}
					return nil
				})
				if _, err := n.tryApply(t.Context()); err == nil {
					t.Fatal("it did not fail")
				}
				n.opt.writer = nil
				if err := WriteResult(t.Context(), n.h, aResult(BootFailed)); err != nil {
					t.Fatal(err)
				}
				n.noDebris()
				// What failed after that, tried by hand, does not take away why the boot did.
				n.opt.writer = failing(func(op, path string) error {
					if op == "rename" && strings.HasSuffix(path, "receipt.json") {
						return unix.EIO
					}
					return nil
				})
				if _, err := n.tryApply(t.Context()); err == nil {
					t.Fatal("it did not fail")
				}
				n.opt.writer = nil
				n.noDebris()
				if got, err := ReadResult(n.h.Root); err != nil || got.Outcome != BootFailed {
					t.Fatal(got, err)
				}
			}
			n.apply()
			if err := WriteResult(t.Context(), n.h, aResult(BootDone)); err != nil {
				t.Fatal(err)
			}
			if res := n.uninstall(UninstallOptions{}); len(res.Warnings) > 0 {
				t.Errorf("warnings %v", res.Warnings)
			}
			n.asBefore(before, "uninstalled")
		})
	}
}

// Whichever write of a result fails, or is the last before the power goes, there is the old
// one or the new one, and nothing that stays.
func TestEveryWriteOfAResultFails(t *testing.T) {
	for _, first := range []bool{true, false} {
		for n := 1; ; n++ {
			node := newNode(t)
			if !first {
				node.apply()
				if err := WriteResult(t.Context(), node.h, aResult(BootFailed)); err != nil {
					t.Fatal(err)
				}
			}
			stopped := false
			w := &writer{before: func(i int64, op, path string) error {
				if i >= int64(n) { // nothing that comes after it is done either, as without power
					stopped = true
					return errors.New("no power")
				}
				return nil
			}}
			err := writeResult(t.Context(), node.h, aResult(BootDone), w)
			if !stopped {
				if err != nil || n < 5 {
					t.Errorf("first %v: after %d writes: %v", first, n-1, err)
				}
				break
			}
			if err == nil {
				t.Fatalf("first %v: write %d failed, and nobody was told", first, n)
			}
			got, err := ReadResult(node.h.Root)
			if err != nil {
				t.Fatalf("first %v: write %d failed: %v", first, n, err)
			}
			if got != nil && got.Outcome == BootFailed && first {
				t.Fatalf("first %v: %+v", first, got)
			}
			// The next run clears up.
			if err := WriteResult(t.Context(), node.h, aResult(BootUnchanged)); err != nil {
				t.Fatal(err)
			}
			if got, err := ReadResult(node.h.Root); err != nil || got.Outcome != BootUnchanged {
				t.Fatal(got, err)
			}
			entries, err := os.ReadDir(filepath.Join(node.h.Root.Dir(), filepath.Dir(StateDir)))
			if err != nil || len(entries) != 1 {
				t.Fatalf("first %v: write %d left %v, %v", first, n, entries, err)
			}
			entries, err = os.ReadDir(filepath.Join(node.h.Root.Dir(), StateDir))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if isOwnTemp(e.Name()) {
					t.Fatalf("first %v: write %d left %s", first, n, e.Name())
				}
			}
		}
	}
}
