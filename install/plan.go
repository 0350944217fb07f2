package install

import (
	"context"
	"fmt"
	"io/fs"
	"strings"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/host"
)

// Action is what is done to an item of a plan.
type Action string

const (
	Keep    Action = "keep"    // it is as wanted
	Create  Action = "create"  // it is not there
	Update  Action = "update"  // it is there and differs
	Remove  Action = "remove"  // ours, as we wrote it, and no longer wanted
	Leave   Action = "leave"   // ours and no longer wanted, but changed since: reported only
	Refuse  Action = "refuse"  // not ours, or changed since; adopting may be allowed
	Load    Action = "load"    // a kernel module
	Set     Action = "set"     // a kernel setting
	Reload  Action = "reload"  // systemd reads its units again
	Enable  Action = "enable"  // a unit starts at boot
	Start   Action = "start"   // a unit
	Stop    Action = "stop"    // a unit
	Restart Action = "restart" // a unit
	Import  Action = "import"  // an image archive
	Pin     Action = "pin"     // images of an archive, against the kubelet's garbage collection
	Unpin   Action = "unpin"   // the same, no longer
)

// Item is one line of a plan.
type Item struct {
	Action Action `json:"action"`
	Kind   Kind   `json:"kind"`
	// Path is a path on the node, or the name of a component, unit, module, kernel
	// setting or image archive.
	Path string `json:"path"`
	// Reason says why, in a phrase; Details lists more, such as the keys of a file
	// that change or what makes a unit restart.
	Reason  string      `json:"reason,omitempty"`
	Details []string    `json:"details,omitempty"`
	Origin  diag.Origin `json:"origin,omitzero"`
	// Old and New are a text file's contents, for a diff; never those of a file with
	// Secret.
	Old    []byte `json:"-"`
	New    []byte `json:"-"`
	Secret bool   `json:"secret,omitempty"`
	// OldMode and NewMode differ where the permissions change.
	OldMode fs.FileMode `json:"-"`
	NewMode fs.FileMode `json:"-"`
	// OldVersion and NewVersion are an artifact's; OldVersion is also a setting's or a
	// link's present value, NewVersion the wanted one.
	OldVersion string `json:"old,omitempty"`
	NewVersion string `json:"new,omitempty"`
	// Adopted lists paths that are taken over, with what stands there kept.
	Adopted []string `json:"adopted,omitempty"`
	// Adoptable tells of a refused item that adopting would allow it, Hint what else
	// would.
	Adoptable bool   `json:"adoptable,omitempty"`
	Hint      string `json:"hint,omitempty"`
	// Drain tells of a refused item that pods alone stand in its way, those of a DaemonSet
	// and static ones as well: with the node drained and these removed it is allowed.
	Drain bool `json:"drain,omitempty"`

	file     *desired.File
	dir      *desired.Dir
	symlink  *desired.Link
	artifact *desired.Artifact
	image    *desired.Image
	// imported is what the receipt has of an image, as it would be now; nil for a new one.
	// replaced is what its archive held before. waits is where the archive waits on this
	// machine, names are those whose pins change.
	imported *Imported
	replaced *Imported
	waits    string
	names    []string
	own      *Owned
	real     string // where the path leads on this machine
	// first marks nodeprep's own files.
	first bool
	// kept is what a rollback brings back here, becomes what the receipt will say of it,
	// nil when it will not be ours.
	kept    *Kept
	becomes *Owned
	// dropped is how a directory was that comes back.
	dropped *Dropped
	// unproven says that what is kept is not what the receipt of then has.
	unproven bool
	// only limits an artifact to the members at these paths; nil means all.
	only map[string]bool
	// undecided are optional members that stand there and are not ours: they are
	// refused if the release has them, which shows when it is unpacked.
	undecided map[string]Refused
	// repair says that a file needs only the mode and owner that own has.
	repair bool
	// causes are why a unit restarts, each with the component it hangs on.
	causes []cause
}

// target is the path that the item changes.
func (i *Item) target() string {
	switch {
	case i.symlink != nil:
		return i.symlink.Path
	case i.file != nil:
		return i.file.Path
	}
	return i.Path
}

