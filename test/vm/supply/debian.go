package supply

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// suites are the Debian suites that packages are taken from, the one with the oldest
// libc first: where two have the same upstream version, its build runs in more guests.
// Backports come last, so that they stand in for no release that a suite has.
func suites() []string { return []string{"bookworm", "trixie", "forky", "sid", backports} }

// backports has newer releases for the machine's own suite.
const backports = "bookworm-backports"

// debian asks suites that the machine itself does not use, by a sources list and a state
// folder of their own, so that the machine's own apt never hears of them.
type debian struct {
	store  *Store
	dir    string
	arch   string
	mirror string
}

// debian opens the package lists for an arch, and fetches them. The caller holds them
// until done is called: apt would not have two at once.
func (s *Store) debian(ctx context.Context, arch string) (d *debian, done func(), err error) {
	mirror, err := s.mirror(ctx)
	if err != nil {
		return nil, nil, err
	}
	d = &debian{store: s, dir: filepath.Join(s.dir, "apt", arch), arch: arch, mirror: mirror}
	for _, sub := range []string{"lists/partial", "cache/archives/partial"} {
		if err := os.MkdirAll(filepath.Join(d.dir, sub), 0o755); err != nil {
			return nil, nil, err
		}
	}
	done, err = s.lock(ctx, filepath.Join(d.dir, ".lock"))
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			done()
		}
	}()
	var list strings.Builder
	for _, suite := range suites() {
		fmt.Fprintf(&list, "deb [arch=%s targets=Packages lang=none signed-by=%s] %s %s main\n", arch, keyring, mirror, suite)
	}
	if err := os.WriteFile(filepath.Join(d.dir, "sources.list"), []byte(list.String()), 0o644); err != nil {
		return nil, nil, err
	}
	if _, err := run(ctx, nil, "apt-get", d.options("-q", "update")...); err != nil {
		return nil, nil, err
	}
	return d, done, nil
}

// mirror is where the machine itself gets Debian from.
func (s *Store) mirror(ctx context.Context) (string, error) {
	targets := func() (string, error) {
		out, err := run(ctx, nil, "apt-get", "indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages")
		if err != nil {
			return "", err
		}
		for line := range strings.Lines(out) {
			// Debian-Security and backports lie elsewhere or have other labels.
			if uri, ok := strings.CutPrefix(strings.TrimSpace(line), "Debian|Debian|"); ok {
				return strings.TrimSuffix(uri, "/"), nil
			}
		}
		return "", nil
	}
	uri, err := targets()
	if uri != "" || err != nil {
		return uri, err
	}
	// apt knows a source's origin only once it has its lists.
	if _, err := run(ctx, nil, "apt-get", "-q", "update"); err != nil {
		return "", err
	}
	uri, err = targets()
	if uri == "" && err == nil {
		err = errors.New("find a Debian mirror: none of this machine's apt sources is Debian's main archive")
	}
	return uri, err
}

func (d *debian) options(args ...string) []string {
	return append([]string{
		"-o", "Dir::Etc::SourceList=" + filepath.Join(d.dir, "sources.list"),
		"-o", "Dir::Etc::SourceParts=-",
		"-o", "Dir::State::Lists=" + filepath.Join(d.dir, "lists"),
		"-o", "Dir::State::status=/dev/null",
		"-o", "Dir::Cache=" + filepath.Join(d.dir, "cache"),
		// Images of containers have apt keep no index of its lists, and read them anew each time.
		"-o", "Dir::Cache::pkgcache=pkgcache.bin",
		"-o", "Dir::Cache::srcpkgcache=srcpkgcache.bin",
		"-o", "APT::Architecture=" + d.arch,
		"-o", "APT::Architectures=" + d.arch,
		// The sandbox user could not write into a folder of root's.
		"-o", "APT::Sandbox::User=root",
	}, args...)
}

// fetch downloads the package that has the upstream version into dir and returns the
// file's name. A version that no suite has is an error that lists what they have.
func (d *debian) fetch(ctx context.Context, pkg, upstream, dir string) (string, error) {
	out, err := run(ctx, nil, "apt-cache", d.options("madison", pkg)...)
	if err != nil {
		return "", err
	}
	version, have := pick(out, upstream)
	if version == "" {
		return "", fmt.Errorf("get %s %s for %s from Debian: gone: the suites have %s", pkg, upstream, d.arch, have)
	}
	in := func(c *exec.Cmd) { c.Dir = dir }
	if _, err := run(ctx, in, "apt-get", d.options("-q", "download", pkg+"="+version)...); err != nil {
		return "", err
	}
	debs, err := filepath.Glob(filepath.Join(dir, pkg+"_*.deb"))
	if err != nil {
		return "", err
	}
	if len(debs) != 1 {
		return "", fmt.Errorf("get %s %s: apt-get download left %d files", pkg, version, len(debs))
	}
	return debs[0], nil
}

// pick chooses from the lines of apt-cache madison the package version of an upstream
// version, and says what there is. The first of suites that has it wins.
func pick(madison, upstream string) (version, have string) {
	bySuite := make(map[string]string)
	for line := range strings.Lines(madison) {
		cols := strings.Split(line, "|")
		if len(cols) != 3 {
			continue
		}
		v := strings.TrimSpace(cols[1])
		// The third column: MIRROR SUITE/COMPONENT ARCH Packages.
		where := strings.Fields(cols[2])
		if len(where) < 2 {
			continue
		}
		suite, _, _ := strings.Cut(where[1], "/")
		if _, ok := bySuite[suite]; !ok || upstreamOf(v) == upstream {
			bySuite[suite] = v
		}
	}
	var all []string
	for _, suite := range suites() {
		v, ok := bySuite[suite]
		if !ok {
			continue
		}
		all = append(all, suite+" "+v)
		if version == "" && upstreamOf(v) == upstream {
			version = v
		}
	}
	if len(all) == 0 {
		return version, "none"
	}
	return version, strings.Join(all, ", ")
}

// upstreamOf cuts epoch, repacking suffix and Debian revision: 1:1.6.20~ds1-1+deb12u3
// is 1.6.20.
func upstreamOf(version string) string {
	if _, after, ok := strings.Cut(version, ":"); ok {
		version = after
	}
	if i := strings.IndexAny(version, "~+-"); i >= 0 {
		version = version[:i]
	}
	return version
}
