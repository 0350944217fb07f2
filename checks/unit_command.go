package checks

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/systemd"
)

// These find out which program and which arguments a unit's command comes to: what stands
// in ExecStart= may have variables in it, and may name a program that starts the daemon.

// variables are those that systemd puts into a unit's command, and whether these are all:
// an EnvironmentFile= may not be readable, and PassEnvironment= takes systemd's own.
func (n *Node) variables(s *service) (env map[string]string, all bool) {
	env, all = map[string]string{}, s.unread == nil
	set := func(assignments []string) {
		for _, a := range assignments {
			if name, value, ok := strings.Cut(a, "="); ok {
				env[name] = value
			}
		}
	}
	set(s.Environment)
	for _, f := range s.EnvironmentFile { // they override Environment= (systemd.exec(5))
		content, err := n.Host.Root.ReadFile(f)
		switch {
		case strings.ContainsAny(f, "*?["), err != nil && !absent(err):
			all = false
		case err == nil:
			set(systemd.EnvironmentFile(content))
		}
	}
	_, _, pass := systemd.Effective(s.fragments, "Service", "PassEnvironment")
	return env, all && !pass
}

// expand puts variables into a command as systemd does (systemd.service(5), Command
// Lines): $NAME as a word of its own is split at spaces, and is no word where the variable
// is not set; ${NAME} anywhere is not split. What is not known stays as it is written.
func expand(argv []string, env map[string]string, all bool) []string {
	out := argv[:1:1] // the program cannot be a variable
	for _, word := range argv[1:] {
		if name, ok := strings.CutPrefix(word, "$"); ok && identifier(name) {
			value, set := env[name]
			switch {
			case set:
				out = append(out, systemd.Words(value)...)
			case !all:
				out = append(out, word)
			}
			continue
		}
		var b strings.Builder
		for word != "" {
			switch end := strings.Index(word, "}"); {
			case strings.HasPrefix(word, "$$"):
				b.WriteByte('$')
				word = word[2:]
				continue
			case strings.HasPrefix(word, "${") && end > 0:
				if value, set := env[word[2:end]]; set {
					b.WriteString(value)
				} else {
					b.WriteString(word[:end+1])
				}
				word = word[end+1:]
				continue
			}
			b.WriteByte(word[0])
			word = word[1:]
		}
		out = append(out, b.String())
	}
	return out
}

// identifier holds for what the name of a variable may be.
func identifier(s string) bool {
	return s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_") == ""
}

// unexpanded holds for a word with a variable that nothing here tells, or, of files that
// systemd has not read, with one of its specifiers (systemd.unit(5)).
func (n *Node) unexpanded(word string) bool {
	if strings.Contains(word, "$") {
		return true
	}
	i := strings.IndexByte(word, '%')
	return !n.Live && i >= 0 && i+1 < len(word) && identifier(word[i+1:i+2])
}

// wrapper is how a program that runs another takes its own arguments.
type wrapper struct {
	valued      []string // options whose value is the next word
	operands    int      // words before the command
	assignments bool     // NAME=VALUE before the command
	opaque      []string // options with which the command cannot be told
}

// wrapperOf knows programs that become the one that they are told to run, by their man
// pages of coreutils, util-linux and numactl.
func wrapperOf(program string) (w wrapper, ok bool) {
	all := map[string]wrapper{
		"env":     {valued: []string{"-u", "--unset", "-C", "--chdir"}, assignments: true, opaque: []string{"-S", "--split-string"}},
		"nice":    {valued: []string{"-n", "--adjustment"}},
		"ionice":  {valued: []string{"-c", "--class", "-n", "--classdata"}, opaque: []string{"-p", "--pid"}},
		"chrt":    {valued: []string{"-T", "--sched-runtime", "-P", "--sched-period", "-D", "--sched-deadline"}, operands: 1, opaque: []string{"-p", "--pid"}},
		"taskset": {operands: 1, opaque: []string{"-p", "--pid"}},
		"numactl": {valued: []string{"-i", "--interleave", "-p", "--preferred", "-N", "--cpunodebind", "-C", "--physcpubind", "-m", "--membind", "-w", "--weighted-interleave"}},
		"choom":   {valued: []string{"-n", "--adjust"}, opaque: []string{"-p", "--pid"}},
		"stdbuf":  {valued: []string{"-i", "--input", "-o", "--output", "-e", "--error"}},
		"prlimit": {opaque: []string{"-p", "--pid"}},
		"nohup":   {},
		"setsid":  {},
	}
	w, ok = all[path.Base(program)]
	return w, ok
}

func isShell(program string) bool {
	return slices.Contains([]string{"sh", "bash", "dash", "ash", "zsh", "ksh"}, path.Base(program))
}

// startsOthers holds for a program that is no daemon itself, whatever it is told to run:
// wrappers, shells, and scripts that are not called containerd.
func (n *Node) startsOthers(program string) bool {
	if _, wraps := wrapperOf(program); wraps || isShell(program) {
		return true
	}
	name := path.Base(program)
	if slices.Contains([]string{"busybox", "unshare", "nsenter", "setpriv", "capsh", "chroot", "sudo", "su", "runuser", "systemd-inhibit", "start-stop-daemon", "timeout", "perl"}, name) ||
		strings.HasPrefix(name, "python") {
		return true
	}
	return name != "containerd" && n.isScript(program)
}

