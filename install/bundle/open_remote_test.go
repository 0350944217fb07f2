package bundle

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeprep/nodeprep/install/release"
)

// A bundle in a registry is read as one in a file, and what the registry gives is verified.
func TestOpenFromARegistry(t *testing.T) {
	file, made := writeBundle(t, smallContents(t, "amd64", "arm64"))
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s := newShelf(t, false)
	_, content := entries(t, bytes.NewReader(data))
	for name, b := range content {
		if strings.HasPrefix(name, "blobs/") {
			s.put("", b)
		}
	}
	from := opened(t, file)
	for _, d := range append([]ocispec.Descriptor{from.root}, from.index.Manifests...) {
		s.manifests[d.Digest.String()] = d
	}
	address := RegistryScheme + s.host() + "/x/y@" + made.Digest.String()
	opt := OpenOptions{Registry: quick()}
	b, err := Open(t.Context(), address, opt)
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	n, err := b.For(t.Context(), "arm64")
	if err != nil {
		t.Fatal(err)
	}
	checkNode(t, n)
	other := nodeOf(t, from, "amd64")
	for _, asked := range s.requests() {
		for _, d := range []ocispec.Descriptor{other.manifest, other.config, other.layers[other.Config.Components[0].Layer]} {
			if strings.Contains(asked, d.Digest.String()) {
				t.Errorf("%s is of the other architecture", asked)
			}
		}
	}
	report, err := Verify(t.Context(), address, opt, nil)
	if err != nil || len(report.Faults) > 0 || len(report.Parts) != 12 {
		t.Errorf("verify: %v, %+v", err, report)
	}

	layer := n.Config.Components[0].Layer
	s.mu.Lock()
	changed := bytes.Clone(s.blobs[layer.String()])
	changed[len(changed)/2] ^= 1
	s.blobs[layer.String()] = changed
	s.mu.Unlock()
	_, err = n.Unpack(t.Context(), &n.Config.Components[0], nil, taken(map[string]string{}))
	if _, is := errors.AsType[*release.DigestError](err); !is {
		t.Errorf("a changed layer: %v", err)
	}
	// A registry that cannot be reached says nothing about the bundle.
	s.CloseClientConnections()
	s.Close()
	_, err = Verify(t.Context(), address, opt, nil)
	if _, damaged := errors.AsType[*DamagedError](err); err == nil || damaged {
		t.Errorf("without the registry: %v", err)
	}
}
