package imagearchive

import (
	"fmt"
	"strings"

	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// imageNameAnnotation is containerd's own (core/images, AnnotationImageName).
const imageNameAnnotation = "io.containerd.image.name"

// FullName is a name as containerd keeps it: docker.io/library/busybox:1 for busybox:1,
// with :latest where it has neither tag nor digest.
func FullName(name string) (string, error) {
	full, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("image name %q: %w", name, err)
	}
	return full.String(), nil
}

// NameOf is the full name that the annotations of a descriptor in an index.json give an
// image, or the tag that they have instead; both are "" where they say nothing.
func NameOf(annotations map[string]string) (full, tag string, _ error) {
	name := annotations[imageNameAnnotation]
	if name == "" {
		name = annotations[ocispec.AnnotationRefName]
		// The annotation often holds a tag alone, which says nothing about the name.
		if !strings.ContainsAny(name, "/:@") {
			return "", name, nil
		}
	}
	full, err := FullName(name)
	return full, "", err
}