func (n *Node) isScript(p string) bool {
	if fi, err := n.Host.Root.Stat(p); err != nil || !fi.Mode().IsRegular() {
		return false
	}
	f, err := n.Host.Root.Open(p)
	if err != nil {
		return false
	}
	defer f.Close()
	var head [2]byte
	_, err = f.ReadAt(head[:], 0)
	return err == nil && string(head[:]) == "#!"
}

// errWrapped is that a unit runs a program of which nothing tells what it starts.
var errWrapped = errors.New("it starts another program, and which cannot be told")

// unwrap is the command that is run in the end, past all programs that only start it.
func (n *Node) unwrap(argv []string) ([]string, error) {
	for len(argv) > 0 {
		program := argv[0]
		w, wraps := wrapperOf(program)
		switch {
		case isShell(program):
			inner, ok := shellCommand(argv[1:])
			if !ok {
				return nil, fmt.Errorf("%s: %w", program, errWrapped)
			}
			argv = inner
		case wraps:
			inner, ok := w.command(argv[1:])
			if !ok {
				return nil, fmt.Errorf("%s: %w", program, errWrapped)
			}
			argv = inner
		case n.startsOthers(n.program(program)):
			return nil, fmt.Errorf("%s: %w", program, errWrapped)
		default:
			return append([]string{n.program(program)}, argv[1:]...), nil
		}
	}
	return nil, errWrapped
}

// command is what follows a wrapper's own arguments.
func (w wrapper) command(args []string) ([]string, bool) {
	operands := w.operands
	for len(args) > 0 {
		a := args[0]
		name, _, has := strings.Cut(a, "=")
		switch {
		case a == "--":
			args = args[1:]
			if len(args) > operands {
				return args[operands:], true
			}
			return nil, false
		case slices.ContainsFunc(w.opaque, func(o string) bool {
			return name == o || !strings.HasPrefix(o, "--") && strings.HasPrefix(a, o)
		}):
			return nil, false
		case slices.Contains(w.valued, a):
			if len(args) < 2 {
				return nil, false
			}
			args = args[2:]
		case strings.HasPrefix(a, "-") && len(a) > 0:
			args = args[1:]
		case w.assignments && has && identifier(name):
			args = args[1:]
		case operands > 0:
			operands--
			args = args[1:]
		default:
			return args, true
		}
	}
	return nil, false
}

// shellCommand is the one simple command that a shell is told to run with -c.
func shellCommand(args []string) ([]string, bool) {
	for len(args) > 1 && strings.HasPrefix(args[0], "-") {
		isCommand := !strings.HasPrefix(args[0], "--") && strings.HasSuffix(args[0], "c") // -c, -ec
		args = args[1:]
		if !isCommand {
			continue
		}
		if strings.ContainsAny(args[0], ";&|<>()`\n*?[]~#!") {
			return nil, false // more than one simple command
		}
		words := systemd.Words(args[0])
		for len(words) > 0 {
			name, _, set := strings.Cut(words[0], "=")
			if words[0] != "exec" && (!set || !identifier(name)) {
				break
			}
			words = words[1:]
		}
		return words, len(words) > 0 && !strings.Contains(words[0], "$") && !strings.HasPrefix(words[0], "-")
	}
	return nil, false
}

// daemonArgv is what containerd.service runs in the end, the daemon's program and its
// arguments with variables put in, as far as they are known, and the FILE:LINE that says
// so. The error is errWrapped where the unit starts what cannot be told.
func (n *Node) daemonArgv() (argv []string, place string, err error) {
	argv, place, err = n.ExecStart()
	if err != nil {
		return nil, place, err
	}
	argv, err = n.unwrap(argv)
	return argv, place, err
}

// runningArgv are the arguments of the daemon that runs, nil where none does, or where
// its process is one that only keeps it.
func (n *Node) runningArgv() []string {
	p, err := n.Process()
	if err != nil || n.startsOthers(p.Exe) {
		return nil
	}
	argv, err := n.unwrap(p.Args)
	if err != nil {
		return nil
	}
	return argv
}

// configPath is ConfigPath, or why nobody can tell it.
func (n *Node) configPath() (string, error) {
	argv := n.runningArgv()
	if argv == nil {
		var place string
		var err error
		argv, place, err = n.daemonArgv()
		switch {
		case errors.Is(err, errWrapped):
			return "", fmt.Errorf("find the daemon's config: %s says %w", place, err)
		case err != nil:
			return defaultConfig, nil // there is no unit, or nobody may ask for it
		}
		if config, given := configArgument(argv); given && n.unexpanded(config) {
			return "", fmt.Errorf("find the daemon's config: nothing tells what %s in %s comes to", config, place)
		}
	}
	if config, given := configArgument(argv); given {
		return config, nil
	}
	return defaultConfig, nil
}
