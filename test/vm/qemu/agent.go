package qemu

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"time"
)

// agent speaks to qemu-guest-agent inside the machine,
// https://www.qemu.org/docs/master/interop/qemu-ga-ref.html, over a virtio serial port.
// One request is in flight at a time. A connection on which a request was given up is
// thrown away, since its answer may still come.
type agent struct {
	dial func(ctx context.Context) (net.Conn, error)
	conn net.Conn
	in   *bufio.Reader
}

// waitReady returns once the agent answers.
func (a *agent) waitReady(ctx context.Context) error {
	for {
		// Bytes sent before the agent opens its end of the port are lost.
		try, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		err := a.connect(try)
		cancel()
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return fmt.Errorf("reach guest agent: %w", context.Cause(ctx))
		}
		if !errors.Is(err, context.DeadlineExceeded) {
			return fmt.Errorf("reach guest agent: %w", err)
		}
	}
}

// connect opens the channel and throws away what an earlier conversation left in it.
func (a *agent) connect(ctx context.Context) error {
	conn, err := a.dial(ctx)
	if err != nil {
		return err
	}
	a.conn, a.in = conn, bufio.NewReader(conn)
	id := rand.Int64N(1 << 53)
	// 0xff resets the agent's parser; its answer to guest-sync-delimited begins with one.
	text := fmt.Sprintf("\xff{\"execute\":\"guest-sync-delimited\",\"arguments\":{\"id\":%d}}\n", id)
	err = a.within(ctx, func() error {
		if _, err := io.WriteString(conn, text); err != nil {
			return err
		}
		for {
			if _, err := a.in.ReadBytes(0xff); err != nil {
				return err
			}
			line, err := a.in.ReadBytes('\n')
			if err != nil {
				return err
			}
			var answer struct {
				Return int64 `json:"return"`
			}
			if json.Unmarshal(line, &answer) == nil && answer.Return == id {
				return nil
			}
		}
	})
	if err != nil {
		a.drop()
	}
	return err
}

func (a *agent) drop() {
	a.conn.Close()
	a.conn = nil
}

// within runs f, whose reads and writes fail when ctx ends.
func (a *agent) within(ctx context.Context, f func() error) error {
	conn := a.conn
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	err := f()
	if !stop() && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func (a *agent) do(ctx context.Context, command string, args map[string]any, result any) error {
	if a.conn == nil {
		if err := a.waitReady(ctx); err != nil {
			return err
		}
	}
	msg := map[string]any{"execute": command}
	if args != nil {
		msg["arguments"] = args
	}
	request, err := json.Marshal(msg)
	if err != nil {
		return err
	}
	var line []byte
	err = a.within(ctx, func() error {
		if _, err := a.conn.Write(append(request, '\n')); err != nil {
			return err
		}
		var err error
		line, err = a.in.ReadBytes('\n')
		return err
	})
	if err != nil {
		a.drop()
		return fmt.Errorf("%s: %w", command, err)
	}
	var answer struct {
		Return json.RawMessage `json:"return"`
		Error  *struct {
			Desc string `json:"desc"`
		} `json:"error"`
	}
	if err := json.Unmarshal(line, &answer); err != nil {
		a.drop()
		return fmt.Errorf("%s: %w", command, err)
	}
	if answer.Error != nil {
		return fmt.Errorf("%s: %s", command, answer.Error.Desc)
	}
	if result != nil {
		return json.Unmarshal(answer.Return, result)
	}
	return nil
}

// Result is what a program in the machine left behind.
type Result struct {
	Code           int // exit code; 128 plus the number of the signal that ended it
	Stdout, Stderr string
}

// Exec runs a program in the machine and waits for it. Output is kept up to 16 MiB each.
// The error is about running it: a program that fails has a Code. When ctx ends, the
// program is killed.
func (m *Machine) Exec(ctx context.Context, stdin string, path string, args ...string) (Result, error) {
	request := map[string]any{
		"path": path, "arg": args, "capture-output": true,
		"env": []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8", "TERM=dumb"},
	}
	if stdin != "" {
		request["input-data"] = base64.StdEncoding.EncodeToString([]byte(stdin))
	}
	var started struct {
		PID int `json:"pid"`
	}
	if err := m.agent.do(ctx, "guest-exec", request, &started); err != nil {
		return Result{}, m.explain(err)
	}
	pause := 20 * time.Millisecond
	for {
		var status struct {
			Exited   bool   `json:"exited"`
			ExitCode int    `json:"exitcode"`
			Signal   int    `json:"signal"`
			Out      []byte `json:"out-data"`
			Err      []byte `json:"err-data"`
			OutCut   bool   `json:"out-truncated"`
		}
		err := m.agent.do(ctx, "guest-exec-status", map[string]any{"pid": started.PID}, &status)
		if err != nil {
			return Result{}, errors.Join(m.explain(err), m.killInside(started.PID))
		}
		if status.Exited {
			r := Result{Code: status.ExitCode, Stdout: string(status.Out), Stderr: string(status.Err)}
			if status.Signal != 0 {
				r.Code = 128 + status.Signal
			}
			if status.OutCut {
				return r, fmt.Errorf("run %s: more output than the agent keeps", path)
			}
			return r, nil
		}
		// The agent has no event for it. Asking costs the machine time, so less often
		// the longer it takes.
		select {
		case <-ctx.Done():
			return Result{}, errors.Join(fmt.Errorf("run %s: %w", path, context.Cause(ctx)), m.killInside(started.PID))
		case <-m.exited:
			return Result{}, m.explain(fmt.Errorf("run %s: the machine ended", path))
		case <-time.After(pause):
		}
		pause = min(pause*5/4, 500*time.Millisecond)
	}
}

// killInside kills a program whose time is up, if the machine still listens.
func (m *Machine) killInside(pid int) error {
	select {
	case <-m.exited:
		return nil
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	err := m.agent.do(ctx, "guest-exec", map[string]any{"path": "/bin/kill", "arg": []string{"-KILL", fmt.Sprint(pid)}}, nil)
	if err != nil {
		return fmt.Errorf("kill what ran: %w", err)
	}
	return nil
}

// chunk is how much of a file goes in one request of the agent.
const chunk = 256 << 10

// WriteFile writes a file in the machine, creating it with mode 0644 and root's ownership
// where it is not there. For more than a few megabytes attach a disk.
func (m *Machine) WriteFile(ctx context.Context, path string, data []byte) error {
	handle, err := m.open(ctx, path, "w")
	if err != nil {
		return err
	}
	for len(data) > 0 && err == nil {
		n := min(len(data), chunk)
		var wrote struct {
			Count int `json:"count"`
		}
		err = m.agent.do(ctx, "guest-file-write", map[string]any{
			"handle": handle, "buf-b64": base64.StdEncoding.EncodeToString(data[:n]),
		}, &wrote)
		if err == nil && wrote.Count == 0 {
			err = io.ErrShortWrite
		}
		data = data[wrote.Count:]
	}
	if err = errors.Join(err, m.close(ctx, handle)); err != nil {
		return fmt.Errorf("write %s in the machine: %w", path, err)
	}
	return nil
}

func (m *Machine) open(ctx context.Context, path, mode string) (handle int, err error) {
	if err := m.agent.do(ctx, "guest-file-open", map[string]any{"path": path, "mode": mode}, &handle); err != nil {
		return 0, m.explain(err)
	}
	return handle, nil
}

func (m *Machine) close(ctx context.Context, handle int) error {
	return m.agent.do(ctx, "guest-file-close", map[string]any{"handle": handle}, nil)
}
