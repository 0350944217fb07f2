package daemon

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// fakeProc makes a proc(5) of processes: PID to parent, name and command line.
func fakeProc(t *testing.T, all map[int][3]string) string {
	t.Helper()
	dir := t.TempDir()
	for pid, p := range all {
		for file, content := range map[string]string{
			"comm":    p[1][:min(len(p[1]), 15)] + "\n",
			"stat":    fmt.Sprintf("%d (%s) S %s 1 1 0 -1 0 0 0 0 0 0 0 0 0 20 0 1 0 %d00 0 0", pid, p[1][:min(len(p[1]), 15)], p[0], pid),
			"cmdline": strings.ReplaceAll(p[2], " ", "\x00") + "\x00",
		} {
			at := filepath.Join(dir, strconv.Itoa(pid), file)
			if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(at, []byte(content), 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
	return dir
}

func TestShimOfTask(t *testing.T) {
	proc := fakeProc(t, map[int][3]string{
		1:  {"0", "systemd", ""},
		10: {"1", "containerd-shim-runc-v2", "/usr/local/bin/containerd-shim-runc-v2 -namespace k8s.io -id pod -address /run/containerd/containerd.sock"},
		11: {"10", "evil) S 1 (x", "sleep"}, // a name is anything
		20: {"1", "containerd-shim-kata-v2", ""},
		30: {"1", "sleep", ""},
		31: {"30", "sleep", ""},
	})
	for pid, want := range map[int]int{11: 10, 10: 10, 20: 20, 30: 0, 31: 0, 99: 0, 0: 0} {
		if got := shimOf(proc, pid); got != want {
			t.Errorf("shim of %d = %d, want %d", pid, got, want)
		}
	}
	if parent, start := parentAndStart(proc, 11); parent != 10 || start != "1100" {
		t.Errorf("process 11: parent %d, start %s", parent, start)
	}
	// An upgrade replaces the program of a running shim.
	if err := os.Remove(filepath.Join(proc, "10/comm")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/usr/local/bin/containerd-shim-runc-v2 (deleted)", filepath.Join(proc, "10/exe")); err != nil {
		t.Fatal(err)
	}
	if got := shimOf(proc, 11); got != 10 {
		t.Errorf("shim of 11 by its program = %d, want 10", got)
	}
}

func TestShimsWithoutDaemon(t *testing.T) {
	const shim = "/usr/local/bin/containerd-shim-runc-v2"
	proc := fakeProc(t, map[int][3]string{
		10: {"1", "containerd-shim-runc-v2", shim + " -namespace k8s.io -id pod -address /run/containerd/containerd.sock"},
		11: {"1", "containerd-shim-runc-v2", shim + " --namespace=moby --id=box --address=/run/containerd/containerd.sock"},
		12: {"1", "containerd-shim-runc-v2", shim + " -namespace k8s.io -id other -address /run/k3s/containerd/containerd.sock"},
		13: {"1", "containerd-shim-runc-v2", shim + " -info"},
		14: {"1", "sleep", "sleep -id x -address /run/containerd/containerd.sock"},
	})
	got, err := Shims(proc, "/run/containerd/containerd.sock")
	slices.SortFunc(got, func(a, b Task) int { return a.Shim - b.Shim })
	want := []Task{{Namespace: "k8s.io", ID: "pod", Status: "unknown", Shim: 10}, {Namespace: "moby", ID: "box", Status: "unknown", Shim: 11}}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("shims: %v (-want +got):\n%s", err, diff)
	}
	if _, err := Shims(filepath.Join(proc, "none"), ""); err == nil {
		t.Error("no proc is no error")
	}
}

func TestPodNames(t *testing.T) {
	for want, labels := range map[string]map[string]string{
		"id":          {"app": "x"},
		"default/web": {"io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.name": "web"},
		"ns/web/nginx": {"io.kubernetes.pod.namespace": "ns", "io.kubernetes.pod.name": "web",
			"io.kubernetes.container.name": "nginx"},
	} {
		if got := podName("id", labels); got != want {
			t.Errorf("name of %v = %s, want %s", labels, got, want)
		}
	}
}

// startShim runs a process that looks like a shim, and ends when its input does.
func startShim(t *testing.T) (pid int, end func()) {
	t.Helper()
	cat, err := exec.LookPath("cat")
	if err != nil {
		t.Fatal(err)
	}
	// A link, since programs such as busybox go by their own names.
	name := filepath.Join(t.TempDir(), "containerd-shim-test-v1")
	if err := os.Symlink(cat, name); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), name)
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	// Once it answers it runs the program, not its copy of ours.
	output, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(input, "x"); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(output, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	ended := false
	end = func() {
		if ended {
			return
		}
		ended = true
		input.Close()
		_ = cmd.Wait()
	}
	t.Cleanup(end)
	return cmd.Process.Pid, end
}

func TestWatchNotesWhenShimsEnd(t *testing.T) {
	one, endOne := startShim(t)
	two, endTwo := startShim(t)
	three, _ := startShim(t)
	gone, endGone := startShim(t)
	endGone()
	task := func(id string, shim int) Task { return Task{Namespace: "k8s.io", ID: id, PID: 1 << 22, Shim: shim} }

	begin := time.Now()
	w, err := WatchShims([]Task{
		task("one", one), task("one's second", one), task("two", two), task("three", three), task("gone", gone),
		task("unknown", 0), task("not a shim", os.Getpid()),
	})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	beforeOne := time.Now()
	endOne()
	awaitEnded(t, w, beforeOne, "one", "one's second")
	afterOne := time.Now()
	endTwo()
	awaitEnded(t, w, afterOne, "two")
	for _, c := range []struct {
		from, to time.Time
		want     []string
	}{
		{begin, beforeOne, []string{"gone", "not a shim"}},
		{beforeOne, afterOne, []string{"one", "one's second"}},
		{begin, time.Now(), []string{"gone", "not a shim", "one", "one's second", "two"}},
		{time.Now(), time.Now().Add(time.Hour), nil},
	} {
		if diff := cmp.Diff(c.want, ended(w, c.from, c.to)); diff != "" {
			t.Errorf("ended (-want +got):\n%s", diff)
		}
	}
}

func ended(w *Watch, from, to time.Time) []string {
	var out []string
	for _, e := range w.Ended(from, to) {
		out = append(out, e.ID)
	}
	return out
}

// awaitEnded waits until a watch has noticed an end; it tells nobody when it does.
func awaitEnded(t *testing.T, w *Watch, since time.Time, want ...string) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.After(20 * time.Second)
	for {
		got := ended(w, since, time.Now())
		if slices.Equal(got, want) {
			return
		}
		select {
		case <-limit:
			t.Fatalf("ended %v, want %v", got, want)
		case <-tick.C:
		}
	}
}

// Kernels before 5.3 report no process's end.
func TestWatchWithoutPidfds(t *testing.T) {
	pid, end := startShim(t)
	w, err := WatchShims([]Task{{ID: "x", Shim: pid}})
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	begin := time.Now()
	w, err = watchShims([]Task{{ID: "x", Shim: pid}}, func(int) (int, error) { return -1, os.ErrInvalid })
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if got := w.Ended(begin, time.Now()); got != nil {
		t.Errorf("ended %v while it runs", got)
	}
	end()
	awaitEnded(t, w, begin, "x")
}

func TestWatchOfNothing(t *testing.T) {
	w, err := WatchShims(nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := w.Ended(time.Time{}, time.Now()); got != nil {
		t.Errorf("ended %v", got)
	}
	w.Close()
}
