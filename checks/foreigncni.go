package checks

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"
)

// cniFiles are the files that containerd looks at for networks, in its order, and how many
// of them it uses: 0 is all.
func (n *Node) cniFiles() (files []string, most int, place string, err error) {
	dir, most := "/etc/cni/net.d", 1
	if c, err := n.Config(); err == nil {
		_, confDir, _, at, _ := c.CNI()
		dir, place = confDir, at.String()
		most, _ = c.MaxConfNum()
	}
	entries, err := n.Host.Root.ReadDir(dir)
	if err != nil && !absent(err) {
		return nil, most, place, err
	}
	for _, e := range entries {
		if !e.IsDir() && slices.Contains([]string{".conf", ".conflist", ".json"}, path.Ext(e.Name())) {
			files = append(files, path.Join(dir, e.Name()))
		}
	}
	return files, most, place, nil
}

// cniFile is what a network's file says (CNI specification, Network configuration format).
type cniFile struct {
	Name    string   `json:"name"`
	Type    string   `json:"type"`
	Plugins []cniUse `json:"plugins"`
}

type cniUse struct {
	Type string `json:"type"`
}

// readCNI reads a network's file and says what is wrong with it, as libcni does.
func (n *Node) readCNI(file string) (types []string, fault, err error) {
	b, err := n.Host.Root.ReadFile(file)
	if err != nil {
		return nil, nil, err
	}
	var f cniFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil, fmt.Errorf("it is no JSON: %w", err), nil
	}
	uses := f.Plugins
	if path.Ext(file) != ".conflist" {
		uses = []cniUse{{f.Type}}
	}
	for _, u := range uses {
		if u.Type == "" {
			return nil, errors.New("a plugin in it has no type"), nil
		}
		types = append(types, u.Type)
	}
	switch {
	case len(types) == 0:
		return nil, errors.New("it has no plugins"), nil
	case f.Name == "" && path.Ext(file) == ".conflist":
		return nil, errors.New("it has no name"), nil
	}
	return types, nil, nil
}

// clusterNetwork says whether a network is one that spans nodes: of a cluster's own CNI,
// by the types and the file names that their installers write.
func clusterNetwork(file string, types []string) bool {
	known := []string{
		"calico", "canal", "cilium", "flannel", "weave", "antrea", "multus", "kube-ovn", "ovn-k8s", "kube-router", "kuberouter",
		"kindnet", "aws", "azure", "romana", "contiv", "spiderpool", "terway", "netbird", "k8s",
	}
	for _, word := range append([]string{path.Base(file)}, types...) {
		if slices.ContainsFunc(known, func(k string) bool { return strings.Contains(word, k) }) {
			return true
		}
	}
	return false
}

// ownNetwork is the file of the network that a profile has.
const ownNetwork = "10-containerd-net.conflist"

func cniConf(_ context.Context, n *Node) []Result {
	files, most, _, err := n.cniFiles()
	if err != nil {
		return unknown(err)
	}
	if len(files) == 0 {
		return pass("no network is configured: pods wait for the cluster's CNI")
	}
	used, shadowed := files, []string(nil)
	if most > 0 && len(files) > most {
		used, shadowed = files[:most], files[most:]
	}
	off := func(file string) string {
		return "# pods that have this network keep it until they are made anew; containerd sees the change by itself\n" + n.putAside(file)
	}
	var faults []Result
	first, ofCluster := used[0], false
	for _, file := range used {
		types, fault, err := n.readCNI(file)
		switch {
		case err != nil:
			return unknown(err)
		case fault != nil:
			faults = append(faults, Result{Verdict: Fail, Object: file, Observed: fault.Error(), Wanted: "a network, or no such file", Place: file, Remedy: off(file)})
		}
		ofCluster = ofCluster || clusterNetwork(file, types)
	}
	if len(faults) > 0 {
		return faults
	}
	wantsOwn := n.Spec != nil && n.Spec.CNI.Network != nil
	for _, file := range shadowed {
		types, _, err := n.readCNI(file)
		if err != nil {
			return unknown(err)
		}
		r := Result{Object: first, Observed: "comes before " + file + ", which is not used", Place: first, Remedy: off(first)}
		switch {
		case clusterNetwork(file, types) && !ofCluster:
			r.Verdict, r.Wanted = Fail, "the cluster's network first"
			if wantsOwn && path.Base(first) == ownNetwork {
				r.Note = "the profile's own network and a cluster's exclude each other: set cni.network to none"
			}
		case wantsOwn && path.Base(file) == ownNetwork && ofCluster:
			r.Verdict, r.Wanted = Warn, "the profile's network, or none in the profile"
			r.Remedy = "# pods get the cluster's network: set cni.network to none in the profile"
		case wantsOwn && path.Base(file) == ownNetwork:
			r.Verdict, r.Wanted = Fail, "the profile's network first"
		default:
			continue
		}
		return []Result{r}
	}
	base := path.Base(first)
	if n.forKubernetes() && !ofCluster && (strings.Contains(base, "podman") || strings.Contains(base, "crio") || strings.Contains(base, "nerdctl")) {
		return []Result{{
			Verdict: Warn, Object: first, Observed: "pods get this network, which another program made for itself", Wanted: "the cluster's network", Place: first, Remedy: off(first),
		}}
	}
	return pass("%s", strings.Join(used, ", "))
}
