package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/internal/host"
)

// The scripts run the real command line; nodeprep in them is this test binary.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"nodeprep": func() {
			os.Exit(run(context.Background(), os.Args[1:], stdio{
				in: os.Stdin, out: os.Stdout, err: os.Stderr, self: os.Getenv("NODEPREP_TEST_SELF"), entering: dieIn(os.Getenv("NODEPREP_TEST_DIE")),
			}, os.LookupEnv))
		},
	})
}

// dieIn kills this process with SIGKILL when a phase begins, as a power cut would.
func dieIn(phase string) func(install.Phase) {
	return func(p install.Phase) {
		if string(p) == phase {
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		}
	}
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:   "testdata/script",
		Setup: smallSelf,
		// [exists:PATH] is for what not every system has.
		Condition: func(cond string) (bool, error) {
			if path, ok := strings.CutPrefix(cond, "exists:"); ok {
				_, err := os.Stat(path)
				return err == nil, nil
			}
			return false, fmt.Errorf("unknown condition %q", cond)
		},
		Cmds: scriptCommands(),
	})
}

// smallSelf makes a small program that stands for nodeprep where that installs itself:
// this test binary has tens of megabytes.
func smallSelf(env *testscript.Env) error {
	self := filepath.Join(env.WorkDir, ".self")
	env.Setenv("NODEPREP_TEST_SELF", self)
	return os.WriteFile(self, program(runtime.GOARCH, "nodeprep"), 0o755)
}

