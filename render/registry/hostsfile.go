package registry

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"path"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"

	"github.com/nodeprep/nodeprep/internal/releases"
)

// HostsFile is what a release makes of a hosts.toml, as far as containerd's own parser does
// not give it away: names of files, places, and what another release reads differently. Which
// hosts there are, in which order and with which path, is the parser's to say.
type HostsFile struct {
	// Text is the file in a form that the newest containerd reads as the release reads the
	// original; for 2.x it is the original, but for keys that the release does not know.
	Text []byte
	// Bare is Text without the names of certificates, which the parser would open. That
	// there are TLS settings is left in it.
	Bare []byte
	// Err is why the release takes the whole file for broken, where its parser is stricter
	// than the newest; containerd then goes on as if there were none.
	Err error

	tables []table // in the order in which they are asked, the server last
	// silent are hosts that the release drops without a word, anyhow those that it asks in
	// no order of its own, but before all others.
	silent, anyhow []string
}

// table is one host's settings.
type table struct {
	name     string // as written; "" for a server that the file does not name
	line     int    // 0: not by itself
	ca       []string
	client   [][2]string // certificate and key; the same where one file has both
	override bool
	skip     bool
	tls      bool // has TLS settings
	timeout  string
	headers  []string
}

// Hosts are those that are asked before the server, as they are written and in their order;
// where containerd 2.x asks one twice it is there twice.
func (f HostsFile) Hosts() []string {
	var out []string
	for _, t := range f.tables[:max(len(f.tables)-1, 0)] {
		out = append(out, t.name)
	}
	return out
}

// Unasked are hosts that the release drops without a word, in the file's order.
func (f HostsFile) Unasked() []string { return f.silent }

// AnyOrder are hosts that the release asks in an order that differs from pull to pull.
func (f HostsFile) AnyOrder() []string { return f.anyhow }

