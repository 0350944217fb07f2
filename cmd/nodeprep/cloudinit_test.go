package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/render/cloudinit"
)

// What the script that fetches nodeprep writes down, without nodeprep, is a result as nodeprep
// itself reads, keeps and replaces it.
func TestFetchFailureIsAResult(t *testing.T) {
	const sum = exampleSum
	files := []cloudinit.File{{Path: cloudinit.ProfilePath, Data: []byte("kind: NodeProfile\n"), Mode: 0o644}}
	doc, err := cloudinit.UserData(cloudinit.Input{
		Files: files, Version: "1.2.3", ProgramURL: `https://boot.example.com/"it"\s?sig=secret`, ProgramSHA256: sum, BundleURL: "https://boot.example.com/b", BundleSHA256: sum,
	})
	if err != nil {
		t.Fatal(err)
	}
	var data struct {
		WriteFiles []struct{ Path, Content string } `yaml:"write_files"`
	}
	if err := yaml.Unmarshal(doc, &data); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	script := ""
	for _, f := range data.WriteFiles {
		if f.Path == cloudinit.FetchPath {
			script = strings.NewReplacer("=/usr/local/bin/nodeprep\n", "="+dir+"/nodeprep\n", "="+install.ResultPath+"\n", "="+dir+install.ResultPath+"\n").Replace(f.Content)
		}
	}
	if strings.Count(script, dir) != 2 {
		t.Fatalf("the script is not the one that this test knows:\n%s", script)
	}
	bin := filepath.Join(dir, "bin")
	for _, d := range []string{bin, filepath.Join(dir, "var/lib")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(bin, "curl"), []byte("#!/bin/sh\nprintf '%s\\t%s' 'error: 404 \"no\\' tab >&2\nexit 22\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	root, err := host.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	fetch := func() *install.BootResult {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "/bin/sh")
		cmd.Stdin = strings.NewReader(script)
		cmd.Env = []string{"PATH=" + bin + ":/usr/bin:/bin"}
		if out, err := cmd.CombinedOutput(); cmd.ProcessState.ExitCode() != 1 {
			t.Fatalf("%v\n%s", err, out)
		}
		r, err := install.ReadResult(root)
		if err != nil || r == nil {
			text, _ := os.ReadFile(filepath.Join(dir, install.ResultPath))
			t.Fatalf("%v\n%s", err, text)
		}
		return r
	}
	first := fetch()
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		t.Fatal(err)
	}
	if first.Verb != install.VerbCloudInit || first.Outcome != install.BootFailed || first.ExitCode != exitFailed || first.Done() || first.Nodeprep != "1.2.3" ||
		first.Digests.Profile != cloudinit.Digest(files) || first.Digests.Bundle != sum || first.Boot != strings.TrimSpace(string(boot)) || first.Made != 1 ||
		time.Since(first.Began) > time.Hour || first.Ended.Before(first.Began) || !first.Saw(nil) || first.Earlier != nil {
		t.Errorf("%+v", first)
	}
	if want := `cannot get https://boot.example.com/"it"\s: error: 404 "no\ tab`; first.Error != want {
		t.Errorf("%q, want %q", first.Error, want)
	}
	// Whoever writes the next one keeps it, and it the other's, once.
	if err := install.WriteResult(t.Context(), host.New(root), &install.BootResult{Verb: install.VerbFirstBoot, Outcome: install.BootDone, Digests: install.BootDigests{Profile: sum}}); err != nil {
		t.Fatal(err)
	}
	r, err := install.ReadResult(root)
	if err != nil || r.Of(install.VerbCloudInit) == nil || r.Earlier.Error != first.Error || r.Made != 1 {
		t.Errorf("%+v, %v", r, err)
	}
	rec := &install.Receipt{Format: 1, ID: "0123", Generation: 7, Time: time.Now().UTC(), Generations: 3, Profile: json.RawMessage(`{"id":"x","time":"y"}`)}
	text, err := json.MarshalIndent(rec, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, install.ReceiptPath), append(text, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if r := fetch(); r.Verb != install.VerbCloudInit || r.Earlier != nil || r.Made != 1 || !r.Saw(rec) || r.Receipt != rec.ID || r.Outcome != install.BootFailed {
			t.Errorf("%+v", r)
		}
	}
	result := filepath.Join(dir, install.ResultPath)
	before, err := os.ReadFile(result)
	if err != nil || strings.Contains(string(before), "secret") {
		t.Errorf("%v\n%s", err, before)
	}
	// A receipt that another program has written is not taken for none, or for an old one.
	for name, other := range map[string]func() ([]byte, error){
		"indented more": func() ([]byte, error) { return json.MarshalIndent(rec, "", "  ") },
		"on one line":   func() ([]byte, error) { return json.Marshal(rec) },
	} {
		text, err := other()
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, install.ReceiptPath), append(text, '\n'), 0o600); err != nil {
			t.Fatal(err)
		}
		fetch()
		if after, err := os.ReadFile(result); err != nil || string(after) != string(before) {
			t.Errorf("%s: %v\n%s", name, err, after)
		}
	}
	left, err := filepath.Glob(filepath.Join(dir, "var/lib/.nodeprep*"))
	more, merr := filepath.Glob(filepath.Join(dir, install.StateDir, ".*"))
	if err != nil || merr != nil || len(left)+len(more) > 0 {
		t.Errorf("it leaves %v, %v", left, more)
	}
}