func scriptCommands() map[string]func(*testscript.TestScript, bool, []string) {
	commands := map[string]func(*testscript.TestScript, bool, []string){
		// artifacts DIR [ARCH [VARIATION]] makes small release files in DIR and a profile
		// node.yaml that knows their digests.
		"artifacts": func(ts *testscript.TestScript, _ bool, args []string) {
			dir, arch, variation := args[0], "amd64", ""
			if len(args) > 1 {
				arch = args[1]
			}
			if len(args) > 2 {
				variation = args[2]
			}
			ts.Check(makeArtifacts(ts.MkAbs(dir), ts.MkAbs("node.yaml"), arch, variation))
		},
		// code N[,N...] COMMAND... runs a command that must end with one of these exit codes.
		"code": func(ts *testscript.TestScript, _ bool, args []string) {
			got := 0
			if err := ts.Exec(args[1], args[2:]...); err != nil {
				exit, ok := errors.AsType[*exec.ExitError](err)
				if !ok {
					ts.Fatalf("%v", err)
				}
				got = exit.ExitCode()
			}
			if !slices.Contains(strings.Split(args[0], ","), fmt.Sprint(got)) {
				ts.Fatalf("exit code %d, want %s", got, args[0])
			}
		},
		// killed PHASE COMMAND... runs nodeprep, which is killed when a phase of it begins.
		"killed": func(ts *testscript.TestScript, _ bool, args []string) {
			ts.Setenv("NODEPREP_TEST_DIE", args[0])
			defer ts.Setenv("NODEPREP_TEST_DIE", "")
			exit, ok := errors.AsType[*exec.ExitError](ts.Exec(args[1], args[2:]...))
			if !ok || exit.ExitCode() != -1 {
				ts.Fatalf("it was not killed: %v", exit)
			}
		},
		// damage DIR changes the last byte of every nodeprep program in it.
		"damage": func(ts *testscript.TestScript, _ bool, args []string) {
			files, err := filepath.Glob(filepath.Join(ts.MkAbs(args[0]), "nodeprep-*"))
			ts.Check(err)
			for _, f := range files {
				data, err := os.ReadFile(f)
				ts.Check(err)
				data[len(data)-1] ^= 1
				ts.Check(os.WriteFile(f, data, 0o644))
			}
		},
		// lines FILE N [REGEXP] checks the number of lines, or of matches.
		"lines": func(ts *testscript.TestScript, _ bool, args []string) {
			text := ts.ReadFile(args[0])
			got, what := strings.Count(text, "\n"), "lines"
			if len(args) > 2 {
				got, what = len(regexp.MustCompile(args[2]).FindAllString(text, -1)), "times "+args[2]
			}
			if fmt.Sprint(got) != args[1] {
				ts.Fatalf("%s has %d %s, want %s:\n%s", args[0], got, what, args[1], text)
			}
		},
		// json FILE checks that a file is one JSON document.
		"json": func(ts *testscript.TestScript, _ bool, args []string) {
			dec := json.NewDecoder(strings.NewReader(ts.ReadFile(args[0])))
			var v any
			ts.Check(dec.Decode(&v))
			if dec.More() {
				ts.Fatalf("%s holds more than one document", args[0])
			}
		},
		// listing ROOT FILE [content] writes every path below ROOT with mode, size, digest
		// and, unless content is said, time: staging and cleaning up touches directories.
		"listing": func(ts *testscript.TestScript, _ bool, args []string) {
			text, err := listTree(ts.MkAbs(args[0]), len(args) < 3)
			ts.Check(err)
			ts.Check(os.WriteFile(ts.MkAbs(args[1]), []byte(text), 0o644))
		},
		// mode MODE PATH checks a file's permissions.
		"mode": func(ts *testscript.TestScript, _ bool, args []string) {
			fi, err := os.Stat(ts.MkAbs(args[1]))
			ts.Check(err)
			if got := fmt.Sprintf("%04o", fi.Mode().Perm()); got != args[0] {
				ts.Fatalf("%s has mode %s, want %s", args[1], got, args[0])
			}
		},
		// link PATH TARGET checks where a symbolic link points.
		"link": func(ts *testscript.TestScript, _ bool, args []string) {
			got, err := os.Readlink(ts.MkAbs(args[0]))
			ts.Check(err)
			if got != args[1] {
				ts.Fatalf("%s points to %s, want %s", args[0], got, args[1])
			}
		},
		// onnode ARGS... runs nodeprep with the --digest that is in the file digest, and with what
		// is in FILE for @FILE.
		"onnode": func(ts *testscript.TestScript, neg bool, args []string) {
			args = append(slices.Clone(args), "--digest", "@digest")
			for i, arg := range args {
				if name, ok := strings.CutPrefix(arg, "@"); ok {
					args[i] = ts.ReadFile(name)
				}
			}
			if err := ts.Exec("nodeprep", args...); (err != nil) != neg {
				ts.Fatalf("it ended with %v", err)
			}
		},
		// web DIR serves a folder at $WEB; the file stalls there never comes.
		"web": func(ts *testscript.TestScript, _ bool, args []string) {
			files := http.FileServer(http.Dir(ts.MkAbs(args[0])))
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/stalls" {
					w.Header().Set("Content-Length", "1000000")
					w.WriteHeader(http.StatusOK)
					w.(http.Flusher).Flush()
					<-r.Context().Done()
					return
				}
				files.ServeHTTP(w, r)
			}))
			ts.Defer(s.Close)
			ts.Setenv("WEB", s.URL)
		},
		// lock ROOT holds the root until the script ends.
		"lock": func(ts *testscript.TestScript, _ bool, args []string) {
			root, err := host.OpenRoot(ts.MkAbs(args[0]))
			ts.Check(err)
			unlock, err := install.Lock(root)
			ts.Check(err)
			ts.Defer(unlock)
		},
	}
	maps.Copy(commands, airgapCommands())
	return commands
}

func listTree(dir string, times bool) (string, error) {
	var b strings.Builder
	err := filepath.Walk(dir, func(p string, fi os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(dir, p)
		if err != nil {
			return err
		}
		fmt.Fprintf(&b, "%s %s", rel, fi.Mode())
		if times {
			fmt.Fprintf(&b, " %d", fi.ModTime().UnixNano())
		}
		if fi.Mode().IsRegular() {
			data, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			fmt.Fprintf(&b, " %x", sha256.Sum256(data))
		}
		b.WriteByte('\n')
		return nil
	})
	return b.String(), err
}

// program is the smallest file that is an ELF executable of an architecture, static.
func program(arch, content string) []byte {
	machine := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[arch]
	h := elf.Header64{Type: uint16(elf.ET_EXEC), Machine: uint16(machine), Version: 1, Ehsize: 64, Phentsize: 56, Shentsize: 64}
	copy(h.Ident[:], elf.ELFMAG)
	h.Ident[elf.EI_CLASS], h.Ident[elf.EI_DATA], h.Ident[elf.EI_VERSION] = byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), 1
	var b bytes.Buffer
	_ = binary.Write(&b, binary.LittleEndian, h)
	b.WriteString(content)
	return b.Bytes()
}

