// Package desired is the desired state of a node as plain data: files, directories,
// links, artifacts, units and images, each with the profile line it comes from.
//
// render, systemd and install/release make parts of a State; install compares it
// with a host. The package decides nothing, does no input or output, and must not
// know how its values were made.
package desired
