package systemd

import (
	"cmp"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	sd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"
)

var (
	// ErrNotBooted says that PID 1 is not systemd, so that there is nothing to talk to.
	ErrNotBooted = errors.New("systemd is not PID 1 here (no /run/systemd/system)")
	// ErrNoUnit says that systemd knows no unit of that name.
	ErrNoUnit = errors.New("no such unit")
	// ErrConnectionLost says that the D-Bus connection broke; the next call makes a new one.
	ErrConnectionLost = errors.New("connection to systemd lost")
)

// Waits end after these, or at the caller's deadline if that is sooner. A job's is longer than
// systemd's own stop and start timeouts together (90 s each, systemd-system.conf(5)),
// so that systemd's verdict comes first.
const (
	jobTimeout  = 4 * time.Minute
	callTimeout = 90 * time.Second
	// While systemd executes itself anew (daemon-reexec), nobody listens.
	redialTimeout  = 10 * time.Second
	redialInterval = 100 * time.Millisecond
	// A report about a failed job is still gathered after the caller's deadline.
	reportTimeout = 5 * time.Second
	journalLines  = 20
)

// Runner runs a command and returns its standard output.
type Runner func(ctx context.Context, name string, args ...string) ([]byte, error)

// bus is what Manager uses of *sd.Conn.
type bus interface {
	ReloadContext(ctx context.Context) error
	EnableUnitFilesContext(ctx context.Context, files []string, runtime, force bool) (bool, []sd.EnableUnitFileChange, error)
	DisableUnitFilesContext(ctx context.Context, files []string, runtime bool) ([]sd.DisableUnitFileChange, error)
	StartUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error)
	StopUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error)
	RestartUnitContext(ctx context.Context, name, mode string, ch chan<- string) (int, error)
	ResetFailedUnitContext(ctx context.Context, name string) error
	GetAllPropertiesContext(ctx context.Context, unit string) (map[string]any, error)
	Connected() bool
	Close()
}

// link is one connection; lost is closed when it breaks.
type link struct {
	bus
	lost <-chan struct{}
}

// Manager is the running systemd. It may be used by several goroutines.
type Manager struct {
	dial func(context.Context) (*link, error)
	run  Runner

	mu   sync.Mutex
	link *link
}

// Connect connects to systemd: as root to its private socket, as systemctl does, since
// that needs no message bus; else, and as another user, over the system bus. run runs
// journalctl for the lines that a failed job's error shows; with nil there are none.
// The error is ErrNotBooted where systemd is not PID 1.
func Connect(ctx context.Context, run Runner) (*Manager, error) {
	// sd_booted(3)
	if _, err := os.Lstat("/run/systemd/system"); errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNotBooted
	}
	m := &Manager{dial: dialAny, run: run}
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	if _, err := m.connected(ctx); err != nil {
		return nil, err
	}
	return m, nil
}

// Close ends the connection.
func (m *Manager) Close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.link != nil {
		m.link.Close()
		m.link = nil
	}
}

// connected is the connection, made anew if the last one broke.
func (m *Manager) connected(ctx context.Context) (*link, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	again := false
	if m.link != nil {
		if m.link.Connected() {
			return m.link, nil
		}
		m.link.Close()
		m.link, again = nil, true
	}
	l, err := m.dial(ctx)
	if err != nil && again {
		l, err = m.redial(ctx, err)
	}
	if err != nil {
		return nil, fmt.Errorf("connect to systemd: %w", err)
	}
	m.link = l
	return l, nil
}

// redial dials until somebody answers; nothing tells when that will be.
func (m *Manager) redial(ctx context.Context, err error) (*link, error) {
	ctx, cancel := context.WithTimeout(ctx, redialTimeout)
	defer cancel()
	tick := time.NewTicker(redialInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
		l, again := m.dial(ctx)
		if again == nil {
			return l, nil
		}
		err = again
	}
}

