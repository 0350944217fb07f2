package host

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Uname is what the running kernel says of itself (uname(2)).
type Uname struct {
	Release string // e.g. 6.1.0-28-cloud-amd64
	Machine string // the kernel's, e.g. aarch64, also where the programs are 32-bit ones
}

func uname() (Uname, error) {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Uname{}, fmt.Errorf("uname: %w", err)
	}
	return Uname{Release: unix.ByteSliceToString(u.Release[:]), Machine: unix.ByteSliceToString(u.Machine[:])}, nil
}
