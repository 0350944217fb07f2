// Package profiles is the declarative side of nodeprep: the YAML types of a node
// profile, strict decoding that reports every fault with its line and column, the
// built-in profiles, layering by extends, resolving to a Spec with nothing left to
// guess, and the JSON Schema, which is made from the same types.
//
// It is pure: bytes come from a function the caller passes, and what resolving needs
// of a host is a plain Facts. It must not know how anything is rendered, fetched or
// installed, and must not touch a host, the environment or the network.
package profiles
