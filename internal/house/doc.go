// Package house holds the rules of this repository as tests over the repository
// itself: which package may import which, that every package says what it is for,
// and that no module is replaced.
package house
