package configtoml

import (
	"encoding/base64"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeprep/nodeprep/internal/releases"
)

// Endpoints are those that registry.mirrors has for a name.
func (c *Config) Endpoints(mirror string) []string {
	t := c.at(below(c.images(), "registry", "mirrors", mirror)...)
	if !t.isTable() {
		return nil
	}
	return c.child(t, "endpoint").texts()
}

// LocalPull are the settings because of which containerd 2.1 and newer pull by themselves
// and not through the transfer service (CheckLocalImagePullConfigs in internal/cri/config of
// containerd 2.4.2). An older one knows no other way, and has none.
func (c *Config) LocalPull() []string {
	if !releases.TransferPull(c.rules) {
		return nil
	}
	images := c.at(c.images()...)
	if images == nil {
		return nil
	}
	var out []string
	add := func(is bool, what string) {
		if is {
			out = append(out, what)
		}
	}
	add(images.get("use_local_image_pull").boolean(), "use_local_image_pull")
	annotations := images.get("disable_snapshot_annotations")
	add(annotations != nil && !annotations.boolean(), "disable_snapshot_annotations = false")
	add(images.get("discard_unpacked_layers").boolean(), "discard_unpacked_layers")
	for _, key := range []string{"mirrors", "configs", "auths"} {
		add(len(images.get("registry", key).keys()) > 0, "registry."+key)
	}
	if n := images.get("max_concurrent_downloads"); n != nil {
		parallel, _ := n.number()
		add(parallel != 3, "max_concurrent_downloads")
	}
	add(images.get("image_pull_with_sync_fs").boolean(), "image_pull_with_sync_fs")
	return out
}

const transferLocal = "io.containerd.transfer.v1.local"

// Unpackers are the snapshotters for which the transfer service unpacks, and where that is
// set; without a place it is the default. A list in a file takes the default's place, and
// an empty one is for none (configureUnpackPlatforms in plugins/transfer of containerd 2.1.9
// to 2.4.2). Which platform an entry is for does not count: since 2.3 only its system does, and
// another architecture's is nobody's.
func (c *Config) Unpackers() ([]string, Place) {
	n := c.at("plugins", transferLocal, "unpack_config")
	if n == nil || n.kind != listKind {
		all := []string{"overlayfs"}
		if c.rules.AtLeast(2, 3, 0) {
			all = append(all, "erofs")
		}
		return all, Place{}
	}
	var all []string
	for _, e := range n.list {
		if s, _ := c.child(e, "snapshotter").text(); s != "" {
			all = append(all, s)
		}
	}
	return all, n.at
}

// Unserved is a snapshotter for which every pull fails.
type Unserved struct {
	Snapshotter string
	Runtime     string // whose own it is, "" for that of CRI's images
	Place       Place  // where it is chosen, zero for the default
}

// NotUnpacked are the snapshotters of CRI and its runtimes for which the transfer service,
// through which CRI pulls, does not unpack. None where CRI pulls by itself.
func (c *Config) NotUnpacked() []Unserved {
	if len(c.LocalPull()) > 0 {
		return nil
	}
	return c.Unserved()
}

// Unserved is NotUnpacked, whatever LocalPull says.
func (c *Config) Unserved() []Unserved {
	if !releases.TransferPull(c.rules) {
		return nil
	}
	unpacked, _ := c.Unpackers()
	var out []Unserved
	used, at := c.Snapshotter()
	if !slices.Contains(unpacked, used) {
		out = append(out, Unserved{Snapshotter: used, Place: at})
	}
	for _, r := range c.Runtimes() {
		if r.Snapshotter != "" && r.Snapshotter != used && !slices.Contains(unpacked, r.Snapshotter) {
			out = append(out, Unserved{r.Snapshotter, r.Name, r.SnapshotterPlace})
		}
	}
	return out
}

// Credential is what CRI offers a host that asks for credentials. Its fields are secrets, but
// for Host, Field and Place.
type Credential struct {
	Host string // "HOST[:PORT]", as it is asked
	// User is "" where Secret is an identity token.
	User, Secret string
	Field        string // registry.configs."HOST".auth or registry.auths."URL"
	Place        Place
}

// Credentials are those of registry.configs and registry.auths, which count for more
// (ValidateImageConfig in internal/cri/config and ParseAuth in internal/cri/server/images of
// containerd 2.4.2), by host.
func (c *Config) Credentials() []Credential {
	var out []Credential
	add := func(host, field string, place Place, n *node) {
		x := Credential{Host: host, Field: field, Place: place}
		x.User, x.Secret = c.login(n)
		if i := slices.IndexFunc(out, func(o Credential) bool { return o.Host == host }); i >= 0 {
			out[i] = x
			return
		}
		out = append(out, x)
	}
	r := c.at(below(c.images(), "registry")...)
	configs := c.child(r, "configs")
	for _, host := range configs.keys() {
		if auth := c.child(configs.table[host], "auth"); auth != nil {
			add(host, "registry.configs."+strconv.Quote(host)+".auth", configs.table[host].at, auth)
		}
	}
	auths := c.child(r, "auths")
	for _, name := range auths.keys() {
		host, shown := name, name
		if i := strings.LastIndexByte(name, '@'); i >= 0 {
			shown = "******" + name[i:] // a user and a password before it are secrets
		}
		if u, err := url.Parse(name); err == nil && u.Scheme != "" {
			host = u.Host
		}
		add(host, "registry.auths."+strconv.Quote(shown), auths.table[name].at, auths.table[name])
	}
	slices.SortFunc(out, func(a, b Credential) int { return strings.Compare(a.Host, b.Host) })
	return out
}

// login is what an auth table comes to.
func (c *Config) login(n *node) (user, secret string) {
	text := func(key string) string {
		s, _ := c.child(n, key).text()
		return s
	}
	if user = text("username"); user != "" {
		return user, text("password")
	}
	if secret = text("identitytoken"); secret != "" {
		return "", secret
	}
	b, err := base64.StdEncoding.DecodeString(text("auth"))
	if err != nil {
		return "", ""
	}
	user, secret, _ = strings.Cut(string(b), ":")
	return user, strings.Trim(secret, "\x00")
}

// RegistryHeaders are the values of registry.headers, which are secrets.
func (c *Config) RegistryHeaders() map[string][]string {
	out := map[string][]string{}
	t := c.child(c.at(below(c.images(), "registry")...), "headers")
	for _, name := range t.keys() {
		out[name] = t.table[name].texts()
	}
	return out
}
