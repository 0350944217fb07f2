package registry

import (
	"fmt"
	"time"

	"github.com/nodeprep/nodeprep/profiles"
)

// Reader gives what a profile only names. Its errors become faults at the place in
// the profile that names the file or secret.
type Reader interface {
	// File returns the contents of a local file, such as a CA.
	File(profiles.LocalFile) ([]byte, error)
	// Secret returns a value without the line break that ends a secret's file.
	Secret(profiles.Secret) (string, error)
}

// Clock is what a Reader may be, too: only where there is one is judged whether
// certificates are valid now.
type Clock interface {
	Now() time.Time
}

// Placeholders is the Reader that touches nothing. It stands in wherever a nil Reader
// is given, so that a profile can be validated and rendered where its certificates and
// secrets are not: what it returns says so, and no file made from it can work.
type Placeholders struct{}

// File is a line that names the file.
func (Placeholders) File(f profiles.LocalFile) ([]byte, error) {
	return fmt.Appendf(nil, "# placeholder made by nodeprep: the contents of %s belong here\n", f.Given), nil
}

// Secret is the value when the profile has it, else a text that names its source.
func (Placeholders) Secret(s profiles.Secret) (string, error) {
	switch {
	case s.File != "":
		return fmt.Sprintf("(placeholder made by nodeprep: file %s)", s.File), nil
	case s.Env != "":
		return fmt.Sprintf("(placeholder made by nodeprep: environment variable %s)", s.Env), nil
	case s.Credential != "":
		return fmt.Sprintf("(placeholder made by nodeprep: credential %s)", s.Credential), nil
	}
	return s.Value, nil
}

// Unread says whether a value is what Placeholders says in place of a secret.
func Unread(s profiles.Secret, value string) bool {
	text, _ := Placeholders{}.Secret(s)
	return s.Referenced() && value == text
}

// OrPlaceholders is r, or Placeholders for nil.
func OrPlaceholders(r Reader) Reader {
	if r == nil {
		return Placeholders{}
	}
	return r
}
