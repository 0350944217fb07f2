package release

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestReadChecksums(t *testing.T) {
	a, b := strings.Repeat("a1", 32), strings.Repeat("B2", 32)
	const clearSigned = `-----BEGIN PGP SIGNED MESSAGE-----
Hash: SHA256

%A  runc.amd64
%B *runc.arm64
-----BEGIN PGP SIGNATURE-----

iQIzBAEBCAAdFiEE
%B  runc.s390x
-----END PGP SIGNATURE-----
`
	for _, c := range []struct {
		name, text, file string
		bare             bool
		want, fault      string
	}{
		{name: "text mode", text: "%A  runc.amd64\n%B  runc.arm64\n", file: "runc.arm64", want: b},
		{name: "binary mode", text: "%A *runc.amd64\r\n", file: "runc.amd64", want: a},
		{name: "a folder before the name", text: "%A  ./out/runc.amd64\n", file: "runc.amd64", want: a},
		{name: "tagged", text: "SHA256 (runc.amd64) = %A\n", file: "runc.amd64", want: a},
		{name: "the hash alone", text: "%A", file: "crictl.tar.gz", bare: true, want: a},
		{name: "the hash alone names nobody in a list", text: "%A\n", file: "crictl.tar.gz", want: ""},
		{name: "clear-signed", text: clearSigned, file: "runc.amd64", want: a},
		{name: "clear-signed, star", text: clearSigned, file: "runc.arm64", want: b},
		{name: "nothing counts in the signature", text: clearSigned, file: "runc.s390x", want: ""},
		{name: "other files", text: "%A  other\n", file: "runc.amd64", want: ""},
		{name: "no suffix match", text: "%A  xrunc.amd64\n", file: "runc.amd64", want: ""},
		{name: "the same twice", text: "%A  f\n%A  f\n", file: "f", want: a},
		{name: "two opinions", text: "%A  f\n%B  f\n", file: "f", fault: "two digests for f"},
	} {
		got, err := readChecksums(strings.NewReader(strings.NewReplacer("%A", a, "%B", b).Replace(c.text)), c.file, c.bare)
		if c.fault != "" {
			if err == nil || !strings.Contains(err.Error(), c.fault) {
				t.Errorf("%s: %v, want %s", c.name, err, c.fault)
			}
		} else if err != nil || got != strings.ToLower(c.want) {
			t.Errorf("%s: got %q, %v; want %q", c.name, got, err, c.want)
		}
	}
}

func TestChecksumBeside(t *testing.T) {
	sum := strings.Repeat("0f", 32)
	for _, c := range []struct{ name, text, file string }{
		{"SHA256SUMS", sum + "  nerdctl-full-2.3.0-linux-amd64.tar.gz\n", "nerdctl-full-2.3.0-linux-amd64.tar.gz"},
		{"containerd-2.3.4-linux-amd64.tar.gz.sha256sum", sum + "  containerd-2.3.4-linux-amd64.tar.gz\n", "containerd-2.3.4-linux-amd64.tar.gz"},
		{"crictl-v1.36.0-linux-amd64.tar.gz.sha256", sum + "\n", "crictl-v1.36.0-linux-amd64.tar.gz"},
		{"runc.sha256sum", sum + "  runc.amd64\n", "runc.amd64"},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, c.name), []byte(c.text), 0o644); err != nil {
			t.Fatal(err)
		}
		got, from, err := checksumBeside(dir, c.file)
		if err != nil || got != sum || from != filepath.Join(dir, c.name) {
			t.Errorf("%s: %q from %q, %v", c.name, got, from, err)
		}
		if got, _, err := checksumBeside(dir, "unknown"); err != nil || got != "" {
			t.Errorf("%s: unknown file: %q, %v", c.name, got, err)
		}
	}
}
