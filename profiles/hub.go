package profiles

// HubName is what a name of Docker Hub is good for.
type HubName struct {
	// Unread: images that are named by it are docker.io's to containerd, which looks for a
	// registry of this name never (legacyDefaultDomain of distribution's reference package).
	Unread bool
	// Serves: images can be had there.
	Serves bool
}

// Hub says whether a host, in small letters and without a port, is one of the names that
// people have for Docker Hub.
func Hub(host string) (name HubName, ok bool) {
	name, ok = map[string]HubName{
		"docker.io":               {},
		"index.docker.io":         {Unread: true},
		"registry-1.docker.io":    {Serves: true},
		"registry.hub.docker.com": {Serves: true},
		"hub.docker.com":          {},
		"www.docker.com":          {},
		"www.docker.io":           {},
	}[host]
	return name, ok
}
