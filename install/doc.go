// Package install brings a host from the state it has to the state it shall have:
// Diff compares the two and makes a Plan without touching anything, Apply carries a
// Plan out as one transaction and leaves a Receipt of every path that is ours.
//
// It is the only package that writes to a host, and within it only the type writer
// does. It must not know profiles or how files are rendered: its input is a
// desired.State. It prints nothing; progress goes to an Observer.
package install