// cause is one reason for a restart or reload.
type cause struct {
	component string // the release that it depends on; "" for a file
	reason    string
}

// Changes reports whether the item changes anything.
func (i *Item) Changes() bool {
	switch i.Action {
	case Keep, Leave, Refuse:
		return false
	}
	return true
}

// Plan is what Apply would do to a host, in the order in which it would.
type Plan struct {
	Items    []Item    `json:"items"`
	Warnings diag.List `json:"warnings,omitempty"`

	state   *desired.State
	receipt *Receipt
	live    bool
	verb    Verb
	// forgotten are images that are no longer wanted and have a pin that cannot be taken
	// from them yet.
	forgotten []Imported
	// back is the receipt of the generation that a rollback goes back to.
	back *Receipt
	// again makes the plan anew, after another run changed the host.
	again func(context.Context, *Receipt) (*Plan, error)
	uninstalling
	// seen is what lstat said of each path that may be replaced, so that a change
	// between plan and commit is noticed.
	seen map[string]fs.FileInfo
}

// Empty reports that there is nothing to do, and nothing refused.
func (p *Plan) Empty() bool {
	for i := range p.Items {
		if p.Items[i].Changes() || p.Items[i].Action == Refuse {
			return false
		}
	}
	return true
}

// Purges lists the directories of containerd's data that an uninstall removes for good.
func (p *Plan) Purges() []string { return p.purge }

// Refusal is a *NotOwnedError with everything that stands in the way, or nil.
func (p *Plan) Refusal() error {
	var e NotOwnedError
	for i := range p.Items {
		if it := &p.Items[i]; it.Action == Refuse {
			e.Refused = append(e.Refused, Refused{Path: it.Path, Reason: it.Reason, Origin: it.Origin, Adoptable: it.Adoptable, Hint: it.Hint})
		}
	}
	if len(e.Refused) == 0 {
		return nil
	}
	return &e
}

// Refused is one path that nodeprep will not replace, or one unit or component that it
// will not change.
type Refused struct {
	Path      string
	Reason    string
	Origin    diag.Origin
	Adoptable bool
	Hint      string // what to do about it; "" for what goes for all
}

// NotOwnedError lists the paths that are not ours to replace, and what running
// containers would not survive.
type NotOwnedError struct{ Refused []Refused }

// Error is one line a path, and what to do.
func (e *NotOwnedError) Error() string {
	var b strings.Builder
	adoptable, inTheWay, hinted := false, false, false
	for _, r := range e.Refused {
		fmt.Fprintf(&b, "%s: %s", r.Path, r.Reason)
		if o := r.Origin.String(); o != "" {
			fmt.Fprintf(&b, " (wanted by %s)", o)
		}
		b.WriteByte('\n')
		if r.Hint != "" {
			fmt.Fprintf(&b, "  %s\n", r.Hint)
		}
		adoptable = adoptable || r.Adoptable
		inTheWay = inTheWay || !r.Adoptable && r.Hint == ""
		hinted = hinted || r.Hint != ""
	}
	b.WriteString("nothing was changed")
	switch {
	case adoptable && hinted:
		b.WriteString("; --adopt takes files that are not nodeprep's over and keeps what they are now for rollback and uninstall")
	case adoptable:
		b.WriteString("; --adopt takes such files over and keeps what they are now for rollback and uninstall")
	case inTheWay && hinted:
		b.WriteString("; move files that are in the way elsewhere")
	case inTheWay:
		b.WriteString("; move these out of the way")
	}
	return b.String()
}

// find returns the item of a kind and path, nil when the plan has none.
func (p *Plan) find(kind Kind, path string) *Item {
	for i := range p.Items {
		if p.Items[i].Kind == kind && p.Items[i].Path == path {
			return &p.Items[i]
		}
	}
	return nil
}

// locate is where a path leads on this machine, and what is there: nil for nothing.
func locate(root *host.Root, p string) (real string, fi fs.FileInfo, err error) {
	real, err = root.Locate(p)
	if err != nil {
		return "", nil, fmt.Errorf("resolve %s: %w", p, err)
	}
	fi, err = lstat(real)
	return real, fi, err
}
