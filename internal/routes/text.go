package routes

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"

	"gopkg.in/yaml.v3"
)

// splice replaces data[start:end] by text.
type splice struct {
	start, end int
	text       string
}

// with applies splices that do not overlap, in any order.
func (d *doc) with(edits ...splice) []byte {
	slices.SortFunc(edits, func(a, b splice) int { return cmp.Or(a.start-b.start, a.end-b.end) })
	var out bytes.Buffer
	at := 0
	for _, e := range edits {
		out.Write(d.data[at:e.start])
		out.WriteString(e.text)
		at = e.end
	}
	out.Write(d.data[at:])
	return out.Bytes()
}

// at is the offset of a node's first byte. The parser counts columns in runes.
func (d *doc) at(n *yaml.Node) int {
	if n.Line < 1 || n.Line > len(d.lines) {
		return len(d.data)
	}
	off := d.lines[n.Line-1]
	for i := 1; i < n.Column && off < len(d.data); i++ {
		_, size := utf8.DecodeRune(d.data[off:])
		off += size
	}
	return off
}

// end is the offset after a node's last byte. The parser does not tell, so that only what can be
// found with certainty has an end.
func (d *doc) end(n *yaml.Node) (int, error) {
	start := d.at(n)
	unclear := fmt.Errorf("line %d: cannot tell where this value ends", n.Line)
	switch {
	case n.Kind == yaml.ScalarNode && n.Style == yaml.DoubleQuotedStyle:
		for i := start + 1; i < len(d.data); i++ {
			switch d.data[i] {
			case '\\':
				i++
			case '"':
				return i + 1, nil
			}
		}
		return 0, unclear
	case n.Kind == yaml.ScalarNode && n.Style == yaml.SingleQuotedStyle:
		for i := start + 1; i < len(d.data); i++ {
			if d.data[i] != '\'' {
				continue
			}
			if i+1 < len(d.data) && d.data[i+1] == '\'' {
				i++
				continue
			}
			return i + 1, nil
		}
		return 0, unclear
	case n.Kind == yaml.ScalarNode && n.Style == 0:
		if !bytes.HasPrefix(d.data[start:], []byte(n.Value)) {
			return 0, fmt.Errorf("line %d: a value over several lines", n.Line)
		}
		return start + len(n.Value), nil
	case n.Kind == yaml.ScalarNode:
		return 0, fmt.Errorf("line %d: a block scalar (| or >)", n.Line)
	case n.Style&yaml.FlowStyle != 0:
		inner := start + 1
		if k := len(n.Content); k > 0 {
			var err error
			if inner, err = d.end(n.Content[k-1]); err != nil {
				return 0, err
			}
		}
		i := d.skip(inner, true)
		if i == len(d.data) || d.data[i] != ']' && d.data[i] != '}' {
			return 0, unclear
		}
		return i + 1, nil
	case len(n.Content) > 0 && (n.Kind == yaml.SequenceNode || n.Kind == yaml.MappingNode):
		return d.end(n.Content[len(n.Content)-1])
	}
	return 0, unclear
}

// skip passes over whitespace, comments and, when told so, commas.
func (d *doc) skip(i int, commas bool) int {
	for ; i < len(d.data); i++ {
		switch c := d.data[i]; {
		case c == ' ', c == '\t', c == '\r', c == '\n', c == ',' && commas:
		case c == '#':
			for i+1 < len(d.data) && d.data[i+1] != '\n' {
				i++
			}
		default:
			return i
		}
	}
	return i
}

// comma is the offset of the comma after an item of a flow collection that ends at i, or -1.
func (d *doc) comma(i int) int {
	if i = d.skip(i, false); i < len(d.data) && d.data[i] == ',' {
		return i
	}
	return -1
}

func (d *doc) lineStart(i int) int {
	k, found := slices.BinarySearch(d.lines, i)
	if !found {
		k--
	}
	return d.lines[max(k, 0)]
}

