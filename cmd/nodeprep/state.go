package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/nodeprep/nodeprep/install/release"
	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render"
	"github.com/nodeprep/nodeprep/render/registry"
	"github.com/nodeprep/nodeprep/systemd"
)

// maxInput bounds certificates and secrets read from the profile's files.
const maxInput = 4 << 20

// inputs reads what a profile refers to: certificates, and secrets from files, the
// environment and systemd credentials (systemd.exec(5), CREDENTIALS_DIRECTORY).
type inputs struct {
	env func(string) (string, bool)
	// bundled reads what is in a bundle, by its place below profiles.BundleRoot; nil
	// where there is none.
	bundled func(name string) ([]byte, error)
	// masked leaves secrets unread: for output that does not show them anyway.
	masked bool
	// portable does without files that are not here: they are looked for where the profile
	// is applied.
	portable bool
}

// reader is in as the renderers want it; a nil *inputs is no Reader at all.
func reader(in *inputs) registry.Reader {
	if in == nil {
		return nil
	}
	return in
}

// File reads a file that the profile names.
func (in inputs) File(f profiles.LocalFile) ([]byte, error) {
	b, err := in.read(f.Path)
	if in.portable && errors.Is(err, fs.ErrNotExist) {
		return registry.Placeholders{}.File(f)
	}
	return b, err
}

// Now is the time by which certificates are judged.
func (inputs) Now() time.Time { return time.Now() }

// Secret reads a secret's value; a final newline, which editors add, is not part of it.
func (in inputs) Secret(s profiles.Secret) (string, error) {
	switch {
	case in.masked:
		return registry.Placeholders{}.Secret(s)
	case s.File != "":
		b, err := in.read(s.File)
		return cutLineBreak(string(b)), err
	case s.Env != "":
		v, ok := in.env(s.Env)
		if !ok {
			return "", fmt.Errorf("read secret: environment variable %s is not set", s.Env)
		}
		return v, nil
	case s.Credential != "":
		dir, ok := in.env("CREDENTIALS_DIRECTORY")
		if !ok {
			return "", fmt.Errorf("read secret: no systemd credentials here to take %s from (LoadCredential= in the unit that runs nodeprep)", s.Credential)
		}
		if s.Credential != filepath.Base(s.Credential) {
			return "", fmt.Errorf("read secret: credential name %q is a path", s.Credential)
		}
		b, err := readLimited(filepath.Join(dir, s.Credential))
		return cutLineBreak(string(b)), err
	}
	return s.Value, nil
}

// cutLineBreak is s without the line break at its end, of whichever kind.
func cutLineBreak(s string) string {
	if before, ok := strings.CutSuffix(s, "\r\n"); ok {
		return before
	}
	return strings.TrimSuffix(s, "\n")
}

func (in inputs) read(name string) ([]byte, error) {
	if in.bundled != nil && strings.HasPrefix(name, profiles.BundleRoot) {
		return in.bundled(name)
	}
	return readLimited(name)
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxInput+1))
	if err == nil && len(b) > maxInput {
		err = fmt.Errorf("read %s: larger than %d bytes", path, maxInput)
	}
	return b, err
}

// desiredState composes the node's desired state from a Spec: pure, but for the
// certificates and secrets that in reads; in is nil to leave those out. lock, where there
// is one, says which release files are used. Faults are an *invalidError; the list returned
// beside it holds the warnings.
func desiredState(spec *profiles.Spec, in *inputs, lock *release.Lock) (desired.State, diag.List, error) {
	var (
		list diag.List
		st   = desired.State{
			Arch:        spec.Arch,
			Modules:     spec.Modules,
			Sysctl:      spec.Sysctl,
			Generations: spec.Generations,
			// containerd makes it, too, and nobody would remove it then.
			Dirs:  []desired.Dir{{Path: path.Dir(render.ConflistPath), Mode: 0o755, Origin: spec.Origin("cni")}},
			Units: []desired.Unit{{Name: systemd.UnitName, Enabled: true, Active: true, Origin: spec.Origin("systemd")}},
			Daemon: desired.Daemon{
				Version:     spec.Containerd.Version.String(),
				Address:     spec.Containerd.Address,
				Snapshotter: spec.Containerd.Snapshotter,
				ConfigPath:  render.ConfigPath,
				Binary:      systemd.Binary,
				OOMScore:    spec.Systemd.OOMScoreAdjust,
				Unit:        systemd.UnitName,
			},
		}
	)
	if spec.Containerd.OOMScore != 0 {
		// containerd sets it itself after start, over the unit's.
		st.Daemon.OOMScore = spec.Containerd.OOMScore
	}
	files, faults := render.Files(spec, reader(in))
	st.Files, list = append(st.Files, files...), append(list, faults...)
	files, faults = registry.Files(spec, reader(in))
	if !faults.HasErrors() {
		// Also where nothing is written: a plan would lie.
		faults = append(faults, readBack(spec, files)...)
	}
	st.Files, list = append(st.Files, files...), append(list, faults...)
	files, faults = systemd.Files(spec, registry.OrPlaceholders(reader(in)).Secret)
	st.Files, list = append(st.Files, files...), append(list, faults...)

	artifacts, faults := lock.Artifacts(requests(spec))
	st.Artifacts, list = artifacts, append(list, faults...)
	for _, img := range spec.Images {
		st.Images = append(st.Images, desired.Image{File: img.File.Path, Pin: img.Pin, Origin: img.File.Origin})
	}
	for _, s := range spec.Sources {
		st.Sources = append(st.Sources, desired.Source{Dir: s.Dir, URL: s.URL, Origin: s.Origin})
	}
	st.Sort()
	list.Sort()
	if list.HasErrors() {
		return st, list, &invalidError{list}
	}
	return st, list, nil
}

// requests are the releases that a Spec wants.
func requests(spec *profiles.Spec) []release.Request {
	var out []release.Request
	for _, c := range []struct {
		name   string
		static bool
		profiles.Component
	}{
		{releases.Containerd, spec.Containerd.Static, spec.Containerd.Component},
		{releases.Runc, false, spec.Runc},
		{releases.CNI, false, spec.CNI.Component},
		{releases.Crictl, false, spec.Crictl},
	} {
		if !c.Installed() {
			continue
		}
		origin := spec.Origin(c.name + ".version")
		if c.SHA256 != "" {
			origin = spec.Origin(c.name + ".sha256")
		}
		out = append(out, release.Request{
			Component: c.name, Version: c.Version, Arch: spec.Arch, Static: c.static, SHA256: c.SHA256, Origin: origin,
		})
	}
	return out
}
