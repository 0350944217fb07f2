package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/profiles"
)

var update = flag.Bool("update", false, "write the generated references anew")

// The references are made from the program and kept in the tree, so that they can be
// read there; this test keeps them true.
func TestReferencesAreCurrent(t *testing.T) {
	for name, make := range map[string]func(*testing.T) []byte{
		"cli.md": cliReference, "profile.md": profileReference, "checks.md": checksReference,
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join("..", "..", "docs", name)
			want := make(t)
			if *update {
				if err := os.WriteFile(path, want, 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			got, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("docs/%s is not what the program says (-program +file); run `go test ./cmd/nodeprep -update`:\n%s", name, diff)
			}
		})
	}
}

func cliReference(*testing.T) []byte {
	var b bytes.Buffer
	b.WriteString("# Command line\n\nGenerated from the program; do not edit.\n\n## Flags of every verb\n\n")
	root := (&app{}).command()
	flags(&b, root.PersistentFlags())
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() {
			verb(&b, c)
		}
	}
	b.WriteString("\n## Exit codes\n\n| code | meaning |\n|---|---|\n| 0 | done, or nothing to do, or all required checks passed |\n| 1 | it failed, and the host is as it was before |\n" +
		"| 2 | wrong usage, or an invalid profile, lock or bundle |\n| 3 | `plan`, `status`: something differs; `check`: a required check failed; `apply`: done, but the audit afterwards failed |\n| 4 | it failed and the host could not be brought back, or an uninstall could not remove everything: what is where is printed |\n" +
		"\nCode 0 of a verb that changes the host means that it is changed, also where the result could not be written, as to a full disk: that is said on standard error. A verb that only prints ends with 1 then.\n")
	return b.Bytes()
}

func verb(b *bytes.Buffer, c *cobra.Command) {
	fmt.Fprintf(b, "\n## %s\n\n%s.\n\n    %s\n", c.CommandPath(), c.Short, c.UseLine())
	if c.Long != "" {
		fmt.Fprintf(b, "\n%s\n", c.Long)
	}
	if c.Example != "" {
		fmt.Fprintf(b, "\n```sh\n%s\n```\n", unindent(c.Example))
	}
	if c.LocalNonPersistentFlags().HasAvailableFlags() {
		b.WriteString("\n")
		flags(b, c.LocalNonPersistentFlags())
	}
}

func checksReference(*testing.T) []byte {
	var b bytes.Buffer
	all := checks.Catalogue()
	fmt.Fprintf(&b, `# The checks

Generated from the program; do not edit. `+"`nodeprep check --list -o json`"+` has the same for machines.

%d checks look at a host: those of the stage preflight before an install, those of the stage audit at a provisioned node. `+"`nodeprep check`"+`
runs both at any time, also on hosts that nodeprep did not provision; `+"`nodeprep apply`"+` runs preflight first and audit last.

A required check that does not hold fails (exit code 3), a recommended one warns. A check is skipped, and says so, where something
that it needs is not there: another check that holds, or one of these facts:

| fact | meaning |
|---|---|
`, len(all))
	for _, fact := range [][2]string{
		{checks.NeedLive, "the running system, not an image under --root"},
		{checks.NeedProfile, "a profile, or the receipt of an apply, which has one"},
		{checks.NeedReceipt, "nodeprep provisioned this host"},
		{checks.NeedSystemd, "systemd answers on D-Bus"},
		{checks.NeedProcess, "a containerd runs"},
		{checks.NeedKubelet, "the host has a kubelet's configuration"},
		{checks.NeedNetwork, "the network may be used: not with --offline"},
	} {
		fmt.Fprintf(&b, "| %s | %s |\n", fact[0], fact[1])
	}
	b.WriteString(`
What could not be found out is unknown, with the reason, and never counts as passed. IDs are stable: ` + "`--skip`" + ` and a profile's
` + "`checks.skip`" + ` make a failure a warning by them, and ` + "`--only`" + ` runs some alone; ` + "`'unit/*'`" + ` is a whole family.
`)
	last := ""
	for _, c := range all {
		if family(c.ID) != last {
			last = family(c.ID)
			fmt.Fprintf(&b, "\n## %s\n", last)
		}
		fmt.Fprintf(&b, "\n### %s\n\n%s, %s. %s\n", c.ID, c.Severity, c.Stage, c.Why)
		fmt.Fprintf(&b, "\n- source: %s\n", c.Source)
		if len(c.Needs) > 0 {
			fmt.Fprintf(&b, "- needs: %s\n", strings.Join(c.Needs, ", "))
		}
		if c.Remedy != "" {
			fmt.Fprintf(&b, "- remedy: %s\n", strings.ReplaceAll(c.Remedy, "\n", "\n  "))
		}
	}
	return b.Bytes()
}