// lineEnd is the offset after the line break of the line that holds i.
func (d *doc) lineEnd(i int) int {
	if k := bytes.IndexByte(d.data[i:], '\n'); k >= 0 {
		return i + k + 1
	}
	return len(d.data)
}

// eol is the line break in use around offset i: that of the line before, else the file's first.
func (d *doc) eol(i int) string {
	for _, part := range [][]byte{d.data[:i], d.data} {
		if k := bytes.LastIndexByte(part, '\n'); k >= 0 {
			if k > 0 && part[k-1] == '\r' {
				return "\r\n"
			}
			return "\n"
		}
	}
	return "\n"
}

// indent is the text between the start of i's line and i if that is only whitespace.
func (d *doc) indent(i int) (string, bool) {
	s := string(d.data[d.lineStart(i):i])
	return s, strings.Trim(s, " \t") == ""
}

// rest checks that nothing but whitespace or a comment follows i on its line.
func (d *doc) rest(i int) error {
	s := strings.TrimRight(string(d.data[i:d.lineEnd(i)]), "\r\n")
	t := strings.TrimLeft(s, " \t")
	if t == "" || t[0] == '#' && (len(t) < len(s) || i == 0 || strings.IndexByte(" \t\n", d.data[i-1]) >= 0) {
		return nil
	}
	line, _ := slices.BinarySearch(d.lines, i+1)
	return fmt.Errorf("line %d: something else follows on the same line", line)
}

// insert puts whole lines at the line start i. A file without a last line break stays one.
func (d *doc) insert(i int, indent int, lines []string) splice {
	eol := d.eol(i)
	var b strings.Builder
	unterminated := i == len(d.data) && len(d.data) > d.lines[0] && d.data[i-1] != '\n'
	for _, l := range lines {
		if unterminated {
			b.WriteString(eol)
		}
		b.WriteString(strings.Repeat(" ", indent) + l)
		if !unterminated {
			b.WriteString(eol)
		}
	}
	return splice{i, i, b.String()}
}

// cut removes the whole lines from the line start i to j. A file without a last line break stays one.
func (d *doc) cut(i, j int) splice {
	if j == len(d.data) && d.data[j-1] != '\n' && i > d.lines[0] {
		i-- // the line break before goes instead of one after
		if i > d.lines[0] && d.data[i-1] == '\r' {
			i--
		}
	}
	return splice{i, j, ""}
}

// under passes over the comment lines at the line start i that are indented deeper than the column given: they
// belong to what stands before.
func (d *doc) under(i, indent int) int {
	for i < len(d.data) {
		end := d.lineEnd(i)
		line := string(d.data[i:end])
		t := strings.TrimLeft(line, " ")
		if len(line)-len(t) <= indent || !strings.HasPrefix(t, "#") { // the last line may hold spaces alone
			break
		}
		i = end
	}
	return i
}

// item is a new element of a list, in both styles.
type item struct {
	block []string // lines; the first begins with "- "
	flow  string
}

// value finds a key of a mapping and its value.
func value(m *yaml.Node, key string) (k, v *yaml.Node) {
	for i := 0; i+1 < len(m.Content); i += 2 {
		if m.Content[i].Value == key {
			return m.Content[i], m.Content[i+1]
		}
	}
	return nil, nil
}

