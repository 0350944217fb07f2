//go:build race

package install

// underRace says that the race detector slows tests down.
const underRace = true
