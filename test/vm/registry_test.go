package vm_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// registry is docker-registry on this machine.
type registry struct {
	address string   // 127.0.0.1:PORT
	data    string   // folder of its storage
	ca      string   // file, of one that speaks TLS
	env     []string // for those who log in
}

// The user of a registry that wants one, as htpasswd(1) -B writes it.
const (
	registryUser     = "site"
	registryPassword = "only-in-tests"
	registryHash     = "$2b$04$WIKLK5.h7IrBsPYvQ51dt.zyte65eo3S23J3Uq.iKsqOxFyiPkAW6"
)

// startRegistry starts a registry with an empty storage, for as long as the test runs; a
// closed one speaks TLS by an authority of its own and knows one user.
func startRegistry(t *testing.T, closed bool) registry {
	t.Helper()
	lab, err := labs()
	if err != nil {
		t.Fatal(err)
	}
	program, err := lab.Registry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	in := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	r := registry{data: filepath.Join(dir, "data")}
	config := "version: 0.1\nlog: {level: info}\nstorage: {filesystem: {rootdirectory: " + r.data + "}}\nhttp:\n  addr: 127.0.0.1:0\n"
	if closed {
		pair := certificate(t, "registry", time.Now().AddDate(1, 0, 0))
		if err := os.Mkdir(filepath.Join(dir, "certs"), 0o700); err != nil {
			t.Fatal(err)
		}
		r.ca = in("certs/ca.crt", pair.cert)
		config += "  tls: {certificate: " + r.ca + ", key: " + in("key.pem", pair.key) + "}\n" +
			"auth: {htpasswd: {realm: test, path: " + in("htpasswd", registryUser+":"+registryHash+"\n") + "}}\n"
	}
	cmd := exec.CommandContext(t.Context(), program, "serve", in("config.yml", config))
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	listens, ended := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(ended)
		pattern := regexp.MustCompile(`listening on (127\.0\.0\.1:\d+)`)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			said.WriteString(lines.Text() + "\n")
			if found := pattern.FindStringSubmatch(lines.Text()); found != nil {
				listens <- found[1]
			}
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
		_ = cmd.Wait()
	})
	select {
	case r.address = <-listens:
	case <-ended:
		t.Fatalf("docker-registry ended:\n%s", said.String())
	case <-time.After(time.Minute):
		t.Fatal("docker-registry does not say that it listens")
	}
	if closed {
		login := base64.StdEncoding.EncodeToString([]byte(registryUser + ":" + registryPassword))
		in("config.json", fmt.Sprintf(`{"auths": {%q: {"auth": %q}}}`, r.address, login))
		r.env = []string{"DOCKER_CONFIG=" + dir, "REGISTRY_AUTH_FILE=" + filepath.Join(dir, "config.json")}
	}
	return r
}

// copy has skopeo copy everything as it is, to the registry or from it.
func (r registry) copy(t *testing.T, from, to string) {
	t.Helper()
	args := []string{"--insecure-policy", "copy", "-q", "--all", "--preserve-digests"}
	for prefix, side := range map[string]string{"src": from, "dest": to} {
		switch {
		case !strings.HasPrefix(side, "docker://"):
		case r.ca == "":
			args = append(args, "--"+prefix+"-tls-verify=false")
		default:
			args = append(args, "--"+prefix+"-cert-dir="+filepath.Dir(r.ca))
		}
	}
	hostRun(t, r.env, 0, "skopeo", append(args, from, to)...)
}

// options are what nodeprep needs to reach the registry.
func (r registry) options() []string {
	if r.ca == "" {
		return nil
	}
	return []string{"--registry-ca", r.ca}
}

