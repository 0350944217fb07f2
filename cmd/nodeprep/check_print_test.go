package main

import (
	"bytes"
	"encoding/xml"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nodeprep/nodeprep/checks"
)

// aReport has every verdict, a check of several objects, and texts that a hostile host
// may have put there.
func aReport() checkResult {
	finding := func(id string, v checks.Verdict, r checks.Result) checks.Finding {
		r.Verdict = v
		return checks.Finding{ID: id, Stage: checks.Audit, Severity: checks.Required, Result: r}
	}
	demoted := finding("unit/made-up", checks.Warn, checks.Result{Observed: "4915", Wanted: "infinity", Note: "pods fail to start"})
	demoted.Demoted = true
	list := checks.Report{
		finding("kernel/made-up", checks.Pass, checks.Result{Object: "overlay", Observed: "loaded"}),
		finding("kernel/made-up", checks.Fail, checks.Result{
			Object: "br_netfilter", Observed: "not loaded", Wanted: "loaded",
			Place: "/etc/modules-load.d/k8s.conf:2", Remedy: "modprobe br_netfilter\necho br_netfilter > /etc/modules-load.d/br.conf",
		}),
		finding("unit/kill", checks.Pass, checks.Result{Observed: "process"}),
		demoted,
		finding("unit/unseen", checks.Unknown, checks.Result{Observed: "permission denied"}),
		finding("config/made-up", checks.Skip, checks.Result{Observed: "no containerd runs here"}),
		finding("config/other", checks.Skip, checks.Result{Observed: "no containerd runs here"}),
		finding("daemon/made-up", checks.Skip, checks.Result{Observed: "no containerd runs here"}),
		finding("daemon/other", checks.Skip, checks.Result{Observed: "the network is not to be used"}),
		finding("daemon/said", checks.Warn, checks.Result{Observed: "two\nlines \x1b[31m\x00\u009b<&>", Wanted: "one"}),
	}
	return checkResult{Root: "/", Profile: "node.yaml", Findings: list, Summary: count(list), Duration: 1500 * time.Millisecond}
}

func TestCheckText(t *testing.T) {
	var out bytes.Buffer
	a := &app{stdio: stdio{out: &out, err: io.Discard}, out: &results{Writer: &out}, env: func(string) (string, bool) { return "", false }}
	a.printCheck(aReport())
	want := `/, held against node.yaml

pass     kernel/made-up  overlay: loaded
fail     kernel/made-up  br_netfilter: not loaded

pass     unit/kill       process
warn     unit/made-up    4915
unknown  unit/unseen     permission denied

warn     daemon/said     two; lines ?[31m??<&>

skip     no containerd runs here: config/*, daemon/made-up
skip     the network is not to be used: daemon/other

warn  unit/made-up
  observed  4915
  wanted    infinity
  note      pods fail to start
            would fail, but somebody asked to skip it

warn  daemon/said
  observed  two
            lines ?[31m??<&>
  wanted    one

fail  kernel/made-up  br_netfilter
  observed  not loaded
  wanted    loaded
  place     /etc/modules-load.d/k8s.conf:2
  remedy
    modprobe br_netfilter
    echo br_netfilter > /etc/modules-load.d/br.conf

9 checks, 10 findings: 2 pass, 2 warn, 1 fail, 4 skip, 1 unknown
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}

	a.color = "always"
	out.Reset()
	a.printCheck(aReport())
	for _, s := range []string{"\x1b[32mpass   \x1b[0m", "\x1b[31mfail\x1b[0m", "\x1b[33munknown\x1b[0m", "\x1b[2mskip   \x1b[0m"} {
		if !strings.Contains(out.String(), s) {
			t.Errorf("%q is not in the coloured text:\n%q", s, out.String())
		}
	}
	a.color = "never"
	out.Reset()
	a.printCheck(aReport())
	if strings.Contains(out.String(), "\x1b") {
		t.Errorf("colour where none is wanted:\n%q", out.String())
	}
}

// What reads JUnit counts suites, cases and their children.
func TestJUnit(t *testing.T) {
	var out bytes.Buffer
	if err := printJUnit(&out, aReport()); err != nil {
		t.Fatal(err)
	}
	type message struct {
		Message string `xml:"message,attr"`
		Text    string `xml:",chardata"`
	}
	var got struct {
		XMLName  xml.Name
		Tests    int    `xml:"tests,attr"`
		Failures int    `xml:"failures,attr"`
		Errors   int    `xml:"errors,attr"`
		Skipped  int    `xml:"skipped,attr"`
		Time     string `xml:"time,attr"`
		Suites   []struct {
			Name     string `xml:"name,attr"`
			Tests    int    `xml:"tests,attr"`
			Failures int    `xml:"failures,attr"`
			Cases    []struct {
				Class   string   `xml:"classname,attr"`
				Name    string   `xml:"name,attr"`
				Failure *message `xml:"failure"`
				Error   *message `xml:"error"`
				Skipped *message `xml:"skipped"`
				Output  string   `xml:"system-out"`
			} `xml:"testcase"`
		} `xml:"testsuite"`
	}
	if err := xml.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if got.XMLName.Local != "testsuites" || got.Tests != 10 || got.Failures != 1 || got.Errors != 1 || got.Skipped != 4 || got.Time != "1.500" {
		t.Errorf("counts are wrong: %+v", got)
	}
	var lines []string
	for _, s := range got.Suites {
		for _, c := range s.Cases {
			line := s.Name + " | " + c.Class + " | " + c.Name
			for _, m := range []struct {
				what string
				*message
			}{{"failure", c.Failure}, {"error", c.Error}, {"skipped", c.Skipped}} {
				if m.message != nil {
					line += " | " + m.what + ": " + m.Message + m.Text
				}
			}
			if c.Output != "" {
				line += " | " + c.Output
			}
			lines = append(lines, line)
		}
	}
	want := []string{
		"kernel | kernel | kernel/made-up overlay",
		"kernel | kernel | kernel/made-up br_netfilter | failure: br_netfilter: not loaded, want loaded [/etc/modules-load.d/k8s.conf:2]" +
			"modprobe br_netfilter\necho br_netfilter > /etc/modules-load.d/br.conf",
		"unit | unit | unit/kill",
		"unit | unit | unit/made-up | warn: 4915, want infinity\npods fail to start",
		"unit | unit | unit/unseen | error: permission denied",
		"config | config | config/made-up | skipped: no containerd runs here",
		"config | config | config/other | skipped: no containerd runs here",
		"daemon | daemon | daemon/made-up | skipped: no containerd runs here",
		"daemon | daemon | daemon/other | skipped: the network is not to be used",
		"daemon | daemon | daemon/said | warn: two\nlines \uFFFD[31m\uFFFD\u009b<&>, want one",
	}
	if diff := cmp.Diff(want, lines); diff != "" {
		t.Error(diff)
	}
}
