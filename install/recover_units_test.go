package install

import (
	"context"
	"errors"
	"slices"
	"testing"
)

// dying is a machine in which nodeprep dies at an order: before it is given, or when it
// is carried out.
type dying struct {
	*machine
	before, after string
}

func (d *dying) order(what string, give func() error) error {
	if what == d.before {
		panic(errDead)
	}
	if err := give(); err != nil {
		return err
	}
	if what == d.after {
		panic(errDead)
	}
	return nil
}

func (d *dying) Reload(ctx context.Context) error {
	return d.order("reload", func() error { return d.machine.Reload(ctx) })
}

func (d *dying) Restart(ctx context.Context, u string) error {
	return d.order("restart", func() error { return d.machine.Restart(ctx, u) })
}

func (d *dying) Start(ctx context.Context, u string) error {
	return d.order("start", func() error { return d.machine.Start(ctx, u) })
}

// dies fails the test unless nodeprep dies in what it does.
func dies(t *testing.T, do func() error) {
	t.Helper()
	defer func() {
		if err, _ := recover().(error); !errors.Is(err, errDead) {
			t.Fatalf("it did not die: %v", err)
		}
	}()
	t.Fatalf("it ended: %v", do())
}

// TestRecoveryStopsByTheUnitThatWasLookedAt: the one of before may kill containers with
// the daemon, so that nothing is stopped by that.
func TestRecoveryStopsByTheUnitThatWasLookedAt(t *testing.T) {
	m, upgrade := newMachine(t, "upgrade")
	d := &dying{machine: m, after: "restart"}
	m.n.opt.Services = d
	dies(t, upgrade)
	recovering := func() error {
		_, err := Recover(t.Context(), m.n.h, RecoverOptions{Services: d, Daemon: m, live: true})
		return err
	}

	// systemd has the new unit, which is the one to stop by.
	d.after = "start"
	m.quiet, m.calls = false, nil
	dies(t, recovering)
	orders := slices.DeleteFunc(slices.Clone(m.calls), func(c string) bool { return !slices.Contains([]string{"reload", "stop", "start", "restart"}, c) })
	if want := []string{"stop", "reload", "start"}; !slices.Equal(orders, want) {
		t.Errorf("recovery gave the orders %q, want %q", orders, want)
	}

	// Killed when the daemon of before runs again by its own unit: it goes on running.
	d.after = ""
	m.calls = nil
	if err := recovering(); err != nil {
		t.Fatal(err)
	}
	if slices.Contains(m.calls, "stop") {
		t.Errorf("the second recovery stopped the daemon: %q", m.calls)
	}
	if m.program != "daemon one" || m.active != "active" {
		t.Errorf("%q is %s, want the daemon of before to run", m.program, m.active)
	}
	if j, err := Pending(m.n.h.Root); j != nil || err != nil {
		t.Errorf("the journal is still there: %v, %v", j, err)
	}
}
