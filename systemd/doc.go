// Package systemd is containerd's unit: its text, and the running systemd's view of it.
//
// Files is pure: it turns a resolved profile into containerd.service and its
// drop-ins and touches nothing. Manager talks to systemd over D-Bus: it reloads,
// enables, starts and restarts units, each wait ending with the job's own result,
// and reads the properties that are in force.
//
// The package writes no file and must not know plans, receipts or containerd's API.
package systemd
