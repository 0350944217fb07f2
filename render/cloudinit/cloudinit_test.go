package cloudinit

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"
)

var update = flag.Bool("update", false, "write the golden files anew")

const aSum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func aProfile() []File {
	return []File{
		{ProfilePath, []byte("apiVersion: nodeprep/v1alpha1\nkind: NodeProfile\n"), 0o644},
		{Dir + "/files/ca.pem", []byte("-----BEGIN CERTIFICATE-----\n"), 0o644},
	}
}

func inputs() map[string]Input {
	overlay := []File{{OverlayPath, []byte("apiVersion: nodeprep/v1alpha1\nextends: bundle\nkind: NodeProfile\n"), 0o644}}
	return map[string]Input{
		"image": {Files: aProfile(), Version: "1.2.3"},
		"url": {
			Files: overlay, Version: "1.2.3", Wait: 90 * time.Second,
			ProgramURL: "https://boot.example.com/it's%20nodeprep?sig=a%2Fb&x=$1", ProgramSHA256: aSum,
			BundleURL: "https://boot.example.com/node%20one.bundle?sig=a%2Fb$", BundleSHA256: aSum,
		},
		"device": {Files: overlay, Version: "1.2.3", ProgramSHA256: aSum, Device: "NODEPREP"},
	}
}

// decoded is user-data as cloud-init takes it.
type decoded struct {
	BootCmd    [][]string `yaml:"bootcmd"`
	WriteFiles []struct {
		Path, Permissions, Content, Encoding string
	} `yaml:"write_files"`
}

func decode(t *testing.T, doc []byte) (decoded, map[string]string) {
	t.Helper()
	if !bytes.HasPrefix(doc, []byte("#cloud-config\n")) {
		t.Fatalf("cloud-init takes it for something else:\n%.80s", doc)
	}
	var d decoded
	dec := yaml.NewDecoder(bytes.NewReader(doc))
	dec.KnownFields(true)
	if err := dec.Decode(&d); err != nil {
		t.Fatalf("%v\n%s", err, doc)
	}
	files := map[string]string{}
	for _, f := range d.WriteFiles {
		data := []byte(f.Content)
		if strings.HasSuffix(f.Encoding, "b64") {
			var err error
			if data, err = base64.StdEncoding.DecodeString(f.Content); err != nil {
				t.Fatal(err)
			}
		}
		if f.Encoding == "gz+b64" {
			z, err := gzip.NewReader(bytes.NewReader(data))
			if err != nil {
				t.Fatal(err)
			}
			if data, err = io.ReadAll(z); err != nil {
				t.Fatal(err)
			}
		}
		files[f.Path] = string(data)
	}
	return d, files
}

func TestUserData(t *testing.T) {
	for name, in := range inputs() {
		t.Run(name, func(t *testing.T) {
			got, err := UserData(in)
			if err != nil {
				t.Fatal(err)
			}
			golden := filepath.Join("testdata", name+".yaml")
			if *update {
				if err := os.WriteFile(golden, got, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), string(got)); diff != "" {
				t.Errorf("(-want +got):\n%s", diff)
			}
			d, files := decode(t, got)
			for _, f := range in.Files {
				if files[f.Path] != string(f.Data) {
					t.Errorf("%s: %q, want %q", f.Path, files[f.Path], f.Data)
				}
			}
			scripts := map[string]string{"bootcmd": d.BootCmd[0][2], ReportPath: files[ReportPath]}
			if in.ProgramSHA256 != "" {
				scripts[FetchPath] = files[FetchPath]
			}
			for name, text := range scripts {
				cmd := exec.Command("sh", "-n")
				cmd.Stdin = strings.NewReader(text)
				if out, err := cmd.CombinedOutput(); err != nil || text == "" {
					t.Errorf("%s: %v\n%s", name, err, out)
				}
			}
		})
	}
}

// The unit's command line, which systemd takes apart, is the one that was meant.
func TestWord(t *testing.T) {
	for s, want := range map[string]string{
		"/etc/nodeprep/profile.yaml": "/etc/nodeprep/profile.yaml",
		"https://h/a%20b":            `"https://h/a%%20b"`,
		"https://h/?a=$1&b":          `"https://h/?a=$$1&b"`,
		`a "b" \c`:                   `"a \"b\" \\c"`,
		"":                           "",
	} {
		if got := word(s); got != want {
			t.Errorf("%q: %s, want %s", s, got, want)
		}
	}
}

