package main

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/rogpeppe/go-internal/testscript"
)

// airgapCommands are those of scripts with images, bundles and registries.
func airgapCommands() map[string]func(*testscript.TestScript, bool, []string) {
	return map[string]func(*testscript.TestScript, bool, []string){
		// archive FILE NAME ARCH... makes an OCI archive with an image for these architectures.
		"archive": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Check(os.MkdirAll(filepath.Dir(ts.MkAbs(args[0])), 0o755))
			data, err := imageArchive(args[1], args[2:])
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o644))
		},
		// flip FILE PART changes a byte in the middle of a file of an OCI archive, or of the
		// layer with that title.
		"flip": func(ts *testscript.TestScript, _ bool, args []string) {
			data := []byte(ts.ReadFile(args[0]))
			at, err := middleOf(data, args[1])
			ts.Check(err)
			data[at] ^= 1
			ts.Check(os.WriteFile(ts.MkAbs(args[0]), data, 0o644))
		},
		// serve REPOSITORY=ARCHIVE... is a registry with what is in archives, until the script
		// ends; $REGISTRY is its address.
		"serve": func(ts *testscript.TestScript, _ bool, args []string) {
			repositories := map[string]string{}
			for _, a := range args {
				name, file, _ := strings.Cut(a, "=")
				repositories[name] = ts.MkAbs(file)
			}
			server := httptest.NewServer(archives(repositories))
			ts.Defer(server.Close)
			ts.Setenv("REGISTRY", strings.TrimPrefix(server.URL, "http://"))
		},
		// digest ARCHIVE sets $DIGEST to what an OCI archive's index names.
		"digest": func(ts *testscript.TestScript, _ bool, args []string) {
			files, err := readArchive([]byte(ts.ReadFile(args[0])))
			ts.Check(err)
			named, err := files.named()
			ts.Check(err)
			ts.Setenv("DIGEST", named.Digest.String())
		},
	}
}

// imageArchive is an OCI archive of a small image.
func imageArchive(name string, arches []string) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	file := func(name string, data []byte) error {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
			return err
		}
		_, err := w.Write(data)
		return err
	}
	blob := func(mediaType string, data []byte) (ocispec.Descriptor, error) {
		d := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
		return d, file("blobs/sha256/"+d.Digest.Encoded(), data)
	}
	document := func(mediaType string, v any) (ocispec.Descriptor, error) {
		data, err := json.Marshal(v)
		if err != nil {
			return ocispec.Descriptor{}, err
		}
		return blob(mediaType, data)
	}
	versioned := specs.Versioned{SchemaVersion: 2}
	var manifests []ocispec.Descriptor
	for _, arch := range arches {
		content, err := plainTar("program", program(arch, name))
		if err != nil {
			return nil, err
		}
		layer, err := blob(ocispec.MediaTypeImageLayer, content)
		if err != nil {
			return nil, err
		}
		platform := ocispec.Platform{Architecture: arch, OS: "linux"}
		config, err := document(ocispec.MediaTypeImageConfig, ocispec.Image{Platform: platform, RootFS: ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{layer.Digest}}})
		if err != nil {
			return nil, err
		}
		manifest, err := document(ocispec.MediaTypeImageManifest, ocispec.Manifest{Versioned: versioned, MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{layer}})
		if err != nil {
			return nil, err
		}
		manifest.Platform = &platform
		manifests = append(manifests, manifest)
	}
	root := manifests[0]
	if len(manifests) > 1 {
		var err error
		if root, err = document(ocispec.MediaTypeImageIndex, ocispec.Index{Versioned: versioned, MediaType: ocispec.MediaTypeImageIndex, Manifests: manifests}); err != nil {
			return nil, err
		}
	}
	root.Annotations = map[string]string{"io.containerd.image.name": name, ocispec.AnnotationRefName: path.Base(name)}
	index, err := json.Marshal(ocispec.Index{Versioned: versioned, Manifests: []ocispec.Descriptor{root}})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(file(ocispec.ImageIndexFile, index), file(ocispec.ImageLayoutFile, []byte(`{"imageLayoutVersion":"1.0.0"}`)), w.Close()); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func plainTar(name string, data []byte) ([]byte, error) {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(data)), Typeflag: tar.TypeReg}); err != nil {
		return nil, err
	}
	_, err := w.Write(data)
	return b.Bytes(), errors.Join(err, w.Close())
}

