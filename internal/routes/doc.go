package routes

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/bot-bottle/supervise/internal/yamlerr"
)

// doc is a YAML file with the means to find a node's bytes in it.
type doc struct {
	data  []byte
	lines []int      // offset of each line's first byte; the byte order mark is before line 1
	root  *yaml.Node // the document's content; nil if the file has none
}

var bom = []byte("\xef\xbb\xbf")

// parseDoc parses data as one YAML document of LF or CRLF lines.
func parseDoc(data []byte) (*doc, error) {
	if len(data) > MaxFile {
		return nil, fmt.Errorf("the file has %d bytes, over the limit of %d", len(data), MaxFile)
	}
	start := 0
	if bytes.HasPrefix(data, bom) {
		start = len(bom)
	}
	lines := []int{start}
	for i := start; i < len(data); {
		r, n := utf8.DecodeRune(data[i:])
		switch {
		case r == utf8.RuneError && n == 1:
			return nil, fmt.Errorf("line %d: not UTF-8", len(lines))
		case r == '\r' && (i+1 == len(data) || data[i+1] != '\n'), r == '\u0085', r == '\u2028', r == '\u2029':
			// YAML breaks the line here and an editor may not: what looks like a comment could be an entry.
			return nil, fmt.Errorf("line %d: a line break that is neither LF nor CRLF (%U)", len(lines), r)
		case r == '\n':
			lines = append(lines, i+1)
		}
		i += n
	}
	d := &doc{data: data, lines: lines}
	dec := yaml.NewDecoder(bytes.NewReader(data))
	var n yaml.Node
	if err := dec.Decode(&n); errors.Is(err, io.EOF) {
		return d, nil
	} else if err != nil {
		return nil, yamlError(err)
	}
	var second yaml.Node
	if err := dec.Decode(&second); err == nil {
		return nil, fmt.Errorf("line %d: a second document; there must be one", second.Line)
	} else if !errors.Is(err, io.EOF) {
		return nil, yamlError(err)
	}
	if n.Kind != yaml.DocumentNode || len(n.Content) != 1 {
		return nil, errors.New("line 1: not a YAML document")
	}
	d.root = n.Content[0]
	if empty(d.root) {
		d.root = nil
	}
	return d, nil
}

func yamlError(err error) error {
	line, text := yamlerr.Split(err)
	return fmt.Errorf("line %d: %s", line, text)
}

// empty tells whether n is a null that was not written.
func empty(n *yaml.Node) bool {
	return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" && n.Value == "" && n.Style == 0 && n.Anchor == ""
}

func null(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// plain refuses what would make a node's text stand for something else than itself.
func plain(n *yaml.Node) error {
	switch {
	case n.Kind == yaml.AliasNode:
		return fmt.Errorf("line %d: an alias (*%.40s); write the value out", n.Line, n.Value)
	case n.Anchor != "":
		return fmt.Errorf("line %d: an anchor (&%.40s); write the value out", n.Line, n.Anchor)
	case n.Style&yaml.TaggedStyle != 0:
		return fmt.Errorf("line %d: a tag (%.40s); leave it out", n.Line, n.Tag)
	}
	for _, c := range n.Content {
		if err := plain(c); err != nil {
			return err
		}
	}
	return nil
}

// fields checks that n is a mapping of the given keys, each at most once, and returns their values.
// What names the mapping in errors; no names at all means that any key will do.
func fields(n *yaml.Node, what string, names ...string) (map[string]*yaml.Node, error) {
	if n.Kind != yaml.MappingNode {
		return nil, fmt.Errorf("line %d: %s must be a mapping", n.Line, what)
	}
	m := make(map[string]*yaml.Node)
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			return nil, fmt.Errorf("line %d: a key of %s must be a string", k.Line, what)
		}
		if k.ShortTag() == "!!merge" {
			return nil, fmt.Errorf("line %d: a merge key (<<); write the keys out", k.Line)
		}
		if len(names) > 0 && !slices.Contains(names, k.Value) {
			return nil, fmt.Errorf("line %d: unknown key %.80q in %s; known are %s", k.Line, k.Value, what, strings.Join(names, ", "))
		}
		if _, dup := m[k.Value]; dup {
			return nil, fmt.Errorf("line %d: key %.80q is there twice", k.Line, k.Value)
		}
		m[k.Value] = v
	}
	return m, nil
}

func str(n *yaml.Node, what string) (string, error) {
	if n == nil || n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
		line := 0
		if n != nil {
			line = n.Line
		}
		return "", fmt.Errorf("line %d: %s must be a string", line, what)
	}
	return n.Value, nil
}

// table reads the document as a route table.
func (d *doc) table() (Table, error) {
	var t Table
	if d.root == nil {
		return t, nil
	}
	if err := plain(d.root); err != nil {
		return t, err
	}
	top, err := fields(d.root, "the file", "routes")
	if err != nil {
		return t, err
	}
	list := top["routes"]
	if list == nil || null(list) {
		return t, nil
	}
	if list.Kind != yaml.SequenceNode {
		return t, fmt.Errorf("line %d: routes must be a list", list.Line)
	}
	seen := make(map[string]int)
	for _, n := range list.Content {
		r, err := route(n)
		if err != nil {
			return Table{}, err
		}
		key := Key(r.Host)
		if first, dup := seen[key]; dup {
			return Table{}, fmt.Errorf("line %d: host %s has an entry already, on line %d", n.Line, key, first)
		}
		seen[key] = n.Line
		t.Routes = append(t.Routes, r)
	}
	return t, nil
}

func route(n *yaml.Node) (Route, error) {
	var r Route
	m, err := fields(n, "a route", "host", "path_allowlist", "auth")
	if err != nil {
		return r, err
	}
	host := m["host"]
	if host == nil {
		return r, fmt.Errorf("line %d: a route must have a host", n.Line)
	}
	if r.Host, err = str(host, "host"); err != nil {
		return r, err
	}
	if err := checkHost(r.Host); err != nil {
		return r, fmt.Errorf("line %d: %w", host.Line, err)
	}
	if list := m["path_allowlist"]; list != nil && !null(list) {
		if list.Kind != yaml.SequenceNode {
			return r, fmt.Errorf("line %d: path_allowlist must be a list", list.Line)
		}
		for _, c := range list.Content {
			p, err := str(c, "a path")
			if err != nil {
				return r, err
			}
			if err := checkPath(p); err != nil {
				return r, fmt.Errorf("line %d: %w", c.Line, err)
			}
			r.PathAllowlist = append(r.PathAllowlist, p)
		}
	}
	if a := m["auth"]; a != nil && !null(a) {
		m, err := fields(a, "auth", "scheme", "token_ref")
		if err != nil {
			return r, err
		}
		var auth Auth
		for _, f := range []struct {
			name string
			to   *string
		}{{"scheme", &auth.Scheme}, {"token_ref", &auth.TokenRef}} {
			if m[f.name] == nil {
				return r, fmt.Errorf("line %d: auth must have a %s", a.Line, f.name)
			}
			if *f.to, err = str(m[f.name], "auth."+f.name); err != nil {
				return r, err
			}
		}
		if err := checkAuth(auth); err != nil {
			return r, fmt.Errorf("line %d: %w", a.Line, err)
		}
		r.Auth = &auth
	}
	return r, nil
}
