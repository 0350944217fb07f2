package main

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/host"
)

// renderedFile is one file of render's result.
type renderedFile struct {
	Path    string `json:"path"`
	Mode    string `json:"mode"`
	Secret  bool   `json:"secret,omitempty"`
	Content string `json:"content,omitempty"`
	From    string `json:"from,omitempty"`
}

type rendering struct {
	Dir   string         `json:"dir,omitempty"`
	Files []renderedFile `json:"files"`
}

func (a *app) renderCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "render",
		Short: "Write the files of the desired state under a folder, or print them",
		Long: `render shows the files that apply would write, as they would stand on the node. Without --root it
asks nothing of the machine it runs on, so that its result is the same everywhere.`,
		Example: `  nodeprep render -f node.yaml
  nodeprep render -f node.yaml --arch arm64 -d out/`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.render(cmd.Context(), dir, cmd.Flags().Changed("root"))
		},
	}
	cmd.Flags().StringVarP(&dir, "dir", "d", "", "write the files under `DIR`")
	a.bundleFlags(cmd)
	a.lockFlag(cmd)
	cmd.Flags().StringVar(&a.arch, "arch", "", "the node's architecture, by Go's name")
	return cmd
}

func (a *app) render(ctx context.Context, dir string, rooted bool) error {
	var root *host.Root
	facts := a.portableFacts()
	if rooted {
		var err error
		if root, err = host.OpenRoot(a.root); err != nil {
			return usagef("--root: %w", err)
		}
		facts, _ = a.facts(root)
	}
	if err := a.openBundle(ctx); err != nil {
		return err
	}
	if arches := a.portableArches(); root == nil && !slices.Contains(arches, facts.Arch) {
		facts.Arch = arches[0]
	}
	if a.source.bundle != nil {
		if err := a.source.use(ctx, facts.Arch); err != nil {
			return err
		}
	}
	name, err := a.chosen(root, noReceipt)
	if err != nil {
		return err
	}
	profile, err := a.load(ctx, name)
	if err != nil {
		return err
	}
	spec, err := a.resolve(profile, facts, time.Now())
	if err != nil {
		return err
	}
	lock, err := a.ruling(ctx, name)
	if err != nil {
		return err
	}
	in := a.inputs(ctx)
	in.masked = dir == ""
	st, notes, err := desiredState(spec, in, lock)
	if err != nil {
		return err
	}
	a.warn(notes)
	addRecovery(&st, "") // the program is no text to be looked at
	out := rendering{Dir: dir}
	for _, f := range st.Files {
		r := renderedFile{Path: f.Path, Mode: fmt.Sprintf("%04o", f.Mode), Secret: f.Secret, Content: string(f.Content), From: f.Origin.String()}
		if f.Secret {
			r.Content = ""
		}
		out.Files = append(out.Files, r)
	}
	a.result = out
	if dir != "" {
		return a.writeRendered(dir, st.Files)
	}
	if !a.structured {
		a.printRendered(st.Files)
	}
	return nil
}

// noReceipt is for verbs that change nothing on a host: what it was provisioned from
// does not matter to them.
func noReceipt() (string, bool, error) { return "", false, nil }

func (a *app) printRendered(files []desired.File) {
	p := a.paint(a.out)
	for i, f := range files {
		if i > 0 {
			fmt.Fprintln(a.out)
		}
		fmt.Fprintln(a.out, p.bold(fmt.Sprintf("==> %s (%04o)", f.Path, f.Mode)))
		if f.Secret {
			fmt.Fprintln(a.out, p.dim("(secret, not shown)"))
			continue
		}
		_, _ = a.out.Write(bytes.TrimRight(f.Content, "\n"))
		fmt.Fprintln(a.out)
	}
}

// writeRendered writes files under a folder of the user's, which is not a host: plain
// writes do, but secrets are private from their first byte.
func (a *app) writeRendered(dir string, files []desired.File) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("render: %w", err)
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("render: %w", err)
	}
	defer root.Close()
	for _, f := range files {
		name := filepath.FromSlash(f.Path[1:])
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return fmt.Errorf("render %s: %w", f.Path, err)
		}
		if err := writeNew(root, name, f); err != nil {
			return fmt.Errorf("render %s: %w", f.Path, err)
		}
		if !a.structured {
			fmt.Fprintln(a.out, filepath.Join(dir, name))
		}
	}
	return nil
}

func writeNew(root *os.Root, name string, f desired.File) error {
	if err := root.Remove(name); err != nil && !os.IsNotExist(err) {
		return err
	}
	file, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, f.Mode&fs.ModePerm)
	if err != nil {
		return err
	}
	if _, err := file.Write(f.Content); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}
