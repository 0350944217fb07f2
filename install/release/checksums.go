package release

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"regexp"
	"strings"
)

// maxChecksums bounds how much of a checksum file is read.
const maxChecksums = 1 << 20

var (
	sumLine = regexp.MustCompile(`^\\?([0-9a-fA-F]{64})(?: [ *](.+))?$`)  // sha256sum(1)
	bsdLine = regexp.MustCompile(`^SHA256 \((.+)\) = ([0-9a-fA-F]{64})$`) // sha256sum --tag
)

// readChecksums finds a file's digest in the text of a checksum file: lines of
// sha256sum(1), with and without --tag, or, if bare, a digest alone. A clear-signed
// text (RFC 9580, section 7) is read up to its signature, which is not checked: the
// folder is trusted as a whole or not at all. "" means that the file is not named.
func readChecksums(r io.Reader, file string, bare bool) (string, error) {
	var found string
	note := func(digest string) error {
		digest = strings.ToLower(digest)
		if found != "" && found != digest {
			return fmt.Errorf("two digests for %s: %s and %s", file, found, digest)
		}
		found = digest
		return nil
	}
	in := bufio.NewScanner(io.LimitReader(r, maxChecksums))
	for in.Scan() {
		line := strings.TrimRight(in.Text(), " \t\r")
		if line == "-----BEGIN PGP SIGNATURE-----" {
			break
		}
		if m := sumLine.FindStringSubmatch(line); m != nil {
			if m[2] == "" && bare || m[2] != "" && path.Base(m[2]) == file {
				if err := note(m[1]); err != nil {
					return "", err
				}
			}
		} else if m := bsdLine.FindStringSubmatch(line); m != nil && path.Base(m[1]) == file {
			if err := note(m[2]); err != nil {
				return "", err
			}
		}
	}
	return found, in.Err()
}

// checksumFile is a name that a checksum file may have; a bare one may hold a digest alone.
type checksumFile struct {
	name string
	bare bool
}

// checksumFiles are those that may know a file.
func checksumFiles(file string) []checksumFile {
	return []checksumFile{{"SHA256SUMS", false}, {file + ".sha256sum", true}, {file + ".sha256", true}, {"runc.sha256sum", false}}
}

// checksumBeside looks for a file's digest in the checksum files that upstreams
// publish: SHA256SUMS, FILE.sha256sum, FILE.sha256 (crictl's has the digest alone)
// and runc.sha256sum. It returns "" where none of them knows it.
func checksumBeside(dir, file string) (digest, from string, err error) {
	for _, c := range checksumFiles(file) {
		p := filepath.Join(dir, c.name)
		f, err := openFile(p)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return "", "", err
		}
		digest, err = readChecksums(f, file, c.bare)
		f.Close()
		if err != nil {
			return "", "", fmt.Errorf("read %s: %w", p, err)
		}
		if digest != "" {
			return digest, p, nil
		}
	}
	return "", "", nil
}
