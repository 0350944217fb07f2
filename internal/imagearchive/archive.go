package imagearchive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Archive is what an archive holds.
type Archive struct {
	// Images are in the archive's order.
	Images []Image
}

// Image is one image of an archive. Its maps are by platform, as in Platforms.
type Image struct {
	// Names are its full names, docker.io/library/busybox:1 for busybox:1; an image
	// without any cannot be imported.
	Names []string
	// Tags are what the archive calls it where that is no name: "3.10".
	Tags []string
	// Digest is that of its index or manifest in an OCI layout, "sha256:..."; "" in an
	// archive of docker save's own kind, where a daemon makes it.
	Digest string
	// Platforms are those that the archive has all parts for, in the image's order, written
	// as containerd does: "linux/amd64", "linux/arm64", "linux/arm/v7"; Unknown where the
	// image does not say it.
	Platforms []string
	// Missing lists the parts that are named and not there.
	Missing map[string][]string
	// Stored is the bytes of the image's parts as they are in the archive.
	Stored map[string]int64
	// Unpacked estimates the bytes that its layers take unpacked.
	Unpacked map[string]int64

	// artifact is the type of something that is no image.
	artifact string
	layers   map[string][]digest.Digest
}

// Unknown is the platform of an image that names none. containerd takes it for any.
const Unknown = "unknown"

var (
	// ErrNoArchive says that a file is no archive of images.
	ErrNoArchive = errors.New("not an archive of images")
	// ErrCut says that an archive ends too early.
	ErrCut = errors.New("the archive is cut short")
	// ErrDamaged says that an archive is not what it was made as.
	ErrDamaged = errors.New("the archive is damaged")
	// ErrTooMuch says that an archive has more to be remembered than any real one. It may
	// be good; only a daemon can tell.
	ErrTooMuch = errors.New("the archive is too large to be looked into")
)

// Names are the full names of all images, in the archive's order.
func (a *Archive) Names() []string {
	var out []string
	for _, img := range a.Images {
		out = append(out, img.Names...)
	}
	return out
}

// For is the platform of the image that a node takes ("linux/amd64" or just "amd64"), as
// containerd's client chooses it; false when the image has none for it, whose parts may be
// missing or not.
func (i Image) For(node string) (string, bool) {
	p, err := platforms.Parse(node)
	if err != nil {
		return "", false
	}
	if !strings.Contains(node, "/") {
		p.OS = "linux"
	}
	matcher := platforms.Only(p)
	var best *ocispec.Platform
	name := ""
	for _, have := range i.known() {
		h, err := platforms.Parse(have)
		if have == Unknown || err != nil || !matcher.Match(h) {
			continue
		}
		if best == nil || matcher.Less(h, *best) {
			best, name = &h, have
		}
	}
	if best == nil && i.artifact == "" && slices.Contains(i.known(), Unknown) {
		return Unknown, true
	}
	return name, best != nil
}

// known are all platforms of the image, complete ones first.
func (i Image) known() []string {
	out := slices.Clone(i.Platforms)
	for p := range i.Missing {
		if !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	slices.Sort(out[len(i.Platforms):])
	return out
}

// Usable says what keeps a node of that platform from using the archive's images: nothing
// has a name, an image is for others, parts are missing. All of it at once. An image
// for others and one without a name are no fault beside one that can be used.
func (a *Archive) Usable(node string) error {
	var faults []error
	var useless []string
	good := 0
	for _, img := range a.Images {
		name := strings.Join(img.Names, ", ")
		platform, fits := img.For(node)
		switch {
		case img.artifact != "":
			useless = append(useless, fmt.Sprintf("%s is no image but %s", orElse(name, "one part"), img.artifact))
			continue
		case len(img.Names) == 0 && len(img.Tags) == 0:
			useless = append(useless, "an image has no name: save it under its name, such as registry.example.com/app:1")
			continue
		case len(img.Names) == 0:
			useless = append(useless, fmt.Sprintf("an image is called %q, which is no full name: save it under its name, such as registry.example.com/app:1", img.Tags))
			continue
		case !fits:
			useless = append(useless, fmt.Sprintf("%s is for %s", name, strings.Join(img.known(), ", ")))
			// docker save's own kind is taken whole or not at all.
			if img.Digest != "" {
				continue
			}
		}
		if platform == Unknown {
			platform = ""
		}
		missing := img.Missing[orElse(platform, Unknown)]
		if img.Digest == "" {
			missing = slices.Concat(slices.Collect(maps.Values(img.Missing))...)
		}
		switch {
		case len(missing) > 0:
			faults = append(faults, fmt.Errorf("%s lacks parts for %s: %s", name, orElse(platform, node), few(missing)))
		case fits:
			good++
		}
	}
	if good == 0 && len(faults) == 0 {
		faults = append(faults, fmt.Errorf("no image for %s in the archive (%s)", node, few(useless)))
	}
	return errors.Join(faults...)
}

// Foreign are the digests of the layers that no image needs on a node of that platform.
// They are told of OCI layouts alone.
func (a *Archive) Foreign(node string) map[digest.Digest]bool {
	foreign, own := map[digest.Digest]bool{}, map[digest.Digest]bool{}
	for _, img := range a.Images {
		if img.Digest == "" {
			return nil
		}
		mine, fits := img.For(node)
		for platform, layers := range img.layers {
			into := foreign
			if fits && platform == mine {
				into = own
			}
			for _, d := range layers {
				into[d] = true
			}
		}
	}
	for d := range own {
		delete(foreign, d)
	}
	return foreign
}

// few is a list of which the first ones tell enough.
func few(list []string) string {
	const most = 5
	if len(list) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(list[:most], ", "), len(list)-most)
	}
	return strings.Join(list, ", ")
}

func orElse(s, other string) string {
	if s == "" {
		return other
	}
	return s
}

// Inspect reads an archive to its end: a plain tar, or one packed by gzip or zstd. The error
// wraps ErrNoArchive where it is none, ErrCut, ErrDamaged or ErrTooMuch, and says more.
func Inspect(ctx context.Context, r io.Reader) (*Archive, error) {
	s := newScan()
	if err := s.read(ctx, r); err != nil {
		return nil, err
	}
	imgs, err := s.images(ctx)
	if err != nil {
		return nil, err
	}
	return &Archive{Images: imgs}, nil
}
