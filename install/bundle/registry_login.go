package bundle

import (
	"cmp"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
)

// maxLogins is the most that a file of logins may have.
const maxLogins = 1 << 20

// login is what a file of logins has for a registry.
type login struct {
	file    string // "" where none was named
	missing bool   // there is no such file
	helper  string // a program that would know a login; it is not executed

	user, secret string
	identity     string // a token that a token server takes in place of both
	token        string // one that the registry itself takes
}

// known says that there is something to show.
func (l login) known() bool { return l.secret != "" || l.identity != "" || l.token != "" }

// authFile is what is read of docker's config.json and of auth.json; man page
// containers-auth.json(5), and the file of the docker CLI, cli/config/types/authconfig.go.
type authFile struct {
	Auths       map[string]authEntry `json:"auths"`
	CredHelpers map[string]string    `json:"credHelpers"`
	CredsStore  string               `json:"credsStore"`
}

type authEntry struct {
	Auth          string `json:"auth"` // base64 of user:password
	Username      string `json:"username"`
	Password      string `json:"password"`
	IdentityToken string `json:"identitytoken"`
	RegistryToken string `json:"registrytoken"`
}

// readLogin looks up a registry, and a repository of it, in a file of logins.
func readLogin(file, registry, repository string) (login, error) {
	l := login{file: file}
	if file == "" {
		return l, nil
	}
	f, err := os.Open(file)
	if errors.Is(err, fs.ErrNotExist) {
		l.missing = true
		return l, nil
	}
	if err != nil {
		return l, fmt.Errorf("read logins: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxLogins+1))
	if err != nil {
		return l, fmt.Errorf("read logins: %w", err)
	}
	var content authFile
	if len(b) > maxLogins {
		return l, fmt.Errorf("read logins: %s has more than %d bytes", file, maxLogins)
	}
	if err := json.Unmarshal(b, &content); err != nil {
		// The decoder's own words may repeat a password.
		return l, fmt.Errorf("read logins: %s is not docker's config.json", file)
	}
	keys := loginKeys(registry, repository)
	// Among several spellings of one key the first by name wins, always the same.
	var names []string
	for name := range content.Auths {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, key := range keys {
		for _, name := range names {
			if loginKey(name) != key || !l.take(content.Auths[name]) {
				continue
			}
			if entry := content.Auths[name]; entry.Auth != "" {
				if err := l.decode(entry.Auth); err != nil {
					return l, fmt.Errorf("read logins: %s: the auth of %q %w", file, name, err)
				}
			}
			return l, nil
		}
	}
	l.helper = content.CredsStore
	for _, key := range slices.Backward(keys) {
		l.helper = cmp.Or(content.CredHelpers[key], l.helper)
	}
	return l, nil
}

// take notes an entry, unless it is empty, as those are whose secret a helper keeps.
func (l *login) take(e authEntry) bool {
	l.user, l.secret, l.identity, l.token = e.Username, e.Password, e.IdentityToken, e.RegistryToken
	return e.Auth != "" || l.known()
}

// decode reads user and password as docker writes them.
func (l *login) decode(auth string) error {
	b, err := base64.StdEncoding.DecodeString(auth)
	if err != nil {
		return errors.New("is not base64")
	}
	user, secret, ok := strings.Cut(string(b), ":")
	if !ok || user == "" {
		return errors.New("is not of the form user:password")
	}
	l.user, l.secret = user, strings.TrimRight(secret, "\x00")
	return nil
}

// loginKey is a key of the file, as it is compared: docker writes some as addresses.
func loginKey(name string) string {
	rest, https := strings.CutPrefix(name, "https://")
	rest, http := strings.CutPrefix(rest, "http://")
	if https || http {
		rest, _, _ = strings.Cut(rest, "/")
	}
	return strings.TrimSuffix(rest, "/")
}

// loginKeys are the keys for a repository, the closest first. Docker's own registry has
// three names.
func loginKeys(registry, repository string) []string {
	hosts := []string{registry}
	if docker := []string{"docker.io", "index.docker.io", "registry-1.docker.io"}; slices.Contains(docker, registry) {
		hosts = docker
	}
	var keys []string
	for below := repository; below != "" && below != "."; below = path.Dir(below) {
		for _, h := range hosts {
			keys = append(keys, h+"/"+below)
		}
	}
	return append(keys, hosts...)
}

// refused says why a registry did not let us in, with what it was shown.
func (l login) refused(registry string) error {
	switch {
	case l.known() && l.user != "":
		return fmt.Errorf("%s does not let user %q (from %s) read it", registry, l.user, l.file)
	case l.known():
		return fmt.Errorf("%s does not take the token from %s", registry, l.file)
	case l.helper != "":
		return fmt.Errorf("%s wants a login, and for that %s names the program docker-credential-%s, which nodeprep does not run; give a file with the login itself in REGISTRY_AUTH_FILE", registry, l.file, l.helper)
	case l.file == "":
		return fmt.Errorf("%s wants a login; name docker's config.json with one in REGISTRY_AUTH_FILE", registry)
	case l.missing:
		return fmt.Errorf("%s wants a login, and there is no %s to take one from", registry, l.file)
	}
	return fmt.Errorf("%s wants a login, and %s has none for it", registry, l.file)
}
