package systemd

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/coreos/go-systemd/v22/unit"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/internal/diag"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

// The files that Files makes; only UnitPath is always among them.
const (
	UnitName        = "containerd.service"
	Binary          = "/usr/local/bin/containerd" // what the unit runs
	UnitPath        = "/etc/systemd/system/containerd.service"
	EnvironmentPath = "/etc/systemd/system/containerd.service.d/10-nodeprep-environment.conf"
	ProxyPath       = "/etc/systemd/system/containerd.service.d/20-nodeprep-proxy.conf"
	// ProxySecretPath holds the proxies whose URLs have credentials in them:
	// "systemctl show" prints Environment= to every user, but not an EnvironmentFile's content.
	ProxySecretPath = "/etc/containerd/nodeprep-proxy.env"
)

// Files makes the unit and its drop-ins for a profile: upstream's containerd.service
// of the profile's release (containerd's containerd.service at that tag) with the
// profile's own choices, and the environment of the daemon.
//
// secret reads the values that the profile only refers to; a line end at the end of
// one is dropped. With a nil secret such a value is rendered as a note of where it
// comes from, for looking at and not for a host.
//
// The list holds what systemd would not take as it is meant: values with line ends or
// control characters, names that are no unit or variable names, contradictions.
func Files(spec *profiles.Spec, secret func(profiles.Secret) (string, error)) ([]desired.File, diag.List) {
	w := writer{spec: spec, secret: secret}
	files := []desired.File{w.unit()}
	if f, ok := w.environment(); ok {
		files = append(files, f)
	}
	files = append(files, w.proxy()...)
	w.faults.Sort()
	return files, w.faults
}

type writer struct {
	spec   *profiles.Spec
	secret func(profiles.Secret) (string, error)
	faults diag.List
}

func (w *writer) unit() desired.File {
	s := w.spec.Systemd
	opts := []*unit.UnitOption{
		{Section: "Unit", Name: "Description", Value: "containerd container runtime"},
		{Section: "Unit", Name: "Documentation", Value: "https://containerd.io"},
		{Section: "Unit", Name: "After", Value: strings.Join(w.after(), " ")},
	}
	for i, p := range s.RequiresMountsFor {
		origin := w.spec.Origin(fmt.Sprintf("systemd.requiresMountsFor[%d]", i))
		switch err := plainText(p); {
		case err != nil:
			w.faults.Errorf(origin, "", "path %q %v", p, err)
		case !strings.HasPrefix(p, "/"):
			w.faults.Errorf(origin, "give the path from /", "path %q is not absolute", p)
		default:
			opts = append(opts, &unit.UnitOption{Section: "Unit", Name: "RequiresMountsFor", Value: quoteUnlessPlain(p)})
		}
	}

	service := func(name, value string) {
		opts = append(opts, &unit.UnitOption{Section: "Service", Name: name, Value: value})
	}
	// The dash: in a container modprobe fails though overlay is there.
	service("ExecStartPre", "-/sbin/modprobe overlay")
	service("ExecStart", Binary)
	service("Type", "notify")
	service("Delegate", yesNo(s.Delegate))
	service("KillMode", w.word("killMode", s.KillMode))
	service("Restart", "always")
	service("RestartSec", "5")
	service("LimitNPROC", "infinity")
	service("LimitCORE", "infinity")
	limit := w.word("limitNOFILE", s.LimitNOFILE)
	if limit == "" {
		limit = releases.LimitNOFILE(w.spec.Containerd.Version, s.HostVersion)
	}
	if limit != "" {
		service("LimitNOFILE", limit)
	}
	service("TasksMax", "infinity")
	service("OOMScoreAdjust", strconv.Itoa(s.OOMScoreAdjust))

	opts = append(opts, &unit.UnitOption{Section: "Install", Name: "WantedBy", Value: "multi-user.target"})
	return unitFile(UnitPath, opts, w.spec.Origin("systemd"))
}

