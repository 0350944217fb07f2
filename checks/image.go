package checks

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/distribution/reference"

	"github.com/nodeprep/nodeprep/internal/daemon"
	"github.com/nodeprep/nodeprep/internal/imagearchive"
	"github.com/nodeprep/nodeprep/internal/releases"
	"github.com/nodeprep/nodeprep/profiles"
)

// kubeletNamespace is where CRI, and so the kubelet, has its images; ctr without -n works
// in the other.
const (
	kubeletNamespace = "k8s.io"
	ctrNamespace     = "default"
	sandboxCheck     = "images/sandbox"
)

// imageChecks are about images in the daemon.
func imageChecks() []Check {
	return []Check{
		{
			ID: sandboxCheck, Stage: Audit, Severity: Required,
			Why:    "Every pod starts with the sandbox image; on a node without network that has it only for ctr's own namespace, none ever does.",
			Source: "containerd docs/cri/config.md, sandbox image; kubeadm issue 2801; containerd issue 4887",
			Needs:  []string{daemonAnswers},
			Remedy: "ctr -n default images export --local - IMAGE | ctr -n k8s.io images import -",
			Run:    single(sandboxImage),
		},
		{
			ID: "images/sandbox-pinned", Stage: Audit, Severity: Recommended,
			Why:    "The kubelet's garbage collection removes images that are not pinned, on a node without network for good.",
			Source: "Kubernetes KEP 2040 of CRI, Image.pinned; k3s issue 11363",
			Needs:  []string{daemonAnswers, sandboxCheck},
			Remedy: "ctr -n k8s.io images label IMAGE io.cri-containerd.pinned=pinned",
			Run:    single(sandboxPinned),
		},
		{
			ID: "images/platform", Stage: Audit, Severity: Required,
			Why:    "An image whose content is another architecture's, or incomplete, is found by name and ends in \"exec format error\" or \"content digest not found\".",
			Source: "containerd core/images, Check; execve(2), ENOEXEC",
			Needs:  []string{daemonAnswers},
			Remedy: "ctr -n k8s.io images rm IMAGE",
			Run:    imagePlatforms,
		},
		{
			ID: "images/names", Stage: Audit, Severity: Recommended,
			Why:    "CRI looks images up by their full names: busybox:1 in the daemon is not the docker.io/library/busybox:1 that a pod asks for.",
			Source: "github.com/distribution/reference, ParseDockerRef; containerd internal/cri/util/references.go",
			Needs:  []string{daemonAnswers},
			Remedy: "ctr -n k8s.io images tag NAME FULL-NAME",
			Run:    imageNames,
		},
		{
			ID: "images/default-namespace", Stage: Audit, Severity: Recommended,
			Why:    "Images that were imported without -n k8s.io are there for ctr alone, and the kubelet pulls them all the same.",
			Source: "containerd docs/namespaces.md; containerd issue 4887",
			Needs:  []string{daemonAnswers},
			Remedy: "ctr -n default images export --local - IMAGE | ctr -n k8s.io images import -",
			Run:    defaultNamespace,
		},
		{
			ID: "images/foreign-namespaces", Stage: Audit, Severity: Recommended,
			Why:    "Others use this daemon too: their containers stop when it does, and its data is not the kubelet's alone.",
			Source: "containerd docs/namespaces.md",
			Needs:  []string{daemonAnswers},
			Remedy: "ctr namespaces ls",
			Run:    foreignNamespaces,
		},
	}
}

// platform is this host's, as containerd writes it; "" is that of this program.
func (n *Node) platform() string {
	if !n.Facts.ArchKnown || n.Facts.Arch == "" {
		return ""
	}
	return "linux/" + n.Facts.Arch
}

// images are the kubelet's images, as the daemon has them for this host.
func (n *Node) images() ([]daemon.ImageState, error) {
	return remember(n, "images", func(ctx context.Context) ([]daemon.ImageState, error) {
		c, err := n.Client()
		if err != nil {
			return nil, err
		}
		snapshotter := ""
		if c, err := n.Config(); err == nil {
			snapshotter, _ = c.Snapshotter()
		}
		return c.ImageStates(ctx, kubeletNamespace, n.platform(), snapshotter)
	})
}

// imageState looks at one of the kubelet's images.
func (n *Node) imageState(name string) (daemon.ImageState, error) {
	return remember(n, "image "+name, func(ctx context.Context) (daemon.ImageState, error) {
		c, err := n.Client()
		if err != nil {
			return daemon.ImageState{}, err
		}
		snapshotter := ""
		if c, err := n.Config(); err == nil {
			snapshotter, _ = c.Snapshotter()
		}
		all, err := c.ImageStates(ctx, kubeletNamespace, n.platform(), snapshotter, name)
		switch {
		case err != nil:
			return daemon.ImageState{}, err
		case len(all) == 0:
			return daemon.ImageState{}, fmt.Errorf("the image %s has just gone", name)
		}
		return all[0], nil
	})
}

