// Package diag holds findings as data: a Diagnostic says what is wrong, where it
// stands and what to do about it; a List collects all of them, so that a user sees
// every fault at once instead of the first.
//
// It is the lowest layer. It must not know profiles, hosts or releases, does no
// input or output, and imports nothing of ours.
package diag