func dialAny(ctx context.Context) (*link, error) {
	private := func(opts ...dbus.ConnOption) (*dbus.Conn, error) {
		return dbus.Dial("unix:path=/run/systemd/private", opts...)
	}
	if os.Geteuid() != 0 {
		return dial(ctx, dbus.SystemBusPrivate, true)
	}
	l, err := dial(ctx, private, false)
	if err == nil {
		return l, nil
	}
	l, busErr := dial(ctx, dbus.SystemBusPrivate, true)
	if busErr != nil {
		return nil, errors.Join(err, busErr)
	}
	return l, nil
}

// dial makes the pair of connections that go-systemd wants, for calls and for signals.
// A godbus connection dies with the context it was made with, so ctx bounds the
// dialling alone, and the connection's own context tells when it broke.
func dial(ctx context.Context, open func(...dbus.ConnOption) (*dbus.Conn, error), hello bool) (*link, error) {
	life, end := context.WithCancelCause(context.Background())
	bounded := context.AfterFunc(ctx, func() { end(context.Cause(ctx)) })
	var conns []*dbus.Conn
	conn, err := sd.NewConnection(func() (*dbus.Conn, error) {
		c, err := open(dbus.WithContext(life))
		if err != nil {
			return nil, err
		}
		if err = c.Auth([]dbus.Auth{dbus.AuthExternal(fmt.Sprint(os.Getuid()))}); err == nil && hello {
			err = c.Hello()
		}
		if err != nil {
			c.Close()
			return nil, err
		}
		conns = append(conns, c)
		return c, nil
	})
	if err == nil && !bounded() {
		conn.Close()
		err = context.Cause(ctx)
	}
	if err != nil {
		end(err)
		return nil, err
	}
	// Either connection's end is the end of both.
	lost := make(chan struct{})
	var once sync.Once
	for _, c := range conns {
		context.AfterFunc(c.Context(), func() { once.Do(func() { end(ErrConnectionLost); close(lost) }) })
	}
	return &link{bus: conn, lost: lost}, nil
}

// Reload makes systemd read all unit files anew (systemctl daemon-reload).
func (m *Manager) Reload(ctx context.Context) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	l, err := m.connected(ctx)
	if err != nil {
		return err
	}
	if err := l.ReloadContext(ctx); err != nil {
		return fmt.Errorf("reload systemd: %w", m.cause(l, err))
	}
	return nil
}

// Enable makes units start at boot and reports whether that changed anything; units
// that are enabled already are left alone. The error wraps ErrNoUnit for a unit that
// systemd does not know; a masked unit and one without an [Install] section are errors.
func (m *Manager) Enable(ctx context.Context, units ...string) (changed bool, err error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	var wanted []string
	for _, u := range units {
		p, err := m.Properties(ctx, u)
		switch {
		case err != nil:
			return false, err
		case !p.Exists():
			return false, fmt.Errorf("enable %s: %w", u, ErrNoUnit)
		case p.LoadState == "masked" || strings.HasPrefix(p.UnitFileState, "masked"):
			return false, fmt.Errorf(`enable %s: it is masked ("systemctl unmask %s" lifts that)`, u, u)
		case p.UnitFileState != "enabled":
			wanted = append(wanted, u)
		}
	}
	if len(wanted) == 0 {
		return false, nil
	}
	l, err := m.connected(ctx)
	if err != nil {
		return false, err
	}
	what := "enable " + strings.Join(wanted, " ")
	installable, changes, err := l.EnableUnitFilesContext(ctx, wanted, false, false)
	switch {
	case err != nil:
		return false, fmt.Errorf("%s: %w", what, m.cause(l, err))
	case !installable:
		return false, fmt.Errorf("%s: the unit has no [Install] section", what)
	case len(changes) == 0:
		return false, nil
	}
	return true, m.Reload(ctx)
}

// Disable undoes Enable and reports whether that changed anything. It does not stop
// the units.
func (m *Manager) Disable(ctx context.Context, units ...string) (changed bool, err error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	l, err := m.connected(ctx)
	if err != nil {
		return false, err
	}
	changes, err := l.DisableUnitFilesContext(ctx, units, false)
	if err != nil {
		return false, fmt.Errorf("disable %s: %w", strings.Join(units, " "), m.cause(l, err))
	}
	if len(changes) == 0 {
		return false, nil
	}
	return true, m.Reload(ctx)
}

