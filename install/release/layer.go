package release

import (
	"archive/tar"
	"context"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// Layer is a tar, packed by gzip or zstd or not, of which every file is known beforehand.
type Layer struct {
	Name string // for messages
	// SHA256 is the digest that it must have as it is read, hex, and SHA256From says
	// who says so.
	SHA256     string
	SHA256From string
	// Members are its files, and MembersFrom says who knows them.
	Members     []LayerMember
	MembersFrom string
}

// LayerMember is one file of a layer.
type LayerMember struct {
	desired.Member        // as the sink gets it
	File           string // its name in the tar
	Mode           fs.FileMode
	Size           int64
	SHA256         string // hex
}

// UnpackLayer is Unpack of a layer: all its members are given to the sink, with their own
// modes, and each one's mode, size and digest must be as known. A file that is not known,
// or is there twice, and one that is missing are faults, and so is anything but a file.
//
// Errors are Unpack's; a member's wrong digest is a *DigestError, too.
func UnpackLayer(ctx context.Context, r io.Reader, l Layer, sink Sink) (Unpacked, error) {
	return unpack(ctx, r, Located{File: l.Name, SHA256: l.SHA256, SHA256From: l.SHA256From, layer: &l}, sink, defaultLimits())
}

// layerEntry takes one member of a layer.
func (u *unpacker) layerEntry(tr *tar.Reader, h *tar.Header) error {
	name, problem := memberName(h.Name, false)
	switch {
	case problem != "":
		return u.fault(h.Name, problem, nil)
	case h.Typeflag != tar.TypeReg:
		return u.fault(h.Name, "it is "+typeName(h.Typeflag)+linkTo(h)+", want a regular file", nil)
	}
	if problem := unfit(h, name, u.lim); problem != "" {
		return u.fault(h.Name, problem, nil)
	}
	i := slices.IndexFunc(u.l.layer.Members, func(m LayerMember) bool { return m.File == h.Name })
	if i < 0 {
		return u.fault(h.Name, "it is not in "+u.l.layer.MembersFrom, nil)
	}
	m := u.l.layer.Members[i]
	if _, twice := u.taken[m.File]; twice {
		return u.fault(h.Name, "it is there twice", nil)
	}
	u.taken[m.File] = h.Name
	if h.Mode != int64(m.Mode) {
		return u.fault(h.Name, fmt.Sprintf("its mode is %#o, want %#o", h.Mode, m.Mode), nil)
	}
	if h.Size != m.Size {
		return u.fault(h.Name, fmt.Sprintf("it has %d bytes, want %d", h.Size, m.Size), nil)
	}
	if err := u.write(m.Member, m.Mode, h.Name, tr); err != nil {
		return err
	}
	if got := u.out[len(u.out)-1].SHA256; got != m.SHA256 {
		return &DigestError{File: h.Name + " in " + u.l.File, Got: got, Want: m.SHA256, From: u.l.layer.MembersFrom}
	}
	return nil
}

// wholeLayer tells which members a layer should have had.
func (u *unpacker) wholeLayer() error {
	var missing []string
	for _, m := range u.l.layer.Members {
		if _, ok := u.taken[m.File]; !ok {
			missing = append(missing, m.File)
		}
	}
	if len(missing) > 0 {
		return u.fault("", "it lacks "+strings.Join(missing, ", "), nil)
	}
	return nil
}
