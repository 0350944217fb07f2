package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"
)

// Cmd is a command to be run on the live host.
type Cmd struct {
	Path string // absolute, or a name looked up in PATH
	Args []string
}

// String is the command as one would type it.
func (c Cmd) String() string { return strings.Join(append([]string{c.Path}, c.Args...), " ") }

// Output is what a command printed.
type Output struct{ Stdout, Stderr []byte }

// ExitError is a command that ran and failed.
type ExitError struct {
	Cmd    Cmd
	Code   int // -1 when a signal ended it
	Stderr string
}

// Error is "CMD: exit status N: last line of stderr".
func (e *ExitError) Error() string {
	msg := fmt.Sprintf("%s: exit status %d", e.Cmd, e.Code)
	if s := strings.TrimSpace(e.Stderr); s != "" {
		if i := strings.LastIndexByte(s, '\n'); i >= 0 {
			s = s[i+1:]
		}
		msg += ": " + s
	}
	return msg
}

// Host is everything nodeprep asks of a machine. Tests replace single fields.
type Host struct {
	Root *Root
	// Run runs a command to its end or to the context's; its error is *ExitError when
	// the command itself failed.
	Run func(ctx context.Context, cmd Cmd) (Output, error)
	// Label is the SELinux label of the file at p below Root, "" where it has none.
	Label func(p string) (string, error)
	// Now is the clock.
	Now func() time.Time
	// UID is the effective user.
	UID int
	// Uname asks the running kernel, which is not the root's where that is an image.
	Uname func() (Uname, error)
	// PageSize is the running kernel's, in bytes (getauxval(3), AT_PAGESZ).
	PageSize int
	// SpaceAt is Root.SpaceAt.
	SpaceAt func(p string) (Space, error)
	// DirTypes is Root.DirTypes.
	DirTypes func(p string) (typed, found bool, err error)
}

// New returns the machine that nodeprep runs on, with root as its root directory.
func New(root *Root) *Host {
	return &Host{
		Root: root, Run: run, Label: root.label, Now: time.Now, UID: os.Geteuid(), Uname: uname, PageSize: os.Getpagesize(),
		SpaceAt: root.SpaceAt, DirTypes: root.DirTypes,
	}
}

func run(ctx context.Context, cmd Cmd) (Output, error) {
	c := exec.CommandContext(ctx, cmd.Path, cmd.Args...)
	// A grandchild that keeps the pipe open must not hold us after the command ended.
	c.WaitDelay = 5 * time.Second
	var stdout, stderr bytes.Buffer
	c.Stdout, c.Stderr = &stdout, &stderr
	err := c.Run()
	out := Output{stdout.Bytes(), stderr.Bytes()}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		if ctx.Err() != nil {
			return out, fmt.Errorf("%s: %w", cmd, context.Cause(ctx))
		}
		return out, &ExitError{Cmd: cmd, Code: exit.ExitCode(), Stderr: stderr.String()}
	}
	if err != nil {
		return out, fmt.Errorf("%s: %w", cmd, err)
	}
	return out, nil
}
