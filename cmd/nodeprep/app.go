package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
)

// Exit codes, the same for every verb.
const (
	exitDone      = 0
	exitFailed    = 1 // it failed, and the host is as it was before
	exitUsage     = 2 // wrong usage, or an invalid profile
	exitDiffers   = 3 // plan, status: something differs; check, apply's audit: a required check failed
	exitStranded  = 4 // it failed and the host could not be brought back
	profileOnNode = "/etc/nodeprep/profile.yaml"
)

// version is set by the linker; builds without it say what the module knows.
var version = ""

// results is standard output; it remembers that something could not be written.
type results struct {
	io.Writer
	err error
}

func (r *results) Write(p []byte) (int, error) {
	n, err := r.Writer.Write(p)
	// A reader that went away wanted no more; a full disk lost the result.
	if err != nil && r.err == nil && !errors.Is(err, syscall.EPIPE) {
		r.err = fmt.Errorf("write the result: %w", err)
	}
	return n, err
}

func (r *results) failed() error { return r.err }

// app is one run of the command line.
type app struct {
	stdio
	out *results
	env func(string) (string, bool)

	profile string
	lock    string
	// noLock leaves out a lock that lies beside the profile.
	noLock    bool
	root      string
	artifacts []string
	offline   bool
	output    string
	color     string
	arch      string

	// piped is the profile that came by standard input, nil before it was read.
	piped []byte

	// bundle is --bundle, source what it opened.
	bundle     string
	registryCA string
	// bundleFile is what bundle names, where that was opened already.
	bundleFile *os.File
	source     source

	// result is what the verb found; printed once, at the end, for -o json and yaml.
	result any
	// structured remembers that output is a format for machines.
	structured bool
	// unattended is what a machine that starts a run by itself does it for; nil where somebody
	// runs it.
	unattended *install.BootDigests
	// changed remembers that the verb has done something to the host.
	changed bool
}

// usageError is a wrong command line: exit code 2.
type usageError struct{ err error }

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return &usageError{fmt.Errorf(format, args...)} }

// invalidError is a profile with faults: exit code 2.
type invalidError struct{ list diag.List }

func (e *invalidError) Error() string {
	n := len(e.list.Errors())
	if n == 1 {
		return "invalid profile: 1 fault"
	}
	return fmt.Sprintf("invalid profile: %d faults", n)
}

// auditError is an apply that was done and whose audit failed: exit code 3.
type auditError struct{ failed int }

func (e *auditError) Error() string {
	return "done, but the audit afterwards failed: " + plural(e.failed, "finding") + " of required checks"
}

// codeError ends a run with a code and without a message: what is to be said has
// been printed as the result.
type codeError struct{ code int }

func (e *codeError) Error() string { return fmt.Sprintf("exit code %d", e.code) }

