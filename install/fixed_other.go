//go:build !linux

package install

// fixed leaves it to the rename where there is no statx(2).
func fixed(real, shown string) string { return "" }
