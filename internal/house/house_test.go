package house

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/nodeprep/nodeprep"

// wall is what a package may import of ours, and why not more.
type wall struct {
	may []string // "x" allows x alone, "x/*" all below x
	why string
}

// walls is the layering of the design. Move one in a commit that says why.
func walls() map[string]wall {
	return map[string]wall{
		"cmd/nodeprep":     {[]string{"*"}, "the verbs wire everything together"},
		"profiles":         {[]string{"internal/diag", "internal/releases", "internal/spelling"}, "a profile is resolved from plain facts, on any machine, without a host"},
		"render":           {[]string{"profiles", "render/registry", "internal/desired", "internal/diag", "internal/releases"}, "rendering is pure: Spec to files"},
		"render/cloudinit": {[]string{"internal/diag"}, "user-data is pure text: of a profile it knows the bytes"},
		"render/registry":  {[]string{"profiles", "internal/desired", "internal/diag", "internal/releases"}, "rendering is pure: Spec to files"},
		"systemd":          {[]string{"profiles", "internal/desired", "internal/diag", "internal/releases"}, "unit text is pure, and the Manager knows units, not plans"},
		"install":          {[]string{"install/*", "systemd", "internal/*"}, "the transaction applies a desired state and must not know how it was made"},
		"install/release":  {[]string{"internal/*"}, "artifacts are fetched and verified without knowing profiles"},
		"install/bundle":   {[]string{"install/release", "profiles", "internal/*"}, "a bundle is made of a profile and releases, without knowing plans or hosts"},
		"checks":           {[]string{"profiles", "render/registry", "systemd", "internal/*"}, "checks read; they never install"},

		"internal/diag":         {nil, "the lowest layer"},
		"internal/releases":     {[]string{"internal/diag"}, "facts, no decisions"},
		"internal/desired":      {[]string{"internal/diag"}, "plain data"},
		"internal/elf":          {nil, "headers of programs, no hosts"},
		"internal/elf/elftest":  {nil, "programs for tests"},
		"internal/host":         {nil, "the one seam to the outside knows nothing of what it is used for"},
		"internal/configtoml":   {[]string{"internal/host", "internal/releases", "internal/spelling"}, "reads containerd's config; decides nothing"},
		"internal/imagearchive": {nil, "archives of images, no daemons"},
		"internal/daemon":       {[]string{"internal/imagearchive"}, "containerd's API and the archives that it takes, which are read and named in one place; no plans"},
		"internal/probe":        {[]string{"internal/host"}, "it asks whom it is told to ask, and knows neither profiles nor hosts.toml"},
		"internal/spelling":     {nil, "words, whosever they are"},
		"internal/house":        {nil, "rules"},
		"examples":              {[]string{"*"}, "examples are tests"},
	}
}

// repository calls f for each Go file of the main module.
func repository(t *testing.T, f func(pkg, file string)) {
	t.Helper()
	root := "../.."
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if p != root && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return fs.SkipDir
			}
			// A nested module is a house of its own.
			if _, err := os.Stat(filepath.Join(p, "go.mod")); err == nil && p != root {
				return fs.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(p, ".go") {
			rel, err := filepath.Rel(root, p)
			if err != nil {
				return err
			}
			f(path.Dir(filepath.ToSlash(rel)), p)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func allowed(w wall, dep string) bool {
	return slices.ContainsFunc(w.may, func(m string) bool {
		base, below := strings.CutSuffix(m, "/*")
		return m == "*" || m == dep || below && strings.HasPrefix(dep, base+"/")
	})
}

func TestImportsFollowTheDesign(t *testing.T) {
	rules := walls()
	seen := 0
	repository(t, func(pkg, file string) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(pkg, "test/") {
			return
		}
		w, known := rules[pkg]
		if !known {
			t.Errorf("%s: package %s is not in the table of walls: add it, with the reason", file, pkg)
			return
		}
		src, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		for _, imp := range src.Imports {
			dep, ours := strings.CutPrefix(strings.Trim(imp.Path.Value, `"`), module+"/")
			if !ours {
				continue
			}
			seen++
			if dep != pkg && !allowed(w, dep) {
				t.Errorf("%s imports %s: %s may not (%s)", file, dep, pkg, w.why)
			}
		}
	})
	if seen < 20 {
		t.Errorf("only %d imports of our own were looked at: the walk is broken", seen)
	}
}

// pure packages decide; they ask nothing of the machine they run on.
func TestPurePackagesDoNoInputOrOutput(t *testing.T) {
	pure := []string{"render", "render/cloudinit", "render/registry", "internal/diag", "internal/desired", "internal/releases", "internal/spelling"}
	banned := []string{"os", "os/exec", "net", "net/http", "io/ioutil", "path/filepath"}
	repository(t, func(pkg, file string) {
		if !slices.Contains(pure, pkg) || strings.HasSuffix(file, "_test.go") {
			return
		}
		src, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			t.Error(err)
			return
		}
		for _, imp := range src.Imports {
			if dep := strings.Trim(imp.Path.Value, `"`); slices.Contains(banned, dep) {
				t.Errorf("%s imports %s: package %s is pure", file, dep, pkg)
			}
		}
	})
}