// archived are the files of an OCI archive, by name, and where each is in it.
type archived struct {
	data map[string][]byte
	at   map[string]int
}

func readArchive(archive []byte) (archived, error) {
	files := archived{map[string][]byte{}, map[string]int{}}
	r := bytes.NewReader(archive)
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if err == io.EOF {
			return files, nil
		}
		if err != nil {
			return files, err
		}
		files.at[h.Name] = len(archive) - r.Len()
		if files.data[h.Name], err = io.ReadAll(in); err != nil {
			return files, err
		}
	}
}

// blob is a part by its digest.
func (a archived) blob(d digest.Digest) (name string, data []byte, ok bool) {
	name = "blobs/" + strings.ReplaceAll(d.String(), ":", "/")
	data, ok = a.data[name]
	return name, data, ok
}

// named is what the index has.
func (a archived) named() (ocispec.Descriptor, error) {
	var index ocispec.Index
	if err := json.Unmarshal(a.data[ocispec.ImageIndexFile], &index); err != nil {
		return ocispec.Descriptor{}, err
	}
	if len(index.Manifests) != 1 {
		return ocispec.Descriptor{}, fmt.Errorf("the index names %d", len(index.Manifests))
	}
	return index.Manifests[0], nil
}

// middleOf is a place in an archive: in a file, in the image index, in the first of its
// manifests, in that one's config, or in the layer with that title.
func middleOf(archive []byte, part string) (int, error) {
	files, err := readArchive(archive)
	if err != nil {
		return 0, err
	}
	middle := func(name string) (int, error) {
		if _, ok := files.at[name]; !ok {
			return 0, fmt.Errorf("no %s", name)
		}
		return files.at[name] + len(files.data[name])/2, nil
	}
	if _, ok := files.at[part]; ok {
		return middle(part)
	}
	named, err := files.named()
	if err != nil {
		return 0, err
	}
	indexName, data, _ := files.blob(named.Digest)
	var index ocispec.Index
	if err := json.Unmarshal(data, &index); err != nil {
		return 0, err
	}
	manifestName, data, _ := files.blob(index.Manifests[0].Digest)
	var manifest ocispec.Manifest
	if err := json.Unmarshal(data, &manifest); err != nil {
		return 0, err
	}
	configName, _, _ := files.blob(manifest.Config.Digest)
	if name, ok := map[string]string{"index": indexName, "manifest": manifestName, "config": configName}[part]; ok {
		return middle(name)
	}
	for _, l := range manifest.Layers {
		if l.Annotations[ocispec.AnnotationTitle] == part {
			name, _, _ := files.blob(l.Digest)
			return middle(name)
		}
	}
	return 0, fmt.Errorf("no part %q", part)
}

// archives is a registry (OCI distribution-spec, pulling) over OCI archives by repository.
func archives(repositories map[string]string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/v2/" {
			return
		}
		repository, asked, ok := strings.Cut(strings.TrimPrefix(r.URL.Path, "/v2/"), "/manifests/")
		manifest := ok
		if !ok {
			repository, asked, _ = strings.Cut(repository, "/blobs/")
		}
		archive, err := os.ReadFile(repositories[repository])
		if err != nil {
			http.Error(w, "no such repository", http.StatusNotFound)
			return
		}
		files, err := readArchive(archive)
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		if manifest && !strings.Contains(asked, ":") {
			named, err := files.named()
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			asked = named.Digest.String()
		}
		_, data, ok := files.blob(digest.Digest(asked))
		if !ok {
			http.NotFound(w, r)
			return
		}
		w.Header().Set("Content-Type", "application/octet-stream")
		if manifest {
			var says struct{ MediaType string }
			if err := json.Unmarshal(data, &says); err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			w.Header().Set("Content-Type", says.MediaType)
		}
		w.Header().Set("Docker-Content-Digest", asked)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
}