func (n *Node) ctrImages() ([]daemon.Image, error) {
	return remember(n, "images of ctr", func(ctx context.Context) ([]daemon.Image, error) {
		c, err := n.Client()
		if err != nil {
			return nil, err
		}
		return c.Images(ctx, ctrNamespace)
	})
}

// fullName is an image's name as CRI looks it up, as it is where it is no name.
func fullName(name string) string {
	if full, err := reference.ParseDockerRef(name); err == nil {
		return full.String()
	}
	return name
}

// importFlags make ctr unpack an image where CRI expects it. The daemon of 2.x, which does
// that for ctr, knows only the snapshotters of its transfer service's config.
func (n *Node) importFlags() string {
	c, err := n.Config()
	if err != nil {
		return ""
	}
	s, _ := c.Snapshotter()
	if s == "overlayfs" {
		return ""
	}
	flags := "--snapshotter " + quote(s) + " "
	if c.Release == (releases.Version{}) || c.Release.AtLeast(2, 0, 0) {
		flags = "--local " + flags
	}
	return flags
}

// exportFlags make ctr write an image itself, where it knows the flag (since 1.7): the
// daemon's transfer service, which it asks otherwise, may have its last bytes under way when
// ctr ends, and then the archive is cut short (seen with 2.1.9).
func (n *Node) exportFlags() string {
	if c, err := n.Config(); err == nil && c.Release != (releases.Version{}) && !c.Release.AtLeast(1, 7, 0) {
		return ""
	}
	return "--local "
}

// move brings images from ctr's namespace to the kubelet's. Without --platform, ctr of
// all releases hands on what is there.
func (n *Node) move(names []string) string {
	var list []string
	for _, name := range names {
		list = append(list, quote(name))
	}
	return fmt.Sprintf("%s images export %s- %s | %s images import %s-", n.ctr(ctrNamespace), n.exportFlags(), strings.Join(list, " "), n.ctr(kubeletNamespace), n.importFlags())
}

func sandboxImage(_ context.Context, n *Node) Result {
	c, err := n.Config()
	if err != nil {
		return unknown(err)[0]
	}
	given, place := c.SandboxImage()
	name := fullName(given)
	all, err := n.images()
	if err != nil {
		return unknown(err)[0]
	}
	r := Result{Object: name, Place: orDefault(place), Wanted: "in namespace k8s.io, complete for " + platformName(n)}
	if i := slices.IndexFunc(all, func(s daemon.ImageState) bool { return s.Name == name }); i >= 0 {
		s := all[i]
		if s.Unlooked {
			if s, err = n.imageState(name); err != nil {
				return unknown(err)[0]
			}
		}
		if s.Complete {
			r.Verdict, r.Observed = Pass, "in namespace k8s.io, complete"
			return r
		}
		r.Verdict, r.Observed = Fail, incomplete(s)
		r.Remedy = fmt.Sprintf("%s images rm %s", n.ctr(kubeletNamespace), quote(name))
		if s.InUse {
			r.Remedy = "# pull it anew: crictl pull " + name
		}
		if img := n.archived(name); img != nil {
			r.Remedy = n.importLine(img)
		}
		return r
	}
	others, err := n.ctrImages()
	if err != nil {
		return unknown(err)[0]
	}
	for _, o := range others {
		if o.Name == name {
			r.Verdict, r.Observed = Fail, "only in namespace default, where \"ctr images import\" without -n k8s.io puts it: the kubelet does not see it"
			r.Remedy = n.move([]string{name})
			return r
		}
	}
	if img := n.archived(name); img != nil {
		r.Verdict, r.Observed = Fail, "not there, though the profile imports it from "+img.File.Path
		r.Remedy = n.importLine(img)
		return r
	}
	r.Verdict, r.Observed = Warn, "not there: the first pod pulls it from "+n.pulledFrom(name)
	r.Note = "a node without network needs it in images: of its profile"
	return r
}

func platformName(n *Node) string {
	if p := n.platform(); p != "" {
		return p
	}
	return "this host"
}

func incomplete(s daemon.ImageState) string {
	switch {
	case len(s.Missing) > 0:
		return fmt.Sprintf("incomplete: %d parts of it are missing, such as %s", len(s.Missing), s.Missing[0])
	case len(s.Platforms) > 0:
		return "only for " + strings.Join(s.Platforms, ", ")
	}
	return "without content for this platform"
}