// Start starts a unit and waits until it is active. The error is *JobError when
// systemd took the job and it did not end well, and wraps ErrNoUnit for an unknown unit.
func (m *Manager) Start(ctx context.Context, unit string) error {
	return m.job(ctx, "start", unit, bus.StartUnitContext, started)
}

// StartNoWait has a unit started and does not wait for that: for a process that systemd
// itself waits for, as at boot. The error wraps ErrNoUnit for an unknown unit.
func (m *Manager) StartNoWait(ctx context.Context, unit string) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	l, err := m.connected(ctx)
	if err != nil {
		return err
	}
	if _, err := l.StartUnitContext(ctx, unit, "replace", nil); err != nil {
		return fmt.Errorf("start %s: %w", unit, m.cause(l, err))
	}
	return nil
}

// Restart is Start for a unit that may be running: it is stopped first.
func (m *Manager) Restart(ctx context.Context, unit string) error {
	return m.job(ctx, "restart", unit, bus.RestartUnitContext, started)
}

// Stop stops a unit and waits until it is down; its errors are as Start's.
func (m *Manager) Stop(ctx context.Context, unit string) error {
	return m.job(ctx, "stop", unit, bus.StopUnitContext, func(p Properties) bool {
		return p.ActiveState == "inactive" || p.ActiveState == "failed"
	})
}

// ResetFailed forgets that a unit failed (systemctl reset-failed); a unit that systemd
// does not have in memory has nothing to forget.
func (m *Manager) ResetFailed(ctx context.Context, unit string) error {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	l, err := m.connected(ctx)
	if err != nil {
		return err
	}
	if err := l.ResetFailedUnitContext(ctx, unit); err != nil {
		if err = m.cause(l, err); errors.Is(err, ErrNoUnit) {
			return nil
		}
		return fmt.Errorf("reset failed state of %s: %w", unit, err)
	}
	return nil
}

// started holds for a unit that is up, and for one-shot work that is done.
func started(p Properties) bool {
	return p.ActiveState == "active" || p.ActiveState == "reloading" ||
		p.ActiveState == "inactive" && p.Type == "oneshot" && p.Result == "success"
}

type enqueue func(b bus, ctx context.Context, name, mode string, ch chan<- string) (int, error)

func (m *Manager) job(ctx context.Context, verb, unit string, call enqueue, good func(Properties) bool) error {
	ctx, cancel := bounded(ctx, jobTimeout)
	defer cancel()
	l, err := m.connected(ctx)
	if err != nil {
		return err
	}
	if verb != "stop" {
		// Earlier failures must not count against this start (StartLimitBurst=). For a unit
		// that is not loaded this fails, and then the job itself says what is wrong.
		_ = l.ResetFailedUnitContext(ctx, unit)
	}
	// Room for the result: go-systemd delivers it while holding its lock, and nobody may
	// be waiting any more.
	done := make(chan string, 1)
	if _, err := call(l.bus, ctx, unit, "replace", done); err != nil {
		return fmt.Errorf("%s %s: %w", verb, unit, m.cause(l, err))
	}
	select {
	case result := <-done:
		p, err := m.Properties(ctx, unit)
		if err != nil {
			return err
		}
		// A job is also "done" when a unit ended by itself meanwhile, and "skipped" when
		// there was nothing to do: what counts is what the unit is now.
		if (result == "done" || result == "skipped") && good(p) {
			return nil
		}
		return m.report(ctx, &JobError{Unit: unit, Job: verb, Result: result, State: p})
	case <-ctx.Done():
		e := &JobError{Unit: unit, Job: verb, Err: context.Cause(ctx)}
		stateCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTimeout)
		defer cancel()
		// A report without the unit's state is still a report.
		e.State, _ = m.Properties(stateCtx, unit)
		return m.report(ctx, e)
	case <-l.lost:
		return m.report(ctx, &JobError{Unit: unit, Job: verb, Err: ErrConnectionLost})
	}
}

