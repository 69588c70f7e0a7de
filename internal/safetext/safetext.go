// Package safetext is the one escaper for everything an agent wrote. Whatever reaches a
// terminal, a page, a log or JSON output from a proposal passes through it, and nothing else
// prints agent text.
//
// After it, text holds no control bytes (C0, C1, DEL), no ANSI or OSC sequence, no bidirectional or
// other invisible format character, no space but U+0020, no private-use or unassigned rune, no pile of combining
// marks and no invalid UTF-8: each is shown as a visible escape (\x1b, \u202e, \U000e0001; a byte that is not UTF-8 as \xff).
// Backslashes that would be taken for such an escape, or stand right before one, are doubled, so that the form is
// unambiguous: the original can be told from it.
//
// [Spaces] then shows long runs of spaces, which push text out of sight, by a mark that escaped text does not hold.
//
// What is plain stays as it is, so escaping plain text changes nothing; escaping twice doubles backslashes.
package safetext

import (
	"fmt"
	"log/slog"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/clipperhouse/displaywidth"
)

// Untrusted is text that an agent (or a hostile sidecar) wrote. It formats escaped, so that fmt, slog and
// html/template cannot print it raw; Raw is for storing and comparing only.
type Untrusted string

// Raw returns the text as it was written.
func (u Untrusted) Raw() string { return string(u) }

// String returns Block(u).
func (u Untrusted) String() string { return Block(string(u)) }

// Line returns Line(u, max).
func (u Untrusted) Line(max int) string { return Line(string(u), max) }

// Format makes every verb, also a mistaken %d, print the escaped text.
func (u Untrusted) Format(f fmt.State, verb rune) {
	fmt.Fprintf(f, fmt.FormatString(f, verb), u.String())
}

// LogValue is one line, cut.
func (u Untrusted) LogValue() slog.Value { return slog.StringValue(u.Line(200)) }

// Block escapes text of several lines. It keeps \n and \t; a carriage return is shown as \r.
func Block(s string) string {
	var b strings.Builder
	sc := scanner{s: s, block: true}
	for sc.next() {
		b.WriteString(sc.unit)
	}
	return b.String()
}