// archived is the profile's archive that has an image, nil where none has that can be
// read here.
func (n *Node) archived(name string) *profiles.Image {
	if n.Spec == nil || !n.Live {
		return nil
	}
	for _, img := range n.Spec.Images {
		has, err := remember(n, "archive "+img.File.Path, func(ctx context.Context) ([]string, error) {
			f, err := n.Host.Root.Open(img.File.Path)
			if err != nil {
				return nil, err
			}
			defer f.Close()
			return imagearchive.Names(ctx, f)
		})
		if err == nil && slices.Contains(has, name) {
			return &img
		}
	}
	return nil
}

func (n *Node) importLine(img *profiles.Image) string {
	unpack, from := "", quote(img.File.Path)
	// ctr does not unpack archives in all releases.
	for suffix, program := range map[string]string{".gz": "gzip", ".tgz": "gzip", ".zst": "zstd"} {
		if strings.HasSuffix(img.File.Path, suffix) {
			unpack, from = program+" -dc "+from+" | ", "-"
		}
	}
	return fmt.Sprintf("%s%s images import %s%s", unpack, n.ctr(kubeletNamespace), n.importFlags(), from)
}

// pulledFrom is whom a pull of an image asks, in order.
func (n *Node) pulledFrom(name string) string {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "nowhere: it is no name of an image"
	}
	host := reference.Domain(named)
	certs, err := n.certs()
	if err != nil {
		return host
	}
	var hosts []string
	for _, e := range certs.hosts(host) {
		hosts = append(hosts, e.host)
	}
	return strings.Join(hosts, ", then ")
}

func sandboxPinned(_ context.Context, n *Node) Result {
	v, _, err := n.Release()
	if err != nil {
		return unknown(err)[0]
	}
	if v != (releases.Version{}) && !releases.PinSupported(v) {
		return skip("containerd %s knows no pins", v)[0]
	}
	c, err := n.Config()
	if err != nil {
		return unknown(err)[0]
	}
	given, _ := c.SandboxImage()
	name := fullName(given)
	all, err := n.images()
	if err != nil {
		return unknown(err)[0]
	}
	i := slices.IndexFunc(all, func(s daemon.ImageState) bool { return s.Name == name })
	switch {
	case i < 0:
		return skip("%s is not there", name)[0]
	case all[i].Pinned:
		return Result{Verdict: Pass, Object: name, Observed: "pinned"}
	}
	return Result{
		Verdict: Warn, Object: name, Observed: "not pinned", Wanted: "label io.cri-containerd.pinned=pinned",
		Remedy: fmt.Sprintf("%s images label %s io.cri-containerd.pinned=pinned", n.ctr(kubeletNamespace), quote(name)),
	}
}

func imagePlatforms(_ context.Context, n *Node) []Result {
	all, err := n.images()
	if err != nil {
		return unknown(err)
	}
	sandbox := ""
	if c, err := n.Config(); err == nil {
		given, _ := c.SandboxImage()
		sandbox = fullName(given)
	}
	// The names of an image go together, as do those of the sandbox image, which has a
	// check of its own.
	var order []string
	names := map[string][]string{}
	states := map[string]daemon.ImageState{}
	for _, s := range all {
		if names[s.Digest] == nil {
			order = append(order, s.Digest)
		}
		names[s.Digest] = append(names[s.Digest], s.Name)
		states[s.Digest] = s
	}
	var faults []Result
	unlooked, inUse := 0, map[string]bool{}
	for _, s := range all {
		inUse[s.Digest] = inUse[s.Digest] || s.InUse
	}
	for _, d := range order {
		s := states[d]
		if s.Unlooked {
			unlooked++
			continue
		}
		if s.Complete || s.Artifact || notLinux(s) || slices.Contains(names[d], sandbox) {
			continue
		}
		var list []string
		for _, name := range names[d] {
			list = append(list, quote(name))
		}
		r := Result{
			Verdict: Fail, Object: names[d][0], Observed: incomplete(s), Wanted: "complete for " + platformName(n),
			Place:  "namespace k8s.io",
			Remedy: fmt.Sprintf("%s images rm %s", n.ctr(kubeletNamespace), strings.Join(list, " ")),
			Note:   "once it is removed, the kubelet pulls it for this platform",
		}
		if inUse[d] {
			// What runs has its layers; removing the image would only lose its name.
			r.Verdict, r.Remedy, r.Note = Warn, "# pull it anew: crictl pull "+names[d][0], "a container was made of it"
		}
		faults = append(faults, r)
	}
	results := orPass(faults, "%d images, all complete for %s", len(order)-unlooked, platformName(n))
	if unlooked > 0 {
		last := &results[len(results)-1]
		last.Note = strings.TrimPrefix(fmt.Sprintf("%s; %d more images were not looked at", last.Note, unlooked), "; ")
	}
	return results
}