// What does not fit is packed, and what does not fit then is refused, by a single byte.
func TestLimit(t *testing.T) {
	// Text of which gzip makes three quarters.
	r := rand.New(rand.NewPCG(1, 2))
	long := make([]byte, 64<<10)
	for i := range long {
		long[i] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"[r.IntN(62)]
		if i%64 == 63 {
			long[i] = '\n'
		}
	}
	build := func(n int) ([]byte, error) {
		return UserData(Input{Files: []File{{ProfilePath, append(bytes.Clone(long[:n]), '\n'), 0o644}}, Version: "1.2.3"})
	}
	packed := func(doc []byte) bool { return bytes.Contains(doc, []byte("gz+b64")) }
	// The largest that stands as it is, and the largest that is taken at all.
	most := func(ok func([]byte, error) bool) int {
		lo, hi := 1, len(long)-1
		for lo+1 < hi {
			if mid := (lo + hi) / 2; ok(build(mid)) {
				lo = mid
			} else {
				hi = mid
			}
		}
		return lo
	}
	plain := most(func(doc []byte, err error) bool { return err == nil && !packed(doc) })
	doc, err := build(plain)
	if err != nil || packed(doc) || len(doc) > Limit || len(doc) < Limit-16 {
		t.Errorf("%d bytes: user-data has %d, packed %v, %v", plain, len(doc), packed(doc), err)
	}
	if doc, err = build(plain + 2); err != nil || !packed(doc) || len(doc) >= Limit {
		t.Errorf("%d bytes: user-data has %d, packed %v, %v", plain+2, len(doc), packed(doc), err)
	}
	if _, files := decode(t, doc); files[ProfilePath] != string(long[:plain+2])+"\n" {
		t.Error("what was packed is something else")
	}
	whole := most(func(_ []byte, err error) bool { return err == nil })
	if whole <= plain {
		t.Errorf("packing helps nothing: %d bytes fit, %d as they are", whole, plain)
	}
	if doc, err = build(whole); err != nil || len(doc) > Limit || len(doc) < Limit-64 {
		t.Errorf("%d bytes: user-data has %d, %v", whole, len(doc), err)
	}
	_, err = build(whole + 64)
	tooLarge, ok := errors.AsType[*SizeError](err)
	if !ok || tooLarge.Size <= Limit || tooLarge.Size > Limit+200 || tooLarge.Largest[0] != ProfilePath {
		t.Fatalf("%d bytes: %v", whole+64, err)
	}
	for _, word := range []string{fmt.Sprint(tooLarge.Size), "16384", ProfilePath} {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("it does not say %s: %v", word, err)
		}
	}
}

// Bytes arrive as they are, whatever they are.
func TestContent(t *testing.T) {
	for _, data := range []string{
		"", "\n", "no end", " leading\n", "\ttab\n", "trailing \n\n\n", "a\r\nb\r\n", "\x00\xff", "é €\n", "\u2028\n", "\ufeffx\n", "😀\n", "- a: b # c\n", "#cloud-config\n", "---\n...\n", "'\"\\\n",
		"0644", "true", "null", "key: |\n  x\n   y\n",
	} {
		for _, pack := range []bool{false, true} {
			in := Input{Files: []File{{ProfilePath, []byte(data), 0o600}}, Version: "1.2.3"}
			if pack {
				in.Files = append(in.Files, File{Dir + "/pad", bytes.Repeat([]byte("0123456789abcdef\n"), 2000), 0o600})
			}
			doc, err := UserData(in)
			if err != nil {
				t.Fatal(err)
			}
			_, files := decode(t, doc)
			if got := files[ProfilePath]; got != data {
				t.Errorf("%q arrives as %q\n%s", data, got, doc)
			}
		}
	}
}

// The digest is what a shell on the node says, too.
func TestDigest(t *testing.T) {
	dir := t.TempDir()
	var files []File
	var names []string
	for _, name := range []string{"profile.yaml", "ca.pem"} {
		f := File{Path: filepath.Join(dir, name), Data: []byte(name)}
		if err := os.WriteFile(f.Path, f.Data, 0o600); err != nil {
			t.Fatal(err)
		}
		files, names = append(files, f), append(names, f.Path)
	}
	out, err := exec.Command("sh", "-c", `sha256sum "$@" | sha256sum`, "sh", names[0], names[1]).Output()
	if err != nil {
		t.Fatal(err)
	}
	if got := Digest(files); got != string(out[:64]) {
		t.Errorf("%s, and a shell says %s", got, out)
	}
	if Digest(files) == Digest(files[:1]) {
		t.Error("the second file does not count")
	}
}

