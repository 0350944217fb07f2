package checks

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
)

// Kubelet is what a kubelet on this host is configured to be: its files and, where it
// runs, its command line, which wins. Fields are "" where nothing says so.
type Kubelet struct {
	Path         string // its configuration file, "" where it has none
	CgroupDriver string
	// FailSwapOn and the others are nil where the kubelet's default holds.
	FailSwapOn, FailCgroupV1, ProtectKernelDefaults *bool
	SwapBehavior                                    string // memorySwap.swapBehavior
	ContainerRuntimeEndpoint                        string
	// PodInfraContainerImage is the sandbox image that kubeadm tells it to spare.
	PodInfraContainerImage string
	// Lines has the line in Path of each key that is set there and that nothing overrides,
	// by another file either.
	Lines map[string]int
	// Version is the kubelet's, "" where it cannot be told.
	Version string

	places map[string]string
	files  map[string]fileLine
}

type fileLine struct {
	file string
	line int
}

// Place is where a key of KubeletConfiguration is set, as FILE:LINE, else its file.
func (k *Kubelet) Place(key string) string {
	if p, ok := k.places[key]; ok {
		return p
	}
	return k.Path
}

// Line is the file of KubeletConfiguration that sets a key, and its line there; 0 where
// none does, or where a flag does.
func (k *Kubelet) Line(key string) (file string, line int) {
	at := k.files[key]
	return at.file, at.line
}

// kubeletFiles are where installers put the kubelet's configuration: kubeadm, EKS and
// kubespray.
func kubeletFiles() []string {
	return []string{
		"/var/lib/kubelet/config.yaml", "/etc/kubernetes/kubelet/config.json", "/etc/kubernetes/kubelet/kubelet-config.json",
		"/etc/kubernetes/kubelet-config.yaml",
	}
}

// kubeletFlagFiles have flags that kubeadm's unit adds to the command line.
func kubeletFlagFiles() []string {
	return []string{"/var/lib/kubelet/kubeadm-flags.env", "/etc/default/kubelet", "/etc/sysconfig/kubelet"}
}

// kubeletFlags are flags and the keys of KubeletConfiguration that they override
// (kubelet(1), "kubelet --help").
func kubeletFlags() map[string]string {
	return map[string]string{
		"--cgroup-driver": "cgroupDriver", "--fail-swap-on": "failSwapOn", "--protect-kernel-defaults": "protectKernelDefaults",
		"--container-runtime-endpoint": "containerRuntimeEndpoint", "--pod-infra-container-image": "podInfraContainerImage",
		"--fail-cgroupv1": "failCgroupV1",
	}
}

// Kubelet is nil where no kubelet is configured.
func (n *Node) Kubelet() (*Kubelet, error) {
	return remember(n, "kubelet", func(ctx context.Context) (*Kubelet, error) {
		args, exe, err := n.runningKubelet()
		if err != nil {
			return nil, err
		}
		k := &Kubelet{Lines: map[string]int{}, places: map[string]string{}, files: map[string]fileLine{}}
		files := kubeletFiles()
		if p := flag(args, "--config"); p != "" {
			files = []string{p}
		}
		for _, p := range files {
			k.Path = p
			ok, err := k.file(n, p)
			if err != nil {
				return nil, err
			}
			if ok {
				break
			}
			k.Path = ""
		}
		if dir := flag(args, "--config-dir"); dir != "" {
			entries, err := n.Host.Root.ReadDir(dir)
			if err != nil && !absent(err) {
				return nil, err
			}
			for _, e := range entries {
				if strings.HasSuffix(e.Name(), ".conf") {
					if _, err := k.file(n, path.Join(dir, e.Name())); err != nil {
						return nil, err
					}
				}
			}
		}
		if err := k.flags(n, args); err != nil {
			return nil, err
		}
		if k.Path == "" && len(k.places) == 0 && args == nil {
			return nil, nil
		}
		k.Version = n.kubeletVersion(ctx, exe)
		return k, nil
	})
}

// runningKubelet is the command line and program of the kubelet that runs, nothing where
// none does.
func (n *Node) runningKubelet() (args []string, exe string, err error) {
	if !n.Live {
		return nil, "", nil
	}
	pid := 0
	if n.Facts.SystemdInit && n.Units != nil {
		// A systemd that does not answer is for the checks that need it to report; the
		// files say nearly all.
		if unit, err := n.Unit("kubelet.service"); err == nil {
			pid = unit.MainPID
		}
	}
	if pid == 0 {
		return nil, "", nil
	}
	proc := "/proc/" + strconv.Itoa(pid)
	b, err := n.Host.Root.ReadFile(proc + "/cmdline")
	if absent(err) {
		return nil, "", nil
	}
	if err != nil {
		return nil, "", err
	}
	exe, _ = n.Host.Root.Readlink(proc + "/exe") // for its version only, which may stay unknown
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), exe, nil
}

// flag is the value of a flag on a command line, the last one given; "" without one.
func flag(args []string, name string) string {
	value := ""
	for i, a := range args {
		switch key, v, ok := strings.Cut(a, "="); {
		case key != name:
		case ok:
			value = v
		case i+1 < len(args) && !strings.HasPrefix(args[i+1], "-"):
			value = args[i+1]
		default:
			value = "true"
		}
	}
	return value
}

// file takes over what a file of KubeletConfiguration (kubelet.config.k8s.io/v1beta1;
// JSON is YAML) sets. ok is false where there is none.
func (k *Kubelet) file(n *Node, p string) (ok bool, err error) {
	b, err := n.Host.Root.ReadFile(p)
	if absent(err) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(b, &doc); err != nil {
		return false, fmt.Errorf("read %s: %w", p, err)
	}
	if len(doc.Content) == 0 {
		return true, nil
	}
	if doc.Content[0].Kind != yaml.MappingNode {
		return false, fmt.Errorf("read %s: it is no KubeletConfiguration", p)
	}
	return true, k.table(p, "", doc.Content[0])
}

