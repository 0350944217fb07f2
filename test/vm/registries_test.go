package vm_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"maps"
	"math/big"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nodeprep/nodeprep/test/vm"
	"github.com/nodeprep/nodeprep/test/vm/qemu"
	"github.com/nodeprep/nodeprep/test/vm/supply"
)

// Pulls of a kubelet go where the profile says, to real registries, and nodeprep explain
// says beforehand exactly the requests that the registries then write into their logs.
func TestRegistries(t *testing.T) {
	t.Parallel() // with the other tests' scenarios
	for _, n := range nodes() {
		t.Run("containerd "+n.containerd.Version, func(t *testing.T) {
			s := inMain
			if n.containerd.Version != "2.1.9" {
				s = inEvery
			}
			m := start(t, s)
			e := newSite(m, n)
			live := n.containerd.Version != "1.6.20" && n.containerd.Version != "1.7.24"

			e.give(registriesFirst)
			m.exits(0, n.command("apply"))
			e.service = ""
			if live {
				e.service = "transfer"
			}
			e.pulls(firstPulls())
			e.probes(firstProbes())
			pod := n.runPod(m, "one") // of an image that came from the mirror of all
			if thisRun() >= inAll {
				e.changed(pod)
				e.pulls(changedPulls())
			} else {
				t.Log("only with -vm=all: mirrors alone change")
			}
			e.credentials(pod)
			if live {
				e.service = "local"
			}
			e.pulls(credentialPulls())
			e.probes(credentialProbes())
			e.nothingLeft()
		})
	}
}

// The site's registries are in a network namespace of the machine, and the Internet is
// one registry in another. The node's addresses there end in .1.
const (
	siteNode     = "10.99.1.1"
	upstreamNode = "10.99.2.1"
)

// The two contents that registries have.
const (
	contentA = "a"
	contentB = "b"
)

// siteRegistry is a docker-registry in the machine.
type siteRegistry struct {
	name    string // of its log
	space   string // network namespace
	address string // HOST:PORT that it listens on
	hosts   []string
	content string // "" for a cache of what the plain one has
	plain   bool   // HTTP
	prefix  string
	login   bool
}

func siteRegistries() []siteRegistry {
	return []siteRegistry{
		{name: "tls", space: "site", address: "10.99.1.2:443", hosts: []string{"tls.site.test"}, content: contentA},
		{name: "prefix", space: "site", address: "10.99.1.3:5000", hosts: []string{"prefix.site.test:5000"}, content: contentA, prefix: "/cache/"},
		{name: "plain", space: "site", address: "10.99.1.4:5001", hosts: []string{"plain.site.test:5001"}, content: contentB, plain: true},
		// Credentials are a host's: for wrong ones, it has another name.
		{name: "login", space: "site", address: "10.99.1.5:443", hosts: []string{"login.site.test", "stranger.site.test"}, content: contentA, login: true},
		{name: "through", space: "site", address: "10.99.1.7:5000", hosts: []string{"through.site.test:5000"}},
		{name: "upstream", space: "upstream", address: "10.99.2.2:443", content: contentB,
			hosts: []string{"registry-1.docker.io", "docker.io", "auth.docker.io", "gcr.io", "quay.io", "ghcr.io", "registry.k8s.io", "up.example.com"}},
	}
}

// deadHost is an address of the site where nobody listens.
const deadHost = "dead.site.test:5000"

// siteImages are what the contents have. No two share a part: containerd asks for nothing
// that it has.
func siteImages() map[string][]string {
	return map[string][]string{
		contentA: {
			"team/ca:1", "site/gcr:1", "site/quay:1", "site/ghcr:1", "site/k8s:1", "team/dead:1", "team/prefix:1", "proj/team/harbor:1",
			"team/pullonly:1", "team/header:1", "team/secret:1", "library/later:1", "team/after:1", "team/auth:1", "team/local:1", "team/pinned:1",
			"team/distrusted:1", "team/stranger:1",
		},
		contentB: {"team/plain:1", "team/second:1", "team/through:1", "team/up:1", "library/up:1"},
	}
}

// siteMedia are the folder that the machine gets, made once for all tests.
var siteMedia struct {
	sync.Once
	dir string
	err error
}

