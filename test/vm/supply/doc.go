// Package supply gets what the machine tests need that is not in this repository, and
// keeps it in a cache: tools from Debian packages, release tarballs repacked from Debian
// packages or built from Go modules, test images, root disks of guests.
//
// It must not know nodeprep: not its profiles, not its command line. What it makes would
// be the same for any other program that installs containerd.
package supply
