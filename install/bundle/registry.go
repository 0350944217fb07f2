package bundle

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"oras.land/oras-go/v2/registry"

	"github.com/nodeprep/nodeprep/internal/host"
)

// blobs is where the parts of a bundle come from: a file, a folder or a registry. What it
// gives is not verified; that is for who reads it.
type blobs interface {
	// Index is the bundle's image index, or whatever stands in its place.
	Index(ctx context.Context) (ocispec.Descriptor, error)
	// Blob is a part from its beginning.
	Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error)
	Close() error
}

// RegistryScheme begins the address of a bundle in a registry.
const RegistryScheme = "oci://"

// RegistryOptions are how registries are reached.
type RegistryOptions struct {
	// CA is trusted beside the system's roots: certificates as PEM; nil where none is.
	CA []byte
	// DockerConfig is the path of docker's config.json or of containers-auth.json(5), where
	// static logins are; it need not exist. "" means none.
	DockerConfig string
	// Network is what may be reached; nil means everything. What it forbids stays forbidden
	// for a bundle in a registry, whose own host is all that is reached of the rest.
	Network   *host.Network
	UserAgent string

	// Set by tests; zero values mean 30 s and 500 ms.
	stall time.Duration
	wait  time.Duration
}

// RegistryRef is the address of a bundle in a registry, oci://HOST[:PORT]/REPOSITORY@DIGEST.
type RegistryRef struct {
	Host       string // HOST[:PORT], in lower case
	Repository string
	Tag        string // was given, and is not used: the digest says it all
	Digest     digest.Digest
}

// ParseRegistryRef reads an address with its scheme. One without a digest is refused: a tag
// can be moved to something else at any time.
func ParseRegistryRef(s string) (RegistryRef, error) {
	fail := func(why string) (RegistryRef, error) {
		return RegistryRef{}, fmt.Errorf("read %s: %s; want %sHOST[:PORT]/REPOSITORY@sha256:DIGEST", s, why, RegistryScheme)
	}
	rest, ok := strings.CutPrefix(s, RegistryScheme)
	if !ok {
		return fail("it does not begin with " + RegistryScheme)
	}
	if n := loginLength(rest); n > 0 {
		s = RegistryScheme + "xxxxx@" + rest[n:]
		return fail("no user and no password belong there, logins are those of docker's config.json")
	}
	name, sum, ok := strings.Cut(rest, "@")
	at, path, _ := strings.Cut(name, "/")
	path, tag, tagged := strings.Cut(path, ":")
	switch {
	case !ok && tagged:
		return fail("a tag can be moved to something else, only a digest says what the bundle is")
	case !ok:
		return fail("the digest is missing, which says what the bundle is")
	}
	d := digest.Digest(sum)
	if err := d.Validate(); err != nil {
		return fail("the digest is not one")
	}
	ref := registry.Reference{Registry: strings.ToLower(at), Repository: path, Reference: cmp.Or(tag, "latest")}
	switch {
	case strings.Contains(at, "@") || ref.ValidateRegistry() != nil:
		return fail("the host is not one")
	case ref.ValidateRepository() != nil:
		return fail("the repository is not one (lower-case letters, digits and . _ - /)")
	case tagged && ref.ValidateReferenceAsTag() != nil:
		return fail("the tag is not one")
	}
	return RegistryRef{Host: ref.Registry, Repository: path, Tag: tag, Digest: d}, nil
}

// loginLength is how much of an address is a user or password, with the @ after it. Both may have
// any characters, as long as they are in no message.
func loginLength(address string) int {
	last := strings.LastIndex(address, "@")
	if last < 0 {
		return 0
	}
	before, after := address[:last], address[last+1:]
	if strings.Contains(after, "/") || !strings.Contains(before, "/") && !strings.HasPrefix(after, "sha") {
		return last + 1 // what follows is no digest
	}
	return strings.LastIndex(before, "@") + 1
}

// String is the address without what is not used of it.
func (r RegistryRef) String() string {
	return RegistryScheme + r.Host + "/" + r.Repository + "@" + r.Digest.String()
}

// registryBundle is a bundle in a registry. Its methods may be called from several
// goroutines.
type registryBundle struct {
	*repository
	digest digest.Digest
}

// openRegistry connects to the registry of a bundle. That host alone is reached: redirects
// and servers of tokens elsewhere are refused, and no proxy is used, not even one that the
// environment names.
func openRegistry(ctx context.Context, address string, opt RegistryOptions) (blobs, error) {
	ref, err := ParseRegistryRef(address)
	if err != nil {
		return nil, err
	}
	r, err := opt.connect(ctx, registry.Reference{Registry: ref.Host, Repository: ref.Repository}, ref.String(), true)
	if err != nil {
		return nil, err
	}
	return &registryBundle{r, ref.Digest}, nil
}

// Index asks for the size and type of what the address names.
func (b *registryBundle) Index(ctx context.Context) (ocispec.Descriptor, error) {
	desc, err := b.repo.Resolve(b.purpose(ctx), b.digest.String())
	if err != nil {
		return ocispec.Descriptor{}, b.explain(ctx, "", err)
	}
	return desc, nil
}

// Blob gives a part as the registry has it; what is interrupted is continued.
func (b *registryBundle) Blob(ctx context.Context, desc ocispec.Descriptor) (io.ReadCloser, error) {
	d, err := b.download(ctx, desc)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// loopback says whether a host is this machine itself, by a name or address that leaves no
// doubt (RFC 6761, section 6.3; RFC 1122, section 3.2.1.3).
func loopback(hostname string) bool {
	if hostname == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(hostname)
	return err == nil && addr.Unmap().IsLoopback()
}

// dialled is the address that a request to a host leads to.
func dialled(hostport, scheme string) (hostname, address string, err error) {
	hostname, port, err := net.SplitHostPort(hostport)
	if err != nil {
		hostname, port = strings.Trim(hostport, "[]"), "443"
		if scheme == "http" {
			port = "80"
		}
	}
	if hostname == "" {
		return "", "", errors.New("the host has no name")
	}
	return hostname, net.JoinHostPort(hostname, port), nil
}