// media makes certificates, configs and contents of all registries, and the program.
func media(t *testing.T) map[string]string {
	t.Helper()
	lab, err := labs()
	if err != nil {
		t.Fatal(err)
	}
	siteMedia.Do(func() { siteMedia.dir, siteMedia.err = makeSiteMedia(t, lab) })
	if siteMedia.err != nil {
		t.Fatal(siteMedia.err)
	}
	if siteMedia.dir == "" {
		t.Fatal("the registries' contents could not be made: see the test that tried")
	}
	program, err := lab.Registry(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	content := map[string]string{"docker-registry": program}
	entries, err := os.ReadDir(siteMedia.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		content[e.Name()] = filepath.Join(siteMedia.dir, e.Name())
	}
	return content
}

const siteDir = "/media/registries"

func makeSiteMedia(t *testing.T, lab *vm.Lab) (string, error) {
	dir, err := lab.Scratch()
	if err != nil {
		return "", err
	}
	files := map[string]string{"htpasswd": registryUser + ":" + registryHash + "\n"}
	var names []string
	for _, r := range siteRegistries() {
		for _, h := range r.hosts {
			name, _, _ := strings.Cut(h, ":")
			names = append(names, name)
		}
		storage := filepath.Join(siteDir, r.content) + "}\n  maintenance: {readonly: {enabled: true}}\n"
		if r.content == "" {
			storage = "/run/site/" + r.name + "}\nproxy: {remoteurl: \"http://plain.site.test:5001\"}\n"
		}
		config := "version: 0.1\nlog: {level: info}\nstorage:\n  filesystem: {rootdirectory: " + storage + "http:\n  addr: " + r.address + "\n"
		if r.prefix != "" {
			config += "  prefix: " + r.prefix + "\n"
		}
		if !r.plain {
			config += "  tls: {certificate: " + siteDir + "/server.pem, key: " + siteDir + "/server.key}\n"
		}
		if r.login {
			config += "auth: {htpasswd: {realm: site, path: " + siteDir + "/htpasswd}}\n"
		}
		files[r.name+".yml"] = config
	}
	server, ca := served(t, append(names, "dead.site.test"))
	files["server.pem"], files["server.key"], files["ca.pem"] = server.cert, server.key, ca
	files["other.pem"] = certificate(t, "another authority", time.Now().AddDate(1, 0, 0)).cert
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	for content, images := range siteImages() {
		if err := fillContent(t, lab, filepath.Join(dir, content), content, images); err != nil {
			return "", err
		}
	}
	return dir, nil
}

// fillContent has skopeo push images to a registry, and keeps its storage.
func fillContent(t *testing.T, lab *vm.Lab, to, content string, images []string) error {
	r := startRegistry(t, false)
	if content == contentA {
		r.copy(t, "oci-archive:"+filepath.Join(lab.Images(), "busybox.tar"), "docker://"+r.address+"/library/busybox:test")
	}
	dir := t.TempDir()
	for i, name := range images {
		arches := []string{"amd64", "arm64"}[:1+i%2] // every other one has an index
		file := filepath.Join(dir, strconv.Itoa(i)+".tar")
		if err := supply.WriteImage(file, name, arches...); err != nil {
			return err
		}
		r.copy(t, "oci-archive:"+file, "docker://"+r.address+"/"+name)
	}
	return os.CopyFS(to, os.DirFS(r.data))
}

// served are a server's certificate and key, and the authority that nobody knows.
func served(t *testing.T, names []string) (server pair, ca string) {
	t.Helper()
	text := func(kind string, data []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: data}))
	}
	newKey := func() *ecdsa.PrivateKey {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	caKey, key := newKey(), newKey()
	authority := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "the site's authority"},
		NotBefore: time.Now().AddDate(-1, 0, 0), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	root, err := x509.CreateCertificate(rand.Reader, authority, authority, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "registries"}, DNSNames: names,
		NotBefore: authority.NotBefore, NotAfter: authority.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	cert, err := x509.CreateCertificate(rand.Reader, leaf, authority, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	ca = text("CERTIFICATE", root)
	return pair{text("CERTIFICATE", cert) + ca, text("PRIVATE KEY", private)}, ca
}

// site is a machine with registries.
type site struct {
	*machine
	node    node
	service string         // by which explain says that containerd pulls
	read    map[string]int // bytes of each log that cases have accounted for
}

