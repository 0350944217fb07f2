package checks

import (
	"strings"
	"testing"

	"github.com/nodeprep/nodeprep/systemd"
)

const kubeadmConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
containerRuntimeEndpoint: ""
failSwapOn: false
memorySwap:
  swapBehavior: LimitedSwap
protectKernelDefaults: true
`

func TestKubeletOfKubeadm(t *testing.T) {
	n := fake(t, files{
		"/var/lib/kubelet/config.yaml":       kubeadmConfig,
		"/var/lib/kubelet/kubeadm-flags.env": "# made by kubeadm\nKUBELET_KUBEADM_ARGS=\"--container-runtime-endpoint=unix:///run/x.sock --pod-infra-container-image=registry.k8s.io/pause:3.9\"\n",
		"/etc/default/kubelet":               "KUBELET_EXTRA_ARGS=\n",
		"/var/lib/dpkg/status":               "Package: kubeadm\nStatus: install ok installed\nVersion: 1.30.1-1.1\n\nPackage: kubelet\nStatus: hold ok installed\nVersion: 1.29.4-2.1\n\n",
	})
	k, err := n.Kubelet()
	if err != nil || k == nil {
		t.Fatal(k, err)
	}
	for _, c := range []struct{ what, got, want string }{
		{"path", k.Path, "/var/lib/kubelet/config.yaml"},
		{"driver", k.CgroupDriver, "systemd"},
		{"driver's place", k.Place("cgroupDriver"), "/var/lib/kubelet/config.yaml:3"},
		{"endpoint", k.ContainerRuntimeEndpoint, "unix:///run/x.sock"},
		{"endpoint's place", k.Place("containerRuntimeEndpoint"), "/var/lib/kubelet/kubeadm-flags.env:2"},
		{"swap", k.SwapBehavior, "LimitedSwap"},
		{"sandbox", k.PodInfraContainerImage, "registry.k8s.io/pause:3.9"},
		{"version", k.Version, "1.29.4"},
		{"place of what is not set", k.Place("failCgroupV1"), "/var/lib/kubelet/config.yaml"},
	} {
		if c.got != c.want {
			t.Errorf("%s is %q, want %q", c.what, c.got, c.want)
		}
	}
	if k.FailSwapOn == nil || *k.FailSwapOn || k.FailCgroupV1 != nil || k.ProtectKernelDefaults == nil || !*k.ProtectKernelDefaults {
		t.Errorf("%+v", k)
	}
	if k.Lines["failSwapOn"] != 5 || k.Lines["containerRuntimeEndpoint"] != 0 {
		t.Errorf("lines %v", k.Lines)
	}
}

func TestKubeletThatRuns(t *testing.T) {
	n := fake(t, files{
		"/etc/kubernetes/own.json":         `{"kind": "KubeletConfiguration", "cgroupDriver": "cgroupfs"}`,
		"/etc/kubernetes/own.d/10-a.conf":  "cgroupDriver: systemd\n",
		"/etc/kubernetes/own.d/README":     "cgroupDriver: nonsense\n",
		"/var/lib/kubelet/config.yaml":     "cgroupDriver: nonsense\n",
		"/proc/77/cmdline":                 "/usr/bin/kubelet\x00--config=/etc/kubernetes/own.json\x00--config-dir\x00/etc/kubernetes/own.d\x00--fail-swap-on=false\x00",
		"/proc/77/exe":                     "-> /usr/bin/kubelet",
		"/usr/bin/kubelet":                 "no program at all",
		"/var/lib/kubelet/kubeadm-flags.x": "",
	}, withUnits(units{"kubelet.service": systemd.Properties{MainPID: 77}}))
	k, err := n.Kubelet()
	if err != nil || k == nil {
		t.Fatal(k, err)
	}
	if k.CgroupDriver != "systemd" || k.Place("cgroupDriver") != "/etc/kubernetes/own.d/10-a.conf:1" {
		t.Errorf("driver %q of %s: the later file wins", k.CgroupDriver, k.Place("cgroupDriver"))
	}
	if file, line := k.Line("cgroupDriver"); file != "/etc/kubernetes/own.d/10-a.conf" || line != 1 || k.Lines["cgroupDriver"] != 0 {
		t.Errorf("line %d of %s: the drop-in's, and none of %s: %v", line, file, k.Path, k.Lines)
	}
	if file, line := k.Line("failSwapOn"); file != "" || line != 0 {
		t.Errorf("line %d of %s for a flag", line, file)
	}
	if k.FailSwapOn == nil || *k.FailSwapOn || k.Place("failSwapOn") != "kubelet's command line" {
		t.Errorf("failSwapOn %v of %s: the command line wins", k.FailSwapOn, k.Place("failSwapOn"))
	}
	if k.Version != "" {
		t.Errorf("version %q of a program that has none", k.Version)
	}
}

func TestKubeletThatIsNotThere(t *testing.T) {
	for name, f := range map[string]files{
		"nothing":            {},
		"a package's sample": {"/etc/default/kubelet": "KUBELET_EXTRA_ARGS=\n"},
	} {
		if k, err := fake(t, f).Kubelet(); k != nil || err != nil {
			t.Errorf("%s: %+v %v", name, k, err)
		}
	}
	for name, c := range map[string]struct{ content, want string }{
		"broken":         {"a: [", "read /var/lib/kubelet/config.yaml"},
		"a list":         {"- a\n", "it is no KubeletConfiguration"},
		"a word as bool": {"failSwapOn: perhaps\n", `read /var/lib/kubelet/config.yaml:1: failSwapOn is "perhaps", want true or false`},
	} {
		k, err := fake(t, files{"/var/lib/kubelet/config.yaml": c.content}).Kubelet()
		if k != nil || err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v %v, want %q", name, k, err, c.want)
		}
	}
}

func TestKubeletVersion(t *testing.T) {
	const config = "/var/lib/kubelet/config.yaml"
	status := "Package: kubelet\nStatus: install ok installed\nVersion: 1.33.1-1.1\n\n"
	said := prints(map[string]string{"/usr/bin/kubelet --version": "Kubernetes v1.31.2\n", "/opt/bin/kubelet --version": "Kubernetes v1.34.1+k3s1\n", "/usr/local/bin/kubelet --version": "flag provided but not defined"})
	runs := func(o *Outside) {
		said(o)
		withUnits(units{"kubelet.service": systemd.Properties{MainPID: 77}})(o)
	}
	for name, c := range map[string]struct {
		files  files
		change func(*Outside)
		want   string
	}{
		"it prints":                {files{config: "kind: x\n", "/usr/bin/kubelet": "x"}, said, "1.31.2"},
		"the one that runs":        {files{config: "kind: x\n", "/usr/bin/kubelet": "x", "/opt/bin/kubelet": "x", "/proc/77/cmdline": "kubelet\x00", "/proc/77/exe": "-> /opt/bin/kubelet", "/var/lib/dpkg/status": status}, runs, "1.34.1"},
		"the package's":            {files{config: "kind: x\n", "/usr/bin/kubelet": "x", "/var/lib/dpkg/status": status}, said, "1.33.1"},
		"it prints something else": {files{config: "kind: x\n", "/usr/local/bin/kubelet": "x"}, said, ""},
		"it is not there":          {files{config: "kind: x\n"}, said, ""},
		"in an image":              {files{config: "kind: x\n", "/usr/bin/kubelet": "x"}, func(o *Outside) { said(o); o.Live = false }, ""},
	} {
		t.Run(name, func(t *testing.T) {
			k, err := fake(t, c.files, c.change).Kubelet()
			if err != nil || k == nil || k.Version != c.want {
				t.Errorf("%+v %v, want version %q", k, err, c.want)
			}
		})
	}
}
