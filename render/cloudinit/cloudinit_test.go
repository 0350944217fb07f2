package cloudinit

import (
	"bytes"
	"cmp"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	gocmp "github.com/google/go-cmp/cmp"
	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/systemd"
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
	MergeHow []struct {
		Name     string
		Settings []string
	} `yaml:"merge_how"`
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
			if diff := gocmp.Diff(string(want), string(got)); diff != "" {
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
		"":                           `""`,
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

// sandbox is a folder with programs of the test's making beside those that every image has.
type sandbox struct {
	dir, bin string
}

func newSandbox(t *testing.T, programs map[string]string) sandbox {
	t.Helper()
	s := sandbox{dir: t.TempDir()}
	s.bin = filepath.Join(s.dir, "bin")
	if err := os.Mkdir(s.bin, 0o755); err != nil {
		t.Fatal(err)
	}
	all := map[string]string{"sync": "#!/bin/sh\n", "sleep": "#!/bin/sh\n", "timeout": "#!/bin/sh\n[ \"$1 $2\" = '-k 5' ] || exit 99\nshift 3\nexec \"$@\"\n"}
	maps.Copy(all, programs)
	for _, tool := range []string{"sh", "cat", "cp", "cut", "date", "grep", "ln", "mkfifo", "mktemp", "rm", "rmdir", "mv", "mkdir", "chmod", "sed", "sha256sum", "sort", "stat", "tail", "tr", "wc"} {
		at, err := exec.LookPath(tool)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(at, filepath.Join(s.bin, tool)); err != nil {
			t.Fatal(err)
		}
	}
	for name, text := range all {
		s.write(t, "bin/"+name, text, 0o755)
	}
	return s
}

// write makes a file, by its name in the folder.
func (s sandbox) write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	at := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(at, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	return at
}

// run has /bin/sh do a script, in which places of the node are those of the folder: each of
// moved must be in it. calls counts the lines of $CALLS.
func (s sandbox) run(t *testing.T, script string, moved map[string]string) (out string, code, calls int) {
	t.Helper()
	for from, to := range moved {
		if !strings.Contains(script, from) {
			t.Fatalf("the script is not the one that this test knows: it has no %q", from)
		}
		script = strings.ReplaceAll(script, from, to)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh")
	cmd.Stdin = strings.NewReader(script)
	counted := filepath.Join(s.dir, "calls")
	cmd.Env = []string{"PATH=" + s.bin, "CALLS=" + counted}
	both, err := cmd.CombinedOutput()
	if _, exited := errors.AsType[*exec.ExitError](err); err != nil && !exited {
		t.Fatal(err)
	}
	said, err := os.ReadFile(counted)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return string(both), cmd.ProcessState.ExitCode(), strings.Count(string(said), "\n")
}

// places has the script's places in the folder.
func (s sandbox) places() map[string]string {
	return map[string]string{
		"\nto=" + program + "\n":        "\nto=" + s.dir + "/usr/nodeprep\n",
		"\nresult=" + resultPath + "\n": "\nresult=" + s.dir + "/lib/nodeprep/result.json\n",
	}
}

// anyCalls is that nobody counts them.
const anyCalls = -1

// The script is really run, with programs of the test's making: what it gets is executed by
// nobody before its digest was right, what is in its place already stays where nothing is left
// to do, and what fails is written down.
func TestFetch(t *testing.T) {
	good := "#!/bin/sh\necho executed\n"
	hash := sha256.Sum256([]byte(good))
	sum := hex.EncodeToString(hash[:])
	failing := func(code int, says string) string {
		return fmt.Sprintf("#!/bin/sh\necho x >> \"$CALLS\"\necho '%s' >&2\nexit %d\n", says, code)
	}
	refused := failing(7, "curl: (7) Failed to connect to https://boot.example.com/nodeprep?sig=secret")
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
	in := Input{Files: aProfile(), Version: "1.2.3", ProgramURL: "https://boot.example.com/nodeprep?sig=secret", ProgramSHA256: sum, BundleSHA256: aSum}
	disk := in
	disk.ProgramURL, disk.Device = "", "NODEPREP"
	// mounted is a mount that shows a disk on which make has made something.
	mounted := func(make string) map[string]string {
		return map[string]string{
			"mount":  "#!/bin/sh\necho x >> \"$CALLS\"\nfor at do :; done\ncd \"$at\" && " + make + "\n",
			"umount": "#!/bin/sh\nrm -f \"$1\"/*\n",
		}
	}
	whole := "cat > nodeprep <<'END'\n" + good + "END"
	// What a newer nodeprep that was put there since says of this user-data.
	newer := func(code int) string {
		return fmt.Sprintf("#!/bin/sh\n[ \"$*\" = \"cloud-init run --settled --digest %s --bundle-sha256 %s %s\" ] && exit %d\nexit 2\n",
			Digest(in.Files), aSum, ProfilePath, code)
	}
	// A disk that can be mounted the third time.
	settles := mounted(whole)
	settles["mount"] = strings.Replace(settles["mount"], "for at", "[ $(wc -l <\"$CALLS\") -ge 3 ] || exit 32\nfor at", 1)
	versioned := func(v string) string { return "#!/bin/sh\necho nodeprep " + v + " go1.26 linux/amd64\n" }
	of := func(v string) Input {
		in := in
		in.ProgramSHA256 = fmt.Sprintf("%x", sha256.Sum256([]byte(versioned(v))))
		return in
	}
	told := `{"verb": "cloud-init", "digests": {"profile": "` + Digest(in.Files) + `"}}`
	for name, tt := range map[string]struct {
		in     Input
		tools  map[string]string
		before string // what is in its place
		result string // what is written down already
		wait   time.Duration
		stays  bool // what is in its place is newer
		code   int
		says   []string
		calls  int
	}{
		"by curl":              {in: in, tools: map[string]string{"curl": fetches(good)}, calls: 1},
		"by wget":              {in: in, tools: map[string]string{"wget": fetches(good)}, calls: 1},
		"over another":         {in: in, tools: map[string]string{"curl": fetches(good)}, before: "#!/bin/sh\n", calls: 1},
		"there already":        {in: in, tools: map[string]string{"curl": refused}, before: good},
		"upgraded since":       {in: in, tools: map[string]string{"curl": fetches(good)}, before: newer(0), result: told},
		"something is left":    {in: in, tools: map[string]string{"curl": fetches(good)}, before: newer(1), result: told, calls: 1},
		"of another user-data": {in: in, tools: map[string]string{"curl": fetches(good)}, before: "#!/bin/sh\n", result: `{"verb": "cloud-init"}`, calls: 1},
		"the server comes":     {in: in, tools: map[string]string{"curl": late}, calls: 3},
		"another digest":       {in: in, tools: map[string]string{"curl": fetches("#!/bin/sh\necho bad\n")}, code: 1, says: []string{"refused https://boot.example.com/nodeprep: its sha256 is ", "nothing was executed"}, calls: 1},
		"nobody answers":       {in: in, tools: map[string]string{"curl": refused}, wait: time.Second, code: 1, says: []string{"gave up after 1s: curl: (7)"}, calls: anyCalls},
		"not there, by curl":   {in: in, tools: map[string]string{"curl": failing(22, "curl: (22) The requested URL returned error: 404")}, code: 1, says: []string{"returned error: 404"}, calls: 1},
		"not there, by wget":   {in: in, tools: map[string]string{"wget": failing(8, "https://boot.example.com/nodeprep?sig=secret:\n2026-11-22 00:00:00 ERROR 403: Forbidden.")}, code: 1, says: []string{"ERROR 403: Forbidden"}, calls: 1},
		"too many ask":         {in: in, tools: map[string]string{"curl": failing(22, "curl: (22) The requested URL returned error: 429")}, wait: time.Second, code: 1, says: []string{"gave up after 1s"}, calls: anyCalls},
		"no tool":              {in: in, code: 1, says: []string{"none of curl, wget and python3"}},
		"from a disk":          {in: disk, tools: mounted(whole), calls: 1},
		"an empty disk":        {in: disk, tools: mounted(":"), code: 1, says: []string{"no such file at its top"}, calls: 1},
		"a pipe on a disk":     {in: disk, tools: mounted("mkfifo nodeprep"), code: 1, says: []string{"no such file at its top"}, calls: 1},
		"a link on a disk":     {in: disk, tools: mounted("ln -s ../usr/nodeprep nodeprep"), before: "#!/bin/sh\n", code: 1, says: []string{"no such file at its top"}, calls: 1},
		"another filesystem":   {in: disk, tools: map[string]string{"mount": failing(32, "mount: wrong fs type")}, wait: time.Second, code: 1, says: []string{"cannot get nodeprep on the disk NODEPREP: gave up after 1s: mount: wrong fs type"}, calls: anyCalls},
		"a disk that settles":  {in: disk, tools: settles, calls: 3},
		"not there, busybox":   {in: in, tools: map[string]string{"wget": failing(1, "wget: server returned error: HTTP/1.1 404 Not Found")}, code: 1, says: []string{"404 Not Found"}, calls: 1},
		"a busy server":        {in: in, tools: map[string]string{"wget": failing(1, "wget: server returned error: HTTP/1.1 503 Service Unavailable")}, wait: time.Second, code: 1, says: []string{"gave up after 1s"}, calls: anyCalls},
		"over an older one":    {in: of("1.10.0"), tools: map[string]string{"curl": fetches(versioned("1.10.0"))}, before: versioned("1.9.2"), calls: 1},
		"over a newer one":     {in: of("v1.9.2"), tools: map[string]string{"curl": fetches(versioned("v1.9.2"))}, before: versioned("1.10.0"), stays: true, calls: 1},
		"over one of its age":  {in: of("1.9.2"), tools: map[string]string{"curl": fetches(versioned("1.9.2"))}, before: versioned("1.9.2") + "# rebuilt\n", calls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			programs := map[string]string{}
			if tt.wait != 0 {
				at, err := exec.LookPath("sleep")
				if err != nil {
					t.Fatal(err)
				}
				programs["sleep"] = "#!/bin/sh\nexec " + at + " \"$@\"\n"
			}
			maps.Copy(programs, tt.tools)
			s := newSandbox(t, programs)
			stale := s.write(t, "usr/.nodeprep.0123456789", "", 0o600)
			if tt.before != "" {
				s.write(t, "usr/nodeprep", tt.before, 0o755)
			}
			if tt.result != "" {
				s.write(t, "lib/nodeprep/result.json", tt.result, 0o600)
			}
			if err := os.MkdirAll(filepath.Join(s.dir, "lib"), 0o755); err != nil {
				t.Fatal(err)
			}
			tt.in.Wait = cmp.Or(tt.wait, time.Hour)
			places := s.places()
			if tt.in.Device != "" {
				s.write(t, "disk", "", 0o600)
				places["\ndisk="+ByLabel+"NODEPREP\n"] = "\ndisk=" + s.dir + "/disk\n"
				places["/run/nodeprep."] = s.dir + "/run-nodeprep."
			}
			out, code, calls := s.run(t, string(tt.in.fetch()), places)
			if code != tt.code || calls != tt.calls && tt.calls != anyCalls {
				t.Errorf("exit code %d and %d calls, want %d and %d\n%s", code, calls, tt.code, tt.calls, out)
			}
			if strings.Contains(out, "secret") {
				t.Errorf("it tells what nobody shall know:\n%s", out)
			}
			got, err := os.ReadFile(filepath.Join(s.dir, "usr/nodeprep"))
			want := good
			if text, is := tt.tools["curl"]; is && tt.in.ProgramSHA256 != sum {
				want = strings.TrimSuffix(text[strings.Index(text, "#!/bin/sh\necho nodeprep"):], "END\n")
			}
			if tt.code != 0 || tt.calls == 0 || tt.stays {
				want = tt.before
			}
			if string(got) != want || want == "" && !errors.Is(err, os.ErrNotExist) {
				t.Errorf("in its place is %q, want %q", got, want)
			}
			if fi, err := os.Stat(filepath.Join(s.dir, "usr/nodeprep")); err == nil && fi.Mode().Perm() != 0o755 {
				t.Errorf("mode %v", fi.Mode())
			}
			for _, dir := range []string{"", "usr", "lib", "lib/nodeprep"} {
				entries, err := os.ReadDir(filepath.Join(s.dir, dir))
				if err != nil && !errors.Is(err, os.ErrNotExist) {
					t.Fatal(err)
				}
				for _, e := range entries {
					if at := filepath.Join(s.dir, dir, e.Name()); strings.Contains(e.Name(), "nodeprep.") && (at != stale || tt.calls != 0) {
						t.Errorf("%s is left", at)
					}
				}
			}
			text, err := os.ReadFile(filepath.Join(s.dir, "lib/nodeprep/result.json"))
			if tt.code == 0 {
				if string(text) != tt.result || tt.result == "" && !errors.Is(err, os.ErrNotExist) {
					t.Errorf("it wrote a result: %s", text)
				}
				return
			}
			var result struct {
				Verb, Outcome, Error string
				ExitCode             int
				Digests              map[string]string
			}
			if err := json.Unmarshal(text, &result); err != nil {
				t.Fatalf("%v\n%s", err, text)
			}
			if result.Verb != "cloud-init" || result.Outcome != "failed" || result.ExitCode != 1 || result.Digests["profile"] != Digest(in.Files) || result.Digests["bundle"] != aSum {
				t.Errorf("%s", text)
			}
			for _, says := range tt.says {
				if !strings.Contains(out, says) || !strings.Contains(result.Error, says) {
					t.Errorf("it does not say %q:\n%s%s", says, out, text)
				}
			}
			if strings.Contains(string(text), "secret") {
				t.Errorf("it writes down what nobody shall know:\n%s", text)
			}
			for p, mode := range map[string]os.FileMode{"lib/nodeprep": 0o700, "lib/nodeprep/result.json": 0o600} {
				if fi, err := os.Stat(filepath.Join(s.dir, p)); err != nil || fi.Mode().Perm() != mode {
					t.Errorf("%s: %v, %v", p, fi.Mode(), err)
				}
			}
		})
	}
}

// A program in place that does not end is no reason to say nothing when the time is over.
func TestFetchInterrupted(t *testing.T) {
	sleep, err := exec.LookPath("sleep")
	if err != nil {
		t.Fatal(err)
	}
	in := Input{Files: aProfile(), ProgramURL: "https://boot.example.com/nodeprep", ProgramSHA256: aSum, Wait: time.Hour}
	s := newSandbox(t, nil)
	runs := filepath.Join(s.dir, "runs")
	if err := syscall.Mkfifo(runs, 0o600); err != nil {
		t.Fatal(err)
	}
	s.write(t, "usr/nodeprep", "#!/bin/sh\necho it does >"+runs+"\nexec "+sleep+" 1000\n", 0o755)
	result := s.write(t, "lib/nodeprep/result.json", Digest(in.Files), 0o600)
	script := string(in.fetch())
	for from, to := range s.places() {
		script = strings.ReplaceAll(script, from, to)
	}
	cmd := exec.CommandContext(t.Context(), "/bin/sh", s.write(t, "script", script, 0o600))
	cmd.Env = []string{"PATH=" + s.bin}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.ReadFile(runs); err != nil {
		t.Fatal(err)
	}
	// As systemd ends a unit: all of it.
	if err := syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); cmd.ProcessState.ExitCode() != 1 {
		t.Errorf("%v", err)
	}
	var said struct{ Outcome, Error string }
	text, err := os.ReadFile(result)
	if err == nil {
		err = json.Unmarshal(text, &said)
	}
	if err != nil || said.Outcome != "failed" || said.Error != "getting https://boot.example.com/nodeprep was interrupted" {
		t.Errorf("%v\n%s", err, text)
	}
}

// The tools that people have are asked as they must be, and understood when they say that
// there is no such file.
func TestFetchOverHTTP(t *testing.T) {
	const text = "#!/bin/sh\n"
	hash := sha256.Sum256([]byte(text))
	asked := make(chan string, 100)
	var cut atomic.Bool // the connection breaks once
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.RequestURI
		if strings.Contains(r.URL.Path, "nothing") {
			http.NotFound(w, r)
			return
		}
		if strings.Contains(r.URL.Path, "breaks") && cut.Swap(false) {
			w.Header().Set("Content-Length", "1000")
		}
		_, _ = w.Write([]byte(text))
	}))
	defer web.Close()
	tools := 0
	for _, tool := range []string{"curl", "wget", "python3"} {
		at, err := exec.LookPath(filepath.Join("/usr/bin", tool))
		if err != nil {
			t.Logf("%s is not here: %v", tool, err)
			continue
		}
		tools++
		// Braces and brackets are curl's own, if nobody tells it that they are not.
		for name, code := range map[string]int{"/a{b,c}[1-2]": 0, "/nothing": 1, "/breaks": 0} {
			cut.Store(true)
			s := newSandbox(t, map[string]string{tool: "#!/bin/sh\nexec " + at + " \"$@\"\n"})
			if err := os.Mkdir(filepath.Join(s.dir, "lib"), 0o755); err != nil {
				t.Fatal(err)
			}
			in := Input{Files: aProfile(), ProgramURL: web.URL + name + "?sig=secret", ProgramSHA256: hex.EncodeToString(hash[:]), Wait: time.Hour}
			out, got, _ := s.run(t, string(in.fetch()), s.places())
			if got != code || strings.Contains(out, "secret") || code != 0 && !strings.Contains(out, "404") {
				t.Errorf("%s of %s: exit code %d, want %d\n%s", tool, name, got, code, out)
			}
			want := 1
			if name == "/breaks" {
				want = 2
			}
			if n := len(asked); n != want {
				t.Errorf("%s of %s: %d requests, want %d\n%s", tool, name, n, want, out)
			}
			for len(asked) > 0 {
				if uri := <-asked; !strings.HasSuffix(uri, "?sig=secret") {
					t.Errorf("%s of %s: it asked for %s", tool, name, uri)
				}
			}
		}
	}
	if tools == 0 {
		t.Error("none of the tools is here: nothing was tried")
	}
}

