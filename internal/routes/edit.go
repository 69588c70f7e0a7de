package routes

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"gopkg.in/yaml.v3"

	"github.com/bot-bottle/supervise/internal/lazy"
)

// EditError is an edit that cannot be made with certainty. The file is as it was.
type EditError struct {
	Reason string // with the line
	ByHand string // the lines a person would write, or what they would do
}

func (e *EditError) Error() string { return e.Reason }

// Set makes the entry of host equal to want, or removes it when want is nil, by a textual edit that keeps
// every other byte of the file. An entry that is there keeps its place and its spelling of the host; a
// new one goes to the end. The result has been parsed and compared with what was asked for. When nothing is
// to be changed the result is data itself. Every error is an *EditError.
func Set(data []byte, host string, want *Route) ([]byte, error) {
	fail := func(err error) ([]byte, error) {
		byHand := fmt.Sprintf("remove the entry of host %s\n", Key(host))
		if want != nil {
			byHand = strings.Join(indented(entryBlock(*want)), "\n") + "\n"
		}
		return nil, &EditError{Reason: err.Error(), ByHand: byHand}
	}
	d, err := parseDoc(data)
	if err != nil {
		return fail(err)
	}
	t, err := d.table()
	if err != nil {
		return fail(err)
	}
	goal := Table{Routes: slices.Clone(t.Routes)}
	i := t.index(host)
	var out []byte
	switch {
	case want == nil && i < 0:
		return data, nil
	case want == nil:
		goal.Routes = slices.Delete(goal.Routes, i, i+1)
		k, v := value(d.root, "routes")
		out, err = d.remove(k, v, i)
	default:
		w := want.clone()
		if err := w.check(); err != nil {
			return fail(err)
		}
		if Key(w.Host) != Key(host) {
			return fail(fmt.Errorf("the entry of host %s cannot become one of host %s", Key(host), Key(w.Host)))
		}
		if i < 0 {
			goal.Routes = append(goal.Routes, w)
			it := item{entryBlock(w), entryFlow(w)}
			if n := len(t.Routes); n > 0 {
				if _, v := value(d.root, "routes"); v.Content[n-1].Style&yaml.FlowStyle != 0 {
					it.block = []string{"- " + it.flow} // as the one before it is written
				}
			}
			out, err = d.add("routes", it)
			break
		}
		w.Host = t.Routes[i].Host
		if Equal(&t.Routes[i], &w) {
			return data, nil
		}
		goal.Routes[i] = w
		out, err = change(data, i, t.Routes[i], w)
	}
	if err != nil {
		return fail(err)
	}
	got, err := Parse(out)
	if err != nil {
		return fail(fmt.Errorf("the edited file would not parse: %w", err))
	}
	if !slices.EqualFunc(got.Routes, goal.Routes, func(a, b Route) bool { return Equal(&a, &b) }) {
		return fail(fmt.Errorf("the edited file would not say what was asked for"))
	}
	return out, nil
}