func unindent(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], "  ")
	}
	return strings.Join(lines, "\n")
}

func flags(b *bytes.Buffer, set *pflag.FlagSet) {
	b.WriteString("| flag | default | meaning |\n|---|---|---|\n")
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		name := "`--" + f.Name + "`"
		if f.Shorthand != "" {
			name = "`-" + f.Shorthand + "`, " + name
		}
		arg, usage := pflag.UnquoteUsage(f)
		if arg != "" {
			name += " " + arg
		}
		def := f.DefValue
		if def != "" && def != "[]" && def != "false" {
			def = "`" + def + "`"
		} else {
			def = ""
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, def, usage)
	})
}

// property is what the reference shows of a JSON Schema.
type property struct {
	Type        any                  `json:"type"`
	Description string               `json:"description"`
	Enum        []any                `json:"enum"`
	Const       any                  `json:"const"`
	Default     any                  `json:"default"`
	Properties  map[string]*property `json:"properties"`
	Items       *property            `json:"items"`
	OneOf       []*property          `json:"oneOf"`
	AnyOf       []*property          `json:"anyOf"`
	Ref         string               `json:"$ref"`
	Additional  json.RawMessage      `json:"additionalProperties"`
	Defs        map[string]*property `json:"$defs"`
}

func profileReference(t *testing.T) []byte {
	raw, err := profiles.Schema()
	if err != nil {
		t.Fatal(err)
	}
	var root property
	if err := json.Unmarshal(raw, &root); err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	b.WriteString("# The profile, field by field\n\nGenerated from the program; do not edit. `nodeprep schema` prints the JSON Schema, `nodeprep init` a commented starter.\n\n" +
		"| field | type | meaning |\n|---|---|---|\n")
	fields(&b, &root, &root, "", 0)
	return b.Bytes()
}

func fields(b *bytes.Buffer, root, p *property, path string, depth int) {
	if depth > 8 {
		return
	}
	if p.Ref != "" {
		def, ok := root.Defs[strings.TrimPrefix(p.Ref, "#/$defs/")]
		if !ok {
			return
		}
		p = def
	}
	for _, alt := range slices.Concat(p.OneOf, p.AnyOf) {
		fields(b, root, alt, path, depth)
	}
	names := make([]string, 0, len(p.Properties))
	for name := range p.Properties {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		child := p.Properties[name]
		at := name
		if path != "" {
			at = path + "." + name
		}
		row(b, root, at, child)
		fields(b, root, child, at, depth+1)
	}
	if p.Items != nil {
		fields(b, root, p.Items, path+"[]", depth+1)
	}
	if len(p.Additional) > 0 && p.Additional[0] == '{' {
		var child property
		if json.Unmarshal(p.Additional, &child) == nil {
			fields(b, root, &child, path+".NAME", depth+1)
		}
	}
}

func row(b *bytes.Buffer, root *property, path string, p *property) {
	desc := p.Description
	if p.Ref != "" {
		if def, ok := root.Defs[strings.TrimPrefix(p.Ref, "#/$defs/")]; ok {
			if desc == "" {
				desc = def.Description
			}
			p = def
		}
	}
	typ := ""
	switch v := p.Type.(type) {
	case string:
		typ = v
	case []any:
		var parts []string
		for _, x := range v {
			if x != "null" { // every field may be null: in a layer that removes the inherited one
				parts = append(parts, fmt.Sprint(x))
			}
		}
		typ = strings.Join(parts, " or ")
	}
	if p.Const != nil {
		typ = fmt.Sprintf("`%v`", p.Const)
	}
	if len(p.Enum) > 0 {
		var parts []string
		for _, x := range p.Enum {
			if x != nil {
				parts = append(parts, fmt.Sprintf("`%v`", x))
			}
		}
		typ = strings.Join(parts, ", ")
	}
	desc = strings.ReplaceAll(strings.ReplaceAll(desc, "\n", " "), "|", "\\|")
	fmt.Fprintf(b, "| `%s` | %s | %s |\n", path, typ, desc)
}