// after is upstream's ordering with the profile's own behind it.
func (w *writer) after() []string {
	after := slices.Clone(releases.UnitAfter(w.spec.Containerd.Version))
	for i, name := range w.spec.Systemd.After {
		if err := unitName(name); err != nil {
			w.faults.Errorf(w.spec.Origin(fmt.Sprintf("systemd.after[%d]", i)),
				"name a unit with its type, such as network-online.target", "%q %v", name, err)
			continue
		}
		if !slices.Contains(after, name) {
			after = append(after, name)
		}
	}
	return after
}

// word lets a value through that may stand bare behind an equals sign.
func (w *writer) word(field, value string) string {
	if strings.ContainsFunc(value, func(r rune) bool { return r <= ' ' || r == '%' || r == '\\' || r == 0x7f }) {
		w.faults.Errorf(w.spec.Origin("systemd."+field), "", "%q is not one plain word", value)
		return ""
	}
	return value
}

func (w *writer) environment() (desired.File, bool) {
	env := w.spec.Systemd.Environment
	var opts []*unit.UnitOption
	for _, name := range slices.Sorted(maps.Keys(env)) {
		origin := w.spec.Origin("systemd.environment." + name)
		if err := variableName(name); err != nil {
			w.faults.Errorf(origin, "letters, digits and _ only, no digit first", "variable name %q %v", name, err)
			continue
		}
		if err := plainText(env[name]); err != nil {
			w.faults.Errorf(origin, "systemd cannot pass it on", "value of %s %v", name, err)
			continue
		}
		opts = append(opts, assignment(name, env[name]))
	}
	if len(opts) == 0 {
		return desired.File{}, false
	}
	return unitFile(EnvironmentPath, opts, w.spec.Origin("systemd.environment")), true
}

func (w *writer) proxy() []desired.File {
	s := w.spec.Systemd
	var opts []*unit.UnitOption
	var hidden []string
	once := func(name, field string) {
		if _, ok := s.Environment[name]; ok {
			w.faults.Errorf(w.spec.Origin("systemd.proxy."+field), "keep one of them", "systemd.environment sets %s too", name)
		}
	}
	for _, p := range []struct {
		name, field string
		url         profiles.Secret
	}{
		{"HTTP_PROXY", "http", s.HTTPProxy},
		{"HTTPS_PROXY", "https", s.HTTPSProxy},
	} {
		if p.url.Value == "" && !referred(p.url) {
			continue
		}
		once(p.name, p.field)
		value, masked, err := w.proxyURL(p.url)
		switch {
		case err != nil:
			w.faults.Errorf(w.spec.Origin("systemd.proxy."+p.field), "", "%v", err)
		case masked:
			hidden = append(hidden, p.name+"="+quoteEnvFile(value))
		default:
			opts = append(opts, assignment(p.name, value))
		}
	}
	if len(s.NoProxy) > 0 {
		once("NO_PROXY", "noProxy")
		list := strings.Join(s.NoProxy, ",")
		if err := plainText(list); err != nil {
			w.faults.Errorf(w.spec.Origin("systemd.proxy.noProxy"), "", "list %q %v", list, err)
		} else {
			opts = append(opts, assignment("NO_PROXY", list))
		}
	}

	var files []desired.File
	if len(hidden) > 0 {
		opts = append(opts, &unit.UnitOption{Section: "Service", Name: "EnvironmentFile", Value: ProxySecretPath})
		files = append(files, desired.File{
			Path:    ProxySecretPath,
			Content: []byte(desired.Header + strings.Join(hidden, "\n") + "\n"),
			Mode:    0o600,
			Format:  desired.FormatLines,
			Effect:  desired.EffectRestart,
			Unit:    UnitName,
			Secret:  true,
			Origin:  w.spec.Origin("systemd.proxy"),
		})
	}
	if len(opts) > 0 {
		files = append(files, unitFile(ProxyPath, opts, w.spec.Origin("systemd.proxy")))
	}
	return files
}