// change edits entry i from have to want, one step after another, each on a fresh parse.
func change(data []byte, i int, have, want Route) ([]byte, error) {
	step := func(f func(d *doc, entry *yaml.Node) ([]byte, error)) error {
		d, err := parseDoc(data)
		if err != nil {
			return err
		}
		_, list := value(d.root, "routes")
		data, err = f(d, list.Content[i])
		return err
	}
	drop := func(key string) error {
		return step(func(d *doc, entry *yaml.Node) ([]byte, error) {
			if k, _ := value(entry, key); k == nil {
				return d.data, nil
			}
			return d.drop(entry, key)
		})
	}
	if !slices.Equal(have.PathAllowlist, want.PathAllowlist) {
		var keep []string
		for _, p := range have.PathAllowlist {
			if slices.Contains(want.PathAllowlist, p) {
				keep = append(keep, p)
			}
		}
		if len(keep) > 0 && len(keep) <= len(want.PathAllowlist) && slices.Equal(keep, want.PathAllowlist[:len(keep)]) {
			for j, p := range slices.Backward(have.PathAllowlist) {
				if slices.Contains(keep, p) {
					continue
				}
				if err := step(func(d *doc, entry *yaml.Node) ([]byte, error) {
					k, v := value(entry, "path_allowlist")
					return d.remove(k, v, j)
				}); err != nil {
					return nil, err
				}
			}
			for _, p := range want.PathAllowlist[len(keep):] {
				if err := step(func(d *doc, entry *yaml.Node) ([]byte, error) {
					_, v := value(entry, "path_allowlist")
					return d.append(v, item{[]string{"- " + quote(p)}, quote(p)})
				}); err != nil {
					return nil, err
				}
			}
		} else {
			if err := drop("path_allowlist"); err != nil {
				return nil, err
			}
			if len(want.PathAllowlist) > 0 {
				if err := step(func(d *doc, entry *yaml.Node) ([]byte, error) {
					return d.put(entry, "host", pathsBlock(want.PathAllowlist), pathsFlow(want.PathAllowlist))
				}); err != nil {
					return nil, err
				}
			}
		}
	}
	if (have.Auth == nil) != (want.Auth == nil) || have.Auth != nil && *have.Auth != *want.Auth {
		if err := drop("auth"); err != nil {
			return nil, err
		}
		if want.Auth != nil {
			if err := step(func(d *doc, entry *yaml.Node) ([]byte, error) {
				return d.put(entry, "host", []string{authFlow(*want.Auth)}, authFlow(*want.Auth))
			}); err != nil {
				return nil, err
			}
		}
	}
	return data, nil
}

// width is where a list stops being written on one line.
const width = 100

func entryBlock(r Route) []string {
	lines := []string{"- host: " + hostText(r.Host)}
	if len(r.PathAllowlist) > 0 {
		lines = append(lines, indented(pathsBlock(r.PathAllowlist))...)
	}
	if r.Auth != nil {
		lines = append(lines, "  "+authFlow(*r.Auth))
	}
	return lines
}

func entryFlow(r Route) string {
	parts := []string{"host: " + hostText(r.Host)}
	if len(r.PathAllowlist) > 0 {
		parts = append(parts, pathsFlow(r.PathAllowlist))
	}
	if r.Auth != nil {
		parts = append(parts, authFlow(*r.Auth))
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

func pathsFlow(paths []string) string {
	quoted := make([]string, len(paths))
	for i, p := range paths {
		quoted[i] = quote(p)
	}
	return "path_allowlist: [" + strings.Join(quoted, ", ") + "]"
}

func pathsBlock(paths []string) []string {
	if s := pathsFlow(paths); len(s) <= width {
		return []string{s}
	}
	lines := []string{"path_allowlist:"}
	for _, p := range paths {
		lines = append(lines, "  - "+quote(p))
	}
	return lines
}

func authFlow(a Auth) string {
	ref := a.TokenRef
	if !plainEnvRE().MatchString(ref) {
		ref = quote(ref)
	}
	return "auth: {scheme: " + a.Scheme + ", token_ref: " + ref + "}"
}

// What no version of YAML takes for a number, a boolean, a date or a null is written without quotes.
var (
	plainHostRE = lazy.Regexp(`^([a-z0-9]([a-z0-9-]*[a-z0-9])?\.)+[a-z]{2,}$`)
	plainEnvRE  = lazy.Regexp(`^[A-Z]+_[A-Z0-9_]+$`)
)

func hostText(host string) string {
	if plainHostRE().MatchString(host) {
		return host
	}
	return quote(host)
}

// quote writes a double-quoted scalar. What can be shown as it is is written as it is, so that a diff shows the very text of the
// file; controls and what is invisible are escaped, and so are marks without a base or in a pile.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	marks, most := 0, 0 // combining marks since their base, and how many it may carry
	for _, r := range s {
		mark := unicode.In(r, unicode.Mn, unicode.Me)
		if mark {
			marks++
		} else {
			marks, most = 0, 0
		}
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case visible(r) && (!mark || marks <= most):
			b.WriteRune(r)
			if !mark && r != ' ' {
				most = 4
			}
			continue
		case r <= 0xff:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r <= 0xffff:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
		most = 0
	}
	b.WriteByte('"')
	return b.String()
}

// visible tells whether r paints something of its own, and is shown as it is wherever a diff is.
func visible(r rune) bool {
	return unicode.IsPrint(r) && r != 0x2800 && r != '␠' && r != utf8.RuneError &&
		!unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}
