// Package qemu runs one machine under QEMU: it starts it from a kernel and a root disk or
// from a saved state, talks to QEMU (QMP) and to the agent inside, attaches disks, and
// ends it. Every wait has the caller's deadline.
//
// It must not know what the machine is for, nor where its disks come from.
package qemu
