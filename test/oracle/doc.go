// Package oracle reads the goldens of render/testdata back with containerd's own code:
// the daemons of several release lines (config dump), their config loaders and their
// hosts.toml parsers. What comes back is compared with what the profile meant
// (meant.json), at the keys where the daemon looks; that a file parses proves nothing,
// since containerd ignores what it does not know.
//
// It is a module of its own, and so are the older releases under releases (one go.mod
// file a line, chosen with -modfile), so that containerd's dependencies stay out of
// nodeprep's. It must not import nodeprep: it judges what nodeprep wrote.
package oracle
