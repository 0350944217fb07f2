package registry

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/pelletier/go-toml/v2"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// hostsFile is a hosts.toml before it is text. A TOML library cannot write it from a
// map or struct: the order of the host tables is the order in which hosts are tried.
type hostsFile struct {
	server endpoint // tried last; an empty url is containerd's own choice
	hosts  []endpoint
	// bareHost writes an empty [host] table when there are no hosts, for releases
	// that take a file without one for broken.
	bareHost bool
	// dotted writes the hosts as dotted keys of one [host] table, which only 1.x reads:
	// its TOML library takes no "]" in a table header, not even in quotes, so that the
	// header of a host with an IPv6 address would lose the whole file. As inline tables
	// they would be asked in any order.
	dotted bool
}

// endpoint is one host with its settings, ready to be written.
type endpoint struct {
	url    string
	id     string // the URL in one spelling
	keys   []line
	header []line
}

// line is a key with a value that TOML can hold: string, bool or lists of strings.
type line struct {
	key   string
	value any
}

// encode writes the one form that all releases read alike. Root keys come before
// the first [host] table, or they would belong to it. Each [host."URL"] is a table
// header of its own and is followed at once by its header table: containerd 2.x
// finds hosts by scanning table headers, ignores inline tables and dotted keys, and
// lists a host twice whose sub-table stands elsewhere.
func (f hostsFile) encode() ([]byte, error) {
	var b bytes.Buffer
	b.WriteString(desired.Header)
	root := f.server.keys
	if f.server.url != "" {
		root = append([]line{{"server", f.server.url}}, root...)
	}
	if err := writeLines(&b, root); err != nil {
		return nil, err
	}
	if err := writeTable(&b, "header", f.server.header); err != nil {
		return nil, err
	}
	if f.dotted || len(f.hosts) == 0 && f.bareHost {
		b.WriteString("\n[host]\n")
	}
	for _, h := range f.hosts {
		if f.dotted {
			if err := writeDotted(&b, h); err != nil {
				return nil, err
			}
			continue
		}
		name, err := quote(h.url)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(&b, "\n[host.%s]\n", name)
		if err := writeLines(&b, h.keys); err != nil {
			return nil, err
		}
		if err := writeTable(&b, "host."+name+".header", h.header); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), nil
}

// writeDotted writes a host as keys that begin with its name, at least one: the first is
// where containerd takes it to begin.
func writeDotted(b *bytes.Buffer, h endpoint) error {
	name, err := quote(h.url)
	if err != nil {
		return err
	}
	keys := h.keys
	if len(keys)+len(h.header) == 0 {
		keys = []line{{"override_path", false}}
	}
	for _, l := range keys {
		b.WriteString(name + ".")
		if err := writeLines(b, []line{l}); err != nil {
			return err
		}
	}
	for _, l := range h.header {
		b.WriteString(name + ".header.")
		if err := writeLines(b, []line{l}); err != nil {
			return err
		}
	}
	return nil
}

func writeTable(b *bytes.Buffer, name string, lines []line) error {
	if len(lines) == 0 {
		return nil
	}
	fmt.Fprintf(b, "\n[%s]\n", name)
	return writeLines(b, lines)
}

func writeLines(b *bytes.Buffer, lines []line) error {
	for _, l := range lines {
		text, err := toml.Marshal(map[string]any{l.key: l.value})
		if err != nil {
			return fmt.Errorf("encode %s: %w", l.key, err)
		}
		b.Write(text)
	}
	return nil
}

// quote is s as a quoted key. TOML has one grammar for quoted keys and for strings
// on one line, so the encoder of values is the encoder of keys.
func quote(s string) (string, error) {
	text, err := toml.Marshal(map[string]string{"k": s})
	if err != nil {
		return "", fmt.Errorf("encode %q: %w", s, err)
	}
	return strings.TrimSuffix(strings.TrimPrefix(string(text), "k = "), "\n"), nil
}