// What cloud-init did not write, or not whole, is neither enabled nor noted as written.
func TestStart(t *testing.T) {
	for name, tt := range map[string]struct {
		damage func(names []string) error
		noted  bool
	}{
		"all is there":         {func([]string) error { return nil }, true},
		"one is empty":         {func(names []string) error { return os.Truncate(names[3], 0) }, false},
		"one is missing":       {func(names []string) error { return os.Remove(names[0]) }, false},
		"one is an older unit": {func(names []string) error { return os.WriteFile(names[1], []byte("[Unit]\n"), 0o644) }, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newStarted(t)
			files := s.files(t, "one")
			var names []string
			for _, f := range files {
				names = append(names, f.Path)
			}
			if err := tt.damage(names); err != nil {
				t.Fatal(err)
			}
			for range 2 { // two boots
				s.boot(t, "one", files)
			}
			for _, at := range []string{"one/noted", "written"} {
				text, err := os.ReadFile(filepath.Join(s.dir, at))
				if (err == nil) != tt.noted || tt.noted && string(text) != Digest(files)+"\n" {
					t.Errorf("the note %s: %q, %v", at, text, err)
				}
			}
			if tt.noted {
				s.calls(t, 1)
			} else {
				s.calls(t, 0)
			}
		})
	}
}