// add appends an item to the list under key of the root mapping, and creates the list when there is none.
func (d *doc) add(key string, it item) ([]byte, error) {
	if d.root == nil {
		return d.with(d.insert(len(d.data), 0, append([]string{key + ":"}, indented(it.block)...))), nil
	}
	k, v := value(d.root, key)
	indent := d.root.Column - 1
	switch {
	case k == nil && d.root.Style&yaml.FlowStyle == 0:
		return d.with(d.insert(len(d.data), indent, append([]string{key + ":"}, indented(it.block)...))), nil
	case k == nil || null(v) && d.root.Style&yaml.FlowStyle != 0:
		return nil, fmt.Errorf("line %d: the file is in flow style ({…}) and has no list %s", d.root.Line, key)
	case null(v) || len(v.Content) == 0 && d.root.Style&yaml.FlowStyle == 0:
		colon, err := d.colon(k)
		if err != nil {
			return nil, err
		}
		end, err := d.end(v)
		if err != nil {
			return nil, err
		}
		if t := string(d.data[colon:end]); strings.Trim(t, " \t[]") != "" && strings.Trim(t, " \t") != v.Value {
			if v.Kind == yaml.SequenceNode {
				return d.append(v, it) // an empty list over several lines
			}
			return nil, fmt.Errorf("line %d: %s is neither a list nor plainly nothing", v.Line, key)
		}
		if err := d.rest(end); err != nil {
			return nil, err
		}
		at := d.under(d.lineEnd(end), indent)
		return d.with(splice{colon, end, ""}, d.insert(at, indent, indented(it.block))), nil
	}
	return d.append(v, it)
}

// append adds an item to a list that is there.
func (d *doc) append(seq *yaml.Node, it item) ([]byte, error) {
	if seq.Style&yaml.FlowStyle != 0 {
		return d.appendFlow(seq, 1, it.flow)
	}
	end, err := d.end(seq)
	if err != nil {
		return nil, err
	}
	if err := d.rest(end); err != nil {
		return nil, err
	}
	return d.with(d.insert(d.under(d.lineEnd(end), seq.Column-1), seq.Column-1, it.block)), nil
}

// appendFlow adds an element to a flow collection whose elements are step nodes each.
func (d *doc) appendFlow(n *yaml.Node, step int, text string) ([]byte, error) {
	closing, err := d.end(n)
	if err != nil {
		return nil, err
	}
	closing--
	if len(n.Content) == 0 {
		at := d.at(n) + 1
		return d.with(splice{at, at, text}), nil
	}
	end, err := d.end(n.Content[len(n.Content)-1])
	if err != nil {
		return nil, err
	}
	comma := d.comma(end)
	line := d.lineEnd(max(comma, end))
	indent, first := d.indent(d.at(n.Content[len(n.Content)-step]))
	switch {
	case first && line <= closing && comma >= 0:
		return d.with(splice{line, line, indent + text + "," + d.eol(line)}), nil
	case first && line <= closing:
		return d.with(splice{end, end, ","}, splice{line, line, indent + text + d.eol(line)}), nil
	case comma >= 0:
		return d.with(splice{comma + 1, comma + 1, " " + text + ","}), nil
	}
	return d.with(splice{end, end, ", " + text}), nil
}

// remove takes element i out of the list seq, which stands under key k.
func (d *doc) remove(k, seq *yaml.Node, i int) ([]byte, error) {
	if seq.Style&yaml.FlowStyle != 0 {
		return d.removeFlow(seq, 1, i)
	}
	n := seq.Content[i]
	end, err := d.end(n)
	if err != nil {
		return nil, err
	}
	if err := d.rest(end); err != nil {
		return nil, err
	}
	start, err := d.dash(seq, i)
	if err != nil {
		return nil, err
	}
	edits := []splice{d.cut(start, d.lineEnd(end))}
	if len(seq.Content) == 1 { // a list with nothing in it is written []
		colon, err := d.colon(k)
		if err != nil {
			return nil, err
		}
		edits = append(edits, splice{colon, colon, " []"})
	}
	return d.with(edits...), nil
}

// dash is the start of the line with the dash of element i of a block list.
func (d *doc) dash(seq *yaml.Node, i int) (int, error) {
	n := seq.Content[i]
	for line := n.Line; line >= seq.Line; line-- {
		start := d.lines[line-1]
		s := string(d.data[start:d.lineEnd(start)])
		if t := strings.TrimLeft(s, " "); len(s)-len(t) == seq.Column-1 && strings.HasPrefix(t, "-") {
			return start, nil
		}
	}
	return 0, fmt.Errorf("line %d: cannot find the dash of this list element on a line of its own", n.Line)
}

