package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"strings"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/elf"
	"github.com/nodeprep/nodeprep/systemd"
)

// addRecovery makes nodeprep's own files part of the state: the unit that recovers an
// interrupted run at boot, and the program that it calls. program is where that lies on
// this machine, "" to leave it what it is on the node.
func addRecovery(st *desired.State, program string) {
	origin := diag.Origin{}
	st.Files = append(st.Files, systemd.RecoverUnit(origin))
	st.Units = append(st.Units, desired.Unit{Name: systemd.RecoverUnitName, Enabled: true, Origin: origin})
	if program != "" {
		st.Files = append(st.Files, desired.File{
			Path: systemd.Program, Source: program, Mode: 0o755, First: true, Format: desired.FormatRaw, Origin: origin,
		})
	}
	st.Sort()
}

// program is nodeprep for the node: the running program where that can run there, else
// a release file like those of the components. A node that has one already keeps it
// where no other is at hand: then it is "".
func (a *app) program(ctx context.Context, st *desired.State, receipt *install.Receipt) (string, error) {
	if running := a.runningOn(st.Arch); running != "" {
		return running, nil
	}
	if a.source.node != nil {
		return a.source.program(ctx, a.tempDir())
	}
	dirs, err := a.artifactFolders()
	if err != nil {
		return "", err
	}
	l, err := releasedProgram(ctx, dirs, st.Sources, st.Arch,
		"the node is "+st.Arch+" and gets a nodeprep of its own, which ends an interrupted run at boot", ", or leave it out with --without-recovery")
	if _, absent := errors.AsType[*noProgramError](err); absent && receipt.Find(systemd.Program) != nil {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	if err := verifyProgram(l, st.Arch); err != nil {
		return "", err
	}
	return l.Path, nil
}

// runningOn is the path of the running program, "" where nodes of an architecture cannot run
// that one.
func (a *app) runningOn(arch string) string {
	switch {
	case arch != runtime.GOARCH || runtime.GOOS != "linux":
		return ""
	case a.self != "":
		return a.self
	}
	// Also there when the file was replaced or removed meanwhile (proc(5)).
	return "/proc/self/exe"
}

// releasedProgram finds nodeprep's own release file for an architecture in the folders; nothing
// is fetched, since nobody here knows its digest. Messages say why it is wanted, and what else
// would help.
func releasedProgram(ctx context.Context, dirs []string, sources []desired.Source, arch, why, otherwise string) (release.Located, error) {
	store := &release.Store{Dirs: dirs}
	for _, s := range sources {
		if s.Dir != "" {
			store.Sources = append(store.Sources, s)
		}
	}
	name := fmt.Sprintf("nodeprep-%s-linux-%s", plainVersion(), arch)
	l, err := store.Locate(ctx, desired.Artifact{Component: bundle.Program, Version: plainVersion(), Arch: arch, Files: []string{name}})
	if absent, ok := errors.AsType[*release.NotFoundError](err); ok {
		return l, &noProgramError{name, why, otherwise, absent.Places}
	}
	if unknown, ok := errors.AsType[*release.NoDigestError](err); ok {
		return l, fmt.Errorf("verify %s: no sha256 of it is known: put its checksum file beside it (sha256sum %s > %s.sha256)%s", unknown.File, name, name, otherwise)
	}
	return l, err
}

// noProgramError is that nodeprep for another architecture is not at hand.
type noProgramError struct {
	file, why, otherwise string
	places               []release.Place
}

func (e *noProgramError) Error() string {
	msg := fmt.Sprintf("find %s: %s; looked at:", e.file, e.why)
	for _, p := range e.places {
		msg += fmt.Sprintf("\n  %s: %s", p.Where, p.Why)
	}
	if len(e.places) == 0 {
		msg += "\n  nothing: there is no --artifacts folder"
	}
	return msg + "\nput it into a folder and give that with --artifacts" + e.otherwise
}

// plainVersion is nodeprep's version as its release files have it.
func plainVersion() string {
	return strings.Trim(strings.TrimPrefix(versionString(), "v"), "()")
}

// verifyProgram holds a release file of nodeprep to its digest and architecture.
func verifyProgram(l release.Located, arch string) error {
	f, err := os.Open(l.Path)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := sha256Of(f)
	if err != nil {
		return fmt.Errorf("verify %s: %w", l.Path, err)
	}
	if got != l.SHA256 {
		return &release.DigestError{File: l.Path, Got: got, Want: l.SHA256, From: l.SHA256From}
	}
	if _, err := elf.Read(f, arch); err != nil {
		return fmt.Errorf("verify %s: %w", l.Path, err)
	}
	return nil
}
