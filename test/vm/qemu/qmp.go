package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

var errGone = errors.New("qemu is gone")

// tick paces what can only be asked for again and again.
func tick() <-chan time.Time { return time.After(50 * time.Millisecond) }

// qmp speaks the QEMU Machine Protocol, https://www.qemu.org/docs/master/interop/qmp-spec.html.
type qmp struct {
	conn net.Conn

	mu      sync.Mutex
	id      int
	replies map[int]chan reply
	waits   []wait
	gone    bool
}

type reply struct {
	value json.RawMessage
	err   error
}

type wait struct {
	event string
	match func(data map[string]any) bool
	found chan map[string]any
}

// newQMP greets QEMU and begins to read its answers and events.
func newQMP(ctx context.Context, conn net.Conn) (*qmp, error) {
	q := &qmp{conn: conn, replies: make(map[int]chan reply)}
	go q.read()
	return q, q.do(ctx, "qmp_capabilities", nil, nil)
}

func (q *qmp) read() {
	dec := json.NewDecoder(q.conn)
	for {
		var msg struct {
			ID     int             `json:"id"`
			Return json.RawMessage `json:"return"`
			Error  *struct {
				Desc string `json:"desc"`
			} `json:"error"`
			Event string         `json:"event"`
			Data  map[string]any `json:"data"`
		}
		if err := dec.Decode(&msg); err != nil {
			q.end()
			return
		}
		q.mu.Lock()
		if msg.Event != "" {
			keep := q.waits[:0]
			for _, w := range q.waits {
				if w.event == msg.Event && w.match(msg.Data) {
					w.found <- msg.Data
					continue
				}
				keep = append(keep, w)
			}
			q.waits = keep
		} else if ch, ok := q.replies[msg.ID]; ok {
			delete(q.replies, msg.ID)
			r := reply{value: msg.Return}
			if msg.Error != nil {
				r.err = errors.New(msg.Error.Desc)
			}
			ch <- r
		}
		q.mu.Unlock()
	}
}

// end tells all who wait that nothing will come.
func (q *qmp) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.gone = true
	for _, ch := range q.replies {
		ch <- reply{err: errGone}
	}
	for _, w := range q.waits {
		close(w.found)
	}
	q.replies, q.waits = nil, nil
}

// await returns a channel on which the first such event from now on arrives; it is closed
// when QEMU ends before.
func (q *qmp) await(event string, match func(data map[string]any) bool) <-chan map[string]any {
	w := wait{event: event, match: match, found: make(chan map[string]any, 1)}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.gone {
		close(w.found)
	} else {
		q.waits = append(q.waits, w)
	}
	return w.found
}

// do runs a command and decodes what it returns into result, when that is not nil.
func (q *qmp) do(ctx context.Context, command string, args map[string]any, result any) error {
	ch := make(chan reply, 1)
	q.mu.Lock()
	if q.gone {
		q.mu.Unlock()
		return fmt.Errorf("%s: %w", command, errGone)
	}
	q.id++
	id := q.id
	q.replies[id] = ch
	q.mu.Unlock()

	msg := map[string]any{"execute": command, "id": id}
	if args != nil {
		msg["arguments"] = args
	}
	line, err := json.Marshal(msg)
	if err != nil {
		return err
	}
	if _, err := q.conn.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	select {
	case r := <-ch:
		if r.err != nil {
			return fmt.Errorf("%s: %w", command, r.err)
		}
		if result != nil {
			return json.Unmarshal(r.value, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%s: %w", command, context.Cause(ctx))
	}
}
