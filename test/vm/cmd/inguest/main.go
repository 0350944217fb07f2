// Command inguest is the machine tests' hand inside a machine: what they want to know or
// do there that Debian's small guest has no program for. It prints JSON, or for tree a
// list of lines that can be compared.
//
//	inguest tree [-times] [-skip PATH]... ROOT...  what is there, one a line
//	inguest fill FOLDER                            waits for a new file there, then leaves no space
//	inguest strike [-stage STAGE] [-after DURATION] [-signal KILL|TERM|INT|STOP] COMMAND...
//	                                               a signal for nodeprep when its journal is there
//	inguest strike [...] -unit UNIT                the same for what systemd runs
//	inguest registry ADDRESS CERT KEY              a registry that answers, over TLS, until it is stopped
//	inguest join FILE                              what a kubelet learns through crictl.yaml's endpoints
//	inguest cri SOCKET status                      what the CRI plugin says of itself, with its config
//	inguest cri SOCKET images                      image references
//	inguest cri SOCKET image NAME                  what is there of one
//	inguest cri SOCKET pull NAME [USER PASSWORD]   has an image pulled
//	inguest cri SOCKET run NAME IMAGE CMD...       a pod with one container
//	inguest cri SOCKET ps                          running containers, with their processes
//	inguest cri SOCKET rm NAME                     stops and removes a pod
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"time"
)

func main() {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	if err := run(ctx, os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "inguest:", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("usage: inguest tree, fill, strike, registry, join or cri, with arguments: see its source")

func run(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	switch args[0] {
	case "tree":
		flags := flag.NewFlagSet("tree", flag.ContinueOnError)
		skip := make(map[string]bool)
		flags.Func("skip", "leave `PATH` out", func(path string) error {
			skip[path] = true
			return nil
		})
		times := flags.Bool("times", false, "times in place of digests")
		if err := flags.Parse(args[1:]); err != nil {
			return err
		}
		return tree(os.Stdout, flags.Args(), skip, *times)
	case "fill":
		return fill(ctx, args[1])
	case "registry":
		if len(args) != 4 {
			return errUsage
		}
		return registry(args[1], args[2], args[3])
	case "join":
		value, err := join(ctx, args[1])
		if err != nil {
			return err
		}
		return print(value)
	case "cri":
		if len(args) < 3 {
			return errUsage
		}
		value, err := cri(ctx, args[1], args[2], args[3:])
		if err != nil || value == nil {
			return err
		}
		return print(value)
	case "strike":
		value, err := strike(ctx, args[1:])
		if err != nil {
			return err
		}
		return print(value)
	default:
		return errUsage
	}
}

func print(value any) error {
	out := json.NewEncoder(os.Stdout)
	out.SetIndent("", "  ")
	return out.Encode(value)
}