// Once is Block for text that may have been escaped already, such as an error that quotes an agent: what is plain but for
// its backslashes stays as it is.
func Once(s string) string {
	strip := func(s string) string { return strings.ReplaceAll(s, `\`, "") }
	if safe := Block(s); strip(safe) != strip(s) {
		return safe
	}
	return s // only backslashes would have been doubled
}

// Line escapes to one line: newlines and tabs too. It cuts to max display cells, the last of them
// then "…"; max <= 0 does not cut. An escape is never cut in two.
func Line(s string, max int) string {
	var b strings.Builder
	sc := scanner{s: s}
	cells, keep := 0, 0 // keep: length of the output that leaves a cell for the ellipsis
	for sc.next() {
		b.WriteString(sc.unit)
		if max <= 0 {
			continue
		}
		cells += width(sc.unit)
		if cells > max {
			return b.String()[:keep] + "…"
		}
		if cells < max {
			keep = b.Len()
		}
	}
	return b.String()
}

// mostSpaces is how many spaces are shown as they are.
const mostSpaces = 40

// Spaces shows each longer run of spaces of escaped text as "␠×6000␠".
func Spaces(s string) string {
	if !strings.Contains(s, strings.Repeat(" ", mostSpaces+1)) {
		return s
	}
	var b strings.Builder
	for s != "" {
		i := strings.IndexByte(s+" ", ' ')
		b.WriteString(s[:i])
		rest := strings.TrimLeft(s[i:], " ")
		if n := len(s) - i - len(rest); n > mostSpaces {
			fmt.Fprintf(&b, "␠×%d␠", n)
		} else {
			b.WriteString(s[i : i+n])
		}
		s = rest
	}
	return b.String()
}

// width is an upper bound of the cells a terminal gives s: the sum over its runes, since not every
// terminal joins them. A regional indicator counts as a whole flag.
func width(s string) int {
	n := 0
	for _, r := range s {
		w := displaywidth.Rune(r)
		if r >= 0x1F1E6 && r <= 0x1F1FF {
			w = 2
		}
		n += w
	}
	return n
}

// maxMarks is how many combining marks may follow one base; writing systems need no more, and a pile of
// them paints over the lines above.
const maxMarks = 4

// scanner yields the escaped text in units that must not be split.
type scanner struct {
	s     string // what is left
	block bool   // keep \n and \t
	unit  string // what the last next yielded

	marks   int  // combining marks since the base
	based   bool // the last unit may carry marks
	slashes int  // backslashes left of the run at the start of s
	double  bool // that run is doubled
}

func (sc *scanner) next() bool {
	switch {
	case sc.s == "":
		return false
	case sc.s[0] == '\\':
		sc.backslash()
		return true
	}
	r, n, esc := sc.look(sc.s)
	sc.advance(r, esc)
	sc.unit, sc.s = sc.s[:n], sc.s[n:]
	if esc != "" {
		sc.unit = esc
	}
	return true
}

// advance notes what the next rune may combine with.
func (sc *scanner) advance(r rune, esc string) {
	switch {
	case esc != "":
		sc.marks, sc.based = 0, false // a mark must not alter how an escape looks
	case isMark(r):
		sc.marks++
	default:
		sc.marks, sc.based = 0, r > ' '
	}
}

// backslash yields one of a run of them, doubled if what follows the run is an escape or reads like one.
func (sc *scanner) backslash() {
	sc.marks, sc.based = 0, true
	if sc.slashes == 0 {
		rest := strings.TrimLeft(sc.s, `\`)
		sc.slashes = len(sc.s) - len(rest)
		sc.double = sc.readsEscaped(rest)
		if !sc.double && rest != "" {
			_, _, esc := sc.look(rest)
			sc.double = esc != ""
		}
	}
	sc.slashes--
	sc.unit, sc.s = `\`, sc.s[1:]
	if sc.double {
		sc.unit = `\\`
	}
}

// readsEscaped tells whether s reads, after a backslash, as an escape of ours.
func (sc *scanner) readsEscaped(s string) bool {
	if s == "" {
		return false
	}
	digits := 0
	switch s[0] {
	case 'r':
		return true
	case 'n', 't':
		return !sc.block
	case 'x':
		digits = 2
	case 'u':
		digits = 4
	case 'U':
		digits = 8
	default:
		return false
	}
	if len(s) <= digits {
		return false
	}
	return strings.Trim(s[1:1+digits], "0123456789abcdefABCDEF") == ""
}

// look returns the first rune of s, its length, and how it is shown if it cannot stay.
func (sc *scanner) look(s string) (r rune, n int, esc string) {
	r, n = utf8.DecodeRuneInString(s)
	switch {
	case r == utf8.RuneError && n == 1:
		return r, n, fmt.Sprintf(`\x%02x`, s[0])
	case r == '\n' && !sc.block:
		return r, n, `\n`
	case r == '\t' && !sc.block:
		return r, n, `\t`
	case r == '\r':
		return r, n, `\r`
	case r == '\n' || r == '\t' || r >= ' ' && r < 0x7f:
		return r, n, ""
	case !visible(r) || isMark(r) && (!sc.based || sc.marks >= maxMarks):
		return r, n, escaped(r)
	}
	return r, n, ""
}

func escaped(r rune) string {
	switch {
	case r < 0x80:
		return fmt.Sprintf(`\x%02x`, r)
	case r < 0x10000:
		return fmt.Sprintf(`\u%04x`, r)
	}
	return fmt.Sprintf(`\U%08x`, r)
}

func isMark(r rune) bool { return r >= 0x300 && unicode.In(r, unicode.Mn, unicode.Me) }

// visible tells whether r paints something of its own, and is no mark of [Spaces]. Variation selectors and the other default-ignorable
// letters and marks (Hangul fillers, the combining grapheme joiner) count as printable for
// package unicode, and so do the blank Braille pattern, the note without a head and what stands for an object that text does not hold.
func visible(r rune) bool {
	return unicode.IsPrint(r) && r != 0x2800 && r != 0x1d159 && r != 0xfffc && r != '␠' &&
		!unicode.In(r, unicode.Variation_Selector, unicode.Other_Default_Ignorable_Code_Point)
}

// Untab replaces the tabs of a line by spaces up to the next stop. Width tells how many cells a text takes.
func Untab(s string, stop int, width func(string) int) string {
	if !strings.Contains(s, "\t") {
		return s
	}
	var b strings.Builder
	col := 0
	for part := range strings.SplitAfterSeq(s, "\t") {
		text, tab := strings.CutSuffix(part, "\t")
		b.WriteString(text)
		col += width(text)
		if tab {
			n := stop - col%stop
			b.WriteString(strings.Repeat(" ", n))
			col += n
		}
	}
	return b.String()
}
