// Command bench compares whole runs of nodeprep with the same work done by hand, in
// one sitting, and prints both sides of every ratio. It asserts nothing: a shared
// machine's seconds belong to nobody.
//
//	go run ./test/bench                  # with releases made of Debian packages
//	go run ./test/bench -artifacts DIR   # with any other
package main
