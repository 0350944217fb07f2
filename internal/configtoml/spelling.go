package configtoml

import (
	"maps"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/spelling"
)

// spelt says whether a release's TOML library takes a key for the name of a setting:
// go-toml v2 (2.x) in any case, v1 (1.x) in four.
func (c *Config) spelt(key, name string) bool {
	if key == name {
		return true
	}
	if !c.old() {
		return strings.EqualFold(key, name)
	}
	return key == strings.ToLower(name) || key == strings.ToUpper(name) || key == strings.ToLower(name[:1])+name[1:]
}

// child is the value of a setting in a table, however it is spelt there.
func (c *Config) child(t *node, name string) *node {
	if !t.isTable() {
		return nil
	}
	if n := t.table[name]; n != nil {
		return n
	}
	for _, key := range t.keys() {
		if c.spelt(key, name) {
			return t.table[key]
		}
	}
	return nil
}

// option is an option of runc's shim, however it is spelt. Of several spellings the last
// in order wins in 2.x, where the built-in runc has each in its proper one.
func (c *Config) option(options *node, name string, builtin bool) *node {
	if !options.isTable() {
		return nil
	}
	if c.old() {
		return c.child(options, name)
	}
	var found *node
	for _, key := range options.keys() {
		if strings.EqualFold(key, name) && (key >= name || !builtin) {
			found = options.table[key]
		}
	}
	return found
}

// nearest is the known key that a misspelt one is most likely meant to be, "" for none.
func nearest(key string, k *known) string {
	return spelling.Nearest(key, slices.Sorted(maps.Keys(k.below)))
}
