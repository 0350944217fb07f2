package main

import (
	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/profiles"
)

func (a *app) initCommand() *cobra.Command {
	var builtin string
	cmd := &cobra.Command{
		Use:   "init",
		Short: "Print a commented starter profile",
		Example: `  nodeprep init > node.yaml
  nodeprep init --built-in minimal > node.yaml`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			b, err := profiles.Starter(builtin)
			if err != nil {
				return &usageError{err}
			}
			if a.structured {
				a.result = struct {
					Profile string `json:"profile"`
				}{string(b)}
				return nil
			}
			_, err = a.out.Write(b)
			return err
		},
	}
	cmd.Flags().StringVar(&builtin, "built-in", "kubernetes", "the built-in profile to start from")
	return cmd
}

func (a *app) schemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Print the profile's JSON Schema",
		Example: `  nodeprep schema > nodeprep.schema.json`,
		Args:    noArgs,
		RunE: func(*cobra.Command, []string) error {
			b, err := profiles.Schema()
			if err != nil {
				return err
			}
			// The schema is a JSON document whatever the output format is.
			a.structured = false
			_, err = a.out.Write(b)
			return err
		},
	}
}
