// Package configtoml reads a containerd config.toml with everything it imports and says
// what a containerd of a given release makes of it, with the file and line of every
// value: which files count, in which order and how they are merged, what the release's
// migrations move and drop, what it does not know, and what stops it from starting.
//
// It reads and explains. It must not know what a good config is, what a profile wants or
// who asks: that is for checks. It starts no daemon and asks none, and it does not see
// what the daemon's command line sets (--address, --root and --state win over every file).
//
// The rules are those of containerd's own loaders: services/server/config of 1.6 and 1.7,
// cmd/containerd/server/config and the configMigration functions of its plugins in 2.x.
// TOML is read with go-toml v2, as containerd 2.x does. containerd 1.x uses go-toml v1,
// which is stricter in some ways (escapes and brackets in the names of tables) and looser
// in others; a file in that gap may be judged differently by a daemon of 1.x.
package configtoml
