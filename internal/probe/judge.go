package probe

import (
	"fmt"
	"slices"
	"strings"
)

// Judge says what all answers come to, in containerd's order: whether the image can be
// pulled (resolved, pushed), and from whom, or why not.
func Judge(img Image, answers []Answer) (verdict string, ok bool) {
	cannot := "the image cannot be " + map[string]string{Push: "pushed", Resolve: "resolved"}[img.Verb] + ": "
	if img.Verb == Pull {
		cannot = "the image cannot be pulled: "
	}
	if img.Verb == Push {
		for _, a := range answers {
			if a.Skipped == "" {
				if a.OK {
					return "the image can be pushed to " + a.name, true
				}
				return fmt.Sprintf("%s%s: %s", cannot, a.name, a.Verdict), false
			}
		}
		return cannot + "nobody is asked", false
	}
	i := slices.IndexFunc(answers, func(a Answer) bool { return a.found || a.ends })
	if i < 0 || !answers[i].found {
		return cannot + reasons(answers, i), false
	}
	a := answers[i]
	what := fmt.Sprintf("%s, %s, %d bytes", a.Digest, a.MediaType, a.Size)
	if img.Verb == Resolve {
		return fmt.Sprintf("the image can be resolved by %s: %s", a.name, what), true
	}
	if i := slices.IndexFunc(answers, func(a Answer) bool { return a.unfit != "" }); i >= 0 {
		return fmt.Sprintf("%s%s names %s: %s", cannot, a.name, a.Digest, answers[i].unfit), false
	}
	// Manifests and layers come from the first host that has them, whoever it is.
	first := func(has func(Answer) bool) string {
		if j := slices.IndexFunc(answers, has); j >= 0 {
			return answers[j].name
		}
		return ""
	}
	content, layer := first(func(o Answer) bool { return o.content }), first(func(o Answer) bool { return o.layer })
	switch {
	case content == "":
		return fmt.Sprintf("%s%s names %s, and nobody gives the manifest of that digest: %s", cannot, a.name, a.Digest, reasons(answers, -1)), false
	case layer == "":
		return fmt.Sprintf("%s%s names %s, and nobody gives its first layer: %s", cannot, a.name, a.Digest, reasons(answers, -1)), false
	}
	verdict = "the image can be pulled from " + a.name + ": " + what
	switch {
	case content != a.name && layer != a.name && content != layer:
		verdict += "; its manifest from " + content + ", layers from " + layer
	case content != a.name && layer != a.name:
		verdict += "; manifest and layers from " + content
	case content != a.name:
		verdict += "; its manifest from " + content
	case layer != a.name:
		verdict += "; layers from " + layer
	}
	return verdict, true
}

// reasons are why hosts gave nothing; only up to one that ends it, unless that is -1.
func reasons(answers []Answer, last int) string {
	var out []string
	for i, a := range answers {
		if (a.Skipped == "" || len(a.Steps) > 0) && !a.OK {
			out = append(out, a.name+": "+a.Verdict)
		}
		if i == last {
			break
		}
	}
	if len(out) == 0 {
		return "nobody is asked"
	}
	return strings.Join(out, "; ")
}
