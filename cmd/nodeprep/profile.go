package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

// maxProfile bounds what is read as a profile: real ones have a few kilobytes.
const maxProfile = 1 << 20

// read reads a profile by the name the user gave: a file, or - for standard input,
// which may wait for a person and so ends with the context. A pipe under a file's
// name would wait for nobody.
func (a *app) read(ctx context.Context, name string) ([]byte, error) {
	if strings.HasPrefix(name, profiles.BundleRoot) && a.source.bundle != nil {
		return a.source.fromBundle(ctx, name)
	}
	if name != "-" {
		if fi, err := os.Stat(name); err == nil && !fi.Mode().IsRegular() && name != os.DevNull {
			return nil, fmt.Errorf("read %s: not a regular file", name)
		}
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		return io.ReadAll(io.LimitReader(f, maxProfile+1))
	}
	if a.piped != nil {
		return a.piped, nil // it can be read once
	}
	type input struct {
		data []byte
		err  error
	}
	done := make(chan input, 1)
	go func() {
		data, err := io.ReadAll(io.LimitReader(a.in, maxProfile+1))
		done <- input{data, err}
	}()
	select {
	case in := <-done:
		if in.err == nil {
			a.piped = in.data
		}
		return in.data, in.err
	case <-ctx.Done():
		return nil, fmt.Errorf("read standard input: %w", context.Cause(ctx))
	}
}

// loader reads profiles relative to where the user is.
func (a *app) loader(ctx context.Context) (profiles.Loader, error) {
	dir, err := os.Getwd()
	if err != nil {
		return profiles.Loader{}, fmt.Errorf("find the current directory: %w", err)
	}
	l := profiles.Loader{Dir: dir, Read: func(name string) ([]byte, error) { return a.read(ctx, name) }}
	if a.source.bundle != nil {
		l.Bundle = a.source.bundle.Name()
	}
	return l, nil
}

// load loads a profile; its faults are an *invalidError, its warnings go to standard
// error at once.
func (a *app) load(ctx context.Context, name string) (*profiles.Profile, error) {
	l, err := a.loader(ctx)
	if err != nil {
		return nil, err
	}
	p, list := l.Load(name)
	if list.HasErrors() {
		return nil, &invalidError{list}
	}
	a.warn(list)
	return p, nil
}

// warn prints warnings on standard error.
func (a *app) warn(list diag.List) {
	p := a.paint(a.stdio.err)
	for _, d := range list.Warnings() {
		fmt.Fprintln(a.stdio.err, p.diagnostic(d))
	}
}

// chosen is the profile a verb works with, by the rules that are the same for all
// verbs: -f; the bundle's; the profile in the node's /etc; on a node with a receipt none by
// default, since applying a different profile there must be asked for; else the
// built-in default. A nil root is no node.
func (a *app) chosen(root *host.Root, receiptProfile func() (string, bool, error)) (string, error) {
	switch {
	case a.profile != "":
		return a.profile, nil
	case a.source.bundle != nil:
		return profiles.BundleName, nil
	case root == nil:
		return "default", nil
	}
	if _, err := root.Stat(profileOnNode); err == nil {
		return root.Resolve(profileOnNode)
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	last, provisioned, err := receiptProfile()
	if err != nil {
		return "", err
	}
	if provisioned {
		return "", usagef("this node was provisioned before, from %s: name the profile with -f, or its bundle with --bundle, or put it at %s", last, profileOnNode)
	}
	return "default", nil
}

// facts turns what the host tells into what resolving needs.
func (a *app) facts(root *host.Root) (profiles.Facts, host.Facts) {
	f := host.GatherFacts(root, a.arch)
	out := profiles.Facts{Arch: f.Arch, LibC: f.LibC.Kind, Systemd: f.Systemd, SystemdInit: f.SystemdInit}
	if f.LibC.Major > 0 {
		out.LibCVersion = releases.Version{Major: f.LibC.Major, Minor: f.LibC.Minor}
	}
	return out, f
}

// portableFacts are those of no host in particular: for verbs that only look at a
// profile, whose result must not depend on the machine they run on.
func (a *app) portableFacts() profiles.Facts {
	arch := a.arch
	if arch == "" {
		arch = runtime.GOARCH
	}
	return profiles.Facts{Arch: arch, SystemdInit: true}
}

// resolve makes the Spec of a loaded profile and adds what only the calendar knows.
func (a *app) resolve(p *profiles.Profile, facts profiles.Facts, now time.Time) (*profiles.Spec, error) {
	spec, list := profiles.Resolve(p, facts)
	if list.HasErrors() {
		return nil, &invalidError{list}
	}
	list = append(append(list, supportNotes(spec, now)...), skipNotes(spec)...)
	a.warn(list)
	return spec, nil
}

// supportNotes warns of releases whose upstream support has ended: allowed, since
// nodes outlive calendars, but said.
func supportNotes(spec *profiles.Spec, now time.Time) diag.List {
	var list diag.List
	if note, ended := releases.EndOfLife(spec.Containerd.Version, now); ended {
		list.Warnf(spec.Origin("containerd.version"), "", "%s", note)
	}
	return list
}

// openRoot opens --root.
func (a *app) openRoot() (*host.Root, error) {
	root, err := host.OpenRoot(a.root)
	if err != nil {
		return nil, usagef("--root: %w", err)
	}
	if a.arch != "" && root.Live() {
		return nil, usagef("--arch: only with --root DIR, a running host's architecture is its own")
	}
	return root, nil
}

// absolute makes a path of the command line absolute.
func absolute(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", fmt.Errorf("path %s: %w", p, err)
	}
	return abs, nil
}