// newSite makes the namespaces and starts the registries in them.
func newSite(m *machine, n node) *site {
	m.t.Helper()
	m.plug("registries", media(m.t))
	// All neighbours are known, and there is no IPv6: a packet is one that somebody sent on purpose.
	script := `modprobe veth
number=1
for space in site upstream; do
	ip netns add $space
	ip -n $space link set lo up
	ip link add $space address 02:00:00:00:0$number:01 type veth peer name net0 address 02:00:00:00:0$number:02 netns $space
	echo 1 >/proc/sys/net/ipv6/conf/$space/disable_ipv6
	ip netns exec $space sh -c 'echo 1 >/proc/sys/net/ipv6/conf/net0/disable_ipv6'
	ip address add 10.99.$number.1/24 dev $space
	ip link set $space up
	ip -n $space link set net0 up
	ip -n $space neighbour replace 10.99.$number.1 lladdr 02:00:00:00:0$number:01 nud permanent dev net0
	number=2
done
mkdir /run/site
`
	var hosts strings.Builder
	for _, r := range append(siteRegistries(), siteRegistry{space: "site", address: "10.99.1.6:5000", hosts: []string{deadHost}}) {
		ip, _, _ := strings.Cut(r.address, ":")
		number := map[string]string{"site": "1", "upstream": "2"}[r.space]
		script += "ip -n " + r.space + " address add " + ip + "/24 dev net0\n" +
			"ip neighbour replace " + ip + " lladdr 02:00:00:00:0" + number + ":02 nud permanent dev " + r.space + "\n"
		for _, h := range r.hosts {
			name, _, _ := strings.Cut(h, ":")
			fmt.Fprintf(&hosts, "%s %s\n", ip, name)
		}
	}
	m.must(script)
	m.must("cat >>/etc/hosts <<'END'\n" + hosts.String() + "END")
	script = ""
	for _, r := range siteRegistries() {
		log := "/run/site/" + r.name
		script += "systemd-run --quiet --unit=registry-" + r.name + " -p NetworkNamespacePath=/run/netns/" + r.space +
			" -p StandardOutput=file:" + log + ".access -p StandardError=file:" + log + ".log -E OTEL_TRACES_EXPORTER=none " +
			siteDir + "/docker-registry serve " + siteDir + "/" + r.name + ".yml\n"
	}
	for _, r := range siteRegistries() {
		script += "timeout 120 grep -q 'listening on' <(exec timeout 120 tail -n +1 -F /run/site/" + r.name + ".log 2>/dev/null)\n"
	}
	m.must(script)
	for name, text := range map[string]string{"password": registryPassword, "wrong": wrongPassword, "header": "Basic " + basic(registryUser, registryPassword)} {
		if err := m.WriteFile(m.ctx, "/root/node/"+name, text); err != nil {
			m.t.Fatal(err)
		}
	}
	m.must("cp " + siteDir + "/ca.pem " + siteDir + "/other.pem /root/node/ && chmod 600 /root/node/password /root/node/wrong /root/node/header")
	return &site{machine: m, node: n, read: make(map[string]int)}
}

// What the profile says of registries, in three steps. The first has no credentials in
// config.toml, with which containerd 2.1 and newer pull in another way.
const (
	registriesFirst = `  "*": {upstream: deny, mirrors: [{url: "https://tls.site.test", ca: ca.pem}]}
` + registriesHarbor + registriesMore

	registriesHarbor = `  harbor.example.com: {upstream: deny, mirrors: [{url: "https://tls.site.test/v2/proj", ca: ca.pem}]}
`
	registriesMore = `  hub.example.com: {upstream: deny, mirrors: [{url: "https://tls.site.test", ca: ca.pem}]}
  distrusted.example.com: {upstream: deny, mirrors: [{url: "https://tls.site.test", ca: other.pem}]}
  dead.example.com: {upstream: deny, mirrors: [{url: "https://dead.site.test:5000", ca: ca.pem}, {url: "https://tls.site.test", ca: ca.pem}]}
  gone.example.com: {upstream: deny, mirrors: [{url: "https://dead.site.test:5000", ca: ca.pem}]}
  prefix.example.com: {upstream: deny, mirrors: [{url: "https://prefix.site.test:5000/cache", ca: ca.pem}]}
  plain.site.test:5001: {server: "http://plain.site.test:5001"}
  two.example.com: {upstream: deny, mirrors: [{url: "https://tls.site.test", ca: ca.pem}, {url: "http://plain.site.test:5001"}]}
  pullonly.example.com: {upstream: deny, mirrors: [{url: "https://tls.site.test", ca: ca.pem, capabilities: [pull]}, {url: "https://prefix.site.test:5000/cache", ca: ca.pem}]}
  through.example.com: {upstream: deny, mirrors: [{url: "https://through.site.test:5000", ca: ca.pem}]}
  header.example.com: {upstream: deny, mirrors: [{url: "https://login.site.test", ca: ca.pem, header: {Authorization: {file: header}}}]}
  login.site.test: {ca: ca.pem}
  up.example.com: {ca: ca.pem, mirrors: [{url: "https://tls.site.test", ca: ca.pem}]}
`
	registriesChanged = `  "*": {upstream: deny, mirrors: [{url: "https://tls.site.test", ca: ca.pem}]}
  docker.io: {ca: ca.pem, mirrors: [{url: "https://prefix.site.test:5000/cache", ca: ca.pem}]}
` + registriesMore

	registriesLogin = registriesChanged + `  secret.example.com: {upstream: deny, mirrors: [{url: "https://login.site.test", ca: ca.pem, auth: {username: site, password: {file: password}}}]}
  stranger.example.com: {upstream: deny, mirrors: [{url: "https://stranger.site.test", ca: ca.pem, auth: {username: site, password: {file: wrong}}}]}
`
)

