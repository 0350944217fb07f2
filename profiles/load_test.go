package profiles

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/internal/diag"
)

// files is a folder of profiles; reading another is an error.
type files map[string]string

func (f files) read(name string) ([]byte, error) {
	text, ok := f[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return []byte(text), nil
}

// findings loads and resolves one profile for no host in particular.
func findings(text string) diag.List {
	p, list := Load("p.yaml", files{"p.yaml": text}.read)
	_, more := Resolve(p, Facts{})
	list = append(list, more...)
	list.Sort()
	return list
}

func lines(list diag.List) []string {
	out := []string{}
	for _, d := range list {
		out = append(out, d.String())
	}
	return out
}

// TestFaults shows every kind of fault as the user sees it.
func TestFaults(t *testing.T) {
	digest := strings.Repeat("ab", 32)
	for _, test := range []struct {
		name, profile string
		want          []string
	}{
		// The file as such.
		{"empty file", "", nil},
		{"comments alone", "# nothing\n---\n# yet\n", nil},
		{"not a map", "- a\n", []string{`p.yaml:1:1: found a list, want a profile: a map with keys such as containerd (see nodeprep init for a starter)`}},
		{"text", "hello\n", []string{`p.yaml:1:1: found the text "hello", want a profile: a map with keys such as containerd (see nodeprep init for a starter)`}},
		{"not UTF-8", "a: b\nc: d\xe9\n", []string{`p.yaml:2:5: byte 0xe9 is not UTF-8 text (save the file as UTF-8)`}},
		{"too big", strings.Repeat("#", maxSize+1), []string{`p.yaml:1:1: the profile has 1048577 bytes, more than the 1048576 that are read`}},
		{"tab", "containerd:\n\tversion: 2.3.4\n", []string{`p.yaml:2:1: not YAML: found character that cannot start any token (YAML indents with spaces, not with tabs)`}},
		{"syntax", "containerd:\n  root: [a\nrunc: {}\n", []string{`p.yaml:2:1: not YAML: did not find expected ',' or ']'`}},
		{"two documents", "runc: {}\n---\ncni: {}\n", []string{`p.yaml:2:1: a second YAML document begins here; a profile is a single one (keep one, and let it extend the other as a file)`}},
		{"second document is broken", "runc: {}\n---\n{", []string{`p.yaml:3:1: not YAML: did not find expected node content`}},
		{"no such anchor", "host:\n  modules: *m\n", []string{`p.yaml:2:12: not YAML: unknown anchor 'm' referenced (a value that begins with * must be quoted, unless it repeats a value marked &m)`}},
		{"star unquoted", "registries:\n  *: {}\n", []string{`p.yaml:2:1: not YAML: did not find expected alphabetic or numeric character`}},
		{"anchor in itself", "host: &h\n  modules: *h\n", []string{`p.yaml:1:7: host.modules: the value of anchor "h" holds an alias of itself`}},
		{"custom tag", "host:\n  modules: !shell [overlay]\n", []string{`p.yaml:2:12: host.modules: the tag !shell is not known here (leave the tag out)`}},
		{"wrong identity", "apiVersion: nodeprep/v1\nkind: Node\n", []string{
			`p.yaml:1:13: apiVersion: unknown value "nodeprep/v1", want nodeprep/v1alpha1`,
			`p.yaml:2:7: kind: unknown value "Node", want NodeProfile`,
		}},

		// Keys.
		{"unknown key", "containerd:\n  vresion: 2.3.4\n", []string{`p.yaml:2:3: containerd.vresion: unknown key "vresion" (did you mean version?)`}},
		{"containerd's spelling", "containerd:\n  sandbox_image: x/y:1\n", []string{`p.yaml:2:3: containerd.sandbox_image: unknown key "sandbox_image" (did you mean sandboxImage?)`}},
		{"key of elsewhere", "sysctl: {}\n", []string{`p.yaml:1:1: sysctl: unknown key "sysctl" (it belongs at host.sysctl)`}},
		{"key of a list elsewhere", "host:\n  mirrors: []\n", []string{`p.yaml:2:3: host.mirrors: unknown key "mirrors" (it belongs at registries.NAME.mirrors)`}},
		{"key of nowhere", "host: {frobnicate: 1}\n", []string{`p.yaml:1:8: host.frobnicate: unknown key "frobnicate" (known here: modules, sysctl)`}},
		{"duplicate key", "runc: {version: 1.4.3}\nhost: {}\nrunc: {version: x}\n", []string{`p.yaml:3:1: runc: duplicate key "runc"; it is first given in line 1 (remove one of them)`}},
		{"a null key", "host: {sysctl: {~: 1}}\n", []string{`p.yaml:1:17: host.sysctl: a key is empty`}},
		{"a map as a key", "host:\n  sysctl:\n    {a: b}: c\n", []string{`p.yaml:3:5: host.sysctl: a key must be text, not a list or a map`}},

		// Types.
		{"list for a map", "host: [a]\n", []string{`p.yaml:1:7: host: found a list, want a map`}},
		{"map for text", "containerd:\n  root: {a: b}\n", []string{`p.yaml:2:9: containerd.root: found a map, want text`}},
		{"text for a list", "host:\n  modules: overlay\n", []string{`p.yaml:2:12: host.modules: found the text "overlay", want a list (write [overlay])`}},
		{"text for a number", "generations: many\n", []string{`p.yaml:1:14: generations: found the text "many", want a whole number`}},
		{"quoted number", "generations: \"3\"\n", []string{`p.yaml:1:14: generations: found the text "3", want a whole number (write it without quotes)`}},
		{"fraction", "generations: 2.5\n", []string{`p.yaml:1:14: generations: found the number 2.5, want a whole number`}},
		{"out of range", "generations: 0\nsystemd: {oomScoreAdjust: -1001}\n", []string{
			`p.yaml:1:14: generations: 0 is out of range, want 1 to 100`,
			`p.yaml:2:27: systemd.oomScoreAdjust: -1001 is out of range, want -1000 to 1000`,
		}},
		{"yes for true", "systemd: {delegate: yes}\n", []string{`p.yaml:1:21: systemd.delegate: found the text "yes", want a boolean (write true or false, without quotes)`}},
		{"an empty list item", "host:\n  modules:\n  - overlay\n  -\n", []string{`p.yaml:4:4: host.modules[1]: this item of the list is empty (remove it)`}},
		{"empty text", "containerd: {root: \"\"}\n", []string{`p.yaml:1:20: containerd.root: the text is empty (give it a value, or leave the key out)`}},
		{"empty text that is allowed", "systemd: {limitNOFILE: \"\", proxy: {http: \"\"}, environment: {A: \"\"}}\n", nil},
		{"two lines", "systemd:\n  environment:\n    A: \"x\\ny\"\n", []string{`p.yaml:3:8: systemd.environment.A: the text holds a line break, want one line`}},
		{"control character", "containerd: {root: \"/a\\tb\"}\n", []string{`p.yaml:1:20: containerd.root: the text holds the control character U+0009, want one line`}},
		{"a date", "containerd:\n  sandboxImage: 2026-01-02\n", []string{`p.yaml:2:17: containerd.sandboxImage: YAML reads 2026-01-02 as a date, not as text (quote it: "2026-01-02")`}},
		{"unknown value", "containerd: {cgroupDriver: systmd}\n", []string{`p.yaml:1:28: containerd.cgroupDriver: unknown value "systmd", want systemd, cgroupfs or auto (did you mean systemd?)`}},

		// Octal-looking numbers.
		{"octal", "generations: 010\n", []string{`p.yaml:1:14: generations: 010 looks octal: YAML reads it as 8 (write the decimal number that is meant)`}},
		{"octal of YAML 1.2", "generations: 0o17\n", []string{`p.yaml:1:14: generations: 0o17 looks octal: YAML reads it as 15 (write the decimal number that is meant)`}},
		{"hexadecimal", "generations: 0x3\n", []string{`p.yaml:1:14: generations: 0x3 is not written as a decimal number: YAML reads it as 3 (write the decimal number that is meant)`}},
		{"octal in settings", "containerd: {settings: {a: 0644, b: 1_000}}\n", []string{
			`p.yaml:1:28: containerd.settings.a: 0644 looks octal: YAML reads it as 420 (write the decimal number that is meant)`,
			`p.yaml:1:37: containerd.settings.b: 1_000 is not written as a decimal number: YAML reads it as 1000 (write the decimal number that is meant)`,
		}},

		// Versions.
		{"a version that YAML shortened", "containerd: {version: 1.10}\n", []string{`p.yaml:1:23: containerd.version: YAML reads 1.10 as the number 1.1, not as text (quote it: "1.10")`}},
		{"a Kubernetes version that YAML shortened", "kubernetes: {version: 1.30}\n", []string{`p.yaml:1:23: kubernetes.version: YAML reads 1.30 as the number 1.3, not as text (quote it: "1.30")`}},
		{"a Kubernetes version without quotes", "kubernetes: {version: 1.36}\n", []string{`p.yaml:1:23: kubernetes.version: YAML reads 1.36 as the number 1.36, not as text (quote it: "1.36")`}},
		{"half a version", "containerd: {version: \"2.3\"}\n", []string{`p.yaml:1:23: containerd.version: version "2.3": want MAJOR.MINOR.PATCH, such as 2.3.4 (give the patch release, too)`}},
		{"latest", "runc: {version: latest}\n", []string{`p.yaml:1:17: runc.version: version "latest": want MAJOR.MINOR.PATCH, such as 2.3.4`}},
		{"none where something is needed", "runc: {version: none}\ncontainerd: {version: none}\n", []string{
			`p.yaml:1:17: runc.version: "none" is not a version such as 2.3.4`,
			`p.yaml:2:23: containerd.version: "none" is not a version such as 2.3.4`,
		}},
		{"none where it may be", "cni: {version: none}\ncrictl: {version: none}\n", nil},

		// Digests and architectures.
		{"short digest", "runc: {sha256: {amd64: abc}}\n", []string{`p.yaml:1:24: runc.sha256.amd64: "abc" is not 64 hexadecimal digits`}},
		{"digest with a prefix", "runc: {sha256: {amd64: \"sha256:" + digest + "\"}}\n", []string{
			`p.yaml:1:24: runc.sha256.amd64: "sha256:ababababababababababababababababababababababababababa"... has a prefix (write the digits alone: ` + digest + `)`}},
		{"foreign arch", "runc: {sha256: {x86_64: " + digest + "}}\n", []string{
			`p.yaml:1:17: runc.sha256.x86_64: unknown architecture "x86_64", want 386, amd64, arm, arm64, mips64le, ppc64le, riscv64 or s390x (did you mean amd64?)`}},

		// Paths.
		{"paths", "containerd:\n  root: var/lib\n  state: /run//x/\n  address: unix:///run/c.sock\nsystemd:\n  requiresMountsFor: [~/x]\n", []string{
			`p.yaml:2:9: containerd.root: path "var/lib" is not absolute`,
			`p.yaml:3:10: containerd.state: path "/run//x/" is not in its shortest form (write /run/x)`,
			`p.yaml:4:12: containerd.address: path "unix:///run/c.sock" is a URL (write /run/c.sock)`,
			`p.yaml:6:23: systemd.requiresMountsFor[0]: path "~/x" is not absolute (a daemon has no home; write the path in full)`,
		}},
		{"files", "images:\n- {file: https://x/y.tar}\n- {pin: true}\n- {file: ~/a.tar}\n", []string{
			`p.yaml:2:10: images[0].file: "https://x/y.tar" is a URL, want a file (name a file on this machine, relative to the profile)`,
			`p.yaml:3:3: images[1].file: "file" is missing`,
			`p.yaml:4:10: images[2].file: path "~/a.tar" is not expanded by anyone (write the path in full, or relative to the profile)`,
		}},

		// URLs and registries.
		{"mirrors", `registries:
  a.example.com:
    mirrors:
      - url: ftp://x
      - url: mirror.example.com
      - url: https://m/
      - url: https://u:secret@m
      - url: https://
      - url: https://m:99999
      - url: https://m/x?y=1
      - {}
      - url: https://m/x/
      - url: https://m//v2
      - url: https://m/x/../v2
      - url: https://m/a%2Fb
`, []string{
			`p.yaml:4:14: registries.a.example.com.mirrors[0].url: unsupported scheme "ftp", want https or http`,
			`p.yaml:5:14: registries.a.example.com.mirrors[1].url: "mirror.example.com" has no scheme (write https://mirror.example.com)`,
			`p.yaml:6:14: registries.a.example.com.mirrors[2].url: "https://m/" ends with a slash, which containerd makes //v2 of (write https://m)`,
			`p.yaml:7:14: registries.a.example.com.mirrors[3].url: "https://xxxxx@m" holds credentials (give them as auth of that registry, or as a header by reference)`,
			`p.yaml:8:14: registries.a.example.com.mirrors[4].url: "https://" has no host`,
			`p.yaml:9:14: registries.a.example.com.mirrors[5].url: port 99999 is not between 1 and 65535`,
			`p.yaml:10:14: registries.a.example.com.mirrors[6].url: "https://m/x?y=1" has a query or fragment, which containerd drops`,
			`p.yaml:11:9: registries.a.example.com.mirrors[7].url: "url" is missing (such as url: https://mirror.example.com)`,
			`p.yaml:12:14: registries.a.example.com.mirrors[8].url: "https://m/x/" has a path that containerd asks for in another form (write https://m/x)`,
			`p.yaml:13:14: registries.a.example.com.mirrors[9].url: "https://m//v2" has a path that containerd asks for in another form (write https://m/v2)`,
			`p.yaml:14:14: registries.a.example.com.mirrors[10].url: "https://m/x/../v2" has a path that containerd asks for in another form (write https://m/v2)`,
			`p.yaml:15:14: registries.a.example.com.mirrors[11].url: "https://m/a%2Fb" has characters in its path that are written with %, which no registry's path has`,
		}},
		{"registry hosts", "registries:\n  https://a.example.com/v2: {}\n  a.example.com/x: {}\n  _default: {}\n  a:99999: {}\n  a_b: {}\n  \"[::1]:5000\": {}\n", []string{
			`p.yaml:2:3: registries.https://a.example.com/v2: "https://a.example.com/v2" is a URL, want a registry's host as image references have it (write a.example.com)`,
			`p.yaml:3:3: registries.a.example.com/x: "a.example.com/x" has a path, want a registry's host alone (write a.example.com)`,
			`p.yaml:4:3: registries._default: "_default" is containerd's folder for every registry (write "*")`,
			`p.yaml:5:3: registries.a:99999: port 99999 of "a:99999" is not between 1 and 65535`,
			`p.yaml:6:3: registries.a_b: "a_b" is not a registry's host, such as docker.io or registry.example.com:5000, or "*"`,
		}},
		{"an empty registry", "registries:\n  docker.io:\n", []string{
			`p.yaml:2:3: registries.docker.io: this key has no value, and there is no inherited one that null could remove (write {} for one with defaults alone, or remove the key)`}},
		{"capabilities", "registries: {a: {capabilities: [pul]}}\n", []string{`p.yaml:1:33: registries.a.capabilities[0]: unknown value "pul", want pull, resolve, push or referrers (did you mean pull?)`}},
		{"durations", "registries:\n  a: {dialTimeout: 5}\n  b: {dialTimeout: \"5\"}\n  c: {dialTimeout: 0s}\n  d: {dialTimeout: soon}\n", []string{
			`p.yaml:2:20: registries.a.dialTimeout: duration 5 has no unit (write 5s for seconds)`,
			`p.yaml:3:20: registries.b.dialTimeout: duration "5" has no unit (write 5s for seconds)`,
			`p.yaml:4:20: registries.c.dialTimeout: duration "0s" is not positive`,
			`p.yaml:5:20: registries.d.dialTimeout: "soon" is not a duration such as 5s or 1m30s`,
		}},
		{"headers", "registries:\n  a:\n    header:\n      X-Count: 5\n      X Y: z\n      X-List: [a, {env: B}, true]\n", []string{
			`p.yaml:4:16: registries.a.header.X-Count: YAML does not read this value as text (quote it)`,
			`p.yaml:5:7: registries.a.header: a key is not an HTTP header's name`,
			`p.yaml:6:29: registries.a.header.X-List[2]: YAML does not read this value as text (quote it)`,
		}},
		{"secrets", `registries:
  a: {auth: {username: u, password: {env: A, file: /b}}}
  b: {auth: {username: u, password: {}}}
  c: {auth: {username: u, password: 12345}}
  d: {auth: {username: u, password: {vault: x}}}
  e: {auth: {username: u, password: [x]}}
  f: {auth: {username: u, password: {env: A-B}}}
`, []string{
			`p.yaml:2:37: registries.a.auth.password: found 2 references to a secret, want one (write {file: PATH}, {env: NAME} or {credential: NAME})`,
			`p.yaml:3:37: registries.b.auth.password: found 0 references to a secret, want one (write {file: PATH}, {env: NAME} or {credential: NAME})`,
			`p.yaml:4:37: registries.c.auth.password: YAML does not read this value as text (quote it)`,
			`p.yaml:5:38: registries.d.auth.password: unknown key in this map (write {file: PATH}, {env: NAME} or {credential: NAME})`,
			`p.yaml:6:37: registries.e.auth.password: found a list, want text or a reference: {file: PATH}, {env: NAME} or {credential: NAME}`,
			`p.yaml:7:43: registries.f.auth.password.env: this is not a variable's name, such as HTTP_PROXY`,
		}},
		{"client certificates", "registries:\n  a: {client: c.pem}\n  b: {client: {key: k.pem}}\n", []string{
			`p.yaml:2:15: registries.a.client: found the text "c.pem", want a map (write {cert: FILE, key: FILE})`,
			`p.yaml:3:15: registries.b.client.cert: "cert" is missing`,
		}},
		{"sources", `sources:
  - url: https://m/{fil}
  - url: https://m/same
  - url: https://u:p@m/{file}
  - url: https://m/{file
`, []string{
			`p.yaml:2:10: sources[0].url: unknown placeholder {fil}, want {component}, {version}, {arch} or {file} (did you mean {file}?)`,
			`p.yaml:3:10: sources[1].url: "https://m/same" is the same for every file (end it with /{file})`,
			`p.yaml:4:10: sources[2].url: "https://xxxxx@m/{file}" holds credentials (let the mirror serve release files without; their sha256 is checked anyway)`,
			`p.yaml:5:10: sources[3].url: "https://m/{file" has a brace that is not closed`,
		}},
		{"proxies", "systemd:\n  proxy: {http: proxy.example.com:3128, https: \"http://p/x\", noProxy: [\"a b\"]}\n", []string{
			`p.yaml:2:17: systemd.proxy.http: "proxy.example.com:3128" has no scheme (write http://proxy.example.com:3128)`,
			`p.yaml:2:48: systemd.proxy.https: "http://p/x" has more than a host and a port`,
			`p.yaml:2:72: systemd.proxy.noProxy[0]: "a b" is not a host, domain or network`,
		}},

		// systemd, kernel, network.
		{"limits and units", "systemd: {limitNOFILE: 1M, after: [network]}\n", []string{
			`p.yaml:1:24: systemd.limitNOFILE: "1M" is not infinity, a number, or SOFT:HARD`,
			`p.yaml:1:36: systemd.after[0]: "network" is not a unit such as network-online.target`,
		}},
		{"a limit that is a number", "systemd: {limitNOFILE: 1048576}\n", nil},
		{"soft above hard", "systemd: {limitNOFILE: \"2048:1024\"}\n", []string{`p.yaml:1:24: systemd.limitNOFILE: soft limit 2048 is above the hard limit 1024`}},
		{"environment", "systemd: {environment: {A-B: x, C: 1, D: on}}\n", []string{
			`p.yaml:1:25: systemd.environment.A-B: "A-B" is not a variable's name, such as HTTP_PROXY`,
			`p.yaml:1:42: systemd.environment.D: on means something else to other YAML readers (a boolean, or a number to the base of 60) (quote it: "on")`,
		}},
		{"modules", "host: {modules: [\"br netfilter\"]}\n", []string{`p.yaml:1:18: host.modules[0]: "br netfilter" is not a module's name, such as br_netfilter`}},
		{"networks", "cni:\n  network: {subnet: [10.88.0.1/16, 10.88.0.0, 10.0.0.0/31]}\n", []string{
			`p.yaml:2:13: cni.network.subnet: found 3 subnets, want one, or one of IPv4 and one of IPv6`,
			`p.yaml:2:22: cni.network.subnet[0]: network 10.88.0.1/16 has bits set beyond its length (write 10.88.0.0/16)`,
			`p.yaml:2:36: cni.network.subnet[1]: "10.88.0.0" is an address, want a network (write 10.88.0.0/24, or whatever the length is)`,
			`p.yaml:2:47: cni.network.subnet[2]: network 10.0.0.0/31 has no room for a bridge and a container`,
		}},
		{"no network", "cni: {network: bridge}\n", []string{`p.yaml:1:16: cni.network: found the text "bridge", want none or a network: {name, subnet}`}},
		{"network without addresses", "cni: {network: {name: a, bridge: \"a/b\"}}\n", []string{
			`p.yaml:1:16: cni.network.subnet: "subnet" is missing (such as subnet: 10.88.0.0/16)`,
			`p.yaml:1:34: cni.network.bridge: "a/b" is not an interface name of at most 15 letters, digits, and . _ -`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			want := test.want
			if want == nil {
				want = []string{}
			}
			if diff := cmp.Diff(want, lines(withoutShort(findings(test.profile)))); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// YAML must not change a kernel parameter behind the user's back.
func TestSysctlValues(t *testing.T) {
	for value, want := range map[string]string{
		`"1"`: "1", `1`: "1", `-1`: "-1", `'010'`: "010", `"yes"`: "yes", `1024 65535`: "1024 65535", `"|/bin/x %p"`: "|/bin/x %p", `"0x10"`: "0x10",
		`1e3`: "", `yes`: "", `no`: "", `on`: "", `Off`: "", `y`: "", `true`: "", `0x10`: "", `010`: "", `0o17`: "", `0b11`: "", `1.5`: "", `1.0`: "",
		`~`: "", `null`: "", ``: "", `1:30`: "", `1_000`: "", `+1`: "", `.inf`: "", `2026-01-01`: "", `[1]`: "", `{a: 1}`: "", `""`: "", `99999999999999999999`: "",
	} {
		t.Run(value, func(t *testing.T) {
			p, list := Load("p.yaml", files{"p.yaml": "host:\n  sysctl:\n    kernel.x: " + value + "\n"}.read)
			if want == "" {
				if len(list) != 1 || !list.HasErrors() || list[0].Line != 3 || list[0].Path != "host.sysctl.kernel.x" {
					t.Fatalf("findings %q, want one fault in line 3", lines(list))
				}
				return
			}
			if got := p.Host.Sysctl["kernel.x"]; got != want || len(list) > 0 {
				t.Errorf("value %q, want %q; findings %q", got, want, lines(list))
			}
		})
	}
}

// A profile with thirty faults gives thirty lines, in the order of the file.
func TestThirtyFaults(t *testing.T) {
	list := findings(thirtyFaults)
	if len(list) != 30 || len(list.Errors()) != 30 {
		t.Errorf("%d findings, %d of them errors, want 30:\n%s", len(list), len(list.Errors()), strings.Join(lines(list), "\n"))
	}
	for i := 1; i < len(list); i++ {
		a, b := list[i-1], list[i]
		if a.Line > b.Line || a.Line == b.Line && a.Column > b.Column {
			t.Errorf("%s stands before %s", a, b)
		}
	}
	for _, d := range list {
		if d.File != "p.yaml" || d.Line == 0 || d.Column == 0 || d.Path == "" || d.Message == "" {
			t.Errorf("incomplete: %+v", d)
		}
	}
}

const thirtyFaults = `apiVersion: v1
kind: Pod
kubernetes: {version: 1.30}
containerd:
  variant: auto
  sha256: {amd64: 9d68969855fbf676cdb8ed758e420fb048d61f984f61de3e53eddfebe484d168}
  root: relative
  cgroupDriver: system
  oomScore: 5000
  defaultRuntime: kata
  snapshotter: overlay
  settings:
    grpc: {address: /x}
    plugins: {cri: {a: b}}
runc: {version: 1.4}
cni: {network: maybe}
crictl: {verson: 1.36.0}
registries:
  docker.io:
    upstream: deny
  "*":
    mirrors:
      - {url: "https://m/", skipVerify: maybe}
      - {url: "ftp://m", dialTimeout: 5}
systemd:
  delegate: yes
  killMode: processes
  limitNOFILE: lots
  environment: {1A: x}
  after: [network]
host:
  modules: overlay
  sysctl: {net.ipv4.ip_forward: yes}
images: [{pin: true}]
sources: [{dir: a, url: "https://m/{file}"}]
generations: 0
modules: []
`

// readers gives Load a second layer and shows what came of both.
func TestLayers(t *testing.T) {
	for _, test := range []struct {
		name  string
		files files
		check func(t *testing.T, p *Profile, s *Spec)
	}{
		{"maps merge, lists replace", files{
			"p.yaml":    "extends: base.yaml\nhost: {modules: [zfs], sysctl: {a.b: \"2\", c.d: \"3\"}}\n",
			"base.yaml": "host: {modules: [overlay, br_netfilter], sysctl: {a.b: \"1\", e.f: \"4\"}}\n",
		}, func(t *testing.T, p *Profile, s *Spec) {
			if diff := cmp.Diff(map[string]string{"a.b": "2", "c.d": "3", "e.f": "4"}, s.Sysctl); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"zfs"}, s.Modules); diff != "" {
				t.Error(diff)
			}
			if got := s.Origin("host.sysctl.e.f").Place(); got != "base.yaml:1:66" {
				t.Errorf("an inherited value comes from %s", got)
			}
			if got := s.Origin("host.sysctl.a.b").Place(); got != "p.yaml:2:38" {
				t.Errorf("a replaced value comes from %s", got)
			}
			if diff := cmp.Diff([]string{"p.yaml", "base.yaml"}, s.Profiles); diff != "" {
				t.Error(diff)
			}
		}},
		{"null removes", files{
			"p.yaml":    "extends: base.yaml\nhost: {sysctl: {a.b: null}}\ncontainerd: {root: null, settings: {x: {y: ~}}}\nregistries: {docker.io: null}\n",
			"base.yaml": "host: {sysctl: {a.b: \"1\", e.f: \"4\"}}\ncontainerd: {root: /x, settings: {x: {y: 1, z: 2}}}\nregistries: {docker.io: {mirrors: [{url: \"https://m\"}]}, a: {}}\n",
		}, func(t *testing.T, p *Profile, s *Spec) {
			if diff := cmp.Diff(map[string]string{"e.f": "4"}, s.Sysctl); diff != "" {
				t.Error(diff)
			}
			if s.Containerd.Root != "/var/lib/containerd" {
				t.Errorf("root %s", s.Containerd.Root)
			}
			if diff := cmp.Diff(map[string]any{"x": map[string]any{"z": int64(2)}}, s.Containerd.Settings); diff != "" {
				t.Error(diff)
			}
			if len(s.Registries) != 1 || s.Registries[0].Host != "a" {
				t.Errorf("registries %+v", s.Registries)
			}
		}},
		{"a new version drops the digests of the old", files{
			"p.yaml":    "extends: base.yaml\nrunc: {version: 1.3.6}\ncrictl: {sha256: {amd64: " + strings.Repeat("ef", 32) + "}}\ncontainerd: {variant: static}\n",
			"base.yaml": "runc: {version: 1.4.3, sha256: {amd64: " + strings.Repeat("ab", 32) + "}}\ncrictl: {version: 1.35.0, sha256: {amd64: " + strings.Repeat("cd", 32) + "}}\ncontainerd: {variant: dynamic, sha256: {amd64: " + strings.Repeat("1f", 32) + "}}\n",
		}, func(t *testing.T, p *Profile, s *Spec) {
			if s.Runc.SHA256 != "" || s.Runc.Version.String() != "1.3.6" {
				t.Errorf("runc %+v", s.Runc)
			}
			if s.Crictl.SHA256 != strings.Repeat("ef", 32) || s.Crictl.Version.String() != "1.35.0" {
				t.Errorf("crictl %+v", s.Crictl)
			}
			if s.Containerd.SHA256 != "" || !s.Containerd.Static {
				t.Errorf("containerd %+v", s.Containerd)
			}
		}},
		{"a reference replaces a reference", files{
			"p.yaml":    "extends: base.yaml\nregistries: {a: {auth: {password: {file: pw}}, header: {X: {env: B}}}}\n",
			"base.yaml": "registries: {a: {auth: {username: u, password: {env: A}}, header: {X: {env: A}, Y: z}}}\n",
		}, func(t *testing.T, p *Profile, s *Spec) {
			r := s.Registries[0]
			if r.Auth.Password.File != "pw" || r.Auth.Password.Env != "" || r.Auth.Username.Value != "u" {
				t.Errorf("auth %+v", r.Auth)
			}
			if len(r.Server.Header) != 2 || r.Server.Header[0].Values[0].Env != "B" {
				t.Errorf("header %+v", r.Server.Header)
			}
		}},
		{"files are relative to the profile that names them", files{
			"p.yaml":             "extends: site/base.yaml\nimages: [{file: a.tar}]\n",
			"site/base.yaml":     "extends: ../all/all.yaml\nregistries: {a: {ca: certs/ca.pem, auth: {username: u, password: {file: pw}}}}\n",
			"all/all.yaml":       "sources: [{dir: ./artifacts}, {dir: /abs/../x}]\nextends: kubernetes\n",
			"never/read/it.yaml": "",
		}, func(t *testing.T, p *Profile, s *Spec) {
			got := []string{s.Images[0].File.Path, s.Registries[0].Server.CA[0].Path, s.Registries[0].Auth.Password.File, s.Sources[0].Dir, s.Sources[1].Dir}
			if diff := cmp.Diff([]string{"a.tar", "site/certs/ca.pem", "site/pw", "all/artifacts", "/x"}, got); diff != "" {
				t.Error(diff)
			}
			if diff := cmp.Diff([]string{"p.yaml", "site/base.yaml", "all/all.yaml", "builtin:kubernetes", "builtin:default"}, s.Profiles); diff != "" {
				t.Error(diff)
			}
			if !s.Containerd.SystemdCgroup || len(s.Modules) != 2 {
				t.Errorf("the built-in beneath is not there: %+v", s)
			}
		}},
		{"an empty overlay", files{"p.yaml": "extends: base.yaml\n", "base.yaml": ""}, func(t *testing.T, p *Profile, s *Spec) {
			if s.Containerd.Snapshotter != "overlayfs" {
				t.Errorf("%+v", s)
			}
		}},
		{"aliases and merge keys", files{"p.yaml": `registries:
  a: &m
    mirrors: &list [{url: "https://m"}]
    skipVerify: true
  b:
    <<: *m
    skipVerify: false
  c:
    <<: [{upstream: deny}, *m]
  d: {mirrors: *list}
`}, func(t *testing.T, p *Profile, s *Spec) {
			for i, r := range s.Registries {
				if len(r.Mirrors) != 1 || r.Mirrors[0].URL != "https://m" {
					t.Errorf("registry %d: %+v", i, r)
				}
			}
			if *s.Registries[1].Server.SkipVerify || !*s.Registries[0].Server.SkipVerify {
				t.Error("a merged key beats the map's own")
			}
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, list := Load("p.yaml", test.files.read)
			s, more := Resolve(p, Facts{Arch: "amd64", SystemdInit: true})
			if list = append(list, more...); list.HasErrors() && test.name != "aliases and merge keys" {
				t.Fatalf("faults:\n%s", strings.Join(lines(list), "\n"))
			}
			if s == nil {
				// c's deny and skipVerify contradict each other: not what is tested here.
				text := strings.Replace(test.files["p.yaml"], "{upstream: deny}", "{upstream: allow}", 1)
				p, _ = Load("p.yaml", files{"p.yaml": text}.read)
				s, more = Resolve(p, Facts{Arch: "amd64", SystemdInit: true})
				if more.HasErrors() {
					t.Fatalf("faults:\n%s", strings.Join(lines(more), "\n"))
				}
			}
			test.check(t, p, s)
		})
	}
}

// A fault is shown in the layer that has it, even where a layer above hides the value.
func TestFaultsOfLayers(t *testing.T) {
	for _, test := range []struct {
		name  string
		files files
		want  []string
	}{
		{"in the layer beneath", files{"p.yaml": "extends: base.yaml\nhost: {sysctl: {a.b: 010}}\n", "base.yaml": "\nhost: {modlues: []}\n"}, []string{
			`p.yaml:2:22: host.sysctl.a.b: YAML reads 010 as the number 8, not as text (quote it: "010")`,
			`base.yaml:2:8: host.modlues: unknown key "modlues" (did you mean modules?)`,
		}},
		{"in a value that is replaced", files{"p.yaml": "extends: base.yaml\ngenerations: 2\n", "base.yaml": "generations: two\n"}, []string{
			`base.yaml:1:14: generations: found the text "two", want a whole number`,
		}},
		{"null of an unknown key", files{"p.yaml": "extends: default\nhost: {modlues: null}\n"}, []string{
			`p.yaml:2:8: host.modlues: unknown key "modlues" (did you mean modules?)`,
		}},
		{"null of nothing", files{"p.yaml": "extends: default\nhost: {sysctl: {a.b: null}}\n"}, []string{
			`p.yaml:2:17: host.sysctl.a.b: this key has no value, and there is no inherited one that null could remove (quote it, if it is to be text: "null")`,
		}},
		{"a section left empty", files{"p.yaml": "extends: kubernetes\nhost:\n"}, []string{
			`p.yaml:2:1: warning: host: this key has no value, which removes everything inherited under it (write null to say so, or leave the key out)`,
		}},
		{"a section removed", files{"p.yaml": "extends: kubernetes\nhost: null\n"}, []string{}},
		{"a part that the layer beneath completes", files{
			"p.yaml":    "extends: base.yaml\ncontainerd: {proxyPlugins: {stargz: {address: /run/new.sock}}}\n",
			"base.yaml": "containerd: {snapshotter: stargz, proxyPlugins: {stargz: {type: snapshot, address: /run/old.sock}}}\n",
		}, []string{}},
		{"a missing file", files{"p.yaml": "generations: x\nextends: base.yaml\n"}, []string{
			`p.yaml:1:14: generations: found the text "x", want a whole number`,
			`p.yaml:2:10: extends: cannot read the profile: open base.yaml: file does not exist`,
		}},
		{"a misspelt built-in", files{"p.yaml": "extends: kubernets\n"}, []string{
			`p.yaml:1:10: extends: cannot read the profile: open kubernets: file does not exist (did you mean kubernetes? The built-ins are default, kubernetes or minimal)`,
		}},
		{"extends a bundle", files{"p.yaml": "extends: bundle\n"}, []string{
			`p.yaml:1:10: extends: a bundle's profile can only be extended where a bundle is given (give it with --bundle, or extend a built-in or a file)`,
		}},
		{"extends a URL", files{"p.yaml": "extends: https://example.com/p.yaml\n"}, []string{
			`p.yaml:1:10: extends: cannot extend "https://example.com/p.yaml": a profile is read from files alone (extend a built-in or a file)`,
		}},
		{"extends a list", files{"p.yaml": "extends: [a, b]\n"}, []string{`p.yaml:1:10: extends: found a list, want text`}},
		{"itself", files{"p.yaml": "extends: ./p.yaml\n"}, []string{
			`p.yaml:1:10: extends: profiles extend each other in a circle: p.yaml -> p.yaml`,
		}},
		{"a circle of three", files{"p.yaml": "extends: d/a.yaml\n", "d/a.yaml": "extends: b.yaml\n", "d/b.yaml": "extends: ../d/a.yaml\n"}, []string{
			`d/b.yaml:1:10: extends: profiles extend each other in a circle: d/a.yaml -> d/b.yaml -> d/a.yaml`,
		}},
		{"no profile at all", files{}, []string{`p.yaml: cannot read the profile: open p.yaml: file does not exist`}},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, list := Load("p.yaml", test.files.read)
			if diff := cmp.Diff(test.want, lines(list)); diff != "" {
				t.Errorf("findings (-want +got):\n%s", diff)
			}
		})
	}
}

// A circle whose names never repeat, as symbolic links can make one, ends all the same.
func TestEndlessChain(t *testing.T) {
	read := func(string) ([]byte, error) { return []byte("extends: deeper/p.yaml\n"), nil }
	_, list := Load("p.yaml", read)
	if len(list) != 1 || !strings.Contains(list[0].Message, "more than 32 profiles") {
		t.Errorf("findings %q", lines(list))
	}
}

func TestLoaderNames(t *testing.T) {
	var asked []string
	loader := Loader{Dir: "/home/u", Read: func(name string) ([]byte, error) {
		asked = append(asked, name)
		switch name {
		case "-":
			return []byte("images: [{file: a.tar}]\nextends: conf/base.yaml\n"), nil
		case "/home/u/conf/base.yaml":
			return []byte("sources: [{dir: art}]\nextends: /etc/nodeprep/x.yaml\nx: 1\n"), nil
		case "/etc/nodeprep/x.yaml":
			return []byte("extends: minimal\ny: 1"), nil
		}
		return nil, errors.New("unexpected")
	}}
	p, list := loader.Load("-")
	if diff := cmp.Diff([]string{"-", "/home/u/conf/base.yaml", "/etc/nodeprep/x.yaml"}, asked); diff != "" {
		t.Error(diff)
	}
	if p.Images[0].File.Path != "/home/u/a.tar" || p.Sources[0].Dir.Path != "/home/u/conf/art" || p.Crictl.Version != "none" {
		t.Errorf("%+v", p)
	}
	if len(list) != 2 {
		t.Errorf("findings %q", lines(list))
	}

	_, list = loader.Load("conf/base.yaml")
	if list[0].File != "conf/base.yaml" {
		t.Errorf("the name shown is not the name given: %s", list[0])
	}
	if _, list = (Loader{}).Load("minimal"); len(list) > 0 {
		t.Errorf("a built-in needs a reader: %q", lines(list))
	}
	if _, list = (Loader{}).Load("x.yaml"); len(list) != 1 {
		t.Errorf("findings %q", lines(list))
	}
}

// Aliases of aliases must not multiply: the expansion is bounded, and so is its time.
func TestAliasBomb(t *testing.T) {
	var b strings.Builder
	b.WriteString("containerd:\n  settings:\n    a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n")
	for i := 1; i < 12; i++ {
		alias := fmt.Sprintf("*a%d", i-1)
		fmt.Fprintf(&b, "    a%d: &a%d [%s]\n", i, i, strings.Join([]string{alias, alias, alias, alias, alias, alias, alias, alias, alias, alias}, ", "))
	}
	_, list := Load("p.yaml", files{"p.yaml": b.String()}.read)
	if len(list) != 1 || !strings.Contains(list[0].Message, "more than 100000 values") {
		t.Errorf("findings %q", lines(list))
	}
	_, list = Load("p.yaml", files{"p.yaml": "containerd: {settings: {a: " + strings.Repeat("[", 200) + strings.Repeat("]", 200) + "}}"}.read)
	if !list.HasErrors() || !strings.Contains(list[0].Message, "nested more than 64 deep") {
		t.Errorf("findings %q", lines(list))
	}
}

// No message shows a secret.
func TestMessagesHideSecrets(t *testing.T) {
	const secret = "hunter2"
	for _, text := range []string{
		"registries: {a: {auth: {username: u, password: hunter2}}}",
		"registries: {a: {auth: {username: u, password: hunter2, identityToken: hunter2}}}",
		"registries: {a: {auth: {username: u, password: \"hunter2\\nx\"}}}",
		"registries: {a: {auth: {username: u, password: [hunter2]}}}",
		"registries: {a: {auth: {username: u, password: !x hunter2}}}",
		"registries: {a: {mirrors: [{url: \"https://m\", auth: {username: u, password: hunter2}}]}}",
		"registries: {a: {mirrors: [{url: \"https://m\", auth: {username: u, password: [hunter2]}}]}}",
		"registries: {a: {mirrors: [{url: \"https://m\", auth: \"user:hunter2\"}]}}",
		"registries: {a: {mirrors: [{url: \"https://m\", auth: {\"user:hunter2\": x}}]}}",
		"registries: {a: {mirrors: [{url: \"https://m\", auth: {username: u, password: {hunter2: x}}}]}}",
		"registries: {a: {mirrors: [{url: \"https://m\", auth: {identityToken: {env: hunter2-x}}}]}}",
		"registries: {a: {header: {Authorization: Bearer hunter2}}}",
		"registries: {a: {mirrors: [{url: \"https://u:hunter2@m\"}]}}",
		"registries: {a: {mirrors: [{url: \"ftp://u:hunter2@m/\"}]}}",
		"registries: {a: {mirrors: [{url: \"u:hunter2@m\"}]}}",
		"systemd: {proxy: {http: \"http://u:hunter2@p:3128\"}}",
		"systemd: {proxy: {http: \"http://u:hunter2@p:3128/x\"}}",
		"systemd: {proxy: {http: \"http://u:hunter2@p:99999\"}}",
		"systemd: {proxy: {http: \"u:hunter2@p:3128\"}}",
		"systemd: {proxy: {http: \"http://u:hunter2@\"}}",
		"systemd: {proxy: {http: \"http://u:hunter2@p :3128\"}}",
		"sources: [{url: \"https://u:hunter2@m/{file}\"}]",
		"registries: {a.io: {auth: \"user:hunter2\"}}",
		"registries: {a.io: {auth: {\"user:hunter2\": x}}}",
		"registries: {a.io: {auth: {username: u, password: {hunter2: x}}}}",
		"registries: {a.io: {auth: {username: u, password: {hunter2: x, hunter2: x}}}}",
		"registries: {a.io: {auth: {username: u, password: {env: hunter2-x}}}}",
		"registries: {a.io: {auth: {identityToken: {file: {hunter2: x}}}}}",
		"registries: {a.io: {header: \"Authorization: hunter2\"}}",
		"registries: {a.io: {header: {\"Authorization: hunter2\": x}}}",
		"registries: {a.io: {header: {Authorization: {hunter2: x}}}}",
		"registries: {a.io: {mirrors: \"https://u:hunter2@m\"}}",
		"registries: {a.io: {mirrors: [\"https://u:hunter2@m\"]}}",
		"systemd: {proxy: \"http://u:hunter2@p:3128\"}",
		"systemd: {proxy: {http: \"http://u:hunter2/x@p:3128\"}}",
		"systemd: {proxy: {noProxy: \"http://u:hunter2@p:3128\"}}",
		"containerd: {settings: {plugins: {io.containerd.cri.v1.images: {registry: {configs: {a: {auth: hunter2}}}}}}}",
		"containerd: {settings: {plugins: hunter2, oom_score: hunter2}}",
		"sources: [{url: \"https://u:hunter2@m/x\"}]",
		"sources: [{url: \"https://u:hunter2@m/{file\"}]",
	} {
		list := findings(text)
		if len(list) == 0 {
			t.Errorf("%s: no finding", text)
		}
		for _, line := range lines(list) {
			if strings.Contains(line, secret) {
				t.Errorf("a secret is shown: %s", line)
			}
		}
	}
}

// A key must not reach a terminal as it stands.
func TestFindingsAreOneLine(t *testing.T) {
	for _, text := range []string{
		`"evil\e[31mRED\nx": 1`,
		`host: {sysctl: {"evil\e[31mRED\nx": "1"}}`,
		`containerd: {settings: {"evil\e[31mRED\nx": 1}}`,
		`registries: {"evil\e[31mRED\nx": {auth: 5}}`,
	} {
		list := findings(text)
		if len(list) == 0 {
			t.Errorf("%s: no finding", text)
		}
		for _, d := range list {
			if strings.ContainsAny(d.String()+d.Path+d.Message+d.Hint, "\x1b\n") || !strings.Contains(d.String(), `\x1b[31mRED\nx`) {
				t.Errorf("%s: %q", text, d.String())
			}
		}
	}
}

func TestSysctlKeys(t *testing.T) {
	for key, ok := range map[string]bool{
		"net.ipv4.ip_forward": true, "net/ipv4/ip_forward": true, "net/ipv4/conf/eth0.100/forwarding": true, "net.ipv4.conf.eth0/100.forwarding": true,
		"fs.inotify.max_user_watches": true,
		"":                            false, "a..b": false, "a/../b": false, "../a": false, "a/./b": false, "a//b": false, "/a": false, "a.": false,
		"-net.ipv4.ip_forward": false, "net.ipv4.conf.*.rp_filter": false, "net.ipv4.conf.eth?.x": false, "net.[a].x": false, "a b": false,
	} {
		list := findings("host: {sysctl: {\"" + key + "\": \"1\"}}")
		if list.HasErrors() == ok {
			t.Errorf("%q: %q", key, lines(list))
		}
	}
	for _, value := range []string{" ", "\\t", " 1", "1 "} {
		if list := findings("host: {sysctl: {a.b: \"" + value + "\"}}"); len(list.Errors()) != 1 {
			t.Errorf("value %q: %q", value, lines(list))
		}
	}
}

// A misspelt built-in is guessed by what was written, wherever the folder is.
func TestMisspeltBuiltIn(t *testing.T) {
	read := func(name string) ([]byte, error) {
		if name == "/home/me/p.yaml" {
			return []byte("extends: kubernets\n"), nil
		}
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	for _, name := range []string{"kubernetess", "p.yaml"} {
		_, list := Loader{Dir: "/home/me", Read: read}.Load(name)
		if len(list) != 1 || !strings.Contains(list[0].Hint, "did you mean kubernetes?") || !strings.Contains(list[0].Hint, "default, kubernetes or minimal") {
			t.Errorf("%s: %q", name, lines(list))
		}
	}
}

func BenchmarkLoadAndResolve(b *testing.B) {
	for b.Loop() {
		p, list := Load("kubernetes", nil)
		if s, more := Resolve(p, bookworm()); s == nil || len(list)+len(more) > 0 {
			b.Fatal(lines(append(list, more...)))
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(thirtyFaults)
	for _, name := range BuiltIns() {
		data, _ := builtIn(name)
		f.Add(string(data))
	}
	f.Add(string(starter))
	f.Add(strings.ReplaceAll(string(starter), "\n#", "\n"))
	for _, s := range []string{
		"a: &a [*a]", "<<: *x", "<<: [1]", "host: {<<: {modules: [a]}}", "? [a]\n: b", "!!binary a", "- 1\n- !x {}", "a: |\n  x", "a: \xff", "%YAML 1.1\n---\n",
		"containerd: {settings: {a: .nan, b: 0644, c: 2026-01-01, d: ~, e: [1, 1.5, null]}}", "registries: {\"*\": {mirrors: [{url: \"https://[::1]:5\"}]}}",
		"extends: p.yaml", "extends: kubernetes\nhost:", "a: !!int x", "\t", "{", "\ufeffrunc: {}", "a: b\n---\nc: d\n...\n", "*a : b", "&a a: *a", "a: 'b\n\n c'",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		read := files{"p.yaml": text}.read
		p, list := Load("p.yaml", read)
		facts := Facts{Arch: "amd64", SystemdInit: true}
		s, more := Resolve(p, facts)
		for _, d := range append(list, more...) {
			if d.Message == "" || d.File == "" {
				t.Errorf("a poor finding: %+v", d)
			}
		}
		again, listAgain := Load("p.yaml", read)
		sAgain, moreAgain := Resolve(again, facts)
		if diff := cmp.Diff(append(lines(list), lines(more)...), append(lines(listAgain), lines(moreAgain)...)); diff != "" {
			t.Errorf("loading twice differs:\n%s", diff)
		}
		if diff := cmp.Diff(s, sAgain, cmp.AllowUnexported(Spec{}), cmp.Comparer(func(a, b float64) bool { return a == b })); diff != "" {
			t.Errorf("resolving twice differs:\n%s", diff)
		}
	})
}
