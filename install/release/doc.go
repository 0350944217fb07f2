// Package release deals with upstream's release files: which ones a node needs,
// where they are, what digest they must have, how they come over the network and
// what is taken out of them.
//
// It trusts no byte before its digest is known: what Unpack gives to a Sink counts
// only when Unpack returns nil. It must not know profiles, plans or hosts, and writes
// to nothing but its own download cache; where members end up is the Sink's business.
package release
