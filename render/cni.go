package render

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"

	"github.com/nodeprep/nodeprep/internal/desired"
	"github.com/nodeprep/nodeprep/profiles"
)

// cniVersion is what the libcni of containerd 1.6 already speaks.
const cniVersion = "1.0.0"

type conflist struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Plugins    []any  `json:"plugins"`
}

type bridgePlugin struct {
	Type        string `json:"type"`
	Bridge      string `json:"bridge"`
	IsGateway   bool   `json:"isGateway"`
	IPMasq      bool   `json:"ipMasq"`
	PromiscMode bool   `json:"promiscMode"`
	MTU         int    `json:"mtu,omitempty"`
	IPAM        ipam   `json:"ipam"`
}

type ipam struct {
	Type   string        `json:"type"`
	Ranges [][]ipamRange `json:"ranges"`
	Routes []ipamRoute   `json:"routes"`
}

type ipamRange struct {
	Subnet string `json:"subnet"`
}

type ipamRoute struct {
	Dst string `json:"dst"`
}

type portmapPlugin struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
}

// conflistFile is a bridge network as containerd's own sample has it (CNI spec 1.0.0;
// www.cni.dev/plugins/current/main/bridge). Promiscuous mode lets a pod reach itself
// through its own service address. The folder is watched: no restart.
func conflistFile(spec *profiles.Spec) (desired.File, error) {
	f := desired.File{Path: ConflistPath, Format: desired.FormatJSON, Origin: spec.Origin("cni.network")}
	n := spec.CNI.Network
	if n == nil {
		return f, nil
	}
	bridge := bridgePlugin{
		Type: "bridge", Bridge: n.Bridge, IsGateway: true, IPMasq: n.IPMasq, PromiscMode: true, MTU: n.MTU,
		IPAM: ipam{Type: "host-local"},
	}
	for _, s := range n.Subnets {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			return f, fmt.Errorf("subnet %q: want CIDR, such as 10.88.0.0/16", s)
		}
		all := "0.0.0.0/0"
		if prefix.Addr().Is6() {
			all = "::/0"
		}
		bridge.IPAM.Ranges = append(bridge.IPAM.Ranges, []ipamRange{{s}})
		bridge.IPAM.Routes = append(bridge.IPAM.Routes, ipamRoute{all})
	}
	list := conflist{CNIVersion: cniVersion, Name: n.Name, Plugins: []any{bridge}}
	if n.PortMapping {
		list.Plugins = append(list.Plugins, portmapPlugin{"portmap", map[string]bool{"portMappings": true}})
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	err := e.Encode(list)
	f.Content = b.Bytes()
	return f, err
}
