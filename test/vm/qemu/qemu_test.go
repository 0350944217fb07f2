package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"testing"
	"time"
)

// peer plays QEMU, or the agent, on the other end of a connection: it answers requests by
// name.
func peer(t *testing.T, conn net.Conn, answer func(command string, args map[string]any, id any) string) {
	t.Helper()
	in := bufio.NewReader(conn)
	for {
		line, err := in.ReadString('\n')
		if err != nil {
			return
		}
		var msg struct {
			Execute   string
			Arguments map[string]any
			ID        any
		}
		if err := json.Unmarshal([]byte(strings.TrimPrefix(line, "\xff")), &msg); err != nil {
			t.Errorf("request %q: %v", line, err)
			return
		}
		if _, err := io.WriteString(conn, answer(msg.Execute, msg.Arguments, msg.ID)); err != nil {
			return
		}
	}
}

func TestQMPWaitsForTheEventItWasAskedFor(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go peer(t, theirs, func(command string, _ map[string]any, id any) string {
		if command == "migrate" {
			return fmt.Sprintf(`{"event":"MIGRATION","data":{"status":"active"}}
{"return":{},"id":%v}
{"event":"MIGRATION","data":{"status":"failed"}}
`, id)
		}
		return fmt.Sprintf("{\"return\":{},\"id\":%v}\n", id)
	})
	q, err := newQMP(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	m := &Machine{qmp: q, exited: make(chan struct{})}
	if err := m.migrate(t.Context(), "migrate", "exec:true"); err == nil || !strings.Contains(err.Error(), "migration failed") {
		t.Errorf("got %v, want the failure that the event told of", err)
	}
}

func TestQMPTellsOfRefusalAndOfTheEnd(t *testing.T) {
	ours, theirs := net.Pipe()
	defer ours.Close()
	go peer(t, theirs, func(command string, _ map[string]any, id any) string {
		switch command {
		case "qmp_capabilities":
			return fmt.Sprintf("{\"QMP\":{}}\n{\"return\":{},\"id\":%v}\n", id)
		case "device_add":
			return fmt.Sprintf("{\"error\":{\"class\":\"GenericError\",\"desc\":\"no such bus\"},\"id\":%v}\n", id)
		default:
			theirs.Close()
			return ""
		}
	})
	q, err := newQMP(t.Context(), ours)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.do(t.Context(), "device_add", nil, nil); err == nil || !strings.Contains(err.Error(), "no such bus") {
		t.Errorf("got %v, want QEMU's words", err)
	}
	event := q.await("SHUTDOWN", func(map[string]any) bool { return true })
	if err := q.do(t.Context(), "quit", nil, nil); !errors.Is(err, errGone) {
		t.Errorf("got %v, want that QEMU is gone", err)
	}
	if _, ok := <-event; ok {
		t.Error("an event came from nowhere")
	}
}

// agentOn makes a machine whose agent answers by name.
func agentOn(t *testing.T, answer func(command string, args map[string]any) string) *Machine {
	t.Helper()
	m := &Machine{exited: make(chan struct{})}
	m.agent.dial = func(context.Context) (net.Conn, error) {
		ours, theirs := net.Pipe()
		go peer(t, theirs, func(command string, args map[string]any, _ any) string {
			if command == "guest-sync-delimited" {
				// The rest of an earlier conversation comes first.
				return fmt.Sprintf("{\"return\": 1}\n\xff{\"return\": %.0f}\n", args["id"])
			}
			return answer(command, args)
		})
		t.Cleanup(func() { ours.Close() })
		return ours, nil
	}
	return m
}

func TestExec(t *testing.T) {
	asked := 0
	m := agentOn(t, func(command string, args map[string]any) string {
		switch command {
		case "guest-exec":
			return `{"return":{"pid":7}}` + "\n"
		case "guest-exec-status":
			if asked++; asked < 3 {
				return `{"return":{"exited":false}}` + "\n"
			}
			return `{"return":{"exited":true,"exitcode":3,"out-data":"aGVsbG8=","err-data":"b2g="}}` + "\n"
		}
		return `{"error":{"desc":"what?"}}` + "\n"
	})
	got, err := m.Exec(t.Context(), "", "/bin/sh")
	if want := (Result{Code: 3, Stdout: "hello", Stderr: "oh"}); err != nil || got != want {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
}

func TestExecKillsWhatTakesTooLong(t *testing.T) {
	var killed []any
	m := agentOn(t, func(command string, args map[string]any) string {
		if args["path"] == "/bin/kill" {
			killed = args["arg"].([]any)
		}
		if command == "guest-exec" {
			return `{"return":{"pid":7}}` + "\n"
		}
		return `{"return":{"exited":false}}` + "\n"
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := m.Exec(ctx, "", "/bin/sleep"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want that time was up", err)
	}
	if len(killed) != 2 || killed[1] != "7" {
		t.Errorf("killed %v, want process 7", killed)
	}
}

func TestFilesGoInPieces(t *testing.T) {
	var wrote int
	m := agentOn(t, func(command string, args map[string]any) string {
		switch command {
		case "guest-file-open":
			return `{"return":9}` + "\n"
		case "guest-file-write":
			n := len(args["buf-b64"].(string)) / 4 * 3
			n -= strings.Count(args["buf-b64"].(string), "=")
			wrote += n
			return fmt.Sprintf("{\"return\":{\"count\":%d}}\n", n)
		case "guest-file-close":
			return `{"return":{}}` + "\n"
		}
		return `{"error":{"desc":"what?"}}` + "\n"
	})
	if err := m.WriteFile(t.Context(), "/tmp/x", make([]byte, chunk*2+5)); err != nil {
		t.Fatal(err)
	}
	if wrote != chunk*2+5 {
		t.Errorf("wrote %d bytes, want %d", wrote, chunk*2+5)
	}
}

func TestArgsQuoteCommas(t *testing.T) {
	_, args, err := Args(Config{Arch: "amd64", Accel: "tcg", Disk: "/a,b/disk", Dir: "/a,b"})
	if err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(args, " "); !strings.Contains(all, "file.filename=/a,,b/disk") || !strings.Contains(all, "unix:/a,,b/qmp,server") {
		t.Errorf("commas in paths are not doubled: %s", all)
	}
	if _, _, err := Args(Config{Arch: "riscv64"}); err == nil {
		t.Error("an arch that nobody knows was taken")
	}
}

func TestArgsRecordADiskThatKeepsItsFlushes(t *testing.T) {
	_, args, err := Args(Config{Arch: "amd64", Accel: "tcg", Disk: "/a,b/disk", Record: "/a,b/log", Dir: "/a"})
	if err != nil {
		t.Fatal(err)
	}
	disk := args[slices.Index(args, "-blockdev")+1]
	for _, want := range []string{"driver=blklogwrites,", "file.file.filename=/a,,b/disk", "log.filename=/a,,b/log"} {
		if !strings.Contains(disk, want) {
			t.Errorf("nothing of %s in the recorded disk: %s", want, disk)
		}
	}
	if slices.Contains(strings.Split(disk, ","), "cache.no-flush=on") {
		t.Errorf("the recorded disk ignores flushes: %s", disk)
	}
	if all := strings.Join(args, " "); !strings.Contains(all, "virtio-blk-pci,drive=root,discard=off,write-zeroes=off") {
		t.Errorf("the recorded disk may get requests that end up in disorder: %s", all)
	}
}

func TestArgsOfABoard(t *testing.T) {
	program, args, err := Args(Config{Arch: "arm64", Accel: "tcg", Disk: "/a/disk", Dir: "/a"})
	if err != nil {
		t.Fatal(err)
	}
	if all := program + " " + strings.Join(args, " "); !strings.Contains(all, "qemu-system-aarch64 -machine virt,gic-version=3 ") || !strings.Contains(all, " console=ttyAMA0 ") {
		t.Errorf("not a board whose console is its first serial port: %s", all)
	}
}
