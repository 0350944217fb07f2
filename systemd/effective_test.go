package systemd

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
)

// fragmentsOf names them unit, 1, 2 and so on.
func fragmentsOf(contents ...string) []Fragment {
	var out []Fragment
	for i, c := range contents {
		out = append(out, Fragment{Path: []string{"unit", "1", "2", "3"}[i], Content: []byte(c)})
	}
	return out
}

// What systemd 252 made of each of these is what is wanted here ("systemd --test").
func TestKillModeInForce(t *testing.T) {
	for name, c := range map[string]struct {
		fragments  []Fragment
		mode, from string
	}{
		"nothing says so":            {fragmentsOf("[Service]\nType=notify\n"), "control-group", ""},
		"the unit":                   {fragmentsOf("[Service]\nKillMode=process\n"), "process", "unit"},
		"a drop-in shadows it":       {fragmentsOf("[Service]\nKillMode=process\n", "[Service]\nRestart=no\n", "[Service]\nKillMode=mixed\n"), "mixed", "2"},
		"a drop-in repairs it":       {fragmentsOf("[Service]\nKillMode=mixed\n", "[Service]\nKillMode=none\n"), "none", "1"},
		"empty brings the default":   {fragmentsOf("[Service]\nKillMode=process\n", "[Service]\nKillMode=\n"), "control-group", "1"},
		"unknown is ignored":         {fragmentsOf("[Service]\nKillMode=process\n", "[Service]\nKillMode=bogus\n"), "process", "unit"},
		"quotes are not taken away":  {fragmentsOf("[Service]\nKillMode=process\n", "[Service]\nKillMode=\"mixed\"\n"), "process", "unit"},
		"nor are comments":           {fragmentsOf("[Service]\nKillMode=process # good\n"), "control-group", ""},
		"letters' case counts":       {fragmentsOf("[Service]\nKillMode=process\n", "[Service]\nkillmode=mixed\n[service]\nKillMode=mixed\n"), "process", "unit"},
		"another section":            {fragmentsOf("[Service]\nKillMode=process\n[Unit]\nKillMode=mixed\n"), "process", "unit"},
		"before any section":         {fragmentsOf("KillMode=mixed\n[Service]\nKillMode=process\n"), "process", "unit"},
		"spaces around":              {fragmentsOf("[Service]\r\n\t KillMode  =  process  \r\n"), "process", "unit"},
		"comments":                   {fragmentsOf("# KillMode=mixed\n[Service]\n;KillMode=mixed\nKillMode=process\n"), "process", "unit"},
		"a line that goes on":        {fragmentsOf("[Service]\nExecStart=/bin/true \\\n# why\nKillMode=mixed\nKillMode=process\n"), "process", "unit"},
		"swallowed by the one above": {fragmentsOf("[Service]\nKillMode=process\nExecStart=/bin/true \\\nKillMode=mixed"), "process", "unit"},
		"escaped backslash at end":   {fragmentsOf("[Service]\nEnvironment=A=b\\\\\nKillMode=process\n"), "process", "unit"},
		"no line end at the end":     {fragmentsOf("[Service]\nKillMode=process"), "process", "unit"},
		"byte order mark":            {fragmentsOf("\ufeff[Service]\nKillMode=process\n"), "process", "unit"},
		"the last line wins":         {fragmentsOf("[Service]\nKillMode=mixed\nKillMode=process\n"), "process", "unit"},
		"a repeated section":         {fragmentsOf("[Service]\nKillMode=mixed\n[Unit]\nAfter=x\n[Service]\nKillMode=process\n"), "process", "unit"},
	} {
		t.Run(name, func(t *testing.T) {
			mode, from := KillMode(c.fragments)
			if mode != c.mode || from.Path != c.from {
				t.Errorf("KillMode = %s from %q, want %s from %q", mode, from.Path, c.mode, c.from)
			}
			if got, want := KillsContainers(mode), mode == "mixed" || mode == "control-group"; got != want {
				t.Errorf("KillsContainers(%s) = %v", mode, got)
			}
		})
	}
}

func TestDelegateInForce(t *testing.T) {
	for name, c := range map[string]struct {
		fragments []Fragment
		on        bool
		from      string
	}{
		"default":          {fragmentsOf("[Service]\n"), false, ""},
		"on":               {fragmentsOf("[Service]\nDelegate=yes\n"), true, "unit"},
		"off by a drop-in": {fragmentsOf("[Service]\nDelegate=yes\n", "[Service]\nDelegate=False\n"), false, "1"},
		"controllers":      {fragmentsOf("[Service]\nDelegate=no\n", "[Service]\nDelegate=cpu pids\n"), true, "1"},
		"empty turns on":   {fragmentsOf("[Service]\nDelegate=no\n", "[Service]\nDelegate=\n"), true, "1"},
	} {
		t.Run(name, func(t *testing.T) {
			if on, from := Delegate(c.fragments); on != c.on || from.Path != c.from {
				t.Errorf("Delegate = %v from %q, want %v from %q", on, from.Path, c.on, c.from)
			}
		})
	}
}

