package checks

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/nodeprep/nodeprep/internal/configtoml"
	"github.com/nodeprep/nodeprep/internal/releases"
)

const transferSection = "io.containerd.transfer.v1.local"

func configUnpack(n *Node, c *configtoml.Config) []Result {
	if !releases.TransferPull(rules(c)) {
		return skip("containerd %s unpacks in CRI itself", c.Release.Line())
	}
	unpackers, at := c.Unpackers()
	missing := c.NotUnpacked()
	if len(missing) == 0 {
		if local := c.LocalPull(); len(local) > 0 {
			return pass("CRI pulls by itself, because of %s", strings.Join(local, ", "))
		}
		return pass("the transfer service unpacks for %s", strings.Join(unpackers, ", "))
	}
	var who []string
	for _, u := range missing {
		of := "CRI has " + u.Snapshotter
		if u.Runtime != "" {
			of = "runtime " + u.Runtime + " has " + u.Snapshotter
		}
		who = append(who, of)
	}
	given := "the default"
	if at.File != "" {
		given = at.String()
	}
	file, edits := n.addUnpackers(c)
	remedy := n.fixConfig(file, "containerd.settings."+key([]string{"plugins", transferSection, "unpack_config"}), edits)
	if drift, err := n.drifted(); n.makes(file) && at.File == "" && (err != nil || drift[file] == "") {
		remedy = n.reapply(false) // which writes it by itself
	}
	return []Result{{
		Verdict: Fail, Observed: fmt.Sprintf("%s, and the transfer service unpacks for %s (%s)", strings.Join(who, ", "), cmp.Or(strings.Join(unpackers, ", "), "nothing"), given),
		Wanted: "an entry of unpack_config for it", Place: cmp.Or(at.String(), missing[0].Place.String(), c.Path), Remedy: remedy,
		Note: `pulls fail with "no unpack platforms defined"`,
	}}
}

// addUnpackers are the edits that have the transfer service unpack for all snapshotters that
// CRI uses, and the file that they are for: "" where it does, or CRI does not pull through it.
// That some old setting keeps CRI from it for now does not count.
//
// A list in a file takes the place of the default, and of those in files before it. So it goes
// where the last one is; a first one has the default's overlayfs, which ctr takes by itself.
func (n *Node) addUnpackers(c *configtoml.Config) (file, edit string) {
	missing := c.Unserved()
	if len(missing) == 0 {
		return "", ""
	}
	_, at := c.Unpackers()
	file = cmp.Or(at.File, missing[0].Place.File, c.Path)
	var used []string
	for _, u := range missing {
		used = append(used, u.Snapshotter)
	}
	if def, _ := c.Snapshotter(); at.File == "" && def == releases.DefaultSnapshotter {
		used = append(used, def)
	}
	list := releases.Unpackers(rules(c), used)
	if at.File != "" {
		// Whoever wrote the list knows what else should be in it.
		list = slices.DeleteFunc(list, func(u releases.Unpacker) bool { return u.Optional })
	}
	header := "[[plugins." + tomlText(transferSection) + ".unpack_config]]"
	var lines, said []string
	for _, e := range list {
		// Without an architecture it is for the node's own.
		lines = append(lines, "", header, `platform = "linux"`, "snapshotter = "+tomlText(e.Snapshotter))
		said = append(said, e.Snapshotter)
		if e.Differ != "" {
			lines = append(lines, "differ = "+tomlText(e.Differ))
		}
		if e.Optional {
			lines = append(lines, "optional = true")
		}
	}
	comment := func() (string, string) {
		return file, fmt.Sprintf("# in %s: %s with platform = \"linux\" and snapshotter = ..., one for each of %s", file, header, strings.Join(said, ", "))
	}
	f := fileOf(c, file)
	if f == nil || f.Version < 2 {
		return comment()
	}
	table := []string{"plugins", transferSection, "unpack_config"}
	first := ""
	if unpackers, _ := c.Unpackers(); len(unpackers) == 0 && at.File != "" && n.isSetting(at, "unpack_config") {
		first = n.drop(file, at) + "\n"
		table = table[:2]
	}
	for i := range table {
		// Inline tables, dotted keys and lists cannot be added to by a header.
		if at := f.Place(table[:i+1]...); at.Line > 0 && !strings.HasPrefix(strings.TrimSpace(n.configLine(at)), "[") {
			return comment()
		}
	}
	for i, l := range lines {
		lines[i] = quote(l)
	}
	return file, first + fmt.Sprintf("printf '%%s\\n' %s >> %s", strings.Join(lines, " "), quote(n.onHost(file)))
}
