// Package elf says what a Linux program needs of a host: its architecture, loader,
// libraries and C library, from its headers alone. It must not know which host that is,
// nor where the program came from.
package elf