// notLinux says whether an image is for other systems alone, such as wasi/wasm, which
// another runtime than runc takes.
func notLinux(s daemon.ImageState) bool {
	return len(s.Platforms) > 0 && !slices.ContainsFunc(s.Platforms, func(p string) bool { return strings.HasPrefix(p, "linux") })
}

func imageNames(_ context.Context, n *Node) []Result {
	all, err := n.images()
	if err != nil {
		return unknown(err)
	}
	var faults []Result
	for _, s := range all {
		// CRI itself names an image by the digest of its config, too.
		if strings.HasPrefix(s.Name, "sha256:") {
			continue
		}
		full := fullName(s.Name)
		if full == s.Name {
			if _, err := reference.ParseDockerRef(s.Name); err == nil {
				continue
			}
		}
		r := Result{Verdict: Warn, Object: s.Name, Observed: "no full name", Place: "namespace k8s.io"}
		if full != s.Name {
			r.Wanted = full
			// Where both are there, only the short one is to go.
			if !slices.ContainsFunc(all, func(o daemon.ImageState) bool { return o.Name == full }) {
				r.Remedy = fmt.Sprintf("%s images tag %s %s\n", n.ctr(kubeletNamespace), quote(s.Name), quote(full))
			}
		} else {
			r.Wanted = "a name such as registry.example.com/app:1"
		}
		r.Remedy += fmt.Sprintf("%s images rm %s", n.ctr(kubeletNamespace), quote(s.Name))
		faults = append(faults, r)
	}
	return orPass(faults, "%d names, all full", len(all))
}

func defaultNamespace(_ context.Context, n *Node) []Result {
	others, err := n.ctrImages()
	if err != nil {
		return unknown(err)
	}
	all, err := n.images()
	if err != nil {
		return unknown(err)
	}
	if len(others) == 0 {
		return pass("no images in namespace default")
	}
	kubelet, err := n.Kubelet()
	if err != nil {
		return unknown(err)
	}
	if kubelet == nil && n.Spec == nil && len(all) == 0 {
		return skip("no kubelet uses this daemon")
	}
	sandbox := ""
	if c, err := n.Config(); err == nil {
		given, _ := c.SandboxImage()
		sandbox = fullName(given)
	}
	var lost []string
	for _, o := range others {
		there := slices.ContainsFunc(all, func(s daemon.ImageState) bool { return s.Name == o.Name })
		if !there && o.Name != sandbox {
			lost = append(lost, o.Name)
		}
	}
	if len(lost) == 0 {
		return pass("%d images in namespace default, none that the kubelet misses", len(others))
	}
	const most = 5
	shown := strings.Join(lost[:min(most, len(lost))], ", ")
	if len(lost) > most {
		shown += fmt.Sprintf(" and %d more", len(lost)-most)
	}
	return []Result{{
		Verdict: Warn, Observed: "only in namespace default, which the kubelet does not see: " + shown, Wanted: "in namespace k8s.io",
		Place: "namespace default", Remedy: n.move(lost),
	}}
}

func foreignNamespaces(ctx context.Context, n *Node) []Result {
	c, err := n.Client()
	if err != nil {
		return unknown(err)
	}
	all, err := c.Namespaces(ctx)
	if err != nil {
		return unknown(err)
	}
	whose := map[string]string{
		"moby": "Docker's containers", "plugins.moby": "Docker's plugins", "buildkit": "BuildKit's", "buildkit_history": "BuildKit's",
	}
	var faults []Result
	for _, ns := range all {
		if ns == kubeletNamespace || ns == ctrNamespace {
			continue
		}
		observed, ok := whose[ns]
		if !ok {
			observed = "somebody's: containerd does not know whose"
		}
		faults = append(faults, Result{
			Verdict: Warn, Object: ns, Observed: observed, Wanted: "a daemon that only the kubelet uses", Place: "namespace " + ns,
			Remedy: fmt.Sprintf("%s containers ls", n.ctr(quote(ns))),
			Note:   "they stop with this daemon's host, and purging its data takes theirs",
		})
	}
	return orPass(faults, "%s", strings.Join(append([]string{"namespaces"}, all...), " "))
}
