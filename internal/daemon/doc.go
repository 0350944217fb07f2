// Package daemon is the running containerd, asked through its Go client: its version,
// its plugins and whether they are well, the tasks under it, and images imported into
// it. It works with daemons from 1.6 on.
//
// It imports nothing else of nodeprep: it must not know profiles, hosts or plans, and
// starts and stops nothing.
package daemon