// A machine whose clock cannot be right waits for the time, and not for ever.
func TestAwaitTime(t *testing.T) {
	for name, tt := range map[string]struct {
		comes, most, waits time.Duration
		root, says         string
	}{
		"it is there":      {comes: 0, most: time.Minute, root: "/"},
		"it comes":         {comes: 10 * time.Second, most: time.Minute, waits: 10 * time.Second, root: "/", says: "the time is there: 2030"},
		"it never comes":   {comes: time.Hour, most: time.Minute, waits: time.Minute, root: "/", says: "nobody has set the time: it goes on with 2000"},
		"it is an image's": {comes: time.Hour, most: time.Minute, root: t.TempDir()},
	} {
		t.Run(name, func(t *testing.T) {
			root, err := host.OpenRoot(tt.root)
			if err != nil {
				t.Fatal(err)
			}
			synctest.Test(t, func(t *testing.T) { // in which it is the year 2000
				began := time.Now()
				h := &host.Host{Root: root, Now: func() time.Time {
					if time.Since(began) >= tt.comes {
						return time.Now().AddDate(30, 0, 0)
					}
					return time.Now()
				}}
				var said bytes.Buffer
				a := &app{stdio: stdio{err: &said}, env: func(string) (string, bool) { return "", false }}
				a.awaitTime(t.Context(), h, tt.most)
				if waited := time.Since(began); waited != tt.waits {
					t.Errorf("it waited %s, want %s", waited, tt.waits)
				}
				if got := said.String(); !strings.Contains(got, tt.says) || (got == "") != (tt.says == "") {
					t.Errorf("it says %q, want %q", got, tt.says)
				}
			})
		})
	}
}

// A run at boot does again what is left, and no more: it takes nothing back that somebody has
// applied since, and fetches nothing for an audit.
func TestCloudInitNext(t *testing.T) {
	const digest, other = exampleSum, "f" + exampleSum
	now := time.Now().UTC()
	receipt := func(generation int, of install.BootDigests) *install.Receipt {
		return &install.Receipt{ID: "id", Generation: generation, Time: now.Add(time.Duration(generation) * time.Hour), UserData: of}
	}
	result := func(exit int, saw *install.Receipt) *install.BootResult {
		r := &install.BootResult{Verb: install.VerbCloudInit, ExitCode: exit, Digests: install.BootDigests{Profile: digest}}
		if saw != nil {
			r.Generation, r.Applied = saw.Generation, saw.Time
		}
		return r
	}
	ours := install.BootDigests{Profile: digest}
	golden := receipt(1, install.BootDigests{})
	for name, tt := range map[string]struct {
		bundle string
		last   *install.BootResult
		now    *install.Receipt
		want   cloudInitStep
	}{
		"a fresh machine":                  {now: nil, want: applyAll},
		"a golden image":                   {now: golden, want: applyAll},
		"failed, nothing there":            {last: result(exitFailed, nil), now: nil, want: applyAll},
		"failed on a golden image":         {last: result(exitFailed, golden), now: golden, want: applyAll},
		"failed, applied by hand since":    {last: result(exitFailed, nil), now: receipt(1, install.BootDigests{}), want: leaveAll},
		"its audit failed":                 {last: result(exitDiffers, receipt(1, ours)), now: receipt(1, ours), want: auditOnly},
		"the audit failed of no change":    {last: result(exitDiffers, golden), now: golden, want: auditOnly},
		"its audit failed, applied since":  {last: result(exitDiffers, receipt(1, ours)), now: receipt(2, install.BootDigests{}), want: leaveAll},
		"power cut before the result":      {now: receipt(1, ours), want: auditOnly},
		"failed, then power cut":           {last: result(exitFailed, nil), now: receipt(1, ours), want: auditOnly},
		"of another user-data":             {now: receipt(1, install.BootDigests{Profile: other}), want: applyAll},
		"with another bundle":              {bundle: other, now: receipt(1, install.BootDigests{Profile: digest, Bundle: digest}), want: applyAll},
		"its receipt gone with its result": {last: result(exitDiffers, receipt(1, ours)), now: nil, want: applyAll},
	} {
		o := &cloudInitRun{digest: digest, cloudInitBundle: cloudInitBundle{sha256: tt.bundle}}
		if got := o.next(tt.last, tt.now); got != tt.want {
			t.Errorf("%s: step %d, want %d", name, got, tt.want)
		}
	}
}
