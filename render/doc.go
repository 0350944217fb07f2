// Package render turns a resolved profile into the files of a node: containerd's
// config.toml, crictl.yaml, the CNI bridge network, modules, sysctls and the kubelet's
// credential provider config. Values are marshalled, never spliced into text.
//
// # config.toml
//
// The schema (2, 3 or 4) goes by the containerd version to be installed, and every key
// written is one that this version reads at that place. What others rely on by
// default is written out where a release, a merge or a migration is known to lose it:
// runtime_type of every runtime, config_path as one folder, both sockets in schema 4.
//
// /etc/containerd/conf.d is imported from containerd 2.0 on, where a drop-in is merged
// key by key. In 1.x a drop-in replaces a plugin's whole section, so that one line for
// CRI in it would undo all of ours; there nothing is imported unless the profile's
// settings say so.
//
// required_plugins names CRI: a daemon without it looks healthy to systemd while the
// kubelet finds no runtime, and stays so; with it the daemon fails with the reason in
// its journal, and systemd tries again until, say, a proxy snapshotter is up.
//
// The package is pure: no host, no files, no clock. It must not know what is installed
// or what a file replaces.
package render
