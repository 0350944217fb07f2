package profiles

import (
	"bytes"
	"embed"
	"fmt"
	"slices"
	"strings"
)

// builtins are the built-in profiles, each a file NAME.yaml. They are small: every
// run parses those it extends.
//
//go:embed builtin/*.yaml
var builtins embed.FS

// BuiltIns are the names of the built-in profiles.
func BuiltIns() []string { return []string{"default", "kubernetes", "minimal"} }

func isBuiltIn(name string) bool { return slices.Contains(BuiltIns(), name) }

// builtIn returns a built-in's text.
func builtIn(name string) ([]byte, bool) {
	if !isBuiltIn(name) {
		return nil, false
	}
	data, err := builtins.ReadFile("builtin/" + name + ".yaml")
	return data, err == nil
}

// starter is a profile in which everything but extends is commented out: "##" begins
// prose, "#" a line to be used. Without the first "#" of each line it is a profile
// that sets every section.
//
//go:embed starter.yaml
var starter []byte

// Starter returns a commented profile that extends a built-in, for a user to begin
// with. The error says which built-ins there are.
func Starter(builtin string) ([]byte, error) {
	if !isBuiltIn(builtin) {
		return nil, fmt.Errorf("unknown built-in profile %q: want %s", builtin, strings.Join(BuiltIns(), ", "))
	}
	return bytes.Replace(starter, []byte("extends: default"), []byte("extends: "+builtin), 1), nil
}