// Whatever is on the disk, it is that of the instance that runs, and of its user-data: one that
// comes back after another, too.
func TestStartOfAnotherInstance(t *testing.T) {
	s := newStarted(t)
	for i, boot := range []struct {
		instance, data string
		fails, again   bool // whether cloud-init writes, and nodeprep is to be started
	}{
		{"one", "A", false, true},
		{"one", "A", false, false},
		{"two", "B", false, true},
		{"one", "A", true, false},
		{"one", "A", true, false},
		{"one", "A", false, true},
		{"one", "A", false, false},
		{"one", "B", false, true},
		{"one", "A", false, true},
		{"two", "B", true, false},
		{"one", "A", false, true},
	} {
		at := filepath.Join(s.dir, "files/A")
		files := []File{{at, []byte(boot.data + "\n"), 0o644}}
		if !boot.fails {
			s.write(t, "files/A", boot.data+"\n", 0o644)
		} else {
			s.write(t, "files/A", "half of it", 0o644)
		}
		if err := os.RemoveAll(filepath.Join(s.dir, "calls")); err != nil {
			t.Fatal(err)
		}
		s.boot(t, boot.instance, files)
		n := 0
		if boot.again {
			n = 1
		}
		t.Log("boot", i, boot)
		s.calls(t, n)
		// The unit's condition.
		if _, err := os.Stat(filepath.Join(s.dir, boot.instance, "noted")); (err != nil) != boot.fails {
			t.Errorf("the note: %v", err)
		}
	}
}

