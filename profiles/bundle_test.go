package profiles_test

import (
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/profiles"
)

// A bundle's profile is extended and loaded by one name, its files are below the bundle's
// root whatever it says, and messages name the bundle.
func TestBundleProfile(t *testing.T) {
	read := func(files map[string]string) func(string) ([]byte, error) {
		return func(name string) ([]byte, error) {
			if text, ok := files[name]; ok {
				return []byte(text), nil
			}
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
	}
	const own = "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nimages: [{file: images/pause.tar}, {file: ../../../etc/shadow}]\n"
	files := map[string]string{
		profiles.BundleProfile: own,
		"/home/overlay.yaml":   "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nextends: bundle\ngenerations: 5\n",
		"/home/own.yaml":       "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nextends: bundle\nimages: [{file: here.tar}]\n",
	}
	l := profiles.Loader{Dir: "/home", Read: read(files), Bundle: "stick.tar"}
	for name, want := range map[string]string{
		"bundle":       "bundle:/images/pause.tar bundle:/etc/shadow",
		"overlay.yaml": "bundle:/images/pause.tar bundle:/etc/shadow",
		"own.yaml":     "/home/here.tar",
	} {
		p, list := l.Load(name)
		if list.HasErrors() {
			t.Fatal(list)
		}
		var got []string
		for _, img := range p.Images {
			got = append(got, img.File.Path)
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: files %q, want %q", name, got, want)
		}
		if o := p.Images[0].File.Origin; name == "bundle" && o.File != "stick.tar:profile.yaml" {
			t.Errorf("origin %v", o)
		}
	}
	// A profile in a bundle that extends a file does not get one of this machine.
	files[profiles.BundleProfile] = "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nextends: ../home/own.yaml\n"
	if _, list := l.Load("bundle"); !list.HasErrors() || !strings.Contains(fmt.Sprint(list), "bundle:/home/own.yaml") {
		t.Errorf("got %v", list)
	}
	// Nor may it name one, whatever for; a secret's file is read where the secret is needed.
	for _, text := range []string{
		"extends: /home/own.yaml",
		"images: [{file: /srv/own.tar}]",
		"sources: [{dir: /srv}]",
		"registries: {r.example.com: {ca: [ca.pem, /etc/shadow]}}",
		"registries: {r.example.com: {client: {cert: /etc/shadow}}}",
	} {
		files[profiles.BundleProfile] = "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\n" + text + "\n"
		for _, name := range []string{"bundle", "overlay.yaml"} {
			if _, list := l.Load(name); len(list) != 1 || !strings.Contains(list[0].Message, "of this machine") || list[0].Line != 3 || list[0].File != "stick.tar:profile.yaml" {
				t.Errorf("%s by %s: got %v", text, name, list)
			}
		}
	}
	files[profiles.BundleProfile] = "apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\nregistries: {r.example.com: {auth: {identityToken: {file: /run/token}}}}\n"
	if p, list := l.Load("bundle"); list.HasErrors() || p.Registries["r.example.com"].Auth.IdentityToken.File != "/run/token" {
		t.Errorf("got %v", list)
	}
	// Without a bundle the name is a file's, and extending it a fault.
	l.Bundle = ""
	if _, list := l.Load("overlay.yaml"); !strings.Contains(fmt.Sprint(list), "give it with --bundle") {
		t.Errorf("got %v", list)
	}
}
