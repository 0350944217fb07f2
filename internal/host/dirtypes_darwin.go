package host

import "errors"

// DirTypes is not known on this system: errors.ErrUnsupported.
func (r *Root) DirTypes(string) (typed, found bool, err error) {
	return false, false, errors.ErrUnsupported
}