// command builds the tree of verbs.
func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "nodeprep",
		Short: "Declarative host provisioning for containerd nodes",
		Long: `nodeprep turns a fresh Linux server into a ready containerd node from one YAML profile:
it renders config.toml, hosts.toml and the systemd unit, installs verified releases of
containerd, runc and the CNI plugins, starts the daemon and proves that it works.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Version:       versionString(),
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				msg := fmt.Sprintf("unknown verb %q", args[0])
				if s := cmd.SuggestionsFor(args[0]); len(s) > 0 {
					msg += fmt.Sprintf(" (did you mean %s?)", strings.Join(s, " or "))
				}
				return usagef("%s; nodeprep --help lists the verbs", msg)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			return a.checkFlags(cmd)
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usagef("%w; %s --help lists the flags", err, cmd.CommandPath())
	})
	f := root.PersistentFlags()
	f.StringVarP(&a.profile, "profile", "f", "", "the node profile: a `FILE`, a built-in's name, or - for standard input")
	f.StringVar(&a.root, "root", "/", "the host's root `DIR`, for mounted images and chroots")
	f.StringArrayVar(&a.artifacts, "artifacts", nil, "a `DIR` of upstream-named release files (repeatable)")
	f.BoolVar(&a.offline, "offline", false, "use no network at all")
	f.StringVarP(&a.output, "output", "o", "text", "text, json or yaml; for check also junit")
	f.StringVar(&a.color, "color", "auto", "auto, always or never")
	complete(root, "output", func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		return formats(cmd), cobra.ShellCompDirectiveNoFileComp
	})
	complete(root, "color", cobra.FixedCompletions([]cobra.Completion{"auto", "always", "never"}, cobra.ShellCompDirectiveNoFileComp))
	root.AddCommand(a.initCommand(), a.validateCommand(), a.renderCommand(), a.planCommand(), a.applyCommand(),
		a.checkCommand(), a.statusCommand(), a.rollbackCommand(), a.recoverCommand(), a.firstBootCommand(), a.uninstallCommand(), a.lockCommand(), a.bundleCommand(), a.cloudInitCommand(), a.explainCommand(), a.versionCommand(), a.schemaCommand())
	return root
}

// network is what this command line allows of it.
func (a *app) network() *host.Network {
	if a.bundle != "" {
		return a.registryNetwork().Only("--bundle")
	}
	return a.registryNetwork()
}

// registryNetwork is for registries of bundles and their images: --bundle oci:// reaches the
// bundle's own, and narrows this to it.
func (a *app) registryNetwork() *host.Network {
	if a.offline {
		return host.NoNetwork("--offline")
	}
	return host.OpenNetwork()
}

// oneOf makes an error for a flag whose value is not among those allowed.
func oneOf(flag, value string, allowed ...string) error {
	if slices.Contains(allowed, value) {
		return nil
	}
	return usagef("--%s %q: want %s", flag, value, strings.Join(allowed, ", "))
}

// alsoFormats annotates a verb with a format that it has beside those of all.
const alsoFormats = "formats"

// formats are those of a verb's results.
func formats(cmd *cobra.Command) []string {
	out := []string{"text", "json", "yaml"}
	if also := cmd.Annotations[alsoFormats]; also != "" {
		out = append(out, also)
	}
	return out
}

func (a *app) checkFlags(cmd *cobra.Command) error {
	var empty []error
	cmd.Flags().Visit(func(f *pflag.Flag) {
		// An unset variable of a shell must not mean "as if the flag were not there".
		if f.Value.Type() == "string" && f.Value.String() == "" {
			empty = append(empty, usagef("--%s: it has no value", f.Name))
		}
	})
	if len(empty) > 0 {
		return errors.Join(empty...)
	}
	// completion and help come from cobra and print scripts and text.
	a.structured = a.output == "json" || a.output == "yaml"
	return errors.Join(oneOf("output", a.output, formats(cmd)...), oneOf("color", a.color, "auto", "always", "never"))
}

// noArgs and its kin refuse surplus arguments as wrong usage.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments, got %q", cmd.CommandPath(), args)
	}
	return nil
}

// finish prints the result or the error and returns the exit code.
func (a *app) finish(args []string, err error) int {
	if err == nil && !a.structured {
		err = a.unprinted()
	}
	code := exitCode(err)
	if _, usage := errors.AsType[*usageError](err); usage && !a.structured {
		// A wrong flag is found before all flags were read.
		a.structured, a.output = asksForDocument(args)
	}
	if a.structured {
		a.printDocument(err, code)
		if lost := a.unprinted(); lost != nil {
			fmt.Fprintf(a.stdio.err, "nodeprep: %v\n", lost)
			code = cmp.Or(code, exitFailed)
		}
		return code
	}
	if _, quiet := errors.AsType[*codeError](err); err == nil || quiet {
		return code
	}
	p := a.paint(a.stdio.err)
	if invalid, ok := errors.AsType[*invalidError](err); ok {
		for _, d := range invalid.list {
			fmt.Fprintln(a.stdio.err, p.diagnostic(d))
		}
	}
	message := err.Error()
	if failed, ok := errors.AsType[*checks.FailedError](err); ok && failed.Error() == message {
		printBlocks(a.stdio.err, p, failed.Report, checks.Fail)
		message = fmt.Sprintf("%s failed: %s of required checks; nothing was changed", failed.Stage, plural(len(failed.Report), "finding"))
	}
	fmt.Fprintf(a.stdio.err, "%s %s\n", p.red("nodeprep:"), message)
	return code
}

// unprinted is that the result could not be written, where the result is all there is. What
// was done to the host is done, whoever hears of it.
func (a *app) unprinted() error {
	err := a.out.failed()
	if err != nil && a.changed {
		fmt.Fprintf(a.stdio.err, "nodeprep: done, but nobody could be told: %v\n", err)
		return nil
	}
	return err
}

// asksForDocument looks for -o json or yaml in a command line that could not be read.
func asksForDocument(args []string) (structured bool, format string) {
	for i, arg := range args {
		value := ""
		switch {
		case (arg == "-o" || arg == "--output") && i+1 < len(args):
			value = args[i+1]
		case strings.HasPrefix(arg, "--output="):
			value = strings.TrimPrefix(arg, "--output=")
		case strings.HasPrefix(arg, "-o"):
			value = strings.TrimPrefix(strings.TrimPrefix(arg, "-o"), "=")
		}
		if value == "json" || value == "yaml" {
			return true, value
		}
	}
	return false, "text"
}

// failure is the JSON form of an error.
type failure struct {
	Message     string    `json:"message" yaml:"message"`
	ExitCode    int       `json:"exitCode" yaml:"exitCode"`
	Diagnostics diag.List `json:"diagnostics,omitempty" yaml:"diagnostics,omitempty"`
}

// printDocument prints exactly one document: the result, with an "error" beside it
// when the verb failed.
func (a *app) printDocument(err error, code int) {
	if a.result == nil && err == nil {
		return // help and completion scripts are what they are in any format
	}
	doc := map[string]any{}
	if a.result != nil {
		b, merr := json.Marshal(a.result)
		if merr == nil {
			merr = json.Unmarshal(b, &doc)
		}
		if merr != nil {
			err, code = fmt.Errorf("print result: %w", merr), exitFailed
		}
	}
	if _, quiet := errors.AsType[*codeError](err); err != nil && !quiet {
		f := failure{Message: err.Error(), ExitCode: code}
		if invalid, ok := errors.AsType[*invalidError](err); ok {
			f.Diagnostics = invalid.list
		}
		doc["error"] = f
	}
	var b []byte
	if a.output == "yaml" {
		// Through JSON, so that both forms have the same names. YAML reads what JSON writes,
		// and keeps whole numbers whole.
		raw, _ := json.Marshal(doc)
		var plain any
		_ = yaml.Unmarshal(raw, &plain)
		b, _ = yaml.Marshal(plain)
	} else {
		b, _ = json.MarshalIndent(doc, "", "  ")
		b = append(b, '\n')
	}
	_, _ = a.out.Write(b)
}

// versionInfo is what `nodeprep version` tells.
type versionInfo struct {
	Version string `json:"version"`
	Commit  string `json:"commit,omitempty"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
}

func versionString() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print nodeprep's version",
		Args:  noArgs,
		RunE: func(*cobra.Command, []string) error {
			v := versionInfo{Version: versionString(), Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
			if info, ok := debug.ReadBuildInfo(); ok {
				for _, s := range info.Settings {
					if s.Key == "vcs.revision" {
						v.Commit = s.Value
					}
				}
			}
			a.result = v
			if !a.structured {
				fmt.Fprintf(a.out, "nodeprep %s %s %s/%s\n", v.Version, v.Go, v.OS, v.Arch)
			}
			return nil
		},
	}
}
