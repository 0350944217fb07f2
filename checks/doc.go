// Package checks looks at what is true of a host, before an install (preflight) and
// after it (audit), and reports what was found, what was wanted, the object that says
// so and the remedy. A check that could not find out says unknown, never pass.
//
// A check is an entry of the Catalogue; a Node is the host while it is being looked at,
// and asks once what several checks want to know. Everything outside comes in with
// Outside: checks open no files, processes or connections of their own.
//
// It reads and never changes anything; it must not know plans or the transaction.
package checks
