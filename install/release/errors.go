package release

import (
	"fmt"
	"strings"
)

// DigestError is a file whose content is not what was promised.
type DigestError struct {
	File string // a path or address
	Got  string // hex
	Want string // hex
	From string // who knows Want: "catalogue", "profile node.yaml:12", "/usb/SHA256SUMS"
	// Err is what was found wrong inside, where that was noticed first; may be nil.
	Err error
}

// Error names both digests and where the expected one came from.
func (e *DigestError) Error() string {
	msg := fmt.Sprintf("verify %s: sha256 mismatch: got %s, want %s (from %s)", e.File, e.Got, e.Want, e.From)
	if e.Err != nil {
		msg += "; besides, " + e.Err.Error()
	}
	return msg
}

// Unwrap is what was found wrong inside.
func (e *DigestError) Unwrap() error { return e.Err }

// ArchiveError is a release file that is not unpacked because of what is in it.
type ArchiveError struct {
	File    string
	Member  string // the name as the archive has it; "" for the archive as a whole
	Problem string
	Err     error // may be nil
}

// Error is "unpack FILE: MEMBER: problem".
func (e *ArchiveError) Error() string {
	msg := "unpack " + e.File + ": "
	if e.Member != "" {
		msg += fmt.Sprintf("member %q: ", e.Member)
	}
	msg += e.Problem
	if e.Err != nil {
		msg += ": " + e.Err.Error()
	}
	return msg
}

// Unwrap is the cause.
func (e *ArchiveError) Unwrap() error { return e.Err }

// SizeError is a file of another size than the lock has: cut short, most likely.
type SizeError struct {
	File string // a path or address
	Got  int64  // bytes
	Want int64  // bytes
	From string // who knows Want: "nodeprep.lock:7"
}

// Error names both sizes and where the expected one came from.
func (e *SizeError) Error() string {
	problem := "it is another file"
	if e.Got < e.Want {
		problem = "it is cut short, or another file"
	}
	return fmt.Sprintf("verify %s: it has %d bytes, want %d (from %s): %s", e.File, e.Got, e.Want, e.From, problem)
}

// Place is one place that was looked at.
type Place struct {
	Where string // a folder or address, without secrets
	Why   string // what was found wrong there
}

func places(list []Place) string {
	var b strings.Builder
	for _, p := range list {
		fmt.Fprintf(&b, "\n  %s: %s", p.Where, p.Why)
	}
	return b.String()
}

// NotFoundError is a release file that is nowhere to be had.
type NotFoundError struct {
	Title  string // "containerd 2.3.4"
	File   string
	Places []Place
	errs   []error
}

// Error is one line a place.
func (e *NotFoundError) Error() string {
	return fmt.Sprintf("find %s for %s: not to be had from any of these places:%s", e.File, e.Title, places(e.Places))
}

// Unwrap is what the network said.
func (e *NotFoundError) Unwrap() []error { return e.errs }

// OfflineError is a release file that only the network has, while using it is forbidden.
type OfflineError struct {
	Title  string
	File   string
	URL    string // what was wanted, without secrets
	Places []Place
}

// Error names the address that was wanted, and where else was looked.
func (e *OfflineError) Error() string {
	return fmt.Sprintf("fetch %s for %s: the network may not be used (--offline), and the file is not at hand; put it into a folder and give that with --artifacts; looked at:%s",
		e.URL, e.Title, places(e.Places))
}

// NoDigestError is a release file that nobody vouches for.
type NoDigestError struct {
	Title     string
	File      string // a path or address
	Folder    string // of a local file, else ""
	Component string
	Arch      string
	Published string // where upstream publishes it; "" where it does not
}

// Error says how to record a digest.
func (e *NoDigestError) Error() string {
	if e.Folder != "" {
		return fmt.Sprintf("verify %s for %s: no sha256 of it is known; set %s.sha256.%s in the profile to what \"sha256sum %s\" prints, or put upstream's checksum file beside it, or let nodeprep lock -f PROFILE --artifacts %s record it",
			e.File, e.Title, e.Component, e.Arch, e.File, e.Folder)
	}
	from := ""
	if e.Published != "" {
		from = ": " + e.Published
	}
	return fmt.Sprintf("fetch %s for %s: no sha256 of it is known; set %s.sha256.%s in the profile to the one that upstream published%s, or let nodeprep lock -f PROFILE record it",
		e.File, e.Title, e.Component, e.Arch, from)
}
