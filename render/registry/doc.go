// Package registry renders the registries of a node profile as hosts.toml files
// under /etc/containerd/certs.d, with the certificates they name beside them.
//
// What a hosts.toml means is decided by containerd's parser (core/remotes/docker/config,
// in 1.x remotes/docker/config), which takes the order of tables as the order of hosts,
// forgives nothing it cannot decode, and then silently works without the file; so the
// package writes only forms that every supported release reads the same way.
//
// Explain says what such files make of an image's name, and ReadBack whether what was
// rendered is what the profile wants. Both have containerd's own parser say which hosts there
// are: they add what it keeps to itself, and what other releases do differently.
//
// It is pure: contents of local files and secrets come from a Reader, and the parser,
// which reads files, is given to it. It must not know
// hosts, what is installed, or config.toml (which package render makes).
package registry