// report adds what the journal says, also after the caller's deadline.
func (m *Manager) report(ctx context.Context, e *JobError) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), reportTimeout)
	defer cancel()
	e.Journal = m.journal(ctx, e.Unit, e.State.InvocationID)
	return e
}

// journal is the last lines of the unit's invocation, its own and systemd's about it
// (systemd.journal-fields(7)); of the unit at all when there are none.
func (m *Manager) journal(ctx context.Context, unit, invocation string) []string {
	if m.run == nil {
		return nil
	}
	// journald may not have written the last words yet; an old one without this verb
	// loses nothing.
	_, _ = m.run(ctx, "journalctl", "--sync")
	ask := func(match ...string) []string {
		out, err := m.run(ctx, "journalctl", append(match, "-n", fmt.Sprint(journalLines), "-o", "cat", "-q", "--no-pager")...)
		if err != nil {
			return nil
		}
		var lines []string
		for line := range strings.Lines(string(out)) {
			// A log line must not drive the terminal.
			line = strings.Map(func(r rune) rune {
				if unicode.IsControl(r) && r != '\t' {
					return -1
				}
				return r
			}, line)
			if strings.TrimSpace(line) != "" {
				lines = append(lines, line)
			}
		}
		return lines
	}
	var lines []string
	if invocation != "" {
		lines = ask("_SYSTEMD_INVOCATION_ID="+invocation, "+", "_PID=1", "INVOCATION_ID="+invocation)
	}
	if len(lines) == 0 {
		lines = ask("-u", unit)
	}
	return lines
}

// cause turns a D-Bus error into one of ours where callers tell them apart.
func (m *Manager) cause(l *link, err error) error {
	if e, ok := errors.AsType[dbus.Error](err); ok {
		if e.Name == "org.freedesktop.systemd1.NoSuchUnit" {
			return ErrNoUnit
		}
		return err
	}
	if !l.Connected() {
		return fmt.Errorf("%w (%w)", ErrConnectionLost, err)
	}
	return err
}

// JobError is a unit's job that did not end well.
type JobError struct {
	Unit string
	Job  string // start, stop or restart
	// Result is systemd's: failed, timeout, canceled, dependency, skipped; done when the
	// job went well and the unit did not stay up; "" when the wait ended before the job.
	Result string
	// State is the unit's, read right afterwards; zero if it could not be read.
	State Properties
	// Journal is the last lines of the failed invocation, oldest first.
	Journal []string
	// Err is why the wait ended early, else nil.
	Err error
}

// Error is one line about the job and one for each line of the journal.
func (e *JobError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s: ", e.Job, e.Unit)
	switch {
	case e.Err != nil:
		fmt.Fprintf(&b, "gave up waiting: %v", e.Err)
	case e.Result == "done":
		b.WriteString("it did not stay up")
	case e.Result == "dependency":
		b.WriteString("a unit that it requires failed")
	default:
		fmt.Fprintf(&b, "job %s", e.Result)
	}
	if s := e.State.Explain(); s != "" {
		b.WriteString(": " + s)
	}
	if len(e.Journal) > 0 {
		b.WriteString("; its last journal lines:")
		for _, line := range e.Journal {
			b.WriteString("\n  " + line)
		}
	}
	return b.String()
}

// Unwrap is why the wait ended early.
func (e *JobError) Unwrap() error { return e.Err }

