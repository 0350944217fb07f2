package host

import (
	"os"
	"strings"
	"testing"
)

func TestUnameOfThisMachine(t *testing.T) {
	h := New(tree(t, nil))
	u, err := h.Uname()
	if err != nil || u.Release == "" || u.Machine == "" || strings.ContainsRune(u.Release+u.Machine, 0) {
		t.Errorf("%+q, %v", u, err)
	}
	if h.PageSize != os.Getpagesize() {
		t.Errorf("a page has %d bytes", h.PageSize)
	}
}
