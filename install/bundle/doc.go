// Package bundle makes and reads air-gap bundles: one OCI image layout with everything that
// a node needs, for one or several architectures.
//
// A bundle is an image index with a manifest for each architecture. A manifest's config says
// what is in its layers, file by file; no byte of a layer counts before its digest is known.
// The package must not know plans or hosts: it hands members to sinks as install/release
// does, and writes to nothing but the bundle that it makes.
package bundle