// Properties are the values in force of a unit (org.freedesktop.systemd1(5)), drop-ins
// and defaults included. What a unit type does not have is zero.
type Properties struct {
	LoadState     string // loaded, not-found, bad-setting, error, masked
	LoadError     string // systemd's words when LoadState is not loaded
	ActiveState   string // active, reloading, inactive, failed, activating, deactivating
	SubState      string // e.g. running, auto-restart
	UnitFileState string // enabled, disabled, static, masked, ...; "" without a unit file

	FragmentPath     string
	DropInPaths      []string
	NeedDaemonReload bool
	After            []string
	InvocationID     string // 32 hex digits, "" if it never ran
	// RequiredBy, RequisiteOf, BoundBy and ConsistsOf are the units that have this one in
	// Requires=, Requisite=, BindsTo= and PartOf= (systemd.unit(5)).
	RequiredBy, RequisiteOf, BoundBy, ConsistsOf []string
	// WantedBy are the units that have this one in Wants=, UpheldBy those in Upholds=, which
	// systemd knows since 249.
	WantedBy, UpheldBy []string
	// RequiresMountsFor are paths whose mounts the unit needs.
	RequiresMountsFor []string
	// ControlGroup is the unit's cgroup below the hierarchies' roots, "" while it has none.
	ControlGroup string

	// Of services.
	Type           string // simple, notify, oneshot, ...
	Result         string // success, exit-code, signal, timeout, protocol, start-limit-hit, ...
	MainPID        int
	ExecMainCode   int // CLD_EXITED 1, CLD_KILLED 2, CLD_DUMPED 3; 0 while it runs
	ExecMainStatus int // exit status or signal
	// MainStart is when the main process, or the last one, was started, to the
	// microsecond; zero if there never was one.
	MainStart   time.Time
	StatusErrno int // what the daemon reported itself (sd_notify(3))
	StatusText  string
	NRestarts   int // automatic restarts since the last explicit start

	Delegate bool
	// DelegateControllers are those that are handed down; Delegate=yes means all.
	DelegateControllers []string
	KillMode            string
	OOMScoreAdjust      int
	Restart             string
	LimitNOFILE         Limit
	LimitNOFILESoft     Limit
	LimitNPROC          Limit
	LimitCORE           Limit
	TasksMax            Limit
	EnvironmentFile     []string
	// Environment are NAME=VALUE, which every user can read, so must no report.
	Environment []string
	// ExecStart are the commands: the program's path, then its arguments.
	ExecStart [][]string
	// Confined are the settings that confine the service and are not at their default
	// (systemd.exec(5), "Sandboxing").
	Confined []Setting
}

// Setting is a setting of a unit as its file has it.
type Setting struct{ Name, Value string }

// Exists reports whether systemd has a unit of that name; one that exists may well be
// inactive.
func (p Properties) Exists() bool { return p.LoadState != "" && p.LoadState != "not-found" }

// Dependents are the units that systemd stops along with this one, and that a later start
// of it does not bring back.
func (p Properties) Dependents() []string {
	all := slices.Concat(p.RequiredBy, p.RequisiteOf, p.BoundBy, p.ConsistsOf)
	slices.Sort(all)
	return slices.Compact(all)
}

// Explain is why a service is not up, "" if nothing is known.
func (p Properties) Explain() string {
	var s []string
	if p.LoadError != "" {
		s = append(s, p.LoadError)
	}
	if p.Result != "" && p.Result != "success" {
		s = append(s, "result "+p.Result)
	}
	switch p.ExecMainCode {
	case 1:
		if name, ok := exitNames()[p.ExecMainStatus]; ok {
			s = append(s, fmt.Sprintf("exit status %d (%s)", p.ExecMainStatus, name))
		} else {
			s = append(s, fmt.Sprintf("exit status %d", p.ExecMainStatus))
		}
	case 2, 3:
		s = append(s, fmt.Sprintf("killed by signal %d", p.ExecMainStatus))
	}
	if p.StatusErrno != 0 {
		s = append(s, fmt.Sprintf("errno %d", p.StatusErrno))
	}
	if p.StatusText != "" {
		s = append(s, p.StatusText)
	}
	if p.ActiveState != "" {
		s = append(s, "state "+p.ActiveState+"/"+p.SubState)
	}
	if p.NRestarts > 0 {
		s = append(s, fmt.Sprintf("restarted %d times", p.NRestarts))
	}
	return strings.Join(s, ", ")
}

