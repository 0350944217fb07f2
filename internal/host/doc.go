// Package host is the one seam between nodeprep and the machine it runs on: a root
// directory whose paths resolve as in a chroot, commands, the clock, and the facts
// of a host. Reads only: nothing in it changes a host.
//
// It must not know profiles, plans or containerd.
package host
