// Command machine gets the machine tests' needs ready, and looks at failed ones:
//
//	go run ./test/vm/cmd/machine deps            installs the tools, from Debian packages
//	go run ./test/vm/cmd/machine prepare         makes all that is cached, so that tests start at once
//	go run ./test/vm/cmd/machine releases NAME...  prints the folders of releases, such as runc-1.3.6-amd64
//	go run ./test/vm/cmd/machine console FOLDER [GUEST]  boots what a failed test left, on this terminal; GUEST is bookworm
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "machine:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	began := time.Now()
	log := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "%7.1fs  %s\n", time.Since(began).Seconds(), fmt.Sprintf(format, args...))
	}
	switch {
	case len(args) == 1 && args[0] == "deps":
		store, err := supply.Open(log)
		if err != nil {
			return err
		}
		return store.Deps(ctx)
	case len(args) == 1 && args[0] == "prepare":
		return withLab(ctx, vm.Options{Guest: "bookworm", Releases: vm.Releases(), Log: log}, func(*vm.Lab) error { return nil })
	case len(args) >= 2 && args[0] == "releases":
		store, err := supply.Open(log)
		if err != nil {
			return err
		}
		return releases(ctx, store, args[1:])
	case (len(args) == 2 || len(args) == 3) && args[0] == "console":
		guest := "bookworm"
		if len(args) == 3 {
			guest = args[2]
		}
		return withLab(ctx, vm.Options{Guest: guest, Log: log}, func(l *vm.Lab) error {
			log("root needs no password; ctrl-a x pulls the plug")
			return l.Console(ctx, args[1])
		})
	default:
		return errors.New("usage: machine deps | prepare | releases NAME... | console FOLDER [GUEST]")
	}
}

func withLab(ctx context.Context, o vm.Options, do func(*vm.Lab) error) error {
	l, err := vm.Open(ctx, o)
	if err != nil {
		return err
	}
	return errors.Join(do(l), l.Close())
}

// releases makes releases and prints their folders, one a line.
func releases(ctx context.Context, store *supply.Store, names []string) error {
	var want []supply.Release
	for _, name := range names {
		parts := strings.Split(name, "-")
		if len(parts) != 3 {
			return fmt.Errorf("%s: want COMPONENT-VERSION-ARCH", name)
		}
		r := supply.Release{Component: parts[0], Version: parts[1], Arch: parts[2]}
		for _, known := range vm.Releases() {
			if known.Component == r.Component && known.Version == r.Version {
				r.Static = known.Static
			}
		}
		want = append(want, r)
	}
	dirs, err := store.Releases(ctx, want)
	if err != nil {
		return err
	}
	for _, r := range want {
		fmt.Println(dirs[r.Name()])
	}
	return nil
}
