//go:build race

package bundle

// underRace says that the race detector slows tests down tenfold.
const underRace = true
