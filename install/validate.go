package install

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/host"
)

// execTimeout is how long a staged program may take for its version or for reading
// a config.
const execTimeout = 30 * time.Second

// validate holds what was staged against the host: programs by their headers, and on
// the running host the daemon by its own word on its version and its config.
func (r *run) validate(ctx context.Context) error {
	if err := r.checkPrograms(); err != nil {
		return err
	}
	// Under another root nothing of it is ever run.
	if !r.plan.live {
		return nil
	}
	if slices.ContainsFunc(r.plan.Items, func(it Item) bool { return it.Action == Load }) {
		if _, err := r.modprobe(); err != nil {
			return err
		}
	}
	return r.ask(ctx)
}

// checkPrograms reads the headers of what was unpacked. Programs of one release with
// the same fault are one line.
func (r *run) checkPrograms() error {
	type finding struct {
		archive *Archive
		text    string
	}
	var faults []error
	warned := map[finding]bool{}
	failed := map[finding]bool{}
	items := slices.Clone(r.staging.items)
	slices.SortFunc(items, func(a, b *staged) int { return strings.Compare(a.own.Path, b.own.Path) })
	for _, s := range items {
		a := r.staging.archives[s.own.Component]
		if s.back || a == nil || a.Check == nil {
			continue
		}
		warning, err := checkProgram(a, s)
		if err != nil && !failed[finding{a, err.Error()}] {
			failed[finding{a, err.Error()}] = true
			from := ""
			if o := s.own.Origin.String(); o != "" {
				from = " (from " + o + ")"
			}
			faults = append(faults, fmt.Errorf("validate %s of %s: %w%s", path.Base(s.own.Path), a.File, err, from))
		}
		if warning != "" && !warned[finding{a, warning}] {
			warned[finding{a, warning}] = true
			r.res.Warnings.Warnf(s.own.Origin, "", "%s of %s: %s", path.Base(s.own.Path), a.File, warning)
		}
	}
	return errors.Join(faults...)
}

func checkProgram(a *Archive, s *staged) (string, error) {
	f, err := os.Open(s.temp)
	if err != nil {
		return "", err
	}
	defer f.Close()
	return a.Check(f, s.own.Path)
}

// ask runs the staged programs: containerd and runc say their versions, containerd
// reads the config it will run with. "config dump" loads and prints, and touches
// neither the daemon's root nor its state.
func (r *run) ask(ctx context.Context) error {
	var faults []error
	for _, name := range []string{"containerd", "runc"} {
		it := r.plan.find(KindArtifact, name)
		if it == nil || !it.Changes() {
			continue
		}
		for _, s := range r.staging.items {
			if s.own.Component != name || path.Base(s.own.Path) != name || s.back {
				continue
			}
			out, err := r.exec(ctx, s.temp, "--version")
			if err != nil {
				faults = append(faults, fmt.Errorf("validate %s: %w", s.own.Path, err))
			} else if !mentions(string(out.Stdout), it.NewVersion) {
				faults = append(faults, fmt.Errorf("validate %s: it says it is %q, want %s", s.own.Path, firstLine(out.Stdout), it.NewVersion))
			}
		}
	}
	if err := errors.Join(faults...); err != nil {
		return err
	}
	daemon := r.plan.state.Daemon
	if daemon.Binary == "" || daemon.ConfigPath == "" {
		return nil
	}
	binary, newBinary, err := r.stagedAt(daemon.Binary)
	if err != nil {
		return err
	}
	config, newConfig, err := r.stagedAt(daemon.ConfigPath)
	if err != nil {
		return err
	}
	if !newBinary && !newConfig {
		return nil
	}
	if _, err := r.exec(ctx, binary, "--config", config, "config", "dump"); err != nil {
		var exit *host.ExitError
		if errors.As(err, &exit) {
			text := strings.ReplaceAll(strings.TrimSpace(exit.Stderr), config, daemon.ConfigPath)
			err = errors.New(text)
		}
		return fmt.Errorf("validate %s: containerd %s does not accept it: %w", daemon.ConfigPath, daemon.Version, err)
	}
	return nil
}

// stagedAt is the staging name of a path that will change, else its real path.
func (r *run) stagedAt(p string) (real string, changes bool, err error) {
	if i := slices.IndexFunc(r.staging.items, func(s *staged) bool { return s.own.Path == p && !s.back }); i >= 0 {
		return r.staging.items[i].temp, true, nil
	}
	real, err = r.root.Resolve(p)
	return real, false, err
}

func (r *run) exec(ctx context.Context, program string, args ...string) (host.Output, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, execTimeout, fmt.Errorf("it did not end within %s", execTimeout))
	defer cancel()
	return r.h.Run(ctx, host.Cmd{Path: program, Args: args})
}

// mentions reports whether text has a version as a whole number: 1.7.2 is not in
// 1.7.24, but is in v1.7.2 and in what distributions make of it, 1.7.2~ds1 and
// 1.7.2+unknown. What comes before a release, 1.7.2-rc.1, is not that release.
func mentions(text, version string) bool {
	part := func(c byte) bool { return c == '.' || '0' <= c && c <= '9' }
	for at := 0; ; {
		i := strings.Index(text[at:], version)
		if i < 0 {
			return false
		}
		start, end := at+i, at+i+len(version)
		if (start == 0 || !part(text[start-1])) && (end == len(text) || !part(text[end]) && !preRelease(text[end:])) {
			return true
		}
		at = start + 1
	}
}

// preRelease reports whether what follows a version makes it one before the release.
func preRelease(rest string) bool {
	if rest == "" || rest[0] != '-' && rest[0] != '~' {
		return false
	}
	return slices.ContainsFunc([]string{"rc", "beta", "alpha"}, func(word string) bool { return strings.HasPrefix(rest[1:], word) })
}

func firstLine(b []byte) string {
	line, _, _ := strings.Cut(strings.TrimSpace(string(b)), "\n")
	return line
}
