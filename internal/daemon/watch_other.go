//go:build !linux

package daemon

import (
	"errors"
	"time"
)

// Watch follows shims; only Linux has any.
type Watch struct{}

// WatchShims fails: only Linux has shims.
func WatchShims([]Task) (*Watch, error) {
	return nil, errors.New("watch shims: only Linux has any")
}

// Ended lists none.
func (*Watch) Ended(_, _ time.Time) []Task { return nil }

// Close does nothing.
func (*Watch) Close() {}
