package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/nodeprep/nodeprep/internal/host"
)

// What another nodeprep removes while a plan is being made leads to another look, not to
// an error that names a file nobody misses.
func TestPlanIsMadeAgainWhereThingsWentAway(t *testing.T) {
	root, err := host.OpenRoot(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	h := host.New(root)
	gone := fmt.Errorf("compare /x: %w", &fs.PathError{Op: "open", Path: "/x", Err: fs.ErrNotExist})
	for _, tt := range []struct {
		name string
		errs []error // of each attempt
		want error
		made int
	}{
		{"nothing went away", []error{nil}, nil, 1},
		{"one thing did", []error{errors.Join(gone), nil}, nil, 2},
		{"it stays away", []error{gone, gone, gone, nil}, gone, 3},
		{"something else is wrong", []error{fs.ErrPermission, nil}, fs.ErrPermission, 1},
	} {
		t.Run(tt.name, func(t *testing.T) {
			made := 0
			stale := &Receipt{}
			p, err := steady(context.Background(), h, stale, func(r *Receipt) (*Plan, error) {
				if made > 0 && r != nil {
					t.Error("made again from the receipt of before")
				}
				made++
				return &Plan{}, tt.errs[made-1]
			})
			if !errors.Is(err, tt.want) || made != tt.made || err == nil && p == nil {
				t.Errorf("%d plans, error %v; want %d, %v", made, err, tt.made, tt.want)
			}
		})
	}
}