func (k *Kubelet) table(p, prefix string, m *yaml.Node) error {
	for i := 0; i+1 < len(m.Content); i += 2 {
		key, value := m.Content[i], m.Content[i+1]
		name := prefix + key.Value
		if prefix == "" {
			k.files[name] = fileLine{p, key.Line}
			if delete(k.Lines, name); p == k.Path {
				k.Lines[name] = key.Line
			}
			k.places[name] = p + ":" + strconv.Itoa(key.Line)
		}
		if value.Kind == yaml.MappingNode && name == "memorySwap" {
			if err := k.table(p, "memorySwap.", value); err != nil {
				return err
			}
		}
		if value.Kind != yaml.ScalarNode || value.Tag == "!!null" {
			continue
		}
		if err := k.set(name, value.Value); err != nil {
			return fmt.Errorf("read %s:%d: %w", p, key.Line, err)
		}
	}
	return nil
}

func (k *Kubelet) set(key, value string) error {
	text := map[string]*string{
		"cgroupDriver": &k.CgroupDriver, "containerRuntimeEndpoint": &k.ContainerRuntimeEndpoint,
		"memorySwap.swapBehavior": &k.SwapBehavior, "podInfraContainerImage": &k.PodInfraContainerImage,
	}
	truth := map[string]**bool{
		"failSwapOn": &k.FailSwapOn, "failCgroupV1": &k.FailCgroupV1, "protectKernelDefaults": &k.ProtectKernelDefaults,
	}
	if t, ok := text[key]; ok {
		*t = value
	} else if t, ok := truth[key]; ok {
		b, err := strconv.ParseBool(value)
		if err != nil {
			return fmt.Errorf("%s is %q, want true or false", key, value)
		}
		*t = &b
	}
	return nil
}

// flags takes over what the command line says or, where no kubelet runs, the files from
// which the next one's is made.
func (k *Kubelet) flags(n *Node, args []string) error {
	var faults []error
	for _, p := range kubeletFlagFiles() {
		b, err := n.Host.Root.ReadFile(p)
		if absent(err) {
			continue
		}
		if err != nil {
			return err
		}
		line := 0
		for l := range strings.Lines(string(b)) {
			if line++; strings.HasPrefix(strings.TrimSpace(l), "#") {
				continue
			}
			_, l, _ = strings.Cut(l, "=")
			for name, key := range kubeletFlags() {
				if v := flag(strings.Fields(strings.Trim(strings.TrimSpace(l), `"'`)), name); v != "" {
					faults = append(faults, k.override(key, v, p+":"+strconv.Itoa(line)))
				}
			}
		}
	}
	for name, key := range kubeletFlags() {
		if v := flag(args, name); v != "" {
			place := "kubelet's command line"
			if p := k.places[key]; slices.ContainsFunc(kubeletFlagFiles(), func(f string) bool { return strings.HasPrefix(p, f+":") }) {
				place = p
			}
			faults = append(faults, k.override(key, v, place))
		}
	}
	return errors.Join(faults...)
}

func (k *Kubelet) override(key, value, place string) error {
	delete(k.Lines, key)
	delete(k.files, key)
	k.places[key] = place
	if err := k.set(key, value); err != nil {
		return fmt.Errorf("read %s: %w", place, err)
	}
	return nil
}

// kubeletVersion is what the package database says of the package's program, else what the
// program itself prints, "Kubernetes v1.34.1": its headers do not have it (-trimpath). ""
// is that nothing tells, as in an image that has it from no package.
func (n *Node) kubeletVersion(ctx context.Context, exe string) string {
	const packages = "/usr/bin/kubelet"
	if exe == "" || exe == packages {
		// Its database is read for other checks, too; a start takes a board a second.
		if version, _ := n.packaged("kubelet"); version != "" {
			upstream, _, _ := strings.Cut(version, "-") // 1.34.1-1.1
			return upstream
		}
	}
	if !n.Live {
		return ""
	}
	for _, p := range []string{exe, packages, "/usr/local/bin/kubelet"} {
		if p == "" || !n.exists(p) {
			continue
		}
		out, err := n.run(ctx, p, "--version")
		if m := kubeletPrints().FindStringSubmatch(out); err == nil && m != nil {
			return m[1]
		}
		break
	}
	return ""
}

func kubeletPrints() *regexp.Regexp {
	return regexp.MustCompile(`^Kubernetes v([0-9]+\.[0-9]+\.[0-9]+)`)
}

// packaged is the version of an installed package, "" where dpkg's database does not have
// it (dpkg(1), /var/lib/dpkg/status).
func (n *Node) packaged(name string) (string, error) {
	status, err := remember(n, "dpkg status", func(context.Context) (string, error) {
		b, err := n.Host.Root.ReadFile("/var/lib/dpkg/status")
		if absent(err) {
			return "", nil
		}
		return "\n" + string(b), err
	})
	if err != nil {
		return "", err
	}
	_, stanza, ok := strings.Cut(status, "\nPackage: "+name+"\n")
	if !ok {
		return "", nil
	}
	stanza, _, _ = strings.Cut(stanza, "\n\n")
	installed, version := false, ""
	for line := range strings.SplitSeq(stanza, "\n") {
		if s, ok := strings.CutPrefix(line, "Status: "); ok {
			installed = strings.HasSuffix(s, " installed")
		}
		if v, ok := strings.CutPrefix(line, "Version: "); ok {
			version = v
		}
	}
	if !installed {
		return "", nil
	}
	return version, nil
}