// ReadHostsFile reads the hosts.toml at p, a path on the node, by the rules of a release; the
// zero Version stands for the newest.
func ReadHostsFile(p string, content []byte, v releases.Version) HostsFile {
	if v == (releases.Version{}) {
		v = newestRules()
	}
	f := HostsFile{Text: content, Bare: content}
	old := !v.AtLeast(2, 0, 0)
	if old {
		content = bytes.TrimPrefix(content, []byte("\ufeff")) // which 2.x does not take
	}
	var tree map[string]any
	if toml.Unmarshal(content, &tree) != nil {
		return f // the parser says why
	}
	if !tomlOneOne(v) {
		f.Err = oneOne(content, old)
	}
	keys := tomlKeys(content)
	hosts, ok := tree["host"].(map[string]any)
	if old && tree["host"] != nil && !ok {
		f.Err = cmp.Or(f.Err, errors.New("host is no table"))
	}
	if old {
		tree = asWritten(tree)
		for name, t := range hosts {
			if t, ok := t.(map[string]any); ok {
				hosts[name] = asWritten(t)
			}
		}
	}
	var names []string
	last := "" // as the parser begins, so that a first host without a name is none
	for _, k := range keys {
		if k.table && len(k.path) >= 2 && k.path[0] == "host" && k.path[1] != last {
			last = k.path[1]
			if !old || !slices.Contains(names, last) {
				names = append(names, last)
			}
		}
		if old && k.table && strings.Contains(strings.Join(k.path, ""), "]") {
			f.Err = cmp.Or(f.Err, errors.New("a table's name with a ] in it"))
		}
		if old && k.escaped && len(k.path) >= 2 && k.path[0] == "host" {
			f.Err = cmp.Or(f.Err, errors.New("an escape in a host's name, which this release takes as it is written"))
		}
	}
	var rest []string
	for name := range hosts {
		if !slices.Contains(names, name) {
			rest = append(rest, name)
		}
	}
	// Where none has a line of its own they are in one inline table, in its order.
	slices.SortFunc(rest, func(a, b string) int {
		return cmp.Or(lineOf(keys, "host", a)-lineOf(keys, "host", b), bytes.Index(content, []byte(a))-bytes.Index(content, []byte(b)))
	})
	if old {
		names = append(names, rest...)
		// Nobody can be asked at no name, whatever 1.x makes of it.
		names = slices.DeleteFunc(names, func(name string) bool { return name == "" })
		// Where a table begins is what its hosts are sorted by; an inline table begins nowhere
		// (go-toml 1.9, parseInlineTable), and those that begin alike are in a map's order.
		slices.SortStableFunc(names, func(a, b string) int { return beginsAt(keys, a) - beginsAt(keys, b) })
		for _, name := range names {
			if beginsAt(keys, name) == 0 {
				f.anyhow = append(f.anyhow, name)
			}
		}
		if len(f.anyhow) < 2 {
			f.anyhow = nil
		}
		if tree["host"] == nil && releases.BareHostTableNeeded(v) {
			f.Err = cmp.Or(f.Err, errors.New("no [host] table, which this release wants"))
		}
	} else {
		f.silent = rest
	}
	dir := path.Dir(p)
	for _, name := range names {
		t, ok := hosts[name].(map[string]any)
		if !ok && old {
			err := fmt.Errorf("host %s is no table", withoutUser(name))
			if len(names) > 1 {
				err = fmt.Errorf("%w, and containerd %s panics where there are others", err, v)
			}
			f.Err = cmp.Or(f.Err, err)
		}
		f.tables = append(f.tables, readTable(name, lineOf(keys, "host", name), t, dir))
	}
	server, line := "", 0
	for key, v := range tree {
		if text, ok := v.(string); ok && strings.EqualFold(key, "server") {
			server, line = text, lineOf(keys, key)
		}
	}
	f.tables = append(f.tables, readTable(server, line, tree, dir))
	if !releases.ReferrersSupported(v) {
		for _, name := range append(slices.Clone(names), "") {
			t := tree
			if name != "" {
				t, _ = hosts[name].(map[string]any)
			}
			if list, _ := t["capabilities"].([]any); slices.ContainsFunc(list, func(c any) bool { s, _ := c.(string); return strings.EqualFold(s, "referrers") }) {
				f.Err = cmp.Or(f.Err, errors.New("the capability referrers, which this release does not know"))
			}
		}
	}
	if old {
		text, err := rewrite(tree, hosts, names)
		if err != nil {
			f.Err = cmp.Or(f.Err, err)
			return f
		}
		f.Text = text
	}
	if !releases.DialTimeoutSupported(v) {
		f.Text = renameKeys(f.Text, "dial_timeout")
		for i := range f.tables {
			f.tables[i].timeout = ""
		}
	}
	f.Bare = renameKeys(f.Text, "ca", "client")
	return f
}

// asWritten is a table as 1.x reads it, whose TOML library knows a key as it is written and
// in capitals, in no other spelling (go-toml 1.9, valueFromTree).
func asWritten(t map[string]any) map[string]any {
	out := maps.Clone(t)
	for _, known := range []string{"server", "capabilities", "ca", "client", "skip_verify", "header", "override_path"} {
		v, ok := t[known]
		if !ok {
			v, ok = t[strings.ToUpper(known)]
		}
		maps.DeleteFunc(out, func(key string, _ any) bool { return strings.EqualFold(key, known) })
		if ok {
			out[known] = v
		}
	}
	return out
}

// tomlOneOne says whether a release's TOML library reads TOML 1.1 (go.mod of each line).
func tomlOneOne(v releases.Version) bool { return v.AtLeast(2, 4, 0) }

