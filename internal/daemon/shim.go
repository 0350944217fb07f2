package daemon

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// shimName is what the names of all shims' programs begin with (containerd's
// core/runtime/v2/README.md), and, cut after 15 bytes by the kernel (proc_pid_comm(5)),
// what their comm is.
const shimName = "containerd-shim"

// shimOf is the shim that keeps a process: its parent, or itself where a runtime tells
// its shim's PID as the task's; 0 where neither is a shim.
func shimOf(proc string, pid int) int {
	for range 2 {
		if pid <= 1 {
			return 0
		}
		if isShim(proc, pid) {
			return pid
		}
		pid, _ = parentAndStart(proc, pid)
	}
	return 0
}

func isShim(proc string, pid int) bool {
	dir := filepath.Join(proc, strconv.Itoa(pid))
	if comm, err := os.ReadFile(filepath.Join(dir, "comm")); err == nil && strings.HasPrefix(string(comm), shimName) {
		return true
	}
	exe, err := os.Readlink(filepath.Join(dir, "exe"))
	return err == nil && strings.HasPrefix(filepath.Base(exe), shimName)
}

// parentAndStart reads a process's parent and the time it was started at, in the clock
// ticks since boot that proc_pid_stat(5) has; zeros for a process that is gone.
func parentAndStart(proc string, pid int) (parent int, start string) {
	stat, err := os.ReadFile(filepath.Join(proc, strconv.Itoa(pid), "stat"))
	if err != nil {
		return 0, ""
	}
	// The name, field 2, may hold anything but ends with the last parenthesis.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	if len(fields) < 20 || fields[0] == "Z" || fields[0] == "X" {
		return 0, ""
	}
	parent, _ = strconv.Atoi(fields[1])
	return parent, fields[19]
}

// Shims finds the shims below a proc(5) directory that answer to the daemon at a
// socket, whether it runs or not, by their command lines: each as a task whose
// namespace and ID are those the shim was started for, which for a pod is its sandbox.
func Shims(proc, address string) ([]Task, error) {
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil, fmt.Errorf("look for shims: %w", err)
	}
	var out []Task
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || !isShim(proc, pid) {
			continue
		}
		line, err := os.ReadFile(filepath.Join(proc, e.Name(), "cmdline"))
		if err != nil {
			continue
		}
		args := strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")
		if a := argument(args, "address"); a != "" && a != address {
			continue
		}
		id := argument(args, "id")
		if id == "" {
			continue // its short-lived start, or another program
		}
		out = append(out, Task{Namespace: argument(args, "namespace"), ID: id, Status: "unknown", Shim: pid})
	}
	return out, nil
}

// argument is the value of a flag as Go's flag package has it, -name VALUE or -name=VALUE.
func argument(args []string, name string) string {
	for i, a := range args {
		a = strings.TrimPrefix(strings.TrimPrefix(a, "-"), "-")
		if v, ok := strings.CutPrefix(a, name+"="); ok && args[i] != a {
			return v
		}
		if a == name && args[i] != a && i+1 < len(args) {
			return args[i+1]
		}
	}
	return ""
}

// byShim groups tasks by the process to follow.
func byShim(tasks []Task) map[int][]Task {
	out := map[int][]Task{}
	for _, t := range tasks {
		if t.Shim > 1 {
			out[t.Shim] = append(out[t.Shim], t)
		}
	}
	return out
}