func basic(user, password string) string {
	return base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
}

// give writes the node's profile with these registries. Of the stick's images it has the
// sandbox's alone.
func (e *site) give(registries string) {
	e.t.Helper()
	e.machine.give(e.node, "images: [{file: "+vm.StickDir+"/images/pause.tar, pin: true}]\nregistries:\n"+registries)
}

// fate is what becomes of a host that explain lists: which of the requests it gets, and what
// it answers in the end.
type fate struct {
	verb   string // whose requests explain lists: pull, resolve, or "" for none at all
	status string
	shakes bool // there is a TLS handshake that fails
}

var (
	gives      = fate{verb: "pull", status: "200"}    // has it all
	lacks      = fate{verb: "pull", status: "404"}    // has nothing of it, and a later one has
	resolves   = fate{verb: "resolve", status: "200"} // says which digest a tag has; the parts come from an earlier one
	nowhere    = fate{verb: "resolve", status: "404"} // has nothing of it, nor has any other
	denies     = fate{verb: "resolve", status: "401"}
	distrusted = fate{shakes: true}
	dead       = fate{} // cannot be reached
	spared     = fate{} // an earlier one had it all
)

// aPull is one pull of a kubelet, and what is to come of it.
type aPull struct {
	set   set
	name  string
	image string
	login string         // a pod's pull secret: user and password
	fails *regexp.Regexp // CRI's answer; nil where the pull succeeds
	fates []fate         // of the hosts that explain lists
	// upstream tells that packets go to the Internet.
	upstream bool
}

var (
	notFound      = regexp.MustCompile(`not found`)
	unknownCA     = regexp.MustCompile(`x509: certificate signed by unknown authority`)
	refused       = regexp.MustCompile(`connect: connection refused`)
	notAuthorized = regexp.MustCompile(`401 Unauthorized|authorization failed`)
)

// firstPulls are those through registriesFirst.
func firstPulls() []aPull {
	const absent = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	return []aPull{
		{name: "a private authority", image: "hub.example.com/team/ca:1", fates: []fate{gives}},
		{name: "Docker Hub by the mirror of all", image: supply.BusyboxImage, fates: []fate{gives}},
		{set: inAll, name: "gcr.io", image: "gcr.io/site/gcr:1", fates: []fate{gives}},
		{set: inAll, name: "quay.io", image: "quay.io/site/quay:1", fates: []fate{gives}},
		{set: inAll, name: "ghcr.io", image: "ghcr.io/site/ghcr:1", fates: []fate{gives}},
		{set: inAll, name: "registry.k8s.io", image: "registry.k8s.io/site/k8s:1", fates: []fate{gives}},
		{name: "absent and upstream denied", image: "docker.io/library/absent:1", fails: notFound, fates: []fate{nowhere}},
		{set: inAll, name: "absent from the mirror of all", image: "registry.k8s.io/site/absent:1", fails: notFound, fates: []fate{nowhere}},
		{set: inAll, name: "absent by digest", image: "quay.io/site/absent@" + absent, fails: notFound, fates: []fate{nowhere}},
		{set: inAll, name: "a wrong authority", image: "distrusted.example.com/team/distrusted:1", fails: unknownCA, fates: []fate{distrusted}},
		{set: inAll, name: "the first mirror is dead", image: "dead.example.com/team/dead:1", fates: []fate{dead, gives}},
		{set: inAll, name: "the only mirror is dead", image: "gone.example.com/team/dead:1", fails: refused, fates: []fate{dead}},
		{set: inAll, name: "a path before the API", image: "prefix.example.com/team/prefix:1", fates: []fate{gives}},
		{set: inAll, name: "a project in the path", image: "harbor.example.com/team/harbor:1", fates: []fate{gives}},
		{set: inAll, name: "plain HTTP on a port", image: "plain.site.test:5001/team/plain:1", fates: []fate{gives}},
		{name: "the second mirror has it", image: "two.example.com/team/second:1", fates: []fate{lacks, gives}},
		{set: inAll, name: "the first mirror may not resolve", image: "pullonly.example.com/team/pullonly:1", fates: []fate{gives, resolves}},
		{set: inAll, name: "a cache of another registry", image: "through.example.com/team/through:1", fates: []fate{gives}},
		{set: inAll, name: "credentials in a header", image: "header.example.com/team/header:1", fates: []fate{gives}},
		{set: inAll, name: "a pull secret", image: "login.site.test/team/secret:1", login: registryUser + " " + registryPassword, fates: []fate{gives}},
		{set: inAll, name: "a wrong pull secret", image: "login.site.test/team/stranger:1", login: registryUser + " wrong", fails: notAuthorized, fates: []fate{denies}},
		// That the counter counts, and who is asked last where nothing is denied.
		{name: "upstream has it", image: "up.example.com/team/up:1", fates: []fate{lacks, gives}, upstream: true},
		{set: inAll, name: "upstream does not have it either", image: "up.example.com/team/absent:1", fails: notFound, fates: []fate{nowhere, nowhere}, upstream: true},
	}
}