// started is a folder in which the script of bootcmd runs.
type started struct{ sandbox }

func newStarted(t *testing.T) started {
	t.Helper()
	return started{newSandbox(t, map[string]string{
		// systemd runs what comes after the last option, when it is time.
		"systemd-run": "#!/bin/sh\nwhile [ \"$1\" != sh ]; do shift; done\n\"$@\"\n",
		"systemctl":   "#!/bin/sh\necho \"$*\" >> \"$CALLS\"\n",
	})}
}

// files are what user-data has, as cloud-init has written it.
func (s started) files(t *testing.T, dir string) (files []File) {
	t.Helper()
	for _, n := range []string{"overlay.yaml", "unit", "report", "fetch"} {
		files = append(files, File{s.write(t, dir+"/"+n, n+"\n", 0o644), []byte(n + "\n"), 0o644})
	}
	return files
}

// boot runs the script, and wants cloud-init to write files again where those are not noted.
func (s started) boot(t *testing.T, instance string, files []File) {
	t.Helper()
	sem := s.write(t, instance+"/config_write_files", "", 0o644)
	noted := filepath.Join(s.dir, instance, "noted")
	places := map[string]string{done: noted, written: filepath.Join(s.dir, "written"), "/var/lib/cloud/instance/sem/config_write_files": sem}
	count := func() int {
		text, _ := os.ReadFile(filepath.Join(s.dir, "calls"))
		return bytes.Count(text, []byte("restart"))
	}
	before, was := count(), false
	if text, err := os.ReadFile(noted); err == nil {
		was = string(text) == Digest(files)+"\n"
	}
	s.run(t, Input{}.start(files), places)
	_, err := os.Stat(sem)
	if kept := err == nil; kept && (count() > before || !was) {
		t.Errorf("files are not written again: %v, noted %v", err, was)
	}
}

