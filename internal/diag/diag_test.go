package diag

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestLineOfADiagnostic(t *testing.T) {
	at := Origin{Path: "containerd.version", File: "node.yaml", Line: 14, Column: 11}
	for _, c := range []struct {
		d    Diagnostic
		want string
	}{
		{Diagnostic{Origin: at, Message: `bad version "x"`, Hint: "want 2.3.4"}, `node.yaml:14:11: containerd.version: bad version "x" (want 2.3.4)`},
		{Diagnostic{Severity: Warning, Origin: at, Message: "old"}, `node.yaml:14:11: warning: containerd.version: old`},
		{Diagnostic{Message: "no place"}, "no place"},
		{Diagnostic{Origin: Origin{File: "node.yaml", Line: 3}, Message: "m"}, "node.yaml:3: m"},
		{Diagnostic{Origin: Origin{File: "node.yaml"}, Message: "empty"}, "node.yaml: empty"},
	} {
		if got := c.d.String(); got != c.want {
			t.Errorf("got  %s\nwant %s", got, c.want)
		}
	}
	if got := at.String(); got != "containerd.version (node.yaml:14)" {
		t.Error(got)
	}
}

func TestListIsSortedByPlaceAndKeepsAllFaults(t *testing.T) {
	var l List
	l.Warnf(Origin{File: "a", Line: 9}, "", "late")
	l.Errorf(Origin{File: "b", Line: 1}, "", "other file")
	l.Errorf(Origin{File: "a", Line: 2, Column: 7}, "hint", "two")
	l.Errorf(Origin{File: "a", Line: 2, Column: 3}, "", "one")
	l.Errorf(Origin{File: "a", Line: 2, Column: 3}, "", "one")
	l.Sort()
	err := l.Err()
	want := "a:2:3: one\na:2:7: two (hint)\na:9: warning: late\nb:1: other file"
	if err == nil || err.Error() != want {
		t.Errorf("got\n%v\nwant\n%s", err, want)
	}
	if list, ok := errors.AsType[*ListError](err); !ok || len(list.List.Errors()) != 3 || len(list.List.Warnings()) != 1 {
		t.Errorf("%v", err)
	}
	if l.Warnings().Err() != nil {
		t.Error("warnings alone are no error")
	}
}

func TestControlCharactersAreEscaped(t *testing.T) {
	const evil = "a.evil\x1b[31mRED\nx.b"
	var l List
	l.Errorf(Origin{Path: evil, File: "f\x1b", Line: 1}, "h\r", "m\u202e %s", "\x07é")
	want := `f\x1b:1: a."evil\x1b[31mRED\nx".b: m\u202e \aé (h\r)`
	if got := l[0].String(); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := (Diagnostic{Origin: Origin{Path: evil}, Message: "m"}).String(); got != `a."evil\x1b[31mRED\nx".b: m` {
		t.Error(got)
	}
	if got := (Origin{Path: evil, File: "f"}).String(); got != `a."evil\x1b[31mRED\nx".b (f)` {
		t.Error(got)
	}
	b, err := json.Marshal(l)
	if err != nil || strings.ContainsAny(string(b), "\x1b\n") || !strings.Contains(string(b), `a.\"evil\\x1b`) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestJSONForm(t *testing.T) {
	d := Diagnostic{Severity: Warning, Origin: Origin{Path: "a.b", File: "f", Line: 1, Column: 2}, Message: "m"}
	b, err := json.Marshal(d)
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"severity":"warning","path":"a.b","file":"f","line":1,"column":2,"message":"m"}`; string(b) != want {
		t.Errorf("got %s, want %s", b, want)
	}
	var back Diagnostic
	if err := json.Unmarshal(b, &back); err != nil || back != d {
		t.Errorf("%+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(strings.Replace(string(b), "warning", "x", 1)), &back); err == nil {
		t.Error("an unknown severity is refused")
	}
}