// waysOut are what of the standard library connects to other machines or asks their names
// without being given the way: everything that could go past a host.Network. A client or
// transport is built with fields, and says there how it connects.
func waysOut() map[string][]string {
	return map[string][]string{
		"net": {"Dial", "DialTimeout", "DialIP", "DialTCP", "DialUDP", "DialUnix", "Dialer", "DefaultResolver", "Resolver", "ResolveIPAddr", "ResolveTCPAddr", "ResolveUDPAddr",
			"LookupAddr", "LookupCNAME", "LookupHost", "LookupIP", "LookupMX", "LookupNS", "LookupPort", "LookupSRV", "LookupTXT"},
		"net/http":   {"DefaultClient", "DefaultTransport", "Get", "Head", "Post", "PostForm", "Client", "Transport"},
		"crypto/tls": {"Dial", "DialWithDialer", "Dialer"},
		"net/smtp":   nil, "net/rpc": nil, "net/rpc/jsonrpc": nil, // all of it
		"syscall":                {"Connect", "Sendto"},
		"golang.org/x/sys/unix":  {"Connect", "Sendto"},
		"google.golang.org/grpc": {"Dial", "DialContext", "NewClient"},
		// These have clients of their own where none is given, and look up names on their own.
		"oras.land/oras-go/v2/registry/remote/auth":                    nil,
		"oras.land/oras-go/v2/registry/remote/credentials":             nil,
		"github.com/containerd/containerd/v2/core/remotes/docker":      nil,
		"github.com/hashicorp/go-getter/v2":                            {"Get", "GetAny", "GetFile", "DefaultClient", "Getters", "HttpGetter"},
		"oras.land/oras-go/v2/registry/remote/retry":                   {"DefaultClient", "NewClient"},
		"github.com/containerd/containerd/v2/core/remotes/docker/auth": {"FetchToken", "FetchTokenWithOAuth"},
	}
}

// knownWaysOut are the files that use one all the same.
func knownWaysOut() map[string]string {
	return map[string]string{
		"internal/host/network.go net.Dialer":                                               "it is the way out",
		"internal/host/network.go net/http.Transport":                                       "it dials through the Network",
		"internal/daemon/daemon.go net.Dialer":                                              "containerd's unix socket",
		"internal/daemon/peer_linux.go net.Dialer":                                          "containerd's unix socket",
		"cmd/nodeprep/check.go net.Dialer":                                                  "D-Bus and other unix sockets",
		"checks/hostnetwork.go net.Resolver":                                                "it asks through Outside.Dial, pure Go",
		"checks/registry_network.go net/http.Client":                                        "its Transport dials through Outside.Dial",
		"checks/registry_network.go net/http.Transport":                                     "it dials through Outside.Dial",
		"install/release/fetch.go github.com/hashicorp/go-getter/v2.HttpGetter":             "its Client is the fetcher's",
		"install/release/fetch.go net/http.Client":                                          "its Transport is the Network's",
		"install/bundle/registry_connect.go net/http.Client":                                "its Transport is the Network's",
		"cmd/nodeprep/hostsdir.go github.com/containerd/containerd/v2/core/remotes/docker":  "the names of capabilities alone",
		"internal/probe/network.go net.Resolver":                                            "it asks through the Network, pure Go",
		"internal/probe/network.go net/http.Client":                                         "its Transport is the Network's",
		"internal/probe/network.go github.com/containerd/containerd/v2/core/remotes/docker": "its authorizer gets that client",
		"internal/probe/probe.go github.com/containerd/containerd/v2/core/remotes/docker":   "the authorizer's type, and scopes",
		"internal/probe/image.go github.com/containerd/containerd/v2/core/remotes/docker":   "scopes, and what a manifest may have",
		"internal/probe/verdict.go github.com/containerd/containerd/v2/core/remotes/docker": "the authorizer's error",
	}
}

