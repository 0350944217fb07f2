package install

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/pelletier/go-toml/v2"
	"github.com/pelletier/go-toml/v2/unstable"
	"gopkg.in/yaml.v3"

	"github.com/nodeprep/nodeprep/internal/desired"
)

// changedKeys lists what two versions of a file say differently, by key; empty means
// that they say the same, however their bytes differ. Content that cannot be decoded
// differs as a whole, for which the list is "content".
func changedKeys(format desired.Format, old, new []byte) []string {
	if bytes.Equal(old, new) {
		return nil
	}
	a, errA := decode(format, old)
	b, errB := decode(format, new)
	if errA != nil || errB != nil {
		return []string{"content"}
	}
	var keys []string
	compareValues(&keys, "", a, b)
	return keys
}

// decode brings content into maps, lists and scalars that can be compared.
func decode(format desired.Format, content []byte) (any, error) {
	switch format {
	case desired.FormatTOML:
		var m map[string]any
		err := toml.Unmarshal(content, &m)
		return m, err
	case desired.FormatHosts:
		var m map[string]any
		if err := toml.Unmarshal(content, &m); err != nil {
			return nil, err
		}
		return map[string]any{"hosts": m, "order of hosts": hostOrder(content)}, nil
	case desired.FormatUnit:
		options, err := unit.DeserializeOptions(bytes.NewReader(content))
		if err != nil {
			return nil, err
		}
		sections := map[string]any{}
		for _, o := range options {
			section, ok := sections[o.Section].(map[string]any)
			if !ok {
				section = map[string]any{}
				sections[o.Section] = section
			}
			values, _ := section[o.Name].([]any)
			section[o.Name] = append(values, o.Value)
		}
		return sections, nil
	case desired.FormatYAML:
		var v any
		err := yaml.Unmarshal(content, &v)
		return v, err
	case desired.FormatJSON:
		var v any
		err := json.Unmarshal(content, &v)
		return v, err
	case desired.FormatLines:
		var lines []any
		for line := range strings.Lines(string(content)) {
			line = strings.TrimSpace(line)
			if line == "" || line[0] == '#' || line[0] == ';' {
				continue
			}
			lines = append(lines, line)
		}
		return map[string]any{"lines": lines}, nil
	}
	return nil, fmt.Errorf("format %q is not decoded", format)
}

// hostOrder lists the tables of a hosts.toml as they follow each other: containerd
// tries the hosts in this order.
func hostOrder(content []byte) []any {
	var order []any
	var p unstable.Parser
	p.Reset(content)
	for p.NextExpression() {
		e := p.Expression()
		if e.Kind != unstable.Table {
			continue
		}
		var key []string
		for it := e.Key(); it.Next(); {
			key = append(key, string(it.Node().Data))
		}
		if len(key) == 2 && key[0] == "host" {
			order = append(order, key[1])
		}
	}
	return order
}

func compareValues(keys *[]string, at string, a, b any) {
	x, okX := a.(map[string]any)
	y, okY := b.(map[string]any)
	if okX && okY {
		all := maps.Clone(x)
		if all == nil {
			all = map[string]any{}
		}
		maps.Copy(all, y)
		for _, k := range slices.Sorted(maps.Keys(all)) {
			_, inX := x[k]
			_, inY := y[k]
			if inX != inY {
				*keys = append(*keys, join(at, k))
				continue
			}
			compareValues(keys, join(at, k), x[k], y[k])
		}
		return
	}
	if !reflect.DeepEqual(a, b) {
		if at == "" {
			at = "content"
		}
		*keys = append(*keys, at)
	}
}

// join adds a key to a dotted path, quoted where TOML wants it.
func join(at, key string) string {
	const bare = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_- "
	if strings.Trim(key, bare) != "" {
		key = "'" + key + "'"
	}
	if at == "" {
		return key
	}
	return at + "." + key
}
