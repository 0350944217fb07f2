// Command nodeprep turns a fresh Linux server into a containerd node from one
// declarative profile, and shows it beforehand.
//
// main is one os.Exit; every verb is a file of its own that wires the packages
// together and prints. No decision about a node is made here.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"runtime/debug"

	"golang.org/x/sys/unix"

	"github.com/nodeprep/nodeprep/install"
)

func main() {
	os.Exit(run(context.Background(), os.Args[1:], stdio{in: os.Stdin, out: os.Stdout, err: os.Stderr}, os.LookupEnv))
}

// stdio is where a command reads and writes.
type stdio struct {
	in       io.Reader
	out, err io.Writer
	// self is the program that is installed on a node; "" is the running one.
	self string
	// entering is called as each phase begins; nil asks for nothing. Tests die there.
	entering func(install.Phase)
}

// run runs one command line and returns its exit code.
func run(ctx context.Context, args []string, io stdio, env func(string) (string, bool)) int {
	if _, ok := env("GOGC"); !ok {
		// A run lives for a second and streams hundreds of megabytes through few
		// buffers: a tight heap costs little time and keeps small boards comfortable.
		debug.SetGCPercent(50)
	}
	if _, ok := env("GOMEMLIMIT"); !ok {
		// Nothing is held whole: what exceeds this is garbage that was not collected yet. It
		// keeps making a bundle, with two encoders at work, below 64 MiB in all.
		debug.SetMemoryLimit(36 << 20)
	}
	// A closed terminal (SIGHUP) cancels like Ctrl-C does. A reader that went away
	// (SIGPIPE, which would end the program in the middle of a commit) becomes an
	// error of the write: what is told to nobody must not stop what is done.
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, unix.SIGTERM, unix.SIGHUP)
	defer stop()
	// The first signal cancels; a second one ends the program, whatever it waits for.
	context.AfterFunc(ctx, stop)
	pipe := make(chan os.Signal, 1)
	signal.Notify(pipe, unix.SIGPIPE)
	defer signal.Stop(pipe)
	a := &app{stdio: io, out: &results{Writer: io.out}, env: env}
	defer a.closeBundle()
	cmd := a.command()
	cmd.SetArgs(args)
	cmd.SetIn(io.in)
	cmd.SetOut(a.out)
	cmd.SetErr(io.err)
	err := cmd.ExecuteContext(ctx)
	return a.finish(args, err)
}
