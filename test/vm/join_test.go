package vm_test

import (
	"context"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// joint is a node that a cluster is to have, and how its runtime answers the kubelet.
type joint struct {
	node
	kubernetes string // the profile's
	pause      string // the sandbox image of that version
	driver     string // what RuntimeConfig answers: the cgroup driver, or the code of an error
	// tells is whether the runtime's status names the sandbox image.
	tells bool
	// network is whether the profile brings one; else a cluster's network addon does.
	network bool
}

func jointOf(version, kubernetes, pause string) joint {
	j := joint{node: nodeOf(version), kubernetes: kubernetes, pause: pause, driver: "SYSTEMD", network: version == "2.1.9"}
	if strings.HasPrefix(version, "1.") {
		j.driver, j.tells = "Unimplemented", true
	}
	return j
}

// profile has the sandbox image follow the Kubernetes version, as it does where nobody names one.
func (j joint) profile() string {
	return fmt.Sprintf("kubernetes: {version: %q}\ncontainerd: {sandboxImage: null}\n", j.kubernetes)
}

// What a kubelet asks of its runtime before it runs a pod is answered as it must be, through
// the endpoints that crictl.yaml has.
//
// This is the oldest containerd; TestBundle asks 2.1, TestJoinKubeadm the others.
func TestJoin(t *testing.T) {
	m := start(t, inAll)
	j := jointOf("1.6.20", "1.28", supply.OlderPause)
	m.give(j.node, j.profile())
	m.exits(0, j.command("apply"))
	checkJoint(m, j)
	if pod := j.runPod(m, "one"); pod.SandboxImage != j.pause {
		t.Errorf("the pod's sandbox is of image %s, want %s", pod.SandboxImage, j.pause)
	}
}

// answer is what inguest join prints.
type answer struct {
	Endpoint, API, Runtime string
	Conditions             map[string]struct {
		Status          bool
		Reason, Message string
	}
	CgroupDriver, CNI, SandboxImage string
	SystemdCgroup                   map[string]bool
	Images                          int
}

func checkJoint(m *machine, j joint) {
	m.t.Helper()
	got := asJSON[answer](m, "inguest join /etc/crictl.yaml")
	want := answer{
		Endpoint: "unix://" + j.address, API: "v1", Runtime: got.Runtime, Conditions: got.Conditions,
		CgroupDriver: j.driver, CNI: "OK", SystemdCgroup: map[string]bool{"runc": true}, Images: got.Images,
	}
	if j.tells {
		want.SandboxImage = j.pause
	}
	if !j.network && strings.Contains(got.CNI, "no network config found in /etc/cni/net.d") {
		want.CNI = got.CNI
	}
	if diff := cmp.Diff(want, got); diff != "" {
		m.t.Errorf("what the runtime answers (-want +got):\n%s", diff)
	}
	if !strings.HasPrefix(got.Runtime, "containerd ") || !strings.Contains(got.Runtime, j.containerd.Version) || got.Images == 0 {
		m.t.Errorf("the runtime is %s with %d images, want containerd %s and the profile's", got.Runtime, got.Images, j.containerd.Version)
	}
	for _, name := range []string{"RuntimeReady", "NetworkReady"} {
		if _, ok := got.Conditions[name]; !ok {
			m.t.Errorf("the runtime says nothing of %s: %v", name, got.Conditions)
		}
	}
	// As clean as crictl info has it: nothing is false, also no condition that newer ones add,
	// such as ContainerdHasNoDeprecationWarnings. Without a network the reason is just that.
	for name, c := range got.Conditions {
		excused := name == "NetworkReady" && !j.network && c.Reason == "NetworkPluginNotReady"
		if !c.Status && !excused || c.Status && name == "NetworkReady" && !j.network {
			m.t.Errorf("%s is %v: %s: %s", name, c.Status, c.Reason, c.Message)
		}
	}
	dump := m.must("containerd config dump")
	if !regexp.MustCompile(`(?m)^\s*sandbox(_image)? = ["']` + regexp.QuoteMeta(j.pause) + `["']$`).MatchString(dump) {
		m.t.Errorf("containerd's sandbox image is not %s:\n%s", j.pause, dump)
	}
	if image := asJSON[struct{ Pinned bool }](m, j.cri("image "+j.pause)); !image.Pinned && j.containerd.Version != "1.6.20" {
		m.t.Errorf("%s is not pinned: the kubelet's garbage collection would take it", j.pause)
	}
}

// What kubeadm's preflight finds wrong on a machine and is about what nodeprep provides.
func provided() []string {
	return []string{"CRI", "ContainerRuntimeVersion", "FileContent--proc-sys-net-ipv4-ip_forward"}
}

// notProvided are the other errors that kubeadm's preflight has for this guest, and why they
// remain.
func notProvided() map[string]string {
	return map[string]string{
		"Mem":                "the guest has 1 GiB, and a control plane wants 1700 MB; ignored by name, since guests share this machine's memory",
		"NumCPU":             "the guest has one, and a control plane wants two; ignored by name, since emulated processors wait for each other",
		"SystemVerification": "the kernel and its cgroups, but it wants a kubelet's version first, and nodeprep installs no kubelet; it passes with one",
		"KubeletVersion":     "the same",
	}
}

// small is what a control plane alone finds too small; a worker does not ask.
func small() []string { return []string{"Mem", "NumCPU"} }

const ignored = "--ignore-preflight-errors=Mem,NumCPU"

// warned are the warnings that remain, and why.
func (j joint) warned() map[string]string {
	all := map[string]string{
		"Hostname":        "nobody resolves the node's name where there is no network",
		"Service-kubelet": "no kubelet, no unit",
	}
	if strings.HasPrefix(j.containerd.Version, "1.") {
		all["ContainerRuntimeVersion"] = "containerd 1 has no RuntimeConfig; kubelets take the cgroup driver from their own configuration, up to 1.36"
	}
	return all
}

// The real kubeadm finds a node that it can take, where before it found none. It runs with the
// whole matrix alone: it is dear to build.
func TestJoinKubeadm(t *testing.T) {
	t.Parallel()
	for _, version := range []string{"1.7.24", "2.4.2"} {
		t.Run("containerd "+version, func(t *testing.T) {
			s := inEvery
			if version == "2.4.2" {
				s = inAll
			}
			lab := wanted(t, s)
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
			t.Cleanup(cancel)
			kubeadm, kubernetes, err := lab.Kubeadm(ctx)
			if err != nil {
				t.Fatal(err)
			}
			started, err := lab.Start(ctx, t.Name())
			m := held(t, ctx, started, err)
			m.plug("kubeadm", map[string]string{"kubeadm": kubeadm})
			minor := regexp.MustCompile(`^v(1\.\d+)\.`).FindStringSubmatch(kubernetes)
			images := strings.Fields(m.must("/media/kubeadm/kubeadm config images list --kubernetes-version " + kubernetes))
			pause := slices.IndexFunc(images, func(name string) bool { return strings.Contains(name, "/pause:") })
			if minor == nil || pause < 0 {
				t.Fatalf("kubeadm %s wants the images %v", kubernetes, images)
			}
			// kubeadm itself says which sandbox image is right.
			j := jointOf(version, minor[1], images[pause])
			writeKubeadmConfig(m, j, kubernetes)

			all := slices.Concat(provided(), keysOf(notProvided()))
			m.preflight(1, "init", "", all)
			m.preflight(1, "join", "", without(all, small()...))

			// A control plane in a room without a network: its images come with the profile.
			m.give(j.node, j.profile()+m.plugImages(images))
			m.exits(0, j.command("apply"))
			checkJoint(m, j)

			warned := keysOf(j.warned())
			m.says(m.preflight(1, "init", "", keysOf(notProvided()), warned...), "kubelet")
			m.preflight(1, "join", "", without(keysOf(notProvided()), small()...), warned...)

			// With a kubelet nothing is left but the guest's size, and the images are there.
			if err := m.WriteFile(ctx, "/usr/bin/kubelet", "#!/bin/sh\necho Kubernetes "+kubernetes+"\n"); err != nil {
				t.Fatal(err)
			}
			m.must("chmod 755 /usr/bin/kubelet")
			m.preflight(0, "init", ignored, nil, append(warned, small()...)...)
			// A worker gets past all of it, and there is no cluster that it could join.
			m.says(m.preflight(1, "join", "", nil, warned...), "cluster-info", "network is unreachable")
			checkSocket(m, j, append(warned, small()...))
			checkOtherImages(m, j, append(warned, small()...))
			checkKubeletConfig(m)
		})
	}
}

// writeKubeadmConfig writes /root/VERB.yaml for kubeadm's verbs, without anything that a
// user need not say.
func writeKubeadmConfig(m *machine, j joint, kubernetes string) {
	m.t.Helper()
	const (
		head = "apiVersion: kubeadm.k8s.io/v1beta4\nkind: "
		// There is no network to take the address of.
		initial = head + "InitConfiguration\nlocalAPIEndpoint: {advertiseAddress: 192.0.2.10}\nnodeRegistration: {name: node%s}\n---\n" +
			head + "ClusterConfiguration\nkubernetesVersion: %s\n"
		join = head + "JoinConfiguration\nnodeRegistration: {name: node%s}\ntimeouts: {discovery: 2s}\n" +
			"discovery: {bootstrapToken: {token: abcdef.0123456789abcdef, apiServerEndpoint: \"192.0.2.1:6443\", unsafeSkipCAVerification: true}}\n"
	)
	socket := fmt.Sprintf(", criSocket: %q", "unix://"+j.address)
	for name, text := range map[string]string{
		"init":     fmt.Sprintf(initial, socket, kubernetes),
		"join":     fmt.Sprintf(join, socket),
		"detected": fmt.Sprintf(initial, "", kubernetes),
		"other":    fmt.Sprintf(initial, socket, kubernetes) + "imageRepository: registry.example.com/k8s\n",
	} {
		if err := m.WriteFile(m.ctx, "/root/"+name+".yaml", text); err != nil {
			m.t.Fatal(err)
		}
	}
}

// preflight runs kubeadm's preflight with /root/CONFIG.yaml, which must end with that code and
// find exactly these errors and, where some are given, exactly these warnings. It returns what was said.
func (m *machine) preflight(code int, config, options string, faults []string, warnings ...string) string {
	m.t.Helper()
	verb := "init"
	if config == "join" {
		verb = config
	}
	said := m.exits(code, fmt.Sprintf("/media/kubeadm/kubeadm %s phase preflight --config /root/%s.yaml %s", verb, config, options))
	found := map[string]map[string]bool{"ERROR": {}, "WARNING": {}}
	for _, line := range regexp.MustCompile(`(?m)^\t\[(ERROR|WARNING) ([^]]+)\]`).FindAllStringSubmatch(said, -1) {
		found[line[1]][line[2]] = true
	}
	wanted := map[string][]string{"ERROR": faults}
	if len(warnings) > 0 {
		wanted["WARNING"] = warnings
	}
	for kind, want := range wanted {
		if diff := cmp.Diff(slices.Sorted(slices.Values(want)), keysOf(found[kind])); diff != "" {
			m.t.Errorf("each %s of kubeadm's preflight with %s %s (-want +got):\n%s%s", kind, config, options, diff, said)
		}
	}
	return said
}

// checkSocket leaves the socket to kubeadm, which looks where containerd's is by default.
func checkSocket(m *machine, j joint, warned []string) {
	m.t.Helper()
	if j.address == "/run/containerd/containerd.sock" {
		m.preflight(0, "detected", ignored, nil, warned...)
		return
	}
	said := m.preflight(1, "detected", ignored, []string{"CRI", "ContainerRuntimeVersion"}, without(warned, "ContainerRuntimeVersion")...)
	m.says(said, "unix:///var/run/containerd/containerd.sock")
}

// checkOtherImages has kubeadm want images from elsewhere: it cannot pull them, and where the
// runtime tells of its sandbox image, it says that this is another one.
func checkOtherImages(m *machine, j joint, warned []string) {
	m.t.Helper()
	said := m.preflight(1, "other", ignored, []string{"ImagePull"}, warned...)
	m.says(said, "registry.example.com/k8s/kube-apiserver")
	if got := strings.Contains(said, "is inconsistent with that used by kubeadm"); got != j.tells {
		m.t.Errorf("kubeadm saw that the sandbox image is another one: %v, want %v:\n%s", got, j.tells, said)
	}
	if j.tells {
		m.says(said, j.pause, "registry.example.com/k8s/pause")
	}
}

// checkKubeletConfig has kubeadm write the kubelet's configuration, as init and join do, and
// nodeprep read it: it is for this socket, and for the cgroup driver that containerd has.
func checkKubeletConfig(m *machine) {
	m.t.Helper()
	m.exits(0, "/media/kubeadm/kubeadm init phase kubelet-start --config /root/init.yaml")
	ids := []string{"config/kubelet-cgroup-driver", "foreign/kubelet-endpoint"}
	report := asJSON[struct {
		Findings []struct{ ID, Verdict, Observed string }
	}](m, "nodeprep check --offline -o json --only "+strings.Join(ids, " --only "))
	verdicts := make(map[string]string)
	for _, f := range report.Findings {
		verdicts[f.ID] = f.Verdict
	}
	for _, id := range ids {
		if verdicts[id] != "pass" {
			m.t.Errorf("%s is %q, want pass: %+v", id, verdicts[id], report)
		}
	}
}

// plugImages gives the machine archives of images of these names, and returns the profile's
// lines for them.
func (m *machine) plugImages(names []string) string {
	m.t.Helper()
	dir, content, lines := m.t.TempDir(), make(map[string]string), "images:\n"
	for i, name := range names {
		file := strconv.Itoa(i) + ".tar"
		content[file] = filepath.Join(dir, file)
		if err := supply.WriteImage(content[file], name, "amd64"); err != nil {
			m.t.Fatal(err)
		}
		lines += "  - {file: /media/images/" + file + ", pin: true}\n"
	}
	m.plug("images", content)
	return lines
}

func keysOf[V any](m map[string]V) []string {
	var all []string
	for k := range m {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

func without(all []string, some ...string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}