// proxyURL is a proxy's URL and whether it must be hidden. No error repeats the value.
func (w *writer) proxyURL(sec profiles.Secret) (value string, masked bool, err error) {
	value = sec.Value
	if referred(sec) {
		if w.secret == nil {
			return "from " + reference(sec), true, nil
		}
		if value, err = w.secret(sec); err != nil {
			return "", true, err
		}
		if value = strings.TrimRight(value, "\r\n"); value == "" {
			return "", true, fmt.Errorf("the URL from %s is empty", reference(sec))
		}
	}
	if err := plainText(value); err != nil {
		return "", true, fmt.Errorf("the URL %w", err)
	}
	full := value
	if !strings.Contains(value, "://") {
		full = "http://" + value // as Go's HTTP client reads host:port
	}
	u, err := url.Parse(full)
	if err != nil {
		// url.Parse's error quotes the whole URL.
		return "", true, errors.New("the URL cannot be parsed (percent-encode special characters in its user and password)")
	}
	return value, !sec.Plain || u.User != nil, nil
}

func referred(s profiles.Secret) bool { return s.File != "" || s.Env != "" || s.Credential != "" }

func reference(s profiles.Secret) string {
	switch {
	case s.File != "":
		return "file " + s.File
	case s.Env != "":
		return "environment variable " + s.Env
	}
	return "credential " + s.Credential
}

// assignment is Environment= with one variable: systemd.exec(5), quoted as
// systemd.syntax(7) says, so that nothing in the value is expanded or split.
func assignment(name, value string) *unit.UnitOption {
	return &unit.UnitOption{Section: "Service", Name: "Environment", Value: quote(name + "=" + value)}
}

// quote makes one word of a unit file: in double quotes, with C escapes for the quote
// and the backslash, and specifiers' percent signs doubled (systemd.unit(5)). A dollar
// sign means nothing outside Exec lines.
func quote(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `%`, `%%`).Replace(s) + `"`
}

func quoteUnlessPlain(s string) string {
	if strings.ContainsAny(s, " \t\"'\\%") {
		return quote(s)
	}
	return s
}

// quoteEnvFile makes the value of an EnvironmentFile's line. Inside double quotes such
// files escape with the backslash as a POSIX shell does: quote, backslash, dollar and
// backtick; there are no specifiers (systemd.exec(5), "EnvironmentFile=").
func quoteEnvFile(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, `$`, `\$`, "`", "\\`").Replace(s) + `"`
}

// plainText refuses what systemd drops from an environment or would end a line with:
// control characters other than the tab, and what is not UTF-8.
func plainText(s string) error {
	switch {
	case strings.ContainsAny(s, "\n\r"):
		return errors.New("has a line end in it")
	case !utf8.ValidString(s):
		return errors.New("is not UTF-8")
	case strings.ContainsFunc(s, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }):
		return errors.New("has a control character in it")
	}
	return nil
}

func variableName(s string) error {
	const letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_"
	if s == "" || !strings.ContainsRune(letters, rune(s[0])) || strings.Trim(s, letters+"0123456789") != "" {
		return errors.New("is not one that systemd accepts")
	}
	return nil
}

// unitName follows systemd.unit(5), "String Escaping for Inclusion in Unit Names".
func unitName(s string) error {
	const valid = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789:-_.\\@"
	types := []string{"service", "socket", "device", "mount", "automount", "swap", "target", "path", "timer", "slice", "scope"}
	dot := strings.LastIndexByte(s, '.')
	switch {
	case strings.Trim(s, valid) != "":
		return errors.New("has characters that no unit name has")
	case dot <= 0 || !slices.Contains(types, s[dot+1:]):
		return errors.New("is not a unit name")
	case len(s) > 255:
		return errors.New("is longer than 255 bytes")
	}
	return nil
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}

func unitFile(path string, opts []*unit.UnitOption, origin diag.Origin) desired.File {
	var b strings.Builder
	b.WriteString(desired.Header)
	// Neither side of this copy can fail: both are in memory.
	_, _ = io.Copy(&b, unit.Serialize(opts))
	return desired.File{
		Path:    path,
		Content: []byte(b.String()),
		Mode:    fs.FileMode(0o644),
		Format:  desired.FormatUnit,
		Effect:  desired.EffectUnit,
		Unit:    UnitName,
		Origin:  origin,
	}
}
