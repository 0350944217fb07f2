package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"

	"github.com/spf13/cobra"

	"github.com/nodeprep/nodeprep/checks"
	"github.com/nodeprep/nodeprep/install"
	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/host"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/render"
	"github.com/nodeprep/nodeprep/render/registry"
)

// explained is the result of explain.
type explained struct {
	// Source is what it was told from: a profile's layers, or a root.
	Source string `json:"source"`
	*registry.Explanation
	Probe *probed `json:"probe,omitempty"`
}

type explainFlags struct {
	verb       string
	containerd string
	probe      bool
}

func (a *app) explainCommand() *cobra.Command {
	var o explainFlags
	cmd := &cobra.Command{
		Use:   "explain IMAGE",
		Short: "Say which URLs a pull of an image tries, in order, and why",
		Long: `explain says what containerd does with the name of an image: the reference in full, the folder below certs.d that counts and
those that were looked at, every request in its order with CA, client certificate, headers (masked) and where credentials come
from, why a host is skipped, who is asked last, and what ctr would do instead. It connects to nobody.

With --probe it then asks all of these hosts, from this machine and with all that containerd would use: name, connection, TLS,
API, credentials, manifest and a layer, each with its time, a verdict and what would mend it. Secrets are read for that, and none
is shown. Nothing is uploaded. Exit code 1 says that the image cannot be pulled.

With -f it is about a node that has that profile. Without, it is about this host, or the one at --root: its config.toml and
hosts.toml are read, whoever wrote them, by containerd's own parser and the rules of the release that is installed.`,
		Example: `  nodeprep explain nginx -f node.yaml
  nodeprep explain registry.k8s.io/pause:3.10.2
  nodeprep explain nginx --root /mnt/image --containerd 1.7.24 -o json
  nodeprep explain registry.example.com/pause:3.10.2 -f node.yaml --probe
  nodeprep explain --verb push registry.example.com/app:1.0 -f node.yaml`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 {
				return usagef("explain: name one image")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.explain(cmd.Context(), args[0], o)
		},
	}
	f := cmd.Flags()
	verbs := []string{registry.VerbPull, registry.VerbResolve, registry.VerbPush}
	f.StringVar(&o.verb, "verb", registry.VerbPull, "what is done: "+strings.Join(verbs, ", "))
	f.StringVar(&o.containerd, "containerd", "", "the `VERSION` that reads the files, where the host does not tell, or to see what another does")
	f.BoolVar(&o.probe, "probe", false, "ask the hosts for real, and say what comes of it")
	complete(cmd, "verb", cobra.FixedCompletions(verbs, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (a *app) explain(ctx context.Context, image string, o explainFlags) error {
	if err := oneOf("verb", o.verb, registry.VerbPull, registry.VerbResolve, registry.VerbPush); err != nil {
		return err
	}
	if o.probe && a.offline {
		return usagef("--probe asks registries, and --offline forbids it: leave one of them out")
	}
	var release releases.Version
	if o.containerd != "" {
		var err error
		if release, err = releases.ParseVersion(strings.TrimPrefix(o.containerd, "v")); err != nil {
			return usagef("--containerd: %w", err)
		}
	}
	parser, err := newHostsParser()
	if err != nil {
		return err
	}
	defer parser.close()
	var r explained
	var q registry.Query
	var w *way
	if a.profile != "" {
		r.Source, q, w, err = a.explainProfile(ctx, parser, release, o.probe)
	} else {
		var t *target
		if t, err = a.open(); err != nil {
			return err
		}
		defer t.close()
		r.Source = t.root.Dir()
		q, w, err = a.explainHost(ctx, t, release, o.probe)
	}
	if err != nil {
		return err
	}
	q.Image, q.Verb, q.Parse = image, o.verb, parser.parse
	if r.Explanation, err = registry.Explain(q); err != nil {
		if _, ok := errors.AsType[*registry.NameError](err); ok {
			return &usageError{err}
		}
		return err
	}
	if !a.structured {
		a.printExplained(r)
	}
	if o.probe {
		w.read, w.release = q.Read, q.Release
		r.Probe, err = a.probe(ctx, r.Explanation, w)
	}
	a.result = r
	if err != nil {
		return err
	}
	if o.probe && !r.Probe.OK {
		return &codeError{exitFailed}
	}
	return nil
}

// explainProfile renders the profile into a root of its own, which is then read as any
// host is. Secrets are left out, since they are not shown, unless they are to be used.
func (a *app) explainProfile(ctx context.Context, parser *hostsParser, release releases.Version, secrets bool) (string, registry.Query, *way, error) {
	var q registry.Query
	fail := func(err error) (string, registry.Query, *way, error) { return "", q, nil, err }
	profile, err := a.load(ctx, a.profile)
	if err != nil {
		return fail(err)
	}
	spec, err := a.resolve(profile, a.portableFacts(), time.Now())
	if err != nil {
		return fail(err)
	}
	if release != (releases.Version{}) {
		spec.Containerd.Version = release
	}
	in := &lenient{inputs: *a.inputs(ctx), note: a.note}
	in.masked = !secrets
	files, faults := render.Files(spec, in)
	more, list := registry.Files(spec, in)
	files, faults = append(files, more...), append(faults, list...)
	if !faults.HasErrors() {
		faults = append(faults, readBack(spec, more)...)
	}
	faults.Sort()
	if faults.HasErrors() {
		return fail(&invalidError{faults})
	}
	a.warn(faults)
	dir := filepath.Join(parser.dir, "root")
	for _, f := range files {
		p := filepath.Join(dir, filepath.FromSlash(f.Path))
		if err := os.MkdirAll(filepath.Dir(p), 0o700); err != nil {
			return fail(fmt.Errorf("explain: %w", err))
		}
		if err := os.WriteFile(p, f.Content, 0o600); err != nil {
			return fail(fmt.Errorf("explain: %w", err))
		}
	}
	root, err := host.OpenRoot(dir)
	if err != nil {
		return fail(fmt.Errorf("explain: %w", err))
	}
	config, err := configtoml.Load(root, render.ConfigPath, spec.Containerd.Version)
	if err != nil {
		return fail(err)
	}
	w := &way{config: config, spec: spec, arch: spec.Arch}
	if secrets {
		w.env = profileEnvironment(spec, in)
	}
	w.unread = in.unread
	return "the profile " + strings.Join(profile.Layers(), ", "), query(root, config, spec.Containerd.Version), w, nil
}

// explainHost reads what is on a host.
func (a *app) explainHost(ctx context.Context, t *target, release releases.Version, probing bool) (registry.Query, *way, error) {
	receipt, err := install.ReadReceipt(t.root)
	if err != nil {
		a.note("the receipt %s: %v; explained without it", install.ReceiptPath, err)
	}
	b := basis{receipt: receipt}
	_, b.facts = a.facts(t.root)
	var open connections
	defer open.close()
	n := checks.NewNode(ctx, a.outside(t, b, &open))
	w := &way{here: t.root.Live()}
	if b.facts.ArchKnown {
		w.arch = b.facts.Arch
	}
	if probing {
		w.env = a.daemonEnvironment(n)
	}
	if release != (releases.Version{}) {
		w.config, err = configtoml.Load(t.root, n.ConfigPath(), release)
		return query(t.root, w.config, release), w, err
	}
	w.config, err = n.Config()
	if err != nil {
		return registry.Query{}, nil, err
	}
	release, _, err = n.Release()
	if release == (releases.Version{}) {
		a.note("which containerd reads these files is not known here: explained by the rules of the newest; --containerd names another")
	}
	return query(t.root, w.config, release), w, err
}

// query is what a root and its config say.
func query(root *host.Root, config *configtoml.Config, release releases.Version) registry.Query {
	if config == nil {
		return registry.Query{}
	}
	q := registry.Query{
		Release: release, Legacy: map[string][]string{}, LegacyTLS: map[string]registry.LegacyTLS{}, Credentials: map[string]string{},
		Exists: func(p string) (bool, error) {
			_, err := root.Stat(p)
			if errors.Is(err, fs.ErrNotExist) {
				return false, nil
			}
			return err == nil, err
		},
		Read: root.ReadFile,
		List: func(dir string) ([]string, error) {
			entries, err := root.ReadDir(dir)
			var names []string
			for _, e := range entries {
				if !e.IsDir() {
					names = append(names, e.Name())
				}
			}
			return names, err
		},
	}
	var place configtoml.Place
	q.ConfigPath, place = config.ConfigPath()
	q.Unset = place == configtoml.Place{}
	r := config.Registry()
	for _, c := range r.Configs {
		if t := c.TLS; c.HasTLS {
			q.LegacyTLS[c.Host] = registry.LegacyTLS{CA: t.CAFile, Cert: t.CertFile, Key: t.KeyFile, SkipVerify: t.InsecureSkipVerify, Place: t.Place.String()}
		}
	}
	for _, c := range config.Credentials() {
		q.Credentials[c.Host] = fmt.Sprintf("%s (%s)", c.Field, c.Place)
	}
	for _, h := range r.Headers {
		q.Headers = append(q.Headers, h.Name)
	}
	for _, m := range r.Mirrors {
		q.Legacy[m.Name] = config.Endpoints(m.Name)
	}
	q.Local = config.LocalPull()
	q.Down, q.NoCRI = down(config), noCRI(config)
	q.NotUnpacked = map[string]string{}
	for _, u := range config.NotUnpacked() {
		q.NotUnpacked[u.Runtime] = u.Snapshotter
	}
	return q
}

// down is why containerd does not start with a config, "" where it does.
func down(config *configtoml.Config) string {
	if len(config.Faults) == 0 {
		return ""
	}
	f := config.Faults[0]
	text := f.Place.String() + ": " + strings.TrimSuffix(strings.TrimSuffix(f.Problem, ": containerd does not start"), ": it does not start")
	if more := len(config.Faults) - 1; more > 0 {
		text += fmt.Sprintf(" (and %d more)", more)
	}
	return text
}

// noCRI is why CRI is off or does not start with a config (ValidateImageConfig in
// internal/cri/config of containerd 2.4.2), "" where it does.
func noCRI(config *configtoml.Config) string {
	if off := config.DisabledCRI(); len(off) > 0 {
		return fmt.Sprintf("CRI is disabled: disabled_plugins has %q (%s)", off[0].Name, off[0].Place)
	}
	r := config.Registry()
	if given, at := config.ConfigPath(); given != "" && len(r.Mirrors) > 0 {
		return fmt.Sprintf("CRI does not start with registry.mirrors (%s) beside config_path (%s): move the mirrors to hosts.toml files", r.Mirrors[0].Place, at)
	}
	for _, x := range r.Auths {
		if _, err := url.Parse(x.Name); err != nil {
			return fmt.Sprintf("CRI does not start with a name in registry.auths that is no URL (%s)", x.Place)
		}
	}
	return ""
}

// shown is a text of somebody else's files as it may go to a terminal.
func shown(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
			continue
		}
		b.WriteString(strings.Trim(strconv.QuoteRuneToASCII(r), "'"))
	}
	return b.String()
}

// printExplained prints what will happen first, then how it comes about.
func (a *app) printExplained(r explained) {
	p := a.paint(a.out)
	what := shown(r.Reference)
	if r.Containerd != "" {
		what += ", containerd " + r.Containerd
	}
	fmt.Fprintf(a.out, "%s, %s\n", p.bold(what), shown(r.Source))
	outcome := p.green(shown(r.Outcome))
	if r.Fails {
		outcome = p.red(shown(r.Outcome))
	}
	fmt.Fprintf(a.out, "%s\n", outcome)
	for i, h := range r.Hosts {
		role := map[string]string{"mirror": "mirror", "server": "server, in place of the registry", "upstream": "the registry itself"}[h.Role]
		fmt.Fprintf(a.out, "\n%d  %s  %s", i+1, p.bold(shown(h.URL)), role)
		if h.From != "" {
			fmt.Fprint(a.out, p.dim("  "+shown(h.From)))
		}
		fmt.Fprintln(a.out)
		line := func(name, format string, args ...any) {
			fmt.Fprintf(a.out, "   %-13s%s\n", name, fmt.Sprintf(format, args...))
		}
		switch {
		case h.Skipped != "" && len(h.Requests) > 0:
			// Where containerd fetches by digest it looks at no capabilities.
			line("for layers", "%s", "and not for the name: "+p.yellow(shown(h.Skipped)))
		case h.Skipped != "":
			line("skipped", "%s", p.yellow(shown(h.Skipped)))
		}
		for _, q := range h.Requests {
			line("", "%-4s %s", q.Method, shown(q.URL))
		}
		for _, q := range h.IfMissing {
			line("if missing", "%-4s %s", q.Method, shown(q.URL))
		}
		for _, ca := range h.CA {
			line("ca", "%s", shown(ca))
		}
		for _, c := range h.Client {
			line("client", "%s, key %s", shown(c[0]), shown(c[1]))
		}
		if h.SkipVerify {
			line("skip_verify", "%s", p.yellow("anybody may answer: certificates are not verified"))
		}
		if h.OverridePath {
			line("path", "as it is written: override_path")
		}
		if h.PlainHTTP != "" {
			line("http", "%s", h.PlainHTTP)
		}
		if h.DialTimeout != "" {
			line("dial timeout", "%s", shown(h.DialTimeout))
		}
		for _, name := range slices.Sorted(maps.Keys(h.Headers)) {
			line("header", "%s: %s", shown(name), h.Headers[name])
		}
		if len(h.Requests) > 0 {
			line("credentials", "%s", shown(h.Credentials))
		}
	}
	fmt.Fprintln(a.out)
	line := func(name, format string, args ...any) {
		fmt.Fprintf(a.out, "%-10s%s\n", name, fmt.Sprintf(format, args...))
	}
	line("ends", "%s", ends(r))
	for _, f := range r.Folders {
		state := "not there"
		switch {
		case f.Chosen:
			state = "counts"
		case f.Found:
			state = "not looked at any more"
		}
		line("folder", "%s: %s", shown(f.Path), state)
	}
	if len(r.Folders) == 0 && len(r.Hosts) > 0 {
		line("folder", "none: config_path is %s", strconv.Quote(r.ConfigPath))
	}
	switch r.Service {
	case "transfer":
		line("pull", "by the transfer service")
	case "local":
		line("pull", "by containerd's CRI itself and not the transfer service, because of %s", shown(strings.Join(r.Local, ", ")))
	}
	var ctr []string
	if r.Ctr.Without != "" {
		ctr = append(ctr, "reads none of this and asks "+r.Ctr.Without)
	}
	if r.Ctr.Command != "" {
		ctr[0] += "; the same way goes"
		ctr = append(ctr, r.Ctr.Command)
	}
	if r.Ctr.Lacks != "" {
		ctr = append(ctr, r.Ctr.Lacks)
	}
	name := "ctr"
	for _, text := range ctr {
		line(name, "%s", shown(text))
		name = ""
	}
	for _, n := range r.Notes {
		line("note", "%s", p.yellow(shown(n)))
	}
}

func ends(r explained) string {
	switch r.End {
	case "upstream":
		return "at the registry itself"
	case "nobody":
		return "before anybody is asked"
	}
	if r.Verb == registry.VerbPush {
		return "there"
	}
	return fmt.Sprintf("without %s: its upstream is never asked", r.Registry)
}