// changedPulls are those through registriesChanged.
func changedPulls() []aPull {
	return []aPull{
		{name: "the new mirror", image: "docker.io/library/later:1", fates: []fate{gives, spared}},
		{set: inAll, name: "Docker Hub itself", image: "docker.io/library/up:1", fates: []fate{lacks, gives}, upstream: true},
		{set: inAll, name: "what was removed is all others'", image: "harbor.example.com/team/after:1", fates: []fate{gives}},
	}
}

// credentialPulls are those through registriesLogin.
func credentialPulls() []aPull {
	return []aPull{
		{name: "credentials of the profile", image: "secret.example.com/team/auth:1", fates: []fate{gives}},
		{name: "a wrong password", image: "stranger.example.com/team/stranger:1", fails: notAuthorized, fates: []fate{denies}},
		{set: inAll, name: "no credentials needed", image: "hub.example.com/team/local:1", fates: []fate{gives}},
		{set: inAll, name: "absent beside credentials", image: "ghcr.io/site/absent:1", fails: notFound, fates: []fate{nowhere}},
	}
}

// pulls does one after the other: they share the machine and its registries.
func (e *site) pulls(all []aPull) {
	for i, p := range all {
		e.t.Run(p.name, func(t *testing.T) {
			p.set.orSkip(t)
			of := *e
			of.machine = &machine{Machine: e.Machine, ctx: e.ctx, t: t}
			of.pull(p, i == 0 || thisRun() >= inAll)
		})
	}
}

// explanation is what nodeprep explain -o json says, as far as it is looked at here.
type explanation struct {
	Reference string
	Service   string
	End       string
	Hosts     []struct {
		Host, URL, Role, Skipped string
		Requests                 []asked
		IfMissing                []asked // more, where nobody has the name
	}
}

type asked struct{ Method, URL string }

// request is a line of a log, or of an explanation.
type request struct {
	Line   string // method, path and query
	Status string // the last answer; "" where it is not known beforehand
}

// explain asks nodeprep of images: each is one, with options.
func (e *site) explain(images ...string) []explanation {
	e.t.Helper()
	var scripts []string
	for _, image := range images {
		scripts = append(scripts, "nodeprep explain -o json "+image)
	}
	all := make([]explanation, len(images))
	for i, r := range e.each(scripts...) {
		if err := json.Unmarshal([]byte(r.Stdout), &all[i]); err != nil || r.Code != 0 {
			e.t.Fatalf("%s: exit %d: %v\n%s%s", scripts[i], r.Code, err, r.Stdout, r.Stderr)
		}
	}
	return all
}