func tarball(files map[string][]byte, order []string) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	w := tar.NewWriter(z)
	for _, name := range order {
		if err := w.WriteHeader(&tar.Header{Name: name, Mode: 0o755, Size: int64(len(files[name])), Typeflag: tar.TypeReg}); err != nil {
			return nil, err
		}
		if _, err := w.Write(files[name]); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// makeArtifacts makes a folder of release files, whole or broken in a named way, for one
// architecture or several (amd64,arm64), and a profile with their digests.
func makeArtifacts(dir, profile, arches, variation string) error {
	containerdVersion, runcVersion := "2.3.4", "1.4.3"
	if variation == "older" {
		containerdVersion, runcVersion = "2.3.3", "1.4.2"
	}
	files := map[string][]byte{}
	if variation != "alone" {
		// nodeprep for other machines, with the checksum file that vouches for it.
		var sums strings.Builder
		for _, a := range []string{"amd64", "arm64"} {
			name := fmt.Sprintf("nodeprep-%s-linux-%s", plainVersion(), a)
			files[name] = program(a, "nodeprep")
			fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(files[name]), name)
		}
		files["SHA256SUMS"] = []byte(sums.String())
	}
	known := map[string][]string{} // digests in the profile, by component
	for arch := range strings.SplitSeq(arches, ",") {
		made, err := releaseFiles(arch, variation, containerdVersion, runcVersion)
		if err != nil {
			return err
		}
		for component, file := range map[string]string{
			"containerd": "containerd-" + containerdVersion + "-linux-" + arch + ".tar.gz", "runc": "runc." + arch, "cni": "cni-plugins-linux-" + arch + "-v1.9.1.tgz",
		} {
			data := made[component]
			digest := sha256.Sum256(data)
			if variation == "truncated" && component == "containerd" {
				data = data[:len(data)-20]
				digest = sha256.Sum256(data)
			}
			known[component] = append(known[component], fmt.Sprintf("%s: %x", arch, digest))
			if variation == "damaged" && component == "runc" {
				data[len(data)-1] ^= 1
			}
			if variation == "absent" && component == "cni" {
				continue
			}
			files[file] = data
		}
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			return err
		}
	}
	sums := func(component string) string {
		slices.Sort(known[component])
		return strings.Join(known[component], ", ")
	}
	text := fmt.Sprintf(`apiVersion: nodeprep/v1alpha1
kind: NodeProfile
extends: kubernetes
containerd: {version: %s, variant: dynamic, sha256: {%s}}
runc: {version: %s, sha256: {%s}}
cni: {version: 1.9.1, sha256: {%s}}
crictl: {version: none}
`, containerdVersion, sums("containerd"), runcVersion, sums("runc"), sums("cni"))
	return os.WriteFile(profile, []byte(text), 0o644)
}

// releaseFiles are one architecture's, by component.
func releaseFiles(arch, variation, containerdVersion, runcVersion string) (map[string][]byte, error) {
	elfArch := arch
	if variation == "foreign" {
		elfArch = map[string]string{"amd64": "arm64", "arm64": "amd64"}[arch]
	}
	pack := func(prefix string, names ...string) ([]byte, error) {
		files, order := map[string][]byte{}, []string{}
		for _, n := range names {
			name := prefix + n
			files[name] = program(elfArch, n)
			if prefix == "bin/" {
				files[name] = append(files[name], containerdVersion...)
			}
			order = append(order, name)
		}
		if variation == "traversal" && prefix == "bin/" {
			files["../../etc/passwd"] = []byte("x")
			order = append(order, "../../etc/passwd")
		}
		return tarball(files, order)
	}
	names := []string{"containerd", "ctr", "containerd-shim-runc-v2"}
	if variation == "missing" {
		names = names[:2]
	}
	containerd, err := pack("bin/", names...)
	if err != nil {
		return nil, err
	}
	cni, err := pack("./", "bridge", "host-local", "loopback", "portmap")
	return map[string][]byte{"containerd": containerd, "cni": cni, "runc": program(elfArch, "runc"+runcVersion)}, err
}
