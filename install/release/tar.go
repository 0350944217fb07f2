package release

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/releases"
)

// tar takes the members out of a tar and reads it to its very end.
func (u *unpacker) tar(r io.Reader) error {
	tr := tar.NewReader(r)
	last := ""
	for entries := 0; ; {
		h, err := tr.Next()
		if err == io.EOF {
			break
		}
		// An insecure path is refused below, in our own words.
		if err != nil && (h == nil || !errors.Is(err, tar.ErrInsecurePath)) {
			return u.explain(last, err)
		}
		last = h.Name
		if entries++; entries > u.lim.entries {
			return u.fault("", fmt.Sprintf("it has more than %d members, the limit", u.lim.entries), nil)
		}
		take := u.entry
		if u.l.layer != nil {
			take = u.layerEntry
		}
		if err := take(tr, h); err != nil {
			return err
		}
	}
	// tar(1) fills its last block with zeros; anything else there is hidden content.
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		for _, c := range buf[:n] {
			if c != 0 {
				return u.fault("", "there is garbage after the end of the tar", nil)
			}
		}
		if err == io.EOF {
			break
		}
		if err != nil {
			return u.explain(last, err)
		}
	}
	if u.l.layer != nil {
		return u.wholeLayer()
	}
	return u.complete()
}

// entry looks at one member of a tar, and takes it if it is wanted.
func (u *unpacker) entry(tr *tar.Reader, h *tar.Header) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		// git archive leaves a comment; anything else would change what other
		// programs read from this archive.
		for key := range h.PAXRecords {
			if key != "comment" {
				return u.fault(h.Name, fmt.Sprintf("a global PAX header sets %q for all members", key), nil)
			}
		}
		return nil
	}
	name, problem := memberName(h.Name, strings.HasPrefix(u.l.File, "cri-containerd-"))
	if problem != "" {
		return u.fault(h.Name, problem, nil)
	}
	if problem := unfit(h, name, u.lim); problem != "" {
		return u.fault(h.Name, problem, nil)
	}
	if u.l.bundle && name == nerdctlReadme && h.Typeflag == tar.TypeReg {
		return u.nerdctl(tr, h)
	}
	m, wanted := u.wanted(name)
	if !wanted || h.Typeflag == tar.TypeDir {
		return nil
	}
	if h.Typeflag != tar.TypeReg {
		return u.fault(h.Name, "it is "+typeName(h.Typeflag)+", want a regular file", nil)
	}
	mode := h.FileInfo().Mode()
	for _, b := range []struct {
		bit  fs.FileMode
		name string
	}{{fs.ModeSetuid, "setuid"}, {fs.ModeSetgid, "setgid"}, {fs.ModeSticky, "sticky"}} {
		if mode&b.bit != 0 {
			return u.fault(h.Name, fmt.Sprintf("it has the %s bit (mode %#o)", b.name, h.Mode&0o7777), nil)
		}
	}
	if before, twice := u.taken[m.Name]; twice {
		return u.fault(h.Name, fmt.Sprintf("it is there twice, before as %q", before), nil)
	}
	u.taken[m.Name] = h.Name
	return u.write(m, programMode, h.Name, tr)
}

// memberName is a member's name as a clean relative path, or what is wrong with it.
func memberName(name string, rooted bool) (clean, problem string) {
	if path.IsAbs(name) {
		if !rooted {
			return "", "its name is absolute"
		}
		name = strings.TrimLeft(name, "/")
	}
	if slices.Contains(strings.Split(name, "/"), "..") {
		return "", "its name leads out of the archive"
	}
	return path.Clean(name), ""
}

// unfit says what is wrong with a member, wanted or not.
func unfit(h *tar.Header, name string, lim limits) string {
	if h.Size < 0 {
		return fmt.Sprintf("its size is negative, %d", h.Size)
	}
	if h.Size > lim.unpacked {
		return fmt.Sprintf("its size of %d bytes is over the limit of %d MiB", h.Size, lim.unpacked>>20)
	}
	if h.Typeflag == tar.TypeGNUSparse {
		return "sparse files are not unpacked"
	}
	for key := range h.PAXRecords {
		if strings.HasPrefix(key, "GNU.sparse.") {
			return "sparse files are not unpacked"
		}
	}
	switch h.Typeflag {
	case tar.TypeLink, tar.TypeChar, tar.TypeBlock, tar.TypeFifo:
		return "it is " + typeName(h.Typeflag) + linkTo(h)
	case tar.TypeSymlink:
		if path.IsAbs(h.Linkname) {
			return "it is a symbolic link out of the archive" + linkTo(h)
		}
		if to := path.Join(path.Dir(name), h.Linkname); to == ".." || strings.HasPrefix(to, "../") {
			return "it is a symbolic link out of the archive" + linkTo(h)
		}
	}
	return ""
}

func linkTo(h *tar.Header) string {
	if h.Linkname == "" {
		return ""
	}
	return fmt.Sprintf(", to %q", h.Linkname)
}

func typeName(flag byte) string {
	switch flag {
	case tar.TypeLink:
		return "a hard link"
	case tar.TypeSymlink:
		return "a symbolic link"
	case tar.TypeChar, tar.TypeBlock:
		return "a device node"
	case tar.TypeFifo:
		return "a fifo"
	}
	return fmt.Sprintf("of type %q", flag)
}

// wanted finds the member that a file in the archive is.
func (u *unpacker) wanted(name string) (desired.Member, bool) {
	base := path.Base(name)
	for _, m := range u.l.Artifact.Members {
		if m.Name != base {
			continue
		}
		if slices.Contains(u.folders, path.Dir(name)) {
			return m, true
		}
		if len(u.strays) < 5 && !m.Optional {
			u.strays = append(u.strays, name)
		}
	}
	return desired.Member{}, false
}

// complete tells which members a release should have had.
func (u *unpacker) complete() error {
	var missing []string
	for _, m := range u.l.Artifact.Members {
		if _, ok := u.taken[m.Name]; !ok && !m.Optional {
			missing = append(missing, m.Name)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	problem := "it lacks " + strings.Join(missing, ", ")
	if len(u.strays) > 0 {
		problem += fmt.Sprintf(" where they are expected (%s); it has %s", strings.Join(u.folders, ", "), strings.Join(u.strays, ", "))
	}
	return u.fault("", problem, nil)
}

// nerdctlReadme lists the versions of what nerdctl-full contains, a line each such as
// "- containerd: v2.1.4"; its file name has nerdctl's own version only.
const nerdctlReadme = "share/doc/nerdctl-full/README.md"

func (u *unpacker) nerdctl(r io.Reader, h *tar.Header) error {
	b, err := io.ReadAll(io.LimitReader(r, 64<<10))
	if err != nil {
		return u.explain(h.Name, err)
	}
	label := map[string]string{releases.Containerd: "containerd", releases.Runc: "runc", releases.CNI: "CNI plugins"}[u.l.Artifact.Component]
	for line := range strings.Lines(string(b)) {
		v, ok := strings.CutPrefix(strings.TrimSpace(line), "- "+label+": v")
		if ok && v != u.l.Artifact.Version {
			return u.fault("", fmt.Sprintf("it has %s %s, wanted is %s", u.l.Artifact.Component, v, u.l.Artifact.Version), nil)
		}
	}
	return nil
}