// pull explains a pull, does it, and holds the registries' logs against the explanation: that
// of the node, and where it is asked for, that of the profile.
func (e *site) pull(p aPull, profile bool) {
	t := e.t
	t.Helper()
	asked := []string{p.image}
	if profile {
		asked = append(asked, p.image+" --offline -f /root/node/profile.yaml")
	}
	if slices.ContainsFunc(p.fates, func(f fate) bool { return f.verb == "resolve" }) {
		asked = append(asked, "--verb resolve "+p.image)
	}
	said := e.explain(asked...)
	x := said[0]
	if profile {
		if diff := cmp.Diff(x, said[1]); diff != "" {
			t.Errorf("the explanation of the node differs from that of its profile (-node +profile):\n%s", diff)
		}
	}
	if x.Service != e.service {
		t.Errorf("explained as pulled by %q, want %q", x.Service, e.service)
	}
	by := map[string]explanation{"pull": x, "resolve": said[len(said)-1]}
	for verb, x := range by {
		if len(x.Hosts) != len(p.fates) {
			t.Fatalf("explain --verb %s lists %d hosts, want %d: %+v", verb, len(x.Hosts), len(p.fates), x.Hosts)
		}
	}
	want := make(map[string][]request)
	shaken := make(map[string]bool)
	upstream := false
	for i, h := range x.Hosts {
		f := p.fates[i]
		upstream = upstream || f.verb != "" && e.registryOf(h.Host) == "upstream"
		if f.shakes {
			shaken[e.registryOf(h.Host)] = true
		}
		if f.verb == "" {
			continue
		}
		listed := by[f.verb].Hosts[i].Requests
		if f == nowhere {
			listed = append(listed, by[f.verb].Hosts[i].IfMissing...)
		}
		for _, r := range listed {
			u, err := url.Parse(r.URL)
			if err != nil {
				t.Fatal(err)
			}
			name := e.registryOf(u.Host)
			want[name] = append(want[name], request{r.Method + " " + asDigest(u.RequestURI()), f.status})
		}
	}
	if p.upstream != upstream {
		t.Errorf("explain says that upstream is asked: %v, want %v: %+v", upstream, p.upstream, x.Hosts)
	}

	before := e.counted()
	r := e.each(e.node.cri("pull "+p.image+" "+p.login), e.node.cri("image "+p.image))
	pulled, image := r[0], r[1]
	t.Logf("pull %s: exit %d\n%s", p.image, pulled.Code, pulled.Stderr)
	switch {
	case p.fails == nil && pulled.Code != 0:
		t.Errorf("the pull failed:\n%s", pulled.Stderr)
	case p.fails != nil && (pulled.Code == 0 || !p.fails.MatchString(pulled.Stderr)):
		t.Errorf("the pull ended with exit %d, want a failure with %q:\n%s", pulled.Code, p.fails, pulled.Stderr)
	case p.fails == nil && !strings.Contains(image.Stdout, strconv.Quote(p.image)):
		t.Errorf("the kubelet does not see the image as %s: %s%s", p.image, image.Stdout, image.Stderr)
	case p.fails != nil && image.Code == 0:
		t.Errorf("the kubelet sees %s, which could not be pulled: %s", p.image, image.Stdout)
	}
	e.logged(want)
	if p.upstream {
		// What is kept open would send packets when it is closed, in a later pull's time.
		e.must("ss -K dst 10.99.2.2 >/dev/null && test -z \"$(ss -Htn state connected exclude time-wait dst 10.99.2.2)\"")
	}
	after := e.counted()
	if got := after.packets - before.packets; (got > 0) != p.upstream {
		t.Errorf("%d packets went upstream, want some: %v", got, p.upstream)
	}
	for name, count := range after.handshakes {
		if got := count - before.handshakes[name]; (got > 0) != shaken[name] {
			t.Errorf("TLS handshakes that failed at %s: %d, want some: %v", name, got, shaken[name])
		}
	}
}

// each runs scripts one after the other, and returns what became of each.
func (e *site) each(scripts ...string) []qemu.Result {
	e.t.Helper()
	var all strings.Builder
	for _, s := range scripts {
		fmt.Fprintf(&all, "code=0; ( %s ) >/run/site/out 2>/run/site/err || code=$?\nprintf '%%s\\036' $code \"$(cat /run/site/out)\" \"$(cat /run/site/err)\"\n", s)
	}
	fields := strings.Split(e.must(all.String()), "\x1e")
	if len(fields) != 3*len(scripts)+1 {
		e.t.Fatalf("%d fields of %d scripts", len(fields), len(scripts))
	}
	results := make([]qemu.Result, len(scripts))
	for i := range scripts {
		code, err := strconv.Atoi(fields[3*i])
		if err != nil {
			e.t.Fatal(err)
		}
		results[i] = qemu.Result{Code: code, Stdout: fields[3*i+1], Stderr: fields[3*i+2]}
	}
	return results
}

// aProbe is what nodeprep explain --probe finds of an image.
type aProbe struct {
	set   set
	name  string
	image string
	code  int
	says  []string
}

// firstProbes are those through registriesFirst.
func firstProbes() []aProbe {
	return []aProbe{
		{set: inAll, name: "there", image: "hub.example.com/team/ca:1"},
		{set: inAll, name: "absent", image: "docker.io/library/absent:1", code: 1, says: []string{"404"}},
		{set: inAll, name: "wrong authority", image: "distrusted.example.com/team/distrusted:1", code: 1, says: []string{"unknown authority", "/etc/containerd/certs.d/distrusted.example.com/"}},
		{name: "dead mirror", image: "gone.example.com/team/dead:1", code: 1, says: []string{"refused"}},
		{set: inAll, name: "dead first mirror", image: "dead.example.com/team/dead:1", says: []string{"refused"}},
		{set: inAll, name: "plain HTTP", image: "plain.site.test:5001/team/plain:1"},
		{set: inAll, name: "header", image: "header.example.com/team/header:1"},
		{set: inAll, name: "no pull secret", image: "login.site.test/team/secret:1", code: 1, says: []string{"401"}},
		{set: inAll, name: "upstream", image: "up.example.com/team/up:1", says: []string{"404"}},
	}
}

// credentialProbes are those through registriesLogin.
func credentialProbes() []aProbe {
	return []aProbe{
		{set: inAll, name: "credentials", image: "secret.example.com/team/auth:1"},
		{name: "wrong password", image: "stranger.example.com/team/stranger:1", code: 1, says: []string{"401"}},
	}
}