// colon is the offset after the colon of a key.
func (d *doc) colon(k *yaml.Node) (int, error) {
	end, err := d.end(k)
	if err != nil {
		return 0, err
	}
	for end < len(d.data) && (d.data[end] == ' ' || d.data[end] == '\t') {
		end++
	}
	if end == len(d.data) || d.data[end] != ':' {
		return 0, fmt.Errorf("line %d: cannot find the colon of key %s", k.Line, k.Value)
	}
	return end + 1, nil
}

// removeFlow takes element i out of a flow collection whose elements are step nodes each.
func (d *doc) removeFlow(n *yaml.Node, step, i int) ([]byte, error) {
	start := d.at(n.Content[i*step])
	end, err := d.end(n.Content[i*step+step-1])
	if err != nil {
		return nil, err
	}
	last := (i+1)*step == len(n.Content)
	after := d.comma(end)
	stop := max(end, after+1)
	var edits []splice
	if last && i > 0 && after < 0 { // the comma before it goes too
		before, err := d.end(n.Content[i*step-1])
		if err != nil {
			return nil, err
		}
		comma := d.comma(before)
		if comma < 0 {
			return nil, fmt.Errorf("line %d: cannot find the comma before this element", n.Content[i*step].Line)
		}
		edits = append(edits, splice{comma, comma + 1, ""})
	}
	indent, first := d.indent(start)
	if first && d.rest(stop) == nil && d.lineEnd(stop) < len(d.data) {
		return d.with(append(edits, splice{start - len(indent), d.lineEnd(stop), ""})...), nil
	}
	if !last {
		if next := d.at(n.Content[(i+1)*step]); strings.Trim(string(d.data[stop:next]), " \t") == "" {
			stop = next
		}
	} else if i > 0 {
		for d.data[start-1] == ' ' || d.data[start-1] == '\t' {
			start--
		}
	}
	return d.with(append(edits, splice{start, stop, ""})...), nil
}

// drop removes a key and its value from a mapping.
func (d *doc) drop(m *yaml.Node, key string) ([]byte, error) {
	i := slices.IndexFunc(m.Content, func(n *yaml.Node) bool { return n.Value == key })
	if m.Style&yaml.FlowStyle != 0 {
		return d.removeFlow(m, 2, i/2)
	}
	start := d.at(m.Content[i])
	end, err := d.end(m.Content[i+1])
	if err != nil {
		return nil, err
	}
	if err := d.rest(end); err != nil {
		return nil, err
	}
	indent, first := d.indent(start)
	if first {
		return d.with(d.cut(start-len(indent), d.lineEnd(end))), nil
	}
	// It stands on the line of the dash: the next key moves up there.
	if i+2 >= len(m.Content) {
		return nil, fmt.Errorf("line %d: %s is the only key", m.Line, key)
	}
	next := d.at(m.Content[i+2])
	if strings.TrimSpace(string(d.data[d.lineEnd(end):next])) != "" {
		return nil, fmt.Errorf("line %d: a comment stands between %s and the next key", m.Line, key)
	}
	return d.with(splice{start, next, ""}), nil
}

// put adds a key after another one of a mapping.
func (d *doc) put(m *yaml.Node, after string, block []string, flow string) ([]byte, error) {
	if m.Style&yaml.FlowStyle != 0 {
		return d.appendFlow(m, 2, flow)
	}
	_, v := value(m, after)
	end, err := d.end(v)
	if err != nil {
		return nil, err
	}
	if err := d.rest(end); err != nil {
		return nil, err
	}
	return d.with(d.insert(d.lineEnd(end), m.Column-1, block)), nil
}

func indented(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = "  " + l
	}
	return out
}
