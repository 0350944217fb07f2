package install

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// racer is a child that works on a root together with another.
type racer struct {
	c      *exec.Cmd
	in     io.WriteCloser
	stderr io.Reader
	out    bytes.Buffer
	log    bytes.Buffer
	done   chan error
}

// newRacer starts a child that waits for its start.
func (m *matrix) newRacer(t *testing.T, root, verb string) *racer {
	t.Helper()
	r := &racer{c: childCommand(t, childJob{Root: root, Programs: m.programs, Verb: verb, Log: true, Race: true}), done: make(chan error, 1)}
	r.c.Stdout = &r.out
	var err error
	if r.in, err = r.c.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	pipe, err := r.c.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	r.stderr = pipe
	if err := r.c.Start(); err != nil {
		t.Fatal(err)
	}
	return r
}

// watch reads what the child says, and tells when it is about to make its n-th call, or
// ends without.
func (r *racer) watch(n int) (reached <-chan struct{}) {
	ch := make(chan struct{})
	go func() {
		var once sync.Once
		mark := fmt.Sprintf("BEGIN %d ", n)
		lines := bufio.NewScanner(r.stderr)
		for lines.Scan() {
			r.log.WriteString(lines.Text() + "\n")
			if strings.HasPrefix(lines.Text(), mark) {
				once.Do(func() { close(ch) })
			}
		}
		once.Do(func() { close(ch) })
		r.done <- r.c.Wait()
	}()
	return ch
}

// outcome is what the child says that became of it: "done", "nothing to do", "locked PID"
// or what went wrong.
func (r *racer) outcome(t *testing.T) string {
	t.Helper()
	err := <-r.done
	_, text, ok := strings.Cut(r.out.String(), "outcome=")
	if err != nil || !ok {
		t.Errorf("a child ended with %v:\n%s%s", err, r.out.String(), r.log.String())
	}
	text, _, _ = strings.Cut(text, "\n")
	return text
}

// race is the child's side: it waits for the start and says what became of it.
func (n *node) race(ctx context.Context, verb string, p *points) {
	if _, err := io.ReadAll(os.Stdin); err != nil {
		n.t.Fatal(err)
	}
	err := n.do(ctx, verb)
	var locked *LockedError
	var none *NoGenerationError
	switch {
	case errors.As(err, &none): // an uninstall was faster
		fmt.Println("outcome=nothing to do")
	case errors.As(err, &locked):
		fmt.Printf("outcome=locked %d\n", locked.PID)
	case err != nil:
		fmt.Printf("outcome=%s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
	case p.n == 0:
		fmt.Println("outcome=nothing to do")
	default:
		fmt.Println("outcome=done")
	}
}

// together runs two verbs on one root, the second as soon as the first makes its n-th
// call, or both at once when n is 0. It returns what became of them.
func (m *matrix) together(t *testing.T, root, first, second string, n int) (one, two string) {
	t.Helper()
	a, b := m.newRacer(t, root, first), m.newRacer(t, root, second)
	reached := a.watch(n)
	b.watch(0)
	start := func(r *racer) {
		if err := r.in.Close(); err != nil {
			t.Fatal(err)
		}
	}
	start(a)
	if n > 0 {
		<-reached
	}
	start(b)
	one, two = a.outcome(t), b.outcome(t)
	for _, x := range []struct {
		what, of string
		other    *racer
	}{{one, first, b}, {two, second, a}} {
		switch x.what {
		case "done", "nothing to do", fmt.Sprintf("locked %d", x.other.c.Process.Pid):
		default:
			t.Errorf("%s and %s (at call %d): %s ended with %q", first, second, n, x.of, x.what)
		}
	}
	if strings.HasPrefix(one, "locked") && strings.HasPrefix(two, "locked") {
		t.Errorf("%s and %s (at call %d): nobody won: %q and %q", first, second, n, one, two)
	}
	return one, two
}

// TestTogether: two applies at once, a hundred times, the second in every part of the
// first. One wins, or both do, one after the other; none corrupts.
func TestTogether(t *testing.T) {
	m := newMatrix(t)
	step := stride(t, 10)
	root := filepath.Join(m.dir, "together")
	became := map[string]int{}
	const times = 100
	for i := 0; i < times && !t.Failed(); i += step {
		op := m.verbs[[]string{"install", "upgrade"}[i/step%2]]
		copyTree(t, op.template, root)
		before := treeOf(t, root)
		one, two := m.together(t, root, op.verb, op.verb, i*len(op.calls)/times)
		for _, o := range []string{one, two} {
			o, _, _ = strings.Cut(o, " ")
			became[o]++
		}
		if one != "done" && two != "done" {
			t.Errorf("%s: %q and %q: nobody won", op.verb, one, two)
		}
		if diff := differs(op.after, treeOf(t, root).relativeTo(before)); diff != "" {
			t.Errorf("%s by two at once makes something else (-want +got):\n%s", op.verb, diff)
		}
		m.nothingToDo(t, op, root, true, op.verb+" by two at once")
		if err := os.RemoveAll(root); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("of two at once became: %v", became)
}

// TestTogetherWithOthers: what else may meet an apply.
func TestTogetherWithOthers(t *testing.T) {
	m := newMatrix(t)
	step := stride(t, 5)
	upgrade := m.verbs["upgrade"]
	interrupted := m.interrupt(t, upgrade, upgrade.template, nil, "upgrade", len(upgrade.calls)/2, "interrupted").root
	for _, tt := range []struct{ first, second, template string }{
		{"upgrade", "recover", interrupted},
		{"recover", "upgrade", interrupted},
		{"recover", "recover", interrupted},
		{"upgrade", "uninstall", upgrade.template},
		{"uninstall", "upgrade", m.verbs["uninstall"].template},
		{"rollback", "uninstall", m.verbs["uninstall"].template},
		{"uninstall", "uninstall", m.verbs["uninstall"].template},
		{"rollback", "upgrade", m.verbs["rollback"].template},
	} {
		t.Run(tt.first+" "+tt.second, func(t *testing.T) {
			for n := 0; n < 200 && !t.Failed(); n += 40 * step {
				root := filepath.Join(m.dir, "together")
				copyTree(t, tt.template, root)
				m.together(t, root, tt.first, tt.second, n)
				node := m.node(t, root, "upgrade")
				if got, err := Recover(t.Context(), node.h, node.recovery()); err != nil || got.Outcome != NothingPending {
					t.Errorf("%s and %s at call %d: something is left to recover: %+v, %v", tt.first, tt.second, n, got, err)
				}
				node.noDebris()
				node.must("upgrade")
				m.nothingToDo(t, upgrade, root, true, fmt.Sprintf("%s and %s at call %d, then upgrade", tt.first, tt.second, n))
				if err := os.RemoveAll(root); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
