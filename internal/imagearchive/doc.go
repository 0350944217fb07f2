// Package imagearchive looks into archives of container images, docker save's and OCI image
// layouts, as containerd would, without a daemon: which images they hold under which names,
// for which platforms, and whether all parts are there.
//
// It reads a stream once, holds little of it, and decides nothing.
package imagearchive