// What --offline and --bundle promise rests on everything going through one dialer.
func TestNothingGoesPastTheNetwork(t *testing.T) {
	out, known := waysOut(), knownWaysOut()
	used := map[string]bool{}
	repository(t, func(pkg, file string) {
		if strings.HasSuffix(file, "_test.go") || strings.HasPrefix(pkg, "test/") || pkg == "internal/house" {
			return
		}
		set := token.NewFileSet()
		src, err := parser.ParseFile(set, file, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Error(err)
			return
		}
		here := strings.TrimPrefix(filepath.ToSlash(file), "../../")
		found := func(pos token.Pos, way string) {
			if use := here + " " + way; known[use] != "" {
				used[use] = true
				return
			}
			t.Errorf("%s: %s goes past host.Network, so that --offline does not hold for it", set.Position(pos), way)
		}
		names := map[string]string{} // of the imports in this file
		for _, imp := range src.Imports {
			from := strings.Trim(imp.Path.Value, `"`)
			banned, watched := out[from]
			if !watched {
				continue
			}
			if banned == nil {
				found(imp.Pos(), from)
				continue
			}
			name := path.Base(from)
			if imp.Name != nil {
				name = imp.Name.Name
			}
			switch name {
			case "v2":
				name = "getter"
			case ".":
				t.Errorf("%s: a dot import of %s hides what is used of it", set.Position(imp.Pos()), from)
			}
			names[name] = from
		}
		mentions := map[ast.Expr]bool{} // a pointer to a type is not yet one of it
		ast.Inspect(src, func(n ast.Node) bool {
			switch n := n.(type) {
			case *ast.StarExpr:
				mentions[n.X] = true
			case *ast.SelectorExpr:
				x, ok := n.X.(*ast.Ident)
				if !ok || mentions[n] {
					return true
				}
				if from := names[x.Name]; slices.Contains(out[from], n.Sel.Name) {
					found(n.Pos(), from+"."+n.Sel.Name)
				}
			}
			return true
		})
	})
	for use, why := range known {
		if !used[use] {
			t.Errorf("%s (%s): is no more; take it off the list", use, why)
		}
	}
}

func TestEveryPackageSaysWhatItIsFor(t *testing.T) {
	docs := map[string][]string{}
	repository(t, func(pkg, file string) {
		docs[pkg] = append(docs[pkg], "")
		if strings.HasSuffix(file, "_test.go") {
			return
		}
		src, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.PackageClauseOnly|parser.ParseComments)
		if err != nil {
			t.Error(err)
			return
		}
		if src.Doc != nil {
			docs[pkg] = append(docs[pkg], file)
		}
	})
	for pkg, files := range docs {
		files = slices.DeleteFunc(files, func(f string) bool { return f == "" })
		if len(files) != 1 {
			t.Errorf("package %s has its comment in %d files %v, want exactly one", pkg, len(files), files)
		}
	}
}

// A replaced module builds here and nowhere else.
func TestNoModuleIsReplaced(t *testing.T) {
	b, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if strings.HasPrefix(strings.TrimSpace(line), "replace") {
			t.Errorf("go.mod: %s", line)
		}
	}
}
