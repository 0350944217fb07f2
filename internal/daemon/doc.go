// Package daemon is the running containerd, asked through its Go client: its version,
// its plugins and whether they are well, the tasks under it, and images imported into
// it. It works with daemons from 1.6 on.
//
// Of nodeprep it knows internal/imagearchive alone, which says what archives hold: it must
// not know profiles, hosts or plans, and starts and stops nothing.
package daemon
