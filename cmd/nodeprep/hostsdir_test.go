package main

import (
	"errors"
	"os"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/render/registry"
)

func TestContainerdsParserIsAsked(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	p, err := newHostsParser()
	if err != nil {
		t.Fatal(err)
	}
	got, err := p.parse([]byte("[host.\"http://m:5000\"]\nskip_verify = true\ncapabilities = [\"pull\"]\n[host.\"http://m:5000\".header]\nx = \"y\"\n"), "docker.io")
	want := []registry.Parsed{
		{Scheme: "https", Host: "m:5000", Path: "/v2", Pull: true, Fallback: true, Header: map[string][]string{"x": {"y"}}},
		{Scheme: "https", Host: "registry-1.docker.io", Path: "/v2", Pull: true, Resolve: true, Push: true},
	}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v\n%s", err, diff)
	}
	if got, err := p.parse(nil, "quay.io"); err != nil || len(got) != 1 || got[0].Host != "quay.io" {
		t.Errorf("without a folder: %+v, %v", got, err)
	}
	certs := (*registry.CertError)(nil)
	if _, err := p.parse([]byte("ca = \"nowhere.pem\"\n"), "quay.io"); !errors.As(err, &certs) {
		t.Errorf("a CA that is not there: %v", err)
	}
	if _, err := p.parse([]byte("ca = 5\n"), "quay.io"); err == nil || errors.As(err, &certs) {
		t.Errorf("a CA of a number: %v", err)
	}
	if fi, err := os.Stat(p.dir); err != nil || fi.Mode().Perm() != 0o700 {
		t.Errorf("others may look: %v, %v", fi, err)
	}
	p.close()
	if _, err := os.Stat(p.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("left behind: %v", err)
	}
}
