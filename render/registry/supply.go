package registry

import (
	"slices"
	"strconv"

	"github.com/distribution/reference"

	"github.com/nodeprep/nodeprep/profiles"
)

// Supply is where a pull of one image goes.
type Supply struct {
	// Field is the registry's entry in the profile, "" where none is about the image.
	Field string
	// Can are the URLs and hosts that may supply the image, in containerd's order.
	Can []string
	// Cannot are the fields of those that may be asked but not for that.
	Cannot []string
}

// Suppliers says who could supply an image, a name as containerd takes it, by what the
// profile's registries allow; whether anybody answers is not looked at. ok is false where the
// name is none.
//
// A host must be allowed to pull, and also to resolve unless the image is named by digest
// (containerd core/remotes/docker/resolver.go, Resolve).
func Suppliers(regs []profiles.Registry, image string) (_ Supply, ok bool) {
	named, err := reference.ParseDockerRef(image)
	if err != nil {
		return Supply{}, false
	}
	want := []string{"pull", "resolve"}
	if _, byDigest := named.(reference.Digested); byDigest {
		want = want[:1]
	}
	host := reference.Domain(named)
	i := slices.IndexFunc(regs, func(r profiles.Registry) bool { return r.Host == host })
	if i < 0 {
		i = slices.IndexFunc(regs, func(r profiles.Registry) bool { return r.Host == "*" })
	}
	if i < 0 {
		return Supply{Can: []string{host}}, true
	}
	reg := regs[i]
	s := Supply{Field: "registries." + reg.Host}
	add := func(name, field string, capabilities []string) {
		if len(capabilities) == 0 || !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(capabilities, w) }) {
			s.Can = append(s.Can, name)
			return
		}
		s.Cannot = append(s.Cannot, field)
	}
	for i, m := range reg.Mirrors {
		field := s.Field + ".mirrors[" + strconv.Itoa(i) + "]"
		add(m.URL, field+".capabilities", m.Capabilities)
	}
	switch {
	case reg.Deny:
		s.Cannot = append(s.Cannot, s.Field+".upstream")
	case reg.Server != nil:
		name := host
		if reg.Server.URL != "" {
			name = reg.Server.URL
		}
		capabilities := reg.Server.Capabilities
		if name == host && (reg.Host == "*" || Localhost(host) && !tlsGiven(*reg.Server)) {
			// containerd ignores them where the file names no server.
			capabilities = nil
		}
		add(name, s.Field+".capabilities", capabilities)
	default:
		s.Can = append(s.Can, host)
	}
	return s, true
}
