package routes

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
)

// pipelockKey is the one key of pipelock's configuration that is ours to edit: the host names that pass in
// strict mode, each exact or "*.x", which matches x too.
const pipelockKey = "api_allowlist"

// PipelockParse returns the entries of api_allowlist, as they are written.
func PipelockParse(data []byte) ([]string, error) {
	d, err := parseDoc(data)
	if err != nil {
		return nil, err
	}
	return d.allowlist()
}

// PipelockStrict tells whether only what is in api_allowlist passes: mode is strict and enforce is not off.
func PipelockStrict(data []byte) bool {
	d, err := parseDoc(data)
	if err != nil || d.root == nil || d.root.Kind != yaml.MappingNode {
		return false
	}
	_, mode := value(d.root, "mode")
	_, enforce := value(d.root, "enforce")
	var on bool
	return mode != nil && mode.Value == "strict" &&
		(enforce == nil || null(enforce) || enforce.Decode(&on) == nil && on)
}

func (d *doc) allowlist() ([]string, error) {
	if d.root == nil {
		return nil, nil
	}
	top, err := fields(d.root, "the file")
	if err != nil {
		return nil, err
	}
	list := top[pipelockKey]
	if list == nil || null(list) && list.Kind == yaml.ScalarNode {
		return nil, nil
	}
	if err := plain(list); err != nil {
		return nil, err
	}
	if list.Kind != yaml.SequenceNode {
		return nil, fmt.Errorf("line %d: %s must be a list", list.Line, pipelockKey)
	}
	var entries []string
	for _, n := range list.Content {
		s, err := str(n, "an entry of "+pipelockKey)
		if err != nil {
			return nil, err
		}
		entries = append(entries, s)
	}
	return entries, nil
}

// PipelockCovers tells whether an entry lets host through: exact, or "*.x", which matches x too.
func PipelockCovers(entries []string, host string) bool { return PipelockCover(entries, host) != "" }

// PipelockCover returns the first entry that lets host through, or "".
func PipelockCover(entries []string, host string) string {
	host = Key(host)
	for _, e := range entries {
		low := strings.ToLower(e)
		if low == host {
			return e
		}
		if x, ok := strings.CutPrefix(low, "*."); ok && x != "" && (host == x || strings.HasSuffix(host, "."+x)) {
			return e
		}
	}
	return ""
}

// PipelockSet adds the bare host to api_allowlist, unless an entry covers it already, or removes the entries
// that are exactly it, by a textual edit that keeps every other byte. When nothing is to be changed the
// result is data itself. Every error is an *EditError.
func PipelockSet(data []byte, host string, present bool) ([]byte, error) {
	hostErr := checkHost(host)
	host = Key(host)
	fail := func(err error) ([]byte, error) {
		byHand := fmt.Sprintf("remove %s from %s\n", host, pipelockKey)
		if present {
			byHand = pipelockKey + ":\n  - " + hostText(host) + "\n"
		}
		return nil, &EditError{Reason: err.Error(), ByHand: byHand}
	}
	if hostErr != nil {
		return fail(hostErr)
	}
	d, err := parseDoc(data)
	if err != nil {
		return fail(err)
	}
	old := d
	entries, err := d.allowlist()
	if err != nil {
		return fail(err)
	}
	goal := slices.Clone(entries)
	out := data
	if present {
		if PipelockCovers(entries, host) {
			return data, nil
		}
		goal = append(goal, host)
		text := hostText(host)
		if d.root != nil {
			if _, v := value(d.root, pipelockKey); v != nil && len(v.Content) > 0 && v.Content[len(v.Content)-1].Style == yaml.DoubleQuotedStyle {
				text = quote(host) // as the one before it is written
			}
		}
		if out, err = d.add(pipelockKey, item{[]string{"- " + text}, text}); err != nil {
			return fail(err)
		}
	} else {
		is := func(e string) bool { return strings.ToLower(e) == host }
		goal = slices.DeleteFunc(goal, is)
		for i, e := range slices.Backward(entries) {
			if !is(e) {
				continue
			}
			k, v := value(d.root, pipelockKey)
			if out, err = d.remove(k, v, i); err != nil {
				return fail(err)
			}
			if d, err = parseDoc(out); err != nil {
				return fail(fmt.Errorf("the edited file would not parse: %w", err))
			}
		}
		if len(goal) == len(entries) {
			return data, nil
		}
	}
	if d, err = parseDoc(out); err != nil {
		return fail(fmt.Errorf("the edited file would not parse: %w", err))
	}
	got, err := d.allowlist()
	if err != nil {
		return fail(fmt.Errorf("the edited file would not parse: %w", err))
	}
	if !slices.Equal(got, goal) || !sameBut(old.root, d.root, pipelockKey) {
		return fail(errors.New("the edited file would not say what was asked for"))
	}
	return out, nil
}

// sameBut tells whether two files say the same, but for one key at the top.
func sameBut(a, b *yaml.Node, key string) bool {
	others := func(n *yaml.Node) []*yaml.Node {
		if n == nil {
			return nil
		}
		var out []*yaml.Node
		for i := 0; i+1 < len(n.Content); i += 2 {
			if n.Content[i].Value != key {
				out = append(out, n.Content[i], n.Content[i+1])
			}
		}
		return out
	}
	return slices.EqualFunc(others(a), others(b), same)
}

func same(a, b *yaml.Node) bool {
	if a.Kind != b.Kind || a.Tag != b.Tag || a.Value != b.Value || a.Anchor != b.Anchor {
		return false
	}
	return slices.EqualFunc(a.Content, b.Content, same) // an alias has its name as value, and no content
}