// oneOne is an error where a file, sound as it is, has what only TOML 1.1 allows: in an inline
// table a line break, which 1.x takes all the same, or a last comma.
func oneOne(content []byte, old bool) error {
	var open []byte // brackets
	comma := false
	for i := 0; i < len(content); i++ {
		inline := len(open) > 0 && open[len(open)-1] == '{'
		switch c := content[i]; c {
		case ' ', '\t', '\r':
			continue
		case '\n':
			if inline && !old {
				return errors.New("a line break in an inline table, which is of TOML 1.1")
			}
		case '#':
			if n := bytes.IndexByte(content[i:], '\n'); n > 0 {
				i += n - 1
			} else {
				i = len(content)
			}
		case '"', '\'':
			i += stringLen(content[i:]) - 1
			comma = false
		case '{', '[':
			open = append(open, c)
			comma = false
		case '}', ']':
			if inline && comma {
				return errors.New("a comma at the end of an inline table, which is of TOML 1.1")
			}
			if len(open) > 0 {
				open = open[:len(open)-1]
			}
			comma = false
		default:
			comma = c == ','
		}
	}
	return nil
}

// stringLen is how long the string is that content begins with, its quotes included.
func stringLen(content []byte) int {
	quote := content[:1]
	if len(content) >= 3 && content[1] == content[0] && content[2] == content[0] {
		quote = content[:3]
	}
	for i := len(quote); i < len(content); i++ {
		switch {
		case content[i] == '\\' && quote[0] == '"':
			i++
		case bytes.HasPrefix(content[i:], quote):
			for end := i + len(quote); ; end++ { // more quotes may belong to a long string
				if len(quote) == 1 || end == len(content) || content[end] != quote[0] {
					return end
				}
			}
		}
	}
	return len(content)
}

// readTable reads what the parser keeps to itself; what has another type it refuses.
func readTable(name string, line int, tree map[string]any, dir string) table {
	t := table{name: name, line: line}
	beside := func(p string) string {
		if path.IsAbs(p) {
			return p
		}
		return path.Join(dir, p)
	}
	for key, v := range tree {
		switch strings.ToLower(key) {
		case "ca":
			t.tls = true
			for _, p := range texts(v) {
				t.ca = append(t.ca, beside(p))
			}
		case "client":
			t.tls = true
			if one, ok := v.(string); ok {
				v = []any{one}
			}
			list, _ := v.([]any)
			for _, e := range list {
				switch pair := texts(e); len(pair) {
				case 1:
					t.client = append(t.client, [2]string{beside(pair[0]), beside(pair[0])})
				case 2:
					t.client = append(t.client, [2]string{beside(pair[0]), beside(pair[1])})
				}
			}
		case "skip_verify":
			t.skip, _ = v.(bool)
			t.tls = true
		case "override_path":
			t.override, _ = v.(bool)
		case "dial_timeout":
			t.timeout, _ = v.(string)
		case "header":
			table, _ := v.(map[string]any)
			for h := range table {
				t.headers = append(t.headers, h)
			}
			slices.Sort(t.headers)
		}
	}
	return t
}

// texts is a text, or a list of texts.
func texts(v any) []string {
	switch v := v.(type) {
	case string:
		return []string{v}
	case []any:
		var out []string
		for _, e := range v {
			if s, ok := e.(string); ok {
				out = append(out, s)
			}
		}
		return out
	}
	return nil
}

// tomlKey is a table's header, or a key with its value.
type tomlKey struct {
	path   []string
	line   int
	table  bool
	offset int // of the last part of a key, and its length
	length int
	// escaped says that a part has a backslash in double quotes.
	escaped bool
}

func tomlKeys(content []byte) []tomlKey {
	var (
		out   []tomlKey
		p     unstable.Parser
		table []string
	)
	p.Reset(content)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table && e.Kind != unstable.ArrayTable && e.Kind != unstable.KeyValue {
			continue
		}
		k := tomlKey{table: e.Kind == unstable.Table}
		if e.Kind == unstable.KeyValue {
			k.path = slices.Clone(table)
		}
		for it := e.Key(); it.Next(); {
			raw := it.Node().Raw
			if k.line == 0 {
				k.line = 1 + bytes.Count(content[:raw.Offset], []byte("\n"))
			}
			k.offset, k.length = int(raw.Offset), int(raw.Length)
			text := content[raw.Offset : raw.Offset+raw.Length]
			k.escaped = k.escaped || text[0] == '"' && bytes.IndexByte(text, '\\') > 0
			k.path = append(k.path, string(it.Node().Data))
		}
		if e.Kind != unstable.KeyValue {
			table = k.path
		}
		out = append(out, k)
	}
	return out
}