// calls wants nodeprep to have been started so often.
func (s started) calls(t *testing.T, n int) {
	t.Helper()
	said, _ := os.ReadFile(filepath.Join(s.dir, "calls"))
	want := strings.Repeat("daemon-reload\nenable "+UnitName+"\nrestart --no-block "+UnitName+"\n", n)
	if string(said) != want {
		t.Errorf("systemctl was asked for\n%swant\n%s", said, want)
	}
}

// cloud-init's status is an error wherever the node was not made by this user-data.
func TestReport(t *testing.T) {
	in := Input{Files: []File{{Path: ProfilePath}}}
	mine := Digest(in.Files)
	for name, tt := range map[string]struct {
		state           string
		noted, written  string // the notes of the instance and of the machine
		unit            string // the digest that it names
		absent, enabled bool
		code            int
	}{
		"done":                     {"active", "1", "1", mine, false, true, 0},
		"failed":                   {"failed", "1", "1", mine, false, true, 1},
		"not started":              {"inactive", "1", "1", mine, false, true, 1},
		"disabled since":           {"inactive", "1", "1", mine, false, false, 0},
		"unit taken away":          {"inactive", "1", "1", "", false, false, 0},
		"profile taken away":       {"inactive", "1", "1", mine, true, true, 0},
		"an older unit is done":    {"active", "", "", mine, false, true, 1},
		"another instance's":       {"active", "1", "2", mine, false, true, 1},
		"another unit is done":     {"active", "1", "1", aSum, false, true, 1},
		"nothing was written":      {"inactive", "", "", "", true, false, 1},
		"waiting longer than that": {"activating", "1", "1", mine, false, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			is := map[bool]string{true: "exit 0", false: "exit 1"}[tt.enabled]
			s := newSandbox(t, map[string]string{
				"systemctl":  "#!/bin/sh\ncase $1 in show) echo " + tt.state + " ;; *) " + is + " ;; esac\n",
				"journalctl": "#!/bin/sh\necho the last lines\n",
			})
			for at, text := range map[string]string{"noted": tt.noted, "written": tt.written, "unit": tt.unit} {
				if text != "" {
					s.write(t, at, "a line with "+text+" in it\n", 0o600)
				}
			}
			if !tt.absent {
				s.write(t, "profile", "", 0o600)
			}
			boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
			if err != nil {
				t.Fatal(err)
			}
			for _, of := range []string{"another boot", string(boot)} {
				result := s.write(t, "result.json", `{"boot": "`+strings.TrimSpace(of)+`"}`, 0o600)
				out, code, _ := s.run(t, string(in.report()), map[string]string{
					done: filepath.Join(s.dir, "noted"), written: filepath.Join(s.dir, "written"), UnitPath: filepath.Join(s.dir, "unit"),
					ProfilePath: filepath.Join(s.dir, "profile"), resultPath: result,
				})
				if code != tt.code || strings.Contains(out, "the last lines") != (code != 0) || strings.Contains(out, result) != (code != 0 && of == string(boot)) {
					t.Errorf("exit code %d, want %d, result of %s\n%s", code, tt.code, of, out)
				}
			}
		})
	}
}