// Other tools carry a bundle to a registry and back, as it is; and it is applied from
// there, to no other end than from the file.
func TestBundleRegistry(t *testing.T) {
	lab := wanted(t, inMain)
	b := bundleOf(t, nodeOf("2.1.9"))
	o := open(t, b.file)
	fromFile := rootOf(t, nil, "--bundle", b.file)
	for name, closed := range map[string]bool{"open": false, "with a private authority and a login": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			in := func(name string) string { return filepath.Join(dir, name) }
			r := startRegistry(t, closed)
			to := "docker://" + r.address + "/site/node"
			from := to + "@" + o.index.Digest
			r.copy(t, "oci-archive:"+b.file, to+":1")
			r.copy(t, from, "oci-archive:"+in("back.tar")+":bundle")
			r.copy(t, from, "oci:"+in("back")+":bundle")

			back := open(t, in("back.tar"))
			if back.index.Digest != o.index.Digest {
				t.Errorf("the index came back as %s, was %s", back.index.Digest, o.index.Digest)
			}
			blobs := func(o opened) (names []string) {
				for _, name := range slices.Sorted(maps.Keys(o.parts)) {
					if strings.HasPrefix(name, "blobs/") {
						names = append(names, fmt.Sprintf("%s %d", name, o.parts[name].size))
					}
				}
				return names
			}
			if diff := cmp.Diff(blobs(o), blobs(back)); diff != "" {
				t.Errorf("blobs (-sent +back):\n%s", diff)
			}
			for _, place := range []string{"back.tar", "back"} {
				hostRun(t, nil, 0, lab.Nodeprep(), "bundle", "verify", in(place))
				inspect := func(bundle string) string {
					t.Helper()
					return strings.ReplaceAll(hostRun(t, nil, 0, lab.Nodeprep(), "bundle", "inspect", "-o", "json", bundle), bundle, "BUNDLE")
				}
				if diff := cmp.Diff(inspect(b.file), inspect(in(place))); diff != "" {
					t.Errorf("inspect (-made +back):\n%s", diff)
				}
				if diff := cmp.Diff(fromFile, rootOf(t, nil, "--bundle", in(place))); diff != "" {
					t.Errorf("from %s another node comes than from the file (-file +%[1]s):\n%s", place, diff)
				}
			}

			oci := "oci://" + r.address + "/site/node@" + o.index.Digest
			if diff := cmp.Diff(fromFile, rootOf(t, r.env, append(r.options(), "--bundle", oci)...)); diff != "" {
				t.Errorf("from the registry another node comes than from the file (-file +registry):\n%s", diff)
			}
			refuse := func(env []string, wanted string, args ...string) {
				t.Helper()
				root := t.TempDir()
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				cmd := exec.CommandContext(ctx, lab.Nodeprep(), append([]string{"apply", "--root", root, "--arch", "amd64"}, args...)...)
				cmd.Env = append(os.Environ(), env...)
				out, err := cmd.CombinedOutput()
				if code := cmd.ProcessState.ExitCode(); err == nil || code != 1 && code != 2 || !strings.Contains(string(out), wanted) {
					t.Errorf("nodeprep apply %s: exit %d, want 1 or 2 and %q:\n%s", strings.Join(args, " "), code, wanted, out)
				}
				if left, err := os.ReadDir(root); err != nil || len(left) > 0 {
					t.Errorf("nodeprep apply %s left %v", strings.Join(args, " "), left)
				}
			}
			refuse(r.env, "digest", append(r.options(), "--bundle", "oci://"+r.address+"/site/node:1")...)
			other := strings.TrimSuffix(oci, oci[len(oci)-4:]) + "0000"
			refuse(r.env, other[len(other)-64:], append(r.options(), "--bundle", other)...)
			if closed {
				refuse(r.env, "certificate", "--bundle", oci)
				refuse([]string{"DOCKER_CONFIG=" + dir, "HOME=" + dir}, "wants a login", append(r.options(), "--bundle", oci)...)
			}
			// Only what the registry should know is known to it.
			if out := hostRun(t, r.env, 3, lab.Nodeprep(), append([]string{"plan", "--root", t.TempDir(), "--arch", "amd64", "--bundle", oci, "-o", "json"}, r.options()...)...); strings.Contains(out, registryPassword) {
				t.Error("the password is in plan's output")
			}
		})
	}
	t.Run("images from a registry", func(t *testing.T) {
		if thisRun() == inMain {
			t.Skip("only with -vm=all: it packs a whole bundle")
		}
		r := startRegistry(t, false)
		const name = "registry.example.com/team/multi:1"
		r.copy(t, "oci-archive:"+filepath.Join(lab.Images(), "multi.tar"), "docker://"+r.address+"/mirror/multi:1")
		file := filepath.Join(t.TempDir(), "more.bundle")
		args := append([]string{"bundle", "create", file, "--arch", "amd64", "-f", filepath.Join(b.dir, "profile.yaml"),
			"--image", name + "=" + r.address + "/mirror/multi:1"}, hostArtifacts(lab, nodeOf("2.1.9"))...)
		hostRun(t, nil, 0, lab.Nodeprep(), args...)
		hostRun(t, nil, 0, lab.Nodeprep(), "bundle", "verify", file)
		if said := hostRun(t, nil, 0, lab.Nodeprep(), "bundle", "inspect", file); !strings.Contains(said, name) {
			t.Errorf("inspect says nothing of %s:\n%s", name, said)
		}
		o := open(t, file)
		var config struct {
			Images []struct {
				File  string
				Names []string
			}
		}
		o.decode(t, o.config.file(), &config)
		var names []string
		for _, i := range config.Images {
			names = append(names, i.Names...)
		}
		if want := []string{supply.PauseImage, supply.OlderPause, supply.BusyboxImage, name}; !cmp.Equal(want, names) {
			t.Errorf("the bundle has images %v, want %v", names, want)
		}
		if got := rootOf(t, nil, "--bundle", file); strings.Count(got, "/var/lib/nodeprep/images/") != strings.Count(fromFile, "/var/lib/nodeprep/images/")+1 {
			t.Errorf("the image does not wait for the first boot:\n%s", got)
		}
	})
	t.Run("without a network", func(t *testing.T) {
		trace := filepath.Join(t.TempDir(), "trace")
		prefix := strings.Fields(traced(trace, ""))
		check := func(want bool, env []string, args ...string) {
			t.Helper()
			root := t.TempDir()
			command := slices.Concat(prefix, []string{lab.Nodeprep(), "apply", "--root", root, "--arch", "amd64"}, args)
			hostRun(t, env, 0, command[0], command[1:]...)
			text, err := os.ReadFile(trace)
			if err != nil {
				t.Fatal(err)
			}
			if inet.Match(text) != want {
				t.Errorf("nodeprep apply %s: network used: %v, want %v:\n%s", strings.Join(args, " "), !want, want, text)
			}
		}
		check(false, nil, "--bundle", b.file)
		check(false, nil, append([]string{"--offline", "-f", filepath.Join(b.dir, "profile.yaml")}, hostArtifacts(lab, nodeOf("2.1.9"))...)...)
		// The same with a registry shows what the trace would have, and that it is one host's.
		r := startRegistry(t, false)
		r.copy(t, "oci-archive:"+b.file, "docker://"+r.address+"/site/node:1")
		check(true, nil, "--bundle", "oci://"+r.address+"/site/node@"+o.index.Digest)
		text, err := os.ReadFile(trace)
		if err != nil {
			t.Fatal(err)
		}
		_, port, _ := strings.Cut(r.address, ":")
		for line := range bytes.Lines(text) {
			if bytes.Contains(line, []byte("connect(")) && inet.Match(line) && !bytes.Contains(line, []byte("htons("+port+")")) {
				t.Errorf("a connection to somewhere else than %s: %s", r.address, line)
			}
		}
	})
}

// rootOf applies to an empty root, and lists what is in it then. What differs from run to
// run is left out.
func rootOf(t *testing.T, env []string, args ...string) string {
	t.Helper()
	lab, err := labs()
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	hostRun(t, env, 0, lab.Nodeprep(), append([]string{"apply", "--root", root, "--arch", "amd64"}, args...)...)
	list := hostRun(t, nil, 0, lab.Inguest(), "tree", "-skip", filepath.Join(root, "var/lib/nodeprep/generations"), "-skip", filepath.Join(root, "var/lib/nodeprep/receipt.json"), root)
	return treeOf(strings.ReplaceAll(list, root, "")).text
}