// lineOf is where a key or table is first named, 0 where it is not by itself.
func lineOf(keys []tomlKey, path ...string) int {
	for _, k := range keys {
		if len(k.path) >= len(path) && slices.Equal(k.path[:len(path)], path) {
			return k.line
		}
	}
	return 0
}

// beginsAt is the line where containerd 1.x takes a host's table to begin, 0 for an inline
// table.
func beginsAt(keys []tomlKey, name string) int {
	host := []string{"host", name}
	for _, k := range keys {
		if !k.table && len(k.path) <= len(host) && slices.Equal(k.path, host[:len(k.path)]) {
			return 0
		}
	}
	return lineOf(keys, host...)
}

// rewrite gives each host a table of its own, in this order: the form that all releases
// read alike.
func rewrite(tree, hosts map[string]any, names []string) ([]byte, error) {
	var b bytes.Buffer
	add := func(t map[string]any) error {
		e := toml.NewEncoder(&b)
		e.SetTablesInline(true)
		return e.Encode(t)
	}
	root := map[string]any{}
	for k, v := range tree {
		if k != "host" {
			root[k] = v
		}
	}
	if err := add(root); err != nil {
		return nil, err
	}
	for _, name := range names {
		t, _ := hosts[name].(map[string]any)
		key, err := quote(name)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "\n[host.%s]\n", key)
		if err := add(t); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// renameKeys gives keys of endpoints names that nobody reads. Where they make for TLS
// settings, skip_verify = false takes their place.
func renameKeys(text []byte, names ...string) []byte {
	keys := tomlKeys(text)
	var out bytes.Buffer
	end := 0
	marked := map[string]bool{}
	for _, k := range keys {
		if !k.table && k.endpoint() && strings.EqualFold(k.path[len(k.path)-1], "skip_verify") {
			marked[strings.Join(k.path[:len(k.path)-1], "\x00")] = true
		}
	}
	for _, k := range keys {
		if k.table || !k.endpoint() {
			continue
		}
		name := strings.ToLower(k.path[len(k.path)-1])
		if !slices.Contains(names, name) {
			continue
		}
		out.Write(text[end:k.offset])
		table := strings.Join(k.path[:len(k.path)-1], "\x00")
		// A dotted key goes on from what stands before it.
		alone := k.offset == 0 || text[k.offset-1] == '\n' || len(bytes.TrimSpace(text[bytes.LastIndexByte(text[:k.offset], '\n')+1:k.offset])) == 0
		if name != "dial_timeout" && !marked[table] && alone {
			marked[table] = true
			out.WriteString("skip_verify = false\n")
		}
		out.WriteString("unread_" + name)
		end = k.offset + k.length
	}
	out.Write(text[end:])
	return out.Bytes()
}

// endpoint says whether a key is one of an endpoint's, and not of its headers.
func (k tomlKey) endpoint() bool {
	return len(k.path) == 1 || len(k.path) == 3 && k.path[0] == "host"
}

// timeoutOf is a dial timeout for people, "" for none.
func timeoutOf(text string) string {
	if d, err := time.ParseDuration(text); err == nil {
		return d.String()
	}
	return text
}

// hostOf is the host of a URL as containerd takes it.
func hostOf(name string) string {
	if !strings.HasPrefix(name, "http") {
		name = "https://" + name
	}
	u, err := url.Parse(name)
	if err != nil {
		return ""
	}
	return u.Host
}
