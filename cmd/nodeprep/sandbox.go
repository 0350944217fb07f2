package main

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/install/bundle"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
	"github.com/nodeprep/nodeprep/profiles"
	"github.com/nodeprep/nodeprep/render/registry"
)

// sandboxFaults says whether a node could come by the image that every pod needs first: from
// a registry, from an archive of the profile, or among images that come along besides. No
// archive is opened where a registry could do it, and one that cannot be read here, or is in
// a bundle, may have it.
func sandboxFaults(ctx context.Context, spec *profiles.Spec, besides ...string) diag.List {
	wanted := spec.Containerd.SandboxImage
	full, err := imagearchive.FullName(wanted)
	supply, ok := registry.Suppliers(spec.Registries, wanted)
	if err != nil || !ok || len(supply.Can) > 0 || slices.Contains(besides, full) {
		return nil
	}
	for _, img := range spec.Images {
		if mayHave(ctx, img.File.Path, full) {
			return nil
		}
	}
	var because []string
	for _, field := range supply.Cannot {
		because = append(because, spec.Origin(field).String())
	}
	var list diag.List
	list.Errorf(spec.Origin(supply.Field), "add an archive with it to images, let a mirror pull and resolve, or give another image as containerd.sandboxImage",
		"no pod could start: nobody can supply the sandbox image %s, neither an archive of images nor a registry: see %s", wanted, strings.Join(because, ", "))
	return list
}

// mayHave says whether an archive has an image, or cannot be asked.
func mayHave(ctx context.Context, file, name string) bool {
	fi, err := os.Stat(file)
	if err != nil {
		return true
	}
	if !fi.Mode().IsRegular() {
		return false // no archive, which is told elsewhere
	}
	f, err := os.Open(file)
	if err != nil {
		return true
	}
	defer f.Close()
	names, err := imagearchive.Names(ctx, f)
	if err != nil {
		return !errors.Is(err, imagearchive.ErrNoArchive)
	}
	return slices.Contains(names, name)
}

// bundledSandbox is sandboxFaults of the nodes of a bundle, with the images that go along.
func bundledSandbox(ctx context.Context, nodes []bundledNode, along []bundle.PulledImage) error {
	var names []string
	for _, i := range along {
		if full, err := imagearchive.FullName(i.Name); err == nil {
			names = append(names, full)
		}
	}
	var list diag.List
	for _, n := range nodes {
		list = append(list, sandboxFaults(ctx, n.spec, names...)...)
	}
	list.Sort()
	if list.HasErrors() {
		return &invalidError{list}
	}
	return nil
}
