// Package vm runs nodeprep on real systemd machines. A Lab has what they need and starts
// them, each from one booted and saved guest, with a disk of its own; the scenarios are
// this package's tests, and run when they are asked for: see README.md.
//
// It must not know how nodeprep works: it sees the program, its exit codes and output, and
// what became of the machine.
package vm