// The script is really run, with programs of the test's making: what it gets is executed by
// nobody before its digest was right.
func TestFetch(t *testing.T) {
	good := "#!/bin/sh\necho executed\n"
	hash := sha256.Sum256([]byte(good))
	sum := hex.EncodeToString(hash[:])
	const broken = `#!/bin/sh
echo x >> "$CALLS"
exit 7
`
	// What curl and wget would have got; the file is the word after -o or -O.
	fetches := func(text string) string {
		return `#!/bin/sh
echo x >> "$CALLS"
while [ $# -gt 0 ]; do case $1 in -o|-O) to=$2 ;; esac; shift; done
[ "$(stat -c %a "$to")" = 600 ] || exit 99
cat > "$to" <<'END'
` + text + "END\n"
	}
	late := `#!/bin/sh
echo x >> "$CALLS"
[ $(wc -l < "$CALLS") -ge 3 ] || exit 7
` + strings.TrimPrefix(fetches(good), "#!/bin/sh\necho x >> \"$CALLS\"\n")
	for name, tt := range map[string]struct {
		tools  map[string]string
		before string // what is in its place
		wait   time.Duration
		code   int
		says   string
		calls  int
	}{
		"by curl":          {tools: map[string]string{"curl": fetches(good)}, calls: 1},
		"by wget":          {tools: map[string]string{"wget": fetches(good)}, calls: 1},
		"over another":     {tools: map[string]string{"curl": fetches(good)}, before: "old", calls: 1},
		"there already":    {tools: map[string]string{"curl": broken}, before: good},
		"the server comes": {tools: map[string]string{"curl": late}, calls: 3},
		"another digest":   {tools: map[string]string{"curl": fetches("#!/bin/sh\necho bad\n")}, code: 1, says: "nothing was executed", calls: 1},
		"nobody answers":   {tools: map[string]string{"curl": broken}, wait: 3 * time.Second, code: 1, says: "gave up after 3s", calls: 1},
		"no tool":          {code: 1, says: "none of curl, wget and python3"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			bin, to, calls := filepath.Join(dir, "bin"), filepath.Join(dir, "usr/nodeprep"), filepath.Join(dir, "calls")
			if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(bin, 0o755); err != nil {
				t.Fatal(err)
			}
			// Only what every image has.
			for _, tool := range []string{"sh", "cat", "cut", "sha256sum", "mktemp", "rm", "mv", "mkdir", "chmod", "sync", "stat", "wc"} {
				at, err := exec.LookPath(tool)
				if err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(at, filepath.Join(bin, tool)); err != nil {
					t.Fatal(err)
				}
			}
			tools := map[string]string{"sleep": "#!/bin/sh\n", "sync": "#!/bin/sh\n", "timeout": "#!/bin/sh\nshift\nexec \"$@\"\n"}
			for name, text := range tt.tools {
				tools[name] = text
			}
			for name, text := range tools {
				_ = os.Remove(filepath.Join(bin, name)) // of those linked above
				if err := os.WriteFile(filepath.Join(bin, name), []byte(text), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if tt.before != "" {
				if err := os.WriteFile(to, []byte(tt.before), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			stale := filepath.Join(dir, "usr/.nodeprep.0123456789")
			if err := os.WriteFile(stale, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			in := Input{ProgramURL: "https://boot.example.com/nodeprep?sig=secret", ProgramSHA256: sum, Wait: tt.wait}
			if tt.wait == 0 {
				in.Wait = time.Hour
			}
			script := strings.Replace(string(in.fetch()), "\nto="+program+"\n", "\nto="+to+"\n", 1)
			if !strings.Contains(script, to) {
				t.Fatal("the script is not the one that this test knows")
			}
			cmd := exec.CommandContext(t.Context(), filepath.Join(bin, "sh"))
			cmd.Stdin = strings.NewReader(script)
			cmd.Env = []string{"PATH=" + bin, "CALLS=" + calls}
			out, err := cmd.CombinedOutput()
			if cmd.ProcessState.ExitCode() != tt.code || !strings.Contains(string(out), tt.says) {
				t.Errorf("%v, want exit %d and %q\n%s", err, tt.code, tt.says, out)
			}
			if strings.Contains(string(out), "secret") {
				t.Errorf("it tells what nobody shall know:\n%s", out)
			}
			said, _ := os.ReadFile(calls)
			if got := strings.Count(string(said), "x"); got != tt.calls {
				t.Errorf("%d calls, want %d", got, tt.calls)
			}
			got, err := os.ReadFile(to)
			want := good
			if tt.code != 0 {
				want = tt.before
			}
			if string(got) != want || want == "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("in its place is %q, want %q", got, want)
			}
			if fi, err := os.Stat(to); err == nil && fi.Mode().Perm() != 0o755 {
				t.Errorf("mode %v", fi.Mode())
			}
			entries, err := os.ReadDir(filepath.Dir(to))
			if err != nil {
				t.Fatal(err)
			}
			for _, e := range entries {
				if e.Name() != "nodeprep" && (tt.calls > 0 || e.Name() != filepath.Base(stale)) {
					t.Errorf("%s is left", e.Name())
				}
			}
		})
	}
}

func TestSpan(t *testing.T) {
	for d, want := range map[time.Duration]string{15 * time.Minute: "15m", time.Hour: "1h", 90 * time.Second: "1m30s", 40 * time.Second: "40s", 10 * time.Minute: "10m"} {
		if got := span(d); got != want {
			t.Errorf("%v: %s, want %s", d, got, want)
		}
		if again, err := time.ParseDuration(span(d)); err != nil || again != d {
			t.Errorf("%v: read again as %v, %v", d, again, err)
		}
	}
}