// exitNames are exit statuses that systemd itself gives when it cannot start the
// process (systemd.exec(5), "Process Exit Codes").
func exitNames() map[int]string {
	return map[int]string{
		200: "its working directory cannot be entered",
		203: "its binary cannot be executed",
		205: "its resource limits cannot be set",
		206: "its OOM score cannot be set",
		219: "its cgroup cannot be set up",
		226: "its mount namespace cannot be set up",
	}
}

// Limit is a number where the largest means no limit.
type Limit uint64

// Infinity is no limit, as systemd has it on D-Bus.
const Infinity = Limit(1<<64 - 1)

// String is the number or "infinity", as systemctl show prints it.
func (l Limit) String() string {
	if l == Infinity {
		return "infinity"
	}
	return fmt.Sprint(uint64(l))
}

// Properties reads a unit's properties. An unknown unit is no error: see
// Properties.Exists.
func (m *Manager) Properties(ctx context.Context, unit string) (Properties, error) {
	ctx, cancel := bounded(ctx, callTimeout)
	defer cancel()
	l, err := m.connected(ctx)
	if err != nil {
		return Properties{}, err
	}
	all, err := l.GetAllPropertiesContext(ctx, unit)
	if err != nil {
		return Properties{}, fmt.Errorf("read properties of %s: %w", unit, m.cause(l, err))
	}
	p := Properties{
		LoadState:           get[string](all, "LoadState"),
		ActiveState:         get[string](all, "ActiveState"),
		SubState:            get[string](all, "SubState"),
		UnitFileState:       get[string](all, "UnitFileState"),
		FragmentPath:        get[string](all, "FragmentPath"),
		DropInPaths:         get[[]string](all, "DropInPaths"),
		NeedDaemonReload:    get[bool](all, "NeedDaemonReload"),
		After:               get[[]string](all, "After"),
		WantedBy:            get[[]string](all, "WantedBy"),
		UpheldBy:            get[[]string](all, "UpheldBy"),
		ControlGroup:        get[string](all, "ControlGroup"),
		Environment:         get[[]string](all, "Environment"),
		Confined:            confined(all),
		RequiredBy:          get[[]string](all, "RequiredBy"),
		RequisiteOf:         get[[]string](all, "RequisiteOf"),
		BoundBy:             get[[]string](all, "BoundBy"),
		ConsistsOf:          get[[]string](all, "ConsistsOf"),
		Type:                get[string](all, "Type"),
		Result:              get[string](all, "Result"),
		MainPID:             int(get[uint32](all, "MainPID")),
		ExecMainCode:        int(get[int32](all, "ExecMainCode")),
		ExecMainStatus:      int(get[int32](all, "ExecMainStatus")),
		StatusErrno:         int(get[int32](all, "StatusErrno")),
		StatusText:          get[string](all, "StatusText"),
		NRestarts:           int(get[uint32](all, "NRestarts")),
		Delegate:            get[bool](all, "Delegate"),
		DelegateControllers: get[[]string](all, "DelegateControllers"),
		KillMode:            get[string](all, "KillMode"),
		OOMScoreAdjust:      int(get[int32](all, "OOMScoreAdjust")),
		Restart:             get[string](all, "Restart"),
		LimitNOFILE:         Limit(get[uint64](all, "LimitNOFILE")),
		LimitNOFILESoft:     Limit(get[uint64](all, "LimitNOFILESoft")),
		LimitNPROC:          Limit(get[uint64](all, "LimitNPROC")),
		LimitCORE:           Limit(get[uint64](all, "LimitCORE")),
		TasksMax:            Limit(get[uint64](all, "TasksMax")),
	}
	if at := get[uint64](all, "ExecMainStartTimestamp"); at > 0 {
		p.MainStart = time.UnixMicro(int64(at))
	}
	if id := get[[]byte](all, "InvocationID"); len(id) == 16 {
		p.InvocationID = hex.EncodeToString(id)
	}
	// A pair of error name and message, empty while the unit is loaded.
	if pair := get[[]any](all, "LoadError"); len(pair) == 2 && p.LoadState != "loaded" {
		name, _ := pair[0].(string)
		message, _ := pair[1].(string)
		p.LoadError = cmp.Or(message, name)
	}
	// Pairs of path and whether it may be missing.
	for _, pair := range get[[][]any](all, "EnvironmentFiles") {
		if len(pair) == 2 {
			if path, ok := pair[0].(string); ok {
				p.EnvironmentFile = append(p.EnvironmentFile, path)
			}
		}
	}
	p.RequiresMountsFor = get[[]string](all, "RequiresMountsFor")
	// Path, arguments with the program's own name, and how the last run of it went.
	for _, c := range get[[][]any](all, "ExecStart") {
		if len(c) < 2 {
			continue
		}
		program, _ := c[0].(string)
		if args, ok := c[1].([]string); ok && len(args) > 0 {
			p.ExecStart = append(p.ExecStart, append([]string{program}, args[1:]...))
		}
	}
	return p, nil
}