// probes has nodeprep ask the registries itself: its exit code is that of the pull, and its
// verdict names the cause, in text and in JSON, without a secret.
func (e *site) probes(all []aProbe) {
	for _, p := range all {
		e.t.Run("probe/"+p.name, func(t *testing.T) {
			p.set.orSkip(t)
			of := *e
			of.machine = &machine{Machine: e.Machine, ctx: e.ctx, t: t}
			before := of.counted()
			for _, r := range of.each("nodeprep explain --probe "+p.image, "nodeprep explain --probe -o json "+p.image) {
				said := r.Stdout + r.Stderr
				if r.Code != p.code {
					t.Errorf("exit %d, want %d:\n%s", r.Code, p.code, said)
				}
				of.says(said, p.says...)
				for _, secret := range secrets() {
					if strings.Contains(said, secret) {
						t.Errorf("the secret %q is shown:\n%s", secret, said)
					}
				}
			}
			if got := of.counted().packets - before.packets; (got > 0) != strings.HasPrefix(p.image, "up.example.com/") {
				t.Errorf("%d packets went upstream", got)
			}
			_, _, size := of.logs()
			maps.Copy(e.read, size)
		})
	}
}

// secrets are the texts that nobody is to see.
func secrets() []string {
	return []string{registryPassword, wrongPassword, basic(registryUser, registryPassword), basic(registryUser, wrongPassword)}
}

const wrongPassword = "a wrong one"

// registryOf is the name of the registry that listens at a host of a URL.
func (e *site) registryOf(host string) string {
	e.t.Helper()
	for _, r := range siteRegistries() {
		if slices.Contains(r.hosts, host) {
			return r.name
		}
	}
	if host != deadHost {
		e.t.Errorf("explain names a host that is no registry here: %q", host)
	}
	return host
}

// digests are what nobody knows beforehand.
var digests = regexp.MustCompile(`sha256:[0-9a-f]{64}|DIGEST`)

func asDigest(uri string) string { return digests.ReplaceAllString(uri, "DIGEST") }

// logged waits until the registries' logs have what is wanted, and fails the test where
// they have anything else: every line since the last call counts.
func (e *site) logged(want map[string][]request) {
	e.t.Helper()
	var got map[string][]request
	var lines string
	var size map[string]int
	// A line is written when its answer has been sent.
	ctx, cancel := context.WithTimeout(e.ctx, 20*time.Second)
	defer cancel()
	for {
		got, lines, size = e.logs()
		if cmp.Equal(want, got, cmpopts.EquateEmpty()) || ctx.Err() != nil {
			break
		}
	}
	maps.Copy(e.read, size)
	if diff := cmp.Diff(want, got, cmpopts.EquateEmpty()); diff != "" {
		e.t.Errorf("requests by registry (-explained +logged):\n%s\n%s", diff, lines)
	}
}

// accessLine is one of Apache's combined format.
var accessLine = regexp.MustCompile(`^(\S+) \S+ \S+ \[[^\]]*\] "(\S+) (\S+) HTTP/[0-9.]+" (\d+) `)

// logs are the requests of the node in each registry's log that no case has accounted for:
// in the order of their first appearance, each once, with its last status. A challenge is
// so one with the request that answers it.
func (e *site) logs() (map[string][]request, string, map[string]int) {
	e.t.Helper()
	script := "cd /run/site\n"
	for _, r := range siteRegistries() {
		script += fmt.Sprintf("echo '== %s'; tail -c +%d %[1]s.access\n", r.name, e.read[r.name]+1)
	}
	text := e.must(script) + "\n"
	got := make(map[string][]request)
	size := maps.Clone(e.read)
	name := ""
	for line := range strings.Lines(text) {
		if after, found := strings.CutPrefix(line, "== "); found {
			name = strings.TrimSpace(after)
			continue
		}
		size[name] += len(line)
		found := accessLine.FindStringSubmatch(line)
		if found == nil {
			e.t.Fatalf("not a line of an access log: %q", line)
		}
		if from := found[1]; from != siteNode && from != upstreamNode {
			continue // the cache asks as well
		}
		r := request{found[2] + " " + asDigest(found[3]), found[4]}
		if i := slices.IndexFunc(got[name], func(o request) bool { return o.Line == r.Line }); i >= 0 {
			got[name][i].Status = r.Status
		} else {
			got[name] = append(got[name], r)
		}
	}
	return got, text, size
}

// counts are of what no access log has.
type counts struct {
	packets    int            // all that have come to the Internet
	handshakes map[string]int // the node's that failed, by registry
}

