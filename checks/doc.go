// Package checks looks at what is true of a host, before an install (preflight) and
// after it (audit), and reports what was found, what was wanted, the object that says
// so and the remedy. A check that could not find out says unknown, never pass.
//
// It reads and never changes anything; it must not know plans or the transaction.
package checks
