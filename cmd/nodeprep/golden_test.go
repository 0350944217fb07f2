package main

import (
	"debug/elf"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// The recipes of examples/golden make roots of folders, with programs that stand for those
// which only a real image needs. The chroot recipe and Packer's script are run for real by
// the machine tests.
func TestGoldenRecipes(t *testing.T) {
	recipes, err := filepath.Abs("../../examples/golden")
	if err != nil {
		t.Fatal(err)
	}
	commands := scriptCommands()
	// elf FILE ARCH checks which architecture a program is for.
	commands["elf"] = func(ts *testscript.TestScript, _ bool, args []string) {
		f, err := elf.Open(ts.MkAbs(args[0]))
		ts.Check(err)
		defer f.Close()
		if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[args[1]]; f.Machine != want {
			ts.Fatalf("%s is for %v, want %v", args[0], f.Machine, want)
		}
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/golden", Cmds: commands,
		Condition: func(cond string) (bool, error) {
			_, err := exec.LookPath(strings.TrimPrefix(cond, "has:"))
			return err == nil, nil
		},
		Setup: func(env *testscript.Env) error {
			env.Setenv("RECIPES", recipes)
			return smallSelf(env)
		},
	})
}

func TestGoldenScriptsAreShell(t *testing.T) {
	for _, name := range []string{"chroot.sh", "mkosi/mkosi.finalize", "packer/provision.sh"} {
		file := filepath.Join("../../examples/golden", name)
		fi, err := os.Stat(file)
		if err != nil || fi.Mode().Perm()&0o111 == 0 {
			t.Errorf("%s is not to be executed: %v, %v", name, fi, err)
			continue
		}
		if out, err := exec.CommandContext(t.Context(), "sh", "-n", file).CombinedOutput(); err != nil {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
		text, err := os.ReadFile(file)
		if err != nil || !strings.HasPrefix(string(text), "#!/bin/sh\n") || !strings.Contains(string(text), "\nset -eu\n") {
			t.Errorf("%s does not end where a command of it fails (%v)", name, err)
		}
	}
}