func (e *site) counted() counts {
	e.t.Helper()
	all := counts{handshakes: make(map[string]int)}
	script := "ip netns exec upstream sed s/^/packets:/ /sys/class/net/net0/statistics/rx_packets; cd /run/site; grep -c 'TLS handshake error from 10.99.[12].1:' *.log || true"
	for line := range strings.Lines(e.must(script)) {
		name, count, _ := strings.Cut(strings.TrimSpace(line), ":")
		n, err := strconv.Atoi(count)
		if err != nil {
			e.t.Fatal(err)
		}
		if name == "packets" {
			all.packets = n
		} else {
			all.handshakes[strings.TrimSuffix(name, ".log")] = n
		}
	}
	return all
}

// changed applies another profile while a container runs: with a mirror more and a registry
// less. Nothing restarts for that.
func (e *site) changed(pod container) {
	m, n := e.machine, e.node
	const certs = "/etc/containerd/certs.d"
	const foreign = certs + "/foreign.example.com"
	m.must("mkdir " + foreign + " && test -e " + certs + "/harbor.example.com/hosts.toml")
	// All releases can read it, and it leads nowhere that the profile denies.
	if err := m.WriteFile(m.ctx, foreign+"/hosts.toml", "server = \"https://tls.site.test\"\n\n[host.\"https://tls.site.test\"]\n"); err != nil {
		m.t.Fatal(err)
	}
	daemon := func() map[string]string { return m.shows("containerd", "MainPID", "InvocationID", "NRestarts") }
	before := daemon()
	e.give(registriesChanged)

	type plan struct {
		Items []struct{ Action, Kind, Path string }
	}
	r := m.run(n.command("plan") + " -o json")
	var planned plan
	if err := json.Unmarshal([]byte(r.Stdout), &planned); err != nil || r.Code != 3 {
		m.t.Fatalf("plan: exit %d, want 3: %v\n%s%s", r.Code, err, r.Stdout, r.Stderr)
	}
	for _, i := range planned.Items {
		if i.Action != "keep" && !strings.HasPrefix(i.Path, certs+"/") {
			m.t.Errorf("registries alone have changed, and the plan wants to %s %s %s", i.Action, i.Kind, i.Path)
		}
	}
	m.says(r.Stdout, certs+"/docker.io/hosts.toml", certs+"/harbor.example.com")
	said := map[string]string{
		"plan": r.Stdout + r.Stderr, "apply": m.exits(0, n.command("apply")),
		"check": m.run(n.command("check --only registry/foreign")).Stdout,
	}
	m.t.Run("a folder of others is named", func(t *testing.T) {
		for verb, text := range said {
			if !strings.Contains(text, foreign) {
				t.Errorf("nodeprep %s says nothing of %s, which is not its own:\n%s", verb, foreign, text)
			}
		}
	})
	m.must("test ! -e " + certs + "/harbor.example.com && test -e " + foreign + "/hosts.toml")
	if diff := cmp.Diff(before, daemon()); diff != "" {
		m.t.Errorf("registries restarted the daemon (-before +after):\n%s", diff)
	}
	if got := m.starts(); got != "1" {
		m.t.Errorf("the daemon was started %s times, want 1", got)
	}
	e.runs(pod)
}

// runs fails the test unless the node has this container alone, with its processes.
func (e *site) runs(pod container) {
	e.t.Helper()
	if diff := cmp.Diff([]container{pod}, asJSON[[]container](e.machine, e.node.cri("ps"))); diff != "" {
		e.t.Errorf("the running containers (-before +after):\n%s", diff)
	}
	e.must(fmt.Sprintf("test -d /proc/%d && test -d /proc/%d", pod.PID, pod.PodPID))
}

// credentials applies those of config.toml, for which the daemon restarts. They are on the
// node in files for root alone, and nodeprep shows none.
func (e *site) credentials(pod container) {
	m, n := e.machine, e.node
	e.give(registriesLogin)
	said := m.run(n.command("plan")).Stdout + m.exits(0, n.command("apply")) + m.exits(0, "nodeprep status")
	for _, image := range []string{"secret.example.com/team/auth:1", "header.example.com/team/header:1"} {
		said += m.must("nodeprep explain " + image)
	}
	for _, secret := range secrets() {
		if strings.Contains(said, secret) {
			m.t.Errorf("nodeprep shows a secret, %q:\n%s", secret, said)
		}
		for file := range strings.Lines(m.must("grep -rlF -- '" + secret + "' /etc/containerd /var/lib/nodeprep || true")) {
			if mode := m.must("stat -c %a '" + strings.TrimSpace(file) + "'"); mode != "600" {
				m.t.Errorf("%s has the secret %q, and mode %s", strings.TrimSpace(file), secret, mode)
			}
		}
	}
	e.runs(pod)
}

// nothingLeft fails the test where a registry was asked for more than the cases know of.
func (e *site) nothingLeft() {
	e.t.Helper()
	e.logged(nil)
}
