package daemon

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/containers"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
)

var runc = flag.String("runc", "", "with -containerd, also run containers with this runc `binary`")

// container starts a container of this machine's own programs and returns its task's PID.
func container(ctx context.Context, t *testing.T, d *Client, ns, id string, labels map[string]string, args ...string) int {
	t.Helper()
	ctx = namespaces.WithNamespace(ctx, ns)
	rootfs := t.TempDir()
	programs := func(_ context.Context, _ oci.Client, _ *containers.Container, s *oci.Spec) error {
		for _, dir := range []string{"/bin", "/lib", "/lib64", "/usr"} {
			if _, err := os.Stat(dir); err != nil {
				continue
			}
			if err := os.Mkdir(rootfs+dir, 0o755); err != nil {
				return err
			}
			m := s.Mounts[0]
			m.Destination, m.Type, m.Source, m.Options = dir, "bind", dir, []string{"rbind", "ro"}
			s.Mounts = append(s.Mounts, m)
		}
		return nil
	}
	c, err := d.c.NewContainer(ctx, id, client.WithContainerLabels(labels),
		client.WithRuntime("io.containerd.runc.v2", &options.Options{BinaryName: *runc}),
		client.WithNewSpec(oci.WithRootFSPath(rootfs), oci.WithProcessArgs(args...), programs))
	if err != nil {
		t.Fatal(err)
	}
	task, err := c.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return int(task.Pid())
}

func TestRealTasks(t *testing.T) {
	if *runc == "" {
		t.Skip(`needs a runc binary: "go test ./internal/daemon -containerd PATH -runc PATH"`)
	}
	d := realDaemon(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()

	pod := map[string]string{"io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.name": "web", "io.cri-containerd.kind": "sandbox"}
	app := map[string]string{"io.kubernetes.pod.namespace": "default", "io.kubernetes.pod.name": "web", "io.kubernetes.container.name": "nginx"}
	// A first process without a handler does not hear SIGTERM (pid_namespaces(7)).
	deaf := []string{"/usr/bin/sleep", "1000"}
	pids := map[string]int{
		"pause":  container(ctx, t, d, "k8s.io", "pause", pod, deaf...),
		"nginx":  container(ctx, t, d, "k8s.io", "nginx", app, "/bin/sh", "-c", "trap 'exit 3' TERM; sleep 1000 & wait"),
		"frozen": container(ctx, t, d, "build", "frozen", nil, "/bin/sh", "-c", "trap 'exit 4' TERM; sleep 1000 & wait"),
		"brief":  container(ctx, t, d, "build", "brief", nil, deaf...),
	}
	frozen, err := d.c.LoadContainer(namespaces.WithNamespace(ctx, "build"), "frozen")
	if err != nil {
		t.Fatal(err)
	}
	task, err := frozen.Task(namespaces.WithNamespace(ctx, "build"), nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := task.Pause(namespaces.WithNamespace(ctx, "build")); err != nil {
		t.Fatal(err)
	}

	tasks, err := d.Tasks(ctx)
	if err != nil || len(tasks) != len(pids) {
		t.Fatalf("tasks %+v, %v", tasks, err)
	}
	for _, task := range tasks {
		status := "running"
		if task.ID == "frozen" {
			status = "paused"
		}
		if task.PID != pids[task.ID] || task.Status != status || task.Shim == 0 || !isShim("/proc", task.Shim) {
			t.Errorf("task %+v, want PID %d with a shim", task, pids[task.ID])
		}
	}
	shims, err := Shims("/proc", d.address)
	if err != nil || len(shims) != len(pids) {
		t.Errorf("shims by their command lines: %+v, %v", shims, err)
	}
	containers, err := d.Containers(ctx)
	if err != nil || len(containers) != len(pids) {
		t.Fatalf("containers %+v, %v", containers, err)
	}
	for _, c := range containers {
		want := map[string]string{"pause": "default/web", "nginx": "default/web/nginx", "frozen": "frozen", "brief": "brief"}[c.ID]
		if c.Name != want || c.Sandbox != (c.ID == "pause") || time.Since(c.Created) > time.Minute || time.Since(c.Created) < 0 {
			t.Errorf("container %+v, want the name %s", c, want)
		}
	}

	w, err := WatchShims(tasks)
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	begin := time.Now()
	i := slices.IndexFunc(tasks, func(t Task) bool { return t.ID == "brief" })
	if err := syscall.Kill(tasks[i].Shim, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	awaitEnded(t, w, begin, "brief")

	if err := d.StopTasks(ctx, time.Second); err != nil {
		t.Error(err)
	}
	if tasks, err := d.Tasks(ctx); err != nil || len(tasks) != 0 {
		t.Errorf("after StopTasks: %+v, %v", tasks, err)
	}
	awaitEnded(t, w, begin, "brief", "frozen", "nginx", "pause")
	if err := d.StopTasks(ctx, time.Second); err != nil {
		t.Errorf("with nothing to stop: %v", err)
	}
}

// A disk that fills during an import is named; what was there before still works.
func TestRealDiskFills(t *testing.T) {
	d := realDaemon(t, func(root string) func() error {
		if err := syscall.Mount("tmpfs", root, "tmpfs", 0, "size=12m"); err != nil {
			t.Fatal(err)
		}
		return func() error { return syscall.Unmount(root, syscall.MNT_DETACH) }
	})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	amd64 := ImportOptions{Snapshotter: "native", Platform: "linux/amd64"}
	small, err := d.Import(ctx, bytes.NewReader(dockerArchive(t, "small:1", "x", linux("amd64"))), amd64)
	if err != nil {
		t.Fatal(err)
	}
	for name, size := range map[string]int{"while it is sent": 16 << 20, "while it is unpacked": 7 << 20} {
		_, err := d.Import(ctx, bytes.NewReader(dockerArchive(t, "large:1", strings.Repeat("x", size), linux("amd64"))), amd64)
		t.Log(err)
		if !errors.Is(err, syscall.ENOSPC) || !strings.Contains(err.Error(), "the disk of /") || !strings.Contains(err.Error(), "/root/io.containerd.") {
			t.Errorf("%s: %v", name, err)
		}
		list, err := d.Images(ctx, "")
		if err != nil || slices.ContainsFunc(list, func(i Image) bool { return strings.Contains(i.Name, "large") }) {
			t.Errorf("%s: images %+v, %v", name, list, err)
		}
		wantReady(ctx, t, d, small[0].Name)
	}
}