// Whatever is in an address comes to nodeprep as it is, by systemd's rules: quotes and
// backslashes as of systemd.syntax(7), percent signs as of systemd.unit(5), dollars as of
// systemd.service(5).
func TestCommandLine(t *testing.T) {
	url := "https://h.example.com/"
	for c := '!'; c <= '~'; c++ {
		url += string(c) + string(c) + "x" + string(c)
	}
	for _, address := range []string{url, "https://h/node.bundle?sig=a%2Fb$x", "https://h/$HOME/${HOME}/%n%%", `https://h/\"`, "https://h/it's"} {
		in := Input{Files: aProfile(), BundleURL: address, BundleSHA256: aSum, Wait: Wait, ProgramSHA256: aSum}
		fragment := systemd.Fragment{Path: UnitPath, Content: in.unit()}
		var lines []string
		for _, a := range fragment.Assignments() {
			if a.Key == "ExecStart" {
				lines = append(lines, a.Value)
			}
		}
		if len(lines) != 1 {
			t.Fatalf("%d commands", len(lines))
		}
		want := []string{program, "cloud-init", "run", "--digest", Digest(in.Files), "--wait", "15m", "--bundle-url", address, "--bundle-sha256", aSum, in.Files[0].Path, in.Files[1].Path}
		var got []string
		for _, w := range systemd.Words(lines[0]) {
			for _, sign := range []string{"%", "$"} {
				if strings.Contains(strings.ReplaceAll(w, sign+sign, ""), sign) {
					t.Errorf("systemd replaces a %s in %s", sign, w)
				}
				w = strings.ReplaceAll(w, sign+sign, sign)
			}
			got = append(got, w)
		}
		if diff := gocmp.Diff(want, got); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		verify, err := exec.LookPath("systemd-analyze")
		if err != nil {
			t.Logf("systemd itself was not asked: %v", err)
			continue
		}
		dir := t.TempDir()
		unit := strings.ReplaceAll(string(in.unit()), program, "/bin/true")
		if err := os.WriteFile(filepath.Join(dir, UnitName), []byte(unit), 0o644); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), verify, "verify", "--man=no", "--generators=no", filepath.Join(dir, UnitName))
		cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
		if out, err := cmd.CombinedOutput(); err != nil || strings.Contains(string(out), "nodeprep") {
			t.Errorf("systemd-analyze verify: %v\n%s", err, out)
		}
	}
}

// A sample of the documentation stays far below what platforms take.
func TestSize(t *testing.T) {
	for name, in := range inputs() {
		doc, err := UserData(in)
		if err != nil || len(doc) > Limit*5/8 || bytes.Contains(doc, []byte("gz+b64")) {
			t.Errorf("%s: %d bytes, %v", name, len(doc), err)
		}
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