// namespaceFlags are the namespaces that RestrictNamespaces= knows, by their clone(2)
// flags; without the setting all bits are set.
func namespaceFlags() []uint64 {
	const (
		cgroup, ipc, net, mnt = 0x02000000, 0x08000000, 0x40000000, 0x00020000
		pid, user, uts        = 0x20000000, 0x10000000, 0x04000000
	)
	return []uint64{cgroup, ipc, net, mnt, pid, user, uts}
}

// confined finds what of org.freedesktop.systemd1(5)'s properties confines a service.
func confined(all map[string]any) []Setting {
	var out []Setting
	for _, name := range []string{
		"PrivateMounts", "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers", "ProtectKernelTunables", "ProtectKernelModules",
		"ProtectControlGroups", "NoNewPrivileges", "MemoryDenyWriteExecute", "RestrictSUIDSGID", "DynamicUser",
	} {
		if get[bool](all, name) {
			out = append(out, Setting{name, "yes"})
		}
	}
	for _, name := range []string{"ProtectSystem", "ProtectHome", "RootDirectory", "RootImage", "User"} {
		if v := get[string](all, name); v != "" && v != "no" && (name != "User" || v != "root" && v != "0") {
			out = append(out, Setting{name, v})
		}
	}
	// mount(2): MS_SLAVE and MS_PRIVATE.
	switch flags := get[uint64](all, "MountFlags"); {
	case flags&(1<<19) != 0:
		out = append(out, Setting{"MountFlags", "slave"})
	case flags&(1<<18) != 0:
		out = append(out, Setting{"MountFlags", "private"})
	}
	if v, ok := all["RestrictNamespaces"].(uint64); ok {
		for _, flag := range namespaceFlags() {
			if v&flag == 0 {
				out = append(out, Setting{"RestrictNamespaces", "yes"})
				break
			}
		}
	}
	// capabilities(7): CAP_SYS_ADMIN is 21.
	if v, ok := all["CapabilityBoundingSet"].(uint64); ok && v&(1<<21) == 0 {
		out = append(out, Setting{"CapabilityBoundingSet", "without CAP_SYS_ADMIN"})
	}
	for _, name := range []string{"SystemCallFilter", "RestrictAddressFamilies"} {
		// Whether it is a list of what is allowed, and the list.
		if v := get[[]any](all, name); len(v) == 2 {
			allow, _ := v[0].(bool)
			if list, _ := v[1].([]string); allow || len(list) > 0 {
				out = append(out, Setting{name, "a filter"})
			}
		}
	}
	for _, name := range []string{"ReadOnlyPaths", "InaccessiblePaths"} {
		if v := get[[]string](all, name); len(v) > 0 {
			out = append(out, Setting{name, strings.Join(v, " ")})
		}
	}
	return out
}

// get is a property that is there and has the type D-Bus gives it, else zero.
func get[T any](all map[string]any, name string) T {
	v, _ := all[name].(T)
	return v
}

// bounded ends a wait after d, or at the caller's deadline if that is sooner: one call
// that hangs must not use up the time of all that the caller still has to do.
func bounded(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, d, fmt.Errorf("no answer within %s: %w", d, context.DeadlineExceeded))
}