func TestEffective(t *testing.T) {
	all := fragmentsOf("[Service]\nRestart=always\nRestartSec=5\n", "[Service]\nRestart=no\n", "[Service]\nRestartSec=\n")
	for key, want := range map[string]struct {
		value, from string
		set         bool
	}{
		"Restart": {"no", "1", true}, "RestartSec": {"", "2", false}, "Type": {"", "", false},
	} {
		value, from, set := Effective(all, "Service", key)
		if value != want.value || from.Path != want.from || set != want.set {
			t.Errorf("%s = %q from %q, %v; want %+v", key, value, from.Path, set, want)
		}
	}
}

func TestLinesOfAssignments(t *testing.T) {
	f := Fragment{Content: []byte("# why\n[Service]\n\nA=1\nB=x \\\n# still\n y\n;\nC=\n[Unit]\nD=4 \\")}
	want := []Assignment{
		{"Service", "A", "1", 4, 1}, {"Service", "B", "x   y", 5, 3}, {"Service", "C", "", 9, 1}, {"Unit", "D", "4", 11, 1},
	}
	if diff := cmp.Diff(want, f.Assignments()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestDeciding(t *testing.T) {
	all := fragmentsOf("[Service]\nRestart=always\nRestart=no\n", "[Service]\nRestart=\n[Unit]\nRestart=x\n", "[Service]\nType=notify\n")
	if a, from, ok := Deciding(all, "Service", "Restart"); !ok || from.Path != "1" || a.Line != 2 || a.Value != "" {
		t.Errorf("%+v from %q, %v", a, from.Path, ok)
	}
	if _, from, ok := Deciding(all, "Service", "KillMode"); ok || from.Path != "" {
		t.Errorf("nobody sets it, but %q", from.Path)
	}
}

func TestWords(t *testing.T) {
	for in, want := range map[string][]string{
		"":                      nil,
		" a\t b ":               {"a", "b"},
		`"A=b c" 'D=e "f"' G=h`: {"A=b c", `D=e "f"`, "G=h"},
		`A="b c"d ""`:           {"A=b cd", ""},
		`"a\"b" c\ d \\ e\x20f`: {`a"b`, "c d", `\`, `e\x20f`},
	} {
		if diff := cmp.Diff(want, Words(in)); diff != "" {
			t.Errorf("%s (-want +got):\n%s", in, diff)
		}
	}
}

func TestEnvironmentFile(t *testing.T) {
	for in, want := range map[string][]string{
		"":                                       nil,
		"# A=b\n\n ; C=d\nnothing\nE = f g  \n":  {"E=f g"},
		"A=\nB=c":                                {"A=", "B=c"},
		"A=\"b # c\\\"\\x\" \nB='c\\'d\r\nC=e=f": {`A=b # c"\x`, `B=c\d`, "C=e=f"},
		"A=b\\\n  c\nD=\"e\nf\"\nG=h\\ ":         {"A=b  c", "D=e\nf", "G=h "},
	} {
		if diff := cmp.Diff(want, EnvironmentFile([]byte(in))); diff != "" {
			t.Errorf("%q (-want +got):\n%s", in, diff)
		}
	}
}

func TestCommands(t *testing.T) {
	for name, c := range map[string]struct {
		fragments []Fragment
		want      [][]string
	}{
		"none":        {fragmentsOf("[Service]\nExecStartPre=/bin/a\n[Unit]\nExecStart=/bin/b\n"), nil},
		"one":         {fragmentsOf("[Service]\nExecStart=/bin/a --config \"/x y\" 100%%\n"), [][]string{{"/bin/a", "--config", "/x y", "100%"}}},
		"two":         {fragmentsOf("[Service]\nExecStart=/bin/a\n", "[Service]\nExecStart=/bin/b\n"), [][]string{{"/bin/a"}, {"/bin/b"}}},
		"another":     {fragmentsOf("[Service]\nExecStart=/bin/a\n", "[Service]\nExecStart=\nExecStart=-/bin/b\n"), [][]string{{"/bin/b"}}},
		"taken away":  {fragmentsOf("[Service]\nExecStart=/bin/a\n", "[Service]\nExecStart=\n"), nil},
		"by its name": {fragmentsOf("[Service]\nExecStart=-@/bin/a called b\n"), [][]string{{"/bin/a", "b"}}},
	} {
		if diff := cmp.Diff(c.want, Commands(c.fragments, "ExecStart")); diff != "" {
			t.Errorf("%s (-want +got):\n%s", name, diff)
		}
	}
}

func TestRecoverUnit(t *testing.T) {
	f := RecoverUnit(diag.Origin{})
	if f.Path != "/etc/systemd/system/nodeprep-recover.service" || !f.First || f.Unit != RecoverUnitName || f.Effect != desired.EffectUnit {
		t.Errorf("%+v", f)
	}
	got := map[string]string{}
	for _, a := range (Fragment{Content: f.Content}).Assignments() {
		got[a.Key] = a.Value
	}
	for key, want := range map[string]string{
		"Type": "oneshot", "ExecStart": "/usr/local/bin/nodeprep recover --boot", "WantedBy": "multi-user.target",
		"ConditionPathExists": "/var/lib/nodeprep/journal.json", "Before": "containerd.service kubelet.service", "After": "local-fs.target",
	} {
		if diff := cmp.Diff(want, got[key]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
	// Nothing that could pull it in when containerd restarts, and no wait without end.
	// Nor is it left out where containerd does not start.
	for _, key := range []string{"RequiredBy", "Requires", "PartOf", "BindsTo", "Restart", "DefaultDependencies"} {
		if v, ok := got[key]; ok {
			t.Errorf("it has %s=%s", key, v)
		}
	}
	if got["TimeoutStartSec"] == "" || got["TimeoutStartSec"] == "infinity" {
		t.Errorf("TimeoutStartSec=%s", got["TimeoutStartSec"])
	}
	for p := range strings.FieldsSeq("/etc /usr/local/bin /var/lib/nodeprep") {
		if !strings.Contains(" "+got["RequiresMountsFor"]+" ", " "+p+" ") {
			t.Errorf("RequiresMountsFor=%s lacks %s", got["RequiresMountsFor"], p)
		}
	}

	parsed(t, f)
}

// parsed has systemd's own parser look at one of nodeprep's units.
func parsed(t *testing.T, f desired.File) {
	t.Helper()
	verify, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Skip("no systemd-analyze here (Debian package systemd): nodeprep's own units are not checked by systemd's own parser")
	}
	dir := t.TempDir()
	content := strings.ReplaceAll(string(f.Content), Program, "/bin/true")
	for name, c := range map[string]string{f.Unit: content, UnitName: "[Service]\nExecStart=/bin/true\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(c), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.CommandContext(t.Context(), verify, "verify", "--man=no", "--generators=no", filepath.Join(dir, f.Unit))
	cmd.Env = append(os.Environ(), "SYSTEMD_UNIT_PATH="+dir+":")
	out, err := cmd.CombinedOutput()
	if err != nil || strings.Contains(string(out), "nodeprep") {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func TestFirstBootUnit(t *testing.T) {
	f := FirstBootUnit(diag.Origin{})
	if f.Path != "/etc/systemd/system/nodeprep-firstboot.service" || f.First || f.Unit != FirstBootUnitName || f.Effect != desired.EffectUnit {
		t.Errorf("%+v", f)
	}
	got := map[string]string{}
	for _, a := range (Fragment{Content: f.Content}).Assignments() {
		got[a.Key] = a.Value
	}
	for key, want := range map[string]string{
		"Type": "oneshot", "ExecStart": "/usr/local/bin/nodeprep firstboot", "WantedBy": "multi-user.target", "RemainAfterExit": "no",
		"ConditionPathExists": "|/var/lib/nodeprep/firstboot", "ConditionDirectoryNotEmpty": "|/var/lib/nodeprep/images",
		"Before": "kubelet.service", "After": "nodeprep-recover.service containerd.service", "Wants": "containerd.service",
	} {
		if diff := cmp.Diff(want, got[key]); diff != "" {
			t.Errorf("%s (-want +got):\n%s", key, diff)
		}
	}
	// A restart of containerd does not run it again, and no boot waits without end.
	// Nor is it left out where containerd does not start.
	for _, key := range []string{"RequiredBy", "Requires", "PartOf", "BindsTo", "Restart", "DefaultDependencies"} {
		if v, ok := got[key]; ok {
			t.Errorf("it has %s=%s", key, v)
		}
	}
	if got["TimeoutStartSec"] == "" || got["TimeoutStartSec"] == "infinity" {
		t.Errorf("TimeoutStartSec=%s", got["TimeoutStartSec"])
	}
	parsed(t, f)
}
